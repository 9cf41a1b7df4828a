#include "gateway/stream_socket.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gateway/event_stream.h"
#include "gateway/head_json.h"
#include "gateway/uuid.h"
#include "gateway/wish.h"
#include "shm/json.h"

/* A join asked for by the path, until the socket is open. */
struct path_join {
    struct subscription_wish wish; /* its texts are here */
    char id[UUID_TEXT_BYTES + 1];
    char text[];
};

struct stream_socket {
    struct stream_channel *channel;
    struct subscriber subscriber;
    struct path_join *path_join; /* NULL: none, or done */
    struct gate_visitor visitor; /* its joins that wait for gates */
    /* An event stream whose gates are asked before it is open; NULL: it is open, or not asked yet. */
    stream_socket_admitted *admitted;
    void *admitted_context;
};

enum { CLOSE_DENIED = 4403, CLOSE_TRY_AGAIN = 1013 };

static_assert((int)SETTINGS_SLOW_LATEST == (int)SLOW_LATEST, "a setting is a policy");
static_assert((int)SETTINGS_SLOW_LOSSLESS == (int)SLOW_LOSSLESS, "a setting is a policy");
static_assert((int)SETTINGS_SLOW_DISCONNECT == (int)SLOW_DISCONNECT, "a setting is a policy");

void stream_channel_init(struct stream_channel *channel)
{
    buffer_init(&channel->decoded, WS_MESSAGE_BYTES_MAX);
}

void stream_channel_fini(struct stream_channel *channel)
{
    buffer_fini(&channel->decoded);
}

/* ---- handshake ---- */

/* The next name of a comma-separated list with white space around names; false at its end. */
static bool list_next(struct span *rest, struct span *name)
{
    while (rest->bytes > 0 && memchr(", \t", rest->data[0], 3) != NULL)
        *rest = span_of(rest->data + 1, rest->bytes - 1);
    if (rest->bytes == 0)
        return false;
    const char *comma = memchr(rest->data, ',', rest->bytes);
    *name = span_of(rest->data, comma == NULL ? rest->bytes : (size_t)(comma - rest->data));
    *rest = span_of(rest->data + name->bytes, rest->bytes - name->bytes);
    while (memchr(" \t", name->data[name->bytes - 1], 2) !=
           NULL) /* it starts with something else */
        name->bytes--;
    return true;
}

static bool list_has(struct span list, struct span wanted)
{
    struct span name;
    while (list_next(&list, &name)) {
        if (span_equal(name, wanted))
            return true;
    }
    return false;
}

static bool origin_is_allowed(const char *origins, struct span origin)
{
    return origins[0] == '\0' || list_has(span_text(origins), origin);
}

/* The first offered name that is on the list of the settings. */
static struct span choose_subprotocol(const char *accepted, struct span offered)
{
    struct span name;
    while (list_next(&offered, &name)) {
        if (list_has(span_text(accepted), name))
            return name;
    }
    return (struct span){0};
}

/* "{prefix}{s}/{g}[/]" -> the two raw segments. */
static bool path_split(struct span path, const char *prefix, struct span *stream,
                       struct span *group)
{
    size_t prefix_bytes = strlen(prefix);
    if (path.bytes < prefix_bytes || memcmp(path.data, prefix, prefix_bytes) != 0)
        return false;
    const char *at = path.data + prefix_bytes;
    const char *end = path.data + path.bytes;
    const char *slash = memchr(at, '/', (size_t)(end - at));
    if (slash == NULL)
        return false;
    *stream = span_of(at, (size_t)(slash - at));
    at = slash + 1;
    slash = memchr(at, '/', (size_t)(end - at));
    if (slash != NULL && slash + 1 != end)
        return false;
    *group = span_of(at, (size_t)((slash == NULL ? end : slash) - at));
    return stream->bytes > 0 && group->bytes > 0;
}

/* What the stream does to slow subscribers, unless the join says otherwise. */
static void wish_take_settings(const struct stream_channel *channel, struct subscription_wish *wish)
{
    struct settings_stream stream = settings_stream_of(channel->settings, wish->stream);
    wish->policy = (enum slow_policy)stream.slow;
    wish->lag_events = (uint32_t)stream.lag_events;
}

/* Where a browser that comes back left off. NULL, or what is wrong. */
static const char *wish_take_last_event_id(struct subscription_wish *wish, struct span headers)
{
    struct head_pair pair;
    while (head_next_header(&headers, &pair)) {
        if (!head_name_is(pair.name, SPAN_LITERAL("last-event-id")) || pair.value.bytes == 0)
            continue;
        if (!event_stream_parse_id(pair.value, &wish->cursor))
            return "Last-Event-ID is EPOCH-SEQ, as an event's id was";
        wish->has_cursor = true;
    }
    return NULL;
}

/* The names of the path; false: they cannot be right. */
static bool path_join_decode(struct path_join *join, struct span stream, struct span group)
{
    struct subscription_wish *wish = &join->wish;
    size_t stream_bytes, group_bytes;
    if (!stream_path_decode(join->text, stream, &stream_bytes) ||
        !stream_path_decode(join->text + stream_bytes, group, &group_bytes))
        return false;
    wish->stream = span_of(join->text, stream_bytes);
    wish->group = span_of(join->text + stream_bytes, group_bytes);
    return stream_bytes <= NAME_BYTES_MAX && group_bytes <= NAME_BYTES_MAX;
}

static unsigned path_refuse(struct ws_request *request, unsigned http_status, const char *refusal)
{
    request->refusal = refusal;
    return http_status;
}

/* What the request says besides names. 0, or the status of a refusal. */
static unsigned path_join_read(const struct stream_channel *channel, struct path_join *join,
                               struct ws_request *request)
{
    struct subscription_wish *wish = &join->wish;
    struct wish_words words;
    wish_take_settings(channel, wish);
    const char *wrong =
        wish_words_of_query(&words, request->is_event_stream ? &wish->item : NULL, request->query,
                            join->text + wish->stream.bytes + wish->group.bytes);
    if (wrong == NULL)
        wrong = wish_take(wish, &words);
    if (wrong == NULL && request->is_event_stream)
        wrong = wish_take_last_event_id(wish, request->headers);
    if (wrong == NULL && wish->item.bytes > NAME_BYTES_MAX)
        wrong = "the id is too long";
    return wrong == NULL ? 0 : path_refuse(request, 400, wrong);
}

static unsigned socket_take_path(struct stream_socket *socket, struct ws_request *request)
{
    struct span path = request->path, stream, group;
    bool is_plain = span_equal(path, SPAN_LITERAL("/")) ||
                    span_equal(path, SPAN_LITERAL("/stream")) ||
                    span_equal(path, SPAN_LITERAL("/stream/"));
    if (!request->is_event_stream && is_plain)
        return 0;
    if (!path_split(path, request->is_event_stream ? "/sse/" : "/stream/", &stream, &group))
        return 404;
    struct path_join *join =
        malloc(sizeof *join + stream.bytes + group.bytes + request->query.bytes);
    if (join == NULL)
        return 503;
    *join = (struct path_join){0};
    socket->path_join = join;
    if (!path_join_decode(join, stream, group))
        return path_refuse(request, 400, NULL);
    uint8_t uuid[UUID_BYTES];
    uuid_make(uuid);
    uuid_print(join->id, uuid);
    join->wish.subscription_id = span_text(join->id);
    return path_join_read(socket->channel, join, request);
}

/* Who may read the answer. False: nobody of this origin. */
static bool request_take_origin(const struct stream_channel *channel, struct ws_request *request)
{
    if (!origin_is_allowed(channel->settings->origins, request->origin) ||
        (request->is_event_stream && request->origin.bytes > WS_ORIGIN_BYTES_MAX))
        return false;
    if (!request->is_event_stream)
        return true;
    request->allowed_origin = request->origin;
    /* Cookies are shown to those only who were named. */
    request->allows_credentials = channel->settings->origins[0] != '\0';
    return true;
}

struct stream_socket *stream_socket_make(struct stream_channel *channel, struct ws_request *request)
{
    struct stream_socket *socket = NULL;
    if (!request_take_origin(channel, request)) {
        request->http_status = path_refuse(request, 403, "this origin is not allowed");
    } else if ((socket = calloc(1, sizeof *socket)) == NULL) {
        request->http_status = 503;
    } else {
        socket->channel = channel;
        socket->subscriber.format =
            request->is_event_stream ? FORMAT_EVENT_STREAM : FORMAT_WEBSOCKET;
        request->subprotocol =
            choose_subprotocol(channel->settings->subprotocols, request->protocols);
        request->http_status = socket_take_path(socket, request);
    }
    if (socket != NULL && request->http_status == 0)
        return socket;
    counters_add(channel->counters, COUNTER_UPGRADES_REFUSED, 1);
    if (socket != NULL)
        stream_socket_free(socket);
    return NULL;
}

void stream_socket_free(struct stream_socket *socket)
{
    if (socket->admitted != NULL) /* its gates are being asked */
        gates_forget(socket->channel->gates, &socket->visitor);
    free(socket->path_join);
    free((void *)(uintptr_t)socket->subscriber.context.data);
    free(socket);
}

void stream_socket_set_context(struct stream_socket *socket, struct span context)
{
    socket->subscriber.context = context;
}

/* ---- messages ---- */

static void socket_refuse(struct stream_socket *socket, const struct subscription_wish *wish,
                          const char *reason)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    joins_refuse(socket->channel->joins, socket->subscriber.connection, wish, reason,
                 (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

static void socket_decide(struct stream_socket *socket, const struct subscription_wish *wish,
                          bool is_path, enum gate_verdict verdict)
{
    struct stream_channel *channel = socket->channel;
    if (verdict == GATE_DENIED) {
        socket_refuse(socket, wish, NULL);
        if (is_path)
            ws_close_code(socket->subscriber.connection, CLOSE_DENIED, "join denied");
        return;
    }
    if (verdict == GATE_PASSED &&
        subscriptions_add(channel->subscriptions, &socket->subscriber, wish) == WEIR_OK)
        return;
    counters_add(channel->counters, COUNTER_JOINS_REFUSED, 1);
    socket_refuse(socket, wish, NULL);
}

void stream_socket_decided(void *context, struct gate_visitor *visitor,
                           const struct subscription_wish *wish, bool is_path,
                           enum gate_verdict verdict)
{
    (void)context;
    struct stream_socket *socket =
        (struct stream_socket *)(void *)((char *)visitor - offsetof(struct stream_socket, visitor));
    if (socket->admitted == NULL) {
        socket_decide(socket, wish, is_path, verdict);
        return;
    }
    stream_socket_admitted *admitted = socket->admitted;
    socket->admitted = NULL;
    admitted(socket->admitted_context, verdict); /* may free it */
}

/* Room for one more, counting those that wait? An id that is in use is replaced and needs none. */
static bool socket_has_room(const struct stream_socket *socket, struct span subscription_id)
{
    const struct subscriber *subscriber = &socket->subscriber;
    uint64_t count = (uint64_t)subscriber->subscription_count + socket->visitor.count;
    if (socket->visitor.void_count >= socket->channel->subscriptions->subscriptions_max)
        return false; /* it takes joins back faster than gates answer */
    return count < socket->channel->subscriptions->subscriptions_max ||
           (socket->visitor.count < socket->channel->subscriptions->subscriptions_max &&
            subscriptions_has(subscriber, subscription_id));
}

static void socket_join(struct stream_socket *socket, const struct subscription_wish *wish,
                        bool is_path)
{
    struct gates *gates = socket->channel->gates;
    enum gate_verdict verdict = GATE_PASSED;
    if (socket->visitor.joins != NULL)
        gates_cancel(gates, &socket->visitor, wish->subscription_id);
    if (!gates_are_clear(gates)) {
        const struct gate_question question = {
            .wish = *wish,
            .context = socket->subscriber.context,
            .is_path = is_path,
            .may_wait = socket_has_room(socket, wish->subscription_id),
        };
        verdict = gates_ask(gates, &socket->visitor, &question);
    }
    if (verdict != GATE_WAITING)
        socket_decide(socket, wish, is_path, verdict);
}

static void socket_leave(struct stream_socket *socket, struct span subscription_id)
{
    if (socket->visitor.joins != NULL)
        gates_cancel(socket->channel->gates, &socket->visitor, subscription_id);
    (void)subscriptions_remove(socket->channel->subscriptions, &socket->subscriber,
                               subscription_id);
}

bool stream_socket_is_event_stream(const struct stream_socket *socket)
{
    return socket->subscriber.format == FORMAT_EVENT_STREAM;
}

enum gate_verdict stream_socket_ask(struct stream_socket *socket, stream_socket_admitted *admitted,
                                    void *context)
{
    struct gates *gates = socket->channel->gates;
    weir_assert(socket->path_join != NULL);
    if (gates_are_clear(gates))
        return GATE_PASSED;
    const struct gate_question question = {
        .wish = socket->path_join->wish,
        .context = socket->subscriber.context,
        .is_path = true,
        .may_wait = true,
    };
    enum gate_verdict verdict = gates_ask(gates, &socket->visitor, &question);
    if (verdict == GATE_WAITING) {
        socket->admitted = admitted;
        socket->admitted_context = context;
    }
    return verdict;
}

/* The gates have let it pass: say when to come back, and join. */
static void event_stream_opened(struct stream_socket *socket)
{
    struct stream_channel *channel = socket->channel;
    struct ws_connection *connection = socket->subscriber.connection;
    char text[48];
    counters_add(channel->counters, COUNTER_EVENT_STREAMS, 1);
    uint64_t hint_ms = retry_hint_ms(channel->retry, uv_hrtime() / 1000000, 0);
    int bytes = snprintf(text, sizeof text, "retry: %llu\n\n", (unsigned long long)hint_ms);
    const struct iovec part = {text, (size_t)bytes};
    if (ws_send_parts(connection, &part, 1) == WEIR_OK &&
        subscriptions_add(channel->subscriptions, &socket->subscriber, &socket->path_join->wish) ==
            WEIR_OK)
        return;
    counters_add(channel->counters, COUNTER_JOINS_REFUSED, 1);
    ws_close_code(connection, CLOSE_TRY_AGAIN, "no memory");
}

void stream_socket_opened(struct stream_socket *socket, struct ws_connection *connection)
{
    socket->subscriber.connection = connection;
    counters_add(socket->channel->counters, COUNTER_STREAM_CONNECTIONS, 1);
    if (stream_socket_is_event_stream(socket))
        event_stream_opened(socket);
    else if (socket->path_join != NULL)
        socket_join(socket, &socket->path_join->wish, true);
    free(socket->path_join);
    socket->path_join = NULL;
}

enum {
    DATA_SUBSCRIPTION,
    DATA_STREAM,
    DATA_GROUP,
    DATA_ID,
    DATA_EPOCH,
    DATA_SINCE,
    DATA_MODE,
    DATA_COUNT
};
static const char *const data_names[DATA_COUNT] = {"subscriptionId", "streamName", "groupId", "id",
                                                   "epoch",          "since",      "mode"};

/* Of a join: how and from where. NULL, or what is wrong. */
static const char *wish_take_data(const struct stream_channel *channel,
                                  struct subscription_wish *wish,
                                  const struct json_value values[DATA_COUNT])
{
    struct wish_words words;
    wish_take_settings(channel, wish);
    const char *wrong =
        wish_words_of_json(&words, values[DATA_EPOCH], values[DATA_SINCE], values[DATA_MODE]);
    return wrong != NULL ? wrong : wish_take(wish, &words);
}

/* OK: `wish` is filled, `is_join` says what to do with it, `wrong` why a join cannot be. */
static enum weir_status socket_parse(struct stream_channel *channel, struct span message,
                                     struct subscription_wish *wish, bool *is_join,
                                     const char **wrong)
{
    static const char *const names[] = {"type", "data"};
    struct json_value outer[2], values[DATA_COUNT];
    enum weir_status status = json_scan_object(message, JSON_DEPTH_MAX, names, 2, outer, NULL);
    if (status != WEIR_OK)
        return status;
    if (outer[0].kind != JSON_STRING || outer[1].kind != JSON_OBJECT)
        return WEIR_INVALID;
    *is_join = json_string_equals(outer[0], SPAN_LITERAL("join"));
    if (!*is_join && !json_string_equals(outer[0], SPAN_LITERAL("leave")))
        return WEIR_INVALID;
    status = json_scan_object(outer[1].text, JSON_DEPTH_MAX, data_names, DATA_COUNT, values, NULL);
    if (status != WEIR_OK)
        return status;
    buffer_clear(&channel->decoded);
    status = buffer_reserve(&channel->decoded, outer[1].text.bytes);
    if (status != WEIR_OK)
        return status;
    wish->subscription_id = json_decode(values[DATA_SUBSCRIPTION], &channel->decoded);
    wish->stream = json_decode(values[DATA_STREAM], &channel->decoded);
    wish->group = json_decode(values[DATA_GROUP], &channel->decoded);
    wish->item = json_decode(values[DATA_ID], &channel->decoded);
    bool id_is_right = values[DATA_ID].kind == JSON_ABSENT || values[DATA_ID].kind == JSON_NULL ||
                       values[DATA_ID].kind == JSON_STRING;
    if (wish->subscription_id.data == NULL || wish->stream.data == NULL ||
        wish->group.data == NULL || !id_is_right)
        return WEIR_INVALID;
    *wrong = *is_join ? wish_take_data(channel, wish, values) : NULL;
    return WEIR_OK;
}

void stream_socket_message(struct stream_socket *socket, struct span message)
{
    struct subscription_wish wish = {0};
    const char *wrong;
    bool is_join;
    if (span_is_blank(message))
        return;
    if (socket_parse(socket->channel, message, &wish, &is_join, &wrong) != WEIR_OK) {
        counters_add(socket->channel->counters, COUNTER_STREAM_MESSAGES_IGNORED, 1);
        return;
    }
    if (!is_join) {
        socket_leave(socket, wish.subscription_id);
    } else if (wrong != NULL) {
        counters_add(socket->channel->counters, COUNTER_JOINS_REFUSED, 1);
        socket_refuse(socket, &wish, wrong);
    } else {
        socket_join(socket, &wish, false);
    }
}

void stream_socket_writable(struct stream_socket *socket)
{
    subscriptions_unblock(socket->channel->subscriptions, &socket->subscriber);
}

void stream_socket_closed(struct stream_socket *socket)
{
    struct stream_channel *channel = socket->channel;
    gates_forget(channel->gates, &socket->visitor);
    subscriptions_remove_subscriber(channel->subscriptions, &socket->subscriber);
    counters_subtract(channel->counters, COUNTER_STREAM_CONNECTIONS, 1);
    if (stream_socket_is_event_stream(socket))
        counters_subtract(channel->counters, COUNTER_EVENT_STREAMS, 1);
    stream_socket_free(socket);
}

/* ---- outlet ---- */

static void on_add(void *context, void *connection, const struct iovec *frames,
                   unsigned frame_count, void *entry)
{
    ws_batch_add(context, connection, frames, frame_count, entry);
}

struct flush_context {
    outlet_done *done;
    void *context;
};

static void on_batch_done(void *context, struct ws_connection *connection, void *entry,
                          enum weir_status status)
{
    const struct flush_context *flush = context;
    (void)connection;
    flush->done(flush->context, entry, status);
}

static void on_flush(void *context, outlet_done *done, void *done_context)
{
    struct flush_context flush = {done, done_context};
    ws_batch_flush(context, on_batch_done, &flush);
}

static enum weir_status on_send_text(void *context, void *connection, struct span json,
                                     struct cursor at)
{
    char head[EVENT_STREAM_HEAD_BYTES];
    (void)context;
    if (!ws_is_event_stream(connection))
        return ws_send_text(connection, json);
    const struct iovec parts[] = {
        {head, event_stream_head(head, at)},
        {(void *)(uintptr_t)json.data, json.bytes},
        {(void *)(uintptr_t)EVENT_STREAM_END, sizeof EVENT_STREAM_END - 1},
    };
    return ws_send_parts(connection, parts, 3);
}

static size_t on_backlog_bytes(void *context, void *connection)
{
    (void)context;
    return ws_backlog_bytes(connection);
}

static void on_close(void *context, void *connection, unsigned code, const char *reason)
{
    (void)context;
    ws_close_code(connection, code, reason);
}

struct outlet stream_outlet(struct ws_server *server)
{
    return (struct outlet){
        .add = on_add,
        .flush = on_flush,
        .send_text = on_send_text,
        .backlog_bytes = on_backlog_bytes,
        .close = on_close,
        .context = server,
        .frames_max = WS_BATCH_IOV_MAX,
    };
}

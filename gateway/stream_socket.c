#include "gateway/stream_socket.h"

#include <stdlib.h>
#include <time.h>

#include "gateway/uuid.h"
#include "shm/json.h"

/* A join asked for by the path, until the socket is open. */
struct path_join {
    size_t stream_bytes, group_bytes;
    char text[];
};

struct stream_socket {
    struct stream_channel *channel;
    struct subscriber subscriber;
    struct path_join *path_join; /* NULL: none, or done */
    struct gate_visitor visitor; /* its joins that wait for gates */
};

enum { CLOSE_DENIED = 4403 };

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

/* "/stream/{s}/{g}[/]" -> the two raw segments. */
static bool path_split(struct span path, struct span *stream, struct span *group)
{
    static const char prefix[] = "/stream/";
    size_t prefix_bytes = sizeof prefix - 1;
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

static unsigned socket_take_path(struct stream_socket *socket, struct span path)
{
    if (span_equal(path, SPAN_LITERAL("/")) || span_equal(path, SPAN_LITERAL("/stream")) ||
        span_equal(path, SPAN_LITERAL("/stream/")))
        return 0;
    struct span stream, group;
    if (!path_split(path, &stream, &group))
        return 404;
    struct path_join *join = malloc(sizeof *join + stream.bytes + group.bytes);
    if (join == NULL)
        return 503;
    socket->path_join = join;
    if (!stream_path_decode(join->text, stream, &join->stream_bytes) ||
        !stream_path_decode(join->text + join->stream_bytes, group, &join->group_bytes) ||
        join->stream_bytes > NAME_BYTES_MAX || join->group_bytes > NAME_BYTES_MAX)
        return 400;
    return 0;
}

struct stream_socket *stream_socket_make(struct stream_channel *channel, struct ws_request *request)
{
    struct stream_socket *socket = NULL;
    if (!origin_is_allowed(channel->origins, request->origin)) {
        request->http_status = 403;
    } else if ((socket = calloc(1, sizeof *socket)) == NULL) {
        request->http_status = 503;
    } else {
        socket->channel = channel;
        request->subprotocol = choose_subprotocol(channel->subprotocols, request->protocols);
        request->http_status = socket_take_path(socket, request->path);
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
    socket_decide(socket, wish, is_path, verdict);
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

void stream_socket_opened(struct stream_socket *socket, struct ws_connection *connection)
{
    socket->subscriber.connection = connection;
    counters_add(socket->channel->counters, COUNTER_STREAM_CONNECTIONS, 1);
    struct path_join *join = socket->path_join;
    if (join == NULL)
        return;
    uint8_t uuid[UUID_BYTES];
    char id[UUID_TEXT_BYTES + 1];
    uuid_make(uuid);
    uuid_print(id, uuid);
    const struct subscription_wish wish = {
        .subscription_id = span_text(id),
        .stream = span_of(join->text, join->stream_bytes),
        .group = span_of(join->text + join->stream_bytes, join->group_bytes),
    };
    socket_join(socket, &wish, true);
    free(join);
    socket->path_join = NULL;
}

enum { DATA_SUBSCRIPTION, DATA_STREAM, DATA_GROUP, DATA_ID, DATA_COUNT };
static const char *const data_names[DATA_COUNT] = {"subscriptionId", "streamName", "groupId", "id"};

/* OK: `wish` is filled and `is_join` says what to do with it. */
static enum weir_status socket_parse(struct stream_channel *channel, struct span message,
                                     struct subscription_wish *wish, bool *is_join)
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
    return wish->subscription_id.data != NULL && wish->stream.data != NULL &&
                   wish->group.data != NULL && id_is_right
               ? WEIR_OK
               : WEIR_INVALID;
}

void stream_socket_message(struct stream_socket *socket, struct span message)
{
    struct subscription_wish wish = {0};
    bool is_join;
    if (span_is_blank(message))
        return;
    if (socket_parse(socket->channel, message, &wish, &is_join) != WEIR_OK) {
        counters_add(socket->channel->counters, COUNTER_STREAM_MESSAGES_IGNORED, 1);
        return;
    }
    if (is_join)
        socket_join(socket, &wish, false);
    else
        socket_leave(socket, wish.subscription_id);
}

void stream_socket_writable(struct stream_socket *socket)
{
    subscriptions_unblock(socket->channel->subscriptions, &socket->subscriber);
}

void stream_socket_closed(struct stream_socket *socket)
{
    struct stream_channel *channel = socket->channel;
    gates_forget(channel->gates, &socket->visitor);
    fanout_forget(channel->fanout, &socket->subscriber);
    catch_up_forget(channel->catch_up, &socket->subscriber);
    subscriptions_remove_subscriber(channel->subscriptions, &socket->subscriber);
    counters_subtract(channel->counters, COUNTER_STREAM_CONNECTIONS, 1);
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
    (void)context;
    (void)at;
    return ws_send_text(connection, json);
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

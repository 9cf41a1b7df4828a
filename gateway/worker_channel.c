#include "gateway/worker_channel.h"

#include <stdlib.h>

#include "gateway/parting.h"
#include "gateway/printer.h"
#include "gateway/salvage.h"
#include "gateway/session_access.h"

enum { SCRATCH_KEPT_BYTES = 1024 * 1024 };

struct worker_channel {
    struct sessions *sessions;
    struct counters *counters;
    struct buffer out;     /* the message being printed */
    struct buffer decoded; /* strings of the message at hand */
    struct worker *workers;
    struct worker *slow;      /* answers kept back, or a long backlog in the socket */
    struct worker *deferring; /* messages kept back */
    uint32_t leaving_count;   /* let go, and not closed yet */
};

struct worker {
    struct worker_channel *channel;
    struct ws_connection *connection;
    struct session *session; /* NULL before open and after eviction */
    struct worker *next, *previous;
    struct worker *slow_next;
    struct worker *deferring_next;
    struct buffer held; /* length-prefixed messages to the worker */
    size_t held_start;
    struct buffer
        deferred; /* length-prefixed messages from it; in the list `deferring` while there are any */
    size_t deferred_start;
    bool is_slow;
    bool is_paused;  /* by the session's bounds */
    bool is_waiting; /* for the end of its previous connection */
    bool is_closing;
    struct session_access *access; /* NULL: everything is allowed */
    bool is_asking;                /* about its rights, or the message at hand */
    struct parting parting;        /* closed as soon as nothing of it is in flight */
};

struct worker_channel *worker_channel_open(struct sessions *sessions, struct counters *counters)
{
    struct worker_channel *channel = calloc(1, sizeof *channel);
    if (channel == NULL)
        return NULL;
    channel->sessions = sessions;
    channel->counters = counters;
    buffer_init(&channel->out, (size_t)ANSWER_BYTES_MAX + WS_MESSAGE_BYTES_MAX);
    buffer_init(&channel->decoded, WS_MESSAGE_BYTES_MAX);
    return channel;
}

void worker_channel_close(struct worker_channel *channel)
{
    if (channel == NULL)
        return;
    buffer_fini(&channel->out);
    buffer_fini(&channel->decoded);
    free(channel);
}

static bool path_ends_with(struct span path, const char *end)
{
    size_t bytes = strlen(end);
    return path.bytes >= bytes && memcmp(path.data + path.bytes - bytes, end, bytes) == 0;
}

enum ws_role worker_channel_role(struct span path)
{
    if (span_equal(path, SPAN_LITERAL("/")) || span_equal(path, SPAN_LITERAL("/ws")) ||
        span_equal(path, SPAN_LITERAL("/ws/")))
        return WS_ROLE_WORKER;
    return path_ends_with(path, "/otel") ? WS_ROLE_TELEMETRY : WS_ROLE_NONE;
}

/* ---- sending ---- */

static void worker_drop(struct worker *worker, enum ws_status_code code, const char *reason)
{
    if (worker->is_closing)
        return;
    worker->is_closing = true;
    ws_close(worker->connection, code, reason);
}

static void worker_update_reading(struct worker *worker)
{
    ws_set_reading(worker->connection,
                   !worker->is_paused && !worker->is_slow &&
                       worker->deferred.bytes - worker->deferred_start < WORKER_DEFERRED_BYTES);
}

static void worker_set_slow(struct worker *worker)
{
    if (worker->is_slow)
        return;
    worker->is_slow = true;
    worker->slow_next = worker->channel->slow;
    worker->channel->slow = worker;
    worker_update_reading(worker);
}

static enum weir_status buffer_put_message(struct buffer *buffer, struct span json)
{
    uint32_t bytes = (uint32_t)json.bytes;
    size_t before = buffer->bytes;
    enum weir_status status = buffer_append(buffer, span_of(&bytes, sizeof bytes));
    if (status == WEIR_OK)
        status = buffer_append(buffer, json);
    if (status != WEIR_OK)
        buffer->bytes = before;
    return status;
}

static void worker_hold(struct worker *worker, struct span json)
{
    if (buffer_put_message(&worker->held, json) != WEIR_OK) {
        counters_add(worker->channel->counters, COUNTER_WORKERS_DROPPED, 1);
        worker_drop(worker, WS_TRY_LATER, "answers are not read");
        return;
    }
    counters_add(worker->channel->counters, COUNTER_ANSWERS_HELD, 1);
    worker_set_slow(worker);
}

static void worker_send(struct worker *worker, struct span json)
{
    if (worker->is_closing)
        return;
    enum weir_status status = WEIR_FULL;
    if (worker->held.bytes == worker->held_start)
        status = ws_send_text(worker->connection, json);
    if (status == WEIR_CLOSED)
        return;
    if (status != WEIR_OK)
        worker_hold(worker, json);
    else if (ws_backlog_bytes(worker->connection) > WORKER_BACKLOG_BYTES)
        worker_set_slow(worker);
}

static void buffer_take_message(const struct buffer *buffer, size_t *start, struct span *json)
{
    uint32_t bytes;
    memcpy(&bytes, buffer->data + *start, sizeof bytes);
    *json = span_of(buffer->data + *start + sizeof bytes, bytes);
    *start += sizeof bytes + bytes;
}

/* True when the worker keeps up again. */
static bool worker_release(struct worker *worker)
{
    while (worker->held_start < worker->held.bytes) { /* each turn takes one message */
        size_t next = worker->held_start;
        struct span json;
        buffer_take_message(&worker->held, &next, &json);
        if (worker->is_closing)
            return true;
        enum weir_status status = ws_send_text(worker->connection, json);
        if (status == WEIR_CLOSED)
            return true;
        if (status != WEIR_OK)
            return false;
        worker->held_start = next;
    }
    buffer_fini(&worker->held);
    buffer_init(&worker->held, WORKER_HELD_BYTES_MAX);
    worker->held_start = 0;
    return ws_backlog_bytes(worker->connection) <= WORKER_BACKLOG_BYTES / 2;
}

static void channel_release_slow(struct worker_channel *channel)
{
    struct worker **at = &channel->slow;
    while (*at != NULL) {
        struct worker *worker = *at;
        if (!worker_release(worker)) {
            at = &worker->slow_next;
            continue;
        }
        *at = worker->slow_next;
        worker->is_slow = false;
        worker_update_reading(worker);
    }
}

static void channel_shrink(struct buffer *buffer)
{
    if (buffer->capacity_bytes <= SCRATCH_KEPT_BYTES)
        return;
    size_t limit_bytes = buffer->limit_bytes;
    buffer_fini(buffer);
    buffer_init(buffer, limit_bytes);
}

static struct printer worker_printer(struct worker *worker)
{
    buffer_clear(&worker->channel->out);
    return (struct printer){&worker->channel->out, WEIR_OK};
}

static void worker_send_printed(struct worker *worker, const struct printer *printer)
{
    if (printer->status == WEIR_OK) {
        worker_send(worker, buffer_span(printer->out));
    } else {
        counters_add(worker->channel->counters, COUNTER_WORKERS_DROPPED, 1);
        worker_drop(worker, WS_INTERNAL, "no memory for an answer");
    }
    channel_shrink(printer->out);
}

/* ---- transport ---- */

/* An id as the worker knows it. */
static struct span worker_shown(const struct worker *worker, enum access_name kind, struct span id)
{
    return worker->access == NULL ? id : session_access_shown(worker->access, kind, id);
}

/* The id under which one of its own is filed; data NULL: no memory. */
static struct span worker_filed(const struct worker *worker, enum access_name kind, struct span id)
{
    return worker->access == NULL ? id : session_access_filed(worker->access, kind, id);
}

static void on_answer(void *peer, const struct session_answer *answer)
{
    struct worker *worker = peer;
    struct session_answer shown;
    if (worker->access != NULL)
        answer = session_access_filter(worker->access, answer, &shown);
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"invocationresult\",\"invocation_id\":");
    print_span(&printer, answer->tag);
    print_literal(&printer, ",\"function_id\":");
    print_span(&printer, answer->function_tag);
    print_member(&printer, SPAN_LITERAL(",\"result\":"), answer->result);
    print_member(&printer, SPAN_LITERAL(",\"error\":"), answer->error_json);
    print_string_member(&printer, SPAN_LITERAL(",\"traceparent\":"), answer->traceparent);
    print_string_member(&printer, SPAN_LITERAL(",\"baggage\":"), answer->baggage);
    print_literal(&printer, "}");
    parting_answered(&worker->parting);
    worker_send_printed(worker, &printer);
}

static void on_invocation(void *peer, const struct session_invocation *invocation)
{
    struct worker *worker = peer;
    char uuid[UUID_TEXT_BYTES + 1];
    uuid_print(uuid, invocation->uuid);
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"invokefunction\",\"invocation_id\":\"");
    print_span(&printer, span_text(uuid));
    print_literal(&printer, "\",\"function_id\":");
    print_string(&printer, worker_shown(worker, ACCESS_FUNCTION, invocation->function));
    print_literal(&printer, ",\"data\":");
    print_span(&printer, invocation->data.data == NULL ? SPAN_LITERAL("null") : invocation->data);
    print_member(&printer, SPAN_LITERAL(",\"metadata\":"), invocation->metadata);
    print_string_member(&printer, SPAN_LITERAL(",\"traceparent\":"), invocation->traceparent);
    print_string_member(&printer, SPAN_LITERAL(",\"baggage\":"), invocation->baggage);
    print_literal(&printer, "}");
    worker_send_printed(worker, &printer);
}

static void worker_send_rejection(struct worker *worker, const struct session_rejection *rejection)
{
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"registrationrejected\",\"code\":");
    print_string(&printer, rejection->code);
    print_literal(&printer, ",\"namespace\":");
    print_string(&printer, rejection->name_space);
    if (rejection->worker_name.data != NULL)
        print_string_member(&printer, SPAN_LITERAL(",\"worker_name\":"), rejection->worker_name);
    else
        print_string_member(&printer, SPAN_LITERAL(",\"function_id\":"),
                            worker_shown(worker, ACCESS_FUNCTION, rejection->function));
    print_literal(&printer, ",\"owner_worker_id\":");
    print_string(&printer, rejection->owner_worker_id);
    print_literal(&printer, "}");
    worker_send_printed(worker, &printer);
}

static void on_rejection(void *peer, const struct session_rejection *rejection)
{
    worker_send_rejection(peer, rejection);
}

static void on_reject(void *peer, const struct session_rejection *rejection)
{
    struct worker *worker = peer;
    worker_send_rejection(worker, rejection);
    worker->session = NULL;
    worker_drop(worker, WS_NORMAL, "the worker's name is taken");
}

static void on_bind(void *peer, const struct session_bind *bind)
{
    struct worker *worker = peer;
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"registertrigger\",\"id\":");
    print_string(&printer, bind->id);
    print_literal(&printer, ",\"trigger_type\":");
    print_string(&printer, worker_shown(worker, ACCESS_TRIGGER_TYPE, bind->type));
    print_literal(&printer, ",\"function_id\":");
    print_string(&printer, bind->function);
    print_literal(&printer, ",\"config\":");
    print_span(&printer, bind->config);
    print_member(&printer, SPAN_LITERAL(",\"metadata\":"), bind->metadata);
    print_string_member(&printer, SPAN_LITERAL(",\"namespace\":"), bind->name_space);
    print_string_member(&printer, SPAN_LITERAL(",\"trigger_namespace\":"), bind->provider_space);
    print_literal(&printer, "}");
    worker_send_printed(worker, &printer);
}

static void on_unbind(void *peer, struct span id, struct span type)
{
    struct worker *worker = peer;
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"unregistertrigger\",\"id\":");
    print_string(&printer, id);
    print_literal(&printer, ",\"trigger_type\":");
    print_string(&printer, worker_shown(worker, ACCESS_TRIGGER_TYPE, type));
    print_literal(&printer, "}");
    worker_send_printed(worker, &printer);
}

static void on_bind_result(void *peer, const struct session_bind_result *result)
{
    struct worker *worker = peer;
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"triggerregistrationresult\",\"id\":");
    print_string(&printer, worker_shown(worker, ACCESS_TRIGGER, result->id));
    print_literal(&printer, ",\"trigger_type\":");
    print_string(&printer, worker_shown(worker, ACCESS_TRIGGER_TYPE, result->type));
    print_literal(&printer, ",\"function_id\":");
    print_string(&printer, worker_shown(worker, ACCESS_FUNCTION, result->function));
    print_member(&printer, SPAN_LITERAL(",\"error\":"), result->error_json);
    print_literal(&printer, "}");
    worker_send_printed(worker, &printer);
}

static void on_set_reading(void *peer, bool reading)
{
    struct worker *worker = peer;
    worker->is_paused = !reading;
    worker_update_reading(worker);
}

static void on_set_held(void *peer, bool held)
{
    struct worker *worker = peer;
    worker->is_waiting = held; /* what was kept back is taken up at the end of the turn */
}

static void on_retire(void *peer)
{
    struct worker *worker = peer;
    worker->session = NULL;
    worker->is_closing = true;
    ws_abort(worker->connection);
}

static const struct session_transport worker_transport = {
    .send_answer = on_answer,
    .send_invocation = on_invocation,
    .send_rejection = on_rejection,
    .set_reading = on_set_reading,
    .set_held = on_set_held,
    .retire = on_retire,
    .reject = on_reject,
    .send_bind = on_bind,
    .send_unbind = on_unbind,
    .send_bind_result = on_bind_result,
};

/* ---- life ---- */

struct worker *worker_make(struct worker_channel *channel)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return NULL;
    worker->channel = channel;
    buffer_init(&worker->held, WORKER_HELD_BYTES_MAX);
    buffer_init(&worker->deferred, WORKER_DEFERRED_BYTES + (size_t)WS_MESSAGE_BYTES_MAX + 8);
    return worker;
}

void worker_set_access(struct worker *worker, struct session_access *access)
{
    worker->access = access;
}

void worker_free(struct worker *worker)
{
    session_access_free(worker->access);
    buffer_fini(&worker->held);
    buffer_fini(&worker->deferred);
    free(worker);
}

static void worker_open_session(struct worker *worker)
{
    worker->session = session_open(worker->channel->sessions, &worker_transport, worker,
                                   ws_peer(worker->connection));
    if (worker->session == NULL) {
        worker_drop(worker, WS_TRY_LATER, "too many workers");
        return;
    }
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"workerregistered\",\"worker_id\":\"");
    print_span(&printer, span_text(worker->session->worker_id));
    print_literal(&printer, "\",\"reattach_token\":\"");
    print_span(&printer, span_text(worker->session->reattach_token));
    print_literal(&printer, "\"}");
    worker_send_printed(worker, &printer);
}

/* No rights, no session (PROTOCOL 2.3 `error`, 10.4). */
static void worker_refuse(struct worker *worker, const char *problem)
{
    struct printer printer = worker_printer(worker);
    print_literal(&printer, "{\"type\":\"error\",\"error\":{\"code\":\"AUTH_ERROR\",\"message\":");
    print_string(&printer, span_text(problem));
    print_literal(&printer, "}}");
    worker_send_printed(worker, &printer);
    worker_drop(worker, WS_POLICY, "AUTH_ERROR");
}

static void worker_admit(struct worker *worker)
{
    const char *problem = session_access_problem(worker->access);
    if (problem == NULL)
        worker_open_session(worker);
    else
        worker_refuse(worker, problem);
}

/* The rights are known, or the message kept back can be taken up, at the end of the turn. */
static void on_decided(void *peer)
{
    struct worker *worker = peer;
    worker->is_asking = false;
    if (!worker->is_closing && worker->session == NULL)
        worker_admit(worker);
}

void worker_opened(struct worker *worker, struct ws_connection *connection)
{
    struct worker_channel *channel = worker->channel;
    worker->connection = connection;
    worker->next = channel->workers;
    if (worker->next != NULL)
        worker->next->previous = worker;
    channel->workers = worker;
    if (worker->access == NULL)
        worker_open_session(worker);
    else if (session_access_start(worker->access, on_decided, worker) == STEP_WAIT)
        worker->is_asking = true;
    else
        worker_admit(worker);
}

static void worker_end_session(struct worker *worker)
{
    if (worker->session != NULL)
        session_close(worker->session);
    worker->session = NULL;
}

/* ---- the gateway is to stop ---- */

bool worker_let_go(struct worker *worker)
{
    if (worker->parting.has_begun || worker->is_closing)
        return false;
    parting_begin(&worker->parting, uv_hrtime());
    worker->channel->leaving_count++;
    return true;
}

/* Nothing of it is in flight or kept back. */
static bool worker_is_idle(const struct worker *worker)
{
    const struct session *session = worker->session;
    return (session == NULL || (session->call_count == 0 && session->invocation_count == 0)) &&
           worker->held.bytes == worker->held_start && worker->deferred.bytes == 0 &&
           !worker->is_asking && !worker->is_waiting;
}

static void worker_leave(struct worker *worker)
{
    counters_add(worker->channel->counters, COUNTER_CONNECTIONS_DRAINED, 1);
    worker_drop(worker, WS_RESTART, "service restart");
    worker_end_session(worker);
}

static void channel_let_leave(struct worker_channel *channel)
{
    if (channel->leaving_count == 0)
        return;
    uint64_t now_ns = uv_hrtime();
    for (struct worker *worker = channel->workers; worker != NULL; worker = worker->next) {
        if (parting_is_due(&worker->parting, now_ns) && !worker->is_closing &&
            worker_is_idle(worker) && !ws_has_unread(worker->connection))
            worker_leave(worker);
    }
}

void worker_closed(struct worker *worker)
{
    struct worker_channel *channel = worker->channel;
    if (worker->parting.has_begun)
        channel->leaving_count--;
    worker->is_closing = true;
    worker_end_session(worker);
    if (worker->is_slow) {
        struct worker **at = &channel->slow;
        while (*at != worker) /* ends: a slow worker is in the list */
            at = &(*at)->slow_next;
        *at = worker->slow_next;
    }
    if (worker->deferred.bytes > 0) {
        struct worker **at = &channel->deferring;
        while (*at != worker) /* ends: a worker with messages kept back is in the list */
            at = &(*at)->deferring_next;
        *at = worker->deferring_next;
    }
    if (worker->previous == NULL)
        channel->workers = worker->next;
    else
        worker->previous->next = worker->next;
    if (worker->next != NULL)
        worker->next->previous = worker->previous;
    worker_free(worker);
}

/* ---- messages ---- */

enum field {
    FIELD_TYPE,
    FIELD_ID,
    FIELD_INVOCATION_ID,
    FIELD_FUNCTION_ID,
    FIELD_DATA,
    FIELD_RESULT,
    FIELD_ERROR,
    FIELD_ACTION,
    FIELD_METADATA,
    FIELD_NAMESPACE,
    FIELD_TRACEPARENT,
    FIELD_BAGGAGE,
    FIELD_COUNT,
};
static const char *const field_names[FIELD_COUNT] = {
    "type",  "id",     "invocation_id", "function_id", "data",        "result",
    "error", "action", "metadata",      "namespace",   "traceparent", "baggage",
};

/* A message: its members, and where decoded strings go. */
struct incoming {
    struct worker *worker;
    struct span text;
    struct json_value values[FIELD_COUNT];
    bool is_put_back; /* a question has to be answered first: take it again afterwards */
};

static void worker_ignore(struct worker *worker)
{
    counters_add(worker->channel->counters, COUNTER_WORKER_MESSAGES_IGNORED, 1);
}

static size_t values_decoded_bytes(const struct json_value *values, unsigned count)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        if (values[i].kind == JSON_STRING && values[i].has_escape)
            bytes += values[i].text.bytes;
    }
    return bytes;
}

/* The members of one type of message beyond those of every type, and room for every string of both
 * that needs decoding, so that decoded ones do not move. False: not as the type wants it. */
static bool incoming_scan_more(struct incoming *incoming, const char *const *names, unsigned count,
                               struct json_value *more)
{
    size_t bytes = 1 + values_decoded_bytes(incoming->values, FIELD_COUNT);
    if (json_scan_object(incoming->text, JSON_DEPTH_MAX, names, count, more, NULL) != WEIR_OK)
        return false;
    bytes += values_decoded_bytes(more, count);
    return buffer_reserve(&incoming->worker->channel->decoded, bytes) == WEIR_OK;
}

static bool value_is_missing(struct json_value value)
{
    return value.kind == JSON_ABSENT || value.kind == JSON_NULL;
}

static bool value_is_optional_string(struct json_value value)
{
    return value_is_missing(value) || value.kind == JSON_STRING;
}

/* 1 to WORKER_INVOCATION_ID_BYTES_MAX bytes, whatever of it is escaped. */
static bool value_is_usable_id(struct json_value value)
{
    char decoded[6 * WORKER_INVOCATION_ID_BYTES_MAX + 2];
    if (value.kind != JSON_STRING || value.text.bytes <= 2 || value.text.bytes > sizeof decoded)
        return false;
    size_t bytes = value.has_escape ? json_unescape(decoded, value) : value.text.bytes - 2;
    return bytes <= WORKER_INVOCATION_ID_BYTES_MAX;
}

/* JSON as it is passed on; absent and null are the same. */
static struct span value_json(struct json_value value)
{
    return value_is_missing(value) ? (struct span){0} : value.text;
}

/* The echo fields of a call; tag data NULL when there is no usable id. */
static struct call_request incoming_echo(const struct json_value *values)
{
    struct call_request request = {0};
    if (value_is_usable_id(values[FIELD_INVOCATION_ID]))
        request.tag = values[FIELD_INVOCATION_ID].text;
    request.function_tag = values[FIELD_FUNCTION_ID].kind == JSON_STRING
                               ? values[FIELD_FUNCTION_ID].text
                               : SPAN_LITERAL("\"\"");
    return request;
}

enum action { ACTION_NONE, ACTION_VOID, ACTION_ENQUEUE, ACTION_INVALID };

static enum action read_action(struct json_value value, struct json_value *queue)
{
    static const char *const names[] = {"type", "queue"};
    struct json_value values[2];
    if (value_is_missing(value))
        return ACTION_NONE;
    if (value.kind != JSON_OBJECT ||
        json_scan_object(value.text, JSON_DEPTH_MAX, names, 2, values, NULL) != WEIR_OK ||
        values[0].kind != JSON_STRING)
        return ACTION_INVALID;
    *queue = values[1];
    if (json_string_equals(values[0], SPAN_LITERAL("void")))
        return ACTION_VOID;
    if (json_string_equals(values[0], SPAN_LITERAL("enqueue")) && queue->kind == JSON_STRING)
        return ACTION_ENQUEUE;
    return ACTION_INVALID;
}

/* A void call is never answered. */
static void worker_reject_call(struct worker *worker, const struct json_value *values,
                               const char *problem)
{
    struct json_value queue;
    worker_ignore(worker);
    struct call_request request = incoming_echo(values);
    if (request.tag.data != NULL && read_action(values[FIELD_ACTION], &queue) != ACTION_VOID)
        session_answer_error(worker->session, &request, "invalid_message", "invokefunction: %s",
                             problem);
}

/* The first thing wrong with an invokefunction, or NULL. */
static const char *incoming_call_problem(const struct json_value *values, enum action action)
{
    if (values[FIELD_FUNCTION_ID].kind != JSON_STRING)
        return "function_id must be a string";
    if (!value_is_missing(values[FIELD_INVOCATION_ID]) &&
        !value_is_usable_id(values[FIELD_INVOCATION_ID]))
        return "invocation_id must be a string of 1 to 128 bytes";
    if (!value_is_optional_string(values[FIELD_NAMESPACE]))
        return "namespace must be a string";
    if (!value_is_optional_string(values[FIELD_TRACEPARENT]) ||
        !value_is_optional_string(values[FIELD_BAGGAGE]))
        return "traceparent and baggage must be strings";
    if (action == ACTION_INVALID)
        return "action must be void, or enqueue with a queue";
    return NULL;
}

/* ---- rights (session_access.h); NULL: everything is allowed ---- */

/* True: it goes on. A registration nobody could be asked about must not get lost: its worker is
 * sent away, to come back with all of them. */
static bool incoming_may_go_on(struct incoming *incoming, enum access_step step)
{
    if (step == STEP_WAIT)
        incoming->worker->is_asking = incoming->is_put_back = true;
    if (step == STEP_LOST)
        worker_drop(incoming->worker, WS_RESTART, "the broker is away");
    return step == STEP_GO;
}

/* At most `bytes_max` bytes of whole characters. */
static struct span span_cut(struct span text, size_t bytes_max)
{
    if (text.bytes <= bytes_max)
        return text;
    while (bytes_max > 0 && ((unsigned char)text.data[bytes_max] & 0xC0) == 0x80)
        bytes_max--;
    return span_of(text.data, bytes_max);
}

/* Refused calls are answered even when nobody asked for an answer (PROTOCOL 10.4). */
static void worker_forbid_call(struct worker *worker, const struct call_request *request)
{
    char tag[UUID_TEXT_BYTES + 3] = "\"";
    uint8_t uuid[UUID_BYTES];
    struct call_request refused = *request;
    if (request->tag.data == NULL) {
        uuid_make(uuid);
        uuid_print(tag + 1, uuid);
        tag[UUID_TEXT_BYTES + 1] = '"';
        refused.tag = span_of(tag, UUID_TEXT_BYTES + 2);
    }
    struct span function = span_cut(request->function, 200);
    struct span name_space = request->name_space.data == NULL ? SPAN_LITERAL("default")
                                                              : span_cut(request->name_space, 100);
    session_answer_error(worker->session, &refused, "FORBIDDEN",
                         "this session may not call '%.*s' in the namespace '%.*s'",
                         (int)function.bytes, function.bytes == 0 ? "" : function.data,
                         (int)name_space.bytes, name_space.data);
}

static bool action_is_void(struct json_value action)
{
    static const char *const names[] = {"type"};
    struct json_value type;
    return action.kind == JSON_OBJECT &&
           json_scan_object(action.text, JSON_DEPTH_MAX, names, 1, &type, NULL) == WEIR_OK &&
           type.kind == JSON_STRING && json_string_equals(type, SPAN_LITERAL("void"));
}

/* True: nothing is left to do here. */
static bool channel_checks_call(struct incoming *incoming, struct call_request *request)
{
    struct worker *worker = incoming->worker;
    struct json_value action = incoming->values[FIELD_ACTION];
    if (worker->access == NULL ||
        (request->name_space.data != NULL && span_is_blank(request->name_space)))
        return false; /* a blank namespace is refused for what it is */
    enum access_step step =
        session_access_call(worker->access, request->name_space, request->function);
    if (step == STEP_REFUSE)
        worker_forbid_call(worker, request);
    if (step != STEP_LOST && !incoming_may_go_on(incoming, step))
        return true;
    enum weir_status status = WEIR_UNAVAILABLE;
    if (step == STEP_GO)
        status = session_access_redirect(worker->access, request, action);
    if (status == WEIR_EMPTY)
        return false;
    if (action_is_void(action))
        request->tag = (struct span){0};
    if (status == WEIR_OK)
        session_call(worker->session, request);
    else if (status == WEIR_UNAVAILABLE)
        session_answer_error(worker->session, request, "invocation_stopped",
                             "the broker is not available: whether the call is allowed could not "
                             "be found out, and it was not made");
    else
        session_answer_error(worker->session, request, "invocation_error",
                             "the call is too large to be handed to the middleware");
    return true;
}

static void take_call(struct incoming *incoming)
{
    struct worker *worker = incoming->worker;
    struct buffer *decoded = &worker->channel->decoded;
    const struct json_value *values = incoming->values;
    struct json_value queue = {0};
    enum action action = read_action(values[FIELD_ACTION], &queue);
    const char *problem = incoming_call_problem(values, action);
    if (problem == NULL && queue.kind == JSON_STRING &&
        buffer_reserve(decoded, values_decoded_bytes(values, FIELD_COUNT) + queue.text.bytes) !=
            WEIR_OK)
        problem = "the gateway is out of memory";
    if (problem != NULL) {
        worker_reject_call(worker, values, problem);
        return;
    }
    struct call_request request = incoming_echo(values);
    request.name_space = json_decode(values[FIELD_NAMESPACE], decoded);
    request.function = json_decode(values[FIELD_FUNCTION_ID], decoded);
    request.traceparent = json_decode(values[FIELD_TRACEPARENT], decoded);
    request.baggage = json_decode(values[FIELD_BAGGAGE], decoded);
    request.data = values[FIELD_DATA];
    request.metadata = values[FIELD_METADATA];
    if (channel_checks_call(incoming, &request))
        return;
    if (action == ACTION_VOID)
        request.tag = (struct span){0};
    if (action == ACTION_ENQUEUE)
        request.queue = json_decode(queue, decoded);
    session_call(worker->session, &request);
}

#define ILL_FORMED_ERROR(code)                                                                     \
    SPAN_LITERAL("{\"code\":\"" code "\",\"message\":"                                             \
                 "\"the worker answered with an error that has no code or message\"}")

/* The error as it is passed on; one that is not {code, message, stacktrace?} is replaced (PROTOCOL
 * 2.6). */
static struct span incoming_error(struct json_value error, struct span ill_formed)
{
    static const char *const names[] = {"code", "message", "stacktrace"};
    struct json_value values[3];
    if (value_is_missing(error))
        return (struct span){0};
    if (error.kind == JSON_OBJECT &&
        json_scan_object(error.text, JSON_DEPTH_MAX, names, 3, values, NULL) == WEIR_OK &&
        values[0].kind == JSON_STRING && values[1].kind == JSON_STRING &&
        value_is_optional_string(values[2]))
        return error.text;
    return ill_formed;
}

static void take_result(struct incoming *incoming)
{
    struct worker *worker = incoming->worker;
    const struct json_value *values = incoming->values;
    struct span id = json_decode(values[FIELD_INVOCATION_ID], &worker->channel->decoded);
    if (id.data == NULL || values[FIELD_FUNCTION_ID].kind != JSON_STRING) {
        worker_ignore(worker);
        return;
    }
    struct session_answer answer = {
        .error_json = incoming_error(values[FIELD_ERROR], ILL_FORMED_ERROR("invocation_failed")),
        .traceparent = json_decode(values[FIELD_TRACEPARENT], &worker->channel->decoded),
        .baggage = json_decode(values[FIELD_BAGGAGE], &worker->channel->decoded),
    };
    if (answer.error_json.data == NULL && !value_is_missing(values[FIELD_RESULT]))
        answer.result = values[FIELD_RESULT].text;
    if (!session_answer_uuid(worker->session, id, &answer))
        counters_add(worker->channel->counters, COUNTER_RESULTS_IGNORED, 1);
}

static void take_register_function(struct incoming *incoming)
{
    enum { MORE_DESCRIPTION, MORE_REQUEST, MORE_RESPONSE, MORE_INVOCATION, MORE_COUNT };
    static const char *const names[MORE_COUNT] = {"description", "request_format",
                                                  "response_format", "invocation"};
    struct worker *worker = incoming->worker;
    struct buffer *decoded = &worker->channel->decoded;
    struct json_value more[MORE_COUNT];
    if (!incoming_scan_more(incoming, names, MORE_COUNT, more) ||
        incoming->values[FIELD_ID].kind != JSON_STRING ||
        !value_is_optional_string(more[MORE_DESCRIPTION]) ||
        !(value_is_missing(more[MORE_INVOCATION]) || more[MORE_INVOCATION].kind == JSON_OBJECT)) {
        worker_ignore(worker);
        return;
    }
    struct session_registration function = {
        .function = json_decode(incoming->values[FIELD_ID], decoded),
        .description = json_decode(more[MORE_DESCRIPTION], decoded),
        .request_format = value_json(more[MORE_REQUEST]),
        .response_format = value_json(more[MORE_RESPONSE]),
        .metadata = value_json(incoming->values[FIELD_METADATA]),
        .is_http = more[MORE_INVOCATION].kind == JSON_OBJECT,
    };
    if (worker->access == NULL ||
        incoming_may_go_on(incoming, session_access_function(worker->access, &function)))
        session_register_function(worker->session, &function);
}

static void take_unregister_function(struct incoming *incoming)
{
    struct worker *worker = incoming->worker;
    struct span id = json_decode(incoming->values[FIELD_ID], &worker->channel->decoded);
    if (id.data != NULL)
        id = worker_filed(worker, ACCESS_FUNCTION, id);
    if (id.data == NULL)
        worker_ignore(worker);
    else
        session_unregister_function(worker->session, (struct span){0}, id);
}

/* ---- triggers and trigger types ---- */

/* True: the registration goes on, as it is to be filed. */
static bool channel_checks_trigger(struct incoming *incoming,
                                   struct session_trigger_registration *registration)
{
    struct session *session = incoming->worker->session;
    struct session_access *access = incoming->worker->access;
    if (access == NULL)
        return true;
    struct access_trigger trigger = {
        .id = registration->id,
        .type = registration->type,
        .function = registration->function,
        .config = registration->config,
        .metadata = registration->metadata,
        .name_space = registration->name_space,
    };
    struct span session_space =
        session->name_space == NULL ? (struct span){0} : span_text(session->name_space);
    enum access_step step = session_access_trigger(access, session_space, &trigger);
    if (step == STEP_REFUSE)
        session_refuse_trigger(session, registration, "FORBIDDEN",
                               "this session may not use the trigger type, or not call the "
                               "function or its condition");
    registration->id = trigger.id;
    registration->type = trigger.type;
    registration->function = trigger.function;
    registration->config = trigger.config;
    registration->name_space = trigger.name_space;
    return incoming_may_go_on(incoming, step);
}

static void take_register_trigger(struct incoming *incoming)
{
    enum { MORE_TYPE, MORE_CONFIG, MORE_PROVIDER_SPACE, MORE_COUNT };
    static const char *const names[MORE_COUNT] = {"trigger_type", "config", "trigger_namespace"};
    struct worker *worker = incoming->worker;
    struct buffer *decoded = &worker->channel->decoded;
    const struct json_value *values = incoming->values;
    struct json_value more[MORE_COUNT];
    if (!incoming_scan_more(incoming, names, MORE_COUNT, more) ||
        values[FIELD_ID].kind != JSON_STRING || more[MORE_TYPE].kind != JSON_STRING ||
        values[FIELD_FUNCTION_ID].kind != JSON_STRING ||
        !value_is_optional_string(values[FIELD_NAMESPACE]) ||
        !value_is_optional_string(more[MORE_PROVIDER_SPACE])) {
        worker_ignore(worker);
        return;
    }
    struct session_trigger_registration trigger = {
        .id = json_decode(values[FIELD_ID], decoded),
        .type = json_decode(more[MORE_TYPE], decoded),
        .function = json_decode(values[FIELD_FUNCTION_ID], decoded),
        .config = more[MORE_CONFIG],
        .metadata = value_json(values[FIELD_METADATA]),
        .name_space = json_decode(values[FIELD_NAMESPACE], decoded),
        .provider_space = json_decode(more[MORE_PROVIDER_SPACE], decoded),
    };
    if (channel_checks_trigger(incoming, &trigger))
        session_register_trigger(worker->session, &trigger);
}

static void take_unregister_trigger(struct incoming *incoming)
{
    struct worker *worker = incoming->worker;
    struct span id = json_decode(incoming->values[FIELD_ID], &worker->channel->decoded);
    if (id.data == NULL)
        worker_ignore(worker);
    else
        session_unregister_trigger(worker->session, worker_filed(worker, ACCESS_TRIGGER, id));
}

static void take_register_trigger_type(struct incoming *incoming)
{
    enum { MORE_DESCRIPTION, MORE_TRIGGER_FORMAT, MORE_CALL_FORMAT, MORE_COUNT };
    static const char *const names[MORE_COUNT] = {"description", "trigger_request_format",
                                                  "call_request_format"};
    struct worker *worker = incoming->worker;
    struct buffer *decoded = &worker->channel->decoded;
    const struct json_value *values = incoming->values;
    struct json_value more[MORE_COUNT];
    if (!incoming_scan_more(incoming, names, MORE_COUNT, more) ||
        values[FIELD_ID].kind != JSON_STRING || more[MORE_DESCRIPTION].kind != JSON_STRING ||
        !value_is_optional_string(values[FIELD_NAMESPACE])) {
        worker_ignore(worker);
        return;
    }
    struct session_trigger_type_registration type = {
        .name_space = json_decode(values[FIELD_NAMESPACE], decoded),
        .type = json_decode(values[FIELD_ID], decoded),
        .description = json_decode(more[MORE_DESCRIPTION], decoded),
        .trigger_request_format = value_json(more[MORE_TRIGGER_FORMAT]),
        .call_request_format = value_json(more[MORE_CALL_FORMAT]),
    };
    if (worker->access != NULL) {
        struct access_trigger_type asked = {type.type, type.description};
        if (!incoming_may_go_on(incoming, session_access_trigger_type(worker->access, &asked)))
            return;
        type.type = asked.id;
        type.description = asked.description;
    }
    session_register_trigger_type(worker->session, &type);
}

static void take_unregister_trigger_type(struct incoming *incoming)
{
    struct worker *worker = incoming->worker;
    const struct json_value *values = incoming->values;
    if (values[FIELD_ID].kind != JSON_STRING ||
        !value_is_optional_string(values[FIELD_NAMESPACE])) {
        worker_ignore(worker);
        return;
    }
    struct span id = json_decode(values[FIELD_ID], &worker->channel->decoded);
    struct span name_space = json_decode(values[FIELD_NAMESPACE], &worker->channel->decoded);
    session_unregister_trigger_type(worker->session, name_space,
                                    worker_filed(worker, ACCESS_TRIGGER_TYPE, id));
}

static void take_bind_result(struct incoming *incoming)
{
    static const char *const names[] = {"trigger_type"};
    struct worker *worker = incoming->worker;
    struct buffer *decoded = &worker->channel->decoded;
    const struct json_value *values = incoming->values;
    struct json_value type;
    if (!incoming_scan_more(incoming, names, 1, &type) || type.kind != JSON_STRING ||
        values[FIELD_ID].kind != JSON_STRING || values[FIELD_FUNCTION_ID].kind != JSON_STRING) {
        worker_ignore(worker);
        return;
    }
    const struct session_bind_result result = {
        .id = json_decode(values[FIELD_ID], decoded),
        .type = worker_filed(worker, ACCESS_TRIGGER_TYPE, json_decode(type, decoded)),
        .function = json_decode(values[FIELD_FUNCTION_ID], decoded),
        .error_json =
            incoming_error(values[FIELD_ERROR], ILL_FORMED_ERROR("trigger_registration_failed")),
    };
    if (!session_answer_bind(worker->session, &result))
        counters_add(worker->channel->counters, COUNTER_RESULTS_IGNORED, 1);
}

/* Retire the worker's previous connection, if the token is its own (PROTOCOL 2.5). */
static void take_reattach(struct incoming *incoming)
{
    static const char *const names[] = {"previous_worker_id", "reattach_token"};
    struct worker *worker = incoming->worker;
    struct json_value values[2];
    if (!incoming_scan_more(incoming, names, 2, values) || values[0].kind != JSON_STRING ||
        !value_is_optional_string(values[1])) {
        worker_ignore(worker);
        return;
    }
    struct span previous_worker_id = json_decode(values[0], &worker->channel->decoded);
    struct span token = json_decode(values[1], &worker->channel->decoded);
    session_reattach(worker->session, previous_worker_id, token);
}

static void take_ping(struct incoming *incoming)
{
    worker_send(incoming->worker, SPAN_LITERAL("{\"type\":\"pong\"}"));
}

static void take_nothing(struct incoming *incoming)
{
    (void)incoming;
}

static const struct {
    const char *type;
    void (*take)(struct incoming *incoming);
} message_types[] = {
    {"invokefunction", take_call},
    {"invocationresult", take_result},
    {"registerfunction", take_register_function},
    {"unregisterfunction", take_unregister_function},
    {"registertrigger", take_register_trigger},
    {"unregistertrigger", take_unregister_trigger},
    {"registertriggertype", take_register_trigger_type},
    {"unregistertriggertype", take_unregister_trigger_type},
    {"triggerregistrationresult", take_bind_result},
    {"reattach", take_reattach},
    {"ping", take_ping},
    {"pong", take_nothing},
    {"registerservice", take_nothing},
};

static bool is_telemetry(struct span message)
{
    return message.bytes >= 4 &&
           (memcmp(message.data, "OTLP", 4) == 0 || memcmp(message.data, "MTRC", 4) == 0 ||
            memcmp(message.data, "LOGS", 4) == 0);
}

/* Its caller waits for an answer; this worker will hardly send another one. */
static void worker_fail_result(struct worker *worker, const struct json_value *values)
{
    const struct session_answer answer = {
        .error_json = SPAN_LITERAL("{\"code\":\"invocation_failed\",\"message\":"
                                   "\"the worker's answer is not acceptable JSON\"}")};
    struct buffer *decoded = &worker->channel->decoded;
    worker_ignore(worker);
    buffer_clear(decoded);
    if (value_is_usable_id(values[FIELD_INVOCATION_ID]) &&
        buffer_reserve(decoded, values[FIELD_INVOCATION_ID].text.bytes) == WEIR_OK)
        (void)session_answer_uuid(worker->session,
                                  json_decode(values[FIELD_INVOCATION_ID], decoded), &answer);
}

/* Undecodable. A call whose id can still be read is told so (PROTOCOL 2.6), and so is the caller
 * this was to be the answer for. */
static void worker_take_undecodable(struct worker *worker, struct span message,
                                    enum weir_status status, const char *reason)
{
    struct json_value values[FIELD_COUNT];
    salvage_strings(message, field_names, FIELD_COUNT, values);
    struct json_value type = values[FIELD_TYPE];
    if (type.kind == JSON_STRING && json_string_equals(type, SPAN_LITERAL("invokefunction")))
        worker_reject_call(worker, values,
                           status == WEIR_TOO_LARGE ? "the message is nested more than 128 deep"
                                                    : reason);
    else if (type.kind == JSON_STRING && json_string_equals(type, SPAN_LITERAL("invocationresult")))
        worker_fail_result(worker, values);
    else
        worker_ignore(worker);
}

/* False: a question has to be answered first, the message is to be taken again. */
static bool worker_take(struct worker *worker, struct span message)
{
    struct worker_channel *channel = worker->channel;
    counters_add(channel->counters, COUNTER_WORKER_MESSAGES, 1);
    struct incoming incoming = {.worker = worker, .text = message};
    struct json_problem problem = {0};
    enum weir_status status = json_scan_object(message, JSON_DEPTH_MAX, field_names, FIELD_COUNT,
                                               incoming.values, &problem);
    if (status != WEIR_OK) {
        worker_take_undecodable(worker, message, status,
                                problem.reason == NULL ? "not an object" : problem.reason);
        return true;
    }
    buffer_clear(&channel->decoded);
    if (incoming.values[FIELD_TYPE].kind != JSON_STRING ||
        buffer_reserve(&channel->decoded, 1 + values_decoded_bytes(incoming.values, FIELD_COUNT)) !=
            WEIR_OK) {
        worker_ignore(worker);
        return true;
    }
    for (size_t i = 0; i < sizeof message_types / sizeof message_types[0]; i++) {
        if (json_string_equals(incoming.values[FIELD_TYPE], span_text(message_types[i].type))) {
            message_types[i].take(&incoming);
            channel_shrink(&channel->decoded);
            if (incoming.is_put_back)
                counters_subtract(channel->counters, COUNTER_WORKER_MESSAGES, 1);
            return !incoming.is_put_back;
        }
    }
    worker_ignore(worker);
    return true;
}

/* ---- messages kept back ---- */

static bool message_is_ping(struct span message)
{
    static const char *const names[] = {"type"};
    struct json_value type;
    return message.bytes < 64 &&
           json_scan_object(message, JSON_DEPTH_MAX, names, 1, &type, NULL) == WEIR_OK &&
           type.kind == JSON_STRING && json_string_equals(type, SPAN_LITERAL("ping"));
}

/* Reading goes on up to WORKER_DEFERRED_BYTES, so that Pings are answered while the worker waits. */
static void worker_defer(struct worker *worker, struct span message)
{
    bool is_first = worker->deferred.bytes == 0;
    buffer_consume(&worker->deferred, worker->deferred_start);
    worker->deferred_start = 0;
    if (buffer_put_message(&worker->deferred, message) != WEIR_OK) {
        counters_add(worker->channel->counters, COUNTER_WORKERS_DROPPED, 1);
        worker_drop(worker, WS_TRY_LATER, "no memory for messages kept back");
        return;
    }
    if (is_first) {
        worker->deferring_next = worker->channel->deferring;
        worker->channel->deferring = worker;
    }
    worker_update_reading(worker);
}

void worker_message(struct worker *worker, struct span message, bool is_binary)
{
    bool is_unknown = worker->session == NULL && worker->is_asking; /* nothing is read yet */
    if ((worker->session == NULL && !is_unknown) || worker->is_closing || span_is_blank(message) ||
        (is_binary && is_telemetry(message)))
        return;
    bool is_kept_back = worker->is_waiting || worker->is_asking || worker->deferred.bytes > 0;
    if (is_unknown && message.bytes > WORKER_DEFERRED_BYTES) {
        counters_add(worker->channel->counters, COUNTER_WORKERS_DROPPED, 1);
        worker_drop(worker, WS_TOO_BIG, "too much before the session is there");
    } else if (is_unknown || (is_kept_back && !message_is_ping(message)) ||
               !worker_take(worker, message))
        worker_defer(worker, message);
    if (worker->parting.has_begun)
        parting_heard(&worker->parting, uv_hrtime(),
                      worker->session != NULL ? worker->session->call_count : 0);
}

/* True when nothing is left. Bounded by what was kept back; a message may make the worker wait
 * again. */
static bool worker_take_deferred(struct worker *worker)
{
    if (worker->session == NULL && worker->is_asking)
        return false; /* its rights are not known yet */
    while (worker->deferred_start < worker->deferred.bytes && worker->session != NULL &&
           !worker->is_closing) {
        if (worker->is_waiting || worker->is_asking || worker->is_paused || worker->is_slow)
            return false;
        size_t start = worker->deferred_start;
        struct span message;
        buffer_take_message(&worker->deferred, &worker->deferred_start, &message);
        if (!worker_take(worker, message)) {
            worker->deferred_start = start;
            return false;
        }
        if (worker->access != NULL)
            session_access_forget(worker->access);
    }
    size_t limit_bytes = worker->deferred.limit_bytes;
    buffer_fini(&worker->deferred);
    buffer_init(&worker->deferred, limit_bytes);
    worker->deferred_start = 0;
    return true;
}

void worker_channel_turn(struct worker_channel *channel)
{
    channel_release_slow(channel);
    struct worker **at = &channel->deferring;
    while (*at != NULL) {
        struct worker *worker = *at;
        if (!worker_take_deferred(worker)) {
            at = &worker->deferring_next;
            continue;
        }
        *at = worker->deferring_next;
        worker_update_reading(worker);
    }
    channel_let_leave(channel);
}

#include "gateway/local.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "gateway/parting.h"
#include "gateway/printer.h"

enum {
    RECEIVE_BYTES = 64 * 1024,
    RECEIVES_PER_CALLBACK = 8,
    ACCEPTS_PER_CALLBACK = 16,
    LISTEN_BACKLOG = 256,
    BUFFER_KEPT_BYTES = 256 * 1024,
};

struct local_connection;

struct local {
    uv_loop_t *loop;
    struct sessions *sessions;
    struct counters *counters;
    uv_poll_t listening;
    int fd;
    struct local_connection *connections;
    unsigned connection_count;
    bool is_closing;
};

struct local_connection {
    uv_poll_t poll; /* first: freed from its close callback */
    struct local *local;
    struct session *session; /* NULL before HELLO */
    struct local_connection *next, *previous;
    struct wire_reader *reader;
    struct buffer input;
    struct buffer output;
    size_t output_sent;
    int fd;
    int events; /* being polled for */
    bool is_paused;
    bool is_slow;
    bool is_held;           /* it waits for the end of its previous connection */
    bool is_greeting;       /* the HELLO is at the front of the input, to be taken up again */
    bool has_leftover;      /* whole frames may wait in the input: a pause came between */
    bool is_closing;        /* closed at the end of the turn */
    struct parting parting; /* closed as soon as nothing of it is in flight */
};

static void local_consume(struct local_connection *connection);
static bool local_accept(struct local *local);

/* ---- closing ---- */

static void on_connection_closed(uv_handle_t *handle)
{
    free(handle);
}

static void local_end(struct local_connection *connection)
{
    struct local *local = connection->local;
    if (connection->session != NULL)
        session_close(connection->session);
    if (connection->previous == NULL)
        local->connections = connection->next;
    else
        connection->previous->next = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    local->connection_count--;
    wire_reader_close(connection->reader);
    buffer_fini(&connection->input);
    buffer_fini(&connection->output);
    (void)uv_poll_stop(&connection->poll);
    (void)close(connection->fd);
    uv_close((uv_handle_t *)&connection->poll, on_connection_closed);
}

/* Not at once: the caller may be in the middle of the session's own code. */
static void local_drop(struct local_connection *connection, const char *reason)
{
    if (connection->is_closing)
        return;
    connection->is_closing = true;
    counters_add(connection->local->counters, COUNTER_LOCAL_CONNECTIONS_DROPPED, 1);
    (void)fprintf(stderr, "weir-gateway: event=local_connection_dropped reason=\"%s\"\n", reason);
}

static bool local_is_stopped(const struct local_connection *connection)
{
    return connection->is_closing || connection->is_paused || connection->is_slow ||
           connection->is_held;
}

/* ---- sending ---- */

static void on_poll(uv_poll_t *poll, int status, int events);

static void local_update_poll(struct local_connection *connection)
{
    int events = local_is_stopped(connection) ? 0 : UV_READABLE;
    if (connection->output_sent < connection->output.bytes)
        events |= UV_WRITABLE;
    if (events == connection->events)
        return;
    connection->events = events;
    if (events == 0)
        (void)uv_poll_stop(&connection->poll);
    else
        (void)uv_poll_start(&connection->poll, events, on_poll);
}

static void local_send(struct local_connection *connection)
{
    while (connection->output_sent < connection->output.bytes && !connection->is_closing) {
        ssize_t sent =
            send(connection->fd, connection->output.data + connection->output_sent,
                 connection->output.bytes - connection->output_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (sent < 0) { /* the worker has gone; what it said before is read up to its end */
            connection->output_sent = connection->output.bytes;
            break;
        }
        connection->output_sent += (size_t)sent;
    }
    if (connection->output_sent == connection->output.bytes) {
        connection->output_sent = 0;
        buffer_clear(&connection->output);
        if (connection->output.capacity_bytes > BUFFER_KEPT_BYTES) {
            buffer_fini(&connection->output);
            buffer_init(&connection->output, LOCAL_OUTPUT_BYTES_MAX);
        }
    } else if (connection->output_sent > connection->output.bytes / 2) {
        buffer_consume(&connection->output, connection->output_sent);
        connection->output_sent = 0;
    }
    connection->is_slow = connection->output.bytes - connection->output_sent > LOCAL_BACKLOG_BYTES;
    local_update_poll(connection);
}

static void local_append(struct local_connection *connection, enum wire_type type, uint64_t id,
                         const struct wire_field *fields)
{
    if (connection->is_closing)
        return;
    if (wire_append(&connection->output, type, id, fields) != WEIR_OK)
        local_drop(connection, "answers are not read");
    else if (connection->output.bytes - connection->output_sent > LOCAL_BACKLOG_BYTES)
        connection->is_slow = true;
}

/* ---- the gateway is to stop ---- */

void local_stop_accepting(struct local *local)
{
    for (unsigned i = 0; i < LISTEN_BACKLOG && local_accept(local); i++) {
    }
    (void)uv_poll_stop(&local->listening);
}

bool local_let_go(struct local *local)
{
    struct local_connection *connection = local->connections;
    while (connection != NULL && connection->parting.has_begun)
        connection = connection->next;
    if (connection == NULL)
        return false;
    parting_begin(&connection->parting, uv_hrtime());
    return true;
}

unsigned local_connection_count(const struct local *local)
{
    return local->connection_count;
}

/* Nothing of it is in flight, kept back or half read. */
static bool local_is_idle(const struct local_connection *connection)
{
    const struct session *session = connection->session;
    return (session == NULL || (session->call_count == 0 && session->invocation_count == 0)) &&
           connection->output_sent == connection->output.bytes && connection->input.bytes == 0 &&
           !connection->is_held && !connection->is_greeting;
}

static void local_let_leave(struct local_connection *connection)
{
    int unread = 0;
    if (!parting_is_due(&connection->parting, uv_hrtime()) || connection->is_closing ||
        !local_is_idle(connection))
        return;
    if (ioctl(connection->fd, FIONREAD, &unread) == 0 && unread > 0)
        return;
    connection->is_closing = true;
    counters_add(connection->local->counters, COUNTER_CONNECTIONS_DRAINED, 1);
}

void local_flush(struct local *local)
{
    for (struct local_connection *connection = local->connections, *next; connection != NULL;
         connection = next) {
        next = connection->next;
        if (connection->output_sent < connection->output.bytes)
            local_send(connection);
        if (connection->has_leftover && !local_is_stopped(connection)) {
            local_consume(connection);
            local_send(connection);
        }
        local_update_poll(connection);
        if (connection->parting.has_begun)
            local_let_leave(connection);
        if (connection->is_closing)
            local_end(connection);
    }
}

static void local_refuse(struct local_connection *connection, const char *code,
                         const char *sentence)
{
    const struct wire_field fields[] = {WIRE_SPAN(span_text(code)), WIRE_SPAN(span_text(sentence))};
    local_append(connection, WIRE_REFUSED, 0, fields);
    local_send(connection);
    local_drop(connection, sentence);
}

/* ---- transport ---- */

static void on_answer(void *peer, const struct session_answer *answer)
{
    uint64_t id;
    weir_assert(answer->tag.bytes == sizeof id);
    memcpy(&id, answer->tag.data, sizeof id);
    const struct wire_field fields[] = {WIRE_SPAN(answer->result), WIRE_SPAN(answer->error_json),
                                        WIRE_SPAN(answer->traceparent), WIRE_SPAN(answer->baggage)};
    struct local_connection *connection = peer;
    parting_answered(&connection->parting);
    local_append(connection, WIRE_RESULT, id, fields);
}

static void on_invocation(void *peer, const struct session_invocation *invocation)
{
    struct local_connection *connection = peer;
    const struct wire_field fields[] = {
        WIRE_NUMBER(connection->session->id), WIRE_SPAN(invocation->function),
        WIRE_SPAN(invocation->data),          WIRE_SPAN(invocation->metadata),
        WIRE_SPAN(invocation->traceparent),   WIRE_SPAN(invocation->baggage)};
    local_append(connection, WIRE_INVOKE, invocation->number, fields);
}

static void on_rejection(void *peer, const struct session_rejection *rejection)
{
    struct local_connection *connection = peer;
    const struct wire_field fields[] = {
        WIRE_NUMBER(connection->session->id), WIRE_SPAN(rejection->code),
        WIRE_SPAN(rejection->name_space), WIRE_SPAN(rejection->function),
        WIRE_SPAN(rejection->owner_worker_id)};
    local_append(connection, WIRE_FUNCTION_REJECTED, 0, fields);
}

static void on_set_reading(void *peer, bool reading)
{
    struct local_connection *connection = peer;
    connection->is_paused = !reading;
    local_update_poll(connection);
}

static void on_set_held(void *peer, bool held)
{
    struct local_connection *connection = peer;
    connection->is_held = held; /* what was kept back is taken up at the end of the turn */
    local_update_poll(connection);
}

static void on_retire(void *peer)
{
    struct local_connection *connection = peer;
    connection->session = NULL;
    connection->is_closing = true;
}

static void on_reject(void *peer, const struct session_rejection *rejection)
{
    struct local_connection *connection = peer;
    char code[64];
    (void)snprintf(code, sizeof code, "%.*s", (int)rejection->code.bytes, rejection->code.data);
    connection->session = NULL;
    local_refuse(connection, code, "the worker's name is taken by another worker");
}

static void on_bind(void *peer, const struct session_bind *bind)
{
    struct local_connection *connection = peer;
    const struct wire_field fields[] = {WIRE_NUMBER(connection->session->id),
                                        WIRE_SPAN(bind->id),
                                        WIRE_SPAN(bind->type),
                                        WIRE_SPAN(bind->function),
                                        WIRE_SPAN(bind->config),
                                        WIRE_SPAN(bind->metadata),
                                        WIRE_SPAN(bind->name_space),
                                        WIRE_SPAN(bind->provider_space)};
    local_append(connection, WIRE_TRIGGER_BIND, 0, fields);
}

static void on_unbind(void *peer, struct span id, struct span type)
{
    struct local_connection *connection = peer;
    const struct wire_field fields[] = {WIRE_NUMBER(connection->session->id), WIRE_SPAN(id),
                                        WIRE_SPAN(type)};
    local_append(connection, WIRE_TRIGGER_UNBIND, 0, fields);
}

static void on_bind_result(void *peer, const struct session_bind_result *result)
{
    struct local_connection *connection = peer;
    const struct wire_field fields[] = {WIRE_NUMBER(connection->session->id), WIRE_SPAN(result->id),
                                        WIRE_SPAN(result->type), WIRE_SPAN(result->function),
                                        WIRE_SPAN(result->error_json)};
    local_append(connection, WIRE_TRIGGER_RESULT, 0, fields);
}

static const struct session_transport local_transport = {
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

/* ---- messages ---- */

static bool json_is_sound(struct span text, struct json_value *value)
{
    *value = (struct json_value){0};
    return text.data == NULL || json_scan(text, JSON_DEPTH_MAX - 2, value, NULL) == WEIR_OK;
}

static bool name_is_sound(struct span name)
{
    return name.data != NULL && json_is_utf8(name);
}

static bool text_is_sound(struct span text)
{
    return text.data == NULL || json_is_utf8(text);
}

/* Open the session and welcome it, as the first half of a HELLO. */
static void local_welcome(struct local_connection *connection, const struct wire_message *message)
{
    connection->session =
        session_open(connection->local->sessions, &local_transport, connection, "local");
    if (connection->session == NULL) {
        local_refuse(connection, "FULL", "the gateway has no room for another worker");
        return;
    }
    const struct session *session = connection->session;
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                        WIRE_SPAN(span_text(session->worker_id)),
                                        WIRE_SPAN(span_text(session->reattach_token))};
    local_append(connection, WIRE_WELCOME, message->id, fields);
    session_reattach(connection->session, message->fields[4].span, message->fields[5].span);
}

/* `info` with the HELLO's namespace in it, which is where everybody else looks for it. */
static enum weir_status local_print_info(struct buffer *out, struct json_value info,
                                         struct span name_space)
{
    struct printer printer = {out, WEIR_OK};
    struct json_value key, value;
    size_t cursor = 0;
    buffer_clear(out);
    print_literal(&printer, "{\"namespace\":");
    print_string(&printer, name_space);
    while (info.kind == JSON_OBJECT && json_next(info, &cursor, &key, &value) == WEIR_OK) {
        if (json_string_equals(key, SPAN_LITERAL("namespace")))
            continue;
        print_literal(&printer, ",");
        print_span(&printer, key.text);
        print_literal(&printer, ":");
        print_span(&printer, value.text);
    }
    print_literal(&printer, "}");
    return printer.status;
}

/* What a HELLO says of the worker, ready for session_describe(); info data NULL: nothing. */
struct local_hello {
    struct span info, name_space;
};

/* The namespace may be said in the metadata as well, as workers on the JSON channel do. Uses the
 * sessions' scratch buffers. CORRUPT: the message is not sound. */
static enum weir_status local_read_hello(struct sessions *sessions,
                                         const struct wire_message *message,
                                         struct local_hello *hello)
{
    static const char *const names[] = {"namespace"};
    struct json_value info, said = {0};
    struct span name_space = message->fields[3].span;
    *hello = (struct local_hello){0};
    if (message->fields[0].number != WIRE_VERSION ||
        !json_is_sound(message->fields[2].span, &info) || !text_is_sound(name_space))
        return WEIR_CORRUPT;
    if (name_space.bytes > 0) {
        enum weir_status status = local_print_info(&sessions->value, info, name_space);
        *hello = (struct local_hello){buffer_span(&sessions->value), name_space};
        return status == WEIR_OK ? session_check_description(hello->info, name_space) : status;
    }
    if (info.kind != JSON_OBJECT)
        return WEIR_OK;
    if (json_scan_object(info.text, JSON_DEPTH_MAX, names, 1, &said, NULL) != WEIR_OK)
        return WEIR_CORRUPT;
    buffer_clear(&sessions->names);
    if (buffer_reserve(&sessions->names, said.text.bytes) != WEIR_OK)
        return WEIR_NO_MEMORY;
    *hello = (struct local_hello){info.text, json_decode(said, &sessions->names)};
    return session_check_description(hello->info, hello->name_space);
}

/* What the worker says of itself counts only when its previous connection is gone, for that has the
 * same name. */
static void take_hello(struct local_connection *connection, const struct wire_message *message)
{
    struct local_hello hello;
    enum weir_status status = local_read_hello(connection->local->sessions, message, &hello);
    if (status == WEIR_INVALID) {
        local_refuse(connection, "INVALID_NAMESPACE", "the namespace is blank, or too long");
        return;
    }
    if (status != WEIR_OK || (connection->session != NULL && !connection->is_greeting)) {
        local_refuse(connection, "INVALID_HELLO",
                     status == WEIR_TOO_LARGE ? "the metadata is larger than 64 KiB"
                                              : "the hello does not fit this version");
        return;
    }
    if (connection->session == NULL)
        local_welcome(connection, message);
    connection->is_greeting = connection->is_held;
    if (connection->is_held || connection->session == NULL || hello.info.data == NULL)
        return;
    if (session_describe(connection->session, hello.info, hello.name_space) != WEIR_OK)
        local_refuse(connection, "FULL", "the gateway is out of memory");
}

/* The default namespace is what is meant by none. */
static struct span local_name_space(struct span name_space)
{
    return name_space.bytes == 0 ? (struct span){0} : name_space;
}

static bool take_register(struct local_connection *connection, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct json_value value;
    if (!text_is_sound(fields[1].span) || !name_is_sound(fields[2].span) ||
        !text_is_sound(fields[3].span) || !json_is_sound(fields[4].span, &value) ||
        !json_is_sound(fields[5].span, &value) || !json_is_sound(fields[6].span, &value))
        return false;
    const struct session_registration function = {
        .name_space = local_name_space(fields[1].span),
        .function = fields[2].span,
        .description = fields[3].span,
        .request_format = fields[4].span,
        .response_format = fields[5].span,
        .metadata = fields[6].span,
    };
    session_register_function(connection->session, &function);
    return true;
}

static bool take_call(struct local_connection *connection, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct call_request request = {
        .function_tag = SPAN_LITERAL(""),
        .name_space = local_name_space(fields[1].span),
        .function = fields[2].span,
        .traceparent = fields[5].span,
        .baggage = fields[6].span,
    };
    if (message->id != 0)
        request.tag = span_of(&message->id, sizeof message->id);
    if (!text_is_sound(fields[1].span) || !name_is_sound(fields[2].span) ||
        !json_is_sound(fields[3].span, &request.data) ||
        !json_is_sound(fields[4].span, &request.metadata) || !text_is_sound(fields[5].span) ||
        !text_is_sound(fields[6].span))
        return false;
    session_call(connection->session, &request);
    return true;
}

static bool error_is_sound(struct span error)
{
    static const char *const names[] = {"code", "message"};
    struct json_value values[2];
    return error.data == NULL ||
           (json_scan_object(error, JSON_DEPTH_MAX - 2, names, 2, values, NULL) == WEIR_OK &&
            values[0].kind == JSON_STRING && values[1].kind == JSON_STRING);
}

static bool take_result(struct local_connection *connection, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct json_value value;
    if (!json_is_sound(fields[0].span, &value) || !error_is_sound(fields[1].span) ||
        !text_is_sound(fields[2].span) || !text_is_sound(fields[3].span))
        return false;
    struct session_answer answer = {
        .error_json = fields[1].span, .traceparent = fields[2].span, .baggage = fields[3].span};
    if (answer.error_json.data == NULL && value.kind != JSON_ABSENT && value.kind != JSON_NULL)
        answer.result = fields[0].span;
    if (!session_answer_number(connection->session, message->id, &answer))
        counters_add(connection->local->counters, COUNTER_RESULTS_IGNORED, 1);
    return true;
}

/* ---- triggers ---- */

static bool take_register_trigger(struct local_connection *connection,
                                  const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct json_value metadata;
    struct session_trigger_registration trigger = {
        .id = fields[1].span,
        .type = fields[2].span,
        .function = fields[3].span,
        .name_space = local_name_space(fields[6].span),
        .provider_space = local_name_space(fields[7].span),
    };
    if (!name_is_sound(trigger.id) || !name_is_sound(trigger.type) ||
        !name_is_sound(trigger.function) || !json_is_sound(fields[4].span, &trigger.config) ||
        !json_is_sound(fields[5].span, &metadata) || !text_is_sound(trigger.name_space) ||
        !text_is_sound(trigger.provider_space))
        return false;
    if (metadata.kind != JSON_NULL)
        trigger.metadata = metadata.text;
    session_register_trigger(connection->session, &trigger);
    return true;
}

static bool take_register_trigger_type(struct local_connection *connection,
                                       const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct json_value value;
    if (!text_is_sound(fields[1].span) || !name_is_sound(fields[2].span) ||
        !text_is_sound(fields[3].span) || !json_is_sound(fields[4].span, &value) ||
        !json_is_sound(fields[5].span, &value))
        return false;
    const struct session_trigger_type_registration type = {
        .name_space = local_name_space(fields[1].span),
        .type = fields[2].span,
        .description = fields[3].span,
        .trigger_request_format = fields[4].span,
        .call_request_format = fields[5].span,
    };
    session_register_trigger_type(connection->session, &type);
    return true;
}

static bool take_unregister_trigger_type(struct local_connection *connection,
                                         const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    if (!text_is_sound(fields[1].span) || !name_is_sound(fields[2].span))
        return false;
    session_unregister_trigger_type(connection->session, local_name_space(fields[1].span),
                                    fields[2].span);
    return true;
}

static bool take_bind_result(struct local_connection *connection,
                             const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    const struct session_bind_result result = {
        .id = fields[1].span,
        .type = fields[2].span,
        .function = fields[3].span,
        .error_json = fields[4].span,
    };
    if (!name_is_sound(result.id) || !name_is_sound(result.type) ||
        !name_is_sound(result.function) || !error_is_sound(result.error_json))
        return false;
    if (!session_answer_bind(connection->session, &result))
        counters_add(connection->local->counters, COUNTER_RESULTS_IGNORED, 1);
    return true;
}

static void local_take(struct local_connection *connection, const struct wire_message *message)
{
    bool is_sound = true;
    counters_add(connection->local->counters, COUNTER_WORKER_MESSAGES, 1);
    if (connection->session == NULL && message->type != WIRE_HELLO) {
        local_refuse(connection, "INVALID_HELLO", "a worker says hello first");
        return;
    }
    switch (message->type) {
    case WIRE_HELLO:
        take_hello(connection, message);
        break;
    case WIRE_FUNCTION_REGISTER:
        is_sound = take_register(connection, message);
        break;
    case WIRE_FUNCTION_UNREGISTER:
        is_sound = name_is_sound(message->fields[2].span);
        if (is_sound)
            session_unregister_function(connection->session,
                                        local_name_space(message->fields[1].span),
                                        message->fields[2].span);
        break;
    case WIRE_CALL:
        is_sound = take_call(connection, message);
        break;
    case WIRE_RESULT:
        is_sound = take_result(connection, message);
        break;
    case WIRE_TRIGGER_REGISTER:
        is_sound = take_register_trigger(connection, message);
        break;
    case WIRE_TRIGGER_UNREGISTER:
        is_sound = name_is_sound(message->fields[1].span);
        if (is_sound)
            session_unregister_trigger(connection->session, message->fields[1].span);
        break;
    case WIRE_TRIGGER_TYPE_REGISTER:
        is_sound = take_register_trigger_type(connection, message);
        break;
    case WIRE_TRIGGER_TYPE_UNREGISTER:
        is_sound = take_unregister_trigger_type(connection, message);
        break;
    case WIRE_TRIGGER_RESULT:
        is_sound = take_bind_result(connection, message);
        break;
    default: /* a newer libweir's; it copes without */
        counters_add(connection->local->counters, COUNTER_WORKER_MESSAGES_IGNORED, 1);
        break;
    }
    if (!is_sound)
        local_refuse(connection, "INVALID_MESSAGE",
                     "a message holds names that are not UTF-8 or payloads that are not JSON");
}

static void local_consume(struct local_connection *connection)
{
    size_t consumed = 0;
    connection->has_leftover = true;
    while (!local_is_stopped(connection)) {
        struct span rest =
            span_of(connection->input.data + consumed, connection->input.bytes - consumed);
        struct wire_message message;
        size_t frame_bytes = 0;
        enum weir_status status = wire_read(connection->reader, rest, &message, &frame_bytes);
        if (status == WEIR_EMPTY) {
            connection->has_leftover = false;
            break;
        }
        if (status != WEIR_OK) {
            local_refuse(connection, "INVALID_FRAME", wire_reader_problem(connection->reader));
            return;
        }
        local_take(connection, &message);
        if (connection->is_greeting)
            break;
        consumed += frame_bytes;
    }
    buffer_consume(&connection->input, consumed);
    if (connection->input.bytes == 0 && connection->input.capacity_bytes > BUFFER_KEPT_BYTES) {
        size_t limit_bytes = connection->input.limit_bytes;
        buffer_fini(&connection->input);
        buffer_init(&connection->input, limit_bytes);
    }
}

static void local_receive(struct local_connection *connection)
{
    local_consume(connection); /* what a pause left over */
    for (unsigned i = 0; i < RECEIVES_PER_CALLBACK; i++) {
        if (local_is_stopped(connection))
            return;
        if (buffer_reserve(&connection->input, RECEIVE_BYTES) != WEIR_OK) {
            local_drop(connection, "no memory for a message");
            return;
        }
        ssize_t got = recv(connection->fd, connection->input.data + connection->input.bytes,
                           RECEIVE_BYTES, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got <= 0) {
            connection->is_closing = true;
            return;
        }
        connection->input.bytes += (size_t)got;
        local_consume(connection);
        if (connection->parting.has_begun)
            parting_heard(&connection->parting, uv_hrtime(),
                          connection->session != NULL ? connection->session->call_count : 0);
        if (got < RECEIVE_BYTES)
            return;
    }
}

/* A worker that closes without having read all its answers is an error of the socket (unix(7)), in
 * front of which its last messages wait. A pause puts the rest off: polling starts again after it. */
static void local_read_to_end(struct local_connection *connection)
{
    enum { ROUNDS_MAX = 64 }; /* more than a socket holds */
    connection->events = 0;
    local_send(connection);
    for (unsigned i = 0; i < ROUNDS_MAX && !connection->is_closing && !connection->is_paused; i++) {
        local_receive(connection);
        local_send(connection); /* to nobody: makes room for the next answers */
    }
    if (!connection->is_paused)
        connection->is_closing = true;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct local_connection *connection = poll->data;
    if (status < 0) {
        local_read_to_end(connection);
        return;
    }
    if ((events & UV_WRITABLE) != 0)
        local_send(connection);
    if ((events & UV_READABLE) != 0)
        local_receive(connection);
}

/* ---- accepting ---- */

static void local_adopt(struct local *local, int fd)
{
    struct local_connection *connection = NULL;
    if (local->connection_count < LOCAL_CONNECTIONS_MAX)
        connection = calloc(1, sizeof *connection);
    if (connection != NULL)
        connection->reader = wire_reader_open();
    if (connection == NULL || connection->reader == NULL ||
        uv_poll_init(local->loop, &connection->poll, fd) != 0) {
        counters_add(local->counters, COUNTER_LOCAL_CONNECTIONS_DROPPED, 1);
        if (connection != NULL)
            wire_reader_close(connection->reader);
        free(connection);
        (void)close(fd);
        return;
    }
    connection->poll.data = connection;
    connection->local = local;
    connection->fd = fd;
    buffer_init(&connection->input, (size_t)WIRE_FRAME_BYTES_MAX + 2 * RECEIVE_BYTES);
    buffer_init(&connection->output, LOCAL_OUTPUT_BYTES_MAX);
    connection->next = local->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    local->connections = connection;
    local->connection_count++;
    local_update_poll(connection);
}

/* False: another gateway took it, or none is left; the next poll tells. */
static bool local_accept(struct local *local)
{
    int fd = accept4(local->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return false;
    local_adopt(local, fd);
    return true;
}

static void on_listening(uv_poll_t *poll, int status, int events)
{
    struct local *local = poll->data;
    (void)events;
    if (status < 0)
        return;
    for (unsigned i = 0; i < ACCEPTS_PER_CALLBACK && local_accept(local); i++) {
    }
}

enum weir_status local_bind(const char *path, int *fd, struct weir_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return weir_fail(error, WEIR_INVALID, "the socket path %s is too long", path);
    memcpy(address.sun_path, path, strlen(path));
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0)
        return weir_fail_errno(error, errno, "cannot make a socket");
    (void)unlink(path);
    mode_t mask = umask(0177);
    int result = bind(*fd, (const struct sockaddr *)&address, sizeof address);
    int cause = errno;
    (void)umask(mask);
    if (result == 0) {
        result = listen(*fd, LISTEN_BACKLOG);
        cause = errno;
    }
    if (result != 0) {
        (void)close(*fd);
        *fd = -1;
        return weir_fail_errno(error, cause, "cannot listen on %s", path);
    }
    return WEIR_OK;
}

enum weir_status local_open(struct local **local, uv_loop_t *loop, int fd,
                            struct sessions *sessions, struct counters *counters,
                            struct weir_error *error)
{
    struct local *made = calloc(1, sizeof *made);
    if (made == NULL || uv_poll_init(loop, &made->listening, fd) != 0) {
        free(made);
        (void)close(fd);
        return weir_fail(error, WEIR_INVALID, "the local socket cannot be polled");
    }
    made->loop = loop;
    made->sessions = sessions;
    made->counters = counters;
    made->fd = fd;
    made->listening.data = made;
    (void)uv_poll_start(&made->listening, UV_READABLE, on_listening);
    *local = made;
    return WEIR_OK;
}

static void on_listening_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void local_close(struct local *local)
{
    if (local == NULL)
        return;
    while (local->connections != NULL) { /* each turn takes one off */
        local_send(local->connections);
        local_end(local->connections);
    }
    (void)uv_poll_stop(&local->listening);
    (void)close(local->fd);
    uv_close((uv_handle_t *)&local->listening, on_listening_closed);
}

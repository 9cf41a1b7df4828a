#include "gateway/calls.h"

#include <stdio.h>
#include <stdlib.h>

#include "gateway/custom_streams.h"
#include "gateway/printer.h"
#include "shm/error_body.h"
#include "shm/store.h"
#include "shm/stream_functions.h"

enum { CALLS_HURRIED_BY_READ = 64 };

/* A call on its way through the broker. */
struct call {
    struct link_request request;
    struct session *session; /* NULL: it has gone, the answer is dropped */
    struct call *next, *previous;
    const struct stream_function *stream; /* NULL: a call to a worker or the broker */
    size_t bytes;                         /* counted against the session's bound */
    uint32_t tag_bytes, function_bytes, traceparent_bytes, baggage_bytes;
    bool is_answered;
    bool has_traceparent, has_baggage;
    bool is_enqueued;
    uint8_t receipt[UUID_BYTES]; /* of what is enqueued */
    char text[];                 /* tag, function, traceparent, baggage */
};

/* ---- the builtin stream functions (PROTOCOL 3) ---- */

enum {
    FIELD_STREAM,
    FIELD_GROUP,
    FIELD_ITEM,
    FIELD_DATA,
    FIELD_TYPE,
    FIELD_ID,
    FIELD_EVENT_TYPE,
    FIELD_OPS,
    FIELD_COUNT
};
static const char *const field_names[FIELD_COUNT] = {
    "stream_name", "group_id", "item_id", "data", "type", "id", "event_type", "ops"};

/* Names decoded, value compact: what goes to the store or the broker. */
struct stream_call {
    struct span stream, group, item, event_type;
    struct span data;
};

static const char *kind_name(enum json_kind kind)
{
    static const char *const names[] = {"absent",   "null",     "a boolean", "a boolean",
                                        "a number", "a string", "an array",  "an object"};
    return names[kind];
}

/* ---- answers ---- */

/* Print the error object into sessions->error. */
static struct span sessions_print_error(struct sessions *sessions, struct span code,
                                        struct span message)
{
    struct buffer *out = &sessions->error;
    buffer_clear(out);
    enum weir_status status = error_body_append(out, code, message);
    return status == WEIR_OK ? buffer_span(out)
                             : SPAN_LITERAL("{\"code\":\"serialization_error\",\"message\":"
                                            "\"the error's text is too long\"}");
}

static void session_send(struct session *session, const struct call_request *request,
                         struct span result, struct span error_json)
{
    if (request->tag.data == NULL)
        return;
    const struct session_answer answer = {
        .tag = request->tag,
        .function_tag = request->function_tag,
        .result = result,
        .error_json = error_json,
        .traceparent = request->traceparent,
        .baggage = request->baggage,
    };
    session->transport->send_answer(session->peer, &answer);
}

void session_answer_error(struct session *session, const struct call_request *request,
                          const char *code, const char *message_format, ...)
{
    char message[512];
    va_list arguments;
    va_start(arguments, message_format);
    int length = vsnprintf(message, sizeof message, message_format, arguments);
    va_end(arguments);
    size_t bytes = length < 0 ? 0 : (size_t)length;
    if (bytes >= sizeof message) {
        bytes = sizeof message - 1;
        while (bytes > 0 && ((unsigned char)message[bytes] & 0xC0) == 0x80)
            bytes--; /* do not cut a character */
    }
    counters_add(session->sessions->counters, COUNTER_CALLS_FAILED, 1);
    struct span error_json =
        sessions_print_error(session->sessions, span_text(code), span_of(message, bytes));
    session_send(session, request, (struct span){0}, error_json);
}

/* ---- calls in flight ---- */

static bool session_is_low(const struct session *session)
{
    const struct sessions_limits *limits = &session->sessions->limits;
    return session->call_count <= limits->calls_max / 2 &&
           session->call_bytes <= limits->calls_bytes_max / 2;
}

static void session_update_reading(struct session *session)
{
    const struct sessions_limits *limits = &session->sessions->limits;
    bool is_full =
        session->call_count >= limits->calls_max || session->call_bytes >= limits->calls_bytes_max;
    if (!session->is_paused && is_full) {
        session->is_paused = true;
        session->transport->set_reading(session->peer, false);
    } else if (session->is_paused && session_is_low(session)) {
        session->is_paused = false;
        session->transport->set_reading(session->peer, true);
    }
}

static void call_done(struct link_request *request, enum link_fate fate,
                      const struct wire_message *answer);

static struct call *call_make(struct session *session, const struct call_request *request,
                              const struct stream_function *stream, size_t data_bytes)
{
    size_t text_bytes = request->tag.bytes + request->function_tag.bytes +
                        request->traceparent.bytes + request->baggage.bytes;
    struct call *call = malloc(sizeof *call + text_bytes);
    if (call == NULL)
        return NULL;
    *call = (struct call){
        .request = {.done = call_done},
        .session = session,
        .stream = stream,
        .bytes = sizeof *call + text_bytes + data_bytes,
        .tag_bytes = (uint32_t)request->tag.bytes,
        .function_bytes = (uint32_t)request->function_tag.bytes,
        .traceparent_bytes = (uint32_t)request->traceparent.bytes,
        .baggage_bytes = (uint32_t)request->baggage.bytes,
        .is_answered = request->tag.data != NULL,
        .has_traceparent = request->traceparent.data != NULL,
        .has_baggage = request->baggage.data != NULL,
        .is_enqueued = request->queue.data != NULL,
    };
    memcpy(call->receipt, request->receipt, UUID_BYTES);
    const struct span parts[] = {request->tag, request->function_tag, request->traceparent,
                                 request->baggage};
    size_t offset = 0;
    for (unsigned i = 0; i < 4; i++) {
        if (parts[i].bytes > 0)
            memcpy(call->text + offset, parts[i].data, parts[i].bytes);
        offset += parts[i].bytes;
    }
    call->next = session->calls;
    if (call->next != NULL)
        call->next->previous = call;
    session->calls = call;
    session->call_count++;
    session->call_bytes += call->bytes;
    if (stream != NULL)
        session->stream_calls++;
    return call;
}

static void call_leave_session(struct call *call)
{
    struct session *session = call->session;
    if (session == NULL)
        return;
    if (call->previous == NULL)
        session->calls = call->next;
    else
        call->previous->next = call->next;
    if (call->next != NULL)
        call->next->previous = call->previous;
    session->call_count--;
    session->call_bytes -= call->bytes;
    if (call->stream != NULL)
        session->stream_calls--;
    call->session = NULL;
}

void calls_forget_session(struct session *session)
{
    while (session->calls != NULL) /* each turn takes one off */
        call_leave_session(session->calls);
}

/* The echo fields of a call, as its request had them. */
static struct call_request call_echo(const struct call *call)
{
    const char *at = call->text;
    struct call_request request = {0};
    if (call->is_answered)
        request.tag = span_of(at, call->tag_bytes);
    at += call->tag_bytes;
    request.function_tag = span_of(at, call->function_bytes);
    at += call->function_bytes;
    if (call->has_traceparent)
        request.traceparent = span_of(at, call->traceparent_bytes);
    at += call->traceparent_bytes;
    if (call->has_baggage)
        request.baggage = span_of(at, call->baggage_bytes);
    return request;
}

static const char *call_error_code(const struct call *call)
{
    if (call->is_enqueued)
        return "enqueue_error";
    return call->stream != NULL ? call->stream->error_code : "invocation_stopped";
}

static void call_fail(const struct call *call, struct session *session, enum link_fate fate)
{
    struct call_request echo = call_echo(call);
    const char *code = call_error_code(call);
    if (fate == LINK_EXPIRED) {
        session_answer_error(
            session, &echo, code,
            "the broker is not available: the call waited for it in vain and was not "
            "carried out");
        return;
    }
    if (call->stream != NULL)
        session_answer_error(session, &echo, code,
                             fate == LINK_SILENT
                                 ? "the broker has not answered in time (write_wait_ms): whether "
                                   "the call was applied, or will be, is not known"
                                 : "the broker went away before it answered: whether the call was "
                                   "applied is not known");
    else
        session_answer_error(session, &echo, code,
                             "the broker restarted while the call was pending");
}

/* What the queue worker says goes on under one code, so that callers need to know only that. */
static void call_deliver_receipt(const struct call *call, struct session *session,
                                 struct span error_json)
{
    static const char *const names[] = {"code", "message"};
    struct call_request echo = call_echo(call);
    struct json_value values[2];
    char receipt[64], uuid[UUID_TEXT_BYTES + 1];
    if (error_json.data == NULL) {
        uuid_print(uuid, call->receipt);
        (void)snprintf(receipt, sizeof receipt, "{\"messageReceiptId\":\"%s\"}", uuid);
        session_send(session, &echo, span_text(receipt), (struct span){0});
        return;
    }
    struct span message = SPAN_LITERAL("the queue worker failed and gave no reason");
    buffer_clear(&session->sessions->names);
    if (json_scan_object(error_json, JSON_DEPTH_MAX, names, 2, values, NULL) == WEIR_OK &&
        values[1].kind == JSON_STRING &&
        buffer_reserve(&session->sessions->names, values[1].text.bytes) == WEIR_OK) {
        message = json_decode(values[1], &session->sessions->names);
        if (json_string_equals(values[0], SPAN_LITERAL("function_not_found")))
            message = SPAN_LITERAL("enqueueing needs a queue worker (one that offers "
                                   "engine::queue::enqueue), and none is connected");
    }
    counters_add(session->sessions->counters, COUNTER_CALLS_FAILED, 1);
    session_send(session, &echo, (struct span){0},
                 sessions_print_error(session->sessions, SPAN_LITERAL("enqueue_error"), message));
}

static void call_deliver(const struct call *call, struct session *session,
                         const struct wire_message *answer)
{
    struct call_request echo = call_echo(call);
    if (answer->type == WIRE_RESULT) {
        if (call->is_enqueued)
            call_deliver_receipt(call, session, answer->fields[1].span);
        else if (call->stream == NULL)
            session_send(session, &echo,
                         answer->fields[1].span.data != NULL ? (struct span){0}
                                                             : answer->fields[0].span,
                         answer->fields[1].span);
        return;
    }
    struct span code = answer->fields[0].span;
    struct span error_json = answer->fields[3].span;
    if (error_json.data != NULL) {
        session_send(session, &echo, (struct span){0}, error_json);
        return;
    }
    if (code.data == NULL) {
        session_send(session, &echo, answer->fields[2].span, (struct span){0});
        return;
    }
    session_send(session, &echo, (struct span){0},
                 sessions_print_error(session->sessions, code, answer->fields[1].span));
}

static void call_done(struct link_request *request, enum link_fate fate,
                      const struct wire_message *answer)
{
    struct call *call = (struct call *)(void *)request; /* its first member */
    struct session *session = call->session;
    if (session != NULL) {
        call_leave_session(call);
        if (fate != LINK_ANSWERED)
            call_fail(call, session, fate);
        else if (answer != NULL)
            call_deliver(call, session, answer);
        session_update_reading(session);
    }
    free(call);
}

/* A void stream call is answered too, so that its effect can be waited for; the answer ends here, and
 * may come late. Not when the worker would be held up by it (it is near its bounds), and not when it
 * reads: as long as a write of its own is open its reads go to the broker. */
static bool session_is_unhurried(struct session *session, const struct call_request *request,
                                 const struct stream_function *stream)
{
    if (stream == NULL || request->tag.data != NULL)
        return false;
    if (session->hurried_calls > 0) {
        session->hurried_calls--;
        return false;
    }
    return session_is_low(session);
}

static void session_ask(struct session *session, const struct call_request *request,
                        const struct stream_function *stream, bool is_custom, enum wire_type type,
                        const struct wire_field *fields, size_t data_bytes)
{
    const char *code = request->queue.data != NULL ? "enqueue_error"
                       : stream != NULL            ? stream->error_code
                                                   : "invocation_error";
    struct call *call = call_make(session, request, stream, data_bytes);
    if (call == NULL) {
        session_answer_error(session, request, code, "the gateway is out of memory");
        return;
    }
    call->request.is_void = stream == NULL && request->tag.data == NULL;
    call->request.is_unhurried = session_is_unhurried(session, request, stream);
    call->request.is_patient = is_custom;
    enum weir_status status = link_ask(session->sessions->link, type, fields, &call->request);
    if (status != WEIR_OK) {
        call_leave_session(call);
        free(call);
        session_answer_error(session, request, code, "%s",
                             status == WEIR_TOO_LARGE
                                 ? "the call is larger than 34 MiB"
                                 : "the broker is not available and too many calls wait for it");
        return;
    }
    session_update_reading(session);
}

/* ---- stream functions ---- */

/* Decode one required name. False: answered with an error. */
static bool stream_call_name(struct session *session, const struct call_request *request,
                             const struct stream_function *function, unsigned field,
                             const struct json_value *values, struct span *name)
{
    struct json_value value = values[field];
    if (value.kind == JSON_ABSENT) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field %s is missing", function->name, field_names[field]);
        return false;
    }
    if (value.kind != JSON_STRING) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field %s must be a string, not %s", function->name,
                             field_names[field], kind_name(value.kind));
        return false;
    }
    if (value.text.bytes > NAME_ESCAPED_BYTES_MAX + 2) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field %s is longer than %u bytes", function->name,
                             field_names[field], NAME_BYTES_MAX);
        return false;
    }
    *name = json_decode(value, &session->sessions->names); /* reserved by the caller */
    if (name->bytes > NAME_BYTES_MAX) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field %s is longer than %u bytes", function->name,
                             field_names[field], NAME_BYTES_MAX);
        return false;
    }
    return true;
}

/* The value without insignificant white space; data NULL when memory is exhausted. */
static struct span sessions_compact(struct sessions *sessions, struct json_value value)
{
    if (value.kind == JSON_ABSENT)
        return SPAN_LITERAL("null");
    if (!value.has_space)
        return value.text;
    buffer_clear(&sessions->value);
    if (buffer_reserve(&sessions->value, value.text.bytes) != WEIR_OK)
        return (struct span){0};
    sessions->value.bytes = json_compact(sessions->value.data, value);
    return buffer_span(&sessions->value);
}

/* stream::send: the type may be called event_type, and may be missing (DESIGN section 8). */
static bool stream_call_event(struct session *session, const struct call_request *request,
                              const struct stream_function *function,
                              const struct json_value *values, struct stream_call *call)
{
    unsigned field = values[FIELD_TYPE].kind == JSON_ABSENT ? FIELD_EVENT_TYPE : FIELD_TYPE;
    call->event_type = SPAN_LITERAL("message");
    if (values[field].kind != JSON_ABSENT &&
        !stream_call_name(session, request, function, field, values, &call->event_type))
        return false;
    if (values[FIELD_ID].kind == JSON_ABSENT || values[FIELD_ID].kind == JSON_NULL)
        return true;
    return stream_call_name(session, request, function, FIELD_ID, values, &call->item);
}

static bool stream_call_data(struct session *session, const struct call_request *request,
                             const struct stream_function *function,
                             const struct json_value *values, struct stream_call *call)
{
    bool is_update = function->op == WIRE_OP_UPDATE;
    unsigned field = is_update ? FIELD_OPS : FIELD_DATA;
    struct json_value value = values[field];
    uint64_t bytes_max = session->sessions->limits.value_bytes_max;
    if (value.kind == JSON_ABSENT) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field %s is missing", function->name, field_names[field]);
        return false;
    }
    if (is_update && value.kind != JSON_ARRAY) {
        session_answer_error(session, request, "deserialization_error",
                             "%s: the field ops must be an array, not %s", function->name,
                             kind_name(value.kind));
        return false;
    }
    call->data = sessions_compact(session->sessions, value);
    if (call->data.data == NULL) {
        session_answer_error(session, request, function->error_code,
                             "the gateway is out of memory");
        return false;
    }
    if (is_update)
        bytes_max *= UPDATE_OPS_VALUES;
    if (call->data.bytes > bytes_max) {
        session_answer_error(session, request, function->error_code,
                             "%s %zu bytes, the limit %svalue_bytes_max is %llu",
                             is_update ? "the ops have" : "the value has", call->data.bytes,
                             is_update ? "of twice " : "", (unsigned long long)bytes_max);
        return false;
    }
    return true;
}

/* Read the call's data into `call`. False: answered with an error. */
static bool stream_call_parse(struct session *session, const struct call_request *request,
                              const struct stream_function *function, struct stream_call *call)
{
    struct sessions *sessions = session->sessions;
    struct json_value values[FIELD_COUNT];
    struct json_problem problem = {0};
    *call = (struct stream_call){0};
    enum weir_status status = WEIR_INVALID;
    if (request->data.kind == JSON_OBJECT)
        status = json_scan_object(request->data.text, JSON_DEPTH_MAX, field_names, FIELD_COUNT,
                                  values, &problem);
    if (status != WEIR_OK) {
        session_answer_error(
            session, request, "deserialization_error", "%s: %s%s", function->name,
            request->data.kind == JSON_OBJECT ? problem.reason
                                              : "the input must be an object, not ",
            request->data.kind == JSON_OBJECT ? "" : kind_name(request->data.kind));
        return false;
    }
    buffer_clear(&sessions->names);
    size_t name_bytes = 0;
    for (unsigned i = 0; i < FIELD_COUNT; i++) {
        if (i != FIELD_DATA && i != FIELD_OPS && values[i].kind == JSON_STRING &&
            values[i].text.bytes <= NAME_ESCAPED_BYTES_MAX + 2)
            name_bytes += values[i].text.bytes;
    }
    if (buffer_reserve(&sessions->names, name_bytes + 1) != WEIR_OK) {
        session_answer_error(session, request, function->error_code,
                             "the gateway is out of memory");
        return false;
    }
    if (function->needs_stream &&
        !stream_call_name(session, request, function, FIELD_STREAM, values, &call->stream))
        return false;
    if (function->needs_group &&
        !stream_call_name(session, request, function, FIELD_GROUP, values, &call->group))
        return false;
    if (function->needs_item &&
        !stream_call_name(session, request, function, FIELD_ITEM, values, &call->item))
        return false;
    if (function->op == WIRE_OP_SEND &&
        !stream_call_event(session, request, function, values, call))
        return false;
    return !function->needs_data || stream_call_data(session, request, function, values, call);
}

/* Read from the mapped store into sessions->value. OK: answer with it (or without result when *is_missing). */
static enum weir_status stream_call_read(struct sessions *sessions,
                                         const struct stream_function *function,
                                         const struct stream_call *call, bool *is_missing)
{
    struct store_reader *store = sessions->mapping->store;
    struct store_key key = {call->stream, call->group, call->item};
    struct store_snapshot snapshot;
    enum weir_status status;
    *is_missing = false;
    buffer_clear(&sessions->value);
    switch (function->op) {
    case WIRE_OP_GET:
        status = store_read_item(store, &key, &sessions->value);
        *is_missing = status == WEIR_EMPTY;
        return *is_missing ? WEIR_OK : status;
    case WIRE_OP_LIST:
        return store_snapshot(store, call->stream, call->group, NULL, &snapshot, &sessions->value);
    case WIRE_OP_LIST_GROUPS:
        return store_list_groups(store, call->stream, &sessions->value);
    case WIRE_OP_LIST_ALL:
        return store_list_all(store, &sessions->value);
    default:
        return WEIR_INVALID;
    }
}

static void session_call_stream(struct session *session, const struct call_request *request,
                                const struct stream_function *function)
{
    struct sessions *sessions = session->sessions;
    struct stream_call call;
    if (!stream_call_parse(session, request, function, &call))
        return;
    bool is_custom = function->needs_stream && function->op != WIRE_OP_SEND &&
                     custom_streams_have(sessions->custom, call.stream);
    /* Until then it is the broker who knows whose stream it is. */
    bool is_known = !function->needs_stream || custom_streams_are_told(sessions->custom);
    if (function->is_read)
        session->hurried_calls = CALLS_HURRIED_BY_READ;
    if (function->is_read && is_known && !is_custom && session->stream_calls == 0 &&
        sessions->mapping != NULL) {
        bool is_missing;
        enum weir_status status = stream_call_read(sessions, function, &call, &is_missing);
        if (status == WEIR_OK) {
            counters_add(sessions->counters, COUNTER_READS_LOCAL, 1);
            session_send(session, request,
                         is_missing ? (struct span){0} : buffer_span(&sessions->value),
                         (struct span){0});
            return;
        }
        if (status == WEIR_FULL || status == WEIR_TOO_LARGE) {
            session_answer_error(session, request, function->error_code,
                                 "the answer is larger than %u bytes", ANSWER_BYTES_MAX);
            return;
        }
        /* The store could not be read at this moment; the broker reads its own. */
    }
    const struct wire_field fields[] = {
        WIRE_NUMBER(function->op),       WIRE_SPAN(call.stream),
        WIRE_SPAN(call.group),           WIRE_SPAN(call.item),
        WIRE_SPAN(call.event_type),      WIRE_SPAN(call.data),
        WIRE_SPAN(request->traceparent), WIRE_SPAN(request->baggage)};
    session_ask(session, request, function, is_custom, WIRE_STREAM, fields, call.data.bytes);
}

/* ---- other functions ---- */

static bool call_is_in_default(const struct call_request *request)
{
    return request->name_space.data == NULL ||
           span_equal(request->name_space, SPAN_LITERAL("default"));
}

/* `{"a":1}` -> `{"a":1,"_caller_worker_id":"<id>"}`; a key of that name the caller sent is left out. */
static enum weir_status call_append_caller(struct buffer *out, struct json_value data,
                                           const char *worker_id)
{
    size_t cursor = 0;
    struct json_value key, value;
    bool is_first = true;
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{"));
    while (status == WEIR_OK && json_next(data, &cursor, &key, &value) == WEIR_OK) {
        if (json_string_equals(key, SPAN_LITERAL("_caller_worker_id")))
            continue;
        if (!is_first)
            status = buffer_append(out, SPAN_LITERAL(","));
        is_first = false;
        if (status == WEIR_OK)
            status = buffer_append(out, key.text);
        if (status == WEIR_OK)
            status = buffer_append(out, SPAN_LITERAL(":"));
        if (status == WEIR_OK)
            status = buffer_append(out, value.text);
    }
    if (status != WEIR_OK)
        return status;
    return buffer_printf(out, "%s\"_caller_worker_id\":\"%s\"}", is_first ? "" : ",", worker_id);
}

/* The data as the callee gets it: compact, and with the caller's id when it is an object. data
 * NULL: no memory. */
static struct span call_data(struct session *session, struct json_value data)
{
    struct sessions *sessions = session->sessions;
    struct span text = sessions_compact(sessions, data);
    if (text.data == NULL || data.kind != JSON_OBJECT)
        return text;
    data.text = text;
    data.has_space = false;
    buffer_clear(&sessions->names);
    if (call_append_caller(&sessions->names, data, session->worker_id) != WEIR_OK)
        return (struct span){0};
    return buffer_span(&sessions->names);
}

static void session_call_register(struct session *session, const struct call_request *request)
{
    static const char *const names[] = {"namespace"};
    struct buffer *decoded = &session->sessions->names;
    struct json_value value = {0};
    if (request->data.kind != JSON_OBJECT ||
        json_scan_object(request->data.text, JSON_DEPTH_MAX, names, 1, &value, NULL) != WEIR_OK) {
        session_answer_error(session, request, "deserialization_error",
                             "engine::workers::register: the input must be an object");
        return;
    }
    if (value.kind != JSON_STRING && value.kind != JSON_NULL && value.kind != JSON_ABSENT) {
        session_answer_error(session, request, "deserialization_error",
                             "engine::workers::register: namespace must be a string, not %s",
                             kind_name(value.kind));
        return;
    }
    buffer_clear(decoded);
    if (buffer_reserve(decoded, value.text.bytes) != WEIR_OK) {
        session_answer_error(session, request, "invocation_error", "the gateway is out of memory");
        return;
    }
    struct span name_space = json_decode(value, decoded);
    enum weir_status status =
        session_describe(session, sessions_compact(session->sessions, request->data), name_space);
    if (status == WEIR_OK)
        session_send(session, request, SPAN_LITERAL("{\"success\":true}"), (struct span){0});
    else if (status == WEIR_INVALID)
        session_answer_error(session, request, "INVALID_NAMESPACE",
                             "engine::workers::register: a namespace is not blank and has at most "
                             "%u bytes, none of them zero",
                             NAME_BYTES_MAX);
    else if (status == WEIR_TOO_LARGE)
        session_answer_error(session, request, "deserialization_error",
                             "engine::workers::register: the input is larger than %u bytes",
                             (unsigned)SESSION_INFO_BYTES_MAX);
    else
        session_answer_error(session, request, "invocation_error", "the gateway is out of memory");
}

/* ---- engine::log ---- */

/* NULL: none of the log functions. */
static const char *log_level(struct span function)
{
    static const char *const levels[] = {"info", "warn", "error", "debug", "trace"};
    static const char prefix[] = "engine::log::";
    size_t prefix_bytes = sizeof prefix - 1;
    if (function.bytes <= prefix_bytes || memcmp(function.data, prefix, prefix_bytes) != 0)
        return NULL;
    struct span rest = span_of(function.data + prefix_bytes, function.bytes - prefix_bytes);
    for (unsigned i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (span_equal(rest, span_text(levels[i])))
            return levels[i];
    }
    return NULL;
}

/* What it calls itself, or its id. Decoded to the end of sessions->names, where there is room. */
static struct span session_log_name(struct session *session)
{
    static const char *const names[] = {"name"};
    struct json_value name;
    if (session->info.bytes > 0 &&
        json_scan_object(buffer_span(&session->info), JSON_DEPTH_MAX, names, 1, &name, NULL) ==
            WEIR_OK &&
        name.kind == JSON_STRING && name.text.bytes > 2)
        return json_decode(name, &session->sessions->names);
    return span_text(session->worker_id);
}

static void session_call_log(struct session *session, const struct call_request *request,
                             const char *level)
{
    static const char *const names[] = {"message"};
    struct sessions *sessions = session->sessions;
    struct json_value message = {0};
    if (request->data.kind != JSON_OBJECT ||
        json_scan_object(request->data.text, JSON_DEPTH_MAX, names, 1, &message, NULL) != WEIR_OK ||
        message.kind != JSON_STRING) {
        session_answer_error(session, request, "deserialization_error",
                             "engine::log::%s: the field message must be a string", level);
        return;
    }
    buffer_clear(&sessions->names);
    if (buffer_reserve(&sessions->names, message.text.bytes + SESSION_INFO_BYTES_MAX) != WEIR_OK) {
        session_answer_error(session, request, "invocation_error", "the gateway is out of memory");
        return;
    }
    struct span name = session_log_name(session);
    if (worker_log_message(&sessions->log, level, name, json_decode(message, &sessions->names)))
        counters_add(sessions->counters, COUNTER_LOG_LINES, 1);
    session_send(session, request, (struct span){0}, (struct span){0});
}

/* ---- enqueueing (PROTOCOL 2.8) ---- */

static void print_string_or_null(struct printer *printer, struct span text)
{
    if (text.data == NULL)
        print_literal(printer, "null");
    else
        print_string(printer, text);
}

/* The input of engine::queue::enqueue, in sessions->names. data NULL: no memory. */
static struct span session_print_enqueue(struct session *session,
                                         const struct call_request *request)
{
    struct sessions *sessions = session->sessions;
    struct span data = sessions_compact(sessions, request->data);
    char receipt[UUID_TEXT_BYTES + 1];
    uuid_print(receipt, request->receipt);
    buffer_clear(&sessions->names);
    struct printer printer = {&sessions->names, data.data == NULL ? WEIR_NO_MEMORY : WEIR_OK};
    print_literal(&printer, "{\"queue\":");
    print_string(&printer, request->queue);
    print_literal(&printer, ",\"function_id\":");
    print_string(&printer, request->function);
    print_literal(&printer, ",\"data\":");
    print_span(&printer, data);
    print_literal(&printer, ",\"messageReceiptId\":");
    print_string(&printer, span_text(receipt));
    print_literal(&printer, ",\"traceparent\":");
    print_string_or_null(&printer, request->traceparent);
    print_literal(&printer, ",\"baggage\":");
    print_string_or_null(&printer, request->baggage);
    if (!call_is_in_default(request))
        print_string_member(&printer, SPAN_LITERAL(",\"namespace\":"), request->name_space);
    print_literal(&printer, "}");
    return printer.status == WEIR_OK ? buffer_span(&sessions->names) : (struct span){0};
}

static void session_call_enqueue(struct session *session, const struct call_request *request)
{
    struct call_request queued = *request;
    uuid_make(queued.receipt);
    struct span data = session_print_enqueue(session, &queued);
    if (data.data == NULL) {
        session_answer_error(session, request, "enqueue_error", "the gateway is out of memory");
        return;
    }
    const struct wire_field fields[] = {WIRE_NUMBER(session->id),
                                        WIRE_NIL,
                                        WIRE_SPAN(SPAN_LITERAL("engine::queue::enqueue")),
                                        WIRE_SPAN(data),
                                        WIRE_NIL,
                                        WIRE_SPAN(request->traceparent),
                                        WIRE_SPAN(request->baggage)};
    session_ask(session, &queued, NULL, false, WIRE_CALL, fields, data.bytes);
}

/* ---- calls of workers' functions ---- */

static void session_call_function(struct session *session, const struct call_request *request)
{
    struct span data = call_data(session, request->data);
    struct span metadata = {0};
    if (request->metadata.kind != JSON_ABSENT && request->metadata.kind != JSON_NULL)
        metadata = request->metadata.text;
    if (data.data == NULL) {
        session_answer_error(session, request, "invocation_error", "the gateway is out of memory");
        return;
    }
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->id),     WIRE_SPAN(request->name_space),
        WIRE_SPAN(request->function), WIRE_SPAN(data),
        WIRE_SPAN(metadata),          WIRE_SPAN(request->traceparent),
        WIRE_SPAN(request->baggage)};
    session_ask(session, request, NULL, false, WIRE_CALL, fields, data.bytes + metadata.bytes);
}

/* The engine's functions that a gateway carries out. False: it is none of them. */
static bool session_call_own(struct session *session, const struct call_request *request)
{
    if (!call_is_in_default(request))
        return false;
    const char *level = log_level(request->function);
    if (level != NULL)
        session_call_log(session, request, level);
    else if (span_equal(request->function, SPAN_LITERAL("engine::workers::register")))
        session_call_register(session, request);
    else
        return false;
    return true;
}

void session_call(struct session *session, const struct call_request *request)
{
    counters_add(session->sessions->counters, COUNTER_CALLS, 1);
    const struct stream_function *stream = stream_function_by_name(request->function);
    if (request->name_space.data != NULL && span_is_blank(request->name_space))
        session_answer_error(session, request, "INVALID_NAMESPACE", "the namespace is blank");
    else if (request->queue.data != NULL)
        session_call_enqueue(session, request);
    else if (stream != NULL)
        session_call_stream(session, request, stream);
    else if (request->function.bytes > NAME_BYTES_MAX)
        session_answer_error(session, request, "function_not_found",
                             "a function id of %zu bytes is longer than any that is registered",
                             request->function.bytes);
    else if (!session_call_own(session, request))
        session_call_function(session, request);
}

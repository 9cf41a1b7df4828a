#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/client.h"
#include "shm/error_body.h"
#include "shm/json.h"

/* ---- calls in flight ---- */

int calls_open(struct weir_client *client)
{
    uint32_t count = client->options.calls_max;
    client->calls = calloc(count, sizeof *client->calls);
    if (client->calls == NULL)
        return client_fail(client, -ENOMEM, "no memory for %u calls in flight", count);
    for (uint32_t i = 0; i + 1 < count; i++)
        client->calls[i].next_free = i + 2;
    client->call_first_free = 1;
    return 0;
}

void calls_close(struct weir_client *client)
{
    free(client->calls);
    client->calls = NULL;
}

static struct client_call *calls_find(struct weir_client *client, uint64_t id)
{
    uint64_t position = (id & UINT32_MAX) - 1;
    if (position >= client->options.calls_max)
        return NULL;
    struct client_call *call = &client->calls[position];
    return call->done != NULL && call->generation == id >> 32 ? call : NULL;
}

/* Free the slot first: the callback may start the next call. */
static void calls_finish(struct weir_client *client, struct client_call *call,
                         const struct weir_result *result)
{
    weir_done *done = call->done;
    call->done = NULL;
    call->generation++;
    call->next_free = client->call_first_free;
    client->call_first_free = (uint32_t)(call - client->calls) + 1;
    done(call->context, result);
}

void calls_fail_all(struct weir_client *client, const char *code, const char *message)
{
    struct weir_result result = {.error_code = code, .error_message = message};
    /* Before the callbacks: what they start has its own deadlines, and does not end here. */
    client->nearest_deadline_ms = UINT64_MAX;
    client->losses++;
    for (uint32_t i = 0; client->calls != NULL && i < client->options.calls_max; i++) {
        struct client_call *call = &client->calls[i];
        if (call->done != NULL && call->loss != client->losses)
            calls_finish(client, call, &result);
    }
}

void calls_expire(struct weir_client *client)
{
    if (client->nearest_deadline_ms == UINT64_MAX)
        return;
    uint64_t now_ms = client_now_ms();
    if (client->nearest_deadline_ms > now_ms)
        return;
    static const struct weir_result result = {
        .error_code = "timeout", .error_message = "no answer within the call's time limit"};
    for (uint32_t i = 0; i < client->options.calls_max; i++) {
        if (client->calls[i].done == NULL || client->calls[i].deadline_ms > now_ms)
            continue;
        client->has_late_queued |= client->state != CLIENT_READY;
        calls_finish(client, &client->calls[i], &result);
    }
    uint64_t nearest = UINT64_MAX; /* in a second pass: callbacks may have started calls anywhere */
    for (uint32_t i = 0; i < client->options.calls_max; i++) {
        if (client->calls[i].done != NULL && client->calls[i].deadline_ms < nearest)
            nearest = client->calls[i].deadline_ms;
    }
    client->nearest_deadline_ms = nearest;
}

/* Queued frames are our own, so only their headers are looked at (shm/wire.h). */
void calls_clean_queue(struct weir_client *client)
{
    struct buffer *queue = &client->queue;
    size_t kept = 0, at = 0;
    if (!client->has_late_queued)
        return;
    client->has_late_queued = false;
    while (at < queue->bytes) { /* each turn passes a frame */
        uint32_t length;
        uint64_t id;
        memcpy(&length, queue->data + at, sizeof length);
        memcpy(&id, queue->data + at + 8, sizeof id);
        size_t bytes = sizeof length + length;
        weir_assert(bytes <= queue->bytes - at);
        /* Only calls that somebody waits for have an id. */
        if (id == 0 || calls_find(client, id) != NULL) {
            memmove(queue->data + kept, queue->data + at, bytes);
            kept += bytes;
        }
        at += bytes;
    }
    queue->bytes = kept;
}

/* ---- what is sent ---- */

static int calls_send(struct weir_client *client, uint64_t id, const struct weir_call *call)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_SPAN(client_span_of(call->name_space)),
        WIRE_SPAN(span_text(call->function_id)),
        WIRE_SPAN(call->json.data != NULL ? client_span(call->json) : SPAN_LITERAL("null")),
        WIRE_SPAN(client_span(call->metadata)),
        WIRE_SPAN(client_span_of(call->traceparent)),
        WIRE_SPAN(client_span_of(call->baggage)),
    };
    return client_append(client, WIRE_CALL, id, fields);
}

/* `call` has been checked. */
static int calls_start(struct weir_client *client, const struct weir_call *wanted, weir_done *done,
                       void *context)
{
    if (done == NULL)
        return calls_send(client, 0, wanted);
    if (client->call_first_free == 0)
        return client_fail(client, -ENOBUFS,
                           "%u calls are in flight, which is the limit; process until "
                           "fewer are",
                           client->options.calls_max);
    uint32_t position = client->call_first_free - 1;
    struct client_call *call = &client->calls[position];
    int result = calls_send(client, (uint64_t)call->generation << 32 | (position + 1), wanted);
    if (result != 0)
        return result;
    client->call_first_free = call->next_free;
    call->done = done;
    call->context = context;
    call->loss = client->losses;
    call->deadline_ms = client_now_ms() + (wanted->timeout_ms != 0 ? wanted->timeout_ms
                                                                   : WEIR_CALL_TIMEOUT_MS_DEFAULT);
    if (call->deadline_ms < client->nearest_deadline_ms)
        client->nearest_deadline_ms = call->deadline_ms;
    return 0;
}

static int calls_check_text(struct weir_client *client, const char *text, const char *what)
{
    if (text == NULL || json_is_utf8(span_text(text)))
        return 0;
    return client_fail(client, -EINVAL, "the %s is not UTF-8", what);
}

int weir_client_call(struct weir_client *client, const struct weir_call *call, weir_done *done,
                     void *context)
{
    int result = client_check_name(client, call->function_id, "function id");
    if (result == 0 && call->name_space != NULL)
        result = client_check_name(client, call->name_space, "namespace");
    if (result == 0)
        result = client_check_json(client, call->json);
    if (result == 0)
        result = client_check_json(client, call->metadata);
    if (result == 0)
        result = calls_check_text(client, call->traceparent, "traceparent");
    if (result == 0)
        result = calls_check_text(client, call->baggage, "baggage");
    return result == 0 ? calls_start(client, call, done, context) : result;
}

static enum weir_status calls_build_set(struct buffer *out, const char *stream_name,
                                        const char *group_id, const char *item_id, struct span json)
{
    const struct {
        struct span key;
        const char *value;
    } names[] = {{SPAN_LITERAL("{\"stream_name\":"), stream_name},
                 {SPAN_LITERAL(",\"group_id\":"), group_id},
                 {SPAN_LITERAL(",\"item_id\":"), item_id}};
    enum weir_status status = WEIR_OK;
    buffer_clear(out);
    for (size_t i = 0; i < 3 && status == WEIR_OK; i++) {
        status = buffer_append(out, names[i].key);
        if (status == WEIR_OK)
            status = json_append_string(out, span_text(names[i].value));
    }
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"data\":"));
    if (status == WEIR_OK)
        status = buffer_append(out, json);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("}"));
    return status;
}

int weir_client_set(struct weir_client *client, const char *stream_name, const char *group_id,
                    const char *item_id, struct weir_text json, weir_done *done, void *context)
{
    int result = client_check_name(client, stream_name, "stream name");
    if (result == 0)
        result = client_check_name(client, group_id, "group id");
    if (result == 0)
        result = client_check_name(client, item_id, "item id");
    if (result == 0)
        result = client_check_json(client, json);
    if (result != 0)
        return result;
    struct span data = json.data != NULL ? client_span(json) : SPAN_LITERAL("null");
    enum weir_status status =
        calls_build_set(&client->scratch, stream_name, group_id, item_id, data);
    if (status == WEIR_NO_MEMORY)
        return client_fail(client, -ENOMEM, "no memory for the value");
    if (status != WEIR_OK)
        return client_fail(client, -EINVAL, "the value is larger than a message may be");
    const struct weir_call call = {.function_id = "stream::set",
                                   .json = client_text(buffer_span(&client->scratch))};
    return calls_start(client, &call, done, context);
}

/* ---- answers ---- */

/* A caller of an earlier connection has been told already. */
static int calls_send_answer(struct weir_client *client, uint64_t id, struct span json,
                             struct span error)
{
    struct wire_field fields[] = {WIRE_SPAN(json), WIRE_SPAN(error), WIRE_NIL, WIRE_NIL};
    if (client->state == CLIENT_WAITING || client->state == CLIENT_GREETING)
        return 0;
    return client_append(client, WIRE_RESULT, id, fields);
}

int weir_client_answer(struct weir_client *client, uint64_t invocation_id, struct weir_text json)
{
    int result = client_check_json(client, json);
    return result == 0
               ? calls_send_answer(client, invocation_id, client_span(json), span_of(NULL, 0))
               : result;
}

int weir_client_answer_error(struct weir_client *client, uint64_t invocation_id, const char *code,
                             const char *message)
{
    struct buffer *out = &client->scratch;
    if (!json_is_utf8(span_text(code)) || !json_is_utf8(span_text(message)))
        return client_fail(client, -EINVAL, "the error's code or message is not UTF-8");
    buffer_clear(out);
    if (error_body_append(out, span_text(code), span_text(message)) != WEIR_OK)
        return client_fail(client, -ENOMEM, "no memory for the error");
    return calls_send_answer(client, invocation_id, span_of(NULL, 0), buffer_span(out));
}

/* ---- what is received ---- */

/* Decode a member of the error object into scratch, NUL-terminated; returns its offset there, or
 * SIZE_MAX. */
static size_t calls_keep_string(struct buffer *scratch, struct json_value value,
                                const char *fallback)
{
    size_t start = scratch->bytes;
    size_t room = value.kind == JSON_STRING ? value.text.bytes : strlen(fallback);
    if (buffer_reserve(scratch, room + 1) != WEIR_OK)
        return SIZE_MAX;
    char *out = scratch->data + start;
    if (value.kind == JSON_STRING)
        room = json_unescape(out, value);
    else
        memcpy(out, fallback, room);
    out[room] = '\0';
    scratch->bytes += room + 1;
    return start;
}

bool calls_read_error(struct buffer *out, struct span error, const char **code,
                      const char **message)
{
    static const char *const names[] = {"code", "message"};
    struct json_value values[2] = {{.kind = JSON_ABSENT}, {.kind = JSON_ABSENT}};
    if (json_scan_object(error, JSON_DEPTH_MAX, names, 2, values, NULL) != WEIR_OK)
        values[0].kind = values[1].kind = JSON_ABSENT;
    buffer_clear(out);
    size_t code_at = calls_keep_string(out, values[0], "invocation_failed");
    size_t text_at = calls_keep_string(out, values[1], "the function failed");
    bool is_kept = code_at != SIZE_MAX && text_at != SIZE_MAX;
    *code = is_kept ? out->data + code_at : "invocation_failed";
    *message = is_kept ? out->data + text_at : "no memory for the message";
    return is_kept;
}

static void calls_take_result(struct weir_client *client, const struct wire_message *message)
{
    struct client_call *call = calls_find(client, message->id);
    if (call == NULL) /* late: the call has timed out */
        return;
    struct weir_result result = {.json = client_text(message->fields[0].span)};
    struct span error = message->fields[1].span;
    if (error.data == NULL) {
        calls_finish(client, call, &result);
        return;
    }
    result.json = (struct weir_text){NULL, 0};
    (void)calls_read_error(&client->scratch, error, &result.error_code, &result.error_message);
    /* The callback may make calls, which use scratch: lend it what is there and give them a fresh
     * one. */
    struct buffer lent = client->scratch;
    buffer_init(&client->scratch, lent.limit_bytes);
    calls_finish(client, call, &result);
    buffer_fini(&lent);
}

static void calls_take_invocation(struct weir_client *client, const struct wire_message *message)
{
    void *context = NULL;
    const char *function_id = NULL;
    weir_handler *handler =
        registrations_find_handler(client, message->fields[1].span, &context, &function_id);
    if (handler == NULL) {
        /* Unregistered while the call was on its way. An error to answer with that does not fit is
         * left to the caller's time limit. */
        (void)weir_client_answer_error(client, message->id, "function_not_found",
                                       "the worker does not offer this function any more");
        return;
    }
    char id[NAME_BYTES_MAX + 1]; /* its own copy: the handler may unregister the function */
    memcpy(id, function_id, strlen(function_id) + 1);
    struct weir_invocation invocation = {
        .id = message->id,
        .function_id = id,
        .json = client_text(message->fields[2].span),
        .metadata = client_text(message->fields[3].span),
        .traceparent = client_text(message->fields[4].span),
        .baggage = client_text(message->fields[5].span),
    };
    if (invocation.json.data == NULL)
        invocation.json = weir_text("null");
    handler(context, client, &invocation);
}

bool calls_take_frame(struct weir_client *client, const struct wire_message *message)
{
    switch (message->type) {
    case WIRE_RESULT:
        calls_take_result(client, message);
        return true;
    case WIRE_INVOKE:
        calls_take_invocation(client, message);
        return true;
    default:
        return false;
    }
}

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
    while (client->functions != NULL) {
        struct client_function *next = client->functions->next;
        free(client->functions);
        client->functions = next;
    }
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
    void (*done)(void *, const struct weir_result *) = call->done;
    call->done = NULL;
    call->generation++;
    call->next_free = client->call_first_free;
    client->call_first_free = (uint32_t)(call - client->calls) + 1;
    done(call->context, result);
}

void calls_fail_all(struct weir_client *client, const char *code, const char *message)
{
    struct weir_result result = {.error_code = code, .error_message = message};
    for (uint32_t i = 0; client->calls != NULL && i < client->options.calls_max; i++) {
        if (client->calls[i].done != NULL)
            calls_finish(client, &client->calls[i], &result);
    }
    client->nearest_deadline_ms = UINT64_MAX;
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
        if (client->calls[i].done != NULL && client->calls[i].deadline_ms <= now_ms)
            calls_finish(client, &client->calls[i], &result);
    }
    uint64_t nearest = UINT64_MAX; /* in a second pass: callbacks may have started calls anywhere */
    for (uint32_t i = 0; i < client->options.calls_max; i++) {
        if (client->calls[i].done != NULL && client->calls[i].deadline_ms < nearest)
            nearest = client->calls[i].deadline_ms;
    }
    client->nearest_deadline_ms = nearest;
}

/* ---- what is sent ---- */

static struct span calls_span(struct weir_text text)
{
    return span_of(text.data, text.bytes);
}
static struct weir_text calls_text(struct span span)
{
    return (struct weir_text){span.data, span.bytes};
}

static int calls_check_name(struct weir_client *client, const char *name, const char *what)
{
    size_t bytes = strlen(name);
    if (bytes > NAME_BYTES_MAX)
        return client_fail(client, -EINVAL, "the %s is longer than %u bytes", what, NAME_BYTES_MAX);
    if (!json_is_utf8(span_of(name, bytes)))
        return client_fail(client, -EINVAL, "the %s is not UTF-8", what);
    return 0;
}

static int calls_check_json(struct weir_client *client, struct weir_text json)
{
    struct json_value value;
    struct json_problem problem;
    if (json.data == NULL)
        return 0;
    if (json_scan(calls_span(json), JSON_DEPTH_MAX - 2, &value, &problem) == WEIR_OK)
        return 0;
    return client_fail(client, -EINVAL, "the data is not JSON: %s at byte %zu", problem.reason,
                       problem.offset);
}

static int calls_send(struct weir_client *client, uint64_t id, const char *function_id,
                      struct span json)
{
    struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_NIL, /* the namespace called is always "default": weir_client_options.name_space is for registering */
        WIRE_SPAN(span_text(function_id)),
        WIRE_SPAN(json.data != NULL ? json : SPAN_LITERAL("null")),
        WIRE_NIL,
        WIRE_NIL,
        WIRE_NIL,
    };
    return client_append(client, WIRE_CALL, id, fields);
}

/* `json` has been checked. */
static int calls_start(struct weir_client *client, const char *function_id, struct span json,
                       unsigned timeout_ms,
                       void (*done)(void *context, const struct weir_result *result), void *context)
{
    if (client->call_first_free == 0)
        return client_fail(client, -ENOBUFS,
                           "%u calls are in flight, which is the limit; process until "
                           "fewer are",
                           client->options.calls_max);
    uint32_t position = client->call_first_free - 1;
    struct client_call *call = &client->calls[position];
    int result =
        calls_send(client, (uint64_t)call->generation << 32 | (position + 1), function_id, json);
    if (result != 0)
        return result;
    client->call_first_free = call->next_free;
    call->done = done;
    call->context = context;
    call->deadline_ms =
        client_now_ms() + (timeout_ms != 0 ? timeout_ms : WEIR_CALL_TIMEOUT_MS_DEFAULT);
    if (call->deadline_ms < client->nearest_deadline_ms)
        client->nearest_deadline_ms = call->deadline_ms;
    return 0;
}

int weir_client_call(struct weir_client *client, const char *function_id, struct weir_text json,
                     unsigned timeout_ms,
                     void (*done)(void *context, const struct weir_result *result), void *context)
{
    if (done == NULL)
        return client_fail(client, -EINVAL, "a call needs a callback; use weir_client_call_void()");
    int result = calls_check_name(client, function_id, "function id");
    if (result == 0)
        result = calls_check_json(client, json);
    if (result == 0)
        result = calls_start(client, function_id, calls_span(json), timeout_ms, done, context);
    return result;
}

int weir_client_call_void(struct weir_client *client, const char *function_id,
                          struct weir_text json)
{
    int result = calls_check_name(client, function_id, "function id");
    if (result == 0)
        result = calls_check_json(client, json);
    return result == 0 ? calls_send(client, 0, function_id, calls_span(json)) : result;
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
                    const char *item_id, struct weir_text json,
                    void (*done)(void *context, const struct weir_result *result), void *context)
{
    int result = calls_check_name(client, stream_name, "stream name");
    if (result == 0)
        result = calls_check_name(client, group_id, "group id");
    if (result == 0)
        result = calls_check_name(client, item_id, "item id");
    if (result == 0)
        result = calls_check_json(client, json);
    if (result != 0)
        return result;
    struct span data = json.data != NULL ? calls_span(json) : SPAN_LITERAL("null");
    enum weir_status status =
        calls_build_set(&client->scratch, stream_name, group_id, item_id, data);
    if (status == WEIR_NO_MEMORY)
        return client_fail(client, -ENOMEM, "no memory for the value");
    if (status != WEIR_OK)
        return client_fail(client, -EINVAL, "the value is larger than a message may be");
    struct span built = buffer_span(&client->scratch);
    return done != NULL ? calls_start(client, "stream::set", built, 0, done, context)
                        : calls_send(client, 0, "stream::set", built);
}

/* ---- functions ---- */

static struct client_function **calls_find_function(struct weir_client *client, struct span id)
{
    struct client_function **link = &client->functions;
    while (*link != NULL && !span_equal(span_text((*link)->id), id))
        link = &(*link)->next;
    return link;
}

int weir_client_register(struct weir_client *client, const char *function_id,
                         const char *description,
                         void (*handler)(void *context, struct weir_client *client,
                                         const struct weir_invocation *invocation),
                         void *context)
{
    int result = handler == NULL ? client_fail(client, -EINVAL, "a function needs a handler")
                                 : calls_check_name(client, function_id, "function id");
    if (result == 0 && description != NULL && !json_is_utf8(span_text(description)))
        result = client_fail(client, -EINVAL, "the description is not UTF-8");
    if (result != 0)
        return result;
    struct client_function **link = calls_find_function(client, span_text(function_id));
    struct client_function *function = *link;
    if (function == NULL) {
        size_t bytes = strlen(function_id) + 1;
        function = malloc(sizeof *function + bytes);
        if (function == NULL)
            return client_fail(client, -ENOMEM, "no memory for another function");
        memcpy(function->id, function_id, bytes);
        function->next = NULL;
    }
    struct wire_field fields[] = {
        WIRE_NUMBER(0),
        client->name_space != NULL ? WIRE_SPAN(span_text(client->name_space)) : WIRE_NIL,
        WIRE_SPAN(span_text(function_id)),
        description != NULL ? WIRE_SPAN(span_text(description)) : WIRE_NIL,
        WIRE_NIL,
        WIRE_NIL,
        WIRE_NIL,
    };
    result = client_append(client, WIRE_FUNCTION_REGISTER, 0, fields);
    if (result != 0) {
        if (*link == NULL)
            free(function);
        return result;
    }
    function->handler = handler;
    function->context = context;
    *link = function;
    return 0;
}

int weir_client_unregister(struct weir_client *client, const char *function_id)
{
    struct client_function **link = calls_find_function(client, span_text(function_id));
    struct client_function *function = *link;
    if (function == NULL)
        return 0;
    struct wire_field fields[] = {
        WIRE_NUMBER(0),
        client->name_space != NULL ? WIRE_SPAN(span_text(client->name_space)) : WIRE_NIL,
        WIRE_SPAN(span_text(function_id))};
    int result = client_append(client, WIRE_FUNCTION_UNREGISTER, 0, fields);
    if (result != 0)
        return result;
    *link = function->next;
    free(function);
    return 0;
}

static int calls_send_answer(struct weir_client *client, uint64_t id, struct span json,
                             struct span error)
{
    struct wire_field fields[] = {WIRE_SPAN(json), WIRE_SPAN(error), WIRE_NIL, WIRE_NIL};
    return client_append(client, WIRE_RESULT, id, fields);
}

int weir_client_answer(struct weir_client *client, uint64_t invocation_id, struct weir_text json)
{
    int result = calls_check_json(client, json);
    return result == 0
               ? calls_send_answer(client, invocation_id, calls_span(json), span_of(NULL, 0))
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

static void calls_take_result(struct weir_client *client, const struct wire_message *message)
{
    struct client_call *call = calls_find(client, message->id);
    if (call == NULL) /* late: the call has timed out */
        return;
    struct weir_result result = {.json = calls_text(message->fields[0].span)};
    struct span error = message->fields[1].span;
    if (error.data != NULL) {
        static const char *const names[] = {"code", "message"};
        struct json_value values[2] = {{.kind = JSON_ABSENT}, {.kind = JSON_ABSENT}};
        result.json = (struct weir_text){NULL, 0};
        if (json_scan_object(error, JSON_DEPTH_MAX, names, 2, values, NULL) != WEIR_OK)
            values[0].kind = values[1].kind = JSON_ABSENT;
        buffer_clear(&client->scratch);
        size_t code = calls_keep_string(&client->scratch, values[0], "invocation_failed");
        size_t text = calls_keep_string(&client->scratch, values[1], "the function failed");
        bool is_kept = code != SIZE_MAX && text != SIZE_MAX;
        result.error_code = is_kept ? client->scratch.data + code : "invocation_failed";
        result.error_message = is_kept ? client->scratch.data + text : "no memory for the message";
        /* The callback may make calls, which use scratch: lend it what is there and give them a
         * fresh one. */
        struct buffer lent = client->scratch;
        buffer_init(&client->scratch, lent.limit_bytes);
        calls_finish(client, call, &result);
        buffer_fini(&lent);
        return;
    }
    calls_finish(client, call, &result);
}

static void calls_take_invocation(struct weir_client *client, const struct wire_message *message)
{
    struct client_function *function = *calls_find_function(client, message->fields[1].span);
    if (function == NULL) {
        /* Unregistered while the call was on its way. An error to answer with that does not fit is
         * left to the caller's time limit. */
        (void)weir_client_answer_error(client, message->id, "function_not_found",
                                       "the worker does not offer this function any more");
        return;
    }
    char id[NAME_BYTES_MAX + 1]; /* its own copy: the handler may unregister the function */
    memcpy(id, function->id, strlen(function->id) + 1);
    struct weir_invocation invocation = {
        .id = message->id,
        .function_id = id,
        .json = calls_text(message->fields[2].span),
        .metadata = calls_text(message->fields[3].span),
        .traceparent = calls_text(message->fields[4].span),
        .baggage = calls_text(message->fields[5].span),
    };
    if (invocation.json.data == NULL)
        invocation.json = weir_text("null");
    function->handler(function->context, client, &invocation);
}

static void calls_take_rejection(struct weir_client *client, const struct wire_message *message)
{
    struct span code = message->fields[1].span;
    struct client_function *function = *calls_find_function(client, message->fields[3].span);
    if (function == NULL || client->options.on_rejected == NULL)
        return;
    char code_text[80];
    (void)snprintf(code_text, sizeof code_text, "%.*s", (int)(code.bytes < 79 ? code.bytes : 79),
                   code.bytes > 0 ? code.data : "");
    client->options.on_rejected(client->options.context, function->id, code_text);
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
    case WIRE_FUNCTION_REJECTED:
        calls_take_rejection(client, message);
        return true;
    default:
        return false;
    }
}

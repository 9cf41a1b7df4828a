#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "client/client.h"
#include "shm/error_body.h"
#include "shm/hash.h"
#include "shm/json.h"

/* Everything is kept as the message that says it, encoded once: saying it again is a copy. */
struct client_function {
    struct client_function *next, **at; /* of all, in order */
    struct client_function *next_of_bucket;
    weir_handler *handler;
    void *context;
    struct buffer frame;
    char id[]; /* NUL-terminated */
};

struct client_trigger {
    struct client_trigger *next;
    struct buffer frame;
    char id[WEIR_TRIGGER_ID_BYTES];
};

struct client_type {
    struct client_type *next;
    const char *(*on_bind)(void *context, const struct weir_binding *binding);
    void (*on_unbind)(void *context, const char *id);
    void *context;
    struct buffer frame;
    char id[];
};

static void function_free(struct client_function *function)
{
    buffer_fini(&function->frame);
    free(function);
}

static void trigger_free(struct client_trigger *trigger)
{
    buffer_fini(&trigger->frame);
    free(trigger);
}

static void type_free(struct client_type *type)
{
    buffer_fini(&type->frame);
    free(type);
}

void registrations_close(struct weir_client *client)
{
    for (struct client_function *function = client->functions, *next; function; function = next) {
        next = function->next;
        function_free(function);
    }
    for (struct client_trigger *trigger = client->triggers, *next; trigger; trigger = next) {
        next = trigger->next;
        trigger_free(trigger);
    }
    for (struct client_type *type = client->types, *next; type; type = next) {
        next = type->next;
        type_free(type);
    }
    free(client->function_buckets);
    client->function_buckets = NULL;
    client->functions = NULL;
    client->triggers = NULL;
    client->types = NULL;
}

/* ---- saying it ---- */

static int registration_encode(struct weir_client *client, struct buffer *frame,
                               enum wire_type type, const struct wire_field *fields)
{
    buffer_init(frame, WIRE_FRAME_BYTES_MAX);
    switch (wire_append(frame, type, 0, fields)) {
    case WEIR_OK:
        return 0;
    case WEIR_NO_MEMORY:
        return client_fail(client, -ENOMEM, "no memory to register this");
    default:
        return client_fail(client, -EINVAL, "the registration is larger than %u bytes",
                           WIRE_FRAME_BYTES_MAX);
    }
}

static int registration_say(struct weir_client *client, const struct buffer *frame)
{
    if (client->state == CLIENT_LOST)
        return client_fail(client, -ENOTCONN, "the connection to the gateway is lost");
    if (client->state != CLIENT_READY)
        return 0; /* it is said with all others at the next welcome */
    switch (buffer_append(&client->output, buffer_span(frame))) {
    case WEIR_OK:
        return 0;
    case WEIR_NO_MEMORY:
        return client_fail(client, -ENOMEM, "no memory for the message");
    default:
        return client_fail(client, -ENOBUFS,
                           "%zu bytes wait for the gateway, the limit is %zu; process until "
                           "fewer do",
                           client->output.bytes, client->output.limit_bytes);
    }
}

int registrations_replay(struct weir_client *client)
{
    int result = 0;
    for (struct client_type *type = client->types; type && result == 0; type = type->next)
        result = registration_say(client, &type->frame);
    for (struct client_function *function = client->functions; function && result == 0;
         function = function->next)
        result = registration_say(client, &function->frame);
    for (struct client_trigger *trigger = client->triggers; trigger && result == 0;
         trigger = trigger->next)
        result = registration_say(client, &trigger->frame);
    return result;
}

/* Withdrawing is said only to a connection that has been told. */
static int registration_unsay(struct weir_client *client, enum wire_type type,
                              const struct wire_field *fields)
{
    if (client->state == CLIENT_LOST)
        return client_fail(client, -ENOTCONN, "the connection to the gateway is lost");
    return client->state == CLIENT_READY ? client_append(client, type, 0, fields) : 0;
}

/* ---- functions ---- */

/* Where the function hangs in its bucket, or NULL. */
static struct client_function **function_find(struct weir_client *client, struct span id)
{
    if (client->function_bucket_count == 0)
        return NULL;
    size_t bucket = hash_bytes(0, id) & (client->function_bucket_count - 1);
    struct client_function **link = &client->function_buckets[bucket];
    while (*link != NULL && !span_equal(span_text((*link)->id), id))
        link = &(*link)->next_of_bucket;
    return *link == NULL ? NULL : link;
}

static void function_hang(struct weir_client *client, struct client_function *function)
{
    size_t bucket = hash_bytes(0, span_text(function->id)) & (client->function_bucket_count - 1);
    function->next_of_bucket = client->function_buckets[bucket];
    client->function_buckets[bucket] = function;
}

/* Room for one function more; the buckets double with their number. */
static bool function_make_room(struct weir_client *client)
{
    if (client->function_count < client->function_bucket_count)
        return true;
    size_t count = client->function_bucket_count == 0 ? 16 : 2 * client->function_bucket_count;
    struct client_function **buckets = calloc(count, sizeof(struct client_function *));
    if (buckets == NULL)
        return false;
    free(client->function_buckets);
    client->function_buckets = buckets;
    client->function_bucket_count = count;
    for (struct client_function *function = client->functions; function; function = function->next)
        function_hang(client, function);
    return true;
}

/* Put `function` into the place of `earlier`, which is freed, or behind all when that is NULL. */
static void function_enter(struct weir_client *client, struct client_function *function,
                           struct client_function **earlier_link)
{
    function->at = client->functions_end;
    if (earlier_link != NULL) {
        struct client_function *earlier = *earlier_link;
        function->at = earlier->at;
        function->next = earlier->next;
        *earlier_link = earlier->next_of_bucket;
        function_free(earlier);
    } else {
        client->function_count++;
    }
    *function->at = function;
    if (function->next != NULL)
        function->next->at = &function->next;
    else
        client->functions_end = &function->next;
    function_hang(client, function);
}

static void function_leave(struct weir_client *client, struct client_function **link)
{
    struct client_function *function = *link;
    *link = function->next_of_bucket;
    *function->at = function->next;
    if (function->next != NULL)
        function->next->at = function->at;
    else
        client->functions_end = function->at;
    client->function_count--;
    function_free(function);
}

weir_handler *registrations_find_handler(struct weir_client *client, struct span function_id,
                                         void **context, const char **id)
{
    struct client_function **link = function_find(client, function_id);
    if (link == NULL)
        return NULL;
    const struct client_function *function = *link;
    *context = function->context;
    *id = function->id;
    return function->handler;
}

static int function_check(struct weir_client *client, const struct weir_function *function)
{
    if (function->handler == NULL)
        return client_fail(client, -EINVAL, "a function needs a handler");
    int result = client_check_name(client, function->id, "function id");
    if (result == 0 && function->description != NULL &&
        !json_is_utf8(span_text(function->description)))
        result = client_fail(client, -EINVAL, "the description is not UTF-8");
    if (result == 0)
        result = client_check_json(client, function->request_format);
    if (result == 0)
        result = client_check_json(client, function->response_format);
    return result == 0 ? client_check_json(client, function->metadata) : result;
}

int weir_client_register(struct weir_client *client, const struct weir_function *function)
{
    int result = function_check(client, function);
    if (result != 0)
        return result;
    size_t bytes = strlen(function->id) + 1;
    struct client_function *made = calloc(1, sizeof *made + bytes);
    if (made == NULL || !function_make_room(client)) {
        free(made);
        return client_fail(client, -ENOMEM, "no memory for another function");
    }
    memcpy(made->id, function->id, bytes);
    made->handler = function->handler;
    made->context = function->context;
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_SPAN(client_span_of(client->name_space)),
        WIRE_SPAN(span_text(function->id)),
        WIRE_SPAN(client_span_of(function->description)),
        WIRE_SPAN(client_span(function->request_format)),
        WIRE_SPAN(client_span(function->response_format)),
        WIRE_SPAN(client_span(function->metadata)),
    };
    result = registration_encode(client, &made->frame, WIRE_FUNCTION_REGISTER, fields);
    if (result == 0)
        result = registration_say(client, &made->frame);
    if (result != 0) {
        function_free(made);
        return result;
    }
    function_enter(client, made, function_find(client, span_text(function->id)));
    return 0;
}

int weir_client_unregister(struct weir_client *client, const char *function_id)
{
    struct client_function **link = function_find(client, span_text(function_id));
    if (link == NULL)
        return 0;
    const struct wire_field fields[] = {WIRE_NUMBER(0),
                                        WIRE_SPAN(client_span_of(client->name_space)),
                                        WIRE_SPAN(span_text(function_id))};
    int result = registration_unsay(client, WIRE_FUNCTION_UNREGISTER, fields);
    if (result != 0)
        return result;
    function_leave(client, link);
    return 0;
}

/* ---- triggers ---- */

/* A UUID of version 4 (RFC 9562 section 5.4). */
static bool trigger_make_id(char out[WEIR_TRIGGER_ID_BYTES])
{
    unsigned char b[16];
    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        return false;
    b[6] = (unsigned char)(0x40 | (b[6] & 0x0f));
    b[8] = (unsigned char)(0x80 | (b[8] & 0x3f));
    (void)snprintf(out, WEIR_TRIGGER_ID_BYTES,
                   "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                   b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
                   b[14], b[15]);
    return true;
}

static int trigger_check(struct weir_client *client, const struct weir_trigger *trigger)
{
    int result = client_check_name(client, trigger->type, "trigger type");
    if (result == 0)
        result = client_check_name(client, trigger->function_id, "function id");
    if (result == 0 && trigger->function_name_space != NULL)
        result = client_check_name(client, trigger->function_name_space, "function's namespace");
    if (result == 0 && trigger->type_name_space != NULL)
        result = client_check_name(client, trigger->type_name_space, "type's namespace");
    if (result == 0)
        result = client_check_json(client, trigger->config);
    return result == 0 ? client_check_json(client, trigger->metadata) : result;
}

int weir_client_bind(struct weir_client *client, const struct weir_trigger *trigger,
                     char id[WEIR_TRIGGER_ID_BYTES])
{
    int result = trigger_check(client, trigger);
    if (result != 0)
        return result;
    struct client_trigger *made = calloc(1, sizeof *made);
    if (made == NULL || !trigger_make_id(made->id)) {
        free(made);
        return client_fail(client, -ENOMEM, "no memory or random numbers for another trigger");
    }
    const char *name_space =
        trigger->function_name_space != NULL ? trigger->function_name_space : client->name_space;
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_SPAN(span_text(made->id)),
        WIRE_SPAN(span_text(trigger->type)),
        WIRE_SPAN(span_text(trigger->function_id)),
        WIRE_SPAN(client_span(trigger->config)),
        WIRE_SPAN(client_span(trigger->metadata)),
        WIRE_SPAN(client_span_of(name_space)),
        WIRE_SPAN(client_span_of(trigger->type_name_space)),
    };
    result = registration_encode(client, &made->frame, WIRE_TRIGGER_REGISTER, fields);
    if (result == 0)
        result = registration_say(client, &made->frame);
    if (result != 0) {
        trigger_free(made);
        return result;
    }
    *client->triggers_end = made;
    client->triggers_end = &made->next;
    if (id != NULL)
        memcpy(id, made->id, sizeof made->id);
    return 0;
}

int weir_client_unbind(struct weir_client *client, const char *id)
{
    struct client_trigger **link = &client->triggers;
    while (*link != NULL && strcmp((*link)->id, id) != 0)
        link = &(*link)->next;
    struct client_trigger *trigger = *link;
    if (trigger == NULL)
        return 0;
    const struct wire_field fields[] = {WIRE_NUMBER(0), WIRE_SPAN(span_text(id))};
    int result = registration_unsay(client, WIRE_TRIGGER_UNREGISTER, fields);
    if (result != 0)
        return result;
    *link = trigger->next;
    if (client->triggers_end == &trigger->next)
        client->triggers_end = link;
    trigger_free(trigger);
    return 0;
}

/* ---- trigger types ---- */

static struct client_type **type_find(struct weir_client *client, struct span id)
{
    struct client_type **link = &client->types;
    while (*link != NULL && !span_equal(span_text((*link)->id), id))
        link = &(*link)->next;
    return link;
}

int weir_client_provide(struct weir_client *client, const struct weir_trigger_type *type)
{
    int result = type->on_bind == NULL || type->on_unbind == NULL
                     ? client_fail(client, -EINVAL, "a trigger type needs both callbacks")
                     : client_check_name(client, type->id, "trigger type");
    if (result == 0 && type->description != NULL && !json_is_utf8(span_text(type->description)))
        result = client_fail(client, -EINVAL, "the description is not UTF-8");
    if (result != 0)
        return result;
    size_t bytes = strlen(type->id) + 1;
    struct client_type *made = calloc(1, sizeof *made + bytes);
    if (made == NULL)
        return client_fail(client, -ENOMEM, "no memory for another trigger type");
    memcpy(made->id, type->id, bytes);
    made->on_bind = type->on_bind;
    made->on_unbind = type->on_unbind;
    made->context = type->context;
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_SPAN(client_span_of(client->name_space)),
        WIRE_SPAN(span_text(type->id)),
        WIRE_SPAN(type->description == NULL ? SPAN_LITERAL("") : span_text(type->description)),
        WIRE_NIL,
        WIRE_NIL,
    };
    result = registration_encode(client, &made->frame, WIRE_TRIGGER_TYPE_REGISTER, fields);
    if (result == 0)
        result = registration_say(client, &made->frame);
    if (result != 0) {
        type_free(made);
        return result;
    }
    struct client_type **link = type_find(client, span_text(type->id));
    struct client_type *earlier = *link;
    if (earlier != NULL) {
        made->next = earlier->next;
        type_free(earlier);
    }
    *link = made;
    return 0;
}

int weir_client_withdraw(struct weir_client *client, const char *type_id)
{
    struct client_type **link = type_find(client, span_text(type_id));
    struct client_type *type = *link;
    if (type == NULL)
        return 0;
    const struct wire_field fields[] = {WIRE_NUMBER(0),
                                        WIRE_SPAN(client_span_of(client->name_space)),
                                        WIRE_SPAN(span_text(type_id))};
    int result = registration_unsay(client, WIRE_TRIGGER_TYPE_UNREGISTER, fields);
    if (result != 0)
        return result;
    *link = type->next;
    type_free(type);
    return 0;
}

/* ---- what the gateway says ---- */

/* A NUL-terminated copy behind what is in `out`; "" without memory. */
static const char *keep_text(struct buffer *out, struct span text)
{
    size_t start = out->bytes;
    if (buffer_append(out, text) != WEIR_OK || buffer_append(out, span_of("", 1)) != WEIR_OK)
        return "";
    return out->data + start;
}

static void take_rejection(struct weir_client *client, const struct wire_message *message)
{
    struct span code = message->fields[1].span;
    struct client_function **link = function_find(client, message->fields[3].span);
    if (link == NULL || client->options.on_rejected == NULL)
        return;
    char code_text[80], id[NAME_BYTES_MAX + 1]; /* its own copy: the callback may unregister it */
    (void)snprintf(code_text, sizeof code_text, "%.*s", (int)(code.bytes < 79 ? code.bytes : 79),
                   code.bytes > 0 ? code.data : "");
    memcpy(id, (*link)->id, strlen((*link)->id) + 1);
    client->options.on_rejected(client->options.context, id, code_text);
}

static void take_bind_failure(struct weir_client *client, const struct wire_message *message)
{
    struct span id = message->fields[1].span;
    if (client->options.on_bind_failed == NULL || id.bytes >= WEIR_TRIGGER_ID_BYTES ||
        message->fields[4].span.data == NULL) /* nil: it is bound */
        return;
    char id_text[WEIR_TRIGGER_ID_BYTES];
    (void)snprintf(id_text, sizeof id_text, "%.*s", (int)id.bytes, id.data ? id.data : "");
    struct buffer text;
    const char *code, *sentence;
    buffer_init(&text, WIRE_FRAME_BYTES_MAX);
    (void)calls_read_error(&text, message->fields[4].span, &code, &sentence);
    client->options.on_bind_failed(client->options.context, id_text, code, sentence);
    buffer_fini(&text);
}

static void answer_bind(struct weir_client *client, const struct wire_message *message,
                        const char *refusal)
{
    struct buffer error;
    buffer_init(&error, 64 * 1024);
    struct span body = {0};
    if (refusal != NULL &&
        error_body_append(&error, SPAN_LITERAL("trigger_registration_failed"),
                          json_is_utf8(span_text(refusal)) ? span_text(refusal)
                                                           : SPAN_LITERAL("refused")) == WEIR_OK)
        body = buffer_span(&error);
    const struct wire_field fields[] = {WIRE_NUMBER(0), message->fields[1], message->fields[2],
                                        message->fields[3], WIRE_SPAN(body)};
    (void)client_append(client, WIRE_TRIGGER_RESULT, 0, fields);
    buffer_fini(&error);
}

static void take_bind(struct weir_client *client, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    const struct client_type *type = *type_find(client, fields[2].span);
    if (type == NULL) {
        answer_bind(client, message, "the worker does not provide this trigger type any more");
        return;
    }
    struct buffer text;
    buffer_init(&text, 4 * (size_t)NAME_BYTES_MAX);
    size_t room = fields[1].span.bytes + fields[3].span.bytes + fields[6].span.bytes + 16;
    const char *refusal = "the worker has no memory for another trigger";
    if (buffer_reserve(&text, room) == WEIR_OK) { /* what is kept does not move */
        const struct weir_binding binding = {
            .id = keep_text(&text, fields[1].span),
            .function_id = keep_text(&text, fields[3].span),
            .name_space = keep_text(&text, fields[6].span.bytes > 0 ? fields[6].span
                                                                    : SPAN_LITERAL("default")),
            .config = client_text(fields[4].span),
            .metadata = client_text(fields[5].span),
        };
        refusal = type->on_bind(type->context, &binding);
    }
    answer_bind(client, message, refusal);
    buffer_fini(&text);
}

static void take_unbind(struct weir_client *client, const struct wire_message *message)
{
    const struct client_type *type = *type_find(client, message->fields[2].span);
    struct buffer text;
    buffer_init(&text, 4 * (size_t)NAME_BYTES_MAX);
    if (type != NULL)
        type->on_unbind(type->context, keep_text(&text, message->fields[1].span));
    buffer_fini(&text);
}

bool registrations_take_frame(struct weir_client *client, const struct wire_message *message)
{
    switch (message->type) {
    case WIRE_FUNCTION_REJECTED:
        take_rejection(client, message);
        return true;
    case WIRE_TRIGGER_RESULT:
        take_bind_failure(client, message);
        return true;
    case WIRE_TRIGGER_BIND:
        take_bind(client, message);
        return true;
    case WIRE_TRIGGER_UNBIND:
        take_unbind(client, message);
        return true;
    default:
        return false;
    }
}

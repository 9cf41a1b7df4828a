#include "gateway/session_triggers.h"

#include <stdlib.h>

#include "gateway/parts.h"
#include "gateway/sessions.h"
#include "gateway/triggers.h"
#include "shm/error_body.h"
#include "shm/hash.h"

enum {
    TRIGGER_ID,
    TRIGGER_TYPE,
    TRIGGER_FUNCTION,
    TRIGGER_CONFIG,
    TRIGGER_METADATA,
    TRIGGER_SPACE,
    TRIGGER_PROVIDER_SPACE,
    TRIGGER_PARTS,
};

struct session_trigger {
    struct session_trigger *next, *previous;
    struct session_trigger *chain_next;
    struct trigger *running; /* of type `stream` only */
    uint32_t bytes[TRIGGER_PARTS];
    char text[];
};

enum { TYPE_SPACE, TYPE_NAME, TYPE_DESCRIPTION, TYPE_TRIGGER_FORMAT, TYPE_CALL_FORMAT, TYPE_PARTS };

struct session_trigger_type {
    struct session_trigger_type *next;
    uint32_t bytes[TYPE_PARTS];
    char text[];
};

static struct span trigger_part(const struct session_trigger *trigger, unsigned part)
{
    return parts_find(trigger->bytes, trigger->text, part);
}

static struct span type_part(const struct session_trigger_type *type, unsigned part)
{
    return parts_find(type->bytes, type->text, part);
}

static struct span session_space(const struct session *session)
{
    return session->name_space == NULL ? (struct span){0} : span_text(session->name_space);
}

/* Where its function is looked up; data NULL: default. */
static struct span trigger_space(const struct session *session,
                                 const struct session_trigger *trigger)
{
    struct span space = trigger_part(trigger, TRIGGER_SPACE);
    return space.data == NULL ? session_space(session) : space;
}

static struct span type_space(const struct session *session,
                              const struct session_trigger_type *type)
{
    struct span space = type_part(type, TYPE_SPACE);
    return space.data == NULL ? session_space(session) : space;
}

static bool space_is_blank(struct span space)
{
    return space.data != NULL && span_is_blank(space);
}

static bool name_fits(struct span name)
{
    return name.bytes > 0 && name.bytes <= NAME_BYTES_MAX;
}

/* ---- what the broker is told ---- */

static void session_post_trigger(const struct session *session,
                                 const struct session_trigger *trigger)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->id),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_ID)),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_TYPE)),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_FUNCTION)),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_CONFIG)),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_METADATA)),
        WIRE_SPAN(trigger_space(session, trigger)),
        WIRE_SPAN(trigger_part(trigger, TRIGGER_PROVIDER_SPACE)),
    };
    link_post(session->sessions->link, WIRE_TRIGGER_REGISTER, 0, fields);
}

static void session_post_trigger_gone(const struct session *session,
                                      const struct session_trigger *trigger)
{
    const struct wire_field fields[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(trigger_part(trigger, TRIGGER_ID))};
    link_post(session->sessions->link, WIRE_TRIGGER_UNREGISTER, 0, fields);
}

static void session_post_type(const struct session *session,
                              const struct session_trigger_type *type)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->id),
        WIRE_SPAN(type_space(session, type)),
        WIRE_SPAN(type_part(type, TYPE_NAME)),
        WIRE_SPAN(type_part(type, TYPE_DESCRIPTION)),
        WIRE_SPAN(type_part(type, TYPE_TRIGGER_FORMAT)),
        WIRE_SPAN(type_part(type, TYPE_CALL_FORMAT)),
    };
    link_post(session->sessions->link, WIRE_TRIGGER_TYPE_REGISTER, 0, fields);
}

static void session_post_type_gone(const struct session *session,
                                   const struct session_trigger_type *type)
{
    const struct wire_field fields[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(type_space(session, type)),
                                        WIRE_SPAN(type_part(type, TYPE_NAME))};
    link_post(session->sessions->link, WIRE_TRIGGER_TYPE_UNREGISTER, 0, fields);
}

/* Types first: a session may provide what its own triggers want. */
void session_announce_triggers(const struct session *session)
{
    const struct session_trigger_type *type = session->triggers.types;
    for (; type != NULL; type = type->next)
        session_post_type(session, type);
    const struct session_trigger *trigger = session->triggers.first;
    for (; trigger != NULL; trigger = trigger->next)
        session_post_trigger(session, trigger);
}

/* ---- answers to the owner ---- */

void session_refuse_trigger(struct session *session,
                            const struct session_trigger_registration *trigger, const char *code,
                            const char *sentence)
{
    struct buffer *out = &session->sessions->error;
    buffer_clear(out);
    counters_add(session->sessions->counters, COUNTER_REGISTRATIONS_REFUSED, 1);
    struct session_bind_result result = {
        .id = trigger->id,
        .type = trigger->type,
        .function = trigger->function,
        .error_json = SPAN_LITERAL("{\"code\":\"trigger_registration_failed\",\"message\":"
                                   "\"the gateway is out of memory\"}"),
    };
    if (error_body_append(out, span_text(code), span_text(sentence)) == WEIR_OK)
        result.error_json = buffer_span(out);
    session->transport->send_bind_result(session->peer, &result);
}

/* ---- running `stream` triggers ---- */

static bool trigger_is_stream(const struct session_trigger *trigger)
{
    const struct trigger_type *type = trigger_type_by_name(trigger_part(trigger, TRIGGER_TYPE));
    return type != NULL && type->kind == TRIGGER_STREAM;
}

/* Its config has been read before, when it was registered. False: no memory. */
static bool session_run_trigger(struct session *session, struct session_trigger *trigger)
{
    struct sessions *sessions = session->sessions;
    const char *problem;
    struct json_value config;
    struct trigger_binding binding = {
        .name_space = trigger_space(session, trigger),
        .function = trigger_part(trigger, TRIGGER_FUNCTION),
        .metadata = trigger_part(trigger, TRIGGER_METADATA),
    };
    if (sessions->runner.triggers == NULL)
        return true;
    buffer_clear(&sessions->names);
    if (json_scan(trigger_part(trigger, TRIGGER_CONFIG), JSON_DEPTH_MAX, &config, NULL) !=
            WEIR_OK ||
        trigger_config_read(TRIGGER_STREAM, config, &sessions->names, &binding.config, &problem) !=
            WEIR_OK)
        return false;
    trigger->running = sessions->runner.add(sessions->runner.triggers, &binding);
    return trigger->running != NULL;
}

/* ---- keeping triggers ---- */

static struct session_trigger **session_trigger_chain(const struct session *session, struct span id)
{
    return &session->triggers.chains[hash_bytes(session->id, id) % SESSION_TRIGGER_CHAINS];
}

static struct session_trigger *session_find_trigger(const struct session *session, struct span id)
{
    if (session->triggers.chains == NULL)
        return NULL;
    struct session_trigger *trigger = *session_trigger_chain(session, id);
    while (trigger != NULL && !span_equal(trigger_part(trigger, TRIGGER_ID), id))
        trigger = trigger->chain_next;
    return trigger;
}

static void session_enter_trigger(struct session *session, struct session_trigger *trigger)
{
    struct session_triggers *triggers = &session->triggers;
    struct session_trigger **chain =
        session_trigger_chain(session, trigger_part(trigger, TRIGGER_ID));
    trigger->chain_next = *chain;
    *chain = trigger;
    trigger->previous = triggers->last;
    if (triggers->last == NULL)
        triggers->first = trigger;
    else
        triggers->last->next = trigger;
    triggers->last = trigger;
    triggers->trigger_count++;
    session->function_bytes += parts_kept_bytes(trigger->bytes, TRIGGER_PARTS);
}

static void session_remove_trigger(struct session *session, struct session_trigger *trigger)
{
    struct session_triggers *triggers = &session->triggers;
    struct session_trigger **at = session_trigger_chain(session, trigger_part(trigger, TRIGGER_ID));
    while (*at != trigger) /* ends: every trigger is in its chain */
        at = &(*at)->chain_next;
    *at = trigger->chain_next;
    if (trigger->previous == NULL)
        triggers->first = trigger->next;
    else
        trigger->previous->next = trigger->next;
    if (trigger->next == NULL)
        triggers->last = trigger->previous;
    else
        trigger->next->previous = trigger->previous;
    triggers->trigger_count--;
    session->function_bytes -= parts_kept_bytes(trigger->bytes, TRIGGER_PARTS);
    if (trigger->running != NULL)
        session->sessions->runner.remove(trigger->running);
    free(trigger);
}

/* ---- registering triggers ---- */

/* The first thing wrong with it, or NULL. Everything in it is looked at before anything is kept. */
static const char *session_trigger_problem(struct session *session,
                                           const struct session_trigger_registration *trigger)
{
    const char *problem = NULL;
    struct trigger_config config;
    if (!name_fits(trigger->id) || !name_fits(trigger->type) || !name_fits(trigger->function))
        return "id, trigger_type and function_id must have 1 to 4096 bytes";
    if (trigger->name_space.bytes > NAME_BYTES_MAX ||
        trigger->provider_space.bytes > NAME_BYTES_MAX)
        return "a namespace is longer than 4096 bytes";
    const struct trigger_type *type = trigger_type_by_name(trigger->type);
    if (type == NULL)
        return NULL; /* its provider judges the config */
    struct buffer *names = &session->sessions->names;
    buffer_clear(names);
    enum weir_status status =
        trigger_config_read(type->kind, trigger->config, names, &config, &problem);
    if (status == WEIR_OK)
        return NULL;
    return status == WEIR_INVALID ? problem : "the gateway is out of memory";
}

static bool session_has_room(const struct session *session, const struct session_trigger *old,
                             size_t bytes)
{
    size_t kept = session->function_bytes;
    uint32_t count = session->triggers.trigger_count;
    if (old != NULL) {
        kept -= parts_kept_bytes(old->bytes, TRIGGER_PARTS);
        count--;
    }
    return count < SESSION_TRIGGERS_MAX && bytes <= SESSION_FUNCTIONS_BYTES_MAX - kept;
}

static struct session_trigger *session_make_trigger(struct session *session,
                                                    const struct span parts[TRIGGER_PARTS])
{
    struct session_triggers *triggers = &session->triggers;
    if (triggers->chains == NULL)
        triggers->chains = calloc(SESSION_TRIGGER_CHAINS, sizeof(struct session_trigger *));
    if (triggers->chains == NULL)
        return NULL;
    struct session_trigger *made = calloc(1, sizeof *made + parts_bytes(parts, TRIGGER_PARTS));
    if (made == NULL)
        return NULL;
    parts_keep(made->bytes, made->text, parts, TRIGGER_PARTS);
    if (!trigger_is_stream(made) || session_run_trigger(session, made))
        return made;
    free(made);
    return NULL;
}

static void session_keep_trigger(struct session *session,
                                 const struct session_trigger_registration *trigger)
{
    const struct span parts[TRIGGER_PARTS] = {
        trigger->id,
        trigger->type,
        trigger->function,
        trigger->config.kind == JSON_ABSENT ? SPAN_LITERAL("null") : trigger->config.text,
        trigger->metadata,
        trigger->name_space,
        trigger->provider_space,
    };
    struct session_trigger *old = session_find_trigger(session, trigger->id);
    if (!session_has_room(session, old, parts_bytes(parts, TRIGGER_PARTS))) {
        session_refuse_trigger(session, trigger, "trigger_registration_failed",
                               "a worker may have 10000 triggers, and 16 MiB of registrations");
        return;
    }
    struct session_trigger *made = session_make_trigger(session, parts);
    if (made == NULL) {
        session_refuse_trigger(session, trigger, "trigger_registration_failed",
                               "the gateway is out of memory");
        return;
    }
    if (old != NULL) {
        session_post_trigger_gone(session, old);
        session_remove_trigger(session, old);
    }
    session_enter_trigger(session, made);
    session_post_trigger(session, made);
}

void session_register_trigger(struct session *session,
                              const struct session_trigger_registration *trigger)
{
    if (space_is_blank(trigger->name_space) || space_is_blank(trigger->provider_space)) {
        session_refuse_trigger(session, trigger, "INVALID_NAMESPACE",
                               space_is_blank(trigger->name_space)
                                   ? "the namespace is blank"
                                   : "the trigger_namespace is blank");
        return;
    }
    const char *problem = session_trigger_problem(session, trigger);
    if (problem != NULL)
        session_refuse_trigger(session, trigger, "trigger_registration_failed", problem);
    else
        session_keep_trigger(session, trigger);
}

void session_unregister_trigger(struct session *session, struct span id)
{
    struct session_trigger *trigger = session_find_trigger(session, id);
    if (trigger == NULL)
        return;
    session_post_trigger_gone(session, trigger);
    session_remove_trigger(session, trigger);
}

/* ---- trigger types ---- */

static bool type_is(const struct session_trigger_type *type, struct span name_space,
                    struct span name)
{
    struct span space = type_part(type, TYPE_SPACE);
    return span_equal(type_part(type, TYPE_NAME), name) &&
           (name_space.data == NULL ? space.data == NULL
                                    : space.data != NULL && span_equal(space, name_space));
}

/* `*at` is removed. */
static void session_remove_type(struct session *session, struct session_trigger_type **at)
{
    struct session_trigger_type *type = *at;
    *at = type->next;
    if (type->next == NULL)
        session->triggers.types_end = at;
    session->triggers.type_count--;
    session->function_bytes -= parts_kept_bytes(type->bytes, TYPE_PARTS);
    free(type);
}

/* NULL: it is one of weir's own, does not fit, or there is no memory. */
static struct session_trigger_type *session_make_type(const struct session *session,
                                                      const struct session_trigger_type *old,
                                                      const struct span parts[TYPE_PARTS])
{
    size_t bytes = parts_bytes(parts, TYPE_PARTS);
    size_t kept = session->function_bytes;
    uint32_t count = session->triggers.type_count;
    if (old != NULL) {
        kept -= parts_kept_bytes(old->bytes, TYPE_PARTS);
        count--;
    }
    if (trigger_type_by_name(parts[TYPE_NAME]) != NULL || !name_fits(parts[TYPE_NAME]) ||
        parts[TYPE_SPACE].bytes > NAME_BYTES_MAX || count >= SESSION_TRIGGER_TYPES_MAX ||
        bytes > SESSION_FUNCTIONS_BYTES_MAX - kept)
        return NULL;
    struct session_trigger_type *made = calloc(1, sizeof *made + bytes);
    if (made != NULL)
        parts_keep(made->bytes, made->text, parts, TYPE_PARTS);
    return made;
}

/* It replaces what the session has under that name; a provider of another session is replaced by
 * the broker. */
void session_register_trigger_type(struct session *session,
                                   const struct session_trigger_type_registration *type)
{
    struct session_triggers *triggers = &session->triggers;
    struct counters *counters = session->sessions->counters;
    if (space_is_blank(type->name_space)) {
        counters_add(counters, COUNTER_WORKER_MESSAGES_IGNORED, 1);
        return;
    }
    const struct span parts[TYPE_PARTS] = {type->name_space, type->type, type->description,
                                           type->trigger_request_format, type->call_request_format};
    struct session_trigger_type **old = &triggers->types;
    while (*old != NULL && !type_is(*old, type->name_space, type->type))
        old = &(*old)->next;
    struct session_trigger_type *made = session_make_type(session, *old, parts);
    if (made == NULL) {
        counters_add(counters, COUNTER_REGISTRATIONS_REFUSED, 1);
        (void)worker_log_refusal(&session->sessions->log, "trigger_type_refused", type->type);
        return;
    }
    if (*old != NULL)
        session_remove_type(session, old);
    if (triggers->types_end == NULL)
        triggers->types_end = &triggers->types;
    *triggers->types_end = made;
    triggers->types_end = &made->next;
    triggers->type_count++;
    session->function_bytes += parts_kept_bytes(made->bytes, TYPE_PARTS);
    session_post_type(session, made);
}

void session_unregister_trigger_type(struct session *session, struct span name_space,
                                     struct span type)
{
    struct session_trigger_type **at = &session->triggers.types;
    while (*at != NULL) {
        if (name_space.data == NULL ? span_equal(type_part(*at, TYPE_NAME), type)
                                    : type_is(*at, name_space, type)) {
            session_post_type_gone(session, *at);
            session_remove_type(session, at);
        } else {
            at = &(*at)->next;
        }
    }
}

bool session_answer_bind(struct session *session, const struct session_bind_result *result)
{
    const struct session_trigger_type *type = session->triggers.types;
    while (type != NULL && !span_equal(type_part(type, TYPE_NAME), result->type))
        type = type->next;
    if (type == NULL || !name_fits(result->id) || !name_fits(result->function))
        return false;
    struct span error_json = result->error_json;
    if (error_json.bytes > BIND_ERROR_BYTES_MAX)
        error_json = SPAN_LITERAL("{\"code\":\"trigger_registration_failed\",\"message\":"
                                  "\"the provider's reason is longer than 64 KiB\"}");
    const struct wire_field fields[] = {WIRE_NUMBER(session->id), WIRE_SPAN(result->id),
                                        WIRE_SPAN(result->type), WIRE_SPAN(result->function),
                                        WIRE_SPAN(error_json)};
    link_post(session->sessions->link, WIRE_TRIGGER_RESULT, 0, fields);
    return true;
}

/* ---- another namespace ---- */

/* Its provider is looked up in the session's namespace first, unless it is addressed. */
static bool trigger_moves(const struct session_trigger *trigger)
{
    return trigger_part(trigger, TRIGGER_SPACE).data == NULL ||
           (trigger_part(trigger, TRIGGER_PROVIDER_SPACE).data == NULL &&
            trigger_type_by_name(trigger_part(trigger, TRIGGER_TYPE)) == NULL);
}

void session_withdraw_triggers(struct session *session)
{
    struct session_trigger *trigger = session->triggers.first;
    for (; trigger != NULL; trigger = trigger->next) {
        if (trigger_moves(trigger))
            session_post_trigger_gone(session, trigger);
    }
    const struct session_trigger_type *type = session->triggers.types;
    for (; type != NULL; type = type->next) {
        if (type_part(type, TYPE_SPACE).data == NULL)
            session_post_type_gone(session, type);
    }
}

/* A running trigger is made anew; what waited for its handler is taken to be for the old one. */
static void session_move_running(struct session *session, struct session_trigger *trigger)
{
    struct trigger *old = trigger->running;
    if (old == NULL || trigger_part(trigger, TRIGGER_SPACE).data != NULL)
        return;
    if (session_run_trigger(session, trigger))
        session->sessions->runner.remove(old);
    else
        trigger->running = old; /* it goes on in the old namespace: no memory for another */
}

void session_move_triggers(struct session *session)
{
    const struct session_trigger_type *type = session->triggers.types;
    for (; type != NULL; type = type->next) {
        if (type_part(type, TYPE_SPACE).data == NULL)
            session_post_type(session, type);
    }
    struct session_trigger *trigger = session->triggers.first;
    for (; trigger != NULL; trigger = trigger->next) {
        if (!trigger_moves(trigger))
            continue;
        session_move_running(session, trigger);
        session_post_trigger(session, trigger);
    }
}

void session_close_triggers(struct session *session)
{
    while (session->triggers.first != NULL) /* each turn takes one off */
        session_remove_trigger(session, session->triggers.first);
    while (session->triggers.types != NULL)
        session_remove_type(session, &session->triggers.types);
    free(session->triggers.chains);
}

/* ---- from the broker ---- */

/* Nothing is said of the default namespace (PROTOCOL 2.11). */
static struct span space_unless_default(struct span space)
{
    return space.bytes == 0 || span_equal(space, SPAN_LITERAL("default")) ? (struct span){0}
                                                                          : space;
}

static void session_take_bind(struct session *session, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    const struct session_bind bind = {
        .id = fields[1].span,
        .type = fields[2].span,
        .function = fields[3].span,
        .config = fields[4].span.data == NULL ? SPAN_LITERAL("null") : fields[4].span,
        .metadata = fields[5].span,
        .name_space = space_unless_default(fields[6].span),
        .provider_space = space_unless_default(fields[7].span),
    };
    session->transport->send_bind(session->peer, &bind);
}

/* Success is silent. A trigger its provider refuses stays, for another one may come; what runs here
 * has no provider, so the broker itself has no room for it, and it must not go on unlisted. */
static void session_take_bind_result(struct session *session, const struct wire_message *message)
{
    const struct session_bind_result result = {
        .id = message->fields[1].span,
        .type = message->fields[2].span,
        .function = message->fields[3].span,
        .error_json = message->fields[4].span,
    };
    if (result.error_json.data == NULL)
        return;
    struct session_trigger *trigger = session_find_trigger(session, result.id);
    if (trigger != NULL && trigger->running != NULL)
        session_remove_trigger(session, trigger);
    session->transport->send_bind_result(session->peer, &result);
}

void session_take_trigger_message(struct session *session, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    if (message->type == WIRE_TRIGGER_BIND)
        session_take_bind(session, message);
    else if (message->type == WIRE_TRIGGER_UNBIND)
        session->transport->send_unbind(session->peer, fields[1].span, fields[2].span);
    else
        session_take_bind_result(session, message);
}

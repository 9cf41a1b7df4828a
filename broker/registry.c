#include "broker/registry.h"

#include <stdlib.h>

#include "broker/log.h"
#include "broker/registry_state.h"
#include "shm/error_body.h"
#include "shm/hash.h"

const struct registry_limits registry_limits_default = {
    .session_types_max = SESSION_TRIGGER_TYPES_MAX,
    .session_triggers_max = SESSION_TRIGGERS_MAX,
    .own_triggers_max = OWN_TRIGGERS_MAX,
    .bytes_each_max = TRIGGER_BYTES_MAX,
    .bytes_max = TRIGGERS_BYTES_MAX,
};

/* ---- messages out ---- */

/* A peer that is gone needs not be told: its sessions, and all that hangs on them, follow it. What
 * is sent from here always fits a frame (TRIGGER_BYTES_MAX). */
void registry_send(const struct registry *registry, struct peer_handle peer, enum wire_type type,
                   const struct wire_field *fields)
{
    (void)registry->output.send(registry->output.context, peer, type, 0, fields);
}

static void registry_refuse(struct registry *registry, const struct session *session,
                            struct span id, struct span type, struct span function,
                            const char *sentence)
{
    struct span body =
        SPAN_LITERAL("{\"code\":\"trigger_registration_failed\",\"message\":\"no memory\"}");
    buffer_clear(&registry->text);
    if (error_body_append(&registry->text, SPAN_LITERAL("trigger_registration_failed"),
                          span_text(sentence)) == WEIR_OK)
        body = buffer_span(&registry->text);
    const struct wire_field fields[] = {WIRE_NUMBER(session->number), WIRE_SPAN(id),
                                        WIRE_SPAN(type), WIRE_SPAN(function), WIRE_SPAN(body)};
    registry->counters->registrations_refused++;
    registry_send(registry, session->peer, WIRE_TRIGGER_RESULT, fields);
}

/* ---- groups ---- */

static uint64_t name_hash(const struct registry *registry, struct span name)
{
    return hash_bytes(registry->hash_seed, name);
}

static struct trigger_group *group_make(struct span name, const struct trigger_type *own)
{
    struct trigger_group *group = calloc(1, sizeof *group + name.bytes);
    if (!group)
        return NULL;
    group->own = own;
    group->triggers_end = &group->triggers;
    group->name_bytes = name.bytes;
    if (name.bytes > 0)
        memcpy(group->name, name.data, name.bytes);
    return group;
}

static struct trigger_group *group_find(const struct registry *registry, struct span name)
{
    const struct trigger_type *own = trigger_type_by_name(name);
    if (own)
        return registry->own_groups[own->kind];
    struct table_node *node = table_first(&registry->groups, name_hash(registry, name));
    for (; node; node = table_next(node)) {
        struct trigger_group *group = TABLE_OWNER(node, struct trigger_group, node);
        if (span_equal(trigger_group_name(group), name))
            return group;
    }
    return NULL;
}

/* NULL: no memory. */
static struct trigger_group *group_find_or_make(struct registry *registry, struct span name)
{
    struct trigger_group *group = group_find(registry, name);
    if (group)
        return group;
    group = group_make(name, NULL);
    if (group)
        table_insert(&registry->groups, &group->node, name_hash(registry, name));
    return group;
}

static void group_drop_if_empty(struct registry *registry, struct trigger_group *group)
{
    if (group->own || group->triggers || group->providers)
        return;
    table_remove(&registry->groups, &group->node);
    free(group);
}

/* ---- owners ---- */

/* NULL: no memory. */
static struct trigger_owner *session_owner(struct session *session)
{
    if (!session->triggers)
        session->triggers = calloc(1, sizeof *session->triggers);
    if (session->triggers)
        session->triggers->session = session;
    return session->triggers;
}

static bool name_is_acceptable(struct span name)
{
    return name.bytes > 0 && name.bytes <= NAME_BYTES_MAX && json_is_utf8(name);
}

/* `freed`: of what it replaces. */
static const char *bytes_problem(const struct registry *registry, uint64_t bytes, uint64_t freed)
{
    if (bytes > registry->limits.bytes_each_max)
        return "larger than a trigger or trigger type may be";
    if (registry->bytes - freed + bytes > registry->limits.bytes_max)
        return "all triggers and trigger types together are as large as they may be";
    return NULL;
}

/* ---- triggers ---- */

static struct trigger *trigger_find(const struct registry *registry,
                                    const struct trigger_owner *owner, struct span id)
{
    struct table_node *node = table_first(&registry->all, name_hash(registry, id));
    for (; node; node = table_next(node)) {
        struct trigger *trigger = TABLE_OWNER(node, struct trigger, node);
        if (trigger->owner == owner && span_equal(trigger->id, id))
            return trigger;
    }
    return NULL;
}

static void trigger_link(struct registry *registry, struct trigger *trigger,
                         struct trigger_owner *owner, struct trigger_group *group)
{
    trigger->owner = owner;
    trigger->link_of_owner = &owner->triggers;
    trigger->next_of_owner = owner->triggers;
    if (owner->triggers)
        owner->triggers->link_of_owner = &trigger->next_of_owner;
    owner->triggers = trigger;
    owner->trigger_count++;
    trigger->group = group;
    trigger->link_of_group = group->triggers_end;
    *group->triggers_end = trigger;
    group->triggers_end = &trigger->next_of_group;
    group->trigger_count++;
    table_insert(&registry->all, &trigger->node, name_hash(registry, trigger->id));
    registry->bytes += trigger->bytes;
    registry->counters->triggers++;
    registry->counters->triggers_parked++;
}

static void trigger_unlink(struct registry *registry, struct trigger *trigger)
{
    *trigger->link_of_owner = trigger->next_of_owner;
    if (trigger->next_of_owner)
        trigger->next_of_owner->link_of_owner = trigger->link_of_owner;
    trigger->owner->trigger_count--;
    *trigger->link_of_group = trigger->next_of_group;
    if (trigger->next_of_group)
        trigger->next_of_group->link_of_group = trigger->link_of_group;
    else
        trigger->group->triggers_end = trigger->link_of_group;
    trigger->group->trigger_count--;
    table_remove(&registry->all, &trigger->node);
    registry->bytes -= trigger->bytes;
    registry->counters->triggers--;
    registry->counters->triggers_parked -= !trigger_is_live(trigger);
}

static void trigger_remove(struct registry *registry, struct trigger *trigger)
{
    struct trigger_group *group = trigger->group;
    bool was_bound = trigger_is_live(trigger);
    trigger_set_waits(registry, trigger, false);
    if (!group->own)
        trigger_park(registry, trigger);
    trigger_unlink(registry, trigger);
    if (group->own) {
        if (!own_stop(registry, trigger))
            free(trigger);
        return;
    }
    if (was_bound) /* else it was in nobody's way */
        trigger_settle_siblings(registry, trigger);
    free(trigger);
    group_drop_if_empty(registry, group);
}

/* A copy of what TRIGGER_REGISTER says. NULL: no memory. */
static struct trigger *trigger_make(struct registry *registry, const struct wire_message *message,
                                    const struct trigger_config *config, uint64_t bytes)
{
    struct trigger *trigger = calloc(1, bytes);
    if (!trigger)
        return NULL;
    char *end = trigger->text;
    const struct wire_field *fields = message->fields;
    struct span config_text = fields[4].span.data ? fields[4].span : SPAN_LITERAL("null");
    trigger->bytes = bytes;
    trigger->serial = ++registry->serial;
    trigger->id = span_put(&end, fields[1].span);
    trigger->function = span_put(&end, fields[3].span);
    trigger->config = span_put(&end, config_text);
    trigger->metadata = span_put(&end, fields[5].span);
    trigger->space = span_put(&end, space_or_default(fields[6].span));
    trigger->provider_space = span_put(&end, fields[7].span);
    trigger->stream = span_put(&end, config->stream);
    trigger->condition = span_put(&end, config->condition);
    weir_assert(end <= (char *)trigger + bytes);
    return trigger;
}

static uint64_t trigger_bytes(const struct wire_message *message,
                              const struct trigger_config *config)
{
    uint64_t bytes =
        sizeof(struct trigger) + sizeof(struct trigger_group) + sizeof "null" + sizeof "default";
    for (unsigned index = 1; index < 8; index++)
        bytes += message->fields[index].span.bytes;
    return bytes + config->stream.bytes + config->condition.bytes;
}

/* What is wrong with TRIGGER_REGISTER, or NULL. */
static const char *trigger_problem(struct registry *registry, const struct wire_message *message,
                                   struct trigger_config *config)
{
    const struct wire_field *fields = message->fields;
    const struct trigger_type *own = trigger_type_by_name(fields[2].span);
    struct json_value value = {0};
    const char *problem = NULL;
    if (!name_is_acceptable(fields[1].span) || !name_is_acceptable(fields[2].span) ||
        !name_is_acceptable(fields[3].span) ||
        !name_is_acceptable(space_or_default(fields[6].span)) ||
        (fields[7].span.data && !name_is_acceptable(fields[7].span)))
        return "id, type, function id or namespace is empty, not UTF-8 or longer than 4096 bytes";
    if (!own)
        return NULL;
    if (fields[4].span.data && json_scan(fields[4].span, JSON_DEPTH_MAX, &value, NULL) != WEIR_OK)
        return "config is not JSON";
    buffer_clear(&registry->scratch);
    enum weir_status status =
        trigger_config_read(own->kind, value, &registry->scratch, config, &problem);
    if (status == WEIR_INVALID)
        return problem;
    return status == WEIR_OK ? NULL : "config is too large, or memory is short";
}

/* The away gate that ends with TRIGGER_REGISTER; NULL: none. */
static const struct trigger *trigger_away(const struct registry *registry,
                                          const struct wire_message *message,
                                          const struct trigger_config *config)
{
    const struct wire_field *fields = message->fields;
    const struct trigger_type *own = trigger_type_by_name(fields[2].span);
    if (!own || own->kind != TRIGGER_JOIN)
        return NULL;
    return gate_find_away(registry, space_or_default(fields[6].span), fields[3].span,
                          config->stream);
}

/* All that counts against the bound of its own type. */
static uint64_t group_taken(const struct registry *registry, const struct trigger_group *group)
{
    uint64_t away = group->own->kind == TRIGGER_JOIN ? registry->counters->gates_away : 0;
    return group->trigger_count + away;
}

/* A bound that TRIGGER_REGISTER would exceed, or NULL. `earlier` and `away` (may be NULL) are to be
 * replaced. */
static const char *trigger_bound(const struct registry *registry, const struct session *session,
                                 struct span type, uint64_t bytes, const struct trigger *earlier,
                                 const struct trigger *away)
{
    const struct trigger_group *group = group_find(registry, type);
    const struct trigger_owner *owner = session->triggers;
    bool is_bounded = group && group->own && group->own->kind != TRIGGER_STREAM;
    if (owner && owner->trigger_count - (earlier != NULL) >= registry->limits.session_triggers_max)
        return "the worker has as many triggers as a worker may have";
    if (is_bounded &&
        group_taken(registry, group) - (earlier && earlier->group == group) - (away != NULL) >=
            registry->limits.own_triggers_max)
        return "there are as many triggers of this type as there may be";
    return bytes_problem(registry, bytes,
                         (earlier ? earlier->bytes : 0) + (away ? away->bytes : 0));
}

/* `earlier` is to be replaced by it. */
static const char *trigger_add(struct registry *registry, struct session *session,
                               const struct wire_message *message, const struct trigger *earlier)
{
    struct trigger_config config = {0};
    const char *problem = trigger_problem(registry, message, &config);
    if (problem)
        return problem;
    uint64_t bytes = trigger_bytes(message, &config);
    problem = trigger_bound(registry, session, message->fields[2].span, bytes, earlier,
                            trigger_away(registry, message, &config));
    if (problem)
        return problem;
    struct trigger_owner *owner = session_owner(session);
    struct trigger *trigger = owner ? trigger_make(registry, message, &config, bytes) : NULL;
    struct trigger_group *group =
        trigger ? group_find_or_make(registry, message->fields[2].span) : NULL;
    if (!group) {
        free(trigger);
        return "no memory";
    }
    trigger_link(registry, trigger, owner, group);
    if (!group->own) {
        trigger_settle(registry, trigger);
    } else if (!own_start(registry, trigger)) {
        trigger_remove(registry, trigger);
        return "no memory";
    }
    return NULL;
}

/* The new bind is there before the one it replaces has gone: a gate stays shut, leaves stay
 * wanted. */
static void trigger_register(struct registry *registry, struct session *session,
                             const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct trigger *earlier = trigger_find(registry, session->triggers, fields[1].span);
    const char *problem = trigger_add(registry, session, message, earlier);
    if (earlier)
        trigger_remove(registry, earlier);
    if (problem)
        registry_refuse(registry, session, fields[1].span, fields[2].span, fields[3].span, problem);
}

static void trigger_unregister(struct registry *registry, struct session *session,
                               const struct wire_message *message)
{
    struct trigger *trigger = trigger_find(registry, session->triggers, message->fields[1].span);
    if (trigger)
        trigger_remove(registry, trigger);
}

/* GATE_BIND of a gateway: a gate that was away before this broker was there. */
static enum weir_status gate_take(struct registry *registry, const struct wire_message *message)
{
    const struct wire_field *fields = message->fields;
    struct span space = space_or_default(fields[1].span);
    const struct trigger_group *group = registry->own_groups[TRIGGER_JOIN];
    uint64_t bytes = sizeof(struct trigger) + sizeof "default";
    for (unsigned index = 1; index < 6; index++)
        bytes += fields[index].span.bytes;
    if (!name_is_acceptable(space) || !name_is_acceptable(fields[2].span))
        return WEIR_INVALID;
    bool fits = group_taken(registry, group) < registry->limits.own_triggers_max &&
                !bytes_problem(registry, bytes, 0);
    struct trigger *trigger = fits ? calloc(1, bytes) : NULL;
    if (!trigger) {
        log_line("event=gate_not_kept reason=\"too many, too large, or no memory\"");
        return WEIR_OK; /* whoever knows it keeps it */
    }
    char *end = trigger->text;
    trigger->bytes = bytes;
    trigger->serial = ++registry->serial;
    trigger->space = span_put(&end, space);
    trigger->function = span_put(&end, fields[2].span);
    trigger->stream = span_put(&end, fields[3].span);
    trigger->condition = span_put(&end, fields[4].span);
    trigger->metadata = span_put(&end, fields[5].span);
    if (!gate_remember(registry, trigger))
        free(trigger);
    return WEIR_OK;
}

/* The bind that a provider's answer is about; NULL: it has none, or no more. */
static struct trigger *trigger_answered(const struct registry *registry,
                                        const struct trigger_owner *provider,
                                        const struct wire_message *message)
{
    struct span id = message->fields[1].span;
    struct span function = message->fields[3].span;
    struct table_node *node = table_first(&registry->all, name_hash(registry, id));
    for (; node; node = table_next(node)) {
        struct trigger *trigger = TABLE_OWNER(node, struct trigger, node);
        if (trigger->state == TRIGGER_BOUND && trigger->provider &&
            trigger->provider->owner == provider && span_equal(trigger->id, id) &&
            span_equal(trigger_group_name(trigger->group), message->fields[2].span) &&
            (function.bytes == 0 || span_equal(trigger->function, function)))
            return trigger;
    }
    return NULL;
}

static void trigger_result(struct registry *registry, struct session *session,
                           const struct wire_message *message)
{
    struct span error = message->fields[4].span;
    struct trigger *trigger = NULL;
    if (session->triggers && error.data)
        trigger = trigger_answered(registry, session->triggers, message);
    if (!trigger)
        return;
    trigger_set_state(registry, trigger, TRIGGER_REFUSED);
    const struct session *owner = trigger->owner->session;
    const struct wire_field fields[] = {WIRE_NUMBER(owner->number), WIRE_SPAN(trigger->id),
                                        WIRE_SPAN(trigger_group_name(trigger->group)),
                                        WIRE_SPAN(trigger->function), WIRE_SPAN(error)};
    registry_send(registry, owner->peer, WIRE_TRIGGER_RESULT, fields);
    trigger_settle_siblings(registry, trigger);
}

/* ---- providers ---- */

static struct trigger_provider *provider_make(struct span space, const struct wire_message *message,
                                              uint64_t bytes)
{
    struct trigger_provider *provider = calloc(1, bytes);
    if (!provider)
        return NULL;
    char *end = provider->text;
    provider->bytes = bytes;
    provider->space = span_put(&end, space);
    provider->description = span_put(&end, message->fields[3].span);
    provider->config_schema = span_put(&end, message->fields[4].span);
    provider->call_schema = span_put(&end, message->fields[5].span);
    return provider;
}

static void provider_link(struct registry *registry, struct trigger_provider *provider,
                          struct trigger_owner *owner, struct trigger_group *group)
{
    provider->owner = owner;
    provider->link_of_owner = &owner->providers;
    provider->next_of_owner = owner->providers;
    if (owner->providers)
        owner->providers->link_of_owner = &provider->next_of_owner;
    owner->providers = provider;
    owner->provider_count++;
    provider->group = group;
    provider->link_of_group = &group->providers;
    provider->next_of_group = group->providers;
    if (group->providers)
        group->providers->link_of_group = &provider->next_of_group;
    group->providers = provider;
    table_insert(&registry->providers, &provider->node,
                 provider_hash(registry, group, provider->space));
    registry->bytes += provider->bytes;
    registry->counters->trigger_types++;
}

/* Its binds are parked. The group stays, empty or not. */
static void provider_remove(struct registry *registry, struct trigger_provider *provider)
{
    struct trigger *trigger = provider->group->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        if (trigger->provider == provider)
            trigger_park(registry, trigger);
    *provider->link_of_owner = provider->next_of_owner;
    if (provider->next_of_owner)
        provider->next_of_owner->link_of_owner = provider->link_of_owner;
    provider->owner->provider_count--;
    *provider->link_of_group = provider->next_of_group;
    if (provider->next_of_group)
        provider->next_of_group->link_of_group = provider->link_of_group;
    table_remove(&registry->providers, &provider->node);
    registry->bytes -= provider->bytes;
    registry->counters->trigger_types--;
    free(provider);
}

/* The type is given up: what is parked by it may find another provider. */
static void provider_give_up(struct registry *registry, struct trigger_provider *provider)
{
    struct trigger_group *group = provider->group;
    provider_remove(registry, provider);
    group_settle(registry, group);
    group_drop_if_empty(registry, group);
}

static const char *provider_add(struct registry *registry, struct session *session,
                                const struct wire_message *message)
{
    struct span space = space_or_default(message->fields[1].span);
    struct span name = message->fields[2].span;
    uint64_t bytes = sizeof(struct trigger_provider) + sizeof(struct trigger_group) + space.bytes;
    for (unsigned index = 2; index < 6; index++)
        bytes += message->fields[index].span.bytes;
    struct trigger_owner *owner = session_owner(session);
    struct trigger_group *group = owner ? group_find_or_make(registry, name) : NULL;
    if (!group)
        return "no memory";
    struct trigger_provider *earlier = group_provider(registry, group, space);
    bool is_own = earlier && earlier->owner == owner;
    const char *problem = bytes_problem(registry, bytes, earlier ? earlier->bytes : 0);
    if (!problem && !is_own && owner->provider_count >= registry->limits.session_types_max)
        problem = "the worker has as many trigger types as a worker may have";
    struct trigger_provider *provider = problem ? NULL : provider_make(space, message, bytes);
    if (!problem && !provider)
        problem = "no memory";
    if (problem) {
        group_drop_if_empty(registry, group);
        return problem;
    }
    if (earlier)
        provider_remove(registry, earlier);
    provider_link(registry, provider, owner, group);
    group_settle(registry, group);
    return NULL;
}

static void provider_register(struct registry *registry, struct session *session,
                              const struct wire_message *message)
{
    struct span name = message->fields[2].span;
    const char *problem = NULL;
    if (!name_is_acceptable(name) || !name_is_acceptable(space_or_default(message->fields[1].span)))
        problem = "type or namespace is empty, not UTF-8 or longer than 4096 bytes";
    else if (trigger_type_by_name(name))
        problem = "the type is the server's own";
    else
        problem = provider_add(registry, session, message);
    if (problem)
        registry_refuse(registry, session, name, name, SPAN_LITERAL(""), problem);
}

static void provider_unregister(struct registry *registry, const struct session *session,
                                const struct wire_message *message)
{
    struct trigger_group *group = group_find(registry, message->fields[2].span);
    struct trigger_provider *provider =
        group ? group_provider(registry, group, space_or_default(message->fields[1].span)) : NULL;
    if (provider && provider->owner == session->triggers)
        provider_give_up(registry, provider);
}

/* ---- sessions come and go ---- */

static void registry_session_opened(void *context, struct session *session)
{
    registry_tell_worker(context, session, "worker_connected");
}

/* In another namespace other providers come first. */
static void registry_session_described(void *context, struct session *session)
{
    struct registry *registry = context;
    struct trigger *trigger = session->triggers ? session->triggers->triggers : NULL;
    for (; trigger; trigger = trigger->next_of_owner)
        if (!trigger->group->own && !trigger->provider_space.data)
            trigger_settle(registry, trigger);
    registry_tell_worker(registry, session, "worker_metadata_updated");
}

/* PROTOCOL 2.12: its triggers, then its types. */
static void registry_session_gone(void *context, struct session *session)
{
    struct registry *registry = context;
    struct trigger_owner *owner = session->triggers;
    if (owner) {
        owner->is_going = true;
        while (owner->triggers)
            /* Each takes the head off the list. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
            trigger_remove(registry, owner->triggers);
        while (owner->providers)
            /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
            provider_give_up(registry, owner->providers);
        free(owner);
        session->triggers = NULL;
    }
    registry_tell_worker(registry, session, "worker_disconnected");
}

/* ---- messages in ---- */

enum weir_status registry_take(struct registry *registry, struct peer_handle peer,
                               const struct wire_message *message)
{
    struct session *session = routes_session(registry->routes, peer, message->fields[0].number);
    switch (message->type) {
    case WIRE_TRIGGER_TYPE_REGISTER:
        if (session)
            provider_register(registry, session, message);
        return WEIR_OK;
    case WIRE_TRIGGER_TYPE_UNREGISTER:
        if (session)
            provider_unregister(registry, session, message);
        return WEIR_OK;
    case WIRE_TRIGGER_REGISTER:
        if (session)
            trigger_register(registry, session, message);
        return WEIR_OK;
    case WIRE_TRIGGER_UNREGISTER:
        if (session)
            trigger_unregister(registry, session, message);
        return WEIR_OK;
    case WIRE_TRIGGER_RESULT:
        if (session)
            trigger_result(registry, session, message);
        return WEIR_OK;
    case WIRE_GATE_BIND:
        return gate_take(registry, message);
    default:
        return WEIR_INVALID;
    }
}

void registry_tick(struct registry *registry, uint64_t now_ms)
{
    size_t bucket = 0;
    struct table_node *node = NULL;
    while (registry->waiting_count > 0 && (node = table_walk(&registry->all, &bucket, node))) {
        struct trigger *trigger = TABLE_OWNER(node, struct trigger, node);
        if (trigger->waits)
            trigger_settle(registry, trigger);
    }
    registry_check_functions(registry, now_ms);
}

/* ---- what the listings read ---- */

const struct table *registry_all(const struct registry *registry)
{
    return &registry->all;
}

const struct table *registry_providers(const struct registry *registry)
{
    return &registry->providers;
}

const struct trigger_group *registry_group(const struct registry *registry, struct span name)
{
    return group_find(registry, name);
}

const struct trigger *registry_live(const struct registry *registry, struct span id)
{
    struct table_node *node = table_first(&registry->all, name_hash(registry, id));
    for (; node; node = table_next(node)) {
        const struct trigger *trigger = TABLE_OWNER(node, struct trigger, node);
        if (trigger_is_live(trigger) && span_equal(trigger->id, id))
            return trigger;
    }
    return NULL;
}

/* ---- open and close ---- */

static bool own_groups_make(struct registry *registry)
{
    size_t count = 0;
    const struct trigger_type *types = trigger_types_all(&count);
    for (size_t index = 0; index < count; index++) {
        struct trigger_group *group = group_make((struct span){0}, &types[index]);
        if (!group)
            return false;
        registry->own_groups[types[index].kind] = group;
    }
    return true;
}

enum weir_status registry_open(struct registry **registry, const struct registry_options *options,
                               struct weir_error *error)
{
    struct registry *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for triggers");
    opened->routes = options->routes;
    opened->deliveries = options->deliveries;
    opened->output = options->output;
    opened->counters = options->counters;
    opened->limits = options->limits ? *options->limits : registry_limits_default;
    opened->hash_seed = options->hash_seed;
    opened->forgets_gates = options->forgets_gates;
    buffer_init(&opened->scratch, opened->limits.bytes_each_max + 1);
    buffer_init(&opened->text, 1024 * 1024);
    if (table_init(&opened->all) != WEIR_OK || table_init(&opened->groups) != WEIR_OK ||
        table_init(&opened->providers) != WEIR_OK || !own_groups_make(opened)) {
        registry_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for triggers");
    }
    const struct routes_session_observer observer = {
        registry_session_opened, registry_session_described, registry_session_gone, opened};
    routes_observe_sessions(opened->routes, &observer);
    routes_use_registry(opened->routes, opened);
    *registry = opened;
    return WEIR_OK;
}

/* Nobody is told of anything any more. */
static void registry_forget_sessions(struct registry *registry)
{
    size_t bucket = 0;
    struct table_node *node = NULL;
    while ((node = table_walk(routes_sessions(registry->routes), &bucket, node))) {
        struct session *session = TABLE_OWNER(node, struct session, node);
        if (session->triggers)
            session->triggers->is_going = true;
    }
    bucket = 0;
    node = NULL;
    while ((node = table_walk(routes_sessions(registry->routes), &bucket, node))) {
        struct session *session = TABLE_OWNER(node, struct session, node);
        if (session->triggers)
            registry_session_gone(registry, session);
    }
}

void registry_close(struct registry *registry)
{
    if (!registry)
        return;
    routes_observe_sessions(registry->routes, &(struct routes_session_observer){0});
    routes_use_registry(registry->routes, NULL);
    registry->leave_observer = (struct registry_leave_observer){0};
    memset(registry->is_gate, 0, sizeof registry->is_gate);
    registry->forgets_gates = true;
    registry_forget_sessions(registry);
    gates_forget_away(registry);
    for (unsigned kind = 0; kind < KIND_COUNT; kind++)
        free(registry->own_groups[kind]);
    table_fini(&registry->all);
    table_fini(&registry->groups);
    table_fini(&registry->providers);
    buffer_fini(&registry->scratch);
    buffer_fini(&registry->text);
    free(registry);
}

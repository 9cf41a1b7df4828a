#include "broker/registry_state.h"
#include "shm/hash.h"

uint64_t provider_hash(const struct registry *registry, const struct trigger_group *group,
                       struct span space)
{
    return hash_pair(hash_bytes(registry->hash_seed, trigger_group_name(group)),
                     hash_bytes(registry->hash_seed, space));
}

struct trigger_provider *group_provider(const struct registry *registry,
                                        const struct trigger_group *group, struct span space)
{
    if (!group->providers)
        return NULL;
    struct table_node *node =
        table_first(&registry->providers, provider_hash(registry, group, space));
    for (; node; node = table_next(node)) {
        struct trigger_provider *provider = TABLE_OWNER(node, struct trigger_provider, node);
        if (provider->group == group && !provider->owner->is_going &&
            span_equal(provider->space, space))
            return provider;
    }
    return NULL;
}

/* Who should have the trigger (PROTOCOL 2.13); NULL: nobody is there. */
static struct trigger_provider *trigger_resolve(const struct registry *registry,
                                                const struct trigger *trigger)
{
    const struct trigger_group *group = trigger->group;
    if (trigger->provider_space.data)
        return group_provider(registry, group, trigger->provider_space);
    struct trigger_provider *provider =
        group_provider(registry, group, session_space(trigger->owner->session));
    return provider ? provider : group_provider(registry, group, SPAN_LITERAL("default"));
}

void trigger_set_state(struct registry *registry, struct trigger *trigger, enum trigger_state state)
{
    registry->counters->triggers_parked -= !trigger_is_live(trigger);
    trigger->state = state;
    registry->counters->triggers_parked += !trigger_is_live(trigger);
}

void trigger_set_waits(struct registry *registry, struct trigger *trigger, bool waits)
{
    registry->waiting_count -= trigger->waits;
    trigger->waits = waits;
    registry->waiting_count += trigger->waits;
}

void trigger_park(struct registry *registry, struct trigger *trigger)
{
    struct trigger_provider *provider = trigger->provider;
    bool is_told = trigger->state == TRIGGER_BOUND;
    trigger->provider = NULL;
    trigger_set_state(registry, trigger, TRIGGER_PARKED);
    if (!is_told || provider->owner->is_going)
        return;
    const struct session *session = provider->owner->session;
    const struct wire_field fields[] = {WIRE_NUMBER(session->number), WIRE_SPAN(trigger->id),
                                        WIRE_SPAN(trigger_group_name(trigger->group))};
    registry_send(registry, session->peer, WIRE_TRIGGER_UNBIND, fields);
}

/* The next trigger of the same id and type, any owner's; `node` is NULL at first. */
static struct trigger *trigger_sibling(const struct registry *registry,
                                       const struct trigger *trigger, struct table_node *node)
{
    node = node ? table_next(node) : table_first(&registry->all, trigger->node.hash);
    for (; node; node = table_next(node)) {
        struct trigger *other = TABLE_OWNER(node, struct trigger, node);
        if (other != trigger && other->group == trigger->group &&
            span_equal(other->id, trigger->id))
            return other;
    }
    return NULL;
}

/* A worker knows the triggers of its type by their ids, so of several with one id it gets the
 * newest. False: a newer one is there. */
static bool trigger_displace(struct registry *registry, const struct trigger *trigger,
                             const struct trigger_provider *provider)
{
    struct trigger *other = trigger_sibling(registry, trigger, NULL);
    for (; other; other = trigger_sibling(registry, trigger, &other->node)) {
        if (other->state != TRIGGER_BOUND || other->provider->owner != provider->owner)
            continue;
        if (other->serial > trigger->serial)
            return false;
        trigger_park(registry, other);
    }
    return true;
}

static void trigger_bind(struct registry *registry, struct trigger *trigger,
                         struct trigger_provider *provider)
{
    const struct session *session = provider->owner->session;
    if (registry->output.is_busy(registry->output.context, session->peer)) {
        trigger_set_waits(registry, trigger, true);
        return;
    }
    if (!trigger_displace(registry, trigger, provider))
        return;
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->number),
        WIRE_SPAN(trigger->id),
        WIRE_SPAN(trigger_group_name(trigger->group)),
        WIRE_SPAN(trigger->function),
        WIRE_SPAN(trigger->config),
        WIRE_SPAN(trigger->metadata),
        WIRE_SPAN(trigger->space),
        WIRE_SPAN(trigger->provider_space),
    };
    trigger->provider = provider;
    trigger_set_state(registry, trigger, TRIGGER_BOUND);
    registry_send(registry, session->peer, WIRE_TRIGGER_BIND, fields);
}

/* Bring a trigger of a worker's type to the provider it belongs to. True: it has left another's. */
static bool trigger_settle_one(struct registry *registry, struct trigger *trigger)
{
    struct trigger_provider *provider = trigger_resolve(registry, trigger);
    struct trigger_provider *earlier = trigger->provider;
    trigger_set_waits(registry, trigger, false);
    if (provider && provider == earlier)
        return false; /* bound, or refused */
    if (earlier)
        trigger_park(registry, trigger);
    if (provider)
        trigger_bind(registry, trigger, provider);
    return earlier != NULL;
}

void trigger_settle_siblings(struct registry *registry, const struct trigger *trigger)
{
    struct trigger *other = trigger_sibling(registry, trigger, NULL);
    for (; other; other = trigger_sibling(registry, trigger, &other->node))
        if (other->state == TRIGGER_PARKED) /* so it has no provider to leave */
            (void)trigger_settle_one(registry, other);
}

void trigger_settle(struct registry *registry, struct trigger *trigger)
{
    if (trigger_settle_one(registry, trigger))
        trigger_settle_siblings(registry, trigger);
}

void group_settle(struct registry *registry, struct trigger_group *group)
{
    struct trigger *trigger = group->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        trigger_settle(registry, trigger);
}

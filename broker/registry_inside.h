/* broker/registry_inside.h -- types and triggers as registry.c keeps them, for the listings, which
 * only read.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   the registry's; a listing keeps nothing beyond its answer.
 */
#ifndef WEIR_BROKER_REGISTRY_INSIDE_H
#define WEIR_BROKER_REGISTRY_INSIDE_H

#include "broker/registry.h"
#include "broker/routes_inside.h"
#include "shm/trigger_types.h"

enum trigger_state {
    TRIGGER_PARKED, /* nobody provides its type, or a newer one has its id at the provider */
    TRIGGER_BOUND,
    TRIGGER_REFUSED, /* by its provider, until the type is registered anew */
};

/* All triggers and providers of one type name, in whichever namespace. */
struct trigger_group {
    struct table_node node;         /* by name; not of weir's own types */
    const struct trigger_type *own; /* NULL: a worker's type */
    struct trigger_provider *providers;
    struct trigger *triggers; /* in the order of registration */
    struct trigger **triggers_end;
    uint32_t trigger_count;
    size_t name_bytes;
    char name[];
};

/* What one session has registered. */
struct trigger_owner {
    struct session *session;
    struct trigger_provider *providers;
    struct trigger *triggers;
    uint32_t provider_count;
    uint32_t trigger_count;
    bool is_going; /* its types are nobody's any more */
};

struct trigger_provider {
    struct trigger_owner *owner;
    struct trigger_group *group;
    struct trigger_provider *next_of_group;
    struct trigger_provider **link_of_group;
    struct trigger_provider *next_of_owner;
    struct trigger_provider **link_of_owner;
    struct table_node node; /* by name and namespace: of all providers */
    size_t bytes;
    struct span space, description, config_schema, call_schema; /* data NULL: none */
    char text[];
};

struct trigger {
    struct table_node node; /* by id alone: the owners of one id share a chain */
    struct trigger_owner *owner;
    struct trigger *next_of_owner;
    struct trigger **link_of_owner;
    struct trigger_group *group;
    struct trigger *next_of_group;
    struct trigger **link_of_group;
    struct trigger_provider *provider; /* it is bound to, or was refused by */
    enum trigger_state state;
    bool waits;                 /* for a provider's gateway to keep up again */
    uint64_t serial;            /* later registered is larger; a gate's handle */
    struct delivery_line *line; /* of the types delivered from here; NULL: another's */
    size_t bytes;
    struct span id, function, space, config;
    struct span metadata, provider_space; /* data NULL: none */
    struct span stream, condition;        /* of weir's own types; data NULL: any, none */
    char text[];
};

static inline struct span trigger_group_name(const struct trigger_group *group)
{
    return group->own ? span_text(group->own->name) : span_of(group->name, group->name_bytes);
}

static inline bool trigger_is_live(const struct trigger *trigger)
{
    return trigger->state == TRIGGER_BOUND;
}

const struct table *registry_all(const struct registry *registry);       /* of trigger.node */
const struct table *registry_providers(const struct registry *registry); /* of provider.node */
/* NULL: no trigger is of it and nobody provides it. */
const struct trigger_group *registry_group(const struct registry *registry, struct span name);
/* A live one with this id, of whichever owner; NULL: none. */
const struct trigger *registry_live(const struct registry *registry, struct span id);

#endif

/* broker/registry_state.h -- the registry's own state, for the files it is made of:
 *
 *   registry.c        what is registered, and by whom; messages in
 *   registry_binds.c  which provider a worker's type's trigger belongs to, and telling it
 *   registry_own.c    weir's own types: gates, and what is delivered from here
 *
 * Process and thread: the broker's loop thread.
 * Memory:   one registry; what it holds is bounded by registry_limits.
 */
#ifndef WEIR_BROKER_REGISTRY_STATE_H
#define WEIR_BROKER_REGISTRY_STATE_H

#include "broker/bounds.h"
#include "broker/registry_inside.h"

enum { KIND_COUNT = TRIGGER_WORKERS_AVAILABLE + 1 };

struct registry {
    struct routes *routes;
    struct deliveries *deliveries;
    struct broker_output output;
    struct broker_counters *counters;
    struct registry_limits limits;
    uint64_t hash_seed;
    struct table all;       /* triggers by id */
    struct table groups;    /* of workers' types, by name */
    struct table providers; /* by name and namespace of the type */
    struct trigger_group *own_groups[KIND_COUNT];
    struct peer_handle gates[PEERS_MAX]; /* who is told of stream:join triggers */
    bool is_gate[PEERS_MAX];
    bool has_told_gates;  /* nobody knows of gates that are not here */
    struct trigger *away; /* gates whose owner has gone; by next_of_group, without owner */
    bool forgets_gates;
    struct registry_leave_observer leave_observer;
    uint64_t serial;
    uint64_t bytes;
    uint64_t waiting_count;
    uint64_t function_sum; /* at the last check */
    uint64_t next_check_ms;
    struct buffer scratch; /* one config, decoded */
    struct buffer text;    /* one error body or payload */
};

void registry_send(const struct registry *registry, struct peer_handle peer, enum wire_type type,
                   const struct wire_field *fields);

/* ---- registry_binds.c ---- */

/* Of a provider in registry.providers. */
uint64_t provider_hash(const struct registry *registry, const struct trigger_group *group,
                       struct span space);
/* NULL: nobody provides it there. */
struct trigger_provider *group_provider(const struct registry *registry,
                                        const struct trigger_group *group, struct span space);
void trigger_set_state(struct registry *registry, struct trigger *trigger,
                       enum trigger_state state);
void trigger_set_waits(struct registry *registry, struct trigger *trigger, bool waits);
/* The trigger is its provider's no more; who is still there is told. */
void trigger_park(struct registry *registry, struct trigger *trigger);
/* Bring a trigger of a worker's type to the provider it belongs to. */
void trigger_settle(struct registry *registry, struct trigger *trigger);
/* A provider has let go of the trigger: another of the same id may have its place. */
void trigger_settle_siblings(struct registry *registry, const struct trigger *trigger);
void group_settle(struct registry *registry, struct trigger_group *group);

/* ---- registry_own.c ---- */

/* The trigger is in its group. False: no memory. */
bool own_start(struct registry *registry, struct trigger *trigger);
/* It has left its group, its owner and the table. True: it is away, and no longer the caller's. */
bool own_stop(struct registry *registry, struct trigger *trigger);
/* The away gate that ends when such a stream:join trigger is bound; NULL: none. */
struct trigger *gate_find_away(const struct registry *registry, struct span space,
                               struct span function, struct span stream);
void gates_forget_away(struct registry *registry);
/* An away gate that an earlier broker knew. False: it is bound, or known already; it stays the
 * caller's. */
bool gate_remember(struct registry *registry, struct trigger *trigger);
/* `event`: of engine::workers-available. */
void registry_tell_worker(struct registry *registry, const struct session *session,
                          const char *event);
/* Every five seconds: has the set of functions changed? */
void registry_check_functions(struct registry *registry, uint64_t now_ms);

#endif

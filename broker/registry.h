/* broker/registry.h -- the registry of trigger types and triggers (PROTOCOL 2.11): who provides
 * which type, which trigger is bound to whom.
 *
 *   owner's gateway --TRIGGER_REGISTER--> registry --TRIGGER_BIND--> provider's gateway
 *                   <-TRIGGER_RESULT----           <-TRIGGER_RESULT- (a refusal)
 *
 * A type is (namespace, name) and has one provider, the session that registered it last. A trigger
 * is (owner's session, id). Which provider a trigger belongs to follows from what is registered and
 * from nothing else:
 *
 *   PARKED --a provider is there--> BOUND --refused--> REFUSED
 *      ^ ^---- provider gone, or the type was taken over: UNBIND to the old one, BIND to the new one
 *      '------ another owner's newer trigger has the same id at the same provider
 *
 * A provider whose gateway does not keep up gets its binds later, at a tick. Types of weir's own
 * (shm/trigger_types.h) are everywhere and never a worker's: `stream` is run by its owner's gateway
 * and only listed here, stream:join is told to every gateway, the others are delivered from here.
 *
 * A stream:join trigger is a gate, and one whose owner has gone must not stand open:
 *
 *   BOUND --unregistered, replaced by its owner--> forgotten
 *     | ^--- a trigger of the same (namespace, function, stream filter) is bound
 *     '---owner gone, and nobody else has the same bound--> AWAY: gateways deny its joins
 *
 * An away gate keeps its bytes and its place among the triggers of its type, so there is always room
 * for it; what does not fit is refused when it is registered. Gateways that know of away gates from
 * an earlier broker tell this one. A gateway that has just started knows of none: it lets nobody pass
 * before it is told (GATES_TOLD) that every gateway has said what it knew (witnesses.h).
 *
 * Process and thread: the broker's loop thread.
 * Memory:   copies what it keeps; bounded by struct registry_limits. What is beyond is answered
 *           with TRIGGER_RESULT and trigger_registration_failed.
 * Errors:   messages about unknown sessions are ignored: they may cross a close.
 */
#ifndef WEIR_BROKER_REGISTRY_H
#define WEIR_BROKER_REGISTRY_H

#include "broker/deliveries.h"

struct registry;

struct registry_limits {
    uint32_t session_types_max;
    uint32_t session_triggers_max;
    uint32_t own_triggers_max; /* of each of weir's own types but `stream`, all sessions */
    uint64_t bytes_each_max;   /* of one trigger or type: names, JSON, bookkeeping */
    uint64_t bytes_max;        /* of all */
};
extern const struct registry_limits registry_limits_default;

struct registry_options {
    struct routes *routes; /* its sessions are observed until registry_close() */
    struct deliveries *deliveries;
    struct broker_output output;
    struct broker_counters *counters;
    uint64_t hash_seed; /* random */
    bool forgets_gates; /* join_gate: open, a gate whose owner has gone is withdrawn */
    const struct registry_limits *limits; /* NULL: the defaults */
};

enum weir_status registry_open(struct registry **registry, const struct registry_options *options,
                               struct weir_error *error) WEIR_MUST_CHECK;
void registry_close(struct registry *registry); /* before deliveries_close() and routes_close() */

/* TRIGGER_* or GATE_BIND of a gateway. INVALID: a message no gateway of ours sends. */
enum weir_status registry_take(struct registry *registry, struct peer_handle peer,
                               const struct wire_message *message) WEIR_MUST_CHECK;
/* A gateway is there: it is told of every stream:join trigger, now and later. */
void registry_peer_attached(struct registry *registry, struct peer_handle peer);
/* No gateway knows of gates that this broker does not: all of them are told so, now and later. */
void registry_gates_told(struct registry *registry);
/* After routes_peer_gone(). */
void registry_peer_gone(struct registry *registry, struct peer_handle peer);
/* About once a second. */
void registry_tick(struct registry *registry, uint64_t now_ms);

/* ---- stream:leave, for who knows of leaves ---- */

struct registry_leave_observer {
    void (*wanted)(void *context, bool wanted);
    void *context;
};
/* Told when the first stream:leave trigger appears and when the last one has gone. */
void registry_observe_leave(struct registry *registry,
                            const struct registry_leave_observer *observer);
bool registry_wants_leaves(const struct registry *registry);
/* Push `payload` (JSON) to every stream:leave trigger whose filter fits `stream_name`. */
void registry_leave(struct registry *registry, struct span stream_name, struct span payload);

#endif

/* broker/routes.h -- who has which function, and which answer goes to whom.
 *
 *   caller's gateway --CALL id 7--> routes --INVOKE id P--> executor's gateway
 *                    <-RESULT id 7-        <-RESULT id P---
 *
 * A function is (namespace, id) and belongs to one worker session; a session lives on one peer. P
 * is made here: it names a slot of the pending table and its use count, so a late or forged answer
 * finds nothing. A void call (id 0) is sent with an id nobody waits for.
 *
 *   function --owner--> registration --> session --> peer       (a refused registration is told, and waits in line: it
 *                         '--next--> registration ...            becomes the owner when the one before it goes)
 *
 * A worker that comes back (PROTOCOL 2.5) has its previous session retired wherever that lives;
 * only the gateway there knows the token:
 *
 *   new gateway --REATTACH id 7--> routes --EVICT id P--> old gateway
 *               <-REATTACHED id 7-        <-SESSION_CLOSED, or REATTACHED id P when the token is wrong
 *
 * An eviction is a pending call of the old session: it is over when that session is, for whatever
 * reason.
 *
 * A call nobody waits for any more (its caller has gone, a gateway's or the broker's own is late)
 * gives its slot back, and the executor's gateway is told so with CALL_CANCEL: a handler that never
 * answers uses up no table.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   copies what it keeps; bounded by the numbers in broker/bounds.h. A call allocates
 *           nothing, unless the table of gateways' own calls grows with it.
 * Errors:   a call that cannot be routed is answered with RESULT and an error of PROTOCOL 2.9; a
 *           registration that is not taken with FUNCTION_REJECTED, also when the session is unknown
 *           (beyond its bound). Other messages about unknown sessions are ignored: they may cross a
 *           close.
 */
#ifndef WEIR_BROKER_ROUTES_H
#define WEIR_BROKER_ROUTES_H

#include "broker/output.h"

/* Answered to a registration besides FUNCTION_NAMESPACE_CONFLICT. */
#define ROUTES_CODE_CONFLICT "FUNCTION_NAMESPACE_CONFLICT"
#define ROUTES_CODE_LIMIT "FUNCTION_LIMIT_EXCEEDED"
#define ROUTES_CODE_INVALID "INVALID_ARGUMENTS"
/* Said to a session whose name another one has, when names are to be unique. */
#define ROUTES_CODE_NAME_CONFLICT "WORKER_NAMESPACE_CONFLICT"

struct routes;

struct routes_limits {
    uint32_t sessions_max;
    uint32_t session_functions_max;
    uint32_t pending_max;
    uint32_t pending_per_executor_max;
    uint64_t detail_bytes_max;
    bool unique_worker_names; /* one live session per (namespace, name); the next is rejected */
};
extern const struct routes_limits routes_limits_default;

/* `hash_seed`: random, so that ids cannot be chosen to collide. `limits` NULL: the defaults. */
enum weir_status routes_open(struct routes **routes, const struct broker_output *output,
                             struct broker_counters *counters, uint64_t hash_seed,
                             const struct routes_limits *limits,
                             struct weir_error *error) WEIR_MUST_CHECK;
void routes_close(struct routes *routes);

/* SESSION_*, FUNCTION_*, CALL, CALL_CANCEL and RESULT. INVALID: a message no gateway of ours sends. */
enum weir_status routes_take(struct routes *routes, struct peer_handle peer,
                             const struct wire_message *message) WEIR_MUST_CHECK;
/* Unix time in ms, once a turn: when sessions that open now have connected. */
void routes_set_time(struct routes *routes, uint64_t now_ms);
/* The peer is gone: its sessions are closed, its calls forgotten. */
void routes_peer_gone(struct routes *routes, struct peer_handle peer);

/* ---- what other parts of the broker ask ---- */

bool routes_has_function(const struct routes *routes, struct span space, struct span id);

/* A function has got its first owner, or lost its last one. Not called from inside routes_close().
 * The callee may not call back into routes. */
struct routes_observer {
    void (*function_changed)(void *context, struct span space, struct span id, bool exists);
    void *context;
};
void routes_observe(struct routes *routes, const struct routes_observer *observer);

/* A call the broker itself makes: of a custom adapter's function, a leave handler, an engine
 * trigger's. No `_caller_worker_id` is added (PROTOCOL 2.8). */
struct routes_own_call {
    struct span space; /* empty: default */
    struct span function;
    struct span data;                 /* JSON */
    struct span metadata;             /* JSON; data NULL: none */
    struct span traceparent, baggage; /* data NULL: none */
    uint64_t timeout_ms;
};
enum routes_own_fate {
    ROUTES_OWN_RESULT, /* `result` is JSON; data NULL: the function returned nothing */
    ROUTES_OWN_ERROR,  /* `error_json` is the error object; also when the worker has gone */
    ROUTES_OWN_LATE,
};
typedef void routes_own_done(void *context, uint64_t token, enum routes_own_fate fate,
                             struct span result, struct span error_json);
/* OK: done() follows exactly once, from inside routes_take(), routes_peer_gone() or routes_tick(),
 * unless routes_cancel_own() or routes_close() comes first; it may make further calls. EMPTY: no such function;
 * UNAVAILABLE: its worker's gateway does not keep up or is going; FULL; TOO_LARGE: done() is not
 * called. `token` is the caller's own. */
enum weir_status routes_call_own(struct routes *routes, const struct routes_own_call *call,
                                 routes_own_done *done, void *context, uint64_t token,
                                 uint64_t now_ms) WEIR_MUST_CHECK;
/* Forget every own call of `context`: done() is not called for them. */
void routes_cancel_own(struct routes *routes, const void *context);
/* About once a second: end own calls that are late. Unix time in ms, as everywhere here. */
void routes_tick(struct routes *routes, uint64_t now_ms);

struct routes_figures {
    uint64_t sessions, functions, calls_pending, detail_bytes;
};
void routes_figures(const struct routes *routes, struct routes_figures *figures);

#endif

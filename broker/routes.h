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
 * Process and thread: the broker's loop thread.
 * Memory:   copies what it keeps; bounded by the numbers in broker/bounds.h. A call allocates
 *           nothing.
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

struct routes;

struct routes_limits {
    uint32_t sessions_max;
    uint32_t session_functions_max;
    uint32_t pending_max;
    uint32_t pending_per_executor_max;
    uint64_t detail_bytes_max;
};
extern const struct routes_limits routes_limits_default;

/* `hash_seed`: random, so that ids cannot be chosen to collide. `limits` NULL: the defaults. */
enum weir_status routes_open(struct routes **routes, const struct broker_output *output,
                             struct broker_counters *counters, uint64_t hash_seed,
                             const struct routes_limits *limits,
                             struct weir_error *error) WEIR_MUST_CHECK;
void routes_close(struct routes *routes);

/* SESSION_*, FUNCTION_*, CALL and RESULT. INVALID: a message no gateway of ours sends. */
enum weir_status routes_take(struct routes *routes, struct peer_handle peer,
                             const struct wire_message *message) WEIR_MUST_CHECK;
/* The peer is gone: its sessions are closed, its calls forgotten. */
void routes_peer_gone(struct routes *routes, struct peer_handle peer);

struct routes_figures {
    uint64_t sessions, functions, calls_pending, detail_bytes;
};
void routes_figures(const struct routes *routes, struct routes_figures *figures);

#endif

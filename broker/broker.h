/* broker/broker.h -- the whole broker: one thread, one loop, one turn after the other.
 *
 *   wait -> run completions -> take frames (a share per peer) -> engine and routes -> commit -> send, receive, tear down
 *
 * Start: segment, readers, ring, store, adapter, what the log has, then the magic: nobody sees a
 * half-made segment. Stop (SIGTERM, SIGINT): commit, end every connection, remove the socket.
 *
 * Process and thread: the broker's main thread; SIGTERM and SIGINT must be blocked before
 * broker_open() (main.c does).
 * Errors:   broker_open() one sentence; afterwards a peer's faults end that peer only, the loop's
 *           own failure ends the run.
 */
#ifndef WEIR_BROKER_BROKER_H
#define WEIR_BROKER_BROKER_H

#include "broker/durability.h"

struct broker;

/* `settings` are resolved; they are copied. `seam`: what a test puts between broker and disk; NULL:
 * nothing. Reads log and snapshot, if there are any. */
enum weir_status broker_open(struct broker **broker, const struct settings *settings,
                             const struct durability_seam *seam,
                             struct weir_error *error) WEIR_MUST_CHECK;
/* Serves until a stop signal. OK: a clean stop. */
enum weir_status broker_run(struct broker *broker, struct weir_error *error) WEIR_MUST_CHECK;
void broker_close(struct broker *broker);

#endif

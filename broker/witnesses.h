/* broker/witnesses.h -- the gateways that were attached to an earlier broker and still live. What that
 * one had not logged, such as gates, nobody knows but they: this broker waits for what they have to say.
 *
 *   attached --> run_dir/gateways --> read by the next broker: a witness, if it still lives
 *                                       absent --attached--> untold --GATES_TOLD--> nothing to wait for
 *                                         '------------dead-----'-----------------------^
 *
 * A line of the file is a pid and when that process was started (proc_pid_stat(5), field 22), for pids
 * are used again. Who lives stays in it, attached or not: it may be known to no broker in between.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   its own, of a fixed size.
 * Errors:   a file that cannot be written is logged, one that cannot be read is none: nobody is waited
 *           for then.
 * Units:    ms of one clock.
 */
#ifndef WEIR_BROKER_WITNESSES_H
#define WEIR_BROKER_WITNESSES_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/status.h"

enum { WITNESSES_LOG_MS = 10000 }; /* after which those that are waited for are logged, once */

struct witnesses;

enum weir_status witnesses_open(struct witnesses **witnesses, const char *run_dir,
                                struct weir_error *error) WEIR_MUST_CHECK;
void witnesses_close(struct witnesses *witnesses); /* NULL is fine */

/* The gateway of that pid is there, from now on for the next broker as well. */
void witnesses_attached(struct witnesses *witnesses, uint32_t pid);
/* It has said what it knew. */
void witnesses_told(struct witnesses *witnesses, uint32_t pid);
/* About once a second: the dead have nothing to say. */
void witnesses_tick(struct witnesses *witnesses, uint64_t now_ms);

/* How many have not attached yet, resp. not told what they know. */
unsigned witnesses_absent(const struct witnesses *witnesses);
unsigned witnesses_untold(const struct witnesses *witnesses);

#endif

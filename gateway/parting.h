/* gateway/parting.h -- the moment at which a worker's connection can be closed without a call being
 * lost on its way.
 *
 * What a worker sends while our Close is on its way to it is never answered, and iii-sdk waits for such
 * an answer until its time limit. So the connection goes when the worker is not about to send, by what
 * it has done since it was let go:
 *
 *   silent for PARTING_SILENT_MS                        it may go
 *   one call at a time, PARTING_CALLS of them           right behind an answer, in the same send: it
 *                                                       reads both, and calls the next one elsewhere
 *   several at once                                     in a pause of PARTING_PAUSE_MS; when there was
 *                                                       none for PARTING_PATIENCE_MS, behind an answer
 *
 * and only while nothing of it is in flight, which the caller knows.
 *
 * Process:  gateway, loop thread only; pure functions.
 * Units:    now_ns as of uv_hrtime().
 */
#ifndef WEIR_GATEWAY_PARTING_H
#define WEIR_GATEWAY_PARTING_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PARTING_SILENT_MS = 100,
    PARTING_CALLS = 8,
    PARTING_PAUSE_MS = 2,
    PARTING_PATIENCE_MS = 1000,
};

struct parting {
    uint64_t began_ns, heard_ns;
    uint32_t calls;
    bool has_begun; /* nothing below matters before */
    bool is_parallel;
    bool was_answered; /* in this turn */
};

void parting_begin(struct parting *parting, uint64_t now_ns);
/* A message has been taken, after which `in_flight` calls wait for their answers. */
void parting_heard(struct parting *parting, uint64_t now_ns, uint32_t in_flight);
void parting_answered(struct parting *parting);
/* Once a turn, at its end: may it go now, if nothing is in flight? */
bool parting_is_due(struct parting *parting, uint64_t now_ns);

#endif

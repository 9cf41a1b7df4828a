/* broker/answered.h -- what a broker that comes back knows of requests its predecessor has carried out
 * and logged, but perhaps not answered: gateways ask again, and are answered from here.
 *
 * Filled while the log is replayed, with the newest ANSWERED_MAX writes; the newest
 * ANSWERED_BYTES_MAX of answers. A gateway asks again when it attaches, so the whole is forgotten
 * ANSWERED_KEEP_MS after the start.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   owned, grows with what is put in, up to the bounds; looked up through a table that is
 *           made when the first gateway asks.
 * Errors:   NO_MEMORY: a request that was carried out could be carried out again: recovery fails.
 */
#ifndef WEIR_BROKER_ANSWERED_H
#define WEIR_BROKER_ANSWERED_H

#include "shm/span.h"

enum {
    ANSWERED_MAX = 1024 * 1024,
    ANSWERED_BYTES_MAX = 64 * 1024 * 1024,
    ANSWERED_KEEP_MS = 120000,
};

struct answered;

struct answered *answered_open(void);           /* NULL: no memory */
void answered_close(struct answered *answered); /* NULL is fine */

/* The request was carried out at `time_ms`; its answer's result is `parts` joined. No parts: it is not
 * known. */
enum weir_status answered_add(struct answered *answered, uint64_t origin, uint64_t request,
                              uint64_t time_ms, const struct span *parts,
                              unsigned part_count) WEIR_MUST_CHECK;
/* False: this request has not been carried out, as far as is known. `result` data NULL: its answer is
 * not known. Valid until the next answered_add(). NULL has none. */
bool answered_find(struct answered *answered, uint64_t origin, uint64_t request,
                   struct span *result);

struct answered_entry {
    uint64_t origin, request, time_ms;
    struct span result; /* data NULL: not known */
};
/* The next of what is known, oldest first; *cursor starts at 0. False: no more. NULL has none. */
bool answered_next(const struct answered *answered, uint64_t *cursor, struct answered_entry *entry);

#endif

/* tests/faulty_device.h -- a disk that fails on demand: a wal_device before another one, which does
 * as it is told at the writes a plan names, and nothing else.
 *
 *   wal.c ──▶ faulty device ──▶ the real one (uring or plain)
 *
 * All is deterministic: which write (by its number), what happens,
 * and, from the seed, which sectors of a torn write reach the file. A disk writes whole sectors, in
 * any order; after power loss or an error any subset of them may be there.
 *
 * Process and thread: as the device behind it. A torn or short write is done in place and blocks.
 * Memory:   faulty_device_open() allocates; the plan is copied.
 */
#ifndef WEIR_TESTS_FAULTY_DEVICE_H
#define WEIR_TESTS_FAULTY_DEVICE_H

#include "broker/wal_device.h"

enum { FAULTY_PLANS_MAX = 64, FAULTY_SECTOR_BYTES = 512 };

enum faulty_kind {
    FAULTY_ERROR = 1,   /* nothing happens; `argument` is the errno told */
    FAULTY_TORN,        /* a subset of the sectors is written; `argument` is the errno told */
    FAULTY_SHORT,       /* the first `argument` bytes are written, and told */
    FAULTY_KILL_BEFORE, /* the process ends by SIGKILL, nothing of this request is done */
    FAULTY_KILL_TORN,   /* a subset of the sectors is written, then SIGKILL */
    FAULTY_KILL_AFTER,  /* all is done, SIGKILL comes before done() */
};

struct faulty_plan {
    enum faulty_kind kind;
    uint64_t at;    /* the first is 0 */
    uint64_t count; /* so many in a row; 0: one; UINT64_MAX: for good */
    uint64_t argument;
};

struct faulty_figures {
    uint64_t writes; /* since the plan was given */
    uint64_t faults; /* of them failed, torn or cut */
};

/* NULL: no memory. Closing it closes `inner` as well. */
struct wal_device *faulty_device_open(struct wal_device *inner, uint64_t seed);
/* Counting begins anew. Of two that name the same request the first counts. */
void faulty_device_plan(struct wal_device *device, const struct faulty_plan *plans, unsigned count);
struct faulty_figures faulty_device_figures(const struct wal_device *device);

#endif

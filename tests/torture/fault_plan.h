/* tests/torture/fault_plan.h -- which call of the disk goes wrong, and how; told a server under test by
 * its command line, the same each time.
 *
 *   --fault write@17=torn,seed=42        the 17th write: some of its sectors, then SIGKILL
 *   --fault sync@3=eio+                  the 3rd sync and all later ones fail with EIO
 *   --fault write@5=enospc,sync@9=before several parts, separated by commas
 *
 * Points: write, sync     frames of the log, and making them durable
 *         prepare         writes, syncs and sizes of a segment that is being made
 *         snapshot        the same of a snapshot
 *         open, rename, remove, directory (making names permanent)
 *         reading         reads and lists
 * Actions: before, after  SIGKILL before, after the call
 *         cut             the power goes before the call: what was not synced is gone, in part (power.h),
 *                         and a write that was on its way is torn
 *         torn            a random part of the sectors of a write, then SIGKILL; else as before
 *         short           a part of the write, told as such; else nothing
 *         eio, enospc     not done, and told so
 *         half            a part of the write's sectors, and EIO
 *         lie             not done, and told that it was: a disk that lies
 *
 * When a part strikes, the note "POINT@N=ACTION" is written to note_fd, once.
 *
 * Process: the server under test. Thread: any; counting is serialised by a lock.
 */
#ifndef WEIR_TESTS_TORTURE_FAULT_PLAN_H
#define WEIR_TESTS_TORTURE_FAULT_PLAN_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAULT_POINT_MAP(X)                                                                         \
    X(WRITE, "write")                                                                              \
    X(SYNC, "sync")                                                                                \
    X(PREPARE, "prepare")                                                                          \
    X(SNAPSHOT, "snapshot")                                                                        \
    X(OPEN, "open")                                                                                \
    X(RENAME, "rename")                                                                            \
    X(REMOVE, "remove")                                                                            \
    X(DIRECTORY, "directory")                                                                      \
    X(READING, "reading")

#define FAULT_ACTION_MAP(X)                                                                        \
    X(NONE, "none")                                                                                \
    X(BEFORE, "before")                                                                            \
    X(AFTER, "after")                                                                              \
    X(TORN, "torn")                                                                                \
    X(CUT, "cut")                                                                                  \
    X(SHORT, "short")                                                                              \
    X(EIO, "eio")                                                                                  \
    X(ENOSPC, "enospc")                                                                            \
    X(HALF, "half")                                                                                \
    X(LIE, "lie")

enum fault_point {
#define FAULT_POINT_ENUM(name, word) FAULT_POINT_##name,
    FAULT_POINT_MAP(FAULT_POINT_ENUM)
#undef FAULT_POINT_ENUM
        FAULT_POINT_COUNT
};

enum fault_action {
#define FAULT_ACTION_ENUM(name, word) FAULT_ACTION_##name,
    FAULT_ACTION_MAP(FAULT_ACTION_ENUM)
#undef FAULT_ACTION_ENUM
        FAULT_ACTION_COUNT
};

enum { FAULT_PARTS_MAX = 8 };

struct fault_part {
    enum fault_point point;
    enum fault_action action;
    uint64_t number; /* from 1 */
    bool is_lasting;
    bool has_struck;
};

struct fault_plan {
    struct fault_part parts[FAULT_PARTS_MAX];
    unsigned part_count;
    uint64_t counts[FAULT_POINT_COUNT];
    uint64_t random;
    int note_fd; /* -1: nobody is told */
    pthread_mutex_t lock;
};

/* False: the text is no plan. NULL is the empty one. */
bool fault_plan_init(struct fault_plan *plan, const char *text);
/* Counts one call; what is to happen to it. A note is written when that is not NONE. */
enum fault_action fault_plan_next(struct fault_plan *plan, enum fault_point point);
uint64_t fault_random(struct fault_plan *plan);
/* The end of this process. */
void fault_strike(void) __attribute__((noreturn));
/* Write a random part of the sectors of `data` through `fd`, at least one and not all when there are
 * several. Works for descriptors opened with O_DIRECT as well. */
void fault_tear(struct fault_plan *plan, int fd, const void *data, size_t bytes, uint64_t offset);
/* A length below `bytes` for a short write; a multiple of `unit` where that is possible. */
size_t fault_short_bytes(struct fault_plan *plan, size_t bytes, size_t unit);

const char *fault_point_word(enum fault_point point);
const char *fault_action_word(enum fault_action action);

#endif

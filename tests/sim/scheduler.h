/* tests/sim/scheduler.h -- what makes a run of the simulation one and the same: all chance comes from
 * one seed, time passes only when the world says so, and everything that happens is noted.
 *
 * The product asks the kernel for random bytes and for the time in a few places; the linker leads
 * those calls here (tests/sim/CMakeLists.txt, --wrap), as they would make every run another one.
 *
 * Process and thread: one; one scheduler runs at a time.
 * Units:    now_us counts from 1970, like the product's stamps.
 * Errors:   a broken promise is sim_fail(): it says what is wrong and leaves the run by longjmp(3).
 *           The run's memory is lost then, for the process ends soon after.
 */
#ifndef WEIR_TESTS_SIM_SCHEDULER_H
#define WEIR_TESTS_SIM_SCHEDULER_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "shm/span.h"

/* The promise that a failure is about, so that a planted fault must be caught for what it is. */
#define SIM_PROMISE_MAP(X)                                                                         \
    X(ORDER, "order")       /* seq, epoch and stamp of every write */                              \
    X(EXACT, "exact")       /* a gap, a repeat, or contents that differ from the history's */      \
    X(TOLD, "told")         /* a loss that nobody was told of, or for no reason */                 \
    X(COMMITTED, "commit")  /* shown before its level was reached */                               \
    X(KEPT, "kept")         /* acknowledged, and gone after a restart */                           \
    X(REPLY, "reply")       /* a reply out of order, missing, or with other contents */            \
    X(COMPLETE, "complete") /* at rest, and not everybody has everything */                        \
    X(BOUNDED, "bounded")   /* something is left over at rest, or counters do not add up */        \
    X(WIRE, "wire")         /* bytes that are no envelope */

enum sim_promise {
#define SIM_PROMISE_ENUM(name, word) SIM_##name,
    SIM_PROMISE_MAP(SIM_PROMISE_ENUM)
#undef SIM_PROMISE_ENUM
        SIM_PROMISES
};

struct scheduler {
    uint64_t seed;
    uint64_t random; /* SplitMix64 */
    uint64_t now_us;
    uint64_t step;
    uint64_t digest; /* of all notes: two runs with the same digest are the same run */
    bool is_traced;
    bool is_quiet; /* a failure is wanted, and not printed */
    jmp_buf failed;
    enum sim_promise promise; /* that was broken */
};

void scheduler_start(struct scheduler *scheduler, uint64_t seed);
uint64_t sim_random(struct scheduler *scheduler);
/* 0 .. end - 1; 0 when end is 0. */
uint32_t sim_below(struct scheduler *scheduler, uint32_t end);
/* `first` .. `last`. */
uint32_t sim_between(struct scheduler *scheduler, uint32_t first, uint32_t last);
bool sim_chance(struct scheduler *scheduler, uint32_t percent);
/* One of so many, as likely as its weight says. */
uint32_t sim_weighted(struct scheduler *scheduler, const uint32_t *weights, uint32_t count);
static inline uint64_t sim_now_ms(const struct scheduler *scheduler)
{
    return scheduler->now_us / 1000;
}

/* Something has happened; the text is printed with --trace. */
void sim_note(struct scheduler *scheduler, const char *what, uint64_t a, uint64_t b, uint64_t c);
const char *sim_promise_word(enum sim_promise promise);
_Noreturn void sim_fail(struct scheduler *scheduler, enum sim_promise promise, const char *format,
                        ...) WEIR_PRINTF(3, 4);

#endif

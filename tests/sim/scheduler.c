#include "tests/sim/scheduler.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#include "broker/log.h"

/* What the product's calls for time, random bytes and log lines find; they have no context. */
static struct scheduler *running;

void scheduler_start(struct scheduler *scheduler, uint64_t seed)
{
    scheduler->seed = scheduler->random = seed;
    scheduler->now_us = 1700000000000000;
    scheduler->step = 0;
    scheduler->digest = 0xcbf29ce484222325;
    running = scheduler;
}

uint64_t sim_random(struct scheduler *scheduler)
{
    uint64_t mixed = scheduler->random += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}

uint32_t sim_below(struct scheduler *scheduler, uint32_t end)
{
    return end == 0 ? 0 : (uint32_t)(sim_random(scheduler) % end);
}

uint32_t sim_between(struct scheduler *scheduler, uint32_t first, uint32_t last)
{
    return first + sim_below(scheduler, last - first + 1);
}

bool sim_chance(struct scheduler *scheduler, uint32_t percent)
{
    return sim_below(scheduler, 100) < percent;
}

uint32_t sim_weighted(struct scheduler *scheduler, const uint32_t *weights, uint32_t count)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += weights[i];
    uint32_t at = sim_below(scheduler, sum);
    uint32_t chosen = 0;
    while (chosen + 1 < count && at >= weights[chosen])
        at -= weights[chosen++];
    return chosen;
}

static void digest_add(struct scheduler *scheduler, uint64_t value)
{
    scheduler->digest = (scheduler->digest ^ value) * 0x9e3779b97f4a7c15;
    scheduler->digest ^= scheduler->digest >> 29;
}

void sim_note(struct scheduler *scheduler, const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    for (const char *at = what; *at != '\0'; at++)
        digest_add(scheduler, (unsigned char)*at);
    digest_add(scheduler, a);
    digest_add(scheduler, b);
    digest_add(scheduler, c);
    if (scheduler->is_traced)
        printf("%6" PRIu64 " %10" PRIu64 " %-24s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
               scheduler->step, scheduler->now_us - 1700000000000000, what, a, b, c);
}

const char *sim_promise_word(enum sim_promise promise)
{
    static const char *const words[] = {
#define SIM_PROMISE_WORD(name, word) word,
        SIM_PROMISE_MAP(SIM_PROMISE_WORD)
#undef SIM_PROMISE_WORD
    };
    return words[promise];
}

void sim_fail(struct scheduler *scheduler, enum sim_promise promise, const char *format, ...)
{
    scheduler->promise = promise;
    if (!scheduler->is_quiet || scheduler->is_traced) {
        va_list arguments;
        printf("sim: seed %" PRIu64 " step %" PRIu64 ": %s: ", scheduler->seed, scheduler->step,
               sim_promise_word(promise));
        va_start(arguments, format);
        (void)vprintf(format, arguments);
        va_end(arguments);
        printf("\n");
    }
    longjmp(scheduler->failed, 1);
}

/* ---- in place of the kernel's and of broker/log.c ---- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    *now = (struct timespec){.tv_sec = (time_t)(running->now_us / 1000000),
                             .tv_nsec = (long)(running->now_us % 1000000) * 1000};
    return 0;
}

ssize_t __wrap_getrandom(void *out, size_t bytes, unsigned flags);
ssize_t __wrap_getrandom(void *out, size_t bytes, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)out)[i] = (unsigned char)sim_random(running);
    return (ssize_t)bytes;
}

void log_line(const char *format, ...)
{
    if (!running->is_traced)
        return;
    va_list arguments;
    va_start(arguments, format);
    printf("       broker: ");
    (void)vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

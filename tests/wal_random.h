/* tests/wal_random.h -- random numbers of the log's tests: SplitMix64, from a seed that is printed and that
 * WEIR_TEST_SEED sets.
 */
#ifndef WEIR_TESTS_WAL_RANDOM_H
#define WEIR_TESTS_WAL_RANDOM_H

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t random_state;

static void seed_random(void)
{
    struct timespec now;
    cr_assert_eq(clock_gettime(CLOCK_MONOTONIC, &now), 0);
    const char *given = getenv("WEIR_TEST_SEED");
    random_state = given != NULL ? strtoull(given, NULL, 0)
                                 : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    (void)fprintf(stderr, "seed 0x%llx\n", (unsigned long long)random_state);
}

static uint64_t random_next(void)
{
    random_state += 0x9e3779b97f4a7c15u;
    uint64_t mixed = random_state;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

static uint64_t random_below(uint64_t end)
{
    return random_next() % end;
}

#endif

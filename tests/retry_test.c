/* When clients are told to come back: never before retry_ms, spread by how many they are, the same
 * again from the same seed. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gateway/retry.h"

enum { LEAST_MS = 500, NOW_MS = 1000000 };

static uint64_t seed_read(void)
{
    const char *text = getenv("WEIR_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
    (void)fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

Test(retry, one_client_waits_retry_ms_and_at_most_half_of_it_more, .timeout = HANG_SECONDS)
{
    struct retry retry;
    retry_init(&retry, LEAST_MS, seed_read());
    uint64_t lowest = UINT64_MAX, highest = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t hint_ms = retry_hint_ms(&retry, NOW_MS + i * 2000, 1);
        lowest = hint_ms < lowest ? hint_ms : lowest;
        highest = hint_ms > highest ? hint_ms : highest;
    }
    cr_assert_geq(lowest, LEAST_MS);
    cr_assert_leq(highest, LEAST_MS * 3 / 2);
    cr_assert_gt(highest, lowest + LEAST_MS / 4, "hints are at random");
}

/* 10,000 clients that were all connected: in no second should many more than
 * RETRY_SOCKETS_PER_SECOND return. */
Test(retry, many_expected_clients_are_spread_evenly, .timeout = HANG_SECONDS)
{
    enum { CLIENTS = 10000, SECONDS = CLIENTS / RETRY_SOCKETS_PER_SECOND };
    struct retry retry;
    retry_init(&retry, LEAST_MS, seed_read());
    unsigned returning[SECONDS + 1] = {0};
    for (unsigned i = 0; i < CLIENTS; i++) {
        uint64_t after_ms = retry_hint_ms(&retry, NOW_MS, CLIENTS) - LEAST_MS;
        cr_assert_leq(after_ms, SECONDS * 1000);
        returning[after_ms / 1000]++;
    }
    for (unsigned second = 0; second < SECONDS; second++)
        cr_assert(returning[second] > RETRY_SOCKETS_PER_SECOND * 8 / 10 &&
                      returning[second] < RETRY_SOCKETS_PER_SECOND * 12 / 10,
                  "second %u: %u", second, returning[second]);
}

Test(retry, a_storm_nobody_announced_spreads_itself, .timeout = HANG_SECONDS)
{
    struct retry retry;
    retry_init(&retry, LEAST_MS, seed_read());
    uint64_t latest = 0;
    for (unsigned i = 0; i < 4 * RETRY_SOCKETS_PER_SECOND; i++) {
        uint64_t hint_ms = retry_hint_ms(&retry, NOW_MS + i / 100, 1);
        latest = hint_ms > latest ? hint_ms : latest;
    }
    cr_assert_gt(latest, LEAST_MS + 3000);
    cr_assert_leq(latest, LEAST_MS + 4000);
    uint64_t later_ms = retry_hint_ms(&retry, NOW_MS + 10000, 1);
    cr_assert_leq(later_ms, LEAST_MS * 3 / 2, "the storm is over, yet a client waits %llu ms",
                  (unsigned long long)later_ms);
}

Test(retry, a_hint_has_an_upper_bound, .timeout = HANG_SECONDS)
{
    struct retry retry;
    retry_init(&retry, LEAST_MS, seed_read());
    for (unsigned i = 0; i < 1000; i++)
        cr_assert_leq(retry_hint_ms(&retry, NOW_MS, UINT64_MAX), LEAST_MS + RETRY_SPREAD_MS_MAX);
}

Test(retry, the_same_seed_gives_the_same_hints, .timeout = HANG_SECONDS)
{
    struct retry one, same, other;
    retry_init(&one, LEAST_MS, 7);
    retry_init(&same, LEAST_MS, 7);
    retry_init(&other, LEAST_MS, 8);
    unsigned differing = 0;
    for (unsigned i = 0; i < 100; i++) {
        uint64_t hint_ms = retry_hint_ms(&one, NOW_MS, 5000);
        cr_assert_eq(hint_ms, retry_hint_ms(&same, NOW_MS, 5000));
        differing += hint_ms != retry_hint_ms(&other, NOW_MS, 5000);
    }
    cr_assert_gt(differing, 50u);
}

Test(retry, zero_means_at_once_for_a_few, .timeout = HANG_SECONDS)
{
    struct retry retry;
    retry_init(&retry, 0, seed_read());
    cr_assert_eq(retry_hint_ms(&retry, NOW_MS, 1), 0u);
    cr_assert_eq(retry_random(&retry, 0), 0u);
}

Test(retry, a_reason_ends_with_the_hint_and_fits_a_close_frame, .timeout = HANG_SECONDS)
{
    char reason[RETRY_REASON_BYTES];
    retry_reason(reason, "service restart", 1234);
    cr_assert_str_eq(reason, "service restart; retry_ms=1234");
    char text[400];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    retry_reason(reason, text, UINT64_MAX);
    cr_assert_eq(strlen(reason), 123u);
    const char *hint = strstr(reason, "; retry_ms=");
    cr_assert_not_null(hint);
    cr_assert_str_eq(hint, "; retry_ms=18446744073709551615");
}

Test(retry, a_header_is_in_whole_seconds_rounded_up, .timeout = HANG_SECONDS)
{
    static const struct {
        uint64_t hint_ms;
        const char *header;
    } cases[] = {{0, "Retry-After: 1\r\n"},
                 {1, "Retry-After: 1\r\n"},
                 {1000, "Retry-After: 1\r\n"},
                 {1001, "Retry-After: 2\r\n"},
                 {60000, "Retry-After: 60\r\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char header[RETRY_HEADER_BYTES];
        retry_header(header, cases[i].hint_ms);
        cr_assert_str_eq(header, cases[i].header);
    }
}

#include "gateway/retry.h"

#include <inttypes.h>
#include <stdio.h>

enum { SECOND_MS = 1000 };

void retry_init(struct retry *retry, uint64_t least_ms, uint64_t seed)
{
    *retry = (struct retry){.least_ms = least_ms, .state = seed};
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t retry_next(struct retry *retry)
{
    uint64_t z = retry->state += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

uint64_t retry_random(struct retry *retry, uint64_t end)
{
    return end == 0 ? 0 : retry_next(retry) % end;
}

/* How many were told a hint in this second and the one before, this one included. */
static uint64_t retry_tell(struct retry *retry, uint64_t now_ms)
{
    uint64_t passed_ms = now_ms - retry->second_ms;
    if (passed_ms >= SECOND_MS) {
        retry->told_before = passed_ms < 2 * SECOND_MS ? retry->told : 0;
        retry->told = 0;
        retry->second_ms = now_ms;
    }
    retry->told++;
    return retry->told + retry->told_before;
}

uint64_t retry_hint_ms(struct retry *retry, uint64_t now_ms, uint64_t expected)
{
    uint64_t told = retry_tell(retry, now_ms);
    uint64_t at_once = expected > told ? expected : told;
    const uint64_t most = (uint64_t)RETRY_SPREAD_MS_MAX * RETRY_SOCKETS_PER_SECOND / SECOND_MS;
    uint64_t spread_ms =
        at_once >= most ? RETRY_SPREAD_MS_MAX : at_once * SECOND_MS / RETRY_SOCKETS_PER_SECOND;
    if (spread_ms < retry->least_ms / 2)
        spread_ms = retry->least_ms / 2;
    return retry->least_ms + retry_random(retry, spread_ms + 1);
}

void retry_reason(char out[RETRY_REASON_BYTES], const char *text, uint64_t hint_ms)
{
    char hint[40];
    int hint_bytes = snprintf(hint, sizeof hint, "; retry_ms=%" PRIu64, hint_ms);
    (void)snprintf(out, RETRY_REASON_BYTES, "%.*s%s", RETRY_REASON_BYTES - 1 - hint_bytes, text,
                   hint);
}

void retry_header(char out[RETRY_HEADER_BYTES], uint64_t hint_ms)
{
    uint64_t seconds = hint_ms / SECOND_MS + (hint_ms % SECOND_MS != 0);
    (void)snprintf(out, RETRY_HEADER_BYTES, "Retry-After: %" PRIu64 "\r\n",
                   seconds == 0 ? 1 : seconds);
}

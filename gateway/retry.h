/* gateway/retry.h -- when a client the server sends away should come back: chosen by the server, so
 * that those who go together do not return together.
 *
 * A hint is retry_ms (config/settings.h) and a random part on top. The random part is at least half
 * of retry_ms, and as long as RETRY_SOCKETS_PER_SECOND need for as many as are expected; at most
 * RETRY_SPREAD_MS_MAX. Whoever was told a hint in this second or the one before is expected, too: a
 * storm that nobody announced spreads itself.
 *
 * Process:  gateway, loop thread only.
 * Memory:   the caller's; nothing is allocated. The generator is its own, so that tests can replay it.
 * Units:    milliseconds of any one monotonic clock.
 */
#ifndef WEIR_GATEWAY_RETRY_H
#define WEIR_GATEWAY_RETRY_H

#include <stdint.h>

enum {
    RETRY_SOCKETS_PER_SECOND = 2000, /* a fifth of a core in handshakes and joins */
    RETRY_SPREAD_MS_MAX = 30000,
    RETRY_REASON_BYTES = 124, /* a Close frame's reason (RFC 6455 section 5.5) and its end */
    RETRY_HEADER_BYTES = 40,
};

struct retry {
    uint64_t least_ms;
    uint64_t state;     /* of the generator */
    uint64_t second_ms; /* when the second began that `told` counts */
    uint64_t told, told_before;
};

void retry_init(struct retry *retry, uint64_t least_ms, uint64_t seed);
/* How long one client should wait when `expected` are likely to come back at the same time. */
uint64_t retry_hint_ms(struct retry *retry, uint64_t now_ms, uint64_t expected);
/* A number from 0 to `end` - 1; 0 when `end` is 0. */
uint64_t retry_random(struct retry *retry, uint64_t end);
/* "TEXT; retry_ms=N" for a Close frame; a text too long is cut, the hint never is. */
void retry_reason(char out[RETRY_REASON_BYTES], const char *text, uint64_t hint_ms);
/* "Retry-After: SECONDS\r\n" (RFC 9110 section 10.2.3), rounded up, at least 1. */
void retry_header(char out[RETRY_HEADER_BYTES], uint64_t hint_ms);

#endif

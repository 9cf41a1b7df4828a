/* gateway/drain.h -- a gateway leaves without anybody losing anything: its sockets are sent away one
 * after the other, so that the others get them one after the other.
 *
 *   start --> every tick its share: subscribers   1012, with everything they were due before it
 *     |                             workers       let go: 1012 behind the last answer (worker_channel.h)
 *     |                             libweir       likewise (local.h)
 *     '--> nobody left, or the window over: whatever is still open gets 1012 --> drained
 *
 * A subscriber's position is the last envelope it was sent; events that came after that are read from
 * the ring by the gateway it goes to. Nothing has to be brought up to date here first.
 *
 * Subscribers are spread over the window, or, when they are few, DRAIN_SOCKET_MS a socket. Workers are
 * let go within the first half of that, so that calls in flight have the other half. Ends of byte
 * channels, which nobody can take up elsewhere, have the whole window. Connections that are not
 * WebSockets have DRAIN_HTTP_MS for their request: what was accepted last is answered, too.
 *
 * Process:  gateway, loop thread only. Whoever starts it has closed the listeners.
 * Memory:   the drain's own until drain_stop(), after which the loop has to run once more.
 * Units:    ms of uv_now(); a tick closes DRAIN_TICK_CLOSES at most.
 */
#ifndef WEIR_GATEWAY_DRAIN_H
#define WEIR_GATEWAY_DRAIN_H

#include <uv.h>

#include "gateway/counters.h"
#include "gateway/local.h"
#include "gateway/ws.h"

enum {
    DRAIN_TICK_MS = 2, /* workers' pauses have to be noticed (parting.h) */
    DRAIN_TICK_CLOSES = 64,
    DRAIN_SOCKET_MS = 10,
    DRAIN_HTTP_MS = 500,
    DRAIN_TELL_MS = 200, /* how often on_left is called */
};

struct drain_options {
    struct ws_server *ws;
    struct local *local;
    struct counters *counters;
    uint64_t window_ms;
    /* Let a worker's connection go; false: it was before. */
    bool (*let_go)(struct ws_connection *connection);
    /* How many connections are left. */
    void (*on_left)(void *context, uint64_t left);
    /* Nothing is left to wait for; never from inside drain_start(). */
    void (*on_drained)(void *context);
    void *context;
};

struct drain;
struct drain *drain_start(uv_loop_t *loop,
                          const struct drain_options *options); /* NULL: no memory */
void drain_stop(struct drain *drain);                           /* NULL is fine */
/* Connections at the start. */
uint64_t drain_begun_with(const struct drain *drain);
/* How many of `total` should have been closed when `passed_ms` of `span_ms` are over; all at the end. */
uint64_t drain_due(uint64_t total, uint64_t passed_ms, uint64_t span_ms);

#endif

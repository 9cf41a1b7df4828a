/* gateway/drain.h -- a gateway leaves without anybody losing anything: its sockets are sent away one
 * after the other, so that the others get them one after the other.
 *
 *   start --> every tick its share: subscribers   1012, with everything they were due before it
 *     |                             workers       let go: 1012 behind the last answer (worker_channel.h)
 *     |                             libweir       likewise (local.h)
 *     '--> nobody left, or the window over: whatever is still open gets 1012 --> over
 *
 * A subscriber's position is the last envelope it was sent; events that came after that are read from
 * the ring by the gateway it goes to. Nothing has to be brought up to date here first.
 *
 * Subscribers are spread over the window, or, when they are few, DRAIN_SOCKET_MS a socket. Workers are
 * let go within the first half of that, so that calls in flight have the other half. Ends of byte
 * channels, which nobody can take up elsewhere, have the whole window. Connections that are not
 * WebSockets have DRAIN_HTTP_MS for their request: what was accepted last is answered, too. Whose
 * request has not come by then is answered without it (ws_server_close()).
 *
 * Who goes when is decided here; the sockets are a table, and time is told (departure.h has both).
 *
 * Process:  gateway, loop thread only. Whoever starts it has closed the listeners.
 * Memory:   the caller's; nothing is allocated.
 * Units:    ms of any one clock; a tick closes DRAIN_TICK_CLOSES at most.
 */
#ifndef WEIR_GATEWAY_DRAIN_H
#define WEIR_GATEWAY_DRAIN_H

#include "gateway/ws.h"

enum {
    DRAIN_TICK_MS = 2, /* workers' pauses have to be noticed (parting.h) */
    DRAIN_TICK_CLOSES = 64,
    DRAIN_SOCKET_MS = 10,
    DRAIN_HTTP_MS = 500,
};

/* False: the others need not be visited. */
typedef bool drain_visitor(void *context, void *connection, enum ws_role role);

struct drain_sockets {
    /* Every open WebSocket and event stream; the visitor may close it. */
    void (*visit)(void *context, drain_visitor *visitor, void *visitor_context);
    /* 1012, behind what it has been sent. */
    void (*close)(void *context, void *connection);
    /* Let a worker's connection go; false: it was before. */
    bool (*let_go)(void *context, void *connection);
    /* Likewise one of libweir's; false: there is none that was not. */
    bool (*let_go_local)(void *context);
    /* Connections there are, with those that are closing or have not said what they want. */
    uint64_t (*count)(void *context);
    uint64_t (*local_count)(void *context);
    void *context;
};

struct drain {
    struct drain_sockets sockets;
    uint64_t window_ms, started_ms;
    uint64_t begun_with;                 /* connections at the start */
    uint64_t socket_total, worker_total; /* open ones at the start */
    uint64_t sockets_closed, workers_let_go;
    uint64_t span_ms;                  /* over which subscribers are spread */
    uint64_t sockets_now, workers_now; /* how many more may go in the tick at hand */
};

void drain_start(struct drain *drain, const struct drain_sockets *sockets, uint64_t window_ms,
                 uint64_t now_ms);
/* Every DRAIN_TICK_MS. True: it is over, nothing is left to wait for. */
bool drain_tick(struct drain *drain, uint64_t now_ms);
/* How many connections are left. */
uint64_t drain_left(const struct drain *drain);
/* How many of `total` should have been closed when `passed_ms` of `span_ms` are over; all at the end. */
uint64_t drain_due(uint64_t total, uint64_t passed_ms, uint64_t span_ms);

#endif

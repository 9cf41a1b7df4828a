#include "gateway/drain.h"

uint64_t drain_due(uint64_t total, uint64_t passed_ms, uint64_t span_ms)
{
    if (passed_ms >= span_ms)
        return total;
    double share = (double)passed_ms / (double)span_ms;
    return (uint64_t)((double)total * share);
}

/* ---- sockets ---- */

static void drain_visit(struct drain *drain, drain_visitor *visitor, void *context)
{
    drain->sockets.visit(drain->sockets.context, visitor, context);
}

static uint64_t drain_local_count(const struct drain *drain)
{
    return drain->sockets.local_count(drain->sockets.context);
}

uint64_t drain_left(const struct drain *drain)
{
    return drain->sockets.count(drain->sockets.context) + drain_local_count(drain);
}

static bool is_subscriber(enum ws_role role)
{
    return role != WS_ROLE_WORKER && role != WS_ROLE_CHANNEL;
}

struct open_count {
    uint64_t all, subscribers, workers;
};

static bool on_count(void *context, void *connection, enum ws_role role)
{
    struct open_count *open = context;
    (void)connection;
    open->all++;
    open->subscribers += is_subscriber(role);
    open->workers += role == WS_ROLE_WORKER;
    return true;
}

static bool on_share(void *context, void *connection, enum ws_role role)
{
    struct drain *drain = context;
    const struct drain_sockets *sockets = &drain->sockets;
    if (is_subscriber(role) && drain->sockets_now > 0) {
        sockets->close(sockets->context, connection);
        drain->sockets_now--;
        drain->sockets_closed++;
    } else if (role == WS_ROLE_WORKER && drain->workers_now > 0 &&
               sockets->let_go(sockets->context, connection)) {
        drain->workers_now--;
        drain->workers_let_go++;
    }
    return drain->sockets_now > 0 || drain->workers_now > 0;
}

static bool on_rest(void *context, void *connection, enum ws_role role)
{
    const struct drain *drain = context;
    (void)role;
    drain->sockets.close(drain->sockets.context, connection);
    return true;
}

static bool on_open_seen(void *context, void *connection, enum ws_role role)
{
    (void)connection;
    (void)role;
    *(bool *)context = true;
    return false;
}

static bool has_open(struct drain *drain)
{
    bool is_seen = false;
    drain_visit(drain, on_open_seen, &is_seen);
    return is_seen;
}

/* ---- ticks ---- */

static uint64_t share_now(uint64_t due, uint64_t done)
{
    uint64_t more = due > done ? due - done : 0;
    return more < DRAIN_TICK_CLOSES ? more : DRAIN_TICK_CLOSES;
}

/* Sockets that were opened since the start, by handshakes that were under way, are beyond the total:
 * they go once the span is over. */
static void drain_send_away(struct drain *drain, uint64_t passed_ms)
{
    bool is_late = passed_ms >= drain->span_ms;
    drain->sockets_now = is_late
                             ? DRAIN_TICK_CLOSES
                             : share_now(drain_due(drain->socket_total, passed_ms, drain->span_ms),
                                         drain->sockets_closed);
    drain->workers_now =
        is_late ? DRAIN_TICK_CLOSES
                : share_now(drain_due(drain->worker_total, passed_ms, drain->span_ms / 2),
                            drain->workers_let_go);
    /* Connections of libweir are as many again: they share the workers' pace. */
    uint64_t locals_now = drain->workers_now > 0 ? drain->workers_now : 1;
    while (locals_now-- > 0 && drain->sockets.let_go_local(drain->sockets.context)) {
    }
    if (drain->sockets_now > 0 || drain->workers_now > 0)
        drain_visit(drain, on_share, drain);
}

static bool drain_is_done(struct drain *drain, uint64_t passed_ms)
{
    if (passed_ms >= drain->window_ms || drain_left(drain) == 0)
        return true;
    return passed_ms >= DRAIN_HTTP_MS && !has_open(drain) && drain_local_count(drain) == 0;
}

bool drain_tick(struct drain *drain, uint64_t now_ms)
{
    uint64_t passed_ms = now_ms - drain->started_ms;
    drain_send_away(drain, passed_ms);
    if (!drain_is_done(drain, passed_ms))
        return false;
    drain_visit(drain, on_rest, drain);
    return true;
}

void drain_start(struct drain *drain, const struct drain_sockets *sockets, uint64_t window_ms,
                 uint64_t now_ms)
{
    struct open_count open = {0};
    *drain = (struct drain){.sockets = *sockets, .window_ms = window_ms, .started_ms = now_ms};
    drain_visit(drain, on_count, &open);
    uint64_t enough_ms = open.all * DRAIN_SOCKET_MS;
    drain->socket_total = open.subscribers;
    drain->worker_total = open.workers;
    drain->span_ms = enough_ms < window_ms ? enough_ms : window_ms;
    drain->begun_with = drain_left(drain);
}

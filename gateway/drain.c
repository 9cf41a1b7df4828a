#include "gateway/drain.h"

#include <stdlib.h>

struct drain {
    struct drain_options options;
    uv_timer_t tick;
    uint64_t started_ms, told_ms;
    uint64_t begun_with;
    uint64_t socket_total, worker_total; /* at the start */
    uint64_t sockets_closed, workers_let_go;
    uint64_t span_ms;                  /* over which subscribers are spread */
    uint64_t sockets_now, workers_now; /* how many more may go in the tick at hand */
    uint64_t open;                     /* WebSockets seen in a walk */
};

uint64_t drain_due(uint64_t total, uint64_t passed_ms, uint64_t span_ms)
{
    if (passed_ms >= span_ms)
        return total;
    double share = (double)passed_ms / (double)span_ms;
    return (uint64_t)((double)total * share);
}

/* ---- sockets ---- */

static bool is_subscriber(enum ws_role role)
{
    return role != WS_ROLE_WORKER && role != WS_ROLE_CHANNEL;
}

static bool on_count(void *context, struct ws_connection *connection, enum ws_role role)
{
    struct drain *drain = context;
    (void)connection;
    drain->open++;
    if (is_subscriber(role))
        drain->socket_total++;
    else if (role == WS_ROLE_WORKER)
        drain->worker_total++;
    return true;
}

static void drain_close(struct drain *drain, struct ws_connection *connection)
{
    ws_close(connection, WS_RESTART, "service restart");
    counters_add(drain->options.counters, COUNTER_CONNECTIONS_DRAINED, 1);
}

static bool on_share(void *context, struct ws_connection *connection, enum ws_role role)
{
    struct drain *drain = context;
    if (is_subscriber(role) && drain->sockets_now > 0) {
        drain_close(drain, connection);
        drain->sockets_now--;
        drain->sockets_closed++;
    } else if (role == WS_ROLE_WORKER && drain->workers_now > 0 &&
               drain->options.let_go(connection)) {
        drain->workers_now--;
        drain->workers_let_go++;
    }
    return drain->sockets_now > 0 || drain->workers_now > 0;
}

static bool on_rest(void *context, struct ws_connection *connection, enum ws_role role)
{
    (void)role;
    drain_close(context, connection);
    return true;
}

static bool on_open_seen(void *context, struct ws_connection *connection, enum ws_role role)
{
    (void)connection;
    (void)role;
    *(bool *)context = true;
    return false;
}

static bool has_open(const struct drain *drain)
{
    bool is_seen = false;
    ws_visit(drain->options.ws, on_open_seen, &is_seen);
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
    while (locals_now-- > 0 && local_let_go(drain->options.local)) {
    }
    if (drain->sockets_now > 0 || drain->workers_now > 0)
        ws_visit(drain->options.ws, on_share, drain);
}

static uint64_t drain_left(const struct drain *drain)
{
    return (uint64_t)ws_connection_count(drain->options.ws) +
           local_connection_count(drain->options.local);
}

static bool drain_is_done(const struct drain *drain, uint64_t passed_ms)
{
    if (passed_ms >= drain->options.window_ms || drain_left(drain) == 0)
        return true;
    return passed_ms >= DRAIN_HTTP_MS && !has_open(drain) &&
           local_connection_count(drain->options.local) == 0;
}

static void on_tick(uv_timer_t *timer)
{
    struct drain *drain = timer->data;
    uint64_t now_ms = uv_now(timer->loop);
    uint64_t passed_ms = now_ms - drain->started_ms;
    drain_send_away(drain, passed_ms);
    if (now_ms - drain->told_ms >= DRAIN_TELL_MS) {
        drain->told_ms = now_ms;
        drain->options.on_left(drain->options.context, drain_left(drain));
    }
    if (!drain_is_done(drain, passed_ms))
        return;
    (void)uv_timer_stop(timer);
    ws_visit(drain->options.ws, on_rest, drain);
    drain->options.on_drained(drain->options.context);
}

/* ---- start and stop ---- */

static uint64_t span_of_sockets(const struct drain *drain)
{
    uint64_t enough_ms = drain->open * DRAIN_SOCKET_MS;
    return enough_ms < drain->options.window_ms ? enough_ms : drain->options.window_ms;
}

struct drain *drain_start(uv_loop_t *loop, const struct drain_options *options)
{
    struct drain *drain = calloc(1, sizeof *drain);
    if (drain == NULL)
        return NULL;
    drain->options = *options;
    uv_update_time(loop);
    drain->started_ms = drain->told_ms = uv_now(loop);
    ws_visit(options->ws, on_count, drain);
    drain->span_ms = span_of_sockets(drain);
    drain->begun_with = drain_left(drain);
    ws_server_end_http(options->ws);
    (void)uv_timer_init(loop, &drain->tick);
    drain->tick.data = drain;
    (void)uv_timer_start(&drain->tick, on_tick, DRAIN_TICK_MS, DRAIN_TICK_MS);
    options->on_left(options->context, drain->begun_with);
    return drain;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void drain_stop(struct drain *drain)
{
    if (drain == NULL)
        return;
    (void)uv_timer_stop(&drain->tick);
    uv_close((uv_handle_t *)&drain->tick, on_closed);
}

uint64_t drain_begun_with(const struct drain *drain)
{
    return drain->begun_with;
}

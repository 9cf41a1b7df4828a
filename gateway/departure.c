#include "gateway/departure.h"

#include <stdio.h>
#include <stdlib.h>

#include "gateway/drain.h"

struct departure {
    struct departure_options options;
    struct drain drain;
    uv_timer_t tick;
    uint64_t told_ms;
};

/* ---- sockets ---- */

struct visit {
    drain_visitor *visitor;
    void *context;
};

static bool on_visit(void *context, struct ws_connection *connection, enum ws_role role)
{
    const struct visit *visit = context;
    return visit->visitor(visit->context, connection, role);
}

static void sockets_visit(void *context, drain_visitor *visitor, void *visitor_context)
{
    const struct departure *departure = context;
    struct visit visit = {visitor, visitor_context};
    ws_visit(departure->options.ws, on_visit, &visit);
}

static void socket_close(void *context, void *connection)
{
    const struct departure *departure = context;
    ws_close(connection, WS_RESTART, "service restart");
    counters_add(departure->options.counters, COUNTER_CONNECTIONS_DRAINED, 1);
}

static bool socket_let_go(void *context, void *connection)
{
    const struct departure *departure = context;
    return departure->options.let_go(connection);
}

static bool locals_let_go(void *context)
{
    const struct departure *departure = context;
    return local_let_go(departure->options.local);
}

static uint64_t sockets_count(void *context)
{
    const struct departure *departure = context;
    return ws_connection_count(departure->options.ws);
}

static uint64_t locals_count(void *context)
{
    const struct departure *departure = context;
    return local_connection_count(departure->options.local);
}

/* ---- ticks ---- */

static void departure_end(const struct departure *departure, uint64_t now_ms)
{
    const struct departure_options *options = &departure->options;
    (void)fprintf(
        stderr,
        "weir-gateway: event=drained gateway=%llu connections=%llu closed=%llu drained_ms=%llu\n",
        (unsigned long long)options->gateway_index, (unsigned long long)departure->drain.begun_with,
        (unsigned long long)options->counters->values[COUNTER_CONNECTIONS_DRAINED],
        (unsigned long long)(now_ms - departure->drain.started_ms));
    options->on_over(options->context);
}

static void on_tick(uv_timer_t *timer)
{
    struct departure *departure = timer->data;
    const struct departure_options *options = &departure->options;
    uint64_t now_ms = uv_now(timer->loop);
    bool is_over = drain_tick(&departure->drain, now_ms);
    if (now_ms - departure->told_ms >= DEPARTURE_TELL_MS) {
        departure->told_ms = now_ms;
        options->on_left(options->context, drain_left(&departure->drain));
    }
    if (!is_over)
        return;
    (void)uv_timer_stop(timer);
    departure_end(departure, now_ms);
}

/* ---- start and stop ---- */

struct departure *departure_start(uv_loop_t *loop, const struct departure_options *options)
{
    struct departure *departure = calloc(1, sizeof *departure);
    if (departure == NULL)
        return NULL;
    departure->options = *options;
    const struct drain_sockets sockets = {
        .visit = sockets_visit,
        .close = socket_close,
        .let_go = socket_let_go,
        .let_go_local = locals_let_go,
        .count = sockets_count,
        .local_count = locals_count,
        .context = departure,
    };
    uv_update_time(loop);
    departure->told_ms = uv_now(loop);
    drain_start(&departure->drain, &sockets, options->window_ms, departure->told_ms);
    ws_server_end_http(options->ws);
    (void)uv_timer_init(loop, &departure->tick);
    departure->tick.data = departure;
    (void)uv_timer_start(&departure->tick, on_tick, DRAIN_TICK_MS, DRAIN_TICK_MS);
    (void)fprintf(
        stderr, "weir-gateway: event=draining gateway=%llu connections=%llu window_ms=%llu\n",
        (unsigned long long)options->gateway_index, (unsigned long long)departure->drain.begun_with,
        (unsigned long long)options->window_ms);
    options->on_left(options->context, departure->drain.begun_with);
    return departure;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

void departure_stop(struct departure *departure)
{
    if (departure == NULL)
        return;
    (void)uv_timer_stop(&departure->tick);
    uv_close((uv_handle_t *)&departure->tick, on_closed);
}

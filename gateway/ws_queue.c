#include "gateway/ws_private.h"

enum { CHECK_MS_MIN = 10, TICK_MS_MAX = 250 };

/* ---- how often ---- */

static unsigned minimum_nonzero(unsigned a, unsigned b)
{
    return a && b ? (a < b ? a : b) : a + b;
}

/* A quarter of the ping interval and an eighth of the idle timeout are as exact as these times need
 * to be. */
static unsigned check_interval(const struct ws_options *options)
{
    unsigned interval =
        minimum_nonzero(options->ping_interval_ms / 4, options->idle_timeout_ms / 8);
    bool is_wanted = options->ping_interval_ms || options->idle_timeout_ms;
    return is_wanted && interval < CHECK_MS_MIN ? CHECK_MS_MIN : interval;
}

static unsigned tick_interval(const struct ws_server *server)
{
    unsigned interval =
        minimum_nonzero(server->options.handshake_timeout_ms / 8, server->check_ms / 2);
    interval = minimum_nonzero(interval, TICK_MS_MAX);
    return interval < CHECK_MS_MIN ? CHECK_MS_MIN : interval;
}

void ws_queue_init(struct ws_server *server)
{
    ws_link_init(&server->handshakes);
    ws_link_init(&server->established);
    ws_link_init(&server->closing);
    server->check_ms = check_interval(&server->options);
    server->tick_ms = tick_interval(server);
}

/* ---- the queues ---- */

static void on_tick(uv_timer_t *timer);

static bool tick_is_needed(const struct ws_server *server)
{
    return !ws_link_is_alone(&server->closing) ||
           (server->options.handshake_timeout_ms && !ws_link_is_alone(&server->handshakes)) ||
           (server->check_ms && !ws_link_is_alone(&server->established));
}

/* Time passes only where somebody waits for it: a gateway without connections sleeps. */
static void tick_start(struct ws_server *server)
{
    if (!uv_is_active((uv_handle_t *)&server->tick) && tick_is_needed(server))
        uv_timer_start(&server->tick, on_tick, server->tick_ms, server->tick_ms);
}

void ws_queue_move(struct ws_connection *connection, struct ws_link *queue, unsigned after_ms)
{
    ws_link_remove(&connection->queue);
    connection->due_ms = ws_now_ms(connection->server) + after_ms;
    ws_link_append(queue, &connection->queue);
    tick_start(connection->server);
}

/* ---- the tick ---- */

static void established_check(struct ws_connection *connection, uint32_t now_ms)
{
    const struct ws_options *options = &connection->server->options;
    unsigned period = connection->server->check_ms;
    /* A browser says nothing: its acknowledgements count (TCP_USER_TIMEOUT). */
    if (options->idle_timeout_ms && !connection->is_paused && !connection->is_event_stream &&
        now_ms - connection->inbound_ms >= options->idle_timeout_ms) {
        ws_connection_kill(connection);
        return;
    }
    if (options->ping_interval_ms &&
        now_ms - connection->pinged_ms + period / 2 >= options->ping_interval_ms) {
        connection->pinged_ms = now_ms;
        /* A peer that does not read what it has been sent would not read a Ping either. */
        bool is_reading = !connection->output && !connection->is_blocked;
        if (is_reading && connection->is_event_stream)
            ws_connection_append_comment(connection);
        else if (is_reading)
            ws_connection_append_control(connection, FRAME_PING, span_of(NULL, 0));
    }
    ws_queue_move(connection, &connection->server->established, period);
}

static void handshake_check(struct ws_connection *connection, uint32_t now_ms)
{
    unsigned timeout_ms = connection->server->options.handshake_timeout_ms;
    bool is_taking_answer = connection->output && now_ms - connection->inbound_ms < timeout_ms;
    bool is_deferred = connection->has_input; /* it has said its part, and waits for its turn */
    if (is_taking_answer || is_deferred || connection->state == WS_STATE_HELD)
        ws_queue_move(connection, &connection->server->handshakes, timeout_ms);
    else
        ws_connection_kill(connection);
}

static struct ws_connection *queue_due(struct ws_link *queue, uint32_t now_ms)
{
    if (ws_link_is_alone(queue))
        return NULL;
    struct ws_connection *oldest = WS_CONNECTION_OF(queue->next, queue);
    return (int32_t)(now_ms - oldest->due_ms) >= 0 ? oldest : NULL;
}

/* The queues are ordered because each uses one and the same delay. A killed connection moves to the
 * end of `closing`. */
static void on_tick(uv_timer_t *timer)
{
    struct ws_server *server = timer->data;
    uint32_t now_ms = ws_now_ms(server);
    struct ws_connection *connection;
    while (server->options.handshake_timeout_ms &&
           (connection = queue_due(&server->handshakes, now_ms))) {
        handshake_check(connection, now_ms);
        if (connection->state == WS_STATE_DEAD)
            ws_queue_move(connection, &server->closing, WS_CLOSE_WAIT_MS);
    }
    while (server->check_ms && (connection = queue_due(&server->established, now_ms))) {
        established_check(connection, now_ms);
        if (connection->state == WS_STATE_DEAD)
            ws_queue_move(connection, &server->closing, WS_CLOSE_WAIT_MS);
    }
    while ((connection = queue_due(&server->closing, now_ms))) {
        ws_connection_kill(connection);
        ws_queue_move(connection, &server->closing, WS_CLOSE_WAIT_MS);
    }
    if (!tick_is_needed(server))
        uv_timer_stop(timer);
}

#include "gateway/turn.h"

#include <stdio.h>
#include <stdlib.h>

struct turn {
    uv_loop_t *loop;
    struct turn_parts parts;
    struct mapping *mapping;
    uv_prepare_t prepare;
    uv_idle_t busy;  /* running: the loop does not wait */
    uv_timer_t hold; /* running: the next fan-out waits for it */
    uv_timer_t heal;
    uv_poll_t *doorbell; /* of the mapping; NULL: none */
    bool is_held;
    bool is_feed_broken;
    bool is_draining;        /* the broker has gone, and its ring is read to the end */
    uint64_t drain_since_ms; /* likewise */
    unsigned handles_open;
};

uint64_t turn_hold_ms(uint64_t work_us, double events_per_s, uint64_t flush_interval_ms)
{
    if (events_per_s * (double)work_us < 1e6)
        return 0;
    uint64_t hold_ms = 3 * work_us / 1000;
    return hold_ms < flush_interval_ms ? hold_ms : flush_interval_ms;
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static void on_hold_over(uv_timer_t *timer)
{
    struct turn *turn = timer->data;
    turn->is_held = false;
}

/* Its only purpose is the turn that follows it, and what has waited too long. */
static void on_heal(uv_timer_t *timer)
{
    struct turn *turn = timer->data;
    link_tick(turn->parts.link);
    local_presence_tick(turn->parts.presence, uv_hrtime() / 1000000);
    sessions_tick(turn->parts.sessions, uv_hrtime() / 1000000);
    server_calls_tick(turn->parts.server_calls, uv_hrtime() / 1000000);
    gates_tick(turn->parts.gates);
}

static void on_doorbell(uv_poll_t *poll, int status, int events)
{
    struct turn *turn = poll->data;
    (void)status;
    (void)events;
    if (turn->mapping != NULL && poll == turn->doorbell)
        reader_awake(&turn->mapping->reader);
}

static void on_doorbell_closed(uv_handle_t *handle)
{
    free(handle);
}

static void turn_close_doorbell(struct turn *turn)
{
    if (turn->doorbell == NULL)
        return;
    (void)uv_poll_stop(turn->doorbell);
    uv_close((uv_handle_t *)turn->doorbell, on_doorbell_closed);
    turn->doorbell = NULL;
}

enum weir_status turn_set_mapping(struct turn *turn, struct mapping *mapping, bool reads_on)
{
    turn_close_doorbell(turn);
    turn->mapping = mapping;
    turn->is_feed_broken = false;
    turn->is_draining = false;
    feed_start(turn->parts.feed, &mapping->ring, reads_on);
    turn->doorbell = malloc(sizeof *turn->doorbell);
    if (turn->doorbell == NULL)
        return WEIR_NO_MEMORY;
    if (uv_poll_init(turn->loop, turn->doorbell, mapping->reader.event_fd) != 0) {
        free(turn->doorbell);
        turn->doorbell = NULL;
        return WEIR_SYSTEM;
    }
    turn->doorbell->data = turn;
    (void)uv_poll_start(turn->doorbell, UV_READABLE, on_doorbell);
    return WEIR_OK;
}

static void turn_pass_over(struct turn *turn)
{
    ring_reader_seek_head(&turn->mapping->ring);
    feed_lapped(turn->parts.feed);
    subscriptions_all_behind(turn->parts.subscriptions);
}

bool turn_has_drained(struct turn *turn)
{
    if (turn == NULL || turn->mapping == NULL || turn->is_feed_broken)
        return true;
    uint64_t now_ms = uv_now(turn->loop);
    bool has_more = turn->mapping->ring.position < ring_published(&turn->mapping->ring);
    if (!turn->is_draining)
        turn->drain_since_ms = now_ms;
    turn->is_draining = has_more && now_ms - turn->drain_since_ms < TURN_DRAIN_MS;
    if (has_more && !turn->is_draining)
        turn_pass_over(turn);
    return !turn->is_draining;
}

/* Drain and deliver; true when the ring may have more right now. */
static bool turn_fan_out(struct turn *turn)
{
    struct turn_parts *parts = &turn->parts;
    uint64_t start_ns = uv_hrtime();
    enum weir_status status = feed_drain(parts->feed, &turn->mapping->ring, parts->subscriptions);
    if (status == WEIR_EMPTY)
        return false;
    double events_per_s = fanout_run(parts->fanout, parts->feed, start_ns);
    link_raise_floor(parts->link, parts->feed->newest_ms);
    if (status == WEIR_LAPPED) {
        subscriptions_all_behind(parts->subscriptions);
        return true;
    }
    if (status != WEIR_OK && status != WEIR_FULL && status != WEIR_NO_MEMORY) {
        turn->is_feed_broken = true;
        (void)fprintf(stderr, "weir-gateway: event=ring_unusable reason=\"%s\"\n",
                      weir_status_text(status));
        return false;
    }
    uint64_t hold_ms =
        turn_hold_ms((uv_hrtime() - start_ns) / 1000, events_per_s, parts->flush_interval_ms);
    if (hold_ms > 0) {
        counters_add(parts->counters, COUNTER_FLUSHES_HELD, 1);
        turn->is_held = true;
        uv_update_time(turn->loop);
        (void)uv_timer_start(&turn->hold, on_hold_over, hold_ms, 0);
        return false;
    }
    return parts->feed->has_more;
}

/* False: there is more to read. Subscriptions say themselves what the doorbell is to ring for; triggers are
 * shown everything. */
static bool turn_sleep(const struct turn *turn)
{
    struct mapping *mapping = turn->mapping;
    reader_choose(&mapping->reader, !triggers_are_wanted(turn->parts.triggers));
    return reader_sleep(&mapping->reader, &mapping->segment, mapping->ring.position);
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct turn *turn = prepare->data;
    struct turn_parts *parts = &turn->parts;
    bool has_work = false;
    counters_add(parts->counters, COUNTER_TURNS, 1);
    /* What has come in goes on before a fan-out, which may take milliseconds. */
    link_flush(parts->link);
    ws_flush(parts->ws);
    bool reads_feed = turn->mapping != NULL && !turn->is_held && !turn->is_feed_broken;
    if (reads_feed)
        has_work = turn_fan_out(turn);
    if (catch_up_run(parts->catch_up))
        has_work = true;
    if (joins_run(parts->joins, uv_hrtime() / 1000000))
        has_work = true;
    link_raise_floor(parts->link, joins_newest_ms(parts->joins));
    if (triggers_run(parts->triggers))
        has_work = true;
    if (local_presence_run(parts->presence))
        has_work = true;
    worker_channel_turn(parts->workers);
    channel_sockets_turn(parts->channels);
    link_flush(parts->link);
    local_flush(parts->local);
    ws_flush(parts->ws);
    counters_publish(parts->counters);
    if (turn->mapping != NULL) {
        reader_set_cursor(&turn->mapping->reader, turn->mapping->ring.position,
                          uv_hrtime() / 1000000);
        if (!has_work && !turn->is_held && !turn->is_feed_broken)
            has_work = !turn_sleep(turn);
    }
    if (has_work)
        (void)uv_idle_start(&turn->busy, on_idle);
    else
        (void)uv_idle_stop(&turn->busy);
}

struct turn *turn_open(uv_loop_t *loop, const struct turn_parts *parts)
{
    struct turn *turn = calloc(1, sizeof *turn);
    if (turn == NULL)
        return NULL;
    turn->loop = loop;
    turn->parts = *parts;
    turn->handles_open = 4;
    (void)uv_prepare_init(loop, &turn->prepare);
    (void)uv_idle_init(loop, &turn->busy);
    (void)uv_timer_init(loop, &turn->hold);
    (void)uv_timer_init(loop, &turn->heal);
    turn->prepare.data = turn->busy.data = turn->hold.data = turn->heal.data = turn;
    (void)uv_prepare_start(&turn->prepare, on_prepare);
    (void)uv_timer_start(&turn->heal, on_heal, TURN_HEAL_MS, TURN_HEAL_MS);
    return turn;
}

static void on_closed(uv_handle_t *handle)
{
    struct turn *turn = handle->data;
    if (--turn->handles_open == 0)
        free(turn);
}

void turn_stop(struct turn *turn)
{
    if (turn == NULL)
        return;
    turn_close_doorbell(turn);
    turn->mapping = NULL;
    (void)uv_prepare_stop(&turn->prepare);
    (void)uv_idle_stop(&turn->busy);
    uv_close((uv_handle_t *)&turn->prepare, on_closed);
    uv_close((uv_handle_t *)&turn->busy, on_closed);
    uv_close((uv_handle_t *)&turn->hold, on_closed);
    uv_close((uv_handle_t *)&turn->heal, on_closed);
}

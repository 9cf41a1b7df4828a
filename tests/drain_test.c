/* Who goes when, of sockets that are a table here; with real ones it is in tests/e2e/drain.test.mjs. */
#include <criterion/criterion.h>

#include "gateway/drain.h"

Test(drain, sockets_go_evenly_and_all_of_them, .timeout = HANG_SECONDS)
{
    enum { TOTAL = 20000, SPAN_MS = 5000 };
    uint64_t before = 0;
    for (uint64_t passed_ms = 0; passed_ms <= SPAN_MS; passed_ms += DRAIN_TICK_MS) {
        uint64_t due = drain_due(TOTAL, passed_ms, SPAN_MS);
        cr_assert_geq(due, before);
        cr_assert_leq(due - before, (uint64_t)TOTAL * DRAIN_TICK_MS / SPAN_MS + 1);
        before = due;
    }
    cr_assert_eq(before, TOTAL);
}

Test(drain, few_sockets_go_one_by_one, .timeout = HANG_SECONDS)
{
    uint64_t changes = 0;
    for (uint64_t passed_ms = 1; passed_ms <= 50; passed_ms++) {
        uint64_t more = drain_due(5, passed_ms, 50) - drain_due(5, passed_ms - 1, 50);
        cr_assert_leq(more, 1);
        changes += more;
    }
    cr_assert_eq(changes, 5);
}

Test(drain, all_are_due_when_the_time_is_over, .timeout = HANG_SECONDS)
{
    cr_assert_eq(drain_due(7, 0, 0), 7u);
    cr_assert_eq(drain_due(7, 100, 50), 7u);
    cr_assert_eq(drain_due(0, 25, 50), 0u);
    cr_assert_eq(drain_due(UINT32_MAX, 1000, 1000), UINT32_MAX);
}

/* ---- a table of sockets ---- */

enum { SOCKETS = 40, WORKERS = 10 };

static struct played {
    enum ws_role role;
    bool is_closed, is_let_go;
} played[SOCKETS];
static unsigned locals, closed, let_go;

static void play_visit(void *context, drain_visitor *visitor, void *visitor_context)
{
    (void)context;
    for (unsigned i = 0; i < SOCKETS; i++) {
        if (!played[i].is_closed && !visitor(visitor_context, &played[i], played[i].role))
            return;
    }
}

static void play_close(void *context, void *connection)
{
    struct played *socket = connection;
    (void)context;
    cr_assert_not(socket->is_closed);
    socket->is_closed = true;
    closed++;
}

static bool play_let_go(void *context, void *connection)
{
    struct played *socket = connection;
    (void)context;
    bool is_new = !socket->is_let_go;
    socket->is_let_go = true;
    let_go += is_new;
    return is_new;
}

static bool play_let_go_local(void *context)
{
    (void)context;
    if (locals == 0)
        return false;
    locals--;
    return true;
}

static uint64_t play_count(void *context)
{
    (void)context;
    return SOCKETS - closed;
}

static uint64_t play_local_count(void *context)
{
    (void)context;
    return locals;
}

static const struct drain_sockets sockets = {
    play_visit, play_close, play_let_go, play_let_go_local, play_count, play_local_count, NULL,
};

static void play(void)
{
    for (unsigned i = 0; i < SOCKETS; i++)
        played[i].role = i < WORKERS ? WS_ROLE_WORKER : WS_ROLE_STREAM;
    locals = 3;
}

Test(drain, workers_are_asked_to_go_before_subscribers_are_sent, .init = play,
     .timeout = HANG_SECONDS)
{
    struct drain drain;
    uint64_t now_ms = 1000;
    drain_start(&drain, &sockets, 5000, now_ms);
    cr_assert_eq(drain.begun_with, SOCKETS + 3u);
    const uint64_t span_ms = SOCKETS * DRAIN_SOCKET_MS;
    for (; now_ms < 1000 + span_ms / 2; now_ms += DRAIN_TICK_MS)
        cr_assert_not(drain_tick(&drain, now_ms));
    cr_assert_not(drain_tick(&drain, now_ms));
    cr_assert_eq(let_go, WORKERS);
    cr_assert_eq(locals, 0);
    cr_assert_eq(closed, (SOCKETS - WORKERS) / 2);
    for (; now_ms < 1000 + span_ms; now_ms += DRAIN_TICK_MS)
        cr_assert_not(drain_tick(&drain, now_ms), "the workers have not gone");
    cr_assert_not(drain_tick(&drain, now_ms));
    cr_assert_eq(closed, SOCKETS - WORKERS);
    cr_assert_eq(let_go, WORKERS, "each is told once");
    for (unsigned i = 0; i < WORKERS; i++) /* behind their last answers */
        play_close(NULL, &played[i]);
    cr_assert(drain_tick(&drain, now_ms + DRAIN_TICK_MS));
}

Test(drain, whoever_is_left_at_the_end_of_the_window_is_closed, .init = play,
     .timeout = HANG_SECONDS)
{
    struct drain drain;
    drain_start(&drain, &sockets, 100, 0);
    for (uint64_t now_ms = DRAIN_TICK_MS; now_ms < 100; now_ms += DRAIN_TICK_MS)
        cr_assert_not(drain_tick(&drain, now_ms));
    cr_assert_lt(closed, SOCKETS);
    cr_assert(drain_tick(&drain, 100));
    cr_assert_eq(closed, SOCKETS);
}

/* A loop that stood still makes up for it, and no more than that. */
Test(drain, a_late_tick_sends_those_who_are_due, .init = play, .timeout = HANG_SECONDS)
{
    struct drain drain;
    drain_start(&drain, &sockets, 5000, 0);
    cr_assert_not(drain_tick(&drain, SOCKETS * DRAIN_SOCKET_MS / 2));
    cr_assert_eq(closed, (SOCKETS - WORKERS) / 2);
}

/* Which subscriptions are there, as the broker knows it: each that was announced leaves once, when
 * its gateway says so or goes (PROTOCOL 6.2, 6.6, 8.5). No sockets, no triggers. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "broker/presence.h"
#include "shm/limits.h"
#include "tests/broker_recorder.h"

static struct presence *presence;
static struct recorder recorder;
static struct broker_counters counters;
static const struct peer_handle a = {0, 1}, b = {1, 1}, a_again = {0, 2};

enum { LEFT_MAX = 100000 };
static struct left {
    char stream[32], payload[64];
} left[LEFT_MAX];
static unsigned left_count;

static void on_leave(void *context, struct span stream, struct span payload)
{
    (void)context;
    cr_assert_lt(left_count, LEFT_MAX);
    struct left *at = &left[left_count++];
    (void)snprintf(at->stream, sizeof at->stream, "%.*s", (int)stream.bytes, stream.data);
    (void)snprintf(at->payload, sizeof at->payload, "%.*s", (int)payload.bytes, payload.data);
}

static unsigned room = UINT32_MAX;

static bool on_has_room(void *context)
{
    (void)context;
    return left_count < room;
}

static void open_with(const struct presence_limits *limits)
{
    struct weir_error error = {0};
    const struct broker_output output = recorder_output(&recorder);
    const struct presence_listener listener = {on_leave, on_has_room, NULL};
    counters = (struct broker_counters){0};
    left_count = 0;
    cr_assert_eq(presence_open(&presence, &output, &counters, 4711, limits, &error), WEIR_OK);
    presence_listen(presence, &listener);
}

static void setup(void)
{
    open_with(NULL);
    presence_peer_attached(presence, a);
    presence_peer_attached(presence, b);
}

static void teardown(void)
{
    recorder_clear(&recorder);
    presence_close(presence);
}

TestSuite(presence, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static void joined(struct peer_handle peer, uint64_t number, const char *stream,
                   const char *payload)
{
    const struct wire_message message = {
        .type = WIRE_PRESENCE_JOINED,
        .fields = {WIRE_NUMBER(number), WIRE_SPAN(span_text(stream)),
                   WIRE_SPAN(span_text(payload))},
    };
    cr_assert_eq(presence_take(presence, peer, &message), WEIR_OK);
}

static void leaves(struct peer_handle peer, uint64_t number)
{
    const struct wire_message message = {.type = WIRE_PRESENCE_LEFT,
                                         .fields = {WIRE_NUMBER(number)}};
    cr_assert_eq(presence_take(presence, peer, &message), WEIR_OK);
}

static void run_all(void)
{
    unsigned turns = 0;
    while (presence_run(presence, 1000))
        cr_assert_lt(turns++, 10000);
}

static void expect_told(unsigned index, struct peer_handle peer, enum wire_type type,
                        uint64_t number)
{
    cr_assert_lt(index, recorder.count);
    cr_assert_eq(recorder.messages[index].type, type);
    cr_assert_eq(recorder.messages[index].fields[0].number, number);
    cr_assert(peer_handle_equal(recorder.messages[index].peer, peer));
}

Test(presence, every_gateway_is_told_when_leaves_are_wanted)
{
    presence_set_wanted(presence, true);
    cr_assert_eq(recorder.count, 2);
    expect_told(0, a, WIRE_PRESENCE_WANTED, 1);
    expect_told(1, b, WIRE_PRESENCE_WANTED, 1);
    presence_set_wanted(presence, true);
    cr_assert_eq(recorder.count, 2, "no change, no word");
    presence_peer_gone(presence, a);
    presence_peer_attached(presence, a_again);
    expect_told(2, a_again, WIRE_PRESENCE_WANTED, 1);
    presence_set_wanted(presence, false);
    cr_assert_eq(recorder.count, 5);
    expect_told(3, a_again, WIRE_PRESENCE_WANTED, 0);
    presence_peer_gone(presence, b);
    presence_peer_attached(presence, b);
    cr_assert_eq(recorder.count, 5, "nothing to say to a new one");
}

Test(presence, a_leave_is_fired_once_and_then_answered)
{
    presence_set_wanted(presence, true);
    recorder_clear(&recorder);
    joined(a, 1, "chat", "{\"n\":1}");
    joined(b, 1, "chat", "{\"n\":2}");
    cr_assert_eq(presence_count(presence), 2);
    leaves(a, 1);
    cr_assert(presence_is_due(presence));
    cr_assert_eq(recorder.count, 0, "not before it is fired");
    run_all();
    cr_assert_eq(left_count, 1);
    cr_assert_str_eq(left[0].stream, "chat");
    cr_assert_str_eq(left[0].payload, "{\"n\":1}");
    cr_assert_eq(recorder.count, 1);
    expect_told(0, a, WIRE_PRESENCE_LEFT, 1);
    cr_assert_str_eq(recorded_text(&recorder.messages[0], 1), "(nil)", "the number says it all");
    leaves(a, 1);
    run_all();
    cr_assert_eq(left_count, 1, "a second one finds nothing");
    expect_told(1, a, WIRE_PRESENCE_LEFT, 1);
    presence_peer_gone(presence, a);
    run_all();
    cr_assert_eq(left_count, 1);
    cr_assert_eq(presence_count(presence), 1);
}

Test(presence, the_same_number_again_replaces_silently)
{
    presence_set_wanted(presence, true);
    joined(a, 1, "chat", "{\"n\":1}");
    joined(a, 1, "news", "{\"n\":2}");
    cr_assert_eq(presence_count(presence), 1);
    run_all();
    cr_assert_eq(left_count, 0);
    presence_peer_gone(presence, a);
    run_all();
    cr_assert_eq(left_count, 1);
    cr_assert_str_eq(left[0].stream, "news");
    cr_assert_str_eq(left[0].payload, "{\"n\":2}");
}

/* A gateway's death is a leave of all of its subscriptions, a bounded number per turn. */
Test(presence, a_gateways_death_fires_all_of_its_own)
{
    enum { COUNT = 5 * PRESENCE_TURN_MAX };
    presence_set_wanted(presence, true);
    for (unsigned number = 1; number <= COUNT; number++) {
        char payload[32];
        (void)snprintf(payload, sizeof payload, "%u", number);
        joined(a, number, "s", payload);
    }
    joined(b, 1, "s", "0");
    recorder_clear(&recorder);
    leaves(a, 7); /* told, and not yet fired when the gateway goes */
    presence_peer_gone(presence, a);
    cr_assert_eq(left_count, 0, "not from within");
    cr_assert(presence_run(presence, 1000));
    cr_assert_eq(left_count, PRESENCE_TURN_MAX);
    run_all();
    cr_assert_eq(left_count, COUNT);
    static bool seen[COUNT + 1];
    for (unsigned index = 0; index < left_count; index++) {
        unsigned number = (unsigned)atoi(left[index].payload);
        cr_assert_not(seen[number], "%u left twice", number);
        seen[number] = true;
    }
    cr_assert_eq(presence_count(presence), 1);
    cr_assert_eq(recorder.count, 1, "only the one that was told is answered");
}

static void expect_held(uint64_t now_ms)
{
    unsigned before = left_count;
    cr_assert_not(presence_run(presence, now_ms));
    cr_assert_not(presence_is_due(presence), "the loop may sleep");
    cr_assert_eq(left_count, before);
}

/* A broker that has just started waits until everybody is back, and a while longer. */
Test(presence, leaves_are_held_back_after_the_start)
{
    presence_hold(presence, 5000);
    presence_await(presence, 2, 5000);
    presence_set_wanted(presence, true);
    joined(a, 1, "s", "1");
    leaves(a, 1);
    expect_held(5000);
    expect_held(5000 + PRESENCE_HOLD_MS);
    presence_await(presence, 1, 6000);
    expect_held(6000 + PRESENCE_HOLD_MS);
    presence_await(presence, 0, 7000);
    expect_held(7000);
    expect_held(7000 + PRESENCE_HOLD_MS - 1);
    (void)presence_run(presence, 7000 + PRESENCE_HOLD_MS);
    cr_assert_eq(left_count, 1);
    /* One that does not come back is not waited for any longer. */
    presence_hold(presence, 9000);
    presence_await(presence, 1, 9000);
    joined(a, 2, "s", "1");
    leaves(a, 2);
    expect_held(9000 + PRESENCE_HOLD_ALL_MS - 1);
    (void)presence_run(presence, 9000 + PRESENCE_HOLD_ALL_MS);
    cr_assert_eq(left_count, 2);
    presence_hold(presence, 5000);
    joined(a, 3, "s", "1");
    leaves(a, 3);
    (void)presence_run(presence, 4000);
    cr_assert_eq(left_count, 3, "the clock was set back");
}

/* Slow handlers are waited for, the loop may sleep; one that hangs only slows the others. */
Test(presence, leaves_wait_for_room_but_not_for_ever)
{
    enum { COUNT = 3 * PRESENCE_TURN_MAX };
    presence_set_wanted(presence, true);
    for (unsigned number = 1; number <= COUNT; number++)
        joined(a, number, "s", "1");
    presence_peer_gone(presence, a);
    room = 10;
    (void)presence_run(presence, 0);
    cr_assert_eq(left_count, 10);
    cr_assert_not(presence_is_due(presence));
    cr_assert_not(presence_run(presence, PRESENCE_ROOM_MS - 1));
    cr_assert_eq(left_count, 10);
    room = 20;
    cr_assert_not(presence_run(presence, PRESENCE_ROOM_MS - 1));
    cr_assert_eq(left_count, 20);
    (void)presence_run(presence, 2 * PRESENCE_ROOM_MS);
    cr_assert_eq(left_count, 20 + PRESENCE_TURN_MAX);
    room = UINT32_MAX;
    run_all();
    cr_assert_eq(left_count, COUNT);
}

Test(presence, nobody_wants_it_any_more)
{
    enum { COUNT = 3 * PRESENCE_FREES_MAX };
    presence_set_wanted(presence, true);
    for (unsigned number = 1; number <= COUNT; number++)
        joined(a, number, "s", "1");
    leaves(a, 1);
    presence_set_wanted(presence, false);
    cr_assert_eq(presence_count(presence), 0, "at once");
    leaves(a, 2);
    joined(a, COUNT + 1, "s", "1");
    presence_set_wanted(presence, true);
    leaves(a, 3);
    joined(a, 4, "s", "again");
    cr_assert_eq(presence_count(presence), 1);
    run_all();
    cr_assert_eq(left_count, 0);
    leaves(a, 4);
    run_all();
    cr_assert_eq(left_count, 1);
    cr_assert_str_eq(left[0].payload, "again");
    presence_peer_gone(presence, a);
    run_all();
    cr_assert_eq(left_count, 1);
}

TestSuite(presence_bounds, .fini = teardown, .timeout = HANG_SECONDS);

Test(presence_bounds, what_is_beyond_them_is_counted)
{
    const struct presence_limits limits = {.entries_max = 2, .bytes_max = 4096};
    open_with(&limits);
    presence_peer_attached(presence, a);
    presence_set_wanted(presence, true);
    recorder_clear(&recorder);
    joined(a, 1, "s", "1");
    joined(a, 2, "s", "2");
    joined(a, 3, "s", "3");
    cr_assert_eq(counters.presence_refused, 1);
    leaves(a, 3);
    cr_assert_eq(recorder.count, 1);
    expect_told(0, a, WIRE_PRESENCE_LEFT, 3);
    joined(a, 2, "s", "22");
    cr_assert_eq(counters.presence_refused, 1, "a replacement needs no more room");
    leaves(a, 1);
    run_all();
    static char large[4000];
    memset(large, '1', sizeof large - 1);
    joined(a, 4, "s", large);
    cr_assert_eq(counters.presence_refused, 2);
    cr_assert_eq(presence_count(presence), 1);
}

Test(presence, messages_no_gateway_sends_are_invalid)
{
    presence_set_wanted(presence, true);
    struct wire_message message = {.type = WIRE_PRESENCE_WANTED};
    cr_assert_eq(presence_take(presence, a, &message), WEIR_INVALID);
    message.type = WIRE_PRESENCE_JOINED;
    cr_assert_eq(presence_take(presence, a, &message), WEIR_INVALID, "no stream, no payload");
    message.fields[1].span = SPAN_LITERAL("s");
    cr_assert_eq(presence_take(presence, a, &message), WEIR_INVALID, "no payload");
    message.fields[2].span = span_of(left, PRESENCE_PAYLOAD_BYTES_MAX + 1);
    cr_assert_eq(presence_take(presence, a, &message), WEIR_INVALID, "too large");
    message.fields[2].span = SPAN_LITERAL("{}");
    cr_assert_eq(presence_take(presence, a, &message), WEIR_OK);
}

/* Random joins, leaves, replacements and deaths against a plain array: each subscription leaves
 * exactly once, with what it was announced with last. */
Test(presence, model)
{
    enum { SLOTS = 8, NUMBERS = 40, STEPS = 60000 };
    static struct {
        bool is_there;
        unsigned tag;
    } known[SLOTS][NUMBERS];
    static unsigned expected[STEPS + 1], got[STEPS + 1];
    struct timespec clock;
    (void)clock_gettime(CLOCK_REALTIME, &clock);
    unsigned seed = (unsigned)clock.tv_nsec;
    (void)fprintf(stderr, "presence model: seed %u\n", seed);
    srandom(seed);
    struct peer_handle peers[SLOTS];
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        peers[slot] = (struct peer_handle){10 + slot, 1};
        presence_peer_attached(presence, peers[slot]);
    }
    presence_set_wanted(presence, true);
    unsigned alive = 0;
    for (unsigned step = 1; step <= STEPS; step++) {
        unsigned slot = (unsigned)random() % SLOTS;
        unsigned number = (unsigned)random() % NUMBERS;
        unsigned dice = (unsigned)random() % 1000;
        if (dice < 500) {
            char payload[32];
            (void)snprintf(payload, sizeof payload, "%u", step);
            joined(peers[slot], number + 1, "s", payload);
            alive += !known[slot][number].is_there;
            known[slot][number].is_there = true;
            known[slot][number].tag = step;
        } else if (dice < 980) {
            leaves(peers[slot], number + 1);
            alive -= known[slot][number].is_there;
            expected[known[slot][number].tag] += known[slot][number].is_there;
            known[slot][number].is_there = false;
        } else if (dice < 990) {
            presence_peer_gone(presence, peers[slot]);
            for (number = 0; number < NUMBERS; number++) {
                alive -= known[slot][number].is_there;
                expected[known[slot][number].tag] += known[slot][number].is_there;
                known[slot][number].is_there = false;
            }
            peers[slot].generation++;
            presence_peer_attached(presence, peers[slot]);
        } else if (dice < 992) {
            run_all(); /* what has left by now is to be fired */
            presence_set_wanted(presence, false);
            presence_set_wanted(presence, true);
            memset(known, 0, sizeof known);
            alive = 0;
        } else {
            (void)presence_run(presence, 1000);
        }
        if (step % 1000 == 0) {
            run_all();
            cr_assert_eq(presence_count(presence), alive);
            recorder_clear(&recorder);
        }
    }
    run_all();
    for (unsigned index = 0; index < left_count; index++)
        got[atoi(left[index].payload)]++;
    for (unsigned step = 0; step <= STEPS; step++)
        cr_assert_eq(got[step], expected[step], "subscription of step %u left %u times, not %u",
                     step, got[step], expected[step]);
}

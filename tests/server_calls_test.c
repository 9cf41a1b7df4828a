/* Calls the gateway makes itself, against a broker played by the test: a real link on a real loop
 * and a real unix socket. */
#include <criterion/criterion.h>

#include <stdlib.h>

#include "gateway/server_calls.h"
#include "tests/played_broker.h"

enum { NOTES_MAX = 64, TEXT_BYTES = 128, WAIT_BYTES_MAX = 64 * 1024 };

static struct world {
    struct counters counters;
    struct server_calls *calls;
} world;

static void broker_answer(uint64_t id, const char *result, const char *error_json)
{
    const struct wire_field fields[] = {
        result == NULL ? WIRE_NIL : WIRE_SPAN(span_text(result)),
        error_json == NULL ? WIRE_NIL : WIRE_SPAN(span_text(error_json)), WIRE_NIL, WIRE_NIL};
    broker_send(WIRE_RESULT, id, fields);
    pump();
}

/* ---- the world ---- */

static void on_attached(void *context, const struct link_attachment *attachment)
{
    (void)context;
    broker_was_attached(attachment);
}
static void on_lost(void *context)
{
    (void)context;
    broker_was_lost();
}
static void on_message(void *context, const struct wire_message *message)
{
    (void)context;
    (void)message;
}

static void world_open(uint64_t wait_ms)
{
    const struct link_handlers handlers = {NULL, on_attached, on_lost, on_message, NULL};
    broker_open();
    world.calls = server_calls_open(&world.counters);
    cr_assert_not_null(world.calls);
    cr_assert_not(server_calls_are_flowing(world.calls), "there is no link");
    broker_link(&handlers, &world.counters, wait_ms, WAIT_BYTES_MAX);
    server_calls_set_link(world.calls, broker.link);
    broker_attach();
}

static void world_free(void)
{
    broker_end_loop();
    server_calls_close(world.calls);
    broker_close();
}

static void world_close(void)
{
    link_close(broker.link);
    world_free();
}

/* ---- calls ---- */

static struct note {
    unsigned times;
    enum server_call_fate fate;
    bool has_result, has_error;
    char result[TEXT_BYTES], error[TEXT_BYTES];
    struct server_call *call; /* as it was started */
    struct note *starts;      /* done() starts this one */
    struct note *cancels;     /* and cancels that one */
} notes[NOTES_MAX];

static void note_text(char *to, struct span text)
{
    cr_assert_lt(text.bytes, TEXT_BYTES);
    if (text.bytes > 0)
        memcpy(to, text.data, text.bytes);
    to[text.bytes] = '\0';
}

static void start(struct note *note, uint64_t timeout_ms);

static void on_done(void *context, enum server_call_fate fate, struct span result,
                    struct span error_json)
{
    struct note *note = context;
    note->times++;
    note->fate = fate;
    note->has_result = result.data != NULL;
    note->has_error = error_json.data != NULL;
    note_text(note->result, result);
    note_text(note->error, error_json);
    if (note->cancels != NULL)
        server_call_cancel(note->cancels->call);
    if (note->starts != NULL)
        start(note->starts, 60000);
}

static struct server_call_request request_of(struct span data, uint64_t timeout_ms)
{
    return (struct server_call_request){
        .function = SPAN_LITERAL("app::f"), .data = data, .timeout_ms = timeout_ms};
}

static void start(struct note *note, uint64_t timeout_ms)
{
    const struct server_call_request request = request_of(SPAN_LITERAL("{\"a\":1}"), timeout_ms);
    note->call = server_call_start(world.calls, &request, on_done, note);
    cr_assert_not_null(note->call);
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

/* So many ms from now. The second tick judges: the first finds that time has made a jump. */
static void tick(uint64_t ahead_ms)
{
    uint64_t now = now_ms() + ahead_ms;
    server_calls_tick(world.calls, now);
    server_calls_tick(world.calls, now);
}

Test(server_calls, everything_given_reaches_the_broker, .timeout = HANG_SECONDS)
{
    world_open(1000);
    struct server_call_request request = {
        .name_space = SPAN_LITERAL("ns"),
        .function = SPAN_LITERAL("app::f"),
        .data = SPAN_LITERAL("[1]"),
        .metadata = SPAN_LITERAL("{\"m\":1}"),
        .traceparent = SPAN_LITERAL("00-a"),
        .baggage = SPAN_LITERAL("k=v"),
        .timeout_ms = 1000,
    };
    cr_assert_not_null(server_call_start(world.calls, &request, on_done, &notes[0]));
    struct wire_message message = broker_expect(WIRE_CALL);
    cr_assert_neq(message.id, 0, "an answer is wanted");
    cr_assert_eq(message.fields[0].number, 0, "nobody's session");
    static const char *const expected[] = {"ns", "app::f", "[1]", "{\"m\":1}", "00-a", "k=v"};
    for (unsigned i = 0; i < 6; i++)
        cr_assert(span_equal(message.fields[i + 1].span, span_text(expected[i])), "field %u",
                  i + 1);
    request = (struct server_call_request){.function = SPAN_LITERAL("g"), .timeout_ms = 1000};
    cr_assert_not_null(server_call_start(world.calls, &request, on_done, &notes[1]));
    message = broker_expect(WIRE_CALL);
    cr_assert(span_equal(message.fields[3].span, SPAN_LITERAL("null")), "data is never nil");
    cr_assert_null(message.fields[1].span.data);
    for (unsigned i = 4; i < 7; i++)
        cr_assert_null(message.fields[i].span.data);
    cr_assert_eq(world.counters.values[COUNTER_SERVER_CALLS], 2);
    world_close();
}

Test(server_calls, each_answer_ends_its_own_call_once, .timeout = HANG_SECONDS)
{
    static const struct {
        const char *result, *error;
        enum server_call_fate fate;
    } cases[] = {{"{\"x\":1}", NULL, SERVER_CALL_RESULT},
                 {NULL, NULL, SERVER_CALL_RESULT},
                 {NULL, "{\"code\":\"c\"}", SERVER_CALL_ERROR},
                 {"false", NULL, SERVER_CALL_RESULT}};
    uint64_t ids[4];
    world_open(1000);
    for (unsigned i = 0; i < 4; i++)
        start(&notes[i], 60000);
    for (unsigned i = 0; i < 4; i++)
        ids[i] = broker_expect(WIRE_CALL).id;
    for (unsigned i = 4; i-- > 0;) { /* not in the order they were asked */
        cr_assert_eq(notes[i].times, 0);
        broker_answer(ids[i], cases[i].result, cases[i].error);
        broker_answer(ids[i], "\"again\"", NULL);
        cr_assert_eq(notes[i].times, 1);
        cr_assert_eq(notes[i].fate, cases[i].fate);
        cr_assert_eq(notes[i].has_result, cases[i].result != NULL);
        cr_assert_eq(notes[i].has_error, cases[i].error != NULL);
        cr_assert_str_eq(notes[i].result, cases[i].result == NULL ? "" : cases[i].result);
        cr_assert_str_eq(notes[i].error, cases[i].error == NULL ? "" : cases[i].error);
    }
    tick(1000000);
    cr_assert_eq(world.counters.values[COUNTER_SERVER_CALLS_FAILED], 1);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(notes[i].times, 1);
    world_close();
}

Test(server_calls, what_is_late_ends_without_its_answer, .timeout = HANG_SECONDS)
{
    world_open(1000);
    start(&notes[0], 60000);
    start(&notes[1], 500000);
    start(&notes[2], 60000);
    uint64_t late = broker_expect(WIRE_CALL).id;
    uint64_t timely = broker_expect(WIRE_CALL).id;
    tick(0);
    cr_assert_eq(notes[0].times + notes[1].times + notes[2].times, 0);
    tick(60001);
    cr_assert_eq(notes[0].fate, SERVER_CALL_LATE);
    cr_assert_eq(notes[2].fate, SERVER_CALL_LATE);
    cr_assert_eq(notes[0].times, 1);
    cr_assert_eq(notes[2].times, 1);
    cr_assert_eq(notes[1].times, 0);
    broker_answer(late, "1", NULL);
    cr_assert_eq(notes[0].times, 1, "what comes now meets nobody");
    broker_answer(timely, "1", NULL);
    cr_assert_eq(notes[1].fate, SERVER_CALL_RESULT);
    cr_assert_eq(world.counters.values[COUNTER_SERVER_CALLS_FAILED], 2);
    world_close();
}

/* A gateway that was stopped reads the answers that have come meanwhile before it judges. */
Test(server_calls, a_gateway_that_stood_still_reads_first, .timeout = HANG_SECONDS)
{
    world_open(1000);
    start(&notes[0], 60000);
    start(&notes[1], 60000);
    uint64_t id = broker_expect(WIRE_CALL).id;
    uint64_t later = now_ms() + 90000;
    server_calls_tick(world.calls, later);
    cr_assert_eq(notes[0].times + notes[1].times, 0);
    broker_answer(id, "1", NULL);
    server_calls_tick(world.calls, later + 100);
    cr_assert_eq(notes[0].fate, SERVER_CALL_RESULT);
    cr_assert_eq(notes[1].fate, SERVER_CALL_LATE);
    world_close();
}

Test(server_calls, a_cancelled_call_is_never_done, .timeout = HANG_SECONDS)
{
    world_open(1000);
    start(&notes[0], 1000);
    start(&notes[1], 1000);
    server_call_cancel(notes[0].call);
    uint64_t id = broker_expect(WIRE_CALL).id;
    server_call_cancel(notes[1].call);
    broker_answer(id, "1", NULL);
    tick(100000);
    broker_die(); /* the second is still with the link */
    cr_assert_eq(notes[0].times, 0);
    cr_assert_eq(notes[1].times, 0);
    broker_listen();
    broker_attach();
    world_close();
}

/* Calls nobody waits for are called off at the broker, and use up nothing here: also those that were
 * still waiting for a broker. */
Test(server_calls, a_call_given_up_is_called_off, .timeout = HANG_SECONDS)
{
    world_open(60000);
    start(&notes[0], 60000);
    start(&notes[1], 500000);
    uint64_t late = broker_expect(WIRE_CALL).id;
    uint64_t cancelled = broker_expect(WIRE_CALL).id;
    tick(60001);
    cr_assert_eq(notes[0].fate, SERVER_CALL_LATE);
    cr_assert_eq(broker_expect(WIRE_CALL_CANCEL).id, late);
    server_call_cancel(notes[1].call);
    cr_assert_eq(broker_expect(WIRE_CALL_CANCEL).id, cancelled);
    broker_answer(late, "1", NULL);
    broker_answer(cancelled, "1", NULL);
    cr_assert_eq(notes[0].times + notes[1].times, 1);
    broker_die();
    start(&notes[2], 60000);
    start(&notes[3], 60000);
    server_call_cancel(notes[2].call);
    tick(60001);
    cr_assert_eq(notes[3].fate, SERVER_CALL_LATE);
    start(&notes[4], 500000);
    broker_listen();
    broker_attach();
    uint64_t ids[3];
    for (unsigned i = 0; i < 3; i++)
        ids[i] = broker_expect(WIRE_CALL).id;
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(broker_expect(WIRE_CALL_CANCEL).id, ids[i]);
    broker_answer(ids[2], "1", NULL);
    cr_assert_eq(notes[4].fate, SERVER_CALL_RESULT);
    cr_assert_eq(notes[2].times, 0);
    cr_assert_eq(notes[3].times, 1);
    world_close();
}

/* Goal: done() may start and cancel calls, those included that the same tick would end. */
Test(server_calls, done_may_start_and_cancel, .timeout = HANG_SECONDS)
{
    world_open(1000);
    for (unsigned i = 0; i < 6; i++)
        start(&notes[i], 60000);
    for (unsigned i = 0; i < 6; i += 2) { /* whichever ends first cancels the other */
        notes[i].cancels = &notes[i + 1];
        notes[i + 1].cancels = &notes[i];
        notes[i].starts = &notes[10 + i];
        notes[i + 1].starts = &notes[10 + i];
    }
    tick(60001);
    for (unsigned i = 0; i < 6; i += 2)
        cr_assert_eq(notes[i].times + notes[i + 1].times, 1);
    for (unsigned i = 0; i < 6; i++)
        (void)broker_expect(WIRE_CALL);
    unsigned cancelled = 0;
    for (unsigned answered = 0; answered < 3;) {
        struct wire_message message;
        cr_assert(broker_receive(&message));
        cancelled += message.type == WIRE_CALL_CANCEL;
        if (message.type != WIRE_CALL)
            continue;
        broker_answer(message.id, NULL, NULL);
        answered++;
    }
    while (cancelled < 6) {
        (void)broker_expect(WIRE_CALL_CANCEL);
        cancelled++;
    }
    for (unsigned i = 10; i < 16; i += 2) {
        cr_assert_eq(notes[i].times, 1);
        cr_assert_eq(notes[i].fate, SERVER_CALL_RESULT, "younger than what was late");
    }
    world_close();
}

Test(server_calls, a_brokers_death_ends_what_it_may_have_seen, .timeout = HANG_SECONDS)
{
    world_open(60000);
    start(&notes[0], 600000);
    (void)broker_expect(WIRE_CALL);
    start(&notes[1], 600000); /* has not left the gateway */
    cr_assert(server_calls_are_flowing(world.calls));
    broker_die();
    cr_assert_not(server_calls_are_flowing(world.calls));
    cr_assert_eq(notes[0].times, 1);
    cr_assert_eq(notes[0].fate, SERVER_CALL_UNAVAILABLE);
    cr_assert_eq(notes[1].times, 0);
    start(&notes[2], 600000);
    pump();
    cr_assert_eq(notes[2].times, 0, "waits for the next broker");
    broker_listen();
    broker_attach();
    broker_answer(broker_expect(WIRE_CALL).id, "1", NULL);
    broker_answer(broker_expect(WIRE_CALL).id, "2", NULL);
    cr_assert_str_eq(notes[1].result, "1");
    cr_assert_str_eq(notes[2].result, "2");
    world_close();
}

Test(server_calls, waiting_for_a_broker_is_bounded, .timeout = HANG_SECONDS)
{
    static char data[WAIT_BYTES_MAX / 4];
    world_open(1);
    broker_die();
    memset(data, '1', sizeof data);
    const struct server_call_request request = request_of(span_of(data, sizeof data), 600000);
    unsigned taken = 0;
    while (server_call_start(world.calls, &request, on_done, &notes[taken]) != NULL) {
        taken++;
        cr_assert_lt(taken, NOTES_MAX);
    }
    cr_assert_eq(taken, 3, "as many as write_wait_bytes_max holds");
    cr_assert_eq(world.counters.values[COUNTER_SERVER_CALLS], taken);
    for (unsigned i = 0; i < BROKER_PUMPS_MAX && notes[0].times == 0; i++) {
        (void)usleep(1000);
        uv_update_time(&broker.loop);
        link_tick(broker.link);
    }
    for (unsigned i = 0; i < taken; i++)
        cr_assert_eq(notes[i].fate, SERVER_CALL_UNAVAILABLE);
    cr_assert_eq(notes[taken].times, 0, "done() is not called for what was not taken");
    broker_listen();
    broker_attach();
    world_close();
}

/* A broker that does not read: whoever can wait is told to, long before others are refused. */
Test(server_calls, a_backlog_is_not_flowing, .timeout = HANG_SECONDS)
{
    enum { VALUE = 1024 * 1024 };
    char *data = malloc(VALUE);
    cr_assert_not_null(data);
    memset(data, '1', VALUE);
    world_open(60000);
    const struct server_call_request request = request_of(span_of(data, VALUE), 600000);
    unsigned taken = 0;
    for (; server_calls_are_flowing(world.calls); taken++) {
        cr_assert_lt(taken, NOTES_MAX - 1);
        cr_assert_not_null(server_call_start(world.calls, &request, on_done, &notes[taken]));
        link_flush(broker.link);
    }
    cr_assert_geq(taken, LINK_BACKLOG_BYTES_MAX / VALUE);
    cr_assert_not_null(server_call_start(world.calls, &request, on_done, &notes[taken]),
                       "there is still room");
    for (unsigned i = 0; i <= taken; i++)
        broker_answer(broker_expect(WIRE_CALL).id, NULL, NULL);
    cr_assert(server_calls_are_flowing(world.calls));
    cr_assert_eq(notes[taken].times, 1);
    free(data);
    world_close();
}

Test(server_calls, closing_the_link_ends_what_is_open, .timeout = HANG_SECONDS)
{
    world_open(60000);
    start(&notes[0], 600000);
    (void)broker_expect(WIRE_CALL);
    start(&notes[1], 600000);
    const struct server_call_request request = request_of(SPAN_LITERAL("1"), 1000);
    link_close(broker.link);
    cr_assert_eq(notes[0].fate, SERVER_CALL_UNAVAILABLE);
    cr_assert_eq(notes[0].times, 1);
    cr_assert_eq(notes[1].times, 1);
    cr_assert_not(server_calls_are_flowing(world.calls));
    cr_assert_null(server_call_start(world.calls, &request, on_done, &notes[2]));
    world_free();
}

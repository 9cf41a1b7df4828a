/* Calls of leave and engine trigger handlers, with real routes and no sockets: order, bounds,
 * conditions, failures (PROTOCOL 8.4, 8.5). */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/deliveries.h"
#include "tests/broker_recorder.h"

enum { TIMEOUT_MS = 5000 };

static struct routes *routes;
static struct deliveries *deliveries;
static struct recorder recorder = {.hides_cancels = true};
static struct broker_counters counters;
static uint64_t now_ms;
static const struct peer_handle worker = {3, 1};

static void take(enum wire_type type, uint64_t number, const char *f1, const char *f2)
{
    struct wire_message message = {.type = type};
    message.fields[0].number = number;
    message.fields[1].span = f1 ? span_text(f1) : (struct span){0};
    message.fields[2].span = f2 ? span_text(f2) : (struct span){0};
    cr_assert_eq(routes_take(routes, worker, &message), WEIR_OK);
}

static void setup(void)
{
    struct weir_error error = {0};
    const struct broker_output output = recorder_output(&recorder);
    counters = (struct broker_counters){0};
    now_ms = 1000000;
    cr_assert_eq(routes_open(&routes, &output, &counters, 4711, NULL, &error), WEIR_OK);
    cr_assert_eq(deliveries_open(&deliveries, routes, &counters, TIMEOUT_MS, &error), WEIR_OK);
    take(WIRE_SESSION_OPEN, 1, "worker", "127.0.0.1");
    take(WIRE_FUNCTION_REGISTER, 1, NULL, "handler");
    take(WIRE_FUNCTION_REGISTER, 1, NULL, "condition");
    take(WIRE_FUNCTION_REGISTER, 1, "other", "handler");
}

static void teardown(void)
{
    recorder_clear(&recorder);
    recorder.busy = false;
    deliveries_close(deliveries);
    routes_close(routes);
}

TestSuite(deliveries, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static struct delivery_line *open_line(const char *function, const char *condition,
                                       const char *metadata)
{
    const struct delivery_target target = {
        .space = SPAN_LITERAL("default"),
        .function = span_text(function),
        .condition = condition ? span_text(condition) : (struct span){0},
        .metadata = metadata ? span_text(metadata) : (struct span){0},
    };
    struct delivery_line *line = delivery_line_open(deliveries, &target);
    cr_assert_not_null(line);
    return line;
}

static void push_number(struct delivery_line *line, unsigned number)
{
    char text[32];
    (void)snprintf(text, sizeof text, "{\"n\":%u}", number);
    delivery_line_push(line, span_text(text));
}

static bool run(void)
{
    return deliveries_run(deliveries, ++now_ms);
}

static const struct recorded *invoke_at(unsigned index)
{
    cr_assert_lt(index, recorder.count);
    cr_assert_eq(recorder.messages[index].type, WIRE_INVOKE);
    return &recorder.messages[index];
}

static void answer(const struct recorded *invoke, const char *result, const char *error)
{
    struct wire_message message = {.type = WIRE_RESULT, .id = invoke->id};
    message.fields[0].span = result ? span_text(result) : (struct span){0};
    message.fields[1].span = error ? span_text(error) : (struct span){0};
    cr_assert_eq(routes_take(routes, worker, &message), WEIR_OK);
}

Test(deliveries, a_payload_reaches_the_handler_with_the_triggers_metadata)
{
    struct delivery_line *line = open_line("handler", NULL, "{\"m\":1}");
    cr_assert_not(deliveries_are_due(deliveries));
    delivery_line_push(line, SPAN_LITERAL("{\"a\":1}"));
    cr_assert(deliveries_are_due(deliveries), "the loop must not wait");
    cr_assert_eq(recorder.count, 0, "not from within the push");
    cr_assert_not(run());
    cr_assert_not(deliveries_are_due(deliveries));
    cr_assert_eq(recorder.count, 1);
    const struct recorded *invoke = invoke_at(0);
    cr_assert_str_eq(recorded_text(invoke, 1), "handler");
    cr_assert_str_eq(recorded_text(invoke, 2), "{\"a\":1}");
    cr_assert_str_eq(recorded_text(invoke, 3), "{\"m\":1}");
    answer(invoke, "42", NULL);
    (void)run();
    cr_assert_eq(recorder.count, 1, "the result is ignored");
    cr_assert_eq(counters.deliveries, 1);
    cr_assert_eq(counters.deliveries_failed, 0);
    delivery_line_close(line);
}

Test(deliveries, handlers_are_called_in_order_and_a_bounded_number_at_once)
{
    enum { COUNT = 3 * DELIVERIES_OUTSTANDING_MAX };
    struct delivery_line *line = open_line("handler", NULL, NULL);
    for (unsigned number = 0; number < COUNT; number++)
        push_number(line, number);
    cr_assert_not(run(), "more can be done only after an answer");
    cr_assert_eq(recorder.count, DELIVERIES_OUTSTANDING_MAX);
    for (unsigned number = 0; number < COUNT; number++) {
        char expected[32];
        (void)snprintf(expected, sizeof expected, "{\"n\":%u}", number);
        cr_assert_str_eq(recorded_text(invoke_at(number), 2), expected);
        answer(invoke_at(number), NULL, NULL);
        (void)run();
    }
    cr_assert_eq(recorder.count, COUNT);
    cr_assert_eq(counters.deliveries, COUNT);
    delivery_line_close(line);
}

Test(deliveries, only_the_boolean_false_of_a_condition_skips_the_handler)
{
    static const struct {
        const char *result, *error;
        bool is_called;
    } cases[] = {
        {"false", NULL, false},
        {"true", NULL, true},
        {NULL, NULL, true},
        {"null", NULL, true},
        {"0", NULL, true},
        {"\"false\"", NULL, true},
        {"{\"value\":false}", NULL, true},
        {"[]", NULL, true},
        {NULL, "{\"code\":\"x\",\"message\":\"no\"}", false},
    };
    struct delivery_line *line = open_line("handler", "condition", "{\"m\":1}");
    for (unsigned index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        recorder_clear(&recorder);
        push_number(line, index);
        (void)run();
        cr_assert_eq(recorder.count, 1);
        cr_assert_str_eq(recorded_text(invoke_at(0), 1), "condition");
        cr_assert_str_eq(recorded_text(invoke_at(0), 3), "(nil)", "no metadata");
        char payload[32];
        (void)snprintf(payload, sizeof payload, "%s", recorded_text(invoke_at(0), 2));
        answer(invoke_at(0), cases[index].result, cases[index].error);
        (void)run();
        cr_assert_eq(recorder.count, cases[index].is_called ? 2 : 1, "case %u", index);
        if (!cases[index].is_called)
            continue;
        cr_assert_str_eq(recorded_text(invoke_at(1), 1), "handler");
        cr_assert_str_eq(recorded_text(invoke_at(1), 2), payload);
        cr_assert_str_eq(recorded_text(invoke_at(1), 3), "{\"m\":1}");
        answer(invoke_at(1), NULL, NULL);
    }
    cr_assert_eq(counters.deliveries_failed, 1, "the condition that failed");
    delivery_line_close(line);
}

/* Answers of conditions come in any order; handlers are called in the order of the pushes. */
Test(deliveries, a_late_condition_holds_back_those_behind_it)
{
    struct delivery_line *line = open_line("handler", "condition", NULL);
    for (unsigned number = 0; number < 3; number++)
        push_number(line, number);
    (void)run();
    cr_assert_eq(recorder.count, 3);
    answer(invoke_at(2), "true", NULL);
    answer(invoke_at(1), "false", NULL);
    (void)run();
    cr_assert_eq(recorder.count, 3, "the first is not decided");
    answer(invoke_at(0), "true", NULL);
    (void)run();
    cr_assert_eq(recorder.count, 5);
    cr_assert_str_eq(recorded_text(invoke_at(3), 2), "{\"n\":0}");
    cr_assert_str_eq(recorded_text(invoke_at(4), 2), "{\"n\":2}");
    delivery_line_close(line);
}

Test(deliveries, what_fails_is_counted_and_the_next_one_goes_on)
{
    struct delivery_line *missing = open_line("nobody", NULL, NULL);
    push_number(missing, 0);
    push_number(missing, 1);
    (void)run();
    cr_assert_eq(recorder.count, 0);
    cr_assert_eq(counters.deliveries, 2);
    cr_assert_eq(counters.deliveries_failed, 2);

    struct delivery_line *unasked = open_line("handler", "nobody", NULL);
    push_number(unasked, 0);
    (void)run();
    cr_assert_eq(recorder.count, 0, "a condition that is not there skips the handler");
    cr_assert_eq(counters.deliveries_failed, 3);

    struct delivery_line *line = open_line("handler", NULL, NULL);
    push_number(line, 0);
    push_number(line, 1);
    (void)run();
    answer(invoke_at(0), NULL, "{\"code\":\"handler\",\"message\":\"line\\nbreak \x07\"}");
    now_ms += TIMEOUT_MS + 1;
    routes_tick(routes, now_ms);
    cr_assert_eq(counters.deliveries_failed, 5, "one error, one that is late");
    push_number(line, 2);
    (void)run();
    cr_assert_eq(recorder.count, 3);
    delivery_line_close(missing);
    delivery_line_close(unasked);
    delivery_line_close(line);
}

Test(deliveries, a_worker_that_goes_fails_what_it_was_asked)
{
    struct delivery_line *line = open_line("handler", NULL, NULL);
    push_number(line, 0);
    (void)run();
    routes_peer_gone(routes, worker);
    cr_assert(deliveries_are_due(deliveries));
    cr_assert_eq(counters.deliveries_failed, 1);
    delivery_line_close(line);
}

/* Until its gateway keeps up, everything waits in order; nothing is lost and the loop may sleep. */
Test(deliveries, a_busy_gateway_is_asked_again)
{
    struct delivery_line *line = open_line("handler", "condition", NULL);
    push_number(line, 0);
    push_number(line, 1);
    recorder.busy = true;
    cr_assert_not(run());
    cr_assert_not(deliveries_are_due(deliveries));
    cr_assert_eq(recorder.count, 0);
    recorder.busy = false;
    (void)run();
    cr_assert_eq(recorder.count, 2);
    answer(invoke_at(0), NULL, NULL);
    recorder.busy = true;
    (void)run();
    answer(invoke_at(1), NULL, NULL);
    (void)run();
    cr_assert_eq(recorder.count, 2);
    recorder.busy = false;
    (void)run();
    cr_assert_eq(recorder.count, 4);
    cr_assert_str_eq(recorded_text(invoke_at(2), 2), "{\"n\":0}");
    cr_assert_str_eq(recorded_text(invoke_at(3), 2), "{\"n\":1}");
    cr_assert_eq(counters.deliveries_failed, 0);
    delivery_line_close(line);
}

Test(deliveries, a_closed_line_hears_of_nothing)
{
    struct delivery_line *line = open_line("handler", "condition", NULL);
    struct delivery_line *other = open_line("handler", NULL, NULL);
    for (unsigned number = 0; number < 2 * DELIVERIES_OUTSTANDING_MAX; number++)
        push_number(line, number);
    push_number(other, 7);
    (void)run();
    unsigned asked = recorder.count;
    cr_assert_eq(asked, DELIVERIES_OUTSTANDING_MAX + 1);
    answer(invoke_at(0), NULL, NULL);
    (void)run();
    delivery_line_close(line);
    for (unsigned index = 1; index < asked; index++)
        answer(invoke_at(index), NULL, NULL);
    (void)run();
    cr_assert_eq(recorder.count, asked + 1, "the one handler call made before the close");
    cr_assert_eq(counters.deliveries_failed, 0);
    delivery_line_close(other);
}

/* One copy serves all lines: more payload than the bound for all lines together fits, once each. */
Test(deliveries, payloads_are_shared_between_lines)
{
    enum { LINES = 100, BYTES = 1024 * 1024 };
    struct delivery_line *lines[LINES];
    char *text = malloc(BYTES);
    memset(text, ' ', BYTES);
    text[0] = '1';
    recorder.busy = true;
    for (unsigned index = 0; index < LINES; index++)
        lines[index] = open_line("handler", NULL, NULL);
    for (unsigned number = 0; number < 20; number++) {
        text[0] = (char)('0' + number % 10);
        for (unsigned index = 0; index < LINES; index++)
            delivery_line_push(lines[index], span_of(text, BYTES));
    }
    (void)run();
    cr_assert_eq(counters.deliveries_dropped, 0);
    for (unsigned index = 0; index < LINES; index++)
        delivery_line_close(lines[index]);
    free(text);
}

/* A line takes half of what there is, all lines together no more than that twice. */
Test(deliveries, what_is_beyond_the_bounds_is_dropped_and_counted)
{
    enum { BYTES = 1024 * 1024, HALF = DELIVERIES_LINE_BYTES_MAX / BYTES };
    struct delivery_line *lines[3];
    char *text = malloc(BYTES);
    memset(text, ' ', BYTES);
    recorder.busy = true;
    cr_assert(deliveries_have_room(deliveries));
    for (unsigned index = 0; index < 3; index++)
        lines[index] = open_line("handler", NULL, NULL);
    for (unsigned number = 0; number < HALF; number++) {
        text[0] = (char)('a' + number % 26); /* no two in a row are equal */
        delivery_line_push(lines[0], span_of(text, BYTES));
    }
    cr_assert_not(deliveries_have_room(deliveries), "one line does not have to fill up for that");
    cr_assert_eq(counters.deliveries_dropped, 1, "with its bookkeeping one does not fit");
    cr_assert_eq(counters.deliveries, 1);
    for (unsigned number = 0; number < HALF; number++) {
        text[0] = (char)('A' + number % 26);
        delivery_line_push(lines[1], span_of(text, BYTES));
    }
    cr_assert_eq(counters.deliveries_dropped, 2);
    for (unsigned number = 0; number < 2; number++) {
        text[0] = (char)('0' + number);
        delivery_line_push(lines[2], span_of(text, BYTES));
    }
    cr_assert_eq(counters.deliveries_dropped, 3, "one fits, where the others could not use it");
    delivery_line_close(lines[0]);
    delivery_line_push(lines[2], span_of(text, BYTES));
    cr_assert_eq(counters.deliveries_dropped, 3, "what is closed gives its share back");
    delivery_line_close(lines[1]);
    delivery_line_close(lines[2]);
    free(text);
}

/* A turn begins a bounded number of calls, and all lines come to their turn. */
Test(deliveries, a_turn_is_bounded_and_fair)
{
    enum { LINES = 80 };
    struct delivery_line *lines[LINES];
    for (unsigned index = 0; index < LINES; index++) {
        lines[index] = open_line("handler", NULL, NULL);
        for (unsigned number = 0; number < DELIVERIES_OUTSTANDING_MAX; number++)
            push_number(lines[index], index);
    }
    cr_assert(run(), "there is more");
    cr_assert(deliveries_are_due(deliveries));
    cr_assert_eq(recorder.count, DELIVERIES_TURN_MAX);
    cr_assert_not(run());
    cr_assert_eq(recorder.count, LINES * DELIVERIES_OUTSTANDING_MAX);
    for (unsigned index = 0; index < LINES; index++)
        delivery_line_close(lines[index]);
}

/* Any mix of pushes, answers, failures, lines that come and go: every handler call carries what was
 * pushed to its line, in order, once. */
Test(deliveries, model)
{
    enum { LINES = 4, STEPS = 20000 };
    static unsigned pushed[LINES], seen[LINES];
    uint64_t seed = 0x9E3779B97F4A7C15ull ^ (uint64_t)(uintptr_t)&seed;
    (void)fprintf(stderr, "deliveries model: seed %llu\n", (unsigned long long)seed);
    srandom((unsigned)seed);
    struct delivery_line *lines[LINES];
    for (unsigned index = 0; index < LINES; index++) {
        char metadata[16];
        (void)snprintf(metadata, sizeof metadata, "%u", index);
        lines[index] = open_line("handler", index % 2 ? "condition" : NULL, metadata);
    }
    static bool answered[RECORDER_MESSAGES_MAX];
    unsigned looked_at = 0, oldest = 0;
    for (unsigned step = 0; step < STEPS && recorder.count < RECORDER_MESSAGES_MAX - 1000; step++) {
        unsigned line = (unsigned)random() % LINES;
        recorder.busy = random() % 8 == 0;
        if (random() % 2)
            push_number(lines[line], pushed[line]++);
        (void)run();
        for (; looked_at < recorder.count; looked_at++) {
            const struct recorded *invoke = invoke_at(looked_at);
            if (strcmp(recorded_text(invoke, 1), "handler") != 0)
                continue;
            unsigned of = (unsigned)atoi(recorded_text(invoke, 3));
            unsigned number = (unsigned)atoi(recorded_text(invoke, 2) + 5);
            cr_assert_eq(number, seen[of], "line %u got %u after %u", of, number, seen[of]);
            seen[of]++;
        }
        while (oldest < recorder.count && answered[oldest])
            oldest++;
        for (unsigned at = oldest; at < recorder.count && at < oldest + 300; at++) {
            if (answered[at] || random() % 16 != 0)
                continue;
            answered[at] = true;
            answer(invoke_at(at), random() % 2 ? "true" : NULL, NULL);
        }
    }
    recorder.busy = false;
    for (unsigned index = 0; index < LINES; index++)
        delivery_line_close(lines[index]);
    cr_assert_eq(counters.deliveries_dropped, 0);
    cr_assert_gt(seen[0], 100);
    cr_assert_gt(seen[1], 100);
}

/* gateway/gates: the verdict over every combination of answers, waiting for the table, and what
 * becomes of joins whose socket, gate or broker goes. */
#include "gateway/gates.h"

#include <criterion/criterion.h>
#include <time.h>

#include "tests/caller_stub.h"

enum { TIMEOUT_MS = 500, DECISIONS_MAX = 4096 };

static struct counters counters;
static struct gates *gates;
static struct gate_visitor visitor;
static struct decision {
    struct gate_visitor *visitor;
    char id[32];
    bool is_path;
    enum gate_verdict verdict;
} decisions[DECISIONS_MAX];
static size_t decision_count;

static void on_decided(void *context, struct gate_visitor *whose,
                       const struct subscription_wish *wish, bool is_path,
                       enum gate_verdict verdict)
{
    cr_assert_eq(context, &decisions);
    cr_assert_lt(decision_count, DECISIONS_MAX);
    struct decision *decision = &decisions[decision_count++];
    decision->visitor = whose;
    decision->is_path = is_path;
    decision->verdict = verdict;
    (void)snprintf(decision->id, sizeof decision->id, "%.*s", (int)wish->subscription_id.bytes,
                   wish->subscription_id.data);
}

/* What the gateway tells the broker: one letter per away gate, its function; and how often that
 * this was all. */
static char posted[64];
static unsigned told_count;
static unsigned heard_count;

static void on_heard(void *context)
{
    cr_assert_eq(context, &heard_count);
    heard_count++;
}

static void on_post(void *context, enum wire_type type, const struct wire_field *fields)
{
    cr_assert_eq(context, &posted);
    if (type == WIRE_GATES_TOLD) {
        told_count++;
        return;
    }
    cr_assert_eq(type, WIRE_GATE_BIND);
    cr_assert_eq(fields[0].number, 0u);
    cr_assert_eq(fields[6].number, 1u);
    size_t length = strlen(posted);
    if (length + 1 < sizeof posted) {
        posted[length] = fields[2].span.data[0];
        posted[length + 1] = '\0';
    }
}

static void open_gates(bool is_closed)
{
    posted[0] = '\0';
    told_count = 0;
    heard_count = 0;
    struct gates_options options = {
        .timeout_ms = TIMEOUT_MS,
        .is_closed = is_closed,
        .decided = on_decided,
        .context = &decisions,
        .post = on_post,
        .post_context = &posted,
        .heard = on_heard,
        .heard_context = &heard_count,
    };
    struct caller caller = stub_caller();
    gates = gates_open(&options, &caller, &counters);
    cr_assert_not_null(gates);
}

static uint64_t generation;

/* Every gateway has said what it knew of gates. */
static void gates_are_told(void)
{
    const struct wire_message message = {.type = WIRE_GATES_TOLD};
    gates_take_message(gates, &message);
}

/* The question that follows every attach, to a new broker. */
static void attach_untold(void)
{
    size_t index = stub.count;
    gates_attached(gates, ++generation);
    cr_assert_eq(stub.count, index + 1);
    cr_assert_str_eq(stub.calls[index].function, "");
}

static void attach_unanswered(void)
{
    attach_untold();
    gates_are_told();
}

static void attach(void)
{
    size_t index = stub.count;
    attach_unanswered();
    stub_error(index, "function_not_found");
}

static void start(void)
{
    stub_reset();
    memset(&counters, 0, sizeof counters);
    memset(&visitor, 0, sizeof visitor);
    decision_count = 0;
    open_gates(true);
    attach();
}

static void stop(void)
{
    gates_forget(gates, &visitor);
    cr_assert_eq(visitor.count, 0u);
    gates_close(gates);
    stub_reset();
}

static void reopen(bool is_closed)
{
    gates_forget(gates, &visitor);
    gates_close(gates);
    stub_reset();
    decision_count = 0;
    memset(&counters, 0, sizeof counters);
    open_gates(is_closed);
    attach();
}

TestSuite(gates, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static struct span text_or_nil(const char *text)
{
    return text == NULL ? (struct span){0} : span_text(text);
}

static void gate_bind_all(uint64_t handle, const char *name_space, const char *function,
                          const char *stream, const char *condition, const char *metadata)
{
    const struct wire_message message = {
        .type = WIRE_GATE_BIND,
        .fields = {WIRE_NUMBER(handle), WIRE_SPAN(text_or_nil(name_space)),
                   WIRE_SPAN(text_or_nil(function)), WIRE_SPAN(text_or_nil(stream)),
                   WIRE_SPAN(text_or_nil(condition)), WIRE_SPAN(text_or_nil(metadata))}};
    gates_take_message(gates, &message);
}

static void gate_bind(uint64_t handle, const char *function)
{
    gate_bind_all(handle, NULL, function, NULL, NULL, NULL);
}

static void gate_unbind(uint64_t handle)
{
    const struct wire_message message = {.type = WIRE_GATE_UNBIND, .fields = {WIRE_NUMBER(handle)}};
    gates_take_message(gates, &message);
}

/* Its worker has gone. */
static void gate_leave(uint64_t handle)
{
    const struct wire_message message = {.type = WIRE_GATE_UNBIND,
                                         .fields = {WIRE_NUMBER(handle), WIRE_NUMBER(1)}};
    gates_take_message(gates, &message);
}

/* The broker knows of a gate whose worker has gone. */
static void gate_bind_away(uint64_t handle, const char *function, const char *stream)
{
    const struct wire_message message = {
        .type = WIRE_GATE_BIND,
        .fields = {WIRE_NUMBER(handle), WIRE_SPAN((struct span){0}), WIRE_SPAN(span_text(function)),
                   WIRE_SPAN(text_or_nil(stream)), WIRE_SPAN((struct span){0}),
                   WIRE_SPAN((struct span){0}), WIRE_NUMBER(1)}};
    gates_take_message(gates, &message);
}

static void pass_time(uint64_t ms)
{
    stub.now_ms += ms;
    gates_tick(gates);
}

static struct gate_question question_of(const char *id, const char *stream)
{
    return (struct gate_question){
        .wish = {.subscription_id = span_text(id),
                 .stream = span_text(stream),
                 .group = SPAN_LITERAL("g")},
        .may_wait = true,
    };
}

static enum gate_verdict ask_for(const char *id, const char *stream)
{
    struct gate_question question = question_of(id, stream);
    return gates_ask(gates, &visitor, &question);
}

static enum gate_verdict ask(void)
{
    return ask_for("s1", "chat");
}

static void expect_decided(size_t count, const char *id, enum gate_verdict verdict)
{
    cr_assert_eq(decision_count, count, "%zu decisions", decision_count);
    cr_assert_eq(decisions[count - 1].visitor, &visitor);
    cr_assert_str_eq(decisions[count - 1].id, id);
    cr_assert_eq(decisions[count - 1].verdict, verdict);
}

/* ---- what is asked ---- */

Test(gates, without_gates_every_join_passes_unasked)
{
    size_t asked = stub.count;
    cr_assert(gates_are_clear(gates));
    cr_assert_eq(ask(), GATE_PASSED);
    cr_assert_eq(stub.count, asked);
    cr_assert_eq(visitor.count, 0u);
}

Test(gates, the_handler_gets_payload_namespace_and_metadata)
{
    gate_bind_all(7, "shop", "app::gate", NULL, NULL, "{\"m\":1}");
    cr_assert_not(gates_are_clear(gates));
    struct gate_question question = question_of("s\"1", "ch\n");
    size_t index = stub.count;
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_WAITING);
    cr_assert_str_eq(stub.calls[index].name_space, "shop");
    cr_assert_str_eq(stub.calls[index].function, "app::gate");
    cr_assert_str_eq(stub.calls[index].metadata, "{\"m\":1}");
    cr_assert_str_eq(stub.calls[index].data,
                     "{\"subscription_id\":\"s\\\"1\",\"stream_name\":\"ch\\n\",\"group_id\":\"g\","
                     "\"id\":null,\"context\":null}");
    cr_assert_eq(stub.calls[index].deadline_ms, stub.now_ms + TIMEOUT_MS);
    question = question_of("s2", "");
    question.wish.item = SPAN_LITERAL("");
    question.context = SPAN_LITERAL("{\"user\":\"u1\"}");
    question.is_path = true;
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_WAITING);
    cr_assert_str_eq(stub.calls[index + 1].data,
                     "{\"subscription_id\":\"s2\",\"stream_name\":\"\",\"group_id\":\"g\","
                     "\"id\":\"\",\"context\":{\"user\":\"u1\"}}");
    cr_assert_eq(visitor.count, 2u);
    stub_answer(index + 1, NULL);
    expect_decided(1, "s2", GATE_PASSED);
    cr_assert(decisions[0].is_path);
    stub_answer(index, "{\"unauthorized\":true}");
    expect_decided(2, "s\"1", GATE_DENIED);
    cr_assert_not(decisions[1].is_path);
    cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], 1u);
    cr_assert_eq(visitor.count, 0u);
}

Test(gates, a_gate_of_another_stream_is_not_asked)
{
    gate_bind_all(1, NULL, "f", "chat", NULL, NULL);
    gate_bind_all(2, NULL, "empty", "", NULL, NULL);
    size_t index = stub.count;
    cr_assert_eq(ask_for("s1", "other"), GATE_PASSED);
    cr_assert_eq(stub.count, index);
    cr_assert_eq(ask_for("s1", "chat"), GATE_WAITING);
    cr_assert_eq(ask_for("s2", ""), GATE_WAITING);
    cr_assert_eq(stub.count, index + 2);
    cr_assert_str_eq(stub.calls[index].function, "f");
    cr_assert_str_eq(stub.calls[index + 1].function, "empty");
}

Test(gates, a_condition_is_asked_first_and_without_metadata)
{
    gate_bind_all(1, "n", "handler", NULL, "condition", "{\"m\":1}");
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(stub.count, index + 1, "the handler is not asked yet");
    cr_assert_str_eq(stub.calls[index].function, "condition");
    cr_assert_str_eq(stub.calls[index].name_space, "n");
    cr_assert_null(stub.calls[index].metadata);
    stub.now_ms += 200;
    stub_answer(index, "{}");
    cr_assert_eq(stub.count, index + 2);
    cr_assert_str_eq(stub.calls[index + 1].function, "handler");
    cr_assert_str_eq(stub.calls[index + 1].metadata, "{\"m\":1}");
    cr_assert_str_eq(stub.calls[index + 1].data, stub.calls[index].data);
    cr_assert_eq(stub.calls[index + 1].deadline_ms, stub.calls[index].deadline_ms,
                 "one limit for both");
    cr_assert_eq(decision_count, 0u);
    stub_answer(index + 1, "{}");
    expect_decided(1, "s1", GATE_PASSED);
}

/* ---- verdicts ---- */

struct answer {
    const char *result;
    enum server_call_fate fate;
    bool denies_open, denies_closed;
};

static const struct answer handler_answers[] = {
    {.result = "{\"unauthorized\":true}", .denies_open = true, .denies_closed = true},
    {.result = " {\"x\":{}, \"unauthorized\" : true }", .denies_open = true, .denies_closed = true},
    {.result = "{\"unauthorized\":false,\"unauthorized\":true}",
     .denies_open = true,
     .denies_closed = true},
    {.result = "{\"unauthorized\":true,\"unauthorized\":false}"},
    {.result = "{\"unauthorized\":false}"},
    {.result = "{}"},
    {.result = "{\"UNAUTHORIZED\":true,\"data\":{\"unauthorized\":true}}"},
    {.result = "null"},
    {.result = NULL},
    {.result = "true"},
    {.result = "[{\"unauthorized\":true}]"},
    {.result = "\"unauthorized\""},
    {.result = "{\"unauthorized\":\"true\"}", .denies_closed = true},
    {.result = "{\"unauthorized\":1}", .denies_closed = true},
    {.result = "{\"unauthorized\":null}", .denies_closed = true},
    {.result = "{\"unauthorized\":{}}", .denies_closed = true},
    {.result = "{\"unauthorized\":true", .denies_closed = true},
    {.fate = SERVER_CALL_ERROR, .denies_closed = true},
    {.fate = SERVER_CALL_LATE, .denies_closed = true},
    {.fate = SERVER_CALL_UNAVAILABLE, .denies_closed = true},
};

static void give(size_t index, const struct answer *answer)
{
    if (answer->fate == SERVER_CALL_RESULT)
        stub_answer(index, answer->result);
    else
        stub_fate(index, answer->fate);
}

Test(gates, every_answer_of_a_handler_is_taken_as_documented)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        gate_bind(1, "f");
        size_t denied = 0;
        for (size_t i = 0; i < sizeof handler_answers / sizeof handler_answers[0]; i++) {
            const struct answer *answer = &handler_answers[i];
            size_t index = stub.count;
            cr_assert_eq(ask(), GATE_WAITING);
            give(index, answer);
            bool denies = is_closed ? answer->denies_closed : answer->denies_open;
            denied += denies;
            expect_decided(i + 1, "s1", denies ? GATE_DENIED : GATE_PASSED);
        }
        cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], denied);
    }
}

/* 2: the handler is asked. */
static const struct {
    const char *result;
    enum server_call_fate fate;
    int open, closed;
} condition_answers[] = {
    {.result = "false", .open = 0, .closed = 0},
    {.result = " false ", .open = 0, .closed = 0},
    {.result = "true", .open = 2, .closed = 2},
    {.result = "null", .open = 2, .closed = 2},
    {.result = NULL, .open = 2, .closed = 2},
    {.result = "0", .open = 2, .closed = 2},
    {.result = "\"false\"", .open = 2, .closed = 2},
    {.result = "{\"unauthorized\":true}", .open = 2, .closed = 2},
    {.fate = SERVER_CALL_ERROR, .open = 0, .closed = 1},
    {.fate = SERVER_CALL_LATE, .open = 0, .closed = 1},
    {.fate = SERVER_CALL_UNAVAILABLE, .open = 0, .closed = 1},
};

Test(gates, every_answer_of_a_condition_is_taken_as_documented)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        gate_bind_all(1, NULL, "handler", NULL, "condition", NULL);
        for (size_t i = 0; i < sizeof condition_answers / sizeof condition_answers[0]; i++) {
            int wanted = is_closed ? condition_answers[i].closed : condition_answers[i].open;
            struct answer answer = {.result = condition_answers[i].result,
                                    .fate = condition_answers[i].fate};
            size_t index = stub.count;
            cr_assert_eq(ask(), GATE_WAITING);
            give(index, &answer);
            cr_assert_eq(stub.count, index + (wanted == 2 ? 2 : 1), "condition %zu", i);
            if (wanted == 2)
                stub_answer(index + 1, "{}");
            expect_decided(i + 1, "s1", wanted == 1 ? GATE_DENIED : GATE_PASSED);
        }
    }
}

/* Any order of three answers: one denial is enough, and all are waited for. */
Test(gates, all_gates_are_asked_and_one_denial_is_enough)
{
    for (uint64_t handle = 1; handle <= 3; handle++)
        gate_bind(handle, "f");
    for (unsigned denying = 0; denying < 8; denying++) {
        for (unsigned first = 0; first < 3; first++) {
            size_t index = stub.count;
            size_t before = decision_count;
            cr_assert_eq(ask(), GATE_WAITING);
            cr_assert_eq(stub.count, index + 3);
            for (unsigned i = 0; i < 3; i++) {
                unsigned which = (first + i) % 3;
                cr_assert_eq(decision_count, before);
                stub_answer(index + which, denying >> which & 1 ? "{\"unauthorized\":true}" : "{}");
            }
            expect_decided(before + 1, "s1", denying != 0 ? GATE_DENIED : GATE_PASSED);
        }
    }
}

Test(gates, who_cannot_be_asked_is_an_error)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        gate_bind(1, "f");
        stub.is_full = true;
        cr_assert_eq(ask(), is_closed ? GATE_DENIED : GATE_PASSED);
        cr_assert_eq(visitor.count, 0u);
        /* Also when it turns out only after the condition. */
        stub.is_full = false;
        gate_unbind(1);
        gate_bind_all(2, NULL, "f", NULL, "c", NULL);
        size_t index = stub.count;
        cr_assert_eq(ask(), GATE_WAITING);
        stub.is_full = true;
        stub_answer(index, "true");
        expect_decided(1, "s1", is_closed ? GATE_DENIED : GATE_PASSED);
        stub.is_full = false;
        cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], is_closed ? 2u : 0u);
    }
}

/* ---- who goes meanwhile ---- */

Test(gates, a_gate_that_goes_is_still_waited_for_by_joins_that_asked_it)
{
    gate_bind_all(1, NULL, "f", NULL, "c", NULL);
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    gate_unbind(1);
    cr_assert_eq(ask_for("s2", "chat"), GATE_PASSED, "later joins do not know it");
    stub_answer(index, "true");
    cr_assert_str_eq(stub.calls[index + 1].function, "f");
    stub_error(index + 1, "invocation_stopped");
    expect_decided(1, "s1", GATE_DENIED);
    cr_assert(gates_are_clear(gates));
}

Test(gates, a_handle_bound_again_is_another_gate)
{
    gate_bind(1, "old");
    gate_bind(1, "new");
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(stub.count, index + 1);
    cr_assert_str_eq(stub.calls[index].function, "new");
    gate_unbind(1);
    gate_unbind(1);
    gate_unbind(99);
    cr_assert(gates_are_clear(gates));
}

/* Its calls are waited for: whoever joins and leaves without end asks no more than a bound. */
Test(gates, a_cancelled_join_counts_until_its_gates_have_answered)
{
    gate_bind(1, "f");
    gate_bind(2, "f");
    size_t index = stub.count;
    cr_assert_eq(ask_for("s1", "chat"), GATE_WAITING);
    cr_assert_eq(ask_for("s2", "chat"), GATE_WAITING);
    cr_assert_eq(ask_for("s3", "chat"), GATE_WAITING);
    stub_answer(index, "{\"unauthorized\":true}");
    gates_cancel(gates, &visitor, SPAN_LITERAL("s1"));
    gates_cancel(gates, &visitor, SPAN_LITERAL("unknown"));
    gates_cancel(gates, &visitor, SPAN_LITERAL("s1"));
    cr_assert_eq(visitor.count, 2u);
    cr_assert_eq(visitor.void_count, 1u);
    stub_answer(index + 1, "{\"unauthorized\":true}");
    cr_assert_eq(visitor.void_count, 0u);
    gates_cancel(gates, &visitor, SPAN_LITERAL("s2"));
    cr_assert_eq(ask_for("s2", "chat"), GATE_WAITING);
    cr_assert_eq(visitor.count, 2u);
    cr_assert_eq(visitor.void_count, 1u);
    gates_lost(gates); /* what is taken back is not asked again */
    cr_assert_eq(visitor.void_count, 0u);
    cr_assert_eq(visitor.count, 2u);
    gates_forget(gates, &visitor);
    cr_assert_eq(visitor.count, 0u);
    cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], 0u);
    cr_assert_eq(stub.open_count, 0u);
    cr_assert_eq(decision_count, 0u);
}

/* ---- gates whose worker has gone ---- */

Test(gates, a_gate_whose_worker_has_gone_denies)
{
    gate_bind_all(1, "n", "f", "chat", "c", "{}");
    gate_leave(1);
    size_t index = stub.count;
    cr_assert_not(gates_are_clear(gates));
    cr_assert_eq(ask_for("s0", "other"), GATE_PASSED);
    cr_assert_eq(ask(), GATE_WAITING, "it may come back");
    pass_time(GATES_GRACE_MS - 1);
    cr_assert_eq(ask_for("s2", "chat"), GATE_WAITING);
    cr_assert_eq(decision_count, 0u);
    pass_time(1);
    cr_assert_eq(decision_count, 2u);
    expect_decided(2, "s2", GATE_DENIED);
    cr_assert_eq(decisions[0].verdict, GATE_DENIED);
    cr_assert_eq(ask(), GATE_DENIED, "at once from now on");
    pass_time(1000000);
    cr_assert_eq(ask(), GATE_DENIED);
    cr_assert_eq(ask_for("s0", "other"), GATE_PASSED);
    cr_assert_eq(stub.count, index, "there is nobody to ask");
    cr_assert_eq(visitor.count, 0u);
    cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], 4u);
}

/* The same function, namespace and stream; the rest may have changed. */
Test(gates, a_gate_that_comes_back_is_asked_by_the_joins_that_waited)
{
    gate_bind_all(1, "n", "f", "chat", "c", "{}");
    gate_leave(1);
    cr_assert_eq(ask(), GATE_WAITING);
    size_t index = stub.count;
    gate_bind_all(2, "n", "f", NULL, NULL, NULL);
    gate_bind_all(3, "m", "f", "chat", NULL, NULL);
    gate_bind_all(4, "n", "g", "chat", NULL, NULL);
    cr_assert_eq(stub.count, index, "none of these is it");
    gate_unbind(2);
    gate_unbind(3);
    gate_unbind(4);
    gate_bind_all(5, "n", "f", "chat", NULL, "{\"m\":2}");
    cr_assert_eq(stub.count, index + 1);
    cr_assert_str_eq(stub.calls[index].function, "f");
    stub_answer(index, "{}");
    expect_decided(1, "s1", GATE_PASSED);
    gate_unbind(1); /* the broker says so as well */
    cr_assert_eq(ask(), GATE_WAITING);
    stub_answer(index + 1, "{\"unauthorized\":true}");
    expect_decided(2, "s1", GATE_DENIED);
    gate_unbind(5);
    cr_assert(gates_are_clear(gates));
    /* Long gone, it comes back all the same. */
    gate_bind(6, "f");
    gate_leave(6);
    pass_time(1000000);
    cr_assert_eq(ask(), GATE_DENIED);
    gate_bind(7, "f");
    cr_assert_eq(ask(), GATE_WAITING);
    gate_unbind(7);
    cr_assert(gates_are_clear(gates));
}

Test(gates, an_away_gate_that_is_withdrawn_lets_waiting_joins_go_on)
{
    gate_bind(1, "f");
    gate_bind_all(2, NULL, "g", "chat", NULL, NULL);
    gate_leave(1);
    gate_leave(2);
    cr_assert_eq(ask(), GATE_WAITING);
    gate_unbind(1);
    cr_assert_eq(decision_count, 0u, "the other is still away");
    cr_assert_eq(ask_for("s2", "other"), GATE_PASSED);
    gate_unbind(2);
    expect_decided(1, "s1", GATE_PASSED);
    cr_assert(gates_are_clear(gates));
}

Test(gates, one_worker_of_several_with_the_same_gate_may_go)
{
    gate_bind(1, "f");
    gate_bind_all(2, NULL, "f", NULL, NULL, "{}");
    gate_leave(1);
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(stub.count, index + 1);
    stub_answer(index, "{}");
    expect_decided(1, "s1", GATE_PASSED);
    gate_leave(2);
    pass_time(GATES_GRACE_MS);
    cr_assert_eq(ask(), GATE_DENIED);
}

/* Gates that go and come keep nobody waiting for ever. */
Test(gates, a_join_waits_for_away_gates_once)
{
    gate_bind(1, "f");
    gate_bind(2, "g");
    gate_leave(1);
    cr_assert_eq(ask(), GATE_WAITING);
    pass_time(GATES_GRACE_MS - 1);
    gate_leave(2);
    gate_bind(3, "f");
    cr_assert_eq(decision_count, 0u);
    pass_time(1);
    expect_decided(1, "s1", GATE_DENIED);
    /* And what must not wait does not. */
    struct gate_question question = question_of("s2", "chat");
    question.may_wait = false;
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_FULL);
    cr_assert_eq(ask_for("s3", "chat"), GATE_WAITING);
    gates_cancel(gates, &visitor, SPAN_LITERAL("s3"));
    cr_assert_eq(visitor.count, 0u);
    pass_time(GATES_GRACE_MS);
    expect_decided(1, "s1", GATE_DENIED);
}

Test(gates, a_join_that_asked_a_gate_whose_worker_goes_is_denied)
{
    gate_bind(1, "f");
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    gate_leave(1);
    stub_error(index, "invocation_stopped");
    expect_decided(1, "s1", GATE_DENIED);
    cr_assert_eq(ask(), GATE_WAITING);
    /* Who asked before the broker went as well cannot be asked again. */
    gate_bind(2, "f");
    expect_decided(1, "s1", GATE_DENIED);
    gate_leave(2);
    gates_lost(gates);
    expect_decided(2, "s1", GATE_DENIED);
    cr_assert_eq(stub.open_count, 0u);
}

Test(gates, open_gates_are_never_away)
{
    reopen(false);
    gate_bind(1, "f");
    gate_leave(1);
    cr_assert(gates_are_clear(gates));
    cr_assert_eq(ask(), GATE_PASSED);
    gate_bind(2, "f");
    gates_lost(gates);
    attach();
    pass_time(GATES_GRACE_MS);
    cr_assert(gates_are_clear(gates));
}

Test(gates, away_gates_are_known_before_the_first_join)
{
    gates_close(gates);
    stub_reset();
    open_gates(true);
    cr_assert_eq(ask_for("s1", "chat"), GATE_WAITING);
    attach_unanswered();
    gate_bind_away(4, "f", "chat");
    cr_assert_eq(ask_for("s2", "other"), GATE_WAITING);
    stub_error(0, "function_not_found");
    expect_decided(1, "s2", GATE_PASSED);
    pass_time(GATES_GRACE_MS);
    expect_decided(2, "s1", GATE_DENIED);
    gate_unbind(4);
    cr_assert(gates_are_clear(gates));
    cr_assert_str_eq(posted, "", "the broker knows them");
    reopen(false);
    gate_bind_away(4, "f", "chat");
    cr_assert(gates_are_clear(gates));
}

/* What the new broker has not said after the grace it is told, once; it answers with a handle. */
Test(gates, a_new_broker_is_told_of_away_gates)
{
    gate_bind(1, "back");
    gate_bind(2, "lost");
    gate_bind_all(3, NULL, "away", "chat", NULL, NULL);
    gate_bind_all(4, NULL, "known", "chat", NULL, NULL);
    gate_leave(3);
    gate_leave(4);
    gates_lost(gates);
    attach();
    gate_bind(1, "back");
    gate_bind_away(2, "known", "chat");
    pass_time(GATES_GRACE_MS - 1);
    cr_assert_str_eq(posted, "");
    pass_time(1);
    cr_assert_eq(strlen(posted), 2u, "%s", posted);
    cr_assert(strchr(posted, 'l') != NULL && strchr(posted, 'a') != NULL, "%s", posted);
    pass_time(1);
    cr_assert_eq(strlen(posted), 2u);
    gate_bind_away(3, "lost", NULL);
    gate_bind_away(4, "away", "chat");
    cr_assert_eq(ask(), GATE_DENIED, "no second grace");
    gate_unbind(1);
    gate_unbind(2);
    gate_unbind(3);
    cr_assert_eq(ask(), GATE_DENIED);
    gate_unbind(4);
    cr_assert(gates_are_clear(gates));
    /* Open gates have nothing to tell. */
    reopen(false);
    gate_bind(1, "f");
    gates_lost(gates);
    attach();
    pass_time(GATES_GRACE_MS);
    cr_assert_str_eq(posted, "");
}

Test(gates, away_gates_outlive_the_broker)
{
    gate_bind_all(5, "n", "f", "chat", NULL, NULL);
    gate_leave(5);
    cr_assert_eq(ask(), GATE_WAITING);
    gates_lost(gates);
    pass_time(GATES_GRACE_MS);
    expect_decided(1, "s1", GATE_DENIED);
    cr_assert_eq(ask(), GATE_DENIED, "also without a broker");
    attach();
    cr_assert_eq(ask(), GATE_DENIED);
    /* The next broker's handle 5 is another gate. */
    gate_bind_all(5, NULL, "g", "other", NULL, NULL);
    gate_unbind(5);
    cr_assert_eq(ask(), GATE_DENIED);
    /* It returns while the table is not known yet. */
    gates_lost(gates);
    attach_unanswered();
    cr_assert_eq(ask(), GATE_WAITING);
    gate_bind_all(1, "n", "f", "chat", NULL, NULL);
    size_t index = stub.count;
    stub_error(index - 1, "function_not_found");
    cr_assert_eq(stub.count, index + 1);
    cr_assert_str_eq(stub.calls[index].function, "f");
    stub_answer(index, "{}");
    expect_decided(2, "s1", GATE_PASSED);
    /* A join that waits for it when the broker goes waits on. */
    gate_leave(1);
    cr_assert_eq(ask(), GATE_WAITING);
    gates_lost(gates);
    attach_unanswered();
    gate_bind_all(1, "n", "f", "chat", NULL, NULL);
    cr_assert_eq(decision_count, 2u);
    index = stub.count;
    stub_error(index - 1, "function_not_found");
    stub_answer(index, "{}");
    expect_decided(3, "s1", GATE_PASSED);
}

/* An answer that was lost with the broker, or came too late, says nothing of the next one. */
Test(gates, all_that_a_broker_had_to_tell_is_heard_when_it_answers)
{
    unsigned before = heard_count;
    gates_lost(gates);
    size_t index = stub.count;
    attach_unanswered();
    cr_assert_eq(heard_count, before);
    gates_lost(gates);
    attach_unanswered();
    cr_assert_eq(heard_count, before);
    stub_error(index + 1, "function_not_found");
    cr_assert_eq(heard_count, before + 1);
}

/* The connection was lost and not the broker: what it does not say again was withdrawn meanwhile. */
Test(gates, a_broker_that_was_there_all_the_time_knows_every_gate)
{
    gate_bind_all(1, NULL, "f", "chat", NULL, NULL);
    gate_bind_all(2, NULL, "withdrawn", "chat", NULL, NULL);
    gate_bind_all(3, NULL, "away", "other", NULL, NULL);
    gate_bind_all(4, NULL, "back", "chat", NULL, NULL);
    gate_bind_all(5, NULL, "withdrawn", "third", NULL, NULL);
    gate_leave(3);
    gate_leave(4);
    gate_leave(5);
    cr_assert_eq(ask_for("s3", "third"), GATE_WAITING);
    gates_lost(gates);
    size_t index = stub.count;
    gates_attached(gates, generation);
    gate_bind_all(1, NULL, "f", "chat", NULL, NULL);
    gate_bind_all(6, NULL, "back", "chat", NULL, NULL);
    gate_bind_away(3, "away", "other");
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(ask_for("s2", "other"), GATE_WAITING);
    stub_error(index, "function_not_found");
    expect_decided(1, "s3", GATE_PASSED);
    cr_assert_eq(stub.count, index + 3, "two are asked about the first");
    pass_time(GATES_GRACE_MS);
    expect_decided(2, "s2", GATE_DENIED);
    cr_assert_eq(ask_for("s3", "third"), GATE_PASSED);
    cr_assert_str_eq(posted, "");
}

/* ---- bounds ---- */

Test(gates, joins_that_must_not_wait_are_full)
{
    static char name[NAME_BYTES_MAX + 2];
    struct gate_question question = question_of("s", "chat");
    question.may_wait = false;
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_PASSED, "nothing to wait for");
    gate_bind(1, "f");
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_FULL);
    memset(name, 'x', NAME_BYTES_MAX + 1);
    question = question_of("s", "chat");
    question.wish.item = span_text(name);
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_FULL);
    question = question_of(name, "chat");
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_FULL);
    /* The longest payload: all names need escapes. */
    memset(name, 1, NAME_BYTES_MAX);
    name[NAME_BYTES_MAX] = '\0';
    question = question_of(name, name);
    question.wish.group = question.wish.item = span_text(name);
    cr_assert_eq(gates_ask(gates, &visitor, &question), GATE_WAITING);
    cr_assert_eq(counters.values[COUNTER_JOINS_DENIED], 0u);
}

Test(gates, waiting_joins_are_bounded_in_all)
{
    char id[32];
    gate_bind(1, "f");
    gates_lost(gates); /* nothing is asked meanwhile */
    for (unsigned i = 0; i < GATES_JOINS_MAX; i++) {
        (void)snprintf(id, sizeof id, "%u", i);
        cr_assert_eq(ask_for(id, "chat"), GATE_WAITING);
    }
    cr_assert_eq(ask_for("more", "chat"), GATE_FULL);
    gates_cancel(gates, &visitor, SPAN_LITERAL("65535"));
    cr_assert_eq(ask_for("more", "chat"), GATE_WAITING);
    gates_forget(gates, &visitor);
    cr_assert_eq(ask_for("more", "chat"), GATE_WAITING);
}

/* A gate that cannot be kept could have denied: closed gates stay shut until the next attach. */
Test(gates, with_a_gate_too_many_closed_gates_stay_shut)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        for (uint64_t handle = 0; handle < GATES_MAX; handle++)
            gate_bind_all(handle, NULL, "f", "elsewhere", NULL, NULL);
        cr_assert_eq(ask(), GATE_PASSED);
        gate_bind_all(GATES_MAX, NULL, "f", "elsewhere", NULL, NULL);
        cr_assert_not(gates_are_clear(gates));
        cr_assert_eq(ask(), is_closed ? GATE_DENIED : GATE_PASSED);
        gates_lost(gates);
        attach();
        stub.now_ms += GATES_GRACE_MS;
        gates_tick(gates);
        cr_assert_eq(ask(), GATE_PASSED);
    }
}

/* ---- the broker comes and goes ---- */

/* A gateway that has just attached: its first joins wait for what the broker knows. */
Test(gates, joins_wait_until_the_table_is_known)
{
    gates_close(gates);
    stub_reset();
    open_gates(true);
    cr_assert_not(gates_are_clear(gates));
    cr_assert_eq(ask_for("s1", "chat"), GATE_WAITING);
    stub.now_ms += 1000000; /* as long as there never was a broker */
    gates_tick(gates);
    cr_assert_eq(decision_count, 0u);
    attach_unanswered();
    gates_tick(gates);
    cr_assert_eq(ask_for("s2", "other"), GATE_WAITING);
    gate_bind_all(1, NULL, "f", "chat", NULL, NULL);
    cr_assert_eq(stub.count, 1u, "the table may not be whole yet");
    stub_error(0, "function_not_found");
    expect_decided(1, "s2", GATE_PASSED);
    cr_assert_eq(stub.count, 2u);
    cr_assert_str_eq(stub.calls[1].function, "f");
    stub_answer(1, NULL);
    expect_decided(2, "s1", GATE_PASSED);
}

/* A gateway that has just started knows of no gate, and a new broker of none but those it is told. */
Test(gates, a_new_gateway_waits_for_what_the_others_know)
{
    gates_close(gates);
    stub_reset();
    open_gates(true);
    attach_untold();
    stub_error(0, "function_not_found");
    cr_assert_eq(told_count, 1u, "it has nothing to tell");
    cr_assert_not(gates_are_clear(gates));
    cr_assert_eq(ask_for("s1", "chat"), GATE_WAITING);
    cr_assert_eq(ask_for("s2", "other"), GATE_WAITING);
    gate_bind_away(1, "f", "chat");
    cr_assert_eq(decision_count, 0u);
    gates_are_told();
    expect_decided(1, "s2", GATE_PASSED);
    pass_time(GATES_GRACE_MS);
    expect_decided(2, "s1", GATE_DENIED);
    cr_assert_eq(told_count, 1u);
    /* From then on it knows itself. */
    gates_lost(gates);
    attach_untold();
    stub_error(stub.count - 1, "function_not_found");
    cr_assert_eq(ask_for("s3", "other"), GATE_PASSED);
    cr_assert_eq(ask_for("s4", "chat"), GATE_DENIED);
    /* It is never told: who waits is denied in the end. */
    gates_close(gates);
    stub_reset();
    open_gates(true);
    attach_untold();
    stub_error(0, "function_not_found");
    cr_assert_eq(ask_for("s5", "other"), GATE_WAITING);
    pass_time(TIMEOUT_MS + GATES_GRACE_MS);
    expect_decided(3, "s5", GATE_DENIED);
    /* Open gates wait for nobody. */
    reopen(false);
    gates_close(gates);
    stub_reset();
    open_gates(false);
    attach_untold();
    stub_error(0, "function_not_found");
    cr_assert(gates_are_clear(gates));
}

/* That it has told all it knows is said when nothing is missing any more, or the grace is over. */
Test(gates, a_gateway_says_when_it_has_told_all_it_knows)
{
    cr_assert_eq(told_count, 1u);
    gate_bind(1, "a");
    gate_bind(2, "b");
    gates_lost(gates);
    attach();
    gate_bind(3, "b");
    cr_assert_eq(told_count, 1u);
    gate_bind(4, "a");
    cr_assert_eq(told_count, 2u);
    pass_time(GATES_GRACE_MS);
    cr_assert_eq(told_count, 2u, "once to each broker");
    gates_lost(gates);
    attach();
    gate_bind(5, "b");
    pass_time(GATES_GRACE_MS - 1);
    cr_assert_eq(told_count, 2u);
    pass_time(1);
    cr_assert_eq(told_count, 3u);
    cr_assert_str_eq(posted, "a", "and before that of the one that is missing");
}

/* A broker that attaches and then says nothing: closed gates deny, and the question is repeated. */
Test(gates, a_table_that_is_never_known_is_a_failure)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        gates_close(gates);
        stub_reset();
        decision_count = 0;
        open_gates(is_closed);
        attach_unanswered();
        cr_assert_eq(ask(), GATE_WAITING);
        stub.now_ms += TIMEOUT_MS;
        stub_fate(0, SERVER_CALL_LATE);
        gates_tick(gates);
        cr_assert_eq(stub.count, 2u);
        cr_assert_str_eq(stub.calls[1].function, "");
        cr_assert_eq(decision_count, 0u);
        stub.now_ms += GATES_GRACE_MS;
        gates_tick(gates);
        expect_decided(1, "s1", is_closed ? GATE_DENIED : GATE_PASSED);
        stub_error(1, "function_not_found");
        cr_assert_eq(ask(), GATE_PASSED);
    }
}

Test(gates, without_gates_joins_pass_while_the_broker_is_away)
{
    gates_lost(gates);
    cr_assert(gates_are_clear(gates));
    cr_assert_eq(ask(), GATE_PASSED);
    attach();
    cr_assert(gates_are_clear(gates));
}

/* Joins wait until all gates are back, in whatever order and under whatever handle. */
Test(gates, after_a_restart_joins_wait_for_the_gates_to_come_back)
{
    gate_bind_all(1, NULL, "a", NULL, NULL, NULL);
    gate_bind_all(2, "n", "b", NULL, NULL, "1");
    gate_bind_all(3, "n", "b", NULL, NULL, "2");
    gates_lost(gates);
    cr_assert_not(gates_are_clear(gates));
    cr_assert_eq(ask_for("away", "chat"), GATE_WAITING);
    attach();
    cr_assert_eq(ask_for("back", "chat"), GATE_WAITING);
    size_t index = stub.count;
    gate_bind_all(10, "n", "b", NULL, NULL, "2");
    gate_bind_all(11, NULL, "a", NULL, NULL, NULL);
    gate_bind_all(12, "n", "c", NULL, NULL, "1");
    cr_assert_eq(stub.count, index, "one is missing");
    gate_bind_all(13, "n", "b", NULL, NULL, "1");
    cr_assert_eq(stub.count, index + 8, "two joins, four gates");
    for (size_t i = 0; i < 8; i++)
        stub_answer(index + i, "{}");
    cr_assert_eq(decision_count, 2u);
    cr_assert_eq(decisions[0].verdict, GATE_PASSED);
}

Test(gates, gates_that_are_not_back_after_the_grace_are_away)
{
    gate_bind(1, "a");
    gate_bind(2, "b");
    gates_lost(gates);
    attach();
    gate_bind(3, "a");
    cr_assert_eq(ask(), GATE_WAITING);
    size_t index = stub.count;
    stub.now_ms += GATES_GRACE_MS - 1;
    gates_tick(gates);
    cr_assert_eq(decision_count, 0u);
    pass_time(1);
    cr_assert_eq(stub.count, index);
    expect_decided(1, "s1", GATE_DENIED);
    cr_assert_eq(ask(), GATE_DENIED);
    gate_bind(4, "b");
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(stub.count, index + 2);
    stub_answer(index, "{}");
    stub_answer(index + 1, "{}");
    expect_decided(2, "s1", GATE_PASSED);
    /* The grace starts anew with the next loss. */
    gates_lost(gates);
    attach();
    cr_assert_eq(ask(), GATE_WAITING);
    pass_time(GATES_GRACE_MS);
    expect_decided(3, "s1", GATE_DENIED);
}

Test(gates, open_gates_that_are_not_back_after_the_grace_are_forgotten)
{
    reopen(false);
    gate_bind(1, "a");
    gate_bind(2, "b");
    gates_lost(gates);
    attach();
    gate_bind(3, "a");
    cr_assert_eq(ask(), GATE_WAITING);
    size_t index = stub.count;
    pass_time(GATES_GRACE_MS);
    cr_assert_eq(stub.count, index + 1);
    cr_assert_str_eq(stub.calls[index].function, "a");
    stub_answer(index, "{\"unauthorized\":true}");
    expect_decided(1, "s1", GATE_DENIED);
}

/* Two workers had it and one is back, or it is back with another condition: it is not away. */
Test(gates, a_gate_that_is_back_in_part_is_back)
{
    gate_bind(1, "a");
    gate_bind(2, "a");
    gate_bind_all(3, NULL, "b", NULL, "c", NULL);
    gates_lost(gates);
    attach();
    gate_bind(1, "a");
    gate_bind(2, "b");
    pass_time(GATES_GRACE_MS);
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    cr_assert_eq(stub.count, index + 2);
}

/* A broker that stays away: closed gates deny, open ones let pass. */
Test(gates, waiting_for_an_absent_broker_ends)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        gate_bind(1, "f");
        gates_lost(gates);
        cr_assert_eq(ask(), GATE_WAITING);
        stub.now_ms += TIMEOUT_MS + GATES_GRACE_MS - 1;
        gates_tick(gates);
        cr_assert_eq(decision_count, 0u);
        stub.now_ms += 1;
        gates_tick(gates);
        expect_decided(1, "s1", is_closed ? GATE_DENIED : GATE_PASSED);
    }
}

/* The broker goes while handlers are asked: the joins are asked anew, once all gates are back. */
Test(gates, joins_being_asked_are_asked_again_after_a_restart)
{
    gate_bind(1, "f");
    gate_bind_all(2, NULL, "g", NULL, "c", NULL);
    size_t index = stub.count;
    cr_assert_eq(ask(), GATE_WAITING);
    for (size_t i = index; i < index + 2; i++) {
        if (strcmp(stub.calls[i].function, "f") == 0)
            stub_answer(i, "{\"unauthorized\":true}");
    }
    gates_lost(gates);
    cr_assert_eq(stub.open_count, 0u);
    cr_assert_eq(decision_count, 0u);
    cr_assert_eq(visitor.count, 1u);
    attach();
    index = stub.count;
    gate_bind(1, "f");
    gate_bind_all(2, NULL, "g", NULL, "c", NULL);
    cr_assert_eq(stub.count, index + 2);
    for (size_t i = index; i < index + 2; i++)
        stub_answer(i, strcmp(stub.calls[i].function, "c") == 0 ? "false" : "{}");
    expect_decided(1, "s1", GATE_PASSED);
}

/* Who asked a gate that is gone for good cannot wait for it to come back. */
Test(gates, a_join_that_asked_a_gate_gone_before_the_broker_fails)
{
    for (int is_closed = 0; is_closed < 2; is_closed++) {
        reopen(is_closed);
        gate_bind(1, "f");
        cr_assert_eq(ask(), GATE_WAITING);
        gate_unbind(1);
        gates_lost(gates);
        expect_decided(1, "s1", is_closed ? GATE_DENIED : GATE_PASSED);
        cr_assert_eq(stub.open_count, 0u);
    }
}

Test(gates, a_broker_lost_before_its_table_was_known_leaves_joins_waiting)
{
    gates_close(gates);
    stub_reset();
    open_gates(true);
    attach_unanswered();
    cr_assert_eq(ask(), GATE_WAITING);
    gates_lost(gates);
    cr_assert_eq(stub.open_count, 0u);
    gates_tick(gates);
    cr_assert_eq(decision_count, 0u);
    attach();
    expect_decided(1, "s1", GATE_PASSED);
}

/* ---- at random ---- */

static uint64_t random_state;
static unsigned random_below(unsigned bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state % bound);
}

static void answer_any(void)
{
    size_t index = random_below((unsigned)stub.count);
    for (size_t i = 0; i < stub.count && !stub.calls[index].is_open; i++)
        index = (index + 1) % stub.count;
    if (!stub.calls[index].is_open)
        return;
    unsigned choice = random_below(8);
    if (choice == 0)
        stub_answer(index, "{\"unauthorized\":true}");
    else if (choice == 1)
        stub_fate(index, (enum server_call_fate)(SERVER_CALL_ERROR + random_below(3)));
    else
        stub_answer(index, choice == 2 ? "false" : "{}");
}

/* What the broker knows: some gates, and which are away, of function and stream "0" to "5". Handles
 * are never used twice. */
struct model_gate {
    uint64_t handle;
    char name; /* 0: none */
    bool is_of_all;
};
static struct model {
    struct model_gate gates[8];
    struct model_gate away[16];
    uint64_t handle;
} model;

static bool model_same(const struct model_gate *a, const struct model_gate *b)
{
    return a->name == b->name && a->is_of_all == b->is_of_all;
}

static struct model_gate *model_find(struct model_gate *list, size_t count,
                                     const struct model_gate *gate)
{
    for (size_t i = 0; i < count; i++)
        if (model_same(&list[i], gate))
            return &list[i];
    return NULL;
}

static void model_unbind(unsigned slot, bool is_away)
{
    const struct model_gate gate = model.gates[slot];
    model.gates[slot] = (struct model_gate){0};
    if (gate.name == 0)
        return;
    is_away = is_away && model_find(model.gates, 8, &gate) == NULL;
    if (is_away)
        *model_find(model.away, 16, &(struct model_gate){0}) = gate;
    (is_away ? gate_leave : gate_unbind)(gate.handle);
}

static void model_bind(unsigned slot, struct model_gate gate, const char *condition)
{
    const char name[] = {gate.name, '\0'};
    struct model_gate *away = model_find(model.away, 16, &gate);
    const struct model_gate earlier = model.gates[slot];
    gate.handle = ++model.handle;
    model.gates[slot] = gate;
    gate_bind_all(gate.handle, NULL, name, gate.is_of_all ? NULL : name, condition, NULL);
    if (away != NULL) {
        gate_unbind(away->handle);
        *away = (struct model_gate){0};
    }
    if (earlier.name != 0)
        gate_unbind(earlier.handle);
}

static bool model_is_away(const char *name)
{
    for (size_t i = 0; i < 16; i++)
        if (model.away[i].name != 0 && (model.away[i].is_of_all || model.away[i].name == *name))
            return true;
    return false;
}

/* Gates, joins, cancellations, answers and lost brokers in any order: nothing is left over, and
 * no join of a stream passes at once while a gate of it is away. */
Test(gates, random_histories_leave_nothing_behind, .timeout = HANG_SECONDS)
{
    const char *seed = getenv("WEIR_SEED");
    random_state = seed != NULL ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL) | 1;
    fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)random_state);
    for (unsigned round = 0; round < 300; round++) {
        struct gate_visitor visitors[4] = {0};
        bool is_attached = true;
        reopen(true);
        memset(&model, 0, sizeof model);
        for (unsigned step = 0; step < 200; step++) {
            char name[16];
            (void)snprintf(name, sizeof name, "%u", random_below(6));
            unsigned which = random_below(4);
            unsigned slot = random_below(8);
            bool is_odd = random_below(2) == 1;
            struct gate_question question = question_of(name, name);
            enum gate_verdict verdict = GATE_WAITING;
            switch (random_below(10)) {
            case 0:
            case 1:
                if (is_attached)
                    model_bind(slot, (struct model_gate){0, name[0], is_odd},
                               random_below(2) ? "c" : NULL);
                break;
            case 2:
                if (is_attached)
                    model_unbind(slot, is_odd);
                break;
            case 3:
            case 4:
                gates_cancel(gates, &visitors[which], question.wish.subscription_id);
                verdict = gates_ask(gates, &visitors[which], &question);
                break;
            case 5:
                gates_cancel(gates, &visitors[which], question.wish.subscription_id);
                break;
            case 6:
                stub.now_ms += random_below(1500);
                gates_tick(gates);
                break;
            case 7:
                if (random_below(6) == 0) {
                    if (is_attached)
                        gates_lost(gates);
                    else
                        gates_attached(gates, ++generation);
                    memset(model.gates, 0, sizeof model.gates);
                    is_attached = !is_attached;
                } else if (random_below(6) == 0) {
                    gates_forget(gates, &visitors[which]);
                }
                break;
            default:
                answer_any();
                break;
            }
            cr_assert(verdict != GATE_PASSED || !model_is_away(name), "round %u", round);
            decision_count = 0;
        }
        for (unsigned which = 0; which < 4; which++)
            gates_forget(gates, &visitors[which]);
        gates_lost(gates);
        cr_assert_eq(stub.open_count, 0u, "round %u", round);
    }
}

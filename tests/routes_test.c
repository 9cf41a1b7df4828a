/* Function routes without sockets: who owns what, which answer goes to whom, what a disconnect ends
 * (PROTOCOL 2.7-2.12). */
#include <criterion/criterion.h>
#include <stdio.h>

#include "broker/routes.h"
#include "tests/broker_recorder.h"

static struct routes *routes;
static struct recorder recorder;
static struct broker_counters counters;
static const struct peer_handle a = {0, 1};
static const struct peer_handle b = {1, 1};

static void open_with(const struct routes_limits *limits)
{
    struct weir_error error = {0};
    const struct broker_output output = recorder_output(&recorder);
    cr_assert_eq(routes_open(&routes, &output, &counters, 4711, limits, &error), WEIR_OK, "%s",
                 error.text);
}

static void open_default(void)
{
    open_with(NULL);
}

static void close_all(void)
{
    recorder_clear(&recorder);
    routes_close(routes);
}

TestSuite(routes, .init = open_default, .fini = close_all, .timeout = HANG_SECONDS);

static struct span text_or_nil(const char *text)
{
    return text ? span_text(text) : (struct span){0};
}

static void take(struct peer_handle peer, enum wire_type type, uint64_t id, uint64_t number,
                 const char *f1, const char *f2, const char *f3, const char *f4, const char *f5,
                 const char *f6)
{
    struct wire_message message = {.type = type, .id = id};
    const char *texts[] = {f1, f2, f3, f4, f5, f6};
    message.fields[0].number = number;
    for (unsigned index = 0; index < 6; index++)
        message.fields[index + 1].span = text_or_nil(texts[index]);
    cr_assert_eq(routes_take(routes, peer, &message), WEIR_OK);
}

static void session(struct peer_handle peer, uint64_t number, const char *worker_id)
{
    take(peer, WIRE_SESSION_OPEN, 0, number, worker_id, "127.0.0.1", NULL, NULL, NULL, NULL);
}

static void add(struct peer_handle peer, uint64_t number, const char *space, const char *id)
{
    take(peer, WIRE_FUNCTION_REGISTER, 0, number, space, id, NULL, NULL, NULL, NULL);
}

static void call(struct peer_handle peer, uint64_t id, uint64_t number, const char *space,
                 const char *function_id, const char *data)
{
    take(peer, WIRE_CALL, id, number, space, function_id, data, NULL, "trace", "bag");
}

static void result(struct peer_handle peer, uint64_t id, const char *value, const char *error)
{
    struct wire_message message = {.type = WIRE_RESULT, .id = id};
    message.fields[0].span = text_or_nil(value);
    message.fields[1].span = text_or_nil(error);
    cr_assert_eq(routes_take(routes, peer, &message), WEIR_OK);
}

static const struct recorded *last(enum wire_type type, struct peer_handle peer)
{
    cr_assert_gt(recorder.count, 0);
    const struct recorded *message = &recorder.messages[recorder.count - 1];
    cr_assert_eq(message->type, type, "got type %d", message->type);
    cr_assert(peer_handle_equal(message->peer, peer));
    return message;
}

static void expect_error(struct peer_handle peer, uint64_t id, const char *code, const char *words)
{
    const struct recorded *message = last(WIRE_RESULT, peer);
    char head[128];
    snprintf(head, sizeof head, "{\"code\":\"%s\",\"message\":\"", code);
    cr_assert_eq(message->id, id);
    cr_assert_str_eq(recorded_text(message, 0), "(nil)");
    cr_assert_eq(strncmp(recorded_text(message, 1), head, strlen(head)), 0, "%s",
                 recorded_text(message, 1));
    cr_assert(strstr(recorded_text(message, 1), words), "%s", recorded_text(message, 1));
}

static uint64_t pending(void)
{
    struct routes_figures figures;
    routes_figures(routes, &figures);
    return figures.calls_pending;
}

Test(routes, a_call_reaches_the_owner_and_its_answer_the_caller)
{
    session(a, 1, "caller");
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    cr_assert_eq(recorder.count, 0, "a registration is not answered");
    call(a, 7, 1, "default", "f", "{\"x\":1}");
    const struct recorded *invoke = last(WIRE_INVOKE, b);
    uint64_t id = invoke->id;
    cr_assert_neq(id, 0);
    cr_assert_eq(invoke->fields[0].number, 9);
    cr_assert_str_eq(recorded_text(invoke, 1), "f");
    cr_assert_str_eq(recorded_text(invoke, 2), "{\"x\":1}");
    cr_assert_str_eq(recorded_text(invoke, 3), "(nil)");
    cr_assert_str_eq(recorded_text(invoke, 4), "trace");
    cr_assert_str_eq(recorded_text(invoke, 5), "bag");
    result(b, id, "[1]", NULL);
    const struct recorded *answer = last(WIRE_RESULT, a);
    cr_assert_eq(answer->id, 7);
    cr_assert_str_eq(recorded_text(answer, 0), "[1]");
    cr_assert_str_eq(recorded_text(answer, 1), "(nil)");
    unsigned before = recorder.count;
    result(b, id, "[2]", NULL);
    cr_assert_eq(recorder.count, before, "a second answer finds nothing");
    cr_assert_eq(pending(), 0);
}

Test(routes, an_error_is_passed_on_as_it_is)
{
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    call(a, 7, 0, NULL, "f", "null");
    result(b, last(WIRE_INVOKE, b)->id, NULL,
           "{\"code\":\"mine\",\"message\":\"m\",\"stacktrace\":\"s\"}");
    cr_assert_str_eq(recorded_text(last(WIRE_RESULT, a), 1),
                     "{\"code\":\"mine\",\"message\":\"m\",\"stacktrace\":\"s\"}");
}

/* Only the peer that was asked may answer, and only with the id it was given. */
Test(routes, forged_answers_are_ignored)
{
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    call(a, 7, 0, NULL, "f", "null");
    uint64_t id = last(WIRE_INVOKE, b)->id;
    unsigned before = recorder.count;
    result(a, id, "1", NULL);
    result((struct peer_handle){b.slot, b.generation + 1}, id, "1", NULL);
    result(b, id + 1, "1", NULL);
    result(b, id + (1ull << 24), "1", NULL);
    result(b, UINT64_MAX, "1", NULL);
    result(b, 0, "1", NULL);
    cr_assert_eq(recorder.count, before);
    cr_assert_eq(counters.results_unknown, 5,
                 "the one with the void bit is an answer nobody waits for");
    result(b, id, "1", NULL);
    cr_assert_eq(last(WIRE_RESULT, a)->id, 7);
}

/* A void call is invoked with an id, remembered by nobody, and its answer or error goes nowhere. */
Test(routes, void_calls_leave_nothing_behind)
{
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    call(a, 0, 0, NULL, "f", "null");
    uint64_t id = last(WIRE_INVOKE, b)->id;
    cr_assert_neq(id, 0);
    cr_assert_eq(pending(), 0);
    unsigned before = recorder.count;
    result(b, id, "1", NULL);
    call(a, 0, 0, NULL, "unknown", "null");
    cr_assert_eq(recorder.count, before);
    call(a, 0, 0, NULL, "f", "null");
    cr_assert_neq(last(WIRE_INVOKE, b)->id, id);
}

Test(routes, the_first_live_owner_keeps_a_function)
{
    session(a, 1, "first");
    session(b, 2, "second");
    add(a, 1, "default", "f");
    add(a, 1, "default", "f");
    cr_assert_eq(recorder.count, 0, "the owner may register again");
    add(b, 2, NULL, "f");
    const struct recorded *refusal = last(WIRE_FUNCTION_REJECTED, b);
    cr_assert_eq(refusal->fields[0].number, 2);
    cr_assert_str_eq(recorded_text(refusal, 1), "FUNCTION_NAMESPACE_CONFLICT");
    cr_assert_str_eq(recorded_text(refusal, 2), "default");
    cr_assert_str_eq(recorded_text(refusal, 3), "f");
    cr_assert_str_eq(recorded_text(refusal, 4), "first");
    recorder_clear(&recorder);
    add(b, 2, "other", "f"); /* another namespace is another function */
    cr_assert_eq(recorder.count, 0);
    call(a, 7, 0, NULL, "f", "null");
    (void)last(WIRE_INVOKE, a);
    recorder_clear(&recorder);
    take(a, WIRE_SESSION_CLOSED, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL);
    call(a, 8, 0, NULL, "f", "null"); /* the owner is gone: who was refused takes over */
    (void)last(WIRE_INVOKE, b);
    recorder_clear(&recorder);
    add(b, 2, NULL, "f"); /* its own by now */
    cr_assert_eq(recorder.count, 0);
}

/* Who was refused waits in order of arrival, may step back, and vanishes with its session. */
Test(routes, stand_ins_take_over_in_order)
{
    session(a, 1, "owner");
    session(a, 2, "leaver");
    session(b, 3, "closer");
    session(b, 4, "heir");
    add(a, 1, NULL, "f");
    add(a, 2, NULL, "f");
    add(b, 3, NULL, "f");
    add(b, 4, NULL, "f");
    cr_assert_eq(recorder.count, 3, "each of the three is told of the conflict");
    take(a, WIRE_FUNCTION_UNREGISTER, 0, 2, NULL, "f", NULL, NULL, NULL, NULL);
    take(b, WIRE_SESSION_CLOSED, 0, 3, NULL, NULL, NULL, NULL, NULL, NULL);
    call(a, 7, 0, NULL, "f", "null");
    const struct recorded *invoke = last(WIRE_INVOKE, a);
    cr_assert_eq(invoke->fields[0].number, 1);
    recorder_clear(&recorder);
    take(a, WIRE_FUNCTION_UNREGISTER, 0, 1, NULL, "f", NULL, NULL, NULL, NULL);
    call(a, 8, 0, NULL, "f", "null");
    invoke = last(WIRE_INVOKE, b);
    cr_assert_eq(invoke->fields[0].number, 4);
    take(b, WIRE_FUNCTION_UNREGISTER, 0, 4, NULL, "f", NULL, NULL, NULL, NULL);
    struct routes_figures figures;
    routes_figures(routes, &figures);
    cr_assert_eq(figures.functions, 0);
    cr_assert_eq(figures.detail_bytes, 0);
}

Test(routes, reserved_ids_are_refused)
{
    static const struct {
        const char *space, *id;
        bool refused;
    } cases[] = {
        {"default", "stream::set", true},
        {"x", "stream::update", true},
        {"default", "stream::set(chat)", false},
        {"default", "engine::functions::list", true},
        {"default", "engine::queue::enqueue", false},
        {"x", "engine::queue::enqueue", true},
        {"default", "engine::anything", true},
        {"default", "engine", false},
    };
    session(a, 1, "w");
    for (unsigned index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        recorder_clear(&recorder);
        add(a, 1, cases[index].space, cases[index].id);
        cr_assert_eq(recorder.count == 1, cases[index].refused, "%s", cases[index].id);
        if (cases[index].refused)
            cr_assert_str_eq(recorded_text(last(WIRE_FUNCTION_REJECTED, a), 4), "");
    }
}

Test(routes, an_unknown_function_is_named_with_where_it_exists)
{
    session(b, 2, "w");
    add(b, 2, "blue", "f");
    add(b, 2, "green", "f");
    call(a, 7, 0, NULL, "f", "null");
    expect_error(a, 7, "function_not_found", "'f'");
    expect_error(a, 7, "function_not_found", "'default'");
    expect_error(a, 7, "function_not_found", "'blue'");
    expect_error(a, 7, "function_not_found", "'green'");
    call(a, 8, 0, NULL, "nothing \" here", "null");
    expect_error(a, 8, "function_not_found", "nothing \\\" here");
    call(a, 9, 0, NULL, "\xc3(", "null");
    expect_error(a, 9, "function_not_found", "UTF-8");
    call(a, 10, 0, "engine", "engine::functions::list", "{}");
    expect_error(a, 10, "function_not_found", "engine::functions::list");
}

/* The executor's session ends: its callers are told, its functions are gone. */
Test(routes, a_closed_executor_ends_its_calls)
{
    session(a, 1, "caller");
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    for (uint64_t id = 1; id <= 5; id++)
        call(a, id, 1, NULL, "f", "null");
    recorder_clear(&recorder);
    take(b, WIRE_SESSION_CLOSED, 0, 9, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(recorder.count, 5);
    expect_error(a, recorder.messages[4].id, "invocation_stopped", "disconnected");
    cr_assert_eq(pending(), 0);
    call(a, 8, 1, NULL, "f", "null");
    expect_error(a, 8, "function_not_found", "'f'");
}

/* The caller's session or peer ends: nobody is told, and the late answer is ignored. */
Test(routes, a_closed_caller_is_forgotten)
{
    session(a, 1, "caller");
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    call(a, 7, 1, NULL, "f", "null");
    uint64_t by_session = last(WIRE_INVOKE, b)->id;
    call(a, 8, 0, NULL, "f", "null");
    uint64_t by_gateway = last(WIRE_INVOKE, b)->id;
    recorder_clear(&recorder);
    take(a, WIRE_SESSION_CLOSED, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(pending(), 1);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->id, by_session);
    routes_peer_gone(routes, a);
    cr_assert_eq(pending(), 0);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->id, by_gateway);
    result(b, by_session, "1", NULL);
    result(b, by_gateway, "1", NULL);
    cr_assert_eq(recorder.count, 2, "nobody is answered");
}

/* A gateway gives up calls of its own, and of its own only: a handler that never answers leaves
 * nothing behind, here or at its gateway. */
Test(routes, a_gateways_own_calls_can_be_cancelled)
{
    session(a, 1, "caller");
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    call(a, 7, 0, NULL, "f", "null");
    uint64_t invoked = last(WIRE_INVOKE, b)->id;
    call(a, 8, 1, NULL, "f", "null");
    recorder_clear(&recorder);
    take(b, WIRE_CALL_CANCEL, 7, 0, NULL, NULL, NULL, NULL, NULL, NULL); /* not its call */
    take(a, WIRE_CALL_CANCEL, 8, 0, NULL, NULL, NULL, NULL, NULL, NULL); /* a worker's */
    take(a, WIRE_CALL_CANCEL, 99, 0, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(pending(), 2);
    cr_assert_eq(recorder.count, 0);
    take(a, WIRE_CALL_CANCEL, 7, 0, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(pending(), 1);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->id, invoked);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->fields[0].number, 9u);
    take(a, WIRE_CALL_CANCEL, 7, 0, NULL, NULL, NULL, NULL, NULL, NULL); /* again: no effect */
    result(b, invoked, "1", NULL);
    cr_assert_eq(recorder.count, 1, "the late answer goes nowhere");
    for (uint64_t id = 100; id < 100000; id++) {
        call(a, id, 0, NULL, "f", "null");
        take(a, WIRE_CALL_CANCEL, id, 0, NULL, NULL, NULL, NULL, NULL, NULL);
        recorder_clear(&recorder);
    }
    cr_assert_eq(pending(), 1);
    cr_assert_eq(counters.call_errors, 0, "more than one executor may have open at once");
}

static unsigned own_done_count;
static enum routes_own_fate own_fate;
static void keep_own(void *context, uint64_t token, enum routes_own_fate fate, struct span value,
                     struct span error_json)
{
    (void)context;
    (void)token;
    (void)value;
    (void)error_json;
    own_done_count++;
    own_fate = fate;
}

/* The broker's own calls: late, cancelled, and cut short by the end of the routes. */
Test(routes, the_brokers_own_calls_end_once_and_leave_nothing)
{
    const struct routes_own_call own = {
        .function = SPAN_LITERAL("f"), .data = SPAN_LITERAL("null"), .timeout_ms = 100};
    int other = 0;
    own_done_count = 0;
    cr_assert_eq(routes_call_own(routes, &own, keep_own, &other, 1, 1000), WEIR_EMPTY);
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    cr_assert_eq(routes_call_own(routes, &own, keep_own, NULL, 1, 1000), WEIR_OK);
    uint64_t invoked = last(WIRE_INVOKE, b)->id;
    routes_tick(routes, 1099);
    cr_assert_eq(own_done_count, 0u);
    routes_tick(routes, 1100);
    cr_assert_eq(own_done_count, 1u);
    cr_assert_eq(own_fate, ROUTES_OWN_LATE);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->id, invoked);
    cr_assert_eq(routes_call_own(routes, &own, keep_own, &other, 1, 1000), WEIR_OK);
    invoked = last(WIRE_INVOKE, b)->id;
    routes_cancel_own(routes, &other);
    cr_assert_eq(last(WIRE_CALL_CANCEL, b)->id, invoked);
    cr_assert_eq(pending(), 0);
    cr_assert_eq(routes_call_own(routes, &own, keep_own, &other, 1, 1000), WEIR_OK);
    routes_close(routes);
    cr_assert_eq(own_done_count, 1u, "whoever asked may be gone before the routes");
    recorder_clear(&recorder);
    open_with(NULL);
}

Test(routes, a_gone_peer_takes_its_functions_along)
{
    struct routes_figures figures;
    session(b, 1, "w1");
    session(b, 2, "w2");
    add(b, 1, NULL, "f");
    add(b, 2, NULL, "g");
    call(a, 7, 0, NULL, "g", "null");
    call(b, 8, 0, NULL, "g", "null"); /* of the gone peer itself: not answered */
    recorder_clear(&recorder);
    routes_peer_gone(routes, b);
    cr_assert_eq(recorder.count, 1);
    expect_error(a, 7, "invocation_stopped", "disconnected");
    routes_figures(routes, &figures);
    cr_assert_eq(figures.sessions, 0);
    cr_assert_eq(figures.functions, 0);
    cr_assert_eq(figures.calls_pending, 0);
    cr_assert_eq(figures.detail_bytes, 0);
}

static void reattach(struct peer_handle peer, uint64_t id, uint64_t number, const char *worker_id,
                     const char *token)
{
    take(peer, WIRE_SESSION_REATTACH, id, number, worker_id, token, NULL, NULL, NULL, NULL);
}

static void refuse_eviction(struct peer_handle peer, uint64_t id)
{
    take(peer, WIRE_SESSION_REATTACHED, id, 0, NULL, NULL, NULL, NULL, NULL, NULL);
}

static void expect_reattached(struct peer_handle peer, uint64_t id, bool is_retired)
{
    const struct recorded *message = last(WIRE_SESSION_REATTACHED, peer);
    cr_assert_eq(message->id, id);
    cr_assert_eq(message->fields[0].number, is_retired);
}

/* The old session's gateway is asked; the new one is told after the clean-up, so that its
 * registration is the first. */
Test(routes, a_reattached_worker_finds_its_old_session_gone)
{
    const struct peer_handle *homes[] = {&a, &b}; /* another gateway, and the same */
    for (unsigned index = 0; index < 2; index++) {
        struct peer_handle home = *homes[index];
        session(home, 1, "old");
        session(b, 2, "new");
        session(a, 3, "caller");
        add(home, 1, NULL, "f");
        call(a, 5, 3, NULL, "f", "null");
        reattach(b, 7, 2, "old", "secret");
        const struct recorded *evict = last(WIRE_SESSION_EVICT, home);
        cr_assert_neq(evict->id, 0);
        cr_assert_eq(evict->fields[0].number, 1);
        cr_assert_str_eq(recorded_text(evict, 1), "secret");
        recorder_clear(&recorder);
        take(home, WIRE_SESSION_CLOSED, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL);
        cr_assert_eq(recorder.count, 2, "the caller's error, and the answer");
        expect_reattached(b, 7, true);
        recorder_clear(&recorder);
        add(b, 2, NULL, "f");
        cr_assert_eq(recorder.count, 0, "no conflict");
        call(a, 8, 3, NULL, "f", "null");
        result(b, last(WIRE_INVOKE, b)->id, "1", NULL);
        cr_assert_eq(pending(), 0);
        routes_peer_gone(routes, b);
        routes_peer_gone(routes, a);
    }
}

/* Whatever is wrong with it, a reattach is answered and changes nothing. */
Test(routes, a_reattach_that_does_not_fit_is_answered_at_once)
{
    session(a, 1, "old");
    session(b, 2, "new");
    add(a, 1, NULL, "f");
    reattach(b, 7, 2, "unknown", "secret");
    expect_reattached(b, 7, false);
    reattach(b, 8, 2, "new", "secret");
    expect_reattached(b, 8, false);
    reattach(b, 9, 2, NULL, NULL);
    expect_reattached(b, 9, false);
    recorder.refuse = WEIR_CLOSED;
    recorder.refuse_type = WIRE_SESSION_EVICT;
    reattach(b, 10, 2, "old", "secret");
    expect_reattached(b, 10, false);
    recorder.refuse = WEIR_OK;
    reattach(b, 11, 2, "old", "wrong");
    refuse_eviction(a, last(WIRE_SESSION_EVICT, a)->id);
    expect_reattached(b, 11, false);
    cr_assert_eq(pending(), 0);
    call(b, 12, 2, NULL, "f", "null");
    (void)last(WIRE_INVOKE, a);
    struct wire_message message = {.type = WIRE_SESSION_REATTACH};
    cr_assert_eq(routes_take(routes, b, &message), WEIR_INVALID, "nobody could be answered");
}

/* Only the gateway that was asked may answer, and only with the type that belongs to the question. */
Test(routes, forged_reattach_answers_are_ignored)
{
    session(a, 1, "old");
    session(b, 2, "new");
    add(a, 1, NULL, "f");
    reattach(b, 7, 2, "old", "secret");
    uint64_t evict = last(WIRE_SESSION_EVICT, a)->id;
    call(b, 8, 2, NULL, "f", "null");
    uint64_t invoke = last(WIRE_INVOKE, a)->id;
    unsigned before = recorder.count;
    refuse_eviction(b, evict);
    refuse_eviction(a, evict + (1ull << 24));
    refuse_eviction(a, invoke);
    result(a, evict, "1", NULL);
    cr_assert_eq(recorder.count, before);
    cr_assert_eq(counters.results_unknown, 4);
    cr_assert_eq(pending(), 2);
}

/* Nobody waits for the dead: the old gateway's end is the old session's end, the new session's end
 * forgets the question. */
Test(routes, a_reattach_survives_every_death)
{
    session(a, 1, "old");
    session(b, 2, "new");
    reattach(b, 7, 2, "old", "secret");
    routes_peer_gone(routes, a);
    expect_reattached(b, 7, true);
    cr_assert_eq(pending(), 0);
    session(a, 1, "old");
    reattach(b, 8, 2, "old", "secret");
    uint64_t evict = last(WIRE_SESSION_EVICT, a)->id;
    unsigned before = recorder.count;
    take(b, WIRE_SESSION_CLOSED, 0, 2, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(pending(), 0);
    refuse_eviction(a, evict);
    take(a, WIRE_SESSION_CLOSED, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL);
    cr_assert_eq(recorder.count, before);
    session(a, 1, "old");
    reattach(b, 9, 2, "old",
             "secret"); /* its own session is beyond the bound: it asks all the same */
    before = recorder.count;
    routes_peer_gone(routes, b);
    routes_peer_gone(routes, a);
    cr_assert_eq(recorder.count, before);
    cr_assert_eq(pending(), 0);
}

/* Messages that crossed a close, and a session number used again. */
Test(routes, unknown_and_reopened_sessions)
{
    add(a, 5, NULL, "f");
    take(a, WIRE_SESSION_CLOSED, 0, 5, NULL, NULL, NULL, NULL, NULL, NULL);
    take(a, WIRE_SESSION_INFO, 0, 5, "{}", NULL, NULL, NULL, NULL, NULL);
    call(a, 7, 5, NULL, "f", "null");
    expect_error(a, 7, "function_not_found", "'f'");
    session(a, 5, "w");
    add(a, 5, NULL, "f");
    session(a, 5, "w again");
    call(a, 8, 5, NULL, "f", "null");
    expect_error(a, 8, "function_not_found", "'f'");
    struct wire_message message = {.type = WIRE_ATTACH};
    cr_assert_eq(routes_take(routes, a, &message), WEIR_INVALID);
    message.type = WIRE_SESSION_OPEN; /* without worker id */
    cr_assert_eq(routes_take(routes, a, &message), WEIR_INVALID);
}

/* covers: 2.9#10 */
Test(routes, a_busy_or_leaving_executor_is_an_error_answer)
{
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    recorder.busy = true;
    call(a, 7, 0, NULL, "f", "null");
    expect_error(a, 7, "channel_send_failed", "keep up");
    recorder.busy = false;
    recorder.refuse = WEIR_CLOSED;
    recorder.refuse_type = WIRE_INVOKE;
    call(a, 8, 0, NULL, "f", "null");
    expect_error(a, 8, "channel_send_failed", "disconnecting");
    cr_assert_eq(pending(), 0);
}

/* covers: 2.9#9 */
Test(routes_limits, every_bound_is_an_error_answer, .fini = close_all, .timeout = HANG_SECONDS)
{
    const struct routes_limits limits = {.sessions_max = 3,
                                         .session_functions_max = 2,
                                         .pending_max = 4,
                                         .pending_per_executor_max = 3,
                                         .detail_bytes_max = 64};
    open_with(&limits);
    session(a, 1, "w1");
    session(a, 2, "w2");
    session(b, 3, "w3");
    session(b, 4, "one too many");
    add(b, 4, NULL, "f");
    cr_assert_str_eq(recorded_text(last(WIRE_FUNCTION_REJECTED, b), 1), "FUNCTION_LIMIT_EXCEEDED");
    recorder_clear(&recorder);
    add(a, 1, NULL, "f1");
    add(a, 1, NULL, "f2");
    cr_assert_eq(recorder.count, 0);
    add(a, 1, NULL, "f3");
    cr_assert_str_eq(recorded_text(last(WIRE_FUNCTION_REJECTED, a), 1), "FUNCTION_LIMIT_EXCEEDED");
    add(b, 3, NULL, "g");
    take(b, WIRE_FUNCTION_REGISTER, 0, 3, NULL, "h",
         "a description of more than sixty-four bytes, which is all that is allowed here", NULL,
         NULL, NULL);
    cr_assert_str_eq(recorded_text(last(WIRE_FUNCTION_REJECTED, b), 1), "FUNCTION_LIMIT_EXCEEDED");
    for (uint64_t id = 1; id <= 3; id++)
        call(a, id, 0, NULL, "g", "null");
    call(a, 4, 0, NULL, "g", "null");
    expect_error(a, 4, "invocation_error", "too many");
    call(a, 5, 0, NULL, "f1", "null");
    uint64_t id = last(WIRE_INVOKE, a)->id;
    call(a, 6, 0, NULL, "f2", "null");
    expect_error(a, 6, "invocation_error", "too many");
    result(a, id, "1", NULL); /* one ends: one more fits, in the same slot with another id */
    call(a, 7, 0, NULL, "f2", "null");
    cr_assert_neq(last(WIRE_INVOKE, a)->id, id);
    cr_assert_eq(last(WIRE_INVOKE, a)->id & 0xffffff, id & 0xffffff);
}

static void list(const char *input)
{
    call(a, 7, 0, NULL, "engine::functions::list", input);
    cr_assert_eq(last(WIRE_RESULT, a)->id, 7);
}

Test(routes, functions_are_listed_with_filters)
{
    session(b, 1, "w1");
    session(b, 2, "w2");
    take(b, WIRE_SESSION_INFO, 0, 1, "{\"name\":\" sh\\u0007op\\u202e \",\"pid\":1}", NULL, NULL,
         NULL, NULL, NULL);
    take(b, WIRE_FUNCTION_REGISTER, 0, 1, NULL, "cart::add", "Put INTO cart", NULL, NULL,
         "{\"k\":[1]}");
    take(b, WIRE_FUNCTION_REGISTER, 0, 2, "blue", "mail::send", NULL, NULL, NULL, NULL);
    take(b, WIRE_FUNCTION_REGISTER, 0, 2, NULL, "mail::hidden", NULL, NULL, NULL,
         "{\"internal\":true}");
    list("{\"prefix\":\"cart\"}");
    cr_assert_str_eq(recorded_text(last(WIRE_RESULT, a), 0),
                     "{\"functions\":[{\"function_id\":\"cart::add\",\"namespace\":\"default\","
                     "\"worker_name\":\"shop\","
                     "\"description\":\"Put INTO cart\",\"metadata\":{\"k\":[1]}}]}");
    list("{\"search\":\"INTO C\"}");
    cr_assert(strstr(recorded_text(last(WIRE_RESULT, a), 0), "[{\"function_id\":\"cart::add\""));
    list("{\"worker\":\"mail\"}");
    cr_assert_str_eq(recorded_text(last(WIRE_RESULT, a), 0),
                     "{\"functions\":[{\"function_id\":\"mail::send\",\"namespace\":\"blue\","
                     "\"worker_name\":\"mail\"}]}");
    list("{\"workers\":[\"mail\",\"shop\"],\"include_internal\":true}");
    const char *text = recorded_text(last(WIRE_RESULT, a), 0);
    const char *cart = strstr(text, "cart::add"), *hidden = strstr(text, "mail::hidden"),
               *sent = strstr(text, "mail::send");
    cr_assert(cart && hidden && sent && cart < hidden && hidden < sent, "sorted by id: %s", text);
    list("{\"worker\":\"iii-stream\"}");
    text = recorded_text(last(WIRE_RESULT, a), 0);
    cr_assert(strstr(text, "\"stream::set\""));
    cr_assert(strstr(text, "\"stream::list_all\""));
    list("{}");
    cr_assert_not(strstr(recorded_text(last(WIRE_RESULT, a), 0), "engine::"));
    list("{\"include_internal\":true}");
    cr_assert(strstr(recorded_text(last(WIRE_RESULT, a), 0), "engine::functions::list"));
    list("{\"search\":5}");
    expect_error(a, 7, "deserialization_error", "search");
    list("[]");
    expect_error(a, 7, "deserialization_error", "object");
}

Test(routes, workers_register_stores_the_metadata)
{
    session(a, 1, "w1");
    add(a, 1, NULL, "f");
    call(a, 7, 1, NULL, "engine::workers::register",
         "{\"name\":\"shop\",\"_caller_worker_id\":\"w1\"}");
    cr_assert_str_eq(recorded_text(last(WIRE_RESULT, a), 0), "{\"success\":true}");
    list("{\"worker\":\"shop\"}");
    cr_assert(strstr(recorded_text(last(WIRE_RESULT, a), 0), "\"f\""));
    unsigned before = recorder.count;
    call(a, 0, 1, NULL, "engine::workers::register", "{\"name\":\"other\"}");
    cr_assert_eq(recorder.count, before, "void is not answered");
    list("{\"worker\":\"other\"}");
    cr_assert(strstr(recorded_text(last(WIRE_RESULT, a), 0), "\"f\""));
}

static void describe(struct peer_handle peer, uint64_t number, const char *info)
{
    take(peer, WIRE_SESSION_INFO, 0, number, info, NULL, NULL, NULL, NULL, NULL);
}

/* One live session per (namespace, name): the next is told to go, and shown without the name; the
 * name is free again when its owner leaves or takes another. */
Test(routes_limits, names_can_be_made_unique, .fini = close_all, .timeout = HANG_SECONDS)
{
    struct routes_limits limits = routes_limits_default;
    limits.unique_worker_names = true;
    open_with(&limits);
    session(a, 1, "w1");
    session(b, 2, "w2");
    describe(a, 1, "{\"name\":\"shop\"}");
    describe(a, 1, "{\"name\":\"sh\\u0007op\"}");
    describe(b, 2, "{}");
    describe(b, 2, "{\"name\":\"shop\",\"namespace\":\"blue\"}");
    cr_assert_eq(recorder.count, 0);
    describe(b, 2, "{\"name\":\" shop\"}");
    const struct recorded *rejected = last(WIRE_SESSION_REJECTED, b);
    cr_assert_eq(rejected->fields[0].number, 2);
    cr_assert_str_eq(recorded_text(rejected, 1), "WORKER_NAMESPACE_CONFLICT");
    cr_assert_str_eq(recorded_text(rejected, 2), "default");
    cr_assert_str_eq(recorded_text(rejected, 3), "shop");
    cr_assert_str_eq(recorded_text(rejected, 4), "w1");
    call(b, 7, 2, NULL, "engine::workers::register", "{\"name\":\"shop\"}");
    cr_assert_str_eq(recorded_text(last(WIRE_RESULT, b), 0), "{\"success\":false}");
    recorder_clear(&recorder);
    describe(a, 1, "{\"name\":\"store\"}");
    describe(b, 2, "{\"name\":\"shop\"}");
    cr_assert_eq(recorder.count, 0);
    take(b, WIRE_SESSION_CLOSED, 0, 2, NULL, NULL, NULL, NULL, NULL, NULL);
    describe(a, 1, "{\"name\":\"shop\"}");
    cr_assert_eq(recorder.count, 0);
}

/* Random sessions, registrations, calls, answers and disconnects: at the end every call was
 * answered exactly once or its caller is gone, and nothing is left. */
static char own_askers[2]; /* contexts of own calls */
static unsigned own_late[2];

static void on_own_done(void *context, uint64_t token, enum routes_own_fate fate,
                        struct span result, struct span error_json)
{
    (void)result;
    (void)error_json;
    cr_assert_eq(fate, ROUTES_OWN_LATE);
    own_late[(char *)context - own_askers]++;
    if (token == 1)
        routes_cancel_own(routes, &own_askers[1]);
}

static void ask_own(unsigned asker, uint64_t token, uint64_t timeout_ms)
{
    const struct routes_own_call asked = {.function = SPAN_LITERAL("f"), .timeout_ms = timeout_ms};
    cr_assert_eq(routes_call_own(routes, &asked, on_own_done, &own_askers[asker], token, 1000),
                 WEIR_OK);
}

/* One walk over all of them, though what it ends cancels what it was about to look at. */
Test(routes, late_calls_of_the_broker_end_and_cancel_others)
{
    struct routes_figures figures;
    session(b, 9, "owner");
    add(b, 9, NULL, "f");
    for (unsigned round = 0; round < 50; round++) {
        ask_own(0, 0, 5000);
        ask_own(0, round == 25, 100);
        ask_own(1, 0, 100);
        ask_own(1, 0, 5000);
    }
    routes_tick(routes, 1099);
    cr_assert_eq(own_late[0] + own_late[1], 0);
    routes_tick(routes, 1100);
    cr_assert_eq(own_late[0], 50);
    cr_assert_eq(own_late[1], 25, "the others were cancelled");
    routes_figures(routes, &figures);
    cr_assert_eq(figures.calls_pending, 50);
    routes_cancel_own(routes, &own_askers[0]);
    routes_tick(routes, 10000);
    routes_figures(routes, &figures);
    cr_assert_eq(figures.calls_pending, 0);
    cr_assert_eq(own_late[0], 50);
}

/* Many in line for one function, and one with many functions: each finds its own place. */
Test(routes, a_long_line_for_a_function)
{
    enum { WORKERS = 300 };
    char name[16];
    for (uint64_t number = 1; number <= WORKERS; number++) {
        (void)snprintf(name, sizeof name, "w%llu", (unsigned long long)number);
        session(b, number, name);
        add(b, number, NULL, "shared");
        add(b, WORKERS, NULL, name); /* of no session before the last */
    }
    struct routes_figures figures;
    recorder_clear(&recorder);
    for (uint64_t number = 1; number < WORKERS; number++) {
        call(a, number, 0, NULL, "shared", "null");
        const struct recorded *asked = &recorder.messages[recorder.count - 1];
        cr_assert_eq(asked->type, WIRE_INVOKE);
        cr_assert_eq(asked->fields[0].number, number, "who has waited longest");
        add(b, number, NULL, "shared"); /* again: its place stays */
        take(b, WIRE_FUNCTION_UNREGISTER, 0, number, NULL, "shared", NULL, NULL, NULL, NULL);
    }
    routes_figures(routes, &figures);
    cr_assert_eq(figures.functions, 2, "shared, and the last worker's own");
}

Test(routes, random_life_leaves_nothing_behind)
{
    enum { CALLS_MAX = 4000 };
    static uint8_t answers[CALLS_MAX];
    static struct peer_handle caller[CALLS_MAX];
    struct peer_handle peers[3] = {{0, 1}, {1, 1}, {2, 1}};
    const char *seed_text = getenv("WEIR_SEED");
    unsigned seed = seed_text ? (unsigned)strtoul(seed_text, NULL, 10) : 20240611;
    fprintf(stderr, "seed %u\n", seed);
    srand(seed);
    unsigned calls = 0;
    for (unsigned step = 0; step < 40000; step++) {
        struct peer_handle *peer = &peers[rand() % 3];
        uint64_t number = (uint64_t)(rand() % 6);
        char id[8];
        snprintf(id, sizeof id, "f%d", rand() % 10);
        int action = rand() % 100;
        unsigned before = recorder.count;
        if (action < 10)
            session(*peer, number, "w");
        else if (action < 15)
            take(*peer, WIRE_SESSION_CLOSED, 0, number, NULL, NULL, NULL, NULL, NULL, NULL);
        else if (action < 38)
            add(*peer, number, NULL, id);
        else if (action < 40)
            reattach(*peer, step + 1, number, "w", "secret");
        else if (action < 45)
            take(*peer, WIRE_FUNCTION_UNREGISTER, 0, number, NULL, id, NULL, NULL, NULL, NULL);
        else if (action < 99 && calls < CALLS_MAX - 1) {
            caller[++calls] = *peer;
            call(*peer, calls, number, NULL, id, "null");
        } else if (action == 99) {
            routes_peer_gone(routes, *peer);
            peer->generation++;
        }
        for (unsigned index = before; index < recorder.count; index++) {
            const struct recorded message = recorder.messages[index];
            if (message.type == WIRE_RESULT) {
                cr_assert(peer_handle_equal(message.peer, caller[message.id]));
                answers[message.id]++;
            } else if (message.type == WIRE_SESSION_EVICT && rand() % 2) {
                refuse_eviction(message.peer, message.id);
            } else if (message.type == WIRE_INVOKE && rand() % 2) {
                unsigned at = recorder.count;
                result(message.peer, message.id, "1", NULL);
                for (; at < recorder.count; at++)
                    answers[recorder.messages[at].id]++;
                break; /* one INVOKE a step; what came after it was counted */
            }
        }
        recorder_clear(&recorder);
    }
    for (unsigned index = 0; index < 3; index++)
        routes_peer_gone(routes, peers[index]);
    for (unsigned index = 1; index <= calls; index++)
        cr_assert_leq(answers[index], 1, "call %u was answered %u times", index, answers[index]);
    struct routes_figures figures;
    routes_figures(routes, &figures);
    cr_assert_eq(
        figures.sessions + figures.functions + figures.calls_pending + figures.detail_bytes, 0);
}

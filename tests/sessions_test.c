/* A gateway's worker side against a broker played by the test: link, sessions and calls on a real
 * loop and a real unix socket; the worker is a transport that notes what it is given. */
#include <criterion/criterion.h>

#include "gateway/calls.h"
#include "gateway/custom_streams.h"
#include "gateway/salvage.h"
#include "tests/played_broker.h"

enum { TEXT_BYTES = 8192 };

static struct world {
    struct counters counters;
    struct sessions sessions;
} world;

/* ---- the worker played ---- */

static struct notes {
    unsigned answers, invocations, rejections, retired;
    unsigned unsure, refused; /* answers that say "not known" and "not carried out" */
    bool is_reading;
    bool is_held;
    char tag[256], result[TEXT_BYTES], error[TEXT_BYTES], data[TEXT_BYTES];
    bool has_result;
    uint8_t uuid[UUID_BYTES];
    uint64_t number;
} notes;

static void note_text(char *to, struct span text)
{
    cr_assert_lt(text.bytes, TEXT_BYTES);
    if (text.bytes > 0)
        memcpy(to, text.data, text.bytes);
    to[text.bytes] = '\0';
}

static void on_answer(void *peer, const struct session_answer *answer)
{
    struct notes *noted = peer;
    noted->answers++;
    cr_assert_lt(answer->tag.bytes, sizeof noted->tag);
    note_text(noted->tag, answer->tag);
    note_text(noted->result, answer->result);
    note_text(noted->error, answer->error_json);
    noted->has_result = answer->result.data != NULL;
    noted->unsure += strstr(noted->error, "is not known") != NULL;
    noted->refused += strstr(noted->error, "not carried out") != NULL;
}
static void on_invocation(void *peer, const struct session_invocation *invocation)
{
    struct notes *noted = peer;
    noted->invocations++;
    note_text(noted->data, invocation->data);
    memcpy(noted->uuid, invocation->uuid, UUID_BYTES);
    noted->number = invocation->number;
}
static void on_rejection(void *peer, const struct session_rejection *rejection)
{
    (void)rejection;
    ((struct notes *)peer)->rejections++;
}
static void on_set_reading(void *peer, bool reading)
{
    ((struct notes *)peer)->is_reading = reading;
}
static void on_set_held(void *peer, bool held)
{
    ((struct notes *)peer)->is_held = held;
}
static void on_retire(void *peer)
{
    ((struct notes *)peer)->retired++;
}
static const struct session_transport transport = {
    .send_answer = on_answer,
    .send_invocation = on_invocation,
    .send_rejection = on_rejection,
    .set_reading = on_set_reading,
    .set_held = on_set_held,
    .retire = on_retire,
};

static void call(struct session *session, const char *tag, const char *function, const char *data)
{
    struct call_request request = {
        .function_tag = SPAN_LITERAL("\"f\""),
        .function = span_text(function),
    };
    if (tag != NULL)
        request.tag = span_text(tag);
    cr_assert_eq(json_scan(span_text(data), JSON_DEPTH_MAX, &request.data, NULL), WEIR_OK);
    session_call(session, &request);
}

/* ---- the world ---- */

static bool on_attaching(void *context, uint64_t *commit)
{
    (void)context;
    return broker_is_attaching(commit);
}
static void on_attached(void *context, const struct link_attachment *attachment)
{
    (void)context;
    broker_was_attached(attachment);
    world.sessions.mapping = attachment->mapping;
    sessions_announce(&world.sessions);
}
static void on_lost(void *context)
{
    (void)context;
    broker_was_lost();
    sessions_forget_invocations(&world.sessions);
}
static void on_message(void *context, const struct wire_message *message)
{
    (void)context;
    sessions_take_message(&world.sessions, message);
}

static struct session *world_open(uint64_t calls_max, uint64_t wait_ms)
{
    const struct sessions_limits limits = {calls_max, 1024 * 1024, 1000};
    const struct link_handlers handlers = {on_attaching, on_attached, on_lost, on_message, NULL};
    broker_open();
    sessions_init(&world.sessions, &limits, &world.counters);
    broker_link(&handlers, &world.counters, wait_ms, 1024 * 1024);
    world.sessions.link = broker.link;
    broker_attach();
    notes = (struct notes){.is_reading = true};
    struct session *session = session_open(&world.sessions, &transport, &notes, "127.0.0.1:5");
    cr_assert_not_null(session);
    struct wire_message message = broker_expect(WIRE_SESSION_OPEN);
    cr_assert(span_equal(message.fields[2].span, SPAN_LITERAL("127.0.0.1")));
    return session;
}

static void world_close(struct session *session)
{
    if (session != NULL)
        session_close(session);
    link_close(broker.link);
    broker_end_loop();
    sessions_fini(&world.sessions);
    broker_close();
}

#define SET_DATA                                                                                   \
    "{\"stream_name\":\"s\", \"group_id\":\"g\",\"item_id\":\"i\\u0041\",\"data\":{ \"a\" : 1 }}"
#define GET_DATA "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"iA\"}"

/* Goal: names decoded, the value compact, the answer passed on. */
Test(sessions, set_goes_to_the_broker_and_its_answer_back, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 1000);
    call(session, "\"t1\"", "stream::set", SET_DATA);
    struct wire_message message = broker_expect(WIRE_STREAM);
    cr_assert_eq(message.fields[0].number, WIRE_OP_SET);
    cr_assert(span_equal(message.fields[3].span, SPAN_LITERAL("iA")));
    cr_assert(span_equal(message.fields[5].span, SPAN_LITERAL("{\"a\":1}")));
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL,
                                         WIRE_SPAN(SPAN_LITERAL("{\"old_value\":null}"))};
    broker_send(WIRE_STREAM_RESULT, message.id, answer);
    pump();
    cr_assert_eq(notes.answers, 1);
    cr_assert_str_eq(notes.tag, "\"t1\"");
    cr_assert_str_eq(notes.result, "{\"old_value\":null}");
    broker_send(WIRE_STREAM_RESULT, message.id, answer);
    pump();
    cr_assert_eq(notes.answers, 1, "an answer that comes twice is dropped");
    world_close(session);
}

/* One connection's calls take effect in order: a read overtakes no write. */
Test(sessions, reads_are_local_unless_a_write_is_under_way, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 1000);
    call(session, "\"r1\"", "stream::get", GET_DATA);
    cr_assert_eq(notes.answers, 1, "answered at once");
    cr_assert_not(notes.has_result, "missing: no result");
    call(session, NULL, "stream::set", SET_DATA);
    call(session, "\"r2\"", "stream::get", GET_DATA);
    cr_assert_eq(notes.answers, 1, "waits for the write");
    uint64_t set = broker_expect(WIRE_STREAM).id;
    struct wire_message get = broker_expect(WIRE_STREAM);
    cr_assert_eq(get.fields[0].number, WIRE_OP_GET);
    uint64_t get_id = get.id;
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, set, answer);
    broker_send(WIRE_STREAM_RESULT, get_id, answer);
    pump();
    cr_assert_eq(notes.answers, 2, "the void write is not answered");
    cr_assert_str_eq(notes.tag, "\"r2\"");
    call(session, "\"r3\"", "stream::list", "{\"stream_name\":\"s\",\"group_id\":\"g\"}");
    cr_assert_eq(notes.answers, 3, "local again");
    cr_assert_str_eq(notes.result, "[]");
    world_close(session);
}

static void set_void(struct session *session)
{
    call(session, NULL, "stream::set", SET_DATA);
}

/* Is the write that comes next asked without hurry? */
static bool next_is_unhurried(void)
{
    return (broker_expect(WIRE_STREAM).flags & WIRE_FLAG_UNHURRIED) != 0;
}

/* Not near the bound on open calls, where the worker would have to wait for the answers. */
Test(sessions, void_writes_are_unhurried_far_from_the_bound, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(10, 5000);
    call(session, "\"t\"", "stream::set", SET_DATA);
    cr_assert_not(next_is_unhurried(), "somebody waits");
    for (unsigned i = 0; i < 4; i++) {
        set_void(session);
        cr_assert(next_is_unhurried(), "of %u", i + 2);
    }
    for (unsigned i = 0; i < 5; i++) {
        set_void(session);
        cr_assert_not(next_is_unhurried(), "of %u", i + 6);
    }
    cr_assert_not(notes.is_reading, "full");
    world_close(session);
}

/* A read beside an open write goes to the broker, so whoever reads has its writes answered at once. */
Test(sessions, void_writes_of_a_reader_are_hurried, .timeout = HANG_SECONDS)
{
    unsigned hurried = 0;
    struct session *session = world_open(4096, 5000);
    set_void(session);
    cr_assert(next_is_unhurried());
    call(session, "\"r\"", "stream::get", GET_DATA);
    (void)broker_expect(WIRE_STREAM);
    for (set_void(session); !next_is_unhurried(); set_void(session))
        hurried++;
    cr_assert_eq(hurried, 64);
    world_close(session);
}

/* The operations travel as text, compact, in the place of a value. */
Test(sessions, update_passes_its_operations_on, .timeout = HANG_SECONDS)
{
    static const char *const wrong[] = {"{}", "null", "\"ops\"", "1"};
    char data[4000];
    struct session *session = world_open(100, 1000);
    call(session, "\"t\"", "stream::update",
         "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"ops\":[ { \"type\" : \"x\" "
         "} ]}");
    struct wire_message message = broker_expect(WIRE_STREAM);
    cr_assert_eq(message.fields[0].number, WIRE_OP_UPDATE);
    cr_assert(span_equal(message.fields[5].span, SPAN_LITERAL("[{\"type\":\"x\"}]")));
    for (unsigned i = 0; i < 4; i++) {
        (void)snprintf(data, sizeof data,
                       "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"ops\":%s}",
                       wrong[i]);
        call(session, "\"t\"", "stream::update", data);
        cr_assert_eq(notes.answers, i + 1);
        cr_assert_not_null(strstr(notes.error, "\"deserialization_error\""));
        cr_assert_not_null(strstr(notes.error, "stream::update: the field ops"), "%s", notes.error);
    }
    call(session, "\"t\"", "stream::update", SET_DATA);
    cr_assert_not_null(strstr(notes.error, "the field ops is missing"), "%s", notes.error);
    (void)snprintf(
        data, sizeof data,
        "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"ops\":[\"%03000d\"]}", 1);
    call(session, "\"t\"", "stream::update", data);
    cr_assert_not_null(strstr(notes.error, "\"STREAM_UPDATE_ERROR\""), "%s", notes.error);
    world_close(session);
}

/* Whoever registers a stream's functions and then reads is answered by the broker; a worker's error
 * object comes as it is; there is no time limit of the link's own. */
Test(sessions, a_workers_own_stream_is_read_through_the_broker, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 5000);
    world.sessions.custom = custom_streams_open();
    const struct session_registration function = {.function = SPAN_LITERAL("stream::list(s)")};
    session_register_function(session, &function);
    (void)broker_expect(WIRE_FUNCTION_REGISTER);
    call(session, "\"r\"", "stream::get", GET_DATA);
    cr_assert_eq(notes.answers, 0, "not from the store");
    uint64_t get = broker_expect(WIRE_STREAM).id;
    (void)usleep(1100000);
    uv_update_time(&broker.loop);
    cr_assert(link_is_responsive(broker.link), "it is a worker that takes its time");
    const struct wire_field answer[4] = {
        WIRE_NIL, WIRE_NIL, WIRE_NIL,
        WIRE_SPAN(SPAN_LITERAL("{\"code\":\"X\",\"message\":\"\",\"z\":1}"))};
    broker_send(WIRE_STREAM_RESULT, get, answer);
    pump();
    cr_assert_eq(notes.answers, 1);
    cr_assert_str_eq(notes.error, "{\"code\":\"X\",\"message\":\"\",\"z\":1}");
    call(session, "\"r\"", "stream::list_all", "{}");
    cr_assert_eq(notes.answers, 2, "no stream's own");
    call(session, "\"r\"", "stream::get",
         "{\"stream_name\":\"t\",\"group_id\":\"g\",\"item_id\":\"i\"}");
    cr_assert_eq(notes.answers, 3, "another stream is in the store");
    custom_streams_close(world.sessions.custom);
    world.sessions.custom = NULL;
    world_close(session);
}

Test(sessions, wrong_input_is_a_deserialization_error, .timeout = HANG_SECONDS)
{
    static const char *const inputs[] = {
        "{}",
        "[]",
        "null",
        "{\"stream_name\":1,\"group_id\":\"g\",\"item_id\":\"i\",\"data\":1}",
        "{\"stream_name\":\"s\",\"group_id\":null,\"item_id\":\"i\",\"data\":1}",
        "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\"}",
        "{\"stream_name\":\"s\",\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\","
        "\"data\":1}"};
    struct session *session = world_open(100, 1000);
    for (unsigned i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        call(session, "\"t\"", "stream::set", inputs[i]);
        cr_assert_eq(notes.answers, i + 1);
        cr_assert_not_null(strstr(notes.error, "\"deserialization_error\""), "%s: %s", inputs[i],
                           notes.error);
        cr_assert_not_null(strstr(notes.error, "stream::set"));
    }
    char large[2000];
    (void)snprintf(
        large, sizeof large,
        "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"data\":\"%01500d\"}", 1);
    call(session, "\"t\"", "stream::set", large);
    cr_assert_not_null(strstr(notes.error, "\"STREAM_SET_ERROR\""), "beyond value_bytes_max");
    struct wire_message message;
    cr_assert_not(broker_receive(&message), "nothing of this reaches the broker");
    world_close(session);
}

/* Goal: the callee learns who calls, whatever the caller says. */
Test(sessions, calls_carry_the_callers_id, .timeout = HANG_SECONDS)
{
    static const struct {
        const char *data, *before, *after;
    } cases[] = {
        {"{}", "{", "}"},
        {"{ \"x\" : 1 }", "{\"x\":1,", "}"},
        {"{\"_caller_worker_id\":\"me\",\"x\":[1]}", "{\"x\":[1],", "}"},
        {"{\"_caller_worker\\u005fid\":\"me\"}", "{", "}"},
    };
    struct session *session = world_open(100, 1000);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char expected[256];
        (void)snprintf(expected, sizeof expected, "%s\"_caller_worker_id\":\"%s\"%s",
                       cases[i].before, session->worker_id, cases[i].after);
        call(session, "\"t\"", "app::f", cases[i].data);
        struct wire_message message = broker_expect(WIRE_CALL);
        cr_assert(span_equal(message.fields[3].span, span_text(expected)), "%s", cases[i].data);
    }
    call(session, NULL, "app::f", "[1, 2]");
    struct wire_message message = broker_expect(WIRE_CALL);
    cr_assert_eq(message.id, 0, "void");
    cr_assert(span_equal(message.fields[3].span, SPAN_LITERAL("[1,2]")));
    cr_assert_eq(session->call_count, sizeof cases / sizeof cases[0],
                 "a void call is not waited for");
    world_close(session);
}

/* A result counts only from the session that was asked, once. */
Test(sessions, results_are_taken_from_the_executor_only, .timeout = HANG_SECONDS)
{
    static struct notes other_notes;
    struct session *session = world_open(100, 1000);
    struct session *other = session_open(&world.sessions, &transport, &other_notes, "x:1");
    (void)broker_expect(WIRE_SESSION_OPEN);
    const struct wire_field invoke[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(SPAN_LITERAL("f")),
                                        WIRE_SPAN(SPAN_LITERAL("{}")),
                                        WIRE_NIL,
                                        WIRE_NIL,
                                        WIRE_NIL};
    broker_send(WIRE_INVOKE, 77, invoke);
    pump();
    cr_assert_eq(notes.invocations, 1);
    char uuid[UUID_TEXT_BYTES + 1];
    uuid_print(uuid, notes.uuid);
    const struct session_answer answer = {.result = SPAN_LITERAL("5")};
    cr_assert_not(session_answer_uuid(other, span_text(uuid), &answer));
    cr_assert_not(session_answer_number(other, notes.number, &answer));
    cr_assert_not(session_answer_number(session, notes.number ^ (1ull << 40), &answer));
    cr_assert_not(session_answer_uuid(session, SPAN_LITERAL("00000000-0000-4000-8000-000000000000"),
                                      &answer));
    cr_assert(session_answer_uuid(session, span_text(uuid), &answer));
    cr_assert_not(session_answer_uuid(session, span_text(uuid), &answer), "once");
    struct wire_message message = broker_expect(WIRE_RESULT);
    cr_assert_eq(message.id, 77);
    cr_assert(span_equal(message.fields[0].span, SPAN_LITERAL("5")));
    const struct wire_field stray[] = {WIRE_NUMBER(12345),
                                       WIRE_SPAN(SPAN_LITERAL("f")),
                                       WIRE_SPAN(SPAN_LITERAL("{}")),
                                       WIRE_NIL,
                                       WIRE_NIL,
                                       WIRE_NIL};
    broker_send(WIRE_INVOKE, 78, stray);
    message = broker_expect(WIRE_RESULT);
    cr_assert_eq(message.id, 78);
    cr_assert_not_null(message.fields[1].span.data, "a session that has gone is an error");
    session_close(other);
    world_close(session);
}

/* An invocation the broker calls off gives its place back, whichever it is, and a late answer meets
 * nobody. More of them than a worker may have open. */
Test(sessions, invocations_are_called_off, .timeout = HANG_SECONDS)
{
    enum { OPEN = 300, ROUNDS = 300 };
    struct session *session = world_open(100, 1000);
    const struct wire_field invoke[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(SPAN_LITERAL("f")),
                                        WIRE_SPAN(SPAN_LITERAL("{}")),
                                        WIRE_NIL,
                                        WIRE_NIL,
                                        WIRE_NIL};
    const struct wire_field cancel[] = {WIRE_NUMBER(session->id)};
    struct wire_message message = {.type = WIRE_INVOKE};
    memcpy(message.fields, invoke, sizeof invoke);
    for (uint64_t id = 1; id <= (uint64_t)OPEN * ROUNDS; id++) {
        message.type = WIRE_INVOKE;
        message.id = id;
        sessions_take_message(&world.sessions, &message);
        if (id <= OPEN)
            continue;
        message.type = WIRE_CALL_CANCEL;
        message.id = id - OPEN;
        sessions_take_message(&world.sessions, &message);
        sessions_take_message(&world.sessions, &message); /* again: no effect */
        cr_assert_eq(session->invocation_count, OPEN);
    }
    broker_send(WIRE_CALL_CANCEL, (uint64_t)OPEN * ROUNDS, cancel);
    pump();
    cr_assert_eq(session->invocation_count, OPEN - 1);
    const struct session_answer answer = {.result = SPAN_LITERAL("5")};
    cr_assert_not(session_answer_number(session, notes.number, &answer));
    world_close(session);
}

/* A void invocation keeps no place for an answer, and an answer to it goes no further. */
Test(sessions, void_invocations_keep_nothing, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 1000);
    const struct wire_field invoke[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(SPAN_LITERAL("f")),
                                        WIRE_SPAN(SPAN_LITERAL("{}")),
                                        WIRE_NIL,
                                        WIRE_NIL,
                                        WIRE_NIL};
    broker_send(WIRE_INVOKE, WIRE_VOID_ID_BIT | 1, invoke);
    pump();
    cr_assert_eq(notes.invocations, 1);
    cr_assert_eq(session->invocation_count, 0u);
    char uuid[UUID_TEXT_BYTES + 1];
    uuid_print(uuid, notes.uuid);
    const struct session_answer answer = {.result = SPAN_LITERAL("5")};
    cr_assert(session_answer_uuid(session, span_text(uuid), &answer));
    cr_assert(session_answer_number(session, notes.number, &answer));
    broker_send(WIRE_INVOKE, 7, invoke);
    pump();
    cr_assert(session_answer_number(session, notes.number, &answer));
    cr_assert_eq(broker_expect(WIRE_RESULT).id, 7u, "the first to come");
    world_close(session);
}

/* The broker dies, and its log with it: what was in flight is answered when that is known, what comes
 * then waits, the session is announced again. */
Test(sessions, broker_death, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    const struct session_registration function = {.function = SPAN_LITERAL("app::f"),
                                                  .description = SPAN_LITERAL("d")};
    session_register_function(session, &function);
    (void)broker_expect(WIRE_FUNCTION_REGISTER);
    call(session, "\"w\"", "stream::set", SET_DATA);
    (void)broker_expect(WIRE_STREAM);
    broker_die();
    call(session, "\"late\"", "stream::set", SET_DATA);
    call(session, NULL, "app::g", "{}");
    pump();
    cr_assert_eq(notes.answers, 0, "waits");
    broker_listen();
    broker_attach();
    cr_assert_eq(notes.answers, 1);
    cr_assert_not_null(strstr(notes.error, "STREAM_SET_ERROR"));
    cr_assert_not_null(strstr(notes.error, "not known"));
    (void)broker_expect(WIRE_SESSION_OPEN);
    struct wire_message message = broker_expect(WIRE_FUNCTION_REGISTER);
    cr_assert(span_equal(message.fields[2].span, SPAN_LITERAL("app::f")));
    cr_assert(span_equal(message.fields[3].span, SPAN_LITERAL("d")));
    uint64_t late = broker_expect(WIRE_STREAM).id;
    (void)broker_expect(WIRE_CALL);
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, late, answer);
    pump();
    cr_assert_eq(notes.answers, 2);
    cr_assert_str_eq(notes.tag, "\"late\"");
    world_close(session);
}

/* What never left the gateway when the broker died was surely not applied: the next broker gets it,
 * in order, before what was asked later. */
Test(sessions, unsent_calls_go_to_the_next_broker, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    const struct session_registration function = {.function = SPAN_LITERAL("app::f")};
    call(session, "\"sent\"", "stream::set", SET_DATA);
    (void)broker_expect(WIRE_STREAM);
    call(session, "\"a\"", "stream::set", SET_DATA);
    session_register_function(session, &function);
    call(session, NULL, "app::void", "{}");
    call(session, "\"b\"", "app::g", "{}");
    broker_die();
    call(session, "\"late\"", "app::h", "{}");
    for (unsigned deaths = 0; deaths < 2;
         deaths++) { /* the first new broker dies before they are sent */
        broker_listen();
        broker_attach();
        if (deaths == 0)
            broker_die();
    }
    cr_assert_eq(notes.answers, 1);
    cr_assert_str_eq(notes.tag, "\"sent\"");
    cr_assert_eq(notes.unsure, 1);
    (void)broker_expect(WIRE_SESSION_OPEN);
    (void)broker_expect(WIRE_FUNCTION_REGISTER);
    uint64_t first = broker_expect(WIRE_STREAM).id;
    struct wire_message message = broker_expect(WIRE_CALL);
    cr_assert_eq(message.id, 0);
    cr_assert(span_equal(message.fields[2].span, SPAN_LITERAL("app::void")));
    message = broker_expect(WIRE_CALL);
    cr_assert(span_equal(message.fields[2].span, SPAN_LITERAL("app::g")));
    message = broker_expect(WIRE_CALL);
    cr_assert(span_equal(message.fields[2].span, SPAN_LITERAL("app::h")));
    cr_assert_not(broker_receive(&message), "each once");
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, first, answer);
    pump();
    cr_assert_eq(notes.answers, 2);
    cr_assert_str_eq(notes.tag, "\"a\"");
    world_close(session);
}

/* ---- asked again ---- */

static unsigned asked_done;
static void on_asked_done(struct link_request *request, enum link_fate fate,
                          const struct wire_message *answer)
{
    (void)request;
    (void)answer;
    asked_done += fate == LINK_EXPIRED;
}

static void call_set(struct session *session, const char *tag, const char *item)
{
    char data[256];
    (void)snprintf(data, sizeof data,
                   "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"%s\",\"data\":1}",
                   item);
    call(session, tag, "stream::set", data);
}

static uint64_t expect_set(const char *item)
{
    struct wire_message message = broker_expect(WIRE_STREAM);
    cr_assert_eq(message.fields[0].number, WIRE_OP_SET);
    cr_assert(span_equal(message.fields[3].span, span_text(item)), "%.*s came, not %s",
              (int)message.fields[3].span.bytes, message.fields[3].span.data, item);
    return message.id;
}

static void answer_call(uint64_t id)
{
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, id, answer);
    pump();
}

/* A broker that has the log of the one before is asked again with the same ids, in the order of asking:
 * what was sent, then what was not, then what was asked while none was there. */
Test(sessions, a_broker_with_the_log_is_asked_again, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    uint64_t origin = broker.origin;
    cr_assert_neq(origin, 0);
    cr_assert_eq(broker.commit, 0);
    call_set(session, "\"0\"", "0");
    answer_call(expect_set("0"));
    cr_assert_eq(notes.answers, 1);
    call_set(session, "\"1\"", "1");
    call_set(session, "\"2\"", "2");
    call_set(session, "\"3\"", "3");
    uint64_t ids[4] = {0, expect_set("1"), expect_set("2"), expect_set("3")};
    answer_call(ids[2]);
    cr_assert_eq(notes.answers, 2);
    call_set(session, "\"4\"", "4");
    call(session, "\"5\"", "app::f", "{}");
    broker_die();
    call_set(session, "\"6\"", "6");
    broker.read_commit = 77;
    broker.keeps = true;
    broker_replace();
    broker_listen();
    broker_attach();
    cr_assert_eq(broker.origin, origin, "the same life asks");
    cr_assert_eq(broker.commit, 77);
    (void)broker_expect(WIRE_SESSION_OPEN);
    cr_assert_eq(expect_set("1"), ids[1], "the broker knows it by its id");
    cr_assert_eq(expect_set("3"), ids[3]);
    uint64_t unsent = expect_set("4");
    (void)broker_expect(WIRE_CALL);
    uint64_t late = expect_set("6");
    struct wire_message message;
    cr_assert_not(broker_receive(&message), "each once");
    cr_assert_eq(world.counters.values[COUNTER_CALLS_RESENT], 2);
    cr_assert_eq(world.counters.values[COUNTER_CALLS_LOST], 0);
    cr_assert_eq(notes.answers, 2);
    answer_call(ids[3]);
    cr_assert_str_eq(notes.tag, "\"3\"");
    answer_call(ids[1]);
    answer_call(unsent);
    answer_call(late);
    cr_assert_eq(notes.answers, 6);
    cr_assert_eq(notes.unsure + notes.refused, 0);
    world_close(session);
}

/* They are kept until they are answered, however many brokers come and go; but one without the log
 * ends all that an earlier one may have applied. */
Test(sessions, only_brokers_with_the_log_are_asked_again, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    call_set(session, "\"1\"", "1");
    uint64_t id = expect_set("1");
    for (unsigned i = 0; i < 3; i++) {
        broker_restart(true, 0);
        (void)broker_expect(WIRE_SESSION_OPEN);
        cr_assert_eq(expect_set("1"), id);
    }
    broker_restart(true, 0); /* dies before it is sent anything */
    cr_assert_eq(notes.answers, 0);
    broker_restart(false, 0);
    cr_assert_eq(notes.answers, 1);
    cr_assert_eq(notes.unsure, 1, "a broker before this one was sent it");
    (void)broker_expect(WIRE_SESSION_OPEN);
    struct wire_message message;
    cr_assert_not(broker_receive(&message));
    cr_assert_eq(world.counters.values[COUNTER_CALLS_RESENT], 4);
    cr_assert_eq(world.counters.values[COUNTER_CALLS_LOST], 1);
    world_close(session);
}

/* Nothing is applied by reading: any broker can be asked again. */
Test(sessions, reads_are_asked_again_of_any_broker, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    call_set(session, "\"w\"", "1");
    call(session, "\"r\"", "stream::get", GET_DATA);
    (void)expect_set("1");
    uint64_t id = broker_expect(WIRE_STREAM).id;
    broker_restart(false, 0);
    cr_assert_eq(notes.answers, 1);
    cr_assert_str_eq(notes.tag, "\"w\"");
    cr_assert_eq(notes.unsure, 1);
    (void)broker_expect(WIRE_SESSION_OPEN);
    struct wire_message message = broker_expect(WIRE_STREAM);
    cr_assert_eq(message.fields[0].number, WIRE_OP_GET);
    cr_assert_eq(message.id, id);
    answer_call(id);
    cr_assert_str_eq(notes.tag, "\"r\"");
    world_close(session);
}

/* A gateway that has attached does not know yet which streams are workers'. The broker does. */
Test(sessions, a_stream_that_may_be_a_workers_is_read_through_the_broker, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 5000);
    world.sessions.custom = custom_streams_open();
    custom_streams_clear(world.sessions.custom);
    call(session, "\"r\"", "stream::list_all", "{}");
    cr_assert_eq(notes.answers, 1, "no stream's own");
    call(session, "\"r\"", "stream::get", GET_DATA);
    cr_assert_eq(notes.answers, 1, "not from the store");
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("\"theirs\"")),
                                         WIRE_NIL};
    broker_send(WIRE_STREAM_RESULT, broker_expect(WIRE_STREAM).id, answer);
    pump();
    cr_assert_eq(notes.answers, 2);
    custom_streams_told(world.sessions.custom);
    call(session, "\"r\"", "stream::get", GET_DATA);
    cr_assert_eq(notes.answers, 3, "it is nobody's");
    custom_streams_close(world.sessions.custom);
    world.sessions.custom = NULL;
    world_close(session);
}

/* What a worker has to do is never asked twice. */
Test(sessions, a_workers_work_is_not_asked_for_again, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    world.sessions.custom = custom_streams_open();
    custom_streams_set(world.sessions.custom, SPAN_LITERAL("s"), true);
    call_set(session, "\"own\"", "1");
    call(session, "\"f\"", "app::f", "{}");
    (void)expect_set("1");
    (void)broker_expect(WIRE_CALL);
    broker_die();
    cr_assert_eq(notes.answers, 2, "at once");
    cr_assert_eq(notes.unsure, 1);
    broker_replace();
    broker.keeps = true;
    broker_listen();
    broker_attach();
    (void)broker_expect(WIRE_SESSION_OPEN);
    struct wire_message message;
    cr_assert_not(broker_receive(&message));
    custom_streams_close(world.sessions.custom);
    world.sessions.custom = NULL;
    world_close(session);
}

/* What is kept for the next broker would not fit its room for long. */
Test(sessions, writes_are_hurried_when_much_is_kept, .timeout = HANG_SECONDS)
{
    static char value[300 * 1024];
    struct link_request requests[3] = {0};
    struct session *session = world_open(100, 5000);
    memset(value, '1', sizeof value);
    const struct wire_field fields[8] = {WIRE_NUMBER(WIRE_OP_SET),
                                         WIRE_SPAN(SPAN_LITERAL("s")),
                                         WIRE_SPAN(SPAN_LITERAL("g")),
                                         WIRE_SPAN(SPAN_LITERAL("i")),
                                         WIRE_NIL,
                                         WIRE_SPAN(span_of(value, sizeof value))};
    for (unsigned i = 0; i < 3; i++) {
        requests[i] = (struct link_request){.done = on_asked_done, .is_unhurried = true};
        cr_assert_eq(link_ask(broker.link, WIRE_STREAM, fields, &requests[i]), WEIR_OK);
        cr_assert_eq(next_is_unhurried(), i < 2, "%u", i);
    }
    world_close(session);
}

/* The time counts from when a call was asked. What may have been applied is not said to have failed;
 * what was only going to be read is. */
Test(sessions, what_waits_for_a_broker_with_the_log_expires, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    struct link_request request = {.done = on_asked_done};
    const struct wire_field fields[8] = {WIRE_NUMBER(WIRE_OP_SET)};
    cr_assert_eq(link_ask(broker.link, WIRE_STREAM, fields, &request), WEIR_OK);
    uint64_t deadline_ms = request.deadline_ms;
    cr_assert_gt(deadline_ms, uv_now(&broker.loop), "since it was asked");
    call_set(session, "\"w\"", "1");
    call(session, "\"r\"", "stream::get", GET_DATA);
    (void)broker_expect(WIRE_STREAM);
    (void)expect_set("1");
    (void)broker_expect(WIRE_STREAM);
    (void)usleep(3000);
    broker_die();
    cr_assert_eq(request.deadline_ms, deadline_ms);
    link_tick(broker.link);
    cr_assert_eq(notes.answers + asked_done, 0);
    for (struct link_request *waiting = &request; waiting != NULL; waiting = waiting->next)
        waiting->deadline_ms = uv_now(&broker.loop);
    link_tick(broker.link);
    cr_assert_eq(asked_done, 0, "not expired, but lost");
    cr_assert_eq(notes.unsure, 1);
    cr_assert_eq(notes.refused, 1);
    cr_assert_eq(notes.answers, 2);
    world_close(session);
}

/* Frames are kept up to a bound of bytes, not more; what is answered gives its place back, in whatever
 * order. */
Test(sessions, frames_are_kept_up_to_the_bound, .timeout = HANG_SECONDS)
{
    enum { CALLS = 3000, FEW = 500, VALUE = 900, ROUNDS = 5 };
    struct session *session = world_open(1000000, 60000);
    static char data[VALUE + 200];
    static uint64_t ids[CALLS];
    uint64_t bridge = 0; /* of the round before: something is in flight all the time */
    struct wire_message message;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < (round < ROUNDS - 1 ? FEW : CALLS); i++) {
            (void)snprintf(data, sizeof data,
                           "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"%05u\","
                           "\"data\":\"%0*u\"}",
                           i, VALUE, i);
            call(session, "\"t\"", "stream::set", data);
            ids[i] = broker_expect(WIRE_STREAM).id;
        }
        if (bridge != 0)
            answer_call(bridge);
        if (round == ROUNDS - 1)
            break;
        for (unsigned i = 0; i < FEW - 1; i++) /* all but the last, in an order of its own */
            answer_call(ids[i * 7 % (FEW - 1)]);
        bridge = ids[FEW - 1];
    }
    cr_assert_eq(notes.answers, (ROUNDS - 1) * FEW);
    broker_die();
    unsigned kept = (ROUNDS - 1) * FEW + CALLS - notes.answers;
    cr_assert_eq(notes.unsure, CALLS - kept);
    cr_assert_gt(kept, 1024 * 1024 / (VALUE + 200));
    cr_assert_leq(kept, 1024 * 1024 / VALUE);
    broker_replace();
    broker.keeps = true;
    broker_listen();
    broker_attach();
    (void)broker_expect(WIRE_SESSION_OPEN);
    for (unsigned i = 0; i < kept; i++) {
        message = broker_expect(WIRE_STREAM);
        cr_assert_eq(message.id, ids[i], "the oldest, in order");
        cr_assert_eq(message.fields[5].span.bytes, VALUE + 2);
    }
    cr_assert_not(broker_receive(&message));
    world_close(session);
}

/* The ring of the broker that has gone is read to its end before the next one is asked. */
Test(sessions, the_old_ring_is_read_before_attaching, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    broker_die();
    broker_replace();
    broker.drains = 20;
    broker.read_commit = 5;
    broker.keeps = true;
    broker.position = 12345;
    broker_listen();
    broker_attach();
    cr_assert_eq(broker.drains, 0);
    cr_assert_eq(broker.commit, 5);
    cr_assert(broker.was_kept);
    cr_assert_eq(broker.was_position, 12345);
    world_close(session);
}

/* Brokers that come and go do not make a call wait longer than write_wait_ms in all. */
Test(sessions, a_call_kept_twice_keeps_its_deadline, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 60000);
    struct link_request request = {.done = on_asked_done};
    const struct wire_field fields[] = {WIRE_NUMBER(session->id), WIRE_NIL, WIRE_NIL};
    cr_assert_eq(link_ask(broker.link, WIRE_SESSION_REATTACH, fields, &request), WEIR_OK);
    broker_die();
    uint64_t deadline_ms = request.deadline_ms;
    cr_assert_gt(deadline_ms, uv_now(&broker.loop));
    broker_listen();
    broker_attach();
    (void)usleep(3000);
    broker_die();
    cr_assert_eq(request.deadline_ms, deadline_ms);
    request.deadline_ms = uv_now(&broker.loop);
    link_tick(broker.link);
    cr_assert_eq(asked_done, 1);
    broker_listen();
    broker_attach();
    world_close(session);
}

static unsigned asked_silent;
static void on_asked_silent(struct link_request *request, enum link_fate fate,
                            const struct wire_message *answer)
{
    (void)request;
    (void)answer;
    asked_silent += fate == LINK_SILENT;
}

/* A broker that lives but does not answer: stream questions end after the time limit, oldest first,
 * others wait on; an answer that comes too late meets nobody. A gateway that stood still itself
 * reads before it judges. */
Test(sessions, a_silent_broker_is_not_waited_for_for_ever, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 5000);
    struct link_request first = {.done = on_asked_silent}, second = {.done = on_asked_silent},
                        other = {.done = on_asked_silent};
    const struct wire_field stream[8] = {WIRE_NUMBER(WIRE_OP_LIST_ALL)};
    const struct wire_field reattach[] = {WIRE_NUMBER(session->id), WIRE_NIL, WIRE_NIL};
    cr_assert_eq(link_ask(broker.link, WIRE_STREAM, stream, &first), WEIR_OK);
    cr_assert_eq(link_ask(broker.link, WIRE_STREAM, stream, &second), WEIR_OK);
    cr_assert_eq(link_ask(broker.link, WIRE_SESSION_REATTACH, reattach, &other), WEIR_OK);
    link_tick(broker.link);
    cr_assert(link_is_responsive(broker.link));
    uint64_t now_ms = uv_now(&broker.loop);
    first.asked_ms = now_ms - 1500;
    link_tick(broker.link);
    cr_assert_not(link_is_responsive(broker.link));
    cr_assert_eq(asked_silent, 0);
    first.asked_ms = now_ms - 5001;
    link_tick(broker.link);
    cr_assert_eq(asked_silent, 1, "the second is younger, the third has no limit");
    cr_assert(link_is_responsive(broker.link));
    pump();
    uint64_t late = broker_expect(WIRE_STREAM).id;
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, late, answer);
    pump();
    cr_assert_eq(asked_silent, 1);
    second.asked_ms = 0;
    (void)usleep(1100000);
    uv_update_time(&broker.loop);
    link_tick(broker.link);
    cr_assert_eq(asked_silent, 1, "this process stood still for more than a second");
    link_tick(broker.link);
    cr_assert_eq(asked_silent, 2);
    world_close(session);
}

/* A call of which the broker may have seen a byte is answered as unknown; of the others those that
 * fit wait, and those beyond the bound are answered as not carried out. Whatever happens to be the
 * socket's size, none is answered twice or kept twice. */
Test(sessions, a_full_socket_divides_calls_by_the_byte, .timeout = HANG_SECONDS)
{
    /* About 31 MB in a buffer of 32 MiB: once half of that is sent, the rest moves to the front,
     * with the socket still full. */
    enum { CALLS = 31000, VALUE = 900, SENT = 18000000 };
    struct session *session = world_open(1000000, 60000);
    static char data[VALUE + 200], discarded[65536];
    unsigned begun = 0, kept = 0;
    for (unsigned i = 0; i < CALLS; i++) {
        (void)snprintf(data, sizeof data,
                       "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"%05u\","
                       "\"data\":\"%0*u\"}",
                       i, VALUE, i);
        call(session, "\"t\"", "stream::set", data);
        if (i % 16 == 0)
            link_flush(broker.link);
    }
    size_t received = 0;
    ssize_t got = 1;
    while (received < SENT && got > 0) {
        link_flush(broker.link);
        got = recv(broker.fd, discarded, sizeof discarded, MSG_DONTWAIT);
        received += got > 0 ? (size_t)got : 0;
    }
    while ((got = recv(broker.fd, discarded, sizeof discarded, MSG_DONTWAIT)) > 0)
        received += (size_t)got;
    struct buffer frame; /* one like each of them: ids have a fixed place in the header */
    buffer_init(&frame, 4096);
    (void)snprintf(data, sizeof data, "\"%0*u\"", VALUE, 1);
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_OP_SET),
                                        WIRE_SPAN(SPAN_LITERAL("s")),
                                        WIRE_SPAN(SPAN_LITERAL("g")),
                                        WIRE_SPAN(SPAN_LITERAL("00000")),
                                        WIRE_NIL,
                                        WIRE_SPAN(span_text(data)),
                                        WIRE_NIL,
                                        WIRE_NIL};
    cr_assert_eq(wire_append(&frame, WIRE_STREAM, 1, fields), WEIR_OK);
    begun = (unsigned)((received + frame.bytes - 1) / frame.bytes);
    cr_assert_gt(begun, 0);
    cr_assert_gt((size_t)(CALLS - begun) * frame.bytes, 2 * 1024 * 1024,
                 "more is left than may wait");
    broker_die();
    cr_assert_eq(notes.unsure, begun - 1024 * 1024 / frame.bytes, "the frames of others are kept");
    broker_listen();
    broker_attach();
    cr_assert_eq(notes.unsure, begun);
    (void)broker_expect(WIRE_SESSION_OPEN);
    struct wire_message message;
    for (; broker_receive(&message); kept++) {
        char item[8];
        (void)snprintf(item, sizeof item, "%05u", begun + kept);
        cr_assert(span_equal(message.fields[3].span, span_text(item)),
                  "in order from the first unsent");
    }
    cr_assert_eq(kept, 1024 * 1024 / frame.bytes, "as many as write_wait_bytes_max holds");
    cr_assert_eq(notes.unsure + notes.refused + kept, CALLS);
    buffer_fini(&frame);
    world_close(session);
}

/* ---- reattach ---- */

static struct notes other_notes;

static struct session *open_other(void)
{
    other_notes = (struct notes){.is_reading = true};
    struct session *other = session_open(&world.sessions, &transport, &other_notes, "127.0.0.1:6");
    cr_assert_not_null(other);
    (void)broker_expect(WIRE_SESSION_OPEN);
    return other;
}

/* The new side: the broker is asked, and the session held until it answers. */
Test(sessions, a_reattach_holds_the_session_until_it_is_answered, .timeout = HANG_SECONDS)
{
    static const char id[] = "9a0e7a4e-5d0c-4a6e-8f50-0123456789ab";
    static const char token[] = "1b0e7a4e-5d0c-4a6e-8f50-0123456789ab";
    struct session *session = world_open(100, 1000);
    session_reattach(session, SPAN_LITERAL("no id"), span_text(token));
    session_reattach(session, span_text(id), SPAN_LITERAL("no token"));
    cr_assert_not(notes.is_held);
    for (unsigned retired = 0; retired < 2; retired++) {
        session_reattach(session, span_text(id), span_text(token));
        cr_assert(notes.is_held);
        struct wire_message message = broker_expect(WIRE_SESSION_REATTACH);
        cr_assert_neq(message.id, 0);
        cr_assert_eq(message.fields[0].number, session->id);
        cr_assert(span_equal(message.fields[1].span, span_text(id)));
        cr_assert(span_equal(message.fields[2].span, span_text(token)));
        pump();
        cr_assert(notes.is_held);
        const struct wire_field answer[] = {WIRE_NUMBER(retired)};
        broker_send(WIRE_SESSION_REATTACHED, message.id, answer);
        pump();
        cr_assert_not(notes.is_held, "whether or not anything was retired");
    }
    world_close(session);
}

/* Nothing leaves it stuck: silence, the broker's death, its absence, a full queue; and its own end
 * leaves nothing behind. */
Test(sessions, a_reattach_that_is_not_answered_lets_go, .timeout = HANG_SECONDS)
{
    static const char id[] = "9a0e7a4e-5d0c-4a6e-8f50-0123456789ab";
    struct session *session = world_open(100, 60000);
    uint64_t before_ms = uv_hrtime() / 1000000;
    session_reattach(session, span_text(id), span_text(id));
    uint64_t late = broker_expect(WIRE_SESSION_REATTACH).id;
    uint64_t after_ms = uv_hrtime() / 1000000;
    sessions_tick(&world.sessions, before_ms + REATTACH_MS_MAX - 1);
    cr_assert(notes.is_held);
    sessions_tick(&world.sessions, after_ms + REATTACH_MS_MAX + 1);
    cr_assert_not(notes.is_held, "5 s are over");
    session_reattach(session, span_text(id), span_text(id));
    (void)broker_expect(WIRE_SESSION_REATTACH);
    const struct wire_field answer[] = {WIRE_NUMBER(1)};
    broker_send(WIRE_SESSION_REATTACHED, late, answer);
    pump();
    cr_assert(notes.is_held, "that was the answer to another question");
    broker_die();
    cr_assert_not(notes.is_held, "the broker died with the question");
    session_reattach(session, span_text(id), span_text(id));
    cr_assert(notes.is_held, "the next broker is asked");
    sessions_tick(&world.sessions, uv_hrtime() / 1000000 + REATTACH_MS_MAX + 1);
    cr_assert_not(notes.is_held, "if it comes in time");
    session_reattach(session, span_text(id), span_text(id));
    session_close(session);
    sessions_tick(&world.sessions, uv_hrtime() / 1000000 + 2 * REATTACH_MS_MAX);
    cr_assert_null(world.sessions.reattaches);
    world_close(NULL);
}

/* The old side: the right token ends the session, and its SESSION_CLOSED comes before anything
 *               else; a wrong one is refused. */
Test(sessions, an_eviction_needs_the_token, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 1000);
    struct session *old = open_other();
    uint64_t number = old->id;
    char token[UUID_TEXT_BYTES + 1], wrong[UUID_TEXT_BYTES + 1];
    strcpy(token, old->reattach_token);
    cr_assert_str_neq(token, session->reattach_token);
    for (unsigned i = 0; i <= UUID_TEXT_BYTES; i++) { /* each place wrong, then one too short */
        strcpy(wrong, token);
        wrong[i] = i == UUID_TEXT_BYTES ? '\0' : 'x';
        struct span sent = span_text(wrong);
        if (i == UUID_TEXT_BYTES)
            sent.bytes--;
        const struct wire_field evict[] = {WIRE_NUMBER(number), WIRE_SPAN(sent)};
        broker_send(WIRE_SESSION_EVICT, 90 + i, evict);
        struct wire_message message = broker_expect(WIRE_SESSION_REATTACHED);
        cr_assert_eq(message.id, 90 + i);
        cr_assert_eq(message.fields[0].number, 0);
    }
    const struct wire_field nil[] = {WIRE_NUMBER(number), WIRE_NIL};
    broker_send(WIRE_SESSION_EVICT, 88, nil);
    cr_assert_eq(broker_expect(WIRE_SESSION_REATTACHED).id, 88);
    cr_assert_eq(other_notes.retired, 0);
    call(old, "\"t\"", "app::f", "{}");
    uint64_t asked = broker_expect(WIRE_CALL).id;
    const struct wire_field right[] = {WIRE_NUMBER(number), WIRE_SPAN(span_text(token))};
    broker_send(WIRE_SESSION_EVICT, 200, right);
    broker_send(WIRE_SESSION_EVICT, 201, right); /* crosses the close */
    struct wire_message message = broker_expect(WIRE_SESSION_CLOSED);
    cr_assert_eq(message.fields[0].number, number);
    cr_assert_eq(other_notes.retired, 1);
    cr_assert_eq(notes.retired, 0);
    cr_assert_not(broker_receive(&message), "SESSION_CLOSED is the answer");
    const struct wire_field late[] = {WIRE_SPAN(SPAN_LITERAL("1")), WIRE_NIL, WIRE_NIL, WIRE_NIL};
    broker_send(WIRE_RESULT, asked, late);
    pump();
    cr_assert_eq(other_notes.answers, 0, "the retired session hears nothing more");
    world_close(session);
}

/* Waiting has an end in time and in bytes. */
Test(sessions, waiting_for_the_broker_is_bounded, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(1000000, 0);
    broker_die();
    call(session, "\"a\"", "stream::set", SET_DATA);
    (void)usleep(3000);
    uv_update_time(&broker.loop);
    link_tick(broker.link);
    cr_assert_eq(notes.answers, 1);
    cr_assert_not_null(strstr(notes.error, "STREAM_SET_ERROR"));
    cr_assert_not_null(strstr(notes.error, "not carried out"));
    unsigned asked = 0;
    for (; notes.answers == 1 && asked < 100000; asked++)
        call(session, "\"b\"", "stream::set", SET_DATA);
    cr_assert_lt(asked, 100000, "1 MiB of waiting writes is the bound");
    cr_assert_not_null(strstr(notes.error, "too many calls wait"));
    world_close(session);
}

/* Beyond the bound the worker is not read; answers let it go on. */
Test(sessions, reading_pauses_at_the_bound, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(4, 1000);
    uint64_t ids[4];
    for (unsigned i = 0; i < 4; i++) {
        cr_assert(notes.is_reading);
        call(session, "\"t\"", "stream::set", SET_DATA);
        ids[i] = broker_expect(WIRE_STREAM).id;
    }
    cr_assert_not(notes.is_reading);
    const struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("1"))};
    broker_send(WIRE_STREAM_RESULT, ids[0], answer);
    pump();
    cr_assert_not(notes.is_reading, "not at every single answer");
    broker_send(WIRE_STREAM_RESULT, ids[1], answer);
    pump();
    cr_assert(notes.is_reading);
    session_close(session);
    (void)broker_expect(WIRE_SESSION_CLOSED);
    broker_send(WIRE_STREAM_RESULT, ids[2], answer);
    pump();
    cr_assert_eq(notes.answers, 2, "a session that has gone is not answered");
    world_close(NULL);
}

Test(sessions, functions_are_bounded_and_move_with_the_namespace, .timeout = HANG_SECONDS)
{
    struct session *session = world_open(100, 1000);
    static char id[NAME_BYTES_MAX + 2];
    memset(id, 'x', sizeof id - 1);
    const struct session_registration too_long = {.function = span_text(id)};
    session_register_function(session, &too_long);
    cr_assert_eq(notes.rejections, 1);
    const struct session_registration function = {.function = SPAN_LITERAL("f")};
    session_register_function(session, &function);
    session_register_function(session, &function);
    cr_assert_eq(session->function_count, 1);
    (void)broker_expect(WIRE_FUNCTION_REGISTER);
    (void)broker_expect(WIRE_FUNCTION_REGISTER);
    call(session, "\"t\"", "engine::workers::register", "{\"name\":\"n\",\"namespace\":\"blue\"}");
    cr_assert_str_eq(notes.result, "{\"success\":true}");
    (void)broker_expect(WIRE_SESSION_INFO);
    (void)broker_expect(WIRE_FUNCTION_UNREGISTER);
    struct wire_message message = broker_expect(WIRE_FUNCTION_REGISTER);
    cr_assert(span_equal(message.fields[1].span, SPAN_LITERAL("blue")));
    session_unregister_function(session, (struct span){0}, SPAN_LITERAL("f"));
    message = broker_expect(WIRE_FUNCTION_UNREGISTER);
    cr_assert(span_equal(message.fields[1].span, SPAN_LITERAL("blue")));
    call(session, "\"t\"", "engine::workers::register", "{\"namespace\":\" \"}");
    cr_assert_not_null(strstr(notes.error, "INVALID_NAMESPACE"));
    world_close(session);
}

/* More functions than are looked for one by one. */
Test(sessions, many_functions_are_found_again, .timeout = HANG_SECONDS)
{
    enum { FUNCTIONS = 3000 };
    struct session *session = world_open(100, 1000);
    char id[32];
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned number = 0; number < FUNCTIONS; number++) {
            (void)snprintf(id, sizeof id, "f%u", number);
            const struct session_registration function = {.function = span_text(id),
                                                          .is_http = number == 7};
            session_register_function(session, &function);
        }
        cr_assert_eq(session->function_count, FUNCTIONS);
        cr_assert_eq(session->http_function_count, 1);
    }
    const struct session_registration elsewhere = {.function = SPAN_LITERAL("f1"),
                                                   .name_space = SPAN_LITERAL("blue")};
    session_register_function(session, &elsewhere);
    cr_assert_eq(session->function_count, FUNCTIONS + 1);
    for (unsigned number = 0; number < FUNCTIONS; number += 2) {
        (void)snprintf(id, sizeof id, "f%u", number);
        session_unregister_function(session, (struct span){0}, span_text(id));
        session_unregister_function(session, (struct span){0}, span_text(id));
    }
    cr_assert_eq(session->function_count, FUNCTIONS / 2 + 1);
    session_unregister_function(session, SPAN_LITERAL("blue"), SPAN_LITERAL("f1"));
    session_unregister_function(session, (struct span){0}, SPAN_LITERAL("f1"));
    cr_assert_eq(session->function_count, FUNCTIONS / 2 - 1);
    cr_assert_eq(session->http_function_count, 1);
    world_close(session);
}

/* Whatever the bytes: only valid strings come out, and no byte outside is looked at. */
Test(salvage, finds_strings_in_bad_messages)
{
    static const char *const names[] = {"type", "invocation_id"};
    static const struct {
        const char *text, *type, *id;
    } cases[] = {
        {"{\"type\":\"a\",\"invocation_id\":\"b\",\"data\":NaN}", "\"a\"", "\"b\""},
        {"{\"data\":[1,{\"type\":\"x\"},\"}\"], \"type\" : \"a\" ,\"invocation_id\":\"b", "\"a\"",
         NULL},
        {"{\"type\":\"a\",\"type\":\"b\"}", "\"a\"", NULL},
        {"{\"type\":\"\\ud800\",\"invocation_id\":5}", NULL, NULL},
        {"{\"x\":\"\\\"type\\\":\\\"a\\\"\",\"type\":\"q\\\"\"}", "\"q\\\"\"", NULL},
        {"", NULL, NULL},
        {"{", NULL, NULL},
        {"{\"", NULL, NULL},
        {"{\"type", NULL, NULL},
        {"{\"type\"", NULL, NULL},
        {"{\"type\":", NULL, NULL},
        {"{\"type\":\"\\", NULL, NULL},
        {"[\"type\"]", NULL, NULL},
        {"{]]]}", NULL, NULL},
        {"{\"a\":]]]],\"type\":\"a\"}", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t bytes = strlen(cases[i].text);
        char *copy = malloc(bytes + 1); /* so that ASan sees a step too far */
        memcpy(copy, cases[i].text, bytes);
        copy = realloc(copy, bytes == 0 ? 1 : bytes);
        struct json_value values[2];
        salvage_strings(span_of(copy, bytes), names, 2, values);
        cr_assert_eq(values[0].kind == JSON_STRING, cases[i].type != NULL, "%s", cases[i].text);
        cr_assert_eq(values[1].kind == JSON_STRING, cases[i].id != NULL, "%s", cases[i].text);
        if (cases[i].type != NULL)
            cr_assert(span_equal(values[0].text, span_text(cases[i].type)), "%s", cases[i].text);
        free(copy);
    }
}

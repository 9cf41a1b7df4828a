/* Calls a worker makes and is asked for, and what it logs (PROTOCOL 2.6, 2.8, 2.15): JSON messages in,
 * frames for the broker and JSON messages out. */
#include "tests/worker_world.h"

/* covers: 2.9#11 B#4 */
Test(worker_calls, enqueueing_asks_the_queue_worker, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say("{\"type\":\"invokefunction\",\"invocation_id\":\"e\",\"function_id\":\"app::f\",\"data\":"
        "{ \"a\" : 1 },\"action\":{\"type\":\"enqueue\",\"queue\":\"q\\u0031\"},\"traceparent\":"
        "\"tp\",\"namespace\":\"blue\"}");
    (void)expect(WIRE_CALL);
    cr_assert_eq(message.fields[0].number, harness.sessions.slots[0].session->id);
    EXPECT_NIL(1);
    EXPECT_FIELD(2, "engine::queue::enqueue");
    EXPECT_FIELD(5, "tp");
    char data[512], receipt[UUID_TEXT_BYTES + 1] = "", expected[512];
    (void)snprintf(data, sizeof data, "%.*s", (int)message.fields[3].span.bytes,
                   message.fields[3].span.data);
    const char *at = strstr(data, "\"messageReceiptId\":\"");
    cr_assert_not_null(at);
    memcpy(receipt, at + 20, UUID_TEXT_BYTES);
    uint8_t uuid[UUID_BYTES];
    cr_assert(uuid_parse(uuid, span_text(receipt)), "%s", data);
    (void)snprintf(expected, sizeof expected,
                   "{\"queue\":\"q1\",\"function_id\":\"app::f\",\"data\":{\"a\":1},"
                   "\"messageReceiptId\":\"%s\",\"traceparent\":\"tp\",\"baggage\":null,"
                   "\"namespace\":\"blue\"}",
                   receipt);
    cr_assert_str_eq(data, expected, "and no caller's id");
    const struct wire_field answer[4] = {WIRE_SPAN(SPAN_LITERAL("\"ignored\""))};
    link_answer(&harness.link, message.id, WIRE_RESULT, answer);
    (void)snprintf(expected, sizeof expected,
                   "{\"type\":\"invocationresult\",\"invocation_id\":\"e\",\"function_id\":"
                   "\"app::f\",\"result\":{\"messageReceiptId\":\"%s\"},\"traceparent\":\"tp\"}",
                   receipt);
    cr_assert_str_eq(told(), expected);
}

Test(worker_calls, enqueueing_fails_with_one_code, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const struct {
        const char *error, *expected;
    } cases[] = {
        {"{\"code\":\"function_not_found\",\"message\":\"x\"}", "none is connected"},
        {"{\"code\":\"full\",\"message\":\"so \\u0022full\\u0022\"}", "so \\\"full\\\""},
        {"{}", "gave no reason"},
        {NULL, "the broker restarted"},
    };
    for (unsigned i = 0; i < 4; i++) {
        say("{\"type\":\"invokefunction\",\"invocation_id\":\"e\",\"function_id\":\"app::f\","
            "\"action\":{\"type\":\"enqueue\",\"queue\":\"q\"}}");
        (void)expect(WIRE_CALL);
        struct wire_field answer[4] = {WIRE_NIL, WIRE_NIL, WIRE_NIL, WIRE_NIL};
        if (cases[i].error != NULL)
            answer[1] = WIRE_SPAN(span_text(cases[i].error));
        link_answer(&harness.link, message.id, WIRE_RESULT, cases[i].error == NULL ? NULL : answer);
        const char *text = told();
        cr_assert_not_null(strstr(text, "\"error\":{\"code\":\"enqueue_error\""), "%s", text);
        cr_assert_not_null(strstr(text, cases[i].expected), "%s", text);
    }
    harness.link.is_full = true;
    say("{\"type\":\"invokefunction\",\"invocation_id\":\"e\",\"function_id\":\"app::f\","
        "\"action\":"
        "{\"type\":\"enqueue\",\"queue\":\"q\"}}");
    cr_assert_not_null(strstr(told(), "enqueue_error"));
    harness.link.is_full = false;
    say("{\"type\":\"invokefunction\",\"function_id\":\"app::f\",\"action\":{\"type\":\"enqueue\","
        "\"queue\":\"q\"}}");
    (void)expect(WIRE_CALL);
    cr_assert_eq(message.id, 0, "without an id nothing is waited for");
    cr_assert_str_eq(told(), "");
}

/* covers: 2.9#2 2.9#12 */
Test(worker_calls, what_is_void_is_never_answered, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const char *const texts[] = {
        "{\"type\":\"invokefunction\",\"invocation_id\":\"v\",\"function_id\":\"stream::set\","
        "\"data\":1,\"action\":{\"type\":\"void\"}}",
        "{\"type\":\"invokefunction\",\"invocation_id\":\"v\",\"function_id\":5,\"action\":"
        "{\"type\":\"void\"}}",
        "{\"type\":\"invokefunction\",\"invocation_id\":\"v\",\"function_id\":\"f\",\"namespace\":"
        "\" \",\"action\":{\"type\":\"void\"}}",
        "{\"type\":\"invokefunction\",\"invocation_id\":\"v\",\"function_id\":\"engine::log::"
        "info\","
        "\"data\":{},\"action\":{\"type\":\"void\"}}",
        "{\"type\":\"invokefunction\",\"function_id\":\"f\",\"namespace\":\" \"}",
    };
    for (unsigned i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        say(texts[i]);
        cr_assert_str_eq(told(), "", "%s", texts[i]);
    }
    say("{\"type\":\"invokefunction\",\"invocation_id\":\"v\",\"function_id\":\"f\",\"namespace\":"
        "\" \"}");
    cr_assert_not_null(strstr(told(), "INVALID_NAMESPACE"));
    expect_nothing();
}

/* Ids are counted as they are meant, not as they are written. */
Test(worker_calls, ids_have_up_to_128_bytes, .init = start, .fini = stop, .timeout = HANG_SECONDS)
{
    char id[WORKER_INVOCATION_ID_BYTES_MAX * 6 + 16], text[2048];
    for (unsigned escaped = 0; escaped < 2; escaped++) {
        for (unsigned count = 127; count <= 129; count++) {
            id[0] = '\0';
            for (unsigned i = 0; i < count; i++)
                strcat(id, escaped ? "\\u0041" : "A");
            (void)snprintf(text, sizeof text,
                           "{\"type\":\"invokefunction\",\"invocation_id\":\"%s\",\"function_id\":"
                           "\"stream::list_all\",\"namespace\":\" \"}",
                           id);
            say(text);
            const char *answer = told();
            if (count <= 128)
                cr_assert_not_null(strstr(answer, id), "verbatim: %s", answer);
            else
                cr_assert_str_eq(answer, "");
        }
    }
    cr_assert_eq(counter(COUNTER_WORKER_MESSAGES_IGNORED), 2);
    say("{\"type\":\"invokefunction\",\"invocation_id\":\"\",\"function_id\":\"f\"}");
    cr_assert_eq(counter(COUNTER_WORKER_MESSAGES_IGNORED), 3);
}

static void invoke(const char *function, uint64_t broker_id)
{
    const struct wire_message invocation = {
        .type = WIRE_INVOKE,
        .id = broker_id,
        .fields = {WIRE_NUMBER(harness.sessions.slots[0].session->id),
                   WIRE_SPAN(span_text(function)), WIRE_SPAN(SPAN_LITERAL("{}"))}};
    sessions_take_message(&harness.sessions, &invocation);
}

static void invoked_id(char id[UUID_TEXT_BYTES + 1])
{
    const char *at = strstr(told(), "\"invocation_id\":\"");
    cr_assert_not_null(at);
    memcpy(id, at + 17, UUID_TEXT_BYTES);
    id[UUID_TEXT_BYTES] = '\0';
}

/* The caller does not wait for ever because of what the executor sent. covers: 2.3/1#11 2.9#6 */
Test(worker_calls, unusable_answers_fail_their_call, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const struct {
        const char *rest, *error;
    } cases[] = {
        {"\"error\":{\"code\":\"c\"}}", "invocation_failed"},
        {"\"error\":\"text\"}", "invocation_failed"},
        {"\"error\":{\"code\":\"c\",\"message\":\"m\",\"stacktrace\":5}}", "invocation_failed"},
        {"\"error\":{\"code\":\"c\",\"message\":\"m\",\"stacktrace\":null}}", "\"c\""},
        {"\"result\":\"\\ud800\"}", "not acceptable JSON"},
        {"\"result\":NaN}", "not acceptable JSON"},
        {"\"result\":1,\"result\":2}", "not acceptable JSON"},
    };
    char id[UUID_TEXT_BYTES + 1], text[512];
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        invoke("f", 70 + i);
        invoked_id(id);
        (void)snprintf(text, sizeof text,
                       "{\"type\":\"invocationresult\",\"invocation_id\":\"%s\","
                       "\"function_id\":\"f\",%s",
                       id, cases[i].rest);
        say(text);
        (void)expect(WIRE_RESULT);
        cr_assert_eq(message.id, 70 + i);
        cr_assert_null(message.fields[0].span.data);
        (void)snprintf(text, sizeof text, "%.*s", (int)message.fields[1].span.bytes,
                       message.fields[1].span.data);
        cr_assert_not_null(strstr(text, cases[i].error), "%s: %s", cases[i].rest, text);
    }
    say("{\"type\":\"invocationresult\",\"invocation_id\":\"00000000-0000-4000-8000-000000000000\","
        "\"function_id\":\"f\",\"result\":NaN}");
    expect_nothing();
}

/* covers: 2.9#9 */
Test(worker_calls, a_result_beyond_a_frame_is_an_error, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    char id[UUID_TEXT_BYTES + 1];
    size_t large = 35 * 1024 * 1024;
    char *text = malloc(large + 256);
    invoke("f", 70);
    invoked_id(id);
    char *at = text + sprintf(text,
                              "{\"type\":\"invocationresult\",\"invocation_id\":\"%s\","
                              "\"function_id\":\"f\",\"result\":\"",
                              id);
    memset(at, 'x', large);
    strcpy(at + large, "\"}");
    say(text);
    free(text);
    (void)expect(WIRE_RESULT);
    EXPECT_FIELD(1, "{\"code\":\"invocation_error\",\"message\":"
                    "\"the result is larger than 34 MiB\"}");
}

/* covers: 2.9#10 */
Test(worker_calls, a_call_for_a_worker_that_has_gone_is_an_error, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    const struct wire_message invocation = {
        .type = WIRE_INVOKE,
        .id = 9,
        .fields = {WIRE_NUMBER(77), WIRE_SPAN(SPAN_LITERAL("f")), WIRE_SPAN(SPAN_LITERAL("{}"))}};
    sessions_take_message(&harness.sessions, &invocation);
    (void)expect(WIRE_RESULT);
    cr_assert_eq(message.id, 9);
    EXPECT_FIELD(1, "{\"code\":\"channel_send_failed\",\"message\":"
                    "\"the worker has disconnected\"}");
}

/* An error whose text cannot be printed is told by another one. covers: 2.9#3 */
Test(worker_calls, an_error_too_long_to_print, .init = start, .fini = stop, .timeout = HANG_SECONDS)
{
    static char large[2 * 1024 * 1024];
    memset(large, 'x', sizeof large - 1);
    say("{\"type\":\"invokefunction\",\"invocation_id\":\"s\",\"function_id\":\"stream::set\","
        "\"data\":{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"data\":1}}");
    (void)expect(WIRE_STREAM);
    const struct wire_field answer[4] = {WIRE_SPAN(SPAN_LITERAL("STREAM_SET_ERROR")),
                                         WIRE_SPAN(span_text(large))};
    link_answer(&harness.link, message.id, WIRE_STREAM_RESULT, answer);
    cr_assert_not_null(strstr(told(), "\"error\":{\"code\":\"serialization_error\""));
}

/* covers: 2.9#7 */
Test(worker_calls, functions_called_by_http_are_refused, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say("{\"type\":\"registerfunction\",\"id\":\"web\",\"invocation\":{\"url\":\"http://x\"}}");
    (void)expect(WIRE_FUNCTION_REGISTER);
    EXPECT_FIELD(2, "web");
    invoke("web", 5);
    cr_assert_str_eq(told(), "", "the worker is not asked");
    (void)expect(WIRE_RESULT);
    cr_assert_eq(message.id, 5);
    char text[512];
    (void)snprintf(text, sizeof text, "%.*s", (int)message.fields[1].span.bytes,
                   message.fields[1].span.data);
    cr_assert_not_null(strstr(text, "{\"code\":\"function_not_invokable\""), "%s", text);
    say("{\"type\":\"registerfunction\",\"id\":\"web\",\"invocation\":null}");
    (void)expect(WIRE_FUNCTION_REGISTER);
    invoke("web", 6);
    cr_assert_not_null(strstr(told(), "invokefunction"), "registered anew, it is called");
    say("{\"type\":\"registerfunction\",\"id\":\"web\",\"invocation\":\"http://x\"}");
    expect_nothing();
    cr_assert_eq(counter(COUNTER_WORKER_MESSAGES_IGNORED), 1);
}

/* covers: 2.15#13 */
Test(worker_calls, log_lines_are_cleaned_counted_and_limited, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const char call[] =
        "{\"type\":\"invokefunction\",\"invocation_id\":\"l\",\"function_id\":\"engine::log::%s\","
        "\"data\":%s%s}";
    char text[512];
    (void)snprintf(text, sizeof text, call, "warn", "{\"message\":\"hello\",\"data\":{}}", "");
    say(text);
    cr_assert_str_eq(told(), "{\"type\":\"invocationresult\",\"invocation_id\":\"l\","
                             "\"function_id\":\"engine::log::warn\"}");
    cr_assert_eq(counter(COUNTER_LOG_LINES), 1);
    static const char *const bad[] = {"{}", "{\"message\":5}", "\"text\"", "null"};
    for (unsigned i = 0; i < 4; i++) {
        (void)snprintf(text, sizeof text, call, "info", bad[i], "");
        say(text);
        cr_assert_not_null(strstr(told(), "deserialization_error"), "%s", bad[i]);
    }
    expect_nothing();
    (void)snprintf(text, sizeof text, call, "info", "{\"message\":\"x\"}",
                   ",\"namespace\":\"blue\"");
    say(text);
    (void)expect(WIRE_CALL);
    (void)snprintf(text, sizeof text, call, "fatal", "{\"message\":\"x\"}", "");
    say(text);
    (void)expect(WIRE_CALL);
    struct worker_log log = {0};
    unsigned printed = 0; /* until one is not, which a new second may put off */
    while (worker_log_message(&log, "debug", SPAN_LITERAL("w"), SPAN_LITERAL("m")))
        cr_assert_lt(++printed, 100 * WORKER_LOG_LINES_MAX);
    cr_assert_geq(printed, WORKER_LOG_LINES_MAX);
    cr_assert_gt(log.left_out, 0);
    worker_log_tick(&log, uv_hrtime() / 1000000 + 2000);
    cr_assert_eq(log.left_out, 0);
}

Test(worker_calls, log_text_cannot_pretend)
{
    char out[6 * 64 + 4];
    worker_log_clean(out, SPAN_LITERAL("a\nb\tc\"d\\e\x01\x7f"), 64);
    cr_assert_str_eq(out, "a\\nb\\tc\\\"d\\\\e\\u0001\\u007f");
    worker_log_clean(out, SPAN_LITERAL("\xE2\x80\xAE \xE2\x81\xA6 \xE2\x80\xA8 \xC2\x85 \xC3\xA9"),
                     64);
    cr_assert_str_eq(out, "\\u202e \\u2066 \\u2028 \\u0085 \xC3\xA9");
    worker_log_clean(out, SPAN_LITERAL("ab\xC3\xA9"), 3);
    cr_assert_str_eq(out, "ab...", "a character is not cut");
    worker_log_clean(out, SPAN_LITERAL("abc"), 3);
    cr_assert_str_eq(out, "abc");
    char large[64];
    memset(large, 1, sizeof large);
    worker_log_clean(out, span_of(large, sizeof large), 63);
    cr_assert_eq(strlen(out), 63 * 6 + 3, "the longest there is fits");
}

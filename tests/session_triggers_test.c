/* Triggers and trigger types of a worker's session: JSON messages in, frames for the broker, running
 * triggers and JSON messages out. */
#include "tests/worker_world.h"

#define STREAM_TRIGGER(id, config)                                                                 \
    "{\"type\":\"registertrigger\",\"id\":\"" id "\",\"trigger_type\":\"stream\","                 \
    "\"function_id\":\"app::f\",\"config\":" config ",\"message_type\":\"registertrigger\"}"

/* covers: 2.3/1#7 2.11#1 */
Test(session_triggers, a_stream_trigger_runs_here_and_is_told_to_the_broker, .init = start,
     .fini = stop, .timeout = HANG_SECONDS)
{
    say("{\"type\":\"registertrigger\",\"id\":\"t\\u0031\",\"trigger_type\":\"stream\","
        "\"function_id\":\"app::f\",\"config\":{\"stream_name\":\"ch\\u0061t\",\"group_id\":\"g\","
        "\"condition_function_id\":\"c\",\"more\":1},\"metadata\":{\"m\":1},"
        "\"message_type\":\"registertrigger\"}");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(1, "t1");
    EXPECT_FIELD(2, "stream");
    EXPECT_FIELD(3, "app::f");
    EXPECT_FIELD(4, "{\"stream_name\":\"ch\\u0061t\",\"group_id\":\"g\","
                    "\"condition_function_id\":\"c\",\"more\":1}");
    EXPECT_FIELD(5, "{\"m\":1}");
    EXPECT_NIL(6);
    EXPECT_NIL(7);
    cr_assert_eq(harness.triggers.running, 1);
    cr_assert_str_eq(harness.triggers.last, "/app::f chat/g/ c|{\"m\":1}");
    cr_assert_str_eq(told(), "", "success is silent");
    say("{\"type\":\"unregistertrigger\",\"id\":\"t1\",\"trigger_type\":\"any\"}");
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    EXPECT_FIELD(1, "t1");
    cr_assert_eq(harness.triggers.running, 0);
    say("{\"type\":\"unregistertrigger\",\"id\":\"t1\"}");
    expect_nothing();
}

/* covers: 2.3/1#8 2.3/2#4 2.11#3 2.11#5 2.9#12 2.9#14 */
Test(session_triggers, what_is_wrong_is_said_and_nothing_is_registered, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const struct {
        const char *text, *code, *sentence;
    } cases[] = {
        {STREAM_TRIGGER("t", "null"), "trigger_registration_failed", "stream_name is required"},
        {STREAM_TRIGGER("t", "{}"), "trigger_registration_failed", "stream_name is required"},
        {STREAM_TRIGGER("t", "{\"stream_name\":5}"), "trigger_registration_failed",
         "stream_name must be a string"},
        {STREAM_TRIGGER("t", "{\"stream_name\":\"s\",\"item_id\":[]}"),
         "trigger_registration_failed", "item_id must be a string"},
        {STREAM_TRIGGER("t", "[1]"), "trigger_registration_failed", "config must be an object"},
        {STREAM_TRIGGER("", "{\"stream_name\":\"s\"}"), "trigger_registration_failed",
         "1 to 4096 bytes"},
        {"{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"stream\","
         "\"function_id\":\"app::f\"}",
         "trigger_registration_failed", "stream_name is required"},
        {"{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"stream:join\","
         "\"function_id\":\"app::f\",\"config\":{\"condition_function_id\":1}}",
         "trigger_registration_failed", "condition_function_id must be a string"},
        {"{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\","
         "\"function_id\":\"app::f\",\"namespace\":\" \"}",
         "INVALID_NAMESPACE", "the namespace is blank"},
        {"{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\","
         "\"function_id\":\"app::f\",\"trigger_namespace\":\"\"}",
         "INVALID_NAMESPACE", "trigger_namespace is blank"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        say(cases[i].text);
        const char *answer = told();
        cr_assert_not_null(strstr(answer, "{\"type\":\"triggerregistrationresult\",\"id\":\""),
                           "%s: %s", cases[i].text, answer);
        cr_assert_not_null(strstr(answer, "\"function_id\":\"app::f\",\"error\":{\"code\":\""));
        cr_assert_not_null(strstr(answer, cases[i].code), "%s: %s", cases[i].text, answer);
        cr_assert_not_null(strstr(answer, cases[i].sentence), "%s: %s", cases[i].text, answer);
    }
    expect_nothing();
    cr_assert_eq(harness.triggers.added, 0);
    cr_assert_eq(counter(COUNTER_REGISTRATIONS_REFUSED), sizeof cases / sizeof cases[0]);
    cr_assert_eq(counter(COUNTER_WORKER_MESSAGES_IGNORED), 0);
}

/* Missing and ill-typed fields: dropped, counted, not answered. */
Test(session_triggers, undecodable_registrations_are_counted, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    static const char *const texts[] = {
        "{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\"}",
        "{\"type\":\"registertrigger\",\"id\":5,\"trigger_type\":\"x\",\"function_id\":\"f\"}",
        "{\"type\":\"registertrigger\",\"id\":\"t\",\"function_id\":\"f\",\"config\":null}",
        "{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\",\"function_id\":\"f\","
        "\"namespace\":5}",
        "{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\",\"function_id\":\"f\","
        "\"config\":1,\"config\":2}",
        "{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\",\"function_id\":\"f\","
        "\"config\":\"\\ud800\"}",
        "{\"type\":\"unregistertrigger\"}",
        "{\"type\":\"registertriggertype\",\"id\":\"x\"}",
        "{\"type\":\"registertriggertype\",\"description\":\"x\"}",
        "{\"type\":\"registertriggertype\",\"id\":\"x\",\"description\":\"x\",\"namespace\":\" \"}",
        "{\"type\":\"unregistertriggertype\",\"description\":\"x\"}",
        "{\"type\":\"triggerregistrationresult\",\"id\":\"x\",\"trigger_type\":\"x\"}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        say(texts[i]);
        cr_assert_eq(counter(COUNTER_WORKER_MESSAGES_IGNORED), i + 1, "%s", texts[i]);
    }
    cr_assert_str_eq(told(), "");
    expect_nothing();
}

/* Once more with the same id: one trigger, the new one; a registration that is refused leaves the
 * old one. */
Test(session_triggers, registering_again_replaces, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say(STREAM_TRIGGER("t", "{\"stream_name\":\"a\"}"));
    (void)expect(WIRE_TRIGGER_REGISTER);
    say(STREAM_TRIGGER("t", "{\"stream_name\":\"b\"}"));
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(4, "{\"stream_name\":\"b\"}");
    cr_assert_eq(harness.triggers.running, 1);
    cr_assert_eq(harness.triggers.added, 2);
    say(STREAM_TRIGGER("t", "null"));
    cr_assert_not_null(strstr(told(), "stream_name is required"));
    harness.triggers.is_full = true;
    say(STREAM_TRIGGER("t", "{\"stream_name\":\"c\"}"));
    cr_assert_not_null(strstr(told(), "out of memory"));
    expect_nothing();
    cr_assert_eq(harness.triggers.running, 1);
    harness.triggers.is_full = false;
    say("{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\",\"function_id\":\"f\"}");
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(4, "null");
    cr_assert_eq(harness.triggers.running, 0, "another type runs elsewhere");
}

/* Only the owner takes a trigger away; ids are its own. */
Test(session_triggers, sessions_do_not_meet, .init = start, .fini = stop, .timeout = HANG_SECONDS)
{
    struct ws_connection other_connection;
    struct worker *other = harness_connect(&harness, &other_connection);
    (void)expect(WIRE_SESSION_OPEN);
    say(STREAM_TRIGGER("t", "{\"stream_name\":\"a\"}"));
    (void)expect(WIRE_TRIGGER_REGISTER);
    worker_message(other, SPAN_LITERAL("{\"type\":\"unregistertrigger\",\"id\":\"t\"}"), false);
    expect_nothing();
    worker_message(other, span_text(STREAM_TRIGGER("t", "{\"stream_name\":\"a\"}")), false);
    (void)expect(WIRE_TRIGGER_REGISTER);
    cr_assert_eq(harness.triggers.running, 2);
    harness_disconnect(other, &other_connection);
    (void)expect(WIRE_SESSION_CLOSED);
    cr_assert_eq(harness.triggers.running, 1);
}

Test(session_triggers, triggers_are_bounded, .init = start, .fini = stop, .timeout = HANG_SECONDS)
{
    char text[256];
    for (unsigned i = 0; i <= SESSION_TRIGGERS_MAX; i++) {
        (void)snprintf(text, sizeof text,
                       "{\"type\":\"registertrigger\",\"id\":\"%u\",\"trigger_type\":\"x\","
                       "\"function_id\":\"f\"}",
                       i);
        say(text);
    }
    cr_assert_not_null(strstr(told(), "10000 triggers"));
    for (unsigned i = 0; i < SESSION_TRIGGERS_MAX; i++)
        (void)expect(WIRE_TRIGGER_REGISTER);
    expect_nothing();
    say("{\"type\":\"registertrigger\",\"id\":\"7\",\"trigger_type\":\"y\",\"function_id\":\"f\"}");
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    (void)expect(WIRE_TRIGGER_REGISTER);
    for (unsigned i = 0; i < SESSION_TRIGGERS_MAX; i += 3) {
        (void)snprintf(text, sizeof text, "{\"type\":\"unregistertrigger\",\"id\":\"%u\"}", i);
        say(text);
        (void)expect(WIRE_TRIGGER_UNREGISTER);
    }
    cr_assert_str_eq(told(), "");
}

/* Functions and triggers share one bound in bytes, and what goes gives its bytes back. */
Test(session_triggers, bytes_are_bounded_together_with_functions, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    size_t large = 9 * 1024 * 1024;
    char *text = malloc(large + 256);
    char *at = text + sprintf(text, "{\"type\":\"registerfunction\",\"id\":\"f\",\"metadata\":\"");
    memset(at, 'x', large);
    strcpy(at + large, "\"}");
    say(text);
    (void)expect(WIRE_FUNCTION_REGISTER);
    at = text + sprintf(text, "{\"type\":\"registertrigger\",\"id\":\"t\",\"trigger_type\":\"x\","
                              "\"function_id\":\"f\",\"metadata\":\"");
    memset(at, 'x', large);
    strcpy(at + large, "\"}");
    say(text);
    cr_assert_not_null(strstr(told(), "16 MiB"));
    say("{\"type\":\"unregisterfunction\",\"id\":\"f\"}");
    (void)expect(WIRE_FUNCTION_UNREGISTER);
    say(text);
    (void)expect(WIRE_TRIGGER_REGISTER);
    say(text);
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    (void)expect(WIRE_TRIGGER_REGISTER);
    free(text);
}

/* covers: 2.3/1#2 2.3/1#3 */
Test(session_triggers, trigger_types_are_kept_and_told, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say("{\"type\":\"registertriggertype\",\"id\":\"cron\",\"description\":\"at \\u0061 time\","
        "\"trigger_request_format\":{\"type\":\"object\"},\"call_request_format\":null}");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    EXPECT_NIL(1);
    EXPECT_FIELD(2, "cron");
    EXPECT_FIELD(3, "at a time");
    EXPECT_FIELD(4, "{\"type\":\"object\"}");
    EXPECT_NIL(5);
    say("{\"type\":\"registertriggertype\",\"id\":\"cron\",\"description\":\"\",\"namespace\":"
        "\"blue\"}");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    EXPECT_FIELD(1, "blue");
    say("{\"type\":\"unregistertriggertype\",\"id\":\"cron\",\"description\":\"at a time\"}");
    (void)expect(WIRE_TRIGGER_TYPE_UNREGISTER);
    EXPECT_NIL(1);
    (void)expect(WIRE_TRIGGER_TYPE_UNREGISTER);
    EXPECT_FIELD(1, "blue");
    say("{\"type\":\"unregistertriggertype\",\"id\":\"cron\"}");
    expect_nothing();
    static const char *const own[] = {"stream", "stream:join", "stream:leave",
                                      "engine::functions-available", "engine::workers-available"};
    for (unsigned i = 0; i < 5; i++) {
        char text[160];
        (void)snprintf(text, sizeof text,
                       "{\"type\":\"registertriggertype\",\"id\":\"%s\",\"description\":\"\"}",
                       own[i]);
        say(text);
        expect_nothing();
    }
    cr_assert_eq(counter(COUNTER_REGISTRATIONS_REFUSED), 5, "weir's own types stay");
    cr_assert_str_eq(told(), "");
}

Test(session_triggers, trigger_types_are_bounded, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    char text[160];
    for (unsigned i = 0; i <= SESSION_TRIGGER_TYPES_MAX; i++) {
        (void)snprintf(text, sizeof text,
                       "{\"type\":\"registertriggertype\",\"id\":\"%u\",\"description\":\"\"}", i);
        say(text);
    }
    cr_assert_eq(counter(COUNTER_REGISTRATIONS_REFUSED), 1);
    for (unsigned i = 0; i < SESSION_TRIGGER_TYPES_MAX; i++)
        (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    expect_nothing();
    say("{\"type\":\"registertriggertype\",\"id\":\"5\",\"description\":\"new\"}");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
}

/* covers: 2.3/1#9 2.3/2#5 */
Test(session_triggers, a_provider_is_told_of_binds_and_answers, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    uint64_t id = harness.sessions.slots[0].session->id;
    say("{\"type\":\"registertriggertype\",\"id\":\"cron\",\"description\":\"\"}");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    struct wire_message bind = {.type = WIRE_TRIGGER_BIND,
                                .fields = {WIRE_NUMBER(id), WIRE_SPAN(SPAN_LITERAL("t\"1")),
                                           WIRE_SPAN(SPAN_LITERAL("cron")),
                                           WIRE_SPAN(SPAN_LITERAL("app::f")), WIRE_NIL, WIRE_NIL,
                                           WIRE_SPAN(SPAN_LITERAL("default")), WIRE_NIL}};
    sessions_take_message(&harness.sessions, &bind);
    cr_assert_str_eq(told(), "{\"type\":\"registertrigger\",\"id\":\"t\\\"1\",\"trigger_type\":"
                             "\"cron\",\"function_id\":\"app::f\",\"config\":null}");
    bind.fields[4] = WIRE_SPAN(SPAN_LITERAL("{\"at\":5}"));
    bind.fields[5] = WIRE_SPAN(SPAN_LITERAL("[1]"));
    bind.fields[6] = WIRE_SPAN(SPAN_LITERAL("blue"));
    bind.fields[7] = WIRE_SPAN(SPAN_LITERAL("green"));
    sessions_take_message(&harness.sessions, &bind);
    cr_assert_str_eq(told(), "{\"type\":\"registertrigger\",\"id\":\"t\\\"1\",\"trigger_type\":"
                             "\"cron\",\"function_id\":\"app::f\",\"config\":{\"at\":5},"
                             "\"metadata\":[1],\"namespace\":\"blue\",\"trigger_namespace\":"
                             "\"green\"}");
    say("{\"type\":\"triggerregistrationresult\",\"id\":\"t\\\"1\",\"trigger_type\":\"cron\","
        "\"function_id\":\"app::f\",\"message_type\":\"triggerregistrationresult\"}");
    (void)expect(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(1, "t\"1");
    EXPECT_FIELD(2, "cron");
    EXPECT_FIELD(3, "app::f");
    EXPECT_NIL(4);
    say("{\"type\":\"triggerregistrationresult\",\"id\":\"t\",\"trigger_type\":\"cron\","
        "\"function_id\":\"f\",\"error\":{\"code\":\"trigger_type_not_found\",\"message\":\"no\"}"
        "}");
    (void)expect(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(4, "{\"code\":\"trigger_type_not_found\",\"message\":\"no\"}");
    say("{\"type\":\"triggerregistrationresult\",\"id\":\"t\",\"trigger_type\":\"cron\","
        "\"function_id\":\"f\",\"error\":\"no\"}");
    (void)expect(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(4, "{\"code\":\"trigger_registration_failed\",\"message\":"
                    "\"the worker answered with an error that has no code or message\"}");
    say("{\"type\":\"triggerregistrationresult\",\"id\":\"t\",\"trigger_type\":\"other\","
        "\"function_id\":\"f\"}");
    expect_nothing();
    cr_assert_eq(counter(COUNTER_RESULTS_IGNORED), 1, "it does not provide that type");
    const struct wire_message unbind = {
        .type = WIRE_TRIGGER_UNBIND,
        .fields = {WIRE_NUMBER(id), WIRE_SPAN(SPAN_LITERAL("t")), WIRE_SPAN(SPAN_LITERAL("cron"))}};
    sessions_take_message(&harness.sessions, &unbind);
    cr_assert_str_eq(told(),
                     "{\"type\":\"unregistertrigger\",\"id\":\"t\",\"trigger_type\":\"cron\"}");
}

/* A reason too long for a frame is not worth the broker's connection. */
Test(session_triggers, a_providers_reason_is_bounded, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    size_t large = 40 * 1024 * 1024;
    char *text = malloc(large + 256);
    say("{\"type\":\"registertriggertype\",\"id\":\"cron\",\"description\":\"\"}");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    char *at = text + sprintf(text, "{\"type\":\"triggerregistrationresult\",\"id\":\"t\","
                                    "\"trigger_type\":\"cron\",\"function_id\":\"f\",\"error\":{"
                                    "\"code\":\"c\",\"message\":\"");
    memset(at, 'x', large);
    strcpy(at + large, "\"}}");
    say(text);
    (void)expect(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(4, "{\"code\":\"trigger_registration_failed\",\"message\":"
                    "\"the provider's reason is longer than 64 KiB\"}");
    free(text);
}

Test(session_triggers, a_failed_bind_is_told_to_the_owner, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    uint64_t id = harness.sessions.slots[0].session->id;
    struct wire_message result = {
        .type = WIRE_TRIGGER_RESULT,
        .fields = {WIRE_NUMBER(id), WIRE_SPAN(SPAN_LITERAL("t")), WIRE_SPAN(SPAN_LITERAL("cron")),
                   WIRE_SPAN(SPAN_LITERAL("f")),
                   WIRE_SPAN(SPAN_LITERAL("{\"code\":\"c\",\"message\":\"m\"}"))}};
    sessions_take_message(&harness.sessions, &result);
    cr_assert_str_eq(
        told(), "{\"type\":\"triggerregistrationresult\",\"id\":\"t\",\"trigger_type\":"
                "\"cron\",\"function_id\":\"f\",\"error\":{\"code\":\"c\",\"message\":\"m\"}}");
    result.fields[4] = WIRE_NIL;
    sessions_take_message(&harness.sessions, &result);
    cr_assert_str_eq(told(), "");
}

/* For a stream trigger there is nobody to refuse but the broker, when it has no room. */
Test(session_triggers, a_stream_trigger_the_broker_refuses_stops, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say(STREAM_TRIGGER("t", "{\"stream_name\":\"s\"}"));
    (void)expect(WIRE_TRIGGER_REGISTER);
    cr_assert_eq(harness.triggers.running, 1);
    const struct wire_message result = {
        .type = WIRE_TRIGGER_RESULT,
        .fields = {WIRE_NUMBER(harness.sessions.slots[0].session->id), WIRE_SPAN(SPAN_LITERAL("t")),
                   WIRE_SPAN(SPAN_LITERAL("stream")), WIRE_SPAN(SPAN_LITERAL("app::f")),
                   WIRE_SPAN(SPAN_LITERAL("{\"code\":\"c\",\"message\":\"m\"}"))}};
    sessions_take_message(&harness.sessions, &result);
    cr_assert_not_null(strstr(told(), "triggerregistrationresult"));
    cr_assert_eq(harness.triggers.running, 0);
    sessions_announce(&harness.sessions);
    (void)expect(WIRE_SESSION_OPEN);
    expect_nothing();
}

/* After a broker's restart, in an order in which everything finds what it needs. */
Test(session_triggers, all_is_announced_again, .init = start, .fini = stop, .timeout = HANG_SECONDS)
{
    say(STREAM_TRIGGER("a", "{\"stream_name\":\"s\"}"));
    say("{\"type\":\"registerfunction\",\"id\":\"app::f\"}");
    say("{\"type\":\"registertrigger\",\"id\":\"b\",\"trigger_type\":\"cron\",\"function_id\":"
        "\"f\"}");
    say("{\"type\":\"registertriggertype\",\"id\":\"cron\",\"description\":\"d\"}");
    while (link_next(&harness.link, &message)) {
    }
    sessions_announce(&harness.sessions);
    (void)expect(WIRE_SESSION_OPEN);
    (void)expect(WIRE_FUNCTION_REGISTER);
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    EXPECT_FIELD(3, "d");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(1, "a");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(1, "b");
    expect_nothing();
    cr_assert_eq(harness.triggers.added, 1, "what runs here goes on");
}

/* What has no namespace of its own moves; what is addressed stays. */
Test(session_triggers, triggers_move_with_the_namespace, .init = start, .fini = stop,
     .timeout = HANG_SECONDS)
{
    say("{\"type\":\"registertriggertype\",\"id\":\"mine\",\"description\":\"\"}");
    say("{\"type\":\"registertriggertype\",\"id\":\"fixed\",\"description\":\"\",\"namespace\":"
        "\"green\"}");
    say(STREAM_TRIGGER("a", "{\"stream_name\":\"s\"}"));
    say("{\"type\":\"registertrigger\",\"id\":\"b\",\"trigger_type\":\"stream\",\"function_id\":"
        "\"f\",\"config\":{\"stream_name\":\"s\"},\"namespace\":\"green\"}");
    say("{\"type\":\"registertrigger\",\"id\":\"c\",\"trigger_type\":\"cron\",\"function_id\":"
        "\"f\","
        "\"namespace\":\"green\",\"trigger_namespace\":\"red\"}");
    say("{\"type\":\"registertrigger\",\"id\":\"d\",\"trigger_type\":\"cron\",\"function_id\":"
        "\"f\","
        "\"namespace\":\"default\"}");
    while (link_next(&harness.link, &message)) {
    }
    cr_assert_eq(harness.triggers.added, 2);
    say("{\"type\":\"invokefunction\",\"function_id\":\"engine::workers::register\",\"data\":"
        "{\"namespace\":\"blue\"}}");
    (void)expect(WIRE_SESSION_INFO);
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    EXPECT_FIELD(1, "a");
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    EXPECT_FIELD(1, "d");
    (void)expect(WIRE_TRIGGER_TYPE_UNREGISTER);
    EXPECT_NIL(1);
    EXPECT_FIELD(2, "mine");
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    EXPECT_FIELD(1, "blue");
    EXPECT_FIELD(2, "mine");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(1, "a");
    EXPECT_FIELD(6, "blue");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(1, "d");
    EXPECT_FIELD(6, "default");
    expect_nothing();
    cr_assert_eq(harness.triggers.running, 2);
    cr_assert_eq(harness.triggers.added, 3);
    cr_assert_str_eq(harness.triggers.last, "blue/app::f s// |");
    say("{\"type\":\"registertrigger\",\"id\":\"e\",\"trigger_type\":\"cron\",\"function_id\":"
        "\"f\"}");
    (void)expect(WIRE_TRIGGER_REGISTER);
    EXPECT_FIELD(6, "blue");
    EXPECT_NIL(7);
}

/* covers: 2.3/2#6 */
Test(session_triggers, a_refused_session_is_told_and_closed, .init = start, .timeout = HANG_SECONDS)
{
    uint64_t id = harness.sessions.slots[0].session->id;
    say(STREAM_TRIGGER("a", "{\"stream_name\":\"s\"}"));
    (void)expect(WIRE_TRIGGER_REGISTER);
    const struct wire_message rejected = {
        .type = WIRE_SESSION_REJECTED,
        .fields = {WIRE_NUMBER(id), WIRE_SPAN(SPAN_LITERAL("WORKER_NAMESPACE_CONFLICT")), WIRE_NIL,
                   WIRE_SPAN(SPAN_LITERAL("box:1")), WIRE_SPAN(SPAN_LITERAL("owner"))}};
    sessions_take_message(&harness.sessions, &rejected);
    cr_assert_str_eq(told(), "{\"type\":\"registrationrejected\",\"code\":"
                             "\"WORKER_NAMESPACE_CONFLICT\",\"namespace\":\"default\","
                             "\"worker_name\":\"box:1\",\"owner_worker_id\":\"owner\"}");
    cr_assert_eq(connection.close_code, WS_NORMAL);
    (void)expect(WIRE_SESSION_CLOSED);
    cr_assert_eq(harness.triggers.running, 0);
    say("{\"type\":\"registerfunction\",\"id\":\"f\"}");
    say("{\"type\":\"ping\"}");
    expect_nothing();
    cr_assert_str_eq(told(), "", "nothing more is taken from it");
    stop();
}

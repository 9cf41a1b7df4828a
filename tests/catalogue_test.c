/* The listings of engine::*::list and ::info: every field, filter, order and error
 * (PROTOCOL 2.7, 2.15). */
#include "shm/json.h"
#include "tests/registry_fixture.h"

static void open_default(void)
{
    fixture_open(NULL, NULL);
}

TestSuite(catalogue, .init = open_default, .fini = fixture_close, .timeout = HANG_SECONDS);

/* The answer of one engine::* call; valid until the next one. */
static const struct recorded *answer(const char *function, const char *input)
{
    clear();
    take_texts(a, WIRE_CALL, 7, 0, (struct texts){{NULL, "default", function, input}});
    return only(WIRE_RESULT, a);
}

static const char *ask(const char *function, const char *input)
{
    const struct recorded *message = answer(function, input);
    struct json_value value;
    cr_assert_not_null(message->fields[0].span.data, "%s %s: %s", function, input,
                       recorded_text(message, 1));
    cr_assert_eq(json_scan(message->fields[0].span, 127, &value, NULL), WEIR_OK, "%s",
                 recorded_text(message, 0));
    return recorded_text(message, 0);
}

static void expect(const char *function, const char *input, const char *wanted)
{
    const char *got = ask(function, input);
    cr_assert_str_eq(got, wanted, "%s %s:\n%s\nwanted\n%s", function, input, got, wanted);
}

/* `parts`, one behind the other, "|" between them. */
static void expect_order(const char *function, const char *input, const char *parts)
{
    const char *text = ask(function, input);
    char copy[512];
    snprintf(copy, sizeof copy, "%s", parts);
    const char *at = text;
    for (char *part = strtok(copy, "|"); part; part = strtok(NULL, "|")) {
        at = strstr(at, part);
        cr_assert_not_null(at, "'%s' is missing, or out of order, in %s", part, text);
    }
}

static void expect_none(const char *function, const char *input, const char *part)
{
    const char *text = ask(function, input);
    cr_assert_null(strstr(text, part), "'%s' in %s", part, text);
}

static void expect_error(const char *function, const char *input, const char *code,
                         const char *words)
{
    const struct recorded *message = answer(function, input);
    char head[64];
    snprintf(head, sizeof head, "{\"code\":\"%s\",", code);
    cr_assert_eq(strstr(recorded_text(message, 1), head), recorded_text(message, 1), "%s",
                 recorded_text(message, 1));
    cr_assert(strstr(recorded_text(message, 1), words), "%s", recorded_text(message, 1));
}

/* Two workers: "shop" in default with a pid, and a nameless one in blue. */
static void populate(void)
{
    session(b, 1, "w1");
    describe(b, 1,
             "{\"runtime\":\"node\",\"version\":\"1.2\",\"name\":\" sh\\u0007op\\u202e \","
             "\"description\":\"Sells \\u2028things\",\"os\":\"linux\",\"pid\":4711,"
             "\"isolation\":\"docker\",\"telemetry\":{\"framework\":\"x\"}}");
    routes_set_time(routes, 2000);
    session(b, 2, "w2");
    describe(b, 2, "{\"namespace\":\"blue\",\"isolation\":null}");
    TAKE(b, WIRE_FUNCTION_REGISTER, 1, NULL, "cart::add", "Put INTO\ncart", "{\"in\":1}",
         "{\"out\":2}", "{\"k\":[1]}");
    TAKE(b, WIRE_FUNCTION_REGISTER, 1, NULL, "cart::hidden", NULL, NULL, NULL,
         "{\"internal\":true}");
    TAKE(b, WIRE_FUNCTION_REGISTER, 2, "blue", "mail::send", NULL, NULL, NULL, NULL);
    provide(b, 1, NULL, "cron");
    TAKE(b, WIRE_TRIGGER_TYPE_REGISTER, 2, "blue", "post::box", NULL, NULL, NULL);
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "t1", "cron", "cart::add", "{\"every\":5}", "{\"m\":1}", NULL,
         NULL);
    TAKE(b, WIRE_TRIGGER_REGISTER, 2, "t2", "stream", "mail::send", "{\"stream_name\":\"s\"}", NULL,
         "blue", NULL);
    TAKE(b, WIRE_TRIGGER_REGISTER, 2, "t3", "nobody", "mail::send", "{}", NULL, "blue", NULL);
    clear();
}

/* covers: 2.15#2 */
Test(catalogue, functions_list)
{
    populate();
    TAKE(b, WIRE_FUNCTION_REGISTER, 2, NULL, "engine::queue::enqueue", NULL, NULL, NULL, NULL);
    TAKE(b, WIRE_FUNCTION_REGISTER, 2, "blue", "cart::add", NULL, NULL, NULL, NULL);
    expect("engine::functions::list", "{\"search\":\"into\"}",
           "{\"functions\":[{\"function_id\":\"cart::add\",\"namespace\":\"default\","
           "\"worker_name\":\"shop\",\"description\":\"Put INTOcart\",\"metadata\":{\"k\":[1]}}]}");
    expect_order(
        "engine::functions::list", "{}",
        "\"cart::add\",\"namespace\":\"blue\"|\"cart::add\",\"namespace\":\"default\""
        "|\"engine::queue::enqueue\"|\"mail::send\"|\"stream::delete\"|\"stream::update\"");
    expect_none("engine::functions::list", "null", "engine::functions");
    expect_none("engine::functions::list", "{}", "cart::hidden");
    expect_order("engine::functions::list", "{\"include_internal\":true}",
                 "cart::hidden|engine::functions::info|engine::workers::register");
    expect_none("engine::functions::list", "{\"prefix\":\"mail\"}", "cart");
    expect_none("engine::functions::list", "{\"worker\":\"mail\"}", "cart");
    expect_order("engine::functions::list", "{\"workers\":[\"mail\",\"shop\"]}",
                 "cart::add|mail::send");
    expect_none("engine::functions::list", "{\"workers\":[]}", "function_id");
    expect_error("engine::functions::list", "{\"workers\":[1]}", "deserialization_error",
                 "engine::functions::list: workers is not an array of strings");
    expect_error("engine::functions::list", "[]", "deserialization_error", "not an object");
    expect_error("engine::functions::list", "{\"include_internal\":1}", "deserialization_error",
                 "include_internal");
    expect_order("engine::functions::list", "{\"status\":1,\"prefix\":\"stream::s\"}",
                 "stream::send|stream::set");
}

/* covers: 2.15#3 2.9#16 */
Test(catalogue, functions_info)
{
    populate();
    expect("engine::functions::info", "{\"function_id\":\"cart::add\"}",
           "{\"function_id\":\"cart::add\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"description\":\"Put INTOcart\",\"request_schema\":{\"in\":1},"
           "\"response_schema\":{\"out\":2},\"metadata\":{\"k\":[1]},"
           "\"registered_triggers\":[{\"id\":\"t1\",\"trigger_type\":\"cron\","
           "\"config\":{\"every\":5}}]}");
    expect("engine::functions::info",
           "{\"function_ids\":[\"mail::send\",\"cart::add\"],\"namespace\":\"blue\"}",
           "{\"functions\":[{\"function_id\":\"mail::send\",\"namespace\":\"blue\","
           "\"worker_name\":\"mail\",\"registered_triggers\":[{\"id\":\"t2\","
           "\"trigger_type\":\"stream\",\"config\":{\"stream_name\":\"s\"}}]},"
           "{\"function_id\":\"cart::add\",\"error\":\"not_found\"}]}");
    expect("engine::functions::info", "{\"function_id\":\"stream::get\"}",
           "{\"function_id\":\"stream::get\",\"namespace\":\"default\",\"worker_name\":"
           "\"iii-stream\",\"description\":\"Read an item\",\"registered_triggers\":[]}");
    expect("engine::functions::info", "{\"function_ids\":[]}", "{\"functions\":[]}");
    expect_error("engine::functions::info", "{\"function_id\":\"mail::send\"}", "NOT_FOUND", "");
    expect_error("engine::functions::info", "{}", "INVALID_ARGUMENTS", "exactly one");
    expect_error("engine::functions::info", "{\"function_id\":\"f\",\"function_ids\":[]}",
                 "INVALID_ARGUMENTS", "exactly one");
    expect_error("engine::functions::info", "{\"function_id\":5}", "deserialization_error",
                 "function_id is not a string");
    char many[256] = "{\"function_ids\":[\"f\"";
    for (unsigned count = 1; count < 32; count++)
        strcat(many, ",\"f\"");
    size_t bytes = strlen(many);
    strcat(many, "]}");
    expect_order("engine::functions::info", many, "not_found");
    snprintf(many + bytes, sizeof many - bytes, ",\"f\"]}");
    expect_error("engine::functions::info", many, "INVALID_ARGUMENTS", "32");
}

/* covers: 2.15#4 */
Test(catalogue, workers_list)
{
    populate();
    session(b, 3, "w3");
    describe(b, 3, "{\"pid\":8}");
    TAKE(b, WIRE_FUNCTION_REGISTER, 3, NULL, "cart::add"); /* waits behind the owner */
    take_texts(a, WIRE_CALL, 9, 0, (struct texts){{NULL, NULL, "cart::add", "null"}});
    expect("engine::workers::list", "{\"search\":\"SELLS\"}",
           "{\"workers\":[{\"name\":\"shop\",\"description\":\"Sells things\",\"version\":\"1.2\","
           "\"id\":\"w1\",\"namespace\":\"default\",\"runtime\":\"node\",\"os\":\"linux\","
           "\"status\":\"connected\",\"function_count\":2,\"connected_at_ms\":1000,"
           "\"active_invocations\":1,\"isolation\":\"docker\",\"ip_address\":\"127.0.0.1\"}]}");
    expect("engine::workers::list", "{\"runtime\":\"unknown\"}",
           "{\"workers\":[{\"name\":null,\"description\":null,\"version\":null,\"id\":\"w3\","
           "\"namespace\":\"default\",\"runtime\":\"unknown\",\"os\":null,\"status\":\"connected\","
           "\"function_count\":0,\"connected_at_ms\":2000,\"active_invocations\":0,"
           "\"isolation\":null,\"ip_address\":\"127.0.0.1\"}]}");
    expect_order("engine::workers::list", "{}", "\"w3\"|\"engine\"|\"iii-stream\"|\"shop\"");
    expect_none("engine::workers::list", "{}", "\"w2\""); /* it has no pid */
    expect_order("engine::workers::list", "{\"status\":\"available\"}",
                 "\"engine\"|\"available\"|\"function_count\":15|\"connected_at_ms\":1000|"
                 "\"ip_address\":null|\"iii-stream\"|\"function_count\":8");
    expect_none("engine::workers::list", "{\"status\":\"available\"}", "shop");
    expect_error("engine::workers::list", "{\"runtime\":[]}", "deserialization_error", "runtime");
}

/* covers: 2.15#5 */
Test(catalogue, workers_info)
{
    populate();
    expect("engine::workers::info", "{\"name\":\"shop\"}",
           "{\"worker\":{\"name\":\"shop\",\"description\":\"Sells things\",\"version\":\"1.2\","
           "\"id\":\"w1\",\"namespace\":\"default\",\"runtime\":\"node\",\"os\":\"linux\","
           "\"status\":\"connected\",\"function_count\":2,\"connected_at_ms\":1000,"
           "\"active_invocations\":0,\"isolation\":\"docker\",\"ip_address\":\"127.0.0.1\","
           "\"pid\":4711,\"internal\":false},"
           "\"functions\":[{\"function_id\":\"cart::add\",\"namespace\":\"default\","
           "\"worker_name\":\"shop\",\"description\":\"Put INTOcart\",\"metadata\":{\"k\":[1]}},"
           "{\"function_id\":\"cart::hidden\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"metadata\":{\"internal\":true}}],"
           "\"trigger_types\":[{\"id\":\"cron\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"description\":\"what it is\"}],"
           "\"registered_triggers\":[{\"id\":\"t1\",\"trigger_type\":\"cron\","
           "\"function_id\":\"cart::add\",\"worker_name\":\"shop\",\"config\":{\"every\":5},"
           "\"config_summary\":\"{\\\"every\\\":5}\"}]}");
    expect_order("engine::workers::info", "{\"name\":\"iii-stream\"}",
                 "\"internal\":true|\"functions\":[|\"stream::set\"|\"trigger_types\":[|\"stream\"|"
                 "\"stream:leave\"|\"registered_triggers\":[]");
    expect_none("engine::workers::info", "{\"name\":\"iii-stream\"}", "engine::");
    describe(b, 2, "{\"namespace\":\"blue\",\"name\":\"shop\"}");
    expect_order("engine::workers::info", "{\"name\":\"shop\",\"namespace\":\"blue\"}",
                 "\"w2\"|\"mail::send\"|\"post::box\"|\"t2\"");
    expect_none("engine::workers::info", "{\"name\":\"shop\",\"namespace\":\"blue\"}", "\"t3\"");
    expect_error("engine::workers::info", "{\"name\":\"shop\",\"namespace\":\"red\"}", "NOT_FOUND",
                 "");
    expect_error("engine::workers::info", "{\"name\":\"w1\"}", "NOT_FOUND", "");
    expect_error("engine::workers::info", "{}", "deserialization_error", "name");
}

/* Two workers of one name: the one that was there first. */
Test(catalogue, of_two_workers_with_one_name_the_first_is_shown)
{
    for (unsigned number = 1; number < 4; number++) {
        char worker_id[8];
        snprintf(worker_id, sizeof worker_id, "w%u", number);
        routes_set_time(routes, 1000 + number);
        session(b, number, worker_id);
    }
    for (unsigned number = 3; number > 0; number--)
        describe(b, number, "{\"name\":\"twin\"}");
    expect_order("engine::workers::info", "{\"name\":\"twin\"}", "\"w1\"");
    session_end(b, 1);
    expect_order("engine::workers::info", "{\"name\":\"twin\"}", "\"w2\"");
    describe(b, 2, "{\"name\":\"other\"}");
    expect_order("engine::workers::info", "{\"name\":\"twin\"}", "\"w3\"");
}

/* covers: 2.15#6 */
Test(catalogue, registry_list)
{
    populate();
    TAKE(b, WIRE_TRIGGER_TYPE_REGISTER, 2, "blue", "cron", NULL, NULL, NULL);
    expect("engine::triggers::list", "{\"prefix\":\"cr\"}",
           "{\"triggers\":[{\"id\":\"cron\",\"namespace\":\"blue\",\"worker_name\":\"cron\","
           "\"description\":null},"
           "{\"id\":\"cron\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"description\":\"what it is\"}]}");
    expect_order("engine::triggers::list", "{}",
                 "\"cron\"|\"post::box\"|\"worker_name\":\"post\"|\"stream\"|\"stream:join\"|"
                 "\"stream:leave\"");
    expect_none("engine::triggers::list", "{}", "engine::");
    expect_none("engine::triggers::list", "{}", "nobody");
    expect_order("engine::triggers::list", "{\"include_internal\":true}",
                 "engine::functions-available|\"worker_name\":\"engine\"|stream");
    expect_order("engine::triggers::list", "{\"search\":\"WHAT IT\"}", "\"cron\"");
    expect_none("engine::triggers::list", "{\"search\":\"WHAT IT\"}", "post");
    expect_none("engine::triggers::list", "{\"worker\":\"shop\"}", "stream");
    expect_error("engine::triggers::list", "{\"prefix\":1}", "deserialization_error", "prefix");
}

/* covers: 2.15#7 */
Test(catalogue, registry_info)
{
    populate();
    expect("engine::triggers::info", "{\"id\":\"cron\"}",
           "{\"id\":\"cron\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"description\":\"what it is\",\"configuration_schema\":{\"type\":\"object\"},"
           "\"request_schema\":{\"type\":\"string\"},\"instance_count\":1}");
    expect("engine::triggers::info", "{\"id\":\"post::box\",\"namespace\":\"blue\"}",
           "{\"id\":\"post::box\",\"namespace\":\"blue\",\"worker_name\":\"post\","
           "\"description\":null,\"instance_count\":0}");
    expect_order("engine::triggers::info", "{\"id\":\"stream\"}",
                 "\"worker_name\":\"iii-stream\"|\"instance_count\":1}");
    expect_error("engine::triggers::info", "{\"id\":\"post::box\"}", "NOT_FOUND", "");
    expect_error("engine::triggers::info", "{\"id\":\"nobody\"}", "NOT_FOUND", "");
    expect_error("engine::triggers::info", "{\"id\":null}", "deserialization_error", "id");
}

/* covers: 2.15#8 */
Test(catalogue, registered_triggers_list)
{
    populate();
    expect("engine::registered-triggers::list", "{}",
           "{\"registered_triggers\":[{\"id\":\"t1\",\"trigger_type\":\"cron\","
           "\"function_id\":\"cart::add\",\"worker_name\":\"shop\",\"config\":{\"every\":5},"
           "\"config_summary\":\"{\\\"every\\\":5}\"},"
           "{\"id\":\"t2\",\"trigger_type\":\"stream\",\"function_id\":\"mail::send\","
           "\"worker_name\":\"mail\",\"config\":{\"stream_name\":\"s\"},"
           "\"config_summary\":\"{\\\"stream_name\\\":\\\"s\\\"}\"}]}");
    static const char *const filters[] = {
        "{\"trigger_type\":\"stream\"}", "{\"function_id\":\"mail::send\"}",
        "{\"worker\":\"mail\"}", "{\"search\":\"T2\"}", "{\"search\":\"MAIL\"}"};
    for (unsigned index = 0; index < sizeof filters / sizeof filters[0]; index++) {
        expect_order("engine::registered-triggers::list", filters[index], "\"t2\"");
        expect_none("engine::registered-triggers::list", filters[index], "\"t1\"");
    }
    TAKE(b, WIRE_TRIGGER_REGISTER, 2, "t0", "engine::workers-available", "f", NULL, NULL, NULL,
         NULL);
    expect_none("engine::registered-triggers::list", "{}", "\"t0\"");
    expect_order("engine::registered-triggers::list", "{\"include_internal\":true}",
                 "\"t0\"|\"config\":null,\"config_summary\":\"null\"|\"t1\"");
    expect_error("engine::registered-triggers::list", "{\"function_id\":1}",
                 "deserialization_error", "function_id");
}

/* 80 characters, not bytes, and an ellipsis only where something was cut. */
Test(catalogue, a_long_config_is_summed_up)
{
    char config[400] = "\"", summary[400], wanted[400];
    session(b, 1, "w");
    provide(b, 1, NULL, "cron");
    for (unsigned index = 0; index < 78; index++)
        strcat(config, "é");
    strcat(config, "\"");
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "t", "cron", "f", config, NULL, NULL, NULL);
    const char *text = ask("engine::registered-triggers::list", "{}");
    cr_assert_null(strstr(text, "…"), "%s", text);
    snprintf(summary, sizeof summary, "%.*sé\"", (int)strlen(config) - 1, config);
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "t", "cron", "f", summary, NULL, NULL, NULL);
    snprintf(wanted, sizeof wanted, "\"config_summary\":\"\\%.*sé…\"}", (int)strlen(config) - 1,
             config);
    expect_order("engine::registered-triggers::list", "{}", wanted);
}

/* covers: 2.15#9 */
Test(catalogue, registered_triggers_info)
{
    populate();
    expect("engine::registered-triggers::info", "{\"id\":\"t1\"}",
           "{\"id\":\"t1\",\"trigger_type\":\"cron\",\"function_id\":\"cart::add\","
           "\"worker_name\":\"shop\",\"config\":{\"every\":5},\"metadata\":{\"m\":1},"
           "\"trigger\":{\"id\":\"cron\",\"namespace\":\"default\",\"worker_name\":\"shop\","
           "\"description\":\"what it is\",\"configuration_schema\":{\"type\":\"object\"},"
           "\"request_schema\":{\"type\":\"string\"},\"instance_count\":1},"
           "\"function\":{\"function_id\":\"cart::add\",\"namespace\":\"default\","
           "\"worker_name\":\"shop\",\"description\":\"Put INTOcart\","
           "\"request_schema\":{\"in\":1},\"response_schema\":{\"out\":2},"
           "\"metadata\":{\"k\":[1]},\"registered_triggers\":[{\"id\":\"t1\","
           "\"trigger_type\":\"cron\",\"config\":{\"every\":5}}]}}");
    TAKE(b, WIRE_FUNCTION_UNREGISTER, 2, "blue", "mail::send");
    expect_order("engine::registered-triggers::info", "{\"id\":\"t2\"}",
                 "\"trigger\":{\"id\":\"stream\"|\"function\":null}");
    expect_error("engine::registered-triggers::info", "{\"id\":\"t3\"}", "NOT_FOUND", "");
    expect_error("engine::registered-triggers::info", "{\"id\":\"t9\"}", "NOT_FOUND", "");
    expect_error("engine::registered-triggers::info", "{}", "deserialization_error", "id");
    expect_error("engine::registered-triggers::info", "{\"id\":1}", "deserialization_error", "id");
}

/* covers: 2.15#1 */
Test(catalogue, workers_register_keeps_what_a_worker_says)
{
    session(a, 0, "w");
    expect("engine::workers::register", "{\"name\":\"x\",\"pid\":-5,\"version\":7}",
           "{\"success\":true}");
    expect_none("engine::workers::list", "{}", "\"x\"");
    expect("engine::workers::register", "{\"name\":\"\\u0001 \",\"pid\":5}", "{\"success\":true}");
    expect_order("engine::workers::list", "{}", "\"name\":null|\"version\":null|\"id\":\"w\"");
    expect_error("engine::workers::info", "{\"name\":\"x\"}", "NOT_FOUND", "");
    expect("engine::workers::register", "[]", "{\"success\":true}");
    expect_order("engine::workers::list", "{}", "\"id\":\"w\"");
}

/* Those of the engine that weir does not have are not pretended. */
Test(catalogue, other_engine_functions_are_not_found)
{
    static const char *const others[] = {"engine::baggage::get", "engine::register_trigger",
                                         "engine::functions", "engine::queue::enqueue"};
    for (unsigned index = 0; index < 4; index++)
        expect_error(others[index], "{}", "function_not_found", others[index]);
    clear();
    take_texts(a, WIRE_CALL, 7, 0, (struct texts){{NULL, "blue", "engine::functions::list", "{}"}});
    cr_assert(strstr(recorded_text(only(WIRE_RESULT, a), 1), "function_not_found"));
}

/* What a worker registers as JSON and is none is left out: the answer stays JSON. */
Test(catalogue, formats_that_are_not_json_are_left_out)
{
    session(b, 1, "w");
    TAKE(b, WIRE_FUNCTION_REGISTER, 1, NULL, "f", "\xff", "{", "]", "nul");
    expect("engine::functions::info", "{\"function_id\":\"f\"}",
           "{\"function_id\":\"f\",\"namespace\":\"default\",\"worker_name\":\"f\","
           "\"registered_triggers\":[]}");
}

/* gateway/session_access without a broker: what is decided at once, and what becomes of it when
 * nobody can be asked. With a broker: tests/e2e/rbac.test.mjs. */
#include "gateway/session_access.h"

#include <criterion/criterion.h>

#include "config/listeners.h"

static struct settings settings;
static struct counters counters;
static struct server_calls *calls;
static struct access_door *door;
static struct session_access *session;

static void on_decided(void *peer)
{
    (void)peer;
    cr_assert_fail("nothing was asked");
}

static void start(void)
{
    settings_init(&settings);
    counters = (struct counters){0};
    cr_assert_not_null(listeners_add(&settings));
    settings.listeners[0].has_rbac = true;
    calls = server_calls_open(&counters); /* no link: nothing can be asked */
    door = NULL;
    session = NULL;
}

static void stop(void)
{
    session_access_free(session);
    access_door_close(door);
    server_calls_close(calls);
}

TestSuite(session_access, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static void expose(const char *pattern, const char *name_space)
{
    struct settings_rule *rule;
    cr_assert_eq(listeners_add_rule(&settings, name_space, &rule), WEIR_OK);
    cr_assert_eq(listeners_set_match(&settings, rule, span_text(pattern)), WEIR_OK);
}

static void expose_metadata(void)
{
    struct settings_rule *rule;
    cr_assert_eq(listeners_add_rule(&settings, "default", &rule), WEIR_OK);
    cr_assert_eq(listeners_add_condition(&settings, rule, "public", "true", true), WEIR_OK);
}

/* A session of a listener as it is set up by now. */
static void enter(void)
{
    const struct access_door_options options = {&settings, &settings.listeners[0], calls,
                                                &counters};
    struct ws_request request = {.peer = "[::1]:5"};
    door = access_door_open(&options);
    session = session_access_make(door, &request);
    cr_assert_not_null(session);
    cr_assert_eq(session_access_start(session, on_decided, NULL), STEP_GO);
}

static enum access_step call(const char *name_space, const char *function)
{
    return session_access_call(session,
                               name_space == NULL ? (struct span){0} : span_text(name_space),
                               span_text(function));
}

static struct json_value json(const char *text)
{
    struct json_value value;
    cr_assert_eq(json_scan(span_text(text), JSON_DEPTH_MAX, &value, NULL), WEIR_OK);
    return value;
}

/* covers: 2.9#17 */
Test(session_access, an_auth_function_that_cannot_be_asked_lets_nobody_in)
{
    strcpy(settings.listeners[0].auth_function, "app::auth");
    enter();
    cr_assert_not_null(session_access_problem(session));
    cr_assert_eq(counters.values[COUNTER_AUTH_REFUSED], 1u);
    cr_assert_eq(counters.values[COUNTER_AUTH_FAILED], 1u);
}

Test(session_access, rules_decide_at_once_and_refusals_are_counted)
{
    expose("app::*", "default");
    enter();
    cr_assert_null(session_access_problem(session));
    cr_assert_eq(call(NULL, "app::x"), STEP_GO);
    cr_assert_eq(call("", "app::x"), STEP_GO);
    cr_assert_eq(call("other", "app::x"), STEP_REFUSE);
    cr_assert_eq(call(NULL, "x"), STEP_REFUSE);
    cr_assert_eq(counters.values[COUNTER_ACCESS_REFUSED], 2u);
}

Test(session_access, a_question_nobody_can_be_asked_is_neither_yes_nor_no)
{
    expose_metadata();
    strcpy(settings.listeners[0].function_hook, "app::hook");
    strcpy(settings.listeners[0].trigger_hook, "app::hook");
    strcpy(settings.listeners[0].trigger_type_hook, "app::hook");
    expose("app::known", "default");
    enter();
    cr_assert_eq(call(NULL, "app::x"), STEP_LOST);
    cr_assert_eq(call(NULL, "app::known"), STEP_GO);
    struct session_registration function = {.function = SPAN_LITERAL("f")};
    cr_assert_eq(session_access_function(session, &function), STEP_LOST);
    struct access_trigger_type type = {SPAN_LITERAL("t"), SPAN_LITERAL("")};
    cr_assert_eq(session_access_trigger_type(session, &type), STEP_LOST);
    struct access_trigger trigger = {.id = SPAN_LITERAL("t"),
                                     .type = SPAN_LITERAL("stream"),
                                     .function = SPAN_LITERAL("app::known"),
                                     .config = json("{\"stream_name\":\"s\"}")};
    cr_assert_eq(session_access_trigger(session, (struct span){0}, &trigger), STEP_LOST);
    cr_assert_eq(counters.values[COUNTER_ACCESS_REFUSED], 0u);
    /* An id longer than any that is registered needs no question. */
    static char name[NAME_BYTES_MAX + 2];
    memset(name, 'x', NAME_BYTES_MAX + 1);
    cr_assert_eq(call(NULL, name), STEP_REFUSE);
}

/* covers: 2.11#4 */
Test(session_access, a_trigger_calls_its_function_and_its_condition)
{
    static const struct {
        const char *type, *function, *config, *name_space, *session_space;
        enum access_step step;
    } cases[] = {
        {"stream", "app::x", "{}", NULL, NULL, STEP_GO},
        {"stream", "secret", "{}", NULL, NULL, STEP_REFUSE},
        {"stream", "app::x", "{\"condition_function_id\":\"app::c\"}", NULL, NULL, STEP_GO},
        {"stream", "app::x", "{\"condition_function_id\":\"secret\"}", NULL, NULL, STEP_REFUSE},
        {"stream", "app::x", "{\"condition_function_id\":\"s\\u0065cret\"}", NULL, NULL,
         STEP_REFUSE},
        {"stream", "app::x", "{\"condition_function_id\":null}", NULL, NULL, STEP_GO},
        {"stream:join", "app::x", "{\"condition_function_id\":\"secret\"}", NULL, NULL,
         STEP_REFUSE},
        {"custom", "app::x", "{\"condition_function_id\":\"secret\"}", NULL, NULL, STEP_GO},
        {"stream", "app::x", "null", NULL, NULL, STEP_GO}, /* its config is refused for itself */
        {"stream", "app::x", "{}", "team", NULL, STEP_REFUSE},
        {"stream", "app::x", "{}", NULL, "team", STEP_REFUSE},
        {"stream", "app::x", "{}", "default", "team", STEP_GO},
        {"stream", "team::x", "{}", NULL, "team", STEP_GO},
        {"stream", "secret", "{}", " ", NULL, STEP_GO}, /* refused as INVALID_NAMESPACE */
    };
    expose("app::*", "default");
    expose("team::*", "team");
    enter();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct access_trigger trigger = {
            .id = SPAN_LITERAL("t"),
            .type = span_text(cases[i].type),
            .function = span_text(cases[i].function),
            .config = json(cases[i].config),
        };
        struct span session_space = {0};
        if (cases[i].name_space != NULL)
            trigger.name_space = span_text(cases[i].name_space);
        if (cases[i].session_space != NULL)
            session_space = span_text(cases[i].session_space);
        cr_assert_eq(session_access_trigger(session, session_space, &trigger), cases[i].step,
                     "case %zu", i);
        if (cases[i].step == STEP_GO) /* a session that moves leaves its triggers where they are */
            cr_assert(span_equal(trigger.name_space,
                                 span_text(cases[i].name_space != NULL      ? cases[i].name_space
                                           : cases[i].session_space != NULL ? cases[i].session_space
                                                                            : "default")),
                      "case %zu", i);
    }
}

Test(session_access, functions_that_steer_the_server_are_not_registered)
{
    static const struct {
        const char *id;
        enum access_step step;
    } cases[] = {{"app::f", STEP_GO},     {"stream::set(chat)", STEP_DROP},
                 {"stream::", STEP_DROP}, {"engine::queue::enqueue", STEP_DROP},
                 {"streams::f", STEP_GO}, {"app::stream::set(x)", STEP_GO}};
    enter();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct session_registration function = {.function = span_text(cases[i].id)};
        cr_assert_eq(session_access_function(session, &function), cases[i].step, "%s", cases[i].id);
    }
}

/* Whom the settings name decides about others: no session may become that, or its stand-by. */
Test(session_access, functions_the_settings_name_are_not_registered)
{
    static const char *const ids[] = {"app::auth", "app::rights", "app::mw",
                                      "app::f",    "app::t",      "app::y"};
    strcpy(settings.auth_function, ids[0]);
    cr_assert_not_null(listeners_add(&settings)); /* another listener's count as well */
    strcpy(settings.listeners[1].auth_function, ids[1]);
    strcpy(settings.listeners[1].middleware_function, ids[2]);
    strcpy(settings.listeners[1].function_hook, ids[3]);
    strcpy(settings.listeners[1].trigger_hook, ids[4]);
    strcpy(settings.listeners[1].trigger_type_hook, ids[5]);
    for (int has_rbac = 0; has_rbac < 2; has_rbac++) {
        settings.listeners[0].has_rbac = has_rbac == 1;
        enter();
        for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
            struct session_registration function = {.function = span_text(ids[i])};
            cr_assert_eq(session_access_function(session, &function),
                         has_rbac == 1 ? STEP_DROP : STEP_GO, "%s", ids[i]);
        }
        session_access_free(session);
        access_door_close(door);
        session = NULL;
        door = NULL;
    }
}

/* Megabytes of a function id are not held against patterns, whatever is granted. */
Test(session_access, names_longer_than_any_are_refused_unmatched)
{
    static char name[NAME_BYTES_MAX + 2];
    expose("*", "default");
    enter();
    memset(name, 'x', NAME_BYTES_MAX);
    cr_assert_eq(call(NULL, name), STEP_GO);
    cr_assert_eq(call(name, "f"), STEP_REFUSE);
    name[NAME_BYTES_MAX] = 'x';
    cr_assert_eq(call(NULL, name), STEP_REFUSE);
    cr_assert_eq(call(name, "stream::get"), STEP_REFUSE);
}

Test(session_access, a_head_of_too_many_parts_is_refused)
{
    static char query[2 * 513];
    for (size_t i = 0; i < sizeof query; i++)
        query[i] = i % 2 == 0 ? 'a' : '&';
    strcpy(settings.listeners[0].auth_function, "app::auth");
    enter();
    struct ws_request request = {.peer = "[::1]:5", .query = span_of(query, sizeof query)};
    cr_assert_null(session_access_make(door, &request));
    cr_assert_eq(request.http_status, 431u);
}

Test(session_access, a_call_on_its_way_to_the_middleware)
{
    strcpy(settings.listeners[0].middleware_function, "app::mw");
    settings.listeners[0].has_rbac = false;
    enter();
    struct call_request request = {.function = SPAN_LITERAL("app::\"f\""),
                                   .name_space = SPAN_LITERAL("team"),
                                   .data = json("{ \"a\" : [1] }")};
    cr_assert_eq(session_access_redirect(session, &request, json("{\"type\":\"void\"}")), WEIR_OK);
    cr_assert(span_equal(request.function, SPAN_LITERAL("app::mw")));
    cr_assert_null(request.name_space.data);
    struct json_value data = json("null");
    cr_assert_eq(json_scan(request.data.text, JSON_DEPTH_MAX, &data, NULL), WEIR_OK);
    cr_assert(span_equal(data.text,
                         SPAN_LITERAL("{\"function_id\":\"app::\\\"f\\\"\",\"payload\":{ \"a\" : "
                                      "[1] },\"action\":{\"type\":\"void\"},\"context\":{},"
                                      "\"namespace\":\"team\"}")),
              "%.*s", (int)data.text.bytes, data.text.data);
    struct call_request own = {.function = SPAN_LITERAL("engine::functions::list")};
    cr_assert_eq(session_access_redirect(session, &own, (struct json_value){0}), WEIR_EMPTY);
    struct call_request queue = {.function = SPAN_LITERAL("engine::queue::enqueue")};
    cr_assert_eq(session_access_redirect(session, &queue, (struct json_value){0}), WEIR_OK);
}

Test(session_access, without_prefix_and_hooks_names_stay)
{
    enter();
    cr_assert(span_equal(session_access_filed(session, ACCESS_FUNCTION, SPAN_LITERAL("f")),
                         SPAN_LITERAL("f")));
    cr_assert(span_equal(session_access_shown(session, ACCESS_FUNCTION, SPAN_LITERAL("p::f")),
                         SPAN_LITERAL("p::f")));
}

/* gateway/access, access_filter, head_json: what a session of a worker listener may do, and what it
 * is shown. Rules and auth answers are written as people write them. */
#include "gateway/access.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "config/listeners.h"
#include "gateway/access_filter.h"
#include "gateway/head_json.h"

static struct settings settings;
static struct access *session;
static struct buffer out;

static void start(void)
{
    settings_init(&settings);
    session = NULL;
    buffer_init(&out, 8 * 1024 * 1024);
    cr_assert_not_null(listeners_add(&settings));
    settings.listeners[0].has_rbac = true;
}

static void stop(void)
{
    access_free(session);
    buffer_fini(&out);
}

TestSuite(access, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static void expose(const char *pattern, const char *name_space)
{
    struct settings_rule *rule;
    cr_assert_eq(listeners_add_rule(&settings, name_space, &rule), WEIR_OK);
    cr_assert_eq(listeners_set_match(&settings, rule, span_text(pattern)), WEIR_OK);
}

static struct settings_rule *expose_metadata(const char *key, const char *value)
{
    struct settings_rule *rule;
    cr_assert_eq(listeners_add_rule(&settings, "default", &rule), WEIR_OK);
    cr_assert_eq(listeners_add_condition(&settings, rule, key, value, true), WEIR_OK);
    return rule;
}

/* `answer` NULL: the listener has no auth function. */
static void enter(const char *answer)
{
    const char *problem = NULL;
    access_free(session);
    session = NULL;
    struct span result = answer == NULL ? (struct span){0} : span_text(answer);
    cr_assert_eq(access_make(&session, &settings, &settings.listeners[0], result, &problem),
                 WEIR_OK, "%s: %s", answer, problem);
}

static enum access_decision decide(const char *name_space, const char *function)
{
    return access_call(session, name_space == NULL ? (struct span){0} : span_text(name_space),
                       span_text(function), NULL);
}

static enum access_decision decide_with(const char *function, const char *metadata)
{
    struct json_value value = {0};
    if (metadata != NULL)
        cr_assert_eq(json_scan(span_text(metadata), JSON_DEPTH_MAX, &value, NULL), WEIR_OK);
    return access_call(session, SPAN_LITERAL("default"), span_text(function), &value);
}

/* ---- patterns ---- */

Test(access, patterns_match_any_run_of_characters)
{
    static const struct {
        const char *pattern, *text;
        bool matches;
    } cases[] = {
        {"", "", true},
        {"", "a", false},
        {"*", "", true},
        {"*", "anything::at all", true},
        {"**", "", true},
        {"a", "a", true},
        {"a", "A", false},
        {"a", "ab", false},
        {"a", "ba", false},
        {"a*", "a", true},
        {"a*", "abc", true},
        {"a*", "ba", false},
        {"*a", "ba", true},
        {"*a", "ab", false},
        {"*a*", "xay", true},
        {"*a*", "xy", false},
        {"a*b", "ab", true},
        {"a*b", "axxb", true},
        {"a*b", "a", false},
        {"a*a", "a", false}, /* both ends need their own */
        {"ab*ba", "aba", false},
        {"a*b*c", "a1b2c", true},
        {"a*b*c", "a1c2b", false},
        {"a*bc*c", "abc", false},
        {"a*bc*c", "abcbc", true},
        {"*::*", "x::y", true},
        {"*::*", "x:y", false},
        {"app::*::read", "app::users::read", true},
        {"app::*::read", "app::read", false},
        {"app::*::read", "app::a::b::read", true},
        {"app::*::read", "app::users::reader", false},
        {"app::.*", "app::x", false}, /* nothing else is special */
        {"app::?", "app::x", false},
        {"[ab]", "a", false},
        {"a\\*", "a*", false},
        {"\xc3\xa9*", "\xc3\xa9t\xc3\xa9", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(access_pattern_matches(span_text(cases[i].pattern), span_text(cases[i].text)),
                     cases[i].matches, "%s against %s", cases[i].pattern, cases[i].text);
    cr_assert(access_pattern_matches(span_of("a*\0b", 4), span_of("a\0\0b", 4)));
    cr_assert_not(access_pattern_matches(span_of("a\0b", 3), span_of("a\0c", 3)));
}

/* Patterns that take others an age: nested backtracking would not come back within the timeout. */
Test(access, patterns_take_linear_time)
{
    enum { TEXT = 1 << 16, STARS = 1 << 12 };
    char *text = malloc(TEXT);
    char *pattern = malloc(2 * STARS + 1);
    memset(text, 'a', TEXT);
    for (size_t i = 0; i < STARS; i++)
        memcpy(pattern + 2 * i, "a*", 2);
    pattern[2 * (size_t)STARS] = 'b';
    cr_assert_not(access_pattern_matches(span_of(pattern, 2 * STARS + 1), span_of(text, TEXT)));
    cr_assert(access_pattern_matches(span_of(pattern, 2 * STARS), span_of(text, TEXT)));
    memset(pattern, 'a', STARS); /* *aaa...ab against aaa...a */
    pattern[0] = '*';
    pattern[STARS - 1] = 'b';
    pattern[STARS] = '*';
    cr_assert_not(access_pattern_matches(span_of(pattern, STARS + 1), span_of(text, TEXT)));
    memset(pattern, '*', 2 * STARS);
    cr_assert(access_pattern_matches(span_of(pattern, 2 * STARS), span_of(text, TEXT)));
    free(text);
    free(pattern);
}

/* A naive matcher, and random patterns over two letters. */
static bool matches_naively(const char *pattern, const char *text)
{
    if (*pattern == '*')
        return matches_naively(pattern + 1, text) ||
               (*text != '\0' && matches_naively(pattern, text + 1));
    return *pattern == *text && (*pattern == '\0' || matches_naively(pattern + 1, text + 1));
}

Test(access, patterns_agree_with_a_naive_matcher)
{
    const char *given = getenv("WEIR_SEED");
    unsigned seed = given == NULL ? 20240607u : (unsigned)strtoul(given, NULL, 10);
    printf("# WEIR_SEED=%u\n", seed);
    for (unsigned round = 0; round < 200000; round++) {
        char pattern[8] = "", text[10] = "";
        for (unsigned i = 0, length = (seed = seed * 1664525u + 1013904223u) >> 29; i < length; i++)
            pattern[i] = "ab*"[((seed = seed * 1664525u + 1013904223u) >> 16) % 3];
        for (unsigned i = 0, length = (seed = seed * 1664525u + 1013904223u) >> 29; i < length; i++)
            text[i] = "ab"[(seed = seed * 1664525u + 1013904223u) >> 31];
        cr_assert_eq(access_pattern_matches(span_text(pattern), span_text(text)),
                     matches_naively(pattern, text), "%s against %s", pattern, text);
    }
}

/* ---- decisions: each sentence of PROTOCOL 10.4 ---- */

/* covers: 2.9#13 */
Test(access, a_call_is_allowed_iff_something_grants_it_and_nothing_forbids_it)
{
    expose("stream::*", "default");
    expose("app::public::*", "orders");
    enter("{\"allowed_functions\":[\"app::private\",\"app::star*\",\"stream::set(x)\"],"
          "\"forbidden_functions\":[\"stream::delete\",\"app::never::*\",\"engine::log::info\"],"
          "\"namespaces\":{\"team\":[\"app::exact\",\"read::*\"],\"other\":[],"
          "\"default\":[\"granted::*\",\"app::never::granted\"]}}");
    static const struct {
        const char *name_space, *function;
        enum access_decision decision;
    } cases[] = {
        /* a rule, for its namespace */
        {NULL, "stream::set", ACCESS_ALLOWED},
        {"default", "stream::set", ACCESS_ALLOWED},
        {NULL, "stream::set(x)", ACCESS_ALLOWED},
        {"orders", "app::public::a", ACCESS_ALLOWED},
        {NULL, "app::public::a", ACCESS_REFUSED},
        {"team", "app::public::a", ACCESS_REFUSED},
        /* forbidden wins over everything, in every namespace, as a pattern too */
        {NULL, "stream::delete", ACCESS_REFUSED},
        {NULL, "app::never::granted", ACCESS_REFUSED},
        {"team", "app::never::x", ACCESS_REFUSED},
        {NULL, "engine::log::info", ACCESS_REFUSED},
        /* allowed_functions: ids, namespace default only */
        {NULL, "app::private", ACCESS_ALLOWED},
        {"default", "app::private", ACCESS_ALLOWED},
        {"team", "app::private", ACCESS_REFUSED},
        {NULL, "app::star*", ACCESS_ALLOWED},
        {NULL, "app::starred", ACCESS_REFUSED},
        /* granted for its namespace, exact or by pattern */
        {"team", "app::exact", ACCESS_ALLOWED},
        {"team", "app::exactly", ACCESS_REFUSED},
        {"team", "read::one", ACCESS_ALLOWED},
        {"other", "read::one", ACCESS_REFUSED},
        {NULL, "read::one", ACCESS_REFUSED},
        {NULL, "granted::x", ACCESS_ALLOWED},
        /* infrastructure ids */
        {NULL, "engine::channels::create", ACCESS_ALLOWED},
        {NULL, "engine::workers::register", ACCESS_ALLOWED},
        {NULL, "engine::log::warn", ACCESS_ALLOWED},
        {NULL, "engine::log::error", ACCESS_ALLOWED},
        {NULL, "engine::log::debug", ACCESS_ALLOWED},
        {NULL, "engine::log::trace", ACCESS_ALLOWED},
        {NULL, "engine::baggage::get", ACCESS_ALLOWED},
        {NULL, "engine::baggage::set", ACCESS_ALLOWED},
        {NULL, "engine::baggage::get_all", ACCESS_ALLOWED},
        {NULL, "engine::log::other", ACCESS_REFUSED},
        {NULL, "engine::functions::list", ACCESS_REFUSED},
        {NULL, "", ACCESS_REFUSED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(decide(cases[i].name_space, cases[i].function), cases[i].decision, "%s %s",
                     cases[i].name_space == NULL ? "-" : cases[i].name_space, cases[i].function);
}

/* Builtin functions answer under every namespace: a grant for a namespace is no grant of them. */
Test(access, builtins_are_those_of_the_default_namespace)
{
    enter("{\"namespaces\":{\"team\":[\"*\"]}}");
    cr_assert_eq(decide("team", "stream::set"), ACCESS_REFUSED);
    cr_assert_eq(decide("team", "engine::functions::list"), ACCESS_REFUSED);
    cr_assert_eq(decide("team", "stream::set(chat)"), ACCESS_ALLOWED);
    enter("{\"namespaces\":{\"default\":[\"*\"]}}");
    cr_assert_eq(decide("team", "stream::set"), ACCESS_ALLOWED);
    cr_assert_eq(decide("team", "app::x"), ACCESS_REFUSED);
    /* A trigger without owner would outlive the session and its rights. */
    cr_assert_eq(decide(NULL, "engine::register_trigger"), ACCESS_REFUSED);
    cr_assert_eq(decide(NULL, "engine::unregister_trigger"), ACCESS_REFUSED);
}

Test(access, without_rbac_everything_is_allowed)
{
    settings.listeners[0].has_rbac = false;
    enter(NULL);
    cr_assert(access_is_open(session));
    cr_assert_eq(decide("any", "thing"), ACCESS_ALLOWED);
    cr_assert_eq(decide(NULL, "engine::register_trigger"), ACCESS_ALLOWED);
    cr_assert(access_may_register_functions(session));
    cr_assert(access_may_register_trigger_types(session));
}

Test(access, without_auth_function_nothing_is_granted_and_nothing_forbidden)
{
    expose("app::*", "default");
    enter(NULL);
    cr_assert_not(access_is_open(session));
    cr_assert_eq(decide(NULL, "app::x"), ACCESS_ALLOWED);
    cr_assert_eq(decide(NULL, "other"), ACCESS_REFUSED);
    cr_assert(access_may_register_functions(session));
    cr_assert(access_may_register_trigger_types(session));
    cr_assert(access_may_use_trigger_type(session, SPAN_LITERAL("stream")));
    cr_assert_not(access_may_use_trigger_type(session, SPAN_LITERAL("stream:join")));
    cr_assert(span_equal(access_context(session), SPAN_LITERAL("{}")));
}

Test(access, defaults_and_nulls_of_an_auth_answer)
{
    static const char *const answers[] = {
        "{}",
        "{\"allowed_functions\":null,\"forbidden_functions\":null,\"namespaces\":null,"
        "\"allowed_trigger_types\":null,\"allow_trigger_type_registration\":null,"
        "\"allow_function_registration\":null,\"context\":null,"
        "\"function_registration_prefix\":null,\"extra\":1}",
    };
    for (unsigned i = 0; i < 2; i++) {
        enter(answers[i]);
        cr_assert(access_may_register_functions(session));
        cr_assert_not(access_may_register_trigger_types(session));
        cr_assert(access_may_use_trigger_type(session, SPAN_LITERAL("anything")));
        cr_assert_not(
            access_may_use_trigger_type(session, SPAN_LITERAL("engine::functions-available")));
        cr_assert(span_equal(access_context(session), SPAN_LITERAL("{}")));
        cr_assert_eq(access_file_name(session, SPAN_LITERAL("f"), NULL), 1u);
    }
    enter("{\"allowed_trigger_types\":[\"stream\",\"my\\u002dtype\"],"
          "\"allow_trigger_type_registration\":true,\"allow_function_registration\":false,"
          "\"context\":{ \"user\" : \"u1\" }}");
    cr_assert_not(access_may_register_functions(session));
    cr_assert(access_may_register_trigger_types(session));
    cr_assert(access_may_use_trigger_type(session, SPAN_LITERAL("stream")));
    cr_assert(access_may_use_trigger_type(session, SPAN_LITERAL("my-type")));
    cr_assert_not(access_may_use_trigger_type(session, SPAN_LITERAL("stream:join")));
    cr_assert(span_equal(access_context(session), SPAN_LITERAL("{\"user\":\"u1\"}")));
    enter("{\"allowed_trigger_types\":[\"engine::functions-available\"]}");
    cr_assert(access_may_use_trigger_type(session, SPAN_LITERAL("engine::functions-available")));
    cr_assert_not(access_may_use_trigger_type(session, SPAN_LITERAL("engine::workers-available")));
    enter("{\"allowed_trigger_types\":[]}");
    cr_assert_not(access_may_use_trigger_type(session, SPAN_LITERAL("stream")));
}

/* covers: 2.9#17 */
Test(access, an_auth_answer_of_another_shape_is_refused)
{
    static const char *const answers[] = {
        "null",
        "[]",
        "\"yes\"",
        "true",
        "{\"allowed_functions\":\"a\"}",
        "{\"allowed_functions\":[1]}",
        "{\"allowed_functions\":{}}",
        "{\"forbidden_functions\":[null]}",
        "{\"namespaces\":[]}",
        "{\"namespaces\":{\"a\":\"b\"}}",
        "{\"namespaces\":{\"a\":[1]}}",
        "{\"namespaces\":{\"a\":null}}",
        "{\"allowed_trigger_types\":\"stream\"}",
        "{\"allow_trigger_type_registration\":1}",
        "{\"allow_function_registration\":\"false\"}",
        "{\"function_registration_prefix\":1}",
        "{\"context\":1,\"context\":2}",
    };
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        const char *problem = NULL;
        cr_assert_eq(access_make(&session, &settings, &settings.listeners[0], span_text(answers[i]),
                                 &problem),
                     WEIR_INVALID, "%s", answers[i]);
        cr_assert_not_null(problem);
    }
    session = NULL;
}

Test(access, an_auth_answer_is_bounded)
{
    const char *problem = NULL;
    cr_assert_eq(buffer_append(&out, SPAN_LITERAL("{\"allowed_functions\":[\"a\"")), WEIR_OK);
    for (unsigned i = 0; i < ACCESS_PATTERNS_MAX; i++)
        cr_assert_eq(buffer_append(&out, SPAN_LITERAL(",\"a\"")), WEIR_OK);
    cr_assert_eq(buffer_append(&out, SPAN_LITERAL("]}")), WEIR_OK);
    cr_assert_eq(
        access_make(&session, &settings, &settings.listeners[0], buffer_span(&out), &problem),
        WEIR_INVALID);
    buffer_clear(&out);
    cr_assert_eq(buffer_reserve(&out, ACCESS_RESULT_BYTES_MAX + 1), WEIR_OK);
    memset(out.data, ' ', ACCESS_RESULT_BYTES_MAX + 1);
    out.data[0] = '{';
    out.data[ACCESS_RESULT_BYTES_MAX] = '}';
    out.bytes = ACCESS_RESULT_BYTES_MAX + 1;
    cr_assert_eq(
        access_make(&session, &settings, &settings.listeners[0], buffer_span(&out), &problem),
        WEIR_TOO_LARGE);
    session = NULL;
}

/* Every text of an answer is kept decoded in one block of the answer's size: it always fits. */
Test(access, an_auth_answer_of_escapes_only_is_kept_whole)
{
    enter(
        "{\"allowed_functions\":[\"\\u0061\",\"\\n\"],\"namespaces\":{\"\\u006e\":[\"\\u0066*\"]},"
        "\"function_registration_prefix\":\"\\u0070\",\"context\":[ \"\\u0063\" ]}");
    cr_assert_eq(decide(NULL, "a"), ACCESS_ALLOWED);
    cr_assert_eq(decide(NULL, "\n"), ACCESS_ALLOWED);
    cr_assert_eq(decide("n", "fff"), ACCESS_ALLOWED);
    cr_assert(span_equal(access_context(session), SPAN_LITERAL("[\"\\u0063\"]")));
    cr_assert_eq(access_file_name(session, SPAN_LITERAL("f"), NULL), 4u);
}

/* ---- metadata ---- */

Test(access, a_metadata_rule_needs_the_functions_metadata)
{
    struct settings_rule *rule = expose_metadata("public", "true");
    cr_assert_eq(listeners_add_condition(&settings, rule, "tier", "match(\"gold*\")", true),
                 WEIR_OK);
    enter("{\"forbidden_functions\":[\"app::never\"],\"allowed_functions\":[\"app::always\"]}");
    cr_assert_eq(decide(NULL, "app::x"), ACCESS_ASK);
    cr_assert_eq(decide(NULL, "app::always"), ACCESS_ALLOWED, "nothing has to be asked");
    cr_assert_eq(decide(NULL, "app::never"), ACCESS_REFUSED);
    cr_assert_eq(decide("team", "app::x"), ACCESS_REFUSED, "the rule is for default");
    cr_assert_eq(decide(NULL, "stream::set"), ACCESS_REFUSED, "builtins have no metadata");
    static const struct {
        const char *metadata;
        bool is_allowed;
    } cases[] = {
        {"{\"public\":true,\"tier\":\"gold\"}", true},
        {"{\"tier\":\"gold-plus\",\"more\":1,\"public\":true}", true},
        {"{\"public\":true,\"tier\":\"g\\u006fld\"}", true},
        {"{\"p\\u0075blic\":true,\"tier\":\"gold\"}", true},
        {"{\"public\":true}", false},
        {"{\"public\":false,\"tier\":\"gold\"}", false},
        {"{\"public\":\"true\",\"tier\":\"gold\"}", false},
        {"{\"public\":1,\"tier\":\"gold\"}", false},
        {"{\"public\":true,\"tier\":\"silver\"}", false},
        {"{\"public\":true,\"tier\":[\"gold\"]}", false},
        {"{\"public\":true,\"tier\":\"gold\",\"public\":false}", false}, /* the last one counts */
        {"{}", false},
        {"[]", false},
        {"null", false},
        {"\"gold\"", false},
        {NULL, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(decide_with("app::x", cases[i].metadata),
                     cases[i].is_allowed ? ACCESS_ALLOWED : ACCESS_REFUSED, "%s",
                     cases[i].metadata);
}

Test(access, metadata_values_are_compared_as_json)
{
    static const struct {
        const char *literal, *value;
        bool is_equal;
    } cases[] = {
        {"1", "1", true},
        {"1", "1.0", true},
        {"100", "1e2", true},
        {"1", "\"1\"", false},
        {"true", "true", true},
        {"true", "1", false},
        {"null", "null", true},
        {"null", "false", false},
        {"9007199254740993", "9007199254740992", false},
        {"0.1", "0.10", true},
        {"1", "[1]", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct json_value value;
        cr_assert_eq(json_scan(span_text(cases[i].value), 8, &value, NULL), WEIR_OK);
        cr_assert_eq(access_literal_equals(span_text(cases[i].literal), value), cases[i].is_equal,
                     "%s and %s", cases[i].literal, cases[i].value);
    }
    struct json_value absent = {0};
    cr_assert_not(access_literal_equals(SPAN_LITERAL("null"), absent), "missing is not null");
}

/* ---- the prefix ---- */

Test(access, a_prefix_goes_on_and_comes_off)
{
    enter("{\"function_registration_prefix\":\"ui::7\"}");
    char filed[64];
    size_t bytes = access_file_name(session, SPAN_LITERAL("f::g"), filed);
    cr_assert(span_equal(span_of(filed, bytes), SPAN_LITERAL("ui::7::f::g")));
    cr_assert(span_equal(access_show_name(session, span_of(filed, bytes)), SPAN_LITERAL("f::g")));
    static const char *const others[] = {"ui::7", "ui::7:", "ui::77::f", "x::ui::7::f", ""};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        cr_assert(span_equal(access_show_name(session, span_text(others[i])), span_text(others[i])),
                  "%s", others[i]);
    cr_assert(span_equal(access_show_name(session, SPAN_LITERAL("ui::7::")), SPAN_LITERAL("")));
    enter("{\"function_registration_prefix\":\"\"}");
    cr_assert_eq(access_file_name(session, SPAN_LITERAL("f"), filed), 1u);
}

/* ---- listings ---- */

static enum weir_status filter(enum access_listing listing, const char *answer, const char **code)
{
    buffer_clear(&out);
    return access_filter(session, listing, span_text(answer), &out, code);
}

static void assert_filtered(enum access_listing listing, const char *answer, const char *expected)
{
    const char *code = NULL;
    cr_assert_eq(filter(listing, answer, &code), WEIR_OK, "%s", answer);
    cr_assert(span_equal(buffer_span(&out), span_text(expected)), "%.*s is not %s", (int)out.bytes,
              out.data, expected);
}

static void assert_hidden(enum access_listing listing, const char *answer, const char *expected)
{
    const char *code = NULL;
    cr_assert_eq(filter(listing, answer, &code), WEIR_REFUSED, "%s", answer);
    cr_assert_str_eq(code, expected);
}

Test(access, listings_show_only_what_the_session_may_call)
{
    expose_metadata("public", "true");
    enter("{\"allowed_functions\":[\"a\"],\"namespaces\":{\"n\":[\"b\"]},"
          "\"allowed_trigger_types\":[\"stream\"]}");
    assert_filtered(ACCESS_FUNCTIONS_LIST,
                    "{\"functions\":[{\"function_id\":\"a\",\"namespace\":\"default\"},"
                    "{\"function_id\":\"a\",\"namespace\":\"n\"},{\"function_id\":\"b\","
                    "\"namespace\":\"n\"},{\"function_id\":\"c\"},{\"function_id\":\"d\","
                    "\"metadata\":{\"public\":true}},{\"function_id\":1},7]}",
                    "{\"functions\":[{\"function_id\":\"a\",\"namespace\":\"default\"},"
                    "{\"function_id\":\"b\",\"namespace\":\"n\"},{\"function_id\":\"d\","
                    "\"metadata\":{\"public\":true}}]}");
    assert_filtered(ACCESS_FUNCTIONS_LIST, "{\"functions\":[]}", "{\"functions\":[]}");
    assert_filtered(ACCESS_FUNCTIONS_LIST, "{\"functions\":7}", "{\"functions\":null}");
    assert_filtered(ACCESS_FUNCTIONS_INFO, "{\"function_id\":\"a\",\"namespace\":\"default\"}",
                    "{\"function_id\":\"a\",\"namespace\":\"default\"}");
    assert_hidden(ACCESS_FUNCTIONS_INFO, "{\"function_id\":\"c\",\"namespace\":\"default\"}",
                  "FORBIDDEN");
    assert_filtered(ACCESS_FUNCTIONS_INFO,
                    "{\"functions\":[{\"function_id\":\"a\"},{\"function_id\":\"c\",\"x\":1},"
                    "{\"function_id\":\"none\",\"error\":\"not_found\"}]}",
                    "{\"functions\":[{\"function_id\":\"a\"},{\"function_id\":\"c\",\"error\":"
                    "\"forbidden\"},{\"function_id\":\"none\",\"error\":\"not_found\"}]}");
    assert_filtered(ACCESS_WORKERS_LIST,
                    "{\"workers\":[{\"name\":\"w\",\"ip_address\":\"10.0.0.1\"}]}",
                    "{\"workers\":[{\"name\":\"w\",\"ip_address\":null}]}");
    assert_filtered(ACCESS_WORKERS_INFO,
                    "{\"worker\":{\"name\":\"w\",\"ip_address\":\"10.0.0.1\"},\"functions\":[\"a\","
                    "\"c\"],\"trigger_types\":[\"stream\",{\"id\":\"secret\"}],"
                    "\"registered_triggers\":[{\"id\":\"t\",\"trigger_type\":\"stream\","
                    "\"function_id\":\"a\"},{\"id\":\"u\",\"trigger_type\":\"stream\","
                    "\"function_id\":\"c\"}]}",
                    "{\"worker\":{\"name\":\"w\",\"ip_address\":null},\"functions\":[\"a\"],"
                    "\"trigger_types\":[\"stream\"],\"registered_triggers\":[{\"id\":\"t\","
                    "\"trigger_type\":\"stream\",\"function_id\":\"a\"}]}");
    assert_filtered(ACCESS_TRIGGERS_LIST, "{\"triggers\":[{\"id\":\"stream\"},{\"id\":\"other\"}]}",
                    "{\"triggers\":[{\"id\":\"stream\"}]}");
    assert_filtered(ACCESS_TRIGGERS_INFO, "{\"id\":\"stream\"}", "{\"id\":\"stream\"}");
    assert_hidden(ACCESS_TRIGGERS_INFO, "{\"id\":\"other\"}", "NOT_FOUND");
    assert_filtered(ACCESS_REGISTERED_TRIGGERS_LIST,
                    "{\"registered_triggers\":[{\"function_id\":\"a\",\"trigger_type\":\"stream\"},"
                    "{\"function_id\":\"a\",\"trigger_type\":\"other\"},{\"function_id\":\"c\","
                    "\"trigger_type\":\"stream\"},{\"function_id\":\"a\",\"namespace\":\"n\","
                    "\"trigger_type\":\"stream\"},{\"id\":\"no function\"}]}",
                    "{\"registered_triggers\":[{\"function_id\":\"a\",\"trigger_type\":"
                    "\"stream\"}]}");
    assert_hidden(ACCESS_REGISTERED_TRIGGERS_INFO,
                  "{\"function_id\":\"a\",\"trigger_type\":\"stream\",\"function\":"
                  "{\"function_id\":\"a\",\"namespace\":\"n\"}}",
                  "NOT_FOUND");
    assert_filtered(ACCESS_REGISTERED_TRIGGERS_INFO,
                    "{\"trigger_type\":\"stream\",\"function\":{\"function_id\":\"d\","
                    "\"metadata\":{\"public\":true}}}",
                    "{\"trigger_type\":\"stream\",\"function\":{\"function_id\":\"d\","
                    "\"metadata\":{\"public\":true}}}");
    assert_hidden(ACCESS_REGISTERED_TRIGGERS_INFO,
                  "{\"function_id\":\"c\",\"trigger_type\":\"stream\"}", "NOT_FOUND");
    const char *code = NULL;
    cr_assert_eq(filter(ACCESS_FUNCTIONS_LIST, "[]", &code), WEIR_CORRUPT);
}

Test(access, the_functions_whose_answers_are_filtered)
{
    static const struct {
        const char *function;
        enum access_listing listing;
    } cases[] = {
        {"\"engine::functions::list\"", ACCESS_FUNCTIONS_LIST},
        {"\"engine::f\\u0075nctions::info\"", ACCESS_FUNCTIONS_INFO},
        {"\"engine::registered-triggers::info\"", ACCESS_REGISTERED_TRIGGERS_INFO},
        {"\"engine::log::info\"", ACCESS_LISTING_NONE},
        {"\"app::functions::list\"", ACCESS_LISTING_NONE},
        {"1", ACCESS_LISTING_NONE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct json_value function;
        cr_assert_eq(json_scan(span_text(cases[i].function), 1, &function, NULL), WEIR_OK);
        cr_assert_eq(access_listing_of(function), cases[i].listing, "%s", cases[i].function);
    }
}

/* ---- what an auth function is told ---- */

static void assert_out(enum weir_status status, const char *expected)
{
    cr_assert_eq(status, WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), span_text(expected)), "%.*s is not %s", (int)out.bytes,
              out.data, expected);
    buffer_clear(&out);
}

Test(access, headers_as_json)
{
    assert_out(head_json_append_headers(&out, SPAN_LITERAL("")), "{}");
    assert_out(head_json_append_headers(
                   &out, SPAN_LITERAL("Host: a:1\r\nX-Token:  Q\"x\\ \r\nx-token: Last One\r\n"
                                      "X-Bad: \xc3\xa9\r\nEmpty:\r\nNo colon\r\n: nameless\r\n")),
               "{\"empty\":\"\",\"host\":\"a:1\",\"x-token\":\"Last One\"}");
    assert_out(head_json_append_headers(&out, SPAN_LITERAL("A: Q\"x\\\r\n")),
               "{\"a\":\"Q\\\"x\\\\\"}");
}

Test(access, queries_as_json)
{
    assert_out(head_json_append_query(&out, SPAN_LITERAL("")), "{}");
    assert_out(head_json_append_query(&out, SPAN_LITERAL("token=t&x=1&x=2")),
               "{\"token\":[\"t\"],\"x\":[\"1\",\"2\"]}");
    assert_out(head_json_append_query(&out, SPAN_LITERAL("&&b=%20+&a&=x&a==&b=")),
               "{\"a\":[\"\",\"=\"],\"b\":[\"%20+\",\"\"]}");
    assert_out(head_json_append_query(&out, SPAN_LITERAL("a=\xff&b=\xc3\xa9")),
               "{\"b\":[\"\xc3\xa9\"]}");
}

/* The last value that can be shown counts, as far as it goes; beyond the bounds nothing is told. */
Test(access, heads_are_bounded)
{
    static char text[16 * 1024];
    assert_out(head_json_append_headers(&out, SPAN_LITERAL("X: good\r\nx: \xc3\xa9\r\n")),
               "{\"x\":\"good\"}");
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 2 == 0 ? 'a' : '&';
    cr_assert_eq(head_json_append_query(&out, span_of(text, 2 * HEAD_PARAMETERS_MAX)), WEIR_OK);
    cr_assert_eq(head_json_append_query(&out, span_of(text, 2 * HEAD_PARAMETERS_MAX + 1)),
                 WEIR_TOO_LARGE);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "a:\r\n"[i % 4];
    cr_assert_eq(head_json_append_headers(&out, span_of(text, 4 * HEAD_HEADERS_MAX)), WEIR_OK);
    cr_assert_eq(head_json_append_headers(&out, span_of(text, 4 * HEAD_HEADERS_MAX + 4)),
                 WEIR_TOO_LARGE);
}

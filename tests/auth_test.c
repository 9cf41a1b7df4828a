/* gateway/auth: what auth_function is told, where a token may stand, and what becomes of every
 * answer. */
#include "gateway/auth.h"

#include <criterion/criterion.h>
#include <unistd.h>

#include "gateway/handshake.h"
#include "tests/caller_stub.h"

static struct settings settings;
static struct counters counters;
static struct auth *auth;
static struct auth_ticket *ticket;
static struct auth_decision decision;
static unsigned done_count;
static struct handshake parsed;
static struct ws_request request;
static char head[HANDSHAKE_BYTES_MAX + 1024];

static void start(void)
{
    stub_reset();
    memset(&counters, 0, sizeof counters);
    settings_init(&settings);
    struct caller caller = stub_caller();
    auth = auth_open(&settings, &caller, &counters);
    cr_assert_not_null(auth);
    done_count = 0;
}

static void stop(void)
{
    auth_close(auth);
    settings_fini(&settings);
    stub_reset();
}

TestSuite(auth, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static void set(const char *assignment)
{
    struct weir_error error;
    cr_assert_eq(settings_set(&settings, assignment, &error), WEIR_OK, "%s", error.text);
}

/* The request as ws_http.c hands it over. */
static void parse(const char *target, const char *headers)
{
    int bytes = snprintf(head, sizeof head, "GET %s HTTP/1.1\r\n%s\r\n", target, headers);
    cr_assert_lt((size_t)bytes, sizeof head);
    cr_assert_eq(handshake_parse(span_of(head, (size_t)bytes), &parsed), WEIR_OK, "%s", head);
    request = (struct ws_request){
        .path = parsed.path,
        .query = parsed.query,
        .headers = parsed.headers,
        .protocols = parsed.protocols,
        .peer = "[2001:db8::1]:5",
    };
}

static void on_done(void *context, struct auth_decision what)
{
    cr_assert_eq(context, &decision);
    done_count++;
    decision = what;
}

static enum auth_verdict ask(void)
{
    return auth_ask(auth, &request, on_done, &decision, &ticket, &decision);
}

static void expect_input(const char *target, const char *headers, const char *wanted_headers,
                         const char *wanted_rest)
{
    struct buffer out;
    char wanted[4096];
    buffer_init(&out, 1 << 20);
    parse(target, headers);
    cr_assert_eq(auth_input_append(&out, &request), WEIR_OK);
    (void)snprintf(wanted, sizeof wanted, "{\"headers\":{%s},%s,\"addr\":\"[2001:db8::1]:5\"}",
                   wanted_headers, wanted_rest);
    cr_assert(span_equal(buffer_span(&out), span_text(wanted)), "%.*s\nwanted %s", (int)out.bytes,
              out.data, wanted);
    buffer_fini(&out);
}

/* Names in lower case, the last value wins, what is not visible ASCII is left out. */
Test(auth, headers_are_told)
{
    static const char path[] = "\"path\":\"/\",\"query_params\":{}";
    expect_input("/", "", "", path);
    expect_input("/", "Host: x\r\nX-A:  1 \r\nx-a:\t2\r\nEmpty:\r\n",
                 "\"empty\":\"\",\"host\":\"x\",\"x-a\":\"2\"", path);
    expect_input("/", "X: \"\\ \t~\r\n", "\"x\":\"\\\"\\\\ \\t~\"", path);
    expect_input("/", "X: caf\xc3\xa9\r\nY: \xff\r\nZ: 1\r\n", "\"z\":\"1\"", path);
    expect_input("/", "X: good\r\nX: \xc3\xa9\r\n", "\"x\":\"good\"", path);
    expect_input("/", "!#$%&'*+-.^_`|~X: 1\r\n", "\"!#$%&'*+-.^_`|~x\":\"1\"", path);
}

/* Split on & and the first =, nothing is decoded, empty keys are skipped, values are arrays. */
Test(auth, path_and_query_are_told)
{
    expect_input("/stream/a%2Fb/g+h?token=t&x=1&x=2", "", "",
                 "\"path\":\"/stream/a%2Fb/g+h\","
                 "\"query_params\":{\"token\":[\"t\"],\"x\":[\"1\",\"2\"]}");
    expect_input("/?", "", "", "\"path\":\"/\",\"query_params\":{}");
    expect_input(
        "/?&&=1&=&a&b=&c==&a=%41+b&?=/", "", "",
        "\"path\":\"/\",\"query_params\":{\"?\":[\"/\"],\"a\":[\"\",\"%41+b\"],\"b\":[\"\"],"
        "\"c\":[\"=\"]}");
    expect_input("/?q=\"\\&\xc3\xa9=\xff&ok=\xc3\xa9", "", "",
                 "\"path\":\"/\",\"query_params\":{\"ok\":[\"\xc3\xa9\"],\"q\":[\"\\\"\\\\\"]}");
}

/* More names or parameters than the bounds is 431, a path that cannot stand in JSON 400; the bounds
 * themselves pass. */
Test(auth, hostile_heads_are_bounded)
{
    static char headers[16384], target[8192];
    set("auth_function=f");
    for (unsigned limit = 256; limit <= 257; limit++) {
        size_t bytes = 0;
        for (unsigned i = 0; i < limit; i++)
            bytes += (size_t)snprintf(headers + bytes, sizeof headers - bytes, "h%u: %u\r\n", i, i);
        parse("/", headers);
        cr_assert_eq(ask(), limit == 256 ? AUTH_PENDING : AUTH_REFUSED);
        cr_assert_eq(decision.http_status, limit == 256 ? 0u : 431u);
        if (limit == 256)
            auth_cancel(ticket);
    }
    for (unsigned limit = 512; limit <= 513; limit++) {
        size_t bytes = (size_t)snprintf(target, sizeof target, "/?");
        for (unsigned i = 0; i < limit; i++)
            bytes += (size_t)snprintf(target + bytes, sizeof target - bytes, "p%u&", i);
        parse(target, "");
        cr_assert_eq(ask(), limit == 512 ? AUTH_PENDING : AUTH_REFUSED);
        cr_assert_eq(decision.http_status, limit == 512 ? 0u : 431u);
        if (limit == 512)
            auth_cancel(ticket);
    }
    parse("/stream/\xc3/g", "");
    cr_assert_eq(ask(), AUTH_REFUSED);
    cr_assert_eq(decision.http_status, 400u);
    /* The longest text of all needs six bytes for each of its own. */
    memset(headers, '\t', 16000);
    memcpy(headers, "x: a", 4);
    memcpy(headers + 15990, "b\r\n", 4);
    parse("/", headers);
    cr_assert_eq(ask(), AUTH_PENDING);
    auth_cancel(ticket);
    cr_assert_eq(stub.open_count, 0u);
}

/* ---- tokens ---- */

static void expect_token(enum auth_place place, const char *target, const char *headers,
                         const char *wanted)
{
    char scratch[HANDSHAKE_BYTES_MAX];
    parse(target, headers);
    struct span token = auth_token(&request, place, scratch);
    cr_assert_eq(token.data == NULL, wanted == NULL, "%s %s", target, headers);
    if (wanted != NULL)
        cr_assert(span_equal(token, span_text(wanted)), "%.*s", (int)token.bytes, token.data);
}

Test(auth, tokens_are_found_where_they_may_stand)
{
    expect_token(AUTH_HEADER, "/", "", NULL);
    expect_token(AUTH_HEADER, "/", "Authorization: Bearer t\r\n", "t");
    expect_token(AUTH_HEADER, "/", "authorization: bEARER   a.b=  \r\n", "a.b=");
    expect_token(AUTH_HEADER, "/", "Authorization: Bearer\r\n", NULL);
    expect_token(AUTH_HEADER, "/", "Authorization: Bearert\r\n", NULL);
    expect_token(AUTH_HEADER, "/", "Authorization: Basic t\r\n", NULL);
    expect_token(AUTH_HEADER, "/", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", "b");
    expect_token(AUTH_HEADER, "/", "Authorization: Bearer a\r\nAuthorization: Basic b\r\n", NULL);
    expect_token(AUTH_HEADER, "/", "X-Authorization: Bearer t\r\n", NULL);

    static const char name[] = "Sec-WebSocket-Protocol";
    static const struct {
        const char *list, *wanted;
    } lists[] = {
        {"Authorization,t", "t"},       {"Authorization, t , other", "t"},
        {"chat, Authorization,t", "t"}, {"Authorization,,t", "t"},
        {"Authorization", NULL},        {"Authorization,", NULL},
        {"authorization,t", NULL},      {"t,Authorization", NULL},
        {"Authorization t", NULL},
    };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        char headers[128];
        (void)snprintf(headers, sizeof headers, "%s: %s\r\n", name, lists[i].list);
        expect_token(AUTH_SUBPROTOCOL, "/", headers, lists[i].wanted);
    }
    expect_token(AUTH_SUBPROTOCOL, "/",
                 "Sec-WebSocket-Protocol: Authorization\r\nX: 1\r\n"
                 "sec-websocket-protocol: t\r\n",
                 "t");

    expect_token(AUTH_QUERY, "/", "", NULL);
    expect_token(AUTH_QUERY, "/?token=t", "", "t");
    expect_token(AUTH_QUERY, "/?x=1&token=a%2Bb%3d+&y", "", "a+b=+");
    expect_token(AUTH_QUERY, "/?token=a%zz", "", "a%zz");
    expect_token(AUTH_QUERY, "/?token=%ff", "", "%ff");
    expect_token(AUTH_QUERY, "/?token=a&token=b", "", "b");
    expect_token(AUTH_QUERY, "/?token", "", "");
    expect_token(AUTH_QUERY, "/?Token=a&tokens=b&=token", "", NULL);
}

static void load(const char *text)
{
    char path[] = "/tmp/weir-auth-XXXXXX";
    struct weir_error error;
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    cr_assert_eq(close(fd), 0);
    cr_assert_eq(settings_load(&settings, path, &error), WEIR_OK, "%s", error.text);
    (void)unlink(path);
}

static void expect_context(const char *wanted)
{
    if (wanted == NULL)
        cr_assert_null(decision.context.data);
    else
        cr_assert(span_equal(decision.context, span_text(wanted)), "%.*s",
                  (int)decision.context.bytes, decision.context.data);
    free((void *)(uintptr_t)decision.context.data);
}

Test(auth, tokens_of_the_file_decide)
{
    load("weir: { auth_tokens: { abc: {u: 1}, abcd: [2], nul: ~ } }\n");
    static const struct {
        const char *target, *headers;
        enum auth_verdict verdict;
        const char *context;
    } cases[] = {
        {"/?token=abc", "", AUTH_ACCEPTED, "{\"u\":1}"},
        {"/?token=abcd", "", AUTH_ACCEPTED, "[2]"},
        {"/?token=nul", "", AUTH_ACCEPTED, NULL},
        {"/?token=ab", "", AUTH_REFUSED, NULL},
        {"/?token=abcde", "", AUTH_REFUSED, NULL},
        {"/?token=", "", AUTH_REFUSED, NULL},
        {"/", "", AUTH_REFUSED, NULL},
        {"/", "Authorization: Bearer abcd\r\n", AUTH_ACCEPTED, "[2]"},
        {"/?token=abc", "Authorization: Bearer x\r\n", AUTH_ACCEPTED, "{\"u\":1}"},
        {"/", "Sec-WebSocket-Protocol: Authorization, abc\r\n", AUTH_ACCEPTED, "{\"u\":1}"},
    };
    unsigned refused = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        parse(cases[i].target, cases[i].headers);
        cr_assert_eq(ask(), cases[i].verdict, "case %zu", i);
        cr_assert_null(ticket);
        refused += cases[i].verdict == AUTH_REFUSED;
        cr_assert_eq(decision.http_status, cases[i].verdict == AUTH_REFUSED ? 401u : 0u);
        expect_context(cases[i].context);
    }
    cr_assert_eq(counters.values[COUNTER_AUTH_REFUSED], refused);
    cr_assert_eq(counters.values[COUNTER_AUTH_FAILED], 0u);
    cr_assert_eq(stub.count, 0u, "nobody was asked");
}

Test(auth, an_unknown_token_goes_to_the_function)
{
    load("weir: { auth_function: f, auth_tokens: { abc: 1 } }\n");
    parse("/?token=abc", "");
    cr_assert_eq(ask(), AUTH_ACCEPTED);
    expect_context("1");
    parse("/?token=abd", "");
    cr_assert_eq(ask(), AUTH_PENDING);
    cr_assert_eq(stub.count, 1u);
    stub_answer(0, "{\"context\":2}");
    expect_context("2");
}

Test(auth, nothing_configured_accepts_everybody)
{
    parse("/", "");
    cr_assert_eq(ask(), AUTH_ACCEPTED);
    expect_context(NULL);
    cr_assert_eq(stub.count, 0u);
}

/* ---- answers ---- */

struct answer {
    const char *result; /* or */
    const char *error;  /* a code, or */
    enum server_call_fate fate;
    unsigned http_status;
    const char *context;
    bool is_failure;
};

static const struct answer answers[] = {
    {.result = "{}"},
    {.result = "{\"context\":null}"},
    {.result = " { \"context\" : { \"a\" : [ 1, \" \" ] } , \"x\": 1 } ",
     .context = "{\"a\":[1,\" \"]}"},
    {.result = "{\"context\":false}", .context = "false"},
    {.result = "{\"unauthorized\":false,\"context\":1}", .context = "1"},
    {.result = "{\"unauthorized\":\"true\"}"},
    {.result = "{\"unauthorized\":1}"},
    {.result = "{\"unauthorized\":true}", .http_status = 401},
    {.result = "{\"unauth\\u006frized\":true,\"context\":1}", .http_status = 401},
    {.result = "{\"unauthorized\":false,\"unauthorized\":true}", .http_status = 401},
    {.result = "{\"unauthorized\":true,\"unauthorized\":false}"},
    {.result = "null", .http_status = 401, .is_failure = true},
    {.result = "true", .http_status = 401, .is_failure = true},
    {.result = "\"{}\"", .http_status = 401, .is_failure = true},
    {.result = "[]", .http_status = 401, .is_failure = true},
    {.result = "{", .http_status = 401, .is_failure = true},
    {.fate = SERVER_CALL_RESULT, .http_status = 401, .is_failure = true},
    {.error = "invocation_failed", .http_status = 401, .is_failure = true},
    {.error = "", .http_status = 401, .is_failure = true},
    {.error = "function_not_found", .http_status = 503, .is_failure = true},
    {.error = "invocation_stopped", .http_status = 503, .is_failure = true},
    {.error = "channel_send_failed", .http_status = 503, .is_failure = true},
    {.fate = SERVER_CALL_LATE, .http_status = 503, .is_failure = true},
    {.fate = SERVER_CALL_UNAVAILABLE, .http_status = 503, .is_failure = true},
};

static void play(const struct answer *answer)
{
    size_t index = stub.count;
    parse("/p?q=1", "A: b\r\n");
    done_count = 0;
    cr_assert_eq(ask(), AUTH_PENDING);
    cr_assert_not_null(ticket);
    cr_assert_eq(stub.count, index + 1);
    cr_assert_null(stub.calls[index].name_space, "the default namespace");
    cr_assert_null(stub.calls[index].metadata);
    cr_assert_str_eq(stub.calls[index].function, "app::auth");
    cr_assert_str_eq(stub.calls[index].data,
                     "{\"headers\":{\"a\":\"b\"},\"path\":\"/p\",\"query_params\":{\"q\":[\"1\"]},"
                     "\"addr\":\"[2001:db8::1]:5\"}");
    cr_assert_eq(stub.calls[index].deadline_ms, stub.now_ms + 700);
    if (answer->result != NULL)
        stub_answer(index, answer->result);
    else if (answer->error != NULL)
        stub_error(index, answer->error);
    else
        stub_fate(index, answer->fate);
    cr_assert_eq(done_count, 1u);
}

static void play_all(bool is_allowing)
{
    set("auth_function=app::auth");
    set("auth_timeout_ms=700");
    uint64_t refused = 0, failed = 0;
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        const struct answer *answer = &answers[i];
        play(answer);
        bool is_forgiven = is_allowing && answer->is_failure;
        cr_assert_eq(decision.http_status, is_forgiven ? 0u : answer->http_status, "answer %zu", i);
        expect_context(answer->context);
        failed += answer->is_failure;
        refused += answer->http_status != 0 && !is_forgiven;
    }
    cr_assert_eq(counters.values[COUNTER_AUTH_REFUSED], refused);
    cr_assert_eq(counters.values[COUNTER_AUTH_FAILED], failed);
}

Test(auth, every_answer_is_taken_as_documented)
{
    play_all(false);
}

Test(auth, allow_forgives_failures_and_nothing_else)
{
    set("auth_failure=allow");
    play_all(true);
}

Test(auth, a_context_beyond_its_bound_is_a_failure)
{
    static char result[SETTINGS_CONTEXT_BYTES_MAX + 64];
    set("auth_function=f");
    for (int over = 0; over < 2; over++) {
        (void)snprintf(result, sizeof result, "{\"context\": \"%0*u\" }",
                       SETTINGS_CONTEXT_BYTES_MAX - 2 + over, 0u);
        parse("/", "");
        cr_assert_eq(ask(), AUTH_PENDING);
        stub_answer((size_t)over, result);
        cr_assert_eq(decision.http_status, over ? 401u : 0u);
        cr_assert_eq(decision.context.bytes, over ? 0u : (size_t)SETTINGS_CONTEXT_BYTES_MAX);
        free((void *)(uintptr_t)decision.context.data);
    }
}

/* One more than may wait is refused; places come back with answers and with those who give up. */
Test(auth, waiting_sockets_are_bounded)
{
    static struct auth_ticket *tickets[AUTH_PENDING_MAX];
    set("auth_function=f");
    parse("/", "");
    for (unsigned i = 0; i < AUTH_PENDING_MAX; i++) {
        cr_assert_eq(ask(), AUTH_PENDING);
        tickets[i] = ticket;
    }
    cr_assert_eq(ask(), AUTH_REFUSED);
    cr_assert_eq(decision.http_status, 503u);
    cr_assert_null(ticket);
    auth_cancel(tickets[0]);
    cr_assert(stub.calls[0].is_cancelled);
    stub_answer(1, "{}");
    cr_assert_eq(ask(), AUTH_PENDING);
    tickets[0] = ticket;
    cr_assert_eq(ask(), AUTH_PENDING);
    tickets[1] = ticket;
    cr_assert_eq(ask(), AUTH_REFUSED);
    for (unsigned i = 0; i < AUTH_PENDING_MAX; i++)
        auth_cancel(tickets[i]);
    cr_assert_eq(stub.open_count, 0u);
}

Test(auth, what_cannot_be_asked_is_refused_at_once)
{
    set("auth_function=f");
    parse("/", "");
    stub.is_full = true;
    cr_assert_eq(ask(), AUTH_REFUSED);
    cr_assert_eq(decision.http_status, 503u);
    set("auth_failure=allow");
    cr_assert_eq(ask(), AUTH_ACCEPTED);
    cr_assert_null(ticket);
    cr_assert_eq(counters.values[COUNTER_AUTH_FAILED], 2u);
}

/* client/ (libweir) against a gateway played by a thread that speaks shm/wire.h. The thread never
 * asserts: it writes down what it saw, and the test looks after joining it. */
#include "client/weir.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config/settings.h"
#include "shm/wire.h"

enum { SEEN_MAX = 4096 };

/* What the gateway does with a call is in the function's name:
 *   echo        RESULT with the data              fail     RESULT with an error object
 *   nothing     RESULT without result             silent   no answer
 *   drop        closes the connection             junk     sends bytes that are no message
 *   invoke:F    INVOKE of F; its RESULT answers this call */
struct gateway {
    int listener;
    pthread_t thread;
    char path[96];
    const char
        *_Atomic greeting; /* NULL: welcome; "refuse", "junk", "silent"; "held": until it changes */
    _Atomic bool is_held;
    struct buffer in;
    struct buffer out;
    uint64_t invoked_for; /* the call that waits for our INVOKE */
    char seen[SEEN_MAX];  /* a line per frame: TYPE names... */
    bool is_closing;
};

static struct gateway gateway;
static struct weir_client *client;
static char error[WEIR_ERROR_BYTES];

static void gateway_note(const char *type, struct span a, struct span b)
{
    size_t used = strlen(gateway.seen);
    (void)snprintf(gateway.seen + used, sizeof gateway.seen - used, "%s %.*s %.*s\n", type,
                   (int)a.bytes, a.bytes > 0 ? a.data : "", (int)(b.bytes < 200 ? b.bytes : 200),
                   b.bytes > 0 ? b.data : "");
}

static void gateway_append(enum wire_type type, uint64_t id, const struct wire_field *fields)
{
    if (wire_append(&gateway.out, type, id, fields) != WEIR_OK)
        gateway_note("APPEND-FAILED", span_of(NULL, 0), span_of(NULL, 0));
}

static const char *gateway_greeting(void)
{
    const char *greeting = gateway.greeting;
    for (unsigned ms = 0; greeting != NULL && strcmp(greeting, "held") == 0 && ms < 20000; ms++) {
        gateway.is_held = true;
        (void)usleep(1000);
        greeting = gateway.greeting;
    }
    return greeting;
}

static void gateway_greet(void)
{
    const char *greeting = gateway_greeting();
    if (greeting == NULL) {
        struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION), WIRE_SPAN(SPAN_LITERAL("id-1")),
                                      WIRE_SPAN(SPAN_LITERAL("secret-1"))};
        gateway_append(WIRE_WELCOME, 0, fields);
    } else if (strcmp(greeting, "refuse") == 0) {
        struct wire_field fields[] = {WIRE_SPAN(SPAN_LITERAL("full")),
                                      WIRE_SPAN(SPAN_LITERAL("no room for you"))};
        gateway_append(WIRE_REFUSED, 0, fields);
    } else if (strcmp(greeting, "junk") == 0) {
        (void)!buffer_append(&gateway.out, SPAN_LITERAL("HTTP/1.1 400 Bad Request\r\n\r\n"));
    }
}

static void gateway_take_call(const struct wire_message *message)
{
    struct span function = message->fields[2].span;
    struct span data = message->fields[3].span;
    struct wire_field result[] = {WIRE_NIL, WIRE_NIL, WIRE_NIL, WIRE_NIL};
    gateway_note(message->id == 0 ? "VOID" : "CALL", function, data);
    if (span_equal(function, SPAN_LITERAL("drop"))) {
        gateway.is_closing = true;
        return;
    }
    if (span_equal(function, SPAN_LITERAL("junk"))) {
        (void)!buffer_append(&gateway.out, SPAN_LITERAL("\377\377\377\377 this is no frame"));
        return;
    }
    if (function.bytes > 7 && memcmp(function.data, "invoke:", 7) == 0) {
        struct wire_field invoke[] = {WIRE_NUMBER(0),
                                      WIRE_SPAN(span_of(function.data + 7, function.bytes - 7)),
                                      WIRE_SPAN(data),
                                      WIRE_NIL,
                                      WIRE_SPAN(SPAN_LITERAL("trace")),
                                      WIRE_NIL};
        gateway.invoked_for = message->id;
        gateway_append(WIRE_INVOKE, 77, invoke);
        return;
    }
    if (message->id == 0 || span_equal(function, SPAN_LITERAL("silent")))
        return;
    if (span_equal(function, SPAN_LITERAL("fail")))
        result[1] = WIRE_SPAN(SPAN_LITERAL(
            "{\"code\":\"went_wrong\",\"message\":\"so \\u00e4rgerlich\",\"stacktrace\":\"x\"}"));
    else if (!span_equal(function, SPAN_LITERAL("nothing")))
        result[0] = WIRE_SPAN(data);
    gateway_append(WIRE_RESULT, message->id, result);
}

static void gateway_take(const struct wire_message *message)
{
    switch (message->type) {
    case WIRE_HELLO:
        gateway_note("HELLO", message->fields[1].span, message->fields[2].span);
        if (message->fields[4].span.data != NULL)
            gateway_note("REATTACH", message->fields[4].span, message->fields[5].span);
        gateway_greet();
        break;
    case WIRE_CALL:
        gateway_take_call(message);
        break;
    case WIRE_FUNCTION_REGISTER: {
        gateway_note("REGISTER", message->fields[1].span, message->fields[2].span);
        struct wire_field fields[] = {WIRE_NUMBER(0),
                                      WIRE_SPAN(SPAN_LITERAL("FUNCTION_NAMESPACE_CONFLICT")),
                                      WIRE_NIL, message->fields[2], WIRE_NIL};
        if (span_equal(message->fields[2].span, SPAN_LITERAL("taken")))
            gateway_append(WIRE_FUNCTION_REJECTED, 0, fields);
        break;
    }
    case WIRE_FUNCTION_UNREGISTER:
        gateway_note("UNREGISTER", message->fields[1].span, message->fields[2].span);
        break;
    case WIRE_TRIGGER_REGISTER:
        gateway_note("BIND", message->fields[2].span, message->fields[3].span);
        if (span_equal(message->fields[4].span, SPAN_LITERAL("null"))) {
            const struct wire_field failed[] = {
                WIRE_NUMBER(0), message->fields[1], message->fields[2], message->fields[3],
                WIRE_SPAN(SPAN_LITERAL("{\"code\":\"trigger_registration_failed\","
                                       "\"message\":\"stream_name is required\"}"))};
            gateway_append(WIRE_TRIGGER_RESULT, 0, failed);
        }
        break;
    case WIRE_TRIGGER_UNREGISTER:
        gateway_note("UNBIND", SPAN_LITERAL(""), SPAN_LITERAL(""));
        break;
    case WIRE_TRIGGER_TYPE_REGISTER: {
        gateway_note("PROVIDE", message->fields[1].span, message->fields[2].span);
        const struct wire_field bind[] = {WIRE_NUMBER(0),
                                          WIRE_SPAN(SPAN_LITERAL("trigger-1")),
                                          message->fields[2],
                                          WIRE_SPAN(SPAN_LITERAL("app::fired")),
                                          WIRE_SPAN(SPAN_LITERAL("{\"every\":5}")),
                                          WIRE_NIL,
                                          WIRE_NIL,
                                          WIRE_NIL};
        gateway_append(WIRE_TRIGGER_BIND, 0, bind);
        const struct wire_field unbind[] = {WIRE_NUMBER(0), WIRE_SPAN(SPAN_LITERAL("trigger-1")),
                                            message->fields[2]};
        gateway_append(WIRE_TRIGGER_UNBIND, 0, unbind);
        break;
    }
    case WIRE_TRIGGER_TYPE_UNREGISTER:
        gateway_note("WITHDRAW", message->fields[1].span, message->fields[2].span);
        break;
    case WIRE_TRIGGER_RESULT:
        gateway_note("BOUND", message->fields[1].span, message->fields[4].span);
        break;
    case WIRE_RESULT:
        gateway_note(message->id == 77 ? "RESULT" : "RESULT-OF-UNKNOWN", message->fields[0].span,
                     message->fields[1].span);
        gateway_append(WIRE_RESULT, gateway.invoked_for, message->fields);
        break;
    default:
        gateway_note("UNEXPECTED", span_of(NULL, 0), span_of(NULL, 0));
        break;
    }
}

static void gateway_send(int fd)
{
    size_t sent = 0;
    while (sent < gateway.out.bytes) {
        /* In small pieces, so that the client sees frames cut anywhere. */
        size_t piece = gateway.out.bytes - sent < 4099 ? gateway.out.bytes - sent : 4099;
        ssize_t bytes = send(fd, gateway.out.data + sent, piece, MSG_NOSIGNAL);
        if (bytes <= 0)
            break;
        sent += (size_t)bytes;
    }
    buffer_clear(&gateway.out);
}

static void gateway_serve(int fd)
{
    struct wire_reader *reader = wire_reader_open();
    gateway.is_closing = false;
    buffer_clear(&gateway.in);
    buffer_clear(&gateway.out);
    while (fd >= 0 && !gateway.is_closing && buffer_reserve(&gateway.in, 65536) == WEIR_OK) {
        ssize_t bytes = recv(fd, gateway.in.data + gateway.in.bytes, 65536, 0);
        if (bytes <= 0)
            break;
        gateway.in.bytes += (size_t)bytes;
        struct wire_message message;
        size_t frame_bytes;
        while (wire_read(reader, buffer_span(&gateway.in), &message, &frame_bytes) == WEIR_OK) {
            gateway_take(&message);
            buffer_consume(&gateway.in, frame_bytes);
        }
        gateway_send(fd);
    }
    (void)close(fd);
    wire_reader_close(reader);
}

static void *gateway_run(void *context)
{
    (void)context;
    int fd;
    while ((fd = accept(gateway.listener, NULL, NULL)) >= 0)
        gateway_serve(fd);
    return NULL;
}

static void start(void)
{
    memset(&gateway, 0, sizeof gateway);
    buffer_init(&gateway.in, 64u << 20);
    buffer_init(&gateway.out, 64u << 20);
    client = NULL;
    (void)snprintf(gateway.path, sizeof gateway.path, "/tmp/weir-client-test-%ld.sock",
                   (long)getpid());
    (void)unlink(gateway.path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, gateway.path, strlen(gateway.path) + 1);
    gateway.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(gateway.listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(gateway.listener, 4), 0);
    cr_assert_eq(pthread_create(&gateway.thread, NULL, gateway_run, NULL), 0);
}

/* Close the client and wait for the gateway, so that `seen` is complete. */
static void finish(void)
{
    if (gateway.listener < 0)
        return;
    weir_client_close(client);
    client = NULL;
    (void)shutdown(gateway.listener, SHUT_RDWR);
    (void)pthread_join(gateway.thread, NULL);
    (void)close(gateway.listener);
    gateway.listener = -1;
    (void)unlink(gateway.path);
}

static void stop(void)
{
    finish();
    buffer_fini(&gateway.in);
    buffer_fini(&gateway.out);
}

TestSuite(client, .init = start, .fini = stop, .timeout = HANG_SECONDS);

static int open_client(struct weir_client_options options)
{
    options.socket_path = gateway.path;
    /* By default it is as long as a process may stand still. */
    if (options.open_timeout_ms == 0)
        options.open_timeout_ms = 120000;
    return weir_client_open(&client, &options, error, sizeof error);
}

/* ---- outcomes ---- */

struct outcome {
    bool is_done;
    unsigned count;
    char json[128];
    bool has_json;
    char code[64];
    char message[256];
};

static void keep_outcome(void *context, const struct weir_result *result)
{
    struct outcome *outcome = context;
    outcome->is_done = true;
    outcome->count++;
    outcome->has_json = result->json.data != NULL;
    size_t bytes = result->json.bytes < 127 ? result->json.bytes : 127;
    if (outcome->has_json)
        memcpy(outcome->json, result->json.data, bytes);
    if (result->error_code != NULL) {
        (void)snprintf(outcome->code, sizeof outcome->code, "%s", result->error_code);
        (void)snprintf(outcome->message, sizeof outcome->message, "%s", result->error_message);
    }
}

static int start_call(const char *function_id, const char *json, unsigned timeout_ms,
                      struct outcome *outcome)
{
    const struct weir_call call = {
        .function_id = function_id, .json = weir_text(json), .timeout_ms = timeout_ms};
    return weir_client_call(client, &call, keep_outcome, outcome);
}

static int call_void(const char *function_id, const char *json)
{
    const struct weir_call call = {.function_id = function_id, .json = weir_text(json)};
    return weir_client_call(client, &call, NULL, NULL);
}

static int offer(const char *function_id, const char *description, weir_handler *handler,
                 void *context)
{
    const struct weir_function function = {
        .id = function_id, .description = description, .handler = handler, .context = context};
    return weir_client_register(client, &function);
}

static struct outcome call(const char *function_id, const char *json, unsigned timeout_ms)
{
    struct outcome outcome = {.is_done = false};
    cr_assert_eq(start_call(function_id, json, timeout_ms, &outcome), 0, "%s",
                 weir_client_error(client));
    (void)weir_client_run_until(client, &outcome.is_done, 20000);
    cr_assert(outcome.is_done);
    return outcome;
}

Test(client, a_welcome_opens_and_says_who_we_are)
{
    cr_assert_eq(open_client((struct weir_client_options){.name = "painter"}), 0, "%s", error);
    cr_assert_str_eq(weir_client_id(client), "id-1");
    cr_assert_geq(weir_client_fd(client), 0);
    cr_assert_eq(weir_client_events(client), POLLIN);
    cr_assert_eq(weir_client_timeout_ms(client), -1);
    finish();
    cr_assert_not_null(strstr(gateway.seen, "HELLO painter {\"runtime\":\"c\""), "%s",
                       gateway.seen);
}

Test(client, openings_that_fail_say_why)
{
    gateway.greeting = "refuse";
    cr_assert_eq(open_client((struct weir_client_options){0}), -ECONNREFUSED);
    cr_assert_not_null(strstr(error, "full: no room for you"), "%s", error);
    cr_assert_null(client);
    stop();
    start();
    gateway.greeting = "junk";
    cr_assert_lt(open_client((struct weir_client_options){0}), 0);
    cr_assert_not_null(strstr(error, "no message"), "%s", error);
    stop();
    start();
    gateway.greeting = "silent";
    cr_assert_eq(open_client((struct weir_client_options){.open_timeout_ms = 50}), -ETIMEDOUT);
    cr_assert_not_null(strstr(error, "no welcome"), "%s", error);
    struct weir_client_options options = {.socket_path = "/tmp/weir-nobody-listens-here.sock"};
    cr_assert_eq(weir_client_open(&client, &options, error, sizeof error), -ENOENT);
    cr_assert_not_null(strstr(error, "is `weir serve` running?"), "%s", error);
    char path[200];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    options.socket_path = path;
    cr_assert_eq(weir_client_open(&client, &options, NULL, 0), -ENAMETOOLONG);
    options = (struct weir_client_options){.socket_path = gateway.path, .metadata_json = "[1]"};
    cr_assert_eq(weir_client_open(&client, &options, error, sizeof error), -EINVAL);
}

Test(client, calls_bring_results_nothing_and_errors)
{
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    struct outcome outcome = call("echo", "{\"a\":[1,2]}", 0);
    cr_assert_str_eq(outcome.json, "{\"a\":[1,2]}");
    cr_assert_str_eq(outcome.code, "");
    outcome = call("echo", NULL, 0);
    cr_assert_str_eq(outcome.json, "null");
    outcome = call("nothing", "1", 0);
    cr_assert_not(outcome.has_json);
    cr_assert_str_eq(outcome.code, "");
    outcome = call("fail", "1", 0);
    cr_assert_not(outcome.has_json);
    cr_assert_str_eq(outcome.code, "went_wrong");
    cr_assert_str_eq(outcome.message, "so \u00e4rgerlich");
}

Test(client, a_call_ends_at_its_time_limit_once_and_its_slot_is_safe)
{
    cr_assert_eq(open_client((struct weir_client_options){.calls_max = 1}), 0, "%s", error);
    for (int round = 0; round < 3; round++) {
        struct outcome outcome = call("silent", "1", 20);
        cr_assert_str_eq(outcome.code, "timeout");
        cr_assert_eq(outcome.count, 1u);
        outcome = call("echo", "2", 0);
        cr_assert_str_eq(outcome.json, "2");
    }
    struct outcome first = {.is_done = false};
    cr_assert_eq(start_call("silent", "1", 0, &first), 0);
    cr_assert_eq(start_call("echo", "1", 0, &first), -ENOBUFS);
    cr_assert_geq(weir_client_timeout_ms(client), 0);
    weir_client_close(client);
    client = NULL;
    cr_assert_str_eq(first.code, "closed");
    cr_assert_eq(first.count, 1u);
}

Test(client, bad_input_is_refused_before_it_is_sent)
{
    cr_assert_eq(open_client((struct weir_client_options){.output_bytes_max = 4096}), 0, "%s",
                 error);
    struct outcome outcome = {.is_done = false};
    cr_assert_eq(start_call("echo", "{\"a\":}", 0, &outcome), -EINVAL);
    cr_assert_not_null(strstr(weir_client_error(client), "not JSON"), "%s",
                       weir_client_error(client));
    cr_assert_eq(start_call("ec\xffho", "1", 0, &outcome), -EINVAL);
    cr_assert_eq(call_void("echo", ""), -EINVAL);
    cr_assert_eq(weir_client_set(client, "s", "g", "\xc0", weir_text("1"), NULL, NULL), -EINVAL);
    cr_assert_eq(weir_client_answer(client, 1, weir_text("nul")), -EINVAL);
    cr_assert_eq(offer("f", NULL, NULL, NULL), -EINVAL);
    char *name = malloc(NAME_BYTES_MAX + 2);
    cr_assert_not_null(name);
    memset(name, 'n', NAME_BYTES_MAX + 1);
    name[NAME_BYTES_MAX + 1] = '\0';
    cr_assert_eq(call_void(name, "1"), -EINVAL);
    free(name);
    /* Nobody processes: the output fills up to its limit, then everything is refused and nothing is
     * lost. */
    unsigned taken = 0;
    int result;
    while ((result = call_void("echo", "\"0123456789\"")) == 0)
        taken++;
    cr_assert_eq(result, -ENOBUFS);
    cr_assert_gt(taken, 20u);
    cr_assert_eq(weir_client_events(client), POLLIN | POLLOUT);
    cr_assert_eq(weir_client_flush(client, 20000), 0, "%s", weir_client_error(client));
    struct outcome last = call("echo", "1", 0);
    cr_assert_str_eq(last.json, "1");
    finish();
    unsigned seen = 0;
    for (const char *at = gateway.seen; (at = strstr(at, "VOID echo")) != NULL; at++)
        seen++;
    cr_assert_eq(seen, taken);
}

Test(client, set_builds_the_builtin_call)
{
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    struct outcome outcome = {.is_done = false};
    cr_assert_eq(
        weir_client_set(client, "s\"1", "g\n", "", weir_text("{\"x\":1}"), keep_outcome, &outcome),
        0);
    cr_assert_eq(weir_client_set(client, "s", "g", "i", weir_text("2"), NULL, NULL), 0);
    cr_assert_eq(weir_client_run_until(client, &outcome.is_done, 20000), 0);
    cr_assert_str_eq(outcome.json,
                     "{\"stream_name\":\"s\\\"1\",\"group_id\":\"g\\n\",\"item_id\":\"\","
                     "\"data\":{\"x\":1}}");
    cr_assert_eq(weir_client_flush(client, 20000), 0);
    (void)call("echo", "1", 0);
    finish();
    cr_assert_not_null(strstr(gateway.seen,
                              "VOID stream::set {\"stream_name\":\"s\",\"group_id\":\"g\","
                              "\"item_id\":\"i\",\"data\":2}"),
                       "%s", gateway.seen);
}

/* ---- functions ---- */

static uint64_t later_id;

static void answer_now(void *context, struct weir_client *own,
                       const struct weir_invocation *invocation)
{
    unsigned *count = context;
    *count += 1;
    if (strcmp(invocation->function_id, "now") == 0 && invocation->traceparent.bytes == 5)
        (void)weir_client_answer(own, invocation->id, invocation->json);
}

static void answer_later(void *context, struct weir_client *own,
                         const struct weir_invocation *invocation)
{
    (void)own;
    later_id = invocation->id;
    *(bool *)context = true;
}

static void answer_error(void *context, struct weir_client *own,
                         const struct weir_invocation *invocation)
{
    (void)context;
    /* The handler takes itself away first; what it was given must stay usable. */
    (void)weir_client_unregister(own, invocation->function_id);
    (void)weir_client_answer_error(own, invocation->id, "no", invocation->function_id);
    /* From inside a callback nothing may be processed. */
    if (weir_client_process(own) != -EDEADLK)
        abort();
}

Test(client, functions_answer_now_later_or_with_an_error)
{
    unsigned count = 0;
    bool is_asked = false;
    cr_assert_eq(open_client((struct weir_client_options){.name_space = "orders"}), 0, "%s", error);
    cr_assert_eq(offer("now", "says it again", answer_now, &count), 0);
    cr_assert_eq(offer("later", NULL, answer_later, &is_asked), 0);
    cr_assert_eq(offer("error", NULL, answer_error, NULL), 0);
    struct outcome outcome = call("invoke:now", "[7]", 0);
    cr_assert_str_eq(outcome.json, "[7]");
    cr_assert_eq(count, 1u);

    struct outcome late = {.is_done = false};
    cr_assert_eq(start_call("invoke:later", "1", 0, &late), 0);
    cr_assert_eq(weir_client_run_until(client, &is_asked, 20000), 0);
    cr_assert_not(late.is_done);
    cr_assert_eq(weir_client_answer(client, later_id, weir_text("\"at last\"")), 0);
    cr_assert_eq(weir_client_run_until(client, &late.is_done, 20000), 0);
    cr_assert_str_eq(late.json, "\"at last\"");

    outcome = call("invoke:error", "1", 0);
    cr_assert_str_eq(outcome.code, "no");
    cr_assert_str_eq(outcome.message, "error");
    outcome = call("invoke:error", "1", 0); /* it has unregistered itself */
    cr_assert_str_eq(outcome.code, "function_not_found");
    finish();
    cr_assert_not_null(strstr(gateway.seen, "REGISTER orders now"), "%s", gateway.seen);
    cr_assert_not_null(strstr(gateway.seen, "UNREGISTER orders error"), "%s", gateway.seen);
}

struct rejection {
    bool is_done;
    char text[128];
};

static void keep_rejection(void *context, const char *function_id, const char *code)
{
    struct rejection *rejection = context;
    rejection->is_done = true;
    (void)snprintf(rejection->text, sizeof rejection->text, "%s %s", function_id, code);
}

Test(client, a_refused_registration_is_reported)
{
    struct rejection rejection = {.is_done = false};
    unsigned count = 0;
    cr_assert_eq(open_client((struct weir_client_options){.on_rejected = keep_rejection,
                                                          .context = &rejection}),
                 0, "%s", error);
    cr_assert_eq(offer("taken", NULL, answer_now, &count), 0);
    cr_assert_eq(weir_client_run_until(client, &rejection.is_done, 20000), 0);
    cr_assert_str_eq(rejection.text, "taken FUNCTION_NAMESPACE_CONFLICT");
}

/* ---- triggers ---- */

static void keep_bind_failure(void *context, const char *trigger_id, const char *code,
                              const char *message)
{
    struct rejection *failure = context;
    failure->is_done = true;
    (void)snprintf(failure->text, sizeof failure->text, "%zu %s %s", strlen(trigger_id), code,
                   message);
}

Test(client, a_trigger_that_cannot_be_bound_is_reported)
{
    struct rejection failure = {.is_done = false};
    cr_assert_eq(open_client((struct weir_client_options){.on_bind_failed = keep_bind_failure,
                                                          .context = &failure}),
                 0, "%s", error);
    const struct weir_trigger bad = {
        .type = "stream", .function_id = "f", .config = weir_text("null")};
    const struct weir_trigger worse = {
        .type = "stream", .function_id = "f", .config = weir_text("{")};
    cr_assert_eq(weir_client_bind(client, &bad, NULL), 0);
    cr_assert_eq(weir_client_run_until(client, &failure.is_done, 20000), 0);
    cr_assert_str_eq(failure.text, "36 trigger_registration_failed stream_name is required");
    cr_assert_eq(weir_client_bind(client, &worse, NULL), -EINVAL);
    cr_assert_eq(weir_client_unbind(client, "never bound"), 0);
}

static const char *accept_binding(void *context, const struct weir_binding *binding)
{
    struct rejection *seen = context;
    if (seen != NULL)
        (void)snprintf(seen->text, sizeof seen->text, "%s %s %s %.*s", binding->id,
                       binding->function_id, binding->name_space, (int)binding->config.bytes,
                       binding->config.data);
    return NULL;
}

static const char *refuse_binding(void *context, const struct weir_binding *binding)
{
    (void)context;
    (void)binding;
    return "no such clock";
}

static void note_unbinding(void *context, const char *id)
{
    struct rejection *seen = context;
    if (seen != NULL && strcmp(id, "trigger-1") == 0)
        seen->is_done = true;
}

Test(client, a_provider_is_told_of_bindings_and_may_refuse)
{
    struct rejection seen = {.is_done = false};
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    struct weir_trigger_type ticks = {
        .id = "ticks", .on_bind = accept_binding, .on_unbind = note_unbinding, .context = &seen};
    cr_assert_eq(weir_client_provide(client, &ticks), 0);
    cr_assert_eq(weir_client_run_until(client, &seen.is_done, 20000), 0);
    cr_assert_str_eq(seen.text, "trigger-1 app::fired default {\"every\":5}");
    seen.is_done = false;
    ticks.on_bind = refuse_binding;
    cr_assert_eq(weir_client_provide(client, &ticks), 0);
    cr_assert_eq(weir_client_run_until(client, &seen.is_done, 20000), 0);
    cr_assert_eq(weir_client_withdraw(client, "ticks"), 0);
    (void)call("echo", "1", 0);
    finish();
    cr_assert_not_null(strstr(gateway.seen, "BOUND trigger-1 \n"), "%s", gateway.seen);
    cr_assert_not_null(strstr(gateway.seen, "\"message\":\"no such clock\""), "%s", gateway.seen);
    cr_assert_not_null(strstr(gateway.seen, "WITHDRAW"), "%s", gateway.seen);
}

/* ---- reading JSON ---- */

Test(client, members_and_strings_of_json_can_be_read)
{
    char out[8];
    const struct weir_text object = weir_text("{\"a\":\"x\\u00e4\",\"b\":[1],\"a b\":null}");
    cr_assert_eq(weir_json_string(weir_json_member(object, "a"), out, sizeof out), 3);
    cr_assert_str_eq(out, "x\u00e4");
    cr_assert_eq(weir_json_member(object, "b").bytes, 3u);
    cr_assert_null(weir_json_member(object, "c").data);
    cr_assert_null(weir_json_member(weir_text("[1]"), "c").data);
    cr_assert_null(weir_json_member((struct weir_text){NULL, 0}, "c").data);
    cr_assert_eq(weir_json_string(weir_json_member(object, "b"), out, sizeof out), -EINVAL);
    cr_assert_eq(weir_json_string(weir_text("\"12345678\""), out, sizeof out), -ENOBUFS);
    cr_assert_eq(weir_json_string(weir_text("\"1234567\""), out, sizeof out), 7);
    cr_assert_eq(weir_json_string(weir_text("\"a\\u0000b\""), out, sizeof out), -EINVAL);
}

/* ---- losing the connection ---- */

static void count_loss(void *context, const char *reason)
{
    if (*reason != '\0')
        *(unsigned *)context += 1;
}

static void lose_by(const char *function_id, const char *reason)
{
    unsigned losses = 0;
    cr_assert_eq(open_client((struct weir_client_options){
                     .on_disconnect = count_loss, .context = &losses, .ends_on_loss = true}),
                 0, "%s", error);
    struct outcome waiting = {.is_done = false};
    cr_assert_eq(start_call("silent", "1", 0, &waiting), 0);
    cr_assert_eq(call_void(function_id, "1"), 0);
    int result = weir_client_run_until(client, &waiting.is_done, 20000);
    cr_assert_eq(result, 0);
    cr_assert_str_eq(waiting.code, "connection_lost");
    cr_assert_not_null(strstr(waiting.message, reason), "%s", waiting.message);
    cr_assert_eq(waiting.count, 1u);
    cr_assert_eq(losses, 1u);
    cr_assert_eq(weir_client_fd(client), -1);
    cr_assert_eq(weir_client_process(client), -ENOTCONN);
    cr_assert_eq(start_call("echo", "1", 0, &waiting), -ENOTCONN);
    cr_assert_eq(losses, 1u);
    cr_assert_eq(waiting.count, 1u);
}

Test(client, a_lost_connection_ends_calls_and_is_reported_once)
{
    lose_by("drop", "closed the connection");
}

Test(client, bytes_that_are_no_message_end_the_connection)
{
    lose_by("junk", "no message");
}

static void count_connection(void *context)
{
    *(unsigned *)context += 1;
}

/* After a loss the client comes back by itself, retires its old connection, says what it had
 * registered, in order, and then what was called meanwhile. */
Test(client, a_lost_connection_comes_back_with_everything_registered)
{
    static const char *const order[] = {"REATTACH id-1 secret-1", "PROVIDE  ticks",
                                        "REGISTER  kept",         "BIND stream kept",
                                        "CALL echo \"queued\"",   "CALL stream::set"};
    unsigned connections = 0, count = 0;
    cr_assert_eq(open_client((struct weir_client_options){.on_connect = count_connection,
                                                          .context = &connections}),
                 0, "%s", error);
    char gone_id[WEIR_TRIGGER_ID_BYTES];
    const struct weir_trigger kept = {
        .type = "stream", .function_id = "kept", .config = weir_text("{\"stream_name\":\"s\"}")};
    const struct weir_trigger gone = {
        .type = "stream", .function_id = "gone", .config = weir_text("{}")};
    cr_assert_eq(offer("kept", NULL, answer_now, &count), 0);
    cr_assert_eq(offer("gone", NULL, answer_now, &count), 0);
    cr_assert_eq(weir_client_bind(client, &gone, gone_id), 0);
    cr_assert_eq(weir_client_bind(client, &kept, NULL), 0);
    const struct weir_trigger_type ticks = {
        .id = "ticks", .on_bind = accept_binding, .on_unbind = note_unbinding};
    cr_assert_eq(weir_client_provide(client, &ticks), 0);
    cr_assert_eq(weir_client_unregister(client, "gone"), 0);
    cr_assert_eq(weir_client_unbind(client, gone_id), 0);

    struct outcome lost = {.is_done = false};
    cr_assert_eq(start_call("drop", "1", 0, &lost), 0);
    cr_assert_eq(weir_client_run_until(client, &lost.is_done, 20000), 0);
    cr_assert_str_eq(lost.code, "connection_lost");
    cr_assert_not(weir_client_is_connected(client));
    cr_assert_eq(weir_client_fd(client), -1);
    cr_assert_geq(weir_client_timeout_ms(client), 0);

    struct outcome first = {.is_done = false}, second = {.is_done = false};
    cr_assert_eq(start_call("echo", "\"queued\"", 0, &first), 0);
    cr_assert_eq(weir_client_set(client, "s", "g", "i", weir_text("1"), keep_outcome, &second), 0);
    cr_assert_eq(weir_client_run_until(client, &second.is_done, 20000), 0);
    cr_assert_str_eq(first.json, "\"queued\"");
    cr_assert_eq(connections, 1u);
    cr_assert(weir_client_is_connected(client));
    finish();
    const char *at = strstr(gateway.seen, "REATTACH");
    cr_assert_not_null(at);
    cr_assert_null(strstr(at, "gone"), "%s", at);
    for (unsigned i = 0; i < sizeof order / sizeof order[0]; i++) {
        at = strstr(at, order[i]);
        cr_assert_not_null(at, "%s is missing or too early in:\n%s", order[i], gateway.seen);
    }
}

/* A call made while the server is away keeps its own time limit. */
Test(client, a_call_made_while_away_ends_at_its_time_limit)
{
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    gateway.greeting = "silent"; /* from now on nobody is welcomed */
    struct outcome lost = {.is_done = false}, late = {.is_done = false};
    cr_assert_eq(start_call("drop", "1", 0, &lost), 0);
    cr_assert_eq(weir_client_run_until(client, &lost.is_done, 20000), 0);
    cr_assert_eq(start_call("echo", "1", 300, &late), 0);
    cr_assert_eq(weir_client_run_until(client, &late.is_done, 20000), 0);
    cr_assert_str_eq(late.code, "timeout");
}

/* ---- calls made from inside callbacks, and what waits for a connection ---- */

struct repeater {
    struct outcome outcomes[3];
    unsigned started;
    uint32_t timeout_ms;
};

/* Two calls for one that is lost: the second takes a slot that was free already. */
static void call_twice_again(void *context, const struct weir_result *result)
{
    struct repeater *repeater = context;
    if (strcmp(result->error_code, "connection_lost") != 0)
        abort();
    for (; repeater->started < 2; repeater->started++)
        if (start_call("echo", "\"again\"", repeater->timeout_ms,
                       &repeater->outcomes[repeater->started]) != 0)
            abort();
}

/* What a callback of a lost call starts is not lost with it, and has a time limit of its own. */
Test(client, calls_started_by_a_lost_calls_callback_are_calls_like_any_other)
{
    struct repeater repeater = {.timeout_ms = 20000};
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    const struct weir_call lost = {.function_id = "drop", .json = weir_text("1")};
    cr_assert_eq(weir_client_call(client, &lost, call_twice_again, &repeater), 0);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(weir_client_run_until(client, &repeater.outcomes[i].is_done, 20000), 0);
        cr_assert_str_eq(repeater.outcomes[i].code, "");
        cr_assert_str_eq(repeater.outcomes[i].json, "\"again\"");
    }
    gateway.greeting = "silent";
    repeater = (struct repeater){.timeout_ms = 400};
    cr_assert_eq(weir_client_call(client, &lost, call_twice_again, &repeater), 0);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(weir_client_run_until(client, &repeater.outcomes[i].is_done, 20000), 0);
        cr_assert_str_eq(repeater.outcomes[i].code, "timeout");
        cr_assert_eq(repeater.outcomes[i].count, 1u);
    }
}

static void lose_connection(void)
{
    struct outcome lost = {.is_done = false};
    cr_assert_eq(start_call("drop", "1", 0, &lost), 0);
    cr_assert_eq(weir_client_run_until(client, &lost.is_done, 20000), 0);
    cr_assert_not(weir_client_is_connected(client));
}

/* A call that ended while it waited for a connection is not carried out afterwards, and gives its
 * place back. */
Test(client, a_call_that_ended_before_it_was_sent_is_never_sent)
{
    static char large[2048];
    memset(large, 'x', sizeof large - 1);
    large[0] = large[sizeof large - 2] = '"';
    cr_assert_eq(open_client((struct weir_client_options){.output_bytes_max = 4096}), 0, "%s",
                 error);
    lose_connection();
    gateway.greeting =
        "held"; /* or the connection might be back before a call of a millisecond has ended */
    struct outcome late = {.is_done = false}, kept = {.is_done = false};
    cr_assert_eq(call_void("echo", "\"first\""), 0);
    cr_assert_eq(start_call("stale", large, 20, &late), 0);
    cr_assert_eq(start_call("echo", large, 0, &kept), -ENOBUFS, "the queue is full");
    cr_assert_eq(weir_client_run_until(client, &late.is_done, 20000), 0);
    cr_assert_str_eq(late.code, "timeout");
    cr_assert_eq(start_call("echo", large, 0, &kept), 0, "%s", weir_client_error(client));
    late.is_done = false;
    cr_assert_eq(start_call("stale", "1", 1, &late), 0);
    cr_assert_eq(weir_client_run_until(client, &late.is_done, 20000), 0);
    gateway.greeting = NULL;
    cr_assert_eq(weir_client_run_until(client, &kept.is_done, 20000), 0);
    cr_assert_str_eq(kept.code, "");
    finish();
    cr_assert_null(strstr(gateway.seen, "stale"), "%s", gateway.seen);
    cr_assert_not_null(strstr(gateway.seen, "VOID echo \"first\""), "%s", gateway.seen);
}

/* Its end has not been told yet when the welcome is read: the program was busy with something else. */
Test(client, a_call_that_is_late_when_the_welcome_comes_is_not_sent)
{
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    lose_connection();
    gateway.greeting = "held";
    struct outcome late = {.is_done = false};
    cr_assert_eq(start_call("stale", "1", 2000, &late), 0);
    for (unsigned ms = 0; !gateway.is_held && !late.is_done && ms < 20000; ms++) {
        (void)weir_client_process(client);
        (void)usleep(1000);
    }
    (void)usleep(2100000);
    gateway.greeting = NULL;
    (void)usleep(100000);
    cr_assert_eq(weir_client_run_until(client, &late.is_done, 20000), 0);
    cr_assert_str_eq(late.code, "timeout");
    finish();
    cr_assert_null(strstr(gateway.seen, "stale"), "%s", gateway.seen);
}

/* A full queue and registrations together are more than output_bytes_max: all is said all the same. */
Test(client, what_is_said_again_may_be_more_than_the_limit_of_the_output)
{
    unsigned count = 0, queued = 0, seen = 0;
    cr_assert_eq(open_client((struct weir_client_options){.output_bytes_max = 1024}), 0, "%s",
                 error);
    for (unsigned i = 0; i < 30; i++) {
        char id[64];
        (void)snprintf(id, sizeof id, "app::function-number-%u", i);
        cr_assert_eq(offer(id, NULL, answer_now, &count), 0);
        cr_assert_eq(weir_client_flush(client, 20000), 0);
    }
    lose_connection();
    while (call_void("echo", "\"queued\"") == 0)
        queued++;
    cr_assert_gt(queued, 5u);
    struct outcome last = call("echo", "\"last\"", 0);
    cr_assert_str_eq(last.json, "\"last\"");
    finish();
    for (const char *at = gateway.seen; (at = strstr(at, "VOID echo \"queued\"")) != NULL; at++)
        seen++;
    cr_assert_eq(seen, queued);
}

/* Many functions: found by id, replaced and taken away anywhere, said again in order. */
Test(client, many_functions_are_found_replaced_and_taken_away)
{
    enum { FUNCTIONS = 3000 };
    unsigned counts[2] = {0, 0};
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    char id[32];
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < FUNCTIONS; i++) {
            (void)snprintf(id, sizeof id, "f%u", i);
            cr_assert_eq(offer(id, NULL, answer_error, &counts[round]), 0);
        }
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        (void)snprintf(id, sizeof id, "f%u", (i * 7) % FUNCTIONS);
        if ((i * 7) % FUNCTIONS % 1000 != 0)
            cr_assert_eq(weir_client_unregister(client, id), 0);
    }
    cr_assert_eq(offer("now", NULL, answer_now, &counts[0]), 0);
    cr_assert_eq(weir_client_unregister(client, "f2000"), 0);
    cr_assert_eq(weir_client_unregister(client, "f2000"), 0);
    struct outcome outcome = call("invoke:f17", "1", 0);
    cr_assert_str_eq(outcome.code, "function_not_found");
    outcome = call("invoke:f2000", "1", 0);
    cr_assert_str_eq(outcome.code, "function_not_found");
    lose_connection();
    memset(gateway.seen, 0, sizeof gateway.seen);
    outcome = call("invoke:now", "[1]", 0);
    cr_assert_str_eq(outcome.json, "[1]");
    outcome = call("invoke:f1000", "1", 0);
    cr_assert_str_eq(outcome.code, "no");
    finish();
    const char *first = strstr(gateway.seen, "REGISTER  f0\n");
    const char *second = first == NULL ? NULL : strstr(first, "REGISTER  f1000\n");
    cr_assert_not_null(second == NULL ? NULL : strstr(second, "REGISTER  now\n"), "%s",
                       gateway.seen);
    cr_assert_null(strstr(gateway.seen, "REGISTER  f2000"), "%s", gateway.seen);
}

/* run_until() with no time to wait still makes progress, so it can be a poll. */
Test(client, running_without_waiting_gets_on)
{
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    struct outcome outcome = {.is_done = false};
    cr_assert_eq(start_call("echo", "1", 0, &outcome), 0);
    for (unsigned i = 0; i < 20000 && !outcome.is_done; i++) {
        int result = weir_client_run_until(client, &outcome.is_done, 0);
        cr_assert(result == 0 || result == -ETIMEDOUT);
        (void)usleep(1000);
    }
    cr_assert_str_eq(outcome.json, "1");
}

/* Values larger than any socket buffer cross in both directions, through frames cut anywhere. */
Test(client, large_values_cross_whole)
{
    enum { BYTES = 3 * 1024 * 1024 };
    cr_assert_eq(open_client((struct weir_client_options){0}), 0, "%s", error);
    char *json = malloc(BYTES + 1);
    cr_assert_not_null(json);
    memset(json, 'v', BYTES);
    json[0] = json[BYTES - 1] = '"';
    json[BYTES] = '\0';
    struct outcome outcome = call("echo", json, 0);
    cr_assert(outcome.has_json);
    cr_assert_eq(strncmp(outcome.json, json, 127), 0);
    free(json);
}

/* libweir looks for the server where the server's own default puts it. */
Test(client, default_path_is_the_servers_default)
{
    struct settings settings;
    struct weir_error problem;
    char directory[] = "/tmp/weir-client-XXXXXX";
    cr_assert_not_null(mkdtemp(directory));
    (void)unsetenv("WEIR_SOCKET");
    for (int round = 0; round < 2; round++) {
        if (round == 0)
            (void)setenv("XDG_RUNTIME_DIR", directory, 1);
        else
            (void)setenv("XDG_RUNTIME_DIR", "not/absolute", 1);
        settings_init(&settings);
        cr_assert_eq(settings_resolve(&settings, &problem), WEIR_OK, "%s", problem.text);
        if (round == 1 && access(settings.run_dir, F_OK) == 0)
            break; /* a server may be running there */
        cr_assert_lt(weir_client_open(&client, NULL, error, sizeof error), 0);
        char expected[SETTINGS_TEXT_BYTES + 16];
        (void)snprintf(expected, sizeof expected, "%s/weir.sock", settings.run_dir);
        cr_assert_not_null(strstr(error, expected), "wanted %s in: %s", expected, error);
    }
    (void)rmdir(directory);
    (void)setenv("WEIR_SOCKET", gateway.path, 1);
    cr_assert_eq(weir_client_open(&client, NULL, error, sizeof error), 0, "%s", error);
}

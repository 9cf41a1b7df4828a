/* libweir's side of the unix socket: frames in, frames for the broker, running triggers and frames
 * out. */
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "gateway/local.h"
#include "tests/worker_world.h"

static struct {
    uv_loop_t loop;
    struct local *local;
    char directory[64], path[96];
    int fd;
    struct wire_reader *reader;
    struct buffer input;
    size_t consumed;
} local;

static void local_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, local.path);
    local.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(local.fd, (const struct sockaddr *)&address, sizeof address), 0);
    buffer_clear(&local.input);
    local.consumed = 0;
}

static void start_local(void)
{
    struct weir_error error = {0};
    int fd = -1;
    harness_init(&harness);
    strcpy(local.directory, "/tmp/weir-local-test-XXXXXX");
    cr_assert_not_null(mkdtemp(local.directory));
    (void)snprintf(local.path, sizeof local.path, "%s/weir.sock", local.directory);
    cr_assert_eq(uv_loop_init(&local.loop), 0);
    cr_assert_eq(local_bind(local.path, &fd, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(
        local_open(&local.local, &local.loop, fd, &harness.sessions, &harness.counters, &error),
        WEIR_OK);
    local.reader = wire_reader_open();
    buffer_init(&local.input, 1024 * 1024);
    local_connect();
}

static void stop_local(void)
{
    local_close(local.local);
    (void)uv_run(&local.loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&local.loop), 0);
    cr_assert_eq(harness.triggers.running, 0);
    wire_reader_close(local.reader);
    buffer_fini(&local.input);
    (void)close(local.fd);
    (void)unlink(local.path);
    (void)rmdir(local.directory);
    harness_fini(&harness);
}

static void turn(void)
{
    for (unsigned i = 0; i < 20; i++) {
        (void)uv_run(&local.loop, UV_RUN_NOWAIT);
        local_flush(local.local);
    }
}

static void send_frame(enum wire_type type, uint64_t id, const struct wire_field *fields)
{
    struct buffer out;
    buffer_init(&out, 1024 * 1024);
    cr_assert_eq(wire_append(&out, type, id, fields), WEIR_OK);
    cr_assert_eq(send(local.fd, out.data, out.bytes, MSG_NOSIGNAL), (ssize_t)out.bytes);
    buffer_fini(&out);
    turn();
}

/* The next frame the worker gets; false: none, or the end. */
static bool receive(void)
{
    buffer_consume(&local.input, local.consumed);
    local.consumed = 0;
    turn();
    cr_assert_eq(buffer_reserve(&local.input, 65536), WEIR_OK);
    ssize_t got = recv(local.fd, local.input.data + local.input.bytes, 65536, MSG_DONTWAIT);
    if (got > 0)
        local.input.bytes += (size_t)got;
    return wire_read(local.reader, buffer_span(&local.input), &message, &local.consumed) == WEIR_OK;
}

static void expect_received(enum wire_type type)
{
    cr_assert(receive(), "%s was expected", wire_type_name(type));
    cr_assert_eq(message.type, type, "%s came, %s was expected", wire_type_name(message.type),
                 wire_type_name(type));
}

static void hello(struct span previous, struct span token)
{
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                        WIRE_SPAN(SPAN_LITERAL("w")),
                                        WIRE_SPAN(SPAN_LITERAL("{\"name\":\"w\"}")),
                                        WIRE_NIL,
                                        WIRE_SPAN(previous),
                                        WIRE_SPAN(token)};
    send_frame(WIRE_HELLO, 0, fields);
}

Test(local_channel, the_same_from_libweir, .init = start_local, .fini = stop_local,
     .timeout = HANG_SECONDS)
{
    hello((struct span){0}, (struct span){0});
    expect_received(WIRE_WELCOME);
    cr_assert_eq(message.fields[2].span.bytes, UUID_TEXT_BYTES, "the token to come back with");
    (void)expect(WIRE_SESSION_OPEN);
    uint64_t session = message.fields[0].number;
    (void)expect(WIRE_SESSION_INFO);
    const struct wire_field trigger[] = {WIRE_NUMBER(0),
                                         WIRE_SPAN(SPAN_LITERAL("t")),
                                         WIRE_SPAN(SPAN_LITERAL("stream")),
                                         WIRE_SPAN(SPAN_LITERAL("f")),
                                         WIRE_SPAN(SPAN_LITERAL("{\"stream_name\":\"s\"}")),
                                         WIRE_NIL,
                                         WIRE_NIL,
                                         WIRE_NIL};
    send_frame(WIRE_TRIGGER_REGISTER, 0, trigger);
    (void)expect(WIRE_TRIGGER_REGISTER);
    cr_assert_eq(message.fields[0].number, session);
    cr_assert_eq(harness.triggers.running, 1);
    struct wire_field bad[8];
    memcpy(bad, trigger, sizeof bad);
    bad[4] = WIRE_NIL;
    send_frame(WIRE_TRIGGER_REGISTER, 0, bad);
    expect_received(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(1, "t");
    EXPECT_FIELD(4, "{\"code\":\"trigger_registration_failed\",\"message\":"
                    "\"stream_name is required\"}");
    bad[6] = WIRE_SPAN(SPAN_LITERAL(" "));
    send_frame(WIRE_TRIGGER_REGISTER, 0, bad);
    expect_received(WIRE_TRIGGER_RESULT);
    EXPECT_FIELD(4, "{\"code\":\"INVALID_NAMESPACE\",\"message\":\"the namespace is blank\"}");
    const struct wire_field gone[] = {WIRE_NUMBER(0), WIRE_SPAN(SPAN_LITERAL("t"))};
    send_frame(WIRE_TRIGGER_UNREGISTER, 0, gone);
    (void)expect(WIRE_TRIGGER_UNREGISTER);
    cr_assert_eq(harness.triggers.running, 0);
    const struct wire_field type[] = {
        WIRE_NUMBER(0), WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("cron")), WIRE_SPAN(SPAN_LITERAL("d")),
        WIRE_NIL,       WIRE_NIL};
    send_frame(WIRE_TRIGGER_TYPE_REGISTER, 0, type);
    (void)expect(WIRE_TRIGGER_TYPE_REGISTER);
    const struct wire_message bind = {.type = WIRE_TRIGGER_BIND,
                                      .fields = {WIRE_NUMBER(session), WIRE_SPAN(SPAN_LITERAL("b")),
                                                 WIRE_SPAN(SPAN_LITERAL("cron")),
                                                 WIRE_SPAN(SPAN_LITERAL("g"))}};
    sessions_take_message(&harness.sessions, &bind);
    expect_received(WIRE_TRIGGER_BIND);
    EXPECT_FIELD(1, "b");
    EXPECT_FIELD(4, "null");
    const struct wire_field result[] = {WIRE_NUMBER(0), WIRE_SPAN(SPAN_LITERAL("b")),
                                        WIRE_SPAN(SPAN_LITERAL("cron")),
                                        WIRE_SPAN(SPAN_LITERAL("g")), WIRE_NIL};
    send_frame(WIRE_TRIGGER_RESULT, 0, result);
    (void)expect(WIRE_TRIGGER_RESULT);
    const struct wire_message unbind = {.type = WIRE_TRIGGER_UNBIND,
                                        .fields = {WIRE_NUMBER(session),
                                                   WIRE_SPAN(SPAN_LITERAL("b")),
                                                   WIRE_SPAN(SPAN_LITERAL("cron"))}};
    sessions_take_message(&harness.sessions, &unbind);
    expect_received(WIRE_TRIGGER_UNBIND);
    const struct wire_field type_gone[] = {WIRE_NUMBER(0), WIRE_NIL,
                                           WIRE_SPAN(SPAN_LITERAL("cron"))};
    send_frame(WIRE_TRIGGER_TYPE_UNREGISTER, 0, type_gone);
    (void)expect(WIRE_TRIGGER_TYPE_UNREGISTER);
    expect_nothing();
}

/* The broker reads a session's namespace where JSON workers say it. */
Test(local_channel, a_namespace_is_told_with_the_metadata, .init = start_local, .fini = stop_local,
     .timeout = HANG_SECONDS)
{
    static const struct {
        const char *metadata, *name_space, *told;
    } cases[] = {
        {"{\"name\":\"w\", \"namespace\":\"red\"}", "blue",
         "{\"namespace\":\"blue\",\"name\":\"w\"}"},
        {"{\"namespace\":\"red\"}", "", "{\"namespace\":\"red\"}"},
        {NULL, "blue", "{\"namespace\":\"blue\"}"},
        {"{\"namespace\":\"red\"}", " ", NULL},
        {"{\"namespace\":\" \"}", "", NULL},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct wire_field fields[] = {
            WIRE_NUMBER(WIRE_VERSION),
            WIRE_NIL,
            cases[i].metadata == NULL ? WIRE_NIL : WIRE_SPAN(span_text(cases[i].metadata)),
            WIRE_SPAN(span_text(cases[i].name_space)),
            WIRE_NIL,
            WIRE_NIL};
        send_frame(WIRE_HELLO, 0, fields);
        if (cases[i].told != NULL) {
            (void)expect(WIRE_SESSION_OPEN);
            expect_received(WIRE_WELCOME);
            (void)expect(WIRE_SESSION_INFO);
            cr_assert(span_equal(message.fields[1].span, span_text(cases[i].told)), "%.*s",
                      (int)message.fields[1].span.bytes, message.fields[1].span.data);
            const struct wire_field function[] = {
                WIRE_NUMBER(0), WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("f")), WIRE_NIL, WIRE_NIL,
                WIRE_NIL,       WIRE_NIL};
            send_frame(WIRE_FUNCTION_REGISTER, 0, function);
            (void)expect(WIRE_FUNCTION_REGISTER);
            cr_assert_not_null(message.fields[1].span.data);
        } else {
            expect_received(WIRE_REFUSED);
            EXPECT_FIELD(0, "INVALID_NAMESPACE");
        }
        (void)close(local.fd);
        turn();
        if (cases[i].told != NULL)
            (void)expect(WIRE_SESSION_CLOSED);
        expect_nothing();
        local_connect();
    }
}

/* What is not JSON or not UTF-8 ends the connection. */
Test(local_channel, unsound_frames_are_refused, .init = start_local, .fini = stop_local,
     .timeout = HANG_SECONDS)
{
    for (unsigned i = 0; i < 3; i++) {
        hello((struct span){0}, (struct span){0});
        expect_received(WIRE_WELCOME);
        struct wire_field trigger[] = {WIRE_NUMBER(0),
                                       WIRE_SPAN(SPAN_LITERAL("t")),
                                       WIRE_SPAN(SPAN_LITERAL("x")),
                                       WIRE_SPAN(SPAN_LITERAL("f")),
                                       WIRE_NIL,
                                       WIRE_NIL,
                                       WIRE_NIL,
                                       WIRE_NIL};
        static const unsigned places[] = {1, 4, 6};
        trigger[places[i]] = WIRE_SPAN(SPAN_LITERAL("\xff"));
        send_frame(WIRE_TRIGGER_REGISTER, 0, trigger);
        expect_received(WIRE_REFUSED);
        EXPECT_FIELD(0, "INVALID_MESSAGE");
        (void)close(local.fd);
        local_connect();
    }
}

/* covers: 2.3/1#1 */
Test(local_channel, a_hello_with_a_token_is_a_reattach, .init = start_local, .fini = stop_local,
     .timeout = HANG_SECONDS)
{
    static const char id[] = "9a0e7a4e-5d0c-4a6e-8f50-0123456789ab";
    hello(span_text(id), span_text(id));
    expect_received(WIRE_WELCOME);
    (void)expect(WIRE_SESSION_OPEN);
    (void)expect(WIRE_SESSION_REATTACH);
    EXPECT_FIELD(1, "9a0e7a4e-5d0c-4a6e-8f50-0123456789ab");
    uint64_t asked = message.id;
    const struct wire_field function[] = {WIRE_NUMBER(0), WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("f")),
                                          WIRE_NIL,       WIRE_NIL, WIRE_NIL,
                                          WIRE_NIL};
    send_frame(WIRE_FUNCTION_REGISTER, 0, function);
    expect_nothing();
    const struct wire_field retired[4] = {WIRE_NUMBER(1)};
    link_answer(&harness.link, asked, WIRE_SESSION_REATTACHED, retired);
    turn();
    (void)expect(WIRE_SESSION_INFO);
    (void)expect(WIRE_FUNCTION_REGISTER);
    expect_nothing();
    cr_assert_eq(counter(COUNTER_LOCAL_CONNECTIONS_DROPPED), 0);
    send_frame(WIRE_HELLO, 0,
               (const struct wire_field[]){WIRE_NUMBER(WIRE_VERSION), WIRE_NIL, WIRE_NIL, WIRE_NIL,
                                           WIRE_NIL, WIRE_NIL});
    expect_received(WIRE_REFUSED);
}

Test(local_channel, a_session_of_libweir_can_be_retired_and_refused, .init = start_local,
     .fini = stop_local, .timeout = HANG_SECONDS)
{
    char token[UUID_TEXT_BYTES + 1];
    hello((struct span){0}, (struct span){0});
    expect_received(WIRE_WELCOME);
    memcpy(token, message.fields[2].span.data, UUID_TEXT_BYTES);
    token[UUID_TEXT_BYTES] = '\0';
    (void)expect(WIRE_SESSION_OPEN);
    uint64_t session = message.fields[0].number;
    (void)expect(WIRE_SESSION_INFO);
    struct wire_message evict = {
        .type = WIRE_SESSION_EVICT,
        .id = 9,
        .fields = {WIRE_NUMBER(session), WIRE_SPAN(SPAN_LITERAL("wrong"))}};
    sessions_take_message(&harness.sessions, &evict);
    (void)expect(WIRE_SESSION_REATTACHED);
    evict.fields[1] = WIRE_SPAN(span_text(token));
    sessions_take_message(&harness.sessions, &evict);
    (void)expect(WIRE_SESSION_CLOSED);
    turn();
    char byte;
    cr_assert_eq(recv(local.fd, &byte, 1, MSG_DONTWAIT), 0, "closed without a word");
    (void)close(local.fd);
    local_connect();
    hello((struct span){0}, (struct span){0});
    expect_received(WIRE_WELCOME);
    (void)expect(WIRE_SESSION_OPEN);
    session = message.fields[0].number;
    (void)expect(WIRE_SESSION_INFO);
    const struct wire_message rejected = {
        .type = WIRE_SESSION_REJECTED,
        .fields = {WIRE_NUMBER(session), WIRE_SPAN(SPAN_LITERAL("WORKER_NAMESPACE_CONFLICT")),
                   WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("w")), WIRE_SPAN(SPAN_LITERAL("owner"))}};
    sessions_take_message(&harness.sessions, &rejected);
    expect_received(WIRE_REFUSED);
    EXPECT_FIELD(0, "WORKER_NAMESPACE_CONFLICT");
    (void)expect(WIRE_SESSION_CLOSED);
    expect_nothing();
}

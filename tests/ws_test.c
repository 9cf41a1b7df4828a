/* The gateway's sockets through real ones: a server on a loop of its own thread, blocking clients
 * in the test's. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "gateway/listener.h"
#include "gateway/ws.h"
#include "gateway/ws_private.h"
#include "shm/envelope.h"
#include "tests/ws_client.h"

/* An upgrade that is not decided yet. */
struct held {
    uv_timer_t timer; /* until it is */
    struct session *session;
    unsigned status;   /* 101: accept */
    bool waits_for_go; /* however long that takes */
};

/* One per open WebSocket; `user` of the connection. */
struct session {
    struct server *server;
    struct ws_connection *connection;
    uv_timer_t timer;
    bool is_closed;
    struct held *held;
    struct session *next;
    /* stress */
    unsigned sent_count; /* frames taken */
    bool has_to_wait;    /* AGAIN was answered, on_writable has not come */
};

struct server {
    uv_loop_t loop;
    uv_async_t stop;
    uv_check_t check;
    uv_prepare_t prepare;
    uv_timer_t producer;
    struct ws_server *ws;
    struct listener *listener;
    struct session *sessions;
    struct session *turning; /* to be answered at the end of the turn */
    pthread_t thread;
    pthread_barrier_t ready;
    struct ws_options options;
    uint16_t port;
    atomic_uint accepted, opened, closed, refused, messages, released, upgrades, filled, held,
        sleeping;
    atomic_bool may_go; /* the upgrades that wait for it */
    bool is_tls;
    const char *tls_certificate, *tls_key;
    struct retry retry;
    struct counters counters;
    /* heads of one turn */
    unsigned upgrades_before, upgrades_most;
    unsigned next_number; /* of requests "?n=NUMBER" */
    bool is_out_of_order;
    /* stress */
    int send_buffer_bytes; /* of accepted sockets; 0: as it is */
    unsigned frames_each;
    uint32_t random;
    char *batch_bytes; /* frames of the batch being gathered */
    size_t batch_used;
    atomic_uint again_count, batched_count, texts_count;
};

static struct server server;

/* ---- the owner's side ---- */

static bool has_prefix(struct span text, const char *prefix)
{
    size_t bytes = strlen(prefix);
    return text.bytes >= bytes && memcmp(text.data, prefix, bytes) == 0;
}

static void on_held_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void on_held(uv_timer_t *timer)
{
    struct held *held = timer->data;
    if (held->waits_for_go && !server.may_go) {
        uv_timer_start(timer, on_held, 5, 0);
        return;
    }
    struct session *session = held->session;
    struct ws_connection *connection = session->connection;
    unsigned status = held->status;
    session->held = NULL;
    session->connection = NULL;
    uv_close((uv_handle_t *)timer, on_held_closed);
    if (status == 101) {
        ws_upgrade_accept(connection, WS_ROLE_STREAM);
        return;
    }
    ws_upgrade_refuse(connection, status, NULL);
}

/* "/held?MS:STATUS": decided after so long; "/held?go:STATUS": when the test says so. */
static void hold(struct server *own, struct ws_request *request, struct session *session)
{
    struct held *held = calloc(1, sizeof(*held));
    unsigned wait_ms = (unsigned)atoi(request->query.data);
    const char *colon = memchr(request->query.data, ':', request->query.bytes);
    held->status = (unsigned)atoi(colon + 1);
    held->waits_for_go = has_prefix(request->query, "go:");
    held->session = session;
    session->held = held;
    session->connection = request->connection;
    uv_timer_init(&own->loop, &held->timer);
    held->timer.data = held;
    uv_timer_start(&held->timer, on_held, wait_ms, 0);
    own->held++;
}

static enum ws_role on_upgrade(void *context, struct ws_request *request)
{
    struct server *own = context;
    own->upgrades++;
    if (request->query.bytes > 2 && memcmp(request->query.data, "n=", 2) == 0)
        own->is_out_of_order |= (unsigned)atoi(request->query.data + 2) != own->next_number++;
    if (span_equal(request->path, SPAN_LITERAL("/otel")))
        return WS_ROLE_TELEMETRY;
    if (span_equal(request->path, SPAN_LITERAL("/forbidden"))) {
        request->http_status = 403;
        return WS_ROLE_NONE;
    }
    bool is_held = span_equal(request->path, SPAN_LITERAL("/held"));
    if (!is_held && !span_equal(request->path, SPAN_LITERAL("/")))
        return WS_ROLE_NONE;
    if (span_equal(request->query, SPAN_LITERAL("chat")))
        request->subprotocol = SPAN_LITERAL("chat");
    struct session *session = calloc(1, sizeof(*session));
    session->server = own;
    request->user = session;
    if (!is_held)
        return WS_ROLE_STREAM;
    hold(own, request, session);
    return WS_ROLE_HELD;
}

static void on_refused(void *context, void *user)
{
    struct session *session = user;
    ((struct server *)context)->refused++;
    if (session->held)
        uv_close((uv_handle_t *)&session->held->timer, on_held_closed);
    free(session);
}

static void on_open(void *context, struct ws_connection *connection, enum ws_role role, void *user)
{
    struct server *own = context;
    struct session *session = user;
    (void)role;
    own->opened++;
    session->connection = connection;
    session->next = own->sessions;
    own->sessions = session;
    uv_timer_init(&own->loop, &session->timer);
    session->timer.data = session;
}

static void on_session_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void on_close(void *context, struct ws_connection *connection)
{
    struct server *own = context;
    struct session *session = ws_user(connection);
    own->closed++;
    /* What is tried now must be refused and do no harm. */
    if (ws_send_text(connection, SPAN_LITERAL("late")) != WEIR_CLOSED)
        abort();
    ws_close(connection, WS_NORMAL, NULL);
    struct session **at = &own->sessions;
    while (*at != session)
        at = &(*at)->next;
    *at = session->next;
    uv_close((uv_handle_t *)&session->timer, on_session_closed);
}

static void on_resume(uv_timer_t *timer)
{
    struct session *session = timer->data;
    if (ws_send_text(session->connection, SPAN_LITERAL("resumed")) != WEIR_OK)
        abort();
    ws_set_reading(session->connection, true);
}

static void on_message(void *context, struct ws_connection *connection, struct span message,
                       bool is_binary)
{
    struct server *own = context;
    struct session *session = ws_user(connection);
    own->messages++;
    if (has_prefix(message, "close:")) {
        ws_close_code(connection, (unsigned)atoi(message.data + 6), "asked for");
        if (ws_send_text(connection, SPAN_LITERAL("late")) != WEIR_CLOSED)
            abort();
    } else if (has_prefix(message, "abort")) {
        ws_abort(connection);
    } else if (has_prefix(message, "pause")) {
        ws_set_reading(connection, false);
        uv_timer_start(&session->timer, on_resume, 50, 0);
    } else if (has_prefix(message, "sleep")) {
        own->sleeping = 1; /* so that much waits for one turn */
        while (own->sleeping)
            usleep(1000);
    } else if (has_prefix(message, "turn")) {
        own->turning = session;
    } else if (has_prefix(message, "fill")) {
        /* Until the backlog refuses; the client reads nothing meanwhile. */
        static char block[64 * 1024];
        memset(block, 'x', sizeof(block));
        unsigned count = 0;
        while (ws_send_text(connection, span_of(block, sizeof(block))) == WEIR_OK)
            count++;
        own->filled = count;
    } else {
        if (ws_send_text(connection, message) != WEIR_OK)
            abort();
        (void)is_binary;
    }
}

static void on_writable(void *context, struct ws_connection *connection)
{
    (void)context;
    struct session *session = ws_user(connection);
    if (!session->has_to_wait || !ws_is_idle(connection))
        abort(); /* it must follow an AGAIN, once, and mean what it says */
    session->has_to_wait = false;
}

static char page[] = "<p>page</p>\n";
static void on_release(void *owner)
{
    (*(atomic_uint *)owner)++;
}

static void on_http(void *context, const struct ws_request *request, struct ws_http_answer *answer)
{
    struct server *own = context;
    if (!span_equal(request->path, SPAN_LITERAL("/page"))) {
        answer->body = SPAN_LITERAL("not here\n");
        return;
    }
    answer->status = 200;
    answer->content_type = "text/html";
    answer->extra_headers = "X-Kind: page\r\n";
    answer->body = span_of(page, sizeof(page) - 1);
    answer->release = on_release;
    answer->owner = &own->released;
}

static void on_accept(void *context, int fd)
{
    struct server *own = context;
    own->accepted++;
    if (own->send_buffer_bytes)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &own->send_buffer_bytes,
                   sizeof(own->send_buffer_bytes));
    ws_server_adopt(own->ws, fd, WS_PORT_STREAM, own->is_tls);
}

/* ---- the stress's producer ---- */

#define STRESS_BYTES_MAX (64 * 1024)
#define BATCH_BYTES_MAX (32 * 1024 * 1024)

static uint32_t mix(uint32_t value)
{
    value = (value ^ (value >> 16)) * 0x7feb352du;
    value = (value ^ (value >> 15)) * 0x846ca68bu;
    return value ^ (value >> 16);
}

/* The count-th payload of a connection: mostly short, every eighth up to 64 KiB. Both sides know
 * it. */
static size_t stress_bytes(uint32_t count)
{
    uint32_t random = mix(count);
    return 100 + (random % 8 ? (random >> 8) % 900 : (random >> 8) % (STRESS_BYTES_MAX - 100 + 1));
}

static void stress_fill(char *out, size_t bytes, uint32_t count)
{
    memcpy(out, &count, sizeof(count));
    for (size_t index = sizeof(count); index < bytes; index++)
        out[index] = (char)(count * 131 + index * 7 + (index >> 8));
}

static uint32_t stress_random(struct server *own)
{
    return own->random = mix(own->random + 0x9e3779b9u);
}

struct promise {
    struct session *session;
    unsigned first, count;
};

static void on_batch_done(void *context, struct ws_connection *connection, void *entry,
                          enum weir_status status)
{
    struct server *own = context;
    struct promise *promise = entry;
    (void)connection;
    if (status == WEIR_OK) {
        if (promise->session->sent_count != promise->first)
            abort(); /* an earlier entry of the same connection was not taken */
        promise->session->sent_count += promise->count;
        own->batched_count += promise->count;
    } else if (status == WEIR_AGAIN) {
        promise->session->has_to_wait = true;
        own->again_count++;
    }
    free(promise);
}

/* One to four frames, half of them in one piece of memory. */
static void batch_gather(struct server *own, struct session *session, unsigned first,
                         unsigned count)
{
    struct iovec frames[4];
    for (unsigned index = 0; index < count; index++) {
        char *frame = own->batch_bytes + own->batch_used;
        size_t bytes = stress_bytes(first + index);
        size_t header = envelope_frame_header(frame, bytes);
        stress_fill(frame + header, bytes, first + index);
        frames[index] = (struct iovec){.iov_base = frame, .iov_len = header + bytes};
        own->batch_used += header + bytes + stress_random(own) % 2;
    }
    struct promise *promise = malloc(sizeof(*promise));
    *promise = (struct promise){.session = session, .first = first, .count = count};
    ws_batch_add(own->ws, session->connection, frames, count, promise);
}

static bool text_produce(struct server *own, struct session *session)
{
    static char payload[STRESS_BYTES_MAX];
    size_t bytes = stress_bytes(session->sent_count);
    stress_fill(payload, bytes, session->sent_count);
    if (ws_send_text(session->connection, span_of(payload, bytes)) != WEIR_OK)
        return false;
    session->sent_count++;
    own->texts_count++;
    return true;
}

static void session_produce(struct server *own, struct session *session)
{
    unsigned left = own->frames_each - session->sent_count;
    uint32_t choice = stress_random(own) % 8;
    if (choice < 3 && left) {
        /* A text may be taken any time, but a slow reader's backlog is not to hold everything. */
        if (ws_backlog_bytes(session->connection) < 256 * 1024 && text_produce(own, session))
            left--;
    }
    unsigned next = own->frames_each - left;
    for (unsigned entry = 0; entry < choice % 3 && left && !session->has_to_wait; entry++) {
        unsigned count = 1 + stress_random(own) % 4;
        if (count > left)
            count = left;
        if (own->batch_used + 4 * (STRESS_BYTES_MAX + 11) > BATCH_BYTES_MAX)
            return;
        batch_gather(own, session, next, count);
        next += count;
        left -= count;
    }
}

static void on_produce(uv_timer_t *timer)
{
    struct server *own = timer->data;
    own->batch_used = 0;
    for (struct session *session = own->sessions; session; session = session->next)
        if (!session->has_to_wait && session->sent_count < own->frames_each)
            session_produce(own, session);
    ws_batch_flush(own->ws, on_batch_done, own);
}

/* The owner's end of a turn. */
static void on_check(uv_check_t *check)
{
    struct server *own = check->data;
    struct session *session = own->turning;
    own->turning = NULL;
    if (session && ws_send_text(session->connection, SPAN_LITERAL("turned")) != WEIR_OK)
        abort();
    ws_flush(own->ws);
}

static void on_turn(uv_prepare_t *prepare)
{
    struct server *own = prepare->data;
    unsigned upgrades = own->upgrades - own->upgrades_before;
    own->upgrades_before = own->upgrades;
    if (upgrades > own->upgrades_most)
        own->upgrades_most = upgrades;
}

static void on_stop(uv_async_t *async)
{
    uv_stop(async->loop);
}

static void close_handle(uv_handle_t *handle, void *context)
{
    (void)context;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void *server_run(void *context)
{
    struct server *own = context;
    uv_loop_init(&own->loop);
    uv_async_init(&own->loop, &own->stop, on_stop);
    uv_check_init(&own->loop, &own->check);
    own->check.data = own;
    uv_check_start(&own->check, on_check);
    uv_prepare_init(&own->loop, &own->prepare);
    own->prepare.data = own;
    uv_prepare_start(&own->prepare, on_turn);
    uv_timer_init(&own->loop, &own->producer);
    own->producer.data = own;
    if (own->frames_each)
        uv_timer_start(&own->producer, on_produce, 1, 1);
    struct ws_handlers handlers = {.on_upgrade = on_upgrade,
                                   .on_refused = on_refused,
                                   .on_open = on_open,
                                   .on_message = on_message,
                                   .on_writable = on_writable,
                                   .on_close = on_close,
                                   .on_http = on_http,
                                   .context = own};
    struct weir_error error = {0};
    struct listener_options listen_options = {
        .host = "127.0.0.1", .reuse_port = true, .on_accept = on_accept, .context = own};
    if (ws_server_open(&own->ws, &own->loop, &own->options, &handlers, &error) != WEIR_OK ||
        listener_open(&own->listener, &own->loop, &listen_options, &error) != WEIR_OK) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
    own->port = listener_port(own->listener);
    pthread_barrier_wait(&own->ready);
    uv_run(&own->loop, UV_RUN_DEFAULT);
    listener_stop(own->listener);
    ws_server_close(own->ws, WS_GOING_AWAY, 2000);
    uv_walk(&own->loop, close_handle, NULL);
    uv_run(&own->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&own->loop) != 0)
        abort();
    return NULL;
}

static void server_start(void)
{
    pthread_barrier_init(&server.ready, NULL, 2);
    pthread_create(&server.thread, NULL, server_run, &server);
    pthread_barrier_wait(&server.ready);
}

/* For what is not to strike in a test, wherever the machine stands still. */
enum { LONG_MS = 300000 };

static void start(void)
{
    server.options = (struct ws_options){
        .handshake_timeout_ms = LONG_MS, .connections_max = 1000, .use_uring = true};
    server.options.counters = &server.counters;
    server.options.tls_certificate_path = server.tls_certificate;
    server.options.tls_key_path = server.tls_key;
    server_start();
}

static void stop(void)
{
    uv_async_send(&server.stop);
    pthread_join(server.thread, NULL);
    cr_assert_eq(server.opened, server.closed, "%u opened, %u closed", server.opened,
                 server.closed);
}

/* A client whose bytes go through `openssl s_client`, which ends when they do. */
static bool client_connect_tls(struct client *client)
{
    int ends[2];
    char address[32];
    memset(client, 0, sizeof(*client));
    snprintf(address, sizeof(address), "127.0.0.1:%u", server.port);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 0);
        dup2(ends[1], 1);
        dup2(open("/dev/null", O_WRONLY), 2);
        execlp("openssl", "openssl", "s_client", "-quiet", "-no_ign_eof", "-nocommands",
               "-verify_quiet", "-connect", address, (char *)NULL);
        _exit(1);
    }
    close(ends[1]);
    client->fd = ends[0];
    return true;
}

/* As the server wants it. */
static bool connect_client(struct client *client, int receive_buffer)
{
    return server.is_tls ? client_connect_tls(client)
                         : client_connect(client, server.port, receive_buffer);
}

static bool open_path(struct client *client, const char *path, int receive_buffer)
{
    char head[4096];
    return connect_client(client, receive_buffer) &&
           client_upgrade(client, path, "Sec-WebSocket-Extensions: permessage-deflate\r\n", head,
                          sizeof(head)) &&
           strncmp(head, "HTTP/1.1 101", 12) == 0;
}

static void open_client(struct client *client)
{
    cr_assert(open_path(client, "/", 0));
}

/* Read frames until the next text. */
static struct client_frame read_text(struct client *client)
{
    struct client_frame frame;
    cr_assert(client_read_frame(client, &frame));
    cr_assert_eq(frame.opcode, 0x81, "opcode %x", frame.opcode);
    return frame;
}

static void expect_text(struct client *client, const char *text)
{
    struct client_frame frame = read_text(client);
    cr_assert_eq(frame.bytes, strlen(text), "%zu bytes: %.*s", frame.bytes, (int)frame.bytes,
                 (char *)frame.payload);
    cr_assert_eq(memcmp(frame.payload, text, frame.bytes), 0);
}

static void expect_close(struct client *client, unsigned code)
{
    struct client_frame frame;
    cr_assert(client_read_frame(client, &frame));
    cr_assert_eq(frame.opcode, 0x88, "opcode %x", frame.opcode);
    cr_assert_geq(frame.bytes, 2);
    cr_assert_eq((unsigned)frame.payload[0] << 8 | frame.payload[1], code, "code %u",
                 (unsigned)frame.payload[0] << 8 | frame.payload[1]);
}

/* A hang is what takes longer. */
enum { WAIT_US = 5000, WAITS_MAX = 120 * 1000 * 1000 / WAIT_US };

static void await_count(atomic_uint *counter, unsigned count)
{
    for (unsigned wait = 0; *counter < count && wait < WAITS_MAX; wait++)
        usleep(WAIT_US);
    cr_assert_eq(*counter, count, "%u instead of %u", *counter, count);
}

/* ---- handshakes and plain HTTP ---- */

/* RFC 6455 section 1.3's key gives its accept value; an offered extension is not answered. */
static void accepts_an_upgrade_without_extensions(void)
{
    struct client client;
    char head[4096];
    cr_assert(connect_client(&client, 0));
    cr_assert(client_upgrade(
        &client, "/", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
        head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "%s", head);
    cr_assert(strstr(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "%s",
              head);
    cr_assert_null(strcasestr(head, "extensions"));
    cr_assert_null(strcasestr(head, "protocol:"));
    client_send_text(&client, "hello");
    expect_text(&client, "hello");
    client_close(&client);
    await_count(&server.closed, 1);
}

/* ---- upgrades that are decided later ---- */

static void send_held(struct client *client, const char *target, const char *behind)
{
    char request[512];
    uint8_t frame[256];
    int bytes = snprintf(request, sizeof(request),
                         "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: "
                         "Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                         "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, Authorization, "
                         "t\r\n\r\n",
                         target);
    if (behind) {
        size_t more = frame_build(frame, 0x81, behind, strlen(behind), true);
        memcpy(request + bytes, frame, more);
        bytes += (int)more;
    }
    cr_assert(client_send(client, request, (size_t)bytes));
}

/* What the client sends meanwhile, in one piece with the head and later, is taken up after the
 * answer and not before; a Ping as well. */
static void holds_an_upgrade_and_what_comes_behind_it(void)
{
    struct client client, other;
    struct client_frame frame;
    char head[4096];
    open_client(&other);
    cr_assert(connect_client(&client, 0));
    send_held(&client, "/held?go:101", "first");
    await_count(&server.held, 1);
    client_send_frame(&client, 0x89, "ping", 4);
    client_send_text(&client, "second");
    /* The loop turns meanwhile, and what has come is looked at in every turn. */
    enum { TURNS = 20 };
    for (unsigned turn = 0; turn < TURNS; turn++) {
        client_send_text(&other, "go on");
        expect_text(&other, "go on");
    }
    cr_assert_eq(server.messages, TURNS);
    cr_assert_eq(server.opened, 1);
    server.may_go = true;
    cr_assert(client_read_head(&client, head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "%s", head);
    cr_assert(strstr(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "%s",
              head);
    cr_assert(strstr(head, "\r\nSec-WebSocket-Protocol: Authorization\r\n"), "%s", head);
    bool has_pong = false;
    for (unsigned texts = 0; texts < 2 || !has_pong;) {
        cr_assert(client_read_frame(&client, &frame));
        has_pong |= frame.opcode == 0x8a;
        texts += frame.opcode == 0x81;
    }
    cr_assert_eq(server.messages, TURNS + 2);
    client_close(&client);
    client_close(&other);
    await_count(&server.closed, 2);
    cr_assert_eq(server.refused, 0);
}

/* Refused: an empty answer, and the end; what stands behind the head is not a request. */
static void refuses_a_held_upgrade_without_a_body(void)
{
    static const struct {
        const char *target, *status;
        bool has_challenge;
    } cases[] = {{"/held?20:401", "HTTP/1.1 401 Unauthorized\r\n", true},
                 {"/held?20:503", "HTTP/1.1 503 Service Unavailable\r\n", false},
                 {"/held?0:401", "HTTP/1.1 401 Unauthorized\r\n", true}};
    for (unsigned index = 0; index < 3; index++) {
        struct client client;
        char head[4096];
        cr_assert(connect_client(&client, 0));
        send_held(&client, cases[index].target, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        cr_assert(client_read_head(&client, head, sizeof(head)));
        cr_assert_eq(strncmp(head, cases[index].status, strlen(cases[index].status)), 0, "%s",
                     head);
        cr_assert(strstr(head, "\r\nContent-Length: 0\r\n"), "%s", head);
        cr_assert(strstr(head, "\r\nConnection: close\r\n"), "%s", head);
        cr_assert_eq(strstr(head, "\r\nWWW-Authenticate: Bearer\r\n") != NULL,
                     cases[index].has_challenge, "%s", head);
        cr_assert_null(strstr(head, "Sec-WebSocket"), "%s", head);
        cr_assert(client_read_end(&client));
        client_close(&client);
    }
    cr_assert_eq(server.opened, 0);
    cr_assert_eq(server.refused, 3);
}

/* Clients that go away while they are held, with an end or a reset, before both decisions: each
 * owner hears of it once, one way or the other. */
static void outlives_clients_that_vanish_while_held(void)
{
    enum { CLIENTS = 40 };
    for (unsigned index = 0; index < CLIENTS; index++) {
        struct client client;
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        cr_assert(connect_client(&client, 0));
        send_held(&client, index % 2 ? "/held?30:101" : "/held?30:401", index % 4 ? "more" : NULL);
        await_count(&server.held, index + 1);
        if (index % 8 >= 4)
            setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
        client_close(&client);
    }
    for (unsigned wait = 0; server.refused + server.closed < CLIENTS && wait < WAITS_MAX; wait++)
        usleep(WAIT_US);
    cr_assert_eq(server.refused + server.closed, CLIENTS);
    struct client client;
    open_client(&client);
    client_send_text(&client, "still there");
    expect_text(&client, "still there");
    client_close(&client);
    await_count(&server.closed, server.opened);
}

static void expect_unavailable(struct client *client)
{
    char head[4096];
    cr_assert(client_read_head(client, head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 503 ", 13), 0, "%s", head);
    cr_assert(strstr(head, "\r\nConnection: close\r\n"), "%s", head);
    cr_assert(client_read_end(client));
}

/* The server goes while upgrades are held: their owners are told, and so are the clients. */
Test(ws, refuses_held_upgrades_when_it_closes, .init = start, .timeout = HANG_SECONDS)
{
    struct client clients[3];
    for (unsigned index = 0; index < 3; index++) {
        cr_assert(connect_client(&clients[index], 0));
        send_held(&clients[index], "/held?60000:101", "more");
    }
    await_count(&server.held, 3);
    stop();
    cr_assert_eq(server.refused, 3);
    cr_assert_eq(server.opened, 0);
    for (unsigned index = 0; index < 3; index++) {
        expect_unavailable(&clients[index]);
        client_close(&clients[index]);
    }
}

/* Who has connected, and whose request has not come or not whole, is answered as if it had; who has
 * its answers and has only kept the connection is not. */
Test(ws, answers_requests_on_their_way_when_it_closes, .init = start, .timeout = HANG_SECONDS)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    static const char body[] = "not here\n";
    struct client silent, slow, kept;
    char head[4096];
    cr_assert(connect_client(&kept, 0));
    cr_assert(client_send(&kept, request, sizeof(request) - 1));
    cr_assert(client_read_head(&kept, head, sizeof(head)));
    while (kept.end - kept.begin < sizeof(body) - 1)
        cr_assert(client_fill(&kept));
    kept.begin += sizeof(body) - 1;
    cr_assert(connect_client(&silent, 0));
    cr_assert(connect_client(&slow, 0));
    cr_assert(client_send(&slow, request, sizeof(request) / 2));
    await_count(&server.accepted, 3);
    stop();
    expect_unavailable(&silent);
    expect_unavailable(&slow);
    cr_assert(client_read_end(&kept));
    client_close(&silent);
    client_close(&slow);
    client_close(&kept);
}

static void start_with_short_handshakes(void)
{
    server.options = (struct ws_options){
        .handshake_timeout_ms = 100, .connections_max = 1000, .use_uring = true};
    server_start();
}

/* The time limit of handshakes is the client's, not the owner's. A client whose head comes too late is
 * not held; it comes again. */
Test(ws, holds_longer_than_a_handshake_may_take, .init = start_with_short_handshakes, .fini = stop,
     .timeout = HANG_SECONDS)
{
    struct client client;
    char head[4096];
    for (;;) {
        cr_assert(connect_client(&client, 0));
        if (client_upgrade(&client, "/held?700:101", "", head, sizeof(head)))
            break;
        cr_assert_eq(server.held, 0, "dropped while it was held");
        client_close(&client);
    }
    cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "%s", head);
    client_send_text(&client, "hello");
    expect_text(&client, "hello");
    client_close(&client);
    await_count(&server.closed, 1);
}

/* A token longer than any buffer of libwebsockets passes, "Authorization" comes back, the token
 * does not. */
static void answers_the_authorization_subprotocol_and_never_the_token(void)
{
    static const struct {
        const char *path, *before, *after, *answer;
    } cases[] = {
        {"/", "Authorization,", "", "Authorization"},
        {"/", "Authorization, ", "", "Authorization"},
        {"/", "", ", Authorization", "Authorization"},
        {"/", "", "", NULL},
        {"/", "authorization, ", "", NULL},
        {"/?chat", "chat, ", "", "chat"},
        {"/?chat", "Authorization, chat,", "", "Authorization"},
    };
    char token[5001];
    memset(token, 't', 5000);
    token[5000] = '\0';
    for (unsigned index = 0; index < sizeof(cases) / sizeof(*cases); index++) {
        struct client client;
        char head[4096], headers[6000];
        snprintf(headers, sizeof(headers), "Sec-WebSocket-Protocol: %s%s%s\r\n",
                 cases[index].before, token, cases[index].after);
        cr_assert(connect_client(&client, 0));
        cr_assert(client_upgrade(&client, cases[index].path, headers, head, sizeof(head)));
        cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "case %u: %s", index, head);
        cr_assert_null(strstr(head, "tttt"));
        char expected[80];
        snprintf(expected, sizeof(expected), "\r\nSec-WebSocket-Protocol: %s\r\n",
                 cases[index].answer);
        if (cases[index].answer)
            cr_assert(strstr(head, expected), "case %u: %s", index, head);
        else
            cr_assert_null(strstr(head, "Sec-WebSocket-Protocol"), "case %u: %s", index, head);
        client_close(&client);
    }
}

static void expect_status(const char *request, const char *status, const char *contained)
{
    struct client client;
    char head[4096];
    cr_assert(connect_client(&client, 0));
    cr_assert(client_send(&client, request, strlen(request)));
    cr_assert(client_read_head(&client, head, sizeof(head)), "no answer to %.60s", request);
    cr_assert_eq(strncmp(head + 9, status, 3), 0, "%.80s: %s", request, head);
    if (contained)
        cr_assert(strstr(head, contained), "%.80s: %s", request, head);
    client_close(&client);
}

#define UPGRADE "Host: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
#define KEY "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
#define VERSION "Sec-WebSocket-Version: 13\r\n"

static void refuses_bad_requests_with_a_status(void)
{
    expect_status("GET /nowhere HTTP/1.1\r\n" UPGRADE KEY VERSION "\r\n", "404",
                  "Connection: close");
    expect_status("GET /forbidden HTTP/1.1\r\n" UPGRADE KEY VERSION "\r\n", "403", NULL);
    expect_status("GET / HTTP/1.1\r\n" UPGRADE KEY "\r\n", "426", "Sec-WebSocket-Version: 13");
    expect_status("GET / HTTP/1.1\r\n" UPGRADE KEY "Sec-WebSocket-Version: 8\r\n\r\n", "426", NULL);
    expect_status("GET / HTTP/1.1\r\n" UPGRADE VERSION "\r\n", "400", NULL);
    expect_status("GET / HTTP/1.1\r\n" UPGRADE VERSION "Sec-WebSocket-Key: short\r\n\r\n", "400",
                  NULL);
    expect_status("GET / HTTP/1.0\r\n" UPGRADE KEY VERSION "\r\n", "400", NULL);
    expect_status("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", "405",
                  "Allow: GET, HEAD");
    expect_status("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "405", NULL);
    expect_status("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", "400", NULL);
    expect_status("GET / HTTP/2.0\r\nHost: h\r\n\r\n", "400", NULL);
    expect_status("GET nothing HTTP/1.1\r\nHost: h\r\n\r\n", "400", NULL);
    expect_status("GET / HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n", "400", NULL);
    expect_status("GET / HTTP/1.1\r\nHost: h\r\nName with space: x\r\n\r\n", "400", NULL);
    expect_status("\x16\x03\x01\x02\r\n\r\n", "400", NULL);
    cr_assert_eq(server.opened, 0);
    cr_assert_eq(server.upgrades, 2);
}

/* A head one byte too long, with and without its end. */
static void refuses_a_request_head_beyond_its_limit(void)
{
    char *request = malloc(20000);
    int bytes = sprintf(request, "GET / HTTP/1.1\r\nX: ");
    memset(request + bytes, 'x', 18000);
    request[bytes + 18000] = '\0';
    expect_status(request, "431", NULL);
    strcpy(request + bytes + 18000, "\r\n\r\n");
    expect_status(request, "431", NULL);
    free(request);
}

static void expect_body(struct client *client, const char *body)
{
    while (client->end - client->begin < strlen(body))
        cr_assert(client_fill(client));
    cr_assert_eq(memcmp(client->input + client->begin, body, strlen(body)), 0);
    client->begin += strlen(body);
}

/* Two GETs and a HEAD on one connection, the last in single bytes; then one that ends it. */
static void serves_plain_requests_and_keeps_the_connection(void)
{
    struct client client;
    char head[4096];
    static const char get[] = "GET /page?x=1 HTTP/1.1\r\nHost: h\r\n\r\n";
    static const char head_request[] = "\r\nHEAD /page HTTP/1.1\r\nHost: h\r\n\r\n";
    static const char last[] = "GET /other HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    cr_assert(connect_client(&client, 0));
    client_send(&client, get, strlen(get));
    client_send(&client, get, strlen(get));
    for (unsigned round = 0; round < 2; round++) {
        cr_assert(client_read_head(&client, head, sizeof(head)));
        cr_assert(strstr(head, "200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n"), "%s",
                  head);
        cr_assert(strstr(head, "\r\nX-Kind: page\r\n"));
        expect_body(&client, page);
    }
    for (size_t index = 0; index < strlen(head_request); index++) {
        client_send(&client, head_request + index, 1);
        usleep(200);
    }
    cr_assert(client_read_head(&client, head, sizeof(head)));
    cr_assert(strstr(head, "Content-Length: 12\r\nConnection: keep-alive\r\n"));
    client_send(&client, last, strlen(last));
    cr_assert(client_read_head(&client, head, sizeof(head)));
    cr_assert(strstr(head, "404 Not Found"));
    cr_assert(strstr(head, "Connection: close"));
    expect_body(&client, "not here\n");
    cr_assert(client_read_end(&client));
    client_close(&client);
    cr_assert_eq(server.released, 3, "released %u", server.released);
}

/* ---- messages ---- */

/* Every length around the header forms, whole and in pieces of 1, 7 and 1000 bytes. */
static void echoes_messages_of_all_lengths_however_cut(void)
{
    static const size_t lengths[] = {0,   1,     2,     125,   126,    127,
                                     500, 65535, 65536, 65537, 200000, 3000000};
    static const size_t pieces[] = {1, 7, 1000, 0};
    uint8_t *payload = malloc(3000000);
    uint8_t *frame = malloc(3000014);
    for (size_t index = 0; index < 3000000; index++)
        payload[index] = (uint8_t)('a' + index % 23);
    struct client client;
    open_client(&client);
    for (unsigned which = 0; which < sizeof(lengths) / sizeof(*lengths); which++) {
        for (unsigned cut = 0; cut < sizeof(pieces) / sizeof(*pieces); cut++) {
            size_t whole = frame_build(frame, 0x81, payload, lengths[which], true);
            size_t piece = pieces[cut] ? pieces[cut] : whole;
            if (whole / piece > 1000)
                piece = whole / 300;
            for (size_t at = 0; at < whole; at += piece)
                cr_assert(
                    client_send(&client, frame + at, at + piece < whole ? piece : whole - at));
            struct client_frame got = read_text(&client);
            cr_assert_eq(got.bytes, lengths[which]);
            cr_assert(got.bytes == 0 || memcmp(got.payload, payload, got.bytes) == 0);
        }
    }
    client_close(&client);
    free(payload);
    free(frame);
}

/* Fragments with Pings between them make one message; each Ping has its own Pong. */
static void joins_fragments_and_answers_pings_between_them(void)
{
    struct client client;
    struct client_frame frame;
    open_client(&client);
    client_send_frame(&client, 0x01, "one ", 4);
    client_send_frame(&client, 0x89, "p1", 2);
    client_send_frame(&client, 0x00, "", 0);
    client_send_frame(&client, 0x00, "two ", 4);
    client_send_frame(&client, 0x89, "", 0);
    client_send_frame(&client, 0x80, "three", 5);
    cr_assert(client_read_frame(&client, &frame));
    cr_assert_eq(frame.opcode, 0x8a);
    cr_assert_eq(frame.bytes, 2);
    cr_assert_eq(memcmp(frame.payload, "p1", 2), 0);
    cr_assert(client_read_frame(&client, &frame));
    cr_assert_eq(frame.opcode, 0x8a);
    cr_assert_eq(frame.bytes, 0);
    expect_text(&client, "one two three");
    client_send_frame(&client, 0x01, "a", 1);
    client_send_frame(&client, 0x80, "", 0);
    expect_text(&client, "a");
    client_close(&client);
}

/* A thousand Pings in one write: every one is answered, in order. */
static void answers_every_ping_of_a_burst(void)
{
    struct client client;
    struct client_frame frame;
    uint8_t *burst = malloc(1000 * 32);
    size_t bytes = 0;
    open_client(&client);
    for (unsigned index = 0; index < 1000; index++) {
        char text[16];
        int length = sprintf(text, "ping %u", index);
        bytes += frame_build(burst + bytes, 0x89, text, (size_t)length, true);
    }
    cr_assert(client_send(&client, burst, bytes));
    for (unsigned index = 0; index < 1000; index++) {
        char text[16];
        int length = sprintf(text, "ping %u", index);
        cr_assert(client_read_frame(&client, &frame));
        cr_assert_eq(frame.opcode, 0x8a);
        cr_assert_eq(frame.bytes, (size_t)length);
        cr_assert_eq(memcmp(frame.payload, text, (size_t)length), 0);
    }
    client_close(&client);
    free(burst);
}

/* ---- offences ---- */

static void expect_offence(const void *bytes, size_t count, unsigned code)
{
    struct client client;
    open_client(&client);
    client_send(&client, bytes, count);
    expect_close(&client, code);
    cr_assert(client_read_end(&client));
    client_close(&client);
}

#define OFFENCE(code, ...)                                                                         \
    expect_offence((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), code)

static void closes_on_broken_frames(void)
{
    OFFENCE(1002, 0x81, 0x02, 'h', 'i');                           /* not masked */
    OFFENCE(1002, 0x81, 0x00);                                     /* not masked, empty */
    OFFENCE(1002, 0x89, 0x00);                                     /* Ping, not masked */
    OFFENCE(1002, 0xc1, 0x80, 1, 2, 3, 4);                         /* RSV1, as deflate would set */
    OFFENCE(1002, 0x83, 0x80, 1, 2, 3, 4);                         /* unknown opcode */
    OFFENCE(1002, 0x8b, 0x80, 1, 2, 3, 4);                         /* unknown control opcode */
    OFFENCE(1002, 0x09, 0x80, 1, 2, 3, 4);                         /* Ping in fragments */
    OFFENCE(1002, 0x89, 0xfe, 0, 126, 1, 2, 3, 4);                 /* Ping too long */
    OFFENCE(1002, 0x80, 0x80, 1, 2, 3, 4);                         /* continuation of nothing */
    OFFENCE(1002, 0x01, 0x80, 1, 2, 3, 4, 0x81, 0x80, 1, 2, 3, 4); /* message in a message */
    OFFENCE(1002, 0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4); /* length with its top bit */
    OFFENCE(1002, 0x88, 0x81, 0, 0, 0, 0, 3);                         /* Close with one byte */
    OFFENCE(1002, 0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed);                /* Close with 1005 */
    OFFENCE(1009, 0x81, 0xff, 0, 0, 0, 0, 1, 0, 0, 1, 1, 2, 3, 4);    /* 16 MiB + 1 */
    cr_assert_eq(server.messages, 0);
}

/* Five frames of 16 MiB: the one that makes the message exceed 64 MiB is refused. */
static void closes_on_a_message_beyond_its_limit(void)
{
    struct client client;
    open_client(&client);
    size_t bytes = WS_FRAME_BYTES_MAX;
    uint8_t *payload = calloc(1, bytes);
    for (unsigned index = 0; index < 4; index++)
        cr_assert(client_send_frame(&client, index ? 0x00 : 0x01, payload, bytes));
    client_send_frame(&client, 0x80, "x", 1);
    expect_close(&client, 1009);
    client_close(&client);
    free(payload);
    cr_assert_eq(server.messages, 0);
}

/* ---- closing ---- */

static void echoes_the_peers_close_and_ends(void)
{
    static const unsigned codes[] = {1000, 1001, 1012, 3000, 4999};
    for (unsigned index = 0; index < sizeof(codes) / sizeof(*codes); index++) {
        struct client client;
        open_client(&client);
        uint8_t payload[] = {(uint8_t)(codes[index] >> 8), (uint8_t)codes[index], 'b', 'y', 'e'};
        client_send_text(&client, "last");
        client_send_frame(&client, 0x88, payload, sizeof(payload));
        expect_text(&client, "last");
        expect_close(&client, codes[index]);
        cr_assert(client_read_end(&client));
        client_close(&client);
        await_count(&server.closed, index + 1);
    }
    struct client client;
    struct client_frame frame;
    open_client(&client);
    client_send_frame(&client, 0x88, "", 0);
    cr_assert(client_read_frame(&client, &frame));
    cr_assert_eq(frame.opcode, 0x88);
    cr_assert_eq(frame.bytes, 0);
    cr_assert(client_read_end(&client));
    client_close(&client);
}

static void closes_with_a_code_behind_what_was_sent(void)
{
    struct client client;
    open_client(&client);
    client_send_text(&client, "first");
    uint64_t asked_ns = uv_hrtime();
    client_send_text(&client, "close:4403");
    client_send_text(&client, "not taken any more");
    expect_text(&client, "first");
    expect_close(&client, 4403);
    unsigned closed = server.closed;
    if (uv_hrtime() - asked_ns < WS_CLOSE_WAIT_MS * 1000000ull)
        cr_assert_eq(closed, 0, "on_close waits for the peer");
    client_send_frame(&client, 0x88, "\x11\x33", 2);
    cr_assert(client_read_end(&client));
    client_close(&client);
    await_count(&server.closed, 1);
    cr_assert_eq(server.messages, 2);
}

static void aborts_without_a_close_frame(void)
{
    struct client client;
    open_client(&client);
    client_send_text(&client, "abort");
    cr_assert(client_read_end(&client));
    client_close(&client);
    await_count(&server.closed, 1);
}

Test(ws, closes_every_connection_when_the_server_ends, .init = start, .timeout = HANG_SECONDS)
{
    struct client clients[3];
    for (unsigned index = 0; index < 3; index++)
        open_client(&clients[index]);
    struct client half_open;
    cr_assert(connect_client(&half_open, 0));
    await_count(&server.accepted, 4);
    uv_async_send(&server.stop);
    for (unsigned index = 0; index < 2; index++) {
        expect_close(&clients[index], 1001);
        client_send_frame(&clients[index], 0x88, "\x03\xe9", 2);
        cr_assert(client_read_end(&clients[index]));
    }
    /* The third does not answer: it is cut off after the grace. */
    expect_close(&clients[2], 1001);
    cr_assert(client_read_end(&clients[2]));
    expect_unavailable(&half_open);
    pthread_join(server.thread, NULL);
    cr_assert_eq(server.closed, 3);
    client_close(&half_open);
    for (unsigned index = 0; index < 3; index++)
        client_close(&clients[index]);
}

/* ---- pausing, roles, times, limits ---- */

/* All four frames arrive in one read: what is behind "pause" is taken up after resuming only. */
static void stops_reading_in_the_middle_of_a_piece(void)
{
    static const char *const texts[] = {"before", "pause", "behind", "pause", "last"};
    uint8_t piece[256];
    size_t bytes = 0;
    struct client client;
    open_client(&client);
    for (unsigned index = 0; index < 5; index++)
        bytes += frame_build(piece + bytes, 0x81, texts[index], strlen(texts[index]), true);
    client_send(&client, piece, bytes);
    expect_text(&client, "before");
    expect_text(&client, "resumed");
    expect_text(&client, "behind");
    expect_text(&client, "resumed");
    expect_text(&client, "last");
    client_close(&client);
}

static void start_timeless(void)
{
    server.options = (struct ws_options){.connections_max = 10};
    server_start();
}

/* What is taken up after resuming is followed by the owner's end of a turn, though nothing else
 * wakes the loop. */
Test(ws, gives_the_owner_a_turn_after_resuming, .init = start_timeless, .fini = stop,
     .timeout = HANG_SECONDS)
{
    uint8_t piece[64];
    struct client client;
    open_client(&client);
    size_t bytes = frame_build(piece, 0x81, "pause", 5, true);
    bytes += frame_build(piece + bytes, 0x81, "turn", 4, true);
    client_send(&client, piece, bytes);
    expect_text(&client, "resumed");
    expect_text(&client, "turned");
    client_close(&client);
}

static void reads_and_discards_telemetry(void)
{
    struct client client;
    struct client_frame frame;
    cr_assert(open_path(&client, "/otel", 0));
    char *payload = calloc(1, 100000);
    client_send_frame(&client, 0x82, payload, 100000);
    client_send_frame(&client, 0x02, payload, 100);
    client_send_frame(&client, 0x89, "p", 1);
    client_send_frame(&client, 0x80, payload, 100);
    cr_assert(client_read_frame(&client, &frame));
    cr_assert_eq(frame.opcode, 0x8a);
    client_send_frame(&client, 0x88, "\x03\xe8", 2);
    expect_close(&client, 1000);
    client_close(&client);
    free(payload);
    cr_assert_eq(server.opened, 0);
    cr_assert_eq(server.messages, 0);
}

static void start_impatient(void)
{
    server.options = (struct ws_options){.handshake_timeout_ms = 200, .connections_max = 10};
    server_start();
}

/* One connection says nothing, one half a request. */
Test(ws, drops_half_open_connections, .init = start_impatient, .fini = stop,
     .timeout = HANG_SECONDS)
{
    struct client silent, half;
    cr_assert(connect_client(&silent, 0));
    cr_assert(connect_client(&half, 0));
    client_send(&half, "GET / HT", 8);
    cr_assert(client_read_end(&silent));
    cr_assert(client_read_end(&half));
    client_close(&silent);
    client_close(&half);
}

/* So long that one who answers is in time even if it stands still meanwhile. */
static void start_pinging(void)
{
    server.options = (struct ws_options){.handshake_timeout_ms = LONG_MS,
                                         .ping_interval_ms = 100,
                                         .idle_timeout_ms = 12000,
                                         .connections_max = 10};
    server_start();
}

/* One is silent after its handshake and dropped; the one that answers Pings is not, nor the one that
 * has much to read, which no Ping can reach, and reads it. */
Test(ws, drops_silent_connections, .init = start_pinging, .fini = stop, .timeout = HANG_SECONDS)
{
    struct client silent, lively, reading;
    struct client_frame frame;
    open_client(&lively);
    open_client(&silent);
    cr_assert(open_path(&reading, "/", 4096));
    client_send_text(&reading, "fill");
    unsigned pings = 0, read = 0;
    for (unsigned pings_after = 0; pings_after<30; pings_after += server.closed> 0) {
        cr_assert(client_read_frame(&lively, &frame));
        cr_assert_eq(frame.opcode, 0x89);
        client_send_frame(&lively, 0x8a, frame.payload, frame.bytes);
        if (server.filled == 0 || ++pings % 3 != 0)
            continue;
        cr_assert_eq(read_text(&reading).bytes, 65536);
        read++;
    }
    cr_assert_eq(server.closed, 1);
    cr_assert_lt(read, server.filled);
    while (client_read_frame(&silent, &frame))
        cr_assert_eq(frame.opcode, 0x89);
    cr_assert(silent.has_ended);
    client_send_text(&lively, "here");
    do {
        cr_assert(client_read_frame(&lively, &frame));
    } while (frame.opcode == 0x89);
    cr_assert_eq(frame.opcode, 0x81);
    client_close(&silent);
    client_close(&lively);
    client_close(&reading);
}

/* Requests that come all at once are taken a bounded number a turn, in their order, and each is
 * answered. */
Test(ws, bounds_the_request_heads_of_a_turn, .init = start, .timeout = HANG_SECONDS)
{
    enum { CLIENTS = 5 * WS_HEADS_PER_TURN };
    static struct client clients[CLIENTS];
    struct client live;
    char head[4096];
    open_client(&live);
    for (unsigned index = 0; index < CLIENTS; index++)
        cr_assert(connect_client(&clients[index], 0));
    await_count(&server.accepted, CLIENTS + 1);
    client_send_text(&live, "sleep");
    await_count(&server.sleeping, 1);
    for (unsigned index = 0; index < CLIENTS; index++) {
        char target[16];
        snprintf(target, sizeof(target), "/?n=%u", index);
        send_held(&clients[index], target, NULL);
        cr_assert(client_await_arrival(&clients[index]));
    }
    client_send_text(&live, "live");
    server.sleeping = 0;
    for (unsigned index = 0; index < CLIENTS; index++) {
        cr_assert(client_read_head(&clients[index], head, sizeof(head)));
        cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "%s", head);
        client_close(&clients[index]);
    }
    expect_text(&live, "live");
    client_close(&live);
    stop();
    cr_assert_eq(server.next_number, CLIENTS);
    cr_assert_not(server.is_out_of_order);
    cr_assert_eq(server.upgrades_most, WS_HEADS_PER_TURN);
    cr_assert_geq(server.counters.values[COUNTER_HANDSHAKES_DEFERRED], 4);
}

/* What a server with `most` connections says when it opens under a limit of descriptors. */
static void open_under_limit(rlim_t soft, rlim_t hard, unsigned most, char *said, size_t said_bytes)
{
    struct rlimit limit = {.rlim_cur = soft, .rlim_max = hard};
    FILE *file = tmpfile();
    int before = dup(STDERR_FILENO);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    dup2(fileno(file), STDERR_FILENO);
    server.options = (struct ws_options){.connections_max = most};
    server_start();
    dup2(before, STDERR_FILENO);
    rewind(file);
    size_t bytes = fread(said, 1, said_bytes - 1, file);
    said[bytes] = '\0';
    fclose(file);
    close(before);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_eq(limit.rlim_cur, hard < most + 512 ? hard : most + 512);
}

Test(ws, raises_the_descriptor_limit_in_silence, .fini = stop, .timeout = HANG_SECONDS)
{
    char said[1024];
    open_under_limit(100, 2000, 1000, said, sizeof(said));
    cr_assert_str_eq(said, "");
}

Test(ws, says_how_many_connections_the_descriptors_allow, .fini = stop, .timeout = HANG_SECONDS)
{
    char said[1024];
    open_under_limit(100, 200, 1000, said, sizeof(said));
    cr_assert(strstr(said, "event=descriptors_short limit=200 connections_max=1000 "
                           "connections_possible=150 "),
              "%s", said);
    cr_assert(strstr(said, " to 1512, or set connections_max to 150\""), "%s", said);
    cr_assert_eq(strchr(said, '\n'), said + strlen(said) - 1, "one line");
}

static void start_small(void)
{
    server.options = (struct ws_options){
        .handshake_timeout_ms = LONG_MS, .connections_max = 2, .retry = &server.retry};
    retry_init(&server.retry, 2500, 1);
    server_start();
}

Test(ws, refuses_connections_beyond_the_limit, .init = start_small, .fini = stop,
     .timeout = HANG_SECONDS)
{
    struct client first, second, third;
    char head[4096];
    open_client(&first);
    open_client(&second);
    cr_assert(connect_client(&third, 0));
    cr_assert(client_read_head(&third, head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 503", 12), 0);
    const char *retry = strstr(head, "\r\nRetry-After: ");
    cr_assert(retry, "%s", head);
    cr_assert_geq(atoi(retry + 15), 3, "%s", head);
    cr_assert(client_read_end(&third));
    client_close(&first);
    client_close(&second);
    client_close(&third);
}

/* The backlog takes what the socket does not, up to its limit and no more; all that was taken
 * arrives. */
static void bounds_the_backlog_of_a_peer_that_does_not_read(void)
{
    struct client client;
    struct client_frame frame;
    cr_assert(open_path(&client, "/", 4096));
    client_send_text(&client, "fill");
    while (!server.filled)
        usleep(1000);
    cr_assert_geq(server.filled, WS_BACKLOG_BYTES_MAX / (65536 + 10));
    for (unsigned index = 0; index < server.filled; index++) {
        frame = read_text(&client);
        cr_assert_eq(frame.bytes, 65536);
    }
    client_send_text(&client, "again");
    expect_text(&client, "again");
    client_close(&client);
}

/* ---- the rule's test ---- */

#define STRESS_CLIENTS 200
#define STRESS_SLOW 50
#define STRESS_FRAMES 240

struct stress_client {
    pthread_t thread;
    bool is_slow, is_tls;
    unsigned pings_sent, pongs_seen, frames_seen;
    char fault[120];
};

static void stress_check(struct stress_client *own, const struct client_frame *frame,
                         char *expected)
{
    if (frame->opcode == 0x8a) {
        char text[16];
        int bytes = snprintf(text, sizeof(text), "%u", own->pongs_seen);
        if (frame->bytes != (size_t)bytes || memcmp(frame->payload, text, frame->bytes) != 0)
            snprintf(own->fault, sizeof(own->fault), "pong %u is wrong", own->pongs_seen);
        own->pongs_seen++;
        return;
    }
    size_t bytes = stress_bytes(own->frames_seen);
    stress_fill(expected, bytes, own->frames_seen);
    if (frame->opcode != 0x81 || frame->bytes != bytes ||
        memcmp(frame->payload, expected, bytes) != 0)
        snprintf(own->fault, sizeof(own->fault), "frame %u: opcode %x, %zu bytes instead of %zu",
                 own->frames_seen, frame->opcode, frame->bytes, bytes);
    own->frames_seen++;
}

static void *stress_run(void *context)
{
    struct stress_client *own = context;
    struct client client;
    struct client_frame frame;
    char *expected = malloc(STRESS_BYTES_MAX);
    if (!open_path(&client, "/", own->is_slow ? 2048 : 0))
        snprintf(own->fault, sizeof(own->fault), "no handshake");
    while (!own->fault[0] &&
           (own->frames_seen < STRESS_FRAMES || own->pongs_seen < own->pings_sent)) {
        if (own->is_slow)
            usleep(1000);
        if (own->frames_seen < STRESS_FRAMES && own->pings_sent < own->frames_seen / 4 + 1) {
            char text[16];
            int bytes = snprintf(text, sizeof(text), "%u", own->pings_sent);
            if (client_send_frame(&client, 0x89, text, (size_t)bytes))
                own->pings_sent++;
        }
        if (!client_read_frame(&client, &frame))
            snprintf(own->fault, sizeof(own->fault), "the stream ended after frame %u",
                     own->frames_seen);
        else
            stress_check(own, &frame, expected);
    }
    client_close(&client);
    free(expected);
    return NULL;
}

static void start_stress(bool use_uring)
{
    const char *seed = getenv("WEIR_SEED");
    server.options = (struct ws_options){.handshake_timeout_ms = LONG_MS,
                                         .ping_interval_ms = 0,
                                         .connections_max = 1000,
                                         .use_uring = use_uring};
    server.options.tls_certificate_path = server.tls_certificate;
    server.options.tls_key_path = server.tls_key;
    server.random = seed ? (uint32_t)strtoul(seed, NULL, 0) : (uint32_t)time(NULL);
    fprintf(stderr, "WEIR_SEED=%u\n", server.random);
    server.send_buffer_bytes = 8 * 1024;
    server.frames_each = STRESS_FRAMES;
    server.batch_bytes = malloc(BATCH_BYTES_MAX);
    server_start();
}

static void stress_clients(unsigned count, unsigned slow_count, bool is_tls)
{
    static struct stress_client clients[STRESS_CLIENTS];
    for (unsigned index = 0; index < count; index++) {
        clients[index].is_slow = index < slow_count;
        clients[index].is_tls = is_tls;
        cr_assert_eq(pthread_create(&clients[index].thread, NULL, stress_run, &clients[index]), 0);
    }
    for (unsigned index = 0; index < count; index++)
        pthread_join(clients[index].thread, NULL);
    for (unsigned index = 0; index < count; index++) {
        cr_expect_eq(clients[index].fault[0], '\0', "client %u%s: %s", index,
                     clients[index].is_slow ? " (slow)" : "", clients[index].fault);
        cr_expect_eq(clients[index].frames_seen, STRESS_FRAMES);
        cr_expect_eq(clients[index].pongs_seen, clients[index].pings_sent);
    }
    fprintf(stderr, "texts=%u batched=%u again=%u\n", server.texts_count, server.batched_count,
            server.again_count);
    cr_assert_eq(server.batched_count + server.texts_count, count * STRESS_FRAMES);
    cr_assert_gt(server.again_count, 0, "no connection was ever busy: the test tests nothing");
    stop();
    free(server.batch_bytes);
}

static void stress(bool use_uring)
{
    start_stress(use_uring);
    stress_clients(STRESS_CLIENTS, STRESS_SLOW, false);
}

/* 200 clients, 50 of them slow with a tiny receive buffer, payloads of 100 B to 64 KiB as texts and
 * in batches, Pings under load: every frame arrives byte for byte and in order, every Ping is
 * answered in order. */
Test(ws, mixes_plain_batches_and_texts_byte_exactly, .timeout = HANG_SECONDS)
{
    stress(false);
}
Test(ws, mixes_uring_batches_and_texts_byte_exactly, .timeout = HANG_SECONDS)
{
    stress(true);
}

static void with_certificate(void (*body)(void))
{
    char directory[] = "/tmp/weir-ws-test-XXXXXX";
    char certificate[64], key[64], command[400];
    cr_assert_not_null(mkdtemp(directory));
    snprintf(certificate, sizeof(certificate), "%s/certificate.pem", directory);
    snprintf(key, sizeof(key), "%s/key.pem", directory);
    snprintf(command, sizeof(command),
             "openssl req -x509 -newkey rsa:2048 -nodes -keyout %s -out %s -subj /CN=localhost "
             "-days 2 2>/dev/null",
             key, certificate);
    if (system(command) != 0)
        cr_skip("the openssl command is not installed");
    server.tls_certificate = certificate;
    server.tls_key = key;
    server.is_tls = true;
    body();
    while (waitpid(-1, NULL, 0) > 0)
        ;
    unlink(certificate);
    unlink(key);
    rmdir(directory);
}

/* ---- the same promises, plain and over TLS ---- */

#define PROMISES(X)                                                                                \
    X(accepts_an_upgrade_without_extensions)                                                       \
    X(holds_an_upgrade_and_what_comes_behind_it)                                                   \
    X(refuses_a_held_upgrade_without_a_body)                                                       \
    X(outlives_clients_that_vanish_while_held)                                                     \
    X(answers_the_authorization_subprotocol_and_never_the_token)                                   \
    X(refuses_bad_requests_with_a_status)                                                          \
    X(refuses_a_request_head_beyond_its_limit)                                                     \
    X(serves_plain_requests_and_keeps_the_connection)                                              \
    X(echoes_messages_of_all_lengths_however_cut)                                                  \
    X(joins_fragments_and_answers_pings_between_them)                                              \
    X(answers_every_ping_of_a_burst)                                                               \
    X(closes_on_broken_frames)                                                                     \
    X(closes_on_a_message_beyond_its_limit)                                                        \
    X(echoes_the_peers_close_and_ends)                                                             \
    X(closes_with_a_code_behind_what_was_sent)                                                     \
    X(aborts_without_a_close_frame)                                                                \
    X(stops_reading_in_the_middle_of_a_piece)                                                      \
    X(reads_and_discards_telemetry)                                                                \
    X(bounds_the_backlog_of_a_peer_that_does_not_read)

#define PLAIN(name)                                                                                \
    Test(ws, name, .init = start, .fini = stop, .timeout = HANG_SECONDS)                           \
    {                                                                                              \
        name();                                                                                    \
    }
PROMISES(PLAIN)

static void all_over_tls(void)
{
    static const struct {
        const char *name;
        void (*body)(void);
    } promises[] = {
#define ROW(name) {#name, name},
        PROMISES(ROW)
#undef ROW
    };
    const struct server fresh = server;
    for (unsigned index = 0; index < sizeof(promises) / sizeof(*promises); index++) {
        fprintf(stderr, "over TLS: %s\n", promises[index].name);
        server = fresh;
        start();
        promises[index].body();
        stop();
    }
}

Test(ws, keeps_the_same_promises_over_tls, .timeout = HANG_SECONDS)
{
    with_certificate(all_over_tls);
}

static void stress_over_tls(void)
{
    start_stress(true);
    stress_clients(6, 2, true);
}

/* The same over TLS, where everything goes through lws_write. */
Test(ws, sends_byte_exactly_over_tls, .timeout = HANG_SECONDS)
{
    with_certificate(stress_over_tls);
}

static void hold_over_tls(void)
{
    struct client client;
    char head[4096];
    server.options = (struct ws_options){.handshake_timeout_ms = LONG_MS,
                                         .connections_max = 10,
                                         .tls_certificate_path = server.tls_certificate,
                                         .tls_key_path = server.tls_key};
    server_start();
    cr_assert(connect_client(&client, 0));
    cr_assert(client_upgrade(&client, "/held?50:101", "", head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 101 ", 13), 0, "%s", head);
    client_send_text(&client, "hello");
    expect_text(&client, "hello");
    client_close(&client);
    cr_assert(connect_client(&client, 0));
    cr_assert(client_upgrade(&client, "/held?50:401", "", head, sizeof(head)));
    cr_assert_eq(strncmp(head, "HTTP/1.1 401 ", 13), 0, "%s", head);
    cr_assert(client_read_end(&client));
    client_close(&client);
    await_count(&server.closed, 1);
    stop();
}

Test(ws, holds_upgrades_over_tls, .timeout = HANG_SECONDS)
{
    with_certificate(hold_over_tls);
}

static void outlive_over_tls(void)
{
    struct client client;
    server.options = (struct ws_options){.handshake_timeout_ms = 1000,
                                         .connections_max = 10,
                                         .tls_certificate_path = server.tls_certificate,
                                         .tls_key_path = server.tls_key};
    server_start();
    while (!open_path(&client, "/", 0)) /* it was too slow for a second, and comes again */
        client_close(&client);
    sleep(4);
    client_send_text(&client, "still there");
    expect_text(&client, "still there");
    client_close(&client);
    stop();
}

/* The time a handshake may take does not go on after it: libwebsockets' does, unless it is told. */
Test(ws, outlives_the_handshakes_time_limit_over_tls, .timeout = HANG_SECONDS)
{
    with_certificate(outlive_over_tls);
}

static void *vanish_run(void *context)
{
    struct stress_client *own = context;
    struct client_frame frame;
    for (unsigned round = 0; round < 12; round++) {
        struct client client;
        if (!open_path(&client, "/", own->is_slow ? 2048 : 0)) {
            snprintf(own->fault, sizeof(own->fault), "no handshake");
            client_close(&client);
            break;
        }
        for (unsigned count = mix(round + own->pings_sent) % 40; count; count--)
            if (!client_read_frame(&client, &frame))
                snprintf(own->fault, sizeof(own->fault), "the stream ended early");
        /* Every other one resets the connection. */
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        if (round & 1)
            setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
        client_close(&client);
    }
    return NULL;
}

/* Clients that go away in the middle of everything: each on_open has its on_close, the others are
 * served on. */
Test(ws, outlives_clients_that_vanish, .timeout = HANG_SECONDS)
{
    enum { VANISHING = 30 };
    static struct stress_client clients[VANISHING + 1];
    start_stress(true);
    for (unsigned index = 0; index <= VANISHING; index++) {
        clients[index].is_slow = index % 3 == 0;
        clients[index].pings_sent = index < VANISHING ? index : 0;
        pthread_create(&clients[index].thread, NULL, index < VANISHING ? vanish_run : stress_run,
                       &clients[index]);
    }
    for (unsigned index = 0; index <= VANISHING; index++)
        pthread_join(clients[index].thread, NULL);
    for (unsigned index = 0; index <= VANISHING; index++)
        cr_expect_eq(clients[index].fault[0], '\0', "client %u: %s", index, clients[index].fault);
    cr_expect_eq(clients[VANISHING].frames_seen, STRESS_FRAMES);
    await_count(&server.closed, VANISHING * 12 + 1);
    stop();
    free(server.batch_bytes);
}

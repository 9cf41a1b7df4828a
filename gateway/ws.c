#include <arpa/inet.h>
#include <libwebsockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/handshake.h"
#include "gateway/ws_private.h"

enum {
    READ_BYTES = 64 * 1024,      /* one buffer for all connections */
    TLS_WRITE_BYTES = 16 * 1024, /* one TLS record */
    TLS_TURN_BYTES = 256 * 1024, /* written to one TLS connection in one callback */
    DESCRIPTORS_SPARE = 1024,    /* beside connections: files, sockets to the broker, listeners */
    LOG_LINES_PER_SECOND = 10,
    PEER_BYTES = INET6_ADDRSTRLEN + 9 /* "[...]:65535" */
};

/* ---- what the other files need of libwebsockets ---- */

void ws_await_writable(struct ws_connection *connection)
{
    connection->is_blocked = true;
    lws_callback_on_writable(connection->wsi);
}

void ws_apply_reading(struct ws_connection *connection)
{
    if (connection->wsi)
        lws_rx_flow_control(connection->wsi, !connection->is_paused && !connection->is_stalled);
}

void ws_accept_key(char *out, size_t out_bytes, struct span key)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* RFC 6455 section 1.3 */
    unsigned char joined[HANDSHAKE_KEY_BYTES + sizeof(guid)];
    memcpy(joined, key.data, HANDSHAKE_KEY_BYTES);
    memcpy(joined + HANDSHAKE_KEY_BYTES, guid, sizeof(guid) - 1);
    unsigned char hash[20];
    lws_SHA1(joined, HANDSHAKE_KEY_BYTES + sizeof(guid) - 1, hash);
    int encoded = lws_b64_encode_string((const char *)hash, sizeof(hash), out, (int)out_bytes);
    weir_assert(encoded > 0);
}

/* ---- called by libwebsockets ---- */

/* Inside the writable callback only. */
static void tls_write(struct ws_connection *connection)
{
    size_t written = 0;
    struct send_pool *pool = &connection->server->send_pool;
    while (connection->output && !lws_partial_buffered(connection->wsi) &&
           written < TLS_TURN_BYTES) {
        struct span owed = send_buffer_span(connection->output);
        size_t bytes = owed.bytes < TLS_WRITE_BYTES ? owed.bytes : TLS_WRITE_BYTES;
        if (lws_write(connection->wsi, (unsigned char *)owed.data, bytes, LWS_WRITE_RAW) < 0) {
            ws_connection_kill(connection);
            return;
        }
        send_buffer_consume(pool, &connection->output, bytes);
        written += bytes;
    }
    /* A raw socket of lws is not read while lws holds output, yet would be polled for input all the
     * time. */
    bool is_stalled = lws_partial_buffered(connection->wsi) != 0;
    if (is_stalled != connection->is_stalled) {
        connection->is_stalled = is_stalled;
        connection->inbound_ms = uv_now(connection->server->loop); /* it reads, so it lives */
        ws_apply_reading(connection);
    }
    if (is_stalled || connection->output)
        ws_await_writable(connection);
    else
        ws_connection_drained(connection);
}

/* libwebsockets lets go of the socket. */
static void connection_gone(struct ws_connection *connection)
{
    struct ws_server *server = connection->server;
    lws_set_opaque_user_data(connection->wsi, NULL);
    connection->wsi = NULL;
    connection->state = WS_STATE_DEAD;
    ws_link_remove(&connection->queue);
    ws_link_remove(&connection->dirty);
    ws_batch_forget(connection);
    if (connection->was_opened) {
        connection->was_opened = false;
        server->handlers.on_close(server->handlers.context, connection);
        ws_link_remove(&connection->dirty); /* what was tried inside on_close has no effect */
    }
    if (connection->held) {
        free(connection->held);
        server->handlers.on_refused(server->handlers.context, connection->user);
    }
    frame_assembly_release(&server->frame_pool, &connection->assembly);
    send_buffer_release(&server->send_pool, &connection->output);
    send_buffer_release(&server->send_pool, &connection->input);
    server->connection_count--;
    if (!connection->is_adopting)
        free(connection);
}

static int on_input(struct ws_connection *connection, char *data, size_t bytes)
{
    if (connection->state == WS_STATE_DEAD)
        return -1;
    connection->inbound_ms = uv_now(connection->server->loop);
    bool was_http = connection->state == WS_STATE_HTTP;
    size_t owed_before = send_buffer_bytes(connection->output);
    ws_connection_take_input(connection, data, bytes);
    if (connection->state == WS_STATE_DEAD)
        return -1;
    /* The owner need not know of requests and of the peer's Close; the rest waits for the end of
     * the turn. */
    bool owes_more = send_buffer_bytes(connection->output) > owed_before;
    if ((was_http && owes_more) || connection->state == WS_STATE_DRAIN)
        ws_connection_flush(connection);
    return connection->state == WS_STATE_DEAD ? -1 : 0;
}

static int on_can_write(struct ws_connection *connection)
{
    if (connection->state == WS_STATE_DEAD)
        return -1;
    connection->is_blocked = false;
    if (connection->state == WS_STATE_HTTP)
        connection->inbound_ms = uv_now(connection->server->loop);
    if (connection->is_tls)
        tls_write(connection);
    else
        ws_connection_flush(connection);
    if (connection->state == WS_STATE_OPEN && connection->owes_writable &&
        !connection->is_blocked && !connection->output) {
        connection->owes_writable = false;
        const struct ws_handlers *handlers = &connection->server->handlers;
        handlers->on_writable(handlers->context, connection);
    }
    return connection->state == WS_STATE_DEAD ? -1 : 0;
}

static int on_lws(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
                  size_t bytes)
{
    (void)user;
    struct ws_connection *connection;
    switch (reason) {
    case LWS_CALLBACK_RAW_RX:
        connection = lws_get_opaque_user_data(wsi);
        return connection ? on_input(connection, in, bytes) : -1;
    case LWS_CALLBACK_RAW_WRITEABLE:
        connection = lws_get_opaque_user_data(wsi);
        return connection ? on_can_write(connection) : -1;
    case LWS_CALLBACK_RAW_ADOPT:
        connection = lws_get_opaque_user_data(wsi);
        if (connection)
            connection->wsi = wsi;
        return 0;
    case LWS_CALLBACK_RAW_CLOSE:
    case LWS_CALLBACK_WSI_DESTROY:
        connection = lws_get_opaque_user_data(wsi);
        if (connection) {
            connection->wsi = wsi;
            connection_gone(connection);
        }
        return 0;
    default:
        return 0;
    }
}

/* ---- taking over a socket ---- */

static void peer_format(int fd, char out[PEER_BYTES])
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {.v6 = {0}};
    socklen_t bytes = sizeof(address);
    char host[INET6_ADDRSTRLEN] = "?";
    if (getpeername(fd, &address.any, &bytes) != 0) {
        (void)snprintf(out, PEER_BYTES, "?:0");
    } else if (address.any.sa_family == AF_INET6) {
        (void)inet_ntop(AF_INET6, &address.v6.sin6_addr, host, sizeof(host));
        (void)snprintf(out, PEER_BYTES, "[%s]:%u", host, ntohs(address.v6.sin6_port));
    } else {
        (void)inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof(host));
        (void)snprintf(out, PEER_BYTES, "%s:%u", host, ntohs(address.v4.sin_port));
    }
}

static void refuse_full(int fd, bool tls)
{
    static const char text[] =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    if (!tls)
        (void)send(fd, text, sizeof(text) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

static struct ws_connection *connection_make(struct ws_server *server, int fd, enum ws_port port,
                                             bool tls)
{
    char peer[PEER_BYTES];
    peer_format(fd, peer);
    size_t peer_bytes = strlen(peer) + 1;
    struct ws_connection *connection = calloc(1, sizeof(*connection) + peer_bytes);
    if (!connection)
        return NULL;
    memcpy(connection->peer, peer, peer_bytes);
    connection->server = server;
    connection->fd = fd;
    connection->port = (uint8_t)port;
    connection->is_tls = tls;
    connection->inbound_ms = uv_now(server->loop);
    ws_link_init(&connection->queue);
    ws_link_init(&connection->dirty);
    ws_queue_move(connection, &server->handshakes, server->options.handshake_timeout_ms);
    return connection;
}

void ws_server_adopt(struct ws_server *server, int fd, enum ws_port port, bool tls)
{
    struct lws_vhost *vhost = tls ? server->vhost_tls : server->vhost;
    if (server->is_closing || server->connection_count >= server->options.connections_max ||
        !vhost || fd >= server->fd_max) {
        refuse_full(fd, tls);
        return;
    }
    struct ws_connection *connection = connection_make(server, fd, port, tls);
    if (!connection) {
        refuse_full(fd, tls);
        return;
    }
    server->connection_count++;
    connection->is_adopting = true;
    lws_adopt_desc_t description = {.vh = vhost,
                                    .type = tls ? LWS_ADOPT_SOCKET | LWS_ADOPT_ALLOW_SSL
                                                : LWS_ADOPT_SOCKET,
                                    .fd.sockfd = fd,
                                    .opaque = connection};
    struct lws *wsi = lws_adopt_descriptor_vhost_via_info(&description);
    connection->is_adopting = false;
    if (wsi) {
        connection->wsi = wsi;
        return;
    }
    /* lws has closed the descriptor, and may have told us so. */
    if (connection->state != WS_STATE_DEAD) {
        ws_link_remove(&connection->queue);
        server->connection_count--;
    }
    free(connection);
}

/* ---- the end of a turn ---- */

static void on_again(uv_idle_t *idle)
{
    uv_idle_stop(idle);
}

/* The owner has been called where his own end of the turn may have passed: he gets another before
 * the loop waits. */
static void turn_again(struct ws_server *server)
{
    uv_idle_start(&server->again, on_again);
}

static void dirty_handle(struct ws_connection *connection)
{
    ws_link_remove(&connection->dirty);
    if (connection->resumes && connection->state != WS_STATE_DEAD) {
        connection->resumes = false;
        ws_connection_take_input(connection, NULL, 0);
        turn_again(connection->server);
    }
    ws_connection_flush(connection);
    if (connection->state != WS_STATE_DEAD || !connection->wsi)
        return;
    turn_again(connection->server);
    lws_set_timeout(connection->wsi, PENDING_TIMEOUT_USER_OK, LWS_TO_KILL_SYNC);
}

/* Runs before the loop waits, so nothing gathered, resumed or killed is left behind. It ends
 * because resuming takes up only what has been read, and a dead connection is let go of. */
static void on_prepare(uv_prepare_t *prepare)
{
    struct ws_server *server = prepare->data;
    while (!ws_link_is_alone(&server->dirty))
        dirty_handle(WS_CONNECTION_OF(server->dirty.next, dirty));
}

void ws_flush(struct ws_server *server)
{
    struct ws_link *link = server->dirty.next;
    while (link != &server->dirty) {
        struct ws_connection *connection = WS_CONNECTION_OF(link, dirty);
        link = link->next;
        ws_connection_flush(connection);
        /* Resuming and letting go are on_prepare()'s. */
        if (!connection->resumes && connection->state != WS_STATE_DEAD)
            ws_link_remove(&connection->dirty);
    }
}

/* ---- opening ---- */

/* lws's own lines on our stderr, one line each, a few a second at most. */
static void on_lws_log(int level, const char *line)
{
    static time_t second;
    static unsigned count;
    (void)level;
    time_t now = time(NULL);
    if (now != second) {
        second = now;
        count = 0;
    }
    if (count++ < LOG_LINES_PER_SECOND)
        (void)fprintf(stderr, "weir-gateway: event=libwebsockets text=\"%.*s\"\n",
                      (int)strcspn(line, "\n"), line);
}

static const struct lws_protocols protocols[] = {
    {.name = "weir", .callback = on_lws, .tx_packet_size = READ_BYTES},
    {.name = NULL},
};

/* lws sizes a table by the soft limit of descriptors: raise it to what connections need, and keep
 * it from being sized for a limit far beyond that. */
static struct rlimit descriptors_reserve(struct ws_server *server)
{
    struct rlimit limit = {0};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return limit;
    rlim_t wanted = (rlim_t)server->options.connections_max + DESCRIPTORS_SPARE;
    struct rlimit during = limit;
    during.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &during) == 0) {
        server->fd_max = (int)during.rlim_cur;
        if (limit.rlim_cur < during.rlim_cur)
            limit.rlim_cur = during.rlim_cur;
    } else {
        server->fd_max = (int)limit.rlim_cur;
    }
    return limit;
}

static struct lws_vhost *vhost_open(struct ws_server *server, bool tls)
{
    struct lws_context_creation_info info = {0};
    info.port = tls ? CONTEXT_PORT_NO_LISTEN_SERVER : CONTEXT_PORT_NO_LISTEN;
    info.protocols = protocols;
    info.vhost_name = tls ? "weir-tls" : "weir";
    if (tls) {
        info.options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
        info.ssl_cert_filepath = server->options.tls_certificate_path;
        info.ssl_private_key_filepath = server->options.tls_key_path;
    }
    return lws_create_vhost(server->context, &info);
}

static enum weir_status context_open(struct ws_server *server, struct weir_error *error)
{
    bool tls = server->options.tls_certificate_path && server->options.tls_key_path;
    lws_set_log_level(LLL_ERR, on_lws_log);
    struct rlimit after = descriptors_reserve(server);
    void *loops[] = {server->loop};
    struct lws_context_creation_info info = {0};
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_LIBUV |
                   LWS_SERVER_OPTION_SKIP_SERVER_CANONICAL_NAME;
    if (tls)
        info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
    info.foreign_loops = loops;
    info.pcontext = &server->context;
    info.pt_serv_buf_size = READ_BYTES + LWS_PRE;
    server->context = lws_create_context(&info);
    if (after.rlim_cur)
        (void)setrlimit(RLIMIT_NOFILE, &after);
    if (!server->context)
        return weir_fail(error, WEIR_SYSTEM,
                         "libwebsockets does not start (is libwebsockets-evlib-uv installed?)");
    server->vhost = vhost_open(server, false);
    if (!server->vhost)
        return weir_fail(error, WEIR_NO_MEMORY, "libwebsockets has no memory");
    if (!tls)
        return WEIR_OK;
    server->vhost_tls = vhost_open(server, true);
    if (!server->vhost_tls)
        return weir_fail(error, WEIR_INVALID, "cannot serve TLS with certificate %s and key %s",
                         server->options.tls_certificate_path, server->options.tls_key_path);
    return WEIR_OK;
}

static void timers_open(struct ws_server *server)
{
    uv_timer_init(server->loop, &server->tick);
    uv_prepare_init(server->loop, &server->prepare);
    uv_idle_init(server->loop, &server->again);
    server->open_handles = 3;
    server->tick.data = server;
    server->prepare.data = server;
    server->again.data = server;
    uv_prepare_start(&server->prepare, on_prepare);
    uv_unref((uv_handle_t *)&server->tick);
    uv_unref((uv_handle_t *)&server->prepare);
    uv_unref((uv_handle_t *)&server->again);
}

enum weir_status ws_server_open(struct ws_server **server, uv_loop_t *loop,
                                const struct ws_options *options,
                                const struct ws_handlers *handlers, struct weir_error *error)
{
    *server = NULL;
    struct ws_server *own = calloc(1, sizeof(*own));
    if (!own)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the WebSocket server");
    own->loop = loop;
    own->options = *options;
    own->handlers = *handlers;
    ws_queue_init(own);
    ws_link_init(&own->dirty);
    timers_open(own);
    enum weir_status status = sender_open(&own->sender, options->use_uring, error);
    if (status == WEIR_OK)
        status = context_open(own, error);
    if (status != WEIR_OK) {
        ws_server_close(own, WS_GOING_AWAY, 0);
        return status;
    }
    *server = own;
    return WEIR_OK;
}

bool ws_has_uring(const struct ws_server *server)
{
    return sender_has_uring(server->sender);
}

void ws_server_end_http(struct ws_server *server)
{
    server->ends_http = true;
}

unsigned ws_connection_count(const struct ws_server *server)
{
    return server->connection_count;
}

void ws_visit(struct ws_server *server,
              bool (*visit)(void *context, struct ws_connection *connection, enum ws_role role),
              void *context)
{
    struct ws_link *link = server->established.next;
    while (link != &server->established) {
        struct ws_link *next = link->next; /* only the one at hand may leave the queue */
        struct ws_connection *connection = WS_CONNECTION_OF(link, queue);
        if (connection->state == WS_STATE_OPEN &&
            !visit(context, connection, (enum ws_role)connection->role))
            return;
        link = next;
    }
}

/* ---- closing the server ---- */

static void queue_close(struct ws_link *queue, unsigned code)
{
    struct ws_link *link = queue->next;
    while (link != queue) {
        struct ws_link *next = link->next;
        struct ws_connection *connection = WS_CONNECTION_OF(link, queue);
        if (code && connection->state == WS_STATE_OPEN)
            ws_close_code(connection, code, NULL);
        else if (!code || connection->state == WS_STATE_HTTP || connection->state == WS_STATE_HELD)
            ws_connection_kill(connection);
        link = next;
    }
}

static void connections_close(struct ws_server *server, unsigned code)
{
    queue_close(&server->handshakes, code);
    queue_close(&server->established, code);
    if (!code)
        queue_close(&server->closing, code);
}

static void on_grace_over(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

static void on_local_closed(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

static void connections_wait(struct ws_server *server, unsigned grace_ms)
{
    bool is_over = grace_ms == 0;
    uv_timer_t grace;
    uv_timer_init(server->loop, &grace);
    grace.data = &is_over;
    uv_timer_start(&grace, on_grace_over, grace_ms, 0);
    while (server->connection_count && !is_over)
        uv_run(server->loop, UV_RUN_ONCE);
    bool is_closed = false;
    grace.data = &is_closed;
    uv_close((uv_handle_t *)&grace, on_local_closed);
    connections_close(server, 0);
    /* Killed connections go in on_prepare(); closing handles make the loop turn without waiting. */
    while (server->connection_count || !is_closed)
        uv_run(server->loop, UV_RUN_NOWAIT);
}

static void context_close(struct ws_server *server)
{
    enum { TURNS_MAX = 100 };
    if (server->context)
        lws_context_destroy(server->context);
    for (unsigned turn = 0; server->context && turn < TURNS_MAX; turn++)
        uv_run(server->loop, UV_RUN_NOWAIT);
    if (server->context)
        lws_context_destroy(server->context);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct ws_server *server = handle->data;
    server->open_handles--;
}

void ws_server_close(struct ws_server *server, enum ws_status_code code, unsigned grace_ms)
{
    if (!server)
        return;
    server->is_closing = true;
    connections_close(server, code);
    connections_wait(server, grace_ms);
    context_close(server);
    uv_close((uv_handle_t *)&server->tick, on_handle_closed);
    uv_close((uv_handle_t *)&server->prepare, on_handle_closed);
    uv_close((uv_handle_t *)&server->again, on_handle_closed);
    while (server->open_handles)
        uv_run(server->loop, UV_RUN_NOWAIT);
    sender_close(server->sender);
    send_pool_fini(&server->send_pool);
    frame_pool_fini(&server->frame_pool);
    ws_batch_fini(&server->batches[0]);
    ws_batch_fini(&server->batches[1]);
    free(server);
}

#include <libwebsockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "gateway/handshake.h"
#include "gateway/ws_private.h"

enum {
    TLS_WRITE_BYTES = 16 * 1024, /* one TLS record */
    TLS_TURN_BYTES = 256 * 1024, /* written to one connection in one callback */
    LOG_LINES_PER_SECOND = 10
};

/* ---- what the other files need of libwebsockets ---- */

void ws_tls_await_writable(struct ws_connection *connection)
{
    lws_callback_on_writable(connection->wsi);
}

void ws_tls_apply_reading(struct ws_connection *connection)
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
        connection->inbound_ms = ws_now_ms(connection->server); /* it reads, so it lives */
        ws_tls_apply_reading(connection);
    }
    if (is_stalled || connection->output)
        ws_await_writable(connection);
    else
        ws_connection_drained(connection);
}

/* libwebsockets lets go of the socket. */
static void on_gone(struct ws_connection *connection)
{
    lws_set_opaque_user_data(connection->wsi, NULL);
    connection->wsi = NULL;
    ws_connection_gone(connection);
    if (!connection->is_adopting)
        free(connection);
}

static int on_input(struct ws_connection *connection, char *data, size_t bytes)
{
    /* lws still waits for a protocol of its own and would close the socket in a few seconds. Times are
     * ws_queue.c's from here on. */
    if (connection->state == WS_STATE_HTTP)
        lws_set_timeout(connection->wsi, NO_PENDING_TIMEOUT, 0);
    if (connection->state != WS_STATE_DEAD)
        ws_input(connection, data, bytes);
    return connection->state == WS_STATE_DEAD ? -1 : 0;
}

static int on_can_write(struct ws_connection *connection)
{
    if (connection->state == WS_STATE_DEAD)
        return -1;
    connection->is_blocked = false;
    connection->inbound_ms = ws_now_ms(connection->server); /* it reads, so it lives */
    tls_write(connection);
    ws_tell_writable(connection);
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
            on_gone(connection);
        }
        return 0;
    default:
        return 0;
    }
}

/* ---- taking over a socket, and letting go ---- */

static const struct lws_protocols protocols[] = {
    {.name = "weir", .callback = on_lws, .tx_packet_size = WS_READ_BYTES},
    {.name = NULL},
};

void ws_tls_adopt(struct ws_connection *connection)
{
    struct ws_server *server = connection->server;
    connection->is_adopting = true;
    lws_adopt_desc_t description = {.vh = server->vhost,
                                    .type = LWS_ADOPT_SOCKET | LWS_ADOPT_ALLOW_SSL,
                                    .fd.sockfd = connection->fd,
                                    .opaque = connection};
    struct lws *wsi = lws_adopt_descriptor_vhost_via_info(&description);
    connection->is_adopting = false;
    if (wsi) {
        connection->wsi = wsi;
        return;
    }
    /* lws has closed the descriptor, and may have told us so. */
    if (connection->state != WS_STATE_DEAD)
        ws_connection_gone(connection);
    free(connection);
}

void ws_tls_let_go(struct ws_connection *connection)
{
    if (connection->wsi)
        lws_set_timeout(connection->wsi, PENDING_TIMEOUT_USER_OK, LWS_TO_KILL_SYNC);
}

/* ---- opening and closing ---- */

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

static enum weir_status vhost_open(struct ws_server *server, struct weir_error *error)
{
    struct lws_context_creation_info info = {0};
    info.port = CONTEXT_PORT_NO_LISTEN_SERVER;
    info.protocols = protocols;
    info.vhost_name = "weir-tls";
    info.options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
    info.ssl_cert_filepath = server->options.tls_certificate_path;
    info.ssl_private_key_filepath = server->options.tls_key_path;
    server->vhost = lws_create_vhost(server->context, &info);
    if (!server->vhost)
        return weir_fail(error, WEIR_INVALID, "cannot serve TLS with certificate %s and key %s",
                         server->options.tls_certificate_path, server->options.tls_key_path);
    return WEIR_OK;
}

enum weir_status ws_tls_open(struct ws_server *server, struct weir_error *error)
{
    if (!server->options.tls_certificate_path || !server->options.tls_key_path)
        return WEIR_OK;
    lws_set_log_level(LLL_ERR, on_lws_log);
    void *loops[] = {server->loop};
    struct lws_context_creation_info info = {0};
    info.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_LIBUV |
                   LWS_SERVER_OPTION_SKIP_SERVER_CANONICAL_NAME |
                   LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
    info.foreign_loops = loops;
    info.pcontext = &server->context;
    info.pt_serv_buf_size = WS_READ_BYTES + LWS_PRE;
    info.timeout_secs = (server->options.handshake_timeout_ms + 999) / 1000; /* 0: its own */
    /* lws sizes tables by the soft limit of descriptors, which may be far beyond what is used. */
    struct rlimit limit = {0};
    bool is_known = getrlimit(RLIMIT_NOFILE, &limit) == 0;
    struct rlimit during = {.rlim_cur = (rlim_t)server->fd_max, .rlim_max = limit.rlim_max};
    if (is_known)
        (void)setrlimit(RLIMIT_NOFILE, &during);
    server->context = lws_create_context(&info);
    if (is_known)
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (!server->context)
        return weir_fail(error, WEIR_SYSTEM,
                         "libwebsockets does not start (is libwebsockets-evlib-uv installed?)");
    return vhost_open(server, error);
}

void ws_tls_close(struct ws_server *server)
{
    enum { TURNS_MAX = 100 };
    if (server->context)
        lws_context_destroy(server->context);
    for (unsigned turn = 0; server->context && turn < TURNS_MAX; turn++)
        uv_run(server->loop, UV_RUN_NOWAIT);
    if (server->context)
        lws_context_destroy(server->context);
}

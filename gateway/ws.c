#include <arpa/inet.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/ws_private.h"

enum {
    /* Beside connections: files, the broker, listeners, libweir's connections. Accepting therefore
     * fails by the count of connections, not for want of a descriptor. */
    DESCRIPTORS_SPARE = 512,
    DESCRIPTORS_SPARE_PART = 4 /* of a limit too low for that: at most one in so many */
};

/* ---- plain or TLS ---- */

void ws_await_writable(struct ws_connection *connection)
{
    connection->is_blocked = true;
    if (connection->is_tls)
        ws_tls_await_writable(connection);
    else
        ws_plain_await_writable(connection);
}

void ws_apply_reading(struct ws_connection *connection)
{
    if (connection->is_tls)
        ws_tls_apply_reading(connection);
    else
        ws_plain_apply_reading(connection);
}

/* ---- what the socket says ---- */

void ws_connection_gone(struct ws_connection *connection)
{
    struct ws_server *server = connection->server;
    weir_assert(connection->batch_last == 0); /* no batch is open between the owner's calls */
    connection->state = WS_STATE_DEAD;
    ws_link_remove(&connection->queue);
    if (connection->was_opened) {
        connection->was_opened = false;
        server->handlers.on_close(server->handlers.context, connection);
    }
    ws_link_remove(&connection->turn); /* what was tried inside on_close has no effect */
    if (connection->is_held) {
        free(connection->held);
        server->handlers.on_refused(server->handlers.context, connection->user);
    } else {
        frame_assembly_release(&server->frame_pool, &connection->assembly);
    }
    send_buffer_release(&server->send_pool, &connection->output);
    send_buffer_release(&server->send_pool, &connection->input);
    server->connection_count--;
}

void ws_input(struct ws_connection *connection, char *data, size_t bytes)
{
    connection->inbound_ms = ws_now_ms(connection->server);
    size_t owed_before = send_buffer_bytes(connection->output);
    ws_connection_take_input(connection, data, bytes);
    if (connection->state == WS_STATE_DEAD)
        return;
    /* The owner need not know of plain requests and of the peer's Close. The rest waits for the end
     * of the turn: the answer to an upgrade so leaves with what the owner sends first. */
    bool owes_more = send_buffer_bytes(connection->output) > owed_before;
    bool is_http = connection->state == WS_STATE_HTTP;
    if ((is_http && owes_more) || connection->state == WS_STATE_DRAIN)
        ws_connection_flush(connection);
}

void ws_tell_writable(struct ws_connection *connection)
{
    if (connection->state != WS_STATE_OPEN || !connection->owes_writable ||
        connection->is_blocked || connection->output)
        return;
    connection->owes_writable = false;
    const struct ws_handlers *handlers = &connection->server->handlers;
    handlers->on_writable(handlers->context, connection);
}

/* ---- taking over a socket ---- */

void ws_peer_print(int fd, char out[WS_PEER_BYTES])
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {.v6 = {0}};
    socklen_t bytes = sizeof(address);
    char host[INET6_ADDRSTRLEN] = "?";
    if (getpeername(fd, &address.any, &bytes) != 0) {
        (void)snprintf(out, WS_PEER_BYTES, "?:0");
    } else if (address.any.sa_family == AF_INET6) {
        (void)inet_ntop(AF_INET6, &address.v6.sin6_addr, host, sizeof(host));
        (void)snprintf(out, WS_PEER_BYTES, "[%s]:%u", host, ntohs(address.v6.sin6_port));
    } else {
        (void)inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof(host));
        (void)snprintf(out, WS_PEER_BYTES, "%s:%u", host, ntohs(address.v4.sin_port));
    }
}

const char *ws_peer(const struct ws_connection *connection)
{
    ws_peer_print(connection->fd, connection->server->peer);
    return connection->server->peer;
}

static void refuse_full(struct ws_server *server, int fd, bool tls)
{
    char text[160];
    char hint[RETRY_HEADER_BYTES] = "";
    if (server->options.retry)
        retry_header(hint, retry_hint_ms(server->options.retry, uv_now(server->loop), 0));
    int bytes = snprintf(text, sizeof(text),
                         "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n%s"
                         "Connection: close\r\n\r\n",
                         hint);
    if (!tls)
        (void)send(fd, text, (size_t)bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

static struct ws_connection *connection_make(struct ws_server *server, int fd, enum ws_port port,
                                             bool tls)
{
    struct ws_connection *connection = calloc(1, sizeof(*connection));
    if (!connection)
        return NULL;
    connection->server = server;
    connection->fd = fd;
    connection->port = (uint8_t)port;
    connection->is_tls = tls;
    connection->inbound_ms = ws_now_ms(server);
    ws_link_init(&connection->queue);
    ws_link_init(&connection->turn);
    ws_queue_move(connection, &server->handshakes, server->options.handshake_timeout_ms);
    server->connection_count++;
    return connection;
}

void ws_server_adopt(struct ws_server *server, int fd, enum ws_port port, bool tls)
{
    bool has_room = !server->is_closing && server->connection_count < server->connections_max &&
                    (!tls || server->vhost) && fd < server->fd_max;
    struct ws_connection *connection = has_room ? connection_make(server, fd, port, tls) : NULL;
    if (!connection) {
        refuse_full(server, fd, tls);
    } else if (tls) {
        ws_tls_adopt(connection);
    } else if (!ws_plain_adopt(connection)) {
        ws_connection_gone(connection);
        free(connection);
        refuse_full(server, fd, tls);
    }
}

/* ---- the end of a turn ---- */

static void on_again(uv_idle_t *idle)
{
    uv_idle_stop(idle);
    ws_plain_read_waiting(idle->data);
}

/* The owner has been called where his own end of the turn may have passed: he gets another before
 * the loop waits. */
void ws_turn_again(struct ws_server *server)
{
    uv_idle_start(&server->again, on_again);
}

static void dirty_leave(struct ws_connection *connection)
{
    ws_link_remove(&connection->turn);
    connection->is_dirty = false;
    if (!connection->is_tls)
        ws_plain_apply_reading(connection);
}

/* The peer sees the end of the stream, or a reset when it has sent what nobody has read. */
static void let_go(struct ws_connection *connection)
{
    if (connection->is_tls) {
        ws_tls_let_go(connection);
        return;
    }
    ws_connection_gone(connection);
    close(connection->fd); /* the epoll set forgets it */
    free(connection);
}

static void dirty_handle(struct ws_connection *connection)
{
    dirty_leave(connection);
    if (connection->resumes && connection->state != WS_STATE_DEAD) {
        connection->resumes = false;
        ws_connection_take_input(connection, NULL, 0);
        ws_turn_again(connection->server);
    }
    ws_connection_flush(connection);
    if (connection->state != WS_STATE_DEAD)
        return;
    ws_turn_again(connection->server);
    let_go(connection);
}

/* Runs before the loop waits, so nothing gathered, resumed or killed is left behind. It ends
 * because resuming takes up only what has been read, and a dead connection is let go of. */
static void on_prepare(uv_prepare_t *prepare)
{
    struct ws_server *server = prepare->data;
    while (!ws_link_is_alone(&server->dirty))
        dirty_handle(WS_CONNECTION_OF(server->dirty.next, turn));
    ws_plain_end_turn(server);
}

void ws_flush(struct ws_server *server)
{
    struct ws_link *link = server->dirty.next;
    while (link != &server->dirty) {
        struct ws_connection *connection = WS_CONNECTION_OF(link, turn);
        link = link->next;
        ws_connection_flush(connection);
        /* Resuming and letting go are on_prepare()'s. */
        if (!connection->resumes && connection->state != WS_STATE_DEAD)
            dirty_leave(connection);
    }
}

/* ---- opening ---- */

/* Descriptors for connections_max and the reserve; or for fewer, which is said once. */
static void descriptors_reserve(struct ws_server *server)
{
    rlim_t wanted = (rlim_t)server->options.connections_max + DESCRIPTORS_SPARE;
    struct rlimit limit = {.rlim_cur = wanted, .rlim_max = wanted};
    server->connections_max = server->options.connections_max;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
        limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    rlim_t descriptors = limit.rlim_cur < wanted ? limit.rlim_cur : wanted;
    rlim_t spare = descriptors / DESCRIPTORS_SPARE_PART;
    if (spare > DESCRIPTORS_SPARE)
        spare = DESCRIPTORS_SPARE;
    server->fd_max = descriptors < INT_MAX ? (int)descriptors : INT_MAX;
    if (descriptors == wanted)
        return;
    server->connections_max = (unsigned)(descriptors - spare);
    (void)fprintf(stderr,
                  "weir-gateway: event=descriptors_short limit=%llu connections_max=%u "
                  "connections_possible=%u remedy=\"raise the hard limit of open files "
                  "(LimitNOFILE=, ulimit -Hn) to %llu, or set connections_max to %u\"\n",
                  (unsigned long long)descriptors, server->options.connections_max,
                  server->connections_max, (unsigned long long)wanted, server->connections_max);
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
    ws_link_init(&own->heads);
    ws_link_init(&own->readers);
    own->epoll_fd = -1;
    own->heads_left = WS_HEADS_PER_TURN;
    descriptors_reserve(own);
    timers_open(own);
    enum weir_status status = sender_open(&own->sender, options->use_uring, error);
    if (status == WEIR_OK)
        status = ws_plain_open(own, error);
    if (status == WEIR_OK)
        status = ws_tls_open(own, error);
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
        if (!code)
            ws_connection_kill(connection);
        else if (connection->state == WS_STATE_OPEN)
            ws_close_code(connection, code, NULL);
        else if (connection->state == WS_STATE_HTTP || connection->state == WS_STATE_HELD)
            ws_http_end(connection);
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
    ws_tls_close(server);
    ws_plain_close(server);
    uv_close((uv_handle_t *)&server->tick, on_handle_closed);
    uv_close((uv_handle_t *)&server->prepare, on_handle_closed);
    uv_close((uv_handle_t *)&server->again, on_handle_closed);
    while (server->open_handles)
        uv_run(server->loop, UV_RUN_NOWAIT);
    sender_close(server->sender);
    send_pool_fini(&server->send_pool);
    frame_pool_fini(&server->frame_pool);
    ws_batch_fini(&server->batch);
    free(server);
}

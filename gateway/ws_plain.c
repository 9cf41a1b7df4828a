#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/ws_private.h"

/* Sockets are watched edge-triggered: the set costs nothing in user space and no system call but the
 * first, or two for a socket that was ever full. An edge that is not used at once, because reading
 * is stopped or the turn's budget is spent, is remembered in has_input. */
enum {
    EVENTS_PER_TURN = 256,
    INPUT_EVENTS = EPOLLIN | EPOLLRDHUP,
    END_EVENTS = EPOLLRDHUP | EPOLLHUP | EPOLLERR
};

/* ---- reading ---- */

void ws_plain_apply_reading(struct ws_connection *connection)
{
    struct ws_server *server = connection->server;
    if (!connection->has_input || connection->is_paused || connection->state == WS_STATE_DEAD ||
        !ws_link_is_alone(&connection->turn))
        return;
    ws_link_append(connection->state == WS_STATE_HTTP ? &server->heads : &server->readers,
                   &connection->turn);
    ws_turn_again(server);
}

static void connection_read(struct ws_connection *connection)
{
    connection->has_input = true;
    if (connection->state == WS_STATE_DEAD || connection->is_paused)
        return;
    char *input = connection->server->input;
    ssize_t bytes;
    do {
        bytes = recv(connection->fd, input, WS_READ_BYTES, MSG_DONTWAIT);
    } while (bytes < 0 && errno == EINTR);
    if (bytes < 0 && errno == EAGAIN) {
        connection->has_input = false;
        return;
    }
    if (bytes <= 0) {
        ws_connection_kill(connection);
        return;
    }
    /* epoll(7): a read that takes less than it might has emptied the socket. Its end, once told of,
     * is not told again. */
    connection->has_input = bytes == WS_READ_BYTES || connection->has_ended;
    ws_input(connection, input, (size_t)bytes);
    ws_plain_apply_reading(connection);
}

/* Request heads are bounded in a turn, so that a storm of new connections does not hold up those
 * that are served. */
static void on_input(struct ws_connection *connection)
{
    struct ws_server *server = connection->server;
    if (connection->state != WS_STATE_HTTP) {
        connection_read(connection);
        return;
    }
    if (server->heads_left == 0 || !ws_link_is_alone(&server->heads)) {
        connection->has_input = true;
        ws_plain_apply_reading(connection);
        return;
    }
    server->heads_left--;
    connection_read(connection);
}

void ws_plain_read_waiting(struct ws_server *server)
{
    struct ws_link readers;
    ws_link_init(&readers);
    if (!ws_link_is_alone(&server->readers)) {
        readers = server->readers;
        readers.next->previous = readers.previous->next = &readers;
        ws_link_init(&server->readers);
    }
    while (!ws_link_is_alone(&readers)) {
        struct ws_connection *connection = WS_CONNECTION_OF(readers.next, turn);
        ws_link_remove(&connection->turn);
        connection_read(connection);
    }
    for (; server->heads_left > 0 && !ws_link_is_alone(&server->heads); server->heads_left--) {
        struct ws_connection *connection = WS_CONNECTION_OF(server->heads.next, turn);
        ws_link_remove(&connection->turn);
        connection_read(connection);
    }
    if (!ws_link_is_alone(&server->heads))
        ws_turn_again(server);
}

void ws_plain_end_turn(struct ws_server *server)
{
    if (!ws_link_is_alone(&server->heads) && server->options.counters)
        counters_add(server->options.counters, COUNTER_HANDSHAKES_DEFERRED, 1);
    server->heads_left = WS_HEADS_PER_TURN;
}

/* ---- writing ---- */

void ws_plain_await_writable(struct ws_connection *connection)
{
    /* Once watched, a short send is what arms the next edge (epoll(7)). */
    if (connection->watches_output)
        return;
    struct epoll_event event = {.events = INPUT_EVENTS | EPOLLOUT | EPOLLET,
                                .data.ptr = connection};
    connection->watches_output = true;
    if (epoll_ctl(connection->server->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) != 0)
        ws_connection_kill(connection);
}

static void on_can_write(struct ws_connection *connection)
{
    connection->is_blocked = false;
    connection->inbound_ms = ws_now_ms(connection->server); /* it reads, so it lives */
    ws_connection_flush(connection);
    ws_tell_writable(connection);
}

/* ---- the set ---- */

static void event_handle(struct ws_connection *connection, uint32_t events)
{
    if (connection->state == WS_STATE_DEAD)
        return;
    if ((events & EPOLLOUT) && connection->is_blocked)
        on_can_write(connection);
    if (!(events & (INPUT_EVENTS | END_EVENTS)))
        return;
    if (events & END_EVENTS)
        connection->has_ended = true;
    if ((events & (EPOLLHUP | EPOLLERR)) && connection->is_paused)
        ws_connection_kill(connection); /* nobody would read the error */
    else
        on_input(connection);
}

/* What does not fit one batch is told again in the next turn. */
static void on_poll(uv_poll_t *poll, int status, int ready)
{
    struct ws_server *server = poll->data;
    (void)status;
    (void)ready;
    struct epoll_event events[EVENTS_PER_TURN];
    int count = epoll_wait(server->epoll_fd, events, EVENTS_PER_TURN, 0);
    /* No connection is freed before the end of the turn. */
    for (int index = 0; index < count; index++)
        event_handle(events[index].data.ptr, events[index].events);
}

bool ws_plain_adopt(struct ws_connection *connection)
{
    struct epoll_event event = {.events = INPUT_EVENTS | EPOLLET, .data.ptr = connection};
    return epoll_ctl(connection->server->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) == 0;
}

enum weir_status ws_plain_open(struct ws_server *server, struct weir_error *error)
{
    server->input = malloc(WS_READ_BYTES);
    if (!server->input)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory to read sockets");
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return weir_fail_errno(error, errno, "cannot make an epoll set");
    int code = uv_poll_init(server->loop, &server->poll, fd);
    if (code != 0) {
        close(fd);
        return weir_fail(error, WEIR_SYSTEM, "cannot watch an epoll set: %s", uv_strerror(code));
    }
    server->epoll_fd = fd;
    server->poll.data = server;
    server->open_handles++;
    uv_poll_start(&server->poll, UV_READABLE, on_poll);
    return WEIR_OK;
}

static void on_poll_closed(uv_handle_t *handle)
{
    struct ws_server *server = handle->data;
    close(server->epoll_fd);
    server->open_handles--;
}

void ws_plain_close(struct ws_server *server)
{
    if (server->epoll_fd >= 0)
        uv_close((uv_handle_t *)&server->poll, on_poll_closed);
    free(server->input);
    server->input = NULL;
}

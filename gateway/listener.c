#include "gateway/listener.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LOG_INTERVAL_MS = 60 * 1000 };

struct listener {
    uv_poll_t poll;
    uv_timer_t pause;
    int fd;
    uint16_t port;
    unsigned accepts_per_turn;
    unsigned open_handles;
    bool has_logged;
    uint64_t logged_ms;
    void (*on_accept)(void *context, int fd);
    void *context;
};

static void on_readable(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer)
{
    struct listener *listener = timer->data;
    uv_poll_start(&listener->poll, UV_READABLE, on_readable);
}

/* Out of descriptors or memory: the connections stay in the backlog. */
static void accept_pause(struct listener *listener, int accept_errno)
{
    uint64_t now_ms = uv_now(listener->poll.loop);
    if (!listener->has_logged || now_ms - listener->logged_ms >= LOG_INTERVAL_MS) {
        listener->has_logged = true;
        listener->logged_ms = now_ms;
        (void)fprintf(stderr, "weir-gateway: event=accept_paused port=%u cause=\"%s\"\n",
                      listener->port, strerror(accept_errno));
    }
    uv_poll_stop(&listener->poll);
    uv_timer_start(&listener->pause, on_pause_over, LISTENER_PAUSE_MS, 0);
}

static void listener_accept(struct listener *listener, unsigned most)
{
    for (unsigned count = 0; count < most && listener->fd >= 0; count++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            int accept_errno = errno;
            if (accept_errno == EINTR || accept_errno == ECONNABORTED)
                continue;
            /* accept(2): other errors are those of the new connection, which is gone. */
            if (accept_errno == EMFILE || accept_errno == ENFILE || accept_errno == ENOBUFS ||
                accept_errno == ENOMEM)
                accept_pause(listener, accept_errno);
            return;
        }
        listener->on_accept(listener->context, fd);
    }
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    struct listener *listener = poll->data;
    listener_accept(listener, listener->accepts_per_turn);
}

void listener_take_waiting(struct listener *listener)
{
    (void)uv_poll_stop(&listener->poll);
    listener_accept(listener, LISTENER_BACKLOG);
}

static int socket_listen(const struct addrinfo *address, bool reuse_port)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int on = 1;
    int off = 0;
    bool is_ready = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0;
    /* Accepted sockets have it from the listening one. */
    if (is_ready)
        is_ready = setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0;
    if (is_ready && reuse_port)
        is_ready = setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == 0;
    if (is_ready && address->ai_family == AF_INET6)
        is_ready = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) == 0;
    if (is_ready && bind(fd, address->ai_addr, address->ai_addrlen) == 0 &&
        listen(fd, LISTENER_BACKLOG) == 0)
        return fd;
    int cause = errno;
    close(fd);
    errno = cause;
    return -1;
}

static enum weir_status socket_open(const struct listener_options *options, int *fd,
                                    struct weir_error *error)
{
    char service[8];
    (void)snprintf(service, sizeof(service), "%u", options->port);
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *addresses;
    int code = getaddrinfo(options->host, service, &hints, &addresses);
    if (code != 0)
        return weir_fail(error, WEIR_INVALID, "cannot listen on host \"%s\": %s", options->host,
                         gai_strerror(code));
    *fd = socket_listen(addresses, options->reuse_port);
    int cause = errno;
    freeaddrinfo(addresses);
    if (*fd < 0)
        return weir_fail_errno(error, cause, "cannot listen on %s port %u", options->host,
                               options->port);
    return WEIR_OK;
}

static uint16_t socket_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {.v6 = {0}};
    socklen_t bytes = sizeof(address);
    if (getsockname(fd, &address.any, &bytes) != 0)
        return 0;
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

enum weir_status listener_open(struct listener **listener, uv_loop_t *loop,
                               const struct listener_options *options, struct weir_error *error)
{
    *listener = NULL;
    struct listener *own = calloc(1, sizeof(*own));
    if (!own)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a listener");
    enum weir_status status = socket_open(options, &own->fd, error);
    if (status != WEIR_OK) {
        free(own);
        return status;
    }
    own->port = socket_port(own->fd);
    own->accepts_per_turn =
        options->accepts_per_turn ? options->accepts_per_turn : LISTENER_ACCEPTS_PER_TURN;
    own->on_accept = options->on_accept;
    own->context = options->context;
    int code = uv_poll_init(loop, &own->poll, own->fd);
    if (code != 0) {
        close(own->fd);
        free(own);
        return weir_fail(error, WEIR_SYSTEM, "cannot watch a listening socket: %s",
                         uv_strerror(code));
    }
    uv_timer_init(loop, &own->pause);
    own->open_handles = 2;
    own->poll.data = own;
    own->pause.data = own;
    uv_poll_start(&own->poll, UV_READABLE, on_readable);
    *listener = own;
    return WEIR_OK;
}

uint16_t listener_port(const struct listener *listener)
{
    return listener->port;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;
    if (--listener->open_handles == 0)
        free(listener);
}

void listener_stop(struct listener *listener)
{
    if (!listener)
        return;
    (void)uv_poll_stop(&listener->poll);
    close(listener->fd);
    listener->fd = -1;
    uv_close((uv_handle_t *)&listener->poll, on_handle_closed);
    uv_close((uv_handle_t *)&listener->pause, on_handle_closed);
}

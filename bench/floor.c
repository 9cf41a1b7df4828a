#include "bench/floor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/crowd.h"
#include "bench/load.h"
#include "bench/message.h"

enum {
    FRAME_BYTES_MAX = MESSAGE_BYTES_MAX + CROWD_FRAMING_BYTES_MAX,
    READ_BYTES = 256 * 1024,
    HEAD_BYTES = 8,
};

struct audience {
    int *sockets;
    unsigned count, capacity;
    char *pending; /* FLOOR_COALESCED: frames of this turn */
    size_t pending_bytes, pending_capacity;
};

struct floor_state {
    enum floor_kind kind;
    int poller;
    struct audience *audiences;       /* by group */
    unsigned *touched, touched_count; /* groups with frames of this turn */
    size_t in_bytes, last_bytes;
    char *in;
};

static void *keep(void *memory)
{
    if (memory == NULL)
        load_die("no memory for the floor");
    return memory;
}

static void send_whole(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            bytes -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            (void)poll(&wait, 1, -1);
        } else if (errno != EINTR) {
            return; /* it has gone, and epoll tells */
        }
    }
}

static void send_to_all(const struct audience *audience, const char *data, size_t bytes)
{
    for (unsigned i = 0; i < audience->count; i++)
        send_whole(audience->sockets[i], data, bytes);
}

static void admit(struct audience *audience, int fd)
{
    if (audience->count == audience->capacity) {
        audience->capacity = audience->capacity == 0 ? 4 : audience->capacity * 2;
        audience->sockets =
            keep(realloc(audience->sockets, audience->capacity * sizeof *audience->sockets));
    }
    audience->sockets[audience->count++] = fd;
    send_whole(fd, "\x81", 2);
}

static void dismiss(struct floor_state *state, uint32_t group, int fd)
{
    struct audience *audience = &state->audiences[group];
    for (unsigned i = 0; i < audience->count; i++)
        if (audience->sockets[i] == fd)
            audience->sockets[i] = audience->sockets[--audience->count];
}

static struct audience *audience_of(struct floor_state *state, const char *head, size_t *bytes)
{
    uint32_t words[2];
    memcpy(words, head, sizeof words);
    if (words[0] >= CROWD_GROUPS_MAX || words[1] > FRAME_BYTES_MAX)
        load_die("the floor's publisher says what it should not");
    *bytes = words[1];
    return &state->audiences[words[0]];
}

static void collect(struct floor_state *state, struct audience *audience, const char *frame,
                    size_t bytes)
{
    if (audience->pending_bytes == 0)
        state->touched[state->touched_count++] = (unsigned)(audience - state->audiences);
    if (audience->pending_bytes + bytes > audience->pending_capacity) {
        audience->pending_capacity = 2 * (audience->pending_bytes + bytes);
        audience->pending = keep(realloc(audience->pending, audience->pending_capacity));
    }
    memcpy(audience->pending + audience->pending_bytes, frame, bytes);
    audience->pending_bytes += bytes;
}

/* Messages are of about one size: F1 asks for as many bytes as the last one had. */
static size_t bytes_to_read(const struct floor_state *state)
{
    if (state->kind == FLOOR_COALESCED)
        return READ_BYTES - state->in_bytes;
    size_t wanted = HEAD_BYTES + state->last_bytes;
    return wanted > state->in_bytes ? wanted - state->in_bytes : HEAD_BYTES;
}

static void send_collected(struct floor_state *state)
{
    while (state->touched_count > 0) {
        struct audience *audience = &state->audiences[state->touched[--state->touched_count]];
        send_to_all(audience, audience->pending, audience->pending_bytes);
        audience->pending_bytes = 0;
    }
}

static bool serve_publisher(struct floor_state *state, int publisher)
{
    ssize_t got = read(publisher, state->in + state->in_bytes, bytes_to_read(state));
    if (got <= 0)
        return false;
    size_t at = 0, end = state->in_bytes + (size_t)got, bytes;
    while (end - at >= HEAD_BYTES) {
        struct audience *audience = audience_of(state, state->in + at, &bytes);
        state->last_bytes = bytes;
        if (end - at < HEAD_BYTES + bytes)
            break;
        if (state->kind == FLOOR_SINGLE)
            send_to_all(audience, state->in + at + HEAD_BYTES, bytes);
        else
            collect(state, audience, state->in + at + HEAD_BYTES, bytes);
        at += HEAD_BYTES + bytes;
    }
    memmove(state->in, state->in + at, end - at);
    state->in_bytes = end - at;
    send_collected(state);
    return true;
}

/* A connection's event carries its group and its number; a new one has no group yet. */
#define GROUP_NEW (UINT32_MAX - 1)
#define GROUP_LISTENER (UINT32_MAX - 2)

static void watch(int poller, int operation, int fd, uint32_t group)
{
    struct epoll_event event = {.events = EPOLLIN,
                                .data.u64 = (uint64_t)group << 32 | (uint32_t)fd};
    if (epoll_ctl(poller, operation, fd, &event) != 0)
        load_die("epoll_ctl: %s", strerror(errno));
}

static void welcome(int poller, int listener)
{
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(poller, EPOLL_CTL_ADD, fd, GROUP_NEW);
}

static bool greet(struct floor_state *state, int fd)
{
    uint32_t group;
    if (read(fd, &group, sizeof group) != sizeof group)
        return false;
    if (group >= CROWD_GROUPS_MAX && group != UINT32_MAX)
        return false;
    watch(state->poller, EPOLL_CTL_MOD, fd, group);
    if (group == UINT32_MAX)
        state->in_bytes = 0;
    else
        admit(&state->audiences[group], fd);
    return true;
}

static void serve_event(struct floor_state *state, uint64_t event)
{
    uint32_t group = (uint32_t)(event >> 32);
    int fd = (int)(uint32_t)event;
    bool goes_on = false;
    if (group == GROUP_LISTENER) {
        welcome(state->poller, fd);
        return;
    }
    if (group == UINT32_MAX)
        goes_on = serve_publisher(state, fd);
    else if (group == GROUP_NEW)
        goes_on = greet(state, fd);
    else
        dismiss(state, group, fd); /* subscribers say nothing more until they go */
    if (!goes_on)
        (void)close(fd);
}

void floor_serve(int listener, enum floor_kind kind)
{
    struct floor_state state = {.kind = kind, .poller = epoll_create1(EPOLL_CLOEXEC)};
    state.audiences = keep(calloc(CROWD_GROUPS_MAX, sizeof *state.audiences));
    state.touched = keep(calloc(CROWD_GROUPS_MAX, sizeof *state.touched));
    state.in = keep(malloc(READ_BYTES));
    watch(state.poller, EPOLL_CTL_ADD, listener, GROUP_LISTENER);
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(state.poller, events, 64, -1);
        for (int i = 0; i < ready; i++)
            serve_event(&state, events[i].data.u64);
    }
}

void floor_start(struct floor_server *server, enum floor_kind kind)
{
    int listener = load_listen(&server->port);
    server->pid = fork();
    if (server->pid < 0)
        load_die("cannot start the floor: %s", strerror(errno));
    if (server->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        floor_serve(listener, kind);
    }
    (void)close(listener);
}

void floor_stop(struct floor_server *server)
{
    (void)kill(server->pid, SIGKILL);
    (void)waitpid(server->pid, NULL, 0);
}

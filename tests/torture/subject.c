#include "tests/torture/subject.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    LANE_BYTES_MAX = 256 << 20,
    LANE_RECEIVE_BYTES = 1 << 18,
};

bool subject_lane_open(struct subject_lane *lane, const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (lane->in.limit_bytes == 0) {
        buffer_init(&lane->in, LANE_BYTES_MAX);
        buffer_init(&lane->out, LANE_BYTES_MAX);
    }
    buffer_clear(&lane->in);
    buffer_clear(&lane->out);
    lane->in_taken = 0;
    lane->is_ended = false;
    lane->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (lane->fd >= 0 && connect(lane->fd, (struct sockaddr *)&address, sizeof address) == 0)
        return true;
    subject_lane_close(lane);
    return false;
}

void subject_lane_close(struct subject_lane *lane)
{
    if (lane->fd >= 0)
        (void)close(lane->fd);
    lane->fd = -1;
    lane->is_ended = true;
}

struct span subject_lane_input(const struct subject_lane *lane)
{
    return span_of(lane->in.data + lane->in_taken, lane->in.bytes - lane->in_taken);
}

bool subject_lane_receive(struct subject_lane *lane, int wait_ms)
{
    if (lane->is_ended || lane->fd < 0)
        return false;
    if (wait_ms > 0) {
        struct pollfd ready = {.fd = lane->fd, .events = POLLIN};
        if (poll(&ready, 1, wait_ms) <= 0)
            return false;
    }
    if (lane->in_taken > 0) {
        buffer_consume(&lane->in, lane->in_taken);
        lane->in_taken = 0;
    }
    if (buffer_reserve(&lane->in, LANE_RECEIVE_BYTES) != WEIR_OK)
        return false;
    ssize_t got = recv(lane->fd, lane->in.data + lane->in.bytes, LANE_RECEIVE_BYTES, MSG_DONTWAIT);
    if (got > 0)
        lane->in.bytes += (size_t)got;
    else if (got == 0 || (errno != EAGAIN && errno != EINTR))
        lane->is_ended = true;
    return !lane->is_ended;
}

void subject_lane_send(struct subject_lane *lane)
{
    if (lane->out.bytes == 0 || lane->is_ended)
        return;
    ssize_t sent = send(lane->fd, lane->out.data, lane->out.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0)
        buffer_consume(&lane->out, (size_t)sent);
    else if (sent < 0 && errno != EAGAIN && errno != EINTR)
        buffer_clear(&lane->out); /* its end is seen, and what it said before, when it is read */
}

bool subject_lane_flush(struct subject_lane *lane)
{
    while (lane->out.bytes > 0) {
        struct pollfd ready = {.fd = lane->fd, .events = POLLOUT};
        if (poll(&ready, 1, CHILD_WAIT_MS) != 1)
            return false;
        if (ready.revents & (POLLERR | POLLHUP))
            return false;
        subject_lane_send(lane);
    }
    return true;
}

/* tests/broker_client.h -- starts a real weir-broker and speaks to it over its socket, as a gateway
 * would.
 *
 * Everything here reports by return value, so that forked children can use it; waits are bounded by
 * CLIENT_WAIT_MS, which only turns a hang into a failure.
 */
#ifndef WEIR_TESTS_BROKER_CLIENT_H
#define WEIR_TESTS_BROKER_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/readers.h"
#include "shm/ring.h"
#include "shm/segment.h"
#include "shm/wire.h"

enum { CLIENT_WAIT_MS = 120000 };

struct test_broker {
    pid_t pid;
    char run_dir[64];
    struct rusage usage; /* after test_broker_stop() */
};

/* bin/ of the build, where the test itself is. */
static void test_broker_path(char *path, size_t bytes)
{
    char self[512];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    snprintf(path, bytes, "%s/weir-broker", self);
}

/* Set: brokers started from now on find io_uring_setup(2) refused with EPERM, as under a
 *      container's seccomp profile. */
static bool test_broker_refuse_uring;

static bool refuse_uring_setup(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof filter[0], .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* `setting` is one more KEY=VALUE, or NULL. False when it did not become ready. */
static bool test_broker_start_in(struct test_broker *broker, const char *io, const char *setting)
{
    char path[600], run_dir[100], io_setting[32], ready_fd[16];
    int ready[2];
    test_broker_path(path, sizeof path);
    snprintf(run_dir, sizeof run_dir, "run_dir=%s/run", broker->run_dir);
    snprintf(io_setting, sizeof io_setting, "io=%s", io);
    if (pipe(ready) != 0)
        return false;
    snprintf(ready_fd, sizeof ready_fd, "%d", ready[1]);
    broker->pid = fork();
    if (broker->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failing test leaves no broker behind */
        close(ready[0]);
        if (test_broker_refuse_uring && !refuse_uring_setup())
            _exit(126);
        execl(path, path, "--set", run_dir, "--set", io_setting, "--set", "store_bytes=256MiB",
              "--ready-fd", ready_fd, "--set", setting ? setting : "gateways=1", (char *)NULL);
        _exit(127);
    }
    close(ready[1]);
    char text[6] = {0};
    ssize_t got = read(ready[0], text, sizeof text);
    close(ready[0]);
    return got == 6 && memcmp(text, "ready\n", 6) == 0;
}

static bool test_broker_start(struct test_broker *broker, const char *io, const char *setting)
{
    *broker = (struct test_broker){0};
    snprintf(broker->run_dir, sizeof broker->run_dir, "/tmp/weir-broker-test-XXXXXX");
    if (!mkdtemp(broker->run_dir))
        return false;
    return test_broker_start_in(broker, io, setting);
}

/* SIGTERM and the exit status, as wait4(2) gives it. */
static int test_broker_stop(struct test_broker *broker)
{
    int status = -1;
    char path[128];
    kill(broker->pid, SIGTERM);
    if (wait4(broker->pid, &status, 0, &broker->usage) != broker->pid)
        status = -1;
    snprintf(path, sizeof path, "%s/run/broker.lock", broker->run_dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/run/gateways", broker->run_dir); /* those that are still there */
    unlink(path);
    snprintf(path, sizeof path, "%s/run", broker->run_dir);
    if (rmdir(path) != 0) /* fails when the socket is still there */
        status = -2;
    rmdir(broker->run_dir);
    return status;
}

struct client {
    int fd;
    struct wire_reader *wire;
    struct buffer in, out;
    size_t in_taken;
    bool attached, closed;
    unsigned gates_told; /* how often GATES_TOLD has come, which may be at any moment */
    uint32_t slot;
    struct segment segment;
    struct reader reader;
    struct ring_reader ring;
};

static bool client_connect(struct client *client, const struct test_broker *broker)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *client = (struct client){0};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/run/broker.sock", broker->run_dir);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    client->wire = wire_reader_open();
    buffer_init(&client->in, 256u << 20);
    buffer_init(&client->out, 256u << 20);
    return client->fd >= 0 && connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0;
}

static void client_close(struct client *client)
{
    if (client->attached) {
        reader_detach(&client->reader);
        segment_close(&client->segment);
    }
    close(client->fd);
    wire_reader_close(client->wire);
    buffer_fini(&client->in);
    buffer_fini(&client->out);
}

static bool client_put(struct client *client, enum wire_type type, uint64_t id,
                       const struct wire_field *fields)
{
    return wire_append(&client->out, type, id, fields) == WEIR_OK;
}

static bool client_put_stream(struct client *client, uint64_t id, enum wire_op op,
                              const char *group, const char *item, struct span data)
{
    const struct wire_field fields[8] = {WIRE_NUMBER(op),
                                         WIRE_SPAN(SPAN_LITERAL("s")),
                                         WIRE_SPAN(span_text(group)),
                                         item ? WIRE_SPAN(span_text(item)) : WIRE_NIL,
                                         WIRE_SPAN(SPAN_LITERAL("t")),
                                         WIRE_SPAN(data)};
    return client_put(client, WIRE_STREAM, id, fields);
}

/* One readiness step: write what is queued, read what is there. False: closed or no progress in
 * time. */
static bool client_step(struct client *client, bool want_input)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (client->out.bytes > 0)
        ready.events |= POLLOUT;
    if (poll(&ready, 1, CLIENT_WAIT_MS) <= 0)
        return false;
    if (ready.revents & POLLOUT) {
        ssize_t sent =
            send(client->fd, client->out.data, client->out.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0)
            buffer_consume(&client->out, (size_t)sent);
        else if (errno != EAGAIN)
            client->closed = true;
    }
    if (ready.revents & (POLLIN | POLLHUP | POLLERR)) {
        if (buffer_reserve(&client->in, 1 << 20) != WEIR_OK)
            return false;
        ssize_t got = recv(client->fd, client->in.data + client->in.bytes, 1 << 20, MSG_DONTWAIT);
        if (got > 0)
            client->in.bytes += (size_t)got;
        else if (got == 0 || errno != EAGAIN)
            client->closed = true;
    }
    return !client->closed || (want_input && client->in.bytes > client->in_taken);
}

/* The next message; spans are valid until the next call. False: closed, malformed, or nothing in
 * time. */
static bool client_take(struct client *client, struct wire_message *message)
{
    for (;;) {
        struct span rest =
            span_of(client->in.data + client->in_taken, client->in.bytes - client->in_taken);
        size_t frame_bytes = 0;
        enum weir_status status = wire_read(client->wire, rest, message, &frame_bytes);
        if (status == WEIR_OK) {
            client->in_taken += frame_bytes;
            if (message->type != WIRE_GATES_TOLD)
                return true;
            client->gates_told++;
            continue;
        }
        if (status != WEIR_EMPTY || client->closed)
            return false;
        if (client->in_taken > 0) {
            buffer_consume(&client->in, client->in_taken);
            client->in_taken = 0;
        }
        if (!client_step(client, false) && !client->closed)
            return false;
    }
}

static bool client_flush(struct client *client)
{
    while (client->out.bytes > 0)
        if (!client_step(client, false))
            return false;
    return true;
}

/* Read on until the broker closes. False: it did not in time. */
static bool client_sees_close(struct client *client)
{
    while (!client->closed)
        if (!client_step(client, false) && !client->closed)
            return false;
    return true;
}

/* ATTACHED with its three descriptors: segment, doorbell, control page. */
static bool client_receive_attached(struct client *client, int fds[3])
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    char frame[256];
    struct iovec part = {frame, sizeof frame};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (poll(&ready, 1, CLIENT_WAIT_MS) != 1)
        return false;
    ssize_t got = recvmsg(client->fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    struct wire_message attached;
    size_t frame_bytes = 0;
    if (!header || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(3 * sizeof(int)))
        return false;
    memcpy(fds, CMSG_DATA(header), 3 * sizeof(int));
    if (wire_read(client->wire, span_of(frame, (size_t)got), &attached, &frame_bytes) != WEIR_OK ||
        attached.type != WIRE_ATTACHED)
        return false;
    client->slot = (uint32_t)attached.fields[2].number;
    /* What came behind it. */
    return buffer_append(&client->in, span_of(frame + frame_bytes, (size_t)got - frame_bytes)) ==
           WEIR_OK;
}

static bool client_attach(struct client *client, const struct test_broker *broker)
{
    int fds[3];
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                        WIRE_NUMBER((uint64_t)getpid()),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0)};
    if (!client_connect(client, broker) || !client_put(client, WIRE_ATTACH, 0, fields) ||
        !client_flush(client) || !client_receive_attached(client, fds))
        return false;
    if (segment_attach(&client->segment, fds[0], NULL) != WEIR_OK ||
        reader_attach(&client->reader, &client->segment, client->slot, fds[2], fds[1], NULL) !=
            WEIR_OK ||
        ring_reader_attach(&client->ring, &client->segment) != WEIR_OK)
        return false;
    client->attached = true;
    return true;
}

#endif

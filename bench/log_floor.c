#include "bench/log_floor.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "bench/writers.h"
#include "broker/wal_format.h"
#include "shm/wire.h"

enum {
    FILE_BYTES = 64 * 1024 * 1024,
    BUFFER_BYTES = 1024 * 1024,
    COMMITS_MAX = 1000 * 1000, /* of one run of the loop; it ends there */
    /* What a set's record takes in the log. */
    RECORD_BYTES = (WAL_RECORD_HEADER_BYTES + WRITERS_NAME_BYTES + LOAD_ITEM_BYTES + 7) / 8 * 8,
};
static_assert(WRITERS_IN_FLIGHT_MAX * RECORD_BYTES + WAL_BLOCK_BYTES <= BUFFER_BYTES,
              "all records in flight fit the buffer");

struct log_floor_counts {
    _Atomic uint64_t commits;
    struct floor_outcome outcome; /* the loop's, when it has ended */
};

/* ---- the file ---- */

void log_floor_prepare(const char *path)
{
    char *zeros = calloc(1, BUFFER_BYTES);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (zeros == NULL || fd < 0 || posix_fallocate(fd, 0, FILE_BYTES) != 0)
        load_die("cannot make %s: %s", path, strerror(errno));
    for (size_t at = 0; at < FILE_BYTES; at += BUFFER_BYTES)
        if (pwrite(fd, zeros, BUFFER_BYTES, (off_t)at) != BUFFER_BYTES)
            load_die("cannot write %s: %s", path, strerror(errno));
    if (fsync(fd) != 0)
        load_die("cannot sync %s: %s", path, strerror(errno));
    (void)close(fd);
    free(zeros);
}

uint64_t log_floor_frame_bytes(unsigned writers)
{
    return wal_frame_bytes((size_t)writers * RECORD_BYTES);
}

/* ---- one write at a time ---- */

struct committer {
    struct io_uring ring;
    char *frame;
    uint64_t offset;
};

static void committer_open(struct committer *committer, const char *path)
{
    int fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        load_die("cannot open %s with O_DIRECT: %s", path, strerror(errno));
    struct io_uring_params params = {.flags =
                                         IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int result = io_uring_queue_init_params(8, &committer->ring, &params);
    if (result == -EINVAL) { /* a kernel before 6.1 */
        params = (struct io_uring_params){0};
        result = io_uring_queue_init_params(8, &committer->ring, &params);
    }
    if (result < 0)
        load_die("io_uring is not available: %s", strerror(-result));
    committer->offset = 0;
    committer->frame = aligned_alloc(WAL_BLOCK_BYTES, BUFFER_BYTES);
    if (committer->frame == NULL)
        load_die("no memory");
    memset(committer->frame, 'r', BUFFER_BYTES);
    const struct iovec buffer = {committer->frame, BUFFER_BYTES};
    if (io_uring_register_buffers(&committer->ring, &buffer, 1) != 0 ||
        io_uring_register_files(&committer->ring, &fd, 1) != 0)
        load_die("buffer and file cannot be registered");
}

static struct io_uring_sqe *committer_prepare(struct committer *committer, uint64_t frame_bytes)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&committer->ring);
    if (committer->offset + frame_bytes > FILE_BYTES)
        committer->offset = 0;
    io_uring_prep_write_fixed(sqe, 0, committer->frame, (unsigned)frame_bytes, committer->offset,
                              0);
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->rw_flags = RWF_DSYNC;
    committer->offset += frame_bytes;
    return sqe;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void run_loop(struct floor_outcome *outcome, const char *path, unsigned writers,
                     double seconds)
{
    static char records[WRITERS_IN_FLIGHT_MAX * RECORD_BYTES];
    struct committer committer;
    uint64_t *latencies_ns = malloc(COMMITS_MAX * sizeof *latencies_ns);
    uint64_t frame_bytes = log_floor_frame_bytes(writers);
    if (latencies_ns == NULL)
        load_die("no memory");
    committer_open(&committer, path);
    uint64_t cpu_ns = load_cpu_ns(getpid()), start_ns = load_clock_ns(), before_ns = start_ns;
    uint64_t end_ns = start_ns + (uint64_t)(seconds * 1e9);
    while (outcome->commits < COMMITS_MAX && before_ns < end_ns) {
        struct io_uring_cqe *cqe;
        memcpy(committer.frame + WAL_FRAME_HEADER_BYTES, records, (size_t)writers * RECORD_BYTES);
        (void)committer_prepare(&committer, frame_bytes);
        if (io_uring_submit_and_wait(&committer.ring, 1) < 0 ||
            io_uring_peek_cqe(&committer.ring, &cqe) != 0 || cqe->res != (int)frame_bytes)
            load_die("a write of the floor failed");
        io_uring_cqe_seen(&committer.ring, cqe);
        uint64_t now_ns = load_clock_ns();
        latencies_ns[outcome->commits++] = now_ns - before_ns;
        before_ns = now_ns;
    }
    outcome->seconds = (double)(before_ns - start_ns) / 1e9;
    outcome->cpu_us = (double)(load_cpu_ns(getpid()) - cpu_ns) / 1e3 / (double)outcome->commits;
    qsort(latencies_ns, outcome->commits, sizeof *latencies_ns, compare);
    outcome->p50_us = (double)latencies_ns[outcome->commits / 2] / 1e3;
    outcome->p99_us = (double)latencies_ns[outcome->commits * 99 / 100] / 1e3;
}

static struct log_floor_counts *counts_make(void)
{
    struct log_floor_counts *counts =
        mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED)
        load_die("no memory");
    return counts;
}

struct floor_outcome log_floor_loop(const char *path, unsigned writers, double seconds)
{
    struct log_floor_counts *counts = counts_make();
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_loop(&counts->outcome, path, writers, seconds);
        _exit(0);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        load_die("the floor ended early");
    struct floor_outcome outcome = counts->outcome;
    (void)munmap(counts, sizeof *counts);
    return outcome;
}

/* ---- the server ---- */

enum { TAG_RECEIVED = 1, TAG_SENT, TAG_WRITTEN };

struct bare_server {
    struct committer committer;
    struct log_floor_counts *counts;
    int fd;
    char answer[1024]; /* as the broker's; its id is filled in */
    size_t answer_bytes;
    char *input, *output;
    size_t input_bytes, output_bytes, sent_bytes;
    uint64_t waiting[WRITERS_IN_FLIGHT_MAX]; /* ids of the next frame */
    uint64_t writing[WRITERS_IN_FLIGHT_MAX]; /* ids of the frame being written */
    unsigned waiting_count, writing_count;
    bool is_receiving, is_sending, is_writing;
};

static void answer_make(struct bare_server *server)
{
    char json[2 * LOAD_ITEM_BYTES + 32] = "{\"old_value\":";
    struct buffer message;
    memset(json + strlen(json), 'x', sizeof json - strlen(json));
    buffer_init(&message, sizeof server->answer);
    const struct wire_field fields[4] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(span_of(json, sizeof json))};
    if (wire_append(&message, WIRE_STREAM_RESULT, 0, fields) != WEIR_OK ||
        message.bytes > sizeof server->answer)
        load_die("no answer");
    memcpy(server->answer, message.data, message.bytes);
    server->answer_bytes = message.bytes;
    buffer_fini(&message);
}

/* Whole messages become records of the next frame. */
static void bare_take(struct bare_server *server)
{
    size_t taken = 0;
    while (server->input_bytes - taken >= WIRE_HEADER_BYTES) {
        uint32_t length;
        memcpy(&length, server->input + taken, sizeof length);
        if (server->input_bytes - taken < length + sizeof length)
            break;
        if (server->waiting_count == WRITERS_IN_FLIGHT_MAX)
            load_die("too many sets in flight");
        memcpy(&server->waiting[server->waiting_count++], server->input + taken + 8, 8);
        taken += length + sizeof length;
    }
    memmove(server->input, server->input + taken, server->input_bytes - taken);
    server->input_bytes -= taken;
}

static void bare_answer(struct bare_server *server)
{
    for (unsigned i = 0; i < server->writing_count; i++) {
        if (server->output_bytes + server->answer_bytes > BUFFER_BYTES)
            load_die("answers are not read");
        char *at = server->output + server->output_bytes;
        memcpy(at, server->answer, server->answer_bytes);
        memcpy(at + 8, &server->writing[i], 8);
        server->output_bytes += server->answer_bytes;
    }
}

static void bare_completed(struct bare_server *server, const struct io_uring_cqe *cqe)
{
    switch (cqe->user_data) {
    case TAG_RECEIVED:
        server->is_receiving = false;
        if (cqe->res <= 0)
            _exit(0); /* the client has gone */
        server->input_bytes += (size_t)cqe->res;
        bare_take(server);
        break;
    case TAG_SENT:
        server->is_sending = false;
        if (cqe->res <= 0)
            _exit(0);
        server->sent_bytes += (size_t)cqe->res;
        if (server->sent_bytes == server->output_bytes)
            server->sent_bytes = server->output_bytes = 0;
        break;
    default:
        server->is_writing = false;
        if (cqe->res != (int)log_floor_frame_bytes(server->writing_count))
            load_die("a write of the floor failed");
        atomic_fetch_add_explicit(&server->counts->commits, 1, memory_order_relaxed);
        bare_answer(server);
        break;
    }
}

static void bare_start(struct bare_server *server)
{
    struct io_uring *ring = &server->committer.ring;
    if (!server->is_writing && server->waiting_count > 0) {
        memcpy(server->writing, server->waiting, server->waiting_count * sizeof(uint64_t));
        memset(server->committer.frame + WAL_FRAME_HEADER_BYTES, 'r',
               (size_t)server->waiting_count * RECORD_BYTES);
        struct io_uring_sqe *sqe =
            committer_prepare(&server->committer, log_floor_frame_bytes(server->waiting_count));
        io_uring_sqe_set_data64(sqe, TAG_WRITTEN);
        server->writing_count = server->waiting_count;
        server->waiting_count = 0;
        server->is_writing = true;
    }
    if (!server->is_sending && server->sent_bytes < server->output_bytes) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
        io_uring_prep_send(sqe, server->fd, server->output + server->sent_bytes,
                           server->output_bytes - server->sent_bytes, MSG_NOSIGNAL);
        io_uring_sqe_set_data64(sqe, TAG_SENT);
        server->is_sending = true;
    }
    if (!server->is_receiving) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
        io_uring_prep_recv(sqe, server->fd, server->input + server->input_bytes,
                           BUFFER_BYTES - server->input_bytes, 0);
        io_uring_sqe_set_data64(sqe, TAG_RECEIVED);
        server->is_receiving = true;
    }
}

static void run_server(struct log_floor_counts *counts, const char *path, int listener)
{
    static struct bare_server server;
    server.counts = counts;
    server.input = malloc(BUFFER_BYTES);
    server.output = malloc(BUFFER_BYTES);
    if (server.input == NULL || server.output == NULL)
        load_die("no memory");
    answer_make(&server);
    committer_open(&server.committer, path);
    server.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    for (;;) {
        struct io_uring_cqe *cqe;
        bare_start(&server);
        int result = io_uring_submit_and_wait(&server.committer.ring, 1);
        if (result < 0 && result != -EINTR)
            load_die("io_uring_enter: %s", strerror(-result));
        while (io_uring_peek_cqe(&server.committer.ring, &cqe) == 0) {
            bare_completed(&server, cqe);
            io_uring_cqe_seen(&server.committer.ring, cqe);
        }
    }
}

void log_floor_server_start(struct log_floor_server *server, const char *path,
                            const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path)
        load_die("%s is too long for a socket's path", socket_path);
    memcpy(address.sun_path, socket_path, strlen(socket_path));
    memcpy(server->socket_path, address.sun_path, sizeof server->socket_path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 1) != 0)
        load_die("cannot listen at %s: %s", socket_path, strerror(errno));
    server->counts = counts_make();
    server->pid = fork();
    if (server->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_server(server->counts, path, listener);
    }
    (void)close(listener);
}

uint64_t log_floor_server_commits(const struct log_floor_server *server)
{
    return atomic_load(&server->counts->commits);
}

void log_floor_server_stop(struct log_floor_server *server)
{
    (void)kill(server->pid, SIGKILL);
    (void)waitpid(server->pid, NULL, 0);
    (void)unlink(server->socket_path);
    (void)munmap(server->counts, sizeof *server->counts);
}

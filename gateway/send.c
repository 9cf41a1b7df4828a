#include "gateway/send.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL };

/* ---- buffers ---- */

struct send_buffer {
    struct send_buffer *next; /* in the pool */
    size_t begin, end, capacity_bytes;
    char data[];
};

static struct send_buffer *buffer_take(struct send_pool *pool, size_t bytes)
{
    struct send_buffer *buffer = pool->free;
    if (buffer && buffer->capacity_bytes >= bytes) {
        pool->free = buffer->next;
        pool->free_bytes -= buffer->capacity_bytes;
        return buffer;
    }
    size_t capacity = SEND_BUFFER_BYTES_MIN;
    while (capacity < bytes)
        capacity *= 2;
    buffer = malloc(sizeof(*buffer) + capacity);
    if (!buffer)
        return NULL;
    buffer->begin = buffer->end = 0;
    buffer->capacity_bytes = capacity;
    return buffer;
}

void send_buffer_release(struct send_pool *pool, struct send_buffer **buffer)
{
    struct send_buffer *old = *buffer;
    *buffer = NULL;
    if (!old)
        return;
    if (old->capacity_bytes > SEND_BUFFER_BYTES_POOLED ||
        pool->free_bytes + old->capacity_bytes > SEND_POOL_BYTES_MAX) {
        free(old);
        return;
    }
    old->begin = old->end = 0;
    old->next = pool->free;
    pool->free = old;
    pool->free_bytes += old->capacity_bytes;
}

void send_pool_fini(struct send_pool *pool)
{
    while (pool->free) {
        struct send_buffer *buffer = pool->free;
        pool->free = buffer->next;
        free(buffer);
    }
    pool->free_bytes = 0;
}

size_t send_buffer_bytes(const struct send_buffer *buffer)
{
    return buffer ? buffer->end - buffer->begin : 0;
}

struct span send_buffer_span(const struct send_buffer *buffer)
{
    return buffer ? span_of(buffer->data + buffer->begin, buffer->end - buffer->begin)
                  : span_of(NULL, 0);
}

static enum weir_status buffer_make_room(struct send_pool *pool, struct send_buffer **buffer,
                                         size_t bytes)
{
    struct send_buffer *own = *buffer;
    if (!own) {
        *buffer = buffer_take(pool, bytes);
        return *buffer ? WEIR_OK : WEIR_NO_MEMORY;
    }
    if (own->capacity_bytes - own->end >= bytes)
        return WEIR_OK;
    size_t held = own->end - own->begin;
    /* Moving to the front must pay: at least half of the buffer has gone out. */
    if (own->begin >= own->capacity_bytes / 2 && own->capacity_bytes - held >= bytes) {
        memmove(own->data, own->data + own->begin, held);
        own->begin = 0;
        own->end = held;
        return WEIR_OK;
    }
    size_t capacity = own->capacity_bytes * 2;
    while (capacity < held + bytes)
        capacity *= 2;
    struct send_buffer *larger = malloc(sizeof(*larger) + capacity);
    if (!larger)
        return WEIR_NO_MEMORY;
    memcpy(larger->data, own->data + own->begin, held);
    larger->begin = 0;
    larger->end = held;
    larger->capacity_bytes = capacity;
    send_buffer_release(pool, buffer);
    *buffer = larger;
    return WEIR_OK;
}

enum weir_status send_buffer_append(struct send_pool *pool, struct send_buffer **buffer,
                                    const struct iovec *parts, unsigned part_count)
{
    size_t bytes = 0;
    for (unsigned index = 0; index < part_count; index++)
        bytes += parts[index].iov_len;
    if (bytes == 0)
        return WEIR_OK;
    if (buffer_make_room(pool, buffer, bytes) != WEIR_OK)
        return WEIR_NO_MEMORY;
    struct send_buffer *own = *buffer;
    for (unsigned index = 0; index < part_count; index++) {
        if (!parts[index].iov_len)
            continue;
        memcpy(own->data + own->end, parts[index].iov_base, parts[index].iov_len);
        own->end += parts[index].iov_len;
    }
    return WEIR_OK;
}

void send_buffer_consume(struct send_pool *pool, struct send_buffer **buffer, size_t bytes)
{
    if (bytes == 0)
        return;
    weir_assert(*buffer);
    weir_assert(bytes <= (*buffer)->end - (*buffer)->begin);
    (*buffer)->begin += bytes;
    if ((*buffer)->begin == (*buffer)->end)
        send_buffer_release(pool, buffer);
}

/* ---- batches ---- */

struct sender {
    bool has_uring;
    struct io_uring ring;
    struct msghdr messages[SEND_RING_ENTRIES];
};

static bool uring_open(struct io_uring *ring)
{
    /* DEFER_TASKRUN and SINGLE_ISSUER came with Linux 6.1; an older kernel answers EINVAL. */
    unsigned flags =
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    return io_uring_queue_init(SEND_RING_ENTRIES, ring, flags) == 0 ||
           io_uring_queue_init(SEND_RING_ENTRIES, ring, 0) == 0;
}

enum weir_status sender_open(struct sender **sender, bool use_uring, struct weir_error *error)
{
    *sender = calloc(1, sizeof(**sender));
    if (!*sender)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the send batch");
    if (use_uring)
        (*sender)->has_uring = uring_open(&(*sender)->ring);
    return WEIR_OK;
}

void sender_close(struct sender *sender)
{
    if (!sender)
        return;
    if (sender->has_uring)
        io_uring_queue_exit(&sender->ring);
    free(sender);
}

bool sender_has_uring(const struct sender *sender)
{
    return sender->has_uring;
}

int send_plain(int fd, const struct iovec *iovecs, unsigned iov_count)
{
    ssize_t sent;
    do {
        if (iov_count == 1) {
            sent = send(fd, iovecs->iov_base, iovecs->iov_len, SEND_FLAGS);
        } else {
            struct msghdr message = {.msg_iov = (struct iovec *)iovecs, .msg_iovlen = iov_count};
            sent = sendmsg(fd, &message, SEND_FLAGS);
        }
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : (int)sent;
}

static void job_prepare(struct sender *sender, unsigned slot, const struct send_job *job,
                        struct iovec *iovecs)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&sender->ring);
    weir_assert(sqe);
    struct iovec *iov = iovecs + job->iov_first;
    if (job->iov_count == 1) {
        io_uring_prep_send(sqe, job->fd, iov->iov_base, iov->iov_len, SEND_FLAGS);
    } else {
        sender->messages[slot] = (struct msghdr){.msg_iov = iov, .msg_iovlen = job->iov_count};
        io_uring_prep_sendmsg(sqe, job->fd, &sender->messages[slot], SEND_FLAGS);
    }
    io_uring_sqe_set_data64(sqe, slot);
}

/* Take what has completed; how many that were. */
static unsigned round_reap(struct sender *sender, struct send_job *jobs)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&sender->ring, head, cqe)
    {
        jobs[cqe->user_data].result = cqe->res;
        count++;
    }
    io_uring_cq_advance(&sender->ring, count);
    return count;
}

static void round_run(struct sender *sender, struct send_job *jobs, unsigned count,
                      struct iovec *iovecs)
{
    for (unsigned index = 0; index < count; index++)
        job_prepare(sender, index, &jobs[index], iovecs);
    unsigned submitted = 0;
    while (submitted < count) {
        int taken = io_uring_submit_and_wait(&sender->ring, count - submitted);
        if (taken == -EINTR || taken == -EAGAIN || taken == -EBUSY)
            continue;
        /* What else io_uring_enter(2) lists is a ring misused, which only we could do. */
        weir_assert(taken > 0);
        submitted += (unsigned)taken;
    }
    unsigned reaped = round_reap(sender, jobs);
    while (reaped < count) {
        struct io_uring_cqe *cqe;
        int waited = io_uring_wait_cqe(&sender->ring, &cqe);
        weir_assert(waited == 0 || waited == -EINTR);
        reaped += round_reap(sender, jobs);
    }
}

void sender_run(struct sender *sender, struct send_job *jobs, unsigned job_count,
                struct iovec *iovecs)
{
    /* A ring round for one job costs more than its one system call. */
    if (!sender->has_uring || job_count == 1) {
        for (unsigned index = 0; index < job_count; index++)
            jobs[index].result =
                send_plain(jobs[index].fd, iovecs + jobs[index].iov_first, jobs[index].iov_count);
        return;
    }
    for (unsigned first = 0; first < job_count; first += SEND_RING_ENTRIES) {
        unsigned count = job_count - first;
        if (count > SEND_RING_ENTRIES)
            count = SEND_RING_ENTRIES;
        round_run(sender, jobs + first, count, iovecs);
    }
}

/* io_uring engine of broker/loop.h: one submission and one wait per turn (io_uring_enter(2)).
 *
 * Sockets are left blocking: with O_NONBLOCK io_uring answers EAGAIN instead of waiting for
 * readiness itself.
 *
 * A synced write is a write with a linked fdatasync, not a write with RWF_DSYNC. On an idle machine both
 * take the same time, and RWF_DSYNC a little less CPU. But where the disk wants a flush after the write,
 * the kernel makes it from a worker of its own, which waits behind whatever keeps the cores busy: for a
 * scheduler's tick, 4 ms, at each commit. The linked sync is made by a thread of this process, which
 * gets its turn.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "broker/loop_engine.h"

struct uring {
    struct io_uring ring;
    struct iovec buffers[LOOP_BUFFERS_MAX]; /* registered */
    unsigned buffer_count;
    int file;            /* the one in slot FILE_SLOT, or -1 */
    bool has_file_table; /* of one slot */
    bool can_skip;       /* completions of what has succeeded: 5.17 */
    unsigned writes;     /* in flight */
};

enum { FILE_SLOT = 0, URING_ENTRIES = 2 * LOOP_OPERATIONS_MAX };

static int uring_setup(struct uring *uring)
{
    struct io_uring *ring = &uring->ring;
    /* Completions are only looked at in uring_wait(), by the one thread that submits. Kernels
     * before 6.1 do not know these flags and say EINVAL. */
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
    };
    int result = io_uring_queue_init_params(URING_ENTRIES, ring, &params);
    if (result == -EINVAL) {
        params = (struct io_uring_params){0};
        result = io_uring_queue_init_params(URING_ENTRIES, ring, &params);
    }
    if (result < 0)
        return result;
    /* Waiting with a time limit in the same call, and readiness handled inside: 5.11 and 5.7. */
    if (!(params.features & IORING_FEAT_EXT_ARG) || !(params.features & IORING_FEAT_FAST_POLL)) {
        io_uring_queue_exit(ring);
        return -ENOSYS;
    }
    uring->can_skip = (params.features & IORING_FEAT_CQE_SKIP) != 0;
    return 0;
}

static enum weir_status uring_open(void **state, struct weir_error *error)
{
    struct uring *uring = calloc(1, sizeof *uring);
    if (!uring)
        return weir_fail_errno(error, ENOMEM, "io_uring");
    uring->file = -1;
    int result = uring_setup(uring);
    if (result < 0) {
        free(uring);
        return weir_fail_errno(error, -result, "io_uring is not available");
    }
    *state = uring;
    return WEIR_OK;
}

/* ---- files ---- */

static bool uring_register_buffers(void *state, const struct iovec *buffers, unsigned count)
{
    struct uring *uring = state;
    weir_assert(uring->buffer_count == 0);
    if (io_uring_register_buffers(&uring->ring, buffers, count) < 0)
        return false;
    memcpy(uring->buffers, buffers, count * sizeof *buffers);
    uring->buffer_count = count;
    return true;
}

static bool uring_register_file(void *state, int fd)
{
    struct uring *uring = state;
    uring->file = -1;
    if (!uring->has_file_table) {
        if (fd < 0)
            return true;
        if (io_uring_register_files_sparse(&uring->ring, 1) < 0)
            return false;
        uring->has_file_table = true;
    }
    /* What was started and not submitted yet means the file that is there now. */
    if (io_uring_sq_ready(&uring->ring) > 0)
        (void)io_uring_submit(&uring->ring);
    if (io_uring_sq_ready(&uring->ring) > 0)
        return false;
    /* -1 empties the slot. */
    if (io_uring_register_files_update(&uring->ring, FILE_SLOT, &fd, 1) != 1)
        return false;
    uring->file = fd;
    return true;
}

/* The registered buffer that holds all of it, or -1. */
static int uring_find_buffer(const struct uring *uring, const struct loop_operation *operation)
{
    for (unsigned index = 0; index < uring->buffer_count; index++) {
        const char *base = uring->buffers[index].iov_base;
        size_t bytes = uring->buffers[index].iov_len;
        if (operation->data >= base && operation->data <= base + bytes &&
            operation->bytes <= (size_t)(base + bytes - operation->data))
            return (int)index;
    }
    return -1;
}

static void uring_prepare_write(const struct uring *uring, struct io_uring_sqe *sqe,
                                const struct loop_operation *operation)
{
    int buffer = uring_find_buffer(uring, operation);
    if (buffer >= 0)
        io_uring_prep_write_fixed(sqe, operation->fd, operation->data, operation->bytes,
                                  operation->offset, buffer);
    else
        io_uring_prep_write(sqe, operation->fd, operation->data, operation->bytes,
                            operation->offset);
}

static void uring_use_file(const struct uring *uring, struct io_uring_sqe *sqe)
{
    if (sqe->fd != uring->file)
        return;
    sqe->fd = FILE_SLOT;
    sqe->flags |= IOSQE_FIXED_FILE;
}

/* ---- operations ---- */

/* Each operation takes at most two entries, at most LOOP_OPERATIONS_MAX are in flight, and every turn
 * submits all. */
static struct io_uring_sqe *uring_entry(struct uring *uring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    weir_assert(sqe);
    return sqe;
}

/* Marks the completion of a write whose operation ends with its sync. */
static const uintptr_t WRITE_BIT = 1;
static_assert(_Alignof(struct loop_operation) > 1, "the lowest bit of a pointer to it is free");

/* Behind a synced write; when that fails or is short it is not carried out. */
static struct io_uring_sqe *uring_link_sync(struct uring *uring, struct io_uring_sqe *write,
                                            struct loop_operation *operation)
{
    io_uring_sqe_set_data64(write, (uintptr_t)operation | WRITE_BIT);
    write->flags |= IOSQE_IO_LINK;
    /* Only a failed or a short one is heard of, and then its sync is not (io_uring_enter(2)). */
    if (uring->can_skip)
        write->flags |= IOSQE_CQE_SKIP_SUCCESS;
    operation->result = (int32_t)operation->bytes;
    struct io_uring_sqe *sync = uring_entry(uring);
    /* Not by its slot: that is looked up when the write is done, and may be another file's by then. */
    io_uring_prep_fsync(sync, operation->fd, IORING_FSYNC_DATASYNC);
    return sync;
}

static void uring_start(void *state, struct loop_operation *operation)
{
    struct uring *uring = state;
    struct io_uring_sqe *sqe = uring_entry(uring);
    switch (operation->kind) {
    case LOOP_POLL:
        io_uring_prep_poll_add(sqe, operation->fd, POLLIN);
        break;
    case LOOP_RECEIVE:
        io_uring_prep_recv(sqe, operation->fd, operation->data, operation->bytes, 0);
        break;
    case LOOP_SEND:
        io_uring_prep_send(sqe, operation->fd, operation->data, operation->bytes, MSG_NOSIGNAL);
        break;
    case LOOP_WRITE:
        uring->writes++;
        uring_prepare_write(uring, sqe, operation);
        uring_use_file(uring, sqe);
        if (operation->is_synced)
            sqe = uring_link_sync(uring, sqe, operation);
        break;
    }
    io_uring_sqe_set_data(sqe, operation);
}

/* The operation that ends with this completion, and its result; NULL: none does yet. */
static struct loop_operation *uring_take(struct uring *uring, const struct io_uring_cqe *cqe,
                                         int32_t *result)
{
    uintptr_t data = (uintptr_t)io_uring_cqe_get_data64(cqe);
    struct loop_operation *operation = (struct loop_operation *)(data & ~WRITE_BIT);
    bool is_write = operation->kind == LOOP_WRITE;
    bool is_sync = is_write && operation->is_synced && (data & WRITE_BIT) == 0;
    *result = cqe->res;
    if ((data & WRITE_BIT) != 0 && !uring->can_skip) {
        operation->result = cqe->res; /* the sync's completion follows */
        return NULL;
    }
    if (is_sync && (cqe->res >= 0 || cqe->res == -ECANCELED))
        *result = operation->result;
    uring->writes -= is_write ? 1 : 0;
    return operation;
}

static enum weir_status uring_wait(void *state, struct loop *loop, int timeout_ms,
                                   struct weir_error *error)
{
    struct uring *uring = state;
    struct io_uring *ring = &uring->ring;
    struct __kernel_timespec limit = {
        .tv_sec = timeout_ms / 1000,
        .tv_nsec = (long long)(timeout_ms % 1000) * 1000000,
    };
    struct io_uring_cqe *cqe = NULL;
    int result =
        io_uring_submit_and_wait_timeout(ring, &cqe, 1, timeout_ms < 0 ? NULL : &limit, NULL);
    if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY)
        return weir_fail_errno(error, -result, "io_uring_enter");

    unsigned head = 0;
    unsigned count = 0;
    io_uring_for_each_cqe(ring, head, cqe) /* at most two per operation in flight */
    {
        int32_t operation_result = 0;
        struct loop_operation *operation = uring_take(uring, cqe, &operation_result);
        if (operation)
            loop_complete(loop, operation, operation_result);
        count++;
    }
    io_uring_cq_advance(ring, count);
    return WEIR_OK;
}

/* What sockets do is abandoned. A write is not: its memory is freed after this, and what comes there
 * next would go into the file. */
static void uring_close(void *state)
{
    struct uring *uring = state;
    struct io_uring_cqe *cqe = NULL;
    (void)io_uring_submit(&uring->ring);
    while (uring->writes > 0) { /* each turn takes one completion, or is interrupted */
        int32_t result = io_uring_wait_cqe(&uring->ring, &cqe);
        if (result == -EINTR)
            continue;
        if (result < 0)
            break;
        (void)uring_take(uring, cqe, &result);
        io_uring_cqe_seen(&uring->ring, cqe);
    }
    io_uring_queue_exit(&uring->ring);
    free(uring);
}

const struct loop_engine loop_engine_uring = {
    .name = "uring",
    .open = uring_open,
    .close = uring_close,
    .start = uring_start,
    .wait = uring_wait,
    .register_buffers = uring_register_buffers,
    .register_file = uring_register_file,
};

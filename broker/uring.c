/* io_uring engine of broker/loop.h: one submission and one wait per turn (io_uring_enter(2)).
 *
 * Sockets are left blocking: with O_NONBLOCK io_uring answers EAGAIN instead of waiting for
 * readiness itself.
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
};

enum { FILE_SLOT = 0 };

static int uring_setup(struct io_uring *ring)
{
    /* Completions are only looked at in uring_wait(), by the one thread that submits. Kernels
     * before 6.1 do not know these flags and say EINVAL. */
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
    };
    int result = io_uring_queue_init_params(LOOP_OPERATIONS_MAX, ring, &params);
    if (result == -EINVAL) {
        params = (struct io_uring_params){0};
        result = io_uring_queue_init_params(LOOP_OPERATIONS_MAX, ring, &params);
    }
    if (result < 0)
        return result;
    /* Waiting with a time limit in the same call, and readiness handled inside: 5.11 and 5.7. */
    if (!(params.features & IORING_FEAT_EXT_ARG) || !(params.features & IORING_FEAT_FAST_POLL)) {
        io_uring_queue_exit(ring);
        return -ENOSYS;
    }
    return 0;
}

static enum weir_status uring_open(void **state, struct weir_error *error)
{
    struct uring *uring = calloc(1, sizeof *uring);
    if (!uring)
        return weir_fail_errno(error, ENOMEM, "io_uring");
    uring->file = -1;
    int result = uring_setup(&uring->ring);
    if (result < 0) {
        free(uring);
        return weir_fail_errno(error, -result, "io_uring is not available");
    }
    *state = uring;
    return WEIR_OK;
}

static void uring_close(void *state)
{
    struct uring *uring = state;
    io_uring_queue_exit(&uring->ring);
    free(uring);
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
    if (operation->is_synced)
        sqe->rw_flags = RWF_DSYNC;
}

static void uring_use_file(const struct uring *uring, struct io_uring_sqe *sqe)
{
    if (sqe->fd != uring->file)
        return;
    sqe->fd = FILE_SLOT;
    sqe->flags |= IOSQE_FIXED_FILE;
}

/* ---- operations ---- */

static void uring_start(void *state, struct loop_operation *operation)
{
    struct uring *uring = state;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    /* Each operation takes one entry, at most LOOP_OPERATIONS_MAX are in flight, and every turn
     * submits all. */
    weir_assert(sqe);
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
        uring_prepare_write(uring, sqe, operation);
        uring_use_file(uring, sqe);
        break;
    case LOOP_SYNC:
        io_uring_prep_fsync(sqe, operation->fd, IORING_FSYNC_DATASYNC);
        uring_use_file(uring, sqe);
        break;
    }
    io_uring_sqe_set_data(sqe, operation);
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
    io_uring_for_each_cqe(ring, head, cqe) /* at most one per operation in flight */
    {
        struct loop_operation *operation = io_uring_cqe_get_data(cqe);
        loop_complete(loop, operation, cqe->res);
        count++;
    }
    io_uring_cq_advance(ring, count);
    return WEIR_OK;
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

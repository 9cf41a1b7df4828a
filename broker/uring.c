/* io_uring engine of broker/loop.h: one submission and one wait per turn (io_uring_enter(2)).
 *
 * Sockets are left blocking: with O_NONBLOCK io_uring answers EAGAIN instead of waiting for
 * readiness itself.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>

#include "broker/loop_engine.h"

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
    struct io_uring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return weir_fail_errno(error, ENOMEM, "io_uring");
    int result = uring_setup(ring);
    if (result < 0) {
        free(ring);
        return weir_fail_errno(error, -result, "io_uring is not available");
    }
    *state = ring;
    return WEIR_OK;
}

static void uring_close(void *state)
{
    io_uring_queue_exit(state);
    free(state);
}

static void uring_start(void *state, struct loop_operation *operation)
{
    struct io_uring *ring = state;
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
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
    }
    io_uring_sqe_set_data(sqe, operation);
}

static enum weir_status uring_wait(void *state, struct loop *loop, int timeout_ms,
                                   struct weir_error *error)
{
    struct io_uring *ring = state;
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
};

/* Plain engine of broker/loop.h: poll(2), then the calls that are ready, never blocking
 * (MSG_DONTWAIT).
 *
 * Regular files are always ready to poll(2) and block all the same, so this engine does not write
 * them: wal_device.h does, in a thread.
 *
 * At most LOOP_OPERATIONS_MAX operations are in flight, so a flat array and poll(2) are enough.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "broker/loop_engine.h"

struct plain {
    struct loop_operation *operations[LOOP_OPERATIONS_MAX];
    struct pollfd ready[LOOP_OPERATIONS_MAX];
    unsigned count;
};

static enum weir_status plain_open(void **state, struct weir_error *error)
{
    struct plain *plain = calloc(1, sizeof *plain);
    if (!plain)
        return weir_fail_errno(error, ENOMEM, "event loop");
    *state = plain;
    return WEIR_OK;
}

static void plain_close(void *state)
{
    free(state);
}

static void plain_start(void *state, struct loop_operation *operation)
{
    struct plain *plain = state;
    weir_assert(plain->count < LOOP_OPERATIONS_MAX);
    plain->operations[plain->count++] = operation;
}

/* True when the operation is complete; false when it has to wait for readiness. */
static bool plain_try(struct loop_operation *operation, short revents, int32_t *result)
{
    ssize_t moved = 0;
    switch (operation->kind) {
    case LOOP_POLL:
        *result = revents;
        return revents != 0;
    case LOOP_RECEIVE:
        if (revents == 0)
            return false;
        moved = recv(operation->fd, operation->data, operation->bytes, MSG_DONTWAIT);
        break;
    case LOOP_SEND:
        moved = send(operation->fd, operation->data, operation->bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case LOOP_WRITE:
        break; /* loop.c does not start one here */
    }
    int sys_errno = errno;
    if (moved < 0 && (sys_errno == EAGAIN || sys_errno == EWOULDBLOCK || sys_errno == EINTR))
        return false;
    *result = moved < 0 ? -sys_errno : (int32_t)moved;
    return true;
}

/* Try every operation once, with the revents given; completed ones leave the array. Returns how
 * many. */
static unsigned plain_pass(struct plain *plain, struct loop *loop)
{
    unsigned kept = 0;
    unsigned count = plain->count;
    for (unsigned index = 0; index < count; index++) {
        struct loop_operation *operation = plain->operations[index];
        int32_t result = 0;
        if (plain_try(operation, plain->ready[index].revents, &result))
            loop_complete(loop, operation, result);
        else
            plain->operations[kept++] = operation;
    }
    plain->count = kept;
    return count - kept;
}

static enum weir_status plain_wait(void *state, struct loop *loop, int timeout_ms,
                                   struct weir_error *error)
{
    struct plain *plain = state;

    /* Sends usually fit the socket's buffer: try them before asking. */
    for (unsigned index = 0; index < plain->count; index++)
        plain->ready[index] = (struct pollfd){.fd = -1};
    unsigned completed = plain_pass(plain, loop);

    for (unsigned index = 0; index < plain->count; index++) {
        const struct loop_operation *operation = plain->operations[index];
        plain->ready[index] = (struct pollfd){
            .fd = operation->fd,
            .events = operation->kind == LOOP_SEND ? POLLOUT : POLLIN,
        };
    }
    int result = poll(plain->ready, plain->count, completed ? 0 : timeout_ms);
    if (result < 0) {
        int sys_errno = errno;
        if (sys_errno == EINTR)
            return WEIR_OK;
        return weir_fail_errno(error, sys_errno, "poll");
    }
    if (result > 0)
        (void)plain_pass(plain, loop);
    return WEIR_OK;
}

const struct loop_engine loop_engine_plain = {
    .name = "plain",
    .open = plain_open,
    .close = plain_close,
    .start = plain_start,
    .wait = plain_wait,
};

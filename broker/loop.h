/* broker/loop.h -- the broker's event loop: operations are started, completions run in the next
 * turn.
 *
 * Two engines behind one interface: uring.c (io_uring through liburing) and plain.c (poll(2) and
 * plain calls) for where io_uring is refused or the setting `io` says plain. A callback may start
 * operations; it never reaps. One turn is:
 *
 *   loop_wait()  submit what was started, wait, move completions to a local queue
 *   loop_run()   run their callbacks
 *
 * Process and thread: one thread owns a loop.
 * Memory:   an operation is embedded in its owner and stays untouched from loop_*() start until its
 *           callback; so does the memory it points at. Nothing is allocated after loop_open().
 * Lifetime: to end a socket's operations, shutdown(2) it: they complete.
 * Bounds:   LOOP_OPERATIONS_MAX in flight; one more is our own bug.
 * Errors:   a completion's result is bytes moved (poll: revents), or a negated errno.
 */
#ifndef WEIR_BROKER_LOOP_H
#define WEIR_BROKER_LOOP_H

#include "config/settings.h"

enum { LOOP_OPERATIONS_MAX = 256 };

enum loop_operation_kind {
    LOOP_POLL = 1, /* fd is readable; once */
    LOOP_RECEIVE,  /* recv(2) of at most `bytes` */
    LOOP_SEND,     /* send(2), possibly short */
};

struct loop_operation {
    void (*done)(struct loop_operation *operation, int32_t result);
    void *owner; /* for the callback */
    /* The loop's own from here. */
    struct loop_operation *next;
    char *data;
    uint32_t bytes;
    int fd;
    int32_t result;
    enum loop_operation_kind kind;
    bool in_flight; /* readable by the owner: its callback has not run yet */
};

struct loop;

/* `io` AUTO: io_uring, or plain calls where the kernel refuses it (EPERM, ENOSYS, ENOMEM, EINVAL),
 * told once on stderr. */
enum weir_status loop_open(struct loop **loop, enum settings_io io,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Operations still in flight are abandoned: their callbacks do not run. */
void loop_close(struct loop *loop);
const char *loop_engine_name(const struct loop *loop); /* "uring" or "plain" */

void loop_poll(struct loop *loop, struct loop_operation *operation, int fd);
void loop_receive(struct loop *loop, struct loop_operation *operation, int fd, char *data,
                  size_t bytes);
void loop_send(struct loop *loop, struct loop_operation *operation, int fd, const char *data,
               size_t bytes);

/* Wait until something completes, or `timeout_ms` (negative: no limit). SYSTEM: the loop cannot go
 * on. */
enum weir_status loop_wait(struct loop *loop, int timeout_ms,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Run the callbacks of what loop_wait() brought. */
void loop_run(struct loop *loop);

#endif

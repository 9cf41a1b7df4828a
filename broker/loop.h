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

#include <sys/uio.h>

#include "config/settings.h"

enum { LOOP_OPERATIONS_MAX = 256, LOOP_BUFFERS_MAX = 8 };

enum loop_operation_kind {
    LOOP_POLL = 1, /* fd is readable; once */
    LOOP_RECEIVE,  /* recv(2) of at most `bytes` */
    LOOP_SEND,     /* send(2), possibly short */
    LOOP_WRITE,    /* pwrite(2) of at most `bytes`, synced on demand; see loop_writes_files() */
};

struct loop_operation {
    void (*done)(struct loop_operation *operation, int32_t result);
    void *owner; /* for the callback */
    /* The loop's own from here. */
    struct loop_operation *next;
    char *data;
    uint64_t offset; /* in the file written */
    uint32_t bytes;
    int fd;
    int32_t result;
    enum loop_operation_kind kind;
    bool is_synced; /* LOOP_WRITE: complete when on the disk */
    bool in_flight; /* readable by the owner: its callback has not run yet */
};

struct loop;

/* `io` AUTO: io_uring, or plain calls where the kernel refuses it (EPERM, ENOSYS, ENOMEM, EINVAL),
 * told once on stderr. */
enum weir_status loop_open(struct loop **loop, enum settings_io io,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Operations still in flight are abandoned: their callbacks do not run. Writes are waited for. */
void loop_close(struct loop *loop);
const char *loop_engine_name(const struct loop *loop); /* "uring" or "plain" */

void loop_poll(struct loop *loop, struct loop_operation *operation, int fd);
void loop_receive(struct loop *loop, struct loop_operation *operation, int fd, char *data,
                  size_t bytes);
void loop_send(struct loop *loop, struct loop_operation *operation, int fd, const char *data,
               size_t bytes);

/* Files on a disk. Only io_uring can write them without blocking; where loop_writes_files() is
 * false, none of the following may be called (wal_device.h has a thread for that). */
bool loop_writes_files(const struct loop *loop);
/* `is_synced`: the bytes are on the disk when it completes. EAGAIN and EINTR are the caller's to try again. */
void loop_write(struct loop *loop, struct loop_operation *operation, int fd, const char *data,
                size_t bytes, uint64_t offset, bool is_synced);
/* Hints that spare the kernel work per write (together about 0.95 of the CPU of a synced 4 KiB write
 * and 0.9 of one of 32 KiB, measured with O_DIRECT on ext4): memory whose pages stay pinned (once, before any
 * write; it stays mapped as long as the loop is open), and a file that need not be looked up. That
 * file is given up, with another or -1, before it is closed: its number may come again. False:
 * refused (RLIMIT_MEMLOCK, an old kernel), and writes go the longer way. */
bool loop_register_buffers(struct loop *loop, const struct iovec *buffers, unsigned count);
bool loop_register_file(struct loop *loop, int fd);

/* Wait until something completes, or `timeout_ms` (negative: no limit). SYSTEM: the loop cannot go
 * on. */
enum weir_status loop_wait(struct loop *loop, int timeout_ms,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Run the callbacks of what loop_wait() brought. */
void loop_run(struct loop *loop);

#endif

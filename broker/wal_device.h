/* broker/wal_device.h -- how the log's writer reaches the disk while the broker serves: "write these
 * bytes there, and sync them" as one operation that blocks nobody.
 *
 *   wal_device_write() ─┬─ io_uring: a synced LOOP_WRITE (loop.h)
 *                       └─ plain:    pwritev2(2) in a thread of the device's own (background.h)
 *   done() from loop_run() ◀──┘
 *
 * A table, so that a test can put a device that fails before the real one (tests/faulty_device.h).
 * The plain loop engine stays one poll(2) without threads: poll(2) has no answer for regular files,
 * and what a blocking write needs is here already.
 *
 * Process and thread: all calls and callbacks in the loop's thread.
 * Memory:   a request is embedded in its owner; it and the bytes it points at stay untouched until
 *           its done(). done() comes from the loop, never from inside a call, and may start requests.
 * Bounds:   WAL_DEVICE_REQUESTS_MAX in flight; one more is our own bug. The order in which several
 *           in flight are carried out is not defined.
 * Errors:   done()'s result is bytes written (possibly short: the caller continues), or a negated
 *           errno. Nothing is tried again except what the kernel did not begin (EAGAIN,
 *           EINTR). After an error nothing is known of the range's contents.
 * Alignment: a file opened with O_DIRECT wants address, offset and bytes in multiples of its block
 *           (4 KiB is always enough); else -EINVAL.
 */
#ifndef WEIR_BROKER_WAL_DEVICE_H
#define WEIR_BROKER_WAL_DEVICE_H

#include <sys/uio.h>

#include "broker/background.h"

enum {
    WAL_DEVICE_REQUESTS_MAX = 4,
    WAL_DEVICE_BUFFERS_MAX = 8,
};

struct wal_device;

struct wal_device_request {
    void (*done)(struct wal_device_request *request, int32_t result);
    void *owner; /* for the callback */
    /* The device's own from here. */
    union {
        struct loop_operation operation;
        struct background_job job;
    };
    struct wal_device *device;
    const char *data;
    size_t bytes;
    uint64_t offset;
    int fd;
    int32_t result;
    uint32_t tries;
    bool is_synced;
    bool in_flight; /* readable by the owner: done() has not been called yet */
};

/* What a device can do; called through the functions below. */
struct wal_device {
    /* `request` has all that wal_device_write() was given; completes through request->done(). */
    void (*start)(struct wal_device *device, struct wal_device_request *request);
    void (*use_buffers)(struct wal_device *device, const struct iovec *buffers, unsigned count);
    void (*use_file)(struct wal_device *device, int fd);
    void (*close)(struct wal_device *device);
};

/* Which of the two is chosen by the loop's engine. */
enum weir_status wal_device_open(struct wal_device **device, struct loop *loop,
                                 struct weir_error *error) WEIR_MUST_CHECK;
/* The owner runs the loop until its requests are done, then closes. A plain device finishes what is
 * left (done() from here); with io_uring the loop waits for it when it is closed, and its done() does not
 * come. As background_close(): the loop is not waited on again. NULL is fine. */
void wal_device_close(struct wal_device *device);

/* Memory that writes will come from, made known once so that the kernel need not pin its pages for
 * each write; it stays mapped until the device is closed. A hint: writes from elsewhere are right as
 * well, and where the kernel refuses (RLIMIT_MEMLOCK), nothing else changes. */
void wal_device_use_buffers(struct wal_device *device, const struct iovec *buffers, unsigned count);
/* The file the next writes go to, -1: none. A hint as well, with one duty: before a file that was
 * made known is closed, name another or none, for descriptors' numbers are used again. */
void wal_device_use_file(struct wal_device *device, int fd);

/* is_synced: done() comes when the bytes are on the disk, metadata needed to read them
 * included. */
void wal_device_write(struct wal_device *device, struct wal_device_request *request, int fd,
                      const char *data, size_t bytes, uint64_t offset, bool is_synced);

#endif

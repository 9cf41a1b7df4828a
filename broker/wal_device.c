#include "broker/wal_device.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static_assert((int)WAL_DEVICE_REQUESTS_MAX <= (int)BACKGROUND_JOBS_MAX,
              "a plain device's requests fit its thread");
static_assert((int)WAL_DEVICE_BUFFERS_MAX <= (int)LOOP_BUFFERS_MAX,
              "a uring device's buffers fit its loop");

static void request_done(struct wal_device_request *request, int32_t result)
{
    request->in_flight = false;
    request->done(request, result);
}

/* ---- io_uring ---- */

/* The kernel may find no memory for a request, or be interrupted before it began one. */
enum { TRIES_MAX = 100 };

struct uring_device {
    struct wal_device device; /* first: the table is the device */
    struct loop *loop;
};

static void uring_device_begin(struct wal_device_request *request);

static void uring_device_done(struct loop_operation *operation, int32_t result)
{
    struct wal_device_request *request = operation->owner;
    if ((result == -EAGAIN || result == -EINTR) && ++request->tries < TRIES_MAX)
        uring_device_begin(request);
    else
        request_done(request, result);
}

static void uring_device_begin(struct wal_device_request *request)
{
    struct loop *loop = ((struct uring_device *)request->device)->loop;
    request->operation = (struct loop_operation){.done = uring_device_done, .owner = request};
    loop_write(loop, &request->operation, request->fd, request->data, request->bytes,
               request->offset, request->is_synced);
}

static void uring_device_start(struct wal_device *device, struct wal_device_request *request)
{
    request->device = device;
    request->tries = 0;
    uring_device_begin(request);
}

static void uring_device_use_buffers(struct wal_device *device, const struct iovec *buffers,
                                     unsigned count)
{
    (void)loop_register_buffers(((struct uring_device *)device)->loop, buffers, count);
}

static void uring_device_use_file(struct wal_device *device, int fd)
{
    (void)loop_register_file(((struct uring_device *)device)->loop, fd);
}

static void uring_device_close(struct wal_device *device)
{
    free(device);
}

static enum weir_status uring_device_open(struct wal_device **device, struct loop *loop,
                                          struct weir_error *error)
{
    struct uring_device *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the log's device");
    opened->device = (struct wal_device){
        .start = uring_device_start,
        .use_buffers = uring_device_use_buffers,
        .use_file = uring_device_use_file,
        .close = uring_device_close,
    };
    opened->loop = loop;
    *device = &opened->device;
    return WEIR_OK;
}

/* ---- a thread ---- */

struct plain_device {
    struct wal_device device; /* first: the table is the device */
    struct background *background;
};

static int32_t write_file(const struct wal_device_request *request)
{
    /* One write moves at most 1 GiB, so that a result always fits. */
    const struct iovec part = {
        .iov_base = (void *)(uintptr_t)request->data, /* read only */
        .iov_len = request->bytes > 1u << 30 ? 1u << 30 : request->bytes,
    };
    off_t offset = (off_t)request->offset;
    ssize_t moved = pwritev2(request->fd, &part, 1, offset, request->is_synced ? RWF_DSYNC : 0);
    if (moved >= 0 || !request->is_synced || (errno != EOPNOTSUPP && errno != ENOSYS))
        return moved < 0 ? -errno : (int32_t)moved;
    /* Kernels and sandboxes without the flag. */
    moved = pwrite(request->fd, part.iov_base, part.iov_len, offset);
    if (moved < 0)
        return -errno;
    return fdatasync(request->fd) < 0 ? -errno : (int32_t)moved;
}

static void plain_device_run(struct background_job *job)
{
    struct wal_device_request *request = job->owner;
    do {
        request->result = write_file(request);
    } while ((request->result == -EAGAIN || request->result == -EINTR) &&
             ++request->tries < TRIES_MAX);
}

static void plain_device_done(struct background_job *job)
{
    struct wal_device_request *request = job->owner;
    request_done(request, request->result);
}

static void plain_device_start(struct wal_device *device, struct wal_device_request *request)
{
    request->device = device;
    request->tries = 0;
    request->job = (struct background_job){
        .run = plain_device_run, .done = plain_device_done, .owner = request};
    background_start(((struct plain_device *)device)->background, &request->job);
}

static void plain_device_use_buffers(struct wal_device *device, const struct iovec *buffers,
                                     unsigned count)
{
    (void)device;
    (void)buffers;
    (void)count;
}

static void plain_device_use_file(struct wal_device *device, int fd)
{
    (void)device;
    (void)fd;
}

static void plain_device_close(struct wal_device *device)
{
    background_close(((struct plain_device *)device)->background);
    free(device);
}

static enum weir_status plain_device_open(struct wal_device **device, struct loop *loop,
                                          struct weir_error *error)
{
    struct plain_device *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the log's device");
    opened->device = (struct wal_device){
        .start = plain_device_start,
        .use_buffers = plain_device_use_buffers,
        .use_file = plain_device_use_file,
        .close = plain_device_close,
    };
    enum weir_status status = background_open(&opened->background, loop, "weir-log", error);
    if (status != WEIR_OK) {
        free(opened);
        return status;
    }
    *device = &opened->device;
    return WEIR_OK;
}

/* ---- either ---- */

enum weir_status wal_device_open(struct wal_device **device, struct loop *loop,
                                 struct weir_error *error)
{
    return loop_writes_files(loop) ? uring_device_open(device, loop, error)
                                   : plain_device_open(device, loop, error);
}

void wal_device_close(struct wal_device *device)
{
    if (device)
        device->close(device);
}

void wal_device_use_buffers(struct wal_device *device, const struct iovec *buffers, unsigned count)
{
    weir_assert(count <= WAL_DEVICE_BUFFERS_MAX);
    device->use_buffers(device, buffers, count);
}

void wal_device_use_file(struct wal_device *device, int fd)
{
    device->use_file(device, fd);
}

void wal_device_write(struct wal_device *device, struct wal_device_request *request, int fd,
                      const char *data, size_t bytes, uint64_t offset, bool is_synced)
{
    weir_assert(!request->in_flight);
    request->in_flight = true;
    request->fd = fd;
    request->data = data;
    request->bytes = bytes;
    request->offset = offset;
    request->is_synced = is_synced;
    device->start(device, request);
}

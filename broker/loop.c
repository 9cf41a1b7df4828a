#include "broker/loop.h"

#include <errno.h>
#include <stdlib.h>

#include "broker/log.h"
#include "broker/loop_engine.h"

struct loop {
    const struct loop_engine *engine;
    void *state;
    struct loop_operation *completed;
    struct loop_operation **completed_end;
    unsigned in_flight;
};

/* The errors with which a kernel or a sandbox says "no io_uring here". */
static bool loop_refusal_is_final(int sys_errno)
{
    return sys_errno != EPERM && sys_errno != ENOSYS && sys_errno != ENOMEM &&
           sys_errno != EINVAL && sys_errno != EACCES;
}

static enum weir_status loop_open_engine(struct loop *loop, const struct loop_engine *engine,
                                         struct weir_error *error)
{
    loop->engine = engine;
    return engine->open(&loop->state, error);
}

enum weir_status loop_open(struct loop **loop, enum settings_io io, struct weir_error *error)
{
    struct weir_error refusal = {0};
    struct loop *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the event loop");
    opened->completed_end = &opened->completed;

    enum weir_status status = WEIR_OK;
    if (io == SETTINGS_IO_PLAIN) {
        status = loop_open_engine(opened, &loop_engine_plain, error);
    } else {
        status = loop_open_engine(opened, &loop_engine_uring, &refusal);
        if (status != WEIR_OK &&
            (io == SETTINGS_IO_URING || loop_refusal_is_final(refusal.sys_errno))) {
            status = weir_fail(error, status, "%s; set io=plain to do without", refusal.text);
        } else if (status != WEIR_OK) {
            log_line("event=io_uring_refused reason=\"%s\" io=plain", refusal.text);
            status = loop_open_engine(opened, &loop_engine_plain, error);
        }
    }
    if (status != WEIR_OK) {
        free(opened);
        return status;
    }
    *loop = opened;
    return WEIR_OK;
}

void loop_close(struct loop *loop)
{
    if (!loop)
        return;
    loop->engine->close(loop->state);
    free(loop);
}

const char *loop_engine_name(const struct loop *loop)
{
    return loop->engine->name;
}

static void loop_start(struct loop *loop, struct loop_operation *operation)
{
    weir_assert(!operation->in_flight);
    weir_assert(loop->in_flight < LOOP_OPERATIONS_MAX);
    operation->in_flight = true;
    operation->next = NULL;
    loop->in_flight++;
    loop->engine->start(loop->state, operation);
}

void loop_poll(struct loop *loop, struct loop_operation *operation, int fd)
{
    operation->kind = LOOP_POLL;
    operation->fd = fd;
    operation->data = NULL;
    operation->bytes = 0;
    loop_start(loop, operation);
}

/* One operation moves at most 1 GiB, so that a result always fits. */
static uint32_t loop_bytes(size_t bytes)
{
    return bytes > (1u << 30) ? 1u << 30 : (uint32_t)bytes;
}

void loop_receive(struct loop *loop, struct loop_operation *operation, int fd, char *data,
                  size_t bytes)
{
    operation->kind = LOOP_RECEIVE;
    operation->fd = fd;
    operation->data = data;
    operation->bytes = loop_bytes(bytes);
    loop_start(loop, operation);
}

void loop_send(struct loop *loop, struct loop_operation *operation, int fd, const char *data,
               size_t bytes)
{
    operation->kind = LOOP_SEND;
    operation->fd = fd;
    operation->data = (char *)(uintptr_t)data; /* read only; one field serves both directions */
    operation->bytes = loop_bytes(bytes);
    loop_start(loop, operation);
}

bool loop_writes_files(const struct loop *loop)
{
    return loop->engine->register_file != NULL;
}

void loop_write(struct loop *loop, struct loop_operation *operation, int fd, const char *data,
                size_t bytes, uint64_t offset, bool is_synced)
{
    weir_assert(loop_writes_files(loop));
    operation->kind = LOOP_WRITE;
    operation->fd = fd;
    operation->data = (char *)(uintptr_t)data; /* read only, as above */
    operation->bytes = loop_bytes(bytes);
    operation->offset = offset;
    operation->is_synced = is_synced;
    loop_start(loop, operation);
}

bool loop_register_buffers(struct loop *loop, const struct iovec *buffers, unsigned count)
{
    weir_assert(loop_writes_files(loop));
    weir_assert(count <= LOOP_BUFFERS_MAX);
    return loop->engine->register_buffers(loop->state, buffers, count);
}

bool loop_register_file(struct loop *loop, int fd)
{
    weir_assert(loop_writes_files(loop));
    return loop->engine->register_file(loop->state, fd);
}

void loop_complete(struct loop *loop, struct loop_operation *operation, int32_t result)
{
    operation->result = result;
    operation->next = NULL;
    *loop->completed_end = operation;
    loop->completed_end = &operation->next;
}

enum weir_status loop_wait(struct loop *loop, int timeout_ms, struct weir_error *error)
{
    return loop->engine->wait(loop->state, loop, timeout_ms, error);
}

void loop_run(struct loop *loop)
{
    struct loop_operation *operation = loop->completed;
    loop->completed = NULL;
    loop->completed_end = &loop->completed;
    while (operation) { /* at most LOOP_OPERATIONS_MAX: each was in flight */
        struct loop_operation *next = operation->next;
        operation->next = NULL;
        operation->in_flight = false;
        loop->in_flight--;
        operation->done(operation, operation->result);
        operation = next;
    }
}

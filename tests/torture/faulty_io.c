#include "tests/torture/faulty_io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { SHORT_UNIT_BYTES = 4096 };

/* What a call that is not a write does: NONE, or -errno, or this process's end. `after` runs behind. */
static int simple_fault(struct faulty_io *faulty, enum fault_action action)
{
    switch (action) {
    case FAULT_ACTION_EIO:
    case FAULT_ACTION_HALF:
        return -EIO;
    case FAULT_ACTION_ENOSPC:
        return -ENOSPC;
    case FAULT_ACTION_CUT:
        if (faulty->power)
            power_cut(faulty->power);
        fault_strike();
    case FAULT_ACTION_BEFORE:
    case FAULT_ACTION_TORN:
        fault_strike();
    default:
        return 0;
    }
}

/* Run the call, with what the plan has for it. */
#define WITH_FAULT(faulty, point, call)                                                            \
    enum fault_action action = fault_plan_next((faulty)->plan, (point));                           \
    int result = simple_fault((faulty), action);                                                   \
    if (result == 0 && action != FAULT_ACTION_LIE)                                                 \
        result = (call);                                                                           \
    if (action == FAULT_ACTION_AFTER)                                                              \
        fault_strike();                                                                            \
    return result

static enum fault_point point_of_name(const char *path)
{
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    if (strcmp(name, "frames") == 0) /* the stand-in's */
        return FAULT_POINT_WRITE;
    return strncmp(name, "snapshot", 8) == 0 ? FAULT_POINT_SNAPSHOT : FAULT_POINT_PREPARE;
}

static enum fault_point point_of_fd(const struct faulty_io *faulty, int fd)
{
    return fd >= 0 && fd < FAULTY_IO_FDS_MAX ? faulty->points[fd] : FAULT_POINT_PREPARE;
}

static int faulty_open(void *context, const char *path, int flags)
{
    struct faulty_io *faulty = context;
    enum fault_action action = fault_plan_next(faulty->plan, FAULT_POINT_OPEN);
    int fd = simple_fault(faulty, action);
    if (fd != 0)
        return fd;
    if (flags & O_CREAT)
        (void)power_naming(faulty->power, POWER_CREATE, path, NULL);
    fd = faulty->inner->open(faulty->inner->context, path, flags);
    if (fd >= 0 && fd < FAULTY_IO_FDS_MAX)
        faulty->points[fd] = (uint8_t)point_of_name(path);
    if (action == FAULT_ACTION_AFTER)
        fault_strike();
    return fd;
}

static int faulty_close(void *context, int fd)
{
    struct faulty_io *faulty = context;
    return faulty->inner->close(faulty->inner->context, fd);
}

static int faulty_lock(void *context, int fd)
{
    struct faulty_io *faulty = context;
    return faulty->inner->lock(faulty->inner->context, fd);
}

static int faulty_size(void *context, int fd, uint64_t *bytes)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_READING, faulty->inner->size(faulty->inner->context, fd, bytes));
}

static ssize_t faulty_read(void *context, int fd, void *data, size_t bytes, uint64_t offset)
{
    struct faulty_io *faulty = context;
    enum fault_action action = fault_plan_next(faulty->plan, FAULT_POINT_READING);
    int result = simple_fault(faulty, action);
    if (result != 0)
        return result;
    if (action == FAULT_ACTION_SHORT)
        bytes = fault_short_bytes(faulty->plan, bytes, 1);
    ssize_t got = faulty->inner->read(faulty->inner->context, fd, data, bytes, offset);
    if (action == FAULT_ACTION_AFTER)
        fault_strike();
    return got;
}

static ssize_t faulty_write(void *context, int fd, const void *data, size_t bytes, uint64_t offset)
{
    struct faulty_io *faulty = context;
    enum fault_action action = fault_plan_next(faulty->plan, point_of_fd(faulty, fd));
    switch (action) {
    case FAULT_ACTION_TORN:
        fault_tear(faulty->plan, fd, data, bytes, offset);
        fault_strike();
    case FAULT_ACTION_CUT:
        power_writing(faulty->power, fd, bytes, offset);
        fault_tear(faulty->plan, fd, data, bytes, offset);
        break; /* and the rest below */
    case FAULT_ACTION_HALF:
        power_writing(faulty->power, fd, bytes, offset);
        fault_tear(faulty->plan, fd, data, bytes, offset);
        return -EIO;
    case FAULT_ACTION_SHORT:
        bytes = fault_short_bytes(faulty->plan, bytes, SHORT_UNIT_BYTES);
        break;
    case FAULT_ACTION_LIE:
        return (ssize_t)bytes;
    default:
        break;
    }
    int result = simple_fault(faulty, action);
    if (result != 0)
        return result;
    power_writing(faulty->power, fd, bytes, offset);
    ssize_t written = faulty->inner->write(faulty->inner->context, fd, data, bytes, offset);
    if (action == FAULT_ACTION_AFTER)
        fault_strike();
    return written;
}

static int faulty_truncate(void *context, int fd, uint64_t bytes)
{
    struct faulty_io *faulty = context;
    power_writing(faulty->power, fd, 0, bytes);
    WITH_FAULT(faulty, point_of_fd(faulty, fd),
               faulty->inner->truncate(faulty->inner->context, fd, bytes));
}

static int sync_and_forget(struct faulty_io *faulty, int fd)
{
    int result = faulty->inner->sync(faulty->inner->context, fd);
    if (result == 0)
        power_synced(faulty->power, fd);
    return result;
}

static int faulty_sync(void *context, int fd)
{
    struct faulty_io *faulty = context;
    enum fault_point point = point_of_fd(faulty, fd);
    WITH_FAULT(faulty, point == FAULT_POINT_WRITE ? FAULT_POINT_SYNC : point,
               sync_and_forget(faulty, fd));
}

static int sync_directory_and_forget(struct faulty_io *faulty, const char *path)
{
    int result = faulty->inner->sync_directory(faulty->inner->context, path);
    if (result == 0)
        power_directory_synced(faulty->power);
    return result;
}

static int faulty_sync_directory(void *context, const char *path)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_DIRECTORY, sync_directory_and_forget(faulty, path));
}

static int faulty_make_directory(void *context, const char *path)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_DIRECTORY,
               faulty->inner->make_directory(faulty->inner->context, path));
}

static int rename_for_now(struct faulty_io *faulty, const char *from, const char *to)
{
    (void)power_naming(faulty->power, POWER_RENAME, from, to);
    return faulty->inner->rename(faulty->inner->context, from, to);
}

static int faulty_rename(void *context, const char *from, const char *to)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_RENAME, rename_for_now(faulty, from, to));
}

static int remove_for_now(struct faulty_io *faulty, const char *path)
{
    return power_naming(faulty->power, POWER_REMOVE, path, NULL)
               ? 0
               : faulty->inner->remove(faulty->inner->context, path);
}

static int faulty_remove(void *context, const char *path)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_REMOVE, remove_for_now(faulty, path));
}

static int faulty_list(void *context, const char *path,
                       int (*each)(void *each_context, const char *name), void *each_context)
{
    struct faulty_io *faulty = context;
    WITH_FAULT(faulty, FAULT_POINT_READING,
               faulty->inner->list(faulty->inner->context, path, each, each_context));
}

void faulty_io_init(struct faulty_io *faulty, const struct wal_io *inner, struct fault_plan *plan,
                    struct power *power)
{
    *faulty = (struct faulty_io){
        .io = {.open = faulty_open,
               .close = faulty_close,
               .lock = faulty_lock,
               .size = faulty_size,
               .read = faulty_read,
               .write = faulty_write,
               .truncate = faulty_truncate,
               .sync = faulty_sync,
               .sync_directory = faulty_sync_directory,
               .make_directory = faulty_make_directory,
               .rename = faulty_rename,
               .remove = faulty_remove,
               .list = faulty_list,
               .context = faulty},
        .inner = inner,
        .plan = plan,
        .power = power,
    };
}

/* tests/wal_faults.h -- struct wal_io on top of another one that fails where a test says.
 *
 *   wal_faults_init(&faults, &wal_io_system);
 *   faults.fail_at = n;              the nth call of the operations in `operations` fails ...
 *   faults.error = EIO;              ... with this errno
 *   faults.is_crash = true;          ... and so does every call after it that would change something:
 *                                    the process is dead; what was done before stays
 *   faults.torn_bytes = n;           a failing write has written so many bytes before
 *   faults.short_bytes = n;          reads and writes do at most so many bytes a call
 *   ... code under test with &faults.io ...
 *   faults.has_fired, faults.calls   what came of it
 *
 * "Loop n from 1 until no fault fires" covers every call of a function. Closing never fails: there is
 * nothing a caller could do.
 */
#ifndef WEIR_TESTS_WAL_FAULTS_H
#define WEIR_TESTS_WAL_FAULTS_H

#include <errno.h>
#include <string.h>

#include "broker/wal_io.h"

enum wal_operation {
    WAL_OPERATION_OPEN,
    WAL_OPERATION_LOCK,
    WAL_OPERATION_SIZE,
    WAL_OPERATION_READ,
    WAL_OPERATION_WRITE,
    WAL_OPERATION_TRUNCATE,
    WAL_OPERATION_SYNC,
    WAL_OPERATION_SYNC_DIRECTORY,
    WAL_OPERATION_MAKE_DIRECTORY,
    WAL_OPERATION_RENAME,
    WAL_OPERATION_REMOVE,
    WAL_OPERATION_LIST,
    WAL_OPERATION_COUNT,
};

struct wal_faults {
    struct wal_io io;
    const struct wal_io *inner;
    uint32_t operations; /* set of 1 << enum wal_operation that are counted; all at first */
    uint64_t fail_at;    /* 0: never */
    int error;
    bool is_crash;
    size_t torn_bytes;
    size_t short_bytes; /* 0: no limit */
    uint64_t calls;     /* counted so far */
    bool has_fired;
    uint64_t counts[WAL_OPERATION_COUNT];
};

/* 0, or the error this call ends with. */
static inline int wal_faults_check(struct wal_faults *faults, enum wal_operation operation)
{
    bool changes = operation >= WAL_OPERATION_WRITE && operation <= WAL_OPERATION_REMOVE;
    faults->counts[operation]++;
    if (faults->has_fired && faults->is_crash && changes)
        return -EIO;
    if ((faults->operations & 1u << operation) == 0)
        return 0;
    if (++faults->calls != faults->fail_at)
        return 0;
    faults->has_fired = true;
    return -faults->error;
}

static inline size_t wal_faults_limit(const struct wal_faults *faults, size_t bytes)
{
    return faults->short_bytes > 0 && bytes > faults->short_bytes ? faults->short_bytes : bytes;
}

static inline int wal_faults_open(void *context, const char *path, int flags)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_OPEN);
    return result != 0 ? result : faults->inner->open(faults->inner->context, path, flags);
}

static inline int wal_faults_close(void *context, int fd)
{
    struct wal_faults *faults = context;
    return faults->inner->close(faults->inner->context, fd);
}

static inline int wal_faults_lock(void *context, int fd)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_LOCK);
    return result != 0 ? result : faults->inner->lock(faults->inner->context, fd);
}

static inline int wal_faults_size(void *context, int fd, uint64_t *bytes)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_SIZE);
    return result != 0 ? result : faults->inner->size(faults->inner->context, fd, bytes);
}

static inline ssize_t wal_faults_read(void *context, int fd, void *data, size_t bytes,
                                      uint64_t offset)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_READ);
    if (result != 0)
        return result;
    return faults->inner->read(faults->inner->context, fd, data, wal_faults_limit(faults, bytes),
                               offset);
}

static inline ssize_t wal_faults_write(void *context, int fd, const void *data, size_t bytes,
                                       uint64_t offset)
{
    struct wal_faults *faults = context;
    bool had_fired = faults->has_fired;
    int result = wal_faults_check(faults, WAL_OPERATION_WRITE);
    size_t torn = bytes < faults->torn_bytes ? bytes : faults->torn_bytes;
    if (result != 0 && !had_fired && torn > 0)
        (void)faults->inner->write(faults->inner->context, fd, data, torn, offset);
    if (result != 0)
        return result;
    return faults->inner->write(faults->inner->context, fd, data, wal_faults_limit(faults, bytes),
                                offset);
}

static inline int wal_faults_truncate(void *context, int fd, uint64_t bytes)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_TRUNCATE);
    return result != 0 ? result : faults->inner->truncate(faults->inner->context, fd, bytes);
}

static inline int wal_faults_sync(void *context, int fd)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_SYNC);
    return result != 0 ? result : faults->inner->sync(faults->inner->context, fd);
}

static inline int wal_faults_sync_directory(void *context, const char *path)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_SYNC_DIRECTORY);
    return result != 0 ? result : faults->inner->sync_directory(faults->inner->context, path);
}

static inline int wal_faults_make_directory(void *context, const char *path)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_MAKE_DIRECTORY);
    return result != 0 ? result : faults->inner->make_directory(faults->inner->context, path);
}

static inline int wal_faults_rename(void *context, const char *from, const char *to)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_RENAME);
    return result != 0 ? result : faults->inner->rename(faults->inner->context, from, to);
}

static inline int wal_faults_remove(void *context, const char *path)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_REMOVE);
    return result != 0 ? result : faults->inner->remove(faults->inner->context, path);
}

static inline int wal_faults_list(void *context, const char *path,
                                  int (*each)(void *each_context, const char *name),
                                  void *each_context)
{
    struct wal_faults *faults = context;
    int result = wal_faults_check(faults, WAL_OPERATION_LIST);
    return result != 0 ? result
                       : faults->inner->list(faults->inner->context, path, each, each_context);
}

static inline void wal_faults_init(struct wal_faults *faults, const struct wal_io *inner)
{
    memset(faults, 0, sizeof *faults);
    faults->inner = inner;
    faults->operations = UINT32_MAX;
    faults->error = EIO;
    faults->io = (struct wal_io){
        .open = wal_faults_open,
        .close = wal_faults_close,
        .lock = wal_faults_lock,
        .size = wal_faults_size,
        .read = wal_faults_read,
        .write = wal_faults_write,
        .truncate = wal_faults_truncate,
        .sync = wal_faults_sync,
        .sync_directory = wal_faults_sync_directory,
        .make_directory = wal_faults_make_directory,
        .rename = wal_faults_rename,
        .remove = wal_faults_remove,
        .list = wal_faults_list,
        .context = faults,
    };
}

#endif

/* broker/wal_io.h -- the system calls of log and snapshots behind one table, so that a test can fail,
 * cut or end the process at any of them.
 *
 * What has to be fast goes another way (wal_device.h): here is what opens, prepares, reads, names and
 * removes files. All calls block; in the running broker they are made before it serves, or by its
 * background thread (background.h).
 *
 * Process and thread: any. Errors: a negated errno; ENOSPC and EIO are told apart by the caller.
 */
#ifndef WEIR_BROKER_WAL_IO_H
#define WEIR_BROKER_WAL_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct wal_io {
    /* open(2) with O_CLOEXEC, mode 0600. */
    int (*open)(void *context, const char *path, int flags);
    int (*close)(void *context, int fd);
    /* flock(2), LOCK_EX | LOCK_NB: 0, or -EWOULDBLOCK when another process has it. */
    int (*lock)(void *context, int fd);
    int (*size)(void *context, int fd, uint64_t *bytes);
    /* pread(2) and pwrite(2): possibly short. */
    ssize_t (*read)(void *context, int fd, void *data, size_t bytes, uint64_t offset);
    ssize_t (*write)(void *context, int fd, const void *data, size_t bytes, uint64_t offset);
    int (*truncate)(void *context, int fd, uint64_t bytes);
    int (*sync)(void *context, int fd); /* fdatasync(2) */
    /* Makes names in the directory permanent: open, fsync(2), close. */
    int (*sync_directory)(void *context, const char *path);
    int (*make_directory)(void *context,
                          const char *path); /* mkdir(2), mode 0700; existing is fine */
    int (*rename)(void *context, const char *from, const char *to);
    int (*remove)(void *context, const char *path); /* missing is fine */
    /* One call of `each` per name in the directory but "." and ".."; order undefined. Not 0 from
     * `each` ends it and is returned. */
    int (*list)(void *context, const char *path, int (*each)(void *each_context, const char *name),
                void *each_context);
    void *context;
};

extern const struct wal_io wal_io_system;

#endif

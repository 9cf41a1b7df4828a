#include "broker/wal_io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int result_of(int returned)
{
    return returned < 0 ? -errno : returned;
}

static int system_open(void *context, const char *path, int flags)
{
    (void)context;
    return result_of(open(path, flags | O_CLOEXEC, 0600));
}

static int system_close(void *context, int fd)
{
    (void)context;
    return result_of(close(fd));
}

static int system_lock(void *context, int fd)
{
    (void)context;
    return result_of(flock(fd, LOCK_EX | LOCK_NB));
}

static int system_size(void *context, int fd, uint64_t *bytes)
{
    (void)context;
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -errno;
    *bytes = (uint64_t)status.st_size;
    return 0;
}

static ssize_t system_read(void *context, int fd, void *data, size_t bytes, uint64_t offset)
{
    (void)context;
    ssize_t count = pread(fd, data, bytes, (off_t)offset);
    return count < 0 ? -errno : count;
}

static ssize_t system_write(void *context, int fd, const void *data, size_t bytes, uint64_t offset)
{
    (void)context;
    ssize_t count = pwrite(fd, data, bytes, (off_t)offset);
    return count < 0 ? -errno : count;
}

static int system_truncate(void *context, int fd, uint64_t bytes)
{
    (void)context;
    return result_of(ftruncate(fd, (off_t)bytes));
}

static int system_sync(void *context, int fd)
{
    (void)context;
    return result_of(fdatasync(fd));
}

static int system_sync_directory(void *context, const char *path)
{
    (void)context;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int result = result_of(fsync(fd));
    (void)close(fd);
    return result;
}

static int system_make_directory(void *context, const char *path)
{
    (void)context;
    int result = result_of(mkdir(path, 0700));
    return result == -EEXIST ? 0 : result;
}

static int system_rename(void *context, const char *from, const char *to)
{
    (void)context;
    return result_of(rename(from, to));
}

static int system_remove(void *context, const char *path)
{
    (void)context;
    int result = result_of(unlink(path));
    return result == -ENOENT ? 0 : result;
}

static int system_list(void *context, const char *path,
                       int (*each)(void *each_context, const char *name), void *each_context)
{
    (void)context;
    DIR *directory = opendir(path);
    if (directory == NULL)
        return -errno;
    int result = 0;
    while (result == 0) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            result = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            result = each(each_context, entry->d_name);
    }
    (void)closedir(directory);
    return result;
}

const struct wal_io wal_io_system = {
    .open = system_open,
    .close = system_close,
    .lock = system_lock,
    .size = system_size,
    .read = system_read,
    .write = system_write,
    .truncate = system_truncate,
    .sync = system_sync,
    .sync_directory = system_sync_directory,
    .make_directory = system_make_directory,
    .rename = system_rename,
    .remove = system_remove,
    .list = system_list,
};

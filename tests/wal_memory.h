/* tests/wal_memory.h -- struct wal_io over files in memory: one directory, a handful of files, fast
 * enough for thousands of cases. Paths are told apart by their last part. What was written is what is
 * read; nothing is lost. wal_faults.h goes on top of it as on top of wal_io_system.
 */
#ifndef WEIR_TESTS_WAL_MEMORY_H
#define WEIR_TESTS_WAL_MEMORY_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/wal_io.h"

enum { WAL_MEMORY_FILES = 64, WAL_MEMORY_NAME_BYTES = 64, WAL_MEMORY_FDS = 16 };

struct wal_memory_file {
    char name[WAL_MEMORY_NAME_BYTES]; /* empty: none */
    char *data;
    size_t bytes;
};

struct wal_memory {
    struct wal_memory_file files[WAL_MEMORY_FILES];
    /* Index of the file + 1; 0: closed. A removed file stays open as nothing. */
    size_t fds[WAL_MEMORY_FDS];
    bool is_locked; /* by somebody else */
    struct wal_io io;
};

static inline const char *wal_memory_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static inline struct wal_memory_file *wal_memory_find(struct wal_memory *memory, const char *path)
{
    const char *name = wal_memory_name(path);
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++)
        if (memory->files[i].name[0] != '\0' && strcmp(memory->files[i].name, name) == 0)
            return &memory->files[i];
    return NULL;
}

static inline struct wal_memory_file *wal_memory_make(struct wal_memory *memory, const char *path)
{
    const char *name = wal_memory_name(path);
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++) {
        struct wal_memory_file *file = &memory->files[i];
        if (file->name[0] == '\0' && strlen(name) < sizeof file->name) {
            memcpy(file->name, name, strlen(name) + 1);
            file->bytes = 0;
            return file;
        }
    }
    return NULL;
}

static inline void wal_memory_drop(struct wal_memory_file *file)
{
    free(file->data);
    memset(file, 0, sizeof *file);
}

static inline int wal_memory_resize(struct wal_memory_file *file, size_t bytes)
{
    char *data = realloc(file->data, bytes > 0 ? bytes : 1);
    if (data == NULL)
        return -ENOMEM;
    if (bytes > file->bytes)
        memset(data + file->bytes, 0, bytes - file->bytes);
    file->data = data;
    file->bytes = bytes;
    return 0;
}

static inline struct wal_memory_file *wal_memory_of(void *context, int fd)
{
    struct wal_memory *memory = context;
    if (fd < 0 || fd >= WAL_MEMORY_FDS || memory->fds[fd] == 0)
        return NULL;
    return &memory->files[memory->fds[fd] - 1];
}

static inline int wal_memory_open_file(void *context, const char *path, int flags)
{
    struct wal_memory *memory = context;
    struct wal_memory_file *file = wal_memory_find(memory, path);
    if (file == NULL && (flags & O_CREAT) == 0)
        return -ENOENT;
    if (file == NULL)
        file = wal_memory_make(memory, path);
    if (file == NULL)
        return -ENOSPC;
    if ((flags & O_TRUNC) != 0)
        file->bytes = 0;
    for (int fd = 0; fd < WAL_MEMORY_FDS; fd++) {
        if (memory->fds[fd] == 0) {
            memory->fds[fd] = (size_t)(file - memory->files) + 1;
            return fd;
        }
    }
    return -EMFILE;
}

static inline int wal_memory_close_file(void *context, int fd)
{
    struct wal_memory *memory = context;
    if (wal_memory_of(memory, fd) == NULL)
        return -EBADF;
    memory->fds[fd] = 0;
    return 0;
}

static inline int wal_memory_lock(void *context, int fd)
{
    struct wal_memory *memory = context;
    if (wal_memory_of(memory, fd) == NULL)
        return -EBADF;
    return memory->is_locked ? -EWOULDBLOCK : 0;
}

static inline int wal_memory_size(void *context, int fd, uint64_t *bytes)
{
    const struct wal_memory_file *file = wal_memory_of(context, fd);
    if (file == NULL)
        return -EBADF;
    *bytes = file->bytes;
    return 0;
}

static inline ssize_t wal_memory_read(void *context, int fd, void *data, size_t bytes,
                                      uint64_t offset)
{
    const struct wal_memory_file *file = wal_memory_of(context, fd);
    if (file == NULL)
        return -EBADF;
    if (offset >= file->bytes || bytes == 0)
        return 0;
    if (bytes > file->bytes - offset)
        bytes = file->bytes - offset;
    memcpy(data, file->data + offset, bytes);
    return (ssize_t)bytes;
}

static inline ssize_t wal_memory_write(void *context, int fd, const void *data, size_t bytes,
                                       uint64_t offset)
{
    struct wal_memory_file *file = wal_memory_of(context, fd);
    if (file == NULL)
        return -EBADF;
    if (offset + bytes > file->bytes && wal_memory_resize(file, offset + bytes) != 0)
        return -ENOSPC;
    if (bytes > 0)
        memcpy(file->data + offset, data, bytes);
    return (ssize_t)bytes;
}

static inline int wal_memory_truncate(void *context, int fd, uint64_t bytes)
{
    struct wal_memory_file *file = wal_memory_of(context, fd);
    return file == NULL ? -EBADF : wal_memory_resize(file, bytes);
}

static inline int wal_memory_sync(void *context, int fd)
{
    return wal_memory_of(context, fd) == NULL ? -EBADF : 0;
}

static inline int wal_memory_done(void *context, const char *path)
{
    (void)context;
    (void)path;
    return 0;
}

static inline int wal_memory_rename(void *context, const char *from, const char *to)
{
    struct wal_memory *memory = context;
    struct wal_memory_file *file = wal_memory_find(memory, from);
    struct wal_memory_file *old = wal_memory_find(memory, to);
    const char *name = wal_memory_name(to);
    if (file == NULL)
        return -ENOENT;
    if (old != NULL && old != file)
        wal_memory_drop(old);
    memcpy(file->name, name, strlen(name) + 1);
    return 0;
}

static inline int wal_memory_remove(void *context, const char *path)
{
    struct wal_memory_file *file = wal_memory_find(context, path);
    if (file != NULL)
        wal_memory_drop(file);
    return 0;
}

static inline int wal_memory_list(void *context, const char *path,
                                  int (*each)(void *each_context, const char *name),
                                  void *each_context)
{
    struct wal_memory *memory = context;
    (void)path;
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++) {
        int result =
            memory->files[i].name[0] == '\0' ? 0 : each(each_context, memory->files[i].name);
        if (result != 0)
            return result;
    }
    return 0;
}

static inline void wal_memory_init(struct wal_memory *memory)
{
    memset(memory, 0, sizeof *memory);
    memory->io = (struct wal_io){
        .open = wal_memory_open_file,
        .close = wal_memory_close_file,
        .lock = wal_memory_lock,
        .size = wal_memory_size,
        .read = wal_memory_read,
        .write = wal_memory_write,
        .truncate = wal_memory_truncate,
        .sync = wal_memory_sync,
        .sync_directory = wal_memory_done,
        .make_directory = wal_memory_done,
        .rename = wal_memory_rename,
        .remove = wal_memory_remove,
        .list = wal_memory_list,
        .context = memory,
    };
}

static inline void wal_memory_fini(struct wal_memory *memory)
{
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++)
        wal_memory_drop(&memory->files[i]);
    memset(memory->fds, 0, sizeof memory->fds);
}

/* `to` becomes what `from` is: nothing open, its own bytes. False without memory. */
static inline bool wal_memory_copy(struct wal_memory *to, const struct wal_memory *from)
{
    wal_memory_fini(to);
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++) {
        const struct wal_memory_file *file = &from->files[i];
        if (file->name[0] == '\0')
            continue;
        memcpy(to->files[i].name, file->name, sizeof file->name);
        if (wal_memory_resize(&to->files[i], file->bytes) != 0)
            return false;
        if (file->bytes > 0)
            memcpy(to->files[i].data, file->data, file->bytes);
    }
    return true;
}

static inline size_t wal_memory_open_count(const struct wal_memory *memory)
{
    size_t count = 0;
    for (size_t fd = 0; fd < WAL_MEMORY_FDS; fd++)
        count += memory->fds[fd] != 0;
    return count;
}

#endif

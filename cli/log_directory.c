#include "cli/log_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Beyond: more than any log has, so something else fills the directory. */
enum { LOG_DIRECTORY_FILES_MAX = 2 * WAL_SEGMENTS_MAX };

void log_file_name(char name[LOG_FILE_NAME_BYTES], enum wal_file_kind kind, uint64_t number)
{
    char path[WAL_PATH_BYTES];
    wal_path(path, ".", kind, number);
    size_t bytes = strlen(path + 2);
    weir_assert(bytes < LOG_FILE_NAME_BYTES);
    memcpy(name, path + 2, bytes + 1);
}

/* A name is ours when it is the very one that is written for its number. */
static bool log_file_parse(const char *name, struct log_file *file)
{
    static const struct {
        const char *prefix;
        enum wal_file_kind kind;
    } kinds[] = {{"log-", WAL_FILE_LOG}, {"snapshot-", WAL_FILE_SNAPSHOT}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        size_t prefix_bytes = strlen(kinds[i].prefix);
        if (strncmp(name, kinds[i].prefix, prefix_bytes) != 0 || name[prefix_bytes] < '0' ||
            name[prefix_bytes] > '9')
            continue;
        char *end = NULL;
        errno = 0;
        uint64_t number = strtoull(name + prefix_bytes, &end, 10);
        if (errno != 0)
            return false;
        char right[LOG_FILE_NAME_BYTES];
        log_file_name(right, kinds[i].kind, number);
        *file = (struct log_file){
            .kind = kinds[i].kind, .number = number, .is_unfinished = strcmp(end, ".new") == 0};
        return strncmp(name, right, strlen(right)) == 0 && (size_t)(end - name) == strlen(right) &&
               (file->is_unfinished || *end == '\0');
    }
    return false;
}

static int log_directory_add(void *context, const char *name)
{
    struct log_directory *directory = context;
    struct log_file file;
    if (!log_file_parse(name, &file))
        return 0;
    if (directory->file_count == LOG_DIRECTORY_FILES_MAX)
        return -EOVERFLOW;
    if ((directory->file_count & (directory->file_count - 1)) == 0) { /* full at powers of two */
        size_t count = directory->file_count == 0 ? 1 : 2 * directory->file_count;
        struct log_file *grown = realloc(directory->files, count * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        directory->files = grown;
    }
    char path[WAL_PATH_BYTES + 8];
    wal_path(path, directory->path, file.kind, file.number);
    if (file.is_unfinished)
        (void)snprintf(path + strlen(path), 8, ".new");
    const struct wal_io *io = &wal_io_system;
    int fd = io->open(io->context, path, O_RDONLY);
    if (fd >= 0) {
        (void)io->size(io->context, fd, &file.bytes); /* stays 0 */
        (void)io->close(io->context, fd);
    }
    directory->files[directory->file_count++] = file;
    directory->bytes += file.bytes;
    return 0;
}

static int log_file_compare(const void *left, const void *right)
{
    const struct log_file *a = left;
    const struct log_file *b = right;
    if (a->is_unfinished != b->is_unfinished)
        return a->is_unfinished ? 1 : -1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    return a->number < b->number ? -1 : a->number > b->number;
}

enum weir_status log_directory_refresh(struct log_directory *directory, struct weir_error *error)
{
    const char *path = directory->path;
    free(directory->files);
    directory->files = NULL;
    directory->file_count = 0;
    directory->bytes = 0;
    int result = wal_io_system.list(wal_io_system.context, path, log_directory_add, directory);
    if (result == -ENOENT)
        return weir_fail(error, WEIR_SYSTEM, "there is no directory %.160s", path);
    if (result < 0)
        return weir_fail_errno(error, -result, "cannot list %.160s", path);
    if (directory->file_count > 0)
        qsort(directory->files, directory->file_count, sizeof *directory->files, log_file_compare);
    return WEIR_OK;
}

enum weir_status log_directory_read(struct log_directory *directory, const char *path,
                                    struct weir_error *error)
{
    *directory = (struct log_directory){.path = path, .lock_fd = -1};
    if (strlen(path) >= WAL_PATH_BYTES - LOG_FILE_NAME_BYTES)
        return weir_fail(error, WEIR_INVALID, "the path %.100s... is too long", path);
    return log_directory_refresh(directory, error);
}

bool log_directory_has_log(const struct log_directory *directory)
{
    return directory->file_count > 0 && !directory->files[0].is_unfinished;
}

enum weir_status log_directory_lock(struct log_directory *directory, struct weir_error *error)
{
    struct weir_error cause = {.status = WEIR_OK};
    enum weir_status status =
        wal_lock(&wal_io_system, directory->path, &directory->lock_fd, &cause);
    if (status == WEIR_OK)
        return WEIR_OK;
    directory->lock_fd = -1;
    if (status == WEIR_REFUSED)
        return weir_fail(
            error, status,
            "a broker is using %.120s; stop it, or copy the directory and use the copy",
            directory->path);
    if (error != NULL)
        *error = cause;
    return status;
}

enum weir_status log_directory_open(struct log_directory *directory, const char *path,
                                    struct weir_error *error)
{
    /* A look first: the lock is a file, and none is to be left in a directory given by mistake. */
    enum weir_status status = log_directory_read(directory, path, error);
    if (status == WEIR_OK && !log_directory_has_log(directory))
        status = weir_fail(error, WEIR_EMPTY, "there is no log in %.160s", path);
    if (status == WEIR_OK)
        status = log_directory_lock(directory, error);
    if (status == WEIR_OK) /* once more, now that nobody changes it */
        status = log_directory_refresh(directory, error);
    return status;
}

void log_directory_close(struct log_directory *directory)
{
    free(directory->files);
    if (directory->lock_fd >= 0)
        (void)wal_io_system.close(wal_io_system.context, directory->lock_fd);
    directory->files = NULL;
    directory->file_count = 0;
    directory->lock_fd = -1;
}

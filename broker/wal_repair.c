/* Changing a directory that nobody serves (wal_recovery.h). Each function's order of steps keeps the
 * directory readable when the process or the machine ends between two of them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/wal_inside.h"
#include "broker/wal_life.h"
#include "broker/wal_read.h"

enum { CHUNK_BYTES = 1024 * 1024 };

/* What steps need; opened by each public function. */
struct repair {
    const struct wal_io *io;
    const char *directory;
    struct weir_error *error;
    char *chunk;
    int fd; /* -1: none */
    char name[WAL_NAME_BYTES];
    uint64_t bytes; /* of the open file */
};

static enum weir_status fail_step(const struct repair *repair, int result, const char *what)
{
    return weir_fail_errno(repair->error, -result, "%s cannot be %s", repair->name, what);
}

static enum weir_status open_file(struct repair *repair, uint64_t number)
{
    char path[WAL_PATH_BYTES];
    wal_name(repair->name, WAL_FILE_LOG, number);
    wal_path(path, repair->directory, WAL_FILE_LOG, number);
    repair->fd = repair->io->open(repair->io->context, path, O_RDWR);
    if (repair->fd < 0)
        return fail_step(repair, repair->fd, "opened");
    int result = repair->io->size(repair->io->context, repair->fd, &repair->bytes);
    return result < 0 ? fail_step(repair, result, "measured") : WEIR_OK;
}

static void close_file(struct repair *repair)
{
    if (repair->fd >= 0)
        (void)repair->io->close(repair->io->context, repair->fd);
    repair->fd = -1;
}

static enum weir_status read_chunk(struct repair *repair, uint64_t offset, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t count = repair->io->read(repair->io->context, repair->fd, repair->chunk + done,
                                         bytes - done, offset + done);
        if (count <= 0)
            return fail_step(repair, count < 0 ? (int)count : -EIO, "read");
        done += (size_t)count;
    }
    return WEIR_OK;
}

static enum weir_status write_chunk(struct repair *repair, int fd, uint64_t offset, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t count = repair->io->write(repair->io->context, fd, repair->chunk + done,
                                          bytes - done, offset + done);
        if (count <= 0)
            return fail_step(repair, count < 0 ? (int)count : -EIO, "written");
        done += (size_t)count;
    }
    return WEIR_OK;
}

static bool is_zeros(const char *data, size_t bytes)
{
    return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0;
}

/* Zeros from `offset` to `end`, which is no further than the file, and synced. */
static enum weir_status zero_range(struct repair *repair, uint64_t offset, uint64_t end)
{
    bool is_changed = false;
    while (offset < end) {
        size_t bytes = end - offset < CHUNK_BYTES ? (size_t)(end - offset) : CHUNK_BYTES;
        enum weir_status status = read_chunk(repair, offset, bytes);
        if (status == WEIR_OK && !is_zeros(repair->chunk, bytes)) {
            memset(repair->chunk, 0, bytes);
            status = write_chunk(repair, repair->fd, offset, bytes);
            is_changed = true;
        }
        if (status != WEIR_OK)
            return status;
        offset += bytes;
    }
    int result = is_changed ? repair->io->sync(repair->io->context, repair->fd) : 0;
    return result < 0 ? fail_step(repair, result, "synced") : WEIR_OK;
}

/* The header goes last: until then it says which write these remains belong to, and any part of it
 * with zeros behind it is what an interrupted write leaves. */
static enum weir_status zero_segment(struct repair *repair, uint64_t number, uint64_t offset)
{
    enum weir_status status = open_file(repair, number);
    uint64_t header_end = offset + WAL_FRAME_HEADER_BYTES;
    if (status == WEIR_OK)
        status = zero_range(repair, header_end, repair->bytes);
    if (status == WEIR_OK)
        status =
            zero_range(repair, offset, header_end < repair->bytes ? header_end : repair->bytes);
    close_file(repair);
    return status;
}

static enum weir_status sync_directory(const struct repair *repair)
{
    int result = repair->io->sync_directory(repair->io->context, repair->directory);
    return result < 0
               ? weir_fail_errno(repair->error, -result, "the log's directory cannot be synced")
               : WEIR_OK;
}

static enum weir_status remove_file(struct repair *repair, enum wal_file_kind kind, uint64_t number)
{
    char path[WAL_PATH_BYTES];
    wal_name(repair->name, kind, number);
    wal_path(path, repair->directory, kind, number);
    int result = repair->io->remove(repair->io->context, path);
    return result < 0 ? fail_step(repair, result, "removed") : WEIR_OK;
}

static enum weir_status start(struct repair *repair, const struct wal_io *io, const char *directory,
                              struct weir_error *error)
{
    *repair = (struct repair){.io = io, .directory = directory, .error = error, .fd = -1};
    enum weir_status status = wal_directory_check(directory, error);
    if (status != WEIR_OK)
        return status;
    repair->chunk = malloc(CHUNK_BYTES);
    return repair->chunk != NULL ? WEIR_OK
                                 : weir_fail(error, WEIR_NO_MEMORY, "no memory to repair the log");
}

/* ---- cleaning ---- */

enum { NEW_FOUND = 1 };

struct new_file {
    char path[WAL_PATH_BYTES];
    const char *directory;
};

/* The first name that ends in ".new" and is not too long to be one of ours. */
static int find_new(void *context, const char *name)
{
    struct new_file *file = context;
    size_t suffix_bytes = sizeof WAL_NEW_SUFFIX - 1;
    size_t bytes = strlen(name);
    if (bytes < suffix_bytes || strcmp(name + bytes - suffix_bytes, WAL_NEW_SUFFIX) != 0)
        return 0;
    int written = snprintf(file->path, sizeof file->path, "%s/%s", file->directory, name);
    return written > 0 && (size_t)written < sizeof file->path ? NEW_FOUND : 0;
}

static enum weir_status remove_new_files(const struct repair *repair)
{
    const struct wal_io *io = repair->io;
    struct new_file file = {.directory = repair->directory};
    for (;;) { /* each turn removes one */
        int result = io->list(io->context, repair->directory, find_new, &file);
        if (result == 0)
            return WEIR_OK;
        if (result < 0)
            return weir_fail_errno(repair->error, -result, "the log's directory cannot be listed");
        result = io->remove(io->context, file.path);
        if (result < 0)
            return weir_fail_errno(repair->error, -result,
                                   "a file that was never finished cannot be removed");
    }
}

static enum weir_status remove_below(struct repair *repair, enum wal_file_kind kind,
                                     const struct wal_numbers *numbers, uint64_t number)
{
    for (size_t i = 0; i < numbers->count && numbers->list[i] < number; i++) {
        enum weir_status status = remove_file(repair, kind, numbers->list[i]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* In any order: none of them is read. */
static enum weir_status remove_superfluous(struct repair *repair, uint64_t snapshot)
{
    struct wal_directory directory;
    enum weir_status status =
        wal_directory_list(&directory, repair->io, repair->directory, repair->error);
    if (status == WEIR_OK)
        status = remove_below(repair, WAL_FILE_LOG, &directory.segments, snapshot);
    if (status == WEIR_OK)
        status = remove_below(repair, WAL_FILE_SNAPSHOT, &directory.snapshots, snapshot);
    if (status == WEIR_OK)
        status = remove_new_files(repair);
    wal_directory_fini(&directory);
    return status == WEIR_OK ? sync_directory(repair) : status;
}

/* The last segment first, so that what is left is always something an interruption leaves. */
static enum weir_status zero_remains(struct repair *repair, const struct wal_recovered *recovered)
{
    enum weir_status status = WEIR_OK;
    for (uint64_t number = recovered->last_segment;
         status == WEIR_OK && number > recovered->cut_segment; number--)
        status = zero_segment(repair, number, WAL_BLOCK_BYTES);
    if (status == WEIR_OK)
        status = zero_segment(repair, recovered->cut_segment, recovered->cut_offset);
    return status;
}

enum weir_status wal_clean(const struct wal_io *io, const char *directory,
                           const struct wal_recovered *recovered, struct weir_error *error)
{
    struct repair repair;
    enum weir_status status = start(&repair, io, directory, error);
    if (status == WEIR_OK && recovered->cut_bytes > 0)
        status = zero_remains(&repair, recovered);
    if (status == WEIR_OK)
        status = remove_superfluous(&repair, recovered->snapshot);
    free(repair.chunk);
    return status;
}

/* ---- cutting ---- */

/* `offset` is where reading the log up to there has ended. */
static enum weir_status check_cut(const struct wal_recovered *recovered, uint64_t segment,
                                  uint64_t offset, struct weir_error *error)
{
    bool is_frame_end = recovered->end_segment == segment && recovered->end_offset == offset;
    bool is_segment_start = recovered->end_segment != segment && offset == WAL_BLOCK_BYTES;
    if (offset == 0 || (recovered->cut_bytes == 0 && (is_frame_end || is_segment_start)))
        return WEIR_OK;
    if (recovered->cut_bytes > 0)
        return weir_fail(error, WEIR_INVALID,
                         "%" PRIu64 ":%" PRIu64 " is no start of a frame; the one before it starts"
                         " at %" PRIu64 ":%" PRIu64,
                         segment, offset, recovered->cut_segment, recovered->cut_offset);
    return weir_fail(error, WEIR_INVALID,
                     "the log does not reach %" PRIu64 ":%" PRIu64 ", it ends at %" PRIu64
                     ":%" PRIu64,
                     segment, offset, recovered->end_segment, recovered->end_offset);
}

/* The segment's bytes up to `offset`, then zeros to the size it was made with. */
static enum weir_status write_copy(struct repair *repair, int fd, uint64_t offset)
{
    uint64_t end = repair->bytes;
    for (uint64_t at = 0; at < end;) {
        uint64_t part_end = at < offset ? offset : end;
        size_t bytes = part_end - at < CHUNK_BYTES ? (size_t)(part_end - at) : CHUNK_BYTES;
        enum weir_status status = WEIR_OK;
        if (at < offset)
            status = read_chunk(repair, at, bytes);
        else
            memset(repair->chunk, 0, bytes);
        if (status == WEIR_OK && at == 0) {
            struct wal_file_header header;
            status = wal_file_header_decode(span_of(repair->chunk, bytes), &header);
            if (status != WEIR_OK)
                return weir_fail(repair->error, status, "%s has changed meanwhile", repair->name);
            if (header.file_bytes > end)
                end = header.file_bytes;
        }
        if (status == WEIR_OK)
            status = write_chunk(repair, fd, at, bytes);
        if (status != WEIR_OK)
            return status;
        at += bytes;
    }
    int result = repair->io->sync(repair->io->context, fd);
    return result < 0 ? fail_step(repair, result, "synced") : WEIR_OK;
}

/* A copy that takes its place when it is complete. */
static enum weir_status replace_segment(struct repair *repair, uint64_t number, uint64_t offset)
{
    const struct wal_io *io = repair->io;
    char path[WAL_PATH_BYTES];
    char new_path[WAL_PATH_BYTES + sizeof WAL_NEW_SUFFIX];
    enum weir_status status = open_file(repair, number);
    wal_path(path, repair->directory, WAL_FILE_LOG, number);
    (void)snprintf(new_path, sizeof new_path, "%s" WAL_NEW_SUFFIX, path);
    if (status == WEIR_OK) {
        int fd = io->open(io->context, new_path, O_WRONLY | O_CREAT | O_TRUNC);
        status = fd < 0 ? fail_step(repair, fd, "copied") : write_copy(repair, fd, offset);
        int result = fd < 0 ? 0 : io->close(io->context, fd);
        if (status == WEIR_OK && result < 0)
            status = fail_step(repair, result, "written");
    }
    close_file(repair);
    if (status == WEIR_OK) {
        int result = io->rename(io->context, new_path, path);
        status = result < 0 ? fail_step(repair, result, "replaced") : sync_directory(repair);
    }
    if (status != WEIR_OK)
        (void)io->remove(io->context, new_path);
    return status;
}

/* Segments from `first` on, the last one first: what is left never has a gap. */
static enum weir_status remove_from(struct repair *repair, const struct wal_numbers *segments,
                                    uint64_t first)
{
    enum weir_status status = WEIR_OK;
    for (size_t i = segments->count; status == WEIR_OK && i > 0 && segments->list[i - 1] >= first;
         i--) {
        status = remove_file(repair, WAL_FILE_LOG, segments->list[i - 1]);
        if (status == WEIR_OK)
            status = sync_directory(repair);
    }
    return status;
}

static bool has_number(const struct wal_numbers *numbers, uint64_t number)
{
    for (size_t i = 0; i < numbers->count; i++)
        if (numbers->list[i] == number)
            return true;
    return false;
}

static enum weir_status cut_listed(struct repair *repair, const struct wal_directory *directory,
                                   uint64_t segment, uint64_t offset)
{
    const struct wal_numbers *segments = &directory->segments;
    const struct wal_numbers *snapshots = &directory->snapshots;
    uint64_t snapshot = snapshots->count > 0 ? snapshots->list[snapshots->count - 1] : 0;
    struct wal_recovered recovered;
    const struct wal_recovery_options options = {.io = repair->io, .directory = repair->directory};
    if (segment == snapshot && snapshot > 0 && offset == 0)
        return weir_fail(repair->error, WEIR_REFUSED,
                         "segment %" PRIu64 " cannot go, the snapshot of this number needs it;"
                         " restore the segment from a copy",
                         segment);
    if (!has_number(segments, segment) || segment < snapshot || offset % WAL_BLOCK_BYTES != 0)
        return weir_fail(repair->error, WEIR_INVALID,
                         "%" PRIu64 ":%" PRIu64 " is no place in this log: frames start on blocks"
                         " (%d bytes) of its segments",
                         segment, offset, WAL_BLOCK_BYTES);
    enum weir_status status =
        wal_recover_up_to(&options, segment, offset, &recovered, repair->error);
    if (status == WEIR_OK)
        status = check_cut(&recovered, segment, offset, repair->error);
    if (status != WEIR_OK)
        return status;
    /* First: what is cut off may have been shown. */
    status = wal_life_remove(repair->io, repair->directory, repair->error);
    if (status == WEIR_OK)
        status = remove_from(repair, segments, offset == 0 ? segment : segment + 1);
    if (status == WEIR_OK && offset > 0)
        status = replace_segment(repair, segment, offset);
    return status;
}

enum weir_status wal_cut(const struct wal_io *io, const char *directory, uint64_t segment,
                         uint64_t offset, struct weir_error *error)
{
    struct repair repair;
    struct wal_directory listed;
    enum weir_status status = start(&repair, io, directory, error);
    if (status != WEIR_OK)
        return status;
    status = wal_directory_list(&listed, io, directory, error);
    if (status == WEIR_OK)
        status = cut_listed(&repair, &listed, segment, offset);
    wal_directory_fini(&listed);
    free(repair.chunk);
    return status;
}

/* ---- the lock ---- */

/* The directory's own name is in its parent. One that may not be read cannot be synced, and is not
 * ours to make permanent. */
static int sync_parent(const struct wal_io *io, const char *directory)
{
    char parent[WAL_PATH_BYTES];
    size_t bytes = strlen(directory);
    while (bytes > 1 && directory[bytes - 1] == '/')
        bytes--;
    while (bytes > 0 && directory[bytes - 1] != '/')
        bytes--;
    (void)snprintf(parent, sizeof parent, "%.*s", (int)bytes, directory);
    int result = io->sync_directory(io->context, bytes > 0 ? parent : ".");
    return result == -EACCES ? 0 : result;
}

enum weir_status wal_lock(const struct wal_io *io, const char *directory, int *fd,
                          struct weir_error *error)
{
    char path[WAL_PATH_BYTES];
    *fd = -1;
    enum weir_status status = wal_directory_check(directory, error);
    if (status != WEIR_OK)
        return status;
    (void)snprintf(path, sizeof path, "%s/lock", directory);
    int result = io->make_directory(io->context, directory);
    if (result == 0)
        result = sync_parent(io, directory);
    if (result < 0)
        return weir_fail_errno(error, -result, "the log's directory %.150s cannot be made",
                               directory);
    int lock = io->open(io->context, path, O_RDWR | O_CREAT);
    if (lock < 0)
        return weir_fail_errno(error, -lock, "the log's directory %.150s cannot be locked",
                               directory);
    result = io->lock(io->context, lock);
    if (result == 0) {
        *fd = lock;
        return WEIR_OK;
    }
    (void)io->close(io->context, lock);
    if (result == -EWOULDBLOCK)
        return weir_fail(error, WEIR_REFUSED, "another process uses the log's directory %.150s",
                         directory);
    return weir_fail_errno(error, -result, "the log's directory %.150s cannot be locked",
                           directory);
}

/* `weir log import`: a new log from lines of JSON (item_line.h). The lines go through a store in memory, which
 * gathers each group's items and gives them their numbers, as a broker's first life would. The log is a
 * snapshot of that store and a segment in which nothing is written yet. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "broker/snapshot_file.h"
#include "cli/item_line.h"
#include "cli/log_command.h"
#include "cli/private_store.h"

/* A line may have white space and escapes where its item has none. */
enum { IMPORT_LINE_BYTES_MAX = 64 * 1024 * 1024, IMPORT_READ_BYTES = 256 * 1024 };
enum { IMPORT_NUMBER = 1 }; /* of the first segment, and of the snapshot before it */

/* ---- the lines ---- */

struct log_import {
    struct progress progress;
    struct store *store;
    struct buffer input, scratch;
    uint64_t input_bytes; /* 0: not known */
    uint64_t read_bytes;
    uint64_t line;
    uint64_t now_ms;
    uint64_t items, groups; /* written */
};

static enum weir_status import_fail(const struct log_import *import, enum weir_status status,
                                    const char *sentence, struct weir_error *error)
{
    return weir_fail(error, status, "line %" PRIu64 ": %s", import->line, sentence);
}

static enum weir_status import_line(struct log_import *import, struct span line,
                                    struct weir_error *error)
{
    import->line++;
    if (span_is_blank(line))
        return WEIR_OK;
    struct weir_error cause = {.status = WEIR_OK};
    struct store_key key;
    struct span value;
    enum weir_status status = item_line_parse(line, &import->scratch, &key, &value, &cause);
    if (status != WEIR_OK)
        return import_fail(import, status, cause.text, error);
    struct store_change change;
    status = store_set(import->store, &key, value, import->now_ms, &change);
    if (status == WEIR_FULL)
        return import_fail(import, status, "no store can hold more than what came before", error);
    if (status != WEIR_OK)
        return import_fail(import, status, weir_status_text(status), error);
    if (change.existed)
        return import_fail(import, WEIR_INVALID,
                           "an earlier line has the same `stream`, `group` and `item`", error);
    store_group_published(import->store, change.group.offset, RING_NO_POSITION);
    store_turn_end(import->store);
    return WEIR_OK;
}

/* All whole lines of what has been read; at the end of the input, the rest as well. */
static enum weir_status import_lines(struct log_import *import, bool is_end,
                                     struct weir_error *error)
{
    size_t position = 0;
    enum weir_status status = WEIR_OK;
    while (position < import->input.bytes && status == WEIR_OK) {
        const char *start = import->input.data + position;
        size_t left = import->input.bytes - position;
        const char *newline = memchr(start, '\n', left);
        if (newline == NULL && !is_end)
            break;
        size_t bytes = newline != NULL ? (size_t)(newline - start) : left;
        status = import_line(import, span_of(start, bytes), error);
        position += bytes + (newline != NULL);
    }
    buffer_consume(&import->input, position);
    return status;
}

static enum weir_status import_read(struct log_import *import, struct weir_error *error)
{
    for (;;) { /* until the input ends */
        enum weir_status status = buffer_reserve(&import->input, IMPORT_READ_BYTES);
        if (status != WEIR_OK) {
            import->line++;
            return import_fail(import, WEIR_TOO_LARGE, "longer than any item can be", error);
        }
        ssize_t bytes =
            read(STDIN_FILENO, import->input.data + import->input.bytes, IMPORT_READ_BYTES);
        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0)
            return weir_fail_errno(error, errno, "cannot read standard input");
        import->input.bytes += (size_t)bytes;
        import->read_bytes += (uint64_t)bytes;
        status = import_lines(import, bytes == 0, error);
        if (status != WEIR_OK || bytes == 0)
            return status;
        progress_update(&import->progress, import->read_bytes, import->input_bytes);
    }
}

/* ---- the log ---- */

static enum weir_status import_put_all(struct log_import *import, struct snapshot_file *file,
                                       struct weir_error *error)
{
    struct store_walk_entry entry;
    uint64_t written_bytes = 0;
    enum weir_status status;
    store_walk_begin(import->store);
    while ((status = store_walk_next(import->store, &entry)) == WEIR_OK) {
        const struct wal_record record = snapshot_file_record(&entry);
        status = snapshot_file_put(file, &record, error);
        if (status == WEIR_OK && snapshot_file_is_full(file))
            status = snapshot_file_flush(file, error);
        if (status != WEIR_OK) {
            store_walk_cancel(import->store);
            return status;
        }
        import->items += !entry.is_group;
        import->groups += entry.is_group;
        written_bytes += wal_record_bytes(&record);
        progress_update(&import->progress, written_bytes, 0);
    }
    return status == WEIR_EMPTY ? WEIR_OK : weir_fail(error, status, "the items cannot be read");
}

/* The segment that follows the snapshot: its header. A broker goes on in the next one. */
static enum weir_status import_put_segment(const char *new_path,
                                           const struct wal_file_header *header,
                                           struct weir_error *error)
{
    const struct wal_io *io = &wal_io_system;
    char block[WAL_BLOCK_BYTES];
    wal_file_header_encode(block, header);
    int fd = io->open(io->context, new_path, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0)
        return weir_fail_errno(error, -fd, "cannot make %.160s", new_path);
    ssize_t written = io->write(io->context, fd, block, sizeof block, 0);
    int result = written == (ssize_t)sizeof block ? io->sync(io->context, fd)
                 : written < 0                    ? (int)written
                                                  : -ENOSPC;
    int closed = io->close(io->context, fd);
    result = result < 0 ? result : closed;
    return result < 0 ? weir_fail_errno(error, -result, "cannot write %.160s", new_path) : WEIR_OK;
}

static enum weir_status import_put_snapshot(struct log_import *import, const char *directory,
                                            const struct wal_file_header *header,
                                            struct weir_error *error)
{
    struct snapshot_file *file = NULL;
    enum weir_status status = snapshot_file_open(&file, &wal_io_system, directory, header, error);
    if (status == WEIR_OK)
        status = import_put_all(import, file, error);
    if (status == WEIR_OK)
        status = snapshot_file_finish(file, header->first_seq, error);
    snapshot_file_close(file);
    return status;
}

/* The snapshot gets its name first: without its segment it is refused, whereas a segment alone would be an
 * empty log. */
static enum weir_status import_write(struct log_import *import, const char *directory,
                                     struct weir_error *error)
{
    const struct wal_io *io = &wal_io_system;
    char path[WAL_PATH_BYTES];
    char new_path[WAL_PATH_BYTES + 8];
    wal_path(path, directory, WAL_FILE_LOG, IMPORT_NUMBER);
    (void)snprintf(new_path, sizeof new_path, "%s.new", path);
    struct wal_file_header header = {.kind = WAL_FILE_LOG,
                                     .number = IMPORT_NUMBER,
                                     .epoch_base = store_epoch_base(import->store),
                                     .created_ms = import->now_ms,
                                     .file_bytes = WAL_BLOCK_BYTES};
    if (getrandom(&header.log_id, sizeof header.log_id, 0) != (ssize_t)sizeof header.log_id)
        return weir_fail_errno(error, errno, "no random number for the log's id");
    enum weir_status status = import_put_segment(new_path, &header, error);
    header.kind = WAL_FILE_SNAPSHOT;
    header.file_bytes = 0;
    header.first_seq = 1;
    if (status == WEIR_OK)
        status = import_put_snapshot(import, directory, &header, error);
    if (status != WEIR_OK) {
        (void)io->remove(io->context, new_path);
        return status;
    }
    int result = io->rename(io->context, new_path, path);
    if (result == 0)
        result = io->sync_directory(io->context, directory);
    return result < 0 ? weir_fail_errno(error, -result, "cannot rename %.160s", new_path) : WEIR_OK;
}

/* Whether `path`, which does not exist, can be made. */
static enum weir_status import_look_above(const char *path, struct weir_error *error)
{
    char parent[WAL_PATH_BYTES];
    int bytes = snprintf(parent, sizeof parent, "%s", path);
    if (bytes >= (int)sizeof parent)
        return weir_fail(error, WEIR_INVALID, "the path %.100s... is too long", path);
    char *end = parent + bytes;
    while (end > parent + 1 && end[-1] == '/')
        *--end = '\0';
    char *slash = strrchr(parent, '/');
    if (slash == NULL)
        (void)snprintf(parent, sizeof parent, ".");
    else
        slash[slash == parent] = '\0';
    if (access(parent, W_OK | X_OK) != 0)
        return weir_fail_errno(error, errno, "cannot make %.120s in %.80s", path, parent);
    return WEIR_OK;
}

/* Before anything is read: a directory with a log is refused, one that cannot be made as well. */
static enum weir_status import_look(const char *path, struct weir_error *error)
{
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return import_look_above(path, error);
    struct log_directory directory;
    enum weir_status status = log_directory_read(&directory, path, error);
    if (status == WEIR_OK && log_directory_has_log(&directory))
        status = weir_fail(error, WEIR_REFUSED,
                           "there is a log in %.120s already; import makes a new one, so name a "
                           "directory that does not exist",
                           path);
    log_directory_close(&directory);
    return status;
}

static enum weir_status import_directory(struct log_import *import, const char *path,
                                         struct weir_error *error)
{
    struct log_directory directory = {.path = path, .lock_fd = -1};
    enum weir_status status = log_directory_lock(&directory, error);
    if (status == WEIR_OK) /* once more: a broker may have begun here while the lines were read */
        status = import_look(path, error);
    if (status == WEIR_OK)
        status = import_write(import, path, error);
    log_directory_close(&directory);
    return status;
}

int log_import(const struct log_options *options)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    struct log_import import = {.now_ms =
                                    (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000};
    struct private_store private_store = {.segment = {.fd = -1}};
    struct weir_error error = {.status = WEIR_OK};
    struct stat input;
    if (fstat(STDIN_FILENO, &input) == 0 && S_ISREG(input.st_mode))
        import.input_bytes = (uint64_t)input.st_size;
    buffer_init(&import.input, IMPORT_LINE_BYTES_MAX);
    buffer_init(&import.scratch, IMPORT_LINE_BYTES_MAX);
    if (isatty(STDIN_FILENO) == 1)
        (void)fputs("weir: reading items from the terminal; Ctrl-D ends them\n", stderr);

    enum weir_status status = import_look(options->directory, &error);
    if (status == WEIR_OK)
        status = private_store_open(&private_store, import.input_bytes, &error);
    import.store = private_store.store;
    if (status == WEIR_OK) {
        progress_begin(&import.progress, "import: read", options->is_quiet);
        status = import_read(&import, &error);
        progress_end(&import.progress);
    }
    if (status == WEIR_OK) {
        progress_begin(&import.progress, "import: written", options->is_quiet);
        status = import_directory(&import, options->directory, &error);
        progress_end(&import.progress);
    }
    if (status == WEIR_OK && !options->is_quiet)
        (void)fprintf(stderr, "weir: %" PRIu64 " items in %" PRIu64 " groups are in %s\n",
                      import.items, import.groups, options->directory);
    private_store_close(&private_store);
    buffer_fini(&import.input);
    buffer_fini(&import.scratch);
    return status == WEIR_OK ? EXIT_DONE : log_fail(&error);
}

/* `weir log export`: the items as they are at the log's end, as lines of JSON (item_line.h). A log has writes;
 * what is left of them is known at its end only, so they go through a store in memory. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "broker/replay.h"
#include "cli/item_line.h"
#include "cli/log_command.h"
#include "cli/private_store.h"

/* The largest item, each byte of its names escaped, and what is around them. */
#define EXPORT_LINE_BYTES_MAX (VALUE_BYTES_MAX + 3 * NAME_ESCAPED_BYTES_MAX + 4096)

struct log_export {
    const struct log_options *options;
    struct progress progress;
    struct replay replay;
    bool is_group_wanted; /* of the items of the last WAL_GROUP */
};

static enum weir_status export_take(void *context, const struct wal_position *position,
                                    const struct wal_record *record, struct weir_error *error)
{
    struct log_export *export = context;
    bool is_wanted = export->is_group_wanted;
    if (record->kind != WAL_ITEM && record->kind != WAL_END)
        is_wanted = log_wants(export->options, record->stream, record->group);
    if (record->kind == WAL_GROUP)
        export->is_group_wanted = is_wanted;
    return is_wanted ? replay_take(&export->replay, position, record, error) : WEIR_OK;
}

static void export_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct log_export *export = context;
    progress_update(&export->progress, done_bytes, total_bytes);
}

static enum weir_status export_print(struct store *store, struct progress *progress,
                                     struct weir_error *error)
{
    struct buffer line;
    uint64_t written_bytes = 0;
    buffer_init(&line, EXPORT_LINE_BYTES_MAX);
    struct store_walk_entry entry;
    struct store_key key = {0};
    enum weir_status status;
    store_walk_begin(store);
    while ((status = store_walk_next(store, &entry)) == WEIR_OK) {
        if (entry.is_group) {
            key.stream = entry.stream;
            key.group = entry.group;
            continue;
        }
        key.item = entry.item;
        buffer_clear(&line);
        status = item_line_append(&line, &key, entry.value);
        if (status != WEIR_OK) {
            (void)weir_fail(error, status, "no memory for an item's line");
            break;
        }
        if (fwrite(line.data, 1, line.bytes, stdout) != line.bytes) {
            status = weir_fail_errno(error, errno, "cannot write to standard output");
            break;
        }
        written_bytes += line.bytes;
        progress_update(progress, written_bytes, 0);
    }
    if (status != WEIR_EMPTY)
        store_walk_cancel(store);
    buffer_fini(&line);
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

static enum weir_status export_directory(const struct log_options *options,
                                         const struct log_directory *directory,
                                         struct weir_error *error)
{
    struct private_store private_store;
    struct log_export export = {.options = options};
    enum weir_status status = private_store_open(&private_store, directory->bytes, error);
    if (status == WEIR_OK) {
        export.replay.store = private_store.store;
        struct wal_recovered recovered = {0};
        const struct wal_recovery_options recovery = {.io = &wal_io_system,
                                                      .directory = directory->path,
                                                      .take = export_take,
                                                      .progress = export_progress,
                                                      .context = &export};
        progress_begin(&export.progress, "export: read", options->is_quiet);
        status = wal_recover(&recovery, &recovered, error);
        progress_end(&export.progress);
        if (status == WEIR_OK && !options->is_quiet)
            log_tell_cut(&recovered);
    }
    if (status == WEIR_OK) {
        progress_begin(&export.progress, "export: written",
                       options->is_quiet || isatty(STDOUT_FILENO) == 1);
        status = export_print(private_store.store, &export.progress, error);
        progress_end(&export.progress);
    }
    private_store_close(&private_store);
    return status;
}

int log_export(const struct log_options *options)
{
    struct log_directory directory;
    struct weir_error error = {.status = WEIR_OK};
    enum weir_status status = log_directory_open(&directory, options->directory, &error);
    if (status == WEIR_OK)
        status = export_directory(options, &directory, &error);
    log_directory_close(&directory);
    return status == WEIR_OK ? log_flush() : log_fail(&error);
}

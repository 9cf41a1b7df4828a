/* `weir log verify`: reads everything a broker would read at its start, and says what that is. */
#include <inttypes.h>
#include <stdio.h>

#include "broker/wal_life.h"
#include "cli/log_command.h"

struct log_verification {
    struct progress progress;
    uint64_t groups, items;           /* of the snapshot */
    uint64_t frames, writes;          /* of the log */
    uint64_t first_frame, last_frame; /* their numbers */
    uint64_t first_ms, last_ms;
};

static enum weir_status log_verify_frame(void *context, const struct wal_position *position,
                                         const struct wal_frame_header *header)
{
    struct log_verification *found = context;
    (void)header;
    if (position->kind != WAL_FILE_LOG)
        return WEIR_OK;
    if (found->frames++ == 0) {
        found->first_frame = position->seq;
        found->first_ms = position->time_ms;
    }
    found->last_frame = position->seq;
    found->last_ms = position->time_ms;
    return WEIR_OK;
}

static enum weir_status log_verify_record(void *context, const struct wal_position *position,
                                          const struct wal_record *record, struct weir_error *error)
{
    struct log_verification *found = context;
    (void)position;
    (void)error;
    found->groups += record->kind == WAL_GROUP;
    found->items += record->kind == WAL_ITEM;
    found->writes += record->kind < WAL_GROUP;
    return WEIR_OK;
}

static void log_verify_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct log_verification *found = context;
    progress_update(&found->progress, done_bytes, total_bytes);
}

void log_tell_cut(const struct wal_recovered *recovered)
{
    if (recovered->cut_bytes == 0)
        return;
    char name[LOG_FILE_NAME_BYTES];
    log_file_name(name, WAL_FILE_LOG, recovered->cut_segment);
    (void)fprintf(stderr,
                  "weir: the last write, at %s:%" PRIu64
                  ", was interrupted: the next start cuts off %" PRIu64 " bytes; %s\n",
                  name, recovered->cut_offset, recovered->cut_bytes,
                  recovered->is_shortened
                      ? "they were not synced yet, and something before them is "
                        "missing"
                      : "nobody was told that they are kept");
}

/* Not read by a start, which removes them. */
static bool log_file_is_superfluous(const struct log_file *file,
                                    const struct wal_recovered *recovered)
{
    return file->is_unfinished || file->number < recovered->snapshot ||
           (file->kind == WAL_FILE_SNAPSHOT && file->number != recovered->snapshot);
}

static void log_describe_superfluous(const struct log_directory *directory,
                                     const struct wal_recovered *recovered)
{
    for (size_t i = 0; i < directory->file_count; i++) {
        const struct log_file *file = &directory->files[i];
        if (!log_file_is_superfluous(file, recovered))
            continue;
        char name[LOG_FILE_NAME_BYTES];
        log_file_name(name, file->kind, file->number);
        (void)printf("superfluous  %s%s: the next start removes it\n", name,
                     file->is_unfinished ? ".new" : "");
    }
}

static void log_describe_found(const struct log_verification *found,
                               const struct wal_recovered *recovered)
{
    char name[LOG_FILE_NAME_BYTES];
    char bytes[PROGRESS_BYTES_TEXT];
    if (recovered->snapshot > 0) {
        log_file_name(name, WAL_FILE_SNAPSHOT, recovered->snapshot);
        progress_print_bytes(bytes, recovered->snapshot_bytes);
        (void)printf("snapshot     %s: %" PRIu64 " items in %" PRIu64 " groups, %s\n", name,
                     found->items, found->groups, bytes);
    }
    if (recovered->first_segment == 0)
        return;
    log_file_name(name, WAL_FILE_LOG, recovered->first_segment);
    (void)printf("log          %s", name);
    if (recovered->last_segment > recovered->first_segment) {
        log_file_name(name, WAL_FILE_LOG, recovered->last_segment);
        (void)printf(" to %s", name);
    }
    progress_print_bytes(bytes, recovered->log_bytes);
    (void)printf(": %" PRIu64 " writes in %" PRIu64 " frames, %s\n", found->writes, found->frames,
                 bytes);
    if (found->frames == 0)
        return;
    char first[LOG_TIME_BYTES];
    char last[LOG_TIME_BYTES];
    log_print_time(first, found->first_ms);
    log_print_time(last, found->last_ms);
    log_file_name(name, WAL_FILE_LOG, recovered->end_segment);
    (void)printf("frames       %" PRIu64 " to %" PRIu64 ", written %s to %s UTC\n",
                 found->first_frame, found->last_frame, first, last);
    (void)printf("end          %s:%" PRIu64 "\n", name, recovered->end_offset);
}

/* What the next start makes of the positions that clients have kept. */
static void log_describe_life(const struct log_directory *directory,
                              const struct wal_recovered *recovered)
{
    struct wal_life life;
    char boot[WAL_LIFE_BOOT_BYTES];
    const char *why;
    bool is_known = wal_life_read(&wal_io_system, directory->path, &life) == WEIR_OK;
    wal_life_read_boot(boot);
    const struct wal_life_finding finding =
        wal_life_finding(is_known ? &life : NULL, boot, recovered);
    bool is_kept = wal_life_verdict(&finding, &why) == WAL_LIFE_KEEP;
    if (is_known)
        (void)printf("last life    level %s, %s\n", wal_life_level_name(life.level),
                     life.is_stopped ? "stopped" : "not stopped");
    (void)printf("epochs       %s by the next start: %s\n", is_kept ? "kept" : "renewed", why);
}

enum weir_status log_describe(const struct log_options *options,
                              const struct log_directory *directory, struct weir_error *error)
{
    struct log_verification found = {0};
    struct wal_recovered recovered = {0};
    const struct wal_recovery_options recovery = {.io = &wal_io_system,
                                                  .directory = directory->path,
                                                  .take = log_verify_record,
                                                  .take_frame = log_verify_frame,
                                                  .progress = log_verify_progress,
                                                  .context = &found};
    progress_begin(&found.progress, "verify", options->is_quiet);
    enum weir_status status = wal_recover(&recovery, &recovered, error);
    progress_end(&found.progress);
    if (status != WEIR_OK)
        return status;
    if (options->is_quiet)
        return WEIR_OK;
    log_tell_cut(&recovered);
    log_describe_found(&found, &recovered);
    if (!recovered.is_empty)
        log_describe_life(directory, &recovered);
    else
        (void)printf("empty        no file of a log is there: a broker starts without items\n");
    log_describe_superfluous(directory, &recovered);
    (void)printf("sound        %s\n", directory->path);
    return WEIR_OK;
}

int log_verify(const struct log_options *options)
{
    struct log_directory directory;
    struct weir_error error = {.status = WEIR_OK};
    enum weir_status status = log_directory_open(&directory, options->directory, &error);
    if (status == WEIR_OK)
        status = log_describe(options, &directory, &error);
    log_directory_close(&directory);
    return status == WEIR_OK ? log_flush() : log_fail(&error);
}

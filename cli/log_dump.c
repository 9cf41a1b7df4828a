/* `weir log dump`: the records as they are in the files, one line of JSON each. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "cli/log_command.h"
#include "shm/json.h"

/* The largest record, each byte of its names escaped, and what is around them. */
#define DUMP_LINE_BYTES_MAX (VALUE_BYTES_MAX + 4 * NAME_ESCAPED_BYTES_MAX + 4096)

struct log_dump {
    const struct log_options *options;
    struct progress progress;
    struct buffer line;
    struct buffer group_names; /* of the last WAL_GROUP: its items do not repeat them */
    size_t stream_bytes;
};

static const char *const dump_event_names[] = {
    [1] = "sync", [2] = "create", [3] = "update", [4] = "delete", [5] = "event"};

static enum weir_status dump_keep_group(struct log_dump *dump, const struct wal_record *record)
{
    buffer_clear(&dump->group_names);
    dump->stream_bytes = record->stream.bytes;
    enum weir_status status = buffer_append(&dump->group_names, record->stream);
    return status == WEIR_OK ? buffer_append(&dump->group_names, record->group) : status;
}

static enum weir_status dump_append_name(struct buffer *line, const char *key, struct span name)
{
    enum weir_status status = buffer_printf(line, ",\"%s\":", key);
    if (status != WEIR_OK || name.data == NULL)
        return status == WEIR_OK ? buffer_append(line, SPAN_LITERAL("null")) : status;
    return json_append_string(line, name);
}

static enum weir_status dump_append_place(struct buffer *line, const struct wal_position *position)
{
    char file[LOG_FILE_NAME_BYTES];
    log_file_name(file, position->kind, position->number);
    return buffer_printf(
        line, "{\"file\":\"%s\",\"offset\":%" PRIu64 ",\"frame\":%" PRIu64 ",\"time\":%" PRIu64,
        file, position->offset, position->seq, position->time_ms);
}

static enum weir_status dump_append_kind(struct buffer *line, const struct wal_record *record)
{
    enum weir_status status =
        buffer_printf(line, ",\"kind\":\"%s\"", wal_record_kind_name(record->kind));
    const size_t count = sizeof dump_event_names / sizeof dump_event_names[0];
    if (status != WEIR_OK || record->kind >= WAL_GROUP || record->event == 0)
        return status;
    if (record->event < count)
        return buffer_printf(line, ",\"event\":\"%s\"", dump_event_names[record->event]);
    return buffer_printf(line, ",\"event\":%" PRIu32, record->event);
}

static enum weir_status dump_append_numbers(struct buffer *line, const struct wal_record *record)
{
    if (record->kind == WAL_ITEM)
        return buffer_printf(line, ",\"created\":%" PRIu64 ",\"modified\":%" PRIu64,
                             record->created_seq, record->modified_seq);
    enum weir_status status = WEIR_OK;
    if (record->kind != WAL_ANSWER)
        status = buffer_printf(line, ",\"epoch\":%" PRIu64 ",\"seq\":%" PRIu64, record->epoch,
                               record->seq);
    if (status == WEIR_OK)
        status = buffer_printf(line, ",\"timestamp\":%" PRIu64, record->timestamp_ms);
    /* The origin is a random number of 64 bits, which a JSON number may not hold. */
    if (status == WEIR_OK && record->origin != 0)
        status = buffer_printf(line, ",\"origin\":\"%016" PRIx64 "\",\"request\":%" PRIu64,
                               record->origin, record->request);
    return status;
}

static enum weir_status dump_append_record(struct buffer *line, const struct wal_record *record,
                                           struct span stream, struct span group)
{
    enum weir_status status = dump_append_kind(line, record);
    if (status == WEIR_OK && record->kind == WAL_END)
        return buffer_printf(line, ",\"next\":%" PRIu64, record->seq);
    bool has_names = record->kind != WAL_ANSWER;
    if (status == WEIR_OK && has_names)
        status = dump_append_name(line, "stream", stream);
    if (status == WEIR_OK && has_names)
        status = dump_append_name(line, "group", group);
    if (status == WEIR_OK && has_names && record->kind != WAL_GROUP)
        status = dump_append_name(line, "item", record->item);
    if (status == WEIR_OK)
        status = dump_append_numbers(line, record);
    if (status == WEIR_OK && record->event_type.data != NULL)
        status = dump_append_name(line, "type", record->event_type);
    if (status == WEIR_OK && record->value.data != NULL) {
        status = buffer_append(line, SPAN_LITERAL(",\"value\":"));
        if (status == WEIR_OK)
            status = buffer_append(line, record->value);
    }
    return status;
}

static enum weir_status dump_take(void *context, const struct wal_position *position,
                                  const struct wal_record *record, struct weir_error *error)
{
    struct log_dump *dump = context;
    const struct log_options *options = dump->options;
    enum weir_status status = record->kind == WAL_GROUP ? dump_keep_group(dump, record) : WEIR_OK;
    struct span stream = record->stream;
    struct span group = record->group;
    if (record->kind == WAL_ITEM && status == WEIR_OK) {
        stream = span_of(dump->group_names.data, dump->stream_bytes);
        group = span_of(dump->group_names.data + dump->stream_bytes,
                        dump->group_names.bytes - dump->stream_bytes);
    }
    bool is_filtered = options->stream != NULL || options->group != NULL;
    /* A snapshot's frames have numbers of their own. */
    bool is_wanted = options->from_frame == 0 ||
                     (position->kind == WAL_FILE_LOG && position->seq >= options->from_frame);
    is_wanted =
        is_wanted && (!is_filtered || (record->kind != WAL_END && record->kind != WAL_ANSWER &&
                                       log_wants(options, stream, group)));
    if (status == WEIR_OK && !is_wanted)
        return WEIR_OK;
    buffer_clear(&dump->line);
    if (status == WEIR_OK)
        status = dump_append_place(&dump->line, position);
    if (status == WEIR_OK)
        status = dump_append_record(&dump->line, record, stream, group);
    if (status == WEIR_OK)
        status = buffer_append(&dump->line, SPAN_LITERAL("}\n"));
    if (status != WEIR_OK)
        return weir_fail(error, status, "no memory for a record's line");
    if (fwrite(dump->line.data, 1, dump->line.bytes, stdout) != dump->line.bytes)
        return weir_fail_errno(error, errno, "cannot write to standard output");
    return WEIR_OK;
}

static void dump_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct log_dump *dump = context;
    progress_update(&dump->progress, done_bytes, total_bytes);
}

int log_dump(const struct log_options *options)
{
    struct log_dump dump = {.options = options};
    buffer_init(&dump.line, DUMP_LINE_BYTES_MAX);
    buffer_init(&dump.group_names, (size_t)2 * NAME_BYTES_MAX);
    struct log_directory directory;
    struct weir_error error = {.status = WEIR_OK};
    enum weir_status status = log_directory_open(&directory, options->directory, &error);
    if (status == WEIR_OK) {
        struct wal_recovered recovered = {0};
        const struct wal_recovery_options recovery = {.io = &wal_io_system,
                                                      .directory = directory.path,
                                                      .take = dump_take,
                                                      .progress = dump_progress,
                                                      .context = &dump};
        /* Lines and bar do not go well together. */
        progress_begin(&dump.progress, "dump", options->is_quiet || isatty(STDOUT_FILENO) == 1);
        status = wal_recover(&recovery, &recovered, &error);
        progress_end(&dump.progress);
        if (status == WEIR_OK && !options->is_quiet)
            log_tell_cut(&recovered);
    }
    log_directory_close(&directory);
    buffer_fini(&dump.line);
    buffer_fini(&dump.group_names);
    if (status == WEIR_OK)
        return log_flush();
    (void)fflush(stdout); /* what could be read is shown before the reason why no more */
    return log_fail(&error);
}

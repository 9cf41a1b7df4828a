#include "broker/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/log.h"
#include "broker/wal_directory.h"

enum snapshot_state {
    SNAPSHOT_IDLE,
    SNAPSHOT_WALKING,
    SNAPSHOT_WRITING,  /* a slice, in the background; the walk goes on behind it */
    SNAPSHOT_WAITING,  /* all is written; for the log to be as far */
    SNAPSHOT_FINISHING /* synced, named, and what it makes superfluous removed, in the background */
};

struct snapshot {
    struct snapshot_options options;
    char directory[WAL_PATH_BYTES];
    enum snapshot_state state;
    uint64_t number; /* of the one being made */
    uint64_t end_seq;
    bool is_walked;
    /* The frame being filled or written. */
    char *frame;
    size_t frame_capacity, payload_bytes;
    uint32_t record_count;
    uint64_t frame_seq;
    /* The background's while a job is in flight. */
    struct background_job job;
    int fd;
    size_t frame_bytes;
    int result;
    uint64_t offset; /* of the frame */

    uint64_t items, begun_ms;
    uint64_t log_bytes_before; /* wal_log_bytes() that the last one covers */
    uint64_t log_bytes_begun;  /* ... and this one */
    uint64_t snapshot_bytes;   /* of the last one */
    uint64_t last_ms;          /* of the last one, or of the last try */
    bool has_failed;           /* the last try */
};

static void snapshot_path(const struct snapshot *snapshot, char *path, size_t bytes, bool is_whole)
{
    char whole[WAL_PATH_BYTES];
    wal_path(whole, snapshot->directory, WAL_FILE_SNAPSHOT, snapshot->number);
    (void)snprintf(path, bytes, "%s%s", whole, is_whole ? "" : ".new");
}

/* ---- in the background ---- */

/* The file is written past the page cache where that is possible: a snapshot must not push out what is
 * needed, nor fill it with pages that one sync has to write all at once. */
static int snapshot_open_file(struct snapshot *snapshot)
{
    const struct wal_io *io = snapshot->options.io;
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    char path[WAL_PATH_BYTES + 8];
    snapshot_path(snapshot, path, sizeof path, false);
    int fd = io->open(io->context, path, flags | O_DIRECT);
    if (fd == -EINVAL)
        fd = io->open(io->context, path, flags);
    snapshot->fd = fd;
    return fd < 0 ? fd : 0;
}

static int snapshot_write_bytes(const struct snapshot *snapshot, const char *data, size_t bytes,
                                uint64_t offset)
{
    const struct wal_io *io = snapshot->options.io;
    while (bytes > 0) { /* each turn writes whole blocks, or fails */
        ssize_t written = io->write(io->context, snapshot->fd, data, bytes, offset);
        if (written < 0)
            return (int)written;
        written -= written % WAL_BLOCK_BYTES;
        if (written == 0)
            return -ENOSPC;
        data += written;
        bytes -= (size_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

static int snapshot_write_header(struct snapshot *snapshot)
{
    const struct wal_file_header header = {
        .kind = WAL_FILE_SNAPSHOT,
        .log_id = wal_log_id(snapshot->options.wal),
        .number = snapshot->number,
        .epoch_base = snapshot->options.epoch_base,
        .created_ms = snapshot->begun_ms,
    };
    char *block = aligned_alloc(WAL_BLOCK_BYTES, WAL_BLOCK_BYTES);
    if (!block)
        return -ENOMEM;
    wal_file_header_encode(block, &header);
    int result = snapshot_write_bytes(snapshot, block, WAL_BLOCK_BYTES, 0);
    free(block);
    return result;
}

static void snapshot_write_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    int result = 0;
    if (snapshot->fd < 0) {
        result = snapshot_open_file(snapshot);
        if (result == 0)
            result = snapshot_write_header(snapshot);
    }
    if (result == 0)
        result = snapshot_write_bytes(snapshot, snapshot->frame, snapshot->frame_bytes,
                                      snapshot->offset);
    snapshot->result = result;
}

struct snapshot_sweep {
    struct snapshot *snapshot;
    int result;
};

/* Names of files that the new snapshot has made superfluous. */
static int snapshot_sweep_name(void *context, const char *name)
{
    struct snapshot_sweep *sweep = context;
    const struct snapshot *snapshot = sweep->snapshot;
    const struct wal_io *io = snapshot->options.io;
    char path[WAL_PATH_BYTES];
    enum wal_file_kind kind = WAL_FILE_LOG;
    uint64_t number = wal_name_number(name, kind);
    if (number == 0) {
        kind = WAL_FILE_SNAPSHOT;
        number = wal_name_number(name, kind);
    }
    if (number == 0 || number >= snapshot->number)
        return 0;
    wal_path(path, snapshot->directory, kind, number);
    sweep->result = io->remove(io->context, path);
    return sweep->result;
}

static void snapshot_finish_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    const struct wal_io *io = snapshot->options.io;
    char making[WAL_PATH_BYTES + 8];
    char whole[WAL_PATH_BYTES + 8];
    snapshot_path(snapshot, making, sizeof making, false);
    snapshot_path(snapshot, whole, sizeof whole, true);
    int result = io->sync(io->context, snapshot->fd);
    (void)io->close(io->context, snapshot->fd);
    snapshot->fd = -1;
    if (result == 0)
        result = io->rename(io->context, making, whole);
    if (result == 0)
        result = io->sync_directory(io->context, snapshot->directory);
    /* From here on it is the one that counts, whatever becomes of the others. */
    snapshot->result = result;
    struct snapshot_sweep sweep = {.snapshot = snapshot};
    if (result == 0)
        (void)io->list(io->context, snapshot->directory, snapshot_sweep_name, &sweep);
}

static void snapshot_discard_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    const struct wal_io *io = snapshot->options.io;
    char making[WAL_PATH_BYTES + 8];
    snapshot_path(snapshot, making, sizeof making, false);
    if (snapshot->fd >= 0)
        (void)io->close(io->context, snapshot->fd);
    snapshot->fd = -1;
    (void)io->remove(io->context, making);
}

/* ---- in the loop ---- */

static void snapshot_start(struct snapshot *snapshot, enum snapshot_state state,
                           void (*run)(struct background_job *),
                           void (*done)(struct background_job *))
{
    snapshot->state = state;
    snapshot->job = (struct background_job){.run = run, .done = done, .owner = snapshot};
    background_start(snapshot->options.background, &snapshot->job);
}

static void snapshot_discarded(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    snapshot->state = SNAPSHOT_IDLE;
}

static void snapshot_give_up(struct snapshot *snapshot, const char *reason)
{
    log_line("event=snapshot_failed number=%" PRIu64 " reason=\"%s\"", snapshot->number, reason);
    snapshot->options.counters->snapshots_failed++;
    snapshot->has_failed = true;
    store_walk_cancel(snapshot->options.store);
    snapshot_start(snapshot, SNAPSHOT_FINISHING, snapshot_discard_run, snapshot_discarded);
}

static void snapshot_finished(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    if (snapshot->result < 0) {
        snapshot_give_up(snapshot, strerror(-snapshot->result));
        return;
    }
    snapshot->state = SNAPSHOT_IDLE;
    snapshot->has_failed = false;
    snapshot->snapshot_bytes = snapshot->offset;
    snapshot->log_bytes_before = snapshot->log_bytes_begun;
    snapshot->options.counters->snapshots++;
    log_line("event=snapshot number=%" PRIu64 " items=%" PRIu64 " bytes=%" PRIu64, snapshot->number,
             snapshot->items, snapshot->offset);
}

static void snapshot_written(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    if (snapshot->result < 0) {
        snapshot_give_up(snapshot, strerror(-snapshot->result));
        return;
    }
    snapshot->offset += snapshot->frame_bytes;
    snapshot->payload_bytes = 0;
    snapshot->record_count = 0;
    snapshot->state = snapshot->is_walked ? SNAPSHOT_WAITING : SNAPSHOT_WALKING;
}

static bool snapshot_grow(struct snapshot *snapshot, size_t payload_bytes)
{
    size_t frame_bytes = wal_frame_bytes(payload_bytes);
    if (frame_bytes <= snapshot->frame_capacity)
        return true;
    char *frame = aligned_alloc(WAL_BLOCK_BYTES, frame_bytes);
    if (!frame)
        return false;
    if (snapshot->frame)
        memcpy(frame, snapshot->frame, WAL_FRAME_HEADER_BYTES + snapshot->payload_bytes);
    free(snapshot->frame);
    snapshot->frame = frame;
    snapshot->frame_capacity = frame_bytes;
    return true;
}

static bool snapshot_append(struct snapshot *snapshot, const struct wal_record *record)
{
    size_t bytes = wal_record_bytes(record);
    if (!snapshot_grow(snapshot, snapshot->payload_bytes + bytes))
        return false;
    wal_record_encode(snapshot->frame + WAL_FRAME_HEADER_BYTES + snapshot->payload_bytes, record);
    snapshot->payload_bytes += bytes;
    snapshot->record_count++;
    return true;
}

static struct wal_record snapshot_record(const struct store_walk_entry *entry)
{
    if (!entry->is_group)
        return (struct wal_record){
            .kind = WAL_ITEM,
            .created_seq = entry->created_seq,
            .modified_seq = entry->modified_seq,
            .item = entry->item,
            .value = entry->value,
        };
    return (struct wal_record){
        .kind = WAL_GROUP,
        .step = (uint32_t)(entry->numbers.next_ms - entry->numbers.timestamp_ms),
        .epoch = entry->numbers.epoch,
        .seq = entry->numbers.seq,
        .timestamp_ms = entry->numbers.timestamp_ms,
        .stream = entry->stream,
        .group = entry->group,
    };
}

/* Fill a frame. False: no memory. */
static bool snapshot_walk(struct snapshot *snapshot)
{
    while (snapshot->payload_bytes < SNAPSHOT_SLICE_BYTES) {
        struct store_walk_entry entry;
        struct wal_record record = {.kind = WAL_END};
        snapshot->is_walked = store_walk_next(snapshot->options.store, &entry) == WEIR_EMPTY;
        if (snapshot->is_walked)
            record.seq = snapshot->end_seq = commits_next_frame(snapshot->options.commits);
        else
            record = snapshot_record(&entry);
        if (!snapshot_append(snapshot, &record))
            return false;
        if (snapshot->is_walked)
            return true;
        snapshot->items += entry.is_group ? 0 : 1;
    }
    return true;
}

static void snapshot_write(struct snapshot *snapshot, uint64_t now_ms)
{
    const struct wal_frame_header header = {
        .seq = ++snapshot->frame_seq,
        .time_ms = now_ms,
        .payload_bytes = (uint32_t)snapshot->payload_bytes,
        .record_count = snapshot->record_count,
    };
    const struct wal_place place = {wal_log_id(snapshot->options.wal), snapshot->number,
                                    snapshot->offset};
    snapshot->frame_bytes = wal_frame_encode(snapshot->frame, &header, &place);
    snapshot_start(snapshot, SNAPSHOT_WRITING, snapshot_write_run, snapshot_written);
}

static bool snapshot_is_due(const struct snapshot *snapshot, uint64_t now_ms)
{
    const struct snapshot_options *options = &snapshot->options;
    uint64_t log_bytes = wal_log_bytes(options->wal) - snapshot->log_bytes_before;
    uint64_t age_ms = now_ms - snapshot->last_ms;
    if (log_bytes == 0 || (snapshot->has_failed && age_ms < SNAPSHOT_RETRY_MS))
        return false;
    if (options->interval_ms > 0 && age_ms >= options->interval_ms)
        return true;
    return log_bytes > options->log_bytes_min && log_bytes > snapshot->snapshot_bytes;
}

static bool snapshot_begin(struct snapshot *snapshot, uint64_t now_ms)
{
    if (!wal_rotate(snapshot->options.wal, &snapshot->number))
        return false; /* in a moment */
    snapshot->state = SNAPSHOT_WALKING;
    snapshot->log_bytes_begun = wal_log_bytes(snapshot->options.wal);
    snapshot->last_ms = snapshot->begun_ms = now_ms;
    snapshot->offset = WAL_BLOCK_BYTES; /* behind the header */
    snapshot->frame_seq = 0;
    snapshot->items = 0;
    snapshot->is_walked = false;
    snapshot->payload_bytes = 0;
    snapshot->record_count = 0;
    store_walk_begin(snapshot->options.store);
    return true;
}

bool snapshot_turn(struct snapshot *snapshot, uint64_t now_ms)
{
    switch (snapshot->state) {
    case SNAPSHOT_IDLE:
        return snapshot_is_due(snapshot, now_ms) && snapshot_begin(snapshot, now_ms);
    case SNAPSHOT_WALKING:
        if (snapshot_walk(snapshot))
            snapshot_write(snapshot, now_ms);
        else
            snapshot_give_up(snapshot, "no memory");
        return false;
    case SNAPSHOT_WAITING:
        /* What it has seen and the log does not have would be an item nobody wrote. */
        if (commits_failure(snapshot->options.commits))
            snapshot_give_up(snapshot, "the log has failed");
        else if (commits_durable_frame(snapshot->options.commits) >= snapshot->end_seq)
            snapshot_start(snapshot, SNAPSHOT_FINISHING, snapshot_finish_run, snapshot_finished);
        return false;
    case SNAPSHOT_WRITING:
    case SNAPSHOT_FINISHING:
        return false;
    }
    return false;
}

/* ---- life ---- */

enum weir_status snapshot_open(struct snapshot **snapshot, const struct snapshot_options *options,
                               struct weir_error *error)
{
    struct snapshot *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for snapshots");
    opened->options = *options;
    (void)snprintf(opened->directory, sizeof opened->directory, "%s", options->directory);
    opened->fd = -1;
    opened->last_ms = options->now_ms;
    opened->snapshot_bytes = options->snapshot_bytes;
    if (!snapshot_grow(opened, SNAPSHOT_SLICE_BYTES)) {
        snapshot_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for snapshots");
    }
    *snapshot = opened;
    return WEIR_OK;
}

void snapshot_close(struct snapshot *snapshot)
{
    if (!snapshot)
        return;
    if (snapshot->fd >= 0)
        (void)snapshot->options.io->close(snapshot->options.io->context, snapshot->fd);
    free(snapshot->frame);
    free(snapshot);
}

#include "broker/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "broker/log.h"
#include "broker/snapshot_file.h"
#include "broker/wal_directory.h"

enum snapshot_state {
    SNAPSHOT_IDLE,
    SNAPSHOT_OPENING, /* the file, in the background */
    SNAPSHOT_WALKING,
    SNAPSHOT_WRITING,   /* a slice, in the background; the walk goes on behind it */
    SNAPSHOT_WAITING,   /* all is written; for the log to be as far */
    SNAPSHOT_ANSWERING, /* ... and for the answers to have left */
    SNAPSHOT_FINISHING, /* named, and what it makes superfluous removed, in the background */
};

struct snapshot {
    struct snapshot_options options;
    enum snapshot_state state;
    uint64_t number; /* of the one being made */
    uint64_t first_seq, end_seq;
    bool is_walked;
    uint64_t answer_cursor; /* behind the walk */
    /* The background's while the job is in flight. */
    struct background_job job;
    struct snapshot_file *file;
    enum weir_status status;
    struct weir_error error;

    uint64_t items, begun_ms;
    uint64_t marked_ms;        /* when the answers were marked */
    uint64_t log_bytes_before; /* wal_log_bytes() that the last one covers */
    uint64_t log_bytes_begun;  /* ... and this one */
    uint64_t snapshot_bytes;   /* of the last one */
    bool has_failed;           /* the last try */
    bool is_stopping;
};

/* ---- in the background ---- */

static void snapshot_open_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    const struct wal_file_header header = {
        .kind = WAL_FILE_SNAPSHOT,
        .log_id = wal_log_id(snapshot->options.wal),
        .number = snapshot->number,
        .epoch_base = snapshot->options.epoch_base,
        .created_ms = snapshot->begun_ms,
        .first_seq = snapshot->first_seq,
    };
    snapshot->status = snapshot_file_open(&snapshot->file, snapshot->options.io,
                                          snapshot->options.directory, &header, &snapshot->error);
}

static void snapshot_write_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    snapshot->status = snapshot_file_flush(snapshot->file, &snapshot->error);
}

/* A file that the new snapshot has made superfluous. What cannot be removed is no harm. */
static int snapshot_sweep_name(void *context, const char *name)
{
    const struct snapshot *snapshot = context;
    const struct wal_io *io = snapshot->options.io;
    static const enum wal_file_kind kinds[] = {WAL_FILE_LOG, WAL_FILE_SNAPSHOT};
    for (unsigned index = 0; index < sizeof kinds / sizeof kinds[0]; index++) {
        uint64_t number = wal_name_number(name, kinds[index]);
        char path[WAL_PATH_BYTES];
        if (number == 0 || number >= snapshot->number)
            continue;
        wal_path(path, snapshot->options.directory, kinds[index], number);
        (void)io->remove(io->context, path);
    }
    return 0;
}

/* The log from the snapshot's segment on, up to the prepared one: at level WRITTEN the kernel may have
 * kept it so far, and a snapshot is whole only with it. */
static enum weir_status snapshot_sync_log(struct snapshot *snapshot)
{
    const struct wal_io *io = snapshot->options.io;
    for (uint64_t number = snapshot->number;; number++) { /* ends where no segment is */
        char path[WAL_PATH_BYTES];
        wal_path(path, snapshot->options.directory, WAL_FILE_LOG, number);
        int fd = io->open(io->context, path, O_RDWR);
        if (fd == -ENOENT)
            return WEIR_OK;
        int result = fd < 0 ? fd : io->sync(io->context, fd);
        if (fd >= 0)
            (void)io->close(io->context, fd);
        if (result < 0)
            return weir_fail_errno(&snapshot->error, -result, "cannot sync %.160s", path);
    }
}

static void snapshot_finish_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    const struct wal_io *io = snapshot->options.io;
    snapshot->status = snapshot_sync_log(snapshot);
    if (snapshot->status == WEIR_OK)
        snapshot->status =
            snapshot_file_finish(snapshot->file, snapshot->end_seq, &snapshot->error);
    if (snapshot->status == WEIR_OK)
        (void)io->list(io->context, snapshot->options.directory, snapshot_sweep_name, snapshot);
}

static void snapshot_discard_run(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    snapshot_file_close(snapshot->file);
    snapshot->file = NULL;
}

/* ---- in the loop ---- */

static void snapshot_start(struct snapshot *snapshot, enum snapshot_state state,
                           void (*run)(struct background_job *),
                           void (*done)(struct background_job *))
{
    snapshot->state = state;
    if (snapshot->is_stopping)
        return;
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

/* False: what the background did has failed, and the snapshot was given up. */
static bool snapshot_job_is_ok(struct snapshot *snapshot)
{
    if (snapshot->status == WEIR_OK)
        return true;
    snapshot_give_up(snapshot, snapshot->error.text);
    return false;
}

static void snapshot_opened(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    if (!snapshot_job_is_ok(snapshot))
        return;
    snapshot->state = SNAPSHOT_WALKING;
    if (!snapshot->is_stopping)
        store_walk_begin(snapshot->options.store);
}

static void snapshot_written(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    if (snapshot_job_is_ok(snapshot))
        snapshot->state = SNAPSHOT_WALKING;
}

static void snapshot_finished(struct background_job *job)
{
    struct snapshot *snapshot = job->owner;
    if (!snapshot_job_is_ok(snapshot))
        return;
    snapshot->has_failed = false;
    snapshot->snapshot_bytes = snapshot_file_bytes(snapshot->file);
    snapshot->log_bytes_before = snapshot->log_bytes_begun;
    snapshot->options.counters->snapshots++;
    log_line("event=snapshot number=%" PRIu64 " items=%" PRIu64 " bytes=%" PRIu64, snapshot->number,
             snapshot->items, snapshot->snapshot_bytes);
    snapshot_start(snapshot, SNAPSHOT_FINISHING, snapshot_discard_run, snapshot_discarded);
}

/* The store's groups and items, then what an earlier life's log knew. False: no more. */
static bool snapshot_next(struct snapshot *snapshot, struct wal_record *record)
{
    const struct snapshot_options *options = &snapshot->options;
    struct store_walk_entry entry;
    if (!snapshot->is_walked && store_walk_next(options->store, &entry) == WEIR_OK) {
        snapshot->items += entry.is_group ? 0 : 1;
        *record = snapshot_file_record(&entry);
        return true;
    }
    snapshot->is_walked = true;
    return options->next_answer(options->next_context, &snapshot->answer_cursor, record);
}

/* Put a slice into the file's frame. EMPTY: that was all. */
static enum weir_status snapshot_walk(struct snapshot *snapshot)
{
    enum weir_status status = WEIR_OK;
    while (status == WEIR_OK && !snapshot_file_is_full(snapshot->file)) {
        struct wal_record record;
        if (!snapshot_next(snapshot, &record))
            return WEIR_EMPTY;
        status = snapshot_file_put(snapshot->file, &record, &snapshot->error);
    }
    return status;
}

static void snapshot_go_on(struct snapshot *snapshot)
{
    enum weir_status status = snapshot_walk(snapshot);
    if (status == WEIR_OK) {
        snapshot_start(snapshot, SNAPSHOT_WRITING, snapshot_write_run, snapshot_written);
    } else if (status == WEIR_EMPTY) {
        snapshot->end_seq = commits_next_frame(snapshot->options.commits);
        snapshot->state = SNAPSHOT_WAITING;
    } else {
        snapshot_give_up(snapshot, snapshot->error.text);
    }
}

/* What it has seen and the log does not have would be an item nobody wrote. */
static void snapshot_wait(struct snapshot *snapshot, uint64_t now_ms)
{
    const struct snapshot_answers *answers = &snapshot->options.answers;
    if (commits_failure(snapshot->options.commits)) {
        snapshot_give_up(snapshot, "the log has failed");
    } else if (commits_durable_frame(snapshot->options.commits) >= snapshot->end_seq) {
        snapshot->state = SNAPSHOT_ANSWERING;
        snapshot->marked_ms = now_ms;
        if (answers->mark)
            answers->mark(answers->context);
    }
}

static void snapshot_wait_for_answers(struct snapshot *snapshot, uint64_t now_ms)
{
    const struct snapshot_answers *answers = &snapshot->options.answers;
    if (!answers->have_left || answers->have_left(answers->context) ||
        now_ms - snapshot->marked_ms >= SNAPSHOT_ANSWERS_MS)
        snapshot_start(snapshot, SNAPSHOT_FINISHING, snapshot_finish_run, snapshot_finished);
}

static bool snapshot_is_due(const struct snapshot *snapshot, uint64_t now_ms)
{
    const struct snapshot_options *options = &snapshot->options;
    uint64_t log_bytes = wal_log_bytes(options->wal) - snapshot->log_bytes_before;
    uint64_t age_ms = now_ms - snapshot->begun_ms;
    if (log_bytes == 0 || (snapshot->has_failed && age_ms < SNAPSHOT_RETRY_MS))
        return false;
    if (options->interval_ms > 0 && age_ms >= options->interval_ms)
        return true;
    return log_bytes > options->log_bytes_min && log_bytes > snapshot->snapshot_bytes;
}

static void snapshot_begin(struct snapshot *snapshot, uint64_t now_ms)
{
    if (!wal_rotate(snapshot->options.wal, &snapshot->number, &snapshot->first_seq))
        return; /* in a moment */
    snapshot->log_bytes_begun = wal_log_bytes(snapshot->options.wal);
    snapshot->begun_ms = now_ms;
    snapshot->items = 0;
    snapshot->is_walked = false;
    snapshot->answer_cursor = 0;
    snapshot_start(snapshot, SNAPSHOT_OPENING, snapshot_open_run, snapshot_opened);
}

void snapshot_turn(struct snapshot *snapshot, uint64_t now_ms)
{
    if (snapshot->state == SNAPSHOT_IDLE && snapshot_is_due(snapshot, now_ms))
        snapshot_begin(snapshot, now_ms);
    if (snapshot->state == SNAPSHOT_WALKING)
        snapshot_go_on(snapshot);
    if (snapshot->state == SNAPSHOT_WAITING)
        snapshot_wait(snapshot, now_ms);
    if (snapshot->state == SNAPSHOT_ANSWERING)
        snapshot_wait_for_answers(snapshot, now_ms);
}

/* ---- life ---- */

enum weir_status snapshot_open(struct snapshot **snapshot, const struct snapshot_options *options,
                               struct weir_error *error)
{
    struct snapshot *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for snapshots");
    opened->options = *options;
    opened->begun_ms = options->now_ms;
    opened->snapshot_bytes = options->snapshot_bytes;
    *snapshot = opened;
    return WEIR_OK;
}

void snapshot_stop(struct snapshot *snapshot)
{
    if (snapshot)
        snapshot->is_stopping = true;
}

void snapshot_close(struct snapshot *snapshot)
{
    if (!snapshot)
        return;
    snapshot_file_close(snapshot->file);
    free(snapshot);
}

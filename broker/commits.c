#include "broker/commits.h"

#include <stdlib.h>

struct commits {
    struct commits_options options;
    struct batch *open;
    struct batch *sealed, **sealed_end; /* oldest first; the first may be being written */
    struct batch *spare;
    unsigned spare_count;
    size_t sealed_bytes;     /* frames sealed and not durable */
    uint64_t next_frame;     /* of the next batch with records */
    uint64_t durable_frame;  /* all below are durable */
    uint64_t published_end;  /* ring head at the last release */
    uint64_t rung_end;       /* sleeping readers were woken for what is before it */
    uint64_t ring_bytes_max; /* of one batch */
    uint64_t now_ms;
    bool ends_turn; /* what is released now is answered before anything else is done */
    bool is_writing;
    bool has_failed; /* the log, and all that waited for it is in doubt */
};

static bool commits_wait_for_log(const struct commits *commits)
{
    return commits->options.wal && !commits->options.is_written_behind;
}

/* ---- batches ---- */

static void commits_give_back(struct commits *commits, struct batch *batch)
{
    if (!batch->is_kept) {
        batch_close(batch);
        return;
    }
    batch_reset(batch);
    batch->next = commits->spare;
    commits->spare = batch;
    commits->spare_count++;
}

/* The pool, or more: for what cannot be held up there is no bound but its own. */
static struct batch *commits_take_batch(struct commits *commits)
{
    struct batch *batch = commits->spare;
    if (!batch)
        return batch_open(commits->options.wal != NULL);
    commits->spare = batch->next;
    commits->spare_count--;
    batch->next = NULL;
    return batch;
}

enum weir_status commits_open(struct commits **commits, const struct commits_options *options,
                              struct weir_error *error)
{
    struct commits *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for commits");
    opened->options = *options;
    opened->sealed_end = &opened->sealed;
    opened->published_end = ring_head(options->ring);
    opened->rung_end = opened->published_end;
    opened->next_frame = options->wal ? wal_next_seq(options->wal) : 0;
    opened->durable_frame = opened->next_frame;
    /* A record takes at most a share of the ring; a batch less, so that a reader keeps up with
     * whole batches. */
    opened->ring_bytes_max =
        ring_record_bytes_max(options->ring) * RING_RECORD_SHARE / BATCH_RING_SHARE;
    unsigned count = options->wal ? BATCHES_KEPT : 1;
    for (unsigned index = 0; index < count; index++) {
        struct batch *batch = batch_open(options->wal != NULL);
        if (!batch) {
            commits_close(opened);
            return weir_fail(error, WEIR_NO_MEMORY, "no memory for commits");
        }
        batch->is_kept = true;
        commits_give_back(opened, batch);
    }
    opened->open = commits_take_batch(opened);
    *commits = opened;
    return WEIR_OK;
}

static void commits_close_list(struct batch *batch)
{
    while (batch) { /* each turn frees one */
        struct batch *next = batch->next;
        batch_close(batch);
        batch = next;
    }
}

void commits_close(struct commits *commits)
{
    if (!commits)
        return;
    commits_close_list(commits->sealed);
    commits_close_list(commits->spare);
    batch_close(commits->open);
    free(commits);
}

void commits_use_device(struct commits *commits, struct wal_device *device)
{
    struct iovec frames[WAL_DEVICE_BUFFERS_MAX] = {{commits->open->first_frame, BATCH_FRAME_BYTES}};
    unsigned count = 1;
    for (const struct batch *batch = commits->spare; batch && count < WAL_DEVICE_BUFFERS_MAX;
         batch = batch->next)
        frames[count++] = (struct iovec){batch->first_frame, BATCH_FRAME_BYTES};
    wal_device_use_buffers(device, frames, count);
}

struct batch *commits_batch(const struct commits *commits)
{
    return commits->open;
}

/* ---- release ---- */

static void commits_publish(struct commits *commits, uint64_t ring_end)
{
    const struct commits_options *options = &commits->options;
    if (ring_end == commits->published_end)
        return;
    ring_publish_to(options->ring, ring_end);
    commits->published_end = ring_end;
}

static void commits_ring(struct commits *commits, uint64_t called)
{
    const struct commits_options *options = &commits->options;
    if (commits->rung_end == commits->published_end)
        return;
    struct readers_woken woken = readers_wake(options->readers, options->ring, commits->rung_end,
                                              commits->published_end, called);
    commits->rung_end = commits->published_end;
    options->counters->wakes += woken.woken;
    options->counters->wakes_spared += woken.spared;
}

static void commits_release(struct commits *commits, struct batch *batch, const char *failure)
{
    const struct commits_options *options = &commits->options;
    if (batch->is_released)
        return;
    batch->is_released = true;
    options->counters->commits++;
    if (!commits->has_failed) {
        for (unsigned index = 0; index < batch->group_count && commits_wait_for_log(commits);
             index++)
            store_group_committed(options->store, batch->groups[index].offset,
                                  batch->groups[index].seq, batch->groups[index].position);
        commits_publish(commits, batch->ring_end);
    }
    if (!commits->ends_turn)
        commits_ring(commits, 0);
    options->counters->replies_lost += batch_send(batch, &options->output, failure);
}

/* Nobody waits for the log: the open batch keeps its records, and all else goes. */
static void commits_show_open(struct commits *commits)
{
    const struct commits_options *options = &commits->options;
    commits_publish(commits, ring_head(options->ring));
    options->counters->replies_lost += batch_send(commits->open, &options->output, NULL);
}

/* ---- writing ---- */

static void commits_written(struct wal_write *write, enum weir_status status);

static void commits_write(struct commits *commits, struct batch *batch)
{
    commits->is_writing = true;
    batch->write.done = commits_written;
    batch->write.owner = commits;
    weir_assert(batch->frame_seq == wal_next_seq(commits->options.wal));
    wal_write(commits->options.wal, &batch->write, batch->frame, batch->payload_bytes,
              batch->record_count, commits->now_ms);
}

static void commits_pop(struct commits *commits)
{
    struct batch *batch = commits->sealed;
    commits->sealed = batch->next;
    if (!commits->sealed)
        commits->sealed_end = &commits->sealed;
    if (batch->record_count > 0)
        commits->sealed_bytes -= wal_frame_bytes(batch->payload_bytes);
    commits_give_back(commits, batch);
}

/* What is opened from now on has seen nothing that is in doubt (engine.c). */
static void commits_note_failure(struct commits *commits)
{
    if (commits->has_failed || !commits_failure(commits))
        return;
    commits->has_failed = true;
    for (struct batch *batch = commits->sealed; batch; batch = batch->next)
        batch->is_doubtful = true;
    commits->open->is_doubtful = true;
}

/* Release what has nothing to wait for any more, and begin the next write. */
static void commits_advance(struct commits *commits)
{
    commits_note_failure(commits);
    while (commits->sealed && !commits->is_writing) { /* each turn takes a batch or writes one */
        struct batch *batch = commits->sealed;
        if (batch->record_count > 0 && !commits->has_failed) {
            commits_write(commits, batch);
            return;
        }
        commits_release(commits, batch, batch->is_doubtful ? commits_failure(commits) : NULL);
        commits_pop(commits);
    }
}

static void commits_written(struct wal_write *write, enum weir_status status)
{
    struct commits *commits = write->owner;
    commits->is_writing = false;
    if (status == WEIR_OK) {
        commits->durable_frame = commits->sealed->frame_seq + 1;
        commits_release(commits, commits->sealed, NULL);
        commits_pop(commits);
    }
    commits_advance(commits);
}

/* ---- sealing ---- */

static bool commits_seal(struct commits *commits)
{
    struct batch *batch = commits->open;
    commits_note_failure(commits);
    if (!batch->is_used)
        return true;
    batch->ring_end = ring_head(commits->options.ring);
    store_turn_end(commits->options.store);
    if (!commits->options.wal) {
        commits_release(commits, batch, NULL);
        batch_reset(batch);
        return true;
    }
    struct batch *next = commits_take_batch(commits);
    if (!next)
        return false; /* it grows on within its bounds, and later there may be memory */
    if (batch->record_count > 0) {
        commits->next_frame++;
        commits->sealed_bytes += wal_frame_bytes(batch->payload_bytes);
    }
    *commits->sealed_end = batch;
    commits->sealed_end = &batch->next;
    commits->open = next;
    if (commits->options.is_written_behind)
        commits_release(commits, batch, NULL);
    commits_advance(commits);
    return true;
}

void commits_when_full(struct commits *commits)
{
    uint64_t ring_bytes = ring_head(commits->options.ring) - commits->published_end;
    bool is_far = !commits->options.wal && ring_bytes >= commits->ring_bytes_max;
    if (is_far || batch_is_full(commits->open))
        (void)commits_seal(commits);
}

void commits_turn(struct commits *commits, uint64_t now_ms)
{
    const struct commits_options *options = &commits->options;
    commits->now_ms = now_ms;
    commits->ends_turn = true;
    if (!commits->is_writing)
        (void)commits_seal(commits);
    else if (commits->open->is_used)
        store_turn_end(options->store);
    if (options->is_written_behind && !commits->has_failed)
        commits_show_open(commits);
    commits->ends_turn = false;
    /* Behind the answers, which save some a doorbell: nothing is left to do in this turn that could
     * hold them up. */
    commits_ring(commits,
                 options->output.called ? options->output.called(options->output.context) : 0);
}

/* ---- room ---- */

/* Bytes of the log that are spoken for, should one more record come. */
static size_t commits_log_bytes(const struct commits *commits, size_t record_bytes)
{
    return commits->sealed_bytes + wal_frame_bytes(commits->open->payload_bytes) +
           wal_frame_bytes(record_bytes);
}

bool commits_are_ready(const struct commits *commits)
{
    const struct commits_options *options = &commits->options;
    if (!options->wal || commits_failure(commits))
        return true;
    /* Each request needs at most one batch more than there is, and its event's place in the ring. */
    if (commits->spare_count == 0 ||
        !ring_has_room(options->ring, ring_record_bytes_max(options->ring)))
        return false;
    size_t record_bytes = options->value_bytes_max + 4 * (size_t)NAME_BYTES_MAX +
                          WAL_RECORD_HEADER_BYTES + sizeof(uint64_t);
    return wal_has_room(options->wal, commits_log_bytes(commits, record_bytes)) ||
           wal_problem(options->wal) != NULL;
}

const char *commits_problem(struct commits *commits, size_t record_bytes)
{
    struct wal *wal = commits->options.wal;
    if (!ring_has_room(commits->options.ring, ring_record_bytes_max(commits->options.ring))) {
        if (!commits->options.wal)
            (void)commits_seal(commits);
        else
            return "too many events wait for the log; try again";
    }
    if (!wal)
        return NULL;
    const char *failure = commits_failure(commits);
    if (failure)
        return failure;
    if (!wal_has_room(wal, commits_log_bytes(commits, record_bytes))) {
        const char *problem = wal_problem(wal);
        return problem ? problem : "too many writes wait for the log; try again";
    }
    if (batch_has_room(commits->open, record_bytes))
        return NULL;
    if (!commits_seal(commits))
        return "no memory for the log's records";
    /* Sealed because of its records, or without any. */
    if (batch_has_room(commits->open, record_bytes) ||
        batch_reserve(commits->open, record_bytes) == WEIR_OK)
        return NULL;
    return "no memory for the log's records";
}

uint64_t commits_frame(const struct commits *commits)
{
    return commits->next_frame;
}

void commits_log(struct commits *commits, const struct wal_record *record, uint64_t group_offset)
{
    commits->open->is_used = true;
    if (!commits->options.wal)
        return;
    const struct batch_group group = {
        group_offset, record->seq,
        store_group_newest_position(commits->options.store, group_offset)};
    commits->open->frame_seq = commits->next_frame;
    batch_log(commits->open, record, &group);
}

void commits_log_answer(struct commits *commits, const struct wal_record *record)
{
    if (!commits->options.wal)
        return;
    commits->open->frame_seq = commits->next_frame;
    batch_log(commits->open, record, NULL);
}

bool commits_have_open(const struct commits *commits)
{
    return commits->open->is_used;
}

uint64_t commits_next_frame(const struct commits *commits)
{
    return commits->next_frame + (commits->open->record_count > 0 ? 1 : 0);
}

uint64_t commits_durable_frame(const struct commits *commits)
{
    return commits->durable_frame;
}

bool commits_are_writing(const struct commits *commits)
{
    return commits->is_writing;
}

uint64_t commits_published_end(const struct commits *commits)
{
    return commits->published_end;
}

bool commits_are_idle(const struct commits *commits)
{
    return !commits->open->is_used && !commits->sealed;
}

const char *commits_failure(const struct commits *commits)
{
    return commits->options.wal ? wal_failure(commits->options.wal) : NULL;
}

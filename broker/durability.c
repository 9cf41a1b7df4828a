#include "broker/durability.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "broker/answered.h"
#include "broker/log.h"
#include "broker/replay.h"
#include "broker/wal_life.h"
#include "shm/envelope.h"

enum {
    ANSWERED_RESULT_BYTES = 64 * 1024, /* of an answer that a snapshot takes over */
    FRAMES_REMEMBERED = 256 * 1024,    /* of the newest, where gateways can read on */
    PROGRESS_MS = 1000,
    /* A life's epochs grow by one with each group that is forgotten: far fewer than this. */
    EPOCH_LIFE_MARGIN_BITS = 32,
};

struct durability_frame {
    uint64_t seq;
    uint64_t position; /* in the ring, of its first event */
};

struct durability {
    const struct settings *settings;
    struct engine *engine;
    struct broker_counters *counters;
    const struct wal_io *io;
    struct durability_seam seam;
    int lock_fd;
    struct wal_recovered recovered;
    uint64_t epoch_base;
    uint64_t started_ms;
    bool has_last_life;
    struct wal_life last_life, life; /* the last one's, and this one's */
    bool is_kept;                    /* all that the last life has shown was recovered */
    const char *why;                 /* ... or not */
    bool is_flushed, is_life_void;

    struct replay replay;
    uint64_t snapshot_end_seq; /* events of frames from here on are as they were */
    struct answered *answered;
    struct durability_frame *frames; /* a ring of the newest */
    uint64_t frame_count;            /* ever put in */
    uint64_t resume_from;            /* all events of frames from here on are in the ring */
    uint64_t resume_end;             /* ring position behind what was recovered */
    uint64_t progress_ms;

    struct background *background;
    struct wal_device *device;
    struct wal *wal;
    struct snapshot *snapshot;
};

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- recovery ---- */

static void durability_remember_frame(struct durability *durability, uint64_t seq)
{
    const struct durability_frame *newest =
        &durability->frames[(durability->frame_count - 1) % FRAMES_REMEMBERED];
    if (durability->frame_count > 0 && newest->seq == seq)
        return;
    if (durability->frame_count >= FRAMES_REMEMBERED)
        durability->resume_from =
            durability->frames[durability->frame_count % FRAMES_REMEMBERED].seq + 1;
    durability->frames[durability->frame_count++ % FRAMES_REMEMBERED] =
        (struct durability_frame){seq, engine_ring_head(durability->engine)};
}

static enum weir_status durability_no_memory(struct weir_error *error)
{
    return weir_fail(error, WEIR_NO_MEMORY, "no memory for the answers of replayed requests");
}

/* What the request was answered, or would have been. */
static enum weir_status durability_remember_answer(struct durability *durability,
                                                   const struct wal_record *record,
                                                   const struct store_change *change)
{
    struct span old_value = SPAN_LITERAL("null");
    if (change && change->existed && change->old_value.bytes > 0)
        old_value = change->old_value;
    const struct span set[] = {SPAN_LITERAL("{\"old_value\":"), old_value,
                               SPAN_LITERAL(",\"new_value\":"), record->value, SPAN_LITERAL("}")};
    const struct span deleted[] = {SPAN_LITERAL("{\"old_value\":"), old_value, SPAN_LITERAL("}")};
    const struct span sent[] = {SPAN_LITERAL("null")};
    const struct span *parts = NULL;
    unsigned count = 0;
    if (change && !record->is_answer_partial && record->kind == WAL_SET) {
        parts = set;
        count = sizeof set / sizeof set[0];
    } else if (change && record->kind == WAL_DELETE) {
        parts = deleted;
        count = sizeof deleted / sizeof deleted[0];
    } else if (change && record->event == ENVELOPE_EVENT) {
        parts = sent;
        count = 1;
    }
    return answered_add(durability->answered, record->origin, record->request, record->timestamp_ms,
                        parts, count);
}

static enum weir_status durability_changed(void *context, const struct wal_position *position,
                                           const struct wal_record *record,
                                           const struct store_change *change,
                                           struct weir_error *error)
{
    struct durability *durability = context;
    if (record->origin != 0 && durability_remember_answer(durability, record, change) != WEIR_OK)
        return durability_no_memory(error);
    if (!change)
        return WEIR_OK;
    bool is_exact = position->seq >= durability->snapshot_end_seq;
    if (is_exact)
        durability_remember_frame(durability, position->seq);
    if (is_exact && engine_replayed(durability->engine, position, record, change) == WEIR_OK)
        return WEIR_OK;
    /* Not in the ring: nobody can read on from before it. */
    if (is_exact)
        durability->resume_from = position->seq + 1;
    store_group_published(engine_store(durability->engine), change->group.offset, RING_NO_POSITION);
    return WEIR_OK;
}

static enum weir_status durability_take(void *context, const struct wal_position *position,
                                        const struct wal_record *record, struct weir_error *error)
{
    struct durability *durability = context;
    if (record->kind == WAL_END)
        durability->snapshot_end_seq = durability->resume_from = record->seq;
    if (record->kind == WAL_ANSWER &&
        answered_add(durability->answered, record->origin, record->request, record->timestamp_ms,
                     &record->value, record->value.data ? 1 : 0) != WEIR_OK)
        return durability_no_memory(error);
    return replay_take(&durability->replay, position, record, error);
}

static void durability_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct durability *durability = context;
    uint64_t now_ms = clock_ms(CLOCK_MONOTONIC);
    if (now_ms - durability->progress_ms < PROGRESS_MS || total_bytes == 0)
        return;
    durability->progress_ms = now_ms;
    log_line("event=recovering percent=%" PRIu64, done_bytes * 100 / total_bytes);
}

static void durability_report(const struct durability *durability, uint64_t begun_ms)
{
    const struct wal_recovered *recovered = &durability->recovered;
    struct store_figures figures;
    store_figures(engine_store(durability->engine), &figures);
    if (recovered->cut_bytes > 0)
        log_line("event=log_cut file=log-%020" PRIu64 " offset=%" PRIu64 " bytes=%" PRIu64
                 " reason=\"%s\"",
                 recovered->cut_segment, recovered->cut_offset, recovered->cut_bytes,
                 recovered->is_shortened
                     ? "writes that were not synced are missing, and what came after them goes"
                     : "a write was interrupted; nobody was told that it is kept");
    if (!recovered->is_empty)
        log_line("event=%s reason=\"%s\"", durability->is_kept ? "epochs_kept" : "epochs_renewed",
                 durability->why);
    log_line("event=recovered items=%" PRIu64 " groups=%" PRIu64 " snapshot=%" PRIu64
             " snapshot_bytes=%" PRIu64 " log_bytes=%" PRIu64 " frames=%" PRIu64 " writes=%" PRIu64
             " ms=%" PRIu64,
             figures.items, figures.groups, recovered->snapshot, recovered->snapshot_bytes,
             recovered->log_bytes, recovered->frames, durability->replay.replayed,
             clock_ms(CLOCK_MONOTONIC) - begun_ms);
}

/* What this life says of itself, for the next one. */
static void durability_begin_life(struct durability *durability)
{
    static const enum wal_life_level levels[] = {
        [SETTINGS_DURABILITY_MEMORY] = WAL_LIFE_MEMORY,
        [SETTINGS_DURABILITY_WRITTEN] = WAL_LIFE_WRITTEN,
        [SETTINGS_DURABILITY_SYNCED] = WAL_LIFE_SYNCED,
    };
    struct wal_life *life = &durability->life;
    *life = (struct wal_life){.level = levels[durability->settings->durability]};
    if (durability->seam.boot)
        (void)snprintf(life->boot, sizeof life->boot, "%s", durability->seam.boot);
    else
        wal_life_read_boot(life->boot);
}

static enum weir_status durability_judge_last(struct durability *durability,
                                              struct weir_error *error)
{
    const struct wal_life *last = &durability->last_life;
    enum weir_status status =
        wal_life_read(durability->io, durability->settings->data_dir, &durability->last_life);
    if (status == WEIR_SYSTEM)
        return weir_fail(error, status, "%.200s/life cannot be read",
                         durability->settings->data_dir);
    durability->has_last_life = status == WEIR_OK;
    const struct wal_life_finding finding = wal_life_finding(
        status == WEIR_OK ? last : NULL, durability->life.boot, &durability->recovered);
    durability->is_kept = wal_life_verdict(&finding, &durability->why) == WAL_LIFE_KEEP;
    return WEIR_OK;
}

/* Epochs of this life are above all of those before it; the clock may have been set back. When some of
 * what was shown is gone, the epochs it had are not known either. */
static void durability_set_epochs(struct durability *durability)
{
    struct store *store = engine_store(durability->engine);
    uint64_t floor = durability->recovered.epoch_base;
    uint64_t renewed = durability->has_last_life ? durability->last_life.renewed : 0;
    if (renewed > floor)
        floor = renewed;
    if (floor > 0 && (!durability->is_kept || floor >= store_epoch_base(store)))
        floor += 1ull << EPOCH_LIFE_MARGIN_BITS;
    store_recovered(store, floor);
    durability->life.renewed = durability->is_kept ? renewed : store_epoch_base(store);
    store_renew(store, durability->life.renewed);
    durability->epoch_base = store_epoch_base(store);
}

static enum weir_status durability_recover(struct durability *durability, struct weir_error *error)
{
    uint64_t begun_ms = durability->progress_ms = clock_ms(CLOCK_MONOTONIC);
    struct store *store = engine_store(durability->engine);
    const struct wal_recovery_options options = {
        .io = durability->io,
        .directory = durability->settings->data_dir,
        .take = durability_take,
        .progress = durability_progress,
        .context = durability,
    };
    durability->replay =
        (struct replay){.store = store, .changed = durability_changed, .context = durability};
    enum weir_status status = wal_recover(&options, &durability->recovered, error);
    if (status == WEIR_OK)
        status = wal_clean(durability->io, durability->settings->data_dir, &durability->recovered,
                           error);
    durability_begin_life(durability);
    if (status == WEIR_OK)
        status = durability_judge_last(durability, error);
    if (status != WEIR_OK)
        return status;
    durability_set_epochs(durability);
    engine_publish_replayed(durability->engine);
    durability->resume_end = engine_ring_head(durability->engine);
    durability_report(durability, begun_ms);
    return WEIR_OK;
}

enum weir_status durability_open(struct durability **durability, const struct settings *settings,
                                 struct engine *engine, const struct durability_seam *seam,
                                 struct broker_counters *counters, struct weir_error *error)
{
    struct durability *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the log");
    opened->settings = settings;
    opened->engine = engine;
    opened->counters = counters;
    opened->seam = *seam;
    opened->io = seam->io ? seam->io : &wal_io_system;
    opened->lock_fd = -1;
    opened->started_ms = clock_ms(CLOCK_REALTIME);
    opened->answered = answered_open();
    opened->frames = calloc(FRAMES_REMEMBERED, sizeof *opened->frames);
    enum weir_status status = WEIR_OK;
    if (!opened->answered || !opened->frames)
        status = weir_fail(error, WEIR_NO_MEMORY, "no memory for the log");
    if (status == WEIR_OK)
        status = wal_lock(opened->io, settings->data_dir, &opened->lock_fd, error);
    if (status == WEIR_OK)
        status = durability_recover(opened, error);
    if (status != WEIR_OK) {
        durability_close(opened);
        return status;
    }
    *durability = opened;
    return WEIR_OK;
}

/* ---- beside service ---- */

static enum weir_status durability_open_wal(struct durability *durability, struct weir_error *error)
{
    const struct settings *settings = durability->settings;
    struct wal_options options = {
        .directory = settings->data_dir,
        .io = durability->io,
        .background = durability->background,
        .device = durability->device,
        .level = settings->durability == SETTINGS_DURABILITY_SYNCED ? WAL_LEVEL_SYNCED
                                                                    : WAL_LEVEL_WRITTEN,
        .segment_bytes = settings->log_segment_bytes,
        .sync_interval_ms = settings->save_interval_ms,
        .epoch_base = durability->epoch_base,
        .now_ms = durability->started_ms,
    };
    if (getrandom(&options.log_id, sizeof options.log_id, 0) != (ssize_t)sizeof options.log_id)
        return weir_fail_errno(error, errno, "getrandom");
    return wal_open(&durability->wal, &options, &durability->recovered, error);
}

static bool lives_are_equal(const struct wal_life *one, const struct wal_life *other)
{
    return one->log_id == other->log_id && one->renewed == other->renewed &&
           one->level == other->level && one->is_stopped == other->is_stopped &&
           strcmp(one->boot, other->boot) == 0;
}

/* Before anybody is shown anything. */
static enum weir_status durability_say_life(struct durability *durability, struct weir_error *error)
{
    durability->life.log_id = wal_log_id(durability->wal);
    if (durability->has_last_life && lives_are_equal(&durability->life, &durability->last_life))
        return WEIR_OK;
    return wal_life_write(durability->io, durability->settings->data_dir, &durability->life, error);
}

/* What was shown is only in the memory of a kernel whose disk has refused it: it may be gone although
 * the kernel goes on. */
static void durability_void_life(struct durability *durability)
{
    struct weir_error error = {0};
    durability->is_life_void = true;
    if (durability->life.level != WAL_LIFE_SYNCED &&
        wal_life_remove(durability->io, durability->settings->data_dir, &error) != WEIR_OK)
        log_line("event=life_not_removed reason=\"%s\"", error.text);
}

/* Of an earlier life's requests those that a gateway may still ask again. */
static bool durability_next_answer(void *context, uint64_t *cursor, struct wal_record *record)
{
    const struct durability *durability = context;
    uint64_t now_ms = clock_ms(CLOCK_REALTIME);
    struct answered_entry entry;
    while (answered_next(durability->answered, cursor, &entry)) {
        if (entry.time_ms + ANSWERED_KEEP_MS < now_ms)
            continue;
        *record = (struct wal_record){
            .kind = WAL_ANSWER,
            .timestamp_ms = entry.time_ms,
            .origin = entry.origin,
            .request = entry.request,
        };
        if (entry.result.bytes <= ANSWERED_RESULT_BYTES)
            record->value = entry.result;
        return true;
    }
    return false;
}

static enum weir_status durability_open_snapshot(struct durability *durability,
                                                 const struct snapshot_answers *answers,
                                                 struct weir_error *error)
{
    const struct settings *settings = durability->settings;
    const struct snapshot_options options = {
        .directory = settings->data_dir,
        .io = durability->io,
        .background = durability->background,
        .wal = durability->wal,
        .store = engine_store(durability->engine),
        .commits = engine_commits(durability->engine),
        .counters = durability->counters,
        .answers = *answers,
        .next_answer = durability_next_answer,
        .next_context = durability,
        .log_bytes_min = settings->snapshot_log_bytes,
        .interval_ms = settings->snapshot_interval_ms,
        .epoch_base = durability->epoch_base,
        .now_ms = durability->started_ms,
        .snapshot_bytes = durability->recovered.snapshot_bytes,
    };
    return snapshot_open(&durability->snapshot, &options, error);
}

enum weir_status durability_start(struct durability *durability, struct loop *loop,
                                  const struct snapshot_answers *answers, struct weir_error *error)
{
    bool is_written_behind = durability->settings->durability == SETTINGS_DURABILITY_MEMORY;
    enum weir_status status = background_open(&durability->background, loop, "weir-files", error);
    if (status == WEIR_OK)
        status = wal_device_open(&durability->device, loop, error);
    if (status == WEIR_OK && durability->seam.wrap_device)
        durability->device =
            durability->seam.wrap_device(durability->seam.context, durability->device);
    if (status == WEIR_OK)
        status = durability_open_wal(durability, error);
    if (status == WEIR_OK)
        status = durability_say_life(durability, error);
    if (status == WEIR_OK)
        status = engine_set_log(durability->engine, durability->wal, is_written_behind, error);
    if (status == WEIR_OK)
        status = durability_open_snapshot(durability, answers, error);
    if (status != WEIR_OK)
        return status;
    commits_use_device(engine_commits(durability->engine), durability->device);
    return WEIR_OK;
}

void durability_flushed(struct durability *durability)
{
    if (durability)
        durability->is_flushed = true;
}

/* At level SYNCED the next life has nothing to learn from that. */
static void durability_end_life(struct durability *durability, bool is_synced)
{
    struct weir_error error = {0};
    if (!is_synced && !durability->is_life_void)
        durability_void_life(durability);
    if (!durability->is_flushed || durability->is_life_void ||
        durability->life.level == WAL_LIFE_SYNCED)
        return;
    durability->life.is_stopped = true;
    if (wal_life_write(durability->io, durability->settings->data_dir, &durability->life, &error) !=
        WEIR_OK)
        log_line("event=life_not_written reason=\"%s\"", error.text);
}

void durability_close(struct durability *durability)
{
    if (!durability)
        return;
    wal_stop(durability->wal);
    snapshot_stop(durability->snapshot);
    if (durability->background)
        background_close(durability->background);
    wal_device_close(durability->device);
    snapshot_close(durability->snapshot);
    if (durability->wal)
        durability_end_life(durability, wal_close(durability->wal));
    answered_close(durability->answered);
    free(durability->frames);
    if (durability->lock_fd >= 0)
        (void)durability->io->close(durability->io->context, durability->lock_fd);
    free(durability);
}

void durability_turn(struct durability *durability, uint64_t now_ms)
{
    if (!durability)
        return;
    snapshot_turn(durability->snapshot, now_ms);
    if (!durability->is_life_void && wal_failure(durability->wal))
        durability_void_life(durability);
}

void durability_tick(struct durability *durability, uint64_t now_ms)
{
    if (!durability)
        return;
    wal_tick(durability->wal, now_ms);
    durability->counters->log_bytes = wal_log_bytes(durability->wal);
    if (durability->answered && now_ms - durability->started_ms > ANSWERED_KEEP_MS) {
        answered_close(durability->answered);
        durability->answered = NULL;
    }
}

/* ---- gateways that come back ---- */

bool durability_keeps(const struct durability *durability, uint64_t frame)
{
    return durability && durability->is_kept && durability->last_life.level != WAL_LIFE_MEMORY &&
           frame < durability->recovered.next_seq;
}

bool durability_resume(const struct durability *durability, uint64_t frame, uint64_t *position)
{
    if (!durability || frame == 0 || frame + 1 < durability->resume_from)
        return false;
    *position = durability->resume_end;
    uint64_t count = durability->frame_count;
    uint64_t oldest = count > FRAMES_REMEMBERED ? count - FRAMES_REMEMBERED : 0;
    uint64_t low = oldest;
    while (low < count) { /* binary search: the first behind `frame` */
        uint64_t middle = low + (count - low) / 2;
        if (durability->frames[middle % FRAMES_REMEMBERED].seq > frame)
            count = middle;
        else
            low = middle + 1;
    }
    if (low < durability->frame_count)
        *position = durability->frames[low % FRAMES_REMEMBERED].position;
    return true;
}

bool durability_answered(struct durability *durability, uint64_t origin, uint64_t request,
                         struct span *result)
{
    return durability && answered_find(durability->answered, origin, request, result);
}

#include "broker/wal_recovery.h"

#include <inttypes.h>
#include <stdio.h>

#include "broker/wal_inside.h"
#include "broker/wal_read.h"

enum {
    BUFFER_BYTES = 4 * 1024 * 1024,
    AHEAD_BUFFER_BYTES = 256 * 1024,
    PROGRESS_BYTES = 8 * 1024 * 1024, /* between two calls */
    REMEDY_BYTES = 128,
};

/* ---- what is being read ---- */

struct spot {
    uint64_t segment, offset; /* segment 0: none */
};

struct recovery {
    const struct wal_recovery_options *options;
    struct wal_recovered *recovered;
    struct weir_error *error;
    struct wal_directory directory;
    struct wal_reader reader; /* where records are read */
    struct wal_reader ahead;  /* looks at the segments behind */
    struct spot limit;        /* segment 0: none */
    /* The log's segments are those of the directory from here to there. */
    size_t segment_begin, segment_end;
    size_t segment_index; /* the one being read */
    uint64_t expected;    /* seq of the next frame; 0: the snapshot does not say */
    uint64_t previous;    /* seq of the frame before in this segment; 0: none */
    bool is_loose;        /* the last frame was written where later ones do not wait for its sync */
    /* The first of the abandoned places that no frame has followed yet. */
    struct spot abandoned;
    uint64_t abandoned_count;
    /* Snapshot: order of records. */
    bool has_group, has_end;
    uint64_t done_bytes, told_bytes, total_bytes;
};

static void tell_progress(struct recovery *recovery, uint64_t offset, bool is_due)
{
    uint64_t done = recovery->done_bytes + offset;
    if (recovery->options->progress == NULL ||
        (!is_due && done - recovery->told_bytes < PROGRESS_BYTES))
        return;
    recovery->told_bytes = done;
    recovery->options->progress(recovery->options->context,
                                done < recovery->total_bytes ? done : recovery->total_bytes,
                                recovery->total_bytes);
}

static const char *remedy_of(const struct wal_reader *reader, uint64_t offset,
                             char remedy[REMEDY_BYTES])
{
    if (reader->header.kind == WAL_FILE_SNAPSHOT)
        return "restore it from a copy";
    (void)snprintf(remedy, REMEDY_BYTES,
                   "restore it from a copy, or cut it off: weir log repair --cut-at %" PRIu64
                   ":%" PRIu64,
                   reader->header.number, offset);
    return remedy;
}

static enum weir_status refuse_place(const struct recovery *recovery, uint64_t offset,
                                     const char *why)
{
    const struct wal_reader *reader = &recovery->reader;
    char remedy[REMEDY_BYTES];
    return weir_fail(recovery->error, WEIR_CORRUPT, "%s offset %" PRIu64 ": %s; %s", reader->name,
                     offset, why, remedy_of(reader, offset, remedy));
}

/* ---- records ---- */

/* Nothing follows the end of a snapshot; items follow their group. */
static bool is_record_in_order(struct recovery *recovery, const struct wal_record *record)
{
    if (!wal_record_fits(record->kind, recovery->reader.header.kind) || recovery->has_end)
        return false;
    if (record->kind == WAL_ITEM)
        return recovery->has_group;
    recovery->has_group = record->kind == WAL_GROUP;
    recovery->has_end = record->kind == WAL_END;
    if (recovery->has_end)
        recovery->recovered->snapshot_end_seq = record->seq;
    return true;
}

static enum weir_status take_records(struct recovery *recovery, const struct wal_position *position,
                                     const struct wal_found *found)
{
    const struct wal_recovery_options *options = recovery->options;
    size_t cursor = 0;
    uint32_t count = 0;
    for (;; count++) { /* bounded by the payload */
        struct wal_record record;
        enum weir_status status = wal_record_decode(found->payload, &cursor, &record);
        if (status == WEIR_EMPTY)
            break;
        if (status != WEIR_OK || !is_record_in_order(recovery, &record))
            return refuse_place(recovery, position->offset,
                                "the frame is as it was written, but has a record that cannot be");
        if (options->take != NULL)
            status = options->take(options->context, position, &record, recovery->error);
        if (status != WEIR_OK)
            return status;
    }
    if (count != found->frame.record_count)
        return refuse_place(
            recovery, position->offset,
            "the frame is as it was written, but has not as many records as it says");
    recovery->recovered->records += count;
    return WEIR_OK;
}

static enum weir_status take_frame(struct recovery *recovery, uint64_t offset,
                                   const struct wal_found *found)
{
    const struct wal_recovery_options *options = recovery->options;
    const struct wal_position position = {
        .kind = recovery->reader.header.kind,
        .number = recovery->reader.header.number,
        .offset = offset,
        .seq = found->frame.seq,
        .time_ms = found->frame.time_ms,
    };
    if (options->take_frame != NULL) {
        enum weir_status status = options->take_frame(options->context, &position, &found->frame);
        if (status != WEIR_OK)
            return weir_fail(recovery->error, status, "%s offset %" PRIu64 ": %s",
                             recovery->reader.name, offset, weir_status_text(status));
    }
    recovery->recovered->frames++;
    return take_records(recovery, &position, found);
}

/* ---- the snapshot ---- */

static const char *snapshot_problem(const struct wal_found *found, uint64_t expected)
{
    if (found->header == WAL_HEADER_ZERO)
        return "there are zeros where the snapshot goes on";
    if (found->header != WAL_HEADER_GOOD)
        return "the frame's header is not what was written";
    if (found->body != WAL_BODY_GOOD)
        return "the frame is not what was written";
    return found->frame.seq != expected ? "the frame's number does not follow the one before"
                                        : NULL;
}

/* It was complete before it had its name: whatever is not as written is damage. */
static enum weir_status read_snapshot(struct recovery *recovery)
{
    struct wal_recovered *recovered = recovery->recovered;
    struct wal_reader *reader = &recovery->reader;
    enum weir_status status =
        wal_reader_open(reader, recovery->options->directory, WAL_FILE_SNAPSHOT,
                        recovered->snapshot, recovery->error);
    if (status != WEIR_OK)
        return status;
    recovered->snapshot_bytes = reader->bytes;
    uint64_t offset = WAL_BLOCK_BYTES;
    for (uint64_t seq = 1; offset < reader->bytes; seq++) {
        struct wal_found found;
        status = wal_reader_find(reader, offset, &found, recovery->error);
        if (status != WEIR_OK)
            return status;
        const char *problem = recovery->has_end ? "there are bytes behind the snapshot's end"
                                                : snapshot_problem(&found, seq);
        if (problem != NULL)
            return refuse_place(recovery, offset, problem);
        status = take_frame(recovery, offset, &found);
        if (status != WEIR_OK)
            return status;
        offset += found.frame_bytes;
        tell_progress(recovery, offset, false);
    }
    if (!recovery->has_end)
        return refuse_place(recovery, offset, "the file ends before the snapshot does");
    recovery->has_end = false;
    recovery->done_bytes += reader->bytes;
    recovery->expected = reader->header.first_seq;
    return WEIR_OK;
}

/* ---- what follows a place ---- */

static enum wal_number_state number_of(const struct recovery *recovery, uint64_t previous,
                                       uint64_t seq)
{
    uint64_t end_seq = recovery->recovered->snapshot_end_seq;
    if (previous > 0 && seq != previous + 1)
        return WAL_NUMBER_AHEAD;
    if (recovery->expected == 0) /* the snapshot needs the frames up to its end */
        return end_seq == 0 || seq <= end_seq ? WAL_NUMBER_NEXT : WAL_NUMBER_AHEAD;
    if (seq == recovery->expected)
        return WAL_NUMBER_NEXT;
    return seq < recovery->expected ? WAL_NUMBER_SEEN : WAL_NUMBER_AHEAD;
}

/* What was found behind a place, and where the first of it is. */
struct behind {
    enum wal_behind_state state;
    char name[WAL_NAME_BYTES];
    uint64_t offset;
};

static void note_behind(struct behind *behind, enum wal_behind_state state,
                        const struct wal_reader *reader, uint64_t offset)
{
    if (behind->state == WAL_BEHIND_NOTHING || behind->state == WAL_BEHIND_BYTES) {
        memcpy(behind->name, reader->name, sizeof behind->name);
        behind->offset = offset;
    }
    if (state > behind->state)
        behind->state = state;
}

/* Frames of a rest tell whether the frame `missing` had been synced when they were written. A number
 * that is not above it contradicts, and is damage too. */
static void note_rest(struct behind *behind, const struct wal_reader *reader,
                      const struct wal_rest *rest, uint64_t missing)
{
    if (rest->first_frame == 0)
        return;
    bool is_loose = rest->synced_seq < missing && rest->lowest_seq > missing;
    note_behind(behind, is_loose ? WAL_BEHIND_LOOSE : WAL_BEHIND_FRAMES, reader, rest->first_frame);
}

static enum weir_status open_ahead(struct recovery *recovery, size_t index)
{
    return wal_reader_open(&recovery->ahead, recovery->options->directory, WAL_FILE_LOG,
                           recovery->directory.segments.list[index], recovery->error);
}

/* Whether the open segment begins with the frame that is missing, or with one seen, or with parts of a
 * frame: then it was to be written there and that failed as well. */
static enum weir_status is_continuation(struct recovery *recovery, uint64_t missing, bool *is_one)
{
    struct wal_found found;
    enum weir_status status =
        wal_reader_find(&recovery->ahead, WAL_BLOCK_BYTES, &found, recovery->error);
    *is_one = status == WEIR_OK &&
              (found.header == WAL_HEADER_CUT ||
               (found.header == WAL_HEADER_GOOD && missing > 0 && found.frame.seq <= missing));
    return status;
}

/* The segments behind, up to what settles it. `is_end`: the place itself is zeros, so a next segment
 * that begins with no frame is not about this place: it is judged when it is read. */
static enum weir_status look_at_segments(struct recovery *recovery, bool is_end, uint64_t missing,
                                         struct behind *behind)
{
    struct wal_reader *ahead = &recovery->ahead;
    bool is_first = true; /* of those that are not zeros */
    for (size_t i = recovery->segment_index + 1;
         i < recovery->segment_end && behind->state != WAL_BEHIND_FRAMES; i++) {
        struct wal_rest rest;
        bool is_continued = false;
        enum weir_status status = open_ahead(recovery, i);
        if (status == WEIR_OK && is_first)
            status = is_continuation(recovery, missing, &is_continued);
        if (status == WEIR_OK && is_continued && behind->state != WAL_BEHIND_LOOSE) {
            note_behind(behind, WAL_BEHIND_CONTINUED, ahead, WAL_BLOCK_BYTES);
            return WEIR_OK;
        }
        if (status == WEIR_OK)
            status =
                wal_reader_scan(ahead, WAL_BLOCK_BYTES, WAL_BLOCK_BYTES, &rest, recovery->error);
        if (status != WEIR_OK)
            return status;
        if (rest.bytes_end == 0)
            continue;
        bool begins_with_frame = rest.first_frame == WAL_BLOCK_BYTES;
        note_behind(behind, WAL_BEHIND_BYTES, ahead, WAL_BLOCK_BYTES);
        if (is_first && is_end && !begins_with_frame && behind->state == WAL_BEHIND_BYTES)
            return WEIR_OK;
        note_rest(behind, ahead, &rest, missing);
        is_first = false;
    }
    return WEIR_OK;
}

static enum weir_status look_behind(struct recovery *recovery, uint64_t offset,
                                    const struct wal_found *found, struct behind *behind)
{
    struct wal_rest rest;
    struct wal_reader *reader = &recovery->reader;
    bool has_header = found->header == WAL_HEADER_GOOD;
    bool is_end = found->header == WAL_HEADER_ZERO;
    uint64_t missing = has_header ? found->frame.seq : recovery->expected;
    uint64_t bytes_from = offset + (has_header ? found->frame_bytes : 0);
    *behind = (struct behind){.state = WAL_BEHIND_NOTHING};
    enum weir_status status =
        wal_reader_scan(reader, offset, offset + WAL_BLOCK_BYTES, &rest, recovery->error);
    if (status != WEIR_OK)
        return status;
    if (has_header && rest.bytes_end > bytes_from)
        note_behind(behind, WAL_BEHIND_BYTES, reader, bytes_from);
    note_rest(behind, reader, &rest, missing);
    status = look_at_segments(recovery, is_end, missing, behind);
    /* Where later writes do not wait, an interruption may leave parts of several. */
    bool is_loose = recovery->is_loose || (has_header && found->frame.unsynced > 0);
    if (behind->state == WAL_BEHIND_BYTES && is_loose && !is_end)
        behind->state = WAL_BEHIND_NOTHING;
    return status;
}

/* ---- the segments ---- */

struct judgement {
    struct wal_found found;
    struct behind behind;
    enum wal_verdict verdict;
    const char *why;
};

static enum weir_status judge(struct recovery *recovery, uint64_t offset,
                              struct judgement *judgement)
{
    struct wal_found *found = &judgement->found;
    enum weir_status status = wal_reader_find(&recovery->reader, offset, found, recovery->error);
    if (status != WEIR_OK)
        return status;
    struct wal_finding finding = {found->header, found->body, WAL_NUMBER_NONE, WAL_BEHIND_NOTHING};
    judgement->behind = (struct behind){.state = WAL_BEHIND_NOTHING};
    if (found->header == WAL_HEADER_GOOD)
        finding.number = number_of(recovery, recovery->previous, found->frame.seq);
    /* Where it matters. */
    if (found->body == WAL_BODY_INCOMPLETE || found->header == WAL_HEADER_ZERO ||
        found->header == WAL_HEADER_CUT)
        status = look_behind(recovery, offset, found, &judgement->behind);
    finding.behind = judgement->behind.state;
    judgement->verdict = wal_verdict(&finding, &judgement->why);
    return status;
}

static enum weir_status refuse_judged(const struct recovery *recovery, uint64_t offset,
                                      const struct judgement *judgement)
{
    const struct wal_reader *reader = &recovery->reader;
    const struct behind *behind = &judgement->behind;
    char remedy[REMEDY_BYTES];
    if (behind->state == WAL_BEHIND_NOTHING)
        return refuse_place(recovery, offset, judgement->why);
    return weir_fail(recovery->error, WEIR_CORRUPT,
                     "%s offset %" PRIu64 ": %s (%s:%" PRIu64 "); %s", reader->name, offset,
                     judgement->why, behind->name, behind->offset,
                     remedy_of(reader, offset, remedy));
}

static void note_good_frame(struct recovery *recovery, uint64_t end_offset,
                            const struct wal_found *found)
{
    struct wal_recovered *recovered = recovery->recovered;
    recovered->end_segment = recovery->reader.header.number;
    recovered->end_offset = end_offset;
    recovered->abandoned_count += recovery->abandoned_count;
    if (recovery->abandoned_count > 0) {
        recovered->abandoned_segment = recovery->abandoned.segment;
        recovered->abandoned_offset = recovery->abandoned.offset;
    }
    recovery->abandoned_count = 0;
    recovery->previous = found->frame.seq;
    recovery->is_loose = found->frame.unsynced > 0;
}

/* How much there is from `spot` on. */
static enum weir_status measure_cut(struct recovery *recovery, struct spot spot)
{
    struct wal_recovered *recovered = recovery->recovered;
    recovered->cut_segment = spot.segment;
    recovered->cut_offset = spot.offset;
    for (size_t i = recovery->segment_begin; i < recovery->segment_end; i++) {
        struct wal_rest rest;
        uint64_t number = recovery->directory.segments.list[i];
        uint64_t from = number == spot.segment ? spot.offset : WAL_BLOCK_BYTES;
        if (number < spot.segment)
            continue;
        enum weir_status status = open_ahead(recovery, i);
        if (status == WEIR_OK)
            status = wal_reader_scan(&recovery->ahead, from, UINT64_MAX, &rest, recovery->error);
        if (status != WEIR_OK)
            return status;
        if (rest.bytes_end > 0)
            recovered->cut_bytes += rest.bytes_end - from;
    }
    return WEIR_OK;
}

/* The places given up right before were parts of the same write. */
static enum weir_status cut_here(struct recovery *recovery, uint64_t offset)
{
    struct spot spot = {recovery->reader.header.number, offset};
    if (recovery->abandoned_count > 0)
        spot = recovery->abandoned;
    return measure_cut(recovery, spot);
}

static void abandon_here(struct recovery *recovery, uint64_t offset)
{
    if (recovery->abandoned_count++ == 0)
        recovery->abandoned = (struct spot){recovery->reader.header.number, offset};
}

static const char file_is_short[] = "the file is shorter than it was made";

/* A segment keeps the size it was made with, so frames at its end cannot have been lost by that. */
static bool is_cut_short(const struct recovery *recovery)
{
    const struct wal_reader *reader = &recovery->reader;
    return reader->header.number != recovery->limit.segment &&
           reader->bytes < reader->header.file_bytes;
}

/* From where the segment's frames end; *is_last: so does the log. */
static enum weir_status end_segment(struct recovery *recovery, uint64_t offset,
                                    const struct judgement *judgement, bool *is_last)
{
    *is_last = false;
    if (judgement->verdict == WAL_VERDICT_DAMAGED)
        return refuse_judged(recovery, offset, judgement);
    bool is_continued = judgement->behind.state == WAL_BEHIND_CONTINUED;
    if (is_cut_short(recovery) && !is_continued)
        return refuse_place(recovery, offset, file_is_short);
    if (judgement->verdict == WAL_VERDICT_ABANDON || is_cut_short(recovery))
        abandon_here(recovery, offset);
    *is_last =
        judgement->verdict == WAL_VERDICT_CUT || judgement->behind.state == WAL_BEHIND_NOTHING;
    if (judgement->verdict != WAL_VERDICT_CUT)
        return WEIR_OK;
    recovery->recovered->is_shortened = judgement->behind.state == WAL_BEHIND_LOOSE;
    return cut_here(recovery, offset);
}

static enum weir_status read_segment(struct recovery *recovery, bool *is_last)
{
    struct wal_reader *reader = &recovery->reader;
    uint64_t number = recovery->directory.segments.list[recovery->segment_index];
    enum weir_status status = wal_reader_open(reader, recovery->options->directory, WAL_FILE_LOG,
                                              number, recovery->error);
    if (status != WEIR_OK)
        return status;
    if (number == recovery->limit.segment && reader->bytes > recovery->limit.offset)
        reader->bytes = recovery->limit.offset;
    recovery->previous = 0;
    uint64_t offset = WAL_BLOCK_BYTES;
    for (;;) { /* each turn ends the segment or moves on by a frame */
        struct judgement judgement;
        status = judge(recovery, offset, &judgement);
        if (status != WEIR_OK)
            return status;
        bool is_new = judgement.verdict == WAL_VERDICT_TAKE;
        if (!is_new && judgement.verdict != WAL_VERDICT_PASS)
            return end_segment(recovery, offset, &judgement, is_last);
        if (is_new)
            status = take_frame(recovery, offset, &judgement.found);
        if (status != WEIR_OK)
            return status;
        if (is_new) {
            recovery->expected = judgement.found.frame.seq + 1;
            recovery->recovered->log_bytes += judgement.found.frame_bytes;
        }
        offset += judgement.found.frame_bytes;
        note_good_frame(recovery, offset, &judgement.found);
        tell_progress(recovery, offset, false);
    }
}

/* What the snapshot needs and the log has not. */
static enum weir_status check_end(struct recovery *recovery)
{
    struct wal_recovered *recovered = recovery->recovered;
    char name[WAL_NAME_BYTES];
    char snapshot[WAL_NAME_BYTES];
    recovered->next_seq = recovery->expected > 0 ? recovery->expected : recovered->snapshot_end_seq;
    if (recovered->next_seq == 0)
        recovered->next_seq = 1;
    if (recovered->next_seq >= recovered->snapshot_end_seq)
        return WEIR_OK;
    bool has_frames = recovered->end_segment > 0;
    wal_name(name, WAL_FILE_LOG, has_frames ? recovered->end_segment : recovered->snapshot);
    wal_name(snapshot, WAL_FILE_SNAPSHOT, recovered->snapshot);
    return weir_fail(recovery->error, WEIR_CORRUPT,
                     "%s offset %" PRIu64 ": the log ends before frame %" PRIu64
                     ", but %s needs it up to frame %" PRIu64 "; restore it from a copy",
                     name, has_frames ? recovered->end_offset : (uint64_t)WAL_BLOCK_BYTES,
                     recovered->next_seq, snapshot, recovered->snapshot_end_seq - 1);
}

/* Segments behind the log's end have no frames; one that was cut short may have had some. */
static enum weir_status check_unread(struct recovery *recovery)
{
    for (; recovery->segment_index < recovery->segment_end; recovery->segment_index++) {
        enum weir_status status = wal_reader_open(
            &recovery->reader, recovery->options->directory, WAL_FILE_LOG,
            recovery->directory.segments.list[recovery->segment_index], recovery->error);
        if (status != WEIR_OK)
            return status;
        if (is_cut_short(recovery))
            return refuse_place(recovery, WAL_BLOCK_BYTES, file_is_short);
    }
    return WEIR_OK;
}

static enum weir_status read_segments(struct recovery *recovery)
{
    bool is_last = false;
    recovery->segment_index = recovery->segment_begin;
    while (!is_last && recovery->segment_index < recovery->segment_end) {
        enum weir_status status = read_segment(recovery, &is_last);
        if (status != WEIR_OK)
            return status;
        recovery->done_bytes += recovery->reader.bytes;
        recovery->segment_index++;
    }
    enum weir_status status = check_unread(recovery);
    return status == WEIR_OK ? check_end(recovery) : status;
}

/* ---- the files ---- */

static enum weir_status refuse_missing(const struct recovery *recovery, uint64_t number,
                                       uint64_t there, enum wal_file_kind there_kind)
{
    char missing[WAL_NAME_BYTES];
    char name[WAL_NAME_BYTES];
    wal_name(missing, WAL_FILE_LOG, number);
    wal_name(name, there_kind, there);
    if (there_kind == WAL_FILE_SNAPSHOT)
        return weir_fail(recovery->error, WEIR_CORRUPT,
                         "%s is missing, %s needs it; restore it from a copy", missing, name);
    if (number == 1)
        return weir_fail(recovery->error, WEIR_CORRUPT,
                         "%s is missing, or a snapshot in its place: the log begins with %s; "
                         "restore it from a copy",
                         missing, name);
    return weir_fail(recovery->error, WEIR_CORRUPT,
                     "%s is missing, %s is there; restore it from a copy, or give up what follows:"
                     " weir log repair --cut-at %" PRIu64 ":0",
                     missing, name, there);
}

/* From the snapshot's segment on, without a gap. */
static enum weir_status choose_segments(struct recovery *recovery)
{
    const struct wal_numbers *segments = &recovery->directory.segments;
    const struct wal_numbers *snapshots = &recovery->directory.snapshots;
    struct wal_recovered *recovered = recovery->recovered;
    if (snapshots->count > 0)
        recovered->snapshot = snapshots->list[snapshots->count - 1];
    size_t begin = 0;
    while (begin < segments->count && segments->list[begin] < recovered->snapshot)
        begin++;
    size_t end = begin;
    uint64_t number = recovered->snapshot > 0 ? recovered->snapshot : 1;
    recovery->segment_begin = begin;
    for (; end < segments->count; end++, number++) {
        bool is_behind_limit =
            recovery->limit.segment > 0 &&
            (segments->list[end] > recovery->limit.segment ||
             (segments->list[end] == recovery->limit.segment && recovery->limit.offset == 0));
        if (is_behind_limit)
            break;
        if (segments->list[end] != number && end == begin && recovered->snapshot > 0)
            break;
        if (segments->list[end] != number)
            return refuse_missing(recovery, number, segments->list[end], WAL_FILE_LOG);
    }
    recovery->segment_end = end;
    if (begin == end && recovered->snapshot > 0)
        return refuse_missing(recovery, number, recovered->snapshot, WAL_FILE_SNAPSHOT);
    if (begin < end) {
        recovered->first_segment = segments->list[begin];
        recovered->last_segment = segments->list[end - 1];
    }
    recovered->is_empty = begin == end;
    return WEIR_OK;
}

/* Whether the file `ahead` has open belongs to the log of those before. */
static enum weir_status check_file(struct recovery *recovery)
{
    struct wal_recovered *recovered = recovery->recovered;
    const struct wal_reader *ahead = &recovery->ahead;
    bool is_first = recovery->total_bytes == 0;
    if (is_first)
        recovered->log_id = ahead->header.log_id;
    if (ahead->header.log_id != recovered->log_id)
        return weir_fail(recovery->error, WEIR_MISMATCH,
                         "%s is of another log (%016" PRIx64
                         ") than the files before it (%016" PRIx64
                         "); restore the directory from a copy",
                         ahead->name, ahead->header.log_id, recovered->log_id);
    if (ahead->header.epoch_base > recovered->epoch_base)
        recovered->epoch_base = ahead->header.epoch_base;
    recovery->total_bytes += ahead->bytes;
    return WEIR_OK;
}

/* All headers before the first record: they are few, and tell what can be told at once. */
static enum weir_status check_files(struct recovery *recovery)
{
    enum weir_status status = WEIR_OK;
    if (recovery->recovered->snapshot > 0) {
        status = wal_reader_open(&recovery->ahead, recovery->options->directory, WAL_FILE_SNAPSHOT,
                                 recovery->recovered->snapshot, recovery->error);
        if (status == WEIR_OK)
            status = check_file(recovery);
    }
    for (size_t i = recovery->segment_begin; status == WEIR_OK && i < recovery->segment_end; i++) {
        status = open_ahead(recovery, i);
        if (status == WEIR_OK)
            status = check_file(recovery);
    }
    return status;
}

static enum weir_status read_all(struct recovery *recovery)
{
    enum weir_status status = choose_segments(recovery);
    if (status == WEIR_OK)
        status = check_files(recovery);
    if (status != WEIR_OK)
        return status;
    tell_progress(recovery, 0, true);
    recovery->expected = 1;
    if (recovery->recovered->snapshot > 0)
        status = read_snapshot(recovery);
    if (status == WEIR_OK)
        status = read_segments(recovery);
    if (status == WEIR_OK)
        tell_progress(recovery, recovery->total_bytes, true);
    return status;
}

enum weir_status wal_recover_up_to(const struct wal_recovery_options *options, uint64_t segment,
                                   uint64_t offset, struct wal_recovered *recovered,
                                   struct weir_error *error)
{
    struct recovery recovery = {
        .options = options, .recovered = recovered, .error = error, .limit = {segment, offset}};
    *recovered = (struct wal_recovered){0};
    wal_reader_init(&recovery.reader, options->io, BUFFER_BYTES);
    wal_reader_init(&recovery.ahead, options->io, AHEAD_BUFFER_BYTES);
    enum weir_status status =
        wal_directory_list(&recovery.directory, options->io, options->directory, error);
    if (status == WEIR_OK)
        status = read_all(&recovery);
    wal_reader_fini(&recovery.reader);
    wal_reader_fini(&recovery.ahead);
    wal_directory_fini(&recovery.directory);
    return status;
}

enum weir_status wal_recover(const struct wal_recovery_options *options,
                             struct wal_recovered *recovered, struct weir_error *error)
{
    return wal_recover_up_to(options, 0, 0, recovered, error);
}

#include "broker/wal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/log.h"
#include "broker/wal_directory.h"

enum {
    WAL_ZERO_BYTES = 1024 * 1024, /* of one write that fills a new segment */
    WAL_TRIES = 2,                /* segments a frame is written to */
    WAL_ASK_AGAIN_MS = 5000,      /* until a segment that could not be made is tried again */
    WAL_SENTENCE_BYTES = 256,
};

/* A segment file that is open for writing. */
struct wal_segment {
    uint64_t number;
    uint64_t bytes;
    int fd;
};

enum wal_next_state { WAL_NEXT_NONE, WAL_NEXT_PREPARING, WAL_NEXT_READY, WAL_NEXT_FAILED };

/* The segment behind the current one; `segment` and `problem` are the job's while it is prepared. */
struct wal_next {
    struct background_job job;
    struct wal *wal;
    enum wal_next_state state;
    struct wal_segment segment;
    char problem[WAL_SENTENCE_BYTES];
};

/* Level WRITTEN: a segment to be synced, now and then, and when it is full. */
struct wal_sync {
    struct background_job job;
    struct wal *wal;
    int fd;
    int result;
    uint64_t seq;     /* the newest frame there when it was begun */
    bool is_last;     /* closed afterwards, and the struct is freed */
    bool only_closes; /* a segment that was given up: nothing is known of it, synced or not */
};

struct wal {
    struct wal_options options;
    char directory[WAL_PATH_BYTES];
    uint64_t log_id;
    struct wal_segment current;
    uint64_t offset; /* of the next frame */
    uint64_t next_seq;
    uint64_t log_bytes;
    struct wal_next next;

    struct wal_write *write; /* under way */
    struct wal_device_request request;
    unsigned tries;      /* segments it has been given to */
    bool is_waiting;     /* ... for the next segment to be prepared */
    bool wants_rotation; /* the next frame goes to the next segment */

    /* Level WRITTEN. */
    struct wal_sync sync;
    uint64_t synced_ms;
    uint64_t synced_seq; /* the newest frame known to be synced */
    bool is_dirty;
    bool has_left_unsynced; /* frames in a segment that was given up, or whose sync failed */

    uint64_t asked_ms; /* for the next segment */
    bool is_closing;
    char problem[WAL_SENTENCE_BYTES]; /* why there is no next segment */

    char failure[WAL_SENTENCE_BYTES];
};

/* ---- opening files ---- */

/* The level's way to write: past the page cache where the file system lets us. */
static int wal_open_file(const struct wal *wal, const char *path, int flags)
{
    const struct wal_io *io = wal->options.io;
    int fd = -EINVAL;
    if (wal->options.level == WAL_LEVEL_SYNCED)
        fd = io->open(io->context, path, flags | O_DIRECT);
    return fd == -EINVAL ? io->open(io->context, path, flags) : fd;
}

static int wal_write_block(const struct wal *wal, int fd, const char *data, size_t bytes,
                           uint64_t offset)
{
    const struct wal_io *io = wal->options.io;
    while (bytes > 0) { /* each turn writes something, or fails */
        ssize_t written = io->write(io->context, fd, data, bytes, offset);
        if (written <= 0)
            return written == 0 ? -EIO : (int)written;
        if ((size_t)written < bytes)
            written -= written % WAL_BLOCK_BYTES;
        if (written == 0)
            return -ENOSPC; /* less than a block: O_DIRECT does not go on from there */
        data += written;
        bytes -= (size_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

static int wal_write_header(const struct wal *wal, const struct wal_segment *segment, char *block)
{
    const struct wal_file_header header = {
        .kind = WAL_FILE_LOG,
        .log_id = wal->log_id,
        .number = segment->number,
        .epoch_base = wal->options.epoch_base,
        .created_ms = wal->options.now_ms,
        .file_bytes = segment->bytes,
    };
    wal_file_header_encode(block, &header);
    return wal_write_block(wal, segment->fd, block, WAL_BLOCK_BYTES, 0);
}

/* Zeros to the end, so that frames change no metadata later; then the header. */
static int wal_fill(const struct wal *wal, const struct wal_segment *segment)
{
    const struct wal_io *io = wal->options.io;
    char *zeros = aligned_alloc(WAL_BLOCK_BYTES, WAL_ZERO_BYTES);
    if (!zeros)
        return -ENOMEM;
    memset(zeros, 0, WAL_ZERO_BYTES);
    int result = 0;
    for (uint64_t at = 0; at < segment->bytes && result == 0; at += WAL_ZERO_BYTES) {
        uint64_t bytes =
            segment->bytes - at < WAL_ZERO_BYTES ? segment->bytes - at : WAL_ZERO_BYTES;
        result = wal_write_block(wal, segment->fd, zeros, bytes, at);
    }
    if (result == 0)
        result = wal_write_header(wal, segment, zeros);
    if (result == 0)
        result = io->sync(io->context, segment->fd);
    free(zeros);
    return result;
}

/* Make segment->number; its name appears when it is whole. 0 or a negated errno. */
static int wal_make_segment(const struct wal *wal, struct wal_segment *segment)
{
    const struct wal_io *io = wal->options.io;
    char path[WAL_PATH_BYTES];
    char making[WAL_PATH_BYTES + 8];
    wal_path(path, wal->directory, WAL_FILE_LOG, segment->number);
    (void)snprintf(making, sizeof making, "%s.new", path);
    segment->bytes = wal->options.segment_bytes;
    segment->fd = wal_open_file(wal, making, O_RDWR | O_CREAT | O_TRUNC);
    if (segment->fd < 0)
        return segment->fd;
    int result = wal_fill(wal, segment);
    if (result == 0)
        result = io->rename(io->context, making, path);
    if (result == 0)
        result = io->sync_directory(io->context, wal->directory);
    if (result < 0) {
        (void)io->close(io->context, segment->fd);
        (void)io->remove(io->context, making);
        segment->fd = -1;
    }
    return result;
}

static int wal_open_segment(const struct wal *wal, struct wal_segment *segment)
{
    const struct wal_io *io = wal->options.io;
    char path[WAL_PATH_BYTES];
    wal_path(path, wal->directory, WAL_FILE_LOG, segment->number);
    segment->fd = wal_open_file(wal, path, O_RDWR);
    if (segment->fd < 0)
        return segment->fd;
    int result = io->size(io->context, segment->fd, &segment->bytes);
    if (result < 0) {
        (void)io->close(io->context, segment->fd);
        segment->fd = -1;
    }
    return result;
}

/* ---- the next segment ---- */

static void wal_next_run(struct background_job *job)
{
    struct wal_next *next = job->owner;
    int result = wal_make_segment(next->wal, &next->segment);
    next->problem[0] = '\0';
    if (result == 0)
        return;
    char name[WAL_NAME_BYTES];
    wal_name(name, WAL_FILE_LOG, next->segment.number);
    (void)snprintf(next->problem, sizeof next->problem,
                   "the log cannot grow: %s of %llu bytes cannot be made in data_dir: %s", name,
                   (unsigned long long)next->segment.bytes, strerror(-result));
}

static void wal_continue(struct wal *wal);

static void wal_next_done(struct background_job *job)
{
    struct wal_next *next = job->owner;
    struct wal *wal = next->wal;
    bool has_failed = next->problem[0] != '\0';
    next->state = has_failed ? WAL_NEXT_FAILED : WAL_NEXT_READY;
    if (wal->is_closing)
        return;
    if (has_failed && wal->problem[0] == '\0')
        log_line("event=log_cannot_grow reason=\"%s\"", next->problem);
    if (!has_failed && wal->problem[0] != '\0')
        log_line("event=log_can_grow");
    (void)snprintf(wal->problem, sizeof wal->problem, "%s", next->problem);
    if (wal->is_waiting)
        wal_continue(wal);
}

static void wal_prepare(struct wal *wal)
{
    struct wal_next *next = &wal->next;
    next->state = WAL_NEXT_PREPARING;
    next->segment = (struct wal_segment){.number = wal->current.number + 1, .fd = -1};
    next->job = (struct background_job){.run = wal_next_run, .done = wal_next_done, .owner = next};
    background_start(wal->options.background, &next->job);
}

/* ---- level WRITTEN: syncing ---- */

static void wal_fail(struct wal *wal, const char *what, int sys_errno);

static void wal_sync_run(struct background_job *job)
{
    struct wal_sync *sync = job->owner;
    const struct wal_io *io = sync->wal->options.io;
    sync->result = sync->only_closes ? 0 : io->sync(io->context, sync->fd);
    if (sync->is_last)
        (void)io->close(io->context, sync->fd);
}

static void wal_sync_done(struct background_job *job)
{
    struct wal_sync *sync = job->owner;
    /* Behind frames that stay unsynced nothing counts as synced: they may be gone where later ones are. */
    if (sync->result < 0)
        wal_fail(sync->wal, "fdatasync", -sync->result);
    else if (!sync->wal->has_left_unsynced && sync->seq > sync->wal->synced_seq)
        sync->wal->synced_seq = sync->seq;
    if (sync->is_last)
        free(sync);
}

/* What it is told of wal, fd and flags stays as it is. */
static void wal_sync_start(struct wal *wal, struct wal_sync *sync)
{
    sync->job = (struct background_job){.run = wal_sync_run, .done = wal_sync_done, .owner = sync};
    sync->seq = wal->next_seq - 1;
    background_start(wal->options.background, &sync->job);
}

/* A segment's frames stay as they are from here on. At level WRITTEN the background may be about to
 * sync it, so that it is closed there, behind that. */
static void wal_leave_segment(struct wal *wal, int fd, bool is_given_up)
{
    const struct wal_io *io = wal->options.io;
    struct wal_sync *sync = NULL;
    bool wants_sync = wal->options.level == WAL_LEVEL_WRITTEN && !is_given_up;
    wal->has_left_unsynced |= wal->options.level == WAL_LEVEL_WRITTEN && is_given_up;
    if (wants_sync || wal->sync.job.in_flight)
        sync = malloc(sizeof *sync);
    if (sync) {
        *sync =
            (struct wal_sync){.wal = wal, .fd = fd, .is_last = true, .only_closes = is_given_up};
        wal_sync_start(wal, sync);
        return;
    }
    /* Without memory the sync is made here, and takes its time. */
    int result = wants_sync ? io->sync(io->context, fd) : 0;
    if (result < 0)
        wal_fail(wal, "fdatasync", -result);
    (void)io->close(io->context, fd);
}

static void wal_next_segment(struct wal *wal, bool is_given_up)
{
    int left = wal->current.fd;
    weir_assert(wal->next.state == WAL_NEXT_READY);
    wal->current = wal->next.segment;
    wal->offset = WAL_BLOCK_BYTES;
    wal->wants_rotation = false;
    wal_device_use_file(wal->options.device, wal->current.fd);
    wal_leave_segment(wal, left, is_given_up);
    wal_prepare(wal);
}

/* ---- writing ---- */

static void wal_finish(struct wal *wal, enum weir_status status)
{
    struct wal_write *write = wal->write;
    wal->write = NULL;
    write->done(write, status);
}

static void wal_fail(struct wal *wal, const char *what, int sys_errno)
{
    if (wal->failure[0] != '\0')
        return;
    (void)snprintf(wal->failure, sizeof wal->failure,
                   "the log has failed (%.60s: %.40s): nothing is written until weir is restarted; "
                   "whether unanswered writes are kept is not known",
                   what, strerror(sys_errno));
    log_line("event=log_failed reason=\"%s: %s\"", what, strerror(sys_errno));
}

static void wal_start_write(struct wal *wal)
{
    struct wal_write *write = wal->write;
    wal_device_write(wal->options.device, &wal->request, wal->current.fd,
                     write->frame + write->written_bytes, write->frame_bytes - write->written_bytes,
                     wal->offset + write->written_bytes, wal->options.level == WAL_LEVEL_SYNCED);
}

/* Give the frame under way to a segment with room for it. */
static void wal_continue(struct wal *wal)
{
    struct wal_write *write = wal->write;
    bool is_given_up = wal->tries > 0;
    bool fits = wal->offset + write->frame_bytes <= wal->current.bytes;
    wal->is_waiting = false;
    if (!fits || is_given_up || wal->wants_rotation) {
        if (wal->next.state == WAL_NEXT_NONE || wal->next.state == WAL_NEXT_PREPARING) {
            wal->is_waiting = true;
            return;
        }
        if (wal->next.state == WAL_NEXT_FAILED) {
            wal_fail(wal, wal->problem, EIO);
            wal_finish(wal, WEIR_SYSTEM);
            return;
        }
        wal_next_segment(wal, is_given_up);
    }
    const struct wal_place place = {wal->log_id, wal->current.number, wal->offset};
    size_t frame_bytes = wal_frame_encode(write->frame, &write->header, &place);
    weir_assert(frame_bytes == write->frame_bytes);
    weir_assert(wal->offset + frame_bytes <= wal->current.bytes);
    write->written_bytes = 0;
    wal_start_write(wal);
}

static void wal_give_up_segment(struct wal *wal, int sys_errno)
{
    char name[WAL_NAME_BYTES];
    wal_name(name, WAL_FILE_LOG, wal->current.number);
    log_line("event=log_write_failed file=%s offset=%llu reason=\"%s\"", name,
             (unsigned long long)wal->offset, strerror(sys_errno));
    wal->tries++;
    if (wal->tries < WAL_TRIES) {
        wal_continue(wal);
        return;
    }
    wal_fail(wal, "two segments in a row could not be written", sys_errno);
    wal_finish(wal, WEIR_SYSTEM);
}

static void wal_written(struct wal_device_request *request, int32_t result)
{
    struct wal *wal = request->owner;
    struct wal_write *write = wal->write;
    if (result < 0) {
        wal_give_up_segment(wal, -result);
        return;
    }
    size_t written = write->written_bytes + (size_t)result;
    if (written < write->frame_bytes) {
        /* Short: what is behind the last whole block is written again. None at all is no progress. */
        written -= written % WAL_BLOCK_BYTES;
        if (written == write->written_bytes) {
            wal_give_up_segment(wal, ENOSPC);
            return;
        }
        write->written_bytes = written;
        wal_start_write(wal);
        return;
    }
    wal->offset += write->frame_bytes;
    wal->log_bytes += write->frame_bytes;
    wal->next_seq++;
    wal->is_dirty = true;
    wal_finish(wal, WEIR_OK);
}

void wal_write(struct wal *wal, struct wal_write *write, char *frame, size_t payload_bytes,
               uint32_t record_count, uint64_t now_ms)
{
    weir_assert(!wal->write);
    weir_assert(wal->failure[0] == '\0');
    write->frame = frame;
    write->frame_bytes = wal_frame_bytes(payload_bytes);
    write->header = (struct wal_frame_header){
        .seq = wal->next_seq,
        .time_ms = now_ms,
        .payload_bytes = (uint32_t)payload_bytes,
        .record_count = record_count,
    };
    if (wal->options.level == WAL_LEVEL_WRITTEN)
        write->header.unsynced = (uint32_t)(wal->next_seq - wal->synced_seq);
    wal->write = write;
    wal->tries = 0;
    wal_continue(wal);
}

void wal_tick(struct wal *wal, uint64_t now_ms)
{
    if (wal->failure[0] != '\0')
        return;
    if (wal->next.state == WAL_NEXT_FAILED && now_ms - wal->asked_ms >= WAL_ASK_AGAIN_MS) {
        wal->asked_ms = now_ms;
        wal_prepare(wal);
    }
    if (wal->options.level != WAL_LEVEL_WRITTEN || !wal->is_dirty || wal->sync.job.in_flight ||
        now_ms - wal->synced_ms < wal->options.sync_interval_ms)
        return;
    wal->synced_ms = now_ms;
    wal->is_dirty = false;
    wal->sync = (struct wal_sync){.wal = wal, .fd = wal->current.fd};
    wal_sync_start(wal, &wal->sync);
}

/* ---- room ---- */

uint64_t wal_next_seq(const struct wal *wal)
{
    return wal->next_seq;
}

bool wal_has_room(const struct wal *wal, size_t frame_bytes)
{
    if (wal->failure[0] != '\0')
        return false;
    if (!wal->wants_rotation && frame_bytes <= wal->current.bytes - wal->offset)
        return true;
    return wal->next.state == WAL_NEXT_READY &&
           frame_bytes <= wal->next.segment.bytes - WAL_BLOCK_BYTES;
}

const char *wal_problem(const struct wal *wal)
{
    if (wal->failure[0] != '\0')
        return wal->failure;
    return wal->problem[0] != '\0' ? wal->problem : NULL;
}

const char *wal_failure(const struct wal *wal)
{
    return wal->failure[0] == '\0' ? NULL : wal->failure;
}

uint64_t wal_log_bytes(const struct wal *wal)
{
    return wal->log_bytes;
}

uint64_t wal_log_id(const struct wal *wal)
{
    return wal->log_id;
}

bool wal_rotate(struct wal *wal, uint64_t *number, uint64_t *first_seq)
{
    if (wal->next.state != WAL_NEXT_READY || wal->failure[0] != '\0')
        return false;
    *number = wal->next.segment.number;
    *first_seq = wal->next_seq + (wal->write ? 1 : 0);
    if (wal->write)
        wal->wants_rotation = true;
    else
        wal_next_segment(wal, false);
    return true;
}

/* ---- open and close ---- */

/* What an earlier life at level WRITTEN has left to the kernel is answered from now on. */
static int wal_sync_earlier(const struct wal *wal, const struct wal_recovered *recovered)
{
    const struct wal_io *io = wal->options.io;
    int result = 0;
    for (uint64_t number = recovered->first_segment;
         number != 0 && number < wal->current.number && result == 0; number++) {
        char path[WAL_PATH_BYTES];
        wal_path(path, wal->directory, WAL_FILE_LOG, number);
        int fd = io->open(io->context, path, O_RDWR);
        result = fd < 0 ? fd : io->sync(io->context, fd);
        if (fd >= 0)
            (void)io->close(io->context, fd);
    }
    return result;
}

static enum weir_status wal_open_current(struct wal *wal, const struct wal_recovered *recovered,
                                         struct weir_error *error)
{
    wal->current.number =
        recovered->end_segment != 0 ? recovered->end_segment : recovered->first_segment;
    wal->offset = recovered->end_segment != 0 ? recovered->end_offset : WAL_BLOCK_BYTES;
    bool is_new = wal->current.number == 0;
    if (is_new)
        wal->current.number = recovered->snapshot > 0 ? recovered->snapshot : 1;
    int result = wal_sync_earlier(wal, recovered);
    if (result == 0)
        result =
            is_new ? wal_make_segment(wal, &wal->current) : wal_open_segment(wal, &wal->current);
    if (result == 0 && !is_new) {
        /* One sector, which a disk writes as a whole: epochs of this life are above its base. */
        char *block = aligned_alloc(WAL_BLOCK_BYTES, WAL_BLOCK_BYTES);
        result = block ? wal_write_header(wal, &wal->current, block) : -ENOMEM;
        if (result == 0)
            result = wal->options.io->sync(wal->options.io->context, wal->current.fd);
        free(block);
    }
    if (result == 0)
        return WEIR_OK;
    char name[WAL_NAME_BYTES];
    wal_name(name, WAL_FILE_LOG, wal->current.number);
    return weir_fail_errno(error, -result, "%s in data_dir %s cannot be written", name,
                           wal->directory);
}

enum weir_status wal_open(struct wal **wal, const struct wal_options *options,
                          const struct wal_recovered *recovered, struct weir_error *error)
{
    struct wal *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the log");
    opened->options = *options;
    (void)snprintf(opened->directory, sizeof opened->directory, "%s", options->directory);
    opened->log_id = recovered->is_empty ? options->log_id : recovered->log_id;
    opened->next_seq = recovered->next_seq;
    opened->synced_seq = recovered->next_seq - 1;
    opened->log_bytes = recovered->log_bytes;
    opened->synced_ms = options->now_ms;
    opened->next.wal = opened;
    opened->next.segment.fd = -1;
    opened->request = (struct wal_device_request){.done = wal_written, .owner = opened};
    opened->current.fd = -1;
    enum weir_status status = wal_open_current(opened, recovered, error);
    if (status != WEIR_OK) {
        (void)wal_close(opened);
        return status;
    }
    wal_device_use_file(options->device, opened->current.fd);
    if (recovered->last_segment > opened->current.number) {
        /* Prepared by the life before, or left behind by it when it was abandoned in turn. */
        opened->next.segment.number = opened->current.number + 1;
        opened->next.state =
            wal_open_segment(opened, &opened->next.segment) == 0 ? WAL_NEXT_READY : WAL_NEXT_NONE;
    }
    if (opened->next.state == WAL_NEXT_NONE)
        wal_prepare(opened);
    *wal = opened;
    return WEIR_OK;
}

void wal_stop(struct wal *wal)
{
    if (wal)
        wal->is_closing = true;
}

bool wal_close(struct wal *wal)
{
    if (!wal)
        return false;
    const struct wal_io *io = wal->options.io;
    bool is_synced = wal->failure[0] == '\0' && !wal->has_left_unsynced;
    if (wal->options.level == WAL_LEVEL_WRITTEN && wal->is_dirty && wal->current.fd >= 0 &&
        io->sync(io->context, wal->current.fd) < 0) {
        log_line("event=log_not_synced reason=\"fdatasync failed at the end\"");
        is_synced = false;
    }
    if (wal->current.fd >= 0)
        (void)io->close(io->context, wal->current.fd);
    if (wal->next.segment.fd >= 0)
        (void)io->close(io->context, wal->next.segment.fd);
    free(wal);
    return is_synced;
}

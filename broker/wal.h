/* broker/wal.h -- the log's writer: frames go to segments in order, one write at a time; each is
 * finished (durable as far as the level says) before the next begins.
 *
 *   wal_write() ──▶ [frame] ──device──▶ segment 7 ... segment 8 (prepared in the background)
 *        done() ◀──── written, or written and synced
 *
 * The caller collects records into a frame while the one before is being written: group commit
 * (engine.h).
 *
 * Levels:   WRITTEN: the kernel has it; fdatasync(2) follows every `sync_interval_ms` in the
 *           background. SYNCED: each frame is written with O_DIRECT and synced, into a segment that
 *           was filled with zeros before, so that no write changes the file's metadata; where the
 *           file system refuses O_DIRECT, pwrite(2) and fdatasync(2).
 * Space:    the next segment is prepared (reserved, zeroed, synced, named) before the current one is
 *           full, so that a full disk is noticed before a write is applied: wal_has_room().
 * Failures: a short write is continued. When a write fails, its segment is given up, for what a failed
 *           sync has left on the disk is not known, and the frame is written once more, to the next
 *           segment. When that fails too, or none is prepared, the log has failed: nothing is written
 *           any more until a restart.
 *
 * Process and thread: the broker's loop thread; segments are prepared by its background thread.
 * Memory:   a frame's memory is the caller's and stays untouched until done().
 * Errors:   opening: wal_recovery.h's; REFUSED: another process uses the directory.
 */
#ifndef WEIR_BROKER_WAL_H
#define WEIR_BROKER_WAL_H

#include "broker/background.h"
#include "broker/wal_device.h"
#include "broker/wal_recovery.h"

enum wal_level { WAL_LEVEL_WRITTEN, WAL_LEVEL_SYNCED };

struct wal_options {
    const char *directory;
    const struct wal_io *io;
    struct background *background;
    struct wal_device *device;
    enum wal_level level;
    uint64_t segment_bytes;
    uint64_t sync_interval_ms; /* WRITTEN */
    uint64_t log_id;           /* of a new log */
    uint64_t epoch_base;       /* of this life, written into the segments it makes */
    uint64_t now_ms;
};

struct wal;

struct wal_write {
    /* OK, or the failure whose sentence wal_failure() has. */
    void (*done)(struct wal_write *write, enum weir_status status);
    void *owner;
    /* wal.c's own */
    char *frame;
    size_t frame_bytes, written_bytes;
    struct wal_frame_header header;
};

/* Goes on behind what was recovered, with the directory locked by the caller. Blocks. */
enum weir_status wal_open(struct wal **wal, const struct wal_options *options,
                          const struct wal_recovered *recovered,
                          struct weir_error *error) WEIR_MUST_CHECK;
/* Nothing is begun any more when background work ends. Before background_close(). NULL is fine. */
void wal_stop(struct wal *wal);
/* At level WRITTEN syncs. Behind background_close() and wal_device_close(). True: every frame that was
 * written is on the disk. False for NULL. */
bool wal_close(struct wal *wal);

/* A frame's number is given when it is begun: frames are written in this order. */
uint64_t wal_next_seq(const struct wal *wal);
/* One write at a time. `frame` has its records from WAL_FRAME_HEADER_BYTES on and room for
 * wal_frame_bytes(). done() comes from the loop, never from inside. */
void wal_write(struct wal *wal, struct wal_write *write, char *frame, size_t payload_bytes,
               uint32_t record_count, uint64_t now_ms);
/* Room for so many more bytes of frames, those not yet written included. When not, the cause (a full
 * disk, ...) is in wal_problem(), and NULL there means: being prepared, ask again. */
bool wal_has_room(const struct wal *wal, size_t frame_bytes);
const char *wal_problem(const struct wal *wal);
/* NULL while the log can be written, else why not; for good. */
const char *wal_failure(const struct wal *wal);
/* About once a second: what is due, and what could not be done before. */
void wal_tick(struct wal *wal, uint64_t now_ms);

/* ---- for snapshots ---- */

/* Bytes of frames written since the log was opened, and those that were behind the snapshot then. */
uint64_t wal_log_bytes(const struct wal *wal);
uint64_t wal_log_id(const struct wal *wal);
/* Frames not given to wal_write() yet, `*first_seq` and later ones, go to segment `*number` and later
 * ones. False: it is not prepared yet, ask again. */
bool wal_rotate(struct wal *wal, uint64_t *number, uint64_t *first_seq);

#endif

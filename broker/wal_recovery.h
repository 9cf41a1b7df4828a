/* broker/wal_recovery.h -- reading a log directory: which files there are, what each place of them
 * means, and every record in order.
 *
 *   DIR/lock                           held by the one process that may write here (flock(2))
 *   DIR/log-00000000000000000007       segment 7
 *   DIR/snapshot-00000000000000000007  everything of segments below 7
 *   DIR/life                           how the last life went (wal_life.h)
 *   DIR/NAME.new                        being made; of no meaning after a crash
 *
 * A log is its newest snapshot (none: empty) and the segments from the snapshot's number on, without a
 * gap; segments below it and older snapshots are superfluous and not read. Frames are numbered
 * through, so a frame that is missing is noticed wherever it was. A snapshot was made while writes went
 * on, so it is whole only with the frames up to the one its last record names: a log that ends before
 * is refused.
 *
 * What is found at the place where the next frame should be is judged by a table of conditions
 * (wal_verdict(), the rows are in wal_verdict.c): header, body, completeness, number, and whether
 * anything follows it. A write that was interrupted leaves an incomplete frame behind which nothing
 * follows: nobody was told that it is kept, so it is cut off and that is said. Everything else that is
 * not as written is damage: it is never passed over; the reader stops with file and offset, and people
 * decide (`weir log repair`).
 *
 * What follows is looked for on all blocks of the rest of the segment and in the segments behind it.
 * A valid frame there proves that the one missing was synced, unless that frame says that it was
 * written before (wal_format.h, "not yet known to be synced"): so does a power loss at a level that
 * syncs later leave holes among the last frames, and the log ends at the first.
 *
 * When a write fails while the disk lives on, the writer abandons the segment and writes the same
 * frame to the next one (wal.h). So an incomplete frame at the end of a segment is fine if the next
 * segment goes on with that frame's number; and a segment may begin with frames that were seen
 * already, which are passed over.
 *
 * What no reader can notice: the loss of the very last frame's sectors (zeros), which looks like an
 * interrupted write; the loss of whole frames at the log's end to zeros; the last segments' removal.
 *
 * Process and thread: any one; blocks. Memory: a buffer of a few frames; `record` spans are valid
 * during the callback.
 * Errors: CORRUPT with file, offset, what is wrong there and the remedy; MISMATCH: another version's
 * files, or files of two logs; SYSTEM; what `take` returns, unless it is OK.
 */
#ifndef WEIR_BROKER_WAL_RECOVERY_H
#define WEIR_BROKER_WAL_RECOVERY_H

#include "broker/wal_format.h"
#include "broker/wal_io.h"

enum {
    WAL_PATH_BYTES = 512, /* directory and file name with NUL; a longer directory is refused */
    WAL_SEGMENTS_MAX = 65536,
};

/* "log-..." or "snapshot-..." of a number, behind `directory`, which is not too long. */
void wal_path(char path[WAL_PATH_BYTES], const char *directory, enum wal_file_kind kind,
              uint64_t number);

/* ---- what a place means ---- */

/* The first 48 bytes: a header that is good for this place; zeros, and so is the rest of the file;
 * what an interrupted write leaves of a header (zeros, with bytes behind them, or a part of it with
 * zeros behind it up to the file's end); anything else. */
enum wal_header_state { WAL_HEADER_GOOD, WAL_HEADER_ZERO, WAL_HEADER_CUT, WAL_HEADER_BAD };
/* INCOMPLETE: wal_frame_is_complete() says no, or the file ends before the frame. NONE: no header. */
enum wal_body_state { WAL_BODY_GOOD, WAL_BODY_INCOMPLETE, WAL_BODY_BAD, WAL_BODY_NONE };
/* SEEN: lower, and the segment has begun with such. AHEAD: any other number that does not follow. */
enum wal_number_state { WAL_NUMBER_NEXT, WAL_NUMBER_SEEN, WAL_NUMBER_AHEAD, WAL_NUMBER_NONE };
enum wal_behind_state {
    WAL_BEHIND_NOTHING, /* zeros, and no file that is not zeros */
    /* Bytes that are no frame: in this file behind the frame, or where the next segment begins. */
    WAL_BEHIND_BYTES,
    WAL_BEHIND_CONTINUED, /* no frame in this file; the next segment begins with this one, or with one
                             seen */
    WAL_BEHIND_LOOSE,     /* valid frames, all written before this one was synced */
    WAL_BEHIND_FRAMES,    /* a valid frame that was written when this one was synced */
};

struct wal_finding {
    enum wal_header_state header;
    enum wal_body_state body;
    enum wal_number_state number;
    enum wal_behind_state behind;
};

enum wal_verdict {
    WAL_VERDICT_TAKE,    /* the next frame */
    WAL_VERDICT_PASS,    /* a frame seen already */
    WAL_VERDICT_END,     /* the segment's end */
    WAL_VERDICT_CUT,     /* an interrupted write: the end, and its remains are cut off */
    WAL_VERDICT_ABANDON, /* a failed write whose frame is in the next segment: the segment's end */
    WAL_VERDICT_DAMAGED, /* refuse */
};

/* The one row of the table that fits; `why` (may be NULL) is its sentence. */
enum wal_verdict wal_verdict(const struct wal_finding *finding, const char **why);
/* How many rows fit: one, whatever the finding. */
size_t wal_verdict_rows(const struct wal_finding *finding);

/* ---- reading a directory ---- */

struct wal_position {
    enum wal_file_kind kind;
    uint64_t number; /* of the file */
    uint64_t offset; /* of the frame */
    uint64_t seq;    /* of the frame */
    uint64_t time_ms;
};

struct wal_recovery_options {
    const struct wal_io *io;
    const char *directory;
    /* Each record: the snapshot's, then the log's. NULL: only check. A record that could not be in such
     * a file is refused before. */
    enum weir_status (*take)(void *context, const struct wal_position *position,
                             const struct wal_record *record, struct weir_error *error);
    /* Each frame of log or snapshot before its records; may be NULL. */
    enum weir_status (*take_frame)(void *context, const struct wal_position *position,
                                   const struct wal_frame_header *header);
    /* Now and then: bytes read so far of so many (file sizes; an estimate). May be NULL. */
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

/* What was found, and where a writer goes on. */
struct wal_recovered {
    bool is_empty; /* no files: a new log */
    uint64_t log_id;
    uint64_t epoch_base;      /* the highest of all files */
    uint64_t next_seq;        /* number of the next frame */
    uint64_t snapshot;        /* its number; 0: none */
    uint64_t first_segment;   /* 0: none */
    uint64_t last_segment;    /* 0: none */
    uint64_t end_offset;      /* in the last segment that has frames: behind its last good one */
    uint64_t end_segment;     /* that segment; 0: none */
    uint64_t log_bytes;       /* of frames behind the snapshot */
    uint64_t snapshot_bytes;  /* file size */
    uint64_t frames, records; /* of snapshot and log */
    /* An interrupted write at the end; cut_bytes 0: none. The bytes are up to the last that is not
     * zero, those of later segments included. */
    uint64_t cut_segment, cut_offset, cut_bytes;
    /* Frames whose write had ended are among what was cut off, or are gone before that: some that were
     * written later are there. */
    bool is_shortened;
    /* Remains of failed writes whose frames are in the next segment, and segments cut short behind
     * which nothing is missing; the place of the latest. Harmless, and to be told. */
    uint64_t abandoned_count, abandoned_segment, abandoned_offset;
    uint64_t snapshot_end_seq; /* WAL_END's: first frame after the snapshot was complete; 0 none */
};

/* Reads, and changes nothing. */
enum weir_status wal_recover(const struct wal_recovery_options *options,
                             struct wal_recovered *recovered,
                             struct weir_error *error) WEIR_MUST_CHECK;

/* ---- changing a directory that nobody serves ---- */

/* Zeros over an interrupted write and everything behind it, synced; removes NAME.new and files a newer
 * snapshot has made superfluous. Whenever it ends early, the directory reads as before. */
enum weir_status wal_clean(const struct wal_io *io, const char *directory,
                           const struct wal_recovered *recovered,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Cut the log at `offset` of `segment`: later segments are removed, the last one first, and the
 * segment is replaced by a copy with zeros from there on. What is cut off is lost. `offset` is where a
 * frame starts or where the reader has stopped; 0 removes the segment too. INVALID: the log does not
 * reach as far or has a frame across that place. A snapshot that needs frames from there on is refused
 * as in wal_recover(), and so is other damage before it. Whenever it ends early, the directory is as
 * before, but for segments that were to go, and positions of before fit it no more (wal_life.h). */
enum weir_status wal_cut(const struct wal_io *io, const char *directory, uint64_t segment,
                         uint64_t offset, struct weir_error *error) WEIR_MUST_CHECK;
/* Make the directory if need be and lock it; *fd is to be kept open. REFUSED: another process has it.
 * Closing it with io->close unlocks. */
enum weir_status wal_lock(const struct wal_io *io, const char *directory, int *fd,
                          struct weir_error *error) WEIR_MUST_CHECK;

#endif

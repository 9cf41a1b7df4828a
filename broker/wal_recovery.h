/* broker/wal_recovery.h -- reading a log directory: which files there are, what each place of them
 * means, and every record in order.
 *
 *   DIR/lock                         held by the one process that may write here (flock(2))
 *   DIR/log-00000000000000000007     segment 7
 *   DIR/snapshot-0000000000000007    everything of segments below 7
 *   DIR/*.new                        being made; of no meaning after a crash
 *
 * A log is its newest snapshot (none: empty) and the segments from the snapshot's number on, without a
 * gap. Frames are numbered through, so a frame that is missing is noticed wherever it was.
 *
 * What is found at the place where the next frame should be is judged by a table of conditions
 * (wal_verdict(), the rows are in wal_recovery.c): header, body, completeness, number, and whether
 * anything valid follows it. A write that was interrupted leaves an incomplete frame behind which
 * nothing follows: nobody was told that it is kept, so it is cut off and that is said. Everything
 * else that is not as written is damage: it is never passed over; the reader stops with file and
 * offset, and people decide (`weir log repair`).
 *
 * When a write fails while the disk lives on, the writer abandons the segment and writes the same
 * frame to the next one (wal.h). So an incomplete frame at the end of a segment is fine if the next
 * segment goes on with that frame's number, and frames seen already are passed over.
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

/* "log-..." or "snapshot-..." of a number, behind `directory`. */
void wal_path(char path[WAL_PATH_BYTES], const char *directory, enum wal_file_kind kind,
              uint64_t number);

/* ---- what a place means ---- */

enum wal_header_state { WAL_HEADER_GOOD, WAL_HEADER_ZERO, WAL_HEADER_CUT, WAL_HEADER_BAD };
enum wal_body_state { WAL_BODY_GOOD, WAL_BODY_INCOMPLETE, WAL_BODY_BAD, WAL_BODY_NONE };
enum wal_number_state { WAL_NUMBER_NEXT, WAL_NUMBER_SEEN, WAL_NUMBER_AHEAD, WAL_NUMBER_NONE };
enum wal_behind_state {
    WAL_BEHIND_NOTHING,   /* zeros only, or bytes that are no frame of this place */
    WAL_BEHIND_CONTINUED, /* nothing in this file, and the next segment begins with this frame */
    WAL_BEHIND_FRAMES,    /* a valid frame in this file, or in later ones */
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
    /* Each record: the snapshot's, then the log's. NULL: only check. */
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
    uint64_t epoch_base;     /* the highest of all files */
    uint64_t next_seq;       /* number of the next frame */
    uint64_t snapshot;       /* its number; 0: none */
    uint64_t first_segment;  /* 0: none */
    uint64_t last_segment;   /* 0: none */
    uint64_t end_offset;     /* in the last segment that has frames: behind its last good one */
    uint64_t end_segment;    /* that segment; 0: none */
    uint64_t log_bytes;      /* of frames behind the snapshot */
    uint64_t snapshot_bytes; /* file size */
    uint64_t frames, records;
    /* An interrupted write at the end; cut_bytes 0: none. */
    uint64_t cut_segment, cut_offset, cut_bytes;
    uint64_t snapshot_end_seq; /* WAL_END's: first frame after the snapshot was complete; 0 none */
};

/* Reads, and changes nothing. */
enum weir_status wal_recover(const struct wal_recovery_options *options,
                             struct wal_recovered *recovered,
                             struct weir_error *error) WEIR_MUST_CHECK;

/* ---- changing a directory that nobody serves ---- */

/* Zeros over an interrupted write and everything behind it in that segment, synced; removes *.new and
 * files a newer snapshot has made superfluous. */
enum weir_status wal_clean(const struct wal_io *io, const char *directory,
                           const struct wal_recovered *recovered,
                           struct weir_error *error) WEIR_MUST_CHECK;
/* Cut the log at `offset` of `segment`, which must be the start of a frame or damaged: zeros from
 * there on, later segments removed. What is cut off is lost. */
enum weir_status wal_cut(const struct wal_io *io, const char *directory, uint64_t segment,
                         uint64_t offset, struct weir_error *error) WEIR_MUST_CHECK;
/* Make the directory if need be and lock it; *fd is to be kept open. REFUSED: another process has it. */
enum weir_status wal_lock(const struct wal_io *io, const char *directory, int *fd,
                          struct weir_error *error) WEIR_MUST_CHECK;

#endif

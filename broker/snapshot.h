/* broker/snapshot.h -- snapshots of the store, written beside service.
 *
 *   due --> the log turns to a new segment S --> walk the store, slice by slice, while writes go on
 *       --> all frames that it may have seen are durable, and their answers have left
 *       --> file "snapshot-S" synced, and named --> segments below S and older snapshots removed
 *
 * The walk is not the state of one moment, but with the log from S on it is exact (store_walk_begin()).
 * A crash at any point leaves the old snapshot with all its segments, or the new one with all of its.
 *
 * The answers have to leave first because the log is what knows whose requests were carried out
 * (answered.h): a gateway that was not answered asks the next broker again. One that does not read for
 * SNAPSHOT_ANSWERS_MS has given its requests up by then (write_wait_ms is at most a minute).
 *
 * The loop thread walks and encodes one frame of the file a turn (snapshot_file.h); files are written,
 * synced and removed by the background thread.
 *
 * Process and thread: the broker's loop thread.
 * Errors:   a snapshot that cannot be written is given up with a log line and begun again later; the
 *           log grows until then.
 */
#ifndef WEIR_BROKER_SNAPSHOT_H
#define WEIR_BROKER_SNAPSHOT_H

#include "broker/commits.h"

enum {
    SNAPSHOT_RETRY_MS = 30000,
    SNAPSHOT_ANSWERS_MS = 70000,
};

/* Whether answers given so far have left this process: mark() now, have_left() later. NULL: at once. */
struct snapshot_answers {
    void (*mark)(void *context);
    bool (*have_left)(void *context);
    void *context;
};

struct snapshot_options {
    const char *directory; /* outlives it */
    const struct wal_io *io;
    struct background *background;
    struct wal *wal;
    struct store *store;
    struct commits *commits;
    struct broker_counters *counters;
    struct snapshot_answers answers;
    /* Requests of earlier lives that may be asked again, one WAL_ANSWER each; *cursor starts at 0. False:
     * no more. */
    bool (*next_answer)(void *context, uint64_t *cursor, struct wal_record *record);
    void *next_context;
    uint64_t log_bytes_min; /* due when the log is larger than this, and than the last snapshot */
    uint64_t interval_ms;   /* and when it is so old, and anything was written; 0: never */
    uint64_t epoch_base;
    uint64_t now_ms;
    /* Of the last one, as recovered. */
    uint64_t snapshot_bytes;
};

struct snapshot;

enum weir_status snapshot_open(struct snapshot **snapshot, const struct snapshot_options *options,
                               struct weir_error *error) WEIR_MUST_CHECK;
/* Nothing is begun any more when background work ends. Before background_close(). NULL is fine. */
void snapshot_stop(struct snapshot *snapshot);
/* Behind background_close(): nothing is under way any more. What is not finished is removed. */
void snapshot_close(struct snapshot *snapshot);
/* Once a turn. */
void snapshot_turn(struct snapshot *snapshot, uint64_t now_ms);

#endif

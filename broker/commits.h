/* broker/commits.h -- group commit: from applied writes to what everybody may see.
 *
 *   requests --> [open batch] --seal--> [sealed] [sealed] --wal_write()--> durable --> release
 *                                                                              ring, groups, answers
 *
 * One frame is written at a time; what comes meanwhile gathers in the open batch and is sealed when the
 * write before is finished, so under load many requests share one sync. Batches are released in the
 * order they were opened. Without a log there is one batch, released at the end of its turn. With a
 * log that nobody waits for (level memory) a batch is released when it is sealed and written after.
 *
 * A batch that has only read is released behind those before it: what it saw may be in them.
 *
 * When the log has failed for good, the batches that were not durable are answered with errors: whether
 * their writes are kept is not known, and they are shown to nobody.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   batches come from a pool; more than BATCHES_KEPT are made only for what cannot be held up
 *           (answers of workers), and given back.
 */
#ifndef WEIR_BROKER_COMMITS_H
#define WEIR_BROKER_COMMITS_H

#include "broker/batch.h"
#include "shm/ring.h"
#include "shm/store.h"

struct commits;

struct commits_options {
    struct ring_writer *ring;
    struct store *store;
    struct readers *readers;
    struct broker_output output;
    struct broker_counters *counters;
    uint64_t value_bytes_max;
    /* NULL: nothing is logged. */
    struct wal *wal;
    bool is_written_behind; /* level memory: nobody waits for the log */
};

enum weir_status commits_open(struct commits **commits, const struct commits_options *options,
                              struct weir_error *error) WEIR_MUST_CHECK;
/* What is not durable is answered by nobody. */
void commits_close(struct commits *commits);

/* Frames are written through it; their memory is made known to it. */
void commits_use_device(struct commits *commits, struct wal_device *device);
/* The batch to put answers into, until the next call of anything here. */
struct batch *commits_batch(const struct commits *commits);
/* More requests may be taken. When not, a completion of the log's will change that. */
bool commits_are_ready(const struct commits *commits);
/* Before a write whose record has so many bytes is applied: NULL, and there is room for it in log and
 * batch; else why the write cannot be carried out (valid until the next call). */
const char *commits_problem(struct commits *commits, size_t record_bytes);
/* Number of the frame the next record goes into; 0 without log. */
uint64_t commits_frame(const struct commits *commits);
/* An applied write to the group at `group_offset`, after commits_problem() had none, and after its
 * event was put into the ring. */
void commits_log(struct commits *commits, const struct wal_record *record, uint64_t group_offset);
/* A request that was carried out and changed nothing, after commits_problem() had none. */
void commits_log_answer(struct commits *commits, const struct wal_record *record);
/* Seal, or without log release, a batch that is full; after each request. */
void commits_when_full(struct commits *commits);
/* End of a turn. */
void commits_turn(struct commits *commits, uint64_t now_ms);
/* Something was done that is not sealed yet. */
bool commits_have_open(const struct commits *commits);
/* The first frame that will have no record of a write applied by now. */
uint64_t commits_next_frame(const struct commits *commits);
/* All frames below are durable. */
uint64_t commits_durable_frame(const struct commits *commits);
/* A frame is under way; its completion turns the loop. */
bool commits_are_writing(const struct commits *commits);
/* Ring position behind the newest that may be read. */
uint64_t commits_published_end(const struct commits *commits);
/* Everything is durable, or never will be. */
bool commits_are_idle(const struct commits *commits);
/* NULL, or the sentence of a log that failed for good. */
const char *commits_failure(const struct commits *commits);

#endif

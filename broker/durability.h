/* broker/durability.h -- what a broker with a data_dir has: recovery at its start, then log and
 * snapshots, put together as the settings say.
 *
 *   durability_open()     lock the directory, read snapshot and log into the store, put the log's
 *                         events into the ring, remember whose requests they answer
 *   durability_start()    device, background thread, log writer, snapshots
 *   durability_turn()     ... beside service
 *   durability_flushed()  when it is to stop: all that was shown is in the log
 *
 * Process and thread: the broker's loop thread.
 * Memory:   owned, sized at the start but for what answered.h keeps.
 * Errors:   opening says one sentence: a directory in use, damage, a store too small, a disk that
 *           cannot be written. Afterwards the log's own (wal.h).
 */
#ifndef WEIR_BROKER_DURABILITY_H
#define WEIR_BROKER_DURABILITY_H

#include "broker/engine.h"
#include "broker/snapshot.h"

struct durability;

/* What a test puts between the broker and its disk; zeros: nothing. */
struct durability_seam {
    const struct wal_io *io;
    struct wal_device *(*wrap_device)(void *context, struct wal_device *device);
    void *context;
    const char *boot; /* the machine's boot id; NULL: what the kernel says */
};

/* `settings` has a data_dir. The engine's store and ring are empty, and nobody sees them yet. */
enum weir_status durability_open(struct durability **durability, const struct settings *settings,
                                 struct engine *engine, const struct durability_seam *seam,
                                 struct broker_counters *counters,
                                 struct weir_error *error) WEIR_MUST_CHECK;
enum weir_status durability_start(struct durability *durability, struct loop *loop,
                                  const struct snapshot_answers *answers,
                                  struct weir_error *error) WEIR_MUST_CHECK;
/* Nothing is shown any more, and nothing waits for the log; durability_close() follows, and says so to
 * the next life. NULL is fine. */
void durability_flushed(struct durability *durability);
/* Behind loop_close(), before engine_close(). NULL is fine. */
void durability_close(struct durability *durability);

/* Once a turn, behind commits_turn(). */
void durability_turn(struct durability *durability, uint64_t now_ms);
/* About once a second. */
void durability_tick(struct durability *durability, uint64_t now_ms);

/* True: everything that was answered or shown to a gateway that has read up to log frame `frame` (0: none)
 * of an earlier life is kept, so it may ask again and read on. Not so when the log does not have that
 * frame: it is another log, or a part of it was given up; nor when epochs were renewed (wal_life.h).
 * False for NULL. */
bool durability_keeps(const struct durability *durability, uint64_t frame);
/* Where a gateway reads on that has read up to `frame`, and for whom everything is kept: false when
 * the ring does not have all that came after. False for NULL. */
bool durability_resume(const struct durability *durability, uint64_t frame, uint64_t *position);
/* True: an earlier life has carried out this request; `result` data NULL: with what result is not
 * known. False for NULL. */
bool durability_answered(struct durability *durability, uint64_t origin, uint64_t request,
                         struct span *result);

#endif

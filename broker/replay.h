/* broker/replay.h -- from records to the store: what a broker does at its start, and `weir log` with a
 * directory that nobody serves.
 *
 *   wal_recover() ── record ──▶ replay_take() ──▶ store_restore()      a snapshot's groups and items
 *                                             ──▶ store_replay_*()     the log's writes, in their order
 *                                             ──▶ changed()            ... and what each has changed
 *
 * A snapshot is taken beside service, so the log's first writes may be in it already: the store passes
 * over them (store.h), and changed() is told with `change` NULL, for who asked for them may ask
 * again.
 *
 * Process:  before the segment is published (the broker's loop thread), or any tool's only thread.
 * Memory:   none of its own. `change` and the record are valid during changed(); the store's turn ends
 *           after it.
 * Errors:   CORRUPT: a record that cannot have been written (an item without a group, a name or value
 *           beyond its limit, ...). FULL, NO_MEMORY: the store does not hold what is in the log; the
 *           sentence names the setting. What changed() returns, unless it is OK. All name the place.
 */
#ifndef WEIR_BROKER_REPLAY_H
#define WEIR_BROKER_REPLAY_H

#include "broker/wal_recovery.h"
#include "shm/store.h"

struct replay {
    struct store *store; /* opened, empty */
    /* Each write of the log. Whoever puts its event into the ring says so at once
     * (store_group_published()). NULL: nobody needs to know. */
    enum weir_status (*changed)(void *context, const struct wal_position *position,
                                const struct wal_record *record, const struct store_change *change,
                                struct weir_error *error);
    void *context;
    /* So far. */
    uint64_t restored_items;
    uint64_t replayed; /* writes of the log that have changed the store */
    uint64_t passed;   /* writes of the log that a snapshot had already */
};

/* `take` of wal_recovery_options; its context is the struct replay. store_recovered() is left to the
 * caller, after the last record. */
enum weir_status replay_take(void *replay, const struct wal_position *position,
                             const struct wal_record *record,
                             struct weir_error *error) WEIR_MUST_CHECK;

#endif

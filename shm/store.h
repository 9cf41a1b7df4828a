/* shm/store.h -- streams, groups and items in shared memory: one writer, lock-free readers in any
 * process.
 *
 *   root -> streams -> groups -> items, each list in order of insertion
 *   one hash index for streams, one for groups, one for items; slots hold hash and offset, never
 *   pointers
 *
 * Values are the writer's JSON text, compact, verbatim. An update builds a new block, swaps it in
 * with a release store and retires the old one (readers.h). A group counts every write in `seq` (1,
 * 2, 3 ... within `epoch`) and stamps it with a strictly increasing timestamp. A group that loses
 * its last item is no longer listed, but its record stays, so that seq goes on; beyond a bound the
 * longest empty ones are dropped, and the group's next life has a new, higher epoch.
 *
 * Timestamps: write n+1 of a group is stamped max(now, next_ms), where next_ms is the stamp of
 * write n plus 2, or plus 1 once the group runs more than a second ahead of the clock. A sync at
 * seq n is stamped next_ms - 1: above all it includes (equal to the newest only in the second case)
 * and below everything after it.
 *
 * Process:  store_open() and writes in the broker's loop thread only; store_reader in any process.
 * Memory:   spans handed to the writer point into the segment and stay valid until
 *           store_turn_end(). Readers copy out.
 * Errors:   FULL: the arena or a limit is used up; nothing changed. TOO_LARGE, INVALID: names or
 *           value beyond limits. Readers: REVOKED = read again; PENDING = the ring has not
 *           published all the store shows, or it is not committed; LAPPED = the ring has dropped what was needed, start
 *           over; CORRUPT = stop using the segment.
 */
#ifndef WEIR_SHM_STORE_H
#define WEIR_SHM_STORE_H

#include "shm/readers.h"
#include "shm/ring.h"

struct store_options {
    uint64_t items_max;        /* FULL beyond */
    uint64_t groups_max;       /* groups with items, FULL beyond */
    uint64_t empty_groups_max; /* remembered after their last item is gone */
    bool is_logged;            /* readers are shown a write only after store_group_committed() */
};

/* A group as an event needs it. Spans point into the segment. */
struct store_group {
    uint64_t offset; /* handle within this segment */
    uint64_t hash;   /* store_group_hash() */
    uint64_t seq;
    uint64_t epoch;
    uint64_t timestamp_ms;    /* stamp of `seq` */
    uint64_t next_ms;         /* lowest stamp of the next write; a sync is stamped next_ms - 1 */
    uint64_t newest_position; /* ring position of the newest published event (is_logged: committed
                                 event), or RING_NO_POSITION */
    uint64_t item_count;
    struct span stream_escaped;
    struct span group_escaped;
};

struct store_key {
    struct span stream;
    struct span group;
    struct span item;
};

struct store_change {
    struct store_group group; /* after the write: seq and timestamp are the event's */
    struct span id_escaped;   /* into the segment or the store's scratch */
    uint64_t item_hash;
    bool existed;          /* before the write */
    struct span old_value; /* when existed; valid until store_turn_end() */
    struct span new_value; /* the stored copy (set) */
};

/* ---- broker ---- */
struct store;
enum weir_status store_open(struct store **store, struct segment *segment, struct readers *readers,
                            const struct store_options *options,
                            struct weir_error *error) WEIR_MUST_CHECK;
void store_close(struct store *store);

/* Each applies one write and advances the group's seq and stamp. store_delete() of a missing item
 * is EMPTY and changes nothing. store_touch() is for what is not kept here (stream::send, items a
 * worker keeps): seq and stamp only; `item` may have data == NULL (no id). */
enum weir_status store_set(struct store *store, const struct store_key *key, struct span value,
                           uint64_t now_ms, struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_delete(struct store *store, const struct store_key *key, uint64_t now_ms,
                              struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_touch(struct store *store, const struct store_key *key, uint64_t now_ms,
                             struct store_change *change) WEIR_MUST_CHECK;
/* The writer's own look: EMPTY when missing. */
enum weir_status store_find(struct store *store, const struct store_key *key,
                            struct span *value) WEIR_MUST_CHECK;
/* The event of one write to `group_offset` is in the ring at `position`. Call once per write (until
 * then the group's record is not dropped and its handle stays good), in write order, after
 * ring_append() and before ring_publish(). */
void store_group_published(struct store *store, uint64_t group_offset, uint64_t position);
/* What the next event's record takes as previous_position: where the group's newest appended event
 * is. `newest_position` of a store_change is older when several writes to the group are applied
 * before the first one is published. */
uint64_t store_group_newest_position(const struct store *store, uint64_t group_offset);
/* Stamps stay above this: the highest one an earlier life of the broker is known to have given. */
void store_raise_floor(struct store *store, uint64_t timestamp_ms);
/* All writes to the group up to `seq`, whose event is at `position`, may be shown. Only where
 * options.is_logged; then a group's record is not dropped, and its handle stays good, until its
 * newest write is committed. Before the ring_publish_to() that shows the events: who has read an
 * event then finds its write committed. */
void store_group_committed(struct store *store, uint64_t group_offset, uint64_t seq,
                           uint64_t position);
/* PENDING: the newest write to the item (`item` without data: to the group) is not committed. Of a
 * missing item, the group's newest write counts. */
enum weir_status store_check_committed(const struct store *store,
                                       const struct store_key *key) WEIR_MUST_CHECK;
/* End of the broker's turn: advances the epoch and gives back what no reader can see any more;
 * bounded work. */
void store_turn_end(struct store *store);

/* ---- broker: what an earlier life has written. Before the segment is published ---- */

/* The numbers a write had. */
struct store_past {
    uint64_t epoch, seq, timestamp_ms, next_ms;
};
/* Apply a write of an earlier life; the group's numbers are `past` afterwards, and it counts as
 * committed. EMPTY: the group has it already (its epoch is higher, or the same with a seq that is not
 * lower): nothing changed. A delete that finds no item is OK. A group whose epoch rises keeps its items when
 * its seq goes on (store_renew()); with seq 1 it is a new life, and loses those it still has. An item that is newer than the write (a walk met it later) stays as it is.
 * INVALID: numbers that no write can have had. Otherwise as store_set() and its like, but: spans and
 * handle in `change` are good until the next call of these (empty groups beyond the bound go there);
 * where the event is put into the ring, store_group_published() says so at once. items_max and
 * groups_max refuse nothing here. */
enum weir_status store_replay_set(struct store *store, const struct store_key *key,
                                  struct span value, const struct store_past *past,
                                  struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_replay_delete(struct store *store, const struct store_key *key,
                                     const struct store_past *past,
                                     struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_replay_touch(struct store *store, const struct store_key *key,
                                    const struct store_past *past,
                                    struct store_change *change) WEIR_MUST_CHECK;
/* What store_walk_next() yielded in an earlier life, in its order. INVALID: an item without a group or
 * out of order, numbers that cannot be, or the group is there already in this or a later life (in an
 * earlier one: it was forgotten and made again while the walk went on; its items go). An item that is
 * there already moves to the end: it was removed and made again while the walk went on. */
struct store_walk_entry;
enum weir_status store_restore(struct store *store,
                               const struct store_walk_entry *entry) WEIR_MUST_CHECK;
/* The last of it: epochs given from now on are `epoch_floor` or higher, and above all that were
 * restored; stamps are above all that were. */
void store_recovered(struct store *store, uint64_t epoch_floor);
/* Behind store_recovered(): groups whose epoch is lower go on in this one, with their seq and items, and
 * no event of before leads to them. Epochs given from now on are higher. */
void store_renew(struct store *store, uint64_t epoch);
/* Above every epoch given so far: what the files made from now on name as the next life's floor.
 * Groups that get a higher one later are in the log with it. */
uint64_t store_epoch_base(const struct store *store);

/* ---- broker: a walk over everything, in slices between writes ----
 *
 * Groups in the order of streams and groups, each followed by its items in order. Writes may come
 * between two steps: the walk stands at the item that is next, and writes that replace or remove it
 * move the walk on. So what it yields is not the state of one moment, but all of it together with all
 * writes since the walk began, replayed in order (store_restore(), then store_replay_*(), which pass
 * over what a group has already), is the state at the end: a group's numbers are those of the moment
 * it was yielded, before its items. One walk at a time. */
struct store_walk_entry {
    bool is_group;
    struct span stream, group; /* is_group */
    struct store_past numbers; /* is_group */
    struct span item, value;   /* else */
    uint64_t created_seq, modified_seq;
};
void store_walk_begin(struct store *store);
/* OK: spans are valid until the next write. EMPTY: that was all; the walk has ended. */
enum weir_status store_walk_next(struct store *store,
                                 struct store_walk_entry *entry) WEIR_MUST_CHECK;
void store_walk_cancel(struct store *store);

struct store_figures {
    uint64_t streams, groups, items, empty_groups;
    uint64_t arena_bytes, arena_used_bytes, retired_bytes, readers_revoked;
};
void store_figures(const struct store *store, struct store_figures *figures);
/* Walk every structure and compare; for tests (slow). CORRUPT names the first difference. */
enum weir_status store_check(const struct store *store, struct weir_error *error) WEIR_MUST_CHECK;

/* ---- any process ---- */
struct store_reader; /* scratch memory and the attachment */
/* `reader` NULL: the broker itself, which needs no epoch. Keeps the pointers; they outlive it.
 * NULL: no memory, or the store is not open yet or was made by another version. */
struct store_reader *store_reader_open(const struct segment *segment, struct reader *reader);
void store_reader_close(struct store_reader *store_reader);

uint64_t store_group_hash(uint64_t seed, struct span stream, struct span group);
uint64_t store_item_hash(uint64_t seed, struct span item);

/* In a store that is_logged, readers other than the broker are shown nothing that is not committed:
 * they are told PENDING, and the broker, asked instead, answers when it is. */

/* Append the item's JSON text. EMPTY when it is missing. PENDING: its newest write, or, when it is
 * missing, one to its group, is not committed. */
enum weir_status store_read_item(struct store_reader *reader, const struct store_key *key,
                                 struct buffer *out) WEIR_MUST_CHECK;
/* The group's numbers only (no spans); is_logged: seq and newest_position of what is committed (the
 * position may be newer than the seq), the other numbers may be ahead of it. EMPTY when the group has no record: seq 0, the epoch its
 * first write will have (unless another group of the same bucket is dropped before, see store.c;
 * then that epoch is higher), and the stamp a sync of it takes in next_ms - 1, below that of its
 * first write. */
enum weir_status store_read_group(struct store_reader *reader, struct span stream,
                                  struct span group, struct store_group *state) WEIR_MUST_CHECK;
/* Append `["g1","g2"]`, sorted bytewise by decoded name. PENDING: a group somewhere in the store has
 * got its first item, or lost its last one, by a write that is not committed. */
enum weir_status store_list_groups(struct store_reader *reader, struct span stream,
                                   struct buffer *out) WEIR_MUST_CHECK;
/* Append `{"stream":[{"id":"chat","groups":["a","b"]}],"count":1}`, both sorted bytewise; streams
 * without items left out. PENDING likewise. */
enum weir_status store_list_all(struct store_reader *reader, struct buffer *out) WEIR_MUST_CHECK;

/* A group's (or one item's) exact state at one seq. Begin notes the seq, walks and copies, and
 * notes the seq again; finish applies the ring's events between the two and appends the result.
 * PENDING from finish: the ring has not published them all, or not the one behind them that is
 * written already, or not all that was seen is committed;
 * call it again after the next wake-up; the copy is kept, and the seq it will have is fixed. LAPPED, REVOKED: begin again
 * (store_snapshot() does, with bounded tries). A walk is finished or cancelled before its reader is
 * closed. */
struct store_snapshot {
    uint64_t seq;
    uint64_t epoch;
    uint64_t timestamp_ms; /* for a sync: see above */
    bool exists;           /* item snapshots: the item was there */
    uint64_t item_count;
};
struct store_snapshot_walk;
enum weir_status store_snapshot_begin(struct store_reader *reader, struct span stream,
                                      struct span group, const struct span *item,
                                      struct store_snapshot_walk **walk) WEIR_MUST_CHECK;
/* Appends `[v1,v2,...]` for a group, the value or `null` for an item. Frees the walk unless it
 * returns PENDING. */
enum weir_status store_snapshot_finish(struct store_snapshot_walk *walk,
                                       struct store_snapshot *snapshot,
                                       struct buffer *out) WEIR_MUST_CHECK;
void store_snapshot_cancel(struct store_snapshot_walk *walk);
/* Memory it takes while it waits. */
uint64_t store_snapshot_bytes(const struct store_snapshot_walk *walk);
/* Begin and finish at once; PENDING when the ring is behind (the caller asks again later). */
enum weir_status store_snapshot(struct store_reader *reader, struct span stream, struct span group,
                                const struct span *item, struct store_snapshot *snapshot,
                                struct buffer *out) WEIR_MUST_CHECK;

#endif

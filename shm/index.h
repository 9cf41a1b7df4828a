/* shm/index.h -- hash index in the segment: hash -> offset, one writer, readers in any process without locks.
 *
 * Open addressing, linear probing; a slot is one atomic u64:
 *
 *     63            32 31             0
 *    +----------------+----------------+   offset / 16 = 0: never used, a search ends here
 *    |      tag       |  offset / 16   |                 1: removed, a search goes on
 *    +----------------+----------------+
 *
 * The tag is 32 bits of the hash; the home slot is computed from the tag alone, so a table is
 * rehashed without looking at what it points to. A slot that matches is only a candidate: the
 * caller compares the key in the block.
 *
 * Growing without stopping. A table that is 5/8 used (removed slots count) is replaced by one at
 * most 3/8 full:
 *
 *     idle --5/8 used--> clearing --all clear--> moving --all moved--> idle, old table retired
 *
 * each write clears or moves a bounded number of slots. Moving copies: the old table stays whole,
 * removals and replacements go to both. A reader probes the current table, then the old one, and
 * after "not there" looks whether the current table is still the one it probed; if not, it starts
 * again (the caller bounds that). The writer may die between any two stores: what is published is
 * always complete for a reader.
 *
 * Why "not there" is right when the current table did not change during the search: every key is
 * inserted into the current table only, and stays in its slot until it is removed; a key that moves
 * is in the old table throughout.
 *
 * Process:  index_* in the broker's loop thread; index_lookup_* in any process.
 * Memory:   tables come from the arena; an old table goes to the `retire` callback. Offsets are
 *           below 64 GiB, multiples of 16.
 * Errors:   FULL from index_reserve() when neither a larger table nor a free slot can be had. A
 *           reader whose epoch was revoked may meet overwritten slots: it gets candidates inside
 *           the store area at most, and never loops for ever.
 */
#ifndef WEIR_SHM_INDEX_H
#define WEIR_SHM_INDEX_H

#include <stdatomic.h>

#include "shm/arena.h"

/* In the segment. A table descriptor is offset / 16 << 8 | log2 of the slot count; 0: none. */
struct index_root {
    _Atomic uint64_t current; /* release B: table cleared, `old` set; pairs B' */
    _Atomic uint64_t old;
};

/* ---- any process ---- */
struct index_lookup {
    const char *base;
    uint64_t area_bytes;
    const struct index_root *root;
    uint64_t current; /* descriptors noted at the start */
    uint64_t old;
    const _Atomic uint64_t *slots;
    uint64_t mask;
    uint64_t position;
    uint64_t left; /* slots not looked at yet in this table */
    uint32_t tag;
    uint32_t in_old;
};

void index_lookup_begin(struct index_lookup *lookup, const char *base, uint64_t area_bytes,
                        const struct index_root *root, uint64_t hash);
/* The next candidate's offset, or 0. A key found in the current table may come a second time from
 * the old one. */
uint64_t index_lookup_next(struct index_lookup *lookup);
/* After "not there": true when the table was replaced meanwhile and the search proves nothing. */
bool index_lookup_moved(const struct index_lookup *lookup);

/* ---- broker ---- */
struct index_table {
    uint64_t offset;
    _Atomic uint64_t *slots;
    uint64_t slot_count;
    uint64_t used; /* slots that are not "never used" */
};

struct index {
    struct arena *arena;
    char *base;
    uint64_t area_bytes;
    struct index_root *root;
    void (*retire)(void *context, uint64_t offset);
    void *retire_context;
    struct index_table current;
    struct index_table old;  /* slot_count 0: not moving */
    struct index_table next; /* slot_count 0: not clearing */
    uint64_t moved_slots;
    uint64_t cleared_slots;
    uint64_t live;
    uint64_t rebuilds; /* tables replaced so far */
};

/* `root` is zero and in the segment. NO_MEMORY never; FULL when the arena has no room for the first
 * table. */
enum weir_status index_open(struct index *index, char *base, uint64_t area_bytes,
                            struct index_root *root, struct arena *arena,
                            void (*retire)(void *context, uint64_t offset),
                            void *retire_context) WEIR_MUST_CHECK;
/* Ask for the slot a lookup of `hash` will start at: in a large table it is a miss. */
void index_prefetch(const struct index *index, uint64_t hash);
/* The bounded upkeep of one write: clear or move some slots. */
void index_upkeep(struct index *index);
/* Upkeep; then OK: the next `inserts` (at most 4) index_insert() cannot fail. */
enum weir_status index_reserve(struct index *index, unsigned inserts) WEIR_MUST_CHECK;
/* The key is not in the index. After index_reserve(). */
void index_insert(struct index *index, uint64_t hash, uint64_t offset);
void index_replace(struct index *index, uint64_t hash, uint64_t old_offset, uint64_t new_offset);
void index_remove(struct index *index, uint64_t hash, uint64_t offset);
/* Compare the tables with the counts; for tests. */
enum weir_status index_check(const struct index *index, struct weir_error *error) WEIR_MUST_CHECK;

#endif

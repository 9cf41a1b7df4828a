/* shm/store_read.h -- what store_reader.c and store_snapshot.c share: looking at blocks that may be
 * overwritten meanwhile.
 *
 * Offsets and lengths taken from the segment are checked against the store area before they are
 * used; each view is of words that stay where they are as long as the reader's epoch holds. CORRUPT
 * from here means "cannot be true": store_read_leave() turns it into REVOKED when that is why.
 *
 * Process: any; one thread per store_reader. Internal to the store.
 */
#ifndef WEIR_SHM_STORE_READ_H
#define WEIR_SHM_STORE_READ_H

#include "shm/store.h"
#include "shm/store_layout.h"

enum {
    STORE_READ_TRIES = 8,     /* of a whole read; then its last status is the answer */
    STORE_NUMBERS_TRIES = 64, /* of copying a group's numbers */
};

struct store_name; /* store_reader.c */
struct store_names;

struct store_reader {
    const struct segment *segment;
    struct reader *reader; /* NULL: the broker */
    bool is_limited;       /* to what is committed */
    const char *base;
    uint64_t area_bytes;
    uint64_t hash_seed;
    const struct store_root *root;
    struct ring_reader ring;
    struct store_names *names;         /* scratch of lists */
    struct store_snapshot_walk *spare; /* kept for the next snapshot */
};

struct store_group_view {
    uint64_t offset;
    const struct group_block *block;
    uint64_t epoch;
    struct store_numbers numbers;
    /* Of a missing group: the epoch and the lowest stamp of its next life. */
    bool is_missing;
};

struct store_item_view {
    const struct item_block *block;
    uint64_t group;
    uint64_t created_seq;
    uint64_t modified_seq;
    uint64_t item_hash;
    uint64_t id_bytes;
    uint64_t value_bytes;
    const _Atomic uint64_t *value_words;
};

void store_read_enter(struct store_reader *reader);
/* `status`, or REVOKED. */
enum weir_status store_read_leave(struct store_reader *reader,
                                  enum weir_status status) WEIR_MUST_CHECK;

/* Find the group's record and copy its numbers; OK also when it is missing (view->is_missing). */
enum weir_status store_read_find_group(struct store_reader *reader, struct span stream,
                                       struct span group,
                                       struct store_group_view *view) WEIR_MUST_CHECK;
enum weir_status store_read_view_item(const struct store_reader *reader, uint64_t offset,
                                      struct store_item_view *view) WEIR_MUST_CHECK;
/* The item of a group whose record is at group->offset. EMPTY when missing. */
enum weir_status store_read_find_item(struct store_reader *reader,
                                      const struct store_group_view *group, uint64_t group_hash,
                                      struct span id, struct store_item_view *view) WEIR_MUST_CHECK;
enum weir_status store_read_append(struct buffer *out, const _Atomic uint64_t *words,
                                   uint64_t bytes) WEIR_MUST_CHECK;

/* store_snapshot.c */
void store_snapshot_walk_free(struct store_snapshot_walk *walk);

#endif

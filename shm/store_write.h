/* shm/store_write.h -- what store.c, store_past.c and store_check.c share: the writer's own side of the store.
 *
 * The writer reads its own bytes in place, and changes them by single atomic stores; in which order
 * stands in store.c.
 *
 * Process: broker's loop thread only. Internal to the store.
 */
#ifndef WEIR_SHM_STORE_WRITE_H
#define WEIR_SHM_STORE_WRITE_H

#include "shm/store.h"
#include "shm/store_layout.h"

enum {
    STORE_RETIRED_MAX =
        1 << 18, /* queue entries; beyond, readers are revoked, then writes are FULL */
};

struct store_retired_block {
    uint64_t epoch;
    uint64_t offset;
};

struct store {
    struct segment *segment;
    struct readers *readers;
    struct store_options options;
    char *base;
    uint64_t area_bytes;
    uint64_t hash_seed;
    struct store_root *root;
    struct arena *arena;
    struct index streams;
    struct index groups;
    struct index items;

    uint64_t stream_count, listed_streams, group_count, listed_groups, item_count;
    uint64_t last_stream;
    uint64_t first_empty, last_empty; /* groups without items, longest empty first */
    uint64_t next_ordinal;
    uint64_t newest_epoch;
    uint64_t floor_ms;
    uint64_t now_ms; /* of the newest write */

    struct store_retired_block *retired;
    uint64_t retired_head, retired_tail; /* count up; index modulo STORE_RETIRED_MAX */
    uint64_t retired_bytes;
    uint64_t turn_tail; /* retired_tail at the start of the turn */
    uint64_t stuck_epoch, stuck_since_ms;
    uint64_t readers_revoked;

    /* The walk: what is next. group 0: behind the last group of `stream`; stream 0: at the end. */
    struct {
        uint64_t stream, group, item;
        bool is_inside; /* `group` was yielded, `item` (0: the end) is next */
    } walk;

    /* What an earlier life has written (store_past.c). */
    bool is_recovering;
    uint64_t restored_group, restored_group_hash; /* the items that come are its */
    uint64_t past_epoch, past_next_ms;            /* highest so far */

    char *stream_escaped; /* NAME_ESCAPED_BYTES_MAX each */
    char *group_escaped;
    char *item_escaped;
};

/* Where a key is, as far as it is there. */
struct store_place {
    uint64_t group_hash;
    uint64_t item_hash;
    uint64_t key_hash; /* in the item index */
    uint64_t group;    /* 0: no record */
    uint64_t item;     /* 0: missing */
};

static inline struct stream_block *store_stream_at(const struct store *store, uint64_t offset)
{
    return (struct stream_block *)(void *)(store->base + offset);
}

static inline struct group_block *store_group_at(const struct store *store, uint64_t offset)
{
    return (struct group_block *)(void *)(store->base + offset);
}

static inline struct item_block *store_item_at(const struct store *store, uint64_t offset)
{
    return (struct item_block *)(void *)(store->base + offset);
}

static inline void store_put(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* G: what the link points to was written before; pairs with the acquire loads of walks. */
static inline void store_put_link(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

/* The writer reads its own bytes in place. */
static inline struct span store_words_span(const _Atomic uint64_t *words, uint64_t skip_bytes,
                                           uint64_t bytes)
{
    return span_of((const char *)(const void *)words + skip_bytes, bytes);
}

static inline struct span store_stream_name(const struct stream_block *stream)
{
    return store_words_span(stream->names, 0, store_low(store_load(&stream->name_bytes)));
}

/* The four names of a group lie behind each other: stream, group, escaped stream, escaped group. */
struct store_group_names {
    struct span stream, group, stream_escaped, group_escaped;
};

static inline struct store_group_names store_group_names(const struct group_block *group)
{
    uint64_t stream_bytes = store_load(&group->stream_bytes);
    uint64_t group_bytes = store_load(&group->group_bytes);
    struct store_group_names names;
    uint64_t at = 0;
    names.stream = store_words_span(group->names, at, store_low(stream_bytes));
    at += shm_align_word(store_low(stream_bytes));
    names.group = store_words_span(group->names, at, store_low(group_bytes));
    at += shm_align_word(store_low(group_bytes));
    names.stream_escaped = names.stream;
    if (store_high(stream_bytes) != store_low(stream_bytes)) {
        names.stream_escaped = store_words_span(group->names, at, store_high(stream_bytes));
        at += shm_align_word(store_high(stream_bytes));
    }
    names.group_escaped = names.group;
    if (store_high(group_bytes) != store_low(group_bytes))
        names.group_escaped = store_words_span(group->names, at, store_high(group_bytes));
    return names;
}

static inline struct span store_item_id(const struct item_block *item)
{
    return store_words_span(item->words, 0, store_low(store_load(&item->id_bytes)));
}

static inline struct span store_item_id_escaped(const struct item_block *item)
{
    uint64_t bytes = store_load(&item->id_bytes);
    if (store_high(bytes) == store_low(bytes))
        return store_item_id(item);
    return store_words_span(item->words, shm_align_word(store_low(bytes)), store_high(bytes));
}

static inline struct span store_item_value(const struct item_block *item)
{
    return store_words_span(item->words, store_names_bytes(store_load(&item->id_bytes)),
                            store_load(&item->value_bytes));
}

static inline struct store_numbers store_numbers_load(const struct group_block *group)
{
    const _Atomic uint64_t *words = group->numbers[store_load(&group->version) & 1];
    struct store_numbers numbers;
    shm_copy_out(&numbers, words, sizeof numbers);
    return numbers;
}

static inline void store_numbers_store(struct group_block *group,
                                       const struct store_numbers *numbers)
{
    uint64_t version = store_load(&group->version) + 1;
    uint64_t words[STORE_NUMBERS_WORDS];
    memcpy(words, numbers, sizeof words);
    for (unsigned i = 0; i < STORE_NUMBERS_WORDS; i++)
        /* M: not before the last version, which made this copy the spare one; pairs M'. */
        atomic_store_explicit(&group->numbers[version & 1][i], words[i], memory_order_release);
    /* N: the copy is whole, and so is the write; pairs N'. */
    atomic_store_explicit(&group->version, version, memory_order_release);
}

/* When a write is: now, or in an earlier life with the numbers it had then. */
struct store_moment {
    uint64_t now_ms;
    const struct store_past *past; /* NULL: now */
};

uint64_t store_find_stream(const struct store *store, uint64_t hash, struct span name);
uint64_t store_find_group(const struct store *store, uint64_t hash, const struct store_key *key);
struct store_place store_find_place(const struct store *store, const struct store_key *key);
enum weir_status store_check_key(const struct store_key *key) WEIR_MUST_CHECK;
enum weir_status store_check_value(struct span value) WEIR_MUST_CHECK;

/* store_set() and its like once the place is known. */
enum weir_status store_write_set(struct store *store, struct store_place *place,
                                 const struct store_key *key, struct span value,
                                 const struct store_moment *moment,
                                 struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_write_delete(struct store *store, const struct store_place *place,
                                    const struct store_moment *moment,
                                    struct store_change *change) WEIR_MUST_CHECK;
enum weir_status store_write_touch(struct store *store, struct store_place *place,
                                   const struct store_key *key, const struct store_moment *moment,
                                   struct store_change *change) WEIR_MUST_CHECK;

/* Parts of a write. store_retire_reserve(): false: no room to retire what a write may retire. */
bool store_retire_reserve(struct store *store);
enum weir_status store_make_group(struct store *store, const struct store_key *key, uint64_t hash,
                                  uint64_t epoch, uint64_t *made) WEIR_MUST_CHECK;
/* Of a group without items. */
void store_drop_group(struct store *store, uint64_t offset);
void store_trim_empty_groups(struct store *store);
/* Whether one more item may be in the group (0: a new one). */
bool store_has_room(const struct store *store, uint64_t group);
/* A filled block that is not linked yet, or 0. */
uint64_t store_make_item(struct store *store, const struct store_place *place, struct span id,
                         struct span id_escaped, struct span value);
void store_append_item(struct store *store, struct group_block *group, uint64_t offset);
/* Put `replacement` (0: nothing) where `offset` is; the old block keeps its links. */
void store_replace_item(struct store *store, struct group_block *group, uint64_t offset,
                        uint64_t replacement);
/* The group got its first item, or lost its last one; during a write. */
void store_list_group(struct store *store, uint64_t offset);
void store_unlist_group(struct store *store, uint64_t offset);

#endif

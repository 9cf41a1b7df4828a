/* shm/store_layout.h -- mapped structs of the store, byte for byte; only store*.c and their tests
 * look inside.
 *
 * Every field is an atomic word, and every write to a block is an atomic store, even while nobody
 * can reach it: a reader whose epoch was revoked may still be reading what used to be there.
 * Offsets count from the start of the store area; 0 is none.
 *
 *      0 +-----------------------+ struct store_root
 *  64 Ki +-----------------------+ arena: blocks of streams, groups, items, index tables
 *        +-----------------------+ end of the store area
 *
 * Names follow a block's head, each filled up with zeros to a word, so that they can be copied in
 * words:
 *   stream: name, escaped name        group: stream, group, escaped stream, escaped group        item: id, escaped id, value
 * An escaped name of the same length is the same text and is left out.
 */
#ifndef WEIR_SHM_STORE_LAYOUT_H
#define WEIR_SHM_STORE_LAYOUT_H

#include "shm/arena.h"
#include "shm/index.h"
#include "shm/limits.h"
#include "shm/words.h"

#define STORE_LAYOUT_MAGIC                                                                         \
    0x3265726f74537277ull /* "wrStore2", little-endian; a change of layout changes the digit */

enum {
    STORE_FIRST_BLOCK = ARENA_SPAN_BYTES,
    STORE_EPOCH_BUCKETS = 4096,
};

/* What readers need of a group at one seq. */
struct store_numbers {
    uint64_t seq;
    uint64_t timestamp_ms;
    uint64_t next_ms;
    uint64_t item_count;
};
enum { STORE_NUMBERS_WORDS = 4 };
static_assert(sizeof(struct store_numbers) == STORE_NUMBERS_WORDS * WORD_BYTES, "copied by words");

struct store_root {
    /* line 0: written once; magic last (release) */
    _Atomic uint64_t magic;
    _Atomic uint64_t area_bytes;
    _Atomic uint64_t is_logged; /* 1: readers are shown what is committed */
    _Atomic uint64_t padding_once[5];
    /* line 1 */
    _Atomic uint64_t first_stream;
    _Atomic uint64_t
        new_group_ms; /* no stamp of a group that has no record yet is below this; never falls */
    /* Logged: groups that got their first item or lost their last one, so often, and so often
     * committed. Equal: what lists show is committed. */
    _Atomic uint64_t listings_begun;
    _Atomic uint64_t listings_committed; /* release L */
    _Atomic uint64_t padding_lists[4];
    /* line 2 */
    struct index_root stream_index;
    struct index_root group_index;
    struct index_root item_index;
    _Atomic uint64_t padding_index[2];
    /* The epoch of a group's next life, by group hash; see "Epochs" in store.c. */
    _Atomic uint64_t next_epochs[STORE_EPOCH_BUCKETS];
};
static_assert(offsetof(struct store_root, first_stream) == 1 * CACHE_LINE, "own line");
static_assert(offsetof(struct store_root, stream_index) == 2 * CACHE_LINE, "own line");
static_assert(offsetof(struct store_root, next_epochs) == 3 * CACHE_LINE, "own lines");
static_assert(sizeof(struct store_root) <= STORE_FIRST_BLOCK, "the arena starts behind the root");

struct stream_block {
    _Atomic uint64_t next;     /* release G; streams by creation */
    _Atomic uint64_t previous; /* broker only */
    _Atomic uint64_t first_group;
    _Atomic uint64_t last_group; /* broker only */
    _Atomic uint64_t hash;
    _Atomic uint64_t ordinal;       /* grows along the list */
    _Atomic uint64_t name_bytes;    /* low half: name, high half: escaped name */
    _Atomic uint64_t listed_groups; /* broker only: groups with items */
    _Atomic uint64_t names[];
};
static_assert(sizeof(struct stream_block) == CACHE_LINE, "no hidden padding");

struct group_block {
    /* line 0: written once */
    _Atomic uint64_t hash;
    _Atomic uint64_t epoch;
    _Atomic uint64_t ordinal; /* grows along the list */
    _Atomic uint64_t stream;
    _Atomic uint64_t stream_bytes; /* low half: name, high half: escaped name */
    _Atomic uint64_t group_bytes;
    _Atomic uint64_t padding_once[2];
    /* line 1: lists */
    _Atomic uint64_t next;     /* release G; groups of the stream by creation */
    _Atomic uint64_t previous; /* broker only */
    _Atomic uint64_t first_item;
    _Atomic uint64_t last_item;      /* broker only */
    _Atomic uint64_t next_empty;     /* broker only: groups without items, longest empty first */
    _Atomic uint64_t previous_empty; /* broker only */
    _Atomic uint64_t unpublished;    /* broker only: writes whose event is not in the ring yet */
    _Atomic uint64_t padding_lists;
    /* lines 2 and 3: change with every write */
    _Atomic uint64_t begun_seq;         /* stored before the first effect of a write can be seen */
    _Atomic uint64_t version;           /* release N: numbers[version & 1] is whole */
    _Atomic uint64_t newest_position;   /* of an event; logged: of a committed one */
    _Atomic uint64_t committed_seq;     /* release K; logged: all writes up to it may be shown */
    _Atomic uint64_t appended_position; /* broker only; logged: of the newest event */
    _Atomic uint64_t listing_seq;       /* broker only; logged: the write that came to be or ceased
                                           to be listed with, the newest such one */
    _Atomic uint64_t listings_open;     /* broker only; logged: such writes not committed */
    _Atomic uint64_t padding_numbers;
    _Atomic uint64_t numbers[2][STORE_NUMBERS_WORDS];
    _Atomic uint64_t names[];
};
static_assert(offsetof(struct group_block, next) == 1 * CACHE_LINE, "own line");
static_assert(offsetof(struct group_block, begun_seq) == 2 * CACHE_LINE, "own lines");
static_assert(sizeof(struct group_block) == 4 * CACHE_LINE, "no hidden padding");

/* Never changes once it is reachable, except for its links. A retired item keeps its last `next`
 * for ever. */
struct item_block {
    _Atomic uint64_t next;     /* release G; items of the group by creation */
    _Atomic uint64_t previous; /* broker only */
    _Atomic uint64_t group;
    _Atomic uint64_t created_seq; /* grows along the list */
    _Atomic uint64_t modified_seq;
    _Atomic uint64_t item_hash;
    _Atomic uint64_t id_bytes; /* low half: id, high half: escaped id */
    _Atomic uint64_t value_bytes;
    _Atomic uint64_t words[];
};
static_assert(sizeof(struct item_block) == CACHE_LINE, "no hidden padding");

static inline uint64_t store_load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static inline uint64_t store_load_acquire(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline uint64_t store_pair(uint64_t low, uint64_t high)
{
    return low | high << 32;
}

static inline uint64_t store_low(uint64_t pair)
{
    return pair & UINT32_MAX;
}

static inline uint64_t store_high(uint64_t pair)
{
    return pair >> 32;
}

/* Bytes a name and its escaped form take behind a block's head. */
static inline uint64_t store_names_bytes(uint64_t pair)
{
    uint64_t escaped = store_high(pair) == store_low(pair) ? 0 : store_high(pair);
    return shm_align_word(store_low(pair)) + shm_align_word(escaped);
}

/* Ask for the lines of a block before its lengths are known: with a million items each line is a
 * miss, and these overlap. A prefetch never faults, so the offset need not be checked. */
static inline void store_prefetch(const char *base, uint64_t offset)
{
    enum { PREFETCH_BYTES = 6 * CACHE_LINE };
    for (unsigned ahead = 0; ahead < PREFETCH_BYTES; ahead += CACHE_LINE)
        __builtin_prefetch(base + offset + ahead);
}

/* Lengths a block can have; anything else is overwritten memory. */
static inline bool store_names_sane(uint64_t pair)
{
    return store_low(pair) <= NAME_BYTES_MAX && store_high(pair) <= NAME_ESCAPED_BYTES_MAX &&
           store_high(pair) >= store_low(pair);
}

/* True when `bytes` of the mapping equal `text`. */
static inline bool store_words_equal(const _Atomic uint64_t *words, struct span text)
{
    size_t whole = text.bytes / WORD_BYTES;
    for (size_t i = 0; i < whole; i++) {
        uint64_t word;
        memcpy(&word, text.data + i * WORD_BYTES, WORD_BYTES);
        if (store_load(&words[i]) != word)
            return false;
    }
    size_t rest = text.bytes % WORD_BYTES;
    if (rest == 0)
        return true;
    uint64_t word = 0;
    memcpy(&word, text.data + whole * WORD_BYTES, rest);
    return (store_load(&words[whole]) & ((1ull << rest * 8) - 1)) == word;
}

#endif

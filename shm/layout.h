/* shm/layout.h -- mapped structs of the segment, byte for byte: header, ring, reader table, control
 * page.
 *
 * Only segment.c, ring.c and readers.c (and their tests) look inside; everybody else goes through
 * their functions. Fixed-width types, offsets instead of pointers, every padding byte named and
 * zero, one cache line per writer. A change here changes segment_layout_hash(); a change of meaning
 * without a change of layout needs a new SEGMENT_ABI_VERSION.
 */
#ifndef WEIR_SHM_LAYOUT_H
#define WEIR_SHM_LAYOUT_H

#include "shm/limits.h"
#include "shm/readers.h"
#include "shm/ring.h"
#include "shm/words.h"

#define SEGMENT_MAGIC 0x3147455352494557ull /* "WEIRSEG1", little-endian */
#define SEGMENT_ABI_VERSION 1u

enum { SEGMENT_PAGE_BYTES = 4096 };

/* One page. Written once by segment_create(), magic by segment_publish(); never changes after that. */
struct segment_header {
    _Atomic uint64_t
        magic; /* stored last, release; pairs with the acquire load in segment_attach() */
    uint32_t abi_version;
    uint32_t spare;
    uint64_t layout_hash;
    uint64_t generation;
    uint64_t hash_seed;
    uint64_t segment_bytes;
    uint64_t ring_offset;
    uint64_t ring_bytes;
    uint64_t readers_offset;
    uint64_t readers_bytes;
    uint64_t store_offset;
    uint64_t store_bytes;
    uint8_t padding[SEGMENT_PAGE_BYTES - 12 * 8];
};
static_assert(sizeof(struct segment_header) == SEGMENT_PAGE_BYTES, "the header is one page");
static_assert(offsetof(struct segment_header, store_bytes) == 88, "no hidden padding");

/*   0 +--------------------------------------------+ written once by ring_writer_open()
 *     | capacity_bytes                             |
 *  64 +--------------------------------------------+ broker stores now and then, readers load per record
 *     | reserved   bytes below may be overwritten  |
 * 128 +--------------------------------------------+ broker stores per publish, readers load when they have caught up
 *     | head       first position not published    |
 * 192 +--------------------------------------------+ zero up to one page; the ring's bytes follow */
struct ring_header {
    uint64_t capacity_bytes; /* a power of two */
    uint8_t padding_once[CACHE_LINE - 8];
    _Atomic uint64_t reserved;
    uint8_t padding_reserved[CACHE_LINE - 8];
    _Atomic uint64_t head;
    uint8_t padding_head[CACHE_LINE - 8];
    uint8_t padding[SEGMENT_PAGE_BYTES - 3 * CACHE_LINE];
};
static_assert(offsetof(struct ring_header, reserved) == 1 * CACHE_LINE, "own line");
static_assert(offsetof(struct ring_header, head) == 2 * CACHE_LINE, "own line: readers spin on it");
static_assert(sizeof(struct ring_header) == SEGMENT_PAGE_BYTES, "ring bytes start on a page");

/*   0 low half: length of the slot in bytes, itself included; high half: RING_SLOT_RECORD or
 *   RING_SLOT_PADDING
 *   8  struct ring_record, word for word                  (a padding slot has nothing from here on)
 * 112  frame, filled up with zeros to a word
 *  ..  decoded item id, filled up with zeros to a word */
struct ring_slot {
    _Atomic uint64_t length_and_type;
    _Atomic uint64_t record[sizeof(struct ring_record) / WORD_BYTES];
};
enum { RING_SLOT_RECORD = 0x52, RING_SLOT_PADDING = 0x50 };
static_assert(sizeof(struct ring_record) == 104, "the record is stored as it is");
static_assert(offsetof(struct ring_record, kind) == 72, "no hidden padding");
static_assert(sizeof(struct ring_slot) == 112, "frames start here");

/* One reader as the broker shows it to everybody. `use` is odd while the slot is taken and grows
 * with every attach and detach, so that a reader that was detached behind its back finds out. */
struct reader_slot {
    _Atomic uint64_t use;
    _Atomic uint64_t revoked_epoch;
    _Atomic uint64_t pid;
    _Atomic uint64_t cursor_position; /* these and the counters: as last collected */
    _Atomic uint64_t heartbeat_ms;
    uint8_t padding[CACHE_LINE - 5 * 8];
    _Atomic uint64_t counters[CONTROL_COUNTERS];
};
static_assert(sizeof(struct reader_slot) == CACHE_LINE + CONTROL_COUNTERS * 8, "whole lines");

enum { BROKER_COUNTERS_MAX = 64 };
static_assert((int)BROKER_COUNTER_COUNT <= (int)BROKER_COUNTERS_MAX, "all of them fit");

struct reader_table {
    _Atomic uint64_t store_epoch; /* starts at 1; 0 means "not reading" in a control page */
    uint8_t padding_epoch[CACHE_LINE - 8];
    uint32_t slot_count;
    uint8_t padding_once[CACHE_LINE - 4];
    _Atomic uint64_t broker_counters[BROKER_COUNTERS_MAX];
    struct reader_slot slots[READERS_MAX];
};
static_assert(offsetof(struct reader_table, broker_counters) == 2 * CACHE_LINE, "lines by writer");
static_assert(offsetof(struct reader_table, slots) == 2 * CACHE_LINE + BROKER_COUNTERS_MAX * 8,
              "whole lines");
static_assert(sizeof(struct reader_table) ==
                  offsetof(struct reader_table, slots) + READERS_MAX * sizeof(struct reader_slot),
              "no hidden padding");

/* The reader's own page. `slot` and `use` are written once by the broker before the page is passed
 * on. */
struct control_page {
    _Atomic uint64_t asleep;
    uint8_t padding_asleep[CACHE_LINE - 8];
    _Atomic uint64_t reading_epoch;
    uint8_t padding_epoch[CACHE_LINE - 8];
    _Atomic uint64_t cursor_position;
    _Atomic uint64_t heartbeat_ms;
    uint8_t padding_cursor[CACHE_LINE - 16];
    uint64_t slot;
    uint64_t use;
    uint8_t padding_once[CACHE_LINE - 16];
    _Atomic uint64_t counters[CONTROL_COUNTERS];
    _Atomic uint64_t chooses;
    uint8_t padding_chooses[CACHE_LINE - 8];
    _Atomic uint64_t wanted[READER_WANTED_BITS / 64];
    uint8_t padding[CONTROL_PAGE_BYTES - 5 * CACHE_LINE - CONTROL_COUNTERS * 8 -
                    READER_WANTED_BITS / 8];
};
static_assert(offsetof(struct control_page, reading_epoch) == 64, "documented in readers.h");
static_assert(offsetof(struct control_page, cursor_position) == 128, "documented in readers.h");
static_assert(offsetof(struct control_page, counters) == 256, "documented in readers.h");
static_assert(offsetof(struct control_page, chooses) == 1024, "documented in readers.h");
static_assert(offsetof(struct control_page, wanted) == 1088, "documented in readers.h");
static_assert(sizeof(struct control_page) == CONTROL_PAGE_BYTES, "one page");

#endif

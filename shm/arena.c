#include "shm/arena.h"

#include <assert.h>
#include <stdlib.h>

enum {
    SLAB_BLOCK_BYTES_MIN = 64,
    SLAB_BLOCK_BYTES_MAX = 64 * 1024,
    CLASSES_PER_DOUBLING = 4,
    CLASS_COUNT = 10 * CLASSES_PER_DOUBLING + 1, /* 64 ... 65536 */
    SLAB_BLOCKS_MAX = ARENA_SPAN_BYTES / SLAB_BLOCK_BYTES_MIN,
    SLAB_WORDS = SLAB_BLOCKS_MAX / 64,
    ORDER_COUNT = 24, /* runs up to 2^23 spans: 512 GiB */
};
static_assert(SLAB_BLOCK_BYTES_MIN << 10 == SLAB_BLOCK_BYTES_MAX, "ten doublings");

#define NO_SPAN UINT32_MAX

enum span_state {
    SPAN_FREE_INSIDE = 0, /* inside a free run, not its first */
    SPAN_FREE_HEAD,       /* first of a free run; order and links are valid */
    SPAN_RUN_HEAD,        /* first of a large block; span_count is valid */
    SPAN_RUN_INSIDE,
    SPAN_SLAB, /* part of the slab whose first span is `head` */
};

struct span_entry {
    uint32_t next, prev; /* free runs of one order */
    union {
        uint32_t span_count; /* SPAN_RUN_HEAD */
        uint32_t head;       /* SPAN_SLAB */
    };
    uint8_t state;
    uint8_t order;
    uint8_t spare[2];
};

/* Kept at the index of the slab's first span. */
struct slab {
    uint32_t next, prev; /* slabs of one class with free blocks */
    uint32_t block_bytes;
    uint16_t block_count;
    uint16_t free_count;
    uint8_t size_class;
    uint8_t order;
    uint8_t first_word; /* no free block in words below */
    uint8_t spare;
    uint64_t free_bits[SLAB_WORDS];
};

struct arena {
    char *base;
    uint64_t first_byte;
    uint32_t span_count;
    uint32_t free_orders; /* bit set: that order has a free run */
    uint32_t free_head[ORDER_COUNT];
    uint32_t partial_head[CLASS_COUNT];
    uint64_t used_bytes;
    struct span_entry *spans;
    struct slab *slabs;
};

/* ---- size classes ---- */

static unsigned floor_log2(uint64_t value)
{
    return 63u - (unsigned)__builtin_clzll(value);
}

static unsigned class_of(uint64_t bytes)
{
    if (bytes <= SLAB_BLOCK_BYTES_MIN)
        return 0;
    unsigned doubling = floor_log2(bytes - 1); /* 2^doubling < bytes <= 2^(doubling + 1) */
    uint64_t step = 1ull << (doubling - 2);
    uint64_t quarter = (bytes - 1 - (1ull << doubling)) / step; /* 0..3 */
    return (doubling - 6) * CLASSES_PER_DOUBLING + (unsigned)quarter + 1;
}

static uint32_t class_bytes(unsigned size_class)
{
    uint32_t base = (uint32_t)SLAB_BLOCK_BYTES_MIN << (size_class / CLASSES_PER_DOUBLING);
    return base + base / CLASSES_PER_DOUBLING * (size_class % CLASSES_PER_DOUBLING);
}

static unsigned slab_order(uint32_t block_bytes)
{
    return block_bytes <= 4096 ? 0 : block_bytes <= 16384 ? 2 : 4;
}

/* ---- runs of spans: buddies ---- */

static void free_list_push(struct arena *arena, uint32_t span, unsigned order)
{
    struct span_entry *entry = &arena->spans[span];
    *entry = (struct span_entry){.next = arena->free_head[order],
                                 .prev = NO_SPAN,
                                 .state = SPAN_FREE_HEAD,
                                 .order = (uint8_t)order};
    if (entry->next != NO_SPAN)
        arena->spans[entry->next].prev = span;
    arena->free_head[order] = span;
    arena->free_orders |= 1u << order;
}

static void free_list_remove(struct arena *arena, uint32_t span)
{
    struct span_entry *entry = &arena->spans[span];
    weir_assert(entry->state == SPAN_FREE_HEAD);
    if (entry->prev != NO_SPAN)
        arena->spans[entry->prev].next = entry->next;
    else
        arena->free_head[entry->order] = entry->next;
    if (entry->next != NO_SPAN)
        arena->spans[entry->next].prev = entry->prev;
    if (arena->free_head[entry->order] == NO_SPAN)
        arena->free_orders &= ~(1u << entry->order);
    entry->state = SPAN_FREE_INSIDE;
}

static void buddy_free(struct arena *arena, uint32_t span, unsigned order)
{
    for (; order + 1 < ORDER_COUNT; order++) {
        uint32_t buddy = span ^ (1u << order);
        if (buddy >= arena->span_count || arena->spans[buddy].state != SPAN_FREE_HEAD ||
            arena->spans[buddy].order != order)
            break;
        free_list_remove(arena, buddy);
        arena->spans[span].state = SPAN_FREE_INSIDE;
        if (buddy < span)
            span = buddy;
    }
    free_list_push(arena, span, order);
}

/* Any range is at most two aligned runs per order. */
static void range_free(struct arena *arena, uint32_t span, uint32_t count)
{
    while (count > 0) {
        unsigned order = floor_log2(count);
        unsigned aligned = span == 0 ? ORDER_COUNT - 1 : (unsigned)__builtin_ctz(span);
        if (aligned < order)
            order = aligned;
        for (uint32_t i = 0; i < 1u << order; i++)
            arena->spans[span + i].state = SPAN_FREE_INSIDE;
        buddy_free(arena, span, order);
        span += 1u << order;
        count -= 1u << order;
    }
}

/* First of `count` spans in a row, or NO_SPAN. The caller sets their state. */
static uint32_t range_alloc(struct arena *arena, uint32_t count)
{
    unsigned order = count == 1 ? 0 : floor_log2(count - 1) + 1;
    if (order >= ORDER_COUNT)
        return NO_SPAN;
    uint32_t fitting = arena->free_orders & ~((1u << order) - 1);
    if (fitting == 0)
        return NO_SPAN;
    unsigned found = (unsigned)__builtin_ctz(fitting);
    uint32_t span = arena->free_head[found];
    free_list_remove(arena, span);
    while (found > order) {
        found--;
        free_list_push(arena, span + (1u << found), found);
    }
    if (count < 1u << order)
        range_free(arena, span + count, (1u << order) - count);
    return span;
}

/* ---- slabs ---- */

static void partial_push(struct arena *arena, uint32_t span)
{
    struct slab *slab = &arena->slabs[span];
    slab->prev = NO_SPAN;
    slab->next = arena->partial_head[slab->size_class];
    if (slab->next != NO_SPAN)
        arena->slabs[slab->next].prev = span;
    arena->partial_head[slab->size_class] = span;
}

static void partial_remove(struct arena *arena, uint32_t span)
{
    struct slab *slab = &arena->slabs[span];
    if (slab->prev != NO_SPAN)
        arena->slabs[slab->prev].next = slab->next;
    else
        arena->partial_head[slab->size_class] = slab->next;
    if (slab->next != NO_SPAN)
        arena->slabs[slab->next].prev = slab->prev;
}

/* A new slab of the class, shorter than usual when no longer run is free. False: no room. */
static bool slab_make(struct arena *arena, unsigned size_class)
{
    uint32_t block_bytes = class_bytes(size_class);
    unsigned order = slab_order(block_bytes);
    uint32_t span = range_alloc(arena, 1u << order);
    while (span == NO_SPAN && order > 0)
        span = range_alloc(arena, 1u << --order);
    if (span == NO_SPAN)
        return false;
    for (uint32_t i = 0; i < 1u << order; i++)
        arena->spans[span + i] = (struct span_entry){.head = span, .state = SPAN_SLAB};
    struct slab *slab = &arena->slabs[span];
    uint32_t blocks = ((uint32_t)ARENA_SPAN_BYTES << order) / block_bytes;
    weir_assert(blocks >= 1 && blocks <= SLAB_BLOCKS_MAX);
    *slab = (struct slab){.block_bytes = block_bytes,
                          .block_count = (uint16_t)blocks,
                          .free_count = (uint16_t)blocks,
                          .size_class = (uint8_t)size_class,
                          .order = (uint8_t)order};
    for (uint32_t word = 0; word * 64 < blocks; word++) {
        uint32_t rest = blocks - word * 64;
        slab->free_bits[word] = rest >= 64 ? UINT64_MAX : (1ull << rest) - 1;
    }
    partial_push(arena, span);
    return true;
}

static uint64_t slab_alloc(struct arena *arena, unsigned size_class)
{
    if (arena->partial_head[size_class] == NO_SPAN && !slab_make(arena, size_class))
        return 0;
    uint32_t span = arena->partial_head[size_class];
    struct slab *slab = &arena->slabs[span];
    unsigned word = slab->first_word;
    while (slab->free_bits[word] == 0) { /* at most SLAB_WORDS: free_count > 0 */
        word++;
        weir_assert(word < SLAB_WORDS);
    }
    slab->first_word = (uint8_t)word;
    unsigned bit = (unsigned)__builtin_ctzll(slab->free_bits[word]);
    slab->free_bits[word] &= slab->free_bits[word] - 1;
    slab->free_count--;
    if (slab->free_count == 0)
        partial_remove(arena, span);
    arena->used_bytes += slab->block_bytes;
    return arena->first_byte + (uint64_t)span * ARENA_SPAN_BYTES +
           (uint64_t)(word * 64 + bit) * slab->block_bytes;
}

static void slab_free(struct arena *arena, uint32_t span, uint64_t byte)
{
    struct slab *slab = &arena->slabs[span];
    uint32_t block = (uint32_t)byte / slab->block_bytes;
    weir_assert(block < slab->block_count);
    weir_assert(block * slab->block_bytes == byte);
    uint64_t bit = 1ull << (block % 64);
    weir_assert((slab->free_bits[block / 64] & bit) == 0);
    slab->free_bits[block / 64] |= bit;
    slab->free_count++;
    if (block / 64 < slab->first_word)
        slab->first_word = (uint8_t)(block / 64);
    arena->used_bytes -= slab->block_bytes;
    if (slab->free_count == slab->block_count) {
        if (slab->block_count > 1)
            partial_remove(arena, span);
        range_free(arena, span, 1u << slab->order);
    } else if (slab->free_count == 1) {
        partial_push(arena, span);
    }
}

/* ---- the arena ---- */

struct arena *arena_open(char *base, uint64_t first_byte, uint64_t end_byte)
{
    weir_assert(first_byte > 0 && first_byte % ARENA_SPAN_BYTES == 0 && first_byte < end_byte);
    uint64_t span_count = (end_byte - first_byte) / ARENA_SPAN_BYTES;
    weir_assert(span_count > 0 && span_count < 1u << (ORDER_COUNT - 1));
    struct arena *arena = calloc(1, sizeof(*arena));
    if (arena == NULL)
        return NULL;
    arena->base = base;
    arena->first_byte = first_byte;
    arena->span_count = (uint32_t)span_count;
    arena->spans = calloc(span_count, sizeof(*arena->spans));
    arena->slabs = calloc(span_count, sizeof(*arena->slabs));
    if (arena->spans == NULL || arena->slabs == NULL) {
        arena_close(arena);
        return NULL;
    }
    for (unsigned order = 0; order < ORDER_COUNT; order++)
        arena->free_head[order] = NO_SPAN;
    for (unsigned size_class = 0; size_class < CLASS_COUNT; size_class++)
        arena->partial_head[size_class] = NO_SPAN;
    range_free(arena, 0, arena->span_count);
    return arena;
}

void arena_close(struct arena *arena)
{
    if (arena == NULL)
        return;
    free(arena->spans);
    free(arena->slabs);
    free(arena);
}

uint64_t arena_alloc(struct arena *arena, uint64_t bytes)
{
    weir_assert(bytes > 0);
    if (bytes <= SLAB_BLOCK_BYTES_MAX)
        return slab_alloc(arena, class_of(bytes));
    uint64_t count = (bytes - 1) / ARENA_SPAN_BYTES + 1;
    if (count > arena->span_count)
        return 0;
    uint32_t span = range_alloc(arena, (uint32_t)count);
    if (span == NO_SPAN)
        return 0;
    for (uint32_t i = 1; i < count; i++)
        arena->spans[span + i].state = SPAN_RUN_INSIDE;
    arena->spans[span] = (struct span_entry){.span_count = (uint32_t)count, .state = SPAN_RUN_HEAD};
    arena->used_bytes += count * ARENA_SPAN_BYTES;
    return arena->first_byte + (uint64_t)span * ARENA_SPAN_BYTES;
}

static uint32_t span_of_offset(const struct arena *arena, uint64_t offset)
{
    weir_assert(offset >= arena->first_byte);
    uint64_t span = (offset - arena->first_byte) / ARENA_SPAN_BYTES;
    weir_assert(span < arena->span_count);
    return (uint32_t)span;
}

void arena_free(struct arena *arena, uint64_t offset)
{
    uint32_t span = span_of_offset(arena, offset);
    struct span_entry *entry = &arena->spans[span];
    if (entry->state == SPAN_SLAB) {
        uint64_t slab_byte = arena->first_byte + (uint64_t)entry->head * ARENA_SPAN_BYTES;
        slab_free(arena, entry->head, offset - slab_byte);
        return;
    }
    weir_assert(entry->state == SPAN_RUN_HEAD);
    weir_assert((offset - arena->first_byte) % ARENA_SPAN_BYTES == 0);
    arena->used_bytes -= (uint64_t)entry->span_count * ARENA_SPAN_BYTES;
    range_free(arena, span, entry->span_count);
}

uint64_t arena_block_bytes(const struct arena *arena, uint64_t offset)
{
    const struct span_entry *entry = &arena->spans[span_of_offset(arena, offset)];
    if (entry->state == SPAN_SLAB)
        return arena->slabs[entry->head].block_bytes;
    weir_assert(entry->state == SPAN_RUN_HEAD);
    return (uint64_t)entry->span_count * ARENA_SPAN_BYTES;
}

uint64_t arena_bytes(const struct arena *arena)
{
    return (uint64_t)arena->span_count * ARENA_SPAN_BYTES;
}

uint64_t arena_used_bytes(const struct arena *arena)
{
    return arena->used_bytes;
}

/* ---- check ---- */

static enum weir_status check_slab(const struct arena *arena, uint32_t span, uint64_t *used,
                                   struct weir_error *error)
{
    const struct slab *slab = &arena->slabs[span];
    uint32_t free_count = 0;
    for (unsigned word = 0; word < SLAB_WORDS; word++) {
        free_count += (uint32_t)__builtin_popcountll(slab->free_bits[word]);
        if (slab->free_bits[word] != 0 && word < slab->first_word)
            return weir_fail(error, WEIR_CORRUPT, "slab %u: free block below first_word", span);
    }
    if (free_count != slab->free_count || free_count >= slab->block_count)
        return weir_fail(error, WEIR_CORRUPT, "slab %u: %u free by bits, %u counted, %u blocks",
                         span, free_count, slab->free_count, slab->block_count);
    for (uint32_t i = 0; i < 1u << slab->order; i++)
        if (arena->spans[span + i].state != SPAN_SLAB || arena->spans[span + i].head != span)
            return weir_fail(error, WEIR_CORRUPT, "slab %u: span %u is not its own", span, i);
    *used += (uint64_t)(slab->block_count - free_count) * slab->block_bytes;
    return WEIR_OK;
}

static enum weir_status check_lists(const struct arena *arena, uint32_t free_heads,
                                    uint32_t partial_slabs, struct weir_error *error)
{
    uint32_t heads = 0;
    uint32_t partial = 0;
    for (unsigned order = 0; order < ORDER_COUNT; order++) {
        if ((arena->free_head[order] != NO_SPAN) != ((arena->free_orders >> order & 1u) != 0))
            return weir_fail(error, WEIR_CORRUPT, "order %u: bit and list differ", order);
        for (uint32_t span = arena->free_head[order]; span != NO_SPAN && heads <= free_heads;
             span = arena->spans[span].next, heads++)
            if (arena->spans[span].state != SPAN_FREE_HEAD || arena->spans[span].order != order)
                return weir_fail(error, WEIR_CORRUPT, "order %u lists span %u", order, span);
    }
    for (unsigned size_class = 0; size_class < CLASS_COUNT; size_class++)
        for (uint32_t span = arena->partial_head[size_class];
             span != NO_SPAN && partial <= partial_slabs; span = arena->slabs[span].next, partial++)
            if (arena->spans[span].state != SPAN_SLAB || arena->slabs[span].free_count == 0 ||
                arena->slabs[span].size_class != size_class)
                return weir_fail(error, WEIR_CORRUPT, "class %u lists span %u", size_class, span);
    if (heads != free_heads || partial != partial_slabs)
        return weir_fail(error, WEIR_CORRUPT, "%u free runs, %u listed; %u open slabs, %u listed",
                         free_heads, heads, partial_slabs, partial);
    return WEIR_OK;
}

enum weir_status arena_check(const struct arena *arena, struct weir_error *error)
{
    uint64_t used = 0;
    uint32_t free_heads = 0;
    uint32_t partial_slabs = 0;
    for (uint32_t span = 0; span < arena->span_count;) {
        const struct span_entry *entry = &arena->spans[span];
        if (entry->state == SPAN_FREE_HEAD) {
            uint32_t buddy = span ^ (1u << entry->order);
            if (buddy < arena->span_count && arena->spans[buddy].state == SPAN_FREE_HEAD &&
                arena->spans[buddy].order == entry->order)
                return weir_fail(error, WEIR_CORRUPT, "free buddies %u and %u apart", span, buddy);
            for (uint32_t i = 1; i < 1u << entry->order; i++)
                if (arena->spans[span + i].state != SPAN_FREE_INSIDE)
                    return weir_fail(error, WEIR_CORRUPT, "span %u inside a free run", span + i);
            free_heads++;
            span += 1u << entry->order;
        } else if (entry->state == SPAN_RUN_HEAD) {
            used += (uint64_t)entry->span_count * ARENA_SPAN_BYTES;
            span += entry->span_count;
        } else if (entry->state == SPAN_SLAB && entry->head == span) {
            enum weir_status status = check_slab(arena, span, &used, error);
            if (status != WEIR_OK)
                return status;
            partial_slabs += arena->slabs[span].free_count > 0 ? 1 : 0;
            span += 1u << arena->slabs[span].order;
        } else {
            return weir_fail(error, WEIR_CORRUPT, "span %u: unexpected state %u", span,
                             entry->state);
        }
    }
    if (used != arena->used_bytes)
        return weir_fail(error, WEIR_CORRUPT, "%llu bytes used, %llu counted",
                         (unsigned long long)used, (unsigned long long)arena->used_bytes);
    return check_lists(arena, free_heads, partial_slabs, error);
}

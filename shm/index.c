#include "shm/index.h"

#include <assert.h>

#define SLOT_EMPTY 0ull
#define SLOT_REMOVED 1ull

enum {
    SLOT_COUNT_MIN = 512,
    SLOT_COUNT_LOG2_MAX = 32,
    CLEAR_SLOTS_PER_WRITE = 1024,
    MOVE_SLOTS_PER_WRITE = 64,
    INSERTS_MAX = 4,
    TRIM_SLOTS_MAX = 64, /* removed slots turned back to empty by one removal */
};
static_assert(sizeof(_Atomic uint64_t) == 8, "slots are plain words in the segment");

static uint32_t tag_of(uint64_t hash)
{
    return (uint32_t)(hash >> 32) ^ (uint32_t)hash;
}

static uint64_t slot_of(uint32_t tag, uint64_t offset)
{
    return (uint64_t)tag << 32 | offset / ARENA_GRANULE_BYTES;
}

static uint64_t offset_of(uint64_t slot)
{
    return (slot & UINT32_MAX) * ARENA_GRANULE_BYTES;
}

static bool slot_is_live(uint64_t slot)
{
    return (slot & UINT32_MAX) > SLOT_REMOVED;
}

static uint64_t descriptor_of(const struct index_table *table)
{
    return table->offset / ARENA_GRANULE_BYTES << 8 | (uint64_t)__builtin_ctzll(table->slot_count);
}

/* ---- any process ---- */

/* Point the lookup at a table; a descriptor that cannot be true (overwritten memory) is a table
 * without slots. */
static void lookup_enter(struct index_lookup *lookup, uint64_t descriptor)
{
    uint64_t log2 = descriptor & 0xff;
    uint64_t offset = (descriptor >> 8) * ARENA_GRANULE_BYTES;
    lookup->left = 0;
    if (descriptor == 0 || log2 > SLOT_COUNT_LOG2_MAX || offset > lookup->area_bytes ||
        8ull << log2 > lookup->area_bytes - offset)
        return;
    lookup->slots = (const _Atomic uint64_t *)(const void *)(lookup->base + offset);
    lookup->left = 1ull << log2;
    lookup->mask = lookup->left - 1;
    lookup->position = lookup->tag & lookup->mask;
}

void index_lookup_begin(struct index_lookup *lookup, const char *base, uint64_t area_bytes,
                        const struct index_root *root, uint64_t hash)
{
    lookup->base = base;
    lookup->area_bytes = area_bytes;
    lookup->root = root;
    lookup->tag = tag_of(hash);
    lookup->in_old = 0;
    lookup->current = atomic_load_explicit(&root->current, memory_order_acquire); /* B' */
    lookup->old = atomic_load_explicit(&root->old, memory_order_acquire);
    lookup_enter(lookup, lookup->current);
}

uint64_t index_lookup_next(struct index_lookup *lookup)
{
    for (;;) { /* two tables, each slot once */
        while (lookup->left > 0) {
            /* C': the block behind the slot is complete; pairs C. */
            uint64_t slot =
                atomic_load_explicit(&lookup->slots[lookup->position], memory_order_acquire);
            lookup->position = (lookup->position + 1) & lookup->mask;
            lookup->left--;
            if (slot == SLOT_EMPTY)
                break;
            if (slot >> 32 == lookup->tag && slot_is_live(slot)) {
                uint64_t offset = offset_of(slot);
                if (offset < lookup->area_bytes)
                    return offset;
            }
        }
        if (lookup->in_old != 0) {
            lookup->left = 0;
            return 0;
        }
        lookup->in_old = 1;
        lookup_enter(lookup, lookup->old);
    }
}

bool index_lookup_moved(const struct index_lookup *lookup)
{
    return atomic_load_explicit(&lookup->root->current, memory_order_acquire) != lookup->current;
}

/* ---- broker ---- */

static uint64_t slot_load(const struct index_table *table, uint64_t position)
{
    return atomic_load_explicit(&table->slots[position], memory_order_relaxed);
}

static void slot_store(struct index_table *table, uint64_t position, uint64_t slot)
{
    /* C: the block was written before; pairs C'. */
    atomic_store_explicit(&table->slots[position], slot, memory_order_release);
}

static bool table_alloc(struct index *index, struct index_table *table, uint64_t slot_count)
{
    uint64_t offset = arena_alloc(index->arena, slot_count * 8);
    if (offset == 0)
        return false;
    *table = (struct index_table){
        .offset = offset,
        .slots = (_Atomic uint64_t *)(void *)(index->base + offset),
        .slot_count = slot_count,
    };
    return true;
}

static void table_clear(struct index_table *table, uint64_t first, uint64_t end)
{
    for (uint64_t position = first; position < end; position++)
        atomic_store_explicit(&table->slots[position], SLOT_EMPTY, memory_order_relaxed);
}

enum weir_status index_open(struct index *index, char *base, uint64_t area_bytes,
                            struct index_root *root, struct arena *arena,
                            void (*retire)(void *context, uint64_t offset), void *retire_context)
{
    *index = (struct index){.arena = arena,
                            .base = base,
                            .area_bytes = area_bytes,
                            .root = root,
                            .retire = retire,
                            .retire_context = retire_context};
    if (!table_alloc(index, &index->current, SLOT_COUNT_MIN))
        return WEIR_FULL;
    table_clear(&index->current, 0, SLOT_COUNT_MIN);
    atomic_store_explicit(&root->old, 0, memory_order_relaxed);
    atomic_store_explicit(&root->current, descriptor_of(&index->current), memory_order_release);
    return WEIR_OK;
}

/* The key is in no slot of the table. */
static void table_insert(struct index_table *table, uint32_t tag, uint64_t offset)
{
    uint64_t mask = table->slot_count - 1;
    for (uint64_t left = table->slot_count, position = tag & mask; left > 0;
         left--, position = (position + 1) & mask) {
        uint64_t slot = slot_load(table, position);
        if (slot_is_live(slot))
            continue;
        table->used += slot == SLOT_EMPTY ? 1 : 0;
        slot_store(table, position, slot_of(tag, offset));
        return;
    }
    weir_assert_failed("index_reserve() was asked", __FILE__, __LINE__);
}

static bool table_find(const struct index_table *table, uint64_t wanted, uint64_t *found)
{
    uint64_t mask = table->slot_count - 1;
    for (uint64_t left = table->slot_count, position = (wanted >> 32) & mask; left > 0;
         left--, position = (position + 1) & mask) {
        uint64_t slot = slot_load(table, position);
        if (slot == wanted) {
            *found = position;
            return true;
        }
        if (slot == SLOT_EMPTY)
            return false;
    }
    return false;
}

/* A removed slot before an empty one ends no search that the empty one would not end: make it empty
 * again. */
static void table_trim(struct index_table *table, uint64_t position)
{
    uint64_t mask = table->slot_count - 1;
    if (slot_load(table, (position + 1) & mask) != SLOT_EMPTY)
        return;
    for (unsigned i = 0; i < TRIM_SLOTS_MAX && slot_load(table, position) == SLOT_REMOVED; i++) {
        slot_store(table, position, SLOT_EMPTY);
        table->used--;
        position = (position - 1) & mask;
    }
}

static void start_clearing(struct index *index)
{
    if ((index->current.used + INSERTS_MAX) * 8 <= index->current.slot_count * 5)
        return;
    uint64_t slot_count = SLOT_COUNT_MIN;
    while ((index->live + INSERTS_MAX) * 8 > slot_count * 3)
        slot_count *= 2;
    if (slot_count > 1ull << SLOT_COUNT_LOG2_MAX)
        return;
    if (table_alloc(index, &index->next, slot_count))
        index->cleared_slots = 0;
}

static void go_on_clearing(struct index *index)
{
    uint64_t end = index->cleared_slots + CLEAR_SLOTS_PER_WRITE;
    if (end > index->next.slot_count)
        end = index->next.slot_count;
    table_clear(&index->next, index->cleared_slots, end);
    index->cleared_slots = end;
    if (end < index->next.slot_count)
        return;
    index->old = index->current;
    index->current = index->next;
    index->next = (struct index_table){0};
    index->moved_slots = 0;
    index->rebuilds++;
    atomic_store_explicit(&index->root->old, descriptor_of(&index->old), memory_order_release);
    /* B: slots cleared and `old` set before; pairs B'. */
    atomic_store_explicit(&index->root->current, descriptor_of(&index->current),
                          memory_order_release);
}

static void go_on_moving(struct index *index)
{
    uint64_t end = index->moved_slots + MOVE_SLOTS_PER_WRITE;
    if (end > index->old.slot_count)
        end = index->old.slot_count;
    for (uint64_t position = index->moved_slots; position < end; position++) {
        uint64_t slot = slot_load(&index->old, position);
        if (slot_is_live(slot))
            table_insert(&index->current, (uint32_t)(slot >> 32), offset_of(slot));
    }
    index->moved_slots = end;
    if (end < index->old.slot_count)
        return;
    atomic_store_explicit(&index->root->old, 0, memory_order_release);
    index->retire(index->retire_context, index->old.offset);
    index->old = (struct index_table){0};
}

void index_prefetch(const struct index *index, uint64_t hash)
{
    __builtin_prefetch(&index->current.slots[tag_of(hash) & (index->current.slot_count - 1)]);
    if (index->old.slot_count != 0)
        __builtin_prefetch(&index->old.slots[tag_of(hash) & (index->old.slot_count - 1)]);
}

void index_upkeep(struct index *index)
{
    if (index->old.slot_count != 0)
        go_on_moving(index);
    else if (index->next.slot_count != 0)
        go_on_clearing(index);
    else
        start_clearing(index);
}

enum weir_status index_reserve(struct index *index, unsigned inserts)
{
    weir_assert(inserts <= INSERTS_MAX);
    index_upkeep(index);
    /* While moving, what is still to come needs slots as well: `live` counts it. */
    uint64_t need = index->old.slot_count != 0 && index->live > index->current.used
                        ? index->live
                        : index->current.used;
    return (need + inserts) * 8 <= index->current.slot_count * 7 ? WEIR_OK : WEIR_FULL;
}

void index_insert(struct index *index, uint64_t hash, uint64_t offset)
{
    weir_assert(offset / ARENA_GRANULE_BYTES > SLOT_REMOVED);
    weir_assert(offset / ARENA_GRANULE_BYTES <= UINT32_MAX);
    table_insert(&index->current, tag_of(hash), offset);
    index->live++;
}

void index_replace(struct index *index, uint64_t hash, uint64_t old_offset, uint64_t new_offset)
{
    uint64_t wanted = slot_of(tag_of(hash), old_offset);
    uint64_t slot = slot_of(tag_of(hash), new_offset);
    uint64_t position;
    bool found = false;
    if (table_find(&index->current, wanted, &position)) {
        slot_store(&index->current, position, slot);
        found = true;
    }
    if (index->old.slot_count != 0 && table_find(&index->old, wanted, &position)) {
        slot_store(&index->old, position, slot);
        found = true;
    }
    weir_assert(found);
}

void index_remove(struct index *index, uint64_t hash, uint64_t offset)
{
    uint64_t wanted = slot_of(tag_of(hash), offset);
    uint64_t position;
    bool found = false;
    /* The old table first: a reader probes it last, and must not find there what has gone from the
     * current one. */
    if (index->old.slot_count != 0 && table_find(&index->old, wanted, &position)) {
        slot_store(&index->old, position, SLOT_REMOVED);
        found = true;
    }
    if (table_find(&index->current, wanted, &position)) {
        slot_store(&index->current, position, SLOT_REMOVED);
        table_trim(&index->current, position);
        found = true;
    }
    weir_assert(found);
    index->live--;
}

enum weir_status index_check(const struct index *index, struct weir_error *error)
{
    uint64_t live = 0;
    uint64_t used = 0;
    for (uint64_t position = 0; position < index->current.slot_count; position++) {
        uint64_t slot = slot_load(&index->current, position);
        used += slot == SLOT_EMPTY ? 0 : 1;
        live += slot_is_live(slot) ? 1 : 0;
        uint64_t found;
        if (slot_is_live(slot) && (!table_find(&index->current, slot, &found) || found != position))
            return weir_fail(error, WEIR_CORRUPT, "slot %llu cannot be reached or is there twice",
                             (unsigned long long)position);
    }
    for (uint64_t position = index->moved_slots; position < index->old.slot_count; position++)
        live += slot_is_live(slot_load(&index->old, position)) ? 1 : 0;
    if (live != index->live || used != index->current.used)
        return weir_fail(error, WEIR_CORRUPT, "%llu live, %llu counted; %llu used, %llu counted",
                         (unsigned long long)live, (unsigned long long)index->live,
                         (unsigned long long)used, (unsigned long long)index->current.used);
    return WEIR_OK;
}

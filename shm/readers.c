/* Four orders, each a pair of fences; the letters are used at the code.
 *
 * Reclamation (C): store -> load on both sides, so full fences.
 *     reader_enter()                         broker
 *     reading_epoch = E                      unlink the block, retire it with the epoch, advance
 *     -- C: full fence                       -- C': full fence (readers_safe_epoch)
 *     load links, follow them                load every reading_epoch
 *   Either the reader finds the block unlinked, or the broker finds the reader's epoch and keeps
 *   the block.
 *
 * Revocation (D): as in the ring, seen from behind.
 *     broker                                 reader_leave()
 *     revoked_epoch = E, or use + 1          copied words of blocks
 *     -- D: release fence                    -- D': acquire fence
 *     overwrite the block                    load revoked_epoch, use
 *   A reader that copied one overwritten word sees that it is revoked.
 *
 * Leaving (E): reading_epoch = 0 is a release store after the last copy, the broker's load an
 * acquire: copies of a reader that has left are done before the block is overwritten.
 *
 * Doorbell (F): store -> load on both sides, so full fences.
 *     reader_want(), reader_sleep()          broker
 *     wanted, chooses; asleep = 1            head = position (ring_publish)
 *     -- F: full fence                       -- F': full fence (readers_wake)
 *     load head: sleep if nothing is new     load asleep, chooses, wanted: write the eventfd if it
 *                                            sleeps and wants a record below head
 *   Either the reader finds the new head and stays awake, or the broker finds all that the reader has
 *   said before F. A group that becomes wanted later becomes so while the reader is awake, whatever
 *   `asleep` still says: the broker wakes nobody who sleeps through what was not wanted, so asleep
 *   may be 1 from an earlier sleep. The reader comes past F again before it sleeps, and if the broker
 *   has missed the bit, the reader finds that head then. What is not wanted any more may still ring.
 *
 * WEIR_MUTANT_* remove one fence each on purpose: tests/fence_litmus.c shows that each removal is
 * noticed. */
#include "shm/readers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/layout.h"

enum { CONTROL_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };
static_assert(READERS_MAX <= 64, "attached slots are bits of one word");

/* One attached reader as the broker holds it. Everything behind `page` is untrusted. */
struct readers_entry {
    struct control_page *page;
    int control_fd;
    int event_fd;
};

struct readers {
    struct reader_table *table;
    uint64_t lag_bytes; /* who is further behind is woken for any record */
    uint64_t epoch;     /* as stored in the table */
    uint64_t attached;  /* bit n: slot n is taken */
    struct readers_entry entries[READERS_MAX];
};

/* ---- broker ---- */

struct readers *readers_open(struct segment *segment)
{
    weir_assert(segment->writable);
    struct readers *readers = calloc(1, sizeof *readers);
    if (readers == NULL)
        return NULL;
    uint64_t bytes;
    readers->table = (struct reader_table *)(void *)segment_readers(segment, &bytes);
    weir_assert(bytes >= sizeof(struct reader_table));
    (void)segment_ring(segment, &bytes);
    weir_assert(bytes > sizeof(struct ring_header));
    readers->lag_bytes = (bytes - sizeof(struct ring_header)) / READERS_LAG_SHARE;
    readers->epoch = 1;
    readers->table->slot_count = READERS_MAX;
    atomic_store_explicit(&readers->table->store_epoch, readers->epoch, memory_order_relaxed);
    return readers;
}

void readers_close(struct readers *readers)
{
    if (readers == NULL)
        return;
    for (uint32_t slot = 0; slot < READERS_MAX; slot++)
        readers_detach(readers, slot);
    free(readers);
}

static struct control_page *control_map(int fd)
{
    void *page = mmap(NULL, CONTROL_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return page == MAP_FAILED ? NULL : page;
}

static void readers_entry_close(struct readers_entry *entry)
{
    if (entry->page != NULL)
        (void)munmap(entry->page, CONTROL_PAGE_BYTES);
    if (entry->control_fd >= 0)
        (void)close(entry->control_fd);
    if (entry->event_fd >= 0)
        (void)close(entry->event_fd);
    *entry = (struct readers_entry){.control_fd = -1, .event_fd = -1};
}

static enum weir_status readers_entry_open(struct readers_entry *entry, struct weir_error *error)
{
    enum weir_status status;
    *entry = (struct readers_entry){.control_fd = -1, .event_fd = -1};
    entry->control_fd = memfd_create("weir-control", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (entry->control_fd < 0) {
        status = weir_fail_errno(error, errno, "memfd_create for a control page");
        goto cleanup;
    }
    if (ftruncate(entry->control_fd, CONTROL_PAGE_BYTES) != 0) {
        status = weir_fail_errno(error, errno, "sizing a control page");
        goto cleanup;
    }
    /* Sealed, so that a reader cannot make the broker's accesses fail with SIGBUS by shrinking the
     * file. */
    if (fcntl(entry->control_fd, F_ADD_SEALS, CONTROL_SEALS) != 0) {
        status = weir_fail_errno(error, errno, "sealing a control page");
        goto cleanup;
    }
    entry->page = control_map(entry->control_fd);
    if (entry->page == NULL) {
        status = weir_fail_errno(error, errno, "mapping a control page");
        goto cleanup;
    }
    entry->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (entry->event_fd < 0) {
        status = weir_fail_errno(error, errno, "eventfd for a doorbell");
        goto cleanup;
    }
    return WEIR_OK;

cleanup:
    readers_entry_close(entry);
    return status;
}

enum weir_status readers_attach(struct readers *readers, uint32_t pid, uint32_t *slot,
                                int *control_fd, int *event_fd, struct weir_error *error)
{
    uint32_t free_slot = 0;
    while (free_slot < READERS_MAX && (readers->attached >> free_slot & 1) != 0)
        free_slot++;
    if (free_slot == READERS_MAX)
        return weir_fail(error, WEIR_FULL, "all %u reader slots are taken", READERS_MAX);
    struct readers_entry *entry = &readers->entries[free_slot];
    enum weir_status status = readers_entry_open(entry, error);
    if (status != WEIR_OK)
        return status;
    weir_assert(entry->page != NULL);

    struct reader_slot *shared = &readers->table->slots[free_slot];
    uint64_t use = atomic_load_explicit(&shared->use, memory_order_relaxed) + 1;
    weir_assert(use % 2 == 1);
    entry->page->slot = free_slot;
    entry->page->use = use;
    atomic_store_explicit(&shared->pid, pid, memory_order_relaxed);
    atomic_store_explicit(&shared->revoked_epoch, 0, memory_order_relaxed);
    atomic_store_explicit(&shared->cursor_position, 0, memory_order_relaxed);
    atomic_store_explicit(&shared->heartbeat_ms, 0, memory_order_relaxed);
    for (size_t i = 0; i < CONTROL_COUNTERS; i++)
        atomic_store_explicit(&shared->counters[i], 0, memory_order_relaxed);
    /* Release: who sees the slot taken sees it cleared; pairs with the acquire in
     *          reader_slot_in_use(). */
    atomic_store_explicit(&shared->use, use, memory_order_release);
    readers->attached |= (uint64_t)1 << free_slot;
    *slot = free_slot;
    *control_fd = entry->control_fd;
    *event_fd = entry->event_fd;
    return WEIR_OK;
}

void readers_detach(struct readers *readers, uint32_t slot)
{
    if (slot >= READERS_MAX || (readers->attached >> slot & 1) == 0)
        return;
    readers->attached &= ~((uint64_t)1 << slot);
    readers_entry_close(&readers->entries[slot]);
    struct reader_slot *shared = &readers->table->slots[slot];
    uint64_t use = atomic_load_explicit(&shared->use, memory_order_relaxed) + 1;
    atomic_store_explicit(&shared->use, use, memory_order_relaxed);
    shm_fence_release(); /* D: told before its blocks are overwritten; pairs with D' in reader_leave() */
}

static uint64_t page_load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static bool page_wants(const struct control_page *page, uint64_t group_hash)
{
    unsigned bit = reader_wanted_bit(group_hash);
    return (page_load(&page->wanted[bit / 64]) >> bit % 64 & 1) != 0;
}

/* Of those asleep. The cursor is a hint: with a wrong one a reader is woken too often, or lapped. */
static bool page_wants_all(const struct readers *readers, const struct control_page *page,
                           uint64_t head)
{
    return page_load(&page->chooses) == 0 ||
           head - page_load(&page->cursor_position) > readers->lag_bytes;
}

static uint64_t readers_asleep(const struct readers *readers)
{
    uint64_t asleep = 0;
    for (uint64_t left = readers->attached; left != 0; left &= left - 1) {
        if (page_load(&readers->entries[__builtin_ctzll(left)].page->asleep) != 0)
            asleep |= left & -left;
    }
    return asleep;
}

/* Those of `asleep` that want a record of what was published. */
static uint64_t readers_wanting(const struct readers *readers, uint64_t asleep,
                                const struct ring_writer *ring, uint64_t from, uint64_t to)
{
    uint64_t wanting = 0;
    for (uint64_t left = asleep; left != 0; left &= left - 1) {
        if (page_wants_all(readers, readers->entries[__builtin_ctzll(left)].page, to))
            wanting |= left & -left;
    }
    for (unsigned looks = 0; from < to && wanting != asleep; looks++) {
        if (looks == READERS_LOOKS_MAX)
            return asleep;
        uint64_t group_hash = ring_group_at(ring, &from);
        for (uint64_t left = asleep & ~wanting; left != 0; left &= left - 1) {
            if (page_wants(readers->entries[__builtin_ctzll(left)].page, group_hash))
                wanting |= left & -left;
        }
    }
    return wanting;
}

struct readers_woken readers_wake(struct readers *readers, const struct ring_writer *ring,
                                  uint64_t from, uint64_t to, uint64_t called)
{
#ifndef WEIR_MUTANT_WAKE_FENCE
    shm_fence_full(); /* F': head before asleep and wanted; pairs with F in reader_sleep() */
#endif
    uint64_t asleep = readers_asleep(readers);
    uint64_t wanting = readers_wanting(readers, asleep, ring, from, to);
    struct readers_woken result = {.spared = (unsigned)__builtin_popcountll(asleep & ~wanting)};
    for (uint64_t left = wanting; left != 0; left &= left - 1) {
        struct readers_entry *entry = &readers->entries[__builtin_ctzll(left)];
        if (atomic_exchange_explicit(&entry->page->asleep, 0, memory_order_acq_rel) == 0)
            continue;
        if ((called & left & -left) != 0)
            continue;
        /* A full counter (EAGAIN) is a doorbell that already rings. */
        if (eventfd_write(entry->event_fd, 1) == 0)
            result.woken++;
    }
    return result;
}

uint64_t readers_epoch(const struct readers *readers)
{
    return readers->epoch;
}

void readers_advance(struct readers *readers)
{
    readers->epoch++;
    /* Release: who enters the new epoch sees all unlinks of the old one; pairs with reader_enter(). */
    atomic_store_explicit(&readers->table->store_epoch, readers->epoch, memory_order_release);
}

/* The epoch slot `slot` still holds, or 0. A revoked reader holds nothing: it will be told. */
static uint64_t readers_held_epoch(const struct readers *readers, uint32_t slot)
{
    const struct reader_slot *shared = &readers->table->slots[slot];
    /* E': acquire, pairs with E in reader_leave(). */
    uint64_t reading =
        atomic_load_explicit(&readers->entries[slot].page->reading_epoch, memory_order_acquire);
    uint64_t revoked = atomic_load_explicit(&shared->revoked_epoch, memory_order_relaxed);
    return reading > revoked ? reading : 0;
}

uint64_t readers_safe_epoch(const struct readers *readers)
{
#ifndef WEIR_MUTANT_RECLAIM_FENCE
    shm_fence_full(); /* C': unlinks before reading epochs; pairs with C in reader_enter() */
#endif
    uint64_t safe = readers->epoch;
    for (uint64_t left = readers->attached; left != 0; left &= left - 1) {
        uint64_t held = readers_held_epoch(readers, (uint32_t)__builtin_ctzll(left));
        if (held != 0 && held < safe)
            safe = held;
    }
    return safe;
}

unsigned readers_revoke(struct readers *readers, uint64_t epoch)
{
    unsigned revoked = 0;
    for (uint64_t left = readers->attached; left != 0; left &= left - 1) {
        uint32_t slot = (uint32_t)__builtin_ctzll(left);
        uint64_t held = readers_held_epoch(readers, slot);
        if (held == 0 || held > epoch)
            continue;
        atomic_store_explicit(&readers->table->slots[slot].revoked_epoch, epoch,
                              memory_order_relaxed);
        revoked++;
    }
    shm_fence_release(); /* D: told before the blocks are overwritten; pairs with D' in reader_leave() */
    return revoked;
}

static void copy_word(_Atomic uint64_t *to, const _Atomic uint64_t *from)
{
    atomic_store_explicit(to, atomic_load_explicit(from, memory_order_relaxed),
                          memory_order_relaxed);
}

void readers_collect_counters(struct readers *readers)
{
    for (uint64_t left = readers->attached; left != 0; left &= left - 1) {
        uint32_t slot = (uint32_t)__builtin_ctzll(left);
        struct reader_slot *shared = &readers->table->slots[slot];
        const struct control_page *page = readers->entries[slot].page;
        copy_word(&shared->cursor_position, &page->cursor_position);
        copy_word(&shared->heartbeat_ms, &page->heartbeat_ms);
        for (size_t i = 0; i < CONTROL_COUNTERS; i++)
            copy_word(&shared->counters[i], &page->counters[i]);
    }
}

void readers_show_broker(struct readers *readers, const struct broker_counters *counters)
{
    uint64_t values[BROKER_COUNTER_COUNT];
    memcpy(values, counters, sizeof values);
    for (size_t i = 0; i < BROKER_COUNTER_COUNT; i++)
        atomic_store_explicit(&readers->table->broker_counters[i], values[i], memory_order_relaxed);
}

/* ---- reader ---- */

static const struct reader_table *reader_table(const struct segment *segment)
{
    uint64_t bytes;
    return (const struct reader_table *)(const void *)segment_readers(segment, &bytes);
}

void readers_broker_counters(const struct segment *segment, struct broker_counters *counters)
{
    const struct reader_table *table = reader_table(segment);
    uint64_t values[BROKER_COUNTER_COUNT];
    for (size_t i = 0; i < BROKER_COUNTER_COUNT; i++)
        values[i] = atomic_load_explicit(&table->broker_counters[i], memory_order_relaxed);
    memcpy(counters, values, sizeof values);
}

static enum weir_status reader_check_control(int control_fd, struct weir_error *error)
{
    int seals = fcntl(control_fd, F_GET_SEALS);
    if (seals < 0 || (seals & CONTROL_SEALS) != CONTROL_SEALS)
        return weir_fail(error, WEIR_INVALID,
                         "the control page's descriptor is not a sealed memfd");
    struct stat stat;
    if (fstat(control_fd, &stat) != 0)
        return weir_fail_errno(error, errno, "fstat of the control page");
    if (stat.st_size != CONTROL_PAGE_BYTES)
        return weir_fail(error, WEIR_INVALID, "a control page of %lld bytes",
                         (long long)stat.st_size);
    return WEIR_OK;
}

enum weir_status reader_attach(struct reader *reader, const struct segment *segment, uint32_t slot,
                               int control_fd, int event_fd, struct weir_error *error)
{
    *reader = (struct reader){.event_fd = -1};
    if (slot >= READERS_MAX)
        return weir_fail(error, WEIR_CORRUPT, "reader slot %u does not exist", slot);
    enum weir_status status = reader_check_control(control_fd, error);
    if (status != WEIR_OK)
        return status;
    struct control_page *page = control_map(control_fd);
    if (page == NULL)
        return weir_fail_errno(error, errno, "mapping the control page");
    if (page->slot != slot || page->use % 2 != 1) {
        (void)munmap(page, CONTROL_PAGE_BYTES);
        return weir_fail(error, WEIR_CORRUPT, "the control page was not made for slot %u", slot);
    }
    (void)close(control_fd);
    *reader = (struct reader){
        .page = page,
        .table = reader_table(segment),
        .slot = slot,
        .use = page->use,
        .event_fd = event_fd,
    };
    return WEIR_OK;
}

void reader_detach(struct reader *reader)
{
    if (reader->page != NULL) {
        atomic_store_explicit(&reader->page->reading_epoch, 0, memory_order_release); /* E */
        (void)munmap(reader->page, CONTROL_PAGE_BYTES);
    }
    if (reader->event_fd >= 0)
        (void)close(reader->event_fd);
    *reader = (struct reader){.event_fd = -1};
}

void reader_enter(struct reader *reader)
{
    weir_assert(reader->entered_epoch == 0);
    /* Acquire: pairs with readers_advance(). An epoch that is old by the time it is stored holds
     *          more, never less. */
    reader->entered_epoch = atomic_load_explicit(&reader->table->store_epoch, memory_order_acquire);
    atomic_store_explicit(&reader->page->reading_epoch, reader->entered_epoch,
                          memory_order_relaxed);
#ifndef WEIR_MUTANT_ENTER_FENCE
    shm_fence_full(); /* C: the epoch is seen before links are loaded; pairs with C' in readers_safe_epoch() */
#endif
}

enum weir_status reader_leave(struct reader *reader)
{
    const struct reader_slot *shared = &reader->table->slots[reader->slot];
    shm_fence_acquire(); /* D': words copied before this look; pairs with D in readers_revoke(), readers_detach() */
    uint64_t revoked = atomic_load_explicit(&shared->revoked_epoch, memory_order_relaxed);
    uint64_t use = atomic_load_explicit(&shared->use, memory_order_relaxed);
    bool is_void = reader->entered_epoch <= revoked || use != reader->use;
    reader->entered_epoch = 0;
    atomic_store_explicit(&reader->page->reading_epoch, 0,
                          memory_order_release); /* E: pairs with E' */
    return is_void ? WEIR_REVOKED : WEIR_OK;
}

bool reader_sleep(struct reader *reader, const struct segment *segment, uint64_t position)
{
    uint64_t bytes;
    const struct ring_header *ring =
        (const struct ring_header *)(const void *)segment_ring(segment, &bytes);
    atomic_store_explicit(&reader->page->asleep, 1, memory_order_relaxed);
#ifndef WEIR_MUTANT_SLEEP_FENCE
    shm_fence_full(); /* F: asleep and wanted before head; pairs with F' in readers_wake() */
#endif
    if (atomic_load_explicit(&ring->head, memory_order_acquire) == position)
        return true;
    atomic_store_explicit(&reader->page->asleep, 0, memory_order_relaxed);
    return false;
}

void reader_awake(struct reader *reader)
{
    atomic_store_explicit(&reader->page->asleep, 0, memory_order_relaxed);
    eventfd_t rung;
    /* EAGAIN: woken by a timer or by something else; nothing to drain. */
    (void)eventfd_read(reader->event_fd, &rung);
}

void reader_set_cursor(struct reader *reader, uint64_t position, uint64_t heartbeat_ms)
{
    atomic_store_explicit(&reader->page->cursor_position, position, memory_order_relaxed);
    atomic_store_explicit(&reader->page->heartbeat_ms, heartbeat_ms, memory_order_relaxed);
}

void reader_choose(struct reader *reader, bool chooses)
{
    uint64_t value = chooses ? 1 : 0;
    /* Said before every sleep: a line that does not change stays in the broker's cache. */
    if (atomic_load_explicit(&reader->page->chooses, memory_order_relaxed) != value)
        atomic_store_explicit(&reader->page->chooses, value, memory_order_relaxed);
}

void reader_want(struct reader *reader, unsigned bit, bool is_wanted)
{
    weir_assert(bit < READER_WANTED_BITS);
    _Atomic uint64_t *word = &reader->page->wanted[bit / 64];
    uint64_t mask = (uint64_t)1 << bit % 64;
    /* One writer, as the counters. */
    uint64_t value = atomic_load_explicit(word, memory_order_relaxed);
    atomic_store_explicit(word, is_wanted ? value | mask : value & ~mask, memory_order_relaxed);
}

void reader_counter_add(struct reader *reader, unsigned index, uint64_t amount)
{
    weir_assert(index < CONTROL_COUNTERS);
    _Atomic uint64_t *counter = &reader->page->counters[index];
    /* One writer: no read-modify-write instruction is needed. */
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + amount, memory_order_relaxed);
}

/* ---- any process ---- */

/* The slot's shared line and which use of it this is, or NULL when it is free. */
static const struct reader_slot *reader_slot_in_use(const struct segment *segment, uint32_t slot,
                                                    uint64_t *use)
{
    if (slot >= READERS_MAX)
        return NULL;
    const struct reader_slot *shared = &reader_table(segment)->slots[slot];
    *use =
        atomic_load_explicit(&shared->use, memory_order_acquire); /* pairs with readers_attach() */
    return *use % 2 == 1 ? shared : NULL;
}

static bool reader_slot_still(const struct reader_slot *shared, uint64_t use)
{
    shm_fence_acquire(); /* words copied before this look, as D' */
    return atomic_load_explicit(&shared->use, memory_order_relaxed) == use;
}

bool readers_counters(const struct segment *segment, uint32_t slot, uint32_t *pid,
                      uint64_t counters[CONTROL_COUNTERS])
{
    uint64_t use;
    const struct reader_slot *shared = reader_slot_in_use(segment, slot, &use);
    if (shared == NULL)
        return false;
    *pid = (uint32_t)atomic_load_explicit(&shared->pid, memory_order_relaxed);
    shm_copy_out(counters, shared->counters, sizeof shared->counters);
    return reader_slot_still(shared, use);
}

bool readers_cursor(const struct segment *segment, uint32_t slot, uint64_t *position,
                    uint64_t *heartbeat_ms)
{
    uint64_t use;
    const struct reader_slot *shared = reader_slot_in_use(segment, slot, &use);
    if (shared == NULL)
        return false;
    *position = atomic_load_explicit(&shared->cursor_position, memory_order_relaxed);
    *heartbeat_ms = atomic_load_explicit(&shared->heartbeat_ms, memory_order_relaxed);
    return reader_slot_still(shared, use);
}

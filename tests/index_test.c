/* The index alone: against an array of what is in it, and while a reader thread looks up. */
#include <criterion/criterion.h>
#include <pthread.h>

#include "shm/hash.h"
#include "shm/index.h"
#include "tests/store_fixture.h"

enum { AREA_BYTES = 128 * 1024 * 1024, ROOT_OFFSET = 64, KEYS_MAX = 300000 };

static char *area;
static struct arena *arena;
static struct index_root *root;
static struct index table;
static unsigned retired_count;
static uint64_t retired[64];

/* Old tables are kept until the test says that nobody looks at them. */
static void keep_table(void *context, uint64_t offset)
{
    (void)context;
    retired[retired_count++ % 64] = offset;
    if (retired_count > 64)
        cr_assert_fail("more tables than expected");
}

static void free_tables(void)
{
    while (retired_count > 0)
        arena_free(arena, retired[--retired_count]);
}

static void setup(void)
{
    area = aligned_alloc(4096, AREA_BYTES);
    memset(area, 0, 4096);
    arena = arena_open(area, ARENA_SPAN_BYTES, AREA_BYTES);
    root = (struct index_root *)(void *)(area + ROOT_OFFSET);
    cr_assert_eq(index_open(&table, area, AREA_BYTES, root, arena, keep_table, NULL), WEIR_OK);
}

static void teardown(void)
{
    arena_close(arena);
    free(area);
}

TestSuite(index, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static uint64_t hash_of(uint64_t key)
{
    return hash_pair(key, 12345);
}

/* A key's "block" is a place in the area that nothing is stored at: its number alone says which it
 * is. */
static uint64_t offset_of(uint64_t key, uint64_t version)
{
    return ((uint64_t)ARENA_SPAN_BYTES / 16 + key * 8 + version % 8) * 16;
}

static bool is_key(uint64_t offset, uint64_t key)
{
    return (offset / 16 - ARENA_SPAN_BYTES / 16) / 8 == key;
}

/* The key's offset, or 0; *moved: the search proves nothing. */
static uint64_t look_up(uint64_t key, bool *moved)
{
    struct index_lookup lookup;
    uint64_t offset;
    index_lookup_begin(&lookup, area, AREA_BYTES, root, hash_of(key));
    while ((offset = index_lookup_next(&lookup)) != 0)
        if (is_key(offset, key))
            break;
    *moved = offset == 0 && index_lookup_moved(&lookup);
    return offset;
}

static void assert_whole(void)
{
    struct weir_error error = {0};
    cr_assert_eq(index_check(&table, &error), WEIR_OK, "%s", error.text);
}

/* Insert, replace and remove at random, growing and shrinking; every key is looked at between. */
Test(index, model)
{
    enum { KEYS = 20000 };
    static uint64_t expected[KEYS];
    uint64_t random = fixture_seed("index/model");
    for (unsigned step = 0; step < 400000; step++) {
        uint64_t roll = fixture_random(&random);
        uint64_t key = roll % KEYS;
        unsigned insert_share = step / 50000 % 2 == 0 ? 70 : 25;
        cr_assert_eq(index_reserve(&table, 1), WEIR_OK);
        if (expected[key] == 0 && (roll >> 32) % 100 < insert_share) {
            expected[key] = offset_of(key, step);
            index_insert(&table, hash_of(key), expected[key]);
        } else if (expected[key] != 0 && (roll >> 32) % 100 < 50) {
            index_replace(&table, hash_of(key), expected[key], offset_of(key, step));
            expected[key] = offset_of(key, step);
        } else if (expected[key] != 0 && (roll >> 40) % 100 >= insert_share) {
            index_remove(&table, hash_of(key), expected[key]);
            expected[key] = 0;
        }
        bool moved;
        key = (roll >> 20) % KEYS;
        cr_assert_eq(look_up(key, &moved), expected[key]);
        cr_assert_not(moved);
        free_tables();
        if (step % 40000 == 0)
            assert_whole();
    }
    assert_whole();
    cr_assert_gt(table.rebuilds, 5);
}

/* Removing and inserting for ever at one size neither fills the table nor makes it grow. */
Test(index, churn_keeps_its_size)
{
    for (uint64_t key = 0; key < 2000; key++) {
        cr_assert_eq(index_reserve(&table, 1), WEIR_OK);
        index_insert(&table, hash_of(key), offset_of(key, 0));
    }
    for (uint64_t key = 2000; key < 250000; key++) {
        cr_assert_eq(index_reserve(&table, 1), WEIR_OK);
        index_remove(&table, hash_of(key - 2000), offset_of(key - 2000, 0));
        index_insert(&table, hash_of(key), offset_of(key, 0));
        free_tables();
    }
    cr_assert_leq(table.current.slot_count, 8192);
    assert_whole();
}

/* When there is no room for a larger table, the table fills to 7/8, then FULL; it still answers. */
Test(index, full_without_room_to_grow)
{
    while (arena_alloc(arena, 4096) != 0)
        ;
    uint64_t key = 0;
    while (index_reserve(&table, 1) == WEIR_OK) {
        index_insert(&table, hash_of(key), offset_of(key, 0));
        key++;
    }
    cr_assert_eq(key, table.current.slot_count * 7 / 8);
    for (uint64_t i = 0; i < key; i++) {
        bool moved;
        cr_assert_eq(look_up(i, &moved), offset_of(i, 0));
    }
    index_remove(&table, hash_of(3), offset_of(3, 0));
    assert_whole();
}

struct looker {
    _Atomic uint64_t inserted;
    _Atomic bool stop;
    _Atomic uint64_t lookups;
    uint64_t missed, wrong, again;
};

/* Keys below `inserted` are in the index, except multiples of 5, which come and go. */
static void *look_for_ever(void *argument)
{
    struct looker *looker = argument;
    uint64_t random = 1;
    while (!atomic_load(&looker->stop)) {
        uint64_t inserted = atomic_load(&looker->inserted);
        if (inserted == 0)
            continue;
        uint64_t key = fixture_random(&random) % inserted;
        bool moved = true;
        uint64_t offset = 0;
        while (offset == 0 && moved) {
            offset = look_up(key, &moved);
            looker->again += moved ? 1 : 0;
        }
        looker->lookups++;
        if (offset == 0 && key % 5 != 0)
            looker->missed++;
        offset = look_up(KEYS_MAX + key, &moved);
        if (offset != 0)
            looker->wrong++;
    }
    return NULL;
}

/* However the machine shares its processors out, the reader looks on all the way. */
static void wait_for_lookups(const struct looker *looker)
{
    uint64_t wanted = atomic_load(&looker->lookups) + 100;
    for (unsigned waits = 0; atomic_load(&looker->lookups) < wanted; waits++) {
        cr_assert_lt(waits, 1000000, "the reader hangs");
        (void)usleep(100);
    }
}

/* A reader finds every key while the table doubles from 512 slots to a million. */
Test(index, grows_under_a_reader)
{
    static struct looker looker;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, look_for_ever, &looker), 0);
    for (uint64_t key = 0; key < KEYS_MAX; key++) {
        cr_assert_eq(index_reserve(&table, 1), WEIR_OK);
        index_insert(&table, hash_of(key), offset_of(key, 0));
        atomic_store(&looker.inserted, key + 1);
        if (key % (KEYS_MAX / 32) == 0)
            wait_for_lookups(&looker);
        if (key >= 10 && key % 5 == 0) {
            index_remove(&table, hash_of(key - 10), offset_of(key - 10, 0));
            if (key % 2 == 0) {
                cr_assert_eq(index_reserve(&table, 1), WEIR_OK);
                index_insert(&table, hash_of(key - 10), offset_of(key - 10, 1));
            }
        } else if (key > 10) {
            uint64_t other = key / 2;
            if (other % 5 != 0 && other > 0) {
                index_replace(&table, hash_of(other), offset_of(other, 0), offset_of(other, 2));
                index_replace(&table, hash_of(other), offset_of(other, 2), offset_of(other, 0));
            }
        }
    }
    atomic_store(&looker.stop, true);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    assert_whole();
    cr_assert_gt(table.rebuilds, 8);
    cr_assert_gt(looker.lookups, 1000);
    cr_assert_eq(looker.missed, 0, "%llu missed of %llu", (unsigned long long)looker.missed,
                 (unsigned long long)looker.lookups);
    cr_assert_eq(looker.wrong, 0);
}

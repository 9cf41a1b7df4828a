/* The arena against a naive list of blocks, and what it promises about room. */
#include <criterion/criterion.h>

#include "shm/arena.h"
#include "tests/store_fixture.h"

enum { AREA_BYTES = 24 * 1024 * 1024, BLOCKS_MAX = 20000 };

static char *area;
static struct arena *arena;

static void setup(void)
{
    area = aligned_alloc(4096, AREA_BYTES);
    arena = arena_open(area, ARENA_SPAN_BYTES, AREA_BYTES);
    cr_assert_not_null(arena);
}

static void teardown(void)
{
    arena_close(arena);
    free(area);
}

static void assert_whole(void)
{
    struct weir_error error = {0};
    cr_assert_eq(arena_check(arena, &error), WEIR_OK, "%s", error.text);
}

TestSuite(arena, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

/* Block sizes: never less than asked, at most a quarter more below 64 KiB, whole spans above. */
Test(arena, rounding_is_bounded)
{
    for (uint64_t bytes = 1; bytes <= 300000; bytes += bytes / 50 + 1) {
        uint64_t offset = arena_alloc(arena, bytes);
        cr_assert_neq(offset, 0);
        uint64_t got = arena_block_bytes(arena, offset);
        cr_assert_geq(got, bytes);
        cr_assert_eq(offset % ARENA_GRANULE_BYTES, 0);
        if (bytes >= 256)
            cr_assert_eq(offset % 64, 0);
        if (bytes > 64 && bytes <= 65536)
            cr_assert_leq(got, bytes + bytes / 4 + 1);
        if (bytes > 65536)
            cr_assert_lt(got, bytes + ARENA_SPAN_BYTES);
        cr_assert_eq(arena_used_bytes(arena), got);
        arena_free(arena, offset);
        cr_assert_eq(arena_used_bytes(arena), 0);
    }
    assert_whole();
}

/* After everything is given back, all of it is one piece again, whatever the order was. */
Test(arena, neighbours_merge)
{
    uint64_t all = arena_bytes(arena);
    cr_assert_eq(arena_alloc(arena, all + 1), 0);
    static uint64_t offsets[BLOCKS_MAX];
    uint64_t random = fixture_seed("arena/neighbours_merge");
    for (int round = 0; round < 20; round++) {
        unsigned count = 0;
        while (count < BLOCKS_MAX) {
            uint64_t roll = fixture_random(&random);
            offsets[count] =
                arena_alloc(arena, roll % 16 == 0 ? roll % 1000000 + 1 : roll % 20000 + 1);
            if (offsets[count] == 0)
                break;
            count++;
        }
        cr_assert_gt(count, 20);
        assert_whole();
        while (count > 0) {
            unsigned pick = (unsigned)(fixture_random(&random) % count);
            arena_free(arena, offsets[pick]);
            offsets[pick] = offsets[--count];
        }
        cr_assert_eq(arena_used_bytes(arena), 0);
        assert_whole();
        /* 383 spans: one run of 256 must be there. */
        uint64_t large = arena_alloc(arena, 256ull * ARENA_SPAN_BYTES);
        cr_assert_neq(large, 0);
        arena_free(arena, large);
    }
}

struct block {
    uint64_t offset;
    uint64_t bytes;
    unsigned char mark;
};

static void block_fill(const struct block *block)
{
    memset(area + block->offset, block->mark, block->bytes);
}

static bool block_is_intact(const struct block *block)
{
    for (uint64_t i = 0; i < block->bytes; i++)
        if ((unsigned char)area[block->offset + i] != block->mark)
            return false;
    return true;
}

/* No two blocks overlap: each is filled with its mark and still is when it goes. */
Test(arena, blocks_do_not_overlap)
{
    static struct block blocks[BLOCKS_MAX];
    unsigned count = 0;
    uint64_t used = 0;
    uint64_t random = fixture_seed("arena/blocks_do_not_overlap");
    for (unsigned step = 0; step < 100000; step++) {
        uint64_t roll = fixture_random(&random);
        bool grow = roll % 100 < (step / 10000 % 2 == 0 ? 60u : 40u);
        if (grow && count < BLOCKS_MAX) {
            uint64_t limit = (roll >> 8) % 50 == 0 ? 500000 : (roll >> 8) % 8 == 0 ? 40000 : 700;
            struct block block = {.bytes = (roll >> 20) % limit + 1, .mark = (unsigned char)step};
            block.offset = arena_alloc(arena, block.bytes);
            if (block.offset == 0)
                continue;
            cr_assert_leq(block.offset + arena_block_bytes(arena, block.offset), AREA_BYTES);
            used += arena_block_bytes(arena, block.offset);
            block_fill(&block);
            blocks[count++] = block;
        } else if (count > 0) {
            unsigned pick = (unsigned)((roll >> 20) % count);
            cr_assert(block_is_intact(&blocks[pick]));
            used -= arena_block_bytes(arena, blocks[pick].offset);
            arena_free(arena, blocks[pick].offset);
            blocks[pick] = blocks[--count];
        }
        cr_assert_eq(arena_used_bytes(arena), used);
        if (step % 5000 == 0)
            assert_whole();
    }
    for (unsigned i = 0; i < count; i++)
        cr_assert(block_is_intact(&blocks[i]));
    assert_whole();
}

/* Small blocks fill what is left when no long run is free. */
Test(arena, small_blocks_use_the_last_span)
{
    uint64_t runs = 0;
    while (arena_alloc(arena, ARENA_SPAN_BYTES + 1) != 0)
        runs++;
    cr_assert_gt(runs, 150);
    uint64_t small = 0;
    while (arena_alloc(arena, 20000) != 0)
        small++;
    cr_assert_gt(small, 0);
    while (arena_alloc(arena, 64) != 0)
        small++;
    cr_assert_geq(arena_used_bytes(arena) + ARENA_SPAN_BYTES, arena_bytes(arena));
    assert_whole();
}

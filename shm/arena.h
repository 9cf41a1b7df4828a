/* shm/arena.h -- the store's memory: blocks inside the segment, everything known about them outside
 * of it.
 *
 *   spans of 64 KiB: a buddy allocator over span runs, free neighbours merge at once
 *   blocks up to 64 KiB: slabs, 4 size classes a doubling (64, 80, 96, 112, 128, 160 ...), one
 *     bitmap a slab
 *   larger blocks: whole spans; what rounding up to a power of two would waste is given back
 *
 * Slabs go to 64 KiB, not to the 16 KiB one span would serve well, because a 17 KiB value in a span
 * of its own wastes three quarters of it; slabs of larger classes are 4 or 16 spans long so that
 * their last part wastes little.
 *
 * Only the broker allocates, so lists, bitmaps and counts are in its private memory (calloc'd once
 * at open, touched as the arena fills): a reader, or a crash, can never damage them, and a block is
 * payload from its first byte to its last.
 *
 * Process:  broker's loop thread only.
 * Memory:   private tables of about 200 bytes per span, reserved at open. No allocation afterwards.
 * Units:    offsets are bytes from `base`, multiples of 16; blocks whose class is a multiple of 64
 *           are 64-byte aligned (every block of 256 bytes or more); block contents are what the
 *           last user left there.
 * Cost:     slab: a bitmap word or a few; runs: at most one step per order (20).
 * Errors:   offset 0 is never a block: arena_alloc() returns it when there is no room.
 */
#ifndef WEIR_SHM_ARENA_H
#define WEIR_SHM_ARENA_H

#include "shm/span.h"

enum { ARENA_SPAN_BYTES = 64 * 1024, ARENA_GRANULE_BYTES = 16 };

struct arena;

/* Manage [first_byte, end_byte) of `base`; first_byte is a multiple of the span and not 0. NULL: no
 * memory. */
struct arena *arena_open(char *base, uint64_t first_byte, uint64_t end_byte);
void arena_close(struct arena *arena);

/* A block of at least `bytes` (> 0), or 0. */
uint64_t arena_alloc(struct arena *arena, uint64_t bytes);
void arena_free(struct arena *arena, uint64_t offset);
/* What the block really takes, at least what was asked for. */
uint64_t arena_block_bytes(const struct arena *arena, uint64_t offset);

uint64_t arena_bytes(const struct arena *arena);
/* Bytes in blocks (arena_block_bytes of each). */
uint64_t arena_used_bytes(const struct arena *arena);
/* Walk all tables; CORRUPT names the first difference. For tests. */
enum weir_status arena_check(const struct arena *arena, struct weir_error *error) WEIR_MUST_CHECK;

#endif

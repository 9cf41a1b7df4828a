/* shm/hash.h -- the one keyed hash of names (XXH3, 64 bits, header-only) and how hashes are
 * combined.
 *
 * The seed is the segment's (random per life of the broker), so names cannot be chosen to collide
 * in its tables.
 *
 * Process and thread: any; pure functions.
 */
#ifndef WEIR_SHM_HASH_H
#define WEIR_SHM_HASH_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "shm/span.h"

static inline uint64_t hash_bytes(uint64_t seed, struct span span)
{
    return XXH3_64bits_withSeed(span.bytes == 0 ? "" : span.data, span.bytes, seed);
}

/* Not commutative: hash_pair(a, b) differs from hash_pair(b, a). */
static inline uint64_t hash_pair(uint64_t first, uint64_t second)
{
    uint64_t mixed = first ^ (second << 29 | second >> 35);
    mixed *= 0x9e3779b97f4a7c15ull;
    mixed ^= mixed >> 32;
    mixed *= 0xd6e8feb86659fd93ull;
    return mixed ^ mixed >> 29;
}

#endif

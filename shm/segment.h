/* shm/segment.h -- the one memfd of a host: made, laid out and sealed by the broker, mapped
 * read-only by gateways.
 *
 *   0 +--------------------------------------+ struct segment_header: sizes, offsets, generation; magic stored last
 *     | header (one page)                    |
 *     +--------------------------------------+ header->ring_offset: struct ring_header, then ring bytes (ring.h)
 *     | ring                                 |
 *     +--------------------------------------+ header->readers_offset: reader table (readers.h)
 *     | readers                              |
 *     +--------------------------------------+ header->store_offset: store root, then the arena (store.h, arena.h)
 *     | store                                |
 *     +--------------------------------------+ header->segment_bytes
 *
 * Process:  segment_create() and segment_publish() in the broker; segment_attach() in any other
 *           process.
 * Memory:   create and attach own their mapping until segment_close(). Pages are touched only when
 *           used.
 * Lifetime: a segment belongs to one life of the broker (`generation`); gateways keep reading a
 *           dead broker's segment until they have attached to its successor's.
 * Errors:   attach checks the file's length, seals, magic, ABI version, layout hash and every
 *           offset before trusting anything inside (memfd_create(2), F_SEAL_FUTURE_WRITE in
 *           fcntl(2)).
 */
#ifndef WEIR_SHM_SEGMENT_H
#define WEIR_SHM_SEGMENT_H

#include "shm/limits.h"
#include "shm/span.h"

struct segment_options {
    uint64_t
        ring_bytes; /* rounded up to a power of two, at least a page, at most RING_BYTES_MAX (settings are narrower) */
    uint64_t store_bytes; /* rounded up to a page, at most STORE_BYTES_MAX */
    uint64_t
        generation; /* this life of the broker; also the first epoch: Unix time in microseconds */
};

struct segment_header; /* mapped layout: segment.c and the module headers */

struct segment {
    char *base;
    uint64_t bytes;
    int fd;        /* owned */
    bool writable; /* the broker's own mapping */
    /* Areas as checked at create and attach; private to segment.c. */
    uint64_t ring_offset, ring_bytes;
    uint64_t readers_offset, readers_bytes;
    uint64_t store_offset, store_bytes;
};

/* INVALID: a size out of bounds. SYSTEM: the kernel refused. */
enum weir_status segment_create(struct segment *segment, const struct segment_options *options,
                                struct weir_error *error) WEIR_MUST_CHECK;
/* After every area is initialised: store the magic. Attaching before that fails with MISMATCH. */
void segment_publish(struct segment *segment);
/* Maps `fd` read-only; takes over `fd` on success only. INVALID: not a sealed memfd. MISMATCH: not
 * (yet) a segment of this version and layout. CORRUPT: sizes or offsets inside do not fit the file. */
enum weir_status segment_attach(struct segment *segment, int fd,
                                struct weir_error *error) WEIR_MUST_CHECK;
void segment_close(struct segment *segment);

/* Sizes and offsets of every mapped struct, hashed; differs between builds that must not share a
 * segment. */
uint64_t segment_layout_hash(void);
uint64_t segment_generation(const struct segment *segment);
/* Keyed hash seed for names; random per segment so that names cannot be chosen to collide. */
uint64_t segment_hash_seed(const struct segment *segment);

/* Areas, bounds already checked. */
char *segment_ring(const struct segment *segment, uint64_t *bytes);
char *segment_readers(const struct segment *segment, uint64_t *bytes);
char *segment_store(const struct segment *segment, uint64_t *bytes);

#endif

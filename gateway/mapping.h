/* gateway/mapping.h -- one life of the broker as a gateway sees it: its segment, ring, store and
 * this reader's page.
 *
 * Process:  gateway, loop thread only.
 * Lifetime: a mapping outlives the broker's death; it is closed when the successor's has been put
 *           in its place.
 * Errors:   MISMATCH, INVALID, CORRUPT, SYSTEM with a sentence.
 */
#ifndef WEIR_GATEWAY_MAPPING_H
#define WEIR_GATEWAY_MAPPING_H

#include "shm/store.h"

struct mapping {
    struct segment segment;
    struct reader reader;
    struct ring_reader ring;
    struct store_reader *store;
    uint64_t generation;
    uint64_t hash_seed;
};

enum { MAPPING_FDS = 3 }; /* segment, doorbell eventfd, control page: the order of WIRE_ATTACHED */

/* Takes over the descriptors in any case. */
enum weir_status mapping_open(struct mapping **mapping, uint32_t slot, const int fds[MAPPING_FDS],
                              struct weir_error *error) WEIR_MUST_CHECK;
void mapping_close(struct mapping *mapping); /* NULL is fine */
/* Read the ring on from `position` instead of from the newest. False: it is not there (UINT64_MAX), and
 * nothing changed. */
bool mapping_read_from(struct mapping *mapping, uint64_t position) WEIR_MUST_CHECK;

#endif

/* gateway/wanted.h -- what the broker's doorbell is to ring for: the groups somebody here subscribes to, as
 * bits of this reader's control page (shm/readers.h).
 *
 * Groups share bits, so each has a count; the bit goes with the last of its groups. A few more groups than are
 * wanted ring as well, and where there are many more groups than bits nearly all do.
 *
 * Process:  gateway, loop thread only.
 * Memory:   64 KiB of counts, whatever the number of groups.
 */
#ifndef WEIR_GATEWAY_WANTED_H
#define WEIR_GATEWAY_WANTED_H

#include "shm/readers.h"

struct wanted {
    struct reader *reader; /* is told; NULL: nobody. Another one from a wanted_clear() on */
    uint32_t counts[READER_WANTED_BITS];
};

struct wanted *wanted_open(void); /* NULL: no memory */
void wanted_close(struct wanted *wanted);
/* A group with this hash, from now on. As often as it is added it has to be removed. */
void wanted_add(struct wanted *wanted, uint64_t group_hash);
void wanted_remove(struct wanted *wanted, uint64_t group_hash);
/* No group any more: the hashes are of another segment. */
void wanted_clear(struct wanted *wanted);

#endif

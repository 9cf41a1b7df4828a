/* gateway/trail.h -- where a group's records are in the ring: the newest one, and a mark at every
 * TRAIL_STRIDE events of those before, so that a walk along the back-pointers starts close to where
 * it has to get.
 *
 *   newest 2310 --> 2309 --> ... --> [2304] --> ... --> [2048] --> ... --> [1792] --> ...
 *
 * The feed notes what it reads, so that only published records are in a trail and nobody asks the
 * store; a walk that has had to start further up leaves the marks it passes. A trail is of one epoch
 * of the group and of one ring: what is known of another ring, or of events the feed has missed, is
 * void (`life`), and then the store says once where the newest record is (catch_up.h).
 *
 * Process:  gateway, loop thread only.
 * Memory:   no mark until a group has had TRAIL_STRIDE events. Then a table that doubles while its marks
 *           are still in the ring, so that all tables together have a share of the ring's records,
 *           and TRAIL_MARKS_MAX at most: what is further back is a longer walk.
 * Units:    seqs of one epoch; positions of the ring.
 */
#ifndef WEIR_GATEWAY_TRAIL_H
#define WEIR_GATEWAY_TRAIL_H

#include "shm/ring.h"

enum {
    TRAIL_STRIDE = 256, /* events from mark to mark; a power of two */
    TRAIL_MARKS_MIN = 8,
    TRAIL_MARKS_MAX = 4096,
};

/* Event `seq` is at `position`; RING_NO_POSITION: nowhere in this ring. */
struct trail_mark {
    uint64_t seq, position;
};

struct trail {
    uint32_t life;       /* 0: nothing is known */
    uint32_t mark_count; /* room for; a power of two, or 0 */
    uint64_t epoch;
    struct trail_mark newest;
    uint64_t lost_seq;        /* events up to this one are not in the ring any more */
    struct trail_mark *marks; /* event seq at seq / TRAIL_STRIDE; seq 0: none */
};

void trail_fini(struct trail *trail);
static inline bool trail_is_known(const struct trail *trail, uint32_t life)
{
    return trail->life == life;
}
/* The group's newest event. What is known already stays when it is of the same life and epoch, and a
 * newest event that is newer. */
void trail_begin(struct trail *trail, uint32_t life, uint64_t epoch, struct trail_mark newest);
/* The feed has read `record`; what is below `oldest` in the ring is lapped. */
void trail_note(struct trail *trail, uint32_t life, const struct ring_record *record,
                uint64_t oldest);
/* Event `mark.seq` was passed; a mark when it is one of those that get one. */
void trail_pass(struct trail *trail, struct trail_mark mark, uint64_t oldest);
/* Where to start for event `seq`, which is not newer than the newest: the closest mark that is not
 * below it. */
struct trail_mark trail_find(const struct trail *trail, uint64_t seq);

#endif

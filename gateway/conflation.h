/* gateway/conflation.h -- the newest event of each item in a range of a group's events, for links that
 * are too far behind to be given all of them.
 *
 * One walk from the end of the range back to its start notes of each event what kind it is and which
 * events of the same item come before and after it. From these notes every range inside is told
 * without the ring: its newest events of each item, and what was the first that happened to the item in
 * it. That decides about the kind: an item whose first event in the range is `create` was not known
 * before, and its newest value goes out as `create`, otherwise as `update`; `delete` stays. Sent events
 * (stream::send) are kept apart from the item's state; those without an id are one item.
 *
 * Items are told apart by the hash in the record and then by their ids, which are read from the ring.
 *
 * Process:  gateway, loop thread only.
 * Memory:   24 bytes an event of the longest range and 4 of a hash table, allocated when first needed
 *           and kept; one piece (a send's bytes), and as much for event streams.
 * Errors:   EMPTY: the ring does not hold the range any more. PENDING: the budget is used up, what was
 *           walked is kept. NO_MEMORY.
 */
#ifndef WEIR_GATEWAY_CONFLATION_H
#define WEIR_GATEWAY_CONFLATION_H

#include "gateway/subscriptions.h"

enum {
    CONFLATION_EVENTS_MAX = 16384, /* in a range; a longer one is answered with a fresh sync */
    CONFLATION_STALE_EVENTS = 512, /* what a walk that is there may be behind the newest event */
};
static_assert(CONFLATION_EVENTS_MAX <= UINT16_MAX, "subscriber_link counts in 16 bits");

/* Ring records a turn may still look at; each look takes one. */
struct walk_budget {
    uint64_t records, records_max;
};

/* Events since + 1 .. until of the topic, of which those up to `sent` have been given out. */
struct conflation_range {
    const struct topic *topic;
    uint64_t since, sent, until;
};

/* What one send can hold of it. */
struct conflation_piece {
    struct span bytes; /* frames, or for event streams their text; none: nothing in it is wanted */
    uint64_t sent;     /* then; `until` when there is no more */
    uint64_t left_out; /* events for which those in it stand */
};

struct conflation;
struct conflation *conflation_open(struct subscriptions *subscriptions); /* NULL: no memory */
void conflation_close(struct conflation *conflation);
/* Walk the range. `may_end_earlier`: its end may be moved back to one that is known already. */
enum weir_status conflation_walk(struct conflation *conflation, const struct ring_reader *ring,
                                 struct conflation_range *range, bool may_end_earlier,
                                 struct walk_budget *budget) WEIR_MUST_CHECK;
/* Is the piece that comes next for the link the one that is there already? */
bool conflation_has_piece(const struct conflation *conflation, const struct conflation_range *range,
                          const struct subscriber_link *link);
/* Make the next piece for the link of a range that was walked, about `bytes_max` long, with the piece
 * before it void; conflation_piece() is what was made. */
enum weir_status conflation_fill(struct conflation *conflation, const struct ring_reader *ring,
                                 const struct conflation_range *range,
                                 const struct subscriber_link *link, size_t bytes_max,
                                 struct walk_budget *budget) WEIR_MUST_CHECK;
enum weir_status conflation_piece(struct conflation *conflation, unsigned format,
                                  struct conflation_piece *piece) WEIR_MUST_CHECK;

#endif

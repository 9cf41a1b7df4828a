/* gateway/fanout.h -- gives the events the feed has drained to the links that want them.
 *
 * Per touched topic the frames are laid out once; every live link whose cursor stands just before
 * them shares those bytes, links further on share the rest of them, links with item filters get
 * their own selection. A link whose cursor does not meet the first event (a gap) or whose socket is
 * busy becomes behind: its cursor stays, and catch_up.h brings it on. An event is delivered only if
 * it is the next one: (epoch, sent_seq + 1), or seq 1 of a later epoch.
 *
 * Process:  gateway, loop thread only.
 * Memory:   one batch of sends, one copy of a turn's frames and one for event streams, sized at start or
 *           by the largest turn.
 */
#ifndef WEIR_GATEWAY_FANOUT_H
#define WEIR_GATEWAY_FANOUT_H

#include "gateway/feed.h"
#include "gateway/outlet.h"

struct fanout;
struct fanout *fanout_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                           struct counters *counters); /* NULL: no memory */
void fanout_close(struct fanout *fanout);
/* Deliver and clear what the feed has drained. Returns how many events a second the links that were
 * served have, their mean: what waiting would let them share. */
double fanout_run(struct fanout *fanout, struct feed *feed, uint64_t now_ns);

#endif

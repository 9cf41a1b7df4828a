/* gateway/catch_up.h -- brings links that are behind up to date from the ring, without the store's
 * items.
 *
 * How, depends on how many events of its group a link has missed, and on its policy:
 *
 *   at most lag_events     each of them
 *   more    latest         the newest event of each item (conflation.h), up to CONFLATION_EVENTS_MAX
 *           lossless       each of them
 *           disconnect     close with 1013
 *   more than the ring     a fresh sync that says why: "lagged"; for a link that went on at another broker
 *   leads back to          (subscriptions_resume) "restarted", for a position that a client has brought
 *                          "expired"; disconnect: close with 1013, when it is slowness
 *
 * Who comes back with a position is answered the same way before it is told that it goes on: further
 * behind than its policy is served (`disconnect`: than lag_events, for it was not slow) is "expired" at
 * once. Events that come after that do not undo it: of more than CONFLATION_EVENTS_MAX the oldest are
 * conflated first.
 *
 * Where a group's records are its trail says (trail.h); the store is asked only when the feed has not
 * read an event of the group yet, once for all its links. From the mark closest to a link's cursor the
 * records are walked back to it and read, CATCH_UP_WINDOW_EVENTS at most; links of the same group that
 * stand anywhere in that window and come next in the queue share it and go into one batch.
 *
 * A link that is given the newest event of each item in several sends stands, for its client, where it
 * stood before the first of them, until it has all (subscriptions.h, `conflated`).
 *
 * Process:  gateway, loop thread only; never while a fan-out's batch is open.
 * Memory:   one window, one walk for conflation, one batch of sends, shared by all links.
 * Units:    a turn looks at CATCH_UP_TURN_RECORDS records and hands out CATCH_UP_TURN_BYTES in
 *           CATCH_UP_TURN_SENDS, about a millisecond's worth, so that live subscribers do not wait for
 *           those who are not.
 * Errors:   OK: the cursor is at the group's newest event (or at the limit). AGAIN: the socket is
 *           busy and reports when it is not. PENDING: more to do next turn, or the ring does not
 *           show it all yet. LAPPED: a fresh sync is queued, or the socket is being closed.
 */
#ifndef WEIR_GATEWAY_CATCH_UP_H
#define WEIR_GATEWAY_CATCH_UP_H

#include "gateway/mapping.h"
#include "gateway/outlet.h"
#include "gateway/subscriptions.h"

enum {
    CATCH_UP_WINDOW_EVENTS = 512,
    CATCH_UP_SEND_BYTES = 64 * 1024, /* one send to one link */
    CATCH_UP_TURN_BYTES = 1024 * 1024,
    CATCH_UP_TURN_SENDS = 256,
    CATCH_UP_TURN_RECORDS = 8192,
};

struct catch_up;
struct catch_up *catch_up_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                               struct counters *counters); /* NULL: no memory */
void catch_up_close(struct catch_up *catch_up);
/* The mapping to read; NULL: none, everything is PENDING. */
void catch_up_set_mapping(struct catch_up *catch_up, struct mapping *mapping);
/* One link, up to event `seq_limit` of its epoch (UINT64_MAX: the newest), each event. PENDING: or it is
 * further behind than that is done for; catch_up_run() brings it on. */
enum weir_status catch_up_link(struct catch_up *catch_up, struct subscriber_link *link,
                               uint64_t seq_limit) WEIR_MUST_CHECK;
/* Could the link go on from `cursor`: does the ring lead from there to the topic's newest event, and is
 * that no further than its policy is served? OK; EMPTY: no, a sync is needed; PENDING: the ring does
 * not show it yet, or this turn has looked at enough records: ask again. */
enum weir_status catch_up_reaches(struct catch_up *catch_up, const struct subscriber_link *link,
                                  struct cursor cursor) WEIR_MUST_CHECK;
/* Serve the behind queue within a turn's budget. True: there is more that can be done at once. */
bool catch_up_run(struct catch_up *catch_up);

#endif

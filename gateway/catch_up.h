/* gateway/catch_up.h -- brings a link that is behind up to date from the ring, without the store's
 * items.
 *
 * One walk: from the group's newest event back through the records' back-pointers to the link's
 * cursor; then those events are read again oldest first and sent, a bounded number of bytes at a
 * time. What the ring has dropped, or what is too far back to walk, becomes a fresh sync with
 * reason "lagged". For a link that goes on at another broker (subscriptions_resume) the reason is
 * "restarted", and there the group may have gone back behind the cursor: likewise a fresh sync.
 *
 * Process:  gateway, loop thread only; never while a fan-out's batch is open.
 * Memory:   positions of one walk and the bytes of one send, shared by all links.
 * Errors:   OK: the cursor is at the group's newest event (or at the limit). AGAIN: the socket is
 *           busy and reports when it is not. PENDING: more to do next turn, or the ring does not
 *           show it all yet. LAPPED: a fresh sync is queued.
 */
#ifndef WEIR_GATEWAY_CATCH_UP_H
#define WEIR_GATEWAY_CATCH_UP_H

#include "gateway/mapping.h"
#include "gateway/outlet.h"
#include "gateway/subscriptions.h"

enum {
    CATCH_UP_RECORDS_MAX = 16384,     /* further behind: a fresh sync is cheaper for everybody */
    CATCH_UP_SEND_BYTES = 256 * 1024, /* one send to one link */
    CATCH_UP_TURN_BYTES = 4 * 1024 * 1024, /* all links in one turn */
    CATCH_UP_TURN_RECORDS = 65536,
};

struct catch_up;
struct catch_up *catch_up_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                               struct counters *counters); /* NULL: no memory */
void catch_up_close(struct catch_up *catch_up);
/* The mapping to read; NULL: none, everything is PENDING. */
void catch_up_set_mapping(struct catch_up *catch_up, struct mapping *mapping);
/* One link, up to event `seq_limit` of its epoch (UINT64_MAX: the newest). */
enum weir_status catch_up_link(struct catch_up *catch_up, struct subscriber_link *link,
                               uint64_t seq_limit) WEIR_MUST_CHECK;
/* Could a link go on from `cursor`: does the ring lead from there to the topic's newest event? OK;
 * EMPTY: no, a sync is needed; PENDING: the ring does not show it yet, ask again. */
enum weir_status catch_up_reaches(struct catch_up *catch_up, const struct topic *topic,
                                  struct cursor cursor) WEIR_MUST_CHECK;
/* Serve the behind queue within a turn's budget. True: there is more that can be done at once. */
bool catch_up_run(struct catch_up *catch_up);
/* A socket goes away, perhaps from inside a send. */
void catch_up_forget(struct catch_up *catch_up, const struct subscriber *subscriber);

#endif

/* gateway/joins.h -- sends the syncs that are due: first ones of new subscriptions, fresh ones with
 * a reason.
 *
 *   DUE --(gates of a later version stand here)--> link brought up to date --> snapshot at seq n
 *       --> link at n --> sync sent, subscription active; the next event it gets is n + 1
 *
 * A link that already serves other subscriptions of the socket first gets the events up to n from
 * the ring, so that nothing is skipped or repeated for them. Anything that cannot go on now (ring
 * not published that far, socket's backlog not empty) goes back into the queue and is looked at
 * again in the next turn or tick.
 *
 * Process:  gateway, loop thread only; never while a fan-out's batch is open.
 * Memory:   one buffer for the snapshot, one for the envelope. Consecutive syncs of one group in a
 *           pass share both.
 */
#ifndef WEIR_GATEWAY_JOINS_H
#define WEIR_GATEWAY_JOINS_H

#include "gateway/catch_up.h"

enum {
    JOINS_TURN_MAX = 512,
    JOINS_TURN_BYTES = 8 * 1024 * 1024,
    JOINS_BACKLOG_BYTES_MAX = 1024 * 1024, /* a socket with more waiting gets its sync later */
};

struct joins;
struct joins *joins_open(struct subscriptions *subscriptions, struct catch_up *catch_up,
                         const struct outlet *outlet, struct counters *counters);
void joins_close(struct joins *joins);
void joins_set_mapping(struct joins *joins, struct mapping *mapping);
/* Serve the sync queue within a turn's budget. True: there is more that can be done at once. */
bool joins_run(struct joins *joins);
/* The highest stamp of a sync sent. */
uint64_t joins_newest_ms(const struct joins *joins);
/* Answer a join that is not granted. The socket stays open. */
void joins_refuse(struct joins *joins, void *connection, const struct subscription_wish *wish,
                  uint64_t now_ms);

#endif

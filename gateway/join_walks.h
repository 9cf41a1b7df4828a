/* gateway/join_walks.h -- copies of groups (or items) that wait until the log has what they show, and
 * the subscriptions that wait for them.
 *
 *   joins.c --began a snapshot, PENDING--> kept, its subscriptions held --committed--> sync sent
 *
 * The seq of a copy is fixed when it is made, so that it is committed one commit later, however fast
 * the group is written. Subscriptions that want the same share one copy. They are held
 * (subscriptions_hold()): their links stand still and cannot pass the copy's seq meanwhile; one that
 * joins an old copy may have passed it, and needs another.
 *
 * Process:  gateway, loop thread only.
 * Memory:   JOIN_WALKS_MAX copies, and no further one once they take JOIN_WALKS_BYTES_MAX.
 * Lifetime: a copy is dropped before the mapping it was made from goes.
 */
#ifndef WEIR_GATEWAY_JOIN_WALKS_H
#define WEIR_GATEWAY_JOIN_WALKS_H

#include "gateway/counters.h"
#include "gateway/subscriptions.h"
#include "shm/store.h"

enum {
    JOIN_WALKS_MAX = 64,
    JOIN_WALKS_BYTES_MAX = 64 * 1024 * 1024,
    JOIN_WALK_SHARE_MAX = 512, /* subscriptions that share one; the others wait in their queue */
};

struct join_walk {
    struct join_walk *next;
    struct store_snapshot_walk *snapshot; /* NULL: finished */
    struct subscription *subscriptions;   /* held; NULL: nobody waits any more */
    unsigned subscription_count;          /* that ever joined it */
    bool is_of_order;                     /* to know the group's order, not what it holds */
    uint64_t since_ms;
    uint64_t bytes;
    /* What was copied. */
    struct span stream, group, item;
    bool is_whole;
    char names[];
};

struct join_walks {
    struct join_walk *first, **end; /* oldest first */
    unsigned count;
    uint64_t bytes;
    struct counters *counters;
};

void join_walks_init(struct join_walks *walks, struct counters *counters);
/* One that waits and shows what the subscription wants (of_order: its group's order), or NULL. */
struct join_walk *join_walks_find(const struct join_walks *walks,
                                  const struct subscription *subscription, bool of_order);
bool join_walks_are_full(const struct join_walks *walks);
/* Takes over `snapshot`, a copy of what the subscription wants, which waits for its commit. NULL: no
 * memory, and it is cancelled. */
struct join_walk *join_walks_keep(struct join_walks *walks, struct store_snapshot_walk *snapshot,
                                  const struct subscription *subscription, bool of_order,
                                  uint64_t now_ms);
/* store_snapshot_finish(). */
enum weir_status join_walk_finish(struct join_walk *walk, struct store_snapshot *snapshot,
                                  struct buffer *out) WEIR_MUST_CHECK;
/* Nobody waits for it any more. */
void join_walks_drop(struct join_walks *walks, struct join_walk **link);

#endif

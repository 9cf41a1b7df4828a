/* tests/sim/subscriber.h -- a client as @motiadev/stream-client is one: it joins, applies what it is sent to
 * its own state, loses its socket and comes back with its position. And it is the checker: every
 * message is compared with the history.
 *
 *   view: NONE --join--> ASKED --sync, resumed--> LIVE --event--> LIVE
 *                                                  `---sync with a reason--> LIVE
 *
 * All views of a group on one socket lose together, and each is told by a sync of its own; until it has
 * come a view is STALE: what the socket gets meanwhile is for the others.
 *
 * Some are an EventSource instead: one view, and its position is the `id` of the newest event, which
 * has to be the view's own place after every message.
 *
 * A view is one subscription: a whole group, or an item of it. Its place (`index`) in the group's
 * history moves with every message; what lies between two places must not have concerned it.
 */
#ifndef WEIR_TESTS_SIM_SUBSCRIBER_H
#define WEIR_TESTS_SIM_SUBSCRIBER_H

#include "tests/sim/gateway.h"

/* One of each kind (state, sent event) an item, and sent events without an id. */
enum { SIM_VIEWS = 3, SIM_PENDING_MAX = 2 * HISTORY_ITEMS + 1 };

enum sim_view_mode { VIEW_NONE, VIEW_ASKED, VIEW_LIVE, VIEW_STALE };

struct sim_view {
    enum sim_view_mode mode;
    unsigned group;
    int item;            /* HISTORY_NO_ITEM: the whole group */
    uint32_t lag_events; /* as it joined */
    uint64_t joined_at;  /* bytes of the socket before the join: what came earlier is not for it */
    bool has_place;      /* it was live, and knows where it was */
    bool is_resuming;    /* it has brought its place */
    struct cursor at;    /* of the newest message */
    uint64_t newest_ms;  /* its stamp */
    int32_t index;       /* in the history */
    uint32_t life;       /* of the broker that showed it this */
    struct history_state state;
    /* The newest event of each item of a range, of which some are still to come: held back until then,
     * so that the view is at the range's start if its socket ends. */
    int32_t range_start; /* place before it */
    int32_t pending[SIM_PENDING_MAX];
    uint8_t pending_kinds[SIM_PENDING_MAX]; /* as they were sent: enum envelope_event */
    unsigned pending_count;
    uint64_t range_since;
    bool is_loose; /* its items may stand in another order than the group's */
};

/* How a view joins, or an event stream is opened: brings_place is Last-Event-ID then. */
struct sim_wish {
    enum slow_policy policy;
    uint32_t lag_events;
    bool brings_place;
};

struct sim_subscriber {
    struct scheduler *scheduler;
    struct history *history;
    unsigned index;
    struct sim_socket *socket; /* NULL: not connected */
    bool is_event_stream;      /* an EventSource: one view, the first, by its path */
    struct cursor last_id;     /* of one; epoch 0: it has been sent none */
    struct sim_view views[SIM_VIEWS];
    uint64_t left_at[HISTORY_GROUPS]; /* bytes of the socket before a leave: may be for nobody */
    /* Policies of the joins of a group on this socket: a set of 1 << enum slow_policy. */
    uint8_t policies[HISTORY_GROUPS];
    uint64_t stalled_until; /* step: it reads nothing before */
    unsigned closed_code;   /* of the last socket */
    uint64_t retry_ms;      /* what it was told of coming back; 0: nothing */
    uint64_t back_ms;       /* it does not come back before */
    uint64_t ring_bytes;    /* of the gateway's broker */
    struct buffer text;
    /* What it was told, for the world's sums. */
    uint64_t events, syncs, losses, resumes, conflated, sent_away;
};

void sim_subscriber_init(struct sim_subscriber *subscriber, struct scheduler *scheduler,
                         struct history *history, unsigned index);
void sim_subscriber_fini(struct sim_subscriber *subscriber);
/* A new socket; every view joins again. */
void sim_subscriber_connect(struct sim_subscriber *subscriber, struct sim_gateway *gateway,
                            size_t window_bytes, uint32_t stingy_percent,
                            const struct sim_wish *wish);
/* Of an event stream that is not connected: the next one is of another path. */
void sim_subscriber_open_path(struct sim_subscriber *subscriber, unsigned group, int item);
void sim_subscriber_disconnect(struct sim_subscriber *subscriber);
/* Nobody else of its views wants the same. */
void sim_subscriber_join(struct sim_subscriber *subscriber, unsigned view, unsigned group, int item,
                         const struct sim_wish *wish);
void sim_subscriber_leave(struct sim_subscriber *subscriber, unsigned view);
/* Take up to so many bytes of what has come; notices the end of the socket. */
void sim_subscriber_read(struct sim_subscriber *subscriber, size_t bytes);
/* Every view has everything. */
void sim_subscriber_check_complete(const struct sim_subscriber *subscriber);

#endif

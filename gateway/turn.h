/* gateway/turn.h -- what a gateway does between two waits of its loop.
 *
 *   poll: sockets, broker, doorbell --> prepare (end of turn):
 *     send what the broker and WebSocket workers are owed so far
 *     drain the ring and fan out, unless a fan-out is being held back
 *     catch up links that are behind; send syncs that are due
 *     call the handlers of triggers whose turn has come
 *     send what workers and the broker are owed
 *     announce sleep on the doorbell; if there is work left, do not wait
 *
 * Adaptive flush: after a fan-out that took d, the next one is held for min(flush_interval_ms, 3 d),
 * rounded down to ms, if those it served have at least one event in d: then there is something to
 * share a send with. Cheap fan-outs and events that are further apart go out at once. While one is
 * held the doorbell stays silent (not asleep) and the ring is the queue.
 *
 * Process:  gateway, loop thread only.
 */
#ifndef WEIR_GATEWAY_TURN_H
#define WEIR_GATEWAY_TURN_H

#include "gateway/channel_sockets.h"
#include "gateway/fanout.h"
#include "gateway/gates.h"
#include "gateway/joins.h"
#include "gateway/link.h"
#include "gateway/local.h"
#include "gateway/presence.h"
#include "gateway/server_calls.h"
#include "gateway/worker_channel.h"
#include "gateway/ws.h"

enum {
    TURN_HEAL_MS = 100,
    TURN_DRAIN_MS = 1000, /* for the rest of a ring whose broker has gone; then it is given up */
};

struct turn_parts {
    struct feed *feed;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct joins *joins;
    struct subscriptions *subscriptions;
    struct local_presence *presence;
    struct link *link;
    struct sessions *sessions;
    struct server_calls *server_calls;
    struct triggers *triggers;
    struct ws_server *ws;
    struct worker_channel *workers;
    struct channel_sockets *channels;
    struct local *local;
    struct gates *gates;
    struct counters *counters;
    uint64_t flush_interval_ms;
};

struct turn;
struct turn *turn_open(uv_loop_t *loop, const struct turn_parts *parts); /* NULL: no memory */
/* Work on another mapping from now on; the old one is not touched again. `reads_on`: its ring is read
 * from where that of the old one was read to. */
enum weir_status turn_set_mapping(struct turn *turn, struct mapping *mapping,
                                  bool reads_on) WEIR_MUST_CHECK;
/* Is the mapping's ring read to its end? Asked while the broker is away, until it is; what is left
 * after TURN_DRAIN_MS is passed over as when the ring laps the gateway. NULL: there is none. */
bool turn_has_drained(struct turn *turn);
void turn_stop(struct turn *turn); /* memory is given back once the loop has run */

/* How long to hold the next fan-out after one of `work_us` to links that have so many events. */
uint64_t turn_hold_ms(uint64_t work_us, double events_per_s, uint64_t flush_interval_ms);

#endif

/* broker/presence.h -- which subscriptions are there, for stream:leave: a gateway's death is a
 * leave of all of its subscriptions, so the broker has to know them.
 *
 *   broker --PRESENCE_WANTED 1--> every gateway, while there is a stream:leave trigger
 *   gateway --JOINED n, payload--> table --LEFT n, or the gateway is gone--> leaving --> listener
 *           <-LEFT n: fired, forget it--------------------------------------------'
 *
 * An entry is (peer, number); it is fired once, because firing takes it out. Numbers are unique in
 * a gateway's life, and a gateway that comes back after its connection was lost does not announce
 * what the same broker has fired. LEFT of an unknown number fires nothing. The answer to LEFT lets
 * the gateway keep a leave until it is certain that this broker has fired it, also when this one
 * dies.
 *
 * When nobody wants leaves any more the table is empty at once; its memory is given back bit by
 * bit.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   copies; bounded by presence_limits. A subscription beyond that is counted
 *           (presence_refused); its leave is not told.
 * Errors:   INVALID for what no gateway of ours sends; its connection is to be closed.
 * Time:     a gateway's death costs the same for one subscription as for a million; a turn fires at
 *           most PRESENCE_TURN_MAX leaves.
 */
#ifndef WEIR_BROKER_PRESENCE_H
#define WEIR_BROKER_PRESENCE_H

#include "broker/output.h"

enum {
    PRESENCE_TURN_MAX = 1024,  /* leaves fired in one turn */
    PRESENCE_FREES_MAX = 8192, /* forgotten entries given back in one turn */
    /* After its start a broker waits with the first leave: gateways with leaves of the time before
     * and those with the triggers' owners come back in any order. So long after the last of them, */
    PRESENCE_HOLD_MS = 500,
    PRESENCE_HOLD_ALL_MS = 10000, /* and for all of them so long at most. */
    /* A listener that has no room is waited for, but not for ever: one handler that hangs may slow
     * down the leaves of the others, not stop them. */
    PRESENCE_ROOM_MS = 1000,
};

struct presence;

struct presence_limits {
    uint64_t entries_max;
    uint64_t bytes_max; /* of all entries */
};
extern const struct presence_limits presence_limits_default;

struct presence_listener {
    void (*leave)(void *context, struct span stream_name, struct span payload);
    bool (*has_room)(void *context); /* for another leave; NULL: always */
    void *context;
};

/* `hash_seed`: random. `limits` NULL: the defaults. */
enum weir_status presence_open(struct presence **presence, const struct broker_output *output,
                               struct broker_counters *counters, uint64_t hash_seed,
                               const struct presence_limits *limits,
                               struct weir_error *error) WEIR_MUST_CHECK;
void presence_close(struct presence *presence); /* fires nothing */

/* Who is told; before anybody wants it. */
void presence_listen(struct presence *presence, const struct presence_listener *listener);

/* Is there a stream:leave trigger? Every gateway is told of a change. */
void presence_set_wanted(struct presence *presence, bool wanted);
/* The peer is a gateway from now on. */
void presence_peer_attached(struct presence *presence, struct peer_handle peer);
/* The peer is gone, and all of its subscriptions with it. Before the triggers of its workers go, so
 * that whoever is left hears of it. */
void presence_peer_gone(struct presence *presence, struct peer_handle peer);
/* PRESENCE_JOINED and PRESENCE_LEFT. INVALID: a message no gateway of ours sends. */
enum weir_status presence_take(struct presence *presence, struct peer_handle peer,
                               const struct wire_message *message) WEIR_MUST_CHECK;
/* Fire nothing for PRESENCE_HOLD_MS from now on, nor while somebody is awaited. */
void presence_hold(struct presence *presence, uint64_t now_ms);
/* How many gateways have not come back yet. */
void presence_await(struct presence *presence, unsigned gateways, uint64_t now_ms);
/* Fire what has left; once a turn. True: there is more to do at once. */
bool presence_run(struct presence *presence, uint64_t now_ms);
/* Is there something that can be fired at once? */
bool presence_is_due(const struct presence *presence);
/* Subscriptions known, those leaving included. */
uint64_t presence_count(const struct presence *presence);

#endif

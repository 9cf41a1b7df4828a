/* gateway/presence.h -- tells the broker which subscriptions are there, while somebody has a
 * stream:leave trigger (broker/presence.h has the other side).
 *
 *   UNWANTED --WANTED 1--> TELLING --link lost--> PENDING --WANTED 1 of the next broker--> TELLING
 *      ^---------- WANTED 0, or PENDING and attached for LOCAL_PRESENCE_WAIT_MS ----------/
 *
 * TELLING starts with a walk over all subscriptions, in pieces; each that becomes active is said at
 * once. A subscription has a number (struct subscription) from when it was said first until its
 * end, and inherits it from one of the same id that it replaces, so that the broker replaces the
 * entry and nobody leaves. One that was never active has none and never leaves. A fresh sync
 * changes nothing.
 *
 * A leave is owed from the subscription's end until the broker has said that it is fired. What is
 * owed when the link breaks is said to the next broker, with a JOINED before it. The same broker
 * again (the link alone was lost) has fired everything it knew: that is not said to it any more.
 *
 * Process:  gateway, loop thread only.
 * Memory:   nothing per subscription but its number; leaves owed are bounded by
 *           LOCAL_PRESENCE_OWED_MAX and LOCAL_PRESENCE_OWED_BYTES_MAX, beyond they are lost and
 *           counted (leaves_lost).
 */
#ifndef WEIR_GATEWAY_PRESENCE_H
#define WEIR_GATEWAY_PRESENCE_H

#include "gateway/subscriptions.h"
#include "shm/wire.h"

enum {
    LOCAL_PRESENCE_TURN_MAX = 512, /* subscriptions walked over, and leaves said, in one turn */
    LOCAL_PRESENCE_OWED_MAX = 262144,
    LOCAL_PRESENCE_OWED_BYTES_MAX = 64 * 1024 * 1024,
    /* With more than this on its way to the broker, nothing is added. */
    LOCAL_PRESENCE_BACKLOG_BYTES_MAX = 4 * 1024 * 1024,
    /* A new broker that says nothing for so long has no stream:leave trigger. */
    LOCAL_PRESENCE_WAIT_MS = 60000,
};

struct local_presence;

struct local_presence_output {
    /* May end with a call of local_presence_lost(). */
    void (*post)(void *context, enum wire_type type, const struct wire_field *fields);
    size_t (*backlog_bytes)(void *context);
    void *context;
};

/* Observes the subscriptions until it is closed. NULL: no memory. */
struct local_presence *local_presence_open(struct subscriptions *subscriptions,
                                           const struct local_presence_output *output,
                                           struct counters *counters);
void local_presence_close(struct local_presence *presence);

/* A broker is there; `generation` tells its lives apart. */
void local_presence_attached(struct local_presence *presence, uint64_t generation, uint64_t now_ms);
void local_presence_lost(struct local_presence *presence);
/* PRESENCE_WANTED, PRESENCE_LEFT. False: not ours. */
bool local_presence_take(struct local_presence *presence, const struct wire_message *message);
/* Say what is due, within a turn's budget. True: there is more that can be said at once. */
bool local_presence_run(struct local_presence *presence);
void local_presence_tick(struct local_presence *presence, uint64_t now_ms);

#endif

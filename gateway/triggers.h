/* gateway/triggers.h -- `stream` triggers of this gateway's workers (PROTOCOL 8): an event that
 * matches is handed to the trigger's function, wherever that is.
 *
 *   ring --feed--> triggers_take() --match by stream, group, item--> queue of (trigger, group)
 *                                                                         |  one call at a time
 *   condition function, if any --anything but false--> handler <---------+
 *
 * FIFO per trigger and group with one outstanding call; different triggers, and different groups of
 * one trigger, do not wait for each other. A queue holds positions in the ring, not payloads: an
 * event is read from the ring when its turn comes, and is dropped and counted when the ring has
 * lapped it or its trigger has trigger_queue_max events that are not done. Nobody waits for a
 * handler; its result is ignored; a failure or a late answer is counted and logged (rate limited),
 * and the next event follows.
 *
 * Delivery is at most once: a call that may have been made is never repeated, so what is under way
 * when the broker goes away has failed. While the broker is away no call is started: events wait
 * until the link is back. If what is back is another broker, its ring is another as well. When that
 * broker has the log of the one before, what waits is copied out of the old ring, each event once, up
 * to TRIGGERS_KEPT_BYTES_MAX and TRIGGERS_KEPT_EVENTS_MAX, and goes on waiting before what the new
 * ring brings; beyond those bounds, and when the broker has no such log, it is dropped and counted.
 *
 * Process:  gateway, loop thread only.
 * Memory:   copies of what a trigger was registered with; 8 bytes per event waiting, and a queue
 *           for each (trigger, group) that has any. What was copied from old rings is given back when
 *           the last event of it is done.
 * Units:    positions are the ring's; timeouts in ms.
 * Errors:   none to the writer of an event: what fails, is late or dropped is counted and logged.
 */
#ifndef WEIR_GATEWAY_TRIGGERS_H
#define WEIR_GATEWAY_TRIGGERS_H

#include "gateway/mapping.h"
#include "gateway/server_calls.h"
#include "shm/trigger_types.h"

enum {
    TRIGGERS_TURN_EVENTS = 256, /* looked at in one triggers_run() */
    TRIGGERS_TURN_BYTES = 1024 * 1024,
    /* Copied out of the ring of a broker that has gone. */
    TRIGGERS_KEPT_BYTES_MAX = 64 * 1024 * 1024,
    TRIGGERS_KEPT_EVENTS_MAX = 262144, /* at one time, each counted once */
};

struct triggers;
struct trigger;

struct triggers_options {
    uint64_t queue_max;  /* events per trigger that are not done: waiting, or under way */
    uint64_t timeout_ms; /* of a condition's call, and again of the handler's */
};

/* How calls are made: gateway.c fills in server_calls.h, a test what it likes. */
struct triggers_calls {
    struct server_calls *calls;
    struct server_call *(*start)(struct server_calls *calls,
                                 const struct server_call_request *request, server_call_done *done,
                                 void *context);
    void (*cancel)(struct server_call *call);
    bool (*are_flowing)(const struct server_calls *calls);
};

/* NULL: no memory. */
struct triggers *triggers_open(const struct triggers_calls *calls,
                               const struct triggers_options *options, struct counters *counters);
/* All triggers removed; `calls` is still open. NULL is fine. */
void triggers_close(struct triggers *triggers);
/* From now on positions are those of `mapping`. Before the old one is closed. Another segment: what
 * waits is copied out of the old one when `is_kept` (it goes on with the events of the old one), else
 * dropped and counted; a handler under way is still waited for. The same segment again (the link was
 * cut, the broker lives on): what waits goes on waiting. */
void triggers_set_mapping(struct triggers *triggers, struct mapping *mapping, bool is_kept);

struct trigger_binding {
    struct span name_space; /* of function and condition; data NULL: default */
    struct span function;
    struct span metadata;         /* JSON; data NULL: none */
    struct trigger_config config; /* stream is given */
};
/* Copies. NULL: no memory. Fires for events published from now on. */
struct trigger *triggers_add(struct triggers *triggers, const struct trigger_binding *binding);
/* What waits is dropped and counted; a call under way goes on, its answer is not waited for. */
void triggers_remove(struct trigger *trigger);

/* True when the feed has to show its records. */
bool triggers_are_wanted(const struct triggers *triggers);
/* One record of the feed, in order; `copied` is all that ring_read() copied of it: the frame and
 * what is behind it. Returns how many triggers it matched. */
unsigned triggers_take(struct triggers *triggers, const struct ring_record *record,
                       struct span copied);
/* The feed has missed records, nobody knows how many: counted as one drop and logged. */
void triggers_lapped(struct triggers *triggers);
/* Start calls that can start, within a turn's budget. True: there is more to do at once. */
bool triggers_run(struct triggers *triggers);

#endif

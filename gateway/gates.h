/* gateway/gates.h -- stream:join triggers: who may join what (PROTOCOL 7.3, 8.4).
 *
 *   join --gates of its stream? none--> passed, at once, nothing is allocated
 *             | for each, all at the same time
 *             +--condition, if any--> handler --> one verdict when the last has answered
 *
 *   condition: false -> its handler is not asked; an error -> open: not asked, closed: denied
 *   handler:   {"unauthorized":true} -> denied; an error or {"unauthorized":<no boolean>} -> closed:
 *              denied; anything else -> passed
 *
 * All gates are asked, also after one has denied. The table is the broker's (GATE_BIND,
 * GATE_UNBIND). A join is decided only while the table is known to be whole; until then it waits:
 *
 *   start       closed gates: until GATES_TOLD. Of the gates there were only the gateways know when a
 *               broker dies, and this one has known none; each of the others says what it knows
 *   attach      until the broker has answered a question asked after attaching: what it knew of
 *               gates came before that answer
 *   broker away until it is back, if there were gates; joins being asked wait as well, and are asked
 *               anew. Without gates they pass, as they do while it is there.
 *   re-attach   until every gate that was there is back, for their workers' gateways announce them
 *               one by one; GATES_GRACE_MS at most, then those that are missing are away. A broker
 *               that was never gone itself knows them all: what it does not say is withdrawn
 *
 * A gate whose worker has gone is not a gate that was withdrawn. With closed gates it stays, away,
 * and denies every join of its stream:
 *
 *   bound --GATE_UNBIND 1--> away: joins wait for it, GATES_GRACE_MS from then, so that a worker may
 *     ^                       |    be restarted; afterwards they are denied at once
 *     '--a GATE_BIND of the same namespace, function and stream
 *
 * A GATE_UNBIND 0 ends it, bound or away. It outlives the broker: its successor is told of it after
 * the grace. Open gates are never away.
 *
 * A join that has waited gate_timeout_ms and GATES_GRACE_MS, counted from the first attach, is
 * treated as one whose handler failed.
 *
 * Process:  gateway, loop thread only.
 * Memory:   per waiting join its names and a small block per call; GATES_JOINS_MAX joins and
 *           GATES_JOIN_BYTES_MAX bytes in all, beyond which joins are FULL. Up to GATES_MAX gates, away
 *           ones included; with one that could not be kept, no join passes closed gates before the
 *           next attach. Nothing is needed for a gate to be away that it did not have before.
 * Units:    ms of caller.now_ms().
 * Errors:   verdicts only: what fails has denied or passed, is counted, and logged once a second.
 */
#ifndef WEIR_GATEWAY_GATES_H
#define WEIR_GATEWAY_GATES_H

#include "gateway/caller.h"
#include "gateway/subscriptions.h"

enum {
    GATES_MAX = 4096,
    GATES_JOINS_MAX = 65536,
    GATES_JOIN_BYTES_MAX = 64 * 1024 * 1024,
    GATES_GRACE_MS = 2000,
};

struct gates;
struct gate_join;

/* The waiting joins of one socket; zeroed, and stays put until gates_forget(). */
struct gate_visitor {
    struct gate_join *joins;
    uint32_t count;      /* without those taken back */
    uint32_t void_count; /* taken back, their gates have not answered yet */
};

enum gate_verdict {
    GATE_PASSED,
    GATE_DENIED,
    GATE_FULL,    /* it would have to wait and must not, or a name is too long */
    GATE_WAITING, /* gates_decided follows, unless the join is cancelled */
};

struct gate_question {
    struct subscription_wish wish; /* copied */
    struct span context;           /* JSON, not copied: as long as the visitor */
    bool is_path;                  /* handed back */
    bool may_wait;                 /* the socket has room for another subscription */
};

/* PASSED or DENIED. The wish is valid during the call, from which nothing here may be called. */
typedef void gates_decided(void *context, struct gate_visitor *visitor,
                           const struct subscription_wish *wish, bool is_path,
                           enum gate_verdict verdict);

struct gates_options {
    uint64_t timeout_ms; /* of all calls of a join */
    bool is_closed;
    gates_decided *decided;
    void *context;
    /* Sends to the broker. NULL: nothing is said. */
    void (*post)(void *context, enum wire_type type, const struct wire_field *fields);
    void *post_context;
    /* The question asked after gates_attached() is answered, and so all has come that the broker had to
     * tell to a gateway that attaches, whatever it is about. NULL: nobody wants to know. */
    void (*heard)(void *context);
    void *heard_context;
};

/* NULL: no memory. */
struct gates *gates_open(const struct gates_options *options, const struct caller *caller,
                         struct counters *counters);
void gates_close(struct gates *gates); /* every visitor was forgotten */

void gates_attached(struct gates *gates, uint64_t generation); /* the broker's */
void gates_lost(struct gates *gates);
/* GATE_BIND, GATE_UNBIND, GATES_TOLD. */
void gates_take_message(struct gates *gates, const struct wire_message *message);
/* Decide about joins that have waited long enough. */
void gates_tick(struct gates *gates);

/* True when every join passes, so that nothing need be asked. */
bool gates_are_clear(const struct gates *gates);
/* Never calls `decided` from inside. */
enum gate_verdict gates_ask(struct gates *gates, struct gate_visitor *visitor,
                            const struct gate_question *question) WEIR_MUST_CHECK;
/* Forget the visitor's waiting join of that id, if there is one: it is not decided about any more.
 * Once its gates are being asked it goes on counting (void_count) until they have answered. */
void gates_cancel(struct gates *gates, struct gate_visitor *visitor, struct span subscription_id);
void gates_forget(struct gates *gates, struct gate_visitor *visitor);

#endif

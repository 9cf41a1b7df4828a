/* gateway/joins.h -- sends the syncs that are due: first ones of new subscriptions, fresh ones with
 * a reason; and lets those go on that were there before.
 *
 *   DUE (the gates have let it pass, gates.h) --> link brought up to date --> snapshot at seq n
 *       --> link at n --> sync sent, subscription active; the next event it gets is n + 1
 *
 * A link that already serves other subscriptions of the socket first gets the events up to n from
 * the ring, so that nothing is skipped or repeated for them. Anything that cannot go on now (ring
 * not published that far, socket's backlog not empty) goes back into the queue and is looked at
 * again in the next turn or tick.
 *
 * Where the broker has a log, n may not be committed when the snapshot is taken, and in a group that is
 * always being written it never is. The snapshot is then kept (join_walks.h), with the link held where
 * it stands, until n is committed; by then the feed may be past n, so the link catches up:
 *
 *   DUE --> snapshot at seq n, kept --n committed--> link at n --> sync sent, link behind
 *
 * Those who want the same share it, and others in the queue are not held up. A log that does not get n
 * for JOINS_COMMIT_WAIT_MS (it has failed) closes the sockets that wait; while the broker is away they
 * wait for the next one.
 *
 * A client that has been there before brings a position (epoch, seq), and needs no snapshot while the
 * ring leads on from it:
 *
 *   DUE --> the ring leads from there to the newest event? --yes--> `resumed` sent, link there and
 *               |no                                                  behind: catch_up.h goes on
 *               '--> a sync as above, with reason "expired"
 *
 * Whether it does is asked of the ring once for many positions of a group; one that is further back than
 * its mode is served counts as one the ring does not lead from. Where the link serves other subscriptions
 * already it is served only if it is where the link stands.
 *
 * A worker's own stream (custom_streams.h) is read through the broker, and that takes time:
 *
 *   DUE --> link brought to the group's newest event n, and held there
 *       --get, list--> broker --> worker --answer--> sync sent with seq n, link let go;
 *                                                    the next event it gets is n + 1
 *
 * What the worker answers may be newer than n: then events follow that it knows already, but none
 * is missing. Those who wait for the same value at the same n share one reading. When that of a
 * first sync fails nothing is sent, and the subscription gets events from n + 1 on; who was to be
 * told of a loss is told by a close. A subscription that goes meanwhile, or is to start anew, does
 * not wait for the answer. When the values of such a stream can be read anew (its worker has come,
 * or come back) its subscriptions get a fresh sync.
 *
 * Process:  gateway, loop thread only; never while a fan-out's batch is open.
 * Memory:   one buffer for the snapshot, one for the envelope. Consecutive syncs of one group in a
 *           pass share both. A reading from a worker is a small block, JOINS_READS_MAX of them; its
 *           answer is sent on when it comes and not kept. Snapshots that wait: join_walks.h.
 * Errors:   a sync that cannot be made now stays due; one that can never be is a close with 1013, or
 *           1009 when it is too large.
 */
#ifndef WEIR_GATEWAY_JOINS_H
#define WEIR_GATEWAY_JOINS_H

#include "gateway/catch_up.h"
#include "gateway/custom_streams.h"
#include "gateway/link.h"

enum {
    JOINS_TURN_MAX = 512,
    JOINS_TURN_RESUMES =
        1024, /* positions looked at; the way to them through the ring has a budget of
                                  its own, in catch_up.h */
    JOINS_TURN_BYTES = 8 * 1024 * 1024,
    JOINS_BACKLOG_BYTES_MAX = 1024 * 1024, /* a socket with more waiting gets its sync later */
    JOINS_READ_SHARE_MAX = 512,            /* subscriptions that share one reading */
    JOINS_READS_MAX = 256, /* from workers at once; the other subscriptions wait in their queue */
    JOINS_LOOKS_MAX = 8,   /* at one group, when the ring laps the look */
    JOINS_VAIN_MAX = 8,    /* looks of a pass that wait for the log and cannot be kept */
    JOINS_COMMIT_WAIT_MS = 15000, /* for the log, while the broker is there */
};

struct joins;
struct joins *joins_open(struct subscriptions *subscriptions, struct catch_up *catch_up,
                         const struct outlet *outlet, struct counters *counters);
void joins_close(struct joins *joins);
void joins_set_mapping(struct joins *joins, struct mapping *mapping);
/* link_ask(), or a test's stand-in. */
typedef enum weir_status joins_ask_broker(struct link *link, enum wire_type type,
                                          const struct wire_field *fields,
                                          struct link_request *request);
/* How workers' own streams are read; without, there are none. The link is closed before joins. */
void joins_set_broker(struct joins *joins, joins_ask_broker *ask, struct link *link,
                      struct custom_streams *custom);
/* Serve the sync queue within a turn's budget. True: there is more that can be done at once. */
bool joins_run(struct joins *joins, uint64_t now_ms);
/* The highest stamp of a sync sent. */
uint64_t joins_newest_ms(const struct joins *joins);
/* Answer a join that is not granted; the caller counts it. The socket stays open. `reason`: what is
 * wrong with it, plain ASCII without quotes; NULL: nothing is said. */
void joins_refuse(struct joins *joins, void *connection, const struct subscription_wish *wish,
                  const char *reason, uint64_t now_ms);

#endif

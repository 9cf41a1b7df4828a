/* gateway/sends.h -- runs of events, and one batch of sends that give them to links: what live
 * delivery (fanout.h) and catching up (catch_up.h) have in common.
 *
 * A run is laid out once, frames back to back; every link that takes all of a group's events shares
 * those bytes from where it stands on, links with item filters get pieces of them. What event streams
 * are sent is laid out beside it, when the first link that wants it is met.
 *
 * A link moves when its socket has taken the send. One whose socket is busy stays where it is and is
 * blocked until the socket is writable.
 *
 * Process:  gateway, loop thread only. A batch is filled and flushed within one call of whoever owns it,
 *           and no link goes meanwhile (outlet.h).
 * Memory:   40 bytes a send, in blocks sized by the largest batch. A run's bytes are the caller's and
 *           stay where they are until sends_flush().
 */
#ifndef WEIR_GATEWAY_SENDS_H
#define WEIR_GATEWAY_SENDS_H

#include "gateway/outlet.h"

enum { FORMATS = 2 }; /* of enum subscriber_format */

struct run_event {
    uint64_t epoch, seq;
    struct span item; /* data NULL: none */
};

/* Events that follow one another. */
struct run {
    uint32_t count;
    const struct run_event *events;
    /* By format: events i .. k - 1 are bytes[offsets[i]] .. bytes[offsets[k]]. */
    const char *bytes[FORMATS];
    size_t *offsets[FORMATS]; /* room for count + 1 */
    struct buffer *text;      /* where event streams' bytes go; they are not moved */
    size_t text_room;         /* for all runs of the batch */
};

/* What becomes of a link that was behind, or was left behind by a cut. */
enum send_then { SEND_STAYS, SEND_BEHIND, SEND_LIVE };

struct send {
    struct subscriber_link *link;
    uint64_t epoch, seq; /* where it then is */
    uint32_t bytes;
    uint16_t conflated, conflated_left; /* likewise (subscriptions.h) */
    uint16_t left_out;                  /* events for which those in it stand; counted when taken */
    uint8_t then;                       /* enum send_then */
    bool begins_conflation;
};

struct sends;
struct sends *sends_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                         struct counters *counters); /* NULL: no memory */
void sends_close(struct sends *sends);
/* False: no memory, nothing is sent. */
bool sends_add(struct sends *sends, const struct send *send, const struct iovec *frames,
               unsigned frame_count) WEIR_MUST_CHECK;
/* Events `start` .. `end` - 1 that the link wants, or as many as one send takes: then the link is
 * behind. One that wants none of them moves at once. False: no memory. */
bool sends_add_run(struct sends *sends, struct run *run, uint32_t start, uint32_t end,
                   struct subscriber_link *link, enum send_then then) WEIR_MUST_CHECK;
/* Of the batch that is open. */
unsigned sends_count(const struct sends *sends);
uint64_t sends_bytes(const struct sends *sends);
/* How many were taken. */
unsigned sends_flush(struct sends *sends);
/* The link is where `send` says. */
void sends_arrive(struct sends *sends, const struct send *send);

#endif

/* broker/bounds.h -- the broker's own bounds: name, value, and what happens there. Shared ones are
 * in shm/limits.h. */
#ifndef WEIR_BROKER_BOUNDS_H
#define WEIR_BROKER_BOUNDS_H

#include <assert.h>

#include "broker/loop.h"
#include "shm/limits.h"

enum {
    /* Connections at once: all readers and a few that have not attached yet. One more is closed at
     * accept. */
    PEERS_MAX = READERS_MAX + 8,
    /* A connection that has not attached by then is closed. */
    PEER_ATTACH_MS_MAX = 10000,

    /* Fairness: what one peer may ask for in one turn; the rest waits for the next. */
    TURN_FRAMES_PER_PEER = 512,
    TURN_BYTES_PER_PEER = 1024 * 1024,
    /* Most frames take a microsecond; one that moves every trigger of a type takes milliseconds. */
    TURN_US_PER_PEER = 10000,
    TURN_FRAMES_PER_CLOCK = 8, /* the time is looked at this often */

    /* One receive; larger frames grow the buffer to their own size, which is given back afterwards. */
    PEER_RECEIVE_BYTES = 256 * 1024,
    PEER_INPUT_BYTES_MAX = WIRE_FRAME_BYTES_MAX + PEER_RECEIVE_BYTES,
    PEER_BUFFER_KEEP_BYTES = 1024 * 1024,

    /* Unread output of one peer. Soft: its own requests wait and it gets no new calls. Hard: it is
     * dropped. */
    PEER_OUTPUT_SOFT_BYTES = 16 * 1024 * 1024,
    PEER_OUTPUT_HARD_BYTES = 4 * WIRE_FRAME_BYTES_MAX,
    /* Answers that nobody waits for are held back until something else is sent to the peer, until
     * they are so many (a hundred of those without an error), or for so long. The peer keeps the
     * questions so long, and the longer ones are asked again when the broker dies. */
    PEER_HELD_BYTES_MAX = 2048,
    PEER_HELD_MS_MAX = 10,
    /* Beyond, data of byte channels waits in its channels, so that it does not make a peer busy. */
    PEER_OUTPUT_BULK_BYTES = 4 * 1024 * 1024,

    /* Events and replies collected before a turn commits early. */
    BATCH_REPLIES_MAX = 4096,
    BATCH_WRITES_MAX = 8192, /* a void write has no reply */
    BATCH_REPLY_BYTES = 1024 * 1024,
    BATCH_FRAME_BYTES = 1024 * 1024, /* of the log; a larger record has a frame of its own */
    BATCH_RING_SHARE = 8,            /* of the ring's capacity */
    /* Batches that wait for the log. Beyond: no requests are taken until one is written. */
    BATCHES_KEPT = 8,

    /* Requests an asynchronous adapter may have open. One more is answered with an error. */
    ENGINE_REQUESTS_MAX = 16384,

    /* Routes. Beyond: sessions are not known, registrations and calls are refused with an error. */
    SESSIONS_MAX = 100000,
    FUNCTION_DETAIL_BYTES_MAX = 1024 * 1024, /* description, formats and metadata of one function */
    ROUTES_DETAIL_BYTES_MAX = 256 * 1024 * 1024, /* of all functions and sessions */
    /* Trigger types and triggers. Beyond: refused with trigger_registration_failed.
     * Of each of weir's own types but `stream`, all sessions together: every gateway keeps every
     * gate, and one event goes to all triggers of its type at once. */
    OWN_TRIGGERS_MAX = 4000,
    TRIGGER_BYTES_MAX = 1024 * 1024, /* one trigger or type: names, JSON, bookkeeping */
    TRIGGERS_BYTES_MAX =
        64 * 1024 * 1024, /* of all: a type's may all go to its next provider at once */
    CALLS_PENDING_MAX = 262144,
    CALLS_PENDING_PER_EXECUTOR_MAX = 65536,

    /* Subscriptions whose leave somebody wants to know of. Beyond: it is not told, and counted. */
    PRESENCE_ENTRIES_MAX = 1024 * 1024,
    PRESENCE_BYTES_MAX = 512 * 1024 * 1024,
};

static_assert(2 * PEERS_MAX + 8 <= LOOP_OPERATIONS_MAX,
              "a receive and a send per peer; signals, listener, two threads and the log's writes");
static_assert(PEER_OUTPUT_SOFT_BYTES < PEER_OUTPUT_HARD_BYTES, "soft comes first");
static_assert(PEER_OUTPUT_SOFT_BYTES + TRIGGERS_BYTES_MAX < PEER_OUTPUT_HARD_BYTES,
              "a replay of all triggers drops no gateway");
static_assert(TURN_BYTES_PER_PEER >= PEER_RECEIVE_BYTES, "a turn takes what one receive brought");

#endif

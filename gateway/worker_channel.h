/* gateway/worker_channel.h -- the JSON worker channel that iii-sdk speaks (PROTOCOL 2).
 *
 * Parses the messages of PROTOCOL 2.3 and prints the answers; what they mean is in sessions.h and
 * calls.h. Undecodable or unknown messages are counted and dropped, except calls whose
 * invocation_id can be read: those get `invalid_message`.
 *
 * Process:  gateway, loop thread only.
 * Memory:   per worker a session and, while it reads slower than it is answered, the answers kept
 *           back: at most WORKER_HELD_BYTES_MAX, and its reading pauses meanwhile. Beyond that it
 *           is closed with 1013. While it waits for the end of its previous connection (PROTOCOL
 *           2.5), or a question about its rights is open (session_access.h), its messages are kept
 *           back: up to WORKER_DEFERRED_BYTES and one more message, then its reading pauses.
 */
#ifndef WEIR_GATEWAY_WORKER_CHANNEL_H
#define WEIR_GATEWAY_WORKER_CHANNEL_H

#include "gateway/calls.h"
#include "gateway/ws.h"

enum {
    WORKER_BACKLOG_BYTES = 1024 * 1024, /* in a socket: reading pauses */
    WORKER_HELD_BYTES_MAX = 128 * 1024 * 1024,
    WORKER_INVOCATION_ID_BYTES_MAX = 128,
    WORKER_DEFERRED_BYTES = 1024 * 1024, /* kept back during a reattach: reading pauses */
};

struct worker_channel;
struct worker;

struct worker_channel *worker_channel_open(struct sessions *sessions, struct counters *counters);
void worker_channel_close(struct worker_channel *channel); /* all workers are gone */
/* WS_ROLE_WORKER, WS_ROLE_TELEMETRY, or WS_ROLE_NONE for a path that is neither. */
enum ws_role worker_channel_role(struct span path);
/* For a handshake under way; NULL: no memory. Free with worker_free() when it fails. */
struct worker *worker_make(struct worker_channel *channel);
/* Before it is opened: its rights, the worker's from now on. Without, it may do everything. */
struct session_access;
void worker_set_access(struct worker *worker, struct session_access *access);
void worker_free(struct worker *worker);
void worker_opened(struct worker *worker, struct ws_connection *connection);
void worker_message(struct worker *worker, struct span message, bool is_binary);
void worker_closed(struct worker *worker); /* frees it */
/* The gateway is to stop: the worker's socket is closed with 1012 at a moment when no call of it or to
 * it is in flight (parting.h). Its session ends with that: whoever calls it is told it is gone. False:
 * it was let go before. */
bool worker_let_go(struct worker *worker);
/* Once a turn: give out answers and take up messages that were kept back. */
void worker_channel_turn(struct worker_channel *channel);

#endif

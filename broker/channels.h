/* broker/channels.h -- byte channels (PROTOCOL 2.17): what one socket writes, another reads, on
 * whichever gateways they are.
 *
 *   writer's gateway --DATA--> channel [queue] --DATA--> reader's gateway
 *                    <-CREDIT-                 <-CREDIT-
 *
 * Nobody sends without credit: the writer's gateway stops reading its socket when it has none left,
 * and is given more while fewer than buffer_size messages and CHANNEL_BYTES bytes wait here. So a
 * writer may finish before its reader has come, and a slow reader holds up its writer and nobody
 * else. Nor is a reader's gateway sent anything while too much waits for it already, whatever its
 * readers' credit: its other messages would have to wait, and at its hard bound it would be dropped.
 *
 * A channel ends when its reader goes, when its writer has gone and all of it was read, when the
 * session that made it goes, or when it has had no socket for CHANNEL_UNUSED_MS_MAX.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   per channel its queue: CHANNEL_BYTES and CHANNEL_CREDITS messages more. While all queues
 *           together hold CHANNELS_BYTES a writer gets credit only for what its reader waits for, so
 *           channels nobody reads do not stop the others. At CHANNELS_BYTES_HARD the channel whose
 *           message would be kept is ended (counter channels_dropped).
 * Errors:   an unknown id or a wrong key is OPENED 0, an end that is taken OPENED 2. Messages about
 *           ends that are gone are ignored: they may cross a close.
 */
#ifndef WEIR_BROKER_CHANNELS_H
#define WEIR_BROKER_CHANNELS_H

#include "broker/output.h"

enum {
    CHANNELS_MAX = 100000,       /* one more: the call is answered with an error */
    CHANNELS_SESSION_MAX = 4096, /* of one worker: likewise */
    CHANNEL_UNUSED_MS_MAX = 300000,
    CHANNEL_BUFFER_DEFAULT = 64, /* messages */
    CHANNEL_BUFFER_MAX = 1024,
    CHANNEL_CREDITS = 8, /* messages a writer may have on the way */
    CHANNEL_BYTES = 1024 * 1024,
    CHANNELS_BYTES = 256 * 1024 * 1024,
    CHANNELS_BYTES_HARD = 1024 * 1024 * 1024,
};

struct channels;

enum weir_status channels_open(struct channels **channels, const struct broker_output *output,
                               struct broker_counters *counters, uint64_t hash_seed,
                               struct weir_error *error) WEIR_MUST_CHECK;
void channels_close(struct channels *channels); /* NULL is fine */

/* Who is to be sent no bulk data now. Without this, those that are busy (broker/output.h). */
void channels_set_lag(struct channels *channels,
                      bool (*is_lagging)(void *context, struct peer_handle peer), void *context);

/* A CALL of engine::channels::create, which channels_create() answers. */
bool channels_is_create(const struct wire_message *call);
void channels_create(struct channels *channels, struct peer_handle peer,
                     const struct wire_message *call, uint64_t now_ms);
/* CHANNEL_OPEN, CHANNEL_DATA, CHANNEL_CREDIT, CHANNEL_CLOSED. INVALID: a message no gateway of ours
 * sends. */
enum weir_status channels_take(struct channels *channels, struct peer_handle peer,
                               const struct wire_message *message, uint64_t now_ms) WEIR_MUST_CHECK;
void channels_session_gone(struct channels *channels, struct peer_handle peer, uint64_t session);
void channels_peer_gone(struct channels *channels, struct peer_handle peer);
/* Once a turn: hand on what waits for gateways that lagged. */
void channels_turn(struct channels *channels);
/* About once a second: end what nobody uses, and give credit again after there was no room. */
void channels_tick(struct channels *channels, uint64_t now_ms);

#endif

/* gateway/channel_sockets.h -- sockets of byte channels (PROTOCOL 2.17) on the worker port:
 * /ws/channels/{id}?key={access_key}&dir=read|write. The broker knows the channels and joins their
 * ends (broker/channels.h); here a socket becomes an end, and messages pass through.
 *
 *   upgrade --held--> CHANNEL_OPEN --OPENED 1--> 101      unknown id or key: 404; broker away: 503
 *                                  --OPENED 2--> 101, then Close 1008: that end is taken
 *
 * A writer is read only while the broker has given it credit, and no writer is while more than
 * LINK_BACKLOG_BYTES_MAX wait for the broker: credit is for messages, whatever their size, and what
 * the link has no room for would cost the connection to the broker. A reader gives the broker credit
 * while its socket takes what it is sent.
 *
 * Process:  gateway, loop thread only.
 * Memory:   per end 100 bytes, and what a reader's socket does not take: at most CHANNEL_READ_AHEAD
 *           messages.
 * Errors:   those of the drawing. When the broker goes, so do all ends, with Close 1012.
 */
#ifndef WEIR_GATEWAY_CHANNEL_SOCKETS_H
#define WEIR_GATEWAY_CHANNEL_SOCKETS_H

#include "gateway/link.h"
#include "gateway/ws.h"

enum {
    CHANNEL_READ_AHEAD = 8,              /* messages the broker may send a reader unasked */
    CHANNEL_BACKLOG_BYTES = 1024 * 1024, /* in a reader's socket: no credit until it is less */
    CHANNEL_ENDS_MAX = 100000,           /* one more: 503 */
};

struct channel_sockets;
struct channel_socket;

struct channel_sockets *channel_sockets_open(struct counters *counters); /* NULL: no memory */
void channel_sockets_set_link(struct channel_sockets *channels, struct link *link);
void channel_sockets_close(struct channel_sockets *channels); /* all ends are gone */

bool channel_sockets_is_path(struct span path);
/* For a handshake to be held. NULL: refused, request->http_status says with what. */
struct channel_socket *channel_socket_make(struct channel_sockets *channels,
                                           struct ws_request *request);
/* The handshake failed. */
void channel_socket_refused(struct channel_socket *end);
void channel_socket_opened(struct channel_socket *end);
void channel_socket_message(struct channel_socket *end, struct span message, bool is_binary);
void channel_socket_closed(struct channel_socket *end); /* frees it */

/* CHANNEL_DATA, CHANNEL_CREDIT, CHANNEL_CLOSED; false: another's. */
bool channel_sockets_take(struct channel_sockets *channels, const struct wire_message *message);
/* The broker is gone, and every channel with it. */
void channel_sockets_lost(struct channel_sockets *channels);
/* Once a turn: hand on what sockets take again. */
void channel_sockets_turn(struct channel_sockets *channels);

#endif

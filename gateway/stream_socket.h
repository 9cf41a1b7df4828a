/* gateway/stream_socket.h -- subscribers' WebSockets (PROTOCOL 6): paths, join and leave, and the
 * outlet their events take.
 *
 * A join beyond subscriptions_max, or one whose names are too long, is answered with an
 * `unauthorized` envelope: the protocol has no error message, and silence would leave the client
 * waiting. It is counted.
 *
 * Process:  gateway, loop thread only.
 * Memory:   48 bytes per idle socket here, beside its links (subscriptions.h) and ws.c's part.
 */
#ifndef WEIR_GATEWAY_STREAM_SOCKET_H
#define WEIR_GATEWAY_STREAM_SOCKET_H

#include "gateway/fanout.h"
#include "gateway/joins.h"
#include "gateway/ws.h"

struct stream_channel {
    struct subscriptions *subscriptions;
    struct joins *joins;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct counters *counters;
    const char *origins;      /* comma separated; empty: any */
    const char *subprotocols; /* accepted besides Authorization, comma separated */
    struct buffer decoded;
};

struct stream_socket;

void stream_channel_init(struct stream_channel *channel);
void stream_channel_fini(struct stream_channel *channel);
/* Decide by path and origin. NULL: refused, request->http_status says with what. */
struct stream_socket *stream_socket_make(struct stream_channel *channel,
                                         struct ws_request *request);
void stream_socket_free(struct stream_socket *socket);
void stream_socket_opened(struct stream_socket *socket, struct ws_connection *connection);
void stream_socket_message(struct stream_socket *socket, struct span message);
void stream_socket_writable(struct stream_socket *socket);
void stream_socket_closed(struct stream_socket *socket); /* frees it */
/* The real outlet. */
struct outlet stream_outlet(struct ws_server *server);

/* Decode %XX; `out` holds text.bytes. False: a bad escape, or not UTF-8. */
bool stream_path_decode(char *out, struct span text, size_t *bytes);

#endif

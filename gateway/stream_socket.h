/* gateway/stream_socket.h -- subscribers' WebSockets (PROTOCOL 6) and event streams: paths, join
 * and leave, and the outlet their events take.
 *
 *   handshake --auth.h--> open --join--> gates.h --passed--> subscription --> its sync (joins.h)
 *                                           '----denied--> `unauthorized` envelope
 *
 * While gates are asked the socket is read on: a later `leave` of the same subscription id takes the
 * waiting join back, a later join of that id replaces it, and all else goes on beside it. A join by
 * the path that is denied closes the socket with 4403.
 *
 * Server-sent events come in by GET /sse/{stream}/{group}, have one subscription, by the path, and say
 * nothing afterwards. Their gates are asked before the answer, which tells what became of it:
 *
 *   GET --auth.h--> gates.h --passed--> 200, open, subscription --> its sync
 *           '-----------'----denied--> 401, 403
 *
 * A join beyond subscriptions_max, those waiting for gates included, or one whose names are too
 * long, is answered with an `unauthorized` envelope: the protocol has no error message, and silence
 * would leave the client waiting. So is one whose position or mode is wrong, with the reason; by the
 * path that is 400. It is counted.
 *
 * Process:  gateway, loop thread only.
 * Memory:   72 bytes per idle socket here and its auth context, beside its links (subscriptions.h)
 *           and ws.c's part.
 */
#ifndef WEIR_GATEWAY_STREAM_SOCKET_H
#define WEIR_GATEWAY_STREAM_SOCKET_H

#include "config/settings.h"
#include "gateway/gates.h"
#include "gateway/joins.h"
#include "gateway/retry.h"
#include "gateway/stream_path.h"
#include "gateway/ws.h"

struct stream_channel {
    struct subscriptions *subscriptions;
    struct joins *joins;
    struct gates *gates;
    struct counters *counters;
    struct retry *retry;
    const struct settings *settings; /* origins, subprotocols, streams */
    struct buffer decoded;
};

struct stream_socket;

void stream_channel_init(struct stream_channel *channel);
void stream_channel_fini(struct stream_channel *channel);
/* Decide by path and origin. NULL: refused, request->http_status says with what. */
struct stream_socket *stream_socket_make(struct stream_channel *channel,
                                         struct ws_request *request);
void stream_socket_free(struct stream_socket *socket);
/* What auth has given it: malloc'd JSON, or data NULL. Taken over. */
void stream_socket_set_context(struct stream_socket *socket, struct span context);
void stream_socket_opened(struct stream_socket *socket, struct ws_connection *connection);
void stream_socket_message(struct stream_socket *socket, struct span message);
void stream_socket_writable(struct stream_socket *socket);
void stream_socket_closed(struct stream_socket *socket); /* frees it */
bool stream_socket_is_event_stream(const struct stream_socket *socket);
/* An event stream's join, decided before it is accepted. WAITING: `admitted` follows with the verdict,
 * unless the socket is freed; it is never called from inside. */
typedef void stream_socket_admitted(void *context, enum gate_verdict verdict);
enum gate_verdict stream_socket_ask(struct stream_socket *socket, stream_socket_admitted *admitted,
                                    void *context) WEIR_MUST_CHECK;
/* The gates have decided about a waiting join; `context` is the channel. */
void stream_socket_decided(void *context, struct gate_visitor *visitor,
                           const struct subscription_wish *wish, bool is_path,
                           enum gate_verdict verdict);
/* The real outlet. */
struct outlet stream_outlet(struct ws_server *server);

#endif

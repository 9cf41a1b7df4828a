/* gateway/doors.h -- who comes in by the gateway's ports: decides about each upgrade, and hands what
 * a socket says to the part it belongs to.
 *
 *   stream port        a path of stream_socket.h  --auth.h, perhaps a call--> subscriber
 *   stream port        GET /sse/..., likewise, and gates.h ---------------> event stream
 *   worker port and    /, /ws, /ws/               --------------------------> worker (worker_channel.h)
 *   worker listeners   ... /otel                  --------------------------> telemetry, discarded
 *                      /ws/channels/{id}          --held: the broker--------> end (channel_sockets.h)
 *
 * A worker that came by a listener gets the rights of a session_access.h; one of the worker port has
 * none and needs none.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a few words per socket, from its upgrade to its end. The parts belong to whoever composes
 *           them and outlive every socket; the listeners' doors are made and closed here.
 * Errors:   a path nobody serves is answered with 404 and counted; no memory with 503; all else as
 *           the part that decides says.
 */
#ifndef WEIR_GATEWAY_DOORS_H
#define WEIR_GATEWAY_DOORS_H

#include "gateway/auth.h"
#include "gateway/channel_sockets.h"
#include "gateway/session_access.h"
#include "gateway/stream_socket.h"
#include "gateway/worker_channel.h"

struct doors {
    struct stream_channel *streams;
    struct worker_channel *workers;
    struct channel_sockets *channels;
    struct auth *auth;
    struct counters *counters;
    struct access_door *listeners[SETTINGS_LISTENERS_MAX]; /* made by doors_open() */
    bool
        is_closed; /* the gateway is to stop: upgrades are answered with 503 and when to come back */
};

/* Make the doors of the further worker listeners. NO_MEMORY; doors_close() is due in any case. */
enum weir_status doors_open(struct doors *doors, const struct settings *settings,
                            struct server_calls *calls) WEIR_MUST_CHECK;
void doors_close(struct doors *doors); /* every socket is gone */

/* As ws_handlers.is_event_stream and on_upgrade. */
bool doors_is_event_stream(const struct ws_request *request);
enum ws_role doors_upgrade(struct doors *doors, struct ws_request *request);

/* The other functions of ws_handlers about sockets. All they need hangs at the socket; `context` is
 * not looked at. */
void doors_refused(void *context, void *user);
void doors_opened(void *context, struct ws_connection *connection, enum ws_role role, void *user);
void doors_message(void *context, struct ws_connection *connection, struct span message,
                   bool is_binary);
void doors_writable(void *context, struct ws_connection *connection);
void doors_closed(void *context, struct ws_connection *connection);

/* A worker's socket is closed with 1012 when nothing of it is in flight (worker_channel.h). False: that
 * was said before. */
bool doors_let_go(struct ws_connection *connection);

#endif

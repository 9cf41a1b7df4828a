/* gateway/listener.h -- listening TCP sockets of our own: shared by several gateways
 * (SO_REUSEPORT), accepted with accept4 a bounded number a turn, handed on non-blocking,
 * close-on-exec and with TCP_NODELAY.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a listener belongs to this module from listener_open() to listener_stop(), which may be
 *           followed by the loop's end only after the loop has run once more (libuv closes handles
 *           in its turn).
 * Errors:   a host or port that cannot be had is one sentence. Out of descriptors: accepting pauses
 *           LISTENER_PAUSE_MS, one line on stderr a minute says so.
 */
#ifndef WEIR_GATEWAY_LISTENER_H
#define WEIR_GATEWAY_LISTENER_H

#include <uv.h>

#include "shm/span.h"

enum {
    LISTENER_BACKLOG = 4096,
    LISTENER_ACCEPTS_PER_TURN = 32,
    /* A TLS handshake is a signature, a millisecond or two, and comes when the client sends its part:
     * so many new ones a turn keep those under way few. */
    LISTENER_ACCEPTS_PER_TURN_TLS = 2,
    LISTENER_PAUSE_MS = 100,
};

struct listener;

struct listener_options {
    const char *host; /* numeric IPv4 or IPv6, or a name; "::" takes both families */
    uint16_t port;    /* 0: any free one */
    bool reuse_port;
    unsigned accepts_per_turn; /* 0: LISTENER_ACCEPTS_PER_TURN */
    /* Takes over `fd`. */
    void (*on_accept)(void *context, int fd);
    void *context;
};

/* SYSTEM, INVALID (the host), NO_MEMORY. */
enum weir_status listener_open(struct listener **listener, uv_loop_t *loop,
                               const struct listener_options *options,
                               struct weir_error *error) WEIR_MUST_CHECK;
uint16_t listener_port(const struct listener *listener);
/* Accept what waits already, for a socket that is closed resets it: at most LISTENER_BACKLOG. Right
 * before listener_stop(): nothing is accepted any more, and what comes between the two is reset. */
void listener_take_waiting(struct listener *listener);
/* Close the socket and let go of the listener; NULL is fine. */
void listener_stop(struct listener *listener);

#endif

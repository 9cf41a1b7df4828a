/* gateway/outlet.h -- where events go: the sending half of ws.h as a table, so that the delivery
 * code can be tested against sockets that are busy, gone or slow on purpose. The gateway's own
 * table is in stream_socket.c.
 *
 * Process:  gateway, loop thread only. No subscriber, link or subscription goes away inside a call of
 *           these, nor between the first add() and its flush(): what has an entry is there until then.
 * Errors:   as ws.h: OK; AGAIN: nothing was taken and a writable notice follows exactly once;
 *           CLOSED.
 */
#ifndef WEIR_GATEWAY_OUTLET_H
#define WEIR_GATEWAY_OUTLET_H

#include <sys/uio.h>

#include "gateway/subscriptions.h"

typedef void outlet_done(void *context, void *entry, enum weir_status status);

struct outlet {
    /* Gather whole frames for one connection; the bytes stay valid until flush() returns. */
    void (*add)(void *context, void *connection, const struct iovec *frames, unsigned frame_count,
                void *entry);
    /* Send what was gathered; `done` once per entry. */
    void (*flush)(void *context, outlet_done *done, void *done_context);
    /* One message, JSON without a frame header. `at`: where the subscriber stands after it; epoch 0:
     * it says nothing about that. FULL: nothing was taken. */
    enum weir_status (*send_text)(void *context, void *connection, struct span json,
                                  struct cursor at);
    size_t (*backlog_bytes)(void *context, void *connection);
    void (*close)(void *context, void *connection, unsigned code, const char *reason);
    void *context;
    unsigned frames_max; /* iovecs one add() takes */
};

#endif

/* gateway/departure.h -- a gateway's drain (drain.h) with its clock and its sockets: ws.h's, and
 * libweir's of local.h. It says on stderr when it begins and when it is over.
 *
 * Process:  gateway, loop thread only. Whoever starts it has closed the listeners.
 * Memory:   its own until departure_stop(), after which the loop has to run once more.
 */
#ifndef WEIR_GATEWAY_DEPARTURE_H
#define WEIR_GATEWAY_DEPARTURE_H

#include "gateway/counters.h"
#include "gateway/local.h"
#include "gateway/ws.h"

enum { DEPARTURE_TELL_MS = 200 }; /* how often on_left is called */

struct departure_options {
    struct ws_server *ws;
    struct local *local;
    struct counters *counters;
    uint64_t gateway_index;
    uint64_t window_ms;
    /* Let a worker's connection go; false: it was before. */
    bool (*let_go)(struct ws_connection *connection);
    /* How many connections are left. */
    void (*on_left)(void *context, uint64_t left);
    /* Nothing is left to wait for; never from inside departure_start(). */
    void (*on_over)(void *context);
    void *context;
};

struct departure;
struct departure *departure_start(uv_loop_t *loop,
                                  const struct departure_options *options); /* NULL: no memory */
void departure_stop(struct departure *departure);                           /* NULL is fine */

#endif

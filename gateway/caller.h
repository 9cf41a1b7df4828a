/* gateway/caller.h -- server_calls.h as a table, for those who ask workers' functions before they
 * decide: auth.h and gates.h. Tests answer in its place, with a clock of their own.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a table of pointers, copied freely; it is good as long as the server_calls behind it.
 * Units:    now_ms() is on the clock of uv_hrtime(), in ms.
 * Errors:   as server_calls.h: start() answers NULL when nothing can be asked now.
 */
#ifndef WEIR_GATEWAY_CALLER_H
#define WEIR_GATEWAY_CALLER_H

#include "gateway/server_calls.h"

struct caller {
    struct server_call *(*start)(void *context, const struct server_call_request *request,
                                 server_call_done *done, void *done_context);
    void (*cancel)(void *context, struct server_call *call);
    uint64_t (*now_ms)(void *context);
    void *context;
};

/* The real one. */
struct caller caller_of(struct server_calls *calls);

#endif

/* gateway/server_calls.h -- calls the gateway itself makes to workers' functions: auth, gates,
 * conditions, trigger handlers, hooks.
 *
 *   server_call_start --CALL, session 0--> broker --> whoever has the function
 *                     <--RESULT-----------          done(): exactly once, unless it was cancelled
 *   late, cancelled --CALL_CANCEL--> broker --> its gateway     nobody keeps a place for the answer
 *
 * Process:  gateway, loop thread only.
 * Memory:   spans handed in are copied before the call returns; spans handed to done() are valid
 *           during it. A handle is void once done() was called or the call was cancelled.
 * Units:    timeouts in ms, looked at every TURN_HEAL_MS.
 * Reentry:  done() is never called from inside server_call_start(); it may start and cancel others.
 */
#ifndef WEIR_GATEWAY_SERVER_CALLS_H
#define WEIR_GATEWAY_SERVER_CALLS_H

#include "gateway/link.h"

enum server_call_fate {
    SERVER_CALL_RESULT,      /* `result` is JSON text; data NULL: the function returned nothing */
    SERVER_CALL_ERROR,       /* `error_json` is the error object */
    SERVER_CALL_LATE,        /* timeout_ms is over */
    SERVER_CALL_UNAVAILABLE, /* the broker is away, or went away with the call */
};

struct server_call_request {
    struct span name_space; /* data NULL: default */
    struct span function;
    struct span data;     /* JSON */
    struct span metadata; /* JSON; data NULL: none */
    struct span traceparent, baggage;
    uint64_t timeout_ms;
};

typedef void server_call_done(void *context, enum server_call_fate fate, struct span result,
                              struct span error_json);

struct server_calls;
struct server_call;

struct server_calls *server_calls_open(struct counters *counters); /* NULL: no memory */
void server_calls_set_link(struct server_calls *calls, struct link *link);
/* After the link was closed. Calls still open are forgotten. */
void server_calls_close(struct server_calls *calls);

/* The broker is there and takes what it is sent. Whoever can wait asks before it starts a call. */
bool server_calls_are_flowing(const struct server_calls *calls);

/* NULL: it cannot be made now (memory, or too much waits for the broker); done() is not called. */
struct server_call *server_call_start(struct server_calls *calls,
                                      const struct server_call_request *request,
                                      server_call_done *done, void *context);
void server_call_cancel(struct server_call *call);
/* End what is late; `now_ms` of uv_hrtime(). After a second without a tick it was the gateway that
 * stood still, and the next one judges. */
void server_calls_tick(struct server_calls *calls, uint64_t now_ms);

#endif

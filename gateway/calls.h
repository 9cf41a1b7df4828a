/* gateway/calls.h -- calls a worker makes: routed to the mapped store, to the broker's stream
 * functions, or to whoever has the function.
 *
 *   stream::get, list, ...  no stream call of this session under way: answered here, from shared
 *                           memory
 *                           else through the broker, behind what is under way: one connection's
 *                           calls take effect in order; so do those of a worker's own streams
 *                           (custom_streams.h)
 *   stream::set, ...        checked here (names, shape), then STREAM to the broker, which answers it
 *                           even when it is void; without hurry then, unless the worker reads as
 *                           well
 *   engine::workers::register   SESSION_INFO to the broker
 *   engine::log::*          a line of the gateway's log (worker_log.h)
 *   action enqueue          CALL of engine::queue::enqueue, which a queue worker may offer
 *   anything else           CALL to the broker, which knows who has it
 *
 * Process:  gateway, loop thread only.
 * Memory:   a call in flight holds its echo fields, not its data. Per session at most
 *           session_calls_max calls and session_calls_bytes_max bytes; beyond that reading from the
 *           worker pauses.
 */
#ifndef WEIR_GATEWAY_CALLS_H
#define WEIR_GATEWAY_CALLS_H

#include "gateway/sessions.h"
#include "shm/json.h"

struct call_request {
    struct span tag;          /* echoed with the answer; data NULL: void, nothing is answered */
    struct span function_tag; /* echoed */
    struct span name_space;   /* decoded; data NULL: default */
    struct span function;     /* decoded */
    struct json_value data;   /* validated; kind JSON_ABSENT counts as null */
    struct json_value metadata;
    struct span traceparent; /* decoded */
    struct span baggage;
    struct span queue;           /* of action enqueue, decoded; data NULL: called, not enqueued */
    uint8_t receipt[UUID_BYTES]; /* calls.c's, of what is enqueued */
};

/* The one door for both channels. */
void session_call(struct session *session, const struct call_request *request);
/* The calls of a session that goes lose it; their answers are dropped. */
void calls_forget_session(struct session *session);
/* Answer with an error made here. */
void session_answer_error(struct session *session, const struct call_request *request,
                          const char *code, const char *message_format, ...) WEIR_PRINTF(4, 5);

#endif

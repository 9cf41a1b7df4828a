/* shm/stream_functions.h -- the builtin stream functions (PROTOCOL 3): one row each, for the gateway
 * that reads a worker's call and for the broker that carries it out.
 *
 * Process and thread: any; constant data.
 */
#ifndef WEIR_SHM_STREAM_FUNCTIONS_H
#define WEIR_SHM_STREAM_FUNCTIONS_H

#include "shm/wire.h"

struct stream_function {
    const char *name;       /* what workers call */
    const char *error_code; /* of a failure of the store or an adapter (PROTOCOL 2.9) */
    enum wire_op op;
    bool needs_stream, needs_group, needs_item;
    bool needs_type; /* the event's type; workers may leave it out, gateways fill it in */
    bool needs_data; /* `data`; `ops` of an update */
    bool is_read;
};

/* NULL: none of them. */
const struct stream_function *stream_function_by_name(struct span name);
const struct stream_function *stream_function_by_op(uint64_t op);

/* `stream::set(chat)`: the function of a custom adapter (PROTOCOL 5) that stands for `stream::set`
 * of the stream `chat`. NULL: `id` is no such name, or of an operation that is never replaced. */
const struct stream_function *stream_function_replaced_by(struct span id, struct span *stream);

#endif

/* gateway/access_filter.h -- what a session is shown of the answers of engine::*::list and ::info:
 * functions it may call, triggers whose function it may call, trigger types it may use (PROTOCOL
 * 10.4), and of other workers no addresses.
 *
 * Functions bring their metadata with them. Triggers do not: one whose function is exposed by a
 * metadata rule only is not shown.
 *
 * Process and thread: any; pure but for `out`.
 * Memory:   appends to the caller's buffer.
 * Errors:   an answer whose shape is not known is not shown: better nothing than too much.
 */
#ifndef WEIR_GATEWAY_ACCESS_FILTER_H
#define WEIR_GATEWAY_ACCESS_FILTER_H

#include "gateway/access.h"

enum access_listing {
    ACCESS_LISTING_NONE, /* the function's answer is nothing to filter */
    ACCESS_FUNCTIONS_LIST,
    ACCESS_FUNCTIONS_INFO,
    ACCESS_WORKERS_LIST,
    ACCESS_WORKERS_INFO,
    ACCESS_TRIGGERS_LIST,
    ACCESS_TRIGGERS_INFO,
    ACCESS_REGISTERED_TRIGGERS_LIST,
    ACCESS_REGISTERED_TRIGGERS_INFO,
};

/* `function` is the id as JSON text. */
enum access_listing access_listing_of(struct json_value function);

/* Append the answer as the session may see it. REFUSED: it may not see any of it, *code says which
 * error it gets (PROTOCOL 2.15). CORRUPT: not the shape of that listing; nothing of it is shown. */
enum weir_status access_filter(const struct access *access, enum access_listing listing,
                               struct span result, struct buffer *out,
                               const char **code) WEIR_MUST_CHECK;

#endif

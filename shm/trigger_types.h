/* shm/trigger_types.h -- the trigger types weir itself provides (PROTOCOL 2.11, 8) and what their
 * configs say: for the gateway that refuses a bad one and runs `stream`, and for the broker that
 * lists all of them and runs the others.
 *
 * Process and thread: any; constant data.
 * Memory:   what is read points into the config or the caller's buffer.
 * Errors:   INVALID comes with the sentence for the worker.
 */
#ifndef WEIR_SHM_TRIGGER_TYPES_H
#define WEIR_SHM_TRIGGER_TYPES_H

#include "shm/json.h"

enum trigger_kind {
    TRIGGER_CUSTOM = 0, /* a worker's, or nobody's */
    TRIGGER_STREAM,
    TRIGGER_JOIN,
    TRIGGER_LEAVE,
    TRIGGER_FUNCTIONS_AVAILABLE,
    TRIGGER_WORKERS_AVAILABLE,
};

struct trigger_type {
    enum trigger_kind kind;
    const char *name;
    const char *worker_name; /* in listings */
    const char *description;
};

/* NULL: not one of weir's own. */
const struct trigger_type *trigger_type_by_name(struct span name);
/* In the order of the kinds; *count of them. */
const struct trigger_type *trigger_types_all(size_t *count);

/* What the config narrows the trigger to; data NULL: not narrowed. "" as group or item of `stream`
 * is not narrowed either (PROTOCOL 8.2). */
struct trigger_config {
    struct span stream, group, item;
    struct span condition; /* function id; data NULL: none */
};

/* Read `config` (validated JSON; kind JSON_ABSENT counts as null) of a type of weir's own. Names
 * with escapes are decoded to the end of `scratch`, which gets the room it needs before anything is
 * decoded. INVALID: `*problem` is the sentence for the worker. NO_MEMORY, FULL: the buffer's. */
enum weir_status trigger_config_read(enum trigger_kind kind, struct json_value config,
                                     struct buffer *scratch, struct trigger_config *read,
                                     const char **problem) WEIR_MUST_CHECK;

#endif

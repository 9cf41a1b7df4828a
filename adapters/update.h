/* adapters/update.h -- stream::update (PROTOCOL 4): a list of operations applied to one item.
 *
 *   ops JSON --update_parse--> checked list --update_apply(old value)--> new value, errors
 *
 * The item is never turned into a tree: only what an operation's path walks through is looked into,
 * one level at a time; everything else is copied as the writer's own text, numbers included. Members
 * keep their order: new ones come last, and a key that was removed and comes back takes its old
 * place. Of a key that comes twice the last value counts; where an operation names it, it is the
 * only one left.
 *
 * Process and thread: the broker's loop thread; pure computation, memory kept from call to call.
 * Memory:   `ops` and `old_value` must stay valid until the results have been used; results point
 *           into the update, `ops` or `old_value` and are valid until the next call. What a call
 *           needed beyond about 3 MiB is given back by the end of it or by the start of the next.
 * Bounds:   work is proportional to the bytes of ops, old and new value, whatever the operations are;
 *           a text is read at most a few times for each level that a path walks through in it
 *           (UPDATE_SEGMENTS_MAX at most). Memory likewise, and update_work_bytes_max() at most. Only
 *           the value after the last operation counts against value_bytes_max and UPDATE_DEPTH_MAX.
 */
#ifndef WEIR_ADAPTERS_UPDATE_H
#define WEIR_ADAPTERS_UPDATE_H

#include "shm/json.h"
#include "shm/limits.h"

/* Nesting of a new value: what stream::set can carry inside the two objects around it. Deeper: the
 * call fails. */
#define UPDATE_DEPTH_MAX (JSON_DEPTH_MAX - 2u)
/* The list of what failed, as JSON. Longer: the call fails. */
#define UPDATE_ERRORS_BYTES_MAX (1024u * 1024)
/* PROTOCOL 4.1, 4.2. More: the operation fails. */
#define UPDATE_SEGMENTS_MAX 32u
#define UPDATE_SEGMENT_BYTES_MAX 256u
#define UPDATE_MERGE_KEYS_MAX 1024u
#define UPDATE_MERGE_DEPTH_MAX 16u

struct update;

struct update *update_open(uint64_t value_bytes_max); /* NULL: no memory */
void update_close(struct update *update);             /* NULL is fine */

/* Working memory for one list, and again for one application of it. An object of a great many short
 * members takes about 20 bytes of it for a byte of its text. More: the call fails. */
static inline uint64_t update_work_bytes_max(uint64_t value_bytes_max)
{
    return 32 * value_bytes_max + (64u << 20);
}

/* Read `ops`: compact, validated JSON text. A `type`, `path`, `value` or `by` that comes twice in one
 * operation is refused like a wrong one. INVALID: the call is refused as a whole, `*problem` is the
 * sentence for a deserialization_error (static or in `update`). TOO_LARGE: the list needs too much
 * memory, `*problem` says so. NO_MEMORY. Unless OK, the list is empty. */
enum weir_status update_parse(struct update *update, struct span ops,
                              const char **problem) WEIR_MUST_CHECK;

struct update_result {
    struct span value;   /* compact JSON */
    struct span errors;  /* JSON array; data NULL: no operation failed */
    const char *problem; /* TOO_LARGE: which bound, as a sentence; otherwise NULL */
};

/* Apply the operations parsed last to the item's value (compact, validated JSON; data NULL: it does
 * not exist); may be called again with another value. TOO_LARGE: the new value or the list of errors
 * would exceed its limit; NO_MEMORY. Unless OK, value and errors are not to be used. */
enum weir_status update_apply(struct update *update, struct span old_value,
                              struct update_result *result) WEIR_MUST_CHECK;

#endif

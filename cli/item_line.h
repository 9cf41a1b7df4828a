/* cli/item_line.h -- an item as one line of JSON, what `weir log export` writes and `weir log import`
 * reads:
 *
 *   {"stream":"chat","group":"room-1","item":"m1","value":{"text":"hi"}}
 *
 * Other members of a line are passed over.
 *
 * Process and thread: any; pure functions. Memory: everything is appended to the caller's buffer.
 * Errors:   INVALID, TOO_LARGE: the sentence names the field, not the line. NO_MEMORY.
 */
#ifndef WEIR_CLI_ITEM_LINE_H
#define WEIR_CLI_ITEM_LINE_H

#include "shm/store.h"

/* Names and value of a line. They point into it or into `scratch`, which is overwritten. The value is
 * compact. */
enum weir_status item_line_parse(struct span line, struct buffer *scratch, struct store_key *key,
                                 struct span *value, struct weir_error *error) WEIR_MUST_CHECK;
/* The line, its end included. */
enum weir_status item_line_append(struct buffer *out, const struct store_key *key,
                                  struct span value) WEIR_MUST_CHECK;

#endif

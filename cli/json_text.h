/* cli/json_text.h -- JSON for people: building it from KEY=VALUE arguments, and laying it out for a
 * terminal.
 *
 * Process:  the short-lived commands. Memory: everything is appended to the caller's buffer.
 * Errors:   INVALID with a sentence about the argument; NO_MEMORY and FULL from the buffer.
 */
#ifndef WEIR_CLI_JSON_TEXT_H
#define WEIR_CLI_JSON_TEXT_H

#include "shm/span.h"

/* One object of all arguments. A value that is JSON stays JSON; anything else becomes a string. */
enum weir_status json_text_from_pairs(struct buffer *out, char *const *arguments, size_t count,
                                      struct weir_error *error) WEIR_MUST_CHECK;
/* Validated JSON, indented by two spaces per level. */
enum weir_status json_text_indent(struct buffer *out, struct span json) WEIR_MUST_CHECK;

#endif

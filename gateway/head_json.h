/* gateway/head_json.h -- headers and query of a request head as JSON, for functions that decide by
 * them (PROTOCOL 7.1).
 *
 * Headers: an object of strings, names in lower case; of a repeated header the last line counts;
 * values that are not visible ASCII are left out. Query: an object of arrays, taken apart at `&`
 * and the first `=`, nothing is decoded; empty names and what is not UTF-8 are left out.
 *
 * Process and thread: any; the memory it needs meanwhile is given back.
 * Errors:   NO_MEMORY and FULL, of `out` too.
 */
#ifndef WEIR_GATEWAY_HEAD_JSON_H
#define WEIR_GATEWAY_HEAD_JSON_H

#include "shm/span.h"

/* `headers` are whole lines, each with its CRLF. */
enum weir_status head_json_append_headers(struct buffer *out, struct span headers) WEIR_MUST_CHECK;
enum weir_status head_json_append_query(struct buffer *out, struct span query) WEIR_MUST_CHECK;

#endif

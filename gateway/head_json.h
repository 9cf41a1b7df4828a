/* gateway/head_json.h -- headers and query of a request head taken apart, and as JSON for functions
 * that decide by them (PROTOCOL 7.1, 10.4).
 *
 * Headers: an object of strings, names in lower case; of a repeated header the last value counts;
 * values that are not visible ASCII are left out. Query: an object of arrays, taken apart at `&`
 * and the first `=`, nothing is decoded; empty names and what is not UTF-8 are left out.
 *
 * Process and thread: any; pure but for `out`.
 * Errors:   TOO_LARGE: more than HEAD_HEADERS_MAX headers or HEAD_PARAMETERS_MAX parameters, to be
 *           refused with 431. NO_MEMORY and FULL, of `out`, which then holds a part.
 */
#ifndef WEIR_GATEWAY_HEAD_JSON_H
#define WEIR_GATEWAY_HEAD_JSON_H

#include "gateway/handshake.h"

enum {
    HEAD_HEADERS_MAX = 256,
    HEAD_PARAMETERS_MAX = 512,
    /* Bounds both objects together: no byte of a head takes more than six. */
    HEAD_JSON_BYTES_MAX =
        6 * HANDSHAKE_BYTES_MAX + 8 * (HEAD_HEADERS_MAX + HEAD_PARAMETERS_MAX) + 64,
};

/* One header line or query parameter. */
struct head_pair {
    struct span name, value;
};

/* The next of `*rest`, which moves on; false at the end. handshake_parse() has checked the form of
 * headers; values come without white space around them. Parameters without a name are passed over. */
bool head_next_header(struct span *rest, struct head_pair *pair);
bool head_next_parameter(struct span *rest, struct head_pair *pair);
bool head_name_is(struct span name, struct span wanted); /* the case of letters does not count */
struct span head_trim(struct span text);                 /* without spaces and tabs around it */

/* `headers` are whole lines, each with its CRLF. */
enum weir_status head_json_append_headers(struct buffer *out, struct span headers) WEIR_MUST_CHECK;
enum weir_status head_json_append_query(struct buffer *out, struct span query) WEIR_MUST_CHECK;

#endif

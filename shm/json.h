/* shm/json.h -- strict RFC 8259 reading of text, without building a tree.
 *
 * One pass validates grammar, UTF-8 (no overlong forms, no surrogates, up to U+10FFFF), escapes (a
 * lone surrogate escape is an error), numbers (a magnitude that overflows a double is an error,
 * PROTOCOL 1.3) and depth, and yields the byte ranges of the wanted top-level members. Payloads
 * stay the writer's own text; nothing is decoded on the way.
 *
 * Process and thread: any; pure functions, no allocation, no global state.
 * Memory:   every json_value points into the text given.
 * Errors:   CORRUPT for text that is not one JSON value; TOO_LARGE for depth; INVALID for a wanted
 *           key that comes twice or a text that is not an object (json_scan_object only).
 *           `problem`, when not NULL, says where and why.
 */
#ifndef WEIR_SHM_JSON_H
#define WEIR_SHM_JSON_H

#include "shm/span.h"

enum json_kind {
    JSON_ABSENT = 0,
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
};

struct json_value {
    struct span text; /* the value's own text; a string includes its quotes */
    enum json_kind kind;
    bool has_space;  /* contains insignificant white space: json_compact() would shorten it */
    bool has_escape; /* a string with a backslash: json_unescape() is needed to read it */
};

/* Of a valid value, by its first byte. */
static inline enum json_kind json_kind_of(char first)
{
    switch (first) {
    case '"':
        return JSON_STRING;
    case '{':
        return JSON_OBJECT;
    case '[':
        return JSON_ARRAY;
    case 't':
        return JSON_TRUE;
    case 'f':
        return JSON_FALSE;
    case 'n':
        return JSON_NULL;
    default:
        return JSON_NUMBER;
    }
}

struct json_problem {
    size_t offset;      /* of the first byte that cannot be accepted */
    const char *reason; /* static text */
};

/* Validate `text` as exactly one JSON value with white space around it, nested at most `depth_max`
 * deep (an object or array is one level; above 1024 counts as 1024). White space around the value
 * is not part of value->text. */
enum weir_status json_scan(struct span text, unsigned depth_max, struct json_value *value,
                           struct json_problem *problem) WEIR_MUST_CHECK;

/* As json_scan(), for an object; values[i] is the member named names[i] (JSON_ABSENT when it is not
 * there). Members with other names are validated and passed over. Keys are compared after
 * unescaping. A text that is not JSON is CORRUPT or TOO_LARGE whatever else is wrong with it.
 * Unless OK, the values are not to be used. */
enum weir_status json_scan_object(struct span text, unsigned depth_max, const char *const *names,
                                  size_t name_count, struct json_value *values,
                                  struct json_problem *problem) WEIR_MUST_CHECK;

/* Iterate the elements of an array, or the members of an object, whose text has been validated.
 * Start with `*cursor` = 0; OK fills `key` (objects only; may be NULL) and `value`; EMPTY at the
 * end; INVALID when `container` is neither. Text that was not validated may yield CORRUPT or
 * nonsense, but is never read beyond its end. */
enum weir_status json_next(struct json_value container, size_t *cursor, struct json_value *key,
                           struct json_value *value) WEIR_MUST_CHECK;

/* Copy a validated value without insignificant white space; `out` holds value.text.bytes. Returns
 * bytes written. */
size_t json_compact(char *out, struct json_value value);

/* Decode a validated string (quotes dropped) to UTF-8; `out` holds value.text.bytes. Returns bytes
 * written. */
size_t json_unescape(char *out, struct json_value string);

/* A validated string as UTF-8: inside its own text when nothing in it is escaped, else unescaped to
 * the end of `scratch`, which must have room for value.text.bytes. data NULL: not a string. */
struct span json_decode(struct json_value value, struct buffer *scratch);

/* True when the validated string, decoded, equals `text` exactly. */
bool json_string_equals(struct json_value string, struct span text);

/* Append `text` (valid UTF-8) as a JSON string with quotes; escapes quote, backslash and control
 * characters only. */
enum weir_status json_append_string(struct buffer *buffer, struct span text) WEIR_MUST_CHECK;

/* As json_append_string(), without quotes, into `out` of at least 6 * text.bytes. Returns bytes
 * written. */
size_t json_escape(char *out, struct span text);

/* True when `text` is well-formed UTF-8 (RFC 3629), NUL included. */
bool json_is_utf8(struct span text);

#endif

/* tests/fuzz/json_invariants.h -- what must hold of shm/json.h for any text at all; shared by the
 * fuzz target and the random tests.
 *
 * Memory: copies go into blocks of exactly the promised size, so that AddressSanitizer sees a byte
 *         too many.
 */
#ifndef WEIR_TESTS_FUZZ_JSON_INVARIANTS_H
#define WEIR_TESTS_FUZZ_JSON_INVARIANTS_H

#include <stdlib.h>

#include "shm/json.h"
#include "shm/limits.h"

#define JSON_INVARIANT(condition)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            broken = #condition;                                                                   \
            goto cleanup;                                                                          \
        }                                                                                          \
    } while (0)

/* A block that is not NULL for 0 bytes. The process ends when memory does. */
static inline char *json_invariants_block(size_t bytes)
{
    char *block = malloc(bytes > 0 ? bytes : 1);
    if (block == NULL)
        abort();
    return block;
}

static inline bool json_value_same(struct json_value a, struct json_value b)
{
    return a.text.data == b.text.data && a.text.bytes == b.text.bytes && a.kind == b.kind &&
           a.has_space == b.has_space && a.has_escape == b.has_escape;
}

/* Decode, encode and decode again: the decoded text stays the same. */
static inline const char *json_invariants_check_string(struct json_value string)
{
    const char *broken = NULL;
    char *decoded = json_invariants_block(string.text.bytes);
    char *escaped = NULL;
    char *again = NULL;
    struct buffer buffer;
    struct json_value rescanned;

    buffer_init(&buffer, 6 * string.text.bytes + 2);
    struct span plain = span_of(decoded, json_unescape(decoded, string));
    JSON_INVARIANT(plain.bytes + 2 <= string.text.bytes);
    JSON_INVARIANT(json_is_utf8(plain));
    JSON_INVARIANT(json_string_equals(string, plain));
    JSON_INVARIANT(string.has_escape || plain.bytes + 2 == string.text.bytes);

    escaped = json_invariants_block(6 * plain.bytes);
    size_t escaped_bytes = json_escape(escaped, plain);
    JSON_INVARIANT(json_append_string(&buffer, plain) == WEIR_OK);
    JSON_INVARIANT(buffer.bytes == escaped_bytes + 2);
    JSON_INVARIANT(memcmp(buffer.data + 1, escaped, escaped_bytes) == 0);
    JSON_INVARIANT(json_scan(buffer_span(&buffer), 0, &rescanned, NULL) == WEIR_OK);
    JSON_INVARIANT(rescanned.kind == JSON_STRING);
    JSON_INVARIANT(json_string_equals(rescanned, plain));
    again = json_invariants_block(buffer.bytes);
    JSON_INVARIANT(span_equal(span_of(again, json_unescape(again, rescanned)), plain));
cleanup:
    buffer_fini(&buffer);
    free(again);
    free(escaped);
    free(decoded);
    return broken;
}

/* Walk `value` with json_next(), every level of it, and write it compactly; what json_compact() has
 * to yield. */
static inline const char *json_invariants_walk(struct json_value value, char *out, size_t *bytes)
{
    struct level {
        struct json_value container;
        size_t cursor;
    } levels[JSON_DEPTH_MAX + 1];
    size_t depth = 0;

    for (;;) { /* one turn a value or an end of a container */
        if (value.kind == JSON_OBJECT || value.kind == JSON_ARRAY) {
            if (depth > JSON_DEPTH_MAX)
                return "json_next() went deeper than the text";
            levels[depth++] = (struct level){value, 0};
            out[(*bytes)++] = value.kind == JSON_OBJECT ? '{' : '[';
        } else {
            if (value.has_space)
                return "a scalar with white space";
            memcpy(out + *bytes, value.text.data, value.text.bytes);
            *bytes += value.text.bytes;
            if (value.kind == JSON_STRING) {
                const char *broken = json_invariants_check_string(value);
                if (broken != NULL)
                    return broken;
            }
        }
        struct json_value key;
        for (;;) {
            if (depth == 0)
                return NULL;
            struct level *level = &levels[depth - 1];
            bool first = level->cursor == 0;
            enum weir_status status = json_next(level->container, &level->cursor, &key, &value);
            if (status == WEIR_OK) {
                if (!first)
                    out[(*bytes)++] = ',';
                break;
            }
            if (status != WEIR_EMPTY)
                return "json_next() refused validated text";
            out[(*bytes)++] = level->container.kind == JSON_OBJECT ? '}' : ']';
            depth--;
        }
        if (levels[depth - 1].container.kind == JSON_OBJECT) {
            memcpy(out + *bytes, key.text.data, key.text.bytes);
            *bytes += key.text.bytes;
            out[(*bytes)++] = ':';
            const char *broken = json_invariants_check_string(key);
            if (broken != NULL)
                return broken;
        }
    }
}

/* json_scan_object() agrees with a walk over the members of `root`, for each of `names`. */
static inline const char *json_invariants_check_object(struct span text, struct json_value root)
{
    static const char *const names[] = {"type", "id", "", "data", "a", "\xc3\xa9"};
    enum { NAME_COUNT = sizeof names / sizeof names[0] };
    const char *broken = NULL;
    struct json_value values[NAME_COUNT];
    struct json_value expected[NAME_COUNT] = {{{0}, JSON_ABSENT, false, false}};
    struct json_value key;
    struct json_value value;
    size_t cursor = 0;
    bool repeated = false;

    enum weir_status status =
        json_scan_object(text, JSON_DEPTH_MAX, names, NAME_COUNT, values, NULL);
    if (root.kind != JSON_OBJECT)
        return status == WEIR_INVALID ? NULL : "json_scan_object() took what is not an object";
    while (json_next(root, &cursor, &key, &value) == WEIR_OK) {
        for (size_t index = 0; index < NAME_COUNT; index++) {
            if (!json_string_equals(key, span_text(names[index])))
                continue;
            repeated = repeated || expected[index].kind != JSON_ABSENT;
            expected[index] = value;
        }
    }
    JSON_INVARIANT(status == (repeated ? WEIR_INVALID : WEIR_OK));
    for (size_t index = 0; index < NAME_COUNT && !repeated; index++)
        JSON_INVARIANT(json_value_same(values[index], expected[index]));
cleanup:
    return broken;
}

/* NULL, or the invariant that `text` breaks. */
static inline const char *json_invariants_check(struct span text)
{
    const char *broken = NULL;
    struct json_value root;
    struct json_value rescanned;
    struct json_problem problem = {SIZE_MAX, NULL};
    enum weir_status status = json_scan(text, JSON_DEPTH_MAX, &root, &problem);

    if (status != WEIR_OK) {
        struct json_value unused;
        if (problem.offset > text.bytes || problem.reason == NULL)
            return "a problem without place or reason";
        if (json_scan_object(text, JSON_DEPTH_MAX, NULL, 0, &unused, NULL) != status)
            return "json_scan() and json_scan_object() refuse differently";
        return status == WEIR_CORRUPT || status == WEIR_TOO_LARGE ? NULL : "an unknown refusal";
    }
    char *compact = json_invariants_block(root.text.bytes);
    char *walked = json_invariants_block(root.text.bytes);
    char *twice = json_invariants_block(root.text.bytes);
    size_t compact_bytes = json_compact(compact, root);
    size_t walked_bytes = 0;

    JSON_INVARIANT(json_is_utf8(text));
    JSON_INVARIANT((compact_bytes < root.text.bytes) == root.has_space);
    JSON_INVARIANT(json_scan(span_of(compact, compact_bytes), JSON_DEPTH_MAX, &rescanned, NULL) ==
                   WEIR_OK);
    JSON_INVARIANT(rescanned.text.bytes == compact_bytes);
    JSON_INVARIANT(rescanned.kind == root.kind);
    JSON_INVARIANT(rescanned.has_escape == root.has_escape);
    JSON_INVARIANT(!rescanned.has_space);
    rescanned.has_space = true; /* take the copying path once more: it must find nothing to drop */
    JSON_INVARIANT(json_compact(twice, rescanned) == compact_bytes);
    JSON_INVARIANT(memcmp(twice, compact, compact_bytes) == 0);
    broken = json_invariants_walk(root, walked, &walked_bytes);
    if (broken != NULL)
        goto cleanup;
    JSON_INVARIANT(walked_bytes == compact_bytes);
    JSON_INVARIANT(memcmp(walked, compact, compact_bytes) == 0);
    broken = json_invariants_check_object(text, root);
cleanup:
    free(twice);
    free(walked);
    free(compact);
    return broken;
}

#endif

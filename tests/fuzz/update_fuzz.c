/* Fuzz target of adapters/update.h: a list of operations, a line feed, and the old value (nothing:
 * the item does not exist). Texts that are not JSON are passed over, as the broker never sees them. */
#include <stdio.h>
#include <stdlib.h>

#include "adapters/update.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { SMALL_BYTES = 48 };

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* A compact copy in a block of exactly its size, so that AddressSanitizer sees a read beyond it; data
 * NULL when the text is not JSON. */
static struct span compact_copy(struct span text)
{
    struct json_value value;
    if (json_scan(text, JSON_DEPTH_MAX, &value, NULL) != WEIR_OK)
        return (struct span){0};
    char *compact = malloc(value.text.bytes);
    require(compact != NULL, "memory");
    size_t bytes = json_compact(compact, value);
    char *exact = malloc(bytes);
    require(exact != NULL, "memory");
    memcpy(exact, compact, bytes);
    free(compact);
    return span_of(exact, bytes);
}

static void check_errors(struct span errors)
{
    static const char *const names[] = {"op_index", "code", "message"};
    struct json_value list;
    struct json_value element;
    struct json_value fields[3];
    size_t cursor = 0;
    if (errors.data == NULL)
        return;
    require(json_scan(errors, 2, &list, NULL) == WEIR_OK, "errors are JSON");
    require(list.kind == JSON_ARRAY && list.text.bytes > 2, "errors are a list that holds some");
    while (json_next(list, &cursor, NULL, &element) == WEIR_OK) {
        require(json_scan_object(element.text, 1, names, 3, fields, NULL) == WEIR_OK,
                "an error is an object");
        require(fields[0].kind == JSON_NUMBER && fields[1].kind == JSON_STRING &&
                    fields[2].kind == JSON_STRING,
                "an error has its three members");
    }
}

static struct span copy_of(struct span text)
{
    char *copy = malloc(text.bytes);
    require(copy != NULL, "memory");
    memcpy(copy, text.data, text.bytes);
    return span_of(copy, text.bytes);
}

static void check_value(struct update *update, struct span value)
{
    struct json_value scanned;
    struct update_result result;
    const char *problem = NULL;
    require(json_scan(value, JSON_DEPTH_MAX, &scanned, NULL) == WEIR_OK, "the value is JSON");
    require(!scanned.has_space && scanned.text.bytes == value.bytes, "the value is compact");
    require(update_parse(update, SPAN_LITERAL("[]"), &problem) == WEIR_OK, "[] is a list");
    require(update_apply(update, value, &result) == WEIR_OK, "[] can be applied");
    require(result.errors.data == NULL && span_equal(result.value, value), "[] changes nothing");
}

/* A small limit changes nothing but whether the call succeeds. */
static void check_limit(struct span ops, struct span old, struct span value)
{
    struct update *update = update_open(SMALL_BYTES);
    struct update_result result;
    const char *problem = NULL;
    require(update != NULL, "memory");
    require(update_parse(update, ops, &problem) == WEIR_OK, "a list stays one");
    enum weir_status status = update_apply(update, old, &result);
    if (value.bytes > SMALL_BYTES)
        require(status == WEIR_TOO_LARGE && result.problem != NULL, "a large value is refused");
    else
        require(status == WEIR_OK && span_equal(result.value, value), "a small one is the same");
    update_close(update);
}

static void check_apply(struct update *update, struct span ops, struct span old)
{
    struct update_result result;
    const char *problem = NULL;
    enum weir_status status = update_parse(update, ops, &problem);
    if (status != WEIR_OK) {
        require(status == WEIR_INVALID && problem != NULL, "a refused list has a sentence");
        return;
    }
    status = update_apply(update, old, &result);
    if (status != WEIR_OK) {
        require(status == WEIR_TOO_LARGE && result.problem != NULL, "a failure has a sentence");
        return;
    }
    check_errors(result.errors);
    struct span value = copy_of(result.value);
    require(update_apply(update, old, &result) == WEIR_OK, "a list can be applied again");
    require(span_equal(result.value, value), "and does the same");
    check_value(update, value);
    check_limit(ops, old, value);
    free((void *)value.data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const uint8_t *line_feed = bytes > 0 ? memchr(data, '\n', bytes) : NULL;
    size_t ops_bytes = line_feed != NULL ? (size_t)(line_feed - data) : bytes;
    struct span ops = compact_copy(span_of(data, ops_bytes));
    if (ops.data == NULL)
        return 0;
    struct span old = {0};
    if (line_feed != NULL)
        old = compact_copy(span_of(line_feed + 1, bytes - ops_bytes - 1));
    struct update *update = update_open(VALUE_BYTES_MAX);
    require(update != NULL, "memory");
    check_apply(update, ops, old);
    update_close(update);
    free((void *)ops.data);
    free((void *)old.data);
    return 0;
}

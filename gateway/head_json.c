#include "gateway/head_json.h"

#include <stdlib.h>

#include "gateway/printer.h"

/* One header line or query parameter. */
struct head_pair {
    struct span name, value;
    size_t position;
};

struct head_pairs {
    struct head_pair *pairs;
    size_t count, capacity;
};

static enum weir_status pairs_add(struct head_pairs *pairs, struct span name, struct span value)
{
    if (pairs->count == pairs->capacity) {
        size_t capacity = pairs->capacity == 0 ? 32 : pairs->capacity * 2;
        struct head_pair *grown = realloc(pairs->pairs, capacity * sizeof *grown);
        if (grown == NULL)
            return WEIR_NO_MEMORY;
        pairs->pairs = grown;
        pairs->capacity = capacity;
    }
    pairs->pairs[pairs->count] = (struct head_pair){name, value, pairs->count};
    pairs->count++;
    return WEIR_OK;
}

/* Equal names side by side, as they came: thousands of them are not compared with each other. */
static int pair_compare(const void *left, const void *right)
{
    const struct head_pair *a = left, *b = right;
    size_t bytes = a->name.bytes < b->name.bytes ? a->name.bytes : b->name.bytes;
    int order = memcmp(a->name.data, b->name.data, bytes); /* names are never empty */
    if (order == 0)
        order = (a->name.bytes > b->name.bytes) - (a->name.bytes < b->name.bytes);
    return order != 0 ? order : (a->position > b->position) - (a->position < b->position);
}

static void pairs_sort(struct head_pairs *pairs)
{
    if (pairs->count > 0)
        qsort(pairs->pairs, pairs->count, sizeof *pairs->pairs, pair_compare);
}

static bool is_last_of_name(const struct head_pairs *pairs, size_t i)
{
    return i + 1 == pairs->count || !span_equal(pairs->pairs[i].name, pairs->pairs[i + 1].name);
}

static bool is_visible(struct span value)
{
    for (size_t i = 0; i < value.bytes; i++) {
        unsigned char byte = (unsigned char)value.data[i];
        if ((byte < 0x20 && byte != '\t') || byte > 0x7E)
            return false;
    }
    return true;
}

static struct span span_trim(struct span text)
{
    while (text.bytes > 0 && (text.data[0] == ' ' || text.data[0] == '\t'))
        text = span_of(text.data + 1, text.bytes - 1);
    while (text.bytes > 0 &&
           (text.data[text.bytes - 1] == ' ' || text.data[text.bytes - 1] == '\t'))
        text.bytes--;
    return text;
}

static enum weir_status pairs_read_headers(struct head_pairs *pairs, struct span headers)
{
    while (headers.bytes > 0) {
        const char *end = memchr(headers.data, '\n', headers.bytes);
        size_t bytes = end == NULL ? headers.bytes : (size_t)(end - headers.data) + 1;
        struct span line = span_of(headers.data, bytes);
        headers = span_of(headers.data + bytes, headers.bytes - bytes);
        while (line.bytes > 0 &&
               (line.data[line.bytes - 1] == '\n' || line.data[line.bytes - 1] == '\r'))
            line.bytes--;
        const char *colon = line.bytes == 0 ? NULL : memchr(line.data, ':', line.bytes);
        if (colon == NULL || colon == line.data)
            continue;
        struct span name = span_of(line.data, (size_t)(colon - line.data));
        struct span value = span_of(colon + 1, line.bytes - name.bytes - 1);
        enum weir_status status = pairs_add(pairs, name, span_trim(value));
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

enum weir_status head_json_append_headers(struct buffer *out, struct span headers)
{
    struct head_pairs pairs = {0};
    struct printer printer = {out, WEIR_OK};
    char *lower = malloc(headers.bytes + 1);
    if (lower == NULL)
        return WEIR_NO_MEMORY;
    for (size_t i = 0; i < headers.bytes; i++) {
        char byte = headers.data[i];
        lower[i] = (char)(byte >= 'A' && byte <= 'Z' ? byte + ('a' - 'A') : byte);
    }
    printer.status = pairs_read_headers(&pairs, span_of(lower, headers.bytes));
    pairs_sort(&pairs);
    print_literal(&printer, "{");
    bool is_first = true;
    for (size_t i = 0; i < pairs.count; i++) {
        const struct head_pair *pair = &pairs.pairs[i];
        struct span value = pair->value; /* as it was sent, not in lower case */
        value.data = headers.data + (value.data - lower);
        if (!is_last_of_name(&pairs, i) || !is_visible(value) || !is_visible(pair->name))
            continue;
        print_span(&printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        print_string(&printer, pair->name);
        print_literal(&printer, ":");
        print_string(&printer, value);
        is_first = false;
    }
    print_literal(&printer, "}");
    free(pairs.pairs);
    free(lower);
    return printer.status;
}

static enum weir_status pairs_read_query(struct head_pairs *pairs, struct span query)
{
    while (query.bytes > 0) {
        const char *end = memchr(query.data, '&', query.bytes);
        size_t bytes = end == NULL ? query.bytes : (size_t)(end - query.data);
        struct span name = span_of(query.data, bytes);
        struct span value = span_of(query.data + bytes, 0);
        size_t taken = end == NULL ? bytes : bytes + 1;
        query = span_of(query.data + taken, query.bytes - taken);
        const char *equals = bytes == 0 ? NULL : memchr(name.data, '=', bytes);
        if (equals != NULL) {
            name.bytes = (size_t)(equals - name.data);
            value = span_of(equals + 1, bytes - name.bytes - 1);
        }
        if (name.bytes == 0 || !json_is_utf8(name) || !json_is_utf8(value))
            continue;
        enum weir_status status = pairs_add(pairs, name, value);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

enum weir_status head_json_append_query(struct buffer *out, struct span query)
{
    struct head_pairs pairs = {0};
    struct printer printer = {out, WEIR_OK};
    printer.status = pairs_read_query(&pairs, query);
    pairs_sort(&pairs);
    print_literal(&printer, "{");
    for (size_t i = 0; i < pairs.count; i++) {
        bool is_first_of_name = i == 0 || is_last_of_name(&pairs, i - 1);
        if (is_first_of_name) {
            print_span(&printer, i == 0 ? SPAN_LITERAL("") : SPAN_LITERAL(","));
            print_string(&printer, pairs.pairs[i].name);
            print_literal(&printer, ":[");
        } else {
            print_literal(&printer, ",");
        }
        print_string(&printer, pairs.pairs[i].value);
        if (is_last_of_name(&pairs, i))
            print_literal(&printer, "]");
    }
    print_literal(&printer, "}");
    free(pairs.pairs);
    return printer.status;
}

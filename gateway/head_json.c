#include "gateway/head_json.h"

#include <stdlib.h>
#include <strings.h>

#include "gateway/printer.h"

/* ---- taking apart ---- */

struct span head_trim(struct span text)
{
    while (text.bytes > 0 && (text.data[0] == ' ' || text.data[0] == '\t'))
        text = span_of(text.data + 1, text.bytes - 1);
    while (text.bytes > 0 &&
           (text.data[text.bytes - 1] == ' ' || text.data[text.bytes - 1] == '\t'))
        text.bytes--;
    return text;
}

bool head_name_is(struct span name, struct span wanted)
{
    return name.bytes == wanted.bytes && strncasecmp(name.data, wanted.data, name.bytes) == 0;
}

/* `text` at its first `mark`; without one the value is empty. */
static struct head_pair pair_split(struct span text, char mark)
{
    const char *at = text.bytes == 0 ? NULL : memchr(text.data, mark, text.bytes);
    size_t name_bytes = at == NULL ? text.bytes : (size_t)(at - text.data);
    return (struct head_pair){
        .name = span_of(text.data, name_bytes),
        .value = at == NULL ? span_of(text.data + name_bytes, 0)
                            : span_of(at + 1, text.bytes - name_bytes - 1),
    };
}

bool head_next_header(struct span *rest, struct head_pair *pair)
{
    const char *end = rest->bytes == 0 ? NULL : memmem(rest->data, rest->bytes, "\r\n", 2);
    if (end == NULL)
        return false;
    struct span line = span_of(rest->data, (size_t)(end - rest->data));
    *rest = span_of(end + 2, rest->bytes - line.bytes - 2);
    *pair = pair_split(line, ':');
    if (pair->name.bytes == line.bytes)
        pair->name.bytes = 0; /* no colon: no header */
    pair->value = head_trim(pair->value);
    return true;
}

bool head_next_parameter(struct span *rest, struct head_pair *pair)
{
    while (rest->bytes > 0) { /* each turn takes at least one byte */
        const char *mark = memchr(rest->data, '&', rest->bytes);
        size_t bytes = mark == NULL ? rest->bytes : (size_t)(mark - rest->data);
        *pair = pair_split(span_of(rest->data, bytes), '=');
        bytes += mark == NULL ? 0 : 1;
        *rest = span_of(rest->data + bytes, rest->bytes - bytes);
        if (pair->name.bytes > 0)
            return true;
    }
    return false;
}

/* ---- by name ---- */

/* Sorted by name, those of one name as they came: names are not all compared with each other. */
struct head_entry {
    struct head_pair pair;
    size_t position;
};

static int positions_compare(const struct head_entry *a, const struct head_entry *b)
{
    return (a->position > b->position) - (a->position < b->position);
}

static int names_compare(struct span a, struct span b,
                         int (*compare)(const char *, const char *, size_t))
{
    int order = compare(a.data, b.data, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order != 0 ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int bytes_compare(const char *a, const char *b, size_t bytes)
{
    return memcmp(a, b, bytes);
}

static int headers_compare(const void *left, const void *right)
{
    const struct head_entry *a = left, *b = right;
    int order = names_compare(a->pair.name, b->pair.name, strncasecmp);
    return order != 0 ? order : positions_compare(a, b);
}

static int parameters_compare(const void *left, const void *right)
{
    const struct head_entry *a = left, *b = right;
    int order = names_compare(a->pair.name, b->pair.name, bytes_compare);
    return order != 0 ? order : positions_compare(a, b);
}

static bool is_visible(struct span text)
{
    for (size_t i = 0; i < text.bytes; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (byte != '\t' && (byte < 0x20 || byte > 0x7e))
            return false;
    }
    return true;
}

/* ---- headers ---- */

static void print_lower(struct printer *printer, struct span name)
{
    size_t before = printer->out->bytes;
    print_string(printer, name);
    for (size_t i = before; printer->status == WEIR_OK && i < printer->out->bytes; i++) {
        char byte = printer->out->data[i];
        printer->out->data[i] = (char)(byte >= 'A' && byte <= 'Z' ? byte - 'A' + 'a' : byte);
    }
}

enum weir_status head_json_append_headers(struct buffer *out, struct span headers)
{
    struct head_entry entries[HEAD_HEADERS_MAX];
    struct head_pair pair;
    size_t count = 0;
    while (head_next_header(&headers, &pair)) {
        if (pair.name.bytes == 0 || !is_visible(pair.name) || !is_visible(pair.value))
            continue;
        if (count == HEAD_HEADERS_MAX)
            return WEIR_TOO_LARGE;
        entries[count] = (struct head_entry){pair, count};
        count++;
    }
    qsort(entries, count, sizeof entries[0], headers_compare);
    struct printer printer = {out, WEIR_OK};
    bool is_first = true;
    print_literal(&printer, "{");
    for (size_t i = 0; i < count; i++) {
        if (i + 1 < count && head_name_is(entries[i].pair.name, entries[i + 1].pair.name))
            continue; /* the last one of a name counts */
        print_span(&printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        is_first = false;
        print_lower(&printer, entries[i].pair.name);
        print_literal(&printer, ":");
        print_string(&printer, entries[i].pair.value);
    }
    print_literal(&printer, "}");
    return printer.status;
}

/* ---- query ---- */

enum weir_status head_json_append_query(struct buffer *out, struct span query)
{
    struct head_entry entries[HEAD_PARAMETERS_MAX];
    struct head_pair pair;
    size_t count = 0;
    while (head_next_parameter(&query, &pair)) {
        if (!json_is_utf8(pair.name) || !json_is_utf8(pair.value))
            continue;
        if (count == HEAD_PARAMETERS_MAX)
            return WEIR_TOO_LARGE;
        entries[count] = (struct head_entry){pair, count};
        count++;
    }
    qsort(entries, count, sizeof entries[0], parameters_compare);
    struct printer printer = {out, WEIR_OK};
    print_literal(&printer, "{");
    for (size_t i = 0; i < count; i++) {
        bool is_first_of_name =
            i == 0 || !span_equal(entries[i - 1].pair.name, entries[i].pair.name);
        if (is_first_of_name) {
            print_span(&printer, i == 0 ? SPAN_LITERAL("") : SPAN_LITERAL("],"));
            print_string(&printer, entries[i].pair.name);
            print_literal(&printer, ":[");
        } else {
            print_literal(&printer, ",");
        }
        print_string(&printer, entries[i].pair.value);
    }
    print_span(&printer, count == 0 ? SPAN_LITERAL("}") : SPAN_LITERAL("]}"));
    return printer.status;
}

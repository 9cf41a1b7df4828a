#include <stdlib.h>

#include "broker/catalogue_inside.h"
#include "shm/limits.h"

static void print_span(struct printer *printer, struct span span)
{
    if (printer->status == WEIR_OK)
        printer->status = buffer_append(printer->out, span);
}

void print_raw(struct printer *printer, const char *text)
{
    print_span(printer, span_text(text));
}

/* A comma, unless what is before it opens something. */
static void print_comma(struct printer *printer)
{
    const struct buffer *out = printer->out;
    char last = out->bytes > 0 ? out->data[out->bytes - 1] : '{';
    if (last != '{' && last != '[' && last != ':')
        print_raw(printer, ",");
}

void print_element(struct printer *printer, const char *text)
{
    print_comma(printer);
    print_raw(printer, text);
}

static void print_string(struct printer *printer, struct span text)
{
    if (printer->status == WEIR_OK)
        printer->status = json_append_string(printer->out, text);
}

void print_key(struct printer *printer, const char *key)
{
    print_comma(printer);
    print_raw(printer, "\"");
    print_raw(printer, key);
    print_raw(printer, "\":");
}

void print_text(struct printer *printer, const char *key, struct span text)
{
    print_key(printer, key);
    print_string(printer, text);
}

void print_text_or_null(struct printer *printer, const char *key, struct span text)
{
    print_key(printer, key);
    if (text.data)
        print_string(printer, text);
    else
        print_raw(printer, "null");
}

void print_shown(struct printer *printer, const char *key, struct span text, bool is_nullable)
{
    char *cleaned = NULL;
    size_t bytes = 0;
    if (text.bytes > 0 && json_is_utf8(text)) {
        cleaned = malloc(text.bytes);
        if (!cleaned)
            printer->status = WEIR_NO_MEMORY;
        else
            bytes = catalogue_clean(cleaned, text);
    }
    if (bytes > 0)
        print_text(printer, key, span_of(cleaned, bytes));
    else if (is_nullable)
        print_text_or_null(printer, key, (struct span){0});
    free(cleaned);
}

void print_json(struct printer *printer, const char *key, struct span json)
{
    struct json_value value;
    if (!json.data || json_scan(json, JSON_DEPTH_MAX, &value, NULL) != WEIR_OK)
        return;
    print_key(printer, key);
    print_span(printer, value.text);
}

void print_number(struct printer *printer, const char *key, uint64_t number)
{
    print_key(printer, key);
    if (printer->status == WEIR_OK)
        printer->status = buffer_printf(printer->out, "%llu", (unsigned long long)number);
}

void print_bool(struct printer *printer, const char *key, bool value)
{
    print_key(printer, key);
    print_raw(printer, value ? "true" : "false");
}

/* ---- entries ---- */

void entries_add(struct entries *entries, struct span first, struct span second,
                 const void *subject)
{
    if (entries->status != WEIR_OK)
        return;
    if (entries->count == entries->capacity) {
        size_t capacity = entries->capacity ? entries->capacity * 2 : 64;
        struct entry *grown = realloc(entries->entries, capacity * sizeof *grown);
        if (!grown) {
            entries->status = WEIR_NO_MEMORY;
            return;
        }
        entries->entries = grown;
        entries->capacity = capacity;
    }
    entries->entries[entries->count++] = (struct entry){first, second, subject};
}

static int span_compare(struct span a, struct span b)
{
    size_t bytes = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = bytes > 0 ? memcmp(a.data, b.data, bytes) : 0;
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int entry_compare(const void *left, const void *right)
{
    const struct entry *a = left;
    const struct entry *b = right;
    int order = span_compare(a->first, b->first);
    return order ? order : span_compare(a->second, b->second);
}

void entries_sort(struct entries *entries)
{
    if (entries->count > 0)
        qsort(entries->entries, entries->count, sizeof *entries->entries, entry_compare);
}

void entries_fini(struct entries *entries)
{
    free(entries->entries);
}

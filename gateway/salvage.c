#include "gateway/salvage.h"

static size_t skip_space(struct span text, size_t at)
{
    while (at < text.bytes && memchr(" \t\r\n", text.data[at], 4) != NULL)
        at++;
    return at;
}

/* Behind the string that starts at `at` (a quote), or text.bytes when it does not end. */
static size_t skip_string(struct span text, size_t at)
{
    for (at++; at < text.bytes; at++) {
        if (text.data[at] == '\\')
            at++;
        else if (text.data[at] == '"')
            return at + 1;
    }
    return text.bytes;
}

/* Behind the value that starts at `at`: at the comma or bracket of the level it stands on. */
static size_t skip_value(struct span text, size_t at)
{
    size_t depth = 0;
    while (at < text.bytes) {
        char byte = text.data[at];
        if (byte == '"') {
            at = skip_string(text, at);
            continue;
        }
        if (depth == 0 && (byte == ',' || byte == '}' || byte == ']'))
            return at;
        if (byte == '{' || byte == '[')
            depth++;
        if (byte == '}' || byte == ']')
            depth--;
        at++;
    }
    return at;
}

static void salvage_member(struct span key, struct span value, const char *const *names,
                           size_t name_count, struct json_value *values)
{
    for (size_t i = 0; i < name_count; i++) {
        struct json_value found;
        if (values[i].kind == JSON_ABSENT && span_equal(key, span_text(names[i])) &&
            json_scan(value, 1, &found, NULL) == WEIR_OK && found.kind == JSON_STRING)
            values[i] = found;
    }
}

void salvage_strings(struct span text, const char *const *names, size_t name_count,
                     struct json_value *values)
{
    memset(values, 0, name_count * sizeof *values);
    size_t at = skip_space(text, 0);
    if (at == text.bytes || text.data[at] != '{')
        return;
    at++;
    for (;;) { /* every turn goes on by at least one member, or ends */
        size_t key_start = skip_space(text, at);
        if (key_start == text.bytes || text.data[key_start] != '"')
            return;
        size_t key_end = skip_string(text, key_start);
        at = skip_space(text, key_end);
        if (at >= text.bytes || text.data[at] != ':')
            return;
        size_t value_start = skip_space(text, at + 1);
        size_t value_end = skip_value(text, value_start);
        if (value_start < value_end && text.data[value_start] == '"')
            salvage_member(span_of(text.data + key_start + 1, key_end - key_start - 2),
                           span_of(text.data + value_start, value_end - value_start), names,
                           name_count, values);
        if (value_end >= text.bytes || text.data[value_end] != ',')
            return;
        at = value_end + 1;
    }
}

#include "cli/json_text.h"

#include "shm/json.h"
#include "shm/limits.h"

static enum weir_status json_text_append_pair(struct buffer *out, const char *argument,
                                              size_t key_bytes)
{
    struct span key = span_of(argument, key_bytes);
    struct span value = span_text(argument + key_bytes + 1);
    struct json_value scanned;
    enum weir_status status = json_append_string(out, key);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(":"));
    if (status != WEIR_OK)
        return status;
    bool is_json = json_scan(value, JSON_DEPTH_MAX - 3, &scanned, NULL) == WEIR_OK;
    return is_json ? buffer_append(out, scanned.text) : json_append_string(out, value);
}

enum weir_status json_text_from_pairs(struct buffer *out, char *const *arguments, size_t count,
                                      struct weir_error *error)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{"));
    for (size_t i = 0; i < count && status == WEIR_OK; i++) {
        const char *equals = strchr(arguments[i], '=');
        if (equals == NULL || equals == arguments[i])
            return weir_fail(
                error, WEIR_INVALID,
                "%.80s is neither KEY=VALUE nor the only argument; see `weir help trigger`",
                arguments[i]);
        size_t key_bytes = (size_t)(equals - arguments[i]);
        if (!json_is_utf8(span_text(arguments[i])))
            return weir_fail(error, WEIR_INVALID, "the argument at position %zu is not UTF-8",
                             i + 1);
        for (size_t j = 0; j < i; j++) {
            if (strncmp(arguments[j], arguments[i], key_bytes + 1) == 0)
                return weir_fail(error, WEIR_INVALID, "key %.*s is given twice",
                                 (int)(key_bytes < 80 ? key_bytes : 80), arguments[i]);
        }
        if (i > 0)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = json_text_append_pair(out, arguments[i], key_bytes);
    }
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("}"));
    return status == WEIR_OK ? status : weir_fail(error, status, "the arguments are too long");
}

static enum weir_status json_text_break(struct buffer *out, unsigned depth)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("\n"));
    for (unsigned i = 0; i < depth && status == WEIR_OK; i++)
        status = buffer_append(out, SPAN_LITERAL("  "));
    return status;
}

/* The end of the string that starts at `start`, behind its closing quote. */
static size_t json_text_string_end(struct span json, size_t start)
{
    size_t i = start + 1;
    while (i < json.bytes && json.data[i] != '"')
        i += json.data[i] == '\\' ? 2 : 1;
    return i < json.bytes ? i + 1 : json.bytes;
}

enum weir_status json_text_indent(struct buffer *out, struct span json)
{
    unsigned depth = 0;
    enum weir_status status = WEIR_OK;
    for (size_t i = 0; i < json.bytes && status == WEIR_OK; i++) {
        char c = json.data[i];
        char next = i + 1 < json.bytes ? json.data[i + 1] : '\0';
        switch (c) {
        case ' ':
        case '\t':
        case '\n':
        case '\r':
            break;
        case '"': {
            size_t end = json_text_string_end(json, i);
            status = buffer_append(out, span_of(json.data + i, end - i));
            i = end - 1;
            break;
        }
        case '{':
        case '[':
            status = buffer_append(out, span_of(&c, 1));
            if (status == WEIR_OK && (next == '}' || next == ']')) {
                status = buffer_append(out, span_of(&next, 1));
                i++;
            } else if (status == WEIR_OK) {
                status = json_text_break(out, ++depth);
            }
            break;
        case '}':
        case ']':
            status = json_text_break(out, depth > 0 ? --depth : 0);
            if (status == WEIR_OK)
                status = buffer_append(out, span_of(&c, 1));
            break;
        case ',':
            status = buffer_append(out, span_of(&c, 1));
            if (status == WEIR_OK)
                status = json_text_break(out, depth);
            break;
        case ':':
            status = buffer_append(out, SPAN_LITERAL(": "));
            break;
        default:
            status = buffer_append(out, span_of(&c, 1));
            break;
        }
    }
    return status;
}

#include "cli/item_line.h"

#include "shm/json.h"
#include "shm/limits.h"

enum { ITEM_LINE_STREAM, ITEM_LINE_GROUP, ITEM_LINE_ITEM, ITEM_LINE_VALUE, ITEM_LINE_MEMBERS };
static const char *const item_line_names[ITEM_LINE_MEMBERS] = {"stream", "group", "item", "value"};

static enum weir_status item_line_take_name(struct json_value member, const char *name,
                                            struct buffer *scratch, struct span *decoded,
                                            struct weir_error *error)
{
    if (member.kind == JSON_ABSENT)
        return weir_fail(error, WEIR_INVALID, "`%s` is missing", name);
    if (member.kind != JSON_STRING)
        return weir_fail(error, WEIR_INVALID, "`%s` is not a string", name);
    *decoded = json_decode(member, scratch);
    if (decoded->bytes > NAME_BYTES_MAX)
        return weir_fail(error, WEIR_TOO_LARGE, "`%s` has %zu bytes, at most %u are possible", name,
                         decoded->bytes, NAME_BYTES_MAX);
    return WEIR_OK;
}

enum weir_status item_line_parse(struct span line, struct buffer *scratch, struct store_key *key,
                                 struct span *value, struct weir_error *error)
{
    struct json_value members[ITEM_LINE_MEMBERS];
    struct json_problem problem = {0, "not JSON"};
    enum weir_status status = json_scan_object(line, JSON_DEPTH_MAX, item_line_names,
                                               ITEM_LINE_MEMBERS, members, &problem);
    if (status != WEIR_OK)
        return weir_fail(error, status == WEIR_TOO_LARGE ? status : WEIR_INVALID,
                         "not an item as JSON: %s at byte %zu", problem.reason, problem.offset + 1);
    /* Nothing decoded is longer than its text, so the scratch never grows while spans point into it. */
    buffer_clear(scratch);
    if (buffer_reserve(scratch, line.bytes) != WEIR_OK)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the line");
    struct span *const names[] = {&key->stream, &key->group, &key->item};
    for (unsigned i = ITEM_LINE_STREAM; i <= ITEM_LINE_ITEM; i++) {
        status = item_line_take_name(members[i], item_line_names[i], scratch, names[i], error);
        if (status != WEIR_OK)
            return status;
    }
    struct json_value member = members[ITEM_LINE_VALUE];
    if (member.kind == JSON_ABSENT)
        return weir_fail(error, WEIR_INVALID, "`value` is missing");
    *value = member.text;
    if (member.has_space) {
        char *compact = scratch->data + scratch->bytes;
        *value = span_of(compact, json_compact(compact, member));
        scratch->bytes += value->bytes;
    }
    if (value->bytes > VALUE_BYTES_MAX)
        return weir_fail(error, WEIR_TOO_LARGE, "`value` has %zu bytes, at most %u are possible",
                         value->bytes, VALUE_BYTES_MAX);
    return WEIR_OK;
}

enum weir_status item_line_append(struct buffer *out, const struct store_key *key,
                                  struct span value)
{
    const struct {
        struct span before, name;
    } parts[] = {{SPAN_LITERAL("{\"stream\":"), key->stream},
                 {SPAN_LITERAL(",\"group\":"), key->group},
                 {SPAN_LITERAL(",\"item\":"), key->item}};
    enum weir_status status = WEIR_OK;
    for (size_t i = 0; i < 3 && status == WEIR_OK; i++) {
        status = buffer_append(out, parts[i].before);
        if (status == WEIR_OK)
            status = json_append_string(out, parts[i].name);
    }
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"value\":"));
    if (status == WEIR_OK)
        status = buffer_append(out, value);
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("}\n")) : status;
}

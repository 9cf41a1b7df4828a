#include "shm/trigger_types.h"

#include "shm/limits.h"

static const struct trigger_type trigger_types[] = {
    {TRIGGER_STREAM, "stream", "iii-stream", "An item changed, or an event was sent to a group"},
    {TRIGGER_JOIN, "stream:join", "iii-stream", "Somebody wants to subscribe; may refuse"},
    {TRIGGER_LEAVE, "stream:leave", "iii-stream", "A subscription has ended"},
    {TRIGGER_FUNCTIONS_AVAILABLE, "engine::functions-available", "engine",
     "The set of registered functions changed"},
    {TRIGGER_WORKERS_AVAILABLE, "engine::workers-available", "engine",
     "A worker came, went, or changed what it says of itself"},
};
enum { TRIGGER_TYPE_COUNT = sizeof trigger_types / sizeof trigger_types[0] };

const struct trigger_type *trigger_type_by_name(struct span name)
{
    for (unsigned i = 0; i < TRIGGER_TYPE_COUNT; i++) {
        if (span_equal(name, span_text(trigger_types[i].name)))
            return &trigger_types[i];
    }
    return NULL;
}

const struct trigger_type *trigger_types_all(size_t *count)
{
    *count = TRIGGER_TYPE_COUNT;
    return trigger_types;
}

enum { FIELD_STREAM, FIELD_GROUP, FIELD_ITEM, FIELD_CONDITION, FIELD_COUNT };

static const char *config_problem(enum trigger_kind kind, const struct json_value *values)
{
    static const char *const wrong[FIELD_COUNT] = {
        "stream_name must be a string", "group_id must be a string", "item_id must be a string",
        "condition_function_id must be a string"};
    if (kind == TRIGGER_STREAM &&
        (values[FIELD_STREAM].kind == JSON_ABSENT || values[FIELD_STREAM].kind == JSON_NULL))
        return "stream_name is required";
    for (unsigned i = 0; i < FIELD_COUNT; i++) {
        enum json_kind given = values[i].kind;
        if (given != JSON_ABSENT && given != JSON_NULL && given != JSON_STRING)
            return wrong[i];
        if (values[i].text.bytes > NAME_ESCAPED_BYTES_MAX + 2)
            return "a name is longer than 4096 bytes";
    }
    return NULL;
}

enum weir_status trigger_config_read(enum trigger_kind kind, struct json_value config,
                                     struct buffer *scratch, struct trigger_config *read,
                                     const char **problem)
{
    static const char *const names[FIELD_COUNT] = {"stream_name", "group_id", "item_id",
                                                   "condition_function_id"};
    struct json_value values[FIELD_COUNT] = {0};
    *read = (struct trigger_config){0};
    if (kind != TRIGGER_STREAM && kind != TRIGGER_JOIN && kind != TRIGGER_LEAVE)
        return WEIR_OK;
    bool is_nothing = config.kind == JSON_ABSENT || config.kind == JSON_NULL;
    struct json_problem scanned = {0};
    *problem = "config must be an object";
    if (!is_nothing && json_scan_object(config.text, JSON_DEPTH_MAX, names, FIELD_COUNT, values,
                                        &scanned) != WEIR_OK) {
        if (config.kind == JSON_OBJECT && scanned.reason != NULL)
            *problem = scanned.reason;
        return WEIR_INVALID;
    }
    *problem = config_problem(kind, values);
    if (*problem != NULL)
        return WEIR_INVALID;
    enum weir_status status = buffer_reserve(scratch, config.text.bytes + 1);
    if (status != WEIR_OK)
        return status;
    read->stream = json_decode(values[FIELD_STREAM], scratch);
    read->group = json_decode(values[FIELD_GROUP], scratch);
    read->item = json_decode(values[FIELD_ITEM], scratch);
    read->condition = json_decode(values[FIELD_CONDITION], scratch);
    if (read->stream.bytes > NAME_BYTES_MAX || read->group.bytes > NAME_BYTES_MAX ||
        read->item.bytes > NAME_BYTES_MAX || read->condition.bytes > NAME_BYTES_MAX) {
        *problem = "a name is longer than 4096 bytes";
        return WEIR_INVALID;
    }
    if (kind != TRIGGER_STREAM || read->group.bytes == 0)
        read->group = (struct span){0};
    if (kind != TRIGGER_STREAM || read->item.bytes == 0)
        read->item = (struct span){0};
    return WEIR_OK;
}

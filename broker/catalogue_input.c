#include <stdlib.h>

#include "broker/catalogue_inside.h"
#include "shm/limits.h"

static const char *const field_names[INPUT_COUNT] = {
    [INPUT_SEARCH] = "search",
    [INPUT_PREFIX] = "prefix",
    [INPUT_WORKER] = "worker",
    [INPUT_RUNTIME] = "runtime",
    [INPUT_STATUS] = "status",
    [INPUT_TRIGGER_TYPE] = "trigger_type",
    [INPUT_FUNCTION_ID] = "function_id",
    [INPUT_NAME] = "name",
    [INPUT_ID] = "id",
    [INPUT_NAMESPACE] = "namespace",
    [INPUT_WORKERS] = "workers",
    [INPUT_FUNCTION_IDS] = "function_ids",
    [INPUT_INCLUDE_INTERNAL] = "include_internal",
};

static const char *const text_problems[INPUT_TEXTS] = {
    [INPUT_SEARCH] = "search is not a string",
    [INPUT_PREFIX] = "prefix is not a string",
    [INPUT_WORKER] = "worker is not a string",
    [INPUT_RUNTIME] = "runtime is not a string",
    [INPUT_STATUS] = "status is not a string",
    [INPUT_TRIGGER_TYPE] = "trigger_type is not a string",
    [INPUT_FUNCTION_ID] = "function_id is not a string",
    [INPUT_NAME] = "name is not a string",
    [INPUT_ID] = "id is not a string",
    [INPUT_NAMESPACE] = "namespace is not a string",
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_nothing(struct json_value value)
{
    return value.kind == JSON_ABSENT || value.kind == JSON_NULL;
}

/* Decode one string behind the others; there is room for the whole input. */
static struct span input_keep(struct input *input, struct json_value value)
{
    char *out = input->text + input->text_bytes;
    size_t bytes = json_unescape(out, value);
    input->text_bytes += bytes;
    return span_of(out, bytes);
}

/* Elements beyond the list's room are not kept, but one more is counted. */
static const char *input_read_list(struct input *input, struct json_value value, size_t max,
                                   const char *problem)
{
    size_t cursor = 0;
    struct json_value element;
    if (is_nothing(value))
        return NULL;
    if (value.kind != JSON_ARRAY)
        return problem;
    input->has_list = true;
    while (json_next(value, &cursor, NULL, &element) == WEIR_OK) {
        if (element.kind != JSON_STRING)
            return problem;
        if (input->list_count < max)
            input->list[input->list_count] = input_keep(input, element);
        if (input->list_count <= max)
            input->list_count++;
    }
    return NULL;
}

static const char *input_read_texts(struct input *input, const struct json_value *values,
                                    unsigned wanted)
{
    for (unsigned field = 0; field < INPUT_TEXTS; field++) {
        if (!(wanted & INPUT_BIT(field)) || is_nothing(values[field]))
            continue;
        if (values[field].kind != JSON_STRING)
            return text_problems[field];
        input->texts[field] = input_keep(input, values[field]);
    }
    struct span search = input->texts[INPUT_SEARCH];
    char *text = search.data ? input->text + (search.data - input->text) : NULL;
    for (size_t index = 0; index < search.bytes; index++)
        text[index] = lower(text[index]);
    return NULL;
}

static const char *input_read_values(struct input *input, const struct json_value *values,
                                     unsigned wanted)
{
    const char *problem = input_read_texts(input, values, wanted);
    if (!problem && wanted & INPUT_BIT(INPUT_WORKERS)) {
        problem = input_read_list(input, values[INPUT_WORKERS], INPUT_WORKERS_MAX,
                                  "workers is not an array of strings");
        if (!problem && input->list_count > INPUT_WORKERS_MAX)
            problem = "workers names more than 256 workers";
    }
    if (!problem && wanted & INPUT_BIT(INPUT_FUNCTION_IDS))
        problem = input_read_list(input, values[INPUT_FUNCTION_IDS], INPUT_FUNCTION_IDS_MAX,
                                  "function_ids is not an array of strings");
    if (problem || !(wanted & INPUT_BIT(INPUT_INCLUDE_INTERNAL)))
        return problem;
    struct json_value internal = values[INPUT_INCLUDE_INTERNAL];
    if (!is_nothing(internal) && internal.kind != JSON_TRUE && internal.kind != JSON_FALSE)
        return "include_internal is not a boolean";
    input->include_internal = internal.kind == JSON_TRUE;
    return NULL;
}

enum weir_status input_read(struct input *input, struct span json, unsigned wanted,
                            const char **problem)
{
    struct json_value values[INPUT_COUNT] = {0};
    *input = (struct input){.text = malloc(json.bytes + 1)};
    if (!input->text)
        return WEIR_NO_MEMORY;
    if (json.bytes == 0 || span_equal(json, SPAN_LITERAL("null")))
        return WEIR_OK;
    if (json_scan_object(json, JSON_DEPTH_MAX, field_names, INPUT_COUNT, values, NULL) != WEIR_OK)
        *problem = "the input is not an object";
    else
        *problem = input_read_values(input, values, wanted);
    return *problem ? WEIR_INVALID : WEIR_OK;
}

void input_fini(struct input *input)
{
    free(input->text);
    input->text = NULL;
}

/* ---- what fits ---- */

static bool span_starts_with(struct span text, struct span prefix)
{
    return text.bytes >= prefix.bytes &&
           (prefix.bytes == 0 || memcmp(text.data, prefix.data, prefix.bytes) == 0);
}

static bool span_contains_lower(struct span text, struct span needle)
{
    for (size_t start = 0; start + needle.bytes <= text.bytes; start++) {
        size_t index = 0;
        while (index < needle.bytes && lower(text.data[start + index]) == needle.data[index])
            index++;
        if (index == needle.bytes)
            return true;
    }
    return false;
}

bool input_equals(const struct input *input, enum input_field field, struct span text)
{
    return !input->texts[field].data || span_equal(input->texts[field], text);
}

bool input_prefixes(const struct input *input, struct span text)
{
    return !input->texts[INPUT_PREFIX].data || span_starts_with(text, input->texts[INPUT_PREFIX]);
}

bool input_finds(const struct input *input, struct span text, struct span other)
{
    struct span search = input->texts[INPUT_SEARCH];
    return !search.data || span_contains_lower(text, search) ||
           (other.data && span_contains_lower(other, search));
}

bool input_has_worker(const struct input *input, struct span worker_name)
{
    if (!input_equals(input, INPUT_WORKER, worker_name))
        return false;
    for (size_t index = 0; index < input->list_count; index++)
        if (span_equal(input->list[index], worker_name))
            return true;
    return !input->has_list;
}

bool id_is_internal(struct span id)
{
    return span_starts_with(id, SPAN_LITERAL("engine::")) &&
           !span_starts_with(id, SPAN_LITERAL("engine::queue::"));
}

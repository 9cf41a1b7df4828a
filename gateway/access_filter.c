#include "gateway/access_filter.h"

#include "gateway/printer.h"
#include "shm/limits.h"

enum access_listing access_listing_of(struct json_value function)
{
    static const struct {
        const char *id;
        enum access_listing listing;
    } listings[] = {
        {"engine::functions::list", ACCESS_FUNCTIONS_LIST},
        {"engine::functions::info", ACCESS_FUNCTIONS_INFO},
        {"engine::workers::list", ACCESS_WORKERS_LIST},
        {"engine::workers::info", ACCESS_WORKERS_INFO},
        {"engine::triggers::list", ACCESS_TRIGGERS_LIST},
        {"engine::triggers::info", ACCESS_TRIGGERS_INFO},
        {"engine::registered-triggers::list", ACCESS_REGISTERED_TRIGGERS_LIST},
        {"engine::registered-triggers::info", ACCESS_REGISTERED_TRIGGERS_INFO},
    };
    for (size_t i = 0; i < sizeof listings / sizeof listings[0]; i++) {
        if (function.kind == JSON_STRING && json_string_equals(function, span_text(listings[i].id)))
            return listings[i].listing;
    }
    return ACCESS_LISTING_NONE;
}

/* ---- one element ---- */

/* What an array is made of. */
enum element { ELEMENT_FUNCTION, ELEMENT_TRIGGER, ELEMENT_TYPE, ELEMENT_WORKER };

/* A decoded copy; false when it is no string or longer than any id. */
static bool name_read(struct json_value value, char text[NAME_ESCAPED_BYTES_MAX + 2],
                      struct span *name)
{
    if (value.kind != JSON_STRING || value.text.bytes > NAME_ESCAPED_BYTES_MAX + 2)
        return false;
    *name = span_of(text, json_unescape(text, value));
    return true;
}

/* `function` names it; metadata NULL: not said. */
static bool function_is_shown(const struct access *access, struct json_value function,
                              struct json_value name_space, const struct json_value *metadata)
{
    char texts[2][NAME_ESCAPED_BYTES_MAX + 2];
    struct span id, space = SPAN_LITERAL("default");
    if (!name_read(function, texts[0], &id))
        return false;
    if (name_space.kind != JSON_ABSENT && name_space.kind != JSON_NULL &&
        !name_read(name_space, texts[1], &space))
        return false;
    return access_call(access, space, id, metadata) == ACCESS_ALLOWED;
}

static bool function_element_is_shown(const struct access *access, struct json_value element)
{
    enum { ID, NAMESPACE, METADATA, COUNT };
    static const char *const names[COUNT] = {"function_id", "namespace", "metadata"};
    struct json_value values[COUNT];
    if (element.kind != JSON_OBJECT ||
        json_scan_object(element.text, JSON_DEPTH_MAX, names, COUNT, values, NULL) != WEIR_OK)
        return function_is_shown(access, element, (struct json_value){0}, NULL); /* only its id */
    return function_is_shown(access, values[ID], values[NAMESPACE], &values[METADATA]);
}

/* A trigger: its type and its function, of which ::info brings the details. `namespace` is the
 * function's. */
static bool trigger_element_is_shown(const struct access *access, struct json_value element)
{
    enum { ID, NAMESPACE, TYPE, FUNCTION, COUNT };
    static const char *const names[COUNT] = {"function_id", "namespace", "trigger_type",
                                             "function"};
    struct json_value values[COUNT];
    char text[NAME_ESCAPED_BYTES_MAX + 2];
    struct span type;
    if (element.kind != JSON_OBJECT ||
        json_scan_object(element.text, JSON_DEPTH_MAX, names, COUNT, values, NULL) != WEIR_OK ||
        !name_read(values[TYPE], text, &type) || !access_may_use_trigger_type(access, type))
        return false;
    return values[FUNCTION].kind == JSON_OBJECT
               ? function_element_is_shown(access, values[FUNCTION])
               : function_is_shown(access, values[ID], values[NAMESPACE], NULL);
}

static bool type_element_is_shown(const struct access *access, struct json_value element)
{
    static const char *const names[] = {"id"};
    struct json_value id = element; /* or only its id */
    char text[NAME_ESCAPED_BYTES_MAX + 2];
    struct span type;
    if (element.kind == JSON_OBJECT &&
        json_scan_object(element.text, JSON_DEPTH_MAX, names, 1, &id, NULL) != WEIR_OK)
        return false;
    return name_read(id, text, &type) && access_may_use_trigger_type(access, type);
}

static bool element_is_shown(const struct access *access, enum element kind,
                             struct json_value element)
{
    switch (kind) {
    case ELEMENT_FUNCTION:
        return function_element_is_shown(access, element);
    case ELEMENT_TRIGGER:
        return trigger_element_is_shown(access, element);
    case ELEMENT_TYPE:
        return type_element_is_shown(access, element);
    case ELEMENT_WORKER:
        return true;
    }
    return false;
}

/* ---- printing what is left ---- */

/* Without its address, which is nobody's business on this side. */
static void print_worker(struct printer *printer, struct json_value worker)
{
    struct json_value key, value;
    size_t cursor = 0;
    bool is_first = true;
    print_literal(printer, "{");
    while (json_next(worker, &cursor, &key, &value) == WEIR_OK) {
        print_span(printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        is_first = false;
        print_span(printer, key.text);
        print_literal(printer, ":");
        print_span(printer, json_string_equals(key, SPAN_LITERAL("ip_address"))
                                ? SPAN_LITERAL("null")
                                : value.text);
    }
    print_literal(printer, "}");
}

static void print_shown(const struct access *access, struct printer *printer, enum element kind,
                        struct json_value array)
{
    struct json_value element;
    size_t cursor = 0;
    bool is_first = true;
    print_literal(printer, "[");
    while (json_next(array, &cursor, NULL, &element) == WEIR_OK) {
        if (!element_is_shown(access, kind, element))
            continue;
        print_span(printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        is_first = false;
        if (kind == ELEMENT_WORKER)
            print_worker(printer, element);
        else
            print_span(printer, element.text);
    }
    print_literal(printer, "]");
}

/* engine::functions::info of several: each detail, or what is said in its place. */
static void print_details(const struct access *access, struct printer *printer,
                          struct json_value array)
{
    enum { ID, ERROR, COUNT };
    static const char *const names[COUNT] = {"function_id", "error"};
    struct json_value element;
    size_t cursor = 0;
    bool is_first = true;
    print_literal(printer, "[");
    while (json_next(array, &cursor, NULL, &element) == WEIR_OK) {
        struct json_value values[COUNT];
        if (element.kind != JSON_OBJECT ||
            json_scan_object(element.text, JSON_DEPTH_MAX, names, COUNT, values, NULL) != WEIR_OK ||
            values[ID].kind != JSON_STRING)
            continue;
        print_span(printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        is_first = false;
        if (values[ERROR].kind == JSON_STRING || function_element_is_shown(access, element)) {
            print_span(printer, element.text);
            continue;
        }
        print_literal(printer, "{\"function_id\":");
        print_span(printer, values[ID].text);
        print_literal(printer, ",\"error\":\"forbidden\"}");
    }
    print_literal(printer, "]");
}

/* A member of an answer and what its array is made of. */
struct access_member {
    const char *name;
    enum element kind;
};

/* The object with the arrays among its members filtered; `worker` is an object of its own. */
static void print_answer(const struct access *access, struct printer *printer,
                         struct json_value answer, const struct access_member *members,
                         size_t count)
{
    struct json_value key, value;
    size_t cursor = 0;
    bool is_first = true;
    print_literal(printer, "{");
    while (json_next(answer, &cursor, &key, &value) == WEIR_OK) {
        size_t i = 0;
        while (i < count && !json_string_equals(key, span_text(members[i].name)))
            i++;
        print_span(printer, is_first ? SPAN_LITERAL("") : SPAN_LITERAL(","));
        is_first = false;
        print_span(printer, key.text);
        print_literal(printer, ":");
        if (i < count && value.kind == JSON_ARRAY)
            print_shown(access, printer, members[i].kind, value);
        else if (i < count && members[i].kind == ELEMENT_WORKER && value.kind == JSON_OBJECT)
            print_worker(printer, value);
        else if (i < count)
            print_literal(printer, "null");
        else
            print_span(printer, value.text);
    }
    print_literal(printer, "}");
}

/* ---- the listings ---- */

static enum weir_status filter_functions_info(const struct access *access, struct json_value answer,
                                              struct printer *printer, const char **code)
{
    static const char *const names[] = {"functions"};
    struct json_value functions;
    if (json_scan_object(answer.text, JSON_DEPTH_MAX, names, 1, &functions, NULL) != WEIR_OK)
        return WEIR_CORRUPT;
    if (functions.kind == JSON_ARRAY) {
        print_literal(printer, "{\"functions\":");
        print_details(access, printer, functions);
        print_literal(printer, "}");
        return printer->status;
    }
    *code = "FORBIDDEN";
    if (!function_element_is_shown(access, answer))
        return WEIR_REFUSED;
    print_span(printer, answer.text);
    return printer->status;
}

static enum weir_status filter_whole(const struct access *access, enum element kind,
                                     struct json_value answer, struct printer *printer,
                                     const char **code)
{
    *code = "NOT_FOUND";
    if (!element_is_shown(access, kind, answer))
        return WEIR_REFUSED;
    print_span(printer, answer.text);
    return printer->status;
}

enum weir_status access_filter(const struct access *access, enum access_listing listing,
                               struct span result, struct buffer *out, const char **code)
{
    static const struct access_member functions[] = {{"functions", ELEMENT_FUNCTION}};
    static const struct access_member workers[] = {{"workers", ELEMENT_WORKER}};
    static const struct access_member types[] = {{"triggers", ELEMENT_TYPE}};
    static const struct access_member triggers[] = {{"registered_triggers", ELEMENT_TRIGGER}};
    static const struct access_member worker[] = {{"worker", ELEMENT_WORKER},
                                                  {"functions", ELEMENT_FUNCTION},
                                                  {"trigger_types", ELEMENT_TYPE},
                                                  {"registered_triggers", ELEMENT_TRIGGER}};
    struct printer printer = {out, WEIR_OK};
    struct json_value answer;
    if (json_scan(result, JSON_DEPTH_MAX, &answer, NULL) != WEIR_OK || answer.kind != JSON_OBJECT)
        return WEIR_CORRUPT;
    switch (listing) {
    case ACCESS_FUNCTIONS_LIST:
        print_answer(access, &printer, answer, functions, 1);
        break;
    case ACCESS_FUNCTIONS_INFO:
        return filter_functions_info(access, answer, &printer, code);
    case ACCESS_WORKERS_LIST:
        print_answer(access, &printer, answer, workers, 1);
        break;
    case ACCESS_WORKERS_INFO:
        print_answer(access, &printer, answer, worker, 4);
        break;
    case ACCESS_TRIGGERS_LIST:
        print_answer(access, &printer, answer, types, 1);
        break;
    case ACCESS_TRIGGERS_INFO:
        return filter_whole(access, ELEMENT_TYPE, answer, &printer, code);
    case ACCESS_REGISTERED_TRIGGERS_LIST:
        print_answer(access, &printer, answer, triggers, 1);
        break;
    case ACCESS_REGISTERED_TRIGGERS_INFO:
        return filter_whole(access, ELEMENT_TRIGGER, answer, &printer, code);
    case ACCESS_LISTING_NONE:
        return WEIR_CORRUPT;
    }
    return printer.status;
}

#include "broker/catalogue_inside.h"
#include "shm/limits.h"

struct function_view function_view_of(const struct function *function)
{
    const struct registration *owner = function->owner;
    return (struct function_view){
        .space = function_space(function),
        .id = function_id(function),
        .worker_name = session_worker_name(owner->session, function_id(function)),
        .description = owner->description,
        .request_format = owner->request_format,
        .response_format = owner->response_format,
        .metadata = owner->metadata,
    };
}

struct function_view builtin_view_of(const struct builtin_function *builtin)
{
    return (struct function_view){
        .space = SPAN_LITERAL("default"),
        .id = span_text(builtin->id),
        .worker_name = span_text(builtin->worker_name),
        .description = span_text(builtin->description),
    };
}

bool function_view_find(const struct catalogue_sources *sources, struct span space, struct span id,
                        struct function_view *view)
{
    size_t count = 0;
    const struct builtin_function *builtins = builtin_functions(&count);
    const struct function *function = routes_function(sources->routes, space, id);
    if (function) {
        *view = function_view_of(function);
        return true;
    }
    for (size_t index = 0; index < count; index++) {
        *view = builtin_view_of(&builtins[index]);
        if (span_equal(view->id, id) && span_equal(view->space, space))
            return true;
    }
    return false;
}

/* ---- list ---- */

static bool metadata_is_internal(struct span metadata)
{
    static const char *const names[] = {"internal"};
    struct json_value value;
    return metadata.data &&
           json_scan_object(metadata, JSON_DEPTH_MAX, names, 1, &value, NULL) == WEIR_OK &&
           value.kind == JSON_TRUE;
}

static bool function_passes(const struct input *input, const struct function_view *view)
{
    if (!input->include_internal &&
        (id_is_internal(view->id) || metadata_is_internal(view->metadata)))
        return false;
    return input_prefixes(input, view->id) && input_finds(input, view->id, view->description) &&
           input_has_worker(input, view->worker_name);
}

void print_function_entry(struct printer *printer, const struct function_view *view)
{
    print_element(printer, "{");
    print_text(printer, "function_id", view->id);
    print_text(printer, "namespace", view->space);
    print_text(printer, "worker_name", view->worker_name);
    print_shown(printer, "description", view->description, false);
    print_json(printer, "metadata", view->metadata);
    print_raw(printer, "}");
}

/* A view with the pointer back to what it was made of: a builtin's is inside the constant table. */
static struct function_view view_of_subject(const void *subject)
{
    size_t count = 0;
    const struct builtin_function *builtins = builtin_functions(&count);
    for (size_t index = 0; index < count; index++)
        if (subject == &builtins[index])
            return builtin_view_of(&builtins[index]);
    return function_view_of(subject);
}

void functions_list(const struct catalogue_sources *sources, const struct input *input,
                    struct printer *printer, struct catalogue_problem *problem)
{
    struct entries entries = {0};
    size_t count = 0;
    const struct builtin_function *builtins = builtin_functions(&count);
    (void)problem;
    for (size_t index = 0; index < count; index++) {
        struct function_view view = builtin_view_of(&builtins[index]);
        if (function_passes(input, &view))
            entries_add(&entries, view.id, view.space, &builtins[index]);
    }
    size_t bucket = 0;
    struct table_node *node = NULL;
    while ((node = table_walk(routes_functions(sources->routes), &bucket, node))) {
        const struct function *function = TABLE_OWNER(node, struct function, node);
        struct function_view view = function_view_of(function);
        if (function_passes(input, &view))
            entries_add(&entries, view.id, view.space, function);
    }
    entries_sort(&entries);
    print_raw(printer, "{\"functions\":[");
    for (size_t index = 0; index < entries.count; index++) {
        struct function_view view = view_of_subject(entries.entries[index].subject);
        print_function_entry(printer, &view);
    }
    print_raw(printer, "]}");
    if (printer->status == WEIR_OK)
        printer->status = entries.status;
    entries_fini(&entries);
}

/* ---- info ---- */

static void print_function_triggers(struct printer *printer,
                                    const struct catalogue_sources *sources,
                                    const struct function_view *view)
{
    size_t bucket = 0;
    const struct trigger *trigger = NULL;
    print_key(printer, "registered_triggers");
    print_raw(printer, "[");
    while ((trigger = live_trigger_next(sources, &bucket, trigger))) {
        if (!span_equal(trigger->function, view->id) || !span_equal(trigger->space, view->space))
            continue;
        print_element(printer, "{");
        print_text(printer, "id", trigger->id);
        print_text(printer, "trigger_type", trigger_group_name(trigger->group));
        print_json(printer, "config", trigger->config);
        print_raw(printer, "}");
    }
    print_raw(printer, "]");
}

void print_function_detail(struct printer *printer, const struct catalogue_sources *sources,
                           const struct function_view *view)
{
    print_element(printer, "{");
    print_text(printer, "function_id", view->id);
    print_text(printer, "namespace", view->space);
    print_text(printer, "worker_name", view->worker_name);
    print_shown(printer, "description", view->description, false);
    print_json(printer, "request_schema", view->request_format);
    print_json(printer, "response_schema", view->response_format);
    print_json(printer, "metadata", view->metadata);
    print_function_triggers(printer, sources, view);
    print_raw(printer, "}");
}

static void functions_info_batch(const struct catalogue_sources *sources, const struct input *input,
                                 struct printer *printer)
{
    struct span space = space_or_default(input->texts[INPUT_NAMESPACE]);
    struct function_view view;
    print_raw(printer, "{\"functions\":[");
    for (size_t index = 0; index < input->list_count; index++) {
        if (function_view_find(sources, space, input->list[index], &view)) {
            print_function_detail(printer, sources, &view);
            continue;
        }
        print_element(printer, "{");
        print_text(printer, "function_id", input->list[index]);
        print_text(printer, "error", SPAN_LITERAL("not_found"));
        print_raw(printer, "}");
    }
    print_raw(printer, "]}");
}

void functions_info(const struct catalogue_sources *sources, const struct input *input,
                    struct printer *printer, struct catalogue_problem *problem)
{
    struct span space = space_or_default(input->texts[INPUT_NAMESPACE]);
    struct span id = input->texts[INPUT_FUNCTION_ID];
    struct function_view view;
    if ((id.data != NULL) == input->has_list)
        catalogue_refuse(printer, problem, "INVALID_ARGUMENTS",
                         "exactly one of function_id and function_ids is needed");
    else if (input->list_count > INPUT_FUNCTION_IDS_MAX)
        catalogue_refuse(printer, problem, "INVALID_ARGUMENTS",
                         "function_ids names more than 32 functions");
    else if (input->has_list)
        functions_info_batch(sources, input, printer);
    else if (function_view_find(sources, space, id, &view))
        print_function_detail(printer, sources, &view);
    else
        catalogue_refuse(printer, problem, "NOT_FOUND",
                         "no such function is registered in the namespace");
}

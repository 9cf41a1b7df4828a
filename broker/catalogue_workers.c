#include "broker/catalogue_inside.h"

/* A connection, or a part of the broker that shows itself as a worker. */
struct worker_view {
    const struct session *session; /* NULL: in-process */
    struct span name, description, version, id, space, runtime, os, status, isolation, ip_address;
    uint64_t function_count, connected_at_ms, active_invocations;
};

static const struct in_process_worker {
    const char *name;
    const char *description;
} in_process_workers[] = {
    {"engine", "Sessions, functions and triggers"},
    {"iii-stream", "Streams: items, events, subscriptions"},
};
enum { IN_PROCESS_COUNT = sizeof in_process_workers / sizeof in_process_workers[0] };

static struct span text_or_nil(const char *text)
{
    return text ? span_text(text) : (struct span){0};
}

static bool builtin_is_of(const struct builtin_function *builtin, struct span worker_name)
{
    return span_equal(span_text(builtin->worker_name), worker_name);
}

static struct worker_view in_process_view(const struct catalogue_sources *sources,
                                          const struct in_process_worker *worker)
{
    size_t count = 0;
    const struct builtin_function *builtins = builtin_functions(&count);
    struct worker_view view = {
        .name = span_text(worker->name),
        .description = span_text(worker->description),
        .version = span_text(WEIR_VERSION),
        .id = span_text(worker->name),
        .space = SPAN_LITERAL("default"),
        .runtime = SPAN_LITERAL("weir"),
        .status = SPAN_LITERAL("available"),
        .connected_at_ms = routes_opened_at(sources->routes),
    };
    for (size_t index = 0; index < count; index++)
        view.function_count += builtin_is_of(&builtins[index], view.name);
    return view;
}

static struct worker_view session_view(const struct session *session)
{
    const struct facts *facts = &session->facts;
    struct worker_view view = {
        .session = session,
        .name = facts->name,
        .description = facts->description,
        .version = facts->version,
        .id = span_text(session->worker_id),
        .space = session_space(session),
        .runtime = facts->runtime.data ? facts->runtime : SPAN_LITERAL("unknown"),
        .os = facts->os,
        .status = SPAN_LITERAL("connected"),
        .isolation = facts->isolation,
        .ip_address = text_or_nil(session->ip_address),
        .connected_at_ms = session->connected_at_ms,
        .active_invocations = session->executing_count,
    };
    const struct registration *registration = session->registrations;
    for (; registration; registration = registration->next_of_session)
        view.function_count += registration->function->owner == registration;
    return view;
}

static struct worker_view view_of_subject(const struct catalogue_sources *sources,
                                          const void *subject)
{
    for (unsigned index = 0; index < IN_PROCESS_COUNT; index++)
        if (subject == &in_process_workers[index])
            return in_process_view(sources, &in_process_workers[index]);
    return session_view(subject);
}

static void print_worker_fields(struct printer *printer, const struct worker_view *view)
{
    print_text_or_null(printer, "name", view->name);
    print_text_or_null(printer, "description", view->description);
    print_text_or_null(printer, "version", view->version);
    print_text(printer, "id", view->id);
    print_text(printer, "namespace", view->space);
    print_text(printer, "runtime", view->runtime);
    print_text_or_null(printer, "os", view->os);
    print_text(printer, "status", view->status);
    print_number(printer, "function_count", view->function_count);
    print_number(printer, "connected_at_ms", view->connected_at_ms);
    print_number(printer, "active_invocations", view->active_invocations);
    print_text_or_null(printer, "isolation", view->isolation);
    print_text_or_null(printer, "ip_address", view->ip_address);
}

/* ---- list ---- */

static void workers_list_add(struct entries *entries, const struct input *input,
                             const struct worker_view *view, const void *subject)
{
    if (input_finds(input, view->name, view->description) &&
        input_equals(input, INPUT_RUNTIME, view->runtime) &&
        input_equals(input, INPUT_STATUS, view->status))
        entries_add(entries, view->name, view->id, subject);
}

void workers_list(const struct catalogue_sources *sources, const struct input *input,
                  struct printer *printer, struct catalogue_problem *problem)
{
    struct entries entries = {0};
    (void)problem;
    for (unsigned index = 0; index < IN_PROCESS_COUNT; index++) {
        struct worker_view view = in_process_view(sources, &in_process_workers[index]);
        workers_list_add(&entries, input, &view, &in_process_workers[index]);
    }
    size_t bucket = 0;
    struct table_node *node = NULL;
    while ((node = table_walk(routes_sessions(sources->routes), &bucket, node))) {
        const struct session *session = TABLE_OWNER(node, struct session, node);
        struct worker_view view = session_view(session);
        if (session->facts.has_pid)
            workers_list_add(&entries, input, &view, session);
    }
    entries_sort(&entries);
    print_raw(printer, "{\"workers\":[");
    for (size_t index = 0; index < entries.count; index++) {
        struct worker_view view = view_of_subject(sources, entries.entries[index].subject);
        print_element(printer, "{");
        print_worker_fields(printer, &view);
        print_raw(printer, "}");
    }
    print_raw(printer, "]}");
    if (printer->status == WEIR_OK)
        printer->status = entries.status;
    entries_fini(&entries);
}

/* ---- info ---- */

static void print_entries(struct printer *printer, struct entries *entries)
{
    if (printer->status == WEIR_OK)
        printer->status = entries->status;
    entries_sort(entries);
}

static void print_worker_functions(struct printer *printer, const struct worker_view *view)
{
    struct entries entries = {0};
    size_t count = 0;
    const struct builtin_function *builtins = builtin_functions(&count);
    print_key(printer, "functions");
    print_raw(printer, "[");
    for (size_t index = 0; index < count && !view->session; index++) {
        struct function_view function = builtin_view_of(&builtins[index]);
        if (builtin_is_of(&builtins[index], view->name))
            print_function_entry(printer, &function);
    }
    const struct registration *registration = view->session ? view->session->registrations : NULL;
    for (; registration; registration = registration->next_of_session)
        if (registration->function->owner == registration)
            entries_add(&entries, function_id(registration->function),
                        function_space(registration->function), registration->function);
    print_entries(printer, &entries);
    for (size_t index = 0; index < entries.count; index++) {
        struct function_view function = function_view_of(entries.entries[index].subject);
        print_function_entry(printer, &function);
    }
    print_raw(printer, "]");
    entries_fini(&entries);
}

static void print_worker_types(struct printer *printer, const struct catalogue_sources *sources,
                               const struct worker_view *view)
{
    struct entries entries = {0};
    size_t count = 0;
    const struct trigger_type *types = trigger_types_all(&count);
    print_key(printer, "trigger_types");
    print_raw(printer, "[");
    for (size_t index = 0; index < count && !view->session; index++) {
        struct type_view type = own_type_view_of(sources, &types[index]);
        if (span_equal(type.worker_name, view->name))
            print_type_entry(printer, &type);
    }
    const struct trigger_provider *provider = NULL;
    if (view->session && view->session->triggers)
        provider = view->session->triggers->providers;
    for (; provider; provider = provider->next_of_owner)
        entries_add(&entries, trigger_group_name(provider->group), provider->space, provider);
    print_entries(printer, &entries);
    for (size_t index = 0; index < entries.count; index++) {
        struct type_view type = type_view_of(entries.entries[index].subject);
        print_type_entry(printer, &type);
    }
    print_raw(printer, "]");
    entries_fini(&entries);
}

static void print_worker_triggers(struct printer *printer, const struct worker_view *view)
{
    struct entries entries = {0};
    const struct trigger *trigger = NULL;
    if (view->session && view->session->triggers)
        trigger = view->session->triggers->triggers;
    for (; trigger; trigger = trigger->next_of_owner)
        if (trigger_is_live(trigger))
            entries_add(&entries, trigger->id, trigger->function, trigger);
    print_key(printer, "registered_triggers");
    print_raw(printer, "[");
    print_entries(printer, &entries);
    for (size_t index = 0; index < entries.count; index++)
        print_trigger_entry(printer, entries.entries[index].subject);
    print_raw(printer, "]");
    entries_fini(&entries);
}

static void print_worker_info(struct printer *printer, const struct catalogue_sources *sources,
                              const struct worker_view *view)
{
    print_raw(printer, "{\"worker\":{");
    print_worker_fields(printer, view);
    if (view->session && view->session->facts.has_pid)
        print_number(printer, "pid", view->session->facts.pid);
    print_bool(printer, "internal", !view->session);
    print_raw(printer, "}");
    print_worker_functions(printer, view);
    print_worker_types(printer, sources, view);
    print_worker_triggers(printer, view);
    print_raw(printer, "}");
}

void workers_info(const struct catalogue_sources *sources, const struct input *input,
                  struct printer *printer, struct catalogue_problem *problem)
{
    struct span name = input->texts[INPUT_NAME];
    struct span space = space_or_default(input->texts[INPUT_NAMESPACE]);
    if (!name.data) {
        catalogue_refuse(printer, problem, "deserialization_error",
                         "engine::workers::info: name is missing");
        return;
    }
    const struct session *session = routes_session_named(sources->routes, space, name);
    if (session) {
        struct worker_view view = session_view(session);
        print_worker_info(printer, sources, &view);
        return;
    }
    for (unsigned index = 0; index < IN_PROCESS_COUNT; index++) {
        struct worker_view view = in_process_view(sources, &in_process_workers[index]);
        if (span_equal(view.name, name) && span_equal(view.space, space)) {
            print_worker_info(printer, sources, &view);
            return;
        }
    }
    catalogue_refuse(printer, problem, "NOT_FOUND", "no such worker is in the namespace");
}

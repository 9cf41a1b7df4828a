#include "broker/catalogue_inside.h"

enum { SUMMARY_CHARACTERS_MAX = 80 };

const struct trigger *live_trigger_next(const struct catalogue_sources *sources, size_t *bucket,
                                        const struct trigger *previous)
{
    const struct table_node *at = previous ? &previous->node : NULL;
    struct table_node *node = NULL;
    if (!sources->registry)
        return NULL;
    while ((node = table_walk(registry_all(sources->registry), bucket, at))) {
        const struct trigger *trigger = TABLE_OWNER(node, struct trigger, node);
        if (trigger_is_live(trigger))
            return trigger;
        at = node;
    }
    return NULL;
}

/* ---- types ---- */

struct type_view type_view_of(const struct trigger_provider *provider)
{
    struct span id = trigger_group_name(provider->group);
    return (struct type_view){
        .group = provider->group,
        .space = provider->space,
        .id = id,
        .worker_name = session_worker_name(provider->owner->session, id),
        .description = provider->description,
        .config_schema = provider->config_schema,
        .call_schema = provider->call_schema,
        .provider = provider,
    };
}

struct type_view own_type_view_of(const struct catalogue_sources *sources,
                                  const struct trigger_type *type)
{
    struct span id = span_text(type->name);
    return (struct type_view){
        .group = sources->registry ? registry_group(sources->registry, id) : NULL,
        .space = SPAN_LITERAL("default"),
        .id = id,
        .worker_name = span_text(type->worker_name),
        .description = span_text(type->description),
    };
}

/* One of weir's own types points into their table. */
static struct type_view view_of_subject(const struct catalogue_sources *sources,
                                        const void *subject)
{
    size_t count = 0;
    const struct trigger_type *types = trigger_types_all(&count);
    for (size_t index = 0; index < count; index++)
        if (subject == &types[index])
            return own_type_view_of(sources, &types[index]);
    return type_view_of(subject);
}

static void print_type_fields(struct printer *printer, const struct type_view *view)
{
    print_text(printer, "id", view->id);
    print_text(printer, "namespace", view->space);
    print_text(printer, "worker_name", view->worker_name);
    print_shown(printer, "description", view->description, true);
}

void print_type_entry(struct printer *printer, const struct type_view *view)
{
    print_element(printer, "{");
    print_type_fields(printer, view);
    print_raw(printer, "}");
}

static uint64_t type_instances(const struct type_view *view)
{
    uint64_t count = 0;
    const struct trigger *trigger = view->group ? view->group->triggers : NULL;
    for (; trigger; trigger = trigger->next_of_group)
        count += trigger_is_live(trigger) && trigger->provider == view->provider;
    return count;
}

static void print_type_detail(struct printer *printer, const struct type_view *view)
{
    print_element(printer, "{");
    print_type_fields(printer, view);
    print_json(printer, "configuration_schema", view->config_schema);
    print_json(printer, "request_schema", view->call_schema);
    print_number(printer, "instance_count", type_instances(view));
    print_raw(printer, "}");
}

static bool type_passes(const struct input *input, const struct type_view *view)
{
    return (input->include_internal || !id_is_internal(view->id)) &&
           input_prefixes(input, view->id) && input_finds(input, view->id, view->description) &&
           input_has_worker(input, view->worker_name);
}

static void types_collect(const struct catalogue_sources *sources, const struct input *input,
                          struct entries *entries)
{
    size_t count = 0;
    const struct trigger_type *types = trigger_types_all(&count);
    for (size_t index = 0; index < count; index++) {
        struct type_view view = own_type_view_of(sources, &types[index]);
        if (type_passes(input, &view))
            entries_add(entries, view.id, view.space, &types[index]);
    }
    size_t bucket = 0;
    struct table_node *node = NULL;
    while (sources->registry &&
           (node = table_walk(registry_providers(sources->registry), &bucket, node))) {
        const struct trigger_provider *provider = TABLE_OWNER(node, struct trigger_provider, node);
        struct type_view view = type_view_of(provider);
        if (type_passes(input, &view))
            entries_add(entries, view.id, view.space, provider);
    }
    entries_sort(entries);
}

void registry_list(const struct catalogue_sources *sources, const struct input *input,
                   struct printer *printer, struct catalogue_problem *problem)
{
    struct entries entries = {0};
    (void)problem;
    types_collect(sources, input, &entries);
    print_raw(printer, "{\"triggers\":[");
    for (size_t index = 0; index < entries.count; index++) {
        struct type_view view = view_of_subject(sources, entries.entries[index].subject);
        print_type_entry(printer, &view);
    }
    print_raw(printer, "]}");
    if (printer->status == WEIR_OK)
        printer->status = entries.status;
    entries_fini(&entries);
}

static bool type_find(const struct catalogue_sources *sources, struct span space, struct span id,
                      struct type_view *view)
{
    const struct trigger_type *own = trigger_type_by_name(id);
    if (own) {
        *view = own_type_view_of(sources, own);
        return span_equal(view->space, space);
    }
    const struct trigger_group *group =
        sources->registry ? registry_group(sources->registry, id) : NULL;
    const struct trigger_provider *provider = group ? group->providers : NULL;
    while (provider && !span_equal(provider->space, space))
        provider = provider->next_of_group;
    if (provider)
        *view = type_view_of(provider);
    return provider != NULL;
}

void registry_info(const struct catalogue_sources *sources, const struct input *input,
                   struct printer *printer, struct catalogue_problem *problem)
{
    struct span id = input->texts[INPUT_ID];
    struct span space = space_or_default(input->texts[INPUT_NAMESPACE]);
    struct type_view view;
    if (!id.data)
        catalogue_refuse(printer, problem, "deserialization_error",
                         "engine::triggers::info: id is missing");
    else if (type_find(sources, space, id, &view))
        print_type_detail(printer, &view);
    else
        catalogue_refuse(printer, problem, "NOT_FOUND",
                         "no such trigger type is provided in the namespace");
}

/* ---- registered triggers ---- */

static struct span trigger_worker_name(const struct trigger *trigger)
{
    return session_worker_name(trigger->owner->session, trigger->function);
}

static void print_trigger_fields(struct printer *printer, const struct trigger *trigger)
{
    print_text(printer, "id", trigger->id);
    print_text(printer, "trigger_type", trigger_group_name(trigger->group));
    print_text(printer, "function_id", trigger->function);
    print_text(printer, "worker_name", trigger_worker_name(trigger));
    print_json(printer, "config", trigger->config);
}

/* The config's text, cut at SUMMARY_CHARACTERS_MAX characters with an ellipsis behind. */
static void print_summary(struct printer *printer, struct span config)
{
    char text[4 * SUMMARY_CHARACTERS_MAX + sizeof "…"];
    size_t bytes = 0, characters = 0;
    if (!json_is_utf8(config))
        return;
    for (; bytes < config.bytes; bytes++) {
        bool is_start = ((unsigned char)config.data[bytes] & 0xC0) != 0x80;
        if (is_start && ++characters > SUMMARY_CHARACTERS_MAX)
            break;
    }
    memcpy(text, config.data, bytes);
    if (bytes < config.bytes) {
        memcpy(text + bytes, "…", sizeof "…" - 1);
        bytes += sizeof "…" - 1;
    }
    print_text(printer, "config_summary", span_of(text, bytes));
}

void print_trigger_entry(struct printer *printer, const struct trigger *trigger)
{
    print_element(printer, "{");
    print_trigger_fields(printer, trigger);
    print_summary(printer, trigger->config);
    print_raw(printer, "}");
}

static bool trigger_passes(const struct input *input, const struct trigger *trigger)
{
    struct span type = trigger_group_name(trigger->group);
    if (!input->include_internal && (id_is_internal(type) || id_is_internal(trigger->function)))
        return false;
    return input_equals(input, INPUT_TRIGGER_TYPE, type) &&
           input_equals(input, INPUT_FUNCTION_ID, trigger->function) &&
           input_has_worker(input, trigger_worker_name(trigger)) &&
           (input_finds(input, trigger->id, type) ||
            input_finds(input, trigger->function, (struct span){0}));
}

void registered_list(const struct catalogue_sources *sources, const struct input *input,
                     struct printer *printer, struct catalogue_problem *problem)
{
    struct entries entries = {0};
    size_t bucket = 0;
    const struct trigger *trigger = NULL;
    (void)problem;
    while ((trigger = live_trigger_next(sources, &bucket, trigger)))
        if (trigger_passes(input, trigger))
            entries_add(&entries, trigger->id, span_text(trigger->owner->session->worker_id),
                        trigger);
    entries_sort(&entries);
    print_raw(printer, "{\"registered_triggers\":[");
    for (size_t index = 0; index < entries.count; index++)
        print_trigger_entry(printer, entries.entries[index].subject);
    print_raw(printer, "]}");
    if (printer->status == WEIR_OK)
        printer->status = entries.status;
    entries_fini(&entries);
}

static void print_trigger_detail(struct printer *printer, const struct catalogue_sources *sources,
                                 const struct trigger *trigger)
{
    struct function_view function;
    struct type_view type = trigger->group->own ? own_type_view_of(sources, trigger->group->own)
                                                : type_view_of(trigger->provider);
    print_element(printer, "{");
    print_trigger_fields(printer, trigger);
    print_json(printer, "metadata", trigger->metadata);
    print_key(printer, "trigger");
    print_type_detail(printer, &type);
    print_key(printer, "function");
    if (function_view_find(sources, trigger->space, trigger->function, &function))
        print_function_detail(printer, sources, &function);
    else
        print_raw(printer, "null");
    print_raw(printer, "}");
}

void registered_info(const struct catalogue_sources *sources, const struct input *input,
                     struct printer *printer, struct catalogue_problem *problem)
{
    struct span id = input->texts[INPUT_ID];
    const struct trigger *trigger =
        id.data && sources->registry ? registry_live(sources->registry, id) : NULL;
    if (!id.data)
        catalogue_refuse(printer, problem, "deserialization_error",
                         "engine::registered-triggers::info: id is missing");
    else if (trigger)
        print_trigger_detail(printer, sources, trigger);
    else
        catalogue_refuse(printer, problem, "NOT_FOUND", "no live trigger has this id");
}

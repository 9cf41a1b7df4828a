#include "gateway/access.h"

#include <stdlib.h>

#include "shm/limits.h"
#include "shm/stream_functions.h"
#include "shm/trigger_types.h"

/* Texts of one list, decoded, one behind the other in access.text. */
struct access_entry {
    struct span name_space; /* of `namespaces` only */
    struct span text;
};

struct access_list {
    uint32_t first, count; /* in access.entries */
};

struct access {
    const struct settings *settings;
    const struct settings_listener *listener;
    struct access_list allowed, forbidden, granted, types;
    bool uses_all_types;
    bool registers_functions, registers_types;
    struct span context, prefix;
    struct access_entry *entries;
    uint32_t entry_count, entry_capacity;
    struct buffer text;
};

/* ---- patterns ---- */

/* The pieces between stars, each looked for behind the one before: the leftmost place is as good as
 * any. The first piece is a start, the last one an end. memmem() is linear (glibc, two-way). */
bool access_pattern_matches(struct span pattern, struct span text)
{
    const char *star = pattern.bytes == 0 ? NULL : memchr(pattern.data, '*', pattern.bytes);
    if (star == NULL)
        return span_equal(pattern, text);
    size_t piece = (size_t)(star - pattern.data);
    if (piece > text.bytes || (piece > 0 && memcmp(pattern.data, text.data, piece) != 0))
        return false;
    text = span_of(text.data + piece, text.bytes - piece);
    pattern = span_of(star + 1, pattern.bytes - piece - 1);
    while (pattern.bytes > 0 && (star = memchr(pattern.data, '*', pattern.bytes)) != NULL) {
        piece = (size_t)(star - pattern.data);
        if (piece > text.bytes)
            return false;
        if (piece > 0) {
            const char *at = memmem(text.data, text.bytes, pattern.data, piece);
            if (at == NULL)
                return false;
            size_t used = (size_t)(at - text.data) + piece;
            text = span_of(text.data + used, text.bytes - used);
        }
        pattern = span_of(star + 1, pattern.bytes - piece - 1);
    }
    return pattern.bytes <= text.bytes &&
           (pattern.bytes == 0 ||
            memcmp(text.data + text.bytes - pattern.bytes, pattern.data, pattern.bytes) == 0);
}

/* ---- metadata ---- */

static bool number_is_integer(struct span number)
{
    for (size_t i = 0; i < number.bytes; i++) {
        if (number.data[i] == '.' || number.data[i] == 'e' || number.data[i] == 'E')
            return false;
    }
    return true;
}

static double number_read(struct span number)
{
    char text[64];
    if (number.bytes >= sizeof text)
        return 0;
    memcpy(text, number.data, number.bytes);
    text[number.bytes] = '\0';
    return strtod(text, NULL);
}

bool access_literal_equals(struct span literal, struct json_value value)
{
    if (value.kind == JSON_ABSENT || value.kind == JSON_STRING)
        return false;
    if (span_equal(literal, value.text))
        return true;
    struct json_value wanted;
    if (value.kind != JSON_NUMBER || json_scan(literal, 1, &wanted, NULL) != WEIR_OK ||
        wanted.kind != JSON_NUMBER)
        return false;
    /* Integers are exact in their text; doubles would take distant ones for equal. */
    if (number_is_integer(literal) && number_is_integer(value.text))
        return false;
    return literal.bytes < 64 && value.text.bytes < 64 &&
           number_read(literal) == number_read(value.text);
}

static bool string_matches(struct span pattern, struct json_value string)
{
    char scratch[NAME_BYTES_MAX];
    if (string.kind != JSON_STRING || string.text.bytes > sizeof scratch)
        return false;
    struct span text = span_of(string.text.data + 1, string.text.bytes - 2);
    if (string.has_escape)
        text = span_of(scratch, json_unescape(scratch, string));
    return access_pattern_matches(pattern, text);
}

static bool condition_holds(const struct settings *settings,
                            const struct settings_condition *condition, struct json_value value)
{
    struct span wanted = settings_text_span(settings, condition->value);
    switch (condition->kind) {
    case SETTINGS_CONDITION_STRING:
        return value.kind == JSON_STRING && json_string_equals(value, wanted);
    case SETTINGS_CONDITION_PATTERN:
        return string_matches(wanted, value);
    case SETTINGS_CONDITION_LITERAL:
        return access_literal_equals(wanted, value);
    }
    return false;
}

/* The member `key` of a validated object; the last one wins (PROTOCOL 1.4). */
static struct json_value metadata_member(struct json_value metadata, struct span key)
{
    struct json_value found = {0}, name, value;
    size_t cursor = 0;
    while (json_next(metadata, &cursor, &name, &value) == WEIR_OK) {
        if (json_string_equals(name, key))
            found = value;
    }
    return found;
}

static bool rule_accepts(const struct settings *settings, const struct settings_rule *rule,
                         struct json_value metadata)
{
    if (metadata.kind != JSON_OBJECT)
        return false;
    for (uint32_t i = 0; i < rule->condition_count; i++) {
        const struct settings_condition *condition =
            &settings->conditions[rule->condition_first + i];
        struct json_value value =
            metadata_member(metadata, settings_text_span(settings, condition->key));
        if (!condition_holds(settings, condition, value))
            return false;
    }
    return true;
}

/* ---- calls ---- */

static bool is_infrastructure(struct span function)
{
    static const char *const ids[] = {"engine::channels::create", "engine::workers::register",
                                      "engine::log::info",        "engine::log::warn",
                                      "engine::log::error",       "engine::log::debug",
                                      "engine::log::trace",       "engine::baggage::get",
                                      "engine::baggage::set",     "engine::baggage::get_all"};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        if (span_equal(function, span_text(ids[i])))
            return true;
    }
    return false;
}

static bool span_starts_with(struct span text, struct span start)
{
    return text.bytes >= start.bytes && memcmp(text.data, start.data, start.bytes) == 0;
}

bool access_is_engine_function(struct span function)
{
    return span_starts_with(function, SPAN_LITERAL("engine::")) &&
           !span_starts_with(function, SPAN_LITERAL("engine::queue::"));
}

/* A trigger made by these belongs to nobody, so nobody's rights bound what it calls. */
static bool is_for_trusted_workers(struct span function)
{
    return span_equal(function, SPAN_LITERAL("engine::register_trigger")) ||
           span_equal(function, SPAN_LITERAL("engine::unregister_trigger"));
}

static bool list_has(const struct access *access, struct access_list list, struct span function)
{
    for (uint32_t i = 0; i < list.count; i++) {
        if (span_equal(access->entries[list.first + i].text, function))
            return true;
    }
    return false;
}

static bool list_matches(const struct access *access, struct access_list list,
                         struct span name_space, struct span function)
{
    for (uint32_t i = 0; i < list.count; i++) {
        const struct access_entry *entry = &access->entries[list.first + i];
        if ((name_space.data == NULL || span_equal(entry->name_space, name_space)) &&
            access_pattern_matches(entry->text, function))
            return true;
    }
    return false;
}

static enum access_decision access_apply_rules(const struct access *access, struct span name_space,
                                               struct span function, bool is_builtin,
                                               const struct json_value *metadata)
{
    const struct settings *settings = access->settings;
    bool depends = false;
    for (uint32_t i = 0; i < access->listener->rule_count; i++) {
        const struct settings_rule *rule = &settings->rules[access->listener->rule_first + i];
        if (!span_equal(settings_text_span(settings, rule->name_space), name_space))
            continue;
        if (rule->condition_count == 0) {
            if (access_pattern_matches(settings_text_span(settings, rule->match), function))
                return ACCESS_ALLOWED;
        } else if (is_builtin) {
            continue; /* it has no metadata */
        } else if (metadata == NULL) {
            depends = true;
        } else if (rule_accepts(settings, rule, *metadata)) {
            return ACCESS_ALLOWED;
        }
    }
    return depends ? ACCESS_ASK : ACCESS_REFUSED;
}

enum access_decision access_call(const struct access *access, struct span name_space,
                                 struct span function, const struct json_value *metadata)
{
    if (!access->listener->has_rbac)
        return ACCESS_ALLOWED;
    bool is_builtin =
        stream_function_by_name(function) != NULL || access_is_engine_function(function);
    if (is_builtin || name_space.data == NULL)
        name_space = SPAN_LITERAL("default");
    bool is_default = span_equal(name_space, SPAN_LITERAL("default"));
    if (is_for_trusted_workers(function) ||
        list_matches(access, access->forbidden, (struct span){0}, function))
        return ACCESS_REFUSED;
    if ((is_default && is_infrastructure(function)) ||
        list_matches(access, access->granted, name_space, function) ||
        (is_default && list_has(access, access->allowed, function)))
        return ACCESS_ALLOWED;
    return access_apply_rules(access, name_space, function, is_builtin, metadata);
}

bool access_is_open(const struct access *access)
{
    return !access->listener->has_rbac;
}

bool access_may_register_functions(const struct access *access)
{
    return access->registers_functions;
}

bool access_may_register_trigger_types(const struct access *access)
{
    return access->registers_types;
}

bool access_may_use_trigger_type(const struct access *access, struct span type)
{
    const struct trigger_type *own = trigger_type_by_name(type);
    bool needs_name = access->listener->has_rbac && own != NULL && own->kind != TRIGGER_STREAM;
    return (access->uses_all_types && !needs_name) || list_has(access, access->types, type);
}

struct span access_context(const struct access *access)
{
    return access->context;
}

size_t access_file_name(const struct access *access, struct span own, char *out)
{
    struct span prefix = access->prefix;
    size_t start_bytes = prefix.bytes == 0 ? 0 : prefix.bytes + 2;
    if (out != NULL && start_bytes > 0) {
        memcpy(out, prefix.data, prefix.bytes);
        memcpy(out + prefix.bytes, "::", 2);
    }
    if (out != NULL && own.bytes > 0)
        memcpy(out + start_bytes, own.data, own.bytes);
    return start_bytes + own.bytes;
}

struct span access_show_name(const struct access *access, struct span filed)
{
    struct span prefix = access->prefix;
    if (prefix.bytes == 0 || filed.bytes < prefix.bytes + 2 ||
        memcmp(filed.data, prefix.data, prefix.bytes) != 0 ||
        memcmp(filed.data + prefix.bytes, "::", 2) != 0)
        return filed;
    return span_of(filed.data + prefix.bytes + 2, filed.bytes - prefix.bytes - 2);
}

/* ---- the auth answer ---- */

enum {
    ALLOWED,
    FORBIDDEN,
    NAMESPACES,
    TYPES,
    TYPE_REGISTRATION,
    REGISTRATION,
    CONTEXT,
    PREFIX,
    FIELDS
};
static const char *const field_names[FIELDS] = {
    "allowed_functions",
    "forbidden_functions",
    "namespaces",
    "allowed_trigger_types",
    "allow_trigger_type_registration",
    "allow_function_registration",
    "context",
    "function_registration_prefix",
};

static bool is_missing(struct json_value value)
{
    return value.kind == JSON_ABSENT || value.kind == JSON_NULL;
}

/* A copy of `string`, decoded; there is room for all of the answer. */
static struct span access_keep(struct access *access, struct json_value string)
{
    char *out = access->text.data + access->text.bytes;
    size_t bytes = json_unescape(out, string);
    access->text.bytes += bytes;
    return span_of(out, bytes);
}

static bool access_add(struct access *access, struct span name_space, struct json_value string)
{
    if (access->entry_count == access->entry_capacity) {
        uint32_t capacity = access->entry_capacity == 0 ? 16 : access->entry_capacity * 2;
        if (capacity > ACCESS_PATTERNS_MAX)
            return false;
        struct access_entry *entries = realloc(access->entries, capacity * sizeof *entries);
        if (entries == NULL)
            return false;
        access->entries = entries;
        access->entry_capacity = capacity;
    }
    struct access_entry *entry = &access->entries[access->entry_count];
    *entry = (struct access_entry){name_space, access_keep(access, string)};
    access->entry_count++;
    return access->text.bytes <= ACCESS_TEXT_BYTES_MAX;
}

static const char *access_read_list(struct access *access, struct json_value value,
                                    struct span name_space, struct access_list *list)
{
    struct json_value element;
    size_t cursor = 0;
    if (list->count == 0)
        list->first = access->entry_count;
    if (value.kind != JSON_ARRAY)
        return "a list of functions or trigger types is no array of strings";
    while (json_next(value, &cursor, NULL, &element) == WEIR_OK) {
        if (element.kind != JSON_STRING)
            return "a list of functions or trigger types is no array of strings";
        if (!access_add(access, name_space, element))
            return "the lists are too long";
        list->count++;
    }
    return NULL;
}

static const char *access_read_namespaces(struct access *access, struct json_value value)
{
    struct json_value key, patterns;
    size_t cursor = 0;
    const char *problem = NULL;
    if (value.kind != JSON_OBJECT)
        return "namespaces is no object";
    while (problem == NULL && json_next(value, &cursor, &key, &patterns) == WEIR_OK) {
        struct span name_space = access_keep(access, key);
        problem = access_read_list(access, patterns, name_space, &access->granted);
    }
    return problem;
}

static const char *access_read_lists(struct access *access, const struct json_value *values)
{
    const struct span nowhere = {0};
    const char *problem = NULL;
    if (!is_missing(values[ALLOWED]))
        problem = access_read_list(access, values[ALLOWED], nowhere, &access->allowed);
    if (problem == NULL && !is_missing(values[FORBIDDEN]))
        problem = access_read_list(access, values[FORBIDDEN], nowhere, &access->forbidden);
    if (problem == NULL && !is_missing(values[NAMESPACES]))
        problem = access_read_namespaces(access, values[NAMESPACES]);
    access->uses_all_types = is_missing(values[TYPES]);
    if (problem == NULL && !access->uses_all_types)
        problem = access_read_list(access, values[TYPES], nowhere, &access->types);
    return problem;
}

/* False: there, and no boolean. */
static bool access_read_flag(struct json_value value, bool fallback, bool *flag)
{
    *flag = is_missing(value) ? fallback : value.kind == JSON_TRUE;
    return is_missing(value) || value.kind == JSON_TRUE || value.kind == JSON_FALSE;
}

static const char *access_read(struct access *access, struct span result)
{
    struct json_value values[FIELDS];
    enum weir_status status =
        json_scan_object(result, JSON_DEPTH_MAX, field_names, FIELDS, values, NULL);
    if (status != WEIR_OK)
        return "it is no object, or a key stands twice";
    const char *problem = access_read_lists(access, values);
    if (problem != NULL)
        return problem;
    if (!access_read_flag(values[TYPE_REGISTRATION], false, &access->registers_types) ||
        !access_read_flag(values[REGISTRATION], true, &access->registers_functions))
        return "allow_trigger_type_registration or allow_function_registration is no boolean";
    if (!is_missing(values[PREFIX])) {
        if (values[PREFIX].kind != JSON_STRING)
            return "function_registration_prefix is no string";
        access->prefix = access_keep(access, values[PREFIX]);
        if (access->prefix.bytes > NAME_BYTES_MAX / 2)
            return "function_registration_prefix is too long";
    }
    if (!is_missing(values[CONTEXT])) {
        char *out = access->text.data + access->text.bytes;
        size_t bytes = json_compact(out, values[CONTEXT]);
        access->text.bytes += bytes;
        access->context = span_of(out, bytes);
    }
    return NULL;
}

enum weir_status access_make(struct access **access, const struct settings *settings,
                             const struct settings_listener *listener, struct span result,
                             const char **problem)
{
    *problem = "the gateway is out of memory";
    struct access *made = calloc(1, sizeof *made);
    if (made == NULL)
        return WEIR_NO_MEMORY;
    made->settings = settings;
    made->listener = listener;
    made->uses_all_types = true;
    made->registers_functions = true;
    made->registers_types = true;
    made->context = SPAN_LITERAL("{}");
    buffer_init(&made->text, ACCESS_RESULT_BYTES_MAX + 1);
    enum weir_status status = WEIR_OK;
    if (result.bytes > ACCESS_RESULT_BYTES_MAX) {
        *problem = "it is larger than 1 MiB";
        status = WEIR_TOO_LARGE;
    } else if (result.data != NULL) {
        /* Decoded and compacted parts never take more than the answer itself. */
        status = buffer_reserve(&made->text, result.bytes + 1);
        const char *wrong = status == WEIR_OK ? access_read(made, result) : NULL;
        if (wrong != NULL) {
            *problem = wrong;
            status = WEIR_INVALID;
        }
    }
    if (status != WEIR_OK) {
        access_free(made);
        return status;
    }
    *access = made;
    return WEIR_OK;
}

void access_free(struct access *access)
{
    if (access == NULL)
        return;
    free(access->entries);
    buffer_fini(&access->text);
    free(access);
}

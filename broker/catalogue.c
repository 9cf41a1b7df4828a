#include "broker/catalogue.h"

#include <stdlib.h>

#include "shm/limits.h"

enum { SHOWN_CHARACTERS_MAX = 280, FILTER_WORKERS_MAX = 256 };

/* ---- builtin ids ---- */

static const struct catalogue_entry builtin_entries[] = {
#define BUILTIN(name, worker, text)                                                                \
    {                                                                                              \
        .space = {"default", 7}, .id = {name, sizeof(name) - 1},                                   \
        .worker_name = {worker, sizeof(worker) - 1}, .description = {                              \
            text,                                                                                  \
            sizeof(text) - 1                                                                       \
        }                                                                                          \
    }
    BUILTIN("stream::set", "iii-stream", "Store an item and announce the change"),
    BUILTIN("stream::get", "iii-stream", "Read an item"),
    BUILTIN("stream::delete", "iii-stream", "Remove an item and announce it"),
    BUILTIN("stream::list", "iii-stream", "All values of a group"),
    BUILTIN("stream::list_groups", "iii-stream", "The groups of a stream"),
    BUILTIN("stream::list_all", "iii-stream", "All streams with their groups"),
    BUILTIN("stream::send", "iii-stream",
            "Send an event to a group's subscribers without storing it"),
    BUILTIN("stream::update", "iii-stream", "Change an item in place by a list of operations"),
    BUILTIN("engine::functions::list", "engine", "Registered functions"),
    BUILTIN("engine::workers::register", "engine", "Announce a worker's metadata"),
    BUILTIN("engine::channels::create", "engine", "A pipe of bytes from one socket to another"),
#undef BUILTIN
};
enum { BUILTIN_COUNT = sizeof builtin_entries / sizeof builtin_entries[0] };

static bool span_starts_with(struct span text, struct span prefix)
{
    return text.bytes >= prefix.bytes &&
           (prefix.bytes == 0 || memcmp(text.data, prefix.data, prefix.bytes) == 0);
}

enum catalogue_builtin catalogue_builtin_find(struct span space, struct span id)
{
    if (!span_equal(space, SPAN_LITERAL("default")))
        return CATALOGUE_NOT_BUILTIN;
    if (span_equal(id, SPAN_LITERAL("engine::functions::list")))
        return CATALOGUE_FUNCTIONS_LIST;
    if (span_equal(id, SPAN_LITERAL("engine::workers::register")))
        return CATALOGUE_WORKERS_REGISTER;
    return CATALOGUE_NOT_BUILTIN;
}

bool catalogue_is_reserved(struct span space, struct span id)
{
    if (span_starts_with(id, SPAN_LITERAL("engine::")))
        return !span_equal(space, SPAN_LITERAL("default")) ||
               !span_starts_with(id, SPAN_LITERAL("engine::queue::"));
    for (unsigned index = 0; index < BUILTIN_COUNT;
         index++) /* stream::*: global, so in every namespace */
        if (span_equal(builtin_entries[index].id, id))
            return true;
    return false;
}

/* ---- names as they are shown ---- */

/* One character of valid UTF-8; returns its bytes. */
static size_t utf8_character(struct span text, uint32_t *character)
{
    const unsigned char *p = (const unsigned char *)text.data;
    size_t bytes = p[0] < 0x80 ? 1 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (bytes > text.bytes)
        bytes = 1;
    uint32_t value = bytes == 1 ? p[0] : p[0] & (0xFFu >> (bytes + 1));
    for (size_t index = 1; index < bytes; index++)
        value = value << 6 | (p[index] & 0x3Fu);
    *character = value;
    return bytes;
}

static bool character_is_shown(uint32_t character)
{
    return character >= 0x20 && !(character >= 0x7F && character <= 0x9F) &&
           !(character >= 0x202A && character <= 0x202E) &&
           !(character >= 0x2066 && character <= 0x2069) && character != 0x2028 &&
           character != 0x2029;
}

size_t catalogue_clean(char *out, struct span text)
{
    size_t written = 0;
    size_t characters = 0;
    for (size_t at = 0; at < text.bytes && characters < SHOWN_CHARACTERS_MAX;) {
        uint32_t character = 0;
        size_t bytes = utf8_character(span_of(text.data + at, text.bytes - at), &character);
        if (character_is_shown(character) && (written > 0 || character != ' ')) {
            memcpy(out + written, text.data + at, bytes);
            written += bytes;
            characters++;
        }
        at += bytes;
    }
    while (written > 0 && out[written - 1] == ' ')
        written--;
    return written;
}

char *catalogue_clean_name(struct json_value name)
{
    if (name.kind != JSON_STRING)
        return NULL;
    char *decoded = malloc(name.text.bytes + 1);
    char *cleaned = malloc(name.text.bytes + 1);
    size_t bytes = 0;
    if (decoded && cleaned)
        bytes = catalogue_clean(cleaned, span_of(decoded, json_unescape(decoded, name)));
    free(decoded);
    if (bytes == 0) {
        free(cleaned);
        return NULL;
    }
    cleaned[bytes] = 0;
    return cleaned;
}

/* ---- filters ---- */

struct catalogue {
    struct catalogue_entry *entries;
    size_t count;
    size_t capacity;
    bool include_internal;
    bool by_search, by_prefix, by_worker, by_workers;
    struct span search; /* lower case */
    struct span prefix;
    struct span worker;
    struct span workers[FILTER_WORKERS_MAX];
    size_t worker_count;
    char *text; /* holds the filters, decoded */
    size_t text_bytes;
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
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

/* Decode one string behind the others; there is room for the whole input. */
static struct span catalogue_keep(struct catalogue *catalogue, struct json_value value)
{
    char *out = catalogue->text + catalogue->text_bytes;
    size_t bytes = json_unescape(out, value);
    catalogue->text_bytes += bytes;
    return span_of(out, bytes);
}

/* False: there, but not a string. */
static bool catalogue_filter(struct catalogue *catalogue, struct json_value value, bool *given,
                             struct span *filter)
{
    if (value.kind == JSON_ABSENT || value.kind == JSON_NULL)
        return true;
    if (value.kind != JSON_STRING)
        return false;
    *filter = catalogue_keep(catalogue, value);
    *given = true;
    return true;
}

static const char *catalogue_filter_workers(struct catalogue *catalogue, struct json_value value)
{
    if (value.kind == JSON_ABSENT || value.kind == JSON_NULL)
        return NULL;
    if (value.kind != JSON_ARRAY)
        return "workers is not an array of strings";
    catalogue->by_workers = true;
    size_t cursor = 0;
    struct json_value element;
    while (json_next(value, &cursor, NULL, &element) == WEIR_OK) {
        if (element.kind != JSON_STRING)
            return "workers is not an array of strings";
        if (catalogue->worker_count == FILTER_WORKERS_MAX)
            return "workers names more than 256 workers";
        catalogue->workers[catalogue->worker_count++] = catalogue_keep(catalogue, element);
    }
    return NULL;
}

static const char *catalogue_read_filters(struct catalogue *catalogue, struct span input)
{
    enum { SEARCH, PREFIX, WORKER, WORKERS, INTERNAL, COUNT };
    static const char *const names[COUNT] = {"search", "prefix", "worker", "workers",
                                             "include_internal"};
    struct json_value values[COUNT];
    if (json_scan_object(input, JSON_DEPTH_MAX, names, COUNT, values, NULL) != WEIR_OK)
        return "the input is not an object";
    if (!catalogue_filter(catalogue, values[SEARCH], &catalogue->by_search, &catalogue->search))
        return "search is not a string";
    if (!catalogue_filter(catalogue, values[PREFIX], &catalogue->by_prefix, &catalogue->prefix))
        return "prefix is not a string";
    if (!catalogue_filter(catalogue, values[WORKER], &catalogue->by_worker, &catalogue->worker))
        return "worker is not a string";
    enum json_kind internal = values[INTERNAL].kind;
    if (internal != JSON_ABSENT && internal != JSON_NULL && internal != JSON_TRUE &&
        internal != JSON_FALSE)
        return "include_internal is not a boolean";
    catalogue->include_internal = internal == JSON_TRUE;
    if (catalogue->by_search) {
        char *search = catalogue->text + (catalogue->search.data - catalogue->text);
        for (size_t index = 0; index < catalogue->search.bytes; index++)
            search[index] = lower(search[index]);
    }
    return catalogue_filter_workers(catalogue, values[WORKERS]);
}

static bool metadata_is_internal(struct span metadata)
{
    static const char *const names[] = {"internal"};
    struct json_value value;
    return metadata.data &&
           json_scan_object(metadata, JSON_DEPTH_MAX, names, 1, &value, NULL) == WEIR_OK &&
           value.kind == JSON_TRUE;
}

static struct span entry_worker_name(const struct catalogue_entry *entry)
{
    if (entry->worker_name.bytes > 0)
        return entry->worker_name;
    for (size_t at = 0; at + 1 < entry->id.bytes; at++)
        if (entry->id.data[at] == ':' && entry->id.data[at + 1] == ':')
            return span_of(entry->id.data, at);
    return entry->id;
}

static bool catalogue_worker_passes(const struct catalogue *catalogue, struct span worker_name)
{
    if (catalogue->by_worker && !span_equal(catalogue->worker, worker_name))
        return false;
    if (!catalogue->by_workers)
        return true;
    for (size_t index = 0; index < catalogue->worker_count; index++)
        if (span_equal(catalogue->workers[index], worker_name))
            return true;
    return false;
}

static bool catalogue_passes(const struct catalogue *catalogue, const struct catalogue_entry *entry)
{
    if (!catalogue->include_internal) {
        if (span_starts_with(entry->id, SPAN_LITERAL("engine::")) &&
            !span_starts_with(entry->id, SPAN_LITERAL("engine::queue::")))
            return false;
        if (metadata_is_internal(entry->metadata))
            return false;
    }
    if (catalogue->by_prefix && !span_starts_with(entry->id, catalogue->prefix))
        return false;
    if (catalogue->by_search && !span_contains_lower(entry->id, catalogue->search) &&
        !(entry->description.data && span_contains_lower(entry->description, catalogue->search)))
        return false;
    return catalogue_worker_passes(catalogue, entry_worker_name(entry));
}

/* ---- listing ---- */

enum weir_status catalogue_open(struct catalogue **catalogue, struct span input,
                                const char **problem)
{
    struct catalogue *opened = calloc(1, sizeof *opened);
    if (!opened)
        return WEIR_NO_MEMORY;
    opened->text = malloc(input.bytes + 1);
    enum weir_status status = opened->text ? WEIR_OK : WEIR_NO_MEMORY;
    if (status == WEIR_OK) {
        bool nothing = input.bytes == 0 || span_equal(input, SPAN_LITERAL("null"));
        *problem = nothing ? NULL : catalogue_read_filters(opened, input);
        status = *problem ? WEIR_INVALID : WEIR_OK;
    }
    for (unsigned index = 0; index < BUILTIN_COUNT && status == WEIR_OK; index++)
        status = catalogue_add(opened, &builtin_entries[index]);
    if (status != WEIR_OK) {
        catalogue_close(opened);
        return status;
    }
    *catalogue = opened;
    return WEIR_OK;
}

void catalogue_close(struct catalogue *catalogue)
{
    if (!catalogue)
        return;
    free(catalogue->entries);
    free(catalogue->text);
    free(catalogue);
}

enum weir_status catalogue_add(struct catalogue *catalogue, const struct catalogue_entry *entry)
{
    if (!catalogue_passes(catalogue, entry))
        return WEIR_OK;
    if (catalogue->count == catalogue->capacity) {
        size_t capacity = catalogue->capacity ? catalogue->capacity * 2 : 64;
        struct catalogue_entry *entries = realloc(catalogue->entries, capacity * sizeof *entries);
        if (!entries)
            return WEIR_NO_MEMORY;
        catalogue->entries = entries;
        catalogue->capacity = capacity;
    }
    catalogue->entries[catalogue->count++] = *entry;
    return WEIR_OK;
}

static int span_compare(struct span a, struct span b)
{
    size_t bytes = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = bytes > 0 ? memcmp(a.data, b.data, bytes) : 0;
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int entry_compare(const void *left, const void *right)
{
    const struct catalogue_entry *a = left;
    const struct catalogue_entry *b = right;
    int order = span_compare(a->id, b->id);
    return order ? order : span_compare(a->space, b->space);
}

static enum weir_status print_member(struct buffer *out, const char *key, struct span text)
{
    enum weir_status status = buffer_append(out, span_text(key));
    return status == WEIR_OK ? json_append_string(out, text) : status;
}

static enum weir_status print_description(struct buffer *out, struct span description)
{
    if (!description.data || !json_is_utf8(description))
        return WEIR_OK;
    char *cleaned = malloc(description.bytes + 1);
    if (!cleaned)
        return WEIR_NO_MEMORY;
    size_t bytes = catalogue_clean(cleaned, description);
    enum weir_status status =
        bytes > 0 ? print_member(out, ",\"description\":", span_of(cleaned, bytes)) : WEIR_OK;
    free(cleaned);
    return status;
}

/* Metadata is the worker's own JSON; what is not JSON is left out, so that the answer always is. */
static enum weir_status print_metadata(struct buffer *out, struct span metadata)
{
    struct json_value value;
    if (!metadata.data || json_scan(metadata, JSON_DEPTH_MAX, &value, NULL) != WEIR_OK)
        return WEIR_OK;
    enum weir_status status = buffer_append(out, SPAN_LITERAL(",\"metadata\":"));
    return status == WEIR_OK ? buffer_append(out, value.text) : status;
}

static enum weir_status print_entry(struct buffer *out, const struct catalogue_entry *entry)
{
    enum weir_status status = print_member(out, "{\"function_id\":", entry->id);
    if (status == WEIR_OK)
        status = print_member(out, ",\"namespace\":", entry->space);
    if (status == WEIR_OK)
        status = print_member(out, ",\"worker_name\":", entry_worker_name(entry));
    if (status == WEIR_OK)
        status = print_description(out, entry->description);
    if (status == WEIR_OK)
        status = print_metadata(out, entry->metadata);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("}"));
    return status;
}

enum weir_status catalogue_print(struct catalogue *catalogue, struct buffer *out)
{
    if (catalogue->count > 0)
        qsort(catalogue->entries, catalogue->count, sizeof *catalogue->entries, entry_compare);
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{\"functions\":["));
    for (size_t index = 0; index < catalogue->count && status == WEIR_OK; index++) {
        if (index > 0)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = print_entry(out, &catalogue->entries[index]);
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("]}")) : status;
}

/* The YAML file. Three steps: read it whole (capped), replace ${NAME} in the raw text, load it as a
 * libyaml document and walk only what is known. Only known keys are ever entered, so aliases cannot
 * make the walk longer than the file. */
#include "config/settings.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

#include "config/listeners.h"
#include "config/settings_value.h"
#include "shm/json.h"

enum { SETTINGS_PLACE_BYTES = 112 };

struct settings_file {
    const char *shown_path; /* the end of the path when it is long */
    yaml_document_t *document;
    struct settings *settings;
    struct weir_error *error;
    size_t lines[SETTINGS_KEY_COUNT]; /* where each key was set in this file; 0: not yet */
    size_t memory_line;               /* of store_method: in_memory */
    size_t directory_line;            /* of store_method: file_based */
    size_t stream_line;               /* of the iii-stream entry; 0: none yet */
    size_t tokens_line;               /* of auth_tokens */
    size_t streams_line;              /* of streams */
    size_t manager_line;              /* of the plain iii-worker-manager entry */
    bool has_listeners;               /* further ones have been seen in this file */
    bool is_quiet;
};

static size_t settings_node_line(const yaml_node_t *node)
{
    return node->start_mark.line + 1;
}

static void settings_format_place(const struct settings_file *file, size_t line,
                                  char place[SETTINGS_PLACE_BYTES])
{
    (void)snprintf(place, SETTINGS_PLACE_BYTES, "%s:%zu", file->shown_path, line);
}

/* A scalar's text, or NULL for lists, mappings and scalars with a NUL inside. */
static const char *settings_node_text(const yaml_node_t *node)
{
    if (node->type != YAML_SCALAR_NODE)
        return NULL;
    const char *text = (const char *)node->data.scalar.value;
    return strlen(text) == node->data.scalar.length ? text : NULL;
}

static bool settings_node_is_plain(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* A key without value, `~` or `null`: the same as leaving the key out. */
static bool settings_node_is_null(const yaml_node_t *node)
{
    const char *text = settings_node_text(node);
    return text != NULL && settings_node_is_plain(node) &&
           (*text == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
}

static enum weir_status settings_fail_at(const struct settings_file *file, const yaml_node_t *node,
                                         const char *format, ...) WEIR_PRINTF(3, 4);
static enum weir_status settings_fail_at(const struct settings_file *file, const yaml_node_t *node,
                                         const char *format, ...)
{
    char sentence[sizeof((struct weir_error *)0)->text];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    char place[SETTINGS_PLACE_BYTES];
    settings_format_place(file, settings_node_line(node), place);
    size_t room = sizeof sentence - strlen(place) - 3;
    return weir_fail(file->error, WEIR_INVALID, "%s: %.*s", place, (int)room, sentence);
}

static void settings_note_at(const struct settings_file *file, const yaml_node_t *node,
                             const char *name)
{
    if (!file->is_quiet)
        (void)fprintf(stderr, "weir: %s:%zu: worker `%.80s` is not part of weir; passed over\n",
                      file->shown_path, settings_node_line(node), name);
}

/* ---- walking mappings ---- */

struct settings_pair {
    const yaml_node_t *key_node;
    const char *key;
    yaml_node_t *value;
};

/* OK with the next pair, EMPTY at the end, INVALID for a key that is not text. */
static enum weir_status settings_next_pair(const struct settings_file *file,
                                           const yaml_node_t *mapping, size_t *position,
                                           struct settings_pair *pair)
{
    const yaml_node_pair_t *next = mapping->data.mapping.pairs.start + *position;
    if (next >= mapping->data.mapping.pairs.top)
        return WEIR_EMPTY;
    *position += 1;
    pair->key_node = yaml_document_get_node(file->document, next->key);
    pair->value = yaml_document_get_node(file->document, next->value);
    pair->key = settings_node_text(pair->key_node);
    if (pair->key == NULL)
        return settings_fail_at(file, pair->key_node,
                                "a key must be plain text; rewrite this line");
    return WEIR_OK;
}

/* The index of `key` in `names`, also noting that it was seen; INVALID for unknown and repeated
 * keys. */
static enum weir_status settings_match_key(const struct settings_file *file,
                                           const struct settings_pair *pair,
                                           const char *const *names, size_t name_count,
                                           const char *where, unsigned *seen, size_t *index)
{
    for (size_t i = 0; i < name_count; i++) {
        if (strcmp(pair->key, names[i]) != 0)
            continue;
        if ((*seen & 1u << i) != 0)
            return settings_fail_at(file, pair->key_node,
                                    "key `%s` stands twice in %s; remove one of them", pair->key,
                                    where);
        *seen |= 1u << i;
        *index = i;
        return WEIR_OK;
    }
    char known[120] = "";
    size_t used = 0;
    for (size_t i = 0; i < name_count; i++) {
        int more =
            snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ", ", names[i]);
        if (more < 0 || (size_t)more >= sizeof known - used)
            break;
        used += (size_t)more;
    }
    return settings_fail_at(file, pair->key_node, "key `%.40s` is not known in %s; use one of: %s",
                            pair->key, where, known);
}

/* A walk over a mapping whose keys are known. */
struct settings_keys {
    const yaml_node_t *mapping;
    const char *const *names;
    size_t count;
    const char *where; /* for messages */
    unsigned seen;
    size_t position;
};

/* The next pair, and which of the names its key is. EMPTY at the end. */
static enum weir_status settings_next_key(const struct settings_file *file,
                                          struct settings_keys *keys, struct settings_pair *pair,
                                          size_t *index)
{
    enum weir_status status = settings_next_pair(file, keys->mapping, &keys->position, pair);
    if (status != WEIR_OK)
        return status;
    return settings_match_key(file, pair, keys->names, keys->count, keys->where, &keys->seen,
                              index);
}

static enum weir_status settings_need_mapping(const struct settings_file *file,
                                              const yaml_node_t *node, const char *key)
{
    if (node->type == YAML_MAPPING_NODE)
        return WEIR_OK;
    return settings_fail_at(file, node,
                            "key `%s` needs a mapping; write `key: value` lines below it", key);
}

/* `text` is what the pair says, or is taken to say; NULL: no scalar. */
static enum weir_status settings_take_text(struct settings_file *file, enum settings_key key,
                                           const struct settings_pair *pair, const char *text)
{
    if (file->lines[key] != 0)
        return settings_fail_at(file, pair->key_node,
                                "key `%s` was set on line %zu already; remove one of them",
                                pair->key, file->lines[key]);
    char place[SETTINGS_PLACE_BYTES];
    settings_format_place(file, settings_node_line(pair->key_node), place);
    struct settings_value value = {
        .place = place,
        .shown = pair->key,
        .text = text,
        .form = text == NULL                          ? SETTINGS_FORM_NOT_SCALAR
                : settings_node_is_plain(pair->value) ? SETTINGS_FORM_PLAIN
                                                      : SETTINGS_FORM_QUOTED,
        .is_typed = true,
    };
    enum weir_status status = settings_assign(file->settings, key, &value, file->error);
    if (status == WEIR_OK)
        file->lines[key] = settings_node_line(pair->key_node);
    return status;
}

static enum weir_status settings_take(struct settings_file *file, enum settings_key key,
                                      const struct settings_pair *pair)
{
    return settings_take_text(file, key, pair, settings_node_text(pair->value));
}

/* ---- the iii engine's entries ---- */

static enum weir_status settings_read_number(const struct settings_file *file,
                                             const struct settings_pair *pair, uint64_t *number)
{
    const char *text = settings_node_text(pair->value);
    if (settings_node_is_plain(pair->value) && text != NULL && settings_parse_number(text, number))
        return WEIR_OK;
    return settings_fail_at(file, pair->key_node,
                            "key `%s` needs a whole number without quotes; write for example 5000",
                            pair->key);
}

static enum weir_status settings_read_store_method(struct settings_file *file,
                                                   const struct settings_pair *pair)
{
    const char *text = settings_node_text(pair->value);
    size_t line = settings_node_line(pair->key_node);
    if (text != NULL && strcmp(text, "in_memory") == 0)
        file->memory_line = line;
    else if (text != NULL && strcmp(text, "file_based") == 0)
        file->directory_line = line;
    else
        return settings_fail_at(
            file, pair->value,
            "key `store_method` must be in_memory or file_based; correct the value");
    return WEIR_OK;
}

/* An empty path, of an empty variable for example, would mean: keep nothing. */
static enum weir_status settings_read_file_path(struct settings_file *file,
                                                const struct settings_pair *pair)
{
    const char *text = settings_node_text(pair->value);
    if (text == NULL)
        return settings_fail_at(file, pair->value,
                                "key `file_path` needs text; remove the list or mapping");
    if (file->directory_line == 0)
        return WEIR_OK;
    if (*text == '\0')
        return settings_fail_at(file, pair->value,
                                "key `file_path` is empty; name the directory for the items");
    return settings_take(file, SETTINGS_KEY_data_dir, pair);
}

static enum weir_status settings_read_save_interval(struct settings_file *file,
                                                    const struct settings_pair *pair)
{
    uint64_t number = 0;
    enum weir_status status = settings_read_number(file, pair, &number);
    if (status != WEIR_OK || file->directory_line == 0)
        return status;
    char least[16];
    (void)snprintf(least, sizeof least, "%d", SETTINGS_SAVE_INTERVAL_MS_MIN);
    return settings_take_text(
        file, SETTINGS_KEY_save_interval_ms, pair,
        number < SETTINGS_SAVE_INTERVAL_MS_MIN ? least : settings_node_text(pair->value));
}

/* Path and interval count with file_based only, as with the iii engine (PROTOCOL 10.2); durability is
 * weir's own key. */
static enum weir_status settings_read_kv(struct settings_file *file, const yaml_node_t *mapping)
{
    enum { STORE_METHOD, FILE_PATH, SAVE_INTERVAL_MS, CHANNEL_SIZE, DURABILITY, COUNT };
    static const char *const names[COUNT] = {"store_method", "file_path", "save_interval_ms",
                                             "channel_size", "durability"};
    struct settings_pair pairs[COUNT] = {{0}};
    struct settings_pair pair;
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "the config of adapter kv"};
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        if (!settings_node_is_null(pair.value))
            pairs[index] = pair;
    }
    if (status != WEIR_EMPTY)
        return status;
    status = WEIR_OK;
    if (pairs[STORE_METHOD].key != NULL)
        status = settings_read_store_method(file, &pairs[STORE_METHOD]);
    if (status == WEIR_OK && pairs[FILE_PATH].key != NULL)
        status = settings_read_file_path(file, &pairs[FILE_PATH]);
    if (status == WEIR_OK && pairs[SAVE_INTERVAL_MS].key != NULL)
        status = settings_read_save_interval(file, &pairs[SAVE_INTERVAL_MS]);
    if (status == WEIR_OK && pairs[CHANNEL_SIZE].key != NULL) /* the engine's queue: no effect */
        status = settings_read_number(file, &pairs[CHANNEL_SIZE], &(uint64_t){0});
    if (status == WEIR_OK && pairs[DURABILITY].key != NULL)
        status = settings_take(file, SETTINGS_KEY_durability, &pairs[DURABILITY]);
    return status;
}

/* What store_method and data_dir say together, wherever in the file each of them stands. */
static enum weir_status settings_finish_directory(struct settings_file *file)
{
    size_t data_line = file->lines[SETTINGS_KEY_data_dir];
    bool is_empty = *file->settings->data_dir == '\0';
    if (file->memory_line != 0 && data_line != 0 && !is_empty)
        return weir_fail(file->error, WEIR_INVALID,
                         "%s:%zu: store_method: in_memory keeps nothing in the `data_dir` of line "
                         "%zu; remove one of them",
                         file->shown_path, file->memory_line, data_line);
    if (file->directory_line == 0 || (data_line != 0 && !is_empty))
        return WEIR_OK;
    if (data_line != 0)
        return weir_fail(file->error, WEIR_INVALID,
                         "%s:%zu: `data_dir` is empty, but line %zu says store_method: file_based; "
                         "name a directory or remove one of them",
                         file->shown_path, data_line, file->directory_line);
    const struct settings_value value = {.place = file->shown_path,
                                         .shown = "file_path", /* the engine's default */
                                         .text = "kv_store_data.db",
                                         .form = SETTINGS_FORM_PLAIN};
    return settings_assign(file->settings, SETTINGS_KEY_data_dir, &value, file->error);
}

static enum weir_status settings_read_adapter(struct settings_file *file,
                                              const yaml_node_t *mapping)
{
    enum { NAME, CONFIG, COUNT };
    static const char *const names[COUNT] = {"name", "config"};
    const yaml_node_t *values[COUNT] = {NULL};
    struct settings_pair pair;
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "adapter"};
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        values[index] = pair.value;
    }
    if (status != WEIR_EMPTY)
        return status;
    const char *name = values[NAME] != NULL ? settings_node_text(values[NAME]) : NULL;
    if (name == NULL)
        return settings_fail_at(file, mapping, "key `name` of adapter is missing; write name: kv");
    if (strcmp(name, "redis") == 0 || strcmp(name, "bridge") == 0)
        return settings_fail_at(
            file, values[NAME],
            "key `name`: adapter %s is not supported by this version yet; use kv", name);
    if (strcmp(name, "kv") != 0)
        return settings_fail_at(file, values[NAME],
                                "key `name`: adapter `%.40s` is not known; use kv", name);
    if (values[CONFIG] == NULL || settings_node_is_null(values[CONFIG]))
        return WEIR_OK;
    status = settings_need_mapping(file, values[CONFIG], "config");
    return status == WEIR_OK ? settings_read_kv(file, values[CONFIG]) : status;
}

static enum weir_status settings_read_stream(struct settings_file *file, const yaml_node_t *mapping)
{
    enum { PORT, HOST, AUTH_FUNCTION, ADAPTER, COUNT };
    static const char *const names[COUNT] = {"port", "host", "auth_function", "adapter"};
    struct settings_pair pair;
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "iii-stream"};
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        switch (index) {
        case PORT:
            status = settings_take(file, SETTINGS_KEY_stream_port, &pair);
            break;
        case HOST:
            status = settings_take(file, SETTINGS_KEY_stream_host, &pair);
            break;
        case AUTH_FUNCTION:
            if (!settings_node_is_null(pair.value))
                status = settings_take(file, SETTINGS_KEY_auth_function, &pair);
            break;
        default:
            if (settings_node_is_null(pair.value))
                break;
            status = settings_need_mapping(file, pair.value, "adapter");
            if (status == WEIR_OK)
                status = settings_read_adapter(file, pair.value);
            break;
        }
        if (status != WEIR_OK)
            return status;
    }
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

static enum weir_status settings_read_manager(struct settings_file *file,
                                              const yaml_node_t *mapping)
{
    enum { HOST, PORT, HANDSHAKE_TIMEOUT_MS, RBAC, MIDDLEWARE_FUNCTION_ID, COUNT };
    static const char *const names[COUNT] = {"host", "port", "handshake_timeout_ms", "rbac",
                                             "middleware_function_id"};
    struct settings_pair pair;
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "iii-worker-manager"};
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        switch (index) {
        case HOST:
            status = settings_take(file, SETTINGS_KEY_worker_host, &pair);
            break;
        case PORT:
            status = settings_take(file, SETTINGS_KEY_worker_port, &pair);
            break;
        case HANDSHAKE_TIMEOUT_MS:
            status = settings_take(file, SETTINGS_KEY_handshake_timeout_ms, &pair);
            break;
        default: /* an entry with one of the others is a listener, see settings_is_listener() */
            break;
        }
        if (status != WEIR_OK)
            return status;
    }
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

/* ---- worker listeners beside the plain one (PROTOCOL 10.4) ---- */

/* An id that is asked for must be there: an empty variable must not open a door. */
static enum weir_status settings_read_function(const struct settings_file *file,
                                               const struct settings_pair *pair,
                                               char id[SETTINGS_TEXT_BYTES])
{
    const char *text = settings_node_text(pair->value);
    if (text == NULL || *text == '\0' || settings_node_is_null(pair->value))
        return settings_fail_at(file, pair->key_node,
                                "key `%s` needs a function id; remove the key if none is meant",
                                pair->key);
    if (strlen(text) >= SETTINGS_TEXT_BYTES)
        return settings_fail_at(file, pair->value,
                                "key `%s` is longer than %d bytes; use a shorter function id",
                                pair->key, SETTINGS_TEXT_BYTES - 1);
    memcpy(id, text, strlen(text) + 1);
    return WEIR_OK;
}

static enum weir_status settings_fail_rule(const struct settings_file *file,
                                           const yaml_node_t *node, enum weir_status status)
{
    if (status == WEIR_FULL)
        return settings_fail_at(file, node,
                                "more than %d rules, %d metadata conditions or %d KiB of their "
                                "text; use fewer, wider patterns",
                                SETTINGS_RULES_MAX, SETTINGS_CONDITIONS_MAX,
                                SETTINGS_RULE_BYTES_MAX / 1024);
    return settings_fail_at(file, node,
                            "an empty pattern matches nothing; write match(\"app::*\")");
}

static enum weir_status settings_read_conditions(const struct settings_file *file,
                                                 const yaml_node_t *mapping,
                                                 struct settings_rule *rule)
{
    struct settings_pair pair;
    size_t position = 0;
    enum weir_status status = settings_need_mapping(file, mapping, "metadata");
    if (status != WEIR_OK)
        return status;
    while ((status = settings_next_pair(file, mapping, &position, &pair)) == WEIR_OK) {
        const char *text = settings_node_text(pair.value);
        if (text == NULL)
            return settings_fail_at(file, pair.key_node,
                                    "key `%.40s` of metadata needs one value; write a text, "
                                    "number, boolean or match(\"...\")",
                                    pair.key);
        status = listeners_add_condition(file->settings, rule, pair.key, text,
                                         settings_node_is_plain(pair.value));
        if (status != WEIR_OK)
            return settings_fail_rule(file, pair.value, status);
    }
    if (status == WEIR_EMPTY && rule->condition_count == 0)
        return settings_fail_at(file, mapping,
                                "key `metadata` names no key, so it would expose everything; write "
                                "{ public: true }");
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

/* {match, namespace} or {metadata, namespace}. */
static enum weir_status settings_read_rule_mapping(const struct settings_file *file,
                                                   const yaml_node_t *mapping)
{
    enum { MATCH, METADATA, NAMESPACE, COUNT };
    static const char *const names[COUNT] = {"match", "metadata", "namespace"};
    const yaml_node_t *values[COUNT] = {NULL};
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "expose_functions"};
    struct settings_pair pair;
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK)
        values[index] = pair.value;
    if (status != WEIR_EMPTY)
        return status;
    if ((values[MATCH] == NULL) == (values[METADATA] == NULL))
        return settings_fail_at(
            file, mapping, "a rule has either `match` or `metadata`; write two rules for both");
    const char *name_space = "default";
    if (values[NAMESPACE] != NULL)
        name_space = settings_node_text(values[NAMESPACE]);
    if (name_space == NULL || span_is_blank(span_text(name_space)))
        return settings_fail_at(file, values[NAMESPACE],
                                "key `namespace` is blank; remove it for the default namespace");
    struct settings_rule *rule = NULL;
    status = listeners_add_rule(file->settings, name_space, &rule);
    if (status != WEIR_OK)
        return settings_fail_rule(file, mapping, status);
    if (values[METADATA] != NULL)
        return settings_read_conditions(file, values[METADATA], rule);
    const char *text = settings_node_text(values[MATCH]);
    if (text == NULL)
        return settings_fail_at(file, values[MATCH],
                                "key `match` needs a pattern; write for example app::public::*");
    struct span pattern;
    if (!listeners_read_match(text, &pattern))
        pattern = span_text(text);
    status = listeners_set_match(file->settings, rule, pattern);
    return status == WEIR_OK ? WEIR_OK : settings_fail_rule(file, values[MATCH], status);
}

static enum weir_status settings_read_rule(const struct settings_file *file,
                                           const yaml_node_t *node)
{
    if (node->type == YAML_MAPPING_NODE)
        return settings_read_rule_mapping(file, node);
    const char *text = settings_node_text(node);
    struct span pattern;
    if (text == NULL || !listeners_read_match(text, &pattern))
        return settings_fail_at(file, node,
                                "not a rule; write match(\"app::*\"), { match: \"app::*\", "
                                "namespace: NAME } or { metadata: { KEY: VALUE } }");
    struct settings_rule *rule = NULL;
    enum weir_status status = listeners_add_rule(file->settings, "default", &rule);
    if (status == WEIR_OK)
        status = listeners_set_match(file->settings, rule, pattern);
    return status == WEIR_OK ? WEIR_OK : settings_fail_rule(file, node, status);
}

static enum weir_status settings_read_rules(const struct settings_file *file,
                                            const struct settings_pair *pair)
{
    if (pair->value->type != YAML_SEQUENCE_NODE)
        return settings_fail_at(file, pair->key_node,
                                "key `%s` needs a list; write - match(\"app::*\") below it, or [] "
                                "for none",
                                pair->key);
    for (const yaml_node_item_t *item = pair->value->data.sequence.items.start;
         item < pair->value->data.sequence.items.top; item++) {
        enum weir_status status =
            settings_read_rule(file, yaml_document_get_node(file->document, *item));
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static enum weir_status settings_read_rbac(const struct settings_file *file,
                                           const struct settings_pair *rbac,
                                           struct settings_listener *listener)
{
    enum { AUTH, FUNCTION_HOOK, TRIGGER_HOOK, TRIGGER_TYPE_HOOK, EXPOSE, COUNT };
    static const char *const names[COUNT] = {
        "auth_function_id", "on_function_registration_function_id",
        "on_trigger_registration_function_id", "on_trigger_type_registration_function_id",
        "expose_functions"};
    if (rbac->value->type != YAML_MAPPING_NODE)
        return settings_fail_at(file, rbac->key_node,
                                "key `rbac` needs a mapping; write rbac: {} to grant nothing, or "
                                "remove the key");
    char *const ids[EXPOSE] = {listener->auth_function, listener->function_hook,
                               listener->trigger_hook, listener->trigger_type_hook};
    struct settings_keys keys = {
        .mapping = rbac->value, .names = names, .count = COUNT, .where = "rbac"};
    struct settings_pair pair;
    size_t index;
    enum weir_status status;
    listener->has_rbac = true;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        status = index == EXPOSE ? settings_read_rules(file, &pair)
                                 : settings_read_function(file, &pair, ids[index]);
        if (status != WEIR_OK)
            return status;
    }
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

static enum weir_status settings_read_listener_number(const struct settings_file *file,
                                                      const struct settings_pair *pair,
                                                      uint64_t minimum, uint64_t maximum,
                                                      uint64_t *number)
{
    enum weir_status status = settings_read_number(file, pair, number);
    if (status != WEIR_OK)
        return status;
    if (*number >= minimum && *number <= maximum)
        return WEIR_OK;
    return settings_fail_at(file, pair->value, "key `%s` is out of range; use %u to %u", pair->key,
                            (unsigned)minimum, (unsigned)maximum);
}

static enum weir_status settings_read_listener_host(const struct settings_file *file,
                                                    const struct settings_pair *pair,
                                                    struct settings_listener *listener)
{
    const char *text = settings_node_text(pair->value);
    if (text == NULL || *text == '\0' || strlen(text) >= SETTINGS_TEXT_BYTES)
        return settings_fail_at(file, pair->key_node,
                                "key `host` needs an IP address; write for example 127.0.0.1");
    memcpy(listener->host, text, strlen(text) + 1);
    return WEIR_OK;
}

static enum weir_status settings_read_listener(struct settings_file *file,
                                               const yaml_node_t *mapping)
{
    enum { HOST, PORT, HANDSHAKE_TIMEOUT_MS, RBAC, MIDDLEWARE_FUNCTION_ID, COUNT };
    static const char *const names[COUNT] = {"host", "port", "handshake_timeout_ms", "rbac",
                                             "middleware_function_id"};
    if (!file->has_listeners)
        listeners_clear(file->settings);
    file->has_listeners = true;
    struct settings_listener *listener = listeners_add(file->settings);
    if (listener == NULL)
        return settings_fail_at(file, mapping,
                                "more than %d worker listeners; serve their workers on one",
                                SETTINGS_LISTENERS_MAX);
    listener->line = (uint32_t)settings_node_line(mapping);
    struct settings_keys keys = {
        .mapping = mapping, .names = names, .count = COUNT, .where = "iii-worker-manager"};
    struct settings_pair pair;
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        bool is_null = settings_node_is_null(pair.value);
        if (index == RBAC)
            status = settings_read_rbac(file, &pair, listener);
        else if (index == MIDDLEWARE_FUNCTION_ID)
            status = settings_read_function(file, &pair, listener->middleware_function);
        else if (index == HOST && !is_null)
            status = settings_read_listener_host(file, &pair, listener);
        else if (index == PORT && !is_null)
            status = settings_read_listener_number(file, &pair, 0, UINT16_MAX, &listener->port);
        else if (index == HANDSHAKE_TIMEOUT_MS && !is_null)
            status = settings_read_listener_number(file, &pair, 100, 600000,
                                                   &listener->handshake_timeout_ms);
        if (status != WEIR_OK)
            return status;
    }
    if (status == WEIR_EMPTY && *listener->host == '\0')
        (void)snprintf(listener->host, sizeof listener->host, "%s",
                       listener->has_rbac ? "0.0.0.0" : "127.0.0.1");
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

/* The first entry that neither restricts nor redirects calls is the plain worker port. */
static bool settings_is_listener(const struct settings_file *file, const yaml_node_t *config)
{
    if (file->manager_line != 0)
        return true;
    if (config == NULL || config->type != YAML_MAPPING_NODE)
        return false;
    for (const yaml_node_pair_t *pair = config->data.mapping.pairs.start;
         pair < config->data.mapping.pairs.top; pair++) {
        const char *key = settings_node_text(yaml_document_get_node(file->document, pair->key));
        if (key != NULL && (strcmp(key, "rbac") == 0 || strcmp(key, "middleware_function_id") == 0))
            return true;
    }
    return false;
}

static enum weir_status settings_read_managers(struct settings_file *file, const yaml_node_t *entry,
                                               const yaml_node_t *config)
{
    bool has_config = config != NULL && !settings_node_is_null(config);
    if (settings_is_listener(file, has_config ? config : NULL)) {
        if (!has_config)
            return settings_fail_at(file, entry,
                                    "a second `iii-worker-manager` (the first is on line %zu) "
                                    "needs a config with a port of its own; write one, or remove "
                                    "the entry",
                                    file->manager_line);
        enum weir_status status = settings_need_mapping(file, config, "config");
        return status == WEIR_OK ? settings_read_listener(file, config) : status;
    }
    file->manager_line = settings_node_line(entry);
    if (!has_config)
        return WEIR_OK;
    enum weir_status status = settings_need_mapping(file, config, "config");
    return status == WEIR_OK ? settings_read_manager(file, config) : status;
}

/* Name and config of one entry. Entries of other workers are not looked into any further. */
static enum weir_status settings_read_entry(struct settings_file *file, const yaml_node_t *entry)
{
    enum { NAME, CONFIG, IMAGE, COUNT };
    static const char *const names[COUNT] = {"name", "config", "image"};
    if (entry->type != YAML_MAPPING_NODE)
        return settings_fail_at(file, entry,
                                "a worker must be a mapping; write - name: iii-stream");
    struct settings_pair pair;
    size_t position = 0;
    const char *name = NULL;
    enum weir_status status;
    while ((status = settings_next_pair(file, entry, &position, &pair)) == WEIR_OK) {
        if (strcmp(pair.key, "name") == 0 && name == NULL)
            name = settings_node_text(pair.value);
    }
    if (status != WEIR_EMPTY)
        return status;
    if (name == NULL)
        return settings_fail_at(file, entry,
                                "key `name` of the worker is missing; write - name: iii-stream");
    bool is_stream = strcmp(name, "iii-stream") == 0;
    bool is_manager = strcmp(name, "iii-worker-manager") == 0;
    if (!is_stream && !is_manager) {
        settings_note_at(file, entry, name);
        return WEIR_OK;
    }
    if (is_stream && file->stream_line != 0)
        return settings_fail_at(file, entry,
                                "worker `%s` stands on line %zu already; remove one of them", name,
                                file->stream_line);
    if (is_stream)
        file->stream_line = settings_node_line(entry);
    const yaml_node_t *config = NULL;
    struct settings_keys keys = {
        .mapping = entry, .names = names, .count = COUNT, .where = "a worker's entry"};
    size_t index;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        if (index == CONFIG)
            config = pair.value;
    }
    if (status != WEIR_EMPTY)
        return status;
    if (is_manager)
        return settings_read_managers(file, entry, config);
    if (config == NULL || settings_node_is_null(config))
        return WEIR_OK;
    status = settings_need_mapping(file, config, "config");
    return status == WEIR_OK ? settings_read_stream(file, config) : status;
}

static enum weir_status settings_read_workers(struct settings_file *file,
                                              const struct settings_pair *pair)
{
    if (settings_node_is_null(pair->value))
        return WEIR_OK;
    if (pair->value->type != YAML_SEQUENCE_NODE)
        return settings_fail_at(file, pair->value,
                                "key `%s` needs a list; write - name: iii-stream below it",
                                pair->key);
    for (const yaml_node_item_t *item = pair->value->data.sequence.items.start;
         item < pair->value->data.sequence.items.top; item++) {
        enum weir_status status =
            settings_read_entry(file, yaml_document_get_node(file->document, *item));
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* ---- auth_tokens: a mapping from token to context ---- */

static enum weir_status settings_append_json(const struct settings_file *file,
                                             const yaml_node_t *node, unsigned depth,
                                             struct buffer *out);

static enum weir_status settings_append_text(const yaml_node_t *node, struct buffer *out)
{
    struct span text = span_of(node->data.scalar.value, node->data.scalar.length);
    return json_is_utf8(text) ? json_append_string(out, text) : WEIR_INVALID;
}

/* Plain true, false, null and numbers are what they say; everything else, and all that is quoted,
 * is a string. */
static enum weir_status settings_append_scalar(const yaml_node_t *node, struct buffer *out)
{
    struct span text = span_of(node->data.scalar.value, node->data.scalar.length);
    struct json_value value;
    if (settings_node_is_null(node))
        return buffer_append(out, SPAN_LITERAL("null"));
    if (settings_node_is_plain(node) && json_scan(text, 1, &value, NULL) == WEIR_OK &&
        (value.kind == JSON_TRUE || value.kind == JSON_FALSE || value.kind == JSON_NUMBER))
        return buffer_append(out, text);
    return settings_append_text(node, out);
}

static enum weir_status settings_append_list(const struct settings_file *file,
                                             const yaml_node_t *node, unsigned depth,
                                             struct buffer *out)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("["));
    const yaml_node_item_t *first = node->data.sequence.items.start;
    for (const yaml_node_item_t *item = first;
         status == WEIR_OK && item < node->data.sequence.items.top; item++) {
        if (item > first)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = settings_append_json(file, yaml_document_get_node(file->document, *item),
                                          depth, out);
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("]")) : status;
}

static enum weir_status settings_append_mapping(const struct settings_file *file,
                                                const yaml_node_t *node, unsigned depth,
                                                struct buffer *out)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{"));
    const yaml_node_pair_t *first = node->data.mapping.pairs.start;
    for (const yaml_node_pair_t *pair = first;
         status == WEIR_OK && pair < node->data.mapping.pairs.top; pair++) {
        const yaml_node_t *key = yaml_document_get_node(file->document, pair->key);
        if (key->type != YAML_SCALAR_NODE)
            return WEIR_INVALID;
        if (pair > first)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = settings_append_text(key, out);
        if (status == WEIR_OK)
            status = buffer_append(out, SPAN_LITERAL(":"));
        if (status == WEIR_OK)
            status = settings_append_json(file, yaml_document_get_node(file->document, pair->value),
                                          depth, out);
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("}")) : status;
}

/* Aliases can make this longer than the file, even endless: it is bounded by the depth and by the
 * buffer's limit, because every node appends something. */
static enum weir_status settings_append_json(const struct settings_file *file,
                                             const yaml_node_t *node, unsigned depth,
                                             struct buffer *out)
{
    if (depth == 0)
        return WEIR_TOO_LARGE;
    switch (node->type) {
    case YAML_SCALAR_NODE:
        return settings_append_scalar(node, out);
    case YAML_SEQUENCE_NODE:
        return settings_append_list(file, node, depth - 1, out);
    case YAML_MAPPING_NODE:
        return settings_append_mapping(file, node, depth - 1, out);
    case YAML_NO_NODE:
        break;
    }
    return WEIR_INVALID;
}

/* What a header, a list of subprotocols or a query can carry as it is. */
static bool settings_is_token(struct span token)
{
    for (size_t i = 0; i < token.bytes; i++) {
        if (token.data[i] <= ' ' || token.data[i] > '~')
            return false;
    }
    return token.bytes > 0 && token.bytes <= SETTINGS_TOKEN_BYTES_MAX;
}

/* No message quotes what stands here. */
static enum weir_status settings_read_token(struct settings_file *file,
                                            const yaml_node_pair_t *pair,
                                            struct settings_tokens *tokens, struct buffer *json)
{
    const yaml_node_t *key = yaml_document_get_node(file->document, pair->key);
    const yaml_node_t *value = yaml_document_get_node(file->document, pair->value);
    struct span token = {0};
    if (key->type == YAML_SCALAR_NODE)
        token = span_of(key->data.scalar.value, key->data.scalar.length);
    if (!settings_is_token(token))
        return settings_fail_at(file, key,
                                "key `auth_tokens`: a token must be 1 to %d visible ASCII "
                                "characters without space; choose another",
                                SETTINGS_TOKEN_BYTES_MAX);
    buffer_clear(json);
    enum weir_status status = settings_append_json(file, value, SETTINGS_FILE_DEPTH_MAX, json);
    if (status == WEIR_NO_MEMORY)
        return settings_fail_at(file, key, "key `auth_tokens`: no memory for it; free some");
    if (status == WEIR_FULL || status == WEIR_TOO_LARGE)
        return settings_fail_at(file, key,
                                "key `auth_tokens`: this context exceeds %d bytes as JSON, or %d "
                                "levels; shorten it",
                                SETTINGS_CONTEXT_BYTES_MAX, SETTINGS_FILE_DEPTH_MAX);
    if (status != WEIR_OK)
        return settings_fail_at(file, key,
                                "key `auth_tokens`: this context cannot be JSON; use text as keys");
    status = settings_tokens_add(tokens, token, buffer_span(json));
    if (status == WEIR_INVALID)
        return settings_fail_at(file, key,
                                "key `auth_tokens`: this token stands twice; remove one of them");
    if (status != WEIR_OK)
        return settings_fail_at(file, key,
                                "key `auth_tokens`: more than %d tokens, or %d bytes in all; "
                                "use `auth_function`",
                                SETTINGS_TOKENS_MAX, SETTINGS_TOKENS_BYTES_MAX);
    return WEIR_OK;
}

static enum weir_status settings_read_tokens(struct settings_file *file,
                                             const struct settings_pair *pair)
{
    if (file->tokens_line != 0)
        return settings_fail_at(file, pair->key_node,
                                "key `%s` was set on line %zu already; remove one of them",
                                pair->key, file->tokens_line);
    file->tokens_line = settings_node_line(pair->key_node);
    if (settings_node_is_null(pair->value))
        return WEIR_OK;
    if (pair->value->type != YAML_MAPPING_NODE)
        return settings_fail_at(file, pair->key_node,
                                "key `%s` needs a mapping; write `\"token\": context` lines below "
                                "it",
                                pair->key);
    struct buffer json;
    buffer_init(&json, SETTINGS_CONTEXT_BYTES_MAX);
    struct settings_tokens *tokens = settings_tokens_open();
    enum weir_status status = WEIR_OK;
    if (tokens == NULL)
        status = settings_fail_at(file, pair->key_node, "no memory for `auth_tokens`; free some");
    const yaml_node_t *mapping = pair->value;
    for (const yaml_node_pair_t *next = mapping->data.mapping.pairs.start;
         status == WEIR_OK && next < mapping->data.mapping.pairs.top; next++)
        status = settings_read_token(file, next, tokens, &json);
    buffer_fini(&json);
    if (status == WEIR_OK && mapping->data.mapping.pairs.start == mapping->data.mapping.pairs.top)
        status = settings_fail_at(file, pair->key_node,
                                  "key `%s` has no token, so nobody could connect; remove it",
                                  pair->key);
    if (status != WEIR_OK) {
        settings_tokens_close(tokens);
        return status;
    }
    settings_tokens_close(file->settings->auth_tokens);
    file->settings->auth_tokens = tokens;
    return WEIR_OK;
}

/* ---- streams: a mapping from stream to what it does otherwise ---- */

/* One setting of a stream, by the table's rules for the setting of all: it is assigned there, and
 * that is put back. */
static enum weir_status settings_read_own(struct settings_file *file,
                                          const struct settings_pair *pair, enum settings_key key,
                                          struct settings_stream_own *own)
{
    struct settings *settings = file->settings;
    enum settings_slow slow = settings->slow_subscribers;
    uint64_t lag_events = settings->lag_events, given = settings->given;
    size_t line = file->lines[key];
    file->lines[key] = 0;
    enum weir_status status = settings_take(file, key, pair);
    if (key == SETTINGS_KEY_slow_subscribers) {
        own->has_slow = true;
        own->slow = settings->slow_subscribers;
    } else {
        own->has_lag_events = true;
        own->lag_events = settings->lag_events;
    }
    settings->slow_subscribers = slow;
    settings->lag_events = lag_events;
    settings->given = given;
    file->lines[key] = line;
    return status;
}

static enum weir_status settings_read_stream_own(struct settings_file *file,
                                                 const yaml_node_pair_t *pair,
                                                 struct settings_streams *streams)
{
    static const char *const names[] = {"slow", "lag_events"};
    static const enum settings_key keys_of[] = {SETTINGS_KEY_slow_subscribers,
                                                SETTINGS_KEY_lag_events};
    const yaml_node_t *key = yaml_document_get_node(file->document, pair->key);
    const yaml_node_t *value = yaml_document_get_node(file->document, pair->value);
    struct settings_stream_own own = {0};
    struct span name = {0};
    if (key->type == YAML_SCALAR_NODE)
        name = span_of(key->data.scalar.value, key->data.scalar.length);
    if (value->type != YAML_MAPPING_NODE)
        return settings_fail_at(file, key,
                                "key `streams`: a stream needs a mapping; write for example `chat: "
                                "{ slow: lossless }`");
    struct settings_keys keys = {
        .mapping = value, .names = names, .count = 2, .where = "a stream of `streams`"};
    struct settings_pair next;
    size_t index;
    enum weir_status status;
    while ((status = settings_next_key(file, &keys, &next, &index)) == WEIR_OK) {
        status = settings_read_own(file, &next, keys_of[index], &own);
        if (status != WEIR_OK)
            return status;
    }
    if (status != WEIR_EMPTY)
        return status;
    switch (settings_streams_add(streams, name, &own)) {
    case WEIR_OK:
        return WEIR_OK;
    case WEIR_TOO_LARGE:
        return settings_fail_at(file, key,
                                "key `streams`: a stream's name has 1 to %u bytes; correct it",
                                NAME_BYTES_MAX);
    case WEIR_INVALID:
        return settings_fail_at(file, key,
                                "key `streams`: stream `%.40s` stands twice; remove one of them",
                                (const char *)key->data.scalar.value);
    case WEIR_FULL:
        return settings_fail_at(file, key,
                                "key `streams`: more than %d streams; let `slow_subscribers` and "
                                "`lag_events` say what holds for most",
                                SETTINGS_STREAMS_MAX);
    default:
        return settings_fail_at(file, key, "key `streams`: no memory for it; free some");
    }
}

static enum weir_status settings_read_streams(struct settings_file *file,
                                              const struct settings_pair *pair)
{
    if (file->streams_line != 0)
        return settings_fail_at(file, pair->key_node,
                                "key `%s` was set on line %zu already; remove one of them",
                                pair->key, file->streams_line);
    file->streams_line = settings_node_line(pair->key_node);
    if (settings_node_is_null(pair->value))
        return WEIR_OK;
    enum weir_status status = settings_need_mapping(file, pair->value, "streams");
    if (status != WEIR_OK)
        return status;
    struct settings_streams *streams = settings_streams_open();
    if (streams == NULL)
        return settings_fail_at(file, pair->key_node, "no memory for `streams`; free some");
    const yaml_node_t *mapping = pair->value;
    for (const yaml_node_pair_t *next = mapping->data.mapping.pairs.start;
         status == WEIR_OK && next < mapping->data.mapping.pairs.top; next++)
        status = settings_read_stream_own(file, next, streams);
    if (status != WEIR_OK) {
        settings_streams_close(streams);
        return status;
    }
    settings_streams_close(file->settings->streams);
    file->settings->streams = streams;
    return WEIR_OK;
}

/* ---- weir's own keys and the top ---- */

static enum weir_status settings_read_weir(struct settings_file *file, const yaml_node_t *mapping)
{
    struct settings_pair pair;
    size_t position = 0;
    enum weir_status status;
    while ((status = settings_next_pair(file, mapping, &position, &pair)) == WEIR_OK) {
        enum settings_key key = settings_find(pair.key);
        bool is_tokens = strcmp(pair.key, "auth_tokens") == 0;
        if (is_tokens || strcmp(pair.key, "streams") == 0) {
            status =
                is_tokens ? settings_read_tokens(file, &pair) : settings_read_streams(file, &pair);
            if (status != WEIR_OK)
                return status;
            continue;
        }
        if (key == SETTINGS_KEY_COUNT) {
            const char *nearest = settings_nearest(pair.key);
            if (nearest != NULL)
                return settings_fail_at(file, pair.key_node,
                                        "key `%.60s` is not known in weir; did you mean `%s`?",
                                        pair.key, nearest);
            return settings_fail_at(
                file, pair.key_node,
                "key `%.60s` is not known in weir; `weir help settings` lists all", pair.key);
        }
        status = settings_take(file, key, &pair);
        if (status != WEIR_OK)
            return status;
    }
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

static enum weir_status settings_read_top(struct settings_file *file, const yaml_node_t *top)
{
    enum { WORKERS, MODULES, GRACE, WEIR, COUNT };
    static const char *const names[COUNT] = {"workers", "modules",
                                             "registration_namespace_grace_ms", "weir"};
    enum weir_status status = settings_need_mapping(file, top, "(top level)");
    if (status != WEIR_OK)
        return status;
    struct settings_keys keys = {
        .mapping = top, .names = names, .count = COUNT, .where = "the top level"};
    struct settings_pair pair;
    size_t index;
    while ((status = settings_next_key(file, &keys, &pair, &index)) == WEIR_OK) {
        switch (index) {
        case WORKERS:
        case MODULES:
            if ((keys.seen & 1u << WORKERS) != 0 && (keys.seen & 1u << MODULES) != 0)
                return settings_fail_at(
                    file, pair.key_node,
                    "key `modules` is the old name of `workers`; keep only one");
            status = settings_read_workers(file, &pair);
            break;
        case GRACE: /* weir applies registrations at once: there is nothing to wait for */
            if (!settings_node_is_null(pair.value))
                status = settings_read_number(file, &pair, &(uint64_t){0});
            break;
        default:
            if (settings_node_is_null(pair.value))
                break;
            status = settings_need_mapping(file, pair.value, "weir");
            if (status == WEIR_OK)
                status = settings_read_weir(file, pair.value);
            break;
        }
        if (status != WEIR_OK)
            return status;
    }
    return status == WEIR_EMPTY ? WEIR_OK : status;
}

/* ---- raw text ---- */

static enum weir_status settings_read_text(const char *path, const char *shown_path,
                                           struct buffer *text, struct weir_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return weir_fail_errno(error, errno, "%s: cannot open the configuration file", shown_path);
    enum weir_status status = WEIR_OK;
    struct stat about;
    if (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode)) {
        status =
            weir_fail(error, WEIR_INVALID, "%s: is a directory; name the file in it", shown_path);
        goto cleanup;
    }
    for (;;) {
        if (buffer_reserve(text, 4096) != WEIR_OK) {
            status =
                weir_fail(error, WEIR_TOO_LARGE,
                          "%s: larger than 1 MiB; is this the configuration file?", shown_path);
            goto cleanup;
        }
        ssize_t bytes = read(fd, text->data + text->bytes, 4096);
        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0) {
            status = weir_fail_errno(error, errno, "%s: cannot be read", shown_path);
            goto cleanup;
        }
        if (bytes == 0)
            break;
        text->bytes += (size_t)bytes;
    }
    if (text->bytes > SETTINGS_FILE_BYTES_MAX)
        status = weir_fail(error, WEIR_TOO_LARGE,
                           "%s: larger than 1 MiB; is this the configuration file?", shown_path);
cleanup:
    (void)close(fd);
    return status;
}

/* The bytes of `${NAME}` or `${NAME:default}` at the start of `text`, or 0: then it is ordinary
 * text. */
static size_t settings_match_variable(struct span text, struct span *name, struct span *fallback)
{
    if (text.bytes < 4 || text.data[0] != '$' || text.data[1] != '{')
        return 0;
    const char *end = memchr(text.data, '}', text.bytes);
    if (end == NULL)
        return 0;
    const char *start = text.data + 2;
    const char *colon = memchr(start, ':', (size_t)(end - start));
    const char *name_end = colon != NULL ? colon : end;
    if (name_end == start)
        return 0;
    *name = span_of(start, (size_t)(name_end - start));
    *fallback = colon != NULL ? span_of(colon + 1, (size_t)(end - colon - 1)) : span_of(NULL, 0);
    return (size_t)(end - text.data) + 1;
}

static enum weir_status settings_append_variable(struct buffer *out, struct span name,
                                                 struct span fallback, const char *shown_path,
                                                 size_t line, struct weir_error *error)
{
    char key[256];
    const char *value = NULL;
    if (name.bytes < sizeof key) {
        memcpy(key, name.data, name.bytes);
        key[name.bytes] = '\0';
        value = getenv(key);
    }
    struct span text = value != NULL ? span_text(value) : fallback;
    if (text.data == NULL)
        return weir_fail(
            error, WEIR_INVALID,
            "%s:%zu: environment variable `%.*s` is not set; set it or write ${%.*s:default}",
            shown_path, line, (int)(name.bytes < 40 ? name.bytes : 40), name.data,
            (int)(name.bytes < 40 ? name.bytes : 40), name.data);
    if (buffer_append(out, text) != WEIR_OK)
        return weir_fail(error, WEIR_TOO_LARGE, "%s:%zu: larger than 1 MiB with `%.*s` filled in",
                         shown_path, line, (int)(name.bytes < 40 ? name.bytes : 40), name.data);
    return WEIR_OK;
}

/* Replace variables everywhere, comments included, as the iii engine does; a replacement is not
 * looked at again. */
static enum weir_status settings_expand(struct span text, struct buffer *out,
                                        const char *shown_path, struct weir_error *error)
{
    size_t line = 1;
    while (text.bytes > 0) {
        struct span name;
        struct span fallback;
        size_t taken = settings_match_variable(text, &name, &fallback);
        if (taken != 0) {
            enum weir_status status =
                settings_append_variable(out, name, fallback, shown_path, line, error);
            if (status != WEIR_OK)
                return status;
        } else {
            const char *dollar = memchr(text.data + 1, '$', text.bytes - 1);
            taken = dollar != NULL ? (size_t)(dollar - text.data) : text.bytes;
            if (buffer_append(out, span_of(text.data, taken)) != WEIR_OK)
                return weir_fail(error, WEIR_TOO_LARGE,
                                 "%s:%zu: larger than 1 MiB with variables "
                                 "filled in",
                                 shown_path, line);
        }
        for (size_t i = 0; i < taken; i++)
            line += text.data[i] == '\n';
        text = span_of(text.data + taken, text.bytes - taken);
    }
    return WEIR_OK;
}

/* ---- YAML ---- */

static enum weir_status settings_fail_parser(const yaml_parser_t *parser, const char *shown_path,
                                             struct weir_error *error)
{
    if (parser->error == YAML_MEMORY_ERROR)
        return weir_fail(error, WEIR_NO_MEMORY, "%s: no memory to read it", shown_path);
    return weir_fail(error, WEIR_INVALID,
                     "%s:%zu: not YAML: %.100s; correct the line or the one before", shown_path,
                     parser->problem_mark.line + 1,
                     parser->problem != NULL ? parser->problem : "cannot be read");
}

/* Refuse deep nesting before a tree is built from it. */
static enum weir_status settings_check_depth(struct span text, const char *shown_path,
                                             struct weir_error *error)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return weir_fail(error, WEIR_NO_MEMORY, "%s: no memory to read it", shown_path);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.data, text.bytes);
    enum weir_status status = WEIR_OK;
    unsigned depth = 0;
    unsigned documents = 0;
    for (bool is_done = false; !is_done && status == WEIR_OK;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            status = settings_fail_parser(&parser, shown_path, error);
            break;
        }
        size_t line = event.start_mark.line + 1;
        switch (event.type) {
        case YAML_SEQUENCE_START_EVENT:
        case YAML_MAPPING_START_EVENT:
            if (++depth > SETTINGS_FILE_DEPTH_MAX)
                status = weir_fail(error, WEIR_TOO_LARGE,
                                   "%s:%zu: nested deeper than %d levels; flatten it", shown_path,
                                   line, SETTINGS_FILE_DEPTH_MAX);
            break;
        case YAML_SEQUENCE_END_EVENT:
        case YAML_MAPPING_END_EVENT:
            depth--;
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (++documents > 1)
                status = weir_fail(error, WEIR_INVALID,
                                   "%s:%zu: a second document starts here; keep one in the file",
                                   shown_path, line);
            break;
        case YAML_STREAM_END_EVENT:
            is_done = true;
            break;
        case YAML_NO_EVENT:
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
        case YAML_ALIAS_EVENT:
        case YAML_SCALAR_EVENT:
            break;
        }
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return status;
}

static enum weir_status settings_read_yaml(struct settings *settings, struct span text,
                                           const char *shown_path, struct weir_error *error)
{
    if (text.bytes == 0)
        return WEIR_OK;
    enum weir_status status = settings_check_depth(text, shown_path, error);
    if (status != WEIR_OK)
        return status;
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return weir_fail(error, WEIR_NO_MEMORY, "%s: no memory to read it", shown_path);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text.data, text.bytes);
    yaml_document_t document;
    if (!yaml_parser_load(&parser, &document)) {
        status = settings_fail_parser(&parser, shown_path, error);
        yaml_parser_delete(&parser);
        return status;
    }
    struct settings_file file = {
        .shown_path = shown_path,
        .document = &document,
        .settings = settings,
        .error = error,
        .is_quiet = getenv("WEIR_SUPERVISED") != NULL,
    };
    yaml_node_t *top = yaml_document_get_root_node(&document);
    if (top != NULL && !settings_node_is_null(top)) /* an empty file says nothing */
        status = settings_read_top(&file, top);
    if (status == WEIR_OK)
        status = settings_finish_directory(&file);
    yaml_document_delete(&document);
    yaml_parser_delete(&parser);
    return status;
}

enum weir_status settings_load(struct settings *settings, const char *path,
                               struct weir_error *error)
{
    char shown_path[84];
    size_t path_bytes = strlen(path);
    if (path_bytes < sizeof shown_path)
        memcpy(shown_path, path, path_bytes + 1);
    else
        (void)snprintf(shown_path, sizeof shown_path, "...%s",
                       path + path_bytes - (sizeof shown_path - 4));
    struct buffer text;
    struct buffer expanded;
    buffer_init(&text, SETTINGS_FILE_BYTES_MAX + 4096);
    buffer_init(&expanded, SETTINGS_FILE_BYTES_MAX);
    enum weir_status status = settings_read_text(path, shown_path, &text, error);
    if (status != WEIR_OK)
        goto cleanup;
    status = settings_expand(buffer_span(&text), &expanded, shown_path, error);
    if (status != WEIR_OK)
        goto cleanup;
    status = settings_read_yaml(settings, buffer_span(&expanded), shown_path, error);
cleanup:
    buffer_fini(&text);
    buffer_fini(&expanded);
    return status;
}

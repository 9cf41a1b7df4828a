#include "config/listeners.h"

#include "config/settings_value.h"
#include "shm/json.h"

void listeners_clear(struct settings *settings)
{
    memset(settings->listeners, 0, sizeof settings->listeners);
    settings->listener_count = 0;
    settings->rule_count = 0;
    settings->condition_count = 0;
    settings->rule_text_bytes = 0;
}

struct settings_listener *listeners_add(struct settings *settings)
{
    if (settings->listener_count == SETTINGS_LISTENERS_MAX)
        return NULL;
    struct settings_listener *listener = &settings->listeners[settings->listener_count++];
    *listener = (struct settings_listener){.port = 49134, .rule_first = settings->rule_count};
    return listener;
}

static enum weir_status listeners_keep(struct settings *settings, struct span text,
                                       struct settings_text *kept)
{
    if (text.bytes > SETTINGS_RULE_BYTES_MAX - settings->rule_text_bytes)
        return WEIR_FULL;
    *kept = (struct settings_text){settings->rule_text_bytes, (uint32_t)text.bytes};
    if (text.bytes > 0)
        memcpy(settings->rule_text + settings->rule_text_bytes, text.data, text.bytes);
    settings->rule_text_bytes += (uint32_t)text.bytes;
    return WEIR_OK;
}

enum weir_status listeners_add_rule(struct settings *settings, const char *name_space,
                                    struct settings_rule **rule)
{
    weir_assert(settings->listener_count > 0);
    if (settings->rule_count == SETTINGS_RULES_MAX)
        return WEIR_FULL;
    *rule = &settings->rules[settings->rule_count];
    **rule = (struct settings_rule){.condition_first = settings->condition_count};
    enum weir_status status = listeners_keep(settings, span_text(name_space), &(*rule)->name_space);
    if (status != WEIR_OK)
        return status;
    settings->rule_count++;
    settings->listeners[settings->listener_count - 1].rule_count++;
    return WEIR_OK;
}

enum weir_status listeners_set_match(struct settings *settings, struct settings_rule *rule,
                                     struct span pattern)
{
    if (pattern.bytes == 0)
        return WEIR_INVALID;
    return listeners_keep(settings, pattern, &rule->match);
}

bool listeners_read_match(const char *text, struct span *pattern)
{
    static const char start[] = "match(";
    size_t bytes = strlen(text);
    size_t start_bytes = sizeof start - 1;
    if (bytes < start_bytes + 3 || memcmp(text, start, start_bytes) != 0 || text[bytes - 1] != ')')
        return false;
    char quote = text[start_bytes];
    if ((quote != '"' && quote != '\'') || text[bytes - 2] != quote)
        return false;
    *pattern = span_of(text + start_bytes + 1, bytes - start_bytes - 3);
    return pattern->bytes == 0 || memchr(pattern->data, quote, pattern->bytes) == NULL;
}

static bool text_is_literal(const char *text)
{
    struct json_value value;
    return json_scan(span_text(text), 1, &value, NULL) == WEIR_OK && value.kind != JSON_STRING &&
           value.kind != JSON_ARRAY && value.kind != JSON_OBJECT;
}

enum weir_status listeners_add_condition(struct settings *settings, struct settings_rule *rule,
                                         const char *key, const char *text, bool is_plain)
{
    if (settings->condition_count == SETTINGS_CONDITIONS_MAX)
        return WEIR_FULL;
    struct settings_condition *condition = &settings->conditions[settings->condition_count];
    struct span value = span_text(text);
    if (listeners_read_match(text, &value)) {
        condition->kind = SETTINGS_CONDITION_PATTERN;
    } else if (is_plain && (*text == '\0' || strcmp(text, "~") == 0)) {
        value = SPAN_LITERAL("null");
        condition->kind = SETTINGS_CONDITION_LITERAL;
    } else {
        value = span_text(text);
        condition->kind = is_plain && text_is_literal(text) ? SETTINGS_CONDITION_LITERAL
                                                            : SETTINGS_CONDITION_STRING;
    }
    if (condition->kind == SETTINGS_CONDITION_PATTERN && value.bytes == 0)
        return WEIR_INVALID;
    enum weir_status status = listeners_keep(settings, span_text(key), &condition->key);
    if (status == WEIR_OK)
        status = listeners_keep(settings, value, &condition->value);
    if (status != WEIR_OK)
        return status;
    settings->condition_count++;
    rule->condition_count++;
    return WEIR_OK;
}

enum weir_status settings_set_listener_ports(struct settings *settings, const char *list,
                                             struct weir_error *error)
{
    uint32_t count = 0;
    for (const char *at = list;; count++) { /* bounded by the text */
        const char *end = strchr(at, ',');
        size_t bytes = end != NULL ? (size_t)(end - at) : strlen(at);
        char text[8];
        uint64_t port = 0;
        if (bytes >= sizeof text)
            break;
        memcpy(text, at, bytes);
        text[bytes] = '\0';
        if (!settings_parse_number(text, &port) || port > UINT16_MAX ||
            count == settings->listener_count)
            break;
        settings->listeners[count].port = port;
        if (end == NULL)
            return count + 1 == settings->listener_count
                       ? WEIR_OK
                       : weir_fail(error, WEIR_INVALID,
                                   "--listener-ports names %u ports and the file %u listeners",
                                   (unsigned)count + 1, (unsigned)settings->listener_count);
        at = end + 1;
    }
    return weir_fail(error, WEIR_INVALID,
                     "--listener-ports %.60s: needs a port for each worker listener of the file, "
                     "separated by commas",
                     list);
}

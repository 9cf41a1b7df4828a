#include "broker/catalogue.h"

#include <stdio.h>

#include "broker/catalogue_inside.h"

enum { SHOWN_CHARACTERS_MAX = 280 };

/* ---- builtin ids ---- */

static const struct builtin_function builtins[] = {
    {CATALOGUE_NOT_BUILTIN, "stream::set", "iii-stream", "Store an item and announce the change"},
    {CATALOGUE_NOT_BUILTIN, "stream::get", "iii-stream", "Read an item"},
    {CATALOGUE_NOT_BUILTIN, "stream::delete", "iii-stream", "Remove an item and announce it"},
    {CATALOGUE_NOT_BUILTIN, "stream::list", "iii-stream", "All values of a group"},
    {CATALOGUE_NOT_BUILTIN, "stream::list_groups", "iii-stream", "The groups of a stream"},
    {CATALOGUE_NOT_BUILTIN, "stream::list_all", "iii-stream", "All streams with their groups"},
    {CATALOGUE_NOT_BUILTIN, "stream::send", "iii-stream",
     "Send an event to a group's subscribers without storing it"},
    {CATALOGUE_NOT_BUILTIN, "stream::update", "iii-stream",
     "Change an item in place by a list of operations"},
    {CATALOGUE_WORKERS_REGISTER, "engine::workers::register", "engine",
     "Announce a worker's metadata"},
    {CATALOGUE_FUNCTIONS_LIST, "engine::functions::list", "engine", "Registered functions"},
    {CATALOGUE_FUNCTIONS_INFO, "engine::functions::info", "engine", "One function, or up to 32"},
    {CATALOGUE_WORKERS_LIST, "engine::workers::list", "engine", "Connected workers"},
    {CATALOGUE_WORKERS_INFO, "engine::workers::info", "engine",
     "One worker with what it has registered"},
    {CATALOGUE_TRIGGERS_LIST, "engine::triggers::list", "engine", "Trigger types"},
    {CATALOGUE_TRIGGERS_INFO, "engine::triggers::info", "engine", "One trigger type"},
    {CATALOGUE_REGISTERED_LIST, "engine::registered-triggers::list", "engine", "Live triggers"},
    {CATALOGUE_REGISTERED_INFO, "engine::registered-triggers::info", "engine", "One live trigger"},
    {CATALOGUE_NOT_BUILTIN, "engine::channels::create", "engine",
     "A pipe of bytes from one socket to another"},
    {CATALOGUE_NOT_BUILTIN, "engine::log::trace", "engine", "Write a line to the log"},
    {CATALOGUE_NOT_BUILTIN, "engine::log::debug", "engine", "Write a line to the log"},
    {CATALOGUE_NOT_BUILTIN, "engine::log::info", "engine", "Write a line to the log"},
    {CATALOGUE_NOT_BUILTIN, "engine::log::warn", "engine", "Write a line to the log"},
    {CATALOGUE_NOT_BUILTIN, "engine::log::error", "engine", "Write a line to the log"},
};
enum { BUILTIN_COUNT = sizeof builtins / sizeof builtins[0] };

const struct builtin_function *builtin_functions(size_t *count)
{
    *count = BUILTIN_COUNT;
    return builtins;
}

static const struct builtin_function *builtin_by_id(struct span id)
{
    for (unsigned index = 0; index < BUILTIN_COUNT; index++)
        if (span_equal(span_text(builtins[index].id), id))
            return &builtins[index];
    return NULL;
}

static bool span_starts_with(struct span text, struct span prefix)
{
    return text.bytes >= prefix.bytes && memcmp(text.data, prefix.data, prefix.bytes) == 0;
}

enum catalogue_builtin catalogue_builtin_find(struct span space, struct span id)
{
    if (!span_starts_with(id, SPAN_LITERAL("engine::")) ||
        !span_equal(space, SPAN_LITERAL("default")))
        return CATALOGUE_NOT_BUILTIN;
    const struct builtin_function *found = builtin_by_id(id);
    return found ? found->builtin : CATALOGUE_NOT_BUILTIN;
}

bool catalogue_is_reserved(struct span space, struct span id)
{
    if (span_starts_with(id, SPAN_LITERAL("engine::")))
        return !span_equal(space, SPAN_LITERAL("default")) ||
               !span_starts_with(id, SPAN_LITERAL("engine::queue::"));
    return builtin_by_id(id) != NULL; /* stream::*: global, so in every namespace */
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

struct span id_worker_name(struct span id)
{
    for (size_t at = 0; at + 1 < id.bytes; at++)
        if (id.data[at] == ':' && id.data[at + 1] == ':')
            return span_of(id.data, at);
    return id;
}

struct span session_worker_name(const struct session *session, struct span id)
{
    return session->facts.name.data ? session->facts.name : id_worker_name(id);
}

/* ---- answers ---- */

static const struct answer {
    catalogue_answerer *print;
    unsigned wanted; /* of the input's fields */
} answers[] = {
    [CATALOGUE_FUNCTIONS_LIST] = {functions_list,
                                  INPUT_BIT(INPUT_SEARCH) | INPUT_BIT(INPUT_PREFIX) |
                                      INPUT_BIT(INPUT_WORKER) | INPUT_BIT(INPUT_WORKERS) |
                                      INPUT_BIT(INPUT_INCLUDE_INTERNAL)},
    [CATALOGUE_FUNCTIONS_INFO] = {functions_info, INPUT_BIT(INPUT_FUNCTION_ID) |
                                                      INPUT_BIT(INPUT_FUNCTION_IDS) |
                                                      INPUT_BIT(INPUT_NAMESPACE)},
    [CATALOGUE_WORKERS_LIST] = {workers_list, INPUT_BIT(INPUT_SEARCH) | INPUT_BIT(INPUT_RUNTIME) |
                                                  INPUT_BIT(INPUT_STATUS)},
    [CATALOGUE_WORKERS_INFO] = {workers_info, INPUT_BIT(INPUT_NAME) | INPUT_BIT(INPUT_NAMESPACE)},
    [CATALOGUE_TRIGGERS_LIST] = {registry_list, INPUT_BIT(INPUT_SEARCH) | INPUT_BIT(INPUT_PREFIX) |
                                                    INPUT_BIT(INPUT_WORKER) |
                                                    INPUT_BIT(INPUT_INCLUDE_INTERNAL)},
    [CATALOGUE_TRIGGERS_INFO] = {registry_info, INPUT_BIT(INPUT_ID) | INPUT_BIT(INPUT_NAMESPACE)},
    [CATALOGUE_REGISTERED_LIST] = {registered_list,
                                   INPUT_BIT(INPUT_SEARCH) | INPUT_BIT(INPUT_TRIGGER_TYPE) |
                                       INPUT_BIT(INPUT_FUNCTION_ID) | INPUT_BIT(INPUT_WORKER) |
                                       INPUT_BIT(INPUT_INCLUDE_INTERNAL)},
    [CATALOGUE_REGISTERED_INFO] = {registered_info, INPUT_BIT(INPUT_ID)},
};

static const char *builtin_id(enum catalogue_builtin builtin)
{
    for (unsigned index = 0; index < BUILTIN_COUNT; index++)
        if (builtins[index].builtin == builtin)
            return builtins[index].id;
    return "";
}

void catalogue_refuse(struct printer *printer, struct catalogue_problem *problem, const char *code,
                      const char *sentence)
{
    problem->code = code;
    (void)snprintf(problem->sentence, sizeof problem->sentence, "%s", sentence);
    printer->status = WEIR_INVALID;
}

static void input_refuse(struct catalogue_problem *problem, enum catalogue_builtin builtin,
                         const char *sentence)
{
    problem->code = "deserialization_error";
    (void)snprintf(problem->sentence, sizeof problem->sentence, "%s: %s", builtin_id(builtin),
                   sentence);
}

enum weir_status catalogue_answer(const struct catalogue_sources *sources,
                                  enum catalogue_builtin builtin, struct span input_json,
                                  struct buffer *out, struct catalogue_problem *problem)
{
    struct catalogue_problem unheard;
    struct input input;
    const char *sentence = "";
    weir_assert(builtin >= CATALOGUE_FUNCTIONS_LIST && builtin <= CATALOGUE_REGISTERED_INFO);
    if (!problem)
        problem = &unheard;
    enum weir_status status = input_read(&input, input_json, answers[builtin].wanted, &sentence);
    if (status == WEIR_OK) {
        struct printer printer = {out, WEIR_OK};
        answers[builtin].print(sources, &input, &printer, problem);
        status = printer.status;
    } else if (status == WEIR_INVALID) {
        input_refuse(problem, builtin, sentence);
    }
    input_fini(&input);
    return status;
}

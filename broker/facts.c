#include "broker/facts.h"

#include <stdlib.h>

#include "broker/catalogue.h"
#include "shm/limits.h"

enum {
    FACT_NAME,
    FACT_DESCRIPTION,
    FACT_VERSION,
    FACT_RUNTIME,
    FACT_OS,
    FACT_ISOLATION,
    FACT_SPACE,
    FACT_PID,
    FACT_COUNT
};

/* Behind what `facts` has already; `scratch` and the block hold the whole input. */
static struct span facts_clean(struct facts *facts, char *scratch, struct json_value value)
{
    if (value.kind != JSON_STRING)
        return (struct span){0};
    char *out = facts->text + facts->bytes;
    size_t bytes = catalogue_clean(out, span_of(scratch, json_unescape(scratch, value)));
    facts->bytes += bytes;
    return bytes > 0 ? span_of(out, bytes) : (struct span){0};
}

static struct span facts_space(struct facts *facts, struct json_value value)
{
    if (value.kind != JSON_STRING || value.text.bytes > NAME_ESCAPED_BYTES_MAX + 2)
        return (struct span){0};
    struct span space = span_of(facts->text + facts->bytes, 0);
    space.bytes = json_unescape(facts->text + facts->bytes, value);
    if (space.bytes > NAME_BYTES_MAX || span_is_blank(space))
        return (struct span){0};
    facts->bytes += space.bytes;
    return space;
}

/* Digits only, as process ids are. */
static bool facts_pid(struct json_value value, uint64_t *pid)
{
    if (value.kind != JSON_NUMBER || value.text.bytes > 19)
        return false;
    *pid = 0;
    for (size_t i = 0; i < value.text.bytes; i++) {
        if (value.text.data[i] < '0' || value.text.data[i] > '9')
            return false;
        *pid = *pid * 10 + (uint64_t)(value.text.data[i] - '0');
    }
    return true;
}

enum weir_status facts_read(struct facts *facts, struct span input)
{
    static const char *const names[FACT_COUNT] = {"name", "description", "version",   "runtime",
                                                  "os",   "isolation",   "namespace", "pid"};
    struct json_value values[FACT_COUNT];
    if (json_scan_object(input, JSON_DEPTH_MAX, names, FACT_COUNT, values, NULL) != WEIR_OK)
        return WEIR_INVALID;
    struct facts read = {.text = malloc(input.bytes)};
    char *scratch = malloc(input.bytes);
    if (!read.text || !scratch) {
        free(read.text);
        free(scratch);
        return WEIR_NO_MEMORY;
    }
    read.name = facts_clean(&read, scratch, values[FACT_NAME]);
    read.description = facts_clean(&read, scratch, values[FACT_DESCRIPTION]);
    read.version = facts_clean(&read, scratch, values[FACT_VERSION]);
    read.runtime = facts_clean(&read, scratch, values[FACT_RUNTIME]);
    read.os = facts_clean(&read, scratch, values[FACT_OS]);
    read.isolation = facts_clean(&read, scratch, values[FACT_ISOLATION]);
    read.space = facts_space(&read, values[FACT_SPACE]);
    read.has_pid = facts_pid(values[FACT_PID], &read.pid);
    free(scratch);
    facts_fini(facts);
    *facts = read;
    facts->bytes = input.bytes; /* what the block takes */
    return WEIR_OK;
}

void facts_fini(struct facts *facts)
{
    free(facts->text);
    *facts = (struct facts){0};
}

#include "gateway/counters.h"

#include <ctype.h>

static const struct {
    const char *name, *type, *sentence;
} counter_table[COUNTER_COUNT] = {
#define COUNTER_ROW(name, type, sentence) {#name, #type, sentence},
    COUNTER_MAP(COUNTER_ROW)
#undef COUNTER_ROW
};

void counters_attach(struct counters *counters, struct reader *reader)
{
    counters->reader = reader;
    memset(counters->published, 0, sizeof counters->published);
    counters_publish(counters);
}

void counters_publish(struct counters *counters)
{
    if (counters->reader == NULL)
        return;
    for (unsigned i = 0; i < COUNTER_COUNT; i++) {
        if (counters->values[i] == counters->published[i])
            continue;
        reader_counter_add(counters->reader, i, counters->values[i] - counters->published[i]);
        counters->published[i] = counters->values[i];
    }
}

const char *counters_name(enum counter counter)
{
    static char name[64];
    size_t i = 0;
    for (; counter_table[counter].name[i] != '\0' && i < sizeof name - 1; i++)
        name[i] = (char)tolower((unsigned char)counter_table[counter].name[i]);
    name[i] = '\0';
    return name;
}

const char *counters_type(enum counter counter)
{
    return counter_table[counter].type;
}

const char *counters_sentence(enum counter counter)
{
    return counter_table[counter].sentence;
}

#include "gateway/custom_streams.h"

#include <stdlib.h>

#include "gateway/uuid.h"
#include "shm/hash.h"
#include "shm/limits.h"
#include "shm/stream_functions.h"

enum { BUCKETS = 4096 }; /* a power of two */

struct entry {
    struct entry *next;
    uint64_t hash;
    uint64_t told; /* when the broker last said so: streams->generation; 0: not yet */
    size_t bytes;
    char text[];
};

struct custom_streams {
    struct entry *buckets[BUCKETS];
    uint64_t seed;
    uint32_t count;
    uint64_t bytes;
    uint64_t generation;
    bool is_any; /* not all are known */
    bool is_telling;
    bool has_news;
};

struct custom_streams *custom_streams_open(void)
{
    struct custom_streams *streams = calloc(1, sizeof *streams);
    if (streams == NULL)
        return NULL;
    uuid_random(&streams->seed, sizeof streams->seed);
    streams->generation = 1;
    return streams;
}

void custom_streams_clear(struct custom_streams *streams)
{
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        for (struct entry *entry = streams->buckets[bucket], *next; entry != NULL; entry = next) {
            next = entry->next;
            free(entry);
        }
        streams->buckets[bucket] = NULL;
    }
    streams->count = 0;
    streams->bytes = 0;
    streams->is_any = false;
    streams->is_telling = true;
    streams->has_news = false;
}

void custom_streams_told(struct custom_streams *streams)
{
    streams->is_telling = false;
}

bool custom_streams_are_told(const struct custom_streams *streams)
{
    return streams == NULL || !streams->is_telling;
}

void custom_streams_close(struct custom_streams *streams)
{
    if (streams == NULL)
        return;
    custom_streams_clear(streams);
    free(streams);
}

static struct entry *streams_find(const struct custom_streams *streams, struct span stream)
{
    uint64_t hash = hash_bytes(streams->seed, stream);
    struct entry *entry = streams->buckets[hash & (BUCKETS - 1)];
    while (entry != NULL &&
           !(entry->hash == hash && span_equal(span_of(entry->text, entry->bytes), stream)))
        entry = entry->next;
    return entry;
}

/* NULL: no room or no memory; every stream counts as custom from then on. */
static struct entry *streams_add(struct custom_streams *streams, struct span stream)
{
    struct entry *entry = NULL;
    if (streams->count < CUSTOM_STREAMS_MAX &&
        streams->bytes + stream.bytes <= CUSTOM_STREAMS_BYTES_MAX)
        entry = malloc(sizeof *entry + stream.bytes);
    if (entry == NULL) {
        streams->is_any = true;
        return NULL;
    }
    *entry = (struct entry){.hash = hash_bytes(streams->seed, stream), .bytes = stream.bytes};
    struct entry **bucket = &streams->buckets[entry->hash & (BUCKETS - 1)];
    entry->next = *bucket;
    if (stream.bytes > 0)
        memcpy(entry->text, stream.data, stream.bytes);
    *bucket = entry;
    streams->count++;
    streams->bytes += stream.bytes;
    return entry;
}

static void streams_remove(struct custom_streams *streams, struct entry *entry)
{
    struct entry **at = &streams->buckets[entry->hash & (BUCKETS - 1)];
    while (*at != entry) /* ends: every entry is in its bucket */
        at = &(*at)->next;
    *at = entry->next;
    streams->count--;
    streams->bytes -= entry->bytes;
    free(entry);
}

void custom_streams_set(struct custom_streams *streams, struct span stream, bool is_custom)
{
    if (stream.data == NULL) {
        streams->is_any = true;
        return;
    }
    struct entry *entry = streams_find(streams, stream);
    if (entry == NULL && is_custom)
        entry = streams_add(streams, stream);
    if (entry == NULL)
        return;
    if (!is_custom) {
        streams_remove(streams, entry);
        return;
    }
    entry->told = streams->generation;
    streams->has_news = true;
}

void custom_streams_note(struct custom_streams *streams, struct span name_space, struct span id)
{
    struct span stream;
    bool is_default = name_space.bytes == 0 || span_equal(name_space, SPAN_LITERAL("default"));
    if (streams != NULL && is_default && stream_function_replaced_by(id, &stream) != NULL &&
        streams_find(streams, stream) == NULL)
        (void)streams_add(streams, stream);
}

bool custom_streams_have(const struct custom_streams *streams, struct span stream)
{
    if (streams == NULL || (streams->count == 0 && !streams->is_any))
        return false;
    return streams->is_any || streams_find(streams, stream) != NULL;
}

bool custom_streams_have_news(const struct custom_streams *streams)
{
    return streams != NULL && streams->has_news;
}

bool custom_streams_is_news(const struct custom_streams *streams, struct span stream)
{
    const struct entry *entry = streams_find(streams, stream);
    return entry != NULL && entry->told == streams->generation;
}

void custom_streams_settle(struct custom_streams *streams)
{
    streams->generation++;
    streams->has_news = false;
}

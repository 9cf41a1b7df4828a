#include "broker/answered.h"

#include <stdlib.h>

struct answered_request {
    uint64_t origin, request, time_ms;
    uint64_t position; /* of its answer in all bytes ever put in */
    uint32_t bytes;    /* UINT32_MAX: not known */
    uint32_t next;     /* of the same bucket, from 1; 0: none */
};

struct answered {
    /* Both are rings: the newest stay. */
    struct answered_request *requests;
    uint64_t count; /* ever put in */
    uint64_t capacity;
    char *text;
    uint64_t text_bytes; /* ever put in */
    uint64_t text_capacity;
    uint32_t *buckets; /* NULL: not made yet */
    uint64_t bucket_count;
};

enum { ANSWERED_FIRST = 4096, ANSWERED_TEXT_FIRST = 1024 * 1024 };

struct answered *answered_open(void)
{
    return calloc(1, sizeof(struct answered));
}

void answered_close(struct answered *answered)
{
    if (!answered)
        return;
    free(answered->requests);
    free(answered->text);
    free(answered->buckets);
    free(answered);
}

/* Both rings grow only until they are full for the first time, so nothing in them has wrapped yet. */
static bool answered_grow(struct answered *answered, size_t bytes)
{
    if (answered->count == answered->capacity && answered->capacity < ANSWERED_MAX) {
        uint64_t capacity = answered->capacity == 0 ? ANSWERED_FIRST : 2 * answered->capacity;
        void *requests = realloc(answered->requests, capacity * sizeof *answered->requests);
        if (!requests)
            return false;
        answered->requests = requests;
        answered->capacity = capacity;
    }
    while (answered->text_bytes + bytes > answered->text_capacity &&
           answered->text_capacity < ANSWERED_BYTES_MAX) {
        uint64_t capacity =
            answered->text_capacity == 0 ? ANSWERED_TEXT_FIRST : 2 * answered->text_capacity;
        char *text = realloc(answered->text, capacity);
        if (!text)
            return false;
        answered->text = text;
        answered->text_capacity = capacity;
    }
    return true;
}

/* An answer is in one piece: what would cross the end starts at the beginning. */
static uint64_t answered_place(const struct answered *answered, size_t bytes)
{
    uint64_t place = answered->text_bytes % answered->text_capacity;
    return place + bytes <= answered->text_capacity
               ? answered->text_bytes
               : answered->text_bytes + answered->text_capacity - place;
}

enum weir_status answered_add(struct answered *answered, uint64_t origin, uint64_t request,
                              uint64_t time_ms, const struct span *parts, unsigned part_count)
{
    size_t bytes = 0;
    for (unsigned index = 0; index < part_count; index++)
        bytes += parts[index].bytes;
    if (bytes > ANSWERED_BYTES_MAX)
        part_count = 0;
    if (!answered_grow(answered, part_count > 0 ? bytes : 0))
        return WEIR_NO_MEMORY;
    struct answered_request *added = &answered->requests[answered->count % answered->capacity];
    *added = (struct answered_request){
        .origin = origin, .request = request, .time_ms = time_ms, .bytes = UINT32_MAX};
    answered->count++;
    if (part_count == 0)
        return WEIR_OK;
    added->bytes = (uint32_t)bytes;
    added->position = answered_place(answered, bytes);
    char *at = answered->text + added->position % answered->text_capacity;
    for (unsigned index = 0; index < part_count; index++) {
        if (parts[index].bytes > 0)
            memcpy(at, parts[index].data, parts[index].bytes);
        at += parts[index].bytes;
    }
    answered->text_bytes = added->position + bytes;
    return WEIR_OK;
}

static uint64_t answered_bucket(const struct answered *answered, uint64_t origin, uint64_t request)
{
    /* Any odd multiplier spreads them (Knuth, TAOCP 6.4). */
    uint64_t hash = (origin ^ request * 0xBF58476D1CE4E5B9ull) * 0x9E3779B97F4A7C15ull;
    return (hash ^ hash >> 32) & (answered->bucket_count - 1);
}

/* Without memory for the table every look is a walk, which is slow and right. */
static void answered_index(struct answered *answered)
{
    uint64_t kept = answered->count < answered->capacity ? answered->count : answered->capacity;
    answered->bucket_count = 1;
    while (answered->bucket_count < kept)
        answered->bucket_count *= 2;
    answered->buckets = calloc(answered->bucket_count, sizeof *answered->buckets);
    for (uint64_t index = 0; index < kept && answered->buckets; index++) {
        struct answered_request *request = &answered->requests[index];
        uint32_t *bucket =
            &answered->buckets[answered_bucket(answered, request->origin, request->request)];
        request->next = *bucket;
        *bucket = (uint32_t)index + 1;
    }
}

static const struct answered_request *answered_look(const struct answered *answered,
                                                    uint64_t origin, uint64_t request)
{
    uint64_t kept = answered->count < answered->capacity ? answered->count : answered->capacity;
    uint32_t at = answered->buckets ? answered->buckets[answered_bucket(answered, origin, request)]
                                    : (uint32_t)kept;
    while (at != 0) { /* at most all that are kept */
        const struct answered_request *known = &answered->requests[at - 1];
        if (known->origin == origin && known->request == request)
            return known;
        at = answered->buckets ? known->next : at - 1;
    }
    return NULL;
}

/* Its text may have been overwritten since. */
static struct span answered_result(const struct answered *answered,
                                   const struct answered_request *known)
{
    if (known->bytes == UINT32_MAX ||
        answered->text_bytes - known->position > answered->text_capacity)
        return (struct span){0};
    return span_of(answered->text + known->position % answered->text_capacity, known->bytes);
}

bool answered_find(struct answered *answered, uint64_t origin, uint64_t request,
                   struct span *result)
{
    *result = (struct span){0};
    if (!answered || answered->count == 0 || origin == 0)
        return false;
    if (!answered->buckets)
        answered_index(answered);
    const struct answered_request *known = answered_look(answered, origin, request);
    if (!known)
        return false;
    *result = answered_result(answered, known);
    return true;
}

bool answered_next(const struct answered *answered, uint64_t *cursor, struct answered_entry *entry)
{
    if (!answered)
        return false;
    uint64_t oldest =
        answered->count > answered->capacity ? answered->count - answered->capacity : 0;
    if (*cursor < oldest)
        *cursor = oldest;
    if (*cursor >= answered->count)
        return false;
    const struct answered_request *known = &answered->requests[*cursor % answered->capacity];
    *entry = (struct answered_entry){known->origin, known->request, known->time_ms,
                                     answered_result(answered, known)};
    (*cursor)++;
    return true;
}

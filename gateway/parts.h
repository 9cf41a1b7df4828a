/* gateway/parts.h -- several texts kept behind one another in one block, any of them nil.
 *
 * Process and thread: any.
 * Memory:   the owner's; spans point into `text`.
 * Units:    bytes, each part below 4 GiB; PART_NIL in place of a length is a nil part.
 */
#ifndef WEIR_GATEWAY_PARTS_H
#define WEIR_GATEWAY_PARTS_H

#include "shm/span.h"

#define PART_NIL UINT32_MAX

static inline size_t parts_bytes(const struct span *parts, unsigned count)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < count; i++)
        bytes += parts[i].bytes;
    return bytes;
}

/* `text` holds parts_bytes(), `bytes` one entry a part. */
static inline void parts_keep(uint32_t *bytes, char *text, const struct span *parts, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        bytes[i] = parts[i].data == NULL ? PART_NIL : (uint32_t)parts[i].bytes;
        if (parts[i].bytes > 0)
            memcpy(text, parts[i].data, parts[i].bytes);
        text += parts[i].bytes;
    }
}

static inline struct span parts_find(const uint32_t *bytes, const char *text, unsigned part)
{
    if (bytes[part] == PART_NIL)
        return (struct span){0};
    for (unsigned i = 0; i < part; i++)
        text += bytes[i] == PART_NIL ? 0 : bytes[i];
    return span_of(text, bytes[part]);
}

static inline size_t parts_kept_bytes(const uint32_t *bytes, unsigned count)
{
    size_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += bytes[i] == PART_NIL ? 0 : bytes[i];
    return sum;
}

#endif

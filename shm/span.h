/* shm/span.h -- a view of bytes someone else owns, and the one growable buffer.
 *
 * Process and thread: any; a buffer has one owner at a time.
 * Memory:   a span owns nothing and is valid as long as what it points into. A buffer owns `data`,
 *           grows by doubling up to `limit_bytes` and never beyond; buffer_clear() keeps the memory
 *           for the next use.
 * Errors:   growing returns FULL at the limit and NO_MEMORY when malloc fails; the contents stay as
 *           they were.
 */
#ifndef WEIR_SHM_SPAN_H
#define WEIR_SHM_SPAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "shm/status.h"

struct span {
    const char *data; /* may be NULL only when bytes is 0 */
    size_t bytes;
};

#define SPAN_LITERAL(text) ((struct span){(text), sizeof(text) - 1})

static inline struct span span_of(const void *data, size_t bytes)
{
    return (struct span){data, bytes};
}

static inline struct span span_text(const char *text)
{
    return (struct span){text, strlen(text)};
}

static inline bool span_equal(struct span a, struct span b)
{
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}

/* The same for secrets: takes as long for any `shown` of one length, however much of it is right. */
static inline bool span_equal_secret(struct span secret, struct span shown)
{
    unsigned difference = secret.bytes != shown.bytes;
    for (size_t i = 0; i < shown.bytes && secret.bytes > 0; i++) {
        size_t at = i < secret.bytes ? i : 0;
        difference |= (unsigned char)secret.data[at] ^ (unsigned char)shown.data[i];
    }
    return difference == 0;
}

/* Copy `part` to where `end` points and move `end` behind it, for texts kept in one block. The copy;
 * data NULL stays NULL. */
static inline struct span span_put(char **end, struct span part)
{
    struct span kept = span_of(*end, part.bytes);
    if (part.data == NULL)
        return (struct span){0};
    if (part.bytes > 0)
        memcpy(*end, part.data, part.bytes);
    *end += part.bytes;
    return kept;
}

/* Nothing but white space (of JSON, RFC 8259 section 2); true when empty. */
static inline bool span_is_blank(struct span span)
{
    for (size_t i = 0; i < span.bytes; i++) {
        char byte = span.data[i];
        if (byte != ' ' && byte != '\t' && byte != '\n' && byte != '\r')
            return false;
    }
    return true;
}

struct buffer {
    char *data;
    size_t bytes;
    size_t capacity_bytes;
    size_t limit_bytes;
};

void buffer_init(struct buffer *buffer, size_t limit_bytes);
void buffer_fini(struct buffer *buffer);

/* Room for `more_bytes` behind what is there; the caller writes at data + bytes and adds to bytes. */
enum weir_status buffer_reserve(struct buffer *buffer, size_t more_bytes) WEIR_MUST_CHECK;
enum weir_status buffer_append(struct buffer *buffer, struct span span) WEIR_MUST_CHECK;
enum weir_status buffer_printf(struct buffer *buffer, const char *format, ...) WEIR_MUST_CHECK
    WEIR_PRINTF(2, 3);

/* Drop the first `bytes` bytes (consumed input); moves the rest to the front. */
void buffer_consume(struct buffer *buffer, size_t bytes);

static inline void buffer_clear(struct buffer *buffer)
{
    buffer->bytes = 0;
}
static inline struct span buffer_span(const struct buffer *buffer)
{
    return (struct span){buffer->data, buffer->bytes};
}

#endif

#include "shm/span.h"

#include <stdio.h>
#include <stdlib.h>

enum { BUFFER_FIRST_BYTES = 256 };

void buffer_init(struct buffer *buffer, size_t limit_bytes)
{
    *buffer = (struct buffer){.limit_bytes = limit_bytes};
}

void buffer_fini(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

enum weir_status buffer_reserve(struct buffer *buffer, size_t more_bytes)
{
    weir_assert(buffer->bytes <= buffer->capacity_bytes);
    if (more_bytes <= buffer->capacity_bytes - buffer->bytes)
        return WEIR_OK;
    if (more_bytes > buffer->limit_bytes || buffer->bytes > buffer->limit_bytes - more_bytes)
        return WEIR_FULL;
    size_t need = buffer->bytes + more_bytes;
    size_t capacity = buffer->capacity_bytes == 0 ? BUFFER_FIRST_BYTES : buffer->capacity_bytes;
    while (capacity < need)
        capacity *= 2;
    if (capacity > buffer->limit_bytes)
        capacity = buffer->limit_bytes;
    char *data = realloc(buffer->data, capacity);
    if (data == NULL)
        return WEIR_NO_MEMORY;
    buffer->data = data;
    buffer->capacity_bytes = capacity;
    return WEIR_OK;
}

enum weir_status buffer_append(struct buffer *buffer, struct span span)
{
    if (span.bytes == 0)
        return WEIR_OK;
    enum weir_status status = buffer_reserve(buffer, span.bytes);
    if (status != WEIR_OK)
        return status;
    memcpy(buffer->data + buffer->bytes, span.data, span.bytes);
    buffer->bytes += span.bytes;
    return WEIR_OK;
}

enum weir_status buffer_printf(struct buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int need = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (need < 0)
        return WEIR_INVALID;
    enum weir_status status = buffer_reserve(buffer, (size_t)need + 1);
    if (status != WEIR_OK)
        return status;
    va_start(arguments, format);
    (void)vsnprintf(buffer->data + buffer->bytes, (size_t)need + 1, format, arguments);
    va_end(arguments);
    buffer->bytes += (size_t)need;
    return WEIR_OK;
}

void buffer_consume(struct buffer *buffer, size_t bytes)
{
    weir_assert(bytes <= buffer->bytes);
    if (bytes == 0)
        return;
    buffer->bytes -= bytes;
    if (buffer->bytes > 0)
        memmove(buffer->data, buffer->data + bytes, buffer->bytes);
}

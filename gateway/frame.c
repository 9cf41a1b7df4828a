#include "gateway/frame.h"

#include <stdlib.h>

enum {
    POOL_COUNT_MAX = 64,               /* assemblies kept; more are freed */
    POOL_MESSAGE_BYTES_MAX = 64 * 1024 /* a larger message buffer is not kept */
};

struct frame_assembly {
    struct frame_assembly *next;
    /* A header, or a control frame with its payload, that arrived in part. */
    uint8_t carry_bytes;
    char carry[FRAME_HEADER_BYTES_MAX + FRAME_CONTROL_BYTES_MAX];
    bool in_payload;    /* of the data frame `header` */
    bool in_message;    /* a first fragment has been seen, the final one has not */
    bool was_delivered; /* `message` was handed out by the last call */
    bool is_binary;
    struct frame_header header;
    uint64_t payload_offset;
    uint64_t message_bytes;
    struct buffer message;
};

enum weir_status frame_header_parse(struct span bytes, struct frame_header *header,
                                    const char **reason)
{
    const uint8_t *in = (const uint8_t *)bytes.data;
    if (bytes.bytes < 2)
        return WEIR_AGAIN;
    header->is_final = (in[0] & 0x80) != 0;
    header->opcode = in[0] & 0x0f;
    bool is_control = (header->opcode & 0x8) != 0;
    if (in[0] & 0x70) {
        *reason = "reserved bit set";
        return WEIR_INVALID;
    }
    if (header->opcode > (is_control ? FRAME_PONG : FRAME_BINARY)) {
        *reason = "unknown opcode";
        return WEIR_INVALID;
    }
    if (!(in[1] & 0x80)) {
        *reason = "frame is not masked";
        return WEIR_INVALID;
    }
    unsigned length = in[1] & 0x7f;
    if (is_control && (!header->is_final || length > FRAME_CONTROL_BYTES_MAX)) {
        *reason = "control frame too long or fragmented";
        return WEIR_INVALID;
    }
    unsigned length_bytes = length < 126 ? 0 : length == 126 ? 2 : 8;
    header->header_bytes = (uint8_t)(2 + length_bytes + 4);
    if (bytes.bytes < header->header_bytes)
        return WEIR_AGAIN;
    header->payload_bytes = length;
    if (length_bytes) {
        header->payload_bytes = 0;
        for (unsigned index = 0; index < length_bytes; index++)
            header->payload_bytes = header->payload_bytes << 8 | in[2 + index];
    }
    if (header->payload_bytes >> 63) {
        *reason = "length out of range";
        return WEIR_INVALID;
    }
    if (header->payload_bytes > WS_FRAME_BYTES_MAX) {
        *reason = "frame too large";
        return WEIR_TOO_LARGE;
    }
    memcpy(header->mask, in + 2 + length_bytes, 4);
    return WEIR_OK;
}

void frame_unmask(char *data, size_t bytes, const uint8_t mask[4], uint64_t offset)
{
    uint8_t turned[8];
    for (unsigned index = 0; index < 8; index++)
        turned[index] = mask[(offset + index) & 3];
    uint64_t mask_word;
    memcpy(&mask_word, turned, 8);
    size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        word ^= mask_word;
        memcpy(data + at, &word, 8);
    }
    for (; at < bytes; at++)
        data[at] = (char)((uint8_t)data[at] ^ turned[at & 7]);
}

size_t frame_control_write(char *out, enum frame_opcode opcode, struct span payload)
{
    weir_assert(payload.bytes <= FRAME_CONTROL_BYTES_MAX);
    out[0] = (char)(0x80 | opcode);
    out[1] = (char)payload.bytes;
    if (payload.bytes)
        memcpy(out + 2, payload.data, payload.bytes);
    return 2 + payload.bytes;
}

/* ---- the pool ---- */

static struct frame_assembly *assembly_take(struct frame_pool *pool)
{
    struct frame_assembly *assembly = pool->free;
    if (assembly) {
        pool->free = assembly->next;
        pool->free_count--;
        return assembly;
    }
    assembly = calloc(1, sizeof(*assembly));
    if (assembly)
        buffer_init(&assembly->message, WS_MESSAGE_BYTES_MAX);
    return assembly;
}

static void assembly_free(struct frame_assembly *assembly)
{
    buffer_fini(&assembly->message);
    free(assembly);
}

void frame_assembly_release(struct frame_pool *pool, struct frame_assembly **assembly)
{
    struct frame_assembly *old = *assembly;
    *assembly = NULL;
    if (!old)
        return;
    if (pool->free_count >= POOL_COUNT_MAX ||
        old->message.capacity_bytes > POOL_MESSAGE_BYTES_MAX) {
        assembly_free(old);
        return;
    }
    struct buffer message = old->message;
    buffer_clear(&message);
    memset(old, 0, sizeof(*old));
    old->message = message;
    old->next = pool->free;
    pool->free = old;
    pool->free_count++;
}

void frame_pool_fini(struct frame_pool *pool)
{
    while (pool->free) {
        struct frame_assembly *assembly = pool->free;
        pool->free = assembly->next;
        assembly_free(assembly);
    }
    pool->free_count = 0;
}

/* ---- the stream ---- */

static enum frame_event fail(struct frame_item *item, unsigned close_code, const char *reason)
{
    item->close_code = close_code;
    item->reason = reason;
    return FRAME_ERROR;
}

static enum frame_event control_event(uint8_t opcode)
{
    return opcode == FRAME_PING   ? FRAME_GOT_PING
           : opcode == FRAME_PONG ? FRAME_GOT_PONG
                                  : FRAME_GOT_CLOSE;
}

/* A data frame's place in its message: NULL when it may stand there, else why not. */
static const char *order_fault(const struct frame_assembly *assembly,
                               const struct frame_header *header)
{
    bool in_message = assembly && assembly->in_message;
    if (header->opcode == FRAME_CONTINUATION)
        return in_message ? NULL : "continuation of nothing";
    return in_message ? "a message inside a message" : NULL;
}

/* Store the part of the current frame's payload that is here. */
static enum frame_event payload_take(struct frame_assembly *assembly, char **data, size_t *bytes,
                                     bool discard, struct frame_item *item)
{
    const struct frame_header *header = &assembly->header;
    uint64_t left = header->payload_bytes - assembly->payload_offset;
    size_t here = left < *bytes ? (size_t)left : *bytes;
    if (here && !discard) {
        frame_unmask(*data, here, header->mask, assembly->payload_offset);
        if (buffer_append(&assembly->message, span_of(*data, here)) != WEIR_OK)
            return fail(item, 1009, "message too large");
    }
    *data += here;
    *bytes -= here;
    assembly->payload_offset += here;
    if (assembly->payload_offset < header->payload_bytes)
        return FRAME_MORE;
    assembly->in_payload = false;
    assembly->in_message = !header->is_final;
    if (!header->is_final)
        return FRAME_MORE;
    assembly->was_delivered = true;
    item->payload = buffer_span(&assembly->message);
    item->is_binary = assembly->is_binary;
    return FRAME_MESSAGE;
}

/* Move bytes of the piece behind the carried ones until a header, and for a control frame its
 * payload, is complete. */
static enum weir_status carry_fill(struct frame_assembly *assembly, char **data, size_t *bytes,
                                   struct frame_header *header, const char **reason)
{
    for (;;) {
        struct span carried = span_of(assembly->carry, assembly->carry_bytes);
        enum weir_status status = frame_header_parse(carried, header, reason);
        if (status != WEIR_OK && status != WEIR_AGAIN)
            return status;
        if (status == WEIR_OK) {
            uint64_t whole = header->header_bytes;
            if (header->opcode & 0x8)
                whole += header->payload_bytes;
            if (assembly->carry_bytes >= whole)
                return WEIR_OK;
        }
        if (*bytes == 0)
            return WEIR_AGAIN;
        /* At most 139 bytes, and only where a read ended inside a header. */
        assembly->carry[assembly->carry_bytes++] = **data;
        (*data)++;
        (*bytes)--;
    }
}

static enum frame_event data_begin(struct frame_pool *pool, struct frame_assembly **assembly,
                                   const struct frame_header *header, struct frame_item *item)
{
    const char *fault = order_fault(*assembly, header);
    if (fault)
        return fail(item, 1002, fault);
    if (!*assembly)
        *assembly = assembly_take(pool);
    if (!*assembly)
        return fail(item, 1011, "out of memory");
    struct frame_assembly *own = *assembly;
    if (header->opcode != FRAME_CONTINUATION) {
        own->is_binary = header->opcode == FRAME_BINARY;
        own->message_bytes = 0;
    }
    own->message_bytes += header->payload_bytes;
    if (own->message_bytes > WS_MESSAGE_BYTES_MAX)
        return fail(item, 1009, "message too large");
    own->header = *header;
    own->payload_offset = 0;
    own->in_payload = true;
    return FRAME_MORE;
}

static enum frame_event parse_error(enum weir_status status, const char *reason,
                                    struct frame_item *item)
{
    return fail(item, status == WEIR_TOO_LARGE ? 1009 : 1002, reason);
}

/* A frame that began in an earlier piece. */
static enum frame_event carried_next(struct frame_pool *pool, struct frame_assembly **assembly,
                                     char **data, size_t *bytes, struct frame_item *item)
{
    struct frame_header header;
    const char *reason = NULL;
    enum weir_status status = carry_fill(*assembly, data, bytes, &header, &reason);
    if (status == WEIR_AGAIN)
        return FRAME_MORE;
    if (status != WEIR_OK)
        return parse_error(status, reason, item);
    (*assembly)->carry_bytes = 0;
    if (!(header.opcode & 0x8))
        return data_begin(pool, assembly, &header, item);
    char *payload = (*assembly)->carry + header.header_bytes;
    frame_unmask(payload, (size_t)header.payload_bytes, header.mask, 0);
    item->payload = span_of(payload, (size_t)header.payload_bytes);
    return control_event(header.opcode);
}

/* A frame whose first byte is at *data. */
static enum frame_event fresh_next(struct frame_pool *pool, struct frame_assembly **assembly,
                                   char **data, size_t *bytes, struct frame_item *item)
{
    struct frame_header header;
    const char *reason = NULL;
    enum weir_status status = frame_header_parse(span_of(*data, *bytes), &header, &reason);
    if (status != WEIR_OK && status != WEIR_AGAIN)
        return parse_error(status, reason, item);
    bool is_control = status == WEIR_OK && (header.opcode & 0x8);
    bool is_whole = status == WEIR_OK && *bytes - header.header_bytes >= header.payload_bytes;
    if (status == WEIR_AGAIN || (is_control && !is_whole)) {
        if (!*assembly)
            *assembly = assembly_take(pool);
        if (!*assembly)
            return fail(item, 1011, "out of memory");
        return carried_next(pool, assembly, data, bytes, item);
    }
    char *payload = *data + header.header_bytes;
    *data = payload;
    *bytes -= header.header_bytes;
    bool is_one_piece = is_whole && header.is_final && !(*assembly && (*assembly)->in_message) &&
                        header.opcode != FRAME_CONTINUATION;
    if (!is_control && !is_one_piece)
        return data_begin(pool, assembly, &header, item);
    frame_unmask(payload, (size_t)header.payload_bytes, header.mask, 0);
    *data += header.payload_bytes;
    *bytes -= (size_t)header.payload_bytes;
    item->payload = span_of(payload, (size_t)header.payload_bytes);
    item->is_binary = header.opcode == FRAME_BINARY;
    return is_control ? control_event(header.opcode) : FRAME_MESSAGE;
}

static bool assembly_is_empty(const struct frame_assembly *assembly)
{
    return !assembly->in_payload && !assembly->in_message && assembly->carry_bytes == 0;
}

enum frame_event frame_next(struct frame_pool *pool, struct frame_assembly **assembly, char **data,
                            size_t *bytes, bool discard, struct frame_item *item)
{
    if (*assembly && (*assembly)->was_delivered) {
        buffer_clear(&(*assembly)->message);
        (*assembly)->was_delivered = false;
    }
    for (;;) {
        if (*assembly && assembly_is_empty(*assembly))
            frame_assembly_release(pool, assembly);
        enum frame_event event;
        if (*assembly && (*assembly)->in_payload)
            event = payload_take(*assembly, data, bytes, discard, item);
        else if (*bytes == 0)
            return FRAME_MORE;
        else if (*assembly && (*assembly)->carry_bytes)
            event = carried_next(pool, assembly, data, bytes, item);
        else
            event = fresh_next(pool, assembly, data, bytes, item);
        if (event != FRAME_MORE)
            return event;
        /* An empty payload still has to be taken; everything else needs bytes. */
        bool is_empty_payload = *assembly && (*assembly)->in_payload &&
                                (*assembly)->payload_offset == (*assembly)->header.payload_bytes;
        if (*bytes == 0 && !is_empty_payload && !(*assembly && assembly_is_empty(*assembly)))
            return FRAME_MORE;
    }
}

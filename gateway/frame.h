/* gateway/frame.h -- client-to-server WebSocket frames: one header at a time, and whole messages
 * out of pieces of a stream.
 *
 * RFC 6455 section 5. Everything a client may not do is refused here: unmasked frames, reserved
 * bits and opcodes, fragmented or long control frames, fragments out of order (1002), frames and
 * messages over their limit (1009). No extension is ever negotiated. Text is handed on as it came;
 * the JSON validator refuses what is not UTF-8.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a message that lies whole in the piece read from the socket is unmasked in place and
 *           never copied. Otherwise its parts are gathered in a `frame_assembly` taken from a pool,
 *           which goes back as soon as the stream stands between two messages: an idle connection
 *           holds nothing.
 * Errors:   frame_next() answers FRAME_ERROR with the close code; the stream must not be read any
 *           further.
 */
#ifndef WEIR_GATEWAY_FRAME_H
#define WEIR_GATEWAY_FRAME_H

#include "shm/limits.h"
#include "shm/span.h"

enum {
    FRAME_HEADER_BYTES_MAX = 14,  /* 2 + 8 of length + 4 of mask */
    FRAME_CONTROL_BYTES_MAX = 125 /* payload of a control frame */
};

enum frame_opcode {
    FRAME_CONTINUATION = 0x0,
    FRAME_TEXT = 0x1,
    FRAME_BINARY = 0x2,
    FRAME_CLOSE = 0x8,
    FRAME_PING = 0x9,
    FRAME_PONG = 0xA,
};

struct frame_header {
    bool is_final;
    uint8_t opcode;
    uint8_t mask[4];
    uint8_t header_bytes;
    uint64_t payload_bytes;
};

/* Read a client's frame header from the front of `bytes`. AGAIN: more bytes are needed. INVALID:
 * close with 1002. TOO_LARGE: close with 1009. `reason` is set with the last two. */
enum weir_status frame_header_parse(struct span bytes, struct frame_header *header,
                                    const char **reason) WEIR_MUST_CHECK;

/* XOR with the mask; `offset` counts the payload bytes that came before. */
void frame_unmask(char *data, size_t bytes, const uint8_t mask[4], uint64_t offset);

/* A server-to-client control frame with at most FRAME_CONTROL_BYTES_MAX of payload; `out` holds 2
 * more. Returns its bytes. */
size_t frame_control_write(char *out, enum frame_opcode opcode, struct span payload);

struct frame_assembly;
struct frame_pool {
    struct frame_assembly *free;
    unsigned free_count;
};
void frame_pool_fini(struct frame_pool *pool);
void frame_assembly_release(struct frame_pool *pool, struct frame_assembly **assembly);

enum frame_event {
    FRAME_MORE,    /* the piece is used up */
    FRAME_MESSAGE, /* a whole text or binary message */
    FRAME_GOT_PING,
    FRAME_GOT_PONG,
    FRAME_GOT_CLOSE,
    FRAME_ERROR
};
struct frame_item {
    struct span payload; /* valid until the next frame_next() for this stream */
    bool is_binary;
    unsigned close_code; /* of FRAME_ERROR */
    const char *reason;
};

/* Take the next event out of the piece at *data, which is advanced and whose payloads are unmasked
 * in place. Call it until it answers FRAME_MORE. `assembly` is the stream's own, NULL at first.
 * `discard`: the contents of messages are thrown away. */
enum frame_event frame_next(struct frame_pool *pool, struct frame_assembly **assembly, char **data,
                            size_t *bytes, bool discard, struct frame_item *item);

#endif

/* shm/envelope.h -- the one form in which an event leaves weir: a server-to-client WebSocket text
 * frame around the JSON envelope (PROTOCOL 6.4; RFC 6455 section 5.2). The broker encodes it once
 * per event; gateways send these bytes as they are, and triggers and SSE use the JSON part of the
 * same bytes.
 *
 *   {"type":"stream","timestamp":T,"streamName":"S","groupId":"G","id":"I"|null,"event":{...},"seq":N,"epoch":E}
 *
 *   event:  sync, create, update, delete   {"type":"create","data":D}
 *           event (stream::send)           {"type":"event","event":{"type":"T","data":D}}
 *           unauthorized                   {"type":"unauthorized"}
 *           resumed                        {"type":"resumed"}
 *   A sync or an unauthorized with a reason has "reason":"R" between "event" and "seq".
 *   An event that stands for several has "conflated":{"since":C,"more":B} there: it is the newest of its
 *   item behind seq C, older ones are left out, and (more) others of that kind follow, without which
 *   the subscriber does not have what seq N means: until then it stands at C.
 *
 * Process and thread: any; pure functions into caller's memory, no allocation.
 * Memory:   `out` holds envelope_bytes_max(); the returned layout says where the parts are.
 */
#ifndef WEIR_SHM_ENVELOPE_H
#define WEIR_SHM_ENVELOPE_H

#include "shm/span.h"

enum envelope_event {
    ENVELOPE_SYNC = 1,
    ENVELOPE_CREATE,
    ENVELOPE_UPDATE,
    ENVELOPE_DELETE,
    ENVELOPE_EVENT,        /* stream::send: event_type and data */
    ENVELOPE_UNAUTHORIZED, /* no data */
    ENVELOPE_RESUMED,      /* no data: a client goes on from the seq and epoch it has brought */
};

struct envelope {
    enum envelope_event event;
    uint64_t timestamp_ms;
    uint64_t seq;
    uint64_t epoch;
    struct span stream_escaped; /* names are already JSON-escaped, without quotes */
    struct span group_escaped;
    struct span id_escaped; /* data == NULL: the key is there with null */
    struct span event_type; /* ENVELOPE_EVENT only: escaped, without quotes */
    struct span data;       /* validated compact JSON text; bytes == 0: null */
    /* ENVELOPE_SYNC: why a fresh sync was sent ("lagged", "restarted", ...), ENVELOPE_UNAUTHORIZED:
     * what is wrong with the join; plain ASCII without quotes, added to the envelope as "reason";
     * NULL: none. */
    const char *reason;
};

/* Where the parts of an encoded frame are, relative to its first byte. */
struct envelope_layout {
    uint32_t frame_bytes;  /* header and JSON */
    uint32_t json_offset;  /* 2, 4 or 10 */
    uint32_t names_offset; /* first byte of the escaped stream name */
    uint32_t data_offset;  /* first byte of the event's data, "null" included; 0: it has none */
    uint32_t data_bytes;
};

/* Bytes envelope_encode() may write. A caller that takes spans from outside checks this against its
 * own limit; a frame is below 4 GiB. */
size_t envelope_bytes_max(const struct envelope *envelope);

/* Write the frame. Every length is known before the first byte, so all is copied once, in place. */
struct envelope_layout envelope_encode(char *out, const struct envelope *envelope);

/* How the newest event of an item is told to who has missed older ones. */
struct envelope_conflation {
    enum envelope_event event; /* what the frame has, or the other one of create and update */
    uint64_t seq, epoch;       /* as the frame has them */
    uint64_t since;
    bool more;
    uint32_t json_offset, data_offset; /* of the frame's layout */
};
enum { ENVELOPE_CONFLATION_BYTES_MAX = 80 }; /* what it adds to the frame */

/* Write `frame`, a create, update, delete or sent event as envelope_encode() made it, with its mark;
 * `out` holds frame.bytes and ENVELOPE_CONFLATION_BYTES_MAX. Returns the bytes written; 0: that is
 * not what the frame is. */
size_t envelope_conflate(char *out, struct span frame,
                         const struct envelope_conflation *conflation);

/* A final text frame header for `payload_bytes`; `out` holds 10. Returns 2, 4 or 10. */
size_t envelope_frame_header(char *out, uint64_t payload_bytes);

/* Length of the frame that starts `bytes` (server to client), header included, as its header says:
 * it may be more than bytes.bytes, and then the frame is cut. 0 when the header itself is cut. */
uint64_t envelope_frame_bytes(struct span bytes);

/* Decimal text of `value`; `out` holds 20. Returns bytes written. */
size_t envelope_decimal(char *out, uint64_t value);

#endif

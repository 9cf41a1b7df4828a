/* shm/limits.h -- every bound of the system: name, unit, value, and what happens there.
 *
 * Values a deployment may want to move are settings (config/settings.h) whose upper ends are here.
 */
#ifndef WEIR_SHM_LIMITS_H
#define WEIR_SHM_LIMITS_H

#include <assert.h>

/* Names: stream_name, group_id, item_id, function ids; decoded UTF-8. Longer: the call is refused. */
#define NAME_BYTES_MAX 4096u
/* JSON escapes turn one byte into at most six ("\u0000"). */
#define NAME_ESCAPED_BYTES_MAX (6u * NAME_BYTES_MAX)

/* Nesting of a whole protocol message, its own object included: `data` of a call may be nested 126
 * deep (PROTOCOL 1.5). Deeper: the message is refused. */
#define JSON_DEPTH_MAX 127u

/* One item's value as compact JSON text. Larger: the write is refused. */
#define VALUE_BYTES_MAX (15u * 1024 * 1024)

/* The operations of one stream::update may be this many times as large as the largest value. Larger:
 * the call is refused. */
#define UPDATE_OPS_VALUES 2u

/* Streams whose items are a worker's functions (PROTOCOL 5), those whose worker is away included,
 * and the bytes of their names. One more: its calls are answered with an error. */
#define CUSTOM_STREAMS_MAX 16384u
#define CUSTOM_STREAMS_BYTES_MAX (8u * 1024 * 1024)

/* What one worker may have registered, and the data of its engine::workers::register. Beyond: refused
 * with the error the protocol has for it. A gateway checks first, the broker once more. */
#define SESSION_FUNCTIONS_MAX 10000u
#define SESSION_TRIGGERS_MAX 10000u
#define SESSION_TRIGGER_TYPES_MAX 1000u
#define SESSION_INFO_BYTES_MAX (64u * 1024)

/* Everything of an event frame that is not the value: WebSocket header, envelope keys, three names,
 * numbers. */
#define ENVELOPE_OVERHEAD_BYTES_MAX (3u * NAME_ESCAPED_BYTES_MAX + 512u)

#define RING_BYTES_DEFAULT (64ull * 1024 * 1024)
#define RING_BYTES_MIN (1ull * 1024 * 1024)
#define RING_BYTES_MAX (16ull * 1024 * 1024 * 1024)
/* A record takes at most this share of the ring, so one write cannot lap every reader. */
#define RING_RECORD_SHARE 4u

#define STORE_BYTES_DEFAULT (4ull * 1024 * 1024 * 1024)
#define STORE_BYTES_MIN (16ull * 1024 * 1024)
#define STORE_BYTES_MAX                                                                            \
    (32ull * 1024 * 1024 * 1024) /* index slots address 16-byte units in 32 bits: 64 GiB */

/* Gateways attached to one broker at once. One more is refused. */
#define READERS_MAX 64u

/* Inbound WebSocket limits (PROTOCOL 1.5). Exceeding either closes the connection with 1009. */
#define WS_MESSAGE_BYTES_MAX (64u * 1024 * 1024)
#define WS_FRAME_BYTES_MAX (16u * 1024 * 1024)

/* One frame between processes: header and body. A reply may carry an old and a new value. */
#define WIRE_FRAME_BYTES_MAX (34u * 1024 * 1024)
/* Fields in a frame's body. More: the frame is refused. */
#define WIRE_FIELDS_MAX 24u

/* A sync, a list or any other answer a gateway builds. Larger: an error answer, or close 1009 for a
 * sync. */
#define ANSWER_BYTES_MAX (64u * 1024 * 1024)

/* What a stream:leave handler is given: names, and the context of the socket's auth_function.
 * Larger: the leave is not told, and counted. */
#define PRESENCE_PAYLOAD_BYTES_MAX (1024u * 1024)

static_assert(PRESENCE_PAYLOAD_BYTES_MAX > 4 * NAME_ESCAPED_BYTES_MAX + 512,
              "the four names fit, and most contexts");
static_assert(VALUE_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX + 4096 <=
                  RING_BYTES_DEFAULT / RING_RECORD_SHARE,
              "the largest value must fit a record of the default ring");
static_assert(2ull * VALUE_BYTES_MAX + 4ull * NAME_ESCAPED_BYTES_MAX < WIRE_FRAME_BYTES_MAX,
              "a reply with the old and the new value must fit one frame");
static_assert(UPDATE_OPS_VALUES * VALUE_BYTES_MAX + 4ull * NAME_ESCAPED_BYTES_MAX <
                  WIRE_FRAME_BYTES_MAX,
              "the operations of an update must fit one frame");

#endif

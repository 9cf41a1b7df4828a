/* gateway/event_stream.h -- events as a browser's EventSource reads them (HTML Living Standard,
 * section 9.2 "Server-sent events"): the JSON of the same envelopes, with the position as `id`.
 *
 *   id: <epoch>-<seq>
 *   data: {"type":"stream", ... }
 *   (an empty line)
 *
 * An envelope without a position, and one after which more of the same conflation follows, has no
 * `id`, so that Last-Event-ID always is a position to go on from.
 *
 * Process:  gateway, loop thread only; pure functions into the caller's memory.
 * Errors:   NO_MEMORY and FULL are the buffer's.
 */
#ifndef WEIR_GATEWAY_EVENT_STREAM_H
#define WEIR_GATEWAY_EVENT_STREAM_H

#include "gateway/subscriptions.h"

/* What stands before an envelope's JSON and behind it; `out` holds EVENT_STREAM_HEAD_BYTES. Returns
 * bytes written; `at` as in outlet.h. */
enum { EVENT_STREAM_HEAD_BYTES = 64 };
#define EVENT_STREAM_END "\n\n"
/* Both together are at most this. */
enum { EVENT_STREAM_EXTRA_BYTES_MAX = EVENT_STREAM_HEAD_BYTES + 2 };
size_t event_stream_head(char out[EVENT_STREAM_HEAD_BYTES], struct cursor at);
/* Append one envelope's JSON. */
enum weir_status event_stream_append(struct buffer *out, struct span json,
                                     struct cursor at) WEIR_MUST_CHECK;
/* Append whole WebSocket frames of envelopes, one behind the other, as the ring has them or
 * conflated; each one's position is read from its own text. */
enum weir_status event_stream_append_frames(struct buffer *out, struct span frames) WEIR_MUST_CHECK;
/* "<epoch>-<seq>", as Last-Event-ID brings it back. False: it is something else. */
bool event_stream_parse_id(struct span text, struct cursor *cursor);

#endif

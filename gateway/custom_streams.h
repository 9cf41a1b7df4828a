/* gateway/custom_streams.h -- the streams whose items a worker keeps (PROTOCOL 5), as far as this
 * gateway has been told: their reads and syncs go through the broker, not to the mapped store.
 *
 * The broker tells (STREAM_CUSTOM). A stream is marked sooner when a worker of this gateway
 * registers its functions, so that whoever registers and then reads meets its own functions. A mark
 * too many costs a way through the broker, no more.
 *
 * Process:  gateway, loop thread only.
 * Memory:   copies of the names, bounded (CUSTOM_STREAMS_MAX, CUSTOM_STREAMS_BYTES_MAX); beyond
 *           that, and without memory, every stream counts as custom.
 */
#ifndef WEIR_GATEWAY_CUSTOM_STREAMS_H
#define WEIR_GATEWAY_CUSTOM_STREAMS_H

#include "shm/span.h"

struct custom_streams;

struct custom_streams *custom_streams_open(void); /* NULL: no memory */
void custom_streams_close(struct custom_streams *streams);
/* A broker is there: it tells all anew. */
void custom_streams_clear(struct custom_streams *streams);
/* It has: nothing of what it knew when this gateway came is on its way any more. */
void custom_streams_told(struct custom_streams *streams);
/* False between the two: a stream that is not known to be custom may be one. True for NULL. */
bool custom_streams_are_told(const struct custom_streams *streams);
/* The broker says so; `stream` data NULL: any stream may be one. */
void custom_streams_set(struct custom_streams *streams, struct span stream, bool is_custom);
/* A worker here registers function `id`; `name_space` data NULL or empty: default. */
void custom_streams_note(struct custom_streams *streams, struct span name_space, struct span id);
/* False for NULL. */
bool custom_streams_have(const struct custom_streams *streams, struct span stream);

/* The broker has said of some streams, since custom_streams_settle(), that their values can be read
 * by a worker now: what subscribers were shown before may have come from the store. */
bool custom_streams_have_news(const struct custom_streams *streams); /* False for NULL. */
bool custom_streams_is_news(const struct custom_streams *streams, struct span stream);
void custom_streams_settle(struct custom_streams *streams);

#endif

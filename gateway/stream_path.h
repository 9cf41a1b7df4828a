/* gateway/stream_path.h -- the names in a path: percent-encoding (RFC 3986 section 2.1).
 *
 * Process and thread: any; pure.
 * Memory:   spans point into the request.
 */
#ifndef WEIR_GATEWAY_STREAM_PATH_H
#define WEIR_GATEWAY_STREAM_PATH_H

#include "shm/span.h"

/* Decode %XX; `out` holds text.bytes. False: a bad escape, or not UTF-8. */
bool stream_path_decode(char *out, struct span text, size_t *bytes);

#endif

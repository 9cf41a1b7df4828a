/* gateway/stream_path.h -- percent-encoding in what a request names (RFC 3986 section 2.1).
 *
 * Process and thread: any; pure.
 */
#ifndef WEIR_GATEWAY_STREAM_PATH_H
#define WEIR_GATEWAY_STREAM_PATH_H

#include "shm/span.h"

/* Decode %XX; `out` holds text.bytes. False: a bad escape, or not UTF-8. */
bool stream_path_decode(char *out, struct span text, size_t *bytes);

#endif

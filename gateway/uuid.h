/* gateway/uuid.h -- UUID version 4 (RFC 9562) from the kernel's random numbers.
 *
 * Process and thread: gateway, loop thread only (a small pool of random bytes is kept). No
 * allocation.
 */
#ifndef WEIR_GATEWAY_UUID_H
#define WEIR_GATEWAY_UUID_H

#include "shm/span.h"

enum { UUID_BYTES = 16, UUID_TEXT_BYTES = 36 };

/* Random bytes; ends the process when the kernel has none to give, for nothing secret could be
 * made. */
void uuid_random(void *out, size_t bytes);
void uuid_make(uint8_t uuid[UUID_BYTES]);
/* Lower case with hyphens, and a NUL. */
void uuid_print(char text[UUID_TEXT_BYTES + 1], const uint8_t uuid[UUID_BYTES]);
/* Hyphenated, any case. */
bool uuid_parse(uint8_t uuid[UUID_BYTES], struct span text);

#endif

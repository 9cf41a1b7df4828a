/* shm/error_body.h -- the error object of an answer: {"code":"...","message":"..."} (PROTOCOL 2.9).
 *
 * Process and thread: any. Errors: those of the buffer; what was appended before stays in it.
 */
#ifndef WEIR_SHM_ERROR_BODY_H
#define WEIR_SHM_ERROR_BODY_H

#include "shm/span.h"

/* Both are valid UTF-8. */
enum weir_status error_body_append(struct buffer *out, struct span code,
                                   struct span message) WEIR_MUST_CHECK;

#endif

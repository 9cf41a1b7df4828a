/* gateway/salvage.h -- what can still be read from a message that is not acceptable JSON, so that
 * its sender can be told.
 *
 * Looks for string members at the top level by quotes and brackets alone: bad numbers, bad escapes,
 * any nesting and a cut end are passed over. What is found is a valid JSON string each; nothing
 * else may be trusted or acted on.
 *
 * Process and thread: any; pure, no allocation, one pass.
 */
#ifndef WEIR_GATEWAY_SALVAGE_H
#define WEIR_GATEWAY_SALVAGE_H

#include "shm/json.h"

/* values[i]: the first string member called names[i], or JSON_ABSENT. */
void salvage_strings(struct span text, const char *const *names, size_t name_count,
                     struct json_value *values);

#endif

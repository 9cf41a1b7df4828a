/* gateway/wish.h -- how and from where a subscriber wants its events: the words `epoch`, `since` and
 * `mode` of a join, of a path's query and of Last-Event-ID.
 *
 *   epoch, since   both or neither: the position of the last envelope the client got. Decimal digits
 *                  without sign, up to 2^64 - 1; in JSON a number or a string, for a number beyond 2^53
 *                  does not survive every client.
 *   mode           latest, lossless or disconnect, over what the stream does otherwise
 *
 * Process and thread: any; pure.
 * Memory:   spans point into the caller's text.
 */
#ifndef WEIR_GATEWAY_WISH_H
#define WEIR_GATEWAY_WISH_H

#include "gateway/subscriptions.h"
#include "shm/json.h"

struct wish_words {
    struct span epoch, since, mode; /* decoded; data NULL: not said */
};

/* The words of a join's data; null is as if it was not there. NULL, or what is wrong, as for
 * joins_refuse(). */
const char *wish_words_of_json(struct wish_words *words, struct json_value epoch,
                               struct json_value since, struct json_value mode) WEIR_MUST_CHECK;
/* What a query says, of a word that comes twice the last one; other parameters are somebody else's.
 * `item`: the parameter `id`; NULL: it is somebody else's, too. `scratch` holds query.bytes. NULL, or
 * what is wrong. */
const char *wish_words_of_query(struct wish_words *words, struct span *item, struct span query,
                                char *scratch) WEIR_MUST_CHECK;
/* Put position and mode into the wish; its policy stays if no mode is said. NULL, or what is wrong. */
const char *wish_take(struct subscription_wish *wish,
                      const struct wish_words *words) WEIR_MUST_CHECK;

#endif

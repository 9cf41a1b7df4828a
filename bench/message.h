/* bench/message.h -- what the benches send, and whether it has come whole and in its turn.
 *
 *   {"n":"0000000042","t":"0000001234567890123","g":"000007","p":"qrstuvwxyzabc..."}
 *
 * Number, time and group are texts of fixed size, so that a server that reads JSON and writes it
 * again gives the same bytes. The pattern differs from one number to the next: a piece of another
 * message is seen.
 *
 * Process and thread: any; pure functions.
 */
#ifndef WEIR_BENCH_MESSAGE_H
#define WEIR_BENCH_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shm/span.h"

enum {
    MESSAGE_BYTES_MIN = 64,
    MESSAGE_BYTES_MAX = 16 * 1024,
    MESSAGE_GROUPS_MAX = 1000000,
};

struct message {
    uint64_t number; /* in its group, from 0 */
    uint64_t time_ns;
    unsigned group;
};

void message_write(char *out, size_t bytes, const struct message *message);
/* Read what message_write() has written; false: not these bytes, or not this group and size. */
bool message_read(struct span text, size_t bytes, unsigned group, struct message *out);

/* One subscriber's view of one group. */
struct message_sequence {
    uint64_t next;
};
enum message_turn { MESSAGE_NEXT, MESSAGE_AFTER_GAP, MESSAGE_REPEATED };
/* `left_out`: numbers between what was expected and this one, MESSAGE_AFTER_GAP only. What comes
 * late, after what it should have come before, is repeated: its gap has been told. */
enum message_turn message_take(struct message_sequence *sequence, uint64_t number,
                               uint64_t *left_out);

#endif

/* bench/crowd_protocol.h -- what a subscriber and a publisher say to each kind of server; the usage
 * text of bench/crowd_main.c says what the servers have to offer.
 *
 * Process and thread: any; pure functions into the caller's memory, no allocation.
 * Errors:   bytes that the protocol does not have are CROWD_BROKEN.
 */
#ifndef WEIR_BENCH_CROWD_PROTOCOL_H
#define WEIR_BENCH_CROWD_PROTOCOL_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/span.h"

enum {
    CROWD_GROUP_BYTES_MAX = 24,
    CROWD_REPLY_BYTES_MAX = 512,   /* greetings too */
    CROWD_FRAMING_BYTES_MAX = 512, /* around a message, in either direction */
};

/* Who speaks. */
struct crowd_voice {
    const char *group; /* NULL: a publisher */
    unsigned group_number;
    uint16_t port;
    uint8_t stage; /* of the conversation; 0 at its start; the protocol's own */
    /* weir: where to go on; 0: from now. */
    uint64_t epoch, since;
    const char *mode; /* NULL: none named */
};

enum crowd_unit_kind {
    CROWD_CUT,  /* the rest of the unit has not come yet; nothing else is set */
    CROWD_SKIP, /* of no interest */
    CROWD_LIVE, /* subscribed, or ready to publish, from here on */
    CROWD_MESSAGE,
    CROWD_RESYNC,   /* the state as a whole, in mid-course */
    CROWD_ANSWERED, /* what was published has been taken, in its turn; where the protocol says so */
    CROWD_REFUSED,  /* what was published was not taken */
    CROWD_END,      /* the server says good-bye */
    CROWD_BROKEN,
};

struct crowd_unit {
    enum crowd_unit_kind kind;
    size_t bytes;
    size_t reply_bytes;  /* to be sent at once */
    struct span message; /* in the unit; of a first sync and a RESYNC the last item's, if any */
    /* weir: */
    uint64_t epoch, since; /* the position after this unit; epoch 0: it has none */
    bool conflated, resumed;
    unsigned retry_ms; /* CROWD_END: 0 when the server names none */
};

struct crowd_protocol {
    const char *name;
    /* What is said first; returns its bytes. `out` holds CROWD_REPLY_BYTES_MAX. */
    size_t (*greet)(const struct crowd_voice *voice, char *out);
    /* Read one unit at the start of `bytes`, which are not empty. `reply`: CROWD_REPLY_BYTES_MAX. */
    void (*take)(struct crowd_voice *voice, struct span bytes, char *reply,
                 struct crowd_unit *unit);
    /* Returns bytes; `out` holds CROWD_FRAMING_BYTES_MAX more than the message. */
    size_t (*publish)(const char *group, unsigned group_number, struct span message, char *out);
    bool greet_is_enough; /* a publisher is not answered before it publishes */
};

/* NULL: there is none of that name. */
const struct crowd_protocol *crowd_protocol_find(const char *name);

#endif

/* broker/output.h -- how the parts of the broker speak to peers without knowing sockets (tests put a
 * recorder here).
 *
 * Process and thread: the broker's loop thread.
 */
#ifndef WEIR_BROKER_OUTPUT_H
#define WEIR_BROKER_OUTPUT_H

#include "shm/broker_counters.h"
#include "shm/wire.h"

/* A connection that may be gone by now: `generation` tells. */
struct peer_handle {
    uint32_t slot; /* below PEERS_MAX */
    uint32_t generation;
};

static inline bool peer_handle_equal(struct peer_handle a, struct peer_handle b)
{
    return a.slot == b.slot && a.generation == b.generation;
}

/* For tables by a peer and a running number of its own: any odd multiplier spreads them (Knuth, TAOCP
 * 6.4). */
static inline uint64_t peer_handle_hash(struct peer_handle peer, uint64_t number)
{
    uint64_t hash =
        (((uint64_t)peer.slot << 32) ^ peer.generation ^ (number << 7)) * 0x9E3779B97F4A7C15ull;
    return hash ^ (hash >> 32);
}

struct broker_output {
    /* Queue one message. CLOSED: the peer is gone. TOO_LARGE: no frame holds it. Otherwise OK; a
     * peer that does not read is dropped at its hard bound and learns of it by its closed socket. */
    enum weir_status (*send)(void *context, struct peer_handle peer, enum wire_type type,
                             uint64_t id, const struct wire_field *fields);
    /* As send(), of an answer that nobody waits for: it leaves in order, with what is sent next to
     * the peer or a short time later. */
    enum weir_status (*send_unhurried)(void *context, struct peer_handle peer, enum wire_type type,
                                       uint64_t id, const struct wire_field *fields);
    /* The peer lags behind its soft bound: do not give it new work. */
    bool (*is_busy)(void *context, struct peer_handle peer);
    /* The reader slots, as bits, of peers to which something is sent when this turn ends: it wakes
     * them as well as the doorbell would. NULL: nobody. */
    uint64_t (*called)(void *context);
    void *context;
};

#endif

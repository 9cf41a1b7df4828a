/* tests/sim/gateway.h -- a gateway made of the real parts (feed, fan-out, catch-up, joins, subscriptions,
 * mapping), with sockets of the test's own.
 *
 *   parts --outlet--> [ backlog | kernel | received ] --> subscriber
 *                                at most `window_bytes`
 *
 * A socket takes all of a send, a part of it (the rest becomes backlog, as ws_batch.c does it), or
 * nothing: then it owes a writable notice. What happens to its owner is told to the events below.
 *
 * It leaves as gateway/gateway.c does: a drain (the real one) sends its sockets away, closed behind what
 * they have been sent, with the reason that ws_close() makes; what is not sent within a grace is lost.
 *
 * The order of a turn and of an attachment are gateway/turn.c's and gateway/gateway.c's.
 */
#ifndef WEIR_TESTS_SIM_GATEWAY_H
#define WEIR_TESTS_SIM_GATEWAY_H

#include "gateway/drain.h"
#include "gateway/fanout.h"
#include "gateway/joins.h"
#include "gateway/retry.h"
#include "tests/sim/broker.h"

enum { SIM_SOCKETS_MAX = 64, SIM_SENDS_MAX = 1024, SIM_IOVECS = 16 };

/* What can be wrong on purpose, to see that it is noticed. */
#define SIM_FAULT_MAP(X)                                                                           \
    X(NONE, "none", 0)                                                                             \
    X(DROP, "drop", 1u << SIM_EXACT | 1u << SIM_COMPLETE) /* an event is left out of a send */     \
    X(REPEAT, "repeat", 1u << SIM_EXACT)                  /* ... or sent twice */                  \
    X(SWAP, "swap", 1u << SIM_EXACT)                      /* two events of a send change places */ \
    X(EARLY, "early", 1u << SIM_COMMITTED) /* a write is shown before it is answered */            \
    X(SILENT, "silent", 1u << SIM_TOLD)    /* a fresh sync does not say why */                     \
    X(SWALLOW, "swallow", 1u << SIM_EXACT | 1u << SIM_COMPLETE) /* a sync is not sent at all */    \
    X(SYNC_SEQ, "sync_seq",                                                                        \
      1u << SIM_EXACT | 1u << SIM_COMMITTED) /* a sync says a seq it was not taken at */           \
    X(STUCK, "stuck", 1u << SIM_COMPLETE)    /* a writable notice is forgotten */                  \
    X(KIND, "kind", 1u << SIM_EXACT)         /* a conflated create goes out as an update */        \
    X(LEFT_OUT, "left_out",                                                                        \
      1u << SIM_EXACT | 1u << SIM_COMPLETE) /* a conflated item is left out */                     \
    X(RESUME, "resume", 1u << SIM_TOLD)     /* another position is called served */                \
    X(ID, "id", 1u << SIM_EXACT)            /* an event stream's id is another position */         \
    X(EXPIRE, "expire", 1u << SIM_TOLD)     /* a position that could be served is not */           \
    X(UNTOLD, "untold", 1u << SIM_TOLD)     /* sent away, and not told when to come back */        \
    X(LINGER, "linger", 1u << SIM_TOLD)     /* a drained gateway leaves sockets behind */          \
    X(LIAR, "liar", 1u << SIM_KEPT)         /* the disk says it has written what it has not */

enum sim_fault {
#define SIM_FAULT_ENUM(name, word, promises) SIM_FAULT_##name,
    SIM_FAULT_MAP(SIM_FAULT_ENUM)
#undef SIM_FAULT_ENUM
        SIM_FAULTS
};

/* One message as it was when the gateway gave it to the socket. */
struct sim_sent {
    uint64_t end;          /* of its bytes in the socket's order */
    uint32_t acknowledged; /* writes before this place were answered then */
    uint32_t life;         /* of the broker the gateway was attached to */
};

struct sim_socket {
    struct subscriber subscriber;
    struct sim_gateway *gateway; /* NULL: gone */
    bool is_used;
    struct buffer bytes;   /* not taken by the subscriber yet */
    uint64_t taken;        /* since the start: messages it is done with */
    size_t received_bytes; /* of the first ones: the subscriber has them, not the whole message */
    size_t kernel_bytes;   /* of those behind */
    size_t window_bytes;   /* the kernel takes */
    struct sim_sent *sent; /* a queue */
    uint32_t sent_first, sent_count, sent_capacity;
    bool owes_writable;
    bool is_left;        /* by the subscriber; the gateway does not know yet */
    bool is_closing;     /* by the gateway, behind what it has sent */
    unsigned close_code; /* then */
    char close_reason[RETRY_REASON_BYTES];
    uint32_t stingy_percent; /* of the sends are cut, or refused */
};

struct sim_gateway {
    struct scheduler *scheduler;
    struct history *history;
    struct sim_broker *broker;
    enum sim_fault fault;
    unsigned index; /* set by the world */
    bool is_alive, is_attached;
    bool is_calm; /* sockets take everything */

    struct mapping *mapping; /* of `life`; it outlives the broker */
    uint32_t slot, life;
    struct counters counters;
    struct subscriptions subscriptions;
    struct feed feed;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct joins *joins;
    struct retry retry;
    struct drain drain;
    bool is_draining; /* it takes no sockets any more */
    uint64_t over_ms; /* since when the drain is over; 0: it is not */

    struct sim_socket sockets[SIM_SOCKETS_MAX];
    struct {
        struct sim_socket *socket;
        struct iovec frames[SIM_IOVECS];
        unsigned frame_count;
        void *entry;
    } sends[SIM_SENDS_MAX];
    unsigned send_count;
    /* As the outlet saw them, over all lives of the gateway. */
    uint64_t syncs, syncs_lagged, syncs_restarted, syncs_expired, resumes, too_slow;
};

/* A process starts; it is attached by sim_gateway_attach(). */
void sim_gateway_start(struct sim_gateway *gateway, struct scheduler *scheduler,
                       struct history *history, struct sim_broker *broker, enum sim_fault fault);
/* kill -9: sockets are gone, and what the kernel has not sent is lost. */
void sim_gateway_kill(struct sim_gateway *gateway);
/* SIGTERM: its sockets are sent away within `window_ms`. */
void sim_gateway_drain(struct sim_gateway *gateway, uint64_t window_ms);
/* The drain is over, and sockets have got what they were sent, or had their time for it. */
bool sim_gateway_has_drained(const struct sim_gateway *gateway);
/* It ends then: what the kernel has is sent. */
void sim_gateway_leave(struct sim_gateway *gateway);
/* The broker lives, and is not the one it is attached to. */
bool sim_gateway_wants_broker(const struct sim_gateway *gateway);
/* Read the old ring to its end, then go on with the broker there is. */
void sim_gateway_attach(struct sim_gateway *gateway);
void sim_gateway_turn(struct sim_gateway *gateway);
/* One socket's bytes go on, or a notice is due. */
void sim_gateway_poll(struct sim_gateway *gateway, struct sim_socket *socket);

/* NULL: no room. */
struct sim_socket *sim_socket_open(struct sim_gateway *gateway, enum subscriber_format format,
                                   size_t window_bytes, uint32_t stingy_percent);
/* Bytes in the socket's order, those that were ever given to it. */
uint64_t sim_socket_end(const struct sim_socket *socket);
/* The subscriber receives up to `bytes` of what the kernel has. False: it had not so many. */
bool sim_socket_receive(struct sim_socket *socket, size_t bytes);
struct span sim_socket_received(const struct sim_socket *socket);
/* It is done with the first `bytes` of them. */
void sim_socket_take(struct sim_socket *socket, size_t bytes);
/* Of the first message of `bytes`, as an enum subscriber_format; 0: it is not all there. */
uint64_t sim_message_bytes(struct span bytes, unsigned format);
/* When the message that ends at `end` was given to it. */
struct sim_sent sim_socket_sent(struct sim_socket *socket, uint64_t end);
/* The subscriber has gone. */
void sim_socket_leave(struct sim_socket *socket);
/* Both sides are done with it. */
void sim_socket_free(struct sim_socket *socket);
bool sim_gateway_is_idle(const struct sim_gateway *gateway);
/* What the outlet has seen is what the gateway has counted. */
void sim_gateway_check_counters(const struct sim_gateway *gateway);

#endif

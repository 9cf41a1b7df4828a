/* broker/peers.h -- connections of gateways: frames in, frames out, bounded both ways.
 *
 *   accept -> NEW --attach--> ATTACHED --error, close or drop--> ENDING --operations done--> free
 *               \---- refused: REFUSED is flushed, then ENDING
 *
 * Each peer has one receive and one send in flight. While whole frames wait in its input nothing
 * more is received, so a peer that asks faster than it is served waits in its own socket buffer.
 * All messages queued for a peer during a turn leave in one send. Answers that nobody waits for
 * (peers_send_unhurried()) are no reason for one: they are held back until there is another, within
 * PEER_HELD_BYTES_MAX and PEER_HELD_MS_MAX, so that a peer that only writes is woken a hundred times a
 * second instead of with each write.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   messages given to the handler point into the peer's input and are valid until the
 *           handler returns.
 * Reentry:  peers_send(), peers_refuse() and peers_drop() may be called from the handler; teardown
 *           happens at peers_flush(), where `gone` is told once for each peer that had attached.
 */
#ifndef WEIR_BROKER_PEERS_H
#define WEIR_BROKER_PEERS_H

#include "broker/bounds.h"
#include "broker/loop.h"
#include "broker/output.h"

struct peers;

struct peers_handler {
    /* A frame from `peer`; `attached` is false until peers_attach() was called for it. Not OK: the
     * peer is dropped. */
    enum weir_status (*message)(void *context, struct peer_handle peer, bool attached,
                                const struct wire_message *message);
    /* False: no frame is to be taken now; the loop will turn when that changes. */
    bool (*is_ready)(void *context);
    /* The peer with this reader slot is gone. */
    void (*gone)(void *context, struct peer_handle peer, uint32_t reader_slot);
    void *context;
};

enum weir_status peers_open(struct peers **peers, struct loop *loop,
                            const struct peers_handler *handler, struct broker_counters *counters,
                            struct weir_error *error) WEIR_MUST_CHECK;
/* Ends every connection, behind what was held back; the loop must be given turns until
 * peers_are_idle() for a clean end. */
void peers_stop(struct peers *peers);
bool peers_are_idle(const struct peers *peers);
void peers_close(struct peers *peers);

/* Takes over the connected socket, also when it has to close it at once. */
void peers_accept(struct peers *peers, int fd, uint64_t now_ms);
/* The pid at the other end (SO_PEERCRED), 0 when it is not known. */
uint32_t peers_pid(const struct peers *peers, struct peer_handle peer);
/* The peer holds `reader_slot` from now on; sends `frame` with `fds` at once. */
enum weir_status peers_attach(struct peers *peers, struct peer_handle peer, uint32_t reader_slot,
                              struct span frame, const int *fds, unsigned fd_count) WEIR_MUST_CHECK;
/* Say why, then close. */
void peers_refuse(struct peers *peers, struct peer_handle peer, const char *code,
                  const char *sentence);
void peers_drop(struct peers *peers, struct peer_handle peer, const char *reason);

enum weir_status peers_send(struct peers *peers, struct peer_handle peer, enum wire_type type,
                            uint64_t id, const struct wire_field *fields) WEIR_MUST_CHECK;
/* As peers_send(), in order with it, but not to be sent for its own sake. */
enum weir_status peers_send_unhurried(struct peers *peers, struct peer_handle peer,
                                      enum wire_type type, uint64_t id,
                                      const struct wire_field *fields) WEIR_MUST_CHECK;
/* To every attached peer. */
void peers_send_all(struct peers *peers, enum wire_type type, const struct wire_field *fields);
/* The reader slots, as bits, of the peers that the next flush sends something to. */
uint64_t peers_called(const struct peers *peers);
bool peers_is_busy(const struct peers *peers, struct peer_handle peer);
/* So much waits for it that bulk data is to wait elsewhere. */
bool peers_is_lagging(const struct peers *peers, struct peer_handle peer);

/* Hand the frames that have arrived to the handler, a bounded share per peer, starting at another
 * peer each turn. True when some are left that the handler is ready for. */
bool peers_take(struct peers *peers);
/* Tear down what ended, start sends and receives. True when it has to be called again without
 * waiting. */
bool peers_flush(struct peers *peers, uint64_t now_ms);
/* The next flush is due within this time, at most `limit_ms`. */
int peers_wait_ms(const struct peers *peers, uint64_t now_ms, int limit_ms);
/* From now on peers_have_sent_marked() says whether the sockets have taken all that is queued at this
 * moment; peers that have gone count as served. */
void peers_mark(struct peers *peers);
bool peers_have_sent_marked(const struct peers *peers);
/* About once a second: close what has not attached in time. */
void peers_tick(struct peers *peers, uint64_t now_ms);

#endif

/* gateway/ws_private.h -- what the files behind ws.h share, and nobody else includes.
 *
 *   ws.c             the server: sockets taken over and let go, the end of a turn
 *   ws_plain.c       TCP sockets without TLS: one epoll set of our own watches them
 *   ws_tls.c         sockets with TLS; the only file that knows libwebsockets
 *   ws_connection.c  one connection: its output queue, its input, its close
 *   ws_http.c        requests on a connection that is not a WebSocket yet, and their answers
 *   ws_batch.c       frames for many connections in one go
 *   ws_queue.c       connections by age: handshake, idle and close time-outs, Pings
 *
 *   ws_plain.c, ws_tls.c ──▶ ws_input ──▶ ws_connection_take_input ──▶ ws_http_take_request
 *            │                                   │                          └──▶ on_upgrade, on_open, on_http
 *            │                                   └──▶ on_message
 *            └──▶ ws_connection_flush ──▶ the kernel
 *                            └──▶ ws_await_writable ──▶ ws_plain.c, ws_tls.c
 *
 * Process:  gateway, loop thread only.
 * Memory:   ws.c allocates and frees connections and the server; a connection that is DEAD stays
 *           until its socket has been let go, at the end of the turn. Buffers come from the server's
 *           pools. An idle connection is one ws_connection and nothing else in user space.
 * Units:    *_ms on the loop's clock (uv_now); of a connection its lower 32 bits, compared by
 *           difference.
 * Errors:   a function that cannot keep what it must send kills the connection. After any call that
 *           says so, look at `state` before going on.
 */
#ifndef WEIR_GATEWAY_WS_PRIVATE_H
#define WEIR_GATEWAY_WS_PRIVATE_H

#include <netinet/in.h>

#include "gateway/frame.h"
#include "gateway/send.h"
#include "gateway/ws.h"

struct lws;
struct lws_context;
struct lws_vhost;

enum {
    WS_READ_BYTES = 64 * 1024,            /* one buffer for all connections */
    WS_PEER_BYTES = INET6_ADDRSTRLEN + 9, /* "[...]:65535" */
    WS_CLOSE_WAIT_MS = 5000 /* for the peer's Close, or its end of the stream after an error */
};

/*   ┌─ HELD ─┐
 *   │        ▼ upgrade                     ws_close                    both Close frames, or an error: what is owed goes out,
 *  HTTP ───────────────▶ OPEN ───────────────────────▶ CLOSING ───────▶ DRAIN      then the end
 *   │                     │ peer's Close, protocol error ────────────────▲ │
 *   │ answered, no keep-alive ───────────────────────────────────────────┘ ▼
 *   └───────────────────── hard error, time-out ─────────────────────────▶ DEAD, until the socket is let go
 */
enum ws_state {
    WS_STATE_HTTP,
    WS_STATE_HELD, /* the owner has not decided about the upgrade yet */
    WS_STATE_OPEN,
    WS_STATE_CLOSING,
    WS_STATE_DRAIN,
    WS_STATE_DEAD
};

/* What the answer to a held handshake needs. */
struct ws_held {
    char accept_key[32];
    bool allows_credentials;
    char text[]; /* the subprotocol, or the origin allowed to read an event stream; "": none */
};

struct ws_link {
    struct ws_link *previous, *next;
};

struct ws_connection {
    /* What sending looks at comes first. */
    struct ws_server *server;
    void *user;
    struct send_buffer *output; /* taken and not yet in the kernel, in order */
    int fd;
    uint32_t batch_last; /* its last entry in the batch, counted from 1; 0: none */
    uint8_t state;       /* enum ws_state */
    uint8_t role;        /* enum ws_role */
    uint8_t port;        /* enum ws_port */
    bool is_tls : 1;
    bool is_event_stream : 1;
    bool is_head : 1;   /* of an event stream: only its head is wanted */
    bool has_asked : 1; /* a request of it was taken */
    bool is_held : 1;
    bool is_blocked : 1;    /* a writable notice is on its way; nothing may be sent before */
    bool is_stalled : 1;    /* TLS: lws holds a part of a record; it must not be asked to read */
    bool owes_writable : 1; /* on_writable was promised */
    bool is_paused : 1;
    bool resumes : 1;   /* reading was resumed; input is taken up at the end of the turn */
    bool sends_end : 1; /* half-close when drained, so that the peer reads what was sent before a
                           reset */
    bool has_sent_end : 1;
    bool was_opened : 1; /* on_open was called, on_close must be */
    bool is_adopting : 1;
    bool is_dirty : 1;       /* `turn` is in server->dirty */
    bool has_ended : 1;      /* plain: the peer's end or an error is there to be read */
    bool has_input : 1;      /* plain: the kernel may hold input, and will not say so again */
    bool watches_output : 1; /* plain: the epoll set tells when the socket takes bytes again */
    struct ws_link turn;     /* server->dirty, ->heads, ->readers, or alone */
    struct ws_link queue;    /* by age: server->handshakes, ->established or ->closing */
    struct send_buffer
        *input; /* a part of a request head, or what was read before reading was stopped */
    union {
        struct ws_held *held; /* in state HELD, and until its end if it dies there: is_held */
        struct frame_assembly *assembly;
    };
    struct lws *wsi; /* of TLS; NULL once libwebsockets has let go */
    uint32_t due_ms;
    uint32_t inbound_ms; /* last bytes read, or room again for what it had not taken */
    uint32_t pinged_ms;
};

struct ws_batch_entry;
struct ws_batch {
    struct ws_batch_entry *entries;
    unsigned count, capacity;
    struct iovec *iovecs;
    unsigned iov_count, iov_capacity;
    struct send_job *jobs;
    unsigned job_capacity;
};

struct ws_server {
    uv_loop_t *loop;
    struct ws_options options;
    struct ws_handlers handlers;
    struct lws_context *context; /* NULL: no TLS; libwebsockets sets it to NULL when it is gone */
    struct lws_vhost *vhost;
    int epoll_fd;   /* -1: not open */
    uv_poll_t poll; /* of epoll_fd */
    char *input;    /* WS_READ_BYTES, for whoever is being read */
    struct sender *sender;
    struct send_pool send_pool;
    struct frame_pool frame_pool;
    uv_timer_t tick;
    uv_prepare_t prepare;
    uv_idle_t again; /* makes the loop turn once more without waiting */
    unsigned open_handles;
    struct ws_link handshakes, established,
        closing;            /* every connection is in one of them, oldest first */
    struct ws_link dirty;   /* something to do before the loop waits */
    struct ws_link heads;   /* has_input in state HTTP, beyond this turn's budget; oldest first */
    struct ws_link readers; /* has_input in any other state */
    unsigned heads_left;    /* of this turn's budget */
    unsigned connection_count, connections_max;
    char peer[WS_PEER_BYTES]; /* of the latest ws_peer() */
    unsigned tick_ms;
    unsigned check_ms; /* how often an established connection is looked at; 0: never */
    int fd_max;        /* descriptors from here on are the reserve */
    bool is_closing;
    bool ends_http; /* no HTTP connection is kept alive */
    bool is_flushing;
    struct ws_batch batch;
};

/* ---- lists: a link is in one list, or alone ---- */

#define WS_CONNECTION_OF(link_pointer, member)                                                     \
    ((struct ws_connection *)(void *)((char *)(link_pointer)-offsetof(struct ws_connection,        \
                                                                      member)))

static inline void ws_link_init(struct ws_link *link)
{
    link->previous = link->next = link;
}

static inline bool ws_link_is_alone(const struct ws_link *link)
{
    return link->next == link;
}

static inline void ws_link_remove(struct ws_link *link)
{
    /* Whatever was freed has left its list before. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    link->previous->next = link->next;
    link->next->previous = link->previous;
    ws_link_init(link);
}

static inline void ws_link_append(struct ws_link *list, struct ws_link *link)
{
    link->previous = list->previous;
    link->next = list;
    list->previous->next = link;
    list->previous = link;
}

/* ---- ws.c ---- */

/* Nothing is sent any more until the socket can be written, which is asked for. Only after a short
 * send, or for TLS; the connection must still have its socket. May kill. */
void ws_await_writable(struct ws_connection *connection);
/* Have the socket read or left alone, as is_paused and is_stalled say. */
void ws_apply_reading(struct ws_connection *connection);
/* Bytes have been read: take them, and answer requests and a peer's Close at once. May kill. */
void ws_input(struct ws_connection *connection, char *data, size_t bytes);
/* All that was owed has gone out, or could: tell the owner who was promised it. May kill. */
void ws_tell_writable(struct ws_connection *connection);
/* The socket is about to be let go of: ends what the connection is to others. The caller frees it. */
void ws_connection_gone(struct ws_connection *connection);
/* The loop does not wait but turns once more. */
void ws_turn_again(struct ws_server *server);
void ws_peer_print(int fd, char out[WS_PEER_BYTES]);

static inline uint32_t ws_now_ms(const struct ws_server *server)
{
    return (uint32_t)uv_now(server->loop);
}

/* ---- ws_plain.c ---- */

/* ws_plain_close() is due in any case. */
enum weir_status ws_plain_open(struct ws_server *server, struct weir_error *error) WEIR_MUST_CHECK;
void ws_plain_close(struct ws_server *server);
/* Watch a new connection's socket; false when it cannot be. */
bool ws_plain_adopt(struct ws_connection *connection) WEIR_MUST_CHECK;
void ws_plain_await_writable(struct ws_connection *connection);
/* Reading goes on: what came meanwhile is read in the next turn. */
void ws_plain_apply_reading(struct ws_connection *connection);
/* Read what was left in the kernel before: request heads within the turn's budget. */
void ws_plain_read_waiting(struct ws_server *server);
/* The turn is over: its budget is renewed. */
void ws_plain_end_turn(struct ws_server *server);

/* ---- ws_tls.c ---- */

/* ws_tls_close() is due in any case; it runs the loop. */
enum weir_status ws_tls_open(struct ws_server *server, struct weir_error *error) WEIR_MUST_CHECK;
void ws_tls_close(struct ws_server *server);
/* False: the descriptor is closed, and the connection freed or about to be. */
void ws_tls_adopt(struct ws_connection *connection);
void ws_tls_await_writable(struct ws_connection *connection);
void ws_tls_apply_reading(struct ws_connection *connection);
/* Close the socket of a dead connection, and with it the connection. */
void ws_tls_let_go(struct ws_connection *connection);
/* Sec-WebSocket-Accept for a valid key (RFC 6455 section 4.2.2), as text. */
void ws_accept_key(char *out, size_t out_bytes, struct span key);

/* ---- ws_connection.c ---- */

/* The socket is no use any more. It is let go of before the loop next waits, of TLS also when
 * libwebsockets' callback in progress returns; never inside this call. Again: no effect. */
void ws_connection_kill(struct ws_connection *connection);
/* Go on to CLOSING or DRAIN: the time the peer has for its part starts to run, and reading goes on
 * if it was stopped. No effect on a dead connection. */
void ws_connection_leave(struct ws_connection *connection, enum ws_state state);
/* Reading goes on, with what was kept first, before the loop next waits. */
void ws_connection_resume(struct ws_connection *connection);
/* Take bytes just read, behind what was kept of earlier ones, and keep what cannot be taken yet;
 * with no bytes, take up what was kept. Calls the owner's handlers; may kill. */
void ws_connection_take_input(struct ws_connection *connection, char *data, size_t bytes);
/* Keep `parts` behind what is owed; sent at the latest before the loop next waits. NO_MEMORY:
 * nothing was kept. */
enum weir_status ws_connection_append(struct ws_connection *connection, const struct iovec *parts,
                                      unsigned part_count) WEIR_MUST_CHECK;
/* Likewise for what the connection cannot go on without. May kill. */
void ws_connection_append_or_kill(struct ws_connection *connection, struct span bytes);
/* Likewise the comment that keeps an event stream alive. May kill. */
void ws_connection_append_comment(struct ws_connection *connection);
/* Likewise for a control frame. May kill. */
void ws_connection_append_control(struct ws_connection *connection, enum frame_opcode opcode,
                                  struct span payload);
/* Send what is owed as far as the socket takes it. No effect while blocked. May kill. */
void ws_connection_flush(struct ws_connection *connection);
/* Everything owed has reached the kernel, or libwebsockets for TLS: in DRAIN this is the end. May kill. */
void ws_connection_drained(struct ws_connection *connection);

/* ---- ws_http.c ---- */

/* Take one request of a connection in state HTTP and answer it; false when more bytes are needed.
 * `data` and `bytes` move past what was taken. Calls the owner's handlers; may kill. */
bool ws_http_take_request(struct ws_connection *connection, char **data, size_t *bytes);
/* The server goes: of a connection in state HTTP or HELD, answer 503 to what is being decided, or has
 * not been asked yet. One that only is kept alive ends. May kill. */
void ws_http_end(struct ws_connection *connection);

/* ---- ws_batch.c ---- */

void ws_batch_fini(struct ws_batch *batch);

/* ---- ws_queue.c ---- */

/* Make the three queues of a server whose options are set, and work out how often they are looked
 * at. */
void ws_queue_init(struct ws_server *server);
/* Put a connection at the end of a queue of its server, due after the queue's one delay. */
void ws_queue_move(struct ws_connection *connection, struct ws_link *queue, unsigned after_ms);

#endif

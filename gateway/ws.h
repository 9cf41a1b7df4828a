/* gateway/ws.h -- WebSocket and HTTP connections of a gateway; the only door to libwebsockets
 * (ws_tls.c).
 *
 * Listening sockets are ours (listener.h: SO_REUSEPORT, accept4, TCP_NODELAY). Accepted descriptors
 * are watched by an epoll set of our own inside the libuv loop; those with TLS are adopted by
 * libwebsockets as raw sockets on the same loop: it watches, reads, paces, encrypts and closes them.
 * Request heads (handshake.h) and client frames (frame.h) are taken apart here, because the
 * WebSocket role of libwebsockets 4.1 offers no way to refuse unmasked frames, fails a handshake
 * whose subprotocol list exceeds 127 bytes (a token of PROTOCOL 6.8 does), answers only one of
 * several Pings in flight, and holds a frame buffer for each connection; and sockets without TLS are
 * not given to it, because it has a structure of 700 bytes and a poll handle for each.
 *
 * A request for server-sent events becomes an event stream: a connection like a WebSocket, whose
 * bytes are text as it stands instead of frames. What the peer says after its request is discarded;
 * a comment stands for a Ping; a peer is gone when it has not acknowledged (or taken) what it was
 * sent for idle_timeout_ms.
 *
 * Outbound data does not go through lws_write on the fast path: whole, ready-made frames are sent
 * straight to the descriptor, many connections in one batch.
 *
 * The rule that makes direct sends safe (docs/architecture.md): loop thread only; an established
 * WebSocket on its own TCP connection, not TLS; libwebsockets never holds outbound bytes of it. One
 * queue per connection keeps all that the socket did not take, of whatever origin (answers, batch
 * tails, Pongs, Close), in the order it was taken, so a cut frame is always continued by its own
 * rest; until that queue is empty the connection is busy and batches leave it alone. A writable
 * request always follows a short send. A hard error only marks the connection; its descriptor is
 * closed at the end of the turn, when nobody refers to it any more. TLS connections take the lws_write path (LWS_WRITE_RAW, inside the
 * writable callback) with the same interface.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a ws_connection, 112 bytes, belongs to ws.c from on_open to the return of on_close; `user`
 *           is the owner's. An idle one without TLS has nothing else in user space.
 * Errors:   AGAIN: the connection is busy, nothing was taken; on_writable follows exactly once.
 *           CLOSED: it is going away; on_close follows (or has been called).
 */
#ifndef WEIR_GATEWAY_WS_H
#define WEIR_GATEWAY_WS_H

#include <sys/uio.h>
#include <uv.h>

#include "gateway/counters.h"
#include "gateway/retry.h"
#include "shm/limits.h"
#include "shm/span.h"

enum ws_role {
    WS_ROLE_NONE = 0,  /* refused: ws_request.http_status says with what */
    WS_ROLE_STREAM,    /* subscriber */
    WS_ROLE_WORKER,    /* iii-sdk worker */
    WS_ROLE_TELEMETRY, /* accepted, read and discarded, never reported */
    WS_ROLE_CHANNEL,   /* one end of a byte channel */
    WS_ROLE_HELD,      /* not decided yet: ws_upgrade_accept() or ws_upgrade_refuse() follows */
};

/* WS_PORT_LISTENER and above: the further worker listeners. */
enum ws_port { WS_PORT_STREAM, WS_PORT_WORKER, WS_PORT_ADMIN, WS_PORT_LISTENER };

struct ws_connection;

struct ws_request {
    enum ws_port port;
    struct span path;      /* raw, without query */
    struct span query;     /* raw, without '?' */
    struct span origin;    /* header, may be empty */
    struct span headers;   /* every header line, raw, each with its CRLF */
    struct span protocols; /* Sec-WebSocket-Protocol as offered, may be empty */
    const char *peer;      /* "ip:port", IPv6 in brackets */
    bool is_event_stream;  /* a GET or HEAD without upgrade, which is_event_stream() has claimed */
    unsigned http_status;  /* set by on_upgrade when it returns WS_ROLE_NONE: 4xx, 503 */
    const char *refusal;   /* set with it: a sentence that says why; NULL: none */
    /* Set by on_upgrade for an event stream: a page of this origin may read it (CORS), also with
     * cookies; data NULL: nothing is said. At most WS_ORIGIN_BYTES_MAX. */
    struct span allowed_origin;
    bool allows_credentials;
    /* Set by on_upgrade: the offered name to answer, usually a part of `protocols`; data NULL: none.
     * "Authorization" is answered without it whenever it was offered; a token never is (PROTOCOL
     * 6.8). */
    struct span subprotocol;
    /* Set by on_upgrade: becomes the connection's user; on_refused frees it if the handshake fails. */
    void *user;
    struct ws_connection *connection; /* for WS_ROLE_HELD: whom to decide about */
};

/* A plain HTTP answer. It is copied as soon as on_http returns, then `release` is called. Preset to
 * an empty 404. */
struct ws_http_answer {
    unsigned status;
    const char *content_type;
    const char *extra_headers; /* "Name: value\r\n..." or NULL */
    struct span body;
    void (*release)(void *owner); /* may be NULL */
    void *owner;
};

struct ws_handlers {
    /* Is this plain GET or HEAD one for server-sent events? Then on_upgrade decides about it as about
     * an upgrade, and its connection is an event stream. NULL: none is. */
    bool (*is_event_stream)(void *context, const struct ws_request *request);
    /* A WebSocket upgrade is asked for: decide by path. */
    enum ws_role (*on_upgrade)(void *context, struct ws_request *request);
    /* The handshake with request->user as `user` failed after on_upgrade accepted or held it, or was
     * refused by ws_upgrade_refuse(). */
    void (*on_refused)(void *context, void *user);
    void (*on_open)(void *context, struct ws_connection *connection, enum ws_role role, void *user);
    /* One whole message, at most WS_MESSAGE_BYTES_MAX; valid during the call. */
    void (*on_message)(void *context, struct ws_connection *connection, struct span message,
                       bool is_binary);
    /* A connection that answered AGAIN, and is not closing since, can take frames again. */
    void (*on_writable)(void *context, struct ws_connection *connection);
    /* Last call for this connection; ws_* must not be called on it any more. */
    void (*on_close)(void *context, struct ws_connection *connection);
    /* A plain HTTP GET or HEAD (no upgrade). */
    void (*on_http)(void *context, const struct ws_request *request, struct ws_http_answer *answer);
    void *context;
};

struct ws_options {
    const char *tls_certificate_path; /* both NULL: no TLS */
    const char *tls_key_path;
    unsigned handshake_timeout_ms;
    unsigned ping_interval_ms; /* 0: no pings */
    unsigned idle_timeout_ms;  /* without any inbound frame; 0: none */
    unsigned connections_max;  /* further ones are refused with 503 */
    bool use_uring;            /* send batches through io_uring where the kernel allows it */
    struct retry *retry;       /* for those who are to come back; NULL: they are not told when */
    struct counters *counters; /* may be NULL */
};

/* Request heads taken in one turn, of sockets without TLS; the others wait in the kernel for the next
 * turns, the oldest first, and their time limit with them. A handshake and its join take some 30 us. */
enum { WS_HEADS_PER_TURN = 32 };

struct ws_server;
enum ws_status_code {
    WS_NORMAL = 1000,
    WS_GOING_AWAY = 1001,
    WS_PROTOCOL = 1002,
    WS_POLICY = 1008,
    WS_TOO_BIG = 1009,
    WS_INTERNAL = 1011,
    WS_RESTART = 1012,
    WS_TRY_LATER = 1013
};

enum { WS_ORIGIN_BYTES_MAX = 256 };

enum weir_status ws_server_open(struct ws_server **server, uv_loop_t *loop,
                                const struct ws_options *options,
                                const struct ws_handlers *handlers,
                                struct weir_error *error) WEIR_MUST_CHECK;
/* Close every connection with `code`, and those that have no answer to their handshake yet with 503;
 * then destroy. Runs the loop until all are gone, at most `grace_ms`; never from inside a handler. */
void ws_server_close(struct ws_server *server, enum ws_status_code code, unsigned grace_ms);
/* Hand over an accepted TCP descriptor (taken over in any case). */
void ws_server_adopt(struct ws_server *server, int fd, enum ws_port port, bool tls);
/* True when batches go out through io_uring. */
bool ws_has_uring(const struct ws_server *server);
/* From now on each HTTP answer ends its connection. */
void ws_server_end_http(struct ws_server *server);
/* Connections of any kind, those that are about to end included. */
unsigned ws_connection_count(const struct ws_server *server);
/* Show open WebSockets, telemetry included, to `visit`, which may close the one it is shown, until it
 * returns false. Those that were looked at for Pings longest ago come first. */
void ws_visit(struct ws_server *server,
              bool (*visit)(void *context, struct ws_connection *connection, enum ws_role role),
              void *context);

/* Decide about a handshake that on_upgrade has answered with WS_ROLE_HELD, once, and not from inside
 * it. Meanwhile nothing is read; there is no time limit but the caller's. accept: on_open follows
 * from inside, or on_refused when the answer cannot be kept. refuse: on_refused follows from inside.
 * A connection that has died meanwhile is told to on_refused later, whatever is decided. `refusal` as
 * in ws_request. */
void ws_upgrade_accept(struct ws_connection *connection, enum ws_role role);
void ws_upgrade_refuse(struct ws_connection *connection, unsigned http_status, const char *refusal);

void *ws_user(const struct ws_connection *connection);
/* "ip:port", asked of the socket: valid until the next call, "?:0" when the peer has gone. */
const char *ws_peer(const struct ws_connection *connection);

/* ---- sending: whole server-to-client frames, ready made ---- */

/* One text message: builds the header, gathers it with what else this turn sends to the connection,
 * and keeps what the socket does not take in a private buffer of at most `WS_BACKLOG_BYTES_MAX`
 * (one message larger than that is allowed when the backlog is empty). FULL: the backlog is used
 * up, nothing was taken; the loop wakes whenever it has shrunk, and ws_backlog_bytes() tells.
 * CLOSED. For answers and syncs. */
enum { WS_BACKLOG_BYTES_MAX = 4 * 1024 * 1024 };
enum weir_status ws_send_text(struct ws_connection *connection, struct span text) WEIR_MUST_CHECK;
/* The same for a binary message. */
enum weir_status ws_send_binary(struct ws_connection *connection,
                                struct span bytes) WEIR_MUST_CHECK;
/* Of an event stream: one event's text in parts, as ws_send_text() takes a message. What is sent to
 * it in batches is such text as well. */
enum { WS_PARTS_MAX = 3 };
enum weir_status ws_send_parts(struct ws_connection *connection, const struct iovec *parts,
                               unsigned part_count) WEIR_MUST_CHECK;
bool ws_is_event_stream(const struct ws_connection *connection);
/* True when everything taken so far has reached the kernel and a batch send may go straight out. */
bool ws_is_idle(const struct ws_connection *connection);
size_t ws_backlog_bytes(const struct ws_connection *connection);
/* Bytes of the peer wait in the kernel. */
bool ws_has_unread(const struct ws_connection *connection);

/* A batch of ready-made frames for many connections, filled and flushed before the owner returns to the
 * loop, so that no connection goes that has an entry; the bytes stay valid until ws_batch_flush()
 * returns. Frames go out after everything ws_send_text() has taken for that connection, all entries of
 * a connection in one send. `done` is called from ws_batch_flush() once per entry, in the order they
 * were added: OK (taken whole; a tail the socket did not take is kept, so one entry's bytes bound
 * what a slow subscriber costs), AGAIN (nothing taken, on_writable follows), CLOSED. `done` may send and
 * close; it must not add or flush. At most WS_BATCH_IOV_MAX frames an entry. Entries one after the
 * other with the same single piece share it: they cost 32 bytes each. */
typedef void ws_batch_done(void *context, struct ws_connection *connection, void *entry,
                           enum weir_status status);
enum { WS_BATCH_IOV_MAX = 16 };
void ws_batch_add(struct ws_server *server, struct ws_connection *connection,
                  const struct iovec *frames, unsigned frame_count, void *entry);
void ws_batch_flush(struct ws_server *server, ws_batch_done *done, void *context);
/* Send what ws_send_text() gathered in this turn; call once at the end of the turn. What is
 * gathered after it is sent at the latest before the loop next waits. */
void ws_flush(struct ws_server *server);

/* Close handshake with `code`; on_close follows, not from inside this call. 1012 and 1013 ask the
 * peer to come back: their reason ends with when (retry.h). An event stream ends behind an event
 * that says as much. */
void ws_close(struct ws_connection *connection, enum ws_status_code code, const char *reason);
/* Application close codes 4000-4999 likewise. */
void ws_close_code(struct ws_connection *connection, unsigned code, const char *reason);
/* Close at once, without a Close frame; on_close follows, not from inside this call. */
void ws_abort(struct ws_connection *connection);
/* Stop or resume reading. Stopping holds from the next message on, also in the middle of a piece
 * already read: the rest, Pings included, is kept (at most 64 KiB) and taken up after resuming,
 * before the loop next waits, never inside this call. The idle timeout does not run meanwhile. */
void ws_set_reading(struct ws_connection *connection, bool reading);

#endif

/* gateway/handshake.h -- the head of an HTTP/1.1 request and the decision what it asks for (RFC
 * 9112, RFC 6455 section 4.2.1).
 *
 * Process and thread: any; pure functions.
 * Memory:   spans point into the bytes given.
 * Errors:   AGAIN: the head is not complete. TOO_LARGE: it exceeds HANDSHAKE_BYTES_MAX. INVALID:
 *           not HTTP/1.x.
 */
#ifndef WEIR_GATEWAY_HANDSHAKE_H
#define WEIR_GATEWAY_HANDSHAKE_H

#include "shm/span.h"

enum {
    HANDSHAKE_BYTES_MAX = 16 * 1024, /* a longer request head is answered with 431 */
    HANDSHAKE_KEY_BYTES = 24         /* 16 bytes in base64 */
};

enum handshake_method { HANDSHAKE_GET, HANDSHAKE_HEAD, HANDSHAKE_OTHER };

struct handshake {
    enum handshake_method method;
    struct span path;      /* raw, without query */
    struct span query;     /* raw, without '?' */
    struct span headers;   /* all header lines with their CRLF */
    struct span origin;    /* first of its name, as are the following */
    struct span protocols; /* Sec-WebSocket-Protocol */
    struct span key;
    size_t head_bytes; /* with the empty line */
    bool is_http_1_0;
    bool keeps_alive;
    bool has_body;
    bool has_host;
    bool wants_upgrade; /* Upgrade: websocket and Connection: upgrade */
    bool has_version_13;
    bool
        offers_authorization; /* "Authorization" is among the offered subprotocols (PROTOCOL 6.8) */
};

enum weir_status handshake_parse(struct span bytes, struct handshake *handshake) WEIR_MUST_CHECK;
/* A wanted upgrade that RFC 6455 section 4.2.1 allows: GET, HTTP/1.1, Host, a key of the right
 * form, version 13. */
bool handshake_is_valid_upgrade(const struct handshake *handshake);
/* True when `token` is an element of a comma-separated list; the case of letters counts only if
 * `is_exact`. */
bool handshake_list_has(struct span list, struct span token, bool is_exact);

#endif

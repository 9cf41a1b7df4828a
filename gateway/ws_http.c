#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "gateway/handshake.h"
#include "gateway/ws_private.h"

enum {
    HTTP_BACKLOG_BYTES =
        1024 * 1024, /* owed to a pipelining client beyond which its connection ends */
    HEAD_ANSWER_BYTES = 1024,
    UNSENT_BYTES_MAX = 64 * 1024 /* of a subscriber, see subscriber_bound() */
};

/* ---- answers ---- */

static const char *status_text(unsigned status)
{
    switch (status) {
    case 200:
        return "OK";
    case 204:
        return "No Content";
    case 304:
        return "Not Modified";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 426:
        return "Upgrade Required";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 503:
        return "Service Unavailable";
    default:
        return "Status";
    }
}

static void http_answer(struct ws_connection *connection, const struct ws_http_answer *answer,
                        bool is_head, bool keeps_alive)
{
    char head[HEAD_ANSWER_BYTES];
    bool has_body = answer->status != 204 && answer->status != 304;
    keeps_alive = keeps_alive && !connection->server->ends_http;
    char length[48] = "";
    if (has_body)
        (void)snprintf(length, sizeof(length), "Content-Length: %zu\r\n", answer->body.bytes);
    int bytes =
        snprintf(head, sizeof(head), "HTTP/1.1 %u %s\r\nContent-Type: %s\r\n%sConnection: %s\r\n",
                 answer->status, status_text(answer->status),
                 answer->content_type ? answer->content_type : "text/plain; charset=utf-8", length,
                 keeps_alive ? "keep-alive" : "close");
    weir_assert(bytes > 0);
    weir_assert((size_t)bytes < sizeof(head));
    const char *extra = answer->extra_headers ? answer->extra_headers : "";
    struct iovec parts[] = {
        {.iov_base = head, .iov_len = (size_t)bytes},
        {.iov_base = (void *)extra, .iov_len = strlen(extra)},
        {.iov_base = (void *)"\r\n", .iov_len = 2},
        {.iov_base = (void *)answer->body.data,
         .iov_len = has_body && !is_head ? answer->body.bytes : 0},
    };
    if (ws_connection_append(connection, parts, 4) != WEIR_OK) {
        ws_connection_kill(connection);
        return;
    }
    if (keeps_alive &&
        send_buffer_bytes(connection->output) < HTTP_BACKLOG_BYTES + answer->body.bytes) {
        ws_queue_move(connection, &connection->server->handshakes,
                      connection->server->options.handshake_timeout_ms);
        return;
    }
    connection->sends_end = true;
    ws_connection_leave(connection, WS_STATE_DRAIN);
}

/* What belongs to a refusal of what the owner was asked about: the challenge (RFC 9110 section
 * 15.5.2), or when to come back. */
static void refusal_headers(const struct ws_connection *connection, unsigned status,
                            char out[RETRY_HEADER_BYTES])
{
    static const char challenge[] = "WWW-Authenticate: Bearer\r\n";
    static_assert(sizeof challenge <= RETRY_HEADER_BYTES, "either fits");
    const struct ws_server *server = connection->server;
    out[0] = '\0';
    if (status == 401)
        memcpy(out, challenge, sizeof challenge);
    else if (status == 503 && server->options.retry != NULL)
        retry_header(out, retry_hint_ms(server->options.retry, uv_now(server->loop), 1));
}

/* No body, after which the connection ends. */
static void owner_refuse(struct ws_connection *connection, unsigned status)
{
    char headers[RETRY_HEADER_BYTES];
    refusal_headers(connection, status, headers);
    struct ws_http_answer answer = {.status = status, .extra_headers = headers};
    http_answer(connection, &answer, false, false);
}

/* A refusal with a line of text, after which the connection ends; NULL: the status says enough. */
static void http_refuse_because(struct ws_connection *connection, unsigned status,
                                const char *extra_headers, const char *refusal)
{
    char text[256];
    int bytes = refusal != NULL
                    ? snprintf(text, sizeof(text), "%s\n", refusal)
                    : snprintf(text, sizeof(text), "%u %s\n", status, status_text(status));
    weir_assert(bytes > 0);
    weir_assert((size_t)bytes < sizeof(text));
    struct ws_http_answer answer = {
        .status = status, .extra_headers = extra_headers, .body = span_of(text, (size_t)bytes)};
    http_answer(connection, &answer, false, false);
}

static void http_refuse(struct ws_connection *connection, unsigned status,
                        const char *extra_headers)
{
    http_refuse_because(connection, status, extra_headers, NULL);
}

/* ---- server-sent events ---- */

/* For whom CORS opens an answer, one way or the other. */
static void origin_headers(char out[WS_ORIGIN_BYTES_MAX + 128], struct span origin,
                           bool allows_credentials)
{
    out[0] = '\0';
    weir_assert(origin.bytes <= WS_ORIGIN_BYTES_MAX);
    if (origin.bytes > 0)
        (void)snprintf(out, WS_ORIGIN_BYTES_MAX + 128,
                       "Access-Control-Allow-Origin: %.*s\r\nVary: Origin\r\n%s", (int)origin.bytes,
                       origin.data,
                       allows_credentials ? "Access-Control-Allow-Credentials: true\r\n" : "");
}

/* The sentence is the body; the connection ends. */
static void event_stream_refuse(struct ws_connection *connection, unsigned status,
                                const char *refusal, struct span origin, bool allows_credentials)
{
    char text[256], allowed[WS_ORIGIN_BYTES_MAX + 128], headers[sizeof allowed + 128];
    char refused[RETRY_HEADER_BYTES];
    origin_headers(allowed, origin, allows_credentials);
    refusal_headers(connection, status, refused);
    (void)snprintf(headers, sizeof headers, "%s%sCache-Control: no-store\r\n", allowed, refused);
    int bytes = snprintf(text, sizeof text, "%s\n", refusal ? refusal : status_text(status));
    struct ws_http_answer answer = {
        .status = status, .extra_headers = headers, .body = span_of(text, (size_t)bytes)};
    http_answer(connection, &answer, connection->is_head, false);
}

/* A peer that has gone without a word is noticed by what it does not acknowledge, one that does not
 * read by what it does not take: it owes nothing else. */
static void event_stream_watch(const struct ws_connection *connection)
{
    unsigned timeout_ms = connection->server->options.idle_timeout_ms;
    if (timeout_ms > 0)
        (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms,
                         sizeof timeout_ms);
}

/* A subscriber that does not read is full once this much waits in the kernel unsent: what comes later
 * stays in the ring, where it is shared, and can still be replaced by what is newer. What is on its
 * way to a peer that reads is not counted (TCP_NOTSENT_LOWAT, tcp(7)). */
static void subscriber_bound(const struct ws_connection *connection)
{
    const int unsent_bytes = UNSENT_BYTES_MAX;
    (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes,
                     sizeof unsent_bytes);
}

/* The answer's head; `connection` may be dead by it. Its end is the connection's end. */
static void event_stream_answer(struct ws_connection *connection, struct span origin,
                                bool allows_credentials)
{
    char head[HEAD_ANSWER_BYTES], allowed[WS_ORIGIN_BYTES_MAX + 128];
    origin_headers(allowed, origin, allows_credentials);
    int bytes = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         "Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"
                         "X-Content-Type-Options: nosniff\r\n%sConnection: close\r\n\r\n",
                         allowed);
    weir_assert(bytes > 0);
    weir_assert((size_t)bytes < sizeof head);
    ws_connection_append_or_kill(connection, span_of(head, (size_t)bytes));
}

/* ---- requests ---- */

static void upgrade_answer(struct ws_connection *connection, const char *accept_key,
                           struct span subprotocol)
{
    char head[HEAD_ANSWER_BYTES];
    int bytes = snprintf(
        head, sizeof(head),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\n%s%.*s%s\r\n",
        accept_key, subprotocol.bytes > 0 ? "Sec-WebSocket-Protocol: " : "", (int)subprotocol.bytes,
        subprotocol.bytes > 0 ? subprotocol.data : "", subprotocol.bytes > 0 ? "\r\n" : "");
    weir_assert(bytes > 0);
    weir_assert((size_t)bytes < sizeof(head));
    ws_connection_append_or_kill(connection, span_of(head, (size_t)bytes));
}

/* The answer is taken; `connection` may be dead by it. */
static void upgrade_finish(struct ws_connection *connection, enum ws_role role)
{
    struct ws_server *server = connection->server;
    const struct ws_handlers *handlers = &server->handlers;
    if (connection->state == WS_STATE_DEAD) {
        if (role != WS_ROLE_TELEMETRY)
            handlers->on_refused(handlers->context, connection->user);
        return;
    }
    if (connection->is_head) { /* that is all */
        handlers->on_refused(handlers->context, connection->user);
        connection->sends_end = true;
        ws_connection_leave(connection, WS_STATE_DRAIN);
        return;
    }
    if (role == WS_ROLE_STREAM)
        subscriber_bound(connection);
    if (connection->is_event_stream)
        event_stream_watch(connection);
    connection->state = WS_STATE_OPEN;
    connection->role = (uint8_t)role;
    connection->inbound_ms = ws_now_ms(server);
    connection->pinged_ms = connection->inbound_ms;
    ws_queue_move(connection, &server->established, server->check_ms);
    if (role == WS_ROLE_TELEMETRY)
        return;
    connection->was_opened = true;
    handlers->on_open(handlers->context, connection, role, connection->user);
}

static void upgrade_hold(struct ws_connection *connection, const char *accept_key, struct span text,
                         bool allows_credentials)
{
    struct ws_held *held = malloc(sizeof *held + text.bytes + 1);
    if (held == NULL) {
        const struct ws_handlers *handlers = &connection->server->handlers;
        handlers->on_refused(handlers->context, connection->user);
        http_refuse(connection, 503, NULL);
        return;
    }
    if (accept_key != NULL)
        memcpy(held->accept_key, accept_key, sizeof held->accept_key);
    held->allows_credentials = allows_credentials;
    if (text.bytes > 0)
        memcpy(held->text, text.data, text.bytes);
    held->text[text.bytes] = '\0';
    connection->held = held;
    connection->is_held = true;
    connection->state = WS_STATE_HELD;
    connection->is_paused = true;
    ws_apply_reading(connection);
}

void ws_upgrade_accept(struct ws_connection *connection, enum ws_role role)
{
    struct ws_held *held = connection->held;
    if (connection->state != WS_STATE_HELD)
        return; /* it has died; on_refused follows */
    connection->held = NULL;
    connection->is_held = false;
    connection->is_paused = false;
    if (connection->is_event_stream)
        event_stream_answer(connection, span_text(held->text), held->allows_credentials);
    else
        upgrade_answer(connection, held->accept_key, span_text(held->text));
    free(held);
    upgrade_finish(connection, role);
    ws_connection_resume(connection);
}

void ws_upgrade_refuse(struct ws_connection *connection, unsigned http_status, const char *refusal)
{
    const struct ws_handlers *handlers = &connection->server->handlers;
    struct ws_held *held = connection->held;
    if (connection->state != WS_STATE_HELD)
        return; /* it has died; on_refused follows */
    connection->held = NULL;
    connection->is_held = false;
    connection->state = WS_STATE_HTTP;
    connection->is_paused = false;
    handlers->on_refused(handlers->context, connection->user);
    if (connection->is_event_stream)
        event_stream_refuse(connection, http_status, refusal, span_text(held->text),
                            held->allows_credentials);
    else
        owner_refuse(connection, http_status);
    free(held);
    ws_connection_resume(connection);
}

static void upgrade_handle(struct ws_connection *connection, const struct handshake *handshake,
                           struct ws_request *request)
{
    struct ws_server *server = connection->server;
    const struct ws_handlers *handlers = &server->handlers;
    if (!handshake_is_valid_upgrade(handshake)) {
        http_refuse(connection, handshake->has_version_13 ? 400 : 426,
                    "Sec-WebSocket-Version: 13\r\n");
        return;
    }
    enum ws_role role = handlers->on_upgrade(handlers->context, request);
    if (role == WS_ROLE_NONE && (request->http_status == 401 || request->http_status == 503)) {
        owner_refuse(connection, request->http_status);
        return;
    }
    if (role == WS_ROLE_NONE) {
        http_refuse_because(connection, request->http_status ? request->http_status : 404, NULL,
                            request->refusal);
        return;
    }
    char key[32] = "";
    ws_accept_key(key, sizeof(key), handshake->key);
    struct span subprotocol =
        handshake->offers_authorization ? SPAN_LITERAL("Authorization") : request->subprotocol;
    connection->user = request->user;
    if (role == WS_ROLE_HELD) {
        upgrade_hold(connection, key, subprotocol, false);
        return;
    }
    upgrade_answer(connection, key, subprotocol);
    upgrade_finish(connection, role);
}

static void event_stream_handle(struct ws_connection *connection, struct ws_request *request,
                                bool is_head)
{
    const struct ws_handlers *handlers = &connection->server->handlers;
    connection->is_event_stream = true;
    connection->is_head = is_head;
    request->is_event_stream = true;
    enum ws_role role = handlers->on_upgrade(handlers->context, request);
    if (role == WS_ROLE_NONE) {
        event_stream_refuse(connection, request->http_status ? request->http_status : 404,
                            request->refusal, request->allowed_origin, request->allows_credentials);
        return;
    }
    connection->user = request->user;
    if (role == WS_ROLE_HELD) {
        upgrade_hold(connection, NULL, request->allowed_origin, request->allows_credentials);
        return;
    }
    event_stream_answer(connection, request->allowed_origin, request->allows_credentials);
    upgrade_finish(connection, role);
}

static void get_handle(struct ws_connection *connection, const struct handshake *handshake,
                       const struct ws_request *request)
{
    const struct ws_handlers *handlers = &connection->server->handlers;
    struct ws_http_answer answer = {.status = 404};
    handlers->on_http(handlers->context, request, &answer);
    http_answer(connection, &answer, handshake->method == HANDSHAKE_HEAD, handshake->keeps_alive);
    if (answer.release)
        answer.release(answer.owner);
}

static void request_handle(struct ws_connection *connection, const struct handshake *handshake)
{
    char peer[WS_PEER_BYTES];
    ws_peer_print(connection->fd, peer);
    const struct ws_handlers *handlers = &connection->server->handlers;
    struct ws_request request = {.port = (enum ws_port)connection->port,
                                 .path = handshake->path,
                                 .query = handshake->query,
                                 .origin = handshake->origin,
                                 .headers = handshake->headers,
                                 .protocols = handshake->protocols,
                                 .peer = peer,
                                 .connection = connection};
    if (handshake->method == HANDSHAKE_OTHER)
        http_refuse(connection, 405, "Allow: GET, HEAD\r\n");
    else if (handshake->has_body)
        http_refuse(connection, 400, NULL);
    else if (handshake->wants_upgrade)
        upgrade_handle(connection, handshake, &request);
    else if (handlers->is_event_stream != NULL &&
             handlers->is_event_stream(handlers->context, &request))
        event_stream_handle(connection, &request, handshake->method == HANDSHAKE_HEAD);
    else
        get_handle(connection, handshake, &request);
}

/* A client that has connected and whose request is on its way would see a reset, and not know whether
 * anybody is there: it takes what it reads for the answer. TLS may not be there yet to answer by. */
void ws_http_end(struct ws_connection *connection)
{
    bool is_due = !connection->has_asked || connection->input != NULL;
    if (connection->state == WS_STATE_HELD)
        ws_upgrade_refuse(connection, 503, "the server is about to stop; come back later");
    else if (is_due && !connection->is_tls)
        owner_refuse(connection, 503);
    else
        ws_connection_kill(connection);
}

bool ws_http_take_request(struct ws_connection *connection, char **data, size_t *bytes)
{
    /* RFC 9112 section 2.2: an empty line before a request is skipped. */
    while (*bytes >= 2 && (*data)[0] == '\r' && (*data)[1] == '\n') {
        *data += 2;
        *bytes -= 2;
    }
    struct handshake handshake;
    enum weir_status status = handshake_parse(span_of(*data, *bytes), &handshake);
    if (status == WEIR_AGAIN)
        return false;
    if (status != WEIR_OK) {
        http_refuse(connection, status == WEIR_TOO_LARGE ? 431 : 400, NULL);
        return true;
    }
    connection->has_asked = true;
    request_handle(connection, &handshake);
    *data += handshake.head_bytes;
    *bytes -= handshake.head_bytes;
    return true;
}

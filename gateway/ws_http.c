#include <stdio.h>
#include <stdlib.h>

#include "gateway/handshake.h"
#include "gateway/ws_private.h"

enum {
    HTTP_BACKLOG_BYTES =
        1024 * 1024, /* owed to a pipelining client beyond which its connection ends */
    HEAD_ANSWER_BYTES = 1024
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

/* A refusal of what the owner was asked about: no body, after which the connection ends. RFC 9110
 * section 15.5.2 wants the challenge. */
static void owner_refuse(struct ws_connection *connection, unsigned status, uint64_t retry_ms)
{
    char retry[RETRY_HEADER_BYTES];
    struct ws_http_answer answer = {
        .status = status, .extra_headers = status == 401 ? "WWW-Authenticate: Bearer\r\n" : NULL};
    if (status == 503 && retry_ms > 0) {
        retry_header(retry, retry_ms);
        answer.extra_headers = retry;
    }
    http_answer(connection, &answer, false, false);
}

/* A refusal with a line of text, after which the connection ends. */
static void http_refuse(struct ws_connection *connection, unsigned status,
                        const char *extra_headers)
{
    char text[64];
    int bytes = snprintf(text, sizeof(text), "%u %s\n", status, status_text(status));
    struct ws_http_answer answer = {
        .status = status, .extra_headers = extra_headers, .body = span_of(text, (size_t)bytes)};
    http_answer(connection, &answer, false, false);
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

static void upgrade_hold(struct ws_connection *connection, const char *accept_key,
                         struct span subprotocol)
{
    struct ws_held *held = malloc(sizeof *held + subprotocol.bytes + 1);
    if (held == NULL) {
        const struct ws_handlers *handlers = &connection->server->handlers;
        handlers->on_refused(handlers->context, connection->user);
        http_refuse(connection, 503, NULL);
        return;
    }
    memcpy(held->accept_key, accept_key, sizeof held->accept_key);
    if (subprotocol.bytes > 0)
        memcpy(held->subprotocol, subprotocol.data, subprotocol.bytes);
    held->subprotocol[subprotocol.bytes] = '\0';
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
    upgrade_answer(connection, held->accept_key, span_text(held->subprotocol));
    free(held);
    upgrade_finish(connection, role);
    ws_connection_resume(connection);
}

void ws_upgrade_refuse(struct ws_connection *connection, unsigned http_status)
{
    const struct ws_handlers *handlers = &connection->server->handlers;
    if (connection->state != WS_STATE_HELD)
        return; /* it has died; on_refused follows */
    free(connection->held);
    connection->held = NULL;
    connection->is_held = false;
    connection->state = WS_STATE_HTTP;
    connection->is_paused = false;
    handlers->on_refused(handlers->context, connection->user);
    owner_refuse(connection, http_status, 0);
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
        owner_refuse(connection, request->http_status, request->retry_ms);
        return;
    }
    if (role == WS_ROLE_NONE) {
        http_refuse(connection, request->http_status ? request->http_status : 404, NULL);
        return;
    }
    char key[32] = "";
    ws_accept_key(key, sizeof(key), handshake->key);
    struct span subprotocol =
        handshake->offers_authorization ? SPAN_LITERAL("Authorization") : request->subprotocol;
    connection->user = request->user;
    if (role == WS_ROLE_HELD) {
        upgrade_hold(connection, key, subprotocol);
        return;
    }
    upgrade_answer(connection, key, subprotocol);
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
    else
        get_handle(connection, handshake, &request);
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
    request_handle(connection, &handshake);
    *data += handshake.head_bytes;
    *bytes -= handshake.head_bytes;
    return true;
}

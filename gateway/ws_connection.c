#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "gateway/ws_private.h"
#include "shm/envelope.h"

enum {
    DIRECT_BYTES_MIN = 16 * 1024, /* a longer text is not copied when the socket may take it now */
    PONG_BYTES_SPARE =
        64 * 1024 /* beyond a full backlog; further Pongs are left out (RFC 6455 section 5.5.3) */
};

/* ---- the end of a connection ---- */

static void mark_dirty(struct ws_connection *connection)
{
    if (connection->is_dirty)
        return;
    connection->is_dirty = true;
    ws_link_remove(&connection->turn);
    ws_link_append(&connection->server->dirty, &connection->turn);
}

void ws_connection_kill(struct ws_connection *connection)
{
    if (connection->state == WS_STATE_DEAD)
        return;
    connection->state = WS_STATE_DEAD;
    send_buffer_release(&connection->server->send_pool, &connection->output);
    mark_dirty(connection);
}

void ws_connection_drained(struct ws_connection *connection)
{
    if (connection->state != WS_STATE_DRAIN)
        return;
    if (!connection->sends_end || connection->is_tls) {
        ws_connection_kill(connection);
        return;
    }
    if (!connection->has_sent_end) {
        connection->has_sent_end = true;
        if (shutdown(connection->fd, SHUT_WR) != 0)
            ws_connection_kill(connection);
    }
}

/* ---- output ---- */

void ws_connection_flush(struct ws_connection *connection)
{
    if (connection->state == WS_STATE_DEAD || connection->is_blocked)
        return;
    if (!connection->output) {
        ws_connection_drained(connection);
        return;
    }
    if (connection->is_tls) {
        ws_await_writable(connection);
        return;
    }
    struct span owed = send_buffer_span(connection->output);
    struct iovec iov = {.iov_base = (void *)owed.data, .iov_len = owed.bytes};
    int sent = send_plain(connection->fd, &iov, 1);
    if (sent < 0 && sent != -EAGAIN) {
        ws_connection_kill(connection);
        return;
    }
    if (sent > 0)
        send_buffer_consume(&connection->server->send_pool, &connection->output, (size_t)sent);
    if (connection->output)
        ws_await_writable(connection);
    else
        ws_connection_drained(connection);
}

enum weir_status ws_connection_append(struct ws_connection *connection, const struct iovec *parts,
                                      unsigned part_count)
{
    enum weir_status status =
        send_buffer_append(&connection->server->send_pool, &connection->output, parts, part_count);
    if (status == WEIR_OK)
        mark_dirty(connection);
    return status;
}

void ws_connection_append_or_kill(struct ws_connection *connection, struct span bytes)
{
    struct iovec part = {.iov_base = (void *)bytes.data, .iov_len = bytes.bytes};
    if (ws_connection_append(connection, &part, 1) != WEIR_OK)
        ws_connection_kill(connection);
}

void ws_connection_append_control(struct ws_connection *connection, enum frame_opcode opcode,
                                  struct span payload)
{
    char frame[2 + FRAME_CONTROL_BYTES_MAX];
    size_t bytes = frame_control_write(frame, opcode, payload);
    ws_connection_append_or_kill(connection, span_of(frame, bytes));
}

void ws_connection_append_comment(struct ws_connection *connection)
{
    ws_connection_append_or_kill(connection, SPAN_LITERAL(": ping\n\n"));
}

static void pong_append(struct ws_connection *connection, struct span payload)
{
    if (send_buffer_bytes(connection->output) < WS_BACKLOG_BYTES_MAX + PONG_BYTES_SPARE)
        ws_connection_append_control(connection, FRAME_PONG, payload);
}

/* ---- closing ---- */

static void close_append(struct ws_connection *connection, unsigned code, const char *reason)
{
    char payload[FRAME_CONTROL_BYTES_MAX];
    size_t reason_bytes = reason ? strnlen(reason, sizeof(payload) - 2) : 0;
    payload[0] = (char)(code >> 8);
    payload[1] = (char)code;
    if (reason_bytes)
        memcpy(payload + 2, reason, reason_bytes);
    ws_connection_append_control(connection, FRAME_CLOSE,
                                 span_of(payload, code ? 2 + reason_bytes : 0));
}

void ws_connection_leave(struct ws_connection *connection, enum ws_state state)
{
    if (connection->state == WS_STATE_DEAD)
        return;
    connection->state = (uint8_t)state;
    ws_queue_move(connection, &connection->server->closing, WS_CLOSE_WAIT_MS);
    if (connection->is_paused) {
        connection->is_paused = false;
        connection->resumes = true;
        ws_apply_reading(connection);
    }
    mark_dirty(connection);
}

/* The peer broke the protocol or a limit: say so, read no more of it. */
static void connection_fail(struct ws_connection *connection, unsigned code, const char *reason)
{
    if (connection->state == WS_STATE_OPEN)
        close_append(connection, code, reason);
    connection->sends_end = true;
    ws_connection_leave(connection, WS_STATE_DRAIN);
}

static bool is_close_code(unsigned code)
{
    return (code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006) ||
           (code >= 3000 && code <= 4999);
}

static void peer_closes(struct ws_connection *connection, struct span payload)
{
    unsigned code = 0; /* none was given, none is answered */
    if (payload.bytes >= 2)
        code = (unsigned)(uint8_t)payload.data[0] << 8 | (uint8_t)payload.data[1];
    if (payload.bytes == 1 || (payload.bytes >= 2 && !is_close_code(code))) {
        connection_fail(connection, 1002, "bad close code");
        return;
    }
    if (connection->state == WS_STATE_OPEN)
        close_append(connection, code, NULL);
    ws_connection_leave(connection, WS_STATE_DRAIN);
}

/* ---- frames from the client ---- */

static void event_handle(struct ws_connection *connection, enum frame_event event,
                         const struct frame_item *item)
{
    const struct ws_handlers *handlers = &connection->server->handlers;
    bool is_open = connection->state == WS_STATE_OPEN;
    switch (event) {
    case FRAME_MESSAGE:
        if (is_open && connection->role != WS_ROLE_TELEMETRY)
            handlers->on_message(handlers->context, connection, item->payload, item->is_binary);
        break;
    case FRAME_GOT_PING:
        if (is_open)
            pong_append(connection, item->payload);
        break;
    case FRAME_GOT_CLOSE:
        peer_closes(connection, item->payload);
        break;
    case FRAME_ERROR:
        connection_fail(connection, item->close_code, item->reason);
        break;
    case FRAME_GOT_PONG:
    case FRAME_MORE:
        break;
    }
}

static bool reads_frames(const struct ws_connection *connection)
{
    return connection->state == WS_STATE_OPEN || connection->state == WS_STATE_CLOSING;
}

static void frames_take(struct ws_connection *connection, char **data, size_t *bytes)
{
    enum frame_event event = FRAME_MESSAGE;
    while (event != FRAME_MORE && reads_frames(connection) && !connection->is_paused) {
        struct frame_item item = {0};
        bool discard = connection->role == WS_ROLE_TELEMETRY || connection->state != WS_STATE_OPEN;
        event = frame_next(&connection->server->frame_pool, &connection->assembly, data, bytes,
                           discard, &item);
        event_handle(connection, event, &item);
    }
}

/* ---- input ---- */

/* Take what can be taken; what is left must be kept. */
static void input_take(struct ws_connection *connection, char **data, size_t *bytes)
{
    while (connection->state == WS_STATE_HTTP && *bytes &&
           ws_http_take_request(connection, data, bytes))
        ;
    if (connection->is_event_stream && reads_frames(connection))
        *bytes = 0; /* there is nothing to say by it */
    else if (reads_frames(connection))
        frames_take(connection, data, bytes);
    /* In DRAIN and DEAD what the peer says does not matter any more. */
    if (connection->state == WS_STATE_DRAIN || connection->state == WS_STATE_DEAD)
        *bytes = 0;
}

void ws_connection_take_input(struct ws_connection *connection, char *data, size_t bytes)
{
    struct send_pool *pool = &connection->server->send_pool;
    struct iovec part = {.iov_base = data, .iov_len = bytes};
    bool is_kept = connection->input != NULL;
    if (is_kept) {
        if (send_buffer_append(pool, &connection->input, &part, 1) != WEIR_OK) {
            ws_connection_kill(connection);
            return;
        }
        struct span all = send_buffer_span(connection->input);
        data = (char *)all.data;
        bytes = all.bytes;
    }
    size_t before = bytes;
    input_take(connection, &data, &bytes);
    if (is_kept) {
        send_buffer_consume(pool, &connection->input, before - bytes);
        return;
    }
    part = (struct iovec){.iov_base = data, .iov_len = bytes};
    if (send_buffer_append(pool, &connection->input, &part, 1) != WEIR_OK)
        ws_connection_kill(connection);
}

/* ---- what the owner calls ---- */

void *ws_user(const struct ws_connection *connection)
{
    return connection->user;
}

bool ws_is_idle(const struct ws_connection *connection)
{
    return connection->state == WS_STATE_OPEN && !connection->output && !connection->is_blocked;
}

size_t ws_backlog_bytes(const struct ws_connection *connection)
{
    return send_buffer_bytes(connection->output);
}

bool ws_has_unread(const struct ws_connection *connection)
{
    int bytes = 0;
    return ioctl(connection->fd, FIONREAD, &bytes) == 0 && bytes > 0;
}

/* Try to send a long text without copying it; what the socket does not take is kept. */
static enum weir_status parts_send_direct(struct ws_connection *connection, struct iovec *parts,
                                          unsigned part_count, size_t whole)
{
    int sent = send_plain(connection->fd, parts, part_count);
    if (sent < 0 && sent != -EAGAIN) {
        ws_connection_kill(connection);
        return WEIR_CLOSED;
    }
    size_t taken = sent > 0 ? (size_t)sent : 0;
    if (taken == whole)
        return WEIR_OK;
    for (unsigned index = 0; index < part_count; index++) {
        size_t cut = taken < parts[index].iov_len ? taken : parts[index].iov_len;
        parts[index].iov_base = (char *)parts[index].iov_base + cut;
        parts[index].iov_len -= cut;
        taken -= cut;
    }
    if (ws_connection_append(connection, parts, part_count) != WEIR_OK) {
        /* A frame of which a part is on the wire cannot be taken back. */
        if (sent > 0)
            ws_connection_kill(connection);
        return sent > 0 ? WEIR_CLOSED : WEIR_FULL;
    }
    ws_await_writable(connection);
    return WEIR_OK;
}

/* One message, whole or not at all; `parts` may be changed. */
static enum weir_status parts_send(struct ws_connection *connection, struct iovec *parts,
                                   unsigned part_count)
{
    if (connection->state != WS_STATE_OPEN)
        return WEIR_CLOSED;
    size_t whole = 0;
    for (unsigned index = 0; index < part_count; index++)
        whole += parts[index].iov_len;
    if (connection->output &&
        send_buffer_bytes(connection->output) + whole > WS_BACKLOG_BYTES_MAX) {
        ws_connection_flush(connection);
        if (connection->state != WS_STATE_OPEN)
            return WEIR_CLOSED;
        if (connection->output &&
            send_buffer_bytes(connection->output) + whole > WS_BACKLOG_BYTES_MAX)
            return WEIR_FULL;
    }
    if (whole >= DIRECT_BYTES_MIN && !connection->output && !connection->is_blocked &&
        !connection->is_tls)
        return parts_send_direct(connection, parts, part_count, whole);
    return ws_connection_append(connection, parts, part_count) == WEIR_OK ? WEIR_OK : WEIR_FULL;
}

static enum weir_status message_send(struct ws_connection *connection, enum frame_opcode opcode,
                                     struct span payload)
{
    char header[10];
    struct iovec parts[2] = {
        {.iov_base = header, .iov_len = envelope_frame_header(header, payload.bytes)},
        {.iov_base = (void *)payload.data, .iov_len = payload.bytes},
    };
    header[0] = (char)(0x80 | opcode); /* final, RFC 6455 section 5.2 */
    return parts_send(connection, parts, 2);
}

enum weir_status ws_send_text(struct ws_connection *connection, struct span text)
{
    return message_send(connection, FRAME_TEXT, text);
}

enum weir_status ws_send_binary(struct ws_connection *connection, struct span bytes)
{
    return message_send(connection, FRAME_BINARY, bytes);
}

enum weir_status ws_send_parts(struct ws_connection *connection, const struct iovec *parts,
                               unsigned part_count)
{
    struct iovec own[WS_PARTS_MAX];
    weir_assert(connection->is_event_stream);
    weir_assert(part_count <= WS_PARTS_MAX);
    memcpy(own, parts, part_count * sizeof own[0]);
    return parts_send(connection, own, part_count);
}

bool ws_is_event_stream(const struct ws_connection *connection)
{
    return connection->is_event_stream;
}

/* The last event, and the end. What the reason says of coming back (`retry_ms=N`) is the browser's to
 * know. */
static void event_stream_close(struct ws_connection *connection, unsigned code, const char *reason)
{
    static const char hint[] = "retry_ms=";
    char text[2 * FRAME_CONTROL_BYTES_MAX + 128];
    const char *shown = reason == NULL ? "" : reason;
    const char *retry_ms = strstr(shown, hint);
    int digits = 0;
    if (retry_ms != NULL) {
        retry_ms += sizeof hint - 1;
        digits = (int)strspn(retry_ms, "0123456789");
    }
    int bytes = snprintf(
        text, sizeof text, "%s%.*s%sevent: close\ndata: {\"code\":%u,\"reason\":\"%.*s\"}\n\n",
        digits > 0 ? "retry: " : "", digits < 20 ? digits : 20, digits > 0 ? retry_ms : "",
        digits > 0 ? "\n" : "", code, FRAME_CONTROL_BYTES_MAX, shown);
    weir_assert(bytes > 0);
    weir_assert((size_t)bytes < sizeof text);
    ws_connection_append_or_kill(connection, span_of(text, (size_t)bytes));
    connection->sends_end = true;
    ws_connection_leave(connection, WS_STATE_DRAIN);
}

void ws_close_code(struct ws_connection *connection, unsigned code, const char *reason)
{
    if (connection->state != WS_STATE_OPEN)
        return;
    struct ws_server *server = connection->server;
    char hinted[RETRY_REASON_BYTES];
    if ((code == WS_RESTART || code == WS_TRY_LATER) && server->options.retry != NULL) {
        retry_reason(hinted, reason != NULL ? reason : "come back",
                     retry_hint_ms(server->options.retry, uv_now(server->loop), 1));
        reason = hinted;
    }
    if (connection->is_event_stream) {
        event_stream_close(connection, code, reason);
        return;
    }
    close_append(connection, code, reason);
    ws_connection_leave(connection, WS_STATE_CLOSING);
}

void ws_close(struct ws_connection *connection, enum ws_status_code code, const char *reason)
{
    ws_close_code(connection, code, reason);
}

void ws_abort(struct ws_connection *connection)
{
    ws_connection_kill(connection);
}

void ws_connection_resume(struct ws_connection *connection)
{
    if (connection->state == WS_STATE_DEAD)
        return;
    connection->resumes = true;
    connection->inbound_ms = ws_now_ms(connection->server);
    mark_dirty(connection);
    ws_apply_reading(connection);
}

void ws_set_reading(struct ws_connection *connection, bool reading)
{
    if (connection->state != WS_STATE_OPEN || connection->is_paused == !reading)
        return;
    connection->is_paused = !reading;
    connection->resumes = false;
    if (reading)
        ws_connection_resume(connection);
    else
        ws_apply_reading(connection);
}

#include "tests/sim/gateway.h"

#include <stdio.h>
#include <stdlib.h>

#include "gateway/event_stream.h"
#include "shm/envelope.h"
#include "shm/json.h"

enum { CLOSE_ABNORMAL = 1006, CLOSE_GRACE_MS = 50, RETRY_MS = 10 };

/* ---- sockets ---- */

struct sim_socket *sim_socket_open(struct sim_gateway *gateway, enum subscriber_format format,
                                   size_t window_bytes, uint32_t stingy_percent)
{
    struct sim_socket *socket = gateway->sockets;
    while (socket < gateway->sockets + SIM_SOCKETS_MAX && socket->is_used)
        socket++;
    if (socket == gateway->sockets + SIM_SOCKETS_MAX)
        return NULL;
    struct buffer bytes = socket->bytes;
    struct sim_sent *sent = socket->sent;
    uint32_t capacity = socket->sent_capacity;
    *socket = (struct sim_socket){
        .gateway = gateway,
        .is_used = true,
        .bytes = bytes,
        .sent = sent,
        .sent_capacity = capacity,
        .window_bytes = window_bytes,
        .stingy_percent = stingy_percent,
    };
    buffer_clear(&socket->bytes);
    socket->bytes.limit_bytes = 256 * 1024 * 1024;
    socket->subscriber.connection = socket;
    socket->subscriber.format = (uint8_t)format;
    return socket;
}

void sim_socket_free(struct sim_socket *socket)
{
    weir_assert(socket->gateway == NULL);
    socket->is_used = false;
}

uint64_t sim_socket_end(const struct sim_socket *socket)
{
    return socket->taken + socket->bytes.bytes;
}

bool sim_socket_receive(struct sim_socket *socket, size_t bytes)
{
    bool has_all = bytes <= socket->kernel_bytes;
    if (!has_all)
        bytes = socket->kernel_bytes;
    socket->kernel_bytes -= bytes;
    socket->received_bytes += bytes;
    return has_all;
}

struct span sim_socket_received(const struct sim_socket *socket)
{
    return span_of(socket->bytes.data, socket->received_bytes);
}

void sim_socket_take(struct sim_socket *socket, size_t bytes)
{
    weir_assert(bytes <= socket->received_bytes);
    buffer_consume(&socket->bytes, bytes);
    socket->received_bytes -= bytes;
    socket->taken += bytes;
}

struct sim_sent sim_socket_sent(struct sim_socket *socket, uint64_t end)
{
    while (socket->sent_count > 0) { /* each turn drops one */
        struct sim_sent sent = socket->sent[socket->sent_first++];
        socket->sent_count--;
        if (sent.end == end)
            return sent;
        weir_assert(sent.end < end);
    }
    weir_assert_failed("a message that was never sent", __FILE__, __LINE__);
}

static void socket_note_sent(struct sim_socket *socket)
{
    const struct sim_gateway *gateway = socket->gateway;
    if (socket->sent_first + socket->sent_count == socket->sent_capacity) {
        if (socket->sent_first > socket->sent_capacity / 2) {
            memmove(socket->sent, socket->sent + socket->sent_first,
                    socket->sent_count * sizeof *socket->sent);
        } else {
            socket->sent_capacity = socket->sent_capacity == 0 ? 64 : socket->sent_capacity * 2;
            struct sim_sent *grown = malloc(socket->sent_capacity * sizeof *grown);
            weir_assert(grown != NULL);
            if (socket->sent_count > 0)
                memcpy(grown, socket->sent + socket->sent_first,
                       socket->sent_count * sizeof *grown);
            free(socket->sent);
            socket->sent = grown;
        }
        socket->sent_first = 0;
    }
    socket->sent[socket->sent_first + socket->sent_count++] =
        (struct sim_sent){sim_socket_end(socket), gateway->history->acknowledged, gateway->life};
}

uint64_t sim_message_bytes(struct span bytes, unsigned format)
{
    if (bytes.bytes == 0)
        return 0;
    if (format == FORMAT_EVENT_STREAM) {
        const char *end = memmem(bytes.data, bytes.bytes, "\n\n", 2);
        return end == NULL ? 0 : (uint64_t)(end + 2 - bytes.data);
    }
    uint64_t frame_bytes = envelope_frame_bytes(bytes);
    return frame_bytes > bytes.bytes ? 0 : frame_bytes;
}

/* One whole frame, behind what is there already. */
static void socket_append(struct sim_socket *socket, struct span header, struct span payload)
{
    enum weir_status status = buffer_append(&socket->bytes, header);
    if (status == WEIR_OK)
        status = buffer_append(&socket->bytes, payload);
    weir_assert(status == WEIR_OK);
    socket_note_sent(socket);
}

/* One envelope; `at` as in outlet.h. */
static void socket_append_message(struct sim_socket *socket, struct span json, struct cursor at)
{
    if (socket->subscriber.format == FORMAT_WEBSOCKET) {
        char header[10];
        size_t header_bytes = envelope_frame_header(header, json.bytes);
        socket_append(socket, span_of(header, header_bytes), json);
        return;
    }
    struct buffer text;
    buffer_init(&text, json.bytes + EVENT_STREAM_EXTRA_BYTES_MAX + 16);
    enum weir_status status = event_stream_append(&text, json, at);
    weir_assert(status == WEIR_OK);
    socket_append(socket, buffer_span(&text), (struct span){0});
    buffer_fini(&text);
}

/* As ws_connection.c ends an event stream; `hint_ms` 0: it does not say when to come back. */
static void socket_append_close(struct sim_socket *socket, uint64_t hint_ms)
{
    char text[RETRY_REASON_BYTES + 128];
    int bytes = 0;
    if (hint_ms > 0)
        bytes = snprintf(text, sizeof text, "retry: %llu\n", (unsigned long long)hint_ms);
    bytes += snprintf(text + bytes, sizeof text - (size_t)bytes,
                      "event: close\ndata: {\"code\":%u,\"reason\":\"%s\"}\n\n", socket->close_code,
                      socket->close_reason);
    socket_append(socket, span_of(text, (size_t)bytes), (struct span){0});
}

static size_t socket_backlog(const struct sim_socket *socket)
{
    return socket->bytes.bytes - socket->received_bytes - socket->kernel_bytes;
}

/* The kernel takes of the backlog what it has room for. */
static void socket_push(struct sim_socket *socket)
{
    size_t room = socket->window_bytes - socket->kernel_bytes;
    size_t backlog = socket_backlog(socket);
    socket->kernel_bytes += backlog < room ? backlog : room;
}

static void gateway_forget(struct sim_gateway *gateway, struct sim_socket *socket)
{
    subscriptions_remove_subscriber(&gateway->subscriptions, &socket->subscriber);
    counters_subtract(&gateway->counters, COUNTER_STREAM_CONNECTIONS, 1);
    socket->gateway = NULL;
}

void sim_socket_leave(struct sim_socket *socket)
{
    if (socket->gateway == NULL) {
        sim_socket_free(socket);
        return;
    }
    socket->is_left = true;
}

void sim_gateway_poll(struct sim_gateway *gateway, struct sim_socket *socket)
{
    if (socket->is_left) {
        gateway_forget(gateway, socket);
        sim_socket_free(socket);
        return;
    }
    socket_push(socket);
    if (socket->is_closing && socket_backlog(socket) == 0) {
        gateway_forget(gateway, socket);
        return;
    }
    if (!socket->owes_writable || socket_backlog(socket) > 0 ||
        socket->kernel_bytes == socket->window_bytes)
        return;
    if (gateway->fault == SIM_FAULT_STUCK && sim_chance(gateway->scheduler, 2))
        socket->owes_writable = false;
    if (!socket->owes_writable)
        return;
    socket->owes_writable = false;
    subscriptions_unblock(&gateway->subscriptions, &socket->subscriber);
}

/* ---- outlet ---- */

static void on_add(void *context, void *connection, const struct iovec *frames,
                   unsigned frame_count, void *entry)
{
    struct sim_gateway *gateway = context;
    weir_assert(gateway->send_count < SIM_SENDS_MAX);
    weir_assert(frame_count <= SIM_IOVECS);
    gateway->sends[gateway->send_count].socket = connection;
    memcpy(gateway->sends[gateway->send_count].frames, frames, frame_count * sizeof *frames);
    gateway->sends[gateway->send_count].frame_count = frame_count;
    gateway->sends[gateway->send_count++].entry = entry;
}

static bool text_has(struct span text, const char *part)
{
    return memmem(text.data, text.bytes, part, strlen(part)) != NULL;
}

/* Both words have the same length. */
static void gateway_append_as_update(struct sim_socket *socket, struct span frame)
{
    static const char create[] = "\"event\":{\"type\":\"create\"";
    static const char update[] = "\"event\":{\"type\":\"update\"";
    struct buffer spoilt;
    buffer_init(&spoilt, frame.bytes);
    enum weir_status status = buffer_append(&spoilt, frame);
    weir_assert(status == WEIR_OK);
    char *at = memmem(spoilt.data, spoilt.bytes, create, sizeof create - 1);
    if (at != NULL)
        memcpy(at, update, sizeof update - 1);
    socket_append(socket, buffer_span(&spoilt), (struct span){0});
    buffer_fini(&spoilt);
}

/* An event whose `id:`, if it has one, says a seq next to its own. */
static void gateway_append_elsewhere(struct sim_socket *socket, struct span block)
{
    static const char id[] = "id: ";
    struct buffer spoilt;
    buffer_init(&spoilt, block.bytes);
    enum weir_status status = buffer_append(&spoilt, block);
    weir_assert(status == WEIR_OK);
    if (memcmp(spoilt.data, id, sizeof id - 1) == 0) {
        char *digit = (char *)memchr(spoilt.data, '\n', spoilt.bytes) - 1;
        *digit = *digit == '9' ? '8' : (char)(*digit + 1);
    }
    socket_append(socket, buffer_span(&spoilt), (struct span){0});
    buffer_fini(&spoilt);
}

/* One frame of a send, or what a planted fault makes of it. */
static void gateway_append(struct sim_gateway *gateway, struct sim_socket *socket,
                           struct span frame, struct span next, bool *skips_next)
{
    bool is_wrong = sim_chance(gateway->scheduler, gateway->fault == SIM_FAULT_NONE ? 0 : 2);
    if (gateway->fault == SIM_FAULT_DROP && is_wrong)
        return;
    bool has_more = text_has(frame, "\"more\":true");
    if (gateway->fault == SIM_FAULT_LEFT_OUT && has_more)
        return;
    if (gateway->fault == SIM_FAULT_KIND && text_has(frame, ",\"conflated\":")) {
        gateway_append_as_update(socket, frame);
        return;
    }
    if (gateway->fault == SIM_FAULT_SWAP && is_wrong && next.bytes > 0) {
        socket_append(socket, next, (struct span){0});
        *skips_next = true;
    }
    if (gateway->fault == SIM_FAULT_ID && is_wrong &&
        socket->subscriber.format == FORMAT_EVENT_STREAM) {
        gateway_append_elsewhere(socket, frame);
        return;
    }
    socket_append(socket, frame, (struct span){0});
    if (gateway->fault == SIM_FAULT_REPEAT && is_wrong)
        socket_append(socket, frame, (struct span){0});
}

static struct span first_frame(const struct sim_gateway *gateway, const struct sim_socket *socket,
                               struct span bytes)
{
    if (bytes.bytes == 0)
        return bytes;
    uint64_t frame_bytes = sim_message_bytes(bytes, socket->subscriber.format);
    if (frame_bytes == 0)
        sim_fail(gateway->scheduler, SIM_WIRE, "a send is not made of whole frames");
    return span_of(bytes.data, frame_bytes);
}

static void gateway_append_all(struct sim_gateway *gateway, struct sim_socket *socket,
                               struct span bytes)
{
    while (bytes.bytes > 0) { /* each turn takes a frame or two */
        struct span frame = first_frame(gateway, socket, bytes);
        bytes = span_of(bytes.data + frame.bytes, bytes.bytes - frame.bytes);
        struct span next = first_frame(gateway, socket, bytes);
        bool skips_next = false;
        gateway_append(gateway, socket, frame, next, &skips_next);
        if (skips_next)
            bytes = span_of(bytes.data + next.bytes, bytes.bytes - next.bytes);
    }
}

static enum weir_status gateway_send(struct sim_gateway *gateway, struct sim_socket *socket,
                                     const struct iovec *frames, unsigned frame_count)
{
    /* One that is left is found out now, as by an error of send(2), and goes when it is polled. */
    if (socket->gateway == NULL || socket->is_closing || socket->is_left)
        return WEIR_CLOSED;
    bool is_stingy = !gateway->is_calm && sim_chance(gateway->scheduler, socket->stingy_percent);
    bool is_full = socket->kernel_bytes == socket->window_bytes || socket_backlog(socket) > 0;
    if (is_full || (is_stingy && sim_chance(gateway->scheduler, 50))) {
        socket->owes_writable = true;
        sim_note(gateway->scheduler, "gateway: busy", gateway->index,
                 (uint64_t)(socket - gateway->sockets), is_full);
        return WEIR_AGAIN;
    }
    for (unsigned i = 0; i < frame_count; i++)
        gateway_append_all(gateway, socket, span_of(frames[i].iov_base, frames[i].iov_len));
    sim_note(gateway->scheduler, "gateway: sends", gateway->index,
             (uint64_t)(socket - gateway->sockets), sim_socket_end(socket));
    size_t before = socket->kernel_bytes;
    socket_push(socket);
    if (is_stingy) /* the send was cut: the kernel has a part of it */
        socket->kernel_bytes =
            before + sim_below(gateway->scheduler, (uint32_t)(socket->kernel_bytes - before + 1));
    return WEIR_OK;
}

static void on_flush(void *context, outlet_done *done, void *done_context)
{
    struct sim_gateway *gateway = context;
    for (unsigned i = 0; i < gateway->send_count; i++)
        done(done_context, gateway->sends[i].entry,
             gateway_send(gateway, gateway->sends[i].socket, gateway->sends[i].frames,
                          gateway->sends[i].frame_count));
    gateway->send_count = 0;
}

static void gateway_count_sync(struct sim_gateway *gateway, struct span json)
{
    gateway->resumes += text_has(json, "\"event\":{\"type\":\"resumed\"");
    if (!text_has(json, "\"event\":{\"type\":\"sync\""))
        return;
    gateway->syncs++;
    gateway->syncs_lagged += text_has(json, ",\"reason\":\"lagged\"");
    gateway->syncs_restarted += text_has(json, ",\"reason\":\"restarted\"");
    gateway->syncs_expired += text_has(json, ",\"reason\":\"expired\"");
}

/* What a planted fault makes of a sync, in `out`; false: nothing at all. */
static bool gateway_spoil_sync(struct sim_gateway *gateway, struct span json, struct buffer *out)
{
    static const char reason[] = ",\"reason\":\"";
    const char *at = memmem(json.data, json.bytes, reason, sizeof reason - 1);
    enum weir_status status = buffer_append(out, json);
    weir_assert(status == WEIR_OK);
    bool is_wrong = sim_chance(gateway->scheduler, 20);
    if (gateway->fault == SIM_FAULT_SILENT && at != NULL) {
        size_t head = (size_t)(at - json.data);
        const char *end = memchr(at + sizeof reason - 1, '"', json.bytes - head - sizeof reason);
        size_t tail = (size_t)(end + 1 - json.data);
        out->bytes = head;
        status = buffer_append(out, span_of(json.data + tail, json.bytes - tail));
        weir_assert(status == WEIR_OK);
    }
    static const char seq[] = ",\"seq\":";
    at = memmem(out->data, out->bytes, seq, sizeof seq - 1);
    bool is_resumed = text_has(json, "\"event\":{\"type\":\"resumed\"");
    if (gateway->fault == (is_resumed ? SIM_FAULT_RESUME : SIM_FAULT_SYNC_SEQ) && is_wrong &&
        at[sizeof seq] != ',') {
        char *digit = out->data + (at - out->data) + sizeof seq - 1;
        *digit = *digit == '9' ? '8' : (char)(*digit + 1);
    }
    return gateway->fault != SIM_FAULT_SWALLOW || !is_wrong;
}

static enum weir_status on_send_text(void *context, void *connection, struct span json,
                                     struct cursor at)
{
    struct sim_gateway *gateway = context;
    struct sim_socket *socket = connection;
    if (socket->gateway == NULL || socket->is_closing || socket->is_left)
        return WEIR_CLOSED;
    if (!gateway->is_calm && sim_chance(gateway->scheduler, socket->stingy_percent / 2))
        return WEIR_FULL;
    gateway_count_sync(gateway, json);
    sim_note(gateway->scheduler, "gateway: sends text", gateway->index,
             (uint64_t)(socket - gateway->sockets), at.seq);
    struct buffer spoilt;
    buffer_init(&spoilt, json.bytes + 16);
    bool is_sent = gateway_spoil_sync(gateway, json, &spoilt);
    if (is_sent)
        socket_append_message(socket, buffer_span(&spoilt), at);
    buffer_fini(&spoilt);
    socket_push(socket);
    return WEIR_OK;
}

static size_t on_backlog_bytes(void *context, void *connection)
{
    (void)context;
    return socket_backlog(connection);
}

static void on_close(void *context, void *connection, unsigned code, const char *reason)
{
    struct sim_gateway *gateway = context;
    struct sim_socket *socket = connection;
    if (socket->is_closing)
        return;
    gateway->too_slow += strcmp(reason, "too far behind") == 0;
    sim_note(gateway->scheduler, "gateway: close", gateway->index, code, 0);
    socket->is_closing = true;
    socket->close_code = code;
    uint64_t hint_ms = retry_hint_ms(&gateway->retry, sim_now_ms(gateway->scheduler), 1);
    bool is_told = gateway->fault != SIM_FAULT_UNTOLD || sim_chance(gateway->scheduler, 50);
    if (is_told)
        retry_reason(socket->close_reason, reason, hint_ms);
    if (socket->subscriber.format == FORMAT_EVENT_STREAM)
        socket_append_close(socket, is_told ? hint_ms : 0);
}

/* ---- a drain ---- */

static void drain_visit_sockets(void *context, drain_visitor *visitor, void *visitor_context)
{
    struct sim_gateway *gateway = context;
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        struct sim_socket *socket = &gateway->sockets[i];
        bool is_open = socket->is_used && socket->gateway != NULL && !socket->is_closing;
        if (is_open && !visitor(visitor_context, socket, WS_ROLE_STREAM))
            return;
    }
}

static void drain_close_socket(void *context, void *connection)
{
    struct sim_gateway *gateway = context;
    if (gateway->fault != SIM_FAULT_LINGER || sim_chance(gateway->scheduler, 50))
        on_close(context, connection, WS_RESTART, "service restart");
}

static bool drain_let_go(void *context, void *connection)
{
    (void)context;
    (void)connection;
    return false;
}

static bool drain_let_go_local(void *context)
{
    (void)context;
    return false;
}

static uint64_t drain_count_sockets(void *context)
{
    const struct sim_gateway *gateway = context;
    uint64_t count = 0;
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++)
        count += gateway->sockets[i].is_used && gateway->sockets[i].gateway != NULL;
    return count;
}

static uint64_t drain_count_locals(void *context)
{
    (void)context;
    return 0;
}

void sim_gateway_drain(struct sim_gateway *gateway, uint64_t window_ms)
{
    const struct drain_sockets sockets = {
        .visit = drain_visit_sockets,
        .close = drain_close_socket,
        .let_go = drain_let_go,
        .let_go_local = drain_let_go_local,
        .count = drain_count_sockets,
        .local_count = drain_count_locals,
        .context = gateway,
    };
    sim_note(gateway->scheduler, "gateway: drains", gateway->index, window_ms, 0);
    gateway->is_draining = true;
    gateway->over_ms = 0;
    drain_start(&gateway->drain, &sockets, window_ms, sim_now_ms(gateway->scheduler));
}

static void gateway_tick_drain(struct sim_gateway *gateway)
{
    if (gateway->is_draining && gateway->over_ms == 0 &&
        drain_tick(&gateway->drain, sim_now_ms(gateway->scheduler)))
        gateway->over_ms = sim_now_ms(gateway->scheduler);
}

bool sim_gateway_has_drained(const struct sim_gateway *gateway)
{
    if (!gateway->is_alive || gateway->over_ms == 0)
        return false;
    return drain_left(&gateway->drain) == 0 ||
           sim_now_ms(gateway->scheduler) >= gateway->over_ms + CLOSE_GRACE_MS;
}

/* ---- a life ---- */

void sim_gateway_start(struct sim_gateway *gateway, struct scheduler *scheduler,
                       struct history *history, struct sim_broker *broker, enum sim_fault fault)
{
    const struct outlet outlet = {on_add,   on_flush, on_send_text, on_backlog_bytes,
                                  on_close, gateway,  SIM_IOVECS};
    gateway->scheduler = scheduler;
    gateway->history = history;
    gateway->broker = broker;
    gateway->fault = fault;
    gateway->is_alive = true;
    gateway->is_attached = gateway->is_draining = false;
    gateway->over_ms = 0;
    retry_init(&gateway->retry, RETRY_MS, sim_random(scheduler));
    gateway->mapping = NULL;
    gateway->syncs = gateway->syncs_lagged = gateway->syncs_restarted = gateway->syncs_expired = 0;
    gateway->resumes = gateway->too_slow = 0;
    gateway->counters = (struct counters){0};
    enum weir_status status =
        subscriptions_init(&gateway->subscriptions, 16, false, &gateway->counters);
    if (status == WEIR_OK)
        status = feed_init(&gateway->feed, &gateway->counters);
    weir_assert(status == WEIR_OK);
    gateway->fanout = fanout_open(&gateway->subscriptions, &outlet, &gateway->counters);
    gateway->catch_up = catch_up_open(&gateway->subscriptions, &outlet, &gateway->counters);
    gateway->joins =
        joins_open(&gateway->subscriptions, gateway->catch_up, &outlet, &gateway->counters);
    weir_assert(gateway->fanout != NULL && gateway->catch_up != NULL && gateway->joins != NULL);
}

static void gateway_drop_mapping(struct sim_gateway *gateway)
{
    if (gateway->mapping == NULL)
        return;
    mapping_close(gateway->mapping);
    if (gateway->life == gateway->broker->life)
        sim_broker_detach(gateway->broker, gateway->slot);
    gateway->mapping = NULL;
}

/* The socket ends with what the kernel has of it, and if that is not all without a Close. */
static void gateway_drop(struct sim_gateway *gateway, struct sim_socket *socket)
{
    bool is_cut = socket_backlog(socket) > 0 || !socket->is_closing;
    gateway_forget(gateway, socket);
    socket->bytes.bytes = socket->received_bytes + socket->kernel_bytes;
    if (is_cut)
        socket->close_code = CLOSE_ABNORMAL;
    if (socket->is_left)
        sim_socket_free(socket);
}

static void gateway_close_parts(struct sim_gateway *gateway)
{
    joins_close(gateway->joins);
    catch_up_close(gateway->catch_up);
    fanout_close(gateway->fanout);
    feed_fini(&gateway->feed);
    subscriptions_fini(&gateway->subscriptions);
    gateway_drop_mapping(gateway);
    gateway->is_alive = gateway->is_attached = gateway->is_draining = false;
}

void sim_gateway_kill(struct sim_gateway *gateway)
{
    sim_note(gateway->scheduler, "gateway: killed", gateway->index, 0, 0);
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        struct sim_socket *socket = &gateway->sockets[i];
        if (!socket->is_used || socket->gateway == NULL)
            continue;
        socket->kernel_bytes = sim_below(gateway->scheduler, (uint32_t)socket->kernel_bytes + 1);
        socket->is_closing = false;
        gateway_drop(gateway, socket);
    }
    gateway_close_parts(gateway);
}

void sim_gateway_leave(struct sim_gateway *gateway)
{
    sim_note(gateway->scheduler, "gateway: leaves", gateway->index, 0, 0);
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        struct sim_socket *socket = &gateway->sockets[i];
        if (!socket->is_used || socket->gateway == NULL)
            continue;
        if (!socket->is_closing)
            sim_fail(gateway->scheduler, SIM_TOLD, "gateway %u leaves, and socket %u was not told",
                     gateway->index, i);
        gateway_drop(gateway, socket);
    }
    gateway_close_parts(gateway);
}

/* ---- the broker ---- */

bool sim_gateway_wants_broker(const struct sim_gateway *gateway)
{
    return gateway->is_alive && gateway->broker->is_alive &&
           (gateway->mapping == NULL || gateway->life != gateway->broker->life);
}

/* All that the old ring has is read before the next broker is asked. */
static void gateway_drain(struct sim_gateway *gateway)
{
    while (gateway->mapping != NULL &&
           gateway->mapping->ring.position < ring_published(&gateway->mapping->ring))
        sim_gateway_turn(gateway);
}

static bool gateway_read_on(const struct sim_gateway *gateway,
                            const struct sim_attachment *attachment)
{
    return gateway->feed.is_commit_known &&
           mapping_read_from(attachment->mapping, attachment->position);
}

void sim_gateway_attach(struct sim_gateway *gateway)
{
    struct mapping *old = gateway->mapping;
    gateway_drain(gateway);
    uint64_t frame = gateway->feed.is_commit_known ? gateway->feed.commit : 0;
    uint64_t newest_ms = joins_newest_ms(gateway->joins);
    if (gateway->feed.newest_ms > newest_ms)
        newest_ms = gateway->feed.newest_ms;
    struct sim_attachment attachment = sim_broker_attach(gateway->broker, frame, newest_ms);
    struct mapping *mapping = attachment.mapping;
    bool is_resumed = attachment.is_kept && old != NULL;
    bool reads_on = is_resumed && gateway_read_on(gateway, &attachment);
    sim_note(gateway->scheduler, "gateway: attached", gateway->index, is_resumed, reads_on);
    feed_start(&gateway->feed, &mapping->ring, reads_on);
    gateway->mapping = mapping;
    gateway->slot = attachment.slot;
    gateway->life = gateway->broker->life;
    gateway->is_attached = true;
    catch_up_set_mapping(gateway->catch_up, mapping);
    joins_set_mapping(gateway->joins, mapping);
    if (is_resumed) {
        counters_add(&gateway->counters, COUNTER_LINK_RESUMED, 1);
        subscriptions_resume(&gateway->subscriptions, mapping->hash_seed);
        if (!reads_on)
            feed_lapped(&gateway->feed);
    } else {
        subscriptions_restart(&gateway->subscriptions, mapping->hash_seed, "restarted");
    }
    if (attachment.is_kept && !reads_on && mapping_read_from(mapping, attachment.position))
        feed_start_behind(&gateway->feed, attachment.commit);
    counters_attach(&gateway->counters, &mapping->reader);
    mapping_close(old);
}

/* A planted fault: the oldest write that is not answered, sent as if it were. */
static void gateway_show_early(struct sim_gateway *gateway)
{
    struct history *history = gateway->history;
    if (gateway->fault != SIM_FAULT_EARLY || history->acknowledged >= history->place_count)
        return;
    const struct history_place *place = &history->places[history->acknowledged];
    const struct history_event *event = history_event(history, place->group, place->index);
    char stream[64], group[64], item[64], frame[16384];
    struct buffer data;
    buffer_init(&data, sizeof frame);
    history_value_text(history, event->value, &data);
    struct envelope envelope = {
        .event = (enum envelope_event)event->kind,
        .timestamp_ms = sim_now_ms(gateway->scheduler),
        .seq = event->seq,
        .epoch = event->epoch,
        .stream_escaped = span_of(stream, json_escape(stream, history_stream(place->group))),
        .group_escaped = span_of(group, json_escape(group, history_group_name(place->group))),
        .event_type = SPAN_LITERAL("note"),
        .data = buffer_span(&data),
    };
    if (event->item != HISTORY_NO_ITEM)
        envelope.id_escaped = span_of(item, json_escape(item, history_item_name(event->item)));
    struct envelope_layout layout = envelope_encode(frame, &envelope);
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        struct sim_socket *socket = &gateway->sockets[i];
        if (socket->is_used && socket->gateway != NULL && socket->subscriber.links != NULL)
            socket_append_message(
                socket,
                span_of(frame + layout.json_offset, layout.frame_bytes - layout.json_offset),
                (struct cursor){event->epoch, event->seq});
    }
    buffer_fini(&data);
}

void sim_gateway_turn(struct sim_gateway *gateway)
{
    if (gateway->mapping != NULL) {
        enum weir_status status =
            feed_drain(&gateway->feed, &gateway->mapping->ring, &gateway->subscriptions);
        if (status != WEIR_EMPTY) {
            (void)fanout_run(gateway->fanout, &gateway->feed,
                             sim_now_ms(gateway->scheduler) * 1000000);
            weir_assert(status == WEIR_OK || status == WEIR_LAPPED || status == WEIR_FULL);
            if (status == WEIR_LAPPED) {
                sim_note(gateway->scheduler, "gateway: lapped", gateway->index, 0, 0);
                subscriptions_all_behind(&gateway->subscriptions);
            }
        }
    }
    gateway_show_early(gateway);
    (void)catch_up_run(gateway->catch_up);
    (void)joins_run(gateway->joins, sim_now_ms(gateway->scheduler));
    gateway_tick_drain(gateway);
    counters_publish(&gateway->counters);
}

bool sim_gateway_is_idle(const struct sim_gateway *gateway)
{
    return gateway->subscriptions.behind_count == 0 && gateway->subscriptions.sync_count == 0 &&
           gateway->mapping->ring.position == ring_published(&gateway->mapping->ring);
}

static void check_counter(const struct sim_gateway *gateway, enum counter counter, uint64_t seen)
{
    uint64_t counted = gateway->counters.values[counter];
    if (counted != seen)
        sim_fail(gateway->scheduler, SIM_BOUNDED, "gateway %u counts %s %llu, its sockets got %llu",
                 gateway->index, counters_name(counter), (unsigned long long)counted,
                 (unsigned long long)seen);
}

void sim_gateway_check_counters(const struct sim_gateway *gateway)
{
    uint64_t connections = 0, subscriptions = 0;
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        const struct sim_socket *socket = &gateway->sockets[i];
        if (!socket->is_used || socket->gateway == NULL)
            continue;
        connections++;
        subscriptions += socket->subscriber.subscription_count;
    }
    check_counter(gateway, COUNTER_STREAM_CONNECTIONS, connections);
    check_counter(gateway, COUNTER_SUBSCRIPTIONS, subscriptions);
    check_counter(gateway, COUNTER_TOPICS, gateway->subscriptions.topic_count);
    check_counter(gateway, COUNTER_SYNCS, gateway->syncs);
    check_counter(gateway, COUNTER_SYNCS_LAGGED, gateway->syncs_lagged);
    check_counter(gateway, COUNTER_SYNCS_RESTARTED, gateway->syncs_restarted);
    check_counter(gateway, COUNTER_SYNCS_WAITING, 0);
    check_counter(gateway, COUNTER_RESUMES, gateway->resumes);
    check_counter(gateway, COUNTER_RESUMES_EXPIRED, gateway->syncs_expired);
    check_counter(gateway, COUNTER_SUBSCRIBERS_TOO_SLOW, gateway->too_slow);
}

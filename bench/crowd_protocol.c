#include "bench/crowd_protocol.h"

#include <stdio.h>
#include <stdlib.h>

#include "bench/load.h"
#include "bench/message.h"
#include "shm/envelope.h"

/* ---- text ---- */

static bool starts_with(struct span bytes, const char *text)
{
    size_t length = strlen(text);
    return bytes.bytes >= length && memcmp(bytes.data, text, length) == 0;
}

static struct span behind(struct span bytes, size_t offset)
{
    return span_of(bytes.data + offset, bytes.bytes - offset);
}

/* Where `text` is, or NULL. */
static const char *find(struct span bytes, const char *text)
{
    return memmem(bytes.data, bytes.bytes, text, strlen(text));
}

/* The number behind the first `name`; 0 when there is none. */
static uint64_t number_behind(struct span bytes, const char *name)
{
    const char *at = find(bytes, name);
    uint64_t number = 0;
    if (at == NULL)
        return 0;
    for (at += strlen(name); at < bytes.data + bytes.bytes && *at >= '0' && *at <= '9'; at++)
        number = number * 10 + (uint64_t)(*at - '0');
    return number;
}

/* The message that starts at `at`, if one does: there are no braces in it. */
static struct span message_at(struct span bytes, const char *at)
{
    const char *bytes_end = bytes.data + bytes.bytes;
    bool is_message = at < bytes_end && *at == '{';
    const char *end = is_message ? memchr(at, '}', (size_t)(bytes_end - at)) : NULL;
    return end == NULL ? span_of(at, 0) : span_of(at, (size_t)(end + 1 - at));
}

/* Bytes up to and with the first line end; 0: cut. */
static size_t line_bytes(struct span bytes)
{
    const char *end = memchr(bytes.data, '\n', bytes.bytes);
    return end == NULL ? 0 : (size_t)(end + 1 - bytes.data);
}

/* ---- HTTP answers and WebSocket frames ---- */

/* Head and body of an answer; 0: cut. */
static size_t http_answer_bytes(struct span bytes)
{
    const char *end = find(bytes, "\r\n\r\n");
    if (end == NULL)
        return 0;
    size_t head = (size_t)(end + 4 - bytes.data);
    size_t whole = head + number_behind(span_of(bytes.data, head), "\r\nContent-Length: ");
    return whole <= bytes.bytes ? whole : 0;
}

static size_t ask_for_upgrade(const struct crowd_voice *voice, const char *path, char *out)
{
    return (size_t)snprintf(out, CROWD_REPLY_BYTES_MAX,
                            "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUpgrade: websocket\r\n"
                            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                            "Sec-WebSocket-Version: 13\r\n\r\n",
                            path, voice->port);
}

static void take_upgrade(struct crowd_voice *voice, struct span bytes, struct crowd_unit *unit)
{
    unit->bytes = http_answer_bytes(bytes);
    if (unit->bytes == 0)
        return;
    voice->stage = 1;
    unit->kind = starts_with(bytes, "HTTP/1.1 101") ? CROWD_SKIP : CROWD_BROKEN;
}

/* The payload of a whole text frame; other frames are dealt with here, and then it is empty. */
static struct span take_frame(struct span bytes, char *reply, struct crowd_unit *unit)
{
    uint64_t whole = envelope_frame_bytes(bytes);
    if (whole == 0 || whole > bytes.bytes)
        return span_of(NULL, 0);
    unsigned length = (unsigned char)bytes.data[1] & 127u;
    size_t head = length == 126 ? 4 : length == 127 ? 10 : 2;
    struct span payload = span_of(bytes.data + head, (size_t)whole - head);
    unsigned kind = (unsigned char)bytes.data[0];
    unit->bytes = (size_t)whole;
    unit->kind = CROWD_SKIP;
    if (kind == 0x81 || kind == 0x82)
        return payload;
    if (kind == 0x89 && payload.bytes < 126) {
        unit->reply_bytes = load_masked_frame(reply, payload.data, payload.bytes);
        reply[0] = (char)0x8a;
    } else if (kind == 0x88) {
        unit->kind = CROWD_END;
        unit->retry_ms = (unsigned)number_behind(payload, "retry_ms=");
    } else if (kind != 0x8a) {
        unit->kind = CROWD_BROKEN;
    }
    return span_of(NULL, 0);
}

/* ---- weir ---- */

static size_t weir_greet(const struct crowd_voice *voice, char *out)
{
    char path[192], query[128] = "";
    if (voice->group == NULL)
        return ask_for_upgrade(voice, "/", out);
    int used = 0;
    if (voice->epoch != 0)
        used = snprintf(query, sizeof query, "?epoch=%llu&since=%llu",
                        (unsigned long long)voice->epoch, (unsigned long long)voice->since);
    if (voice->mode != NULL)
        (void)snprintf(query + used, sizeof query - (size_t)used, "%cmode=%s",
                       used == 0 ? '?' : '&', voice->mode);
    (void)snprintf(path, sizeof path, "/stream/bench/%s%s", voice->group, query);
    return ask_for_upgrade(voice, path, out);
}

/* Everything but "data" is before or behind it, and a message has none of these words. */
static void take_envelope(struct crowd_voice *voice, struct span text, struct crowd_unit *unit)
{
    static const char event_head[] = "\"event\":{\"type\":\"";
    const char *event = find(text, event_head);
    unit->kind = CROWD_BROKEN;
    if (event == NULL)
        return;
    struct span type = span_of(event + sizeof event_head - 1,
                               (size_t)(text.data + text.bytes - event) - (sizeof event_head - 1));
    const char *data = find(type, "\"data\":");
    bool is_sync = starts_with(type, "sync\""), is_resumed = starts_with(type, "resumed\"");
    if (data != NULL)
        unit->message = message_at(text, data + (is_sync ? 8 : 7));
    struct span tail =
        unit->message.bytes == 0
            ? type
            : behind(text, (size_t)(unit->message.data + unit->message.bytes - text.data));
    unit->epoch = number_behind(tail, "\"epoch\":");
    unit->since = number_behind(tail, "\"seq\":");
    unit->conflated = find(tail, "\"conflated\":") != NULL;
    if (unit->conflated && find(tail, "\"more\":true") != NULL)
        unit->since = number_behind(tail, "\"conflated\":{\"since\":");
    unit->resumed = is_resumed;
    if (is_sync || is_resumed) {
        unit->kind = voice->stage == 1 ? CROWD_LIVE : CROWD_RESYNC;
        voice->stage = 2;
    } else if (starts_with(type, "create\"") || starts_with(type, "update\"")) {
        unit->kind = CROWD_MESSAGE;
    }
}

static void weir_take(struct crowd_voice *voice, struct span bytes, char *reply,
                      struct crowd_unit *unit)
{
    if (voice->stage == 0) {
        take_upgrade(voice, bytes, unit);
        if (unit->kind == CROWD_SKIP && voice->group == NULL)
            unit->kind = CROWD_LIVE;
        return;
    }
    struct span text = take_frame(bytes, reply, unit);
    if (text.bytes > 0 && voice->group != NULL)
        take_envelope(voice, text, unit);
    else if (starts_with(text, "{\"type\":\"invocationresult\""))
        unit->kind = find(text, "\"error\":") == NULL ? CROWD_ANSWERED : CROWD_REFUSED;
}

/* `call`: what makes it a call with an answer, or one without. */
static size_t put_set(const char *call, const char *group, struct span message, char *out)
{
    char text[CROWD_FRAMING_BYTES_MAX + MESSAGE_BYTES_MAX];
    int head = snprintf(text, CROWD_FRAMING_BYTES_MAX,
                        "{\"type\":\"invokefunction\",\"function_id\":\"stream::set\",%s,"
                        "\"data\":{\"stream_name\":\"bench\",\"group_id\":\"%s\",\"item_id\":\"m\","
                        "\"data\":",
                        call, group);
    memcpy(text + head, message.data, message.bytes);
    memcpy(text + (size_t)head + message.bytes, "}}", 2);
    return load_masked_frame(out, text, (size_t)head + message.bytes + 2);
}

static size_t weir_publish(const char *group, unsigned group_number, struct span message, char *out)
{
    (void)group_number;
    return put_set("\"action\":{\"type\":\"void\"}", group, message, out);
}

/* Answers come in the order of calls: one that is missing is known by its place. */
static size_t weir_call(const char *group, unsigned group_number, struct span message, char *out)
{
    (void)group_number;
    char call[64];
    (void)snprintf(call, sizeof call, "\"invocation_id\":\"%.10s\"", message.data + 6);
    return put_set(call, group, message, out);
}

/* ---- ws, nchan ---- */

static size_t path_greet(const struct crowd_voice *voice, char *out)
{
    char path[64] = "/pub";
    if (voice->group != NULL)
        (void)snprintf(path, sizeof path, "/sub/%s", voice->group);
    return ask_for_upgrade(voice, path, out);
}

static void ws_take(struct crowd_voice *voice, struct span bytes, char *reply,
                    struct crowd_unit *unit)
{
    if (voice->stage == 0) {
        take_upgrade(voice, bytes, unit);
        if (unit->kind == CROWD_SKIP)
            unit->kind = CROWD_LIVE;
        return;
    }
    unit->message = take_frame(bytes, reply, unit);
    if (unit->message.bytes > 0)
        unit->kind = CROWD_MESSAGE;
}

static size_t ws_publish(const char *group, unsigned group_number, struct span message, char *out)
{
    (void)group_number;
    char text[CROWD_GROUP_BYTES_MAX + MESSAGE_BYTES_MAX + 2];
    int head = snprintf(text, CROWD_GROUP_BYTES_MAX + 2, "%s ", group);
    memcpy(text + head, message.data, message.bytes);
    return load_masked_frame(out, text, (size_t)head + message.bytes);
}

/* A publisher is a plain HTTP client, and ready at once: its first answer is to a first message. */
static size_t nchan_greet(const struct crowd_voice *voice, char *out)
{
    return voice->group == NULL ? 0 : path_greet(voice, out);
}

static void nchan_take(struct crowd_voice *voice, struct span bytes, char *reply,
                       struct crowd_unit *unit)
{
    if (voice->group != NULL) {
        ws_take(voice, bytes, reply, unit);
        return;
    }
    unit->bytes = http_answer_bytes(bytes);
    if (unit->bytes > 0)
        unit->kind = starts_with(bytes, "HTTP/1.1 2") ? CROWD_SKIP : CROWD_REFUSED;
}

static size_t nchan_publish(const char *group, unsigned group_number, struct span message,
                            char *out)
{
    (void)group_number;
    int head = snprintf(out, CROWD_FRAMING_BYTES_MAX,
                        "POST /pub/%s HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                        group, message.bytes);
    memcpy(out + head, message.data, message.bytes);
    return (size_t)head + message.bytes;
}

/* ---- socket.io: Engine.IO 4 over WebSocket ---- */

static size_t socketio_greet(const struct crowd_voice *voice, char *out)
{
    return ask_for_upgrade(voice, "/socket.io/?EIO=4&transport=websocket", out);
}

static size_t socketio_say(const char *text, char *reply)
{
    return load_masked_frame(reply, text, strlen(text));
}

static void take_packet(struct crowd_voice *voice, struct span text, char *reply,
                        struct crowd_unit *unit)
{
    char join[64];
    if (starts_with(text, "42[\"m\",")) {
        unit->message = message_at(text, text.data + 7);
        unit->kind = CROWD_MESSAGE;
    } else if (starts_with(text, "2")) {
        unit->reply_bytes = socketio_say("3", reply);
    } else if (starts_with(text, "0")) {
        unit->reply_bytes = socketio_say("40", reply);
    } else if (starts_with(text, "40") && voice->group == NULL) {
        unit->kind = CROWD_LIVE;
    } else if (starts_with(text, "40")) {
        (void)snprintf(join, sizeof join, "42[\"join\",\"%s\"]", voice->group);
        unit->reply_bytes = socketio_say(join, reply);
    } else if (starts_with(text, "42[\"joined\"")) {
        unit->kind = CROWD_LIVE;
    } else {
        unit->kind = starts_with(text, "1") || starts_with(text, "41") ? CROWD_END : CROWD_BROKEN;
    }
}

static void socketio_take(struct crowd_voice *voice, struct span bytes, char *reply,
                          struct crowd_unit *unit)
{
    if (voice->stage == 0) {
        take_upgrade(voice, bytes, unit);
        return;
    }
    struct span text = take_frame(bytes, reply, unit);
    if (text.bytes > 0)
        take_packet(voice, text, reply, unit);
}

static size_t socketio_publish(const char *group, unsigned group_number, struct span message,
                               char *out)
{
    (void)group_number;
    char text[CROWD_GROUP_BYTES_MAX + MESSAGE_BYTES_MAX + 16];
    int head = snprintf(text, CROWD_GROUP_BYTES_MAX + 16, "42[\"pub\",\"%s\",", group);
    memcpy(text + head, message.data, message.bytes);
    text[(size_t)head + message.bytes] = ']';
    return load_masked_frame(out, text, (size_t)head + message.bytes + 1);
}

/* ---- NATS ---- */

static size_t nats_greet(const struct crowd_voice *voice, char *out)
{
    static const char connect[] = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false,"
                                  "\"protocol\":0,\"lang\":\"c\",\"version\":\"1\"}\r\n";
    if (voice->group == NULL)
        return (size_t)snprintf(out, CROWD_REPLY_BYTES_MAX, "%sPING\r\n", connect);
    return (size_t)snprintf(out, CROWD_REPLY_BYTES_MAX, "%sSUB %s 1\r\nPING\r\n", connect,
                            voice->group);
}

static void nats_take(struct crowd_voice *voice, struct span bytes, char *reply,
                      struct crowd_unit *unit)
{
    size_t line = line_bytes(bytes);
    if (line == 0)
        return;
    unit->bytes = line;
    unit->kind = CROWD_SKIP;
    if (starts_with(bytes, "MSG ")) {
        size_t at = line - 2, length = 0, scale = 1;
        for (; bytes.data[at - 1] != ' '; at--, scale *= 10)
            length += (size_t)(bytes.data[at - 1] - '0') * scale;
        if (bytes.bytes < line + length + 2) {
            *unit = (struct crowd_unit){0};
            return;
        }
        unit->message = span_of(bytes.data + line, length);
        unit->bytes = line + length + 2;
        unit->kind = CROWD_MESSAGE;
    } else if (starts_with(bytes, "PING")) {
        memcpy(reply, "PONG\r\n", 6);
        unit->reply_bytes = 6;
    } else if (starts_with(bytes, "PONG")) {
        unit->kind = voice->stage == 0 ? CROWD_LIVE : CROWD_SKIP;
        voice->stage = 1;
    } else if (!starts_with(bytes, "INFO ") && !starts_with(bytes, "+OK")) {
        unit->kind = CROWD_END; /* "-ERR" and why */
    }
}

static size_t nats_publish(const char *group, unsigned group_number, struct span message, char *out)
{
    (void)group_number;
    int head = snprintf(out, CROWD_FRAMING_BYTES_MAX, "PUB %s %zu\r\n", group, message.bytes);
    memcpy(out + head, message.data, message.bytes);
    memcpy(out + (size_t)head + message.bytes, "\r\n", 2);
    return (size_t)head + message.bytes + 2;
}

/* ---- redis ---- */

/* A publisher needs no greeting; its PING shows that the server answers. */
static size_t redis_greet(const struct crowd_voice *voice, char *out)
{
    if (voice->group == NULL)
        return (size_t)snprintf(out, CROWD_REPLY_BYTES_MAX, "PING\r\n");
    return (size_t)snprintf(out, CROWD_REPLY_BYTES_MAX, "SUBSCRIBE %s\r\n", voice->group);
}

/* One bulk string or number at *at; false: cut. Moves *at behind it. */
static bool redis_part(struct span bytes, size_t *at, struct span *part)
{
    struct span rest = behind(bytes, *at);
    size_t line = rest.bytes == 0 ? 0 : line_bytes(rest);
    if (line == 0)
        return false;
    *part = span_of(rest.data, line);
    *at += line;
    if (rest.data[0] != '$')
        return true;
    size_t length = (size_t)strtoul(rest.data + 1, NULL, 10);
    if (rest.bytes < line + length + 2)
        return false;
    *part = span_of(rest.data + line, length);
    *at += length + 2;
    return true;
}

static void redis_take(struct crowd_voice *voice, struct span bytes, char *reply,
                       struct crowd_unit *unit)
{
    (void)reply;
    size_t at = line_bytes(bytes);
    if (at == 0)
        return;
    if (!starts_with(bytes, "*3\r\n")) {
        unit->bytes = at;
        unit->kind = bytes.data[0] == ':'   ? CROWD_SKIP
                     : bytes.data[0] == '+' ? CROWD_LIVE
                     : voice->group == NULL ? CROWD_REFUSED
                                            : CROWD_BROKEN;
        return;
    }
    struct span what, channel, message;
    if (!redis_part(bytes, &at, &what) || !redis_part(bytes, &at, &channel) ||
        !redis_part(bytes, &at, &message))
        return;
    unit->bytes = at;
    unit->kind = starts_with(what, "message") ? CROWD_MESSAGE : CROWD_LIVE;
    if (unit->kind == CROWD_MESSAGE) /* else it is the count of subscriptions */
        unit->message = message;
}

static size_t redis_publish(const char *group, unsigned group_number, struct span message,
                            char *out)
{
    (void)group_number;
    int head =
        snprintf(out, CROWD_FRAMING_BYTES_MAX, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%zu\r\n",
                 strlen(group), group, message.bytes);
    memcpy(out + head, message.data, message.bytes);
    memcpy(out + (size_t)head + message.bytes, "\r\n", 2);
    return (size_t)head + message.bytes + 2;
}

/* ---- the floor: bench/floor.h ---- */

static size_t floor_greet(const struct crowd_voice *voice, char *out)
{
    uint32_t group = voice->group == NULL ? UINT32_MAX : voice->group_number;
    memcpy(out, &group, sizeof group);
    return sizeof group;
}

/* An empty text frame says that the greeting has been read. */
static void floor_take(struct crowd_voice *voice, struct span bytes, char *reply,
                       struct crowd_unit *unit)
{
    struct span text = take_frame(bytes, reply, unit);
    if (text.bytes > 0)
        take_envelope(voice, text, unit);
    else if (unit->bytes > 0)
        unit->kind = CROWD_LIVE;
}

/* The frame weir would make: the floor sends as many bytes as weir. */
static size_t floor_publish(const char *group, unsigned group_number, struct span message,
                            char *out)
{
    struct envelope envelope = {.event = ENVELOPE_UPDATE,
                                .timestamp_ms = 1700000000000,
                                .seq = 1000,
                                .epoch = 1700000000000000,
                                .stream_escaped = SPAN_LITERAL("bench"),
                                .group_escaped = span_text(group),
                                .id_escaped = SPAN_LITERAL("m"),
                                .data = message};
    uint32_t head[2] = {group_number, envelope_encode(out + 8, &envelope).frame_bytes};
    memcpy(out, head, sizeof head);
    return sizeof head + head[1];
}

static const struct crowd_protocol protocols[] = {
    {"weir", weir_greet, weir_take, weir_publish, false},
    {"weir-calls", weir_greet, weir_take, weir_call, false},
    {"ws", path_greet, ws_take, ws_publish, false},
    {"nchan", nchan_greet, nchan_take, nchan_publish, true},
    {"socketio", socketio_greet, socketio_take, socketio_publish, false},
    {"nats", nats_greet, nats_take, nats_publish, false},
    {"redis", redis_greet, redis_take, redis_publish, false},
    {"floor", floor_greet, floor_take, floor_publish, true},
};

const struct crowd_protocol *crowd_protocol_find(const char *name)
{
    for (size_t i = 0; i < sizeof protocols / sizeof protocols[0]; i++)
        if (strcmp(protocols[i].name, name) == 0)
            return &protocols[i];
    return NULL;
}

#include "shm/envelope.h"

#include "shm/limits.h"

/* RFC 6455 section 5.2. */
enum {
    FRAME_FIN_TEXT = 0x81,
    FRAME_MASKED = 0x80,
    FRAME_LENGTH_7_MAX = 125,
    FRAME_LENGTH_16 = 126,
    FRAME_LENGTH_64 = 127,
    FRAME_HEADER_BYTES_MAX = 10,
    DECIMAL_BYTES_MAX = 20,
};

/* What stands between the id and the event's own text, and what closes it. */
struct event_form {
    struct span head;
    struct span tail;
};

#define TEXT_SPAN(text)                                                                            \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }
#define EVENT_HEAD(name) TEXT_SPAN(",\"event\":{\"type\":\"" name)
static const struct event_form event_forms[] = {
    [ENVELOPE_SYNC] = {EVENT_HEAD("sync\",\"data\":"), TEXT_SPAN("}")},
    [ENVELOPE_CREATE] = {EVENT_HEAD("create\",\"data\":"), TEXT_SPAN("}")},
    [ENVELOPE_UPDATE] = {EVENT_HEAD("update\",\"data\":"), TEXT_SPAN("}")},
    [ENVELOPE_DELETE] = {EVENT_HEAD("delete\",\"data\":"), TEXT_SPAN("}")},
    [ENVELOPE_EVENT] = {EVENT_HEAD("event\",\"event\":{\"type\":\""), TEXT_SPAN("}}")},
    [ENVELOPE_UNAUTHORIZED] = {EVENT_HEAD("unauthorized\""), TEXT_SPAN("}")},
    [ENVELOPE_RESUMED] = {EVENT_HEAD("resumed\""), TEXT_SPAN("}")},
};

#define TEXT_TIMESTAMP "{\"type\":\"stream\",\"timestamp\":"
#define TEXT_STREAM ",\"streamName\":\""
#define TEXT_GROUP "\",\"groupId\":\""
#define TEXT_ID "\",\"id\":"
#define TEXT_EVENT_DATA "\",\"data\":"
#define TEXT_REASON ",\"reason\":\""
#define TEXT_SEQ ",\"seq\":"
#define TEXT_EPOCH ",\"epoch\":"

/* Everything in the JSON whose length does not depend on the envelope, and the closing brace. */
enum {
    FIXED_BYTES = sizeof(TEXT_TIMESTAMP TEXT_STREAM TEXT_GROUP TEXT_ID TEXT_SEQ TEXT_EPOCH) - 1 + 1,
    /* The longest head and tail, "data": of a sent event, a reason's frame, "null" twice, three
     * numbers. */
    EXTRA_BYTES_MAX =
        64 + 2 + sizeof(TEXT_EVENT_DATA) + sizeof(TEXT_REASON) + 8 + 3 * DECIMAL_BYTES_MAX,
};
static_assert(
    FRAME_HEADER_BYTES_MAX + (int)FIXED_BYTES + (int)EXTRA_BYTES_MAX + 64 <=
        (int)(ENVELOPE_OVERHEAD_BYTES_MAX - 3 * NAME_ESCAPED_BYTES_MAX),
    "keys, numbers and a short reason fit the overhead the ring's limits are computed with");

static unsigned decimal_bytes(uint64_t value)
{
    static const uint64_t powers[] = {
        0,
        10ull,
        100ull,
        1000ull,
        10000ull,
        100000ull,
        1000000ull,
        10000000ull,
        100000000ull,
        1000000000ull,
        10000000000ull,
        100000000000ull,
        1000000000000ull,
        10000000000000ull,
        100000000000000ull,
        1000000000000000ull,
        10000000000000000ull,
        100000000000000000ull,
        1000000000000000000ull,
        10000000000000000000ull,
    };
    /* 1233 / 4096 is a little above log10(2): the guess is the number of digits or one less. */
    unsigned bits = 64 - (unsigned)__builtin_clzll(value | 1);
    unsigned guess = bits * 1233 >> 12;
    return guess + (value >= powers[guess]);
}

/* Write the `bytes` digits of `value`, last pair first. */
static void decimal_write(char *out, uint64_t value, unsigned bytes)
{
    static const char pairs[] = "00010203040506070809101112131415161718192021222324"
                                "25262728293031323334353637383940414243444546474849"
                                "50515253545556575859606162636465666768697071727374"
                                "75767778798081828384858687888990919293949596979899";
    for (; bytes >= 2; bytes -= 2) {
        memcpy(out + bytes - 2, pairs + value % 100 * 2, 2);
        value /= 100;
    }
    if (bytes == 1)
        out[0] = (char)('0' + value);
}

size_t envelope_decimal(char *out, uint64_t value)
{
    unsigned bytes = decimal_bytes(value);
    decimal_write(out, value, bytes);
    return bytes;
}

size_t envelope_frame_header(char *out, uint64_t payload_bytes)
{
    unsigned length_bytes = 0;
    out[0] = (char)FRAME_FIN_TEXT;
    if (payload_bytes <= FRAME_LENGTH_7_MAX) {
        out[1] = (char)payload_bytes;
    } else if (payload_bytes <= UINT16_MAX) {
        out[1] = FRAME_LENGTH_16;
        length_bytes = 2;
    } else {
        out[1] = FRAME_LENGTH_64;
        length_bytes = 8;
    }
    for (unsigned index = 0; index < length_bytes; index++)
        out[2 + index] = (char)(payload_bytes >> 8 * (length_bytes - 1 - index));
    return 2 + length_bytes;
}

uint64_t envelope_frame_bytes(struct span bytes)
{
    if (bytes.bytes < 2)
        return 0;
    unsigned char second = (unsigned char)bytes.data[1];
    uint64_t payload_bytes = second & 0x7F;
    unsigned length_bytes = payload_bytes == FRAME_LENGTH_16   ? 2
                            : payload_bytes == FRAME_LENGTH_64 ? 8
                                                               : 0;
    unsigned header_bytes = 2 + length_bytes + (second & FRAME_MASKED ? 4 : 0);
    if (bytes.bytes < header_bytes)
        return 0;
    if (length_bytes > 0)
        payload_bytes = 0;
    for (unsigned index = 0; index < length_bytes; index++)
        payload_bytes = payload_bytes << 8 | (unsigned char)bytes.data[2 + index];
    return payload_bytes > UINT64_MAX - header_bytes ? UINT64_MAX : payload_bytes + header_bytes;
}

size_t envelope_bytes_max(const struct envelope *envelope)
{
    size_t reason_bytes = envelope->reason == NULL ? 0 : strlen(envelope->reason);
    return FRAME_HEADER_BYTES_MAX + FIXED_BYTES + EXTRA_BYTES_MAX + envelope->stream_escaped.bytes +
           envelope->group_escaped.bytes + envelope->id_escaped.bytes + envelope->event_type.bytes +
           envelope->data.bytes + reason_bytes;
}

static inline char *put(char *out, struct span span)
{
    if (span.bytes > 0)
        memcpy(out, span.data, span.bytes);
    return out + span.bytes;
}

static inline char *put_decimal(char *out, uint64_t value, unsigned bytes)
{
    decimal_write(out, value, bytes);
    return out + bytes;
}

#define PUT_TEXT(out, text) put((out), SPAN_LITERAL(text))

struct envelope_layout envelope_encode(char *out, const struct envelope *envelope)
{
    weir_assert(envelope->event >= ENVELOPE_SYNC && envelope->event <= ENVELOPE_RESUMED);
    const struct event_form *form = &event_forms[envelope->event];
    const bool is_sent_event = envelope->event == ENVELOPE_EVENT;
    const bool has_data =
        envelope->event != ENVELOPE_UNAUTHORIZED && envelope->event != ENVELOPE_RESUMED;
    const bool has_id = envelope->id_escaped.data != NULL;
    const struct span null_text = SPAN_LITERAL("null");
    const struct span data = envelope->data.bytes > 0 ? envelope->data : null_text;
    const bool may_say_why =
        envelope->event == ENVELOPE_SYNC || envelope->event == ENVELOPE_UNAUTHORIZED;
    const struct span reason =
        may_say_why && envelope->reason != NULL ? span_text(envelope->reason) : (struct span){0};
    const unsigned timestamp_bytes = decimal_bytes(envelope->timestamp_ms);
    const unsigned seq_bytes = decimal_bytes(envelope->seq);
    const unsigned epoch_bytes = decimal_bytes(envelope->epoch);

    size_t json_bytes = FIXED_BYTES + timestamp_bytes + seq_bytes + epoch_bytes +
                        envelope->stream_escaped.bytes + envelope->group_escaped.bytes +
                        (has_id ? envelope->id_escaped.bytes + 2 : null_text.bytes) +
                        form->head.bytes + form->tail.bytes;
    if (is_sent_event)
        json_bytes += envelope->event_type.bytes + sizeof TEXT_EVENT_DATA - 1;
    if (has_data)
        json_bytes += data.bytes;
    if (reason.data != NULL)
        json_bytes += sizeof TEXT_REASON - 1 + reason.bytes + 1;
    weir_assert(json_bytes <= UINT32_MAX - FRAME_HEADER_BYTES_MAX);

    struct envelope_layout layout = {0};
    layout.json_offset = (uint32_t)envelope_frame_header(out, json_bytes);
    layout.frame_bytes = layout.json_offset + (uint32_t)json_bytes;

    char *p = out + layout.json_offset;
    p = PUT_TEXT(p, TEXT_TIMESTAMP);
    p = put_decimal(p, envelope->timestamp_ms, timestamp_bytes);
    p = PUT_TEXT(p, TEXT_STREAM);
    layout.names_offset = (uint32_t)(p - out);
    p = put(p, envelope->stream_escaped);
    p = PUT_TEXT(p, TEXT_GROUP);
    p = put(p, envelope->group_escaped);
    p = PUT_TEXT(p, TEXT_ID);
    if (has_id) {
        *p++ = '"';
        p = put(p, envelope->id_escaped);
        *p++ = '"';
    } else {
        p = put(p, null_text);
    }
    p = put(p, form->head);
    if (is_sent_event) {
        p = put(p, envelope->event_type);
        p = PUT_TEXT(p, TEXT_EVENT_DATA);
    }
    if (has_data) {
        layout.data_offset = (uint32_t)(p - out);
        layout.data_bytes = (uint32_t)data.bytes;
        p = put(p, data);
    }
    p = put(p, form->tail);
    if (reason.data != NULL) {
        p = PUT_TEXT(p, TEXT_REASON);
        p = put(p, reason);
        *p++ = '"';
    }
    p = PUT_TEXT(p, TEXT_SEQ);
    p = put_decimal(p, envelope->seq, seq_bytes);
    p = PUT_TEXT(p, TEXT_EPOCH);
    p = put_decimal(p, envelope->epoch, epoch_bytes);
    *p++ = '}';
    weir_assert(p == out + layout.frame_bytes);
    return layout;
}

#define TEXT_SINCE ",\"conflated\":{\"since\":"
#define TEXT_MORE ",\"more\":"
static_assert(sizeof(TEXT_SINCE TEXT_MORE "false}") + (int)DECIMAL_BYTES_MAX +
                      (int)FRAME_HEADER_BYTES_MAX <=
                  (int)ENVELOPE_CONFLATION_BYTES_MAX,
              "the mark and a longer frame header fit");

/* `,"seq":N,"epoch":E}`: what an envelope ends with. */
static size_t put_end(char *out, uint64_t seq, uint64_t epoch)
{
    char *p = PUT_TEXT(out, TEXT_SEQ);
    p = put_decimal(p, seq, decimal_bytes(seq));
    p = PUT_TEXT(p, TEXT_EPOCH);
    p = put_decimal(p, epoch, decimal_bytes(epoch));
    *p++ = '}';
    return (size_t)(p - out);
}

static size_t put_mark(char *out, const struct envelope_conflation *conflation)
{
    char *p = PUT_TEXT(out, TEXT_SINCE);
    p = put_decimal(p, conflation->since, decimal_bytes(conflation->since));
    p = PUT_TEXT(p, TEXT_MORE);
    p = conflation->more ? PUT_TEXT(p, "true}") : PUT_TEXT(p, "false}");
    return (size_t)(p - out);
}

/* Create, update and delete have as many letters, so that nothing moves. False: no such word stands
 * before the data. */
static bool set_event(char *json, size_t data_at, enum envelope_event event)
{
    static const char behind[] = "\",\"data\":";
    static const char words[][7] = {
        [ENVELOPE_CREATE] = "create", [ENVELOPE_UPDATE] = "update", [ENVELOPE_DELETE] = "delete"};
    size_t word_bytes = sizeof words[0] - 1, behind_bytes = sizeof behind - 1;
    if (data_at < word_bytes + behind_bytes)
        return false;
    char *word = json + data_at - behind_bytes - word_bytes;
    if (memcmp(word + word_bytes, behind, behind_bytes) != 0)
        return false;
    bool is_known = false;
    for (unsigned i = ENVELOPE_CREATE; i <= ENVELOPE_DELETE; i++)
        is_known = is_known || memcmp(word, words[i], word_bytes) == 0;
    if (is_known)
        memcpy(word, words[event], word_bytes);
    return is_known;
}

size_t envelope_conflate(char *out, struct span frame, const struct envelope_conflation *conflation)
{
    char mark[ENVELOPE_CONFLATION_BYTES_MAX], end[ENVELOPE_CONFLATION_BYTES_MAX];
    size_t mark_bytes = put_mark(mark, conflation);
    size_t end_bytes = put_end(end, conflation->seq, conflation->epoch);
    if (frame.bytes < conflation->json_offset + end_bytes ||
        memcmp(frame.data + frame.bytes - end_bytes, end, end_bytes) != 0)
        return 0;
    size_t json_bytes = frame.bytes - conflation->json_offset;
    size_t header_bytes = envelope_frame_header(out, json_bytes + mark_bytes);
    char *json = out + header_bytes;
    memcpy(json, frame.data + conflation->json_offset, json_bytes - end_bytes);
    memcpy(json + json_bytes - end_bytes, mark, mark_bytes);
    memcpy(json + json_bytes - end_bytes + mark_bytes, end, end_bytes);
    if (conflation->event != ENVELOPE_EVENT &&
        (conflation->data_offset < conflation->json_offset ||
         conflation->data_offset > frame.bytes ||
         !set_event(json, conflation->data_offset - conflation->json_offset, conflation->event)))
        return 0;
    return header_bytes + json_bytes + mark_bytes;
}

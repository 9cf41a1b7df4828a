#include "gateway/event_stream.h"

#include "shm/envelope.h"

#define ID_TEXT "id: "
#define DATA_TEXT "data: "
enum { DECIMAL_BYTES_MAX = 20 };
static_assert(sizeof ID_TEXT + sizeof DATA_TEXT + 2 * DECIMAL_BYTES_MAX + 2 <=
                  EVENT_STREAM_HEAD_BYTES,
              "two numbers fit");

size_t event_stream_head(char out[EVENT_STREAM_HEAD_BYTES], struct cursor at)
{
    char *p = out;
    if (at.epoch != 0) {
        memcpy(p, ID_TEXT, sizeof ID_TEXT - 1);
        p += sizeof ID_TEXT - 1;
        p += envelope_decimal(p, at.epoch);
        *p++ = '-';
        p += envelope_decimal(p, at.seq);
        *p++ = '\n';
    }
    memcpy(p, DATA_TEXT, sizeof DATA_TEXT - 1);
    return (size_t)(p - out) + sizeof DATA_TEXT - 1;
}

enum weir_status event_stream_append(struct buffer *out, struct span json, struct cursor at)
{
    enum weir_status status =
        buffer_reserve(out, EVENT_STREAM_HEAD_BYTES + json.bytes + sizeof EVENT_STREAM_END);
    if (status != WEIR_OK)
        return status;
    char *p = out->data + out->bytes;
    p += event_stream_head(p, at);
    memcpy(p, json.data, json.bytes);
    p += json.bytes;
    memcpy(p, EVENT_STREAM_END, sizeof EVENT_STREAM_END - 1);
    p += sizeof EVENT_STREAM_END - 1;
    out->bytes = (size_t)(p - out->data);
    return WEIR_OK;
}

/* The decimal number that ends at `*end`, which is moved before it. */
static uint64_t number_before(struct span text, size_t *end)
{
    uint64_t value = 0, place = 1;
    while (*end > 0 && text.data[*end - 1] >= '0' && text.data[*end - 1] <= '9') {
        value += (uint64_t)(text.data[--*end] - '0') * place;
        place *= 10;
    }
    return value;
}

static bool text_ends(struct span text, size_t end, const char *with)
{
    size_t bytes = strlen(with);
    return end >= bytes && memcmp(text.data + end - bytes, with, bytes) == 0;
}

/* An envelope ends with `"seq":N,"epoch":E}` (shm/envelope.h), a conflated one with
 * `"more":true},` before that when others follow. */
static struct cursor envelope_cursor(struct span json)
{
    static const char epoch[] = ",\"epoch\":", seq[] = ",\"seq\":";
    struct cursor at = {0};
    size_t end = json.bytes > 0 ? json.bytes - 1 : 0;
    uint64_t epoch_number = number_before(json, &end);
    if (!text_ends(json, end, epoch))
        return at;
    end -= sizeof epoch - 1;
    uint64_t seq_number = number_before(json, &end);
    if (!text_ends(json, end, seq))
        return at;
    end -= sizeof seq - 1;
    if (text_ends(json, end, "\"more\":true}"))
        return at;
    return (struct cursor){epoch_number, seq_number};
}

enum weir_status event_stream_append_frames(struct buffer *out, struct span frames)
{
    size_t before = out->bytes;
    while (frames.bytes > 0) { /* each turn takes a frame */
        uint64_t frame_bytes = envelope_frame_bytes(frames);
        weir_assert(frame_bytes > 0);
        weir_assert(frame_bytes <= frames.bytes);
        char header[10];
        size_t payload_bytes = (size_t)frame_bytes - 2;
        if (payload_bytes > 125) /* RFC 6455 section 5.2 */
            payload_bytes -= (unsigned char)frames.data[1] == 126 ? 2 : 8;
        size_t header_bytes = envelope_frame_header(header, payload_bytes);
        weir_assert(header_bytes + payload_bytes == frame_bytes);
        struct span json = span_of(frames.data + header_bytes, payload_bytes);
        enum weir_status status = event_stream_append(out, json, envelope_cursor(json));
        if (status != WEIR_OK) {
            out->bytes = before;
            return status;
        }
        frames = span_of(frames.data + frame_bytes, frames.bytes - (size_t)frame_bytes);
    }
    return WEIR_OK;
}

static bool take_number(struct span *text, uint64_t *number)
{
    size_t digits = 0;
    *number = 0;
    for (; digits < text->bytes && text->data[digits] >= '0' && text->data[digits] <= '9';
         digits++) {
        uint64_t digit = (uint64_t)(text->data[digits] - '0');
        if (*number > (UINT64_MAX - digit) / 10)
            return false;
        *number = *number * 10 + digit;
    }
    if (digits == 0)
        return false;
    *text = span_of(text->data + digits, text->bytes - digits);
    return true;
}

bool event_stream_parse_id(struct span text, struct cursor *cursor)
{
    if (!take_number(&text, &cursor->epoch) || text.bytes == 0 || text.data[0] != '-')
        return false;
    text = span_of(text.data + 1, text.bytes - 1);
    return take_number(&text, &cursor->seq) && text.bytes == 0;
}

#include "bench/message.h"

#include <assert.h>

enum {
    NUMBER_AT = 6,
    NUMBER_DIGITS = 10,
    TIME_AT = NUMBER_AT + NUMBER_DIGITS + 7,
    TIME_DIGITS = 19,
    GROUP_AT = TIME_AT + TIME_DIGITS + 7,
    GROUP_DIGITS = 6,
    PATTERN_AT = GROUP_AT + GROUP_DIGITS + 7,
};
static_assert(PATTERN_AT + 2 == MESSAGE_BYTES_MIN, "the least message has an empty pattern");

static void put_digits(char *out, unsigned digits, uint64_t value)
{
    for (unsigned i = digits; i > 0; value /= 10)
        out[--i] = (char)('0' + value % 10);
}

static uint64_t digits_at(const char *text, unsigned digits)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < digits; i++)
        value = value * 10 + (uint64_t)(unsigned char)(text[i] - '0');
    return value;
}

static char letter(const struct message *message, size_t at)
{
    return (char)('a' + (message->number * 7 + message->group * 3 + at) % 26);
}

static void put_head(char out[PATTERN_AT], const struct message *message)
{
    memcpy(out, "{\"n\":\"", 6);
    put_digits(out + NUMBER_AT, NUMBER_DIGITS, message->number);
    memcpy(out + TIME_AT - 7, "\",\"t\":\"", 7);
    put_digits(out + TIME_AT, TIME_DIGITS, message->time_ns);
    memcpy(out + GROUP_AT - 7, "\",\"g\":\"", 7);
    put_digits(out + GROUP_AT, GROUP_DIGITS, message->group);
    memcpy(out + PATTERN_AT - 7, "\",\"p\":\"", 7);
}

void message_write(char *out, size_t bytes, const struct message *message)
{
    put_head(out, message);
    for (size_t i = PATTERN_AT; i < bytes - 2; i++)
        out[i] = letter(message, i);
    memcpy(out + bytes - 2, "\"}", 2);
}

bool message_read(struct span text, size_t bytes, unsigned group, struct message *out)
{
    if (text.bytes != bytes || bytes < MESSAGE_BYTES_MIN)
        return false;
    *out = (struct message){.number = digits_at(text.data + NUMBER_AT, NUMBER_DIGITS),
                            .time_ns = digits_at(text.data + TIME_AT, TIME_DIGITS),
                            .group = group};
    /* What is no digit gives a value that is written otherwise. */
    char head[PATTERN_AT];
    put_head(head, out);
    if (memcmp(text.data, head, sizeof head) != 0 || memcmp(text.data + bytes - 2, "\"}", 2) != 0)
        return false;
    for (size_t i = PATTERN_AT; i < bytes - 2; i++)
        if (text.data[i] != letter(out, i))
            return false;
    return true;
}

enum message_turn message_take(struct message_sequence *sequence, uint64_t number,
                               uint64_t *left_out)
{
    if (number < sequence->next)
        return MESSAGE_REPEATED;
    *left_out = number - sequence->next;
    sequence->next = number + 1;
    return *left_out == 0 ? MESSAGE_NEXT : MESSAGE_AFTER_GAP;
}

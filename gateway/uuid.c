#include "gateway/uuid.h"

#include <errno.h>
#include <sys/random.h>

enum { POOL_BYTES = 2048 };

void uuid_random(void *out, size_t bytes)
{
    static unsigned char pool[POOL_BYTES];
    static size_t left;
    weir_assert(bytes <= POOL_BYTES);
    if (left < bytes) {
        size_t filled = 0;
        while (filled < POOL_BYTES) { /* ends: each pass adds or asserts */
            ssize_t got = getrandom(pool + filled, POOL_BYTES - filled, 0);
            if (got < 0 && errno == EINTR)
                continue;
            weir_assert(got > 0);
            filled += (size_t)got;
        }
        left = POOL_BYTES;
    }
    left -= bytes;
    memcpy(out, pool + left, bytes);
    memset(pool + left, 0, bytes);
}

void uuid_make(uint8_t uuid[UUID_BYTES])
{
    uuid_random(uuid, UUID_BYTES);
    uuid[6] = (uint8_t)((uuid[6] & 0x0F) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3F) | 0x80);
}

/* Hyphens stand before these bytes. */
static bool uuid_has_hyphen(unsigned index)
{
    return index == 4 || index == 6 || index == 8 || index == 10;
}

void uuid_print(char text[UUID_TEXT_BYTES + 1], const uint8_t uuid[UUID_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    size_t at = 0;
    for (unsigned i = 0; i < UUID_BYTES; i++) {
        if (uuid_has_hyphen(i))
            text[at++] = '-';
        text[at++] = digits[uuid[i] >> 4];
        text[at++] = digits[uuid[i] & 15];
    }
    text[at] = '\0';
}

static int uuid_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return -1;
}

bool uuid_parse(uint8_t uuid[UUID_BYTES], struct span text)
{
    if (text.bytes != UUID_TEXT_BYTES)
        return false;
    size_t at = 0;
    for (unsigned i = 0; i < UUID_BYTES; i++) {
        if (uuid_has_hyphen(i) && text.data[at++] != '-')
            return false;
        int high = uuid_digit(text.data[at]);
        int low = uuid_digit(text.data[at + 1]);
        if (high < 0 || low < 0)
            return false;
        uuid[i] = (uint8_t)(high << 4 | low);
        at += 2;
    }
    return true;
}

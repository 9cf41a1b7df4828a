#include "gateway/stream_path.h"

#include "shm/json.h"

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

bool stream_path_decode(char *out, struct span text, size_t *bytes)
{
    size_t to = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        if (text.data[i] != '%') {
            out[to++] = text.data[i];
            continue;
        }
        if (text.bytes - i < 3)
            return false;
        int high = hex_digit(text.data[i + 1]), low = hex_digit(text.data[i + 2]);
        if (high < 0 || low < 0)
            return false;
        out[to++] = (char)(high << 4 | low);
        i += 2;
    }
    *bytes = to;
    return json_is_utf8(span_of(out, to));
}

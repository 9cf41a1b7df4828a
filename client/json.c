#include "shm/json.h"

#include <errno.h>

#include "client/weir.h"
#include "shm/limits.h"

struct weir_text weir_json_member(struct weir_text object, const char *key)
{
    const char *const names[] = {key};
    struct json_value value = {0};
    if (object.data == NULL || json_scan_object(span_of(object.data, object.bytes), JSON_DEPTH_MAX,
                                                names, 1, &value, NULL) != WEIR_OK)
        return (struct weir_text){NULL, 0};
    return (struct weir_text){value.text.data, value.text.bytes};
}

int weir_json_string(struct weir_text json, char *out, size_t out_bytes)
{
    struct json_value value;
    if (json.data == NULL ||
        json_scan(span_of(json.data, json.bytes), JSON_DEPTH_MAX, &value, NULL) != WEIR_OK ||
        value.kind != JSON_STRING)
        return -EINVAL;
    struct buffer text;
    buffer_init(&text, WIRE_FRAME_BYTES_MAX);
    int result = -ENOBUFS;
    if (buffer_reserve(&text, value.text.bytes + 1) == WEIR_OK) {
        size_t bytes = json_unescape(text.data, value);
        if (memchr(text.data, '\0', bytes) != NULL) {
            result = -EINVAL;
        } else if (bytes < out_bytes && bytes <= INT32_MAX) {
            memcpy(out, text.data, bytes);
            out[bytes] = '\0';
            result = (int)bytes;
        }
    }
    buffer_fini(&text);
    return result;
}

/* The streams that have a policy of their own, in the order of their names, which lie in one block of
 * text. Offsets, because the block moves while it grows. */
#include <stdlib.h>

#include "config/settings_value.h"

struct settings_stream_place {
    size_t name_offset, name_bytes;
    struct settings_stream_own own;
};

struct settings_streams {
    struct buffer text;
    size_t count;
    struct settings_stream_place places[SETTINGS_STREAMS_MAX];
};

struct settings_streams *settings_streams_open(void)
{
    struct settings_streams *streams = calloc(1, sizeof *streams);
    if (streams != NULL)
        buffer_init(&streams->text, (size_t)SETTINGS_STREAMS_MAX * NAME_BYTES_MAX);
    return streams;
}

void settings_streams_close(struct settings_streams *streams)
{
    if (streams == NULL)
        return;
    buffer_fini(&streams->text);
    free(streams);
}

static int span_order(struct span a, struct span b)
{
    int order = memcmp(a.data, b.data, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order != 0 ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

/* The first place whose name is not before `name`. */
static size_t settings_streams_seek(const struct settings_streams *streams, struct span name,
                                    bool *is_there)
{
    size_t low = 0, high = streams->count;
    *is_there = false;
    while (low < high) { /* each turn halves what is left */
        size_t middle = low + (high - low) / 2;
        const struct settings_stream_place *place = &streams->places[middle];
        int order =
            span_order(span_of(streams->text.data + place->name_offset, place->name_bytes), name);
        if (order < 0) {
            low = middle + 1;
        } else {
            *is_there |= order == 0;
            high = middle;
        }
    }
    return low;
}

enum weir_status settings_streams_add(struct settings_streams *streams, struct span name,
                                      const struct settings_stream_own *own)
{
    bool is_there;
    if (name.bytes == 0 || name.bytes > NAME_BYTES_MAX)
        return WEIR_TOO_LARGE;
    size_t at = settings_streams_seek(streams, name, &is_there);
    if (is_there)
        return WEIR_INVALID;
    if (streams->count == SETTINGS_STREAMS_MAX)
        return WEIR_FULL;
    struct settings_stream_place place = {streams->text.bytes, name.bytes, *own};
    enum weir_status status = buffer_append(&streams->text, name);
    if (status != WEIR_OK)
        return status;
    memmove(&streams->places[at + 1], &streams->places[at],
            (streams->count - at) * sizeof streams->places[0]);
    streams->places[at] = place;
    streams->count++;
    return WEIR_OK;
}

struct settings_stream settings_stream_of(const struct settings *settings, struct span name)
{
    struct settings_stream stream = {settings->slow_subscribers, settings->lag_events};
    const struct settings_streams *streams = settings->streams;
    bool is_there = false;
    size_t at = 0;
    if (streams != NULL && name.bytes > 0)
        at = settings_streams_seek(streams, name, &is_there);
    if (!is_there)
        return stream;
    const struct settings_stream_own *own = &streams->places[at].own;
    if (own->has_slow)
        stream.slow = own->slow;
    if (own->has_lag_events)
        stream.lag_events = own->lag_events;
    return stream;
}

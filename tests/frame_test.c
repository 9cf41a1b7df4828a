/* Client frames against a model: random messages, fragments, control frames and cuts. */
#include <criterion/criterion.h>
#include <time.h>

#include "gateway/frame.h"
#include "tests/ws_client.h"

enum { EVENTS_MAX = 200, STREAM_BYTES_MAX = 4 * 1024 * 1024, ROUNDS = 60 };

struct expected {
    enum frame_event event;
    bool is_binary;
    uint8_t *payload;
    size_t bytes;
};

static uint32_t state;

static uint32_t random_below(uint32_t limit)
{
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(state >> 8) * limit) >> 24);
}

static void seed_set(void)
{
    const char *text = getenv("WEIR_SEED");
    state = text ? (uint32_t)strtoul(text, NULL, 0) : (uint32_t)time(NULL);
    fprintf(stderr, "WEIR_SEED=%u\n", state);
}

static struct expected payload_make(enum frame_event event, size_t bytes)
{
    struct expected made = {.event = event, .payload = malloc(bytes + 1), .bytes = bytes};
    for (size_t index = 0; index < bytes; index++)
        made.payload[index] = (uint8_t)random_below(256);
    return made;
}

static size_t control_put(uint8_t *out, struct expected *expected)
{
    static const unsigned opcodes[] = {0x89, 0x8a};
    unsigned which = random_below(2);
    *expected = payload_make(which ? FRAME_GOT_PONG : FRAME_GOT_PING, random_below(126));
    return frame_build(out, opcodes[which], expected->payload, expected->bytes, true);
}

static size_t length_choose(void)
{
    static const uint32_t limits[] = {1, 20, 130, 2000, 70000};
    return random_below(limits[random_below(5)]);
}

/* A message in one to five frames with control frames between them; the message's own event comes
 * last. */
static size_t message_put(uint8_t *out, struct expected *events, unsigned *count)
{
    struct expected message = payload_make(FRAME_MESSAGE, length_choose());
    unsigned fragments = 1 + (random_below(3) ? 0 : random_below(5));
    size_t at = 0, taken = 0;
    message.is_binary = random_below(2) != 0;
    for (unsigned index = 0; index < fragments; index++) {
        bool is_last = index + 1 == fragments;
        size_t bytes =
            is_last ? message.bytes - taken : random_below((uint32_t)(message.bytes - taken + 1));
        unsigned first = (index ? 0 : message.is_binary ? 2 : 1) | (is_last ? 0x80 : 0);
        at += frame_build(out + at, first, message.payload + taken, bytes, true);
        taken += bytes;
        if (!is_last && random_below(2))
            at += control_put(out + at, &events[(*count)++]);
    }
    events[(*count)++] = message;
    return at;
}

static void event_check(const struct expected *expected, enum frame_event event,
                        const struct frame_item *item)
{
    cr_assert_eq(event, expected->event, "event %d instead of %d (%s)", event, expected->event,
                 item->reason ? item->reason : "");
    cr_assert_eq(item->payload.bytes, expected->bytes);
    cr_assert(expected->bytes == 0 ||
              memcmp(item->payload.data, expected->payload, expected->bytes) == 0);
    if (event == FRAME_MESSAGE)
        cr_assert_eq(item->is_binary, expected->is_binary);
}

/* Whatever the sequence and wherever reads end, the same events come out; between messages nothing
 * is held. */
Test(frame, yields_the_same_events_however_the_stream_is_cut, .timeout = HANG_SECONDS)
{
    static const uint32_t cuts[] = {1, 3, 16, 200, 5000, 100000};
    static struct expected events[EVENTS_MAX];
    uint8_t *stream = malloc(STREAM_BYTES_MAX);
    uint8_t *piece = malloc(STREAM_BYTES_MAX);
    struct frame_pool pool = {0};
    seed_set();
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct frame_assembly *assembly = NULL;
        unsigned count = 0, seen = 0;
        size_t bytes = 0, at = 0;
        while (count < EVENTS_MAX - 10 && bytes < STREAM_BYTES_MAX / 2)
            bytes += random_below(4) ? message_put(stream + bytes, events, &count)
                                     : control_put(stream + bytes, &events[count++]);
        while (at < bytes) {
            size_t cut = 1 + random_below(cuts[random_below(6)]);
            cut = cut < bytes - at ? cut : bytes - at;
            memcpy(piece, stream + at, cut);
            at += cut;
            char *data = (char *)piece;
            struct frame_item item = {0};
            enum frame_event event;
            while ((event = frame_next(&pool, &assembly, &data, &cut, false, &item)) !=
                   FRAME_MORE) {
                cr_assert_lt(seen, count);
                event_check(&events[seen++], event, &item);
            }
            cr_assert_eq(cut, 0);
        }
        cr_assert_eq(seen, count);
        cr_assert_null(assembly);
        for (unsigned index = 0; index < count; index++)
            free(events[index].payload);
    }
    frame_pool_fini(&pool);
    free(stream);
    free(piece);
}

/* A stream with one random byte changed ends in events or an error, never beyond its bytes. */
Test(frame, survives_damage, .timeout = HANG_SECONDS)
{
    static struct expected events[EVENTS_MAX];
    struct frame_pool pool = {0};
    uint8_t *stream = malloc(STREAM_BYTES_MAX);
    seed_set();
    for (unsigned round = 0; round < 2000; round++) {
        unsigned count = 0;
        size_t bytes = message_put(stream, events, &count);
        bytes += control_put(stream + bytes, &events[count++]);
        stream[random_below((uint32_t)(bytes < 40 ? bytes : 40))] ^=
            (uint8_t)(1 + random_below(255));
        /* Of its own, so that the sanitizer sees what reads beyond. */
        char *copy = malloc(bytes), *data = copy;
        memcpy(copy, stream, bytes);
        struct frame_assembly *assembly = NULL;
        struct frame_item item = {0};
        enum frame_event event;
        do {
            event = frame_next(&pool, &assembly, &data, &bytes, false, &item);
            if (event == FRAME_ERROR)
                cr_assert(item.close_code == 1002 || item.close_code == 1009);
        } while (event != FRAME_MORE && event != FRAME_ERROR);
        frame_assembly_release(&pool, &assembly);
        free(copy);
        for (unsigned index = 0; index < count; index++)
            free(events[index].payload);
    }
    frame_pool_fini(&pool);
    free(stream);
}

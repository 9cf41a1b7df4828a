#include "shm/envelope.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "shm/json.h"
#include "shm/limits.h"

TestSuite(envelope, .timeout = HANG_SECONDS);

/* Encodes into a block of exactly the promised size and checks the parts every frame has. Returns
 * the JSON, which the caller frees by its frame. */
struct encoded {
    char *frame;
    struct envelope_layout layout;
    struct span json;
};

static struct encoded encode(const struct envelope *envelope)
{
    struct encoded encoded;
    size_t bytes_max = envelope_bytes_max(envelope);
    encoded.frame = malloc(bytes_max);
    cr_assert_not_null(encoded.frame);
    encoded.layout = envelope_encode(encoded.frame, envelope);
    const struct envelope_layout *layout = &encoded.layout;
    cr_assert_leq(layout->frame_bytes, bytes_max);
    cr_assert_eq(envelope_frame_bytes(span_of(encoded.frame, layout->frame_bytes)),
                 layout->frame_bytes);
    cr_assert_eq((unsigned char)encoded.frame[0], 0x81);
    encoded.json =
        span_of(encoded.frame + layout->json_offset, layout->frame_bytes - layout->json_offset);
    cr_assert(
        span_equal(span_of(encoded.frame + layout->names_offset, envelope->stream_escaped.bytes),
                   envelope->stream_escaped));
    struct json_value root;
    struct json_problem problem;
    cr_assert_eq(json_scan(encoded.json, JSON_DEPTH_MAX, &root, &problem), WEIR_OK, "%s at %zu",
                 problem.reason, problem.offset);
    return encoded;
}

static void expect_json(const struct envelope *envelope, const char *expected, const char *data)
{
    struct encoded encoded = encode(envelope);
    cr_assert(span_equal(encoded.json, span_text(expected)), "got %.*s", (int)encoded.json.bytes,
              encoded.json.data);
    struct span got =
        span_of(encoded.frame + encoded.layout.data_offset, encoded.layout.data_bytes);
    if (data == NULL) {
        cr_assert_eq(encoded.layout.data_offset, 0);
        cr_assert_eq(encoded.layout.data_bytes, 0);
    } else {
        cr_assert(span_equal(got, span_text(data)), "got %.*s", (int)got.bytes, got.data);
    }
    free(encoded.frame);
}

static struct envelope example(enum envelope_event event)
{
    return (struct envelope){
        .event = event,
        .timestamp_ms = 1731000000123,
        .seq = 42,
        .epoch = 7,
        .stream_escaped = SPAN_LITERAL("chat"),
        .group_escaped = SPAN_LITERAL("room-1"),
        .id_escaped = SPAN_LITERAL("msg-9"),
        .data = SPAN_LITERAL("{\"text\":\"hi\"}"),
    };
}

#define HEAD                                                                                       \
    "{\"type\":\"stream\",\"timestamp\":1731000000123,\"streamName\":\"chat\",\"groupId\":\"room-" \
    "1\","
#define TAIL ",\"seq\":42,\"epoch\":7}"

Test(envelope, every_event_has_its_exact_bytes)
{
    static const struct {
        enum envelope_event event;
        const char *name;
    } plain[] = {{ENVELOPE_SYNC, "sync"},
                 {ENVELOPE_CREATE, "create"},
                 {ENVELOPE_UPDATE, "update"},
                 {ENVELOPE_DELETE, "delete"}};
    for (size_t index = 0; index < 4; index++) {
        struct envelope envelope = example(plain[index].event);
        char expected[512];
        (void)snprintf(
            expected, sizeof expected,
            HEAD "\"id\":\"msg-9\",\"event\":{\"type\":\"%s\",\"data\":{\"text\":\"hi\"}}" TAIL,
            plain[index].name);
        expect_json(&envelope, expected, "{\"text\":\"hi\"}");
    }
}

Test(envelope, a_sent_event_nests_its_type_and_data)
{
    struct envelope envelope = example(ENVELOPE_EVENT);
    envelope.event_type = SPAN_LITERAL("typing\\n");
    expect_json(&envelope,
                HEAD
                "\"id\":\"msg-9\",\"event\":{\"type\":\"event\",\"event\":{\"type\":\"typing\\n\","
                "\"data\":{\"text\":\"hi\"}}}" TAIL,
                "{\"text\":\"hi\"}");
    envelope.id_escaped = (struct span){0};
    envelope.event_type = SPAN_LITERAL("");
    envelope.data = (struct span){0};
    expect_json(
        &envelope,
        HEAD
        "\"id\":null,\"event\":{\"type\":\"event\",\"event\":{\"type\":\"\",\"data\":null}}" TAIL,
        "null");
}

Test(envelope, unauthorized_has_no_data)
{
    struct envelope envelope = example(ENVELOPE_UNAUTHORIZED);
    expect_json(&envelope, HEAD "\"id\":\"msg-9\",\"event\":{\"type\":\"unauthorized\"}" TAIL,
                NULL);
}

/* An absent id is null, an empty one is a string; no data is null. */
Test(envelope, absent_and_empty_differ)
{
    struct envelope envelope = example(ENVELOPE_SYNC);
    envelope.id_escaped = (struct span){0};
    envelope.data = (struct span){0};
    expect_json(&envelope, HEAD "\"id\":null,\"event\":{\"type\":\"sync\",\"data\":null}" TAIL,
                "null");
    envelope.id_escaped = SPAN_LITERAL("");
    expect_json(&envelope, HEAD "\"id\":\"\",\"event\":{\"type\":\"sync\",\"data\":null}" TAIL,
                "null");
}

Test(envelope, only_a_sync_carries_its_reason)
{
    struct envelope envelope = example(ENVELOPE_SYNC);
    envelope.reason = "lagged";
    envelope.data = SPAN_LITERAL("[]");
    expect_json(
        &envelope,
        HEAD
        "\"id\":\"msg-9\",\"event\":{\"type\":\"sync\",\"data\":[]},\"reason\":\"lagged\"" TAIL,
        "[]");
    envelope.event = ENVELOPE_UPDATE;
    expect_json(&envelope, HEAD "\"id\":\"msg-9\",\"event\":{\"type\":\"update\",\"data\":[]}" TAIL,
                "[]");
}

Test(envelope, empty_names_and_extreme_numbers)
{
    struct envelope envelope = {.event = ENVELOPE_CREATE,
                                .timestamp_ms = UINT64_MAX,
                                .seq = 0,
                                .epoch = UINT64_MAX,
                                .stream_escaped = SPAN_LITERAL(""),
                                .group_escaped = SPAN_LITERAL(""),
                                .data = SPAN_LITERAL("1")};
    expect_json(&envelope,
                "{\"type\":\"stream\",\"timestamp\":18446744073709551615,\"streamName\":\"\","
                "\"groupId\":\"\","
                "\"id\":null,\"event\":{\"type\":\"create\",\"data\":1},\"seq\":0,"
                "\"epoch\":18446744073709551615}",
                "1");
}

/* Frames around both places where the header grows, each of which has to use the shortest length
 * (RFC 6455 5.2). */
Test(envelope, header_length_is_minimal_at_every_boundary)
{
    static char data[70000];
    memset(data, '7', sizeof data);
    struct envelope envelope = {.event = ENVELOPE_UPDATE,
                                .stream_escaped = SPAN_LITERAL(""),
                                .group_escaped = SPAN_LITERAL("")};
    static const size_t ranges[2][2] = {{1, 300}, {65200, 65700}};
    for (size_t range = 0; range < 2; range++) {
        for (size_t bytes = ranges[range][0]; bytes < ranges[range][1]; bytes++) {
            data[0] = '"';
            data[bytes - 1] = '"';
            if (bytes == 1)
                data[0] = '7';
            envelope.data = span_of(data, bytes);
            struct encoded encoded = encode(&envelope);
            size_t json_bytes = encoded.json.bytes;
            unsigned char length = (unsigned char)encoded.frame[1];
            if (json_bytes <= 125) {
                cr_assert_eq(encoded.layout.json_offset, 2);
                cr_assert_eq(length, json_bytes);
            } else if (json_bytes <= 65535) {
                cr_assert_eq(encoded.layout.json_offset, 4);
                cr_assert_eq(length, 126);
            } else {
                cr_assert_eq(encoded.layout.json_offset, 10);
                cr_assert_eq(length, 127);
            }
            data[bytes - 1] = '7';
            free(encoded.frame);
        }
    }
}

Test(envelope, frame_header_is_rfc_6455)
{
    static const struct {
        uint64_t payload_bytes;
        const char *header;
        size_t header_bytes;
    } cases[] = {
        {0, "\x81\x00", 2},
        {125, "\x81\x7d", 2},
        {126, "\x81\x7e\x00\x7e", 4},
        {256, "\x81\x7e\x01\x00", 4},
        {65535, "\x81\x7e\xff\xff", 4},
        {65536, "\x81\x7f\0\0\0\0\0\x01\0\0", 10},
        {0x0102030405060708, "\x81\x7f\x01\x02\x03\x04\x05\x06\x07\x08", 10},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        char header[10];
        size_t bytes = envelope_frame_header(header, cases[index].payload_bytes);
        cr_assert_eq(bytes, cases[index].header_bytes);
        cr_assert(memcmp(header, cases[index].header, bytes) == 0, "case %zu", index);
        for (size_t cut = 0; cut < bytes; cut++)
            cr_assert_eq(envelope_frame_bytes(span_of(header, cut)), 0);
        cr_assert_eq(envelope_frame_bytes(span_of(header, bytes)),
                     cases[index].payload_bytes + bytes);
    }
}

/* A length no frame can have must not wrap round to a small one. */
Test(envelope, absurd_frame_length_does_not_wrap)
{
    cr_assert_eq(envelope_frame_bytes(SPAN_LITERAL("\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff")),
                 UINT64_MAX);
}

/* Method: walk a run of frames of many sizes with envelope_frame_bytes(), as the send path does to
 *         find a cut one. */
Test(envelope, a_run_of_frames_can_be_walked)
{
    struct buffer run;
    size_t frame_count = 0;
    buffer_init(&run, 1 << 22);
    for (uint64_t payload_bytes = 0; payload_bytes < 70000; payload_bytes = payload_bytes * 2 + 1) {
        cr_assert_eq(buffer_reserve(&run, payload_bytes + 10), WEIR_OK);
        run.bytes += envelope_frame_header(run.data + run.bytes, payload_bytes);
        memset(run.data + run.bytes, 'x', payload_bytes);
        run.bytes += payload_bytes;
        frame_count++;
    }
    size_t position = 0;
    for (; position < run.bytes; frame_count--)
        position += envelope_frame_bytes(span_of(run.data + position, run.bytes - position));
    cr_assert_eq(position, run.bytes);
    cr_assert_eq(frame_count, 0);
    buffer_fini(&run);
}

/* Every power of ten and its neighbours, and random values, against printf. */
Test(envelope, decimal_equals_printf)
{
    uint64_t state = 88172645463325252ull;
    for (unsigned index = 0; index < 200000; index++) {
        uint64_t value;
        if (index < 63) {
            uint64_t power = 1;
            for (unsigned exponent = 0; exponent < index / 3; exponent++)
                power *= 10;
            value = power + index % 3 - 1;
        } else if (index < 127) {
            value = (1ull << (index - 63)) - 1;
        } else {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            value = state >> (index % 64);
        }
        char out[20];
        char expected[32];
        size_t bytes = envelope_decimal(out, value);
        int expected_bytes = snprintf(expected, sizeof expected, "%" PRIu64, value);
        cr_assert_eq((int)bytes, expected_bytes, "%s", expected);
        cr_assert(memcmp(out, expected, bytes) == 0, "%s", expected);
    }
}

/* The largest names and a large value stay within the overhead the limits promise. */
Test(envelope, overhead_stays_within_its_limit)
{
    static char name[NAME_ESCAPED_BYTES_MAX];
    memset(name, 'n', sizeof name);
    struct envelope envelope = {.event = ENVELOPE_SYNC,
                                .timestamp_ms = UINT64_MAX,
                                .seq = UINT64_MAX,
                                .epoch = UINT64_MAX,
                                .stream_escaped = span_of(name, sizeof name),
                                .group_escaped = span_of(name, sizeof name),
                                .id_escaped = span_of(name, sizeof name),
                                .data = SPAN_LITERAL("0"),
                                .reason = "a reason far longer than any of those that are used"};
    cr_assert_leq(envelope_bytes_max(&envelope), ENVELOPE_OVERHEAD_BYTES_MAX + 1);
    struct encoded encoded = encode(&envelope);
    free(encoded.frame);
}

static const char *const conflated_words[] = {
    [ENVELOPE_CREATE] = "create", [ENVELOPE_UPDATE] = "update", [ENVELOPE_DELETE] = "delete"};

/* Goal: a conflated frame is the frame, with the mark, of the event that is asked for. Method: encode
 * one event, conflate it as another, compare with the text; data of every length around which a frame
 * header grows. */
Test(envelope, a_conflated_frame_says_what_it_stands_for)
{
    static char data[70000], expected[71000], out[71000];
    static const size_t lengths[] = {2, 40, 50, 60, 1000, 65300, 65390, 65500, 65600};
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (unsigned from = ENVELOPE_CREATE; from <= ENVELOPE_DELETE; from++) {
            for (unsigned to = ENVELOPE_CREATE; to <= ENVELOPE_DELETE; to++) {
                bool more = (i + from + to) % 2 == 0;
                struct envelope envelope = example((enum envelope_event)from);
                memset(data, 'x', lengths[i]);
                data[0] = data[lengths[i] - 1] = '"';
                envelope.data = span_of(data, lengths[i]);
                struct encoded encoded = encode(&envelope);
                const struct envelope_conflation conflation = {
                    .event = (enum envelope_event)to,
                    .seq = 42,
                    .epoch = 7,
                    .since = 30,
                    .more = more,
                    .json_offset = encoded.layout.json_offset,
                    .data_offset = encoded.layout.data_offset,
                };
                size_t bytes = envelope_conflate(
                    out, span_of(encoded.frame, encoded.layout.frame_bytes), &conflation);
                cr_assert_gt(bytes, 0);
                cr_assert_leq(bytes, encoded.layout.frame_bytes + ENVELOPE_CONFLATION_BYTES_MAX);
                int want =
                    snprintf(expected, sizeof expected,
                             HEAD "\"id\":\"msg-9\",\"event\":{\"type\":\"%s\",\"data\":%.*s},"
                                  "\"conflated\":{\"since\":30,\"more\":%s}" TAIL,
                             conflated_words[to], (int)lengths[i], data, more ? "true" : "false");
                cr_assert_eq(envelope_frame_bytes(span_of(out, bytes)), bytes);
                cr_assert(span_equal(span_of(out + bytes - (size_t)want, (size_t)want),
                                     span_of(expected, (size_t)want)));
                free(encoded.frame);
            }
        }
    }
}

Test(envelope, a_conflated_sent_event_keeps_its_text)
{
    struct envelope envelope = example(ENVELOPE_EVENT);
    envelope.id_escaped = (struct span){0};
    envelope.event_type = SPAN_LITERAL("create\\\",\\\"data\\\":");
    struct encoded encoded = encode(&envelope);
    const struct envelope_conflation conflation = {.event = ENVELOPE_EVENT,
                                                   .seq = 42,
                                                   .epoch = 7,
                                                   .since = 0,
                                                   .json_offset = encoded.layout.json_offset,
                                                   .data_offset = encoded.layout.data_offset};
    char out[1024];
    size_t bytes =
        envelope_conflate(out, span_of(encoded.frame, encoded.layout.frame_bytes), &conflation);
    struct span tail =
        SPAN_LITERAL("{\"text\":\"hi\"}}},\"conflated\":{\"since\":0,\"more\":false}" TAIL);
    cr_assert_gt(bytes, tail.bytes);
    cr_assert(span_equal(span_of(out + bytes - tail.bytes, tail.bytes), tail));
    free(encoded.frame);
}

/* What is read from shared memory is looked at, not trusted. */
Test(envelope, a_frame_that_is_something_else_is_not_conflated)
{
    struct envelope envelope = example(ENVELOPE_UPDATE);
    struct encoded encoded = encode(&envelope);
    struct span frame = span_of(encoded.frame, encoded.layout.frame_bytes);
    const struct envelope_conflation good = {.event = ENVELOPE_UPDATE,
                                             .seq = 42,
                                             .epoch = 7,
                                             .json_offset = encoded.layout.json_offset,
                                             .data_offset = encoded.layout.data_offset};
    char out[1024];
    struct envelope_conflation bad[6];
    for (unsigned i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].seq = 43;
    bad[1].epoch = 77;
    bad[2].data_offset += 1;
    bad[3].data_offset = bad[3].json_offset;
    bad[4].data_offset = (uint32_t)frame.bytes + 1;
    bad[5].json_offset = (uint32_t)frame.bytes;
    cr_assert_gt(envelope_conflate(out, frame, &good), 0);
    for (unsigned i = 0; i < 6; i++)
        cr_assert_eq(envelope_conflate(out, frame, &bad[i]), 0, "case %u", i);
    cr_assert_eq(envelope_conflate(out, span_of(frame.data, 3), &good), 0);
    free(encoded.frame);
}

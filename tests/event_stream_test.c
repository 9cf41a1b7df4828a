/* Server-sent events: what stands in the stream is what an EventSource takes apart again, and its id
 * is a position to go on from. */
#include <criterion/criterion.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gateway/event_stream.h"
#include "shm/envelope.h"

static struct buffer out;

static void open_buffer(void)
{
    buffer_init(&out, 1 << 20);
}

static void close_buffer(void)
{
    buffer_fini(&out);
}

TestSuite(event_stream, .init = open_buffer, .fini = close_buffer, .timeout = HANG_SECONDS);

static void assert_out(const char *text)
{
    cr_assert(span_equal(buffer_span(&out), span_text(text)), "%.*s", (int)out.bytes, out.data);
}

Test(event_stream, an_envelope_is_its_position_and_one_line_of_data)
{
    cr_assert_eq(event_stream_append(&out, SPAN_LITERAL("{\"a\":1}"), (struct cursor){7, 12}),
                 WEIR_OK);
    cr_assert_eq(
        event_stream_append(&out, SPAN_LITERAL("{}"), (struct cursor){UINT64_MAX, UINT64_MAX}),
        WEIR_OK);
    cr_assert_eq(event_stream_append(&out, SPAN_LITERAL("{\"b\":2}"), (struct cursor){0, 3}),
                 WEIR_OK);
    assert_out("id: 7-12\ndata: {\"a\":1}\n\n"
               "id: 18446744073709551615-18446744073709551615\ndata: {}\n\n"
               "data: {\"b\":2}\n\n");
}

Test(event_stream, the_parts_are_the_whole)
{
    char head[EVENT_STREAM_HEAD_BYTES];
    const struct cursor cursors[] = {{0, 0}, {1, 0}, {UINT64_MAX, UINT64_MAX}, {42, 1}};
    for (unsigned i = 0; i < sizeof cursors / sizeof cursors[0]; i++) {
        buffer_clear(&out);
        cr_assert_eq(event_stream_append(&out, SPAN_LITERAL("{}"), cursors[i]), WEIR_OK);
        size_t bytes = event_stream_head(head, cursors[i]);
        cr_assert_eq(out.bytes, bytes + 2 + sizeof EVENT_STREAM_END - 1);
        cr_assert_eq(memcmp(out.data, head, bytes), 0);
    }
}

/* One frame as the ring has it, of `data_bytes` of data. */
static void append_frame(struct buffer *frames, enum envelope_event event, size_t data_bytes,
                         struct cursor at, const char *reason)
{
    char *data = malloc(data_bytes + 2);
    cr_assert_not_null(data);
    memset(data, '1', data_bytes + 2);
    const struct envelope envelope = {
        .event = event,
        .timestamp_ms = 5,
        .seq = at.seq,
        .epoch = at.epoch,
        .stream_escaped = SPAN_LITERAL("s"),
        .group_escaped = SPAN_LITERAL("g"),
        .event_type = SPAN_LITERAL("t"),
        .data = span_of(data, data_bytes),
        .reason = reason,
    };
    cr_assert_eq(buffer_reserve(frames, envelope_bytes_max(&envelope)), WEIR_OK);
    frames->bytes += envelope_encode(frames->data + frames->bytes, &envelope).frame_bytes;
    free(data);
}

/* The next block of `rest`: its id, if it has one, and its data. */
static bool take_block(struct span *rest, struct cursor *at, struct span *json)
{
    static const char id[] = "id: ", data[] = "data: ";
    const char *end = rest->bytes == 0 ? NULL : memmem(rest->data, rest->bytes, "\n\n", 2);
    if (end == NULL)
        return false;
    struct span block = span_of(rest->data, (size_t)(end - rest->data));
    *rest = span_of(end + 2, rest->bytes - block.bytes - 2);
    *at = (struct cursor){0};
    if (memcmp(block.data, id, sizeof id - 1) == 0) {
        const char *line = memchr(block.data, '\n', block.bytes);
        cr_assert_not_null(line);
        struct span text =
            span_of(block.data + sizeof id - 1, (size_t)(line - block.data) - (sizeof id - 1));
        cr_assert(event_stream_parse_id(text, at));
        block = span_of(line + 1, block.bytes - (size_t)(line + 1 - block.data));
    }
    cr_assert_eq(memcmp(block.data, data, sizeof data - 1), 0);
    *json = span_of(block.data + sizeof data - 1, block.bytes - (sizeof data - 1));
    cr_assert_null(memchr(json->data, '\n', json->bytes));
    return true;
}

/* Every kind of envelope, with data of every size around which a frame's header changes. */
Test(event_stream, frames_become_blocks_with_their_own_positions)
{
    static const size_t sizes[] = {0,  1,   20,  60,  61,  62,    63,    64,    65,    66,
                                   67, 100, 125, 126, 127, 65300, 65400, 65535, 65536, 70000};
    struct buffer frames;
    buffer_init(&frames, 1 << 24);
    struct cursor at = {1700000000000000ull, 0};
    unsigned count = 0;
    buffer_fini(&out);
    buffer_init(&out, 1 << 24);
    for (enum envelope_event event = ENVELOPE_SYNC; event <= ENVELOPE_RESUMED; event++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++, count++) {
            at.seq += 1 + i * 1000003;
            append_frame(&frames, event, sizes[i], at, i % 2 == 0 ? "lagged" : NULL);
        }
    }
    cr_assert_eq(event_stream_append_frames(&out, buffer_span(&frames)), WEIR_OK);
    struct span rest = buffer_span(&out), json, frame = buffer_span(&frames);
    struct cursor found, expected = {at.epoch, 0};
    for (unsigned i = 0; i < count; i++) {
        expected.seq += 1 + i % (sizeof sizes / sizeof sizes[0]) * 1000003;
        cr_assert(take_block(&rest, &found, &json));
        cr_assert_eq(found.epoch, expected.epoch);
        cr_assert_eq(found.seq, expected.seq);
        size_t frame_bytes = envelope_frame_bytes(frame);
        cr_assert(span_equal(json, span_of(frame.data + frame_bytes - json.bytes, json.bytes)));
        frame = span_of(frame.data + frame_bytes, frame.bytes - frame_bytes);
    }
    cr_assert_eq(rest.bytes, 0);
    buffer_fini(&frames);
}

static void append_text_frame(struct buffer *frames, const char *json)
{
    char header[10];
    cr_assert_eq(
        buffer_append(frames, span_of(header, envelope_frame_header(header, strlen(json)))),
        WEIR_OK);
    cr_assert_eq(buffer_append(frames, span_text(json)), WEIR_OK);
}

/* Until a conflation is complete the subscriber stands where it stood before. */
Test(event_stream, of_a_conflation_only_the_last_event_is_a_position)
{
    struct buffer frames;
    buffer_init(&frames, 4096);
    append_text_frame(
        &frames, "{\"event\":{},\"conflated\":{\"since\":3,\"more\":true},\"seq\":9,\"epoch\":8}");
    append_text_frame(
        &frames,
        "{\"event\":{},\"conflated\":{\"since\":3,\"more\":false},\"seq\":12,\"epoch\":8}");
    cr_assert_eq(event_stream_append_frames(&out, buffer_span(&frames)), WEIR_OK);
    assert_out(
        "data: {\"event\":{},\"conflated\":{\"since\":3,\"more\":true},\"seq\":9,\"epoch\":8}\n\n"
        "id: 8-12\ndata: "
        "{\"event\":{},\"conflated\":{\"since\":3,\"more\":false},\"seq\":12,\"epoch\":8}\n\n");
    buffer_fini(&frames);
}

Test(event_stream, what_does_not_fit_leaves_nothing_behind)
{
    struct buffer frames;
    buffer_init(&frames, 1 << 20);
    append_frame(&frames, ENVELOPE_UPDATE, 100, (struct cursor){1, 1}, NULL);
    append_frame(&frames, ENVELOPE_UPDATE, 5000, (struct cursor){1, 2}, NULL);
    buffer_fini(&out);
    buffer_init(&out, 4096);
    cr_assert_eq(event_stream_append(&out, SPAN_LITERAL("{}"), (struct cursor){1, 1}), WEIR_OK);
    cr_assert_eq(event_stream_append_frames(&out, buffer_span(&frames)), WEIR_FULL);
    assert_out("id: 1-1\ndata: {}\n\n");
    buffer_fini(&frames);
}

Test(event_stream, an_id_is_two_whole_numbers)
{
    static const char *const wrong[] = {"",
                                        "-",
                                        "1",
                                        "1-",
                                        "-1",
                                        "1--1",
                                        "1-1-1",
                                        " 1-1",
                                        "1-1 ",
                                        "+1-1",
                                        "1-+1",
                                        "0x1-1",
                                        "1.0-1",
                                        "1-1\n",
                                        "18446744073709551616-1",
                                        "1-18446744073709551616",
                                        "1-99999999999999999999999"};
    struct cursor cursor;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        cr_assert_not(event_stream_parse_id(span_text(wrong[i]), &cursor), "%s", wrong[i]);
    cr_assert(event_stream_parse_id(SPAN_LITERAL("0-0"), &cursor));
    cr_assert_eq(cursor.epoch | cursor.seq, 0u);
    cr_assert(event_stream_parse_id(SPAN_LITERAL("18446744073709551615-007"), &cursor));
    cr_assert_eq(cursor.epoch, UINT64_MAX);
    cr_assert_eq(cursor.seq, 7u);
}

/* Whatever is said of a position is understood again; a changed byte never makes it another form. */
Test(event_stream, ids_survive_the_way_through_a_browser)
{
    uint64_t state = (uint64_t)time(NULL) * 2654435761u | 1;
    (void)printf("seed %" PRIu64 "\n", state);
    for (unsigned i = 0; i < 20000; i++) {
        char head[EVENT_STREAM_HEAD_BYTES];
        struct cursor at, found;
        uint64_t numbers[2];
        for (unsigned k = 0; k < 2; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            numbers[k] = state >> (state >> 58);
        }
        at = (struct cursor){numbers[0] | 1, numbers[1]};
        size_t bytes = event_stream_head(head, at);
        struct span id = span_of(head + 4, bytes - 4 - 1 - sizeof "data: " + 1);
        cr_assert(event_stream_parse_id(id, &found), "%.*s", (int)id.bytes, id.data);
        cr_assert_eq(found.epoch, at.epoch);
        cr_assert_eq(found.seq, at.seq);
    }
}

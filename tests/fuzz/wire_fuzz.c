/* Fuzz target of shm/wire.h: the input is what a peer sent. Every frame that decodes is encoded
 * again and must decode to the same message. So that the fuzzer does not have to guess lengths, the
 * first byte chooses between the bytes as they are and one frame whose length field is put right. */
#include <stdio.h>
#include <stdlib.h>

#include "shm/limits.h"
#include "shm/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition, const char *text)
{
    if (condition)
        return;
    (void)fprintf(stderr, "broken: %s\n", text);
    abort();
}

static bool message_equals(const struct wire_message *a, const struct wire_message *b)
{
    bool equal = a->type == b->type && a->flags == b->flags && a->id == b->id;
    for (size_t index = 0; index < WIRE_FIELDS_KNOWN_MAX; index++) {
        const struct wire_field *left = &a->fields[index];
        const struct wire_field *right = &b->fields[index];
        equal = equal && left->number == right->number &&
                (left->span.data == NULL) == (right->span.data == NULL) &&
                span_equal(left->span, right->span);
    }
    return equal;
}

static void check_fields_inside(const struct wire_message *message, struct span frame)
{
    for (size_t index = 0; index < WIRE_FIELDS_KNOWN_MAX; index++) {
        struct span span = message->fields[index].span;
        require(span.data == NULL ||
                    (span.data >= frame.data && span.data + span.bytes <= frame.data + frame.bytes),
                "a field lies inside its frame");
    }
}

static void check_again(struct wire_reader *reader, const struct wire_message *message)
{
    struct buffer out;
    struct wire_message again;
    size_t frame_bytes;

    buffer_init(&out, WIRE_FRAME_BYTES_MAX);
    require(wire_append_flagged(&out, message->type, message->flags, message->id,
                                message->fields) == WEIR_OK,
            "encodes");
    require(wire_read(reader, buffer_span(&out), &again, &frame_bytes) == WEIR_OK, "decodes again");
    require(frame_bytes == out.bytes, "the frame is all there is");
    require(message_equals(message, &again), "decodes to the same message");
    buffer_fini(&out);
}

static void check_stream(struct wire_reader *reader, struct span input)
{
    while (input.bytes > 0) {
        struct wire_message message;
        size_t frame_bytes;
        enum weir_status status = wire_read(reader, input, &message, &frame_bytes);
        if (status != WEIR_OK) {
            require((wire_reader_problem(reader)[0] == '\0') == (status == WEIR_EMPTY),
                    "a refusal has a reason");
            return;
        }
        require(frame_bytes >= WIRE_HEADER_BYTES && frame_bytes <= input.bytes, "consumes a frame");
        check_fields_inside(&message, span_of(input.data, frame_bytes));
        if (wire_type_name(message.type)[0] != '?')
            check_again(reader, &message);
        input = span_of(input.data + frame_bytes, input.bytes - frame_bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes == 0)
        return 0;
    struct wire_reader *reader = wire_reader_open();
    char *frame = malloc(bytes);
    require(reader != NULL && frame != NULL, "memory");
    size_t frame_bytes = bytes - 1;
    memcpy(frame, data + 1, frame_bytes);
    if (data[0] % 2 == 1 && frame_bytes >= WIRE_HEADER_BYTES) {
        for (unsigned index = 0; index < 4; index++)
            frame[index] = (char)((frame_bytes - 4) >> 8 * index);
    }
    check_stream(reader, span_of(frame, frame_bytes));
    free(frame);
    wire_reader_close(reader);
    return 0;
}

#include "shm/wire.h"

#include <criterion/criterion.h>
#include <msgpack/pack.h>
#include <msgpack/sbuffer.h>
#include <stdio.h>
#include <stdlib.h>

#include "shm/limits.h"

static struct wire_reader *reader;
static struct buffer out;

static void open_reader(void)
{
    reader = wire_reader_open();
    cr_assert_not_null(reader);
    buffer_init(&out, 2 * WIRE_FRAME_BYTES_MAX);
}

static void close_reader(void)
{
    wire_reader_close(reader);
    buffer_fini(&out);
}

TestSuite(wire, .init = open_reader, .fini = close_reader, .timeout = HANG_SECONDS);

static const struct {
    enum wire_type type;
    const char *name;
    const char *fields;
} types[] = {
#define TYPE_ROW(name, number, fields) {WIRE_##name, #name, fields},
    WIRE_TYPE_MAP(TYPE_ROW)
#undef TYPE_ROW
};
enum { TYPE_COUNT = sizeof types / sizeof types[0] };

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void random_seed(void)
{
    const char *text = getenv("WEIR_SEED");
    random_state = text != NULL ? strtoull(text, NULL, 0) : 0;
    if (random_state == 0)
        random_state = (uint64_t)(uintptr_t)&text ^ 0x9e3779b97f4a7c15ull;
    (void)fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)random_state);
}

/* A frame with the body given, in a block of exactly its size. */
static struct span make_frame(uint16_t type, uint64_t id, struct span body)
{
    size_t bytes = WIRE_HEADER_BYTES + body.bytes;
    unsigned char *frame = malloc(bytes);
    cr_assert_not_null(frame);
    for (unsigned index = 0; index < 4; index++)
        frame[index] = (unsigned char)((bytes - 4) >> 8 * index);
    frame[4] = (unsigned char)type;
    frame[5] = (unsigned char)(type >> 8);
    frame[6] = 0;
    frame[7] = 0;
    for (unsigned index = 0; index < 8; index++)
        frame[8 + index] = (unsigned char)(id >> 8 * index);
    if (body.bytes > 0)
        memcpy(frame + WIRE_HEADER_BYTES, body.data, body.bytes);
    return span_of(frame, bytes);
}

static enum weir_status read_body(uint16_t type, struct span body, struct wire_message *message)
{
    static struct span frame;
    free((void *)(uintptr_t)frame.data); /* the message of the call before points into it */
    frame = make_frame(type, 5, body);
    size_t frame_bytes;
    enum weir_status status = wire_read(reader, frame, message, &frame_bytes);
    if (status == WEIR_OK)
        cr_assert_eq(frame_bytes, frame.bytes);
    cr_assert_neq(status, WEIR_EMPTY);
    cr_assert((wire_reader_problem(reader)[0] == '\0') == (status == WEIR_OK));
    return status;
}

Test(wire, names_and_numbers_are_unique)
{
    for (size_t index = 0; index < TYPE_COUNT; index++) {
        cr_assert_str_eq(wire_type_name(types[index].type), types[index].name);
        cr_assert_leq(strlen(types[index].fields), WIRE_FIELDS_KNOWN_MAX);
        for (size_t other = 0; other < index; other++)
            cr_assert_neq(types[index].type, types[other].type);
    }
    cr_assert_str_eq(wire_type_name((enum wire_type)0), "?");
    cr_assert_str_eq(wire_type_name((enum wire_type)63), "?");
    cr_assert_str_eq(wire_type_name((enum wire_type)65535), "?");
}

Test(wire, a_frame_has_the_documented_bytes)
{
    struct wire_field fields[] = {WIRE_NUMBER(1), WIRE_NUMBER(300),
                                  WIRE_NUMBER(0), WIRE_NUMBER(1731000000123),
                                  WIRE_NUMBER(7), WIRE_NUMBER(0)};
    cr_assert_eq(wire_append(&out, WIRE_ATTACH, 0x0102030405060708, fields), WEIR_OK);
    static const char expected[] = "\x1d\0\0\0"
                                   "\x01\0"
                                   "\0\0"
                                   "\x08\x07\x06\x05\x04\x03\x02\x01"
                                   "\x96\x01\xcd\x01\x2c\x00\xcf\x00\x00\x01\x93\x07\xa3\xde\x7b"
                                   "\x07\x00";
    cr_assert_eq(out.bytes, sizeof expected - 1);
    cr_assert(memcmp(out.data, expected, out.bytes) == 0);
}

/* Method: messages of every type with random fields, several in one buffer, read back one after the
 *         other. */
Test(wire, every_type_round_trips)
{
    static char payload[70000];
    random_seed();
    for (size_t index = 0; index < sizeof payload; index++)
        payload[index] = (char)random_next();
    for (unsigned round = 0; round < 3000; round++) {
        struct wire_field fields[TYPE_COUNT][WIRE_FIELDS_KNOWN_MAX];
        memset(fields, 0, sizeof fields);
        buffer_clear(&out);
        for (size_t index = 0; index < TYPE_COUNT; index++) {
            for (size_t field = 0; types[index].fields[field] != '\0'; field++) {
                if (types[index].fields[field] == 'u') {
                    fields[index][field] = WIRE_NUMBER(random_next() >> random_next() % 64);
                } else if (random_next() % 4 != 0) {
                    size_t bytes =
                        random_next() % (random_next() % 200 == 0 ? sizeof payload : 300);
                    fields[index][field] = WIRE_SPAN(span_of(payload, bytes));
                }
            }
            cr_assert_eq(wire_append(&out, types[index].type, index * 77, fields[index]), WEIR_OK);
        }
        struct span rest = buffer_span(&out);
        for (size_t index = 0; index < TYPE_COUNT; index++) {
            struct wire_message message;
            size_t frame_bytes;
            cr_assert_eq(wire_read(reader, rest, &message, &frame_bytes), WEIR_OK);
            cr_assert_eq(message.type, types[index].type);
            cr_assert_eq(message.id, index * 77);
            for (size_t field = 0; field < WIRE_FIELDS_KNOWN_MAX; field++) {
                const struct wire_field *want = &fields[index][field];
                const struct wire_field *got = &message.fields[field];
                cr_assert_eq(got->number, want->number);
                cr_assert_eq(got->span.data == NULL, want->span.data == NULL);
                cr_assert(span_equal(got->span, want->span));
            }
            rest = span_of(rest.data + frame_bytes, rest.bytes - frame_bytes);
        }
        cr_assert_eq(rest.bytes, 0);
    }
}

/* Numbers and bins at each place where msgpack's head grows. */
Test(wire, every_width_round_trips)
{
    static const uint64_t numbers[] = {0,         1,          127,       128,        255,
                                       256,       65535,      65536,     UINT32_MAX, 1ull << 32,
                                       INT64_MAX, 1ull << 63, UINT64_MAX};
    static const size_t lengths[] = {0, 1, 31, 32, 255, 256, 65535, 65536, VALUE_BYTES_MAX};
    static char payload[VALUE_BYTES_MAX];
    for (size_t index = 0; index < sizeof numbers / sizeof numbers[0]; index++) {
        struct wire_message message;
        size_t frame_bytes;
        struct wire_field field = WIRE_NUMBER(numbers[index]);
        buffer_clear(&out);
        cr_assert_eq(wire_append(&out, WIRE_SESSION_CLOSED, 0, &field), WEIR_OK);
        cr_assert_eq(wire_read(reader, buffer_span(&out), &message, &frame_bytes), WEIR_OK);
        cr_assert_eq(message.fields[0].number, numbers[index]);
    }
    for (size_t index = 0; index < sizeof lengths / sizeof lengths[0]; index++) {
        struct wire_message message;
        size_t frame_bytes;
        struct wire_field fields[4] = {WIRE_NIL, WIRE_SPAN(span_of(payload, lengths[index]))};
        buffer_clear(&out);
        cr_assert_eq(wire_append(&out, WIRE_STREAM_RESULT, 0, fields), WEIR_OK);
        cr_assert_eq(wire_read(reader, buffer_span(&out), &message, &frame_bytes), WEIR_OK);
        cr_assert_null(message.fields[0].span.data);
        cr_assert_not_null(message.fields[1].span.data);
        cr_assert_eq(message.fields[1].span.bytes, lengths[index]);
        cr_assert_null(message.fields[2].span.data);
    }
}

/* What msgpack-c packs, in any of its widths and kinds, is read: str for bin, signed for unsigned,
 * floats to skip. */
Test(wire, reads_what_the_library_packs)
{
    msgpack_sbuffer body;
    msgpack_packer packer;
    msgpack_sbuffer_init(&body);
    msgpack_packer_init(&packer, &body, msgpack_sbuffer_write);
    msgpack_pack_array(&packer, 16);
    msgpack_pack_fix_int64(&packer, 12);
    msgpack_pack_str(&packer, 5);
    msgpack_pack_str_body(&packer, "hello", 5);
    msgpack_pack_nil(&packer);
    msgpack_pack_str(&packer, 0);
    msgpack_pack_str_body(&packer, "", 0);
    static char longer[66000];
    static const size_t lengths[] = {40, 300, 66000};
    for (size_t index = 0; index < 3; index++) {
        msgpack_pack_str(&packer, lengths[index]);
        msgpack_pack_str_body(&packer, longer, lengths[index]);
    }
    msgpack_pack_bin(&packer, 1);
    msgpack_pack_bin_body(&packer, "b", 1);
    /* Fields this side does not know. */
    msgpack_pack_double(&packer, 1.5);
    msgpack_pack_float(&packer, 1.5f);
    msgpack_pack_true(&packer);
    msgpack_pack_false(&packer);
    msgpack_pack_int64(&packer, -1);
    msgpack_pack_int64(&packer, INT64_MIN);
    msgpack_pack_nil(&packer);
    msgpack_pack_uint64(&packer, UINT64_MAX);

    struct wire_message message;
    cr_assert_eq(read_body(WIRE_STREAM, span_of(body.data, body.size), &message), WEIR_OK);
    cr_assert_eq(message.fields[0].number, 12);
    cr_assert(span_equal(message.fields[1].span, SPAN_LITERAL("hello")));
    cr_assert_null(message.fields[2].span.data);
    cr_assert_not_null(message.fields[3].span.data);
    cr_assert_eq(message.fields[3].span.bytes, 0);
    for (size_t index = 0; index < 3; index++)
        cr_assert_eq(message.fields[4 + index].span.bytes, lengths[index]);
    cr_assert(span_equal(message.fields[7].span, SPAN_LITERAL("b")));
    msgpack_sbuffer_destroy(&body);
}

Test(wire, missing_fields_are_nil)
{
    struct wire_message message;
    memset(&message, 0xAA, sizeof message);
    cr_assert_eq(read_body(WIRE_STREAM, SPAN_LITERAL("\x91\x07"), &message), WEIR_OK);
    cr_assert_eq(message.fields[0].number, 7);
    for (size_t index = 1; index < WIRE_FIELDS_KNOWN_MAX; index++) {
        cr_assert_eq(message.fields[index].number, 0);
        cr_assert_null(message.fields[index].span.data);
        cr_assert_eq(message.fields[index].span.bytes, 0);
    }
    cr_assert_eq(read_body(WIRE_STREAM, SPAN_LITERAL("\x90"), &message), WEIR_OK);
    cr_assert_eq(message.fields[0].number, 0);
    cr_assert_eq(read_body(WIRE_STREAM, SPAN_LITERAL("\x91\xc0"), &message), WEIR_OK);
    cr_assert_eq(message.fields[0].number, 0);
}

Test(wire, an_unknown_type_is_checked_and_delivered_without_fields)
{
    struct wire_message message;
    cr_assert_eq(read_body(40000, SPAN_LITERAL("\x92\x07\xa1x"), &message), WEIR_OK);
    cr_assert_eq((unsigned)message.type, 40000);
    cr_assert_eq(message.id, 5);
    cr_assert_eq(message.fields[0].number, 0);
    cr_assert_null(message.fields[1].span.data);
    cr_assert_eq(read_body(40000, SPAN_LITERAL("\x92\x07\x90"), &message), WEIR_CORRUPT);
}

Test(wire, what_a_peer_must_not_send_is_corrupt)
{
    static const struct {
        struct span body;
        const char *what;
    } cases[] = {
#define BODY(text, what) {{text, sizeof(text) - 1}, what}
        BODY("\x07", "no array"),
        BODY("\xc0", "nil for the array"),
        BODY("\x81\x01\x02", "a map for the array"),
        BODY("\x91", "an element missing"),
        BODY("\x92\x01", "the second element missing"),
        BODY("\x91\x01\x02", "bytes behind the array"),
        BODY("\x91\x90", "an empty array inside"),
        BODY("\x92\x01\x91\x01", "an array inside"),
        BODY("\x92\x01\xdc\x00\x00", "array 16 inside"),
        BODY("\x92\x01\xdd\x00\x00\x00\x00", "array 32 inside"),
        BODY("\x92\x01\x80", "an empty map inside"),
        BODY("\x92\x01\xde\x00\x00", "map 16 inside"),
        BODY("\x92\x01\xdf\x00\x00\x00\x00", "map 32 inside"),
        BODY("\x92\x01\xc1", "the unused head"),
        BODY("\x92\x01\xd4\x01\x00", "fixext 1"),
        BODY("\x92\x01\xd8\x01"
             "0123456789abcdef",
             "fixext 16"),
        BODY("\x92\x01\xc7\x01\x01\x00", "ext 8"),
        BODY("\x91\xff", "a negative fixint for a number"),
        BODY("\x91\xd0\x80", "a negative int 8"),
        BODY("\x91\xd1\xff\xff", "a negative int 16"),
        BODY("\x91\xd2\x80\x00\x00\x00", "a negative int 32"),
        BODY("\x91\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "a negative int 64"),
        BODY("\x91\xc3", "a boolean for a number"),
        BODY("\x91\xca\x00\x00\x00\x00", "a float for a number"),
        BODY("\x91\xa1x", "a str for a number"),
        BODY("\x91\xc4\x01x", "a bin for a number"),
        BODY("\x92\x01\x02", "a number for a bin"),
        BODY("\x92\x01\xc2", "a boolean for a bin"),
        BODY("\x92\x01\xa5"
             "1234",
             "a str beyond the frame"),
        BODY("\x92\x01\xc4", "a bin 8 without length"),
        BODY("\x92\x01\xc4\x05"
             "1234",
             "a bin 8 beyond the frame"),
        BODY("\x92\x01\xc5\xff", "a bin 16 with half a length"),
        BODY("\x92\x01\xc6\xff\xff\xff\xff"
             "1234",
             "a bin 32 of 4 GiB"),
        BODY("\x92\x01\xdb\x7f\xff\xff\xff"
             "1234",
             "a str 32 of 2 GiB"),
        BODY("\x92\xcf\x00\x00\x00", "a cut uint 64"),
        BODY("\xdc\x00", "array 16 without count"),
        BODY("\xdc\xff\xff\x01", "65535 fields"),
        BODY("\xdd\xff\xff\xff\xff\x01", "4 G fields"),
        BODY("\xdc\x00\x19"
             "0123456789012345678901234",
             "25 fields"),
#undef BODY
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        struct wire_message message;
        cr_assert_eq(read_body(WIRE_STREAM, cases[index].body, &message), WEIR_CORRUPT, "%s",
                     cases[index].what);
    }
    struct wire_message message;
    struct span most = SPAN_LITERAL("\xdc\x00\x18\x01\xa0\xa0\xa0\xa0\xa0\xa0\xa0"
                                    "0123456789012345");
    cr_assert_eq(read_body(WIRE_STREAM, most, &message), WEIR_OK, "as many fields as allowed");
}

Test(wire, flags_nobody_knows_are_corrupt)
{
    struct wire_message message;
    size_t frame_bytes;
    struct span frame = make_frame(WIRE_SESSION_CLOSED, 0, SPAN_LITERAL("\x91\x01"));
    cr_assert_eq(wire_read(reader, frame, &message, &frame_bytes), WEIR_OK);
    ((char *)(uintptr_t)frame.data)[7] = 1;
    cr_assert_eq(wire_read(reader, frame, &message, &frame_bytes), WEIR_CORRUPT);
    free((void *)(uintptr_t)frame.data);
}

/* Method: each of the sixteen bits, in a type that knows one of them and in those that know none. */
Test(wire, a_flag_is_read_by_its_own_type_alone)
{
    static const unsigned kinds[] = {WIRE_STREAM, WIRE_STREAM_RESULT, 63};
    for (size_t index = 0; index < sizeof kinds / sizeof kinds[0]; index++) {
        struct span frame = make_frame((uint16_t)kinds[index], 0, SPAN_LITERAL("\x90"));
        for (unsigned bit = 0; bit < 16; bit++) {
            struct wire_message message;
            size_t frame_bytes;
            char *flags = (char *)(uintptr_t)frame.data + 6;
            bool is_known = kinds[index] == WIRE_STREAM && 1u << bit == WIRE_FLAG_UNHURRIED;
            flags[0] = (char)(1u << bit);
            flags[1] = (char)(1u << bit >> 8);
            cr_assert_eq(wire_read(reader, frame, &message, &frame_bytes),
                         is_known ? WEIR_OK : WEIR_CORRUPT, "type %u bit %u", kinds[index], bit);
        }
        free((void *)(uintptr_t)frame.data);
    }
}

Test(wire, a_flag_arrives_and_the_next_frame_has_none)
{
    struct wire_field fields[8] = {WIRE_NUMBER(WIRE_OP_SET)};
    struct wire_message message;
    size_t frame_bytes;
    cr_assert_eq(wire_append_flagged(&out, WIRE_STREAM, WIRE_FLAG_UNHURRIED, 5, fields), WEIR_OK);
    cr_assert_eq(wire_append(&out, WIRE_STREAM, 6, fields), WEIR_OK);
    cr_assert_eq(wire_read(reader, buffer_span(&out), &message, &frame_bytes), WEIR_OK);
    cr_assert_eq(message.flags, WIRE_FLAG_UNHURRIED);
    cr_assert_eq(message.id, 5);
    struct span rest = span_of(out.data + frame_bytes, out.bytes - frame_bytes);
    cr_assert_eq(wire_read(reader, rest, &message, &frame_bytes), WEIR_OK);
    cr_assert_eq(message.flags, 0);
    cr_assert_eq(message.id, 6);
}

/* The length decides alone, before the rest has arrived. */
Test(wire, bad_lengths_are_refused_at_once)
{
    struct wire_message message;
    size_t frame_bytes;
    cr_assert_eq(wire_read(reader, SPAN_LITERAL("\x0c\0\0\0"), &message, &frame_bytes),
                 WEIR_CORRUPT);
    cr_assert_eq(wire_read(reader, SPAN_LITERAL("\0\0\0\0"), &message, &frame_bytes), WEIR_CORRUPT);
    cr_assert_eq(wire_read(reader, SPAN_LITERAL("\xff\xff\xff\xff"), &message, &frame_bytes),
                 WEIR_TOO_LARGE);
    uint32_t largest = WIRE_FRAME_BYTES_MAX - 4;
    for (uint32_t more = 0; more < 2; more++) {
        char length[4];
        for (unsigned index = 0; index < 4; index++)
            length[index] = (char)((largest + more) >> 8 * index);
        cr_assert_eq(wire_read(reader, span_of(length, 4), &message, &frame_bytes),
                     more == 0 ? WEIR_EMPTY : WEIR_TOO_LARGE);
    }
}

/* A frame cut anywhere is EMPTY and says how much it needs as soon as the length is there. */
Test(wire, a_cut_frame_is_empty_and_says_its_size)
{
    struct wire_field fields[] = {WIRE_NUMBER(WIRE_OP_SET),
                                  WIRE_SPAN(SPAN_LITERAL("chat")),
                                  WIRE_SPAN(SPAN_LITERAL("room")),
                                  WIRE_NIL,
                                  WIRE_NIL,
                                  WIRE_SPAN(SPAN_LITERAL("{}")),
                                  WIRE_NIL,
                                  WIRE_NIL};
    cr_assert_eq(wire_append(&out, WIRE_STREAM, 9, fields), WEIR_OK);
    for (size_t bytes = 0; bytes < out.bytes; bytes++) {
        char *cut = malloc(bytes > 0 ? bytes : 1);
        memcpy(cut, out.data, bytes);
        struct wire_message message;
        size_t frame_bytes = 1;
        cr_assert_eq(wire_read(reader, span_of(cut, bytes), &message, &frame_bytes), WEIR_EMPTY);
        cr_assert_eq(frame_bytes, bytes < 4 ? 0 : out.bytes);
        free(cut);
    }
}

/* A body cut short under a length that says so is corrupt, wherever the cut is. */
Test(wire, a_cut_body_is_corrupt)
{
    static const char body[] = "\x98\xcd\x01\x02\xc4\x02"
                               "ab\xa3"
                               "abc\xc0\xda\x00\x01x\xc5\x00\x02yy\xc0\xc0";
    struct wire_message message;
    cr_assert_eq(read_body(WIRE_STREAM, span_of(body, sizeof body - 1), &message), WEIR_OK);
    for (size_t bytes = 1; bytes < sizeof body - 1; bytes++)
        cr_assert_eq(read_body(WIRE_STREAM, span_of(body, bytes), &message), WEIR_CORRUPT);
}

Test(wire, random_bytes_never_harm)
{
    random_seed();
    for (unsigned round = 0; round < 200000; round++) {
        char body[40];
        size_t bytes = 1 + random_next() % sizeof body;
        for (size_t index = 0; index < bytes; index++)
            body[index] = (char)random_next();
        body[0] = (char)(0x90 | (body[0] & 0x0F));
        struct wire_message message;
        enum weir_status status =
            read_body(types[random_next() % TYPE_COUNT].type, span_of(body, bytes), &message);
        cr_assert(status == WEIR_OK || status == WEIR_CORRUPT);
    }
}

Test(wire, a_full_buffer_is_left_as_it_was)
{
    struct wire_field field = WIRE_NUMBER(1);
    struct buffer small;
    buffer_init(&small, 2 * 18);
    cr_assert_eq(wire_append(&small, WIRE_SESSION_CLOSED, 1, &field), WEIR_OK);
    cr_assert_eq(wire_append(&small, WIRE_SESSION_CLOSED, 2, &field), WEIR_OK,
                 "exact room suffices");
    cr_assert_eq(small.bytes, 36);
    cr_assert_eq(wire_append(&small, WIRE_SESSION_CLOSED, 3, &field), WEIR_FULL);
    cr_assert_eq(small.bytes, 36);
    struct wire_message message;
    size_t frame_bytes;
    cr_assert_eq(wire_read(reader, buffer_span(&small), &message, &frame_bytes), WEIR_OK);
    cr_assert_eq(message.id, 1);
    buffer_fini(&small);
}

/* What a receiver would refuse is refused here already, and no memory is reserved for it. */
Test(wire, a_frame_beyond_the_limit_is_not_made)
{
    static char payload[WIRE_FRAME_BYTES_MAX];
    size_t overhead = WIRE_HEADER_BYTES + 1 + 5 + 3; /* array, bin 32 head, three nils */
    struct wire_field fields[4] = {WIRE_NIL, WIRE_NIL,
                                   WIRE_SPAN(span_of(payload, sizeof payload - overhead + 1))};
    cr_assert_eq(wire_append(&out, WIRE_STREAM_RESULT, 1, fields), WEIR_TOO_LARGE);
    cr_assert_eq(out.capacity_bytes, 0);
    fields[2].span.bytes = SIZE_MAX;
    cr_assert_eq(wire_append(&out, WIRE_STREAM_RESULT, 1, fields), WEIR_TOO_LARGE);
    fields[2].span.bytes = sizeof payload - overhead;
    cr_assert_eq(wire_append(&out, WIRE_STREAM_RESULT, 1, fields), WEIR_OK);
    cr_assert_eq(out.bytes, WIRE_FRAME_BYTES_MAX);
    struct wire_message message;
    size_t frame_bytes;
    cr_assert_eq(wire_read(reader, buffer_span(&out), &message, &frame_bytes), WEIR_OK);
}

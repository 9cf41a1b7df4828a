/* The bytes of log and snapshot: what is encoded is decoded, and nothing else is. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "broker/wal_format.h"
#include "shm/envelope.h"
#include "tests/wal_random.h"

TestSuite(wal_format, .timeout = HANG_SECONDS);

enum { FRAME_BYTES_MAX = 64 * 1024 };

static const struct wal_place place = {.log_id = 0x1234567890abcdef, .number = 3, .offset = 8192};

/* Bytes that records point into; names may be any, NUL too. None has just one bit set (see
 * wal_frame_is_complete()). */
static char pool[16384];

static void fill_pool(void)
{
    for (size_t i = 0; i < sizeof pool; i++)
        pool[i] = random_below(3) == 0 ? 0 : (char)(random_next() | 0x81);
}

static struct span random_part(size_t bytes_max)
{
    size_t bytes = (size_t)random_below(bytes_max + 1);
    return span_of(pool + random_below(sizeof pool - bytes), bytes);
}

static struct wal_record random_record(void)
{
    struct wal_record record = {
        .kind = (enum wal_record_kind)(WAL_SET + random_below(7)),
        .epoch = random_next(),
        .seq = random_next(),
        .timestamp_ms = random_next(),
    };
    bool is_change = record.kind <= WAL_EVENT;
    size_t name_max = random_below(20) == 0 ? NAME_BYTES_MAX : 30;
    if (is_change) {
        record.event = (uint32_t)random_below(ENVELOPE_UNAUTHORIZED + 1);
        record.step = (uint32_t)random_below(3);
        record.is_answer_partial = random_below(2) == 0;
    }
    if (is_change || record.kind == WAL_ANSWER) {
        record.origin = random_next();
        record.request = random_next();
    }
    if (is_change || record.kind == WAL_GROUP) {
        record.stream = random_part(name_max);
        record.group = random_part(name_max);
    }
    if (is_change || record.kind == WAL_ITEM)
        record.item = random_part(name_max);
    if (record.kind == WAL_ITEM) {
        record.created_seq = random_next();
        record.modified_seq = random_next();
    }
    if (record.kind == WAL_EVENT && random_below(2) == 0)
        record.event_type = random_part(name_max);
    if (record.kind == WAL_SET || record.kind == WAL_ITEM || record.kind == WAL_EVENT ||
        (record.kind == WAL_ANSWER && random_below(2) == 0))
        record.value = random_part(random_below(4) == 0 ? 5000 : 100);
    return record;
}

static bool is_same_part(struct span a, struct span b)
{
    return (a.data == NULL) == (b.data == NULL) && span_equal(a, b);
}

static bool is_same_record(const struct wal_record *a, const struct wal_record *b)
{
    return a->kind == b->kind && a->event == b->event && a->step == b->step &&
           a->epoch == b->epoch && a->seq == b->seq && a->timestamp_ms == b->timestamp_ms &&
           a->origin == b->origin && a->request == b->request && a->created_seq == b->created_seq &&
           a->modified_seq == b->modified_seq && span_equal(a->stream, b->stream) &&
           span_equal(a->group, b->group) && is_same_part(a->item, b->item) &&
           is_same_part(a->event_type, b->event_type) && is_same_part(a->value, b->value);
}

/* A frame of records as they come, at `place`. */
struct sample {
    char *frame;
    size_t bytes;
    struct wal_frame_header header;
    struct wal_record records[64];
};

static void sample_open(struct sample *sample, size_t payload_max)
{
    *sample = (struct sample){.frame = malloc(FRAME_BYTES_MAX)};
    cr_assert_not_null(sample->frame);
    memset(sample->frame, 0xee, FRAME_BYTES_MAX);
    sample->header.seq = 1 + random_below(1u << 20);
    sample->header.time_ms = random_next();
    sample->header.unsynced = (uint32_t)random_below(2);
    while (sample->header.record_count < 64) {
        struct wal_record record = random_record();
        size_t bytes = wal_record_bytes(&record);
        if (sample->header.payload_bytes + bytes > payload_max)
            break;
        wal_record_encode(sample->frame + WAL_FRAME_HEADER_BYTES + sample->header.payload_bytes,
                          &record);
        sample->records[sample->header.record_count++] = record;
        sample->header.payload_bytes += (uint32_t)bytes;
    }
    sample->bytes = wal_frame_encode(sample->frame, &sample->header, &place);
    cr_assert_eq(sample->bytes, wal_frame_bytes(sample->header.payload_bytes));
}

static void sample_close(struct sample *sample)
{
    free(sample->frame);
}

/* What a reader finds: OK, or where it stops. */
static enum weir_status check_frame(struct span frame, const struct wal_place *where,
                                    struct wal_frame_header *header, struct span *payload)
{
    enum weir_status status = wal_frame_header_decode(frame, where, header);
    if (status != WEIR_OK)
        return status;
    if (wal_frame_bytes(header->payload_bytes) != frame.bytes)
        return WEIR_INVALID;
    return wal_frame_body_check(frame, where, header, payload);
}

/* The check value of CRC32C (RFC 3720 appendix B.4 has the polynomial, its authors the value); a sum
 * goes on over parts. */
Test(wal_format, checksum_is_crc32c)
{
    cr_assert_eq(wal_checksum(0, "123456789", 9), 0xE3069283u);
    cr_assert_eq(wal_checksum(wal_checksum(0, "1234", 4), "56789", 5), 0xE3069283u);
    cr_assert_eq(wal_checksum(0, "", 0), 0);
    char zeros[32] = {0};
    cr_assert_eq(wal_checksum(0, zeros, 32), 0x8A9136AAu, "RFC 3720 appendix B.4");
}

Test(wal_format, file_header_round_trip)
{
    static const struct wal_file_header headers[] = {
        {WAL_FILE_LOG, 1, 2, 3, 4, 5, 0},
        {WAL_FILE_SNAPSHOT, UINT64_MAX, UINT64_MAX - 1, 1ull << 63, UINT64_MAX, 0, 77},
    };
    for (size_t i = 0; i < 2; i++) {
        char block[WAL_BLOCK_BYTES];
        struct wal_file_header header;
        wal_file_header_encode(block, &headers[i]);
        cr_assert_eq(wal_file_header_decode(span_of(block, sizeof block), &header), WEIR_OK);
        cr_assert_eq(header.kind, headers[i].kind);
        cr_assert_eq(header.log_id, headers[i].log_id);
        cr_assert_eq(header.number, headers[i].number);
        cr_assert_eq(header.epoch_base, headers[i].epoch_base);
        cr_assert_eq(header.created_ms, headers[i].created_ms);
        cr_assert_eq(header.file_bytes, headers[i].file_bytes);
        cr_assert_eq(header.first_seq, headers[i].first_seq);
        cr_assert_eq(wal_file_header_decode(span_of(block, sizeof block - 1), &header),
                     WEIR_CORRUPT, "a block cut short");
    }
}

/* Every bit of the block counts. */
Test(wal_format, changed_file_header_is_refused)
{
    char block[WAL_BLOCK_BYTES];
    struct wal_file_header header = {.kind = WAL_FILE_LOG, .log_id = 99, .number = 1};
    wal_file_header_encode(block, &header);
    for (size_t bit = 0; bit < sizeof block * 8; bit++) {
        block[bit / 8] = (char)(block[bit / 8] ^ 1 << bit % 8);
        enum weir_status status = wal_file_header_decode(span_of(block, sizeof block), &header);
        cr_assert(status == WEIR_CORRUPT || status == WEIR_MISMATCH, "bit %zu", bit);
        block[bit / 8] = (char)(block[bit / 8] ^ 1 << bit % 8);
    }
    block[7] = '2';
    cr_assert_eq(wal_file_header_decode(span_of(block, sizeof block), &header), WEIR_MISMATCH);
}

Test(wal_format, frames_and_records_round_trip)
{
    seed_random();
    fill_pool();
    for (size_t round = 0; round < 500; round++) {
        struct sample sample;
        struct wal_frame_header header;
        struct span payload;
        struct wal_record record;
        size_t cursor = 0;
        sample_open(&sample, (size_t)random_below(40000));
        struct span frame = span_of(sample.frame, sample.bytes);
        cr_assert_eq(check_frame(frame, &place, &header, &payload), WEIR_OK);
        cr_assert_eq(header.seq, sample.header.seq);
        cr_assert_eq(header.time_ms, sample.header.time_ms);
        cr_assert_eq(header.record_count, sample.header.record_count);
        cr_assert_eq(header.unsynced, sample.header.unsynced);
        cr_assert(wal_frame_is_complete(frame, &header));
        for (uint32_t i = 0; i < header.record_count; i++) {
            cr_assert_eq(wal_record_decode(payload, &cursor, &record), WEIR_OK);
            cr_assert(is_same_record(&record, &sample.records[i]), "record %u", i);
        }
        cr_assert_eq(wal_record_decode(payload, &cursor, &record), WEIR_EMPTY);
        sample_close(&sample);
    }
}

/* The same bytes are no frame in another log, another file, or elsewhere in the file. */
Test(wal_format, frame_belongs_to_its_place)
{
    struct sample sample;
    struct wal_frame_header header;
    struct span payload;
    seed_random();
    fill_pool();
    sample_open(&sample, 5000);
    struct span frame = span_of(sample.frame, sample.bytes);
    for (int field = 0; field < 3; field++) {
        struct wal_place other = place;
        *(field == 0 ? &other.log_id : field == 1 ? &other.number : &other.offset) += 4096;
        cr_assert_eq(wal_frame_header_decode(frame, &other, &header), WEIR_CORRUPT);
        cr_assert_eq(wal_frame_header_decode(frame, &place, &header), WEIR_OK);
        cr_assert_eq(wal_frame_body_check(frame, &other, &header, &payload), WEIR_CORRUPT);
    }
    sample_close(&sample);
}

/* Every bit of a frame is covered, padding and end mark too; and none of these changes looks like an
 * interrupted write, which would be cut off. */
Test(wal_format, changed_bit_is_noticed_and_no_torn_write)
{
    seed_random();
    fill_pool();
    for (size_t round = 0; round < 20; round++) {
        struct sample sample;
        sample_open(&sample, 6000);
        struct span frame = span_of(sample.frame, sample.bytes);
        for (size_t bit = 0; bit < sample.bytes * 8; bit++) {
            struct wal_frame_header header;
            struct span payload;
            sample.frame[bit / 8] = (char)(sample.frame[bit / 8] ^ 1 << bit % 8);
            cr_assert_eq(check_frame(frame, &place, &header, &payload), WEIR_CORRUPT, "bit %zu",
                         bit);
            if (bit >= WAL_FRAME_HEADER_BYTES * 8)
                cr_assert(wal_frame_is_complete(frame, &header), "bit %zu", bit);
            sample.frame[bit / 8] = (char)(sample.frame[bit / 8] ^ 1 << bit % 8);
        }
        sample_close(&sample);
    }
}

/* Any sectors but the first, where they are not zeros anyway; or any end. */
Test(wal_format, interrupted_write_is_incomplete)
{
    char whole[FRAME_BYTES_MAX];
    seed_random();
    fill_pool();
    for (size_t round = 0; round < 2000; round++) {
        struct sample sample;
        struct wal_frame_header header;
        struct span payload;
        sample_open(&sample, (size_t)random_below(20000));
        struct span frame = span_of(sample.frame, sample.bytes);
        memcpy(whole, sample.frame, sample.bytes);
        if (random_below(2) == 0) {
            for (size_t at = WAL_SECTOR_BYTES; at < sample.bytes; at += WAL_SECTOR_BYTES)
                if (random_below(2) == 0)
                    memset(sample.frame + at, 0, WAL_SECTOR_BYTES);
        } else {
            size_t there = WAL_FRAME_HEADER_BYTES +
                           (size_t)random_below(sample.bytes - WAL_FRAME_HEADER_BYTES);
            if (random_below(2) == 0) /* within the end mark */
                there = sample.bytes - (size_t)random_below(WAL_END_MARK_BYTES) - 1;
            memset(sample.frame + there, 0, sample.bytes - there);
        }
        bool is_changed = memcmp(whole, sample.frame, sample.bytes) != 0;
        enum weir_status status = check_frame(frame, &place, &header, &payload);
        cr_assert_eq(status, is_changed ? WEIR_CORRUPT : WEIR_OK);
        cr_assert_eq(wal_frame_is_complete(frame, &header), !is_changed);
        sample_close(&sample);
    }
}

Test(wal_format, zeros_are_no_frame)
{
    char zeros[WAL_FRAME_HEADER_BYTES] = {0};
    struct wal_frame_header header;
    cr_assert_eq(wal_frame_header_decode(span_of(zeros, sizeof zeros), &place, &header),
                 WEIR_EMPTY);
    zeros[47] = 1;
    cr_assert_eq(wal_frame_header_decode(span_of(zeros, sizeof zeros), &place, &header),
                 WEIR_CORRUPT);
}

/* The largest payload and the largest record have their place. */
Test(wal_format, largest_record_fits_a_frame)
{
    struct wal_record record = {.kind = WAL_SET};
    char *value = calloc(1, VALUE_BYTES_MAX);
    char *frame = malloc(wal_frame_bytes(WAL_PAYLOAD_BYTES_MAX));
    cr_assert_not_null(value);
    cr_assert_not_null(frame);
    record.stream = record.group = record.item = span_of(value, NAME_BYTES_MAX);
    record.value = span_of(value, VALUE_BYTES_MAX);
    size_t bytes = wal_record_bytes(&record);
    cr_assert_leq(bytes, WAL_PAYLOAD_BYTES_MAX);
    wal_record_encode(frame + WAL_FRAME_HEADER_BYTES, &record);
    struct wal_frame_header header = {
        .seq = 1, .payload_bytes = (uint32_t)bytes, .record_count = 1};
    struct span payload;
    size_t frame_bytes = wal_frame_encode(frame, &header, &place);
    cr_assert_eq(check_frame(span_of(frame, frame_bytes), &place, &header, &payload), WEIR_OK);
    cr_assert(wal_frame_is_complete(span_of(frame, frame_bytes), &header));
    free(value);
    free(frame);
}

static void poke(char *at, size_t offset, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        at[offset + i] = (char)(value >> 8 * i);
}

/* A good checksum does not make a length true. Each case changes one field of a good record. */
Test(wal_format, impossible_record_is_refused)
{
    static const struct {
        const char *what;
        size_t offset;
        uint64_t value;
        size_t bytes;
    } cases[] = {
        {"no bytes", 0, 0, 4},
        {"fewer bytes than a header", 0, 56, 4},
        {"more bytes than are there", 0, 1 << 20, 4},
        {"bytes that are no multiple of 8", 0, 95, 4},
        {"fewer bytes than the parts take", 0, 64, 4},
        {"kind 0", 4, 0, 1},
        {"a kind that is none", 4, WAL_ANSWER + 1, 1},
        {"an event that is none", 5, 200, 1},
        {"a step of 3", 6, 3, 1},
        {"a flag that is none", 7, 31, 1},
        {"an item's bytes without an item", 7, 4, 1},
        {"a value's bytes without a value", 7, 1, 1},
        {"a set without a value", 4, WAL_ITEM, 1},
        {"a stream longer than the record", 48, 5000, 2},
        {"names longer than the record", 50, 65535, 2},
        {"a value longer than the record", 56, 0xffffffff, 4},
        {"a value shorter than the record", 56, 0, 4},
        {"something in the reserved word", 60, 1, 4},
        {"something behind the value", 95, 1, 1},
    };
    char good[256] = {0};
    struct wal_record record = {.kind = WAL_SET,
                                .stream = SPAN_LITERAL("stream"),
                                .group = SPAN_LITERAL("group"),
                                .item = SPAN_LITERAL("item"),
                                .value = SPAN_LITERAL("123456789012")};
    wal_record_encode(good, &record);
    size_t bytes = wal_record_bytes(&record);
    cr_assert_eq(bytes, 96);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *changed = malloc(bytes); /* so that a read beyond it is seen */
        size_t cursor = 0;
        cr_assert_not_null(changed);
        memcpy(changed, good, bytes);
        cr_assert_eq(wal_record_decode(span_of(changed, bytes), &cursor, &record), WEIR_OK);
        cr_assert_eq(cursor, bytes);
        cursor = 0;
        poke(changed, cases[i].offset, cases[i].value, cases[i].bytes);
        cr_assert_eq(wal_record_decode(span_of(changed, bytes), &cursor, &record), WEIR_CORRUPT,
                     "%s", cases[i].what);
        cr_assert_eq(cursor, 0);
        free(changed);
    }
}

Test(wal_format, random_bytes_never_break_the_decoder)
{
    seed_random();
    for (size_t round = 0; round < 200000; round++) {
        size_t bytes = (size_t)random_below(200);
        char *data = malloc(bytes + 1);
        cr_assert_not_null(data);
        for (size_t i = 0; i < bytes; i++)
            data[i] = random_below(2) == 0 ? 0 : (char)random_below(100);
        struct wal_record record;
        size_t cursor = 0;
        while (wal_record_decode(span_of(data, bytes), &cursor, &record) == WEIR_OK)
            cr_assert_leq(cursor, bytes);
        free(data);
    }
}

Test(wal_format, kinds_have_names_and_files)
{
    cr_assert_str_eq(wal_record_kind_name(WAL_SET), "set");
    cr_assert_str_eq(wal_record_kind_name(WAL_END), "end");
    cr_assert_str_eq(wal_record_kind_name((enum wal_record_kind)0), "?");
    for (int kind = WAL_SET; kind <= WAL_END; kind++)
        cr_assert_neq(wal_record_fits((enum wal_record_kind)kind, WAL_FILE_LOG),
                      wal_record_fits((enum wal_record_kind)kind, WAL_FILE_SNAPSHOT));
    cr_assert(wal_record_fits(WAL_ANSWER, WAL_FILE_LOG));
    cr_assert(wal_record_fits(WAL_ANSWER, WAL_FILE_SNAPSHOT));
}

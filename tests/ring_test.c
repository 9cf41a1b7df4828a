#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/layout.h"

enum { RING_BYTES = 64 * 1024, CAPACITY = RING_BYTES };

static struct segment segment;
static struct ring_writer *writer;
static struct ring_reader reader;
static struct ring_record record;
static struct buffer out;

static void open_ring(void)
{
    struct segment_options options = {
        .ring_bytes = RING_BYTES, .store_bytes = 4096, .generation = 1};
    struct weir_error error = {0};
    cr_assert_eq(segment_create(&segment, &options, &error), WEIR_OK, "%s", error.text);
    writer = ring_writer_open(&segment);
    cr_assert_not_null(writer);
    segment_publish(&segment);
    cr_assert_eq(ring_reader_attach(&reader, &segment), WEIR_OK);
    buffer_init(&out, RING_BYTES);
}

static void close_ring(void)
{
    buffer_fini(&out);
    ring_writer_close(writer);
    segment_close(&segment);
}

static uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ value >> 27) * 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

static uint64_t test_seed(void)
{
    const char *given = getenv("WEIR_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* A record's whole contents follow from its seq, so a reader in any process can check every byte. */
struct made_record {
    struct ring_record record;
    size_t frame_bytes;
    size_t id_bytes;
    bool has_id;
    char frame[4096];
    char id[64];
};

static void make_record(struct made_record *made, uint64_t seq, uint64_t previous)
{
    uint64_t shape = mix(seq);
    made->frame_bytes = 8 + shape % 1000 + (shape >> 20) % 16 / 15 * 3000;
    made->has_id = (shape >> 32) % 4 != 0;
    made->id_bytes = made->has_id ? (shape >> 40) % sizeof made->id : 0;
    for (size_t at = 0; at < made->frame_bytes; at += 8) {
        uint64_t word = mix(seq * 1000 + at);
        memcpy(made->frame + at, &word, made->frame_bytes - at < 8 ? made->frame_bytes - at : 8);
    }
    for (size_t at = 0; at < made->id_bytes; at++)
        made->id[at] = (char)(seq + at);
    made->record = (struct ring_record){
        .previous_position = previous,
        .group_offset = mix(seq + 1),
        .group_hash = mix(seq + 2),
        .item_hash = mix(seq + 3),
        .seq = seq,
        .epoch = mix(seq + 4),
        .timestamp_ms = mix(seq + 5),
        .commit = mix(seq + 6),
        .kind = (uint32_t)(seq % 7),
        .frame_bytes = (uint32_t)made->frame_bytes,
        .json_offset = 4,
        .id_bytes = made->has_id ? (uint32_t)made->id_bytes : UINT32_MAX,
        .names_offset = 5,
        .data_offset = 6,
        .data_bytes = (uint32_t)(made->frame_bytes - 6),
    };
}

static enum weir_status append_made(struct made_record *made, uint64_t seq, uint64_t previous)
{
    make_record(made, seq, previous);
    return ring_append(writer, &made->record, span_of(made->frame, made->frame_bytes),
                       made->has_id ? span_of(made->id, made->id_bytes) : (struct span){0}, NULL);
}

/* Everything but the two positions, which depend on history. */
static bool is_as_made(const struct ring_record *seen, const struct buffer *bytes)
{
    static struct made_record made;
    make_record(&made, seen->seq, seen->previous_position);
    made.record.position = seen->position;
    return memcmp(&made.record, seen, sizeof *seen) == 0 &&
           bytes->bytes == made.frame_bytes + made.id_bytes &&
           memcmp(bytes->data, made.frame, made.frame_bytes) == 0 &&
           memcmp(bytes->data + made.frame_bytes, made.id, made.id_bytes) == 0;
}

static uint64_t publish_one(uint64_t seq)
{
    static struct made_record made;
    cr_assert_eq(append_made(&made, seq, RING_NO_POSITION), WEIR_OK);
    ring_publish(writer);
    return made.record.position;
}

static enum weir_status read_next(void)
{
    buffer_clear(&out);
    return ring_read(&reader, &record, &out);
}

Test(ring, new_ring_is_empty, .init = open_ring, .fini = close_ring, .timeout = HANG_SECONDS)
{
    cr_assert_eq(read_next(), WEIR_EMPTY);
    cr_assert_eq(ring_published(&reader), 0);
}

/* A broker that has more appended than it may show yet. */
/* The groups of what was appended, in order, over many revolutions and so over every kind of end. */
Test(ring, writer_walks_the_groups_of_what_it_has_appended, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    uint64_t position = 0, walked = 0;
    for (uint64_t seq = 1; seq <= 20000; seq++) {
        (void)publish_one(seq);
        if (mix(seq) % 5 != 0)
            continue;
        while (walked < seq) {
            struct made_record made;
            make_record(&made, ++walked, RING_NO_POSITION);
            cr_assert_lt(position, ring_head(writer));
            cr_assert_eq(ring_group_at(writer, &position), made.record.group_hash);
        }
        cr_assert_eq(position, ring_head(writer));
    }
    cr_assert_gt(ring_head(writer), 20 * reader.capacity_bytes);
}

Test(ring, published_up_to_a_position, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    static struct made_record made;
    uint64_t positions[4], ends[4];
    for (uint64_t seq = 0; seq < 4; seq++) {
        cr_assert_eq(append_made(&made, seq, RING_NO_POSITION), WEIR_OK);
        positions[seq] = made.record.position;
        ends[seq] = ring_head(writer);
    }
    cr_assert_eq(read_next(), WEIR_EMPTY);
    ring_publish_to(writer, ends[1]);
    cr_assert_eq(ring_published(&reader), ends[1]);
    for (uint64_t seq = 0; seq < 2; seq++) {
        cr_assert_eq(read_next(), WEIR_OK);
        cr_assert_eq(record.seq, seq);
        cr_assert(is_as_made(&record, &out));
    }
    cr_assert_eq(read_next(), WEIR_EMPTY);
    cr_assert_eq(ring_read_at(&reader, positions[1], &record, NULL), WEIR_OK);
    cr_assert_eq(ring_read_at(&reader, positions[2], &record, NULL), WEIR_PENDING);
    cr_assert_eq(ring_read_at(&reader, positions[3], &record, NULL), WEIR_PENDING);
    ring_publish_to(writer, ends[0]); /* shown stays shown */
    cr_assert_eq(ring_published(&reader), ends[1]);
    ring_publish_to(writer, ends[2]);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert_eq(record.seq, 2);
    cr_assert_eq(read_next(), WEIR_EMPTY);
    ring_publish(writer);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert_eq(record.seq, 3);
}

/* What is held back counts for the bound of the unpublished half. */
Test(ring, held_back_records_fill_the_half, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    static struct made_record made;
    uint64_t first_end = 0, seq = 0;
    while (append_made(&made, seq, RING_NO_POSITION) == WEIR_OK)
        if (seq++ == 0)
            first_end = ring_head(writer);
    cr_assert_gt(ring_head(writer), CAPACITY / 4);
    cr_assert_not(ring_has_room(writer, 4096 + 64));
    ring_publish_to(writer, first_end);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert_eq(read_next(), WEIR_EMPTY);
    ring_publish_to(writer, ring_head(writer));
    cr_assert(ring_has_room(writer, 4096 + 64));
    for (uint64_t read = 1; read < seq; read++) {
        cr_assert_eq(read_next(), WEIR_OK);
        cr_assert(is_as_made(&record, &out));
    }
    cr_assert_eq(read_next(), WEIR_EMPTY);
}

Test(ring, ring_without_writer_is_corrupt, .timeout = HANG_SECONDS)
{
    struct segment_options options = {
        .ring_bytes = RING_BYTES, .store_bytes = 4096, .generation = 1};
    cr_assert_eq(segment_create(&segment, &options, NULL), WEIR_OK);
    cr_assert_eq(ring_reader_attach(&reader, &segment), WEIR_CORRUPT);
    segment_close(&segment);
}

Test(ring, record_is_invisible_until_published, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    static struct made_record made;
    cr_assert_eq(append_made(&made, 1, RING_NO_POSITION), WEIR_OK);
    cr_assert_eq(read_next(), WEIR_EMPTY);
    cr_assert_eq(ring_read_at(&reader, made.record.position, &record, NULL), WEIR_PENDING);
    ring_publish(writer);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert(is_as_made(&record, &out));
    cr_assert_eq(read_next(), WEIR_EMPTY);
}

/* Frames and ids of every length around the word size arrive to the byte; no id differs from an
 * empty id. */
Test(ring, every_length_arrives_exactly, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    char bytes[40];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i + 1);
    for (size_t frame_bytes = 0; frame_bytes <= 20; frame_bytes++) {
        for (size_t id_bytes = 0; id_bytes <= 18; id_bytes++) {
            struct ring_record sent = {.previous_position = RING_NO_POSITION};
            struct span id = id_bytes == 18 ? (struct span){0} : span_of(bytes + 20, id_bytes);
            cr_assert_eq(ring_append(writer, &sent, span_of(bytes, frame_bytes), id, NULL),
                         WEIR_OK);
            ring_publish(writer);
            cr_assert_eq(read_next(), WEIR_OK);
            cr_assert_eq(record.frame_bytes, frame_bytes);
            cr_assert_eq(record.id_bytes, id_bytes == 18 ? UINT32_MAX : id_bytes);
            cr_assert_eq(out.bytes, frame_bytes + id.bytes);
            cr_assert(span_equal(span_of(out.data, frame_bytes), span_of(bytes, frame_bytes)));
            if (id.bytes > 0)
                cr_assert_arr_eq(out.data + frame_bytes, bytes + 20, id.bytes);
        }
    }
}

Test(ring, read_appends_behind_what_is_in_the_buffer, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    struct ring_record sent = {.previous_position = RING_NO_POSITION};
    cr_assert_eq(ring_append(writer, &sent, SPAN_LITERAL("frame"), SPAN_LITERAL("id"), NULL),
                 WEIR_OK);
    ring_publish(writer);
    cr_assert_eq(buffer_append(&out, SPAN_LITERAL("abc")), WEIR_OK);
    cr_assert_eq(ring_read(&reader, &record, &out), WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), SPAN_LITERAL("abcframeid")));
}

/* Seeded: batches of records of random size over many revolutions, against what was sent; the
 * back-pointers of the newest record lead through everything that is still there, newest first, and
 * end in LAPPED. */
Test(ring, random_batches_match_the_model_over_many_revolutions, .init = open_ring,
     .fini = close_ring, .timeout = HANG_SECONDS)
{
    uint64_t random = test_seed();
    uint64_t written = 0, read = 0, previous = RING_NO_POSITION, newest = RING_NO_POSITION;
    static struct made_record made;
    while (ring_head(writer) < 200ull * CAPACITY) {
        random = mix(random);
        for (uint64_t i = random % 6; i > 0; i--) {
            cr_assert_eq(append_made(&made, written + 1, previous), WEIR_OK);
            previous = made.record.position;
            cr_assert_leq(previous % CAPACITY + sizeof(struct ring_slot) + made.frame_bytes +
                              made.id_bytes,
                          CAPACITY, "records are contiguous");
            written++;
        }
        ring_publish(writer);
        newest = previous;
        while (read < written) {
            cr_assert_eq(read_next(), WEIR_OK);
            cr_assert_eq(record.seq, ++read);
            cr_assert(is_as_made(&record, &out));
        }
        cr_assert_eq(read_next(), WEIR_EMPTY);
        uint64_t seq = written;
        enum weir_status status = WEIR_OK;
        for (uint64_t at = newest; at != RING_NO_POSITION; at = record.previous_position, seq--) {
            buffer_clear(&out);
            status = ring_read_at(&reader, at, &record, &out);
            if (status == WEIR_LAPPED)
                break;
            cr_assert_eq(status, WEIR_OK);
            cr_assert_eq(record.seq, seq);
            cr_assert(is_as_made(&record, &out));
            uint64_t frame_bytes = record.frame_bytes, id_bytes = out.bytes - frame_bytes;
            cr_assert_eq(ring_read_id_at(&reader, at, &record, &out), WEIR_OK);
            cr_assert_eq(out.bytes, frame_bytes + 2 * id_bytes, "the id alone");
            cr_assert(id_bytes == 0 || memcmp(out.data + frame_bytes,
                                              out.data + frame_bytes + id_bytes, id_bytes) == 0);
        }
        cr_assert(status == WEIR_LAPPED || seq == 0);
    }
}

/* A reader paused for one full revolution must be told LAPPED and must never see a mixed record. */
Test(ring, paused_reader_is_lapped_then_goes_on, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    uint64_t seq = 0;
    while (ring_head(writer) <= CAPACITY)
        publish_one(++seq);
    cr_assert_eq(read_next(), WEIR_LAPPED);
    cr_assert_eq(out.bytes, 0);
    cr_assert_eq(reader.position, ring_head(writer));
    cr_assert_eq(read_next(), WEIR_EMPTY);
    publish_one(++seq);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert_eq(record.seq, seq);
    cr_assert(is_as_made(&record, &out));
}

Test(ring, reader_within_the_ring_is_not_lapped, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    uint64_t seq = 0;
    while (ring_head(writer) < CAPACITY - CAPACITY / 8)
        publish_one(++seq);
    for (uint64_t i = 1; i <= seq; i++) {
        cr_assert_eq(read_next(), WEIR_OK);
        cr_assert_eq(record.seq, i);
    }
}

Test(ring, read_at_tells_the_kinds_of_absence_apart, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    uint64_t first = publish_one(1);
    uint64_t second = publish_one(2);
    cr_assert_eq(ring_read_at(&reader, first, &record, NULL), WEIR_OK);
    cr_assert_eq(record.seq, 1);
    cr_assert_eq(ring_read_at(&reader, RING_NO_POSITION, &record, NULL), WEIR_EMPTY);
    cr_assert_eq(ring_read_at(&reader, ring_head(writer), &record, NULL), WEIR_PENDING);
    cr_assert_eq(ring_read_at(&reader, second + 8, &record, NULL), WEIR_CORRUPT);
    cr_assert_eq(ring_read_at(&reader, second + 1, &record, NULL), WEIR_CORRUPT);
    cr_assert_eq(reader.position, 0, "the cursor stays");
    for (uint64_t seq = 3; ring_head(writer) <= CAPACITY; seq++)
        publish_one(seq);
    cr_assert_eq(ring_read_at(&reader, first, &record, NULL), WEIR_LAPPED);
}

Test(ring, full_buffer_consumes_nothing, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    publish_one(1);
    struct buffer small;
    buffer_init(&small, 7);
    cr_assert_eq(ring_read(&reader, &record, &small), WEIR_FULL);
    cr_assert_eq(small.bytes, 0);
    buffer_fini(&small);
    cr_assert_eq(read_next(), WEIR_OK);
    cr_assert_eq(record.seq, 1);
}

Test(ring, largest_record_fits_and_one_byte_more_does_not, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    static char frame[CAPACITY];
    memset(frame, 'f', sizeof frame);
    uint64_t bytes_max = ring_record_bytes_max(writer);
    cr_assert_leq(bytes_max, CAPACITY / RING_RECORD_SHARE);
    struct ring_record sent = {.previous_position = RING_NO_POSITION};
    uint64_t before = ring_head(writer);
    cr_assert_eq(ring_append(writer, &sent, span_of(frame, bytes_max + 1), (struct span){0}, NULL),
                 WEIR_TOO_LARGE);
    cr_assert_eq(ring_append(writer, &sent, span_of(frame, bytes_max), span_of("x", 1), NULL),
                 WEIR_TOO_LARGE);
    cr_assert_eq(ring_append(writer, &sent, span_of(frame, SIZE_MAX), span_of("x", 1), NULL),
                 WEIR_TOO_LARGE);
    cr_assert_eq(ring_append(writer, &sent, span_of(frame, 1), span_of("x", SIZE_MAX), NULL),
                 WEIR_TOO_LARGE);
    cr_assert_eq(ring_head(writer), before);
    for (unsigned i = 0; i < 50; i++) {
        size_t id_bytes = i % 9;
        publish_one(i + 1);
        cr_assert_eq(read_next(), WEIR_OK);
        cr_assert_eq(ring_append(writer, &sent, span_of(frame, bytes_max - id_bytes),
                                 span_of(frame, id_bytes), NULL),
                     WEIR_OK, "what is not too large fits after a publish");
        ring_publish(writer);
        cr_assert_eq(read_next(), WEIR_OK);
        cr_assert_eq(out.bytes, bytes_max);
    }
}

/* An unpublished batch stops at half the ring; nothing of it is lost, and a reader at the head gets
 * it all. */
Test(ring, unpublished_batch_is_bounded, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    static struct made_record made;
    for (unsigned round = 0; round < 20; round++) {
        uint64_t first = record.seq + 1, seq = first;
        enum weir_status status;
        bool has_room;
        do {
            make_record(&made, seq, RING_NO_POSITION);
            has_room = ring_has_room(writer, made.frame_bytes + made.id_bytes);
            status = append_made(&made, seq, RING_NO_POSITION);
            cr_assert(status == WEIR_OK || !has_room, "what has room is not refused");
            seq += status == WEIR_OK;
        } while (status == WEIR_OK);
        cr_assert_eq(status, WEIR_FULL);
        cr_assert_leq(ring_head(writer) - ring_published(&reader), CAPACITY / 2);
        cr_assert_eq(read_next(), WEIR_EMPTY);
        cr_assert(!has_room);
        ring_publish(writer);
        cr_assert(ring_has_room(writer, ring_record_bytes_max(writer)));
        cr_assert_not(ring_has_room(writer, ring_record_bytes_max(writer) + 1));
        for (uint64_t i = first; i < seq; i++) {
            cr_assert_eq(read_next(), WEIR_OK);
            cr_assert_eq(record.seq, i);
            cr_assert(is_as_made(&record, &out));
        }
        cr_assert_eq(read_next(), WEIR_EMPTY);
    }
}

/* Random damage anywhere in the ring's bytes: any status, but no access outside the ring, no record
 * longer than the writer can have made, and no endless loop (ASan build). */
static void read_damaged(uint64_t seed)
{
    uint64_t random = seed;
    uint64_t seq = 0, bytes, corrupt = 0;
    _Atomic uint64_t *words =
        (_Atomic uint64_t *)(void *)(segment_ring(&segment, &bytes) + sizeof(struct ring_header));
    for (unsigned round = 0; round < 3000; round++) {
        uint64_t positions[8];
        for (unsigned i = 0; i < 8; i++)
            positions[i] = publish_one(++seq);
        for (unsigned i = 0; i < 8; i++) {
            random = mix(random);
            uint64_t at = positions[random % 8] % CAPACITY / 8 + (random >> 8) % 16;
            uint64_t value = random >> 60 == 0
                                 ? random << 20
                                 : words[at % (CAPACITY / 8)] ^ 1ull << (random >> 40) % 64;
            words[at % (CAPACITY / 8)] = value;
        }
        for (unsigned i = 0; i < 8; i++) {
            buffer_clear(&out);
            enum weir_status at_status = ring_read_at(&reader, positions[i], &record, &out);
            cr_assert(at_status == WEIR_OK || at_status == WEIR_CORRUPT);
            cr_assert_leq(out.bytes, CAPACITY / RING_RECORD_SHARE);
        }
        enum weir_status status;
        unsigned reads = 0;
        while ((status = read_next()) == WEIR_OK)
            cr_assert_leq(++reads, CAPACITY / sizeof(struct ring_slot));
        cr_assert(status == WEIR_EMPTY || status == WEIR_CORRUPT);
        corrupt += status == WEIR_CORRUPT;
        ring_reader_seek_head(&reader);
    }
    cr_assert_gt(corrupt, 0);
}

Test(ring, damaged_ring_is_read_without_harm, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    read_damaged(test_seed());
}

/* Seeds with which a slot's length and its frame's were damaged alike, and a record of more than
 * the writer's share was handed out. */
Test(ring, damage_found_1, .init = open_ring, .fini = close_ring, .timeout = HANG_SECONDS)
{
    read_damaged(1795293051);
}

Test(ring, damage_found_2, .init = open_ring, .fini = close_ring, .timeout = HANG_SECONDS)
{
    read_damaged(1795293168);
}

Test(ring, impossible_position_is_corrupt, .init = open_ring, .fini = close_ring,
     .timeout = HANG_SECONDS)
{
    publish_one(1);
    reader.position = ring_head(writer) + 8;
    cr_assert_eq(read_next(), WEIR_CORRUPT);
    reader.position = 4;
    cr_assert_eq(read_next(), WEIR_CORRUPT);
}

/* ---- real processes ---- */

enum { STRESS_READERS = 4, STRESS_STOPPED = 1, STRESS_KILLED = 2, STRESS_SLOW = 3 };

struct stress_line {
    _Atomic uint64_t records;
    _Atomic uint64_t laps;
    _Atomic uint64_t records_since_lap;
    _Atomic uint64_t ready;
    uint8_t padding[CACHE_LINE - 4 * 8];
};

/* In the child: returns only when something is wrong; the code says what. No assertions here. */
static int stress_read(int segment_fd, unsigned index, struct stress_line *line)
{
    struct segment mine;
    struct ring_reader ring;
    struct ring_record seen;
    struct buffer bytes;
    buffer_init(&bytes, RING_BYTES);
    if (segment_attach(&mine, dup(segment_fd), NULL) != WEIR_OK ||
        ring_reader_attach(&ring, &mine) != WEIR_OK)
        return 10;
    uint64_t last = 0, last_position = 0;
    bool is_gap_allowed = true;
    atomic_store(&line->ready, 1);
    for (;;) {
        buffer_clear(&bytes);
        enum weir_status status = ring_read(&ring, &seen, &bytes);
        if (status == WEIR_EMPTY)
            continue;
        if (status == WEIR_LAPPED) {
            is_gap_allowed = true;
            atomic_fetch_add(&line->laps, 1);
            atomic_store(&line->records_since_lap, 0);
            continue;
        }
        if (status != WEIR_OK)
            return 11;
        if (!is_as_made(&seen, &bytes))
            return 12; /* torn */
        if (is_gap_allowed ? seen.seq <= last : seen.seq != last + 1)
            return 13; /* lost, repeated or out of order without being told */
        if (!is_gap_allowed && seen.previous_position != last_position)
            return 14;
        last = seen.seq;
        last_position = seen.position;
        is_gap_allowed = false;
        atomic_fetch_add(&line->records_since_lap, 1);
        atomic_fetch_add(&line->records, 1);
        if (index == STRESS_SLOW && seen.seq % 256 == 0)
            (void)usleep(2000);
        /* A walk backwards at the edge of what is there. */
        if (seen.seq % 64 == 0) {
            struct ring_record back;
            for (uint64_t at = seen.previous_position, steps = 0;
                 at != RING_NO_POSITION && steps < 200; steps++) {
                buffer_clear(&bytes);
                status = ring_read_at(&ring, at, &back, &bytes);
                if (status == WEIR_LAPPED)
                    break;
                if (status != WEIR_OK)
                    return 15;
                if (!is_as_made(&back, &bytes) || back.seq != last - 1 - steps)
                    return 16;
                at = back.previous_position;
            }
        }
    }
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* The stopped one also behind its last stop. */
static bool all_read_on(const struct stress_line *lines, unsigned stops)
{
    for (unsigned i = 0; i < STRESS_READERS; i++)
        if (i != STRESS_KILLED && atomic_load(&lines[i].records_since_lap) == 0)
            return false;
    return atomic_load(&lines[STRESS_STOPPED].laps) >= stops;
}

/* Four readers while the writer runs: one as fast as it can, one stopped and continued again and
 * again, one killed, one slow. Nothing may be torn, lost or repeated without LAPPED, and the
 * stopped one must go on correctly after each lap. Readers run until killed at the end; one that
 * exits by itself has found a fault. */
Test(ring, processes_that_stop_or_die_never_see_a_torn_record, .init = open_ring,
     .fini = close_ring, .timeout = HANG_SECONDS)
{
    struct stress_line *lines = mmap(NULL, STRESS_READERS * sizeof *lines, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(lines, MAP_FAILED);
    pid_t pids[STRESS_READERS];
    for (unsigned i = 0; i < STRESS_READERS; i++) {
        pids[i] = fork();
        cr_assert_geq(pids[i], 0);
        if (pids[i] == 0)
            _exit(stress_read(segment.fd, i, &lines[i]));
    }
    uint64_t give_up_ms = now_ms() + 1000 * HANG_SECONDS / 2;
    for (unsigned i = 0; i < STRESS_READERS; i++)
        while (atomic_load(&lines[i].ready) == 0 && now_ms() < give_up_ms)
            usleep(1000);

    static struct made_record made;
    uint64_t seq = 0, previous = RING_NO_POSITION, started = now_ms(), stopped_at = 0;
    unsigned stops = 0;
    bool is_killed = false, is_stopped = false;
    /* At least 2.5 s, and until each role has had its turn; the last condition only bounds a hang. */
    while (now_ms() - started < 2500 || is_stopped || stops < 3 || !is_killed) {
        if (now_ms() > give_up_ms)
            break;
        /* Some bursts lap everybody, most do not. */
        unsigned burst = mix(seq) % 8 == 0 ? 64 : 8;
        for (unsigned batch = 0; batch < burst; batch++) {
            for (unsigned i = 0; i < 1 + seq % 4; i++) {
                cr_assert_eq(append_made(&made, ++seq, previous), WEIR_OK);
                previous = made.record.position;
            }
            ring_publish(writer);
        }
        if (!is_stopped && atomic_load(&lines[STRESS_STOPPED].laps) >= stops &&
            atomic_load(&lines[STRESS_STOPPED].records_since_lap) > 0) {
            kill(pids[STRESS_STOPPED], SIGSTOP);
            is_stopped = true;
            stopped_at = ring_head(writer);
        } else if (is_stopped && ring_head(writer) - stopped_at > 3 * CAPACITY) {
            kill(pids[STRESS_STOPPED], SIGCONT);
            is_stopped = false;
            stops++;
        }
        if (!is_killed && now_ms() - started > 1000 &&
            atomic_load(&lines[STRESS_KILLED].records) > 0) {
            kill(pids[STRESS_KILLED], SIGKILL);
            is_killed = true;
        }
        /* A breath now and then, so that with few processors readers also run beside the writer. */
        usleep(200);
    }
    /* Slowly on, until every living reader has read without being lapped; the bound is for a hang. */
    for (unsigned i = 0; now_ms() < give_up_ms && (i < 100 || !all_read_on(lines, stops)); i++) {
        cr_assert_eq(append_made(&made, ++seq, previous), WEIR_OK);
        previous = made.record.position;
        ring_publish(writer);
        usleep(1000);
    }
    for (unsigned i = 0; i < STRESS_READERS; i++) {
        int state = 0;
        kill(pids[i], SIGKILL);
        cr_assert_eq(waitpid(pids[i], &state, 0), pids[i]);
        fprintf(stderr, "reader %u: records=%llu laps=%llu\n", i,
                (unsigned long long)lines[i].records, (unsigned long long)lines[i].laps);
        cr_expect(WIFSIGNALED(state), "reader %u ended by itself with code %d", i,
                  WEXITSTATUS(state));
        cr_expect_gt(lines[i].records, 0);
    }
    cr_expect(is_killed);
    cr_expect_geq(stops, 3);
    cr_expect_geq(lines[STRESS_STOPPED].laps, 3, "each stop laps it");
    cr_expect_gt(lines[STRESS_STOPPED].records_since_lap, 0, "it goes on after the lap");
    munmap(lines, STRESS_READERS * sizeof *lines);
}

#include "gateway/trail.h"

#include <criterion/criterion.h>

#include "tests/store_fixture.h"

TestSuite(trail, .timeout = HANG_SECONDS);

enum { EVENT_BYTES = 8, EVENTS = 3000000 };

static uint64_t position_of(uint64_t seq)
{
    return seq * EVENT_BYTES;
}

static void expect_close(const struct trail *trail, uint64_t seq, uint64_t distance)
{
    struct trail_mark mark = trail_find(trail, seq);
    cr_assert_geq(mark.seq, seq);
    cr_assert_leq(mark.seq - seq, distance, "%lu for %lu", (unsigned long)mark.seq,
                  (unsigned long)seq);
    cr_assert_eq(mark.position, position_of(mark.seq));
}

/* Goal: whatever is still in the ring is close to a mark, however many events the group has had. Method:
 * note events in order, with a ring that holds a part of them, and ask for places in it. */
Test(trail, what_is_in_the_ring_is_close_to_a_mark)
{
    static const uint64_t rings[] = {1000, 50000, 900000};
    for (unsigned i = 0; i < sizeof rings / sizeof rings[0]; i++) {
        struct trail trail = {0};
        uint64_t random = fixture_seed("trail");
        uint64_t ring_bytes = rings[i] * EVENT_BYTES;
        for (uint64_t seq = 1; seq <= EVENTS; seq++) {
            struct ring_record record = {.epoch = 5, .seq = seq, .position = position_of(seq)};
            uint64_t end = position_of(seq);
            trail_note(&trail, 1, &record, end > ring_bytes ? end - ring_bytes : 0);
            if (seq % 1000 != 0)
                continue;
            uint64_t held = seq < rings[i] ? seq : rings[i];
            expect_close(&trail, seq - fixture_random(&random) % held, TRAIL_STRIDE - 1);
        }
        cr_assert_eq(trail.newest.seq, EVENTS);
        cr_assert_leq(trail.mark_count, rings[i] / TRAIL_STRIDE * 4 + TRAIL_MARKS_MIN,
                      "the table is for what the ring holds");
        trail_fini(&trail);
    }
}

/* A walk downwards, cut into pieces, goes on where the last one has ended. */
Test(trail, a_walk_leaves_marks_to_go_on_from)
{
    enum { PIECE = 1000, MANY = 800000 };
    struct trail trail = {0};
    trail_begin(&trail, 1, 5, (struct trail_mark){MANY, position_of(MANY)});
    uint64_t walked = 0;
    struct trail_mark at = trail_find(&trail, 1);
    for (; at.seq > TRAIL_STRIDE; at = trail_find(&trail, 1)) {
        for (unsigned i = 0; i < PIECE && at.seq > 0; i++, at.seq--, walked++)
            trail_pass(&trail, (struct trail_mark){at.seq, position_of(at.seq)}, 0);
        cr_assert_lt(walked, 2 * MANY);
    }
    expect_close(&trail, 1, TRAIL_STRIDE - 1);
    expect_close(&trail, MANY / 2, TRAIL_STRIDE - 1);
    trail_fini(&trail);
}

/* Another ring or another epoch: nothing that was known holds. What the feed reads late is no step back. */
Test(trail, another_life_or_epoch_begins_anew)
{
    struct trail trail = {0};
    struct ring_record record = {.epoch = 5};
    for (record.seq = 1; record.seq <= 1000; record.seq++) {
        record.position = position_of(record.seq);
        trail_note(&trail, 1, &record, 0);
    }
    expect_close(&trail, 300, TRAIL_STRIDE - 1);
    trail.lost_seq = 10;
    trail_begin(&trail, 1, 5, (struct trail_mark){900, position_of(900)});
    cr_assert_eq(trail.newest.seq, 1000);
    cr_assert_eq(trail.lost_seq, 10);
    trail_begin(&trail, 1, 6, (struct trail_mark){400, 77});
    cr_assert_eq(trail_find(&trail, 300).seq, 400);
    cr_assert_eq(trail_find(&trail, 300).position, 77);
    cr_assert_eq(trail.lost_seq, 0);
    record.seq = 5;
    trail_note(&trail, 1, &record, 0); /* of epoch 5 */
    cr_assert_eq(trail.epoch, 6);
    cr_assert_eq(trail.newest.seq, 400);
    cr_assert(trail_is_known(&trail, 1));
    cr_assert_not(trail_is_known(&trail, 2));
    trail_note(&trail, 2, &record, 0);
    cr_assert_eq(trail.epoch, 5);
    cr_assert_eq(trail.newest.seq, 5);
    trail_fini(&trail);
}

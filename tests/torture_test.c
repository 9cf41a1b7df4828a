/* What the crash campaign takes for true and for false: a model of requests and answers, and what a
 * server has after a crash, changed by hand in one place. */
#include <criterion/criterion.h>

#include "tests/torture/damage.h"
#include "tests/torture/fault_plan.h"
#include "tests/torture/world.h"

static struct world world;
static struct seen seen;
static struct world_findings findings;

static void setup(void)
{
    cr_assert(world_init(&world, 4711, true));
    world_begin(&world);
    findings = (struct world_findings){0};
}

static void teardown(void)
{
    world_fini(&world);
    seen_fini(&seen);
}

TestSuite(torture, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static void ask(unsigned lane, unsigned count)
{
    for (unsigned index = 0; index < count; index++)
        cr_assert_not_null(world_ask(&world, lane));
}

static void acknowledge(unsigned lane, unsigned count)
{
    for (unsigned index = 0; index < count; index++)
        cr_assert(world_answer(&world, lane, 0, true));
}

/* What a server has that has applied the first `count` requests of a lane, its events included;
 * refused ones were not. */
static void serve(unsigned lane, size_t count)
{
    const struct world_lane *asked = &world.lanes[lane];
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++) {
        struct seen_group *is = &seen.groups[lane * WORLD_LANE_GROUPS + group];
        memcpy(is->words, asked->state.words[group], sizeof is->words);
        is->seq = asked->state.seqs[group];
        is->epoch = 77;
        is->event_first = seen.event_count;
        for (size_t index = 0; index < count; index++) {
            const struct world_request *request = &asked->requests[index];
            uint64_t *word = &is->words[request->item];
            if (request->group != group || request->state == WORLD_REFUSED ||
                (request->kind == WORLD_DELETE && *word == WORLD_ABSENT))
                continue;
            struct seen_event event = {.seq = ++is->seq,
                                       .epoch = 77,
                                       .stamp = 1000 + is->seq,
                                       .kind = request->kind,
                                       .item = request->item,
                                       .word = request->token};
            if (request->kind == WORLD_DELETE)
                event.word = *word;
            if (request->kind == WORLD_COUNT)
                event.word = *word == WORLD_ABSENT ? (WORLD_COUNT_BIT | 1) : *word + 1;
            if (request->kind != WORLD_SEND)
                *word = request->kind == WORLD_DELETE ? WORLD_ABSENT : event.word;
            cr_assert(seen_add_event(&seen, &event));
        }
        is->event_count = seen.event_count - is->event_first;
        for (unsigned item = 0; item < WORLD_ITEMS; item++)
            is->item_count += is->words[item] != WORLD_ABSENT;
    }
}

/* A group of lane 0 that has an item with a token. */
static struct seen_group *group_with_item(unsigned *item)
{
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
        for (*item = WORLD_COUNTERS; *item < WORLD_ITEMS; (*item)++)
            if (seen.groups[group].words[*item] != WORLD_ABSENT)
                return &seen.groups[group];
    cr_assert_fail("no item was written");
    return NULL;
}

static struct seen_group *group_with_events(void)
{
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
        if (seen.groups[group].event_count > 3)
            return &seen.groups[group];
    cr_assert_fail("no group has events");
    return NULL;
}

/* Any prefix that has everything acknowledged is as good as another. */
Test(torture, every_prefix_behind_the_last_acknowledged_request_is_true)
{
    for (size_t applied = 30; applied <= 50; applied++) {
        world_begin(&world);
        seen_clear(&seen);
        ask(0, 50);
        acknowledge(0, 30);
        serve(0, applied);
        cr_expect(world_check(&world, &seen, &findings), "%zu: %s", applied, findings.sentences[0]);
    }
}

Test(torture, an_acknowledged_write_that_is_missing_is_lost)
{
    ask(0, 50);
    acknowledge(0, 40);
    serve(0, 39);
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_LOST], 0);
}

/* A server without seq is held to values alone. */
Test(torture, an_older_value_is_lost_without_seq_as_well)
{
    world.has_seq = false;
    ask(1, 200);
    acknowledge(1, 200);
    serve(1, 150);
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_LOST], 0);
}

Test(torture, what_was_kept_before_has_to_stay)
{
    unsigned item;
    ask(0, 60);
    acknowledge(0, 60);
    serve(0, 60);
    cr_assert(world_check(&world, &seen, &findings));
    struct seen_group *group = group_with_item(&item);
    group->words[item] = WORLD_ABSENT;
    group->event_count = 0;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_LOST], 0);
}

Test(torture, a_value_nobody_has_written_is_noticed)
{
    unsigned item = 0;
    ask(0, 60);
    acknowledge(0, 60);
    serve(0, 60);
    struct span value = world_value(&world, 7);
    cr_assert_eq(world_word(&world, WORLD_COUNTERS, value), 7);
    value.bytes -= 3;
    struct seen_group *group = group_with_item(&item);
    group->words[item] = world_word(&world, item, value);
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_HALF], 0);
}

/* One letter of the middle is enough. */
Test(torture, a_value_with_one_changed_byte_is_no_value)
{
    for (uint64_t token = 1; token < 500; token++) {
        world.next_token = token + 1;
        struct span value = world_value(&world, token);
        char *text = malloc(value.bytes);
        memcpy(text, value.data, value.bytes);
        cr_expect_eq(world_word(&world, WORLD_COUNTERS, span_of(text, value.bytes)), token);
        text[token % value.bytes] ^= 1;
        cr_expect_eq(world_word(&world, WORLD_COUNTERS, span_of(text, value.bytes)), WORLD_BROKEN,
                     "token %llu", (unsigned long long)token);
        free(text);
    }
}

Test(torture, a_seq_beyond_what_was_sent_is_a_gap)
{
    ask(0, 20);
    acknowledge(0, 20);
    serve(0, 20);
    seen.groups[1].seq += 1;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_GAP], 0);
}

Test(torture, events_that_leave_one_out_are_a_gap)
{
    ask(0, 60);
    acknowledge(0, 60);
    serve(0, 60);
    struct seen_group *group = group_with_events();
    seen.events[group->event_first + 1].seq++;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_GAP], 0);
}

Test(torture, events_in_another_order_than_the_requests_are_noticed)
{
    ask(0, 60);
    acknowledge(0, 60);
    serve(0, 60);
    struct seen_group *group = group_with_events();
    struct seen_event *events = &seen.events[group->event_first];
    struct seen_event swap = events[0];
    events[0] = events[1];
    events[1] = swap;
    events[0].seq = 1;
    events[1].seq = 2;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_ORDER], 0);
}

/* Later writes of a lane cannot be there without the earlier ones, whatever their groups. */
Test(torture, a_group_that_is_ahead_of_the_lane_is_no_prefix)
{
    ask(0, 60);
    acknowledge(0, 10);
    serve(0, 60);
    struct seen ahead = seen;
    seen = (struct seen){0};
    serve(0, 10);
    struct seen_group *group = &seen.groups[2];
    *group = ahead.groups[2];
    group->event_count = 0;
    cr_assert_not(world_check(&world, &seen, &findings));
    seen_fini(&ahead);
}

Test(torture, another_epoch_is_noticed)
{
    ask(0, 30);
    acknowledge(0, 30);
    serve(0, 30);
    cr_assert(world_check(&world, &seen, &findings));
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++) {
        seen.groups[group].epoch++;
        seen.groups[group].event_count = 0;
    }
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_EPOCH], 0);
}

/* Where a level may lose what it has acknowledged, the seqs of that are given again: in a higher epoch. */
Test(torture, less_than_was_acknowledged_needs_a_higher_epoch)
{
    for (unsigned risen = 0; risen < 2; risen++) {
        world_begin(&world);
        seen_clear(&seen);
        findings = (struct world_findings){0};
        ask(0, 40);
        acknowledge(0, 40);
        serve(0, 40);
        cr_assert(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);
        seen_clear(&seen);
        ask(0, 40);
        acknowledge(0, 40);
        serve(0, 5);
        for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++) {
            seen.groups[group].epoch += risen;
            seen.groups[group].event_count = 0;
        }
        world.may_lose = world.may_renew = true;
        cr_assert_eq(world_check(&world, &seen, &findings), risen == 1, "%s",
                     findings.sentences[0]);
        cr_assert_eq(findings.counts[VERDICT_EPOCH], findings.total);
    }
}

Test(torture, what_a_reader_was_shown_has_to_be_there)
{
    ask(0, 30);
    acknowledge(0, 10);
    serve(0, 20);
    seen.groups[0].shown_seq = seen.groups[0].seq + 1;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_SHOWN], 0);
}

/* A refused write that is followed by an acknowledged one is surely not there; at the end it may be. */
Test(torture, a_refused_write_is_not_there)
{
    ask(0, 30);
    acknowledge(0, 10);
    for (unsigned index = 0; index < 5; index++)
        cr_assert(world_answer(&world, 0, 0, false));
    acknowledge(0, 15);
    serve(0, 30);
    cr_expect(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);

    world_begin(&world);
    seen_clear(&seen);
    ask(0, 30);
    acknowledge(0, 10);
    serve(0, 20); /* as if all of them were applied */
    for (unsigned index = 0; index < 5; index++)
        cr_assert(world_answer(&world, 0, 0, false));
    acknowledge(0, 15);
    cr_assert_not(world_check(&world, &seen, &findings));
}

Test(torture, refused_writes_at_the_end_may_be_there)
{
    ask(0, 30);
    acknowledge(0, 10);
    serve(0, 25);
    for (unsigned index = 0; index < 20; index++)
        cr_assert(world_answer(&world, 0, 0, false));
    cr_expect(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);
}

/* What was applied and not answered is asked again, and must change nothing; the rest is applied now. */
Test(torture, what_is_asked_again_is_applied_once)
{
    ask(0, 40);
    acknowledge(0, 10);
    serve(0, 25);
    cr_assert(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);
    struct world_state before = world.lanes[0].state;
    unsigned again = 0;
    while (world_ask_again(&world, 0))
        again++;
    cr_assert_eq(again, 30);
    for (unsigned index = 0; index < 30; index++)
        cr_expect_eq(world.lanes[0].requests[index].is_done, index < 15);
    acknowledge(0, 15);
    /* Those fifteen have changed nothing. */
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
        seen.groups[group].event_count = 0;
    cr_expect(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);
    cr_expect_eq(memcmp(&before, &world.lanes[0].state, sizeof before), 0);
}

Test(torture, what_is_carried_out_once_more_is_noticed)
{
    ask(0, 40);
    acknowledge(0, 10);
    serve(0, 40);
    cr_assert(world_check(&world, &seen, &findings), "%s", findings.sentences[0]);
    while (world_ask_again(&world, 0))
        continue;
    seen.groups[0].seq++;
    seen.groups[0].event_count = 0;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_TWICE], 0);
}

Test(torture, a_stranger_is_noticed)
{
    seen.strangers = 1;
    cr_assert_not(world_check(&world, &seen, &findings));
    cr_assert_gt(findings.counts[VERDICT_INVENTED], 0);
}

/* A plan strikes at the call it names, once or from then on. */
Test(torture, a_plan_strikes_where_it_says)
{
    struct fault_plan plan;
    cr_assert(fault_plan_init(&plan, "write@3=eio,sync@2=enospc+,seed=9"));
    for (unsigned number = 1; number < 6; number++) {
        cr_expect_eq(fault_plan_next(&plan, FAULT_POINT_WRITE),
                     number == 3 ? FAULT_ACTION_EIO : FAULT_ACTION_NONE);
        cr_expect_eq(fault_plan_next(&plan, FAULT_POINT_SYNC),
                     number >= 2 ? FAULT_ACTION_ENOSPC : FAULT_ACTION_NONE);
        cr_expect_eq(fault_plan_next(&plan, FAULT_POINT_RENAME), FAULT_ACTION_NONE);
    }
    cr_expect_not(fault_plan_init(&plan, "write@0=eio"));
    cr_expect_not(fault_plan_init(&plan, "write=eio"));
    cr_expect_not(fault_plan_init(&plan, "nothing@1=eio"));
    cr_expect_not(fault_plan_init(&plan, "write@1=nothing"));
}

/* What is chosen to be spoiled is always something a start would read. */
Test(torture, damage_is_done_to_bytes_in_use)
{
    static struct image image;
    char text[] = "used";
    image.count = 2;
    image.files[0] = (struct image_file){.name = "lock", .data = text, .bytes = 4};
    image.files[1] = (struct image_file){
        .name = "log-00000000000000000001", .data = text, .bytes = 4, .used_bytes = 4};
    uint64_t random = 1;
    for (unsigned count = 0; count < 1000; count++) {
        struct damage damage;
        cr_assert(
            image_choose(&image, count % 2 ? DAMAGE_FLIP : DAMAGE_TRUNCATE, &random, &damage));
        cr_assert_eq(damage.file, 1);
        cr_assert_lt(damage.offset, 4);
    }
}

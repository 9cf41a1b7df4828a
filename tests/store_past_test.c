/* A store that comes back: walks, restore and replay, one by one and against the store they came
 * from. */
#include <criterion/criterion.h>

#include "shm/store_layout.h"
#include "tests/store_fixture.h"

static const struct host_options small_host = {
    .ring_bytes = 4ull << 20,
    .store_bytes = 16ull << 20,
    .store = {.items_max = 1000, .groups_max = 100, .empty_groups_max = 100, .is_logged = true},
};

static struct host host;
static struct buffer out;

static void open_one(struct host *opened, const struct host_options *options)
{
    struct weir_error error = {0};
    cr_assert_eq(host_open(opened, options, &error), WEIR_OK, "%s", error.text);
}

static void setup(void)
{
    open_one(&host, &small_host);
    buffer_init(&out, 1 << 20);
}

static void teardown(void)
{
    host_close(&host);
    buffer_fini(&out);
}

static void reopen(uint64_t empty_groups_max)
{
    struct host_options options = small_host;
    options.store.empty_groups_max = empty_groups_max;
    host_close(&host);
    open_one(&host, &options);
}

static void assert_whole(const struct host *checked)
{
    struct weir_error error = {0};
    cr_assert_eq(store_check(checked->store, &error), WEIR_OK, "%s", error.text);
}

static struct store_key key_of(const char *stream, const char *group, const char *item)
{
    return (struct store_key){span_text(stream), span_text(group), span_text(item)};
}

static struct store_past past_of(uint64_t epoch, uint64_t seq)
{
    return (struct store_past){.epoch = epoch,
                               .seq = seq,
                               .timestamp_ms = 1600000000000ull + 10 * seq,
                               .next_ms = 1600000000000ull + 10 * seq + 2};
}

static struct store_change set_text(const char *group, const char *item, const char *value)
{
    struct store_key key = key_of("s", group, item);
    struct store_change change;
    cr_assert_eq(host_set(&host, &key, span_text(value), &change), WEIR_OK);
    return change;
}

static void delete_item(const char *group, const char *item)
{
    struct store_key key = key_of("s", group, item);
    struct store_change change;
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
}

static void assert_list(const char *group, const char *expected, uint64_t seq, uint64_t epoch)
{
    struct store_reader *reader = store_reader_open(&host.segment, NULL);
    struct store_snapshot snapshot;
    buffer_clear(&out);
    cr_assert_eq(store_snapshot(reader, SPAN_LITERAL("s"), span_text(group), NULL, &snapshot, &out),
                 WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), span_text(expected)), "%.*s is not %s", (int)out.bytes,
              out.data, expected);
    cr_assert_eq(snapshot.seq, seq);
    cr_assert_eq(snapshot.epoch, epoch);
    store_reader_close(reader);
}

TestSuite(store_past, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

/* ---- walk ---- */

/* The whole rest of the walk as text: G<group>@<seq> and <item>=<value>, behind each other. */
static const char *walk_text(void)
{
    static char text[4096];
    size_t bytes = 0;
    struct store_walk_entry entry;
    text[0] = 0;
    while (store_walk_next(host.store, &entry) == WEIR_OK) {
        if (entry.is_group)
            bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "G%.*s@%llu ",
                                      (int)entry.group.bytes, entry.group.data,
                                      (unsigned long long)entry.numbers.seq);
        else
            bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "%.*s=%.*s ",
                                      (int)entry.item.bytes, entry.item.data,
                                      (int)entry.value.bytes, entry.value.data);
        cr_assert_lt(bytes, sizeof text);
    }
    return text;
}

static void walk_steps(unsigned steps)
{
    struct store_walk_entry entry;
    while (steps-- > 0)
        cr_assert_eq(store_walk_next(host.store, &entry), WEIR_OK);
}

Test(store_past, walk_of_an_empty_store_ends_at_once)
{
    struct store_walk_entry entry;
    store_walk_begin(host.store);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_EMPTY);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_EMPTY);
}

/* Groups without items are remembered, so they are walked too. */
Test(store_past, walk_yields_groups_before_their_items_and_empty_ones)
{
    struct store_walk_entry entry;
    struct store_change change = set_text("a", "x", "1");
    set_text("b", "y", "2");
    set_text("a", "z", "3");
    set_text("e", "y", "4");
    delete_item("e", "y");
    store_walk_begin(host.store);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_OK);
    cr_assert(entry.is_group);
    cr_assert(span_equal(entry.stream, span_text("s")));
    cr_assert_eq(entry.numbers.epoch, change.group.epoch);
    cr_assert_eq(entry.numbers.seq, 2);
    cr_assert_gt(entry.numbers.next_ms, entry.numbers.timestamp_ms);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_OK);
    cr_assert_eq(entry.created_seq, 1);
    cr_assert_eq(entry.modified_seq, 1);
    cr_assert_str_eq(walk_text(), "z=3 Gb@1 y=2 Ge@2 ");
    store_walk_begin(host.store);
    cr_assert_str_eq(walk_text(), "Ga@2 x=1 z=3 Gb@1 y=2 Ge@2 ");
}

Test(store_past, walk_goes_on_behind_what_is_written)
{
    set_text("a", "x", "1");
    set_text("a", "y", "2");
    set_text("a", "z", "3");
    store_walk_begin(host.store);
    walk_steps(2);           /* y is next */
    set_text("a", "x", "4"); /* behind the walk */
    set_text("a", "y", "5");
    set_text("a", "w", "6");
    cr_assert_str_eq(walk_text(), "y=5 z=3 w=6 ");
    store_walk_begin(host.store);
    walk_steps(2);
    delete_item("a", "y");
    delete_item("a", "z");
    set_text("a", "x", "7");
    delete_item("a", "x");
    set_text("a", "x", "8");
    cr_assert_str_eq(walk_text(), "w=6 x=8 ");
    store_walk_begin(host.store);
    walk_steps(1);
    delete_item("a", "w");
    delete_item("a", "x");
    set_text("b", "n", "9");
    cr_assert_str_eq(walk_text(), "Gb@1 n=9 ");
}

/* The group, and the stream, the walk stands at are dropped. */
Test(store_past, walk_survives_the_drop_of_its_group)
{
    struct store_key other = key_of("t", "u", "v");
    struct store_change change;
    for (unsigned round = 0; round < 3; round++) {
        reopen(0);
        change = set_text("a", "x", "1");
        store_group_committed(host.store, change.group.offset, change.group.seq, 0);
        change = set_text("b", "y", "2");
        store_group_committed(host.store, change.group.offset, change.group.seq, 0);
        cr_assert_eq(host_set(&host, &other, span_text("3"), &change), WEIR_OK);
        store_walk_begin(host.store);
        walk_steps(round);
        const char *left[] = {"a", "b"};
        for (unsigned i = 0; i < 2; i++) {
            struct store_key key = key_of("s", left[i], i == 0 ? "x" : "y");
            cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
            store_group_committed(host.store, change.group.offset, change.group.seq, 0);
            /* A write that makes no group empty drops one that is. */
            key = key_of("t", "u", "v");
            cr_assert_eq(host_send(&host, &key, &change), WEIR_OK);
        }
        struct store_figures figures;
        store_figures(host.store, &figures);
        cr_assert_eq(figures.empty_groups, 0);
        cr_assert_str_eq(walk_text(), "Gu@3 v=3 ");
        assert_whole(&host);
    }
    store_walk_begin(host.store);
    walk_steps(1);
    store_walk_cancel(host.store);
    cr_assert_str_eq(walk_text(), "");
}

/* So is the stream behind it, before the walk goes on. */
Test(store_past, walk_survives_the_drop_of_its_stream)
{
    static const char *const streams[] = {"a", "b", "c"};
    struct store_change change;
    reopen(0);
    for (unsigned i = 0; i < 3; i++) {
        struct store_key key = key_of(streams[i], "g", "x");
        cr_assert_eq(host_set(&host, &key, span_text("1"), &change), WEIR_OK);
    }
    store_walk_begin(host.store);
    for (unsigned i = 0; i < 2; i++) {
        struct store_key key = key_of(streams[i], "g", "x");
        cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
        store_group_committed(host.store, change.group.offset, change.group.seq, 0);
        key = key_of("c", "g", "x");
        cr_assert_eq(host_send(&host, &key, &change), WEIR_OK);
    }
    cr_assert_str_eq(walk_text(), "Gg@3 x=1 ");
    assert_whole(&host);
}

/* ---- replay ---- */

Test(store_past, replay_takes_the_numbers_of_the_record)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_past past = past_of(7, 5);
    struct store_change change;
    struct store_walk_entry entry;
    cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
    cr_assert(!change.existed);
    cr_assert_eq(change.group.seq, 5);
    cr_assert_eq(change.group.epoch, 7);
    cr_assert_eq(change.group.timestamp_ms, past.timestamp_ms);
    cr_assert_eq(change.group.next_ms, past.next_ms);
    past = past_of(7, 6);
    cr_assert_eq(store_replay_set(host.store, &key, span_text("2"), &past, &change), WEIR_OK);
    cr_assert(change.existed);
    cr_assert(span_equal(change.old_value, span_text("1")));
    cr_assert(span_equal(change.new_value, span_text("2")));
    past = past_of(7, 7);
    cr_assert_eq(store_replay_touch(host.store, &key, &past, &change), WEIR_OK);
    cr_assert_eq(change.group.seq, 7);
    cr_assert(span_equal(change.id_escaped, span_text("i")));
    past = past_of(7, 8);
    key = key_of("s", "g", "missing");
    cr_assert_eq(store_replay_delete(host.store, &key, &past, &change), WEIR_OK);
    cr_assert(!change.existed);
    cr_assert_eq(change.group.seq, 8);
    store_recovered(host.store, 0);
    assert_list("g", "[2]", 8, 7);
    store_walk_begin(host.store);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_OK);
    cr_assert_eq(store_walk_next(host.store, &entry), WEIR_OK);
    cr_assert_eq(entry.created_seq, 5);
    cr_assert_eq(entry.modified_seq, 6);
    key = key_of("s", "g", "i");
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_OK);
    assert_whole(&host);
    /* The next write goes on from there. */
    change = set_text("g", "j", "3");
    cr_assert_eq(change.group.seq, 9);
    cr_assert_eq(change.group.epoch, 7);
    assert_whole(&host);
}

Test(store_past, replay_passes_over_what_the_group_has)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_past past = past_of(7, 5);
    struct store_change change;
    cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
    cr_assert_eq(store_replay_set(host.store, &key, span_text("2"), &past, &change), WEIR_EMPTY);
    past = past_of(7, 4);
    cr_assert_eq(store_replay_delete(host.store, &key, &past, &change), WEIR_EMPTY);
    past = past_of(6, 99);
    cr_assert_eq(store_replay_touch(host.store, &key, &past, &change), WEIR_EMPTY);
    store_recovered(host.store, 0);
    assert_list("g", "[1]", 5, 7);
    assert_whole(&host);
}

Test(store_past, a_higher_epoch_empties_the_group)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_past past = past_of(7, 5);
    struct store_change change;
    cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
    past = past_of(7, 6);
    key = key_of("s", "g", "j");
    cr_assert_eq(store_replay_set(host.store, &key, span_text("2"), &past, &change), WEIR_OK);
    past = past_of(9, 1);
    cr_assert_eq(store_replay_set(host.store, &key, span_text("3"), &past, &change), WEIR_OK);
    cr_assert(!change.existed);
    store_recovered(host.store, 0);
    assert_list("g", "[3]", 1, 9);
    assert_whole(&host);
}

Test(store_past, replay_refuses_what_cannot_be)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_past good = past_of(7, 5);
    struct store_past bad[] = {good, good, good, good, good};
    struct store_change change;
    bad[0].epoch = 0;
    bad[1].seq = 0;
    bad[2].next_ms = bad[2].timestamp_ms;
    bad[3].next_ms = UINT64_MAX;
    bad[4].epoch = UINT64_MAX;
    for (unsigned i = 0; i < 5; i++) {
        const struct store_walk_entry entry = {.is_group = true, .numbers = bad[i]};
        cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &bad[i], &change),
                     WEIR_INVALID);
        cr_assert_eq(store_restore(host.store, &entry), WEIR_INVALID);
    }
    key.item = span_text("\xff");
    cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &good, &change), WEIR_INVALID);
    cr_assert_eq(store_replay_set(host.store, &key, (struct span){0}, &good, &change),
                 WEIR_INVALID);
    store_recovered(host.store, 0);
    assert_whole(&host);
}

/* Limits of number are for new writes; more memory than the queue of retired blocks has entries for
 * comes back on the way. */
Test(store_past, replay_is_not_limited_by_number)
{
    struct store_change change;
    struct store_key key;
    char name[16];
    for (unsigned i = 0; i < 3000; i++) {
        struct store_past past = past_of(7, i + 1);
        (void)snprintf(name, sizeof name, "%u", i % 2000);
        key = key_of("s", "g", name);
        cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
    }
    for (unsigned i = 0; i < 600000; i++) {
        struct store_past past = past_of(7, i + 3001);
        cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
    }
    store_recovered(host.store, 0);
    assert_whole(&host);
    key = key_of("s", "g", "new");
    cr_assert_eq(store_set(host.store, &key, span_text("1"), host.now_ms, &change), WEIR_FULL);
}

/* What is replayed may be put into the new ring, for those who resume. */
Test(store_past, replayed_events_can_be_published)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_change change;
    struct reader attached;
    struct store_group state;
    for (uint64_t seq = 5; seq < 8; seq++) {
        struct store_past past = past_of(7, seq);
        cr_assert_eq(store_replay_set(host.store, &key, span_text("1"), &past, &change), WEIR_OK);
        cr_assert_eq(host_publish(&host, &change, ENVELOPE_UPDATE, key.item, change.new_value),
                     WEIR_OK);
    }
    store_recovered(host.store, 0);
    cr_assert_eq(host_attach(&host, &attached, NULL), WEIR_OK);
    struct store_reader *reader = store_reader_open(&host.segment, &attached);
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_OK);
    cr_assert_eq(state.seq, 7);
    cr_assert_eq(state.newest_position, store_group_newest_position(host.store, state.offset));
    cr_assert_neq(state.newest_position, RING_NO_POSITION);
    set_text("g", "j", "2");
    assert_whole(&host);
    store_reader_close(reader);
    reader_detach(&attached);
}

/* ---- restore ---- */

static enum weir_status restore_group(const char *group, uint64_t epoch, uint64_t seq)
{
    const struct store_walk_entry entry = {.is_group = true,
                                           .stream = SPAN_LITERAL("s"),
                                           .group = span_text(group),
                                           .numbers = past_of(epoch, seq)};
    return store_restore(host.store, &entry);
}

static enum weir_status restore_item(const char *item, const char *value, uint64_t created_seq,
                                     uint64_t modified_seq)
{
    const struct store_walk_entry entry = {.item = span_text(item),
                                           .value = span_text(value),
                                           .created_seq = created_seq,
                                           .modified_seq = modified_seq};
    return store_restore(host.store, &entry);
}

Test(store_past, restore_refuses_what_no_walk_yields)
{
    struct store_key key = key_of("s", "g", "z");
    struct store_past past = past_of(7, 10);
    struct store_change change;
    cr_assert_eq(restore_item("i", "1", 1, 1), WEIR_INVALID);
    cr_assert_eq(restore_group("g", 7, 9), WEIR_OK);
    cr_assert_eq(restore_item("i", "1", 3, 2), WEIR_INVALID);
    cr_assert_eq(restore_item("i", "1", 0, 2), WEIR_INVALID);
    cr_assert_eq(restore_item("i", "", 3, 3), WEIR_INVALID);
    cr_assert_eq(restore_item("\xff", "1", 3, 3), WEIR_INVALID);
    cr_assert_eq(restore_item("i", "1", 3, 5), WEIR_OK);
    cr_assert_eq(restore_item("j", "2", 3, 6), WEIR_INVALID);
    cr_assert_eq(restore_item("j", "2", 4, 6), WEIR_OK);
    cr_assert_eq(restore_group("g", 7, 9), WEIR_INVALID);
    cr_assert_eq(restore_item("k", "2", 5, 5), WEIR_INVALID);
    cr_assert_eq(restore_group("g", 6, 99), WEIR_INVALID);
    cr_assert_eq(store_replay_set(host.store, &key, span_text("3"), &past, &change), WEIR_OK);
    cr_assert_eq(restore_item("k", "2", 11, 11), WEIR_INVALID);
    store_recovered(host.store, 0);
    assert_list("g", "[1,2,3]", 10, 7);
    assert_whole(&host);
}

/* Removed and made again while the walk went on: it counts where it was met last. */
Test(store_past, restored_item_moves_to_the_end)
{
    cr_assert_eq(restore_group("g", 7, 9), WEIR_OK);
    cr_assert_eq(restore_item("i", "1", 3, 5), WEIR_OK);
    cr_assert_eq(restore_item("j", "2", 4, 6), WEIR_OK);
    cr_assert_eq(restore_item("i", "3", 9, 9), WEIR_OK);
    store_recovered(host.store, 0);
    assert_list("g", "[2,3]", 9, 7);
    assert_whole(&host);
}

/* The only item moves: the group is without items for a moment, at a bound of none. */
Test(store_past, restored_group_is_not_dropped_meanwhile)
{
    struct store_figures figures;
    reopen(0);
    cr_assert_eq(restore_group("g", 7, 9), WEIR_OK);
    cr_assert_eq(restore_item("i", "1", 3, 5), WEIR_OK);
    cr_assert_eq(restore_item("i", "3", 9, 9), WEIR_OK);
    cr_assert_eq(restore_group("h", 8, 2), WEIR_OK);
    store_recovered(host.store, 0);
    assert_list("g", "[3]", 9, 7);
    store_figures(host.store, &figures);
    cr_assert_eq(figures.empty_groups, 0);
    assert_whole(&host);
}

/* Forgotten and made again while the walk went on: it comes a second time in a higher epoch. */
Test(store_past, restored_group_comes_again_in_a_higher_epoch)
{
    cr_assert_eq(restore_group("g", 7, 9), WEIR_OK);
    cr_assert_eq(restore_item("i", "1", 3, 5), WEIR_OK);
    cr_assert_eq(restore_item("j", "1", 4, 5), WEIR_OK);
    cr_assert_eq(restore_group("g", 8, 2), WEIR_OK);
    cr_assert_eq(restore_item("i", "2", 1, 2), WEIR_OK);
    store_recovered(host.store, 0);
    assert_list("g", "[2]", 2, 8);
    assert_whole(&host);
}

/* ---- epochs and stamps after it ---- */

static struct store_change write_new_group(const char *group)
{
    struct store_key key = key_of("s", group, "i");
    struct store_change change;
    cr_assert_eq(host_set(&host, &key, span_text("1"), &change), WEIR_OK);
    return change;
}

Test(store_past, epochs_and_stamps_are_above_all_that_were)
{
    struct store_reader *reader;
    struct store_group state;
    uint64_t far_ms = host.now_ms + 500000;
    const struct store_walk_entry entry = {.is_group = true,
                                           .stream = SPAN_LITERAL("s"),
                                           .group = SPAN_LITERAL("g"),
                                           .numbers = {.epoch = HOST_GENERATION + 1000,
                                                       .seq = 4,
                                                       .timestamp_ms = far_ms,
                                                       .next_ms = far_ms + 1}};
    cr_assert_eq(store_restore(host.store, &entry), WEIR_OK);
    store_recovered(host.store, HOST_GENERATION + 10);
    cr_assert_eq(store_epoch_base(host.store), HOST_GENERATION + 1002);
    reader = store_reader_open(&host.segment, NULL);
    cr_assert_eq(store_read_group(reader, span_text("s"), span_text("new"), &state), WEIR_EMPTY);
    cr_assert_eq(state.epoch, HOST_GENERATION + 1001);
    cr_assert_geq(state.next_ms - 1, far_ms + 1);
    struct store_change change = write_new_group("new");
    cr_assert_eq(change.group.epoch, HOST_GENERATION + 1001);
    cr_assert_geq(change.group.timestamp_ms, state.next_ms);
    store_reader_close(reader);
}

Test(store_past, floor_counts_when_nothing_came_back)
{
    store_recovered(host.store, HOST_GENERATION + 10);
    cr_assert_eq(write_new_group("new").group.epoch, HOST_GENERATION + 10);
    reopen(100);
    uint64_t base = store_epoch_base(host.store);
    store_recovered(host.store, 5);
    cr_assert_eq(store_epoch_base(host.store), base);
    cr_assert_lt(write_new_group("new").group.epoch, base);
}

/* ---- groups that go on in another epoch ---- */

static void replay_text(uint64_t epoch, uint64_t seq, const char *item, const char *value)
{
    struct store_key key = key_of("s", "g", item);
    struct store_past past = past_of(epoch, seq);
    struct store_change change;
    cr_assert_eq(store_replay_set(host.store, &key, span_text(value), &past, &change), WEIR_OK);
}

Test(store_past, a_renewed_group_keeps_its_items_and_its_seq)
{
    replay_text(7, 1, "a", "1");
    replay_text(7, 2, "b", "2");
    store_recovered(host.store, HOST_GENERATION + 10);
    uint64_t epoch = store_epoch_base(host.store);
    store_renew(host.store, epoch);
    assert_list("g", "[1,2]", 2, epoch);
    cr_assert_gt(store_epoch_base(host.store), epoch);
    cr_assert_gt(write_new_group("new").group.epoch, epoch);
    struct store_change change = set_text("g", "c", "3");
    cr_assert_eq(change.group.epoch, epoch);
    cr_assert_eq(change.group.seq, 3);
    store_renew(host.store, epoch);
    assert_list("g", "[1,2,3]", 3, epoch);
    assert_whole(&host);
}

/* The first record of a renewed group goes on with its seq; that of another life of it does not. */
Test(store_past, a_higher_epoch_keeps_the_items_when_the_seq_goes_on)
{
    replay_text(7, 1, "a", "1");
    replay_text(7, 2, "b", "2");
    replay_text(9, 3, "a", "3");
    store_recovered(host.store, 0);
    assert_list("g", "[3,2]", 3, 9);
    reopen(100);
    replay_text(7, 1, "a", "1");
    replay_text(7, 2, "b", "2");
    replay_text(9, 1, "a", "3");
    store_recovered(host.store, 0);
    assert_list("g", "[3]", 1, 9);
    assert_whole(&host);
}

/* ---- against the store it came from ---- */

enum { STREAMS = 2, GROUPS = 3, ITEMS = 6, WRITES_MAX = 2000, KEPT_MAX = 4000, SEEDS = 400 };

enum write_kind { WRITE_SET, WRITE_DELETE, WRITE_TOUCH };

struct write {
    enum write_kind kind;
    unsigned stream, group, item, value, old_value;
    bool existed;
    struct store_past past;
};

struct kept {
    bool is_group;
    unsigned stream, group, item, value;
    struct store_past numbers;
    uint64_t created_seq, modified_seq;
};

struct walk_run {
    struct write writes[WRITES_MAX];
    unsigned write_count;
    struct kept kept[KEPT_MAX];
    unsigned kept_count;
    unsigned first_write; /* after the walk's begin */
    unsigned end_write;   /* after its end */
};

static struct walk_run run;

/* Items that differ in their escaped form, too. */
static struct store_key model_key(unsigned stream, unsigned group, unsigned item, char names[3][16])
{
    (void)snprintf(names[0], 16, "stream %u", stream);
    (void)snprintf(names[1], 16, "group\n%u", group);
    (void)snprintf(names[2], 16, item % 2 == 0 ? "item %u" : "\"%u", item);
    return key_of(names[0], names[1], names[2]);
}

static unsigned name_number(struct span name)
{
    return (unsigned)(name.data[name.bytes - 1] - '0');
}

static struct span model_value(unsigned number, char text[32])
{
    return span_of(text, (size_t)snprintf(text, 32, "%u", number));
}

static unsigned value_number(struct span value)
{
    char text[32] = {0};
    memcpy(text, value.data, value.bytes);
    return (unsigned)strtoul(text, NULL, 10);
}

static void model_write(struct host *written, uint64_t roll)
{
    struct write write = {.stream = (unsigned)(roll % STREAMS),
                          .group = (unsigned)((roll >> 8) % GROUPS),
                          .item = (unsigned)((roll >> 16) % ITEMS),
                          .value = run.write_count + 1};
    unsigned dice = (unsigned)((roll >> 24) % 100);
    write.kind = dice < 45 ? WRITE_SET : dice < 92 ? WRITE_DELETE : WRITE_TOUCH;
    char names[3][16], value[32];
    struct store_key key = model_key(write.stream, write.group, write.item, names);
    struct store_change change;
    enum weir_status status = WEIR_OK;
    if (write.kind == WRITE_SET)
        status = host_set(written, &key, model_value(write.value, value), &change);
    else if (write.kind == WRITE_DELETE)
        status = host_delete(written, &key, &change);
    else
        status = host_send(written, &key, &change);
    if (status == WEIR_EMPTY)
        return;
    cr_assert_eq(status, WEIR_OK);
    if (written->store != NULL && (roll >> 32) % 2 == 0) /* else a later one commits it as well */
        store_group_committed(written->store, change.group.offset, change.group.seq,
                              store_group_newest_position(written->store, change.group.offset));
    write.existed = change.existed;
    write.old_value = change.old_value.data != NULL ? value_number(change.old_value) : 0;
    write.past = (struct store_past){.epoch = change.group.epoch,
                                     .seq = change.group.seq,
                                     .timestamp_ms = change.group.timestamp_ms,
                                     .next_ms = change.group.next_ms};
    cr_assert_lt(run.write_count, WRITES_MAX);
    run.writes[run.write_count++] = write;
    written->now_ms += roll >> 61;
    if (roll >> 60 == 0)
        store_turn_end(written->store);
}

static struct kept keep(const struct store_walk_entry *entry, unsigned stream, unsigned group)
{
    struct kept kept = {.is_group = entry->is_group, .stream = stream, .group = group};
    if (entry->is_group) {
        kept.stream = name_number(entry->stream);
        kept.group = name_number(entry->group);
        kept.numbers = entry->numbers;
        return kept;
    }
    kept.item = name_number(entry->item);
    kept.value = value_number(entry->value);
    kept.created_seq = entry->created_seq;
    kept.modified_seq = entry->modified_seq;
    return kept;
}

/* False: the walk has ended. */
static bool keep_next(struct host *walked, struct kept *entries, unsigned *count)
{
    struct store_walk_entry entry;
    enum weir_status status = store_walk_next(walked->store, &entry);
    if (status == WEIR_EMPTY)
        return false;
    cr_assert_eq(status, WEIR_OK);
    cr_assert(entry.is_group || *count > 0);
    cr_assert_lt(*count, KEPT_MAX);
    entries[*count] = keep(&entry, *count > 0 ? entries[*count - 1].stream : 0,
                           *count > 0 ? entries[*count - 1].group : 0);
    ++*count;
    return true;
}

static void restore_kept(struct host *restored, const struct kept *kept)
{
    char names[3][16], value[32];
    struct store_key key = model_key(kept->stream, kept->group, kept->item, names);
    struct store_walk_entry entry = {.is_group = kept->is_group, .numbers = kept->numbers};
    if (kept->is_group) {
        entry.stream = key.stream;
        entry.group = key.group;
    } else {
        entry.item = key.item;
        entry.value = model_value(kept->value, value);
        entry.created_seq = kept->created_seq;
        entry.modified_seq = kept->modified_seq;
    }
    cr_assert_eq(store_restore(restored->store, &entry), WEIR_OK);
}

static void replay_write(struct host *restored, const struct write *write, bool is_exact)
{
    char names[3][16], value[32];
    struct store_key key = model_key(write->stream, write->group, write->item, names);
    struct store_change change;
    enum weir_status status;
    if (write->kind == WRITE_SET)
        status = store_replay_set(restored->store, &key, model_value(write->value, value),
                                  &write->past, &change);
    else if (write->kind == WRITE_DELETE)
        status = store_replay_delete(restored->store, &key, &write->past, &change);
    else
        status = store_replay_touch(restored->store, &key, &write->past, &change);
    if (!is_exact && status == WEIR_EMPTY)
        return;
    cr_assert_eq(status, WEIR_OK);
    cr_assert_eq(change.group.seq, write->past.seq);
    cr_assert_eq(change.group.epoch, write->past.epoch);
    cr_assert_eq(change.group.timestamp_ms, write->past.timestamp_ms);
    cr_assert_eq(change.group.next_ms, write->past.next_ms);
    if (!is_exact)
        return;
    cr_assert_eq(change.existed, write->existed);
    if (write->old_value != 0)
        cr_assert_eq(value_number(change.old_value), write->old_value);
}

static unsigned walk_all(struct host *walked, struct kept *entries)
{
    unsigned count = 0;
    store_walk_begin(walked->store);
    while (keep_next(walked, entries, &count))
        continue;
    return count;
}

static bool is_same(const struct kept *a, const struct kept *b)
{
    return a->is_group == b->is_group && a->stream == b->stream && a->group == b->group &&
           a->item == b->item && a->value == b->value && a->numbers.epoch == b->numbers.epoch &&
           a->numbers.seq == b->numbers.seq && a->numbers.timestamp_ms == b->numbers.timestamp_ms &&
           a->numbers.next_ms == b->numbers.next_ms && a->created_seq == b->created_seq &&
           a->modified_seq == b->modified_seq;
}

/* Of each group: numbers and items. What one of the two has forgotten had no items. */
static void compare_groups(struct host *source, struct host *restored, uint64_t seed)
{
    struct store_reader *readers[2] = {store_reader_open(&source->segment, NULL),
                                       store_reader_open(&restored->segment, NULL)};
    struct buffer texts[2];
    for (unsigned i = 0; i < 2; i++)
        buffer_init(&texts[i], 1 << 20);
    for (unsigned at = 0; at < STREAMS * GROUPS; at++) {
        char names[3][16];
        struct store_key key = model_key(at % STREAMS, at / STREAMS, 0, names);
        struct store_group states[2];
        struct store_snapshot snapshot;
        enum weir_status statuses[2];
        for (unsigned i = 0; i < 2; i++) {
            buffer_clear(&texts[i]);
            statuses[i] = store_read_group(readers[i], key.stream, key.group, &states[i]);
            cr_assert_eq(
                store_snapshot(readers[i], key.stream, key.group, NULL, &snapshot, &texts[i]),
                WEIR_OK);
        }
        cr_assert(span_equal(buffer_span(&texts[0]), buffer_span(&texts[1])), "seed %llu",
                  (unsigned long long)seed);
        if (statuses[0] == WEIR_OK && statuses[1] == WEIR_OK) {
            cr_assert_eq(states[0].epoch, states[1].epoch);
            cr_assert_eq(states[0].seq, states[1].seq);
            cr_assert_eq(states[0].next_ms, states[1].next_ms);
        } else {
            cr_assert_eq(texts[0].bytes, 2);
        }
        if (statuses[0] == WEIR_OK && statuses[1] == WEIR_EMPTY)
            cr_assert_gt(states[1].epoch, states[0].epoch);
    }
    for (unsigned i = 0; i < 2; i++) {
        buffer_fini(&texts[i]);
        store_reader_close(readers[i]);
    }
}

static void compare_walks(struct host *source, struct host *restored, uint64_t seed)
{
    static struct kept entries[2][KEPT_MAX];
    unsigned counts[2] = {walk_all(source, entries[0]), walk_all(restored, entries[1])};
    cr_assert_eq(counts[0], counts[1], "seed %llu", (unsigned long long)seed);
    for (unsigned i = 0; i < counts[0]; i++)
        cr_assert(is_same(&entries[0][i], &entries[1][i]), "seed %llu, entry %u",
                  (unsigned long long)seed, i);
}

static void write_some(struct host *written, uint64_t *random, unsigned writes_max)
{
    for (uint64_t left = fixture_random(random) % (writes_max + 1); left > 0; left--)
        model_write(written, fixture_random(random));
}

static void run_seed(uint64_t seed)
{
    uint64_t random = seed;
    struct host source, restored;
    struct host_options options = small_host;
    /* Remembering everything, walks agree to the order of groups; else groups are forgotten, and
     * made again in new epochs. */
    bool forgets = seed % 2 == 0;
    options.store.empty_groups_max = forgets ? seed / 2 % 3 : 100;
    open_one(&source, &options);
    options.generation = seed % 3 == 0 ? HOST_GENERATION - 1000 : HOST_GENERATION + 1000;
    open_one(&restored, &options);
    run.write_count = run.kept_count = 0;
    write_some(&source, &random, 80);
    store_walk_begin(source.store);
    run.first_write = run.write_count;
    do
        write_some(&source, &random, (unsigned)(seed % 5 * 4));
    while (keep_next(&source, run.kept, &run.kept_count));
    run.end_write = run.write_count;
    write_some(&source, &random, 60);
    for (unsigned i = 0; i < run.kept_count; i++)
        restore_kept(&restored, &run.kept[i]);
    for (unsigned i = run.first_write; i < run.write_count; i++)
        replay_write(&restored, &run.writes[i], i >= run.end_write);
    store_recovered(restored.store, store_epoch_base(source.store));
    assert_whole(&source);
    assert_whole(&restored);
    compare_groups(&source, &restored, seed);
    if (!forgets)
        compare_walks(&source, &restored, seed);
    restored.now_ms = source.now_ms;
    write_some(&restored, &random, 60);
    assert_whole(&restored);
    host_close(&source);
    host_close(&restored);
}

/* Random writes between random slices of a walk; then what the walk has yielded, and all writes since
 * it began, make the same store again. */
Test(store_past, walk_and_log_make_the_same_store, .timeout = HANG_SECONDS)
{
    uint64_t seed = fixture_seed("store_past/walk_and_log_make_the_same_store");
    for (unsigned i = 0; i < SEEDS; i++)
        run_seed(seed + i);
}

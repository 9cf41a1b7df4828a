/* The store in one process, against a naive model, and its rules one by one. */
#include <criterion/criterion.h>

#include "shm/json.h"
#include "shm/store_layout.h"
#include "tests/store_fixture.h"

static const struct host_options small_host = {
    .ring_bytes = 4ull << 20,
    .store_bytes = 32ull << 20,
    .store = {.items_max = 1000000, .groups_max = 100000, .empty_groups_max = 1000},
};

static struct host host;
static struct store_reader *reader;
static struct buffer out;

static void open_host(const struct host_options *options)
{
    struct weir_error error = {0};
    cr_assert_eq(host_open(&host, options, &error), WEIR_OK, "%s", error.text);
    reader = store_reader_open(&host.segment, NULL);
    cr_assert_not_null(reader);
    buffer_init(&out, 64ul << 20);
}

static void setup(void)
{
    open_host(&small_host);
}

static void teardown(void);

/* Instead of the one setup() has opened. */
static void open_other_host(const struct host_options *options)
{
    teardown();
    open_host(options);
}

static void teardown(void)
{
    store_reader_close(reader);
    host_close(&host);
    buffer_fini(&out);
}

static void assert_whole(void)
{
    struct weir_error error = {0};
    cr_assert_eq(store_check(host.store, &error), WEIR_OK, "%s", error.text);
}

static struct store_key key_of(const char *stream, const char *group, const char *item)
{
    return (struct store_key){span_text(stream), span_text(group), span_text(item)};
}

static struct store_change set_text(const char *stream, const char *group, const char *item,
                                    const char *value)
{
    struct store_key key = key_of(stream, group, item);
    struct store_change change;
    cr_assert_eq(host_set(&host, &key, span_text(value), &change), WEIR_OK);
    return change;
}

static void assert_out(const char *expected)
{
    cr_assert(span_equal(buffer_span(&out), span_text(expected)), "%.*s is not %s", (int)out.bytes,
              out.data, expected);
    buffer_clear(&out);
}

static void assert_list(const char *stream, const char *group, const char *expected)
{
    struct store_snapshot snapshot;
    cr_assert_eq(store_snapshot(reader, span_text(stream), span_text(group), NULL, &snapshot, &out),
                 WEIR_OK);
    assert_out(expected);
}

TestSuite(store, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

/* Overwriting keeps an item's place; delete and set moves it to the end (PROTOCOL 3). */
Test(store, list_keeps_insertion_order)
{
    struct store_key key = key_of("s", "g", "a");
    struct store_change change;
    set_text("s", "g", "a", "1");
    set_text("s", "g", "b", "2");
    set_text("s", "g", "c", "3");
    change = set_text("s", "g", "a", "4");
    cr_assert(change.existed);
    cr_assert(span_equal(change.old_value, span_text("1")));
    cr_assert(span_equal(change.new_value, span_text("4")));
    assert_list("s", "g", "[4,2,3]");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert(span_equal(change.old_value, span_text("4")));
    cr_assert_eq(change.group.seq, 5);
    assert_list("s", "g", "[2,3]");
    set_text("s", "g", "a", "5");
    assert_list("s", "g", "[2,3,5]");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_EMPTY);
    assert_whole();
}

Test(store, stream_and_group_are_kept_apart)
{
    set_text("a", "b:c", "i", "1");
    set_text("a:b", "c", "i", "2");
    set_text("a:b", "", "i", "3");
    set_text("", "a:b", "i", "4");
    assert_list("a", "b:c", "[1]");
    assert_list("a:b", "c", "[2]");
    assert_list("a:b", "", "[3]");
    cr_assert_eq(store_list_all(reader, &out), WEIR_OK);
    assert_out(
        "{\"stream\":[{\"id\":\"\",\"groups\":[\"a:b\"]},{\"id\":\"a\",\"groups\":[\"b:c\"]},"
        "{\"id\":\"a:b\",\"groups\":[\"\",\"c\"]}],\"count\":3}");
    cr_assert_eq(store_list_groups(reader, span_text("a:b"), &out), WEIR_OK);
    assert_out("[\"\",\"c\"]");
    cr_assert_eq(store_list_groups(reader, span_text("b"), &out), WEIR_OK);
    assert_out("[]");
}

Test(store, stored_null_is_not_missing)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_snapshot snapshot;
    set_text("s", "g", "i", "null");
    cr_assert_eq(store_read_item(reader, &key, &out), WEIR_OK);
    assert_out("null");
    cr_assert_eq(store_snapshot(reader, key.stream, key.group, &key.item, &snapshot, &out),
                 WEIR_OK);
    cr_assert(snapshot.exists);
    assert_out("null");
    key.item = span_text("j");
    cr_assert_eq(store_read_item(reader, &key, &out), WEIR_EMPTY);
    cr_assert_eq(store_snapshot(reader, key.stream, key.group, &key.item, &snapshot, &out),
                 WEIR_OK);
    cr_assert_not(snapshot.exists);
    assert_out("null");
}

Test(store, limits_refuse_and_change_nothing)
{
    static char long_name[NAME_BYTES_MAX + 1];
    struct store_change change;
    struct store_key key = key_of("s", "g", "i");
    struct store_figures before, after;
    memset(long_name, 'x', sizeof long_name);
    set_text("s", "g", "first", "1");
    store_figures(host.store, &before);
    key.item = span_of(long_name, sizeof long_name);
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_TOO_LARGE);
    cr_assert_eq(store_read_item(reader, &key, &out), WEIR_TOO_LARGE);
    key.item = span_text("i");
    cr_assert_eq(host_set(&host, &key, span_of("1", VALUE_BYTES_MAX + 1ul), &change),
                 WEIR_TOO_LARGE);
    cr_assert_eq(host_set(&host, &key, (struct span){0}, &change), WEIR_INVALID);
    key.item = span_of("\xed\xa0\x80", 3);
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_INVALID);
    key = key_of("s", "\xff", "i");
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_INVALID);
    cr_assert_eq(host_send(&host, &key, &change), WEIR_INVALID);
    store_figures(host.store, &after);
    cr_assert_arr_eq(&before, &after, sizeof before);
    key = key_of("s", "g", "");
    key.item = span_of(long_name, NAME_BYTES_MAX);
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_OK);
    assert_whole();
}

Test(store, counts_are_limited)
{
    struct host_options options = small_host;
    options.store = (struct store_options){.items_max = 3, .groups_max = 2, .empty_groups_max = 5};
    open_other_host(&options);
    struct store_change change;
    set_text("s", "a", "i", "1");
    set_text("s", "b", "i", "1");
    struct store_key key = key_of("s", "c", "i");
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_FULL);
    cr_assert_eq(host_send(&host, &key, &change), WEIR_OK); /* an empty record is not counted */
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_FULL);
    set_text("s", "b", "j", "1");
    key = key_of("s", "b", "k");
    cr_assert_eq(host_set(&host, &key, SPAN_LITERAL("1"), &change), WEIR_FULL);
    set_text("s", "b", "j", "2");
    key.item = span_text("j");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    set_text("s", "b", "k", "1");
    assert_whole();
}

/* write n+1 is stamped max(now, next): 2 above, or 1 above once more than a second ahead of the
 * clock. */
Test(store, stamps_grow_strictly)
{
    uint64_t start = host.now_ms;
    struct store_change change = set_text("s", "g", "i", "1");
    cr_assert_eq(change.group.timestamp_ms, start);
    cr_assert_eq(change.group.next_ms, start + 2);
    uint64_t last = start;
    for (int i = 0; i < 2000; i++) {
        change = set_text("s", "g", "i", "1");
        cr_assert_gt(change.group.timestamp_ms, last);
        cr_assert_eq(change.group.timestamp_ms, last + (last > start + 1000 ? 1 : 2));
        last = change.group.timestamp_ms;
    }
    host.now_ms -= 500;
    cr_assert_eq(set_text("s", "g", "i", "1").group.timestamp_ms, last + 1);
    host.now_ms = last + 10000;
    cr_assert_eq(set_text("s", "g", "i", "1").group.timestamp_ms, host.now_ms);
}

Test(store, floor_is_below_all_stamps)
{
    struct store_group state;
    store_raise_floor(host.store, host.now_ms + 5000);
    cr_assert_eq(store_read_group(reader, span_text("s"), span_text("g"), &state), WEIR_EMPTY);
    uint64_t sync_ms = state.next_ms - 1;
    cr_assert_gt(sync_ms, host.now_ms + 5000);
    cr_assert_gt(set_text("s", "g", "i", "1").group.timestamp_ms, sync_ms);
    store_raise_floor(host.store, 0);
    cr_assert_gt(set_text("t", "g", "i", "1").group.timestamp_ms, sync_ms);
}

/* seq goes on over an empty group; a dropped record's next life has a higher epoch and later
 * stamps. */
Test(store, dropped_group_gets_a_higher_epoch)
{
    struct host_options options = small_host;
    options.store.empty_groups_max = 2;
    open_other_host(&options);
    struct store_key key = key_of("s", "g", "i");
    struct store_change change;
    struct store_group state;
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_EMPTY);
    cr_assert_eq(state.seq, 0);
    uint64_t epoch = state.epoch;
    cr_assert_eq(set_text("s", "g", "i", "1").group.epoch, epoch);
    host.now_ms += 100000;
    set_text("s", "g", "i", "1");
    host.now_ms -= 100000;
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    uint64_t stamp = change.group.timestamp_ms;
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_OK);
    cr_assert_eq(state.seq, 3);
    set_text("s", "g", "i", "1");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(change.group.seq, 5);
    cr_assert_eq(change.group.epoch, epoch);
    stamp = change.group.timestamp_ms;
    const char *others[] = {"a", "b"};
    for (int i = 0; i < 2; i++) {
        struct store_key other = key_of("s", others[i], "");
        other.item = (struct span){0};
        cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    }
    assert_whole();
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_EMPTY);
    cr_assert_gt(state.epoch, epoch);
    cr_assert_eq(state.seq, 0);
    cr_assert_gt(state.next_ms - 1, stamp);
    change = set_text("s", "g", "i", "1");
    cr_assert_eq(change.group.epoch, state.epoch);
    cr_assert_eq(change.group.seq, 1);
    cr_assert_gt(change.group.timestamp_ms, state.next_ms - 1);
}

/* The broker holds the handle of a group until its event is in the ring. */
Test(store, unpublished_group_is_not_dropped)
{
    struct host_options options = small_host;
    options.store.empty_groups_max = 0;
    open_other_host(&options);
    struct store_key key = key_of("s", "g", "i");
    struct store_change first, change;
    struct store_group state;
    cr_assert_eq(store_touch(host.store, &key, host.now_ms, &first), WEIR_OK);
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        struct store_key other = key_of("s", name, "i");
        cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    }
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_OK);
    cr_assert_eq(state.offset, first.group.offset);
    cr_assert_eq(host_publish(&host, &first, ENVELOPE_EVENT, key.item, SPAN_LITERAL("1")), WEIR_OK);
    struct store_key other = key_of("s", "x", "i");
    cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_EMPTY);
    assert_whole();
}

/* A full arena refuses and changes nothing; deleting makes room again. */
Test(store, full_arena_refuses_then_has_room_again, .timeout = HANG_SECONDS)
{
    struct host_options options = small_host;
    options.store_bytes = 16ull << 20;
    open_other_host(&options);
    static char value[3000];
    memset(value, '7', sizeof value);
    struct store_change change;
    uint64_t filled[2] = {0};
    for (int round = 0; round < 2; round++) {
        char name[24];
        enum weir_status status;
        for (uint64_t i = 0;; i++) {
            snprintf(name, sizeof name, "%llu", (unsigned long long)i);
            struct store_key key = key_of("s", "g", name);
            status = host_set(&host, &key, span_of(value, sizeof value), &change);
            if (status != WEIR_OK)
                break;
            filled[round]++;
            if (i % 64 == 0)
                store_turn_end(host.store);
        }
        cr_assert_eq(status, WEIR_FULL);
        store_turn_end(host.store);
        struct store_figures before, after;
        store_figures(host.store, &before);
        struct store_key fresh = key_of("new stream", "new group", "new item");
        cr_assert_eq(host_set(&host, &fresh, span_of(value, sizeof value), &change), WEIR_FULL);
        store_figures(host.store, &after);
        cr_assert_eq(before.arena_used_bytes, after.arena_used_bytes);
        cr_assert_eq(before.items, after.items);
        assert_whole();
        /* An update of an existing item needs a block as well, and gets it from what the last turn
         * retired. */
        for (uint64_t i = 0; i < filled[round]; i++) {
            snprintf(name, sizeof name, "%llu", (unsigned long long)i);
            struct store_key key = key_of("s", "g", name);
            cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
            if (i % 64 == 0)
                store_turn_end(host.store);
        }
        store_turn_end(host.store);
        store_turn_end(host.store);
        assert_whole();
    }
    cr_assert_gt(filled[0], 4000);
    cr_assert_geq(filled[1] + 64, filled[0]);
}

/* What was retired comes back: a store that is overwritten for ever does not grow. */
Test(store, overwriting_does_not_grow)
{
    struct store_figures first, last;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 100; i++) {
            char name[16], value[32];
            snprintf(name, sizeof name, "%d", i);
            snprintf(value, sizeof value, "[%d,%d]", round, i);
            set_text("s", "g", name, value);
        }
        store_turn_end(host.store);
        if (round == 5)
            store_figures(host.store, &first);
    }
    store_figures(host.store, &last);
    cr_assert_eq(first.arena_used_bytes, last.arena_used_bytes);
    assert_whole();
}

/* The old value stays readable until the end of the turn, even when every reader could be past it. */
Test(store, old_value_lives_until_the_turn_ends)
{
    set_text("s", "g", "i", "\"first\"");
    struct store_change change = set_text("s", "g", "i", "\"second\"");
    for (int i = 0; i < 1000; i++)
        set_text("s", "g", "i", "\"other\"");
    cr_assert(span_equal(change.old_value, span_text("\"first\"")));
    cr_assert(span_equal(change.new_value, span_text("\"second\"")));
    store_turn_end(host.store);
}

/* A snapshot begun before writes is finished from the ring: first PENDING, then the state at the
 * seq it has noted. */
Test(store, snapshot_catches_up_from_the_ring)
{
    struct store_snapshot_walk *walk;
    struct store_snapshot snapshot;
    struct store_change change;
    struct span stream = span_text("s"), group = span_text("g");
    set_text("s", "g", "a", "1");
    set_text("s", "g", "b", "2");
    cr_assert_eq(store_snapshot_begin(reader, stream, group, NULL, &walk), WEIR_OK);
    set_text("s", "g", "c", "3");
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 2); /* the end of the walk counts, not the end of the wait */
    assert_out("[1,2]");

    /* As if the writer had begun write 4 during the walk: its effects may be in the copy. */
    struct store_group state;
    cr_assert_eq(store_read_group(reader, stream, group, &state), WEIR_OK);
    uint64_t bytes;
    struct group_block *block =
        (struct group_block *)(void *)(segment_store(&host.segment, &bytes) + state.offset);
    atomic_store(&block->begun_seq, 7);
    cr_assert_eq(store_snapshot_begin(reader, stream, group, NULL, &walk), WEIR_OK);
    atomic_store(&block->begun_seq, 3);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    host.hold_ring = true;
    set_text("s", "g", "d", "4");
    struct store_key key = key_of("s", "g", "a");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    set_text("s", "g", "a", "6");
    set_text("s", "g", "b", "7");
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    cr_assert_eq(out.bytes, 0);
    set_text("s", "g", "z", "8");
    host.hold_ring = false;
    ring_publish(host.ring);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 7);
    cr_assert_eq(snapshot.item_count, 4);
    assert_out("[7,3,4,6]");

    /* The same for one item, and LAPPED when the ring has dropped what is needed. */
    key.item = span_text("b");
    atomic_store(&block->begun_seq, 9);
    cr_assert_eq(store_snapshot_begin(reader, stream, group, &key.item, &walk), WEIR_OK);
    atomic_store(&block->begun_seq, 8);
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 9);
    cr_assert_not(snapshot.exists);
    assert_out("null");
    atomic_store(&block->begun_seq, 10);
    cr_assert_eq(store_snapshot_begin(reader, stream, group, NULL, &walk), WEIR_OK);
    atomic_store(&block->begun_seq, 9);
    for (int i = 0; i < 60000; i++)
        set_text("s", "g", "b", "10");
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_LAPPED);
    assert_list("s", "g", "[3,4,6,8,10]");
}

/* A sync's stamp is above all it includes and below all that follows. */
Test(store, sync_stamp_is_between)
{
    struct store_snapshot snapshot;
    uint64_t last = 0;
    for (int i = 0; i < 100; i++) {
        host.now_ms += i % 3 == 0 ? 1 : 0;
        uint64_t stamp = set_text("s", "g", "i", "1").group.timestamp_ms;
        cr_assert_gt(stamp, last);
        cr_assert_eq(store_snapshot(reader, span_text("s"), span_text("g"), NULL, &snapshot, &out),
                     WEIR_OK);
        cr_assert_gt(snapshot.timestamp_ms, stamp);
        last = snapshot.timestamp_ms;
    }
}

/* ---- model ---- */

enum { MODEL_STREAMS = 5, MODEL_GROUPS = 6, MODEL_ITEMS = 24, MODEL_EMPTY_MAX = 4 };

struct model_group {
    bool has_record;
    uint64_t seq, epoch, next_ms, lowest_epoch;
    unsigned count;
    unsigned order[MODEL_ITEMS]; /* items in the list */
    unsigned value[MODEL_ITEMS];
};

static struct model_group model[MODEL_STREAMS][MODEL_GROUPS];
static unsigned empties[MODEL_STREAMS * MODEL_GROUPS + 1]; /* longest empty first */
static unsigned empty_count;
static struct span stream_names[MODEL_STREAMS], group_names[MODEL_GROUPS], item_names[MODEL_ITEMS];

static void name_things(void)
{
    static const struct {
        const char *text;
        size_t bytes;
    } odd[] = {{"", 0},     {"a:b", 3},    {"a", 1},          {"a\0b", 3},
               {"/", 1},    {"%2F%00", 6}, {"\"\\\n\x01", 4}, {"\xf0\x9f\x98\x80", 4},
               {"\0\0", 2}, {"b:c", 3},    {"a:b:c", 5},      {"\xc3\xa9", 2}};
    static char numbered[MODEL_ITEMS][200];
    for (unsigned i = 0; i < MODEL_ITEMS; i++) {
        /* Lengths around the word and class borders. */
        int bytes = snprintf(numbered[i], sizeof numbered[i], "%0*u", (int)(i * 7 % 150 + 1), i);
        item_names[i] = span_of(numbered[i], (size_t)bytes);
    }
    for (unsigned i = 0; i < 12; i++)
        item_names[i] = span_of(odd[i].text, odd[i].bytes);
    for (unsigned i = 0; i < MODEL_GROUPS; i++)
        group_names[i] = span_of(odd[(i * 5 + 1) % 12].text, odd[(i * 5 + 1) % 12].bytes);
    for (unsigned i = 0; i < MODEL_STREAMS; i++)
        stream_names[i] = span_of(odd[i * 2].text, odd[i * 2].bytes);
}

/* A value that says which write it is; its length covers small and large blocks. */
static struct span value_text(unsigned number)
{
    static char text[80000];
    unsigned bytes = number % 97 == 0 ? 70000 : number % 31 == 0 ? 20000 : number % 300 + 12;
    int digits = snprintf(text, sizeof text, "\"%u", number);
    memset(text + digits, 'v', bytes);
    text[digits + (int)bytes] = '"';
    return span_of(text, (size_t)digits + bytes + 1);
}

static int model_find(const struct model_group *group, unsigned item)
{
    for (unsigned i = 0; i < group->count; i++)
        if (group->order[i] == item)
            return (int)i;
    return -1;
}

static void empties_remove(unsigned index)
{
    for (unsigned i = 0; i < empty_count; i++)
        if (empties[i] == index) {
            memmove(&empties[i], &empties[i + 1], (empty_count - i - 1) * sizeof empties[0]);
            empty_count--;
            return;
        }
}

static void empties_trim(void)
{
    if (empty_count <= MODEL_EMPTY_MAX)
        return;
    struct model_group *group = &model[0][0] + empties[0];
    uint64_t lowest = group->epoch + 1;
    empties_remove(empties[0]);
    *group = (struct model_group){.lowest_epoch = lowest};
}

/* What every write does to the group's numbers, compared with what the store says. */
static void model_count(struct model_group *group, const struct store_change *change)
{
    if (!group->has_record) {
        cr_assert_geq(change->group.epoch, group->lowest_epoch);
        cr_assert_geq(change->group.timestamp_ms, host.now_ms);
        *group = (struct model_group){.has_record = true,
                                      .epoch = change->group.epoch,
                                      .next_ms = change->group.timestamp_ms};
    }
    uint64_t stamp = host.now_ms > group->next_ms ? host.now_ms : group->next_ms;
    group->seq++;
    group->next_ms = stamp + (stamp > host.now_ms + 1000 ? 1 : 2);
    cr_assert_eq(change->group.seq, group->seq);
    cr_assert_eq(change->group.epoch, group->epoch);
    cr_assert_eq(change->group.timestamp_ms, stamp);
    cr_assert_eq(change->group.next_ms, group->next_ms);
}

static void assert_escaped(struct span escaped, struct span name)
{
    char expected[2048];
    size_t bytes = json_escape(expected, name);
    cr_assert(span_equal(escaped, span_of(expected, bytes)));
}

static void model_set(unsigned s, unsigned g, unsigned item, unsigned number)
{
    struct model_group *group = &model[s][g];
    struct store_key key = {stream_names[s], group_names[g], item_names[item]};
    struct store_change change;
    int at = model_find(group, item);
    cr_assert_eq(host_set(&host, &key, value_text(number), &change), WEIR_OK);
    cr_assert_eq(change.existed, at >= 0);
    cr_assert(span_equal(change.new_value, value_text(number)));
    assert_escaped(change.id_escaped, key.item);
    assert_escaped(change.group.stream_escaped, key.stream);
    assert_escaped(change.group.group_escaped, key.group);
    model_count(group, &change);
    if (at >= 0) {
        cr_assert(span_equal(change.old_value, value_text(group->value[at])));
    } else {
        at = (int)group->count++;
        group->order[at] = item;
        if (group->count == 1)
            empties_remove(s * MODEL_GROUPS + g);
    }
    group->value[at] = number;
    cr_assert_eq(change.group.item_count, group->count);
}

static void model_delete(unsigned s, unsigned g, unsigned item)
{
    struct model_group *group = &model[s][g];
    struct store_key key = {stream_names[s], group_names[g], item_names[item]};
    struct store_change change;
    int at = model_find(group, item);
    cr_assert_eq(host_delete(&host, &key, &change), at < 0 ? WEIR_EMPTY : WEIR_OK);
    if (at < 0)
        return;
    cr_assert(span_equal(change.old_value, value_text(group->value[at])));
    assert_escaped(change.id_escaped, key.item);
    model_count(group, &change);
    size_t behind = group->count - (unsigned)at - 1;
    memmove(&group->order[at], &group->order[at + 1], behind * sizeof group->order[0]);
    memmove(&group->value[at], &group->value[at + 1], behind * sizeof group->value[0]);
    if (--group->count == 0) {
        empties[empty_count++] = s * MODEL_GROUPS + g;
        empties_trim();
    }
}

static void model_touch(unsigned s, unsigned g, unsigned item, bool with_id)
{
    struct model_group *group = &model[s][g];
    struct store_key key = {stream_names[s], group_names[g],
                            with_id ? item_names[item] : (struct span){0}};
    struct store_change change;
    cr_assert_eq(host_send(&host, &key, &change), WEIR_OK);
    cr_assert_eq(change.id_escaped.data != NULL, with_id);
    if (with_id)
        assert_escaped(change.id_escaped, key.item);
    if (!group->has_record)
        empties[empty_count++] = s * MODEL_GROUPS + g;
    model_count(group, &change);
    empties_trim();
}

static void model_look(unsigned s, unsigned g, unsigned item)
{
    const struct model_group *group = &model[s][g];
    struct store_key key = {stream_names[s], group_names[g], item_names[item]};
    struct store_snapshot snapshot;
    struct store_group state;
    struct span value;
    int at = model_find(group, item);
    enum weir_status expected = at < 0 ? WEIR_EMPTY : WEIR_OK;
    struct span text = at < 0 ? SPAN_LITERAL("null") : value_text(group->value[at]);
    buffer_clear(&out);
    cr_assert_eq(store_find(host.store, &key, &value), expected);
    cr_assert_eq(store_read_item(reader, &key, &out), expected);
    if (at >= 0) {
        cr_assert(span_equal(value, text));
        cr_assert(span_equal(buffer_span(&out), text));
    }
    buffer_clear(&out);
    cr_assert_eq(store_snapshot(reader, key.stream, key.group, &key.item, &snapshot, &out),
                 WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), text));
    cr_assert_eq(snapshot.seq, group->seq);
    cr_assert_eq(snapshot.exists, at >= 0);
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state),
                 group->has_record ? WEIR_OK : WEIR_EMPTY);
    cr_assert_eq(state.seq, group->seq);
    cr_assert_eq(state.item_count, group->count);
    cr_assert_eq(snapshot.epoch, state.epoch);
    cr_assert_eq(snapshot.timestamp_ms, state.next_ms - 1);
    if (group->has_record)
        cr_assert_eq(state.next_ms, group->next_ms);
    else
        cr_assert_geq(state.epoch, group->lowest_epoch);
    buffer_clear(&out);
}

static void model_look_at_list(unsigned s, unsigned g)
{
    static char expected[MODEL_ITEMS * 70100];
    const struct model_group *group = &model[s][g];
    struct store_snapshot snapshot;
    size_t bytes = 0;
    expected[bytes++] = '[';
    for (unsigned i = 0; i < group->count; i++) {
        struct span text = value_text(group->value[i]);
        if (i > 0)
            expected[bytes++] = ',';
        memcpy(expected + bytes, text.data, text.bytes);
        bytes += text.bytes;
    }
    expected[bytes++] = ']';
    buffer_clear(&out);
    cr_assert_eq(store_snapshot(reader, stream_names[s], group_names[g], NULL, &snapshot, &out),
                 WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), span_of(expected, bytes)));
    cr_assert_eq(snapshot.seq, group->seq);
    cr_assert_eq(snapshot.item_count, group->count);
    buffer_clear(&out);
}

static int compare_spans(const void *left, const void *right)
{
    const struct span *a = left, *b = right;
    size_t common = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = common == 0 ? 0 : memcmp(a->data, b->data, common);
    return order != 0 ? order : a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* Append the sorted names of the stream's groups with items; returns how many. */
static unsigned model_list_groups(unsigned s, struct buffer *text)
{
    struct span names[MODEL_GROUPS];
    unsigned count = 0;
    for (unsigned g = 0; g < MODEL_GROUPS; g++)
        if (model[s][g].count > 0)
            names[count++] = group_names[g];
    qsort(names, count, sizeof names[0], compare_spans);
    cr_assert_eq(buffer_append(text, SPAN_LITERAL("[")), WEIR_OK);
    for (unsigned i = 0; i < count; i++) {
        if (i > 0)
            cr_assert_eq(buffer_append(text, SPAN_LITERAL(",")), WEIR_OK);
        cr_assert_eq(json_append_string(text, names[i]), WEIR_OK);
    }
    cr_assert_eq(buffer_append(text, SPAN_LITERAL("]")), WEIR_OK);
    return count;
}

static void model_look_at_names(void)
{
    struct buffer expected;
    buffer_init(&expected, 1 << 20);
    struct span sorted[MODEL_STREAMS];
    memcpy(sorted, stream_names, sizeof sorted);
    qsort(sorted, MODEL_STREAMS, sizeof sorted[0], compare_spans);
    unsigned streams = 0;
    cr_assert_eq(buffer_printf(&expected, "{\"stream\":["), WEIR_OK);
    for (unsigned i = 0; i < MODEL_STREAMS; i++) {
        unsigned s = 0;
        while (!span_equal(stream_names[s], sorted[i]))
            s++;
        size_t mark = expected.bytes;
        cr_assert_eq(buffer_printf(&expected, "%s{\"id\":", streams > 0 ? "," : ""), WEIR_OK);
        cr_assert_eq(json_append_string(&expected, sorted[i]), WEIR_OK);
        cr_assert_eq(buffer_printf(&expected, ",\"groups\":"), WEIR_OK);
        size_t list_at = expected.bytes;
        unsigned count = model_list_groups(s, &expected);
        buffer_clear(&out);
        cr_assert_eq(store_list_groups(reader, sorted[i], &out), WEIR_OK);
        cr_assert(span_equal(buffer_span(&out),
                             span_of(expected.data + list_at, expected.bytes - list_at)));
        cr_assert_eq(buffer_printf(&expected, "}"), WEIR_OK);
        if (count == 0)
            expected.bytes = mark;
        else
            streams++;
    }
    cr_assert_eq(buffer_printf(&expected, "],\"count\":%u}", streams), WEIR_OK);
    buffer_clear(&out);
    cr_assert_eq(store_list_all(reader, &out), WEIR_OK);
    cr_assert(span_equal(buffer_span(&out), buffer_span(&expected)));
    buffer_clear(&out);
    buffer_fini(&expected);
}

/* ---- what is committed ---- */

static struct reader attached;

/* A logged store, and `reader` as a gateway has it. */
static void setup_logged(void)
{
    struct host_options options = small_host;
    struct weir_error error = {0};
    options.store.is_logged = true;
    options.store.empty_groups_max = 0;
    open_host(&options);
    store_reader_close(reader);
    cr_assert_eq(host_attach(&host, &attached, &error), WEIR_OK, "%s", error.text);
    reader = store_reader_open(&host.segment, &attached);
    cr_assert_not_null(reader);
}

static void teardown_logged(void)
{
    reader_detach(&attached);
    teardown();
}

static void commit(const struct store_change *change)
{
    store_group_committed(host.store, change->group.offset, change->group.seq,
                          store_group_newest_position(host.store, change->group.offset));
}

static enum weir_status read_item(const struct store_key *key)
{
    buffer_clear(&out);
    return store_read_item(reader, key, &out);
}

TestSuite(store_commit, .init = setup_logged, .fini = teardown_logged, .timeout = HANG_SECONDS);

Test(store_commit, item_is_shown_when_its_write_is_committed)
{
    struct store_key key = key_of("s", "g", "i"), other = key_of("s", "g", "j");
    struct store_change change, later;
    cr_assert_eq(read_item(&key), WEIR_EMPTY);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_OK);
    change = set_text("s", "g", "i", "1");
    cr_assert_eq(read_item(&key), WEIR_PENDING);
    cr_assert_eq(out.bytes, 0);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_PENDING);
    later = set_text("s", "g", "j", "2");
    commit(&change);
    cr_assert_eq(read_item(&key), WEIR_OK);
    assert_out("1");
    cr_assert_eq(read_item(&other), WEIR_PENDING);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_OK);
    cr_assert_eq(store_check_committed(host.store, &other), WEIR_PENDING);
    key.item = (struct span){0};
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_PENDING);
    commit(&later);
    cr_assert_eq(read_item(&other), WEIR_OK);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_OK);
}

/* That it is missing may be the effect of a delete. */
Test(store_commit, missing_item_waits_for_its_group)
{
    struct store_key key = key_of("s", "g", "i"), never = key_of("s", "g", "n");
    struct store_change change = set_text("s", "g", "i", "1");
    commit(&change);
    cr_assert_eq(read_item(&never), WEIR_EMPTY);
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(read_item(&key), WEIR_PENDING);
    cr_assert_eq(read_item(&never), WEIR_PENDING);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_PENDING);
    commit(&change);
    cr_assert_eq(read_item(&key), WEIR_EMPTY);
    cr_assert_eq(read_item(&never), WEIR_EMPTY);
    cr_assert_eq(store_check_committed(host.store, &key), WEIR_OK);
}

/* The broker is the one who is asked instead. */
Test(store_commit, broker_sees_everything)
{
    struct store_reader *own = store_reader_open(&host.segment, NULL);
    struct store_key key = key_of("s", "g", "i");
    struct store_snapshot snapshot;
    struct store_group state;
    host.hold_ring = true;
    set_text("s", "g", "i", "1");
    buffer_clear(&out);
    cr_assert_eq(store_read_item(own, &key, &out), WEIR_OK);
    assert_out("1");
    cr_assert_eq(store_snapshot(own, key.stream, key.group, NULL, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 1);
    assert_out("[1]");
    cr_assert_eq(store_list_groups(own, key.stream, &out), WEIR_OK);
    assert_out("[\"g\"]");
    cr_assert_eq(store_read_group(own, key.stream, key.group, &state), WEIR_OK);
    cr_assert_eq(state.seq, 1);
    store_reader_close(own);
}

Test(store_commit, snapshot_waits_for_the_commit_of_its_seq)
{
    struct store_change first = set_text("s", "g", "i", "1"), second;
    struct span stream = span_text("s"), group = span_text("g"), item = span_text("i");
    struct store_snapshot_walk *walk, *of_item;
    struct store_snapshot snapshot;
    cr_assert_eq(store_snapshot_begin(reader, stream, group, NULL, &walk), WEIR_OK);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    second = set_text("s", "g", "i", "2");
    cr_assert_eq(store_snapshot_begin(reader, stream, group, &item, &of_item), WEIR_OK);
    commit(&first);
    cr_assert_eq(store_snapshot_finish(of_item, &snapshot, &out), WEIR_PENDING);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 1);
    assert_out("[1]");
    commit(&second);
    cr_assert_eq(store_snapshot_finish(of_item, &snapshot, &out), WEIR_OK);
    assert_out("2");
}

/* The record was dropped while the copy waited: all it had is committed. */
Test(store_commit, snapshot_of_a_dropped_group_is_shown)
{
    struct store_change change = set_text("s", "g", "i", "1");
    struct store_key key = key_of("s", "g", "i"), other = key_of("t", "h", "j");
    struct store_snapshot_walk *walk;
    struct store_snapshot snapshot;
    cr_assert_eq(store_snapshot_begin(reader, key.stream, key.group, NULL, &walk), WEIR_OK);
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    commit(&change);
    cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    cr_assert_eq(read_item(&key), WEIR_EMPTY);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 1);
    assert_out("[1]");
    assert_whole();
}

/* A copy of group g after its first write, begun as if the second one began during the walk; what is written next
 * is not in the ring. */
static struct store_snapshot_walk *begin_beside_a_write(struct store_change *first)
{
    struct store_snapshot_walk *walk;
    *first = set_text("s", "g", "a", "1");
    commit(first);
    uint64_t bytes;
    struct group_block *block =
        (struct group_block *)(void *)(segment_store(&host.segment, &bytes) + first->group.offset);
    atomic_store(&block->begun_seq, 2);
    cr_assert_eq(store_snapshot_begin(reader, span_text("s"), span_text("g"), NULL, &walk),
                 WEIR_OK);
    atomic_store(&block->begun_seq, 1);
    host.hold_ring = true;
    return walk;
}

/* A writer that never stops has newer events appended, which nobody may see yet, whenever a commit is
 * marked. The copy needs only those up to its own seq. */
Test(store_commit, busy_group_does_not_keep_a_snapshot_waiting)
{
    struct store_change change;
    struct store_snapshot_walk *walk = begin_beside_a_write(&change);
    struct store_snapshot snapshot;
    set_text("s", "g", "b", "2");
    uint64_t position = store_group_newest_position(host.store, change.group.offset);
    uint64_t end = ring_head(host.ring);
    set_text("s", "g", "a", "3");
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    struct store_group state;
    cr_assert_eq(store_read_group(reader, span_text("s"), span_text("g"), &state), WEIR_OK);
    cr_assert_eq(state.seq, 1);
    cr_assert_eq(state.newest_position, 0);
    store_group_committed(host.store, change.group.offset, 2, position);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    ring_publish_to(host.ring, end);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 2);
    assert_out("[1,2]");
    cr_assert_eq(store_read_group(reader, span_text("s"), span_text("g"), &state), WEIR_OK);
    cr_assert_eq(state.seq, 2);
    cr_assert_eq(state.newest_position, position);
}

/* A sync's stamp lies between the newest event it includes and the next: where that is written already
 * it is waited for, and what is written behind it is not. */
Test(store_commit, sync_stamp_is_below_what_is_written)
{
    struct store_change change, last, next;
    struct store_snapshot_walk *walk = begin_beside_a_write(&change);
    struct store_snapshot snapshot;
    last = set_text("s", "g", "b", "2");
    uint64_t position = store_group_newest_position(host.store, change.group.offset);
    uint64_t end = ring_head(host.ring);
    next = set_text("s", "g", "a", "3");
    uint64_t next_position = store_group_newest_position(host.store, change.group.offset);
    uint64_t next_end = ring_head(host.ring);
    set_text("s", "g", "a", "4");
    store_group_committed(host.store, change.group.offset, 2, position);
    ring_publish_to(host.ring, end);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_PENDING);
    store_group_committed(host.store, change.group.offset, 3, next_position);
    ring_publish_to(host.ring, next_end);
    cr_assert_eq(store_snapshot_finish(walk, &snapshot, &out), WEIR_OK);
    cr_assert_eq(snapshot.seq, 2);
    cr_assert_gt(snapshot.timestamp_ms, last.group.timestamp_ms);
    cr_assert_lt(snapshot.timestamp_ms, next.group.timestamp_ms);
    assert_out("[1,2]");
}

/* Only what changes the names a list shows holds it up. */
Test(store_commit, lists_wait_for_groups_that_come_and_go)
{
    struct store_key key = key_of("s", "g", "i"), other = key_of("s", "g", "j");
    struct store_change first = set_text("s", "g", "i", "1"), change;
    cr_assert_eq(store_list_groups(reader, key.stream, &out), WEIR_PENDING);
    cr_assert_eq(store_list_all(reader, &out), WEIR_PENDING);
    cr_assert_eq(out.bytes, 0);
    change = set_text("s", "g", "j", "2");
    commit(&first);
    cr_assert_eq(store_list_groups(reader, key.stream, &out), WEIR_OK);
    assert_out("[\"g\"]");
    commit(&change);
    cr_assert_eq(host_delete(&host, &other, &change), WEIR_OK);
    cr_assert_eq(store_list_all(reader, &out), WEIR_OK);
    assert_out("{\"stream\":[{\"id\":\"s\",\"groups\":[\"g\"]}],\"count\":1}");
    cr_assert_eq(host_delete(&host, &key, &change), WEIR_OK);
    cr_assert_eq(store_list_groups(reader, key.stream, &out), WEIR_PENDING);
    change = set_text("s", "g", "i", "3");
    cr_assert_eq(store_list_groups(reader, key.stream, &out), WEIR_PENDING);
    commit(&change);
    cr_assert_eq(store_list_groups(reader, key.stream, &out), WEIR_OK);
    assert_out("[\"g\"]");
}

Test(store_commit, uncommitted_group_is_not_dropped)
{
    struct store_key key = key_of("s", "g", "i");
    struct store_change first, change;
    struct store_group state;
    cr_assert_eq(host_send(&host, &key, &first), WEIR_OK);
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        struct store_key other = key_of("s", name, "i");
        cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
        commit(&change);
    }
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_OK);
    cr_assert_eq(state.offset, first.group.offset);
    cr_assert_eq(state.seq, 0);
    commit(&first);
    for (int i = 0; i < 2; i++) {
        struct store_key other = key_of("s", "x", "i");
        cr_assert_eq(host_send(&host, &other, &change), WEIR_OK);
    }
    cr_assert_eq(store_read_group(reader, key.stream, key.group, &state), WEIR_EMPTY);
    assert_whole();
}

/* A seeded run of all operations against arrays. */
Test(store, model, .timeout = HANG_SECONDS)
{
    struct host_options options = small_host;
    options.store.empty_groups_max = MODEL_EMPTY_MAX;
    open_other_host(&options);
    name_things();
    uint64_t random = fixture_seed("store/model");
    for (unsigned step = 0; step < 40000; step++) {
        uint64_t roll = fixture_random(&random);
        unsigned s = (unsigned)(roll % MODEL_STREAMS), g = (unsigned)((roll >> 8) % MODEL_GROUPS);
        unsigned item = (unsigned)((roll >> 16) % MODEL_ITEMS);
        unsigned op = (unsigned)((roll >> 24) % 100);
        /* Phases of growing and shrinking, so that groups become empty and are dropped. */
        unsigned set_share = step / 2000 % 2 == 0 ? 55 : 20;
        if ((roll >> 40) % 20 == 0)
            host.now_ms += (roll >> 48) % 50;
        if ((roll >> 40) % 400 == 1)
            host.now_ms -= 30;
        if (op < set_share)
            model_set(s, g, item, step);
        else if (op < 85)
            model_delete(s, g, item);
        else if (op < 92)
            model_touch(s, g, item, op < 89);
        model_look(s, g, (unsigned)((roll >> 32) % MODEL_ITEMS));
        if (op > 92)
            model_look_at_list(s, g);
        if (step % 64 == 0)
            model_look_at_names();
        if (roll >> 56 < 40)
            store_turn_end(host.store);
        if (step % 1000 == 0)
            assert_whole();
    }
    assert_whole();
}

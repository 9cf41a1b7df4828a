/* Records to the store: each kind by itself, and a life of a broker with a snapshot taken in the middle of
 * it, which has to end in the same state when it is replayed. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "broker/replay.h"
#include "tests/store_fixture.h"

static const struct host_options small_host = {
    .ring_bytes = 4ull << 20,
    .store_bytes = 64ull << 20,
    .store = {.items_max = 1000000, .groups_max = 100000, .empty_groups_max = 1000},
};

static struct host host;
static struct replay replay;
static struct buffer out;
static const struct wal_position place = {
    .kind = WAL_FILE_LOG, .number = 7, .offset = 8192, .seq = 3};

static void setup(void)
{
    struct weir_error error = {0};
    cr_assert_eq(host_open(&host, &small_host, &error), WEIR_OK, "%s", error.text);
    replay = (struct replay){.store = host.store};
    buffer_init(&out, 64ul << 20);
}

static void teardown(void)
{
    host_close(&host);
    buffer_fini(&out);
}

static struct wal_record record_of(enum wal_record_kind kind, uint64_t seq, const char *item,
                                   const char *value)
{
    return (struct wal_record){.kind = kind,
                               .step = 2,
                               .epoch = 5,
                               .seq = seq,
                               .timestamp_ms = 1000 + 2 * seq,
                               .stream = SPAN_LITERAL("s"),
                               .group = SPAN_LITERAL("g"),
                               .item = item != NULL ? span_text(item) : (struct span){0},
                               .value = value != NULL ? span_text(value) : (struct span){0}};
}

static enum weir_status take(struct wal_record record, struct weir_error *error)
{
    return replay_take(&replay, &place, &record, error);
}

static void assert_taken(struct wal_record record)
{
    struct weir_error error = {0};
    cr_assert_eq(take(record, &error), WEIR_OK, "%s", error.text);
}

static void print_group(const struct store_walk_entry *group)
{
    cr_assert_eq(
        buffer_printf(
            &out, "%.*s/%.*s %llu.%llu @%llu+%llu\n", (int)group->stream.bytes, group->stream.data,
            (int)group->group.bytes, group->group.data, (unsigned long long)group->numbers.epoch,
            (unsigned long long)group->numbers.seq, (unsigned long long)group->numbers.timestamp_ms,
            (unsigned long long)(group->numbers.next_ms - group->numbers.timestamp_ms)),
        WEIR_OK);
}

/* Groups with their numbers and items, in order. Without items, one store may remember a group that another
 * has forgotten. */
static void print_store(struct store *store)
{
    struct store_walk_entry entry, group = {0};
    buffer_clear(&out);
    store_walk_begin(store);
    bool is_printed = false;
    while (store_walk_next(store, &entry) == WEIR_OK) {
        if (entry.is_group) {
            group = entry;
            is_printed = false;
            continue;
        }
        if (!is_printed)
            print_group(&group);
        is_printed = true;
        cr_assert_eq(buffer_printf(&out, "  %.*s=%.*s (%llu, %llu)\n", (int)entry.item.bytes,
                                   entry.item.data, (int)entry.value.bytes, entry.value.data,
                                   (unsigned long long)entry.created_seq,
                                   (unsigned long long)entry.modified_seq),
                     WEIR_OK);
    }
}

static void assert_store(const char *expected)
{
    print_store(host.store);
    cr_assert(span_equal(buffer_span(&out), span_text(expected)), "%.*s\nis not\n%s",
              (int)out.bytes, out.data, expected);
}

TestSuite(replay, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

Test(replay, writes_of_a_log_are_applied_with_their_numbers)
{
    assert_taken(record_of(WAL_SET, 1, "a", "1"));
    assert_taken(record_of(WAL_SET, 2, "b", "2"));
    assert_taken(record_of(WAL_SET, 3, "a", "3"));
    assert_taken(record_of(WAL_EVENT, 4, NULL, "{}"));
    assert_taken(record_of(WAL_DELETE, 5, "b", NULL));
    assert_store("s/g 5.5 @1010+2\n  a=3 (1, 3)\n");
    cr_assert_eq(replay.replayed, 5);
    cr_assert_eq(replay.passed, 0);
}

Test(replay, a_snapshots_groups_and_items_are_restored_and_its_writes_passed_over)
{
    assert_taken(record_of(WAL_GROUP, 3, NULL, NULL));
    struct wal_record item = {.kind = WAL_ITEM,
                              .item = SPAN_LITERAL("a"),
                              .value = SPAN_LITERAL("[1]"),
                              .created_seq = 1,
                              .modified_seq = 3};
    assert_taken(item);
    assert_taken((struct wal_record){.kind = WAL_END, .seq = 9});
    assert_taken(record_of(WAL_SET, 2, "a", "0"));
    assert_taken(record_of(WAL_SET, 3, "a", "[1]"));
    assert_taken(record_of(WAL_SET, 4, "b", "2"));
    assert_store("s/g 5.4 @1008+2\n  a=[1] (1, 3)\n  b=2 (4, 4)\n");
    cr_assert_eq(replay.restored_items, 1);
    cr_assert_eq(replay.replayed, 1);
    cr_assert_eq(replay.passed, 2);
}

static enum weir_status note_change(void *context, const struct wal_position *position,
                                    const struct wal_record *record,
                                    const struct store_change *change, struct weir_error *error)
{
    struct buffer *notes = context;
    if (record->seq == 4)
        return weir_fail(error, WEIR_FULL, "enough");
    return buffer_printf(notes, "%llu:%llu %s\n", (unsigned long long)position->seq,
                         (unsigned long long)record->request,
                         change == NULL          ? "passed"
                         : change->existed       ? "changed"
                         : change->group.seq > 0 ? "new"
                                                 : "?");
}

/* Who asked for a write that the snapshot has already may ask again, so it is told as well. */
Test(replay, each_write_is_told_in_order_and_may_end_the_replay)
{
    struct buffer notes;
    struct weir_error error = {0};
    buffer_init(&notes, 4096);
    replay.changed = note_change;
    replay.context = &notes;
    struct wal_record group = record_of(WAL_GROUP, 1, NULL, NULL);
    assert_taken(group);
    for (uint64_t seq = 1; seq <= 3; seq++) {
        struct wal_record record = record_of(WAL_SET, seq, "a", "1");
        record.origin = 1;
        record.request = 10 + seq;
        assert_taken(record);
    }
    cr_assert(
        span_equal(buffer_span(&notes), SPAN_LITERAL("3:11 passed\n3:12 new\n3:13 changed\n")),
        "%.*s", (int)notes.bytes, notes.data);
    cr_assert_eq(take(record_of(WAL_SET, 4, "a", "1"), &error), WEIR_FULL);
    cr_assert_str_eq(error.text, "enough");
    buffer_fini(&notes);
}

Test(replay, what_cannot_have_been_written_is_refused_with_its_place)
{
    const struct wal_record records[] = {
        {.kind = WAL_ITEM, .item = SPAN_LITERAL("a"), .value = SPAN_LITERAL("1"), .created_seq = 1},
        record_of(WAL_SET, 0, "a", "1"),
        record_of(WAL_SET, 1, "\xff", "1"),
    };
    for (size_t i = 0; i < sizeof records / sizeof records[0]; i++) {
        struct weir_error error = {0};
        cr_assert_eq(take(records[i], &error), WEIR_CORRUPT, "record %zu", i);
        cr_assert_not_null(strstr(error.text, "log 7, frame at 8192"), "%s", error.text);
    }
    assert_store("");
}

Test(replay, a_store_that_is_too_small_is_said_with_the_setting)
{
    struct host_options options = small_host;
    options.store_bytes = 16ull << 20;
    host_close(&host);
    cr_assert_eq(host_open(&host, &options, NULL), WEIR_OK);
    replay = (struct replay){.store = host.store};
    struct weir_error error = {0};
    enum weir_status status = WEIR_OK;
    char *value = calloc(1, 1 << 20);
    cr_assert_not_null(value);
    memset(value, '1', (1 << 20) - 1);
    for (uint64_t seq = 1; seq <= 32 && status == WEIR_OK; seq++) {
        char item[8];
        (void)snprintf(item, sizeof item, "%u", (unsigned)seq);
        status = take(record_of(WAL_SET, seq, item, value), &error);
    }
    free(value);
    cr_assert_eq(status, WEIR_FULL);
    cr_assert_not_null(strstr(error.text, "raise store_bytes"), "%s", error.text);
}

/* ---- a life, and its replay ---- */

/* Records behind each other, as in a frame. */
static void note_record(struct buffer *records, const struct wal_record *record)
{
    size_t bytes = wal_record_bytes(record);
    cr_assert_eq(buffer_reserve(records, bytes), WEIR_OK);
    wal_record_encode(records->data + records->bytes, record);
    records->bytes += bytes;
}

static void note_write(struct buffer *records, enum wal_record_kind kind,
                       const struct store_key *key, struct span value,
                       const struct store_change *change)
{
    const struct wal_record record = {
        .kind = kind,
        .step = (uint32_t)(change->group.next_ms - change->group.timestamp_ms),
        .epoch = change->group.epoch,
        .seq = change->group.seq,
        .timestamp_ms = change->group.timestamp_ms,
        .stream = key->stream,
        .group = key->group,
        .item = key->item,
        .value = value};
    note_record(records, &record);
}

static void random_write(uint64_t *random, struct buffer *records)
{
    static const char *const streams[] = {"s", "t"};
    static const char *const groups[] = {"a", "b", "c", "d"};
    char item[8], value[32];
    uint64_t draw = fixture_random(random);
    (void)snprintf(item, sizeof item, "i%llu", (unsigned long long)(draw >> 8) % 6);
    (void)snprintf(value, sizeof value, "[%llu]", (unsigned long long)(draw >> 16) % 100000);
    struct store_key key = {span_text(streams[draw >> 40 & 1]), span_text(groups[draw >> 42 & 3]),
                            span_text(item)};
    struct store_change change;
    host.now_ms += draw >> 50 & 1;
    switch (draw % 5) {
    case 0:
    case 1:
        cr_assert_eq(host_set(&host, &key, span_text(value), &change), WEIR_OK);
        note_write(records, WAL_SET, &key, change.new_value, &change);
        break;
    case 2:
    case 3:
        if (host_delete(&host, &key, &change) == WEIR_OK)
            note_write(records, WAL_DELETE, &key, (struct span){0}, &change);
        break;
    default:
        cr_assert_eq(host_send(&host, &key, &change), WEIR_OK);
        note_write(records, WAL_EVENT, &key, SPAN_LITERAL("1"), &change);
        break;
    }
}

/* One step of a snapshot; false: it is complete. */
static bool walk_step(struct buffer *records)
{
    struct store_walk_entry entry;
    if (store_walk_next(host.store, &entry) != WEIR_OK)
        return false;
    struct wal_record record = {.kind = WAL_ITEM,
                                .item = entry.item,
                                .value = entry.value,
                                .created_seq = entry.created_seq,
                                .modified_seq = entry.modified_seq};
    if (entry.is_group)
        record = (struct wal_record){
            .kind = WAL_GROUP,
            .stream = entry.stream,
            .group = entry.group,
            .epoch = entry.numbers.epoch,
            .seq = entry.numbers.seq,
            .timestamp_ms = entry.numbers.timestamp_ms,
            .step = (uint32_t)(entry.numbers.next_ms - entry.numbers.timestamp_ms)};
    note_record(records, &record);
    return true;
}

static void take_all(const struct buffer *records)
{
    struct weir_error error = {0};
    struct wal_record record;
    size_t cursor = 0;
    enum weir_status status;
    while ((status = wal_record_decode(buffer_span(records), &cursor, &record)) == WEIR_OK)
        cr_assert_eq(replay_take(&replay, &place, &record, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(status, WEIR_EMPTY);
}

/* Writes go on between the steps of the walk. The snapshot and the writes since it began are what a restart
 * finds; few empty groups are remembered, so that groups are forgotten and begin a new life, too. */
Test(replay, a_snapshot_taken_beside_writes_and_the_log_since_are_the_state_at_the_end,
     .timeout = HANG_SECONDS)
{
    uint64_t random = fixture_seed("replay");
    for (unsigned round = 0; round < 300; round++) {
        struct host_options options = small_host;
        options.store_bytes = 16ull << 20;
        options.store.empty_groups_max = round % 3;
        host_close(&host);
        cr_assert_eq(host_open(&host, &options, NULL), WEIR_OK);
        struct buffer before, log, snapshot, expected;
        buffer_init(&before, 8ul << 20);
        buffer_init(&log, 8ul << 20);
        buffer_init(&snapshot, 8ul << 20);
        buffer_init(&expected, 8ul << 20);
        for (unsigned i = 0; i < 60; i++)
            random_write(&random, &before);
        store_walk_begin(host.store);
        do {
            for (uint64_t i = fixture_random(&random) % 4; i > 0; i--)
                random_write(&random, &log);
            store_turn_end(host.store);
        } while (walk_step(&snapshot));
        for (unsigned i = 0; i < 20; i++)
            random_write(&random, &log);
        print_store(host.store);
        cr_assert_eq(buffer_append(&expected, buffer_span(&out)), WEIR_OK);
        cr_assert_eq(buffer_append(&expected, SPAN_LITERAL("\0")), WEIR_OK);

        host_close(&host);
        options.store.empty_groups_max = 1000;
        cr_assert_eq(host_open(&host, &options, NULL), WEIR_OK);
        replay = (struct replay){.store = host.store};
        take_all(&snapshot);
        take_all(&log);
        struct weir_error error = {0};
        cr_assert_eq(store_check(host.store, &error), WEIR_OK, "%s", error.text);
        assert_store(expected.data);
        buffer_fini(&before);
        buffer_fini(&log);
        buffer_fini(&snapshot);
        buffer_fini(&expected);
    }
}

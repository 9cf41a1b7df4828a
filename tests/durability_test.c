/* The engine with its log and its disk, without sockets: what is shown and answered when, what
 * another life finds, and what a disk that fails does to it.
 *
 * Method: a life is engine, loop, log and snapshots on a directory of the test's own, driven turn by
 * turn; a life that is dropped is closed without a turn more, as kill -9 would leave its files. The
 * disk is the real one behind faulty_device.h and a table of system calls that can be told to fail.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "adapters/kv.h"
#include "broker/durability.h"
#include "shm/envelope.h"
#include "shm/readers.h"
#include "tests/broker_recorder.h"
#include "tests/faulty_device.h"

enum { TURNS_MAX = 100000, TURN_MS = 1 };

static const struct peer_handle peer = {3, 1};
static const uint64_t origin = 0x1234567;

/* One life of a broker, as far as items are concerned. */
static struct {
    struct settings settings;
    struct segment segment;
    struct readers *readers;
    struct engine *engine;
    struct loop *loop;
    struct durability *durability;
    struct wal_device *device;
    struct ring_reader ring;
    struct broker_counters counters;
    uint64_t now_ms;
    uint64_t generation;
    uint64_t empty_groups_max;
    char boot[16]; /* the machine's */
} life;
static struct recorder recorder;
static char directory[64];

/* ---- the disk ---- */

/* Files that are made from now on fail with this errno. */
static _Atomic int refuse_making; /* read in the background */

static int io_open(void *context, const char *path, int flags)
{
    (void)context;
    if ((flags & O_CREAT) != 0 && strstr(path, ".new") != NULL && refuse_making != 0)
        return -refuse_making;
    return wal_io_system.open(wal_io_system.context, path, flags);
}

static struct wal_device *wrap_device(void *context, struct wal_device *device)
{
    (void)context;
    life.device = faulty_device_open(device, 1);
    return life.device;
}

/* ---- a life ---- */

static enum weir_status try_begin(struct weir_error *error)
{
    const struct snapshot_answers answers = {0};
    static struct wal_io io;
    io = wal_io_system;
    io.open = io_open;
    const struct durability_seam seam = {.io = &io, .wrap_device = wrap_device, .boot = life.boot};
    const struct segment_options options = {.ring_bytes = 16 * 1024 * 1024,
                                            .store_bytes = 64 * 1024 * 1024,
                                            .generation = ++life.generation};
    const struct engine_options engine_options = {
        .segment = &life.segment,
        .adapter = &adapter_kv,
        .store = {.items_max = 100000,
                  .groups_max = 1000,
                  .empty_groups_max = life.empty_groups_max,
                  .is_logged = life.settings.durability != SETTINGS_DURABILITY_MEMORY},
        .value_bytes_max = life.settings.value_bytes_max,
        .output = recorder_output(&recorder),
        .counters = &life.counters,
    };
    cr_assert_eq(segment_create(&life.segment, &options, error), WEIR_OK, "%s", error->text);
    life.readers = readers_open(&life.segment);
    struct engine_options with_readers = engine_options;
    with_readers.readers = life.readers;
    cr_assert_eq(engine_open(&life.engine, &with_readers, error), WEIR_OK, "%s", error->text);
    cr_assert_eq(loop_open(&life.loop, life.settings.io, error), WEIR_OK, "%s", error->text);
    enum weir_status status = durability_open(&life.durability, &life.settings, life.engine, &seam,
                                              &life.counters, error);
    if (status == WEIR_OK)
        status = durability_start(life.durability, life.loop, &answers, error);
    segment_publish(&life.segment);
    cr_assert_eq(ring_reader_attach(&life.ring, &life.segment), WEIR_OK);
    return status;
}

static void begin(void)
{
    struct weir_error error = {0};
    cr_assert_eq(try_begin(&error), WEIR_OK, "%s", error.text);
}

static void drop(void)
{
    loop_close(life.loop);
    engine_stop(life.engine);
    durability_close(life.durability);
    engine_close(life.engine);
    readers_close(life.readers);
    segment_close(&life.segment);
    life.durability = NULL;
    recorder_clear(&recorder);
}

static void turn(void)
{
    struct weir_error error = {0};
    cr_assert_eq(loop_wait(life.loop, TURN_MS, &error), WEIR_OK, "%s", error.text);
    loop_run(life.loop);
    commits_turn(engine_commits(life.engine), life.now_ms);
    durability_turn(life.durability, life.now_ms);
}

static void again(void)
{
    drop();
    begin();
}

static void settle(void)
{
    for (unsigned turns = 0; turns < TURNS_MAX && !commits_are_idle(engine_commits(life.engine));
         turns++)
        turn();
    cr_assert(commits_are_idle(engine_commits(life.engine)));
}

/* As the broker ends when it is told to. */
static void stop(void)
{
    settle();
    durability_flushed(life.durability);
    drop();
}

static void setup(enum settings_io io, enum settings_durability durability)
{
    snprintf(directory, sizeof directory, "/tmp/weir-durability-test-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    settings_init(&life.settings);
    snprintf(life.settings.data_dir, sizeof life.settings.data_dir, "%s/data", directory);
    life.settings.io = io;
    life.settings.durability = durability;
    life.settings.value_bytes_max = 256 * 1024;
    life.settings.log_segment_bytes = 4 * 1024 * 1024;
    life.settings.snapshot_log_bytes = 1ull << 40;
    life.settings.snapshot_interval_ms = 0;
    life.now_ms = (uint64_t)time(NULL) * 1000;
    life.generation = 1700000000000000;
    life.empty_groups_max = 100;
    snprintf(life.boot, sizeof life.boot, "boot 0");
    refuse_making = 0;
    begin();
}

static void open_uring(void)
{
    setup(SETTINGS_IO_AUTO, SETTINGS_DURABILITY_SYNCED);
}

static void open_plain(void)
{
    setup(SETTINGS_IO_PLAIN, SETTINGS_DURABILITY_SYNCED);
}

static void open_written(void)
{
    setup(SETTINGS_IO_AUTO, SETTINGS_DURABILITY_WRITTEN);
}

static void open_behind(void)
{
    setup(SETTINGS_IO_AUTO, SETTINGS_DURABILITY_MEMORY);
}

static void remove_directory(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    cr_assert_eq(system(command), 0);
}

static void close_all(void)
{
    drop();
    remove_directory();
}

TestSuite(durability, .init = open_uring, .fini = close_all, .timeout = HANG_SECONDS);
TestSuite(durability_plain, .init = open_plain, .fini = close_all, .timeout = HANG_SECONDS);
TestSuite(durability_written, .init = open_written, .fini = close_all, .timeout = HANG_SECONDS);
TestSuite(durability_behind, .init = open_behind, .fini = close_all, .timeout = HANG_SECONDS);

/* ---- asking ---- */

static struct span text_or_nil(const char *text)
{
    return text ? span_text(text) : (struct span){0};
}

static void put(uint64_t id, enum wire_op op, const char *group, const char *item, const char *data)
{
    struct wire_message message = {.type = WIRE_STREAM, .id = id};
    message.fields[0].number = op;
    message.fields[1].span = span_text("s");
    message.fields[2].span = text_or_nil(group);
    message.fields[3].span = text_or_nil(item);
    message.fields[4].span = op == WIRE_OP_SEND ? span_text("note") : (struct span){0};
    message.fields[5].span = text_or_nil(data);
    cr_assert_eq(engine_stream(life.engine, peer, origin, &message, life.now_ms), WEIR_OK);
}

static const struct recorded *answer_of(uint64_t id)
{
    for (unsigned index = 0; index < recorder.count; index++)
        if (recorder.messages[index].id == id)
            return &recorder.messages[index];
    return NULL;
}

static const struct recorded *wait_answer(uint64_t id)
{
    for (unsigned turns = 0; turns < TURNS_MAX && !answer_of(id); turns++)
        turn();
    cr_assert_not_null(answer_of(id), "request %llu is answered", (unsigned long long)id);
    return answer_of(id);
}

static const struct recorded *ask(enum wire_op op, const char *group, const char *item,
                                  const char *data)
{
    static uint64_t id = 1000000;
    put(++id, op, group, item, data);
    return wait_answer(id);
}

/* `result` NULL: any. */
static void expect_result(const struct recorded *answer, const char *result)
{
    cr_assert_str_eq(recorded_text(answer, 0), "(nil)", "%s", recorded_text(answer, 1));
    if (result)
        cr_assert_str_eq(recorded_text(answer, 2), result);
}

static void expect_error(const struct recorded *answer, const char *code, const char *words)
{
    cr_assert_str_eq(recorded_text(answer, 0), code);
    cr_assert(strstr(recorded_text(answer, 1), words), "'%s' does not say '%s'",
              recorded_text(answer, 1), words);
}

static unsigned events(void)
{
    struct ring_record record;
    struct buffer out;
    unsigned count = 0;
    buffer_init(&out, 1 << 20);
    while (ring_read(&life.ring, &record, &out) == WEIR_OK)
        count++;
    buffer_fini(&out);
    return count;
}

/* ---- when something is shown ---- */

/* Until the frame is written nothing is answered, shown, or committed; what comes meanwhile shares the
 * next frame. */
static void shown_when_written(void)
{
    put(1, WIRE_OP_SET, "g", "a", "1");
    commits_turn(engine_commits(life.engine), life.now_ms);
    const struct store_key key = {span_text("s"), span_text("g"), span_text("a")};
    cr_assert_eq(recorder.count, 0);
    cr_assert_eq(events(), 0);
    cr_assert_eq(store_check_committed(engine_store(life.engine), &key), WEIR_PENDING);
    for (uint64_t id = 2; id <= 20; id++)
        put(id, WIRE_OP_SET, "g", "a", "2");
    commits_turn(engine_commits(life.engine), life.now_ms);
    cr_assert_eq(recorder.count, 0);
    expect_result(wait_answer(20), "{\"old_value\":2,\"new_value\":2}");
    cr_assert_eq(events(), 20);
    cr_assert_eq(store_check_committed(engine_store(life.engine), &key), WEIR_OK);
    cr_assert_eq(faulty_device_figures(life.device).writes, 2, "19 requests share one frame");
    for (unsigned index = 0; index < 20; index++)
        cr_assert_eq(recorder.messages[index].id, index + 1);
}

Test(durability, nothing_is_shown_before_it_is_written)
{
    shown_when_written();
}

Test(durability_plain, nothing_is_shown_before_it_is_written)
{
    shown_when_written();
}

Test(durability_written, nothing_is_shown_before_it_is_written)
{
    shown_when_written();
}

/* A read behind a write that is not durable is answered with it, not before it. */
Test(durability, a_read_of_what_is_not_durable_waits_for_it)
{
    put(1, WIRE_OP_SET, "g", "a", "1");
    commits_turn(engine_commits(life.engine), life.now_ms);
    put(2, WIRE_OP_GET, "g", "a", NULL);
    put(3, WIRE_OP_LIST, "g", NULL, NULL);
    commits_turn(engine_commits(life.engine), life.now_ms);
    cr_assert_eq(recorder.count, 0);
    expect_result(wait_answer(3), "[1]");
    cr_assert_eq(recorder.messages[0].id, 1);
    expect_result(&recorder.messages[1], "1");
}

/* Level memory with a directory: answered at once, kept behind that. */
Test(durability_behind, answers_do_not_wait_for_the_log)
{
    put(1, WIRE_OP_SET, "g", "a", "1");
    commits_turn(engine_commits(life.engine), life.now_ms);
    cr_assert_eq(recorder.count, 1);
    cr_assert_eq(events(), 1);
    put(2, WIRE_OP_SET, "g", "b", "2"); /* while the frame of the first is being written */
    commits_turn(engine_commits(life.engine), life.now_ms);
    cr_assert_eq(recorder.count, 2);
    cr_assert_eq(events(), 1);
    settle();
    cr_assert_not(durability_keeps(life.durability, 0));
    again();
    expect_result(ask(WIRE_OP_LIST, "g", NULL, NULL), "[1,2]");
}

/* ---- another life ---- */

/* Everything answered is there; seq, epoch and stamps go on; order of items as it was. */
static void next_life_has_it_all(void)
{
    struct ring_record before = {0}, after = {0};
    struct buffer out;
    buffer_init(&out, 1 << 20);
    (void)ask(WIRE_OP_SET, "g", "b", "{\"x\":1}");
    (void)ask(WIRE_OP_SET, "g", "a", "2");
    (void)ask(WIRE_OP_SET, "h", "a", "3");
    (void)ask(WIRE_OP_DELETE, "h", "a", NULL);
    (void)ask(WIRE_OP_SEND, "g", NULL, "{\"n\":1}");
    expect_result(
        ask(WIRE_OP_UPDATE, "g", "b", "[{\"type\":\"increment\",\"path\":\"x\",\"by\":4}]"),
        "{\"old_value\":{\"x\":1},\"new_value\":{\"x\":5}}");
    while (ring_read(&life.ring, &before, &out) == WEIR_OK)
        ;
    again();
    expect_result(ask(WIRE_OP_LIST, "g", NULL, NULL), "[{\"x\":5},2]");
    expect_result(ask(WIRE_OP_LIST_GROUPS, NULL, NULL, NULL), "[\"g\"]");
    cr_assert_eq(events(), 0, "what was shown is not shown again");
    (void)ask(WIRE_OP_SET, "g", "c", "4");
    cr_assert_eq(ring_read(&life.ring, &after, &out), WEIR_OK);
    cr_assert_eq(after.seq, before.seq + 1);
    cr_assert_eq(after.epoch, before.epoch);
    cr_assert_gt(after.timestamp_ms, before.timestamp_ms);
    cr_assert_neq(after.previous_position, RING_NO_POSITION,
                  "the chain goes on behind the restart");
    (void)ask(WIRE_OP_SET, "h", "b", "5");
    cr_assert_eq(ring_read(&life.ring, &after, &out), WEIR_OK);
    cr_assert_eq(after.seq, 3, "a group without items keeps its seq");
    buffer_fini(&out);
}

Test(durability, the_next_life_has_all_and_goes_on)
{
    next_life_has_it_all();
}

Test(durability_plain, the_next_life_has_all_and_goes_on)
{
    next_life_has_it_all();
}

Test(durability_written, the_next_life_has_all_and_goes_on)
{
    next_life_has_it_all();
}

/* Whoever has read up to some frame reads on behind it in the next life's ring. */
Test(durability, the_ring_goes_on_where_a_gateway_had_read_to)
{
    struct ring_record record = {0};
    struct buffer out;
    uint64_t position = 0;
    buffer_init(&out, 1 << 20);
    for (unsigned count = 0; count < 10; count++)
        (void)ask(WIRE_OP_SET, "g", "a", "1");
    for (unsigned count = 0; count < 4; count++)
        cr_assert_eq(ring_read(&life.ring, &record, &out), WEIR_OK);
    uint64_t frame = record.commit;
    cr_assert_neq(frame, 0);
    again();
    cr_assert(durability_resume(life.durability, frame, &position));
    life.ring.position = position;
    for (uint64_t seq = 5; seq <= 10; seq++) {
        cr_assert_eq(ring_read(&life.ring, &record, &out), WEIR_OK);
        cr_assert_eq(record.seq, seq);
    }
    cr_assert_eq(ring_read(&life.ring, &record, &out), WEIR_EMPTY);
    frame = record.commit;
    again();
    cr_assert(durability_resume(life.durability, frame, &position));
    cr_assert_eq(position, ring_published(&life.ring), "nothing is new");
    cr_assert_not(durability_resume(life.durability, 0, &position));
    cr_assert(durability_keeps(life.durability, frame));
    cr_assert_not(durability_keeps(life.durability, frame + 1), "another log's");
    buffer_fini(&out);
}

/* A request that is asked again is known, with what it was answered. */
Test(durability, requests_of_an_earlier_life_are_known)
{
    struct span result;
    put(41, WIRE_OP_SET, "g", "a", "1");
    put(42, WIRE_OP_SET, "g", "a", "2");
    put(43, WIRE_OP_SEND, "g", NULL, "7");
    put(44, WIRE_OP_DELETE, "g", "a", NULL);
    put(45, WIRE_OP_GET, "g", "a", NULL);
    put(46, WIRE_OP_SET, "g", "a", "[]");
    put(47, WIRE_OP_UPDATE, "g", "a", "[{\"type\":\"increment\",\"path\":\"n\",\"by\":1}]");
    (void)wait_answer(47);
    again();
    cr_assert(durability_answered(life.durability, origin, 42, &result));
    cr_assert(span_equal(result, span_text("{\"old_value\":1,\"new_value\":2}")));
    cr_assert(durability_answered(life.durability, origin, 43, &result));
    cr_assert(span_equal(result, span_text("null")));
    cr_assert(durability_answered(life.durability, origin, 44, &result));
    cr_assert(span_equal(result, span_text("{\"old_value\":2}")));
    cr_assert_not(durability_answered(life.durability, origin, 45, &result), "reads are not kept");
    cr_assert_not(durability_answered(life.durability, origin, 48, &result));
    cr_assert_not(durability_answered(life.durability, origin + 1, 42, &result));
    put(49, WIRE_OP_DELETE, "g", "none", NULL);
    (void)wait_answer(49);
    again();
    cr_assert(durability_answered(life.durability, origin, 49, &result), "it found nothing, once");
    cr_assert(span_equal(result, span_text("{\"old_value\":null}")));
}

/* There are two threads at most; in a build that looks for races a quarter shows what they share. */
#ifdef __SANITIZE_THREAD__
enum { LIVES_SHARE = 4 };
#else
enum { LIVES_SHARE = 1 };
#endif

/* Method: sets with growing values at random items, each life dropped at a random moment with frames in
 *         flight. What is found must be at least the newest value that was answered, at most the newest
 *         that was asked for, and nothing that was not. Snapshots come often. */
static void lives_are_dropped(uint64_t seed, unsigned lives)
{
    enum { ITEMS = 40, REQUESTS_MAX = 40000 };
    static uint8_t item_of[REQUESTS_MAX];
    unsigned short state[3] = {(unsigned short)seed, (unsigned short)(seed >> 16), 0x330E};
    uint64_t answered[ITEMS] = {0}, asked[ITEMS] = {0}, next = 0;
    (void)fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    for (unsigned number = 0; number < lives / LIVES_SHARE; number++) {
        unsigned writes = (unsigned)(nrand48(state) % 200);
        for (unsigned count = 0; count < writes; count++) {
            char item[16], value[32];
            unsigned index = (unsigned)(nrand48(state) % ITEMS);
            snprintf(item, sizeof item, "i%u", index);
            snprintf(value, sizeof value, "%llu", (unsigned long long)++next);
            item_of[next] = (uint8_t)index;
            put(next, WIRE_OP_SET, index % 2 ? "g" : "h", item, value);
            asked[index] = next;
            if (nrand48(state) % 3 == 0)
                turn();
        }
        for (unsigned seen = 0; seen < recorder.count; seen++) {
            const struct recorded *message = &recorder.messages[seen];
            if (message->id < REQUESTS_MAX && answered[item_of[message->id]] < message->id)
                answered[item_of[message->id]] = message->id;
        }
        again();
        for (unsigned index = 0; index < ITEMS; index++) {
            char item[16];
            snprintf(item, sizeof item, "i%u", index);
            const char *text =
                recorded_text(ask(WIRE_OP_GET, index % 2 ? "g" : "h", item, NULL), 2);
            uint64_t found = strcmp(text, "(nil)") == 0 ? 0 : strtoull(text, NULL, 10);
            cr_assert(found >= answered[index] && found <= asked[index] &&
                          (found == 0 || item_of[found] == index),
                      "life %u: item %u is %llu, answered %llu, asked %llu", number, index,
                      (unsigned long long)found, (unsigned long long)answered[index],
                      (unsigned long long)asked[index]);
            answered[index] = asked[index] = found;
        }
        struct weir_error error = {0};
        cr_assert_eq(store_check(engine_store(life.engine), &error), WEIR_OK, "%s", error.text);
    }
}

Test(durability, what_was_answered_outlives_any_drop)
{
    lives_are_dropped((uint64_t)getpid(), 40);
}

Test(durability_plain, what_was_answered_outlives_any_drop)
{
    lives_are_dropped((uint64_t)getpid(), 40);
}

Test(durability_written, what_was_answered_outlives_any_drop)
{
    lives_are_dropped((uint64_t)getpid(), 40);
}

/* A record that is larger than a frame's memory gets memory of its own; what is written after it, from
 * the memory that the kernel was told of, is what was to be written. */
Test(durability, large_records_leave_the_frames_behind_them_whole)
{
    enum { BYTES = 2 * 1024 * 1024, ROUNDS = 6, SMALL = 24 };
    life.settings.value_bytes_max = 3 * 1024 * 1024;
    life.settings.log_segment_bytes = 8 * 1024 * 1024;
    (void)mallopt(M_MMAP_THRESHOLD, 512 * 1024); /* frames given back are unmapped */
    again();
    char *value = malloc(BYTES + 1);
    char item[16], text[16];
    for (unsigned number = 0; number < ROUNDS; number++) {
        memset(value, (int)('a' + number), BYTES);
        value[0] = value[BYTES - 1] = '"';
        value[BYTES] = 0;
        cr_assert_str_eq(recorded_text(ask(WIRE_OP_SET, "g", "large", value), 0), "(nil)");
        recorder_clear(&recorder);
        for (unsigned small = 0; small < SMALL; small++) {
            snprintf(item, sizeof item, "i%u", small);
            snprintf(text, sizeof text, "%u", number * SMALL + small);
            (void)ask(WIRE_OP_SET, "g", item, text);
        }
    }
    again();
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_GET, "g", "large", NULL), 2), value);
    for (unsigned small = 0; small < SMALL; small++) {
        snprintf(item, sizeof item, "i%u", small);
        snprintf(text, sizeof text, "%u", (ROUNDS - 1) * SMALL + small);
        expect_result(ask(WIRE_OP_GET, "g", item, NULL), text);
    }
    free(value);
}

/* ---- snapshots ---- */

/* Snapshots are made beside writes, one after the other; the log's old files go. */
Test(durability, snapshots_replace_the_log_behind_them)
{
    life.settings.snapshot_log_bytes = 1024 * 1024;
    again();
    static char value[20001];
    memset(value, 'v', sizeof value - 1);
    value[0] = value[sizeof value - 2] = '"';
    char item[16], name[128];
    for (unsigned count = 0; count < 600; count++) {
        snprintf(item, sizeof item, "i%u", count % 100);
        put(count + 1, WIRE_OP_SET, "g", item, value);
        if (count % 4 == 0)
            turn();
    }
    settle();
    for (unsigned turns = 0; turns < TURNS_MAX && life.counters.snapshots < 2; turns++)
        turn();
    cr_assert_geq(life.counters.snapshots, 2);
    snprintf(name, sizeof name, "%s/data/log-0000000000000001", directory);
    cr_assert_neq(access(name, F_OK), 0, "the first segment is gone");
    expect_result(ask(WIRE_OP_DELETE, "g", "i7", NULL), NULL);
    again();
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_GET, "g", "i7", NULL), 2), "(nil)");
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_GET, "g", "i8", NULL), 2), value);
    struct store_figures figures;
    engine_figures(life.engine, &figures);
    cr_assert_eq(figures.items, 99);
}

/* However little was written, in the end it is in a snapshot; and not again when nothing was. */
Test(durability, a_snapshot_comes_when_the_last_one_is_old)
{
    life.settings.snapshot_interval_ms = 600000;
    again();
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    settle();
    cr_assert_eq(life.counters.snapshots, 0);
    life.now_ms += 600000;
    for (unsigned turns = 0; turns < TURNS_MAX && life.counters.snapshots < 1; turns++)
        turn();
    /* Another one would begin in the turn in which it is due, and end before the next life. */
    for (unsigned age = 0; age < 2; age++) {
        life.now_ms += 600000;
        turn();
    }
    for (unsigned turns = 0; turns < 200; turns++)
        turn();
    cr_assert_eq(life.counters.snapshots, 1);
    again();
    expect_result(ask(WIRE_OP_GET, "g", "a", NULL), "1");
}

Test(durability, lives_with_snapshots_all_the_time)
{
    life.settings.snapshot_log_bytes = 1; /* always due */
    lives_are_dropped((uint64_t)getpid(), 60);
}

/* ---- a disk that fails ---- */

/* A segment that cannot be written is given up; its frame goes to the next one, and nobody notices. */
Test(durability, a_failed_write_goes_to_the_next_segment)
{
    const struct faulty_plan plan = {.kind = FAULTY_TORN, .at = 2, .argument = EIO};
    faulty_device_plan(life.device, &plan, 1);
    for (unsigned count = 1; count <= 6; count++) {
        char value[16];
        snprintf(value, sizeof value, "%u", count);
        cr_assert_str_eq(recorded_text(ask(WIRE_OP_SET, "g", "a", value), 0), "(nil)");
    }
    cr_assert_eq(faulty_device_figures(life.device).faults, 1);
    again();
    expect_result(ask(WIRE_OP_GET, "g", "a", NULL), "6");
}

Test(durability, a_short_write_is_continued)
{
    static char value[100001];
    memset(value, 'v', sizeof value - 1);
    value[0] = value[sizeof value - 2] = '"';
    const struct faulty_plan plan = {.kind = FAULTY_SHORT, .at = 0, .count = 2, .argument = 9000};
    faulty_device_plan(life.device, &plan, 1);
    put(1, WIRE_OP_SET, "g", "a", value);
    cr_assert_str_eq(recorded_text(wait_answer(1), 0), "(nil)");
    cr_assert_eq(faulty_device_figures(life.device).faults, 2);
    again();
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_GET, "g", "a", NULL), 2), value);
}

/* When no segment can be written the log has failed: writes are refused with the cause, nothing that
 * may not be kept is shown, and everything else can be read. */
Test(durability, a_log_that_has_failed_refuses_writes_and_serves_reads)
{
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    (void)ask(WIRE_OP_SET, "h", "a", "2");
    unsigned shown = events();
    const struct faulty_plan plan = {.kind = FAULTY_ERROR, .count = UINT64_MAX, .argument = EIO};
    faulty_device_plan(life.device, &plan, 1);
    expect_error(ask(WIRE_OP_SET, "g", "a", "3"), "STREAM_SET_ERROR", "Input/output error");
    expect_error(ask(WIRE_OP_SET, "h", "a", "4"), "STREAM_SET_ERROR", "Input/output error");
    expect_error(ask(WIRE_OP_DELETE, "h", "a", NULL), "STREAM_DELETE_ERROR", "the log has failed");
    expect_error(ask(WIRE_OP_SEND, "h", NULL, "1"), "STREAM_SEND_ERROR", "the log has failed");
    expect_error(ask(WIRE_OP_GET, "g", "a", NULL), "STREAM_GET_ERROR", "not known");
    expect_result(ask(WIRE_OP_GET, "h", "a", NULL), "2");
    expect_result(ask(WIRE_OP_LIST, "h", NULL, NULL), "[2]");
    cr_assert_eq(events(), 0);
    cr_assert_eq(shown, 2);
    again();
    expect_result(ask(WIRE_OP_GET, "g", "a", NULL), "1");
    expect_result(ask(WIRE_OP_GET, "h", "a", NULL), "2");
}

/* A full disk is noticed before a write is applied; when there is room again writes go on. */
Test(durability, a_full_disk_refuses_writes_until_there_is_room)
{
    static char value[200001];
    memset(value, 'v', sizeof value - 1);
    value[0] = value[sizeof value - 2] = '"';
    refuse_making = ENOSPC;
    const struct recorded *answer = NULL;
    unsigned kept = 0;
    do { /* until the segments that are there already are full */
        answer = ask(WIRE_OP_SET, "g", "a", value);
        kept++;
        cr_assert_lt(kept, 200);
    } while (strcmp(recorded_text(answer, 0), "(nil)") == 0);
    expect_error(answer, "STREAM_SET_ERROR", "No space left on device");
    cr_assert_gt(kept, 10);
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_GET, "g", "a", NULL), 2), value);
    refuse_making = 0;
    for (unsigned turns = 0; turns < TURNS_MAX; turns++) {
        life.now_ms += 1000;
        durability_tick(life.durability, life.now_ms);
        turn();
        answer = ask(WIRE_OP_SET, "g", "a", "1");
        if (strcmp(recorded_text(answer, 0), "(nil)") == 0)
            break;
    }
    cr_assert_str_eq(recorded_text(answer, 0), "(nil)", "%s", recorded_text(answer, 1));
    again();
    expect_result(ask(WIRE_OP_GET, "g", "a", NULL), "1");
}

/* ---- positions that clients keep ---- */

static struct store_snapshot state_of(const char *group, struct buffer *out)
{
    struct store_reader *reader = store_reader_open(&life.segment, NULL);
    struct store_snapshot state = {0};
    cr_assert_eq(store_snapshot(reader, span_text("s"), span_text(group), NULL, &state, out),
                 WEIR_OK);
    store_reader_close(reader);
    return state;
}

static struct store_snapshot numbers_of(const char *group)
{
    struct buffer out;
    buffer_init(&out, 1 << 20);
    struct store_snapshot state = state_of(group, &out);
    buffer_fini(&out);
    return state;
}

static void restart_machine(void)
{
    static unsigned boots;
    snprintf(life.boot, sizeof life.boot, "boot %u", ++boots);
}

static const char *life_path(void)
{
    static char path[SETTINGS_TEXT_BYTES + 8];
    snprintf(path, sizeof path, "%s/life", life.settings.data_dir);
    return path;
}

/* Whether "g" goes on in its epoch; in any case its items and seq do, and epochs do not fall. */
static bool goes_on_in_its_epoch(void (*end)(void))
{
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    (void)ask(WIRE_OP_SET, "g", "b", "2");
    (void)ask(WIRE_OP_SET, "h", "a", "0");
    struct store_snapshot before = numbers_of("g");
    end();
    begin();
    struct store_snapshot after = numbers_of("g");
    cr_assert_eq(after.seq, before.seq);
    cr_assert_geq(after.epoch, before.epoch);
    expect_result(ask(WIRE_OP_LIST, "g", NULL, NULL), "[1,2]");
    bool is_kept = after.epoch == before.epoch;
    cr_assert(is_kept || !durability_keeps(life.durability, 0), "gateways start anew with it");
    cr_assert_eq(numbers_of("h").epoch == before.epoch, is_kept, "all groups do the same");
    cr_assert_geq(numbers_of("none").epoch, after.epoch);
    return is_kept;
}

static void drop_with_machine(void)
{
    drop();
    restart_machine();
}

static void stop_with_machine(void)
{
    stop();
    restart_machine();
}

static void drop_without_record(void)
{
    drop();
    cr_assert_eq(unlink(life_path()), 0);
}

static void drop_on_silent_machine(void)
{
    drop();
    life.boot[0] = 0;
}

Test(durability, positions_outlive_any_end_of_what_is_synced)
{
    cr_assert(goes_on_in_its_epoch(drop));
    cr_assert(goes_on_in_its_epoch(drop_with_machine));
    cr_assert(goes_on_in_its_epoch(stop));
    cr_assert(goes_on_in_its_epoch(stop_with_machine));
    cr_assert_not(goes_on_in_its_epoch(drop_without_record), "a copy of a directory");
    cr_assert(goes_on_in_its_epoch(drop));
}

Test(durability_written, positions_outlive_the_process_and_a_stop_but_no_other_end_of_the_machine)
{
    cr_assert(goes_on_in_its_epoch(drop));
    cr_assert_not(goes_on_in_its_epoch(drop_with_machine));
    cr_assert(goes_on_in_its_epoch(drop));
    cr_assert(goes_on_in_its_epoch(stop_with_machine));
    cr_assert_not(goes_on_in_its_epoch(drop_without_record));
    cr_assert_not(goes_on_in_its_epoch(drop_on_silent_machine));
    cr_assert_not(goes_on_in_its_epoch(drop), "what is not known is not the same");
}

Test(durability_behind, positions_outlive_nothing_but_a_stop)
{
    settle();
    cr_assert(goes_on_in_its_epoch(stop));
    cr_assert(goes_on_in_its_epoch(stop_with_machine));
    (void)ask(WIRE_OP_SET, "g", "c", "3");
    (void)ask(WIRE_OP_DELETE, "g", "c", NULL);
    settle();
    struct store_snapshot before = numbers_of("g");
    again();
    cr_assert_eq(numbers_of("g").seq, before.seq);
    cr_assert_gt(numbers_of("g").epoch, before.epoch);
}

/* The level that counts is that of the life that has shown something. */
Test(durability_behind, the_level_of_the_last_life_counts)
{
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    settle();
    uint64_t epoch = numbers_of("g").epoch;
    life.settings.durability = SETTINGS_DURABILITY_SYNCED;
    again();
    cr_assert_gt(numbers_of("g").epoch, epoch);
    cr_assert_not(durability_keeps(life.durability, 0));
    epoch = numbers_of("g").epoch;
    life.settings.durability = SETTINGS_DURABILITY_MEMORY;
    again();
    cr_assert_eq(numbers_of("g").epoch, epoch);
    cr_assert(durability_keeps(life.durability, 0));
}

/* What people cut off may have been shown. */
Test(durability, positions_do_not_outlive_a_cut_by_hand)
{
    struct weir_error error = {0};
    struct wal_recovered recovered;
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    (void)ask(WIRE_OP_SET, "g", "a", "2");
    uint64_t epoch = numbers_of("g").epoch;
    drop();
    const struct wal_recovery_options options = {.io = &wal_io_system,
                                                 .directory = life.settings.data_dir};
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(wal_cut(&wal_io_system, life.settings.data_dir, recovered.end_segment,
                         recovered.end_offset - WAL_BLOCK_BYTES, &error),
                 WEIR_OK, "%s", error.text);
    begin();
    cr_assert_eq(numbers_of("g").seq, 1);
    cr_assert_gt(numbers_of("g").epoch, epoch);
}

/* Nothing is written for a group that is renewed, and yet it has the same epoch in every later life. */
Test(durability_written, a_renewed_epoch_stays)
{
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    (void)ask(WIRE_OP_SET, "h", "a", "2");
    uint64_t first = numbers_of("g").epoch;
    drop_with_machine();
    begin();
    uint64_t renewed = numbers_of("g").epoch;
    cr_assert_gt(renewed, first);
    (void)ask(WIRE_OP_SET, "h", "b", "3");
    (void)ask(WIRE_OP_SET, "new", "a", "4");
    cr_assert_gt(numbers_of("new").epoch, renewed,
                 "a group that is made is not one that came back");
    for (unsigned lives = 0; lives < 3; lives++) {
        again();
        cr_assert_eq(numbers_of("g").epoch, renewed);
        cr_assert_eq(numbers_of("g").seq, 1);
        cr_assert_eq(numbers_of("h").epoch, renewed);
        cr_assert_eq(numbers_of("h").seq, 2);
        expect_result(ask(WIRE_OP_LIST, "h", NULL, NULL), "[2,3]");
    }
    drop_with_machine();
    begin();
    cr_assert_gt(numbers_of("g").epoch, renewed);
    cr_assert_gt(numbers_of("g").epoch, numbers_of("none").epoch - 2);
    expect_result(ask(WIRE_OP_LIST, "h", NULL, NULL), "[2,3]");
}

/* A disk that refuses a sync may have dropped what the kernel had, and the kernel goes on. */
Test(durability_written, a_failed_log_is_no_proof_of_anything)
{
    (void)ask(WIRE_OP_SET, "g", "a", "1");
    uint64_t epoch = numbers_of("g").epoch;
    const struct faulty_plan plan = {.kind = FAULTY_ERROR, .count = UINT64_MAX, .argument = EIO};
    faulty_device_plan(life.device, &plan, 1);
    expect_error(ask(WIRE_OP_SET, "g", "a", "2"), "STREAM_SET_ERROR", "Input/output error");
    turn();
    again();
    cr_assert_gt(numbers_of("g").epoch, epoch);
    expect_result(ask(WIRE_OP_GET, "g", "a", NULL), "1");
}

/* ---- ... and what they mean ---- */

/* What was shown at a position: an event, or the state of its group. */
struct shown {
    uint64_t group, epoch, seq, is_state;
    uint64_t sum; /* 0: free */
};
enum { SHOWN_MAX = 1 << 19 };
static struct shown shown_table[SHOWN_MAX];

static uint64_t sum_of(uint64_t sum, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ at[i]) * 0x100000001b3ull;
    return sum | 1;
}

static void note_shown(const struct shown *is)
{
    uint64_t key[] = {is->group, is->epoch, is->seq, is->is_state};
    uint64_t at = sum_of(0xcbf29ce484222325ull, key, sizeof key) >> 7;
    for (unsigned probes = 0; probes < SHOWN_MAX; probes++) {
        struct shown *entry = &shown_table[(at + probes) % SHOWN_MAX];
        if (entry->sum == 0) {
            *entry = *is;
            return;
        }
        if (entry->group != is->group || entry->epoch != is->epoch || entry->seq != is->seq ||
            entry->is_state != is->is_state)
            continue;
        cr_assert_eq(entry->sum, is->sum, "group %llu: %s (%llu, %llu) had other content",
                     (unsigned long long)is->group, is->is_state ? "state" : "event",
                     (unsigned long long)is->epoch, (unsigned long long)is->seq);
        return;
    }
    cr_assert_fail("too much is shown");
}

enum { POSITION_GROUPS = 4, POSITION_ITEMS = 5 };
static const char *const position_groups[POSITION_GROUPS] = {"g", "h", "i", "j"};

static uint64_t group_of_hash(uint64_t hash)
{
    for (unsigned group = 0; group < POSITION_GROUPS; group++)
        if (store_group_hash(segment_hash_seed(&life.segment), span_text("s"),
                             span_text(position_groups[group])) == hash)
            return group;
    cr_assert_fail("a group nobody has named");
    return 0;
}

static void note_events(void)
{
    struct ring_record record;
    struct buffer out;
    buffer_init(&out, 1 << 20);
    while (ring_read(&life.ring, &record, &out) == WEIR_OK) {
        const struct shown event = {
            .group = group_of_hash(record.group_hash),
            .epoch = record.epoch,
            .seq = record.seq,
            .sum = sum_of(record.kind, out.data + record.json_offset,
                          record.frame_bytes - record.json_offset),
        };
        note_shown(&event);
        buffer_clear(&out);
    }
    buffer_fini(&out);
}

/* Only when nothing waits for the log: this reader is shown everything. */
static void note_states(void)
{
    struct buffer out;
    buffer_init(&out, 1 << 20);
    for (unsigned group = 0; group < POSITION_GROUPS; group++) {
        buffer_clear(&out);
        struct store_snapshot is = state_of(position_groups[group], &out);
        const struct shown state = {
            .group = group,
            .epoch = is.epoch,
            .seq = is.seq,
            .is_state = 1,
            .sum = sum_of(1, out.data, out.bytes),
        };
        note_shown(&state);
    }
    buffer_fini(&out);
}

/* The newest segment as it was when the life began: what the disk has for sure. */
static struct {
    char path[SETTINGS_TEXT_BYTES + 64];
    char *bytes;
    size_t size;
} disk;

static size_t newest_segment(char *path, size_t path_bytes)
{
    unsigned number = 1;
    struct stat status = {0};
    for (;; number++) {
        snprintf(path, path_bytes, "%s/log-%020u", life.settings.data_dir, number + 1);
        if (stat(path, &status) != 0)
            break;
    }
    /* The last one is prepared and empty. */
    snprintf(path, path_bytes, "%s/log-%020u", life.settings.data_dir,
             number > 1 ? number - 1 : number);
    return stat(path, &status) == 0 ? (size_t)status.st_size : 0;
}

static void remember_disk(void)
{
    free(disk.bytes);
    disk.size = newest_segment(disk.path, sizeof disk.path);
    disk.bytes = malloc(disk.size);
    int fd = open(disk.path, O_RDONLY);
    cr_assert_eq(read(fd, disk.bytes, disk.size), (ssize_t)disk.size);
    close(fd);
}

/* Has the one behind it frames? */
static bool segment_was_left(void)
{
    char path[sizeof disk.path + 8];
    char block[WAL_BLOCK_BYTES] = {0};
    static const char zeros[sizeof block];
    unsigned number = 0;
    size_t digits = strlen(disk.path) - 20;
    cr_assert_eq(sscanf(disk.path + digits, "%u", &number), 1);
    snprintf(path, sizeof path, "%.*s%020u", (int)digits, disk.path, number + 1);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return false;
    bool has_frames = pread(fd, block, sizeof block, WAL_BLOCK_BYTES) == (ssize_t)sizeof block &&
                      memcmp(block, zeros, sizeof block) != 0;
    close(fd);
    return has_frames;
}

/* Blocks of this life's frames go back to what they were: all from one on, or any. A segment that was
 * left meanwhile was synced then, and keeps them. */
static void lose_power(unsigned short state[3])
{
    enum { BLOCK = WAL_BLOCK_BYTES };
    static char block[BLOCK];
    bool is_tail = nrand48(state) % 2 == 0;
    if (segment_was_left()) {
        restart_machine();
        return;
    }
    int fd = open(disk.path, O_RDWR);
    size_t changed = 0, lost_from = 0;
    for (size_t at = BLOCK; at < disk.size; at += BLOCK) {
        cr_assert_eq(pread(fd, block, BLOCK, (off_t)at), BLOCK);
        changed += memcmp(block, disk.bytes + at, BLOCK) != 0;
    }
    lost_from = changed == 0 ? 0 : (size_t)nrand48(state) % changed;
    changed = 0;
    for (size_t at = BLOCK; at < disk.size; at += BLOCK) {
        cr_assert_eq(pread(fd, block, BLOCK, (off_t)at), BLOCK);
        if (memcmp(block, disk.bytes + at, BLOCK) == 0)
            continue;
        bool is_lost = is_tail ? changed >= lost_from : nrand48(state) % 4 == 0;
        changed++;
        if (is_lost)
            cr_assert_eq(pwrite(fd, disk.bytes + at, BLOCK, (off_t)at), BLOCK);
    }
    close(fd);
    restart_machine();
}

static void write_something(unsigned short state[3])
{
    static uint64_t id, value;
    char item[8], text[32];
    snprintf(item, sizeof item, "%u", (unsigned)(nrand48(state) % POSITION_ITEMS));
    snprintf(text, sizeof text, "%llu", (unsigned long long)++value);
    const char *group = position_groups[nrand48(state) % POSITION_GROUPS];
    unsigned kind = (unsigned)(nrand48(state) % 8);
    if (kind < 4)
        put(++id, WIRE_OP_SET, group, item, text);
    else if (kind < 7)
        put(++id, WIRE_OP_DELETE, group, item, NULL);
    else
        put(++id, WIRE_OP_SEND, group, NULL, text);
}

/* Method: lives at any level end in any way; all events that come out of the ring and the states of the
 *         groups are written down by their position, and compared when a position comes again. At
 *         levels below SYNCED the power takes a part of what was written since the life began. Few
 *         empty groups are remembered, so that some are forgotten and made again. */
static void positions_mean_one_thing(uint64_t seed, unsigned lives)
{
    static const enum settings_durability levels[] = {
        SETTINGS_DURABILITY_MEMORY, SETTINGS_DURABILITY_WRITTEN, SETTINGS_DURABILITY_SYNCED};
    unsigned short state[3] = {(unsigned short)seed, (unsigned short)(seed >> 16), 0x330E};
    (void)fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    memset(shown_table, 0, sizeof shown_table);
    life.empty_groups_max = 1;
    stop();
    for (unsigned number = 0; number < lives; number++) {
        life.settings.durability = levels[nrand48(state) % 3];
        begin();
        remember_disk();
        note_states();
        for (long writes = nrand48(state) % 60; writes > 0; writes--) {
            write_something(state);
            if (nrand48(state) % 3 == 0)
                turn();
            note_events();
        }
        bool is_settled = nrand48(state) % 2 == 0;
        if (is_settled) {
            settle();
            note_events();
            note_states();
        }
        unsigned end = (unsigned)(nrand48(state) % 4);
        if (end == 0) {
            stop();
            continue;
        }
        drop();
        if (end == 1 && life.settings.durability != SETTINGS_DURABILITY_SYNCED)
            lose_power(state);
    }
    begin();
    free(disk.bytes);
    disk.bytes = NULL;
}

Test(durability, a_position_never_means_two_histories)
{
    positions_mean_one_thing((uint64_t)getpid(), 400 / LIVES_SHARE);
}

Test(durability_plain, a_position_never_means_two_histories)
{
    positions_mean_one_thing((uint64_t)getpid() + 1, 100 / LIVES_SHARE);
}

/* ---- who may write ---- */

Test(durability, a_second_broker_is_refused)
{
    struct weir_error error = {0};
    struct durability *second = NULL;
    const struct durability_seam seam = {0};
    cr_assert_eq(
        durability_open(&second, &life.settings, life.engine, &seam, &life.counters, &error),
        WEIR_REFUSED);
    cr_assert(strstr(error.text, "data"), "%s", error.text);
}

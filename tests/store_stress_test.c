/* Readers in other processes (and, for the thread sanitizer, a thread) against a writer that does
 * not wait for them.
 *
 * What write n of a group does is a function of the seed, the group and the state after write n -
 * 1. So a reader that knows the seed can work out the group's state at any seq, and compare a
 * snapshot with it byte for byte, without being told.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/store_fixture.h"

enum { GROUPS = 4, ITEMS = 40, PADDING_MAX = 600, READERS = 4 };

/* ---- what is written ---- */

struct simulation {
    uint64_t seed;
    unsigned group;
    uint64_t seq;
    unsigned count;
    unsigned order[ITEMS];
    uint64_t written[ITEMS]; /* seq of the set, by place in the list */
};

enum step_kind { STEP_SET, STEP_DELETE, STEP_SEND };

struct step {
    enum step_kind kind;
    unsigned item;
};

static struct step simulation_step(struct simulation *simulation)
{
    uint64_t state = simulation->seed + simulation->group * 1000003ull + simulation->seq * 7919ull;
    uint64_t roll = fixture_random(&state);
    struct step step = {.item = (unsigned)(roll % ITEMS)};
    unsigned at = 0;
    while (at < simulation->count && simulation->order[at] != step.item)
        at++;
    simulation->seq++;
    if (roll >> 60 == 0) {
        step.kind = STEP_SEND;
    } else if (at < simulation->count && (roll >> 32) % 5 < 2) {
        step.kind = STEP_DELETE;
        simulation->count--;
        for (; at < simulation->count; at++) {
            simulation->order[at] = simulation->order[at + 1];
            simulation->written[at] = simulation->written[at + 1];
        }
    } else {
        step.kind = STEP_SET;
        if (at == simulation->count)
            simulation->order[simulation->count++] = step.item;
        simulation->written[at] = simulation->seq;
    }
    return step;
}

static size_t value_write(char *text, unsigned group, unsigned item, uint64_t seq)
{
    int bytes = sprintf(text, "\"%u.%u.%llu.", group, item, (unsigned long long)seq);
    size_t padding = (seq * 31 + item * 17) % PADDING_MAX;
    memset(text + bytes, 'a' + (int)(seq % 26), padding);
    text[(size_t)bytes + padding] = '"';
    return (size_t)bytes + padding + 1;
}

static struct store_key key_of(unsigned group, unsigned item, char names[2][16])
{
    int group_bytes = sprintf(names[0], "group %u", group);
    int item_bytes = sprintf(names[1], "item/%u", item);
    return (struct store_key){SPAN_LITERAL("stress"), span_of(names[0], (size_t)group_bytes),
                              span_of(names[1], (size_t)item_bytes)};
}

/* ---- the reader ---- */

enum {
    FAIL_ATTACH = 10,
    FAIL_MEMORY,
    FAIL_STATUS,
    FAIL_SEQ,
    FAIL_TEXT,
    FAIL_GET,
    FAIL_NOT_REVOKED
};

/* In memory that all processes share. */
struct report {
    _Atomic uint64_t stop;
    _Atomic uint64_t snapshots[READERS];
    _Atomic uint64_t again[READERS]; /* PENDING, LAPPED, REVOKED */
};

struct observer {
    struct report *report;
    unsigned index;
    uint64_t seed;
    const struct segment *segment;
    struct reader *reader;
    int result; /* of a thread */
};

static bool snapshot_is_exact(const struct simulation *simulation, struct span text)
{
    static _Thread_local char value[PADDING_MAX + 64];
    size_t at = 0;
    if (text.bytes < 2 || text.data[at++] != '[')
        return false;
    for (unsigned i = 0; i < simulation->count; i++) {
        size_t bytes =
            value_write(value, simulation->group, simulation->order[i], simulation->written[i]);
        if (i > 0 && text.data[at++] != ',')
            return false;
        if (text.bytes - at <= bytes || memcmp(text.data + at, value, bytes) != 0)
            return false;
        at += bytes;
    }
    return at + 1 == text.bytes && text.data[at] == ']';
}

static bool item_is_exact(const struct simulation *simulation, unsigned item, struct span text)
{
    static _Thread_local char value[PADDING_MAX + 64];
    for (unsigned i = 0; i < simulation->count; i++)
        if (simulation->order[i] == item)
            return span_equal(text, span_of(value, value_write(value, simulation->group, item,
                                                               simulation->written[i])));
    return span_equal(text, SPAN_LITERAL("null"));
}

/* A plain get: the item's value at some seq that is not before what this reader has seen. */
static bool get_is_plausible(struct store_reader *reader, const struct simulation *simulation,
                             unsigned item, struct buffer *out)
{
    char names[2][16], value[PADDING_MAX + 64];
    struct store_key key = key_of(simulation->group, item, names);
    buffer_clear(out);
    enum weir_status status = store_read_item(reader, &key, out);
    if (status == WEIR_EMPTY || status == WEIR_REVOKED)
        return true;
    if (status != WEIR_OK || buffer_append(out, span_of("", 1)) != WEIR_OK)
        return false;
    unsigned group, got;
    unsigned long long seq;
    if (sscanf(out->data, "\"%u.%u.%llu.", &group, &got, &seq) != 3 || group != simulation->group ||
        got != item)
        return false;
    for (unsigned i = 0; i < simulation->count; i++)
        if (simulation->order[i] == item && seq < simulation->written[i])
            return false;
    return span_equal(span_of(out->data, out->bytes - 1),
                      span_of(value, value_write(value, group, item, seq)));
}

/* One snapshot and one get; 0, or which check failed. */
static int observe_once(const struct observer *observer, struct store_reader *reader,
                        struct simulation *simulations, uint64_t roll, struct buffer *out)
{
    struct simulation *simulation = &simulations[roll % GROUPS];
    unsigned item = (unsigned)((roll >> 8) % ITEMS);
    bool of_item = (roll >> 20) % 4 == 0;
    char names[2][16];
    struct store_key key = key_of(simulation->group, item, names);
    struct store_snapshot snapshot;
    buffer_clear(out);
    enum weir_status status =
        store_snapshot(reader, key.stream, key.group, of_item ? &key.item : NULL, &snapshot, out);
    if (status == WEIR_PENDING || status == WEIR_LAPPED || status == WEIR_REVOKED) {
        atomic_fetch_add(&observer->report->again[observer->index], 1);
        return 0;
    }
    if (status != WEIR_OK) {
        (void)fprintf(stderr, "snapshot: %s\n", weir_status_text(status));
        return FAIL_STATUS;
    }
    if (snapshot.seq < simulation->seq)
        return FAIL_SEQ;
    while (simulation->seq < snapshot.seq)
        (void)simulation_step(simulation);
    if (!(of_item ? item_is_exact(simulation, item, buffer_span(out))
                  : snapshot_is_exact(simulation, buffer_span(out)))) {
        (void)fprintf(stderr, "not the state at seq %llu: %.*s\n", (unsigned long long)snapshot.seq,
                      out->bytes > 2000 ? 2000 : (int)out->bytes, out->data);
        return FAIL_TEXT;
    }
    atomic_fetch_add(&observer->report->snapshots[observer->index], 1);
    return get_is_plausible(reader, simulation, item, out) ? 0 : FAIL_GET;
}

static int observe(const struct observer *observer)
{
    struct store_reader *reader = store_reader_open(observer->segment, observer->reader);
    struct simulation *simulations = calloc(GROUPS, sizeof *simulations);
    struct buffer out;
    buffer_init(&out, 1 << 20);
    if (reader == NULL || simulations == NULL)
        return FAIL_MEMORY;
    for (unsigned group = 0; group < GROUPS; group++)
        simulations[group] = (struct simulation){.seed = observer->seed, .group = group};
    uint64_t random = observer->seed + observer->index;
    int result = 0;
    while (result == 0 && atomic_load(&observer->report->stop) == 0)
        result = observe_once(observer, reader, simulations, fixture_random(&random), &out);
    store_reader_close(reader);
    buffer_fini(&out);
    free(simulations);
    return result;
}

/* ---- processes ---- */

static struct host host;
static struct report *report;
static struct simulation written[GROUPS];

static void open_all(uint64_t ring_bytes, uint64_t seed)
{
    struct host_options options = {
        .ring_bytes = ring_bytes,
        .store_bytes = 16ull << 20,
        .store = {.items_max = 1000000, .groups_max = 1000, .empty_groups_max = 100}};
    struct weir_error error = {0};
    cr_assert_eq(host_open(&host, &options, &error), WEIR_OK, "%s", error.text);
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(report, MAP_FAILED);
    for (unsigned group = 0; group < GROUPS; group++)
        written[group] = (struct simulation){.seed = seed, .group = group};
}

static void close_all(void)
{
    munmap(report, sizeof *report);
    host_close(&host);
}

struct child {
    pid_t pid;
    uint32_t slot;
};

/* In the child: its own read-only mapping and control page, as a gateway has them. */
static int attach(struct segment *segment, struct reader *reader, uint32_t slot, int control_fd,
                  int event_fd)
{
    struct weir_error error = {0};
    if (segment_attach(segment, dup(host.segment.fd), &error) != WEIR_OK ||
        reader_attach(reader, segment, slot, control_fd, event_fd, &error) != WEIR_OK) {
        (void)fprintf(stderr, "attach: %s\n", error.text);
        return FAIL_ATTACH;
    }
    return 0;
}

static struct child start_child(unsigned index, uint64_t seed,
                                int (*run)(struct observer *observer))
{
    struct child child;
    int control_fd, event_fd;
    cr_assert_eq(readers_attach(host.readers, 1, &child.slot, &control_fd, &event_fd, NULL),
                 WEIR_OK);
    child.pid = fork();
    if (child.pid == 0) {
        struct segment segment;
        struct reader reader;
        struct observer observer = {
            .report = report, .index = index, .seed = seed, .segment = &segment, .reader = &reader};
        int result = attach(&segment, &reader, child.slot, control_fd, event_fd);
        _exit(result != 0 ? result : run(&observer));
    }
    cr_assert_gt(child.pid, 0);
    return child;
}

static int run_observe(struct observer *observer)
{
    return observe(observer);
}

static void assert_child_exits_well(struct child child)
{
    int status;
    cr_assert_eq(waitpid(child.pid, &status, 0), child.pid);
    cr_assert(WIFEXITED(status), "a reader died: status %x", status);
    cr_assert_eq(WEXITSTATUS(status), 0, "a reader found fault %d", WEXITSTATUS(status));
    readers_detach(host.readers, child.slot);
}

static enum weir_status write_one(unsigned group)
{
    char names[2][16], value[PADDING_MAX + 64];
    struct step step = simulation_step(&written[group]);
    struct store_key key = key_of(group, step.item, names);
    struct store_change change;
    if (step.kind == STEP_DELETE)
        return host_delete(&host, &key, &change);
    if (step.kind == STEP_SEND)
        return host_send(&host, &key, &change);
    size_t bytes = value_write(value, group, step.item, written[group].seq);
    return host_set(&host, &key, span_of(value, bytes), &change);
}

/* One turn of the broker: `writes` writes, then publish, then the end of the turn. */
static enum weir_status try_write_turn(uint64_t roll, unsigned writes)
{
    enum weir_status status = WEIR_OK;
    host.hold_ring = true;
    for (unsigned i = 0; i < writes && status == WEIR_OK; i++)
        status = write_one((unsigned)((roll >> (i % 32)) % GROUPS));
    ring_publish(host.ring);
    host.hold_ring = false;
    host.now_ms += 7;
    store_turn_end(host.store);
    return status;
}

static void write_turn(uint64_t roll, unsigned writes)
{
    enum weir_status status = try_write_turn(roll, writes);
    cr_assert_eq(status, WEIR_OK, "write: %s", weir_status_text(status));
}

static void assert_whole(void)
{
    struct weir_error error = {0};
    cr_assert_eq(store_check(host.store, &error), WEIR_OK, "%s", error.text);
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

TestSuite(store_stress, .timeout = HANG_SECONDS);

/* Readers take snapshots of groups and items while the writer runs; one is stopped and continued,
 * one is killed and another started in its place. Every snapshot equals the state at its seq; no
 * write is ever refused. */
Test(store_stress, snapshots_are_exact)
{
    uint64_t seed = fixture_seed("store_stress/snapshots_are_exact");
    open_all(1 << 20, seed);
    struct child children[READERS];
    for (unsigned i = 0; i < READERS; i++)
        children[i] = start_child(i, seed, run_observe);
    uint64_t random = seed;
    bool is_stopped = false;
    double end = seconds() + 6;
    for (unsigned turn = 0; seconds() < end; turn++) {
        write_turn(fixture_random(&random), 1 + turn % 23);
        if (turn % 400 == 200) {
            cr_assert_eq(kill(children[0].pid, is_stopped ? SIGCONT : SIGSTOP), 0);
            is_stopped = !is_stopped;
        }
        if (turn % 4000 == 3999) {
            int status;
            cr_assert_eq(kill(children[1].pid, SIGKILL), 0);
            cr_assert_eq(waitpid(children[1].pid, &status, 0), children[1].pid);
            cr_assert(WIFSIGNALED(status), "a reader found fault %d", WEXITSTATUS(status));
            readers_detach(host.readers, children[1].slot);
            children[1] = start_child(1, seed, run_observe);
        }
        if (turn % 16 == 0)
            (void)usleep(300); /* the machine may have fewer cores than we have processes */
    }
    if (is_stopped)
        cr_assert_eq(kill(children[0].pid, SIGCONT), 0);
    /* Nobody writes now: everybody gets the last state, the stopped one as well. The second snapshot from
     * now on was begun when nobody wrote any more. */
    uint64_t quiet[READERS];
    for (unsigned i = 0; i < READERS; i++)
        quiet[i] = atomic_load(&report->snapshots[i]);
    double hang = seconds() + HANG_SECONDS / 2;
    for (unsigned i = 0; i < READERS; i++)
        while (atomic_load(&report->snapshots[i]) < quiet[i] + 2 && seconds() < hang)
            (void)usleep(1000);
    atomic_store(&report->stop, 1);
    for (unsigned i = 0; i < READERS; i++)
        assert_child_exits_well(children[i]);
    for (unsigned i = 0; i < READERS; i++) {
        cr_assert_geq(atomic_load(&report->snapshots[i]), quiet[i] + 2, "reader %u does not read",
                      i);
        (void)fprintf(stderr, "reader %u: %llu snapshots, %llu to be taken again\n", i,
                      (unsigned long long)atomic_load(&report->snapshots[i]),
                      (unsigned long long)atomic_load(&report->again[i]));
    }
    assert_whole();
    close_all();
}

static int run_stopped(struct observer *observer)
{
    reader_enter(observer->reader);
    (void)raise(SIGSTOP);
    if (reader_leave(observer->reader) != WEIR_REVOKED)
        return FAIL_NOT_REVOKED;
    return observe(observer);
}

/* A reader that is stopped in its epoch is revoked, its memory is used again, and when it goes on
 * it is told, and right. */
Test(store_stress, stopped_reader_is_revoked)
{
    uint64_t seed = fixture_seed("store_stress/stopped_reader_is_revoked");
    open_all(1 << 20, seed);
    struct child child = start_child(0, seed, run_stopped);
    int status;
    cr_assert_eq(waitpid(child.pid, &status, WUNTRACED), child.pid);
    cr_assert(WIFSTOPPED(status));
    uint64_t random = seed;
    struct store_figures figures;
    uint64_t highest = 0;
    unsigned turns = 0;
    do {
        write_turn(fixture_random(&random), 20);
        store_figures(host.store, &figures);
        highest = figures.retired_bytes > highest ? figures.retired_bytes : highest;
    } while (figures.readers_revoked == 0 && ++turns < 100000);
    cr_assert_eq(figures.readers_revoked, 1);
    cr_assert_gt(highest, 512 * 1024);
    for (unsigned i = 0; i < 1000; i++)
        write_turn(fixture_random(&random), 20);
    store_figures(host.store, &figures);
    cr_assert_lt(figures.retired_bytes, 256 * 1024);
    cr_assert_eq(figures.readers_revoked, 1);
    cr_assert_eq(kill(child.pid, SIGCONT), 0);
    while (atomic_load(&report->snapshots[0]) < 100 && waitpid(child.pid, &status, WNOHANG) == 0)
        write_turn(fixture_random(&random), 3);
    atomic_store(&report->stop, 1);
    cr_assert_geq(atomic_load(&report->snapshots[0]), 100, "the reader ended: %x", status);
    assert_child_exits_well(child);
    assert_whole();
    close_all();
}

/* A reader in the way of a write that would be refused is revoked at once, whatever the clock says. */
Test(store_stress, full_arena_revokes_at_once)
{
    uint64_t seed = fixture_seed("store_stress/full_arena_revokes_at_once");
    open_all(1 << 20, seed);
    struct child child = start_child(0, seed, run_stopped);
    int status;
    cr_assert_eq(waitpid(child.pid, &status, WUNTRACED), child.pid);
    cr_assert(WIFSTOPPED(status));
    uint64_t random = seed;
    struct store_figures figures;
    unsigned turns = 0;
    do {
        host.now_ms -= 7; /* the clock stands still */
        write_turn(fixture_random(&random), 20);
        store_figures(host.store, &figures);
    } while (figures.readers_revoked == 0 && ++turns < 100000);
    cr_assert_eq(figures.readers_revoked, 1);
    atomic_store(&report->stop, 1);
    cr_assert_eq(kill(child.pid, SIGCONT), 0);
    assert_child_exits_well(child);
    assert_whole();
    close_all();
}

static int run_killed(struct observer *observer)
{
    reader_enter(observer->reader);
    (void)raise(SIGKILL);
    return FAIL_STATUS;
}

/* What a reader that was killed while reading has held comes back when its slot is given up. */
Test(store_stress, killed_reader_holds_nothing)
{
    uint64_t seed = fixture_seed("store_stress/killed_reader_holds_nothing");
    open_all(1 << 20, seed);
    struct child child = start_child(0, seed, run_killed);
    int status;
    cr_assert_eq(waitpid(child.pid, &status, 0), child.pid);
    cr_assert(WIFSIGNALED(status));
    uint64_t random = seed;
    struct store_figures figures;
    for (unsigned i = 0; i < 20; i++)
        write_turn(fixture_random(&random), 50);
    store_figures(host.store, &figures);
    uint64_t held = figures.retired_bytes;
    cr_assert_gt(held, 50000);
    readers_detach(host.readers, child.slot);
    write_turn(fixture_random(&random), 1);
    store_figures(host.store, &figures);
    cr_assert_eq(figures.retired_bytes, 0);
    cr_assert_eq(figures.readers_revoked, 0);
    assert_whole();
    close_all();
}

static void *run_thread(void *argument)
{
    struct observer *observer = argument;
    observer->result = observe(observer);
    return NULL;
}

/* The same as a thread of the writer's process, so that the thread sanitizer sees both sides. */
Test(store_stress, thread_reads_while_the_writer_runs)
{
    uint64_t seed = fixture_seed("store_stress/thread_reads_while_the_writer_runs");
    open_all(1 << 20, seed);
    uint32_t slot;
    int control_fd, event_fd;
    struct weir_error error = {0};
    struct reader reader;
    cr_assert_eq(readers_attach(host.readers, 1, &slot, &control_fd, &event_fd, &error), WEIR_OK);
    cr_assert_eq(
        reader_attach(&reader, &host.segment, slot, dup(control_fd), dup(event_fd), &error),
        WEIR_OK, "%s", error.text);
    struct observer observer = {
        .report = report, .seed = seed, .segment = &host.segment, .reader = &reader};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, run_thread, &observer), 0);
    uint64_t random = seed;
    double begun = seconds();
    for (unsigned turn = 0; seconds() < begun + 3 || (atomic_load(&report->snapshots[0]) <= 100 &&
                                                      seconds() < begun + HANG_SECONDS / 2);
         turn++)
        write_turn(fixture_random(&random), 1 + turn % 23);
    atomic_store(&report->stop, 1);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(observer.result, 0);
    cr_assert_gt(atomic_load(&report->snapshots[0]), 100);
    reader_detach(&reader);
    readers_detach(host.readers, slot);
    assert_whole();
    close_all();
}

/* The writer is killed at any point of a write: what it leaves can be read, and a snapshot is exact
 * or says PENDING. */
Test(store_stress, killed_writer_leaves_a_readable_store)
{
    uint64_t seed = fixture_seed("store_stress/killed_writer_leaves_a_readable_store");
    uint64_t random = seed;
    unsigned exact = 0;
    for (unsigned round = 0; round < 40; round++) {
        open_all(1 << 20, seed + round);
        pid_t pid = fork();
        if (pid == 0)
            for (uint64_t roll = seed;;)
                if (try_write_turn(fixture_random(&roll), 20) != WEIR_OK)
                    _exit(FAIL_STATUS);
        cr_assert_gt(pid, 0);
        (void)usleep(1000 + (useconds_t)(fixture_random(&random) % 20000));
        int status;
        cr_assert_eq(kill(pid, SIGKILL), 0);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert(WIFSIGNALED(status), "a write was refused");
        struct observer observer = {
            .report = report, .seed = seed + round, .segment = &host.segment};
        struct store_reader *reader = store_reader_open(&host.segment, NULL);
        struct simulation simulations[GROUPS];
        struct buffer out;
        buffer_init(&out, 1 << 20);
        memcpy(simulations, written, sizeof written); /* the parent has written nothing */
        for (unsigned i = 0; i < 200; i++)
            cr_assert_eq(
                observe_once(&observer, reader, simulations, fixture_random(&random), &out), 0);
        buffer_clear(&out);
        cr_assert_eq(store_list_all(reader, &out), WEIR_OK);
        exact += atomic_load(&report->snapshots[0]) > 0;
        buffer_fini(&out);
        store_reader_close(reader);
        close_all();
    }
    cr_assert_gt(exact, 20);
}

struct numbers_observer {
    struct store_reader *reader;
    _Atomic bool stop;
    uint64_t base_ms;
    _Atomic uint64_t looks;
    uint64_t torn, backwards;
};

static void *look_at_numbers(void *argument)
{
    struct numbers_observer *observer = argument;
    uint64_t last_seq = 0;
    while (!atomic_load(&observer->stop)) {
        struct store_group state;
        if (store_read_group(observer->reader, SPAN_LITERAL("s"), SPAN_LITERAL("g"), &state) !=
            WEIR_OK)
            continue;
        if (state.seq == 0) /* the record is there, and its first write not yet */
            continue;
        observer->looks++;
        if (state.timestamp_ms != observer->base_ms + 10 * state.seq ||
            state.next_ms != state.timestamp_ms + 2)
            observer->torn++;
        if (state.seq < last_seq)
            observer->backwards++;
        last_seq = state.seq;
    }
    return NULL;
}

/* A group's numbers belong together, however fast they change: here the stamp follows from the seq. */
Test(store_stress, numbers_are_of_one_seq)
{
    open_all(1 << 20, 0);
    struct numbers_observer observer = {.reader = store_reader_open(&host.segment, NULL),
                                        .base_ms = host.now_ms};
    cr_assert_not_null(observer.reader);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, look_at_numbers, &observer), 0);
    struct store_key key = {SPAN_LITERAL("s"), SPAN_LITERAL("g"), {0}};
    struct store_change change;
    double begun = seconds();
    while (seconds() < begun + 2 ||
           (atomic_load(&observer.looks) <= 1000 && seconds() < begun + HANG_SECONDS / 2)) {
        for (unsigned i = 0; i < 1000; i++) {
            host.now_ms += 10;
            cr_assert_eq(store_touch(host.store, &key, host.now_ms, &change), WEIR_OK);
            store_group_published(host.store, change.group.offset, 0);
        }
    }
    atomic_store(&observer.stop, true);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_gt(observer.looks, 1000);
    cr_assert_eq(observer.torn, 0, "%llu of %llu", (unsigned long long)observer.torn,
                 (unsigned long long)observer.looks);
    cr_assert_eq(observer.backwards, 0);
    store_reader_close(observer.reader);
    close_all();
}

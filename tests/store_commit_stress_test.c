/* Readers in other processes against a logged store whose writer commits behind: nothing is shown
 * before it is committed.
 *
 * What write n of a group does is a function of the seed, the group and the state after write n - 1, so
 * a reader can work out every state. The writer tells in shared memory up to which seq each group is
 * committed, before it tells the store. So what a reader was shown must be the state at a seq between
 * what was committed before it looked and what is afterwards.
 */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/store_fixture.h"

enum { GROUPS = 5, ITEMS_MAX = 16, READERS = 2, OPEN_MAX = 200, SECONDS = 4 };
enum { LOOK_ITEM, LOOK_MISSING, LOOK_LIST, LOOK_NAMES, LOOK_ALL, LOOKS };
enum { FAIL_ATTACH = 10, FAIL_STATUS, FAIL_ITEM, FAIL_MISSING, FAIL_LIST, FAIL_NAMES };

/* ---- what is written ---- */

struct simulation {
    uint64_t seed;
    unsigned group;
    unsigned items; /* few: the group comes and goes */
    uint64_t seq;
    uint64_t written[ITEMS_MAX]; /* seq of the newest set; 0: missing */
    uint64_t created[ITEMS_MAX];
};

static bool simulation_step(struct simulation *simulation, unsigned *item)
{
    uint64_t state = simulation->seed + simulation->group * 1000003ull + simulation->seq * 7919ull;
    uint64_t roll = fixture_random(&state);
    *item = (unsigned)(roll % simulation->items);
    simulation->seq++;
    bool is_delete = simulation->written[*item] != 0 && (roll >> 32) % 2 == 0;
    if (simulation->written[*item] == 0)
        simulation->created[*item] = simulation->seq;
    simulation->written[*item] = is_delete ? 0 : simulation->seq;
    return is_delete;
}

static bool simulation_has_items(const struct simulation *simulation)
{
    for (unsigned item = 0; item < simulation->items; item++)
        if (simulation->written[item] != 0)
            return true;
    return false;
}

static struct store_key key_of(unsigned group, unsigned item, char names[2][16])
{
    return (struct store_key){SPAN_LITERAL("s"),
                              span_of(names[0], (size_t)sprintf(names[0], "g%u", group)),
                              span_of(names[1], (size_t)sprintf(names[1], "i%u", item))};
}

/* ---- the reader ---- */

struct report {
    _Atomic uint64_t stop;
    _Atomic uint64_t committed[GROUPS];
    _Atomic uint64_t shown[LOOKS];
    _Atomic uint64_t pending;
};

struct observer {
    struct report *report;
    struct store_reader *reader;
    struct simulation before[GROUPS]; /* at what was committed before the look */
    uint64_t after[GROUPS];
    struct buffer out;
};

static void note_before(struct observer *observer)
{
    unsigned item;
    for (unsigned group = 0; group < GROUPS; group++) {
        uint64_t committed = atomic_load(&observer->report->committed[group]);
        while (observer->before[group].seq < committed)
            (void)simulation_step(&observer->before[group], &item);
    }
    buffer_clear(&observer->out);
}

static void note_after(struct observer *observer)
{
    for (unsigned group = 0; group < GROUPS; group++)
        observer->after[group] = atomic_load(&observer->report->committed[group]);
}

/* True when the item was last written by `seq` (0: was missing) at a time that may be shown. */
static bool item_may_be(const struct observer *observer, unsigned group, unsigned item,
                        uint64_t seq)
{
    struct simulation at = observer->before[group];
    unsigned stepped;
    while (at.written[item] != seq && at.seq < observer->after[group])
        (void)simulation_step(&at, &stepped);
    return at.written[item] == seq;
}

static bool group_may_be_listed(const struct observer *observer, unsigned group, bool is_listed)
{
    struct simulation at = observer->before[group];
    unsigned stepped;
    while (simulation_has_items(&at) != is_listed && at.seq < observer->after[group])
        (void)simulation_step(&at, &stepped);
    return simulation_has_items(&at) == is_listed;
}

static int count(struct observer *observer, unsigned look, bool is_right, int fault)
{
    atomic_fetch_add(&observer->report->shown[look], 1);
    return is_right ? 0 : fault;
}

static int look_at_item(struct observer *observer, unsigned group, unsigned item)
{
    char names[2][16], text[32] = {0};
    struct store_key key = key_of(group, item, names);
    note_before(observer);
    enum weir_status status = store_read_item(observer->reader, &key, &observer->out);
    note_after(observer);
    if (status == WEIR_EMPTY)
        return count(observer, LOOK_MISSING, item_may_be(observer, group, item, 0), FAIL_MISSING);
    if (status != WEIR_OK)
        return status == WEIR_PENDING || status == WEIR_REVOKED ? (int)status : FAIL_STATUS;
    memcpy(text, observer->out.data, observer->out.bytes);
    return count(observer, LOOK_ITEM, item_may_be(observer, group, item, strtoull(text, NULL, 10)),
                 FAIL_ITEM);
}

/* The items' values by creation, as a snapshot has them. */
static size_t list_text(const struct simulation *at, char *text)
{
    size_t bytes = (size_t)sprintf(text, "[");
    for (uint64_t last = 0;;) {
        unsigned next = ITEMS_MAX;
        for (unsigned item = 0; item < at->items; item++)
            if (at->written[item] != 0 && at->created[item] > last &&
                (next == ITEMS_MAX || at->created[item] < at->created[next]))
                next = item;
        if (next == ITEMS_MAX)
            break;
        last = at->created[next];
        bytes += (size_t)sprintf(text + bytes, bytes > 1 ? ",%llu" : "%llu",
                                 (unsigned long long)at->written[next]);
    }
    return bytes + (size_t)sprintf(text + bytes, "]");
}

static int look_at_list(struct observer *observer, unsigned group)
{
    char names[2][16], text[ITEMS_MAX * 24];
    struct store_key key = key_of(group, 0, names);
    struct store_snapshot snapshot;
    unsigned stepped;
    note_before(observer);
    enum weir_status status =
        store_snapshot(observer->reader, key.stream, key.group, NULL, &snapshot, &observer->out);
    note_after(observer);
    if (status != WEIR_OK)
        return status == WEIR_PENDING || status == WEIR_REVOKED || status == WEIR_LAPPED
                   ? (int)WEIR_PENDING
                   : FAIL_STATUS;
    struct simulation at = observer->before[group];
    bool is_right = snapshot.seq >= at.seq && snapshot.seq <= observer->after[group];
    while (is_right && at.seq < snapshot.seq)
        (void)simulation_step(&at, &stepped);
    is_right =
        is_right && span_equal(buffer_span(&observer->out), span_of(text, list_text(&at, text)));
    return count(observer, LOOK_LIST, is_right, FAIL_LIST);
}

static int look_at_names(struct observer *observer, bool is_all)
{
    note_before(observer);
    enum weir_status status =
        is_all ? store_list_all(observer->reader, &observer->out)
               : store_list_groups(observer->reader, SPAN_LITERAL("s"), &observer->out);
    note_after(observer);
    if (status == WEIR_OK)
        status = buffer_append(&observer->out, span_of("", 1));
    if (status != WEIR_OK)
        return status == WEIR_PENDING || status == WEIR_REVOKED ? (int)status : FAIL_STATUS;
    bool is_right = true;
    for (unsigned group = 0; group < GROUPS; group++) {
        char quoted[16];
        (void)snprintf(quoted, sizeof quoted, "\"g%u\"", group);
        is_right = is_right &&
                   group_may_be_listed(observer, group, strstr(observer->out.data, quoted) != NULL);
    }
    return count(observer, is_all ? LOOK_ALL : LOOK_NAMES, is_right, FAIL_NAMES);
}

static int look(struct observer *observer, uint64_t roll)
{
    unsigned group = (unsigned)(roll % GROUPS);
    unsigned kind = (unsigned)((roll >> 8) % 8);
    if (kind == 0)
        return look_at_names(observer, false);
    if (kind == 1)
        return look_at_names(observer, true);
    if (kind < 4)
        return look_at_list(observer, group);
    return look_at_item(observer, group, (unsigned)((roll >> 16) % observer->before[group].items));
}

static void simulations_start(struct simulation *simulations, uint64_t seed)
{
    for (unsigned group = 0; group < GROUPS; group++)
        simulations[group] = (struct simulation){
            .seed = seed, .group = group, .items = group < 2 ? group + 1 : group * 4};
}

static int observe(struct observer *observer, uint64_t random)
{
    buffer_init(&observer->out, 1 << 20);
    int result = 0;
    while (result == 0 && atomic_load(&observer->report->stop) == 0) {
        result = look(observer, fixture_random(&random));
        if (result == (int)WEIR_PENDING)
            atomic_fetch_add(&observer->report->pending, 1);
        if (result > 0 && result < FAIL_ATTACH) /* a status: to be asked again */
            result = 0;
    }
    return result;
}

/* ---- the writer ---- */

struct open_write {
    unsigned group;
    uint64_t offset, seq, position, end;
};

static struct host host;
static struct report *report;
static struct simulation written[GROUPS];
static struct open_write open_writes[OPEN_MAX];
static unsigned open_count;

static void write_one(unsigned group)
{
    char names[2][16], value[24];
    unsigned item;
    bool is_delete = simulation_step(&written[group], &item);
    struct store_key key = key_of(group, item, names);
    struct store_change change;
    int bytes = sprintf(value, "%llu", (unsigned long long)written[group].seq);
    enum weir_status status = is_delete
                                  ? host_delete(&host, &key, &change)
                                  : host_set(&host, &key, span_of(value, (size_t)bytes), &change);
    cr_assert_eq(status, WEIR_OK, "write: %s", weir_status_text(status));
    cr_assert_eq(change.group.seq, written[group].seq);
    open_writes[open_count++] = (struct open_write){
        .group = group,
        .offset = change.group.offset,
        .seq = change.group.seq,
        .position = store_group_newest_position(host.store, change.group.offset),
        .end = ring_head(host.ring)};
}

/* As the broker does it when a frame of the log is durable. */
static void commit_some(unsigned commits)
{
    if (commits == 0)
        return;
    for (unsigned i = 0; i < commits; i++)
        atomic_store(&report->committed[open_writes[i].group], open_writes[i].seq);
    for (unsigned i = 0; i < commits; i++)
        store_group_committed(host.store, open_writes[i].offset, open_writes[i].seq,
                              open_writes[i].position);
    ring_publish_to(host.ring, open_writes[commits - 1].end);
    open_count -= commits;
    memmove(open_writes, open_writes + commits, open_count * sizeof open_writes[0]);
}

static pid_t start_reader(uint64_t seed, unsigned index)
{
    uint32_t slot;
    int control_fd, event_fd;
    cr_assert_eq(readers_attach(host.readers, 1, &slot, &control_fd, &event_fd, NULL), WEIR_OK);
    pid_t pid = fork();
    if (pid == 0) {
        static struct observer observer;
        struct segment segment;
        struct reader reader;
        if (segment_attach(&segment, dup(host.segment.fd), NULL) != WEIR_OK ||
            reader_attach(&reader, &segment, slot, control_fd, event_fd, NULL) != WEIR_OK)
            _exit(FAIL_ATTACH);
        observer.report = report;
        observer.reader = store_reader_open(&segment, &reader);
        if (observer.reader == NULL)
            _exit(FAIL_ATTACH);
        simulations_start(observer.before, seed);
        _exit(observe(&observer, seed + index));
    }
    cr_assert_gt(pid, 0);
    return pid;
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Each kind of look has met states of its own, and groups that were open. */
static bool enough_was_shown(void)
{
    bool is_enough = atomic_load(&report->pending) > 20;
    for (unsigned i = 0; i < LOOKS; i++)
        is_enough = is_enough && atomic_load(&report->shown[i]) > 20;
    return is_enough;
}

Test(store_commit_stress, nothing_is_shown_before_it_is_committed, .timeout = HANG_SECONDS)
{
    static const struct host_options options = {
        .ring_bytes = 1 << 20,
        .store_bytes = 16ull << 20,
        .store = {
            .items_max = 1000, .groups_max = 100, .empty_groups_max = 100, .is_logged = true}};
    uint64_t seed = fixture_seed("store_commit_stress/nothing_is_shown_before_it_is_committed");
    struct weir_error error = {0};
    cr_assert_eq(host_open(&host, &options, &error), WEIR_OK, "%s", error.text);
    host.hold_ring = true;
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(report, MAP_FAILED);
    simulations_start(written, seed);
    pid_t pids[READERS];
    for (unsigned i = 0; i < READERS; i++)
        pids[i] = start_reader(seed, i);
    uint64_t random = seed;
    double begun = seconds();
    for (unsigned turn = 0; seconds() < begun + SECONDS || !enough_was_shown(); turn++) {
        cr_assert_lt(seconds(), begun + HANG_SECONDS / 2, "something is hardly shown");
        uint64_t roll = fixture_random(&random);
        for (unsigned left = (unsigned)(roll % 12); left > 0 && open_count < OPEN_MAX; left--)
            write_one((unsigned)((roll >> (left * 4)) % GROUPS));
        /* Often all, so that there are moments when nothing is open. */
        commit_some((roll >> 60) % 4 == 0 ? open_count
                                          : (unsigned)((roll >> 50) % (open_count + 1)));
        host.now_ms += 3;
        store_turn_end(host.store);
        if (turn % 8 == 0)
            (void)usleep(200);
    }
    atomic_store(&report->stop, 1);
    for (unsigned i = 0; i < READERS; i++) {
        int status;
        cr_assert_eq(waitpid(pids[i], &status, 0), pids[i]);
        cr_assert(WIFEXITED(status), "a reader died: status %x", status);
        cr_assert_eq(WEXITSTATUS(status), 0, "a reader found fault %d", WEXITSTATUS(status));
    }
    (void)fprintf(stderr,
                  "pending %llu, shown:", (unsigned long long)atomic_load(&report->pending));
    for (unsigned i = 0; i < LOOKS; i++)
        (void)fprintf(stderr, " %llu", (unsigned long long)atomic_load(&report->shown[i]));
    (void)fprintf(stderr, "\n");
    cr_assert_eq(store_check(host.store, &error), WEIR_OK, "%s", error.text);
    munmap(report, sizeof *report);
    host_close(&host);
}

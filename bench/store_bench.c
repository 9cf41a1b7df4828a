/* bench/store_bench.c -- how fast is the store in process?
 *
 * Method: one million items of 100-300 bytes over 1,000 groups, one writer, one reader. Fill, then time each operation in a loop over random keys; CLOCK_MONOTONIC around the
 * whole loop, so the mean, and around chunks of 1,000 calls for the best and the worst chunk. No
 * ring: events are not encoded here. The reader has its epoch, as a gateway has. Keys are made
 * outside the timed loop. What a restart does, walk, restore and replay, is measured in processor time,
 * into a second store; replay includes making the keys.
 * Unit: nanoseconds per call; one line per operation, key=value.
 * Parameters: WEIR_BENCH_ITEMS, WEIR_BENCH_GROUPS.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench/load.h"
#include "shm/store.h"

enum {
    KEYS = 1 << 16,
    CHUNK = 1000,
    VALUE_MAX = 300,
    FLOOR_SLOTS = 1 << 21,
    FLOOR_BLOCK_BYTES = 320,
};

struct bench {
    struct segment segment;
    struct readers *readers;
    struct store *store;
    struct reader reader;
    struct store_reader *store_reader;
    struct buffer out;
    uint64_t items, groups;
    uint64_t picked_items; /* keys are of the first so many */
    uint64_t *floor_slots; /* FLOOR_SLOTS */
    char *floor_blocks;    /* items * FLOOR_BLOCK_BYTES */
    uint64_t random;
    uint64_t now_ms;
};

struct keys {
    char text[KEYS][2][32];
    struct store_key keys[KEYS];
};

static struct keys keys;
static char value[VALUE_MAX];

static uint64_t next_random(struct bench *bench)
{
    uint64_t mixed = bench->random += 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
    return mixed ^ mixed >> 31;
}

static void must(enum weir_status status, const char *what)
{
    if (status == WEIR_OK)
        return;
    (void)fprintf(stderr, "%s: %s\n", what, weir_status_text(status));
    exit(1);
}

static void key_make(const struct bench *bench, uint64_t item, char text[2][32],
                     struct store_key *key)
{
    (void)snprintf(text[0], 32, "room-%llu", (unsigned long long)(item % bench->groups));
    (void)snprintf(text[1], 32, "message-%llu", (unsigned long long)item);
    *key = (struct store_key){SPAN_LITERAL("chat"), span_text(text[0]), span_text(text[1])};
}

static void keys_shuffle(struct bench *bench)
{
    for (unsigned i = 0; i < KEYS; i++)
        key_make(bench, next_random(bench) % bench->picked_items, keys.text[i], &keys.keys[i]);
}

static struct span value_make(struct bench *bench)
{
    return span_of(value, 100 + next_random(bench) % 201);
}

/* ---- what is measured ---- */

static void do_get(struct bench *bench, unsigned i)
{
    buffer_clear(&bench->out);
    must(store_read_item(bench->store_reader, &keys.keys[i], &bench->out), "get");
}

static void do_floor(struct bench *bench, unsigned i)
{
    (void)i;
    uint64_t slot = next_random(bench) % FLOOR_SLOTS;
    const char *block = bench->floor_blocks + bench->floor_slots[slot] * FLOOR_BLOCK_BYTES;
    memcpy(bench->out.data, block, FLOOR_BLOCK_BYTES);
    /* The next call's address depends on this one's copy. */
    bench->random += (uint64_t)bench->out.data[slot % FLOOR_BLOCK_BYTES];
}

static void do_find(struct bench *bench, unsigned i)
{
    struct span found;
    must(store_find(bench->store, &keys.keys[i], &found), "find");
}

static void do_set(struct bench *bench, unsigned i)
{
    struct store_change change;
    must(store_set(bench->store, &keys.keys[i], value_make(bench), bench->now_ms, &change), "set");
    store_group_published(bench->store, change.group.offset, 0);
    if (i % 64 == 0)
        store_turn_end(bench->store);
}

static void do_delete_set(struct bench *bench, unsigned i)
{
    struct store_change change;
    enum weir_status status = store_delete(bench->store, &keys.keys[i], bench->now_ms, &change);
    must(status, "delete");
    store_group_published(bench->store, change.group.offset, 0);
    do_set(bench, i);
}

static void do_group(struct bench *bench, unsigned i)
{
    struct store_group state;
    must(store_read_group(bench->store_reader, keys.keys[i].stream, keys.keys[i].group, &state),
         "group");
}

static void do_snapshot(struct bench *bench, unsigned i)
{
    struct store_snapshot snapshot;
    buffer_clear(&bench->out);
    must(store_snapshot(bench->store_reader, keys.keys[i].stream, keys.keys[i].group, NULL,
                        &snapshot, &bench->out),
         "snapshot");
}

static void do_snapshot_100(struct bench *bench, unsigned i)
{
    struct store_snapshot snapshot;
    buffer_clear(&bench->out);
    must(store_snapshot(bench->store_reader, SPAN_LITERAL("small"), keys.keys[i].group, NULL,
                        &snapshot, &bench->out),
         "snapshot of 100");
}

static void do_list_groups(struct bench *bench, unsigned i)
{
    (void)i;
    buffer_clear(&bench->out);
    must(store_list_groups(bench->store_reader, SPAN_LITERAL("chat"), &bench->out), "list_groups");
}

static void measure(struct bench *bench, const char *name, unsigned calls,
                    void (*call)(struct bench *bench, unsigned i))
{
    uint64_t best = UINT64_MAX;
    uint64_t worst = 0;
    uint64_t total = 0;
    unsigned chunk = calls < CHUNK ? calls : CHUNK;
    for (unsigned i = 0; i < KEYS && i < calls; i++)
        call(bench, i);
    keys_shuffle(bench);
    for (unsigned done = 0; done < calls; done += chunk) {
        uint64_t start = load_clock_ns();
        for (unsigned i = done; i < done + chunk; i++)
            call(bench, i % KEYS);
        uint64_t took = load_clock_ns() - start;
        total += took;
        best = took < best ? took : best;
        worst = took > worst ? took : worst;
    }
    double mean = (double)total / calls;
    (void)printf("bench=store op=%s items=%llu groups=%llu calls=%u ns_mean=%.1f ns_best=%.1f "
                 "ns_worst=%.1f per_second=%.0f bytes=%zu\n",
                 name, (unsigned long long)bench->items, (unsigned long long)bench->groups, calls,
                 mean, (double)best / chunk, (double)worst / chunk, 1e9 / mean, bench->out.bytes);
    (void)fflush(stdout);
}

static void fill(struct bench *bench)
{
    struct store_key key;
    struct store_change change;
    char text[2][32];
    uint64_t start = load_clock_ns();
    for (uint64_t item = 0; item < bench->items; item++) {
        key_make(bench, item, text, &key);
        must(store_set(bench->store, &key, value_make(bench), bench->now_ms, &change), "fill");
        store_group_published(bench->store, change.group.offset, 0);
        if (item % 64 == 0)
            store_turn_end(bench->store);
    }
    double mean = (double)(load_clock_ns() - start) / (double)bench->items;
    for (uint64_t item = 0; item < bench->groups * 100; item++) {
        key_make(bench, item, text, &key);
        key.stream = SPAN_LITERAL("small");
        must(store_set(bench->store, &key, value_make(bench), bench->now_ms, &change), "fill");
        store_group_published(bench->store, change.group.offset, 0);
    }
    store_turn_end(bench->store);
    struct store_figures figures;
    store_figures(bench->store, &figures);
    (void)printf("bench=store op=create items=%llu groups=%llu ns_mean=%.1f per_second=%.0f "
                 "arena_used_bytes=%llu bytes_per_item=%.1f\n",
                 (unsigned long long)bench->items, (unsigned long long)bench->groups, mean,
                 1e9 / mean, (unsigned long long)figures.arena_used_bytes,
                 (double)figures.arena_used_bytes / (double)figures.items);
}

/* ---- coming back ---- */

struct back {
    struct segment segment;
    struct readers *readers;
    struct store *store;
};

static void back_open(struct back *back)
{
    struct weir_error error = {0};
    const struct segment_options segment = {
        .ring_bytes = RING_BYTES_MIN, .store_bytes = STORE_BYTES_DEFAULT, .generation = 2};
    const struct store_options options = {.items_max = UINT64_MAX,
                                          .groups_max = UINT64_MAX,
                                          .empty_groups_max = 1000,
                                          .is_logged = true};
    must(segment_create(&back->segment, &segment, &error), error.text);
    back->readers = readers_open(&back->segment);
    if (back->readers == NULL)
        must(WEIR_NO_MEMORY, "open");
    must(store_open(&back->store, &back->segment, back->readers, &options, &error), error.text);
}

static void back_close(struct back *back)
{
    store_close(back->store);
    readers_close(back->readers);
    segment_close(&back->segment);
}

static void print_back(const char *name, uint64_t items, uint64_t took_ns)
{
    double mean = (double)took_ns / (double)items;
    (void)printf("bench=store op=%s items=%llu ns_mean=%.1f per_second=%.0f\n", name,
                 (unsigned long long)items, mean, 1e9 / mean);
    (void)fflush(stdout);
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Processor time of the walk alone, then of the walk and what it yields restored elsewhere. */
static void measure_restore(struct bench *bench)
{
    struct store_walk_entry entry;
    struct back back;
    uint64_t count = 0;
    uint64_t start = cpu_ns();
    for (store_walk_begin(bench->store); store_walk_next(bench->store, &entry) == WEIR_OK;)
        count++;
    uint64_t walk_ns = cpu_ns() - start;
    print_back("walk", count, walk_ns);
    back_open(&back);
    start = cpu_ns();
    for (store_walk_begin(bench->store); store_walk_next(bench->store, &entry) == WEIR_OK;)
        must(store_restore(back.store, &entry), "restore");
    store_recovered(back.store, 0);
    print_back("restore", count, cpu_ns() - start - walk_ns);
    back_close(&back);
}

/* As a log has it: each item created, in the order fill() made them. */
static void measure_replay(struct bench *bench)
{
    struct store_key key;
    struct store_change change;
    struct back back;
    char text[2][32];
    back_open(&back);
    uint64_t start = cpu_ns();
    for (uint64_t item = 0; item < bench->items; item++) {
        const struct store_past past = {.epoch = 1,
                                        .seq = item / bench->groups + 1,
                                        .timestamp_ms = bench->now_ms + 2 * item,
                                        .next_ms = bench->now_ms + 2 * item + 2};
        key_make(bench, item, text, &key);
        must(store_replay_set(back.store, &key, value_make(bench), &past, &change), "replay");
    }
    store_recovered(back.store, 0);
    print_back("replay", bench->items, cpu_ns() - start);
    back_close(&back);
}

static void floor_open(struct bench *bench)
{
    uint64_t slots_bytes = FLOOR_SLOTS * sizeof *bench->floor_slots;
    char *memory = mmap(NULL, slots_bytes + bench->items * FLOOR_BLOCK_BYTES,
                        PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        must(WEIR_NO_MEMORY, "floor");
    must(buffer_reserve(&bench->out, 4096), "floor");
    bench->floor_slots = (uint64_t *)(void *)memory;
    bench->floor_blocks = memory + slots_bytes;
    for (uint64_t slot = 0; slot < FLOOR_SLOTS; slot++)
        bench->floor_slots[slot] = next_random(bench) % bench->items;
    memset(bench->floor_blocks, 1, bench->items * FLOOR_BLOCK_BYTES);
}

static void floor_close(struct bench *bench)
{
    (void)munmap(bench->floor_slots,
                 FLOOR_SLOTS * sizeof *bench->floor_slots + bench->items * FLOOR_BLOCK_BYTES);
}

static uint64_t parameter(const char *name, uint64_t value_default)
{
    const char *text = getenv(name);
    uint64_t number = text == NULL ? 0 : strtoull(text, NULL, 10);
    return number == 0 ? value_default : number;
}

static void bench_open(struct bench *bench)
{
    struct weir_error error = {0};
    struct segment_options segment = {
        .ring_bytes = RING_BYTES_MIN, .store_bytes = STORE_BYTES_DEFAULT, .generation = 1};
    struct store_options store = {
        .items_max = UINT64_MAX, .groups_max = UINT64_MAX, .empty_groups_max = 1000};
    must(segment_create(&bench->segment, &segment, &error), error.text);
    bench->readers = readers_open(&bench->segment);
    struct ring_writer *ring = ring_writer_open(&bench->segment);
    if (bench->readers == NULL || ring == NULL)
        must(WEIR_NO_MEMORY, "open");
    must(store_open(&bench->store, &bench->segment, bench->readers, &store, &error), error.text);
    segment_publish(&bench->segment);
    uint32_t slot;
    int control_fd, event_fd;
    must(readers_attach(bench->readers, (uint32_t)getpid(), &slot, &control_fd, &event_fd, &error),
         error.text);
    must(reader_attach(&bench->reader, &bench->segment, slot, dup(control_fd), dup(event_fd),
                       &error),
         error.text);
    bench->store_reader = store_reader_open(&bench->segment, &bench->reader);
    if (bench->store_reader == NULL)
        must(WEIR_NO_MEMORY, "open a reader");
    ring_writer_close(ring);
    buffer_init(&bench->out, ANSWER_BYTES_MAX);
}

int main(void)
{
    static struct bench bench = {.random = 42, .now_ms = 1700000000000ull};
    bench.items = parameter("WEIR_BENCH_ITEMS", 1000000);
    bench.groups = parameter("WEIR_BENCH_GROUPS", 1000);
    bench.picked_items = bench.items;
    memset(value, '7', sizeof value);
    bench_open(&bench);
    fill(&bench);
    measure_restore(&bench);
    measure_replay(&bench);
    floor_open(&bench);
    measure(&bench, "floor", 2000000, do_floor);
    floor_close(&bench);
    bench.picked_items = bench.items < 10000 ? bench.items : 10000;
    keys_shuffle(&bench);
    measure(&bench, "get_hot", 2000000, do_get);
    bench.picked_items = bench.items;
    keys_shuffle(&bench);
    measure(&bench, "get", 2000000, do_get);
    measure(&bench, "find", 2000000, do_find);
    measure(&bench, "group", 2000000, do_group);
    measure(&bench, "set", 1000000, do_set);
    measure(&bench, "delete_set", 60000, do_delete_set);
    measure(&bench, "get_after_writes", 2000000, do_get);
    measure(&bench, "snapshot_100", 20000, do_snapshot_100);
    measure(&bench, "snapshot_1000", 5000, do_snapshot);
    measure(&bench, "list_groups_1000", 2000, do_list_groups);
    return 0;
}

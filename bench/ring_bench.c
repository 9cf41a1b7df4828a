/* bench/ring_bench.c -- how many records a second go through the ring, with 1 to 4 readers?
 *
 * Method:  this process appends and publishes in batches; readers are forked processes that attach
 *          read-only and copy every record out. Two modes:
 *            free    the writer never waits (as in service); readers that are too slow are lapped and say how often
 *            paced   the writer stays within half a ring of the slowest reader, so every reader gets every record and the
 *                    rate is that of the whole path
 *          One variable is swept at a time: readers at 128-byte frames and batches of 32, then
 *          batch, then frame size.
 * Units:   records_per_s and ns_per_record are the writer's; read_per_s is the slowest reader's
 *          rate over its own time.
 * Output:  one JSON line per run. WEIR_COMMIT, when set, is copied into it. Argument: milliseconds
 *          per run (default 500).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "shm/ring.h"
#include "shm/words.h"

enum { BENCH_READERS_MAX = 4, BENCH_FRAME_BYTES_MAX = 64 * 1024 };

struct bench_run {
    const char *mode;
    unsigned readers;
    unsigned frame_bytes;
    unsigned batch_records;
    unsigned duration_ms;
};

/* Shared by fork; one line per writer. */
struct bench_reader_line {
    _Atomic uint64_t position;
    _Atomic uint64_t records;
    _Atomic uint64_t laps;
    _Atomic uint64_t elapsed_ns;
    _Atomic uint64_t ready;
    uint8_t padding[CACHE_LINE - 5 * 8];
};
struct bench_shared {
    _Atomic uint64_t stop_position; /* UINT64_MAX while running */
    uint8_t padding[CACHE_LINE - 8];
    struct bench_reader_line readers[BENCH_READERS_MAX];
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Exit code 1: CORRUPT or no memory. */
static int read_until_stopped(const struct segment *writer_segment, struct bench_shared *shared,
                              unsigned index)
{
    struct bench_reader_line *line = &shared->readers[index];
    struct segment segment;
    struct ring_reader reader;
    struct buffer out;
    buffer_init(&out, 1024 * 1024);
    if (segment_attach(&segment, dup(writer_segment->fd), NULL) != WEIR_OK ||
        ring_reader_attach(&reader, &segment) != WEIR_OK)
        return 1;
    uint64_t records = 0, laps = 0, sum = 0, first_ns = 0;
    atomic_store(&line->ready, 1);
    for (;;) {
        struct ring_record record;
        buffer_clear(&out);
        enum weir_status status = ring_read(&reader, &record, &out);
        if (status == WEIR_OK) {
            if (records++ == 0)
                first_ns = load_clock_ns();
            sum += (unsigned char)out.data[record.json_offset];
            if (records % 64 == 0)
                atomic_store_explicit(&line->position, reader.position, memory_order_relaxed);
        } else if (status == WEIR_LAPPED) {
            laps++;
        } else if (status == WEIR_EMPTY) {
            atomic_store_explicit(&line->position, reader.position, memory_order_relaxed);
            if (reader.position >=
                atomic_load_explicit(&shared->stop_position, memory_order_relaxed))
                break;
        } else {
            return 1;
        }
    }
    atomic_store(&line->elapsed_ns, load_clock_ns() - first_ns);
    atomic_store(&line->records, records);
    atomic_store(&line->laps, laps);
    buffer_fini(&out);
    segment_close(&segment);
    return sum == 1 ? 2 : 0;
}

static uint64_t slowest_position(const struct bench_shared *shared, unsigned readers)
{
    uint64_t slowest = UINT64_MAX;
    for (unsigned i = 0; i < readers; i++) {
        uint64_t position =
            atomic_load_explicit(&shared->readers[i].position, memory_order_relaxed);
        if (position < slowest)
            slowest = position;
    }
    return slowest;
}

/* Returns records written; `*elapsed_ns` is the writer's time. */
static uint64_t write_for(struct ring_writer *writer, const struct bench_run *run,
                          struct bench_shared *shared, uint64_t *elapsed_ns)
{
    static char frame[BENCH_FRAME_BYTES_MAX];
    memset(frame, 'x', sizeof frame);
    const bool paced = strcmp(run->mode, "paced") == 0;
    const struct span id = SPAN_LITERAL("item-1");
    uint64_t records = 0, previous = RING_NO_POSITION, turn = 0;
    uint64_t start = load_clock_ns(), deadline = start + (uint64_t)run->duration_ms * 1000000u;
    for (;; turn++) {
        if (turn % 64 == 0 && load_clock_ns() >= deadline)
            break;
        while (paced &&
               ring_head(writer) - slowest_position(shared, run->readers) > RING_BYTES_DEFAULT / 2)
            if (load_clock_ns() >= deadline)
                break;
        for (unsigned i = 0; i < run->batch_records; i++) {
            struct ring_record record = {.previous_position = previous,
                                         .seq = records + 1,
                                         .epoch = 1,
                                         .kind = 2,
                                         .json_offset = 4};
            if (ring_append(writer, &record, span_of(frame, run->frame_bytes), id, NULL) != WEIR_OK)
                fail("ring_append");
            previous = record.position;
            records++;
        }
        ring_publish(writer);
    }
    *elapsed_ns = load_clock_ns() - start;
    return records;
}

static void bench(const struct bench_run *run)
{
    struct segment_options options = {
        .ring_bytes = RING_BYTES_DEFAULT, .store_bytes = 4096, .generation = 1};
    struct segment segment;
    struct weir_error error;
    if (segment_create(&segment, &options, &error) != WEIR_OK) {
        (void)fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    struct ring_writer *writer = ring_writer_open(&segment);
    struct bench_shared *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (writer == NULL || shared == MAP_FAILED)
        fail("no memory");
    atomic_store(&shared->stop_position, UINT64_MAX);
    segment_publish(&segment);

    pid_t pids[BENCH_READERS_MAX];
    for (unsigned i = 0; i < run->readers; i++) {
        pids[i] = fork();
        if (pids[i] < 0)
            fail("fork");
        if (pids[i] == 0)
            _exit(read_until_stopped(&segment, shared, i));
    }
    for (unsigned i = 0; i < run->readers; i++)
        while (atomic_load(&shared->readers[i].ready) == 0)
            (void)usleep(1000);

    uint64_t elapsed_ns;
    uint64_t records = write_for(writer, run, shared, &elapsed_ns);
    atomic_store(&shared->stop_position, ring_head(writer));

    double slowest_per_s = 0;
    uint64_t laps = 0;
    for (unsigned i = 0; i < run->readers; i++) {
        int state;
        while (waitpid(pids[i], &state, 0) < 0)
            if (errno != EINTR)
                fail("waitpid");
        if (!WIFEXITED(state) || WEXITSTATUS(state) != 0) {
            (void)fprintf(stderr, "reader %u failed\n", i);
            exit(1);
        }
        const struct bench_reader_line *line = &shared->readers[i];
        double per_s = (double)line->records * 1e9 / (double)(line->elapsed_ns + 1);
        if (i == 0 || per_s < slowest_per_s)
            slowest_per_s = per_s;
        laps += line->laps;
    }
    const char *commit = getenv("WEIR_COMMIT");
    (void)printf(
        "{\"bench\":\"ring\",\"version\":\"%s\",\"commit\":\"%s\",\"mode\":\"%s\",\"readers\":%u,"
        "\"frame_bytes\":%u,\"batch\":%u,\"records\":%" PRIu64 ",\"records_per_s\":%.0f,"
        "\"ns_per_record\":%.1f,\"read_per_s\":%.0f,\"laps\":%" PRIu64 "}\n",
        WEIR_VERSION, commit == NULL ? "" : commit, run->mode, run->readers, run->frame_bytes,
        run->batch_records, records, (double)records * 1e9 / (double)elapsed_ns,
        (double)elapsed_ns / (double)records, slowest_per_s, laps);
    (void)fflush(stdout);
    (void)munmap(shared, sizeof *shared);
    ring_writer_close(writer);
    segment_close(&segment);
}

int main(int count, char **arguments)
{
    unsigned duration_ms = count > 1 ? (unsigned)strtoul(arguments[1], NULL, 10) : 500;
    if (duration_ms == 0)
        duration_ms = 500;
    for (unsigned readers = 1; readers <= BENCH_READERS_MAX; readers++) {
        bench(&(struct bench_run){"free", readers, 128, 32, duration_ms});
        bench(&(struct bench_run){"paced", readers, 128, 32, duration_ms});
    }
    for (unsigned batch = 1; batch <= 256; batch *= 16)
        bench(&(struct bench_run){"paced", 1, 128, batch, duration_ms});
    for (unsigned frame_bytes = 512; frame_bytes <= BENCH_FRAME_BYTES_MAX; frame_bytes *= 8)
        bench(&(struct bench_run){"paced", 1, frame_bytes, 32, duration_ms});
    return 0;
}

/* bench/stopped_bench.c -- what do subscribers cost that have stopped to read?
 *
 * Question: do 1,000 subscribers that do not read delay, or cost, 1,000 live ones of the same group at
 *           1,000 messages a second; do they cost memory; and what do they have when they read again?
 * Method:   pairs of short phases of one run, without and with the stopped ones, the other way round in
 *           every other pair: what the machine does meanwhile meets both. Stopped ones have small
 *           receive buffers, join, and then leave their sockets alone. Messages go out until the
 *           kernel's buffers for them are full; gateways' private memory is looked at then and again
 *           at the end of the phase. Then they read again and every one has to come to the newest
 *           message, through events, conflated ones or a fresh sync. Live ones have to have every
 *           message. The same again at a fifth of the rate: at 1,000 messages a second crowd and
 *           server fill two cores, and p99 is then as much the scheduler's as the server's.
 * Unit:     p99 in microseconds from when a message was due to when a live subscriber has read it;
 *           microseconds of server CPU per live delivery; bytes of gateway memory, and of
 *           sent bytes the kernel keeps, per stopped subscriber. To be reached: p99 at most 1.2 times,
 *           in the median of the pairs' ratios; its quartiles say what a single pair is worth.
 * Run:      stopped_bench [seconds a phase [pairs [live [stopped [rate, 0: both [KEY=VALUE of
 *           weir...]]]]]]
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench/crowd.h"
#include "bench/load.h"

enum {
    PAIRS_MAX = 64,
    RATE = 1000,
    RATE_UNHURRIED = 200,
    GATEWAYS = 2,
    CONNECT_SECONDS = 60,
    DRAIN_SECONDS = 20,
    CATCH_UP_SECONDS = 30,
    /* Until the kernel's buffers of those that stopped are full: they grow by less than so much. */
    FULL_BYTES_A_SECOND = 16 * 1024,
    FULL_SECONDS_MAX = 20,
    SMALL_BUFFER = 4096,
    WARMUP_MS = 300, /* before a phase: who has just come or gone is not measured */
};

struct bench {
    double seconds;
    unsigned pairs, live, stopped;
    double rate;
    struct load_server server;
    struct crowd *crowd;
    struct crowd_publisher *publisher;
};

struct phase {
    double p50_us, p99_us, cpu_us;
};

static uint64_t gateway_memory(const struct load_server *server)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < server->gateway_count; i++)
        total += load_memory_bytes(server->gateways[i]);
    return total;
}

static void wait_for_live(struct bench *bench)
{
    if (!crowd_wait_delivered(bench->publisher, crowd_published(bench->publisher) * bench->live,
                              DRAIN_SECONDS))
        load_die("live subscribers have not got all messages");
}

static struct phase publish_phase(struct bench *bench)
{
    static struct histogram latencies;
    crowd_publish(bench->publisher, WARMUP_MS * UINT64_C(1000000));
    wait_for_live(bench);
    crowd_histogram_reset(bench->crowd);
    uint64_t cpu = load_server_cpu_ns(&bench->server);
    uint64_t delivered = CROWD_TOTAL(bench->crowd, delivered);
    crowd_publish(bench->publisher, (uint64_t)(bench->seconds * 1e9));
    wait_for_live(bench);
    cpu = load_server_cpu_ns(&bench->server) - cpu;
    delivered = CROWD_TOTAL(bench->crowd, delivered) - delivered;
    crowd_histogram_read(bench->crowd, &latencies);
    return (struct phase){.p50_us = (double)histogram_percentile(&latencies, 0.5) / 1e3,
                          .p99_us = (double)histogram_percentile(&latencies, 0.99) / 1e3,
                          .cpu_us = (double)cpu / 1e3 / (double)delivered};
}

/* Bytes that the server has sent on this port and nobody has taken. */
static uint64_t kernel_bytes(uint16_t port)
{
    FILE *file = fopen("/proc/net/tcp", "r");
    char line[512];
    uint64_t total = 0;
    if (file == NULL)
        load_die("cannot read /proc/net/tcp");
    while (fgets(line, sizeof line, file) != NULL) {
        unsigned local_port, sent;
        if (sscanf(line, "%*d: %*x:%x %*x:%*x %*x %x:", &local_port, &sent) == 2 &&
            local_port == port)
            total += sent;
    }
    (void)fclose(file);
    return total;
}

static void publish_until_full(struct bench *bench)
{
    uint64_t before, now = kernel_bytes(bench->server.stream_port);
    unsigned seconds = 0;
    do {
        before = now;
        crowd_publish(bench->publisher, 1000000000);
        now = kernel_bytes(bench->server.stream_port);
    } while (now > before + (uint64_t)FULL_BYTES_A_SECOND * bench->stopped &&
             ++seconds < FULL_SECONDS_MAX);
}

struct stopped_phase {
    struct phase live;
    double kernel_bytes; /* sent and not taken, a subscriber */
    double growth_bytes; /* of gateways' memory while they did not read, a subscriber */
    uint64_t newest, conflated, resynced, lost;
    double catch_up_seconds;
};

static void catch_up(struct bench *bench, struct crowd *stopped, struct stopped_phase *phase)
{
    uint64_t start_ns = load_clock_ns();
    uint64_t deadline = start_ns + CATCH_UP_SECONDS * UINT64_C(1000000000);
    crowd_command(stopped, CROWD_READ_AGAIN);
    do {
        load_sleep_until(load_clock_ns() + 20000000);
        phase->newest = crowd_count_newest(stopped, crowd_published(bench->publisher));
    } while (phase->newest < bench->stopped && load_clock_ns() < deadline);
    phase->catch_up_seconds = (double)(load_clock_ns() - start_ns) / 1e9;
    phase->conflated = CROWD_TOTAL(stopped, conflated);
    phase->resynced = CROWD_TOTAL(stopped, resynced);
    phase->lost = CROWD_TOTAL(stopped, lost) + CROWD_TOTAL(stopped, repeated) +
                  CROWD_TOTAL(stopped, damaged) + CROWD_TOTAL(stopped, closed);
}

static struct stopped_phase publish_beside_stopped(struct bench *bench)
{
    struct stopped_phase phase = {.newest = 0};
    struct crowd_options options = *crowd_options_of(bench->crowd);
    options.subscribers = bench->stopped;
    options.receive_buffer = SMALL_BUFFER;
    struct crowd *stopped = crowd_start(&options);
    (void)crowd_wait_live(stopped, 1, CONNECT_SECONDS);
    crowd_command(stopped, CROWD_STOP_READING);
    publish_until_full(bench);
    double before = (double)gateway_memory(&bench->server);
    phase.live = publish_phase(bench);
    phase.growth_bytes = ((double)gateway_memory(&bench->server) - before) / bench->stopped;
    phase.kernel_bytes = (double)kernel_bytes(bench->server.stream_port) / bench->stopped;
    catch_up(bench, stopped, &phase);
    crowd_stop(stopped);
    return phase;
}

static void print_pair(unsigned pair, const struct phase *without, const struct stopped_phase *with,
                       const struct bench *bench)
{
    (void)fprintf(
        stderr,
        "  %.0f/s, pair %u of %u: p99 %.0f us without, %.0f us with; CPU %.3f and %.3f us; "
        "%.0f bytes grown each, %.0f in the kernel; %llu of %u newest after %.2f s, %llu "
        "conflated, %llu synced, %llu faults\n",
        bench->rate, pair + 1, bench->pairs, without->p99_us, with->live.p99_us, without->cpu_us,
        with->live.cpu_us, with->growth_bytes, with->kernel_bytes, (unsigned long long)with->newest,
        bench->stopped, with->catch_up_seconds, (unsigned long long)with->conflated,
        (unsigned long long)with->resynced, (unsigned long long)with->lost);
}

/* One figure of all pairs, in the two kinds of phases. */
struct both {
    double without[PAIRS_MAX], with[PAIRS_MAX];
};

struct pairs {
    struct both p50_us, p99_us, cpu_us;
    double growth_bytes[PAIRS_MAX], kernel_bytes[PAIRS_MAX];
    uint64_t behind, faults;
};

static void run_pair(struct bench *bench, unsigned pair, struct pairs *all)
{
    struct phase without;
    struct stopped_phase with;
    if (pair % 2 == 0) {
        without = publish_phase(bench);
        with = publish_beside_stopped(bench);
    } else {
        with = publish_beside_stopped(bench);
        without = publish_phase(bench);
    }
    all->p50_us.without[pair] = without.p50_us;
    all->p50_us.with[pair] = with.live.p50_us;
    all->p99_us.without[pair] = without.p99_us;
    all->p99_us.with[pair] = with.live.p99_us;
    all->cpu_us.without[pair] = without.cpu_us;
    all->cpu_us.with[pair] = with.live.cpu_us;
    all->growth_bytes[pair] = with.growth_bytes;
    all->kernel_bytes[pair] = with.kernel_bytes;
    all->behind += bench->stopped - with.newest;
    all->faults += with.lost;
    print_pair(pair, &without, &with, bench);
}

/* Puts the figures of all pairs in order. */
static void print_pairs(const struct bench *bench, struct pairs *all)
{
    unsigned count = bench->pairs;
    double ratios[PAIRS_MAX];
    for (unsigned i = 0; i < count; i++)
        ratios[i] = all->p99_us.with[i] / all->p99_us.without[i];
    double without_us = load_median(all->p99_us.without, count);
    double with_us = load_median(all->p99_us.with, count);
    double ratio = load_median(ratios, count);
    double low = load_quantile(ratios, count, 0.25), high = load_quantile(ratios, count, 0.75);
    bool is_reached = ratio <= 1.2;
    printf(
        "bench=stopped live=%u stopped=%u rate=%.0f pairs=%u seconds=%.1f p50_without_us=%.0f "
        "p50_with_us=%.0f p99_without_us=%.0f p99_with_us=%.0f p99_ratio=%.2f "
        "p99_ratio_quartiles=%.2f..%.2f p99_ratio_of_medians=%.2f aim_p99_ratio=<=1.2 reached=%s "
        "cpu_without_us=%.3f cpu_with_us=%.3f grown_bytes_per_stopped=%.0f "
        "kernel_bytes_per_stopped=%.0f not_newest=%llu faults=%llu\n",
        bench->live, bench->stopped, bench->rate, count, bench->seconds,
        load_median(all->p50_us.without, count), load_median(all->p50_us.with, count), without_us,
        with_us, ratio, low, high, with_us / without_us, is_reached ? "yes" : "no",
        load_median(all->cpu_us.without, count), load_median(all->cpu_us.with, count),
        load_median(all->growth_bytes, count), load_median(all->kernel_bytes, count),
        (unsigned long long)all->behind, (unsigned long long)all->faults);
    printf(
        "  %.0f messages/s: p99 beside stopped subscribers %.2f x that without (half of the pairs: "
        "%.2f to %.2f; of the medians: %.2f); at most 1.2: %s\n",
        bench->rate, ratio, low, high, with_us / without_us, is_reached ? "reached" : "missed");
    (void)fflush(stdout);
}

static void run_rate(struct bench *bench, const char *prefix, double rate)
{
    struct crowd_options options = {.protocol = crowd_protocol_find("weir"),
                                    .port = bench->server.stream_port,
                                    .publish_port = bench->server.worker_port,
                                    .prefix = prefix,
                                    .groups = 1,
                                    .subscribers = bench->live,
                                    .bytes = 128,
                                    .rate = rate};
    struct pairs all = {.behind = 0};
    bench->rate = rate;
    bench->crowd = crowd_start(&options);
    (void)crowd_wait_live(bench->crowd, 1, CONNECT_SECONDS);
    bench->publisher = crowd_publisher_open(bench->crowd);
    for (unsigned pair = 0; pair < bench->pairs; pair++)
        run_pair(bench, pair, &all);
    all.faults += CROWD_TOTAL(bench->crowd, lost) + CROWD_TOTAL(bench->crowd, repeated) +
                  CROWD_TOTAL(bench->crowd, damaged) + CROWD_TOTAL(bench->crowd, closed);
    print_pairs(bench, &all);
    crowd_publisher_close(bench->publisher);
    crowd_stop(bench->crowd);
}

static double argument(int argc, char **argv, int index, double standard)
{
    return argc > index ? strtod(argv[index], NULL) : standard;
}

int main(int argc, char **argv)
{
    struct bench bench = {.seconds = argument(argc, argv, 1, 1.5),
                          .pairs = (unsigned)argument(argc, argv, 2, 8),
                          .live = (unsigned)argument(argc, argv, 3, 1000),
                          .stopped = (unsigned)argument(argc, argv, 4, 1000)};
    double rate = argument(argc, argv, 5, 0);
    if (!(bench.seconds > 0) || bench.pairs == 0 || bench.pairs > PAIRS_MAX || bench.live == 0 ||
        bench.stopped == 0 || !(rate >= 0))
        load_die("usage: stopped_bench [seconds a phase, 1.5 [pairs, 8 (1 to %d) [live [stopped "
                 "[rate, 0: %d and %d [KEY=VALUE of weir...]]]]]]",
                 PAIRS_MAX, RATE, RATE_UNHURRIED);
    (void)load_raise_descriptor_limit(20000);
    load_server_start_logged(&bench.server, GATEWAYS,
                             argc > 6 ? (const char *const *)argv + 6 : NULL, "/dev/null");
    run_rate(&bench, "g", rate > 0 ? rate : RATE);
    if (!(rate > 0))
        run_rate(&bench, "h", RATE_UNHURRIED);
    load_server_stop(&bench.server);
    return 0;
}

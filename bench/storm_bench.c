/* bench/storm_bench.c -- what happens when everybody comes back at once?
 *
 * Question: how long until 10,000 subscribers that have lost their connections at the same moment are
 *           live again where they were, what that costs the store, and what the ones notice that were
 *           connected all the time.
 * Method:   1,000 live subscribers and 10,000 others of the same group, at 100 messages a second. Every
 *           round a time of quiet, as long as a storm takes, then the others close their sockets and
 *           connect again at once, each with its position, while messages go on. Counters of /metrics
 *           before and after. Nobody may miss or repeat a message.
 * Unit:     seconds; p99 in microseconds from when a message was due to when a live subscriber has read
 *           it, during the storm (a second at least) and before; reads of the store per round. To be
 *           reached: p99 at most 1.5 times, in the median of the rounds' ratios, and no reads in any.
 * Run:      storm_bench [returning [rounds [live [rate [KEY=VALUE of weir...]]]]]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/crowd.h"
#include "bench/load.h"

enum {
    ROUNDS_MAX = 32,
    GATEWAYS = 2,
    CONNECT_SECONDS = 60,
    DRAIN_SECONDS = 20,
    STORM_SECONDS = 60,
    QUIET_MS = 4000,
    STORM_MS = 1000,
    SLICE_MS = 20,     /* of publishing, between looks */
    COUNTED_MS = 3000, /* until a gateway's counters are where the others see them */
};

struct counters {
    uint64_t resumes, expired, syncs, group_reads;
};

struct bench {
    unsigned returning, rounds, live;
    double rate;
    uint16_t admin_port;
    struct load_server server;
    struct counters counted; /* when they were read last */
    struct crowd *live_crowd, *storm_crowd;
    struct crowd_publisher *publisher;
};

/* The sum over gateways of one counter in the text of /metrics. */
static uint64_t counter(const char *text, const char *name)
{
    uint64_t total = 0;
    size_t length = strlen(name);
    for (const char *at = strstr(text, name); at != NULL; at = strstr(at + length, name)) {
        const char *value = strchr(at, ' ');
        if (at[length] == '{' && value != NULL)
            total += strtoull(value, NULL, 10);
    }
    return total;
}

static struct counters read_counters(const struct bench *bench)
{
    static const char request[] =
        "GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n";
    static char text[256 * 1024];
    size_t used = 0;
    load_sleep_until(load_clock_ns() + COUNTED_MS * UINT64_C(1000000));
    int fd = load_tcp_open(bench->admin_port);
    if (write(fd, request, sizeof request - 1) != (ssize_t)(sizeof request - 1))
        load_die("cannot ask for /metrics");
    for (ssize_t got;
         used < sizeof text - 1 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)got;
    text[used] = '\0';
    (void)close(fd);
    if (strstr(text, "weir_gateway_resumes_total{") == NULL)
        load_die("/metrics has no weir_gateway_resumes_total");
    return (struct counters){.resumes = counter(text, "weir_gateway_resumes_total"),
                             .expired = counter(text, "weir_gateway_resumes_expired_total"),
                             .syncs = counter(text, "weir_gateway_syncs_total"),
                             .group_reads = counter(text, "weir_gateway_group_reads_total")};
}

static void publish_ms(struct bench *bench, unsigned ms)
{
    crowd_publish(bench->publisher, ms * UINT64_C(1000000));
}

static double live_p99_us(struct bench *bench)
{
    static struct histogram latencies;
    if (!crowd_wait_delivered(bench->publisher, crowd_published(bench->publisher) * bench->live,
                              DRAIN_SECONDS))
        load_die("live subscribers have not got all messages");
    crowd_histogram_read(bench->live_crowd, &latencies);
    return (double)histogram_percentile(&latencies, 0.99) / 1e3;
}

struct round {
    double p99_before_us, p99_during_us, seconds;
    struct counters counters;
};

static struct round run_round(struct bench *bench)
{
    struct round round;
    crowd_histogram_reset(bench->live_crowd);
    publish_ms(bench, QUIET_MS);
    round.p99_before_us = live_p99_us(bench);
    crowd_histogram_reset(bench->live_crowd);
    uint64_t start_ns = load_clock_ns();
    crowd_command(bench->storm_crowd, CROWD_RECONNECT);
    while (CROWD_TOTAL(bench->storm_crowd, live) < bench->returning) {
        publish_ms(bench, SLICE_MS);
        if (load_clock_ns() - start_ns > STORM_SECONDS * UINT64_C(1000000000))
            load_die("only %llu are live again",
                     (unsigned long long)CROWD_TOTAL(bench->storm_crowd, live));
    }
    round.seconds = (double)(load_clock_ns() - start_ns) / 1e9;
    if (round.seconds * 1000 < STORM_MS)
        publish_ms(bench, STORM_MS - (unsigned)(round.seconds * 1000));
    round.p99_during_us = live_p99_us(bench);
    struct counters before = bench->counted, after = read_counters(bench);
    bench->counted = after;
    round.counters = (struct counters){.resumes = after.resumes - before.resumes,
                                       .expired = after.expired - before.expired,
                                       .syncs = after.syncs - before.syncs,
                                       .group_reads = after.group_reads - before.group_reads};
    return round;
}

static uint64_t faults(const struct crowd *crowd)
{
    return CROWD_TOTAL(crowd, lost) + CROWD_TOTAL(crowd, repeated) + CROWD_TOTAL(crowd, damaged);
}

/* How many of those that came back have the newest message, all or after some time. */
static uint64_t wait_for_newest(struct bench *bench)
{
    uint64_t deadline = load_clock_ns() + DRAIN_SECONDS * UINT64_C(1000000000), newest;
    do {
        load_sleep_until(load_clock_ns() + 50000000);
        newest = crowd_count_newest(bench->storm_crowd, crowd_published(bench->publisher));
    } while (newest < bench->returning && load_clock_ns() < deadline);
    return newest;
}

static void run_rounds(struct bench *bench)
{
    double before[ROUNDS_MAX], during[ROUNDS_MAX], ratio[ROUNDS_MAX], seconds[ROUNDS_MAX];
    struct counters all = {0};
    bench->counted = read_counters(bench);
    for (unsigned i = 0; i < bench->rounds; i++) {
        struct round round = run_round(bench);
        before[i] = round.p99_before_us;
        during[i] = round.p99_during_us;
        ratio[i] = during[i] / before[i];
        seconds[i] = round.seconds;
        all.resumes += round.counters.resumes;
        all.expired += round.counters.expired;
        all.syncs += round.counters.syncs;
        all.group_reads += round.counters.group_reads;
        (void)fprintf(stderr,
                      "  round %u of %u: live again after %.2f s; p99 %.0f us before, %.0f us "
                      "during; %llu resumed, %llu expired, %llu syncs, %llu group reads\n",
                      i + 1, bench->rounds, seconds[i], before[i], during[i],
                      (unsigned long long)round.counters.resumes,
                      (unsigned long long)round.counters.expired,
                      (unsigned long long)round.counters.syncs,
                      (unsigned long long)round.counters.group_reads);
    }
    uint64_t newest = wait_for_newest(bench);
    double median = load_median(ratio, bench->rounds); /* and they are in order then */
    bool is_reached = median <= 1.5 && all.group_reads == 0;
    printf("bench=storm returning=%u live=%u rate=%.0f rounds=%u seconds_until_live=%.2f "
           "p99_before_us=%.0f p99_during_us=%.0f p99_ratio=%.2f p99_ratio_range=%.2f..%.2f "
           "aim_p99_ratio=<=1.5 reached=%s "
           "resumes=%llu expired=%llu syncs=%llu group_reads=%llu aim_group_reads=<=0 "
           "told_resumed=%llu told_synced=%llu closed=%llu faults=%llu not_newest=%llu\n",
           bench->returning, bench->live, bench->rate, bench->rounds,
           load_median(seconds, bench->rounds), load_median(before, bench->rounds),
           load_median(during, bench->rounds), median, ratio[0], ratio[bench->rounds - 1],
           median <= 1.5 ? "yes" : "no", (unsigned long long)all.resumes,
           (unsigned long long)all.expired, (unsigned long long)all.syncs,
           (unsigned long long)all.group_reads,
           (unsigned long long)CROWD_TOTAL(bench->storm_crowd, resumed),
           (unsigned long long)CROWD_TOTAL(bench->storm_crowd, resynced),
           (unsigned long long)CROWD_TOTAL(bench->storm_crowd, closed),
           (unsigned long long)(faults(bench->live_crowd) + faults(bench->storm_crowd)),
           (unsigned long long)(bench->returning - newest));
    printf(
        "  p99 of live subscribers in a storm %.2f x that before (%.2f to %.2f in %u storms), at "
        "most 1.5; %llu reads of the store, none: %s\n",
        median, ratio[0], ratio[bench->rounds - 1], bench->rounds,
        (unsigned long long)all.group_reads, is_reached ? "reached" : "missed");
}

static void start(struct bench *bench, const char *const *settings)
{
    const char *all[32];
    char admin[64];
    unsigned used = 0;
    /* `weir serve` does not say which port it has chosen for this one. */
    (void)close(load_listen(&bench->admin_port));
    (void)snprintf(admin, sizeof admin, "admin=127.0.0.1:%u", bench->admin_port);
    all[used++] = admin;
    for (; settings != NULL && *settings != NULL && used < 30; settings++)
        all[used++] = *settings;
    all[used] = NULL;
    load_server_start_logged(&bench->server, GATEWAYS, all, "/dev/null");
}

int main(int argc, char **argv)
{
    struct bench bench = {.returning = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 10000,
                          .rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 5,
                          .live = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 1000,
                          .rate = argc > 4 ? strtod(argv[4], NULL) : 100};
    if (bench.returning == 0 || bench.live == 0 || bench.rounds == 0 || bench.rounds > ROUNDS_MAX)
        load_die("usage: storm_bench [returning [rounds, 1 to %d [live [rate [KEY=VALUE of "
                 "weir...]]]]]",
                 ROUNDS_MAX);
    (void)load_raise_descriptor_limit(20000);
    start(&bench, argc > 5 ? (const char *const *)argv + 5 : NULL);
    struct crowd_options options = {.protocol = crowd_protocol_find("weir"),
                                    .port = bench.server.stream_port,
                                    .publish_port = bench.server.worker_port,
                                    .prefix = "g",
                                    .groups = 1,
                                    .subscribers = bench.live,
                                    .bytes = 128,
                                    .rate = bench.rate};
    bench.live_crowd = crowd_start(&options);
    options.subscribers = bench.returning;
    options.resume = true;
    bench.storm_crowd = crowd_start(&options);
    (void)crowd_wait_live(bench.live_crowd, 1, CONNECT_SECONDS);
    (void)crowd_wait_live(bench.storm_crowd, 1, CONNECT_SECONDS);
    bench.publisher = crowd_publisher_open(bench.live_crowd);
    publish_ms(&bench, STORM_MS);
    run_rounds(&bench);
    crowd_publisher_close(bench.publisher);
    crowd_stop(bench.storm_crowd);
    crowd_stop(bench.live_crowd);
    load_server_stop(&bench.server);
    return 0;
}

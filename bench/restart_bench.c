/* bench/restart_bench.c -- does anybody lose a message when all gateways are restarted?
 *
 * Question: 2,000 subscribers that come back with their position, 1,000 messages a second, and `weir
 *           drain`, which restarts both gateways one after the other: what is lost, what comes twice,
 *           and how long does a message take meanwhile?
 * Method:   subscribers join with mode lossless. The publisher makes calls with answers and follows its gateway's good-bye to the other one;
 *           what was not answered is published again. Subscribers wait as long as the close tells
 *           them. Every message has to come to each of them once. Latency in the same run before,
 *           and while gateways restart; it holds the wait of those that were sent away.
 * Unit:     messages; microseconds from when a message was due to when a subscriber has read it;
 *           seconds. To be reached: 0 lost, 0 repeated.
 * Run:      restart_bench [subscribers [rate [restarts [KEY=VALUE of weir...]]]]
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/crowd.h"
#include "bench/load.h"

enum {
    GATEWAYS = 2,
    CONNECT_SECONDS = 60,
    DRAIN_SECONDS = 30,
    RESTART_SECONDS = 60,
    QUIET_MS = 2000,
    SLICE_MS = 20,
};

struct bench {
    unsigned subscribers, restarts;
    double rate;
    struct load_server server;
    struct crowd *crowd;
    struct crowd_publisher *publisher;
};

static void publish_ms(struct bench *bench, unsigned ms)
{
    crowd_publish(bench->publisher, ms * UINT64_C(1000000));
}

static pid_t start_drain(const struct load_server *server)
{
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 8);
    if (length < 0)
        load_die("cannot find this program's own path");
    program[length] = '\0';
    (void)snprintf(strrchr(program, '/') + 1, 8, "weir");
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        int nowhere = open("/dev/null", O_WRONLY);
        (void)dup2(nowhere, STDOUT_FILENO);
        (void)execl(program, "weir", "drain", "--run-dir", server->run_dir, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Publish while all gateways are restarted; returns how long that takes. */
static double restart(struct bench *bench)
{
    uint64_t start_ns = load_clock_ns();
    int status;
    pid_t drain = start_drain(&bench->server);
    while (waitpid(drain, &status, WNOHANG) == 0) {
        publish_ms(bench, SLICE_MS);
        if (load_clock_ns() - start_ns > RESTART_SECONDS * UINT64_C(1000000000))
            load_die("`weir drain` does not end");
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        load_die("`weir drain` has failed (wait status %d)", status);
    return (double)(load_clock_ns() - start_ns) / 1e9;
}

static void read_phase(struct bench *bench, double *p50_us, double *p99_us)
{
    static struct histogram latencies;
    (void)crowd_wait_delivered(
        bench->publisher, crowd_published(bench->publisher) * bench->subscribers, DRAIN_SECONDS);
    crowd_histogram_read(bench->crowd, &latencies);
    crowd_histogram_reset(bench->crowd);
    *p50_us = (double)histogram_percentile(&latencies, 0.5) / 1e3;
    *p99_us = (double)histogram_percentile(&latencies, 0.99) / 1e3;
}

static unsigned long long total(uint64_t value)
{
    return value;
}

static void run(struct bench *bench)
{
    double before_p50, before_p99, during_p50, during_p99, seconds = 0;
    publish_ms(bench, QUIET_MS);
    read_phase(bench, &before_p50, &before_p99);
    for (unsigned i = 0; i < bench->restarts; i++)
        seconds += restart(bench);
    publish_ms(bench, QUIET_MS);
    read_phase(bench, &during_p50, &during_p99);
    const struct crowd *crowd = bench->crowd;
    uint64_t published = crowd_published(bench->publisher);
    uint64_t delivered = CROWD_TOTAL(crowd, delivered);
    printf(
        "bench=restart subscribers=%u rate=%.0f restarts=%u seconds_a_restart=%.2f published=%llu "
        "closed=%llu resumed=%llu resynced=%llu conflated=%llu publisher_reopened=%llu "
        "p50_before_us=%.0f p99_before_us=%.0f p50_during_us=%.0f p99_during_us=%.0f lost=%llu "
        "repeated=%llu damaged=%llu undelivered=%llu aim=0,0 reached=%s\n",
        bench->subscribers, bench->rate, bench->restarts, seconds / bench->restarts,
        total(published), total(CROWD_TOTAL(crowd, closed)), total(CROWD_TOTAL(crowd, resumed)),
        total(CROWD_TOTAL(crowd, resynced)), total(CROWD_TOTAL(crowd, conflated)),
        total(crowd_reopened(bench->publisher)), before_p50, before_p99, during_p50, during_p99,
        total(CROWD_TOTAL(crowd, lost)), total(CROWD_TOTAL(crowd, repeated)),
        total(CROWD_TOTAL(crowd, damaged)), total(published * bench->subscribers - delivered),
        delivered == published * bench->subscribers && CROWD_TOTAL(crowd, lost) +
                                                               CROWD_TOTAL(crowd, repeated) +
                                                               CROWD_TOTAL(crowd, damaged) ==
                                                           0
            ? "yes"
            : "no");
}

int main(int argc, char **argv)
{
    struct bench bench = {.subscribers = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 2000,
                          .rate = argc > 2 ? strtod(argv[2], NULL) : 1000,
                          .restarts = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 1};
    if (bench.subscribers == 0 || !(bench.rate > 0) || bench.restarts == 0)
        load_die("usage: restart_bench [subscribers [rate [restarts [KEY=VALUE of weir...]]]]");
    (void)load_raise_descriptor_limit(20000);
    load_server_start_logged(&bench.server, GATEWAYS,
                             argc > 4 ? (const char *const *)argv + 4 : NULL, "/dev/null");
    struct crowd_options options = {.protocol = crowd_protocol_find("weir-calls"),
                                    .port = bench.server.stream_port,
                                    .publish_port = bench.server.worker_port,
                                    .prefix = "g",
                                    .groups = 1,
                                    .subscribers = bench.subscribers,
                                    .bytes = 128,
                                    .rate = bench.rate,
                                    .resume = true,
                                    .mode = "lossless"};
    bench.crowd = crowd_start(&options);
    (void)crowd_wait_live(bench.crowd, 1, CONNECT_SECONDS);
    bench.publisher = crowd_publisher_open(bench.crowd);
    run(&bench);
    crowd_publisher_close(bench.publisher);
    crowd_stop(bench.crowd);
    load_server_stop(&bench.server);
    return 0;
}

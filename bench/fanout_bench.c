/* bench/fanout_bench.c -- what does one delivered frame cost the server, and when does it come?
 *
 * Question: CPU-microseconds (gateways and broker together) per frame delivered to a subscriber, and
 *           latency, beside two bare floors: for one group with many subscribers by the clock, for as
 *           much as goes through with 64 messages in flight, and for many groups with one subscriber
 *           each.
 * Method:   floor F1 is an epoll server that reads one message and does one send() per subscriber, F2
 *           the same with all that has come in one send() (bench/floor.h). All three get messages
 *           from the same publisher over a socket and send frames of the same size to the same crowd
 *           (bench/crowd.h), which lives in a process of its own and checks every byte. Rounds are
 *           interleaved F1, F2, weir; medians of the rounds count, and medians of the rounds' ratios,
 *           because the machine is noisy. With other load on the machine everybody's messages come
 *           in heaps, of which F1 has no advantage: its ratio is then too kind, and the load average
 *           says so.
 * Unit:     microseconds of user and system time per delivered frame (process CPU clocks); latency in
 *           microseconds from when a message was due (by the clock) or sent (in flight) to when a
 *           subscriber has read it; spread is (largest - least) / median over the rounds.
 * Run:      fanout_bench [seconds a round [rounds [case [KEY=VALUE of weir...]]]]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/crowd.h"
#include "bench/floor.h"
#include "bench/load.h"

enum { ROUNDS_MAX = 32, GATEWAYS = 2 };
enum candidate { F1, F2, WEIR, CANDIDATES };
static const char *const candidate_names[CANDIDATES] = {"f1", "f2", "weir"};

struct fanout_case {
    const char *name;
    unsigned groups, subscribers;
    size_t bytes;
    double rate; /* 0: 64 messages in flight */
    /* What is to be reached; 0: nothing. */
    enum candidate floor; /* the ratio's other side */
    double cpu_ratio, p50_ratio, p99_us, deliveries_per_cpu_s;
    bool without_f1; /* it cannot keep up there */
};

static const struct fanout_case cases[] = {
    {"1000x100x128", 1, 1000, 128, 100, F1, 1.10, 1.10, 0, 0, false},
    {"1000x100x1024", 1, 1000, 1024, 100, F1, 1.15, 0, 0, 0, false},
    {"10000x10x128", 1, 10000, 128, 10, F1, 1.10, 0, 0, 0, false},
    {"1000x1000x128", 1, 1000, 128, 1000, F2, 0, 0, 20000, 0, true},
    {"1000xflatx128", 1, 1000, 128, 0, F2, 2, 0, 0, 3e6, false},
    {"groups1000xflatx128", 1000, 1000, 128, 0, F1, 2, 0, 0, 0, false},
};

struct bench {
    double seconds;
    unsigned rounds;
    const char *const *settings;
    char commit[64];
};

static struct crowd_result measure(const struct bench *bench, const struct fanout_case *what,
                                   struct crowd_options *options)
{
    struct crowd_result result;
    char prefix[16];
    (void)snprintf(prefix, sizeof prefix, "r%llxg",
                   (unsigned long long)(load_clock_ns() / 1000000));
    options->prefix = prefix;
    options->groups = what->groups;
    options->subscribers = what->subscribers;
    options->bytes = what->bytes;
    options->rate = what->rate;
    options->in_flight = what->rate > 0 ? 0 : 64;
    options->seconds = bench->seconds;
    options->warmup_seconds = 0.5;
    options->drain_seconds = 15;
    crowd_run(options, &result);
    return result;
}

static struct crowd_result measure_floor(const struct bench *bench, const struct fanout_case *what,
                                         enum floor_kind kind)
{
    struct floor_server floor;
    floor_start(&floor, kind);
    struct crowd_options options = {.protocol = crowd_protocol_find("floor"),
                                    .port = floor.port,
                                    .server_pids = {floor.pid},
                                    .server_pid_count = 1};
    struct crowd_result result = measure(bench, what, &options);
    floor_stop(&floor);
    return result;
}

static struct crowd_result measure_weir(const struct bench *bench, const struct fanout_case *what,
                                        const struct load_server *server)
{
    struct crowd_options options = {.protocol = crowd_protocol_find("weir"),
                                    .port = server->stream_port,
                                    .publish_port = server->worker_port};
    options.server_pids[options.server_pid_count++] = server->broker;
    for (unsigned i = 0; i < server->gateway_count; i++)
        options.server_pids[options.server_pid_count++] = server->gateways[i];
    return measure(bench, what, &options);
}

/* One figure of all rounds. */
struct figure {
    double values[ROUNDS_MAX];
    unsigned count;
};

static double median(const struct figure *figure)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, figure->values, sizeof sorted);
    return figure->count == 0 ? NAN : load_median(sorted, figure->count);
}

static double spread(const struct figure *figure)
{
    double least = INFINITY, largest = 0;
    for (unsigned i = 0; i < figure->count; i++) {
        least = fmin(least, figure->values[i]);
        largest = fmax(largest, figure->values[i]);
    }
    return (largest - least) / median(figure);
}

static void add(struct figure *figure, double value)
{
    figure->values[figure->count++] = value;
}

struct candidate_figures {
    struct figure cpu_us, p50_us, p99_us, deliveries_per_s, deliveries_per_cpu_s;
    unsigned kept_up;
};

static void add_round(struct candidate_figures *figures, const struct crowd_result *result)
{
    add(&figures->cpu_us, result->server_cpu_us_per_delivery);
    add(&figures->p50_us, result->p50_us);
    add(&figures->p99_us, result->p99_us);
    add(&figures->deliveries_per_s, result->deliveries_per_s);
    add(&figures->deliveries_per_cpu_s, result->deliveries_per_server_cpu_s);
    figures->kept_up += result->kept_up;
}

static struct figure ratios(const struct figure *of, const struct figure *to)
{
    struct figure result = {.count = 0};
    for (unsigned i = 0; i < of->count && i < to->count; i++)
        add(&result, of->values[i] / to->values[i]);
    return result;
}

/* What was to be reached, what was, and whether that is enough. */
static void print_aim(const char *name, double aim, double value, bool is_least)
{
    if (aim > 0)
        printf(" %s=%.4g aim_%s=%s%.4g reached_%s=%s", name, value, name,
               is_least ? ">=" : "<=", aim, name,
               (is_least ? value >= aim : value <= aim) ? "yes" : "no");
}

static void print_case(const struct bench *bench, const struct fanout_case *what,
                       const struct candidate_figures *all)
{
    double busy[1] = {0};
    (void)getloadavg(busy, 1);
    printf("bench=fanout case=%s commit=%s load_average=%.1f gateways=%d groups=%u subscribers=%u "
           "item_bytes=%zu "
           "rate=%.0f in_flight=%d rounds=%u seconds=%.1f",
           what->name, bench->commit, busy[0], GATEWAYS, what->groups, what->subscribers,
           what->bytes, what->rate, what->rate > 0 ? 0 : 64, bench->rounds, bench->seconds);
    for (int i = 0; i < CANDIDATES; i++) {
        const struct candidate_figures *one = &all[i];
        const char *name = candidate_names[i];
        if (one->cpu_us.count > 0)
            printf(" %s_cpu_us=%.3f %s_spread=%.2f %s_p50_us=%.0f %s_p99_us=%.0f %s_kept_up=%u "
                   "%s_deliveries_per_s=%.0f %s_deliveries_per_cpu_s=%.0f",
                   name, median(&one->cpu_us), name, spread(&one->cpu_us), name,
                   median(&one->p50_us), name, median(&one->p99_us), name, one->kept_up, name,
                   median(&one->deliveries_per_s), name, median(&one->deliveries_per_cpu_s));
    }
    const struct candidate_figures *weir = &all[WEIR], *floor = &all[what->floor];
    struct figure cpu = ratios(&weir->cpu_us, &floor->cpu_us);
    struct figure p50 = ratios(&weir->p50_us, &floor->p50_us);
    char name[32];
    (void)snprintf(name, sizeof name, "cpu_to_%s", candidate_names[what->floor]);
    print_aim(name, what->cpu_ratio, median(&cpu), false);
    (void)snprintf(name, sizeof name, "p50_to_%s", candidate_names[what->floor]);
    print_aim(name, what->p50_ratio, median(&p50), false);
    print_aim("p99_us", what->p99_us, median(&weir->p99_us), false);
    print_aim("deliveries_per_cpu_s", what->deliveries_per_cpu_s,
              median(&weir->deliveries_per_cpu_s), true);
    print_aim("rounds_kept_up", bench->rounds, weir->kept_up, true);
    (void)putchar('\n');
    (void)fflush(stdout);
}

static void run_case(const struct bench *bench, const struct fanout_case *what)
{
    static struct candidate_figures all[CANDIDATES];
    struct load_server server;
    memset(all, 0, sizeof all);
    load_server_start_logged(&server, GATEWAYS, bench->settings, "/dev/null");
    for (unsigned round = 0; round < bench->rounds; round++) {
        struct crowd_result results[CANDIDATES];
        for (int i = what->without_f1 ? F2 : F1; i < CANDIDATES; i++) {
            results[i] = i == WEIR
                             ? measure_weir(bench, what, &server)
                             : measure_floor(bench, what, i == F1 ? FLOOR_SINGLE : FLOOR_COALESCED);
            add_round(&all[i], &results[i]);
            (void)fprintf(stderr,
                          "  %s, round %u of %u, %s: %.3f us, %.0f deliveries/s, p50 %.0f us, p99 "
                          "%.0f us, crowd busy %.2f%s\n",
                          what->name, round + 1, bench->rounds, candidate_names[i],
                          results[i].server_cpu_us_per_delivery, results[i].deliveries_per_s,
                          results[i].p50_us, results[i].p99_us, results[i].crowd_busy,
                          results[i].kept_up ? "" : ", NOT KEPT UP");
            if (results[i].lost + results[i].repeated + results[i].damaged > 0)
                load_die("%s: %llu lost, %llu repeated, %llu damaged", candidate_names[i],
                         (unsigned long long)results[i].lost,
                         (unsigned long long)results[i].repeated,
                         (unsigned long long)results[i].damaged);
        }
    }
    load_server_stop(&server);
    print_case(bench, what, all);
}

int main(int argc, char **argv)
{
    struct bench bench = {.seconds = argc > 1 ? strtod(argv[1], NULL) : 2,
                          .rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 5,
                          .settings = (const char *const *)(argc > 4 ? argv + 4 : NULL)};
    const char *only = argc > 3 ? argv[3] : "all";
    if (!(bench.seconds >= 0.1) || bench.rounds == 0 || bench.rounds > ROUNDS_MAX)
        load_die(
            "usage: fanout_bench [seconds a round [rounds, 1 to %d [case, or all [KEY=VALUE of "
            "weir...]]]]",
            ROUNDS_MAX);
    load_first_line("git rev-parse --short HEAD 2>/dev/null", bench.commit, sizeof bench.commit);
    (void)load_raise_descriptor_limit(20000);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (strcmp(only, "all") == 0 || strstr(cases[i].name, only) != NULL)
            run_case(&bench, &cases[i]);
    return 0;
}

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
 *           because the machine is noisy. weir has two gateways, one for each core of a small host;
 *           a case that ends in -one has one gateway, as the floor has one process: with two, broker,
 *           gateways and crowd want more cores than floor and crowd do, and on two of them latency says
 *           how they wait for each other. With other load on the machine everybody's messages come
 *           in heaps, of which F1 has no advantage: its ratio is then too kind, and the load average
 *           says so.
 * Unit:     microseconds of user and system time per delivered frame (process CPU clocks); latency in
 *           microseconds from when a message was due (by the clock) or sent (in flight) to when a
 *           subscriber has read it; spread is (largest - least) / median over the rounds. A line of
 *           key=value for each case; behind them, for people, what was to be reached and what was.
 * Run:      fanout_bench [seconds a round [rounds [case [KEY=VALUE of weir...]]]]; --help names cases
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/crowd.h"
#include "bench/floor.h"
#include "bench/load.h"

enum { ROUNDS_MAX = 32, AIMS_MAX = 32 };
enum candidate { F1, F2, WEIR, CANDIDATES };
static const char *const candidate_names[CANDIDATES] = {"f1", "f2", "weir"};

struct fanout_case {
    const char *name;
    unsigned gateways, groups, subscribers;
    size_t bytes;
    double rate; /* 0: 64 messages in flight */
    /* What is to be reached; 0: nothing. */
    enum candidate floor; /* the ratio's other side */
    double cpu_ratio, p50_ratio, p99_us, deliveries_per_cpu_s;
    bool without_f1; /* it cannot keep up there */
};

static const struct fanout_case cases[] = {
    {"1000x100x128", 2, 1, 1000, 128, 100, F1, 1.10, 0, 0, 0, false},
    {"1000x100x128-one", 1, 1, 1000, 128, 100, F1, 0, 1.10, 0, 0, false},
    {"1000x100x1024", 2, 1, 1000, 1024, 100, F1, 1.15, 0, 0, 0, false},
    {"10000x10x128", 2, 1, 10000, 128, 10, F1, 1.10, 0, 0, 0, false},
    {"1000x1000x128", 2, 1, 1000, 128, 1000, F2, 0, 0, 20000, 0, true},
    {"1000xflatx128", 2, 1, 1000, 128, 0, F2, 2, 0, 0, 3e6, false},
    {"groups1000xflatx128", 2, 1000, 1000, 128, 0, F1, 2, 0, 0, 0, false},
};

enum { CASES = sizeof cases / sizeof cases[0] };

/* What was to be reached, and what was. */
struct aim {
    const char *case_name;
    char name[32];
    double aim, value;
    bool is_least;         /* at least `aim`; else at most */
    unsigned floor_behind; /* rounds in which the floor did not keep up: it is no floor then */
};

struct bench {
    double seconds;
    unsigned rounds;
    const char *const *settings;
    char commit[64];
    struct aim aims[AIMS_MAX];
    unsigned aim_count;
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

static bool is_reached(const struct aim *aim)
{
    return aim->is_least ? aim->value >= aim->aim : aim->value <= aim->aim;
}

/* Said with the case's other figures, and kept for the end. */
static void set_aim(struct bench *bench, const struct aim *aim)
{
    if (bench->aim_count == AIMS_MAX)
        load_die("more than %d aims", AIMS_MAX);
    bench->aims[bench->aim_count++] = *aim;
    printf(" %s=%.4g aim_%s=%s%.4g reached_%s=%s", aim->name, aim->value, aim->name,
           aim->is_least ? ">=" : "<=", aim->aim, aim->name, is_reached(aim) ? "yes" : "no");
}

static void print_aims(const struct bench *bench)
{
    printf("\n%-20s %-22s %10s  %-19s\n", "case", "figure", "median", "to be reached");
    for (unsigned i = 0; i < bench->aim_count; i++) {
        const struct aim *aim = &bench->aims[i];
        int digits = aim->aim >= 100 ? 0 : 2;
        printf("%-20s %-22s %10.*f  %s %-10.*f", aim->case_name, aim->name, digits, aim->value,
               aim->is_least ? "at least" : "at most ", digits, aim->aim);
        if (is_reached(aim))
            printf(" reached");
        else
            printf(" missed by %.0f %%", 100 * fabs(aim->value / aim->aim - 1));
        if (aim->floor_behind > 0)
            printf(" (the bare server did not keep up in %u of %u rounds)", aim->floor_behind,
                   bench->rounds);
        (void)putchar('\n');
    }
}

/* The median of the rounds' ratios to the floor, with what is to be reached or, with 0, without. */
static void print_ratio(struct bench *bench, const struct fanout_case *what, const char *figure,
                        const struct figure *rounds, unsigned floor_kept_up, double wanted)
{
    struct aim aim = {.case_name = what->name,
                      .aim = wanted,
                      .value = median(rounds),
                      .floor_behind = bench->rounds - floor_kept_up};
    (void)snprintf(aim.name, sizeof aim.name, "%s_to_%s", figure, candidate_names[what->floor]);
    if (wanted > 0)
        set_aim(bench, &aim);
    else
        printf(" %s=%.4g", aim.name, aim.value);
}

static void print_candidate(const char *name, const struct candidate_figures *one)
{
    if (one->cpu_us.count > 0)
        printf(" %s_cpu_us=%.3f %s_spread=%.2f %s_p50_us=%.0f %s_p99_us=%.0f %s_kept_up=%u "
               "%s_deliveries_per_s=%.0f %s_deliveries_per_cpu_s=%.0f",
               name, median(&one->cpu_us), name, spread(&one->cpu_us), name, median(&one->p50_us),
               name, median(&one->p99_us), name, one->kept_up, name, median(&one->deliveries_per_s),
               name, median(&one->deliveries_per_cpu_s));
}

static void print_case(struct bench *bench, const struct fanout_case *what,
                       const struct candidate_figures *all)
{
    double busy[1] = {0};
    (void)getloadavg(busy, 1);
    printf("bench=fanout case=%s commit=%s load_average=%.1f gateways=%u groups=%u subscribers=%u "
           "item_bytes=%zu rate=%.0f in_flight=%d rounds=%u seconds=%.1f",
           what->name, bench->commit, busy[0], what->gateways, what->groups, what->subscribers,
           what->bytes, what->rate, what->rate > 0 ? 0 : 64, bench->rounds, bench->seconds);
    for (int i = 0; i < CANDIDATES; i++)
        print_candidate(candidate_names[i], &all[i]);
    const struct candidate_figures *weir = &all[WEIR], *floor = &all[what->floor];
    struct figure cpu = ratios(&weir->cpu_us, &floor->cpu_us);
    struct figure p50 = ratios(&weir->p50_us, &floor->p50_us);
    print_ratio(bench, what, "cpu", &cpu, floor->kept_up, what->cpu_ratio);
    print_ratio(bench, what, "p50", &p50, floor->kept_up, what->p50_ratio);
    if (what->p99_us > 0)
        set_aim(bench, &(struct aim){.case_name = what->name,
                                     .name = "p99_us",
                                     .aim = what->p99_us,
                                     .value = median(&weir->p99_us)});
    if (what->deliveries_per_cpu_s > 0)
        set_aim(bench, &(struct aim){.case_name = what->name,
                                     .name = "deliveries_per_cpu_s",
                                     .aim = what->deliveries_per_cpu_s,
                                     .value = median(&weir->deliveries_per_cpu_s),
                                     .is_least = true});
    set_aim(bench, &(struct aim){.case_name = what->name,
                                 .name = "rounds_kept_up",
                                 .aim = bench->rounds,
                                 .value = weir->kept_up,
                                 .is_least = true});
    (void)putchar('\n');
    (void)fflush(stdout);
}

static void print_round(const struct bench *bench, const struct fanout_case *what, unsigned round,
                        const char *name, const struct crowd_result *result)
{
    (void)fprintf(stderr,
                  "  %s, round %u of %u, %s: %.3f us, %.0f deliveries/s, p50 %.0f us, p99 "
                  "%.0f us, crowd busy %.2f%s\n",
                  what->name, round + 1, bench->rounds, name, result->server_cpu_us_per_delivery,
                  result->deliveries_per_s, result->p50_us, result->p99_us, result->crowd_busy,
                  result->kept_up ? "" : ", NOT KEPT UP");
    if (result->lost + result->repeated + result->damaged > 0)
        load_die("%s: %llu lost, %llu repeated, %llu damaged", name,
                 (unsigned long long)result->lost, (unsigned long long)result->repeated,
                 (unsigned long long)result->damaged);
}

static void run_case(struct bench *bench, const struct fanout_case *what)
{
    static struct candidate_figures all[CANDIDATES];
    struct load_server server;
    memset(all, 0, sizeof all);
    load_server_start_logged(&server, what->gateways, bench->settings, "/dev/null");
    for (unsigned round = 0; round < bench->rounds; round++) {
        for (int i = what->without_f1 ? F2 : F1; i < CANDIDATES; i++) {
            struct crowd_result result =
                i == WEIR ? measure_weir(bench, what, &server)
                          : measure_floor(bench, what, i == F1 ? FLOOR_SINGLE : FLOOR_COALESCED);
            add_round(&all[i], &result);
            print_round(bench, what, round, candidate_names[i], &result);
        }
    }
    load_server_stop(&server);
    print_case(bench, what, all);
}

__attribute__((noreturn)) static void usage(void)
{
    (void)fprintf(
        stderr,
        "usage: fanout_bench [seconds a round, 2 [rounds, 5 (1 to %d) [case, all [KEY=VALUE "
        "of weir...]]]]\n"
        "cases, or a part of their names:\n",
        ROUNDS_MAX);
    for (size_t i = 0; i < CASES; i++) {
        char pace[32] = "64 messages in flight";
        if (cases[i].rate > 0)
            (void)snprintf(pace, sizeof pace, "%.0f messages/s", cases[i].rate);
        (void)fprintf(stderr, "  %-20s %u group%s, %u subscribers, %zu bytes, %s, %u gateway%s\n",
                      cases[i].name, cases[i].groups, cases[i].groups == 1 ? "" : "s",
                      cases[i].subscribers, cases[i].bytes, pace, cases[i].gateways,
                      cases[i].gateways == 1 ? "" : "s");
    }
    exit(2);
}

static bool is_chosen(const struct fanout_case *what, const char *only)
{
    return strcmp(only, "all") == 0 || strstr(what->name, only) != NULL;
}

int main(int argc, char **argv)
{
    struct bench bench = {.seconds = argc > 1 ? strtod(argv[1], NULL) : 2,
                          .rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 5,
                          .settings = (const char *const *)(argc > 4 ? argv + 4 : NULL)};
    const char *only = argc > 3 ? argv[3] : "all";
    bool is_known = false;
    for (size_t i = 0; i < CASES; i++)
        is_known = is_known || is_chosen(&cases[i], only);
    if (!(bench.seconds >= 0.1) || bench.rounds == 0 || bench.rounds > ROUNDS_MAX || !is_known)
        usage();
    load_first_line("git rev-parse --short HEAD 2>/dev/null", bench.commit, sizeof bench.commit);
    (void)load_raise_descriptor_limit(20000);
    for (size_t i = 0; i < CASES; i++)
        if (is_chosen(&cases[i], only))
            run_case(&bench, &cases[i]);
    print_aims(&bench);
    return 0;
}

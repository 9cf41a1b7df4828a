/* bench/log_bench.c -- what does a write cost that is on the disk before it is acknowledged?
 *
 * Question: sets a second and their latency with 1, 50 and 256 writers in flight at durability
 *           `synced`; how near that is to what the disk gives; what redis with `appendfsync always`
 *           does in the same run; how long each takes to start again with many items.
 * Method:   128-byte values on distinct items, in closed loops (writers.h):
 *             floor_loop          bare io_uring loop, one frame of W records at a time
 *             floor_server        the same behind a unix socket (log_floor.h)
 *             weir_broker         the broker over its socket, as a gateway speaks to it
 *             weir_memory         the same with a broker that keeps items in memory only
 *             weir_websocket      one worker connection as iii-sdk's: the whole path
 *             weir_libweir        one libweir connection: the whole path
 *             redis_pipeline      one unix socket connection, W sets in flight
 *             redis_connections   W unix socket connections, one set in flight on each
 *           All files are below one directory of one disk. Rounds are interleaved, the median counts
 *           (ratios: of the rounds' ratios), because the machine is noisy. Clients are this process;
 *           its CPU time is told beside the servers'. Then a broker filled with many items is killed and
 *           stopped, and started again, and so is redis; `cold` is with the files dropped from the
 *           page cache, as after a boot. On a machine whose cores are busy with something else each
 *           sync waits for the scheduler, whoever asks for it: look at the load average.
 * Unit:     sets a second; microseconds of wall-clock time (p50, p99: of a set, floor_loop: of a
 *           commit) and of user and system time (process CPU clocks) per set and per commit; seconds
 *           until ready.
 *           `CPU per commit that the log adds` is what a set costs weir_broker more than weir_memory,
 *           times the sets of a commit.
 * Output:   a line of JSON per row on stdout, tables on stderr.
 * Run:      log_bench [directory on a disk [seconds a round [rounds [items [KEY=VALUE ...]]]]]
 *           Settings are weir's; items 0: nothing is started again.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/magic.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "bench/log_floor.h"
#include "bench/redis_server.h"
#include "bench/writers.h"

enum {
    ROUNDS_MAX = 32,
    RESTARTS_MAX = 3,
    ITEMS = 65536, /* the writers go round over so many */
    SETTINGS_MAX = 16,
    FILL_IN_FLIGHT = WRITERS_IN_FLIGHT_MAX,
};

enum bench_case {
    FLOOR_LOOP,
    WEIR_BROKER,
    REDIS_PIPELINE,
    WEIR_WEBSOCKET,
    WEIR_MEMORY,
    REDIS_CONNECTIONS,
    WEIR_LIBWEIR,
    FLOOR_SERVER,
    CASE_COUNT, /* in the order of a round: between two of weir's with a log is another */
};
static const char *const case_names[CASE_COUNT] = {
    [FLOOR_LOOP] = "floor_loop",         [FLOOR_SERVER] = "floor_server",
    [WEIR_BROKER] = "weir_broker",       [WEIR_MEMORY] = "weir_memory",
    [WEIR_WEBSOCKET] = "weir_websocket", [WEIR_LIBWEIR] = "weir_libweir",
    [REDIS_PIPELINE] = "redis_pipeline", [REDIS_CONNECTIONS] = "redis_connections",
};

static const unsigned in_flight_of[] = {1, 50, 256};
enum { LOADS = sizeof in_flight_of / sizeof in_flight_of[0] };

enum metric {
    SETS_PER_S,
    P50_US,
    P99_US,
    CLIENT_US_PER_SET,
    GATEWAY_US_PER_SET,
    SERVER_US_PER_SET, /* broker, redis or floor */
    COMMITS_PER_S,
    SETS_PER_COMMIT,
    SERVER_US_PER_COMMIT,
    METRIC_COUNT,
};
static const char *const metric_names[METRIC_COUNT] = {"sets_per_s",
                                                       "p50_us",
                                                       "p99_us",
                                                       "client_us_per_set",
                                                       "gateway_us_per_set",
                                                       "server_us_per_set",
                                                       "commits_per_s",
                                                       "sets_per_commit",
                                                       "server_us_per_commit"};

/* NAN: not known of this case. */
struct row {
    double values[METRIC_COUNT][ROUNDS_MAX];
};

static struct {
    char directory[256], floor_path[300], data_dir[300], redis_dir[300], weir_log[300];
    char socket_dir[64], redis_socket[96], floor_socket[96];
    double seconds;
    unsigned rounds;
    uint64_t items;
    const char *settings[SETTINGS_MAX + 4];
    bool has_redis;
    pid_t pid;
    bool weir_runs, memory_runs, redis_runs;
    struct load_server weir, memory;
    struct redis_server redis;
    struct writers *gateway, *memory_gateway; /* the bench's own, at these two brokers */
    struct row rows[LOADS][CASE_COUNT];
} bench = {.seconds = 0.6, .rounds = 5, .items = 1000 * 1000};

/* ---- files ---- */

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    (void)remove(path);
    return 0;
}

static void remove_tree(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int evict_one(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)place;
    int fd = kind == FTW_F ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    (void)fsync(fd); /* what is not written yet cannot be dropped */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)close(fd);
    return 0;
}

static uint64_t tree_bytes;
static int add_one(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)path;
    (void)place;
    if (kind == FTW_F)
        tree_bytes += (uint64_t)status->st_blocks * 512;
    return 0;
}

static uint64_t disk_bytes(const char *path)
{
    tree_bytes = 0;
    (void)nftw(path, add_one, 16, FTW_PHYS);
    return tree_bytes;
}

static void make_directory(const char *path)
{
    if (mkdir(path, 0700) != 0)
        load_die("cannot make %s: %s", path, strerror(errno));
}

/* However the bench ends. */
static void clean_up(void)
{
    if (getpid() != bench.pid)
        return;
    if (bench.weir_runs)
        load_server_kill(&bench.weir);
    if (bench.memory_runs)
        load_server_kill(&bench.memory);
    if (bench.redis_runs)
        redis_server_kill(&bench.redis);
    remove_tree(bench.directory);
    remove_tree(bench.socket_dir);
}

static volatile sig_atomic_t is_interrupted;

static void on_signal(int number)
{
    (void)number; /* what waits for a server ends with EINTR, and the bench with it */
    is_interrupted = 1;
}

static void make_places(const char *parent)
{
    struct statfs status;
    if (statfs(parent, &status) != 0)
        load_die("cannot find %s: %s", parent, strerror(errno));
    if (status.f_type == TMPFS_MAGIC)
        load_die("%s is in memory; give a directory on a disk", parent);
    char absolute[PATH_MAX];
    if (realpath(parent, absolute) == NULL || strlen(absolute) > 200)
        load_die("%s cannot be used: its path is too long", parent);
    (void)snprintf(bench.directory, sizeof bench.directory, "%.200s/weir-log-bench-XXXXXX",
                   absolute);
    (void)snprintf(bench.socket_dir, sizeof bench.socket_dir, "/tmp/weir-log-bench-XXXXXX");
    if (mkdtemp(bench.directory) == NULL || mkdtemp(bench.socket_dir) == NULL)
        load_die("cannot make a directory in %s: %s", parent, strerror(errno));
    bench.pid = getpid();
    (void)atexit(clean_up);
    const struct sigaction action = {.sa_handler = on_signal};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    (void)snprintf(bench.floor_path, sizeof bench.floor_path, "%s/floor", bench.directory);
    (void)snprintf(bench.data_dir, sizeof bench.data_dir, "%s/weir", bench.directory);
    (void)snprintf(bench.redis_dir, sizeof bench.redis_dir, "%s/redis", bench.directory);
    (void)snprintf(bench.weir_log, sizeof bench.weir_log, "%s/weir.log", bench.directory);
    (void)snprintf(bench.redis_socket, sizeof bench.redis_socket, "%s/redis", bench.socket_dir);
    (void)snprintf(bench.floor_socket, sizeof bench.floor_socket, "%s/floor", bench.socket_dir);
}

/* ---- where it ran ---- */

/* File system and device of the directory, from proc_pid_mountinfo(5). */
static void find_mount(char *kind, char *source, size_t bytes)
{
    struct stat status;
    char line[1024], wanted[32];
    (void)snprintf(kind, bytes, "?");
    (void)snprintf(source, bytes, "?");
    FILE *mounts = fopen("/proc/self/mountinfo", "r");
    if (mounts == NULL)
        return;
    if (stat(bench.directory, &status) != 0)
        status.st_dev = 0;
    (void)snprintf(wanted, sizeof wanted, " %u:%u ", major(status.st_dev), minor(status.st_dev));
    while (fgets(line, sizeof line, mounts) != NULL) {
        char *tail = strstr(line, " - ");
        char found_kind[64], found_source[64];
        if (strstr(line, wanted) != NULL && tail != NULL &&
            sscanf(tail, " - %63s %63s", found_kind, found_source) == 2) {
            (void)snprintf(kind, bytes, "%s", found_kind);
            (void)snprintf(source, bytes, "%s", found_source);
        }
    }
    (void)fclose(mounts);
}

static void print_machine(void)
{
    struct utsname machine;
    char kind[64], source[64], redis[32] = "none", commit[64], cache[64], command[128];
    struct stat status;
    (void)uname(&machine);
    find_mount(kind, source, sizeof kind);
    if (stat(bench.directory, &status) != 0)
        load_die("cannot find %s", bench.directory);
    /* Of a partition, the disk has it. */
    (void)snprintf(command, sizeof command,
                   "cd /sys/dev/block/%u:%u/ 2>/dev/null && cat queue/write_cache "
                   "../queue/write_cache 2>/dev/null",
                   major(status.st_dev), minor(status.st_dev));
    load_first_line(command, cache, sizeof cache);
    load_first_line("git rev-parse --short HEAD 2>/dev/null", commit, sizeof commit);
    bench.has_redis = redis_server_version(redis, sizeof redis);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    double busy[1] = {0};
    (void)getloadavg(busy, 1);
    printf("{\"bench\":\"log\",\"case\":\"machine\",\"cores\":%ld,\"kernel\":\"%s\","
           "\"file_system\":\"%s\",\"disk\":\"%s\",\"disk_cache\":\"%s\",\"weir\":\"%s\","
           "\"commit\":\"%s\",\"redis\":\"%s\",\"load_average\":%.2f,\"rounds\":%u,\"seconds_a_"
           "round\":%g,"
           "\"value_bytes\":%d,\"items\":%d}\n",
           cores, machine.release, kind, source, cache, WEIR_VERSION, commit, redis, busy[0],
           bench.rounds, bench.seconds, LOAD_ITEM_BYTES, ITEMS);
    (void)fflush(stdout);
    (void)fprintf(
        stderr,
        "  %ld cores, Linux %s, %s on %s (%s), weir %s (%s), redis %s, load average %.2f; medians "
        "of %u rounds of %g s, %d-byte values\n",
        cores, machine.release, kind, source, cache, WEIR_VERSION, commit, redis, busy[0],
        bench.rounds, bench.seconds, LOAD_ITEM_BYTES);
    if (!bench.has_redis)
        (void)fprintf(stderr, "  there is no redis-server: its rows are left out\n");
}

/* ---- servers ---- */

static void start_weir(void)
{
    (void)unlink(bench.weir_log);
    load_server_start_logged(&bench.weir, 1, bench.settings, bench.weir_log);
    bench.weir_runs = true;
    bench.gateway = writers_open_broker(bench.weir.run_dir);
}

static void end_weir(bool is_crash)
{
    writers_close(bench.gateway);
    bench.weir_runs = false;
    if (is_crash)
        load_server_kill(&bench.weir);
    else
        load_server_stop(&bench.weir);
}

static void start_memory(void)
{
    load_server_start_logged(&bench.memory, 1, NULL, bench.weir_log);
    bench.memory_runs = true;
    bench.memory_gateway = writers_open_broker(bench.memory.run_dir);
}

static void end_memory(void)
{
    writers_close(bench.memory_gateway);
    bench.memory_runs = false;
    load_server_stop(&bench.memory);
}

static void start_redis(void)
{
    redis_server_start(&bench.redis, bench.redis_dir, bench.redis_socket);
    bench.redis_runs = true;
}

static void end_redis(void)
{
    bench.redis_runs = false;
    redis_server_kill(&bench.redis);
}

static void fill_redis(uint64_t items)
{
    const struct writers_run run = {.in_flight = FILL_IN_FLIGHT, .sets = items, .items = items};
    struct writers *writers = writers_open_redis(bench.redis_socket, 1);
    (void)writers_run(writers, &run);
    writers_close(writers);
}

static void fill_weir(struct writers *gateway, uint64_t items)
{
    const struct writers_run run = {.in_flight = FILL_IN_FLIGHT, .sets = items, .items = items};
    (void)writers_run(gateway, &run);
}

/* ---- a round ---- */

/* The broker shows its counters once a second, so a round's commits are known later than the rest
 * of it. */
static struct {
    struct row *row;
    unsigned round;
    struct writers_outcome outcome;
    uint64_t broker_ns;
    struct broker_counters before;
} unsettled;

static void settle(void)
{
    struct broker_counters now;
    uint64_t deadline_ns = load_clock_ns() + 10000000000u;
    if (unsettled.row == NULL)
        return;
    const struct writers_outcome *outcome = &unsettled.outcome;
    for (;;) {
        writers_broker_counters(bench.gateway, &now);
        if (now.requests >= unsettled.before.requests + outcome->sets)
            break;
        if (load_clock_ns() > deadline_ns)
            load_die("the broker does not show its counters");
        load_sleep_until(load_clock_ns() + 5000000u);
    }
    double commits = (double)(now.commits - unsettled.before.commits);
    double(*values)[ROUNDS_MAX] = unsettled.row->values;
    values[COMMITS_PER_S][unsettled.round] = commits / outcome->seconds;
    values[SETS_PER_COMMIT][unsettled.round] = (double)outcome->sets / commits;
    values[SERVER_US_PER_COMMIT][unsettled.round] = (double)unsettled.broker_ns / 1e3 / commits;
    unsettled.row = NULL;
}

static void keep_outcome(struct row *row, unsigned round, const struct writers_outcome *outcome,
                         uint64_t gateway_ns, uint64_t server_ns)
{
    row->values[SETS_PER_S][round] = (double)outcome->sets / outcome->seconds;
    row->values[P50_US][round] = outcome->p50_us;
    row->values[P99_US][round] = outcome->p99_us;
    row->values[CLIENT_US_PER_SET][round] =
        outcome->cpu_ns == 0 ? NAN : (double)outcome->cpu_ns / 1e3 / (double)outcome->sets;
    row->values[GATEWAY_US_PER_SET][round] =
        gateway_ns == 0 ? NAN : (double)gateway_ns / 1e3 / (double)outcome->sets;
    row->values[SERVER_US_PER_SET][round] = (double)server_ns / 1e3 / (double)outcome->sets;
    for (unsigned metric = COMMITS_PER_S; metric < METRIC_COUNT; metric++)
        row->values[metric][round] = NAN;
}

static void round_weir(struct row *row, unsigned round, struct writers *writers,
                       const struct writers_run *run)
{
    settle();
    writers_broker_counters(bench.gateway, &unsettled.before);
    uint64_t broker_ns = load_cpu_ns(bench.weir.broker);
    uint64_t gateway_ns = load_cpu_ns(bench.weir.gateways[0]);
    unsettled.outcome = writers_run(writers, run);
    unsettled.broker_ns = load_cpu_ns(bench.weir.broker) - broker_ns;
    gateway_ns = load_cpu_ns(bench.weir.gateways[0]) - gateway_ns;
    unsettled.row = row;
    unsettled.round = round;
    keep_outcome(row, round, &unsettled.outcome, writers == bench.gateway ? 0 : gateway_ns,
                 unsettled.broker_ns);
    if (writers != bench.gateway)
        writers_close(writers);
}

static void round_memory(struct row *row, unsigned round, const struct writers_run *run)
{
    uint64_t cpu_ns = load_cpu_ns(bench.memory.broker);
    struct writers_outcome outcome = writers_run(bench.memory_gateway, run);
    cpu_ns = load_cpu_ns(bench.memory.broker) - cpu_ns;
    keep_outcome(row, round, &outcome, 0, cpu_ns);
}

static void round_redis(struct row *row, unsigned round, unsigned connections,
                        const struct writers_run *run)
{
    struct writers *writers = writers_open_redis(bench.redis_socket, connections);
    uint64_t cpu_ns = load_cpu_ns(bench.redis.pid);
    struct writers_outcome outcome = writers_run(writers, run);
    cpu_ns = load_cpu_ns(bench.redis.pid) - cpu_ns;
    keep_outcome(row, round, &outcome, 0, cpu_ns);
    writers_close(writers);
}

static void round_floor_loop(struct row *row, unsigned round, const struct writers_run *run)
{
    struct floor_outcome loop = log_floor_loop(bench.floor_path, run->in_flight, run->seconds);
    const struct writers_outcome outcome = {loop.commits * run->in_flight, loop.seconds,
                                            loop.p50_us, loop.p99_us, 0};
    keep_outcome(row, round, &outcome, 0, (uint64_t)(loop.cpu_us * 1e3 * (double)loop.commits));
    row->values[COMMITS_PER_S][round] = (double)loop.commits / loop.seconds;
    row->values[SETS_PER_COMMIT][round] = run->in_flight;
    row->values[SERVER_US_PER_COMMIT][round] = loop.cpu_us;
}

static void round_floor_server(struct row *row, unsigned round, const struct writers_run *run)
{
    struct log_floor_server server;
    log_floor_server_start(&server, bench.floor_path, bench.floor_socket);
    struct writers *writers = writers_open_bare(bench.floor_socket);
    const struct writers_run warm_up = {.in_flight = 1, .sets = 1, .items = 1};
    (void)writers_run(writers, &warm_up);
    uint64_t cpu_ns = load_cpu_ns(server.pid), commits = log_floor_server_commits(&server);
    struct writers_outcome outcome = writers_run(writers, run);
    cpu_ns = load_cpu_ns(server.pid) - cpu_ns;
    commits = log_floor_server_commits(&server) - commits;
    keep_outcome(row, round, &outcome, 0, cpu_ns);
    row->values[COMMITS_PER_S][round] = (double)commits / outcome.seconds;
    row->values[SETS_PER_COMMIT][round] = (double)outcome.sets / (double)commits;
    row->values[SERVER_US_PER_COMMIT][round] = (double)cpu_ns / 1e3 / (double)commits;
    writers_close(writers);
    log_floor_server_stop(&server);
}

static bool case_runs(enum bench_case which, unsigned in_flight)
{
    if (which == REDIS_CONNECTIONS && in_flight == 1) /* the same as the pipeline */
        return false;
    return bench.has_redis || (which != REDIS_PIPELINE && which != REDIS_CONNECTIONS);
}

static void round_run(enum bench_case which, struct row *row, unsigned round,
                      const struct writers_run *run)
{
    switch (which) {
    case FLOOR_LOOP:
        round_floor_loop(row, round, run);
        break;
    case FLOOR_SERVER:
        round_floor_server(row, round, run);
        break;
    case WEIR_BROKER:
        round_weir(row, round, bench.gateway, run);
        break;
    case WEIR_MEMORY:
        round_memory(row, round, run);
        break;
    case WEIR_WEBSOCKET:
        round_weir(row, round, writers_open_websocket(bench.weir.worker_port), run);
        break;
    case WEIR_LIBWEIR:
        round_weir(row, round, writers_open_libweir(bench.weir.run_dir), run);
        break;
    case REDIS_PIPELINE:
        round_redis(row, round, 1, run);
        break;
    default:
        round_redis(row, round, run->in_flight, run);
        break;
    }
}

/* ---- printing ---- */

static double row_median(const struct row *row, enum metric metric)
{
    double values[ROUNDS_MAX];
    memcpy(values, row->values[metric], sizeof values);
    return load_median(values, bench.rounds);
}

static double ratio_median(const struct row *row, const struct row *other, enum metric metric)
{
    double ratios[ROUNDS_MAX];
    for (unsigned round = 0; round < bench.rounds; round++)
        ratios[round] = row->values[metric][round] / other->values[metric][round];
    return load_median(ratios, bench.rounds);
}

/* What the log adds to the broker's CPU time, per commit, as a multiple of the bare loop's. */
static double log_cpu_ratio(const struct row *rows)
{
    double ratios[ROUNDS_MAX];
    for (unsigned round = 0; round < bench.rounds; round++) {
        double added_us = rows[WEIR_BROKER].values[SERVER_US_PER_SET][round] -
                          rows[WEIR_MEMORY].values[SERVER_US_PER_SET][round];
        ratios[round] = added_us * rows[WEIR_BROKER].values[SETS_PER_COMMIT][round] /
                        rows[FLOOR_LOOP].values[SERVER_US_PER_COMMIT][round];
    }
    return load_median(ratios, bench.rounds);
}

static void print_row(const char *name, unsigned in_flight, const struct row *row)
{
    printf("{\"bench\":\"log\",\"case\":\"%s\",\"in_flight\":%u", name, in_flight);
    for (unsigned metric = 0; metric < METRIC_COUNT; metric++) {
        double value = row_median(row, metric);
        if (isnan(value))
            printf(",\"%s\":null", metric_names[metric]);
        else
            printf(",\"%s\":%.*f", metric_names[metric], value < 100 ? 2 : 0, value);
    }
    printf("}\n");
    (void)fflush(stdout);
}

static void print_table(void)
{
    static const enum bench_case order[CASE_COUNT] = {
        FLOOR_LOOP,     FLOOR_SERVER, WEIR_BROKER,    WEIR_MEMORY,
        WEIR_WEBSOCKET, WEIR_LIBWEIR, REDIS_PIPELINE, REDIS_CONNECTIONS};
    static const struct {
        enum metric metric;
        int width;
        const char *heading, *per;
    } columns[METRIC_COUNT] = {{SETS_PER_S, 10, "sets/s", ""},
                               {P50_US, 9, "p50 us", ""},
                               {P99_US, 9, "p99 us", ""},
                               {COMMITS_PER_S, 10, "commits/s", ""},
                               {SETS_PER_COMMIT, 11, "sets/commit", ""},
                               {CLIENT_US_PER_SET, 10, "client us", "/set"},
                               {GATEWAY_US_PER_SET, 10, "gateway us", "/set"},
                               {SERVER_US_PER_SET, 10, "server us", "/set"},
                               {SERVER_US_PER_COMMIT, 10, "server us", "/commit"}};
    (void)fprintf(stderr, "\n%9s  %-18s", "in flight", "");
    for (unsigned i = 0; i < METRIC_COUNT; i++)
        (void)fprintf(stderr, " %*s", columns[i].width, columns[i].heading);
    (void)fprintf(stderr, "\n%29s", "");
    for (unsigned i = 0; i < METRIC_COUNT; i++)
        (void)fprintf(stderr, " %*s", columns[i].width, columns[i].per);
    (void)fputc('\n', stderr);
    for (unsigned load = 0; load < LOADS; load++) {
        for (unsigned i = 0; i < CASE_COUNT; i++) {
            if (!case_runs(order[i], in_flight_of[load]))
                continue;
            (void)fprintf(stderr, "%9u  %-18s", in_flight_of[load], case_names[order[i]]);
            for (unsigned column = 0; column < METRIC_COUNT; column++) {
                double value = row_median(&bench.rows[load][order[i]], columns[column].metric);
                int width = columns[column].width;
                if (isnan(value))
                    (void)fprintf(stderr, " %*s", width, "-");
                else
                    (void)fprintf(stderr, " %*.*f", width, value < 100 ? 2 : 0, value);
            }
            (void)fputc('\n', stderr);
        }
    }
    (void)fputc('\n', stderr);
}

static void print_ratio(unsigned in_flight, const char *name, const char *text, double ratio)
{
    printf("{\"bench\":\"log\",\"case\":\"ratio\",\"in_flight\":%u,\"%s\":%.2f}\n", in_flight, name,
           ratio);
    (void)fflush(stdout);
    (void)fprintf(stderr, "%9u  %-72s %6.2f\n", in_flight, text, ratio);
}

static void print_ratios(unsigned load)
{
    const struct row *rows = bench.rows[load];
    unsigned in_flight = in_flight_of[load];
    if (bench.has_redis) {
        bool connections_win = in_flight > 1 && row_median(&rows[REDIS_CONNECTIONS], SETS_PER_S) >
                                                    row_median(&rows[REDIS_PIPELINE], SETS_PER_S);
        const struct row *redis =
            connections_win ? &rows[REDIS_CONNECTIONS] : &rows[REDIS_PIPELINE];
        print_ratio(in_flight, "websocket_to_redis", "sets/s, WebSocket worker / better redis",
                    ratio_median(&rows[WEIR_WEBSOCKET], redis, SETS_PER_S));
        print_ratio(in_flight, "libweir_to_redis", "sets/s, libweir worker / better redis",
                    ratio_median(&rows[WEIR_LIBWEIR], redis, SETS_PER_S));
    }
    print_ratio(in_flight, "broker_to_floor_loop", "sets/s, broker / bare loop",
                ratio_median(&rows[WEIR_BROKER], &rows[FLOOR_LOOP], SETS_PER_S));
    print_ratio(in_flight, "broker_to_floor_server", "sets/s, broker / bare loop behind a socket",
                ratio_median(&rows[WEIR_BROKER], &rows[FLOOR_SERVER], SETS_PER_S));
    print_ratio(in_flight, "commit_cpu_to_floor_loop", "CPU per commit, broker / bare loop",
                ratio_median(&rows[WEIR_BROKER], &rows[FLOOR_LOOP], SERVER_US_PER_COMMIT));
    print_ratio(in_flight, "log_cpu_to_floor_loop",
                "CPU per commit that the log adds to the broker / bare loop", log_cpu_ratio(rows));
    print_ratio(in_flight, "commit_cpu_to_floor_server",
                "CPU per commit, broker / bare loop behind a socket",
                ratio_median(&rows[WEIR_BROKER], &rows[FLOOR_SERVER], SERVER_US_PER_COMMIT));
}

/* ---- writing ---- */

static void bench_load(unsigned load)
{
    const struct writers_run run = {
        .in_flight = in_flight_of[load], .seconds = bench.seconds, .items = ITEMS};
    for (unsigned round = 0; round < bench.rounds; round++) {
        (void)fprintf(stderr, "  %u in flight, round %u of %u\n", run.in_flight, round + 1,
                      bench.rounds);
        for (unsigned i = 0; i < CASE_COUNT; i++) {
            /* Nobody always follows the same other, whose writes the disk may still be busy with. */
            enum bench_case which = (i + round) % CASE_COUNT;
            if (is_interrupted)
                load_die("interrupted");
            if (case_runs(which, run.in_flight))
                round_run(which, &bench.rows[load][which], round, &run);
        }
    }
    settle();
    for (unsigned which = 0; which < CASE_COUNT; which++)
        if (case_runs(which, run.in_flight))
            print_row(case_names[which], run.in_flight, &bench.rows[load][which]);
}

static void bench_writing(void)
{
    log_floor_prepare(bench.floor_path);
    start_weir();
    fill_weir(bench.gateway, ITEMS);
    start_memory();
    fill_weir(bench.memory_gateway, ITEMS);
    if (bench.has_redis) {
        make_directory(bench.redis_dir);
        start_redis();
        fill_redis(ITEMS);
    }
    load_sleep_until(load_clock_ns() + 1500000000u); /* the broker shows what it has counted */
    for (unsigned load = 0; load < LOADS; load++)
        bench_load(load);
    print_table();
    for (unsigned load = 0; load < LOADS; load++)
        print_ratios(load);
    end_weir(false);
    end_memory();
    if (bench.has_redis)
        end_redis();
    remove_tree(bench.data_dir);
    remove_tree(bench.redis_dir);
}

/* ---- starting again ---- */

enum restart { AFTER_KILL, AFTER_KILL_COLD, AFTER_STOP, RESTART_COUNT };
static const char *const restart_names[2][RESTART_COUNT] = {
    {"after_kill", "after_kill_cold", "after_stop"},
    {"after_kill", "after_kill_cold", "after_rewrite"}};

/* What the broker says about its recovery: event=recovered ... ms=N; NAN when it says nothing. */
static double recovered_ms(void)
{
    char line[1024];
    double ms = NAN;
    FILE *log = fopen(bench.weir_log, "r");
    while (log != NULL && fgets(line, sizeof line, log) != NULL) {
        const char *number = strstr(line, "event=recovered") == NULL ? NULL : strstr(line, " ms=");
        if (number != NULL)
            ms = strtod(number + 4, NULL);
    }
    if (log != NULL)
        (void)fclose(log);
    return ms;
}

static void expect_items(void)
{
    struct broker_counters counters;
    uint64_t deadline_ns = load_clock_ns() + 5000000000u;
    for (;;) {
        writers_broker_counters(bench.gateway, &counters);
        if (counters.items == bench.items)
            return;
        if (load_clock_ns() > deadline_ns)
            load_die("%llu of %llu items are there again", (unsigned long long)counters.items,
                     (unsigned long long)bench.items);
        load_sleep_until(load_clock_ns() + 10000000u);
    }
}

static void print_restart(const char *server, const char *restart, double ready_s, double told_ms,
                          uint64_t bytes)
{
    double per_million = ready_s * 1e6 / (double)bench.items;
    char told[32] = "null";
    if (!isnan(told_ms))
        (void)snprintf(told, sizeof told, "%.0f", told_ms);
    printf("{\"bench\":\"log\",\"case\":\"recovery\",\"server\":\"%s\",\"start\":\"%s\","
           "\"items\":%llu,\"disk_bytes\":%llu,\"ready_s\":%.3f,\"told_ms\":%s,"
           "\"s_per_million\":%.3f}\n",
           server, restart, (unsigned long long)bench.items, (unsigned long long)bytes, ready_s,
           told, per_million);
    (void)fflush(stdout);
    (void)fprintf(stderr, "  %-6s %-16s %8.0f MB on disk: ready after %.3f s (%.3f s a million)",
                  server, restart, (double)bytes / 1e6, ready_s, per_million);
    (void)fprintf(stderr, isnan(told_ms) ? "\n" : ", recovery itself %.0f ms\n", told_ms);
}

static void restart_weir(enum restart how)
{
    double ready_s[RESTARTS_MAX], told_ms[RESTARTS_MAX];
    uint64_t bytes = 0;
    unsigned count = bench.rounds < RESTARTS_MAX ? bench.rounds : RESTARTS_MAX;
    for (unsigned i = 0; i < count; i++) {
        end_weir(how != AFTER_STOP);
        bytes = disk_bytes(bench.data_dir);
        if (how == AFTER_KILL_COLD)
            (void)nftw(bench.data_dir, evict_one, 16, FTW_PHYS);
        start_weir();
        ready_s[i] = bench.weir.ready_seconds;
        told_ms[i] = recovered_ms();
        expect_items();
    }
    print_restart("weir", restart_names[0][how], load_median(ready_s, count),
                  load_median(told_ms, count), bytes);
}

static void restart_redis(enum restart how)
{
    double ready_s[RESTARTS_MAX];
    uint64_t bytes = 0;
    unsigned count = bench.rounds < RESTARTS_MAX ? bench.rounds : RESTARTS_MAX;
    if (how == AFTER_STOP)
        redis_server_rewrite(&bench.redis);
    for (unsigned i = 0; i < count; i++) {
        end_redis();
        bytes = disk_bytes(bench.redis_dir);
        if (how == AFTER_KILL_COLD)
            (void)nftw(bench.redis_dir, evict_one, 16, FTW_PHYS);
        start_redis();
        ready_s[i] = bench.redis.ready_seconds;
        if (redis_server_keys(&bench.redis) != bench.items)
            load_die("redis has not all of its keys again");
    }
    print_restart("redis", restart_names[1][how], load_median(ready_s, count), NAN, bytes);
}

static void bench_recovery(void)
{
    (void)fprintf(stderr, "\n  starting again with %llu items\n", (unsigned long long)bench.items);
    start_weir();
    fill_weir(bench.gateway, bench.items);
    for (unsigned how = 0; how < RESTART_COUNT; how++)
        restart_weir(how);
    end_weir(false);
    if (!bench.has_redis)
        return;
    make_directory(bench.redis_dir);
    start_redis();
    fill_redis(bench.items);
    for (unsigned how = 0; how < RESTART_COUNT; how++)
        restart_redis(how);
    end_redis();
}

int main(int argc, char **argv)
{
    static char data_dir_setting[320];
    const char *parent = argc > 1 ? argv[1] : ".";
    if (argc > 2)
        bench.seconds = strtod(argv[2], NULL);
    if (argc > 3)
        bench.rounds = (unsigned)strtoul(argv[3], NULL, 10);
    if (argc > 4)
        bench.items = strtoull(argv[4], NULL, 10);
    if (bench.seconds < 0.05 || bench.seconds > 60 || bench.rounds == 0 ||
        bench.rounds > ROUNDS_MAX || bench.items > WRITERS_SETS_MAX || argc > 5 + SETTINGS_MAX)
        load_die("usage: log_bench [directory on a disk [seconds a round, 0.05 to 60 [rounds, 1 to "
                 "%d [items, 0 to %d [KEY=VALUE ...]]]]]",
                 ROUNDS_MAX, WRITERS_SETS_MAX);
    make_places(parent);
    unsigned used = 0;
    (void)snprintf(data_dir_setting, sizeof data_dir_setting, "data_dir=%s", bench.data_dir);
    bench.settings[used++] = data_dir_setting;
    bench.settings[used++] = "durability=synced";
    for (int i = 5; i < argc; i++)
        bench.settings[used++] = argv[i];
    print_machine();
    bench_writing();
    if (bench.items > 0)
        bench_recovery();
    return 0;
}

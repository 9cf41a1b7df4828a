/* The crash campaign. See --help. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/torture/weir_probe.h"

enum { EXIT_USAGE = 2 };

struct options {
    uint64_t seed;
    double minutes;  /* 0: no bound in time */
    uint64_t rounds; /* kills and tears */
    uint64_t flips;  /* bit flips; a tenth as many truncations and torn tails */
    uint64_t redis_rounds, redis_flips;
    const char *directory; /* below it the campaign's own is made */
    const char *standin;   /* the stand-in instead of weir, with this lie */
    const char *redis;     /* program */
    const char *keep;
    int phase; /* only this one; PHASE_COUNT: all */
    bool asks_again, disk_lies, is_first_enough, has_weir, has_redis, shows_progress;
};

static void print_help(void)
{
    (void)printf(
        "usage: torture [OPTION]...\n\n"
        "Kills a broker at named calls and at random moments, lets its disk fail, and spoils its\n"
        "files; after each start, everything acknowledged has to be there, whole and in order.\n"
        "Exit status 1 when something was lost or went unnoticed. The same against "
        "redis-server.\n\n"
        "  --rounds N        kills, torn writes and failing disks (10000)\n"
        "  --flips N         bit flips (10000); a tenth as many truncations and torn tails\n"
        "  --minutes M       share so many minutes out instead, up to the numbers above\n"
        "  --seed S          start from this number; without, from the clock\n"
        "  --directory DIR   where data is written; /dev/shm, or else the directory for temporary "
        "files\n"
        "  --redis-rounds N  kills of redis-server (500)\n"
        "  --redis-flips N   bit flips of its files (500)\n"
        "  --no-redis, --no-weir\n"
        "  --standin LIE     try the campaign on a small server that lies: none, lost, half, gap,\n"
        "                    order, epoch, early, silent\n"
        "  --no-asking-again do not ask again, as gateways do, for what was not answered\n"
        "  --lying-disk      weir on a disk that tells of writes it has not done: has to fail\n"
        "  --first           end with the first round in which something is found\n"
        "  --phase NAME      only moments, points, errors, flips, cuts or tails\n"
        "  --keep DIR        keep the data directories of what went wrong\n"
        "  --quiet           no progress line\n");
}

static bool parse_number(const char *text, uint64_t *number)
{
    char *end = NULL;
    errno = 0;
    *number = strtoull(text, &end, 0);
    return errno == 0 && end != text && *end == 0;
}

/* -1: go on. */
static int parse(struct options *options, int argc, char **argv)
{
    static const struct option table[] = {{"rounds", required_argument, NULL, 'n'},
                                          {"flips", required_argument, NULL, 'f'},
                                          {"minutes", required_argument, NULL, 'm'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"directory", required_argument, NULL, 'd'},
                                          {"redis-rounds", required_argument, NULL, 'r'},
                                          {"redis-flips", required_argument, NULL, 'b'},
                                          {"no-redis", no_argument, NULL, 'R'},
                                          {"no-weir", no_argument, NULL, 'W'},
                                          {"standin", required_argument, NULL, 'l'},
                                          {"quiet", no_argument, NULL, 'q'},
                                          {"lying-disk", no_argument, NULL, 'L'},
                                          {"no-asking-again", no_argument, NULL, 'a'},
                                          {"first", no_argument, NULL, 'F'},
                                          {"phase", required_argument, NULL, 'p'},
                                          {"keep", required_argument, NULL, 'k'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "h", table, NULL)) != -1) {
        uint64_t *number = option == 'n'   ? &options->rounds
                           : option == 'f' ? &options->flips
                           : option == 's' ? &options->seed
                           : option == 'r' ? &options->redis_rounds
                           : option == 'b' ? &options->redis_flips
                                           : NULL;
        if (number && !parse_number(optarg, number)) {
            (void)fprintf(stderr, "torture: '%s' is not a number\n", optarg);
            return EXIT_USAGE;
        }
        switch (option) {
        case 'm':
            options->minutes = strtod(optarg, NULL);
            break;
        case 'd':
            options->directory = optarg;
            break;
        case 'R':
            options->has_redis = false;
            break;
        case 'W':
            options->has_weir = false;
            break;
        case 'l':
            options->standin = optarg;
            break;
        case 'a':
            options->asks_again = false;
            break;
        case 'L':
            options->disk_lies = true;
            break;
        case 'F':
            options->is_first_enough = true;
            break;
        case 'k':
            options->keep = optarg;
            break;
        case 'p':
            options->phase = 0;
            while (options->phase < PHASE_COUNT &&
                   strcmp(optarg, campaign_phase_word((enum campaign_phase)options->phase)) != 0)
                options->phase++;
            if (options->phase == PHASE_COUNT) {
                (void)fprintf(stderr, "torture: there is no phase %s\n", optarg);
                return EXIT_USAGE;
            }
            break;
        case 'q':
            options->shows_progress = false;
            break;
        case 'h':
            print_help();
            return EXIT_SUCCESS;
        case '?':
            return EXIT_USAGE;
        default:
            break;
        }
    }
    return -1;
}

/* bin/ of the build, where this program is. */
static void program_path(char *path, size_t bytes, const char *name)
{
    char self[400];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    (void)snprintf(path, bytes, "%s/%s", self, name);
}

/* ---- running ---- */

/* The one thing a signal handler may write. */
static volatile sig_atomic_t is_stopped;

static void stop(int signal)
{
    (void)signal;
    is_stopped = 1;
}

enum { SHARE_SECONDS_LEAST = 1 };

static void run_subject(struct campaign *campaign, const struct options *options, uint64_t rounds,
                        uint64_t flips, double seconds)
{
    /* Shares of the time; what a phase does not need is left to the next. */
    static const struct {
        enum campaign_phase phase;
        unsigned rounds_percent, seconds_percent;
    } shares[] = {{PHASE_MOMENTS, 50, 35}, {PHASE_POINTS, 40, 30}, {PHASE_ERRORS, 10, 15},
                  {PHASE_FLIPS, 100, 12},  {PHASE_CUTS, 10, 5},    {PHASE_TAILS, 10, 3}};
    double end = campaign_clock() + seconds;
    unsigned left = 100;
    for (unsigned index = 0; index < sizeof shares / sizeof shares[0]; index++) {
        enum campaign_phase phase = shares[index].phase;
        bool is_crash = phase <= PHASE_ERRORS;
        uint64_t wanted = (is_crash ? rounds : flips) * shares[index].rounds_percent / 100;
        /* Where a phase took what was left for the others, they have a little of their own; 0 is no bound. */
        double share = (end - campaign_clock()) * shares[index].seconds_percent / left;
        left -= shares[index].seconds_percent;
        if (!campaign->is_faulty && is_crash) {
            wanted = phase == PHASE_MOMENTS ? rounds : 0;
            share = phase == PHASE_MOMENTS ? (end - campaign_clock()) * 0.8 : 0;
        }
        if (options->phase != PHASE_COUNT) {
            wanted = is_crash ? rounds : flips;
            share = seconds;
        }
        if (share < SHARE_SECONDS_LEAST)
            share = SHARE_SECONDS_LEAST;
        if (wanted == 0 || (options->phase != PHASE_COUNT && options->phase != (int)phase))
            continue;
        bool is_done = is_crash ? campaign_crash(campaign, phase, wanted, seconds > 0 ? share : 0)
                                : campaign_damage(campaign, phase, wanted, seconds > 0 ? share : 0);
        if (!is_done) {
            campaign->findings.total++;
            (void)fprintf(stderr, "torture: %s %s could not be carried out: %s\n",
                          campaign->subject.kind->name, campaign_phase_word(phase),
                          strerror(errno));
            return;
        }
        if (!campaign_goes_on(campaign))
            return;
    }
}

/* ---- saying ---- */

static void print_table(const char *name, const struct campaign *campaign)
{
    (void)printf("\n%-8s %-8s %8s %8s %8s %8s %10s %8s %8s %8s %9s %8s\n", name, "phase", "rounds",
                 "kills", "torn", "cut", "acked", "again", "errors", "refused", "reads", "seconds");
    for (unsigned phase = PHASE_MOMENTS; phase <= PHASE_ERRORS; phase++) {
        const struct campaign_tally *tally = &campaign->tallies[phase];
        if (tally->rounds == 0)
            continue;
        (void)printf("%-8s %-8s %8llu %8llu %8llu %8llu %10llu %8llu %8llu %8llu %9llu %8.1f\n", "",
                     campaign_phase_word(phase), (unsigned long long)tally->rounds,
                     (unsigned long long)tally->kills, (unsigned long long)tally->tears,
                     (unsigned long long)tally->cuts, (unsigned long long)tally->acknowledged,
                     (unsigned long long)tally->asked_again,
                     (unsigned long long)tally->errors_struck,
                     (unsigned long long)tally->starts_refused,
                     (unsigned long long)tally->reads_while_failing, tally->seconds);
    }
    (void)printf("%-8s %-8s %8s %8s %8s %10s %8s %8s %9s %8s\n", "", "damage", "rounds", "refused",
                 "told", "unnoticed", "unnamed", "silent", "invented", "seconds");
    for (unsigned phase = PHASE_FLIPS; phase < PHASE_COUNT; phase++) {
        const struct campaign_tally *tally = &campaign->tallies[phase];
        if (tally->rounds == 0)
            continue;
        (void)printf("%-8s %-8s %8llu %8llu %8llu %10llu %8llu %8llu %9llu %8.1f\n", "",
                     campaign_phase_word(phase), (unsigned long long)tally->rounds,
                     (unsigned long long)tally->outcomes[OUTCOME_REFUSED],
                     (unsigned long long)tally->outcomes[OUTCOME_TOLD],
                     (unsigned long long)tally->outcomes[OUTCOME_SAME],
                     (unsigned long long)tally->outcomes[OUTCOME_UNNAMED],
                     (unsigned long long)tally->outcomes[OUTCOME_SILENT],
                     (unsigned long long)tally->outcomes[OUTCOME_INVENTED], tally->seconds);
    }
    const struct campaign_tally *flips = &campaign->tallies[PHASE_FLIPS];
    if (flips->tool_runs > 0)
        (void)printf("%-8s its own check tool finds %llu of %llu flips\n", "",
                     (unsigned long long)flips->tool_finds, (unsigned long long)flips->tool_runs);
    if (campaign->is_faulty) {
        (void)printf("%-8s struck:", "");
        for (unsigned point = 0; point < FAULT_POINT_COUNT; point++)
            for (unsigned action = 0; action < FAULT_ACTION_COUNT; action++)
                if (campaign->struck[point][action] > 0)
                    (void)printf(" %s.%s %llu", fault_point_word(point), fault_action_word(action),
                                 (unsigned long long)campaign->struck[point][action]);
        (void)printf("\n");
    }
    (void)printf("%-8s after crashes:", "");
    for (unsigned verdict = 0; verdict < VERDICT_COUNT; verdict++)
        (void)printf(" %s %llu", world_verdict_word(verdict),
                     (unsigned long long)campaign->findings.counts[verdict]);
    (void)printf("\n");
    /* Of another's server a few are enough. */
    unsigned shown = campaign->subject.kind == &subject_weir ? CAMPAIGN_SENTENCES_MAX : 3;
    for (unsigned index = 0; index < campaign->sentence_count && index < shown; index++)
        (void)printf("%-8s %s\n", "", campaign->sentences[index]);
}

static void print_json(const char *name, const struct campaign *campaign, bool first)
{
    (void)printf("%s\"%s\":{\"lost\":%llu,\"silent\":%llu", first ? "" : ",", name,
                 (unsigned long long)campaign_lost(campaign),
                 (unsigned long long)campaign_silent(campaign));
    uint64_t kills = 0, tears = 0;
    for (unsigned phase = 0; phase < PHASE_COUNT; phase++) {
        const struct campaign_tally *tally = &campaign->tallies[phase];
        kills += tally->kills;
        tears += tally->tears;
        if (phase <= PHASE_ERRORS)
            (void)printf(",\"%s\":{\"rounds\":%llu,\"kills\":%llu,\"torn\":%llu,\"cut\":%llu,"
                         "\"errors\":%llu,"
                         "\"acknowledged\":%llu,\"seconds\":%.1f}",
                         campaign_phase_word(phase), (unsigned long long)tally->rounds,
                         (unsigned long long)tally->kills, (unsigned long long)tally->tears,
                         (unsigned long long)tally->cuts, (unsigned long long)tally->errors_struck,
                         (unsigned long long)tally->acknowledged, tally->seconds);
        else
            (void)printf(",\"%s\":{\"rounds\":%llu,\"refused\":%llu,\"told\":%llu,"
                         "\"unnoticed\":%llu,\"unnamed\":%llu,\"silent\":%llu,\"invented\":%llu,"
                         "\"seconds\":%.1f}",
                         campaign_phase_word(phase), (unsigned long long)tally->rounds,
                         (unsigned long long)tally->outcomes[OUTCOME_REFUSED],
                         (unsigned long long)tally->outcomes[OUTCOME_TOLD],
                         (unsigned long long)tally->outcomes[OUTCOME_SAME],
                         (unsigned long long)tally->outcomes[OUTCOME_UNNAMED],
                         (unsigned long long)tally->outcomes[OUTCOME_SILENT],
                         (unsigned long long)tally->outcomes[OUTCOME_INVENTED], tally->seconds);
    }
    (void)printf(",\"kills\":%llu,\"torn\":%llu}", (unsigned long long)kills,
                 (unsigned long long)tears);
}

/* ---- the subjects ---- */

static bool open_standin(struct campaign *campaign, const struct options *options,
                         const char *scratch)
{
    char program[512];
    program_path(program, sizeof program, "torture_standin");
    if (!campaign_open(campaign, &subject_weir, program, scratch, options->seed))
        return false;
    static char lie[] = "--lie";
    campaign->subject.extra[0] = lie;
    campaign->subject.extra[1] = (char *)options->standin;
    campaign->is_faulty = true;
    return true;
}

/* Small segments and frequent snapshots, so that a series passes many of both; both ways to the disk,
 * and all levels, of which memory survives nothing. */
static void vary_weir(struct campaign *campaign)
{
    static char option[] = "--snapshot-bytes", set[] = "--set";
    static char *const snapshots[] = {"100000000", "100000", "100000", "4096"};
    static char *const ios[] = {"io=uring", "io=plain"};
    static char *const levels[] = {"durability=synced", "durability=synced", "durability=written",
                                   "durability=written", "durability=memory"};
    static char limbo_option[] = "--limbo", limbo[SUBJECT_PATH_BYTES + 16];
    static char *const fixed[] = {"ring_bytes=8MiB", "store_bytes=64MiB", "value_bytes_max=1536KiB",
                                  "log_segment_bytes=4MiB"};
    char **extra = campaign->subject.extra;
    *extra++ = option;
    *extra++ = snapshots[world_random(&campaign->random) % 4];
    *extra++ = set;
    *extra++ = ios[world_random(&campaign->random) % 2];
    *extra++ = set;
    uint64_t level = world_random(&campaign->random) % (campaign->may_lose ? 5 : 4);
    campaign->is_synced = level < 2;
    campaign->is_behind = level == 4;
    *extra++ = levels[level];
    (void)snprintf(limbo, sizeof limbo, "%s/limbo", campaign->subject.scratch);
    *extra++ = limbo_option;
    *extra++ = limbo;
    for (unsigned index = 0; index < sizeof fixed / sizeof fixed[0]; index++) {
        *extra++ = set;
        *extra++ = fixed[index];
    }
    *extra = NULL;
}

static bool open_weir(struct campaign *campaign, const struct options *options, const char *scratch)
{
    static struct weir_probe probe;
    char program[512];
    program_path(program, sizeof program, "torture_broker");
    if (!campaign_open(campaign, &subject_weir, program, scratch, options->seed))
        return false;
    campaign->is_faulty = true;
    campaign->asks_again = options->asks_again;
    campaign->disk_lies = options->disk_lies;
    campaign->vary = vary_weir;
    campaign->truth = weir_probe_truth;
    campaign->probe = weir_probe_run;
    campaign->own = &probe;
    return true;
}

static bool open_redis(struct campaign *campaign, const struct options *options,
                       const char *scratch)
{
    return campaign_open(campaign, &subject_redis, options->redis, scratch, options->seed);
}

static bool make_scratch(const struct options *options, char scratch[SUBJECT_PATH_BYTES],
                         const char *name)
{
    const char *below = options->directory;
    if (!below)
        below = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    int length = snprintf(scratch, SUBJECT_PATH_BYTES, "%s/weir-torture-%s-XXXXXX", below, name);
    if (length < 0 || length > 70) { /* a socket's path must fit sockaddr_un */
        (void)fprintf(stderr, "torture: %s is too long a directory\n", below);
        return false;
    }
    if (mkdtemp(scratch))
        return true;
    (void)fprintf(stderr, "torture: %s: %s\n", scratch, strerror(errno));
    return false;
}

/* One subject from start to end; false: something was wrong with it. */
static bool torture(const struct options *options, struct campaign *campaign, const char *name,
                    bool (*open_it)(struct campaign *, const struct options *, const char *),
                    uint64_t rounds, uint64_t flips, double seconds)
{
    char scratch[SUBJECT_PATH_BYTES];
    if (!make_scratch(options, scratch, name))
        return false;
    bool is_open = open_it(campaign, options, scratch);
    if (is_open) {
        campaign->shows_progress = options->shows_progress;
        campaign->keep = options->keep;
        campaign->is_first_enough = options->is_first_enough;
        campaign->is_stopped = &is_stopped;
        run_subject(campaign, options, rounds, flips, seconds);
        campaign_close(campaign);
        print_table(name, campaign);
        (void)fflush(stdout);
    } else {
        (void)fprintf(stderr, "torture: %s cannot be started: %s\n", name, strerror(errno));
    }
    (void)directory_remove(scratch);
    return is_open && campaign_is_clean(campaign);
}

int main(int argc, char **argv)
{
    static struct campaign ours, redis;
    struct options options = {.seed = (uint64_t)(campaign_clock() * 1e6) ^ (uint64_t)getpid(),
                              .rounds = 10000,
                              .flips = 10000,
                              .redis_rounds = 500,
                              .redis_flips = 500,
                              .redis = "/usr/bin/redis-server",
                              .phase = PHASE_COUNT,
                              .asks_again = true,
                              .has_weir = true,
                              .has_redis = true,
                              .shows_progress = isatty(STDERR_FILENO) == 1};
    int code = parse(&options, argc, argv);
    if (code >= 0)
        return code;
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGINT, stop);
    (void)signal(SIGTERM, stop);
    (void)printf("torture: seed %llu\n", (unsigned long long)options.seed);
    (void)fflush(stdout);

    double started = campaign_clock();
    double seconds = options.minutes * 60;
    bool is_good = true, has_redis = options.has_redis && !options.standin;
    if (has_redis && access(options.redis, X_OK) != 0) {
        (void)fprintf(stderr, "torture: no %s, so nothing to compare with\n", options.redis);
        has_redis = false;
    }
    bool has_ours = options.standin != NULL || options.has_weir;
    const char *name = options.standin ? "standin" : "weir";
    if (has_ours)
        is_good = torture(&options, &ours, name, options.standin ? open_standin : open_weir,
                          options.rounds, options.flips, has_redis ? seconds * 0.8 : seconds);
    if (has_redis)
        (void)torture(&options, &redis, "redis", open_redis, options.redis_rounds,
                      options.redis_flips, seconds * 0.2);
    (void)printf("{\"torture\":{\"seed\":%llu,\"seconds\":%.1f,", (unsigned long long)options.seed,
                 campaign_clock() - started);
    if (has_ours)
        print_json(name, &ours, true);
    if (has_redis)
        print_json("redis", &redis, !has_ours);
    (void)printf("}}\n");
    if (is_stopped)
        (void)fprintf(stderr, "torture: stopped before its end\n");
    return is_good && !is_stopped ? EXIT_SUCCESS : EXIT_FAILURE;
}

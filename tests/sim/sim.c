/* sim -- the deterministic simulation: promises 1 to 5 of docs/architecture.md, under everything that can
 * happen to broker, ring, gateways and sockets, in one process and from one seed.
 *
 *   sim [--seeds N] [--seed FIRST] [--steps N]     N runs, from seed FIRST on
 *   sim --seed N --trace                           one run, and what happens in it
 *   sim --plant FAULT [--seeds N]                  a fault that has to be noticed within N runs
 *
 * Ends with 0 when every promise was kept (--plant: when the fault was noticed for what it is), with 1
 * otherwise, with 2 when it was called wrongly. One line of figures at the end is for people to see that
 * the runs had something to check.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/sim/world.h"

struct sim_options {
    uint64_t first_seed, seeds;
    uint32_t steps;
    enum sim_fault fault;
    bool is_traced, has_seed;
};

static const struct {
    const char *word;
    uint32_t promises; /* set of 1 << enum sim_promise: what it breaks */
} faults[SIM_FAULTS] = {
#define SIM_FAULT_ROW(name, word, promises) {word, promises},
    SIM_FAULT_MAP(SIM_FAULT_ROW)
#undef SIM_FAULT_ROW
};

/* Every EVERY_AGAIN-th run is run twice, and has to be the same run. */
enum { EVERY_AGAIN = 50 };

/* The product's own assertions end the process: say which run it was. */
static volatile uint64_t running_seed;

static void on_abort(int number)
{
    char line[96];
    int bytes =
        snprintf(line, sizeof line, "sim: seed %llu ended by signal %d; sim --seed %llu --trace\n",
                 (unsigned long long)running_seed, number, (unsigned long long)running_seed);
    (void)!write(STDOUT_FILENO, line, (size_t)bytes);
    _exit(1);
}

static void figures_add(struct sim_figures *sum, const struct sim_figures *figures)
{
    sum->writes += figures->writes;
    sum->events += figures->events;
    sum->syncs += figures->syncs;
    sum->losses += figures->losses;
    sum->resumes += figures->resumes;
    sum->conflated += figures->conflated;
    sum->laps += figures->laps;
    sum->sent_away += figures->sent_away;
    sum->gateway_deaths += figures->gateway_deaths;
    sum->broker_deaths += figures->broker_deaths;
}

/* True: all promises were kept. */
static bool run_seed(struct scheduler *scheduler, const struct sim_options *options, uint64_t seed,
                     struct sim_figures *sum)
{
    struct world *world = calloc(1, sizeof *world);
    if (world == NULL)
        return false;
    running_seed = seed;
    scheduler->is_traced = options->is_traced;
    scheduler->is_quiet = options->fault != SIM_FAULT_NONE;
    scheduler_start(scheduler, seed);
    if (setjmp(scheduler->failed) != 0)
        return false;
    world_run(world, scheduler, options->fault, options->steps);
    figures_add(sum, &world->figures);
    free(world);
    return true;
}

static int run_all(const struct sim_options *options)
{
    struct scheduler scheduler = {0};
    struct sim_figures sum = {0};
    for (uint64_t i = 0; i < options->seeds; i++) {
        uint64_t seed = options->first_seed + i;
        bool is_kept = run_seed(&scheduler, options, seed, &sum);
        if (!is_kept) {
            printf("sim: again: build/bin/sim --seed %" PRIu64 " --steps %" PRIu32 " --trace\n",
                   seed, options->steps);
            return 1;
        }
        uint64_t digest = scheduler.digest;
        struct sim_figures ignored = {0};
        if (i % EVERY_AGAIN == 0 && !options->is_traced &&
            (!run_seed(&scheduler, options, seed, &ignored) || scheduler.digest != digest)) {
            printf("sim: seed %" PRIu64 " is another run when it is run again\n", seed);
            return 1;
        }
    }
    printf("sim: %" PRIu64 " seeds from %" PRIu64 " kept all promises: %" PRIu64 " writes, %" PRIu64
           " events, %" PRIu64 " syncs (%" PRIu64 " told losses), %" PRIu64 " resumes, %" PRIu64
           " conflated, %" PRIu64 " laps, %" PRIu64 " sent away, %" PRIu64 " gateways and %" PRIu64
           " brokers died\n",
           options->seeds, options->first_seed, sum.writes, sum.events, sum.syncs, sum.losses,
           sum.resumes, sum.conflated, sum.laps, sum.sent_away, sum.gateway_deaths,
           sum.broker_deaths);
    return 0;
}

/* The fault has to be noticed, and as the breach it is. */
static int run_planted(const struct sim_options *options)
{
    struct scheduler scheduler = {0};
    struct sim_figures sum = {0};
    for (uint64_t i = 0; i < options->seeds; i++) {
        uint64_t seed = options->first_seed + i;
        if (run_seed(&scheduler, options, seed, &sum))
            continue;
        printf("sim: planted %s: noticed as %s at seed %" PRIu64 "\n", faults[options->fault].word,
               sim_promise_word(scheduler.promise), seed);
        return (faults[options->fault].promises & 1u << scheduler.promise) != 0 ? 0 : 1;
    }
    printf("sim: planted %s: not noticed in %" PRIu64 " seeds\n", faults[options->fault].word,
           options->seeds);
    return 1;
}

static bool parse_number(const char *text, uint64_t *number)
{
    char *end;
    if (text == NULL || *text == '\0')
        return false;
    *number = strtoull(text, &end, 0);
    return *end == '\0';
}

static bool parse_fault(const char *text, enum sim_fault *fault)
{
    for (unsigned i = 0; text != NULL && i < SIM_FAULTS; i++) {
        if (strcmp(faults[i].word, text) == 0) {
            *fault = (enum sim_fault)i;
            return true;
        }
    }
    return false;
}

/* argv ends with NULL. */
static bool parse_options(struct sim_options *options, char **arguments)
{
    for (; *arguments != NULL; arguments++) {
        const char *name = *arguments;
        uint64_t number = 0;
        if (strcmp(name, "--trace") == 0) {
            options->is_traced = true;
            continue;
        }
        const char *value = *++arguments;
        if (strcmp(name, "--plant") == 0) {
            if (!parse_fault(value, &options->fault))
                return false;
            continue;
        }
        if (!parse_number(value, &number))
            return false;
        if (strcmp(name, "--seeds") == 0)
            options->seeds = number;
        else if (strcmp(name, "--seed") == 0)
            options->first_seed = number;
        else if (strcmp(name, "--steps") == 0)
            options->steps = (uint32_t)number;
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct sim_options options = {.first_seed = 1, .seeds = 1, .steps = 3000};
    (void)argc;
    if (!parse_options(&options, argv + 1)) {
        (void)fprintf(
            stderr,
            "usage: sim [--seeds N] [--seed FIRST] [--steps N] [--trace] [--plant FAULT]\n");
        return 2;
    }
    (void)signal(SIGABRT, on_abort);
    (void)signal(SIGSEGV, on_abort);
    return options.fault == SIM_FAULT_NONE ? run_all(&options) : run_planted(&options);
}

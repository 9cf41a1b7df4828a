/* tests/torture/campaign.h -- rounds of start, check, load and crash, and rounds of damage, against one
 * subject; what they found is counted.
 *
 *   series:  empty directory ─▶ [start, check, load, crash] × rounds ─▶ start, check, clean stop, start, check
 *   damage:  a directory as a crash has left it ─▶ [copy, spoil one place, start, compare] × n
 *
 * Process and thread: one. Everything random comes from the seed and the number of the series; what the
 * server has done by a random moment does not.
 */
#ifndef WEIR_TESTS_TORTURE_CAMPAIGN_H
#define WEIR_TESTS_TORTURE_CAMPAIGN_H

#include <signal.h>
#include <stdio.h>

#include "tests/torture/damage.h"
#include "tests/torture/fault_plan.h"
#include "tests/torture/subject.h"

enum { SERIES_ROUNDS_MAX = 40, CAMPAIGN_SENTENCES_MAX = 24 };

enum campaign_phase {
    PHASE_MOMENTS, /* SIGKILL at random moments */
    PHASE_POINTS,  /* SIGKILL, torn writes, power cuts at named calls */
    PHASE_ERRORS,  /* EIO, ENOSPC, short and half writes */
    PHASE_FLIPS,
    PHASE_CUTS, /* truncations */
    PHASE_TAILS,
    PHASE_COUNT
};

/* What a spoiled directory led to. */
enum damage_outcome {
    OUTCOME_REFUSED,  /* no start, and it says which file */
    OUTCOME_TOLD,     /* started, said so, and has a true beginning of what there was */
    OUTCOME_SAME,     /* started without a word, and everything is there */
    OUTCOME_UNNAMED,  /* no start, and it does not say which file */
    OUTCOME_SILENT,   /* started without a word, and something is missing or different */
    OUTCOME_INVENTED, /* started, said so, and has what never was */
    OUTCOME_COUNT
};

struct campaign_tally {
    uint64_t rounds, checks, bad_series;
    uint64_t kills, tears, cuts; /* ends by SIGKILL; of them with a torn write, by a power cut */
    uint64_t errors_struck;      /* rounds in which an error was given to the server */
    uint64_t writes_refused, reads_while_failing;
    uint64_t requests, acknowledged, asked_again;
    uint64_t starts_refused; /* for an error given at the start, with words */
    uint64_t outcomes[OUTCOME_COUNT];
    uint64_t tool_runs, tool_finds; /* the server's own tool for its files */
    double seconds;
};

struct campaign {
    struct subject subject;
    struct world world;
    struct seen seen;
    uint64_t seed, random, series;
    bool is_faulty;       /* the subject takes fault plans */
    bool is_synced;       /* this series survives power cuts */
    bool is_behind;       /* the log of this series is written behind what is shown */
    bool may_lose;        /* the phase knows how to check a level that does not keep all */
    bool asks_again;      /* as gateways do */
    bool disk_lies;       /* its disk tells of writes it has not done: the campaign must fail */
    bool is_first_enough; /* what is found first ends it */
    /* Further arguments for a series, chosen by its number; may be NULL. */
    void (*vary)(struct campaign *campaign);
    /* Compare a spoiled directory without a server; NULL: only by starting one. The directory's truth
     * was taken by `truth` before. */
    enum damage_outcome (*probe)(struct campaign *campaign, const struct image *image,
                                 const struct damage *damage, char why[192]);
    bool (*truth)(struct campaign *campaign, struct image *image);
    void *own;
    struct campaign_tally tallies[PHASE_COUNT];
    uint64_t struck[FAULT_POINT_COUNT][FAULT_ACTION_COUNT];
    struct world_findings findings; /* all phases */
    char sentences[CAMPAIGN_SENTENCES_MAX][768];
    unsigned sentence_count;
    bool shows_progress;
    double started, last_shown;
    uint64_t goal_rounds; /* of the phase that runs, for the progress line */
    const char *doing;
    const volatile sig_atomic_t *is_stopped; /* not 0: a round is finished, then no more */
    char fault[96], fault_before[96]; /* of this round and of the one before, for sentences */
    const char *keep; /* directory for those of series that went wrong; NULL: none */
};

double campaign_clock(void);

bool campaign_open(struct campaign *campaign, const struct subject_kind *kind, const char *program,
                   const char *scratch, uint64_t seed);
void campaign_close(struct campaign *campaign);
/* Until so many rounds or seconds (0: no bound) of the phase. False: it could not be carried out. */
bool campaign_crash(struct campaign *campaign, enum campaign_phase phase, uint64_t rounds,
                    double seconds);
bool campaign_damage(struct campaign *campaign, enum campaign_phase phase, uint64_t rounds,
                     double seconds);
/* There is to be another round: nobody has stopped it, and nothing was found that is enough. */
bool campaign_goes_on(const struct campaign *campaign);
/* Nothing lost, nothing silent, nothing else found. */
bool campaign_is_clean(const struct campaign *campaign);
uint64_t campaign_lost(const struct campaign *campaign);   /* findings of crash phases */
uint64_t campaign_silent(const struct campaign *campaign); /* of damage phases */
const char *campaign_phase_word(enum campaign_phase phase);

#endif

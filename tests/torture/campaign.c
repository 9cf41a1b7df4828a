#include "tests/torture/campaign.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    WINDOW_MAX = 24,          /* requests in flight of one lane */
    ROUND_REQUESTS_MAX = 600, /* of one round and lane */
    READS_WHILE_FAILING = 3,
    DAMAGES_OF_ONE_DIRECTORY = 400,
    BAD_SERIES_MAX = 100, /* of one phase: more would say nothing new */
};

static const char *const phase_words[] = {"moments", "points", "errors", "flips", "cuts", "tails"};

const char *campaign_phase_word(enum campaign_phase phase)
{
    return phase_words[phase];
}

double campaign_clock(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint64_t below(struct campaign *campaign, uint64_t bound)
{
    return world_random(&campaign->random) % bound;
}

/* ---- saying ---- */

static void progress(struct campaign *campaign, const struct campaign_tally *tally, bool last)
{
    double now = campaign_clock();
    if (!campaign->shows_progress || (!last && now - campaign->last_shown < 0.5))
        return;
    campaign->last_shown = now;
    (void)fprintf(stderr, "\r%s %s: %llu of %llu rounds, %llu kills, %llu wrong%s",
                  campaign->subject.kind->name, campaign->doing, (unsigned long long)tally->rounds,
                  (unsigned long long)campaign->goal_rounds, (unsigned long long)tally->kills,
                  (unsigned long long)(campaign_lost(campaign) + campaign_silent(campaign)),
                  last ? "\n" : "   ");
}

/* The directory as it is now, for people to look at. */
static void keep_directory(const struct campaign *campaign)
{
    static struct image image;
    char path[256];
    if (!campaign->keep)
        return;
    (void)snprintf(path, sizeof path, "%s/%s-%llu-%llu", campaign->keep, campaign->doing,
                   (unsigned long long)campaign->seed, (unsigned long long)campaign->series);
    if (!image_read(&image, campaign->subject.directory) || !image_write(&image, path, NULL))
        (void)fprintf(stderr, "torture: %s: %s\n", path, strerror(errno));
    image_free(&image);
}

static void keep_sentence(struct campaign *campaign, const char *text)
{
    if (campaign->sentence_count == CAMPAIGN_SENTENCES_MAX)
        return;
    char fault[224] = "";
    if (campaign->fault[0] || campaign->fault_before[0])
        (void)snprintf(fault, sizeof fault, ", %s after %s",
                       campaign->fault[0] ? campaign->fault : "no fault",
                       campaign->fault_before[0] ? campaign->fault_before : "none");
    (void)snprintf(campaign->sentences[campaign->sentence_count++], sizeof campaign->sentences[0],
                   "%s, seed %llu, series %llu%s: %s", campaign->doing,
                   (unsigned long long)campaign->seed, (unsigned long long)campaign->series, fault,
                   text);
}

static void found(struct campaign *campaign, enum world_verdict verdict, const char *text)
{
    campaign->findings.counts[verdict]++;
    campaign->findings.total++;
    keep_sentence(campaign, text);
}

/* ---- life ---- */

bool campaign_open(struct campaign *campaign, const struct subject_kind *kind, const char *program,
                   const char *scratch, uint64_t seed)
{
    *campaign = (struct campaign){.seed = seed, .started = campaign_clock()};
    struct subject *subject = &campaign->subject;
    subject->kind = kind;
    (void)snprintf(subject->program, sizeof subject->program, "%s", program);
    (void)snprintf(subject->scratch, sizeof subject->scratch, "%s", scratch);
    (void)snprintf(subject->directory, sizeof subject->directory, "%.100s/data", scratch);
    subject->child = (struct child){.ready_fd = -1, .note_fd = -1};
    return world_init(&campaign->world, seed, kind->has_seq) && kind->open(subject);
}

void campaign_close(struct campaign *campaign)
{
    child_kill(&campaign->subject.child, SIGKILL);
    (void)child_wait(&campaign->subject.child);
    campaign->subject.kind->close(&campaign->subject);
    world_fini(&campaign->world);
    seen_fini(&campaign->seen);
}

bool campaign_is_clean(const struct campaign *campaign)
{
    return campaign_lost(campaign) == 0 && campaign_silent(campaign) == 0;
}

bool campaign_goes_on(const struct campaign *campaign)
{
    return !*campaign->is_stopped && !(campaign->is_first_enough && !campaign_is_clean(campaign));
}

uint64_t campaign_lost(const struct campaign *campaign)
{
    return campaign->findings.total;
}

uint64_t campaign_silent(const struct campaign *campaign)
{
    uint64_t silent = 0;
    for (unsigned phase = 0; phase < PHASE_COUNT; phase++)
        silent += campaign->tallies[phase].outcomes[OUTCOME_UNNAMED] +
                  campaign->tallies[phase].outcomes[OUTCOME_SILENT] +
                  campaign->tallies[phase].outcomes[OUTCOME_INVENTED];
    return silent;
}

static bool begin_series(struct campaign *campaign)
{
    campaign->series++;
    campaign->random = campaign->seed * 0x2545f4914f6cdd1dull + campaign->series;
    world_begin(&campaign->world);
    seen_clear(&campaign->seen);
    campaign->fault[0] = campaign->fault_before[0] = 0;
    campaign->world.big_one_in = below(campaign, 2) == 0 ? 400 : 2000;
    if (campaign->vary)
        campaign->vary(campaign);
    return directory_remove(campaign->subject.directory) &&
           mkdir(campaign->subject.directory, 0700) == 0;
}

/* ---- load ---- */

struct load {
    double end;      /* SIGKILL then; 0: never */
    unsigned window; /* requests in flight of a lane */
    size_t requests; /* of a lane at most */
    bool allows_errors;
    uint64_t errors; /* answers that are errors */
    char error_text[192];
    bool is_dead;
};

static const char *const cause_words[] = {"No space", "nput/output", "full", "failed",
                                          "wait for the log"};

static bool says_why(const char *text)
{
    const char *code = strstr(text, "_ERROR: ");
    if (strncmp(text, "STREAM_", 7) != 0 || !code)
        return false;
    for (unsigned index = 0; index < sizeof cause_words / sizeof cause_words[0]; index++)
        if (strstr(code, cause_words[index]))
            return true;
    return false;
}

static void take_answers(struct campaign *campaign, struct load *load, unsigned number,
                         struct campaign_tally *tally)
{
    struct subject_answer answer;
    char text[256];
    enum weir_status status;
    while ((status = campaign->subject.kind->take(&campaign->subject, number, &answer)) ==
           WEIR_OK) {
        /* Asked again, and the answer is lost: it was done all the same. */
        if (!answer.is_acknowledged && strstr(answer.text, "the call was carried out"))
            answer.is_acknowledged = true;
        tally->acknowledged += answer.is_acknowledged;
        if (!answer.is_acknowledged) {
            load->errors++;
            (void)snprintf(load->error_text, sizeof load->error_text, "%s", answer.text);
            if (!load->allows_errors || !says_why(answer.text)) {
                (void)snprintf(text, sizeof text, "a write was refused with '%s'", answer.text);
                found(campaign, VERDICT_ANSWER, text);
            }
        }
        if (!world_answer(&campaign->world, number, answer.token, answer.is_acknowledged)) {
            found(campaign, VERDICT_ANSWER, "an answer to a request that was not made");
            return;
        }
    }
    if (status != WEIR_EMPTY)
        found(campaign, VERDICT_ANSWER, "bytes that are no answer");
}

static bool ask_more(struct campaign *campaign, const struct load *load, unsigned number,
                     struct campaign_tally *tally)
{
    struct world_lane *lane = &campaign->world.lanes[number];
    while (lane->in_flight < load->window && lane->count < load->requests) {
        const struct world_request *request = world_ask(&campaign->world, number);
        if (!request ||
            !campaign->subject.kind->put(&campaign->subject, &campaign->world, number, request))
            return false;
        tally->requests++;
    }
    return true;
}

/* As a gateway does that has come back. */
static bool ask_again(struct campaign *campaign, struct campaign_tally *tally)
{
    for (unsigned number = 0; number < WORLD_LANES; number++) {
        const struct world_request *request;
        while ((request = world_ask_again(&campaign->world, number)) != NULL) {
            if (!campaign->subject.kind->put(&campaign->subject, &campaign->world, number, request))
                return false;
            tally->asked_again++;
        }
    }
    return true;
}

/* The server is killed, or was: what it had sent before counts. */
static void drain(struct campaign *campaign, struct load *load, struct campaign_tally *tally)
{
    for (unsigned number = 0; number < WORLD_LANES; number++) {
        struct subject_lane *lane = &campaign->subject.lanes[number];
        while (subject_lane_receive(lane, CHILD_WAIT_MS) || !lane->is_ended)
            if (lane->fd < 0)
                break;
        take_answers(campaign, load, number, tally);
    }
}

/* True when nothing is in flight and nothing more is to be asked. */
static bool load_is_done(const struct campaign *campaign, const struct load *load)
{
    for (unsigned number = 0; number < WORLD_LANES; number++)
        if (campaign->world.lanes[number].in_flight > 0 ||
            campaign->world.lanes[number].count < load->requests)
            return false;
    return true;
}

/* Ask and take answers until the end: of the time, of the server, of the requests. */
static bool run_load(struct campaign *campaign, struct load *load, struct campaign_tally *tally)
{
    struct subject *subject = &campaign->subject;
    double give_up = campaign_clock() + (double)CHILD_WAIT_MS / 1000;
    while (!load->is_dead) {
        struct pollfd ready[WORLD_LANES];
        for (unsigned number = 0; number < WORLD_LANES; number++) {
            struct subject_lane *lane = &subject->lanes[number];
            if (!ask_more(campaign, load, number, tally))
                return false;
            subject_lane_send(lane);
            ready[number] = (struct pollfd){
                .fd = lane->fd, .events = lane->out.bytes > 0 ? POLLIN | POLLOUT : POLLIN};
        }
        if (load_is_done(campaign, load) || (load->allows_errors && load->errors > 20))
            return true;
        double now = campaign_clock();
        if (load->end > 0 && now >= load->end) {
            child_kill(&subject->child, SIGKILL);
            load->is_dead = true;
            break;
        }
        if (now > give_up) {
            found(campaign, VERDICT_ANSWER, "requests were not answered in time");
            child_kill(&subject->child, SIGKILL);
            load->is_dead = true;
            break;
        }
        double wait = load->end > 0 ? load->end - now : 0.2;
        struct timespec timeout = {.tv_nsec = (long)(wait < 0.2 ? wait * 1e9 : 2e8)};
        (void)ppoll(ready, WORLD_LANES, &timeout, NULL);
        for (unsigned number = 0; number < WORLD_LANES; number++) {
            if (!(ready[number].revents & (POLLIN | POLLHUP | POLLERR)))
                continue;
            load->is_dead |= !subject_lane_receive(&subject->lanes[number], 0);
            take_answers(campaign, load, number, tally);
        }
    }
    drain(campaign, load, tally);
    return true;
}

/* ---- starting and checking ---- */

static void keep_findings(struct campaign *campaign, const struct world_findings *findings)
{
    for (unsigned verdict = 0; verdict < VERDICT_COUNT; verdict++)
        campaign->findings.counts[verdict] += findings->counts[verdict];
    campaign->findings.total += findings->total;
    for (uint64_t index = 0; index < findings->total && index < WORLD_FINDINGS_MAX; index++)
        keep_sentence(campaign, findings->sentences[index]);
}

static bool check(struct campaign *campaign, struct campaign_tally *tally)
{
    struct world_findings findings = {0};
    campaign->subject.kind->observe(&campaign->subject, &campaign->world, &campaign->seen);
    bool is_good = world_check(&campaign->world, &campaign->seen, &findings);
    keep_findings(campaign, &findings);
    seen_clear(&campaign->seen);
    tally->checks++;
    return is_good;
}

static void last_line(const struct child *child, char line[256])
{
    char text[CHILD_TEXT_BYTES];
    child_text(child, text);
    size_t bytes = strlen(text);
    while (bytes > 0 && text[bytes - 1] == '\n')
        text[--bytes] = 0;
    const char *last = strrchr(text, '\n');
    (void)snprintf(line, 256, "%.255s", last ? last + 1 : text);
}

/* It did not come up although nothing is wrong with its disk. */
static void found_refused(struct campaign *campaign)
{
    char line[256], text[320];
    last_line(&campaign->subject.child, line);
    (void)snprintf(text, sizeof text, "did not start: %s", line);
    found(campaign, VERDICT_REFUSED, text);
}

/* The server has ended or is ending: wait, close, and keep what it had shown. */
static void bury(struct campaign *campaign, char note[CHILD_NOTE_BYTES])
{
    struct subject *subject = &campaign->subject;
    if (!child_wait(&subject->child))
        found(campaign, VERDICT_ANSWER, "the server did not end");
    if (subject->kind->shown)
        subject->kind->shown(subject, &campaign->world, &campaign->seen);
    subject->kind->disconnect(subject);
    child_note(&subject->child, note);
}

static void count_note(struct campaign *campaign, const char *note, struct campaign_tally *tally)
{
    const char *at = strchr(note, '@'), *equals = strchr(note, '=');
    if (!at || !equals)
        return;
    for (unsigned point = 0; point < FAULT_POINT_COUNT; point++)
        for (unsigned action = 0; action < FAULT_ACTION_COUNT; action++)
            if (strncmp(note, fault_point_word(point), (size_t)(at - note)) == 0 &&
                strlen(fault_point_word(point)) == (size_t)(at - note) &&
                strcmp(equals + 1, fault_action_word(action)) == 0) {
                campaign->struck[point][action]++;
                tally->errors_struck += action == FAULT_ACTION_EIO ||
                                        action == FAULT_ACTION_ENOSPC ||
                                        action == FAULT_ACTION_SHORT || action == FAULT_ACTION_HALF;
                tally->cuts += action == FAULT_ACTION_CUT;
                tally->tears += action == FAULT_ACTION_TORN || action == FAULT_ACTION_HALF;
            }
}

/* ---- one round ---- */

/* What the server's end, at the fault that struck if one did, leaves to be expected of the next one. */
static void expect_less(struct campaign *campaign, enum campaign_phase phase, bool lost_power)
{
    struct world *world = &campaign->world;
    campaign->subject.boot += lost_power;
    if (campaign->is_synced)
        return;
    world->may_lose |= lost_power || campaign->is_behind;
    world->may_renew |= world->may_lose || phase == PHASE_ERRORS;
}

static void choose_fault(struct campaign *campaign, enum campaign_phase phase, char fault[96])
{
    static const enum fault_point kill_points[] = {
        FAULT_POINT_WRITE,   FAULT_POINT_WRITE,   FAULT_POINT_WRITE,    FAULT_POINT_SYNC,
        FAULT_POINT_PREPARE, FAULT_POINT_PREPARE, FAULT_POINT_SNAPSHOT, FAULT_POINT_SNAPSHOT,
        FAULT_POINT_OPEN,    FAULT_POINT_RENAME,  FAULT_POINT_REMOVE,   FAULT_POINT_DIRECTORY,
        FAULT_POINT_READING};
    static const enum fault_action kill_actions[] = {FAULT_ACTION_BEFORE, FAULT_ACTION_AFTER,
                                                     FAULT_ACTION_TORN, FAULT_ACTION_CUT};
    static const enum fault_point error_points[] = {
        FAULT_POINT_WRITE,    FAULT_POINT_WRITE, FAULT_POINT_SYNC,   FAULT_POINT_PREPARE,
        FAULT_POINT_SNAPSHOT, FAULT_POINT_OPEN,  FAULT_POINT_RENAME, FAULT_POINT_DIRECTORY};
    static const enum fault_action error_actions[] = {FAULT_ACTION_EIO, FAULT_ACTION_ENOSPC,
                                                      FAULT_ACTION_SHORT, FAULT_ACTION_HALF};
    if (campaign->disk_lies) {
        static const char *const lies[] = {"write@%llu=lie", "directory@1=lie+,write@%llu=cut"};
        const char *lie = lies[campaign->is_synced ? below(campaign, 2) : 0];
        (void)snprintf(fault, 96, lie, (unsigned long long)(1 + below(campaign, 16)));
        return;
    }
    bool is_kill = phase == PHASE_POINTS;
    enum fault_point point =
        is_kill ? kill_points[below(campaign, sizeof kill_points / sizeof kill_points[0])]
                : error_points[below(campaign, sizeof error_points / sizeof error_points[0])];
    enum fault_action action =
        is_kill ? kill_actions[below(campaign, 4)] : error_actions[below(campaign, 4)];
    bool is_frequent = point == FAULT_POINT_WRITE || point == FAULT_POINT_SYNC;
    uint64_t number = 1 + below(campaign, 1ull << below(campaign, is_frequent ? 8 : 5));
    bool is_lasting = !is_kill && action != FAULT_ACTION_SHORT && below(campaign, 3) != 0;
    (void)snprintf(fault, 96, "%s@%llu=%s%s,seed=%llu", fault_point_word(point),
                   (unsigned long long)number, fault_action_word(action), is_lasting ? "+" : "",
                   (unsigned long long)below(campaign, 1u << 30));
}

static void read_while_failing(struct campaign *campaign, struct campaign_tally *tally)
{
    char why[160];
    for (unsigned count = 0; count < READS_WHILE_FAILING; count++) {
        if (!campaign->subject.kind->read_one(&campaign->subject, &campaign->world, why)) {
            found(campaign, VERDICT_ANSWER, why);
            return;
        }
        tally->reads_while_failing++;
    }
}

/* The end of a round in which the server still lives. */
static void end_alive(struct campaign *campaign, enum campaign_phase phase, const struct load *load,
                      struct campaign_tally *tally)
{
    if (phase == PHASE_ERRORS && load->errors > 0 && campaign->subject.kind->read_one)
        read_while_failing(campaign, tally);
    child_kill(&campaign->subject.child,
               phase == PHASE_ERRORS && below(campaign, 2) == 0 ? SIGTERM : SIGKILL);
}

static bool run_round(struct campaign *campaign, enum campaign_phase phase)
{
    struct campaign_tally *tally = &campaign->tallies[phase];
    struct subject *subject = &campaign->subject;
    char note[CHILD_NOTE_BYTES];
    bool has_fault = phase != PHASE_MOMENTS && campaign->is_faulty;
    memcpy(campaign->fault_before, campaign->fault, sizeof campaign->fault);
    campaign->fault[0] = 0;
    if (has_fault)
        choose_fault(campaign, phase, campaign->fault);
    tally->rounds++;

    uint64_t cuts = tally->cuts;
    enum subject_start started = subject->kind->start(subject, has_fault ? campaign->fault : NULL);
    if (started != SUBJECT_READY) {
        child_note(&subject->child, note);
        count_note(campaign, note, tally);
        bool was_told = note[0] != 0;
        expect_less(campaign, phase, tally->cuts > cuts);
        if (started == SUBJECT_STRUCK && was_told) {
            tally->kills++;
            return true;
        }
        if (started == SUBJECT_REFUSED && was_told && phase == PHASE_ERRORS) {
            char line[256];
            last_line(&subject->child, line);
            if (line[0] == 0)
                found(campaign, VERDICT_REFUSED, "a failing disk at the start, and not a word");
            tally->starts_refused++;
            return true;
        }
        found_refused(campaign);
        return false;
    }
    if (!check(campaign, tally)) {
        child_kill(&subject->child, SIGKILL);
        bury(campaign, note);
        return false;
    }

    uint64_t before = campaign->findings.total;
    struct load load = {.window = 1 + (unsigned)below(campaign, WINDOW_MAX),
                        .requests = ROUND_REQUESTS_MAX,
                        .allows_errors = phase == PHASE_ERRORS};
    if (phase == PHASE_MOMENTS)
        load.end = campaign_clock() + (double)below(campaign, 1u << (8 + below(campaign, 8))) / 1e6;
    else if (phase == PHASE_POINTS)
        load.end = campaign_clock() + 0.03; /* by then it has missed: a random moment */
    else
        load.requests = 16 + below(campaign, 200);
    if (subject->may_ask_again && campaign->asks_again && below(campaign, 2) == 0 &&
        !ask_again(campaign, tally))
        return false;
    if (!run_load(campaign, &load, tally))
        return false;
    if (!load.is_dead)
        end_alive(campaign, phase, &load, tally);
    bury(campaign, note);
    count_note(campaign, note, tally);
    expect_less(campaign, phase, tally->cuts > cuts);
    if (child_was_killed(&subject->child)) {
        tally->kills++;
    } else if (load.is_dead) {
        char line[256], text[320];
        last_line(&subject->child, line);
        (void)snprintf(text, sizeof text, "the server ended by itself: %s", line);
        found(campaign, VERDICT_ANSWER, text);
    }
    return campaign->findings.total == before;
}

/* After the last crash: check, load a little, stop cleanly, start, check. */
static bool end_series(struct campaign *campaign, enum campaign_phase phase)
{
    struct campaign_tally *tally = &campaign->tallies[phase];
    struct subject *subject = &campaign->subject;
    char note[CHILD_NOTE_BYTES];
    for (unsigned time = 0; time < 2; time++) {
        memcpy(campaign->fault_before, campaign->fault, sizeof campaign->fault);
        campaign->fault[0] = 0;
        if (subject->kind->start(subject, NULL) != SUBJECT_READY) {
            found_refused(campaign);
            return false;
        }
        struct load load = {.window = 4, .requests = 20};
        bool is_good = check(campaign, tally) && run_load(campaign, &load, tally);
        child_kill(&subject->child, time == 0 ? SIGTERM : SIGKILL);
        bury(campaign, note);
        if (time == 1)
            expect_less(campaign, phase, false);
        if (!is_good)
            return false;
    }
    seen_clear(&campaign->seen);
    return true;
}

bool campaign_crash(struct campaign *campaign, enum campaign_phase phase, uint64_t rounds,
                    double seconds)
{
    struct campaign_tally *tally = &campaign->tallies[phase];
    double started = campaign_clock();
    campaign->goal_rounds = rounds;
    campaign->doing = phase_words[phase];
    campaign->may_lose = true;
    while (tally->rounds < rounds && (seconds <= 0 || campaign_clock() - started < seconds) &&
           tally->bad_series < BAD_SERIES_MAX && campaign_goes_on(campaign)) {
        if (!begin_series(campaign))
            return false;
        bool is_good = true;
        uint64_t series_rounds = 1 + below(campaign, SERIES_ROUNDS_MAX);
        for (uint64_t round = 0; round < series_rounds && tally->rounds < rounds && is_good &&
                                 campaign_goes_on(campaign);
             round++) {
            is_good = run_round(campaign, phase);
            progress(campaign, tally, false);
        }
        if (is_good)
            is_good = end_series(campaign, phase);
        if (!is_good) {
            tally->bad_series++;
            keep_directory(campaign);
        }
    }
    tally->seconds += campaign_clock() - started;
    progress(campaign, tally, true);
    return true;
}

/* ---- damage ---- */

/* A directory as a crash leaves it, whose contents are known: seen.groups. */
static bool make_directory(struct campaign *campaign, struct campaign_tally *tally,
                           struct image *image, struct seen *truth)
{
    struct subject *subject = &campaign->subject;
    char note[CHILD_NOTE_BYTES];
    campaign->world.big_one_in = 0; /* many small directories are better than a large one */
    unsigned lives = 1 + (unsigned)below(campaign, 3);
    for (unsigned life = 0; life < lives; life++) {
        if (subject->kind->start(subject, NULL) != SUBJECT_READY) {
            found_refused(campaign);
            return false;
        }
        struct load load = {.window = 1 + (unsigned)below(campaign, WINDOW_MAX),
                            .requests = 30 + below(campaign, 300)};
        bool is_good = check(campaign, tally) && run_load(campaign, &load, tally);
        child_kill(&subject->child, below(campaign, 4) == 0 ? SIGTERM : SIGKILL);
        bury(campaign, note);
        if (!is_good)
            return false;
    }
    if (!image_read(image, subject->directory))
        return false;
    /* What is in it, from a start on it. */
    seen_clear(&campaign->seen);
    if (subject->kind->start(subject, NULL) != SUBJECT_READY) {
        found_refused(campaign);
        return false;
    }
    bool is_good = check(campaign, tally);
    seen_clear(truth);
    subject->kind->observe(subject, &campaign->world, truth);
    child_kill(&subject->child, SIGKILL);
    bury(campaign, note);
    seen_clear(&campaign->seen);
    return is_good && truth->problem[0] == 0;
}

static bool seen_equal(const struct seen *left, const struct seen *right)
{
    if (left->strangers != right->strangers)
        return false;
    for (unsigned group = 0; group < WORLD_GROUPS; group++) {
        const struct seen_group *a = &left->groups[group], *b = &right->groups[group];
        if (a->seq != b->seq || (a->seq != 0 && a->epoch != b->epoch) ||
            memcmp(a->words, b->words, sizeof a->words) != 0)
            return false;
    }
    return true;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Words a server has for something wrong with a file it went on with. */
static bool says_damage(const char *text, const char *file)
{
    static const char *const words[] = {"runcat",     "orrupt",       "damage",
                                        "cut",        "interrupted",  "Bad file format",
                                        "Short read", "Unrecoverable"};
    char segment[32]; /* as weir's log lines name a file */
    const char *number = strrchr(file, '-');
    (void)snprintf(segment, sizeof segment, "segment=%llu ",
                   number ? strtoull(number + 1, NULL, 10) : 0ull);
    if (!strstr(text, file) && !strstr(text, "AOF") && !strstr(text, segment))
        return false;
    for (unsigned index = 0; index < sizeof words / sizeof words[0]; index++)
        if (strstr(text, words[index]))
            return true;
    return false;
}

static enum damage_outcome start_on(struct campaign *campaign, enum campaign_phase phase,
                                    const struct image *image, const struct damage *damage,
                                    const struct seen *truth, char why[192])
{
    struct subject *subject = &campaign->subject;
    char text[CHILD_TEXT_BYTES], note[CHILD_NOTE_BYTES];
    const char *file = base_name(image->files[damage->file].name);
    why[0] = 0;
    if (!image_write(image, subject->directory, damage)) {
        (void)snprintf(why, 192, "the directory could not be written: %s", strerror(errno));
        return OUTCOME_SILENT;
    }
    if (subject->kind->tool) {
        struct campaign_tally *tally = &campaign->tallies[phase];
        tally->tool_runs++;
        tally->tool_finds += subject->kind->tool(subject);
    }
    bool is_running = subject->kind->start(subject, NULL) == SUBJECT_READY;
    struct seen seen = {0};
    if (is_running)
        subject->kind->observe(subject, &campaign->world, &seen);
    child_kill(&subject->child, SIGKILL);
    bury(campaign, note);
    seen_clear(&campaign->seen);
    child_text(&subject->child, text);
    bool is_said = says_damage(text, file);
    bool is_same = is_running && seen.problem[0] == 0 && seen_equal(&seen, truth);
    seen_fini(&seen);
    if (!is_running)
        return strstr(text, file) || is_said ? OUTCOME_REFUSED : OUTCOME_UNNAMED;
    if (is_said)
        return OUTCOME_TOLD;
    return is_same ? OUTCOME_SAME : OUTCOME_SILENT;
}

static void count_outcome(struct campaign *campaign, struct campaign_tally *tally,
                          const struct image *image, const struct damage *damage,
                          enum damage_outcome outcome, const char *why)
{
    static const char *const words[] = {"",       "",        "", "refused without naming the file",
                                        "silent", "invented"};
    tally->outcomes[outcome]++;
    if (outcome < OUTCOME_UNNAMED)
        return;
    char place[192], text[400];
    damage_text(image, damage, place);
    (void)snprintf(text, sizeof text, "%s: %s%s%.150s", words[outcome], place, *why ? ": " : "",
                   why);
    keep_sentence(campaign, text);
}

static enum damage_kind damage_of_phase(enum campaign_phase phase)
{
    return phase == PHASE_FLIPS ? DAMAGE_FLIP : phase == PHASE_CUTS ? DAMAGE_TRUNCATE : DAMAGE_TAIL;
}

bool campaign_damage(struct campaign *campaign, enum campaign_phase phase, uint64_t rounds,
                     double seconds)
{
    struct campaign_tally *tally = &campaign->tallies[phase];
    double started = campaign_clock();
    struct seen truth = {0};
    uint64_t of_one_directory =
        rounds / 4 < DAMAGES_OF_ONE_DIRECTORY ? rounds / 4 + 1 : DAMAGES_OF_ONE_DIRECTORY;
    campaign->goal_rounds = rounds;
    campaign->doing = phase_words[phase];
    campaign->may_lose = false;
    while (tally->rounds < rounds && (seconds <= 0 || campaign_clock() - started < seconds) &&
           campaign_goes_on(campaign)) {
        static struct image image;
        struct damage damage;
        char why[192];
        uint64_t before = campaign->findings.total;
        if (!begin_series(campaign))
            return false;
        if (!make_directory(campaign, tally, &image, &truth) ||
            (campaign->truth && !campaign->truth(campaign, &image))) {
            image_free(&image);
            if (campaign->findings.total == before)
                return false;
            break;
        }
        for (uint64_t count = 0;
             count < of_one_directory && tally->rounds < rounds && campaign_goes_on(campaign);
             count++) {
            if (!image_choose(&image, damage_of_phase(phase), &campaign->random, &damage))
                break;
            /* A server is started now and then even where that is not needed to find out. */
            bool by_start = !campaign->probe || count % 64 == 0;
            enum damage_outcome outcome =
                by_start ? start_on(campaign, phase, &image, &damage, &truth, why)
                         : campaign->probe(campaign, &image, &damage, why);
            count_outcome(campaign, tally, &image, &damage, outcome, why);
            if (by_start && campaign->probe &&
                !image_write(&image, campaign->subject.directory, NULL))
                return false;
            tally->rounds++;
            progress(campaign, tally, false);
        }
        image_free(&image);
    }
    seen_fini(&truth);
    tally->seconds += campaign_clock() - started;
    progress(campaign, tally, true);
    return true;
}

#include "tests/torture/world.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- words ---- */

const char *world_verdict_word(enum world_verdict verdict)
{
    static const char *const words[] = {
#define WORLD_VERDICT_WORD(name, word, sentence) word,
        WORLD_VERDICT_MAP(WORLD_VERDICT_WORD)
#undef WORLD_VERDICT_WORD
    };
    return words[verdict];
}

void world_found(struct world_findings *findings, enum world_verdict verdict, const char *format,
                 ...)
{
    findings->counts[verdict]++;
    if (findings->total++ >= WORLD_FINDINGS_MAX)
        return;
    char *text = findings->sentences[findings->total - 1];
    int used = snprintf(text, sizeof findings->sentences[0], "%s: ", world_verdict_word(verdict));
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text + used, sizeof findings->sentences[0] - (size_t)used, format, arguments);
    va_end(arguments);
}

uint64_t world_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
    return mixed ^ mixed >> 31;
}

uint64_t world_below(struct world *world, uint64_t bound)
{
    return world_random(&world->random) % bound;
}

void world_group_name(unsigned lane, unsigned group, char name[WORLD_NAME_BYTES])
{
    (void)snprintf(name, WORLD_NAME_BYTES, "g%02u", lane * WORLD_LANE_GROUPS + group);
}

void world_item_name(unsigned item, char name[WORLD_NAME_BYTES])
{
    (void)snprintf(name, WORLD_NAME_BYTES, "i%02u", item);
}

/* ---- values ---- */

static size_t value_pad_bytes(const struct world *world, uint64_t token)
{
    uint64_t state = world->seed ^ token * 0xd1342543de82ef95ull;
    uint64_t kind = world_random(&state);
    uint64_t size = world_random(&state);
    if (world->big_one_in != 0 && kind % world->big_one_in == 0)
        return (1u << 20) + size % (300u * 1024);
    if (kind % 64 == 1)
        return size % (48u * 1024);
    if (kind % 8 == 2)
        return size % 4096;
    return size % 200;
}

struct span world_value(struct world *world, uint64_t token)
{
    static const char letters[65] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    size_t pad_bytes = value_pad_bytes(world, token);
    uint64_t state = world->seed ^ token;
    char *text = world->value.data;
    int head = snprintf(text, 48, "{\"r\":%llu,\"p\":\"", (unsigned long long)token);
    char *at = text + head;
    for (size_t done = 0; done < pad_bytes; done += 8) {
        uint64_t mixed = world_random(&state);
        for (unsigned i = 0; i < 8; i++) /* the last ones may be written over below */
            at[done + i] = letters[mixed >> (8 * i) & 63];
    }
    at += pad_bytes;
    memcpy(at, "\"}", 2);
    return span_of(text, (size_t)(at + 2 - text));
}

static bool value_number(struct span text, const char *prefix, uint64_t *number, size_t *end)
{
    size_t at = strlen(prefix);
    if (text.bytes <= at || memcmp(text.data, prefix, at) != 0)
        return false;
    uint64_t value = 0;
    size_t first = at;
    for (; at < text.bytes && at - first < 19 && text.data[at] >= '0' && text.data[at] <= '9'; at++)
        value = value * 10 + (uint64_t)(text.data[at] - '0');
    *number = value;
    *end = at;
    return at > first;
}

uint64_t world_word(struct world *world, unsigned item, struct span text)
{
    uint64_t number = 0;
    size_t end = 0;
    if (item < WORLD_COUNTERS) {
        bool is_object = value_number(text, "{\"n\":", &number, &end);
        if (is_object && text.bytes == end + 1 && text.data[end] == '}')
            return WORLD_COUNT_BIT | number;
        if (!is_object && value_number(text, "", &number, &end) && text.bytes == end)
            return WORLD_COUNT_BIT | number;
        return WORLD_BROKEN;
    }
    if (!value_number(text, "{\"r\":", &number, &end) || number == 0 ||
        number >= world->next_token || !span_equal(text, world_value(world, number)))
        return WORLD_BROKEN;
    return number;
}

/* ---- life ---- */

bool world_init(struct world *world, uint64_t seed, bool has_seq)
{
    *world = (struct world){.seed = seed, .random = seed, .next_token = 1, .has_seq = has_seq};
    buffer_init(&world->value, WORLD_VALUE_BYTES_MAX);
    return buffer_reserve(&world->value, WORLD_VALUE_BYTES_MAX) == WEIR_OK;
}

void world_fini(struct world *world)
{
    for (unsigned lane = 0; lane < WORLD_LANES; lane++) {
        free(world->lanes[lane].requests);
        free(world->lanes[lane].again);
        for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
            free(world->lanes[lane].history[group].events);
    }
    buffer_fini(&world->value);
}

void world_begin(struct world *world)
{
    world->first_token = world->next_token;
    world->may_lose = world->may_renew = false;
    for (unsigned index = 0; index < WORLD_LANES; index++) {
        struct world_lane *lane = &world->lanes[index];
        lane->state = lane->ahead = (struct world_state){0};
        lane->count = lane->answered = lane->in_flight = lane->again_count = 0;
        memset(lane->epochs, 0, sizeof lane->epochs);
        for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
            lane->history[group].count = 0;
    }
}

/* ---- asking ---- */

/* The event of a request on `state`; kind 0: it changes nothing. */
static struct world_event world_apply(struct world_state *state,
                                      const struct world_request *request)
{
    uint64_t *word = &state->words[request->group][request->item];
    struct world_event event = {.kind = request->kind, .item = request->item};
    if (request->is_done)
        return (struct world_event){0};
    switch (request->kind) {
    case WORLD_SET:
        event.word = *word = request->token;
        break;
    case WORLD_DELETE:
        event.word = *word;
        if (*word == WORLD_ABSENT)
            return (struct world_event){0};
        *word = WORLD_ABSENT;
        break;
    case WORLD_COUNT:
        event.word = *word = *word == WORLD_ABSENT ? (WORLD_COUNT_BIT | 1) : *word + 1;
        break;
    default:
        event.word = request->token;
        break;
    }
    state->seqs[request->group]++;
    return event;
}

static bool grow(void **memory, size_t *capacity, size_t count, size_t entry_bytes)
{
    if (count < *capacity)
        return true;
    size_t wanted = *capacity == 0 ? 256 : 2 * *capacity;
    void *larger = realloc(*memory, wanted * entry_bytes);
    if (!larger)
        return false;
    *memory = larger;
    *capacity = wanted;
    return true;
}

/* Room for one more request; NULL: no memory. */
static struct world_request *lane_next(struct world_lane *lane)
{
    void *memory = lane->requests;
    bool has_room = grow(&memory, &lane->capacity, lane->count, sizeof *lane->requests);
    lane->requests = memory;
    return has_room ? &lane->requests[lane->count] : NULL;
}

const struct world_request *world_ask_again(struct world *world, unsigned index)
{
    struct world_lane *lane = &world->lanes[index];
    struct world_request *request = lane->again_count > 0 ? lane_next(lane) : NULL;
    if (!request)
        return NULL;
    *request = lane->again[0];
    memmove(lane->again, lane->again + 1, --lane->again_count * sizeof *lane->again);
    (void)world_apply(&lane->ahead, request);
    lane->count++;
    lane->in_flight++;
    return request;
}

const struct world_request *world_ask(struct world *world, unsigned index)
{
    struct world_lane *lane = &world->lanes[index];
    struct world_request *request = lane_next(lane);
    if (!request)
        return NULL;
    *request = (struct world_request){.token = world->next_token++, .state = WORLD_SENT};
    request->group = (uint8_t)world_below(world, WORLD_LANE_GROUPS);
    request->item = (uint8_t)world_below(world, WORLD_ITEMS);
    uint64_t dice = world_below(world, 100);
    if (dice < 10)
        request->kind = WORLD_DELETE;
    else if (dice < 20 && world->has_seq)
        request->kind = WORLD_SEND;
    else
        request->kind = request->item < WORLD_COUNTERS ? WORLD_COUNT : WORLD_SET;
    (void)world_apply(&lane->ahead, request);
    lane->count++;
    lane->in_flight++;
    return request;
}

bool world_answer(struct world *world, unsigned index, uint64_t token, bool is_acknowledged)
{
    struct world_lane *lane = &world->lanes[index];
    size_t at = lane->answered;
    while (at < lane->count && (lane->requests[at].state != WORLD_SENT ||
                                (token != 0 && lane->requests[at].token != token)))
        at++;
    if (at == lane->count)
        return false;
    lane->requests[at].state = is_acknowledged ? WORLD_ACKNOWLEDGED : WORLD_REFUSED;
    lane->in_flight--;
    while (lane->answered < lane->count && lane->requests[lane->answered].state != WORLD_SENT)
        lane->answered++;
    return true;
}

/* ---- checking ---- */

static bool group_fits(const struct world *world, const struct world_state *state, unsigned group,
                       const struct seen_group *seen)
{
    return (!world->has_seq || state->seqs[group] == seen->seq) &&
           memcmp(state->words[group], seen->words, sizeof seen->words) == 0;
}

static bool lane_fits(const struct world *world, const struct world_state *state,
                      const struct seen_group *seen)
{
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++)
        if (!group_fits(world, state, group, &seen[group]))
            return false;
    return true;
}

/* Behind the last acknowledged request. */
static size_t lane_acknowledged(const struct world_lane *lane)
{
    size_t end = lane->count;
    while (end > 0 && lane->requests[end - 1].state != WORLD_ACKNOWLEDGED)
        end--;
    return end;
}

/* What is before must be there. */
static size_t lane_must(const struct world *world, const struct world_lane *lane)
{
    return world->may_lose ? 0 : lane_acknowledged(lane);
}

static bool is_skipped(const struct world_lane *lane, size_t index, size_t must, bool refused_too)
{
    return lane->requests[index].state == WORLD_REFUSED && (index < must || !refused_too);
}

/* The shortest prefix that explains what is there; SIZE_MAX: none does. */
static size_t lane_prefix(const struct world *world, const struct world_lane *lane,
                          const struct seen_group *seen, bool refused_too)
{
    struct world_state state = lane->state;
    size_t must = lane_must(world, lane);
    for (size_t index = 0;; index++) {
        if (index >= must && lane_fits(world, &state, seen))
            return index;
        if (index == lane->count)
            return SIZE_MAX;
        if (!is_skipped(lane, index, must, refused_too))
            (void)world_apply(&state, &lane->requests[index]);
    }
}

/* Why no prefix explains it. */
static void lane_blame(const struct world *world, unsigned number, const struct seen_group *seen,
                       struct world_findings *findings)
{
    const struct world_lane *lane = &world->lanes[number];
    struct world_state least = lane->state;
    size_t must = lane_must(world, lane);
    for (size_t index = 0; index < must; index++)
        if (!is_skipped(lane, index, must, true))
            (void)world_apply(&least, &lane->requests[index]);
    struct world_state most = least;
    for (size_t index = must; index < lane->count; index++)
        (void)world_apply(&most, &lane->requests[index]);

    uint64_t before = findings->total;
    uint64_t done = 0; /* asked again although they were carried out: nobody else can know that */
    for (size_t index = 0; index < lane->count; index++)
        done += lane->requests[index].is_done;
    for (unsigned group = 0; group < WORLD_LANE_GROUPS; group++) {
        const struct seen_group *is = &seen[group];
        unsigned shown = number * WORLD_LANE_GROUPS + group;
        if (world->has_seq && is->seq < least.seqs[group])
            world_found(findings, VERDICT_LOST, "g%02u is at seq %llu, acknowledged up to %llu",
                        shown, (unsigned long long)is->seq, (unsigned long long)least.seqs[group]);
        if (world->has_seq && is->seq > most.seqs[group])
            world_found(findings, done > 0 ? VERDICT_TWICE : VERDICT_GAP,
                        "g%02u is at seq %llu, %llu writes were sent", shown,
                        (unsigned long long)is->seq, (unsigned long long)most.seqs[group]);
        for (unsigned item = 0; item < WORLD_ITEMS; item++) {
            uint64_t word = is->words[item];
            bool is_possible = word == least.words[group][item];
            for (size_t index = must; index < lane->count && !is_possible; index++) {
                const struct world_request *request = &lane->requests[index];
                if (request->group != group || request->item != item)
                    continue;
                is_possible = (request->kind == WORLD_SET && word == request->token) ||
                              (request->kind == WORLD_DELETE && word == WORLD_ABSENT) ||
                              (request->kind == WORLD_COUNT && word != WORLD_ABSENT &&
                               word <= most.words[group][item]);
            }
            if (word == WORLD_BROKEN)
                world_found(findings, VERDICT_HALF, "g%02u/i%02u holds a value nobody has written",
                            shown, item);
            else if (!is_possible && word < least.words[group][item])
                world_found(findings, VERDICT_LOST, "g%02u/i%02u holds %llx, acknowledged was %llx",
                            shown, item, (unsigned long long)word,
                            (unsigned long long)least.words[group][item]);
            else if (!is_possible)
                world_found(findings, VERDICT_INVENTED,
                            "g%02u/i%02u holds %llx, which nothing after %llx explains", shown,
                            item, (unsigned long long)word,
                            (unsigned long long)least.words[group][item]);
        }
    }
    if (findings->total == before)
        world_found(findings, VERDICT_ORDER,
                    "lane %u: %zu acknowledged, %zu sent, %llu of them asked again, and no prefix "
                    "gives what is there",
                    number, must, lane->count, (unsigned long long)done);
}

static void group_check_events(const struct world *world, unsigned lane, unsigned group,
                               const struct seen *seen, const struct seen_group *is,
                               struct world_findings *findings)
{
    struct world_history *history = &((struct world *)world)->lanes[lane].history[group];
    unsigned shown = lane * WORLD_LANE_GROUPS + group;
    uint64_t stamp = 0;
    for (size_t index = 0; index < is->event_count; index++) {
        const struct seen_event *event = &seen->events[is->event_first + index];
        uint64_t expected = is->seq - (is->event_count - 1 - index);
        if (event->seq != expected || event->seq == 0 || event->seq > history->count) {
            world_found(findings, VERDICT_GAP, "g%02u: event %llu where %llu is due", shown,
                        (unsigned long long)event->seq, (unsigned long long)expected);
            return;
        }
        struct world_event *due = &history->events[event->seq - 1];
        if (event->kind != due->kind || event->word != due->word ||
            (event->kind != WORLD_SEND && event->item != due->item)) {
            world_found(findings, event->word == WORLD_BROKEN ? VERDICT_HALF : VERDICT_ORDER,
                        "g%02u: event %llu is not the write that had this seq", shown,
                        (unsigned long long)event->seq);
            return;
        }
        if (event->epoch != is->epoch)
            world_found(findings, VERDICT_EPOCH, "g%02u: event %llu has another epoch", shown,
                        (unsigned long long)event->seq);
        if (event->stamp <= stamp || (due->stamp != 0 && due->stamp != event->stamp))
            world_found(findings, VERDICT_ORDER, "g%02u: event %llu has another time than before",
                        shown, (unsigned long long)event->seq);
        due->stamp = stamp = event->stamp;
    }
}

static bool history_add(struct world_history *history, const struct world_event *event)
{
    void *memory = history->events;
    bool has_room = grow(&memory, &history->capacity, history->count, sizeof *history->events);
    history->events = memory;
    if (has_room)
        history->events[history->count++] = *event;
    return has_room;
}

/* The requests that turned out to be applied become the past. */
static bool lane_accept(const struct world *world, struct world_lane *lane, size_t prefix,
                        bool refused_too)
{
    size_t must = lane_must(world, lane);
    bool is_kept = true;
    for (size_t index = 0; index < prefix; index++) {
        if (is_skipped(lane, index, must, refused_too))
            continue;
        struct world_event event = world_apply(&lane->state, &lane->requests[index]);
        if (event.kind != 0)
            is_kept = history_add(&lane->history[lane->requests[index].group], &event) && is_kept;
    }
    lane->again_count = 0;
    for (size_t index = 0; index < lane->count; index++) {
        if (lane->requests[index].state != WORLD_SENT)
            continue;
        void *memory = lane->again;
        is_kept =
            grow(&memory, &lane->again_capacity, lane->again_count, sizeof *lane->again) && is_kept;
        lane->again = memory;
        if (!is_kept)
            break;
        lane->again[lane->again_count] = lane->requests[index];
        lane->again[lane->again_count++].is_done |= index < prefix;
    }
    lane->ahead = lane->state;
    lane->count = lane->answered = lane->in_flight = 0;
    return is_kept;
}

/* What the group would be at with all that was acknowledged. */
static struct world_state lane_promised(const struct world_lane *lane)
{
    struct world_state promised = lane->state;
    size_t end = lane_acknowledged(lane);
    for (size_t index = 0; index < end; index++)
        if (!is_skipped(lane, index, end, true))
            (void)world_apply(&promised, &lane->requests[index]);
    return promised;
}

/* `is_less`: writes that were shown or acknowledged are gone, and their seqs will be given again. */
static void group_check_epoch(const struct world *world, unsigned shown, uint64_t is, bool is_less,
                              uint64_t *epoch, struct world_findings *findings)
{
    uint64_t before = *epoch;
    *epoch = is;
    if (before == 0)
        return;
    if (is < before || (is > before && !world->may_renew))
        world_found(findings, VERDICT_EPOCH, "g%02u: epoch %llu was %llu", shown,
                    (unsigned long long)is, (unsigned long long)before);
    else if (is_less && is == before)
        world_found(findings, VERDICT_EPOCH, "g%02u: epoch %llu goes on, though more was shown",
                    shown, (unsigned long long)is);
}

static void lane_check(struct world *world, unsigned number, const struct seen *seen,
                       struct world_findings *findings)
{
    struct world_lane *lane = &world->lanes[number];
    const struct seen_group *groups = &seen->groups[number * WORLD_LANE_GROUPS];
    bool refused_too = false;
    size_t prefix = lane_prefix(world, lane, groups, false);
    if (prefix == SIZE_MAX) {
        refused_too = true;
        prefix = lane_prefix(world, lane, groups, true);
    }
    if (prefix == SIZE_MAX) {
        lane_blame(world, number, groups, findings);
        return;
    }
    const struct world_state promised = lane_promised(lane);
    if (!lane_accept(world, lane, prefix, refused_too))
        world_found(findings, VERDICT_UNREADABLE, "no memory for the history");
    for (unsigned group = 0; group < WORLD_LANE_GROUPS && world->has_seq; group++) {
        const struct seen_group *is = &groups[group];
        unsigned shown = number * WORLD_LANE_GROUPS + group;
        uint64_t count = 0;
        for (unsigned item = 0; item < WORLD_ITEMS; item++)
            count += is->words[item] != WORLD_ABSENT;
        if (count != is->item_count)
            world_found(findings, VERDICT_INVENTED, "g%02u counts %llu items and has %llu", shown,
                        (unsigned long long)is->item_count, (unsigned long long)count);
        if (is->shown_seq > is->seq && !world->may_lose)
            world_found(findings, VERDICT_SHOWN, "g%02u is at seq %llu, readers have seen %llu",
                        shown, (unsigned long long)is->seq, (unsigned long long)is->shown_seq);
        uint64_t *epoch = &lane->epochs[group];
        bool is_less = is->seq < is->shown_seq || is->seq < promised.seqs[group];
        if (is->shown_seq != 0)
            group_check_epoch(world, shown, is->shown_epoch, false, epoch, findings);
        if (is->seq == 0) {
            *epoch += is_less && *epoch != 0; /* whatever comes of it later is above */
            continue;
        }
        group_check_epoch(world, shown, is->epoch, is_less, epoch, findings);
        group_check_events(world, number, group, seen, is, findings);
    }
}

bool world_check(struct world *world, const struct seen *seen, struct world_findings *findings)
{
    uint64_t before = findings->total;
    if (seen->problem[0] != 0) {
        world_found(findings, VERDICT_UNREADABLE, "%s", seen->problem);
        return false;
    }
    if (seen->strangers != 0)
        world_found(findings, VERDICT_INVENTED, "%llu names that were never written",
                    (unsigned long long)seen->strangers);
    for (unsigned lane = 0; lane < WORLD_LANES; lane++)
        lane_check(world, lane, seen, findings);
    world->may_lose = false;
    return findings->total == before;
}

/* ---- what is seen ---- */

bool seen_add_event(struct seen *seen, const struct seen_event *event)
{
    void *memory = seen->events;
    bool has_room = grow(&memory, &seen->event_capacity, seen->event_count, sizeof *seen->events);
    seen->events = memory;
    if (has_room)
        seen->events[seen->event_count++] = *event;
    return has_room;
}

void seen_clear(struct seen *seen)
{
    struct seen_event *events = seen->events;
    size_t capacity = seen->event_capacity;
    *seen = (struct seen){.events = events, .event_capacity = capacity};
}

void seen_fini(struct seen *seen)
{
    free(seen->events);
    *seen = (struct seen){0};
}

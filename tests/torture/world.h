/* tests/torture/world.h -- what was asked of a server, what it said, and whether what it has after a
 * crash can be true.
 *
 * Requests go over lanes, a connection each; a group belongs to one lane, so the order in which its
 * writes are applied is known. A server that was killed may have any prefix of a lane's requests, as
 * long as all that were acknowledged are in it:
 *
 *   lane   A A A A A A A S S S S S S       A acknowledged, S sent and not answered
 *                      |<- ends here ->|   the prefix it may have
 *
 * What was refused with an error and had something acknowledged after it must not be there; refused
 * requests behind the last acknowledged one may have been applied or not, all from the first on or none.
 *
 * A gateway asks again for what was not answered, in its order and with the same ids, when the broker
 * is back: what was applied before the crash is not applied once more (world_ask_again()).
 *
 * A server whose level does not promise more may have lost acknowledged requests (may_lose): then it
 * has any prefix of what was asked since the last check.
 *
 * A group's seq is the number of its applied writes, every value is whole and is one that was sent, and
 * its events are its writes in order. Its epoch stays; where writes that were shown or acknowledged are
 * gone it must have risen, so that no (epoch, seq) ever has two contents, and where they might be it may
 * (may_renew). It never falls. A server without seq and events (redis) is
 * held to the rest.
 *
 * Values: a write has a token, a number that is never used twice; the value is made from the token and
 * says it, so that any value that was not written, or not as a whole, is noticed.
 *
 * Process and thread: one. Memory: world_init() takes all but the requests and the history, which grow.
 */
#ifndef WEIR_TESTS_TORTURE_WORLD_H
#define WEIR_TESTS_TORTURE_WORLD_H

#include "shm/span.h"

enum {
    WORLD_LANES = 4,
    WORLD_LANE_GROUPS = 3,
    WORLD_GROUPS = WORLD_LANES * WORLD_LANE_GROUPS,
    WORLD_ITEMS = 10,
    WORLD_COUNTERS = 2, /* the first of them are counters */
    WORLD_NAME_BYTES = 16,
    WORLD_FINDINGS_MAX = 8, /* sentences kept of one check; the rest is counted */
    WORLD_VALUE_BYTES_MAX = 1400 * 1024,
};

/* What an item holds: 0 nothing, a token, or WORLD_COUNT_BIT and a counter's number. */
#define WORLD_ABSENT 0ull
#define WORLD_COUNT_BIT (1ull << 63)
#define WORLD_BROKEN UINT64_MAX /* a value nobody has written */

enum world_request_kind { WORLD_SET = 1, WORLD_DELETE, WORLD_COUNT, WORLD_SEND };
enum world_request_state { WORLD_SENT, WORLD_ACKNOWLEDGED, WORLD_REFUSED };

struct world_request {
    uint64_t token; /* also its id */
    uint8_t kind, state;
    uint8_t group; /* of the lane */
    uint8_t item;
    bool is_done; /* asked again, and applied before: changes nothing any more */
};

struct world_event {
    uint8_t kind; /* enum world_request_kind */
    uint8_t item;
    uint64_t word;  /* what is there now; before, for a delete */
    uint64_t stamp; /* 0: not seen yet */
};

struct world_state {
    uint64_t words[WORLD_LANE_GROUPS][WORLD_ITEMS];
    uint64_t seqs[WORLD_LANE_GROUPS];
};

struct world_history {
    struct world_event *events; /* of seq 1, 2, ... */
    size_t count, capacity;
};

struct world_lane {
    struct world_state state; /* as last checked */
    struct world_state
        ahead; /* the same and all that was sent since, for those who choose requests */
    struct world_request *requests; /* since the last check, in order */
    size_t count, capacity, in_flight;
    size_t answered;             /* all before have their answer */
    struct world_request *again; /* not answered at the last crash */
    size_t again_count, again_capacity;
    uint64_t epochs[WORLD_LANE_GROUPS]; /* 0: not known yet */
    struct world_history history[WORLD_LANE_GROUPS];
};

struct world {
    uint64_t seed;
    uint64_t random;
    uint64_t next_token;
    uint64_t first_token; /* of what stands in the directory */
    bool has_seq;
    bool may_lose;       /* at the next check: what was acknowledged since the last one */
    bool may_renew;      /* epochs may rise, from now on */
    uint32_t big_one_in; /* of so many values one is larger than 1 MiB; 0: none */
    struct world_lane lanes[WORLD_LANES];
    struct buffer value; /* scratch */
};

/* What a server has, as its driver read it; groups by their number in the world. */
struct seen_event {
    uint64_t seq, epoch, stamp, word;
    uint8_t kind;
    uint8_t item;
};
struct seen_group {
    uint64_t seq, epoch, stamp;
    uint64_t words[WORLD_ITEMS];
    uint64_t item_count;             /* as the server counts */
    size_t event_first, event_count; /* in seen.events, in the order of seq */
    /* What was shown to a reader before the crash. */
    uint64_t shown_seq, shown_epoch;
};
struct seen {
    struct seen_group groups[WORLD_GROUPS];
    struct seen_event *events;
    size_t event_count, event_capacity;
    uint64_t strangers; /* groups or items nobody has written */
    char problem[160];  /* "": could be read; else why not */
};

#define WORLD_VERDICT_MAP(X)                                                                       \
    X(LOST, "lost", "an acknowledged write is not there")                                          \
    X(HALF, "half", "a value nobody has written")                                                  \
    X(INVENTED, "invented", "something that was never asked for, or was refused, is there")        \
    X(ORDER, "order", "what is there is no prefix of what was asked")                              \
    X(GAP, "gap", "seq is not the number of applied writes, or events leave one out")              \
    X(TWICE, "twice", "a request that was asked again was carried out once more")                  \
    X(EPOCH, "epoch", "a group's epoch changed, or has not when it must")                          \
    X(SHOWN, "shown", "what a reader was shown is not there")                                      \
    X(UNREADABLE, "unreadable", "the server could not be asked what it has")                       \
    X(REFUSED, "refused", "the server did not start after a crash")                                \
    X(ANSWER, "answer", "an answer that does not say what is so")

enum world_verdict {
#define WORLD_VERDICT_ENUM(name, word, sentence) VERDICT_##name,
    WORLD_VERDICT_MAP(WORLD_VERDICT_ENUM)
#undef WORLD_VERDICT_ENUM
        VERDICT_COUNT
};
const char *world_verdict_word(enum world_verdict verdict);

struct world_findings {
    uint64_t counts[VERDICT_COUNT];
    uint64_t total;
    char sentences[WORLD_FINDINGS_MAX][200];
};
void world_found(struct world_findings *findings, enum world_verdict verdict, const char *format,
                 ...) WEIR_PRINTF(3, 4);

/* False: no memory. */
bool world_init(struct world *world, uint64_t seed, bool has_seq);
void world_fini(struct world *world);
/* An empty directory. */
void world_begin(struct world *world);

uint64_t world_random(uint64_t *state);
uint64_t world_below(struct world *world, uint64_t bound);

/* The next request of a lane; NULL: no memory. */
const struct world_request *world_ask(struct world *world, unsigned lane);
/* The next of those that were not answered at the last crash; NULL: no more (or no memory). */
const struct world_request *world_ask_again(struct world *world, unsigned lane);
/* The answer to a request; 0: to the oldest without one. False: there is no such request. */
bool world_answer(struct world *world, unsigned lane, uint64_t token, bool is_acknowledged);

/* Names: "gNN" and "iNN". */
void world_group_name(unsigned lane, unsigned group, char name[WORLD_NAME_BYTES]);
void world_item_name(unsigned item, char name[WORLD_NAME_BYTES]);
/* The value of a set or send, valid until the next call. */
struct span world_value(struct world *world, uint64_t token);
/* What a stored text is: a word as above, `item` says whether it is a counter. */
uint64_t world_word(struct world *world, unsigned item, struct span text);

/* Compare; what was found wrong is added to `findings`. When nothing was, what is there is what the
 * next check starts from. True when nothing was. */
bool world_check(struct world *world, const struct seen *seen, struct world_findings *findings);

bool seen_add_event(struct seen *seen, const struct seen_event *event);
void seen_clear(struct seen *seen);
void seen_fini(struct seen *seen);

#endif

/* tests/sim/history.h -- the truth: every write that was applied, in its order, with what its group
 * looked like behind it.
 *
 * A group's writes are a list that only grows. Each names the one it follows (`previous`), so that
 * writes a broker's death has taken (is_lost) stay to be recognised, while the group goes on from the
 * last one that is kept.
 *
 * Memory:   grows with the run. An index into a group's list is a place in its order; HISTORY_NONE is
 *           the place before its first write.
 */
#ifndef WEIR_TESTS_SIM_HISTORY_H
#define WEIR_TESTS_SIM_HISTORY_H

#include "shm/envelope.h"
#include "tests/sim/scheduler.h"

enum { HISTORY_GROUPS = 6, HISTORY_ITEMS = 6, HISTORY_NONE = -1, HISTORY_NO_ITEM = -1 };

/* The items of a group in its order, and the write that made each one's value. */
struct history_state {
    uint8_t count;
    uint8_t items[HISTORY_ITEMS];
    uint32_t values[HISTORY_ITEMS];
};

struct history_event {
    uint64_t epoch, seq;
    uint64_t timestamp_ms; /* 0: nobody has been shown it yet */
    uint64_t request;      /* whose write it is */
    struct history_state state;
    uint32_t value;    /* of set and update: the new one; of delete: the old one */
    uint32_t place;    /* in the order of all writes */
    int32_t previous;  /* in the group; HISTORY_NONE: it is the first */
    uint32_t lost_in;  /* number of the life that does not have it; 0: kept */
    int8_t item;       /* HISTORY_NO_ITEM: the event has no id */
    uint8_t kind;      /* enum envelope_event */
    bool was_received; /* by any subscriber */
};

struct history_group {
    struct history_event *events;
    int32_t count, capacity;
    int32_t newest; /* kept */
};

/* What a value looks like: {"id":"..","w":N,"pad":".."}. */
struct history_value {
    int8_t item;
    uint16_t pad_bytes;
};

struct history {
    struct scheduler *scheduler;
    struct history_group groups[HISTORY_GROUPS];
    struct history_value *values;
    uint32_t value_count, value_capacity;
    struct history_place {
        uint8_t group;
        int32_t index;
    } * places; /* the order of all writes */
    uint32_t place_count, place_capacity;
    bool is_kept;          /* the level promises that writes survive the broker */
    uint32_t acknowledged; /* writes before this place have been answered */
};

void history_init(struct history *history, struct scheduler *scheduler);
void history_fini(struct history *history);

struct span history_stream(unsigned group);
struct span history_group_name(unsigned group);
struct span history_item_name(int item);
/* -1: no such. */
int history_find_group(struct span stream, struct span group);
int history_find_item(struct span item);

uint32_t history_new_value(struct history *history, int item, uint32_t pad_bytes);
void history_value_text(const struct history *history, uint32_t value, struct buffer *out);
/* Data of a sync: `[..]`, or the item's value or null. */
void history_state_text(const struct history *history, const struct history_state *state, int item,
                        struct buffer *out);
/* Where the item is in the state; -1: it is not there. */
int history_state_find(const struct history_state *state, int item);

/* The group as it is now. */
struct history_state history_newest_state(const struct history *history, unsigned group);
const struct history_event *history_event(const struct history *history, unsigned group,
                                          int32_t index);
/* Append a write; what is filled in of `event`: kind, item, value, request, epoch, seq. Checks that
 * its numbers follow. */
int32_t history_append(struct history *history, unsigned group, const struct history_event *event);
/* HISTORY_NONE: no such write. A kept one before a lost one. */
int32_t history_find(const struct history *history, unsigned group, uint64_t epoch, uint64_t seq);
/* The place of the seq in the newest epoch below `epoch`, of writes before `place_end`: what a broker that
 * renews its epochs calls (epoch, seq) from then on. */
int32_t history_find_renewed(const struct history *history, unsigned group, uint64_t epoch,
                             uint64_t seq, uint32_t place_end);
/* The group goes on from its newest place under another epoch. */
void history_renew(struct history *history, unsigned group, uint64_t epoch);
/* The newest write below `epoch` that life `life` knows of. */
int32_t history_before_epoch(const struct history *history, unsigned group, uint64_t epoch,
                             uint32_t life);
/* Nothing between the places `from` and `to` (both known, `to` newer) concerns the item; in the order
 * that `to` is in. False: or `from` is not in that order. */
bool history_is_next(const struct history *history, unsigned group, int32_t from, int32_t to,
                     int item);
/* Whoever is at `from` and sees only the item has missed nothing up to `to`. */
bool history_is_at(const struct history *history, unsigned group, int32_t from, int32_t to,
                   int item);
/* Writes from `place` on are lost to life `life`. */
void history_lose(struct history *history, uint32_t place, uint32_t life);

#endif

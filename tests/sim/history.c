#include "tests/sim/history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *stream, *group;
} group_names[HISTORY_GROUPS] = {{"s", "a"}, {"s", "b\"\\ \n"}, {"s", "c"},
                                 {"t", "a"}, {"t", ""},         {"u\xC3\xA9", "d"}};
static const char *const item_names[HISTORY_ITEMS] = {
    "i", "j", "", "k\"\\", "\xF0\x9F\x98\x80", "long-name-of-an-item"};
/* The same as they stand in JSON. */
static const char *const item_texts[HISTORY_ITEMS] = {
    "i", "j", "", "k\\\"\\\\", "\xF0\x9F\x98\x80", "long-name-of-an-item"};

void history_init(struct history *history, struct scheduler *scheduler)
{
    *history = (struct history){.scheduler = scheduler};
    for (unsigned i = 0; i < HISTORY_GROUPS; i++)
        history->groups[i].newest = HISTORY_NONE;
    (void)history_new_value(history, 0, 0); /* so that value 0 is none of a write's */
}

void history_fini(struct history *history)
{
    for (unsigned i = 0; i < HISTORY_GROUPS; i++)
        free(history->groups[i].events);
    free(history->values);
    free(history->places);
}

/* ---- names and values ---- */

struct span history_stream(unsigned group)
{
    return span_text(group_names[group].stream);
}

struct span history_group_name(unsigned group)
{
    return span_text(group_names[group].group);
}

struct span history_item_name(int item)
{
    return item == HISTORY_NO_ITEM ? (struct span){0} : span_text(item_names[item]);
}

int history_find_group(struct span stream, struct span group)
{
    for (int i = 0; i < HISTORY_GROUPS; i++) {
        if (span_equal(stream, history_stream((unsigned)i)) &&
            span_equal(group, history_group_name((unsigned)i)))
            return i;
    }
    return -1;
}

int history_find_item(struct span item)
{
    for (int i = 0; i < HISTORY_ITEMS; i++) {
        if (span_equal(item, history_item_name(i)))
            return i;
    }
    return -1;
}

/* Room for one more in a list of `count`. */
static void *grow(void *list, uint32_t count, uint32_t *capacity, size_t entry_bytes)
{
    if (count < *capacity)
        return list;
    *capacity = *capacity == 0 ? 256 : *capacity * 2;
    void *grown = realloc(list, *capacity * entry_bytes);
    weir_assert(grown != NULL);
    return grown;
}

uint32_t history_new_value(struct history *history, int item, uint32_t pad_bytes)
{
    history->values = grow(history->values, history->value_count, &history->value_capacity,
                           sizeof *history->values);
    history->values[history->value_count] =
        (struct history_value){.item = (int8_t)item, .pad_bytes = (uint16_t)pad_bytes};
    return history->value_count++;
}

static void append(struct buffer *out, struct span text)
{
    enum weir_status status = buffer_append(out, text);
    weir_assert(status == WEIR_OK);
}

void history_value_text(const struct history *history, uint32_t value, struct buffer *out)
{
    const struct history_value *made = &history->values[value];
    const char *id = made->item == HISTORY_NO_ITEM ? "" : item_texts[made->item];
    enum weir_status status =
        buffer_printf(out, "{\"id\":\"%s\",\"w\":%" PRIu32 ",\"pad\":\"", id, value);
    if (status == WEIR_OK)
        status = buffer_reserve(out, made->pad_bytes);
    weir_assert(status == WEIR_OK);
    memset(out->data + out->bytes, 'x', made->pad_bytes);
    out->bytes += made->pad_bytes;
    append(out, SPAN_LITERAL("\"}"));
}

int history_state_find(const struct history_state *state, int item)
{
    for (int i = 0; i < state->count; i++) {
        if (state->items[i] == item)
            return i;
    }
    return -1;
}

void history_state_text(const struct history *history, const struct history_state *state, int item,
                        struct buffer *out)
{
    if (item != HISTORY_NO_ITEM) {
        int at = history_state_find(state, item);
        if (at < 0)
            append(out, SPAN_LITERAL("null"));
        else
            history_value_text(history, state->values[at], out);
        return;
    }
    append(out, SPAN_LITERAL("["));
    for (unsigned i = 0; i < state->count; i++) {
        if (i > 0)
            append(out, SPAN_LITERAL(","));
        history_value_text(history, state->values[i], out);
    }
    append(out, SPAN_LITERAL("]"));
}

/* ---- writes ---- */

const struct history_event *history_event(const struct history *history, unsigned group,
                                          int32_t index)
{
    weir_assert(index >= 0 && index < history->groups[group].count);
    return &history->groups[group].events[index];
}

struct history_state history_newest_state(const struct history *history, unsigned group)
{
    int32_t newest = history->groups[group].newest;
    return newest == HISTORY_NONE ? (struct history_state){0}
                                  : history_event(history, group, newest)->state;
}

static void state_apply(struct history_state *state, const struct history_event *event)
{
    int at = history_state_find(state, event->item);
    if (event->kind == ENVELOPE_EVENT)
        return;
    if (event->kind == ENVELOPE_DELETE) {
        weir_assert(at >= 0);
        state->count--;
        for (int i = at; i < state->count; i++) {
            state->items[i] = state->items[i + 1];
            state->values[i] = state->values[i + 1];
        }
        return;
    }
    if (at < 0) {
        at = state->count++;
        state->items[at] = (uint8_t)event->item;
    }
    state->values[at] = event->value;
}

/* The next seq of the epoch; or, of a group that was empty and is forgotten, the first of a later one. */
static void check_numbers(const struct history *history, unsigned group,
                          const struct history_event *event)
{
    const struct history_group *of = &history->groups[group];
    bool is_next = event->seq == 1;
    if (of->newest != HISTORY_NONE) {
        const struct history_event *before = &of->events[of->newest];
        is_next = (event->epoch == before->epoch && event->seq == before->seq + 1) ||
                  (event->epoch > before->epoch && event->seq == 1 && before->state.count == 0);
    }
    if (!is_next)
        sim_fail(history->scheduler, SIM_ORDER,
                 "group %u: a write has epoch %" PRIu64 " seq %" PRIu64, group, event->epoch,
                 event->seq);
    int32_t same = history_find(history, group, event->epoch, event->seq);
    if (same != HISTORY_NONE && of->events[same].was_received)
        sim_fail(history->scheduler, SIM_ORDER,
                 "group %u: epoch %" PRIu64 " seq %" PRIu64
                 " was another write, and somebody has it",
                 group, event->epoch, event->seq);
}

/* Behind the newest, with its state. */
static struct history_event *group_append(struct history *history, unsigned group,
                                          const struct history_event *event)
{
    struct history_group *of = &history->groups[group];
    uint32_t capacity = (uint32_t)of->capacity;
    of->events = grow(of->events, (uint32_t)of->count, &capacity, sizeof *of->events);
    of->capacity = (int32_t)capacity;
    struct history_event *made = &of->events[of->count];
    *made = *event;
    made->previous = of->newest;
    made->place = history->place_count;
    made->state = history_newest_state(history, group);
    of->newest = of->count++;
    history->places = grow(history->places, history->place_count, &history->place_capacity,
                           sizeof *history->places);
    history->places[history->place_count++] = (struct history_place){(uint8_t)group, of->newest};
    return made;
}

int32_t history_append(struct history *history, unsigned group, const struct history_event *event)
{
    check_numbers(history, group, event);
    struct history_event *made = group_append(history, group, event);
    state_apply(&made->state, made);
    return history->groups[group].newest;
}

int32_t history_find_renewed(const struct history *history, unsigned group, uint64_t epoch,
                             uint64_t seq, uint32_t place_end)
{
    const struct history_group *of = &history->groups[group];
    int32_t at = of->newest;
    while (at != HISTORY_NONE && (of->events[at].epoch >= epoch || of->events[at].seq != seq ||
                                  of->events[at].place >= place_end))
        at = of->events[at].previous;
    return at;
}

void history_renew(struct history *history, unsigned group, uint64_t epoch)
{
    const struct history_group *of = &history->groups[group];
    weir_assert(of->newest != HISTORY_NONE);
    const struct history_event before = of->events[of->newest];
    const struct history_event renewed = {.epoch = epoch,
                                          .seq = before.seq,
                                          .item = HISTORY_NO_ITEM,
                                          .was_received = before.was_received};
    (void)group_append(history, group, &renewed);
}

int32_t history_find(const struct history *history, unsigned group, uint64_t epoch, uint64_t seq)
{
    const struct history_group *of = &history->groups[group];
    int32_t lost = HISTORY_NONE;
    for (int32_t i = of->count - 1; i >= 0; i--) {
        const struct history_event *event = &of->events[i];
        if (event->epoch != epoch || event->seq != seq)
            continue;
        if (event->lost_in == 0)
            return i;
        if (lost == HISTORY_NONE)
            lost = i;
    }
    return lost;
}

int32_t history_before_epoch(const struct history *history, unsigned group, uint64_t epoch,
                             uint32_t life)
{
    const struct history_group *of = &history->groups[group];
    for (int32_t i = of->count - 1; i >= 0; i--) {
        const struct history_event *event = &of->events[i];
        if (event->epoch < epoch && (event->lost_in == 0 || event->lost_in > life))
            return i;
    }
    return HISTORY_NONE;
}

bool history_is_next(const struct history *history, unsigned group, int32_t from, int32_t to,
                     int item)
{
    int32_t at = history_event(history, group, to)->previous;
    while (at > from) { /* towards the first */
        const struct history_event *event = history_event(history, group, at);
        if (item == HISTORY_NO_ITEM || event->item == item)
            return false;
        at = event->previous;
    }
    return at == from;
}

bool history_is_at(const struct history *history, unsigned group, int32_t from, int32_t to,
                   int item)
{
    if (from == to)
        return true;
    return item != HISTORY_NO_ITEM && to != HISTORY_NONE &&
           history_event(history, group, to)->item != item &&
           history_is_next(history, group, from, to, item);
}

void history_lose(struct history *history, uint32_t place, uint32_t life)
{
    for (uint32_t i = history->place_count; i > place; i--) {
        const struct history_place *lost = &history->places[i - 1];
        struct history_group *of = &history->groups[lost->group];
        struct history_event *event = &of->events[lost->index];
        if (event->lost_in != 0)
            continue;
        event->lost_in = life;
        of->newest = event->previous;
    }
}

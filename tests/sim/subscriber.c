#include "tests/sim/subscriber.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "gateway/event_stream.h"
#include "shm/envelope.h"
#include "shm/json.h"

void sim_subscriber_init(struct sim_subscriber *subscriber, struct scheduler *scheduler,
                         struct history *history, unsigned index)
{
    *subscriber =
        (struct sim_subscriber){.scheduler = scheduler, .history = history, .index = index};
    subscriber->is_event_stream = index % 4 == 3;
    buffer_init(&subscriber->text, 1024 * 1024);
}

void sim_subscriber_fini(struct sim_subscriber *subscriber)
{
    buffer_fini(&subscriber->text);
}

/* ---- joining ---- */

static void view_ask(struct sim_subscriber *subscriber, struct sim_view *view,
                     const struct sim_wish *how)
{
    struct sim_socket *socket = subscriber->socket;
    char id[8];
    (void)snprintf(id, sizeof id, "%d", (int)(view - subscriber->views));
    view->mode = VIEW_ASKED;
    view->joined_at = sim_socket_end(socket);
    if (!how->brings_place)
        subscriber->last_id = (struct cursor){0};
    bool has_id = subscriber->last_id.epoch != 0;
    view->is_resuming =
        how->brings_place && view->has_place && (has_id || !subscriber->is_event_stream);
    view->pending_count = 0;
    view->lag_events = how->lag_events;
    subscriber->policies[view->group] |= (uint8_t)(1u << how->policy);
    struct subscription_wish wish = {
        .subscription_id = span_text(id),
        .stream = history_stream(view->group),
        .group = history_group_name(view->group),
        .item = history_item_name(view->item),
        .policy = how->policy,
        .lag_events = how->lag_events,
        .has_cursor = view->is_resuming,
        .cursor = subscriber->is_event_stream ? subscriber->last_id : view->at,
    };
    if (socket->gateway != NULL && socket->gateway->fault == SIM_FAULT_EXPIRE &&
        sim_chance(subscriber->scheduler, 20))
        wish.cursor.epoch++;
    if (socket->gateway == NULL || socket->is_closing || socket->is_left)
        return; /* it goes nowhere, and is asked again on the next socket */
    enum weir_status status =
        subscriptions_add(&socket->gateway->subscriptions, &socket->subscriber, &wish);
    weir_assert(status == WEIR_OK);
    sim_note(subscriber->scheduler, "subscriber: join", subscriber->index, view->group,
             view->is_resuming);
}

void sim_subscriber_join(struct sim_subscriber *subscriber, unsigned view, unsigned group, int item,
                         const struct sim_wish *wish)
{
    struct sim_view *made = &subscriber->views[view];
    if (subscriber->socket == NULL || subscriber->is_event_stream)
        return;
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        const struct sim_view *other = &subscriber->views[i];
        if (i != view && other->mode != VIEW_NONE && other->group == group && other->item == item)
            return;
    }
    if (made->mode != VIEW_NONE)
        subscriber->left_at[made->group] = sim_socket_end(subscriber->socket);
    if (made->group != group || made->item != item)
        *made = (struct sim_view){.group = group, .item = item, .index = HISTORY_NONE};
    view_ask(subscriber, made, wish);
}

void sim_subscriber_leave(struct sim_subscriber *subscriber, unsigned view)
{
    struct sim_view *left = &subscriber->views[view];
    struct sim_socket *socket = subscriber->socket;
    char id[8];
    (void)snprintf(id, sizeof id, "%u", view);
    if (socket == NULL || left->mode == VIEW_NONE || subscriber->is_event_stream)
        return;
    left->mode = VIEW_NONE;
    subscriber->left_at[left->group] = sim_socket_end(socket);
    if (socket->gateway != NULL && !socket->is_closing && !socket->is_left)
        (void)subscriptions_remove(&socket->gateway->subscriptions, &socket->subscriber,
                                   span_text(id));
    sim_note(subscriber->scheduler, "subscriber: leave", subscriber->index, view, 0);
}

void sim_subscriber_connect(struct sim_subscriber *subscriber, struct sim_gateway *gateway,
                            size_t window_bytes, uint32_t stingy_percent,
                            const struct sim_wish *wish)
{
    weir_assert(subscriber->socket == NULL);
    enum subscriber_format format =
        subscriber->is_event_stream ? FORMAT_EVENT_STREAM : FORMAT_WEBSOCKET;
    subscriber->socket = sim_socket_open(gateway, format, window_bytes, stingy_percent);
    if (subscriber->socket == NULL)
        return;
    counters_add(&gateway->counters, COUNTER_STREAM_CONNECTIONS, 1);
    sim_note(subscriber->scheduler, "subscriber: connect", subscriber->index, gateway->index,
             window_bytes);
    subscriber->retry_ms = 0;
    subscriber->ring_bytes = gateway->broker->settings.ring_bytes;
    memset(subscriber->left_at, 0, sizeof subscriber->left_at);
    memset(subscriber->policies, 0, sizeof subscriber->policies);
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        if (subscriber->views[i].mode != VIEW_NONE)
            view_ask(subscriber, &subscriber->views[i], wish);
    }
}

void sim_subscriber_open_path(struct sim_subscriber *subscriber, unsigned group, int item)
{
    weir_assert(subscriber->socket == NULL);
    weir_assert(subscriber->is_event_stream);
    subscriber->views[0] =
        (struct sim_view){.mode = VIEW_ASKED, .group = group, .item = item, .index = HISTORY_NONE};
    subscriber->last_id = (struct cursor){0};
}

void sim_subscriber_disconnect(struct sim_subscriber *subscriber)
{
    if (subscriber->socket == NULL)
        return;
    sim_note(subscriber->scheduler, "subscriber: disconnect", subscriber->index, 0, 0);
    sim_socket_leave(subscriber->socket);
    subscriber->socket = NULL;
}

/* ---- what it is sent ---- */

struct message {
    struct sim_sent sent;
    uint64_t start; /* of its bytes in the socket's order */
    enum envelope_event kind;
    uint64_t timestamp_ms;
    struct cursor at;
    unsigned group;
    int item;
    bool has_id;
    struct span data;
    struct span reason; /* data NULL: none */
    int32_t index;      /* the place it tells of */
    bool is_conflated;  /* the newest of its item behind `since`, and (has_more) others follow */
    bool has_more;
    uint64_t since;
};

enum {
    FIELD_STAMP,
    FIELD_STREAM,
    FIELD_GROUP,
    FIELD_ID,
    FIELD_EVENT,
    FIELD_REASON,
    FIELD_CONFLATED,
    FIELD_SEQ,
    FIELD_EPOCH,
    FIELDS
};

static uint64_t number_of(struct json_value value)
{
    return value.kind == JSON_NUMBER ? strtoull(value.text.data, NULL, 10) : UINT64_MAX;
}

static enum envelope_event kind_of(struct json_value type)
{
    static const char *const kinds[] = {
        [ENVELOPE_SYNC] = "sync",       [ENVELOPE_CREATE] = "create",
        [ENVELOPE_UPDATE] = "update",   [ENVELOPE_DELETE] = "delete",
        [ENVELOPE_EVENT] = "event",     [ENVELOPE_UNAUTHORIZED] = "unauthorized",
        [ENVELOPE_RESUMED] = "resumed",
    };
    for (unsigned i = ENVELOPE_SYNC; i <= ENVELOPE_RESUMED; i++) {
        if (json_string_equals(type, span_text(kinds[i])))
            return (enum envelope_event)i;
    }
    return (enum envelope_event)0;
}

static bool message_parse_event(struct message *message, struct json_value event)
{
    static const char *const names[] = {"type", "data", "event"};
    struct json_value values[3], inner[2];
    if (event.kind != JSON_OBJECT ||
        json_scan_object(event.text, JSON_DEPTH_MAX, names, 3, values, NULL) != WEIR_OK)
        return false;
    message->kind = kind_of(values[0]);
    message->data = values[1].text;
    if (message->kind != ENVELOPE_EVENT)
        return message->kind != 0;
    if (values[2].kind != JSON_OBJECT ||
        json_scan_object(values[2].text, JSON_DEPTH_MAX, names, 2, inner, NULL) != WEIR_OK)
        return false;
    message->data = inner[1].text;
    return json_string_equals(inner[0], SPAN_LITERAL("note"));
}

static bool message_parse_mark(struct message *message, struct json_value mark)
{
    static const char *const names[] = {"since", "more"};
    struct json_value values[2];
    message->is_conflated = mark.kind != JSON_ABSENT;
    if (!message->is_conflated)
        return true;
    if (mark.kind != JSON_OBJECT ||
        json_scan_object(mark.text, JSON_DEPTH_MAX, names, 2, values, NULL) != WEIR_OK)
        return false;
    message->since = number_of(values[0]);
    message->has_more = span_equal(values[1].text, SPAN_LITERAL("true"));
    return message->has_more || span_equal(values[1].text, SPAN_LITERAL("false"));
}

static bool message_parse(struct sim_subscriber *subscriber, struct message *message,
                          struct span json)
{
    static const char *const names[FIELDS] = {"timestamp", "streamName", "groupId", "id",   "event",
                                              "reason",    "conflated",  "seq",     "epoch"};
    struct json_value values[FIELDS];
    if (json_scan_object(json, JSON_DEPTH_MAX, names, FIELDS, values, NULL) != WEIR_OK ||
        !message_parse_event(message, values[FIELD_EVENT]) ||
        !message_parse_mark(message, values[FIELD_CONFLATED]))
        return false;
    message->timestamp_ms = number_of(values[FIELD_STAMP]);
    message->at = (struct cursor){number_of(values[FIELD_EPOCH]), number_of(values[FIELD_SEQ])};
    buffer_clear(&subscriber->text);
    if (buffer_reserve(&subscriber->text, json.bytes) != WEIR_OK)
        return false;
    int group = history_find_group(json_decode(values[FIELD_STREAM], &subscriber->text),
                                   json_decode(values[FIELD_GROUP], &subscriber->text));
    message->has_id = values[FIELD_ID].kind == JSON_STRING;
    message->item = HISTORY_NO_ITEM;
    if (message->has_id)
        message->item = history_find_item(json_decode(values[FIELD_ID], &subscriber->text));
    if (values[FIELD_REASON].kind == JSON_STRING)
        message->reason =
            span_of(values[FIELD_REASON].text.data + 1, values[FIELD_REASON].text.bytes - 2);
    message->group = (unsigned)group;
    return group >= 0 && (!message->has_id || message->item >= 0);
}

static _Noreturn void subscriber_fail(const struct sim_subscriber *subscriber,
                                      enum sim_promise promise, const struct message *message,
                                      const struct sim_view *view, const char *what)
{
    sim_fail(subscriber->scheduler, promise,
             "subscriber %u: %s (group %u item %d epoch %" PRIu64 " seq %" PRIu64
             ", place %d; view: epoch %" PRIu64 " seq %" PRIu64 ", place %d, item %d)",
             subscriber->index, what, message->group, message->item, message->at.epoch,
             message->at.seq, message->index, view == NULL ? 0 : view->at.epoch,
             view == NULL ? 0 : view->at.seq, view == NULL ? 0 : view->index,
             view == NULL ? 0 : view->item);
}

/* It tells of a write that was answered by then, and that the gateway's broker has. */
static void check_shown(const struct sim_subscriber *subscriber, const struct message *message)
{
    if (message->index == HISTORY_NONE)
        return;
    const struct history_event *event =
        history_event(subscriber->history, message->group, message->index);
    if (event->place >= message->sent.acknowledged)
        subscriber_fail(subscriber, SIM_COMMITTED, message, NULL, "a write is shown too early");
    if (event->lost_in != 0 && message->sent.life >= event->lost_in)
        subscriber_fail(subscriber, SIM_KEPT, message, NULL, "a write is shown that is lost");
}

/* ---- events ---- */

/* An item's events, or what was sent to it: they are conflated apart from one another. */
static bool events_are_alike(const struct history_event *a, const struct history_event *b)
{
    return a->item == b->item && (a->kind == ENVELOPE_EVENT) == (b->kind == ENVELOPE_EVENT);
}

/* A set is a create when the item was not known at `since`. */
static uint8_t conflated_kind(const struct sim_subscriber *subscriber,
                              const struct message *message)
{
    const struct history_event *event =
        history_event(subscriber->history, message->group, message->index);
    const struct history_event *oldest = event, *at = event;
    while (at->previous != HISTORY_NONE) { /* towards `since` */
        at = history_event(subscriber->history, message->group, at->previous);
        if (at->epoch != event->epoch || at->seq <= message->since)
            break;
        if (events_are_alike(at, event))
            oldest = at;
    }
    if (event->kind != ENVELOPE_CREATE && event->kind != ENVELOPE_UPDATE)
        return event->kind;
    return oldest->kind == ENVELOPE_CREATE ? ENVELOPE_CREATE : ENVELOPE_UPDATE;
}

static void check_contents(struct sim_subscriber *subscriber, const struct message *message)
{
    struct history_group *group = &subscriber->history->groups[message->group];
    struct history_event *event = &group->events[message->index];
    uint8_t kind = message->is_conflated ? conflated_kind(subscriber, message) : event->kind;
    if (kind != message->kind || event->item != message->item)
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "another kind or item");
    buffer_clear(&subscriber->text);
    history_value_text(subscriber->history, event->value, &subscriber->text);
    if (!span_equal(message->data, buffer_span(&subscriber->text)))
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "other data");
    if (event->timestamp_ms == 0)
        event->timestamp_ms = message->timestamp_ms;
    if (event->timestamp_ms != message->timestamp_ms ||
        (event->previous != HISTORY_NONE &&
         event->timestamp_ms <= group->events[event->previous].timestamp_ms))
        subscriber_fail(subscriber, SIM_ORDER, message, NULL, "stamps do not increase");
    event->was_received = true;
}

/* As the client does it: create appends, update replaces, delete filters. */
static bool state_take(struct history_state *state, enum envelope_event kind, int item,
                       uint32_t value)
{
    int at = history_state_find(state, item);
    switch (kind) {
    case ENVELOPE_CREATE:
        if (at >= 0 || state->count == HISTORY_ITEMS)
            return false;
        state->items[state->count] = (uint8_t)item;
        state->values[state->count++] = value;
        return true;
    case ENVELOPE_UPDATE:
        if (at < 0)
            return false;
        state->values[at] = value;
        return true;
    case ENVELOPE_DELETE:
        if (at < 0)
            return false;
        state->count--;
        for (int i = at; i < state->count; i++) {
            state->items[i] = state->items[i + 1];
            state->values[i] = state->values[i + 1];
        }
        return true;
    default:
        return true;
    }
}

/* What a view of `item` holds when its group is in `state`. */
static struct history_state state_of_view(const struct history_state *state, int item)
{
    struct history_state of = {0};
    for (unsigned i = 0; i < state->count; i++) {
        if (item != HISTORY_NO_ITEM && state->items[i] != item)
            continue;
        of.items[of.count] = state->items[i];
        of.values[of.count++] = state->values[i];
    }
    return of;
}

static bool states_are_equal(const struct history_state *a, const struct history_state *b)
{
    return a->count == b->count && memcmp(a->items, b->items, a->count) == 0 &&
           memcmp(a->values, b->values, a->count * sizeof a->values[0]) == 0;
}

/* After a conflation items may stand in another order: one that was removed and made again is updated
 * where it stood. */
static bool states_are_alike(const struct history_state *a, const struct history_state *b)
{
    bool is_alike = a->count == b->count;
    for (unsigned i = 0; i < a->count && is_alike; i++) {
        int at = history_state_find(b, a->items[i]);
        is_alike = at >= 0 && b->values[at] == a->values[i];
    }
    return is_alike;
}

static void view_move(struct sim_view *view, const struct message *message)
{
    view->index = message->index;
    view->at = message->at;
    view->newest_ms = message->timestamp_ms;
    view->life = message->sent.life;
    view->has_place = true;
}

static void view_take_event(struct sim_subscriber *subscriber, struct sim_view *view,
                            const struct message *message)
{
    const struct history_event *event =
        history_event(subscriber->history, message->group, message->index);
    if (!history_is_next(subscriber->history, message->group, view->index, message->index,
                         view->item))
        subscriber_fail(subscriber, SIM_EXACT, message, view, "does not follow");
    if (message->timestamp_ms <= view->newest_ms || message->at.epoch < view->at.epoch)
        subscriber_fail(subscriber, SIM_ORDER, message, view, "stamp or epoch go back");
    view_move(view, message);
    if (!state_take(&view->state, message->kind, message->item, event->value))
        subscriber_fail(subscriber, SIM_EXACT, message, view, "an event the client cannot apply");
    struct history_state state = state_of_view(&event->state, view->item);
    bool is_equal = view->is_loose ? states_are_alike(&view->state, &state)
                                   : states_are_equal(&view->state, &state);
    if (!is_equal)
        subscriber_fail(subscriber, SIM_EXACT, message, view, "the state differs");
}

/* ---- the newest event of each item ---- */

/* The place that `since` names; it is where the view stands. */
static void view_begin_range(const struct sim_subscriber *subscriber, struct sim_view *view,
                             const struct message *message)
{
    int32_t since =
        message->since == 0
            ? history_before_epoch(subscriber->history, message->group, message->at.epoch,
                                   message->sent.life)
            : history_find(subscriber->history, message->group, message->at.epoch, message->since);
    if (!history_is_at(subscriber->history, message->group, view->index, since, view->item))
        subscriber_fail(subscriber, SIM_EXACT, message, view, "is the newest since another place");
    view->range_start = since;
}

static bool view_has_pending(const struct sim_view *view, int32_t index)
{
    for (unsigned i = 0; i < view->pending_count; i++) {
        if (view->pending[i] == index)
            return true;
    }
    return false;
}

/* What was held back is the newest of each item up to `last`, all of them and nothing else. */
static void check_range(const struct sim_subscriber *subscriber, const struct sim_view *view,
                        const struct message *message)
{
    const struct history *history = subscriber->history;
    const struct history_event *newest[SIM_PENDING_MAX];
    unsigned count = 0;
    for (int32_t at = message->index; at != view->range_start;
         at = history_event(history, message->group, at)->previous) {
        const struct history_event *event = history_event(history, message->group, at);
        bool is_older = view->item != HISTORY_NO_ITEM && event->item != view->item;
        for (unsigned i = 0; i < count; i++)
            is_older = is_older || events_are_alike(newest[i], event);
        if (is_older != !view_has_pending(view, at))
            subscriber_fail(subscriber, SIM_EXACT, message, view,
                            is_older ? "not the newest of its item" : "an item is left out");
        if (!is_older)
            newest[count++] = event;
    }
}

static void view_end_range(const struct sim_subscriber *subscriber, struct sim_view *view,
                           const struct message *message)
{
    const struct history_event *last =
        history_event(subscriber->history, message->group, message->index);
    check_range(subscriber, view, message);
    for (unsigned i = 0; i < view->pending_count; i++) {
        const struct history_event *event =
            history_event(subscriber->history, message->group, view->pending[i]);
        enum envelope_event kind = (enum envelope_event)view->pending_kinds[i];
        bool is_taken = state_take(&view->state, kind, event->item, event->value);
        if (!is_taken && kind != ENVELOPE_DELETE) /* an item may have come and gone */
            subscriber_fail(subscriber, SIM_EXACT, message, view, "the client cannot apply it");
    }
    view->pending_count = 0;
    view->is_loose = true;
    view_move(view, message);
    struct history_state state = state_of_view(&last->state, view->item);
    if (!states_are_alike(&view->state, &state))
        subscriber_fail(subscriber, SIM_EXACT, message, view, "the newest do not make the state");
}

static void view_take_conflated(struct sim_subscriber *subscriber, struct sim_view *view,
                                const struct message *message)
{
    if (subscriber->policies[view->group] == 1u << SLOW_LOSSLESS)
        subscriber_fail(subscriber, SIM_TOLD, message, view, "lossless, and events are left out");
    if (view->pending_count == 0)
        view_begin_range(subscriber, view, message);
    else if (message->since != view->range_since)
        subscriber_fail(subscriber, SIM_EXACT, message, view,
                        "another range before the end of one");
    view->range_since = message->since;
    bool is_mine = view->item == HISTORY_NO_ITEM || view->item == message->item;
    if (is_mine) {
        weir_assert(view->pending_count < SIM_PENDING_MAX);
        view->pending_kinds[view->pending_count] = (uint8_t)message->kind;
        view->pending[view->pending_count++] = message->index;
    }
    if (!message->has_more)
        view_end_range(subscriber, view, message);
}

static bool view_is_meant(const struct sim_view *view, const struct message *message)
{
    return view->mode != VIEW_NONE && view->group == message->group &&
           view->joined_at <= message->start;
}

static void subscriber_take_event(struct sim_subscriber *subscriber, struct message *message)
{
    message->index =
        history_find(subscriber->history, message->group, message->at.epoch, message->at.seq);
    if (message->index == HISTORY_NONE)
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "an event that never was");
    check_shown(subscriber, message);
    check_contents(subscriber, message);
    bool is_wanted = message->start < subscriber->left_at[message->group];
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        struct sim_view *view = &subscriber->views[i];
        if (view->group == message->group && (view->mode == VIEW_ASKED || view->mode == VIEW_STALE))
            is_wanted = true;
        if (!view_is_meant(view, message) || view->mode != VIEW_LIVE)
            continue;
        if (message->is_conflated) {
            view_take_conflated(subscriber, view, message);
            is_wanted = true;
            continue;
        }
        if (view->pending_count > 0)
            subscriber_fail(subscriber, SIM_EXACT, message, view, "a range does not end");
        if ((view->item != HISTORY_NO_ITEM && view->item != message->item))
            continue;
        view_take_event(subscriber, view, message);
        is_wanted = true;
    }
    if (!is_wanted)
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "an event nobody asked for");
    subscriber->events++;
    subscriber->conflated += message->is_conflated;
}

/* ---- syncs, and what stands in their place ---- */

/* The view that joined with the message's id. */
static struct sim_view *subscriber_find_view(struct sim_subscriber *subscriber,
                                             const struct message *message)
{
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        struct sim_view *view = &subscriber->views[i];
        if (view_is_meant(view, message) && view->item == message->item)
            return view;
    }
    return NULL;
}

static bool reason_is(const struct message *message, const char *reason)
{
    return message->reason.data != NULL && span_equal(message->reason, span_text(reason));
}

/* The group's order has not been another one since the view's place. */
static bool view_is_in_order(const struct sim_subscriber *subscriber, const struct sim_view *view,
                             const struct message *message)
{
    const struct history_group *group = &subscriber->history->groups[view->group];
    if (view->life != message->sent.life || view->index == HISTORY_NONE ||
        group->newest == HISTORY_NONE) /* a broker has died meanwhile, and lost all */
        return false;
    const struct history_event *newest =
        history_event(subscriber->history, view->group, group->newest);
    return newest->epoch == view->at.epoch && newest->state.count > 0 &&
           newest->seq >= view->at.seq;
}

/* What was written since the place cannot have filled the ring, nor left the view behind by more than it
 * may be. */
static bool view_is_close(const struct sim_subscriber *subscriber, const struct sim_view *view)
{
    enum { RECORD_BYTES = 1024 }; /* what is around a value, at most */
    const struct history *history = subscriber->history;
    const struct history_group *group = &history->groups[view->group];
    uint64_t bytes = 0;
    uint32_t place = history_event(history, view->group, view->index)->place;
    for (; place < history->place_count; place++) {
        const struct history_place *at = &history->places[place];
        uint32_t value = history_event(history, at->group, at->index)->value;
        bytes += RECORD_BYTES + (uint64_t)history->values[value].pad_bytes;
    }
    return bytes < subscriber->ring_bytes / 2 &&
           history_event(history, view->group, group->newest)->seq - view->at.seq <=
               view->lag_events;
}

/* A position that can be served is. Of a group that a socket has in several views, or has left, it is the
 * link's place that counts. */
static void check_expired(const struct sim_subscriber *subscriber, const struct sim_view *view,
                          const struct message *message)
{
    unsigned count = 0;
    for (unsigned i = 0; i < SIM_VIEWS; i++)
        count +=
            subscriber->views[i].mode != VIEW_NONE && subscriber->views[i].group == view->group;
    if (count == 1 && subscriber->left_at[view->group] == 0 &&
        view_is_in_order(subscriber, view, message) && view_is_close(subscriber, view))
        subscriber_fail(subscriber, SIM_TOLD, message, view, "a good position is not served");
}

static void check_reason(const struct sim_subscriber *subscriber, const struct sim_view *view,
                         const struct message *message)
{
    bool is_told = reason_is(message, "lagged") || reason_is(message, "restarted");
    bool is_expired = reason_is(message, "expired");
    if (message->reason.data != NULL && !is_told && !is_expired)
        subscriber_fail(subscriber, SIM_TOLD, message, view, "an unknown reason");
    if (view->mode != VIEW_ASKED && message->reason.data == NULL)
        subscriber_fail(subscriber, SIM_TOLD, message, view, "a fresh sync without a reason");
    if (view->mode == VIEW_ASKED && view->is_resuming != is_expired)
        subscriber_fail(subscriber, SIM_TOLD, message, view,
                        view->is_resuming ? "a position is not served, and that is not said"
                                          : "a first sync with a reason");
    if (view->mode == VIEW_ASKED && is_expired)
        check_expired(subscriber, view, message);
}

/* The place a sync tells of: HISTORY_NONE before the first write. */
static int32_t sync_place(const struct sim_subscriber *subscriber, const struct message *message)
{
    if (message->at.seq == 0)
        return history_before_epoch(subscriber->history, message->group, message->at.epoch,
                                    message->sent.life);
    int32_t index =
        history_find(subscriber->history, message->group, message->at.epoch, message->at.seq);
    if (index == HISTORY_NONE)
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "a sync at a seq that never was");
    return index;
}

/* Nothing that the view had was kept: all starts anew, stamps too. */
static bool view_starts_anew(const struct sim_subscriber *subscriber, const struct sim_view *view,
                             const struct message *message)
{
    return !subscriber->history->is_kept && view->life < message->sent.life;
}

static void check_forward(const struct sim_subscriber *subscriber, const struct sim_view *view,
                          const struct message *message)
{
    if (view->mode != VIEW_ASKED && message->index < view->index &&
        !view_starts_anew(subscriber, view, message))
        subscriber_fail(subscriber, SIM_EXACT, message, view, "a sync goes back");
}

static void check_stamp(const struct sim_subscriber *subscriber, const struct sim_view *view,
                        const struct message *message, const struct history_event *event)
{
    if (event != NULL && message->timestamp_ms < event->timestamp_ms)
        subscriber_fail(subscriber, SIM_ORDER, message, view, "a sync is stamped before its seq");
    if (view->mode != VIEW_ASKED && message->timestamp_ms < view->newest_ms &&
        !view_starts_anew(subscriber, view, message))
        subscriber_fail(subscriber, SIM_ORDER, message, view, "a sync's stamp goes back");
}

/* A loss is the socket's: views of the group that are not where this one is now have missed something
 * too, and will be told. `told` NULL: one that was left meanwhile. */
static void subscriber_lose_others(struct sim_subscriber *subscriber, const struct sim_view *told,
                                   const struct message *message)
{
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        struct sim_view *view = &subscriber->views[i];
        if (view != told && view->mode == VIEW_LIVE && view_is_meant(view, message) &&
            !history_is_at(subscriber->history, view->group, view->index, message->index,
                           view->item))
            view->mode = VIEW_STALE;
    }
}

static void subscriber_take_sync(struct sim_subscriber *subscriber, struct message *message)
{
    message->index = sync_place(subscriber, message);
    check_shown(subscriber, message);
    const struct history_event *event =
        message->index == HISTORY_NONE
            ? NULL
            : history_event(subscriber->history, message->group, message->index);
    struct history_state state = {0};
    if (event != NULL)
        state = event->state;
    buffer_clear(&subscriber->text);
    history_state_text(subscriber->history, &state, message->item, &subscriber->text);
    if ((message->at.seq == 0 && state.count > 0) ||
        !span_equal(message->data, buffer_span(&subscriber->text)))
        subscriber_fail(subscriber, SIM_EXACT, message, NULL, "a sync with other data");
    struct sim_view *view = subscriber_find_view(subscriber, message);
    if (view == NULL) {
        if (message->start >= subscriber->left_at[message->group])
            subscriber_fail(subscriber, SIM_EXACT, message, NULL, "a sync nobody asked for");
        if (message->reason.data != NULL && !reason_is(message, "expired"))
            subscriber_lose_others(subscriber, NULL, message);
        return;
    }
    check_reason(subscriber, view, message);
    check_forward(subscriber, view, message);
    check_stamp(subscriber, view, message, event);
    if (view->mode != VIEW_ASKED)
        subscriber_lose_others(subscriber, view, message);
    subscriber->syncs++;
    subscriber->losses += message->reason.data != NULL;
    view->mode = VIEW_LIVE;
    view->pending_count = 0;
    view->is_loose = false;
    view->state = state_of_view(&state, view->item);
    view_move(view, message);
}

static void subscriber_take_resumed(struct sim_subscriber *subscriber, struct message *message)
{
    struct sim_view *view = subscriber_find_view(subscriber, message);
    if (view == NULL) {
        if (message->start >= subscriber->left_at[message->group])
            subscriber_fail(subscriber, SIM_TOLD, message, NULL, "nobody wanted to resume");
        return;
    }
    message->index = view->index;
    if (view->mode != VIEW_ASKED || !view->is_resuming || message->at.epoch != view->at.epoch ||
        message->at.seq != view->at.seq)
        subscriber_fail(subscriber, SIM_TOLD, message, view, "resumed elsewhere");
    check_shown(subscriber, message);
    view->mode = VIEW_LIVE;
    subscriber->resumes++;
}

/* ---- bytes ---- */

/* An envelope; `bytes` with all that is around it. */
static void subscriber_take_json(struct sim_subscriber *subscriber, struct span json, size_t bytes)
{
    struct sim_socket *socket = subscriber->socket;
    struct message message = {.start = socket->taken, .index = HISTORY_NONE};
    message.sent = sim_socket_sent(socket, message.start + bytes);
    if (!message_parse(subscriber, &message, json))
        sim_fail(subscriber->scheduler, SIM_WIRE, "subscriber %u: not an envelope: %.*s",
                 subscriber->index, (int)json.bytes, json.data);
    sim_note(subscriber->scheduler, "subscriber: took", subscriber->index,
             message.group * 16 + message.kind, message.at.seq);
    switch (message.kind) {
    case ENVELOPE_SYNC:
        subscriber_take_sync(subscriber, &message);
        return;
    case ENVELOPE_RESUMED:
        subscriber_take_resumed(subscriber, &message);
        return;
    case ENVELOPE_UNAUTHORIZED:
        subscriber_fail(subscriber, SIM_TOLD, &message, NULL, "refused");
    default:
        subscriber_take_event(subscriber, &message);
    }
}

static void subscriber_take_frame(struct sim_subscriber *subscriber, struct span frame)
{
    size_t header = frame.data[1] == 126 ? 4 : frame.data[1] == 127 ? 10 : 2;
    subscriber_take_json(subscriber, span_of(frame.data + header, frame.bytes - header),
                         frame.bytes);
}

/* A line of a block without its field's name; data NULL: it is another field's. */
static struct span line_of(struct span line, const char *field)
{
    size_t bytes = strlen(field);
    bool is_so = line.bytes >= bytes && memcmp(line.data, field, bytes) == 0;
    return is_so ? span_of(line.data + bytes, line.bytes - bytes) : (struct span){0};
}

/* As an EventSource does it: the id stays that of an earlier block when this one has none. */
static void subscriber_take_block(struct sim_subscriber *subscriber, struct span block)
{
    const struct sim_view *view = &subscriber->views[0];
    struct span rest = block, json = {0};
    bool is_close = false;
    while (rest.bytes > 0) { /* each turn takes a line */
        const char *end = memchr(rest.data, '\n', rest.bytes);
        weir_assert(end != NULL);
        struct span line = span_of(rest.data, (size_t)(end - rest.data));
        rest = span_of(end + 1, rest.bytes - line.bytes - 1);
        struct span id = line_of(line, "id: "), data = line_of(line, "data: ");
        struct span retry = line_of(line, "retry: ");
        if (retry.data != NULL)
            subscriber->retry_ms = strtoull(retry.data, NULL, 10);
        is_close = is_close || line_of(line, "event: close").data != NULL;
        if (id.data != NULL && !event_stream_parse_id(id, &subscriber->last_id))
            sim_fail(subscriber->scheduler, SIM_WIRE, "subscriber %u: not a position: %.*s",
                     subscriber->index, (int)id.bytes, id.data);
        if (data.data != NULL)
            json = data;
    }
    if (is_close)
        return;
    subscriber_take_json(subscriber, json, block.bytes);
    if (view->mode == VIEW_LIVE && view->has_place &&
        (subscriber->last_id.epoch != view->at.epoch || subscriber->last_id.seq != view->at.seq))
        sim_fail(subscriber->scheduler, SIM_EXACT,
                 "subscriber %u: an id of epoch %" PRIu64 " seq %" PRIu64 " at epoch %" PRIu64
                 " seq %" PRIu64,
                 subscriber->index, subscriber->last_id.epoch, subscriber->last_id.seq,
                 view->at.epoch, view->at.seq);
}

/* Of a Close that asks it to come back. */
static void subscriber_take_hint(struct sim_subscriber *subscriber, const struct sim_socket *socket)
{
    static const char hint[] = "retry_ms=";
    const char *at = strstr(socket->close_reason, hint);
    if (socket->close_code != WS_RESTART && socket->close_code != WS_TRY_LATER)
        return;
    if (!subscriber->is_event_stream && at != NULL)
        subscriber->retry_ms = strtoull(at + sizeof hint - 1, NULL, 10);
    if (subscriber->retry_ms == 0)
        sim_fail(subscriber->scheduler, SIM_TOLD,
                 "subscriber %u is sent away with %u, and not told when to come back",
                 subscriber->index, socket->close_code);
    subscriber->back_ms = sim_now_ms(subscriber->scheduler) + subscriber->retry_ms;
    subscriber->sent_away += socket->close_code == WS_RESTART;
}

/* What is left when the socket ends is a cut frame, and is nothing. */
static void subscriber_lose_socket(struct sim_subscriber *subscriber)
{
    struct sim_socket *socket = subscriber->socket;
    subscriber->closed_code = socket->close_code;
    subscriber_take_hint(subscriber, socket);
    sim_note(subscriber->scheduler, "subscriber: closed", subscriber->index, socket->close_code, 0);
    sim_socket_free(socket);
    subscriber->socket = NULL;
}

void sim_subscriber_read(struct sim_subscriber *subscriber, size_t bytes)
{
    struct sim_socket *socket = subscriber->socket;
    if (socket == NULL)
        return;
    bool has_ended = !sim_socket_receive(socket, bytes) && socket->gateway == NULL;
    for (;;) { /* each turn takes a message */
        struct span received = sim_socket_received(socket);
        uint64_t bytes_now = sim_message_bytes(received, socket->subscriber.format);
        if (bytes_now == 0)
            break;
        struct span message = span_of(received.data, bytes_now);
        if (subscriber->is_event_stream)
            subscriber_take_block(subscriber, message);
        else
            subscriber_take_frame(subscriber, message);
        sim_socket_take(socket, bytes_now);
    }
    if (has_ended)
        subscriber_lose_socket(subscriber);
}

/* ---- at rest ---- */

void sim_subscriber_check_complete(const struct sim_subscriber *subscriber)
{
    for (unsigned i = 0; i < SIM_VIEWS; i++) {
        const struct sim_view *view = &subscriber->views[i];
        if (view->mode == VIEW_NONE)
            continue;
        const struct history_group *group = &subscriber->history->groups[view->group];
        struct history_state newest = history_newest_state(subscriber->history, view->group);
        struct history_state state = state_of_view(&newest, view->item);
        bool is_there =
            history_is_at(subscriber->history, view->group, view->index, group->newest, view->item);
        if (view->mode != VIEW_LIVE || !is_there || view->pending_count > 0 ||
            !states_are_alike(&view->state, &state))
            sim_fail(subscriber->scheduler, SIM_COMPLETE,
                     "subscriber %u ends %s at epoch %" PRIu64 " seq %" PRIu64
                     ", place %d of %d of group %u, item %d",
                     subscriber->index, view->mode == VIEW_LIVE ? "live" : "waiting",
                     view->at.epoch, view->at.seq, view->index, group->newest, view->group,
                     view->item);
    }
}

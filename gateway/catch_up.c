#include "gateway/catch_up.h"

#include <stdlib.h>

#include "gateway/conflation.h"
#include "gateway/event_stream.h"
#include "gateway/sends.h"

enum { CLOSE_TOO_SLOW = 1013 };

/* A walk that has begun goes on for this long, so that each gets somewhere: marks stay behind. */
enum { WALK_RECORDS_MIN = 4 * TRAIL_STRIDE };
static_assert(CATCH_UP_WINDOW_EVENTS >= 2 * TRAIL_STRIDE,
              "a window begins anywhere between two marks");

/* Events that were read from the ring, for all links that stand among them. */
struct window {
    uint64_t group_hash, epoch, first_seq;
    uint32_t life; /* 0: none */
    struct run run;
    struct run_event events[CATCH_UP_WINDOW_EVENTS];
    size_t offsets[FORMATS][CATCH_UP_WINDOW_EVENTS + 1];
    struct buffer frames, items, text;
};

struct catch_up {
    struct subscriptions *subscriptions;
    struct outlet outlet;
    struct counters *counters;
    struct mapping *mapping;
    struct sends *sends;
    struct conflation *conflation;
    struct window window;
    uint64_t positions[CATCH_UP_WINDOW_EVENTS]; /* of the window that is being read */
    /* The walks of catch_up_run(), and those for others, who have their turn after it. */
    struct walk_budget own_budget, others_budget, *budget;
    uint64_t turn_bytes;
    unsigned turn_sends;
    /* The last place catch_up_reaches() has found. */
    uint64_t reached_hash, reached_epoch;
    struct trail_mark reached;
    uint32_t reached_life;
};

struct catch_up *catch_up_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                               struct counters *counters)
{
    struct catch_up *catch_up = calloc(1, sizeof *catch_up);
    if (catch_up == NULL)
        return NULL;
    catch_up->subscriptions = subscriptions;
    catch_up->outlet = *outlet;
    catch_up->counters = counters;
    catch_up->budget = &catch_up->own_budget;
    catch_up->own_budget.records_max = catch_up->others_budget.records_max = CATCH_UP_TURN_RECORDS;
    struct window *window = &catch_up->window;
    /* One send, and behind it one more record of the largest size. */
    buffer_init(&window->frames, RING_BYTES_MAX / RING_RECORD_SHARE + 2 * CATCH_UP_SEND_BYTES);
    buffer_init(&window->items, SIZE_MAX / 2);
    buffer_init(&window->text, SIZE_MAX / 2);
    window->run = (struct run){.events = window->events,
                               .offsets = {window->offsets[0], window->offsets[1]},
                               .text = &window->text};
    catch_up->sends = sends_open(subscriptions, outlet, counters);
    catch_up->conflation = conflation_open(subscriptions);
    if (catch_up->sends != NULL && catch_up->conflation != NULL)
        return catch_up;
    catch_up_close(catch_up);
    return NULL;
}

void catch_up_close(struct catch_up *catch_up)
{
    if (catch_up == NULL)
        return;
    conflation_close(catch_up->conflation);
    sends_close(catch_up->sends);
    buffer_fini(&catch_up->window.frames);
    buffer_fini(&catch_up->window.items);
    buffer_fini(&catch_up->window.text);
    free(catch_up);
}

void catch_up_set_mapping(struct catch_up *catch_up, struct mapping *mapping)
{
    catch_up->mapping = mapping;
}

/* How many sends were taken. */
static unsigned catch_up_flush(struct catch_up *catch_up)
{
    catch_up->turn_bytes += sends_bytes(catch_up->sends);
    catch_up->turn_sends += sends_count(catch_up->sends);
    unsigned taken = sends_flush(catch_up->sends);
    counters_add(catch_up->counters, COUNTER_CATCH_UPS, taken);
    return taken;
}

/* ---- where a group's records are ---- */

static uint64_t ring_oldest(const struct ring_reader *ring)
{
    uint64_t published = ring_published(ring);
    return published > ring->capacity_bytes ? published - ring->capacity_bytes : 0;
}

static bool catch_up_knows(const struct catch_up *catch_up, const struct topic *topic)
{
    return trail_is_known(&topic->trail, catch_up->subscriptions->ring_life);
}

/* Ask the store. PENDING: not now. */
static enum weir_status catch_up_look(struct catch_up *catch_up, struct topic *topic)
{
    struct store_group group;
    uint32_t life = catch_up->subscriptions->ring_life;
    counters_add(catch_up->counters, COUNTER_GROUP_READS, 1);
    enum weir_status status =
        store_read_group(catch_up->mapping->store, topic_stream(topic), topic_group(topic), &group);
    if (status != WEIR_OK && status != WEIR_EMPTY)
        return WEIR_PENDING;
    struct trail_mark newest = {status == WEIR_OK ? group.seq : 0, RING_NO_POSITION};
    struct ring_record record;
    if (status == WEIR_OK && group.newest_position != RING_NO_POSITION) {
        status = ring_read_at(&catch_up->mapping->ring, group.newest_position, &record, NULL);
        if (status == WEIR_PENDING)
            return WEIR_PENDING; /* the feed will say when it reads it */
        if (status == WEIR_OK && record.epoch == group.epoch && record.group_hash == topic->hash)
            newest = (struct trail_mark){record.seq, record.position};
    }
    trail_begin(&topic->trail, life, group.epoch, newest);
    return WEIR_OK;
}

/* Is `place` ahead of all that is known of the topic? The feed may not have read that far yet. */
static bool trail_is_behind(const struct trail *trail, struct cursor place)
{
    return trail->epoch < place.epoch ||
           (trail->epoch == place.epoch && trail->newest.seq < place.seq);
}

/* Know the topic's newest event; `must_see`: ask the store when what is known does not go that far. */
static enum weir_status catch_up_find(struct catch_up *catch_up, struct topic *topic,
                                      const struct cursor *must_see)
{
    bool is_known = catch_up_knows(catch_up, topic);
    if (is_known && (must_see == NULL || !trail_is_behind(&topic->trail, *must_see)))
        return WEIR_OK;
    return catch_up_look(catch_up, topic);
}

/* Walk back to event `from`, which is not newer than the newest; the positions of the window that
 * begins there are kept, and *end is behind the last of them. EMPTY: the ring does not lead there.
 * PENDING: it was looked at enough for this turn. */
static enum weir_status catch_up_walk(struct catch_up *catch_up, struct topic *topic, uint64_t from,
                                      uint64_t *end)
{
    struct trail *trail = &topic->trail;
    struct walk_budget *budget = catch_up->budget;
    const struct ring_reader *ring = &catch_up->mapping->ring;
    uint64_t last = from + TRAIL_STRIDE - 1, oldest = ring_oldest(ring);
    if (from <= trail->lost_seq)
        return WEIR_EMPTY;
    struct trail_mark at = trail_find(trail, last < trail->newest.seq ? last : trail->newest.seq);
    *end = at.seq + 1 < from + CATCH_UP_WINDOW_EVENTS ? at.seq + 1 : from + CATCH_UP_WINDOW_EVENTS;
    for (;; at.seq--) { /* ends at `from` */
        struct ring_record record;
        if (budget->records >= budget->records_max + WALK_RECORDS_MIN)
            return WEIR_PENDING;
        budget->records++;
        enum weir_status status = ring_read_at(ring, at.position, &record, NULL);
        if (status == WEIR_PENDING)
            return WEIR_PENDING;
        if (status != WEIR_OK || record.group_hash != topic->hash || record.epoch != trail->epoch ||
            record.seq != at.seq) {
            trail->lost_seq = at.seq;
            return WEIR_EMPTY;
        }
        trail_pass(trail, at, oldest);
        if (at.seq - from < CATCH_UP_WINDOW_EVENTS)
            catch_up->positions[at.seq - from] = at.position;
        if (at.seq == from)
            return WEIR_OK;
        at.position = record.previous_position;
    }
}

/* ---- windows ---- */

static bool window_is_of(const struct catch_up *catch_up, const struct topic *topic)
{
    const struct window *window = &catch_up->window;
    return window->life == catch_up->subscriptions->ring_life &&
           window->group_hash == topic->hash && window->epoch == topic->trail.epoch;
}

static bool window_has(const struct catch_up *catch_up, const struct topic *topic, uint64_t seq)
{
    const struct window *window = &catch_up->window;
    return window_is_of(catch_up, topic) && seq >= window->first_seq &&
           seq - window->first_seq < window->run.count;
}

/* Append the event at `position`. */
static enum weir_status window_read(struct window *window, const struct ring_reader *ring,
                                    uint64_t position, uint64_t seq)
{
    struct ring_record record;
    struct run *run = &window->run;
    size_t start = window->frames.bytes, item_start = window->items.bytes;
    enum weir_status status = ring_read_at(ring, position, &record, &window->frames);
    if (status != WEIR_OK)
        return status;
    weir_assert(record.seq == seq);
    uint64_t id_bytes = ring_record_id_bytes(&record);
    status = buffer_append(&window->items,
                           span_of(window->frames.data + start + record.frame_bytes, id_bytes));
    window->frames.bytes = start;
    if (status != WEIR_OK)
        return status;
    window->frames.bytes += record.frame_bytes;
    /* Offsets for now: the bytes may move. */
    window->events[run->count] = (struct run_event){
        record.epoch, seq,
        record.id_bytes == UINT32_MAX ? (struct span){0, SIZE_MAX}
                                      : span_of((const char *)(uintptr_t)item_start, id_bytes)};
    run->count++;
    window->offsets[FORMAT_WEBSOCKET][run->count] = window->frames.bytes;
    return WEIR_OK;
}

static void window_place_items(struct window *window)
{
    for (uint32_t i = 0; i < window->run.count; i++) {
        struct span *item = &window->events[i].item;
        if (item->bytes == SIZE_MAX)
            *item = (struct span){0};
        else if (item->bytes == 0)
            *item = SPAN_LITERAL("");
        else
            *item = span_of(window->items.data + (uintptr_t)item->data, item->bytes);
    }
}

/* Read the window that begins with event `from`. As catch_up_walk(). */
static enum weir_status window_load(struct catch_up *catch_up, struct topic *topic, uint64_t from)
{
    struct window *window = &catch_up->window;
    uint64_t end;
    enum weir_status status = catch_up_walk(catch_up, topic, from, &end);
    if (status != WEIR_OK)
        return status;
    window->life = 0;
    window->run.count = 0;
    window->run.bytes[FORMAT_EVENT_STREAM] = NULL;
    buffer_clear(&window->frames);
    buffer_clear(&window->items);
    buffer_clear(&window->text);
    for (uint64_t seq = from; seq < end && window->frames.bytes < CATCH_UP_SEND_BYTES; seq++) {
        catch_up->budget->records++;
        if (window_read(window, &catch_up->mapping->ring, catch_up->positions[seq - from], seq) !=
            WEIR_OK)
            break; /* lapped between the walk and now, or no memory */
    }
    if (window->run.count == 0)
        return WEIR_EMPTY;
    window_place_items(window);
    window->run.bytes[FORMAT_WEBSOCKET] = window->frames.data;
    window->run.text_room =
        window->frames.bytes + (size_t)window->run.count * EVENT_STREAM_EXTRA_BYTES_MAX;
    window->group_hash = topic->hash;
    window->epoch = topic->trail.epoch;
    window->first_seq = from;
    window->life = catch_up->subscriptions->ring_life;
    return WEIR_OK;
}

/* ---- the ladder ---- */

/* What serving a link has come to. */
enum outcome {
    OUTCOME_CURRENT, /* it has all there is, or all up to the limit */
    OUTCOME_SENT,    /* in the batch, or moved: the batch does the rest */
    OUTCOME_WAIT,    /* not now */
    OUTCOME_WALK,    /* the same, and it is to be the next when there is a budget again */
    OUTCOME_LOST,    /* it starts anew, or is closed */
};

static enum outcome catch_up_disconnect(struct catch_up *catch_up, struct subscriber *subscriber)
{
    void *connection = subscriber->connection;
    subscriptions_stop(catch_up->subscriptions, subscriber);
    counters_add(catch_up->counters, COUNTER_SUBSCRIBERS_TOO_SLOW, 1);
    catch_up->outlet.close(catch_up->outlet.context, connection, CLOSE_TOO_SLOW, "too far behind");
    return OUTCOME_LOST;
}

/* The ring does not lead to where the link stands. */
static enum outcome catch_up_lose(struct catch_up *catch_up, struct subscriber_link *link)
{
    if (link->policy == SLOW_DISCONNECT && link->resumed == LINK_NOT_RESUMED)
        return catch_up_disconnect(catch_up, link->subscriber);
    subscriptions_resync(catch_up->subscriptions, link, subscriptions_loss_reason(link));
    return OUTCOME_LOST;
}

static enum outcome catch_up_put_off(struct catch_up *catch_up, struct subscriber_link *link,
                                     enum weir_status status)
{
    if (status == WEIR_PENDING)
        return OUTCOME_WAIT;
    return catch_up_lose(catch_up, link);
}

/* Every event, as many as one window has, up to `target`. */
static enum outcome catch_up_all(struct catch_up *catch_up, struct subscriber_link *link,
                                 uint64_t target, bool stays)
{
    struct window *window = &catch_up->window;
    uint64_t from = link->sent_seq + 1;
    if (!window_has(catch_up, link->topic, from)) {
        (void)catch_up_flush(catch_up); /* the open batch points to the window's bytes */
        enum weir_status status = window_load(catch_up, link->topic, from);
        if (status != WEIR_OK)
            return catch_up_put_off(catch_up, link, status);
    }
    link->resumed = LINK_NOT_RESUMED; /* the ring leads to where it stands */
    uint64_t end = window->first_seq + window->run.count;
    if (end > target + 1)
        end = target + 1;
    enum send_then then = end == target + 1 ? SEND_LIVE : SEND_BEHIND;
    bool has_memory =
        sends_add_run(catch_up->sends, &window->run, (uint32_t)(from - window->first_seq),
                      (uint32_t)(end - window->first_seq), link, stays ? SEND_STAYS : then);
    return has_memory ? OUTCOME_SENT : OUTCOME_WAIT;
}

/* The next piece of the newest events of each item. */
static enum outcome catch_up_newest(struct catch_up *catch_up, struct subscriber_link *link)
{
    const struct ring_reader *ring = &catch_up->mapping->ring;
    struct trail *trail = &link->topic->trail;
    bool has_begun = link->conflated > 0;
    struct conflation_range range = {
        .topic = link->topic,
        .since = link->sent_seq - link->conflated,
        .sent = link->sent_seq,
        .until = has_begun ? link->sent_seq + link->conflated_left : trail->newest.seq,
    };
    if (range.until - range.since > CONFLATION_EVENTS_MAX) /* what came after a greeting is next */
        range.until = range.since + CONFLATION_EVENTS_MAX;
    uint64_t before = catch_up->budget->records;
    enum weir_status status =
        conflation_walk(catch_up->conflation, ring, &range, !has_begun, catch_up->budget);
    if (status == WEIR_PENDING)
        return OUTCOME_WALK;
    if (catch_up->budget->records > before) /* others want it too, before it is another group's */
        subscriptions_gather_behind(catch_up->subscriptions, link->topic);
    if (status == WEIR_OK && !conflation_has_piece(catch_up->conflation, &range, link)) {
        (void)catch_up_flush(catch_up); /* the open batch points to the piece's bytes */
        status = conflation_fill(catch_up->conflation, ring, &range, link, CATCH_UP_SEND_BYTES,
                                 catch_up->budget);
    }
    struct conflation_piece piece;
    if (status == WEIR_OK)
        status = conflation_piece(catch_up->conflation, link->subscriber->format, &piece);
    if (status != WEIR_OK)
        return catch_up_lose(catch_up, link);
    link->resumed = LINK_NOT_RESUMED;
    bool is_all = piece.sent == range.until;
    const struct send send = {
        .link = link,
        .epoch = link->epoch,
        .seq = piece.sent,
        .conflated = is_all ? 0 : (uint16_t)(piece.sent - range.since),
        .conflated_left = is_all ? 0 : (uint16_t)(range.until - piece.sent),
        .left_out = (uint16_t)piece.left_out,
        .begins_conflation = !has_begun,
        .then = is_all && range.until == trail->newest.seq ? SEND_LIVE : SEND_BEHIND,
    };
    const struct iovec frames = {(void *)(uintptr_t)piece.bytes.data, piece.bytes.bytes};
    if (piece.bytes.bytes == 0) {
        sends_arrive(catch_up->sends, &send);
        return OUTCOME_SENT;
    }
    return sends_add(catch_up->sends, &send, &frames, 1) ? OUTCOME_SENT : OUTCOME_WAIT;
}

/* Where the link stands in its group: OUTCOME_WAIT: it is behind. */
static enum outcome catch_up_compare(struct catch_up *catch_up, struct subscriber_link *link)
{
    const struct trail *trail = &link->topic->trail;
    const struct cursor at = {link->epoch, link->sent_seq + link->conflated_left};
    /* Within one life of the broker a link cannot have seen what its group has not, but a group looks
     * older when its record was dropped and a next life is not there yet. */
    if (trail_is_behind(trail, at))
        return link->resumed == LINK_NOT_RESUMED ? OUTCOME_CURRENT : catch_up_lose(catch_up, link);
    if (trail->epoch != link->epoch)
        return catch_up_lose(catch_up, link);
    return trail->newest.seq == link->sent_seq ? OUTCOME_CURRENT : OUTCOME_WAIT;
}

/* Up to event `limit`; `stays`: the link's mode is the caller's. */
static enum outcome catch_up_serve(struct catch_up *catch_up, struct subscriber_link *link,
                                   uint64_t limit, bool stays)
{
    struct topic *topic = link->topic;
    const struct cursor own = {link->epoch, link->sent_seq + link->conflated_left};
    const struct cursor limited = {link->epoch, limit};
    const struct cursor *must_see = link->resumed != LINK_NOT_RESUMED ? &own : NULL;
    if (catch_up_find(catch_up, topic, limit == UINT64_MAX ? must_see : &limited) != WEIR_OK)
        return OUTCOME_WAIT;
    if (limit <= link->sent_seq)
        return OUTCOME_CURRENT;
    enum outcome outcome = catch_up_compare(catch_up, link);
    if (outcome != OUTCOME_WAIT)
        return outcome;
    uint64_t newest = topic->trail.newest.seq;
    uint64_t lag = newest - (link->sent_seq - link->conflated);
    if (link->conflated == 0 && (lag <= link->lag_events || link->policy == SLOW_LOSSLESS))
        return catch_up_all(catch_up, link, newest < limit ? newest : limit, stays);
    if (limit != UINT64_MAX)
        return OUTCOME_WAIT;
    if (link->policy == SLOW_DISCONNECT)
        return catch_up_disconnect(catch_up, link->subscriber);
    /* Who was greeted is given what was promised, whatever has come since. */
    if (link->conflated == 0 && lag > CONFLATION_EVENTS_MAX &&
        link->resumed != LINK_RESUMED_BY_CLIENT)
        return catch_up_lose(catch_up, link);
    return catch_up_newest(catch_up, link);
}

/* ---- for others ---- */

enum weir_status catch_up_link(struct catch_up *catch_up, struct subscriber_link *link,
                               uint64_t seq_limit)
{
    if (catch_up->mapping == NULL || link->conflated > 0 ||
        catch_up->others_budget.records >= CATCH_UP_TURN_RECORDS)
        return WEIR_PENDING;
    if (link->is_blocked)
        return WEIR_AGAIN;
    catch_up->budget = &catch_up->others_budget;
    enum outcome outcome = catch_up_serve(catch_up, link, seq_limit, true);
    (void)catch_up_flush(catch_up);
    catch_up->budget = &catch_up->own_budget;
    if (outcome == OUTCOME_CURRENT)
        return WEIR_OK;
    if (outcome == OUTCOME_LOST)
        return WEIR_LAPPED;
    if (link->is_blocked)
        return WEIR_AGAIN;
    uint64_t newest = link->topic->trail.newest.seq;
    return link->sent_seq == (newest < seq_limit ? newest : seq_limit) ? WEIR_OK : WEIR_PENDING;
}

/* Is the place that was reached last on the way from event `from` to the newest, and there still? */
static bool catch_up_has_reached(struct catch_up *catch_up, const struct topic *topic,
                                 uint64_t from)
{
    struct ring_record record;
    if (catch_up->reached_life != catch_up->subscriptions->ring_life ||
        catch_up->reached_hash != topic->hash || catch_up->reached_epoch != topic->trail.epoch ||
        from < catch_up->reached.seq)
        return false;
    catch_up->others_budget.records++;
    return ring_read_at(&catch_up->mapping->ring, catch_up->reached.position, &record, NULL) ==
           WEIR_OK;
}

/* Is a link that far behind given what it has missed, if the ring has it? */
static bool catch_up_may_serve(const struct subscriber_link *link, uint64_t lag)
{
    if (lag <= link->lag_events || link->policy == SLOW_LOSSLESS)
        return true;
    return link->policy == SLOW_LATEST && lag <= CONFLATION_EVENTS_MAX;
}

enum weir_status catch_up_reaches(struct catch_up *catch_up, const struct subscriber_link *link,
                                  struct cursor cursor)
{
    struct topic *topic = link->topic;
    const struct trail *trail = &topic->trail;
    uint64_t end;
    if (catch_up->mapping == NULL || catch_up_find(catch_up, topic, &cursor) != WEIR_OK)
        return WEIR_PENDING;
    if (trail->epoch != cursor.epoch || trail->newest.seq < cursor.seq ||
        !catch_up_may_serve(link, trail->newest.seq - cursor.seq))
        return WEIR_EMPTY;
    if (trail->newest.seq == cursor.seq || catch_up_has_reached(catch_up, topic, cursor.seq + 1))
        return WEIR_OK;
    if (catch_up->others_budget.records >= CATCH_UP_TURN_RECORDS)
        return WEIR_PENDING;
    catch_up->budget = &catch_up->others_budget;
    enum weir_status status = catch_up_walk(catch_up, topic, cursor.seq + 1, &end);
    catch_up->budget = &catch_up->own_budget;
    if (status != WEIR_OK)
        return status;
    catch_up->reached_life = catch_up->subscriptions->ring_life;
    catch_up->reached_hash = topic->hash;
    catch_up->reached_epoch = trail->epoch;
    catch_up->reached = (struct trail_mark){cursor.seq + 1, catch_up->positions[0]};
    return WEIR_OK;
}

/* ---- the behind queue ---- */

static bool catch_up_is_spent(const struct catch_up *catch_up)
{
    return catch_up->own_budget.records >= CATCH_UP_TURN_RECORDS ||
           catch_up->turn_bytes + sends_bytes(catch_up->sends) >= CATCH_UP_TURN_BYTES ||
           catch_up->turn_sends + sends_count(catch_up->sends) >= CATCH_UP_TURN_SENDS;
}

static void catch_up_serve_next(struct catch_up *catch_up, struct subscriber_link *link)
{
    switch (catch_up_serve(catch_up, link, UINT64_MAX, false)) {
    case OUTCOME_CURRENT:
        subscriptions_set_live(catch_up->subscriptions, link);
        break;
    case OUTCOME_WAIT:
        subscriptions_push_behind(catch_up->subscriptions, link);
        break;
    case OUTCOME_WALK:
        subscriptions_push_behind_first(catch_up->subscriptions, link);
        break;
    case OUTCOME_SENT:
    case OUTCOME_LOST:
        break;
    }
}

bool catch_up_run(struct catch_up *catch_up)
{
    struct subscriptions *subscriptions = catch_up->subscriptions;
    catch_up->own_budget.records = catch_up->others_budget.records = 0;
    catch_up->turn_bytes = catch_up->turn_sends = 0;
    if (catch_up->mapping == NULL)
        return false;
    size_t todo = subscriptions->behind_count;
    while (todo > 0 && !catch_up_is_spent(catch_up)) { /* the budget is the bound */
        struct subscriber_link *link = subscriptions_pop_behind(subscriptions);
        if (link == NULL)
            break;
        todo--;
        if (!link->is_held) /* or it comes back when it is let go */
            catch_up_serve_next(catch_up, link);
        /* Those that move and are not there yet go round again. */
        if (todo == 0 && catch_up_flush(catch_up) > 0)
            todo = subscriptions->behind_count;
    }
    (void)catch_up_flush(catch_up);
    return catch_up_is_spent(catch_up) && subscriptions->behind_count > 0;
}

#include "gateway/fanout.h"

#include <stdlib.h>

#include "gateway/event_stream.h"
#include "gateway/sends.h"

struct fanout {
    struct subscriptions *subscriptions;
    struct sends *sends;
    struct buffer merged;     /* the frames of topics with several events, in order, back to back */
    struct buffer text;       /* events as event streams have them */
    struct run_event *events; /* of one topic's run */
    size_t *offsets[FORMATS];
};

struct fanout *fanout_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                           struct counters *counters)
{
    struct fanout *fanout = calloc(1, sizeof *fanout);
    if (fanout == NULL)
        return NULL;
    fanout->subscriptions = subscriptions;
    buffer_init(&fanout->merged, SIZE_MAX / 2);
    buffer_init(&fanout->text, SIZE_MAX / 2);
    fanout->sends = sends_open(subscriptions, outlet, counters);
    fanout->events = malloc(FEED_TURN_RECORDS * sizeof *fanout->events);
    bool has_all = fanout->sends != NULL && fanout->events != NULL;
    for (unsigned i = 0; i < FORMATS; i++) {
        fanout->offsets[i] = malloc((FEED_TURN_RECORDS + 1) * sizeof *fanout->offsets[i]);
        has_all = has_all && fanout->offsets[i] != NULL;
    }
    if (has_all)
        return fanout;
    fanout_close(fanout);
    return NULL;
}

void fanout_close(struct fanout *fanout)
{
    if (fanout == NULL)
        return;
    buffer_fini(&fanout->merged);
    buffer_fini(&fanout->text);
    sends_close(fanout->sends);
    free(fanout->events);
    for (unsigned i = 0; i < FORMATS; i++)
        free(fanout->offsets[i]);
    free(fanout);
}

/* The first event the link has not seen; run->count when it has seen all. */
static uint32_t run_start(const struct run *run, const struct subscriber_link *link)
{
    uint32_t index = 0;
    while (index < run->count) {
        const struct run_event *event = &run->events[index];
        if (event->epoch > link->epoch ||
            (event->epoch == link->epoch && event->seq > link->sent_seq))
            break;
        index++;
    }
    return index;
}

static bool seq_follows(uint64_t epoch, uint64_t seq, const struct run_event *next)
{
    return (next->epoch == epoch && next->seq == seq + 1) ||
           (next->epoch > epoch && next->seq == 1);
}

/* The same for the next link, which most often stands where the last one did. NOWHERE: there is a gap
 * before it. */
struct run_place {
    uint64_t epoch, seq;
    uint32_t start;
};
#define NOWHERE UINT32_MAX

static void place_find(struct run_place *place, const struct run *run,
                       const struct subscriber_link *link)
{
    if (link->sent_seq == place->seq && link->epoch == place->epoch)
        return;
    place->epoch = link->epoch;
    place->seq = link->sent_seq;
    place->start = run_start(run, link);
    if (place->start < run->count &&
        !seq_follows(link->epoch, link->sent_seq, &run->events[place->start]))
        place->start = NOWHERE;
}

static void fanout_deliver(struct fanout *fanout, struct run *run, struct run_place *place,
                           struct subscriber_link *link)
{
    if (link->mode != DELIVERY_LIVE || link->is_held)
        return;
    place_find(place, run, link);
    if (place->start == run->count)
        return;
    if (place->start == NOWHERE ||
        !sends_add_run(fanout->sends, run, place->start, run->count, link, SEND_STAYS))
        subscriptions_set_behind(fanout->subscriptions, link);
}

/* The frames back to back: in place when there is one, else copied once. */
static void fanout_lay_frame(struct fanout *fanout, struct run *run, struct span frame)
{
    size_t *offsets = run->offsets[FORMAT_WEBSOCKET];
    struct buffer *merged = &fanout->merged;
    if (run->count == 0) {
        run->bytes[FORMAT_WEBSOCKET] = frame.data;
        offsets[0] = 0;
        offsets[1] = frame.bytes;
        return;
    }
    if (run->count == 1) {
        char *to = merged->data + merged->bytes;
        memcpy(to, run->bytes[FORMAT_WEBSOCKET], offsets[1]);
        run->bytes[FORMAT_WEBSOCKET] = to;
        merged->bytes += offsets[1];
    }
    memcpy(merged->data + merged->bytes, frame.data, frame.bytes);
    merged->bytes += frame.bytes;
    offsets[run->count + 1] = offsets[run->count] + frame.bytes;
}

/* Lay the topic's events out. False: there is a gap inside, a fault of the ring: nothing from there on
 * may be sent as if it followed. */
static bool fanout_lay_out(struct fanout *fanout, const struct feed *feed, uint32_t first_entry,
                           struct run *run)
{
    struct run_event *events = fanout->events;
    for (uint32_t i = first_entry; i != TOPIC_NO_ENTRY; i = feed->entries[i].next) {
        const struct feed_entry *entry = &feed->entries[i];
        const struct run_event event = {entry->epoch, entry->seq, feed_item(feed, entry)};
        if (run->count > 0 &&
            !seq_follows(events[run->count - 1].epoch, events[run->count - 1].seq, &event))
            return false;
        fanout_lay_frame(fanout, run, feed_frame(feed, entry));
        events[run->count++] = event;
    }
    return true;
}

static void fanout_topic(struct fanout *fanout, const struct feed *feed, struct topic *topic,
                         uint32_t first_entry)
{
    struct run run = {
        .events = fanout->events,
        .offsets = {fanout->offsets[0], fanout->offsets[1]},
        .text = &fanout->text,
        .text_room = feed->bytes.bytes + (size_t)feed->entry_count * EVENT_STREAM_EXTRA_BYTES_MAX,
    };
    struct run_place place = {0, 0, NOWHERE}; /* no link stands in epoch 0 */
    bool is_whole = fanout_lay_out(fanout, feed, first_entry, &run);
    for (uint32_t i = 0; i < topic->link_count; i++)
        fanout_deliver(fanout, &run, &place, topic->links[i]);
    if (is_whole)
        return;
    for (uint32_t i = 0; i < topic->link_count; i++)
        subscriptions_set_behind(fanout->subscriptions, topic->links[i]);
}

double fanout_run(struct fanout *fanout, struct feed *feed, uint64_t now_ns)
{
    double links = 0, events_per_s = 0;
    if (feed->touched == NULL) {
        feed_clear(feed);
        return 0;
    }
    buffer_clear(&fanout->merged);
    buffer_clear(&fanout->text);
    bool has_room = buffer_reserve(&fanout->merged, feed->bytes.bytes) == WEIR_OK;
    uint32_t first_entry, entry_count;
    struct topic *topic;
    while ((topic = feed_pop_topic(feed, &first_entry, &entry_count)) != NULL) {
        pace_note(&topic->pace, entry_count, now_ns);
        links += topic->link_count;
        events_per_s += topic->link_count * topic->pace.per_s;
        if (has_room || entry_count == 1) {
            fanout_topic(fanout, feed, topic, first_entry);
            continue;
        }
        for (uint32_t i = 0; i < topic->link_count; i++) /* no memory: from the ring, bit by bit */
            subscriptions_set_behind(fanout->subscriptions, topic->links[i]);
    }
    (void)sends_flush(fanout->sends);
    feed_clear(feed);
    return links > 0 ? events_per_s / links : 0;
}

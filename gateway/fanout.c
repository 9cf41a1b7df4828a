#include "gateway/fanout.h"

#include <stdlib.h>

enum { BLOCK_ENTRIES = 4096, BLOCKS_MAX = 4096, FRAMES_MAX = 16 };

/* One send of the batch: where the link will be once it has been taken. */
struct fanout_entry {
    struct subscriber_link *link; /* NULL: the socket has gone meanwhile */
    uint64_t epoch, seq;
    size_t bytes;
    bool has_more; /* not all events fitted one send; the rest comes by catching up */
};

struct fanout {
    struct subscriptions *subscriptions;
    struct outlet outlet;
    struct counters *counters;
    struct fanout_entry *
        blocks[BLOCKS_MAX]; /* in blocks, for a send in the batch holds on to its entry's address */
    unsigned block_count;
    unsigned entry_count;
    struct buffer merged;  /* the frames of topics with several events, in order, back to back */
    uint32_t *chain;       /* the topic's feed entries, in order */
    size_t *chain_offsets; /* where each frame starts in `merged` */
};

struct fanout *fanout_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                           struct counters *counters)
{
    struct fanout *fanout = calloc(1, sizeof *fanout);
    if (fanout == NULL)
        return NULL;
    fanout->subscriptions = subscriptions;
    fanout->outlet = *outlet;
    fanout->counters = counters;
    buffer_init(&fanout->merged, SIZE_MAX / 2);
    fanout->chain = malloc(FEED_TURN_RECORDS * sizeof *fanout->chain);
    fanout->chain_offsets = malloc((FEED_TURN_RECORDS + 1) * sizeof *fanout->chain_offsets);
    if (fanout->chain == NULL || fanout->chain_offsets == NULL) {
        fanout_close(fanout);
        return NULL;
    }
    return fanout;
}

void fanout_close(struct fanout *fanout)
{
    if (fanout == NULL)
        return;
    buffer_fini(&fanout->merged);
    for (unsigned i = 0; i < fanout->block_count; i++)
        free(fanout->blocks[i]);
    free(fanout->chain);
    free(fanout->chain_offsets);
    free(fanout);
}

static struct fanout_entry *fanout_entry_at(const struct fanout *fanout, unsigned index)
{
    return &fanout->blocks[index / BLOCK_ENTRIES][index % BLOCK_ENTRIES];
}

void fanout_forget(struct fanout *fanout, const struct subscriber *subscriber)
{
    for (unsigned i = 0; i < fanout->entry_count; i++) {
        struct fanout_entry *entry = fanout_entry_at(fanout, i);
        if (entry->link != NULL && entry->link->subscriber == subscriber)
            entry->link = NULL;
    }
}

static void on_sent(void *context, void *entry_pointer, enum weir_status status)
{
    struct fanout *fanout = context;
    struct fanout_entry *entry = entry_pointer;
    struct subscriber_link *link = entry->link;
    if (link == NULL)
        return;
    if (status == WEIR_OK) {
        link->epoch = entry->epoch;
        link->sent_seq = entry->seq;
        counters_add(fanout->counters, COUNTER_DELIVERIES, 1);
        counters_add(fanout->counters, COUNTER_DELIVERY_BYTES, entry->bytes);
        if (entry->has_more)
            subscriptions_set_behind(fanout->subscriptions, link);
        return;
    }
    counters_add(fanout->counters, COUNTER_DELIVERIES_BUSY, 1);
    subscriptions_block(fanout->subscriptions, link);
}

static void fanout_flush(struct fanout *fanout)
{
    if (fanout->entry_count > 0)
        fanout->outlet.flush(fanout->outlet.context, on_sent, fanout);
    fanout->entry_count = 0;
}

/* A fresh entry for a send, or NULL when memory is exhausted: the link then catches up later. */
static struct fanout_entry *fanout_take_entry(struct fanout *fanout)
{
    unsigned block = fanout->entry_count / BLOCK_ENTRIES;
    if (block == fanout->block_count) {
        if (block == BLOCKS_MAX)
            return NULL;
        fanout->blocks[block] = malloc(BLOCK_ENTRIES * sizeof(struct fanout_entry));
        if (fanout->blocks[block] == NULL)
            return NULL;
        fanout->block_count++;
    }
    return fanout_entry_at(fanout, fanout->entry_count++);
}

static void fanout_add(struct fanout *fanout, const struct fanout_entry *send,
                       const struct iovec *frames, unsigned frame_count)
{
    struct fanout_entry *entry = fanout_take_entry(fanout);
    if (entry == NULL) {
        subscriptions_set_behind(fanout->subscriptions, send->link);
        return;
    }
    *entry = *send;
    for (unsigned i = 0; i < frame_count; i++)
        entry->bytes += frames[i].iov_len;
    fanout->outlet.add(fanout->outlet.context, send->link->subscriber->connection, frames,
                       frame_count, entry);
}

/* One topic's events of this turn. */
struct fanout_run {
    const struct feed *feed;
    const uint32_t *chain;
    uint32_t count;
    const char *merged; /* all frames back to back; offsets[i] .. offsets[count] */
    const size_t *offsets;
};

static const struct feed_entry *run_entry(const struct fanout_run *run, uint32_t index)
{
    return &run->feed->entries[run->chain[index]];
}

/* The first event the link has not seen; run->count when it has seen all. */
static uint32_t run_start(const struct fanout_run *run, const struct subscriber_link *link)
{
    uint32_t index = 0;
    while (index < run->count) {
        const struct feed_entry *entry = run_entry(run, index);
        if (entry->epoch > link->epoch ||
            (entry->epoch == link->epoch && entry->seq > link->sent_seq))
            break;
        index++;
    }
    return index;
}

static bool seq_follows(uint64_t epoch, uint64_t seq, uint64_t next_epoch, uint64_t next_seq)
{
    return (next_epoch == epoch && next_seq == seq + 1) || (next_epoch > epoch && next_seq == 1);
}

/* A gap inside the run itself would be a fault of the ring: nothing from there on may be sent as if
 * it followed. */
static uint32_t run_end(const struct fanout_run *run)
{
    for (uint32_t i = 1; i < run->count; i++) {
        const struct feed_entry *before = run_entry(run, i - 1);
        const struct feed_entry *entry = run_entry(run, i);
        if (!seq_follows(before->epoch, before->seq, entry->epoch, entry->seq))
            return i;
    }
    return run->count;
}

static void fanout_deliver_all(struct fanout *fanout, const struct fanout_run *run,
                               struct subscriber_link *link, uint32_t start)
{
    struct iovec frames = {
        .iov_base = (void *)(uintptr_t)(run->merged + run->offsets[start]),
        .iov_len = run->offsets[run->count] - run->offsets[start],
    };
    const struct feed_entry *last = run_entry(run, run->count - 1);
    struct fanout_entry send = {.link = link, .epoch = last->epoch, .seq = last->seq};
    fanout_add(fanout, &send, &frames, 1);
}

/* A selection by item, or several copies of each. What does not fit one send follows by catching
 * up. */
static void fanout_deliver_some(struct fanout *fanout, const struct fanout_run *run,
                                struct subscriber_link *link, uint32_t start)
{
    struct iovec frames[FRAMES_MAX];
    unsigned frame_count = 0;
    uint64_t epoch = link->epoch, seq = link->sent_seq;
    bool has_more = false;
    unsigned frames_max =
        fanout->outlet.frames_max < FRAMES_MAX ? fanout->outlet.frames_max : FRAMES_MAX;
    for (uint32_t i = start; i < run->count; i++) {
        const struct feed_entry *event = run_entry(run, i);
        unsigned copies =
            subscriptions_copies(fanout->subscriptions, link, feed_item(run->feed, event));
        if (copies > frames_max - frame_count) {
            has_more = true;
            break;
        }
        for (unsigned k = 0; k < copies; k++) {
            struct span frame = feed_frame(run->feed, event);
            frames[frame_count++] = (struct iovec){(void *)(uintptr_t)frame.data, frame.bytes};
        }
        epoch = event->epoch;
        seq = event->seq;
    }
    if (frame_count == 0) { /* nothing concerns it, or one event alone has too many copies */
        link->epoch = epoch;
        link->sent_seq = seq;
        if (has_more)
            subscriptions_set_behind(fanout->subscriptions, link);
        return;
    }
    struct fanout_entry send = {.link = link, .epoch = epoch, .seq = seq, .has_more = has_more};
    fanout_add(fanout, &send, frames, frame_count);
}

static void fanout_deliver(struct fanout *fanout, const struct fanout_run *run,
                           struct subscriber_link *link)
{
    if (link->mode != DELIVERY_LIVE || link->is_held)
        return;
    uint32_t start = run_start(run, link);
    if (start == run->count)
        return;
    const struct feed_entry *first = run_entry(run, start);
    if (!seq_follows(link->epoch, link->sent_seq, first->epoch, first->seq)) {
        subscriptions_set_behind(fanout->subscriptions, link);
        return;
    }
    if (subscriptions_takes_all(fanout->subscriptions, link))
        fanout_deliver_all(fanout, run, link, start);
    else
        fanout_deliver_some(fanout, run, link, start);
}

/* Lay the topic's frames out back to back: in place when there is one, else copied once. */
static void fanout_lay_out(struct fanout *fanout, struct fanout_run *run)
{
    struct span first = feed_frame(run->feed, run_entry(run, 0));
    fanout->chain_offsets[0] = 0;
    run->offsets = fanout->chain_offsets;
    run->merged = first.data;
    fanout->chain_offsets[1] = first.bytes;
    if (run->count == 1)
        return;
    size_t start = fanout->merged.bytes;
    for (uint32_t i = 0; i < run->count; i++) {
        struct span frame = feed_frame(run->feed, run_entry(run, i));
        memcpy(fanout->merged.data + fanout->merged.bytes, frame.data, frame.bytes);
        fanout->merged.bytes += frame.bytes;
        fanout->chain_offsets[i + 1] = fanout->merged.bytes - start;
    }
    run->merged = fanout->merged.data + start;
}

static void fanout_topic(struct fanout *fanout, const struct feed *feed, struct topic *topic,
                         uint32_t first_entry)
{
    struct fanout_run run = {.feed = feed, .chain = fanout->chain};
    for (uint32_t i = first_entry; i != TOPIC_NO_ENTRY; i = feed->entries[i].next)
        fanout->chain[run.count++] = i;
    uint32_t end = run_end(&run);
    bool is_broken = end < run.count;
    run.count = end;
    fanout_lay_out(fanout, &run);
    for (uint32_t i = 0; i < topic->link_count; i++)
        fanout_deliver(fanout, &run, topic->links[i]);
    if (is_broken) {
        for (uint32_t i = 0; i < topic->link_count; i++)
            subscriptions_set_behind(fanout->subscriptions, topic->links[i]);
    }
}

void fanout_run(struct fanout *fanout, struct feed *feed)
{
    if (feed->touched == NULL) {
        feed_clear(feed);
        return;
    }
    buffer_clear(&fanout->merged);
    bool has_room = buffer_reserve(&fanout->merged, feed->bytes.bytes) == WEIR_OK;
    uint32_t first_entry, entry_count;
    struct topic *topic;
    while ((topic = feed_pop_topic(feed, &first_entry, &entry_count)) != NULL) {
        if (has_room || entry_count == 1) {
            fanout_topic(fanout, feed, topic, first_entry);
            continue;
        }
        for (uint32_t i = 0; i < topic->link_count; i++) /* no memory: from the ring, bit by bit */
            subscriptions_set_behind(fanout->subscriptions, topic->links[i]);
    }
    fanout_flush(fanout);
    feed_clear(feed);
}

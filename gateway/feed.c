#include "gateway/feed.h"

#include <stdlib.h>

enum weir_status feed_init(struct feed *feed, struct counters *counters)
{
    *feed = (struct feed){.counters = counters};
    /* The largest record of the largest ring must fit behind a full turn, and offsets are 32-bit. */
    buffer_init(&feed->bytes, (size_t)UINT32_MAX);
    feed->entries = malloc(FEED_TURN_RECORDS * sizeof *feed->entries);
    if (feed->entries == NULL)
        return WEIR_NO_MEMORY;
    return buffer_reserve(&feed->bytes, FEED_TURN_BYTES);
}

void feed_fini(struct feed *feed)
{
    feed_clear(feed);
    buffer_fini(&feed->bytes);
    free(feed->entries);
    feed->entries = NULL;
}

/* What is below it is lapped, or will be before anybody gets there. */
static uint64_t ring_oldest(const struct ring_reader *ring)
{
    return ring->position > ring->capacity_bytes ? ring->position - ring->capacity_bytes : 0;
}

static void feed_add(struct feed *feed, struct topic *topic, const struct ring_record *record,
                     size_t offset)
{
    uint32_t index = feed->entry_count++;
    feed->entries[index] = (struct feed_entry){
        .seq = record->seq,
        .epoch = record->epoch,
        .offset = (uint32_t)offset,
        .frame_bytes = record->frame_bytes,
        .id_bytes = record->id_bytes,
        .next = TOPIC_NO_ENTRY,
    };
    if (topic->first_entry == TOPIC_NO_ENTRY) {
        topic->first_entry = index;
        topic->entry_count = 0;
        topic->touched_next = feed->touched;
        feed->touched = topic;
    } else {
        feed->entries[topic->last_entry].next = index;
    }
    topic->last_entry = index;
    topic->entry_count++;
}

static bool feed_has_triggers(const struct feed *feed)
{
    return feed->triggers != NULL && triggers_are_wanted(feed->triggers);
}

void feed_lapped(struct feed *feed)
{
    feed->is_commit_known = false;
    counters_add(feed->counters, COUNTER_FEED_LAPPED, 1);
    if (feed_has_triggers(feed))
        triggers_lapped(feed->triggers);
}

void feed_start(struct feed *feed, const struct ring_reader *ring, bool reads_on)
{
    feed_clear(feed);
    if (reads_on)
        return;
    feed->commit = 0;
    feed->is_commit_known = ring->position == 0;
}

void feed_start_behind(struct feed *feed, uint64_t commit)
{
    feed->commit = commit;
    feed->is_commit_known = true;
}

static void feed_note_commit(struct feed *feed, const struct ring_record *record)
{
    if (record->commit == 0)
        return;
    feed_start_behind(feed, record->commit);
}

/* Nobody here listens; whoever joins starts from a snapshot that is newer than this. */
static enum weir_status feed_pass_over(struct feed *feed, struct ring_reader *ring)
{
    for (unsigned read = 0; read < FEED_TURN_RECORDS; read++) {
        struct ring_record record;
        enum weir_status status = ring_read(ring, &record, NULL);
        if (status == WEIR_LAPPED)
            feed->is_commit_known = false;
        if (status != WEIR_OK)
            return status == WEIR_LAPPED ? WEIR_EMPTY : status;
        feed_note_commit(feed, &record);
        if (record.commit == 0) {
            ring_reader_seek_head(ring);
            return WEIR_EMPTY;
        }
    }
    feed->has_more = true;
    return WEIR_OK;
}

enum weir_status feed_drain(struct feed *feed, struct ring_reader *ring,
                            const struct subscriptions *subscriptions)
{
    uint64_t read_bytes = 0, matches = 0;
    const bool has_triggers = feed_has_triggers(feed);
    feed->has_more = false;
    if (subscriptions->topic_count == 0 && !has_triggers)
        return feed_pass_over(feed, ring);
    for (unsigned read = 0;; read++) {
        if (read == FEED_TURN_RECORDS || read_bytes >= FEED_TURN_BYTES ||
            matches >= FEED_TURN_MATCHES) {
            feed->has_more = true;
            return WEIR_OK;
        }
        struct ring_record record;
        size_t offset = feed->bytes.bytes;
        enum weir_status status = ring_read(ring, &record, &feed->bytes);
        if (status == WEIR_LAPPED)
            feed_lapped(feed);
        if (status != WEIR_OK)
            return status == WEIR_EMPTY && read > 0 ? WEIR_OK : status;
        feed_note_commit(feed, &record);
        read_bytes += feed->bytes.bytes - offset;
        counters_add(feed->counters, COUNTER_FEED_RECORDS, 1);
        counters_add(feed->counters, COUNTER_FEED_BYTES, feed->bytes.bytes - offset);
        if (record.timestamp_ms > feed->newest_ms)
            feed->newest_ms = record.timestamp_ms;
        if (has_triggers)
            matches +=
                triggers_take(feed->triggers, &record,
                              span_of(feed->bytes.data + offset, feed->bytes.bytes - offset));
        struct span frame = span_of(feed->bytes.data + offset, record.frame_bytes);
        struct topic *topic = subscriptions_find_record(subscriptions, &record, frame);
        if (topic == NULL) {
            feed->bytes.bytes = offset;
            continue;
        }
        trail_note(&topic->trail, subscriptions->ring_life, &record, ring_oldest(ring));
        feed_add(feed, topic, &record, offset);
    }
}

struct topic *feed_pop_topic(struct feed *feed, uint32_t *first_entry, uint32_t *entry_count)
{
    struct topic *topic = feed->touched;
    if (topic == NULL)
        return NULL;
    feed->touched = topic->touched_next;
    topic->touched_next = NULL;
    *first_entry = topic->first_entry;
    *entry_count = topic->entry_count;
    topic->first_entry = TOPIC_NO_ENTRY;
    topic->entry_count = 0;
    return topic;
}

void feed_clear(struct feed *feed)
{
    uint32_t first, count;
    while (feed_pop_topic(feed, &first, &count) != NULL) {
    }
    buffer_clear(&feed->bytes);
    feed->entry_count = 0;
}

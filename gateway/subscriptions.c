#include "gateway/subscriptions.h"

#include <stdlib.h>

#include "shm/json.h"
#include "shm/store.h"

const char SUBSCRIPTION_EXPIRED[] = "expired";

enum { BUCKETS_FIRST = 64, LINKS_FIRST = 1 };
static_assert(sizeof(struct subscriber_link) <= 88, "one of 96 bytes with the heap's own");

enum weir_status subscriptions_init(struct subscriptions *subscriptions, uint64_t subscriptions_max,
                                    bool duplicate_deliveries, struct counters *counters)
{
    *subscriptions = (struct subscriptions){
        .subscriptions_max = subscriptions_max,
        .ring_life = 1,
        .duplicate_deliveries = duplicate_deliveries,
        .counters = counters,
        .bucket_count = BUCKETS_FIRST,
    };
    subscriptions->buckets = calloc(BUCKETS_FIRST, sizeof(struct topic *));
    subscriptions->wanted = wanted_open();
    return subscriptions->buckets == NULL || subscriptions->wanted == NULL ? WEIR_NO_MEMORY
                                                                           : WEIR_OK;
}

void subscriptions_fini(struct subscriptions *subscriptions)
{
    weir_assert(subscriptions->topic_count == 0);
    free(subscriptions->buckets);
    wanted_close(subscriptions->wanted);
    subscriptions->buckets = NULL;
    subscriptions->wanted = NULL;
}

/* ---- topics ---- */

static struct topic **subscriptions_bucket(const struct subscriptions *subscriptions, uint64_t hash)
{
    return &subscriptions->buckets[hash & (subscriptions->bucket_count - 1)];
}

static struct topic *subscriptions_find(const struct subscriptions *subscriptions, uint64_t hash,
                                        struct span stream, struct span group)
{
    struct topic *topic = *subscriptions_bucket(subscriptions, hash);
    for (; topic != NULL; topic = topic->bucket_next) {
        if (topic->hash == hash && span_equal(topic_stream(topic), stream) &&
            span_equal(topic_group(topic), group))
            return topic;
    }
    return NULL;
}

/* Put every topic where its hash says; `count` buckets are there and empty. */
static void subscriptions_place_topics(struct subscriptions *subscriptions, struct topic **old,
                                       size_t old_count)
{
    for (size_t i = 0; i < old_count; i++) {
        for (struct topic *topic = old[i], *next; topic != NULL; topic = next) {
            next = topic->bucket_next;
            struct topic **bucket = subscriptions_bucket(subscriptions, topic->hash);
            topic->bucket_next = *bucket;
            *bucket = topic;
        }
    }
}

/* Failing to grow only makes the chains longer. */
static void subscriptions_grow(struct subscriptions *subscriptions)
{
    if (subscriptions->topic_count < subscriptions->bucket_count)
        return;
    struct topic **buckets = calloc(subscriptions->bucket_count * 2, sizeof *buckets);
    if (buckets == NULL)
        return;
    struct topic **old = subscriptions->buckets;
    size_t old_count = subscriptions->bucket_count;
    subscriptions->buckets = buckets;
    subscriptions->bucket_count *= 2;
    subscriptions_place_topics(subscriptions, old, old_count);
    subscriptions_walk_start(subscriptions);
    free(old);
}

static struct topic *topic_make(struct span stream, struct span group)
{
    size_t escaped_bytes_max = 6 * (stream.bytes + group.bytes);
    char *escaped = malloc(escaped_bytes_max + 1);
    if (escaped == NULL)
        return NULL;
    size_t stream_escaped_bytes = json_escape(escaped, stream);
    size_t group_escaped_bytes = json_escape(escaped + stream_escaped_bytes, group);
    size_t escaped_bytes = stream_escaped_bytes + group_escaped_bytes;
    struct topic *topic = malloc(sizeof *topic + stream.bytes + group.bytes + escaped_bytes);
    if (topic != NULL) {
        *topic = (struct topic){
            .first_entry = TOPIC_NO_ENTRY,
            .stream_bytes = (uint32_t)stream.bytes,
            .group_bytes = (uint32_t)group.bytes,
            .stream_escaped_bytes = (uint32_t)stream_escaped_bytes,
            .group_escaped_bytes = (uint32_t)group_escaped_bytes,
        };
        char *to = topic->names;
        if (stream.bytes > 0)
            memcpy(to, stream.data, stream.bytes);
        if (group.bytes > 0)
            memcpy(to + stream.bytes, group.data, group.bytes);
        memcpy(to + stream.bytes + group.bytes, escaped, escaped_bytes);
    }
    free(escaped);
    return topic;
}

static struct topic *subscriptions_topic(struct subscriptions *subscriptions, struct span stream,
                                         struct span group)
{
    uint64_t hash = store_group_hash(subscriptions->hash_seed, stream, group);
    struct topic *topic = subscriptions_find(subscriptions, hash, stream, group);
    if (topic != NULL)
        return topic;
    topic = topic_make(stream, group);
    if (topic == NULL)
        return NULL;
    topic->hash = hash;
    subscriptions_grow(subscriptions);
    struct topic **bucket = subscriptions_bucket(subscriptions, hash);
    topic->bucket_next = *bucket;
    *bucket = topic;
    wanted_add(subscriptions->wanted, hash);
    subscriptions->topic_count++;
    counters_add(subscriptions->counters, COUNTER_TOPICS, 1);
    return topic;
}

static void subscriptions_drop_topic(struct subscriptions *subscriptions, struct topic *topic)
{
    weir_assert(topic->link_count == 0);
    weir_assert(topic->first_entry == TOPIC_NO_ENTRY);
    if (topic == subscriptions->walk_topic) {
        subscriptions->walk_topic = topic->bucket_next;
        subscriptions->walk_links = UINT32_MAX;
    }
    struct topic **at = subscriptions_bucket(subscriptions, topic->hash);
    while (*at != topic) /* ends: every topic is in its bucket */
        at = &(*at)->bucket_next;
    *at = topic->bucket_next;
    wanted_remove(subscriptions->wanted, topic->hash);
    trail_fini(&topic->trail);
    free(topic->links);
    free(topic);
    subscriptions->topic_count--;
    counters_subtract(subscriptions->counters, COUNTER_TOPICS, 1);
}

/* The frame says `"streamName":"<stream>","groupId":"<group>"`; names_offset is the first byte of
 * <stream>. */
static bool topic_is_named(const struct topic *topic, struct span frame, uint32_t names_offset)
{
    static const char between[] = "\",\"groupId\":\"";
    size_t between_bytes = sizeof between - 1;
    struct span stream = topic_stream_escaped(topic);
    struct span group = topic_group_escaped(topic);
    size_t need = stream.bytes + between_bytes + group.bytes + 1;
    if (names_offset > frame.bytes || frame.bytes - names_offset < need)
        return false;
    const char *at = frame.data + names_offset;
    return memcmp(at, stream.data, stream.bytes) == 0 &&
           memcmp(at + stream.bytes, between, between_bytes) == 0 &&
           memcmp(at + stream.bytes + between_bytes, group.data, group.bytes) == 0 &&
           at[need - 1] == '"';
}

struct topic *subscriptions_find_record(const struct subscriptions *subscriptions,
                                        const struct ring_record *record, struct span frame)
{
    struct topic *topic = *subscriptions_bucket(subscriptions, record->group_hash);
    for (; topic != NULL; topic = topic->bucket_next) {
        if (topic->hash == record->group_hash && topic_is_named(topic, frame, record->names_offset))
            return topic;
    }
    return NULL;
}

/* ---- queues ---- */

void subscriptions_push_behind(struct subscriptions *subscriptions, struct subscriber_link *link)
{
    if (link->is_queued)
        return;
    link->is_queued = 1;
    link->behind_next = NULL;
    link->behind_previous = subscriptions->behind_last;
    if (subscriptions->behind_last == NULL)
        subscriptions->behind_first = link;
    else
        subscriptions->behind_last->behind_next = link;
    subscriptions->behind_last = link;
    subscriptions->behind_count++;
}

void subscriptions_push_behind_first(struct subscriptions *subscriptions,
                                     struct subscriber_link *link)
{
    if (link->is_queued)
        return;
    link->is_queued = 1;
    link->behind_previous = NULL;
    link->behind_next = subscriptions->behind_first;
    if (subscriptions->behind_first == NULL)
        subscriptions->behind_last = link;
    else
        subscriptions->behind_first->behind_previous = link;
    subscriptions->behind_first = link;
    subscriptions->behind_count++;
}

static void subscriptions_unqueue_behind(struct subscriptions *subscriptions,
                                         struct subscriber_link *link)
{
    if (!link->is_queued)
        return;
    link->is_queued = 0;
    if (link->behind_previous == NULL)
        subscriptions->behind_first = link->behind_next;
    else
        link->behind_previous->behind_next = link->behind_next;
    if (link->behind_next == NULL)
        subscriptions->behind_last = link->behind_previous;
    else
        link->behind_next->behind_previous = link->behind_previous;
    subscriptions->behind_count--;
}

void subscriptions_gather_behind(struct subscriptions *subscriptions, const struct topic *topic)
{
    for (uint32_t i = topic->link_count; i-- > 0;) {
        if (!topic->links[i]->is_queued)
            continue;
        subscriptions_unqueue_behind(subscriptions, topic->links[i]);
        subscriptions_push_behind_first(subscriptions, topic->links[i]);
    }
}

struct subscriber_link *subscriptions_pop_behind(struct subscriptions *subscriptions)
{
    struct subscriber_link *link = subscriptions->behind_first;
    if (link != NULL)
        subscriptions_unqueue_behind(subscriptions, link);
    return link;
}

void subscriptions_push_sync(struct subscriptions *subscriptions, struct subscription *subscription)
{
    if (subscription->is_queued)
        return;
    subscription->is_queued = 1;
    subscription->queue_next = NULL;
    subscription->queue_previous = subscriptions->sync_last;
    if (subscriptions->sync_last == NULL)
        subscriptions->sync_first = subscription;
    else
        subscriptions->sync_last->queue_next = subscription;
    subscriptions->sync_last = subscription;
    subscriptions->sync_count++;
}

static void subscriptions_unqueue_sync(struct subscriptions *subscriptions,
                                       struct subscription *subscription)
{
    if (!subscription->is_queued)
        return;
    subscription->is_queued = 0;
    if (subscription->queue_previous == NULL)
        subscriptions->sync_first = subscription->queue_next;
    else
        subscription->queue_previous->queue_next = subscription->queue_next;
    if (subscription->queue_next == NULL)
        subscriptions->sync_last = subscription->queue_previous;
    else
        subscription->queue_next->queue_previous = subscription->queue_previous;
    subscriptions->sync_count--;
}

struct subscription *subscriptions_pop_sync(struct subscriptions *subscriptions)
{
    struct subscription *subscription = subscriptions->sync_first;
    if (subscription != NULL)
        subscriptions_unqueue_sync(subscriptions, subscription);
    return subscription;
}

/* ---- links ---- */

static struct subscriber_link *subscriber_find_link(const struct subscriber *subscriber,
                                                    const struct topic *topic)
{
    struct subscriber_link *link = subscriber->links;
    while (link != NULL && link->topic != topic)
        link = link->next;
    return link;
}

static struct subscriber_link *subscriptions_make_link(struct subscriber *subscriber,
                                                       struct topic *topic,
                                                       const struct subscription_wish *wish)
{
    if (topic->link_count == topic->link_capacity) {
        uint32_t capacity = topic->link_capacity == 0 ? LINKS_FIRST : topic->link_capacity * 2;
        struct subscriber_link **links = realloc(topic->links, capacity * sizeof(*links));
        if (links == NULL)
            return NULL;
        topic->links = links;
        topic->link_capacity = capacity;
    }
    struct subscriber_link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return NULL;
    link->topic = topic;
    link->subscriber = subscriber;
    link->policy = (unsigned)wish->policy & 3;
    link->lag_events = wish->lag_events < UINT16_MAX ? (uint16_t)wish->lag_events : UINT16_MAX;
    link->topic_index = topic->link_count;
    topic->links[topic->link_count++] = link;
    link->next = subscriber->links;
    subscriber->links = link;
    return link;
}

static void subscriptions_drop_link(struct subscriptions *subscriptions,
                                    struct subscriber_link *link)
{
    struct topic *topic = link->topic;
    subscriptions_unqueue_behind(subscriptions, link);
    struct subscriber_link **at = &link->subscriber->links;
    while (*at != link) /* ends: every link is in its subscriber's list */
        at = &(*at)->next;
    *at = link->next;
    struct subscriber_link *moved = topic->links[--topic->link_count];
    topic->links[link->topic_index] = moved;
    moved->topic_index = link->topic_index;
    free(link);
    if (topic->link_count == 0)
        subscriptions_drop_topic(subscriptions, topic);
}

void subscriptions_set_behind(struct subscriptions *subscriptions, struct subscriber_link *link)
{
    if (link->mode == DELIVERY_IDLE)
        return;
    link->mode = DELIVERY_BEHIND;
    if (!link->is_blocked)
        subscriptions_push_behind(subscriptions, link);
}

void subscriptions_set_live(struct subscriptions *subscriptions, struct subscriber_link *link)
{
    subscriptions_unqueue_behind(subscriptions, link);
    link->mode = DELIVERY_LIVE;
    link->is_blocked = 0;
    link->resumed = LINK_NOT_RESUMED;
}

const char *subscriptions_loss_reason(const struct subscriber_link *link)
{
    switch ((enum link_resumed)link->resumed) {
    case LINK_RESUMED_BY_BROKER:
        return "restarted";
    case LINK_RESUMED_BY_CLIENT:
        return SUBSCRIPTION_EXPIRED;
    case LINK_NOT_RESUMED:
        break;
    }
    return "lagged";
}

void subscriptions_block(struct subscriptions *subscriptions, struct subscriber_link *link)
{
    subscriptions_unqueue_behind(subscriptions, link);
    link->is_blocked = 1;
    if (link->mode == DELIVERY_LIVE)
        link->mode = DELIVERY_BEHIND;
}

void subscriptions_unblock(struct subscriptions *subscriptions, struct subscriber *subscriber)
{
    for (struct subscriber_link *link = subscriber->links; link != NULL; link = link->next) {
        if (!link->is_blocked)
            continue;
        link->is_blocked = 0;
        if (link->mode == DELIVERY_BEHIND)
            subscriptions_push_behind(subscriptions, link);
    }
}

void subscriptions_resync(struct subscriptions *subscriptions, struct subscriber_link *link,
                          const char *reason)
{
    subscriptions_unqueue_behind(subscriptions, link);
    link->mode = DELIVERY_IDLE;
    link->resumed = LINK_NOT_RESUMED;
    link->conflated = link->conflated_left = 0;
    link->whole_count = link->item_count = 0;
    struct subscription *subscription = link->subscriptions;
    for (; subscription != NULL; subscription = subscription->next) {
        if (!subscription->is_active && subscription->holder == NULL)
            continue;                       /* waits for its first sync already, or for this one */
        if (subscription->holder != NULL) { /* what is being read is of no use any more */
            subscriptions_release(subscriptions, subscription);
            subscriptions_push_sync(subscriptions, subscription);
            continue;
        }
        subscription->is_active = 0;
        subscription->reason = reason;
        subscriptions_push_sync(subscriptions, subscription);
    }
}

void subscriptions_stop(struct subscriptions *subscriptions, struct subscriber *subscriber)
{
    for (struct subscriber_link *link = subscriber->links; link != NULL; link = link->next) {
        subscriptions_unqueue_behind(subscriptions, link);
        link->mode = DELIVERY_IDLE;
    }
}

void subscriptions_hold(struct subscription *subscription, struct subscription **list)
{
    weir_assert(!subscription->link->is_held);
    subscription->link->is_held = 1;
    subscription->held_next = *list;
    if (*list != NULL)
        (*list)->holder = &subscription->held_next;
    subscription->holder = list;
    *list = subscription;
}

void subscriptions_release(struct subscriptions *subscriptions, struct subscription *subscription)
{
    weir_assert(subscription->holder != NULL);
    *subscription->holder = subscription->held_next;
    if (subscription->held_next != NULL)
        subscription->held_next->holder = subscription->holder;
    subscription->held_next = NULL;
    subscription->holder = NULL;
    subscription->link->is_held = 0;
    subscriptions_set_behind(subscriptions, subscription->link);
}

/* ---- subscriptions ---- */

static void subscriptions_drop(struct subscriptions *subscriptions,
                               struct subscription *subscription)
{
    struct subscriber_link *link = subscription->link;
    subscriptions_unqueue_sync(subscriptions, subscription);
    if (subscription->holder != NULL)
        subscriptions_release(subscriptions, subscription);
    if (subscription->is_active && subscription->item_bytes == SUBSCRIPTION_WHOLE)
        link->whole_count--;
    else if (subscription->is_active)
        link->item_count--;
    struct subscription **at = &link->subscriptions;
    while (*at != subscription) /* ends: every subscription is in its link's list */
        at = &(*at)->next;
    *at = subscription->next;
    free(subscription);
    link->subscriber->subscription_count--;
    counters_subtract(subscriptions->counters, COUNTER_SUBSCRIPTIONS, 1);
    if (link->subscriptions == NULL) {
        subscriptions_drop_link(subscriptions, link);
    } else if (link->whole_count == 0 && link->item_count == 0) {
        subscriptions_unqueue_behind(subscriptions, link);
        link->mode = DELIVERY_IDLE;
    }
}

static struct subscription *subscriber_find(const struct subscriber *subscriber, struct span id)
{
    for (struct subscriber_link *link = subscriber->links; link != NULL; link = link->next) {
        struct subscription *subscription = link->subscriptions;
        for (; subscription != NULL; subscription = subscription->next) {
            if (span_equal(span_of(subscription->text, subscription->id_bytes), id))
                return subscription;
        }
    }
    return NULL;
}

bool subscriptions_has(const struct subscriber *subscriber, struct span subscription_id)
{
    return subscriber_find(subscriber, subscription_id) != NULL;
}

enum weir_status subscriptions_add(struct subscriptions *subscriptions,
                                   struct subscriber *subscriber,
                                   const struct subscription_wish *wish)
{
    if (wish->stream.bytes > NAME_BYTES_MAX || wish->group.bytes > NAME_BYTES_MAX ||
        wish->item.bytes > NAME_BYTES_MAX || wish->subscription_id.bytes > NAME_BYTES_MAX)
        return WEIR_TOO_LARGE;
    struct subscription *old = subscriber_find(subscriber, wish->subscription_id);
    if (old == NULL && subscriber->subscription_count >= subscriptions->subscriptions_max)
        return WEIR_FULL;
    struct subscription *made =
        malloc(sizeof *made + wish->subscription_id.bytes + wish->item.bytes +
               (wish->has_cursor ? sizeof wish->cursor : 0));
    if (made == NULL)
        return WEIR_NO_MEMORY;
    struct topic *topic = subscriptions_topic(subscriptions, wish->stream, wish->group);
    struct subscriber_link *link = NULL;
    if (topic != NULL)
        link = subscriber_find_link(subscriber, topic);
    if (topic != NULL && link == NULL) {
        link = subscriptions_make_link(subscriber, topic, wish);
        if (link == NULL && topic->link_count == 0)
            subscriptions_drop_topic(subscriptions, topic);
    }
    if (link == NULL) {
        free(made);
        return WEIR_NO_MEMORY;
    }
    bool is_whole = wish->item.data == NULL;
    *made = (struct subscription){
        .next = link->subscriptions,
        .link = link,
        .id_bytes = (uint32_t)wish->subscription_id.bytes,
        .item_bytes = is_whole ? (uint32_t)SUBSCRIPTION_WHOLE : (uint32_t)wish->item.bytes,
        .position = wish->has_cursor ? POSITION_BROUGHT : POSITION_NONE,
    };
    if (wish->subscription_id.bytes > 0)
        memcpy(made->text, wish->subscription_id.data, wish->subscription_id.bytes);
    if (wish->item.bytes > 0)
        memcpy(made->text + made->id_bytes, wish->item.data, wish->item.bytes);
    if (wish->has_cursor)
        memcpy(made->text + made->id_bytes + wish->item.bytes, &wish->cursor, sizeof wish->cursor);
    link->subscriptions = made;
    subscriber->subscription_count++;
    counters_add(subscriptions->counters, COUNTER_SUBSCRIPTIONS, 1);
    subscriptions_push_sync(subscriptions, made);
    if (old != NULL && subscriptions->observer.context != NULL)
        subscriptions->observer.replaced(subscriptions->observer.context, old, made);
    if (old != NULL) /* after the new one is in, so that a link both use lives on */
        subscriptions_drop(subscriptions, old);
    return WEIR_OK;
}

static void subscriptions_end(struct subscriptions *subscriptions,
                              struct subscription *subscription)
{
    if (subscriptions->observer.context != NULL)
        subscriptions->observer.ended(subscriptions->observer.context, subscription);
    subscriptions_drop(subscriptions, subscription);
}

bool subscriptions_remove(struct subscriptions *subscriptions, struct subscriber *subscriber,
                          struct span subscription_id)
{
    struct subscription *subscription = subscriber_find(subscriber, subscription_id);
    if (subscription == NULL)
        return false;
    subscriptions_end(subscriptions, subscription);
    return true;
}

void subscriptions_remove_subscriber(struct subscriptions *subscriptions,
                                     struct subscriber *subscriber)
{
    while (subscriber->links != NULL)
        /* Each drop takes one away, and the head with it.
         * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
        subscriptions_end(subscriptions, subscriber->links->subscriptions);
}

void subscriptions_activate(struct subscriptions *subscriptions, struct subscription *subscription,
                            uint64_t epoch, uint64_t seq)
{
    struct subscriber_link *link = subscription->link;
    if (link->mode == DELIVERY_IDLE) {
        link->epoch = epoch;
        link->sent_seq = seq;
        link->conflated = link->conflated_left = 0;
        subscriptions_set_live(subscriptions, link);
    }
    weir_assert(link->epoch == epoch);
    weir_assert(link->sent_seq == seq);
    bool is_first = subscription->reason == NULL;
    subscription->is_active = 1;
    subscription->reason = NULL;
    subscription->position = POSITION_NONE;
    if (subscription->item_bytes == SUBSCRIPTION_WHOLE)
        link->whole_count++;
    else
        link->item_count++;
    if (subscriptions->observer.context != NULL)
        subscriptions->observer.activated(subscriptions->observer.context, subscription, is_first);
}

static void subscriptions_rehash(struct subscriptions *subscriptions, uint64_t hash_seed)
{
    subscriptions->hash_seed = hash_seed;
    subscriptions->ring_life++;
    struct topic *all = NULL;
    for (size_t i = 0; i < subscriptions->bucket_count; i++) {
        for (struct topic *topic = subscriptions->buckets[i], *next; topic != NULL; topic = next) {
            next = topic->bucket_next;
            topic->bucket_next = all;
            all = topic;
        }
        subscriptions->buckets[i] = NULL;
    }
    wanted_clear(subscriptions->wanted);
    for (struct topic *topic = all; topic != NULL; topic = topic->bucket_next) {
        topic->hash = store_group_hash(hash_seed, topic_stream(topic), topic_group(topic));
        wanted_add(subscriptions->wanted, topic->hash);
    }
    subscriptions_place_topics(subscriptions, &all, 1);
    subscriptions_walk_start(subscriptions);
}

void subscriptions_set_reader(struct subscriptions *subscriptions, struct reader *reader)
{
    subscriptions->wanted->reader = reader;
}

void subscriptions_restart(struct subscriptions *subscriptions, uint64_t hash_seed,
                           const char *reason)
{
    subscriptions_rehash(subscriptions, hash_seed);
    for (size_t i = 0; i < subscriptions->bucket_count; i++) {
        struct topic *topic = subscriptions->buckets[i];
        for (; topic != NULL; topic = topic->bucket_next) {
            for (uint32_t k = 0; k < topic->link_count; k++)
                subscriptions_resync(subscriptions, topic->links[k], reason);
        }
    }
}

static void subscriptions_resume_link(struct subscriptions *subscriptions,
                                      struct subscriber_link *link)
{
    struct subscription *subscription = link->subscriptions;
    for (; subscription != NULL; subscription = subscription->next) {
        if (subscription->holder == NULL)
            continue;
        subscriptions_release(subscriptions, subscription);
        subscriptions_push_sync(subscriptions, subscription);
    }
    if (link->mode != DELIVERY_IDLE)
        link->resumed = LINK_RESUMED_BY_BROKER;
    subscriptions_set_behind(subscriptions, link);
}

void subscriptions_resume(struct subscriptions *subscriptions, uint64_t hash_seed)
{
    subscriptions_rehash(subscriptions, hash_seed);
    for (size_t i = 0; i < subscriptions->bucket_count; i++) {
        struct topic *topic = subscriptions->buckets[i];
        for (; topic != NULL; topic = topic->bucket_next) {
            for (uint32_t k = 0; k < topic->link_count; k++)
                subscriptions_resume_link(subscriptions, topic->links[k]);
        }
    }
}

/* Downwards through a topic's links: one that goes is replaced by the last, which was visited. */
void subscriptions_walk_start(struct subscriptions *subscriptions)
{
    subscriptions->walk_bucket = 0;
    subscriptions->walk_topic = subscriptions->buckets[0];
    subscriptions->walk_links = UINT32_MAX;
}

struct subscriber_link *subscriptions_walk_next(struct subscriptions *subscriptions)
{
    for (;;) { /* each turn visits a link, or passes a topic or a bucket */
        struct topic *topic = subscriptions->walk_topic;
        if (topic == NULL) {
            if (subscriptions->walk_bucket + 1 >= subscriptions->bucket_count)
                return NULL;
            subscriptions->walk_topic = subscriptions->buckets[++subscriptions->walk_bucket];
            continue;
        }
        if (subscriptions->walk_links > topic->link_count)
            subscriptions->walk_links = topic->link_count;
        if (subscriptions->walk_links > 0)
            return topic->links[--subscriptions->walk_links];
        subscriptions->walk_topic = topic->bucket_next;
        subscriptions->walk_links = UINT32_MAX;
    }
}

void subscriptions_resync_streams(struct subscriptions *subscriptions, subscriptions_wanted *wanted,
                                  const void *context, const char *reason)
{
    for (size_t i = 0; i < subscriptions->bucket_count; i++) {
        struct topic *topic = subscriptions->buckets[i];
        for (; topic != NULL; topic = topic->bucket_next) {
            uint32_t count = wanted(context, topic_stream(topic)) ? topic->link_count : 0;
            for (uint32_t k = 0; k < count; k++)
                subscriptions_resync(subscriptions, topic->links[k], reason);
        }
    }
}

void subscriptions_all_behind(struct subscriptions *subscriptions)
{
    subscriptions->ring_life++;
    for (size_t i = 0; i < subscriptions->bucket_count; i++) {
        struct topic *topic = subscriptions->buckets[i];
        for (; topic != NULL; topic = topic->bucket_next) {
            for (uint32_t k = 0; k < topic->link_count; k++)
                subscriptions_set_behind(subscriptions, topic->links[k]);
        }
    }
}

/* ---- matching ---- */

unsigned subscriptions_match_count(const struct subscriber_link *link, struct span item)
{
    unsigned count = link->whole_count;
    if (link->item_count == 0 || item.data == NULL)
        return count;
    const struct subscription *subscription = link->subscriptions;
    for (; subscription != NULL; subscription = subscription->next) {
        if (subscription->is_active && subscription->item_bytes == item.bytes &&
            memcmp(subscription->text + subscription->id_bytes, item.data, item.bytes) == 0)
            count++;
    }
    return count;
}

unsigned subscriptions_copies(const struct subscriptions *subscriptions,
                              const struct subscriber_link *link, struct span item)
{
    if (!subscriptions->duplicate_deliveries && link->whole_count > 0)
        return 1;
    unsigned count = subscriptions_match_count(link, item);
    return count > 1 && !subscriptions->duplicate_deliveries ? 1 : count;
}

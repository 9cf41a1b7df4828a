#include "gateway/joins.h"

#include <stdlib.h>

#include "shm/envelope.h"
#include "shm/json.h"

enum { CLOSE_TOO_BIG = 1009 };

struct joins {
    struct subscriptions *subscriptions;
    struct catch_up *catch_up;
    struct outlet outlet;
    struct counters *counters;
    struct mapping *mapping;
    struct buffer value;    /* the snapshot's JSON */
    struct buffer envelope; /* frame header and JSON */
    /* What `envelope` holds, for the next subscription of this pass that wants the same. */
    const struct topic *cached_topic;
    const char *cached_reason;
    struct store_snapshot cached;
    struct span json;
    uint64_t turn_bytes;
    uint64_t newest_ms;
};

struct joins *joins_open(struct subscriptions *subscriptions, struct catch_up *catch_up,
                         const struct outlet *outlet, struct counters *counters)
{
    struct joins *joins = calloc(1, sizeof *joins);
    if (joins == NULL)
        return NULL;
    joins->subscriptions = subscriptions;
    joins->catch_up = catch_up;
    joins->outlet = *outlet;
    joins->counters = counters;
    buffer_init(&joins->value, ANSWER_BYTES_MAX);
    buffer_init(&joins->envelope, (size_t)ANSWER_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX);
    return joins;
}

void joins_close(struct joins *joins)
{
    if (joins == NULL)
        return;
    buffer_fini(&joins->value);
    buffer_fini(&joins->envelope);
    free(joins);
}

void joins_set_mapping(struct joins *joins, struct mapping *mapping)
{
    joins->mapping = mapping;
    joins->cached_topic = NULL;
}

/* Encode into joins->envelope; joins->json is the text behind the frame header. */
static enum weir_status joins_encode(struct joins *joins, const struct envelope *envelope)
{
    buffer_clear(&joins->envelope);
    enum weir_status status = buffer_reserve(&joins->envelope, envelope_bytes_max(envelope));
    if (status != WEIR_OK)
        return status;
    struct envelope_layout layout = envelope_encode(joins->envelope.data, envelope);
    joins->envelope.bytes = layout.frame_bytes;
    joins->json =
        span_of(joins->envelope.data + layout.json_offset, layout.frame_bytes - layout.json_offset);
    return WEIR_OK;
}

/* Escaped copy of a name; frees with free(). data NULL stays NULL; *failed when there is no memory. */
static struct span joins_escape(struct span name, bool *failed)
{
    if (name.data == NULL)
        return (struct span){0};
    char *text = malloc(6 * name.bytes + 1);
    if (text == NULL) {
        *failed = true;
        return (struct span){0};
    }
    return span_of(text, json_escape(text, name));
}

void joins_refuse(struct joins *joins, void *connection, const struct subscription_wish *wish,
                  uint64_t now_ms)
{
    bool failed = false;
    struct span stream = joins_escape(wish->stream, &failed);
    struct span group = joins_escape(wish->group, &failed);
    struct span item = joins_escape(wish->item, &failed);
    struct envelope envelope = {
        .event = ENVELOPE_UNAUTHORIZED,
        .timestamp_ms = now_ms,
        .stream_escaped = stream,
        .group_escaped = group,
        .id_escaped = item,
    };
    joins->cached_topic = NULL;
    counters_add(joins->counters, COUNTER_JOINS_REFUSED, 1);
    /* A socket that does not even take this is told by a close. */
    if (failed || joins_encode(joins, &envelope) != WEIR_OK ||
        joins->outlet.send_text(joins->outlet.context, connection, joins->json) != WEIR_OK)
        joins->outlet.close(joins->outlet.context, connection, 1013, "too many joins");
    free((void *)(uintptr_t)stream.data);
    free((void *)(uintptr_t)group.data);
    free((void *)(uintptr_t)item.data);
}

/* Take the snapshot a subscription needs and encode its sync. */
static enum weir_status joins_prepare(struct joins *joins, const struct subscription *subscription)
{
    const struct topic *topic = subscription->link->topic;
    bool is_whole = subscription->item_bytes == SUBSCRIPTION_WHOLE;
    struct span item = subscription_item(subscription);
    joins->cached_topic = NULL;
    buffer_clear(&joins->value);
    struct store_snapshot snapshot;
    enum weir_status status =
        store_snapshot(joins->mapping->store, topic_stream(topic), topic_group(topic),
                       is_whole ? NULL : &item, &snapshot, &joins->value);
    if (status != WEIR_OK)
        return status;
    bool failed = false;
    struct span item_escaped = joins_escape(item, &failed);
    if (failed)
        return WEIR_NO_MEMORY;
    struct envelope envelope = {
        .event = ENVELOPE_SYNC,
        .timestamp_ms = snapshot.timestamp_ms,
        .seq = snapshot.seq,
        .epoch = snapshot.epoch,
        .stream_escaped = topic_stream_escaped(topic),
        .group_escaped = topic_group_escaped(topic),
        .id_escaped = item_escaped,
        .data = buffer_span(&joins->value),
        .reason = subscription->reason,
    };
    status = joins_encode(joins, &envelope);
    free((void *)(uintptr_t)item_escaped.data);
    if (status != WEIR_OK)
        return status;
    joins->cached = snapshot;
    joins->cached_reason = subscription->reason;
    if (is_whole)
        joins->cached_topic = topic;
    return joins->json.bytes > ANSWER_BYTES_MAX ? WEIR_FULL : WEIR_OK;
}

static bool joins_is_cached(const struct joins *joins, const struct subscription *subscription)
{
    const struct subscriber_link *link = subscription->link;
    return joins->cached_topic == link->topic && joins->cached_reason == subscription->reason &&
           subscription->item_bytes == SUBSCRIPTION_WHOLE && link->mode == DELIVERY_IDLE;
}

/* The link's other subscriptions get everything up to the snapshot first. */
static enum weir_status joins_align(struct joins *joins, struct subscriber_link *link)
{
    if (link->mode == DELIVERY_IDLE)
        return WEIR_OK;
    if (link->epoch != joins->cached.epoch) {
        subscriptions_resync(joins->subscriptions, link, "lagged");
        return WEIR_PENDING; /* the others have lost something and are told first */
    }
    for (unsigned tries = 0; link->sent_seq < joins->cached.seq && tries < 16; tries++) {
        enum weir_status status = catch_up_link(joins->catch_up, link, joins->cached.seq);
        if (status == WEIR_LAPPED)
            return WEIR_PENDING; /* likewise */
        if (status != WEIR_OK && status != WEIR_PENDING)
            return status;
    }
    return link->sent_seq == joins->cached.seq ? WEIR_OK : WEIR_PENDING;
}

static void joins_count(struct joins *joins, const char *reason)
{
    counters_add(joins->counters, COUNTER_SYNCS, 1);
    if (reason != NULL)
        counters_add(
            joins->counters,
            strcmp(reason, "restarted") == 0 ? COUNTER_SYNCS_RESTARTED : COUNTER_SYNCS_LAGGED, 1);
}

/* On an idle link those who have lost something are told before others start there anew. */
static bool joins_must_wait(const struct subscription *subscription)
{
    const struct subscriber_link *link = subscription->link;
    if (link->mode != DELIVERY_IDLE || subscription->reason != NULL)
        return false;
    const struct subscription *other = link->subscriptions;
    while (other != NULL && other->reason == NULL)
        other = other->next;
    return other != NULL;
}

/* OK: done with this subscription. Anything else: not now. */
static enum weir_status joins_serve(struct joins *joins, struct subscription *subscription)
{
    struct subscriber_link *link = subscription->link;
    void *connection = link->subscriber->connection;
    if (joins_must_wait(subscription) ||
        joins->outlet.backlog_bytes(joins->outlet.context, connection) > JOINS_BACKLOG_BYTES_MAX)
        return WEIR_AGAIN;
    if (!joins_is_cached(joins, subscription)) {
        enum weir_status status = joins_prepare(joins, subscription);
        if (status == WEIR_FULL) {
            counters_add(joins->counters, COUNTER_SYNCS_TOO_LARGE, 1);
            joins->outlet.close(joins->outlet.context, connection, CLOSE_TOO_BIG,
                                "the snapshot is larger than a message may be");
            return WEIR_OK;
        }
        if (status != WEIR_OK)
            return status;
    }
    enum weir_status status = joins_align(joins, link);
    if (status == WEIR_CLOSED)
        return WEIR_OK; /* the subscription goes with its socket, or has gone already */
    if (status != WEIR_OK)
        return status;
    status = joins->outlet.send_text(joins->outlet.context, connection, joins->json);
    if (status == WEIR_CLOSED)
        return WEIR_OK;
    if (status != WEIR_OK)
        return WEIR_AGAIN;
    joins->turn_bytes += joins->json.bytes;
    if (joins->cached.timestamp_ms > joins->newest_ms)
        joins->newest_ms = joins->cached.timestamp_ms;
    joins_count(joins, subscription->reason);
    subscriptions_activate(joins->subscriptions, subscription, joins->cached.epoch,
                           joins->cached.seq);
    return WEIR_OK;
}

uint64_t joins_newest_ms(const struct joins *joins)
{
    return joins->newest_ms;
}

bool joins_run(struct joins *joins)
{
    joins->turn_bytes = 0;
    joins->cached_topic = NULL;
    if (joins->mapping == NULL)
        return false;
    size_t todo = joins->subscriptions->sync_count;
    bool is_cut = todo > JOINS_TURN_MAX;
    if (is_cut)
        todo = JOINS_TURN_MAX;
    unsigned served = 0;
    for (; todo > 0; todo--) {
        if (joins->turn_bytes >= JOINS_TURN_BYTES)
            return true;
        struct subscription *subscription = subscriptions_pop_sync(joins->subscriptions);
        if (subscription == NULL)
            break;
        if (joins_serve(joins, subscription) == WEIR_OK)
            served++;
        else
            subscriptions_push_sync(joins->subscriptions, subscription);
    }
    joins->cached_topic = NULL;
    /* When nothing of a full pass could be done, the next tick is early enough. */
    return is_cut && served > 0;
}

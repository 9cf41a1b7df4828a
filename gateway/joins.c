#include "gateway/joins.h"

#include <stdlib.h>
#include <time.h>

#include "gateway/join_walks.h"
#include "shm/envelope.h"
#include "shm/json.h"

enum { CLOSE_TOO_BIG = 1009, CLOSE_TRY_AGAIN = 1013 };

struct joins {
    struct subscriptions *subscriptions;
    struct catch_up *catch_up;
    struct outlet outlet;
    struct counters *counters;
    struct mapping *mapping;
    struct join_walks walks;
    uint64_t now_ms;        /* of this pass */
    unsigned vain_count;    /* looks of this pass that wait for the log and could not be kept */
    struct buffer value;    /* the snapshot's JSON */
    struct buffer envelope; /* frame header and JSON */
    /* What `envelope` holds, for the next subscription of this pass that wants the same. */
    const struct topic *cached_topic;
    const char *cached_reason;
    struct store_snapshot cached;
    unsigned resume_count, sync_count; /* of this pass */
    bool has_resumed;                  /* links that have events to catch up with */
    /* What `envelope` holds if it is a `resumed` of the whole group. */
    const struct topic *greeted_topic;
    struct cursor greeted;
    struct span json;
    const struct join_walk *encoded; /* whose sync `envelope` holds, of those that have waited */
    bool is_late;                    /* `cached` is of an earlier turn */
    uint64_t turn_bytes;
    uint64_t newest_ms;
    joins_ask_broker *ask;
    struct link *link;
    struct custom_streams *custom;
    struct join_read *reads; /* from workers, under way */
    unsigned read_count;
};

/* The value of a sync, being read from a worker for those who wait for it at the same seq. */
struct join_read {
    struct link_request request;
    struct joins *joins;
    struct join_read *next, **link;
    struct subscription *subscriptions; /* held; NULL: nobody wants the answer any more */
    unsigned subscription_count;        /* that ever joined this reading */
    struct store_snapshot snapshot;     /* where their links are held */
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
    join_walks_init(&joins->walks, counters);
    buffer_init(&joins->value, ANSWER_BYTES_MAX);
    buffer_init(&joins->envelope, (size_t)ANSWER_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX);
    return joins;
}

static void joins_put_back(struct joins *joins, struct subscription *subscription)
{
    subscriptions_release(joins->subscriptions, subscription);
    subscriptions_push_sync(joins->subscriptions, subscription);
}

static void joins_drop_walks(struct joins *joins)
{
    while (joins->walks.first != NULL) { /* each turn drops one */
        while (joins->walks.first->subscriptions != NULL)
            joins_put_back(joins, joins->walks.first->subscriptions);
        join_walks_drop(&joins->walks, &joins->walks.first);
    }
}

void joins_close(struct joins *joins)
{
    if (joins == NULL)
        return;
    joins_drop_walks(joins);
    buffer_fini(&joins->value);
    buffer_fini(&joins->envelope);
    free(joins);
}

void joins_set_mapping(struct joins *joins, struct mapping *mapping)
{
    joins_drop_walks(joins);
    joins->mapping = mapping;
    joins->cached_topic = NULL;
}

void joins_set_broker(struct joins *joins, joins_ask_broker *ask, struct link *link,
                      struct custom_streams *custom)
{
    joins->ask = ask;
    joins->link = link;
    joins->custom = custom;
}

/* `envelope` is to hold something else. */
static void joins_forget_encoded(struct joins *joins)
{
    joins->cached_topic = NULL;
    joins->greeted_topic = NULL;
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
                  const char *reason, uint64_t now_ms)
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
        .reason = reason,
    };
    joins_forget_encoded(joins);
    /* A socket that does not even take this is told by a close. */
    if (failed || joins_encode(joins, &envelope) != WEIR_OK ||
        joins->outlet.send_text(joins->outlet.context, connection, joins->json,
                                (struct cursor){0}) != WEIR_OK)
        joins->outlet.close(joins->outlet.context, connection, CLOSE_TRY_AGAIN, "too many joins");
    free((void *)(uintptr_t)stream.data);
    free((void *)(uintptr_t)group.data);
    free((void *)(uintptr_t)item.data);
}

/* Encode the sync of a subscription: `data` as of `snapshot`. */
static enum weir_status joins_encode_sync(struct joins *joins,
                                          const struct subscription *subscription,
                                          const struct store_snapshot *snapshot, struct span data)
{
    const struct topic *topic = subscription->link->topic;
    bool failed = false;
    struct span item_escaped = joins_escape(subscription_item(subscription), &failed);
    if (failed)
        return WEIR_NO_MEMORY;
    struct envelope envelope = {
        .event = ENVELOPE_SYNC,
        .timestamp_ms = snapshot->timestamp_ms,
        .seq = snapshot->seq,
        .epoch = snapshot->epoch,
        .stream_escaped = topic_stream_escaped(topic),
        .group_escaped = topic_group_escaped(topic),
        .id_escaped = item_escaped,
        .data = data,
        .reason = subscription_reason(subscription),
    };
    joins->greeted_topic = NULL;
    enum weir_status status = joins_encode(joins, &envelope);
    free((void *)(uintptr_t)item_escaped.data);
    return status;
}

/* Let the subscription wait for `walk`; AGAIN: there are too many who do. */
static enum weir_status joins_wait(struct join_walk *walk, struct subscription *subscription)
{
    if (walk->subscription_count >= JOIN_WALK_SHARE_MAX)
        return WEIR_AGAIN;
    walk->subscription_count++;
    subscriptions_hold(subscription, &walk->subscriptions);
    return WEIR_PENDING;
}

/* What was copied is not committed: keep it for this subscription and those that will want the same. */
static enum weir_status joins_keep(struct joins *joins, struct subscription *subscription,
                                   bool of_order, struct store_snapshot_walk *snapshot)
{
    if (join_walks_are_full(&joins->walks)) {
        store_snapshot_cancel(snapshot);
        joins->vain_count++;
        return WEIR_AGAIN;
    }
    struct join_walk *walk =
        join_walks_keep(&joins->walks, snapshot, subscription, of_order, joins->now_ms);
    return walk == NULL ? WEIR_AGAIN : joins_wait(walk, subscription);
}

/* Look at what a subscription is to be sent, or only where its group stands: joins->cached and
 * joins->value. PENDING: it is held until that is committed. */
static enum weir_status joins_look(struct joins *joins, struct subscription *subscription,
                                   bool of_order)
{
    const struct topic *topic = subscription->link->topic;
    bool is_whole = !of_order && subscription->item_bytes == SUBSCRIPTION_WHOLE;
    /* Of a worker's stream the store has no items, but the groups' order. */
    struct span item = of_order ? SPAN_LITERAL("") : subscription_item(subscription);
    struct join_walk *waiting = join_walks_find(&joins->walks, subscription, of_order);
    if (waiting != NULL)
        return joins_wait(waiting, subscription);
    joins->cached_topic = NULL;
    buffer_clear(&joins->value);
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0;
         tries < JOINS_LOOKS_MAX && (status == WEIR_REVOKED || status == WEIR_LAPPED); tries++) {
        struct store_snapshot_walk *snapshot;
        status = store_snapshot_begin(joins->mapping->store, topic_stream(topic),
                                      topic_group(topic), is_whole ? NULL : &item, &snapshot);
        if (status != WEIR_OK)
            return status == WEIR_PENDING ? WEIR_AGAIN : status;
        status = store_snapshot_finish(snapshot, &joins->cached, &joins->value);
        if (status == WEIR_PENDING)
            return joins_keep(joins, subscription, of_order, snapshot);
    }
    return status;
}

/* Encode the sync of joins->cached, joins->value. */
static enum weir_status joins_prepare(struct joins *joins, const struct subscription *subscription)
{
    enum weir_status status =
        joins_encode_sync(joins, subscription, &joins->cached, buffer_span(&joins->value));
    if (status != WEIR_OK)
        return status;
    if (joins->json.bytes > ANSWER_BYTES_MAX)
        return WEIR_FULL;
    joins->cached_reason = subscription_reason(subscription);
    if (subscription->item_bytes == SUBSCRIPTION_WHOLE)
        joins->cached_topic = subscription->link->topic;
    return WEIR_OK;
}

static bool joins_is_cached(const struct joins *joins, const struct subscription *subscription)
{
    const struct subscriber_link *link = subscription->link;
    return joins->cached_topic == link->topic &&
           joins->cached_reason == subscription_reason(subscription) &&
           subscription->item_bytes == SUBSCRIPTION_WHOLE && link->mode == DELIVERY_IDLE;
}

/* The link's other subscriptions get everything up to the snapshot first. */
static enum weir_status joins_align(struct joins *joins, struct subscriber_link *link)
{
    if (link->mode == DELIVERY_IDLE)
        return WEIR_OK;
    if (link->epoch != joins->cached.epoch) {
        subscriptions_resync(joins->subscriptions, link, subscriptions_loss_reason(link));
        return WEIR_PENDING; /* the others have lost something and are told first */
    }
    for (unsigned tries = 0; link->sent_seq < joins->cached.seq && tries < 16; tries++) {
        enum weir_status status = catch_up_link(joins->catch_up, link, joins->cached.seq);
        if (status == WEIR_LAPPED)
            return WEIR_PENDING; /* likewise */
        if (status != WEIR_OK && status != WEIR_PENDING)
            return status;
    }
    return link->sent_seq == joins->cached.seq && link->conflated == 0 ? WEIR_OK : WEIR_PENDING;
}

static void joins_count(struct joins *joins, const char *reason)
{
    counters_add(joins->counters, COUNTER_SYNCS, 1);
    if (reason == NULL)
        return;
    enum counter counter = COUNTER_SYNCS_LAGGED;
    if (reason == SUBSCRIPTION_EXPIRED)
        counter = COUNTER_RESUMES_EXPIRED;
    else if (strcmp(reason, "restarted") == 0)
        counter = COUNTER_SYNCS_RESTARTED;
    counters_add(joins->counters, counter, 1);
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

/* ---- workers' own streams ---- */

/* joins->json is its sync: send it, and let the link go on from where it was held. */
static void joins_send_read(struct joins *joins, struct subscription *subscription,
                            const struct store_snapshot *snapshot)
{
    void *connection = subscription->link->subscriber->connection;
    enum weir_status status =
        joins->outlet.send_text(joins->outlet.context, connection, joins->json,
                                (struct cursor){snapshot->epoch, snapshot->seq});
    if (status == WEIR_CLOSED)
        return; /* the subscription goes with its socket */
    subscriptions_release(joins->subscriptions, subscription);
    if (status != WEIR_OK) { /* no room now: read again later */
        subscriptions_push_sync(joins->subscriptions, subscription);
        return;
    }
    if (snapshot->timestamp_ms > joins->newest_ms)
        joins->newest_ms = snapshot->timestamp_ms;
    joins_count(joins, subscription_reason(subscription));
    subscriptions_activate(joins->subscriptions, subscription, snapshot->epoch, snapshot->seq);
    subscriptions_set_behind(joins->subscriptions, subscription->link);
}

/* It cannot be read: no sync (PROTOCOL 6.5). */
static void joins_fail_read(struct joins *joins, struct subscription *subscription,
                            const struct store_snapshot *snapshot)
{
    void *connection = subscription->link->subscriber->connection;
    bool has_lost = subscription->reason != NULL;
    subscriptions_release(joins->subscriptions, subscription);
    subscriptions_activate(joins->subscriptions, subscription, snapshot->epoch, snapshot->seq);
    subscriptions_set_behind(joins->subscriptions, subscription->link);
    if (has_lost)
        joins->outlet.close(joins->outlet.context, connection, CLOSE_TRY_AGAIN,
                            "the stream cannot be read at present");
}

/* Send `data` to everybody who has waited for it, up to a turn's bytes; the others read again. */
static void joins_finish_read(struct join_read *read, struct span data)
{
    struct joins *joins = read->joins;
    const char *reason = NULL; /* of what is encoded */
    bool is_encoded = false;
    size_t sent_bytes = 0;
    struct subscription *subscription;
    while ((subscription = read->subscriptions) != NULL) { /* each turn takes one off */
        if (!is_encoded || reason != subscription_reason(subscription)) {
            reason = subscription_reason(subscription);
            is_encoded = joins_encode_sync(joins, subscription, &read->snapshot, data) == WEIR_OK;
        }
        if (!is_encoded || sent_bytes >= JOINS_TURN_BYTES) {
            joins_put_back(joins, subscription);
            continue;
        }
        sent_bytes += joins->json.bytes;
        joins_send_read(joins, subscription, &read->snapshot);
        if (read->subscriptions == subscription) /* its socket closes: it does not wait for us */
            subscriptions_release(joins->subscriptions, subscription);
    }
}

static void on_read(struct link_request *request, enum link_fate fate,
                    const struct wire_message *answer)
{
    struct join_read *read = (struct join_read *)(void *)request; /* its first member */
    struct joins *joins = read->joins;
    bool is_answered = fate == LINK_ANSWERED && answer != NULL;
    joins->read_count--;
    *read->link = read->next;
    if (read->next != NULL)
        read->next->link = read->link;
    if (is_answered && answer->fields[0].span.data == NULL && answer->fields[3].span.data == NULL) {
        struct span data = answer->fields[2].span;
        joins_finish_read(read, data.data == NULL ? SPAN_LITERAL("null") : data);
    }
    while (read->subscriptions != NULL) { /* each turn takes one off */
        if (is_answered)
            joins_fail_read(joins, read->subscriptions, &read->snapshot);
        else /* the broker is away: ask the next one */
            joins_put_back(joins, read->subscriptions);
    }
    free(read);
}

static bool subscriptions_want_the_same(const struct subscription *a, const struct subscription *b)
{
    return a->link->topic == b->link->topic && a->item_bytes == b->item_bytes &&
           (a->item_bytes == SUBSCRIPTION_WHOLE ||
            span_equal(subscription_item(a), subscription_item(b)));
}

/* A reading of what `subscription` wants, as of joins->cached. */
static struct join_read *joins_find_read(struct joins *joins,
                                         const struct subscription *subscription)
{
    struct join_read *read = joins->reads;
    while (read != NULL &&
           !(read->subscriptions != NULL && read->subscription_count < JOINS_READ_SHARE_MAX &&
             read->snapshot.seq == joins->cached.seq &&
             read->snapshot.epoch == joins->cached.epoch &&
             subscriptions_want_the_same(read->subscriptions, subscription)))
        read = read->next;
    return read;
}

/* Ask the broker; NULL: not now. */
static struct join_read *joins_ask(struct joins *joins, const struct subscription *subscription)
{
    const struct topic *topic = subscription->link->topic;
    bool is_whole = subscription->item_bytes == SUBSCRIPTION_WHOLE;
    const struct wire_field fields[] = {
        WIRE_NUMBER(is_whole ? WIRE_OP_LIST : WIRE_OP_GET),
        WIRE_SPAN(topic_stream(topic)),
        WIRE_SPAN(topic_group(topic)),
        WIRE_SPAN(subscription_item(subscription)),
        WIRE_NIL,
        WIRE_NIL,
        WIRE_NIL,
        WIRE_NIL,
    };
    struct join_read *read = joins->read_count < JOINS_READS_MAX ? malloc(sizeof *read) : NULL;
    if (read == NULL)
        return NULL;
    *read = (struct join_read){
        .request = {.done = on_read, .is_patient = true},
        .joins = joins,
        .next = joins->reads,
        .link = &joins->reads,
        .snapshot = joins->cached,
    };
    if (joins->ask(joins->link, WIRE_STREAM, fields, &read->request) != WEIR_OK) {
        free(read);
        return NULL;
    }
    if (read->next != NULL)
        read->next->link = &read->next;
    joins->reads = read;
    joins->read_count++;
    return read;
}

/* Bring the link to the group's newest event, joins->cached, and wait there for the value. */
static enum weir_status joins_start_read(struct joins *joins, struct subscription *subscription)
{
    enum weir_status status = joins_align(joins, subscription->link);
    if (status != WEIR_OK)
        return status;
    struct join_read *read = joins_find_read(joins, subscription);
    if (read == NULL)
        read = joins_ask(joins, subscription);
    if (read == NULL)
        return WEIR_AGAIN;
    read->subscription_count++;
    subscriptions_hold(subscription, &read->subscriptions);
    return WEIR_OK;
}

/* ---- syncs from the store ---- */

static bool joins_is_ready(const struct joins *joins, const struct subscription *subscription)
{
    const struct subscriber_link *link = subscription->link;
    bool is_busy = link->is_blocked && link->mode != DELIVERY_IDLE; /* it could not be aligned */
    return !link->is_held && !is_busy && !joins_must_wait(subscription) &&
           joins->outlet.backlog_bytes(joins->outlet.context, link->subscriber->connection) <=
               JOINS_BACKLOG_BYTES_MAX;
}

/* It goes with its socket. */
static enum weir_status joins_refuse_large(struct joins *joins,
                                           const struct subscription *subscription)
{
    counters_add(joins->counters, COUNTER_SYNCS_TOO_LARGE, 1);
    joins->outlet.close(joins->outlet.context, subscription->link->subscriber->connection,
                        CLOSE_TOO_BIG, "the snapshot is larger than a message may be");
    return WEIR_OK;
}

/* joins->json is its sync, as of joins->cached. OK: done with this subscription, which may go with its socket.
 * Anything else: not now. */
static enum weir_status joins_send(struct joins *joins, struct subscription *subscription)
{
    struct subscriber_link *link = subscription->link;
    void *connection = link->subscriber->connection;
    enum weir_status status = joins_align(joins, link);
    if (status != WEIR_OK)
        return status;
    status = joins->outlet.send_text(joins->outlet.context, connection, joins->json,
                                     (struct cursor){joins->cached.epoch, joins->cached.seq});
    if (status == WEIR_CLOSED)
        return WEIR_OK;
    if (status != WEIR_OK)
        return WEIR_AGAIN;
    joins->turn_bytes += joins->json.bytes;
    if (joins->cached.timestamp_ms > joins->newest_ms)
        joins->newest_ms = joins->cached.timestamp_ms;
    joins_count(joins, subscription_reason(subscription));
    subscriptions_activate(joins->subscriptions, subscription, joins->cached.epoch,
                           joins->cached.seq);
    if (joins->is_late) /* the feed may be past it */
        subscriptions_set_behind(joins->subscriptions, link);
    return WEIR_OK;
}

/* ---- positions clients have brought ---- */

/* joins->json becomes the `resumed` envelope. */
static enum weir_status joins_encode_greeting(struct joins *joins,
                                              const struct subscription *subscription,
                                              struct cursor cursor)
{
    const struct topic *topic = subscription->link->topic;
    bool is_whole = subscription->item_bytes == SUBSCRIPTION_WHOLE;
    weir_assert(topic != NULL);
    if (is_whole && joins->greeted_topic == topic && joins->greeted.epoch == cursor.epoch &&
        joins->greeted.seq == cursor.seq)
        return WEIR_OK;
    bool failed = false;
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    struct span item_escaped = joins_escape(subscription_item(subscription), &failed);
    const struct envelope envelope = {
        .event = ENVELOPE_RESUMED,
        .timestamp_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000,
        .seq = cursor.seq,
        .epoch = cursor.epoch,
        .stream_escaped = topic_stream_escaped(topic),
        .group_escaped = topic_group_escaped(topic),
        .id_escaped = item_escaped,
    };
    joins_forget_encoded(joins);
    enum weir_status status = failed ? WEIR_NO_MEMORY : joins_encode(joins, &envelope);
    free((void *)(uintptr_t)item_escaped.data);
    if (status == WEIR_OK && is_whole) {
        joins->greeted_topic = topic;
        joins->greeted = cursor;
    }
    return status;
}

/* OK: done with this subscription, which may go with its socket. EMPTY: its position cannot be served. Anything
 * else: not now. */
static enum weir_status joins_resume(struct joins *joins, struct subscription *subscription)
{
    struct subscriber_link *link = subscription->link;
    struct cursor cursor = subscription_cursor(subscription);
    bool was_idle = link->mode == DELIVERY_IDLE;
    joins->resume_count++;
    enum weir_status status = WEIR_EMPTY;
    if (was_idle)
        status = catch_up_reaches(joins->catch_up, link, cursor);
    else if (link->epoch == cursor.epoch && link->sent_seq == cursor.seq && link->conflated == 0)
        status = WEIR_OK;
    if (status == WEIR_OK)
        status = joins_encode_greeting(joins, subscription, cursor);
    if (status != WEIR_OK)
        return status;
    status = joins->outlet.send_text(joins->outlet.context, link->subscriber->connection,
                                     joins->json, cursor);
    if (status != WEIR_OK)
        return status == WEIR_CLOSED ? WEIR_OK : WEIR_AGAIN;
    counters_add(joins->counters, COUNTER_RESUMES, 1);
    subscriptions_activate(joins->subscriptions, subscription, cursor.epoch, cursor.seq);
    if (was_idle) {
        link->resumed = LINK_RESUMED_BY_CLIENT;
        subscriptions_set_behind(joins->subscriptions, link);
        joins->has_resumed = true;
    }
    return WEIR_OK;
}

/* OK: done with this subscription. Anything else: not now. */
static enum weir_status joins_serve(struct joins *joins, struct subscription *subscription)
{
    if (!joins_is_ready(joins, subscription))
        return WEIR_AGAIN;
    if (subscription->position == POSITION_BROUGHT) {
        enum weir_status status = joins_resume(joins, subscription);
        if (status != WEIR_EMPTY)
            return status;
        subscription->position = POSITION_EXPIRED;
    }
    joins->sync_count++;
    bool is_custom = custom_streams_have(joins->custom, topic_stream(subscription->link->topic));
    if (is_custom || !joins_is_cached(joins, subscription)) {
        enum weir_status status = joins_look(joins, subscription, is_custom);
        if (status == WEIR_PENDING)
            return WEIR_OK; /* joins_finish_walk() goes on with it */
        if (status == WEIR_OK && is_custom)
            return joins_start_read(joins, subscription);
        if (status == WEIR_OK)
            status = joins_prepare(joins, subscription);
        if (status == WEIR_FULL)
            return joins_refuse_large(joins, subscription);
        if (status != WEIR_OK)
            return status;
    }
    return joins_send(joins, subscription);
}

/* ---- syncs that have waited for the log ---- */

/* As joins_serve(), of a subscription that waited for `walk`; what it showed is joins->cached and
 * joins->value, unless `status` is an error. */
static enum weir_status joins_serve_late(struct joins *joins, struct subscription *subscription,
                                         const struct join_walk *walk, enum weir_status status)
{
    bool is_custom = custom_streams_have(joins->custom, topic_stream(subscription->link->topic));
    if (status == WEIR_FULL)
        return joins_refuse_large(joins, subscription);
    if (status != WEIR_OK || is_custom != walk->is_of_order ||
        !joins_is_ready(joins, subscription) || joins->turn_bytes >= JOINS_TURN_BYTES)
        return WEIR_AGAIN;
    if (is_custom)
        return joins_start_read(joins, subscription);
    if (joins->encoded != walk || joins->cached_reason != subscription_reason(subscription)) {
        joins->encoded = NULL;
        status = joins_prepare(joins, subscription);
        if (status == WEIR_FULL)
            return joins_refuse_large(joins, subscription);
        if (status != WEIR_OK)
            return status;
        joins->encoded = walk;
    }
    return joins_send(joins, subscription);
}

/* All that waited for it are served, or queue again. */
static void joins_finish_walk(struct joins *joins, struct join_walk *walk, enum weir_status status)
{
    joins->is_late = true;
    joins->encoded = NULL;
    struct subscription *subscription;
    while ((subscription = walk->subscriptions) != NULL) { /* each turn takes one off */
        subscriptions_release(joins->subscriptions, subscription);
        if (joins_serve_late(joins, subscription, walk, status) != WEIR_OK)
            subscriptions_push_sync(joins->subscriptions, subscription);
    }
    joins->is_late = false;
    joins->encoded = NULL;
    joins->cached_topic = NULL;
}

/* The log does not take what they would have been shown. */
static void joins_give_up(struct joins *joins, struct join_walk *walk)
{
    struct subscription *subscription;
    while ((subscription = walk->subscriptions) != NULL) { /* each turn takes one off */
        subscriptions_release(joins->subscriptions, subscription);
        counters_add(joins->counters, COUNTER_SYNCS_UNCOMMITTED, 1);
        joins->outlet.close(joins->outlet.context, subscription->link->subscriber->connection,
                            CLOSE_TRY_AGAIN, "the newest writes are not in the log");
    }
}

/* Nothing is committed while the broker is away, and the next one shows what is. */
static bool joins_may_wait(const struct joins *joins, struct join_walk *walk)
{
    if (joins->link != NULL && !link_is_attached(joins->link))
        walk->since_ms = joins->now_ms;
    return joins->now_ms < walk->since_ms + JOINS_COMMIT_WAIT_MS;
}

/* True: some of them do not wait any more. */
static bool joins_run_walks(struct joins *joins)
{
    bool has_moved = false;
    struct join_walk **link = &joins->walks.first;
    while (*link != NULL) { /* each turn passes one, or drops it */
        struct join_walk *walk = *link;
        enum weir_status status = WEIR_PENDING;
        if (joins->turn_bytes >= JOINS_TURN_BYTES)
            return true;
        if (walk->subscriptions != NULL) {
            buffer_clear(&joins->value);
            status = join_walk_finish(walk, &joins->cached, &joins->value);
            if (status == WEIR_PENDING && joins_may_wait(joins, walk)) {
                link = &walk->next;
                continue;
            }
            has_moved = true;
        }
        if (status == WEIR_PENDING)
            joins_give_up(joins, walk);
        else
            joins_finish_walk(joins, walk, status);
        join_walks_drop(&joins->walks, link);
    }
    return has_moved;
}

uint64_t joins_newest_ms(const struct joins *joins)
{
    return joins->newest_ms;
}

static bool is_news(const void *custom, struct span stream)
{
    return custom_streams_is_news(custom, stream);
}

/* Has this turn done its share of something the next in the queue may want? */
static bool joins_are_spent(const struct joins *joins)
{
    return joins->sync_count >= JOINS_TURN_MAX || joins->resume_count >= JOINS_TURN_RESUMES ||
           joins->vain_count >= JOINS_VAIN_MAX;
}

static void joins_start_pass(struct joins *joins, uint64_t now_ms)
{
    joins->now_ms = now_ms;
    joins->turn_bytes = 0;
    joins->vain_count = joins->resume_count = joins->sync_count = 0;
    joins->has_resumed = false;
    joins_forget_encoded(joins);
}

bool joins_run(struct joins *joins, uint64_t now_ms)
{
    if (custom_streams_have_news(joins->custom)) {
        subscriptions_resync_streams(joins->subscriptions, is_news, joins->custom, "restarted");
        custom_streams_settle(joins->custom);
    }
    joins_start_pass(joins, now_ms);
    if (joins->mapping == NULL)
        return false;
    bool has_moved = joins_run_walks(joins); /* their links have events to catch up with */
    unsigned served = 0;
    size_t todo = joins->subscriptions->sync_count;
    bool is_cut = todo > JOINS_TURN_MAX + JOINS_TURN_RESUMES;
    if (is_cut)
        todo = JOINS_TURN_MAX + JOINS_TURN_RESUMES;
    for (; todo > 0; todo--) {
        if (joins->turn_bytes >= JOINS_TURN_BYTES)
            return true;
        if (joins_are_spent(joins)) { /* those behind come first next time */
            is_cut = true;
            break;
        }
        struct subscription *subscription = subscriptions_pop_sync(joins->subscriptions);
        if (subscription == NULL)
            break;
        if (joins_serve(joins, subscription) == WEIR_OK)
            served++;
        else
            subscriptions_push_sync(joins->subscriptions, subscription);
    }
    joins_forget_encoded(joins);
    /* When nothing of a full pass could be done, the next tick is early enough. */
    return has_moved || joins->has_resumed || (is_cut && served > 0);
}

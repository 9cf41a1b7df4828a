/* gateway/subscriptions.h -- who wants which group: topics, one link per (socket, topic),
 * subscriptions.
 *
 *   subscriber (socket) --> link --> topic (stream, group)
 *                            |
 *                            +--> subscription "s1" (whole group), "s2" (item m9) ...
 *
 * A link is a cursor into the group's events: (epoch, sent_seq) is the newest event the socket has
 * been given or that did not concern it. Nothing is queued per socket. A link is
 *
 *   idle     no active subscription: nothing is delivered
 *   live     takes events from the feed as they come
 *   behind   was busy, or the feed missed something: catches up from the ring (catch_up.h), the feed
 *            passes it over
 *
 * and, whatever its mode, stands still while it is held: while the sync of a worker's own stream is
 * read, or a sync waits for the log (joins.h). When another broker goes on with the groups of the last
 * one, every link that is not idle is behind until it was compared with its group there: what is
 * missing comes from the new ring, and what cannot have been (a seq or an epoch the group has not
 * reached) is a fresh sync. A subscription waits in the sync queue until its snapshot has been sent
 * (joins.h), then it is active.
 *
 * Process:  gateway, loop thread only.
 * Memory:   all owned here. A subscriber is embedded in its socket and stays put until
 *           subscriptions_remove_subscriber(). An idle subscriber of one group costs one link (88
 *           B), one subscription (64 B and its id) and a topic's pointer.
 * Errors:   FULL: subscriptions_max of the socket is reached. NO_MEMORY. TOO_LARGE: a name beyond
 *           NAME_BYTES_MAX.
 */
#ifndef WEIR_GATEWAY_SUBSCRIPTIONS_H
#define WEIR_GATEWAY_SUBSCRIPTIONS_H

#include "gateway/counters.h"
#include "gateway/pace.h"
#include "gateway/trail.h"
#include "gateway/wanted.h"

struct subscriber_link;
struct subscription;

/* A place in a group's order: everything up to event `seq` of `epoch`. */
struct cursor {
    uint64_t epoch, seq;
};

/* What a subscriber gets that has fallen behind further than its lag limit (catch_up.h). */
enum slow_policy {
    SLOW_LATEST,     /* the newest event of each item, marked; else a fresh sync */
    SLOW_LOSSLESS,   /* every event the ring still has, however many; else a fresh sync */
    SLOW_DISCONNECT, /* close with 1013 */
};

/* How events are put for a subscriber. */
enum subscriber_format { FORMAT_WEBSOCKET, FORMAT_EVENT_STREAM };

struct topic {
    uint64_t hash; /* store_group_hash() with the current segment's seed */
    struct topic *bucket_next;
    struct subscriber_link **links;
    uint32_t link_count, link_capacity;
    struct trail trail; /* its records in the ring */
    struct pace pace;   /* of its events */
    /* The feed's records of this turn: a chain through feed entries. */
    struct topic *touched_next;
    uint32_t first_entry, last_entry, entry_count;
    uint32_t stream_bytes, group_bytes, stream_escaped_bytes, group_escaped_bytes;
    char names[]; /* stream, group, escaped stream, escaped group */
};

#define TOPIC_NO_ENTRY UINT32_MAX

struct subscriber {
    void *connection;
    struct subscriber_link *links;
    uint32_t subscription_count;
    uint8_t format;      /* enum subscriber_format */
    struct span context; /* auth's, JSON; data NULL: none; the socket's own */
};

enum delivery_mode { DELIVERY_IDLE, DELIVERY_LIVE, DELIVERY_BEHIND };

struct subscriber_link {
    struct topic *topic;
    struct subscriber *subscriber;
    struct subscriber_link *next; /* of the subscriber */
    struct subscription *subscriptions;
    uint64_t epoch, sent_seq;
    struct subscriber_link *behind_next, *behind_previous; /* in the behind queue */
    uint32_t topic_index;             /* topic->links[topic_index] is this link */
    uint32_t whole_count, item_count; /* active subscriptions */
    /* Not 0: it is being given the newest event of each item of a range that starts `conflated` events
     * before sent_seq, where the client stands until it has all of it, `conflated_left` behind. */
    uint16_t conflated, conflated_left;
    uint16_t
        lag_events; /* behind by more, the policy decides; both of the subscription that made it */
    uint8_t mode : 2;       /* enum delivery_mode */
    uint8_t is_queued : 1;  /* in the behind queue */
    uint8_t is_blocked : 1; /* behind, and the socket's writable notice is to come */
    uint8_t is_held : 1;    /* stands still: the sync of one of them is on its way */
    uint8_t resumed : 2;    /* enum link_resumed */
    uint8_t policy : 2;     /* enum slow_policy */
};

/* Behind, and the cursor is not yet compared with the group: it is of the last broker's, or what a
 * client has brought. */
enum link_resumed { LINK_NOT_RESUMED, LINK_RESUMED_BY_BROKER, LINK_RESUMED_BY_CLIENT };

/* The reason of a sync in place of what followed a position a client has brought. */
extern const char SUBSCRIPTION_EXPIRED[];

#define SUBSCRIPTION_WHOLE UINT32_MAX /* in place of an item's length: the whole group */

struct subscription {
    struct subscription *next; /* of the link */
    struct subscriber_link *link;
    struct subscription *queue_next, *queue_previous;
    struct subscription **holder; /* what points to it in a list of held ones; NULL: not held */
    struct subscription *held_next;
    const char *reason; /* of the sync that is due; NULL: a first one */
    uint64_t number;    /* the observer's; 0 at first */
    uint32_t id_bytes;
    uint32_t item_bytes; /* SUBSCRIPTION_WHOLE: the whole group */
    uint8_t is_active;
    uint8_t is_queued;
    uint8_t position; /* enum subscription_position */
    char text[];      /* id, item; with a position brought, a struct cursor */
};

/* What has become of the position a client has brought with a join. */
enum subscription_position {
    POSITION_NONE,    /* none, or it went on from there */
    POSITION_BROUGHT, /* to be looked at when its turn in the sync queue comes */
    POSITION_EXPIRED, /* it cannot be served: its first sync says so */
};

/* Told of what becomes of subscriptions. `ended` is not told of one that was replaced; nothing here
 * may be called back. */
struct subscriptions_observer {
    /* `is_first`: not after a fresh sync. */
    void (*activated)(void *context, struct subscription *subscription, bool is_first);
    void (*replaced)(void *context, const struct subscription *old, struct subscription *made);
    void (*ended)(void *context, const struct subscription *subscription);
    void *context; /* NULL: nobody is told */
};

struct subscriptions {
    struct topic **buckets;
    size_t bucket_count; /* a power of two */
    size_t topic_count;
    uint64_t hash_seed;
    struct wanted *wanted;      /* the topics, for the doorbell */
    uint64_t subscriptions_max; /* per socket */
    uint32_t
        ring_life; /* of which the topics' trails are; another one when the feed misses something */
    bool duplicate_deliveries;
    struct subscriber_link *behind_first, *behind_last;
    struct subscription *sync_first, *sync_last;
    size_t sync_count, behind_count;
    struct counters *counters;
    struct subscriptions_observer observer;
    /* Where a walk over all links is: links of walk_topic from walk_links on have been visited. */
    size_t walk_bucket;
    struct topic *walk_topic;
    uint32_t walk_links;
};

struct subscription_wish {
    struct span subscription_id;
    struct span stream;
    struct span group;
    struct span item; /* data == NULL: the whole group */
    enum slow_policy policy;
    uint32_t lag_events; /* behind by more, the policy decides; always set by who asks */
    /* Where the client has been before: it goes on from there if it can (joins.h). */
    bool has_cursor;
    struct cursor cursor;
};

enum weir_status subscriptions_init(struct subscriptions *subscriptions, uint64_t subscriptions_max,
                                    bool duplicate_deliveries,
                                    struct counters *counters) WEIR_MUST_CHECK;
/* All subscribers must have been removed. */
void subscriptions_fini(struct subscriptions *subscriptions);

/* Add, replacing a subscription of the same id on that socket, and queue its sync. */
enum weir_status subscriptions_add(struct subscriptions *subscriptions,
                                   struct subscriber *subscriber,
                                   const struct subscription_wish *wish) WEIR_MUST_CHECK;
bool subscriptions_has(const struct subscriber *subscriber, struct span subscription_id);
/* False: no such id. */
bool subscriptions_remove(struct subscriptions *subscriptions, struct subscriber *subscriber,
                          struct span subscription_id);
void subscriptions_remove_subscriber(struct subscriptions *subscriptions,
                                     struct subscriber *subscriber);

/* The topic a record belongs to, or NULL: hash first, then the escaped names inside its frame. */
struct topic *subscriptions_find_record(const struct subscriptions *subscriptions,
                                        const struct ring_record *record, struct span frame);
/* The reader of a new segment, which is to be woken for the groups there are; one of the next two follows. */
void subscriptions_set_reader(struct subscriptions *subscriptions, struct reader *reader);
/* A new segment: other hash seed, other epochs. Every subscription gets a fresh sync with `reason`. */
void subscriptions_restart(struct subscriptions *subscriptions, uint64_t hash_seed,
                           const char *reason);
/* A new segment with the groups of the old one: other hash seed, the same epochs and seqs. Links keep
 * their cursors and catch up from there; syncs that were being read are read anew. */
void subscriptions_resume(struct subscriptions *subscriptions, uint64_t hash_seed);
/* Subscriptions of the streams that are `wanted` get a fresh sync with `reason`. */
typedef bool subscriptions_wanted(const void *context, struct span stream);
void subscriptions_resync_streams(struct subscriptions *subscriptions, subscriptions_wanted *wanted,
                                  const void *context, const char *reason);
/* The feed has missed something: every live link has to catch up, and nobody knows where records are. */
void subscriptions_all_behind(struct subscriptions *subscriptions);

/* Walk over all links, in pieces, while they come and go: each one that is there from the start to
 * the end is visited at least once. NULL at the end. */
void subscriptions_walk_start(struct subscriptions *subscriptions);
struct subscriber_link *subscriptions_walk_next(struct subscriptions *subscriptions);

/* How many of the link's active subscriptions match an event with this item id (data NULL: no id). */
unsigned subscriptions_match_count(const struct subscriber_link *link, struct span item);
/* What to send of one event: 0 = nothing, else the number of copies (1 unless duplicates are
 * wanted). */
unsigned subscriptions_copies(const struct subscriptions *subscriptions,
                              const struct subscriber_link *link, struct span item);
/* True when every event of the group goes to the link exactly once, so that its bytes can be
 * shared. */
static inline bool subscriptions_takes_all(const struct subscriptions *subscriptions,
                                           const struct subscriber_link *link)
{
    if (!subscriptions->duplicate_deliveries)
        return link->whole_count > 0;
    return link->whole_count == 1 && link->item_count == 0;
}

/* Link modes. resync: all its subscriptions stop and are queued for a fresh sync. */
void subscriptions_set_behind(struct subscriptions *subscriptions, struct subscriber_link *link);
void subscriptions_set_live(struct subscriptions *subscriptions, struct subscriber_link *link);
void subscriptions_resync(struct subscriptions *subscriptions, struct subscriber_link *link,
                          const char *reason);
/* Nothing more is delivered to the subscriber: its socket is being closed. */
void subscriptions_stop(struct subscriptions *subscriptions, struct subscriber *subscriber);
/* Why the link would have to start anew now. */
const char *subscriptions_loss_reason(const struct subscriber_link *link);
/* The socket takes bytes again: its behind links go back into the behind queue. */
void subscriptions_unblock(struct subscriptions *subscriptions, struct subscriber *subscriber);
void subscriptions_block(struct subscriptions *subscriptions, struct subscriber_link *link);

/* The subscription's sync is read elsewhere, or waits for the log, as of where its link stands or of
 * what comes after: the link stands still, and events wait in the ring. It is put at the head of
 * `list`, and leaves it when it goes, or is to have another sync. */
void subscriptions_hold(struct subscription *subscription, struct subscription **list);
/* That is over; the link catches up. */
void subscriptions_release(struct subscriptions *subscriptions, struct subscription *subscription);

/* Queues. pop takes the first off; the caller puts it back or is done with it. */
struct subscriber_link *subscriptions_pop_behind(struct subscriptions *subscriptions);
void subscriptions_push_behind(struct subscriptions *subscriptions, struct subscriber_link *link);
/* It is the next to be popped. */
void subscriptions_push_behind_first(struct subscriptions *subscriptions,
                                     struct subscriber_link *link);
/* All of the topic that are in the queue are the next to be popped. */
void subscriptions_gather_behind(struct subscriptions *subscriptions, const struct topic *topic);
struct subscription *subscriptions_pop_sync(struct subscriptions *subscriptions);
void subscriptions_push_sync(struct subscriptions *subscriptions,
                             struct subscription *subscription);
/* The subscription's sync has been sent. */
void subscriptions_activate(struct subscriptions *subscriptions, struct subscription *subscription,
                            uint64_t epoch, uint64_t seq);

static inline struct span topic_stream(const struct topic *topic)
{
    return span_of(topic->names, topic->stream_bytes);
}
static inline struct span topic_group(const struct topic *topic)
{
    return span_of(topic->names + topic->stream_bytes, topic->group_bytes);
}
static inline struct span topic_stream_escaped(const struct topic *topic)
{
    return span_of(topic->names + topic->stream_bytes + topic->group_bytes,
                   topic->stream_escaped_bytes);
}
static inline struct span topic_group_escaped(const struct topic *topic)
{
    return span_of(topic->names + topic->stream_bytes + topic->group_bytes +
                       topic->stream_escaped_bytes,
                   topic->group_escaped_bytes);
}
static inline struct span subscription_id(const struct subscription *subscription)
{
    return span_of(subscription->text, subscription->id_bytes);
}
/* Only of one whose position is POSITION_BROUGHT. */
static inline struct cursor subscription_cursor(const struct subscription *subscription)
{
    struct cursor cursor;
    size_t item_bytes =
        subscription->item_bytes == SUBSCRIPTION_WHOLE ? 0 : subscription->item_bytes;
    memcpy(&cursor, subscription->text + subscription->id_bytes + item_bytes, sizeof cursor);
    return cursor;
}
/* Why its sync is sent; NULL: a first one. */
static inline const char *subscription_reason(const struct subscription *subscription)
{
    if (subscription->reason != NULL)
        return subscription->reason;
    return subscription->position == POSITION_EXPIRED ? SUBSCRIPTION_EXPIRED : NULL;
}
/* It is active, or was before its fresh sync became due. */
static inline bool subscription_has_begun(const struct subscription *subscription)
{
    return subscription->is_active || subscription->reason != NULL;
}
static inline struct span subscription_item(const struct subscription *subscription)
{
    return subscription->item_bytes == SUBSCRIPTION_WHOLE
               ? (struct span){0}
               : span_of(subscription->text + subscription->id_bytes, subscription->item_bytes);
}

#endif

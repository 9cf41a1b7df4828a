#include "gateway/join_walks.h"

#include <stdlib.h>

void join_walks_init(struct join_walks *walks, struct counters *counters)
{
    *walks = (struct join_walks){.end = &walks->first, .counters = counters};
}

struct join_walk *join_walks_find(const struct join_walks *walks,
                                  const struct subscription *subscription, bool of_order)
{
    const struct topic *topic = subscription->link->topic;
    bool is_whole = !of_order && subscription->item_bytes == SUBSCRIPTION_WHOLE;
    struct span item = of_order ? (struct span){0} : subscription_item(subscription);
    struct join_walk *walk = walks->first;
    while (walk != NULL &&
           !(walk->is_of_order == of_order && walk->is_whole == is_whole &&
             span_equal(walk->group, topic_group(topic)) &&
             span_equal(walk->stream, topic_stream(topic)) && span_equal(walk->item, item)))
        walk = walk->next;
    return walk;
}

bool join_walks_are_full(const struct join_walks *walks)
{
    return walks->count >= JOIN_WALKS_MAX || walks->bytes >= JOIN_WALKS_BYTES_MAX;
}

static char *put_name(char *to, struct span name, struct span *kept)
{
    if (name.bytes > 0)
        memcpy(to, name.data, name.bytes);
    *kept = span_of(to, name.bytes);
    return to + name.bytes;
}

struct join_walk *join_walks_keep(struct join_walks *walks, struct store_snapshot_walk *snapshot,
                                  const struct subscription *subscription, bool of_order,
                                  uint64_t now_ms)
{
    struct span stream = topic_stream(subscription->link->topic);
    struct span group = topic_group(subscription->link->topic);
    struct span item = of_order ? (struct span){0} : subscription_item(subscription);
    struct join_walk *walk = malloc(sizeof *walk + stream.bytes + group.bytes + item.bytes);
    if (walk == NULL) {
        store_snapshot_cancel(snapshot);
        return NULL;
    }
    *walk = (struct join_walk){
        .snapshot = snapshot,
        .is_of_order = of_order,
        .since_ms = now_ms,
        .bytes = store_snapshot_bytes(snapshot),
        .is_whole = !of_order && subscription->item_bytes == SUBSCRIPTION_WHOLE,
    };
    char *to = put_name(walk->names, stream, &walk->stream);
    to = put_name(to, group, &walk->group);
    (void)put_name(to, item, &walk->item);
    *walks->end = walk;
    walks->end = &walk->next;
    walks->count++;
    walks->bytes += walk->bytes;
    counters_add(walks->counters, COUNTER_SYNCS_WAITING, 1);
    return walk;
}

enum weir_status join_walk_finish(struct join_walk *walk, struct store_snapshot *snapshot,
                                  struct buffer *out)
{
    enum weir_status status = store_snapshot_finish(walk->snapshot, snapshot, out);
    if (status != WEIR_PENDING)
        walk->snapshot = NULL;
    return status;
}

void join_walks_drop(struct join_walks *walks, struct join_walk **link)
{
    struct join_walk *walk = *link;
    weir_assert(walk->subscriptions == NULL);
    *link = walk->next;
    if (walks->end == &walk->next)
        walks->end = link;
    walks->count--;
    walks->bytes -= walk->bytes;
    counters_subtract(walks->counters, COUNTER_SYNCS_WAITING, 1);
    store_snapshot_cancel(walk->snapshot);
    free(walk);
}

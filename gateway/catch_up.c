#include "gateway/catch_up.h"

#include <stdlib.h>

struct catch_up {
    struct subscriptions *subscriptions;
    struct outlet outlet;
    struct counters *counters;
    struct mapping *mapping;
    uint64_t *positions; /* of one walk, newest first */
    struct buffer bytes; /* of one send */
    uint64_t turn_records, turn_bytes;
    /* The send under way. */
    struct subscriber_link *sending;
    enum weir_status sent_status;
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
    catch_up->positions = malloc(CATCH_UP_RECORDS_MAX * sizeof *catch_up->positions);
    /* One send, and behind it one more record of the largest size. */
    buffer_init(&catch_up->bytes, RING_BYTES_MAX / RING_RECORD_SHARE + 2 * CATCH_UP_SEND_BYTES);
    if (catch_up->positions == NULL ||
        buffer_reserve(&catch_up->bytes, CATCH_UP_SEND_BYTES) != WEIR_OK) {
        catch_up_close(catch_up);
        return NULL;
    }
    return catch_up;
}

void catch_up_close(struct catch_up *catch_up)
{
    if (catch_up == NULL)
        return;
    buffer_fini(&catch_up->bytes);
    free(catch_up->positions);
    free(catch_up);
}

void catch_up_set_mapping(struct catch_up *catch_up, struct mapping *mapping)
{
    catch_up->mapping = mapping;
}

void catch_up_forget(struct catch_up *catch_up, const struct subscriber *subscriber)
{
    if (catch_up->sending != NULL && catch_up->sending->subscriber == subscriber)
        catch_up->sending = NULL;
}

static enum weir_status catch_up_give_up(struct catch_up *catch_up, struct subscriber_link *link)
{
    subscriptions_resync(catch_up->subscriptions, link, subscriptions_loss_reason(link));
    return WEIR_LAPPED;
}

/* Has the link seen what its group has not? Within one life of the broker it cannot have, but a group
 * looks older when its record was dropped and the store shows a next life that is not there yet. */
static bool link_is_ahead(const struct subscriber_link *link, const struct store_group *group)
{
    return link->resumed != LINK_NOT_RESUMED &&
           (group->epoch < link->epoch ||
            (group->epoch == link->epoch && group->seq < link->sent_seq));
}

/* Fill `positions` from `newest` back to the event after the cursor; only those up to `seq_limit`
 * are kept.
 * EMPTY: the way back is cut (lapped, too long, another epoch). */
static enum weir_status catch_up_walk(struct catch_up *catch_up, const struct subscriber_link *link,
                                      uint64_t newest, uint64_t seq_limit, uint32_t *count)
{
    uint64_t position = newest;
    uint64_t expected_seq = 0; /* the first record may have any */
    *count = 0;
    for (uint32_t walked = 0; walked < CATCH_UP_RECORDS_MAX; walked++) {
        struct ring_record record;
        enum weir_status status = ring_read_at(&catch_up->mapping->ring, position, &record, NULL);
        catch_up->turn_records++;
        if (status == WEIR_PENDING)
            return WEIR_PENDING;
        if (status != WEIR_OK || record.group_hash != link->topic->hash ||
            record.epoch != link->epoch || record.seq <= link->sent_seq ||
            (expected_seq != 0 && record.seq != expected_seq))
            return WEIR_EMPTY;
        if (record.seq <= seq_limit)
            catch_up->positions[(*count)++] = position;
        if (record.seq == link->sent_seq + 1)
            return WEIR_OK;
        expected_seq = record.seq - 1;
        position = record.previous_position;
    }
    return WEIR_EMPTY;
}

static void on_sent(void *context, void *entry, enum weir_status status)
{
    struct catch_up *catch_up = context;
    (void)entry;
    catch_up->sent_status = status;
}

static enum weir_status catch_up_send(struct catch_up *catch_up, struct subscriber_link *link)
{
    struct iovec frames = {catch_up->bytes.data, catch_up->bytes.bytes};
    catch_up->sending = link;
    catch_up->sent_status = WEIR_CLOSED;
    catch_up->outlet.add(catch_up->outlet.context, link->subscriber->connection, &frames, 1, link);
    catch_up->outlet.flush(catch_up->outlet.context, on_sent, catch_up);
    bool is_gone = catch_up->sending == NULL;
    catch_up->sending = NULL;
    if (is_gone)
        return WEIR_CLOSED;
    if (catch_up->sent_status != WEIR_OK) {
        counters_add(catch_up->counters, COUNTER_DELIVERIES_BUSY, 1);
        subscriptions_block(catch_up->subscriptions, link);
        return catch_up->sent_status == WEIR_CLOSED ? WEIR_CLOSED : WEIR_AGAIN;
    }
    catch_up->turn_bytes += catch_up->bytes.bytes;
    counters_add(catch_up->counters, COUNTER_CATCH_UPS, 1);
    counters_add(catch_up->counters, COUNTER_DELIVERIES, 1);
    counters_add(catch_up->counters, COUNTER_DELIVERY_BYTES, catch_up->bytes.bytes);
    return WEIR_OK;
}

/* Append the event at `position` as often as the link wants it. */
static enum weir_status catch_up_read(struct catch_up *catch_up, const struct subscriber_link *link,
                                      uint64_t position, uint64_t *seq)
{
    struct buffer *bytes = &catch_up->bytes;
    struct ring_record record;
    size_t before = bytes->bytes;
    enum weir_status status = ring_read_at(&catch_up->mapping->ring, position, &record, bytes);
    if (status != WEIR_OK)
        return status;
    *seq = record.seq;
    struct span item = {0};
    if (record.id_bytes != UINT32_MAX)
        item = span_of(bytes->data + before + record.frame_bytes, record.id_bytes);
    unsigned copies = subscriptions_copies(catch_up->subscriptions, link, item);
    bytes->bytes = before;
    if (copies == 0)
        return WEIR_OK;
    bytes->bytes += record.frame_bytes;
    for (unsigned i = 1; i < copies; i++) {
        status = buffer_reserve(bytes, record.frame_bytes);
        if (status != WEIR_OK) {
            bytes->bytes = before;
            return status;
        }
        memcpy(bytes->data + bytes->bytes, bytes->data + before, record.frame_bytes);
        bytes->bytes += record.frame_bytes;
    }
    return WEIR_OK;
}

/* Read what the walk found, oldest first, and send it. `*left` = events not yet sent. */
static enum weir_status catch_up_deliver(struct catch_up *catch_up, struct subscriber_link *link,
                                         uint32_t count, uint32_t *left)
{
    uint64_t seq = link->sent_seq;
    buffer_clear(&catch_up->bytes);
    while (count > 0 && catch_up->bytes.bytes < CATCH_UP_SEND_BYTES) {
        uint64_t read_seq;
        enum weir_status status =
            catch_up_read(catch_up, link, catch_up->positions[count - 1], &read_seq);
        catch_up->turn_records++;
        if (status != WEIR_OK)
            return WEIR_EMPTY; /* lapped between the walk and now, or no memory: the rest is a sync's */
        weir_assert(read_seq == seq + 1);
        seq = read_seq;
        count--;
    }
    *left = count;
    if (catch_up->bytes.bytes > 0) {
        enum weir_status status = catch_up_send(catch_up, link);
        if (status != WEIR_OK)
            return status;
    }
    link->sent_seq = seq;
    return WEIR_OK;
}

enum weir_status catch_up_link(struct catch_up *catch_up, struct subscriber_link *link,
                               uint64_t seq_limit)
{
    if (catch_up->mapping == NULL)
        return WEIR_PENDING;
    if (link->is_blocked)
        return WEIR_AGAIN;
    struct store_group group;
    enum weir_status status = store_read_group(catch_up->mapping->store, topic_stream(link->topic),
                                               topic_group(link->topic), &group);
    catch_up->turn_records++;
    if (status != WEIR_OK && status != WEIR_EMPTY)
        return WEIR_PENDING;
    if (link_is_ahead(link, &group))
        return catch_up_give_up(catch_up, link);
    if (status == WEIR_EMPTY) /* never there, or forgotten after its last item had gone */
        return link->sent_seq == 0 ? WEIR_OK : catch_up_give_up(catch_up, link);
    if (group.epoch != link->epoch)
        return group.epoch < link->epoch ? WEIR_OK : catch_up_give_up(catch_up, link);
    uint64_t target = group.seq < seq_limit ? group.seq : seq_limit;
    if (target <= link->sent_seq)
        return WEIR_OK;
    uint32_t count, left = 0;
    status = catch_up_walk(catch_up, link, group.newest_position, seq_limit, &count);
    if (status == WEIR_OK) {
        link->resumed = LINK_NOT_RESUMED; /* the ring leads to where it stands */
        status = catch_up_deliver(catch_up, link, count, &left);
    }
    if (status == WEIR_EMPTY)
        return catch_up_give_up(catch_up, link);
    if (status == WEIR_OK && left > 0)
        return WEIR_PENDING;
    return status;
}

enum weir_status catch_up_reaches(struct catch_up *catch_up, const struct topic *topic,
                                  struct cursor cursor)
{
    if (catch_up->mapping == NULL)
        return WEIR_PENDING;
    struct store_group group;
    enum weir_status status =
        store_read_group(catch_up->mapping->store, topic_stream(topic), topic_group(topic), &group);
    if (status != WEIR_OK && status != WEIR_EMPTY)
        return WEIR_PENDING;
    if (group.epoch != cursor.epoch || group.seq < cursor.seq)
        return WEIR_EMPTY;
    if (group.seq == cursor.seq)
        return WEIR_OK;
    const struct subscriber_link link = {
        .topic = (struct topic *)topic, .epoch = cursor.epoch, .sent_seq = cursor.seq};
    uint32_t count;
    return catch_up_walk(catch_up, &link, group.newest_position, UINT64_MAX, &count);
}

bool catch_up_run(struct catch_up *catch_up)
{
    catch_up->turn_records = catch_up->turn_bytes = 0;
    size_t todo = catch_up->subscriptions->behind_count;
    for (; todo > 0; todo--) {
        if (catch_up->turn_records >= CATCH_UP_TURN_RECORDS ||
            catch_up->turn_bytes >= CATCH_UP_TURN_BYTES)
            return true;
        struct subscriber_link *link = subscriptions_pop_behind(catch_up->subscriptions);
        if (link == NULL)
            return false;
        if (link->is_held) /* comes back when it is let go */
            continue;
        uint64_t before = link->sent_seq;
        enum weir_status status = catch_up_link(catch_up, link, UINT64_MAX);
        if (status == WEIR_OK)
            subscriptions_set_live(catch_up->subscriptions, link);
        if (status != WEIR_PENDING)
            continue;
        subscriptions_push_behind(catch_up->subscriptions, link);
        if (link->sent_seq != before)
            todo++; /* it moves: go round within the budget */
    }
    return false;
}

/* Delivery as a whole, without sockets: a real segment, store and ring written by the test; the
 * gateway's subscriptions, feed, fan-out, catch-up and joins; and sockets that are busy, full or
 * gone at random. Every socket checks what it is given: the first event after a sync at seq n is n
 * + 1, no gap, no repeat, and no event that was not asked for. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "gateway/fanout.h"
#include "gateway/join_walks.h"
#include "gateway/joins.h"
#include "gateway/stream_socket.h"
#include "gateway/turn.h"
#include "gateway/uuid.h"
#include "shm/envelope.h"
#include "shm/json.h"
#include "tests/store_fixture.h"

enum {
    GROUPS = 3,
    ITEMS = 4,
    SOCKETS = 12,
    SENDS_MAX = 256,
    EVENTS_MAX = 40000,
    SUBSCRIPTIONS = 3,
    UNCOMMITTED_MAX = 256
};
#define FIRST_GENERATION 1700000000000000ull

static uint64_t random_state;
static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}
static unsigned random_below(unsigned bound)
{
    return (unsigned)(random_next() % bound);
}

/* ---- the writer's side ---- */

struct event {
    uint64_t seq;
    int item; /* -1: none */
    enum envelope_event kind;
    int value_bytes;
};

static struct world {
    struct segment segment;
    struct readers *readers;
    struct store *store;
    struct ring_writer *ring;
    struct event events[GROUPS][EVENTS_MAX];
    unsigned event_count[GROUPS];
    uint8_t order[GROUPS * EVENTS_MAX]; /* the groups that were written to */
    unsigned order_count;
    uint64_t now_ms;
    uint64_t commit; /* of what is written */
    /* A store that is logged: what is written and not committed, oldest first. */
    bool is_logged;
    struct {
        uint64_t offset, seq, position, end;
    } uncommitted[UNCOMMITTED_MAX];
    unsigned uncommitted_first, uncommitted_count;
    uint64_t turn_ms; /* the gateway's clock */
    /* the gateway's side */
    struct mapping *mapping;
    struct counters counters;
    struct subscriptions subscriptions;
    struct feed feed;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct joins *joins;
} world;

static struct span group_name(unsigned group)
{
    static const char *const names[GROUPS] = {"g", "h\"\\ \n", ""};
    return span_text(names[group]);
}
static struct span item_name(unsigned item)
{
    static const char *const names[ITEMS] = {"a", "b", "", "d\"\xF0\x9F\x98\x80"};
    return span_text(names[item]);
}

static void world_append(const struct store_change *change, enum envelope_event kind,
                         struct span data, struct span item)
{
    static char frame[65536];
    struct envelope envelope = {
        .event = kind,
        .timestamp_ms = change->group.timestamp_ms,
        .seq = change->group.seq,
        .epoch = change->group.epoch,
        .stream_escaped = change->group.stream_escaped,
        .group_escaped = change->group.group_escaped,
        .id_escaped = item.data == NULL ? (struct span){0} : change->id_escaped,
        .event_type = SPAN_LITERAL("t"),
        .data = data,
    };
    cr_assert_leq(envelope_bytes_max(&envelope), sizeof frame);
    struct envelope_layout layout = envelope_encode(frame, &envelope);
    struct ring_record record = {
        .previous_position = store_group_newest_position(world.store, change->group.offset),
        .group_offset = change->group.offset,
        .group_hash = change->group.hash,
        .item_hash = change->item_hash,
        .seq = change->group.seq,
        .epoch = change->group.epoch,
        .timestamp_ms = change->group.timestamp_ms,
        .commit = world.commit,
        .kind = (uint32_t)kind,
        .json_offset = layout.json_offset,
        .names_offset = layout.names_offset,
        .data_offset = layout.data_offset,
        .data_bytes = layout.data_bytes,
    };
    enum weir_status status =
        ring_append(world.ring, &record, span_of(frame, layout.frame_bytes), item, NULL);
    cr_assert_eq(status, WEIR_OK);
    store_group_published(world.store, change->group.offset, record.position);
    if (!world.is_logged) {
        ring_publish(world.ring);
        return;
    }
    cr_assert_lt(world.uncommitted_count, UNCOMMITTED_MAX);
    unsigned at = (world.uncommitted_first + world.uncommitted_count++) % UNCOMMITTED_MAX;
    world.uncommitted[at].offset = change->group.offset;
    world.uncommitted[at].seq = change->group.seq;
    world.uncommitted[at].position = record.position;
    world.uncommitted[at].end = ring_head(world.ring);
}

/* The log has got the oldest writes, all but `left`. */
static void world_commit(unsigned left)
{
    while (world.uncommitted_count > left) {
        unsigned at = world.uncommitted_first;
        store_group_committed(world.store, world.uncommitted[at].offset, world.uncommitted[at].seq,
                              world.uncommitted[at].position);
        ring_publish_to(world.ring, world.uncommitted[at].end);
        world.uncommitted_first = (at + 1) % UNCOMMITTED_MAX;
        world.uncommitted_count--;
    }
}

/* False: there was nothing to delete. */
static bool world_apply(unsigned group, const struct event *event)
{
    static const struct span stream = {"s", 1};
    struct store_key key = {stream, group_name(group), {0}};
    struct store_change change;
    char value[8192];
    enum weir_status status = WEIR_OK;
    if (event->item >= 0)
        key.item = item_name((unsigned)event->item);
    if (event->kind == ENVELOPE_EVENT) {
        cr_assert_eq(store_touch(world.store, &key, world.now_ms, &change), WEIR_OK);
        world_append(&change, ENVELOPE_EVENT, SPAN_LITERAL("1"), key.item);
    } else if (event->kind == ENVELOPE_DELETE) {
        status = store_delete(world.store, &key, world.now_ms, &change);
        if (status == WEIR_EMPTY)
            return false;
        cr_assert_eq(status, WEIR_OK);
        world_append(&change, ENVELOPE_DELETE, change.old_value, key.item);
    } else {
        int bytes = snprintf(value, sizeof value, "\"%0*u\"", event->value_bytes, 7u);
        cr_assert_eq(
            store_set(world.store, &key, span_of(value, (size_t)bytes), world.now_ms, &change),
            WEIR_OK);
        world_append(&change, change.existed ? ENVELOPE_UPDATE : ENVELOPE_CREATE, change.new_value,
                     key.item);
    }
    unsigned count = world.event_count[group]++;
    cr_assert_lt(count, EVENTS_MAX);
    cr_assert_eq(change.group.seq, count + 1);
    world.events[group][count] = *event;
    world.events[group][count].seq = change.group.seq;
    world.order[world.order_count++] = (uint8_t)group;
    store_turn_end(world.store);
    return true;
}

static void world_write(unsigned group, unsigned pad_max)
{
    struct event event = {.item = (int)random_below(ITEMS), .kind = ENVELOPE_UPDATE};
    unsigned choice = random_below(10);
    event.value_bytes = 1 + (int)random_below(pad_max);
    if (world.uncommitted_count == UNCOMMITTED_MAX)
        world_commit(UNCOMMITTED_MAX / 2);
    if (!ring_has_room(world.ring, ring_record_bytes_max(world.ring)))
        world_commit(0);
    world.now_ms += random_below(3);
    if (choice == 0) {
        event.item = -1;
        event.kind = ENVELOPE_EVENT;
    } else if (choice < 3)
        event.kind = ENVELOPE_DELETE;
    (void)world_apply(group, &event);
}

/* ---- sockets that misbehave ---- */

struct socket_topic {
    bool wants_whole, wants_item[ITEMS]; /* active: its sync has come */
    bool was_synced;
    uint64_t seq; /* of the newest sync or the newest event checked */
};

static struct fake_socket {
    struct subscriber subscriber;
    struct socket_topic topics[GROUPS];
    /* what the test has asked for, by subscription id */
    struct {
        bool is_used, is_active;
        unsigned group;
        int item; /* -1: whole */
    } wishes[SUBSCRIPTIONS];
    bool owes_writable;
    bool may_be_closed;
    unsigned closed_code;
    unsigned busy_percent;
    unsigned received, syncs;
} sockets[SOCKETS];

static struct {
    struct fake_socket *socket;
    struct iovec frames[16];
    unsigned frame_count;
    void *entry;
} sends[4096];
static unsigned send_count;
static bool is_calm; /* nobody is busy any more */

static unsigned group_of(struct json_value value)
{
    for (unsigned i = 0; i < GROUPS; i++) {
        if (json_string_equals(value, group_name(i)))
            return i;
    }
    cr_assert_fail("an event of an unknown group");
    return 0;
}

static int item_of(struct json_value value)
{
    if (value.kind == JSON_NULL)
        return -1;
    for (int i = 0; i < ITEMS; i++) {
        if (json_string_equals(value, item_name((unsigned)i)))
            return i;
    }
    cr_assert_fail("an event of an unknown item");
    return -1;
}

static bool topic_matches(const struct socket_topic *topic, int item)
{
    return topic->wants_whole || (item >= 0 && topic->wants_item[item]);
}

/* Every event between what was received and this one must be one the socket does not want. */
static void socket_check_event(struct fake_socket *socket, unsigned group, uint64_t seq, int item)
{
    struct socket_topic *topic = &socket->topics[group];
    cr_assert(topic->was_synced, "an event before the sync");
    cr_assert_gt(seq, topic->seq, "seq %lu after %lu", (unsigned long)seq,
                 (unsigned long)topic->seq);
    for (uint64_t between = topic->seq + 1; between < seq; between++)
        cr_assert_not(topic_matches(topic, world.events[group][between - 1].item),
                      "seq %lu was skipped", (unsigned long)between);
    cr_assert(topic_matches(topic, item), "an event nobody asked for");
    cr_assert_eq(world.events[group][seq - 1].item, item);
    topic->seq = seq;
    socket->received++;
}

static bool socket_link_is_idle(const struct fake_socket *socket, unsigned group)
{
    const struct subscriber_link *link = socket->subscriber.links;
    while (link != NULL && !span_equal(topic_group(link->topic), group_name(group)))
        link = link->next;
    cr_assert_not_null(link, "a sync for a group the socket has left");
    return link->mode == DELIVERY_IDLE;
}

static void socket_take_json(struct fake_socket *socket, struct span json)
{
    static const char *const names[] = {"seq", "groupId", "id", "event", "reason"};
    static const char *const event_names[] = {"type"};
    struct json_value values[5], type;
    cr_assert_eq(json_scan_object(json, JSON_DEPTH_MAX, names, 5, values, NULL), WEIR_OK);
    cr_assert_eq(json_scan_object(values[3].text, JSON_DEPTH_MAX, event_names, 1, &type, NULL),
                 WEIR_OK);
    uint64_t seq = strtoull(values[0].text.data, NULL, 10);
    unsigned group = group_of(values[1]);
    int item = item_of(values[2]);
    struct socket_topic *topic = &socket->topics[group];
    if (!json_string_equals(type, SPAN_LITERAL("sync"))) {
        socket_check_event(socket, group, seq, item);
        return;
    }
    socket->syncs++;
    /* An idle link starts anew; when it served something before, the reason says so. A sync beside
     * active subscriptions finds the link exactly there. */
    if (socket_link_is_idle(socket, group)) {
        cr_assert(!topic->was_synced || values[4].kind != JSON_ABSENT, "a fresh sync says why");
        memset(topic, 0, sizeof *topic);
    }
    for (uint64_t between = topic->seq + 1; topic->was_synced && between <= seq; between++)
        cr_assert_not(topic_matches(topic, world.events[group][between - 1].item),
                      "seq %lu was skipped before a sync", (unsigned long)between);
    if (topic->was_synced)
        cr_assert_geq(seq, topic->seq);
    topic->was_synced = true;
    topic->seq = seq;
    if (item < 0)
        topic->wants_whole = true;
    else
        topic->wants_item[item] = true;
}

static void fake_add(void *context, void *connection, const struct iovec *frames,
                     unsigned frame_count, void *entry)
{
    (void)context;
    cr_assert_lt(send_count, sizeof sends / sizeof sends[0]);
    cr_assert_leq(frame_count, 16);
    sends[send_count].socket = connection;
    memcpy(sends[send_count].frames, frames, frame_count * sizeof *frames);
    sends[send_count].frame_count = frame_count;
    sends[send_count++].entry = entry;
}

static void socket_take_frames(struct fake_socket *socket, struct iovec bytes)
{
    struct span rest = span_of(bytes.iov_base, bytes.iov_len);
    while (rest.bytes > 0) {
        uint64_t frame_bytes = envelope_frame_bytes(rest);
        cr_assert_gt(frame_bytes, 0);
        cr_assert_leq(frame_bytes, rest.bytes, "only whole frames");
        size_t header = rest.data[1] == 126 ? 4 : rest.data[1] == 127 ? 10 : 2;
        socket_take_json(socket, span_of(rest.data + header, frame_bytes - header));
        rest = span_of(rest.data + frame_bytes, rest.bytes - frame_bytes);
    }
}

static void fake_flush(void *context, outlet_done *done, void *done_context)
{
    (void)context;
    for (unsigned i = 0; i < send_count; i++) {
        struct fake_socket *socket = sends[i].socket;
        if (socket->owes_writable || (!is_calm && random_below(100) < socket->busy_percent)) {
            socket->owes_writable = true;
            done(done_context, sends[i].entry, WEIR_AGAIN);
            continue;
        }
        for (unsigned k = 0; k < sends[i].frame_count; k++)
            socket_take_frames(socket, sends[i].frames[k]);
        done(done_context, sends[i].entry, WEIR_OK);
    }
    send_count = 0;
}

static enum weir_status fake_send_text(void *context, void *connection, struct span json,
                                       struct cursor at)
{
    (void)at;
    struct fake_socket *socket = connection;
    (void)context;
    if (!is_calm && random_below(100) < socket->busy_percent / 2)
        return WEIR_FULL;
    socket_take_json(socket, json);
    return WEIR_OK;
}

static size_t fake_backlog_bytes(void *context, void *connection)
{
    (void)context;
    (void)connection;
    return !is_calm && random_below(8) == 0 ? JOINS_BACKLOG_BYTES_MAX + 1 : 0;
}

static void fake_close(void *context, void *connection, unsigned code, const char *reason)
{
    struct fake_socket *socket = connection;
    (void)context;
    socket->closed_code = code;
    if (socket->may_be_closed)
        return;
    cr_assert_fail("closed with %u: %s", code, reason);
}

static const struct outlet fake_outlet = {
    fake_add, fake_flush, fake_send_text, fake_backlog_bytes, fake_close, NULL, 16};

/* ---- the worker that keeps the stream, if there is one ---- */

static struct custom_streams *custom; /* NULL: the items are in the store */
static struct link_request *reads[JOINS_READS_MAX];
static unsigned read_count, reads_lost;

static enum weir_status fake_ask(struct link *link, enum wire_type type,
                                 const struct wire_field *fields, struct link_request *request)
{
    (void)link;
    cr_assert_eq(type, WIRE_STREAM);
    cr_assert_eq(fields[0].number, fields[3].span.data == NULL ? WIRE_OP_LIST : WIRE_OP_GET);
    cr_assert(request->is_patient, "a worker may take its time");
    if (!is_calm && random_below(10) == 0)
        return WEIR_FULL;
    cr_assert_lt(read_count, JOINS_READS_MAX);
    reads[read_count++] = request;
    return WEIR_OK;
}

static void read_end(unsigned index, enum link_fate fate, bool fails)
{
    struct link_request *request = reads[index];
    reads[index] = reads[--read_count];
    struct wire_message answer = {.type = WIRE_STREAM_RESULT};
    if (fails)
        answer.fields[0].span = answer.fields[1].span = SPAN_LITERAL("STREAM_GET_GROUP_ERROR");
    else if (random_below(2) == 0)
        answer.fields[2].span = SPAN_LITERAL("[]");
    reads_lost += fate != LINK_ANSWERED;
    request->done(request, fate, fate == LINK_ANSWERED ? &answer : NULL);
}

/* Answers in any order, some late, some lost. */
static void worker_step(void)
{
    while (read_count > 0 && random_below(3) == 0)
        read_end(random_below(read_count), random_below(4) == 0 ? LINK_LOST : LINK_ANSWERED, false);
    if (custom != NULL && random_below(500) == 0)
        custom_streams_set(custom, SPAN_LITERAL("s"), true); /* it was away and is back */
}

/* ---- the gateway's turn ---- */

static void turn_once(bool reads_feed)
{
    if (reads_feed) {
        enum weir_status status =
            feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions);
        cr_assert(status == WEIR_OK || status == WEIR_EMPTY || status == WEIR_LAPPED);
        (void)fanout_run(world.fanout, &world.feed, 1);
        if (status == WEIR_LAPPED)
            subscriptions_all_behind(&world.subscriptions);
    }
    (void)catch_up_run(world.catch_up);
    (void)joins_run(world.joins, world.turn_ms);
}

static struct subscription_wish wish_of(const char *id, unsigned group, int item)
{
    return (struct subscription_wish){
        .subscription_id = span_text(id),
        .stream = SPAN_LITERAL("s"),
        .group = group_name(group),
        .item = item < 0 ? (struct span){0} : item_name((unsigned)item),
        .lag_events = 16384,
    };
}

/* A leave changes what is wanted at once; to keep the check exact the socket then forgets the topic
 * and is joined anew, which the gateway must answer with a sync. */
static void socket_leave(struct fake_socket *socket, unsigned index)
{
    char id[8];
    (void)snprintf(id, sizeof id, "%u", index);
    socket->wishes[index].is_used = false;
    (void)subscriptions_remove(&world.subscriptions, &socket->subscriber, span_text(id));
    unsigned group = socket->wishes[index].group;
    struct socket_topic *topic = &socket->topics[group];
    bool was_synced = topic->was_synced;
    uint64_t seq = topic->seq;
    struct socket_topic old = *topic;
    memset(topic, 0, sizeof *topic);
    for (unsigned i = 0; i < SUBSCRIPTIONS; i++) {
        if (!socket->wishes[i].is_used || socket->wishes[i].group != group)
            continue;
        int item = socket->wishes[i].item;
        if (item < 0 && old.wants_whole)
            topic->wants_whole = true;
        if (item >= 0 && old.wants_item[item])
            topic->wants_item[item] = true;
    }
    bool any = topic->wants_whole;
    for (unsigned i = 0; i < ITEMS; i++)
        any = any || topic->wants_item[i];
    topic->was_synced = was_synced && any;
    topic->seq = topic->was_synced ? seq : 0;
}

static void socket_join(struct fake_socket *socket, unsigned index)
{
    /* No two of a socket's subscriptions want the same: a leave of one would not be visible in the
     * checks. */
    unsigned group = random_below(GROUPS);
    int item = (int)random_below(ITEMS + 1) - 1;
    for (unsigned i = 0; i < SUBSCRIPTIONS; i++) {
        if (socket->wishes[i].is_used && socket->wishes[i].group == group &&
            socket->wishes[i].item == item)
            return;
    }
    char id[8];
    (void)snprintf(id, sizeof id, "%u", index);
    struct subscription_wish wish = wish_of(id, group, item);
    socket->wishes[index].is_used = true;
    socket->wishes[index].group = group;
    socket->wishes[index].item = item;
    cr_assert_eq(subscriptions_add(&world.subscriptions, &socket->subscriber, &wish), WEIR_OK);
}

/* A broker's segment, and the gateway's mapping of it. */
static void world_make_segment(uint64_t ring_bytes, uint64_t generation)
{
    struct weir_error error = {0};
    struct segment_options options = {ring_bytes, 64 * 1024 * 1024, generation};
    cr_assert_eq(segment_create(&world.segment, &options, &error), WEIR_OK, "%s", error.text);
    world.readers = readers_open(&world.segment);
    world.ring = ring_writer_open(&world.segment);
    cr_assert_not_null(world.readers);
    cr_assert_not_null(world.ring);
    struct store_options store_options = {.items_max = 100000,
                                          .groups_max = 100000,
                                          .empty_groups_max = 1000,
                                          .is_logged = world.is_logged};
    cr_assert_eq(store_open(&world.store, &world.segment, world.readers, &store_options, &error),
                 WEIR_OK, "%s", error.text);
    segment_publish(&world.segment);
    uint32_t slot;
    int control_fd, event_fd;
    cr_assert_eq(
        readers_attach(world.readers, (uint32_t)getpid(), &slot, &control_fd, &event_fd, &error),
        WEIR_OK);
    int fds[MAPPING_FDS] = {dup(world.segment.fd), dup(event_fd), dup(control_fd)};
    cr_assert_eq(mapping_open(&world.mapping, slot, fds, &error), WEIR_OK, "%s", error.text);
}

static void world_drop_segment(void)
{
    mapping_close(world.mapping);
    store_close(world.store);
    ring_writer_close(world.ring);
    readers_close(world.readers);
    segment_close(&world.segment);
}

static void world_open(uint64_t ring_bytes)
{
    world.now_ms = 1700000000000ull;
    world_make_segment(ring_bytes, FIRST_GENERATION);
    cr_assert_eq(subscriptions_init(&world.subscriptions, 100, false, &world.counters), WEIR_OK);
    subscriptions_restart(&world.subscriptions, world.mapping->hash_seed, "restarted");
    cr_assert_eq(feed_init(&world.feed, &world.counters), WEIR_OK);
    world.fanout = fanout_open(&world.subscriptions, &fake_outlet, &world.counters);
    world.catch_up = catch_up_open(&world.subscriptions, &fake_outlet, &world.counters);
    world.joins = joins_open(&world.subscriptions, world.catch_up, &fake_outlet, &world.counters);
    catch_up_set_mapping(world.catch_up, world.mapping);
    joins_set_mapping(world.joins, world.mapping);
    joins_set_broker(world.joins, fake_ask, NULL, custom);
}

static void world_close(void)
{
    for (unsigned i = 0; i < SOCKETS; i++)
        subscriptions_remove_subscriber(&world.subscriptions, &sockets[i].subscriber);
    cr_assert_eq(world.subscriptions.topic_count, 0);
    cr_assert_eq(world.subscriptions.sync_count, 0);
    cr_assert_eq(world.subscriptions.behind_count, 0);
    cr_assert_eq(world.counters.values[COUNTER_SUBSCRIPTIONS], 0);
    joins_close(world.joins);
    catch_up_close(world.catch_up);
    fanout_close(world.fanout);
    feed_fini(&world.feed);
    subscriptions_fini(&world.subscriptions);
    world_drop_segment();
}

/* Another life of the broker: the first `count` writes of all that were made, in the same order, with
 * the same epochs when the generation is the same; the ring starts anew. */
static void world_recover(uint64_t ring_bytes, uint64_t generation, unsigned count)
{
    static struct event events[GROUPS][EVENTS_MAX];
    static uint8_t order[GROUPS * EVENTS_MAX];
    unsigned used[GROUPS] = {0};
    memcpy(events, world.events, sizeof events);
    memcpy(order, world.order, sizeof order);
    cr_assert_leq(count, world.order_count);
    joins_set_mapping(world.joins, NULL);
    world_drop_segment();
    world.uncommitted_count = 0;
    world_make_segment(ring_bytes, generation);
    memset(world.event_count, 0, sizeof world.event_count);
    world.order_count = 0;
    for (unsigned i = 0; i < count; i++) {
        cr_assert(world_apply(order[i], &events[order[i]][used[order[i]]++]));
        world_commit(0);
    }
}

/* What the gateway does when it is attached to a broker with the log of the last one; events from
 * `position` on are those nobody has been shown. */
static void world_resume(uint64_t position)
{
    bool reads_on = mapping_read_from(world.mapping, position);
    feed_start(&world.feed, &world.mapping->ring, reads_on);
    catch_up_set_mapping(world.catch_up, world.mapping);
    joins_set_mapping(world.joins, world.mapping);
    subscriptions_resume(&world.subscriptions, world.mapping->hash_seed);
    if (!reads_on)
        feed_lapped(&world.feed);
}

static uint64_t counted(enum counter counter)
{
    return world.counters.values[counter];
}

static void socket_make_writable(struct fake_socket *socket)
{
    socket->owes_writable = false;
    subscriptions_unblock(&world.subscriptions, &socket->subscriber);
}

static void world_settle(void)
{
    is_calm = true;
    world_commit(0);
    for (unsigned i = 0; i < SOCKETS; i++) {
        if (sockets[i].owes_writable)
            socket_make_writable(&sockets[i]);
    }
    for (unsigned i = 0; i < 500; i++) {
        turn_once(true);
        while (read_count > 0)
            read_end(0, LINK_ANSWERED, false);
    }
    is_calm = false;
}

/* Whoever is subscribed has been given everything up to the newest event. */
static void world_check_complete(void)
{
    for (unsigned i = 0; i < SOCKETS; i++) {
        for (unsigned k = 0; k < SUBSCRIPTIONS; k++) {
            if (!sockets[i].wishes[k].is_used)
                continue;
            unsigned group = sockets[i].wishes[k].group;
            struct socket_topic *topic = &sockets[i].topics[group];
            int item = sockets[i].wishes[k].item;
            cr_assert(topic->was_synced, "socket %u never got its sync", i);
            cr_assert(item < 0 ? topic->wants_whole : topic->wants_item[item]);
            for (uint64_t seq = topic->seq + 1; seq <= world.event_count[group]; seq++)
                cr_assert_not(topic_matches(topic, world.events[group][seq - 1].item),
                              "socket %u ends at %lu of %u", i, (unsigned long)topic->seq,
                              world.event_count[group]);
        }
    }
}

static void world_step(unsigned pad_max)
{
    struct fake_socket *socket = &sockets[random_below(SOCKETS)];
    unsigned index = random_below(SUBSCRIPTIONS);
    if (world.uncommitted_count > 1 && random_below(4) == 0)
        world_commit(1 + random_below(world.uncommitted_count - 1));
    switch (random_below(12)) {
    case 0:
        if (!socket->wishes[index].is_used)
            socket_join(socket, index);
        break;
    case 1:
        if (socket->wishes[index].is_used && random_below(4) == 0)
            socket_leave(socket, index);
        break;
    case 2:
    case 3:
        if (socket->owes_writable)
            socket_make_writable(socket);
        break;
    case 4:
        for (unsigned burst = random_below(40); burst > 0; burst--)
            world_write(random_below(GROUPS), pad_max);
        break;
    case 5:
    case 6:
    case 7:
        turn_once(random_below(4) != 0);
        break;
    default:
        world_write(random_below(GROUPS), pad_max);
        break;
    }
}

/* One thread is all there is here, so a build that looks for races need not see as much. */
#ifdef __SANITIZE_THREAD__
enum { ROUNDS_SHARE = 4 };
#else
enum { ROUNDS_SHARE = 1 };
#endif

/* Goal: exactness under everything at once. Method: a random run of writes, joins, leaves, busy
 * sockets, turns without feed; small rings make links and the feed itself lapped. */
static void run_model(uint64_t ring_bytes, unsigned pad_max, unsigned busy_percent)
{
    const char *given = getenv("WEIR_SEED");
    uint64_t seed = given == NULL
                        ? (uint64_t)time(NULL) * 2654435761u ^ (uint64_t)(unsigned)getpid()
                        : strtoull(given, NULL, 10);
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    random_state = seed | 1;
    world_open(ring_bytes);
    for (unsigned i = 0; i < SOCKETS; i++) {
        sockets[i].subscriber.connection = &sockets[i];
        sockets[i].busy_percent = i % 3 == 0 ? busy_percent : 0;
    }
    for (unsigned round = 0; round < 20 / ROUNDS_SHARE; round++) {
        for (unsigned step = 0; step < 500; step++) {
            world_step(pad_max);
            worker_step();
        }
        world_settle();
        world_check_complete();
    }
    unsigned received = 0;
    for (unsigned i = 0; i < SOCKETS; i++)
        received += sockets[i].received;
    cr_assert_gt(received, 1000 / ROUNDS_SHARE, "the run did deliver");
    if (busy_percent > 0)
        cr_assert_gt(world.counters.values[COUNTER_CATCH_UPS], 0, "the run did catch up");
}

Test(subscriptions, every_event_once_and_in_order, .timeout = HANG_SECONDS)
{
    run_model(4 * 1024 * 1024, 100, 30);
    cr_assert_eq(world.counters.values[COUNTER_SYNCS_LAGGED], 0,
                 "nobody is lapped in a large ring");
    world_close();
}

Test(subscriptions, lapped_links_get_a_fresh_sync, .timeout = HANG_SECONDS)
{
    run_model(64 * 1024, 2000, 70);
    cr_assert_gt(world.counters.values[COUNTER_SYNCS_LAGGED], 0, "the run did lap");
    world_close();
}

static void make_custom(void)
{
    custom = custom_streams_open();
    cr_assert_not_null(custom);
    custom_streams_set(custom, SPAN_LITERAL("s"), true);
}

/* The same exactness while every sync is read from a worker, who answers late, in any order, or not
 * at all: the link stands still meanwhile, and nothing is skipped or repeated. */
Test(subscriptions, syncs_read_from_a_worker_are_exact, .timeout = HANG_SECONDS)
{
    make_custom();
    run_model(4 * 1024 * 1024, 100, 30);
    cr_assert_gt(reads_lost, 0);
    world_close();
    custom_streams_close(custom);
}

Test(subscriptions, syncs_read_from_a_worker_survive_a_small_ring, .timeout = HANG_SECONDS)
{
    make_custom();
    run_model(64 * 1024, 2000, 70);
    cr_assert_gt(world.counters.values[COUNTER_SYNCS_LAGGED], 0, "the run did lap");
    world_close();
    custom_streams_close(custom);
}

/* No sync when the value cannot be read, but every event from where the link was held; a subscription
 * that leaves meanwhile lets the others of its socket go on. */
Test(subscriptions, a_sync_that_cannot_be_read_is_left_out, .timeout = HANG_SECONDS)
{
    random_state = 11;
    make_custom();
    world_open(1024 * 1024);
    is_calm = true;
    struct fake_socket *socket = &sockets[0];
    socket->subscriber.connection = socket;
    struct subscription_wish whole = wish_of("0", 0, -1), item = wish_of("1", 0, 0);
    cr_assert_eq(subscriptions_add(&world.subscriptions, &socket->subscriber, &whole), WEIR_OK);
    turn_once(true);
    cr_assert_eq(read_count, 1);
    while (world.event_count[0] < 3)
        world_write(0, 10);
    turn_once(true);
    cr_assert_eq(socket->received, 0, "events wait for the sync");
    socket->topics[0] = (struct socket_topic){.wants_whole = true, .was_synced = true};
    read_end(0, LINK_ANSWERED, true);
    turn_once(true);
    cr_assert_eq(socket->received, 3);
    cr_assert_eq(socket->syncs, 0);

    cr_assert_eq(subscriptions_add(&world.subscriptions, &socket->subscriber, &item), WEIR_OK);
    turn_once(true);
    cr_assert_eq(read_count, 1);
    while (world.event_count[0] < 6)
        world_write(0, 10);
    subscriptions_all_behind(&world.subscriptions); /* as when the feed was lapped */
    turn_once(true);
    cr_assert_eq(socket->received, 3, "the link stands still");
    cr_assert(subscriptions_remove(&world.subscriptions, &socket->subscriber, span_text("1")));
    turn_once(true);
    cr_assert_eq(socket->received, 6, "and goes on when nobody needs that any more");
    read_end(0, LINK_ANSWERED, false);
    cr_assert_eq(socket->syncs, 0, "the answer is for nobody");
    is_calm = false;
    world_close();
    custom_streams_close(custom);
}

/* All who join a group at the same seq share one reading, whatever becomes of some of them; who comes
 * after an event needs another. */
Test(subscriptions, one_reading_serves_all_who_wait_for_it, .timeout = HANG_SECONDS)
{
    random_state = 13;
    make_custom();
    world_open(1024 * 1024);
    is_calm = true;
    for (unsigned i = 0; i < SOCKETS; i++) {
        struct subscription_wish wish = wish_of("0", 0, -1);
        sockets[i].subscriber.connection = &sockets[i];
        cr_assert_eq(subscriptions_add(&world.subscriptions, &sockets[i].subscriber, &wish),
                     WEIR_OK);
        if (i == SOCKETS / 2)
            turn_once(true);
        if (i == SOCKETS - 2)
            while (world.event_count[0] == 0)
                world_write(0, 10);
    }
    turn_once(true);
    cr_assert_eq(read_count, 2, "of seq 0 and of seq 1");
    cr_assert(subscriptions_remove(&world.subscriptions, &sockets[0].subscriber, span_text("0")));
    cr_assert(subscriptions_remove(&world.subscriptions, &sockets[3].subscriber, span_text("0")));
    subscriptions_remove_subscriber(&world.subscriptions, &sockets[6].subscriber);
    read_end(1, LINK_ANSWERED, false);
    read_end(0, LINK_ANSWERED, false);
    turn_once(true);
    for (unsigned i = 0; i < SOCKETS; i++)
        cr_assert_eq(sockets[i].syncs, i == 0 || i == 3 || i == 6 ? 0 : 1, "socket %u", i);
    cr_assert_eq(read_count, 0);
    is_calm = false;
    world_close();
    custom_streams_close(custom);
}

/* A gateway that stood still finds the ring lapped; its links catch up or sync, and nothing is
 * missing. */
Test(subscriptions, lapped_feed_is_repaired, .timeout = HANG_SECONDS)
{
    random_state = 99;
    world_open(64 * 1024);
    sockets[0].subscriber.connection = &sockets[0];
    socket_join(&sockets[0], 0);
    world_settle();
    for (unsigned i = 0; i < 2000; i++)
        world_write(i % GROUPS, 500);
    world_settle();
    cr_assert_eq(world.counters.values[COUNTER_FEED_LAPPED], 1);
    world_check_complete();
    world_close();
}

/* Should the feed ever miss something unnoticed, the next event shows the gap and the link catches
 * up instead of jumping. */
Test(subscriptions, gap_in_the_feed_is_noticed, .timeout = HANG_SECONDS)
{
    random_state = 7;
    world_open(1024 * 1024);
    sockets[0].subscriber.connection = &sockets[0];
    struct subscription_wish wish = wish_of("0", 0, -1);
    sockets[0].wishes[0].is_used = true;
    sockets[0].wishes[0].item = -1;
    cr_assert_eq(subscriptions_add(&world.subscriptions, &sockets[0].subscriber, &wish), WEIR_OK);
    world_settle();
    while (world.event_count[0] < 5)
        world_write(0, 10);
    ring_reader_seek_head(&world.mapping->ring);
    unsigned before = world.event_count[0];
    while (world.event_count[0] == before)
        world_write(0, 10);
    is_calm = true;
    turn_once(true);
    cr_assert_eq(world.counters.values[COUNTER_CATCH_UPS], 1);
    cr_assert_eq(sockets[0].received, before + 1);
    is_calm = false;
    world_check_complete();
    world_close();
}

/* A new life of the broker: other seed, other epochs; all are told. */
Test(subscriptions, restart_syncs_everybody, .timeout = HANG_SECONDS)
{
    random_state = 5;
    world_open(1024 * 1024);
    for (unsigned i = 0; i < SOCKETS; i++) {
        sockets[i].subscriber.connection = &sockets[i];
        socket_join(&sockets[i], 0);
    }
    world_settle();
    unsigned before = (unsigned)world.counters.values[COUNTER_SYNCS];
    cr_assert_eq(before, SOCKETS);
    subscriptions_restart(&world.subscriptions, world.mapping->hash_seed, "restarted");
    world_settle();
    cr_assert_eq(world.counters.values[COUNTER_SYNCS], 2 * before);
    cr_assert_eq(world.counters.values[COUNTER_SYNCS_RESTARTED], before);
    world_check_complete();
    world_close();
}

/* A socket on the whole of group 0. */
static void join_group(unsigned index)
{
    struct fake_socket *socket = &sockets[index];
    struct subscription_wish wish = wish_of("0", 0, -1);
    socket->subscriber.connection = socket;
    socket->wishes[0].is_used = true;
    socket->wishes[0].item = -1;
    cr_assert_eq(subscriptions_add(&world.subscriptions, &socket->subscriber, &wish), WEIR_OK);
}

/* The next broker goes on where the last one was: no sync, and of what nobody was shown each event
 * once, from the ring's position or, when that is lapped, by catching up. */
Test(subscriptions, a_broker_with_the_log_is_gone_on_with, .timeout = HANG_SECONDS)
{
    for (unsigned lapped = 0; lapped < 2; lapped++) {
        memset(sockets, 0, sizeof sockets);
        memset(&world, 0, sizeof world);
        random_state = 31;
        world_open(1024 * 1024);
        join_group(0);
        join_group(1);
        world_settle();
        for (unsigned i = 0; i < 50; i++)
            world_write(i % GROUPS, 100);
        turn_once(true);
        sockets[1].owes_writable = true; /* and goes on to */
        subscriptions_block(&world.subscriptions, sockets[1].subscriber.links);
        unsigned syncs = sockets[0].syncs + sockets[1].syncs, before = sockets[0].received;
        cr_assert_eq(before, world.event_count[0]);
        world_recover(1024 * 1024, FIRST_GENERATION, world.order_count);
        uint64_t position = ring_published(&world.mapping->ring);
        for (unsigned i = 0; i < 50; i++)
            world_write(i % GROUPS, 100);
        cr_assert_gt(world.event_count[0], before);
        world_resume(lapped ? UINT64_MAX : position);
        turn_once(true);
        cr_assert_eq(sockets[0].received, world.event_count[0]);
        cr_assert_eq(sockets[1].received, before, "its socket is busy");
        world_write(0, 100);
        world_settle();
        world_check_complete();
        cr_assert_eq(sockets[0].received, world.event_count[0]);
        cr_assert_eq(sockets[1].received, world.event_count[0]);
        cr_assert_eq(sockets[0].syncs + sockets[1].syncs, syncs);
        cr_assert_eq(counted(COUNTER_FEED_LAPPED), lapped);
        world_close();
    }
}

/* What the new ring does not hold any more is a sync that says why. */
Test(subscriptions, what_the_new_ring_has_not_got_is_synced, .timeout = HANG_SECONDS)
{
    random_state = 32;
    world_open(64 * 1024);
    join_group(0);
    world_settle();
    for (unsigned i = 0; i < 20; i++)
        world_write(i % GROUPS, 100);
    world_settle();
    world_recover(64 * 1024, FIRST_GENERATION, world.order_count);
    for (unsigned i = 0; i < 2000; i++)
        world_write(i % GROUPS, 500);
    world_resume(UINT64_MAX);
    world_settle();
    world_check_complete();
    cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED), 1);
    cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 0);
    for (unsigned i = 0; i < 2000; i++)
        world_write(i % GROUPS, 500);
    world_settle();
    world_check_complete();
    cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED), 1, "from then on it is slowness again");
    cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 1);
    world_close();
}

/* A group that is behind what a subscriber has seen, or in an earlier or a later life, is a fresh sync:
 * nobody waits for events that are taken for old ones. */
Test(subscriptions, a_group_that_went_back_is_synced, .timeout = HANG_SECONDS)
{
    static const struct {
        uint64_t generation;
        unsigned lost; /* writes the next broker has not got */
    } cases[] = {{FIRST_GENERATION, 1},      {FIRST_GENERATION, 30},     {FIRST_GENERATION - 5, 0},
                 {FIRST_GENERATION - 5, 30}, {FIRST_GENERATION - 5, 60}, {FIRST_GENERATION + 5, 0}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memset(sockets, 0, sizeof sockets);
        memset(&world, 0, sizeof world);
        random_state = 33;
        world_open(1024 * 1024);
        join_group(0);
        world_settle();
        while (world.order_count < 60)
            world_write(0, 100);
        world_settle();
        world_recover(1024 * 1024, cases[i].generation, 60 - cases[i].lost);
        world_resume(ring_published(&world.mapping->ring));
        world_settle();
        cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED), 1, "case %u", i);
        cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 0);
        unsigned before = sockets[0].received;
        for (unsigned k = 0; k < 20; k++)
            world_write(0, 100);
        world_settle();
        world_check_complete();
        cr_assert_gt(sockets[0].received, before);
        world_close();
    }
}

/* Nobody has written to the group yet, as far as the next broker knows: its first event must not be
 * taken for an old one, and a life that came and went must not be passed over. */
Test(subscriptions, an_empty_group_of_another_life_is_synced, .timeout = HANG_SECONDS)
{
    static const uint64_t generations[] = {FIRST_GENERATION, FIRST_GENERATION - 5,
                                           FIRST_GENERATION + 5};
    for (unsigned i = 0; i < 3; i++) {
        memset(sockets, 0, sizeof sockets);
        memset(&world, 0, sizeof world);
        random_state = 34;
        world_open(1024 * 1024);
        join_group(0);
        world_settle();
        world_recover(1024 * 1024, generations[i], 0);
        world_resume(0);
        world_settle();
        cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED), i != 0);
        while (world.event_count[0] < 5)
            world_write(0, 100);
        world_settle();
        world_check_complete();
        cr_assert_eq(sockets[0].received, 5);
        world_close();
    }
}

/* The same exactness over lives of the broker, each with what the ones before it have shown and more. */
static void run_lives(uint64_t ring_bytes, unsigned pad_max, unsigned busy_percent)
{
    random_state = fixture_seed("subscriptions") | 1;
    world_open(ring_bytes);
    for (unsigned i = 0; i < SOCKETS; i++) {
        sockets[i].subscriber.connection = &sockets[i];
        sockets[i].busy_percent = i % 3 == 0 ? busy_percent : 0;
    }
    for (unsigned life = 0; life < 40 / ROUNDS_SHARE; life++) {
        for (unsigned step = 0; step < 200; step++) {
            world_step(pad_max);
            worker_step();
        }
        while (read_count > 0 && random_below(4) != 0)
            read_end(0, LINK_LOST, false);
        world_recover(ring_bytes, FIRST_GENERATION, world.order_count - world.uncommitted_count);
        uint64_t position = ring_published(&world.mapping->ring);
        for (unsigned more = random_below(30); more > 0; more--)
            world_write(random_below(GROUPS), pad_max);
        world_resume(random_below(2) == 0 ? UINT64_MAX : position);
        if (life % 4 == 0) {
            world_settle();
            world_check_complete();
        }
    }
    world_settle();
    world_check_complete();
}

Test(subscriptions, every_event_once_over_many_lives, .timeout = HANG_SECONDS)
{
    run_lives(4 * 1024 * 1024, 100, 30);
    cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED) + counted(COUNTER_SYNCS_LAGGED), 0,
                 "all of it is in a large ring");
    world_close();
}

Test(subscriptions, many_lives_with_small_rings, .timeout = HANG_SECONDS)
{
    run_lives(64 * 1024, 2000, 70);
    cr_assert_gt(counted(COUNTER_SYNCS_RESTARTED), 0, "the new ring did not reach back");
    world_close();
}

Test(subscriptions, many_lives_of_a_workers_stream, .timeout = HANG_SECONDS)
{
    make_custom();
    run_lives(4 * 1024 * 1024, 100, 30);
    cr_assert_gt(reads_lost, 0);
    world_close();
    custom_streams_close(custom);
}

/* ---- a store whose writes are shown when they are in the log ---- */

static void write_one(unsigned group)
{
    unsigned before = world.event_count[group];
    while (world.event_count[group] == before)
        world_write(group, 10);
}

static void open_logged(void)
{
    world.is_logged = true;
    world_open(1024 * 1024);
    is_calm = true;
    for (unsigned group = 0; group < GROUPS; group++)
        write_one(group);
    world_commit(0);
    turn_once(true);
}

static void close_logged(void)
{
    is_calm = false;
    world_close();
}

/* As at a broker that is never idle: in each turn there is a write that is not in the log yet. */
static void busy_turn(unsigned group)
{
    write_one(group);
    world_commit(1);
    turn_once(true);
}

/* Goal: a join is served however fast the writers are. Method: whenever the gateway looks, the newest
 * write is not committed. */
Test(subscriptions, a_group_that_is_never_at_rest_can_be_joined, .timeout = HANG_SECONDS)
{
    random_state = 51;
    open_logged();
    for (unsigned i = 0; i < SOCKETS; i++) {
        join_group(i);
        for (unsigned turn = 0; turn < 3; turn++)
            busy_turn(0);
        cr_assert_eq(sockets[i].syncs, 1, "socket %u", i);
    }
    for (unsigned turn = 0; turn < 10; turn++)
        busy_turn(0);
    for (unsigned i = 0; i < SOCKETS; i++)
        cr_assert_eq(sockets[i].topics[0].seq, world.event_count[0] - 1, "all that is committed");
    world_settle();
    world_check_complete();
    close_logged();
}

/* The others in the queue are served as ever, and all who want the same wait together. */
Test(subscriptions, a_join_that_waits_for_the_log_holds_up_nobody, .timeout = HANG_SECONDS)
{
    random_state = 52;
    open_logged();
    write_one(0);
    for (unsigned i = 0; i < SOCKETS; i++) {
        struct subscription_wish wish = wish_of("0", i % 2, -1);
        sockets[i].subscriber.connection = &sockets[i];
        cr_assert_eq(subscriptions_add(&world.subscriptions, &sockets[i].subscriber, &wish),
                     WEIR_OK);
        if (i == SOCKETS / 2)
            turn_once(true);
    }
    turn_once(true);
    for (unsigned i = 0; i < SOCKETS; i++)
        cr_assert_eq(sockets[i].syncs, i % 2, "socket %u", i);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 1);
    cr_assert_eq(world.subscriptions.sync_count, 0);
    write_one(0);
    world_commit(0);
    turn_once(true); /* the feed has passed the sync */
    turn_once(true);
    for (unsigned i = 0; i < SOCKETS; i++) {
        cr_assert_eq(sockets[i].syncs, 1);
        cr_assert_eq(sockets[i].received, i % 2 == 0);
    }
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0);
    close_logged();
}

/* A socket that has something of the group already is given the rest of it first, and goes on where the
 * sync was made. */
Test(subscriptions, a_link_stands_still_while_a_sync_waits_for_the_log, .timeout = HANG_SECONDS)
{
    random_state = 53;
    open_logged();
    struct fake_socket *socket = &sockets[0];
    join_group(0);
    turn_once(true);
    write_one(0);
    write_one(0);
    struct subscription_wish item = wish_of("1", 0, 1);
    cr_assert_eq(subscriptions_add(&world.subscriptions, &socket->subscriber, &item), WEIR_OK);
    turn_once(true);
    world_commit(1);
    turn_once(true);
    cr_assert_eq(socket->received, 0, "up to where the sync will be");
    write_one(0);
    world_commit(1);
    turn_once(true);
    cr_assert_eq(socket->received, 2);
    cr_assert_eq(socket->syncs, 2);
    world_commit(0);
    turn_once(true);
    cr_assert_eq(socket->received, 3);
    close_logged();
}

/* Copies that nobody waits for are given back: whoever waited has left, or the broker has gone. */
Test(subscriptions, what_nobody_waits_for_is_not_kept, .timeout = HANG_SECONDS)
{
    random_state = 54;
    open_logged();
    write_one(0);
    join_group(0);
    join_group(1);
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 1);
    subscriptions_remove_subscriber(&world.subscriptions, &sockets[0].subscriber);
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 1);
    cr_assert(subscriptions_remove(&world.subscriptions, &sockets[1].subscriber, span_text("0")));
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0);
    join_group(2);
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 1);
    joins_set_mapping(world.joins, world.mapping);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0);
    cr_assert_eq(world.subscriptions.sync_count, 1);
    turn_once(true);
    world_commit(0);
    turn_once(true);
    cr_assert_eq(sockets[2].syncs, 1);
    close_logged();
}

/* More copies than may be kept: the others wait, and joins of groups at rest are served between them. */
Test(subscriptions, copies_that_wait_are_bounded, .timeout = HANG_SECONDS)
{
    enum { MANY = 3 * JOIN_WALKS_MAX };
    struct subscriber subscriber = {.connection = &sockets[0]};
    char names[MANY][16];
    random_state = 55;
    open_logged();
    world.subscriptions.subscriptions_max = 1000;
    sockets[0].may_be_closed = true;
    write_one(0);
    struct subscriber others[MANY];
    for (unsigned i = 0; i < MANY; i++) {
        struct subscription_wish wish = wish_of("0", 0, 0);
        (void)snprintf(names[i], sizeof names[i], "x%u", i);
        wish.item = span_text(names[i]);
        others[i] = subscriber;
        cr_assert_eq(subscriptions_add(&world.subscriptions, &others[i], &wish), WEIR_OK);
    }
    struct subscription_wish quiet = wish_of("0", 1, -1);
    sockets[1].subscriber.connection = &sockets[1];
    cr_assert_eq(subscriptions_add(&world.subscriptions, &sockets[1].subscriber, &quiet), WEIR_OK);
    for (unsigned turn = 0; turn < MANY / JOINS_VAIN_MAX; turn++) {
        turn_once(true);
        cr_assert_eq(counted(COUNTER_SYNCS_WAITING), JOIN_WALKS_MAX);
    }
    cr_assert_eq(sockets[1].syncs, 1);
    cr_assert_eq(world.subscriptions.sync_count, MANY - JOIN_WALKS_MAX);
    /* A log that never gets them: all are told in the end. */
    for (unsigned turn = 0; turn < 4; turn++) {
        turn_once(true);
        world.turn_ms += JOINS_COMMIT_WAIT_MS;
    }
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_UNCOMMITTED), MANY);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0);
    for (unsigned i = 0; i < MANY; i++)
        subscriptions_remove_subscriber(&world.subscriptions, &others[i]);
    close_logged();
}

/* A log that has failed: whoever waits for it is told, by a close, and only they. */
Test(subscriptions, a_join_the_log_never_lets_pass_is_closed, .timeout = HANG_SECONDS)
{
    random_state = 56;
    open_logged();
    join_group(1); /* before the write in doubt */
    turn_once(true);
    write_one(0);
    join_group(0);
    sockets[0].may_be_closed = true;
    turn_once(true);
    world.turn_ms += JOINS_COMMIT_WAIT_MS - 1;
    turn_once(true);
    cr_assert_eq(sockets[0].closed_code, 0);
    world.turn_ms++;
    turn_once(true);
    cr_assert_eq(sockets[0].closed_code, 1013);
    cr_assert_eq(sockets[1].closed_code, 0);
    cr_assert_eq(sockets[0].syncs, 0);
    cr_assert_eq(counted(COUNTER_SYNCS_UNCOMMITTED), 1);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0);
    turn_once(true);
    cr_assert_eq(counted(COUNTER_SYNCS_WAITING), 0, "it goes with its socket");
    close_logged();
}

/* A worker's own stream is read as of what is committed, however busy it is. */
Test(subscriptions, a_busy_stream_of_a_worker_can_be_joined, .timeout = HANG_SECONDS)
{
    random_state = 57;
    make_custom();
    open_logged();
    for (unsigned i = 0; i < SOCKETS; i++) {
        join_group(i);
        for (unsigned turn = 0; turn < 3; turn++) {
            busy_turn(0);
            while (read_count > 0)
                read_end(0, LINK_ANSWERED, false);
        }
        cr_assert_eq(sockets[i].syncs, 1, "socket %u", i);
    }
    busy_turn(0);
    for (unsigned i = 0; i < SOCKETS; i++)
        cr_assert_eq(sockets[i].topics[0].seq, world.event_count[0] - 1);
    world_settle();
    world_check_complete();
    close_logged();
    custom_streams_close(custom);
}

/* The runs of above, with a log that is behind all the time. */
Test(subscriptions, every_event_once_behind_a_log, .timeout = HANG_SECONDS)
{
    world.is_logged = true;
    run_model(4 * 1024 * 1024, 100, 30);
    cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 0);
    world_close();
}

Test(subscriptions, every_event_once_behind_a_log_with_a_small_ring, .timeout = HANG_SECONDS)
{
    world.is_logged = true;
    run_model(64 * 1024, 2000, 70);
    cr_assert_gt(counted(COUNTER_SYNCS_LAGGED), 0, "the run did lap");
    world_close();
}

Test(subscriptions, many_lives_behind_a_log, .timeout = HANG_SECONDS)
{
    world.is_logged = true;
    run_lives(4 * 1024 * 1024, 100, 30);
    cr_assert_eq(counted(COUNTER_SYNCS_RESTARTED) + counted(COUNTER_SYNCS_LAGGED), 0);
    world_close();
}

Test(subscriptions, many_lives_of_a_workers_stream_behind_a_log, .timeout = HANG_SECONDS)
{
    world.is_logged = true;
    make_custom();
    run_lives(64 * 1024, 2000, 70);
    world_close();
    custom_streams_close(custom);
}

/* ---- how far the ring was read ---- */

static void write_commit(uint64_t commit)
{
    unsigned before = world.order_count;
    world.commit = commit;
    while (world.order_count == before)
        world_write(0, 10);
}

/* The number of the newest frame read is known from the first event on, or from the start when the ring
 * was empty; it does not matter whether somebody listens. */
Test(feed, the_newest_commit_read_is_known, .timeout = HANG_SECONDS)
{
    for (unsigned listens = 0; listens < 2; listens++) {
        memset(sockets, 0, sizeof sockets);
        memset(&world, 0, sizeof world);
        random_state = 35;
        world_open(1024 * 1024);
        feed_start(&world.feed, &world.mapping->ring, false);
        cr_assert(world.feed.is_commit_known);
        cr_assert_eq(world.feed.commit, 0);
        if (listens)
            join_group(0);
        for (uint64_t commit = 3; commit < 10; commit++)
            write_commit(commit);
        turn_once(true);
        cr_assert_eq(world.feed.commit, 9);
        cr_assert_eq(world.mapping->ring.position, ring_published(&world.mapping->ring));
        ring_reader_seek_head(&world.mapping->ring);
        feed_start(&world.feed, &world.mapping->ring, true);
        cr_assert_eq(world.feed.commit, 9, "it goes on");
        feed_start(&world.feed, &world.mapping->ring, false);
        cr_assert_not(world.feed.is_commit_known);
        write_commit(12);
        turn_once(true);
        cr_assert(world.feed.is_commit_known);
        cr_assert_eq(world.feed.commit, 12);
        feed_lapped(&world.feed);
        cr_assert_not(world.feed.is_commit_known);
        world_close();
    }
}

/* Of a broker without a log a gateway to which nobody listens does not even read the numbers. */
Test(feed, without_a_log_the_ring_is_passed_over, .timeout = HANG_SECONDS)
{
    random_state = 36;
    world_open(64 * 1024);
    feed_start(&world.feed, &world.mapping->ring, false);
    for (unsigned i = 0; i < 100; i++)
        write_commit(0);
    cr_assert_eq(feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions), WEIR_EMPTY);
    cr_assert_eq(world.mapping->ring.position, ring_published(&world.mapping->ring));
    cr_assert_eq(world.feed.commit, 0);
    cr_assert_eq(counted(COUNTER_FEED_RECORDS), 0);
    for (unsigned i = 0; i < 2000; i++) /* lapped: nobody missed anything */
        write_commit(7);
    cr_assert_eq(feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions), WEIR_EMPTY);
    cr_assert_eq(counted(COUNTER_FEED_LAPPED), 0);
    cr_assert_not(world.feed.is_commit_known);
    world_close();
}

/* A position that is not in the ring is none. */
Test(feed, a_position_beyond_the_ring_is_not_read_from, .timeout = HANG_SECONDS)
{
    random_state = 37;
    world_open(64 * 1024);
    write_commit(1);
    uint64_t end = ring_published(&world.mapping->ring);
    cr_assert_not(mapping_read_from(world.mapping, UINT64_MAX));
    cr_assert_not(mapping_read_from(world.mapping, end + 8));
    cr_assert_eq(world.mapping->ring.position, 0);
    cr_assert(mapping_read_from(world.mapping, end));
    cr_assert_eq(world.mapping->ring.position, end);
    world_close();
}

/* The bound per socket, and the same id replacing in silence. */
Test(subscriptions, bound_and_replacement, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024);
    struct subscriber subscriber = {.connection = &sockets[0]};
    world.subscriptions.subscriptions_max = 2;
    struct subscription_wish one = wish_of("1", 0, -1), two = wish_of("2", 1, 2),
                             three = wish_of("3", 0, -1);
    cr_assert_eq(subscriptions_add(&world.subscriptions, &subscriber, &one), WEIR_OK);
    cr_assert_eq(subscriptions_add(&world.subscriptions, &subscriber, &two), WEIR_OK);
    cr_assert_eq(subscriptions_add(&world.subscriptions, &subscriber, &three), WEIR_FULL);
    three.subscription_id = SPAN_LITERAL("2");
    cr_assert_eq(subscriptions_add(&world.subscriptions, &subscriber, &three), WEIR_OK);
    cr_assert_eq(subscriber.subscription_count, 2);
    cr_assert_eq(world.subscriptions.topic_count, 1, "the replaced one's topic is gone");
    cr_assert(subscriptions_remove(&world.subscriptions, &subscriber, SPAN_LITERAL("1")));
    cr_assert_not(subscriptions_remove(&world.subscriptions, &subscriber, SPAN_LITERAL("1")));
    subscriptions_remove_subscriber(&world.subscriptions, &subscriber);
    world_close();
}

/* What a dead broker has left in its ring is read first; when that takes too long, the rest is passed
 * over as when the ring laps the gateway. */
Test(turn, a_ring_is_read_to_its_end_or_given_up, .timeout = HANG_SECONDS)
{
    uv_loop_t loop;
    random_state = 38;
    world_open(1024 * 1024);
    join_group(0);
    world_settle();
    cr_assert_eq(uv_loop_init(&loop), 0);
    cr_assert(turn_has_drained(NULL), "nothing was read yet");
    const struct turn_parts parts = {
        .feed = &world.feed, .subscriptions = &world.subscriptions, .counters = &world.counters};
    struct turn *turn = turn_open(&loop, &parts);
    cr_assert_not_null(turn);
    cr_assert(turn_has_drained(turn));
    cr_assert_eq(turn_set_mapping(turn, world.mapping, false), WEIR_OK);
    cr_assert(turn_has_drained(turn));
    write_commit(4);
    cr_assert_not(turn_has_drained(turn));
    turn_once(true);
    cr_assert(turn_has_drained(turn));
    write_commit(5);
    cr_assert_not(turn_has_drained(turn));
    (void)usleep((TURN_DRAIN_MS + 50) * 1000);
    uv_update_time(&loop);
    cr_assert(turn_has_drained(turn));
    cr_assert_eq(counted(COUNTER_FEED_LAPPED), 1);
    cr_assert_not(world.feed.is_commit_known);
    cr_assert_eq(world.subscriptions.behind_count, 1, "the ring has it still");
    world_settle();
    world_check_complete();
    turn_stop(turn);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
    world_close();
}

Test(turn, hold_grows_with_work_and_is_bounded)
{
    cr_assert_eq(turn_hold_ms(0, 1e6, 5), 0);
    cr_assert_eq(turn_hold_ms(333, 1e6, 5), 0);
    cr_assert_eq(turn_hold_ms(334, 1e6, 5), 1);
    cr_assert_eq(turn_hold_ms(1200, 1e3, 5), 3);
    cr_assert_eq(turn_hold_ms(100000, 1e3, 5), 5);
    cr_assert_eq(turn_hold_ms(100000, 1e3, 0), 0);
    cr_assert_eq(turn_hold_ms(5000, 199, 5), 0, "the next event comes when all is long done");
    cr_assert_eq(turn_hold_ms(5000, 200, 5), 5);
}

Test(stream_socket, paths_are_percent_decoded)
{
    char out[64];
    size_t bytes;
    cr_assert(stream_path_decode(out, SPAN_LITERAL("a%20b%2Fc"), &bytes));
    cr_assert(span_equal(span_of(out, bytes), SPAN_LITERAL("a b/c")));
    cr_assert(stream_path_decode(out, SPAN_LITERAL("%F0%9f%98%80"), &bytes));
    cr_assert_eq(bytes, 4);
    cr_assert(stream_path_decode(out, SPAN_LITERAL("%00"), &bytes));
    cr_assert_eq(bytes, 1);
    cr_assert_not(stream_path_decode(out, SPAN_LITERAL("%zz"), &bytes));
    cr_assert_not(stream_path_decode(out, SPAN_LITERAL("%4"), &bytes));
    cr_assert_not(stream_path_decode(out, SPAN_LITERAL("%ff"), &bytes));
}

Test(uuid, prints_and_parses)
{
    uint8_t uuid[UUID_BYTES], back[UUID_BYTES];
    char text[UUID_TEXT_BYTES + 1];
    for (unsigned i = 0; i < 1000; i++) {
        uuid_make(uuid);
        uuid_print(text, uuid);
        cr_assert_eq(text[14], '4');
        cr_assert_not_null(strchr("89ab", text[19]));
        cr_assert(uuid_parse(back, span_text(text)));
        cr_assert_arr_eq(uuid, back, UUID_BYTES);
    }
    cr_assert_not(uuid_parse(back, SPAN_LITERAL("")));
    text[8] = 'x';
    cr_assert_not(uuid_parse(back, span_text(text)));
}

Test(pace, settles_on_the_rate_of_events)
{
    struct pace pace = {0};
    uint64_t now_ns = 1;
    for (unsigned i = 0; i < 200; i++)
        pace_note(&pace, 2, now_ns += 4000000);
    cr_assert_gt(pace.per_s, 495);
    cr_assert_lt(pace.per_s, 505);
}

Test(pace, one_burst_after_a_pause_is_no_rate_and_a_pause_ends_one)
{
    struct pace pace = {0};
    uint64_t now_ns = 1;
    pace_note(&pace, 1, now_ns);
    cr_assert_lt(pace.per_s, 1, "nothing is known yet");
    pace_note(&pace, 1, now_ns += 1000000000);
    cr_assert_lt(pace.per_s, 2);
    pace_note(&pace, 1, now_ns += 1000000);
    cr_assert_lt(pace.per_s, 100, "of 1,000 a second");
    for (unsigned i = 0; i < 100; i++)
        pace_note(&pace, 1, now_ns += 1000000);
    cr_assert_gt(pace.per_s, 900);
    pace_note(&pace, 1, now_ns += 10000000000);
    cr_assert_lt(pace.per_s, 3);
}

/* Catching up as its clients see it: a real segment, store and ring; sockets that stall for long; and
 * clients that keep the items of a group by what envelopes say (create appends, update replaces by id
 * and ignores an id it has not got, delete takes out), check every position, and come back with it. */
#include <criterion/criterion.h>

#include "gateway/catch_up.h"
#include "gateway/conflation.h"
#include "gateway/event_stream.h"
#include "gateway/fanout.h"
#include "gateway/joins.h"
#include "shm/json.h"
#include "tests/store_fixture.h"

enum { GROUPS = 2, ITEMS = 6, CLIENTS = 16, LOG_MAX = 200000, SENDS_MAX = 4096 };

static uint64_t random_state;
static unsigned random_below(unsigned bound)
{
    return (unsigned)(fixture_random(&random_state) % bound);
}

/* ---- the writer's side ---- */

struct event {
    uint64_t epoch, seq;
    int item; /* -1: none */
    enum envelope_event kind;
    unsigned value;
};

static struct world {
    struct host host;
    struct mapping *mapping;
    struct event log[GROUPS][LOG_MAX];
    unsigned count[GROUPS];
    unsigned values[GROUPS][ITEMS]; /* 0: not there */
    unsigned last_value;
    bool hashes_collide; /* of all items */
    struct counters counters;
    struct subscriptions subscriptions;
    struct feed feed;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct joins *joins;
} world;

static struct span group_name(unsigned group)
{
    return group == 0 ? SPAN_LITERAL("g") : SPAN_LITERAL("h\"");
}
static struct span item_name(int item)
{
    static const char *const names[ITEMS] = {"a", "b", "", "d\"\xF0\x9F\x98\x80", "e", "f"};
    return item < 0 ? (struct span){0} : span_text(names[item]);
}
static struct store_key key_of(unsigned group, int item)
{
    return (struct store_key){SPAN_LITERAL("s"), group_name(group), item_name(item)};
}

static void write_event(unsigned group, int item, enum envelope_event kind, unsigned pad)
{
    static char value[65536];
    struct store_key key = key_of(group, item);
    struct store_change change;
    struct span data;
    unsigned *kept = item < 0 ? NULL : &world.values[group][item];
    enum weir_status status;
    world.host.now_ms++;
    if (kind == ENVELOPE_EVENT) {
        status = store_touch(world.host.store, &key, world.host.now_ms, &change);
        data = SPAN_LITERAL("1");
    } else if (kind == ENVELOPE_DELETE) {
        status = store_delete(world.host.store, &key, world.host.now_ms, &change);
        if (status == WEIR_EMPTY)
            return;
        *kept = 0;
        data = change.old_value;
    } else {
        int bytes = snprintf(value, sizeof value, "{\"i\":%d,\"v\":%u,\"p\":\"%0*u\"}", item,
                             ++world.last_value, (int)pad, 0u);
        data = span_of(value, (size_t)bytes);
        status = store_set(world.host.store, &key, data, world.host.now_ms, &change);
        kind = change.existed ? ENVELOPE_UPDATE : ENVELOPE_CREATE;
        *kept = world.last_value;
    }
    cr_assert_eq(status, WEIR_OK);
    if (world.hashes_collide)
        change.item_hash = 0;
    cr_assert_eq(host_publish(&world.host, &change, kind, key.item, data), WEIR_OK);
    cr_assert_lt(world.count[group], LOG_MAX);
    world.log[group][world.count[group]++] =
        (struct event){change.group.epoch, change.group.seq, item, kind, world.last_value};
    store_turn_end(world.host.store);
}

static void write_any(unsigned group, unsigned pad_max)
{
    unsigned choice = random_below(10);
    int item = (int)random_below(ITEMS);
    if (choice == 0)
        write_event(group, random_below(2) == 0 ? -1 : item, ENVELOPE_EVENT, 1);
    else
        write_event(group, item, choice < 4 ? ENVELOPE_DELETE : ENVELOPE_UPDATE,
                    1 + random_below(pad_max));
}

/* The group loses all it has and is forgotten; its next write begins another epoch. */
static void end_group(unsigned group)
{
    struct store_change change;
    for (int item = 0; item < ITEMS; item++)
        write_event(group, item, ENVELOPE_DELETE, 0);
    for (unsigned i = 0; i < 3; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "x%u", i);
        struct store_key key = {SPAN_LITERAL("other"), span_text(name), SPAN_LITERAL("i")};
        cr_assert_eq(host_set(&world.host, &key, SPAN_LITERAL("1"), &change), WEIR_OK);
        cr_assert_eq(host_delete(&world.host, &key, &change), WEIR_OK);
        store_turn_end(world.host.store);
    }
}

/* How many events of the log a position covers. */
static unsigned log_index(unsigned group, uint64_t epoch, uint64_t seq)
{
    unsigned index = 0, end = world.count[group];
    while (index < end) { /* halves what is left */
        unsigned middle = index + (end - index) / 2;
        const struct event *event = &world.log[group][middle];
        if (event->epoch > epoch || (event->epoch == epoch && event->seq > seq))
            end = middle;
        else
            index = middle + 1;
    }
    return index;
}

/* ---- clients ---- */

static struct client {
    struct subscriber subscriber;
    unsigned group;
    bool wants[ITEMS], wants_all;
    enum slow_policy policy;
    unsigned busy_percent;
    bool is_stalled, owes_writable, is_closed;
    bool stalls_after_one; /* send */
    /* What it has. */
    bool is_synced[ITEMS + 1], has_sync; /* by subscription; the last: the whole group */
    unsigned values[ITEMS];
    uint64_t sent_events[ITEMS + 1]; /* log index of the newest sent event; the last: without id */
    uint64_t epoch, seq;             /* its position */
    uint64_t sync_index;             /* of the log, of its newest sync */
    uint64_t applied_seq; /* of the newest envelope, ahead of the position in a conflation */
    /* It has come back in the middle of one: part of what follows is known already. */
    bool is_unsure;
    unsigned received, conflated, syncs, resumes, halves;
} clients[CLIENTS];

static struct {
    struct client *client;
    struct iovec frames[16];
    unsigned frame_count;
    void *entry;
} sends[SENDS_MAX];
static unsigned send_count, flush_count, largest_batch;
static bool is_calm;
static uint32_t lag_events = 1024;
static size_t sent_bytes;

static uint64_t number_of(struct json_value value)
{
    cr_assert_eq(value.kind, JSON_NUMBER);
    return strtoull(value.text.data, NULL, 10);
}

static int item_of(struct json_value value)
{
    if (value.kind == JSON_NULL)
        return -1;
    for (int i = 0; i < ITEMS; i++) {
        if (json_string_equals(value, item_name(i)))
            return i;
    }
    cr_assert_fail("an envelope of an unknown item");
    return -1;
}

static bool client_wants(const struct client *client, int item)
{
    return client->wants_all || (item >= 0 && client->wants[item]);
}

/* A value, with its item. */
static void client_keep(struct client *client, struct json_value data)
{
    static const char *const names[] = {"i", "v"};
    struct json_value values[2];
    cr_assert_eq(json_scan_object(data.text, 10, names, 2, values, NULL), WEIR_OK);
    client->values[number_of(values[0])] = (unsigned)number_of(values[1]);
}

static void client_sync(struct client *client, int item, struct json_value data, uint64_t epoch,
                        uint64_t seq, bool has_reason)
{
    struct subscriber_link *link = client->subscriber.links;
    bool is_fresh = link->mode == DELIVERY_IDLE;
    cr_assert(!client->has_sync || !is_fresh || has_reason, "a fresh sync says why");
    if (is_fresh) {
        memset(client->values, 0, sizeof client->values);
        memset(client->is_synced, 0, sizeof client->is_synced);
        memset(client->sent_events, 0, sizeof client->sent_events);
    } else {
        cr_assert_eq(seq, client->seq, "a sync beside others is where they are");
    }
    if (item < 0) {
        struct json_value element;
        for (size_t cursor = 0; json_next(data, &cursor, NULL, &element) == WEIR_OK;)
            client_keep(client, element);
    } else {
        client->values[item] = 0;
        if (data.kind != JSON_NULL)
            client_keep(client, data);
    }
    client->is_synced[item < 0 ? ITEMS : item] = client->has_sync = true;
    client->epoch = epoch;
    client->seq = client->applied_seq = seq;
    client->sync_index = log_index(client->group, epoch, seq);
    client->is_unsure = false;
    client->syncs++;
}

static void client_apply(struct client *client, enum envelope_event kind, int item,
                         struct json_value data, bool is_conflated)
{
    bool is_known = item >= 0 && client->values[item] != 0;
    switch (kind) {
    case ENVELOPE_CREATE:
        cr_assert(!is_known || client->is_unsure, "create of an item that is there");
        client_keep(client, data);
        break;
    case ENVELOPE_UPDATE:
        cr_assert(is_known || client->is_unsure, "update of an item that is not there");
        client_keep(client, data);
        break;
    case ENVELOPE_DELETE:
        cr_assert(is_known || is_conflated || client->is_unsure);
        client->values[item] = 0;
        break;
    default:
        break;
    }
}

/* What was passed over on the way to event `seq` is not wanted, or has a newer one of its item ahead. */
static void client_check_way(const struct client *client, uint64_t epoch, uint64_t seq,
                             bool is_conflated)
{
    unsigned end = log_index(client->group, epoch, seq) - 1;
    const struct event *log = world.log[client->group];
    for (unsigned i = log_index(client->group, client->epoch, client->applied_seq); i < end; i++) {
        bool has_newer = false;
        for (unsigned k = i + 1; is_conflated && !has_newer && k < world.count[client->group]; k++)
            has_newer =
                has_newer || (log[k].item == log[i].item &&
                              (log[k].kind == ENVELOPE_EVENT) == (log[i].kind == ENVELOPE_EVENT));
        cr_assert(!client_wants(client, log[i].item) || has_newer, "event %lu was skipped",
                  (unsigned long)log[i].seq);
    }
}

/* Where an envelope says that the client stands: where it does, or, with nothing for it between, on. */
static void client_stand(struct client *client, uint64_t epoch, uint64_t since)
{
    bool is_same = epoch == client->epoch && since == client->seq;
    if (is_same)
        return;
    cr_assert_not(client->wants_all, "it has had everything up to where it stands");
    cr_assert_eq(client->applied_seq, client->seq, "one place for all of a conflation");
    cr_assert(epoch > client->epoch || (epoch == client->epoch && since > client->seq));
    unsigned end = log_index(client->group, epoch, since);
    for (unsigned i = log_index(client->group, client->epoch, client->seq); i < end; i++)
        cr_assert_not(client_wants(client, world.log[client->group][i].item));
    client->epoch = epoch;
    client->seq = client->applied_seq = since;
}

enum { FIELD_SEQ, FIELD_EPOCH, FIELD_ID, FIELD_EVENT, FIELD_REASON, FIELD_CONFLATED, FIELDS };

static enum envelope_event kind_of(struct json_value type)
{
    static const char *const words[] = {[ENVELOPE_SYNC] = "sync",
                                        [ENVELOPE_CREATE] = "create",
                                        [ENVELOPE_UPDATE] = "update",
                                        [ENVELOPE_DELETE] = "delete",
                                        [ENVELOPE_EVENT] = "event"};
    for (unsigned i = ENVELOPE_SYNC; i <= ENVELOPE_EVENT; i++) {
        if (json_string_equals(type, span_text(words[i])))
            return (enum envelope_event)i;
    }
    cr_assert_fail("an unknown kind of envelope");
    return ENVELOPE_SYNC;
}

/* The position it has after one envelope, or epoch 0: the envelope is none. */
static struct cursor client_take(struct client *client, struct span json)
{
    static const char *const names[FIELDS] = {"seq", "epoch", "id", "event", "reason", "conflated"};
    static const char *const event_names[] = {"type", "data"};
    static const char *const mark_names[] = {"since", "more"};
    struct json_value values[FIELDS], event[2], mark[2];
    cr_assert_eq(json_scan_object(json, 20, names, FIELDS, values, NULL), WEIR_OK);
    cr_assert_eq(json_scan_object(values[FIELD_EVENT].text, 20, event_names, 2, event, NULL),
                 WEIR_OK);
    uint64_t seq = number_of(values[FIELD_SEQ]), epoch = number_of(values[FIELD_EPOCH]);
    enum envelope_event kind = kind_of(event[0]);
    int item = item_of(values[FIELD_ID]);
    bool is_conflated = values[FIELD_CONFLATED].kind == JSON_OBJECT, more = false;
    if (kind == ENVELOPE_SYNC) {
        client_sync(client, item, event[1], epoch, seq, values[FIELD_REASON].kind != JSON_ABSENT);
        return (struct cursor){epoch, seq};
    }
    cr_assert(client->has_sync);
    cr_assert(client_wants(client, item), "an event nobody asked for");
    if (is_conflated) {
        cr_assert_eq(json_scan_object(values[FIELD_CONFLATED].text, 5, mark_names, 2, mark, NULL),
                     WEIR_OK);
        client_stand(client, epoch, number_of(mark[0]));
        cr_assert_eq(client->policy, SLOW_LATEST);
        more = mark[1].kind == JSON_TRUE;
        client->conflated++;
    } else {
        cr_assert_eq(client->applied_seq, client->seq, "a conflation ends before others begin");
    }
    cr_assert(epoch > client->epoch || seq > client->applied_seq, "order");
    client_check_way(client, epoch, seq, is_conflated);
    client_apply(client, kind, item, event[1], is_conflated);
    client->received++;
    if (kind == ENVELOPE_EVENT)
        client->sent_events[item < 0 ? ITEMS : item] = log_index(client->group, epoch, seq);
    client->applied_seq = seq;
    if (more)
        return (struct cursor){0};
    client->epoch = epoch;
    client->seq = seq;
    client->is_unsure = client->is_unsure && is_conflated;
    return (struct cursor){epoch, seq};
}

static void client_take_frames(struct client *client, struct span rest)
{
    while (rest.bytes > 0) {
        uint64_t frame_bytes = envelope_frame_bytes(rest);
        cr_assert_gt(frame_bytes, 0);
        cr_assert_leq(frame_bytes, rest.bytes, "only whole frames");
        size_t header = rest.data[1] == 126 ? 4 : rest.data[1] == 127 ? 10 : 2;
        (void)client_take(client, span_of(rest.data + header, frame_bytes - header));
        rest = span_of(rest.data + frame_bytes, rest.bytes - frame_bytes);
    }
}

static void client_take_text(struct client *client, struct span rest)
{
    while (rest.bytes > 0) {
        struct cursor id = {0};
        const char *line = memchr(rest.data, '\n', rest.bytes);
        cr_assert_not_null(line);
        if (memcmp(rest.data, "id: ", 4) == 0) {
            cr_assert(
                event_stream_parse_id(span_of(rest.data + 4, (size_t)(line - rest.data) - 4), &id));
            rest = span_of(line + 1, rest.bytes - (size_t)(line + 1 - rest.data));
            line = memchr(rest.data, '\n', rest.bytes);
        }
        cr_assert_eq(memcmp(rest.data, "data: ", 6), 0);
        cr_assert_eq(line[1], '\n');
        struct cursor at =
            client_take(client, span_of(rest.data + 6, (size_t)(line - rest.data) - 6));
        cr_assert_eq(id.epoch, at.epoch);
        cr_assert_eq(id.seq, at.seq);
        rest = span_of(line + 2, rest.bytes - (size_t)(line + 2 - rest.data));
    }
}

/* ---- the outlet ---- */

static void fake_add(void *context, void *connection, const struct iovec *frames,
                     unsigned frame_count, void *entry)
{
    (void)context;
    cr_assert_lt(send_count, SENDS_MAX);
    cr_assert_leq(frame_count, 16);
    sends[send_count].client = connection;
    memcpy(sends[send_count].frames, frames, frame_count * sizeof *frames);
    sends[send_count].frame_count = frame_count;
    sends[send_count++].entry = entry;
}

static void fake_flush(void *context, outlet_done *done, void *done_context)
{
    (void)context;
    flush_count++;
    if (send_count > largest_batch)
        largest_batch = send_count;
    for (unsigned i = 0; i < send_count; i++) {
        struct client *client = sends[i].client;
        bool is_busy = client->is_stalled || client->owes_writable ||
                       (!is_calm && random_below(100) < client->busy_percent);
        if (is_busy || client->is_closed) {
            client->owes_writable = true;
            done(done_context, sends[i].entry, client->is_closed ? WEIR_CLOSED : WEIR_AGAIN);
            continue;
        }
        for (unsigned k = 0; k < sends[i].frame_count; k++) {
            struct span bytes = span_of(sends[i].frames[k].iov_base, sends[i].frames[k].iov_len);
            sent_bytes += bytes.bytes;
            if (client->subscriber.format == FORMAT_EVENT_STREAM)
                client_take_text(client, bytes);
            else
                client_take_frames(client, bytes);
        }
        client->halves += client->applied_seq != client->seq;
        client->is_stalled = client->stalls_after_one;
        done(done_context, sends[i].entry, WEIR_OK);
    }
    send_count = 0;
}

static enum weir_status fake_send_text(void *context, void *connection, struct span json,
                                       struct cursor at)
{
    struct client *client = connection;
    (void)context;
    if (client->is_stalled)
        return WEIR_FULL;
    (void)at;
    (void)client_take(client, json);
    return WEIR_OK;
}

static size_t fake_backlog_bytes(void *context, void *connection)
{
    (void)context;
    (void)connection;
    return 0;
}

static void fake_close(void *context, void *connection, unsigned code, const char *reason)
{
    struct client *client = connection;
    (void)context;
    cr_assert_eq(code, 1013, "%s", reason);
    cr_assert_eq(client->policy, SLOW_DISCONNECT);
    cr_assert_not(client->is_closed, "once");
    client->is_closed = true;
}

static const struct outlet fake_outlet = {
    fake_add, fake_flush, fake_send_text, fake_backlog_bytes, fake_close, NULL, 16};

/* ---- the gateway ---- */

static void open_world(uint64_t ring_bytes)
{
    struct weir_error error = {0};
    struct host_options options = {.ring_bytes = ring_bytes,
                                   .store_bytes = 64 * 1024 * 1024,
                                   .store = {.items_max = 100000, .groups_max = 100000}};
    cr_assert_eq(host_open(&world.host, &options, &error), WEIR_OK, "%s", error.text);
    uint32_t slot;
    int control_fd, event_fd;
    cr_assert_eq(readers_attach(world.host.readers, 1, &slot, &control_fd, &event_fd, &error),
                 WEIR_OK);
    int fds[MAPPING_FDS] = {dup(world.host.segment.fd), dup(event_fd), dup(control_fd)};
    cr_assert_eq(mapping_open(&world.mapping, slot, fds, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(subscriptions_init(&world.subscriptions, 100, false, &world.counters), WEIR_OK);
    subscriptions_restart(&world.subscriptions, world.mapping->hash_seed, "restarted");
    cr_assert_eq(feed_init(&world.feed, &world.counters), WEIR_OK);
    world.fanout = fanout_open(&world.subscriptions, &fake_outlet, &world.counters);
    world.catch_up = catch_up_open(&world.subscriptions, &fake_outlet, &world.counters);
    world.joins = joins_open(&world.subscriptions, world.catch_up, &fake_outlet, &world.counters);
    catch_up_set_mapping(world.catch_up, world.mapping);
    joins_set_mapping(world.joins, world.mapping);
}

static void client_end(struct client *client)
{
    subscriptions_remove_subscriber(&world.subscriptions, &client->subscriber);
}

static void close_world(void)
{
    for (unsigned i = 0; i < CLIENTS; i++)
        client_end(&clients[i]);
    cr_assert_eq(world.subscriptions.behind_count, 0);
    cr_assert_eq(world.subscriptions.topic_count, 0);
    joins_close(world.joins);
    catch_up_close(world.catch_up);
    fanout_close(world.fanout);
    feed_fini(&world.feed);
    subscriptions_fini(&world.subscriptions);
    mapping_close(world.mapping);
    host_close(&world.host);
}

static void turn(void)
{
    enum weir_status status = feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions);
    cr_assert(status == WEIR_OK || status == WEIR_EMPTY || status == WEIR_LAPPED);
    (void)fanout_run(world.fanout, &world.feed, 1);
    if (status == WEIR_LAPPED)
        subscriptions_all_behind(&world.subscriptions);
    (void)catch_up_run(world.catch_up);
    (void)joins_run(world.joins, 1);
}

static void client_subscribe(struct client *client)
{
    client->subscriber.connection = client;
    for (int item = -1; item < ITEMS; item++) {
        char id[16];
        if (item < 0 ? !client->wants_all : !client->wants[item])
            continue;
        (void)snprintf(id, sizeof id, "%d", item);
        const struct subscription_wish wish = {.subscription_id = span_text(id),
                                               .stream = SPAN_LITERAL("s"),
                                               .group = group_name(client->group),
                                               .item = item_name(item),
                                               .policy = client->policy,
                                               .lag_events = lag_events};
        cr_assert_eq(subscriptions_add(&world.subscriptions, &client->subscriber, &wish), WEIR_OK);
    }
}

static void client_join(struct client *client, unsigned group, bool wants_all,
                        enum slow_policy policy)
{
    uint8_t format = client->subscriber.format;
    unsigned busy_percent = client->busy_percent;
    *client = (struct client){.group = group,
                              .wants_all = wants_all,
                              .policy = policy,
                              .busy_percent = busy_percent,
                              .subscriber = {.format = format}};
    if (!wants_all) {
        client->wants[random_below(ITEMS)] = true;
        client->wants[random_below(ITEMS)] = true;
    }
    client_subscribe(client);
}

/* It comes back on a new connection with the position it has. True: it goes on from there. As joins.h
 * does it, all its subscriptions at once. */
static bool client_resume(struct client *client)
{
    uint8_t format = client->subscriber.format;
    client_end(client);
    client->is_unsure = client->is_unsure || client->applied_seq != client->seq;
    client->applied_seq = client->seq;
    client->owes_writable = client->is_stalled = client->is_closed = false;
    client->subscriber = (struct subscriber){.format = format};
    client_subscribe(client);
    struct cursor cursor = {client->epoch, client->seq};
    struct subscriber_link *link = client->subscriber.links;
    enum weir_status status = WEIR_PENDING;
    for (unsigned i = 0; status == WEIR_PENDING && i < 1000; i++) {
        status = catch_up_reaches(world.catch_up, link, cursor);
        if (status == WEIR_PENDING)
            (void)catch_up_run(world.catch_up); /* the next turn's budget */
    }
    if (status != WEIR_OK) {
        client->has_sync = false; /* it starts anew, and its first sync needs no reason here */
        return false;
    }
    struct subscription *subscription = link->subscriptions, *queued;
    size_t count = world.subscriptions.sync_count;
    while (count-- > 0) {
        queued = subscriptions_pop_sync(&world.subscriptions);
        if (queued->link != link)
            subscriptions_push_sync(&world.subscriptions, queued);
    }
    for (; subscription != NULL; subscription = subscription->next)
        subscriptions_activate(&world.subscriptions, subscription, cursor.epoch, cursor.seq);
    link->resumed = LINK_RESUMED_BY_CLIENT;
    subscriptions_set_behind(&world.subscriptions, link);
    client->resumes++;
    return true;
}

static void client_make_writable(struct client *client)
{
    client->is_stalled = client->owes_writable = false;
    subscriptions_unblock(&world.subscriptions, &client->subscriber);
}

static uint64_t counted(enum counter counter)
{
    return world.counters.values[counter];
}

static void settle(void)
{
    is_calm = true;
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < CLIENTS; i++) {
            if (clients[i].subscriber.links != NULL)
                client_make_writable(&clients[i]);
        }
        for (unsigned i = 0; i < 300; i++)
            turn();
        for (unsigned i = 0; i < CLIENTS; i++) {
            if (clients[i].is_closed) {
                client_end(&clients[i]);
                client_join(&clients[i], clients[i].group, clients[i].wants_all, clients[i].policy);
            }
        }
    }
    is_calm = false;
}

static void client_check(const struct client *client)
{
    cr_assert(client->has_sync);
    cr_assert_eq(client->applied_seq, client->seq, "no conflation is left half done");
    cr_assert_eq(client->subscriber.links->mode, DELIVERY_LIVE);
    for (int item = 0; item < ITEMS; item++) {
        if (client_wants(client, item))
            cr_assert_eq(client->values[item], world.values[client->group][item],
                         "item %d has %u instead of %u", item, client->values[item],
                         world.values[client->group][item]);
    }
    uint64_t newest[ITEMS + 1] = {0};
    for (unsigned i = 0; i < world.count[client->group]; i++) {
        const struct event *event = &world.log[client->group][i];
        if (event->kind == ENVELOPE_EVENT)
            newest[event->item < 0 ? ITEMS : event->item] = i + 1;
    }
    for (int item = -1; item < ITEMS; item++) {
        unsigned slot = item < 0 ? ITEMS : (unsigned)item;
        if (client_wants(client, item) && newest[slot] > client->sync_index)
            cr_assert_eq(client->sent_events[slot], newest[slot], "the newest sent event is there");
    }
}

static void check_all(void)
{
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].subscriber.links != NULL)
            client_check(&clients[i]);
    }
}

static void set_lag_events(uint32_t limit)
{
    lag_events = limit;
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].subscriber.links != NULL)
            clients[i].subscriber.links->lag_events = (uint16_t)limit;
    }
}

/* ---- the model ---- */

static void step(unsigned pad_max)
{
    struct client *client = &clients[random_below(CLIENTS)];
    unsigned choice = random_below(40);
    if (choice < 3) {
        client->is_stalled = true;
    } else if (choice < 6) {
        if (client->subscriber.links != NULL)
            client_make_writable(client);
    } else if (choice == 6) {
        for (unsigned burst = random_below(100); burst > 0; burst--)
            write_any(random_below(GROUPS), pad_max);
    } else if (choice == 7) {
        if (client->has_sync && random_below(2) == 0)
            (void)client_resume(client);
    } else if (choice == 8) {
        if (random_below(20) == 0)
            end_group(random_below(GROUPS));
    } else if (choice == 9) {
        if (random_below(10) == 0) { /* the gateway stood still */
            for (unsigned i = 0; i < 500; i++)
                write_any(random_below(GROUPS), pad_max);
        }
    } else if (choice == 10) {
        if (client->is_closed || random_below(4) == 0) {
            client_end(client);
            client_join(client, random_below(GROUPS), random_below(2) == 0,
                        (enum slow_policy)random_below(3));
        }
    } else if (choice < 20) {
        turn();
    } else {
        write_any(random_below(GROUPS), pad_max);
    }
}

/* ThreadSanitizer makes it forty times slower. */
#ifdef __SANITIZE_THREAD__
enum { ROUNDS_SHARE = 3 };
#else
enum { ROUNDS_SHARE = 1 };
#endif

static void run_model(uint64_t ring_bytes, unsigned pad_max, uint32_t limit, unsigned rounds)
{
    random_state = fixture_seed("catch_up");
    open_world(ring_bytes);
    lag_events = limit;
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i].subscriber.format = i % 4 == 3;
        clients[i].busy_percent = i % 3 == 0 ? 30 : 0;
        client_join(&clients[i], i % GROUPS, i % 2 == 0, (enum slow_policy)(i % 3));
    }
    for (unsigned round = 0; round < rounds / ROUNDS_SHARE; round++) {
        for (unsigned i = 0; i < 400; i++)
            step(pad_max);
        settle();
        check_all();
    }
}

static unsigned total_of(size_t offset)
{
    unsigned total = 0;
    for (unsigned i = 0; i < CLIENTS; i++)
        total += *(unsigned *)(void *)((char *)&clients[i] + offset);
    return total;
}

Test(catch_up, clients_end_with_the_exact_state, .timeout = HANG_SECONDS)
{
    run_model(4 * 1024 * 1024, 60, 20, 30);
    cr_assert_gt(total_of(offsetof(struct client, conflated)), 0);
    cr_assert_gt(total_of(offsetof(struct client, resumes)), 0);
    cr_assert_gt(counted(COUNTER_CONFLATIONS), 0);
    cr_assert_gt(counted(COUNTER_EVENTS_CONFLATED), 0);
    cr_assert_gt(counted(COUNTER_SUBSCRIBERS_TOO_SLOW), 0);
    close_world();
}

/* Values so large that a conflation takes several sends, in a ring that is lapped meanwhile. */
Test(catch_up, clients_end_with_the_exact_state_in_a_small_ring, .timeout = HANG_SECONDS)
{
    run_model(256 * 1024, 8000, 5, 30);
    cr_assert_gt(counted(COUNTER_SYNCS_LAGGED), 0);
    close_world();
}

Test(catch_up, a_conflation_of_several_sends_is_one_place, .timeout = HANG_SECONDS)
{
    run_model(32 * 1024 * 1024, 25000, 5, 6);
    cr_assert_gt(counted(COUNTER_CONFLATIONS), 0);
    cr_assert_gt(total_of(offsetof(struct client, halves)), 0);
    close_world();
}

/* Items are told apart by their ids, should all their hashes be the same. */
Test(catch_up, hashes_that_collide_mix_nothing_up, .timeout = HANG_SECONDS)
{
    world.hashes_collide = true;
    run_model(4 * 1024 * 1024, 60, 20, 30);
    cr_assert_gt(counted(COUNTER_CONFLATIONS), 0);
    close_world();
}

/* ---- one thing at a time ---- */

/* Clients of the whole group 0, brought up to date. */
static void open_clients(uint64_t ring_bytes, unsigned count, enum slow_policy policy)
{
    random_state = 1;
    is_calm = true;
    open_world(ring_bytes);
    for (unsigned i = 0; i < count; i++)
        client_join(&clients[i], 0, true, policy);
    write_event(0, 0, ENVELOPE_UPDATE, 1);
    turn();
    turn();
    for (unsigned i = 0; i < count; i++)
        cr_assert_eq(clients[i].syncs, 1);
}

/* Events the client is not there for. */
static void miss(struct client *client, unsigned count)
{
    client->is_stalled = true;
    for (unsigned i = 0; i < count; i++) {
        write_event(0, (int)(i % ITEMS), ENVELOPE_UPDATE, 1);
        if (i % 1000 == 0)
            turn();
    }
    turn();
    client->is_stalled = false;
    client_make_writable(client);
}

static unsigned turns_until_live(struct client *client)
{
    unsigned turns = 0;
    for (; client->subscriber.links->mode != DELIVERY_LIVE; turns++) {
        cr_assert_lt(turns, 1000);
        turn();
    }
    return turns;
}

/* Goal: what policies do. Method: one client for each rung of the ladder. */
Test(catch_up, within_the_lag_limit_every_event_is_sent, .timeout = HANG_SECONDS)
{
    open_clients(4 * 1024 * 1024, 2, SLOW_LATEST);
    struct client *client = &clients[0];
    uint64_t limit = lag_events;
    miss(client, (unsigned)limit);
    (void)turns_until_live(client);
    cr_assert_eq(client->conflated, 0);
    cr_assert_eq(client->received, limit);
    miss(client, (unsigned)limit + 1);
    (void)turns_until_live(client);
    cr_assert_eq(client->conflated, ITEMS);
    cr_assert_eq(counted(COUNTER_CONFLATIONS), 1);
    cr_assert_eq(counted(COUNTER_EVENTS_CONFLATED), limit + 1 - ITEMS);
    cr_assert_eq(clients[1].conflated, 0);
    check_all();
    close_world();
}

Test(catch_up, lossless_is_every_event_however_many, .timeout = HANG_SECONDS)
{
    enum { MANY = 100000 };
    open_clients(64 * 1024 * 1024, 2, SLOW_LOSSLESS);
    struct client *client = &clients[0];
    miss(client, MANY);
    (void)turns_until_live(client);
    cr_assert_eq(client->received, MANY);
    cr_assert_eq(client->syncs, 1);
    check_all();
    close_world();
}

Test(catch_up, who_disconnects_is_closed_once_and_told_nothing_more, .timeout = HANG_SECONDS)
{
    open_clients(4 * 1024 * 1024, 2, SLOW_DISCONNECT);
    struct client *client = &clients[0];
    miss(client, (unsigned)lag_events + 1);
    turn();
    cr_assert(client->is_closed);
    unsigned received = client->received;
    client_make_writable(client);
    for (unsigned i = 0; i < 10; i++) {
        write_event(0, 0, ENVELOPE_UPDATE, 1);
        turn();
    }
    cr_assert_eq(counted(COUNTER_SUBSCRIBERS_TOO_SLOW), 1);
    cr_assert_eq(client->received, received);
    cr_assert_not(clients[1].is_closed);
    close_world();
}

Test(catch_up, more_events_than_a_conflation_looks_at_are_a_sync, .timeout = HANG_SECONDS)
{
    open_clients(64 * 1024 * 1024, 2, SLOW_LATEST);
    struct client *client = &clients[0];
    miss(client, CONFLATION_EVENTS_MAX);
    (void)turns_until_live(client);
    cr_assert_eq(client->conflated, ITEMS);
    miss(client, CONFLATION_EVENTS_MAX + 1);
    for (unsigned i = 0; i < 5; i++)
        turn();
    cr_assert_eq(client->conflated, ITEMS);
    cr_assert_eq(client->syncs, 2);
    cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 1);
    check_all();
    close_world();
}

/* What kind a conflated event is of depends on what the client has. */
Test(catch_up, kinds_are_put_right_for_who_has_missed_what, .timeout = HANG_SECONDS)
{
    open_clients(1024 * 1024, 1, SLOW_LATEST);
    struct client *client = &clients[0];
    set_lag_events(0);
    write_event(0, 1, ENVELOPE_UPDATE, 1);
    write_event(0, 2, ENVELOPE_UPDATE, 1);
    turn();
    client->is_stalled = true;
    write_event(0, 0, ENVELOPE_UPDATE, 1); /* known, changed */
    write_event(0, 1, ENVELOPE_DELETE, 1); /* known, gone and back */
    write_event(0, 1, ENVELOPE_UPDATE, 1);
    write_event(0, 2, ENVELOPE_DELETE, 1); /* known, gone */
    write_event(0, 3, ENVELOPE_UPDATE, 1); /* new, changed */
    write_event(0, 3, ENVELOPE_UPDATE, 1);
    write_event(0, 4, ENVELOPE_UPDATE, 1); /* new, and gone */
    write_event(0, 4, ENVELOPE_DELETE, 1);
    write_event(0, 5, ENVELOPE_UPDATE, 1); /* new, gone and back */
    write_event(0, 5, ENVELOPE_DELETE, 1);
    write_event(0, 5, ENVELOPE_UPDATE, 1);
    write_event(0, 5, ENVELOPE_EVENT, 1); /* a sent event is apart from the item */
    write_event(0, -1, ENVELOPE_EVENT, 1);
    write_event(0, -1, ENVELOPE_EVENT, 1);
    turn();
    client_make_writable(client);
    turn();
    cr_assert_eq(client->conflated, 8);
    check_all();
    close_world();
}

/* Goal: what is written while the sends of a conflation go out belongs to the next one, and the position
 * stays in front of it until it is complete. Method: a socket that takes one send and stalls. */
Test(catch_up, a_conflation_ends_where_it_began_to, .timeout = HANG_SECONDS)
{
    open_clients(4 * 1024 * 1024, 1, SLOW_LATEST);
    struct client *client = &clients[0];
    set_lag_events(0);
    client->is_stalled = client->stalls_after_one = true;
    uint64_t seq = client->seq;
    for (int item = 1; item < ITEMS; item++)
        write_event(0, item, ENVELOPE_UPDATE, 40000);
    turn();
    client_make_writable(client);
    turn();
    cr_assert_eq(client->seq, seq);
    cr_assert_gt(client->applied_seq, seq);
    write_event(0, 1, ENVELOPE_UPDATE, 10);
    write_event(0, 2, ENVELOPE_DELETE, 10);
    turn();
    client_make_writable(client);
    turn();
    cr_assert_eq(client->seq, seq);
    client->stalls_after_one = false;
    client_make_writable(client);
    turn();
    cr_assert_eq(counted(COUNTER_CONFLATIONS), 2);
    check_all();
    close_world();
}

/* A filter that nothing of it passes: the link moves, nothing is sent. */
Test(catch_up, a_conflation_of_nothing_wanted_is_nothing, .timeout = HANG_SECONDS)
{
    open_clients(4 * 1024 * 1024, 1, SLOW_LATEST);
    struct client *client = &clients[1];
    client_join(client, 0, false, SLOW_LATEST);
    (void)subscriptions_remove(&world.subscriptions, &client->subscriber, SPAN_LITERAL("-1"));
    memset(client->wants, 0, sizeof client->wants);
    client_end(client);
    client->wants[5] = true;
    client->subscriber = (struct subscriber){0};
    client_subscribe(client);
    turn();
    set_lag_events(0);
    client->is_stalled = true;
    for (unsigned i = 0; i < 100; i++)
        write_event(0, 0, ENVELOPE_UPDATE, 1);
    subscriptions_block(&world.subscriptions, client->subscriber.links);
    turn();
    client_make_writable(client);
    turn();
    cr_assert_eq(client->received, 0);
    cr_assert_eq(client->subscriber.links->mode, DELIVERY_LIVE);
    write_event(0, 5, ENVELOPE_UPDATE, 1);
    turn();
    cr_assert_eq(client->received, 1);
    cr_assert_eq(client->conflated, 0);
    close_world();
}

/* Goal: who is far behind in a group that is written all the time gets there, though its newest write is
 * never in the ring when the gateway looks. */
Test(catch_up, a_group_that_is_never_at_rest_is_caught_up_with, .timeout = HANG_SECONDS)
{
    static const enum slow_policy policies[] = {SLOW_LATEST, SLOW_LOSSLESS};
    for (unsigned i = 0; i < 2; i++) {
        memset(&world, 0, sizeof world);
        memset(clients, 0, sizeof clients);
        open_clients(4 * 1024 * 1024, 1, policies[i]);
        struct client *client = &clients[0];
        miss(client, 3000);
        subscriptions_all_behind(&world.subscriptions); /* the store is to be asked */
        unsigned turns = 0;
        world.host.hold_ring = true;
        for (; client->subscriber.links->mode != DELIVERY_LIVE; turns++) {
            cr_assert_lt(turns, 100);
            ring_publish(world.host.ring);
            write_event(0, (int)(turns % ITEMS), ENVELOPE_UPDATE, 1);
            turn();
        }
        cr_assert_geq(client->seq + 1, world.count[0]);
        ring_publish(world.host.ring);
        turn();
        check_all();
        close_world();
    }
}

/* Goal: catching up with n events looks at about n records, and at the store once. */
Test(catch_up, the_way_back_is_walked_once, .timeout = HANG_SECONDS)
{
    enum { MANY = 50000 };
    open_clients(64 * 1024 * 1024, 1, SLOW_LOSSLESS);
    struct client *client = &clients[0];
    miss(client, MANY);
    uint64_t reads = counted(COUNTER_GROUP_READS);
    unsigned turns = turns_until_live(client);
    cr_assert_eq(counted(COUNTER_GROUP_READS), reads, "the feed knows");
    cr_assert_leq(turns, 4 * MANY / CATCH_UP_TURN_RECORDS, "%u turns", turns);
    check_all();
    /* The same for a gateway that knows nothing: one look, one walk that leaves its marks. */
    client_end(client);
    struct client *other = &clients[1];
    *other = *client;
    other->epoch = world.log[0][0].epoch;
    other->seq = other->applied_seq = 1;
    memset(other->values, 0, sizeof other->values);
    other->values[0] = 1;
    cr_assert(client_resume(other));
    turns = turns_until_live(other);
    cr_assert_eq(counted(COUNTER_GROUP_READS), reads + 1);
    cr_assert_leq(turns, 4 * MANY / CATCH_UP_TURN_RECORDS, "%u turns", turns);
    cr_assert_eq(other->seq, world.count[0]);
    close_world();
}

/* Goal: many who stand at one place share one look at the store, one walk and one batch. */
Test(catch_up, those_at_one_place_share_what_is_read, .timeout = HANG_SECONDS)
{
    open_clients(4 * 1024 * 1024, CLIENTS, SLOW_LATEST);
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i].is_stalled = true;
    for (unsigned i = 0; i < 200; i++)
        write_event(0, (int)(i % ITEMS), ENVELOPE_UPDATE, 1);
    turn();
    uint64_t reads = counted(COUNTER_GROUP_READS);
    subscriptions_all_behind(&world.subscriptions);
    for (unsigned i = 0; i < CLIENTS; i++)
        client_make_writable(&clients[i]);
    flush_count = largest_batch = 0;
    turn();
    cr_assert_eq(counted(COUNTER_GROUP_READS), reads + 1);
    cr_assert_eq(largest_batch, CLIENTS);
    cr_assert_leq(flush_count, 4);
    check_all();
    set_lag_events(10); /* likewise of a conflation */
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i].is_stalled = true;
    for (unsigned i = 0; i < 600; i++)
        write_event(0, (int)(i % ITEMS), ENVELOPE_UPDATE, 1);
    turn();
    for (unsigned i = 0; i < CLIENTS; i++)
        client_make_writable(&clients[i]);
    flush_count = largest_batch = 0;
    turn();
    cr_assert_eq(largest_batch, CLIENTS);
    cr_assert_eq(flush_count, 1);
    check_all();
    close_world();
}

/* Goal: a group's events are walked once for its links, also where links of other groups stand between
 * them in the queue. Method: two groups in turn; walks of their own would take a turn each. */
Test(catch_up, groups_in_turn_do_not_undo_each_others_walks, .timeout = HANG_SECONDS)
{
    random_state = 1;
    is_calm = true;
    open_world(64 * 1024 * 1024);
    for (unsigned i = 0; i < CLIENTS; i++)
        client_join(&clients[i], i % GROUPS, true, SLOW_LATEST);
    turn();
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i].is_stalled = true;
    for (unsigned i = 0; i < 20000; i++) {
        write_event(i % GROUPS, (int)(i % 5), ENVELOPE_UPDATE, 1);
        if (i % 1000 == 999)
            turn();
    }
    for (unsigned i = 0; i < CLIENTS; i++)
        client_make_writable(&clients[i]);
    unsigned turns = 0;
    for (; world.subscriptions.behind_count > 0; turns++)
        (void)catch_up_run(world.catch_up);
    cr_assert_leq(turns, CLIENTS / 2, "%u turns", turns);
    check_all();
    close_world();
}

/* A position that cannot be one, one that is lapped, one that is ahead of the feed. */
Test(catch_up, positions_are_served_when_the_ring_leads_there, .timeout = HANG_SECONDS)
{
    open_clients(256 * 1024, 1, SLOW_LOSSLESS);
    const struct subscriber_link *link = clients[0].subscriber.links;
    uint64_t epoch = world.log[0][0].epoch;
    struct catch_up *catch_up = world.catch_up;
    for (unsigned i = 0; i < 10; i++)
        write_event(0, 0, ENVELOPE_UPDATE, 1);
    struct cursor newest = {epoch, world.count[0]};
    cr_assert_eq(catch_up_reaches(catch_up, link, newest), WEIR_OK, "the feed is behind it");
    newest.seq++;
    cr_assert_eq(catch_up_reaches(catch_up, link, newest), WEIR_EMPTY);
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch + 1, 1}), WEIR_EMPTY);
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch - 1, 1}), WEIR_EMPTY);
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch, 3}), WEIR_OK);
    turn();
    for (unsigned i = 0; i < 2000; i++)
        write_event(0, 0, ENVELOPE_UPDATE, 100);
    turn();
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch, 3}), WEIR_EMPTY);
    uint64_t seq = world.count[0], reads = counted(COUNTER_GROUP_READS);
    while (catch_up_reaches(catch_up, link, (struct cursor){epoch, seq - 1}) == WEIR_OK) {
        seq--;
        (void)catch_up_run(catch_up); /* another turn's budget */
    }
    cr_assert_gt(seq, 1000);
    cr_assert_lt(seq, world.count[0] - 100);
    cr_assert_eq(counted(COUNTER_GROUP_READS), reads);
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch, seq - 1}), WEIR_EMPTY);
    cr_assert_eq(catch_up_reaches(catch_up, link, (struct cursor){epoch, seq}), WEIR_OK);
    close_world();
}

/* Goal: a turn's work is bounded, whoever is behind. */
Test(catch_up, a_turn_is_bounded, .timeout = HANG_SECONDS)
{
    open_clients(64 * 1024 * 1024, CLIENTS, SLOW_LOSSLESS);
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i].is_stalled = true;
    for (unsigned i = 0; i < 10000; i++) {
        write_event(0, 0, ENVELOPE_UPDATE, 500);
        if (i % 500 == 0)
            turn();
    }
    turn();
    for (unsigned i = 0; i < CLIENTS; i++)
        client_make_writable(&clients[i]);
    for (unsigned i = 0; i < 20; i++) {
        sent_bytes = 0;
        cr_assert(catch_up_run(world.catch_up), "there is more");
        cr_assert_gt(sent_bytes, CATCH_UP_TURN_BYTES / 2);
        cr_assert_leq(sent_bytes, CATCH_UP_TURN_BYTES + 2 * CATCH_UP_SEND_BYTES);
    }
    close_world();
}

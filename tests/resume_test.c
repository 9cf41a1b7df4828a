/* Positions that clients bring, without sockets: a real segment, store and ring written by the test,
 * the gateway's subscriptions, catch-up and joins, and sockets that write down what they are sent. */
#include <criterion/criterion.h>

#include "gateway/catch_up.h"
#include "gateway/conflation.h"
#include "gateway/fanout.h"
#include "gateway/joins.h"
#include "shm/json.h"
#include "tests/store_fixture.h"

enum { SOCKETS_MAX = 4000, ENTRIES_MAX = 64, LINE_BYTES = 160, SENDS_MAX = 4096, FRAMES_MAX = 16 };

/* "resumed 3", "sync 9 expired", "update 4": what a socket has been given, in order. */
struct socket {
    struct subscriber subscriber;
    char lines[ENTRIES_MAX][LINE_BYTES];
    unsigned count;
    bool is_full;
    bool is_busy;
    unsigned closed_code;
};

static struct host host;
static struct mapping *mapping;
static struct counters counters;
static struct subscriptions subscriptions;
static struct feed feed;
static struct fanout *fanout;
static struct catch_up *catch_up;
static struct joins *joins;
static struct socket *sockets;
static uint64_t epoch;

static void socket_take(struct socket *socket, struct span json)
{
    static const char *const names[] = {"seq", "event", "reason", "id"};
    static const char *const types[] = {"type"};
    struct json_value values[4], type;
    cr_assert_eq(json_scan_object(json, JSON_DEPTH_MAX, names, 4, values, NULL), WEIR_OK);
    cr_assert_eq(json_scan_object(values[1].text, JSON_DEPTH_MAX, types, 1, &type, NULL), WEIR_OK);
    bool has_reason = values[2].kind == JSON_STRING;
    cr_assert_lt(socket->count, ENTRIES_MAX);
    (void)snprintf(
        socket->lines[socket->count++], LINE_BYTES, "%.*s %.*s%s%.*s", (int)type.text.bytes - 2,
        type.text.data + 1, (int)values[0].text.bytes, values[0].text.data, has_reason ? " " : "",
        has_reason ? (int)values[2].text.bytes - 2 : 0, has_reason ? values[2].text.data + 1 : "");
}

static struct {
    struct socket *socket;
    struct iovec frames[FRAMES_MAX];
    unsigned frame_count;
    void *entry;
} sends[SENDS_MAX];
static unsigned send_count;

static void fake_add(void *context, void *connection, const struct iovec *frames,
                     unsigned frame_count, void *entry)
{
    (void)context;
    cr_assert_leq(frame_count, FRAMES_MAX);
    cr_assert_lt(send_count, SENDS_MAX);
    sends[send_count].socket = connection;
    memcpy(sends[send_count].frames, frames, frame_count * sizeof *frames);
    sends[send_count].frame_count = frame_count;
    sends[send_count++].entry = entry;
}

static void socket_take_frames(struct socket *socket, struct span rest)
{
    while (rest.bytes > 0) { /* each turn takes a frame */
        size_t bytes = envelope_frame_bytes(rest);
        size_t header = rest.data[1] == 126 ? 4 : rest.data[1] == 127 ? 10 : 2;
        socket_take(socket, span_of(rest.data + header, bytes - header));
        rest = span_of(rest.data + bytes, rest.bytes - bytes);
    }
}

static void fake_flush(void *context, outlet_done *done, void *done_context)
{
    (void)context;
    for (unsigned i = 0; i < send_count; i++) {
        if (sends[i].socket->is_busy) {
            done(done_context, sends[i].entry, WEIR_AGAIN);
            continue;
        }
        for (unsigned k = 0; k < sends[i].frame_count; k++)
            socket_take_frames(sends[i].socket,
                               span_of(sends[i].frames[k].iov_base, sends[i].frames[k].iov_len));
        done(done_context, sends[i].entry, WEIR_OK);
    }
    send_count = 0;
}

/* What joins sends says where the subscriber stands then, which is what the text says. */
static enum weir_status fake_send_text(void *context, void *connection, struct span json,
                                       struct cursor at)
{
    struct socket *socket = connection;
    (void)context;
    if (socket->is_full)
        return WEIR_FULL;
    socket_take(socket, json);
    unsigned long long seq = 0;
    cr_assert_eq(sscanf(socket->lines[socket->count - 1], "%*s %llu", &seq), 1);
    cr_assert_eq(at.seq, seq);
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
    struct socket *socket = connection;
    (void)context;
    (void)reason;
    socket->closed_code = code;
}

static const struct outlet outlet = {fake_add,   fake_flush, fake_send_text, fake_backlog_bytes,
                                     fake_close, NULL,       FRAMES_MAX};

static void open_world(void)
{
    struct weir_error error = {0};
    const struct host_options options = {
        .ring_bytes = 8 * 1024 * 1024,
        .store_bytes = 64 * 1024 * 1024,
        .store = {.items_max = 100000, .groups_max = 100000, .empty_groups_max = 1000},
    };
    sockets = calloc(SOCKETS_MAX, sizeof *sockets);
    cr_assert_not_null(sockets);
    cr_assert_eq(host_open(&host, &options, &error), WEIR_OK, "%s", error.text);
    uint32_t slot;
    int control_fd, event_fd;
    cr_assert_eq(
        readers_attach(host.readers, (uint32_t)getpid(), &slot, &control_fd, &event_fd, &error),
        WEIR_OK);
    int fds[MAPPING_FDS] = {dup(host.segment.fd), dup(event_fd), dup(control_fd)};
    cr_assert_eq(mapping_open(&mapping, slot, fds, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(subscriptions_init(&subscriptions, 100, false, &counters), WEIR_OK);
    subscriptions_restart(&subscriptions, mapping->hash_seed, "restarted");
    cr_assert_eq(feed_init(&feed, &counters), WEIR_OK);
    fanout = fanout_open(&subscriptions, &outlet, &counters);
    catch_up = catch_up_open(&subscriptions, &outlet, &counters);
    joins = joins_open(&subscriptions, catch_up, &outlet, &counters);
    catch_up_set_mapping(catch_up, mapping);
    joins_set_mapping(joins, mapping);
    joins_set_broker(joins, NULL, NULL, NULL);
}

static void close_world(void)
{
    for (unsigned i = 0; i < SOCKETS_MAX; i++)
        subscriptions_remove_subscriber(&subscriptions, &sockets[i].subscriber);
    cr_assert_eq(subscriptions.sync_count, 0);
    cr_assert_eq(subscriptions.behind_count, 0);
    joins_close(joins);
    catch_up_close(catch_up);
    fanout_close(fanout);
    feed_fini(&feed);
    subscriptions_fini(&subscriptions);
    mapping_close(mapping);
    host_close(&host);
    free(sockets);
}

TestSuite(resume, .init = open_world, .fini = close_world, .timeout = HANG_SECONDS);

/* `count` events of item `item` of group `group`. */
static void write_events(const char *group, const char *item, unsigned count, size_t bytes)
{
    char value[8192];
    struct store_change change;
    memset(value, '1', sizeof value);
    value[0] = value[bytes - 1] = '"';
    const struct store_key key = {SPAN_LITERAL("s"), span_text(group), span_text(item)};
    for (unsigned i = 0; i < count; i++) {
        cr_assert_eq(host_set(&host, &key, span_of(value, bytes), &change), WEIR_OK);
        store_turn_end(host.store);
        epoch = change.group.epoch;
    }
}

static void join_by(struct socket *socket, const char *id, const char *group, const char *item,
                    const struct cursor *cursor, enum slow_policy policy, uint32_t lag_events)
{
    struct subscription_wish wish = {
        .subscription_id = span_text(id),
        .stream = SPAN_LITERAL("s"),
        .group = span_text(group),
        .item = item == NULL ? (struct span){0} : span_text(item),
        .policy = policy,
        .lag_events = lag_events,
    };
    if (cursor != NULL) {
        wish.has_cursor = true;
        wish.cursor = *cursor;
    }
    socket->subscriber.connection = socket;
    cr_assert_eq(subscriptions_add(&subscriptions, &socket->subscriber, &wish), WEIR_OK);
}

static void join_at(struct socket *socket, const char *id, const char *group, const char *item,
                    const struct cursor *cursor)
{
    join_by(socket, id, group, item, cursor, SLOW_LOSSLESS, 1024);
}

static void join_since(struct socket *socket, uint64_t seq)
{
    const struct cursor cursor = {epoch, seq};
    join_at(socket, "1", "g", NULL, &cursor);
}

static void read_feed(void)
{
    enum weir_status status = feed_drain(&feed, &mapping->ring, &subscriptions);
    (void)fanout_run(fanout, &feed, 1);
    if (status == WEIR_LAPPED)
        subscriptions_all_behind(&subscriptions);
}

static bool turn(void)
{
    read_feed();
    (void)catch_up_run(catch_up);
    return joins_run(joins, 1);
}

static void settle(void)
{
    for (unsigned i = 0; i < 200; i++)
        (void)turn();
}

static void assert_lines(const struct socket *socket, const char *const *lines, unsigned count)
{
    for (unsigned i = 0; i < count && i < socket->count; i++)
        cr_assert_str_eq(socket->lines[i], lines[i]);
    cr_assert_eq(socket->count, count);
}
#define ASSERT_LINES(socket, ...)                                                                  \
    do {                                                                                           \
        static const char *const lines[] = {__VA_ARGS__};                                          \
        assert_lines((socket), lines, sizeof lines / sizeof lines[0]);                             \
    } while (0)

static uint64_t counted(enum counter counter)
{
    return counters.values[counter];
}

Test(resume, what_was_missed_follows_the_greeting)
{
    write_events("g", "m", 5, 10);
    join_since(&sockets[0], 2);
    join_since(&sockets[1], 5);
    join_at(&sockets[2], "1", "g", NULL, NULL);
    cr_assert(turn(), "there is something to catch up with");
    settle();
    ASSERT_LINES(&sockets[0], "resumed 2", "update 3", "update 4", "update 5");
    ASSERT_LINES(&sockets[1], "resumed 5");
    ASSERT_LINES(&sockets[2], "sync 5");
    cr_assert_eq(sockets[1].subscriber.links->mode, DELIVERY_LIVE);
    cr_assert_eq(counted(COUNTER_RESUMES), 2u);
    cr_assert_eq(counted(COUNTER_SYNCS), 1u);
}

Test(resume, what_cannot_be_served_is_a_sync_that_says_so)
{
    write_events("g", "m", 3, 10);
    const struct cursor wrong[] = {
        {epoch, 4}, {epoch - 1, 2}, {epoch + 1, 0}, {0, 0}, {UINT64_MAX, UINT64_MAX}};
    for (unsigned i = 0; i < 5; i++)
        join_at(&sockets[i], "1", "g", NULL, &wrong[i]);
    settle();
    for (unsigned i = 0; i < 5; i++)
        ASSERT_LINES(&sockets[i], "sync 3 expired");
    cr_assert_eq(counted(COUNTER_RESUMES), 0u);
    cr_assert_eq(counted(COUNTER_RESUMES_EXPIRED), 5u);
    cr_assert_eq(counted(COUNTER_SYNCS_LAGGED), 0u);
    write_events("g", "m", 4000, 4000); /* over the ring's end */
    join_since(&sockets[10], 3);
    join_since(&sockets[11], 3990);
    settle();
    ASSERT_LINES(&sockets[10], "sync 4003 expired");
    cr_assert_str_eq(sockets[11].lines[0], "resumed 3990");
    cr_assert_str_eq(sockets[11].lines[13], "update 4003");
}

/* Its own seq 0 is where an empty group stands, and nobody has to have written. */
Test(resume, an_empty_group_is_gone_on_with)
{
    write_events("other", "m", 1, 10);
    join_at(&sockets[0], "1", "g", NULL, NULL);
    settle();
    const struct subscriber_link *link = sockets[0].subscriber.links;
    const struct cursor cursor = {link->epoch, link->sent_seq};
    join_at(&sockets[1], "1", "g", NULL, &cursor);
    settle();
    ASSERT_LINES(&sockets[1], "resumed 0");
    write_events("g", "m", 2, 10);
    join_at(&sockets[2], "1", "g", NULL, &cursor);
    settle();
    ASSERT_LINES(&sockets[2], "resumed 0", "create 1", "update 2");
}

Test(resume, an_item_gets_what_it_missed_of_its_own)
{
    write_events("g", "a", 2, 10);
    write_events("g", "b", 3, 10);
    write_events("g", "a", 1, 10);
    const struct cursor cursor = {epoch, 1};
    join_at(&sockets[0], "1", "g", "a", &cursor);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 1", "update 2", "update 6");
}

/* The first brings the link to the position, the others find it there; one that comes when it has
 * moved on has a sync, after which nothing is repeated for the first. */
Test(resume, subscriptions_of_a_socket_share_a_position_while_the_link_is_there)
{
    write_events("g", "a", 2, 10);
    write_events("g", "b", 2, 10);
    const struct cursor cursor = {epoch, 1};
    join_at(&sockets[0], "1", "g", "a", &cursor);
    join_at(&sockets[0], "2", "g", "b", &cursor);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 1", "resumed 1", "update 2", "create 3", "update 4");
    join_at(&sockets[0], "3", "g", NULL, &cursor);
    settle();
    const struct cursor now = {epoch, 4};
    join_at(&sockets[0], "4", "g", "c", &now);
    settle();
    cr_assert_eq(sockets[0].count, 7u);
    cr_assert_str_eq(sockets[0].lines[5], "sync 4 expired");
    cr_assert_str_eq(sockets[0].lines[6], "resumed 4");
}

/* The ring shows less than the store says until the writer has published: a position that nobody has
 * been shown yet is neither right nor wrong before that. */
Test(resume, a_position_waits_for_the_ring)
{
    write_events("g", "m", 2, 10);
    host.hold_ring = true;
    write_events("g", "m", 1, 10);
    join_since(&sockets[0], 3);
    settle();
    cr_assert_eq(sockets[0].count, 0u);
    host.hold_ring = false;
    ring_publish(host.ring);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 3");
}

/* A socket that has no room gets its greeting later, and nothing before it. */
Test(resume, a_full_socket_is_greeted_later)
{
    write_events("g", "m", 3, 10);
    sockets[0].is_full = true;
    join_since(&sockets[0], 1);
    settle();
    cr_assert_eq(counted(COUNTER_RESUMES), 0u);
    sockets[0].is_full = false;
    sockets[0].is_busy = true;
    (void)turn();
    (void)turn();
    ASSERT_LINES(&sockets[0], "resumed 1");
    write_events("g", "m", 1, 10);
    sockets[0].is_busy = false;
    subscriptions_unblock(&subscriptions, &sockets[0].subscriber);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 1", "update 2", "update 3", "update 4");
}

/* What the ring drops between the greeting and the events is said as well. */
Test(resume, a_greeting_may_be_followed_by_a_sync)
{
    write_events("g", "m", 3, 10);
    join_since(&sockets[0], 1);
    (void)turn();
    ASSERT_LINES(&sockets[0], "resumed 1");
    write_events("g", "m", 4000, 4000);
    settle();
    cr_assert_str_eq(sockets[0].lines[0], "resumed 1");
    cr_assert_str_eq(sockets[0].lines[1], "sync 4003 expired");
    cr_assert_eq(sockets[0].count, 2u);
    cr_assert_eq(counted(COUNTER_RESUMES_EXPIRED), 1u);
}

/* The ring leads to all of them, but not every mode is served that far: who is not is told at once, and
 * nobody is greeted first. Each joins an item nobody writes, so that it is told no more than that. */
Test(resume, a_position_further_back_than_its_mode_is_served_is_not_greeted)
{
    enum { NEWEST = CONFLATION_EVENTS_MAX + 10, LAG = 4 };
    static const struct {
        enum slow_policy policy;
        unsigned back;
        bool is_served;
    } cases[] = {
        {SLOW_LATEST, LAG, true},      {SLOW_LATEST, CONFLATION_EVENTS_MAX, true},
        {SLOW_DISCONNECT, LAG, true},  {SLOW_LATEST, CONFLATION_EVENTS_MAX + 1, false},
        {SLOW_LOSSLESS, NEWEST, true}, {SLOW_DISCONNECT, LAG + 1, false},
        {SLOW_DISCONNECT, 0, true},
    };
    enum { CASES = sizeof cases / sizeof cases[0] };
    write_events("g", "m", NEWEST, 3);
    for (unsigned i = 0; i < CASES; i++) {
        const struct cursor cursor = {epoch, NEWEST - cases[i].back};
        join_by(&sockets[i], "1", "g", "other", &cursor, cases[i].policy, LAG);
    }
    settle();
    for (unsigned i = 0; i < CASES; i++) {
        char line[LINE_BYTES];
        unsigned seq = cases[i].is_served ? NEWEST - cases[i].back : NEWEST;
        (void)snprintf(line, sizeof line, cases[i].is_served ? "resumed %u" : "sync %u expired",
                       seq);
        cr_assert_eq(sockets[i].count, 1u, "case %u", i);
        cr_assert_str_eq(sockets[i].lines[0], line, "case %u", i);
        cr_assert_eq(sockets[i].closed_code, 0u, "case %u", i);
    }
    cr_assert_eq(counted(COUNTER_RESUMES_EXPIRED), 2u);
}

/* Writers do not wait for those who are greeted: what comes between the greeting and the walk makes the
 * way longer than one conflation, and two are given. */
Test(resume, what_comes_after_a_greeting_does_not_undo_it)
{
    write_events("g", "m", CONFLATION_EVENTS_MAX, 3);
    (void)turn();
    const struct cursor cursor = {epoch, 0};
    join_by(&sockets[0], "1", "g", NULL, &cursor, SLOW_LATEST, 2);
    while (sockets[0].count == 0)
        (void)turn();
    write_events("g", "m", 3, 3);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 0", "create 16384", "update 16387");
    cr_assert_eq(counted(COUNTER_CONFLATIONS), 2u);
}

/* A restarted broker without the log: the epochs are others. */
Test(resume, a_position_that_waits_when_the_broker_changes_is_looked_at_anew)
{
    write_events("g", "m", 3, 10);
    joins_set_mapping(joins, NULL);
    catch_up_set_mapping(catch_up, NULL);
    join_since(&sockets[0], 1);
    settle();
    cr_assert_eq(sockets[0].count, 0u);
    subscriptions_restart(&subscriptions, mapping->hash_seed, "restarted");
    catch_up_set_mapping(catch_up, mapping);
    joins_set_mapping(joins, mapping);
    settle();
    ASSERT_LINES(&sockets[0], "resumed 1", "update 2", "update 3");
}

/* Those who come back at once are served in turns of a bounded size, and the ring is walked once for
 * many. */
Test(resume, a_storm_is_served_in_turns)
{
    write_events("g", "m", 40, 10);
    for (unsigned i = 0; i < SOCKETS_MAX; i++)
        join_since(&sockets[i], 40 - i % 20);
    unsigned turns = 0;
    do {
        uint64_t before = counted(COUNTER_RESUMES);
        (void)catch_up_run(catch_up);
        (void)joins_run(joins, 1);
        uint64_t served = counted(COUNTER_RESUMES) - before;
        cr_assert_gt(served, 0u);
        cr_assert_leq(served, (uint64_t)JOINS_TURN_RESUMES);
        turns++;
    } while (counted(COUNTER_RESUMES) < SOCKETS_MAX);
    cr_assert_eq(turns, (SOCKETS_MAX + JOINS_TURN_RESUMES - 1) / JOINS_TURN_RESUMES);
    settle();
    for (unsigned i = 0; i < SOCKETS_MAX; i++)
        cr_assert_eq(sockets[i].count, 1 + i % 20, "socket %u", i);
    cr_assert_eq(counted(COUNTER_SYNCS), 0u);
}

/* Every one in a group of its own, far back: the ring is walked for each, and only so much in a turn
 * that those who are live do not wait. */
Test(resume, walks_are_bounded_by_the_turn)
{
    enum { GROUPS = 60, BACK = 400 };
    for (unsigned i = 0; i < GROUPS; i++) {
        char group[16];
        (void)snprintf(group, sizeof group, "g%u", i);
        write_events(group, "m", BACK + 1, 3);
        const struct cursor cursor = {epoch, 1};
        join_at(&sockets[i], "1", group, "other", &cursor);
    }
    for (unsigned turns = 0; counted(COUNTER_RESUMES) < GROUPS; turns++) {
        uint64_t before = counted(COUNTER_RESUMES);
        cr_assert_lt(turns, 100);
        (void)turn();
        cr_assert_leq(counted(COUNTER_RESUMES) - before, CATCH_UP_TURN_RECORDS / BACK + 4);
    }
    settle();
    for (unsigned i = 0; i < GROUPS; i++)
        ASSERT_LINES(&sockets[i], "resumed 1");
}

static unsigned activated_first, activated_again;
static void on_activated(void *context, struct subscription *subscription, bool is_first)
{
    (void)context;
    (void)subscription;
    activated_first += is_first;
    activated_again += !is_first;
}
static void on_replaced(void *context, const struct subscription *old, struct subscription *made)
{
    (void)context;
    (void)old;
    (void)made;
}
static void on_ended(void *context, const struct subscription *subscription)
{
    (void)context;
    (void)subscription;
}

/* Presence counts who is there: one that goes on, and one whose position has expired, have come. */
Test(resume, whoever_goes_on_or_starts_over_has_begun)
{
    subscriptions.observer =
        (struct subscriptions_observer){on_activated, on_replaced, on_ended, &subscriptions};
    write_events("g", "m", 3, 10);
    join_since(&sockets[0], 2);
    join_since(&sockets[1], 9);
    settle();
    ASSERT_LINES(&sockets[1], "sync 3 expired");
    cr_assert_eq(activated_first, 2u);
    cr_assert_eq(activated_again, 0u);
}

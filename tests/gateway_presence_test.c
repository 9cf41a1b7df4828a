/* Leaves from a gateway to the broker: the gateway's subscriptions and its side of presence, the
 * broker's side, and between them a connection that breaks, and a broker and a gateway that die.
 * Each subscription that was active leaves exactly once while leaves are wanted (PROTOCOL 6.2,
 * 6.6, 8.5). */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "broker/presence.h"
#include "gateway/presence.h"

enum {
    SOCKETS = 6,
    IDS = 4,
    QUEUE_MAX = 4096,
    PAYLOAD_MAX = 512,
    CHAINS_MAX = 200000,
};

/* ---- the connection ---- */

struct message {
    enum wire_type type;
    uint64_t number;
    size_t stream_bytes, payload_bytes;
    char stream[64], payload[PAYLOAD_MAX];
};

static struct queue {
    struct message messages[QUEUE_MAX];
    unsigned first, count;
} to_broker, to_gateway;

static void queue_put(struct queue *queue, enum wire_type type, const struct wire_field *fields)
{
    cr_assert_lt(queue->count, QUEUE_MAX);
    struct message *at = &queue->messages[(queue->first + queue->count++) % QUEUE_MAX];
    *at = (struct message){.type = type, .number = fields[0].number};
    if (type != WIRE_PRESENCE_JOINED)
        return;
    at->stream_bytes = fields[1].span.bytes;
    at->payload_bytes = fields[2].span.bytes;
    cr_assert_leq(at->stream_bytes, sizeof at->stream);
    cr_assert_leq(at->payload_bytes, sizeof at->payload);
    memcpy(at->stream, fields[1].span.data, at->stream_bytes);
    memcpy(at->payload, fields[2].span.data, at->payload_bytes);
}

static bool queue_take(struct queue *queue, struct wire_message *message)
{
    if (queue->count == 0)
        return false;
    const struct message *at = &queue->messages[queue->first];
    queue->first = (queue->first + 1) % QUEUE_MAX;
    queue->count--;
    *message = (struct wire_message){.type = at->type, .fields = {WIRE_NUMBER(at->number)}};
    if (at->type == WIRE_PRESENCE_JOINED) {
        message->fields[1].span = span_of(at->stream, at->stream_bytes);
        message->fields[2].span = span_of(at->payload, at->payload_bytes);
    }
    return true;
}

/* ---- both sides ---- */

static struct world {
    struct subscriptions subscriptions;
    struct counters counters;
    struct local_presence *gateway;
    struct subscriber sockets[SOCKETS];
    size_t backlog_bytes;
    struct presence *broker; /* NULL: it is dead */
    struct broker_counters broker_counters;
    struct peer_handle peer;
    uint64_t generation;
    bool is_attached;
    char last_payload[PAYLOAD_MAX];
    unsigned leaves[CHAINS_MAX]; /* of subscription ids "c<index>" */
    unsigned leave_count;
} world;

static void on_post(void *context, enum wire_type type, const struct wire_field *fields)
{
    (void)context;
    cr_assert(world.is_attached, "said to nobody");
    queue_put(&to_broker, type, fields);
}

static size_t on_backlog(void *context)
{
    (void)context;
    return world.backlog_bytes;
}

static enum weir_status on_broker_send(void *context, struct peer_handle peer, enum wire_type type,
                                       uint64_t id, const struct wire_field *fields)
{
    (void)context;
    (void)id;
    if (!world.is_attached || !peer_handle_equal(peer, world.peer))
        return WEIR_CLOSED;
    queue_put(&to_gateway, type, fields);
    return WEIR_OK;
}

static bool on_broker_busy(void *context, struct peer_handle peer)
{
    (void)context;
    (void)peer;
    return false;
}

static void on_leave(void *context, struct span stream, struct span payload)
{
    static const char start[] = "{\"subscription_id\":\"c";
    (void)context;
    (void)stream;
    (void)snprintf(world.last_payload, sizeof world.last_payload, "%.*s", (int)payload.bytes,
                   payload.data);
    world.leave_count++;
    if (strncmp(world.last_payload, start, sizeof start - 1) == 0)
        world.leaves[strtoul(world.last_payload + sizeof start - 1, NULL, 10)]++;
}

static void start_broker(void)
{
    const struct broker_output output = {on_broker_send, on_broker_send, on_broker_busy, NULL,
                                         NULL};
    const struct presence_listener listener = {on_leave, NULL, NULL};
    cr_assert_eq(presence_open(&world.broker, &output, &world.broker_counters, 4711, NULL, NULL),
                 WEIR_OK);
    presence_listen(world.broker, &listener);
    world.generation++;
}

static void attach(void)
{
    world.peer = (struct peer_handle){3, world.peer.generation + 1};
    world.is_attached = true;
    presence_peer_attached(world.broker, world.peer);
    subscriptions_restart(&world.subscriptions, world.generation, "restarted");
    local_presence_attached(world.gateway, world.generation, 1000);
}

static void start_gateway(void)
{
    const struct local_presence_output output = {on_post, on_backlog, NULL};
    cr_assert_eq(subscriptions_init(&world.subscriptions, 100, false, &world.counters), WEIR_OK);
    world.gateway = local_presence_open(&world.subscriptions, &output, &world.counters);
    cr_assert_not_null(world.gateway);
    memset(world.sockets, 0, sizeof world.sockets);
}

static void stop_gateway(void)
{
    for (unsigned index = 0; index < SOCKETS; index++)
        subscriptions_remove_subscriber(&world.subscriptions, &world.sockets[index]);
    local_presence_close(world.gateway);
    subscriptions_fini(&world.subscriptions);
}

static void setup(void)
{
    memset(&world, 0, sizeof world);
    to_broker.count = to_gateway.count = 0;
    start_gateway();
    start_broker();
    attach();
}

static void teardown(void)
{
    world.is_attached = false;
    stop_gateway();
    presence_close(world.broker);
}

TestSuite(gateway_presence, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static void read_broker(unsigned messages_max)
{
    struct wire_message message;
    while (messages_max-- > 0 && queue_take(&to_broker, &message))
        cr_assert_eq(presence_take(world.broker, world.peer, &message), WEIR_OK);
}

static void read_gateway(unsigned messages_max)
{
    struct wire_message message;
    while (messages_max-- > 0 && queue_take(&to_gateway, &message))
        cr_assert(local_presence_take(world.gateway, &message));
}

static void settle(void)
{
    world.backlog_bytes = 0;
    for (unsigned turn = 0; turn < 1000; turn++) {
        read_gateway(QUEUE_MAX);
        bool has_more = local_presence_run(world.gateway);
        read_broker(QUEUE_MAX);
        has_more |= presence_run(world.broker, 1000);
        if (!has_more && to_broker.count == 0 && to_gateway.count == 0)
            return;
    }
    cr_assert_fail("it does not come to rest");
}

static void want(bool wanted)
{
    presence_set_wanted(world.broker, wanted);
}

/* The gateway reads what the broker has said; then the broker finds the connection closed. */
static void break_link(void)
{
    read_gateway(QUEUE_MAX);
    world.is_attached = false;
    read_broker(QUEUE_MAX);
    local_presence_lost(world.gateway);
    presence_peer_gone(world.broker, world.peer);
}

static void kill_broker(void)
{
    read_gateway(QUEUE_MAX);
    world.is_attached = false;
    local_presence_lost(world.gateway);
    to_broker.count = 0;
    presence_close(world.broker);
    world.broker = NULL;
}

static void join(unsigned socket, const char *id, const char *group, const char *item)
{
    const struct subscription_wish wish = {
        .subscription_id = span_text(id),
        .stream = SPAN_LITERAL("chat"),
        .group = span_text(group),
        .item = item ? span_text(item) : (struct span){0},
    };
    cr_assert_eq(subscriptions_add(&world.subscriptions, &world.sockets[socket], &wish), WEIR_OK);
}

static void activate_all(void)
{
    struct subscription *subscription;
    while ((subscription = subscriptions_pop_sync(&world.subscriptions)) != NULL)
        subscriptions_activate(&world.subscriptions, subscription, 1, 1);
}

static void leave(unsigned socket, const char *id)
{
    cr_assert(subscriptions_remove(&world.subscriptions, &world.sockets[socket], span_text(id)));
}

static void close_socket(unsigned socket)
{
    subscriptions_remove_subscriber(&world.subscriptions, &world.sockets[socket]);
}

/* ---- one thing at a time ---- */

Test(gateway_presence, nothing_is_said_while_nobody_wants_it)
{
    join(0, "c1", "g", NULL);
    activate_all();
    leave(0, "c1");
    join(0, "c2", "g", NULL);
    activate_all();
    cr_assert_not(local_presence_run(world.gateway));
    cr_assert_eq(to_broker.count, 0);
}

Test(gateway_presence, the_payload_says_what_was_left)
{
    want(true);
    settle();
    world.sockets[0].context = SPAN_LITERAL("{\"user\":\"u1\"}");
    join(0, "s\"1", "room\n1", "m\\9");
    activate_all();
    leave(0, "s\"1");
    settle();
    cr_assert_eq(world.leave_count, 1);
    cr_assert_str_eq(world.last_payload,
                     "{\"subscription_id\":\"s\\\"1\",\"stream_name\":\"chat\","
                     "\"group_id\":\"room\\n1\",\"id\":\"m\\\\9\",\"context\":{\"user\":\"u1\"}}");
    join(1, "c1", "g", NULL);
    activate_all();
    settle();
    close_socket(1);
    settle();
    cr_assert_eq(world.leave_count, 2);
    cr_assert_str_eq(world.last_payload, "{\"subscription_id\":\"c1\",\"stream_name\":\"chat\","
                                         "\"group_id\":\"g\",\"id\":null,\"context\":null}");
}

Test(gateway_presence, those_who_are_there_already_are_announced_in_pieces)
{
    enum { COUNT = 3 * LOCAL_PRESENCE_TURN_MAX };
    static struct subscriber many[COUNT];
    for (unsigned index = 0; index < COUNT; index++) {
        char group[16];
        (void)snprintf(group, sizeof group, "g%u", index % 700);
        const struct subscription_wish wish = {.subscription_id = SPAN_LITERAL("c1"),
                                               .stream = SPAN_LITERAL("chat"),
                                               .group = span_text(group)};
        cr_assert_eq(subscriptions_add(&world.subscriptions, &many[index], &wish), WEIR_OK);
    }
    activate_all();
    want(true);
    read_gateway(1);
    cr_assert(local_presence_run(world.gateway));
    cr_assert_eq(to_broker.count, LOCAL_PRESENCE_TURN_MAX);
    /* While the walk is under way some go, some come. */
    for (unsigned index = 0; index < COUNT; index += 3)
        subscriptions_remove_subscriber(&world.subscriptions, &many[index]);
    join(0, "c2", "new", NULL);
    activate_all();
    settle();
    cr_assert_eq(world.leaves[1], COUNT / 3);
    cr_assert_eq(presence_count(world.broker), COUNT - COUNT / 3 + 1);
    for (unsigned index = 0; index < COUNT; index++)
        subscriptions_remove_subscriber(&world.subscriptions, &many[index]);
    settle();
    cr_assert_eq(world.leaves[1], COUNT);
    cr_assert_eq(world.leaves[2], 0);
}

Test(gateway_presence, a_replaced_id_does_not_leave)
{
    want(true);
    settle();
    join(0, "c1", "old", NULL);
    activate_all();
    join(0, "c1", "new", NULL);
    activate_all();
    settle();
    cr_assert_eq(world.leave_count, 0);
    cr_assert_eq(presence_count(world.broker), 1);
    leave(0, "c1");
    settle();
    cr_assert_eq(world.leave_count, 1);
    cr_assert(strstr(world.last_payload, "\"new\""));
}

Test(gateway_presence, what_was_never_active_never_leaves)
{
    want(true);
    settle();
    join(0, "c1", "g", NULL);
    settle();
    leave(0, "c1");
    settle();
    cr_assert_eq(world.leave_count, 0);
    cr_assert_eq(presence_count(world.broker), 0);
}

Test(gateway_presence, a_fresh_sync_is_no_leave)
{
    want(true);
    settle();
    join(0, "c1", "g", NULL);
    activate_all();
    settle();
    subscriptions_resync(&world.subscriptions, world.sockets[0].links, "lagged");
    settle();
    cr_assert_eq(presence_count(world.broker), 1);
    leave(0, "c1"); /* before the sync */
    settle();
    cr_assert_eq(world.leave_count, 1);
}

/* What left while there was no broker, or had been told to one that died, is told to the next. */
Test(gateway_presence, leaves_survive_the_broker)
{
    want(true);
    settle();
    for (unsigned index = 0; index < 6; index++) {
        char id[16];
        (void)snprintf(id, sizeof id, "c%u", index);
        join(index, id, "g", NULL);
    }
    activate_all();
    settle();
    leave(0, "c0");
    (void)local_presence_run(world.gateway); /* said, not read */
    kill_broker();
    close_socket(1);
    start_broker();
    attach();
    leave(2, "c2");
    settle();
    cr_assert_eq(world.leave_count, 0, "nobody has asked this broker yet");
    want(true);
    settle();
    cr_assert_eq(world.leave_count, 3);
    cr_assert_eq(presence_count(world.broker), 3);
    leave(3, "c3"); /* its sync is still due */
    activate_all();
    settle();
    for (unsigned index = 0; index < 4; index++)
        cr_assert_eq(world.leaves[index], 1);
    break_link(); /* and after that a gateway's death */
    (void)presence_run(world.broker, 1000);
    cr_assert_eq(world.leaves[4] + world.leaves[5], 2);
    cr_assert_eq(world.leave_count, 6);
}

/* The broker took us for dead, and has fired everything: our return makes nobody leave twice. */
Test(gateway_presence, the_same_broker_again_fires_nothing_twice)
{
    want(true);
    settle();
    join(0, "c1", "g", NULL);
    join(1, "c2", "g", NULL);
    activate_all();
    settle();
    leave(1, "c2");
    (void)local_presence_run(world.gateway);
    break_link();
    (void)presence_run(world.broker, 1000);
    cr_assert_eq(world.leave_count, 2);
    attach();
    activate_all();
    settle();
    leave(0, "c1");
    settle();
    cr_assert_eq(world.leave_count, 2);
    join(0, "c1", "g", NULL);
    activate_all();
    leave(0, "c1");
    settle();
    cr_assert_eq(world.leave_count, 3, "a new one leaves");
}

Test(gateway_presence, a_broker_nobody_asks_is_not_waited_for)
{
    want(true);
    settle();
    join(0, "c1", "g", NULL);
    activate_all();
    settle();
    kill_broker();
    start_broker();
    leave(0, "c1");
    local_presence_tick(world.gateway, 10 * LOCAL_PRESENCE_WAIT_MS);
    attach();
    local_presence_tick(world.gateway, 1000 + LOCAL_PRESENCE_WAIT_MS);
    local_presence_tick(world.gateway, 1001 + LOCAL_PRESENCE_WAIT_MS);
    want(true);
    settle();
    cr_assert_eq(world.leave_count, 0, "too old to be news");
}

Test(gateway_presence, a_backlog_is_not_made_longer)
{
    want(true);
    settle();
    world.backlog_bytes = LOCAL_PRESENCE_BACKLOG_BYTES_MAX + 1;
    join(0, "c1", "g", NULL);
    join(1, "c2", "g", NULL);
    activate_all();
    leave(1, "c2");
    cr_assert_not(local_presence_run(world.gateway));
    cr_assert_eq(to_broker.count, 0);
    settle();
    cr_assert_eq(presence_count(world.broker), 1);
    cr_assert_eq(world.leaves[2], 1);
}

/* Leaves that cannot be kept are counted. */
Test(gateway_presence, what_is_owed_is_bounded)
{
    enum { CONTEXT = 1000 * 1000 };
    static char context[CONTEXT];
    memset(context, '1', sizeof context);
    want(true);
    settle();
    kill_broker();
    unsigned fit = LOCAL_PRESENCE_OWED_BYTES_MAX / (CONTEXT + 300);
    for (unsigned index = 0; index < fit + 3; index++) {
        world.sockets[0].context = span_of(context, sizeof context);
        join(0, "c1", "g", NULL);
        activate_all();
        leave(0, "c1");
    }
    cr_assert_eq(world.counters.values[COUNTER_LEAVES_LOST], 3);
    static char large[PRESENCE_PAYLOAD_BYTES_MAX];
    memset(large, '1', sizeof large);
    world.sockets[1].context = span_of(large, sizeof large);
    join(1, "c2", "g", NULL);
    activate_all();
    leave(1, "c2");
    cr_assert_eq(world.counters.values[COUNTER_LEAVES_LOST], 4);
    start_broker();
}

/* ---- everything at once ---- */

/* What is known of the id a socket uses: replacing continues a chain, joining anew starts one. */
static struct chain_model {
    bool is_there;
    bool has_begun; /* one of its subscriptions was active, since leaves are wanted */
    bool is_fired;  /* by a broker that lost the gateway */
    unsigned index;
} chains[SOCKETS][IDS];
static unsigned chain_count;
static unsigned expected[CHAINS_MAX];
static bool is_wanted;

static void chain_end(struct chain_model *chain)
{
    if (chain->is_there && is_wanted && chain->has_begun && !chain->is_fired)
        expected[chain->index]++;
    *chain = (struct chain_model){0};
}

static void chain_end_all(bool all_gone)
{
    for (unsigned socket = 0; socket < SOCKETS; socket++) {
        for (unsigned id = 0; id < IDS; id++) {
            struct chain_model *chain = &chains[socket][id];
            struct chain_model kept = *chain;
            chain_end(chain);
            if (all_gone || !kept.is_there)
                continue;
            *chain = kept;
            chain->is_fired |= is_wanted && kept.has_begun;
        }
    }
}

static void model_join(unsigned socket, unsigned id)
{
    struct chain_model *chain = &chains[socket][id];
    if (!chain->is_there) {
        cr_assert_lt(chain_count, CHAINS_MAX);
        *chain = (struct chain_model){.is_there = true, .index = chain_count++};
    } else if (!is_wanted || chain->is_fired) {
        chain->has_begun = chain->is_fired = false;
    }
    char name[16], group[16];
    (void)snprintf(name, sizeof name, "c%u", chain->index);
    (void)snprintf(group, sizeof group, "g%ld", random() % 5);
    join(socket, name, group, random() % 3 ? NULL : "i");
}

static void model_activate(unsigned count)
{
    struct subscription *subscription;
    while (count-- > 0 && (subscription = subscriptions_pop_sync(&world.subscriptions)) != NULL) {
        char name[16];
        struct span id = subscription_id(subscription);
        (void)snprintf(name, sizeof name, "%.*s", (int)id.bytes, id.data);
        unsigned index = (unsigned)strtoul(name + 1, NULL, 10);
        for (unsigned at = 0; at < SOCKETS * IDS; at++) {
            struct chain_model *chain = &chains[at / IDS][at % IDS];
            chain->has_begun |= chain->is_there && chain->index == index;
        }
        subscriptions_activate(&world.subscriptions, subscription, 1, 1);
    }
}

static void model_leave(unsigned socket, unsigned id)
{
    struct chain_model *chain = &chains[socket][id];
    char name[16];
    (void)snprintf(name, sizeof name, "c%u", chain->index);
    if (chain->is_there)
        leave(socket, name);
    chain_end(chain);
}

static void model_close(unsigned socket)
{
    close_socket(socket);
    for (unsigned id = 0; id < IDS; id++)
        chain_end(&chains[socket][id]);
}

static void model_replace_broker(void)
{
    kill_broker();
    for (unsigned count = (unsigned)random() % 8; count > 0; count--) {
        model_activate((unsigned)random() % 3);
        if (random() % 2)
            model_leave((unsigned)random() % SOCKETS, (unsigned)random() % IDS);
        else
            model_join((unsigned)random() % SOCKETS, (unsigned)random() % IDS);
    }
    start_broker();
    attach();
}

static void model_disturb(unsigned dice)
{
    if (dice < 4) {
        model_replace_broker();
    } else if (dice < 6 && world.is_attached) {
        want(is_wanted);
        settle();
        break_link();
        chain_end_all(false);
        while (presence_run(world.broker, 1000))
            ;
        if (random() % 2)
            model_leave((unsigned)random() % SOCKETS, (unsigned)random() % IDS);
        attach();
    } else if (dice < 8) {
        want(is_wanted);
        settle();
        is_wanted = !is_wanted;
        want(is_wanted);
        settle();
        for (unsigned at = 0; at < SOCKETS * IDS; at++)
            chains[at / IDS][at % IDS].is_fired &= chains[at / IDS][at % IDS].has_begun;
    } else if (dice < 10) { /* the gateway dies, and another comes */
        want(is_wanted);
        settle();
        world.is_attached = false;
        presence_peer_gone(world.broker, world.peer);
        while (presence_run(world.broker, 1000))
            ;
        chain_end_all(true);
        stop_gateway();
        start_gateway();
        attach();
        read_gateway(QUEUE_MAX); /* it knows what is wanted before anybody joins */
    } else {
        struct subscriber_link *link = world.sockets[random() % SOCKETS].links;
        if (link != NULL)
            subscriptions_resync(&world.subscriptions, link, "lagged");
    }
}

Test(gateway_presence, model)
{
    enum { STEPS = 200000 };
    struct timespec clock;
    (void)clock_gettime(CLOCK_REALTIME, &clock);
    const char *given = getenv("WEIR_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)clock.tv_nsec;
    (void)fprintf(stderr, "gateway presence model: seed %u\n", seed);
    srandom(seed);
    for (unsigned step = 0; step < STEPS; step++) {
        unsigned socket = (unsigned)random() % SOCKETS, id = (unsigned)random() % IDS;
        unsigned dice = (unsigned)random() % 1000;
        if (dice < 14)
            model_disturb(dice);
        else if (dice < 300)
            model_join(socket, id);
        else if (dice < 500)
            model_activate((unsigned)random() % 4);
        else if (dice < 600)
            model_leave(socket, id);
        else if (dice < 620)
            model_close(socket);
        else if (dice < 700)
            (void)local_presence_run(world.gateway);
        else if (dice < 780)
            read_broker((unsigned)random() % 5);
        else if (dice < 860)
            read_gateway((unsigned)random() % 5);
        else if (dice < 900)
            (void)presence_run(world.broker, 1000);
        else if (dice < 920)
            want(is_wanted); /* to a new broker: its triggers are there */
        else if (dice < 940)
            world.backlog_bytes = random() % 2 ? 0 : LOCAL_PRESENCE_BACKLOG_BYTES_MAX + 1;
        if (step % 1000 != 999)
            continue;
        want(is_wanted);
        settle();
        for (unsigned index = 0; index < chain_count; index++)
            cr_assert_eq(world.leaves[index], expected[index],
                         "seed %u step %u: c%u left %u times, not %u", seed, step, index,
                         world.leaves[index], expected[index]);
    }
    cr_assert_gt(world.leave_count, 1000);
    cr_assert_eq(world.counters.values[COUNTER_LEAVES_LOST], 0);
    cr_assert_eq(world.broker_counters.presence_refused, 0);
}

#include "tests/sim/world.h"

#include <inttypes.h>
#include <stdlib.h>

enum { REST_TURNS_MAX = 3000, SMALL_WINDOW_BYTES = 512, DRAIN_WINDOW_MAX_MS = 200 };

/* ---- what kind of a run the seed makes ---- */

static void world_choose_weights(struct world *world)
{
    static const uint32_t usual[SIM_ACTIONS] = {
        [SIM_DO_WRITE] = 120,
        [SIM_DO_BROKER_TURN] = 150,
        [SIM_DO_DISK] = 150,
        [SIM_DO_GATEWAY_TURN] = 200,
        [SIM_DO_SOCKET] = 200,
        [SIM_DO_READ] = 250,
        [SIM_DO_JOIN] = 20,
        [SIM_DO_LEAVE] = 6,
        [SIM_DO_CONNECT] = 20,
        [SIM_DO_DISCONNECT] = 3,
        [SIM_DO_STALL_SUBSCRIBER] = 3,
        [SIM_DO_STALL_GATEWAY] = 1,
        [SIM_DO_STALL_BROKER] = 1,
        [SIM_DO_DRAIN_GATEWAY] = 1,
        [SIM_DO_START] = 20,
        [SIM_DO_ATTACH] = 60,
    };
    /* The rare things, per 10,000 steps. */
    static const uint32_t rare_max[SIM_ACTIONS] = {
        [SIM_DO_KILL_GATEWAY] = 4,      [SIM_DO_KILL_BROKER] = 4,   [SIM_DO_KILL_HOST] = 2,
        [SIM_DO_STALL_SUBSCRIBER] = 10, [SIM_DO_STALL_GATEWAY] = 6, [SIM_DO_STALL_BROKER] = 4,
        [SIM_DO_DISCONNECT] = 10,       [SIM_DO_DRAIN_GATEWAY] = 8,
    };
    struct scheduler *scheduler = world->scheduler;
    for (unsigned i = 0; i < SIM_ACTIONS; i++) {
        uint32_t percent = sim_between(scheduler, 25, 250);
        world->weights[i] = usual[i] * percent / 100;
        if (sim_chance(scheduler, 60))
            world->weights[i] += sim_below(scheduler, rare_max[i] + 1);
    }
    if (sim_chance(scheduler, 15)) { /* a calm one */
        for (unsigned i = SIM_DO_LEAVE; i <= SIM_DO_KILL_HOST; i++)
            world->weights[i] = i == SIM_DO_CONNECT ? 50 : 0;
    }
}

static void world_open(struct world *world)
{
    static const enum sim_level levels[] = {SIM_LEVEL_NONE, SIM_LEVEL_BEHIND, SIM_LEVEL_WRITTEN,
                                            SIM_LEVEL_SYNCED};
    struct scheduler *scheduler = world->scheduler;
    enum sim_level level = levels[sim_below(scheduler, 4)];
    if (world->fault == SIM_FAULT_LIAR || world->fault == SIM_FAULT_EARLY)
        level = SIM_LEVEL_WRITTEN;
    history_init(&world->history, scheduler);
    sim_broker_init(&world->broker, scheduler, &world->history, level,
                    32768ull << sim_below(scheduler, 6),
                    sim_chance(scheduler, 50) ? 1 : HISTORY_GROUPS);
    world->broker.disk.failing_percent = sim_chance(scheduler, 20) ? 3 : 0;
    world->broker.disk.lies = false;
    world->pad_max = sim_chance(scheduler, 30) ? 3000 : 100;
    world->burst_max = sim_chance(scheduler, 30) ? 60 : 8;
    world->is_sparse = sim_chance(scheduler, 25);
    if (world->is_sparse)
        world->burst_max = 2;
    world->window_max = 1u << sim_between(scheduler, 9, 15);
    world->stingy_max = sim_chance(scheduler, 50) ? 60 : 5;
    world->resume_percent = sim_below(scheduler, 3) * 50;
    world->lag_max = sim_chance(scheduler, 50) ? 20 : 2000;
    world->stall_steps = sim_chance(scheduler, 30) ? 600 : 100;
    world_choose_weights(world);
    sim_broker_start(&world->broker);
    world->broker.disk.lies = world->fault == SIM_FAULT_LIAR;
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        world->gateways[i].index = i;
        sim_gateway_start(&world->gateways[i], scheduler, &world->history, &world->broker,
                          world->fault);
        sim_gateway_attach(&world->gateways[i]);
    }
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++)
        sim_subscriber_init(&world->subscribers[i], scheduler, &world->history, i);
}

static void world_close(struct world *world)
{
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++) {
        sim_subscriber_disconnect(&world->subscribers[i]);
        sim_subscriber_fini(&world->subscribers[i]);
    }
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        if (world->gateways[i].is_alive)
            sim_gateway_kill(&world->gateways[i]);
        for (unsigned k = 0; k < SIM_SOCKETS_MAX; k++) {
            buffer_fini(&world->gateways[i].sockets[k].bytes);
            free(world->gateways[i].sockets[k].sent);
        }
    }
    sim_broker_fini(&world->broker);
    history_fini(&world->history);
}

/* ---- single steps ---- */

/* The first group and the first items get most of it. */
static uint32_t skewed(struct scheduler *scheduler, uint32_t end)
{
    return sim_chance(scheduler, 50) ? sim_below(scheduler, 2) : sim_below(scheduler, end);
}

static void world_write(struct world *world)
{
    static const enum wire_op ops[] = {WIRE_OP_SET, WIRE_OP_UPDATE, WIRE_OP_DELETE, WIRE_OP_SEND,
                                       WIRE_OP_LIST};
    static const uint32_t usual[] = {50, 20, 25, 8, 3}, sparse[] = {15, 5, 45, 30, 3};
    struct scheduler *scheduler = world->scheduler;
    uint32_t count = sim_between(scheduler, 1, world->burst_max);
    for (uint32_t i = 0; i < count && sim_broker_is_ready(&world->broker); i++) {
        enum wire_op op = ops[sim_weighted(scheduler, world->is_sparse ? sparse : usual, 5)];
        unsigned group = world->is_sparse ? sim_below(scheduler, HISTORY_GROUPS)
                                          : skewed(scheduler, HISTORY_GROUPS);
        int item = (int)skewed(scheduler, HISTORY_ITEMS);
        if (op == WIRE_OP_LIST || (op == WIRE_OP_SEND && sim_chance(scheduler, 50)))
            item = HISTORY_NO_ITEM;
        sim_broker_ask(&world->broker, op, group, item, sim_below(scheduler, world->pad_max));
    }
}

static struct sim_subscriber *any_subscriber(struct world *world)
{
    return &world->subscribers[sim_below(world->scheduler, SIM_SUBSCRIBERS)];
}

static struct sim_gateway *any_gateway(struct world *world)
{
    return &world->gateways[sim_below(world->scheduler, SIM_GATEWAYS)];
}

static bool gateway_runs(const struct world *world, const struct sim_gateway *gateway)
{
    return gateway->is_alive &&
           world->scheduler->step >= world->gateway_stalled_until[gateway->index];
}

static void world_poll_socket(struct world *world, struct sim_gateway *gateway)
{
    if (!gateway_runs(world, gateway))
        return;
    uint32_t start = sim_below(world->scheduler, SIM_SOCKETS_MAX);
    for (unsigned i = 0; i < SIM_SOCKETS_MAX; i++) {
        struct sim_socket *socket = &gateway->sockets[(start + i) % SIM_SOCKETS_MAX];
        if (!socket->is_used || socket->gateway == NULL)
            continue;
        sim_gateway_poll(gateway, socket);
        return;
    }
}

static struct sim_wish world_wish(struct world *world)
{
    static const uint32_t policies[] = {
        [SLOW_LATEST] = 60, [SLOW_LOSSLESS] = 30, [SLOW_DISCONNECT] = 10};
    struct scheduler *scheduler = world->scheduler;
    struct sim_wish wish = {.policy = (enum slow_policy)sim_weighted(scheduler, policies, 3)};
    wish.lag_events = sim_between(scheduler, 1, world->lag_max);
    wish.brings_place = sim_chance(scheduler, world->resume_percent);
    return wish;
}

/* What a subscriber wants of its group: all, or an item. */
static int world_item(struct scheduler *scheduler)
{
    return sim_chance(scheduler, 60) ? HISTORY_NO_ITEM : (int)skewed(scheduler, HISTORY_ITEMS);
}

static void world_connect(struct world *world, struct sim_subscriber *subscriber)
{
    struct scheduler *scheduler = world->scheduler;
    struct sim_gateway *gateway = any_gateway(world);
    if (subscriber->socket != NULL || !gateway_runs(world, gateway) || gateway->is_draining ||
        sim_now_ms(scheduler) < subscriber->back_ms)
        return;
    const struct sim_wish wish = world_wish(world);
    if (subscriber->is_event_stream &&
        (subscriber->views[0].mode == VIEW_NONE || sim_chance(scheduler, 10)))
        sim_subscriber_open_path(subscriber, skewed(scheduler, HISTORY_GROUPS),
                                 world_item(scheduler));
    sim_subscriber_connect(subscriber, gateway,
                           sim_between(scheduler, SMALL_WINDOW_BYTES, world->window_max),
                           sim_below(scheduler, world->stingy_max), &wish);
}

static void world_join(struct world *world, struct sim_subscriber *subscriber)
{
    struct scheduler *scheduler = world->scheduler;
    unsigned view = sim_below(scheduler, SIM_VIEWS);
    unsigned group = skewed(scheduler, HISTORY_GROUPS);
    int item = world_item(scheduler);
    const struct sim_wish wish = world_wish(world);
    sim_subscriber_join(subscriber, view, group, item, &wish);
}

static void world_kill_broker(struct world *world, bool with_host)
{
    if (!world->broker.is_alive)
        return;
    world->figures.broker_deaths++;
    if (!with_host && sim_chance(world->scheduler, 25))
        sim_broker_stop(&world->broker);
    else
        sim_broker_kill(&world->broker, with_host);
    for (unsigned i = 0; i < SIM_GATEWAYS; i++)
        world->gateways[i].is_attached = false;
}

static void world_kill_gateway(struct world *world, struct sim_gateway *gateway)
{
    if (!gateway->is_alive)
        return;
    world->figures.gateway_deaths++;
    world->figures.laps += gateway->counters.values[COUNTER_FEED_LAPPED];
    sim_gateway_kill(gateway);
}

/* One after the other, as `weir drain` does it. */
static void world_drain(struct world *world, struct sim_gateway *gateway)
{
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        if (!world->gateways[i].is_alive || world->gateways[i].is_draining)
            return;
    }
    sim_gateway_drain(gateway, sim_between(world->scheduler, 1, DRAIN_WINDOW_MAX_MS));
}

static void world_turn_gateway(struct world *world, struct sim_gateway *gateway)
{
    sim_gateway_turn(gateway);
    if (!sim_gateway_has_drained(gateway))
        return;
    world->figures.laps += gateway->counters.values[COUNTER_FEED_LAPPED];
    sim_gateway_leave(gateway);
}

static void world_start(struct world *world)
{
    if (!world->broker.is_alive)
        sim_broker_start(&world->broker);
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        struct sim_gateway *gateway = &world->gateways[i];
        if (!gateway->is_alive)
            sim_gateway_start(gateway, world->scheduler, &world->history, &world->broker,
                              world->fault);
    }
}

static void world_attach(struct world *world, struct sim_gateway *gateway)
{
    if (gateway_runs(world, gateway) && sim_gateway_wants_broker(gateway))
        sim_gateway_attach(gateway);
}

static uint64_t world_stall_end(struct world *world)
{
    return world->scheduler->step + sim_below(world->scheduler, world->stall_steps);
}

static void world_act(struct world *world, enum sim_action action)
{
    struct scheduler *scheduler = world->scheduler;
    struct sim_subscriber *subscriber = any_subscriber(world);
    struct sim_gateway *gateway = any_gateway(world);
    bool broker_runs = world->broker.is_alive && scheduler->step >= world->broker_stalled_until;
    switch (action) {
    case SIM_DO_WRITE:
        if (broker_runs)
            world_write(world);
        return;
    case SIM_DO_BROKER_TURN:
        if (broker_runs)
            sim_broker_turn(&world->broker);
        return;
    case SIM_DO_DISK:
        if (broker_runs)
            (void)sim_broker_run_disk(&world->broker);
        return;
    case SIM_DO_GATEWAY_TURN:
        if (gateway_runs(world, gateway))
            world_turn_gateway(world, gateway);
        return;
    case SIM_DO_SOCKET:
        world_poll_socket(world, gateway);
        return;
    case SIM_DO_READ:
        if (scheduler->step >= subscriber->stalled_until)
            sim_subscriber_read(subscriber, sim_between(scheduler, 1, 2 * world->window_max));
        return;
    case SIM_DO_JOIN:
        world_join(world, subscriber);
        return;
    case SIM_DO_LEAVE:
        sim_subscriber_leave(subscriber, sim_below(scheduler, SIM_VIEWS));
        return;
    case SIM_DO_CONNECT:
        world_connect(world, subscriber);
        return;
    case SIM_DO_DISCONNECT:
        sim_subscriber_disconnect(subscriber);
        return;
    case SIM_DO_STALL_SUBSCRIBER:
        subscriber->stalled_until = world_stall_end(world);
        return;
    case SIM_DO_STALL_GATEWAY:
        world->gateway_stalled_until[gateway->index] = world_stall_end(world);
        return;
    case SIM_DO_STALL_BROKER:
        world->broker_stalled_until = world_stall_end(world);
        return;
    case SIM_DO_DRAIN_GATEWAY:
        world_drain(world, gateway);
        return;
    case SIM_DO_KILL_GATEWAY:
        world_kill_gateway(world, gateway);
        return;
    case SIM_DO_KILL_BROKER:
        world_kill_broker(world, false);
        return;
    case SIM_DO_KILL_HOST:
        world_kill_broker(world, true);
        for (unsigned i = 0; i < SIM_GATEWAYS; i++)
            world_kill_gateway(world, &world->gateways[i]);
        return;
    case SIM_DO_START:
        world_start(world);
        return;
    case SIM_DO_ATTACH:
        world_attach(world, gateway);
        return;
    case SIM_ACTIONS:
        return;
    }
}

/* ---- rest ---- */

static bool world_is_quiet(const struct world *world)
{
    if (!sim_broker_is_idle(&world->broker))
        return false;
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++) {
        if (world->subscribers[i].socket == NULL)
            return false;
    }
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        if (!world->gateways[i].is_alive || world->gateways[i].is_draining ||
            sim_gateway_wants_broker(&world->gateways[i]) ||
            !sim_gateway_is_idle(&world->gateways[i]))
            return false;
        for (unsigned k = 0; k < SIM_SOCKETS_MAX; k++) {
            const struct sim_socket *socket = &world->gateways[i].sockets[k];
            if (socket->is_used && (socket->bytes.bytes > 0 || socket->owes_writable ||
                                    socket->is_left || socket->gateway == NULL))
                return false;
        }
    }
    return true;
}

/* Everything that can happen without anybody's wish happens once. */
static void world_rest_turn(struct world *world)
{
    struct scheduler *scheduler = world->scheduler;
    scheduler->step++;
    scheduler->now_us += 1000;
    world_start(world);
    sim_broker_turn(&world->broker);
    while (sim_broker_run_disk(&world->broker)) {
    }
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        struct sim_gateway *gateway = &world->gateways[i];
        world_attach(world, gateway);
        world_turn_gateway(world, gateway);
        for (unsigned k = 0; k < SIM_SOCKETS_MAX; k++) {
            if (gateway->sockets[k].is_used && gateway->sockets[k].gateway != NULL)
                sim_gateway_poll(gateway, &gateway->sockets[k]);
        }
    }
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++) {
        sim_subscriber_read(&world->subscribers[i], SIZE_MAX);
        world_connect(world, &world->subscribers[i]);
    }
}

static void world_rest(struct world *world)
{
    world->broker_stalled_until = 0;
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        world->gateway_stalled_until[i] = 0;
        world->gateways[i].is_calm = true;
    }
    sim_note(world->scheduler, "world: rests", 0, 0, 0);
    unsigned turns = 0;
    do {
        world_rest_turn(world);
    } while (++turns < REST_TURNS_MAX && (turns < 3 || !world_is_quiet(world)));
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++)
        sim_subscriber_check_complete(&world->subscribers[i]);
    if (!world_is_quiet(world))
        sim_fail(world->scheduler, SIM_BOUNDED, "the world does not come to rest");
    for (unsigned i = 0; i < SIM_GATEWAYS; i++) {
        sim_gateway_check_counters(&world->gateways[i]);
        world->gateways[i].is_calm = false;
    }
    if (world->history.acknowledged < world->history.place_count &&
        world->history.places[world->history.place_count - 1].index >= 0 &&
        history_event(&world->history, world->history.places[world->history.place_count - 1].group,
                      world->history.places[world->history.place_count - 1].index)
                ->lost_in == 0)
        sim_fail(world->scheduler, SIM_REPLY, "a write was never answered");
}

static void world_sum_up(struct world *world)
{
    world->figures.writes = world->history.place_count;
    for (unsigned i = 0; i < SIM_SUBSCRIBERS; i++) {
        world->figures.events += world->subscribers[i].events;
        world->figures.syncs += world->subscribers[i].syncs;
        world->figures.losses += world->subscribers[i].losses;
        world->figures.resumes += world->subscribers[i].resumes;
        world->figures.conflated += world->subscribers[i].conflated;
        world->figures.sent_away += world->subscribers[i].sent_away;
    }
    for (unsigned i = 0; i < SIM_GATEWAYS; i++)
        world->figures.laps += world->gateways[i].counters.values[COUNTER_FEED_LAPPED];
}

void world_run(struct world *world, struct scheduler *scheduler, enum sim_fault fault,
               uint32_t steps)
{
    world->scheduler = scheduler;
    world->fault = fault;
    world_open(world);
    for (unsigned phase = 0; phase < SIM_PHASES; phase++) {
        for (uint32_t i = 0; i < steps / SIM_PHASES; i++) {
            scheduler->step++;
            scheduler->now_us += sim_below(scheduler, 1000);
            world_act(world, (enum sim_action)sim_weighted(scheduler, world->weights, SIM_ACTIONS));
        }
        world_rest(world);
    }
    world_sum_up(world);
    world_close(world);
}

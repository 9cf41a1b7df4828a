/* tests/sim/world.h -- one broker, two gateways, a dozen subscribers and their writers in one process, and a
 * scheduler that decides what happens next.
 *
 * A run has phases. In each the world is pushed about for some steps, every seed with weights of its
 * own: some are calm, some are storms. Then all processes live, all sockets are read, and everybody has to
 * have everything.
 */
#ifndef WEIR_TESTS_SIM_WORLD_H
#define WEIR_TESTS_SIM_WORLD_H

#include "tests/sim/subscriber.h"

enum { SIM_GATEWAYS = 2, SIM_SUBSCRIBERS = 12, SIM_PHASES = 3 };

#define SIM_ACTION_MAP(X)                                                                          \
    X(WRITE)                                                                                       \
    X(BROKER_TURN)                                                                                 \
    X(DISK)                                                                                        \
    X(GATEWAY_TURN)                                                                                \
    X(SOCKET)                                                                                      \
    X(READ)                                                                                        \
    X(JOIN)                                                                                        \
    X(LEAVE)                                                                                       \
    X(CONNECT)                                                                                     \
    X(DISCONNECT)                                                                                  \
    X(STALL_SUBSCRIBER)                                                                            \
    X(STALL_GATEWAY)                                                                               \
    X(STALL_BROKER)                                                                                \
    X(DRAIN_GATEWAY)                                                                               \
    X(KILL_GATEWAY)                                                                                \
    X(KILL_BROKER)                                                                                 \
    X(KILL_HOST)                                                                                   \
    X(START)                                                                                       \
    X(ATTACH)

enum sim_action {
#define SIM_ACTION_ENUM(name) SIM_DO_##name,
    SIM_ACTION_MAP(SIM_ACTION_ENUM)
#undef SIM_ACTION_ENUM
        SIM_ACTIONS
};

struct sim_figures {
    uint64_t writes, events, syncs, losses, resumes, conflated, laps, sent_away, gateway_deaths,
        broker_deaths;
};

struct world {
    struct scheduler *scheduler;
    struct history history;
    struct sim_broker broker;
    struct sim_gateway gateways[SIM_GATEWAYS];
    struct sim_subscriber subscribers[SIM_SUBSCRIBERS];
    uint64_t gateway_stalled_until[SIM_GATEWAYS], broker_stalled_until; /* steps */
    uint32_t weights[SIM_ACTIONS];
    uint32_t pad_max, burst_max, window_max, stingy_max, resume_percent, stall_steps, lag_max;
    bool is_sparse; /* groups are mostly empty: they are forgotten, and come anew */
    enum sim_fault fault;
    struct sim_figures figures;
};

/* Runs to its end, or leaves by sim_fail(). */
void world_run(struct world *world, struct scheduler *scheduler, enum sim_fault fault,
               uint32_t steps);

#endif

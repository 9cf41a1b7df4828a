/* tests/sim/broker.h -- the real engine, commits, log, snapshots and recovery, without sockets: one life
 * after the other on the same disk, and the writers who ask it.
 *
 * What is asked is applied to the history at once, when the engine has taken it; the answer is
 * compared with what it has to be when it comes. A request that a death leaves without an answer is
 * asked again of the next life, which has to know whether it was carried out.
 */
#ifndef WEIR_TESTS_SIM_BROKER_H
#define WEIR_TESTS_SIM_BROKER_H

#include "broker/durability.h"
#include "gateway/mapping.h"
#include "tests/sim/disk.h"
#include "tests/sim/history.h"

enum sim_level {
    SIM_LEVEL_NONE,   /* no directory: nothing is kept */
    SIM_LEVEL_BEHIND, /* memory, with a directory */
    SIM_LEVEL_WRITTEN,
    SIM_LEVEL_SYNCED,
};

struct sim_question {
    uint64_t id;
    unsigned group;
    int item;
    enum wire_op op;
    uint32_t value;      /* of a set or an update */
    uint32_t old_value;  /* what it replaces; 0: nothing */
    int32_t index;       /* in the group's history; HISTORY_NONE: it changes nothing */
    bool is_refused;     /* the answer is an error */
    bool may_be_refused; /* it would change nothing, so that nobody can see what became of it */
    struct history_state state; /* LIST: what it has to show */
};

enum { SIM_QUESTIONS_MAX = 4096 };

/* An answer as the engine gave it, from inside one of its calls: compared when the call is over. */
struct sim_reply {
    uint64_t id;
    size_t offset, bytes; /* in the broker's reply bytes */
    bool is_error;
};

struct sim_broker {
    struct scheduler *scheduler;
    struct history *history;
    struct sim_disk disk;
    struct settings settings;
    enum sim_level level;
    uint32_t life; /* counts from 1 */
    bool is_alive;
    bool may_have_lost; /* what it had answered, as far as its level says */
    bool may_renew;     /* it cannot know that it has not */

    struct segment segment;
    struct readers *readers;
    struct engine *engine;
    struct durability *durability;
    struct store_reader *view; /* the writer's own */
    struct broker_counters counters;
    uint64_t tick_ms;

    struct sim_question *questions; /* not answered yet, oldest first: a ring */
    uint32_t question_first, question_count;
    uint64_t next_id;
    struct sim_reply *replies; /* SIM_QUESTIONS_MAX */
    uint32_t reply_count;
    struct buffer reply_bytes;
    struct buffer text;
};

void sim_broker_init(struct sim_broker *broker, struct scheduler *scheduler,
                     struct history *history, enum sim_level level, uint64_t ring_bytes,
                     uint64_t empty_groups_max);
void sim_broker_fini(struct sim_broker *broker);
/* Recover what the disk has, compare it with the history, and serve. */
void sim_broker_start(struct sim_broker *broker);
/* `with_host`: the power is cut, and what was not synced is in doubt. */
void sim_broker_kill(struct sim_broker *broker, bool with_host);
/* SIGTERM: what is under way is finished. */
void sim_broker_stop(struct sim_broker *broker);
bool sim_broker_is_ready(const struct sim_broker *broker);
/* One request, applied and not yet answered. `pad_bytes` of a set's value. */
void sim_broker_ask(struct sim_broker *broker, enum wire_op op, unsigned group, int item,
                    uint32_t pad_bytes);
void sim_broker_turn(struct sim_broker *broker);
/* Let the disk do one thing. False: it has nothing to do. */
bool sim_broker_run_disk(struct sim_broker *broker);
/* Nothing waits for the log, and everybody is answered. */
bool sim_broker_is_idle(const struct sim_broker *broker);

/* What WIRE_ATTACHED tells a gateway that has read up to log frame `frame` (0: unknown). */
struct sim_attachment {
    struct mapping *mapping;
    uint32_t slot;
    bool is_kept;
    uint64_t position, commit;
};
struct sim_attachment sim_broker_attach(struct sim_broker *broker, uint64_t frame,
                                        uint64_t newest_ms);
void sim_broker_detach(struct sim_broker *broker, uint32_t slot);

#endif

/* broker/loop_engine.h -- between loop.c and the two engines; nobody else includes it.
 *
 * An engine gets each started operation once and hands it back once through loop_complete(), with
 * `result` set.
 */
#ifndef WEIR_BROKER_LOOP_ENGINE_H
#define WEIR_BROKER_LOOP_ENGINE_H

#include "broker/loop.h"

struct loop_engine {
    const char *name;
    /* `*state` is the engine's own. SYSTEM with sys_errno when the kernel refuses. */
    enum weir_status (*open)(void **state, struct weir_error *error);
    void (*close)(void *state);
    void (*start)(void *state, struct loop_operation *operation);
    enum weir_status (*wait)(void *state, struct loop *loop, int timeout_ms,
                             struct weir_error *error);
    /* Of an engine that takes LOOP_WRITE, else NULL: loop.h's functions of the same
     * names. */
    bool (*register_buffers)(void *state, const struct iovec *buffers, unsigned count);
    bool (*register_file)(void *state, int fd);
};

extern const struct loop_engine loop_engine_uring;
extern const struct loop_engine loop_engine_plain;

void loop_complete(struct loop *loop, struct loop_operation *operation, int32_t result);

#endif

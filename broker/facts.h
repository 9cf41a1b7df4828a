/* broker/facts.h -- what a worker says of itself in engine::workers::register (PROTOCOL 2.4, 2.15),
 * as it is shown: cleaned as PROTOCOL 2.7 says.
 *
 * Process and thread: any; no global state.
 * Memory:   one block per struct; spans point into it.
 */
#ifndef WEIR_BROKER_FACTS_H
#define WEIR_BROKER_FACTS_H

#include "shm/json.h"

struct facts {
    char *text; /* owned; NULL before anything was said */
    size_t bytes;
    /* data NULL: not said, or nothing is left of it. */
    struct span name, description, version, runtime, os, isolation;
    struct span space; /* never cleaned: it has to equal the functions' namespace */
    uint64_t pid;
    bool has_pid;
};

/* INVALID: `input` is no object. Unless OK, `facts` is as it was. */
enum weir_status facts_read(struct facts *facts, struct span input) WEIR_MUST_CHECK;
void facts_fini(struct facts *facts);

#endif

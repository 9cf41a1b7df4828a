/* broker/catalogue.h -- the builtin functions, which ids are reserved, and the answers of the
 * engine::*::list and ::info functions (PROTOCOL 2.7, 2.15).
 *
 *   catalogue.c            ids, names as they are shown, which function answers what
 *   catalogue_input.c      filters and other input
 *   catalogue_print.c      JSON text under construction
 *   catalogue_functions.c, catalogue_workers.c, catalogue_triggers.c    one noun each
 *
 * Process and thread: the broker's loop thread.
 * Memory:   an answer's entries point into their owners and live for the one call.
 */
#ifndef WEIR_BROKER_CATALOGUE_H
#define WEIR_BROKER_CATALOGUE_H

#include "shm/json.h"

enum catalogue_builtin {
    /* stream::* and engine::log::* too: engine and gateways answer those before routes are asked */
    CATALOGUE_NOT_BUILTIN = 0,
    CATALOGUE_WORKERS_REGISTER,
    CATALOGUE_FUNCTIONS_LIST,
    CATALOGUE_FUNCTIONS_INFO,
    CATALOGUE_WORKERS_LIST,
    CATALOGUE_WORKERS_INFO,
    CATALOGUE_TRIGGERS_LIST,
    CATALOGUE_TRIGGERS_INFO,
    CATALOGUE_REGISTERED_LIST,
    CATALOGUE_REGISTERED_INFO,
};

enum catalogue_builtin catalogue_builtin_find(struct span space, struct span id);
/* No worker may register it. `engine::queue::*` in the default namespace is a worker's to provide. */
bool catalogue_is_reserved(struct span space, struct span id);

struct routes;
struct registry;
struct catalogue_sources {
    const struct routes *routes;
    const struct registry *registry; /* NULL: none are shown but weir's own types */
};
struct catalogue_problem {
    const char *code;
    char sentence[192];
};

/* The answer of `builtin` (not of WORKERS_REGISTER) to `input` (JSON; empty for nothing); `out` is
 * empty. INVALID: `problem` (may be NULL) is the error. NO_MEMORY, FULL: the buffer's. */
enum weir_status catalogue_answer(const struct catalogue_sources *sources,
                                  enum catalogue_builtin builtin, struct span input,
                                  struct buffer *out,
                                  struct catalogue_problem *problem) WEIR_MUST_CHECK;

/* A name as it is shown: without control characters, bidirectional overrides and line separators,
 * at most 280 characters, trimmed. `out` holds text.bytes. Returns bytes written. */
size_t catalogue_clean(char *out, struct span text);

#endif

/* broker/catalogue.h -- the builtin functions, which ids are reserved, and the answer of
 * engine::functions::list (PROTOCOL 2.7, 2.15).
 *
 * Process and thread: the broker's loop thread.
 * Memory:   a catalogue lives for one listing; entries point into their owners until
 *           catalogue_close(). The input given to catalogue_open() is not kept.
 */
#ifndef WEIR_BROKER_CATALOGUE_H
#define WEIR_BROKER_CATALOGUE_H

#include "shm/json.h"

enum catalogue_builtin {
    CATALOGUE_NOT_BUILTIN = 0, /* stream::* too: the engine answers those before routes are asked */
    CATALOGUE_FUNCTIONS_LIST,
    CATALOGUE_WORKERS_REGISTER,
};

enum catalogue_builtin catalogue_builtin_find(struct span space, struct span id);
/* No worker may register it. `engine::queue::*` in the default namespace is a worker's to provide. */
bool catalogue_is_reserved(struct span space, struct span id);

struct catalogue_entry {
    struct span space;
    struct span id;
    struct span worker_name; /* empty: the part of the id before the first "::" */
    struct span description; /* data == NULL: none */
    struct span metadata;    /* JSON text, or data == NULL */
};

struct catalogue;

/* Reads the filters; builtin functions that pass are in from the start. INVALID: `*problem` says
 * what is wrong. */
enum weir_status catalogue_open(struct catalogue **catalogue, struct span input,
                                const char **problem) WEIR_MUST_CHECK;
/* Added only when it passes the filters. */
enum weir_status catalogue_add(struct catalogue *catalogue,
                               const struct catalogue_entry *entry) WEIR_MUST_CHECK;
/* Append {"functions":[...]}, sorted by id, then namespace. */
enum weir_status catalogue_print(struct catalogue *catalogue, struct buffer *out) WEIR_MUST_CHECK;
void catalogue_close(struct catalogue *catalogue); /* NULL is fine */

/* A name as it is shown: without control characters, bidirectional overrides and line separators,
 * at most 280 characters, trimmed. Malloc'd; NULL when nothing is left, `name` is no string, or
 * memory is short. */
char *catalogue_clean_name(struct json_value name);
/* The same on decoded text; `out` holds text.bytes. Returns bytes written. */
size_t catalogue_clean(char *out, struct span text);

#endif

/* broker/routes_inside.h -- sessions and functions as routes.c keeps them, for the registry of
 * triggers and the listings. They read; only routes.c writes, but for `triggers`.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   routes.c's; a session and its functions are gone when routes_take() has closed it.
 */
#ifndef WEIR_BROKER_ROUTES_INSIDE_H
#define WEIR_BROKER_ROUTES_INSIDE_H

#include "broker/facts.h"
#include "broker/routes.h"
#include "broker/table.h"

struct registration;
struct trigger_owner;
struct registry;

struct session {
    struct table_node node;        /* by (peer, number) */
    struct table_node worker_node; /* by worker_id */
    struct table_node name_node;   /* by name alone; in the table when facts.name is there */
    struct session *next_of_peer;
    struct session **link_of_peer;
    struct peer_handle peer;
    uint64_t number;
    char *worker_id;
    char *ip_address;
    uint64_t connected_at_ms; /* as this broker saw it */
    struct facts facts;
    struct trigger_owner *triggers; /* registry.c's; NULL: it has none */
    struct registration *registrations;
    uint32_t registration_count;
    uint32_t executing_count;
    uint32_t executing; /* pending calls it has to answer */
    uint32_t calling;   /* pending calls it waits for */
};

/* One session's wish to be the owner of a function. */
struct registration {
    struct session *session;
    struct function *function;
    struct registration *next_of_function;
    struct registration **link_of_function;
    struct registration *next_of_session;
    struct registration **link_of_session;
    char
        *details; /* description, request format, response format, metadata, one behind the other */
    struct span description, request_format, response_format,
        metadata; /* into details; data == NULL: none */
    size_t detail_bytes;
};

struct function {
    struct table_node node; /* by id alone: the namespaces of one id share a chain */
    struct registration
        *owner; /* head of the line; who was refused waits behind it, first come first served */
    struct registration **line_end;
    size_t space_bytes;
    size_t id_bytes;
    char names[]; /* namespace, then id */
};

static inline struct span function_space(const struct function *function)
{
    return span_of(function->names, function->space_bytes);
}

static inline struct span function_id(const struct function *function)
{
    return span_of(function->names + function->space_bytes, function->id_bytes);
}

static inline struct span space_or_default(struct span space)
{
    return space.bytes > 0 ? space : SPAN_LITERAL("default");
}

static inline struct span session_space(const struct session *session)
{
    return space_or_default(session->facts.space);
}

/* NULL: no such session. */
struct session *routes_session(const struct routes *routes, struct peer_handle peer,
                               uint64_t number);
/* The session that has the name longest; NULL: none. */
const struct session *routes_session_named(const struct routes *routes, struct span space,
                                           struct span name);
const struct function *routes_function(const struct routes *routes, struct span space,
                                       struct span id);
const struct table *routes_sessions(const struct routes *routes);  /* of session.node */
const struct table *routes_functions(const struct routes *routes); /* of function.node */
/* When the first turn was, Unix time in ms. */
uint64_t routes_opened_at(const struct routes *routes);
/* Two sets of (namespace, id) that differ have, but for once in 2^64 times, different sums. */
uint64_t routes_function_sum(const struct routes *routes);

/* What happens to sessions. The callee may not call back into routes but to read and to cancel
 * calls. */
struct routes_session_observer {
    void (*opened)(void *context, struct session *session);
    /* It has said who it is; the namespace may be another now. */
    void (*described)(void *context, struct session *session);
    /* Its functions and calls are gone; it is still found. Not called from inside
     * routes_close(). */
    void (*gone)(void *context, struct session *session);
    void *context;
};
void routes_observe_sessions(struct routes *routes, const struct routes_session_observer *observer);

/* What the listings show beside functions and workers; NULL: nothing. */
void routes_use_registry(struct routes *routes, const struct registry *registry);

#endif

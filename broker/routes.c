#include "broker/routes.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/bounds.h"
#include "broker/catalogue.h"
#include "broker/engine.h"
#include "broker/routes_inside.h"
#include "shm/error_body.h"
#include "shm/hash.h"
#include "shm/json.h"
#include "shm/store.h"

enum {
    WORKER_ID_BYTES_MAX = 128,
    IP_ADDRESS_BYTES_MAX = 64,
    ERROR_NAME_BYTES_MAX = 160, /* of a name quoted in an error */
    ERROR_NAMESPACES_MAX = 8,   /* other namespaces named in an error */
    SLOT_BITS = 24,
    OWN_CHAINS = 4096, /* a power of two */
};
static_assert(CALLS_PENDING_MAX < 1 << SLOT_BITS, "a pending call's slot fits its id");

#define NO_SLOT UINT32_MAX
/* In ids of calls nobody waits for; never a pending call's, whose generation stays far below. */
#define VOID_ID_BIT WIRE_VOID_ID_BIT

struct pending {
    uint64_t generation; /* counts uses of the slot, from 1 */
    struct peer_handle caller;
    struct peer_handle executor;
    uint64_t caller_id;
    struct session *executor_session;
    struct session *caller_session; /* NULL: the gateway itself asked */
    uint32_t executor_next, executor_previous;
    uint32_t caller_next, caller_previous;
    uint32_t next_free;
    bool used;
    bool is_eviction; /* of the executor's session: answered with SESSION_REATTACHED */
    bool is_gateways; /* a gateway made it itself, and may cancel it: in the table `gateways` */
    struct table_node node; /* by (caller, caller_id) */
    /* A call of the broker's own: nobody outside waits, `caller` is no peer. */
    routes_own_done *own_done; /* NULL: another's */
    void *own_context;
    uint64_t own_token;
    uint64_t own_deadline_ms;
    uint32_t own_next, own_previous;   /* of all own calls */
    uint32_t mate_next, mate_previous; /* of those whose context falls into one chain */
};

struct routes {
    struct broker_output output;
    struct broker_counters *counters;
    struct routes_limits limits;
    uint64_t hash_seed;
    struct table sessions;
    struct table workers; /* the same sessions by worker id */
    struct table names;   /* those that have said one, by name */
    struct table functions;
    struct table gateways; /* pending calls gateways have made themselves */
    struct session *peer_sessions[PEERS_MAX];
    struct pending *pending;
    uint32_t free_pending;
    uint32_t pending_count;
    uint32_t own_first, own_last;    /* own calls, oldest first; NO_SLOT ends */
    uint32_t own_cursor;             /* where routes_tick() goes on */
    uint32_t own_chains[OWN_CHAINS]; /* the same by context */
    struct routes_observer observer;
    struct routes_session_observer session_observer;
    const struct registry *registry; /* for the listings; NULL: none */
    uint64_t opened_at_ms;
    uint64_t now_ms;
    uint64_t function_sum;
    uint64_t void_id;
    uint64_t detail_bytes;
    struct buffer error; /* one error body */
    struct buffer answer;
};

const struct routes_limits routes_limits_default = {
    .sessions_max = SESSIONS_MAX,
    .session_functions_max = SESSION_FUNCTIONS_MAX,
    .pending_max = CALLS_PENDING_MAX,
    .pending_per_executor_max = CALLS_PENDING_PER_EXECUTOR_MAX,
    .detail_bytes_max = ROUTES_DETAIL_BYTES_MAX,
};

/* ---- open and close ---- */

enum weir_status routes_open(struct routes **routes, const struct broker_output *output,
                             struct broker_counters *counters, uint64_t hash_seed,
                             const struct routes_limits *limits, struct weir_error *error)
{
    struct routes *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for routes");
    opened->output = *output;
    opened->counters = counters;
    opened->limits = limits ? *limits : routes_limits_default;
    opened->hash_seed = hash_seed;
    opened->own_first = NO_SLOT;
    opened->own_last = NO_SLOT;
    opened->own_cursor = NO_SLOT;
    memset(opened->own_chains, 0xFF, sizeof opened->own_chains); /* NO_SLOT */
    buffer_init(&opened->error, 1024 * 1024);
    buffer_init(&opened->answer, ANSWER_BYTES_MAX);
    /* Untouched pages cost nothing: the table is as large as its bound from the start. */
    opened->pending = calloc(opened->limits.pending_max, sizeof *opened->pending);
    if (!opened->pending || table_init(&opened->sessions) != WEIR_OK ||
        table_init(&opened->workers) != WEIR_OK || table_init(&opened->names) != WEIR_OK ||
        table_init(&opened->functions) != WEIR_OK || table_init(&opened->gateways) != WEIR_OK) {
        routes_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for routes");
    }
    opened->free_pending = 0;
    *routes = opened;
    return WEIR_OK;
}

static void session_close(struct routes *routes, struct session *session);
static void pending_free(struct routes *routes, uint32_t slot);

void routes_close(struct routes *routes)
{
    if (!routes)
        return;
    routes->observer = (struct routes_observer){0};
    routes->session_observer = (struct routes_session_observer){0};
    while (routes->pending && routes->own_first != NO_SLOT) /* whoever asked may be gone already */
        pending_free(routes, routes->own_first);
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        while (routes->peer_sessions[slot])
            session_close(routes, routes->peer_sessions[slot]);
    table_fini(&routes->sessions);
    table_fini(&routes->workers);
    table_fini(&routes->names);
    table_fini(&routes->functions);
    table_fini(&routes->gateways);
    buffer_fini(&routes->error);
    buffer_fini(&routes->answer);
    free(routes->pending);
    free(routes);
}

void routes_observe(struct routes *routes, const struct routes_observer *observer)
{
    routes->observer = *observer;
}

void routes_observe_sessions(struct routes *routes, const struct routes_session_observer *observer)
{
    routes->session_observer = *observer;
}

void routes_use_registry(struct routes *routes, const struct registry *registry)
{
    routes->registry = registry;
}

void routes_set_time(struct routes *routes, uint64_t now_ms)
{
    if (routes->opened_at_ms == 0)
        routes->opened_at_ms = now_ms;
    routes->now_ms = now_ms;
}

void routes_figures(const struct routes *routes, struct routes_figures *figures)
{
    *figures = (struct routes_figures){
        .sessions = routes->sessions.count,
        .functions = routes->functions.count,
        .calls_pending = routes->pending_count,
        .detail_bytes = routes->detail_bytes,
    };
}

/* ---- answers ---- */

static void routes_send(struct routes *routes, struct peer_handle peer, enum wire_type type,
                        uint64_t id, const struct wire_field *fields)
{
    if (routes->output.send(routes->output.context, peer, type, id, fields) != WEIR_OK)
        routes->counters->replies_lost++;
}

static void routes_answer_error(struct routes *routes, struct peer_handle peer, uint64_t id,
                                const char *code, struct span message)
{
    routes->counters->call_errors++;
    if (id == 0)
        return;
    buffer_clear(&routes->error);
    struct span body = SPAN_LITERAL("{\"code\":\"invocation_error\",\"message\":\"no memory\"}");
    if (error_body_append(&routes->error, span_text(code), message) == WEIR_OK)
        body = buffer_span(&routes->error);
    const struct wire_field fields[] = {WIRE_NIL, WIRE_SPAN(body), WIRE_NIL, WIRE_NIL};
    routes_send(routes, peer, WIRE_RESULT, id, fields);
}

static void routes_answer_result(struct routes *routes, struct peer_handle peer, uint64_t id,
                                 struct span result)
{
    if (id == 0)
        return;
    const struct wire_field fields[] = {WIRE_SPAN(result), WIRE_NIL, WIRE_NIL, WIRE_NIL};
    routes_send(routes, peer, WIRE_RESULT, id, fields);
}

static void routes_answer_reattach(struct routes *routes, struct peer_handle peer, uint64_t id,
                                   bool is_retired)
{
    const struct wire_field fields[] = {WIRE_NUMBER(is_retired)};
    routes_send(routes, peer, WIRE_SESSION_REATTACHED, id, fields);
}

/* ---- sessions ---- */

static struct session *session_find(const struct routes *routes, struct peer_handle peer,
                                    uint64_t number)
{
    struct table_node *node = table_first(&routes->sessions, peer_handle_hash(peer, number));
    for (; node; node = table_next(node)) {
        struct session *session = TABLE_OWNER(node, struct session, node);
        if (session->number == number && peer_handle_equal(session->peer, peer))
            return session;
    }
    return NULL;
}

static uint64_t worker_hash(const struct routes *routes, struct span worker_id)
{
    return store_item_hash(routes->hash_seed, worker_id);
}

/* The session with this worker id, on whichever peer. */
static struct session *session_find_worker(const struct routes *routes, struct span worker_id)
{
    if (worker_id.bytes == 0)
        return NULL;
    struct table_node *node = table_first(&routes->workers, worker_hash(routes, worker_id));
    for (; node; node = table_next(node)) {
        struct session *session = TABLE_OWNER(node, struct session, worker_node);
        if (span_equal(span_text(session->worker_id), worker_id))
            return session;
    }
    return NULL;
}

static char *copy_text(struct span text)
{
    char *copy = malloc(text.bytes + 1);
    if (!copy)
        return NULL;
    if (text.bytes > 0)
        memcpy(copy, text.data, text.bytes);
    copy[text.bytes] = 0;
    return copy;
}

static enum weir_status session_open(struct routes *routes, struct peer_handle peer,
                                     const struct wire_message *message)
{
    uint64_t number = message->fields[0].number;
    struct span worker_id = message->fields[1].span;
    if (worker_id.bytes == 0 || worker_id.bytes > WORKER_ID_BYTES_MAX || !json_is_utf8(worker_id))
        return WEIR_INVALID;
    struct session *earlier = session_find(routes, peer, number);
    if (earlier)
        session_close(routes, earlier);
    if (routes->sessions.count >= routes->limits.sessions_max)
        return WEIR_OK; /* its registrations are refused; its calls are the gateway's own */

    struct session *session = calloc(1, sizeof *session);
    char *copy = session ? copy_text(worker_id) : NULL;
    if (!copy) {
        free(session);
        return WEIR_OK;
    }
    struct span ip_address = message->fields[2].span;
    session->peer = peer;
    session->number = number;
    session->worker_id = copy;
    if (ip_address.bytes > 0 && ip_address.bytes <= IP_ADDRESS_BYTES_MAX &&
        json_is_utf8(ip_address))
        session->ip_address = copy_text(ip_address);
    session->connected_at_ms = routes->now_ms;
    session->executing = NO_SLOT;
    session->calling = NO_SLOT;
    session->link_of_peer = &routes->peer_sessions[peer.slot];
    session->next_of_peer = *session->link_of_peer;
    if (session->next_of_peer)
        session->next_of_peer->link_of_peer = &session->next_of_peer;
    *session->link_of_peer = session;
    table_insert(&routes->sessions, &session->node, peer_handle_hash(peer, number));
    table_insert(&routes->workers, &session->worker_node,
                 worker_hash(routes, span_text(session->worker_id)));
    if (routes->session_observer.opened)
        routes->session_observer.opened(routes->session_observer.context, session);
    return WEIR_OK;
}

/* ---- what a session says of itself ---- */

static uint64_t name_hash(const struct routes *routes, struct span name)
{
    return hash_bytes(routes->hash_seed, name);
}

const struct session *routes_session_named(const struct routes *routes, struct span space,
                                           struct span name)
{
    const struct session *first = NULL;
    struct table_node *node = table_first(&routes->names, name_hash(routes, name));
    for (; node; node = table_next(node)) {
        const struct session *session = TABLE_OWNER(node, struct session, name_node);
        if (!span_equal(session->facts.name, name) || !span_equal(session_space(session), space))
            continue;
        if (!first || session->connected_at_ms < first->connected_at_ms)
            first = session;
    }
    return first;
}

static void session_forget_facts(struct routes *routes, struct session *session)
{
    if (session->facts.name.data)
        table_remove(&routes->names, &session->name_node);
    routes->detail_bytes -= session->facts.bytes;
    facts_fini(&session->facts);
}

/* True: another session has the name, and only one may (PROTOCOL 2.7); the gateway closes this
 * one. */
static bool session_reject_name(struct routes *routes, const struct session *session,
                                const struct facts *facts)
{
    struct span space = space_or_default(facts->space);
    if (!routes->limits.unique_worker_names || !facts->name.data)
        return false;
    const struct session *owner = routes_session_named(routes, space, facts->name);
    if (!owner || owner == session)
        return false;
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->number), WIRE_SPAN(SPAN_LITERAL(ROUTES_CODE_NAME_CONFLICT)),
        WIRE_SPAN(space), WIRE_SPAN(facts->name), WIRE_SPAN(span_text(owner->worker_id))};
    routes->counters->registrations_refused++;
    routes_send(routes, session->peer, WIRE_SESSION_REJECTED, 0, fields);
    return true;
}

/* False: the name is another's. */
static bool session_set_info(struct routes *routes, struct session *session, struct span info)
{
    struct facts facts = {0};
    if (info.bytes == 0 || info.bytes > SESSION_INFO_BYTES_MAX ||
        routes->detail_bytes - session->facts.bytes + info.bytes >
            routes->limits.detail_bytes_max ||
        facts_read(&facts, info) != WEIR_OK)
        return true;
    if (session_reject_name(routes, session, &facts)) {
        facts_fini(&facts);
        return false;
    }
    session_forget_facts(routes, session);
    session->facts = facts;
    routes->detail_bytes += facts.bytes;
    if (facts.name.data)
        table_insert(&routes->names, &session->name_node, name_hash(routes, facts.name));
    if (routes->session_observer.described)
        routes->session_observer.described(routes->session_observer.context, session);
    return true;
}

/* ---- functions ---- */

static uint64_t function_hash(const struct routes *routes, struct span id)
{
    return store_item_hash(routes->hash_seed, id);
}

/* A share of routes_function_sum(). */
static uint64_t function_sum(const struct routes *routes, const struct function *function)
{
    return hash_pair(function->node.hash, hash_bytes(~routes->hash_seed, function_space(function)));
}

static struct function *function_find(const struct routes *routes, struct span space,
                                      struct span id)
{
    struct table_node *node = table_first(&routes->functions, function_hash(routes, id));
    for (; node; node = table_next(node)) {
        struct function *function = TABLE_OWNER(node, struct function, node);
        if (span_equal(function_id(function), id) && span_equal(function_space(function), space))
            return function;
    }
    return NULL;
}

static struct function *function_make(struct routes *routes, struct span space, struct span id)
{
    struct function *function = calloc(1, sizeof *function + space.bytes + id.bytes);
    if (!function)
        return NULL;
    function->line_end = &function->owner;
    function->space_bytes = space.bytes;
    function->id_bytes = id.bytes;
    memcpy(function->names, space.data, space.bytes);
    memcpy(function->names + space.bytes, id.data, id.bytes);
    table_insert(&routes->functions, &function->node, function_hash(routes, id));
    routes->function_sum += function_sum(routes, function);
    return function;
}

static bool registration_set_details(struct routes *routes, struct registration *registration,
                                     const struct wire_field *parts)
{
    size_t bytes =
        parts[0].span.bytes + parts[1].span.bytes + parts[2].span.bytes + parts[3].span.bytes;
    uint64_t others = routes->detail_bytes - registration->detail_bytes;
    if (bytes > FUNCTION_DETAIL_BYTES_MAX || others + bytes > routes->limits.detail_bytes_max)
        return false;
    char *details = malloc(bytes + 1);
    if (!details)
        return false;
    free(registration->details);
    registration->details = details;
    registration->detail_bytes = bytes;
    routes->detail_bytes = others + bytes;
    registration->description = span_put(&details, parts[0].span);
    registration->request_format = span_put(&details, parts[1].span);
    registration->response_format = span_put(&details, parts[2].span);
    registration->metadata = span_put(&details, parts[3].span);
    return true;
}

static void registration_link(struct registration *registration, struct session *session,
                              struct function *function)
{
    registration->function = function;
    registration->link_of_function = function->line_end;
    *function->line_end = registration;
    function->line_end = &registration->next_of_function;
    registration->session = session;
    registration->link_of_session = &session->registrations;
    registration->next_of_session = session->registrations;
    if (session->registrations)
        session->registrations->link_of_session = &registration->next_of_session;
    session->registrations = registration;
    session->registration_count++;
}

static void registration_remove(struct routes *routes, struct registration *registration)
{
    struct function *function = registration->function;
    *registration->link_of_function = registration->next_of_function;
    if (registration->next_of_function)
        registration->next_of_function->link_of_function = registration->link_of_function;
    else
        function->line_end = registration->link_of_function;
    *registration->link_of_session = registration->next_of_session;
    if (registration->next_of_session)
        registration->next_of_session->link_of_session = registration->link_of_session;
    registration->session->registration_count--;
    routes->detail_bytes -= registration->detail_bytes;
    free(registration->details);
    free(registration);
    if (function->owner) /* who has waited longest is the owner now */
        return;
    if (routes->observer.function_changed)
        routes->observer.function_changed(routes->observer.context, function_space(function),
                                          function_id(function), false);
    routes->function_sum -= function_sum(routes, function);
    table_remove(&routes->functions, &function->node);
    free(function);
}

static struct registration *registration_find(const struct function *function,
                                              const struct session *session)
{
    /* Many workers may stand in line for one function, and one worker may have many: whichever list
     * is shorter ends this. */
    struct registration *in_line = function->owner;
    struct registration *of_session = session->registrations;
    while (in_line && of_session) {
        if (in_line->session == session)
            return in_line;
        if (of_session->function == function)
            return of_session;
        in_line = in_line->next_of_function;
        of_session = of_session->next_of_session;
    }
    return NULL;
}

static void routes_reject(struct routes *routes, struct peer_handle peer, uint64_t number,
                          const char *code, struct span space, struct span id, struct span owner)
{
    const struct wire_field fields[] = {WIRE_NUMBER(number), WIRE_SPAN(span_text(code)),
                                        WIRE_SPAN(space), WIRE_SPAN(id), WIRE_SPAN(owner)};
    routes->counters->registrations_refused++;
    routes_send(routes, peer, WIRE_FUNCTION_REJECTED, 0, fields);
}

static bool name_is_acceptable(struct span name)
{
    return name.bytes > 0 && name.bytes <= NAME_BYTES_MAX && json_is_utf8(name);
}

/* Put `session` into the line for a function, making it if it is new; or why not. */
static const char *function_add(struct routes *routes, struct session *session,
                                struct function *function, struct span space, struct span id,
                                const struct wire_field *details)
{
    if (session->registration_count >= routes->limits.session_functions_max)
        return ROUTES_CODE_LIMIT;
    struct registration *registration = calloc(1, sizeof *registration);
    if (!registration || !registration_set_details(routes, registration, details)) {
        free(registration);
        return ROUTES_CODE_LIMIT;
    }
    bool is_new = !function;
    if (is_new)
        function = function_make(routes, space, id);
    if (!function) {
        routes->detail_bytes -= registration->detail_bytes;
        free(registration->details);
        free(registration);
        return ROUTES_CODE_LIMIT;
    }
    registration_link(registration, session, function);
    if (is_new && routes->observer.function_changed)
        routes->observer.function_changed(routes->observer.context, space, id, true);
    return NULL;
}

static void function_register(struct routes *routes, struct peer_handle peer,
                              const struct wire_message *message)
{
    uint64_t number = message->fields[0].number;
    struct session *session = session_find(routes, peer, number);
    struct span space = space_or_default(message->fields[1].span);
    struct span id = message->fields[2].span;
    struct span owner = SPAN_LITERAL("");
    struct function *function = NULL;
    const char *refusal = NULL;

    if (!name_is_acceptable(space) || !name_is_acceptable(id))
        refusal = ROUTES_CODE_INVALID;
    else if (!session) /* beyond sessions_max, or closed meanwhile: then nobody minds the answer */
        refusal = ROUTES_CODE_LIMIT;
    else if (catalogue_is_reserved(space, id))
        refusal = ROUTES_CODE_CONFLICT;
    else
        function = function_find(routes, space, id);

    struct registration *own = function ? registration_find(function, session) : NULL;
    if (!refusal && own && !registration_set_details(routes, own, &message->fields[3]))
        refusal = ROUTES_CODE_LIMIT;
    else if (!refusal && !own)
        refusal = function_add(routes, session, function, space, id, &message->fields[3]);
    if (!refusal && function && function->owner->session != session) {
        refusal =
            ROUTES_CODE_CONFLICT; /* told so, and kept as the owner's stand-in (PROTOCOL 2.7) */
        owner = span_text(function->owner->session->worker_id);
    }
    if (refusal)
        routes_reject(routes, peer, number, refusal, space, id, owner);
}

static void function_unregister(struct routes *routes, struct peer_handle peer,
                                const struct wire_message *message)
{
    struct session *session = session_find(routes, peer, message->fields[0].number);
    struct span space = space_or_default(message->fields[1].span);
    struct function *function = function_find(routes, space, message->fields[2].span);
    struct registration *own = session && function ? registration_find(function, session) : NULL;
    if (own)
        registration_remove(routes, own);
}

/* ---- pending calls ---- */

static struct pending *pending_at(const struct routes *routes, uint32_t slot)
{
    return &routes->pending[slot];
}

/* A fresh slot's next_free is 0 (calloc): the slots above the highest used one form the rest of the
 * free list. */
static uint32_t pending_take_slot(struct routes *routes)
{
    uint32_t slot = routes->free_pending;
    struct pending *pending = pending_at(routes, slot);
    routes->free_pending = pending->next_free ? pending->next_free - 1 : slot + 1;
    return slot;
}

static uint64_t pending_id(const struct pending *pending, uint32_t slot)
{
    return pending->generation << SLOT_BITS | slot;
}

static void pending_link(struct routes *routes, uint32_t slot)
{
    struct pending *pending = pending_at(routes, slot);
    struct session *executor = pending->executor_session;
    struct session *caller = pending->caller_session;
    pending->executor_previous = NO_SLOT;
    pending->executor_next = executor->executing;
    if (executor->executing != NO_SLOT)
        pending_at(routes, executor->executing)->executor_previous = slot;
    executor->executing = slot;
    executor->executing_count++;
    pending->caller_previous = NO_SLOT;
    pending->caller_next = NO_SLOT;
    if (!caller)
        return;
    pending->caller_next = caller->calling;
    if (caller->calling != NO_SLOT)
        pending_at(routes, caller->calling)->caller_previous = slot;
    caller->calling = slot;
}

/* Something waits for `executor`. There is a free slot. */
static uint32_t pending_make(struct routes *routes, struct session *executor,
                             struct session *caller)
{
    uint32_t slot = pending_take_slot(routes);
    struct pending *pending = pending_at(routes, slot);
    pending->generation = (pending->generation + 1) & ((VOID_ID_BIT >> SLOT_BITS) - 1);
    pending->used = true;
    pending->is_eviction = false;
    pending->is_gateways = false;
    pending->own_done = NULL;
    pending->executor = executor->peer;
    pending->executor_session = executor;
    pending->caller_session = caller;
    pending_link(routes, slot);
    routes->pending_count++;
    return slot;
}

/* `message`, from `peer` and with its session first, waits for `executor`. */
static uint32_t pending_make_for(struct routes *routes, struct peer_handle peer,
                                 const struct wire_message *message, struct session *executor)
{
    uint32_t slot =
        pending_make(routes, executor, session_find(routes, peer, message->fields[0].number));
    struct pending *pending = pending_at(routes, slot);
    pending->is_eviction = message->type == WIRE_SESSION_REATTACH;
    pending->caller = peer;
    pending->caller_id = message->id;
    pending->is_gateways = message->type == WIRE_CALL && message->fields[0].number == 0;
    if (pending->is_gateways)
        table_insert(&routes->gateways, &pending->node, peer_handle_hash(peer, message->id));
    return slot;
}

static uint32_t *own_chain(struct routes *routes, const void *context)
{
    uint64_t hash = (uint64_t)(uintptr_t)context * 0x9E3779B97F4A7C15ull; /* Knuth, TAOCP 6.4 */
    return &routes->own_chains[(hash >> 32) & (OWN_CHAINS - 1)];
}

static void pending_link_mate(struct routes *routes, uint32_t slot)
{
    struct pending *pending = pending_at(routes, slot);
    uint32_t *chain = own_chain(routes, pending->own_context);
    pending->mate_previous = NO_SLOT;
    pending->mate_next = *chain;
    if (*chain != NO_SLOT)
        pending_at(routes, *chain)->mate_previous = slot;
    *chain = slot;
}

static void pending_unlink_mate(struct routes *routes, const struct pending *pending)
{
    if (pending->mate_previous != NO_SLOT)
        pending_at(routes, pending->mate_previous)->mate_next = pending->mate_next;
    else
        *own_chain(routes, pending->own_context) = pending->mate_next;
    if (pending->mate_next != NO_SLOT)
        pending_at(routes, pending->mate_next)->mate_previous = pending->mate_previous;
}

/* The broker itself waits for `executor`. */
static uint32_t pending_make_own(struct routes *routes, struct session *executor,
                                 routes_own_done *done, void *context, uint64_t token,
                                 uint64_t deadline_ms)
{
    uint32_t slot = pending_make(routes, executor, NULL);
    struct pending *pending = pending_at(routes, slot);
    pending->own_done = done;
    pending->own_context = context;
    pending->own_token = token;
    pending->own_deadline_ms = deadline_ms;
    pending->own_next = NO_SLOT;
    pending->own_previous = routes->own_last;
    if (routes->own_last != NO_SLOT)
        pending_at(routes, routes->own_last)->own_next = slot;
    else
        routes->own_first = slot;
    routes->own_last = slot;
    pending_link_mate(routes, slot);
    return slot;
}

static void pending_unlink(struct routes *routes, uint32_t slot)
{
    struct pending *pending = pending_at(routes, slot);
    weir_assert(pending->executor_session);
    if (pending->executor_previous != NO_SLOT)
        pending_at(routes, pending->executor_previous)->executor_next = pending->executor_next;
    else
        pending->executor_session->executing = pending->executor_next;
    if (pending->executor_next != NO_SLOT)
        pending_at(routes, pending->executor_next)->executor_previous = pending->executor_previous;
    pending->executor_session->executing_count--;
    if (!pending->caller_session)
        return;
    if (pending->caller_previous != NO_SLOT)
        pending_at(routes, pending->caller_previous)->caller_next = pending->caller_next;
    else
        pending->caller_session->calling = pending->caller_next;
    if (pending->caller_next != NO_SLOT)
        pending_at(routes, pending->caller_next)->caller_previous = pending->caller_previous;
}

static void pending_unlink_own(struct routes *routes, const struct pending *pending)
{
    if (routes->own_cursor == (uint32_t)(pending - routes->pending))
        routes->own_cursor = pending->own_next;
    pending_unlink_mate(routes, pending);
    if (pending->own_previous != NO_SLOT)
        pending_at(routes, pending->own_previous)->own_next = pending->own_next;
    else
        routes->own_first = pending->own_next;
    if (pending->own_next != NO_SLOT)
        pending_at(routes, pending->own_next)->own_previous = pending->own_previous;
    else
        routes->own_last = pending->own_previous;
}

static void pending_free(struct routes *routes, uint32_t slot)
{
    struct pending *pending = pending_at(routes, slot);
    pending_unlink(routes, slot);
    if (pending->own_done)
        pending_unlink_own(routes, pending);
    if (pending->is_gateways)
        table_remove(&routes->gateways, &pending->node);
    pending->own_done = NULL;
    pending->used = false;
    pending->executor_session = NULL;
    pending->caller_session = NULL;
    pending->next_free = routes->free_pending + 1;
    routes->free_pending = slot;
    routes->pending_count--;
}

/* Nobody waits any more. The executor's gateway is told: it too keeps a place for every answer that
 * is to come, and of some handlers none ever does. */
static void pending_give_up(struct routes *routes, uint32_t slot)
{
    const struct pending *pending = pending_at(routes, slot);
    const struct wire_field fields[] = {WIRE_NUMBER(pending->executor_session->number)};
    /* A gateway that is gone has forgotten it anyway. */
    if (!pending->is_eviction)
        (void)routes->output.send(routes->output.context, pending->executor, WIRE_CALL_CANCEL,
                                  pending_id(pending, slot), fields);
    pending_free(routes, slot);
}

/* End a call whose executor has gone; `call` is a copy of its slot, which is free again. */
static void pending_stop(struct routes *routes, const struct pending *call)
{
    if (!call->own_done) {
        routes_answer_error(routes, call->caller, call->caller_id, "invocation_stopped",
                            SPAN_LITERAL("the worker that was asked has disconnected"));
        return;
    }
    call->own_done(call->own_context, call->own_token, ROUTES_OWN_ERROR, (struct span){0},
                   SPAN_LITERAL("{\"code\":\"invocation_stopped\",\"message\":"
                                "\"the worker that was asked has disconnected\"}"));
}

/* A call the session has to answer, evictions (a few at most) passed over. */
static uint32_t session_find_call(const struct routes *routes, const struct session *session)
{
    uint32_t slot = session->executing;
    while (slot != NO_SLOT && pending_at(routes, slot)->is_eviction)
        slot = pending_at(routes, slot)->executor_next;
    return slot;
}

static void session_end_calls(struct routes *routes, struct session *session)
{
    while (session->calling != NO_SLOT)
        pending_give_up(routes, session->calling);
    /* Who is told may call again, but not this session: its functions are gone. */
    for (uint32_t slot; (slot = session_find_call(routes, session)) != NO_SLOT;) {
        const struct pending call = *pending_at(routes, slot);
        pending_free(routes, slot);
        pending_stop(routes, &call);
    }
}

static void session_end_evictions(struct routes *routes, struct session *session)
{
    while (session->executing != NO_SLOT) {
        const struct pending eviction = *pending_at(routes, session->executing);
        pending_free(routes, session->executing);
        routes_answer_reattach(routes, eviction.caller, eviction.caller_id, true);
    }
}

/* PROTOCOL 2.12: functions first, then the calls, then the triggers. Whoever asks for an eviction is
 * told last, when all else of the session is over. */
static void session_close(struct routes *routes, struct session *session)
{
    while (session->registrations)
        /* Each takes the head off the list. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
        registration_remove(routes, session->registrations);
    session_end_calls(routes, session);
    if (routes->session_observer.gone)
        routes->session_observer.gone(routes->session_observer.context, session);
    session_forget_facts(routes, session);
    session_end_evictions(routes, session);
    *session->link_of_peer = session->next_of_peer;
    if (session->next_of_peer)
        session->next_of_peer->link_of_peer = session->link_of_peer;
    table_remove(&routes->sessions, &session->node);
    table_remove(&routes->workers, &session->worker_node);
    free(session->worker_id);
    free(session->ip_address);
    free(session);
}

void routes_peer_gone(struct routes *routes, struct peer_handle peer)
{
    /* Calls the gateway made itself belong to no session. First, so that closing sessions does not
     * answer them. */
    uint32_t left = routes->pending_count;
    for (uint32_t slot = 0; slot < routes->limits.pending_max && left > 0; slot++) {
        struct pending *pending = pending_at(routes, slot);
        if (!pending->used)
            continue;
        left--;
        if (pending->own_done || !peer_handle_equal(pending->caller, peer))
            continue;
        if (peer_handle_equal(pending->executor, peer))
            pending_free(routes, slot);
        else
            pending_give_up(routes, slot);
    }
    while (routes->peer_sessions[peer.slot])
        session_close(routes, routes->peer_sessions[peer.slot]);
}

/* ---- calls ---- */

/* A name fit for an error sentence. */
static struct span name_for_error(struct span name)
{
    if (!json_is_utf8(name))
        return SPAN_LITERAL("(not UTF-8)");
    size_t bytes = name.bytes;
    if (bytes > ERROR_NAME_BYTES_MAX) {
        bytes = ERROR_NAME_BYTES_MAX;
        while (bytes > 0 && ((unsigned char)name.data[bytes] & 0xC0) == 0x80)
            bytes--;
    }
    return span_of(name.data, bytes);
}

static void call_not_found(struct routes *routes, struct peer_handle peer, uint64_t id,
                           struct span space, struct span function)
{
    char text[(ERROR_NAMESPACES_MAX + 2) * (ERROR_NAME_BYTES_MAX + 8) + 128];
    struct span shown = name_for_error(function);
    struct span shown_space = name_for_error(space);
    size_t bytes = (size_t)snprintf(
        text, sizeof text, "function '%.*s' is not registered in namespace '%.*s'",
        (int)shown.bytes, shown.data ? shown.data : "", (int)shown_space.bytes, shown_space.data);
    unsigned named = 0;
    struct table_node *node = table_first(&routes->functions, function_hash(routes, function));
    for (; node && named < ERROR_NAMESPACES_MAX; node = table_next(node)) {
        const struct function *other = TABLE_OWNER(node, struct function, node);
        if (!span_equal(function_id(other), function))
            continue;
        struct span name = name_for_error(function_space(other));
        bytes +=
            (size_t)snprintf(text + bytes, sizeof text - bytes, "%s'%.*s'",
                             named == 0 ? "; it exists in " : ", ", (int)name.bytes, name.data);
        named++;
    }
    /* An embedded NUL ends the printed name early; the sentence stays valid UTF-8. */
    routes_answer_error(routes, peer, id, "function_not_found", span_of(text, bytes));
}

static void call_builtin(struct routes *routes, struct peer_handle peer,
                         const struct wire_message *message, enum catalogue_builtin builtin);

static void call_route(struct routes *routes, struct peer_handle peer,
                       const struct wire_message *message, const struct function *function)
{
    struct session *executor = function->owner->session;
    uint64_t id = message->id;
    if (routes->output.is_busy(routes->output.context, executor->peer)) {
        routes_answer_error(
            routes, peer, id, "channel_send_failed",
            SPAN_LITERAL("the gateway of the worker that was asked does not keep up"));
        return;
    }
    uint64_t invoke_id = VOID_ID_BIT | ++routes->void_id;
    uint32_t slot = NO_SLOT;
    if (id != 0) {
        if (routes->pending_count >= routes->limits.pending_max ||
            executor->executing_count >= routes->limits.pending_per_executor_max) {
            routes_answer_error(routes, peer, id, "invocation_error",
                                SPAN_LITERAL("too many calls wait for an answer"));
            return;
        }
        slot = pending_make_for(routes, peer, message, executor);
        invoke_id = pending_id(pending_at(routes, slot), slot);
    }
    const struct wire_field fields[] = {
        WIRE_NUMBER(executor->number),
        message->fields[2],
        message->fields[3],
        message->fields[4],
        message->fields[5],
        message->fields[6],
    };
    enum weir_status status =
        routes->output.send(routes->output.context, executor->peer, WIRE_INVOKE, invoke_id, fields);
    if (status == WEIR_OK)
        return;
    if (slot != NO_SLOT)
        pending_free(routes, slot);
    routes_answer_error(routes, peer, id, "channel_send_failed",
                        status == WEIR_TOO_LARGE
                            ? SPAN_LITERAL("the call is larger than a message may be")
                            : SPAN_LITERAL("the worker that was asked is disconnecting"));
}

static void routes_call(struct routes *routes, struct peer_handle peer,
                        const struct wire_message *message)
{
    struct span space = space_or_default(message->fields[1].span);
    struct span id = message->fields[2].span;
    routes->counters->calls++;
    if (!name_is_acceptable(space) || !name_is_acceptable(id)) {
        routes_answer_error(
            routes, peer, message->id, "function_not_found",
            SPAN_LITERAL(
                "the function's id or namespace is empty, not UTF-8 or longer than 4096 bytes"));
        return;
    }
    enum catalogue_builtin builtin = catalogue_builtin_find(space, id);
    if (builtin != CATALOGUE_NOT_BUILTIN) {
        call_builtin(routes, peer, message, builtin);
        return;
    }
    const struct function *function = function_find(routes, space, id);
    if (function)
        call_route(routes, peer, message, function);
    else
        call_not_found(routes, peer, message->id, space, id);
}

/* RESULT, or SESSION_REATTACHED of a session that stays: to who asked. */
static void routes_result(struct routes *routes, struct peer_handle peer,
                          const struct wire_message *message)
{
    uint64_t slot = message->id & ((1ull << SLOT_BITS) - 1);
    if (message->id & VOID_ID_BIT)
        return; /* the answer to a void call */
    struct pending *pending =
        slot < routes->limits.pending_max ? pending_at(routes, (uint32_t)slot) : NULL;
    if (!pending || !pending->used || pending_id(pending, (uint32_t)slot) != message->id ||
        !peer_handle_equal(pending->executor, peer) ||
        pending->is_eviction != (message->type == WIRE_SESSION_REATTACHED)) {
        routes->counters->results_unknown++;
        return;
    }
    const struct pending call = *pending;
    pending_free(routes, (uint32_t)slot);
    routes->counters->results++;
    if (!call.own_done)
        routes_send(routes, call.caller, message->type, call.caller_id, message->fields);
    else if (message->fields[1].span.data)
        call.own_done(call.own_context, call.own_token, ROUTES_OWN_ERROR, (struct span){0},
                      message->fields[1].span);
    else
        call.own_done(call.own_context, call.own_token, ROUTES_OWN_RESULT, message->fields[0].span,
                      (struct span){0});
}

/* ---- what others read ---- */

struct session *routes_session(const struct routes *routes, struct peer_handle peer,
                               uint64_t number)
{
    return session_find(routes, peer, number);
}

const struct function *routes_function(const struct routes *routes, struct span space,
                                       struct span id)
{
    return function_find(routes, space, id);
}

const struct table *routes_sessions(const struct routes *routes)
{
    return &routes->sessions;
}

const struct table *routes_functions(const struct routes *routes)
{
    return &routes->functions;
}

uint64_t routes_opened_at(const struct routes *routes)
{
    return routes->opened_at_ms;
}

uint64_t routes_function_sum(const struct routes *routes)
{
    return routes->function_sum;
}

/* A gateway gives up a call it has made itself; the answer may have crossed this. */
static void routes_cancel(struct routes *routes, struct peer_handle peer, uint64_t id)
{
    struct table_node *node = table_first(&routes->gateways, peer_handle_hash(peer, id));
    for (; node; node = table_next(node)) {
        struct pending *pending = TABLE_OWNER(node, struct pending, node);
        if (pending->caller_id == id && peer_handle_equal(pending->caller, peer)) {
            pending_give_up(routes, (uint32_t)(pending - routes->pending));
            return;
        }
    }
}

/* ---- calls of the broker's own ---- */

bool routes_has_function(const struct routes *routes, struct span space, struct span id)
{
    return function_find(routes, space_or_default(space), id) != NULL;
}

enum weir_status routes_call_own(struct routes *routes, const struct routes_own_call *call,
                                 routes_own_done *done, void *context, uint64_t token,
                                 uint64_t now_ms)
{
    const struct function *function =
        function_find(routes, space_or_default(call->space), call->function);
    if (!function)
        return WEIR_EMPTY;
    struct session *executor = function->owner->session;
    if (routes->output.is_busy(routes->output.context, executor->peer))
        return WEIR_UNAVAILABLE;
    if (routes->pending_count >= routes->limits.pending_max ||
        executor->executing_count >= routes->limits.pending_per_executor_max)
        return WEIR_FULL;
    uint32_t slot =
        pending_make_own(routes, executor, done, context, token, now_ms + call->timeout_ms);
    const struct wire_field fields[] = {
        WIRE_NUMBER(executor->number), WIRE_SPAN(call->function),    WIRE_SPAN(call->data),
        WIRE_SPAN(call->metadata),     WIRE_SPAN(call->traceparent), WIRE_SPAN(call->baggage),
    };
    enum weir_status status =
        routes->output.send(routes->output.context, executor->peer, WIRE_INVOKE,
                            pending_id(pending_at(routes, slot), slot), fields);
    if (status == WEIR_OK)
        return WEIR_OK;
    pending_free(routes, slot);
    return status == WEIR_TOO_LARGE ? WEIR_TOO_LARGE : WEIR_UNAVAILABLE;
}

void routes_cancel_own(struct routes *routes, const void *context)
{
    for (uint32_t slot = *own_chain(routes, context), next; slot != NO_SLOT; slot = next) {
        next = pending_at(routes, slot)->mate_next;
        if (pending_at(routes, slot)->own_context == context)
            pending_give_up(routes, slot);
    }
}

/* done() may make new calls and cancel others, so the cursor is moved along by whatever takes the
 * call under it off the list. */
void routes_tick(struct routes *routes, uint64_t now_ms)
{
    routes->own_cursor = routes->own_first;
    while (routes->own_cursor != NO_SLOT) { /* each turn passes a call or ends it */
        uint32_t slot = routes->own_cursor;
        const struct pending call = *pending_at(routes, slot);
        routes->own_cursor = call.own_next;
        if (call.own_deadline_ms > now_ms)
            continue;
        pending_give_up(routes, slot);
        call.own_done(call.own_context, call.own_token, ROUTES_OWN_LATE, (struct span){0},
                      (struct span){0});
    }
}

/* ---- reattach ---- */

/* No bound per executor here: a connection that died with many calls open is the one that has to
 * go. */
static enum weir_status routes_reattach(struct routes *routes, struct peer_handle peer,
                                        const struct wire_message *message)
{
    struct session *asking = session_find(routes, peer, message->fields[0].number);
    struct session *previous = session_find_worker(routes, message->fields[1].span);
    if (message->id == 0)
        return WEIR_INVALID;
    if (!previous || previous == asking || routes->pending_count >= routes->limits.pending_max) {
        routes_answer_reattach(routes, peer, message->id, false);
        return WEIR_OK;
    }
    uint32_t slot = pending_make_for(routes, peer, message, previous);
    const struct wire_field fields[] = {WIRE_NUMBER(previous->number), message->fields[2]};
    if (routes->output.send(routes->output.context, previous->peer, WIRE_SESSION_EVICT,
                            pending_id(pending_at(routes, slot), slot), fields) == WEIR_OK)
        return WEIR_OK;
    pending_free(routes, slot);
    routes_answer_reattach(routes, peer, message->id, false);
    return WEIR_OK;
}

/* ---- builtin functions ---- */

static void call_builtin(struct routes *routes, struct peer_handle peer,
                         const struct wire_message *message, enum catalogue_builtin builtin)
{
    struct span input = message->fields[3].span;
    if (builtin == CATALOGUE_WORKERS_REGISTER) {
        struct session *session = session_find(routes, peer, message->fields[0].number);
        bool taken = !session || session_set_info(routes, session, input);
        routes_answer_result(routes, peer, message->id,
                             taken ? SPAN_LITERAL("{\"success\":true}")
                                   : SPAN_LITERAL("{\"success\":false}"));
        return;
    }
    const struct catalogue_sources sources = {routes, routes->registry};
    struct catalogue_problem problem = {0};
    buffer_clear(&routes->answer);
    enum weir_status status = catalogue_answer(&sources, builtin, input, &routes->answer, &problem);
    if (status == WEIR_INVALID)
        routes_answer_error(routes, peer, message->id, problem.code, span_text(problem.sentence));
    else if (status == WEIR_OK && routes->answer.bytes < WIRE_FRAME_BYTES_MAX - 1024)
        routes_answer_result(routes, peer, message->id, buffer_span(&routes->answer));
    else
        routes_answer_error(
            routes, peer, message->id, "serialization_error",
            SPAN_LITERAL("the list is larger than a message may be, or memory is short"));
    buffer_fini(&routes->answer);
    buffer_init(&routes->answer, ANSWER_BYTES_MAX);
}

/* ---- messages ---- */

enum weir_status routes_take(struct routes *routes, struct peer_handle peer,
                             const struct wire_message *message)
{
    struct session *session = NULL;
    weir_assert(peer.slot < PEERS_MAX);
    switch (message->type) {
    case WIRE_SESSION_OPEN:
        return session_open(routes, peer, message);
    case WIRE_SESSION_INFO:
        session = session_find(routes, peer, message->fields[0].number);
        if (session)
            (void)session_set_info(routes, session, message->fields[1].span);
        return WEIR_OK;
    case WIRE_SESSION_CLOSED:
        session = session_find(routes, peer, message->fields[0].number);
        if (session)
            session_close(routes, session);
        return WEIR_OK;
    case WIRE_FUNCTION_REGISTER:
        function_register(routes, peer, message);
        return WEIR_OK;
    case WIRE_FUNCTION_UNREGISTER:
        function_unregister(routes, peer, message);
        return WEIR_OK;
    case WIRE_CALL:
        routes_call(routes, peer, message);
        return WEIR_OK;
    case WIRE_RESULT:
    case WIRE_SESSION_REATTACHED:
        routes_result(routes, peer, message);
        return WEIR_OK;
    case WIRE_CALL_CANCEL:
        routes_cancel(routes, peer, message->id);
        return WEIR_OK;
    case WIRE_SESSION_REATTACH:
        return routes_reattach(routes, peer, message);
    default:
        return WEIR_INVALID;
    }
}

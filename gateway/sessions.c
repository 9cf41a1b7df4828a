#include "gateway/sessions.h"

#include <stdlib.h>

#include "gateway/calls.h"
#include "gateway/custom_streams.h"
#include "gateway/parts.h"
#include "shm/hash.h"

enum {
    SLOT_NONE = -1,
    SLOTS_FIRST = 64,
    FUNCTIONS_UNCHAINED_MAX = 32, /* more of a session are found by chains */
    FUNCTION_CHAINS = 1024,
};

/* In place of a slot's index: of an invocation nobody waits for, which has no slot. */
#define VOID_INDEX UINT32_MAX

/* A question to the broker, and who is held back until it is answered. */
struct reattach {
    struct link_request request;
    struct session *session; /* NULL: it waits no more, the answer is dropped */
    struct reattach *next;
    struct reattach **link;
    uint64_t deadline_ms; /* of uv_hrtime() */
};

void sessions_init(struct sessions *sessions, const struct sessions_limits *limits,
                   struct counters *counters)
{
    *sessions = (struct sessions){
        .limits = *limits,
        .counters = counters,
        .free_slot = SLOT_NONE,
        .free_invocation = SLOT_NONE,
    };
    buffer_init(&sessions->names, 4 * (size_t)WS_MESSAGE_BYTES_MAX);
    buffer_init(&sessions->value, (size_t)ANSWER_BYTES_MAX + 4096);
    buffer_init(&sessions->error, 1024 * 1024);
}

void sessions_fini(struct sessions *sessions)
{
    free(sessions->slots);
    free(sessions->invocations);
    buffer_fini(&sessions->names);
    buffer_fini(&sessions->value);
    buffer_fini(&sessions->error);
}

/* ---- slots ---- */

static bool sessions_grow(struct sessions *sessions)
{
    if (sessions->slot_count >= SESSIONS_MAX)
        return false;
    uint32_t count = sessions->slot_count == 0 ? SLOTS_FIRST : sessions->slot_count * 2;
    struct session_slot *slots = realloc(sessions->slots, count * sizeof *slots);
    if (slots == NULL)
        return false;
    sessions->slots = slots;
    for (uint32_t i = count; i-- > sessions->slot_count;) {
        slots[i] = (struct session_slot){.generation = 1, .next_free = sessions->free_slot};
        sessions->free_slot = (int32_t)i;
    }
    sessions->slot_count = count;
    return true;
}

static struct session *sessions_find(const struct sessions *sessions, uint64_t id)
{
    uint32_t index = (uint32_t)id;
    if (index >= sessions->slot_count || sessions->slots[index].generation != (uint32_t)(id >> 32))
        return NULL;
    return sessions->slots[index].session;
}

/* Slots by broker_id: as many chains as slots, each slot the head of one. */
static struct invocation_slot *invocation_bucket(const struct sessions *sessions,
                                                 uint64_t broker_id)
{
    weir_assert(sessions->invocation_slot_count > 0);
    return &sessions->invocations[hash_pair(broker_id, 0) % sessions->invocation_slot_count];
}

static void invocation_hang(struct sessions *sessions, uint32_t index)
{
    struct invocation_slot *slot = &sessions->invocations[index];
    struct invocation_slot *bucket = invocation_bucket(sessions, slot->broker_id);
    slot->bucket_next = bucket->bucket_first;
    bucket->bucket_first = (int32_t)index;
}

static void invocation_unhang(struct sessions *sessions, uint32_t index)
{
    struct invocation_slot *slot = &sessions->invocations[index];
    int32_t *at = &invocation_bucket(sessions, slot->broker_id)->bucket_first;
    while (*at != (int32_t)index)
        at = &sessions->invocations[*at].bucket_next;
    *at = slot->bucket_next;
}

static bool sessions_grow_invocations(struct sessions *sessions)
{
    uint32_t have = sessions->invocation_slot_count;
    if (have >= LINK_REQUESTS_MAX)
        return false;
    uint32_t count = have == 0 ? SLOTS_FIRST : have * 2;
    struct invocation_slot *slots = realloc(sessions->invocations, count * sizeof *slots);
    if (slots == NULL)
        return false;
    sessions->invocations = slots;
    for (uint32_t i = count; i-- > have;) {
        slots[i] = (struct invocation_slot){.next_free = sessions->free_invocation};
        sessions->free_invocation = (int32_t)i;
    }
    sessions->invocation_slot_count = count;
    for (uint32_t i = 0; i < count; i++)
        slots[i].bucket_first = SLOT_NONE;
    for (uint32_t i = 0; i < have; i++)
        if (slots[i].session != NULL)
            invocation_hang(sessions, i);
    return true;
}

/* The slot is the session's now. */
static void sessions_link_invocation(struct sessions *sessions, uint32_t index,
                                     struct session *session)
{
    struct invocation_slot *slot = &sessions->invocations[index];
    slot->session = session;
    slot->previous = SLOT_NONE;
    slot->next = session->invocation_count > 0 ? session->invocations : SLOT_NONE;
    if (slot->next != SLOT_NONE)
        sessions->invocations[slot->next].previous = (int32_t)index;
    session->invocations = (int32_t)index;
    session->invocation_count++;
}

static void sessions_free_invocation(struct sessions *sessions, uint32_t index)
{
    struct invocation_slot *slot = &sessions->invocations[index];
    invocation_unhang(sessions, index);
    if (slot->previous != SLOT_NONE)
        sessions->invocations[slot->previous].next = slot->next;
    else
        slot->session->invocations = slot->next;
    if (slot->next != SLOT_NONE)
        sessions->invocations[slot->next].previous = slot->previous;
    slot->session->invocation_count--;
    slot->session = NULL;
    slot->next_free = sessions->free_invocation;
    sessions->free_invocation = (int32_t)index;
}

/* ---- what the broker is told ---- */

static struct span session_name_space(const struct session *session)
{
    return session->name_space == NULL ? (struct span){0} : span_text(session->name_space);
}

static void session_post_open(const struct session *session)
{
    const struct wire_field open[] = {WIRE_NUMBER(session->id),
                                      WIRE_SPAN(span_text(session->worker_id)),
                                      WIRE_SPAN(span_text(session->ip_address))};
    link_post(session->sessions->link, WIRE_SESSION_OPEN, 0, open);
}

static void session_post_info(const struct session *session)
{
    const struct wire_field info[] = {WIRE_NUMBER(session->id),
                                      WIRE_SPAN(buffer_span(&session->info))};
    link_post(session->sessions->link, WIRE_SESSION_INFO, 0, info);
}

static struct span function_part(const struct session_function *function, unsigned part)
{
    return parts_find(function->bytes, function->text, part);
}

static struct span session_function_space(const struct session *session,
                                          const struct session_function *function)
{
    struct span name_space = function_part(function, 0);
    return name_space.data == NULL ? session_name_space(session) : name_space;
}

static void session_post_function(const struct session *session,
                                  const struct session_function *function)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(session->id),
        WIRE_SPAN(session_function_space(session, function)),
        WIRE_SPAN(function_part(function, 1)),
        WIRE_SPAN(function_part(function, 2)),
        WIRE_SPAN(function_part(function, 3)),
        WIRE_SPAN(function_part(function, 4)),
        WIRE_SPAN(function_part(function, 5)),
    };
    custom_streams_note(session->sessions->custom, fields[1].span, fields[2].span);
    link_post(session->sessions->link, WIRE_FUNCTION_REGISTER, 0, fields);
}

static void session_post_unregister(const struct session *session,
                                    const struct session_function *function)
{
    const struct wire_field fields[] = {WIRE_NUMBER(session->id),
                                        WIRE_SPAN(session_function_space(session, function)),
                                        WIRE_SPAN(function_part(function, 1))};
    link_post(session->sessions->link, WIRE_FUNCTION_UNREGISTER, 0, fields);
}

static void session_announce(const struct session *session)
{
    session_post_open(session);
    if (session->info.bytes > 0)
        session_post_info(session);
    const struct session_function *function = session->functions;
    for (; function != NULL; function = function->next)
        session_post_function(session, function);
    session_announce_triggers(session);
}

void sessions_announce(struct sessions *sessions)
{
    for (uint32_t i = 0; i < sessions->slot_count; i++) {
        if (sessions->slots[i].session != NULL)
            session_announce(sessions->slots[i].session);
    }
}

void sessions_forget_invocations(struct sessions *sessions)
{
    for (uint32_t i = 0; i < sessions->invocation_slot_count; i++) {
        if (sessions->invocations[i].session != NULL)
            sessions_free_invocation(sessions, i);
    }
}

/* ---- life ---- */

/* "1.2.3.4:5" without its port. */
static char *session_copy_ip(const char *address)
{
    const char *colon = strrchr(address, ':');
    return colon == NULL ? strdup(address) : strndup(address, (size_t)(colon - address));
}

struct session *session_open(struct sessions *sessions, const struct session_transport *transport,
                             void *peer, const char *address)
{
    if (sessions->free_slot == SLOT_NONE && !sessions_grow(sessions))
        return NULL;
    struct session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return NULL;
    session->ip_address = session_copy_ip(address);
    if (session->ip_address == NULL) {
        free(session);
        return NULL;
    }
    uint32_t index = (uint32_t)sessions->free_slot;
    struct session_slot *slot = &sessions->slots[index];
    sessions->free_slot = slot->next_free;
    slot->session = session;
    session->id = (uint64_t)slot->generation << 32 | index;
    session->sessions = sessions;
    session->transport = transport;
    session->peer = peer;
    buffer_init(&session->info, SESSION_INFO_BYTES_MAX);
    uint8_t uuid[UUID_BYTES];
    uuid_make(uuid);
    uuid_print(session->worker_id, uuid);
    uuid_make(uuid);
    uuid_print(session->reattach_token, uuid);
    counters_add(sessions->counters, COUNTER_WORKER_CONNECTIONS, 1);
    session_post_open(session);
    return session;
}

/* ---- reattach ---- */

/* The session waits no more; the question, if it is still open, ends by itself. */
static void reattach_leave_session(struct reattach *reattach)
{
    if (reattach->session == NULL)
        return;
    *reattach->link = reattach->next;
    if (reattach->next != NULL)
        reattach->next->link = reattach->link;
    reattach->session->reattach = NULL;
    reattach->session = NULL;
}

/* Answered, or the broker has gone with the question: either way the session goes on. */
static void reattach_done(struct link_request *request, enum link_fate fate,
                          const struct wire_message *answer)
{
    struct reattach *reattach = (struct reattach *)(void *)request; /* its first member */
    struct session *session = reattach->session;
    (void)fate;
    (void)answer;
    reattach_leave_session(reattach);
    free(reattach);
    if (session != NULL)
        session->transport->set_held(session->peer, false);
}

void session_reattach(struct session *session, struct span previous_worker_id, struct span token)
{
    struct sessions *sessions = session->sessions;
    if (session->reattach != NULL || previous_worker_id.bytes != UUID_TEXT_BYTES ||
        token.bytes != UUID_TEXT_BYTES)
        return;
    struct reattach *reattach = calloc(1, sizeof *reattach);
    if (reattach == NULL)
        return;
    reattach->request.done = reattach_done;
    const struct wire_field fields[] = {WIRE_NUMBER(session->id), WIRE_SPAN(previous_worker_id),
                                        WIRE_SPAN(token)};
    if (link_ask(sessions->link, WIRE_SESSION_REATTACH, fields, &reattach->request) != WEIR_OK) {
        free(reattach);
        return;
    }
    reattach->session = session;
    reattach->deadline_ms = uv_hrtime() / 1000000 + REATTACH_MS_MAX;
    reattach->link = &sessions->reattaches;
    reattach->next = sessions->reattaches;
    if (reattach->next != NULL)
        reattach->next->link = &reattach->next;
    sessions->reattaches = reattach;
    session->reattach = reattach;
    session->transport->set_held(session->peer, true);
}

/* False: the token is not its own, and nothing happened. */
static bool session_retire(struct session *session, struct span token)
{
    if (!span_equal_secret(span_of(session->reattach_token, UUID_TEXT_BYTES), token))
        return false;
    counters_add(session->sessions->counters, COUNTER_WORKERS_RETIRED, 1);
    session->transport->retire(session->peer);
    session_close(session);
    return true;
}

/* Its SESSION_CLOSED is the answer, also when it is already on its way; only a refusal needs words. */
static void sessions_take_evict(struct sessions *sessions, const struct wire_message *message)
{
    struct session *session = sessions_find(sessions, message->fields[0].number);
    const struct wire_field refusal[] = {WIRE_NUMBER(0)};
    if (session != NULL && !session_retire(session, message->fields[1].span))
        link_post(sessions->link, WIRE_SESSION_REATTACHED, message->id, refusal);
}

void sessions_tick(struct sessions *sessions, uint64_t now_ms)
{
    worker_log_tick(&sessions->log, now_ms);
    for (struct reattach *reattach = sessions->reattaches, *next; reattach != NULL;
         reattach = next) {
        next = reattach->next;
        if (reattach->deadline_ms > now_ms)
            continue;
        struct session *session = reattach->session;
        reattach_leave_session(reattach);
        session->transport->set_held(session->peer, false);
    }
}

static void session_drop_invocations(struct session *session)
{
    while (session->invocation_count > 0) /* each turn gives one back */
        sessions_free_invocation(session->sessions, (uint32_t)session->invocations);
}

void session_close(struct session *session)
{
    struct sessions *sessions = session->sessions;
    const struct wire_field closed[] = {WIRE_NUMBER(session->id)};
    link_post(sessions->link, WIRE_SESSION_CLOSED, 0, closed);
    calls_forget_session(session);
    if (session->reattach != NULL)
        reattach_leave_session(session->reattach);
    session_drop_invocations(session);
    for (struct session_function *function = session->functions, *next; function != NULL;
         function = next) {
        next = function->next;
        free(function);
    }
    free(session->function_chains);
    session_close_triggers(session);
    struct session_slot *slot = &sessions->slots[(uint32_t)session->id];
    slot->session = NULL;
    slot->generation++;
    if (slot->generation == 0)
        slot->generation = 1;
    slot->next_free = sessions->free_slot;
    sessions->free_slot = (int32_t)(uint32_t)session->id;
    counters_subtract(sessions->counters, COUNTER_WORKER_CONNECTIONS, 1);
    buffer_fini(&session->info);
    free(session->name_space);
    free(session->ip_address);
    free(session);
}

/* ---- functions ---- */

static struct session_function **session_function_chain(const struct session *session,
                                                        struct span id)
{
    return &session->function_chains[hash_bytes(session->id, id) % FUNCTION_CHAINS];
}

/* Those that may have this id, one after the other; NULL ends. */
static struct session_function *session_first_like(const struct session *session, struct span id)
{
    return session->function_chains == NULL ? session->functions
                                            : *session_function_chain(session, id);
}

static struct session_function *session_next_like(const struct session *session,
                                                  const struct session_function *function)
{
    return session->function_chains == NULL ? function->next : function->chain_next;
}

static struct session_function *session_find_function(const struct session *session,
                                                      struct span name_space, struct span id)
{
    struct session_function *function = session_first_like(session, id);
    for (; function != NULL; function = session_next_like(session, function)) {
        struct span space = function_part(function, 0);
        bool same_space = name_space.data == NULL
                              ? space.data == NULL
                              : space.data != NULL && span_equal(space, name_space);
        if (same_space && span_equal(function_part(function, 1), id))
            break;
    }
    return function;
}

static void session_chain_function(const struct session *session, struct session_function *function)
{
    struct session_function **chain = session_function_chain(session, function_part(function, 1));
    function->chain_next = *chain;
    *chain = function;
}

/* There are many now. Without memory for it they are found one by one as before. */
static void session_chain_functions(struct session *session)
{
    session->function_chains = calloc(FUNCTION_CHAINS, sizeof(struct session_function *));
    struct session_function *function =
        session->function_chains == NULL ? NULL : session->functions;
    for (; function != NULL; function = function->next)
        session_chain_function(session, function);
}

static void session_enter_function(struct session *session, struct session_function *function)
{
    function->at = &session->functions;
    function->next = session->functions;
    if (function->next != NULL)
        function->next->at = &function->next;
    session->functions = function;
    session->function_count++;
    session->http_function_count += function->is_http;
    session->function_bytes += parts_kept_bytes(function->bytes, SESSION_FUNCTION_PARTS);
    if (session->function_chains != NULL)
        session_chain_function(session, function);
    else if (session->function_count > FUNCTIONS_UNCHAINED_MAX)
        session_chain_functions(session);
}

static void session_remove_function(struct session *session, struct session_function *function)
{
    *function->at = function->next;
    if (function->next != NULL)
        function->next->at = function->at;
    if (session->function_chains != NULL) {
        struct session_function **chain =
            session_function_chain(session, function_part(function, 1));
        while (*chain != function) /* ends: every function is in its chain */
            chain = &(*chain)->chain_next;
        *chain = function->chain_next;
    }
    session->function_count--;
    session->http_function_count -= function->is_http;
    session->function_bytes -= parts_kept_bytes(function->bytes, SESSION_FUNCTION_PARTS);
    free(function);
}

static void session_reject(struct session *session, const struct session_registration *function)
{
    counters_add(session->sessions->counters, COUNTER_REGISTRATIONS_REFUSED, 1);
    const struct session_rejection rejection = {
        .code = SPAN_LITERAL("FUNCTION_LIMIT_EXCEEDED"),
        .name_space =
            function->name_space.data == NULL ? SPAN_LITERAL("default") : function->name_space,
        .function = function->function,
        .owner_worker_id = SPAN_LITERAL(""),
    };
    session->transport->send_rejection(session->peer, &rejection);
}

/* Said once: a worker may register many of them. */
static void sessions_tell_http(struct sessions *sessions, struct span function)
{
    if (!sessions->has_told_http)
        sessions->has_told_http =
            worker_log_refusal(&sessions->log, "http_function_unsupported", function);
}

void session_register_function(struct session *session, const struct session_registration *function)
{
    const struct span parts[SESSION_FUNCTION_PARTS] = {
        function->name_space,     function->function,        function->description,
        function->request_format, function->response_format, function->metadata};
    size_t bytes = parts_bytes(parts, SESSION_FUNCTION_PARTS);
    struct session_function *old =
        session_find_function(session, function->name_space, function->function);
    size_t old_bytes = old == NULL ? 0 : parts_kept_bytes(old->bytes, SESSION_FUNCTION_PARTS);
    struct session_function *made = NULL;
    if (session->function_count - (old != NULL) < SESSION_FUNCTIONS_MAX &&
        function->function.bytes <= NAME_BYTES_MAX &&
        bytes <= SESSION_FUNCTIONS_BYTES_MAX - (session->function_bytes - old_bytes))
        made = malloc(sizeof *made + bytes);
    if (made == NULL) {
        session_reject(session, function);
        return;
    }
    if (old != NULL)
        session_remove_function(session, old);
    parts_keep(made->bytes, made->text, parts, SESSION_FUNCTION_PARTS);
    made->is_http = function->is_http;
    if (made->is_http)
        sessions_tell_http(session->sessions, function->function);
    session_enter_function(session, made);
    session_post_function(session, made);
}

void session_unregister_function(struct session *session, struct span name_space,
                                 struct span function)
{
    struct session_function *found = session_find_function(session, name_space, function);
    if (found == NULL)
        return;
    session_post_unregister(session, found);
    session_remove_function(session, found);
}

/* Move what was registered without a namespace of its own. */
static enum weir_status session_move(struct session *session, struct span name_space)
{
    if (span_equal(name_space, session->name_space == NULL ? SPAN_LITERAL("default")
                                                           : session_name_space(session)))
        return WEIR_OK;
    char *copy = malloc(name_space.bytes + 1);
    if (copy == NULL)
        return WEIR_NO_MEMORY;
    memcpy(copy, name_space.data, name_space.bytes);
    copy[name_space.bytes] = '\0';
    session_withdraw_triggers(session);
    struct session_function *function = session->functions;
    for (; function != NULL; function = function->next) {
        if (function_part(function, 0).data == NULL)
            session_post_unregister(session, function);
    }
    free(session->name_space);
    session->name_space = copy;
    for (function = session->functions; function != NULL; function = function->next) {
        if (function_part(function, 0).data == NULL)
            session_post_function(session, function);
    }
    session_move_triggers(session);
    return WEIR_OK;
}

enum weir_status session_check_description(struct span info, struct span name_space)
{
    if (name_space.data != NULL &&
        (name_space.bytes > NAME_BYTES_MAX || span_is_blank(name_space) ||
         memchr(name_space.data, '\0', name_space.bytes) != NULL))
        return WEIR_INVALID;
    return info.bytes > SESSION_INFO_BYTES_MAX ? WEIR_TOO_LARGE : WEIR_OK;
}

enum weir_status session_describe(struct session *session, struct span info, struct span name_space)
{
    enum weir_status status = session_check_description(info, name_space);
    if (status == WEIR_OK && info.data == NULL)
        status = WEIR_NO_MEMORY; /* it could not be printed */
    if (status != WEIR_OK)
        return status;
    buffer_clear(&session->info);
    status = buffer_append(&session->info, info);
    if (status == WEIR_OK && info.bytes > 0)
        session_post_info(session);
    if (status == WEIR_OK && name_space.data != NULL)
        status = session_move(session, name_space);
    return status;
}

/* ---- calls made to the worker ---- */

static void sessions_refuse_invocation(struct sessions *sessions, uint64_t broker_id,
                                       struct span error_json)
{
    const struct wire_field fields[] = {WIRE_NIL, WIRE_SPAN(error_json), WIRE_NIL, WIRE_NIL};
    link_post(sessions->link, WIRE_RESULT, broker_id, fields);
}

/* Registered as one the engine calls by HTTP (PROTOCOL 2.16), under whatever namespace. */
static bool session_has_http_function(const struct session *session, struct span id)
{
    if (session->http_function_count == 0)
        return false;
    const struct session_function *function = session_first_like(session, id);
    while (function != NULL && !(function->is_http && span_equal(function_part(function, 1), id)))
        function = session_next_like(session, function);
    return function != NULL;
}

static struct session_invocation invocation_of(const struct wire_message *message)
{
    return (struct session_invocation){
        .function = message->fields[1].span,
        .data = message->fields[2].span,
        .metadata = message->fields[3].span,
        .traceparent = message->fields[4].span,
        .baggage = message->fields[5].span,
    };
}

/* No place is kept for an answer: there are handlers that never give one to a void call. */
static void sessions_send_void(struct session *session, const struct wire_message *message)
{
    const uint32_t index = VOID_INDEX;
    uint32_t high;
    struct session_invocation invocation = invocation_of(message);
    uuid_make(invocation.uuid);
    memcpy(invocation.uuid, &index, sizeof index);
    uuid_random(&high, sizeof high);
    invocation.number = (uint64_t)high << 32 | index;
    counters_add(session->sessions->counters, COUNTER_INVOCATIONS, 1);
    session->transport->send_invocation(session->peer, &invocation);
}

static void sessions_take_invoke(struct sessions *sessions, const struct wire_message *message)
{
    struct session *session = sessions_find(sessions, message->fields[0].number);
    if (session == NULL) {
        sessions_refuse_invocation(sessions, message->id,
                                   SPAN_LITERAL("{\"code\":\"channel_send_failed\",\"message\":"
                                                "\"the worker has disconnected\"}"));
        return;
    }
    if (session_has_http_function(session, message->fields[1].span)) {
        sessions_refuse_invocation(
            sessions, message->id,
            SPAN_LITERAL("{\"code\":\"function_not_invokable\",\"message\":"
                         "\"the function was registered to be called by HTTP, which this "
                         "server does not do\"}"));
        return;
    }
    if ((message->id & WIRE_VOID_ID_BIT) != 0) {
        sessions_send_void(session, message);
        return;
    }
    if (session->invocation_count >= SESSION_INVOCATIONS_MAX ||
        (sessions->free_invocation == SLOT_NONE && !sessions_grow_invocations(sessions))) {
        sessions_refuse_invocation(sessions, message->id,
                                   SPAN_LITERAL("{\"code\":\"invocation_error\",\"message\":"
                                                "\"the worker has too many unanswered calls\"}"));
        return;
    }
    uint32_t index = (uint32_t)sessions->free_invocation;
    struct invocation_slot *slot = &sessions->invocations[index];
    sessions->free_invocation = slot->next_free;
    sessions_link_invocation(sessions, index, session);
    slot->broker_id = message->id;
    invocation_hang(sessions, index);
    /* The slot's index in the first bytes; the other 90 bits are random. */
    uuid_make(slot->uuid);
    memcpy(slot->uuid, &index, sizeof index);
    uuid_random(&slot->number_high, sizeof slot->number_high);
    counters_add(sessions->counters, COUNTER_INVOCATIONS, 1);
    struct session_invocation invocation = invocation_of(message);
    invocation.number = (uint64_t)slot->number_high << 32 | index;
    memcpy(invocation.uuid, slot->uuid, UUID_BYTES);
    session->transport->send_invocation(session->peer, &invocation);
}

/* True for an answer to a void invocation. It goes no further. */
static bool answer_is_void(uint32_t index)
{
    return index == VOID_INDEX;
}

static void session_post_result(struct session *session, uint32_t index,
                                const struct session_answer *answer)
{
    struct sessions *sessions = session->sessions;
    uint64_t broker_id = sessions->invocations[index].broker_id;
    sessions_free_invocation(sessions, index);
    size_t bytes = answer->result.bytes + answer->error_json.bytes + answer->traceparent.bytes +
                   answer->baggage.bytes;
    if (bytes > WIRE_FRAME_BYTES_MAX - 1024) {
        sessions_refuse_invocation(sessions, broker_id,
                                   SPAN_LITERAL("{\"code\":\"invocation_error\",\"message\":"
                                                "\"the result is larger than 34 MiB\"}"));
        return;
    }
    const struct wire_field fields[] = {WIRE_SPAN(answer->result), WIRE_SPAN(answer->error_json),
                                        WIRE_SPAN(answer->traceparent), WIRE_SPAN(answer->baggage)};
    link_post(sessions->link, WIRE_RESULT, broker_id, fields);
}

bool session_answer_uuid(struct session *session, struct span uuid_text,
                         const struct session_answer *answer)
{
    struct sessions *sessions = session->sessions;
    uint8_t uuid[UUID_BYTES];
    uint32_t index;
    if (!uuid_parse(uuid, uuid_text))
        return false;
    memcpy(&index, uuid, sizeof index);
    if (answer_is_void(index))
        return true;
    if (index >= sessions->invocation_slot_count ||
        sessions->invocations[index].session != session ||
        memcmp(sessions->invocations[index].uuid, uuid, UUID_BYTES) != 0)
        return false;
    session_post_result(session, index, answer);
    return true;
}

bool session_answer_number(struct session *session, uint64_t number,
                           const struct session_answer *answer)
{
    struct sessions *sessions = session->sessions;
    uint32_t index = (uint32_t)number;
    if (answer_is_void(index))
        return true;
    if (index >= sessions->invocation_slot_count ||
        sessions->invocations[index].session != session ||
        sessions->invocations[index].number_high != (uint32_t)(number >> 32))
        return false;
    session_post_result(session, index, answer);
    return true;
}

static void session_take_rejection(struct session *session, const struct wire_message *message)
{
    const struct session_rejection rejection = {
        .code = message->fields[1].span,
        .name_space = message->fields[2].span.data == NULL ? SPAN_LITERAL("default")
                                                           : message->fields[2].span,
        .function = message->fields[3].span,
        .owner_worker_id = message->fields[4].span,
    };
    session->transport->send_rejection(session->peer, &rejection);
}

/* Another worker has its name, and names are to be unique. */
static void session_take_end(struct session *session, const struct wire_message *message)
{
    const struct session_rejection rejection = {
        .code = message->fields[1].span,
        .name_space = message->fields[2].span.data == NULL ? SPAN_LITERAL("default")
                                                           : message->fields[2].span,
        .worker_name =
            message->fields[3].span.data == NULL ? SPAN_LITERAL("") : message->fields[3].span,
        .owner_worker_id = message->fields[4].span,
    };
    session->transport->reject(session->peer, &rejection);
    session_close(session);
}

/* Nobody waits for the answer: when it comes, it is passed over like any that was not asked for. */
static void sessions_take_cancel(struct sessions *sessions, uint64_t broker_id)
{
    if (sessions->invocation_slot_count == 0)
        return;
    int32_t index = invocation_bucket(sessions, broker_id)->bucket_first;
    while (index != SLOT_NONE && sessions->invocations[index].broker_id != broker_id)
        index = sessions->invocations[index].bucket_next;
    if (index != SLOT_NONE)
        sessions_free_invocation(sessions, (uint32_t)index);
}

void sessions_take_message(struct sessions *sessions, const struct wire_message *message)
{
    if (message->type == WIRE_INVOKE) {
        sessions_take_invoke(sessions, message);
        return;
    }
    if (message->type == WIRE_SESSION_EVICT) {
        sessions_take_evict(sessions, message);
        return;
    }
    if (message->type == WIRE_CALL_CANCEL) {
        sessions_take_cancel(sessions, message->id);
        return;
    }
    struct session *session = sessions_find(sessions, message->fields[0].number);
    if (session == NULL)
        return; /* it crosses a close */
    switch (message->type) {
    case WIRE_FUNCTION_REJECTED:
        session_take_rejection(session, message);
        return;
    case WIRE_SESSION_REJECTED:
        session_take_end(session, message);
        return;
    case WIRE_TRIGGER_BIND:
    case WIRE_TRIGGER_UNBIND:
    case WIRE_TRIGGER_RESULT:
        session_take_trigger_message(session, message);
        return;
    default:
        return; /* a newer broker's notice */
    }
}

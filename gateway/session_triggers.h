/* gateway/session_triggers.h -- the triggers and trigger types of a worker session (PROTOCOL 2.11).
 *
 *   owner     --registertrigger-->   check, keep --TRIGGER_REGISTER--> broker's registry
 *             <-result, if refused--    `stream`: a running trigger as well (triggers.h)
 *   provider  --registertriggertype->       keep --TRIGGER_TYPE_REGISTER-->
 *             <-registertrigger--                <-TRIGGER_BIND--
 *             --its result-->                    --TRIGGER_RESULT-->
 *
 * What is kept is announced again to a restarted broker, after the session's functions. A trigger
 * is known by its id; registering it again replaces it, and a registration that is refused changes
 * nothing. Only its own session takes it away.
 *
 * Process:  gateway, loop thread only.
 * Memory:   copies of what is registered, bounded per session by shm/limits.h, and in bytes
 *           together with its functions (SESSION_FUNCTIONS_BYTES_MAX). Spans handed in are copied
 *           or passed on before the call returns.
 * Errors:   what is beyond a bound or does not fit is answered with `triggerregistrationresult`;
 *           for trigger types the protocol has no answer, they are counted and logged.
 */
#ifndef WEIR_GATEWAY_SESSION_TRIGGERS_H
#define WEIR_GATEWAY_SESSION_TRIGGERS_H

#include "shm/json.h"
#include "shm/limits.h"
#include "shm/wire.h"

enum {
    BIND_ERROR_BYTES_MAX = 64 * 1024, /* of a provider's reason; a longer one is replaced */
    SESSION_TRIGGER_CHAINS = 256,     /* by id: about 40 triggers each in a full session */
};

struct session;
struct session_trigger;
struct session_trigger_type;
struct trigger;
struct trigger_binding;
struct triggers;

/* Who runs `stream` triggers: triggers.h in a gateway. */
struct session_trigger_runner {
    struct triggers *triggers; /* NULL: nobody; the broker alone is told */
    struct trigger *(*add)(struct triggers *triggers, const struct trigger_binding *binding);
    void (*remove)(struct trigger *trigger);
};

/* A session's own part; session_triggers.c's. */
struct session_triggers {
    struct session_trigger *first, *last;    /* in the order of registration */
    struct session_trigger **chains;         /* by id; NULL before the first trigger */
    struct session_trigger_type *types;      /* in the order of registration */
    struct session_trigger_type **types_end; /* NULL before the first */
    uint32_t trigger_count, type_count;
};

/* A trigger as a channel hands it in: strings decoded, JSON validated; data NULL where nothing is
 * given. */
struct session_trigger_registration {
    struct span id, type, function;
    struct json_value config;   /* JSON_ABSENT counts as null */
    struct span metadata;       /* JSON */
    struct span name_space;     /* of the function */
    struct span provider_space; /* "trigger_namespace" */
};

struct session_trigger_type_registration {
    struct span name_space, type, description;
    struct span trigger_request_format, call_request_format; /* JSON */
};

/* What a provider is told to bind. */
struct session_bind {
    struct span id, type, function;
    struct span config;                     /* JSON */
    struct span metadata;                   /* JSON; data NULL: none */
    struct span name_space, provider_space; /* data NULL: default */
};

/* What became of a bind: on its way to the owner, or from the provider. */
struct session_bind_result {
    struct span id, type, function;
    struct span error_json; /* data NULL: bound */
};

/* Each is the one door of its kind for both channels. */
void session_register_trigger(struct session *session,
                              const struct session_trigger_registration *trigger);
void session_unregister_trigger(struct session *session, struct span id);
void session_register_trigger_type(struct session *session,
                                   const struct session_trigger_type_registration *type);
/* `name_space` data NULL: wherever the session has it. */
void session_unregister_trigger_type(struct session *session, struct span name_space,
                                     struct span type);
/* The provider answers a bind. False: the session does not provide that type. */
bool session_answer_bind(struct session *session, const struct session_bind_result *result);
/* Answer a registration with an error; `sentence` is for the worker. */
void session_refuse_trigger(struct session *session,
                            const struct session_trigger_registration *trigger, const char *code,
                            const char *sentence);

/* ---- for sessions.c ---- */

/* TRIGGER_BIND, TRIGGER_UNBIND or TRIGGER_RESULT for this session. */
void session_take_trigger_message(struct session *session, const struct wire_message *message);
/* Tell the broker everything. */
void session_announce_triggers(const struct session *session);
/* The session's namespace is about to change, and has changed: what has none of its own moves. */
void session_withdraw_triggers(struct session *session);
void session_move_triggers(struct session *session);
void session_close_triggers(struct session *session);

#endif

/* gateway/session_access.h -- the rights of one worker connection on a listener with rbac or
 * middleware (PROTOCOL 10.4): asks whom the listener names, and applies access.h to what the worker
 * says.
 *
 *   upgrade --auth_function_id--> rights, or AUTH_ERROR and Close
 *   call         --may it?------> as it is, to the middleware, or FORBIDDEN
 *   registration --may it?, hook--> as it is, rewritten, refused, or dropped
 *   answer of a listing --------> only what the session may see
 *
 * Some questions have to be put to others: hooks, and engine::functions::info for a metadata rule.
 * The step is then STEP_WAIT: the connection keeps the message and all that follow, and takes it up
 * again when `decided` was called; the same question then has its answer at hand. Answers are for
 * one message: session_access_forget() ends it. Nothing is remembered longer, so that a rule always
 * sees what is registered now.
 *
 * Names: the functions of a session are filed under its prefix, and a hook may rename functions,
 * triggers and trigger types; session_access_filed() and session_access_shown() translate, so that
 * the worker always meets its own names.
 *
 * Process:  gateway, loop thread only.
 * Memory:   per connection its rights (access.h) and at most SESSION_RENAMES_MAX names. What steps
 *           fill in points into the session_access or its door and is valid until the next step of
 *           any connection of the door.
 * Errors:   what is not answered in auth_timeout_ms is refused; so is a session whose rights cannot
 *           be asked for.
 */
#ifndef WEIR_GATEWAY_SESSION_ACCESS_H
#define WEIR_GATEWAY_SESSION_ACCESS_H

#include "gateway/access.h"
#include "gateway/calls.h"
#include "gateway/server_calls.h"
#include "gateway/ws.h"

enum {
    SESSION_RENAMES_MAX = 256, /* names a hook changed; a further registration is dropped */
    SESSION_RENAMES_BYTES_MAX = 256 * 1024,
};

struct access_door;
struct session_access;

struct access_door_options {
    const struct settings *settings; /* both stay where they are */
    const struct settings_listener *listener;
    struct server_calls *calls;
    struct counters *counters;
};

struct access_door *
access_door_open(const struct access_door_options *options); /* NULL: no memory */
void access_door_close(struct access_door *door); /* every session_access of it is freed */

/* For a handshake under way. NULL: refused, request->http_status says with what. */
struct session_access *session_access_make(struct access_door *door, struct ws_request *request);
void session_access_free(
    struct session_access *access); /* NULL is fine; nothing is called any more */

enum access_step {
    STEP_GO,
    STEP_WAIT,   /* `decided` follows */
    STEP_REFUSE, /* the worker is told, where the protocol has an answer */
    STEP_DROP,   /* and is not */
    STEP_LOST,   /* the broker is away, nobody could be asked: no answer is the right one */
};

/* The connection is open: find its rights. `decided` is called after every STEP_WAIT, here and
 * later, once, never from inside a step. GO: as session_access_problem() says. */
enum access_step session_access_start(struct session_access *access, void (*decided)(void *peer),
                                      void *peer);
/* Why there are no rights; NULL: there are. */
const char *session_access_problem(const struct session_access *access);
/* The message at hand is done with. */
void session_access_forget(struct session_access *access);

enum access_step session_access_call(struct session_access *access, struct span name_space,
                                     struct span function);
/* An allowed call on its way to the middleware: `request` is rewritten. EMPTY: it stays. */
enum weir_status session_access_redirect(struct session_access *access,
                                         struct call_request *request,
                                         struct json_value action) WEIR_MUST_CHECK;
/* The answer as the session may see it: `answer` itself, or `shown` filled in. */
const struct session_answer *session_access_filter(struct session_access *access,
                                                   const struct session_answer *answer,
                                                   struct session_answer *shown);

enum access_step session_access_function(struct session_access *access,
                                         struct session_registration *function);

struct access_trigger {
    struct span id, type, function; /* decoded */
    struct json_value config;
    struct span metadata;   /* JSON; data NULL: none */
    struct span name_space; /* of the function; data NULL: the session's */
};
/* `session_space`: the session's namespace, data NULL: default. On GO the namespace is said, so
 * that a session that moves on to another one does not take its triggers to functions it may not
 * call. */
enum access_step session_access_trigger(struct session_access *access, struct span session_space,
                                        struct access_trigger *trigger);

struct access_trigger_type {
    struct span id, description;
};
enum access_step session_access_trigger_type(struct session_access *access,
                                             struct access_trigger_type *type);

enum access_name { ACCESS_FUNCTION, ACCESS_TRIGGER, ACCESS_TRIGGER_TYPE };
/* The name as it is filed, of the worker's own; data NULL: no memory. */
struct span session_access_filed(struct session_access *access, enum access_name kind,
                                 struct span own);
/* The worker's own name, of the one filed; one that is not its own stays. */
struct span session_access_shown(const struct session_access *access, enum access_name kind,
                                 struct span filed);

#endif

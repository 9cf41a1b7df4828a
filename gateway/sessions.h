/* gateway/sessions.h -- worker sessions: one per connected worker, whichever channel it came by.
 *
 *   worker_channel.c (iii-sdk, JSON) --+                      +-- calls.c: calls the worker makes
 *                                      +--> struct session ---+-- sessions.c: functions it offers, calls made to it
 *   local.c (libweir, msgpack) --------+                      +-- session_triggers.c: triggers and trigger types
 *                                                             +-- link.h: the broker
 *
 * A channel parses and prints; everything else is here, so that both channels have the same order,
 * bounds and answers. What a session has registered is kept, bounded, and announced again to a
 * restarted broker.
 *
 * Reattach (PROTOCOL 2.5): the broker finds the previous session, its gateway checks the token and
 * ends it; the new session is held back until the answer has come or REATTACH_MS_MAX is over.
 *
 * Process:  gateway, loop thread only.
 * Memory:   spans handed in are copied or passed on before the call returns; spans handed to a
 *           transport are valid during its function only.
 * Lifetime: session_close() ends everything; a transport is not called after it. Transport
 *           functions must not close the session from inside (they may ask their socket to close);
 *           retire() and reject() give it up, and only forget it.
 * Errors:   limits are answered as PROTOCOL 2.7 and 2.9 say, and counted.
 */
#ifndef WEIR_GATEWAY_SESSIONS_H
#define WEIR_GATEWAY_SESSIONS_H

#include "gateway/link.h"
#include "gateway/session_triggers.h"
#include "gateway/uuid.h"
#include "gateway/worker_log.h"

enum {
    SESSIONS_MAX = 1 << 20,
    SESSION_FUNCTIONS_BYTES_MAX = 16 * 1024 * 1024,
    SESSION_INVOCATIONS_MAX = 65536, /* calls one worker may be given at once */
    SESSION_TAG_BYTES_MAX = 1024,    /* of an id to echo, as its channel prints it */
    REATTACH_MS_MAX = 5000,          /* a new connection waits for the end of the previous one */
};

struct call;
struct reattach;
struct session;

/* The answer to a call. Exactly one of error_code and "no error" holds: error_json is a ready
 * object. */
struct session_answer {
    struct span tag; /* as the call brought it */
    struct span function_tag;
    struct span result;      /* JSON; data NULL: no result */
    struct span error_json;  /* JSON object; data NULL: none */
    struct span traceparent; /* decoded; data NULL: none */
    struct span baggage;
};

/* A call to a function of this worker. */
struct session_invocation {
    uint8_t uuid[UUID_BYTES]; /* made for this call; JSON channels answer with it */
    uint64_t number;          /* the same call for binary channels; neither can be guessed */
    struct span function;     /* decoded */
    struct span data;         /* JSON */
    struct span metadata;     /* JSON; data NULL: none */
    struct span traceparent;
    struct span baggage;
};

struct session_rejection {
    struct span code, name_space, function, owner_worker_id;
    struct span worker_name; /* of a session that is refused; data NULL: a function is */
};

struct session_transport {
    void (*send_answer)(void *peer, const struct session_answer *answer);
    void (*send_invocation)(void *peer, const struct session_invocation *invocation);
    void (*send_rejection)(void *peer, const struct session_rejection *rejection);
    /* Bounds: stop or go on reading what the worker sends. */
    void (*set_reading)(void *peer, bool reading);
    /* Keep back whatever the worker says after the message at hand, or go on with it. */
    void (*set_held)(void *peer, bool held);
    /* The worker has come back on another connection: close this one without a word and take
     * nothing more from it. The session is closed by the caller. */
    void (*retire)(void *peer);
    /* The session itself is refused (unique_worker_names): say so, then as retire(). */
    void (*reject)(void *peer, const struct session_rejection *rejection);
    /* The worker provides a trigger type: a trigger of it comes or goes. */
    void (*send_bind)(void *peer, const struct session_bind *bind);
    void (*send_unbind)(void *peer, struct span id, struct span type);
    /* A trigger of this worker was not registered. */
    void (*send_bind_result)(void *peer, const struct session_bind_result *result);
};

enum { SESSION_FUNCTION_PARTS = 6 };
struct session_function {
    struct session_function *next, **at; /* newest first */
    struct session_function *chain_next;
    bool is_http; /* called by HTTP, which is not supported: calls are refused here */
    /* parts.h: namespace (nil: the session's), id, description, formats, metadata */
    uint32_t bytes[SESSION_FUNCTION_PARTS];
    char text[];
};

/* A function as a channel hands it in; data NULL where nothing is given. */
struct session_registration {
    struct span name_space, function, description, request_format, response_format, metadata;
    bool is_http; /* PROTOCOL 2.16 */
};

struct session {
    uint64_t id; /* slot and use count; the broker knows the session by it */
    struct sessions *sessions;
    const struct session_transport *transport;
    void *peer;
    char worker_id[UUID_TEXT_BYTES + 1];
    char reattach_token[UUID_TEXT_BYTES + 1]; /* a secret between this gateway and the worker */
    char *name_space;                         /* NULL: default */
    char *ip_address;
    struct buffer info; /* data of engine::workers::register */
    struct session_function *functions;
    struct session_function **function_chains; /* by id; NULL while they are few */
    uint32_t function_count;
    uint32_t http_function_count;
    size_t function_bytes; /* of functions, triggers and trigger types */
    struct session_triggers triggers;
    struct reattach *reattach; /* being waited for, or NULL */
    struct call *calls;        /* in flight */
    uint32_t call_count;
    uint32_t stream_calls; /* of these, stream functions on their way through the broker */
    /* Void stream calls still to be answered at once: it has read, and may do so again. */
    uint32_t hurried_calls;
    size_t call_bytes;
    uint32_t invocation_count;
    int32_t invocations; /* the first of its slots, when there are any */
    bool is_paused;
};

struct session_slot {
    struct session *session;
    uint32_t generation;
    int32_t next_free;
};

struct invocation_slot {
    uint8_t uuid[UUID_BYTES];
    uint64_t broker_id;
    struct session *session; /* NULL: free */
    uint32_t number_high;    /* random half of the number */
    int32_t next_free;
    int32_t bucket_first;   /* of the slots whose broker_id belongs here */
    int32_t bucket_next;    /* in the same bucket */
    int32_t next, previous; /* of the same session */
};

struct sessions_limits {
    uint64_t calls_max;
    uint64_t calls_bytes_max;
    uint64_t value_bytes_max;
};

struct sessions {
    struct link *link;
    struct mapping *mapping;       /* NULL until first attached */
    struct custom_streams *custom; /* NULL: there are none */
    struct counters *counters;
    struct sessions_limits limits;
    struct session_slot *slots;
    uint32_t slot_count;
    int32_t free_slot;
    struct invocation_slot *invocations;
    uint32_t invocation_slot_count;
    int32_t free_invocation;
    struct reattach *reattaches; /* under way */
    struct buffer names;         /* decoded names of the call at hand */
    struct buffer value;         /* its compacted data, or the answer read for it */
    struct buffer error;         /* the error object being made */

    struct session_trigger_runner runner; /* set by whoever composes the parts */
    struct worker_log log;
    bool has_told_http; /* that functions called by HTTP are not supported */
};

void sessions_init(struct sessions *sessions, const struct sessions_limits *limits,
                   struct counters *counters);
void sessions_fini(struct sessions *sessions); /* all sessions closed */

/* NULL: no memory or SESSIONS_MAX. `address` is "ip:port" or a word. */
struct session *session_open(struct sessions *sessions, const struct session_transport *transport,
                             void *peer, const char *address);
void session_close(struct session *session);
void session_register_function(struct session *session,
                               const struct session_registration *function);
void session_unregister_function(struct session *session, struct span name_space,
                                 struct span function);
/* The worker says it is the one that was `previous_worker_id`: retire that session, wherever it is.
 * Whatever is wrong with id or token, nothing happens and nobody is told. set_held() may be called
 * from inside. */
void session_reattach(struct session *session, struct span previous_worker_id, struct span token);
/* engine::workers::register: `info` is its data, with the namespace in it; `name_space` the same
 * decoded, data NULL: not said. TOO_LARGE: info has more than SESSION_INFO_BYTES_MAX; INVALID: no
 * such namespace can be; NO_MEMORY. */
enum weir_status session_describe(struct session *session, struct span info,
                                  struct span name_space) WEIR_MUST_CHECK;
/* What session_describe() will say of it, but NO_MEMORY. */
enum weir_status session_check_description(struct span info,
                                           struct span name_space) WEIR_MUST_CHECK;

/* The worker answers a call; false: not a call given to this session. result data NULL: none;
 * error_json likewise. */
bool session_answer_uuid(struct session *session, struct span uuid_text,
                         const struct session_answer *answer);
bool session_answer_number(struct session *session, uint64_t number,
                           const struct session_answer *answer);

/* Let go whom a reattach has held back too long; `now_ms` of uv_hrtime(). */
void sessions_tick(struct sessions *sessions, uint64_t now_ms);

/* From the broker. */
void sessions_take_message(struct sessions *sessions, const struct wire_message *message);
/* A (new) broker is there: say who is here. Calls from workers may be given to us from then on. */
void sessions_announce(struct sessions *sessions);
/* The broker is gone: what workers were asked has no asker any more. */
void sessions_forget_invocations(struct sessions *sessions);

#endif

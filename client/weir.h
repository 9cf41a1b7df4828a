/* client/weir.h -- libweir, the C worker SDK: call functions, offer functions, and bind them to
 * triggers, through a gateway's unix socket.
 *
 *     struct weir_client *client;
 *     char error[WEIR_ERROR_BYTES];
 *     if (weir_client_open(&client, NULL, error, sizeof error) != 0) { puts(error); return 1; }
 *     weir_client_register(client, &(struct weir_function){.id = "app::on-chat", .handler = on_chat});
 *     weir_client_bind(client, &(struct weir_trigger){.type = "stream", .function_id = "app::on-chat",
 *                              .config = weir_text("{\"stream_name\":\"chat\"}")}, NULL);
 *     weir_client_set(client, "chat", "room-1", "m1", weir_text("{\"text\":\"hi\"}"), NULL, NULL);
 *     for (;;) {
 *         struct pollfd wait = {weir_client_fd(client), weir_client_events(client), 0};
 *         poll(&wait, 1, weir_client_timeout_ms(client));
 *         if (weir_client_process(client) != 0) break;          // only when it cannot go on
 *     }
 *     weir_client_close(client);
 *
 * Threads:  a client belongs to one thread at a time; different clients are independent. Callbacks
 *           run inside weir_client_process(), weir_client_run_until(), weir_client_flush() or
 *           weir_client_close(), never inside the call that asked. A callback may call, register,
 *           bind and answer, but must not process, run or close.
 * Memory:   the library copies what it is given before it returns. What a callback is given is
 *           valid during the callback. Memory is bounded: calls_max calls in flight,
 *           output_bytes_max bytes not yet taken by the gateway.
 * Order:    calls of one client to the builtin stream functions take effect in the order they were
 *           made.
 * Errors:   functions that can fail return 0 or a negative errno value, and weir_client_error() has
 *           the sentence.
 *           -EINVAL  not acceptable as given (a name, or text that is not JSON)
 *           -ENOBUFS  output_bytes_max or calls_max        -ENOMEM  no memory
 *           -ENOTCONN  the connection is lost for good: close this client
 * Signals:  none are touched; SIGPIPE is never raised.
 *
 * A lost connection ends the pending calls with the code `connection_lost` (whether they were
 * carried out is not known), and on_disconnect is called. The client then connects again by itself,
 * after 100 ms, doubling up to 5 s, for ever (and from 100 ms again when a connection has lasted
 * 5 s): it retires the old connection at the server, registers its functions and trigger types and
 * binds its triggers as before, sends what was called meanwhile, in order, and calls on_connect. A
 * call whose time limit ends before that is never sent; one without a callback has no time limit and
 * waits for the connection. Answers to invocations of the old connection are dropped, for
 * their callers have been told. With ends_on_loss a lost connection is final instead.
 */
#ifndef WEIR_H
#define WEIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    WEIR_ERROR_BYTES = 256,
    WEIR_TRIGGER_ID_BYTES = 37, /* a UUID and its NUL */
    WEIR_CALL_TIMEOUT_MS_DEFAULT = 30000,
    WEIR_CALLS_MAX_DEFAULT = 1024,
    WEIR_OUTPUT_BYTES_MAX_DEFAULT = 40 * 1024 * 1024,
    WEIR_RECONNECT_MS_MIN = 100,
    WEIR_RECONNECT_MS_MAX = 5000,
};

/* Bytes someone owns; not NUL-terminated. data == NULL: absent. */
struct weir_text {
    const char *data;
    size_t bytes;
};

static inline struct weir_text weir_text(const char *text)
{
    return (struct weir_text){text, text == NULL ? 0 : strlen(text)};
}

struct weir_client;

/* ---- connecting ---- */

/* Zero and NULL mean the default. */
struct weir_client_options {
    /* else $WEIR_SOCKET, else weir.sock in $XDG_RUNTIME_DIR/weir or /tmp/weir-UID */
    const char *socket_path;
    const char *name;       /* worker name in listings, else "PROGRAM:PID" */
    const char *name_space; /* namespace of what is registered, else "default" */
    /* object as engine::workers::register takes, else runtime, name and pid */
    const char *metadata_json;
    unsigned open_timeout_ms; /* else 5000 */
    unsigned calls_max;       /* calls in flight; one more is -ENOBUFS */
    size_t output_bytes_max;  /* bytes waiting for the gateway; beyond is -ENOBUFS */
    bool ends_on_loss;        /* do not connect again */
    /* Connected again, and everything is registered again. Not for the first time, which
     * weir_client_open() waits for. */
    void (*on_connect)(void *context);
    /* The connection is lost; `reason` says why. */
    void (*on_disconnect)(void *context, const char *reason);
    /* A registration was refused, usually because another live worker owns the function. It is kept,
     * and takes effect when the owner goes. */
    void (*on_rejected)(void *context, const char *function_id, const char *code);
    /* A trigger could not be bound. */
    void (*on_bind_failed)(void *context, const char *trigger_id, const char *code,
                           const char *message);
    void *context;
};

/* Connect and wait for the gateway's welcome. `error` (may be NULL) gets the sentence on failure;
 * *client is NULL then. */
int weir_client_open(struct weir_client **client, const struct weir_client_options *options,
                     char *error, size_t error_bytes);
/* Sends what the socket takes without waiting, ends pending calls with the code `closed`, frees
 * everything. NULL is fine. */
void weir_client_close(struct weir_client *client);

/* The sentence of the last failure; never NULL. */
const char *weir_client_error(const struct weir_client *client);
/* The id under which the server knows this connection; "" before the first welcome. */
const char *weir_client_id(const struct weir_client *client);
bool weir_client_is_connected(const struct weir_client *client);

/* For an event loop: the descriptor (-1 while there is none), the poll(2) events to wait for, and
 * the longest wait in ms (-1: any). Ask again after every library call. Every new connection is
 * preceded by a -1: a loop that remembers descriptors (epoll(7), libuv) forgets the old one then,
 * though the next may have the same number. */
int weir_client_fd(const struct weir_client *client);
short weir_client_events(const struct weir_client *client);
int weir_client_timeout_ms(const struct weir_client *client);
/* Read, write, connect again when it is time, and run callbacks as far as possible without waiting.
 * -ENOTCONN: lost for good. */
int weir_client_process(struct weir_client *client);
/* Process until *is_done (set by a callback), at most timeout_ms (-1: for ever; 0: once, without
 * waiting). 0, -ETIMEDOUT, -EINTR (a signal came) or -ENOTCONN. */
int weir_client_run_until(struct weir_client *client, const bool *is_done, int timeout_ms);
/* Process until everything called and answered so far has been handed to the socket; while the
 * connection is away, registrations are not waited for. Results as weir_client_run_until(). */
int weir_client_flush(struct weir_client *client, int timeout_ms);

/* ---- calling ---- */

/* The outcome of a call. Success: error_code is NULL; json is the result, absent when the function
 * returned nothing. */
struct weir_result {
    struct weir_text json;
    /* e.g. "function_not_found"; "timeout", "connection_lost", "closed" come from the library */
    const char *error_code;
    const char *error_message;
};
typedef void weir_done(void *context, const struct weir_result *result);

struct weir_call {
    const char *function_id;
    const char *name_space;            /* NULL: default */
    struct weir_text json;             /* one JSON value; absent: null */
    struct weir_text metadata;         /* JSON, handed to the function beside its argument */
    const char *traceparent, *baggage; /* W3C trace context; NULL: none */
    unsigned timeout_ms;               /* 0: WEIR_CALL_TIMEOUT_MS_DEFAULT */
};
/* `done` is called exactly once if and only if 0 is returned. `done` NULL: nobody waits, errors are
 * lost. */
int weir_client_call(struct weir_client *client, const struct weir_call *call, weir_done *done,
                     void *context);
/* stream::set, put together here. */
int weir_client_set(struct weir_client *client, const char *stream_name, const char *group_id,
                    const char *item_id, struct weir_text json, weir_done *done, void *context);

/* ---- offering functions ---- */

/* Somebody calls a registered function. */
struct weir_invocation {
    uint64_t id; /* for weir_client_answer() */
    const char *function_id;
    struct weir_text json;     /* the argument, one JSON value */
    struct weir_text metadata; /* JSON, or absent; of a trigger's call the trigger's */
    struct weir_text traceparent;
    struct weir_text baggage;
};
/* Has to see to it that every invocation is answered once, now or later. */
typedef void weir_handler(void *context, struct weir_client *client,
                          const struct weir_invocation *invocation);

struct weir_function {
    const char *id;
    weir_handler *handler;
    void *context;
    const char *description;                          /* NULL: none */
    struct weir_text request_format, response_format; /* JSON Schema, or absent */
    struct weir_text metadata;                        /* JSON, or absent */
};
/* A second registration of an id replaces the first. */
int weir_client_register(struct weir_client *client, const struct weir_function *function);
/* 0 also when it was not registered. */
int weir_client_unregister(struct weir_client *client, const char *function_id);
/* Answer an invocation with one JSON value (absent: the function returns nothing), or with an
 * error. */
int weir_client_answer(struct weir_client *client, uint64_t invocation_id, struct weir_text json);
int weir_client_answer_error(struct weir_client *client, uint64_t invocation_id, const char *code,
                             const char *message);

/* ---- triggers ---- */

/* `type` is "stream", "stream:join", "stream:leave" or what a worker provides; what `config` says
 * depends on it. */
struct weir_trigger {
    const char *type;
    const char *function_id;
    const char *function_name_space; /* NULL: the client's */
    const char *type_name_space;     /* NULL: the client's, then default */
    struct weir_text config;         /* JSON; absent: null */
    struct weir_text metadata;       /* JSON, handed to the function with every call */
};
/* Have the function called by the trigger until weir_client_unbind(). `id` (may be NULL) gets what
 * unbind and on_bind_failed know the trigger by. */
int weir_client_bind(struct weir_client *client, const struct weir_trigger *trigger,
                     char id[WEIR_TRIGGER_ID_BYTES]);
/* 0 also when there is no such trigger. */
int weir_client_unbind(struct weir_client *client, const char *id);

/* A trigger of a type this client provides: call `function_id` in `name_space` when it fires. */
struct weir_binding {
    const char *id;
    const char *function_id;
    const char *name_space; /* "default" when nothing else was said */
    struct weir_text config, metadata;
};
struct weir_trigger_type {
    const char *id;
    const char *description; /* NULL: none */
    /* Returns NULL, or the sentence with which the binding is refused. The same id may come again:
     * it replaces the earlier one. Bindings end with the connection, without on_unbind: a provider
     * forgets them in on_disconnect, and those that still hold come again. */
    const char *(*on_bind)(void *context, const struct weir_binding *binding);
    void (*on_unbind)(void *context, const char *id);
    void *context;
};
/* Become the provider of a trigger type. */
int weir_client_provide(struct weir_client *client, const struct weir_trigger_type *type);
int weir_client_withdraw(struct weir_client *client, const char *type_id);

/* ---- reading JSON ---- */

/* The member `key` of a JSON object as it stands there; absent when there is none. The text is one
 * that libweir has given, or any valid JSON. */
struct weir_text weir_json_member(struct weir_text object, const char *key);
/* Decode a JSON string into `out`, NUL-terminated. Its length, or -EINVAL (not a string, or a NUL in
 * it), -ENOBUFS (it needs more than out_bytes). */
int weir_json_string(struct weir_text json, char *out, size_t out_bytes);

#endif

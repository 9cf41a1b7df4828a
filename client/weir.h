/* client/weir.h -- libweir, the C worker SDK: call functions, and offer functions, through a
 * gateway's unix socket.
 *
 *     struct weir_client *client;
 *     char error[WEIR_ERROR_BYTES];
 *     if (weir_client_open(&client, NULL, error, sizeof error) != 0) { puts(error); return 1; }
 *     weir_client_register(client, "app::hello", NULL, answer_hello, NULL);
 *     weir_client_set(client, "chat", "room-1", "m1", weir_text("{\"text\":\"hi\"}"), NULL, NULL);
 *     for (;;) {
 *         struct pollfd wait = {weir_client_fd(client), weir_client_events(client), 0};
 *         poll(&wait, 1, weir_client_timeout_ms(client));
 *         if (weir_client_process(client) != 0) break;          // the connection is lost
 *     }
 *     weir_client_close(client);
 *
 * Threads:  a client belongs to one thread at a time; different clients are independent. Callbacks
 *           run inside weir_client_process(), weir_client_run_until() or weir_client_close(), never
 *           inside the call that asked. A callback may call, register and answer, but must not
 *           process, run or close.
 * Memory:   the library copies what it is given before it returns. What a callback is given is
 *           valid during the callback. Memory is bounded: calls_max calls in flight,
 *           output_bytes_max bytes not yet taken by the gateway.
 * Order:    calls of one client to the builtin stream functions take effect in the order they were
 *           made.
 * Errors:   functions that can fail return 0 or a negative errno value, and weir_client_error() has
 *           the sentence.
 *           -EINVAL  not acceptable as given (a name, or text that is not JSON)   -ENOBUFS  output_bytes_max or calls_max
 *           -ENOTCONN  the connection is lost: close this client, open another   -ENOMEM  no memory
 * Signals:  none are touched; SIGPIPE is never raised.
 *
 * A lost connection is final for the client: pending calls end with the code `connection_lost`,
 * on_disconnect is called once, and every later call returns -ENOTCONN.
 */
#ifndef WEIR_H
#define WEIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    WEIR_ERROR_BYTES = 256,
    WEIR_CALL_TIMEOUT_MS_DEFAULT = 30000,
    WEIR_CALLS_MAX_DEFAULT = 1024,
    WEIR_OUTPUT_BYTES_MAX_DEFAULT = 40 * 1024 * 1024,
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

/* Zero and NULL mean the default. */
struct weir_client_options {
    const char *
        socket_path; /* else $WEIR_SOCKET, else weir.sock in $XDG_RUNTIME_DIR/weir or /tmp/weir-UID */
    const char *name;       /* worker name in listings, else "PROGRAM:PID" */
    const char *name_space; /* namespace of registered functions, else "default" */
    const char
        *metadata_json; /* object as engine::workers::register takes, else runtime, name and pid */
    unsigned open_timeout_ms; /* else 5000 */
    unsigned calls_max;       /* calls in flight; one more is -ENOBUFS */
    size_t output_bytes_max;  /* bytes waiting for the gateway; beyond is -ENOBUFS */
    /* The connection is lost; `reason` says why. */
    void (*on_disconnect)(void *context, const char *reason);
    /* A registration was refused, usually because another live worker owns the function. */
    void (*on_rejected)(void *context, const char *function_id, const char *code);
    void *context;
};

/* The outcome of a call. Success: error_code is NULL; json is the result, absent when the function
 * returned nothing. */
struct weir_result {
    struct weir_text json;
    const char *
        error_code; /* e.g. "function_not_found"; "timeout", "connection_lost", "closed" come from the library */
    const char *error_message;
};

/* Somebody calls a registered function. */
struct weir_invocation {
    uint64_t id; /* for weir_client_answer() */
    const char *function_id;
    struct weir_text json;     /* the argument, one JSON value */
    struct weir_text metadata; /* JSON, or absent */
    struct weir_text traceparent;
    struct weir_text baggage;
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
/* The id under which the server knows this client; "" before the welcome. */
const char *weir_client_id(const struct weir_client *client);

/* For an event loop: the descriptor (-1 once lost), the poll(2) events to wait for, and the longest
 * wait in ms (-1: any). Ask again after every library call. */
int weir_client_fd(const struct weir_client *client);
short weir_client_events(const struct weir_client *client);
int weir_client_timeout_ms(const struct weir_client *client);
/* Read, write and run callbacks as far as possible without waiting. -ENOTCONN: the connection is
 * lost. */
int weir_client_process(struct weir_client *client);
/* Process until *is_done (set by a callback), at most timeout_ms (-1: for ever). 0, -ETIMEDOUT,
 * -EINTR (a signal came) or -ENOTCONN. */
int weir_client_run_until(struct weir_client *client, const bool *is_done, int timeout_ms);
/* Process until everything said so far has been handed to the socket. Results as
 * weir_client_run_until(). */
int weir_client_flush(struct weir_client *client, int timeout_ms);

/* Call a function anywhere with one JSON value (absent: null). `done` is called exactly once if and
 * only if 0 is returned. timeout_ms 0: the default of 30 s. */
int weir_client_call(struct weir_client *client, const char *function_id, struct weir_text json,
                     unsigned timeout_ms,
                     void (*done)(void *context, const struct weir_result *result), void *context);
/* The same without an answer: errors are lost. */
int weir_client_call_void(struct weir_client *client, const char *function_id,
                          struct weir_text json);
/* stream::set. `done` NULL: as weir_client_call_void(). */
int weir_client_set(struct weir_client *client, const char *stream_name, const char *group_id,
                    const char *item_id, struct weir_text json,
                    void (*done)(void *context, const struct weir_result *result), void *context);

/* Offer a function; `description` may be NULL. A second registration of the id replaces the
 * handler. The handler must see to it that every invocation is answered once, now or later. */
int weir_client_register(struct weir_client *client, const char *function_id,
                         const char *description,
                         void (*handler)(void *context, struct weir_client *client,
                                         const struct weir_invocation *invocation),
                         void *context);
/* 0 also when it was not registered. */
int weir_client_unregister(struct weir_client *client, const char *function_id);
/* Answer an invocation with one JSON value (absent: the function returns nothing), or with an
 * error. */
int weir_client_answer(struct weir_client *client, uint64_t invocation_id, struct weir_text json);
int weir_client_answer_error(struct weir_client *client, uint64_t invocation_id, const char *code,
                             const char *message);

#endif

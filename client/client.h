/* client/client.h -- private to libweir: the client's state and what its files owe each other.
 *
 *   client.c         the connection: opening, losing, coming back, reading, writing
 *   calls.c          calls in flight, answers to invocations, what comes in
 *   registrations.c  functions, triggers and trigger types, and saying them again
 *
 *   GREETING --welcome--> READY --lost--> WAITING --time--> GREETING ...
 *                                   \--ends_on_loss, or refused for good--> LOST
 *
 * While not READY, calls are appended to `queue` and registrations are only remembered; a welcome
 * sends the registrations first, then the queue.
 *
 * Threads: one at a time (weir.h).
 */
#ifndef WEIR_CLIENT_CLIENT_H
#define WEIR_CLIENT_CLIENT_H

#include "client/weir.h"
#include "shm/limits.h"
#include "shm/wire.h"

enum { CLIENT_ID_BYTES = 64, CLIENT_READ_BYTES = 64 * 1024, CLIENT_PATH_BYTES = 108 };

enum client_state {
    CLIENT_GREETING, /* connected, WELCOME not there yet */
    CLIENT_READY,
    CLIENT_WAITING, /* lost; connects again at retry_ms */
    CLIENT_LOST,    /* for good */
};

/* One call in flight. Its wire id is generation << 32 | position + 1, so a late answer never meets a
 * reused slot. */
struct client_call {
    weir_done *done; /* NULL: free */
    void *context;
    uint64_t deadline_ms; /* monotonic; UINT64_MAX: none */
    uint32_t generation;
    uint32_t next_free; /* position + 1; 0: none */
    uint32_t loss;      /* client->losses when it was started */
};

struct client_function;
struct client_trigger;
struct client_type;

struct weir_client {
    enum client_state state;
    int fd; /* -1: none */
    bool is_processing;
    bool was_ready;
    char path[CLIENT_PATH_BYTES];
    bool is_default_path; /* in a directory whose owner anyone could be: look at the peer */
    char id[CLIENT_ID_BYTES];
    char token[CLIENT_ID_BYTES]; /* with which the next connection retires this one */
    char error[WEIR_ERROR_BYTES];
    struct weir_client_options options; /* callbacks and limits; its strings are not kept */
    char *name, *name_space, *metadata; /* of HELLO; name_space NULL: default */
    struct wire_reader *reader;
    struct buffer input;
    struct buffer output;  /* being sent */
    struct buffer queue;   /* to be sent once READY */
    struct buffer scratch; /* text built for one call or one callback */
    struct client_call *calls;
    uint32_t call_first_free;     /* position + 1; 0: all in flight */
    uint64_t nearest_deadline_ms; /* no call ends before it; may be earlier than the truth */
    uint32_t losses;              /* how often all calls were ended */
    bool has_late_queued;         /* calls in the queue have ended: they are not to be sent */
    uint64_t greeting_deadline_ms;
    int open_result;   /* why the last connection was lost, a negative errno value */
    uint64_t retry_ms; /* monotonic, of CLIENT_WAITING */
    unsigned retry_delay_ms;
    unsigned random;                                    /* of the jitter */
    uint64_t ready_ms;                                  /* when the connection was welcomed */
    struct client_function *functions, **functions_end; /* in the order they were registered */
    struct client_function **function_buckets;          /* the same by id; NULL: none yet */
    size_t function_bucket_count, function_count;
    struct client_trigger *triggers, **triggers_end;
    struct client_type *types;
};

uint64_t client_now_ms(void);
/* Remember the sentence and return `result`, a negative errno value. */
int client_fail(struct weir_client *client, int result, const char *format, ...) WEIR_PRINTF(3, 4);
/* Append a frame to what is sent, or queue it; -ENOTCONN, -ENOBUFS, -ENOMEM. */
int client_append(struct weir_client *client, enum wire_type type, uint64_t id,
                  const struct wire_field *fields);
int client_check_name(struct weir_client *client, const char *name, const char *what);
int client_check_json(struct weir_client *client, struct weir_text json);
static inline struct span client_span(struct weir_text text)
{
    return span_of(text.data, text.bytes);
}
static inline struct weir_text client_text(struct span span)
{
    return (struct weir_text){span.data, span.bytes};
}
/* Nil for NULL. */
static inline struct span client_span_of(const char *text)
{
    return text == NULL ? (struct span){0} : span_text(text);
}

/* calls.c */
int calls_open(struct weir_client *client);
void calls_close(struct weir_client *client);
/* A frame after WELCOME. False: not something a gateway may send; the connection is to be given up. */
bool calls_take_frame(struct weir_client *client, const struct wire_message *message);
/* End calls whose time is up. */
void calls_expire(struct weir_client *client);
/* End every call there is with an error; callbacks may start others. */
void calls_fail_all(struct weir_client *client, const char *code, const char *message);
/* Take out of the queue what has ended before it could be sent. */
void calls_clean_queue(struct weir_client *client);
/* code and message of an error object, NUL-terminated in `out`, which is cleared first. False: no
 * memory; both are static text then. */
bool calls_read_error(struct buffer *out, struct span error, const char **code,
                      const char **message);

/* registrations.c */
void registrations_close(struct weir_client *client);
/* Say everything again to a new connection. 0, or what client_append() says. */
int registrations_replay(struct weir_client *client);
weir_handler *registrations_find_handler(struct weir_client *client, struct span function_id,
                                         void **context, const char **id);
/* FUNCTION_REJECTED, TRIGGER_RESULT, TRIGGER_BIND, TRIGGER_UNBIND. False: none of these. */
bool registrations_take_frame(struct weir_client *client, const struct wire_message *message);

#endif

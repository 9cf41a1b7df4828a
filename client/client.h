/* client/client.h -- private to libweir: the client's state and what client.c and calls.c owe each
 * other.
 *
 * client.c owns the connection: opening, reading, writing, losing it. calls.c owns what travels:
 * calls in flight, registered functions, answers. One thread at a time (weir.h).
 */
#ifndef WEIR_CLIENT_CLIENT_H
#define WEIR_CLIENT_CLIENT_H

#include "client/weir.h"
#include "shm/limits.h"
#include "shm/wire.h"

enum { CLIENT_ID_BYTES = 64, CLIENT_READ_BYTES = 64 * 1024 };

enum client_state {
    CLIENT_GREETING, /* connected, WELCOME not there yet */
    CLIENT_READY,
    CLIENT_LOST,
};

/* One call in flight. Its wire id is generation << 32 | position + 1, so a late answer never meets a reused slot. */
struct client_call {
    void (*done)(void *context, const struct weir_result *result); /* NULL: free */
    void *context;
    uint64_t deadline_ms; /* monotonic; UINT64_MAX: none */
    uint32_t generation;
    uint32_t next_free; /* position + 1; 0: none */
};

struct client_function {
    struct client_function *next;
    void (*handler)(void *context, struct weir_client *client,
                    const struct weir_invocation *invocation);
    void *context;
    char id[]; /* NUL-terminated */
};

struct weir_client {
    enum client_state state;
    int fd; /* -1 once lost */
    bool is_processing;
    char id[CLIENT_ID_BYTES];
    char error[WEIR_ERROR_BYTES];
    struct weir_client_options options; /* callbacks and limits; its strings are not kept */
    char *name_space;                   /* NULL: default */
    struct wire_reader *reader;
    struct buffer input;
    struct buffer output;
    struct buffer scratch; /* text built for one call or one callback */
    struct client_call *calls;
    uint32_t call_first_free;     /* position + 1; 0: all in flight */
    uint64_t nearest_deadline_ms; /* no call ends before it; may be earlier than the truth */
    struct client_function *functions;
};

uint64_t client_now_ms(void);
/* Remember the sentence and return `result`, a negative errno value. */
int client_fail(struct weir_client *client, int result, const char *format, ...) WEIR_PRINTF(3, 4);
/* Append a frame, or -ENOTCONN, -ENOBUFS, -ENOMEM. */
int client_append(struct weir_client *client, enum wire_type type, uint64_t id,
                  const struct wire_field *fields);

/* calls.c */
int calls_open(struct weir_client *client);
void calls_close(struct weir_client *client);
/* A frame after WELCOME. False: not something a gateway may send; the connection is to be given up. */
bool calls_take_frame(struct weir_client *client, const struct wire_message *message);
/* End calls whose time is up. */
void calls_expire(struct weir_client *client);
/* End every call with an error. */
void calls_fail_all(struct weir_client *client, const char *code, const char *message);

#endif

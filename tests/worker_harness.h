/* tests/worker_harness.h -- the worker channel, with sessions and calls, between a WebSocket and a
 * link to the broker that are both played here: what the gateway sends to either is kept as it is.
 *
 * Nothing here asserts by a test framework, so that a fuzz target can use it: what can only be the
 * harness's own fault ends the process.
 *
 * One translation unit includes this: it defines the functions of ws.h and link.h the worker side
 * calls, so that those of the library stay out.
 */
#ifndef WEIR_TESTS_WORKER_HARNESS_H
#define WEIR_TESTS_WORKER_HARNESS_H

#include <stdio.h>
#include <stdlib.h>

#include "gateway/triggers.h"
#include "gateway/worker_channel.h"
#include "shm/wire.h"

enum { HARNESS_ASKED_MAX = 256, HARNESS_TEXTS_MAX = 64 };

static inline void harness_require(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* ---- the broker's side ---- */

struct link {
    struct buffer out; /* frames the gateway sent */
    size_t consumed;   /* by the message taken last */
    struct wire_reader *reader;
    struct link_request *asked[HARNESS_ASKED_MAX]; /* id - 1 is the place */
    uint64_t asked_count;
    uint64_t frames;
    bool is_full;
};

enum weir_status link_ask(struct link *link, enum wire_type type, const struct wire_field *fields,
                          struct link_request *request)
{
    if (link->is_full || link->asked_count == HARNESS_ASKED_MAX)
        return WEIR_FULL;
    uint64_t id = request->is_void ? 0 : link->asked_count + 1;
    enum weir_status status = wire_append(&link->out, type, id, fields);
    if (status != WEIR_OK)
        return status;
    link->frames++;
    request->id = id;
    if (id == 0)
        request->done(request, LINK_ANSWERED, NULL);
    else
        link->asked[link->asked_count++] = request;
    return WEIR_OK;
}

void link_post(struct link *link, enum wire_type type, uint64_t id, const struct wire_field *fields)
{
    harness_require(wire_append(&link->out, type, id, fields) == WEIR_OK, "a notice fits a frame");
    link->frames++;
}

bool link_is_attached(const struct link *link)
{
    return link != NULL;
}
bool link_is_responsive(const struct link *link)
{
    return link != NULL;
}
bool link_is_flowing(const struct link *link)
{
    return link != NULL;
}
bool link_cancel_call(struct link *link, struct link_request *request)
{
    (void)link;
    (void)request;
    return true;
}
void link_flush(struct link *link)
{
    (void)link;
}
void link_tick(struct link *link)
{
    (void)link;
}
void link_raise_floor(struct link *link, uint64_t timestamp_ms)
{
    (void)link;
    (void)timestamp_ms;
}

/* The next frame the gateway has sent; false: none. Valid until the next call. */
static inline bool link_next(struct link *link, struct wire_message *message)
{
    buffer_consume(&link->out, link->consumed);
    link->consumed = 0;
    if (link->out.bytes == 0)
        return false;
    enum weir_status status =
        wire_read(link->reader, buffer_span(&link->out), message, &link->consumed);
    harness_require(status == WEIR_OK, "the gateway sends whole, sound frames");
    return true;
}

/* Answer the question `id`; fields NULL: the broker has died with it. */
static inline void link_answer(struct link *link, uint64_t id, enum wire_type type,
                               const struct wire_field *fields)
{
    harness_require(id > 0 && id <= link->asked_count, "only what was asked is answered");
    struct link_request *request = link->asked[id - 1];
    link->asked[id - 1] = NULL;
    if (request == NULL)
        return;
    struct wire_message message = {.type = type, .id = id};
    for (unsigned i = 0; fields != NULL && i < 4; i++)
        message.fields[i] = fields[i];
    request->done(request, fields == NULL ? LINK_LOST : LINK_ANSWERED,
                  fields == NULL ? NULL : &message);
}

static inline void link_fini(struct link *link)
{
    for (uint64_t id = 1; id <= link->asked_count; id++)
        link_answer(link, id, WIRE_RESULT, NULL);
    wire_reader_close(link->reader);
    buffer_fini(&link->out);
}

/* ---- the socket's side ---- */

struct ws_connection {
    char *texts[HARNESS_TEXTS_MAX]; /* sent, oldest first, NUL-terminated */
    unsigned text_count;
    uint64_t sent;
    unsigned close_code; /* 0: not closed */
    bool is_aborted;
    bool is_stopped;
    bool is_blocked; /* takes nothing */
};

static inline void connection_forget_texts(struct ws_connection *connection)
{
    while (connection->text_count > 0)
        free(connection->texts[--connection->text_count]);
}

enum weir_status ws_send_text(struct ws_connection *connection, struct span json)
{
    struct json_value value;
    if (connection->is_aborted || connection->close_code != 0)
        return WEIR_CLOSED;
    if (connection->is_blocked)
        return WEIR_FULL;
    harness_require(json_scan(json, 4 * JSON_DEPTH_MAX, &value, NULL) == WEIR_OK &&
                        value.kind == JSON_OBJECT,
                    "a worker is sent JSON objects");
    if (connection->text_count == HARNESS_TEXTS_MAX)
        connection_forget_texts(connection);
    char *copy = malloc(json.bytes + 1);
    harness_require(copy != NULL, "no memory");
    memcpy(copy, json.data, json.bytes);
    copy[json.bytes] = '\0';
    connection->texts[connection->text_count++] = copy;
    connection->sent++;
    return WEIR_OK;
}
const char *ws_peer(const struct ws_connection *connection)
{
    (void)connection;
    return "127.0.0.1:5";
}
size_t ws_backlog_bytes(const struct ws_connection *connection)
{
    (void)connection;
    return 0;
}
bool ws_has_unread(const struct ws_connection *connection)
{
    (void)connection;
    return false;
}

void ws_close(struct ws_connection *connection, enum ws_status_code code, const char *reason)
{
    (void)reason;
    connection->close_code = code;
}
void ws_close_code(struct ws_connection *connection, unsigned code, const char *reason)
{
    (void)reason;
    connection->close_code = code;
}
void ws_abort(struct ws_connection *connection)
{
    connection->is_aborted = true;
}
void ws_set_reading(struct ws_connection *connection, bool reading)
{
    connection->is_stopped = !reading;
}

/* ---- a runner of `stream` triggers that notes what it runs ---- */

struct triggers {
    unsigned running, added;
    bool is_full;
    char last[512]; /* "namespace/function stream/group/item condition metadata" of the last one */
};
struct trigger {
    struct triggers *triggers;
};

static inline struct trigger *runner_add(struct triggers *triggers,
                                         const struct trigger_binding *binding)
{
    const struct trigger_config *config = &binding->config;
    const struct span parts[] = {binding->name_space, binding->function, config->stream,
                                 config->group,       config->item,      config->condition,
                                 binding->metadata};
    const char marks[] = "/ // | ";
    size_t at = 0;
    struct trigger *trigger = triggers->is_full ? NULL : malloc(sizeof *trigger);
    if (trigger == NULL)
        return NULL;
    for (unsigned i = 0; i < 7; i++) {
        int bytes = parts[i].bytes < 60 ? (int)parts[i].bytes : 60;
        at += (size_t)snprintf(triggers->last + at, sizeof triggers->last - at, "%.*s%c", bytes,
                               parts[i].data == NULL ? "" : parts[i].data, marks[i]);
    }
    triggers->last[at - 1] = '\0';
    triggers->running++;
    triggers->added++;
    trigger->triggers = triggers;
    return trigger;
}

static inline void runner_remove(struct trigger *trigger)
{
    trigger->triggers->running--;
    free(trigger);
}

/* ---- the whole ---- */

struct harness {
    struct link link;
    struct triggers triggers;
    struct counters counters;
    struct sessions sessions;
    struct worker_channel *channel;
};

static inline void harness_init(struct harness *harness)
{
    const struct sessions_limits limits = {10000, 64 * 1024 * 1024, 1024 * 1024};
    *harness = (struct harness){0};
    buffer_init(&harness->link.out, 256 * 1024 * 1024);
    harness->link.reader = wire_reader_open();
    sessions_init(&harness->sessions, &limits, &harness->counters);
    harness->sessions.link = &harness->link;
    harness->sessions.runner =
        (struct session_trigger_runner){&harness->triggers, runner_add, runner_remove};
    harness->channel = worker_channel_open(&harness->sessions, &harness->counters);
    harness_require(harness->link.reader != NULL && harness->channel != NULL, "no memory");
}

/* All workers are closed. */
static inline void harness_fini(struct harness *harness)
{
    link_fini(&harness->link);
    worker_channel_close(harness->channel);
    sessions_fini(&harness->sessions);
}

static inline struct worker *harness_connect(struct harness *harness,
                                             struct ws_connection *connection)
{
    struct worker *worker = worker_make(harness->channel);
    harness_require(worker != NULL, "no memory");
    *connection = (struct ws_connection){0};
    worker_opened(worker, connection);
    return worker;
}

static inline void harness_disconnect(struct worker *worker, struct ws_connection *connection)
{
    worker_closed(worker);
    connection_forget_texts(connection);
}

#endif

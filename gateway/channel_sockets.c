#include "gateway/channel_sockets.h"

#include <stdlib.h>

#include "gateway/head_json.h"

enum {
    DIRECTION_READ = 1,
    DIRECTION_WRITE = 2,
    OPENED_OPEN = 1,
    OPENED_TAKEN = 2,
    MESSAGE_BYTES_MAX = WIRE_FRAME_BYTES_MAX - 1024,
    BUCKETS = 1024,
};

#define PATH_PREFIX "/ws/channels/"

struct channel_socket {
    struct link_request request; /* first: the link hands it back; in use while is_asking */
    struct channel_sockets *channels;
    struct channel_socket *next, **at; /* of the same bucket */
    struct channel_socket *busy_next;
    struct ws_connection *connection;
    uint64_t number;
    uint64_t credits;   /* writer: messages it may send; reader: to be given to the broker */
    struct buffer held; /* reader: length, binary, message; what the socket did not take */
    size_t held_start;
    bool is_writer;
    bool is_asking; /* the broker has not answered yet */
    bool is_known;  /* the broker has it as an end */
    bool is_gone;   /* the handshake failed; freed when the broker answers */
    bool is_taken;  /* somebody else has this end */
    bool is_busy;   /* reader: in the list of those with something held, or credit to give */
    bool is_ending; /* close when everything held has been sent */
};

struct channel_sockets {
    struct link *link;
    struct counters *counters;
    struct channel_socket *buckets[BUCKETS]; /* by number */
    struct channel_socket *busy;
    uint64_t numbers;
    uint64_t count;
    bool are_writers_held; /* too much waits for the broker */
};

struct channel_sockets *channel_sockets_open(struct counters *counters)
{
    struct channel_sockets *channels = calloc(1, sizeof *channels);
    if (channels != NULL)
        channels->counters = counters;
    return channels;
}

void channel_sockets_set_link(struct channel_sockets *channels, struct link *link)
{
    channels->link = link;
}

void channel_sockets_close(struct channel_sockets *channels)
{
    free(channels);
}

/* ---- ends ---- */

static void end_enter(struct channel_sockets *channels, struct channel_socket *end)
{
    end->channels = channels;
    end->number = ++channels->numbers;
    end->at = &channels->buckets[end->number % BUCKETS];
    end->next = *end->at;
    if (end->next != NULL)
        end->next->at = &end->next;
    *end->at = end;
    channels->count++;
    counters_add(channels->counters, COUNTER_CHANNEL_ENDS, 1);
}

static struct channel_socket *end_find(const struct channel_sockets *channels, uint64_t number)
{
    struct channel_socket *end = channels->buckets[number % BUCKETS];
    while (end != NULL && end->number != number)
        end = end->next;
    return end;
}

static void end_leave_busy(struct channel_socket *end)
{
    struct channel_socket **at = &end->channels->busy;
    if (!end->is_busy)
        return;
    while (*at != end)
        at = &(*at)->busy_next;
    *at = end->busy_next;
    end->is_busy = false;
}

static void end_free(struct channel_socket *end)
{
    struct channel_sockets *channels = end->channels;
    end_leave_busy(end);
    *end->at = end->next;
    if (end->next != NULL)
        end->next->at = end->at;
    channels->count--;
    counters_subtract(channels->counters, COUNTER_CHANNEL_ENDS, 1);
    buffer_fini(&end->held);
    free(end);
}

static void end_post_closed(struct channel_socket *end)
{
    const struct wire_field fields[] = {WIRE_NUMBER(end->number)};
    if (end->is_known)
        link_post(end->channels->link, WIRE_CHANNEL_CLOSED, 0, fields);
    end->is_known = false;
}

static void end_mark_busy(struct channel_socket *end)
{
    if (end->is_busy)
        return;
    end->is_busy = true;
    end->busy_next = end->channels->busy;
    end->channels->busy = end;
}

/* ---- handshake ---- */

bool channel_sockets_is_path(struct span path)
{
    size_t bytes = sizeof PATH_PREFIX - 1;
    return path.bytes > bytes && memcmp(path.data, PATH_PREFIX, bytes) == 0;
}

/* The value of the first query parameter `wanted`, as it stands there; data NULL: it is not there. */
static struct span query_value(struct span query, struct span wanted)
{
    struct head_pair parameter;
    while (head_next_parameter(&query, &parameter)) {
        if (span_equal(parameter.name, wanted))
            return parameter.value;
    }
    return (struct span){0};
}

static void end_answered(struct channel_socket *end, uint64_t outcome, uint64_t credits)
{
    struct ws_connection *connection = end->connection;
    bool is_open = outcome == OPENED_OPEN;
    end->is_known = is_open;
    if (end->is_gone) {
        end_post_closed(end);
        end_free(end);
        return;
    }
    if (!is_open && outcome != OPENED_TAKEN) {
        ws_upgrade_refuse(connection, 404, NULL); /* frees it */
        return;
    }
    end->is_taken = !is_open;
    end->credits = end->is_writer ? credits : 0;
    ws_upgrade_accept(connection, WS_ROLE_CHANNEL);
}

static void on_opened(struct link_request *request, enum link_fate fate,
                      const struct wire_message *answer)
{
    struct channel_socket *end = (struct channel_socket *)(void *)request; /* its first member */
    struct ws_connection *connection = end->connection;
    end->is_asking = false;
    if (fate == LINK_ANSWERED && answer != NULL && answer->type == WIRE_CHANNEL_OPENED) {
        end_answered(end, answer->fields[0].number, answer->fields[1].number);
        return;
    }
    if (end->is_gone)
        end_free(end);
    else
        ws_upgrade_refuse(connection, 503, NULL); /* likewise */
}

struct channel_socket *channel_socket_make(struct channel_sockets *channels,
                                           struct ws_request *request)
{
    struct span id = span_of(request->path.data + sizeof PATH_PREFIX - 1,
                             request->path.bytes - (sizeof PATH_PREFIX - 1));
    struct span key = query_value(request->query, SPAN_LITERAL("key"));
    struct span direction = query_value(request->query, SPAN_LITERAL("dir"));
    bool is_writer = span_equal(direction, SPAN_LITERAL("write"));
    request->http_status = 404;
    if (key.data == NULL || (!is_writer && !span_equal(direction, SPAN_LITERAL("read"))))
        return NULL;
    request->http_status = 503;
    struct channel_socket *end = channels->count < CHANNEL_ENDS_MAX ? calloc(1, sizeof *end) : NULL;
    if (end == NULL)
        return NULL;
    end->request.done = on_opened;
    end->connection = request->connection;
    end->is_writer = is_writer;
    buffer_init(&end->held, (CHANNEL_READ_AHEAD + 1) * (size_t)WIRE_FRAME_BYTES_MAX);
    end_enter(channels, end);
    const struct wire_field fields[] = {WIRE_NUMBER(end->number), WIRE_SPAN(id), WIRE_SPAN(key),
                                        WIRE_NUMBER(is_writer ? DIRECTION_WRITE : DIRECTION_READ)};
    if (link_ask(channels->link, WIRE_CHANNEL_OPEN, fields, &end->request) != WEIR_OK) {
        end_free(end);
        return NULL;
    }
    end->is_asking = true;
    request->http_status = 0;
    return end;
}

void channel_socket_refused(struct channel_socket *end)
{
    end->is_gone = true;
    end_post_closed(end);
    if (!end->is_asking)
        end_free(end);
}

/* ---- messages ---- */

static void reader_give_credit(struct channel_socket *end, uint64_t messages)
{
    const struct wire_field fields[] = {WIRE_NUMBER(end->number), WIRE_NUMBER(messages)};
    if (end->is_known && messages > 0)
        link_post(end->channels->link, WIRE_CHANNEL_CREDIT, 0, fields);
}

/* A writer's socket is read as far as its own credit and the link allow. */
static void writer_update_reading(struct channel_socket *end)
{
    ws_set_reading(end->connection, end->credits > 0 && !end->channels->are_writers_held);
}

static void writers_hold(struct channel_sockets *channels, bool are_held)
{
    if (channels->are_writers_held == are_held)
        return;
    channels->are_writers_held = are_held;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        for (struct channel_socket *end = channels->buckets[bucket]; end != NULL; end = end->next)
            if (end->is_writer && end->is_known)
                writer_update_reading(end);
}

/* Sent at once when much has been gathered; what the broker does not take holds up the writers. */
static void writers_watch_link(struct channel_sockets *channels)
{
    if (!link_is_flowing(channels->link))
        link_flush(channels->link);
    if (!link_is_flowing(channels->link))
        writers_hold(channels, true);
}

void channel_socket_opened(struct channel_socket *end)
{
    if (end->is_taken)
        ws_close_code(end->connection, WS_POLICY, "this end of the channel is taken");
    else if (!end->is_writer)
        reader_give_credit(end, CHANNEL_READ_AHEAD);
    else
        writer_update_reading(end);
}

void channel_socket_message(struct channel_socket *end, struct span message, bool is_binary)
{
    if (!end->is_writer || !end->is_known)
        return; /* a reader has nothing to say */
    if (message.bytes > MESSAGE_BYTES_MAX) {
        ws_close(end->connection, WS_TOO_BIG, "a channel's message has at most 34 MiB");
        return;
    }
    const struct wire_field fields[] = {WIRE_NUMBER(end->number), WIRE_NUMBER(is_binary),
                                        WIRE_SPAN(message)};
    link_post(end->channels->link, WIRE_CHANNEL_DATA, 0, fields);
    counters_add(end->channels->counters, COUNTER_CHANNEL_MESSAGES, 1);
    weir_assert(end->credits > 0);
    end->credits--;
    if (end->credits == 0)
        writer_update_reading(end);
    writers_watch_link(end->channels);
}

void channel_socket_closed(struct channel_socket *end)
{
    end_post_closed(end);
    end_free(end);
}

static enum weir_status reader_send(struct channel_socket *end, bool is_binary, struct span message)
{
    return is_binary ? ws_send_binary(end->connection, message)
                     : ws_send_text(end->connection, message);
}

static bool reader_hold(struct channel_socket *end, bool is_binary, struct span message)
{
    uint32_t bytes = (uint32_t)message.bytes;
    char header[5];
    memcpy(header, &bytes, sizeof bytes);
    header[4] = (char)is_binary;
    return buffer_reserve(&end->held, sizeof header + message.bytes) == WEIR_OK &&
           buffer_append(&end->held, span_of(header, sizeof header)) == WEIR_OK &&
           buffer_append(&end->held, message) == WEIR_OK;
}

static void reader_take(struct channel_socket *end, bool is_binary, struct span message)
{
    enum weir_status status = WEIR_FULL;
    if (end->held.bytes == end->held_start)
        status = reader_send(end, is_binary, message);
    if (status == WEIR_CLOSED)
        return;
    if (status != WEIR_OK && !reader_hold(end, is_binary, message)) {
        ws_close(end->connection, WS_INTERNAL, "no memory for a message");
        return;
    }
    counters_add(end->channels->counters, COUNTER_CHANNEL_MESSAGES, 1);
    end->credits++;
    end_mark_busy(end); /* its credit goes back at the end of the turn */
}

/* True when nothing is left to do for this reader. */
static bool reader_settle(struct channel_socket *end)
{
    while (end->held_start < end->held.bytes) { /* each turn takes one message */
        uint32_t bytes;
        const char *at = end->held.data + end->held_start;
        memcpy(&bytes, at, sizeof bytes);
        enum weir_status status = reader_send(end, at[4] != 0, span_of(at + 5, bytes));
        if (status == WEIR_CLOSED)
            return true;
        if (status != WEIR_OK)
            return false;
        end->held_start += 5 + (size_t)bytes;
    }
    if (end->held.bytes > 0) {
        size_t limit_bytes = end->held.limit_bytes;
        buffer_fini(&end->held);
        buffer_init(&end->held, limit_bytes);
        end->held_start = 0;
    }
    if (end->is_ending) {
        ws_close(end->connection, WS_NORMAL, "the writer has closed");
        return true;
    }
    if (ws_backlog_bytes(end->connection) > CHANNEL_BACKLOG_BYTES)
        return false;
    reader_give_credit(end, end->credits);
    end->credits = 0;
    return true;
}

void channel_sockets_turn(struct channel_sockets *channels)
{
    if (channels->are_writers_held && link_is_flowing(channels->link))
        writers_hold(channels, false);
    struct channel_socket **at = &channels->busy;
    while (*at != NULL) {
        struct channel_socket *end = *at;
        if (!reader_settle(end)) {
            at = &end->busy_next;
            continue;
        }
        *at = end->busy_next;
        end->is_busy = false;
    }
}

static void end_take_closed(struct channel_socket *end)
{
    end->is_known = false;
    if (end->is_writer) {
        ws_close(end->connection, WS_NORMAL, "the channel is over");
        return;
    }
    end->is_ending = true;
    end_mark_busy(end);
}

bool channel_sockets_take(struct channel_sockets *channels, const struct wire_message *message)
{
    if (message->type != WIRE_CHANNEL_DATA && message->type != WIRE_CHANNEL_CREDIT &&
        message->type != WIRE_CHANNEL_CLOSED)
        return false;
    struct channel_socket *end = end_find(channels, message->fields[0].number);
    if (end == NULL || !end->is_known)
        return true; /* it has crossed a close */
    if (message->type == WIRE_CHANNEL_CLOSED) {
        end_take_closed(end);
    } else if (message->type == WIRE_CHANNEL_DATA && !end->is_writer) {
        reader_take(end, message->fields[1].number != 0, message->fields[2].span);
    } else if (message->type == WIRE_CHANNEL_CREDIT && end->is_writer) {
        end->credits += message->fields[1].number;
        writer_update_reading(end);
    }
    return true;
}

void channel_sockets_lost(struct channel_sockets *channels)
{
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        for (struct channel_socket *end = channels->buckets[bucket]; end != NULL; end = end->next) {
            if (!end->is_known)
                continue;
            end->is_known = false;
            ws_close(end->connection, WS_RESTART, "the broker restarted");
        }
    }
}

#include "broker/channels.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "broker/table.h"
#include "shm/error_body.h"
#include "shm/json.h"
#include "shm/limits.h"
#include "shm/store.h"

enum {
    SECRET_BYTES = 32, /* hexadecimal digits of an id or a key */
    READER_CREDITS_MAX = 1024,
    QUEUE_HEADER_BYTES = 5, /* u32 length, u8 binary */
    DIRECTION_READ = 1,
    DIRECTION_WRITE = 2,
};

struct channel;

/* A session with channels: one must not use up those of all. */
struct channel_owner {
    struct table_node node; /* by (peer, session) */
    struct peer_handle peer;
    uint64_t session;
    struct channel *first;
    uint32_t channel_count;
};

/* One side of a channel; in the table of ends while a socket is there. */
struct channel_end {
    struct table_node node; /* by (peer, number) */
    struct channel *channel;
    struct peer_handle peer;
    uint64_t number;
    bool is_open;
    char key[SECRET_BYTES + 1];
};

struct channel {
    struct table_node node;                      /* by id */
    struct channel *owner_next, **link_of_owner; /* in the owner's chain */
    char id[SECRET_BYTES + 1];
    struct channel_owner *owner;
    struct channel_end reader, writer;
    uint64_t buffer_messages;
    uint64_t granted;        /* messages the writer may send and has not */
    uint64_t reader_credits; /* messages the reader's gateway takes */
    struct buffer queue;     /* length, binary, message */
    size_t queue_start;
    uint64_t queue_messages;
    bool is_finished; /* the writer has gone */
    uint64_t unused_since_ms;
    struct channel *blocked_next, **blocked_at; /* waits for its reader's gateway; NULL: does not */
};

struct channels {
    struct broker_output output;
    struct broker_counters *counters;
    uint64_t hash_seed;
    struct table channels, ends, owners;
    uint64_t queued_bytes;
    bool is_starved; /* somebody got no credit because of queued_bytes */
    struct channel *blocked, **blocked_end;
    uint64_t blocked_count;
    bool (*is_lagging)(void *context, struct peer_handle peer);
    void *lag_context;
    struct buffer scratch;
};

enum weir_status channels_open(struct channels **channels, const struct broker_output *output,
                               struct broker_counters *counters, uint64_t hash_seed,
                               struct weir_error *error)
{
    struct channels *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for channels");
    opened->output = *output;
    opened->counters = counters;
    opened->hash_seed = hash_seed;
    opened->blocked_end = &opened->blocked;
    opened->is_lagging = output->is_busy;
    opened->lag_context = output->context;
    buffer_init(&opened->scratch, 64 * 1024);
    if (table_init(&opened->channels) != WEIR_OK || table_init(&opened->ends) != WEIR_OK ||
        table_init(&opened->owners) != WEIR_OK) {
        channels_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for channels");
    }
    *channels = opened;
    return WEIR_OK;
}

void channels_set_lag(struct channels *channels,
                      bool (*is_lagging)(void *context, struct peer_handle peer), void *context)
{
    channels->is_lagging = is_lagging;
    channels->lag_context = context;
}

static void channels_send(struct channels *channels, struct peer_handle peer, enum wire_type type,
                          uint64_t id, const struct wire_field *fields)
{
    if (channels->output.send(channels->output.context, peer, type, id, fields) != WEIR_OK)
        channels->counters->replies_lost++;
}

/* ---- ends and channels ---- */

static struct channel_end *end_find(const struct channels *channels, struct peer_handle peer,
                                    uint64_t number)
{
    struct table_node *node = table_first(&channels->ends, peer_handle_hash(peer, number));
    for (; node; node = table_next(node)) {
        struct channel_end *end = TABLE_OWNER(node, struct channel_end, node);
        if (end->number == number && peer_handle_equal(end->peer, peer))
            return end;
    }
    return NULL;
}

static void end_open(struct channels *channels, struct channel_end *end, struct peer_handle peer,
                     uint64_t number)
{
    end->peer = peer;
    end->number = number;
    end->is_open = true;
    table_insert(&channels->ends, &end->node, peer_handle_hash(peer, number));
}

static void end_forget(struct channels *channels, struct channel_end *end)
{
    if (!end->is_open)
        return;
    end->is_open = false;
    table_remove(&channels->ends, &end->node);
}

/* The socket at this end is to be closed. */
static void end_close(struct channels *channels, struct channel_end *end)
{
    if (!end->is_open)
        return;
    const struct wire_field fields[] = {WIRE_NUMBER(end->number)};
    channels_send(channels, end->peer, WIRE_CHANNEL_CLOSED, 0, fields);
    end_forget(channels, end);
}

/* Last in line for its reader's gateway. */
static void channel_block(struct channels *channels, struct channel *channel)
{
    if (channel->blocked_at)
        return;
    channel->blocked_at = channels->blocked_end;
    channel->blocked_next = NULL;
    *channels->blocked_end = channel;
    channels->blocked_end = &channel->blocked_next;
    channels->blocked_count++;
}

static void channel_unblock(struct channels *channels, struct channel *channel)
{
    if (!channel->blocked_at)
        return;
    *channel->blocked_at = channel->blocked_next;
    if (channel->blocked_next)
        channel->blocked_next->blocked_at = channel->blocked_at;
    else
        channels->blocked_end = channel->blocked_at;
    channel->blocked_at = NULL;
    channels->blocked_count--;
}

static struct channel_owner *owner_find(const struct channels *channels, struct peer_handle peer,
                                        uint64_t session)
{
    struct table_node *node = table_first(&channels->owners, peer_handle_hash(peer, session));
    for (; node; node = table_next(node)) {
        struct channel_owner *owner = TABLE_OWNER(node, struct channel_owner, node);
        if (owner->session == session && peer_handle_equal(owner->peer, peer))
            return owner;
    }
    return NULL;
}

/* The channel is one of theirs. False: no memory. */
static bool owner_hold(struct channels *channels, struct channel *channel, struct peer_handle peer,
                       uint64_t session)
{
    struct channel_owner *owner = owner_find(channels, peer, session);
    if (!owner) {
        owner = calloc(1, sizeof *owner);
        if (!owner)
            return false;
        owner->peer = peer;
        owner->session = session;
        table_insert(&channels->owners, &owner->node, peer_handle_hash(peer, session));
    }
    owner->channel_count++;
    channel->owner = owner;
    channel->link_of_owner = &owner->first;
    channel->owner_next = owner->first;
    if (owner->first)
        owner->first->link_of_owner = &channel->owner_next;
    owner->first = channel;
    return true;
}

static void owner_release(struct channels *channels, struct channel *channel)
{
    struct channel_owner *owner = channel->owner;
    *channel->link_of_owner = channel->owner_next;
    if (channel->owner_next)
        channel->owner_next->link_of_owner = channel->link_of_owner;
    if (--owner->channel_count > 0)
        return;
    table_remove(&channels->owners, &owner->node);
    free(owner);
}

static void channel_end_all(struct channels *channels, struct channel *channel)
{
    channel_unblock(channels, channel);
    end_close(channels, &channel->reader);
    end_close(channels, &channel->writer);
    owner_release(channels, channel);
    table_remove(&channels->channels, &channel->node);
    channels->counters->channels = channels->channels.count;
    channels->queued_bytes -= channel->queue.bytes - channel->queue_start;
    buffer_fini(&channel->queue);
    free(channel);
}

void channels_close(struct channels *channels)
{
    if (!channels)
        return;
    size_t bucket = 0;
    struct table_node *node;
    while (channels->channels.buckets && (node = table_walk(&channels->channels, &bucket, NULL))) {
        struct channel *channel = TABLE_OWNER(node, struct channel, node);
        end_forget(channels, &channel->reader);
        end_forget(channels, &channel->writer);
        channel_end_all(channels, channel);
        bucket--; /* there may be more in it */
    }
    table_fini(&channels->channels);
    table_fini(&channels->ends);
    table_fini(&channels->owners);
    buffer_fini(&channels->scratch);
    free(channels);
}

static uint64_t channel_hash(const struct channels *channels, struct span id)
{
    return store_item_hash(channels->hash_seed, id);
}

static struct channel *channel_find(const struct channels *channels, struct span id)
{
    struct table_node *node = table_first(&channels->channels, channel_hash(channels, id));
    for (; node; node = table_next(node)) {
        struct channel *channel = TABLE_OWNER(node, struct channel, node);
        if (span_equal(span_text(channel->id), id))
            return channel;
    }
    return NULL;
}

/* ---- engine::channels::create ---- */

bool channels_is_create(const struct wire_message *call)
{
    struct span space = call->fields[1].span;
    /* Session 0 is a gateway that runs a trigger: nobody would get the keys, or close the channel. */
    return call->type == WIRE_CALL && call->fields[0].number != 0 &&
           span_equal(call->fields[2].span, SPAN_LITERAL("engine::channels::create")) &&
           (space.bytes == 0 || span_equal(space, SPAN_LITERAL("default")));
}

static bool secret_make(char out[SECRET_BYTES + 1])
{
    static const char digits[] = "0123456789abcdef";
    unsigned char random[SECRET_BYTES / 2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return false;
    for (unsigned i = 0; i < sizeof random; i++) {
        out[2 * i] = digits[random[i] >> 4];
        out[2 * i + 1] = digits[random[i] & 15];
    }
    out[SECRET_BYTES] = 0;
    return true;
}

static void create_fail(struct channels *channels, struct peer_handle peer, uint64_t id,
                        const char *code, const char *sentence)
{
    channels->counters->call_errors++;
    buffer_clear(&channels->scratch);
    struct span body = SPAN_LITERAL("{\"code\":\"invocation_error\",\"message\":\"no memory\"}");
    if (error_body_append(&channels->scratch, span_text(code), span_text(sentence)) == WEIR_OK)
        body = buffer_span(&channels->scratch);
    const struct wire_field fields[] = {WIRE_NIL, WIRE_SPAN(body), WIRE_NIL, WIRE_NIL};
    channels_send(channels, peer, WIRE_RESULT, id, fields);
}

/* The wanted number of messages; 0: not acceptable. */
static uint64_t create_buffer_size(struct span input)
{
    static const char *const names[] = {"buffer_size"};
    struct json_value value = {0};
    if (input.bytes > 0 && !span_equal(input, SPAN_LITERAL("null")) &&
        json_scan_object(input, JSON_DEPTH_MAX, names, 1, &value, NULL) != WEIR_OK)
        return 0;
    if (value.kind == JSON_ABSENT || value.kind == JSON_NULL)
        return CHANNEL_BUFFER_DEFAULT;
    if (value.kind != JSON_NUMBER || value.text.bytes > 18)
        return 0;
    uint64_t size = 0;
    for (size_t i = 0; i < value.text.bytes; i++) {
        if (value.text.data[i] < '0' || value.text.data[i] > '9')
            return 0;
        size = size * 10 + (uint64_t)(value.text.data[i] - '0');
    }
    return size > CHANNEL_BUFFER_MAX ? CHANNEL_BUFFER_MAX : size;
}

static struct channel *channel_make(struct channels *channels, struct peer_handle peer,
                                    uint64_t session)
{
    struct channel *channel =
        channels->channels.count < CHANNELS_MAX ? calloc(1, sizeof *channel) : NULL;
    if (!channel)
        return NULL;
    if (!secret_make(channel->id) || !secret_make(channel->reader.key) ||
        !secret_make(channel->writer.key)) {
        free(channel);
        return NULL;
    }
    if (!owner_hold(channels, channel, peer, session)) {
        free(channel);
        return NULL;
    }
    channel->reader.channel = channel;
    channel->writer.channel = channel;
    buffer_init(&channel->queue,
                CHANNEL_BYTES + (CHANNEL_CREDITS + 1) * (size_t)WIRE_FRAME_BYTES_MAX);
    table_insert(&channels->channels, &channel->node,
                 channel_hash(channels, span_text(channel->id)));
    channels->counters->channels = channels->channels.count;
    return channel;
}

void channels_create(struct channels *channels, struct peer_handle peer,
                     const struct wire_message *call, uint64_t now_ms)
{
    channels->counters->calls++;
    if (call->id == 0)
        return; /* nobody would know of the channel */
    uint64_t buffer_messages = create_buffer_size(call->fields[3].span);
    if (buffer_messages == 0) {
        create_fail(channels, peer, call->id, "deserialization_error",
                    "engine::channels::create: buffer_size must be a whole number from 1 to 1024");
        return;
    }
    uint64_t session = call->fields[0].number;
    const struct channel_owner *owner = owner_find(channels, peer, session);
    if (owner && owner->channel_count >= CHANNELS_SESSION_MAX) {
        create_fail(channels, peer, call->id, "invocation_error",
                    "the worker has as many channels as a worker may have");
        return;
    }
    struct channel *channel = channel_make(channels, peer, session);
    if (!channel) {
        create_fail(channels, peer, call->id, "invocation_error",
                    "there is no room for another channel");
        return;
    }
    channel->buffer_messages = buffer_messages;
    channel->unused_since_ms = now_ms;
    char text[512];
    int bytes = snprintf(
        text, sizeof text,
        "{\"writer\":{\"channel_id\":\"%s\",\"access_key\":\"%s\",\"direction\":\"write\"},"
        "\"reader\":{\"channel_id\":\"%s\",\"access_key\":\"%s\",\"direction\":\"read\"}}",
        channel->id, channel->writer.key, channel->id, channel->reader.key);
    const struct wire_field fields[] = {WIRE_SPAN(span_of(text, (size_t)bytes)), WIRE_NIL, WIRE_NIL,
                                        WIRE_NIL};
    channels_send(channels, peer, WIRE_RESULT, call->id, fields);
}

/* ---- what flows ---- */

static uint64_t channel_queued_bytes(const struct channel *channel)
{
    return channel->queue.bytes - channel->queue_start;
}

/* Messages that would pass to the reader at once, without being kept here. */
static uint64_t channel_passing(const struct channels *channels, const struct channel *channel)
{
    bool is_waited_for = channel->reader.is_open && channel->queue_messages == 0 &&
                         channel->reader_credits > channel->granted &&
                         !channels->is_lagging(channels->lag_context, channel->reader.peer);
    return is_waited_for ? channel->reader_credits - channel->granted : 0;
}

/* How many more messages the writer may be given leave to send. */
static uint64_t channel_grantable(struct channels *channels, const struct channel *channel)
{
    if (channel_queued_bytes(channel) >= CHANNEL_BYTES)
        return 0;
    if (channels->queued_bytes >= CHANNELS_BYTES) {
        uint64_t passing = channel_passing(channels, channel);
        uint64_t unused = CHANNEL_CREDITS - channel->granted;
        channels->is_starved = true;
        return passing < unused ? passing : unused;
    }
    uint64_t under_way = channel->queue_messages + channel->granted;
    uint64_t room = channel->buffer_messages > under_way ? channel->buffer_messages - under_way : 0;
    uint64_t more = CHANNEL_CREDITS - channel->granted;
    return room < more ? room : more;
}

/* Small grants are gathered, so that not every message costs one. */
static void channel_grant(struct channels *channels, struct channel *channel)
{
    uint64_t more = channel->writer.is_open ? channel_grantable(channels, channel) : 0;
    if (more == 0 || (more < CHANNEL_CREDITS / 2 && channel->granted > 0))
        return;
    channel->granted += more;
    const struct wire_field fields[] = {WIRE_NUMBER(channel->writer.number), WIRE_NUMBER(more)};
    channels_send(channels, channel->writer.peer, WIRE_CHANNEL_CREDIT, 0, fields);
}

static void channel_deliver(struct channels *channels, struct channel *channel, bool is_binary,
                            struct span message)
{
    const struct wire_field fields[] = {WIRE_NUMBER(channel->reader.number), WIRE_NUMBER(is_binary),
                                        WIRE_SPAN(message)};
    channel->reader_credits--;
    channels_send(channels, channel->reader.peer, WIRE_CHANNEL_DATA, 0, fields);
}

static enum weir_status channel_queue(struct channels *channels, struct channel *channel,
                                      bool is_binary, struct span message)
{
    uint32_t bytes = (uint32_t)message.bytes;
    char header[QUEUE_HEADER_BYTES];
    memcpy(header, &bytes, sizeof bytes);
    header[4] = (char)is_binary;
    if (channels->queued_bytes + message.bytes > CHANNELS_BYTES_HARD)
        return WEIR_FULL;
    enum weir_status status = buffer_reserve(&channel->queue, QUEUE_HEADER_BYTES + message.bytes);
    if (status == WEIR_OK)
        status = buffer_append(&channel->queue, span_of(header, sizeof header));
    if (status == WEIR_OK)
        status = buffer_append(&channel->queue, message);
    if (status != WEIR_OK)
        return status;
    channel->queue_messages++;
    channels->queued_bytes += QUEUE_HEADER_BYTES + message.bytes;
    return WEIR_OK;
}

static void queue_give_back(struct channel *channel)
{
    if (channel->queue_start == channel->queue.bytes) {
        size_t limit_bytes = channel->queue.limit_bytes;
        buffer_fini(&channel->queue);
        buffer_init(&channel->queue, limit_bytes);
        channel->queue_start = 0;
    } else if (channel->queue_start > channel->queue.bytes / 2) {
        buffer_consume(&channel->queue, channel->queue_start);
        channel->queue_start = 0;
    }
}

/* May a message go to the reader now? When only its gateway is in the way, the channel gets in line. */
static bool channel_may_deliver(struct channels *channels, struct channel *channel)
{
    if (!channel->reader.is_open || channel->reader_credits == 0)
        return false;
    if (!channels->is_lagging(channels->lag_context, channel->reader.peer))
        return true;
    channel_block(channels, channel);
    return false;
}

/* Hand on what waits as far as the reader takes it. The channel may be over by that: false. */
static bool channel_pump(struct channels *channels, struct channel *channel)
{
    while (channel->queue_messages > 0 && channel_may_deliver(channels, channel)) {
        const char *at = channel->queue.data + channel->queue_start;
        uint32_t bytes;
        memcpy(&bytes, at, sizeof bytes);
        channel_deliver(channels, channel, at[4] != 0, span_of(at + QUEUE_HEADER_BYTES, bytes));
        channel->queue_start += QUEUE_HEADER_BYTES + bytes;
        channel->queue_messages--;
        channels->queued_bytes -= QUEUE_HEADER_BYTES + bytes;
    }
    queue_give_back(channel);
    if (channel->is_finished && channel->reader.is_open && channel->queue_messages == 0) {
        channel_end_all(channels, channel);
        return false;
    }
    channel_grant(channels, channel);
    return true;
}

/* ---- messages ---- */

static enum weir_status take_open(struct channels *channels, struct peer_handle peer,
                                  const struct wire_message *message)
{
    enum { UNKNOWN, OPEN, TAKEN };
    uint64_t number = message->fields[0].number;
    uint64_t direction = message->fields[3].number;
    if (message->id == 0 || (direction != DIRECTION_READ && direction != DIRECTION_WRITE) ||
        end_find(channels, peer, number))
        return WEIR_INVALID;
    struct channel *channel = channel_find(channels, message->fields[1].span);
    struct channel_end *end = NULL;
    if (channel)
        end = direction == DIRECTION_READ ? &channel->reader : &channel->writer;
    uint64_t answer = OPEN;
    if (!end || !span_equal_secret(span_of(end->key, SECRET_BYTES), message->fields[2].span))
        answer = UNKNOWN;
    else if (end->is_open || (direction == DIRECTION_WRITE && channel->is_finished))
        answer = TAKEN;
    uint64_t credits = 0;
    if (answer == OPEN) {
        end_open(channels, end, peer, number);
        if (direction == DIRECTION_WRITE)
            credits = channel->granted = channel_grantable(channels, channel);
        else
            channel->reader_credits = 0;
    }
    const struct wire_field fields[] = {WIRE_NUMBER(answer), WIRE_NUMBER(credits)};
    channels_send(channels, peer, WIRE_CHANNEL_OPENED, message->id, fields);
    return WEIR_OK;
}

static enum weir_status take_data(struct channels *channels, struct channel_end *end,
                                  const struct wire_message *message)
{
    struct channel *channel = end->channel;
    struct span data = message->fields[2].span;
    bool is_binary = message->fields[1].number != 0;
    if (end != &channel->writer || channel->granted == 0)
        return WEIR_INVALID;
    channel->granted--;
    if (!data.data)
        data = SPAN_LITERAL("");
    if (channel->queue_messages == 0 && channel_may_deliver(channels, channel)) {
        channel_deliver(channels, channel, is_binary, data);
    } else if (channel_queue(channels, channel, is_binary, data) != WEIR_OK) {
        channels->counters->channels_dropped++;
        channel_end_all(channels, channel); /* a gap would be worse than the end */
        return WEIR_OK;
    }
    channel_grant(channels, channel);
    return WEIR_OK;
}

static void take_closed(struct channels *channels, struct channel_end *end, uint64_t now_ms)
{
    struct channel *channel = end->channel;
    bool is_reader = end == &channel->reader;
    end_forget(channels, end);
    channel->unused_since_ms = now_ms;
    if (is_reader) {
        channel_end_all(channels, channel);
        return;
    }
    channel->is_finished = true;
    (void)channel_pump(channels, channel);
}

enum weir_status channels_take(struct channels *channels, struct peer_handle peer,
                               const struct wire_message *message, uint64_t now_ms)
{
    if (message->type == WIRE_CHANNEL_OPEN)
        return take_open(channels, peer, message);
    struct channel_end *end = end_find(channels, peer, message->fields[0].number);
    if (!end)
        return WEIR_OK; /* it has crossed a close */
    struct channel *channel = end->channel;
    switch (message->type) {
    case WIRE_CHANNEL_DATA:
        return take_data(channels, end, message);
    case WIRE_CHANNEL_CREDIT:
        if (end != &channel->reader ||
            message->fields[1].number > READER_CREDITS_MAX - channel->reader_credits)
            return WEIR_INVALID;
        channel->reader_credits += message->fields[1].number;
        (void)channel_pump(channels, channel);
        return WEIR_OK;
    case WIRE_CHANNEL_CLOSED:
        take_closed(channels, end, now_ms);
        return WEIR_OK;
    default:
        return WEIR_INVALID;
    }
}

/* ---- ends of others ---- */

/* Every channel for which `is_over` holds; bounded by CHANNELS_MAX. */
static void channels_end_where(struct channels *channels,
                               bool (*is_over)(const struct channel *channel, const void *context),
                               const void *context)
{
    size_t bucket = 0;
    struct table_node *node = table_walk(&channels->channels, &bucket, NULL);
    while (node) {
        struct table_node *next = table_walk(&channels->channels, &bucket, node);
        struct channel *channel = TABLE_OWNER(node, struct channel, node);
        if (is_over(channel, context))
            channel_end_all(channels, channel);
        node = next;
    }
}

void channels_session_gone(struct channels *channels, struct peer_handle peer, uint64_t session)
{
    struct channel_owner *owner;
    while ((owner = owner_find(channels, peer, session))) /* goes with the last of them */
        channel_end_all(channels, owner->first);
}

static bool is_of_peer(const struct channel *channel, const void *context)
{
    const struct peer_handle *gone = context;
    return peer_handle_equal(channel->owner->peer, *gone) ||
           (channel->reader.is_open && peer_handle_equal(channel->reader.peer, *gone)) ||
           (channel->writer.is_open && peer_handle_equal(channel->writer.peer, *gone));
}

void channels_peer_gone(struct channels *channels, struct peer_handle peer)
{
    channels_end_where(channels, is_of_peer, &peer);
}

static bool is_unused(const struct channel *channel, const void *context)
{
    const uint64_t *now_ms = context;
    return !channel->reader.is_open && !channel->writer.is_open &&
           *now_ms > channel->unused_since_ms + CHANNEL_UNUSED_MS_MAX;
}

/* Those whose writers were told to wait for want of room, and whose reader does not come by. */
static void channels_feed_starved(struct channels *channels)
{
    size_t bucket = 0;
    struct table_node *node = NULL;
    channels->is_starved = false;
    while ((node = table_walk(&channels->channels, &bucket, node)))
        channel_grant(channels, TABLE_OWNER(node, struct channel, node));
}

/* Each in line has one try; who is served and has more goes to the end of the line, so that all of a
 * gateway's readers get their turn. */
void channels_turn(struct channels *channels)
{
    struct channel *head = channels->blocked;
    bool is_head_served = false;
    for (uint64_t left = channels->blocked_count; left > 0; left--) {
        struct channel *channel = channels->blocked;
        uint64_t before = channel->queue_messages;
        channel_unblock(channels, channel);
        bool lives = channel_pump(channels, channel);
        if (channel == head)
            is_head_served = lives && channel->queue_messages < before;
    }
    if (is_head_served && channels->blocked == head) {
        channel_unblock(channels, head);
        channel_block(channels, head);
    }
}

void channels_tick(struct channels *channels, uint64_t now_ms)
{
    channels_end_where(channels, is_unused, &now_ms);
    if (channels->is_starved)
        channels_feed_starved(channels);
}

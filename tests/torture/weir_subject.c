/* weir-broker, or what speaks as it does: each lane is a gateway over the broker's socket; what it has
 * is read as gateways read it, from the mapped store and ring. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm/envelope.h"
#include "shm/store.h"
#include "shm/wire.h"
#include "tests/torture/subject.h"

#define STREAM "s"

enum { ATTACH_FDS = 3, EVENTS_BACK_MAX = 1 << 16, SNAPSHOT_TRIES = 100 };

struct weir_own {
    struct wire_reader *wire[WORLD_LANES];
    uint64_t origin[WORLD_LANES];
    bool is_attached;
    struct segment segment;
    struct reader reader;
    struct ring_reader ring;
    struct store_reader *store;
    uint64_t group_hashes[WORLD_GROUPS];
    struct buffer text;
};

static bool weir_open(struct subject *subject)
{
    struct weir_own *own = calloc(1, sizeof *own);
    subject->own = own;
    if (!own)
        return false;
    buffer_init(&own->text, ANSWER_BYTES_MAX);
    for (unsigned lane = 0; lane < WORLD_LANES; lane++) {
        subject->lanes[lane].fd = -1;
        own->wire[lane] = wire_reader_open();
        if (!own->wire[lane])
            return false;
    }
    return access(subject->program, X_OK) == 0;
}

static void weir_disconnect(struct subject *subject)
{
    struct weir_own *own = subject->own;
    for (unsigned lane = 0; lane < WORLD_LANES; lane++)
        subject_lane_close(&subject->lanes[lane]);
    if (!own->is_attached)
        return;
    store_reader_close(own->store);
    reader_detach(&own->reader);
    segment_close(&own->segment);
    own->is_attached = false;
}

static void weir_close(struct subject *subject)
{
    struct weir_own *own = subject->own;
    if (!own)
        return;
    weir_disconnect(subject);
    for (unsigned lane = 0; lane < WORLD_LANES; lane++) {
        wire_reader_close(own->wire[lane]);
        buffer_fini(&subject->lanes[lane].in);
        buffer_fini(&subject->lanes[lane].out);
    }
    buffer_fini(&own->text);
    free(own);
    subject->own = NULL;
}

/* ---- attaching ---- */

static bool weir_receive_attached(struct subject *subject, unsigned number, int fds[ATTACH_FDS],
                                  uint32_t *slot)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(ATTACH_FDS * sizeof(int))];
    } control;
    char frame[256];
    struct iovec part = {frame, sizeof frame};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct pollfd ready = {.fd = subject->lanes[number].fd, .events = POLLIN};
    if (poll(&ready, 1, CHILD_WAIT_MS) != 1)
        return false;
    ssize_t got = recvmsg(subject->lanes[number].fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!header || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(ATTACH_FDS * sizeof(int)))
        return false;
    memcpy(fds, CMSG_DATA(header), ATTACH_FDS * sizeof(int));
    struct weir_own *own = subject->own;
    struct wire_message attached;
    size_t frame_bytes = 0;
    if (wire_read(own->wire[number], span_of(frame, (size_t)got), &attached, &frame_bytes) !=
            WEIR_OK ||
        attached.type != WIRE_ATTACHED)
        return false;
    *slot = (uint32_t)attached.fields[2].number;
    subject->may_ask_again = attached.fields[3].number == 1;
    /* What came behind it. */
    return buffer_append(&subject->lanes[number].in,
                         span_of(frame + frame_bytes, (size_t)got - frame_bytes)) == WEIR_OK;
}

static bool weir_map(struct weir_own *own, const int fds[ATTACH_FDS], uint32_t slot)
{
    if (segment_attach(&own->segment, fds[0], NULL) != WEIR_OK)
        return false;
    if (reader_attach(&own->reader, &own->segment, slot, fds[2], fds[1], NULL) != WEIR_OK ||
        ring_reader_attach(&own->ring, &own->segment) != WEIR_OK)
        return false;
    own->store = store_reader_open(&own->segment, &own->reader);
    if (!own->store)
        return false;
    own->is_attached = true;
    char name[WORLD_NAME_BYTES];
    for (unsigned group = 0; group < WORLD_GROUPS; group++) {
        world_group_name(group / WORLD_LANE_GROUPS, group % WORLD_LANE_GROUPS, name);
        own->group_hashes[group] = store_group_hash(segment_hash_seed(&own->segment),
                                                    SPAN_LITERAL(STREAM), span_text(name));
    }
    return true;
}

static bool weir_connect(struct subject *subject)
{
    struct weir_own *own = subject->own;
    char path[SUBJECT_PATH_BYTES + 32];
    (void)snprintf(path, sizeof path, "%s/run/broker.sock", subject->scratch);
    for (unsigned number = 0; number < WORLD_LANES; number++) {
        struct subject_lane *lane = &subject->lanes[number];
        wire_reader_close(own->wire[number]);
        own->wire[number] = wire_reader_open();
        if (own->origin[number] == 0)
            own->origin[number] = (uint64_t)getpid() << 32 | (number + 1);
        const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                            WIRE_NUMBER((uint64_t)getpid()),
                                            WIRE_NUMBER(number),
                                            WIRE_NUMBER(0),
                                            WIRE_NUMBER(own->origin[number]),
                                            WIRE_NUMBER(0)};
        int fds[ATTACH_FDS];
        uint32_t slot = 0;
        if (!own->wire[number] || !subject_lane_open(lane, path) ||
            wire_append(&lane->out, WIRE_ATTACH, 0, fields) != WEIR_OK ||
            !subject_lane_flush(lane) || !weir_receive_attached(subject, number, fds, &slot))
            return false;
        if (number == 0) {
            if (!weir_map(own, fds, slot))
                return false;
            continue;
        }
        for (unsigned index = 0; index < ATTACH_FDS; index++)
            (void)close(fds[index]);
    }
    return true;
}

static enum subject_start weir_start(struct subject *subject, const char *fault)
{
    char run_dir[SUBJECT_PATH_BYTES + 16], log[SUBJECT_PATH_BYTES + 16],
        data_dir[SUBJECT_PATH_BYTES + 16], boot[16];
    char *argv[SUBJECT_ARGUMENTS_MAX + 16];
    unsigned count = 0;
    (void)snprintf(run_dir, sizeof run_dir, "run_dir=%s/run", subject->scratch);
    (void)snprintf(data_dir, sizeof data_dir, "data_dir=%s", subject->directory);
    (void)snprintf(log, sizeof log, "%s/server.log", subject->scratch);
    argv[count++] = subject->program;
    if (fault) {
        argv[count++] = "--fault";
        argv[count++] = (char *)fault;
    }
    (void)snprintf(boot, sizeof boot, "boot %u", subject->boot);
    argv[count++] = "--boot";
    argv[count++] = boot;
    argv[count++] = "--set";
    argv[count++] = run_dir;
    argv[count++] = "--set";
    argv[count++] = data_dir;
    for (unsigned index = 0; subject->extra[index]; index++)
        argv[count++] = subject->extra[index];
    argv[count++] = "--ready-fd";
    argv[count++] = "3";
    argv[count] = NULL;

    bool is_running = child_start(&subject->child, log, argv) && child_is_ready(&subject->child) &&
                      weir_connect(subject);
    if (is_running)
        return SUBJECT_READY;
    weir_disconnect(subject);
    /* It may be about to end by itself, or sit there: the wait decides. */
    bool has_ended = child_wait(&subject->child);
    return has_ended && child_was_killed(&subject->child) ? SUBJECT_STRUCK : SUBJECT_REFUSED;
}

/* ---- asking ---- */

static bool weir_put(struct subject *subject, struct world *world, unsigned number,
                     const struct world_request *request)
{
    static const enum wire_op ops[] = {[WORLD_SET] = WIRE_OP_SET,
                                       [WORLD_DELETE] = WIRE_OP_DELETE,
                                       [WORLD_COUNT] = WIRE_OP_UPDATE,
                                       [WORLD_SEND] = WIRE_OP_SEND};
    char group[WORLD_NAME_BYTES], item[WORLD_NAME_BYTES];
    world_group_name(number, request->group, group);
    world_item_name(request->item, item);
    struct span data = {0};
    if (request->kind == WORLD_SET || request->kind == WORLD_SEND)
        data = world_value(world, request->token);
    else if (request->kind == WORLD_COUNT)
        data = SPAN_LITERAL("[{\"type\":\"increment\",\"path\":\"n\",\"by\":1}]");
    const struct wire_field fields[8] = {
        WIRE_NUMBER(ops[request->kind]),
        WIRE_SPAN(SPAN_LITERAL(STREAM)),
        WIRE_SPAN(span_text(group)),
        request->kind == WORLD_SEND ? WIRE_NIL : WIRE_SPAN(span_text(item)),
        request->kind == WORLD_SEND ? WIRE_SPAN(SPAN_LITERAL("t")) : WIRE_NIL,
        data.data ? WIRE_SPAN(data) : WIRE_NIL,
    };
    return wire_append(&subject->lanes[number].out, WIRE_STREAM, request->token, fields) == WEIR_OK;
}

static enum weir_status weir_take_message(struct subject *subject, unsigned number,
                                          struct wire_message *message)
{
    struct subject_lane *lane = &subject->lanes[number];
    struct weir_own *own = subject->own;
    size_t frame_bytes = 0;
    enum weir_status status =
        wire_read(own->wire[number], subject_lane_input(lane), message, &frame_bytes);
    if (status == WEIR_OK)
        lane->in_taken += frame_bytes;
    return status;
}

static enum weir_status weir_take(struct subject *subject, unsigned number,
                                  struct subject_answer *answer)
{
    struct wire_message message;
    for (;;) {
        enum weir_status status = weir_take_message(subject, number, &message);
        if (status != WEIR_OK)
            return status;
        if (message.type == WIRE_STREAM_RESULT)
            break;
    }
    *answer = (struct subject_answer){.token = message.id,
                                      .is_acknowledged = message.fields[0].span.data == NULL &&
                                                         message.fields[3].span.data == NULL};
    if (!answer->is_acknowledged)
        (void)snprintf(answer->text, sizeof answer->text, "%.*s: %.*s",
                       (int)message.fields[0].span.bytes,
                       message.fields[0].span.data ? message.fields[0].span.data : "",
                       (int)message.fields[1].span.bytes,
                       message.fields[1].span.data ? message.fields[1].span.data : "");
    return WEIR_OK;
}

/* ---- looking ---- */

static bool event_of_record(struct world *world, const struct ring_record *record,
                            const char *bytes, struct seen_event *event)
{
    struct span id = record->id_bytes == UINT32_MAX
                         ? (struct span){0}
                         : span_of(bytes + record->frame_bytes, record->id_bytes);
    *event = (struct seen_event){
        .seq = record->seq, .epoch = record->epoch, .stamp = record->timestamp_ms};
    unsigned item = WORLD_ITEMS;
    if (id.data) {
        if (id.bytes != 3 || id.data[0] != 'i')
            return false;
        item = (unsigned)(id.data[1] - '0') * 10 + (unsigned)(id.data[2] - '0');
        if (item >= WORLD_ITEMS)
            return false;
    }
    event->item = (uint8_t)(id.data ? item : 0);
    switch (record->kind) {
    case ENVELOPE_CREATE:
    case ENVELOPE_UPDATE:
        event->kind = item < WORLD_COUNTERS ? WORLD_COUNT : WORLD_SET;
        break;
    case ENVELOPE_DELETE:
        event->kind = WORLD_DELETE;
        break;
    case ENVELOPE_EVENT:
        event->kind = WORLD_SEND;
        break;
    default:
        return false;
    }
    if (record->data_offset > record->frame_bytes ||
        record->data_bytes > record->frame_bytes - record->data_offset)
        return false;
    event->word = world_word(world, item, span_of(bytes + record->data_offset, record->data_bytes));
    return true;
}

/* The group's events from the newest backwards, as far as the ring has them, turned round. */
static bool weir_observe_events(struct weir_own *own, struct world *world, uint64_t newest,
                                struct seen *seen, struct seen_group *group)
{
    group->event_first = seen->event_count;
    uint64_t position = newest;
    for (unsigned count = 0; count < EVENTS_BACK_MAX && position != RING_NO_POSITION; count++) {
        struct ring_record record;
        struct seen_event event;
        buffer_clear(&own->text);
        enum weir_status status = ring_read_at(&own->ring, position, &record, &own->text);
        if (status == WEIR_LAPPED || status == WEIR_EMPTY)
            break;
        if (status != WEIR_OK) {
            (void)snprintf(seen->problem, sizeof seen->problem, "ring_read_at: %s",
                           weir_status_text(status));
            return false;
        }
        if (!event_of_record(world, &record, own->text.data, &event)) {
            (void)snprintf(seen->problem, sizeof seen->problem,
                           "an event of kind %u nobody asked for", record.kind);
            return false;
        }
        if (!seen_add_event(seen, &event))
            return false;
        position = record.previous_position;
    }
    group->event_count = seen->event_count - group->event_first;
    for (size_t low = 0, high = group->event_count; low + 1 < high; low++, high--) {
        struct seen_event *events = &seen->events[group->event_first];
        struct seen_event swap = events[low];
        events[low] = events[high - 1];
        events[high - 1] = swap;
    }
    return true;
}

static bool weir_observe_group(struct weir_own *own, struct world *world, unsigned number,
                               struct seen *seen)
{
    char group_name[WORLD_NAME_BYTES], item_name[WORLD_NAME_BYTES];
    struct seen_group *group = &seen->groups[number];
    struct store_group state;
    world_group_name(number / WORLD_LANE_GROUPS, number % WORLD_LANE_GROUPS, group_name);
    enum weir_status status =
        store_read_group(own->store, SPAN_LITERAL(STREAM), span_text(group_name), &state);
    if (status == WEIR_EMPTY)
        return true;
    if (status != WEIR_OK) {
        (void)snprintf(seen->problem, sizeof seen->problem, "store_read_group: %s",
                       weir_status_text(status));
        return false;
    }
    group->seq = state.seq;
    group->epoch = state.epoch;
    group->stamp = state.timestamp_ms;
    group->item_count = state.item_count;
    for (unsigned item = 0; item < WORLD_ITEMS; item++) {
        world_item_name(item, item_name);
        const struct store_key key = {SPAN_LITERAL(STREAM), span_text(group_name),
                                      span_text(item_name)};
        buffer_clear(&own->text);
        status = store_read_item(own->store, &key, &own->text);
        if (status == WEIR_OK) {
            group->words[item] = world_word(world, item, buffer_span(&own->text));
        } else if (status != WEIR_EMPTY) {
            (void)snprintf(seen->problem, sizeof seen->problem, "store_read_item: %s",
                           weir_status_text(status));
            return false;
        }
    }
    return weir_observe_events(own, world, state.newest_position, seen, group);
}

/* Groups that are listed are those with items, and no others. */
static void weir_observe_strangers(struct weir_own *own, struct seen *seen)
{
    char due[64 + WORLD_GROUPS * 8];
    size_t used = 0;
    char name[WORLD_NAME_BYTES];
    for (unsigned group = 0; group < WORLD_GROUPS; group++) {
        if (seen->groups[group].item_count == 0)
            continue;
        world_group_name(group / WORLD_LANE_GROUPS, group % WORLD_LANE_GROUPS, name);
        used += (size_t)snprintf(
            due + used, sizeof due - used, "%s\"%s\"",
            used == 0 ? "{\"stream\":[{\"id\":\"" STREAM "\",\"groups\":[" : ",", name);
    }
    used += (size_t)snprintf(due + used, sizeof due - used, "%s",
                             used == 0 ? "{\"stream\":[],\"count\":0}" : "]}],\"count\":1}");
    buffer_clear(&own->text);
    if (store_list_all(own->store, &own->text) != WEIR_OK)
        (void)snprintf(seen->problem, sizeof seen->problem, "store_list_all failed");
    else if (!span_equal(buffer_span(&own->text), span_of(due, used)))
        seen->strangers++;
}

static void weir_observe(struct subject *subject, struct world *world, struct seen *seen)
{
    struct weir_own *own = subject->own;
    if (!own->is_attached) {
        (void)snprintf(seen->problem, sizeof seen->problem, "not attached");
        return;
    }
    for (unsigned group = 0; group < WORLD_GROUPS; group++)
        if (!weir_observe_group(own, world, group, seen))
            return;
    weir_observe_strangers(own, seen);
}

/* The segment outlives the broker that made it. */
static void weir_shown(struct subject *subject, struct world *world, struct seen *seen)
{
    struct weir_own *own = subject->own;
    (void)world;
    while (own->is_attached) {
        struct ring_record record;
        buffer_clear(&own->text);
        enum weir_status status = ring_read(&own->ring, &record, &own->text);
        if (status == WEIR_LAPPED)
            continue;
        if (status != WEIR_OK)
            return;
        for (unsigned group = 0; group < WORLD_GROUPS; group++) {
            if (own->group_hashes[group] != record.group_hash)
                continue;
            seen->groups[group].shown_seq = record.seq;
            seen->groups[group].shown_epoch = record.epoch;
        }
    }
}

/* ---- reading while writes are refused ---- */

/* As a gateway answers a get: from the mapped store. */
static bool weir_read_one(struct subject *subject, struct world *world, char why[160])
{
    struct weir_own *own = subject->own;
    /* An item that was there at the last check and nobody has asked to change since: its value is
     * known. */
    for (unsigned tries = 0; tries < 64; tries++) {
        unsigned number = (unsigned)world_below(world, WORLD_LANES);
        unsigned group = (unsigned)world_below(world, WORLD_LANE_GROUPS);
        unsigned item = (unsigned)world_below(world, WORLD_ITEMS);
        const struct world_lane *lane = &world->lanes[number];
        uint64_t word = lane->state.words[group][item];
        bool is_touched = word == WORLD_ABSENT;
        for (size_t index = 0; index < lane->count && !is_touched; index++)
            is_touched = lane->requests[index].group == group && lane->requests[index].item == item;
        if (is_touched)
            continue;
        char group_name[WORLD_NAME_BYTES], item_name[WORLD_NAME_BYTES];
        world_group_name(number, group, group_name);
        world_item_name(item, item_name);
        const struct store_key key = {SPAN_LITERAL(STREAM), span_text(group_name),
                                      span_text(item_name)};
        buffer_clear(&own->text);
        enum weir_status status = store_read_item(own->store, &key, &own->text);
        if (status == WEIR_OK && world_word(world, item, buffer_span(&own->text)) == word)
            return true;
        (void)snprintf(why, 160, "%s/%s could not be read: %s", group_name, item_name,
                       status == WEIR_OK ? "another value" : weir_status_text(status));
        return false;
    }
    return true; /* everything was touched */
}

const struct subject_kind subject_weir = {
    .name = "weir",
    .has_seq = true,
    .open = weir_open,
    .close = weir_close,
    .start = weir_start,
    .put = weir_put,
    .take = weir_take,
    .observe = weir_observe,
    .shown = weir_shown,
    .read_one = weir_read_one,
    .disconnect = weir_disconnect,
};

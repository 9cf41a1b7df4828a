#include "gateway/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    RECEIVE_BYTES = 256 * 1024,
    RECEIVES_PER_CALLBACK = 8,
    FDS_IN_FLIGHT_MAX =
        8, /* room for more than the three expected, so that unexpected ones can be closed */
    BACKOFF_FIRST_MS = 5,
    BACKOFF_MAX_MS = 250,
    ATTACH_TIMEOUT_MS = 5000,
    DRAIN_AGAIN_MS = 1,
    RESPONSIVE_MS = 1000,
    SLOT_NONE = -1,
};

enum link_state { LINK_AWAY, LINK_ATTACHING, LINK_ATTACHED };

/* id = generation << 32 | slot, so that a late answer never meets another question in the same slot. */
struct link_slot {
    struct link_request *request;
    uint32_t generation;
    int32_t next_free;
};

struct link {
    uv_loop_t *loop;
    struct link_options options; /* its path is our copy */
    struct link_handlers handlers;
    struct counters *counters;
    enum link_state state;
    int fd;
    uv_poll_t *poll; /* one per connection: libuv closes handles later */
    bool wants_write;
    uv_timer_t timer; /* back-off, and the time limit of an attach */
    bool closing;
    uint64_t backoff_ms;
    bool complained;            /* one log line per absence */
    uint64_t broker_generation; /* of the broker last attached to */
    uint64_t floor_ms;
    struct wire_reader *reader;
    struct buffer input;
    struct buffer output; /* starts with a whole frame, though some of it may be sent */
    size_t output_sent;
    struct buffer waiting; /* encoded questions while away, in order */
    size_t waiting_start;
    size_t waiting_sent_bytes; /* of them, those of questions that were sent before */
    struct link_request *waiting_first, *waiting_last;
    struct link_request *in_flight, **in_flight_end; /* stream questions, oldest first */
    struct buffer kept; /* their frames, in that order; what is before the oldest is done with */
    uint64_t kept_position; /* bytes that were before the first one of `kept` */
    uint64_t origin;        /* which life of a gateway asks: ids mean nothing without it */
    uint64_t ticked_ms;
    int fds[MAPPING_FDS];
    unsigned fd_count;
    struct link_slot *slots;
    uint32_t slot_count;
    int32_t free_slot;
};

static void link_connect(struct link *link);

/* ---- question slots ---- */

static enum weir_status link_take_slot(struct link *link, struct link_request *request)
{
    if (link->free_slot == SLOT_NONE) {
        if (link->slot_count >= LINK_REQUESTS_MAX)
            return WEIR_FULL;
        uint32_t count = link->slot_count == 0 ? 256 : link->slot_count * 2;
        struct link_slot *slots = realloc(link->slots, count * sizeof *slots);
        if (slots == NULL)
            return WEIR_NO_MEMORY;
        link->slots = slots;
        for (uint32_t i = count; i-- > link->slot_count;) {
            slots[i] = (struct link_slot){.generation = 1, .next_free = link->free_slot};
            link->free_slot = (int32_t)i;
        }
        link->slot_count = count;
    }
    int32_t index = link->free_slot;
    struct link_slot *slot = &link->slots[index];
    link->free_slot = slot->next_free;
    slot->request = request;
    request->id = (uint64_t)slot->generation << 32 | (uint32_t)index;
    return WEIR_OK;
}

static struct link_request *link_find_request(const struct link *link, uint64_t id)
{
    uint32_t index = (uint32_t)id;
    if (index >= link->slot_count || link->slots[index].generation != (uint32_t)(id >> 32))
        return NULL;
    return link->slots[index].request;
}

/* ---- frames that are kept ---- */

static uint64_t link_kept_end(const struct link *link)
{
    return link->kept_position + link->kept.bytes;
}

/* Where the kept frames of questions in flight begin. */
static uint64_t link_kept_start(const struct link *link)
{
    return link->in_flight == NULL ? link_kept_end(link) : link->in_flight->kept_at;
}

/* Of a question that goes into flight as the last one; when there is no room it simply is not kept. */
static void link_keep_frame(struct link *link, struct link_request *request, struct span frame)
{
    uint64_t end = link_kept_end(link);
    uint64_t room = link->options.wait_bytes_max - (end - link_kept_start(link));
    request->kept_at = end;
    request->is_kept = frame.bytes <= room && buffer_append(&link->kept, frame) == WEIR_OK;
}

static struct span link_kept_frame(const struct link *link, const struct link_request *request)
{
    return span_of(link->kept.data + (request->kept_at - link->kept_position),
                   request->frame_bytes);
}

/* Each byte is moved once at most for every byte that goes. */
static void link_trim_kept(struct link *link)
{
    size_t done = (size_t)(link_kept_start(link) - link->kept_position);
    if (done < link->kept.bytes && done <= link->kept.bytes / 2)
        return;
    buffer_consume(&link->kept, done);
    link->kept_position += done;
}

/* ---- stream questions in flight ---- */

static void link_take_off(struct link *link, struct link_request *request, struct span frame)
{
    link_keep_frame(link, request, frame);
    request->asked_ms = uv_now(link->loop);
    request->next_in_flight = NULL;
    request->link_in_flight = link->in_flight_end;
    *link->in_flight_end = request;
    link->in_flight_end = &request->next_in_flight;
}

static void link_land(struct link *link, struct link_request *request)
{
    if (request->link_in_flight == NULL)
        return;
    *request->link_in_flight = request->next_in_flight;
    if (request->next_in_flight != NULL)
        request->next_in_flight->link_in_flight = request->link_in_flight;
    else
        link->in_flight_end = request->link_in_flight;
    request->link_in_flight = NULL;
    link_trim_kept(link);
}

static struct link_request *link_free_slot(struct link *link, uint64_t id)
{
    struct link_request *request = link_find_request(link, id);
    if (request == NULL)
        return NULL;
    link_land(link, request);
    uint32_t index = (uint32_t)id;
    struct link_slot *slot = &link->slots[index];
    slot->request = NULL;
    slot->generation++;
    if (slot->generation == 0)
        slot->generation = 1;
    slot->next_free = link->free_slot;
    link->free_slot = (int32_t)index;
    return request;
}

/* ---- going away ---- */

static void on_poll_closed(uv_handle_t *handle)
{
    free(handle);
}

static void link_close_fds(struct link *link)
{
    for (unsigned i = 0; i < link->fd_count; i++)
        (void)close(link->fds[i]);
    link->fd_count = 0;
}

static void on_timer(uv_timer_t *timer);

static void link_retry_later(struct link *link)
{
    if (link->closing)
        return;
    (void)uv_timer_start(&link->timer, on_timer, link->backoff_ms, 0);
    link->backoff_ms *= 2;
    if (link->backoff_ms > BACKOFF_MAX_MS)
        link->backoff_ms = BACKOFF_MAX_MS;
}

static void link_disconnect(struct link *link)
{
    if (link->poll != NULL) {
        (void)uv_poll_stop(link->poll);
        uv_close((uv_handle_t *)link->poll, on_poll_closed);
        link->poll = NULL;
    }
    if (link->fd >= 0)
        (void)close(link->fd);
    link->fd = -1;
    link->wants_write = false;
    link_close_fds(link);
    buffer_clear(&link->input);
    buffer_clear(&link->output);
    link->output_sent = 0;
}

static void request_fail(struct link *link, struct link_request *request, bool is_lost)
{
    counters_add(link->counters, is_lost ? COUNTER_CALLS_LOST : COUNTER_CALLS_EXPIRED, 1);
    request->done(request, is_lost ? LINK_LOST : LINK_EXPIRED, NULL);
}

/* ---- what waits for the next broker ---- */

static uint64_t link_deadline_ms(const struct link *link)
{
    return uv_now(link->loop) + link->options.wait_ms + 1;
}

/* Perhaps it was applied by a broker that has gone. */
static bool request_is_in_doubt(const struct link_request *request)
{
    return request->is_sent && !request->is_read;
}

/* Room for one that was not sent; those that were have theirs beside. */
static bool link_has_room(const struct link *link, size_t frame_bytes)
{
    size_t used = link->waiting.bytes - link->waiting_start - link->waiting_sent_bytes;
    return frame_bytes <= link->options.wait_bytes_max &&
           used <= link->options.wait_bytes_max - frame_bytes;
}

/* Its frame is the last one of those that wait. The list ends in order, so nobody's deadline is before
 * that of the one before it. */
static void link_wait(struct link *link, struct link_request *request)
{
    link_land(link, request);
    request->is_waiting = true;
    if (request->is_sent)
        link->waiting_sent_bytes += request->frame_bytes;
    if (request->deadline_ms == 0)
        request->deadline_ms = link_deadline_ms(link);
    if (link->waiting_last != NULL && request->deadline_ms < link->waiting_last->deadline_ms)
        request->deadline_ms = link->waiting_last->deadline_ms;
    request->next = NULL;
    if (link->waiting_last == NULL)
        link->waiting_first = request;
    else
        link->waiting_last->next = request;
    link->waiting_last = request;
}

/* What link_ask() is used for; everything else is announced again or has lost its meaning. */
static bool type_is_question(enum wire_type type)
{
    return type == WIRE_STREAM || type == WIRE_CALL || type == WIRE_SESSION_REATTACH ||
           type == WIRE_CHANNEL_OPEN;
}

/* Start of the last frame of the output that the socket has taken bytes of, or the end of what it
 * has taken. */
static size_t link_output_boundary(const struct link *link)
{
    size_t boundary = 0;
    while (boundary <
           link->output_sent) { /* each turn passes a frame; the output starts with one */
        struct wire_message message;
        size_t frame_bytes = 0;
        struct span length = span_of(link->output.data + boundary, sizeof(uint32_t));
        enum weir_status status = wire_read(link->reader, length, &message, &frame_bytes);
        weir_assert(status == WEIR_EMPTY); /* the length alone is no frame, but tells its size */
        weir_assert(frame_bytes > 0);
        if (frame_bytes > link->output_sent - boundary)
            break;
        boundary += frame_bytes;
    }
    return boundary;
}

static void on_stand_in_done(struct link_request *request, enum link_fate fate,
                             const struct wire_message *answer)
{
    (void)fate;
    (void)answer;
    free(request);
}

/* A void question was done when it was put into the output: something else has to stand for it
 * while it waits. */
static struct link_request *link_make_stand_in(void)
{
    struct link_request *request = calloc(1, sizeof *request);
    if (request != NULL) {
        request->is_void = true;
        request->done = on_stand_in_done;
    }
    return request;
}

static void link_keep_question(struct link *link, uint64_t id, struct span frame)
{
    struct link_request *request = id == 0 ? link_make_stand_in() : link_find_request(link, id);
    if (request != NULL && (request->is_sent || link_has_room(link, frame.bytes)) &&
        buffer_append(&link->waiting, frame) == WEIR_OK) {
        request->frame_bytes = frame.bytes;
        link_wait(link, request);
        return;
    }
    if (id != 0 && request != NULL) {
        request->is_unsent = true;
        return;
    }
    counters_add(link->counters, COUNTER_CALLS_EXPIRED, 1);
    free(request);
}

/* The frame of the output at `offset`. */
static struct span link_output_frame(struct link *link, size_t offset, struct wire_message *message)
{
    size_t frame_bytes = 0;
    struct span rest = span_of(link->output.data + offset, link->output.bytes - offset);
    enum weir_status status = wire_read(link->reader, rest, message, &frame_bytes);
    weir_assert(status == WEIR_OK); /* we wrote it */
    return span_of(rest.data, frame_bytes);
}

/* The first stream question in flight whose frame is in the output from `offset` on; NULL: none. */
static const struct link_request *link_first_unsent(struct link *link, size_t offset)
{
    while (offset < link->output.bytes) { /* each turn passes a frame */
        struct wire_message message;
        offset += link_output_frame(link, offset, &message).bytes;
        const struct link_request *request =
            message.type == WIRE_STREAM ? link_find_request(link, message.id) : NULL;
        if (request != NULL && request->link_in_flight != NULL)
            return request;
    }
    return NULL;
}

/* Questions are in flight in the order of the output: those before `first_unsent` were sent. */
static void link_keep_sent(struct link *link, const struct link_request *first_unsent)
{
    struct link_request *request = link->in_flight, *next;
    for (; request != NULL && request != first_unsent; request = next) {
        next = request->next_in_flight;
        if (!request->is_kept ||
            buffer_append(&link->waiting, link_kept_frame(link, request)) != WEIR_OK)
            continue;
        request->is_sent = true;
        link_wait(link, request);
    }
}

/* The broker is gone: what it may have seen and can be asked again waits for the next one, and
 * behind that what it cannot have seen a byte of. */
static void link_keep_questions(struct link *link)
{
    size_t offset = link_output_boundary(link);
    struct wire_message message;
    if (offset < link->output_sent) /* begun */
        offset += link_output_frame(link, offset, &message).bytes;
    link_keep_sent(link, link_first_unsent(link, offset));
    while (offset < link->output.bytes) { /* each turn passes a frame */
        struct span frame = link_output_frame(link, offset, &message);
        if (type_is_question(message.type))
            link_keep_question(link, message.id, frame);
        offset += frame.bytes;
    }
}

/* Everything in flight is lost. Waiting questions have slots too: those kept, and those asked by a
 * done() of this very walk. */
static void link_lose_requests(struct link *link)
{
    for (uint32_t i = 0; i < link->slot_count; i++) {
        struct link_request *request = link->slots[i].request;
        if (request == NULL || request->is_waiting)
            continue;
        (void)link_free_slot(link, request->id);
        request_fail(link, request, !request->is_unsent || request_is_in_doubt(request));
    }
}

static void link_drop(struct link *link, const char *reason)
{
    bool was_attached = link->state == LINK_ATTACHED;
    if (was_attached)
        link_keep_questions(link);
    link_disconnect(link);
    link->state = LINK_AWAY;
    if (was_attached || !link->complained)
        (void)fprintf(stderr, "weir-gateway: event=broker_away reason=\"%s\"\n", reason);
    link->complained = true;
    if (was_attached) {
        counters_add(link->counters, COUNTER_LINK_LOST, 1);
        link->backoff_ms = BACKOFF_FIRST_MS;
        link->handlers.on_lost(link->handlers.context);
        link_lose_requests(link);
    }
    link_retry_later(link);
}

/* ---- output ---- */

static void link_update_poll(struct link *link);
static void link_receive(struct link *link);

/* What the broker said before it went is in the socket still. */
static void link_drop_unwritable(struct link *link)
{
    if (link->state == LINK_ATTACHED && !link->closing)
        link_receive(link);
    if (link->state != LINK_AWAY)
        link_drop(link, "send failed");
}

void link_flush(struct link *link)
{
    if (link->state == LINK_AWAY)
        return;
    while (link->output_sent < link->output.bytes) { /* ends: sends all, would block, or fails */
        ssize_t sent = send(link->fd, link->output.data + link->output_sent,
                            link->output.bytes - link->output_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (sent < 0) {
            link_drop_unwritable(link);
            return;
        }
        link->output_sent += (size_t)sent;
    }
    bool blocked = link->output_sent < link->output.bytes;
    if (!blocked) {
        buffer_clear(&link->output);
        link->output_sent = 0;
    } else if (link->output_sent > link->output.capacity_bytes / 2) {
        size_t boundary = link_output_boundary(link);
        buffer_consume(&link->output, boundary);
        link->output_sent -= boundary;
    }
    if (blocked != link->wants_write) {
        link->wants_write = blocked;
        link_update_poll(link);
    }
}

/* Answers that come late keep frames for longer: not when they are many. */
static uint32_t link_flags(const struct link *link, const struct link_request *request)
{
    bool has_room = link_kept_end(link) - link_kept_start(link) <= link->options.wait_bytes_max / 2;
    return request->is_unhurried && has_room ? WIRE_FLAG_UNHURRIED : 0;
}

static bool op_is_read(uint64_t op)
{
    return op == WIRE_OP_GET || op == WIRE_OP_LIST || op == WIRE_OP_LIST_GROUPS ||
           op == WIRE_OP_LIST_ALL;
}

enum weir_status link_ask(struct link *link, enum wire_type type, const struct wire_field *fields,
                          struct link_request *request)
{
    bool attached = link->state == LINK_ATTACHED;
    struct buffer *to = attached ? &link->output : &link->waiting;
    weir_assert(type_is_question(type));
    request->is_waiting = false;
    request->is_kept = false;
    request->is_sent = false;
    request->is_unsent = false;
    request->is_cancelled = false;
    request->is_timed = type == WIRE_STREAM && !request->is_void && !request->is_patient;
    request->is_read = request->is_timed && op_is_read(fields[0].number);
    request->deadline_ms = request->is_timed ? link_deadline_ms(link) : 0;
    request->link_in_flight = NULL;
    request->id = 0;
    enum weir_status status = link->closing ? WEIR_CLOSED : WEIR_OK;
    if (status != WEIR_OK)
        return status;
    if (!request->is_void)
        status = link_take_slot(link, request);
    if (status != WEIR_OK)
        return status;
    size_t before = to->bytes;
    status = wire_append_flagged(to, type, link_flags(link, request), request->id, fields);
    request->frame_bytes = to->bytes - before;
    to->bytes = before;
    if (status == WEIR_OK && !attached && !link_has_room(link, request->frame_bytes))
        status = WEIR_FULL;
    if (status != WEIR_OK) {
        if (!request->is_void)
            (void)link_free_slot(link, request->id);
        return status;
    }
    to->bytes += request->frame_bytes;
    if (!attached)
        link_wait(link, request);
    else if (request->is_timed)
        link_take_off(link, request, span_of(to->data + before, request->frame_bytes));
    else if (request->is_void)
        request->done(request, LINK_ANSWERED, NULL);
    return WEIR_OK;
}

/* Best effort: what the output has no room for costs the broker a slot until the executor goes. */
static void link_tell_cancelled(struct link *link, uint64_t id)
{
    const struct wire_field fields[] = {WIRE_NUMBER(0)};
    if (link->state == LINK_ATTACHED &&
        wire_append(&link->output, WIRE_CALL_CANCEL, id, fields) != WEIR_OK)
        counters_add(link->counters, COUNTER_POSTS_DROPPED, 1);
}

bool link_cancel_call(struct link *link, struct link_request *request)
{
    request->is_cancelled = request->is_waiting;
    if (request->is_waiting)
        return false;
    link_tell_cancelled(link, request->id);
    (void)link_free_slot(link, request->id);
    return true;
}

void link_post(struct link *link, enum wire_type type, uint64_t id, const struct wire_field *fields)
{
    if (link->state != LINK_ATTACHED) {
        counters_add(link->counters, COUNTER_POSTS_DROPPED, 1);
        return;
    }
    /* A notice must not get lost while attached: the broker's picture would stay wrong. Attaching
     * again repairs it. */
    if (wire_append(&link->output, type, id, fields) != WEIR_OK) {
        counters_add(link->counters, COUNTER_POSTS_DROPPED, 1);
        link_drop(link, "output queue is full");
    }
}

size_t link_backlog_bytes(const struct link *link)
{
    return link->output.bytes - link->output_sent;
}

bool link_is_responsive(const struct link *link)
{
    return link->in_flight == NULL ||
           uv_now(link->loop) - link->in_flight->asked_ms < RESPONSIVE_MS;
}

bool link_is_flowing(const struct link *link)
{
    return link->state == LINK_ATTACHED && !link->closing &&
           link->output.bytes - link->output_sent < LINK_BACKLOG_BYTES_MAX;
}

/* Answers that come later find their slot used by nobody or another question, and are passed over. */
static void link_expire_in_flight(struct link *link, uint64_t now)
{
    uint64_t limit_ms =
        link->options.wait_ms > RESPONSIVE_MS ? link->options.wait_ms : RESPONSIVE_MS;
    while (link->in_flight != NULL && now - link->in_flight->asked_ms > limit_ms) {
        struct link_request *request = link->in_flight;
        (void)link_free_slot(link, request->id);
        counters_add(link->counters, COUNTER_CALLS_LOST, 1);
        request->done(request, LINK_SILENT, NULL);
    }
}

void link_tick(struct link *link)
{
    uint64_t now = uv_now(link->loop);
    /* Was it this process that stood still? Then the answers may be in the socket: read first. */
    if (now - link->ticked_ms <= RESPONSIVE_MS)
        link_expire_in_flight(link, now);
    link->ticked_ms = now;
    while (link->waiting_first != NULL && link->waiting_first->deadline_ms <= now) {
        struct link_request *request = link->waiting_first;
        link->waiting_first = request->next;
        if (link->waiting_first == NULL)
            link->waiting_last = NULL;
        link->waiting_start += request->frame_bytes;
        if (request->is_sent)
            link->waiting_sent_bytes -= request->frame_bytes;
        if (link->waiting_first == NULL || link->waiting_start > link->waiting.bytes / 2) {
            buffer_consume(&link->waiting, link->waiting_start);
            link->waiting_start = 0;
        }
        if (!request->is_void)
            (void)link_free_slot(link, request->id);
        request->is_waiting = false;
        request_fail(link, request, request_is_in_doubt(request));
    }
}

/* It waited, and nobody will answer it. Its slot is free already. */
static void link_end_waiting(struct link *link, struct link_request *request)
{
    if (request->is_cancelled) { /* it has gone out, and is called off right behind */
        link_tell_cancelled(link, request->id);
        request->done(request, LINK_EXPIRED, NULL);
    } else if (request->is_void)
        request->done(request, LINK_ANSWERED, NULL);
    else
        request_fail(link, request, true);
}

/* Takes over the list of those that wait; returns those that are to be ended. `asks_again`: the broker
 * knows what those before it have done. */
static struct link_request *link_send_waiting(struct link *link, bool asks_again)
{
    size_t offset = link->waiting_start;
    struct link_request *ended = NULL, **ended_end = &ended, *next;
    for (struct link_request *request = link->waiting_first; request != NULL; request = next) {
        struct span frame = span_of(link->waiting.data + offset, request->frame_bytes);
        bool is_lost = request_is_in_doubt(request) && !asks_again;
        next = request->next;
        offset += frame.bytes;
        request->is_waiting = false;
        if (!is_lost) {
            memcpy(link->output.data + link->output.bytes, frame.data, frame.bytes);
            link->output.bytes += frame.bytes; /* the caller has made room */
        }
        if (request->is_timed && !is_lost) {
            counters_add(link->counters, COUNTER_CALLS_RESENT, request->is_sent);
            link_take_off(link, request, frame);
        } else if (is_lost || request->is_cancelled || request->is_void) {
            if (!request->is_void)
                (void)link_free_slot(link, request->id);
            *ended_end = request;
            ended_end = &request->next;
        }
    }
    *ended_end = NULL;
    link->waiting_first = link->waiting_last = NULL;
    return ended;
}

/* Attached again: what waited goes out in the order it was asked. */
static void link_release_waiting(struct link *link, bool asks_again)
{
    size_t bytes = link->waiting.bytes - link->waiting_start;
    if (bytes > 0 && buffer_reserve(&link->output, bytes) != WEIR_OK) {
        link_drop(link, "output queue is full");
        return;
    }
    struct link_request *ended = link_send_waiting(link, asks_again), *next;
    buffer_clear(&link->waiting);
    link->waiting_start = link->waiting_sent_bytes = 0;
    for (; ended != NULL; ended = next) { /* their done() may ask, or lose the broker again */
        next = ended->next;
        link_end_waiting(link, ended);
    }
}

/* ---- input ---- */

static void link_attached(struct link *link, const struct wire_message *message)
{
    struct weir_error error = {0};
    if (link->fd_count != MAPPING_FDS || message->fields[0].number != WIRE_VERSION ||
        message->fields[2].number >= READERS_MAX) {
        link_drop(link, "the broker's attach answer does not fit this version");
        return;
    }
    struct mapping *mapping = NULL;
    link->fd_count = 0;
    enum weir_status status =
        mapping_open(&mapping, (uint32_t)message->fields[2].number, link->fds, &error);
    if (status != WEIR_OK) {
        link_drop(link, error.text);
        return;
    }
    (void)uv_timer_stop(&link->timer);
    link->state = LINK_ATTACHED;
    link->backoff_ms = BACKOFF_FIRST_MS;
    link->complained = false;
    counters_add(link->counters, COUNTER_LINK_ATTACHED, 1);
    (void)fprintf(stderr, "weir-gateway: event=broker_attached generation=%llu slot=%u\n",
                  (unsigned long long)mapping->generation, mapping->reader.slot);
    const struct link_attachment attachment = {
        .mapping = mapping,
        .is_kept = message->fields[3].number == 1,
        .position = message->fields[4].number,
        .commit = message->fields[5].number,
    };
    /* A broker that only dropped the connection may have carried out what was in flight, and does not
     * know whose it was. */
    bool asks_again = attachment.is_kept && mapping->generation != link->broker_generation;
    link->broker_generation = mapping->generation;
    link->handlers.on_attached(link->handlers.context, &attachment);
    if (link->state == LINK_ATTACHED)
        link_release_waiting(link, asks_again);
}

static void link_dispatch(struct link *link, const struct wire_message *message)
{
    if (message->type == WIRE_REFUSED) {
        char reason[160];
        struct span text = message->fields[1].span;
        (void)snprintf(reason, sizeof reason, "refused: %.*s",
                       (int)(text.bytes > 120 ? 120 : text.bytes),
                       text.data == NULL ? "" : text.data);
        link->backoff_ms = BACKOFF_MAX_MS;
        link_drop(link, reason);
        return;
    }
    if (link->state == LINK_ATTACHING) {
        if (message->type == WIRE_ATTACHED)
            link_attached(link, message);
        else
            link_drop(link, "unexpected message before attach");
        return;
    }
    if (message->type == WIRE_STREAM_RESULT || message->type == WIRE_RESULT ||
        message->type == WIRE_SESSION_REATTACHED || message->type == WIRE_CHANNEL_OPENED) {
        struct link_request *request = link_free_slot(link, message->id);
        if (request != NULL)
            request->done(request, LINK_ANSWERED, message);
        return;
    }
    link->handlers.on_message(link->handlers.context, message);
}

/* Keep descriptors that belong to ATTACHED; close whatever else arrives. */
static void link_take_fds(struct link *link, struct msghdr *header)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL;
         part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (link->state == LINK_ATTACHING && link->fd_count < MAPPING_FDS)
                link->fds[link->fd_count++] = fd;
            else
                (void)close(fd);
        }
    }
}

/* Dispatch every whole frame; false when the connection is gone. */
static bool link_consume(struct link *link)
{
    size_t consumed = 0;
    int fd = link->fd;
    for (;;) { /* bounded by the input, which nobody else fills */
        struct span rest = span_of(link->input.data + consumed, link->input.bytes - consumed);
        struct wire_message message;
        size_t frame_bytes = 0;
        enum weir_status status = wire_read(link->reader, rest, &message, &frame_bytes);
        if (status == WEIR_EMPTY)
            break;
        if (status != WEIR_OK) {
            link_drop(link, wire_reader_problem(link->reader));
            return false;
        }
        consumed += frame_bytes;
        link_dispatch(link, &message);
        if (link->state == LINK_AWAY || link->fd != fd)
            return false;
    }
    buffer_consume(&link->input, consumed);
    return true;
}

static void link_receive(struct link *link)
{
    for (unsigned i = 0; i < RECEIVES_PER_CALLBACK; i++) {
        if (buffer_reserve(&link->input, RECEIVE_BYTES) != WEIR_OK) {
            link_drop(link, "no memory for the broker's messages");
            return;
        }
        union {
            char bytes[CMSG_SPACE(sizeof(int) * FDS_IN_FLIGHT_MAX)];
            struct cmsghdr aligned;
        } control;
        struct iovec part = {link->input.data + link->input.bytes, RECEIVE_BYTES};
        struct msghdr header = {.msg_iov = &part,
                                .msg_iovlen = 1,
                                .msg_control = control.bytes,
                                .msg_controllen = sizeof control.bytes};
        ssize_t got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got <= 0) {
            link_drop(link, got == 0 ? "the broker closed the connection" : "receive failed");
            return;
        }
        link_take_fds(link, &header);
        link->input.bytes += (size_t)got;
        if (!link_consume(link))
            return;
        if (got < RECEIVE_BYTES)
            return;
    }
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct link *link = poll->data;
    if (poll != link->poll)
        return;
    if (status < 0) {
        link_drop(link, uv_strerror(status));
        return;
    }
    if ((events & UV_WRITABLE) != 0)
        link_flush(link);
    if (link->poll == poll && (events & UV_READABLE) != 0)
        link_receive(link);
}

static void link_update_poll(struct link *link)
{
    if (link->poll != NULL)
        (void)uv_poll_start(link->poll, UV_READABLE | (link->wants_write ? UV_WRITABLE : 0),
                            on_poll);
}

/* ---- connecting ---- */

static enum weir_status link_start_attach(struct link *link, uint64_t commit)
{
    struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                  WIRE_NUMBER((uint64_t)getpid()),
                                  WIRE_NUMBER(link->options.gateway_index),
                                  WIRE_NUMBER(link->floor_ms == 0 ? 0 : link->floor_ms + 2),
                                  WIRE_NUMBER(link->origin),
                                  WIRE_NUMBER(commit)};
    link->poll = malloc(sizeof *link->poll);
    if (link->poll == NULL)
        return WEIR_NO_MEMORY;
    if (uv_poll_init(link->loop, link->poll, link->fd) != 0) {
        free(link->poll);
        link->poll = NULL;
        return WEIR_SYSTEM;
    }
    link->poll->data = link;
    link_update_poll(link);
    link->state = LINK_ATTACHING;
    return wire_append(&link->output, WIRE_ATTACH, 0, fields);
}

static void link_connect(struct link *link)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t commit = 0;
    if (link->handlers.on_attaching != NULL &&
        !link->handlers.on_attaching(link->handlers.context, &commit)) {
        (void)uv_timer_start(&link->timer, on_timer, DRAIN_AGAIN_MS, 0);
        return;
    }
    if (strlen(link->options.socket_path) >= sizeof address.sun_path) {
        link_drop(link, "the socket's path is too long");
        return;
    }
    memcpy(address.sun_path, link->options.socket_path, strlen(link->options.socket_path));
    link->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (link->fd < 0 || connect(link->fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        /* EAGAIN: the broker's backlog is full; a unix socket connects at once or not at all. */
        link_drop(link, strerror(errno));
        return;
    }
    int size = 4 * 1024 * 1024; /* fewer wake-ups for large values; the kernel may grant less */
    (void)setsockopt(link->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (link_start_attach(link, commit) != WEIR_OK) {
        link_drop(link, "no memory");
        return;
    }
    (void)uv_timer_start(&link->timer, on_timer, ATTACH_TIMEOUT_MS, 0);
    link_flush(link);
}

static void on_timer(uv_timer_t *timer)
{
    struct link *link = timer->data;
    if (link->state == LINK_ATTACHING)
        link_drop(link, "no answer to attach");
    else if (link->state == LINK_AWAY)
        link_connect(link);
}

/* ---- life ---- */

/* Never 0, which says that nobody asks. */
static uint64_t link_make_origin(void)
{
    uint64_t origin = 0;
    if (getrandom(&origin, sizeof origin, 0) != (ssize_t)sizeof origin)
        origin = uv_hrtime() ^ (uint64_t)getpid() << 40;
    return origin == 0 ? 1 : origin;
}

struct link *link_open(uv_loop_t *loop, const struct link_options *options,
                       const struct link_handlers *handlers, struct counters *counters)
{
    struct link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return NULL;
    link->reader = wire_reader_open();
    link->options = *options;
    link->options.socket_path = strdup(options->socket_path);
    if (link->reader == NULL || link->options.socket_path == NULL) {
        wire_reader_close(link->reader);
        free((void *)(uintptr_t)link->options.socket_path);
        free(link);
        return NULL;
    }
    link->loop = loop;
    link->handlers = *handlers;
    link->counters = counters;
    link->fd = -1;
    link->in_flight_end = &link->in_flight;
    link->ticked_ms = uv_now(loop);
    link->free_slot = SLOT_NONE;
    link->backoff_ms = BACKOFF_FIRST_MS;
    buffer_init(&link->input, (size_t)WIRE_FRAME_BYTES_MAX + 2 * RECEIVE_BYTES);
    link->origin = link_make_origin();
    /* Twice what is in use, for what is done with goes when it is half of it. */
    buffer_init(&link->kept, 2 * options->wait_bytes_max);
    buffer_init(&link->waiting, 4 * options->wait_bytes_max);
    buffer_init(&link->output, 3 * options->wait_bytes_max + WIRE_FRAME_BYTES_MAX);
    (void)uv_timer_init(loop, &link->timer);
    link->timer.data = link;
    link_connect(link);
    return link;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct link *link = handle->data;
    wire_reader_close(link->reader);
    buffer_fini(&link->input);
    buffer_fini(&link->kept);
    buffer_fini(&link->waiting);
    buffer_fini(&link->output);
    free((void *)(uintptr_t)link->options.socket_path);
    free(link->slots);
    free(link);
}

/* Nobody will answer; whoever asked may free what it keeps for that. */
static void link_give_up(struct link *link)
{
    struct link_request *request = link->waiting_first;
    link->waiting_first = link->waiting_last = NULL;
    while (request != NULL) {
        struct link_request *next = request->next;
        request->is_waiting = false;
        if (request->is_void)
            request->done(request, LINK_EXPIRED, NULL);
        request = next;
    }
    link_lose_requests(link);
}

void link_close(struct link *link)
{
    link->closing = true;
    link_flush(link);
    link_disconnect(link);
    link->state = LINK_AWAY;
    link_give_up(link);
    (void)uv_timer_stop(&link->timer);
    uv_close((uv_handle_t *)&link->timer, on_timer_closed);
}

bool link_is_attached(const struct link *link)
{
    return link->state == LINK_ATTACHED;
}

void link_raise_floor(struct link *link, uint64_t timestamp_ms)
{
    if (timestamp_ms > link->floor_ms)
        link->floor_ms = timestamp_ms;
}

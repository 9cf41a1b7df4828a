#include "gateway/sends.h"

#include <stdlib.h>

#include "gateway/event_stream.h"

enum { BLOCK_SENDS = 4096, BLOCKS_MAX = 4096, PIECES_MAX = 16 };

struct sends {
    struct subscriptions *subscriptions;
    struct outlet outlet;
    struct counters *counters;
    /* In blocks, for the outlet holds on to a send's address. */
    struct send *blocks[BLOCKS_MAX];
    unsigned block_count, count, pieces_max;
    uint64_t bytes;
    struct buffer
        copies; /* of one event, for a link that wants more of them than a send has pieces */
    /* Of the flush under way. */
    unsigned taken, busy, conflations;
    uint64_t taken_bytes, left_out;
};

struct sends *sends_open(struct subscriptions *subscriptions, const struct outlet *outlet,
                         struct counters *counters)
{
    struct sends *sends = calloc(1, sizeof *sends);
    if (sends == NULL)
        return NULL;
    sends->subscriptions = subscriptions;
    sends->outlet = *outlet;
    sends->counters = counters;
    buffer_init(&sends->copies, SIZE_MAX / 2);
    sends->pieces_max = outlet->frames_max < PIECES_MAX ? outlet->frames_max : PIECES_MAX;
    return sends;
}

void sends_close(struct sends *sends)
{
    if (sends == NULL)
        return;
    for (unsigned i = 0; i < sends->block_count; i++)
        free(sends->blocks[i]);
    buffer_fini(&sends->copies);
    free(sends);
}

static struct send *sends_at(const struct sends *sends, unsigned index)
{
    return &sends->blocks[index / BLOCK_SENDS][index % BLOCK_SENDS];
}

unsigned sends_count(const struct sends *sends)
{
    return sends->count;
}

uint64_t sends_bytes(const struct sends *sends)
{
    return sends->bytes;
}

static bool sends_grow(struct sends *sends)
{
    if (sends->block_count == BLOCKS_MAX)
        return false;
    struct send *block = malloc(BLOCK_SENDS * sizeof *block);
    if (block == NULL)
        return false;
    sends->blocks[sends->block_count++] = block;
    return true;
}

static struct send *sends_take(struct sends *sends)
{
    if (sends->count / BLOCK_SENDS == sends->block_count && !sends_grow(sends))
        return NULL;
    return sends_at(sends, sends->count++);
}

/* `send` is in the batch; its bytes are the frames'. */
static void sends_put(struct sends *sends, struct send *send, const struct iovec *frames,
                      unsigned frame_count)
{
    size_t bytes = frames[0].iov_len;
    for (unsigned i = 1; i < frame_count; i++)
        bytes += frames[i].iov_len;
    send->bytes = (uint32_t)bytes;
    sends->bytes += bytes;
    sends->outlet.add(sends->outlet.context, send->link->subscriber->connection, frames,
                      frame_count, send);
}

bool sends_add(struct sends *sends, const struct send *send, const struct iovec *frames,
               unsigned frame_count)
{
    struct send *own = sends_take(sends);
    if (own == NULL)
        return false;
    *own = *send;
    sends_put(sends, own, frames, frame_count);
    return true;
}

void sends_arrive(struct sends *sends, const struct send *send)
{
    struct subscriber_link *link = send->link;
    link->epoch = send->epoch;
    link->sent_seq = send->seq;
    link->conflated = send->conflated;
    link->conflated_left = send->conflated_left;
    if (send->then == SEND_LIVE)
        subscriptions_set_live(sends->subscriptions, link);
    else if (send->then == SEND_BEHIND)
        subscriptions_set_behind(sends->subscriptions, link);
}

static void on_sent(void *context, void *entry, enum weir_status status)
{
    struct sends *sends = context;
    const struct send *send = entry;
    if (status != WEIR_OK) {
        sends->busy++;
        subscriptions_block(sends->subscriptions, send->link);
        return;
    }
    sends->taken++;
    sends->taken_bytes += send->bytes;
    sends->conflations += send->begins_conflation;
    sends->left_out += send->left_out;
    sends_arrive(sends, send);
}

unsigned sends_flush(struct sends *sends)
{
    if (sends->count == 0)
        return 0;
    sends->taken = sends->busy = sends->conflations = 0;
    sends->taken_bytes = sends->left_out = 0;
    sends->outlet.flush(sends->outlet.context, on_sent, sends);
    sends->count = 0;
    sends->bytes = 0;
    buffer_clear(&sends->copies);
    counters_add(sends->counters, COUNTER_DELIVERIES, sends->taken);
    counters_add(sends->counters, COUNTER_DELIVERY_BYTES, sends->taken_bytes);
    counters_add(sends->counters, COUNTER_DELIVERIES_BUSY, sends->busy);
    counters_add(sends->counters, COUNTER_CONFLATIONS, sends->conflations);
    counters_add(sends->counters, COUNTER_EVENTS_CONFLATED, sends->left_out);
    return sends->taken;
}

/* ---- runs ---- */

static struct span run_piece(const struct run *run, unsigned format, uint32_t from, uint32_t to)
{
    const size_t *offsets = run->offsets[format];
    return span_of(run->bytes[format] + offsets[from], offsets[to] - offsets[from]);
}

/* Put the run for event streams, once. */
static bool run_lay_text(struct run *run)
{
    if (run->bytes[FORMAT_EVENT_STREAM] != NULL)
        return true;
    struct buffer *text = run->text;
    size_t start = text->bytes;
    if (start == 0 && buffer_reserve(text, run->text_room) != WEIR_OK)
        return false;
    const char *data = text->data;
    size_t *offsets = run->offsets[FORMAT_EVENT_STREAM];
    offsets[0] = 0;
    for (uint32_t i = 0; i < run->count; i++) {
        if (event_stream_append_frames(text, run_piece(run, FORMAT_WEBSOCKET, i, i + 1)) !=
            WEIR_OK) {
            text->bytes = start;
            return false;
        }
        offsets[i + 1] = text->bytes - start;
    }
    weir_assert(text->data == data);
    run->bytes[FORMAT_EVENT_STREAM] = text->data + start;
    return true;
}

static bool sends_add_all(struct sends *sends, const struct run *run, uint32_t start, uint32_t end,
                          struct subscriber_link *link, enum send_then then)
{
    struct send *send = sends_take(sends);
    if (send == NULL)
        return false;
    const struct run_event *last = &run->events[end - 1];
    send->link = link;
    send->epoch = last->epoch;
    send->seq = last->seq;
    send->conflated = send->conflated_left = send->left_out = 0;
    send->then = (uint8_t)then;
    send->begins_conflation = false;
    struct span piece = run_piece(run, link->subscriber->format, start, end);
    const struct iovec frames = {(void *)(uintptr_t)piece.data, piece.bytes};
    sends_put(sends, send, &frames, 1);
    return true;
}

/* More copies of one event than a send has pieces: one piece. False: not in this batch. */
static bool sends_copy(struct sends *sends, struct span frame, unsigned copies, struct iovec *piece)
{
    struct buffer *buffer = &sends->copies;
    if (buffer->bytes > 0 || buffer_reserve(buffer, copies * frame.bytes) != WEIR_OK)
        return false;
    for (unsigned i = 0; i < copies; i++)
        memcpy(buffer->data + i * frame.bytes, frame.data, frame.bytes);
    buffer->bytes = copies * frame.bytes;
    *piece = (struct iovec){buffer->data, buffer->bytes};
    return true;
}

/* The pieces that `copies` of a frame take, behind the `count` that are there: how many there are then.
 * As many as before: they do not fit. */
static unsigned sends_gather(struct sends *sends, struct span frame, unsigned copies,
                             struct iovec *pieces, unsigned count)
{
    if (copies > sends->pieces_max)
        return count == 0 && sends_copy(sends, frame, copies, pieces) ? 1 : count;
    if (copies > sends->pieces_max - count)
        return count;
    for (unsigned k = 0; k < copies; k++)
        pieces[count++] = (struct iovec){(void *)(uintptr_t)frame.data, frame.bytes};
    return count;
}

/* A selection by item, or several copies of each. */
static bool sends_add_some(struct sends *sends, const struct run *run, uint32_t start, uint32_t end,
                           struct subscriber_link *link, enum send_then then)
{
    struct iovec pieces[PIECES_MAX];
    unsigned count = 0;
    struct send send = {
        .link = link, .epoch = link->epoch, .seq = link->sent_seq, .then = (uint8_t)then};
    for (uint32_t i = start; i < end; i++) {
        const struct run_event *event = &run->events[i];
        unsigned copies = subscriptions_copies(sends->subscriptions, link, event->item);
        struct span frame = run_piece(run, link->subscriber->format, i, i + 1);
        unsigned more = sends_gather(sends, frame, copies, pieces, count);
        if (copies > 0 && more == count) {
            send.then = SEND_BEHIND;
            break;
        }
        count = more;
        send.epoch = event->epoch;
        send.seq = event->seq;
    }
    if (count > 0)
        return sends_add(sends, &send, pieces, count);
    sends_arrive(sends, &send);
    return true;
}

bool sends_add_run(struct sends *sends, struct run *run, uint32_t start, uint32_t end,
                   struct subscriber_link *link, enum send_then then)
{
    if (link->subscriber->format == FORMAT_EVENT_STREAM && !run_lay_text(run))
        return false;
    if (subscriptions_takes_all(sends->subscriptions, link))
        return sends_add_all(sends, run, start, end, link, then);
    return sends_add_some(sends, run, start, end, link, then);
}

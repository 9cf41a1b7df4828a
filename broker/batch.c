#include "broker/batch.h"

#include <stdlib.h>

/* ---- life ---- */

static void batch_use_first_frame(struct batch *batch)
{
    if (batch->frame != batch->first_frame)
        free(batch->frame);
    batch->frame = batch->first_frame;
    batch->frame_capacity = batch->first_frame ? BATCH_FRAME_BYTES : 0;
}

struct batch *batch_open(bool is_logged)
{
    struct batch *batch = calloc(1, sizeof *batch);
    if (!batch)
        return NULL;
    buffer_init(&batch->bytes, 3 * (size_t)WIRE_FRAME_BYTES_MAX + ANSWER_BYTES_MAX);
    batch->replies = calloc(BATCH_REPLIES_MAX, sizeof *batch->replies);
    bool is_whole = batch->replies != NULL;
    if (is_logged) {
        batch->groups = calloc(BATCH_WRITES_MAX, sizeof *batch->groups);
        batch->first_frame = aligned_alloc(WAL_BLOCK_BYTES, BATCH_FRAME_BYTES);
        is_whole = batch->groups && batch->first_frame && is_whole;
        batch_use_first_frame(batch);
    }
    if (!is_whole) {
        batch_close(batch);
        return NULL;
    }
    return batch;
}

void batch_close(struct batch *batch)
{
    if (!batch)
        return;
    buffer_fini(&batch->bytes);
    free(batch->replies);
    free(batch->groups);
    batch_use_first_frame(batch);
    free(batch->first_frame);
    free(batch);
}

static void batch_reset_bytes(struct batch *batch)
{
    buffer_clear(&batch->bytes);
    if (batch->bytes.capacity_bytes <= 4 * BATCH_REPLY_BYTES)
        return;
    size_t limit_bytes = batch->bytes.limit_bytes;
    buffer_fini(&batch->bytes);
    buffer_init(&batch->bytes, limit_bytes);
}

void batch_reset(struct batch *batch)
{
    batch->next = NULL;
    batch->reply_count = 0;
    batch->group_count = 0;
    batch->payload_bytes = 0;
    batch->record_count = 0;
    batch->frame_seq = 0;
    batch->is_used = false;
    batch->is_released = false;
    batch->is_doubtful = false;
    batch_reset_bytes(batch);
    batch_use_first_frame(batch);
}

bool batch_is_full(const struct batch *batch)
{
    return batch->reply_count >= BATCH_REPLIES_MAX || batch->record_count >= BATCH_WRITES_MAX ||
           batch->bytes.bytes >= BATCH_REPLY_BYTES;
}

/* ---- answers ---- */

static bool batch_keep(struct batch *batch, struct span part, size_t *offset, size_t *bytes)
{
    *offset = batch->bytes.bytes;
    *bytes = part.bytes;
    return buffer_append(&batch->bytes, part) == WEIR_OK;
}

static struct batch_reply *batch_reply_begin(struct batch *batch, const struct batch_asker *asker)
{
    batch->is_used = true;
    if (asker->id == 0)
        return NULL;
    weir_assert(batch->reply_count < BATCH_REPLIES_MAX);
    struct batch_reply *reply = &batch->replies[batch->reply_count++];
    *reply = (struct batch_reply){
        .peer = asker->peer,
        .id = asker->id,
        .error_code = asker->error_code,
        .is_unhurried = asker->is_unhurried,
        .code_offset = SIZE_MAX,
        .text_offset = SIZE_MAX,
        .result_offset = SIZE_MAX,
        .error_offset = SIZE_MAX,
    };
    return reply;
}

static enum weir_status batch_send_fields(const struct broker_output *output,
                                          const struct batch_reply *reply,
                                          const struct wire_field *fields)
{
    return reply->is_unhurried
               ? output->send_unhurried(output->context, reply->peer, WIRE_STREAM_RESULT, reply->id,
                                        fields)
               : output->send(output->context, reply->peer, WIRE_STREAM_RESULT, reply->id, fields);
}

/* False: the peer is gone. */
static bool batch_send_error(const struct broker_output *output, const struct batch_reply *reply,
                             const char *code, const char *sentence)
{
    const struct wire_field fields[4] = {WIRE_SPAN(span_text(code)), WIRE_SPAN(span_text(sentence)),
                                         WIRE_NIL, WIRE_NIL};
    return batch_send_fields(output, reply, fields) == WEIR_OK;
}

/* What no frame holds, and what there is no memory for, is still answered. */
static bool batch_send_too_large(const struct broker_output *output,
                                 const struct batch_reply *reply)
{
    return batch_send_error(output, reply, "serialization_error",
                            "the answer is larger than a message may be");
}

/* The batch's memory is at its end: the answer becomes an error that needs none. */
static void batch_reply_abandon(struct batch *batch, const struct broker_output *output,
                                const struct batch_reply *reply)
{
    struct batch_reply lost = *reply;
    batch->reply_count--;
    (void)batch_send_too_large(output, &lost);
}

void batch_reply_error(struct batch *batch, const struct batch_asker *asker,
                       const struct broker_output *output, const char *code, const char *subject,
                       struct span sentence)
{
    struct batch_reply *reply = batch_reply_begin(batch, asker);
    if (!reply)
        return;
    struct buffer *bytes = &batch->bytes;
    bool kept = batch_keep(batch, span_text(code), &reply->code_offset, &reply->code_bytes);
    reply->text_offset = bytes->bytes;
    if (kept && subject)
        kept = buffer_append(bytes, span_text(subject)) == WEIR_OK &&
               buffer_append(bytes, SPAN_LITERAL(": ")) == WEIR_OK;
    kept = kept && buffer_append(bytes, sentence) == WEIR_OK;
    reply->text_bytes = bytes->bytes - reply->text_offset;
    if (!kept)
        batch_reply_abandon(batch, output, reply);
}

void batch_reply_error_json(struct batch *batch, const struct batch_asker *asker,
                            const struct broker_output *output, struct span error_json)
{
    struct batch_reply *reply = batch_reply_begin(batch, asker);
    if (reply && !batch_keep(batch, error_json, &reply->error_offset, &reply->error_bytes))
        batch_reply_abandon(batch, output, reply);
}

void batch_reply_result(struct batch *batch, const struct batch_asker *asker,
                        const struct broker_output *output, const struct span *parts,
                        unsigned part_count)
{
    struct batch_reply *reply = batch_reply_begin(batch, asker);
    if (!reply || reply->is_unhurried)
        return;
    reply->result_offset = batch->bytes.bytes;
    for (unsigned index = 0; index < part_count; index++) {
        if (buffer_append(&batch->bytes, parts[index]) != WEIR_OK) {
            batch_reply_abandon(batch, output, reply);
            return;
        }
    }
    reply->result_bytes = batch->bytes.bytes - reply->result_offset;
}

void batch_reply_none(struct batch *batch, const struct batch_asker *asker)
{
    (void)batch_reply_begin(batch, asker);
}

static struct wire_field batch_part(const struct batch *batch, size_t offset, size_t bytes)
{
    if (offset == SIZE_MAX)
        return WIRE_NIL;
    return WIRE_SPAN(span_of(batch->bytes.data + offset, bytes));
}

static bool batch_send_reply(const struct batch *batch, const struct broker_output *output,
                             const struct batch_reply *reply)
{
    const struct wire_field fields[4] = {
        batch_part(batch, reply->code_offset, reply->code_bytes),
        batch_part(batch, reply->text_offset, reply->text_bytes),
        batch_part(batch, reply->result_offset, reply->result_bytes),
        batch_part(batch, reply->error_offset, reply->error_bytes),
    };
    enum weir_status status = batch_send_fields(output, reply, fields);
    return status == WEIR_TOO_LARGE ? batch_send_too_large(output, reply) : status == WEIR_OK;
}

unsigned batch_send(struct batch *batch, const struct broker_output *output, const char *failure)
{
    unsigned lost = 0;
    for (unsigned index = 0; index < batch->reply_count; index++) {
        const struct batch_reply *reply = &batch->replies[index];
        bool is_error = reply->code_offset != SIZE_MAX || reply->error_offset != SIZE_MAX;
        bool is_sent = failure && !is_error
                           ? batch_send_error(output, reply, reply->error_code, failure)
                           : batch_send_reply(batch, output, reply);
        lost += is_sent ? 0 : 1;
    }
    batch->reply_count = 0;
    batch_reset_bytes(batch);
    return lost;
}

/* ---- the frame ---- */

bool batch_has_room(const struct batch *batch, size_t record_bytes)
{
    return batch->record_count < BATCH_WRITES_MAX &&
           wal_frame_bytes(batch->payload_bytes + record_bytes) <= batch->frame_capacity;
}

enum weir_status batch_reserve(struct batch *batch, size_t record_bytes)
{
    size_t frame_bytes = wal_frame_bytes(record_bytes);
    weir_assert(batch->record_count == 0);
    if (frame_bytes <= batch->frame_capacity)
        return WEIR_OK;
    char *frame = aligned_alloc(WAL_BLOCK_BYTES, frame_bytes);
    if (!frame)
        return WEIR_NO_MEMORY;
    batch_use_first_frame(batch);
    batch->frame = frame;
    batch->frame_capacity = frame_bytes;
    return WEIR_OK;
}

void batch_log(struct batch *batch, const struct wal_record *record,
               const struct batch_group *group)
{
    size_t record_bytes = wal_record_bytes(record);
    weir_assert(batch_has_room(batch, record_bytes));
    wal_record_encode(batch->frame + WAL_FRAME_HEADER_BYTES + batch->payload_bytes, record);
    batch->payload_bytes += record_bytes;
    batch->record_count++;
    batch->is_used = true;
    if (!group)
        return;
    weir_assert(batch->groups);
    struct batch_group *last =
        batch->group_count > 0 ? &batch->groups[batch->group_count - 1] : NULL;
    if (last && last->offset == group->offset)
        *last = *group;
    else
        batch->groups[batch->group_count++] = *group;
}

/* The order of things, writer left, reader right. Each letter is one pair; every atomic below names
 * its letter.
 *
 *   reserved = end of what is about to be written (relaxed)
 *   -- A: release fence ------------------------------.
 *   words of the records (relaxed)                     \      head (acquire) ............ B'
 *   head = first position not written (release) .. B    \     words of the record (relaxed)
 *                                                        `--- A': acquire fence
 *                                                             reserved (relaxed): position +
 *                                                             capacity >= reserved?
 *
 * B/B': who sees the head sees the words below it. A/A': who has copied one word of a newer
 * revolution sees a `reserved` that covers it, and so finds that it was lapped. On x86-64 neither
 * costs an instruction; the order of the stores is what counts.
 *
 * `reserved` is raised a stretch ahead of the need, so that its cache line, which every reader
 * loads for every record, changes once in many records. The price is that a reader is lapped that
 * much earlier.
 *
 * WEIR_MUTANT_RING_RESERVED breaks A on purpose: tests/fence_litmus.c shows that this is noticed. */
#include "shm/ring.h"

#include <stdlib.h>

#include "shm/layout.h"

enum {
    RING_AHEAD_BYTES_MAX = 64 * 1024,
    RING_AHEAD_SHARE = 64, /* of the capacity, for small rings */
};
/* A slot's length and a frame's are 32-bit; rings beyond 8 GiB have a smaller share. */
#define RING_SLOT_BYTES_MAX ((uint64_t)1 << 31)
/* Appended but not published: one record and the padding before it always fit into the half. */
#define RING_UNPUBLISHED_SHARE 2u
static_assert(RING_UNPUBLISHED_SHARE * 2 <= RING_RECORD_SHARE,
              "padding and record fit the unpublished share");
static_assert(SEGMENT_PAGE_BYTES / RING_RECORD_SHARE > 2 * sizeof(struct ring_slot),
              "the smallest ring holds something");

/* A payload is frame, id, traceparent and baggage, each filled up to a word. */
enum { RING_PARTS = 4 };

struct ring_writer {
    struct ring_header *header;
    char *data;
    uint64_t capacity_bytes;
    uint64_t slot_bytes_max;
    uint64_t ahead_bytes;
    uint64_t reserved;  /* as stored in the header */
    uint64_t published; /* as stored in the header */
    uint64_t head;      /* first position not yet appended */
};

struct ring_writer *ring_writer_open(struct segment *segment)
{
    weir_assert(segment->writable);
    struct ring_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL)
        return NULL;
    uint64_t bytes;
    char *area = segment_ring(segment, &bytes);
    writer->header = (struct ring_header *)(void *)area;
    writer->data = area + sizeof(struct ring_header);
    writer->capacity_bytes = bytes - sizeof(struct ring_header);
    writer->slot_bytes_max = writer->capacity_bytes / RING_RECORD_SHARE;
    if (writer->slot_bytes_max > RING_SLOT_BYTES_MAX)
        writer->slot_bytes_max = RING_SLOT_BYTES_MAX;
    writer->ahead_bytes = shm_align_word(writer->capacity_bytes / RING_AHEAD_SHARE);
    if (writer->ahead_bytes > RING_AHEAD_BYTES_MAX)
        writer->ahead_bytes = RING_AHEAD_BYTES_MAX;
    /* Plain: nobody attaches before segment_publish(). */
    writer->header->capacity_bytes = writer->capacity_bytes;
    atomic_store_explicit(&writer->header->reserved, 0, memory_order_relaxed);
    atomic_store_explicit(&writer->header->head, 0, memory_order_relaxed);
    return writer;
}

void ring_writer_close(struct ring_writer *writer)
{
    free(writer);
}

uint64_t ring_record_bytes_max(const struct ring_writer *writer)
{
    /* Frame and id are each filled up to a word. */
    return writer->slot_bytes_max - sizeof(struct ring_slot) - RING_PARTS * WORD_BYTES;
}

static struct ring_slot *ring_slot_at(char *data, uint64_t place)
{
    return (struct ring_slot *)(void *)(data + place);
}

static _Atomic uint64_t *ring_payload(struct ring_slot *slot)
{
    return (_Atomic uint64_t *)(void *)(slot + 1);
}

static const _Atomic uint64_t *ring_payload_const(const struct ring_slot *slot)
{
    return (const _Atomic uint64_t *)(const void *)(slot + 1);
}

static void ring_store_head_word(struct ring_slot *slot, uint64_t length, uint64_t type)
{
    atomic_store_explicit(&slot->length_and_type, length | type << 32, memory_order_relaxed);
}

static void ring_part_bytes(const struct ring_record *record, uint64_t bytes[RING_PARTS])
{
    bytes[0] = record->frame_bytes;
    bytes[1] = ring_record_id_bytes(record);
    bytes[2] = record->traceparent_bytes;
    bytes[3] = record->baggage_bytes;
}

static uint64_t ring_slot_bytes(const struct ring_record *record)
{
    uint64_t parts[RING_PARTS];
    ring_part_bytes(record, parts);
    uint64_t bytes = sizeof(struct ring_slot);
    for (unsigned i = 0; i < RING_PARTS; i++)
        bytes += shm_align_word(parts[i]);
    return bytes;
}

/* What holds for every record: asserted before it is written, checked again after it was read. */
static bool ring_record_is_sound(const struct ring_record *record)
{
    return record->json_offset <= record->frame_bytes &&
           record->names_offset <= record->frame_bytes &&
           record->data_offset <= record->frame_bytes &&
           record->data_bytes <= record->frame_bytes - record->data_offset;
}

/* Bytes of padding a slot of `need` bytes must have before it to be contiguous. */
static uint64_t ring_padding(const struct ring_writer *writer, uint64_t need)
{
    uint64_t room = writer->capacity_bytes - (writer->head & (writer->capacity_bytes - 1));
    return room < need ? room : 0;
}

static bool ring_end_is_near(const struct ring_writer *writer, uint64_t end)
{
    return end - writer->published <= writer->capacity_bytes / RING_UNPUBLISHED_SHARE;
}

bool ring_has_room(const struct ring_writer *writer, uint64_t payload_bytes)
{
    if (payload_bytes > ring_record_bytes_max(writer))
        return false;
    /* Each part is filled up to a word: the worst split. */
    uint64_t need =
        sizeof(struct ring_slot) + shm_align_word(payload_bytes) + (RING_PARTS - 1) * WORD_BYTES;
    return ring_end_is_near(writer, writer->head + ring_padding(writer, need) + need);
}

static void ring_reserve(struct ring_writer *writer, uint64_t end, uint64_t ahead_bytes)
{
    if (end <= writer->reserved)
        return;
    writer->reserved = end + ahead_bytes;
    atomic_store_explicit(&writer->header->reserved, writer->reserved, memory_order_relaxed);
    shm_fence_release(); /* A: reserved visible before new words; pairs with A' in ring_is_lapped() */
}

static uint16_t ring_trace_part_bytes(struct span part)
{
    return part.bytes > RING_TRACE_BYTES_MAX ? 0 : (uint16_t)part.bytes;
}

enum weir_status ring_append(struct ring_writer *writer, struct ring_record *record,
                             struct span frame, struct span id, const struct ring_trace *trace)
{
    uint64_t bytes_max = ring_record_bytes_max(writer);
    if (frame.bytes > bytes_max || id.bytes > bytes_max - frame.bytes)
        return WEIR_TOO_LARGE;
    record->frame_bytes = (uint32_t)frame.bytes;
    record->id_bytes = id.data == NULL ? UINT32_MAX : (uint32_t)id.bytes;
    record->traceparent_bytes = trace == NULL ? 0 : ring_trace_part_bytes(trace->traceparent);
    record->baggage_bytes = trace == NULL ? 0 : ring_trace_part_bytes(trace->baggage);
    if (record->traceparent_bytes + record->baggage_bytes > bytes_max - frame.bytes - id.bytes)
        return WEIR_TOO_LARGE;
    weir_assert(ring_record_is_sound(record));

    uint64_t need = ring_slot_bytes(record);
    uint64_t place = writer->head & (writer->capacity_bytes - 1);
    uint64_t padding = ring_padding(writer, need);
    uint64_t end = writer->head + padding + need;
    if (!ring_end_is_near(writer, end))
        return WEIR_FULL;

#ifndef WEIR_MUTANT_RING_RESERVED
    ring_reserve(writer, end, writer->ahead_bytes);
#endif
    if (padding != 0) {
        ring_store_head_word(ring_slot_at(writer->data, place), padding, RING_SLOT_PADDING);
        place = 0;
    }
    record->position = writer->head + padding;
    struct ring_slot *slot = ring_slot_at(writer->data, place);
    ring_store_head_word(slot, need, RING_SLOT_RECORD);
    shm_copy_in(slot->record, record, sizeof *record);
    uint64_t bytes[RING_PARTS];
    ring_part_bytes(record, bytes);
    const char *const parts[RING_PARTS] = {frame.data, id.data,
                                           trace == NULL ? NULL : trace->traceparent.data,
                                           trace == NULL ? NULL : trace->baggage.data};
    _Atomic uint64_t *payload = ring_payload(slot);
    for (unsigned i = 0; i < RING_PARTS; i++) {
        if (bytes[i] != 0)
            shm_copy_in(payload, parts[i], bytes[i]);
        payload += shm_align_word(bytes[i]) / WORD_BYTES;
    }
    writer->head = end;
#ifdef WEIR_MUTANT_RING_RESERVED
    ring_reserve(writer, end, 0);
#endif
    return WEIR_OK;
}

void ring_publish_to(struct ring_writer *writer, uint64_t end)
{
    weir_assert(end <= writer->head);
    if (end <= writer->published)
        return;
    writer->published = end;
    /* B: words before head; pairs with B' in ring_published(). */
    atomic_store_explicit(&writer->header->head, end, memory_order_release);
}

void ring_publish(struct ring_writer *writer)
{
    ring_publish_to(writer, writer->head);
}

uint64_t ring_head(const struct ring_writer *writer)
{
    return writer->head;
}

uint64_t ring_group_at(const struct ring_writer *writer, uint64_t *position)
{
    for (;;) { /* a padding is followed by a record */
        weir_assert(*position < writer->head);
        struct ring_slot *slot =
            ring_slot_at(writer->data, *position & (writer->capacity_bytes - 1));
        uint64_t word = atomic_load_explicit(&slot->length_and_type, memory_order_relaxed);
        *position += word & UINT32_MAX;
        if (word >> 32 == RING_SLOT_RECORD)
            return atomic_load_explicit(
                &slot->record[offsetof(struct ring_record, group_hash) / WORD_BYTES],
                memory_order_relaxed);
        weir_assert(word >> 32 == RING_SLOT_PADDING);
    }
}

enum weir_status ring_reader_attach(struct ring_reader *reader, const struct segment *segment)
{
    uint64_t bytes;
    const char *area = segment_ring(segment, &bytes);
    *reader = (struct ring_reader){
        .header = (const struct ring_header *)(const void *)area,
        .data = area + sizeof(struct ring_header),
        .capacity_bytes = bytes - sizeof(struct ring_header),
    };
    if (reader->header->capacity_bytes != reader->capacity_bytes)
        return WEIR_CORRUPT;
    ring_reader_seek_head(reader);
    return WEIR_OK;
}

void ring_reader_seek_head(struct ring_reader *reader)
{
    reader->position = ring_published(reader);
    reader->seen_head = reader->position;
}

uint64_t ring_published(const struct ring_reader *reader)
{
    /* B': the words below it are there; pairs with B in ring_publish(). */
    return atomic_load_explicit(&reader->header->head, memory_order_acquire);
}

/* True when bytes from `position` on may have been overwritten while or before the caller loaded
 * them. */
static bool ring_is_lapped(const struct ring_reader *reader, uint64_t position)
{
    shm_fence_acquire(); /* A': words loaded before reserved is; pairs with A in ring_reserve() */
    uint64_t reserved = atomic_load_explicit(&reader->header->reserved, memory_order_relaxed);
    return reserved - position > reader->capacity_bytes;
}

/* The slot at `position` was not what a record looks like: because it is overwritten, or because
 * the ring is broken. */
static enum weir_status ring_misfit(const struct ring_reader *reader, uint64_t position)
{
    return ring_is_lapped(reader, position) ? WEIR_LAPPED : WEIR_CORRUPT;
}

/* Append the payload of `record`, whose lengths are already validated against the slot and the
 * capacity. */
static enum weir_status ring_copy_payload(const struct ring_reader *reader,
                                          const struct ring_slot *slot,
                                          const struct ring_record *record, struct buffer *out)
{
    uint64_t parts[RING_PARTS];
    ring_part_bytes(record, parts);
    uint64_t bytes = parts[0] + parts[1] + parts[2] + parts[3];
    enum weir_status status = buffer_reserve(out, bytes);
    if (status != WEIR_OK)
        return status;
    const _Atomic uint64_t *payload = ring_payload_const(slot);
    char *to = out->data + out->bytes;
    for (unsigned i = 0; i < RING_PARTS; i++) {
        if (parts[i] != 0)
            shm_copy_out(to, payload, parts[i]);
        to += parts[i];
        payload += shm_align_word(parts[i]) / WORD_BYTES;
    }
    if (ring_is_lapped(reader, record->position))
        return WEIR_LAPPED;
    out->bytes += bytes;
    return WEIR_OK;
}

/* Copy the slot at the published `position`. AGAIN: it is padding. `*next` is the position behind
 * the slot. */
static enum weir_status ring_copy(const struct ring_reader *reader, uint64_t position,
                                  struct ring_record *record, struct buffer *out, uint64_t *next)
{
    uint64_t place = position & (reader->capacity_bytes - 1);
    uint64_t room = reader->capacity_bytes - place;
    if (place % WORD_BYTES != 0)
        return WEIR_CORRUPT;
    const struct ring_slot *slot = (const struct ring_slot *)(const void *)(reader->data + place);
    uint64_t head_word = atomic_load_explicit(&slot->length_and_type, memory_order_relaxed);
    uint64_t length = head_word & UINT32_MAX;
    uint64_t type = head_word >> 32;
    *next = position + length;
    if (type == RING_SLOT_PADDING && length == room)
        return ring_is_lapped(reader, position) ? WEIR_LAPPED : WEIR_AGAIN;
    if (type != RING_SLOT_RECORD || length > room || length < sizeof(struct ring_slot) ||
        length > reader->capacity_bytes / RING_RECORD_SHARE)
        return ring_misfit(reader, position);
    shm_copy_out(record, slot->record, sizeof *record);
    /* Before the lengths inside are used to reserve and copy: is it still the record that was
     * published? */
    if (ring_is_lapped(reader, position))
        return WEIR_LAPPED;
    if (record->position != position || ring_slot_bytes(record) != length ||
        !ring_record_is_sound(record))
        return WEIR_CORRUPT;
    return out == NULL ? WEIR_OK : ring_copy_payload(reader, slot, record, out);
}

enum weir_status ring_read(struct ring_reader *reader, struct ring_record *record,
                           struct buffer *out)
{
    /* Twice at most: a padding slot ends at the capacity's end, where no padding slot starts. */
    for (unsigned tries = 0; tries < 2; tries++) {
        if (reader->position >= reader->seen_head) {
            reader->seen_head = ring_published(reader);
            if (reader->position == reader->seen_head)
                return WEIR_EMPTY;
            if (reader->position > reader->seen_head)
                return WEIR_CORRUPT;
        }
        uint64_t next;
        enum weir_status status = ring_copy(reader, reader->position, record, out, &next);
        if (status == WEIR_LAPPED)
            ring_reader_seek_head(reader);
        if (status == WEIR_OK || status == WEIR_AGAIN)
            reader->position = next;
        if (status != WEIR_AGAIN)
            return status;
    }
    return WEIR_CORRUPT;
}

enum weir_status ring_read_at(const struct ring_reader *reader, uint64_t position,
                              struct ring_record *record, struct buffer *out)
{
    if (position == RING_NO_POSITION)
        return WEIR_EMPTY;
    if (position >= reader->seen_head && position >= ring_published(reader))
        return WEIR_PENDING;
    uint64_t next;
    enum weir_status status = ring_copy(reader, position, record, out, &next);
    return status == WEIR_AGAIN ? WEIR_CORRUPT : status;
}

enum weir_status ring_read_id_at(const struct ring_reader *reader, uint64_t position,
                                 struct ring_record *record, struct buffer *out)
{
    enum weir_status status = ring_read_at(reader, position, record, NULL);
    uint64_t bytes = status == WEIR_OK ? ring_record_id_bytes(record) : 0;
    if (bytes == 0)
        return status;
    status = buffer_reserve(out, bytes);
    if (status != WEIR_OK)
        return status;
    uint64_t place = position & (reader->capacity_bytes - 1);
    const struct ring_slot *slot = (const struct ring_slot *)(const void *)(reader->data + place);
    shm_copy_out(out->data + out->bytes,
                 ring_payload_const(slot) + shm_align_word(record->frame_bytes) / WORD_BYTES,
                 bytes);
    if (ring_is_lapped(reader, position))
        return WEIR_LAPPED;
    out->bytes += bytes;
    return WEIR_OK;
}

/* shm/ring.h -- byte ring of events: the broker writes, any number of processes read, nobody waits
 * for anybody.
 *
 * Positions are 64-bit byte counts from the start of time and never wrap; position & (capacity - 1)
 * is the place. The broker publishes `reserved` before it overwrites bytes and `head` (release)
 * after it wrote them: all it has appended (ring_publish()), or, where what came last is not durable
 * yet, a part of it (ring_publish_to()). A reader copies a record out, fences, then checks reserved - position <=
 * capacity; otherwise it was LAPPED and what it copied is void. Records are 8-byte aligned and
 * contiguous: a record that would cross the end is preceded by a padding record.
 *
 * Each record carries the position of the previous record of the same group, so resume, catch-up
 * and conflation are one walk: from the group's newest record backwards to the cursor.
 *
 * Process:  ring_append(), ring_publish() and ring_publish_to() in the broker's loop thread only; readers in any
 *           process, any thread.
 * Units:    positions and lengths in bytes; seq counts events of one group from 1; time in Unix ms.
 * Errors:   EMPTY (nothing new) and LAPPED are normal; CORRUPT means the mapping cannot be trusted:
 *           stop using it.
 */
#ifndef WEIR_SHM_RING_H
#define WEIR_SHM_RING_H

#include "shm/segment.h"

#define RING_NO_POSITION UINT64_MAX

struct ring_record {
    uint64_t position;          /* where it is; set by append and read */
    uint64_t previous_position; /* previous record of the same group, or RING_NO_POSITION */
    uint64_t group_offset;      /* handle of the group in the store of the same segment */
    uint64_t group_hash;        /* store_group_hash() of its names */
    uint64_t item_hash;         /* store_item_hash() of the item id; 0 when the event has no id */
    uint64_t seq;
    uint64_t epoch;
    uint64_t timestamp_ms;
    uint64_t commit;      /* number of the log's frame that holds the write; 0: not logged */
    uint32_t kind;        /* enum envelope_event */
    uint32_t frame_bytes; /* the complete WebSocket frame, as envelope_encode() made it */
    uint32_t json_offset; /* of the JSON inside the frame */
    uint32_t
        id_bytes; /* decoded item id, stored behind the frame; UINT32_MAX: the event has no id */
    uint32_t names_offset; /* inside the frame: first byte of the escaped stream name */
    uint32_t
        data_offset; /* inside the frame: first byte of the event's data (set, update, delete) */
    uint32_t data_bytes;
    uint16_t traceparent_bytes; /* the writer's trace context, behind the id; 0: none */
    uint16_t baggage_bytes;
};

/* Where the parts behind the frame are in what a read has copied out. */
static inline uint64_t ring_record_id_bytes(const struct ring_record *record)
{
    return record->id_bytes == UINT32_MAX ? 0 : record->id_bytes;
}
static inline uint64_t ring_record_trace_offset(const struct ring_record *record)
{
    return record->frame_bytes + ring_record_id_bytes(record);
}

/* The trace context a write came with (PROTOCOL 2.10); opaque. A part that is longer than
 * RING_TRACE_BYTES_MAX is left out. */
struct ring_trace {
    struct span traceparent;
    struct span baggage;
};
enum { RING_TRACE_BYTES_MAX = 8192 };

/* ---- broker ---- */
struct ring_writer;
struct ring_writer *ring_writer_open(struct segment *segment); /* NULL: no memory */
void ring_writer_close(struct ring_writer *writer);
/* Largest frame + id + trace that ring_append() takes. */
uint64_t ring_record_bytes_max(const struct ring_writer *writer);
/* True when a record of `payload_bytes` (frame, id and trace, at most ring_record_bytes_max()) can be
 * appended without FULL; ask before a write is applied that cannot be taken back. */
bool ring_has_room(const struct ring_writer *writer, uint64_t payload_bytes);
/* Copy a record in; invisible until it is published. Sets position, frame_bytes and id_bytes
 * (id.data NULL: no id) of `record`, and its trace's (NULL: none). TOO_LARGE when it exceeds the share. FULL when what is
 * appended but not published would exceed half the ring (readers of what comes next would be lapped
 * before they could see it): nothing changed, publish and append again. When all is published, a
 * record that is not TOO_LARGE always fits. */
enum weir_status ring_append(struct ring_writer *writer, struct ring_record *record,
                             struct span frame, struct span id,
                             const struct ring_trace *trace) WEIR_MUST_CHECK;
/* Make everything appended so far visible (one release store). Ring the doorbells after this. */
void ring_publish(struct ring_writer *writer);
/* The same up to `end`, a position that ring_head() has had: what was appended later stays unseen, and
 * what was published stays so. */
void ring_publish_to(struct ring_writer *writer, uint64_t end);
uint64_t ring_head(const struct ring_writer *writer); /* first position not yet appended */
/* The group_hash of the record at `*position`, which moves on to the next one's or to ring_head().
 * `*position` is where a record was appended or will be, below ring_head() and not overwritten. */
uint64_t ring_group_at(const struct ring_writer *writer, uint64_t *position);

/* ---- any process ---- */
struct ring_reader {
    const struct ring_header *header;
    const char *data;
    uint64_t capacity_bytes;
    uint64_t
        position; /* next record to read, in order; a caller may set it to any record's position */
    uint64_t
        seen_head; /* published as last seen, so that a busy reader leaves the writer's cache line alone */
};

/* Starts at the newest. CORRUPT when the ring's header does not fit its area (or the broker has not
 * opened it yet). */
enum weir_status ring_reader_attach(struct ring_reader *reader,
                                    const struct segment *segment) WEIR_MUST_CHECK;
/* Start at the newest: only what is published from now on. */
void ring_reader_seek_head(struct ring_reader *reader);
/* First position not yet published (acquire). */
uint64_t ring_published(const struct ring_reader *reader);
/* Copy the next record: frame, id, traceparent, baggage, appended to `out` (8-byte aligned start not promised).
 * Advances. EMPTY, LAPPED (the cursor moves to the newest published position; how much was missed
 * is not known), FULL and NO_MEMORY (the buffer's; nothing is consumed), CORRUPT. Only OK changes
 * `out`; `record` is void otherwise. `out` NULL: the fields only. */
enum weir_status ring_read(struct ring_reader *reader, struct ring_record *record,
                           struct buffer *out) WEIR_MUST_CHECK;
/* Copy the record at `position` (from a group's newest or a record's previous_position); does not
 * move the cursor. `out` NULL: the fields only. LAPPED when it is overwritten, PENDING when it is
 * not published yet, EMPTY for RING_NO_POSITION, CORRUPT when no record starts there. */
enum weir_status ring_read_at(const struct ring_reader *reader, uint64_t position,
                              struct ring_record *record, struct buffer *out) WEIR_MUST_CHECK;
/* As ring_read_at(), but of what is behind the fields the item id alone is appended. */
enum weir_status ring_read_id_at(const struct ring_reader *reader, uint64_t position,
                                 struct ring_record *record, struct buffer *out) WEIR_MUST_CHECK;

#endif

/* broker/wal_format.h -- the bytes of log segments and snapshots; both are files of frames.
 *
 *      0 +------------------------------+ file header, one block: who made it, which file it is
 *   4096 +------------------------------+ frame: header (48 bytes), records, zeros, end mark
 *        | frame                        | each starts and ends on a block (4 KiB)
 *        +------------------------------+
 *        | frame                        |
 *        +------------------------------+ zeros to the file's end (a segment), or the file's end
 *
 * File header, little-endian:
 *      0  u64  magic: "weirLog1" or "weirSnp1"; a change of format changes the digit
 *      8  u64  log id: random, one for all files of a directory
 *     16  u64  number: of the segment; of the first segment a snapshot does not contain
 *     24  u64  epoch base: no epoch of an earlier file is this high (store.h)
 *     32  u64  created, Unix ms
 *     40  u64  of a segment: bytes of the file as it was prepared; 0: not said
 *     48  u64  of a snapshot: seq of the first frame of segment `number`; 0: not said
 *     56  u32  CRC32C of bytes 0..55
 *     60       zeros to 4096
 *
 * Frame, little-endian, at offset `at` of its file; what is written and synced at once, and is there
 * as a whole or not at all:
 *      0  u32  magic "wFrm"
 *      4  u32  CRC32C of (log id, number, at) and bytes 8..47: the header
 *      8  u32  CRC32C of (log id, number, at) and the records: the body
 *     12  u32  bytes of the records
 *     16  u64  seq of the frame: 1, 2, 3 ... through all segments of a log; a snapshot counts for itself
 *     24  u64  time of the commit, Unix ms
 *     32  u32  number of records
 *     36  u32  sectors (512 bytes) of the frame that are zeros throughout
 *     40  u32  0: the next frame is begun when this one is synced; else how many frames, this one
 *              included, were not yet known to be synced when it was written
 *     44       zeros to 48
 *     48       records, each filled up with zeros to 8 bytes
 *              zeros
 *     -8  u64  end mark: seq ^ WAL_END_MARK; the last 8 bytes of the frame's last block
 *
 * A frame's size follows from the bytes of its records. The checksums name log, file and offset, so a
 * frame of another log, of another file or from elsewhere in this one is never taken for what should
 * be here. An acknowledged byte is never written again: the next frame starts on the next block.
 * Segments are zeros before frames are written to them, so a sector that an interrupted write has left
 * out is zeros, and is noticed by the count of those that should be.
 *
 * Record, little-endian:
 *      0  u32  bytes, this header included, a multiple of 8
 *      4  u8   kind (enum wal_record_kind)
 *      5  u8   event (enum envelope_event; 0: none): what subscribers were told
 *      6  u8   step: how far above `timestamp` the group's next stamp is at least (1 or 2)
 *      7  u8   flags: 1 = has an item id, 2 = has an event type, 4 = has a value, 8 = the request's
 *              answer said more than a record tells
 *      8  u64  epoch of the group
 *     16  u64  seq of the group
 *     24  u64  timestamp, Unix ms
 *     32  u64  origin: the gateway life the request came from; 0: none. ITEM: created seq
 *     40  u64  request: its number there. ITEM: modified seq
 *     48  u16  bytes of stream, group, item, event type
 *     56  u32  bytes of value
 *     60  u32  zero
 *     64       stream, group, item, event type, value, behind each other, then zeros to 8
 *
 * Process:  any; encoding in the broker's loop thread.
 * Memory:   decoding yields spans into the frame.
 * Errors:   a decoder never trusts a length it has not checked against what is there.
 */
#ifndef WEIR_BROKER_WAL_FORMAT_H
#define WEIR_BROKER_WAL_FORMAT_H

#include "shm/limits.h"
#include "shm/span.h"

enum {
    WAL_BLOCK_BYTES = 4096,
    WAL_SECTOR_BYTES = 512, /* what a disk writes as a whole */
    WAL_FRAME_HEADER_BYTES = 48,
    WAL_END_MARK_BYTES = 8,
    WAL_RECORD_HEADER_BYTES = 64,
    /* Records of one frame. A record that is larger than what is left starts the next one. */
    WAL_PAYLOAD_BYTES_MAX = 16 * 1024 * 1024,
};
static_assert(WAL_PAYLOAD_BYTES_MAX >=
                  VALUE_BYTES_MAX + 4 * NAME_BYTES_MAX + WAL_RECORD_HEADER_BYTES + 8,
              "the largest record fits a frame");

/* Its last byte on the disk is more than a bit away from zero: a changed bit does not make a mark look
 * as if its end were missing. */
#define WAL_END_MARK 0xd36b5a93c72de5b9ull

enum wal_file_kind { WAL_FILE_LOG = 1, WAL_FILE_SNAPSHOT };

struct wal_file_header {
    enum wal_file_kind kind;
    uint64_t log_id;
    uint64_t number;
    uint64_t epoch_base;
    uint64_t created_ms;
    uint64_t
        file_bytes; /* segments: as prepared, so that a file cut short is noticed; 0: not said */
    uint64_t first_seq; /* snapshots: of the first frame in segment `number`; 0: not said */
};

struct wal_frame_header {
    uint64_t seq;
    uint64_t time_ms;
    uint32_t payload_bytes;
    uint32_t record_count;
    /* 0 where every frame is synced before the next is begun (level SYNCED). Else the frames, this one
     * included, that were not known to be synced when it was written: any of them may be gone after a
     * power loss while this one is there. */
    uint32_t unsynced;
};

enum wal_record_kind {
    WAL_SET = 1, /* the item has this value now */
    WAL_DELETE,  /* the item is gone */
    WAL_EVENT, /* nothing is stored, the group's order advances (stream::send, a worker's items) */
    /* Snapshots only. */
    WAL_GROUP, /* a group's names and numbers; its items follow */
    WAL_ITEM,  /* item and value; stream and group are those of the last WAL_GROUP */
    WAL_END,   /* the last record of a snapshot; seq: first frame that was written after it was
                  complete, value: none */
    /* Both. */
    WAL_ANSWER, /* a request was carried out and no other record here says so: a delete that found
                   nothing; in snapshots, those of the log they replace. Origin, request, timestamp;
                   value: the result, as far as it is known */
};

struct wal_record {
    enum wal_record_kind kind;
    uint32_t event; /* enum envelope_event, or 0 */
    uint32_t step;
    uint64_t epoch, seq, timestamp_ms;
    uint64_t origin, request; /* WAL_SET, WAL_DELETE, WAL_EVENT, WAL_ANSWER */
    bool is_answer_partial;
    uint64_t created_seq, modified_seq; /* WAL_ITEM */
    struct span stream, group;
    struct span item;       /* data NULL: none */
    struct span event_type; /* WAL_EVENT; data NULL: none */
    struct span value;      /* JSON; data NULL: none. WAL_EVENT: the event's data */
};

/* What a checksum is bound to. */
struct wal_place {
    uint64_t log_id, number, offset;
};

/* CRC32C. `before` is 0, or the sum of what comes before these bytes. */
uint32_t wal_checksum(uint32_t before, const void *data, size_t bytes);

void wal_file_header_encode(char block[WAL_BLOCK_BYTES], const struct wal_file_header *header);
/* CORRUPT: not the header of a log or snapshot, or no whole block. MISMATCH: of another version of
 * the format. Whether kind and number are those of the file's name is for the caller to check. */
enum weir_status wal_file_header_decode(struct span block,
                                        struct wal_file_header *header) WEIR_MUST_CHECK;

/* Bytes of a frame with so many bytes of records, a multiple of WAL_BLOCK_BYTES. */
static inline size_t wal_frame_bytes(size_t payload_bytes)
{
    size_t bytes = WAL_FRAME_HEADER_BYTES + payload_bytes + WAL_END_MARK_BYTES;
    return (bytes + WAL_BLOCK_BYTES - 1) / WAL_BLOCK_BYTES * WAL_BLOCK_BYTES;
}

/* Bytes a record takes in a frame. */
size_t wal_record_bytes(const struct wal_record *record);
/* Write the record at `at`, which has room for wal_record_bytes(). */
void wal_record_encode(char *at, const struct wal_record *record);
/* Finish a frame: `frame` holds the records from WAL_FRAME_HEADER_BYTES on and has room for
 * wal_frame_bytes(); fills in header, checksums, zeros and end mark. Returns the frame's bytes. */
size_t wal_frame_encode(char *frame, const struct wal_frame_header *header,
                        const struct wal_place *place);

/* The header of a frame at the start of `bytes` (at least WAL_FRAME_HEADER_BYTES). EMPTY: zeros, as
 * far as the header reaches. CORRUPT: not the header of a frame at this place. */
enum weir_status wal_frame_header_decode(struct span bytes, const struct wal_place *place,
                                         struct wal_frame_header *header) WEIR_MUST_CHECK;
/* `frame` is wal_frame_bytes() long and its header is good. CORRUPT: records, zeros behind them or end
 * mark are not what was written. OK: *payload is the records. */
enum weir_status wal_frame_body_check(struct span frame, const struct wal_place *place,
                                      const struct wal_frame_header *header,
                                      struct span *payload) WEIR_MUST_CHECK;
/* `frame` is wal_frame_bytes() long and its header is good. False when a part of it that cannot be
 * zeros is zeros (the end mark or the end of it, or more sectors than the header says): what an
 * interrupted write looks like, and a changed bit does not, unless it was the only one of its
 * sector. */
bool wal_frame_is_complete(struct span frame, const struct wal_frame_header *header);

/* The record at *cursor of a frame's records, which then moves on. EMPTY: no more. CORRUPT: no
 * record is there, or one that cannot be: lengths that do not add up, names that are too long, a SET
 * without a value. */
enum weir_status wal_record_decode(struct span payload, size_t *cursor,
                                   struct wal_record *record) WEIR_MUST_CHECK;

/* Whether records of this kind are found in files of that kind. */
bool wal_record_fits(enum wal_record_kind kind, enum wal_file_kind file);
const char *wal_record_kind_name(enum wal_record_kind kind); /* "set", ...; "?" */

#endif

#include "broker/wal_format.h"

#include <endian.h>
#include <isa-l/crc.h>

#include "shm/envelope.h"

enum {
    /* file header */
    AT_FILE_LOG_ID = 8,
    AT_FILE_NUMBER = 16,
    AT_FILE_EPOCH_BASE = 24,
    AT_FILE_CREATED = 32,
    AT_FILE_BYTES = 40,
    AT_FILE_FIRST_SEQ = 48,
    AT_FILE_CHECKSUM = 56,
    FILE_HEADER_BYTES = 60,
    MAGIC_BYTES = 8,
    /* frame header */
    AT_HEADER_CHECKSUM = 4,
    AT_BODY_CHECKSUM = 8,
    AT_PAYLOAD_BYTES = 12,
    AT_SEQ = 16,
    AT_TIME = 24,
    AT_RECORD_COUNT = 32,
    AT_ZERO_SECTORS = 36,
    AT_UNSYNCED = 40,
    AT_FRAME_RESERVED = 44,
    /* record header */
    AT_KIND = 4,
    AT_EVENT = 5,
    AT_STEP = 6,
    AT_FLAGS = 7,
    AT_EPOCH = 8,
    AT_GROUP_SEQ = 16,
    AT_TIMESTAMP = 24,
    AT_ORIGIN = 32,
    AT_REQUEST = 40,
    AT_NAME_LENGTHS = 48,
    AT_VALUE_BYTES = 56,
    AT_RECORD_RESERVED = 60,
    RECORD_ALIGN_BYTES = 8,
    STEP_MAX = 2,
};
#define FRAME_MAGIC 0x6d724677u /* "wFrm" */

enum { FLAG_ITEM = 1, FLAG_EVENT_TYPE = 2, FLAG_VALUE = 4, FLAG_PARTIAL = 8, FLAGS_ALL = 15 };

static_assert(AT_RECORD_RESERVED + 4 == WAL_RECORD_HEADER_BYTES, "the drawing in the header");
static_assert(AT_FRAME_RESERVED + 4 == WAL_FRAME_HEADER_BYTES, "the drawing in the header");
static_assert(NAME_BYTES_MAX <= UINT16_MAX, "a name's length is two bytes");
static_assert(WAL_BLOCK_BYTES % WAL_SECTOR_BYTES == 0, "sectors do not cross blocks");

static void put_u16(char *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof value);
}

static void put_u32(char *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put_u64(char *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint16_t get_u16(const char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return le16toh(value);
}

static uint32_t get_u32(const char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get_u64(const char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

/* ISA-L leaves both inversions of CRC32C (RFC 3720 appendix B.4) to its caller. */
uint32_t wal_checksum(uint32_t before, const void *data, size_t bytes)
{
    return ~crc32_iscsi((unsigned char *)data, (int)bytes, ~before);
}

static uint32_t place_checksum(const struct wal_place *place)
{
    char words[24];
    put_u64(words, place->log_id);
    put_u64(words + 8, place->number);
    put_u64(words + 16, place->offset);
    return wal_checksum(0, words, sizeof words);
}

static bool is_zeros(const char *data, size_t bytes)
{
    /* A run of equal bytes is equal to itself one byte on. */
    return bytes == 0 || (data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0);
}

static size_t aligned(size_t bytes)
{
    return (bytes + RECORD_ALIGN_BYTES - 1) / RECORD_ALIGN_BYTES * RECORD_ALIGN_BYTES;
}

/* ---- file header ---- */

static const char *magic_of(enum wal_file_kind kind)
{
    return kind == WAL_FILE_LOG ? "weirLog1" : "weirSnp1";
}

void wal_file_header_encode(char block[WAL_BLOCK_BYTES], const struct wal_file_header *header)
{
    memset(block, 0, WAL_BLOCK_BYTES);
    memcpy(block, magic_of(header->kind), MAGIC_BYTES);
    put_u64(block + AT_FILE_LOG_ID, header->log_id);
    put_u64(block + AT_FILE_NUMBER, header->number);
    put_u64(block + AT_FILE_EPOCH_BASE, header->epoch_base);
    put_u64(block + AT_FILE_CREATED, header->created_ms);
    put_u64(block + AT_FILE_BYTES, header->file_bytes);
    put_u64(block + AT_FILE_FIRST_SEQ, header->first_seq);
    put_u32(block + AT_FILE_CHECKSUM, wal_checksum(0, block, AT_FILE_CHECKSUM));
}

enum weir_status wal_file_header_decode(struct span block, struct wal_file_header *header)
{
    static const enum wal_file_kind kinds[] = {WAL_FILE_LOG, WAL_FILE_SNAPSHOT};
    if (block.bytes < WAL_BLOCK_BYTES)
        return WEIR_CORRUPT;
    const char *data = block.data;
    header->kind = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (memcmp(data, magic_of(kinds[i]), MAGIC_BYTES - 1) == 0)
            header->kind = kinds[i];
    char version = data[MAGIC_BYTES - 1];
    if (header->kind == 0 || version < '0' || version > '9')
        return WEIR_CORRUPT;
    if (memcmp(data, magic_of(header->kind), MAGIC_BYTES) != 0)
        return WEIR_MISMATCH;
    if (get_u32(data + AT_FILE_CHECKSUM) != wal_checksum(0, data, AT_FILE_CHECKSUM) ||
        !is_zeros(data + FILE_HEADER_BYTES, WAL_BLOCK_BYTES - FILE_HEADER_BYTES))
        return WEIR_CORRUPT;
    header->log_id = get_u64(data + AT_FILE_LOG_ID);
    header->number = get_u64(data + AT_FILE_NUMBER);
    header->epoch_base = get_u64(data + AT_FILE_EPOCH_BASE);
    header->created_ms = get_u64(data + AT_FILE_CREATED);
    header->file_bytes = get_u64(data + AT_FILE_BYTES);
    header->first_seq = get_u64(data + AT_FILE_FIRST_SEQ);
    return WEIR_OK;
}

/* ---- frames ---- */

static uint32_t count_zero_sectors(const char *frame, size_t frame_bytes)
{
    uint32_t count = 0;
    for (size_t at = 0; at < frame_bytes; at += WAL_SECTOR_BYTES)
        count += is_zeros(frame + at, WAL_SECTOR_BYTES);
    return count;
}

size_t wal_frame_encode(char *frame, const struct wal_frame_header *header,
                        const struct wal_place *place)
{
    size_t records_end = WAL_FRAME_HEADER_BYTES + header->payload_bytes;
    size_t frame_bytes = wal_frame_bytes(header->payload_bytes);
    weir_assert(header->payload_bytes <= WAL_PAYLOAD_BYTES_MAX);
    weir_assert(header->payload_bytes % RECORD_ALIGN_BYTES == 0);
    weir_assert(header->seq > 0);
    memset(frame + records_end, 0, frame_bytes - records_end);
    put_u64(frame + frame_bytes - WAL_END_MARK_BYTES, header->seq ^ WAL_END_MARK);
    uint32_t place_sum = place_checksum(place);
    put_u32(frame, FRAME_MAGIC);
    put_u32(frame + AT_BODY_CHECKSUM,
            wal_checksum(place_sum, frame + WAL_FRAME_HEADER_BYTES, header->payload_bytes));
    put_u32(frame + AT_PAYLOAD_BYTES, header->payload_bytes);
    put_u64(frame + AT_SEQ, header->seq);
    put_u64(frame + AT_TIME, header->time_ms);
    put_u32(frame + AT_RECORD_COUNT, header->record_count);
    put_u32(frame + AT_ZERO_SECTORS, count_zero_sectors(frame, frame_bytes));
    put_u32(frame + AT_UNSYNCED, header->unsynced);
    put_u32(frame + AT_FRAME_RESERVED, 0);
    put_u32(frame + AT_HEADER_CHECKSUM, wal_checksum(place_sum, frame + AT_BODY_CHECKSUM,
                                                     WAL_FRAME_HEADER_BYTES - AT_BODY_CHECKSUM));
    return frame_bytes;
}

enum weir_status wal_frame_header_decode(struct span bytes, const struct wal_place *place,
                                         struct wal_frame_header *header)
{
    weir_assert(bytes.bytes >= WAL_FRAME_HEADER_BYTES);
    const char *data = bytes.data;
    if (get_u32(data) != FRAME_MAGIC)
        return is_zeros(data, WAL_FRAME_HEADER_BYTES) ? WEIR_EMPTY : WEIR_CORRUPT;
    uint32_t sum = wal_checksum(place_checksum(place), data + AT_BODY_CHECKSUM,
                                WAL_FRAME_HEADER_BYTES - AT_BODY_CHECKSUM);
    if (get_u32(data + AT_HEADER_CHECKSUM) != sum)
        return WEIR_CORRUPT;
    *header = (struct wal_frame_header){
        .seq = get_u64(data + AT_SEQ),
        .time_ms = get_u64(data + AT_TIME),
        .payload_bytes = get_u32(data + AT_PAYLOAD_BYTES),
        .record_count = get_u32(data + AT_RECORD_COUNT),
        .unsynced = get_u32(data + AT_UNSYNCED),
    };
    bool is_possible = header->payload_bytes <= WAL_PAYLOAD_BYTES_MAX &&
                       header->payload_bytes % RECORD_ALIGN_BYTES == 0 && header->seq > 0 &&
                       header->unsynced <= header->seq && get_u32(data + AT_FRAME_RESERVED) == 0;
    return is_possible ? WEIR_OK : WEIR_CORRUPT;
}

enum weir_status wal_frame_body_check(struct span frame, const struct wal_place *place,
                                      const struct wal_frame_header *header, struct span *payload)
{
    size_t records_end = WAL_FRAME_HEADER_BYTES + header->payload_bytes;
    weir_assert(frame.bytes == wal_frame_bytes(header->payload_bytes));
    const char *mark = frame.data + frame.bytes - WAL_END_MARK_BYTES;
    *payload = span_of(frame.data + WAL_FRAME_HEADER_BYTES, header->payload_bytes);
    bool is_whole = get_u32(frame.data + AT_BODY_CHECKSUM) ==
                        wal_checksum(place_checksum(place), payload->data, payload->bytes) &&
                    is_zeros(frame.data + records_end, (size_t)(mark - frame.data) - records_end) &&
                    get_u64(mark) == (header->seq ^ WAL_END_MARK);
    return is_whole ? WEIR_OK : WEIR_CORRUPT;
}

/* An interrupted write may have ended within the mark. */
static bool is_mark_cut(const char *found, uint64_t seq)
{
    char mark[WAL_END_MARK_BYTES];
    put_u64(mark, seq ^ WAL_END_MARK);
    size_t there = 0;
    while (there < sizeof mark && found[there] == mark[there])
        there++;
    return there < sizeof mark && is_zeros(found + there, sizeof mark - there);
}

bool wal_frame_is_complete(struct span frame, const struct wal_frame_header *header)
{
    weir_assert(frame.bytes == wal_frame_bytes(header->payload_bytes));
    return !is_mark_cut(frame.data + frame.bytes - WAL_END_MARK_BYTES, header->seq) &&
           count_zero_sectors(frame.data, frame.bytes) <= get_u32(frame.data + AT_ZERO_SECTORS);
}

/* ---- records ---- */

enum { NAME_COUNT = 4 };

static void names_of(const struct wal_record *record, struct span names[NAME_COUNT])
{
    names[0] = record->stream;
    names[1] = record->group;
    names[2] = record->item;
    names[3] = record->event_type;
}

/* What a record of its kind cannot be without, and with. */
static bool has_parts_of_kind(const struct wal_record *record)
{
    bool has_item = record->item.data != NULL;
    bool has_value = record->value.data != NULL;
    bool has_names = record->stream.bytes + record->group.bytes > 0;
    switch (record->kind) {
    case WAL_SET:
        return has_item && has_value;
    case WAL_DELETE:
        return has_item;
    case WAL_EVENT:
        return true;
    case WAL_GROUP:
        return !has_item && !has_value;
    case WAL_ITEM:
        return has_item && has_value && !has_names;
    case WAL_END:
        return !has_item && !has_value && !has_names;
    case WAL_ANSWER:
        return !has_item && !has_names;
    }
    return false;
}

size_t wal_record_bytes(const struct wal_record *record)
{
    struct span names[NAME_COUNT];
    size_t bytes = WAL_RECORD_HEADER_BYTES + record->value.bytes;
    names_of(record, names);
    for (size_t i = 0; i < NAME_COUNT; i++)
        bytes += names[i].bytes;
    return aligned(bytes);
}

void wal_record_encode(char *at, const struct wal_record *record)
{
    struct span names[NAME_COUNT];
    size_t bytes = wal_record_bytes(record);
    bool is_item = record->kind == WAL_ITEM;
    weir_assert(has_parts_of_kind(record));
    names_of(record, names);
    memset(at, 0, WAL_RECORD_HEADER_BYTES);
    put_u32(at, (uint32_t)bytes);
    at[AT_KIND] = (char)record->kind;
    at[AT_EVENT] = (char)record->event;
    at[AT_STEP] = (char)record->step;
    at[AT_FLAGS] = (char)((record->item.data != NULL ? FLAG_ITEM : 0) |
                          (record->event_type.data != NULL ? FLAG_EVENT_TYPE : 0) |
                          (record->value.data != NULL ? FLAG_VALUE : 0) |
                          (record->is_answer_partial ? FLAG_PARTIAL : 0));
    put_u64(at + AT_EPOCH, record->epoch);
    put_u64(at + AT_GROUP_SEQ, record->seq);
    put_u64(at + AT_TIMESTAMP, record->timestamp_ms);
    put_u64(at + AT_ORIGIN, is_item ? record->created_seq : record->origin);
    put_u64(at + AT_REQUEST, is_item ? record->modified_seq : record->request);
    put_u32(at + AT_VALUE_BYTES, (uint32_t)record->value.bytes);
    char *end = at + WAL_RECORD_HEADER_BYTES;
    for (size_t i = 0; i < NAME_COUNT; i++) {
        weir_assert(names[i].bytes <= NAME_BYTES_MAX);
        put_u16(at + AT_NAME_LENGTHS + 2 * i, (uint16_t)names[i].bytes);
        (void)span_put(&end, names[i]);
    }
    (void)span_put(&end, record->value);
    memset(end, 0, (size_t)(at + bytes - end));
}

/* Names and value of the record of `bytes` bytes whose fixed part is read already. */
static bool decode_parts(const char *at, size_t bytes, struct wal_record *record)
{
    struct span *const parts[NAME_COUNT + 1] = {&record->stream, &record->group, &record->item,
                                                &record->event_type, &record->value};
    unsigned flags = (unsigned char)at[AT_FLAGS];
    record->is_answer_partial = (flags & FLAG_PARTIAL) != 0;
    const bool is_there[NAME_COUNT + 1] = {true, true, (flags & FLAG_ITEM) != 0,
                                           (flags & FLAG_EVENT_TYPE) != 0,
                                           (flags & FLAG_VALUE) != 0};
    size_t cursor = WAL_RECORD_HEADER_BYTES;
    for (size_t i = 0; i <= NAME_COUNT; i++) {
        size_t length =
            i < NAME_COUNT ? get_u16(at + AT_NAME_LENGTHS + 2 * i) : get_u32(at + AT_VALUE_BYTES);
        if (length > bytes - cursor || (i < NAME_COUNT && length > NAME_BYTES_MAX) ||
            (!is_there[i] && length > 0))
            return false;
        *parts[i] = is_there[i] ? span_of(at + cursor, length) : (struct span){0};
        cursor += length;
    }
    return bytes - cursor < RECORD_ALIGN_BYTES && is_zeros(at + cursor, bytes - cursor);
}

enum weir_status wal_record_decode(struct span payload, size_t *cursor, struct wal_record *record)
{
    weir_assert(*cursor <= payload.bytes);
    size_t left = payload.bytes - *cursor;
    const char *at = payload.data + *cursor;
    if (left == 0)
        return WEIR_EMPTY;
    if (left < WAL_RECORD_HEADER_BYTES)
        return WEIR_CORRUPT;
    size_t bytes = get_u32(at);
    unsigned kind = (unsigned char)at[AT_KIND];
    unsigned event = (unsigned char)at[AT_EVENT];
    unsigned step = (unsigned char)at[AT_STEP];
    unsigned flags = (unsigned char)at[AT_FLAGS];
    if (bytes < WAL_RECORD_HEADER_BYTES || bytes > left || bytes % RECORD_ALIGN_BYTES != 0)
        return WEIR_CORRUPT;
    if (kind < WAL_SET || kind > WAL_ANSWER || event > ENVELOPE_UNAUTHORIZED || step > STEP_MAX ||
        flags > FLAGS_ALL || get_u32(at + AT_RECORD_RESERVED) != 0)
        return WEIR_CORRUPT;
    bool is_item = kind == WAL_ITEM;
    uint64_t first = get_u64(at + AT_ORIGIN);
    uint64_t second = get_u64(at + AT_REQUEST);
    *record = (struct wal_record){
        .kind = (enum wal_record_kind)kind,
        .event = event,
        .step = step,
        .epoch = get_u64(at + AT_EPOCH),
        .seq = get_u64(at + AT_GROUP_SEQ),
        .timestamp_ms = get_u64(at + AT_TIMESTAMP),
        .origin = is_item ? 0 : first,
        .request = is_item ? 0 : second,
        .created_seq = is_item ? first : 0,
        .modified_seq = is_item ? second : 0,
    };
    if (!decode_parts(at, bytes, record) || !has_parts_of_kind(record))
        return WEIR_CORRUPT;
    *cursor += bytes;
    return WEIR_OK;
}

bool wal_record_fits(enum wal_record_kind kind, enum wal_file_kind file)
{
    return kind == WAL_ANSWER || (file == WAL_FILE_SNAPSHOT ? kind >= WAL_GROUP : kind < WAL_GROUP);
}

const char *wal_record_kind_name(enum wal_record_kind kind)
{
    switch (kind) {
    case WAL_SET:
        return "set";
    case WAL_DELETE:
        return "delete";
    case WAL_EVENT:
        return "event";
    case WAL_GROUP:
        return "group";
    case WAL_ITEM:
        return "item";
    case WAL_END:
        return "end";
    case WAL_ANSWER:
        return "answer";
    }
    return "?";
}

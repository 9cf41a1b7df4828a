#include "broker/wal_read.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

enum {
    FIRST_READ_BYTES = 64 * 1024, /* of a file, in case it is only looked at */
    SCAN_BYTES = 256 * 1024,
};
static_assert(SCAN_BYTES % WAL_BLOCK_BYTES == 0, "a scan's views are whole blocks");

void wal_reader_init(struct wal_reader *reader, const struct wal_io *io, size_t buffer_bytes)
{
    *reader = (struct wal_reader){.io = io, .fd = -1, .buffer_bytes = buffer_bytes};
}

static void close_file(struct wal_reader *reader)
{
    if (reader->fd >= 0)
        (void)reader->io->close(reader->io->context, reader->fd);
    reader->fd = -1;
    reader->window_bytes = 0;
}

void wal_reader_fini(struct wal_reader *reader)
{
    close_file(reader);
    free(reader->buffer);
    reader->buffer = NULL;
}

/* ---- the window ---- */

/* A buffer of at least so many bytes, with what the window holds from `offset` on at its start. */
static enum weir_status move_window(struct wal_reader *reader, uint64_t offset, size_t bytes,
                                    struct weir_error *error)
{
    uint64_t window_end = reader->window_offset + reader->window_bytes;
    bool overlaps = offset >= reader->window_offset && offset < window_end;
    size_t kept = overlaps ? (size_t)(window_end - offset) : 0;
    const char *source = overlaps ? reader->buffer + (offset - reader->window_offset) : NULL;
    size_t wanted =
        reader->bytes < reader->buffer_bytes ? (size_t)reader->bytes : reader->buffer_bytes;
    if (wanted < bytes)
        wanted = bytes;
    if (wanted > reader->capacity) {
        char *buffer = malloc(wanted);
        if (buffer == NULL)
            return weir_fail(error, WEIR_NO_MEMORY, "no memory (%zu bytes) to read %s", wanted,
                             reader->name);
        if (kept > 0)
            memcpy(buffer, source, kept);
        free(reader->buffer);
        reader->buffer = buffer;
        reader->capacity = wanted;
    } else if (kept > 0) {
        memmove(reader->buffer, source, kept);
    }
    reader->window_offset = offset;
    reader->window_bytes = kept;
    return WEIR_OK;
}

/* Read until the window has `bytes` bytes; up to `wanted` are taken while they come at once. */
static enum weir_status fill_window(struct wal_reader *reader, size_t bytes, size_t wanted,
                                    struct weir_error *error)
{
    while (reader->window_bytes < bytes) {
        uint64_t offset = reader->window_offset + reader->window_bytes;
        ssize_t count =
            reader->io->read(reader->io->context, reader->fd, reader->buffer + reader->window_bytes,
                             wanted - reader->window_bytes, offset);
        if (count < 0)
            return weir_fail_errno(error, (int)-count, "%s offset %" PRIu64 " cannot be read",
                                   reader->name, offset);
        if (count == 0)
            return weir_fail(error, WEIR_CORRUPT,
                             "%s ends at offset %" PRIu64 ", before its size: is it in use?",
                             reader->name, offset);
        reader->window_bytes += (size_t)count;
    }
    return WEIR_OK;
}

enum weir_status wal_reader_view(struct wal_reader *reader, uint64_t offset, size_t bytes,
                                 struct span *view, struct weir_error *error)
{
    uint64_t left = offset < reader->bytes ? reader->bytes - offset : 0;
    if (bytes > left)
        bytes = (size_t)left;
    *view = span_of("", 0);
    if (bytes == 0)
        return WEIR_OK;
    uint64_t window_end = reader->window_offset + reader->window_bytes;
    if (offset < reader->window_offset || offset + bytes > window_end) {
        bool is_first = reader->window_bytes == 0;
        enum weir_status status = move_window(reader, offset, bytes, error);
        if (status != WEIR_OK)
            return status;
        size_t wanted = reader->capacity;
        if (is_first && wanted > FIRST_READ_BYTES)
            wanted = bytes > FIRST_READ_BYTES ? bytes : FIRST_READ_BYTES;
        if (wanted > left)
            wanted = (size_t)left;
        status = fill_window(reader, bytes, wanted, error);
        if (status != WEIR_OK)
            return status;
    }
    *view = span_of(reader->buffer + (offset - reader->window_offset), bytes);
    return WEIR_OK;
}

/* ---- the file header ---- */

/* The remedy is another for a segment: what is behind it can be given up. */
static enum weir_status refuse_file(const struct wal_reader *reader, enum weir_status status,
                                    enum wal_file_kind kind, uint64_t number, const char *why,
                                    struct weir_error *error)
{
    if (kind == WAL_FILE_SNAPSHOT)
        return weir_fail(error, status, "%s offset 0: %s; restore it from a copy", reader->name,
                         why);
    return weir_fail(error, status,
                     "%s offset 0: %s; restore it from a copy, or give it up with all that follows:"
                     " weir log repair --cut-at %" PRIu64 ":0",
                     reader->name, why, number);
}

enum weir_status wal_reader_open(struct wal_reader *reader, const char *directory,
                                 enum wal_file_kind kind, uint64_t number, struct weir_error *error)
{
    char path[WAL_PATH_BYTES];
    struct span block;
    close_file(reader);
    wal_name(reader->name, kind, number);
    wal_path(path, directory, kind, number);
    reader->fd = reader->io->open(reader->io->context, path, O_RDONLY);
    if (reader->fd < 0)
        return weir_fail_errno(error, -reader->fd, "%s cannot be opened", reader->name);
    int result = reader->io->size(reader->io->context, reader->fd, &reader->bytes);
    if (result < 0)
        return weir_fail_errno(error, -result, "the size of %s cannot be told", reader->name);
    enum weir_status status = wal_reader_view(reader, 0, WAL_BLOCK_BYTES, &block, error);
    if (status != WEIR_OK)
        return status;
    status = wal_file_header_decode(block, &reader->header);
    if (status == WEIR_MISMATCH)
        return refuse_file(reader, status, kind, number,
                           "the file is of another version of the format", error);
    if (status != WEIR_OK)
        return refuse_file(reader, status, kind, number, "the file's header is damaged", error);
    if (reader->header.kind != kind || reader->header.number != number)
        return refuse_file(reader, WEIR_CORRUPT, kind, number,
                           "the file was another one when it was written", error);
    return WEIR_OK;
}

/* ---- what is there ---- */

/* Bytes up to the last that is not zero. */
static size_t used_bytes(const char *data, size_t bytes)
{
    /* A run of equal bytes is equal to itself one byte on. */
    if (bytes == 0 || (data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0))
        return 0;
    while (data[bytes - 1] == 0)
        bytes--;
    return bytes;
}

static struct wal_place place_of(const struct wal_reader *reader, uint64_t offset)
{
    return (struct wal_place){reader->header.log_id, reader->header.number, offset};
}

/* Also where the file ends within the header. */
static enum weir_status header_at(const struct wal_reader *reader, uint64_t offset,
                                  struct span bytes, struct wal_frame_header *header)
{
    struct wal_place place = place_of(reader, offset);
    char filled[WAL_FRAME_HEADER_BYTES] = {0};
    if (bytes.bytes >= sizeof filled)
        return wal_frame_header_decode(bytes, &place, header);
    memcpy(filled, bytes.data, bytes.bytes);
    return wal_frame_header_decode(span_of(filled, sizeof filled), &place, header);
}

static void note_frame(const struct wal_frame_header *header, uint64_t offset,
                       struct wal_rest *rest)
{
    uint64_t synced = header->seq - (header->unsynced > 0 ? header->unsynced : 1);
    if (rest->first_frame == 0)
        rest->first_frame = offset;
    if (rest->lowest_seq == 0 || header->seq < rest->lowest_seq)
        rest->lowest_seq = header->seq;
    if (synced > rest->synced_seq)
        rest->synced_seq = synced;
}

enum weir_status wal_reader_scan(struct wal_reader *reader, uint64_t offset, uint64_t frames_from,
                                 struct wal_rest *rest, struct weir_error *error)
{
    *rest = (struct wal_rest){0};
    for (struct span view; offset < reader->bytes; offset += view.bytes) {
        enum weir_status status = wal_reader_view(reader, offset, SCAN_BYTES, &view, error);
        if (status != WEIR_OK)
            return status;
        for (size_t at = 0; at < view.bytes; at += WAL_BLOCK_BYTES) {
            size_t left = view.bytes - at;
            struct span block =
                span_of(view.data + at, left < WAL_BLOCK_BYTES ? left : WAL_BLOCK_BYTES);
            struct wal_frame_header header;
            size_t used = used_bytes(block.data, block.bytes);
            if (used == 0)
                continue;
            rest->bytes_end = offset + at + used;
            if (offset + at >= frames_from &&
                header_at(reader, offset + at, block, &header) == WEIR_OK)
                note_frame(&header, offset + at, rest);
        }
    }
    return WEIR_OK;
}

/* There is no header here. What there is instead shows at how far bytes reach that are not zeros. */
static enum weir_status find_no_header(struct wal_reader *reader, uint64_t offset, bool is_zero,
                                       struct wal_found *found, struct weir_error *error)
{
    struct wal_rest rest;
    enum weir_status status = wal_reader_scan(reader, offset, UINT64_MAX, &rest, error);
    found->body = WAL_BODY_NONE;
    if (rest.bytes_end == 0)
        found->header = WAL_HEADER_ZERO;
    else if (is_zero || rest.bytes_end <= offset + WAL_FRAME_HEADER_BYTES)
        found->header = WAL_HEADER_CUT;
    else
        found->header = WAL_HEADER_BAD;
    return status;
}

enum weir_status wal_reader_find(struct wal_reader *reader, uint64_t offset,
                                 struct wal_found *found, struct weir_error *error)
{
    struct span view;
    struct wal_place place = place_of(reader, offset);
    *found = (struct wal_found){0};
    enum weir_status status = wal_reader_view(reader, offset, WAL_BLOCK_BYTES, &view, error);
    if (status != WEIR_OK)
        return status;
    enum weir_status header = header_at(reader, offset, view, &found->frame);
    if (header != WEIR_OK)
        return find_no_header(reader, offset, header == WEIR_EMPTY, found, error);
    found->header = WAL_HEADER_GOOD;
    found->frame_bytes = wal_frame_bytes(found->frame.payload_bytes);
    status = wal_reader_view(reader, offset, found->frame_bytes, &view, error);
    if (status != WEIR_OK)
        return status;
    if (view.bytes < found->frame_bytes)
        found->body = WAL_BODY_INCOMPLETE;
    else if (wal_frame_body_check(view, &place, &found->frame, &found->payload) == WEIR_OK)
        found->body = WAL_BODY_GOOD;
    else
        found->body =
            wal_frame_is_complete(view, &found->frame) ? WAL_BODY_BAD : WAL_BODY_INCOMPLETE;
    return WEIR_OK;
}

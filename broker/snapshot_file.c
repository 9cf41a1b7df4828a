#include "broker/snapshot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    /* A frame is full when its records have this many bytes: enough that a write is worth its call, and
     * filled in a fraction of a millisecond. */
    SNAPSHOT_FRAME_BYTES = 128 * 1024,
    SNAPSHOT_SYNC_BYTES = 8 * 1024 * 1024,
};

struct snapshot_file {
    const struct wal_io *io;
    char directory[WAL_PATH_BYTES];
    char path[WAL_PATH_BYTES];
    char new_path[WAL_PATH_BYTES + 8];
    int fd; /* -1: not open */
    bool is_finished;
    uint64_t log_id, number, created_ms;
    uint64_t offset; /* of the next frame */
    uint64_t synced; /* below this all is synced */
    uint64_t frame_seq;
    uint32_t record_count;
    struct buffer frame; /* header's room and records of the next frame */
};

static enum weir_status snapshot_file_fail(const struct snapshot_file *file, int cause,
                                           const char *verb, struct weir_error *error)
{
    return weir_fail_errno(error, -cause, "cannot %s %.160s", verb, file->new_path);
}

static enum weir_status snapshot_file_write(struct snapshot_file *file, const char *data,
                                            size_t bytes, struct weir_error *error)
{
    while (bytes > 0) { /* each turn writes something, or ends */
        ssize_t written = file->io->write(file->io->context, file->fd, data, bytes, file->offset);
        if (written == -EINTR)
            continue;
        if (written <= 0)
            return snapshot_file_fail(file, written < 0 ? (int)written : -EIO, "write", error);
        data += written;
        bytes -= (size_t)written;
        file->offset += (uint64_t)written;
    }
    return WEIR_OK;
}

static enum weir_status snapshot_file_begin_frame(struct snapshot_file *file,
                                                  struct weir_error *error)
{
    buffer_clear(&file->frame);
    file->record_count = 0;
    if (buffer_reserve(&file->frame, WAL_FRAME_HEADER_BYTES) != WEIR_OK)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a frame of the snapshot");
    file->frame.bytes = WAL_FRAME_HEADER_BYTES;
    return WEIR_OK;
}

enum weir_status snapshot_file_flush(struct snapshot_file *file, struct weir_error *error)
{
    size_t payload_bytes = file->frame.bytes - WAL_FRAME_HEADER_BYTES;
    size_t frame_bytes = wal_frame_bytes(payload_bytes);
    if (buffer_reserve(&file->frame, frame_bytes - file->frame.bytes) != WEIR_OK)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a frame of the snapshot");
    const struct wal_frame_header header = {.seq = file->frame_seq++,
                                            .time_ms = file->created_ms,
                                            .payload_bytes = (uint32_t)payload_bytes,
                                            .record_count = file->record_count};
    const struct wal_place place = {file->log_id, file->number, file->offset};
    (void)wal_frame_encode(file->frame.data, &header, &place);
    enum weir_status status = snapshot_file_write(file, file->frame.data, frame_bytes, error);
    if (status == WEIR_OK && file->offset - file->synced >= SNAPSHOT_SYNC_BYTES) {
        file->synced = file->offset;
        int result = file->io->sync(file->io->context, file->fd);
        if (result < 0)
            status = snapshot_file_fail(file, result, "sync", error);
    }
    return status == WEIR_OK ? snapshot_file_begin_frame(file, error) : status;
}

struct wal_record snapshot_file_record(const struct store_walk_entry *entry)
{
    if (!entry->is_group)
        return (struct wal_record){
            .kind = WAL_ITEM,
            .created_seq = entry->created_seq,
            .modified_seq = entry->modified_seq,
            .item = entry->item,
            .value = entry->value,
        };
    return (struct wal_record){
        .kind = WAL_GROUP,
        .step = (uint32_t)(entry->numbers.next_ms - entry->numbers.timestamp_ms),
        .epoch = entry->numbers.epoch,
        .seq = entry->numbers.seq,
        .timestamp_ms = entry->numbers.timestamp_ms,
        .stream = entry->stream,
        .group = entry->group,
    };
}

bool snapshot_file_is_full(const struct snapshot_file *file)
{
    return file->frame.bytes - WAL_FRAME_HEADER_BYTES >= SNAPSHOT_FRAME_BYTES;
}

uint64_t snapshot_file_bytes(const struct snapshot_file *file)
{
    return file->offset;
}

enum weir_status snapshot_file_open(struct snapshot_file **opened, const struct wal_io *io,
                                    const char *directory, const struct wal_file_header *header,
                                    struct weir_error *error)
{
    weir_assert(header->kind == WAL_FILE_SNAPSHOT);
    struct snapshot_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a snapshot's file");
    enum weir_status status = WEIR_OK;
    char block[WAL_BLOCK_BYTES];
    file->io = io;
    file->fd = -1;
    file->log_id = header->log_id;
    file->number = header->number;
    file->created_ms = header->created_ms;
    file->frame_seq = 1;
    buffer_init(&file->frame, wal_frame_bytes(WAL_PAYLOAD_BYTES_MAX));
    (void)snprintf(file->directory, sizeof file->directory, "%s", directory);
    wal_path(file->path, directory, WAL_FILE_SNAPSHOT, header->number);
    (void)snprintf(file->new_path, sizeof file->new_path, "%s.new", file->path);

    int fd = io->open(io->context, file->new_path, O_WRONLY | O_CREAT | O_TRUNC);
    if (fd < 0) {
        status = snapshot_file_fail(file, fd, "make", error);
        goto failed;
    }
    file->fd = fd;
    wal_file_header_encode(block, header);
    status = snapshot_file_write(file, block, WAL_BLOCK_BYTES, error);
    if (status == WEIR_OK)
        status = snapshot_file_begin_frame(file, error);
    if (status != WEIR_OK)
        goto failed;
    *opened = file;
    return WEIR_OK;

failed:
    snapshot_file_close(file);
    return status;
}

enum weir_status snapshot_file_put(struct snapshot_file *file, const struct wal_record *record,
                                   struct weir_error *error)
{
    size_t record_bytes = wal_record_bytes(record);
    if (buffer_reserve(&file->frame, record_bytes) != WEIR_OK)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a frame of the snapshot");
    wal_record_encode(file->frame.data + file->frame.bytes, record);
    file->frame.bytes += record_bytes;
    file->record_count++;
    return WEIR_OK;
}

enum weir_status snapshot_file_finish(struct snapshot_file *file, uint64_t end_seq,
                                      struct weir_error *error)
{
    const struct wal_record end = {.kind = WAL_END, .seq = end_seq};
    enum weir_status status = snapshot_file_put(file, &end, error);
    if (status == WEIR_OK)
        status = snapshot_file_flush(file, error);
    if (status != WEIR_OK)
        return status;
    const struct wal_io *io = file->io;
    int result = io->sync(io->context, file->fd);
    if (result < 0)
        return snapshot_file_fail(file, result, "sync", error);
    result = io->close(io->context, file->fd);
    file->fd = -1;
    if (result < 0)
        return snapshot_file_fail(file, result, "close", error);
    result = io->rename(io->context, file->new_path, file->path);
    if (result < 0)
        return snapshot_file_fail(file, result, "rename", error);
    file->is_finished = true; /* under its name; whether for good, the next call says */
    result = io->sync_directory(io->context, file->directory);
    return result < 0 ? snapshot_file_fail(file, result, "sync the directory of", error) : WEIR_OK;
}

void snapshot_file_close(struct snapshot_file *file)
{
    if (file == NULL)
        return;
    if (file->fd >= 0)
        (void)file->io->close(file->io->context, file->fd);
    if (!file->is_finished && file->new_path[0] != '\0')
        (void)file->io->remove(file->io->context, file->new_path);
    buffer_fini(&file->frame);
    free(file);
}

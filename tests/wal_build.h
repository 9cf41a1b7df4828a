/* tests/wal_build.h -- builds a log directory from records, frame by frame, as the broker would leave
 * it: on the disk (wal_io_system) or in memory (wal_memory.h).
 *
 *   wal_build_open(&build, io, directory, log_id, segment_bytes);
 *   wal_build_segment(&build, 1);                  a new segment; frames go there from now on
 *   spot = wal_build_frame(&build, records, 3);    the log's next frame; where it is
 *   wal_build_snapshot(&build, 2, 4, records, 7, 4);
 *
 * wal_build_is_ok(&build) says whether every call has worked; after a failure nothing more is done.
 */
#ifndef WEIR_TESTS_WAL_BUILD_H
#define WEIR_TESTS_WAL_BUILD_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/wal_recovery.h"

struct wal_spot {
    uint64_t segment, offset;
    size_t bytes;
    uint64_t seq;
};

struct wal_build {
    const struct wal_io *io;
    char directory[WAL_PATH_BYTES];
    uint64_t log_id;
    uint64_t segment_bytes;
    uint64_t epoch_base;
    uint64_t segment; /* where frames go */
    uint64_t offset;
    uint64_t seq;      /* of the next frame */
    uint32_t unsynced; /* put into the next frames */
    uint64_t now_ms;
    bool has_failed;
};

static inline void wal_build_open(struct wal_build *build, const struct wal_io *io,
                                  const char *directory, uint64_t log_id, uint64_t segment_bytes)
{
    memset(build, 0, sizeof *build);
    build->io = io;
    (void)snprintf(build->directory, sizeof build->directory, "%s", directory);
    build->log_id = log_id;
    build->segment_bytes = segment_bytes;
    build->epoch_base = 1000;
    build->seq = 1;
    build->now_ms = 1700000000000;
    build->has_failed = io->make_directory(io->context, directory) != 0;
}

static inline bool wal_build_is_ok(const struct wal_build *build)
{
    return !build->has_failed;
}

/* Bytes at a place of a file of any kind. */
static inline void wal_build_write(struct wal_build *build, enum wal_file_kind kind,
                                   uint64_t number, uint64_t offset, const void *data, size_t bytes)
{
    char path[WAL_PATH_BYTES];
    const struct wal_io *io = build->io;
    if (build->has_failed)
        return;
    wal_path(path, build->directory, kind, number);
    int fd = io->open(io->context, path, O_RDWR | O_CREAT);
    build->has_failed = fd < 0;
    for (size_t done = 0; !build->has_failed && done < bytes;) {
        ssize_t count =
            io->write(io->context, fd, (const char *)data + done, bytes - done, offset + done);
        build->has_failed = count <= 0;
        done += count > 0 ? (size_t)count : 0;
    }
    if (fd >= 0)
        (void)io->close(io->context, fd);
}

static inline void wal_build_resize(struct wal_build *build, enum wal_file_kind kind,
                                    uint64_t number, uint64_t bytes)
{
    char path[WAL_PATH_BYTES];
    const struct wal_io *io = build->io;
    wal_path(path, build->directory, kind, number);
    int fd = io->open(io->context, path, O_RDWR | O_CREAT);
    build->has_failed = build->has_failed || fd < 0 || io->truncate(io->context, fd, bytes) != 0;
    if (fd >= 0)
        (void)io->close(io->context, fd);
}

static inline void wal_build_header(struct wal_build *build, enum wal_file_kind kind,
                                    uint64_t number, uint64_t first_seq)
{
    char block[WAL_BLOCK_BYTES];
    const struct wal_file_header header = {
        .kind = kind,
        .log_id = build->log_id,
        .number = number,
        .epoch_base = build->epoch_base,
        .created_ms = build->now_ms,
        .file_bytes = kind == WAL_FILE_LOG ? build->segment_bytes : 0,
        .first_seq = first_seq,
    };
    wal_file_header_encode(block, &header);
    wal_build_write(build, kind, number, 0, block, sizeof block);
}

/* A prepared segment, where frames do not go yet. */
static inline void wal_build_prepare(struct wal_build *build, uint64_t number)
{
    wal_build_header(build, WAL_FILE_LOG, number, 0);
    wal_build_resize(build, WAL_FILE_LOG, number, build->segment_bytes);
}

static inline void wal_build_segment(struct wal_build *build, uint64_t number)
{
    wal_build_prepare(build, number);
    build->segment = number;
    build->offset = WAL_BLOCK_BYTES;
}

/* A frame's bytes, to be freed; *bytes is their number. NULL without memory. */
static inline char *wal_build_encode(const struct wal_build *build, const struct wal_place *place,
                                     uint64_t seq, const struct wal_record *records, size_t count,
                                     size_t *bytes)
{
    size_t payload = 0;
    for (size_t i = 0; i < count; i++)
        payload += wal_record_bytes(&records[i]);
    char *frame = malloc(wal_frame_bytes(payload));
    if (frame == NULL)
        return NULL;
    char *at = frame + WAL_FRAME_HEADER_BYTES;
    for (size_t i = 0; i < count; i++) {
        wal_record_encode(at, &records[i]);
        at += wal_record_bytes(&records[i]);
    }
    const struct wal_frame_header header = {
        .seq = seq,
        .time_ms = build->now_ms,
        .payload_bytes = (uint32_t)payload,
        .record_count = (uint32_t)count,
        .unsynced = build->unsynced,
    };
    *bytes = wal_frame_encode(frame, &header, place);
    return frame;
}

/* Whether a frame of these records still fits the segment. */
static inline bool wal_build_has_room(const struct wal_build *build,
                                      const struct wal_record *records, size_t count)
{
    size_t payload = 0;
    for (size_t i = 0; i < count; i++)
        payload += wal_record_bytes(&records[i]);
    return build->offset + wal_frame_bytes(payload) <= build->segment_bytes;
}

/* The frame `seq` at the log's end, which moves on. */
static inline struct wal_spot wal_build_frame_seq(struct wal_build *build, uint64_t seq,
                                                  const struct wal_record *records, size_t count)
{
    const struct wal_place place = {build->log_id, build->segment, build->offset};
    struct wal_spot spot = {build->segment, build->offset, 0, seq};
    char *frame = wal_build_encode(build, &place, seq, records, count, &spot.bytes);
    build->has_failed = build->has_failed || frame == NULL;
    if (frame != NULL)
        wal_build_write(build, WAL_FILE_LOG, spot.segment, spot.offset, frame, spot.bytes);
    free(frame);
    build->offset += spot.bytes;
    build->now_ms++;
    return spot;
}

static inline struct wal_spot wal_build_frame(struct wal_build *build,
                                              const struct wal_record *records, size_t count)
{
    return wal_build_frame_seq(build, build->seq++, records, count);
}

/* Snapshot `number` of these records (groups and items), in frames of at most so many; its end record
 * says `end_seq`. */
static inline void wal_build_snapshot(struct wal_build *build, uint64_t number, uint64_t first_seq,
                                      const struct wal_record *records, size_t count,
                                      size_t records_per_frame, uint64_t end_seq)
{
    uint64_t offset = WAL_BLOCK_BYTES;
    uint64_t seq = 1;
    size_t done = 0;
    bool is_last = false;
    wal_build_header(build, WAL_FILE_SNAPSHOT, number, first_seq);
    while (!is_last && !build->has_failed) {
        const struct wal_place place = {build->log_id, number, offset};
        struct wal_record part[64];
        size_t part_count = 0;
        size_t bytes = 0;
        while (done < count && part_count < records_per_frame && part_count < 63)
            part[part_count++] = records[done++];
        is_last = done == count;
        if (is_last)
            part[part_count++] = (struct wal_record){.kind = WAL_END, .seq = end_seq};
        char *frame = wal_build_encode(build, &place, seq++, part, part_count, &bytes);
        build->has_failed = build->has_failed || frame == NULL;
        if (frame != NULL)
            wal_build_write(build, WAL_FILE_SNAPSHOT, number, offset, frame, bytes);
        free(frame);
        offset += bytes;
    }
}

#endif

/* broker/wal_read.h -- reading one file of a log: a window that moves over it, and what is found at a
 * place of it; inside recovery and repair only.
 *
 * Process and thread: any one; blocks. Memory: one buffer per reader, kept from file to file, that
 * grows to the largest frame. Views are valid until the reader's next call.
 * Errors: SYSTEM and NO_MEMORY with a sentence; CORRUPT and MISMATCH for file headers, which name the
 * remedy; what is wrong with frames is a finding, not an error.
 */
#ifndef WEIR_BROKER_WAL_READ_H
#define WEIR_BROKER_WAL_READ_H

#include "broker/wal_directory.h"

struct wal_reader {
    const struct wal_io *io;
    int fd; /* -1: no file */
    char name[WAL_NAME_BYTES];
    struct wal_file_header header;
    uint64_t bytes;      /* the file's */
    size_t buffer_bytes; /* the buffer's size unless file or frame want another */
    char *buffer;
    size_t capacity;
    uint64_t window_offset;
    size_t window_bytes;
};

/* What is at a place; the first two members as in struct wal_finding. */
struct wal_found {
    enum wal_header_state header;
    enum wal_body_state body;
    struct wal_frame_header frame; /* header GOOD */
    size_t frame_bytes;            /* header GOOD */
    struct span payload;           /* body GOOD */
};

/* What is in the rest of a file. */
struct wal_rest {
    uint64_t bytes_end;   /* behind the last byte that is not zero; 0: zeros only */
    uint64_t first_frame; /* offset of the first valid header; 0: none */
    uint64_t lowest_seq;  /* of the frames */
    /* As the frames say, those up to this number had been synced when they were written. */
    uint64_t synced_seq;
};

/* Nothing is allocated yet. The buffer has so many bytes, or fewer for small files, or more for large
 * frames. */
void wal_reader_init(struct wal_reader *reader, const struct wal_io *io, size_t buffer_bytes);
void wal_reader_fini(struct wal_reader *reader);

/* Open the file (instead of the one before) and check its header. */
enum weir_status wal_reader_open(struct wal_reader *reader, const char *directory,
                                 enum wal_file_kind kind, uint64_t number,
                                 struct weir_error *error) WEIR_MUST_CHECK;

/* `bytes` bytes from `offset` on, or as many as the file has. */
enum weir_status wal_reader_view(struct wal_reader *reader, uint64_t offset, size_t bytes,
                                 struct span *view, struct weir_error *error) WEIR_MUST_CHECK;

/* Where a frame should be. Reads the rest of the file if there is no header. */
enum weir_status wal_reader_find(struct wal_reader *reader, uint64_t offset,
                                 struct wal_found *found, struct weir_error *error) WEIR_MUST_CHECK;

/* From `offset` on; headers are looked for from `frames_from` on, both on block boundaries. */
enum weir_status wal_reader_scan(struct wal_reader *reader, uint64_t offset, uint64_t frames_from,
                                 struct wal_rest *rest, struct weir_error *error) WEIR_MUST_CHECK;

#endif

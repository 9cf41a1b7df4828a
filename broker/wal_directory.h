/* broker/wal_directory.h -- which files a log directory holds, and their names; for recovery, repair and the
 * log's writers (wal_recovery.h draws the directory).
 *
 * Process and thread: any one; blocks. Memory: lists on the heap, freed by wal_directory_fini().
 */
#ifndef WEIR_BROKER_WAL_DIRECTORY_H
#define WEIR_BROKER_WAL_DIRECTORY_H

#include "broker/wal_recovery.h"

enum { WAL_NAME_BYTES = 32 }; /* a file's name with NUL */
#define WAL_NEW_SUFFIX ".new"

struct wal_numbers {
    uint64_t *list; /* ascending */
    size_t count;
    size_t capacity;
};

struct wal_directory {
    struct wal_numbers segments;
    struct wal_numbers snapshots;
};

void wal_name(char name[WAL_NAME_BYTES], enum wal_file_kind kind, uint64_t number);
/* 0: no name of this kind. */
uint64_t wal_name_number(const char *name, enum wal_file_kind kind);

/* INVALID when a file's path would not fit WAL_PATH_BYTES. */
enum weir_status wal_directory_check(const char *path, struct weir_error *error) WEIR_MUST_CHECK;

/* Every file named as a segment or a snapshot. A directory that is not there is an empty one.
 * NO_MEMORY, FULL (WAL_SEGMENTS_MAX), SYSTEM. To be freed in any case. */
enum weir_status wal_directory_list(struct wal_directory *directory, const struct wal_io *io,
                                    const char *path, struct weir_error *error) WEIR_MUST_CHECK;
void wal_directory_fini(struct wal_directory *directory);

#endif

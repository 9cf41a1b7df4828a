/* cli/log_directory.h -- which files a log directory has, and the lock that keeps brokers out of it.
 *
 * Process and thread: one. Memory: log_directory_close() gives it back.
 * Errors:   REFUSED: a broker is using it. EMPTY: no log is there. SYSTEM. NO_MEMORY.
 */
#ifndef WEIR_CLI_LOG_DIRECTORY_H
#define WEIR_CLI_LOG_DIRECTORY_H

#include "broker/wal_recovery.h"

struct log_file {
    enum wal_file_kind kind;
    uint64_t number;
    uint64_t bytes;
    bool is_unfinished; /* *.new */
};

struct log_directory {
    const char *path;
    int lock_fd; /* -1: not locked */
    struct log_file *files;
    size_t file_count; /* by kind, then number; unfinished ones last */
    uint64_t bytes;    /* of all files */
};

enum { LOG_FILE_NAME_BYTES = 40 };
/* "log-00000000000000000007" */
void log_file_name(char name[LOG_FILE_NAME_BYTES], enum wal_file_kind kind, uint64_t number);

/* What is in the directory now; takes no lock. SYSTEM when there is no such directory. `path` is kept. */
enum weir_status log_directory_read(struct log_directory *directory, const char *path,
                                    struct weir_error *error) WEIR_MUST_CHECK;
/* What is there by now. */
enum weir_status log_directory_refresh(struct log_directory *directory,
                                       struct weir_error *error) WEIR_MUST_CHECK;
/* log_directory_read() of a directory that must have a log, and lock it. */
enum weir_status log_directory_open(struct log_directory *directory, const char *path,
                                    struct weir_error *error) WEIR_MUST_CHECK;
/* Makes it if need be. */
enum weir_status log_directory_lock(struct log_directory *directory,
                                    struct weir_error *error) WEIR_MUST_CHECK;
bool log_directory_has_log(const struct log_directory *directory);
/* Once, whether the calls above were a success or not. */
void log_directory_close(struct log_directory *directory);

#endif

/* cli/log_command.h -- private to `weir log`: what its subcommands are told and share.
 *
 * Process:  a short-lived command on a directory that no broker is using.
 * Errors:   each returns its exit status (command.h): 0 done and sound, 1 damaged or failed, 2 misused.
 *           What went wrong is on stderr already.
 */
#ifndef WEIR_CLI_LOG_COMMAND_H
#define WEIR_CLI_LOG_COMMAND_H

#include "cli/command.h"
#include "cli/log_directory.h"
#include "cli/progress.h"

struct log_options {
    const char *directory;
    const char *config_path;    /* names the directory when the command line does not */
    const char *stream, *group; /* NULL: all */
    uint64_t from_frame;        /* dump */
    uint64_t cut_segment, cut_offset;
    bool is_quiet, is_agreed;
};

int log_verify(const struct log_options *options);
int log_dump(const struct log_options *options);
int log_export(const struct log_options *options);
int log_import(const struct log_options *options);
int log_repair(const struct log_options *options);

/* The log as it is, in one paragraph on stdout. */
enum weir_status log_describe(const struct log_options *options,
                              const struct log_directory *directory,
                              struct weir_error *error) WEIR_MUST_CHECK;
/* On stderr: what the next start of a broker cuts off, if anything. */
void log_tell_cut(const struct wal_recovered *recovered);
bool log_wants(const struct log_options *options, struct span stream, struct span group);
/* `context` is a struct progress. */
void log_show_progress(void *context, uint64_t done_bytes, uint64_t total_bytes);
/* "2026-11-22 00:39:16.123", UTC. */
enum { LOG_TIME_BYTES = 32 };
void log_print_time(char text[LOG_TIME_BYTES], uint64_t time_ms);
/* "weir: SENTENCE"; EXIT_FAILED. */
int log_fail(const struct weir_error *error);
/* All of stdout is with whoever reads it; else EXIT_FAILED, with the reason told. */
int log_flush(void);

#endif

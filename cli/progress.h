/* cli/progress.h -- how far a long piece of work is, for who watches a terminal.
 *
 *   verify  [=========>           ]  43 %  1.2 of 2.8 GiB
 *
 * Nothing is shown during the first half second, and nothing at all where standard error is not a
 * terminal. The line is taken away when the work is done, so that what is said next stands on a line
 * of its own.
 *
 * Process and thread: one. Memory: none. Errors: what cannot be shown is not.
 */
#ifndef WEIR_CLI_PROGRESS_H
#define WEIR_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
    FILE *out; /* NULL: show nothing */
    const char *what;
    uint64_t begun_ms, shown_ms;
    bool is_shown;
};

/* On standard error, if that is a terminal and people want it. */
void progress_begin(struct progress *progress, const char *what, bool is_quiet);
/* `done` of `total` bytes; cheap enough for every call of wal_recovery_options.progress. `total` 0: not
 * known. */
void progress_update(struct progress *progress, uint64_t done, uint64_t total);
void progress_end(struct progress *progress);

/* The same with the time from outside (CLOCK_MONOTONIC, ms). */
void progress_update_at(struct progress *progress, uint64_t done, uint64_t total, uint64_t now_ms);
uint64_t progress_clock_ms(void);

/* "1.2 MiB", "17 bytes". */
enum { PROGRESS_BYTES_TEXT = 32 };
void progress_print_bytes(char text[PROGRESS_BYTES_TEXT], uint64_t bytes);

#endif

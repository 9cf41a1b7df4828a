/* gateway/worker_log.h -- log lines on behalf of workers: engine::log::* (PROTOCOL 2.15) and what
 * of theirs was refused without an answer.
 *
 * A line is cleaned: control characters, quotes, backslashes and characters that change the
 * direction or the line of what follows are escaped, and it is cut at WORKER_LOG_BYTES_MAX. At most
 * WORKER_LOG_LINES_MAX lines a second come out of a gateway, whoever asks for them; those left out
 * are counted, and their number is said when the second is over.
 *
 * Process:  gateway, loop thread only.
 * Memory:   nothing but this struct.
 */
#ifndef WEIR_GATEWAY_WORKER_LOG_H
#define WEIR_GATEWAY_WORKER_LOG_H

#include "shm/span.h"

enum {
    WORKER_LOG_LINES_MAX = 100,
    WORKER_LOG_BYTES_MAX = 2048, /* of a message, before it is escaped; most lines fit PIPE_BUF */
    WORKER_LOG_NAME_BYTES_MAX = 280,
};

struct worker_log {
    uint64_t second; /* of uv_hrtime() */
    unsigned lines;  /* in it */
    uint64_t left_out;
};

/* "event=worker_log level=... worker="..." message="..."". True: it was printed. */
bool worker_log_message(struct worker_log *log, const char *level, struct span worker,
                        struct span message);
/* "event=... name="..."", of what a worker registers in vain. True: it was printed. */
bool worker_log_refusal(struct worker_log *log, const char *event, struct span name);
/* Say what was left out, when the second is over; `now_ms` of uv_hrtime(). */
void worker_log_tick(struct worker_log *log, uint64_t now_ms);

/* Escape `text` (UTF-8), cut at `bytes_max` between characters, into `out` of at least
 * 6 * bytes_max + 4 bytes; NUL-terminated. For tests as well. */
void worker_log_clean(char *out, struct span text, size_t bytes_max);

#endif

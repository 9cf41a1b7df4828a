/* shm/status.h -- the one vocabulary of outcomes, shared by every room.
 *
 * Positive statuses are outcomes a caller plans for; negative ones are failures. Hot paths return
 * the status alone. Cold paths (open, attach, connect, parse, configure) take a last `struct
 * weir_error *`, which may be NULL, and write one sentence where the cause is known.
 */
#ifndef WEIR_SHM_STATUS_H
#define WEIR_SHM_STATUS_H

#include <stdarg.h>

#define WEIR_STATUS_MAP(X)                                                                         \
    X(OK, 0, "success")                                                                            \
    X(EMPTY, 1, "nothing there")                                                                   \
    X(LAPPED, 2, "the writer has overwritten what was to be read")                                 \
    X(PENDING, 3, "not visible yet; ask again after the next wake-up")                             \
    X(REVOKED, 4, "the broker took the reader's epoch back; read again")                           \
    X(AGAIN, 5, "would block")                                                                     \
    X(CORRUPT, -1, "bytes fail their checksum, bounds or grammar")                                 \
    X(SYSTEM, -2, "a system call failed; see sys_errno")                                           \
    X(NO_MEMORY, -3, "memory is exhausted")                                                        \
    X(FULL, -4, "a configured capacity is used up")                                                \
    X(TOO_LARGE, -5, "larger than its limit")                                                      \
    X(INVALID, -6, "not acceptable as given")                                                      \
    X(MISMATCH, -7, "made by another version")                                                     \
    X(UNAVAILABLE, -8, "the peer that has to answer is not there")                                 \
    X(TIMEOUT, -9, "no answer within the time limit")                                              \
    X(REFUSED, -10, "not allowed")                                                                 \
    X(CLOSED, -11, "the connection is closed")

enum weir_status {
#define WEIR_STATUS_ENUM(name, value, text) WEIR_##name = value,
    WEIR_STATUS_MAP(WEIR_STATUS_ENUM)
#undef WEIR_STATUS_ENUM
};

#define WEIR_MUST_CHECK __attribute__((warn_unused_result))
#define WEIR_PRINTF(format_index, first_index)                                                     \
    __attribute__((format(printf, format_index, first_index)))

struct weir_error {
    enum weir_status status;
    int sys_errno;
    char text[256];
};

/* The status's sentence from the map; never NULL. */
const char *weir_status_text(enum weir_status status);

/* Fill `error` (may be NULL) and return `status`, so that a failure reads as one line at its cause. */
enum weir_status weir_fail(struct weir_error *error, enum weir_status status, const char *format,
                           ...) WEIR_PRINTF(3, 4);

/* As weir_fail() with WEIR_SYSTEM: appends strerror(sys_errno). Pass errno captured on the line
 * after the call. */
enum weir_status weir_fail_errno(struct weir_error *error, int sys_errno, const char *format, ...)
    WEIR_PRINTF(3, 4);

/* Only our own bug can break what is asserted; stays on in release builds (docs/architecture.md). */
#define weir_assert(condition)                                                                     \
    ((condition) ? (void)0 : weir_assert_failed(#condition, __FILE__, __LINE__))
void weir_assert_failed(const char *condition, const char *file, int line)
    __attribute__((noreturn, cold));

#endif

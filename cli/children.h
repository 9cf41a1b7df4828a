/* cli/children.h -- the processes a supervisor looks after: start, readiness, restart with
 * back-off, stop.
 *
 *   WAITING --(restart_at)--> STARTING --("ready" on its pipe)--> READY --(it ends)--> WAITING ...
 *                                 |                                                     ^
 *                                 +-------------------(it ends)-------------------------+
 *   With the set stopping, what ends becomes GONE instead. An end that was asked for (is_asked) has no
 *   back-off: the next life begins at once.
 *
 * A child leads its own process group, so that Ctrl-C reaches only the supervisor, which stops them
 * in order; it gets SIGINT when the supervisor dies, however that dies (PR_SET_PDEATHSIG). Its
 * standard output goes to standard error.
 *
 * Process:  supervisor, main thread only (PR_SET_PDEATHSIG is tied to the starting thread).
 * Memory:   the set owns its pipes; `argv` belongs to the caller and must outlive the set.
 * Units:    monotonic milliseconds.
 */
#ifndef WEIR_CLI_CHILDREN_H
#define WEIR_CLI_CHILDREN_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/limits.h"
#include "shm/status.h"

enum {
    CHILDREN_MAX = READERS_MAX + 1, /* the broker and every gateway */
    CHILD_BACKOFF_MS_MIN = 50,
    CHILD_BACKOFF_MS_MAX = 2000,
    CHILD_STEADY_MS = 10000, /* after this long a life the back-off starts anew */
};

enum child_state { CHILD_WAITING, CHILD_STARTING, CHILD_READY, CHILD_GONE };

struct child {
    char name[32];
    const char *const *argv;
    enum child_state state;
    pid_t pid;     /* 0: none */
    int ready_fd;  /* our end of its pipe, or -1 */
    char line[32]; /* of what it says there */
    unsigned line_bytes;
    uint64_t started_ms;
    uint64_t restart_at_ms;
    unsigned backoff_ms; /* of the latest restart */
    bool was_ready;      /* in any of its lives */
    bool is_asked;       /* its end was: it is none of its faults */
    unsigned deaths;     /* that nobody asked for */
    uint64_t left;       /* connections, as it said last while draining */
    int exit_status;     /* of its latest life, as waitpid() tells it */
};

uint64_t child_now_ms(void);
/* Start it now. It finds its readiness pipe as CHILD_READY_FD and `kept_fd`, unless that is -1, as
 * CHILD_KEPT_FD. */
enum { CHILD_READY_FD = 3, CHILD_KEPT_FD = 4 };
enum weir_status child_start(struct child *child, int kept_fd,
                             struct weir_error *error) WEIR_MUST_CHECK;
/* Read its pipe: "ready\n" once, then "left N\n". True when it has just become ready. */
bool child_take_ready(struct child *child);
/* If it has ended: note how, log it, and plan its restart (or, when `is_stopping`, none). True when
 *                  it had. */
bool child_reap(struct child *child, bool is_stopping);
void child_signal(const struct child *child, int signal_number);
/* "status 1" or "signal 9 (Killed)". */
void child_describe_exit(int exit_status, char *out, size_t out_bytes);

#endif

/* tests/torture/child.h -- a server as a child process: started, waited for, killed; what it says is
 * kept in a file.
 *
 * Process and thread: one. A child dies with its parent. Waits are bounded by CHILD_WAIT_MS, which
 * only turns a hang into a failure.
 */
#ifndef WEIR_TESTS_TORTURE_CHILD_H
#define WEIR_TESTS_TORTURE_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { CHILD_WAIT_MS = 120000, CHILD_TEXT_BYTES = 4096, CHILD_NOTE_BYTES = 256 };

struct child {
    pid_t pid;     /* 0: none */
    int ready_fd;  /* -1: none; it writes to the other end when it is ready */
    int note_fd;   /* it writes to the other end what fault has struck */
    int status;    /* of waitpid(2), once it has ended */
    char log[192]; /* file for what it writes to stdout and stderr */
};

enum { CHILD_READY_FD = 3, CHILD_NOTE_FD = 4 }; /* as the child sees them */

/* False: no process. */
bool child_start(struct child *child, const char *log, char *const argv[]);
/* It wrote to CHILD_READY_FD; false: it ended (or did nothing in time) instead. */
bool child_is_ready(struct child *child);
void child_kill(struct child *child, int signal);
/* Waits for its end; false: it had to be killed. */
bool child_wait(struct child *child);
/* It has ended, and by SIGKILL. */
bool child_was_killed(const struct child *child);
/* The first line it wrote to CHILD_NOTE_FD, "" when none. After its end. */
void child_note(struct child *child, char note[CHILD_NOTE_BYTES]);
/* The end of its log. */
void child_text(const struct child *child, char text[CHILD_TEXT_BYTES]);

#endif

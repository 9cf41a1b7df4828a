/* cli/control.h -- the supervisor's own door: run_dir/serve.sock, where `weir drain` asks.
 *
 *   command  "drain\n", "drain 0\n"
 *   answer   lines; the first character says what each is:
 *              '.'  how it goes     '+'  done, the last line     '-'  failed; the last line likewise,
 *                                                                     unless a '.' follows
 *
 * run_dir is the user's alone (rundir.h), and so is the socket: whoever can connect may ask.
 *
 * Process:  supervisor; one client at a time, another one is told so.
 * Memory:   the caller's; a command is one line of CONTROL_LINE_BYTES at most.
 * Errors:   a client that does not read or says something else is let go of; nothing waits for it.
 */
#ifndef WEIR_CLI_CONTROL_H
#define WEIR_CLI_CONTROL_H

#include <poll.h>
#include <stdbool.h>

#include "shm/status.h"

#define CONTROL_SOCKET_NAME "serve.sock"

enum { CONTROL_LINE_BYTES = 256, CONTROL_POLLS = 2 };

struct control {
    int listen_fd; /* -1: not open */
    int client_fd; /* -1: nobody */
    char line[CONTROL_LINE_BYTES];
    unsigned line_bytes;
    bool has_command; /* the client's has been taken */
};

void control_init(struct control *control);
/* Listen in `run_dir`, in place of what an earlier server has left. Call with its lock held. */
enum weir_status control_open(struct control *control, const char *run_dir,
                              struct weir_error *error) WEIR_MUST_CHECK;
void control_close(struct control *control, const char *run_dir);
/* What to wait for; the number of `polls` that were filled. */
unsigned control_poll(const struct control *control, struct pollfd polls[CONTROL_POLLS]);
/* Something of that came. The client's command without its line end, once; NULL: none yet. */
const char *control_take(struct control *control);
bool control_has_client(const struct control *control);
/* A line to the client, if there still is one. */
void control_say(struct control *control, char kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* That was all. */
void control_end(struct control *control);

/* As a client: `*fd` is connected to the server that uses `run_dir`. INVALID: there is none. */
enum weir_status control_connect(const char *run_dir, int *fd,
                                 struct weir_error *error) WEIR_MUST_CHECK;

#endif

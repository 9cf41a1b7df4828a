/* broker/listen.h -- the run directory, its lock and the broker's unix socket.
 *
 * One broker per run directory: whoever holds the lock on <run_dir>/broker.lock may remove a socket
 * an earlier broker left behind and bind its own. The lock ends with the process, however it ends;
 * the lock file stays.
 *
 * Process: the broker, before and after its loop. Memory: plain values. Errors: one sentence naming
 *          the path.
 */
#ifndef WEIR_BROKER_LISTEN_H
#define WEIR_BROKER_LISTEN_H

#include <sys/un.h>

#include "shm/status.h"

struct listen_socket {
    int fd;      /* owned, non-blocking; -1: not open */
    int lock_fd; /* owned */
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
};

/* Makes `run_dir` (0700) when it is not there; refuses one that is not ours alone. REFUSED: another
 * broker serves it. */
enum weir_status listen_open(struct listen_socket *listener, const char *run_dir,
                             struct weir_error *error) WEIR_MUST_CHECK;
/* Removes the socket, then gives the lock back. */
void listen_close(struct listen_socket *listener);
/* -1 when nobody waits. The accepted socket is blocking (broker/uring.c says why) and closed on
 * exec. */
int listen_accept(const struct listen_socket *listener);

#endif

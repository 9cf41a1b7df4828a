/* cli/rundir.h -- the directory of sockets and locks: one server per directory, and nobody else's.
 *
 * Process:  supervisor.
 * Memory:   the descriptors belong to the caller; the lock ends with its descriptor.
 * Errors:   INVALID with the remedy, or SYSTEM.
 */
#ifndef WEIR_CLI_RUNDIR_H
#define WEIR_CLI_RUNDIR_H

#include "shm/status.h"

#define RUNDIR_SOCKET_NAME "weir.sock"
#define RUNDIR_LOCK_NAME "serve.lock"

/* Make the directory (0700) if it is missing; refuse one that is another user's or that others can
 * write to. */
enum weir_status rundir_open(const char *path, struct weir_error *error) WEIR_MUST_CHECK;
/* Take <path>/serve.lock, or say whose it is. */
enum weir_status rundir_lock(const char *path, int *fd, struct weir_error *error) WEIR_MUST_CHECK;
/* Listen on <path>/<name> (0600), in place of what an earlier server has left. Call with the lock
 * held. */
enum weir_status rundir_listen(const char *path, const char *name, int *fd,
                               struct weir_error *error) WEIR_MUST_CHECK;
/* Remove the socket's name. */
void rundir_unlisten(const char *path, const char *name);

#endif

/* gateway/local.h -- the binary worker channel: libweir on the gateway's unix socket (shm/wire.h).
 *
 *   HELLO --> WELCOME; then FUNCTION_REGISTER, FUNCTION_UNREGISTER, TRIGGER_*, CALL, RESULT from
 *   the worker, RESULT, INVOKE, FUNCTION_REJECTED, TRIGGER_BIND, TRIGGER_UNBIND, TRIGGER_RESULT to
 *   it.
 *   What they mean is in sessions.h, session_triggers.h and calls.h.
 *
 * A HELLO that names the worker's previous connection and its token is a reattach: nothing behind
 * it, and nothing of what it says of the worker, is taken up before that connection has ended.
 *
 * Process:  gateway, loop thread only.
 * Memory:   per connection an input of one frame and an output of at most LOCAL_OUTPUT_BYTES_MAX;
 *           beyond LOCAL_BACKLOG_BYTES reading pauses, beyond the maximum the connection is closed.
 *           JSON that comes in is validated here, for it is spliced into other messages unread.
 */
#ifndef WEIR_GATEWAY_LOCAL_H
#define WEIR_GATEWAY_LOCAL_H

#include "gateway/calls.h"

enum {
    LOCAL_CONNECTIONS_MAX = 1024,
    LOCAL_BACKLOG_BYTES = 1024 * 1024,
    LOCAL_OUTPUT_BYTES_MAX = 128 * 1024 * 1024,
};

struct local;
/* `fd`: a listening socket that several gateways may share; taken over. */
enum weir_status local_open(struct local **local, uv_loop_t *loop, int fd,
                            struct sessions *sessions, struct counters *counters,
                            struct weir_error *error) WEIR_MUST_CHECK;
/* Bind `path`, mode 0600, replacing what a dead process left there. */
enum weir_status local_bind(const char *path, int *fd, struct weir_error *error) WEIR_MUST_CHECK;
/* Stop accepting and close every connection; memory is given back once the loop has run. */
void local_close(struct local *local);
/* Send what was gathered; once at the end of a turn. */
void local_flush(struct local *local);
/* Accept no more; what waits already is taken. Where gateways share the socket the others go on. */
void local_stop_accepting(struct local *local);
/* Let one more connection go: it is closed at a moment when no call of it or to it is in flight
 * (parting.h). False: all are. */
bool local_let_go(struct local *local);
unsigned local_connection_count(const struct local *local);

#endif

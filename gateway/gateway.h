/* gateway/gateway.h -- puts a gateway together and runs it until it is to stop.
 *
 *   SIGTERM            drains first (drain.h), unless drain_ms is 0
 *   SIGINT, or either
 *   while it drains    stops at once: its sockets are closed with 1001
 *
 * Process:  its own; the calling thread becomes the loop thread.
 * Errors:   a listener, a socket or memory that cannot be had at start is one sentence. Later the
 *           gateway runs on whatever happens to the broker.
 */
#ifndef WEIR_GATEWAY_GATEWAY_H
#define WEIR_GATEWAY_GATEWAY_H

#include "config/settings.h"

struct gateway_options {
    const struct settings *settings; /* resolved */
    uint64_t index;                  /* among the host's gateways, for logs and metrics */
    int ready_fd; /* "ready\n" is written here, and "left N\n" while it drains; -1: none */
    int local_fd; /* listening socket for libweir; -1: bind run_dir/weir.sock */
};

enum weir_status gateway_run(const struct gateway_options *options,
                             struct weir_error *error) WEIR_MUST_CHECK;

#endif

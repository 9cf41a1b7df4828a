/* gateway/gateway.h -- puts a gateway together and runs it until SIGTERM or SIGINT.
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
    int ready_fd;                    /* "ready\n" is written here; -1: none */
    int local_fd;                    /* listening socket for libweir; -1: bind run_dir/weir.sock */
};

enum weir_status gateway_run(const struct gateway_options *options,
                             struct weir_error *error) WEIR_MUST_CHECK;

#endif

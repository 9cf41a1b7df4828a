/* cli/reserve.h -- holding a TCP port for the supervisor's whole life.
 *
 * A bound, non-listening SO_REUSEPORT socket keeps the number: a port chosen by the kernel (0) is
 * known before any gateway starts and stays the same when gateways restart, and no other user's
 * process can take it. Connections never arrive at it.
 *
 * Process:  supervisor.
 * Errors:   INVALID with a sentence naming the port, its setting and the remedy; SYSTEM for
 *           anything else.
 */
#ifndef WEIR_CLI_RESERVE_H
#define WEIR_CLI_RESERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/status.h"

/* What to name in errors for a port that the configuration file gives a worker listener. */
#define RESERVE_LISTENER_PORT "port of a worker listener"

/* `setting` is the key to name in errors, or RESERVE_LISTENER_PORT. *port 0 becomes the port chosen.
 * *fd stays open for as long as it is wanted. */
enum weir_status reserve_port(const char *host, uint16_t *port, const char *setting, int *fd,
                              struct weir_error *error) WEIR_MUST_CHECK;

#endif

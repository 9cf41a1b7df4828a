/* cli/rolling.h -- restarts gateways one after the other, without the server being away.
 *
 *   NEXT --SIGTERM--> DRAINING --it ends--> STARTING --"ready"--> NEXT ... --> IDLE
 *                        '--too late: SIGKILL, told and counted as a failure
 *   STARTING --it dies, or is not ready in time--> IDLE: the other gateways are left as they are
 *
 * A gateway that is not there when its turn comes (it has died, and waits for its restart) is waited
 * for like one that was drained. When the client goes, the gateway at hand is the last one.
 *
 * Process:  supervisor. The children are started again by whoever looks after them (children.h).
 * Units:    monotonic ms.
 */
#ifndef WEIR_CLI_ROLLING_H
#define WEIR_CLI_ROLLING_H

#include "cli/children.h"
#include "cli/control.h"

enum {
    ROLLING_DRAIN_SLACK_MS =
        10000, /* beyond drain_ms, for the Close handshakes and a loaded machine */
    ROLLING_READY_MS = 30000,
    ROLLING_TELL_MS = 1000,
};

enum rolling_phase { ROLLING_IDLE, ROLLING_NEXT, ROLLING_DRAINING, ROLLING_STARTING };

struct rolling {
    struct control *control;
    struct child *gateways;
    enum rolling_phase phase;
    size_t at, end; /* gateways[at] to gateways[end - 1] are still to be restarted */
    size_t restarted;
    uint64_t drain_ms;
    uint64_t began_ms;    /* with the gateway at hand */
    uint64_t deadline_ms; /* of the phase; UINT64_MAX: none */
    uint64_t told_ms;
    pid_t old_pid;
    unsigned deaths; /* of the gateway at hand, when its new life was to begin */
    bool has_failed;
};

void rolling_init(struct rolling *rolling, struct control *control);
bool rolling_is_idle(const struct rolling *rolling);
/* Restart gateways[first] to gateways[end - 1]. It must be idle. */
void rolling_start(struct rolling *rolling, struct child *gateways, size_t first, size_t end,
                   uint64_t drain_ms);
/* Go on as far as the children allow; once a turn. */
void rolling_step(struct rolling *rolling);
/* When rolling_step() is due without anything else happening; UINT64_MAX: not. */
uint64_t rolling_due_ms(const struct rolling *rolling);
/* The server stops. */
void rolling_abandon(struct rolling *rolling);

#endif

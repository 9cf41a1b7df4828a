/* cli/launch.h -- what `weir serve` runs with: its command line, the settings that come of it, what it
 * holds for as long as it lives, and the arguments its processes are started with.
 *
 *   arguments --> settings --> programs found, run_dir locked, ports reserved, weir.sock --> argv of each
 *
 * Ports that were asked for as 0 are chosen here and told to the processes, so that a gateway has the
 * same ones in every life.
 *
 * Process:  supervisor. What is held is the kernel's to take back.
 * Memory:   the caller's; argv and texts are inside and must outlive the processes' starts.
 * Errors:   a sentence for the user, on stderr or in `error`.
 */
#ifndef WEIR_CLI_LAUNCH_H
#define WEIR_CLI_LAUNCH_H

#include <limits.h>

#include "cli/children.h"
#include "config/settings.h"

enum {
    LAUNCH_ASSIGNMENTS_MAX = 128, /* --set on the command line; more is refused */
    LAUNCH_ARGV_MAX = 2 * LAUNCH_ASSIGNMENTS_MAX + 32,
};

struct launch {
    struct settings settings;
    const char *config_path;
    const char *assignments[LAUNCH_ASSIGNMENTS_MAX];
    size_t assignment_count;
    char gateways_wish[40];   /* what --gateways sets */
    char directory[PATH_MAX]; /* of this program, and of those it starts */
    int lock_fd;
    int socket_fd; /* weir.sock, which each gateway accepts from */
    int port_fds[3];
    int listener_fds[SETTINGS_LISTENERS_MAX];
    char listener_ports_text[SETTINGS_LISTENERS_MAX * 8]; /* "49135,40001" */
    char stream_port_text[40];
    char worker_port_text[40];
    char admin_text[SETTINGS_TEXT_BYTES + 16];
    char run_dir_text[SETTINGS_TEXT_BYTES + 16];
    char gateways_text[40];
    char ready_fd_text[12];
    char socket_fd_text[12];
    char broker_path[PATH_MAX + 16];
    char gateway_path[PATH_MAX + 16];
    char index_texts[READERS_MAX][24];
    const char *argvs[CHILDREN_MAX][LAUNCH_ARGV_MAX];
};

void launch_init(struct launch *launch);
/* EXIT_DONE; anything else: it was said what is wrong, and is what to end with. */
int launch_read_arguments(struct launch *launch, int argc, char **argv);
enum weir_status launch_read_settings(struct launch *launch,
                                      struct weir_error *error) WEIR_MUST_CHECK;
enum weir_status launch_hold(struct launch *launch, struct weir_error *error) WEIR_MUST_CHECK;
/* Of the broker (0) or of gateway `position` - 1, when all is held. */
const char *const *launch_argv(struct launch *launch, size_t position);

#endif

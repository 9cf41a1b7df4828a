/* cli/command.h -- the subcommands of `weir` and what they share.
 *
 * Process:  the short-lived command, or the supervisor (`weir serve`).
 * Errors:   each command returns its exit status: 0 done, 1 failed, 2 misused. What went wrong is
 *           on stderr already.
 */
#ifndef WEIR_CLI_COMMAND_H
#define WEIR_CLI_COMMAND_H

#include <stdbool.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_MISUSED = 2 };

/* argv[0] is the subcommand's name; argv[argc] is NULL. */
int serve_run(int argc, char **argv);
int drain_run(int argc, char **argv);
int trigger_run(int argc, char **argv);
int tail_run(int argc, char **argv);
int log_run(int argc, char **argv);

/* The help of one topic on stdout, or of all when `topic` is NULL. False: there is no such topic. */
bool help_print(const char *topic);

/* A walk over options. `--name VALUE` and `--name=VALUE` are the same; `--` ends the options. */
struct arguments {
    int argc;
    char **argv;
    int position; /* of the next argument; start at 1 */
    bool is_options_over;
};

/* The next argument: an option's name (with its dashes) or, with *is_option false, an operand. NULL
 * at the end. */
const char *arguments_next(struct arguments *arguments, bool *is_option);
/* True when the option just read is `name`; its value comes from the same or the next argument. A
 * missing value is said on stderr and leaves *value NULL. */
bool arguments_take_value(struct arguments *arguments, const char *option, const char *name,
                          const char **value);
/* Say that `option` is not known to `command`; EXIT_MISUSED. */
int arguments_refuse(const char *command, const char *option);
/* Say that `command` takes options only; EXIT_MISUSED. */
int arguments_refuse_operand(const char *command, const char *operand);

#endif

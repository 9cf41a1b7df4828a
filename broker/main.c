/* weir-broker: reads its settings, opens the broker, says it is ready, serves until SIGTERM or
 * SIGINT. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "broker/broker.h"

enum { EXIT_USAGE = 2 };

struct command {
    struct settings settings;
    int ready_fd;
};

static void print_help(void)
{
    (void)printf("usage: weir-broker [--config FILE] [--set KEY=VALUE]... [--ready-fd N]\n\n"
                 "The one writer of a host: owns items, event order and function routes; gateways "
                 "attach to it\n"
                 "over <run_dir>/broker.sock. `weir serve` starts it together with gateways.\n\n"
                 "  --config FILE    settings as YAML\n"
                 "  --set KEY=VALUE  one setting, over the file; may be repeated\n"
                 "  --ready-fd N     write \"ready\" to this descriptor once serving\n"
                 "  --help           this text\n"
                 "  --version        the version\n\nsettings:\n");
    settings_print_help(stdout);
}

static int fail(const struct weir_error *error)
{
    (void)fprintf(stderr, "weir-broker: %s\n", error->text);
    return EXIT_FAILURE;
}

static int parse_ready_fd(const char *text)
{
    char *end = NULL;
    errno = 0;
    long number = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && number >= 0 && number < 65536 ? (int)number
                                                                                   : -1;
}

/* -1: go on; else the exit code. Two passes, so that --set wins over --config in any order. */
static int parse_arguments(struct command *command, int argc, char **argv, bool assignments)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},   {"set", required_argument, NULL, 's'},
        {"ready-fd", required_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},        {NULL, 0, NULL, 0},
    };
    struct weir_error error = {0};
    int option = 0;
    optind = 1;
    while ((option = getopt_long(argc, argv, "c:s:h", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            if (!assignments && settings_load(&command->settings, optarg, &error) != WEIR_OK)
                return fail(&error);
            break;
        case 's':
            if (assignments && settings_set(&command->settings, optarg, &error) != WEIR_OK)
                return fail(&error);
            break;
        case 'r':
            command->ready_fd = parse_ready_fd(optarg);
            if (command->ready_fd < 0) {
                (void)fprintf(stderr,
                              "weir-broker: --ready-fd takes the number of an open descriptor\n");
                return EXIT_USAGE;
            }
            break;
        case 'h':
            print_help();
            return EXIT_SUCCESS;
        case 'v':
            (void)printf("weir-broker %s\n", WEIR_VERSION);
            return EXIT_SUCCESS;
        default:
            return EXIT_USAGE; /* getopt has said why */
        }
    }
    if (optind < argc) {
        (void)fprintf(stderr, "weir-broker: unexpected argument '%s'; see --help\n", argv[optind]);
        return EXIT_USAGE;
    }
    return -1;
}

static void tell_ready(int ready_fd)
{
    if (ready_fd < 0)
        return;
    if (write(ready_fd, "ready\n", 6) != 6)
        (void)fprintf(stderr, "weir-broker: could not write to --ready-fd %d\n", ready_fd);
    (void)close(ready_fd);
}

/* Stop signals are read from a descriptor; a closed socket is an error of its send. */
static void prepare_signals(void)
{
    sigset_t stop;
    (void)sigemptyset(&stop);
    (void)sigaddset(&stop, SIGTERM);
    (void)sigaddset(&stop, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &stop, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    static struct command command = {.ready_fd = -1};
    struct weir_error error = {0};
    struct broker *broker = NULL;

    settings_init(&command.settings);
    int code = parse_arguments(&command, argc, argv, false);
    if (code < 0)
        code = parse_arguments(&command, argc, argv, true);
    if (code >= 0)
        return code;
    if (settings_resolve(&command.settings, &error) != WEIR_OK)
        return fail(&error);

    prepare_signals();
    if (broker_open(&broker, &command.settings, NULL, &error) != WEIR_OK)
        return fail(&error);
    tell_ready(command.ready_fd);
    enum weir_status status = broker_run(broker, &error);
    broker_close(broker);
    return status == WEIR_OK ? EXIT_SUCCESS : fail(&error);
}

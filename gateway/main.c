/* weir-gateway: one of the processes that hold the sockets. Usually started by `weir serve`. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "gateway/gateway.h"

static void print_help(void)
{
    printf("usage: weir-gateway [--config FILE] [--set KEY=VALUE]... [--index N]\n"
           "                    [--ready-fd FD] [--local-fd FD] [--listener-ports PORT,...]\n"
           "                    [--help] [--version]\n\n"
           "Serves subscribers and workers; needs weir-broker running with the same run_dir.\n\n"
           "  --config FILE    configuration file (YAML)\n"
           "  --set KEY=VALUE  one setting, over the file; may be repeated\n"
           "  --index N        number of this gateway in logs and metrics\n"
           "  --ready-fd FD    write \"ready\" here when attached and listening\n"
           "  --local-fd FD    listening unix socket for libweir; else run_dir/weir.sock\n"
           "  --listener-ports PORT,...\n"
           "                   ports of the file's further worker listeners, over what it says\n\n"
           "settings:\n");
    settings_print_help(stdout);
}

/* A whole number from 0 to `max`, or -1. */
static long read_number(const char *text, long max)
{
    char *end = NULL;
    long number = strtol(text, &end, 10);
    return end == text || *end != '\0' || number < 0 || number > max ? -1 : number;
}

struct arguments {
    struct settings settings;
    struct gateway_options options;
    const char *listener_ports; /* NULL: as in the file */
    bool is_done;               /* help or version was printed */
};

enum {
    OPTION_CONFIG = 1,
    OPTION_SET,
    OPTION_INDEX,
    OPTION_READY_FD,
    OPTION_LOCAL_FD,
    OPTION_LISTENER_PORTS,
    OPTION_HELP,
    OPTION_VERSION
};
static const struct option long_options[] = {
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"set", required_argument, NULL, OPTION_SET},
    {"index", required_argument, NULL, OPTION_INDEX},
    {"ready-fd", required_argument, NULL, OPTION_READY_FD},
    {"local-fd", required_argument, NULL, OPTION_LOCAL_FD},
    {"listener-ports", required_argument, NULL, OPTION_LISTENER_PORTS},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

static enum weir_status take_option(struct arguments *arguments, int option,
                                    struct weir_error *error)
{
    long number = 0;
    switch (option) {
    case OPTION_CONFIG:
    case OPTION_SET:
        return WEIR_OK; /* the file first, then what overrides it: see take_settings() */
    case OPTION_INDEX:
        number = read_number(optarg, 1 << 20);
        arguments->options.index = (uint64_t)number;
        break;
    case OPTION_READY_FD:
        number = read_number(optarg, 1 << 20);
        arguments->options.ready_fd = (int)number;
        break;
    case OPTION_LOCAL_FD:
        number = read_number(optarg, 1 << 20);
        arguments->options.local_fd = (int)number;
        break;
    case OPTION_LISTENER_PORTS:
        arguments->listener_ports = optarg;
        break;
    case OPTION_HELP:
        print_help();
        arguments->is_done = true;
        break;
    case OPTION_VERSION:
        printf("weir-gateway %s\n", WEIR_VERSION);
        arguments->is_done = true;
        break;
    default:
        return weir_fail(error, WEIR_INVALID, "unknown option; see --help");
    }
    if (number < 0)
        return weir_fail(error, WEIR_INVALID, "\"%s\" is not a number", optarg);
    return WEIR_OK;
}

/* One pass over the command line that takes only `wanted`. */
static enum weir_status take_settings(struct arguments *arguments, int argc, char **argv,
                                      int wanted, struct weir_error *error)
{
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        enum weir_status status = WEIR_OK;
        if (option == wanted && option == OPTION_CONFIG)
            status = settings_load(&arguments->settings, optarg, error);
        else if (option == wanted)
            status = settings_set(&arguments->settings, optarg, error);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static enum weir_status read_arguments(struct arguments *arguments, int argc, char **argv,
                                       struct weir_error *error)
{
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        enum weir_status status = take_option(arguments, option, error);
        if (status != WEIR_OK || arguments->is_done)
            return status;
    }
    if (optind < argc)
        return weir_fail(error, WEIR_INVALID, "unexpected argument \"%s\"; see --help",
                         argv[optind]);
    enum weir_status status = take_settings(arguments, argc, argv, OPTION_CONFIG, error);
    if (status == WEIR_OK)
        status = take_settings(arguments, argc, argv, OPTION_SET, error);
    if (status == WEIR_OK && arguments->listener_ports != NULL)
        status =
            settings_set_listener_ports(&arguments->settings, arguments->listener_ports, error);
    if (status == WEIR_OK)
        status = settings_resolve(&arguments->settings, error);
    return status;
}

int main(int argc, char **argv)
{
    static struct arguments arguments = {.options = {.ready_fd = -1, .local_fd = -1}};
    struct weir_error error = {0};
    settings_init(&arguments.settings);
    arguments.options.settings = &arguments.settings;
    enum weir_status status = read_arguments(&arguments, argc, argv, &error);
    if (status == WEIR_OK && arguments.is_done)
        return EXIT_SUCCESS;
    if (status == WEIR_OK)
        status = gateway_run(&arguments.options, &error);
    if (status != WEIR_OK) {
        (void)fprintf(stderr, "weir-gateway: %s\n", error.text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

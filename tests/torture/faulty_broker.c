/* weir-broker with a disk that fails when told, for the crash campaign:
 *
 *   torture_broker [--fault PLAN] [--limbo DIR] [--snapshot-bytes N] [--boot ID] [--set KEY=VALUE]... --ready-fd N
 *
 * PLAN is fault_plan.h's, and needs a directory for removed files when the power can go (power.h). --snapshot-bytes is snapshot_log_bytes below what the setting allows, so that
 * snapshots come one after the other. --boot is what the machine's boot id is supposed to be. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "broker/broker.h"
#include "tests/torture/faulty_disk.h"

enum { EXIT_USAGE = 2 };

struct command {
    struct settings settings;
    struct faulty_disk disk;
    uint64_t snapshot_bytes; /* 0: as set */
    const char *boot;        /* NULL: what the kernel says */
    int ready_fd;
};

static int fail(const char *sentence)
{
    (void)fprintf(stderr, "weir-broker: %s\n", sentence);
    return EXIT_FAILURE;
}

/* -1: go on; else the exit code. */
static int parse(struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"fault", required_argument, NULL, 'f'},
                                            {"snapshot-bytes", required_argument, NULL, 'n'},
                                            {"boot", required_argument, NULL, 'b'},
                                            {"limbo", required_argument, NULL, 'l'},
                                            {"set", required_argument, NULL, 's'},
                                            {"ready-fd", required_argument, NULL, 'r'},
                                            {NULL, 0, NULL, 0}};
    struct weir_error error = {0};
    const char *fault = NULL, *limbo = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'f':
            fault = optarg;
            break;
        case 'b':
            command->boot = optarg;
            break;
        case 'l':
            limbo = optarg;
            break;
        case 'n':
            command->snapshot_bytes = strtoull(optarg, NULL, 10);
            break;
        case 's':
            if (settings_set(&command->settings, optarg, &error) != WEIR_OK)
                return fail(error.text);
            break;
        case 'r':
            command->ready_fd = atoi(optarg);
            break;
        default:
            return EXIT_USAGE;
        }
    }
    if (!faulty_disk_init(&command->disk, fault, limbo))
        return fail("--fault is no plan");
    return -1;
}

/* As weir-broker does. */
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
    int code = parse(&command, argc, argv);
    if (code >= 0)
        return code;
    if (settings_resolve(&command.settings, &error) != WEIR_OK)
        return fail(error.text);
    if (command.snapshot_bytes > 0)
        command.settings.snapshot_log_bytes = command.snapshot_bytes;

    prepare_signals();
    struct durability_seam seam = faulty_disk_seam(&command.disk);
    seam.boot = command.boot;
    if (broker_open(&broker, &command.settings, &seam, &error) != WEIR_OK)
        return fail(error.text);
    if (command.ready_fd >= 0) {
        if (write(command.ready_fd, "ready\n", 6) != 6)
            (void)fprintf(stderr, "weir-broker: nobody waits for it\n");
        (void)close(command.ready_fd);
    }
    enum weir_status status = broker_run(broker, &error);
    broker_close(broker);
    return status == WEIR_OK ? EXIT_SUCCESS : fail(error.text);
}

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "cli/command.h"
#include "cli/control.h"
#include "config/settings.h"

struct drain {
    const char *config_path, *run_dir;
    const char *gateway; /* NULL: all, one after the other */
};

static int drain_read_arguments(struct drain *drain, int argc, char **argv)
{
    struct arguments arguments = {.argc = argc, .argv = argv, .position = 1};
    bool is_option;
    const char *argument;
    while ((argument = arguments_next(&arguments, &is_option)) != NULL) {
        const char *value = NULL;
        if (!is_option)
            return arguments_refuse_operand("drain", argument);
        if (arguments_take_value(&arguments, argument, "--gateway", &value))
            drain->gateway = value;
        else if (arguments_take_value(&arguments, argument, "--run-dir", &value))
            drain->run_dir = value;
        else if (arguments_take_value(&arguments, argument, "--config", &value))
            drain->config_path = value;
        else
            return arguments_refuse("drain", argument);
        if (value == NULL)
            return EXIT_MISUSED;
    }
    if (drain->gateway == NULL)
        return EXIT_DONE;
    if (*drain->gateway != '\0' && strlen(drain->gateway) <= 9 &&
        strspn(drain->gateway, "0123456789") == strlen(drain->gateway))
        return EXIT_DONE;
    (void)fprintf(stderr, "weir: --gateway %.40s: use a gateway's number, from 0 on\n",
                  drain->gateway);
    return EXIT_MISUSED;
}

static enum weir_status drain_connect(const struct drain *drain, int *fd, struct weir_error *error)
{
    if (drain->run_dir != NULL)
        return control_connect(drain->run_dir, fd, error);
    static struct settings settings;
    settings_init(&settings);
    enum weir_status status = WEIR_OK;
    if (drain->config_path != NULL)
        status = settings_load(&settings, drain->config_path, error);
    if (status == WEIR_OK)
        status = settings_resolve(&settings, error);
    if (status == WEIR_OK)
        status = control_connect(settings.run_dir, fd, error);
    settings_fini(&settings);
    return status;
}

/* The last line says whether it was done. */
static int drain_show(int fd)
{
    FILE *answers = fdopen(fd, "r");
    char line[2 * CONTROL_LINE_BYTES];
    bool is_done = false, has_failed = false;
    while (answers != NULL && fgets(line, sizeof line, answers) != NULL) {
        is_done = line[0] == '+';
        has_failed = has_failed || line[0] == '-';
        (void)fprintf(line[0] == '-' ? stderr : stdout, "weir: %s", line + 1);
        (void)fflush(stdout);
    }
    if (!is_done && !has_failed)
        (void)fprintf(stderr, "weir: the server ended before it was done\n");
    if (answers != NULL)
        (void)fclose(answers);
    return is_done && !has_failed ? EXIT_DONE : EXIT_FAILED;
}

int drain_run(int argc, char **argv)
{
    struct drain drain = {0};
    struct weir_error error;
    int fd;
    int misuse = drain_read_arguments(&drain, argc, argv);
    if (misuse != EXIT_DONE)
        return misuse;
    if (drain_connect(&drain, &fd, &error) != WEIR_OK) {
        (void)fprintf(stderr, "weir: %s\n", error.text);
        return EXIT_FAILED;
    }
    char command[40];
    int bytes = snprintf(command, sizeof command, "drain%s%s\n", drain.gateway != NULL ? " " : "",
                         drain.gateway != NULL ? drain.gateway : "");
    /* A server that is busy may have answered and closed before it was asked. */
    (void)!send(fd, command, (size_t)bytes, MSG_NOSIGNAL);
    return drain_show(fd);
}

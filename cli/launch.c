#include "cli/launch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/reserve.h"
#include "cli/rundir.h"

void launch_init(struct launch *launch)
{
    *launch = (struct launch){.lock_fd = -1, .socket_fd = -1, .port_fds = {-1, -1, -1}};
}

/* ---- the command line ---- */

int launch_read_arguments(struct launch *launch, int argc, char **argv)
{
    struct arguments arguments = {.argc = argc, .argv = argv, .position = 1};
    bool is_option;
    const char *argument;
    while ((argument = arguments_next(&arguments, &is_option)) != NULL) {
        const char *value = NULL;
        if (!is_option)
            return arguments_refuse_operand("serve", argument);
        if (arguments_take_value(&arguments, argument, "--config", &value)) {
            launch->config_path = value;
        } else if (arguments_take_value(&arguments, argument, "--gateways", &value)) {
            if (value != NULL)
                (void)snprintf(launch->gateways_wish, sizeof launch->gateways_wish, "gateways=%s",
                               value);
            value = value != NULL ? launch->gateways_wish : NULL;
        } else if (!arguments_take_value(&arguments, argument, "--set", &value)) {
            return arguments_refuse("serve", argument);
        }
        if (value == NULL)
            return EXIT_MISUSED;
        if (value == launch->config_path)
            continue;
        if (launch->assignment_count == LAUNCH_ASSIGNMENTS_MAX) {
            (void)fprintf(stderr, "weir: more than %d --set; put them into a file for --config\n",
                          LAUNCH_ASSIGNMENTS_MAX);
            return EXIT_MISUSED;
        }
        launch->assignments[launch->assignment_count++] = value;
    }
    return EXIT_DONE;
}

enum weir_status launch_read_settings(struct launch *launch, struct weir_error *error)
{
    settings_init(&launch->settings);
    enum weir_status status = WEIR_OK;
    if (launch->config_path != NULL)
        status = settings_load(&launch->settings, launch->config_path, error);
    for (size_t i = 0; i < launch->assignment_count && status == WEIR_OK; i++)
        status = settings_set(&launch->settings, launch->assignments[i], error);
    return status == WEIR_OK ? settings_resolve(&launch->settings, error) : status;
}

/* ---- what is held ---- */

static enum weir_status launch_find_programs(struct launch *launch, struct weir_error *error)
{
    ssize_t bytes = readlink("/proc/self/exe", launch->directory, sizeof launch->directory - 1);
    if (bytes <= 0)
        return weir_fail_errno(error, errno, "cannot tell where this program is");
    launch->directory[bytes] = '\0';
    char *slash = strrchr(launch->directory, '/');
    if (slash == NULL)
        return weir_fail(error, WEIR_INVALID, "cannot tell where this program is");
    *slash = '\0';
    (void)snprintf(launch->broker_path, sizeof launch->broker_path, "%s/weir-broker",
                   launch->directory);
    (void)snprintf(launch->gateway_path, sizeof launch->gateway_path, "%s/weir-gateway",
                   launch->directory);
    const char *const paths[] = {launch->broker_path, launch->gateway_path};
    for (size_t i = 0; i < 2; i++) {
        if (access(paths[i], X_OK) != 0)
            return weir_fail_errno(
                error, errno, "cannot execute %.160s, which belongs beside this program", paths[i]);
    }
    return WEIR_OK;
}

static enum weir_status launch_reserve_ports(struct launch *launch, struct weir_error *error)
{
    struct settings *settings = &launch->settings;
    uint16_t stream_port = (uint16_t)settings->stream_port;
    uint16_t worker_port = (uint16_t)settings->worker_port;
    enum weir_status status = reserve_port(settings->stream_host, &stream_port, "stream_port",
                                           &launch->port_fds[0], error);
    if (status == WEIR_OK)
        status = reserve_port(settings->worker_host, &worker_port, "worker_port",
                              &launch->port_fds[1], error);
    if (status != WEIR_OK)
        return status;
    settings->stream_port = stream_port;
    settings->worker_port = worker_port;
    (void)snprintf(launch->stream_port_text, sizeof launch->stream_port_text, "stream_port=%u",
                   stream_port);
    (void)snprintf(launch->worker_port_text, sizeof launch->worker_port_text, "worker_port=%u",
                   worker_port);
    (void)snprintf(launch->admin_text, sizeof launch->admin_text, "admin=%s", settings->admin);
    if (strcmp(settings->admin, "false") == 0)
        return WEIR_OK;
    char host[SETTINGS_TEXT_BYTES];
    uint16_t port;
    status = settings_host_port(settings->admin, host, &port, error);
    if (status == WEIR_OK)
        status = reserve_port(host, &port, "admin", &launch->port_fds[2], error);
    if (status == WEIR_OK)
        (void)snprintf(launch->admin_text, sizeof launch->admin_text,
                       strchr(host, ':') != NULL ? "admin=[%s]:%u" : "admin=%s:%u", host, port);
    return status;
}

static enum weir_status launch_reserve_listeners(struct launch *launch, struct weir_error *error)
{
    struct settings *settings = &launch->settings;
    size_t used = 0;
    for (uint32_t i = 0; i < settings->listener_count; i++) {
        struct settings_listener *listener = &settings->listeners[i];
        uint16_t port = (uint16_t)listener->port;
        enum weir_status status = reserve_port(listener->host, &port, RESERVE_LISTENER_PORT,
                                               &launch->listener_fds[i], error);
        if (status != WEIR_OK)
            return status;
        listener->port = port;
        used += (size_t)snprintf(launch->listener_ports_text + used,
                                 sizeof launch->listener_ports_text - used, i == 0 ? "%u" : ",%u",
                                 port);
    }
    return WEIR_OK;
}

enum weir_status launch_hold(struct launch *launch, struct weir_error *error)
{
    const char *run_dir = launch->settings.run_dir;
    enum weir_status status = launch_find_programs(launch, error);
    if (status == WEIR_OK)
        status = rundir_open(run_dir, error);
    if (status == WEIR_OK)
        status = rundir_lock(run_dir, &launch->lock_fd, error);
    if (status == WEIR_OK)
        status = launch_reserve_ports(launch, error);
    if (status == WEIR_OK)
        status = launch_reserve_listeners(launch, error);
    if (status == WEIR_OK)
        status = rundir_listen(run_dir, RUNDIR_SOCKET_NAME, &launch->socket_fd, error);
    if (status != WEIR_OK)
        return status;
    (void)snprintf(launch->run_dir_text, sizeof launch->run_dir_text, "run_dir=%s", run_dir);
    (void)snprintf(launch->gateways_text, sizeof launch->gateways_text, "gateways=%" PRIu64,
                   launch->settings.gateways);
    return WEIR_OK;
}

/* ---- what processes are started with ---- */

const char *const *launch_argv(struct launch *launch, size_t position)
{
    (void)snprintf(launch->ready_fd_text, sizeof launch->ready_fd_text, "%d", CHILD_READY_FD);
    (void)snprintf(launch->socket_fd_text, sizeof launch->socket_fd_text, "%d", CHILD_KEPT_FD);
    const char **argv = launch->argvs[position];
    size_t count = 0;
    argv[count++] = position == 0 ? launch->broker_path : launch->gateway_path;
    if (launch->config_path != NULL) {
        argv[count++] = "--config";
        argv[count++] = launch->config_path;
    }
    for (size_t i = 0; i < launch->assignment_count; i++) {
        argv[count++] = "--set";
        argv[count++] = launch->assignments[i];
    }
    const char *const resolved[] = {launch->stream_port_text, launch->worker_port_text,
                                    launch->admin_text, launch->run_dir_text,
                                    launch->gateways_text};
    for (size_t i = 0; i < sizeof resolved / sizeof resolved[0]; i++) {
        argv[count++] = "--set";
        argv[count++] = resolved[i];
    }
    argv[count++] = "--ready-fd";
    argv[count++] = launch->ready_fd_text;
    if (position > 0) {
        (void)snprintf(launch->index_texts[position - 1], sizeof launch->index_texts[0], "%zu",
                       position - 1);
        argv[count++] = "--index";
        argv[count++] = launch->index_texts[position - 1];
        argv[count++] = "--local-fd";
        argv[count++] = launch->socket_fd_text;
        if (launch->settings.listener_count > 0) {
            argv[count++] = "--listener-ports";
            argv[count++] = launch->listener_ports_text;
        }
    }
    weir_assert(count < LAUNCH_ARGV_MAX);
    argv[count] = NULL;
    return argv;
}

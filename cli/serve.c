/* The supervisor. One thread, one poll loop over a signalfd and the children's readiness pipes.
 *
 *   settings -> run_dir, lock -> ports reserved -> weir.sock -> broker -> "ready" -> gateways -> all "ready" -> one line
 *
 * Until that line is printed, a child that ends before it was ready is the end: its own message
 * says why. Afterwards every death is answered by a restart. Ports and weir.sock are the
 * supervisor's, so clients keep their addresses throughout. Through run_dir/serve.sock it is asked to
 * restart gateways one after the other (control.h, rolling.h). */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/control.h"
#include "cli/launch.h"
#include "cli/rolling.h"
#include "cli/rundir.h"

enum {
    SERVE_STOP_GATEWAYS_MS = 15000, /* one may stand still for seconds on a loaded machine */
    SERVE_STOP_BROKER_MS = 30000,   /* a broker may have to write what it still holds */
};

enum serve_phase { SERVE_RUNNING, SERVE_STOPPING_GATEWAYS, SERVE_STOPPING_BROKER, SERVE_DONE };

struct serve {
    struct launch launch;
    int signal_fd;
    struct child children[CHILDREN_MAX]; /* the broker first */
    size_t child_count;
    struct control control;
    struct rolling rolling;
    enum serve_phase phase;
    uint64_t kill_at_ms; /* while stopping */
    bool has_gateways_started;
    bool is_announced;
    bool has_failed;
};

static enum weir_status serve_take_signals(struct serve *serve, struct weir_error *error)
{
    sigset_t taken;
    (void)sigemptyset(&taken);
    (void)sigaddset(&taken, SIGCHLD);
    (void)sigaddset(&taken, SIGTERM);
    (void)sigaddset(&taken, SIGINT);
    if (sigprocmask(SIG_BLOCK, &taken, NULL) == 0)
        serve->signal_fd = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    if (serve->signal_fd < 0)
        return weir_fail_errno(error, errno, "cannot take signals");
    return WEIR_OK;
}

/* ---- children ---- */

static void serve_prepare_children(struct serve *serve)
{
    serve->child_count = 1 + (size_t)serve->launch.settings.gateways;
    weir_assert(serve->child_count <= CHILDREN_MAX);
    for (size_t i = 0; i < serve->child_count; i++) {
        struct child *child = &serve->children[i];
        child->argv = launch_argv(&serve->launch, i);
        child->ready_fd = -1;
        child->state = CHILD_GONE;
        if (i == 0)
            (void)snprintf(child->name, sizeof child->name, "broker");
        else
            (void)snprintf(child->name, sizeof child->name, "gateway-%zu", i - 1);
    }
}

/* A supervisor that cannot fork tries again later, as with a child that died at once. */
static void serve_start_child(struct serve *serve, size_t position)
{
    struct child *child = &serve->children[position];
    struct weir_error error;
    if (child_start(child, position == 0 ? -1 : serve->launch.socket_fd, &error) == WEIR_OK)
        return;
    (void)fprintf(stderr, "weir: %s\n", error.text);
    child->state = CHILD_WAITING;
    child->backoff_ms = CHILD_BACKOFF_MS_MAX;
    child->restart_at_ms = child_now_ms() + CHILD_BACKOFF_MS_MAX;
}

static bool serve_is_gone(const struct serve *serve, size_t first, size_t end)
{
    for (size_t i = first; i < end; i++) {
        if (serve->children[i].pid != 0)
            return false;
    }
    return true;
}

static void serve_signal(const struct serve *serve, size_t first, size_t end, int signal_number)
{
    for (size_t i = first; i < end; i++)
        child_signal(&serve->children[i], signal_number);
}

static void serve_stop(struct serve *serve)
{
    if (serve->phase != SERVE_RUNNING)
        return;
    serve->phase = SERVE_STOPPING_GATEWAYS;
    serve->kill_at_ms = child_now_ms() + SERVE_STOP_GATEWAYS_MS;
    rolling_abandon(&serve->rolling);
    /* There is no other gateway their sockets could go to: nothing to drain for. */
    serve_signal(serve, 1, serve->child_count, SIGINT);
}

/* Move on through the phases of stopping, as far as the children's ends allow. */
static void serve_advance_stop(struct serve *serve)
{
    uint64_t now_ms = child_now_ms();
    if (serve->phase == SERVE_STOPPING_GATEWAYS) {
        if (serve_is_gone(serve, 1, serve->child_count)) {
            serve->phase = SERVE_STOPPING_BROKER;
            serve->kill_at_ms = now_ms + SERVE_STOP_BROKER_MS;
            child_signal(&serve->children[0], SIGTERM);
        } else if (now_ms >= serve->kill_at_ms) {
            (void)fprintf(stderr,
                          "weir: event=killed process=gateways cause=\"no end within %d ms\"\n",
                          SERVE_STOP_GATEWAYS_MS);
            serve_signal(serve, 1, serve->child_count, SIGKILL);
            serve->kill_at_ms = UINT64_MAX;
        }
    }
    if (serve->phase == SERVE_STOPPING_BROKER) {
        if (serve_is_gone(serve, 0, 1)) {
            serve->phase = SERVE_DONE;
        } else if (now_ms >= serve->kill_at_ms) {
            (void)fprintf(stderr,
                          "weir: event=killed process=broker cause=\"no end within %d ms\"\n",
                          SERVE_STOP_BROKER_MS);
            child_signal(&serve->children[0], SIGKILL);
            serve->kill_at_ms = UINT64_MAX;
        }
    }
}

static void serve_announce(struct serve *serve)
{
    const struct settings *settings = &serve->launch.settings;
    bool is_stream_v6 = strchr(settings->stream_host, ':') != NULL;
    bool is_worker_v6 = strchr(settings->worker_host, ':') != NULL;
    serve->is_announced = true;
    (void)printf("weir: ready stream=%s%s%s:%" PRIu64 " worker=%s%s%s:%" PRIu64
                 " gateways=%" PRIu64,
                 is_stream_v6 ? "[" : "", settings->stream_host, is_stream_v6 ? "]" : "",
                 settings->stream_port, is_worker_v6 ? "[" : "", settings->worker_host,
                 is_worker_v6 ? "]" : "", settings->worker_port, settings->gateways);
    for (uint32_t i = 0; i < settings->listener_count; i++) {
        const struct settings_listener *listener = &settings->listeners[i];
        bool is_v6 = strchr(listener->host, ':') != NULL;
        (void)printf("%s%s%s%s:%" PRIu64, i == 0 ? " listeners=" : ",", is_v6 ? "[" : "",
                     listener->host, is_v6 ? "]" : "", listener->port);
    }
    (void)printf("\n");
    (void)fflush(stdout);
}

static void serve_take_ready(struct serve *serve, size_t position)
{
    struct child *child = &serve->children[position];
    if (!child_take_ready(child) || serve->phase != SERVE_RUNNING)
        return;
    if (serve->is_announced)
        (void)fprintf(stderr, "weir: event=restarted process=%s pid=%ld\n", child->name,
                      (long)child->pid);
    if (position == 0 && !serve->has_gateways_started) {
        serve->has_gateways_started = true;
        for (size_t i = 1; i < serve->child_count; i++)
            serve_start_child(serve, i);
    }
    if (serve->is_announced)
        return;
    for (size_t i = 0; i < serve->child_count; i++) {
        if (serve->children[i].state != CHILD_READY)
            return;
    }
    serve_announce(serve);
}

static void serve_reap(struct serve *serve)
{
    for (size_t i = 0; i < serve->child_count; i++) {
        struct child *child = &serve->children[i];
        bool is_fatal = !serve->is_announced && !child->was_ready;
        if (!child_reap(child, serve->phase != SERVE_RUNNING || is_fatal))
            continue;
        if (serve->phase != SERVE_RUNNING || !is_fatal || child->was_ready)
            continue;
        char how[64];
        child_describe_exit(child->exit_status, how, sizeof how);
        (void)fprintf(stderr, "weir: %s ended with %s before it was ready; its message is above\n",
                      child->name, how);
        serve->has_failed = true;
        serve_stop(serve);
    }
}

static void serve_restart_due(struct serve *serve)
{
    uint64_t now_ms = child_now_ms();
    for (size_t i = 0; i < serve->child_count && serve->phase == SERVE_RUNNING; i++) {
        if (serve->children[i].state == CHILD_WAITING && serve->children[i].restart_at_ms <= now_ms)
            serve_start_child(serve, i);
    }
}

/* ---- the loop ---- */

static int serve_wait_ms(const struct serve *serve)
{
    uint64_t next_ms =
        serve->phase != SERVE_RUNNING ? serve->kill_at_ms : rolling_due_ms(&serve->rolling);
    for (size_t i = 0; i < serve->child_count && serve->phase == SERVE_RUNNING; i++) {
        if (serve->children[i].state == CHILD_WAITING && serve->children[i].restart_at_ms < next_ms)
            next_ms = serve->children[i].restart_at_ms;
    }
    if (next_ms == UINT64_MAX)
        return -1;
    uint64_t now_ms = child_now_ms();
    return next_ms <= now_ms ? 0 : (int)(next_ms - now_ms);
}

static void serve_take_signal(struct serve *serve)
{
    struct signalfd_siginfo info;
    while (read(serve->signal_fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            continue; /* serve_reap() looks at every child in each turn */
        if (serve->phase == SERVE_RUNNING)
            serve_stop(serve);
        else if (info.ssi_signo == SIGINT) /* a second Ctrl-C: at once */
            serve_signal(serve, 0, serve->child_count, SIGKILL);
    }
}

static void serve_drain(struct serve *serve, const char *number)
{
    size_t first = 1, end = serve->child_count;
    if (*number != '\0') {
        first = 1 + (size_t)strtoul(number, NULL, 10);
        end = first + 1;
    }
    if (!serve->is_announced || serve->phase != SERVE_RUNNING)
        control_say(&serve->control, '-', "the server is not ready yet, or stops");
    else if (end > serve->child_count)
        control_say(&serve->control, '-', "there is no gateway %s: they are numbered 0 to %zu",
                    number, serve->child_count - 2);
    else {
        rolling_start(&serve->rolling, serve->children, first, end,
                      serve->launch.settings.drain_ms);
        return;
    }
    control_end(&serve->control);
}

static void serve_take_command(struct serve *serve)
{
    const char *command = control_take(&serve->control);
    if (command == NULL)
        return;
    if (strcmp(command, "drain") == 0)
        serve_drain(serve, "");
    else if (strncmp(command, "drain ", 6) == 0)
        serve_drain(serve, command + 6);
    else {
        control_say(&serve->control, '-', "this server does not know the command");
        control_end(&serve->control);
    }
}

static void serve_turn(struct serve *serve)
{
    struct pollfd polls[1 + CONTROL_POLLS + CHILDREN_MAX];
    size_t positions[1 + CONTROL_POLLS + CHILDREN_MAX];
    polls[0] = (struct pollfd){serve->signal_fd, POLLIN, 0};
    const nfds_t children = 1 + control_poll(&serve->control, polls + 1);
    nfds_t count = children;
    for (size_t i = 0; i < serve->child_count; i++) {
        if (serve->children[i].ready_fd < 0)
            continue;
        positions[count] = i;
        polls[count++] = (struct pollfd){serve->children[i].ready_fd, POLLIN, 0};
    }
    if (poll(polls, count, serve_wait_ms(serve)) > 0) {
        for (nfds_t i = children; i < count; i++) {
            if (polls[i].revents != 0 && serve->children[positions[i]].ready_fd == polls[i].fd)
                serve_take_ready(serve, positions[i]);
        }
        if (polls[0].revents != 0)
            serve_take_signal(serve);
        for (nfds_t i = 1; i < children; i++) {
            if (polls[i].revents != 0)
                serve_take_command(serve);
        }
    }
    serve_reap(serve);
    serve_restart_due(serve);
    rolling_step(&serve->rolling);
    serve_advance_stop(serve);
}

int serve_run(int argc, char **argv)
{
    static struct serve serve = {.signal_fd = -1};
    struct weir_error error;
    launch_init(&serve.launch);
    control_init(&serve.control);
    rolling_init(&serve.rolling, &serve.control);
    int misuse = launch_read_arguments(&serve.launch, argc, argv);
    if (misuse != EXIT_DONE)
        return misuse;
    enum weir_status status = launch_read_settings(&serve.launch, &error);
    if (status == WEIR_OK)
        status = serve_take_signals(&serve, &error);
    if (status == WEIR_OK)
        status = launch_hold(&serve.launch, &error);
    if (status == WEIR_OK)
        status = control_open(&serve.control, serve.launch.settings.run_dir, &error);
    if (status != WEIR_OK) {
        (void)fprintf(stderr, "weir: %s\n", error.text);
        return EXIT_FAILED; /* the kernel takes back what was held */
    }
    (void)setenv("WEIR_SUPERVISED", "1", 1);
    serve_prepare_children(&serve);
    serve_start_child(&serve, 0);
    while (serve.phase != SERVE_DONE)
        serve_turn(&serve);
    control_close(&serve.control, serve.launch.settings.run_dir);
    rundir_unlisten(serve.launch.settings.run_dir, RUNDIR_SOCKET_NAME);
    return serve.has_failed ? EXIT_FAILED : EXIT_DONE;
}

#include "cli/children.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t child_now_ms(void)
{
    struct timespec now;
    int result = clock_gettime(CLOCK_MONOTONIC, &now);
    weir_assert(result == 0);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Between fork and exec: async-signal-safe calls only. */
static _Noreturn void child_become(const struct child *child, pid_t supervisor, int ready_fd,
                                   int kept_fd)
{
    sigset_t none;
    (void)sigemptyset(&none);
    if (prctl(PR_SET_PDEATHSIG, SIGINT) != 0 || getppid() != supervisor)
        _exit(127); /* the supervisor died before the line above */
    (void)setpgid(0, 0);
    /* Out of the way first, so that neither dup2 overwrites the other's source. */
    int ready_copy = fcntl(ready_fd, F_DUPFD_CLOEXEC, 16);
    int kept_copy = kept_fd >= 0 ? fcntl(kept_fd, F_DUPFD_CLOEXEC, 16) : -1;
    int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (ready_copy < 0 || (kept_fd >= 0 && kept_copy < 0) || input < 0 || dup2(input, 0) < 0 ||
        dup2(2, 1) < 0 || dup2(ready_copy, CHILD_READY_FD) < 0 ||
        (kept_copy >= 0 && dup2(kept_copy, CHILD_KEPT_FD) < 0))
        _exit(127);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)execv(child->argv[0], (char *const *)child->argv);
    static const char text[] = "weir: cannot execute a program beside this one\n";
    (void)!write(2, text, sizeof text - 1);
    _exit(127);
}

enum weir_status child_start(struct child *child, int kept_fd, struct weir_error *error)
{
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) != 0) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot make a pipe for %s", child->name);
    }
    pid_t supervisor = getpid();
    pid_t pid = fork();
    if (pid == 0)
        child_become(child, supervisor, pipe_fds[1], kept_fd);
    int cause = errno;
    (void)close(pipe_fds[1]);
    if (pid < 0) {
        (void)close(pipe_fds[0]);
        return weir_fail_errno(error, cause, "cannot start %s", child->name);
    }
    child->pid = pid;
    child->ready_fd = pipe_fds[0];
    child->line_bytes = 0;
    child->is_asked = false;
    child->started_ms = child_now_ms();
    child->state = CHILD_STARTING;
    return WEIR_OK;
}

static void child_close_pipe(struct child *child)
{
    if (child->ready_fd >= 0)
        (void)close(child->ready_fd);
    child->ready_fd = -1;
}

/* True: it is "ready". */
static bool child_take_line(struct child *child, const char *line)
{
    if (strcmp(line, "ready") == 0 && child->state == CHILD_STARTING) {
        child->state = CHILD_READY;
        child->was_ready = true;
        return true;
    }
    if (strncmp(line, "left ", 5) == 0)
        child->left = strtoull(line + 5, NULL, 10);
    return false;
}

static bool child_take_lines(struct child *child)
{
    bool is_ready = false;
    char *end;
    while ((end = memchr(child->line, '\n', child->line_bytes)) != NULL) {
        *end = '\0';
        is_ready = child_take_line(child, child->line) || is_ready;
        child->line_bytes -= (unsigned)(end + 1 - child->line);
        memmove(child->line, end + 1, child->line_bytes);
    }
    if (child->line_bytes == sizeof child->line)
        child->line_bytes = 0; /* no line of ours is that long */
    return is_ready;
}

bool child_take_ready(struct child *child)
{
    bool is_ready = false;
    for (;;) { /* ends: the pipe holds a bounded number of bytes */
        size_t room = sizeof child->line - child->line_bytes;
        ssize_t bytes = read(child->ready_fd, child->line + child->line_bytes, room);
        if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
            return is_ready;
        if (bytes <= 0) {
            child_close_pipe(child); /* it has nothing more to say; waitpid() tells the rest */
            return is_ready;
        }
        child->line_bytes += (unsigned)bytes;
        is_ready = child_take_lines(child) || is_ready;
    }
}

void child_describe_exit(int exit_status, char *out, size_t out_bytes)
{
    if (WIFSIGNALED(exit_status))
        (void)snprintf(out, out_bytes, "signal %d (%s)", WTERMSIG(exit_status),
                       strsignal(WTERMSIG(exit_status)));
    else
        (void)snprintf(out, out_bytes, "status %d", WEXITSTATUS(exit_status));
}

bool child_reap(struct child *child, bool is_stopping)
{
    int exit_status;
    if (child->pid == 0 || waitpid(child->pid, &exit_status, WNOHANG) != child->pid)
        return false;
    uint64_t now_ms = child_now_ms();
    pid_t pid = child->pid;
    if (child->ready_fd >= 0)
        (void)child_take_ready(child); /* it may have been ready for a moment */
    child_close_pipe(child);
    child->pid = 0;
    child->exit_status = exit_status;
    if (is_stopping) {
        child->state = CHILD_GONE;
        return true;
    }
    char how[64];
    child_describe_exit(exit_status, how, sizeof how);
    if (child->is_asked) {
        child->restart_at_ms = now_ms;
        child->backoff_ms = 0;
        child->state = CHILD_WAITING;
        (void)fprintf(stderr, "weir: event=drained process=%s pid=%ld cause=\"%s\"\n", child->name,
                      (long)pid, how);
        return true;
    }
    child->deaths++;
    bool was_steady = now_ms - child->started_ms >= CHILD_STEADY_MS;
    if (was_steady || child->backoff_ms == 0)
        child->backoff_ms = CHILD_BACKOFF_MS_MIN;
    else if (child->backoff_ms < CHILD_BACKOFF_MS_MAX)
        child->backoff_ms = child->backoff_ms * 2 > CHILD_BACKOFF_MS_MAX ? CHILD_BACKOFF_MS_MAX
                                                                         : child->backoff_ms * 2;
    child->restart_at_ms = now_ms + child->backoff_ms;
    child->state = CHILD_WAITING;
    (void)fprintf(stderr, "weir: event=ended process=%s pid=%ld cause=\"%s\" restart_ms=%u\n",
                  child->name, (long)pid, how, child->backoff_ms);
    return true;
}

void child_signal(const struct child *child, int signal_number)
{
    if (child->pid > 0)
        (void)kill(child->pid, signal_number); /* not reaped yet, so the number is still its own */
}

#include "tests/torture/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void child_run(const struct child *child, const int ready[2], const int note[2],
                      char *const argv[])
{
    sigset_t none;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int log = open(child->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    /* The pipes first to where nothing is in the way. */
    int ready_fd = fcntl(ready[1], F_DUPFD, 16);
    int note_fd = fcntl(note[1], F_DUPFD, 16);
    if (log < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0 ||
        dup2(ready_fd, CHILD_READY_FD) < 0 || dup2(note_fd, CHILD_NOTE_FD) < 0)
        _exit(126);
    (void)close(ready_fd);
    (void)close(note_fd);
    (void)execv(argv[0], argv);
    _exit(127);
}

bool child_start(struct child *child, const char *log, char *const argv[])
{
    int ready[2], note[2];
    *child = (struct child){.ready_fd = -1, .note_fd = -1};
    (void)snprintf(child->log, sizeof child->log, "%s", log);
    if (pipe2(ready, O_CLOEXEC) != 0)
        return false;
    if (pipe2(note, O_CLOEXEC) != 0) {
        (void)close(ready[0]);
        (void)close(ready[1]);
        return false;
    }
    child->pid = fork();
    if (child->pid == 0)
        child_run(child, ready, note, argv);
    (void)close(ready[1]);
    (void)close(note[1]);
    child->ready_fd = ready[0];
    child->note_fd = note[0];
    if (child->pid < 0)
        child->pid = 0;
    return child->pid > 0;
}

bool child_is_ready(struct child *child)
{
    struct pollfd ready = {.fd = child->ready_fd, .events = POLLIN};
    char text[16];
    return poll(&ready, 1, CHILD_WAIT_MS) == 1 && read(child->ready_fd, text, sizeof text) > 0;
}

void child_kill(struct child *child, int signal)
{
    if (child->pid > 0)
        (void)kill(child->pid, signal);
}

static void child_ended(struct child *child)
{
    child->pid = 0;
    (void)close(child->ready_fd);
    child->ready_fd = -1;
}

/* The note's pipe is closed by the child's end, which poll(2) can wait for. */
bool child_wait(struct child *child)
{
    struct timespec started, now;
    if (child->pid <= 0)
        return true;
    (void)clock_gettime(CLOCK_MONOTONIC, &started);
    for (unsigned turn = 0;; turn++) {
        if (waitpid(child->pid, &child->status, WNOHANG) == child->pid)
            break;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - started.tv_sec) * 1000 > CHILD_WAIT_MS) {
            (void)kill(child->pid, SIGKILL);
            (void)waitpid(child->pid, &child->status, 0);
            child_ended(child);
            return false;
        }
        (void)usleep(turn < 20 ? 100 : 1000);
    }
    child_ended(child);
    return true;
}

bool child_was_killed(const struct child *child)
{
    return child->pid == 0 && WIFSIGNALED(child->status) && WTERMSIG(child->status) == SIGKILL;
}

void child_note(struct child *child, char note[CHILD_NOTE_BYTES])
{
    note[0] = 0;
    if (child->note_fd < 0)
        return;
    struct pollfd ready = {.fd = child->note_fd, .events = POLLIN};
    ssize_t got = poll(&ready, 1, 0) == 1 ? read(child->note_fd, note, CHILD_NOTE_BYTES - 1) : 0;
    note[got > 0 ? got : 0] = 0;
    note[strcspn(note, "\n")] = 0;
    (void)close(child->note_fd);
    child->note_fd = -1;
}

void child_text(const struct child *child, char text[CHILD_TEXT_BYTES])
{
    text[0] = 0;
    int fd = open(child->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    off_t first = end > CHILD_TEXT_BYTES - 1 ? end - (CHILD_TEXT_BYTES - 1) : 0;
    ssize_t got = pread(fd, text, CHILD_TEXT_BYTES - 1, first);
    text[got > 0 ? got : 0] = 0;
    (void)close(fd);
}

#include "broker/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LISTEN_BACKLOG = 64 };

static enum weir_status listen_check_directory(const char *run_dir, struct weir_error *error)
{
    struct stat facts;
    if (mkdir(run_dir, 0700) != 0 && errno != EEXIST)
        return weir_fail_errno(error, errno, "cannot make run_dir %s", run_dir);
    if (lstat(run_dir, &facts) != 0)
        return weir_fail_errno(error, errno, "cannot look at run_dir %s", run_dir);
    if (!S_ISDIR(facts.st_mode))
        return weir_fail(error, WEIR_REFUSED, "run_dir %s is not a directory", run_dir);
    if (facts.st_uid != geteuid())
        return weir_fail(error, WEIR_REFUSED,
                         "run_dir %s belongs to user %u, not to us (%u); choose another", run_dir,
                         (unsigned)facts.st_uid, (unsigned)geteuid());
    if (facts.st_mode & (S_IWGRP | S_IWOTH))
        return weir_fail(error, WEIR_REFUSED,
                         "run_dir %s can be written by others; chmod 700 it or choose another",
                         run_dir);
    return WEIR_OK;
}

static enum weir_status listen_lock(int *lock_fd, const char *run_dir, struct weir_error *error)
{
    char path[512];
    if (snprintf(path, sizeof path, "%s/broker.lock", run_dir) >= (int)sizeof path)
        return weir_fail(error, WEIR_TOO_LARGE, "run_dir is too long: %s", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return weir_fail_errno(error, errno, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int sys_errno = errno;
        (void)close(fd);
        if (sys_errno == EWOULDBLOCK)
            return weir_fail(
                error, WEIR_REFUSED,
                "another weir-broker already serves %s; stop it or set another run_dir", run_dir);
        return weir_fail_errno(error, sys_errno, "cannot lock %s", path);
    }
    *lock_fd = fd;
    return WEIR_OK;
}

static enum weir_status listen_bind(struct listen_socket *listener, struct weir_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", listener->path);

    /* We hold the lock: whoever made this socket is gone. */
    if (unlink(listener->path) != 0 && errno != ENOENT)
        return weir_fail_errno(error, errno, "cannot remove the old socket %s", listener->path);
    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0)
        return weir_fail_errno(error, errno, "cannot make a unix socket");
    mode_t mask = umask(0177); /* the socket is born with mode 0600 */
    int bound = bind(listener->fd, (struct sockaddr *)&address, sizeof address);
    int sys_errno = errno;
    (void)umask(mask);
    if (bound != 0)
        return weir_fail_errno(error, sys_errno, "cannot bind %s", listener->path);
    if (listen(listener->fd, LISTEN_BACKLOG) != 0)
        return weir_fail_errno(error, errno, "cannot listen on %s", listener->path);
    return WEIR_OK;
}

enum weir_status listen_open(struct listen_socket *listener, const char *run_dir,
                             struct weir_error *error)
{
    *listener = (struct listen_socket){.fd = -1, .lock_fd = -1};
    if (snprintf(listener->path, sizeof listener->path, "%s/broker.sock", run_dir) >=
        (int)sizeof listener->path) {
        listener->path[0] = 0;
        return weir_fail(error, WEIR_TOO_LARGE,
                         "run_dir is too long for a unix socket (%zu bytes): %s",
                         sizeof listener->path - 1, run_dir);
    }
    enum weir_status status = listen_check_directory(run_dir, error);
    if (status == WEIR_OK)
        status = listen_lock(&listener->lock_fd, run_dir, error);
    if (status == WEIR_OK)
        status = listen_bind(listener, error);
    if (status != WEIR_OK)
        listen_close(listener);
    return status;
}

void listen_close(struct listen_socket *listener)
{
    if (listener->fd >= 0) {
        (void)unlink(listener->path);
        (void)close(listener->fd);
    }
    if (listener->lock_fd >= 0)
        (void)close(listener->lock_fd);
    listener->fd = -1;
    listener->lock_fd = -1;
}

int listen_accept(const struct listen_socket *listener)
{
    return accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
}

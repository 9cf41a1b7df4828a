#include "cli/rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { RUNDIR_PATH_BYTES = sizeof((struct sockaddr_un *)0)->sun_path };

static enum weir_status rundir_join(char out[RUNDIR_PATH_BYTES], const char *path, const char *name,
                                    struct weir_error *error)
{
    int bytes = snprintf(out, RUNDIR_PATH_BYTES, "%s/%s", path, name);
    if (bytes < 0 || bytes >= RUNDIR_PATH_BYTES)
        return weir_fail(error, WEIR_INVALID,
                         "run_dir %.100s is too long a path; use a shorter one", path);
    return WEIR_OK;
}

enum weir_status rundir_open(const char *path, struct weir_error *error)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot make run_dir %.100s", path);
    }
    struct stat about;
    if (lstat(path, &about) != 0) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot look at run_dir %.100s", path);
    }
    if (!S_ISDIR(about.st_mode))
        return weir_fail(error, WEIR_INVALID,
                         "run_dir %.100s is not a directory; remove it or set another run_dir",
                         path);
    if (about.st_uid != geteuid())
        return weir_fail(error, WEIR_INVALID,
                         "run_dir %.100s belongs to user %u; set another run_dir", path,
                         (unsigned)about.st_uid);
    if ((about.st_mode & 022) != 0)
        return weir_fail(
            error, WEIR_INVALID,
            "run_dir %.100s can be written by other users; `chmod 700` it or set another run_dir",
            path);
    return WEIR_OK;
}

enum weir_status rundir_lock(const char *path, int *fd, struct weir_error *error)
{
    char name[RUNDIR_PATH_BYTES];
    if (rundir_join(name, path, RUNDIR_LOCK_NAME, error) != WEIR_OK)
        return WEIR_INVALID;
    int lock = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot open %.100s", name);
    }
    if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        int cause = errno;
        char owner[24] = "";
        ssize_t bytes = pread(lock, owner, sizeof owner - 1, 0);
        owner[bytes > 0 ? strspn(owner, "0123456789") : 0] = '\0';
        (void)close(lock);
        if (cause != EWOULDBLOCK)
            return weir_fail_errno(error, cause, "cannot lock %.100s", name);
        return weir_fail(
            error, WEIR_INVALID,
            "another `weir serve` (pid %s) uses run_dir %.100s; stop it or set another run_dir",
            *owner != '\0' ? owner : "unknown", path);
    }
    char text[24];
    int bytes = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    /* The number only serves the message above; the lock itself is the descriptor's. */
    if (ftruncate(lock, 0) != 0 || pwrite(lock, text, (size_t)bytes, 0) != bytes) {
        int cause = errno;
        (void)close(lock);
        return weir_fail_errno(error, cause, "cannot write %.100s", name);
    }
    *fd = lock;
    return WEIR_OK;
}

enum weir_status rundir_listen(const char *path, const char *name, int *fd,
                               struct weir_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (rundir_join(address.sun_path, path, name, error) != WEIR_OK)
        return WEIR_INVALID;
    if (unlink(address.sun_path) != 0 && errno != ENOENT) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot remove the old %.100s", address.sun_path);
    }
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) {
        int cause = errno;
        return weir_fail_errno(error, cause, "cannot make a socket");
    }
    mode_t before = umask(0177); /* the mode must be right from the first moment */
    int result = bind(listener, (const struct sockaddr *)&address, sizeof address);
    int cause = errno;
    (void)umask(before);
    if (result == 0 && listen(listener, SOMAXCONN) == 0) {
        *fd = listener;
        return WEIR_OK;
    }
    if (result == 0)
        cause = errno;
    (void)close(listener);
    return weir_fail_errno(error, cause, "cannot listen on %.100s", address.sun_path);
}

void rundir_unlisten(const char *path, const char *name)
{
    char whole[RUNDIR_PATH_BYTES];
    if (rundir_join(whole, path, name, NULL) == WEIR_OK)
        (void)unlink(whole);
}

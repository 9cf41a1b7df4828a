#include "cli/control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/rundir.h"

void control_init(struct control *control)
{
    *control = (struct control){.listen_fd = -1, .client_fd = -1};
}

enum weir_status control_open(struct control *control, const char *run_dir,
                              struct weir_error *error)
{
    return rundir_listen(run_dir, CONTROL_SOCKET_NAME, &control->listen_fd, error);
}

void control_close(struct control *control, const char *run_dir)
{
    control_end(control);
    rundir_unlisten(run_dir, CONTROL_SOCKET_NAME);
}

void control_end(struct control *control)
{
    if (control->client_fd >= 0)
        (void)close(control->client_fd);
    control->client_fd = -1;
    control->line_bytes = 0;
    control->has_command = false;
}

bool control_has_client(const struct control *control)
{
    return control->client_fd >= 0;
}

unsigned control_poll(const struct control *control, struct pollfd polls[CONTROL_POLLS])
{
    unsigned count = 0;
    if (control->listen_fd >= 0)
        polls[count++] = (struct pollfd){control->listen_fd, POLLIN, 0};
    if (control->client_fd >= 0)
        polls[count++] = (struct pollfd){control->client_fd, POLLIN, 0};
    return count;
}

static void client_write(int fd, const char *text, size_t bytes)
{
    (void)!send(fd, text, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void control_accept(struct control *control)
{
    static const char busy[] = "-another command is under way; try again when it is done\n";
    int fd = accept4(control->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    if (control->client_fd < 0) {
        control->client_fd = fd;
        return;
    }
    client_write(fd, busy, sizeof busy - 1);
    (void)close(fd);
}

/* What comes behind the command is read and dropped, so that the client's end is noticed. */
static const char *client_read(struct control *control)
{
    char dropped[CONTROL_LINE_BYTES];
    char *to = control->has_command ? dropped : control->line + control->line_bytes;
    size_t room =
        control->has_command ? sizeof dropped : sizeof control->line - control->line_bytes;
    ssize_t bytes = read(control->client_fd, to, room);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return NULL;
    if (bytes <= 0) {
        control_end(control);
        return NULL;
    }
    if (control->has_command)
        return NULL;
    control->line_bytes += (unsigned)bytes;
    char *end = memchr(control->line, '\n', control->line_bytes);
    if (end != NULL) {
        *end = '\0';
        control->has_command = true;
        return control->line;
    }
    if (control->line_bytes == sizeof control->line) {
        control_say(control, '-', "no command is that long");
        control_end(control);
    }
    return NULL;
}

const char *control_take(struct control *control)
{
    if (control->listen_fd >= 0)
        control_accept(control);
    return control->client_fd >= 0 ? client_read(control) : NULL;
}

void control_say(struct control *control, char kind, const char *format, ...)
{
    if (control->client_fd < 0)
        return;
    char text[2 * CONTROL_LINE_BYTES];
    text[0] = kind;
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(text + 1, sizeof text - 2, format, arguments);
    va_end(arguments);
    size_t length = strnlen(text, sizeof text - 2);
    weir_assert(bytes >= 0);
    text[length] = '\n';
    client_write(control->client_fd, text, length + 1);
}

enum weir_status control_connect(const char *run_dir, int *fd, struct weir_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int bytes =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", run_dir, CONTROL_SOCKET_NAME);
    if (bytes < 0 || (size_t)bytes >= sizeof address.sun_path)
        return weir_fail(error, WEIR_INVALID, "run_dir %.100s is too long a path", run_dir);
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return weir_fail_errno(error, errno, "cannot make a socket");
    if (connect(*fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return WEIR_OK;
    int cause = errno;
    (void)close(*fd);
    *fd = -1;
    if (cause == ENOENT || cause == ECONNREFUSED)
        return weir_fail(error, WEIR_INVALID,
                         "no `weir serve` runs with run_dir %.100s; name the server's with "
                         "--run-dir or --config",
                         run_dir);
    return weir_fail_errno(error, cause, "cannot connect to %.100s", address.sun_path);
}

#include "bench/redis_server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"

enum { START_SECONDS_MAX = 60, REWRITE_SECONDS_MAX = 60, ANSWER_BYTES = 16 * 1024 };

bool redis_server_version(char *text, size_t bytes)
{
    FILE *output = popen("redis-server --version 2>/dev/null", "r");
    char line[256] = "";
    if (output == NULL)
        return false;
    char *got = fgets(line, sizeof line, output);
    (void)pclose(output);
    char *version = got == NULL ? NULL : strstr(line, "v=");
    if (version == NULL)
        return false;
    (void)snprintf(text, bytes, "%.*s", (int)strcspn(version + 2, " \n"), version + 2);
    return true;
}

/* Its answer to `command`, in `answer` (ANSWER_BYTES); false while it cannot be reached. */
static bool ask(const struct redis_server *server, const char *command, char *answer)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, server->socket_path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ssize_t got = -1;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        send(fd, command, strlen(command), MSG_NOSIGNAL) == (ssize_t)strlen(command))
        got = read(fd, answer, ANSWER_BYTES - 1);
    if (fd >= 0)
        (void)close(fd);
    answer[got > 0 ? got : 0] = '\0';
    return got > 0;
}

void redis_server_start(struct redis_server *server, const char *directory, const char *socket_path)
{
    char log[300], answer[ANSWER_BYTES];
    *server = (struct redis_server){0};
    if (strlen(directory) >= sizeof server->directory ||
        strlen(socket_path) >= sizeof server->socket_path)
        load_die("%s is too long a path", directory);
    memcpy(server->directory, directory, strlen(directory));
    memcpy(server->socket_path, socket_path, strlen(socket_path));
    (void)snprintf(log, sizeof log, "%s/redis.log", directory);
    uint64_t start_ns = load_clock_ns();
    server->pid = fork();
    if (server->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", socket_path,
                     "--unixsocketperm", "700", "--dir", directory, "--logfile", log, "--daemonize",
                     "no", "--save", "", "--appendonly", "yes", "--appendfsync", "always",
                     "--auto-aof-rewrite-percentage", "0", (char *)NULL);
        _exit(127);
    }
    while (!ask(server, "PING\r\n", answer) || strncmp(answer, "+PONG", 5) != 0) {
        if (waitpid(server->pid, NULL, WNOHANG) == server->pid)
            load_die("redis-server ended; see %s", log);
        if (load_clock_ns() - start_ns > START_SECONDS_MAX * 1000000000ull)
            load_die("redis-server did not become ready; see %s", log);
        load_sleep_until(load_clock_ns() + 2000000u);
    }
    server->ready_seconds = (double)(load_clock_ns() - start_ns) / 1e9;
}

static bool is_rewriting(const struct redis_server *server)
{
    char answer[ANSWER_BYTES];
    if (!ask(server, "INFO persistence\r\n", answer))
        load_die("redis-server does not answer");
    return strstr(answer, "aof_rewrite_in_progress:0") == NULL ||
           strstr(answer, "aof_rewrite_scheduled:0") == NULL;
}

void redis_server_rewrite(const struct redis_server *server)
{
    char answer[ANSWER_BYTES];
    uint64_t start_ns = load_clock_ns();
    if (!ask(server, "BGREWRITEAOF\r\n", answer) || answer[0] != '+')
        load_die("redis-server does not write its file anew");
    while (is_rewriting(server)) {
        if (load_clock_ns() - start_ns > REWRITE_SECONDS_MAX * 1000000000ull)
            load_die("redis-server does not finish writing its file anew");
        load_sleep_until(load_clock_ns() + 20000000u);
    }
}

unsigned long redis_server_keys(const struct redis_server *server)
{
    char answer[ANSWER_BYTES];
    if (!ask(server, "DBSIZE\r\n", answer) || answer[0] != ':')
        load_die("redis-server does not answer");
    return strtoul(answer + 1, NULL, 10);
}

void redis_server_kill(struct redis_server *server)
{
    (void)kill(server->pid, SIGKILL);
    (void)waitpid(server->pid, NULL, 0);
    (void)unlink(server->socket_path);
    server->pid = 0;
}

#include "cli/reserve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union reserve_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static socklen_t reserve_fill(union reserve_address *address, const char *host, uint16_t port)
{
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, host, &address->v4.sin_addr) == 1) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons(port);
        return sizeof address->v4;
    }
    if (inet_pton(AF_INET6, host, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(port);
        return sizeof address->v6;
    }
    return 0;
}

/* A bound socket, or the negative errno value. */
static int reserve_bind(const union reserve_address *address, socklen_t bytes, int option)
{
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int on = 1;
    int off = 0;
    bool is_ready = setsockopt(fd, SOL_SOCKET, option, &on, sizeof on) == 0;
    if (is_ready && address->any.sa_family == AF_INET6)
        is_ready = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
    if (is_ready && bind(fd, &address->any, bytes) == 0)
        return fd;
    int cause = errno;
    (void)close(fd);
    return -cause;
}

/* "choose another with --set worker_port=PORT" */
static void reserve_print_remedy(const char *setting, char remedy[80])
{
    if (strcmp(setting, RESERVE_LISTENER_PORT) == 0)
        (void)snprintf(remedy, 80, "give it another in the configuration file");
    else
        (void)snprintf(remedy, 80, "choose another with --set %s=%s", setting,
                       strcmp(setting, "admin") == 0 ? "HOST:PORT" : "PORT");
}

static enum weir_status reserve_fail(int cause, const char *host, uint16_t port,
                                     const char *setting, struct weir_error *error)
{
    char remedy[80];
    reserve_print_remedy(setting, remedy);
    if (cause == EADDRINUSE)
        return weir_fail(
            error, WEIR_INVALID,
            "port %u on %s (setting `%s`) is in use; stop the program that uses it, or %s", port,
            host, setting, remedy);
    if (cause == EADDRNOTAVAIL)
        return weir_fail(
            error, WEIR_INVALID,
            "%s (setting `%s`) is not an address of this machine; use one that is, 127.0.0.1 or "
            "0.0.0.0",
            host, setting);
    if (cause == EACCES)
        return weir_fail(error, WEIR_INVALID,
                         "port %u (setting `%s`) needs privileges; choose a port above 1023", port,
                         setting);
    return weir_fail_errno(error, cause, "cannot take port %u on %s (setting `%s`)", port, host,
                           setting);
}

enum weir_status reserve_port(const char *host, uint16_t *port, const char *setting, int *fd,
                              struct weir_error *error)
{
    union reserve_address address;
    socklen_t bytes = reserve_fill(&address, host, *port);
    if (bytes == 0)
        return weir_fail(error, WEIR_INVALID, "setting `%s`: %.60s is not an IP address", setting,
                         host);
    if (*port != 0) {
        /* Without SO_REUSEPORT, so that somebody who shares the port is seen as well, another
         * supervisor's held socket included (it has no SO_REUSEADDR). SO_REUSEADDR lets the remains
         * of closed connections (TIME_WAIT) not count as use. */
        int probe = reserve_bind(&address, bytes, SO_REUSEADDR);
        if (probe < 0)
            return reserve_fail(-probe, host, *port, setting, error);
        (void)close(probe);
    }
    int held = reserve_bind(&address, bytes, SO_REUSEPORT);
    if (held == -EADDRINUSE && *port != 0) {
        char remedy[80];
        reserve_print_remedy(setting, remedy);
        return weir_fail(
            error, WEIR_INVALID,
            "port %u on %s (setting `%s`) is in use by connections that another program has "
            "just closed; wait a minute, or %s",
            *port, host, setting, remedy);
    }
    if (held < 0)
        return reserve_fail(-held, host, *port, setting, error);
    if (getsockname(held, &address.any, &bytes) != 0) {
        int cause = errno;
        (void)close(held);
        return weir_fail_errno(error, cause, "cannot tell the port of %s (setting `%s`)", host,
                               setting);
    }
    *port = ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
    *fd = held;
    return WEIR_OK;
}

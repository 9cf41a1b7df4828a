/* bench/floor_main.c -- the program `floor`: a bare server to stand beside others, see bench/floor.h.
 * floor 1|2 [PORT] says "ready port=P pid=N" and serves until it is killed. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/floor.h"
#include "bench/load.h"

static int listen_on(uint16_t *port)
{
    if (*port == 0)
        return load_listen(port);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(*port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 4096) != 0)
        load_die("cannot listen on port %u: %s", *port, strerror(errno));
    return fd;
}

int main(int argc, char **argv)
{
    unsigned long kind = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned long wanted = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if ((kind != FLOOR_SINGLE && kind != FLOOR_COALESCED) || wanted > UINT16_MAX)
        load_die("usage: floor 1|2 [PORT]");
    (void)load_raise_descriptor_limit(100000);
    uint16_t port = (uint16_t)wanted;
    int listener = listen_on(&port);
    printf("ready port=%u pid=%d\n", port, (int)getpid());
    (void)fflush(stdout);
    floor_serve(listener, (enum floor_kind)kind);
}

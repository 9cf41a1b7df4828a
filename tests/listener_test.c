/* Listening sockets of our own: hosts, shared ports, errors, and running out of descriptors. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <sys/resource.h>

#include "gateway/listener.h"
#include "tests/ws_client.h"

static uv_loop_t loop;
static int accepted[512];
static unsigned accepted_count;

static void on_accept(void *context, int fd)
{
    unsigned *own_count = context;
    accepted[accepted_count++] = fd;
    (*own_count)++;
}

static void open_loop(void)
{
    uv_loop_init(&loop);
}

static void close_loop(void)
{
    for (unsigned index = 0; index < accepted_count; index++)
        close(accepted[index]);
    uv_run(&loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&loop), 0);
}

static struct listener *listen_on(const char *host, uint16_t port, bool reuse_port, unsigned *count)
{
    struct listener *listener;
    struct weir_error error = {0};
    struct listener_options options = {.host = host,
                                       .port = port,
                                       .reuse_port = reuse_port,
                                       .on_accept = on_accept,
                                       .context = count};
    cr_assert_eq(listener_open(&listener, &loop, &options, &error), WEIR_OK, "%s", error.text);
    return listener;
}

static void expect_error(const char *host, uint16_t port, enum weir_status status,
                         const char *contained)
{
    unsigned count = 0;
    struct listener *listener;
    struct weir_error error = {0};
    struct listener_options options = {
        .host = host, .port = port, .on_accept = on_accept, .context = &count};
    cr_assert_eq(listener_open(&listener, &loop, &options, &error), status);
    cr_assert_null(listener);
    cr_assert(strstr(error.text, contained), "%s", error.text);
}

static void run_until(const unsigned *count, unsigned wanted)
{
    while (*count < wanted)
        uv_run(&loop, UV_RUN_ONCE);
    cr_assert_eq(*count, wanted);
}

/* What is handed on does not block, is closed on exec and does not delay small segments. */
Test(listener, hands_on_ready_descriptors, .init = open_loop, .fini = close_loop,
     .timeout = HANG_SECONDS)
{
    unsigned count = 0;
    struct client client;
    struct listener *listener = listen_on("127.0.0.1", 0, false, &count);
    cr_assert(client_connect(&client, listener_port(listener), 0));
    run_until(&count, 1);
    int no_delay = 0;
    socklen_t bytes = sizeof(no_delay);
    getsockopt(accepted[0], IPPROTO_TCP, TCP_NODELAY, &no_delay, &bytes);
    cr_assert_neq(no_delay, 0);
    cr_assert(fcntl(accepted[0], F_GETFL) & O_NONBLOCK);
    cr_assert(fcntl(accepted[0], F_GETFD) & FD_CLOEXEC);
    client_close(&client);
    listener_stop(listener);
}

/* "::" takes IPv4 too. */
Test(listener, takes_both_families, .init = open_loop, .fini = close_loop, .timeout = HANG_SECONDS)
{
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    if (fd < 0)
        cr_skip("no IPv6 here");
    close(fd);
    unsigned count = 0;
    struct client client;
    struct listener *listener = listen_on("::", 0, false, &count);
    cr_assert(client_connect(&client, listener_port(listener), 0));
    run_until(&count, 1);
    client_close(&client);
    listener_stop(listener);
}

/* Two sockets on one port share the connections. */
Test(listener, shares_a_port, .init = open_loop, .fini = close_loop, .timeout = HANG_SECONDS)
{
    unsigned first_count = 0, second_count = 0;
    struct client clients[200];
    struct listener *first = listen_on("127.0.0.1", 0, true, &first_count);
    struct listener *second = listen_on("127.0.0.1", listener_port(first), true, &second_count);
    for (unsigned index = 0; index < 200; index++)
        cr_assert(client_connect(&clients[index], listener_port(first), 0));
    while (first_count + second_count < 200)
        uv_run(&loop, UV_RUN_ONCE);
    cr_assert_gt(first_count, 0);
    cr_assert_gt(second_count, 0);
    for (unsigned index = 0; index < 200; index++)
        client_close(&clients[index]);
    listener_stop(first);
    listener_stop(second);
}

/* A listening socket that closes resets what waits in it. */
Test(listener, takes_what_waits_before_it_closes, .init = open_loop, .fini = close_loop,
     .timeout = HANG_SECONDS)
{
    enum { CLIENTS = 3 * LISTENER_ACCEPTS_PER_TURN };
    unsigned count = 0;
    static struct client clients[CLIENTS];
    struct listener *listener = listen_on("127.0.0.1", 0, true, &count);
    for (unsigned index = 0; index < CLIENTS; index++) {
        cr_assert(client_connect(&clients[index], listener_port(listener), 0));
        cr_assert(client_send(&clients[index], "x", 1));
        cr_assert(client_await_arrival(&clients[index]));
    }
    listener_take_waiting(listener);
    listener_stop(listener);
    cr_assert_eq(count, CLIENTS);
    for (unsigned index = 0; index < CLIENTS; index++)
        client_close(&clients[index]);
}

Test(listener, names_what_it_cannot_have, .init = open_loop, .fini = close_loop,
     .timeout = HANG_SECONDS)
{
    unsigned count = 0;
    struct listener *listener = listen_on("127.0.0.1", 0, false, &count);
    expect_error("127.0.0.1", listener_port(listener), WEIR_SYSTEM, "127.0.0.1 port");
    expect_error("not.an.address.invalid", 0, WEIR_INVALID, "not.an.address.invalid");
    expect_error("192.0.2.1", 0, WEIR_SYSTEM, "192.0.2.1");
    listener_stop(listener);
    listener_stop(NULL);
}

/* With no descriptor left accepting pauses; once there is one, the waiting connection is taken. */
Test(listener, waits_for_descriptors, .init = open_loop, .fini = close_loop,
     .timeout = HANG_SECONDS)
{
    unsigned count = 0;
    struct client client;
    struct listener *listener = listen_on("127.0.0.1", 0, false, &count);
    cr_assert(client_connect(&client, listener_port(listener), 0));
    int spare = dup(0);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    struct rlimit none = {.rlim_cur = (rlim_t)spare, .rlim_max = limit.rlim_max};
    close(spare);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (unsigned turn = 0; turn < 3; turn++)
        uv_run(&loop, UV_RUN_ONCE);
    cr_assert_eq(count, 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    run_until(&count, 1);
    client_close(&client);
    listener_stop(listener);
}

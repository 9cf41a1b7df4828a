/* bench/fanout_bench.c -- what does one delivered frame cost the server?
 *
 * Question: CPU-microseconds (gateways and broker together) per frame delivered to a subscriber, at
 *           1,000 subscribers of one group and 128-byte items, at 100 and at 1,000 writes a second,
 *           beside two bare floors.
 * Method:   floor F1 is an epoll server that does one send() per subscriber and message, F2 the
 *           same with all messages of 5 ms in one send(); both send frames of the same size as
 *           weir's. Writers pace by the clock; subscribers live in a process of their own and count
 *           whole frames. Rounds are interleaved F1, F2, weir; the median round counts, because the
 *           machine is noisy. Every frame has to arrive, or the run fails.
 * Unit:     microseconds of user and system time per delivered frame (process CPU clocks); ratios
 *           to F1 of the same run.
 * Run:      fanout_bench [subscribers] [seconds a round] [rounds]
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "shm/envelope.h"

enum { ROUNDS_MAX = 32 };

struct measure {
    double cpu_us_per_frame;
    double frames_per_second;
};

static unsigned subscriber_count = 1000;
static double round_seconds = 4;
static unsigned round_count = 5;

static size_t frame_bytes_of_weir(char *out, size_t capacity)
{
    char item[LOAD_ITEM_BYTES + 1];
    struct envelope envelope = {.event = ENVELOPE_UPDATE,
                                .timestamp_ms = 1700000000000,
                                .seq = 1000,
                                .epoch = 1700000000000000,
                                .stream_escaped = SPAN_LITERAL("bench"),
                                .group_escaped = SPAN_LITERAL("g"),
                                .id_escaped = SPAN_LITERAL("m"),
                                .data = span_of(item, LOAD_ITEM_BYTES)};
    load_item_text(item, 1);
    if (envelope_bytes_max(&envelope) > capacity)
        load_die("the frame does not fit");
    return envelope_encode(out, &envelope).frame_bytes;
}

/* The bare server: accepts, then at each tick sends to everyone. */
static void run_floor(int listener, unsigned rate, bool coalesce, uint64_t ticks)
{
    char frame[1024];
    size_t frame_bytes = frame_bytes_of_weir(frame, sizeof frame);
    unsigned batch = coalesce && rate > 200 ? rate / 200 : 1;
    char *message = malloc(frame_bytes * batch);
    int *sockets = calloc(subscriber_count, sizeof *sockets);
    if (message == NULL || sockets == NULL)
        load_die("no memory");
    for (unsigned i = 0; i < batch; i++)
        memcpy(message + i * frame_bytes, frame, frame_bytes);
    int poller = epoll_create1(0);
    for (unsigned i = 0; i < subscriber_count; i++) {
        sockets[i] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        int on = 1;
        (void)setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = sockets[i]};
        (void)epoll_ctl(poller, EPOLL_CTL_ADD, sockets[i], &event);
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    long period_ns = 1000000000L / rate * (long)batch;
    struct itimerspec period = {.it_interval = {period_ns / 1000000000L, period_ns % 1000000000L},
                                .it_value = {period_ns / 1000000000L, period_ns % 1000000000L}};
    (void)timerfd_settime(timer, 0, &period, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = timer};
    (void)epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    for (uint64_t done = 0; done < ticks / batch;) {
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            uint64_t expired;
            if (events[i].data.fd != timer ||
                read(timer, &expired, sizeof expired) != sizeof expired)
                continue;
            for (; expired > 0 && done < ticks / batch; expired--, done++)
                for (unsigned s = 0; s < subscriber_count; s++)
                    if (send(sockets[s], message, frame_bytes * batch,
                             MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)(frame_bytes * batch))
                        load_die("the floor's subscribers cannot keep up");
        }
    }
    (void)pause(); /* until the parent has read the CPU clock */
}

static void wait_for_frames(struct load_subscribers *subscribers, uint64_t wanted, const char *who)
{
    uint64_t deadline = load_clock_ns() + (uint64_t)(round_seconds * 2e9) + 10000000000u;
    while (atomic_load(&subscribers->counts->frames) < wanted) {
        if (load_clock_ns() > deadline)
            load_die("%s: only %llu of %llu frames arrived", who,
                     (unsigned long long)atomic_load(&subscribers->counts->frames),
                     (unsigned long long)wanted);
        load_sleep_until(load_clock_ns() + 5000000u);
    }
}

static struct measure measure_floor(unsigned rate, bool coalesce)
{
    uint64_t messages = (uint64_t)(rate * round_seconds) / 50 * 50;
    uint16_t port;
    int listener = load_listen(&port);
    pid_t server = fork();
    if (server == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_floor(listener, rate, coalesce, messages);
        _exit(0);
    }
    (void)close(listener);
    struct load_subscribers subscribers;
    load_subscribers_start(&subscribers, port, NULL, subscriber_count, 0);
    load_subscribers_wait_connected(&subscribers, subscriber_count);
    uint64_t cpu = load_cpu_ns(server), start = load_clock_ns();
    wait_for_frames(&subscribers, messages * subscriber_count, "floor");
    double seconds = (double)(load_clock_ns() - start) / 1e9;
    cpu = load_cpu_ns(server) - cpu;
    (void)kill(server, SIGKILL);
    (void)waitpid(server, NULL, 0);
    load_subscribers_stop(&subscribers);
    double frames = (double)(messages * subscriber_count);
    return (struct measure){(double)cpu / 1e3 / frames, frames / seconds};
}

static void write_item(int worker, uint64_t number)
{
    char item[LOAD_ITEM_BYTES + 1], text[512];
    load_item_text(item, number);
    int bytes = snprintf(text, sizeof text,
                         "{\"type\":\"invokefunction\",\"function_id\":\"stream::set\","
                         "\"action\":{\"type\":\"void\"},\"data\":{\"stream_name\":\"bench\","
                         "\"group_id\":\"g\",\"item_id\":\"m\",\"data\":%s}}",
                         item);
    load_websocket_write(worker, text, (size_t)bytes);
}

static struct measure measure_weir(const struct load_server *server, unsigned rate)
{
    uint64_t messages = (uint64_t)(rate * round_seconds) / 50 * 50;
    struct load_subscribers subscribers;
    load_subscribers_start(&subscribers, server->stream_port, "/stream/bench/g", subscriber_count,
                           1 /* the sync */);
    load_subscribers_wait_connected(&subscribers, subscriber_count);
    int worker = load_websocket_open(server->worker_port, "/");
    load_sleep_until(load_clock_ns() + 300000000u); /* syncs out of the way */
    uint64_t cpu = load_server_cpu_ns(server), start = load_clock_ns();
    for (uint64_t i = 0; i < messages; i++) {
        load_sleep_until(start + i * (1000000000u / rate));
        write_item(worker, i);
    }
    wait_for_frames(&subscribers, messages * subscriber_count, "weir");
    double seconds = (double)(load_clock_ns() - start) / 1e9;
    cpu = load_server_cpu_ns(server) - cpu;
    (void)close(worker);
    load_subscribers_stop(&subscribers);
    double frames = (double)(messages * subscriber_count);
    return (struct measure){(double)cpu / 1e3 / frames, frames / seconds};
}

static void bench_rate(const struct load_server *server, unsigned rate)
{
    double floor1[ROUNDS_MAX], floor2[ROUNDS_MAX], weir[ROUNDS_MAX], ratio[ROUNDS_MAX];
    for (unsigned round = 0; round < round_count; round++) {
        floor1[round] = measure_floor(rate, false).cpu_us_per_frame;
        floor2[round] = measure_floor(rate, true).cpu_us_per_frame;
        weir[round] = measure_weir(server, rate).cpu_us_per_frame;
        ratio[round] = weir[round] / floor1[round];
        (void)fprintf(stderr,
                      "  round %u of %u at %u msg/s: F1 %.3f, F2 %.3f, weir %.3f us/frame\n",
                      round + 1, round_count, rate, floor1[round], floor2[round], weir[round]);
    }
    printf("bench=fanout subscribers=%u item_bytes=%d rate=%u gateways=%u rounds=%u "
           "floor1_us=%.3f floor2_us=%.3f weir_us=%.3f ratio_to_floor1=%.2f\n",
           subscriber_count, LOAD_ITEM_BYTES, rate, server->gateway_count, round_count,
           load_median(floor1, round_count), load_median(floor2, round_count),
           load_median(weir, round_count), load_median(ratio, round_count));
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        subscriber_count = (unsigned)strtoul(argv[1], NULL, 10);
    if (argc > 2)
        round_seconds = strtod(argv[2], NULL);
    if (argc > 3)
        round_count = (unsigned)strtoul(argv[3], NULL, 10);
    if (subscriber_count == 0 || round_seconds < 1 || round_count == 0 || round_count > ROUNDS_MAX)
        load_die(
            "usage: fanout_bench [subscribers] [seconds a round, at least 1] [rounds, 1 to %d]",
            ROUNDS_MAX);
    if (load_raise_descriptor_limit(subscriber_count * 2 + 256) < subscriber_count + 256)
        load_die("the descriptor limit is too low for %u subscribers", subscriber_count);
    struct load_server server;
    load_server_start(&server, 2, NULL);
    bench_rate(&server, 100);
    bench_rate(&server, 1000);
    load_server_stop(&server);
    return 0;
}

/* bench/calls_bench.c -- what does a call cost the server?
 *
 * Question: server CPU-microseconds (gateway and broker together), calls a second and latency of
 *           `stream::set` and of a call from worker to worker, through one connection shaped like
 *           iii-sdk's (WebSocket, JSON, UUIDs, masked frames) and through libweir, with 1 and with
 *           32 calls in flight.
 * Method:   one gateway and the broker; the client is this process, whose CPU time is not counted.
 *           It keeps the wanted number of calls in flight: what one read has brought is followed by
 *           as many new calls in one write. The floor is a bare epoll server that answers each
 *           WebSocket frame with one of the size of weir's answer, one send a read. Rounds are
 *           interleaved; the median counts, because the machine is noisy. Every call must be
 *           answered without an error, or the run fails.
 * Unit:     microseconds of user and system time per call (process CPU clocks); ratio to the floor
 *           of the same run.
 * Run:      calls_bench [calls a round] [rounds]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "client/weir.h"

enum {
    ROUNDS_MAX = 32,
    IN_FLIGHT_MAX = 32,
    CALL_BYTES_MAX = 1024,
    READ_BYTES = 64 * 1024,
    WARM_UP_CALLS = 2000,
    FLOOR_ANSWER_BYTES = 400,
};

struct measure {
    double cpu_us, calls_per_second, p50_us, p99_us;
};

static unsigned call_count = 50000;
static unsigned round_count = 5;

/* ---- what is sent ---- */

/* A masked client frame around one invokefunction; `function` NULL: stream::set. Returns its
 * bytes. */
static size_t call_frame(char *out, const char *function, uint64_t number)
{
    char item[LOAD_ITEM_BYTES + 1], text[CALL_BYTES_MAX];
    load_item_text(item, number);
    int bytes =
        snprintf(text, sizeof text,
                 "{\"type\":\"invokefunction\",\"invocation_id\":"
                 "\"7f3c2a10-5b1e-4c8d-9a6f-%012llx\",\"function_id\":\"%s\",\"data\":%s%s%s}",
                 (unsigned long long)number, function == NULL ? "stream::set" : function,
                 function == NULL ? "{\"stream_name\":\"bench\",\"group_id\":\"g\","
                                    "\"item_id\":\"m\",\"data\":"
                                  : "",
                 item, function == NULL ? "}" : "");
    return load_masked_frame(out, text, (size_t)bytes);
}

static void write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(fd, data, bytes);
        if (written <= 0)
            load_die("the server closed the connection");
        data += written;
        bytes -= (size_t)written;
    }
}

/* ---- latencies of a round ---- */

static uint64_t *latencies_ns;
static uint64_t started_ns[IN_FLIGHT_MAX];

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void measure_latencies(struct measure *measure)
{
    qsort(latencies_ns, call_count, sizeof *latencies_ns, compare);
    measure->p50_us = (double)latencies_ns[call_count / 2] / 1e3;
    measure->p99_us = (double)latencies_ns[(uint64_t)call_count * 99 / 100] / 1e3;
}

/* ---- a WebSocket connection ---- */

struct frames {
    int fd;
    size_t bytes, taken;
    char data[READ_BYTES];
};

static void frames_read(struct frames *frames)
{
    memmove(frames->data, frames->data + frames->taken, frames->bytes - frames->taken);
    frames->bytes -= frames->taken;
    frames->taken = 0;
    ssize_t got =
        read(frames->fd, frames->data + frames->bytes, sizeof frames->data - frames->bytes);
    if (got <= 0)
        load_die("the server closed the connection");
    frames->bytes += (size_t)got;
}

/* The payload of the next whole server frame; false: read more. */
static bool frames_next(struct frames *frames, const char **payload, size_t *bytes)
{
    const unsigned char *at = (const unsigned char *)frames->data + frames->taken;
    size_t have = frames->bytes - frames->taken;
    if (have < 4)
        return false;
    size_t header = (at[1] & 0x7f) == 126 ? 4 : 2;
    *bytes = header == 4 ? (size_t)at[2] << 8 | at[3] : at[1] & 0x7f;
    if (have < header + *bytes)
        return false;
    *payload = (const char *)at + header;
    frames->taken += header + *bytes;
    return true;
}

static struct frames caller, executor;

/* Keep `in_flight` calls open until `count` are answered. */
static void pump_websocket(const char *function, unsigned count, unsigned in_flight)
{
    char out[IN_FLIGHT_MAX * CALL_BYTES_MAX];
    unsigned sent = 0, answered = 0;
    while (answered < count) {
        size_t out_bytes = 0;
        uint64_t now_ns = load_clock_ns();
        for (; sent < count && sent - answered < in_flight; sent++) {
            out_bytes += call_frame(out + out_bytes, function, sent);
            started_ns[sent % in_flight] = now_ns;
        }
        if (out_bytes > 0)
            write_all(caller.fd, out, out_bytes);
        frames_read(&caller);
        now_ns = load_clock_ns();
        const char *payload;
        size_t bytes;
        while (frames_next(&caller, &payload, &bytes)) {
            if (memmem(payload, bytes, "\"error\"", 7) != NULL)
                load_die("a call failed: %.*s", (int)bytes, payload);
            latencies_ns[answered] = now_ns - started_ns[answered % in_flight];
            answered++;
        }
    }
}

/* ---- executors of calls from worker to worker: processes of their own ---- */

static void run_executor_websocket(uint16_t port)
{
    static const char registration[] = "{\"type\":\"registerfunction\",\"id\":\"bench::ws\"}";
    static const char key[] = "\"invocation_id\":\"";
    char out[READ_BYTES];
    executor.fd = load_websocket_open(port, "/");
    load_websocket_write(executor.fd, registration, sizeof registration - 1);
    for (;;) {
        const char *payload;
        size_t bytes, out_bytes = 0;
        frames_read(&executor);
        while (frames_next(&executor, &payload, &bytes)) {
            const char *id = memmem(payload, bytes, key, sizeof key - 1);
            char text[256];
            if (id == NULL)
                continue; /* workerregistered */
            int text_bytes = snprintf(text, sizeof text,
                                      "{\"type\":\"invocationresult\",\"invocation_id\":\"%.36s\","
                                      "\"function_id\":\"bench::ws\",\"result\":{\"ok\":true}}",
                                      id + sizeof key - 1);
            if (out_bytes + sizeof text + 16 > sizeof out) {
                write_all(executor.fd, out, out_bytes);
                out_bytes = 0;
            }
            out_bytes += load_client_frame(out + out_bytes, text, (size_t)text_bytes);
        }
        write_all(executor.fd, out, out_bytes);
    }
}

static struct weir_client *client_open(const struct load_server *server)
{
    char path[128], error[WEIR_ERROR_BYTES];
    (void)snprintf(path, sizeof path, "%s/weir.sock", server->run_dir);
    const struct weir_client_options options = {.socket_path = path, .name = "calls_bench"};
    struct weir_client *client;
    if (weir_client_open(&client, &options, error, sizeof error) != 0)
        load_die("libweir: %s", error);
    return client;
}

static void on_invoked(void *context, struct weir_client *client,
                       const struct weir_invocation *invocation)
{
    (void)context;
    (void)weir_client_answer(client, invocation->id, weir_text("{\"ok\":true}"));
}

static void run_executor_libweir(const struct load_server *server)
{
    bool never = false;
    struct weir_client *client = client_open(server);
    const struct weir_function function = {.id = "bench::libweir", .handler = on_invoked};
    (void)weir_client_register(client, &function);
    (void)weir_client_run_until(client, &never, -1);
}

static pid_t start_executor(const struct load_server *server, bool is_libweir)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (is_libweir)
        run_executor_libweir(server);
    else
        run_executor_websocket(server->worker_port);
    _exit(0);
}

/* ---- libweir ---- */

struct pump {
    unsigned answered, in_flight;
    bool has_answers;
};

static void on_done(void *context, const struct weir_result *result)
{
    struct pump *pump = context;
    if (result->error_code != NULL)
        load_die("a call failed: %s: %s", result->error_code, result->error_message);
    latencies_ns[pump->answered] = load_clock_ns() - started_ns[pump->answered % pump->in_flight];
    pump->answered++;
    pump->has_answers = true;
}

static void pump_libweir(struct weir_client *client, const char *function, unsigned count,
                         unsigned in_flight)
{
    struct pump pump = {.in_flight = in_flight};
    unsigned sent = 0;
    while (pump.answered < count) {
        uint64_t now_ns = load_clock_ns();
        for (; sent < count && sent - pump.answered < in_flight; sent++) {
            char item[LOAD_ITEM_BYTES + 1];
            load_item_text(item, sent);
            started_ns[sent % in_flight] = now_ns;
            const struct weir_call call = {.function_id = function, .json = weir_text(item)};
            int result = function == NULL ? weir_client_set(client, "bench", "g", "m",
                                                            weir_text(item), on_done, &pump)
                                          : weir_client_call(client, &call, on_done, &pump);
            if (result != 0)
                load_die("libweir: %s", weir_client_error(client));
        }
        pump.has_answers = false;
        if (weir_client_run_until(client, &pump.has_answers, 30000) != 0)
            load_die("libweir: %s", weir_client_error(client));
    }
}

/* ---- the floor ---- */

static void run_floor(int listener)
{
    static char in[READ_BYTES], out[IN_FLIGHT_MAX * FLOOR_ANSWER_BYTES];
    char answer[FLOOR_ANSWER_BYTES] = {(char)0x81, 126, (FLOOR_ANSWER_BYTES - 4) >> 8,
                                       (char)((FLOOR_ANSWER_BYTES - 4) & 0xff)};
    memset(answer + 4, 'x', FLOOR_ANSWER_BYTES - 4);
    int poller = epoll_create1(0);
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    (void)epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    for (size_t have = 0;;) {
        (void)epoll_wait(poller, &event, 1, -1);
        ssize_t got = recv(fd, in + have, sizeof in - have, MSG_DONTWAIT);
        if (got <= 0)
            _exit(0);
        have += (size_t)got;
        size_t taken = 0, out_bytes = 0;
        while (have - taken >= 8) {
            const unsigned char *at = (const unsigned char *)in + taken;
            size_t frame_bytes = 8 + ((size_t)at[2] << 8 | at[3]); /* no call is below 126 bytes */
            if (have - taken < frame_bytes)
                break;
            for (size_t i = 8; i < frame_bytes; i++)
                in[taken + i] = (char)(in[taken + i] ^ in[taken + 4 + (i & 3)]);
            taken += frame_bytes;
            memcpy(out + out_bytes, answer, sizeof answer);
            out_bytes += sizeof answer;
        }
        memmove(in, in + taken, have - taken);
        have -= taken;
        if (out_bytes > 0 && send(fd, out, out_bytes, MSG_NOSIGNAL) != (ssize_t)out_bytes)
            _exit(1);
    }
}

static struct measure measure_floor(unsigned in_flight)
{
    uint16_t port;
    int listener = load_listen(&port);
    pid_t server = fork();
    if (server == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_floor(listener);
    }
    (void)close(listener);
    struct measure measure;
    caller = (struct frames){.fd = load_tcp_open(port)};
    pump_websocket(NULL, WARM_UP_CALLS, in_flight);
    uint64_t cpu_ns = load_cpu_ns(server), start_ns = load_clock_ns();
    pump_websocket(NULL, call_count, in_flight);
    measure.calls_per_second = call_count / ((double)(load_clock_ns() - start_ns) / 1e9);
    measure.cpu_us = (double)(load_cpu_ns(server) - cpu_ns) / 1e3 / call_count;
    measure_latencies(&measure);
    (void)close(caller.fd);
    (void)kill(server, SIGKILL);
    (void)waitpid(server, NULL, 0);
    return measure;
}

/* ---- weir ---- */

struct bench_case {
    const char *name;
    bool is_libweir;
    const char *function; /* NULL: stream::set */
    unsigned in_flight;
};

static struct measure measure_weir(const struct load_server *server, const struct bench_case *bench)
{
    struct measure measure;
    struct weir_client *client = NULL;
    if (bench->is_libweir) {
        client = client_open(server);
        pump_libweir(client, bench->function, WARM_UP_CALLS, bench->in_flight);
    } else {
        const char *payload;
        size_t bytes;
        caller = (struct frames){.fd = load_websocket_open(server->worker_port, "/")};
        while (!frames_next(&caller, &payload, &bytes)) /* workerregistered */
            frames_read(&caller);
        pump_websocket(bench->function, WARM_UP_CALLS, bench->in_flight);
    }
    uint64_t cpu_ns = load_server_cpu_ns(server), start_ns = load_clock_ns();
    if (bench->is_libweir)
        pump_libweir(client, bench->function, call_count, bench->in_flight);
    else
        pump_websocket(bench->function, call_count, bench->in_flight);
    measure.calls_per_second = call_count / ((double)(load_clock_ns() - start_ns) / 1e9);
    measure.cpu_us = (double)(load_server_cpu_ns(server) - cpu_ns) / 1e3 / call_count;
    measure_latencies(&measure);
    if (bench->is_libweir)
        weir_client_close(client);
    else
        (void)close(caller.fd);
    return measure;
}

static void bench_case_run(const struct load_server *server, const struct bench_case *bench)
{
    double floor_us[ROUNDS_MAX], server_us[ROUNDS_MAX], ratio[ROUNDS_MAX], rate[ROUNDS_MAX],
        p50[ROUNDS_MAX], p99[ROUNDS_MAX];
    for (unsigned round = 0; round < round_count; round++) {
        floor_us[round] = measure_floor(bench->in_flight).cpu_us;
        struct measure weir = measure_weir(server, bench);
        server_us[round] = weir.cpu_us;
        ratio[round] = weir.cpu_us / floor_us[round];
        rate[round] = weir.calls_per_second;
        p50[round] = weir.p50_us;
        p99[round] = weir.p99_us;
    }
    printf("bench=calls case=%s in_flight=%u item_bytes=%d calls=%u rounds=%u floor_us=%.2f "
           "server_us=%.2f ratio_to_floor=%.2f calls_per_s=%.0f p50_us=%.0f p99_us=%.0f\n",
           bench->name, bench->in_flight, LOAD_ITEM_BYTES, call_count, round_count,
           load_median(floor_us, round_count), load_median(server_us, round_count),
           load_median(ratio, round_count), load_median(rate, round_count),
           load_median(p50, round_count), load_median(p99, round_count));
    (void)fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct bench_case cases[] = {
        {"set_websocket", false, NULL, 1},
        {"set_websocket", false, NULL, IN_FLIGHT_MAX},
        {"set_libweir", true, NULL, 1},
        {"set_libweir", true, NULL, IN_FLIGHT_MAX},
        {"call_websocket", false, "bench::ws", 1},
        {"call_websocket", false, "bench::ws", IN_FLIGHT_MAX},
        {"call_libweir", true, "bench::libweir", 1},
        {"call_libweir", true, "bench::libweir", IN_FLIGHT_MAX},
    };
    if (argc > 1)
        call_count = (unsigned)strtoul(argv[1], NULL, 10);
    if (argc > 2)
        round_count = (unsigned)strtoul(argv[2], NULL, 10);
    if (call_count < WARM_UP_CALLS || round_count == 0 || round_count > ROUNDS_MAX)
        load_die("usage: calls_bench [calls a round, at least %d] [rounds, 1 to %d]", WARM_UP_CALLS,
                 ROUNDS_MAX);
    latencies_ns = calloc(call_count, sizeof *latencies_ns);
    if (latencies_ns == NULL)
        load_die("no memory");
    struct load_server server;
    load_server_start(&server, 1, NULL);
    pid_t executors[2] = {start_executor(&server, false), start_executor(&server, true)};
    load_sleep_until(load_clock_ns() + 500000000u); /* both have registered */
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++)
        bench_case_run(&server, &cases[i]);
    for (unsigned i = 0; i < 2; i++) {
        (void)kill(executors[i], SIGKILL);
        (void)waitpid(executors[i], NULL, 0);
    }
    load_server_stop(&server);
    free(latencies_ns);
    return 0;
}

#include "bench/writers.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench/load.h"
#include "client/weir.h"
#include "shm/readers.h"
#include "shm/segment.h"
#include "shm/wire.h"

#define PUT(at, literal) put_text(at, literal, sizeof(literal) - 1)

enum {
    REQUEST_BYTES_MAX = 1024,
    GROUP_BYTES = 5,
    NAME_BYTES = 8,
    ID_DIGITS = 12,            /* at the end of an invocation id */
    INPUT_BYTES = 1024 * 1024, /* the answers to WRITERS_IN_FLIGHT_MAX sets, and more */
};

/* ---- what is written ---- */

struct item {
    char group[GROUP_BYTES + 1], name[NAME_BYTES + 1]; /* NUL-terminated when zeroed before */
    char value[LOAD_ITEM_BYTES + 1];
};

/* Clients are part of the loop: what they do per set is kept small, hence no printf. */
static char *put_text(char *at, const char *text, size_t bytes)
{
    memcpy(at, text, bytes);
    return at + bytes;
}

static char *put_number(char *at, uint64_t number, unsigned base, unsigned digits)
{
    for (unsigned i = digits; i > 0; i--, number /= base)
        at[i - 1] = "0123456789abcdef"[number % base];
    return at + digits;
}

static void item_make(struct item *item, uint64_t number)
{
    item->group[0] = 'g';
    (void)put_number(item->group + 1, number / WRITERS_ITEMS_PER_GROUP, 10, GROUP_BYTES - 1);
    item->name[0] = 'i';
    (void)put_number(item->name + 1, number, 10, NAME_BYTES - 1);
    load_item_text(item->value, number);
}

/* ---- ways to say it ---- */

struct way {
    /* Put the set of `item` with the number `id` at `out` (REQUEST_BYTES_MAX); returns its bytes. */
    size_t (*request)(struct writers *writers, char *out, uint64_t id, const struct item *item);
    /* What stands first in `input`: returns its bytes, 0 when it is not whole. *is_answer: it is the
     * answer to `id`, and a good one; else nothing this client waits for. */
    size_t (*answer)(struct writers *writers, struct span input, uint64_t id, bool *is_answer);
};

struct connection {
    int fd;
    size_t input_bytes, input_taken;
    char *input;
    uint64_t sent, answered;
    unsigned quota; /* in flight at once */
    uint64_t started_ns[WRITERS_IN_FLIGHT_MAX];
    uint64_t ids[WRITERS_IN_FLIGHT_MAX];
};

struct writers {
    const struct way *way;
    unsigned count;
    struct connection *connections;
    struct weir_client *client; /* libweir's, instead of connections */
    struct wire_reader *wire;
    struct buffer message;
    struct segment segment;
    bool has_segment;
    uint64_t next_id;
    uint64_t *latencies_ns;
};

static size_t websocket_request(struct writers *writers, char *out, uint64_t id,
                                const struct item *item)
{
    char text[REQUEST_BYTES_MAX - 16], *at = text;
    (void)writers;
    at = PUT(at, "{\"type\":\"invokefunction\",\"invocation_id\":\"7f3c2a10-5b1e-4c8d-9a6f-");
    at = put_number(at, id, 16, ID_DIGITS);
    at = PUT(at, "\",\"function_id\":\"stream::set\",\"data\":{\"stream_name\":\"bench\","
                 "\"group_id\":\"");
    at = put_text(at, item->group, GROUP_BYTES);
    at = PUT(at, "\",\"item_id\":\"");
    at = put_text(at, item->name, NAME_BYTES);
    at = PUT(at, "\",\"data\":");
    at = put_text(at, item->value, LOAD_ITEM_BYTES);
    at = PUT(at, "}}");
    return load_masked_frame(out, text, (size_t)(at - text));
}

static size_t websocket_answer(struct writers *writers, struct span input, uint64_t id,
                               bool *is_answer)
{
    const unsigned char *at = (const unsigned char *)input.data;
    (void)writers;
    if (input.bytes < 4)
        return 0;
    size_t header = (at[1] & 0x7f) == 126 ? 4 : 2;
    size_t bytes = header == 4 ? (size_t)at[2] << 8 | at[3] : at[1] & 0x7f;
    if (input.bytes < header + bytes)
        return 0;
    const char *payload = input.data + header;
    if (memmem(payload, bytes, "\"error\"", 7) != NULL)
        load_die("a set failed: %.*s", (int)bytes, payload);
    char number[ID_DIGITS];
    (void)put_number(number, id, 16, ID_DIGITS);
    *is_answer = memmem(payload, bytes, number, ID_DIGITS) != NULL;
    if (!*is_answer && memmem(payload, bytes, "invocationresult", 16) != NULL)
        load_die("not the next answer: %.*s", (int)bytes, payload);
    return header + bytes;
}

static size_t broker_request(struct writers *writers, char *out, uint64_t id,
                             const struct item *item)
{
    const struct wire_field fields[8] = {WIRE_NUMBER(WIRE_OP_SET),
                                         WIRE_SPAN(SPAN_LITERAL("bench")),
                                         WIRE_SPAN(span_of(item->group, GROUP_BYTES)),
                                         WIRE_SPAN(span_of(item->name, NAME_BYTES)),
                                         WIRE_NIL,
                                         WIRE_SPAN(span_of(item->value, LOAD_ITEM_BYTES))};
    buffer_clear(&writers->message);
    if (wire_append(&writers->message, WIRE_STREAM, id, fields) != WEIR_OK ||
        writers->message.bytes > REQUEST_BYTES_MAX)
        load_die("the message cannot be put together");
    memcpy(out, writers->message.data, writers->message.bytes);
    return writers->message.bytes;
}

static size_t broker_answer(struct writers *writers, struct span input, uint64_t id,
                            bool *is_answer)
{
    struct wire_message message;
    size_t frame_bytes = 0;
    enum weir_status status = wire_read(writers->wire, input, &message, &frame_bytes);
    *is_answer = false;
    if (status == WEIR_EMPTY)
        return 0;
    if (status != WEIR_OK)
        load_die("the broker's message is malformed: %s", wire_reader_problem(writers->wire));
    if (message.type != WIRE_STREAM_RESULT)
        return frame_bytes;
    if (message.id != id)
        load_die("not the next answer: %llu instead of %llu", (unsigned long long)message.id,
                 (unsigned long long)id);
    if (message.fields[0].span.data != NULL)
        load_die("a set failed: %.*s", (int)message.fields[1].span.bytes,
                 message.fields[1].span.data);
    *is_answer = true;
    return frame_bytes;
}

static_assert(sizeof "bench:" - 1 + GROUP_BYTES + 1 + NAME_BYTES == 20, "as the request says");
static_assert(LOAD_ITEM_BYTES == 128, "as the request says");

static size_t redis_request(struct writers *writers, char *out, uint64_t id,
                            const struct item *item)
{
    (void)writers;
    (void)id;
    char *at = PUT(out, "*3\r\n$3\r\nSET\r\n$20\r\nbench:");
    at = put_text(at, item->group, GROUP_BYTES);
    at = PUT(at, ":");
    at = put_text(at, item->name, NAME_BYTES);
    at = PUT(at, "\r\n$128\r\n");
    at = put_text(at, item->value, LOAD_ITEM_BYTES);
    at = PUT(at, "\r\n");
    return (size_t)(at - out);
}

static size_t redis_answer(struct writers *writers, struct span input, uint64_t id, bool *is_answer)
{
    (void)writers;
    (void)id;
    const char *end = memchr(input.data, '\n', input.bytes);
    if (end == NULL)
        return 0;
    size_t bytes = (size_t)(end - input.data) + 1;
    if (bytes != 5 || memcmp(input.data, "+OK\r\n", 5) != 0)
        load_die("redis: %.*s", (int)bytes, input.data);
    *is_answer = true;
    return bytes;
}

static const struct way websocket_way = {websocket_request, websocket_answer};
static const struct way broker_way = {broker_request, broker_answer};
static const struct way redis_way = {redis_request, redis_answer};

/* ---- opening ---- */

static struct writers *writers_make(const struct way *way, unsigned count)
{
    struct writers *writers = calloc(1, sizeof *writers);
    if (writers == NULL || count > WRITERS_CONNECTIONS_MAX)
        load_die("no writers");
    writers->way = way;
    writers->count = count;
    writers->connections = calloc(count, sizeof *writers->connections);
    writers->latencies_ns = malloc(WRITERS_SETS_MAX * sizeof *writers->latencies_ns);
    writers->wire = wire_reader_open();
    buffer_init(&writers->message, 64u * 1024);
    if (writers->latencies_ns == NULL || writers->wire == NULL ||
        (count > 0 && writers->connections == NULL))
        load_die("no memory");
    for (unsigned i = 0; i < count; i++) {
        writers->connections[i].input = malloc(INPUT_BYTES);
        if (writers->connections[i].input == NULL)
            load_die("no memory");
    }
    /* Numbers count on from a random one, so that no two lives of this client have one in common. */
    uint32_t start;
    if (getrandom(&start, sizeof start, 0) != sizeof start)
        load_die("no random number");
    writers->next_id = (uint64_t)start << 8;
    return writers;
}

static int unix_open(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        load_die("%s is too long for a socket's path", path);
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        load_die("cannot connect to %s: %s", path, strerror(errno));
    return fd;
}

static void write_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = send(fd, data, bytes, MSG_NOSIGNAL);
        if (written <= 0)
            load_die("the server closed the connection, or the bench was interrupted");
        data += written;
        bytes -= (size_t)written;
    }
}

struct writers *writers_open_websocket(uint16_t worker_port)
{
    char registered[1024];
    struct writers *writers = writers_make(&websocket_way, 1);
    writers->connections[0].fd = load_websocket_open(worker_port, "/");
    (void)load_websocket_read(writers->connections[0].fd, registered, sizeof registered);
    return writers;
}

struct writers *writers_open_libweir(const char *run_dir)
{
    char path[128], error[WEIR_ERROR_BYTES];
    struct writers *writers = writers_make(NULL, 0);
    (void)snprintf(path, sizeof path, "%s/weir.sock", run_dir);
    const struct weir_client_options options = {.socket_path = path, .name = "log_bench"};
    if (weir_client_open(&writers->client, &options, error, sizeof error) != 0)
        load_die("libweir: %s", error);
    return writers;
}

/* ATTACHED comes with descriptors of the segment, a doorbell and a control page. The bench reads the
 * counters in the segment and never the ring, so nobody has to ring for it. */
static void receive_attached(struct writers *writers)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    char frame[256];
    int fds[3];
    struct iovec part = {frame, sizeof frame};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(writers->connections[0].fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header == NULL || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof fds))
        load_die("the broker does not let the bench attach");
    memcpy(fds, CMSG_DATA(header), sizeof fds);
    (void)close(fds[1]);
    (void)close(fds[2]);
    struct weir_error error;
    if (segment_attach(&writers->segment, fds[0], &error) != WEIR_OK)
        load_die("%s", error.text);
    writers->has_segment = true;
}

struct writers *writers_open_bare(const char *socket_path)
{
    struct writers *writers = writers_make(&broker_way, 1);
    writers->connections[0].fd = unix_open(socket_path);
    return writers;
}

struct writers *writers_open_broker(const char *run_dir)
{
    char path[128];
    (void)snprintf(path, sizeof path, "%s/broker.sock", run_dir);
    struct writers *writers = writers_open_bare(path);
    /* Its origin is as random as its numbers. */
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                        WIRE_NUMBER((uint64_t)getpid()),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(writers->next_id | 1),
                                        WIRE_NUMBER(0)};
    if (wire_append(&writers->message, WIRE_ATTACH, 0, fields) != WEIR_OK)
        load_die("no memory");
    write_all(writers->connections[0].fd, writers->message.data, writers->message.bytes);
    receive_attached(writers);
    return writers;
}

struct writers *writers_open_redis(const char *socket_path, unsigned connections)
{
    struct writers *writers = writers_make(&redis_way, connections);
    for (unsigned i = 0; i < connections; i++)
        writers->connections[i].fd = unix_open(socket_path);
    return writers;
}

void writers_close(struct writers *writers)
{
    weir_client_close(writers->client);
    for (unsigned i = 0; i < writers->count; i++) {
        (void)close(writers->connections[i].fd);
        free(writers->connections[i].input);
    }
    if (writers->has_segment)
        segment_close(&writers->segment);
    wire_reader_close(writers->wire);
    buffer_fini(&writers->message);
    free(writers->connections);
    free(writers->latencies_ns);
    free(writers);
}

void writers_broker_counters(const struct writers *writers, struct broker_counters *counters)
{
    readers_broker_counters(&writers->segment, counters);
}

/* ---- the loop ---- */

struct pump {
    struct writers *writers;
    const struct writers_run *run;
    uint64_t sent, answered, sets_max, deadline_ns;
    bool has_answers; /* libweir */
};

static bool pump_may_send(const struct pump *pump, uint64_t now_ns)
{
    return pump->sent < pump->sets_max && now_ns < pump->deadline_ns;
}

static void pump_next_item(struct pump *pump, struct item *item)
{
    item_make(item, (pump->run->first_item + pump->sent) % pump->run->items);
    pump->sent++;
}

static void pump_answered(struct pump *pump, uint64_t latency_ns)
{
    pump->writers->latencies_ns[pump->answered++] = latency_ns;
}

static void connection_fill(struct pump *pump, struct connection *connection)
{
    static char out[WRITERS_IN_FLIGHT_MAX * REQUEST_BYTES_MAX];
    size_t out_bytes = 0;
    uint64_t now_ns = load_clock_ns();
    while (connection->sent - connection->answered < connection->quota &&
           pump_may_send(pump, now_ns)) {
        struct item item;
        uint64_t slot = connection->sent++ % connection->quota;
        connection->ids[slot] = pump->writers->next_id++;
        connection->started_ns[slot] = now_ns;
        pump_next_item(pump, &item);
        out_bytes += pump->writers->way->request(pump->writers, out + out_bytes,
                                                 connection->ids[slot], &item);
    }
    if (out_bytes > 0)
        write_all(connection->fd, out, out_bytes);
}

static void connection_read(struct pump *pump, struct connection *connection)
{
    memmove(connection->input, connection->input + connection->input_taken,
            connection->input_bytes - connection->input_taken);
    connection->input_bytes -= connection->input_taken;
    connection->input_taken = 0;
    ssize_t got = read(connection->fd, connection->input + connection->input_bytes,
                       INPUT_BYTES - connection->input_bytes);
    if (got <= 0)
        load_die("the server closed the connection, or the bench was interrupted");
    connection->input_bytes += (size_t)got;
    uint64_t now_ns = load_clock_ns();
    while (connection->input_taken < connection->input_bytes) {
        bool is_answer = false;
        uint64_t slot = connection->answered % connection->quota;
        size_t taken =
            pump->writers->way->answer(pump->writers,
                                       span_of(connection->input + connection->input_taken,
                                               connection->input_bytes - connection->input_taken),
                                       connection->ids[slot], &is_answer);
        if (taken == 0)
            return;
        connection->input_taken += taken;
        if (!is_answer)
            continue;
        connection->answered++;
        pump_answered(pump, now_ns - connection->started_ns[slot]);
    }
}

static void pump_one_connection(struct pump *pump)
{
    struct connection *connection = &pump->writers->connections[0];
    connection_fill(pump, connection);
    while (pump->answered < pump->sent) {
        connection_read(pump, connection);
        connection_fill(pump, connection);
    }
}

static void pump_connections(struct pump *pump)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    for (unsigned i = 0; i < pump->writers->count; i++) {
        struct connection *connection = &pump->writers->connections[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event) != 0)
            load_die("epoll_ctl: %s", strerror(errno));
        connection_fill(pump, connection);
    }
    while (pump->answered < pump->sent) {
        struct epoll_event events[WRITERS_CONNECTIONS_MAX];
        int ready = epoll_wait(poller, events, WRITERS_CONNECTIONS_MAX, -1);
        if (ready < 0)
            load_die("the bench was interrupted");
        for (int i = 0; i < ready; i++) {
            connection_read(pump, events[i].data.ptr);
            connection_fill(pump, events[i].data.ptr);
        }
    }
    (void)close(poller);
}

struct libweir_set {
    struct pump *pump;
    uint64_t started_ns;
};

static void on_done(void *context, const struct weir_result *result)
{
    struct libweir_set *set = context;
    if (result->error_code != NULL)
        load_die("a set failed: %s: %s", result->error_code, result->error_message);
    pump_answered(set->pump, load_clock_ns() - set->started_ns);
    set->pump->has_answers = true;
}

static void pump_libweir(struct pump *pump)
{
    static struct libweir_set sets[WRITERS_IN_FLIGHT_MAX]; /* answers come in order */
    struct weir_client *client = pump->writers->client;
    for (;;) {
        uint64_t now_ns = load_clock_ns();
        while (pump->sent - pump->answered < pump->run->in_flight && pump_may_send(pump, now_ns)) {
            struct libweir_set *set = &sets[pump->sent % pump->run->in_flight];
            struct item item = {0};
            *set = (struct libweir_set){pump, now_ns};
            pump_next_item(pump, &item);
            if (weir_client_set(client, "bench", item.group, item.name,
                                (struct weir_text){item.value, LOAD_ITEM_BYTES}, on_done, set) != 0)
                load_die("libweir: %s", weir_client_error(client));
        }
        if (pump->answered == pump->sent)
            return;
        pump->has_answers = false;
        if (weir_client_run_until(client, &pump->has_answers, 30000) != 0)
            load_die("libweir: %s", weir_client_error(client));
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

struct writers_outcome writers_run(struct writers *writers, const struct writers_run *run)
{
    unsigned connections = writers->count > 0 ? writers->count : 1;
    if (run->in_flight % connections != 0 || run->in_flight > WRITERS_IN_FLIGHT_MAX ||
        run->items == 0 || run->items > WRITERS_ITEMS_MAX)
        load_die("no such run");
    uint64_t start_ns = load_clock_ns(), cpu_ns = load_cpu_ns(getpid());
    struct pump pump = {.writers = writers, .run = run};
    pump.deadline_ns = run->seconds > 0 ? start_ns + (uint64_t)(run->seconds * 1e9) : UINT64_MAX;
    pump.sets_max = run->sets > 0 && run->sets < WRITERS_SETS_MAX ? run->sets : WRITERS_SETS_MAX;
    for (unsigned i = 0; i < writers->count; i++) {
        writers->connections[i].quota = run->in_flight / connections;
        writers->connections[i].sent = 0;
        writers->connections[i].answered = 0;
    }
    if (writers->client != NULL)
        pump_libweir(&pump);
    else if (writers->count == 1)
        pump_one_connection(&pump);
    else
        pump_connections(&pump);
    struct writers_outcome outcome = {.sets = pump.answered,
                                      .seconds = (double)(load_clock_ns() - start_ns) / 1e9,
                                      .cpu_ns = load_cpu_ns(getpid()) - cpu_ns};
    qsort(writers->latencies_ns, pump.answered, sizeof *writers->latencies_ns, compare);
    outcome.p50_us = (double)writers->latencies_ns[pump.answered / 2] / 1e3;
    outcome.p99_us = (double)writers->latencies_ns[pump.answered * 99 / 100] / 1e3;
    return outcome;
}

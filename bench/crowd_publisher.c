#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/crowd.h"
#include "bench/load.h"
#include "bench/message.h"

enum {
    OUT_BYTES = 256 * 1024,
    IN_BYTES = 64 * 1024,
    STALL_MS = 15000, /* nothing in flight has arrived for so long: it is lost */
    READY_MS = 30000,
};

struct crowd_publisher {
    struct crowd *crowd;
    struct crowd_options options;
    int fd;
    uint8_t stage;
    bool is_ready;
    uint64_t published, refused;
    uint64_t answered, reopened; /* resume only */
    uint64_t completed;          /* messages that are not in flight any more */
    size_t out_bytes, in_bytes;
    char in[IN_BYTES];
    char out[OUT_BYTES];
};

static void connection_open(struct crowd_publisher *publisher);

/* The server has gone away. What it has not answered it has not taken (a connection that is drained
 * ends behind its last answer), and is published again. */
static void connection_lost(struct crowd_publisher *publisher)
{
    if (!publisher->options.resume)
        load_die("the server has closed the publisher's connection");
    (void)close(publisher->fd);
    publisher->published = publisher->answered;
    publisher->reopened++;
    connection_open(publisher);
}

/* Answers, pings: all that has come. Units are whole or wait in `in` for their rest. */
static void take_answers(struct crowd_publisher *publisher)
{
    struct crowd_voice voice = {.port = publisher->options.publish_port, .stage = publisher->stage};
    struct span rest = span_of(publisher->in, publisher->in_bytes);
    char reply[CROWD_REPLY_BYTES_MAX];
    while (rest.bytes > 0) {
        struct crowd_unit unit = {0};
        publisher->options.protocol->take(&voice, rest, reply, &unit);
        if (unit.bytes == 0)
            break;
        if (unit.kind == CROWD_END && publisher->options.resume) {
            connection_lost(publisher);
            return;
        }
        if (unit.kind == CROWD_END || unit.kind == CROWD_BROKEN)
            load_die("the server says to the publisher: %.*s",
                     rest.bytes < 200 ? (int)rest.bytes : 200, rest.data);
        publisher->refused += unit.kind == CROWD_REFUSED;
        publisher->answered += unit.kind == CROWD_ANSWERED;
        publisher->is_ready = publisher->is_ready || unit.kind == CROWD_LIVE;
        if (unit.reply_bytes > 0 &&
            send(publisher->fd, reply, unit.reply_bytes, MSG_NOSIGNAL) != (ssize_t)unit.reply_bytes)
            load_die("the server does not read the publisher's answers");
        rest = span_of(rest.data + unit.bytes, rest.bytes - unit.bytes);
    }
    publisher->stage = voice.stage;
    memmove(publisher->in, rest.data, rest.bytes);
    publisher->in_bytes = rest.bytes;
}

static void read_answers(struct crowd_publisher *publisher)
{
    ssize_t got =
        read(publisher->fd, publisher->in + publisher->in_bytes, IN_BYTES - publisher->in_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        connection_lost(publisher);
        return;
    }
    publisher->in_bytes += (size_t)got;
    take_answers(publisher);
}

/* All of it; answers are read meanwhile, or both sides could wait for the other one to read. */
static void write_out(struct crowd_publisher *publisher)
{
    size_t done = 0;
    while (done < publisher->out_bytes) {
        ssize_t sent =
            send(publisher->fd, publisher->out + done, publisher->out_bytes - done, MSG_NOSIGNAL);
        if (sent > 0) {
            done += (size_t)sent;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR) {
            connection_lost(publisher); /* nothing is left to be written then */
            return;
        }
        struct pollfd wait = {.fd = publisher->fd, .events = POLLIN | POLLOUT};
        if (poll(&wait, 1, READY_MS) > 0 && wait.revents & POLLIN)
            read_answers(publisher);
    }
    publisher->out_bytes = 0;
}

static bool has_room(const struct crowd_publisher *publisher)
{
    return OUT_BYTES - publisher->out_bytes >= publisher->options.bytes + CROWD_FRAMING_BYTES_MAX;
}

static void put_message(struct crowd_publisher *publisher, uint64_t time_ns)
{
    char text[MESSAGE_BYTES_MAX], name[CROWD_GROUP_BYTES_MAX];
    const struct crowd_options *options = &publisher->options;
    unsigned group = (unsigned)(publisher->published % options->groups);
    struct message message = {publisher->published / options->groups, time_ns, group};
    message_write(text, options->bytes, &message);
    crowd_group_name(name, options, group);
    publisher->out_bytes += options->protocol->publish(name, group, span_of(text, options->bytes),
                                                       publisher->out + publisher->out_bytes);
    publisher->published++;
}

/* Connect, greet, and wait for the answer. */
static void connection_open(struct crowd_publisher *publisher)
{
    struct crowd_voice voice = {.port = publisher->options.publish_port};
    publisher->fd = load_tcp_open(publisher->options.publish_port);
    publisher->stage = 0;
    publisher->in_bytes = 0;
    publisher->out_bytes = publisher->options.protocol->greet(&voice, publisher->out);
    publisher->is_ready = publisher->options.protocol->greet_is_enough;
    write_out(publisher);
    uint64_t deadline = load_clock_ns() + (uint64_t)READY_MS * 1000000;
    while (!publisher->is_ready) {
        struct pollfd wait = {.fd = publisher->fd, .events = POLLIN};
        if (poll(&wait, 1, READY_MS) <= 0 || load_clock_ns() > deadline)
            load_die("the server does not answer the publisher");
        read_answers(publisher);
    }
    if (fcntl(publisher->fd, F_SETFL, O_NONBLOCK) != 0)
        load_die("fcntl: %s", strerror(errno));
}

struct crowd_publisher *crowd_publisher_open(struct crowd *crowd)
{
    struct crowd_publisher *publisher = calloc(1, sizeof *publisher);
    if (publisher == NULL)
        load_die("no memory");
    publisher->crowd = crowd;
    publisher->options = *crowd_options_of(crowd);
    /* Due times are met to the microsecond, not to the kernel's usual 50. */
    (void)prctl(PR_SET_TIMERSLACK, 1);
    connection_open(publisher);
    return publisher;
}

static void publish_by_clock(struct crowd_publisher *publisher, uint64_t duration_ns)
{
    uint64_t start_ns = load_clock_ns(), until_ns = start_ns + duration_ns, due_ns = start_ns;
    double period_ns = 1e9 / publisher->options.rate;
    for (uint64_t done = 0; due_ns < until_ns;) {
        load_sleep_until(due_ns);
        uint64_t now_ns = load_clock_ns();
        while (due_ns <= now_ns && due_ns < until_ns && has_room(publisher)) {
            put_message(publisher, due_ns);
            due_ns = start_ns + (uint64_t)((double)++done * period_ns);
        }
        write_out(publisher);
        read_answers(publisher);
    }
}

static uint64_t in_flight(const struct crowd_publisher *publisher)
{
    return publisher->published - publisher->completed;
}

/* Wait for arrivals; false: there are none. */
static bool wait_for_arrivals(struct crowd_publisher *publisher)
{
    struct pollfd wait[2] = {{.fd = crowd_completed_fd(publisher->crowd), .events = POLLIN},
                             {.fd = publisher->fd, .events = POLLIN}};
    uint64_t deadline = load_clock_ns() + (uint64_t)STALL_MS * 1000000, more;
    while (load_clock_ns() < deadline) {
        (void)poll(wait, 2, STALL_MS);
        if (wait[1].revents != 0)
            read_answers(publisher);
        if (wait[0].revents != 0 && read(wait[0].fd, &more, sizeof more) == sizeof more) {
            publisher->completed += more;
            return true;
        }
    }
    return false;
}

static void publish_in_flight(struct crowd_publisher *publisher, uint64_t duration_ns)
{
    uint64_t now_ns = load_clock_ns(), until_ns = now_ns + duration_ns;
    for (; now_ns < until_ns; now_ns = load_clock_ns()) {
        while (in_flight(publisher) < publisher->options.in_flight && has_room(publisher))
            put_message(publisher, now_ns);
        write_out(publisher);
        if (in_flight(publisher) >= publisher->options.in_flight && !wait_for_arrivals(publisher))
            return;
    }
}

void crowd_publish(struct crowd_publisher *publisher, uint64_t duration_ns)
{
    if (publisher->options.rate > 0)
        publish_by_clock(publisher, duration_ns);
    else
        publish_in_flight(publisher, duration_ns);
}

bool crowd_wait_delivered(struct crowd_publisher *publisher, uint64_t wanted, double seconds)
{
    uint64_t deadline = load_clock_ns() + (uint64_t)(seconds * 1e9);
    while (CROWD_TOTAL(publisher->crowd, delivered) < wanted) {
        struct pollfd wait = {.fd = publisher->fd, .events = POLLIN};
        if (load_clock_ns() > deadline)
            return false;
        if (poll(&wait, 1, 1) > 0)
            read_answers(publisher);
    }
    return true;
}

uint64_t crowd_published(const struct crowd_publisher *publisher)
{
    return publisher->published;
}

uint64_t crowd_reopened(const struct crowd_publisher *publisher)
{
    return publisher->reopened;
}

uint64_t crowd_refused(const struct crowd_publisher *publisher)
{
    return publisher->refused;
}

void crowd_publisher_close(struct crowd_publisher *publisher)
{
    (void)close(publisher->fd);
    free(publisher);
}

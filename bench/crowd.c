#include "bench/crowd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/load.h"
#include "bench/message.h"

enum {
    READ_BYTES = 256 * 1024,
    CONNECTING_MAX = 1024, /* at once: the server's listening queue is not the question */
    MEMBERS_A_SOURCE =
        20000, /* connections from one loopback address: ports are fewer than 64 Ki */
    DESCRIPTORS_BESIDE = 64,
    TICK_MS = 5,    /* while connections are opened or waited for */
    RETRY_MS = 100, /* when the server names no time */
    SHOTS_TOGETHER = 1024,
    SHOTS_MIN = 4,
};

/* Between the bench and one process of subscribers. */
struct crowd_shared {
    struct crowd_counts counts;
    struct histogram latencies;
    _Atomic uint32_t command, argument;
    _Atomic uint32_t allowed; /* subscribers of this process that may connect */
};

struct crowd_process {
    pid_t pid;
    int control; /* write end: a byte is a command */
    struct crowd_shared *shared;
    struct histogram *base;
    unsigned first, count; /* of the subscribers' numbers */
};

struct crowd {
    struct crowd_options options; /* publish_port is set */
    struct crowd_process processes[CROWD_PROCESSES_MAX];
    unsigned process_count;
    unsigned members_a_group;
    uint32_t window;            /* a power of two, not less than in_flight; 0: nobody counts */
    _Atomic uint32_t *arrivals; /* by group and number: subscribers that have the message */
    int completed;              /* eventfd: messages that all have, not yet told */
};

/* ---- one process of subscribers ---- */

enum member_state { MEMBER_WAITING, MEMBER_CONNECTING, MEMBER_TALKING, MEMBER_LIVE, MEMBER_GONE };

struct member {
    int fd;
    unsigned number; /* of all subscribers */
    uint32_t tail_bytes;
    char *tail; /* bytes of a cut unit */
    struct message_sequence sequence;
    uint64_t epoch, since, retry_ns;
    uint8_t state, stage;
};

/* A message that has been found right once: the next subscriber's bytes only have to be the same. */
struct shot {
    uint64_t number, time_ns, epoch, since;
    size_t bytes; /* 0: nothing here */
    char unit[];
};

struct ward {
    const struct crowd *crowd;
    struct crowd_shared *shared;
    struct member *members;
    unsigned member_count, opened, connecting, waiting;
    int poller, control;
    bool is_stopped;
    char *scratch;
    char *shots;
    size_t shot_bytes;
    unsigned shots_a_group;
    uint64_t now_ns, completed;
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more,
                          memory_order_relaxed);
}

static unsigned group_of(const struct ward *ward, const struct member *member)
{
    return member->number % ward->crowd->options.groups;
}

static struct shot *shot_of(const struct ward *ward, unsigned group, uint64_t number)
{
    size_t place = (size_t)group * ward->shots_a_group + number % ward->shots_a_group;
    return (struct shot *)(void *)(ward->shots + place * ward->shot_bytes);
}

void crowd_group_name(char out[CROWD_GROUP_BYTES_MAX], const struct crowd_options *options,
                      unsigned group)
{
    (void)snprintf(out, CROWD_GROUP_BYTES_MAX, "%s%u", options->prefix, group);
}

static void member_forget(struct ward *ward, struct member *member)
{
    if (member->state == MEMBER_LIVE)
        count(&ward->shared->counts.live, UINT64_MAX);
    if (member->state == MEMBER_CONNECTING || member->state == MEMBER_TALKING)
        ward->connecting--;
    (void)close(member->fd);
    free(member->tail);
    member->tail = NULL;
    member->tail_bytes = 0;
    member->state = MEMBER_GONE;
}

static void member_wait(struct ward *ward, struct member *member, unsigned wait_ms)
{
    member->state = MEMBER_WAITING;
    member->retry_ns = ward->now_ns + (uint64_t)wait_ms * 1000000;
    ward->waiting++;
}

/* It has lost its connection, or never had one. */
static void member_lose(struct ward *ward, struct member *member, unsigned retry_ms)
{
    bool was_live = member->state == MEMBER_LIVE;
    member_forget(ward, member);
    if (was_live || !ward->crowd->options.resume)
        count(&ward->shared->counts.closed, 1);
    if (ward->crowd->options.resume)
        member_wait(ward, member, retry_ms != 0 ? retry_ms : RETRY_MS);
}

static void member_connect(struct ward *ward, struct member *member)
{
    const struct crowd_options *options = &ward->crowd->options;
    struct sockaddr_in source = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + member->number / MEMBERS_A_SOURCE)};
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons(options->port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        load_die("subscriber %u: no socket: %s", member->number, strerror(errno));
    (void)setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (options->receive_buffer > 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &options->receive_buffer,
                         sizeof options->receive_buffer);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) != 0 ||
        (connect(fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS))
        load_die("subscriber %u cannot connect to port %u: %s", member->number, options->port,
                 strerror(errno));
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = member};
    if (epoll_ctl(ward->poller, EPOLL_CTL_ADD, fd, &event) != 0)
        load_die("epoll_ctl: %s", strerror(errno));
    member->fd = fd;
    member->state = MEMBER_CONNECTING;
    member->stage = 0;
    ward->connecting++;
}

static struct crowd_voice voice_of(const struct ward *ward, const struct member *member,
                                   char name[CROWD_GROUP_BYTES_MAX])
{
    const struct crowd_options *options = &ward->crowd->options;
    crowd_group_name(name, options, group_of(ward, member));
    return (struct crowd_voice){.group = name,
                                .group_number = group_of(ward, member),
                                .port = options->port,
                                .stage = member->stage,
                                .epoch = options->resume ? member->epoch : 0,
                                .since = member->since,
                                .mode = options->mode};
}

/* Small, and the socket's buffer is empty then: what does not fit is a broken connection. */
static bool member_say(struct member *member, const char *text, size_t bytes)
{
    return bytes == 0 || send(member->fd, text, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static void member_greet(struct ward *ward, struct member *member)
{
    char greeting[CROWD_REPLY_BYTES_MAX], name[CROWD_GROUP_BYTES_MAX];
    int failure = 0;
    socklen_t length = sizeof failure;
    struct crowd_voice voice = voice_of(ward, member, name);
    size_t bytes = ward->crowd->options.protocol->greet(&voice, greeting);
    (void)getsockopt(member->fd, SOL_SOCKET, SO_ERROR, &failure, &length);
    if (failure != 0 || !member_say(member, greeting, bytes)) {
        member_lose(ward, member, 0);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = member};
    (void)epoll_ctl(ward->poller, EPOLL_CTL_MOD, member->fd, &event);
    member->state = MEMBER_TALKING;
}

static void member_is_live(struct ward *ward, struct member *member)
{
    if (member->state == MEMBER_LIVE)
        return;
    member->state = MEMBER_LIVE;
    ward->connecting--;
    count(&ward->shared->counts.live, 1);
}

/* The message has come to one more; when all have it, the publisher may send another one. */
static void count_arrival(struct ward *ward, unsigned group, uint64_t number)
{
    const struct crowd *crowd = ward->crowd;
    if (crowd->window == 0)
        return;
    _Atomic uint32_t *arrivals =
        &crowd->arrivals[(size_t)group * crowd->window + (number & (crowd->window - 1))];
    if (atomic_fetch_add_explicit(arrivals, 1, memory_order_relaxed) + 1 < crowd->members_a_group)
        return;
    atomic_store_explicit(arrivals, 0, memory_order_relaxed);
    ward->completed++;
}

/* `is_told`: the server has said that others may be left out before it. */
static void member_deliver(struct ward *ward, struct member *member, uint64_t number,
                           uint64_t time_ns, bool is_told)
{
    struct crowd_counts *counts = &ward->shared->counts;
    uint64_t left_out = 0;
    enum message_turn turn = message_take(&member->sequence, number, &left_out);
    if (turn == MESSAGE_REPEATED) {
        count(&counts->repeated, 1);
        return;
    }
    if (turn == MESSAGE_AFTER_GAP && !is_told)
        count(&counts->lost, left_out);
    count(&counts->delivered, 1);
    histogram_add(&ward->shared->latencies, ward->now_ns > time_ns ? ward->now_ns - time_ns : 0);
    count_arrival(ward, group_of(ward, member), number);
}

static void remember(struct ward *ward, unsigned group, const struct message *message,
                     struct span bytes, const struct crowd_unit *unit)
{
    struct shot *shot = shot_of(ward, group, message->number);
    if (unit->conflated || unit->bytes > ward->shot_bytes - sizeof *shot)
        return;
    shot->number = message->number;
    shot->time_ns = message->time_ns;
    shot->epoch = unit->epoch;
    shot->since = unit->since;
    shot->bytes = unit->bytes;
    memcpy(shot->unit, bytes.data, unit->bytes);
}

/* One message, not yet known; `bytes` start with its unit. */
static void member_take_message(struct ward *ward, struct member *member, struct span bytes,
                                const struct crowd_unit *unit)
{
    unsigned group = group_of(ward, member);
    struct message message;
    if (!message_read(unit->message, ward->crowd->options.bytes, group, &message)) {
        count(&ward->shared->counts.damaged, 1);
        member->sequence.next++;
        return;
    }
    if (unit->conflated)
        count(&ward->shared->counts.conflated, 1);
    remember(ward, group, &message, bytes, unit);
    member_deliver(ward, member, message.number, message.time_ns, unit->conflated);
}

/* The group's state as a whole: what comes next is behind it. */
static void member_take_state(struct ward *ward, struct member *member,
                              const struct crowd_unit *unit)
{
    struct message message;
    if (unit->message.bytes == 0)
        return;
    if (!message_read(unit->message, ward->crowd->options.bytes, group_of(ward, member), &message))
        count(&ward->shared->counts.damaged, 1);
    else if (message.number >= member->sequence.next)
        member->sequence.next = message.number + 1;
}

/* Returns false when the member has no connection any more. */
static bool member_take(struct ward *ward, struct member *member, struct span bytes,
                        const struct crowd_unit *unit, const char *reply)
{
    bool is_first = member->epoch == 0;
    if (unit->epoch != 0) {
        member->epoch = unit->epoch;
        member->since = unit->since;
    }
    if (unit->resumed)
        count(&ward->shared->counts.resumed, 1);
    switch (unit->kind) {
    case CROWD_MESSAGE:
        member_take_message(ward, member, bytes, unit);
        break;
    case CROWD_LIVE:
    case CROWD_RESYNC:
        member_take_state(ward, member, unit);
        if (unit->kind == CROWD_RESYNC || (!is_first && !unit->resumed))
            count(&ward->shared->counts.resynced, 1);
        member_is_live(ward, member);
        break;
    case CROWD_SKIP:
        break;
    default:
        if (unit->kind == CROWD_BROKEN && !ward->crowd->options.resume)
            load_die("subscriber %u does not understand: %.*s", member->number,
                     bytes.bytes < 200 ? (int)bytes.bytes : 200, bytes.data);
        member_lose(ward, member, unit->retry_ms);
        return false;
    }
    if (member_say(member, reply, unit->reply_bytes))
        return true;
    member_lose(ward, member, 0);
    return false;
}

/* Bytes of the next message, when they are the ones another subscriber has had; else 0. */
static size_t member_take_known(struct ward *ward, struct member *member, struct span bytes)
{
    uint64_t number = member->sequence.next;
    const struct shot *shot = shot_of(ward, group_of(ward, member), number);
    if (shot->number != number || shot->bytes == 0 || shot->bytes > bytes.bytes ||
        memcmp(shot->unit, bytes.data, shot->bytes) != 0)
        return 0;
    member->epoch = shot->epoch;
    member->since = shot->since;
    member_deliver(ward, member, number, shot->time_ns, false);
    return shot->bytes;
}

static void keep_tail(struct member *member, struct span rest)
{
    free(member->tail);
    member->tail = NULL;
    member->tail_bytes = (uint32_t)rest.bytes;
    if (rest.bytes == 0)
        return;
    if (rest.bytes >= READ_BYTES)
        load_die("subscriber %u got a unit that is too long", member->number);
    member->tail = malloc(rest.bytes);
    if (member->tail == NULL)
        load_die("no memory");
    memcpy(member->tail, rest.data, rest.bytes);
}

static void member_read(struct ward *ward, struct member *member)
{
    char reply[CROWD_REPLY_BYTES_MAX], name[CROWD_GROUP_BYTES_MAX];
    if (member->tail_bytes > 0)
        memcpy(ward->scratch, member->tail, member->tail_bytes);
    ssize_t got =
        read(member->fd, ward->scratch + member->tail_bytes, READ_BYTES - member->tail_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        member_lose(ward, member, 0);
        return;
    }
    ward->now_ns = load_clock_ns();
    struct span rest = span_of(ward->scratch, member->tail_bytes + (size_t)got);
    struct crowd_voice voice = {0};
    while (rest.bytes > 0) {
        size_t taken = member->state == MEMBER_LIVE ? member_take_known(ward, member, rest) : 0;
        if (taken == 0) {
            struct crowd_unit unit = {0};
            if (voice.port == 0)
                voice = voice_of(ward, member, name);
            ward->crowd->options.protocol->take(&voice, rest, reply, &unit);
            member->stage = voice.stage;
            if (unit.bytes == 0)
                break;
            if (!member_take(ward, member, rest, &unit, reply))
                return;
            taken = unit.bytes;
        }
        rest = span_of(rest.data + taken, rest.bytes - taken);
    }
    keep_tail(member, rest);
}

/* Open what may be opened, and again what has waited long enough. */
static void ward_connect(struct ward *ward)
{
    uint32_t allowed = atomic_load(&ward->shared->allowed);
    ward->now_ns = load_clock_ns();
    for (; ward->opened < allowed && ward->connecting < CONNECTING_MAX; ward->opened++)
        member_connect(ward, &ward->members[ward->opened]);
    for (unsigned i = 0; ward->waiting > 0 && i < ward->opened && ward->connecting < CONNECTING_MAX;
         i++) {
        struct member *member = &ward->members[i];
        if (member->state != MEMBER_WAITING || member->retry_ns > ward->now_ns)
            continue;
        ward->waiting--;
        member_connect(ward, member);
    }
}

static void ward_listen(struct ward *ward, bool listens)
{
    ward->is_stopped = !listens;
    for (unsigned i = 0; i < ward->opened; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &ward->members[i]};
        if (ward->members[i].state == MEMBER_LIVE)
            (void)epoll_ctl(ward->poller, listens ? EPOLL_CTL_ADD : EPOLL_CTL_DEL,
                            ward->members[i].fd, &event);
    }
}

static void ward_reconnect(struct ward *ward)
{
    ward->now_ns = load_clock_ns();
    for (unsigned i = 0; i < ward->opened; i++) {
        if (ward->members[i].state != MEMBER_LIVE)
            continue;
        member_forget(ward, &ward->members[i]);
        member_wait(ward, &ward->members[i], 0);
    }
}

static void ward_count_newest(struct ward *ward, uint32_t published)
{
    uint64_t newest = 0;
    for (unsigned i = 0; i < ward->opened; i++)
        newest += ward->members[i].sequence.next == published;
    atomic_store(&ward->shared->counts.newest, newest);
}

static void ward_obey(struct ward *ward)
{
    char byte;
    if (read(ward->control, &byte, 1) != 1)
        return;
    switch (atomic_load(&ward->shared->command)) {
    case CROWD_STOP_READING:
        ward_listen(ward, false);
        break;
    case CROWD_READ_AGAIN:
        ward_listen(ward, true);
        break;
    case CROWD_RECONNECT:
        ward_reconnect(ward);
        break;
    default:
        ward_count_newest(ward, atomic_load(&ward->shared->argument));
        break;
    }
    atomic_fetch_add(&ward->shared->counts.turns, 1);
}

static void ward_init(struct ward *ward, const struct crowd *crowd,
                      const struct crowd_process *process, int control)
{
    const struct crowd_options *options = &crowd->options;
    *ward = (struct ward){.crowd = crowd,
                          .shared = process->shared,
                          .member_count = process->count,
                          .poller = epoll_create1(EPOLL_CLOEXEC),
                          .control = control,
                          .shots_a_group = SHOTS_TOGETHER / options->groups};
    if (ward->shots_a_group < SHOTS_MIN)
        ward->shots_a_group = SHOTS_MIN;
    ward->shot_bytes =
        (sizeof(struct shot) + options->bytes + CROWD_FRAMING_BYTES_MAX + 15) / 16 * 16;
    ward->shots = calloc((size_t)options->groups * ward->shots_a_group, ward->shot_bytes);
    ward->members = calloc(process->count, sizeof *ward->members);
    ward->scratch = malloc(READ_BYTES);
    if (ward->poller < 0 || ward->shots == NULL || ward->members == NULL || ward->scratch == NULL)
        load_die("no memory for %u subscribers", process->count);
    for (unsigned i = 0; i < process->count; i++)
        ward->members[i].number = process->first + i;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    (void)epoll_ctl(ward->poller, EPOLL_CTL_ADD, control, &event);
}

static void ward_take_event(struct ward *ward, const struct epoll_event *event)
{
    struct member *member = event->data.ptr;
    if (member == NULL)
        ward_obey(ward);
    else if (member->state == MEMBER_CONNECTING)
        member_greet(ward, member);
    else if (!ward->is_stopped && member->state != MEMBER_WAITING && member->state != MEMBER_GONE)
        member_read(ward, member);
}

__attribute__((noreturn)) static void ward_run(struct ward *ward)
{
    for (;;) {
        struct epoll_event events[512];
        bool waits = ward->opened < ward->member_count || ward->waiting > 0;
        if (waits)
            ward_connect(ward);
        int ready = epoll_wait(ward->poller, events, 512, waits ? TICK_MS : -1);
        for (int i = 0; i < ready; i++)
            ward_take_event(ward, &events[i]);
        if (ward->completed > 0 &&
            write(ward->crowd->completed, &ward->completed, sizeof ward->completed) > 0)
            ward->completed = 0;
    }
}

/* ---- control ---- */

static void *shared_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        load_die("no memory for counters");
    return memory;
}

static void process_start(struct crowd *crowd, struct crowd_process *process)
{
    int control[2];
    process->shared = shared_memory(sizeof *process->shared);
    process->base = calloc(1, sizeof *process->base);
    if (process->base == NULL || pipe2(control, O_CLOEXEC) != 0)
        load_die("cannot start subscribers: %s", strerror(errno));
    process->pid = fork();
    if (process->pid == 0) {
        struct ward ward;
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)close(control[1]);
        ward_init(&ward, crowd, process, control[0]);
        ward_run(&ward);
    }
    if (process->pid < 0)
        load_die("cannot start subscribers: %s", strerror(errno));
    (void)close(control[0]);
    process->control = control[1];
}

static unsigned processes_wanted(const struct crowd_options *options)
{
    unsigned limit = load_raise_descriptor_limit(options->subscribers + DESCRIPTORS_BESIDE);
    if (limit <= DESCRIPTORS_BESIDE)
        load_die("the descriptor limit %u is too low", limit);
    unsigned room = limit - DESCRIPTORS_BESIDE;
    unsigned least = (options->subscribers + room - 1) / room;
    unsigned wanted = options->processes > least ? options->processes : least;
    if (wanted > CROWD_PROCESSES_MAX)
        load_die("%u subscribers need more than %d processes", options->subscribers,
                 CROWD_PROCESSES_MAX);
    return wanted;
}

static void check_options(const struct crowd_options *options)
{
    if (options->protocol == NULL || options->port == 0 || options->prefix == NULL ||
        strlen(options->prefix) > 15)
        load_die("a protocol, a port and a short prefix are needed");
    if (options->groups == 0 || options->groups > CROWD_GROUPS_MAX || options->subscribers == 0 ||
        options->subscribers % options->groups != 0)
        load_die("%u subscribers cannot be spread over %u groups", options->subscribers,
                 options->groups);
    if (options->bytes < MESSAGE_BYTES_MIN || options->bytes > MESSAGE_BYTES_MAX)
        load_die("a message has %d to %d bytes", MESSAGE_BYTES_MIN, MESSAGE_BYTES_MAX);
    if (options->in_flight > CROWD_IN_FLIGHT_MAX || (options->rate <= 0 && options->in_flight == 0))
        load_die("a rate, or 1 to %d messages in flight", CROWD_IN_FLIGHT_MAX);
}

struct crowd *crowd_start(const struct crowd_options *options)
{
    check_options(options);
    struct crowd *crowd = calloc(1, sizeof *crowd);
    if (crowd == NULL)
        load_die("no memory");
    crowd->options = *options;
    if (crowd->options.publish_port == 0)
        crowd->options.publish_port = options->port;
    crowd->members_a_group = options->subscribers / options->groups;
    crowd->completed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (crowd->window = options->in_flight > 0; crowd->window < options->in_flight;)
        crowd->window *= 2;
    if (crowd->window > 0)
        crowd->arrivals =
            shared_memory((size_t)crowd->window * options->groups * sizeof *crowd->arrivals);
    crowd->process_count = processes_wanted(options);
    unsigned given = 0;
    for (unsigned i = 0; i < crowd->process_count; i++) {
        struct crowd_process *process = &crowd->processes[i];
        process->first = given;
        process->count = (options->subscribers - given) / (crowd->process_count - i);
        given += process->count;
        process_start(crowd, process);
    }
    return crowd;
}

/* A process of subscribers that has ended has said why. */
static void check_processes(const struct crowd *crowd)
{
    for (unsigned i = 0; i < crowd->process_count; i++)
        if (waitpid(crowd->processes[i].pid, NULL, WNOHANG) != 0)
            load_die("a process of subscribers has ended");
}

uint64_t crowd_total(const struct crowd *crowd, size_t counter_offset)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < crowd->process_count; i++) {
        const char *counts = (const char *)&crowd->processes[i].shared->counts;
        total +=
            atomic_load_explicit((const _Atomic uint64_t *)(const void *)(counts + counter_offset),
                                 memory_order_relaxed);
    }
    return total;
}

/* Let `share` (0 to 1) of all subscribers connect; returns how many that are. */
static unsigned crowd_admit(struct crowd *crowd, double share)
{
    unsigned admitted = 0;
    for (unsigned i = 0; i < crowd->process_count; i++) {
        struct crowd_process *process = &crowd->processes[i];
        unsigned allowed = (unsigned)(process->count * share);
        atomic_store(&process->shared->allowed, allowed);
        admitted += allowed;
    }
    return admitted;
}

unsigned crowd_wait_live(struct crowd *crowd, double share, double seconds)
{
    unsigned wanted = crowd_admit(crowd, share);
    uint64_t deadline = load_clock_ns() + (uint64_t)(seconds * 1e9);
    while (CROWD_TOTAL(crowd, live) < wanted) {
        check_processes(crowd);
        if (load_clock_ns() > deadline)
            load_die("only %llu of %u subscribers are subscribed, %llu were closed",
                     (unsigned long long)CROWD_TOTAL(crowd, live), wanted,
                     (unsigned long long)CROWD_TOTAL(crowd, closed));
        load_sleep_until(load_clock_ns() + 2000000u);
    }
    return wanted;
}

uint64_t crowd_cpu_ns(const struct crowd *crowd, uint64_t *busiest_ns)
{
    uint64_t total = 0, busiest = 0;
    for (unsigned i = 0; i < crowd->process_count; i++) {
        uint64_t used = load_cpu_ns(crowd->processes[i].pid);
        total += used;
        busiest = used > busiest ? used : busiest;
    }
    if (busiest_ns != NULL)
        *busiest_ns = busiest;
    return total;
}

void crowd_histogram_reset(struct crowd *crowd)
{
    for (unsigned i = 0; i < crowd->process_count; i++) {
        struct crowd_process *process = &crowd->processes[i];
        memset(process->base, 0, sizeof *process->base);
        histogram_merge(process->base, &process->shared->latencies);
    }
}

void crowd_histogram_read(const struct crowd *crowd, struct histogram *out)
{
    memset(out, 0, sizeof *out);
    for (unsigned i = 0; i < crowd->process_count; i++) {
        histogram_merge(out, &crowd->processes[i].shared->latencies);
        histogram_subtract(out, crowd->processes[i].base);
    }
}

static void command_all(struct crowd *crowd, uint32_t command, uint32_t argument)
{
    uint64_t wanted = CROWD_TOTAL(crowd, turns) + crowd->process_count;
    for (unsigned i = 0; i < crowd->process_count; i++) {
        struct crowd_process *process = &crowd->processes[i];
        atomic_store(&process->shared->argument, argument);
        atomic_store(&process->shared->command, command);
        if (write(process->control, "c", 1) != 1)
            load_die("a process of subscribers has ended");
    }
    while (CROWD_TOTAL(crowd, turns) < wanted) {
        check_processes(crowd);
        load_sleep_until(load_clock_ns() + 500000u);
    }
}

void crowd_command(struct crowd *crowd, enum crowd_command command)
{
    command_all(crowd, command, 0);
}

uint64_t crowd_count_newest(struct crowd *crowd, uint64_t published)
{
    command_all(crowd, 0, (uint32_t)published);
    return CROWD_TOTAL(crowd, newest);
}

const struct crowd_options *crowd_options_of(const struct crowd *crowd)
{
    return &crowd->options;
}

int crowd_completed_fd(const struct crowd *crowd)
{
    return crowd->completed;
}

void crowd_stop(struct crowd *crowd)
{
    for (unsigned i = 0; i < crowd->process_count; i++) {
        struct crowd_process *process = &crowd->processes[i];
        /* The end of its pipe would not do: processes started later have the pipe as well. */
        (void)kill(process->pid, SIGKILL);
        (void)waitpid(process->pid, NULL, 0);
        (void)close(process->control);
        (void)munmap(process->shared, sizeof *process->shared);
        free(process->base);
    }
    if (crowd->window > 0)
        (void)munmap(crowd->arrivals,
                     (size_t)crowd->window * crowd->options.groups * sizeof *crowd->arrivals);
    (void)close(crowd->completed);
    free(crowd);
}

/* A durable server in the place of weir-broker, small enough to be seen through, that lies when told
 * to: the campaign must pass with the honest one and fail with each of the liars.
 *
 *   standin [--lie LIE] [--fault PLAN] --set run_dir=... --set data_dir=... --ready-fd N
 *
 * It keeps one file, `frames`: what was applied in a turn, written and synced before any answer.
 *
 *   0  u32 magic, u32 bytes of the records, u64 hash of (offset, records)
 *  16  records: u8 kind, u8 group bytes, u8 item bytes, u8 0, u32 value bytes, texts
 *
 * Lies: lost    one turn in 40 is acknowledged and not written
 *       half    one value in 200 is cut when it is read back
 *       gap     one group has a write more after each start
 *       order   two writes to one group are exchanged when read back
 *       epoch   groups have another epoch after each start
 *       early   events are shown before their turn is written
 *       silent  hashes are not looked at */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "shm/wire.h"
#include "tests/store_fixture.h"
#include "tests/torture/child.h"
#include "tests/torture/faulty_io.h"
#include "tests/torture/world.h"

enum {
    FRAME_MAGIC = 0x4e445453,
    FRAME_HEADER_BYTES = 16,
    RECORD_HEADER_BYTES = 8,
    PEERS_MAX = 16,
    TURN_FRAMES_MAX = 32,
    BUFFER_BYTES_MAX = 256 << 20,
    LOST_ONE_IN = 40,
    HALF_ONE_IN = 200,
};

static const char *const lies[] = {"none",  "lost",  "half",  "gap",
                                   "order", "epoch", "early", "silent"};
enum lie {
    LIE_NONE,
    LIE_LOST,
    LIE_HALF,
    LIE_GAP,
    LIE_ORDER,
    LIE_EPOCH,
    LIE_EARLY,
    LIE_SILENT,
    LIE_COUNT
};

struct standin_peer {
    int fd; /* -1: none */
    struct wire_reader *wire;
    struct buffer in, out;
};

struct record {
    uint8_t kind;
    struct span group, item, value;
};

struct standin {
    char run_dir[256], data_dir[256];
    int ready_fd;
    enum lie lie;
    uint64_t random;
    struct fault_plan plan;
    struct faulty_io disk;
    struct host host;
    int listener, segment_read_fd, file;
    uint64_t file_bytes;
    int failed; /* the error after which it writes no more */
    struct standin_peer peers[PEERS_MAX];
    struct buffer turn; /* the records of this turn, behind room for a header */
};

/* ---- the disk, without faults ---- */

static int disk_open(void *context, const char *path, int flags)
{
    (void)context;
    int fd = open(path, flags | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : -errno;
}

static ssize_t disk_read(void *context, int fd, void *data, size_t bytes, uint64_t offset)
{
    (void)context;
    ssize_t got = pread(fd, data, bytes, (off_t)offset);
    return got >= 0 ? got : -errno;
}

static ssize_t disk_write(void *context, int fd, const void *data, size_t bytes, uint64_t offset)
{
    (void)context;
    ssize_t written = pwrite(fd, data, bytes, (off_t)offset);
    return written >= 0 ? written : -errno;
}

static int disk_truncate(void *context, int fd, uint64_t bytes)
{
    (void)context;
    return ftruncate(fd, (off_t)bytes) == 0 ? 0 : -errno;
}

static int disk_sync(void *context, int fd)
{
    (void)context;
    return fdatasync(fd) == 0 ? 0 : -errno;
}

static const struct wal_io disk_system = {.open = disk_open,
                                          .read = disk_read,
                                          .write = disk_write,
                                          .truncate = disk_truncate,
                                          .sync = disk_sync};

static void fail(const char *what, int error)
{
    (void)fprintf(stderr, "standin: %s%s%s\n", what, error ? ": " : "",
                  error ? strerror(error) : "");
    exit(EXIT_FAILURE);
}

/* ---- applying ---- */

static bool one_in(struct standin *standin, uint64_t count)
{
    return world_random(&standin->random) % count == 0;
}

static void apply(struct standin *standin, const struct record *record)
{
    struct host *host = &standin->host;
    struct store_change change;
    const struct store_key key = {SPAN_LITERAL("s"), record->group, record->item};
    enum weir_status status;
    if (record->kind == WORLD_DELETE)
        status = host_delete(host, &key, &change);
    else if (record->kind == WORLD_SEND) {
        status = store_touch(host->store, &key, host->now_ms, &change);
        if (status == WEIR_OK)
            status = host_publish(host, &change, ENVELOPE_EVENT, (struct span){0}, record->value);
    } else
        status = host_set(host, &key, record->value, &change);
    if (status != WEIR_OK && status != WEIR_EMPTY)
        fail(weir_status_text(status), 0);
    store_turn_end(host->store);
}

static void record_add(struct standin *standin, const struct record *record)
{
    const uint8_t head[4] = {record->kind, (uint8_t)record->group.bytes,
                             (uint8_t)record->item.bytes, 0};
    uint32_t value_bytes = (uint32_t)record->value.bytes;
    struct buffer *turn = &standin->turn;
    if (buffer_append(turn, span_of(head, 4)) != WEIR_OK ||
        buffer_append(turn, span_of(&value_bytes, 4)) != WEIR_OK ||
        buffer_append(turn, record->group) != WEIR_OK ||
        buffer_append(turn, record->item) != WEIR_OK ||
        buffer_append(turn, record->value) != WEIR_OK)
        fail("no memory", 0);
}

/* ---- frames ---- */

static uint64_t frame_hash(uint64_t offset, struct span records)
{
    uint64_t hash = 0xcbf29ce484222325ull ^ offset ^ records.bytes;
    size_t at = 0;
    for (; at + 8 <= records.bytes; at += 8) {
        uint64_t word;
        memcpy(&word, records.data + at, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
        hash ^= hash >> 32;
    }
    for (; at < records.bytes; at++)
        hash = (hash ^ (unsigned char)records.data[at]) * 0x100000001b3ull;
    return hash;
}

static void turn_begin(struct standin *standin)
{
    static const char room[FRAME_HEADER_BYTES];
    buffer_clear(&standin->turn);
    if (buffer_append(&standin->turn, span_of(room, sizeof room)) != WEIR_OK)
        fail("no memory", 0);
}

/* 0, or why it is not on the disk. What failed may be there all the same, whole or in part, so that
 * nothing may follow it. */
static int turn_write(struct standin *standin)
{
    struct buffer *turn = &standin->turn;
    const struct wal_io *io = &standin->disk.io;
    if (standin->lie == LIE_LOST && one_in(standin, LOST_ONE_IN))
        return 0;
    uint32_t head[2] = {FRAME_MAGIC, (uint32_t)(turn->bytes - FRAME_HEADER_BYTES)};
    uint64_t hash =
        frame_hash(standin->file_bytes, span_of(turn->data + FRAME_HEADER_BYTES, head[1]));
    memcpy(turn->data, head, 8);
    memcpy(turn->data + 8, &hash, 8);
    for (size_t done = 0; done < turn->bytes;) {
        ssize_t written = io->write(io->context, standin->file, turn->data + done,
                                    turn->bytes - done, standin->file_bytes + done);
        if (written <= 0)
            return written < 0 ? (int)-written : EIO;
        done += (size_t)written;
    }
    int result = io->sync(io->context, standin->file);
    if (result == 0)
        standin->file_bytes += turn->bytes;
    return -result;
}

static bool record_take(struct span records, size_t *at, struct record *record)
{
    if (records.bytes - *at < RECORD_HEADER_BYTES)
        return false;
    const unsigned char *head = (const unsigned char *)records.data + *at;
    uint32_t value_bytes;
    memcpy(&value_bytes, head + 4, 4);
    size_t bytes = RECORD_HEADER_BYTES + (size_t)head[1] + head[2] + value_bytes;
    if (records.bytes - *at < bytes)
        return false;
    const char *text = records.data + *at + RECORD_HEADER_BYTES;
    *record = (struct record){.kind = head[0],
                              .group = span_of(text, head[1]),
                              .item = span_of(head[2] ? text + head[1] : NULL, head[2]),
                              .value = span_of(text + head[1] + head[2], value_bytes)};
    *at += bytes;
    return true;
}

static void frame_replay(struct standin *standin, struct span records)
{
    struct record record, held = {0};
    size_t at = 0;
    while (record_take(records, &at, &record)) {
        if (standin->lie == LIE_HALF && record.kind == WORLD_SET && one_in(standin, HALF_ONE_IN))
            record.value.bytes /= 2;
        if (standin->lie == LIE_ORDER && held.kind == 0 && record.kind == WORLD_SET &&
            one_in(standin, LOST_ONE_IN)) {
            held = record;
            continue;
        }
        apply(standin, &record);
        if (held.kind != 0 && span_equal(held.group, record.group)) {
            apply(standin, &held);
            held.kind = 0;
        }
    }
    if (held.kind != 0)
        apply(standin, &held);
}

/* The length of a good frame at the start of `rest`; 0: there is none. */
static size_t frame_check(const struct standin *standin, struct span rest, uint64_t offset)
{
    uint32_t head[2];
    uint64_t hash;
    if (rest.bytes < FRAME_HEADER_BYTES)
        return 0;
    memcpy(head, rest.data, 8);
    memcpy(&hash, rest.data + 8, 8);
    if (head[0] != FRAME_MAGIC || head[1] > rest.bytes - FRAME_HEADER_BYTES)
        return 0;
    if (standin->lie != LIE_SILENT &&
        hash != frame_hash(offset, span_of(rest.data + FRAME_HEADER_BYTES, head[1])))
        return 0;
    return FRAME_HEADER_BYTES + head[1];
}

/* What is behind the last good frame is an interrupted write, unless a good frame is in there. */
static void recover(struct standin *standin)
{
    const struct wal_io *io = &standin->disk.io;
    char path[300];
    struct stat status;
    (void)mkdir(standin->data_dir, 0700);
    (void)snprintf(path, sizeof path, "%s/frames", standin->data_dir);
    standin->file = io->open(io->context, path, O_RDWR | O_CREAT);
    if (standin->file < 0 || fstat(standin->file, &status) != 0)
        fail(path, standin->file < 0 ? -standin->file : errno);
    size_t bytes = (size_t)status.st_size;
    char *data = malloc(bytes + 1);
    for (size_t done = 0; done < bytes;) {
        ssize_t got = io->read(io->context, standin->file, data + done, bytes - done, done);
        if (got <= 0)
            fail(path, got < 0 ? (int)-got : EIO);
        done += (size_t)got;
    }
    size_t at = 0, length;
    while ((length = frame_check(standin, span_of(data + at, bytes - at), at)) != 0) {
        frame_replay(standin, span_of(data + at + FRAME_HEADER_BYTES, length - FRAME_HEADER_BYTES));
        at += length;
    }
    for (size_t behind = at + 1; behind < bytes; behind++)
        if (frame_check(standin, span_of(data + behind, bytes - behind), behind) != 0) {
            (void)fprintf(stderr, "standin: %s: damaged at offset %zu\n", path, at);
            exit(EXIT_FAILURE);
        }
    if (at < bytes) {
        (void)fprintf(stderr,
                      "standin: %s: %zu bytes of an interrupted write at offset %zu were cut\n",
                      path, bytes - at, at);
        int result = io->truncate(io->context, standin->file, at);
        if (result != 0)
            fail(path, -result);
    }
    standin->file_bytes = at;
    if (standin->lie == LIE_GAP && at > 0)
        apply(standin, &(struct record){.kind = WORLD_SEND,
                                        .group = SPAN_LITERAL("g00"),
                                        .value = SPAN_LITERAL("1")});
    free(data);
}

/* ---- peers ---- */

static void peer_close(struct standin_peer *peer)
{
    (void)close(peer->fd);
    wire_reader_close(peer->wire);
    buffer_fini(&peer->in);
    buffer_fini(&peer->out);
    peer->fd = -1;
}

static void accept_peer(struct standin *standin)
{
    int fd = accept4(standin->listener, NULL, NULL, SOCK_CLOEXEC);
    for (unsigned index = 0; index < PEERS_MAX && fd >= 0; index++) {
        struct standin_peer *peer = &standin->peers[index];
        if (peer->fd >= 0)
            continue;
        *peer = (struct standin_peer){.fd = fd, .wire = wire_reader_open()};
        buffer_init(&peer->in, BUFFER_BYTES_MAX);
        buffer_init(&peer->out, BUFFER_BYTES_MAX);
        return;
    }
    if (fd >= 0)
        (void)close(fd);
}

static void attach_peer(struct standin *standin, struct standin_peer *peer)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    uint32_t slot;
    int control_fd, event_fd;
    if (readers_attach(standin->host.readers, 1, &slot, &control_fd, &event_fd, NULL) != WEIR_OK)
        fail("no slot for a reader", 0);
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION),
                                        WIRE_NUMBER(segment_generation(&standin->host.segment)),
                                        WIRE_NUMBER(slot), WIRE_NUMBER(0), WIRE_NUMBER(UINT64_MAX)};
    const int fds[] = {standin->segment_read_fd, event_fd, control_fd};
    if (wire_append(&peer->out, WIRE_ATTACHED, 0, fields) != WEIR_OK)
        fail("no memory", 0);
    struct iovec part = {peer->out.data, peer->out.bytes};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    if (sendmsg(peer->fd, &message, MSG_NOSIGNAL) != (ssize_t)peer->out.bytes)
        fail("an answer to ATTACH could not be sent", errno);
    buffer_clear(&peer->out);
}

static void answer(struct standin_peer *peer, uint64_t id, const char *code, const char *sentence,
                   struct span result)
{
    const struct wire_field fields[4] = {code ? WIRE_SPAN(span_text(code)) : WIRE_NIL,
                                         code ? WIRE_SPAN(span_text(sentence)) : WIRE_NIL,
                                         result.data ? WIRE_SPAN(result) : WIRE_NIL};
    if (wire_append(&peer->out, WIRE_STREAM_RESULT, id, fields) != WEIR_OK)
        fail("no memory", 0);
}

/* Requests of a turn are collected first, so that nothing is applied that cannot be written. */
struct pending {
    struct standin_peer *peer;
    uint64_t id;
    struct record record;
    char count[32];
};

static struct span counted(struct standin *standin, const struct pending *pendings, unsigned count,
                           struct pending *pending)
{
    const struct store_key key = {SPAN_LITERAL("s"), pending->record.group, pending->record.item};
    struct span value = {0};
    if (store_find(standin->host.store, &key, &value) != WEIR_OK)
        value = (struct span){0};
    for (unsigned index = 0; index < count; index++) { /* what this turn will have done by then */
        const struct record *other = &pendings[index].record;
        if (span_equal(other->group, key.group) && span_equal(other->item, key.item) &&
            other->kind != WORLD_SEND)
            value = other->kind == WORLD_DELETE ? (struct span){0} : other->value;
    }
    uint64_t number = value.bytes > 5 ? strtoull(value.data + 5, NULL, 10) : 0;
    int bytes = snprintf(pending->count, sizeof pending->count, "{\"n\":%llu}",
                         (unsigned long long)number + 1);
    return span_of(pending->count, (size_t)bytes);
}

static bool take_request(struct standin *standin, struct standin_peer *peer,
                         const struct wire_message *message, struct pending *pendings,
                         unsigned *count)
{
    const struct wire_field *fields = message->fields;
    struct pending *pending = &pendings[*count];
    *pending = (struct pending){
        .peer = peer,
        .id = message->id,
        .record = {.group = fields[2].span, .item = fields[3].span, .value = fields[5].span}};
    switch (fields[0].number) {
    case WIRE_OP_SET:
        pending->record.kind = WORLD_SET;
        break;
    case WIRE_OP_DELETE:
        pending->record.kind = WORLD_DELETE;
        pending->record.value = (struct span){0};
        break;
    case WIRE_OP_SEND:
        pending->record.kind = WORLD_SEND;
        break;
    case WIRE_OP_UPDATE:
        pending->record.kind = WORLD_COUNT;
        pending->record.value = counted(standin, pendings, *count, pending);
        break;
    default: {
        const struct store_key key = {SPAN_LITERAL("s"), fields[2].span, fields[3].span};
        struct span value = {0};
        if (store_find(standin->host.store, &key, &value) != WEIR_OK)
            value = (struct span){0};
        answer(peer, message->id, NULL, NULL, value);
        return true;
    }
    }
    record_add(standin, &pending->record);
    (*count)++;
    return true;
}

static void turn_end(struct standin *standin, struct pending *pendings, unsigned count)
{
    char sentence[128];
    if (count == 0)
        return;
    if (standin->lie == LIE_EARLY)
        for (unsigned index = 0; index < count; index++)
            apply(standin, &pendings[index].record);
    if (standin->failed == 0)
        standin->failed = turn_write(standin);
    int error = standin->failed;
    (void)snprintf(sentence, sizeof sentence, "the log cannot be written: %s", strerror(error));
    for (unsigned index = 0; index < count; index++) {
        struct pending *pending = &pendings[index];
        if (error == 0 && standin->lie != LIE_EARLY)
            apply(standin, &pending->record);
        answer(pending->peer, pending->id, error ? "STREAM_SET_ERROR" : NULL, sentence,
               SPAN_LITERAL("null"));
    }
}

/* One message of each peer after the other, so that all have their turn. */
static bool take_messages(struct standin *standin)
{
    struct pending pendings[TURN_FRAMES_MAX];
    size_t taken[PEERS_MAX] = {0};
    unsigned count = 0, messages = 0;
    bool any = true;
    turn_begin(standin);
    while (any && messages < TURN_FRAMES_MAX) {
        any = false;
        for (unsigned index = 0; index < PEERS_MAX && messages < TURN_FRAMES_MAX; index++) {
            struct standin_peer *peer = &standin->peers[index];
            struct wire_message message;
            size_t bytes = 0;
            if (peer->fd < 0 ||
                wire_read(peer->wire,
                          span_of(peer->in.data + taken[index], peer->in.bytes - taken[index]),
                          &message, &bytes) != WEIR_OK)
                continue;
            any = true;
            messages++;
            taken[index] += bytes;
            if (message.type == WIRE_ATTACH)
                attach_peer(standin, peer);
            else if (message.type == WIRE_STREAM)
                take_request(standin, peer, &message, pendings, &count);
        }
    }
    turn_end(standin, pendings, count);
    for (unsigned index = 0; index < PEERS_MAX; index++)
        if (taken[index] > 0)
            buffer_consume(&standin->peers[index].in, taken[index]);
    return messages == TURN_FRAMES_MAX;
}

static void receive(struct standin_peer *peer)
{
    if (buffer_reserve(&peer->in, 1 << 18) != WEIR_OK)
        fail("no memory", 0);
    ssize_t got = recv(peer->fd, peer->in.data + peer->in.bytes, 1 << 18, MSG_DONTWAIT);
    if (got > 0)
        peer->in.bytes += (size_t)got;
    else if (got == 0 || errno != EAGAIN)
        peer_close(peer);
}

static void serve(struct standin *standin)
{
    for (bool again = false;;) {
        struct pollfd ready[PEERS_MAX + 1];
        ready[PEERS_MAX] = (struct pollfd){.fd = standin->listener, .events = POLLIN};
        for (unsigned index = 0; index < PEERS_MAX; index++)
            ready[index] = (struct pollfd){
                .fd = standin->peers[index].fd,
                .events = standin->peers[index].out.bytes > 0 ? POLLIN | POLLOUT : POLLIN};
        (void)poll(ready, PEERS_MAX + 1, again ? 0 : -1);
        if (ready[PEERS_MAX].revents)
            accept_peer(standin);
        for (unsigned index = 0; index < PEERS_MAX; index++) {
            struct standin_peer *peer = &standin->peers[index];
            if (peer->fd < 0 || !ready[index].revents)
                continue;
            if (ready[index].revents & POLLOUT) {
                ssize_t sent =
                    send(peer->fd, peer->out.data, peer->out.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (sent > 0)
                    buffer_consume(&peer->out, (size_t)sent);
            }
            if (ready[index].revents & (POLLIN | POLLHUP | POLLERR))
                receive(peer);
        }
        again = take_messages(standin);
    }
}

/* ---- life ---- */

static void listen_here(struct standin *standin)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)mkdir(standin->run_dir, 0700);
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%.90s/broker.sock",
                   standin->run_dir);
    (void)unlink(address.sun_path);
    standin->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (standin->listener < 0 ||
        bind(standin->listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(standin->listener, PEERS_MAX) != 0)
        fail(address.sun_path, errno);
}

/* As host_open(), but a liar's generation is another one each time. */
static enum weir_status open_store(struct standin *standin, struct weir_error *error)
{
    struct host *host = &standin->host;
    uint64_t generation = 1700000000000000ull;
    if (standin->lie == LIE_EPOCH)
        generation += (uint64_t)getpid();
    const struct segment_options segment = {
        .ring_bytes = 8 << 20, .store_bytes = 64 << 20, .generation = generation};
    const struct store_options store = {
        .items_max = 10000, .groups_max = 1000, .empty_groups_max = 1000};
    host->now_ms = 1700000001000ull;
    buffer_init(&host->frame, BUFFER_BYTES_MAX);
    enum weir_status status = segment_create(&host->segment, &segment, error);
    if (status != WEIR_OK)
        return status;
    host->readers = readers_open(&host->segment);
    host->ring = ring_writer_open(&host->segment);
    if (!host->readers || !host->ring)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory");
    status = store_open(&host->store, &host->segment, host->readers, &store, error);
    if (status == WEIR_OK)
        segment_publish(&host->segment);
    return status;
}

static void open_host(struct standin *standin)
{
    struct weir_error error = {0};
    char path[64];
    if (open_store(standin, &error) != WEIR_OK)
        fail(error.text, 0);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", standin->host.segment.fd);
    standin->segment_read_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (standin->segment_read_fd < 0)
        fail(path, errno);
}

static void setting(struct standin *standin, const char *text)
{
    if (strncmp(text, "run_dir=", 8) == 0)
        (void)snprintf(standin->run_dir, sizeof standin->run_dir, "%s", text + 8);
    else if (strncmp(text, "data_dir=", 9) == 0)
        (void)snprintf(standin->data_dir, sizeof standin->data_dir, "%s", text + 9);
}

static void parse(struct standin *standin, int argc, char **argv)
{
    static const struct option options[] = {
        {"lie", required_argument, NULL, 'l'},      {"fault", required_argument, NULL, 'f'},
        {"boot", required_argument, NULL, 'b'},     {"set", required_argument, NULL, 's'},
        {"ready-fd", required_argument, NULL, 'r'}, {NULL, 0, NULL, 0}};
    const char *fault = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'l':
            while (standin->lie < LIE_COUNT && strcmp(optarg, lies[standin->lie]) != 0)
                standin->lie++;
            break;
        case 'f':
            fault = optarg;
            break;
        case 'b': /* it keeps all that it shows */
            break;
        case 's':
            setting(standin, optarg);
            break;
        case 'r':
            standin->ready_fd = atoi(optarg);
            break;
        default:
            exit(2);
        }
    }
    if (standin->lie == LIE_COUNT || !fault_plan_init(&standin->plan, fault))
        fail("no such lie, or no such fault", 0);
    standin->plan.note_fd = CHILD_NOTE_FD;
}

int main(int argc, char **argv)
{
    static struct standin standin = {.ready_fd = -1};
    (void)signal(SIGPIPE, SIG_IGN);
    parse(&standin, argc, argv);
    standin.random = (uint64_t)getpid();
    for (unsigned index = 0; index < PEERS_MAX; index++)
        standin.peers[index].fd = -1;
    buffer_init(&standin.turn, BUFFER_BYTES_MAX);
    faulty_io_init(&standin.disk, &disk_system, &standin.plan, NULL);
    open_host(&standin);
    recover(&standin);
    listen_here(&standin);
    if (standin.ready_fd >= 0 && write(standin.ready_fd, "ready\n", 6) != 6)
        fail("nobody waits for it", errno);
    serve(&standin);
    return EXIT_SUCCESS;
}

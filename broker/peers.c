#include "broker/peers.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "broker/log.h"

enum peer_state {
    PEER_FREE = 0,
    PEER_NEW,
    PEER_ATTACHED,
    PEER_REFUSED, /* only flushes */
    PEER_ENDING,  /* shut down; waits for its operations */
};

struct peer {
    struct peers *peers;
    struct loop_operation receive;
    struct loop_operation send;
    enum peer_state state;
    uint32_t generation;
    uint32_t reader_slot;
    uint32_t pid;
    int fd;
    bool holds_reader; /* gone() is owed */
    bool has_frames;   /* a whole frame may be waiting in the input */
    uint64_t accepted_ms;
    const char *drop_reason; /* not NULL: to be ended at the next flush */
    struct wire_reader *wire;
    struct buffer input;
    size_t input_taken;    /* bytes of input already handled */
    size_t input_want;     /* of the incomplete frame at its start, 0: not known */
    struct buffer output;  /* queued */
    bool is_urgent;        /* not all of it may be held back */
    struct buffer sending; /* in flight */
    size_t sent_bytes;
    size_t marked_bytes; /* of what is unsent: queued before peers_mark() */
};

struct peers {
    struct loop *loop;
    struct peers_handler handler;
    struct broker_counters *counters;
    uint32_t first; /* who is served first this turn */
    bool stopped;
    uint64_t called;        /* reader slots of those with something urgent since the last flush */
    uint64_t held_until_ms; /* what is held back goes then; 0: nothing is */
    struct peer peer[PEERS_MAX];
};

static_assert(READERS_MAX <= 64, "reader slots are bits of a word");

enum weir_status peers_open(struct peers **peers, struct loop *loop,
                            const struct peers_handler *handler, struct broker_counters *counters,
                            struct weir_error *error)
{
    struct peers *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for connections");
    opened->loop = loop;
    opened->handler = *handler;
    opened->counters = counters;
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        opened->peer[slot].peers = opened;
        opened->peer[slot].fd = -1;
    }
    *peers = opened;
    return WEIR_OK;
}

static void peer_release(struct peer *peer)
{
    if (peer->fd >= 0)
        (void)close(peer->fd);
    peer->fd = -1;
    if (peer->wire)
        wire_reader_close(peer->wire);
    peer->wire = NULL;
    buffer_fini(&peer->input);
    buffer_fini(&peer->output);
    buffer_fini(&peer->sending);
    peer->state = PEER_FREE;
}

void peers_close(struct peers *peers)
{
    if (!peers)
        return;
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (peers->peer[slot].state != PEER_FREE)
            peer_release(&peers->peer[slot]);
    free(peers);
}

static struct peer_handle peer_handle(const struct peer *peer)
{
    return (struct peer_handle){(uint32_t)(peer - peer->peers->peer), peer->generation};
}

/* NULL when the peer is gone or going. */
static struct peer *peers_find(const struct peers *peers, struct peer_handle handle)
{
    if (handle.slot >= PEERS_MAX)
        return NULL;
    const struct peer *peer = &peers->peer[handle.slot];
    if (peer->generation != handle.generation || peer->drop_reason)
        return NULL;
    if (peer->state != PEER_NEW && peer->state != PEER_ATTACHED)
        return NULL;
    return (struct peer *)(uintptr_t)peer;
}

static size_t peer_unsent_bytes(const struct peer *peer)
{
    return peer->output.bytes + peer->sending.bytes - peer->sent_bytes;
}

/* ---- what the loop brings ---- */

static void peer_received(struct loop_operation *operation, int32_t result)
{
    struct peer *peer = operation->owner;
    if (peer->state == PEER_ENDING)
        return;
    if (result <= 0) {
        if (result == -EINTR || result == -EAGAIN)
            return; /* the next flush asks again */
        if (!peer->drop_reason)
            peer->drop_reason = "closed";
        return;
    }
    peer->input.bytes += (size_t)result;
    peer->has_frames = true;
}

static void peer_sent(struct loop_operation *operation, int32_t result)
{
    struct peer *peer = operation->owner;
    if (peer->state == PEER_ENDING)
        return;
    if (result < 0) {
        if (result != -EINTR && result != -EAGAIN && !peer->drop_reason)
            peer->drop_reason = "closed";
        return;
    }
    peer->sent_bytes += (size_t)result;
    peer->marked_bytes -= peer->marked_bytes < (size_t)result ? peer->marked_bytes : (size_t)result;
    if (peer->sent_bytes < peer->sending.bytes)
        return;
    peer->sent_bytes = 0;
    buffer_clear(&peer->sending);
    if (peer->sending.capacity_bytes > PEER_BUFFER_KEEP_BYTES) {
        buffer_fini(&peer->sending);
        buffer_init(&peer->sending, PEER_OUTPUT_HARD_BYTES);
    }
}

/* ---- accept and attach ---- */

static struct peer *peers_free_slot(struct peers *peers)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (peers->peer[slot].state == PEER_FREE)
            return &peers->peer[slot];
    return NULL;
}

/* Only our own user or root may connect, whatever the socket file's mode has become. */
static bool peer_is_allowed(int fd, uint32_t *pid)
{
    struct ucred credentials;
    socklen_t bytes = sizeof credentials;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0)
        return false;
    *pid = (uint32_t)credentials.pid;
    return credentials.uid == geteuid() || credentials.uid == 0;
}

void peers_accept(struct peers *peers, int fd, uint64_t now_ms)
{
    uint32_t pid = 0;
    struct peer *peer = peers->stopped ? NULL : peers_free_slot(peers);
    struct wire_reader *wire = peer && peer_is_allowed(fd, &pid) ? wire_reader_open() : NULL;
    if (!wire) {
        log_line("event=connection_refused reason=\"%s\"",
                 peer ? "not allowed or no memory" : "too many");
        peers->counters->peers_refused++;
        (void)close(fd);
        return;
    }
    uint32_t generation = peer->generation + 1;
    *peer = (struct peer){
        .peers = peers,
        .state = PEER_NEW,
        .generation = generation,
        .pid = pid,
        .fd = fd,
        .accepted_ms = now_ms,
        .wire = wire,
        .receive = {.done = peer_received, .owner = peer},
        .send = {.done = peer_sent, .owner = peer},
    };
    buffer_init(&peer->input, PEER_INPUT_BYTES_MAX);
    buffer_init(&peer->output, PEER_OUTPUT_HARD_BYTES);
    buffer_init(&peer->sending, PEER_OUTPUT_HARD_BYTES);
    peers->counters->peers_accepted++;
}

uint32_t peers_pid(const struct peers *peers, struct peer_handle handle)
{
    const struct peer *peer = peers_find(peers, handle);
    return peer ? peer->pid : 0;
}

static enum weir_status peer_send_fds(const struct peer *peer, struct span frame, const int *fds,
                                      unsigned fd_count)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control = {0};
    weir_assert(fd_count <= 8);

    struct iovec part = {.iov_base = (char *)(uintptr_t)frame.data, .iov_len = frame.bytes};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = CMSG_SPACE(fd_count * sizeof(int)),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));

    /* Nothing was sent on this socket before, so a small frame fits its buffer whole. */
    ssize_t sent = sendmsg(peer->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return sent == (ssize_t)frame.bytes ? WEIR_OK : WEIR_CLOSED;
}

enum weir_status peers_attach(struct peers *peers, struct peer_handle handle, uint32_t reader_slot,
                              struct span frame, const int *fds, unsigned fd_count)
{
    struct peer *peer = peers_find(peers, handle);
    if (!peer || peer->state != PEER_NEW)
        return WEIR_CLOSED;
    enum weir_status status = peer_send_fds(peer, frame, fds, fd_count);
    if (status != WEIR_OK)
        return status;
    peer->state = PEER_ATTACHED;
    peer->reader_slot = reader_slot;
    peer->holds_reader = true;
    peers->counters->peers_attached++;
    return WEIR_OK;
}

void peers_refuse(struct peers *peers, struct peer_handle handle, const char *code,
                  const char *sentence)
{
    struct peer *peer = peers_find(peers, handle);
    if (!peer)
        return;
    const struct wire_field fields[] = {WIRE_SPAN(span_text(code)), WIRE_SPAN(span_text(sentence))};
    if (wire_append(&peer->output, WIRE_REFUSED, 0, fields) != WEIR_OK)
        peer->drop_reason = "no memory";
    peer->is_urgent = true;
    peer->state = PEER_REFUSED;
    peers->counters->peers_refused++;
    log_line("event=peer_refused pid=%u code=%s reason=\"%s\"", peer->pid, code, sentence);
}

void peers_drop(struct peers *peers, struct peer_handle handle, const char *reason)
{
    struct peer *peer = peers_find(peers, handle);
    if (!peer)
        return;
    peer->drop_reason = reason;
    peers->counters->peers_dropped++;
}

/* ---- out ---- */

enum weir_status peers_send(struct peers *peers, struct peer_handle handle, enum wire_type type,
                            uint64_t id, const struct wire_field *fields)
{
    enum weir_status status = peers_send_unhurried(peers, handle, type, id, fields);
    if (status == WEIR_OK) {
        struct peer *peer = &peers->peer[handle.slot];
        peer->is_urgent = true;
        peers->called |= 1ull << peer->reader_slot;
    }
    return status;
}

/* Where a send is in flight the peer has something to read, or what is sent next follows at once. */
uint64_t peers_called(const struct peers *peers)
{
    return peers->called;
}

enum weir_status peers_send_unhurried(struct peers *peers, struct peer_handle handle,
                                      enum wire_type type, uint64_t id,
                                      const struct wire_field *fields)
{
    struct peer *peer = peers_find(peers, handle);
    if (!peer || peer->state != PEER_ATTACHED)
        return WEIR_CLOSED;
    enum weir_status status = wire_append(&peer->output, type, id, fields);
    if (status == WEIR_OK && peer_unsent_bytes(peer) <= PEER_OUTPUT_HARD_BYTES)
        return WEIR_OK;
    if (status == WEIR_TOO_LARGE)
        return status;
    peers_drop(peers, handle, "it does not read its answers");
    return WEIR_CLOSED;
}

void peers_send_all(struct peers *peers, enum wire_type type, const struct wire_field *fields)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (peers->peer[slot].state == PEER_ATTACHED &&
            peers_send(peers, peer_handle(&peers->peer[slot]), type, 0, fields) != WEIR_OK)
            peers->counters->replies_lost++;
}

bool peers_is_busy(const struct peers *peers, struct peer_handle handle)
{
    const struct peer *peer = peers_find(peers, handle);
    return peer && peer_unsent_bytes(peer) > PEER_OUTPUT_SOFT_BYTES;
}

bool peers_is_lagging(const struct peers *peers, struct peer_handle handle)
{
    const struct peer *peer = peers_find(peers, handle);
    return peer && peer_unsent_bytes(peer) > PEER_OUTPUT_BULK_BYTES;
}

/* ---- in ---- */

static uint64_t clock_us(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Give the peer's frames to the handler until its share of the turn is used. */
static void peer_take(struct peer *peer)
{
    struct peers *peers = peer->peers;
    size_t bytes = 0;
    uint64_t end_us = clock_us() + TURN_US_PER_PEER;

    for (unsigned frames = 0; frames < TURN_FRAMES_PER_PEER && bytes < TURN_BYTES_PER_PEER;
         frames++) {
        if (frames % TURN_FRAMES_PER_CLOCK == TURN_FRAMES_PER_CLOCK - 1 && clock_us() >= end_us)
            return;
        if (!peers->handler.is_ready(peers->handler.context))
            return;
        struct span rest =
            span_of(peer->input.data + peer->input_taken, peer->input.bytes - peer->input_taken);
        struct wire_message message;
        size_t frame_bytes = 0;
        enum weir_status status = wire_read(peer->wire, rest, &message, &frame_bytes);
        if (status == WEIR_EMPTY) {
            peer->has_frames = false;
            peer->input_want = frame_bytes;
            return;
        }
        if (status == WEIR_OK)
            status = peers->handler.message(peers->handler.context, peer_handle(peer),
                                            peer->state == PEER_ATTACHED, &message);
        if (status != WEIR_OK) {
            peers->counters->frames_malformed++;
            peers_drop(peers, peer_handle(peer), "malformed frame");
        }
        if (peer->drop_reason || peer->state == PEER_REFUSED) {
            peer->has_frames = false;
            return;
        }
        peer->input_taken += frame_bytes;
        bytes += frame_bytes;
    }
}

static bool peer_is_ready(const struct peer *peer)
{
    return (peer->state == PEER_NEW || peer->state == PEER_ATTACHED) && !peer->drop_reason &&
           peer->has_frames && peer_unsent_bytes(peer) <= PEER_OUTPUT_SOFT_BYTES;
}

bool peers_take(struct peers *peers)
{
    bool left = false;
    for (uint32_t turn = 0; turn < PEERS_MAX; turn++) {
        struct peer *peer = &peers->peer[(peers->first + turn) % PEERS_MAX];
        if (!peer_is_ready(peer))
            continue;
        peer_take(peer);
        left |= peer_is_ready(peer);
    }
    peers->first = (peers->first + 1) % PEERS_MAX;
    return left && peers->handler.is_ready(peers->handler.context);
}

/* Ask for more input, with room for the frame that has begun. */
static void peer_start_receive(struct peer *peer)
{
    if (peer->input_taken > 0) {
        buffer_consume(&peer->input, peer->input_taken);
        peer->input_taken = 0;
    }
    size_t room = PEER_RECEIVE_BYTES;
    if (peer->input_want > peer->input.bytes && peer->input_want - peer->input.bytes > room)
        room = peer->input_want - peer->input.bytes;
    if (peer->input.bytes == 0 && peer->input.capacity_bytes > PEER_BUFFER_KEEP_BYTES) {
        buffer_fini(&peer->input);
        buffer_init(&peer->input, PEER_INPUT_BYTES_MAX);
    }
    if (buffer_reserve(&peer->input, room) != WEIR_OK) {
        peer->drop_reason = "no memory for its frame";
        return;
    }
    loop_receive(peer->peers->loop, &peer->receive, peer->fd, peer->input.data + peer->input.bytes,
                 room);
}

static bool peer_holds_back(const struct peer *peer)
{
    return peer->output.bytes > 0 && peer->output.bytes < PEER_HELD_BYTES_MAX && !peer->is_urgent;
}

static void peer_start_send(struct peer *peer)
{
    if (peer->sending.bytes == 0) {
        if (peer->output.bytes == 0 || peer_holds_back(peer))
            return;
        struct buffer swap = peer->sending;
        peer->sending = peer->output;
        peer->output = swap;
        peer->is_urgent = false;
    }
    loop_send(peer->peers->loop, &peer->send, peer->fd, peer->sending.data + peer->sent_bytes,
              peer->sending.bytes - peer->sent_bytes);
}

static void peer_end(struct peer *peer)
{
    struct peers *peers = peer->peers;
    struct peer_handle handle = peer_handle(peer);
    peer->state = PEER_ENDING;
    (void)shutdown(peer->fd, SHUT_RDWR); /* completes what is in flight */
    log_line("event=peer_gone pid=%u reason=\"%s\"", peer->pid, peer->drop_reason);
    if (peer->holds_reader) {
        peer->holds_reader = false;
        peers->handler.gone(peers->handler.context, handle, peer->reader_slot);
    }
}

/* True when the peer has to be ended in the next turn. */
static bool peer_flush(struct peer *peer)
{
    if (peer->state == PEER_REFUSED && peer_unsent_bytes(peer) == 0 && !peer->drop_reason)
        peer->drop_reason = "refused";
    if (peer->state != PEER_ENDING && !peer->drop_reason && !peer->send.in_flight)
        peer_start_send(peer);
    if ((peer->state == PEER_NEW || peer->state == PEER_ATTACHED) && !peer->drop_reason &&
        !peer->has_frames && !peer->receive.in_flight &&
        !peers_is_busy(peer->peers, peer_handle(peer)))
        peer_start_receive(peer);
    if (peer->state == PEER_ENDING && !peer->receive.in_flight && !peer->send.in_flight)
        peer_release(peer);
    return peer->state != PEER_FREE && peer->state != PEER_ENDING && peer->drop_reason;
}

/* One time for all peers, counted from when the first of them began to hold back. */
static void peers_end_holding(struct peers *peers, uint64_t now_ms)
{
    if (peers_wait_ms(peers, now_ms, 1) > 0)
        return;
    peers->held_until_ms = 0;
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (peer_holds_back(&peers->peer[slot]))
            peers->peer[slot].is_urgent = true;
}

int peers_wait_ms(const struct peers *peers, uint64_t now_ms, int limit_ms)
{
    if (peers->held_until_ms == 0)
        return limit_ms;
    /* Further away than it can have been set: the clock was. */
    bool is_due =
        now_ms >= peers->held_until_ms || peers->held_until_ms - now_ms > PEER_HELD_MS_MAX;
    int left_ms = is_due ? 0 : (int)(peers->held_until_ms - now_ms);
    return left_ms < limit_ms ? left_ms : limit_ms;
}

bool peers_flush(struct peers *peers, uint64_t now_ms)
{
    bool again = false;
    bool holds_back = false;
    peers_end_holding(peers, now_ms);
    /* Ending one peer may queue messages for others (calls that ended), so all ends come before all
     * sends. */
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        struct peer *peer = &peers->peer[slot];
        bool live = peer->state != PEER_FREE && peer->state != PEER_ENDING;
        if (live && peer->drop_reason)
            peer_end(peer);
    }
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        if (peers->peer[slot].state == PEER_FREE)
            continue;
        again |= peer_flush(&peers->peer[slot]);
        holds_back |= peer_holds_back(&peers->peer[slot]);
    }
    peers->called = 0;
    if (!holds_back)
        peers->held_until_ms = 0;
    else if (peers->held_until_ms == 0)
        peers->held_until_ms = now_ms + PEER_HELD_MS_MAX;
    return again;
}

void peers_mark(struct peers *peers)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        peers->peer[slot].marked_bytes = peer_unsent_bytes(&peers->peer[slot]);
}

bool peers_have_sent_marked(const struct peers *peers)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        const struct peer *peer = &peers->peer[slot];
        if (peer->state == PEER_ATTACHED && !peer->drop_reason && peer->marked_bytes > 0)
            return false;
    }
    return true;
}

void peers_tick(struct peers *peers, uint64_t now_ms)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        struct peer *peer = &peers->peer[slot];
        bool waiting = peer->state == PEER_NEW || peer->state == PEER_REFUSED;
        if (waiting && !peer->drop_reason && now_ms > peer->accepted_ms + PEER_ATTACH_MS_MAX)
            peer->drop_reason = "it did not attach in time";
    }
}

void peers_stop(struct peers *peers)
{
    peers->stopped = true;
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        struct peer *peer = &peers->peer[slot];
        if (peer->state == PEER_FREE || peer->drop_reason)
            continue;
        peer->is_urgent = true;
        if (!peer->send.in_flight && peer->state != PEER_ENDING)
            peer_start_send(peer);
        peer->drop_reason = "the broker stops";
    }
}

bool peers_are_idle(const struct peers *peers)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (peers->peer[slot].state != PEER_FREE)
            return false;
    return true;
}

/* Batches of frames against sockets that take as many bytes as they are told to: several entries of
 * one connection are one send, cut wherever a send can be cut. Everything below ws_batch.c is played
 * here. */
#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>

#include "gateway/ws_private.h"

enum { CONNECTIONS = 3, STREAM_BYTES = 256 * 1024, ENTRIES_MAX = 4096 };

struct send_buffer {
    size_t bytes;
    char data[STREAM_BYTES];
};

/* The kernel's side of one connection. */
static struct socket {
    struct ws_connection connection;
    struct send_buffer output;
    char stream[STREAM_BYTES]; /* what has arrived */
    size_t bytes;
    int takes; /* of the next send; -1: all; otherwise it is full afterwards; less: an error */
    unsigned sends;
    unsigned awaited;
} sockets[CONNECTIONS];

static struct ws_server server;
static enum weir_status statuses[ENTRIES_MAX];
static unsigned done_count;
static unsigned pieces_most;

/* ---- what ws_batch.c stands on ---- */

static struct socket *socket_of(const struct ws_connection *connection)
{
    return &sockets[connection->fd];
}

size_t send_buffer_bytes(const struct send_buffer *buffer)
{
    return buffer ? buffer->bytes : 0;
}

struct span send_buffer_span(const struct send_buffer *buffer)
{
    return buffer ? span_of(buffer->data, buffer->bytes) : span_of(NULL, 0);
}

void send_buffer_consume(struct send_pool *pool, struct send_buffer **buffer, size_t bytes)
{
    (void)pool;
    if (bytes == 0)
        return;
    cr_assert_leq(bytes, (*buffer)->bytes);
    (*buffer)->bytes -= bytes;
    memmove((*buffer)->data, (*buffer)->data + bytes, (*buffer)->bytes);
    if ((*buffer)->bytes == 0)
        *buffer = NULL;
}

enum weir_status ws_connection_append(struct ws_connection *connection, const struct iovec *parts,
                                      unsigned part_count)
{
    struct send_buffer *output = &socket_of(connection)->output;
    if (!connection->output)
        output->bytes = 0;
    connection->output = output;
    for (unsigned index = 0; index < part_count; index++) {
        cr_assert_leq(output->bytes + parts[index].iov_len, sizeof(output->data));
        memcpy(output->data + output->bytes, parts[index].iov_base, parts[index].iov_len);
        output->bytes += parts[index].iov_len;
    }
    return WEIR_OK;
}

void ws_connection_kill(struct ws_connection *connection)
{
    connection->state = WS_STATE_DEAD;
}

void ws_await_writable(struct ws_connection *connection)
{
    connection->is_blocked = true;
    socket_of(connection)->awaited++;
}

void sender_run(struct sender *sender, struct send_job *jobs, unsigned job_count,
                struct iovec *iovecs)
{
    (void)sender;
    for (unsigned index = 0; index < job_count; index++) {
        struct send_job *job = &jobs[index];
        struct socket *own = &sockets[job->fd];
        for (unsigned other = 0; other < index; other++)
            cr_assert_neq(jobs[other].fd, job->fd, "two sends to one socket in one go");
        cr_assert_leq(job->iov_count, IOV_MAX);
        if (job->iov_count > pieces_most)
            pieces_most = job->iov_count;
        own->sends++;
        size_t before = own->bytes;
        size_t left = own->takes < 0 ? SIZE_MAX : (size_t)own->takes;
        for (unsigned piece = 0; piece < job->iov_count && left; piece++) {
            const struct iovec *iov = &iovecs[job->iov_first + piece];
            size_t bytes = iov->iov_len < left ? iov->iov_len : left;
            cr_assert_leq(own->bytes + bytes, sizeof(own->stream));
            memcpy(own->stream + own->bytes, iov->iov_base, bytes);
            own->bytes += bytes;
            left -= bytes;
        }
        job->result = own->takes < -1 ? own->takes : (int)(own->bytes - before);
        if (own->takes >= 0 && job->result == 0)
            job->result = -EAGAIN;
    }
}

/* ---- the owner's side ---- */

static void begin(void)
{
    for (int index = 0; index < CONNECTIONS; index++) {
        struct socket *own = &sockets[index];
        own->connection =
            (struct ws_connection){.server = &server, .fd = index, .state = WS_STATE_OPEN};
        own->bytes = 0;
        own->takes = -1;
        own->sends = own->awaited = 0;
    }
}

static void end(void)
{
    ws_batch_fini(&server.batch);
}

static void on_done(void *context, struct ws_connection *connection, void *entry,
                    enum weir_status status)
{
    (void)context;
    (void)connection;
    cr_assert_eq((uintptr_t)entry, done_count, "out of order");
    statuses[done_count++] = status;
}

static void add(int socket, const char *first, const char *second)
{
    struct iovec frames[2] = {{(void *)(uintptr_t)first, strlen(first)},
                              {(void *)(uintptr_t)second, second ? strlen(second) : 0}};
    ws_batch_add(&server, &sockets[socket].connection, frames, second ? 2 : 1,
                 (void *)(uintptr_t)done_count++);
}

static void flush(void)
{
    unsigned added = done_count;
    done_count = 0;
    ws_batch_flush(&server, on_done, NULL);
    cr_assert_eq(done_count, added);
    done_count = 0;
}

static void owe(int socket, const char *text)
{
    struct iovec part = {(void *)(uintptr_t)text, strlen(text)};
    cr_assert_eq(ws_connection_append(&sockets[socket].connection, &part, 1), WEIR_OK);
}

/* The socket takes bytes again, and first what was kept. */
static void drain(int socket)
{
    struct socket *own = &sockets[socket];
    own->connection.is_blocked = own->connection.owes_writable = false;
    own->takes = -1;
    if (!own->connection.output)
        return;
    memcpy(own->stream + own->bytes, own->output.data, own->output.bytes);
    own->bytes += own->output.bytes;
    own->connection.output = NULL;
}

static void expect_stream(int socket, const char *text)
{
    cr_assert_eq(sockets[socket].bytes, strlen(text), "%.*s instead of %s",
                 (int)sockets[socket].bytes, sockets[socket].stream, text);
    cr_assert_eq(memcmp(sockets[socket].stream, text, strlen(text)), 0, "%.*s instead of %s",
                 (int)sockets[socket].bytes, sockets[socket].stream, text);
}

/* ---- the rules ---- */

Test(ws_batch, sends_all_entries_of_a_connection_at_once, .init = begin, .fini = end,
     .timeout = HANG_SECONDS)
{
    add(0, "one", "two");
    add(1, "other", NULL);
    add(0, "three", NULL);
    add(0, "four", NULL);
    flush();
    expect_stream(0, "onetwothreefour");
    expect_stream(1, "other");
    cr_assert_eq(sockets[0].sends, 1);
    cr_assert_eq(sockets[1].sends, 1);
    for (unsigned entry = 0; entry < 4; entry++)
        cr_assert_eq(statuses[entry], WEIR_OK);
}

static const char *const cut_frames[3][2] = {{"alpha", "beta"}, {"gamma-delta", NULL}, {"e", "zz"}};
static const char cut_whole[] = "alphabetagamma-deltaezz";

/* What arrives after the socket took `takes` bytes, and then all that is asked for again. */
static void cut_at(int takes, const char *owed)
{
    char expected[80];
    begin();
    if (owed)
        owe(0, owed);
    sockets[0].takes = takes;
    for (unsigned entry = 0; entry < 3; entry++)
        add(0, cut_frames[entry][0], cut_frames[entry][1]);
    flush();
    cr_assert_eq(sockets[0].sends, 1);
    unsigned taken = 0;
    while (taken < 3 && statuses[taken] == WEIR_OK)
        taken++;
    for (unsigned entry = taken; entry < 3; entry++)
        cr_assert_eq(statuses[entry], WEIR_AGAIN, "entry %u, cut at %d", entry, takes);
    cr_assert_eq(sockets[0].connection.owes_writable, taken < 3, "cut at %d", takes);
    cr_assert(sockets[0].connection.is_blocked);
    /* Nothing of an entry that is to come again may be kept or sent. */
    drain(0);
    size_t prefix = owed ? strlen(owed) : 0;
    for (unsigned entry = 0; entry < taken; entry++)
        for (unsigned frame = 0; frame < 2; frame++)
            prefix += cut_frames[entry][frame] ? strlen(cut_frames[entry][frame]) : 0;
    cr_assert_eq(sockets[0].bytes, prefix, "%zu bytes of %zu, cut at %d", sockets[0].bytes, prefix,
                 takes);
    for (unsigned entry = taken; entry < 3; entry++)
        add(0, cut_frames[entry][0], cut_frames[entry][1]);
    flush();
    snprintf(expected, sizeof(expected), "%s%s", owed ? owed : "", cut_whole);
    expect_stream(0, expected);
}

/* One send of several entries, cut behind each byte: with and without bytes owed from before. */
Test(ws_batch, continues_a_cut_send_at_every_byte, .fini = end, .timeout = HANG_SECONDS)
{
    static const char owed[] = "the rest of before";
    for (int takes = 0; takes < (int)strlen(cut_whole); takes++)
        cut_at(takes, NULL);
    for (int takes = 0; takes < (int)(strlen(owed) + strlen(cut_whole)); takes++)
        cut_at(takes, owed);
}

/* One piece of memory for many connections is kept once, and a cut of one does not touch the
 * others. */
Test(ws_batch, shares_a_piece_between_connections, .init = begin, .fini = end,
     .timeout = HANG_SECONDS)
{
    static const char frame[] = "the same for all";
    sockets[1].takes = 5;
    for (int index = 0; index < CONNECTIONS; index++)
        add(index, frame, NULL);
    cr_assert_eq(server.batch.iov_count, 1);
    flush();
    cr_assert_eq(statuses[1], WEIR_OK);
    drain(1);
    for (int index = 0; index < CONNECTIONS; index++)
        expect_stream(index, frame);
}

/* More pieces than one send may have: several, one after the other, in order. */
Test(ws_batch, goes_on_where_one_send_is_full, .init = begin, .fini = end, .timeout = HANG_SECONDS)
{
    static char text[ENTRIES_MAX * 2 + 1];
    memset(text, '.', sizeof(text) - 1);
    for (unsigned entry = 0; entry < ENTRIES_MAX; entry++)
        text[entry * 2] = (char)('a' + entry % 26);
    /* Every other byte, so that no two pieces lie side by side. */
    for (unsigned entry = 0; entry < ENTRIES_MAX; entry++) {
        struct iovec frame = {text + entry * 2, 1};
        ws_batch_add(&server, &sockets[entry % 2].connection, &frame, 1,
                     (void *)(uintptr_t)done_count++);
    }
    flush();
    cr_assert_eq(pieces_most, IOV_MAX);
    cr_assert_eq(sockets[0].sends, ENTRIES_MAX / 2 / IOV_MAX);
    cr_assert_eq(sockets[0].bytes, ENTRIES_MAX / 2);
    for (unsigned entry = 0; entry < ENTRIES_MAX; entry++) {
        cr_assert_eq(statuses[entry], WEIR_OK);
        cr_assert_eq(sockets[entry % 2].stream[entry / 2], text[entry * 2], "entry %u", entry);
    }
}

/* A long chain whose second send is cut: the entries of the first hold. */
Test(ws_batch, keeps_what_an_earlier_send_took, .init = begin, .fini = end, .timeout = HANG_SECONDS)
{
    static char text[4 * IOV_MAX];
    memset(text, 'x', sizeof(text));
    sockets[0].takes = IOV_MAX; /* of each send */
    for (unsigned entry = 0; entry < IOV_MAX + 10; entry++) {
        struct iovec frame = {text + entry * 2, 1};
        ws_batch_add(&server, &sockets[0].connection, &frame, 1, (void *)(uintptr_t)done_count++);
    }
    struct iovec last = {text, 2 * IOV_MAX};
    ws_batch_add(&server, &sockets[0].connection, &last, 1, (void *)(uintptr_t)done_count++);
    ws_batch_add(&server, &sockets[0].connection, &last, 1, (void *)(uintptr_t)done_count++);
    flush();
    for (unsigned entry = 0; entry < IOV_MAX + 11; entry++)
        cr_assert_eq(statuses[entry], WEIR_OK, "entry %u", entry);
    cr_assert_eq(statuses[IOV_MAX + 11], WEIR_AGAIN);
    drain(0);
    cr_assert_eq(sockets[0].bytes, 3 * IOV_MAX + 10);
}

Test(ws_batch, reports_every_entry_of_a_broken_or_closing_connection, .init = begin, .fini = end,
     .timeout = HANG_SECONDS)
{
    sockets[0].takes = -ECONNRESET;
    add(0, "a", NULL);
    add(1, "b", NULL);
    add(2, "c", NULL);
    add(1, "d", NULL);
    add(0, "e", NULL);
    sockets[1].connection.state = WS_STATE_CLOSING;
    flush();
    static const enum weir_status expected[] = {WEIR_CLOSED, WEIR_CLOSED, WEIR_OK, WEIR_CLOSED,
                                                WEIR_CLOSED};
    for (unsigned entry = 0; entry < 5; entry++)
        cr_assert_eq(statuses[entry], expected[entry], "entry %u", entry);
    cr_assert_eq(sockets[0].connection.state, WS_STATE_DEAD);
    cr_assert_eq(sockets[1].sends, 0);
    expect_stream(2, "c");
}

Test(ws_batch, leaves_a_blocked_connection_alone, .init = begin, .fini = end,
     .timeout = HANG_SECONDS)
{
    sockets[0].connection.is_blocked = true;
    add(0, "a", NULL);
    add(0, "b", NULL);
    flush();
    cr_assert_eq(statuses[0], WEIR_AGAIN);
    cr_assert_eq(statuses[1], WEIR_AGAIN);
    cr_assert_eq(sockets[0].sends, 0);
    cr_assert(sockets[0].connection.owes_writable);
}

/* TLS takes a whole chain to encrypt, too. */
Test(ws_batch, gathers_a_chain_to_be_encrypted, .init = begin, .fini = end, .timeout = HANG_SECONDS)
{
    sockets[0].connection.is_tls = true;
    add(0, "a", NULL);
    add(0, "b", "c");
    flush();
    cr_assert_eq(statuses[0], WEIR_OK);
    cr_assert_eq(statuses[1], WEIR_OK);
    cr_assert_eq(sockets[0].sends, 0);
    cr_assert_eq(sockets[0].awaited, 1);
    drain(0);
    expect_stream(0, "abc");
}

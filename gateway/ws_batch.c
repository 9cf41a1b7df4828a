#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "gateway/ws_private.h"

/* Entries of one connection are a chain, which goes out in one send, or in several when it has more
 * pieces than one may have. In the common case, one piece of memory for many connections, an entry
 * is alone in its chain and shares its iovec with the entries around it, so that a flush reads and
 * writes little more than one entry and one job for each connection. */
struct ws_batch_entry {
    struct ws_connection *connection;
    void *entry;
    uint32_t iov_first;
    uint32_t next; /* of the connection, counted from 1; 0: none */
    uint16_t iov_count;
    int16_t status; /* enum weir_status */
    bool is_first;
};
static_assert(sizeof(struct ws_batch_entry) == 32, "two to a cache line");

enum {
    PIECES_MAX = IOV_MAX,
    TLS_CHAIN_BYTES_MAX = 256 * 1024 /* taken of a chain beyond its first entry, to be encrypted */
};

/* ---- filling ---- */

static bool grow(void **array, unsigned *capacity, unsigned wanted, size_t element_bytes)
{
    if (wanted <= *capacity)
        return true;
    unsigned larger = *capacity ? *capacity : 256;
    while (larger < wanted)
        larger *= 2;
    void *moved = realloc(*array, larger * element_bytes);
    if (!moved)
        return false;
    *array = moved;
    *capacity = larger;
    return true;
}

/* Room for `count` more iovecs: an array of a few megabytes at most, without which no subscriber
 * can be served. */
static struct iovec *iovecs_reserve(struct ws_batch *batch, unsigned count)
{
    bool has_room = grow((void **)&batch->iovecs, &batch->iov_capacity, batch->iov_count + count,
                         sizeof(*batch->iovecs));
    weir_assert(has_room);
    return batch->iovecs + batch->iov_count;
}

/* Frames that lie side by side become one piece. Returns how many `out` has then. */
static unsigned frames_gather(struct iovec *out, unsigned count, const struct iovec *frames,
                              unsigned frame_count)
{
    for (unsigned index = 0; index < frame_count; index++) {
        if (count &&
            (char *)out[count - 1].iov_base + out[count - 1].iov_len == frames[index].iov_base)
            out[count - 1].iov_len += frames[index].iov_len;
        else
            out[count++] = frames[index];
    }
    return count;
}

/* Many connections one after the other get the same piece: it is kept once. */
static bool is_shared(const struct ws_batch *batch, const struct iovec *frames,
                      unsigned frame_count)
{
    if (frame_count != 1 || batch->count == 0 || batch->entries[batch->count - 1].iov_count != 1)
        return false;
    const struct iovec *last = &batch->iovecs[batch->iov_count - 1];
    return last->iov_base == frames->iov_base && last->iov_len == frames->iov_len;
}

void ws_batch_add(struct ws_server *server, struct ws_connection *connection,
                  const struct iovec *frames, unsigned frame_count, void *entry)
{
    weir_assert(frame_count > 0);
    weir_assert(frame_count <= WS_BATCH_IOV_MAX);
    weir_assert(!server->is_flushing);
    struct ws_batch *batch = &server->batch;
    bool has_room =
        grow((void **)&batch->entries, &batch->capacity, batch->count + 1, sizeof(*batch->entries));
    weir_assert(has_room); /* as iovecs_reserve() */
    unsigned iov_first = batch->iov_count - 1;
    unsigned iov_count = 1;
    if (!is_shared(batch, frames, frame_count)) {
        iov_first = batch->iov_count;
        iov_count = frames_gather(iovecs_reserve(batch, frame_count), 0, frames, frame_count);
        batch->iov_count += iov_count;
    }
    batch->entries[batch->count++] = (struct ws_batch_entry){.connection = connection,
                                                             .entry = entry,
                                                             .iov_first = iov_first,
                                                             .iov_count = (uint16_t)iov_count,
                                                             .is_first = !connection->batch_last};
    if (connection->batch_last)
        batch->entries[connection->batch_last - 1].next = batch->count;
    connection->batch_last = batch->count;
}

void ws_batch_fini(struct ws_batch *batch)
{
    free(batch->entries);
    free(batch->iovecs);
    free(batch->jobs);
}

/* ---- a chain's end ---- */

static struct ws_batch_entry *entry_at(const struct ws_batch *batch, uint32_t number)
{
    return number ? &batch->entries[number - 1] : NULL;
}

static void chain_decide(struct ws_batch *batch, uint32_t number, enum weir_status status)
{
    for (struct ws_batch_entry *entry; (entry = entry_at(batch, number)); number = entry->next)
        entry->status = (int16_t)status;
}

static void promise_writable(struct ws_connection *connection)
{
    connection->owes_writable = true;
    if (!connection->is_blocked)
        ws_await_writable(connection);
}

static size_t entry_bytes(const struct ws_batch *batch, const struct ws_batch_entry *entry)
{
    size_t bytes = 0;
    for (unsigned index = 0; index < entry->iov_count; index++)
        bytes += batch->iovecs[entry->iov_first + index].iov_len;
    return bytes;
}

/* Keep what of an entry's frames is behind the first `taken` bytes. The iovecs may be shared. */
static enum weir_status tail_keep(struct ws_connection *connection, const struct iovec *frames,
                                  unsigned count, size_t taken)
{
    struct iovec rest[WS_BATCH_IOV_MAX];
    while (taken >= frames->iov_len) {
        taken -= frames->iov_len;
        frames++;
        count--;
    }
    memcpy(rest, frames, count * sizeof(*rest));
    rest->iov_base = (char *)rest->iov_base + taken;
    rest->iov_len -= taken;
    if (ws_connection_append(connection, rest, count) != WEIR_OK) {
        ws_connection_kill(connection);
        return WEIR_CLOSED;
    }
    ws_await_writable(connection);
    return WEIR_OK;
}

/* The socket took `sent` bytes of the chain, fewer than it was given: what is whole is OK, so is
 * what was cut and will be continued, and the rest is to come again. */
static void chain_cut(struct ws_batch *batch, uint32_t number, size_t sent)
{
    struct ws_connection *connection = entry_at(batch, number)->connection;
    for (struct ws_batch_entry *entry; (entry = entry_at(batch, number)); number = entry->next) {
        size_t bytes = entry_bytes(batch, entry);
        if (sent < bytes)
            break;
        sent -= bytes;
        entry->status = WEIR_OK;
    }
    if (sent > 0) {
        struct ws_batch_entry *entry = entry_at(batch, number);
        entry->status = (int16_t)tail_keep(connection, batch->iovecs + entry->iov_first,
                                           entry->iov_count, sent);
        number = entry->next;
    }
    if (connection->state == WS_STATE_DEAD) {
        chain_decide(batch, number, WEIR_CLOSED);
    } else if (number) {
        chain_decide(batch, number, WEIR_AGAIN);
        promise_writable(connection);
    }
}

/* ---- sending ---- */

/* Encrypted later, in the writable callback. */
static void chain_encrypt(struct ws_batch *batch, uint32_t number)
{
    struct ws_connection *connection = entry_at(batch, number)->connection;
    struct ws_batch_entry *entry;
    while ((entry = entry_at(batch, number)) &&
           send_buffer_bytes(connection->output) < TLS_CHAIN_BYTES_MAX &&
           ws_connection_append(connection, batch->iovecs + entry->iov_first, entry->iov_count) ==
               WEIR_OK) {
        entry->status = WEIR_OK;
        number = entry->next;
    }
    chain_decide(batch, number, WEIR_AGAIN);
    if (number)
        connection->owes_writable = true;
    if (!connection->is_blocked)
        ws_await_writable(connection);
}

/* One send of what is owed and of as much of a chain as one send may have. Returns where the rest
 * of the chain begins; 0: there is none. */
static uint32_t chain_gather(struct ws_batch *batch, uint32_t number, struct send_job *job)
{
    struct span owed = send_buffer_span(entry_at(batch, number)->connection->output);
    unsigned count = 0;
    job->iov_first = batch->iov_count;
    job->owes = owed.bytes != 0;
    if (job->owes)
        iovecs_reserve(batch, 1)[count++] =
            (struct iovec){.iov_base = (void *)owed.data, .iov_len = owed.bytes};
    struct ws_batch_entry *entry;
    for (; (entry = entry_at(batch, number)) && count + entry->iov_count <= PIECES_MAX;
         number = entry->next) {
        struct iovec *out = iovecs_reserve(batch, count + entry->iov_count);
        count = frames_gather(out, count, batch->iovecs + entry->iov_first, entry->iov_count);
        entry->status = WEIR_OK;
    }
    job->iov_count = count;
    batch->iov_count += count;
    return number;
}

static size_t job_bytes(const struct ws_batch *batch, const struct send_job *job)
{
    size_t bytes = 0;
    for (unsigned index = 0; index < job->iov_count; index++)
        bytes += batch->iovecs[job->iov_first + index].iov_len;
    return bytes;
}

/* Make a job of a chain, or decide about it without one. */
static bool chain_prepare(struct ws_batch *batch, uint32_t number, struct send_job *job)
{
    struct ws_batch_entry *entry = entry_at(batch, number);
    struct ws_connection *connection = entry->connection;
    connection->batch_last = 0;
    if (connection->state != WS_STATE_OPEN) {
        chain_decide(batch, number, WEIR_CLOSED);
        return false;
    }
    if (connection->is_blocked || (connection->is_tls && connection->output)) {
        chain_decide(batch, number, WEIR_AGAIN);
        promise_writable(connection);
        return false;
    }
    if (connection->is_tls) {
        chain_encrypt(batch, number);
        return false;
    }
    job->fd = connection->fd;
    job->owner = number;
    job->rest = 0;
    job->owes = false;
    if (entry->next || connection->output) {
        job->rest = chain_gather(batch, number, job);
        return true;
    }
    entry->status = WEIR_OK;
    job->iov_first = entry->iov_first;
    job->iov_count = entry->iov_count;
    return true;
}

/* Returns where the chain goes on; 0: it is decided. */
static uint32_t job_finish(struct ws_server *server, struct ws_batch *batch,
                           const struct send_job *job)
{
    bool is_whole = job->result >= 0 && (size_t)job->result == job_bytes(batch, job);
    if (is_whole && !job->owes) /* nearly all: what was prepared holds */
        return job->rest;
    struct ws_connection *connection = entry_at(batch, job->owner)->connection;
    if (job->result < 0 && job->result != -EAGAIN) {
        ws_connection_kill(connection);
        chain_decide(batch, job->owner, WEIR_CLOSED);
        return 0;
    }
    size_t owed = send_buffer_bytes(connection->output);
    size_t sent = job->result > 0 ? (size_t)job->result : 0;
    size_t of_owed = sent < owed ? sent : owed;
    send_buffer_consume(&server->send_pool, &connection->output, of_owed);
    if (is_whole)
        return job->rest;
    chain_cut(batch, job->owner, sent - of_owed);
    return 0;
}

/* One job for each chain, all in one go; then whatever chains go on beyond one send. */
static void batch_send(struct ws_server *server, struct ws_batch *batch)
{
    unsigned count = 0;
    for (uint32_t number = 1; number <= batch->count; number++)
        if (batch->entries[number - 1].is_first &&
            chain_prepare(batch, number, &batch->jobs[count]))
            count++;
    while (count) {
        sender_run(server->sender, batch->jobs, count, batch->iovecs);
        unsigned left = 0;
        for (unsigned index = 0; index < count; index++) {
            uint32_t rest = job_finish(server, batch, &batch->jobs[index]);
            if (rest && chain_prepare(batch, rest, &batch->jobs[left]))
                left++;
        }
        count = left;
    }
}

void ws_batch_flush(struct ws_server *server, ws_batch_done *done, void *context)
{
    weir_assert(!server->is_flushing);
    struct ws_batch *batch = &server->batch;
    if (batch->count == 0)
        return;
    bool has_room =
        grow((void **)&batch->jobs, &batch->job_capacity, batch->count, sizeof(*batch->jobs));
    weir_assert(has_room); /* as iovecs_reserve() */
    server->is_flushing = true;
    batch_send(server, batch);
    for (unsigned index = 0; index < batch->count; index++) {
        const struct ws_batch_entry *entry = &batch->entries[index];
        done(context, entry->connection, entry->entry, (enum weir_status)entry->status);
    }
    batch->count = 0;
    batch->iov_count = 0;
    server->is_flushing = false;
}

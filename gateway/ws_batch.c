#include <errno.h>
#include <stdlib.h>

#include "gateway/ws_private.h"

struct ws_batch_entry {
    struct ws_connection *connection; /* NULL: gone since */
    void *entry;
    unsigned iov_first; /* one slot for what is owed, then the frames */
    unsigned iov_count;
    size_t bytes;
    size_t owed_bytes;
    enum weir_status status;
    bool is_later; /* the connection has an earlier entry in this batch */
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

/* One slot is left free in front for what the connection owes; frames that lie side by side become
 * one piece. */
static unsigned frames_gather(struct iovec *out, const struct iovec *frames, unsigned frame_count,
                              size_t *bytes)
{
    unsigned count = 0;
    for (unsigned index = 0; index < frame_count; index++) {
        *bytes += frames[index].iov_len;
        if (count &&
            (char *)out[count - 1].iov_base + out[count - 1].iov_len == frames[index].iov_base)
            out[count - 1].iov_len += frames[index].iov_len;
        else
            out[count++] = frames[index];
    }
    return count;
}

void ws_batch_add(struct ws_server *server, struct ws_connection *connection,
                  const struct iovec *frames, unsigned frame_count, void *entry)
{
    weir_assert(frame_count > 0);
    weir_assert(frame_count <= WS_BATCH_IOV_MAX);
    struct ws_batch *batch = &server->batches[server->batch_index];
    bool has_room =
        grow((void **)&batch->entries, &batch->capacity, batch->count + 1,
             sizeof(*batch->entries)) &&
        grow((void **)&batch->iovecs, &batch->iov_capacity, batch->iov_count + 1 + frame_count,
             sizeof(*batch->iovecs)) &&
        grow((void **)&batch->jobs, &batch->job_capacity, batch->count + 1, sizeof(*batch->jobs));
    /* Arrays of a few megabytes at most; without them no subscriber can be served. */
    weir_assert(has_room);
    struct ws_batch_entry *own = &batch->entries[batch->count++];
    *own = (struct ws_batch_entry){
        .connection = connection, .entry = entry, .iov_first = batch->iov_count};
    own->iov_count =
        frames_gather(batch->iovecs + own->iov_first + 1, frames, frame_count, &own->bytes);
    batch->iov_count += 1 + own->iov_count;
    connection->batch_entries++;
}

void ws_batch_forget(struct ws_connection *connection)
{
    for (unsigned which = 0; which < 2 && connection->batch_entries; which++) {
        struct ws_batch *batch = &connection->server->batches[which];
        for (unsigned index = 0; index < batch->count; index++)
            if (batch->entries[index].connection == connection)
                batch->entries[index].connection = NULL;
    }
}

void ws_batch_fini(struct ws_batch *batch)
{
    free(batch->entries);
    free(batch->iovecs);
    free(batch->jobs);
}

/* ---- sending ---- */

static void promise_writable(struct ws_connection *connection)
{
    connection->owes_writable = true;
    if (!connection->is_blocked)
        ws_await_writable(connection);
}

/* Keep what of an entry's frames is behind the first `taken` bytes. */
static enum weir_status tail_keep(struct ws_connection *connection, struct iovec *frames,
                                  unsigned count, size_t taken)
{
    while (taken >= frames->iov_len) {
        taken -= frames->iov_len;
        frames++;
        count--;
    }
    frames->iov_base = (char *)frames->iov_base + taken;
    frames->iov_len -= taken;
    if (ws_connection_append(connection, frames, count) != WEIR_OK) {
        ws_connection_kill(connection);
        return WEIR_CLOSED;
    }
    ws_await_writable(connection);
    return WEIR_OK;
}

static enum weir_status entry_finish(struct ws_batch *batch, struct ws_batch_entry *entry,
                                     int result)
{
    struct ws_connection *connection = entry->connection;
    connection->is_in_round = false;
    if (result < 0 && result != -EAGAIN) {
        ws_connection_kill(connection);
        return WEIR_CLOSED;
    }
    size_t sent = result > 0 ? (size_t)result : 0;
    size_t of_owed = sent < entry->owed_bytes ? sent : entry->owed_bytes;
    send_buffer_consume(&connection->server->send_pool, &connection->output, of_owed);
    size_t taken = sent - of_owed;
    if (taken == entry->bytes)
        return WEIR_OK;
    if (taken == 0) {
        promise_writable(connection);
        return WEIR_AGAIN;
    }
    return tail_keep(connection, batch->iovecs + entry->iov_first + 1, entry->iov_count, taken);
}

/* Make the job of one entry, or decide without one. */
static bool entry_prepare(struct ws_batch *batch, struct ws_batch_entry *entry,
                          struct send_job *job)
{
    struct ws_connection *connection = entry->connection;
    entry->status = WEIR_CLOSED;
    if (!connection || connection->state != WS_STATE_OPEN)
        return false;
    if (connection->is_blocked || (connection->is_tls && connection->output)) {
        promise_writable(connection);
        entry->status = WEIR_AGAIN;
        return false;
    }
    struct iovec *slot = batch->iovecs + entry->iov_first;
    if (connection->is_tls) {
        /* Encrypted later, in the writable callback. */
        entry->status = ws_connection_append(connection, slot + 1, entry->iov_count) == WEIR_OK
                            ? WEIR_OK
                            : WEIR_AGAIN;
        promise_writable(connection);
        connection->owes_writable = entry->status == WEIR_AGAIN;
        return false;
    }
    struct span owed = send_buffer_span(connection->output);
    entry->owed_bytes = owed.bytes;
    bool owes = owed.bytes != 0;
    if (owes)
        *slot = (struct iovec){.iov_base = (void *)owed.data, .iov_len = owed.bytes};
    *job = (struct send_job){.fd = connection->fd,
                             .iov_first = entry->iov_first + (owes ? 0 : 1),
                             .iov_count = entry->iov_count + (owes ? 1 : 0)};
    return true;
}

/* First one job for each connection, all in one batch; then whatever entries a connection has
 * beyond the first. */
static void batch_send(struct ws_server *server, struct ws_batch *batch)
{
    unsigned job_count = 0;
    for (unsigned index = 0; index < batch->count; index++) {
        struct ws_batch_entry *entry = &batch->entries[index];
        if (entry->connection && entry->connection->is_in_round) {
            entry->is_later = true;
            continue;
        }
        if (entry_prepare(batch, entry, &batch->jobs[job_count])) {
            entry->connection->is_in_round = true;
            batch->jobs[job_count++].owner = index;
        }
    }
    sender_run(server->sender, batch->jobs, job_count, batch->iovecs);
    for (unsigned index = 0; index < job_count; index++) {
        struct ws_batch_entry *entry = &batch->entries[batch->jobs[index].owner];
        entry->status = entry_finish(batch, entry, batch->jobs[index].result);
    }
    for (unsigned index = 0; index < batch->count; index++) {
        struct ws_batch_entry *entry = &batch->entries[index];
        struct send_job job;
        if (entry->is_later && entry_prepare(batch, entry, &job))
            entry->status = entry_finish(
                batch, entry, send_plain(job.fd, batch->iovecs + job.iov_first, job.iov_count));
    }
}

void ws_batch_flush(struct ws_server *server, ws_batch_done *done, void *context)
{
    weir_assert(!server->is_flushing);
    struct ws_batch *batch = &server->batches[server->batch_index];
    if (batch->count == 0)
        return;
    server->is_flushing = true;
    server->batch_index ^= 1;
    batch_send(server, batch);
    for (unsigned index = 0; index < batch->count; index++) {
        struct ws_batch_entry *entry = &batch->entries[index];
        if (entry->connection)
            entry->connection->batch_entries--;
        done(context, entry->connection, entry->entry, entry->status);
    }
    batch->count = 0;
    batch->iov_count = 0;
    server->is_flushing = false;
}

/* tests/store_fixture.h -- a broker small enough for tests and benches of the store: segment,
 * readers, ring, store, clock.
 *
 * host_set(), host_delete() and host_send() apply a write, append its event and publish it;
 * host_turn_end() ends the turn.
 */
#ifndef WEIR_TESTS_STORE_FIXTURE_H
#define WEIR_TESTS_STORE_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "shm/envelope.h"
#include "shm/store.h"

struct host {
    struct segment segment;
    struct readers *readers;
    struct ring_writer *ring;
    struct store *store;
    struct buffer frame;
    uint64_t now_ms;
    bool hold_ring; /* append and name the position, but do not publish */
};

struct host_options {
    uint64_t ring_bytes;
    uint64_t store_bytes;
    uint64_t generation; /* 0: one that all have */
    struct store_options store;
};

#define HOST_GENERATION 1700000000000000ull

static inline enum weir_status host_open(struct host *host, const struct host_options *options,
                                         struct weir_error *error)
{
    struct segment_options sizes = {.ring_bytes = options->ring_bytes,
                                    .store_bytes = options->store_bytes,
                                    .generation = options->generation != 0 ? options->generation
                                                                           : HOST_GENERATION};
    *host = (struct host){.now_ms = 1700000001000ull};
    buffer_init(&host->frame, 64ul * 1024 * 1024);
    enum weir_status status = segment_create(&host->segment, &sizes, error);
    if (status != WEIR_OK)
        return status;
    host->readers = readers_open(&host->segment);
    host->ring = ring_writer_open(&host->segment);
    if (host->readers == NULL || host->ring == NULL)
        return WEIR_NO_MEMORY;
    status = store_open(&host->store, &host->segment, host->readers, &options->store, error);
    if (status == WEIR_OK)
        segment_publish(&host->segment);
    return status;
}

static inline void host_close(struct host *host)
{
    store_close(host->store);
    ring_writer_close(host->ring);
    readers_close(host->readers);
    segment_close(&host->segment);
    buffer_fini(&host->frame);
}

/* A reader as a gateway has it, in this process. */
static inline enum weir_status host_attach(struct host *host, struct reader *reader,
                                           struct weir_error *error)
{
    uint32_t slot;
    int control_fd, event_fd;
    enum weir_status status =
        readers_attach(host->readers, 1, &slot, &control_fd, &event_fd, error);
    if (status != WEIR_OK)
        return status;
    return reader_attach(reader, &host->segment, slot, dup(control_fd), dup(event_fd), error);
}

/* The event of one write into the ring, as the broker does it. */
static inline enum weir_status host_publish(struct host *host, const struct store_change *change,
                                            enum envelope_event event, struct span id,
                                            struct span data)
{
    struct envelope envelope = {.event = event,
                                .timestamp_ms = change->group.timestamp_ms,
                                .seq = change->group.seq,
                                .epoch = change->group.epoch,
                                .stream_escaped = change->group.stream_escaped,
                                .group_escaped = change->group.group_escaped,
                                .id_escaped = change->id_escaped,
                                .event_type = SPAN_LITERAL("message"),
                                .data = data};
    buffer_clear(&host->frame);
    enum weir_status status = buffer_reserve(&host->frame, envelope_bytes_max(&envelope));
    if (status != WEIR_OK)
        return status;
    struct envelope_layout layout = envelope_encode(host->frame.data, &envelope);
    struct ring_record record = {
        .previous_position = store_group_newest_position(host->store, change->group.offset),
        .group_offset = change->group.offset,
        .group_hash = change->group.hash,
        .item_hash = change->item_hash,
        .seq = change->group.seq,
        .epoch = change->group.epoch,
        .timestamp_ms = change->group.timestamp_ms,
        .kind = event,
        .frame_bytes = layout.frame_bytes,
        .json_offset = layout.json_offset,
        .names_offset = layout.names_offset,
        .data_offset = layout.data_offset,
        .data_bytes = layout.data_bytes,
        .id_bytes = id.data == NULL ? UINT32_MAX : (uint32_t)id.bytes,
    };
    status =
        ring_append(host->ring, &record, span_of(host->frame.data, layout.frame_bytes), id, NULL);
    if (status != WEIR_OK)
        return status;
    store_group_published(host->store, change->group.offset, record.position);
    if (!host->hold_ring)
        ring_publish(host->ring);
    return WEIR_OK;
}

static inline enum weir_status host_set(struct host *host, const struct store_key *key,
                                        struct span value, struct store_change *change)
{
    enum weir_status status = store_set(host->store, key, value, host->now_ms, change);
    if (status != WEIR_OK)
        return status;
    return host_publish(host, change, change->existed ? ENVELOPE_UPDATE : ENVELOPE_CREATE,
                        key->item, change->new_value);
}

static inline enum weir_status host_delete(struct host *host, const struct store_key *key,
                                           struct store_change *change)
{
    enum weir_status status = store_delete(host->store, key, host->now_ms, change);
    if (status != WEIR_OK)
        return status;
    return host_publish(host, change, ENVELOPE_DELETE, key->item, change->old_value);
}

static inline enum weir_status host_send(struct host *host, const struct store_key *key,
                                         struct store_change *change)
{
    enum weir_status status = store_touch(host->store, key, host->now_ms, change);
    if (status != WEIR_OK)
        return status;
    return host_publish(host, change, ENVELOPE_EVENT, key->item, SPAN_LITERAL("1"));
}

static inline uint64_t fixture_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
    return mixed ^ mixed >> 31;
}

/* WEIR_SEED, or a new seed; printed either way, so that a failure can be run again. */
static inline uint64_t fixture_seed(const char *test)
{
    const char *text = getenv("WEIR_SEED");
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : (uint64_t)now.tv_nsec * 2654435761u;
    (void)fprintf(stderr, "%s: WEIR_SEED=%llu\n", test, (unsigned long long)seed);
    return seed;
}

#endif

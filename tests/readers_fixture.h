/* tests/readers_fixture.h -- a segment with a ring and readers, as the broker has them. */
#ifndef WEIR_TESTS_READERS_FIXTURE_H
#define WEIR_TESTS_READERS_FIXTURE_H

#include <criterion/criterion.h>

#include "shm/readers.h"
#include "shm/ring.h"

static struct segment segment;
static struct ring_writer *writer;
static struct readers *readers;

static void open_segment(uint64_t generation)
{
    struct segment_options options = {
        .ring_bytes = 1 << 20, .store_bytes = 1 << 20, .generation = generation};
    struct weir_error error = {0};
    cr_assert_eq(segment_create(&segment, &options, &error), WEIR_OK, "%s", error.text);
    writer = ring_writer_open(&segment);
    readers = readers_open(&segment);
    cr_assert_not_null(writer);
    cr_assert_not_null(readers);
    segment_publish(&segment);
}

static void close_segment(void)
{
    readers_close(readers);
    ring_writer_close(writer);
    segment_close(&segment);
}

/* What a reader is given to attach with. */
struct pair {
    uint32_t slot;
    int control_fd;
    int event_fd;
};

static struct pair attach_broker_side(uint32_t pid)
{
    struct pair pair;
    struct weir_error error = {0};
    cr_assert_eq(readers_attach(readers, pid, &pair.slot, &pair.control_fd, &pair.event_fd, &error),
                 WEIR_OK, "%s", error.text);
    return pair;
}

#endif

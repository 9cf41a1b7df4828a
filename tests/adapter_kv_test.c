/* The kv adapter under the shared suite of tests/adapter_contract.c. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "adapters/kv.h"

static const struct adapter_kind *contract_kind(void)
{
    return &adapter_kv;
}
static void contract_wait(void) {}
static void contract_before_list(void);
static void contract_setup(void);
static void contract_teardown(void);

#include "tests/adapter_contract.c"

static struct segment segment;
static struct readers *readers;
static struct store *store;
static struct ring_writer *ring;

static void contract_setup(void)
{
    struct weir_error error = {0};
    const struct segment_options options = {.ring_bytes = 4 * 1024 * 1024,
                                            .store_bytes = 64 * 1024 * 1024,
                                            .generation = 1700000000000000};
    const struct store_options limits = {
        .items_max = 1000, .groups_max = 100, .empty_groups_max = 100};
    cr_assert_eq(segment_create(&segment, &options, &error), WEIR_OK, "%s", error.text);
    readers = readers_open(&segment);
    ring = ring_writer_open(&segment);
    cr_assert_eq(store_open(&store, &segment, readers, &limits, &error), WEIR_OK, "%s", error.text);
    segment_publish(&segment);
    environment = (struct adapter_environment){.segment = &segment, .store = store};
}

static void contract_teardown(void)
{
    store_close(store);
    ring_writer_close(ring);
    readers_close(readers);
    segment_close(&segment);
}

/* What the engine does with a change: an event in the ring, so that snapshots find the group's
 * order complete. */
static void contract_published(const struct store_change *change)
{
    struct ring_record record = {.previous_position = change->group.newest_position,
                                 .group_offset = change->group.offset,
                                 .group_hash = change->group.hash,
                                 .seq = change->group.seq,
                                 .epoch = change->group.epoch,
                                 .frame_bytes = 1,
                                 .id_bytes = UINT32_MAX};
    cr_assert_eq(ring_append(ring, &record, span_text("x"), (struct span){0}, NULL), WEIR_OK);
    store_group_published(store, change->group.offset, record.position);
}

static void contract_before_list(void)
{
    ring_publish(ring);
}

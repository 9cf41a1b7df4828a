#include "cli/private_store.h"

#include <time.h>

/* An item takes less in the store than in a log or a line, but for small ones, whose blocks, index
 * slots and group records count for more than their names. */
enum { STORE_BYTES_PER_FILE_BYTE = 4 };

enum weir_status private_store_open(struct private_store *private_store, uint64_t file_bytes,
                                    struct weir_error *error)
{
    *private_store = (struct private_store){.segment = {.fd = -1}};
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    uint64_t store_bytes = STORE_BYTES_MAX;
    if (file_bytes > 0 &&
        file_bytes < (STORE_BYTES_MAX - 4 * STORE_BYTES_MIN) / STORE_BYTES_PER_FILE_BYTE)
        store_bytes = file_bytes * STORE_BYTES_PER_FILE_BYTE + 4 * STORE_BYTES_MIN;
    private_store->generation = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    const struct segment_options segment = {.ring_bytes = 4096, /* no event is ever put into it */
                                            .store_bytes = store_bytes,
                                            .generation = private_store->generation};
    enum weir_status status = segment_create(&private_store->segment, &segment, error);
    if (status != WEIR_OK)
        return status;
    private_store->readers = readers_open(&private_store->segment);
    if (private_store->readers == NULL)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a store");
    const struct store_options store = {
        .items_max = UINT64_MAX, .groups_max = UINT64_MAX, .empty_groups_max = UINT32_MAX};
    return store_open(&private_store->store, &private_store->segment, private_store->readers,
                      &store, error);
}

void private_store_close(struct private_store *private_store)
{
    store_close(private_store->store);
    if (private_store->readers != NULL)
        readers_close(private_store->readers);
    segment_close(&private_store->segment);
}

/* cli/private_store.h -- a store of this process alone, for items on their way from or to a log.
 *
 * Process and thread: one. Memory: a segment of its own; only pages that are used count.
 */
#ifndef WEIR_CLI_PRIVATE_STORE_H
#define WEIR_CLI_PRIVATE_STORE_H

#include "shm/store.h"

struct private_store {
    struct segment segment;
    struct readers *readers;
    struct store *store;
    uint64_t generation; /* the lowest epoch it gives */
};

/* Room for the items of `file_bytes` of log, snapshots or JSON lines; 0: not known, the most there can
 * be. */
enum weir_status private_store_open(struct private_store *private_store, uint64_t file_bytes,
                                    struct weir_error *error) WEIR_MUST_CHECK;
/* Once, whether opening was a success or not. */
void private_store_close(struct private_store *private_store);

#endif

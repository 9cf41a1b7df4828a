#include "gateway/mapping.h"

#include <stdlib.h>
#include <unistd.h>

enum weir_status mapping_open(struct mapping **mapping, uint32_t slot, const int fds[MAPPING_FDS],
                              struct weir_error *error)
{
    struct mapping *made = calloc(1, sizeof *made);
    if (made == NULL) {
        for (unsigned i = 0; i < MAPPING_FDS; i++)
            (void)close(fds[i]);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for a mapping");
    }
    enum weir_status status = segment_attach(&made->segment, fds[0], error);
    if (status != WEIR_OK) {
        for (unsigned i = 0; i < MAPPING_FDS; i++)
            (void)close(fds[i]);
        free(made);
        return status;
    }
    status = reader_attach(&made->reader, &made->segment, slot, fds[2], fds[1], error);
    if (status != WEIR_OK) {
        (void)close(fds[1]);
        (void)close(fds[2]);
        segment_close(&made->segment);
        free(made);
        return status;
    }
    status = ring_reader_attach(&made->ring, &made->segment);
    if (status != WEIR_OK)
        (void)weir_fail(error, status, "the segment's ring cannot be used");
    if (status == WEIR_OK) {
        made->store = store_reader_open(&made->segment, &made->reader);
        if (made->store == NULL)
            status = weir_fail(error, WEIR_NO_MEMORY, "the segment's store cannot be opened");
    }
    if (status != WEIR_OK) {
        mapping_close(made);
        return status;
    }
    made->generation = segment_generation(&made->segment);
    made->hash_seed = segment_hash_seed(&made->segment);
    *mapping = made;
    return WEIR_OK;
}

bool mapping_read_from(struct mapping *mapping, uint64_t position)
{
    if (position > ring_published(&mapping->ring))
        return false;
    mapping->ring.position = position;
    return true;
}

void mapping_close(struct mapping *mapping)
{
    if (mapping == NULL)
        return;
    if (mapping->store != NULL)
        store_reader_close(mapping->store);
    reader_detach(&mapping->reader);
    segment_close(&mapping->segment);
    free(mapping);
}

#include "gateway/wanted.h"

#include <stdlib.h>

struct wanted *wanted_open(void)
{
    return calloc(1, sizeof(struct wanted));
}

void wanted_close(struct wanted *wanted)
{
    free(wanted);
}

void wanted_add(struct wanted *wanted, uint64_t group_hash)
{
    unsigned bit = reader_wanted_bit(group_hash);
    weir_assert(wanted->counts[bit] < UINT32_MAX);
    if (wanted->counts[bit]++ == 0 && wanted->reader != NULL)
        reader_want(wanted->reader, bit, true);
}

void wanted_remove(struct wanted *wanted, uint64_t group_hash)
{
    unsigned bit = reader_wanted_bit(group_hash);
    weir_assert(wanted->counts[bit] > 0);
    if (--wanted->counts[bit] == 0 && wanted->reader != NULL)
        reader_want(wanted->reader, bit, false);
}

void wanted_clear(struct wanted *wanted)
{
    for (unsigned bit = 0; bit < READER_WANTED_BITS; bit++) {
        wanted->counts[bit] = 0;
        if (wanted->reader != NULL)
            reader_want(wanted->reader, bit, false);
    }
}

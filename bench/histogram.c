#include "bench/histogram.h"

enum { STEPS = 1 << HISTOGRAM_STEP_BITS };

static unsigned bucket_of(uint64_t value)
{
    if (value < STEPS)
        return (unsigned)value;
    if (value >> HISTOGRAM_VALUE_BITS != 0)
        return HISTOGRAM_BUCKETS - 1;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - HISTOGRAM_STEP_BITS;
    return shift * STEPS + (unsigned)(value >> shift);
}

/* The largest value that is counted there. */
static uint64_t bucket_end(unsigned bucket)
{
    if (bucket < STEPS)
        return bucket;
    unsigned shift = bucket / STEPS - 1;
    return ((uint64_t)(bucket % STEPS + STEPS + 1) << shift) - 1;
}

/* One writer: no read-modify-write is needed. */
static void add(_Atomic uint64_t *to, uint64_t more)
{
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + more,
                          memory_order_relaxed);
}

void histogram_add(struct histogram *histogram, uint64_t value)
{
    add(&histogram->counts[bucket_of(value)], 1);
    add(&histogram->sum, value);
}

void histogram_merge(struct histogram *histogram, const struct histogram *other)
{
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        add(&histogram->counts[i], other->counts[i]);
    add(&histogram->sum, other->sum);
}

void histogram_subtract(struct histogram *histogram, const struct histogram *earlier)
{
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        add(&histogram->counts[i], 0 - earlier->counts[i]);
    add(&histogram->sum, 0 - earlier->sum);
}

uint64_t histogram_count(const struct histogram *histogram)
{
    uint64_t count = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        count += histogram->counts[i];
    return count;
}

uint64_t histogram_percentile(const struct histogram *histogram, double share)
{
    double wanted = share * (double)histogram_count(histogram);
    uint64_t seen = 0, value = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (histogram->counts[i] == 0)
            continue;
        seen += histogram->counts[i];
        value = bucket_end(i);
        if ((double)seen >= wanted)
            break;
    }
    return value;
}

double histogram_mean(const struct histogram *histogram)
{
    uint64_t count = histogram_count(histogram);
    return count == 0 ? 0 : (double)histogram->sum / (double)count;
}

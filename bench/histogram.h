/* bench/histogram.h -- latencies in little memory: buckets that grow with the value (log-linear), so
 * that a percentile is at most 1/128 too large whatever its size.
 *
 * Process:  one writer; any process that maps the memory may copy it meanwhile and sees each count
 *           as it was at some moment.
 * Memory:   the caller's; all zero is empty.
 * Units:    the caller's, nanoseconds in the benches. Values of 2^42 and more count as the largest.
 */
#ifndef WEIR_BENCH_HISTOGRAM_H
#define WEIR_BENCH_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

enum {
    HISTOGRAM_STEP_BITS = 7, /* 128 buckets for each doubling */
    HISTOGRAM_VALUE_BITS = 42,
    HISTOGRAM_BUCKETS = (HISTOGRAM_VALUE_BITS - HISTOGRAM_STEP_BITS + 1) << HISTOGRAM_STEP_BITS,
};

struct histogram {
    _Atomic uint64_t counts[HISTOGRAM_BUCKETS];
    _Atomic uint64_t sum;
};

void histogram_add(struct histogram *histogram, uint64_t value);
/* Add every count of `other`; or take them away, where `other` is an earlier copy of the same. */
void histogram_merge(struct histogram *histogram, const struct histogram *other);
void histogram_subtract(struct histogram *histogram, const struct histogram *earlier);
uint64_t histogram_count(const struct histogram *histogram);
/* The least bucket end that `share` (0 to 1) of the values do not exceed; 0 when it is empty. */
uint64_t histogram_percentile(const struct histogram *histogram, double share);
double histogram_mean(const struct histogram *histogram);

#endif

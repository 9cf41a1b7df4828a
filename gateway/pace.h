/* gateway/pace.h -- how often a topic has events: a mean that forgets.
 *
 * A gap of g ms with k events counts as k / g with the weight g / (g + PACE_WINDOW_MS): after a long
 * pause what was before counts for nothing, and one burst of events does not make a rate yet.
 *
 * Process:  any; belongs to one thread.
 * Units:    events a second; times in ns of one clock.
 */
#ifndef WEIR_GATEWAY_PACE_H
#define WEIR_GATEWAY_PACE_H

#include <stdint.h>

#define PACE_WINDOW_MS 20.0

struct pace {
    uint64_t noted_ns; /* 0: never */
    double per_s;
};

static inline void pace_note(struct pace *pace, uint32_t events, uint64_t now_ns)
{
    if (pace->noted_ns != 0 && now_ns > pace->noted_ns) {
        double gap_ms = (double)(now_ns - pace->noted_ns) / 1e6;
        double per_s = 1e3 * events / gap_ms;
        pace->per_s += (per_s - pace->per_s) * gap_ms / (gap_ms + PACE_WINDOW_MS);
    }
    pace->noted_ns = now_ns;
}

#endif

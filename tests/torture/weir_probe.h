/* tests/torture/weir_probe.h -- what weir finds in a spoiled directory, without starting it:
 * wal_recover() in this process, and its records compared with those of the directory as it was.
 *
 * Process and thread: one. Memory: one number for each record of the directory. */
#ifndef WEIR_TESTS_TORTURE_WEIR_PROBE_H
#define WEIR_TESTS_TORTURE_WEIR_PROBE_H

#include "tests/torture/campaign.h"

/* For campaign.truth and campaign.probe; campaign.own is a struct weir_probe. */
struct weir_probe {
    uint64_t *sums; /* of the first 1, 2, ... records */
    size_t count, capacity;
    uint64_t cut_bytes; /* of an interrupted write the directory has anyway */
};

bool weir_probe_truth(struct campaign *campaign, struct image *image);
enum damage_outcome weir_probe_run(struct campaign *campaign, const struct image *image,
                                   const struct damage *damage, char why[192]);
void weir_probe_fini(struct weir_probe *probe);

#endif

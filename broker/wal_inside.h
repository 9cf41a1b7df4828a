/* broker/wal_inside.h -- what recovery and repair share beyond their public header. */
#ifndef WEIR_BROKER_WAL_INSIDE_H
#define WEIR_BROKER_WAL_INSIDE_H

#include "broker/wal_recovery.h"

/* As wal_recover(), as if the log had ended at `offset` of `segment`, which was cut off there; 0: before
 * that segment. */
enum weir_status wal_recover_up_to(const struct wal_recovery_options *options, uint64_t segment,
                                   uint64_t offset, struct wal_recovered *recovered,
                                   struct weir_error *error) WEIR_MUST_CHECK;

#endif

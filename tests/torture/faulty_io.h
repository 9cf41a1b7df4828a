/* tests/torture/faulty_io.h -- the system calls of log and snapshots (broker/wal_io.h) with a fault plan
 * before them. Which point a call belongs to follows from the name of the file it is made on. */
#ifndef WEIR_TESTS_TORTURE_FAULTY_IO_H
#define WEIR_TESTS_TORTURE_FAULTY_IO_H

#include "broker/wal_io.h"
#include "tests/torture/power.h"

enum { FAULTY_IO_FDS_MAX = 1024 };

struct faulty_io {
    struct wal_io io; /* what the server is given */
    const struct wal_io *inner;
    struct fault_plan *plan;
    struct power *power;               /* NULL: the power stays on */
    uint8_t points[FAULTY_IO_FDS_MAX]; /* by descriptor: enum fault_point of its writes */
};

void faulty_io_init(struct faulty_io *faulty, const struct wal_io *inner, struct fault_plan *plan,
                    struct power *power);

#endif

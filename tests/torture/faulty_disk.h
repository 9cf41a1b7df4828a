/* tests/torture/faulty_disk.h -- a broker's disk with a fault plan before it: the calls of
 * faulty_io.h, and a device that has faulty_device.h (tests/) do what the plan says.
 *
 * Process: the server under test. Thread: the device's calls in the loop's. */
#ifndef WEIR_TESTS_TORTURE_FAULTY_DISK_H
#define WEIR_TESTS_TORTURE_FAULTY_DISK_H

#include "broker/durability.h"
#include "tests/torture/faulty_io.h"

struct faulty_disk {
    struct fault_plan plan;
    struct power *power; /* NULL: it stays on */
    struct faulty_io io;
    struct wal_device device;
    struct wal_device *back; /* does one thing wrong when told, and closes the real one */
    bool is_armed;
};

/* `limbo` (NULL: the power stays on): where removed files wait, see power.h. False: the text is no plan,
 * or there is no memory. */
bool faulty_disk_init(struct faulty_disk *disk, const char *plan, const char *limbo);
/* What broker_open() takes. */
struct durability_seam faulty_disk_seam(struct faulty_disk *disk);

#endif

/* tests/sim/disk.h -- the broker's disk: files in memory, and, in place of broker/background.c and
 * broker/wal_device.c, a thread and a device that do one thing at a time when the world says so.
 *
 *   wal_device_write() --> [request, request]  --disk_run()--> bytes in the file, done()
 *   background_start() --> [job, job, ...]     --disk_run()--> run(), done()
 *
 * disk_crash() is the end of the process: of what was under way nothing, a part or all is in the
 * files, and nothing reaches them any more until disk_restart(). When the host goes with it, of each
 * block that was not synced either what was synced last or what was written is there.
 *
 * Process and thread: one; the disk of the running broker is found without a context.
 */
#ifndef WEIR_TESTS_SIM_DISK_H
#define WEIR_TESTS_SIM_DISK_H

#include "broker/wal_device.h"
#include "tests/sim/scheduler.h"
#include "tests/wal_faults.h"
#include "tests/wal_memory.h"

struct sim_disk {
    struct scheduler *scheduler;
    struct wal_memory memory;
    struct wal_faults faults; /* on top of it: the end of the process */
    struct wal_io io;         /* on top of that, the broker's: notes what is synced */
    struct wal_memory_file synced[WAL_MEMORY_FILES]; /* what a power loss leaves of `memory` */
    uint64_t boots;
    struct wal_device device;
    struct wal_device_request *requests[WAL_DEVICE_REQUESTS_MAX];
    unsigned request_count;
    struct background_job *jobs[BACKGROUND_JOBS_MAX];
    unsigned job_count;
    uint32_t failing_percent; /* of the device's writes; never two in a row */
    bool has_failed;          /* the last one */
    bool lies;                /* planted: says it has written what it has not */
};

void disk_init(struct sim_disk *disk, struct scheduler *scheduler);
void disk_fini(struct sim_disk *disk);
/* Finish one request or one job. False: there is none. */
bool disk_run(struct sim_disk *disk);
void disk_crash(struct sim_disk *disk, bool with_host);
void disk_restart(struct sim_disk *disk);

#endif

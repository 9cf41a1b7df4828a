#include "tests/sim/disk.h"

/* What broker/durability.c opens has no context to be found by. */
static struct sim_disk *running;

void disk_init(struct sim_disk *disk, struct scheduler *scheduler)
{
    *disk = (struct sim_disk){.scheduler = scheduler};
    wal_memory_init(&disk->memory);
    wal_faults_init(&disk->faults, &disk->memory.io);
    disk->faults.is_crash = true;
    running = disk;
}

void disk_fini(struct sim_disk *disk)
{
    wal_memory_fini(&disk->memory);
}

/* ---- the device ---- */

static void disk_write(struct sim_disk *disk, const struct wal_device_request *request,
                       size_t bytes)
{
    if (!disk->lies)
        (void)wal_memory_write(&disk->memory, request->fd, request->data, bytes, request->offset);
}

/* Whole blocks at the front, as a write that was cut short leaves them. */
static size_t disk_part(struct sim_disk *disk, size_t bytes)
{
    size_t blocks = bytes / 4096;
    return (size_t)sim_below(disk->scheduler, (uint32_t)blocks) * 4096;
}

static void disk_finish_request(struct sim_disk *disk)
{
    struct wal_device_request *request = disk->requests[0];
    disk->request_count--;
    memmove(disk->requests, disk->requests + 1, disk->request_count * sizeof *disk->requests);
    int32_t result = (int32_t)request->bytes;
    bool fails = !disk->has_failed && sim_chance(disk->scheduler, disk->failing_percent);
    disk->has_failed = fails;
    if (fails) {
        size_t part = disk_part(disk, request->bytes);
        disk_write(disk, request, part);
        result = part > 0 && sim_chance(disk->scheduler, 50) ? (int32_t)part : -EIO;
    } else {
        disk_write(disk, request, request->bytes);
    }
    sim_note(disk->scheduler, "disk: written", request->offset, request->bytes, (uint64_t)result);
    request->in_flight = false;
    request->done(request, result);
}

static void disk_start(struct wal_device *device, struct wal_device_request *request)
{
    request->device = device;
    weir_assert(running->request_count < WAL_DEVICE_REQUESTS_MAX);
    running->requests[running->request_count++] = request;
}

enum weir_status wal_device_open(struct wal_device **device, struct loop *loop,
                                 struct weir_error *error)
{
    (void)loop;
    (void)error;
    running->device = (struct wal_device){.start = disk_start};
    *device = &running->device;
    return WEIR_OK;
}

void wal_device_close(struct wal_device *device)
{
    (void)device;
}

void wal_device_use_buffers(struct wal_device *device, const struct iovec *buffers, unsigned count)
{
    (void)device;
    (void)buffers;
    (void)count;
}

void wal_device_use_file(struct wal_device *device, int fd)
{
    (void)device;
    (void)fd;
}

void wal_device_write(struct wal_device *device, struct wal_device_request *request, int fd,
                      const char *data, size_t bytes, uint64_t offset, bool is_synced)
{
    weir_assert(!request->in_flight);
    request->in_flight = true;
    request->fd = fd;
    request->data = data;
    request->bytes = bytes;
    request->offset = offset;
    request->is_synced = is_synced;
    device->start(device, request);
}

/* ---- the thread ---- */

static void disk_finish_job(struct sim_disk *disk)
{
    struct background_job *job = disk->jobs[0];
    disk->job_count--;
    memmove(disk->jobs, disk->jobs + 1, disk->job_count * sizeof(struct background_job *));
    sim_note(disk->scheduler, "disk: job", disk->job_count, 0, 0);
    job->run(job);
    job->in_flight = false;
    job->done(job);
}

enum weir_status background_open(struct background **background, struct loop *loop,
                                 const char *name, struct weir_error *error)
{
    (void)loop;
    (void)name;
    (void)error;
    *background = (struct background *)running;
    return WEIR_OK;
}

void background_close(struct background *background)
{
    struct sim_disk *disk = (struct sim_disk *)background;
    while (disk->job_count > 0)
        disk_finish_job(disk);
}

void background_start(struct background *background, struct background_job *job)
{
    struct sim_disk *disk = (struct sim_disk *)background;
    weir_assert(disk->job_count < BACKGROUND_JOBS_MAX);
    job->in_flight = true;
    disk->jobs[disk->job_count++] = job;
}

/* ---- both ---- */

bool disk_run(struct sim_disk *disk)
{
    if (disk->request_count == 0 && disk->job_count == 0)
        return false;
    bool takes_job =
        disk->request_count == 0 || (disk->job_count > 0 && sim_chance(disk->scheduler, 30));
    if (takes_job)
        disk_finish_job(disk);
    else
        disk_finish_request(disk);
    return true;
}

void disk_crash(struct sim_disk *disk)
{
    for (unsigned i = 0; i < disk->request_count; i++) {
        const struct wal_device_request *request = disk->requests[i];
        uint32_t fate = sim_below(disk->scheduler, 3);
        if (fate == 1)
            disk_write(disk, request, disk_part(disk, request->bytes));
        if (fate == 2)
            disk_write(disk, request, request->bytes);
    }
    disk->request_count = 0;
    disk->faults.has_fired = true;
}

void disk_restart(struct sim_disk *disk)
{
    memset(disk->memory.fds, 0, sizeof disk->memory.fds);
    disk->faults.has_fired = false;
    disk->has_failed = false;
}

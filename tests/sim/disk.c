#include "tests/sim/disk.h"

#include <stdio.h>

#include "broker/wal_life.h"

/* What broker/durability.c opens has no context to be found by. */
static struct sim_disk *running;

/* ---- what is synced ---- */

static void file_copy(struct wal_memory_file *to, const struct wal_memory_file *from)
{
    int result = wal_memory_resize(to, from->bytes);
    weir_assert(result == 0);
    if (from->bytes > 0)
        memcpy(to->data, from->data, from->bytes);
}

static int on_sync(void *context, int fd)
{
    int result = wal_faults_sync(context, fd);
    size_t file = result == 0 ? running->memory.fds[fd] : 0;
    if (file > 0)
        file_copy(&running->synced[file - 1], &running->memory.files[file - 1]);
    return result;
}

static int on_remove(void *context, const char *path)
{
    struct wal_memory_file *file = wal_memory_find(&running->memory, path);
    int result = wal_faults_remove(context, path);
    if (result == 0 && file != NULL)
        wal_memory_drop(&running->synced[file - running->memory.files]);
    return result;
}

static int on_rename(void *context, const char *from, const char *to)
{
    struct wal_memory_file *old = wal_memory_find(&running->memory, to);
    int result = wal_faults_rename(context, from, to);
    if (result == 0 && old != NULL)
        wal_memory_drop(&running->synced[old - running->memory.files]);
    return result;
}

static void disk_cut_power(struct sim_disk *disk)
{
    enum { BLOCK = 4096 };
    uint32_t percent = sim_below(disk->scheduler, 3) * 50; /* of the blocks were written */
    disk->boots++;
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++) {
        struct wal_memory_file *file = &disk->memory.files[i], *synced = &disk->synced[i];
        for (size_t at = 0; at < file->bytes; at += BLOCK) {
            size_t bytes = file->bytes - at < BLOCK ? file->bytes - at : BLOCK;
            bool is_known = at + bytes <= synced->bytes;
            if ((is_known && memcmp(file->data + at, synced->data + at, bytes) == 0) ||
                sim_chance(disk->scheduler, percent))
                continue;
            memset(file->data + at, 0, bytes);
            if (is_known)
                memcpy(file->data + at, synced->data + at, bytes);
        }
        if (file->name[0] != '\0')
            file_copy(synced, file);
    }
}

void __wrap_wal_life_read_boot(char boot[WAL_LIFE_BOOT_BYTES]);
void __wrap_wal_life_read_boot(char boot[WAL_LIFE_BOOT_BYTES])
{
    memset(boot, 0, WAL_LIFE_BOOT_BYTES);
    (void)snprintf(boot, WAL_LIFE_BOOT_BYTES, "boot-%llu", (unsigned long long)running->boots);
}

void disk_init(struct sim_disk *disk, struct scheduler *scheduler)
{
    *disk = (struct sim_disk){.scheduler = scheduler};
    wal_memory_init(&disk->memory);
    wal_faults_init(&disk->faults, &disk->memory.io);
    disk->faults.is_crash = true;
    disk->io = disk->faults.io;
    disk->io.sync = on_sync;
    disk->io.remove = on_remove;
    disk->io.rename = on_rename;
    running = disk;
}

void disk_fini(struct sim_disk *disk)
{
    wal_memory_fini(&disk->memory);
    for (size_t i = 0; i < WAL_MEMORY_FILES; i++)
        wal_memory_drop(&disk->synced[i]);
}

/* ---- the device ---- */

static void disk_write(struct sim_disk *disk, const struct wal_device_request *request,
                       size_t bytes, bool is_finished)
{
    if (disk->lies)
        return;
    (void)wal_memory_write(&disk->memory, request->fd, request->data, bytes, request->offset);
    struct wal_memory_file *synced = &disk->synced[disk->memory.fds[request->fd] - 1];
    if (is_finished && request->is_synced && request->offset + bytes <= synced->bytes)
        memcpy(synced->data + request->offset, request->data, bytes);
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
        bool is_short = part > 0 && sim_chance(disk->scheduler, 50);
        disk_write(disk, request, part, is_short);
        result = is_short ? (int32_t)part : -EIO;
    } else {
        disk_write(disk, request, request->bytes, true);
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

void disk_crash(struct sim_disk *disk, bool with_host)
{
    for (unsigned i = 0; i < disk->request_count; i++) {
        const struct wal_device_request *request = disk->requests[i];
        uint32_t fate = sim_below(disk->scheduler, 3);
        if (fate == 1)
            disk_write(disk, request, disk_part(disk, request->bytes), false);
        if (fate == 2)
            disk_write(disk, request, request->bytes, false);
    }
    disk->request_count = 0;
    disk->faults.has_fired = true;
    if (with_host)
        disk_cut_power(disk);
}

void disk_restart(struct sim_disk *disk)
{
    memset(disk->memory.fds, 0, sizeof disk->memory.fds);
    disk->faults.has_fired = false;
    disk->has_failed = false;
}

#include "tests/faulty_device.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct faulty_device;

/* A request on its way through. */
struct faulty_slot {
    struct wal_device_request inner;
    struct wal_device_request *outer; /* NULL: free */
    struct faulty_device *device;
    int32_t result; /* told instead of the inner one's */
    bool has_result;
    bool kills;
};

struct faulty_device {
    struct wal_device device; /* first: the table is the device */
    struct wal_device *inner;
    struct faulty_slot slots[WAL_DEVICE_REQUESTS_MAX];
    struct faulty_plan plans[FAULTY_PLANS_MAX];
    unsigned plan_count;
    struct faulty_figures figures;
    uint64_t random;
};

static uint64_t next_random(struct faulty_device *faulty)
{
    uint64_t value = faulty->random += 0x9e3779b97f4a7c15ull;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ value >> 27) * 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

static _Noreturn void kill_self(void)
{
    (void)kill(getpid(), SIGKILL);
    for (;;)
        (void)pause();
}

/* ---- what reaches the file ---- */

/* The same file without O_DIRECT, which would not take parts of a block. */
static int open_for_parts(int fd)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_CLOEXEC);
}

static void write_part(int fd, const struct wal_device_request *request, size_t from, size_t to)
{
    while (from < to) { /* every pass moves some, or is the last */
        ssize_t moved =
            pwrite(fd, request->data + from, to - from, (off_t)(request->offset + from));
        if (moved <= 0)
            return;
        from += (size_t)moved;
    }
}

static void write_first(const struct wal_device_request *request, size_t bytes)
{
    int fd = open_for_parts(request->fd);
    if (fd < 0)
        return;
    write_part(fd, request, 0, bytes);
    (void)fdatasync(fd); /* so that O_DIRECT reads and writes behind it agree */
    (void)close(fd);
}

/* The shapes damage takes: the beginning, any subset, all but one, only one. */
static bool sector_is_written(struct faulty_device *faulty, unsigned shape, size_t chosen,
                              size_t sector)
{
    switch (shape) {
    case 0:
        return sector < chosen;
    case 1:
        return (next_random(faulty) & 1) != 0;
    case 2:
        return sector != chosen;
    default:
        return sector == chosen;
    }
}

static void write_some_sectors(struct faulty_device *faulty,
                               const struct wal_device_request *request)
{
    int fd = open_for_parts(request->fd);
    if (fd < 0)
        return;
    /* Sectors are the file's: the first and the last may be cut by where the write lies. */
    size_t lead = request->offset % FAULTY_SECTOR_BYTES;
    size_t sectors = (lead + request->bytes + FAULTY_SECTOR_BYTES - 1) / FAULTY_SECTOR_BYTES;
    unsigned shape = (unsigned)(next_random(faulty) % 4);
    size_t chosen = sectors ? (size_t)(next_random(faulty) % sectors) : 0;
    for (size_t sector = 0; sector < sectors; sector++) {
        size_t from = sector == 0 ? 0 : sector * FAULTY_SECTOR_BYTES - lead;
        size_t to = (sector + 1) * FAULTY_SECTOR_BYTES - lead;
        if (sector_is_written(faulty, shape, chosen, sector))
            write_part(fd, request, from, to < request->bytes ? to : request->bytes);
    }
    (void)fdatasync(fd);
    (void)close(fd);
}

/* ---- requests ---- */

static void faulty_done(struct wal_device_request *inner, int32_t result)
{
    struct faulty_slot *slot = inner->owner;
    struct wal_device_request *outer = slot->outer;
    if (slot->kills)
        kill_self();
    if (slot->has_result)
        result = slot->result;
    slot->outer = NULL;
    outer->in_flight = false;
    outer->done(outer, result);
}

static struct faulty_slot *take_slot(struct faulty_device *faulty,
                                     struct wal_device_request *request)
{
    struct faulty_slot *slot = faulty->slots;
    while (slot < faulty->slots + WAL_DEVICE_REQUESTS_MAX && slot->outer)
        slot++;
    weir_assert(slot < faulty->slots + WAL_DEVICE_REQUESTS_MAX);
    *slot = (struct faulty_slot){
        .inner = {.done = faulty_done, .owner = slot}, .outer = request, .device = faulty};
    return slot;
}

static const struct faulty_plan *find_plan(const struct faulty_device *faulty, uint64_t number)
{
    for (unsigned index = 0; index < faulty->plan_count; index++) {
        const struct faulty_plan *plan = &faulty->plans[index];
        uint64_t count = plan->count ? plan->count : 1;
        if (number >= plan->at && number - plan->at < count)
            return plan;
    }
    return NULL;
}

static void pass_on(struct faulty_slot *slot, const struct wal_device_request *request)
{
    struct wal_device *inner = slot->device->inner;
    wal_device_write(inner, &slot->inner, request->fd, request->data, request->bytes,
                     request->offset, request->is_synced);
}

/* done() has to come from the loop: a write of nothing brings the result. */
static void answer(struct faulty_slot *slot, const struct wal_device_request *request,
                   int32_t result)
{
    slot->has_result = true;
    slot->result = result;
    wal_device_write(slot->device->inner, &slot->inner, request->fd, request->data, 0, 0, false);
}

static void misbehave(struct faulty_device *faulty, struct faulty_slot *slot,
                      const struct faulty_plan *plan, const struct wal_device_request *request)
{
    size_t bytes = plan->argument < request->bytes ? (size_t)plan->argument : request->bytes;
    faulty->figures.faults++;
    switch (plan->kind) {
    case FAULTY_ERROR:
        answer(slot, request, -(int32_t)plan->argument);
        return;
    case FAULTY_TORN:
        write_some_sectors(faulty, request);
        answer(slot, request, -(int32_t)plan->argument);
        return;
    case FAULTY_SHORT:
        write_first(request, bytes);
        answer(slot, request, (int32_t)bytes);
        return;
    case FAULTY_KILL_BEFORE:
        kill_self();
    case FAULTY_KILL_TORN:
        write_some_sectors(faulty, request);
        kill_self();
    case FAULTY_KILL_AFTER:
        slot->kills = true;
        pass_on(slot, request);
        return;
    }
}

static void faulty_start(struct wal_device *device, struct wal_device_request *request)
{
    struct faulty_device *faulty = (struct faulty_device *)device;
    struct faulty_slot *slot = take_slot(faulty, request);
    uint64_t number = faulty->figures.writes++;
    const struct faulty_plan *plan = find_plan(faulty, number);
    request->device = device;
    if (plan)
        misbehave(faulty, slot, plan, request);
    else
        pass_on(slot, request);
}

static void faulty_use_buffers(struct wal_device *device, const struct iovec *buffers,
                               unsigned count)
{
    wal_device_use_buffers(((struct faulty_device *)device)->inner, buffers, count);
}

static void faulty_use_file(struct wal_device *device, int fd)
{
    wal_device_use_file(((struct faulty_device *)device)->inner, fd);
}

static void faulty_close(struct wal_device *device)
{
    wal_device_close(((struct faulty_device *)device)->inner);
    free(device);
}

struct wal_device *faulty_device_open(struct wal_device *inner, uint64_t seed)
{
    struct faulty_device *opened = calloc(1, sizeof *opened);
    if (!opened)
        return NULL;
    opened->device = (struct wal_device){
        .start = faulty_start,
        .use_buffers = faulty_use_buffers,
        .use_file = faulty_use_file,
        .close = faulty_close,
    };
    opened->inner = inner;
    opened->random = seed;
    return &opened->device;
}

void faulty_device_plan(struct wal_device *device, const struct faulty_plan *plans, unsigned count)
{
    struct faulty_device *faulty = (struct faulty_device *)device;
    weir_assert(count <= FAULTY_PLANS_MAX);
    for (unsigned index = 0; index < count; index++)
        faulty->plans[index] = plans[index];
    faulty->plan_count = count;
    faulty->figures = (struct faulty_figures){0};
}

struct faulty_figures faulty_device_figures(const struct wal_device *device)
{
    return ((const struct faulty_device *)device)->figures;
}

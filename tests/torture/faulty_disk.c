#include "tests/torture/faulty_disk.h"

#include <errno.h>
#include <stdlib.h>

#include "tests/faulty_device.h"
#include "tests/torture/child.h"

enum { SHORT_UNIT_BYTES = 4096 };

static struct faulty_disk *disk_of(struct wal_device *device)
{
    return (struct faulty_disk *)((char *)device - offsetof(struct faulty_disk, device));
}

/* What the device behind is to do with this request. */
static struct faulty_plan plan_of(struct faulty_disk *disk, enum fault_action action,
                                  const struct wal_device_request *request)
{
    struct faulty_plan plan = {.kind = FAULTY_ERROR};
    switch (action) {
    case FAULT_ACTION_BEFORE:
        plan.kind = FAULTY_KILL_BEFORE;
        break;
    case FAULT_ACTION_AFTER:
        plan.kind = FAULTY_KILL_AFTER;
        break;
    case FAULT_ACTION_TORN:
        plan.kind = FAULTY_KILL_TORN;
        break;
    case FAULT_ACTION_SHORT:
        plan.kind = FAULTY_SHORT;
        plan.argument = fault_short_bytes(&disk->plan, request->bytes, SHORT_UNIT_BYTES);
        break;
    case FAULT_ACTION_HALF:
        plan.kind = FAULTY_TORN;
        plan.argument = EIO;
        break;
    case FAULT_ACTION_ENOSPC:
        plan.argument = ENOSPC;
        break;
    case FAULT_ACTION_LIE: /* the errno is told with its sign turned: as bytes written */
        plan.argument = (uint64_t)(-(int64_t)request->bytes);
        break;
    default:
        plan.argument = EIO;
        break;
    }
    return plan;
}

static void disk_start(struct wal_device *device, struct wal_device_request *request)
{
    struct faulty_disk *disk = disk_of(device);
    enum fault_action action = fault_plan_next(&disk->plan, FAULT_POINT_WRITE);
    if (action == FAULT_ACTION_CUT) {
        fault_tear(&disk->plan, request->fd, request->data, request->bytes, request->offset);
        if (disk->power)
            power_cut(disk->power);
        fault_strike();
    }
    if (action != FAULT_ACTION_NONE) {
        struct faulty_plan plan = plan_of(disk, action, request);
        faulty_device_plan(disk->back, &plan, 1);
    } else if (disk->is_armed) {
        faulty_device_plan(disk->back, NULL, 0);
    }
    disk->is_armed = action != FAULT_ACTION_NONE;
    if (!request->is_synced)
        power_writing(disk->power, request->fd, request->bytes, request->offset);
    disk->back->start(disk->back, request);
}

static void disk_use_buffers(struct wal_device *device, const struct iovec *buffers, unsigned count)
{
    wal_device_use_buffers(disk_of(device)->back, buffers, count);
}

static void disk_use_file(struct wal_device *device, int fd)
{
    wal_device_use_file(disk_of(device)->back, fd);
}

static void disk_close(struct wal_device *device)
{
    wal_device_close(disk_of(device)->back);
}

static struct wal_device *disk_wrap(void *context, struct wal_device *device)
{
    struct faulty_disk *disk = context;
    disk->back = faulty_device_open(device, disk->plan.random);
    if (!disk->back)
        abort();
    disk->device = (struct wal_device){.start = disk_start,
                                       .use_buffers = disk_use_buffers,
                                       .use_file = disk_use_file,
                                       .close = disk_close};
    return &disk->device;
}

bool faulty_disk_init(struct faulty_disk *disk, const char *plan, const char *limbo)
{
    *disk = (struct faulty_disk){0};
    if (!fault_plan_init(&disk->plan, plan))
        return false;
    disk->plan.note_fd = CHILD_NOTE_FD;
    bool has_cut = false;
    for (unsigned index = 0; index < disk->plan.part_count; index++)
        has_cut |= disk->plan.parts[index].action == FAULT_ACTION_CUT;
    if (limbo && has_cut && !(disk->power = power_open(&disk->plan, limbo)))
        return false;
    faulty_io_init(&disk->io, &wal_io_system, &disk->plan, disk->power);
    return true;
}

struct durability_seam faulty_disk_seam(struct faulty_disk *disk)
{
    return (struct durability_seam){.io = &disk->io.io, .wrap_device = disk_wrap, .context = disk};
}

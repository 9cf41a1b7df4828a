#include "tests/torture/power.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 512, SECTOR_BYTES = 512, MEMORY_BYTES_MAX = 512 << 20 };

/* One write, newest first. */
struct power_write {
    struct power_write *older;
    int fd; /* of its own, without O_DIRECT */
    dev_t device;
    ino_t inode;
    uint64_t offset, file_bytes; /* the file's size before */
    size_t bytes, old_bytes;     /* what of the old contents there was */
    char old[];
};

struct power_name {
    struct power_name *older;
    enum power_naming kind;
    char path[PATH_BYTES], other[PATH_BYTES]; /* REMOVE: where it waits */
};

struct power {
    struct fault_plan *plan;
    char limbo[PATH_BYTES];
    uint64_t removed;
    struct power_write *writes;
    struct power_name *names;
    size_t memory_bytes;
    pthread_mutex_t lock;
};

struct power *power_open(struct fault_plan *plan, const char *limbo)
{
    struct power *power = calloc(1, sizeof *power);
    if (!power || pthread_mutex_init(&power->lock, NULL) != 0 ||
        (mkdir(limbo, 0700) != 0 && errno != EEXIST)) {
        free(power);
        return NULL;
    }
    power->plan = plan;
    (void)snprintf(power->limbo, sizeof power->limbo, "%s", limbo);
    return power;
}

/* ---- contents ---- */

static void write_forget(struct power *power, struct power_write **at)
{
    struct power_write *write = *at;
    *at = write->older;
    power->memory_bytes -= write->old_bytes;
    (void)close(write->fd);
    free(write);
}

void power_writing(struct power *power, int fd, size_t bytes, uint64_t offset)
{
    char path[32];
    struct stat status;
    if (!power || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode))
        return;
    uint64_t size = (uint64_t)status.st_size;
    if (bytes == 0 && offset < size) /* a cut loses what is behind it */
        bytes = size - offset;
    size_t old_bytes = offset >= size ? 0 : size - offset < bytes ? size - offset : bytes;
    struct power_write *write = malloc(sizeof *write + old_bytes);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int plain = open(path, O_RDWR | O_CLOEXEC);
    if (!write || plain < 0 || power->memory_bytes + old_bytes > MEMORY_BYTES_MAX)
        abort(); /* a campaign that forgets would prove nothing */
    *write = (struct power_write){.fd = plain,
                                  .device = status.st_dev,
                                  .inode = status.st_ino,
                                  .offset = offset,
                                  .file_bytes = size,
                                  .bytes = bytes,
                                  .old_bytes = old_bytes};
    if (pread(plain, write->old, old_bytes, (off_t)offset) != (ssize_t)old_bytes)
        abort();
    (void)pthread_mutex_lock(&power->lock);
    power->memory_bytes += old_bytes;
    write->older = power->writes;
    power->writes = write;
    (void)pthread_mutex_unlock(&power->lock);
}

void power_synced(struct power *power, int fd)
{
    struct stat status;
    if (!power || fstat(fd, &status) != 0)
        return;
    (void)pthread_mutex_lock(&power->lock);
    for (struct power_write **at = &power->writes; *at;) {
        if ((*at)->device == status.st_dev && (*at)->inode == status.st_ino)
            write_forget(power, at);
        else
            at = &(*at)->older;
    }
    (void)pthread_mutex_unlock(&power->lock);
}

static void put(int fd, const char *data, size_t bytes, uint64_t offset)
{
    ssize_t written = pwrite(fd, data, bytes, (off_t)offset);
    (void)written;
}

/* All of it, some sectors, or nothing goes back to what it was. */
static void write_undo(struct power *power, const struct power_write *write)
{
    static const char zeros[SECTOR_BYTES];
    struct stat status;
    uint64_t shape = fault_random(power->plan) % 3;
    if (shape == 0)
        return;
    for (size_t done = 0; done < write->bytes; done += SECTOR_BYTES) {
        if (shape == 1 && fault_random(power->plan) % 2 == 0)
            continue;
        size_t bytes = write->bytes - done < SECTOR_BYTES ? write->bytes - done : SECTOR_BYTES;
        size_t old = done >= write->old_bytes          ? 0
                     : write->old_bytes - done < bytes ? write->old_bytes - done
                                                       : bytes;
        put(write->fd, write->old + done, old, write->offset + done);
        /* Behind the old end, as far as the file still goes. */
        if (old < bytes && fstat(write->fd, &status) == 0 &&
            (uint64_t)status.st_size >= write->offset + done + bytes)
            put(write->fd, zeros, bytes - old, write->offset + done + old);
    }
    if (shape == 2 && ftruncate(write->fd, (off_t)write->file_bytes) != 0)
        abort();
}

/* ---- names ---- */

bool power_naming(struct power *power, enum power_naming kind, const char *path, const char *other)
{
    if (!power || ((kind == POWER_CREATE) == (access(path, F_OK) == 0)))
        return false;
    struct power_name *name = calloc(1, sizeof *name);
    if (!name)
        abort();
    name->kind = kind;
    (void)snprintf(name->path, sizeof name->path, "%s", path);
    (void)snprintf(name->other, sizeof name->other, "%s", other ? other : "");
    (void)pthread_mutex_lock(&power->lock);
    bool is_done = false;
    if (kind == POWER_REMOVE) {
        (void)snprintf(name->other, sizeof name->other, "%.480s/%llu", power->limbo,
                       (unsigned long long)++power->removed);
        is_done = rename(path, name->other) == 0;
    }
    name->older = power->names;
    power->names = name;
    (void)pthread_mutex_unlock(&power->lock);
    return is_done;
}

void power_directory_synced(struct power *power)
{
    if (!power)
        return;
    (void)pthread_mutex_lock(&power->lock);
    while (power->names) {
        struct power_name *name = power->names;
        power->names = name->older;
        if (name->kind == POWER_REMOVE)
            (void)unlink(name->other);
        free(name);
    }
    (void)pthread_mutex_unlock(&power->lock);
}

static void name_undo(const struct power_name *name)
{
    if (name->kind == POWER_CREATE)
        (void)unlink(name->path);
    else
        (void)rename(name->other, name->path);
}

void power_cut(struct power *power)
{
    (void)pthread_mutex_lock(&power->lock); /* for good */
    for (const struct power_write *write = power->writes; write; write = write->older)
        write_undo(power, write);
    unsigned count = 0;
    for (const struct power_name *name = power->names; name; name = name->older)
        count++;
    uint64_t undone = fault_random(power->plan) % (count + 1);
    for (const struct power_name *name = power->names; undone > 0; name = name->older, undone--)
        name_undo(name);
    fault_strike();
}

#include "broker/wal_life.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define LIFE_MAGIC 0x3166694c72696577ull /* "weirLif1" */

enum {
    AT_MAGIC = 0,
    AT_LOG_ID = 8,
    AT_RENEWED = 16,
    AT_LEVEL = 24,
    AT_STOPPED = 28,
    AT_BOOT = 32,
    AT_CHECKSUM = 72,
};
static_assert(AT_BOOT + WAL_LIFE_BOOT_BYTES == AT_CHECKSUM, "no gap");

/* ---- the table ---- */

/* Sets of states, one bit each. */
#define SET(state) (1u << (state))
enum {
    ANY = 0xff,
    NONE = SET(WAL_LIFE_NONE),
    FOREIGN = SET(WAL_LIFE_FOREIGN),
    OURS = SET(WAL_LIFE_OURS),
    MEMORY = SET(WAL_LIFE_MEMORY),
    WRITTEN = SET(WAL_LIFE_WRITTEN),
    SYNCED = SET(WAL_LIFE_SYNCED),
    SAME = SET(WAL_LIFE_SAME_BOOT),
    OTHER = SET(WAL_LIFE_OTHER_BOOT),
    STOPPED = SET(WAL_LIFE_STOPPED),
    DIED = SET(WAL_LIFE_DIED),
    WHOLE = SET(WAL_LIFE_WHOLE),
    SHORTENED = SET(WAL_LIFE_SHORTENED),
};

struct row {
    unsigned record, tail, level, end, boot;
    enum wal_life_verdict verdict;
    const char *why;
};

/* clang-format off */
static const struct row rows[] = {
    {NONE, ANY, ANY, ANY, ANY, WAL_LIFE_RENEW, "nothing says how the last life ended"},
    {FOREIGN, ANY, ANY, ANY, ANY, WAL_LIFE_RENEW, "what is said of the last life is of another log"},
    {OURS, SHORTENED, ANY, ANY, ANY, WAL_LIFE_RENEW, "writes at the log's end are missing"},

    {OURS, WHOLE, SYNCED, ANY, ANY, WAL_LIFE_KEEP, "what was shown was on the disk before"},
    {OURS, WHOLE, WRITTEN | MEMORY, STOPPED, ANY, WAL_LIFE_KEEP, "it was stopped, with everything on the disk"},
    {OURS, WHOLE, WRITTEN, DIED, SAME, WAL_LIFE_KEEP, "the kernel that had what was shown still runs"},
    {OURS, WHOLE, WRITTEN, DIED, OTHER, WAL_LIFE_RENEW, "the machine was started anew, and what was shown may not have been on the disk"},
    {OURS, WHOLE, MEMORY, DIED, ANY, WAL_LIFE_RENEW, "it was not stopped, and the log is written behind what is shown"},
};
/* clang-format on */
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

static bool fits(const struct row *row, const struct wal_life_finding *finding)
{
    return (row->record & SET(finding->record)) != 0 && (row->tail & SET(finding->tail)) != 0 &&
           (row->level & SET(finding->level)) != 0 && (row->end & SET(finding->end)) != 0 &&
           (row->boot & SET(finding->boot)) != 0;
}

size_t wal_life_rows(const struct wal_life_finding *finding)
{
    size_t count = 0;
    for (size_t i = 0; i < ROW_COUNT; i++)
        count += fits(&rows[i], finding);
    return count;
}

enum wal_life_verdict wal_life_verdict(const struct wal_life_finding *finding, const char **why)
{
    size_t i = 0;
    while (i < ROW_COUNT && !fits(&rows[i], finding))
        i++;
    weir_assert(i < ROW_COUNT);
    if (why != NULL)
        *why = rows[i].why;
    return rows[i].verdict;
}

struct wal_life_finding wal_life_finding(const struct wal_life *life, const char *boot,
                                         const struct wal_recovered *recovered)
{
    struct wal_life_finding finding = {
        .record = WAL_LIFE_NONE,
        .level = WAL_LIFE_MEMORY,
        .boot = WAL_LIFE_OTHER_BOOT,
        .end = WAL_LIFE_DIED,
        .tail = recovered->is_shortened ? WAL_LIFE_SHORTENED : WAL_LIFE_WHOLE,
    };
    if (life == NULL)
        return finding;
    bool is_ours = !recovered->is_empty && life->log_id == recovered->log_id;
    finding.record = is_ours ? WAL_LIFE_OURS : WAL_LIFE_FOREIGN;
    finding.level = life->level;
    if (boot[0] != '\0' && strcmp(life->boot, boot) == 0)
        finding.boot = WAL_LIFE_SAME_BOOT;
    if (life->is_stopped)
        finding.end = WAL_LIFE_STOPPED;
    return finding;
}

/* ---- the record ---- */

static void put(char *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (char)(unsigned char)(value >> (8 * i));
}

static uint64_t get(const char *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;)
        value = value << 8 | (unsigned char)at[i];
    return value;
}

static void life_path(char path[WAL_PATH_BYTES], const char *directory)
{
    (void)snprintf(path, WAL_PATH_BYTES, "%s/life", directory);
}

static bool life_decode(const char sector[WAL_SECTOR_BYTES], struct wal_life *life)
{
    *life = (struct wal_life){
        .log_id = get(sector + AT_LOG_ID, 8),
        .renewed = get(sector + AT_RENEWED, 8),
        .level = (enum wal_life_level)get(sector + AT_LEVEL, 4),
        .is_stopped = get(sector + AT_STOPPED, 4) == 1,
    };
    memcpy(life->boot, sector + AT_BOOT, sizeof life->boot);
    return get(sector + AT_MAGIC, 8) == LIFE_MAGIC &&
           get(sector + AT_CHECKSUM, 4) == wal_checksum(0, sector, AT_CHECKSUM) &&
           life->level >= WAL_LIFE_MEMORY && life->level <= WAL_LIFE_SYNCED &&
           life->renewed < INT64_MAX && life->boot[sizeof life->boot - 1] == '\0';
}

enum weir_status wal_life_read(const struct wal_io *io, const char *directory,
                               struct wal_life *life)
{
    char path[WAL_PATH_BYTES];
    char sector[WAL_SECTOR_BYTES];
    life_path(path, directory);
    int fd = io->open(io->context, path, O_RDONLY);
    if (fd < 0)
        return fd == -ENOENT ? WEIR_EMPTY : WEIR_SYSTEM;
    size_t got = 0;
    ssize_t count = 1;
    while (got < sizeof sector && count > 0) { /* each turn reads something, or ends it */
        count = io->read(io->context, fd, sector + got, sizeof sector - got, got);
        got += count > 0 ? (size_t)count : 0;
    }
    (void)io->close(io->context, fd);
    if (count < 0)
        return WEIR_SYSTEM;
    return got == sizeof sector && life_decode(sector, life) ? WEIR_OK : WEIR_CORRUPT;
}

static int life_store(const struct wal_io *io, int fd, const char sector[WAL_SECTOR_BYTES])
{
    size_t done = 0;
    while (done < WAL_SECTOR_BYTES) { /* each turn writes something, or fails */
        ssize_t written = io->write(io->context, fd, sector + done, WAL_SECTOR_BYTES - done, done);
        if (written <= 0)
            return written == 0 ? -EIO : (int)written;
        done += (size_t)written;
    }
    return io->sync(io->context, fd);
}

enum weir_status wal_life_write(const struct wal_io *io, const char *directory,
                                const struct wal_life *life, struct weir_error *error)
{
    char path[WAL_PATH_BYTES];
    char sector[WAL_SECTOR_BYTES] = {0};
    life_path(path, directory);
    put(sector + AT_MAGIC, LIFE_MAGIC, 8);
    put(sector + AT_LOG_ID, life->log_id, 8);
    put(sector + AT_RENEWED, life->renewed, 8);
    put(sector + AT_LEVEL, life->level, 4);
    put(sector + AT_STOPPED, life->is_stopped, 4);
    memcpy(sector + AT_BOOT, life->boot, sizeof life->boot);
    put(sector + AT_CHECKSUM, wal_checksum(0, sector, AT_CHECKSUM), 4);
    int fd = io->open(io->context, path, O_RDWR | O_CREAT);
    int result = fd < 0 ? fd : life_store(io, fd, sector);
    if (fd >= 0)
        (void)io->close(io->context, fd);
    if (result == 0)
        result = io->sync_directory(io->context, directory);
    return result == 0 ? WEIR_OK
                       : weir_fail_errno(error, -result, "%.200s cannot be written", path);
}

enum weir_status wal_life_remove(const struct wal_io *io, const char *directory,
                                 struct weir_error *error)
{
    char path[WAL_PATH_BYTES];
    life_path(path, directory);
    int result = io->remove(io->context, path);
    if (result == 0)
        result = io->sync_directory(io->context, directory);
    return result == 0 ? WEIR_OK
                       : weir_fail_errno(error, -result, "%.200s cannot be removed", path);
}

void wal_life_read_boot(char boot[WAL_LIFE_BOOT_BYTES])
{
    const struct wal_io *io = &wal_io_system;
    memset(boot, 0, WAL_LIFE_BOOT_BYTES);
    int fd = io->open(io->context, "/proc/sys/kernel/random/boot_id", O_RDONLY);
    if (fd < 0)
        return;
    ssize_t got = io->read(io->context, fd, boot, WAL_LIFE_BOOT_BYTES - 1, 0);
    (void)io->close(io->context, fd);
    boot[got > 0 ? strcspn(boot, "\n") : 0] = '\0';
}

const char *wal_life_level_name(enum wal_life_level level)
{
    static const char *const names[] = {
        [WAL_LIFE_MEMORY] = "memory", [WAL_LIFE_WRITTEN] = "written", [WAL_LIFE_SYNCED] = "synced"};
    return level >= WAL_LIFE_MEMORY && level <= WAL_LIFE_SYNCED ? names[level] : "?";
}

/* Snapshot files: what is written is what is read, and a call that fails leaves no file under the name of a
 * finished one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/snapshot_file.h"

enum { LOG_ID = 77, NUMBER = 3 };

static char directory[64];
static struct wal_io io;
static unsigned calls, failing_call; /* 0: none */
static size_t write_bytes_max;

static int count_call(void)
{
    return ++calls == failing_call ? -EIO : 0;
}

static int test_open(void *context, const char *path, int flags)
{
    int result = count_call();
    return result < 0 ? result : wal_io_system.open(context, path, flags);
}

static ssize_t test_write(void *context, int fd, const void *data, size_t bytes, uint64_t offset)
{
    int result = count_call();
    size_t some = bytes < write_bytes_max ? bytes : write_bytes_max;
    return result < 0 ? result : wal_io_system.write(context, fd, data, some, offset);
}

static int test_close(void *context, int fd)
{
    int result = count_call();
    int closed = wal_io_system.close(context, fd);
    return result < 0 ? result : closed;
}

static int test_sync(void *context, int fd)
{
    int result = count_call();
    return result < 0 ? result : wal_io_system.sync(context, fd);
}

static int test_rename(void *context, const char *from, const char *to)
{
    int result = count_call();
    return result < 0 ? result : wal_io_system.rename(context, from, to);
}

static int test_sync_directory(void *context, const char *path)
{
    int result = count_call();
    return result < 0 ? result : wal_io_system.sync_directory(context, path);
}

static void setup(void)
{
    (void)snprintf(directory, sizeof directory, "/tmp/weir-snapshot-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    io = wal_io_system;
    io.open = test_open;
    io.write = test_write;
    io.close = test_close;
    io.sync = test_sync;
    io.rename = test_rename;
    io.sync_directory = test_sync_directory;
    calls = failing_call = 0;
    write_bytes_max = SIZE_MAX;
}

static int remove_name(void *context, const char *name)
{
    char path[WAL_PATH_BYTES];
    (void)context;
    (void)snprintf(path, sizeof path, "%s/%s", directory, name);
    return unlink(path);
}

static void teardown(void)
{
    cr_assert_eq(wal_io_system.list(NULL, directory, remove_name, NULL), 0);
    cr_assert_eq(rmdir(directory), 0);
}

static int count_name(void *context, const char *name)
{
    unsigned *names = context;
    (void)name;
    (*names)++;
    return 0;
}

static unsigned files_there(void)
{
    unsigned names = 0;
    cr_assert_eq(wal_io_system.list(NULL, directory, count_name, &names), 0);
    return names;
}

static bool is_snapshot_there(void)
{
    char path[WAL_PATH_BYTES];
    wal_path(path, directory, WAL_FILE_SNAPSHOT, NUMBER);
    return access(path, F_OK) == 0;
}

/* Groups of three items; the values are large enough that there are several frames, and one of them is
 * larger than a frame usually is. */
enum { GROUPS = 40, ITEMS = 3 };

static size_t value_bytes(unsigned group, unsigned item)
{
    return group == 7 && item == 1 ? 3u << 20 : 20000 + 100 * group + item;
}

static enum weir_status put(struct snapshot_file *file, const struct wal_record *record,
                            struct weir_error *error)
{
    enum weir_status status = snapshot_file_put(file, record, error);
    if (status == WEIR_OK && snapshot_file_is_full(file))
        status = snapshot_file_flush(file, error);
    return status;
}

static enum weir_status write_snapshot(const char *value, struct weir_error *error)
{
    const struct wal_file_header header = {.kind = WAL_FILE_SNAPSHOT,
                                           .log_id = LOG_ID,
                                           .number = NUMBER,
                                           .epoch_base = 5,
                                           .created_ms = 1700000000000,
                                           .first_seq = 9};
    struct snapshot_file *file = NULL;
    enum weir_status status = snapshot_file_open(&file, &io, directory, &header, error);
    for (unsigned group = 0; group < GROUPS && status == WEIR_OK; group++) {
        char name[8];
        int bytes = snprintf(name, sizeof name, "%u", group);
        struct wal_record record = {.kind = WAL_GROUP,
                                    .step = 2,
                                    .epoch = 4,
                                    .seq = ITEMS,
                                    .timestamp_ms = 1700000000000,
                                    .stream = SPAN_LITERAL("s"),
                                    .group = span_of(name, (size_t)bytes)};
        status = put(file, &record, error);
        for (unsigned item = 0; item < ITEMS && status == WEIR_OK; item++) {
            record = (struct wal_record){.kind = WAL_ITEM,
                                         .item = span_of("012" + item, 1),
                                         .value = span_of(value, value_bytes(group, item)),
                                         .created_seq = item + 1,
                                         .modified_seq = item + 1};
            status = put(file, &record, error);
        }
    }
    if (status == WEIR_OK)
        status = snapshot_file_finish(file, 9, error);
    snapshot_file_close(file);
    return status;
}

static char *make_value(void)
{
    char *value = malloc(4u << 20);
    cr_assert_not_null(value);
    memset(value, '1', 4u << 20);
    return value;
}

/* The segment a snapshot goes with: nothing written in it. */
static void write_segment(void)
{
    char path[WAL_PATH_BYTES];
    char block[WAL_BLOCK_BYTES];
    wal_file_header_encode(block, &(struct wal_file_header){.kind = WAL_FILE_LOG,
                                                            .log_id = LOG_ID,
                                                            .number = NUMBER,
                                                            .epoch_base = 5,
                                                            .file_bytes = WAL_BLOCK_BYTES});
    wal_path(path, directory, WAL_FILE_LOG, NUMBER);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, block, sizeof block), (ssize_t)sizeof block);
    cr_assert_eq(close(fd), 0);
}

struct reading {
    unsigned groups, items, frames;
};

static enum weir_status read_record(void *context, const struct wal_position *position,
                                    const struct wal_record *record, struct weir_error *error)
{
    struct reading *reading = context;
    if (position->kind != WAL_FILE_SNAPSHOT)
        return weir_fail(error, WEIR_CORRUPT, "a record of the log");
    if (record->kind == WAL_GROUP) {
        reading->groups++;
        reading->items = 0;
    } else if (record->kind == WAL_ITEM) {
        if (record->value.bytes != value_bytes(reading->groups - 1, reading->items) ||
            record->item.data[0] != (char)('0' + reading->items))
            return weir_fail(error, WEIR_CORRUPT, "another item");
        reading->items++;
    }
    reading->frames = (unsigned)position->seq;
    return WEIR_OK;
}

static void assert_reads_back(void)
{
    write_segment();
    struct reading reading = {0};
    struct wal_recovered recovered;
    struct weir_error error = {0};
    const struct wal_recovery_options options = {
        .io = &wal_io_system, .directory = directory, .take = read_record, .context = &reading};
    /* The log ends before frame 9, so it is refused in the end; all of the snapshot has been read then. */
    (void)!wal_recover(&options, &recovered, &error);
    cr_assert_eq(reading.groups, GROUPS, "%s", error.text);
    cr_assert_eq(reading.items, ITEMS);
    cr_assert_gt(reading.frames, 3);
}

TestSuite(snapshot_file, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

Test(snapshot_file, what_is_written_is_what_is_read)
{
    char *value = make_value();
    struct weir_error error = {0};
    cr_assert_eq(write_snapshot(value, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(files_there(), 1);
    assert_reads_back();
    free(value);
}

Test(snapshot_file, short_writes_are_continued)
{
    char *value = make_value();
    struct weir_error error = {0};
    write_bytes_max = 4096 + 13;
    cr_assert_eq(write_snapshot(value, &error), WEIR_OK, "%s", error.text);
    assert_reads_back();
    free(value);
}

Test(snapshot_file, a_disk_that_takes_nothing_is_an_error)
{
    char *value = make_value();
    struct weir_error error = {0};
    write_bytes_max = 0;
    cr_assert_eq(write_snapshot(value, &error), WEIR_SYSTEM);
    cr_assert_eq(files_there(), 0);
    free(value);
}

/* The last call is the sync of the directory: when that fails the file has its name already, and is
 * whole. */
Test(snapshot_file, a_call_that_fails_leaves_nothing_or_all_of_it)
{
    char *value = make_value();
    struct weir_error error = {0};
    cr_assert_eq(write_snapshot(value, &error), WEIR_OK, "%s", error.text);
    unsigned last_call = calls;
    for (failing_call = 1; failing_call <= last_call; failing_call++) {
        cr_assert_eq(wal_io_system.list(NULL, directory, remove_name, NULL), 0);
        calls = 0;
        cr_assert_eq(write_snapshot(value, &error), WEIR_SYSTEM, "call %u", failing_call);
        bool is_last = failing_call == last_call;
        cr_assert_eq(is_snapshot_there(), is_last, "call %u", failing_call);
        cr_assert_eq(files_there(), is_last ? 1 : 0, "call %u", failing_call);
    }
    assert_reads_back();
    free(value);
}

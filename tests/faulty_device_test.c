#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/faulty_device.h"

enum { BLOCK = 4096, BLOCKS = 8, FILE_BYTES = BLOCK * BLOCKS, TURNS_MAX = 10000 };
enum { SECTORS = FILE_BYTES / FAULTY_SECTOR_BYTES };

static struct loop *loop;
static struct wal_device *device;
static char *memory; /* all 1s */
static char found[FILE_BYTES];
static char directory[64];
static char path[96];
static int fd;

struct tracked_request {
    struct wal_device_request request;
    bool done;
    int32_t result;
};

static void request_done(struct wal_device_request *request, int32_t result)
{
    struct tracked_request *own = request->owner;
    own->done = true;
    own->result = result;
}

static uint64_t test_seed(void)
{
    const char *given = getenv("WEIR_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static bool open_device(enum settings_io io, uint64_t seed)
{
    struct wal_device *inner = NULL;
    if (loop_open(&loop, io, NULL) != WEIR_OK || wal_device_open(&inner, loop, NULL) != WEIR_OK)
        return false;
    device = faulty_device_open(inner, seed);
    return device != NULL;
}

static void close_device(void)
{
    wal_device_close(device);
    loop_close(loop);
}

/* A file of zeros, opened with O_DIRECT where that is possible. */
static void make_file(void)
{
    static const char zeros[FILE_BYTES];
    memory = aligned_alloc(BLOCK, FILE_BYTES);
    cr_assert_not_null(memory);
    memset(memory, 1, FILE_BYTES);
    const char *place = getenv("TMPDIR");
    (void)snprintf(directory, sizeof directory, "%s/weir-faulty-XXXXXX", place ? place : "/tmp");
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/file", directory);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pwrite(fd, zeros, sizeof zeros, 0), FILE_BYTES);
    cr_assert_eq(fsync(fd), 0);
    int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (direct >= 0) {
        (void)close(fd);
        fd = direct;
    }
}

static void remove_file(void)
{
    (void)close(fd);
    free(memory);
    (void)unlink(path);
    (void)rmdir(directory);
}

TestSuite(faulty_device, .init = make_file, .fini = remove_file, .timeout = HANG_SECONDS);

/* INT32_MIN: it never came. Also used in children, which may not assert. */
static int32_t finish(struct tracked_request *own)
{
    for (unsigned turn = 0; !own->done && turn < TURNS_MAX; turn++) {
        if (loop_wait(loop, 1000, NULL) != WEIR_OK)
            return INT32_MIN;
        loop_run(loop);
    }
    return own->done && !own->request.in_flight ? own->result : INT32_MIN;
}

static int32_t write_all(void)
{
    struct tracked_request own = {.request = {.done = request_done, .owner = &own}};
    wal_device_write(device, &own.request, fd, memory, FILE_BYTES, 0, true);
    return own.done ? INT32_MIN : finish(&own);
}

static void read_file(void)
{
    int plain = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(plain, 0);
    cr_assert_eq(pread(plain, found, FILE_BYTES, 0), FILE_BYTES);
    (void)close(plain);
}

static void clear_file(void)
{
    static const char zeros[FILE_BYTES];
    int plain = open(path, O_WRONLY | O_CLOEXEC);
    cr_assert_geq(plain, 0);
    cr_assert_eq(pwrite(plain, zeros, FILE_BYTES, 0), FILE_BYTES);
    cr_assert_eq(fsync(plain), 0);
    (void)close(plain);
}

/* Sectors written; each is whole or untouched. */
static unsigned count_sectors(void)
{
    unsigned written = 0;
    read_file();
    for (unsigned sector = 0; sector < SECTORS; sector++) {
        const char *bytes = found + (size_t)sector * FAULTY_SECTOR_BYTES;
        for (unsigned at = 1; at < FAULTY_SECTOR_BYTES; at++)
            cr_assert_eq(bytes[at], bytes[0]);
        written += bytes[0] == 1;
    }
    return written;
}

/* Without a plan, and beside the requests a plan names, all is as with the device behind. */
Test(faulty_device, only_the_requests_named_fail)
{
    static const enum settings_io engines[] = {SETTINGS_IO_URING, SETTINGS_IO_PLAIN};
    static const struct faulty_plan plans[] = {
        {.kind = FAULTY_ERROR, .at = 1, .count = 2, .argument = EIO},
        {.kind = FAULTY_SHORT, .at = 4, .argument = 1000},
    };
    for (unsigned engine = 0; engine < 2; engine++) {
        cr_assert(open_device(engines[engine], 1));
        cr_assert_eq(write_all(), FILE_BYTES);
        cr_assert_eq(count_sectors(), SECTORS);
        clear_file();
        faulty_device_plan(device, plans, 2);
        cr_assert_eq(write_all(), FILE_BYTES);
        clear_file();
        cr_assert_eq(write_all(), -EIO);
        cr_assert_eq(write_all(), -EIO);
        cr_assert_eq(count_sectors(), 0);
        cr_assert_eq(write_all(), FILE_BYTES);
        clear_file();
        cr_assert_eq(write_all(), 1000);
        read_file();
        for (unsigned at = 0; at < FILE_BYTES; at++)
            cr_assert_eq(found[at], at < 1000);
        cr_assert_eq(write_all(), FILE_BYTES);
        cr_assert_eq(count_sectors(), SECTORS);
        struct faulty_figures figures = faulty_device_figures(device);
        cr_assert_eq(figures.writes, 6);
        cr_assert_eq(figures.faults, 3);
        close_device();
        clear_file();
    }
}

/* A torn write leaves whole sectors, now few, now many; the same seed leaves the same ones. */
Test(faulty_device, a_torn_write_leaves_a_subset_of_sectors)
{
    static const struct faulty_plan plan = {.kind = FAULTY_TORN, .argument = EIO};
    uint64_t seed = test_seed();
    unsigned partly = 0;
    for (unsigned round = 0; round < 40; round++) {
        char first[FILE_BYTES];
        for (unsigned time = 0; time < 2; time++) {
            cr_assert(open_device(SETTINGS_IO_URING, seed + round));
            faulty_device_plan(device, &plan, 1);
            cr_assert_eq(write_all(), -EIO);
            unsigned sectors = count_sectors();
            partly += sectors > 0 && sectors < SECTORS;
            if (time == 0)
                memcpy(first, found, FILE_BYTES);
            else
                cr_assert_arr_eq(first, found, FILE_BYTES);
            close_device();
            clear_file();
        }
    }
    cr_assert_gt(partly, 0);
}

/* A write that begins and ends within a sector is torn at the file's sectors. */
Test(faulty_device, sectors_are_the_files)
{
    static const struct faulty_plan plan = {
        .kind = FAULTY_TORN, .count = UINT64_MAX, .argument = EIO};
    cr_assert(open_device(SETTINGS_IO_URING, test_seed()));
    faulty_device_plan(device, &plan, 1);
    for (unsigned round = 0; round < 20; round++) {
        struct tracked_request own = {.request = {.done = request_done, .owner = &own}};
        wal_device_write(device, &own.request, fd, memory, 1500, 700, false);
        cr_assert_eq(finish(&own), -EIO);
        read_file();
        for (unsigned at = 0; at < FILE_BYTES; at++) {
            bool inside = at >= 700 && at < 2200;
            cr_assert(inside || found[at] == 0);
            if (inside && at > 700 && at % FAULTY_SECTOR_BYTES != 0)
                cr_assert_eq(found[at], found[at - 1]);
        }
        clear_file();
    }
    close_device();
}

/* Returns how the child that wrote with this plan ended. */
static int write_in_child(enum settings_io io, const struct faulty_plan *plan)
{
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        if (!open_device(io, 7))
            _exit(1);
        faulty_device_plan(device, plan, 1);
        (void)write_all();
        _exit(2);
    }
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    return status;
}

/* Nothing, a part or all of the write is there when SIGKILL has ended the process. */
Test(faulty_device, the_process_ends_where_the_plan_says)
{
    static const enum settings_io engines[] = {SETTINGS_IO_URING, SETTINGS_IO_PLAIN};
    static const struct {
        struct faulty_plan plan;
        unsigned least, most;
    } cases[] = {
        {{.kind = FAULTY_KILL_BEFORE}, 0, 0},
        {{.kind = FAULTY_KILL_AFTER}, SECTORS, SECTORS},
        {{.kind = FAULTY_KILL_TORN}, 0, SECTORS - 1},
    };
    for (unsigned engine = 0; engine < 2; engine++)
        for (unsigned index = 0; index < sizeof cases / sizeof *cases; index++) {
            int status = write_in_child(engines[engine], &cases[index].plan);
            cr_assert(WIFSIGNALED(status), "case %u ended with %#x", index, (unsigned)status);
            cr_assert_eq(WTERMSIG(status), SIGKILL);
            unsigned sectors = count_sectors();
            cr_assert_geq(sectors, cases[index].least, "case %u", index);
            cr_assert_leq(sectors, cases[index].most, "case %u", index);
            clear_file();
        }
}

/* Several at a time keep their own results. */
Test(faulty_device, several_in_flight_keep_their_results)
{
    static const struct faulty_plan plans[] = {{.kind = FAULTY_ERROR, .at = 1, .argument = EIO},
                                               {.kind = FAULTY_SHORT, .at = 2, .argument = 512}};
    static const int32_t results[] = {BLOCK, -EIO, 512, BLOCK};
    struct tracked_request own[WAL_DEVICE_REQUESTS_MAX];
    cr_assert(open_device(SETTINGS_IO_URING, 1));
    faulty_device_plan(device, plans, 2);
    for (unsigned index = 0; index < WAL_DEVICE_REQUESTS_MAX; index++) {
        own[index] =
            (struct tracked_request){.request = {.done = request_done, .owner = &own[index]}};
        wal_device_write(device, &own[index].request, fd, memory, BLOCK, (uint64_t)index * BLOCK,
                         true);
    }
    for (unsigned index = 0; index < WAL_DEVICE_REQUESTS_MAX; index++)
        cr_assert_eq(finish(&own[index]), results[index]);
    close_device();
}

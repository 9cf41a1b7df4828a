#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker/wal_device.h"

enum { BLOCK = 4096, BLOCKS = 16, TURNS_MAX = 10000 };

static const enum settings_io engines[] = {SETTINGS_IO_URING, SETTINGS_IO_PLAIN};

struct tracked_request {
    struct wal_device_request request;
    unsigned done;
    int32_t result;
    unsigned chained; /* so many more times, started by done() */
};

static struct loop *loop;
static struct wal_device *device;
static char *memory; /* BLOCKS blocks, aligned */
static char directory[64];
static char path[96];

static void request_done(struct wal_device_request *request, int32_t result)
{
    struct tracked_request *own = request->owner;
    own->done++;
    own->result = result;
    if (own->chained > 0) {
        own->chained--;
        wal_device_write(device, request, request->fd, request->data, request->bytes,
                         request->offset + request->bytes, true);
    }
}

static struct tracked_request tracked(void)
{
    return (struct tracked_request){.request = {.done = request_done}};
}

static void open_device(enum settings_io io)
{
    struct weir_error error = {0};
    cr_assert_eq(loop_open(&loop, io, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(wal_device_open(&device, loop, &error), WEIR_OK, "%s", error.text);
}

static void close_device(void)
{
    wal_device_close(device);
    loop_close(loop);
}

static void make_files(void)
{
    memory = aligned_alloc(BLOCK, (size_t)BLOCKS * BLOCK);
    cr_assert_not_null(memory);
    for (size_t at = 0; at < (size_t)BLOCKS * BLOCK; at++)
        memory[at] = (char)(at / BLOCK * 31 + at % 251 + 1);
    const char *place = getenv("TMPDIR");
    (void)snprintf(directory, sizeof directory, "%s/weir-device-XXXXXX", place ? place : "/tmp");
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/file", directory);
}

static void remove_files(void)
{
    free(memory);
    (void)unlink(path);
    (void)rmdir(directory);
}

TestSuite(wal_device, .init = make_files, .fini = remove_files, .timeout = HANG_SECONDS);

static void run_until_done(struct tracked_request *own, unsigned count)
{
    struct weir_error error = {0};
    for (unsigned turn = 0; own->done < count && turn < TURNS_MAX; turn++) {
        cr_assert_eq(loop_wait(loop, 1000, &error), WEIR_OK, "%s", error.text);
        loop_run(loop);
    }
    cr_assert_eq(own->done, count);
    cr_assert_not(own->request.in_flight);
}

static int32_t write_now(int fd, const char *data, size_t bytes, uint64_t offset, bool is_synced)
{
    struct tracked_request own = tracked();
    own.request.owner = &own;
    wal_device_write(device, &own.request, fd, data, bytes, offset, is_synced);
    cr_assert(own.request.in_flight);
    cr_assert_eq(own.done, 0);
    run_until_done(&own, 1);
    return own.result;
}

static void expect_contents(const char *wanted, size_t bytes, uint64_t offset)
{
    char *found = malloc(bytes);
    cr_assert_not_null(found);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pread(fd, found, bytes, (off_t)offset), (ssize_t)bytes);
    cr_assert_arr_eq(found, wanted, bytes);
    (void)close(fd);
    free(found);
}

/* O_DIRECT where the file system has it. */
static int open_direct(int flags)
{
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EINVAL)
        fd = open(path, flags | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    return fd;
}

/* What is written is in the file, at its offset, synced or not. */
Test(wal_device, what_is_written_can_be_read_back)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        cr_assert_eq(write_now(fd, memory, BLOCK, 0, true), BLOCK);
        cr_assert_eq(write_now(fd, memory + BLOCK, 3 * BLOCK, BLOCK, false), 3 * BLOCK);
        expect_contents(memory, 4 * BLOCK, 0);
        (void)close(fd);

        fd = open(path, O_RDWR | O_TRUNC | O_CLOEXEC);
        cr_assert_eq(write_now(fd, memory + 5, 1234, 77, true), 1234);
        cr_assert_eq(write_now(fd, memory + 7, 99, 77 + 1234, false), 99);
        expect_contents(memory + 5, 1234, 77);
        expect_contents(memory + 7, 99, 77 + 1234);
        (void)close(fd);
        close_device();
    }
}

/* Registered memory and a registered file change nothing one can see, whether a write comes from that
 * memory, from its end, from across it, or from elsewhere. */
Test(wal_device, hints_do_not_change_what_is_written)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        const struct iovec buffers[] = {{memory, 4 * BLOCK}, {memory + 6 * BLOCK, 2 * BLOCK}};
        wal_device_use_buffers(device, buffers, 2);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        wal_device_use_file(device, fd);
        cr_assert_eq(write_now(fd, memory, 2 * BLOCK, 0, true), 2 * BLOCK);
        cr_assert_eq(write_now(fd, memory + 2 * BLOCK, 2 * BLOCK, 2 * BLOCK, true), 2 * BLOCK);
        cr_assert_eq(write_now(fd, memory + 4 * BLOCK, 3 * BLOCK, 4 * BLOCK, true), 3 * BLOCK);
        cr_assert_eq(write_now(fd, memory + 7 * BLOCK, 3 * BLOCK, 7 * BLOCK, true), 3 * BLOCK);
        expect_contents(memory, 10 * BLOCK, 0);
        wal_device_use_file(device, -1);
        (void)close(fd);
        close_device();
    }
}

/* A write that was started goes to the file it was started for, though another is made known before
 * the loop comes to it; and a number that comes again means its new file. */
Test(wal_device, another_file_made_known_leaves_started_writes_alone)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        char other_path[128];
        (void)snprintf(other_path, sizeof other_path, "%s.other", path);
        open_device(engines[engine]);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        int other = open(other_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        cr_assert_geq(other, 0);
        wal_device_use_file(device, fd);
        struct tracked_request own = tracked();
        own.request.owner = &own;
        wal_device_write(device, &own.request, fd, memory, BLOCK, 0, true);
        wal_device_use_file(device, other);
        run_until_done(&own, 1);
        cr_assert_eq(own.result, BLOCK);
        expect_contents(memory, BLOCK, 0);
        cr_assert_eq(lseek(other, 0, SEEK_END), 0);

        wal_device_use_file(device, -1);
        (void)close(other);
        int again = open(other_path, O_RDONLY | O_CLOEXEC);
        cr_assert_eq(again, other);
        cr_assert_eq(write_now(again, memory, BLOCK, 0, true), -EBADF);
        (void)close(again);
        (void)close(fd);
        (void)unlink(other_path);
        close_device();
    }
}

/* Memory that may not be pinned, for it is more than RLIMIT_MEMLOCK: registration is refused, writing
 * goes on. */
Test(wal_device, without_the_right_to_pin_memory_writes_go_on)
{
    enum { LIMIT_BYTES = 8 * 1024 * 1024, BUFFER_BYTES = 2 * LIMIT_BYTES };
    const struct rlimit limit = {LIMIT_BYTES, LIMIT_BYTES};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct capabilities[_LINUX_CAPABILITY_U32S_3];
    cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    /* Which root need not heed while it has CAP_IPC_LOCK. */
    cr_assert_eq(syscall(SYS_capget, &header, capabilities), 0);
    capabilities[0].effective &= ~(1u << CAP_IPC_LOCK);
    cr_assert_eq(syscall(SYS_capset, &header, capabilities), 0);
    char *buffer = aligned_alloc(BLOCK, BUFFER_BYTES);
    cr_assert_not_null(buffer);
    memset(buffer, 3, BUFFER_BYTES);
    const struct iovec buffers[] = {{buffer, BUFFER_BYTES}};
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        if (loop_writes_files(loop))
            cr_assert_not(loop_register_buffers(loop, buffers, 1));
        wal_device_use_buffers(device, buffers, 1);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        cr_assert_eq(write_now(fd, buffer, (size_t)BLOCKS * BLOCK, 0, true), BLOCKS * BLOCK);
        expect_contents(buffer, (size_t)BLOCKS * BLOCK, 0);
        (void)close(fd);
        close_device();
    }
    free(buffer);
}

/* Several in flight complete each with its own result. */
Test(wal_device, several_in_flight_complete_each)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        for (unsigned round = 0; round < 20; round++) {
            struct tracked_request own[WAL_DEVICE_REQUESTS_MAX];
            for (unsigned index = 0; index < WAL_DEVICE_REQUESTS_MAX; index++) {
                own[index] = tracked();
                own[index].request.owner = &own[index];
                wal_device_write(device, &own[index].request, fd,
                                 memory + (size_t)(round % 4 + index) * BLOCK, BLOCK * (index + 1),
                                 (uint64_t)index * 8 * BLOCK, index != 1);
            }
            for (unsigned index = 0; index < WAL_DEVICE_REQUESTS_MAX; index++) {
                run_until_done(&own[index], 1);
                cr_assert_eq(own[index].result, (int32_t)(BLOCK * (index + 1)));
            }
            for (unsigned index = 0; index < WAL_DEVICE_REQUESTS_MAX; index++)
                expect_contents(memory + (size_t)(round % 4 + index) * BLOCK,
                                (size_t)BLOCK * (index + 1), (uint64_t)index * 8 * BLOCK);
        }
        (void)close(fd);
        close_device();
    }
}

/* done() may start the next request. */
Test(wal_device, done_may_start_the_next)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        struct tracked_request own = tracked();
        own.request.owner = &own;
        own.chained = 30;
        wal_device_write(device, &own.request, fd, memory, BLOCK, 0, true);
        run_until_done(&own, 31);
        for (unsigned index = 0; index < 31; index++)
            expect_contents(memory, BLOCK, (uint64_t)index * BLOCK);
        (void)close(fd);
        close_device();
    }
}

/* Errors arrive as they are. */
Test(wal_device, failures_are_told_by_their_errno)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
        int read_only = open(path, O_RDONLY | O_CLOEXEC);
        int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
        cr_assert_geq(full, 0);
        cr_assert_eq(write_now(read_only, memory, BLOCK, 0, false), -EBADF);
        cr_assert_eq(write_now(read_only, memory, BLOCK, 0, true), -EBADF);
        cr_assert_eq(write_now(full, memory, BLOCK, 0, false), -ENOSPC);
        cr_assert_eq(write_now(full, memory, BLOCK, 0, true), -ENOSPC);
        if (fcntl(fd, F_GETFL) & O_DIRECT) {
            cr_assert_eq(write_now(fd, memory, 100, 0, true), -EINVAL);
            cr_assert_eq(write_now(fd, memory + 1, BLOCK, 0, true), -EINVAL);
            cr_assert_eq(write_now(fd, memory, BLOCK, 5, true), -EINVAL);
        }
        (void)close(full);
        (void)close(read_only);
        (void)close(fd);
        close_device();
    }
}

/* A file that may not grow further takes a part of a write, and then none. */
Test(wal_device, a_short_write_is_told_as_it_is)
{
    const struct rlimit limit = {2 * BLOCK, 2 * BLOCK};
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (unsigned engine = 0; engine < 2; engine++) {
        open_device(engines[engine]);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        cr_assert_geq(fd, 0);
        cr_assert_eq(write_now(fd, memory, 3 * BLOCK, 0, true), 2 * BLOCK);
        cr_assert_eq(write_now(fd, memory, BLOCK, 2 * BLOCK, true), -EFBIG);
        (void)close(fd);
        close_device();
    }
}

/* A plain device that is closed finishes first; one that has nothing to do closes at once. */
Test(wal_device, close_finishes_what_a_thread_has_begun)
{
    open_device(SETTINGS_IO_PLAIN);
    int fd = open_direct(O_RDWR | O_CREAT | O_TRUNC);
    struct tracked_request own = tracked();
    own.request.owner = &own;
    wal_device_write(device, &own.request, fd, memory, BLOCK, 0, true);
    close_device();
    cr_assert_eq(own.done, 1);
    cr_assert_eq(own.result, BLOCK);
    expect_contents(memory, BLOCK, 0);
    (void)close(fd);
    open_device(SETTINGS_IO_URING);
    close_device();
    wal_device_close(NULL);
}

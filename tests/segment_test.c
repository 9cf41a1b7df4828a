#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/layout.h"

enum { ALL_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL };

static const struct segment_options OPTIONS = {
    .ring_bytes = 64 * 1024, .store_bytes = 100000, .generation = 7};
static struct segment made;

static void create(void)
{
    struct weir_error error = {0};
    cr_assert_eq(segment_create(&made, &OPTIONS, &error), WEIR_OK, "%s", error.text);
}

static void create_published(void)
{
    create();
    segment_publish(&made);
}

static void close_made(void)
{
    segment_close(&made);
}

static unsigned open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    cr_assert_not_null(directory);
    unsigned count = 0;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* Attach must fail with `expected`, leave the descriptor to the caller, leak nothing and say why. */
static void expect_refused(int fd, enum weir_status expected)
{
    unsigned before = open_descriptors();
    struct segment segment;
    struct weir_error error = {0};
    cr_expect_eq(segment_attach(&segment, fd, &error), expected, "%s", error.text);
    cr_expect_neq(error.text[0], 0);
    cr_expect_null(segment.base);
    cr_expect_geq(fcntl(fd, F_GETFD), 0, "the descriptor stays the caller's");
    cr_expect_eq(open_descriptors(), before);
}

Test(segment, areas_lie_in_order_and_hold_what_was_asked, .init = create_published,
     .fini = close_made, .timeout = HANG_SECONDS)
{
    uint64_t ring_bytes, readers_bytes, store_bytes;
    char *ring = segment_ring(&made, &ring_bytes);
    char *readers = segment_readers(&made, &readers_bytes);
    char *store = segment_store(&made, &store_bytes);
    cr_assert_eq(ring_bytes, sizeof(struct ring_header) + 64 * 1024);
    cr_assert_eq(readers_bytes, sizeof(struct reader_table));
    cr_assert_eq(store_bytes, 102400, "rounded up to a page");
    cr_assert_geq(ring, made.base + sizeof(struct segment_header));
    cr_assert_geq(readers, ring + ring_bytes);
    cr_assert_geq(store, readers + readers_bytes);
    cr_assert_eq(store + store_bytes, made.base + made.bytes);
    cr_assert_eq((uintptr_t)ring % 4096, 0);
    cr_assert_eq((uintptr_t)readers % 4096, 0);
    cr_assert_eq((uintptr_t)store % 4096, 0);
}

Test(segment, ring_is_rounded_up_to_a_power_of_two, .timeout = HANG_SECONDS)
{
    struct segment_options options = {.ring_bytes = 65537, .store_bytes = 1, .generation = 1};
    cr_assert_eq(segment_create(&made, &options, NULL), WEIR_OK);
    uint64_t bytes;
    (void)segment_ring(&made, &bytes);
    cr_assert_eq(bytes - sizeof(struct ring_header), 131072);
    segment_close(&made);
}

Test(segment, sizes_out_of_bounds_are_invalid, .timeout = HANG_SECONDS)
{
    const struct segment_options bad[] = {
        {.ring_bytes = 4095, .store_bytes = 4096},
        {.ring_bytes = RING_BYTES_MAX + 1, .store_bytes = 4096},
        {.ring_bytes = 4096, .store_bytes = 0},
        {.ring_bytes = 4096, .store_bytes = STORE_BYTES_MAX + 1},
        {.ring_bytes = UINT64_MAX, .store_bytes = UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct weir_error error = {0};
        cr_assert_eq(segment_create(&made, &bad[i], &error), WEIR_INVALID);
        cr_assert_neq(error.text[0], 0);
        segment_close(&made); /* harmless after a failure */
    }
}

Test(segment, attached_mapping_shows_the_brokers_bytes, .init = create_published,
     .fini = close_made, .timeout = HANG_SECONDS)
{
    uint64_t bytes;
    strcpy(segment_store(&made, &bytes), "hello");
    struct segment seen;
    struct weir_error error = {0};
    cr_assert_eq(segment_attach(&seen, dup(made.fd), &error), WEIR_OK, "%s", error.text);
    cr_assert_str_eq(segment_store(&seen, &bytes), "hello");
    cr_assert_eq(bytes, 102400);
    cr_assert_eq(segment_generation(&seen), 7);
    cr_assert_eq(segment_hash_seed(&seen), segment_hash_seed(&made));
    cr_assert_not(seen.writable);
    strcpy(segment_store(&made, &bytes), "again");
    cr_assert_str_eq(segment_store(&seen, &bytes), "again");
    segment_close(&seen);
}

/* Whoever is given the descriptor can neither write nor resize, whatever it tries. */
Test(segment, descriptor_gives_no_way_to_write_or_resize, .init = create_published,
     .fini = close_made, .timeout = HANG_SECONDS)
{
    cr_assert_eq(mmap(NULL, made.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0),
                 MAP_FAILED);
    cr_assert_eq(errno, EPERM);
    cr_assert_eq(pwrite(made.fd, "x", 1, 0), -1);
    cr_assert_eq(errno, EPERM);
    cr_assert_eq(ftruncate(made.fd, 0), -1);
    cr_assert_eq(errno, EPERM);
    cr_assert_eq(ftruncate(made.fd, (off_t)made.bytes * 2), -1);
    cr_assert_eq(fallocate(made.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    cr_assert_eq(fcntl(made.fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    struct segment seen;
    cr_assert_eq(segment_attach(&seen, dup(made.fd), NULL), WEIR_OK);
    cr_assert_eq(mprotect(seen.base, seen.bytes, PROT_READ | PROT_WRITE), -1);
    segment_close(&seen);
    cr_assert_neq(fcntl(made.fd, F_GETFD) & FD_CLOEXEC, 0);
}

Test(segment, unfinished_segment_is_a_mismatch, .init = create, .fini = close_made,
     .timeout = HANG_SECONDS)
{
    expect_refused(made.fd, WEIR_MISMATCH);
    segment_publish(&made);
    struct segment seen;
    cr_assert_eq(segment_attach(&seen, dup(made.fd), NULL), WEIR_OK);
    segment_close(&seen);
}

Test(segment, what_is_no_sealed_memfd_is_refused, .timeout = HANG_SECONDS)
{
    int event_fd = eventfd(0, 0);
    expect_refused(event_fd, WEIR_INVALID);
    close(event_fd);

    char path[] = "/tmp/weir-segment-test-XXXXXX";
    int file = mkstemp(path);
    cr_assert_geq(file, 0);
    cr_assert_eq(ftruncate(file, 1 << 20), 0);
    expect_refused(file, WEIR_INVALID);
    close(file);
    unlink(path);

    int unsealed = memfd_create("unsealed", MFD_ALLOW_SEALING);
    cr_assert_eq(ftruncate(unsealed, 1 << 20), 0);
    expect_refused(unsealed, WEIR_INVALID);
    cr_assert_eq(fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    expect_refused(unsealed, WEIR_INVALID);
    close(unsealed);

    struct segment segment;
    struct weir_error error = {0};
    cr_assert_eq(segment_attach(&segment, -1, &error), WEIR_SYSTEM);
    cr_assert_eq(error.sys_errno, EBADF);
}

/* A sealed memfd of `bytes` that starts with `header`. */
static int forge(const struct segment_header *header, uint64_t bytes)
{
    int fd = memfd_create("forged", MFD_ALLOW_SEALING);
    cr_assert_geq(fd, 0);
    if (header != NULL)
        cr_assert_eq(pwrite(fd, header, sizeof *header, 0), (ssize_t)sizeof *header);
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    cr_assert_eq(fcntl(fd, F_ADD_SEALS, ALL_SEALS), 0);
    return fd;
}

Test(segment, too_short_or_empty_file_is_refused, .timeout = HANG_SECONDS)
{
    int empty = forge(NULL, 0);
    expect_refused(empty, WEIR_CORRUPT);
    close(empty);
    int short_file = forge(NULL, sizeof(struct segment_header) - 1);
    expect_refused(short_file, WEIR_CORRUPT);
    close(short_file);
    int zeros = forge(NULL, 1 << 20);
    expect_refused(zeros, WEIR_MISMATCH);
    close(zeros);
}

struct forgery {
    const char *what;
    size_t offset;
    uint64_t change; /* added to the field */
    enum weir_status expected;
};

#define FIELD(name) #name, offsetof(struct segment_header, name)

/* Every field attach relies on, made wrong one at a time; the unchanged copy must be accepted. */
Test(segment, every_wrong_header_field_is_noticed, .init = create_published, .fini = close_made,
     .timeout = HANG_SECONDS)
{
    static const struct forgery forgeries[] = {
        {FIELD(magic), 1, WEIR_MISMATCH},
        {FIELD(abi_version), 1, WEIR_MISMATCH},
        {FIELD(layout_hash), 1, WEIR_MISMATCH},
        {FIELD(segment_bytes), 4096, WEIR_CORRUPT},
        {FIELD(ring_offset), 8, WEIR_CORRUPT},
        {FIELD(ring_offset), (uint64_t)-4096, WEIR_CORRUPT},
        {FIELD(ring_bytes), 8, WEIR_CORRUPT},
        {FIELD(ring_bytes), 65536, WEIR_CORRUPT},
        {FIELD(ring_bytes), (uint64_t) - (4096 + 65536), WEIR_CORRUPT},
        {FIELD(ring_bytes), 1ull << 62, WEIR_CORRUPT},
        {FIELD(readers_offset), 4096, WEIR_CORRUPT},
        {FIELD(readers_bytes), 8, WEIR_CORRUPT},
        {FIELD(store_offset), 4096, WEIR_CORRUPT},
        {FIELD(store_offset), UINT64_MAX / 2, WEIR_CORRUPT},
        {FIELD(store_bytes), 4096, WEIR_CORRUPT},
        {FIELD(store_bytes), 1, WEIR_CORRUPT},
        {FIELD(store_bytes), (uint64_t)-102400, WEIR_CORRUPT},
        {FIELD(store_bytes), 1ull << 60, WEIR_CORRUPT},
    };
    struct segment_header header;
    memcpy(&header, made.base, sizeof header);
    int same = forge(&header, made.bytes);
    struct segment seen;
    cr_assert_eq(segment_attach(&seen, same, NULL), WEIR_OK);
    segment_close(&seen);
    for (size_t i = 0; i < sizeof forgeries / sizeof forgeries[0]; i++) {
        struct segment_header wrong = header;
        uint64_t value;
        memcpy(&value, (char *)&wrong + forgeries[i].offset, sizeof value);
        value += forgeries[i].change;
        memcpy((char *)&wrong + forgeries[i].offset, &value, sizeof value);
        int fd = forge(&wrong, made.bytes);
        struct weir_error error;
        cr_expect_eq(segment_attach(&seen, fd, &error), forgeries[i].expected, "%s",
                     forgeries[i].what);
        expect_refused(fd, forgeries[i].expected);
        close(fd);
    }
    int longer = forge(&header, made.bytes + 4096);
    expect_refused(longer, WEIR_CORRUPT);
    close(longer);
    int shorter = forge(&header, made.bytes - 4096);
    expect_refused(shorter, WEIR_CORRUPT);
    close(shorter);
}

Test(segment, hash_seeds_differ, .timeout = HANG_SECONDS)
{
    struct segment other;
    create();
    cr_assert_eq(segment_create(&other, &OPTIONS, NULL), WEIR_OK);
    cr_assert_neq(segment_hash_seed(&made), segment_hash_seed(&other));
    segment_close(&other);
    segment_close(&made);
}

Test(segment, create_and_close_leak_nothing, .timeout = HANG_SECONDS)
{
    unsigned before = open_descriptors();
    for (unsigned i = 0; i < 100; i++) {
        create_published();
        struct segment seen;
        cr_assert_eq(segment_attach(&seen, dup(made.fd), NULL), WEIR_OK);
        segment_close(&seen);
        segment_close(&made);
    }
    cr_assert_eq(open_descriptors(), before);
}

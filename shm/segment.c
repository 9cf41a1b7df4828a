#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/layout.h"
#include "shm/store_layout.h"

enum {
    SEGMENT_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL,
};

static uint64_t page_align(uint64_t bytes)
{
    return (bytes + (SEGMENT_PAGE_BYTES - 1)) & ~(uint64_t)(SEGMENT_PAGE_BYTES - 1);
}

static bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

uint64_t segment_layout_hash(void)
{
    static const uint64_t numbers[] = {
        SEGMENT_ABI_VERSION,
        sizeof(struct segment_header),
        offsetof(struct segment_header, layout_hash),
        offsetof(struct segment_header, hash_seed),
        offsetof(struct segment_header, segment_bytes),
        offsetof(struct segment_header, ring_offset),
        offsetof(struct segment_header, readers_offset),
        offsetof(struct segment_header, store_offset),
        sizeof(struct ring_header),
        offsetof(struct ring_header, capacity_bytes),
        offsetof(struct ring_header, reserved),
        offsetof(struct ring_header, head),
        sizeof(struct ring_slot),
        offsetof(struct ring_slot, record),
        sizeof(struct ring_record),
        offsetof(struct ring_record, position),
        offsetof(struct ring_record, previous_position),
        offsetof(struct ring_record, group_offset),
        offsetof(struct ring_record, group_hash),
        offsetof(struct ring_record, item_hash),
        offsetof(struct ring_record, seq),
        offsetof(struct ring_record, epoch),
        offsetof(struct ring_record, timestamp_ms),
        offsetof(struct ring_record, kind),
        offsetof(struct ring_record, frame_bytes),
        offsetof(struct ring_record, json_offset),
        offsetof(struct ring_record, id_bytes),
        offsetof(struct ring_record, names_offset),
        offsetof(struct ring_record, data_offset),
        offsetof(struct ring_record, data_bytes),
        sizeof(struct reader_table),
        offsetof(struct reader_table, store_epoch),
        offsetof(struct reader_table, slots),
        sizeof(struct reader_slot),
        offsetof(struct reader_slot, use),
        offsetof(struct reader_slot, revoked_epoch),
        offsetof(struct reader_slot, pid),
        offsetof(struct reader_slot, counters),
        sizeof(struct control_page),
        offsetof(struct control_page, asleep),
        offsetof(struct control_page, reading_epoch),
        offsetof(struct control_page, cursor_position),
        offsetof(struct control_page, slot),
        offsetof(struct control_page, use),
        offsetof(struct control_page, counters),
        offsetof(struct control_page, chooses),
        offsetof(struct control_page, wanted),
        STORE_LAYOUT_MAGIC,
        STORE_FIRST_BLOCK,
        STORE_EPOCH_BUCKETS,
        sizeof(struct store_root),
        offsetof(struct store_root, first_stream),
        offsetof(struct store_root, stream_index),
        offsetof(struct store_root, group_index),
        offsetof(struct store_root, item_index),
        offsetof(struct store_root, next_epochs),
        sizeof(struct index_root),
        sizeof(struct stream_block),
        offsetof(struct stream_block, next),
        offsetof(struct stream_block, first_group),
        offsetof(struct stream_block, hash),
        offsetof(struct stream_block, name_bytes),
        sizeof(struct group_block),
        offsetof(struct group_block, hash),
        offsetof(struct group_block, epoch),
        offsetof(struct group_block, stream),
        offsetof(struct group_block, stream_bytes),
        offsetof(struct group_block, group_bytes),
        offsetof(struct group_block, next),
        offsetof(struct group_block, first_item),
        offsetof(struct group_block, begun_seq),
        offsetof(struct group_block, version),
        offsetof(struct group_block, newest_position),
        offsetof(struct group_block, numbers),
        sizeof(struct store_numbers),
        sizeof(struct item_block),
        offsetof(struct item_block, next),
        offsetof(struct item_block, group),
        offsetof(struct item_block, created_seq),
        offsetof(struct item_block, modified_seq),
        offsetof(struct item_block, item_hash),
        offsetof(struct item_block, id_bytes),
        offsetof(struct item_block, value_bytes),
    };
    /* FNV-1a over whole numbers: cheap, and every number and its place count. */
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        hash = (hash ^ numbers[i]) * 0x100000001b3ull;
    return hash;
}

static struct segment_header *segment_header(const struct segment *segment)
{
    return (struct segment_header *)(void *)segment->base;
}

/* The areas' places follow from their sizes; create lays out with it, attach compares with it. */
static void segment_lay_out(struct segment *segment, uint64_t capacity_bytes, uint64_t store_bytes)
{
    segment->ring_offset = sizeof(struct segment_header);
    segment->ring_bytes = sizeof(struct ring_header) + capacity_bytes;
    segment->readers_offset = page_align(segment->ring_offset + segment->ring_bytes);
    segment->readers_bytes = sizeof(struct reader_table);
    segment->store_offset = page_align(segment->readers_offset + segment->readers_bytes);
    segment->store_bytes = store_bytes;
    segment->bytes = segment->store_offset + segment->store_bytes;
}

static enum weir_status segment_fill_random(uint64_t *seed, struct weir_error *error)
{
    ssize_t got;
    do {
        got = getrandom(seed, sizeof *seed, 0);
    } while (got < 0 && errno == EINTR);
    if (got == (ssize_t)sizeof *seed)
        return WEIR_OK;
    return weir_fail_errno(error, got < 0 ? errno : EIO, "no random bytes for the segment's seed");
}

enum weir_status segment_create(struct segment *segment, const struct segment_options *options,
                                struct weir_error *error)
{
    *segment = (struct segment){.fd = -1};
    if (options->ring_bytes < SEGMENT_PAGE_BYTES || options->ring_bytes > RING_BYTES_MAX)
        return weir_fail(error, WEIR_INVALID, "a ring of %llu bytes is outside %u ... %llu",
                         (unsigned long long)options->ring_bytes, (unsigned)SEGMENT_PAGE_BYTES,
                         (unsigned long long)RING_BYTES_MAX);
    if (options->store_bytes == 0 || options->store_bytes > STORE_BYTES_MAX)
        return weir_fail(error, WEIR_INVALID, "a store of %llu bytes is outside 1 ... %llu",
                         (unsigned long long)options->store_bytes,
                         (unsigned long long)STORE_BYTES_MAX);
    uint64_t seed;
    enum weir_status status = segment_fill_random(&seed, error);
    if (status != WEIR_OK)
        return status;

    uint64_t capacity_bytes = SEGMENT_PAGE_BYTES;
    while (capacity_bytes < options->ring_bytes)
        capacity_bytes *= 2;
    struct segment made = {.fd = -1, .writable = true};
    segment_lay_out(&made, capacity_bytes, page_align(options->store_bytes));

    made.fd = memfd_create("weir-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made.fd < 0)
        return weir_fail_errno(error, errno, "memfd_create for the segment");
    if (ftruncate(made.fd, (off_t)made.bytes) != 0) {
        status = weir_fail_errno(error, errno, "a segment of %llu bytes",
                                 (unsigned long long)made.bytes);
        goto cleanup;
    }
    void *base =
        mmap(NULL, made.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, made.fd, 0);
    if (base == MAP_FAILED) {
        status = weir_fail_errno(error, errno, "mapping a segment of %llu bytes",
                                 (unsigned long long)made.bytes);
        goto cleanup;
    }
    made.base = base;
    /* After the broker's own mapping: from here on nobody, the broker included, can map it
     * writable. */
    if (fcntl(made.fd, F_ADD_SEALS, SEGMENT_SEALS) != 0) {
        status =
            weir_fail_errno(error, errno, "sealing the segment (Linux 5.1 or newer is needed)");
        goto cleanup;
    }

    struct segment_header *header = segment_header(&made);
    header->abi_version = SEGMENT_ABI_VERSION;
    header->layout_hash = segment_layout_hash();
    header->generation = options->generation;
    header->hash_seed = seed;
    header->segment_bytes = made.bytes;
    header->ring_offset = made.ring_offset;
    header->ring_bytes = made.ring_bytes;
    header->readers_offset = made.readers_offset;
    header->readers_bytes = made.readers_bytes;
    header->store_offset = made.store_offset;
    header->store_bytes = made.store_bytes;
    *segment = made;
    return WEIR_OK;

cleanup:
    segment_close(&made);
    return status;
}

void segment_publish(struct segment *segment)
{
    weir_assert(segment->writable);
    /* Everything initialised before is visible to who sees the magic; pairs with
     * segment_check_header(). */
    atomic_store_explicit(&segment_header(segment)->magic, SEGMENT_MAGIC, memory_order_release);
}

/* Stage 1: what kind of file is this? Answered by the kernel, not by the file's contents. */
static enum weir_status segment_check_file(int fd, uint64_t *bytes, struct weir_error *error)
{
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) {
        int sys_errno = errno;
        if (sys_errno == EINVAL)
            return weir_fail(error, WEIR_INVALID, "the segment's descriptor is not a memfd");
        return weir_fail_errno(error, sys_errno, "reading the segment's seals");
    }
    if ((seals & SEGMENT_SEALS) != SEGMENT_SEALS)
        return weir_fail(error, WEIR_INVALID, "the segment lacks seals (has %#x, needs %#x)",
                         (unsigned)seals, (unsigned)SEGMENT_SEALS);
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return weir_fail_errno(error, errno, "fstat of the segment");
    if (stat.st_size < (off_t)sizeof(struct segment_header))
        return weir_fail(error, WEIR_CORRUPT, "a segment of %lld bytes has no room for its header",
                         (long long)stat.st_size);
    *bytes = (uint64_t)stat.st_size;
    return WEIR_OK;
}

/* Stage 2: is it a finished segment of this build's layout? */
static enum weir_status segment_check_header(const struct segment_header *header,
                                             struct weir_error *error)
{
    /* Acquire: pairs with segment_publish(). */
    if (atomic_load_explicit(&header->magic, memory_order_acquire) != SEGMENT_MAGIC)
        return weir_fail(error, WEIR_MISMATCH, "not a segment, or one that is not finished yet");
    if (header->abi_version != SEGMENT_ABI_VERSION)
        return weir_fail(error, WEIR_MISMATCH, "the segment has version %u, this program needs %u",
                         header->abi_version, SEGMENT_ABI_VERSION);
    if (header->layout_hash != segment_layout_hash())
        return weir_fail(error, WEIR_MISMATCH, "the segment was laid out by another build");
    return WEIR_OK;
}

/* Stage 3: do the areas lie where areas of these sizes must lie, inside the file? */
static enum weir_status segment_check_areas(const struct segment_header *header,
                                            struct segment *segment, struct weir_error *error)
{
    uint64_t file_bytes = segment->bytes;
    uint64_t capacity_bytes = header->ring_bytes - sizeof(struct ring_header);
    if (header->ring_bytes <= sizeof(struct ring_header) || !is_power_of_two(capacity_bytes) ||
        capacity_bytes > RING_BYTES_MAX)
        return weir_fail(error, WEIR_CORRUPT, "the segment's ring has an impossible size");
    if (header->store_bytes == 0 || header->store_bytes > STORE_BYTES_MAX ||
        header->store_bytes % SEGMENT_PAGE_BYTES != 0)
        return weir_fail(error, WEIR_CORRUPT, "the segment's store has an impossible size");
    segment_lay_out(segment, capacity_bytes, header->store_bytes);
    bool fits = segment->bytes == file_bytes && header->segment_bytes == file_bytes &&
                header->ring_offset == segment->ring_offset &&
                header->readers_offset == segment->readers_offset &&
                header->readers_bytes == segment->readers_bytes &&
                header->store_offset == segment->store_offset;
    segment->bytes = file_bytes; /* what is mapped and has to be unmapped */
    if (!fits)
        return weir_fail(error, WEIR_CORRUPT, "the segment's areas do not fit its length");
    return WEIR_OK;
}

enum weir_status segment_attach(struct segment *segment, int fd, struct weir_error *error)
{
    *segment = (struct segment){.fd = -1};
    struct segment seen = {.fd = -1};
    enum weir_status status = segment_check_file(fd, &seen.bytes, error);
    if (status != WEIR_OK)
        return status;
    void *base = mmap(NULL, seen.bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return weir_fail_errno(error, errno, "mapping the segment");
    seen.base = base;
    status = segment_check_header(segment_header(&seen), error);
    if (status == WEIR_OK)
        status = segment_check_areas(segment_header(&seen), &seen, error);
    if (status != WEIR_OK) {
        segment_close(&seen);
        return status;
    }
    seen.fd = fd;
    *segment = seen;
    return WEIR_OK;
}

void segment_close(struct segment *segment)
{
    if (segment->base != NULL)
        (void)munmap(segment->base, segment->bytes);
    if (segment->fd >= 0)
        (void)close(segment->fd);
    *segment = (struct segment){.fd = -1};
}

uint64_t segment_generation(const struct segment *segment)
{
    return segment_header(segment)->generation;
}

uint64_t segment_hash_seed(const struct segment *segment)
{
    return segment_header(segment)->hash_seed;
}

char *segment_ring(const struct segment *segment, uint64_t *bytes)
{
    *bytes = segment->ring_bytes;
    return segment->base + segment->ring_offset;
}

char *segment_readers(const struct segment *segment, uint64_t *bytes)
{
    *bytes = segment->readers_bytes;
    return segment->base + segment->readers_offset;
}

char *segment_store(const struct segment *segment, uint64_t *bytes)
{
    *bytes = segment->store_bytes;
    return segment->base + segment->store_offset;
}

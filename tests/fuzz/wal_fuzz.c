/* Fuzz target of broker/wal_recovery.h: a file of a log, from its first frame on. The first byte says
 * what to make of it: 1 = it is a snapshot (beside an empty segment), 2 = frames get the checksums
 * that belong to them, so that their records are reached, 4 = the segment was made larger than it is,
 * 8 = a second segment follows, with a frame of the number in the second byte. */
#include <stdio.h>
#include <stdlib.h>

#include "shm/hash.h"
#include "tests/wal_build.h"
#include "tests/wal_memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum {
    FLAG_SNAPSHOT = 1,
    FLAG_SEAL = 2,
    FLAG_SHORT = 4,
    FLAG_FOLLOWED = 8,
    INPUT_HEADER_BYTES = 2,
    INPUT_BYTES_MAX = 256 * 1024,
    LOG_ID = 7,
    CUTS_MAX = 100,
};

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "broken: %s\n", what);
    abort();
}

struct sum {
    uint64_t hash;
    uint64_t count;
};

static enum weir_status take(void *context, const struct wal_position *position,
                             const struct wal_record *record, struct weir_error *error)
{
    struct sum *sum = context;
    const struct span parts[] = {record->stream, record->group, record->item, record->event_type,
                                 record->value};
    (void)error;
    require(wal_record_fits(record->kind, position->kind), "records are of their file's kind");
    for (size_t i = 0; i < 5; i++) {
        require(i == 4 || parts[i].bytes <= NAME_BYTES_MAX, "names have their limit");
        sum->hash = hash_pair(sum->hash, hash_bytes(i, parts[i]));
    }
    sum->hash = hash_pair(sum->hash, record->seq);
    sum->count++;
    return WEIR_OK;
}

static enum weir_status recover(struct wal_memory *memory, struct sum *sum,
                                struct wal_recovered *recovered, struct weir_error *error)
{
    const struct wal_recovery_options options = {
        .io = &memory->io, .directory = "d", .take = take, .context = sum};
    *sum = (struct sum){0};
    *error = (struct weir_error){0};
    enum weir_status status = wal_recover(&options, recovered, error);
    require(status == WEIR_OK || status == WEIR_CORRUPT || status == WEIR_MISMATCH,
            "nothing else goes wrong");
    require(status == WEIR_OK || strstr(error->text, "offset") != NULL ||
                strstr(error->text, "missing") != NULL,
            "a refusal says where");
    for (size_t fd = 0; fd < WAL_MEMORY_FDS; fd++)
        require(memory->fds[fd] == 0, "files are closed");
    return status;
}

/* Checksums of whatever has the look of a frame. */
static void seal(char *file, size_t bytes, uint64_t number)
{
    for (size_t at = WAL_BLOCK_BYTES; at + WAL_FRAME_HEADER_BYTES <= bytes; at += WAL_BLOCK_BYTES) {
        const uint64_t place[3] = {LOG_ID, number, at};
        uint32_t sum = wal_checksum(0, place, sizeof place);
        uint32_t payload;
        uint32_t body;
        memcpy(&payload, file + at + 12, sizeof payload);
        if (memcmp(file + at, "wFrm", 4) != 0 || payload > bytes - at - WAL_FRAME_HEADER_BYTES)
            continue;
        body = wal_checksum(sum, file + at + WAL_FRAME_HEADER_BYTES, payload);
        memcpy(file + at + 8, &body, sizeof body);
        sum = wal_checksum(sum, file + at + 8, WAL_FRAME_HEADER_BYTES - 8);
        memcpy(file + at + 4, &sum, sizeof sum);
    }
}

static void build(struct wal_memory *memory, const uint8_t *data, size_t bytes)
{
    struct wal_build log;
    const struct wal_record record = {.kind = WAL_DELETE, .item = SPAN_LITERAL("i")};
    unsigned flags = data[0];
    bool is_snapshot = (flags & FLAG_SNAPSHOT) != 0;
    enum wal_file_kind kind = is_snapshot ? WAL_FILE_SNAPSHOT : WAL_FILE_LOG;
    size_t used = bytes - INPUT_HEADER_BYTES;
    wal_build_open(&log, &memory->io, "d", LOG_ID, WAL_BLOCK_BYTES + used);
    log.segment_bytes += (flags & FLAG_SHORT) != 0 ? 1 : 0;
    if (is_snapshot)
        wal_build_prepare(&log, 1);
    wal_build_header(&log, kind, 1, is_snapshot ? 1 : 0);
    if (used > 0)
        wal_build_write(&log, kind, 1, WAL_BLOCK_BYTES, data + INPUT_HEADER_BYTES, used);
    if ((flags & FLAG_SEAL) != 0) {
        struct wal_memory_file *file = wal_memory_find(
            memory, is_snapshot ? "snapshot-00000000000000000001" : "log-00000000000000000001");
        require(file != NULL, "the file is there");
        seal(file->data, file->bytes, 1);
    }
    if ((flags & FLAG_FOLLOWED) != 0) {
        log.segment_bytes = 4 * (size_t)WAL_BLOCK_BYTES;
        wal_build_segment(&log, 2);
        (void)wal_build_frame_seq(&log, data[1] > 0 ? data[1] : 1, &record, 1);
    }
    require(wal_build_is_ok(&log), "memory");
}

/* What the sentence names can be cut off, again and again until nothing is wrong. */
static void check_remedy(struct wal_memory *memory, struct weir_error *error)
{
    struct wal_recovered recovered;
    struct sum sum;
    enum weir_status status = WEIR_CORRUPT;
    for (size_t i = 0; i < CUTS_MAX && status != WEIR_OK; i++) {
        unsigned long long segment = 0;
        unsigned long long offset = 0;
        const char *remedy = strstr(error->text, "--cut-at ");
        if (remedy == NULL)
            return;
        require(sscanf(remedy, "--cut-at %llu:%llu", &segment, &offset) == 2, "a place is named");
        status = wal_cut(&memory->io, "d", segment, offset, error);
        require(status == WEIR_OK, "the remedy works");
        status = recover(memory, &sum, &recovered, error);
    }
    require(status == WEIR_OK, "remedies come to an end");
}

static void check_log(struct wal_memory *memory)
{
    struct weir_error error;
    struct wal_recovered recovered;
    struct wal_recovered again;
    struct sum sum;
    struct sum sum_again;
    if (recover(memory, &sum, &recovered, &error) != WEIR_OK) {
        check_remedy(memory, &error);
        return;
    }
    require(wal_clean(&memory->io, "d", &recovered, &error) == WEIR_OK, "cleaning works");
    require(recover(memory, &sum_again, &again, &error) == WEIR_OK, "a clean log is whole");
    require(again.cut_bytes == 0, "nothing is left to cut");
    require(sum.count == sum_again.count && sum.hash == sum_again.hash, "the records are the same");
    require(again.next_seq == recovered.next_seq && again.end_offset == recovered.end_offset &&
                again.end_segment == recovered.end_segment,
            "the log goes on at the same place");
}

/* In a block of exactly its size, so that AddressSanitizer sees a read beyond it. */
static void check_records(const uint8_t *data, size_t bytes)
{
    struct wal_record record;
    size_t cursor = 0;
    char *payload = malloc(bytes > 0 ? bytes : 1);
    require(payload != NULL, "memory");
    memcpy(payload, data, bytes);
    while (wal_record_decode(span_of(payload, bytes), &cursor, &record) == WEIR_OK) {
        char *copy = malloc(wal_record_bytes(&record));
        size_t length = wal_record_bytes(&record);
        require(copy != NULL, "memory");
        wal_record_encode(copy, &record);
        require(memcmp(copy, payload + cursor - length, length) == 0, "a record has one form only");
        free(copy);
    }
    free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < INPUT_HEADER_BYTES || bytes > INPUT_BYTES_MAX)
        return 0;
    struct wal_memory memory;
    wal_memory_init(&memory);
    check_records(data + INPUT_HEADER_BYTES, bytes - INPUT_HEADER_BYTES);
    build(&memory, data, bytes);
    check_log(&memory);
    wal_memory_fini(&memory);
    return 0;
}

/* Reading a log directory: what is whole comes back as it was, what was interrupted is cut off and
 * told, what is damaged is refused with its place. Models and faults run over files in memory. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "broker/wal_recovery.h"
#include "shm/hash.h"
#include "tests/wal_build.h"
#include "tests/wal_faults.h"
#include "tests/wal_memory.h"
#include "tests/wal_random.h"

enum {
    LOG_ID = 0x5eed,
    SEGMENT_BYTES = 96 * 1024,
    TAKEN_MAX = 4096,
    FRAME_RECORDS_MAX = 6,
};

/* ---- memory that runs out ---- */

/* The test is linked with --wrap, so every malloc() and realloc() of the code under test comes here. */
static uint64_t allocations_left = UINT64_MAX;

void *__real_malloc(size_t bytes);
void *__real_realloc(void *data, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_realloc(void *data, size_t bytes);

static bool is_allocation_failing(void)
{
    if (allocations_left == UINT64_MAX)
        return false;
    if (allocations_left == 0)
        return true;
    allocations_left--;
    return false;
}

void *__wrap_malloc(size_t bytes)
{
    return is_allocation_failing() ? NULL : __real_malloc(bytes);
}

void *__wrap_realloc(void *data, size_t bytes)
{
    return is_allocation_failing() ? NULL : __real_realloc(data, bytes);
}

/* ---- chance ---- */

/* One thread is all there is here, so a build that looks for races need not see every case. */
#ifdef __SANITIZE_THREAD__
enum { ROUNDS_SHARE = 20 };
#else
enum { ROUNDS_SHARE = 1 };
#endif

static size_t rounds(size_t count)
{
    return count / ROUNDS_SHARE;
}

static bool is_chance(uint64_t one_in)
{
    return random_below(one_in) == 0;
}

/* What names and values are made of: text, and NULs in names. No byte has just one bit set
 * (wal_frame_is_complete()). */
static char texts[16384];
static char nul_texts[16384];

static void fill_texts(void)
{
    for (size_t i = 0; i < sizeof texts; i++) {
        texts[i] = (char)(random_next() | 0x81);
        nul_texts[i] = is_chance(40) ? texts[i] : 0;
    }
}

static struct span random_text(size_t bytes_max, bool may_be_nul)
{
    const char *source = may_be_nul && is_chance(10) ? nul_texts : texts;
    size_t bytes = 1 + (size_t)random_below(bytes_max);
    return span_of(source + random_below(sizeof texts - bytes), bytes);
}

static struct wal_record random_change(void)
{
    struct wal_record record = {
        .kind = (enum wal_record_kind)(WAL_SET + random_below(3)),
        .event = (uint32_t)random_below(6),
        .step = 1 + (uint32_t)random_below(2),
        .epoch = random_next(),
        .seq = random_next(),
        .timestamp_ms = random_next(),
        .origin = random_next(),
        .request = random_next(),
        .stream = random_text(20, true),
        .group = random_text(is_chance(10) ? NAME_BYTES_MAX : 30, true),
        .item = random_text(30, true),
    };
    if (record.kind != WAL_DELETE)
        record.value = random_text(is_chance(8) ? 9000 : 200, false);
    return record;
}

static struct wal_record random_kept(bool is_first)
{
    struct wal_record record = {
        .kind = is_first || is_chance(4) ? WAL_GROUP : WAL_ITEM,
        .epoch = random_next(),
        .seq = random_next(),
        .timestamp_ms = random_next(),
    };
    if (record.kind == WAL_GROUP) {
        record.stream = random_text(20, true);
        record.group = random_text(30, true);
    } else {
        record.created_seq = random_next();
        record.modified_seq = random_next();
        record.item = random_text(30, true);
        record.value = random_text(is_chance(8) ? 9000 : 200, false);
    }
    return record;
}

/* ---- what came back ---- */

static uint64_t hash_record(const struct wal_record *record)
{
    const struct span parts[] = {record->stream, record->group, record->item, record->event_type,
                                 record->value};
    const uint64_t numbers[] = {record->kind,        record->event,   record->step,
                                record->epoch,       record->seq,     record->timestamp_ms,
                                record->origin,      record->request, record->created_seq,
                                record->modified_seq};
    uint64_t hash = hash_bytes(1, span_of(numbers, sizeof numbers));
    for (size_t i = 0; i < 5; i++) /* stream and group have no "none" */
        hash = hash_pair(hash, hash_bytes(i < 2 || parts[i].data != NULL ? 2 : 3, parts[i]));
    return hash;
}

/* Records in order, as hashes. */
struct taken {
    uint64_t hashes[TAKEN_MAX];
    size_t count;
    uint64_t frames;
    uint64_t last_seq;
};

static enum weir_status take(void *context, const struct wal_position *position,
                             const struct wal_record *record, struct weir_error *error)
{
    struct taken *taken = context;
    (void)error;
    cr_assert_lt(taken->count, TAKEN_MAX);
    taken->hashes[taken->count++] = hash_record(record);
    taken->last_seq = position->seq;
    return WEIR_OK;
}

static enum weir_status take_frame(void *context, const struct wal_position *position,
                                   const struct wal_frame_header *header)
{
    struct taken *taken = context;
    cr_assert_eq(position->seq, header->seq);
    taken->frames++;
    return WEIR_OK;
}

static enum weir_status recover_io(const struct wal_io *io, struct taken *taken,
                                   struct wal_recovered *recovered, struct weir_error *error)
{
    const struct wal_recovery_options options = {
        .io = io, .directory = "dir", .take = take, .take_frame = take_frame, .context = taken};
    taken->count = 0;
    taken->frames = 0;
    taken->last_seq = 0;
    return wal_recover(&options, recovered, error);
}

/* ---- the world of most tests: a log in memory and what it should give ---- */

static struct wal_memory memory;
static struct wal_memory saved;
static struct wal_build build;
static struct taken model; /* every record that was put in, the snapshot's first */
static struct taken taken;
static struct wal_recovered recovered;
static struct weir_error error;

/* Of each frame of the log: where it is, and the records that came before it. */
static struct wal_spot spots[TAKEN_MAX];
static size_t records_before[TAKEN_MAX + 1];
static size_t spot_count;

static void start_log(void)
{
    wal_memory_fini(&memory);
    wal_memory_init(&memory);
    wal_build_open(&build, &memory.io, "dir", LOG_ID, SEGMENT_BYTES);
    model.count = 0;
    spot_count = 0;
}

static void setup(void)
{
    seed_random();
    fill_texts();
    wal_memory_init(&saved);
    wal_memory_init(&memory);
    start_log();
}

static void teardown(void)
{
    wal_memory_fini(&memory);
    wal_memory_fini(&saved);
}

TestSuite(wal_recovery, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static size_t random_changes(struct wal_record records[FRAME_RECORDS_MAX])
{
    size_t count = 1 + (size_t)random_below(FRAME_RECORDS_MAX);
    for (size_t i = 0; i < count; i++)
        records[i] = random_change();
    return count;
}

/* A frame of random records into the current segment, or the next when it is full. */
static struct wal_spot put_frame(void)
{
    struct wal_record records[FRAME_RECORDS_MAX];
    size_t count = random_changes(records);
    if (!wal_build_has_room(&build, records, count))
        wal_build_segment(&build, build.segment + 1);
    records_before[spot_count] = model.count;
    for (size_t i = 0; i < count; i++)
        model.hashes[model.count++] = hash_record(&records[i]);
    struct wal_spot spot = wal_build_frame(&build, records, count);
    spots[spot_count++] = spot;
    records_before[spot_count] = model.count;
    cr_assert(wal_build_is_ok(&build));
    return spot;
}

static void put_frames(size_t count)
{
    for (size_t i = 0; i < count; i++)
        (void)put_frame();
}

/* Snapshot `number` with random items, and its segment begun. */
static void put_snapshot(uint64_t number, uint64_t end_seq)
{
    struct wal_record records[40];
    size_t count = 1 + (size_t)random_below(40);
    for (size_t i = 0; i < count; i++) {
        records[i] = random_kept(i == 0);
        model.hashes[model.count++] = hash_record(&records[i]);
    }
    const struct wal_record end = {.kind = WAL_END, .seq = end_seq};
    model.hashes[model.count++] = hash_record(&end);
    wal_build_snapshot(&build, number, build.seq, records, count, 1 + (size_t)random_below(20),
                       end_seq);
    wal_build_segment(&build, number);
}

static enum weir_status recover(void)
{
    error = (struct weir_error){0};
    return recover_io(&memory.io, &taken, &recovered, &error);
}

static void assert_recovers(size_t records)
{
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    cr_assert_eq(taken.count, records);
    cr_assert(memcmp(taken.hashes, model.hashes, records * sizeof model.hashes[0]) == 0);
    cr_assert_eq(recovered.records, records);
    cr_assert_eq(recovered.frames, taken.frames);
    cr_assert_eq(wal_memory_open_count(&memory), 0);
}

static bool is_refused(enum weir_status status)
{
    return status == WEIR_CORRUPT || status == WEIR_MISMATCH;
}

static void name_of(char name[WAL_PATH_BYTES], enum wal_file_kind kind, uint64_t number)
{
    char path[WAL_PATH_BYTES];
    wal_path(path, "dir", kind, number);
    (void)snprintf(name, WAL_PATH_BYTES, "%s", path + strlen("dir/"));
}

static void assert_refused(enum wal_file_kind kind, uint64_t number, uint64_t offset)
{
    char name[WAL_PATH_BYTES];
    char place[64];
    name_of(name, kind, number);
    (void)snprintf(place, sizeof place, "offset %llu:", (unsigned long long)offset);
    enum weir_status status = recover();
    cr_assert(is_refused(status), "%d %s", status, error.text);
    cr_assert_eq(strncmp(error.text, name, strlen(name)), 0, "%s is not in front of: %s", name,
                 error.text);
    cr_assert_not_null(strstr(error.text, place), "%s is not in: %s", place, error.text);
    cr_assert_not_null(strstr(error.text, "from a copy"), "%s", error.text);
    cr_assert_lt(strlen(error.text), sizeof error.text - 1, "cut short: %s", error.text);
    cr_assert_eq(wal_memory_open_count(&memory), 0);
}

static struct wal_memory_file *file_of(enum wal_file_kind kind, uint64_t number)
{
    char path[WAL_PATH_BYTES];
    wal_path(path, "dir", kind, number);
    struct wal_memory_file *file = wal_memory_find(&memory, path);
    cr_assert_not_null(file, "%s", path);
    return file;
}

static char *at(const struct wal_spot *spot)
{
    return file_of(WAL_FILE_LOG, spot->segment)->data + spot->offset;
}

static void remove_file(enum wal_file_kind kind, uint64_t number)
{
    wal_memory_drop(file_of(kind, number));
}

static void save(void)
{
    cr_assert(wal_memory_copy(&saved, &memory));
}

static void restore(void)
{
    cr_assert(wal_memory_copy(&memory, &saved));
}

static void clean(void)
{
    cr_assert_eq(wal_clean(&memory.io, "dir", &recovered, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(wal_memory_open_count(&memory), 0);
}

/* After a cut: cleaned, it reads as before with nothing to cut, and can be written on. */
static void assert_goes_on(void)
{
    struct wal_record record = random_change();
    size_t records = taken.count;
    const struct wal_recovered found = recovered;
    memcpy(model.hashes, taken.hashes, records * sizeof taken.hashes[0]);
    clean();
    assert_recovers(records);
    cr_assert_eq(recovered.cut_bytes, 0);
    cr_assert_eq(recovered.next_seq, found.next_seq);
    cr_assert_eq(recovered.end_offset, found.end_offset);
    build.segment = recovered.end_segment > 0 ? recovered.end_segment : recovered.first_segment;
    build.offset = recovered.end_segment > 0 ? recovered.end_offset : WAL_BLOCK_BYTES;
    build.seq = recovered.next_seq;
    build.unsynced = 0;
    if (!wal_build_has_room(&build, &record, 1))
        return;
    (void)wal_build_frame(&build, &record, 1);
    model.hashes[records] = hash_record(&record);
    assert_recovers(records + 1);
}

/* ---- the table ---- */

/* Whatever is found, one row says what it means. */
Test(wal_recovery, every_finding_has_one_verdict)
{
    size_t findings = 0;
    for (int header = WAL_HEADER_GOOD; header <= WAL_HEADER_BAD; header++)
        for (int body = WAL_BODY_GOOD; body <= WAL_BODY_NONE; body++)
            for (int number = WAL_NUMBER_NEXT; number <= WAL_NUMBER_NONE; number++)
                for (int behind = WAL_BEHIND_NOTHING; behind <= WAL_BEHIND_FRAMES; behind++) {
                    const struct wal_finding finding = {
                        (enum wal_header_state)header, (enum wal_body_state)body,
                        (enum wal_number_state)number, (enum wal_behind_state)behind};
                    const char *why = NULL;
                    enum wal_verdict verdict = wal_verdict(&finding, &why);
                    cr_assert_eq(wal_verdict_rows(&finding), 1, "%d %d %d %d", header, body, number,
                                 behind);
                    cr_assert_not_null(why);
                    /* Only what proves itself is taken; only what cannot hold an acknowledged frame is
                     * cut. */
                    if (verdict == WAL_VERDICT_TAKE || verdict == WAL_VERDICT_PASS)
                        cr_assert(header == WAL_HEADER_GOOD && body == WAL_BODY_GOOD);
                    if (verdict == WAL_VERDICT_CUT || verdict == WAL_VERDICT_ABANDON)
                        cr_assert(header == WAL_HEADER_CUT || header == WAL_HEADER_ZERO ||
                                  body == WAL_BODY_INCOMPLETE);
                    if (header == WAL_HEADER_BAD || body == WAL_BODY_BAD ||
                        number == WAL_NUMBER_AHEAD)
                        cr_assert_eq(verdict, WAL_VERDICT_DAMAGED);
                    findings++;
                }
    cr_assert_eq(findings, 4 * 4 * 4 * 5);
}

Test(wal_recovery, verdicts)
{
    static const struct {
        struct wal_finding finding;
        enum wal_verdict verdict;
    } cases[] = {
        {{WAL_HEADER_GOOD, WAL_BODY_GOOD, WAL_NUMBER_NEXT, WAL_BEHIND_NOTHING}, WAL_VERDICT_TAKE},
        {{WAL_HEADER_GOOD, WAL_BODY_GOOD, WAL_NUMBER_NEXT, WAL_BEHIND_FRAMES}, WAL_VERDICT_TAKE},
        {{WAL_HEADER_GOOD, WAL_BODY_GOOD, WAL_NUMBER_SEEN, WAL_BEHIND_NOTHING}, WAL_VERDICT_PASS},
        {{WAL_HEADER_GOOD, WAL_BODY_GOOD, WAL_NUMBER_AHEAD, WAL_BEHIND_NOTHING},
         WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_NEXT, WAL_BEHIND_NOTHING},
         WAL_VERDICT_CUT},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_NEXT, WAL_BEHIND_LOOSE},
         WAL_VERDICT_CUT},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_SEEN, WAL_BEHIND_NOTHING},
         WAL_VERDICT_CUT},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_NEXT, WAL_BEHIND_CONTINUED},
         WAL_VERDICT_ABANDON},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_NEXT, WAL_BEHIND_BYTES},
         WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_GOOD, WAL_BODY_INCOMPLETE, WAL_NUMBER_NEXT, WAL_BEHIND_FRAMES},
         WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_GOOD, WAL_BODY_BAD, WAL_NUMBER_NEXT, WAL_BEHIND_NOTHING}, WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_GOOD, WAL_BODY_BAD, WAL_NUMBER_NEXT, WAL_BEHIND_CONTINUED},
         WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_ZERO, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_NOTHING}, WAL_VERDICT_END},
        {{WAL_HEADER_ZERO, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_CONTINUED}, WAL_VERDICT_END},
        {{WAL_HEADER_ZERO, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_BYTES}, WAL_VERDICT_END},
        {{WAL_HEADER_ZERO, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_LOOSE}, WAL_VERDICT_CUT},
        {{WAL_HEADER_ZERO, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_FRAMES}, WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_CUT, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_NOTHING}, WAL_VERDICT_CUT},
        {{WAL_HEADER_CUT, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_CONTINUED},
         WAL_VERDICT_ABANDON},
        {{WAL_HEADER_CUT, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_FRAMES}, WAL_VERDICT_DAMAGED},
        {{WAL_HEADER_BAD, WAL_BODY_NONE, WAL_NUMBER_NONE, WAL_BEHIND_NOTHING}, WAL_VERDICT_DAMAGED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(wal_verdict(&cases[i].finding, NULL), cases[i].verdict, "case %zu", i);
}

/* ---- what is whole ---- */

Test(wal_recovery, empty_directory_is_a_new_log)
{
    assert_recovers(0);
    cr_assert(recovered.is_empty);
    cr_assert_eq(recovered.next_seq, 1);
    clean();
}

Test(wal_recovery, prepared_segment_is_no_end_of_the_log)
{
    wal_build_segment(&build, 1);
    wal_build_prepare(&build, 2);
    assert_recovers(0);
    cr_assert(!recovered.is_empty);
    cr_assert_eq(recovered.log_id, LOG_ID);
    cr_assert_eq(recovered.first_segment, 1);
    cr_assert_eq(recovered.last_segment, 2);
    cr_assert_eq(recovered.end_segment, 0);
    put_frames(3);
    assert_recovers(model.count);
    cr_assert_eq(recovered.end_segment, 1);
    cr_assert_eq(recovered.end_offset, build.offset);
    cr_assert_eq(recovered.next_seq, 4);
    cr_assert_eq(recovered.epoch_base, 1000);
}

Test(wal_recovery, records_come_back_in_order)
{
    for (size_t round = 0; round < rounds(100); round++) {
        uint64_t number = 1 + random_below(3) * 100;
        start_log();
        if (number > 1) {
            uint64_t frames = random_below(10);
            build.seq = 1 + random_below(1000);
            put_snapshot(number, build.seq + frames);
            put_frames(frames);
        } else {
            wal_build_segment(&build, 1);
        }
        put_frames(random_below(60));
        if (is_chance(2))
            wal_build_prepare(&build, build.segment + 1);
        assert_recovers(model.count);
        cr_assert_eq(recovered.snapshot, number > 1 ? number : 0);
        cr_assert_eq(recovered.next_seq, build.seq);
        cr_assert_eq(recovered.cut_bytes, 0);
        cr_assert_eq(recovered.abandoned_count, 0);
        if (spot_count > 0) {
            cr_assert_eq(recovered.end_segment, spots[spot_count - 1].segment);
            cr_assert_eq(recovered.end_offset,
                         spots[spot_count - 1].offset + spots[spot_count - 1].bytes);
        }
    }
}

struct progress {
    uint64_t last, total;
    bool is_falling;
};

static void note_progress(void *context, uint64_t done, uint64_t total)
{
    struct progress *progress = context;
    progress->is_falling = progress->is_falling || done < progress->last || done > total;
    progress->last = done;
    progress->total = total;
}

/* Only checking is reading without records; and who watches sees it end. */
Test(wal_recovery, progress_rises_to_the_end)
{
    struct progress progress = {0};
    const struct wal_recovery_options options = {
        .io = &memory.io, .directory = "dir", .progress = note_progress, .context = &progress};
    build.segment_bytes = 20 << 20;
    wal_build_segment(&build, 1);
    const struct wal_record record = {.kind = WAL_DELETE, .item = SPAN_LITERAL("item")};
    for (size_t i = 0; i < 4800; i++)
        (void)wal_build_frame(&build, &record, 1);
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(recovered.records, 4800);
    cr_assert(!progress.is_falling);
    cr_assert_eq(progress.total, 20 << 20);
    cr_assert_eq(progress.last, progress.total);
}

/* A frame larger than any buffer, and one that follows it. */
Test(wal_recovery, largest_frame_is_read)
{
    char *value = malloc(VALUE_BYTES_MAX);
    cr_assert_not_null(value);
    memset(value, 'x', VALUE_BYTES_MAX);
    struct wal_record record = random_change();
    record.kind = WAL_SET;
    record.value = span_of(value, VALUE_BYTES_MAX);
    build.segment_bytes = 40u << 20;
    wal_build_segment(&build, 1);
    for (int i = 0; i < 2; i++) {
        (void)wal_build_frame(&build, &record, 1);
        model.hashes[model.count++] = hash_record(&record);
        put_frames(2);
    }
    assert_recovers(model.count);
    free(value);
}

static enum weir_status take_three(void *context, const struct wal_position *position,
                                   const struct wal_record *record, struct weir_error *take_error)
{
    size_t *count = context;
    (void)position;
    (void)record;
    if (++*count < 3)
        return WEIR_OK;
    return weir_fail(take_error, WEIR_FULL, "three");
}

Test(wal_recovery, what_the_taker_says_ends_it)
{
    size_t count = 0;
    const struct wal_recovery_options options = {
        .io = &memory.io, .directory = "dir", .take = take_three, .context = &count};
    wal_build_segment(&build, 1);
    put_frames(5);
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_FULL);
    cr_assert_str_eq(error.text, "three");
    cr_assert_eq(count, 3);
}

Test(wal_recovery, directory_must_fit)
{
    char path[2 * WAL_PATH_BYTES];
    struct wal_recovery_options options = {.io = &memory.io, .directory = path};
    int fd;
    memset(path, 'd', sizeof path);
    path[sizeof path - 1] = '\0';
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_INVALID);
    cr_assert_eq(wal_clean(&memory.io, path, &recovered, &error), WEIR_INVALID);
    cr_assert_eq(wal_cut(&memory.io, path, 1, 4096, &error), WEIR_INVALID);
    cr_assert_eq(wal_lock(&memory.io, path, &fd, &error), WEIR_INVALID);
    path[0] = '\0';
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_INVALID);
}

/* ---- interrupted writes ---- */

/* These bytes are zeros again; how many were not. */
static size_t lose(char *data, size_t bytes)
{
    size_t missing = 0;
    for (size_t i = 0; i < bytes; i++)
        missing += data[i] != 0;
    memset(data, 0, bytes);
    return missing;
}

/* Some sectors of what was written did not arrive. How many bytes that are not zero are missing. */
static size_t tear_sectors(char *frame, size_t bytes)
{
    size_t missing = 0;
    for (size_t i = 0; i < bytes; i += WAL_SECTOR_BYTES)
        missing += is_chance(3) ? lose(frame + i, WAL_SECTOR_BYTES) : 0;
    return missing;
}

/* The same, or only the first bytes are there, as a short write leaves it. */
static size_t tear(char *frame, size_t bytes)
{
    size_t there = (size_t)random_below(bytes + 1);
    switch (random_below(5)) {
    case 0: /* within the header */
        there = (size_t)random_below(WAL_FRAME_HEADER_BYTES);
        break;
    case 1: /* within the end mark */
        there = bytes - (size_t)random_below(WAL_END_MARK_BYTES + 1);
        break;
    case 2:
        break;
    default:
        return tear_sectors(frame, bytes);
    }
    return lose(frame + there, bytes - there);
}

static bool has_bytes(const char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != 0)
            return true;
    return false;
}

/* Each frame is synced before the next: whatever is left of the last write, all before it is there,
 * the rest is cut and told. */
Test(wal_recovery, torn_last_write_is_cut)
{
    size_t cut_count = 0;
    for (size_t round = 0; round < rounds(3000); round++) {
        start_log();
        if (is_chance(3)) {
            build.seq = 50;
            put_snapshot(7, 50);
        } else {
            wal_build_segment(&build, 1);
        }
        put_frames(1 + random_below(12));
        if (is_chance(2))
            wal_build_prepare(&build, build.segment + 1);
        const struct wal_spot last = spots[spot_count - 1];
        size_t missing = tear(at(&last), last.bytes);
        bool is_there = has_bytes(at(&last), last.bytes);
        size_t records = missing == 0 ? model.count : records_before[spot_count - 1];
        assert_recovers(records);
        if (missing == 0 || !is_there) {
            cr_assert_eq(recovered.cut_bytes, 0);
        } else {
            cr_assert_gt(recovered.cut_bytes, 0, "round %zu", round);
            cr_assert_leq(recovered.cut_bytes, last.bytes);
            cr_assert_eq(recovered.cut_segment, last.segment);
            cr_assert_eq(recovered.cut_offset, last.offset);
            cut_count++;
        }
        assert_goes_on();
    }
    cr_assert_gt(cut_count, rounds(1000));
}

/* Frames are synced later: a power loss takes any sectors of those that were not. All that was synced
 * is there, what follows up to the first loss is there, and the directory is never refused. */
Test(wal_recovery, frames_not_synced_yet_end_at_the_first_loss)
{
    for (size_t round = 0; round < rounds(3000); round++) {
        start_log();
        wal_build_segment(&build, 1);
        build.segment_bytes = is_chance(2) ? SEGMENT_BYTES : SEGMENT_BYTES / 2;
        build.unsynced = 1;
        put_frames(1 + random_below(6));
        size_t synced = spot_count;
        for (size_t late = 1 + (size_t)random_below(6); late > 0; late--) {
            build.unsynced = (uint32_t)(spot_count - synced + 1);
            (void)put_frame();
        }
        size_t whole = spot_count;
        for (size_t i = spot_count; i > synced; i--)
            if (is_chance(2) && tear_sectors(at(&spots[i - 1]), spots[i - 1].bytes) > 0)
                whole = i - 1;
        assert_recovers(records_before[whole]);
        cr_assert_geq(whole, synced);
        assert_goes_on();
    }
}

/* The same hole is damage when a later frame says that what is missing had been synced. */
Test(wal_recovery, lost_frame_that_was_synced_is_damage)
{
    for (size_t round = 0; round < rounds(300); round++) {
        start_log();
        wal_build_segment(&build, 1);
        build.unsynced = 1;
        put_frames(8);
        build.unsynced = 4; /* the last synced one is the fifth */
        put_frames(1);
        const struct wal_spot lost = spots[random_below(5)];
        memset(at(&lost), 0, lost.bytes);
        assert_refused(WAL_FILE_LOG, lost.segment, lost.offset);
    }
}

/* ---- writes that failed and were made again in the next segment ---- */

/* What is in segment 1 is abandoned; the log goes on in segment 2. */
Test(wal_recovery, abandoned_write_is_told_and_harmless)
{
    for (size_t round = 0; round < rounds(1000); round++) {
        struct wal_record records[FRAME_RECORDS_MAX];
        size_t count = random_changes(records);
        start_log();
        wal_build_segment(&build, 1);
        put_frames(1 + random_below(3));
        struct wal_spot failed = wal_build_frame_seq(&build, build.seq, records, count);
        if (failed.offset + failed.bytes > SEGMENT_BYTES)
            continue;
        size_t missing = tear(at(&failed), failed.bytes);
        bool has_remains = missing > 0 && has_bytes(at(&failed), failed.bytes);
        wal_build_segment(&build, 2);
        (void)wal_build_frame(&build, records, count);
        for (size_t i = 0; i < count; i++)
            model.hashes[model.count++] = hash_record(&records[i]);
        put_frames(random_below(3));
        assert_recovers(model.count);
        cr_assert_eq(recovered.cut_bytes, 0);
        cr_assert_eq(recovered.abandoned_count, has_remains);
        if (has_remains) {
            cr_assert_eq(recovered.abandoned_segment, 1);
            cr_assert_eq(recovered.abandoned_offset, failed.offset);
        }
        cr_assert_geq(recovered.end_segment, 2);
        assert_goes_on();
    }
}

/* It was there as a whole, only nobody knew: the second one is passed over. */
Test(wal_recovery, frame_written_twice_counts_once)
{
    struct wal_record record = random_change();
    wal_build_segment(&build, 1);
    put_frames(3);
    size_t once = model.count;
    struct wal_spot spot = wal_build_frame_seq(&build, build.seq, &record, 1);
    model.hashes[model.count++] = hash_record(&record);
    wal_build_segment(&build, 2);
    struct wal_spot again = wal_build_frame(&build, &record, 1);
    assert_recovers(model.count);
    cr_assert_eq(recovered.end_segment, 2);
    cr_assert_eq(recovered.end_offset, build.offset);
    cr_assert_eq(recovered.next_seq, build.seq);
    save();
    put_frames(2);
    assert_recovers(model.count);
    /* The second time is torn: the log ends with the first. */
    restore();
    model.count = once + 1;
    memset(at(&again) + again.bytes - 8, 0, 8);
    assert_recovers(model.count);
    cr_assert_eq(recovered.cut_segment, 2);
    cr_assert_eq(recovered.end_segment, 1);
    cr_assert_eq(recovered.end_offset, spot.offset + spot.bytes);
    assert_goes_on();
}

/* Both times torn: none of it was acknowledged, and all of it goes. */
Test(wal_recovery, write_that_failed_twice_is_cut_at_the_first_place)
{
    struct wal_record record = random_change();
    wal_build_segment(&build, 1);
    put_frames(3);
    struct wal_spot first = wal_build_frame_seq(&build, build.seq, &record, 1);
    wal_build_segment(&build, 2);
    struct wal_spot second = wal_build_frame_seq(&build, build.seq, &record, 1);
    memset(at(&first) + first.bytes - 8, 0, 8);
    memset(at(&second) + second.bytes - 8, 0, 8);
    assert_recovers(model.count);
    cr_assert_eq(recovered.cut_segment, 1);
    cr_assert_eq(recovered.cut_offset, first.offset);
    cr_assert_gt(recovered.cut_bytes, first.bytes - 4096);
    assert_goes_on();
    cr_assert(!has_bytes(at(&second), second.bytes));
}

/* A number that was seen is fine where a segment begins, nowhere else. */
Test(wal_recovery, old_number_in_a_segment_is_damage)
{
    struct wal_record record = random_change();
    wal_build_segment(&build, 1);
    put_frames(3);
    struct wal_spot old = wal_build_frame_seq(&build, 2, &record, 1);
    assert_refused(WAL_FILE_LOG, 1, old.offset);
}

/* One write at a time, each synced: an interrupted one has nothing behind it, be it a frame of an old
 * number or bytes that are none. */
Test(wal_recovery, interrupted_write_with_something_behind_is_damage)
{
    struct wal_record record = random_change();
    wal_build_segment(&build, 1);
    put_frames(4);
    struct wal_spot last = spots[3];
    memset(at(&last) + last.bytes - 8, 0, 8);
    save();
    assert_recovers(records_before[3]);
    (void)wal_build_frame_seq(&build, 2, &record, 1);
    assert_refused(WAL_FILE_LOG, 1, last.offset);
    restore();
    wal_build_write(&build, WAL_FILE_LOG, 1, last.offset + last.bytes + 700, "x", 1);
    assert_refused(WAL_FILE_LOG, 1, last.offset);
}

/* ---- damage ---- */

/* A log of a snapshot and a few segments, one of them with an abandoned write. */
static void put_all_kinds(void)
{
    struct wal_record record = random_change();
    start_log();
    build.seq = 20;
    put_snapshot(5, 23);
    put_frames(8);
    if (is_chance(2)) {
        struct wal_spot failed = wal_build_frame_seq(&build, build.seq, &record, 1);
        memset(at(&failed) + 100, 0, failed.bytes - 100);
        wal_build_segment(&build, build.segment + 1);
    }
    put_frames(12);
    wal_build_prepare(&build, build.segment + 1);
    cr_assert(wal_build_is_ok(&build));
}

struct target {
    enum wal_file_kind kind;
    uint64_t number;
    struct wal_memory_file *file;
    uint64_t offset; /* of the change */
};

/* What the reader says of the directory before it is changed. */
static struct wal_recovered before;

static struct target random_target(void)
{
    uint64_t last = build.segment + 1;
    if (is_chance(3))
        return (struct target){WAL_FILE_SNAPSHOT, 5, file_of(WAL_FILE_SNAPSHOT, 5), 0};
    uint64_t number = 5 + random_below(last - 5 + 1);
    return (struct target){WAL_FILE_LOG, number, file_of(WAL_FILE_LOG, number), 0};
}

/* Also before the change, when it is among the remains of an abandoned write. */
static bool is_told(const struct target *target)
{
    bool was_remains = before.abandoned_count > 0 && target->kind == WAL_FILE_LOG &&
                       target->number == before.abandoned_segment &&
                       target->offset >= before.abandoned_offset;
    return recovered.cut_bytes > before.cut_bytes ||
           recovered.abandoned_count > before.abandoned_count || was_remains;
}

/* The file itself; or, when nothing of it is left that an abandoned write before it could have gone on
 * in, the remains of that write, which then look like the damage. */
static bool is_named(const struct target *target)
{
    char name[WAL_PATH_BYTES];
    name_of(name, target->kind, target->number);
    if (strstr(error.text, name) != NULL)
        return true;
    name_of(name, WAL_FILE_LOG, before.abandoned_segment);
    return before.abandoned_count > 0 && target->kind == WAL_FILE_LOG &&
           target->number == before.abandoned_segment + 1 && strstr(error.text, name) != NULL;
}

/* A changed file is refused by its name, or nothing is missing and it was told. */
static void assert_noticed(const struct target *target, size_t *refused, size_t *told)
{
    char name[WAL_PATH_BYTES];
    name_of(name, target->kind, target->number);
    enum weir_status status = recover();
    if (status == WEIR_OK) {
        cr_assert_eq(taken.count, model.count);
        cr_assert(memcmp(taken.hashes, model.hashes, model.count * sizeof model.hashes[0]) == 0);
        cr_assert(is_told(target), "silent: %s offset %llu", name,
                  (unsigned long long)target->offset);
        ++*told;
        return;
    }
    cr_assert(is_refused(status), "%s", error.text);
    cr_assert(is_named(target), "%s is not in: %s", name, error.text);
    ++*refused;
}

Test(wal_recovery, changed_bit_is_never_silent)
{
    size_t refused = 0;
    size_t told = 0;
    for (size_t round = 0; round < rounds(100); round++) {
        put_all_kinds();
        assert_recovers(model.count);
        before = recovered;
        save();
        for (size_t flip = 0; flip < 60; flip++) {
            struct target target = random_target();
            size_t byte = (size_t)random_below(target.file->bytes);
            if (is_chance(2) && target.kind == WAL_FILE_LOG && spot_count > 0) {
                const struct wal_spot *spot = &spots[random_below(spot_count)];
                target = (struct target){WAL_FILE_LOG, spot->segment,
                                         file_of(WAL_FILE_LOG, spot->segment), 0};
                byte = spot->offset + random_below(spot->bytes);
            }
            target.offset = byte;
            target.file->data[byte] = (char)(target.file->data[byte] ^ 1 << random_below(8));
            assert_noticed(&target, &refused, &told);
            restore();
        }
    }
    (void)fprintf(stderr, "%zu refused, %zu told\n", refused, told);
    cr_assert_eq(refused + told, rounds(100) * 60);
    cr_assert_gt(refused, rounds(2000));
}

/* Every bit of the last frame: it is whole, so it is never cut. */
Test(wal_recovery, changed_bit_in_the_last_frame_is_refused)
{
    struct wal_record record = random_change();
    record.kind = WAL_DELETE;
    record.value = (struct span){0};
    record.group = span_text("g");
    wal_build_segment(&build, 1);
    put_frames(3);
    struct wal_spot spot = wal_build_frame(&build, &record, 1);
    char *frame = at(&spot);
    for (size_t bit = 0; bit < spot.bytes * 8; bit += ROUNDS_SHARE) {
        frame[bit / 8] = (char)(frame[bit / 8] ^ 1 << bit % 8);
        assert_refused(WAL_FILE_LOG, 1, spot.offset);
        frame[bit / 8] = (char)(frame[bit / 8] ^ 1 << bit % 8);
    }
}

/* Sectors or blocks that have become zeros anywhere before the last frame. */
Test(wal_recovery, zeros_before_the_last_frame_are_damage)
{
    for (size_t round = 0; round < rounds(500); round++) {
        put_all_kinds();
        size_t first = (size_t)random_below(spot_count - 1);
        const struct wal_spot *spot = &spots[first];
        size_t sectors = spot->bytes / WAL_SECTOR_BYTES;
        size_t from = (size_t)random_below(sectors);
        size_t count = 1 + (size_t)random_below(sectors - from);
        char *zeroed = at(spot) + from * WAL_SECTOR_BYTES;
        if (!has_bytes(zeroed, count * WAL_SECTOR_BYTES))
            continue;
        (void)lose(zeroed, count * WAL_SECTOR_BYTES);
        if (spot->offset > WAL_BLOCK_BYTES) {
            assert_refused(WAL_FILE_LOG, spot->segment, spot->offset);
            continue;
        }
        /* The segment before may end with an abandoned write that this frame was to continue: then both
         * are named. */
        char name[WAL_PATH_BYTES];
        name_of(name, WAL_FILE_LOG, spot->segment);
        cr_assert_eq(recover(), WEIR_CORRUPT);
        cr_assert_not_null(strstr(error.text, name), "%s is not in: %s", name, error.text);
    }
}

/* Wherever a file ends too early. */
Test(wal_recovery, file_cut_short_is_never_silent)
{
    size_t refused = 0;
    size_t told = 0;
    for (size_t round = 0; round < rounds(2000); round++) {
        if (round % 20 == 0) {
            put_all_kinds();
            assert_recovers(model.count);
            before = recovered;
            save();
        }
        struct target target = random_target();
        size_t bytes = (size_t)random_below(target.file->bytes);
        if (is_chance(2))
            bytes = bytes / WAL_BLOCK_BYTES * WAL_BLOCK_BYTES;
        target.offset = bytes;
        cr_assert_eq(wal_memory_resize(target.file, bytes), 0);
        assert_noticed(&target, &refused, &told);
        restore();
    }
    cr_assert_gt(refused, rounds(1000));
}

static uint64_t first_behind(const struct wal_spot *spot)
{
    return spot->offset + spot->bytes;
}

/* A frame whose checksum is right and whose content is not: our own mistake, or somebody's. */
Test(wal_recovery, impossible_record_in_a_good_frame_is_refused)
{
    struct wal_record item = random_kept(true);
    struct wal_record records[2] = {random_change(), random_change()};
    const struct wal_place place = {LOG_ID, 1, WAL_BLOCK_BYTES};
    struct wal_frame_header header = {.seq = 1, .record_count = 3};
    wal_build_segment(&build, 1);
    (void)wal_build_frame(&build, &item, 1); /* of a snapshot */
    assert_refused(WAL_FILE_LOG, 1, WAL_BLOCK_BYTES);
    start_log();
    wal_build_segment(&build, 1);
    struct wal_spot spot = wal_build_frame(&build, records, 2);
    header.payload_bytes =
        (uint32_t)(wal_record_bytes(&records[0]) + wal_record_bytes(&records[1]));
    (void)wal_frame_encode(at(&spot), &header, &place); /* three, it says */
    assert_refused(WAL_FILE_LOG, 1, WAL_BLOCK_BYTES);
    header.record_count = 2;
    at(&spot)[WAL_FRAME_HEADER_BYTES + 4] = 99; /* a kind that is none */
    (void)wal_frame_encode(at(&spot), &header, &place);
    assert_refused(WAL_FILE_LOG, 1, WAL_BLOCK_BYTES);
}

static void put_snapshot_of(const struct wal_record *records, size_t count)
{
    start_log();
    wal_build_snapshot(&build, 3, 1, records, count, 10, 0);
    wal_build_segment(&build, 3);
}

Test(wal_recovery, snapshot_in_disorder_is_refused)
{
    struct wal_record item = random_kept(true);
    while (item.kind != WAL_ITEM)
        item = random_kept(false);
    struct wal_record end = {.kind = WAL_END};
    struct wal_record change = random_change();
    put_snapshot_of(&item, 1); /* of no group */
    assert_refused(WAL_FILE_SNAPSHOT, 3, WAL_BLOCK_BYTES);
    put_snapshot_of(&end, 1); /* twice */
    assert_refused(WAL_FILE_SNAPSHOT, 3, WAL_BLOCK_BYTES);
    put_snapshot_of(&change, 1);
    assert_refused(WAL_FILE_SNAPSHOT, 3, WAL_BLOCK_BYTES);
    put_snapshot_of(NULL, 0); /* empty but whole */
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    struct wal_memory_file *file = file_of(WAL_FILE_SNAPSHOT, 3);
    cr_assert_eq(wal_memory_resize(file, file->bytes + WAL_BLOCK_BYTES), 0);
    assert_refused(WAL_FILE_SNAPSHOT, 3, 2 * WAL_BLOCK_BYTES);
    cr_assert_eq(wal_memory_resize(file, WAL_BLOCK_BYTES), 0);
    assert_refused(WAL_FILE_SNAPSHOT, 3, WAL_BLOCK_BYTES);
}

/* The frames a snapshot was made beside are part of it. */
Test(wal_recovery, log_that_ends_before_its_snapshot_is_refused)
{
    build.seq = 10;
    put_snapshot(4, 13);
    put_frames(3);
    assert_recovers(model.count);
    cr_assert_eq(recovered.snapshot_end_seq, 13);
    const struct wal_spot last = spots[2];
    memset(at(&last), 0, last.bytes);
    assert_refused(WAL_FILE_LOG, 4, last.offset);
    cr_assert_null(strstr(error.text, "cut-at"));
}

/* A snapshot need not say where its segment begins; then the first frame says it. */
Test(wal_recovery, snapshot_without_first_seq)
{
    struct wal_record group = random_kept(true);
    build.seq = 10;
    wal_build_snapshot(&build, 4, 0, &group, 1, 5, 12);
    wal_build_segment(&build, 4);
    save();
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    cr_assert_eq(recovered.next_seq, 12);
    put_frames(2);
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    cr_assert_eq(recovered.next_seq, 12);
    restore();
    build.seq = 13; /* 12 was written after the snapshot, so it must be there */
    build.offset = WAL_BLOCK_BYTES;
    put_frames(2);
    assert_refused(WAL_FILE_LOG, 4, WAL_BLOCK_BYTES);
}

/* ---- files ---- */

Test(wal_recovery, missing_files_are_named)
{
    char name[WAL_PATH_BYTES];
    put_all_kinds();
    put_frames(40);
    save();
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    cr_assert_geq(recovered.last_segment, 7);
    for (uint64_t missing = 5; missing < recovered.last_segment; missing++) {
        uint64_t last = recovered.last_segment;
        remove_file(WAL_FILE_LOG, missing);
        cr_assert_eq(recover(), WEIR_CORRUPT);
        name_of(name, WAL_FILE_LOG, missing);
        cr_assert_eq(strncmp(error.text, name, strlen(name)), 0, "%s", error.text);
        restore();
        recovered.last_segment = last;
    }
    remove_file(WAL_FILE_SNAPSHOT, 5);
    cr_assert_eq(recover(), WEIR_CORRUPT);
    cr_assert_not_null(strstr(error.text, "snapshot"), "%s", error.text);
    cr_assert_not_null(strstr(error.text, "log-00000000000000000005"), "%s", error.text);
}

Test(wal_recovery, superfluous_files_are_not_read_and_go)
{
    char junk[100] = "junk";
    build.seq = 20;
    put_snapshot(5, 20);
    put_frames(10);
    wal_build_write(&build, WAL_FILE_LOG, 3, 0, junk, sizeof junk);
    wal_build_write(&build, WAL_FILE_LOG, 4, 0, junk, sizeof junk);
    wal_build_write(&build, WAL_FILE_SNAPSHOT, 3, 0, junk, sizeof junk);
    cr_assert_not_null(wal_memory_make(&memory, "log-00000000000000000009.new"));
    cr_assert_not_null(wal_memory_make(&memory, "snapshot-00000000000000000009.new"));
    cr_assert_not_null(wal_memory_make(&memory, "log-9"));
    cr_assert_not_null(wal_memory_make(&memory, "lock"));
    assert_recovers(model.count);
    cr_assert_eq(recovered.first_segment, 5);
    clean();
    assert_recovers(model.count);
    cr_assert_null(wal_memory_find(&memory, "log-00000000000000000003"));
    cr_assert_null(wal_memory_find(&memory, "log-00000000000000000004"));
    cr_assert_null(wal_memory_find(&memory, "snapshot-00000000000000000003"));
    cr_assert_null(wal_memory_find(&memory, "log-00000000000000000009.new"));
    cr_assert_null(wal_memory_find(&memory, "snapshot-00000000000000000009.new"));
    cr_assert_not_null(wal_memory_find(&memory, "lock"));
    cr_assert_not_null(wal_memory_find(&memory, "log-9"), "not ours");
}

Test(wal_recovery, files_of_two_logs_are_refused)
{
    char name[WAL_PATH_BYTES];
    wal_build_segment(&build, 1);
    put_frames(2);
    build.log_id = 77;
    wal_build_segment(&build, 2);
    put_frames(2);
    name_of(name, WAL_FILE_LOG, 2);
    cr_assert_eq(recover(), WEIR_MISMATCH);
    cr_assert_not_null(strstr(error.text, name), "%s", error.text);
}

Test(wal_recovery, other_version_or_name_is_refused)
{
    wal_build_segment(&build, 1);
    put_frames(2);
    save();
    file_of(WAL_FILE_LOG, 1)->data[7] = '2';
    cr_assert_eq(recover(), WEIR_MISMATCH);
    restore();
    wal_build_segment(&build, 2);
    cr_assert_eq(
        memory.io.rename(&memory, "dir/log-00000000000000000001", "dir/log-00000000000000000002"),
        0);
    wal_build_segment(&build, 1);
    assert_refused(WAL_FILE_LOG, 2, 0);
}

/* ---- cutting by hand ---- */

static void assert_cut(uint64_t segment, uint64_t offset, enum weir_status expected)
{
    error = (struct weir_error){0};
    enum weir_status status = wal_cut(&memory.io, "dir", segment, offset, &error);
    cr_assert_eq(status, expected, "%llu:%llu gives %d %s", (unsigned long long)segment,
                 (unsigned long long)offset, status, error.text);
    cr_assert_eq(wal_memory_open_count(&memory), 0);
}

/* Before any frame: those before it stay, as many bytes as there were. */
Test(wal_recovery, cut_leaves_what_is_before)
{
    wal_build_segment(&build, 1);
    put_frames(60);
    save();
    for (size_t i = 0; i < spot_count; i++) {
        assert_cut(spots[i].segment, spots[i].offset, WEIR_OK);
        assert_recovers(records_before[i]);
        cr_assert_eq(recovered.cut_bytes, 0);
        cr_assert_eq(recovered.last_segment, spots[i].segment);
        cr_assert_eq(file_of(WAL_FILE_LOG, spots[i].segment)->bytes, SEGMENT_BYTES);
        restore();
    }
    assert_cut(3, 0, WEIR_OK);
    cr_assert_eq(recover(), WEIR_OK);
    cr_assert_eq(recovered.last_segment, 2);
    assert_cut(1, 0, WEIR_OK);
    assert_recovers(0);
    cr_assert(recovered.is_empty);
}

/* What the sentence names as remedy works, and loses only what is behind. */
Test(wal_recovery, remedy_of_the_sentence_works)
{
    for (size_t round = 0; round < rounds(300); round++) {
        start_log();
        wal_build_segment(&build, 1);
        put_frames(30);
        size_t hit = (size_t)random_below(spot_count);
        const struct wal_spot *spot = &spots[hit];
        at(spot)[random_below(spot->bytes)] ^= 0x18;
        assert_refused(WAL_FILE_LOG, spot->segment, spot->offset);
        unsigned long long segment = 0;
        unsigned long long offset = 0;
        const char *remedy = strstr(error.text, "--cut-at ");
        cr_assert_not_null(remedy, "%s", error.text);
        cr_assert_eq(sscanf(remedy, "--cut-at %llu:%llu", &segment, &offset), 2);
        assert_cut(segment, offset, WEIR_OK);
        assert_recovers(records_before[hit]);
        assert_goes_on();
    }
}

Test(wal_recovery, damaged_segment_header_is_cut_with_its_segment)
{
    wal_build_segment(&build, 1);
    put_frames(30);
    file_of(WAL_FILE_LOG, 2)->data[20] ^= 1;
    assert_refused(WAL_FILE_LOG, 2, 0);
    assert_cut(2, WAL_BLOCK_BYTES, WEIR_CORRUPT);
    assert_cut(2, 0, WEIR_OK);
    cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
    cr_assert_eq(recovered.last_segment, 1);
}

Test(wal_recovery, truncated_segment_is_cut_and_has_its_size_again)
{
    wal_build_segment(&build, 1);
    put_frames(4);
    cr_assert_eq(wal_memory_resize(file_of(WAL_FILE_LOG, 1), (size_t)first_behind(&spots[1])), 0);
    assert_refused(WAL_FILE_LOG, 1, first_behind(&spots[1]));
    assert_cut(1, first_behind(&spots[1]), WEIR_OK);
    assert_recovers(records_before[2]);
    cr_assert_eq(file_of(WAL_FILE_LOG, 1)->bytes, SEGMENT_BYTES);
}

Test(wal_recovery, cut_refuses_what_is_no_place)
{
    build.seq = 20;
    put_snapshot(5, 22);
    put_frames(6);
    struct wal_spot large = {0};
    for (size_t i = 2; i < spot_count; i++)
        if (spots[i].bytes > WAL_BLOCK_BYTES)
            large = spots[i];
    save();
    assert_cut(4, WAL_BLOCK_BYTES, WEIR_INVALID);
    assert_cut(99, WAL_BLOCK_BYTES, WEIR_INVALID);
    assert_cut(5, 5000, WEIR_INVALID);
    assert_cut(5, 0, WEIR_REFUSED);
    assert_cut(build.segment, build.offset + WAL_BLOCK_BYTES, WEIR_INVALID);
    if (large.bytes > 0)
        assert_cut(large.segment, large.offset + WAL_BLOCK_BYTES, WEIR_INVALID);
    assert_cut(spots[1].segment, spots[1].offset, WEIR_CORRUPT); /* the snapshot needs it */
    assert_recovers(model.count);
    assert_cut(spots[2].segment, spots[2].offset, WEIR_OK);
    assert_recovers(records_before[2]);
}

/* ---- calls that fail ---- */

enum { CALLS_MAX = 5000 };

/* One call after the other fails; the directory is not changed by reading. */
Test(wal_recovery, every_failing_call_of_recovery_is_told)
{
    struct wal_faults faults;
    put_all_kinds();
    tear(at(&spots[spot_count - 1]), spots[spot_count - 1].bytes);
    wal_faults_init(&faults, &memory.io);
    bool has_fired = true;
    for (uint64_t call = 1; has_fired && call < CALLS_MAX; call++) {
        wal_faults_init(&faults, &memory.io);
        faults.fail_at = call;
        faults.error = ENOMEM;
        error = (struct weir_error){0};
        enum weir_status status = recover_io(&faults.io, &taken, &recovered, &error);
        has_fired = faults.has_fired;
        cr_assert_eq(status, has_fired ? WEIR_SYSTEM : WEIR_OK, "call %llu: %s",
                     (unsigned long long)call, error.text);
        if (has_fired) {
            cr_assert_eq(error.sys_errno, ENOMEM);
            cr_assert_gt(strlen(error.text), 20);
        }
        cr_assert_eq(wal_memory_open_count(&memory), 0);
    }
    cr_assert(!has_fired);
    cr_assert_eq(faults.counts[WAL_OPERATION_WRITE], 0);
    cr_assert_eq(faults.counts[WAL_OPERATION_REMOVE], 0);
}

Test(wal_recovery, short_reads_and_writes_are_continued)
{
    struct wal_faults faults;
    for (size_t round = 0; round < rounds(20); round++) {
        put_all_kinds();
        wal_faults_init(&faults, &memory.io);
        faults.short_bytes = 100 + (size_t)random_below(5000);
        cr_assert_eq(recover_io(&faults.io, &taken, &recovered, &error), WEIR_OK, "%s", error.text);
        cr_assert_eq(taken.count, model.count);
        const struct wal_spot *spot = &spots[spot_count - 2];
        cr_assert_eq(wal_cut(&faults.io, "dir", spot->segment, spot->offset, &error), WEIR_OK, "%s",
                     error.text);
        assert_recovers(records_before[spot_count - 2]);
    }
}

/* A write that failed in two segments, with some of it in both. */
static void put_failed_twice(void)
{
    struct wal_record records[FRAME_RECORDS_MAX];
    size_t count = random_changes(records);
    for (int i = 0; i < 2; i++) {
        wal_build_segment(&build, build.segment + 1);
        struct wal_spot spot = wal_build_frame_seq(&build, build.seq, records, count);
        (void)lose(at(&spot) + spot.bytes - WAL_SECTOR_BYTES, WAL_SECTOR_BYTES);
    }
}

/* The process dies at any call of cleaning, with a write done in part: read again, the log is the
 * same, and the second cleaning ends it. */
Test(wal_recovery, cleaning_can_be_interrupted_anywhere)
{
    for (size_t round = 0; round < rounds(150); round++) {
        struct wal_faults faults;
        bool has_fired = true;
        build.unsynced = 0;
        put_all_kinds();
        uint64_t kind = random_below(3);
        if (kind == 0) { /* and parts of several frames, in two segments */
            for (build.unsynced = 1; build.unsynced <= 6; build.unsynced++)
                (void)put_frame();
            tear_sectors(at(&spots[spot_count - 3]), spots[spot_count - 3].bytes);
        }
        if (kind == 1)
            put_failed_twice();
        else
            tear(at(&spots[spot_count - 1]), spots[spot_count - 1].bytes);
        wal_build_write(&build, WAL_FILE_LOG, 4, 0, "x", 1);
        wal_build_write(&build, WAL_FILE_SNAPSHOT, 2, 0, "x", 1);
        cr_assert_not_null(wal_memory_make(&memory, "log-00000000000000000099.new"));
        cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
        const struct wal_recovered found = recovered;
        size_t records = taken.count;
        save();
        for (uint64_t call = 1; has_fired && call < CALLS_MAX; call++) {
            restore();
            wal_faults_init(&faults, &memory.io);
            faults.fail_at = call;
            faults.is_crash = is_chance(2);
            faults.torn_bytes = (size_t)random_below(3 * SEGMENT_BYTES / 2);
            enum weir_status status = wal_clean(&faults.io, "dir", &found, &error);
            has_fired = faults.has_fired;
            cr_assert_eq(status, has_fired ? WEIR_SYSTEM : WEIR_OK);
            cr_assert_eq(wal_memory_open_count(&memory), 0);
            assert_recovers(records);
            cr_assert_eq(recovered.next_seq, found.next_seq);
            clean();
            assert_recovers(records);
            cr_assert_eq(recovered.cut_bytes, 0);
        }
        cr_assert(!has_fired);
    }
}

/* The same for cutting: the log is whole, only shorter, and never shorter than it was to be. */
Test(wal_recovery, cutting_can_be_interrupted_anywhere)
{
    for (size_t round = 0; round < rounds(20); round++) {
        struct wal_faults faults;
        bool has_fired = true;
        start_log();
        wal_build_segment(&build, 1);
        put_frames(60);
        size_t hit = (size_t)random_below(spot_count);
        const struct wal_spot *spot = &spots[hit];
        save();
        for (uint64_t call = 1; has_fired && call < CALLS_MAX; call++) {
            restore();
            wal_faults_init(&faults, &memory.io);
            faults.fail_at = call;
            faults.is_crash = is_chance(2);
            faults.torn_bytes = (size_t)random_below(SEGMENT_BYTES);
            error = (struct weir_error){0};
            enum weir_status status =
                wal_cut(&faults.io, "dir", spot->segment, spot->offset, &error);
            has_fired = faults.has_fired;
            cr_assert_eq(status, has_fired ? WEIR_SYSTEM : WEIR_OK, "%s", error.text);
            cr_assert_eq(wal_memory_open_count(&memory), 0);
            cr_assert_eq(recover(), WEIR_OK, "%s", error.text);
            cr_assert_geq(taken.count, records_before[hit]);
            cr_assert(memcmp(taken.hashes, model.hashes, taken.count * sizeof model.hashes[0]) ==
                      0);
            if (taken.count > records_before[hit])
                assert_cut(spot->segment, spot->offset, WEIR_OK);
            assert_recovers(records_before[hit]);
        }
        cr_assert(!has_fired);
    }
}

/* Each allocation fails once, in each function that has some. */
Test(wal_recovery, every_failing_allocation_is_told)
{
    struct wal_memory disk;
    build.segment_bytes = 6u << 20;
    wal_memory_init(&disk);
    wal_build_segment(&build, 1);
    char *value = malloc(5u << 20);
    cr_assert_not_null(value);
    memset(value, 'x', 5u << 20);
    struct wal_record record = random_change();
    record.kind = WAL_SET;
    record.value = span_of(value, 5u << 20);
    (void)wal_build_frame(&build, &record, 1);
    struct wal_spot last = wal_build_frame(&build, &record, 0);
    cr_assert(wal_build_is_ok(&build));
    for (int function = 0; function < 3; function++) {
        bool has_failed = true;
        uint64_t count = 0;
        for (; has_failed && count < 100; count++) {
            enum weir_status status;
            const struct wal_recovery_options options = {.io = &memory.io, .directory = "dir"};
            error = (struct weir_error){0};
            /* The files themselves are in memory too, so nothing is written here. */
            allocations_left = count;
            if (function == 0)
                status = wal_recover(&options, &recovered, &error);
            else if (function == 1)
                status = wal_clean(&memory.io, "dir", &recovered, &error);
            else
                status = wal_cut(&memory.io, "dir", 1, last.offset + 4096 * 4096, &error);
            allocations_left = UINT64_MAX;
            has_failed = status == WEIR_NO_MEMORY;
            cr_assert(has_failed || status == (function == 2 ? WEIR_INVALID : WEIR_OK), "%d %s",
                      status, error.text);
            cr_assert(!has_failed || strstr(error.text, "memory") != NULL);
            cr_assert_eq(wal_memory_open_count(&memory), 0);
        }
        cr_assert(!has_failed);
        cr_assert_gt(count, 2);
    }
    free(value);
    wal_memory_fini(&disk);
}

/* ---- on a disk ---- */

static char directory[64];

static void open_directory(void)
{
    seed_random();
    fill_texts();
    (void)snprintf(directory, sizeof directory, "/tmp/weir-wal-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
}

static int remove_each(void *context, const char *name)
{
    char path[WAL_PATH_BYTES];
    (void)context;
    (void)snprintf(path, sizeof path, "%s/%s", directory, name);
    return unlink(path);
}

static void remove_directory(void)
{
    (void)wal_io_system.list(NULL, directory, remove_each, NULL);
    (void)rmdir(directory);
}

TestSuite(wal_disk, .init = open_directory, .fini = remove_directory, .timeout = HANG_SECONDS);

Test(wal_disk, log_is_read_cut_and_cleaned)
{
    const struct wal_recovery_options options = {
        .io = &wal_io_system, .directory = directory, .take = take, .context = &taken};
    taken.count = 0;
    model.count = 0;
    spot_count = 0;
    wal_build_open(&build, &wal_io_system, directory, LOG_ID, SEGMENT_BYTES);
    wal_build_segment(&build, 1);
    put_frames(50);
    wal_build_write(&build, WAL_FILE_LOG, build.segment, build.offset + 600, "torn", 4);
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(taken.count, model.count);
    cr_assert_eq(recovered.cut_bytes, 604);
    cr_assert_eq(wal_clean(&wal_io_system, directory, &recovered, &error), WEIR_OK, "%s",
                 error.text);
    cr_assert_eq(wal_cut(&wal_io_system, directory, spots[20].segment, spots[20].offset, &error),
                 WEIR_OK, "%s", error.text);
    taken.count = 0;
    cr_assert_eq(wal_recover(&options, &recovered, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(taken.count, records_before[20]);
    cr_assert(memcmp(taken.hashes, model.hashes, taken.count * sizeof model.hashes[0]) == 0);
}

/* The lock goes with the process, or with its descriptor. */
Test(wal_disk, directory_is_locked_once)
{
    char path[WAL_PATH_BYTES];
    int first = -1;
    int second = -1;
    struct stat status;
    (void)snprintf(path, sizeof path, "%s/sub", directory);
    cr_assert_eq(wal_lock(&wal_io_system, path, &first, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(stat(path, &status), 0);
    cr_assert_eq(status.st_mode & 0777, 0700);
    cr_assert_eq(wal_lock(&wal_io_system, path, &second, &error), WEIR_REFUSED);
    cr_assert_eq(second, -1);
    cr_assert_not_null(strstr(error.text, "another process"), "%s", error.text);
    cr_assert_eq(wal_io_system.close(NULL, first), 0);
    cr_assert_eq(wal_lock(&wal_io_system, path, &second, &error), WEIR_OK);
    cr_assert_eq(wal_io_system.close(NULL, second), 0);
    (void)snprintf(path, sizeof path, "%s/sub/lock", directory);
    cr_assert_eq(unlink(path), 0);
    (void)snprintf(path, sizeof path, "%s/sub", directory);
    cr_assert_eq(rmdir(path), 0);
}

Test(wal_disk, every_failing_call_of_locking_is_told)
{
    struct wal_faults faults;
    bool has_fired = true;
    for (uint64_t call = 1; has_fired && call < 100; call++) {
        int fd = -1;
        wal_faults_init(&faults, &wal_io_system);
        faults.fail_at = call;
        enum weir_status status = wal_lock(&faults.io, directory, &fd, &error);
        has_fired = faults.has_fired;
        cr_assert_eq(status, has_fired ? WEIR_SYSTEM : WEIR_OK);
        cr_assert_eq(fd >= 0, !has_fired);
        if (fd >= 0)
            cr_assert_eq(wal_io_system.close(NULL, fd), 0);
    }
    cr_assert(!has_fired);
}

static int count_each(void *context, const char *name)
{
    size_t *count = context;
    cr_assert_neq(name[0], '.');
    return ++*count == 2 ? 17 : 0;
}

/* The table does what the calls behind it do, and names errors as they do. */
Test(wal_disk, system_calls_say_what_went_wrong)
{
    char path[WAL_PATH_BYTES];
    char data[16];
    uint64_t bytes = 0;
    size_t count = 0;
    const struct wal_io *io = &wal_io_system;
    (void)snprintf(path, sizeof path, "%s/a", directory);
    cr_assert_eq(io->open(NULL, path, O_RDONLY), -ENOENT);
    int fd = io->open(NULL, path, O_RDWR | O_CREAT);
    cr_assert_geq(fd, 0);
    cr_assert_eq(io->write(NULL, fd, "hello", 5, 3), 5);
    cr_assert_eq(io->read(NULL, fd, data, sizeof data, 0), 8);
    cr_assert_eq(memcmp(data, "\0\0\0hello", 8), 0);
    cr_assert_eq(io->size(NULL, fd, &bytes), 0);
    cr_assert_eq(bytes, 8);
    cr_assert_eq(io->truncate(NULL, fd, 20), 0);
    cr_assert_eq(io->size(NULL, fd, &bytes), 0);
    cr_assert_eq(bytes, 20);
    cr_assert_eq(io->sync(NULL, fd), 0);
    cr_assert_eq(io->close(NULL, fd), 0);
    cr_assert_eq(io->close(NULL, fd), -EBADF);
    cr_assert_eq(io->read(NULL, fd, data, 1, 0), -EBADF);
    cr_assert_eq(io->write(NULL, fd, data, 1, 0), -EBADF);
    cr_assert_eq(io->truncate(NULL, fd, 1), -EBADF);
    cr_assert_eq(io->sync(NULL, fd), -EBADF);
    cr_assert_eq(io->lock(NULL, fd), -EBADF);
    cr_assert_eq(io->size(NULL, fd, &bytes), -EBADF);
    cr_assert_eq(io->make_directory(NULL, directory), 0, "existing is fine");
    cr_assert_eq(io->make_directory(NULL, "/nowhere/at/all"), -ENOENT);
    cr_assert_eq(io->sync_directory(NULL, directory), 0);
    cr_assert_eq(io->sync_directory(NULL, path), -ENOTDIR);
    cr_assert_eq(io->list(NULL, path, count_each, &count), -ENOTDIR);
    cr_assert_eq(io->list(NULL, directory, count_each, &count), 0);
    cr_assert_eq(count, 1);
    cr_assert_eq(io->list(NULL, directory, count_each, &count), 17);
    char other[WAL_PATH_BYTES];
    (void)snprintf(other, sizeof other, "%s/b", directory);
    cr_assert_eq(io->rename(NULL, path, other), 0);
    cr_assert_eq(io->rename(NULL, path, other), -ENOENT);
    cr_assert_eq(io->remove(NULL, other), 0);
    cr_assert_eq(io->remove(NULL, other), 0, "missing is fine");
    cr_assert_eq(io->remove(NULL, "/dev/null/x"), -ENOTDIR);
}

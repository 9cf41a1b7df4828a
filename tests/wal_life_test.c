/* What is known of a broker's last life, and what follows from it for the positions clients keep. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "broker/wal_life.h"

static char directory[64];

static void setup(void)
{
    snprintf(directory, sizeof directory, "/tmp/weir-wal-life-test-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    cr_assert_eq(system(command), 0);
}

TestSuite(wal_life, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

static struct wal_life some_life(void)
{
    struct wal_life life = {.log_id = 0x1122334455667788,
                            .renewed = 1700000000000001,
                            .level = WAL_LIFE_WRITTEN,
                            .is_stopped = true};
    snprintf(life.boot, sizeof life.boot, "5bd4d1f1-26a5-4b4c-9f8e-1a2b3c4d5e6f");
    return life;
}

static void write_life(const struct wal_life *life)
{
    struct weir_error error = {0};
    cr_assert_eq(wal_life_write(&wal_io_system, directory, life, &error), WEIR_OK, "%s",
                 error.text);
}

/* ---- the table ---- */

Test(wal_life, every_finding_fits_one_row)
{
    struct wal_life_finding finding = {0};
    for (finding.record = WAL_LIFE_NONE; finding.record <= WAL_LIFE_OURS; finding.record++)
        for (finding.level = WAL_LIFE_MEMORY; finding.level <= WAL_LIFE_SYNCED; finding.level++)
            for (finding.boot = WAL_LIFE_SAME_BOOT; finding.boot <= WAL_LIFE_OTHER_BOOT;
                 finding.boot++)
                for (finding.end = WAL_LIFE_STOPPED; finding.end <= WAL_LIFE_DIED; finding.end++)
                    for (finding.tail = WAL_LIFE_WHOLE; finding.tail <= WAL_LIFE_SHORTENED;
                         finding.tail++)
                        cr_assert_eq(wal_life_rows(&finding), 1, "%d %d %d %d %d", finding.record,
                                     finding.level, finding.boot, finding.end, finding.tail);
}

/* Said once more, as a person would: what can have been shown and is not there. */
Test(wal_life, epochs_are_kept_where_nothing_can_be_missing)
{
    struct wal_life_finding finding = {.record = WAL_LIFE_OURS};
    for (finding.level = WAL_LIFE_MEMORY; finding.level <= WAL_LIFE_SYNCED; finding.level++)
        for (finding.boot = WAL_LIFE_SAME_BOOT; finding.boot <= WAL_LIFE_OTHER_BOOT; finding.boot++)
            for (finding.end = WAL_LIFE_STOPPED; finding.end <= WAL_LIFE_DIED; finding.end++) {
                const char *why = NULL;
                bool is_there =
                    finding.end == WAL_LIFE_STOPPED || finding.level == WAL_LIFE_SYNCED ||
                    (finding.level == WAL_LIFE_WRITTEN && finding.boot == WAL_LIFE_SAME_BOOT);
                cr_assert_eq(wal_life_verdict(&finding, &why) == WAL_LIFE_KEEP, is_there);
                cr_assert_not_null(why);
                struct wal_life_finding worse = finding;
                worse.tail = WAL_LIFE_SHORTENED;
                cr_assert_eq(wal_life_verdict(&worse, NULL), WAL_LIFE_RENEW);
                worse = finding;
                worse.record = WAL_LIFE_NONE;
                cr_assert_eq(wal_life_verdict(&worse, NULL), WAL_LIFE_RENEW);
                worse.record = WAL_LIFE_FOREIGN;
                cr_assert_eq(wal_life_verdict(&worse, NULL), WAL_LIFE_RENEW);
            }
}

Test(wal_life, a_finding_says_what_the_record_says)
{
    struct wal_life life = some_life();
    struct wal_recovered recovered = {.log_id = life.log_id};
    struct wal_life_finding finding = wal_life_finding(&life, life.boot, &recovered);
    cr_assert_eq(finding.record, WAL_LIFE_OURS);
    cr_assert_eq(finding.level, WAL_LIFE_WRITTEN);
    cr_assert_eq(finding.boot, WAL_LIFE_SAME_BOOT);
    cr_assert_eq(finding.end, WAL_LIFE_STOPPED);
    cr_assert_eq(finding.tail, WAL_LIFE_WHOLE);

    cr_assert_eq(wal_life_finding(&life, "another", &recovered).boot, WAL_LIFE_OTHER_BOOT);
    life.boot[0] = '\0';
    cr_assert_eq(wal_life_finding(&life, "", &recovered).boot, WAL_LIFE_OTHER_BOOT,
                 "two machines that say nothing are not one");
    recovered.is_shortened = true;
    cr_assert_eq(wal_life_finding(&life, "", &recovered).tail, WAL_LIFE_SHORTENED);
    recovered.log_id++;
    cr_assert_eq(wal_life_finding(&life, "", &recovered).record, WAL_LIFE_FOREIGN);
    cr_assert_eq(wal_life_finding(NULL, "", &recovered).record, WAL_LIFE_NONE);
    recovered = (struct wal_recovered){.is_empty = true, .log_id = life.log_id};
    cr_assert_eq(wal_life_finding(&life, "", &recovered).record, WAL_LIFE_FOREIGN);
}

/* ---- the record ---- */

Test(wal_life, what_is_written_is_read)
{
    struct wal_life read = {0};
    struct weir_error error = {0};
    cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_EMPTY);
    cr_assert_eq(wal_life_remove(&wal_io_system, directory, &error), WEIR_OK, "%s", error.text);
    struct wal_life life = some_life();
    write_life(&life);
    life.is_stopped = false;
    write_life(&life);
    cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_OK);
    cr_assert_eq(read.log_id, life.log_id);
    cr_assert_eq(read.renewed, life.renewed);
    cr_assert_eq(read.level, life.level);
    cr_assert_eq(read.is_stopped, life.is_stopped);
    cr_assert_str_eq(read.boot, life.boot);
    cr_assert_eq(wal_life_remove(&wal_io_system, directory, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_EMPTY);
}

/* A changed bit anywhere in what counts, and a file that is too short. */
Test(wal_life, damage_is_noticed)
{
    enum { COUNTED_BYTES = 76 };
    char path[96];
    struct wal_life life = some_life();
    write_life(&life);
    snprintf(path, sizeof path, "%s/life", directory);
    int fd = open(path, O_RDWR);
    cr_assert_geq(fd, 0);
    for (unsigned bit = 0; bit < 8 * COUNTED_BYTES; bit++) {
        char byte = 0, changed = 0;
        struct wal_life read;
        cr_assert_eq(pread(fd, &byte, 1, bit / 8), 1);
        changed = (char)(byte ^ 1 << bit % 8);
        cr_assert_eq(pwrite(fd, &changed, 1, bit / 8), 1);
        cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_CORRUPT, "bit %u", bit);
        cr_assert_eq(pwrite(fd, &byte, 1, bit / 8), 1);
        cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_OK);
    }
    struct wal_life read;
    cr_assert_eq(ftruncate(fd, 511), 0);
    cr_assert_eq(wal_life_read(&wal_io_system, directory, &read), WEIR_CORRUPT);
    close(fd);
}

Test(wal_life, this_machine_says_the_same_twice)
{
    char first[WAL_LIFE_BOOT_BYTES], second[WAL_LIFE_BOOT_BYTES];
    wal_life_read_boot(first);
    wal_life_read_boot(second);
    cr_assert_str_eq(first, second);
}

/* The bar of long commands, with the time from outside. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"

static char *shown;
static size_t shown_bytes;
static struct progress progress;

static void setup(void)
{
    FILE *out = open_memstream(&shown, &shown_bytes);
    cr_assert_not_null(out);
    progress = (struct progress){.out = out, .what = "verify", .begun_ms = 1000, .shown_ms = 1000};
}

static void teardown(void)
{
    (void)fclose(progress.out);
    free(shown);
}

/* What has come since the last look. */
static const char *take_shown(void)
{
    static size_t seen;
    static char text[512];
    (void)fflush(progress.out);
    (void)snprintf(text, sizeof text, "%s", shown + seen);
    seen = shown_bytes;
    return text;
}

TestSuite(progress, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

Test(progress, short_work_shows_nothing)
{
    progress_update_at(&progress, 0, 100, 1000);
    progress_update_at(&progress, 99, 100, 1499);
    progress_end(&progress);
    cr_assert_str_eq(take_shown(), "");
}

Test(progress, long_work_shows_a_bar_ten_times_a_second_and_takes_it_away)
{
    progress_update_at(&progress, 512 * 1024, 2048 * 1024, 1500);
    cr_assert_str_eq(
        take_shown(),
        "\rverify  [=======>                      ]  25 %  512.0 KiB of 2.0 MiB\033[K");
    progress_update_at(&progress, 1024 * 1024, 2048 * 1024, 1599);
    cr_assert_str_eq(take_shown(), "");
    progress_update_at(&progress, 2048 * 1024, 2048 * 1024, 1600);
    cr_assert_str_eq(take_shown(),
                     "\rverify  [==============================] 100 %  2.0 MiB of 2.0 MiB\033[K");
    progress_end(&progress);
    cr_assert_str_eq(take_shown(), "\r\033[K");
}

/* A total is an estimate: a bar that is full does not leave its brackets. */
Test(progress, more_than_all_is_all)
{
    progress_update_at(&progress, 300, 200, 2000);
    cr_assert_str_eq(
        take_shown(),
        "\rverify  [==============================] 100 %  300 bytes of 200 bytes\033[K");
}

Test(progress, without_a_total_it_counts)
{
    progress_update_at(&progress, 1536, 0, 2000);
    cr_assert_str_eq(take_shown(), "\rverify  1.5 KiB\033[K");
}

Test(progress, nothing_is_shown_where_nobody_watches)
{
    struct progress unwatched = progress;
    unwatched.out = NULL;
    progress_update_at(&unwatched, 1, 2, 100000);
    progress_end(&unwatched);
    cr_assert_str_eq(take_shown(), "");
}

Test(progress, bytes_are_printed_in_the_unit_that_fits)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 bytes"},          {1, "1 byte"},
        {1023, "1023 bytes"},    {1024, "1.0 KiB"},
        {1048575, "1.0 MiB"},    {1048576, "1.0 MiB"},
        {3ull << 30, "3.0 GiB"}, {UINT64_MAX, "16777216.0 TiB"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[PROGRESS_BYTES_TEXT];
        progress_print_bytes(text, cases[i].bytes);
        cr_assert_str_eq(text, cases[i].text);
    }
}

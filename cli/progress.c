#include "cli/progress.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    PROGRESS_SILENT_MS = 500,
    PROGRESS_REDRAW_MS = 100,
    PROGRESS_BAR_CELLS = 30,
};

uint64_t progress_clock_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void progress_begin(struct progress *progress, const char *what, bool is_quiet)
{
    bool is_wanted = !is_quiet && isatty(STDERR_FILENO) == 1;
    uint64_t now_ms = progress_clock_ms();
    *progress = (struct progress){
        .out = is_wanted ? stderr : NULL, .what = what, .begun_ms = now_ms, .shown_ms = now_ms};
}

void progress_print_bytes(char text[PROGRESS_BYTES_TEXT], uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    if (bytes < 1024) {
        (void)snprintf(text, PROGRESS_BYTES_TEXT, "%" PRIu64 " byte%s", bytes,
                       bytes == 1 ? "" : "s");
        return;
    }
    size_t unit = 0;
    double amount = (double)bytes / 1024;
    while (amount >= 1023.95 &&
           unit + 1 < sizeof units / sizeof units[0]) { /* "1024.0" is not printed */
        amount /= 1024;
        unit++;
    }
    (void)snprintf(text, PROGRESS_BYTES_TEXT, "%.1f %s", amount, units[unit]);
}

void progress_update_at(struct progress *progress, uint64_t done, uint64_t total, uint64_t now_ms)
{
    if (progress->out == NULL || now_ms - progress->begun_ms < PROGRESS_SILENT_MS ||
        (progress->is_shown && now_ms - progress->shown_ms < PROGRESS_REDRAW_MS))
        return;
    progress->is_shown = true;
    progress->shown_ms = now_ms;
    char done_text[PROGRESS_BYTES_TEXT];
    progress_print_bytes(done_text, done);
    if (total == 0) {
        (void)fprintf(progress->out, "\r%s  %s\033[K", progress->what, done_text);
    } else {
        char total_text[PROGRESS_BYTES_TEXT];
        char bar[PROGRESS_BAR_CELLS + 1];
        double share = done < total ? (double)done / (double)total : 1;
        int cells = (int)(share * PROGRESS_BAR_CELLS);
        progress_print_bytes(total_text, total);
        memset(bar, ' ', PROGRESS_BAR_CELLS);
        memset(bar, '=', (size_t)cells);
        if (cells < PROGRESS_BAR_CELLS)
            bar[cells] = '>';
        bar[PROGRESS_BAR_CELLS] = '\0';
        (void)fprintf(progress->out, "\r%s  [%s] %3d %%  %s of %s\033[K", progress->what, bar,
                      (int)(share * 100), done_text, total_text);
    }
    (void)fflush(progress->out);
}

void progress_update(struct progress *progress, uint64_t done, uint64_t total)
{
    if (progress->out != NULL)
        progress_update_at(progress, done, total, progress_clock_ms());
}

void progress_end(struct progress *progress)
{
    if (!progress->is_shown)
        return;
    (void)fputs("\r\033[K", progress->out);
    (void)fflush(progress->out);
    progress->is_shown = false;
}

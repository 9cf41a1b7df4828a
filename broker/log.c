#include "broker/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

void log_line(const char *format, ...)
{
    static struct {
        time_t second;
        unsigned lines;
        unsigned suppressed;
    } window; /* one thread logs */

    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (now.tv_sec != window.second) {
        if (window.suppressed)
            (void)fprintf(stderr, "weir-broker: event=log_suppressed lines=%u\n",
                          window.suppressed);
        window.second = now.tv_sec;
        window.lines = 0;
        window.suppressed = 0;
    }
    if (window.lines >= LOG_LINES_PER_SECOND) {
        window.suppressed++;
        return;
    }
    window.lines++;

    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)fprintf(stderr, "weir-broker: %s\n", text);
}

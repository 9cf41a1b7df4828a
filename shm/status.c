#include "shm/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *weir_status_text(enum weir_status status)
{
    switch (status) {
#define WEIR_STATUS_CASE(name, value, text)                                                        \
    case WEIR_##name:                                                                              \
        return text;
        WEIR_STATUS_MAP(WEIR_STATUS_CASE)
#undef WEIR_STATUS_CASE
    }
    return "unknown status";
}

enum weir_status weir_fail(struct weir_error *error, enum weir_status status, const char *format,
                           ...)
{
    if (error == NULL)
        return status;
    error->status = status;
    error->sys_errno = 0;
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

enum weir_status weir_fail_errno(struct weir_error *error, int sys_errno, const char *format, ...)
{
    if (error == NULL)
        return WEIR_SYSTEM;
    error->status = WEIR_SYSTEM;
    error->sys_errno = sys_errno;
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    if (written < 0 || (size_t)written >= sizeof error->text)
        return WEIR_SYSTEM;
    size_t used = (size_t)written;
    (void)snprintf(error->text + used, sizeof error->text - used, ": %s", strerror(sys_errno));
    return WEIR_SYSTEM;
}

void weir_assert_failed(const char *condition, const char *file, int line)
{
    (void)fprintf(stderr, "weir: bug: %s does not hold at %s:%d\n", condition, file, line);
    abort();
}

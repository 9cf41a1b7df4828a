#include "gateway/worker_log.h"

#include <stdio.h>
#include <uv.h>

static size_t character_bytes(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first < 0xE0)
        return 2;
    return first < 0xF0 ? 3 : 4;
}

/* U+2028, U+2029, U+202A-202E and U+2066-2069 are E2 80 A8-AE and E2 81 A6-A9; U+0080-009F are C2
 * 80-9F. 0: it may stay as it is. */
static unsigned misleading_code(const unsigned char *at, size_t bytes)
{
    if (bytes == 2 && at[0] == 0xC2 && at[1] < 0xA0)
        return at[1];
    if (bytes != 3 || at[0] != 0xE2)
        return 0;
    unsigned code = 0x2000u | (unsigned)(at[1] & 0x3F) << 6 | (at[2] & 0x3Fu);
    bool is_misleading = (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
    return is_misleading ? code : 0;
}

static size_t clean_character(char *out, const unsigned char *at, size_t bytes)
{
    unsigned code = bytes == 1 ? at[0] : misleading_code(at, bytes);
    if (bytes == 1 && (code == '"' || code == '\\'))
        return (size_t)sprintf(out, "\\%c", (int)code);
    if (bytes == 1 && code == '\n')
        return (size_t)sprintf(out, "\\n");
    if (bytes == 1 && code == '\t')
        return (size_t)sprintf(out, "\\t");
    if (bytes == 1 ? code < 0x20 || code == 0x7F : code != 0)
        return (size_t)sprintf(out, "\\u%04x", code);
    memcpy(out, at, bytes);
    return bytes;
}

void worker_log_clean(char *out, struct span text, size_t bytes_max)
{
    const unsigned char *data = (const unsigned char *)text.data;
    size_t at = 0;
    while (at < text.bytes) { /* each turn takes a character */
        size_t bytes = character_bytes(data[at]);
        if (bytes > text.bytes - at || at + bytes > bytes_max)
            break;
        out += clean_character(out, data + at, bytes);
        at += bytes;
    }
    (void)sprintf(out, "%s", at < text.bytes ? "..." : "");
}

/* Room for one more line in this second. */
static bool worker_log_admit(struct worker_log *log)
{
    worker_log_tick(log, uv_hrtime() / 1000000);
    if (log->lines >= WORKER_LOG_LINES_MAX) {
        log->left_out++;
        return false;
    }
    log->lines++;
    return true;
}

void worker_log_tick(struct worker_log *log, uint64_t now_ms)
{
    if (now_ms / 1000 == log->second)
        return;
    if (log->left_out > 0)
        (void)fprintf(stderr, "weir-gateway: event=worker_log_left_out lines=%llu\n",
                      (unsigned long long)log->left_out);
    *log = (struct worker_log){.second = now_ms / 1000};
}

bool worker_log_message(struct worker_log *log, const char *level, struct span worker,
                        struct span message)
{
    char name[6 * WORKER_LOG_NAME_BYTES_MAX + 4], text[6 * WORKER_LOG_BYTES_MAX + 4];
    if (!worker_log_admit(log))
        return false;
    worker_log_clean(name, worker, WORKER_LOG_NAME_BYTES_MAX);
    worker_log_clean(text, message, WORKER_LOG_BYTES_MAX);
    (void)fprintf(stderr, "weir-gateway: event=worker_log level=%s worker=\"%s\" message=\"%s\"\n",
                  level, name, text);
    return true;
}

bool worker_log_refusal(struct worker_log *log, const char *event, struct span name)
{
    char text[6 * WORKER_LOG_NAME_BYTES_MAX + 4];
    if (!worker_log_admit(log))
        return false;
    worker_log_clean(text, name, WORKER_LOG_NAME_BYTES_MAX);
    (void)fprintf(stderr, "weir-gateway: event=%s name=\"%s\"\n", event, text);
    return true;
}

#include "broker/witnesses.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/log.h"
#include "broker/peers.h"

struct witness {
    uint32_t pid;
    uint64_t started; /* clock ticks since boot */
    bool is_absent, is_untold;
};

struct witnesses {
    struct witness known[PEERS_MAX]; /* the lines of the file */
    unsigned known_count;
    uint64_t log_ms; /* 0: not yet known */
    bool has_logged;
    char path[PATH_MAX], new_path[PATH_MAX];
};

/* 0: there is no such process. */
static uint64_t process_start(uint32_t pid)
{
    char path[32], text[1024];
    (void)snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    (void)fclose(file);
    text[bytes] = '\0';
    /* The name may have anything in it, parentheses too; behind it come a state and numbers. */
    const char *field = strrchr(text, ')');
    char state = 'X';
    if (field)
        (void)sscanf(field, ") %c", &state);
    for (unsigned number = 2; field && number < 22; number++) {
        field = strchr(field, ' ');
        field = field ? field + 1 : NULL;
    }
    return field && state != 'Z' && state != 'X' ? strtoull(field, NULL, 10) : 0;
}

static bool witness_lives(const struct witness *witness)
{
    return witness->started != 0 && process_start(witness->pid) == witness->started;
}

static struct witness *witness_find(struct witnesses *witnesses, uint32_t pid)
{
    for (unsigned i = 0; i < witnesses->known_count; i++)
        if (witnesses->known[i].pid == pid)
            return &witnesses->known[i];
    return NULL;
}

static void witnesses_forget_dead(struct witnesses *witnesses)
{
    for (unsigned i = witnesses->known_count; i-- > 0;)
        if (!witness_lives(&witnesses->known[i]))
            witnesses->known[i] = witnesses->known[--witnesses->known_count];
}

/* ---- the file ---- */

static void witnesses_read(struct witnesses *witnesses)
{
    FILE *file = fopen(witnesses->path, "re");
    char line[64];
    if (!file)
        return;
    while (witnesses->known_count < PEERS_MAX && fgets(line, sizeof line, file)) {
        unsigned long long started = 0;
        struct witness witness = {.is_absent = true, .is_untold = true};
        if (sscanf(line, "%u %llu", &witness.pid, &started) != 2)
            continue;
        witness.started = started;
        if (witness_lives(&witness))
            witnesses->known[witnesses->known_count++] = witness;
    }
    (void)fclose(file);
}

static bool witnesses_print(const struct witnesses *witnesses)
{
    FILE *file = fopen(witnesses->new_path, "we");
    if (!file)
        return false;
    for (unsigned i = 0; i < witnesses->known_count; i++)
        (void)fprintf(file, "%u %llu\n", witnesses->known[i].pid,
                      (unsigned long long)witnesses->known[i].started);
    bool is_written = ferror(file) == 0;
    return fclose(file) == 0 && is_written && rename(witnesses->new_path, witnesses->path) == 0;
}

/* ---- who comes and goes ---- */

void witnesses_attached(struct witnesses *witnesses, uint32_t pid)
{
    witnesses_forget_dead(witnesses);
    struct witness *known = witness_find(witnesses, pid);
    if (known) {
        known->is_absent = false;
        return;
    }
    const struct witness witness = {.pid = pid, .started = process_start(pid)};
    if (witness.started == 0 || witnesses->known_count == PEERS_MAX)
        return;
    witnesses->known[witnesses->known_count++] = witness;
    if (!witnesses_print(witnesses))
        log_line("event=gateways_not_noted file=\"%s\" reason=\"%s\"", witnesses->path,
                 strerror(errno));
}

void witnesses_told(struct witnesses *witnesses, uint32_t pid)
{
    struct witness *known = witness_find(witnesses, pid);
    if (known)
        known->is_untold = false;
}

unsigned witnesses_absent(const struct witnesses *witnesses)
{
    unsigned count = 0;
    for (unsigned i = 0; i < witnesses->known_count; i++)
        count += witnesses->known[i].is_absent;
    return count;
}

unsigned witnesses_untold(const struct witnesses *witnesses)
{
    unsigned count = 0;
    for (unsigned i = 0; i < witnesses->known_count; i++)
        count += witnesses->known[i].is_untold;
    return count;
}

static void witnesses_log(const struct witnesses *witnesses)
{
    for (unsigned i = 0; i < witnesses->known_count; i++)
        if (witnesses->known[i].is_untold)
            log_line(
                "event=gates_untold pid=%u hint=\"this gateway was attached to the broker before "
                "and has not said which gates it knows: until it does or ends, gateways that "
                "started since let nobody join\"",
                witnesses->known[i].pid);
}

void witnesses_tick(struct witnesses *witnesses, uint64_t now_ms)
{
    if (witnesses_untold(witnesses) == 0)
        return;
    witnesses_forget_dead(witnesses);
    if (witnesses->log_ms == 0)
        witnesses->log_ms = now_ms + WITNESSES_LOG_MS;
    if (witnesses->has_logged || now_ms < witnesses->log_ms)
        return;
    witnesses->has_logged = true;
    witnesses_log(witnesses);
}

/* ---- open and close ---- */

enum weir_status witnesses_open(struct witnesses **witnesses, const char *run_dir,
                                struct weir_error *error)
{
    struct witnesses *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the gateways of an earlier broker");
    if (snprintf(opened->path, PATH_MAX, "%s/gateways", run_dir) >= PATH_MAX ||
        snprintf(opened->new_path, PATH_MAX, "%s/gateways.new", run_dir) >= PATH_MAX) {
        free(opened);
        return weir_fail(error, WEIR_TOO_LARGE, "run_dir is too long: %s", run_dir);
    }
    witnesses_read(opened);
    *witnesses = opened;
    return WEIR_OK;
}

void witnesses_close(struct witnesses *witnesses)
{
    free(witnesses);
}

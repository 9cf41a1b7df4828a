/* redis-server with an append-only file and appendfsync always. A group's items are keys "gNN/iNN";
 * there is no seq and nothing like a send. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/torture/subject.h"

enum { REDIS_START_MS = 120000 };

static bool redis_open(struct subject *subject)
{
    for (unsigned lane = 0; lane < WORLD_LANES; lane++)
        subject->lanes[lane].fd = -1;
    return access(subject->program, X_OK) == 0;
}

static void redis_disconnect(struct subject *subject)
{
    for (unsigned lane = 0; lane < WORLD_LANES; lane++)
        subject_lane_close(&subject->lanes[lane]);
}

static void redis_close(struct subject *subject)
{
    redis_disconnect(subject);
    for (unsigned lane = 0; lane < WORLD_LANES; lane++) {
        buffer_fini(&subject->lanes[lane].in);
        buffer_fini(&subject->lanes[lane].out);
    }
}

/* ---- RESP ---- */

static bool put_part(struct buffer *out, struct span part)
{
    return buffer_printf(out, "$%zu\r\n", part.bytes) == WEIR_OK &&
           buffer_append(out, part) == WEIR_OK &&
           buffer_append(out, SPAN_LITERAL("\r\n")) == WEIR_OK;
}

static bool put_command(struct buffer *out, const struct span *parts, unsigned count)
{
    if (buffer_printf(out, "*%u\r\n", count) != WEIR_OK)
        return false;
    for (unsigned index = 0; index < count; index++)
        if (!put_part(out, parts[index]))
            return false;
    return true;
}

/* One simple reply at the start of `input`: +, -, : or $. EMPTY: not whole yet. *value: what it says,
 * data NULL: nil. */
static enum weir_status take_reply(struct span input, char *kind, struct span *value, size_t *bytes)
{
    const char *end = input.bytes > 0 ? memchr(input.data, '\n', input.bytes) : NULL;
    if (!end)
        return WEIR_EMPTY;
    size_t line = (size_t)(end + 1 - input.data);
    *kind = input.data[0];
    *value = span_of(input.data + 1, line - 3);
    *bytes = line;
    if (*kind != '$')
        return *kind == '+' || *kind == '-' || *kind == ':' ? WEIR_OK : WEIR_CORRUPT;
    long length = strtol(input.data + 1, NULL, 10);
    if (length < 0) {
        *value = (struct span){0};
        return WEIR_OK;
    }
    if (input.bytes < line + (size_t)length + 2)
        return WEIR_EMPTY;
    *value = span_of(input.data + line, (size_t)length);
    *bytes = line + (size_t)length + 2;
    return WEIR_OK;
}

static enum weir_status lane_take_reply(struct subject_lane *lane, char *kind, struct span *value)
{
    size_t bytes = 0;
    enum weir_status status = take_reply(subject_lane_input(lane), kind, value, &bytes);
    if (status == WEIR_OK)
        lane->in_taken += bytes;
    return status;
}

/* Ask and wait. The value is valid until the next call on the lane. */
static bool lane_ask(struct subject_lane *lane, const struct span *parts, unsigned count,
                     char *kind, struct span *value)
{
    if (!put_command(&lane->out, parts, count) || !subject_lane_flush(lane))
        return false;
    for (;;) {
        enum weir_status status = lane_take_reply(lane, kind, value);
        if (status != WEIR_EMPTY)
            return status == WEIR_OK;
        if (!subject_lane_receive(lane, CHILD_WAIT_MS))
            return false;
    }
}

/* ---- starting ---- */

static bool redis_has_ended(struct subject *subject)
{
    char text[8];
    struct pollfd ready = {.fd = subject->child.ready_fd, .events = POLLIN};
    /* It keeps the pipe's other end as long as it lives. */
    return poll(&ready, 1, 0) == 1 && read(subject->child.ready_fd, text, sizeof text) == 0;
}

static bool redis_answers(struct subject *subject, const char *path)
{
    struct timespec started, now;
    (void)clock_gettime(CLOCK_MONOTONIC, &started);
    for (;;) {
        if (access(path, F_OK) == 0 && subject_lane_open(&subject->lanes[0], path)) {
            const struct span ping[] = {SPAN_LITERAL("PING")};
            char kind = 0;
            struct span value;
            if (lane_ask(&subject->lanes[0], ping, 1, &kind, &value) && kind == '+')
                return true;
            subject_lane_close(&subject->lanes[0]);
        }
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        if (redis_has_ended(subject) || (now.tv_sec - started.tv_sec) * 1000 > REDIS_START_MS)
            return false;
        (void)usleep(500);
    }
}

static enum subject_start redis_start(struct subject *subject, const char *fault)
{
    char path[SUBJECT_PATH_BYTES + 16], log[SUBJECT_PATH_BYTES + 16];
    (void)fault; /* its disk is left alone */
    (void)snprintf(path, sizeof path, "%s/redis.sock", subject->scratch);
    (void)snprintf(log, sizeof log, "%s/server.log", subject->scratch);
    (void)unlink(path);
    char *argv[SUBJECT_ARGUMENTS_MAX + 32];
    unsigned count = 0;
    argv[count++] = subject->program;
    char *const fixed[] = {
        "--port",       "0",   "--unixsocket",  path,     "--dir",  subject->directory,
        "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        "--daemonize",  "no"};
    for (unsigned index = 0; index < sizeof fixed / sizeof fixed[0]; index++)
        argv[count++] = fixed[index];
    for (unsigned index = 0; subject->extra[index]; index++)
        argv[count++] = subject->extra[index];
    argv[count] = NULL;

    bool is_running = child_start(&subject->child, log, argv) && redis_answers(subject, path);
    for (unsigned lane = 1; lane < WORLD_LANES && is_running; lane++)
        is_running = subject_lane_open(&subject->lanes[lane], path);
    if (is_running)
        return SUBJECT_READY;
    redis_disconnect(subject);
    child_kill(&subject->child, SIGTERM);
    (void)child_wait(&subject->child);
    return SUBJECT_REFUSED;
}

/* ---- asking ---- */

static struct span redis_key(unsigned lane, unsigned group, unsigned item,
                             char key[2 * WORLD_NAME_BYTES])
{
    char group_name[WORLD_NAME_BYTES], item_name[WORLD_NAME_BYTES];
    world_group_name(lane, group, group_name);
    world_item_name(item, item_name);
    (void)snprintf(key, 2 * WORLD_NAME_BYTES, "%s/%s", group_name, item_name);
    return span_text(key);
}

static bool redis_put(struct subject *subject, struct world *world, unsigned number,
                      const struct world_request *request)
{
    char text[2 * WORLD_NAME_BYTES];
    struct span key = redis_key(number, request->group, request->item, text);
    struct buffer *out = &subject->lanes[number].out;
    switch (request->kind) {
    case WORLD_SET:
        return put_command(
            out,
            (const struct span[]){SPAN_LITERAL("SET"), key, world_value(world, request->token)}, 3);
    case WORLD_COUNT:
        return put_command(out, (const struct span[]){SPAN_LITERAL("INCR"), key}, 2);
    case WORLD_DELETE:
        return put_command(out, (const struct span[]){SPAN_LITERAL("DEL"), key}, 2);
    default:
        return false;
    }
}

static enum weir_status redis_take(struct subject *subject, unsigned number,
                                   struct subject_answer *answer)
{
    char kind = 0;
    struct span value;
    enum weir_status status = lane_take_reply(&subject->lanes[number], &kind, &value);
    if (status != WEIR_OK)
        return status;
    *answer = (struct subject_answer){.is_acknowledged = kind != '-'};
    if (kind == '-')
        (void)snprintf(answer->text, sizeof answer->text, "%.*s", (int)value.bytes, value.data);
    return WEIR_OK;
}

static void redis_observe(struct subject *subject, struct world *world, struct seen *seen)
{
    struct subject_lane *lane = &subject->lanes[0];
    char text[2 * WORLD_NAME_BYTES], kind = 0;
    struct span value;
    uint64_t count = 0;
    for (unsigned group = 0; group < WORLD_GROUPS; group++) {
        for (unsigned item = 0; item < WORLD_ITEMS; item++) {
            struct span key =
                redis_key(group / WORLD_LANE_GROUPS, group % WORLD_LANE_GROUPS, item, text);
            if (!lane_ask(lane, (const struct span[]){SPAN_LITERAL("GET"), key}, 2, &kind,
                          &value)) {
                (void)snprintf(seen->problem, sizeof seen->problem, "GET was not answered");
                return;
            }
            if (kind != '$')
                seen->groups[group].words[item] = WORLD_BROKEN; /* another type */
            else if (value.data)
                seen->groups[group].words[item] = world_word(world, item, value);
            count += seen->groups[group].words[item] != WORLD_ABSENT;
        }
    }
    if (!lane_ask(lane, (const struct span[]){SPAN_LITERAL("DBSIZE")}, 1, &kind, &value) ||
        kind != ':') {
        (void)snprintf(seen->problem, sizeof seen->problem, "DBSIZE was not answered");
        return;
    }
    uint64_t size = strtoull(value.data, NULL, 10);
    seen->strangers = size > count ? size - count : 0;
}

/* redis-check-aof, which stands beside the server. */
static bool redis_tool(struct subject *subject)
{
    char program[sizeof subject->program + 16], manifest[SUBJECT_PATH_BYTES + 64],
        log[SUBJECT_PATH_BYTES + 16];
    (void)snprintf(program, sizeof program, "%s", subject->program);
    char *slash = strrchr(program, '/');
    (void)snprintf(slash ? slash + 1 : program, 24, "redis-check-aof");
    (void)snprintf(manifest, sizeof manifest, "%s/appendonlydir/appendonly.aof.manifest",
                   subject->directory);
    (void)snprintf(log, sizeof log, "%s/tool.log", subject->scratch);
    char *argv[] = {program, manifest, NULL};
    struct child child;
    char note[CHILD_NOTE_BYTES];
    if (!child_start(&child, log, argv))
        return false;
    (void)child_wait(&child);
    child_note(&child, note);
    return child.status != 0;
}

const struct subject_kind subject_redis = {
    .name = "redis",
    .has_seq = false,
    .open = redis_open,
    .close = redis_close,
    .start = redis_start,
    .put = redis_put,
    .take = redis_take,
    .observe = redis_observe,
    .tool = redis_tool,
    .disconnect = redis_disconnect,
};

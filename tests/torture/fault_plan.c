#include "tests/torture/fault_plan.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/torture/world.h"

enum { SECTOR_BYTES = 512 };

const char *fault_point_word(enum fault_point point)
{
    static const char *const words[] = {
#define FAULT_POINT_WORD(name, word) word,
        FAULT_POINT_MAP(FAULT_POINT_WORD)
#undef FAULT_POINT_WORD
    };
    return words[point];
}

const char *fault_action_word(enum fault_action action)
{
    static const char *const words[] = {
#define FAULT_ACTION_WORD(name, word) word,
        FAULT_ACTION_MAP(FAULT_ACTION_WORD)
#undef FAULT_ACTION_WORD
    };
    return words[action];
}

static bool part_parse(struct fault_part *part, char *text)
{
    char *number = strchr(text, '@');
    char *action = number ? strchr(number, '=') : NULL;
    if (!action)
        return false;
    *number++ = 0;
    *action++ = 0;
    size_t bytes = strlen(action);
    *part = (struct fault_part){.number = strtoull(number, NULL, 10),
                                .is_lasting = bytes > 0 && action[bytes - 1] == '+'};
    if (part->is_lasting)
        action[bytes - 1] = 0;
    unsigned point = 0;
    while (point < FAULT_POINT_COUNT && strcmp(text, fault_point_word(point)) != 0)
        point++;
    unsigned kind = 0;
    while (kind < FAULT_ACTION_COUNT && strcmp(action, fault_action_word(kind)) != 0)
        kind++;
    part->point = point;
    part->action = kind;
    return part->number > 0 && point < FAULT_POINT_COUNT && kind < FAULT_ACTION_COUNT;
}

bool fault_plan_init(struct fault_plan *plan, const char *text)
{
    *plan = (struct fault_plan){.note_fd = -1};
    if (pthread_mutex_init(&plan->lock, NULL) != 0)
        return false;
    char copy[256], *rest = copy, *word = NULL;
    if (text && strlen(text) >= sizeof copy)
        return false;
    (void)snprintf(copy, sizeof copy, "%s", text ? text : "");
    while ((word = strsep(&rest, ",")) != NULL) {
        if (*word == 0)
            continue;
        if (strncmp(word, "seed=", 5) == 0) {
            plan->random = strtoull(word + 5, NULL, 10);
            continue;
        }
        if (plan->part_count == FAULT_PARTS_MAX ||
            !part_parse(&plan->parts[plan->part_count++], word))
            return false;
    }
    return true;
}

static void note(const struct fault_plan *plan, const struct fault_part *part)
{
    if (plan->note_fd < 0)
        return;
    char text[64];
    int bytes = snprintf(text, sizeof text, "%s@%llu=%s\n", fault_point_word(part->point),
                         (unsigned long long)part->number, fault_action_word(part->action));
    ssize_t written = write(plan->note_fd, text, (size_t)bytes);
    (void)written; /* nobody listens: fine */
}

enum fault_action fault_plan_next(struct fault_plan *plan, enum fault_point point)
{
    enum fault_action action = FAULT_ACTION_NONE;
    (void)pthread_mutex_lock(&plan->lock);
    uint64_t number = ++plan->counts[point];
    for (unsigned index = 0; index < plan->part_count && action == FAULT_ACTION_NONE; index++) {
        struct fault_part *part = &plan->parts[index];
        if (part->point != point ||
            !(number == part->number || (part->is_lasting && number > part->number)))
            continue;
        action = part->action;
        if (!part->has_struck)
            note(plan, part);
        part->has_struck = true;
    }
    (void)pthread_mutex_unlock(&plan->lock);
    return action;
}

void fault_strike(void)
{
    (void)kill(getpid(), SIGKILL);
    for (;;)
        (void)pause();
}

uint64_t fault_random(struct fault_plan *plan)
{
    (void)pthread_mutex_lock(&plan->lock);
    uint64_t number = world_random(&plan->random);
    (void)pthread_mutex_unlock(&plan->lock);
    return number;
}

/* Another description of the same file, without O_DIRECT: sectors need not be blocks. */
static int plain_descriptor(int fd)
{
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_WRONLY | O_CLOEXEC);
}

void fault_tear(struct fault_plan *plan, int fd, const void *data, size_t bytes, uint64_t offset)
{
    int plain = plain_descriptor(fd);
    size_t sectors = (bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
    if (plain < 0 || sectors == 0)
        return;
    uint64_t random = fault_random(plan);
    bool is_front = random % 2 == 0; /* a front part, or any */
    size_t front = (size_t)(fault_random(plan) % sectors);
    size_t spared = (size_t)(fault_random(plan) % sectors);
    for (size_t sector = 0; sector < sectors; sector++) {
        bool is_written = is_front ? sector < front : fault_random(plan) % 2 == 0;
        if (!is_written || sector == spared)
            continue;
        size_t first = sector * SECTOR_BYTES;
        size_t length = bytes - first < SECTOR_BYTES ? bytes - first : SECTOR_BYTES;
        ssize_t written =
            pwrite(plain, (const char *)data + first, length, (off_t)(offset + first));
        (void)written;
    }
    (void)close(plain);
}

size_t fault_short_bytes(struct fault_plan *plan, size_t bytes, size_t unit)
{
    if (bytes <= 1)
        return bytes;
    size_t part = (size_t)(fault_random(plan) % (bytes - 1)) + 1;
    return part > unit ? part / unit * unit : part;
}

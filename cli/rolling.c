#include "cli/rolling.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

void rolling_init(struct rolling *rolling, struct control *control)
{
    *rolling = (struct rolling){.control = control, .deadline_ms = UINT64_MAX};
}

bool rolling_is_idle(const struct rolling *rolling)
{
    return rolling->phase == ROLLING_IDLE;
}

void rolling_start(struct rolling *rolling, struct child *gateways, size_t first, size_t end,
                   uint64_t drain_ms)
{
    weir_assert(rolling->phase == ROLLING_IDLE);
    rolling->gateways = gateways;
    rolling->at = first;
    rolling->end = end;
    rolling->drain_ms = drain_ms;
    rolling->restarted = 0;
    rolling->has_failed = false;
    rolling->phase = ROLLING_NEXT;
}

static void rolling_end(struct rolling *rolling)
{
    rolling->phase = ROLLING_IDLE;
    rolling->deadline_ms = UINT64_MAX;
    control_end(rolling->control);
}

static const char *plural(size_t count)
{
    return count == 1 ? "" : "s";
}

/* ---- a new life ---- */

static void rolling_await(struct rolling *rolling, const struct child *child, uint64_t now_ms)
{
    rolling->deaths = child->deaths;
    rolling->deadline_ms = now_ms + ROLLING_READY_MS;
    rolling->phase = ROLLING_STARTING;
}

static void rolling_give_up(struct rolling *rolling, const struct child *child)
{
    control_say(rolling->control, '-',
                "%s does not get ready; the server's log says why. %zu gateway%s were restarted, "
                "%zu left as they were",
                child->name, rolling->restarted, plural(rolling->restarted),
                rolling->end - rolling->at - 1);
    rolling_end(rolling);
}

static void rolling_step_starting(struct rolling *rolling, uint64_t now_ms)
{
    const struct child *child = &rolling->gateways[rolling->at];
    if (child->state != CHILD_READY) {
        if (now_ms >= rolling->deadline_ms || child->deaths != rolling->deaths)
            rolling_give_up(rolling, child);
        return;
    }
    uint64_t took_ms = now_ms - rolling->began_ms;
    control_say(rolling->control, '.', "%s: ready after %" PRIu64 ".%" PRIu64 " s", child->name,
                took_ms / 1000, took_ms % 1000 / 100);
    rolling->restarted++;
    rolling->at++;
    rolling->phase = ROLLING_NEXT;
}

/* ---- the end of the old one ---- */

static void rolling_step_next(struct rolling *rolling, uint64_t now_ms)
{
    if (rolling->at == rolling->end || !control_has_client(rolling->control)) {
        char kind = rolling->has_failed ? '-' : '+';
        control_say(rolling->control, kind, "%zu gateway%s restarted", rolling->restarted,
                    plural(rolling->restarted));
        rolling_end(rolling);
        return;
    }
    struct child *child = &rolling->gateways[rolling->at];
    rolling->began_ms = rolling->told_ms = now_ms;
    if (child->state != CHILD_READY) {
        control_say(rolling->control, '.', "%s: is not there, its restart is waited for",
                    child->name);
        rolling_await(rolling, child, now_ms);
        return;
    }
    control_say(rolling->control, '.', "%s: draining", child->name);
    rolling->old_pid = child->pid;
    rolling->deadline_ms = now_ms + rolling->drain_ms + ROLLING_DRAIN_SLACK_MS;
    rolling->phase = ROLLING_DRAINING;
    child->is_asked = true;
    child->left = UINT64_MAX;
    child_signal(child, SIGTERM);
}

static void rolling_tell_left(struct rolling *rolling, const struct child *child, uint64_t now_ms)
{
    bool is_first = rolling->told_ms == rolling->began_ms;
    if (child->left == UINT64_MAX || (!is_first && now_ms - rolling->told_ms < ROLLING_TELL_MS))
        return;
    rolling->told_ms = now_ms > rolling->began_ms ? now_ms : rolling->began_ms + 1;
    control_say(rolling->control, '.', "%s: %" PRIu64 " connection%s left", child->name,
                child->left, plural((size_t)child->left));
}

/* It may have been killed by somebody else, or have failed. */
static void rolling_note_end(struct rolling *rolling, const struct child *child)
{
    bool is_killed = rolling->deadline_ms == UINT64_MAX; /* and that was told */
    if (child->exit_status == 0 || is_killed)
        return;
    char how[64];
    child_describe_exit(child->exit_status, how, sizeof how);
    control_say(rolling->control, '-', "%s ended with %s before it was drained", child->name, how);
    rolling->has_failed = true;
}

static void rolling_step_draining(struct rolling *rolling, uint64_t now_ms)
{
    struct child *child = &rolling->gateways[rolling->at];
    if (child->pid != rolling->old_pid) {
        rolling_note_end(rolling, child);
        rolling_await(rolling, child, now_ms);
        return;
    }
    if (now_ms < rolling->deadline_ms) {
        rolling_tell_left(rolling, child, now_ms);
        return;
    }
    rolling->deadline_ms = UINT64_MAX;
    rolling->has_failed = true;
    (void)fprintf(stderr,
                  "weir: event=killed process=%s cause=\"not drained within %" PRIu64 " ms\"\n",
                  child->name, rolling->drain_ms + ROLLING_DRAIN_SLACK_MS);
    control_say(rolling->control, '-', "%s did not drain within %" PRIu64 " ms and was killed",
                child->name, rolling->drain_ms + ROLLING_DRAIN_SLACK_MS);
    child_signal(child, SIGKILL);
}

void rolling_step(struct rolling *rolling)
{
    enum rolling_phase before;
    do { /* ends: a phase goes on to the next one, of one gateway after the other */
        before = rolling->phase;
        uint64_t now_ms = child_now_ms();
        if (before == ROLLING_NEXT)
            rolling_step_next(rolling, now_ms);
        else if (before == ROLLING_DRAINING)
            rolling_step_draining(rolling, now_ms);
        else if (before == ROLLING_STARTING)
            rolling_step_starting(rolling, now_ms);
    } while (rolling->phase != before);
}

uint64_t rolling_due_ms(const struct rolling *rolling)
{
    return rolling->phase == ROLLING_IDLE ? UINT64_MAX : rolling->deadline_ms;
}

void rolling_abandon(struct rolling *rolling)
{
    if (rolling->phase == ROLLING_IDLE)
        return;
    control_say(rolling->control, '-', "the server stops");
    rolling_end(rolling);
}

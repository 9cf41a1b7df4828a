#include "gateway/trail.h"

#include <stdlib.h>

static_assert((TRAIL_STRIDE & (TRAIL_STRIDE - 1)) == 0, "a mask finds what gets a mark");

void trail_fini(struct trail *trail)
{
    free(trail->marks);
    *trail = (struct trail){0};
}

static void trail_forget(struct trail *trail)
{
    trail->lost_seq = 0;
    if (trail->mark_count > 0)
        memset(trail->marks, 0, trail->mark_count * sizeof *trail->marks);
}

void trail_begin(struct trail *trail, uint32_t life, uint64_t epoch, struct trail_mark newest)
{
    if (trail->life == life && trail->epoch == epoch) {
        if (newest.seq > trail->newest.seq)
            trail->newest = newest;
        return;
    }
    trail_forget(trail);
    trail->life = life;
    trail->epoch = epoch;
    trail->newest = newest;
}

static struct trail_mark *trail_slot(const struct trail *trail, uint64_t seq)
{
    return &trail->marks[seq / TRAIL_STRIDE & (trail->mark_count - 1)];
}

/* Failing to grow only makes walks longer. */
static void trail_grow(struct trail *trail, uint32_t count)
{
    struct trail_mark *marks = calloc(count, sizeof *marks);
    if (marks == NULL)
        return;
    struct trail_mark *old = trail->marks;
    uint32_t old_count = trail->mark_count;
    trail->marks = marks;
    trail->mark_count = count;
    for (uint32_t i = 0; i < old_count; i++) {
        if (old[i].seq != 0)
            *trail_slot(trail, old[i].seq) = old[i];
    }
    free(old);
}

void trail_pass(struct trail *trail, struct trail_mark mark, uint64_t oldest)
{
    if ((mark.seq & (TRAIL_STRIDE - 1)) != 0 || mark.seq == 0)
        return;
    if (trail->mark_count == 0)
        trail_grow(trail, TRAIL_MARKS_MIN);
    /* Each turn doubles the table, which parts two marks in one place in the end. */
    while (trail->mark_count > 0 && trail->mark_count < TRAIL_MARKS_MAX) {
        const struct trail_mark *other = trail_slot(trail, mark.seq);
        uint32_t count = trail->mark_count;
        if (other->seq == 0 || other->seq == mark.seq || other->position < oldest)
            break;
        trail_grow(trail, 2 * count);
        if (trail->mark_count == count)
            break;
    }
    if (trail->mark_count > 0)
        *trail_slot(trail, mark.seq) = mark;
}

void trail_note(struct trail *trail, uint32_t life, const struct ring_record *record,
                uint64_t oldest)
{
    struct trail_mark mark = {record->seq, record->position};
    if (trail->life != life || record->epoch > trail->epoch)
        trail_begin(trail, life, record->epoch, mark);
    if (record->epoch != trail->epoch) /* the store has shown a later life already */
        return;
    if (record->seq > trail->newest.seq)
        trail->newest = mark;
    trail_pass(trail, mark, oldest);
}

struct trail_mark trail_find(const struct trail *trail, uint64_t seq)
{
    uint64_t at = (seq + TRAIL_STRIDE - 1) & ~(uint64_t)(TRAIL_STRIDE - 1);
    struct trail_mark closest = trail->newest;
    /* At most once round the table: in the place of one that is missing there may be one further up. */
    for (uint32_t tries = 0; tries < trail->mark_count && at < trail->newest.seq; tries++) {
        const struct trail_mark *mark = trail_slot(trail, at);
        if (mark->seq == at)
            return *mark;
        if (mark->seq > at && mark->seq < closest.seq)
            closest = *mark;
        at += TRAIL_STRIDE;
    }
    return closest;
}

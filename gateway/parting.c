#include "gateway/parting.h"

enum { NS_PER_MS = 1000000 };

void parting_begin(struct parting *parting, uint64_t now_ns)
{
    *parting = (struct parting){.has_begun = true, .began_ns = now_ns, .heard_ns = now_ns};
}

void parting_heard(struct parting *parting, uint64_t now_ns, uint32_t in_flight)
{
    parting->heard_ns = now_ns;
    parting->calls++; /* some are answered at once, and never in flight */
    if (in_flight > 1)
        parting->is_parallel = true;
}

void parting_answered(struct parting *parting)
{
    parting->was_answered = true;
}

static bool is_past(uint64_t since_ns, uint64_t now_ns, uint64_t after_ms)
{
    return now_ns - since_ns >= after_ms * NS_PER_MS;
}

bool parting_is_due(struct parting *parting, uint64_t now_ns)
{
    bool was_answered = parting->was_answered;
    parting->was_answered = false;
    if (!parting->has_begun)
        return false;
    if (is_past(parting->heard_ns, now_ns, PARTING_SILENT_MS))
        return true;
    if (!parting->is_parallel)
        return was_answered && parting->calls >= PARTING_CALLS;
    return is_past(parting->heard_ns, now_ns, PARTING_PAUSE_MS) ||
           (was_answered && is_past(parting->began_ns, now_ns, PARTING_PATIENCE_MS));
}

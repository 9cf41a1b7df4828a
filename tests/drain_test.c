/* How sockets are spread over the time of a drain; the rest of it is in tests/e2e/drain.test.mjs. */
#include <criterion/criterion.h>

#include "gateway/drain.h"

Test(drain, sockets_go_evenly_and_all_of_them, .timeout = 10)
{
    enum { TOTAL = 20000, SPAN_MS = 5000 };
    uint64_t before = 0;
    for (uint64_t passed_ms = 0; passed_ms <= SPAN_MS; passed_ms += DRAIN_TICK_MS) {
        uint64_t due = drain_due(TOTAL, passed_ms, SPAN_MS);
        cr_assert_geq(due, before);
        cr_assert_leq(due - before, (uint64_t)TOTAL * DRAIN_TICK_MS / SPAN_MS + 1);
        before = due;
    }
    cr_assert_eq(before, TOTAL);
}

Test(drain, few_sockets_go_one_by_one, .timeout = 10)
{
    uint64_t changes = 0;
    for (uint64_t passed_ms = 1; passed_ms <= 50; passed_ms++) {
        uint64_t more = drain_due(5, passed_ms, 50) - drain_due(5, passed_ms - 1, 50);
        cr_assert_leq(more, 1);
        changes += more;
    }
    cr_assert_eq(changes, 5);
}

Test(drain, all_are_due_when_the_time_is_over, .timeout = 10)
{
    cr_assert_eq(drain_due(7, 0, 0), 7u);
    cr_assert_eq(drain_due(7, 100, 50), 7u);
    cr_assert_eq(drain_due(0, 25, 50), 0u);
    cr_assert_eq(drain_due(UINT32_MAX, 1000, 1000), UINT32_MAX);
}

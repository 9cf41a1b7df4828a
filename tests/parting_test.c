/* When a worker's connection can be closed: not while it is likely to be sending. */
#include <criterion/criterion.h>

#include "gateway/parting.h"

static const uint64_t ms = 1000000;

Test(parting, one_that_was_not_let_go_never_goes, .timeout = HANG_SECONDS)
{
    struct parting parting = {0};
    parting_answered(&parting);
    cr_assert_not(parting_is_due(&parting, 3600000 * ms));
}

Test(parting, a_silent_worker_goes_after_a_while, .timeout = HANG_SECONDS)
{
    struct parting parting;
    parting_begin(&parting, 50 * ms);
    cr_assert_not(parting_is_due(&parting, 50 * ms));
    cr_assert_not(parting_is_due(&parting, (50 + PARTING_SILENT_MS) * ms - 1));
    cr_assert(parting_is_due(&parting, (50 + PARTING_SILENT_MS) * ms));
}

/* It calls the next one 3 ms after each answer: a pause is no sign, the answer is. */
Test(parting, one_call_at_a_time_goes_right_behind_an_answer, .timeout = HANG_SECONDS)
{
    struct parting parting;
    uint64_t now_ns = 0;
    parting_begin(&parting, now_ns);
    for (unsigned call = 1; call < PARTING_CALLS; call++) {
        now_ns += 3 * ms;
        cr_assert_not(parting_is_due(&parting, now_ns), "before call %u", call);
        parting_heard(&parting, now_ns, 1);
        parting_answered(&parting);
        cr_assert_not(parting_is_due(&parting, now_ns), "call %u may be one of several", call);
    }
    now_ns += 3 * ms;
    parting_heard(&parting, now_ns, 1);
    cr_assert_not(parting_is_due(&parting, now_ns));
    parting_answered(&parting);
    cr_assert(parting_is_due(&parting, now_ns));
    cr_assert_not(parting_is_due(&parting, now_ns), "the next turn is not behind the answer");
}

Test(parting, several_at_once_go_in_a_pause, .timeout = HANG_SECONDS)
{
    struct parting parting;
    parting_begin(&parting, 0);
    parting_heard(&parting, ms, 1);
    parting_heard(&parting, ms, 2);
    for (unsigned i = 0; i < PARTING_CALLS; i++) {
        parting_heard(&parting, ms, 1);
        parting_answered(&parting);
        cr_assert_not(parting_is_due(&parting, ms));
    }
    cr_assert(parting_is_due(&parting, (1 + PARTING_PAUSE_MS) * ms));
}

Test(parting, one_that_never_pauses_goes_behind_an_answer_in_the_end, .timeout = HANG_SECONDS)
{
    struct parting parting;
    parting_begin(&parting, 0);
    uint64_t now_ns = 0;
    for (; now_ns < PARTING_PATIENCE_MS * ms; now_ns += ms) {
        parting_heard(&parting, now_ns, 3);
        parting_answered(&parting);
        cr_assert_not(parting_is_due(&parting, now_ns));
    }
    parting_heard(&parting, now_ns, 3);
    cr_assert_not(parting_is_due(&parting, now_ns));
    parting_answered(&parting);
    cr_assert(parting_is_due(&parting, now_ns));
}

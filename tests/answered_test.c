/* What is known of requests that an earlier broker has carried out. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/answered.h"

static struct answered *answered;

static void open_answered(void)
{
    answered = answered_open();
    cr_assert_not_null(answered);
}

static void close_answered(void)
{
    answered_close(answered);
}

TestSuite(answered, .init = open_answered, .fini = close_answered, .timeout = HANG_SECONDS);

static void add(uint64_t origin, uint64_t request, const char *result)
{
    const struct span parts[] = {span_text("<"), span_text(result ? result : ""), span_text(">")};
    cr_assert_eq(answered_add(answered, origin, request, 10 * request, parts, result ? 3 : 0),
                 WEIR_OK);
}

static void expect(uint64_t origin, uint64_t request, const char *result)
{
    struct span found;
    cr_assert(answered_find(answered, origin, request, &found), "%llu of %llu is known",
              (unsigned long long)request, (unsigned long long)origin);
    cr_assert_eq(found.data != NULL, result != NULL);
    if (result)
        cr_assert(span_equal(found, span_text(result)), "%.*s", (int)found.bytes, found.data);
}

static void expect_unknown(uint64_t origin, uint64_t request)
{
    struct span found;
    cr_assert_not(answered_find(answered, origin, request, &found));
}

Test(answered, a_request_is_known_by_who_asked_and_its_number)
{
    add(7, 1, "a");
    add(7, 2, "bb");
    add(8, 1, "c");
    expect(7, 1, "<a>");
    expect(7, 2, "<bb>");
    expect(8, 1, "<c>");
    expect_unknown(8, 2);
    expect_unknown(9, 1);
}

Test(answered, a_result_may_be_unknown_and_the_request_still_known)
{
    add(7, 1, NULL);
    expect(7, 1, NULL);
}

Test(answered, nothing_is_known_of_nobody)
{
    struct span found;
    expect_unknown(7, 1);
    add(7, 1, "a");
    expect_unknown(0, 1);
    cr_assert_not(answered_find(NULL, 7, 1, &found));
}

/* Method: more requests than are kept; the newest are all known, the oldest are not. */
Test(answered, the_newest_stay)
{
    char text[32];
    for (uint64_t request = 1; request <= ANSWERED_MAX + 1000; request++) {
        snprintf(text, sizeof text, "r%llu", (unsigned long long)request);
        add(3, request, text);
    }
    expect_unknown(3, 1000);
    for (uint64_t request = 1001; request <= ANSWERED_MAX + 1000; request += 997) {
        snprintf(text, sizeof text, "<r%llu>", (unsigned long long)request);
        expect(3, request, text);
    }
}

/* Answers beyond the bytes kept are forgotten, the requests are not. */
Test(answered, old_answers_are_forgotten_before_their_requests)
{
    enum { BYTES = 1024 * 1024 - 3, COUNT = 200 };
    char *text = malloc(BYTES + 1);
    memset(text, 'x', BYTES);
    text[BYTES] = 0;
    for (uint64_t request = 1; request <= COUNT; request++) {
        text[0] = (char)('a' + request % 26);
        add(3, request, text);
    }
    expect(3, 1, NULL);
    for (uint64_t request = COUNT - 60; request <= COUNT; request++) {
        struct span found;
        cr_assert(answered_find(answered, 3, request, &found));
        cr_assert_eq(found.bytes, BYTES + 2);
        cr_assert_eq(found.data[1], 'a' + request % 26);
    }
    free(text);
}

/* All that is known can be gone over, oldest first. */
Test(answered, what_is_known_is_listed_in_order)
{
    struct answered_entry entry;
    uint64_t cursor = 0;
    cr_assert_not(answered_next(answered, &cursor, &entry));
    for (uint64_t request = 1; request <= 5; request++)
        add(7, request, request == 3 ? NULL : "x");
    for (uint64_t request = 1; request <= 5; request++) {
        cr_assert(answered_next(answered, &cursor, &entry));
        cr_assert_eq(entry.origin, 7);
        cr_assert_eq(entry.request, request);
        cr_assert_eq(entry.time_ms, 10 * request);
        cr_assert_eq(entry.result.data == NULL, request == 3);
    }
    cr_assert_not(answered_next(answered, &cursor, &entry));
    for (uint64_t request = 6; request <= ANSWERED_MAX + 10; request++)
        add(7, request, NULL);
    cursor = 0;
    cr_assert(answered_next(answered, &cursor, &entry));
    cr_assert_eq(entry.request, 11);
}

/* Which streams a gateway takes for a worker's own. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "gateway/custom_streams.h"
#include "shm/limits.h"

static struct custom_streams *streams;

static void open_streams(void)
{
    streams = custom_streams_open();
    cr_assert_not_null(streams);
}
static void close_streams(void)
{
    custom_streams_close(streams);
}
TestSuite(custom_streams, .init = open_streams, .fini = close_streams, .timeout = HANG_SECONDS);

static bool have(const char *stream)
{
    return custom_streams_have(streams, span_text(stream));
}

Test(custom_streams, the_broker_says_which)
{
    cr_assert_not(have("a"));
    cr_assert_not(custom_streams_have(NULL, span_text("a")));
    custom_streams_set(streams, span_text("a"), true);
    custom_streams_set(streams, span_text(""), true);
    custom_streams_set(streams, span_text("b"), false);
    cr_assert(have("a"));
    cr_assert(have(""));
    cr_assert_not(have("b"));
    custom_streams_set(streams, span_text("a"), false);
    cr_assert_not(have("a"));
    custom_streams_clear(streams);
    cr_assert_not(have(""));
}

Test(custom_streams, a_registration_marks_its_stream)
{
    custom_streams_note(streams, span_text("other"), span_text("stream::get(a)"));
    custom_streams_note(streams, (struct span){0}, span_text("stream::send(a)"));
    custom_streams_note(streams, (struct span){0}, span_text("stream::list_all(a)"));
    custom_streams_note(streams, (struct span){0}, span_text("stream::get"));
    custom_streams_note(streams, (struct span){0}, span_text("get(a)"));
    custom_streams_note(NULL, (struct span){0}, span_text("stream::get(a)"));
    cr_assert_not(have("a"));
    custom_streams_note(streams, (struct span){0}, span_text("stream::list_groups(a(b))"));
    custom_streams_note(streams, span_text("default"), span_text("stream::update()"));
    cr_assert(have("a(b)"));
    cr_assert(have(""));
    cr_assert_not(custom_streams_have_news(streams), "it is the broker who says when to read");
}

Test(custom_streams, news_are_told_once)
{
    cr_assert_not(custom_streams_have_news(NULL));
    custom_streams_set(streams, span_text("a"), true);
    cr_assert(custom_streams_have_news(streams));
    cr_assert(custom_streams_is_news(streams, span_text("a")));
    cr_assert_not(custom_streams_is_news(streams, span_text("b")));
    custom_streams_settle(streams);
    cr_assert_not(custom_streams_have_news(streams));
    cr_assert_not(custom_streams_is_news(streams, span_text("a")));
    custom_streams_set(streams, span_text("a"), true);
    cr_assert(custom_streams_is_news(streams, span_text("a")), "its worker is back");
}

/* What is not known to be custom is known not to be only when the broker has told all. */
Test(custom_streams, a_broker_that_comes_tells_all_first)
{
    cr_assert(custom_streams_are_told(NULL));
    cr_assert(custom_streams_are_told(streams), "nobody has anything to tell");
    custom_streams_clear(streams);
    custom_streams_set(streams, span_text("a"), true);
    cr_assert_not(custom_streams_are_told(streams));
    cr_assert_not(have("b"));
    custom_streams_told(streams);
    cr_assert(custom_streams_are_told(streams));
    custom_streams_clear(streams);
    cr_assert_not(custom_streams_are_told(streams), "another one");
}

/* Beyond the bound reads of every stream go through the broker, which knows. */
Test(custom_streams, beyond_its_bound_every_stream_counts)
{
    char name[16];
    for (unsigned index = 0; index < CUSTOM_STREAMS_MAX; index++) {
        (void)snprintf(name, sizeof name, "%u", index);
        custom_streams_set(streams, span_text(name), true);
    }
    cr_assert_not(have("x"));
    custom_streams_set(streams, span_text("one more"), true);
    cr_assert(have("x"));
    custom_streams_clear(streams);
    cr_assert_not(have("x"));
    custom_streams_set(streams, (struct span){0}, true);
    cr_assert(have("x"), "the broker itself does not know all");
}

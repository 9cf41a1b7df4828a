/* tests/worker_world.h -- one worker in the harness, and what tests look at: frames for the broker,
 * messages for the worker. For Criterion programs; one translation unit includes this.
 */
#ifndef WEIR_TESTS_WORKER_WORLD_H
#define WEIR_TESTS_WORKER_WORLD_H

#include <criterion/criterion.h>

#include "tests/worker_harness.h"

static struct harness harness;
static struct ws_connection connection;
static struct worker *worker;
static struct wire_message message;

static inline void say(const char *text)
{
    worker_message(worker, span_text(text), false);
}

static inline uint64_t counter(enum counter which)
{
    return harness.counters.values[which];
}

/* The next frame is of `type`. */
static inline const struct wire_field *expect(enum wire_type type)
{
    cr_assert(link_next(&harness.link, &message), "nothing was sent, %s was expected",
              wire_type_name(type));
    cr_assert_eq(message.type, type, "%s was sent, %s was expected", wire_type_name(message.type),
                 wire_type_name(type));
    return message.fields;
}

static inline void expect_nothing(void)
{
    cr_assert_not(link_next(&harness.link, &message), "%s was sent", wire_type_name(message.type));
}

#define EXPECT_FIELD(place, text)                                                                  \
    cr_assert(span_equal(message.fields[place].span, SPAN_LITERAL(text)), "field %d is %.*s",      \
              place, (int)message.fields[place].span.bytes, message.fields[place].span.data)
#define EXPECT_NIL(place) cr_assert_null(message.fields[place].span.data)

/* What the worker was sent last; "" when nothing since the last look. */
static inline const char *told(void)
{
    static char text[8192];
    text[0] = '\0';
    if (connection.text_count > 0)
        (void)snprintf(text, sizeof text, "%s", connection.texts[connection.text_count - 1]);
    connection_forget_texts(&connection);
    return text;
}

static inline void start(void)
{
    harness_init(&harness);
    worker = harness_connect(&harness, &connection);
    cr_assert_not_null(strstr(told(), "workerregistered"));
    (void)expect(WIRE_SESSION_OPEN);
}

static inline void stop(void)
{
    harness_disconnect(worker, &connection);
    cr_assert_eq(harness.triggers.running, 0, "its triggers end with the session");
    harness_fini(&harness);
}

#endif

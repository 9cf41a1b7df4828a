/* Lines of `weir log export` and `weir log import`. */
#include <criterion/criterion.h>

#include "cli/item_line.h"
#include "shm/limits.h"

static struct buffer scratch, out;
static struct store_key key;
static struct span value;
static struct weir_error error;

static void setup(void)
{
    buffer_init(&scratch, 64ul << 20);
    buffer_init(&out, 64ul << 20);
}

static void teardown(void)
{
    buffer_fini(&scratch);
    buffer_fini(&out);
}

static enum weir_status parse(const char *line)
{
    error = (struct weir_error){.status = WEIR_OK};
    return item_line_parse(span_text(line), &scratch, &key, &value, &error);
}

#define assert_span(span, text)                                                                    \
    cr_assert(span_equal(span, span_text(text)), "%.*s is not %s", (int)(span).bytes, (span).data, \
              text)

TestSuite(item_line, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

Test(item_line, names_are_decoded_and_the_value_is_compact)
{
    cr_assert_eq(parse(" {\"value\": { \"a\" : [ 1, 2.50 ] }, \"item\":\"i\\n\\u00e4\", \"more\":1,"
                       "\"group\":\"\", \"stream\":\"s\\\"\"}\r"),
                 WEIR_OK, "%s", error.text);
    assert_span(key.stream, "s\"");
    assert_span(key.group, "");
    assert_span(key.item, "i\n\xc3\xa4");
    assert_span(value, "{\"a\":[1,2.50]}");
}

Test(item_line, a_line_that_was_written_reads_back)
{
    static const char line[] =
        "{\"stream\":\"s\\\"\",\"group\":\"g\\\\\",\"item\":\"\\u0001\xc3\xa4\","
        "\"value\":{\"n\":12345678901234567890,\"t\":\"\\u00e4 \"}}";
    cr_assert_eq(parse(line), WEIR_OK, "%s", error.text);
    cr_assert_eq(item_line_append(&out, &key, value), WEIR_OK);
    cr_assert(span_equal(buffer_span(&out),
                         SPAN_LITERAL("{\"stream\":\"s\\\"\",\"group\":\"g\\\\\",\"item\":"
                                      "\"\\u0001\xc3\xa4\",\"value\":{\"n\":"
                                      "12345678901234567890,\"t\":\"\\u00e4 \"}}\n")),
              "%.*s", (int)out.bytes, out.data);
}

Test(item_line, what_is_wrong_is_named)
{
    static const struct {
        const char *line, *sentence;
    } cases[] = {
        {"[]", "not an item as JSON"},
        {"{", "not an item as JSON"},
        {"{\"stream\":\"s\",\"stream\":\"s\"}", "not an item as JSON"},
        {"{\"group\":\"g\",\"item\":\"i\",\"value\":1}", "`stream` is missing"},
        {"{\"stream\":\"s\",\"item\":\"i\",\"value\":1}", "`group` is missing"},
        {"{\"stream\":\"s\",\"group\":\"g\",\"value\":1}", "`item` is missing"},
        {"{\"stream\":\"s\",\"group\":\"g\",\"item\":\"i\"}", "`value` is missing"},
        {"{\"stream\":\"s\",\"group\":7,\"item\":\"i\",\"value\":1}", "`group` is not a string"},
        {"{\"stream\":\"s\",\"group\":\"g\",\"item\":null,\"value\":1}", "`item` is not a string"},
        {"{\"stream\":\"s\",\"group\":\"g\",\"item\":\"i\",\"value\":1}x", "not an item as JSON"},
        {"{\"stream\":\"\xff\",\"group\":\"g\",\"item\":\"i\",\"value\":1}", "not an item as JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_lt((int)parse(cases[i].line), 0, "%s was accepted", cases[i].line);
        cr_assert_not_null(strstr(error.text, cases[i].sentence), "%s: %s", cases[i].line,
                           error.text);
    }
}

/* Names and values have the limits that a write has; a byte less is fine. */
Test(item_line, limits_are_those_of_a_write)
{
    for (unsigned over = 0; over < 2; over++) {
        buffer_clear(&out);
        cr_assert_eq(buffer_append(&out, SPAN_LITERAL("{\"stream\":\"")), WEIR_OK);
        for (unsigned i = 0; i < NAME_BYTES_MAX + over; i++)
            cr_assert_eq(buffer_append(&out, SPAN_LITERAL("x")), WEIR_OK);
        cr_assert_eq(
            buffer_append(&out, SPAN_LITERAL("\",\"group\":\"\",\"item\":\"\",\"value\":1}")),
            WEIR_OK);
        cr_assert_eq(item_line_parse(buffer_span(&out), &scratch, &key, &value, &error),
                     over ? WEIR_TOO_LARGE : WEIR_OK);
    }
    cr_assert_not_null(strstr(error.text, "`stream`"), "%s", error.text);
    for (unsigned over = 0; over < 2; over++) {
        buffer_clear(&out);
        cr_assert_eq(
            buffer_append(&out, SPAN_LITERAL("{\"stream\":\"\",\"group\":\"\",\"item\":\"\","
                                             "\"value\": \"")),
            WEIR_OK);
        size_t bytes = VALUE_BYTES_MAX - 2 + over; /* and two quotes */
        cr_assert_eq(buffer_reserve(&out, bytes), WEIR_OK);
        memset(out.data + out.bytes, 'v', bytes);
        out.bytes += bytes;
        cr_assert_eq(buffer_append(&out, SPAN_LITERAL("\" }")), WEIR_OK);
        cr_assert_eq(item_line_parse(buffer_span(&out), &scratch, &key, &value, &error),
                     over ? WEIR_TOO_LARGE : WEIR_OK);
    }
    cr_assert_not_null(strstr(error.text, "`value`"), "%s", error.text);
}

#include "adapters/update.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- what the tests share ---- */

static struct update *update;

static void open_update(void)
{
    update = update_open(VALUE_BYTES_MAX);
    cr_assert_not_null(update);
}

static void close_update(void)
{
    update_close(update);
}

TestSuite(update, .init = open_update, .fini = close_update, .timeout = HANG_SECONDS);

/* The same with another limit of a value. */
static void reopen_update(uint64_t value_bytes_max)
{
    update_close(update);
    update = update_open(value_bytes_max);
    cr_assert_not_null(update);
}

/* A copy in a block of exactly its size, so that AddressSanitizer sees a read beyond it. */
static struct span copy_of(struct span text)
{
    char *copy = malloc(text.bytes > 0 ? text.bytes : 1);
    cr_assert_not_null(copy);
    if (text.bytes > 0)
        memcpy(copy, text.data, text.bytes);
    return span_of(copy, text.bytes);
}

static void expect_valid(struct span text)
{
    struct json_value value;
    struct json_problem problem = {0, "none"};
    cr_assert_eq(json_scan(text, JSON_DEPTH_MAX, &value, &problem), WEIR_OK, "%s in %.*s",
                 problem.reason, (int)text.bytes, text.data);
    cr_assert_not(value.has_space && text.data[0] != '[', "white space in %.*s", (int)text.bytes,
                  text.data);
}

/* The errors as "0 set.target_not_object, 2 ...", after checking that each is whole. */
static void summarize_errors(struct span errors, char *out, size_t out_bytes)
{
    static const char *const names[] = {"op_index", "code", "message"};
    struct json_value fields[3];
    struct json_value element;
    size_t cursor = 0;
    size_t bytes = 0;
    out[0] = '\0';
    if (errors.data == NULL)
        return;
    expect_valid(errors);
    struct json_value list = {.text = errors, .kind = JSON_ARRAY};
    while (json_next(list, &cursor, NULL, &element) == WEIR_OK) {
        cr_assert_eq(json_scan_object(element.text, 1, names, 3, fields, NULL), WEIR_OK);
        cr_assert_eq(fields[0].kind, JSON_NUMBER);
        cr_assert_eq(fields[1].kind, JSON_STRING);
        cr_assert_eq(fields[2].kind, JSON_STRING);
        cr_assert_gt(fields[2].text.bytes, (size_t)10);
        if (bytes + 200 < out_bytes)
            bytes += (size_t)snprintf(out + bytes, out_bytes - bytes, "%s%.*s %.*s",
                                      bytes == 0 ? "" : ", ", (int)fields[0].text.bytes,
                                      fields[0].text.data, (int)(fields[1].text.bytes - 2),
                                      fields[1].text.data + 1);
    }
    cr_assert_gt(bytes, (size_t)0, "an empty list of errors");
}

struct row {
    const char *old; /* NULL: the item does not exist */
    const char *ops;
    const char *new;
    const char *errors; /* "" or as summarize_errors() gives them */
};

static void expect_row(const struct row *row)
{
    const char *problem = "none";
    char errors[4096];
    struct update_result result;
    struct span ops = copy_of(span_text(row->ops));
    struct span old = row->old == NULL ? (struct span){0} : copy_of(span_text(row->old));
    cr_assert_eq(update_parse(update, ops, &problem), WEIR_OK, "%s: %s", row->ops, problem);
    cr_assert_eq(update_apply(update, old, &result), WEIR_OK, "%s", row->ops);
    summarize_errors(result.errors, errors, sizeof errors);
    cr_expect(span_equal(result.value, span_text(row->new)), "%s of %s gives %.*s and not %s",
              row->ops, row->old, (int)result.value.bytes, result.value.data, row->new);
    cr_expect(strcmp(errors, row->errors) == 0, "%s of %s fails with [%s] and not [%s]", row->ops,
              row->old, errors, row->errors);
    free((void *)ops.data);
    free((void *)old.data);
}

#define EXPECT_ROWS(...)                                                                           \
    do {                                                                                           \
        static const struct row rows[] = {__VA_ARGS__};                                            \
        for (size_t row_index = 0; row_index < sizeof rows / sizeof rows[0]; row_index++)          \
            expect_row(&rows[row_index]);                                                          \
    } while (0)

static enum weir_status run(struct span old, struct span ops, struct update_result *result)
{
    const char *problem = "none";
    enum weir_status status = update_parse(update, ops, &problem);
    return status == WEIR_OK ? update_apply(update, old, result) : status;
}

static void append(struct buffer *buffer, const char *text)
{
    cr_assert_eq(buffer_append(buffer, span_text(text)), WEIR_OK);
}

/* ---- reading the list (PROTOCOL 4) ---- */

/* covers: 4#1 4#2 4#3 4#4 4#5 */
Test(update, every_form_of_an_operation_is_read)
{
    EXPECT_ROWS(
        {"1", "[]", "1", ""}, {"1", "[{\"type\":\"set\",\"path\":\"\"}]", "null", ""},
        {"{}", "[{\"type\":\"set\",\"path\":\"a\",\"value\":[1]}]", "{\"a\":[1]}", ""},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"a\":1}}]", "{\"a\":1}", ""},
        {"{}", "[{\"type\":\"merge\",\"path\":null,\"value\":{\"a\":1}}]", "{\"a\":1}", ""},
        {"{}", "[{\"type\":\"merge\",\"path\":[],\"value\":{\"a\":1}}]", "{\"a\":1}", ""},
        {"{}", "[{\"type\":\"merge\",\"path\":\"\",\"value\":{\"a\":1}}]", "{\"a\":1}", ""},
        {"{}", "[{\"type\":\"merge\",\"path\":\"b\",\"value\":{\"a\":1}}]", "{\"b\":{\"a\":1}}",
         ""},
        {"{}", "[{\"type\":\"merge\",\"path\":[\"b\"],\"value\":{\"a\":1}}]", "{\"b\":{\"a\":1}}",
         ""},
        {"{}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":2}]", "{\"a\":2}", ""},
        {"{}", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":2}]", "{\"a\":-2}", ""},
        {"{}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":-9223372036854775808}]",
         "{\"a\":-9223372036854775808}", ""},
        {"{}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":9223372036854775807}]",
         "{\"a\":9223372036854775807}", ""},
        {"[]", "[{\"type\":\"append\",\"value\":null}]", "[null]", ""},
        {"[]", "[{\"type\":\"append\",\"path\":null,\"value\":1}]", "[1]", ""},
        {"[]", "[{\"type\":\"append\",\"path\":[],\"value\":1}]", "[1]", ""},
        {"{}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":1}]", "{\"a\":{\"b\":[1]}}",
         ""},
        {"{\"a\":1}", "[{\"type\":\"remove\",\"path\":\"a\"}]", "{}", ""},
        /* Unknown keys, keys of other types' fields, and escapes in names. */
        {"{}", "[{\"x\":[{}],\"type\":\"set\",\"by\":\"no\",\"path\":\"a\",\"value\":1}]",
         "{\"a\":1}", ""},
        {"{}", "[{\"\\u0074ype\":\"s\\u0065t\",\"path\":\"a\",\"value\":1}]", "{\"a\":1}", ""}, );
}

struct refusal {
    const char *ops;
    const char *word; /* in the sentence */
};

static void expect_refusals(const struct refusal *refusals, size_t count)
{
    for (size_t index = 0; index < count; index++) {
        const char *problem = NULL;
        struct update_result result;
        cr_expect_eq(update_parse(update, span_text(refusals[index].ops), &problem), WEIR_INVALID,
                     "%s", refusals[index].ops);
        cr_assert_not_null(problem);
        cr_expect(strstr(problem, refusals[index].word) != NULL, "%s: %s", refusals[index].ops,
                  problem);
        /* Nothing is left of the list. */
        cr_assert_eq(update_apply(update, SPAN_LITERAL("[1]"), &result), WEIR_OK);
        cr_expect(span_equal(result.value, SPAN_LITERAL("[1]")));
    }
}

/* covers: 4#1 4#2 4#3 4#4 4#5 */
Test(update, a_wrong_operation_refuses_the_whole_list)
{
    static const struct refusal refusals[] = {
        {"", "ops is missing"},
        {"{}", "ops must be an array"},
        {"null", "ops must be an array"},
        {"\"set\"", "ops must be an array"},
        {"[1]", "ops[0] must be an object"},
        {"[{\"type\":\"set\",\"path\":\"\"},[]]", "ops[1] must be an object"},
        {"[{}]", "ops[0].type is missing"},
        {"[{\"type\":\"Set\",\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":\"SET\",\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":\"delete\",\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":\"\",\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":null,\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":1,\"path\":\"\"}]", "ops[0].type must be one of"},
        {"[{\"type\":\"set\"}]", "ops[0].path is missing"},
        {"[{\"type\":\"set\",\"path\":null,\"value\":1}]", "ops[0].path must be a string"},
        {"[{\"type\":\"set\",\"path\":[\"a\"],\"value\":1}]", "ops[0].path must be a string"},
        {"[{\"type\":\"set\",\"path\":[],\"value\":1}]", "ops[0].path must be a string"},
        {"[{\"type\":\"set\",\"path\":1,\"value\":1}]", "ops[0].path must be a string"},
        {"[{\"type\":\"remove\"}]", "ops[0].path is missing"},
        {"[{\"type\":\"remove\",\"path\":[\"a\"]}]", "ops[0].path must be a string"},
        {"[{\"type\":\"merge\",\"path\":\"a\"}]", "ops[0].value is missing"},
        {"[{\"type\":\"merge\",\"path\":1,\"value\":{}}]", "array of strings"},
        {"[{\"type\":\"merge\",\"path\":{},\"value\":{}}]", "array of strings"},
        {"[{\"type\":\"merge\",\"path\":[\"a\",1],\"value\":{}}]", "array of strings"},
        {"[{\"type\":\"merge\",\"path\":[null],\"value\":{}}]", "array of strings"},
        {"[{\"type\":\"append\",\"path\":\"a\"}]", "ops[0].value is missing"},
        {"[{\"type\":\"append\",\"path\":true,\"value\":1}]", "array of strings"},
        {"[{\"type\":\"increment\",\"by\":1}]", "ops[0].path is missing"},
        {"[{\"type\":\"increment\",\"path\":[\"a\"],\"by\":1}]", "ops[0].path must be a string"},
        {"[{\"type\":\"increment\",\"path\":\"a\"}]", "ops[0].by is missing"},
        {"[{\"type\":\"decrement\",\"path\":\"a\"}]", "ops[0].by is missing"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":null}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":\"1\"}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":1.0}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":1.5}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":1e2}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":1E2}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"increment\",\"path\":\"a\",\"by\":-0}]", "ops[0].by must be an integer"},
        {"[{\"type\":\"decrement\",\"path\":\"a\",\"by\":9223372036854775808}]", "ops[0].by"},
        {"[{\"type\":\"decrement\",\"path\":\"a\",\"by\":-9223372036854775809}]", "ops[0].by"},
        {"[{\"type\":\"decrement\",\"path\":\"a\",\"by\":18446744073709551616}]", "ops[0].by"},
        {"[{\"type\":\"set\",\"path\":\"a\",\"path\":\"b\",\"value\":1}]", "path comes twice"},
        {"[{\"type\":\"set\",\"p\\u0061th\":\"a\",\"path\":\"b\"}]", "path comes twice"},
        {"[{\"type\":\"set\",\"path\":\"a\"},{\"type\":\"set\",\"path\":\"a\"},{\"type\":\"x\"}]",
         "ops[2].type"},
    };
    expect_refusals(refusals, sizeof refusals / sizeof refusals[0]);
}

/* The rest of the list is applied, the index counts all operations, effects before and after stay. */
Test(update, an_operation_that_fails_stops_no_other)
{
    EXPECT_ROWS({"{\"a\":\"x\"}",
                 "[{\"type\":\"set\",\"path\":\"b\",\"value\":1},{\"type\":\"increment\",\"path\":"
                 "\"a\",\"by\":1},{\"type\":\"set\",\"path\":\"__proto__\",\"value\":2},{\"type\":"
                 "\"append\",\"path\":\"a\",\"value\":\"y\"},{\"type\":\"append\",\"path\":\"b\","
                 "\"value\":1}]",
                 "{\"a\":\"xy\",\"b\":1}",
                 "1 increment.not_number, 2 set.path.proto_polluted, 4 append.type_mismatch"}, );
}

/* Dots, colons, slashes, NUL and everything else mean nothing; keys are compared decoded. */
Test(update, a_path_segment_is_a_literal_key)
{
    EXPECT_ROWS(
        {"{\"a\":{\"b\":1}}", "[{\"type\":\"set\",\"path\":\"a.b\",\"value\":2}]",
         "{\"a\":{\"b\":1},\"a.b\":2}", ""},
        {"{\"a.b\":1}", "[{\"type\":\"increment\",\"path\":\"a.b\",\"by\":1}]", "{\"a.b\":2}", ""},
        {"{\"\\u0061\":1}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "{\"\\u0061\":2}",
         ""},
        {"{\"a\":1}", "[{\"type\":\"remove\",\"path\":\"\\u0061\"}]", "{}", ""},
        {"{\"\\u0000\":1}", "[{\"type\":\"increment\",\"path\":\"\\u0000\",\"by\":1}]",
         "{\"\\u0000\":2}", ""},
        {"{\"a\":1}", "[{\"type\":\"set\",\"path\":\"a\\u0000\",\"value\":2}]",
         "{\"a\":1,\"a\\u0000\":2}", ""},
        {"{\"\\ud83d\\ude00\":1}", "[{\"type\":\"remove\",\"path\":\"\xf0\x9f\x98\x80\"}]", "{}",
         ""},
        {"{\"\xc3\xa9\":1}", "[{\"type\":\"increment\",\"path\":\"\\u00e9\",\"by\":1}]",
         "{\"\xc3\xa9\":2}", ""},
        {"{\"\\\"\\\\\\/\":1}", "[{\"type\":\"increment\",\"path\":\"\\\"\\\\/\",\"by\":1}]",
         "{\"\\\"\\\\\\/\":2}", ""},
        {"{\"\":1}", "[{\"type\":\"merge\",\"value\":{\"\":2}}]", "{\"\":2}", ""}, );
}

/* ---- checks (PROTOCOL 4.1, 4.2) ---- */

static void append_segments(struct buffer *ops, const char *segment, size_t count)
{
    append(ops, "[");
    for (size_t index = 0; index < count; index++) {
        append(ops, index == 0 ? "\"" : ",\"");
        append(ops, segment);
        append(ops, "\"");
    }
    append(ops, "]");
}

static void expect_long_path(const char *type, const char *old, size_t segments, const char *errors)
{
    struct buffer ops;
    struct buffer expected;
    char summary[4096];
    struct update_result result;
    buffer_init(&ops, 1 << 20);
    buffer_init(&expected, 1 << 20);
    cr_assert_eq(buffer_printf(&ops, "[{\"type\":\"%s\",\"value\":{},\"path\":", type), WEIR_OK);
    append_segments(&ops, "s", segments);
    append(&ops, "}]");
    cr_assert_eq(run(span_text(old), buffer_span(&ops), &result), WEIR_OK);
    summarize_errors(result.errors, summary, sizeof summary);
    cr_expect_eq(strcmp(summary, errors), 0, "%zu segments: %s", segments, summary);
    cr_expect_eq(span_equal(result.value, span_text(old)), errors[0] != '\0');
    buffer_fini(&ops);
    buffer_fini(&expected);
}

/* covers: 4.1#1 */
Test(update, a_path_of_more_than_32_segments_fails)
{
    expect_long_path("merge", "{\"a\":1}", 32, "");
    expect_long_path("merge", "{\"a\":1}", 33, "0 merge.path.too_deep");
    expect_long_path("append", "{\"a\":1}", 32, "");
    expect_long_path("append", "{\"a\":1}", 33, "0 append.path.too_deep");
    expect_long_path("append", "7", 100000, "0 append.path.too_deep");
}

/* covers: 4.1#2 */
Test(update, an_empty_segment_fails_in_an_array_only)
{
    EXPECT_ROWS({"{}", "[{\"type\":\"merge\",\"path\":[\"a\",\"\"],\"value\":{}}]", "{}",
                 "0 merge.path.empty_segment"},
                {"{}", "[{\"type\":\"append\",\"path\":[\"\",\"a\"],\"value\":1}]", "{}",
                 "0 append.path.empty_segment"},
                {"{}", "[{\"type\":\"append\",\"path\":[\"\"],\"value\":1}]", "{}",
                 "0 append.path.empty_segment"},
                {"[]", "[{\"type\":\"append\",\"path\":\"\",\"value\":1}]", "[1]", ""}, );
}

static void expect_long_segment(const char *type, const char *fields, const char *character,
                                size_t count, bool in_array, bool fails)
{
    struct buffer ops;
    char summary[4096];
    char code[64] = "";
    struct update_result result;
    buffer_init(&ops, 1 << 20);
    cr_assert_eq(
        buffer_printf(&ops, "[{\"type\":\"%s\",%s\"path\":%s\"", type, fields, in_array ? "[" : ""),
        WEIR_OK);
    for (size_t index = 0; index < count; index++)
        append(&ops, character);
    append(&ops, in_array ? "\"]}]" : "\"}]");
    if (fails)
        (void)snprintf(code, sizeof code, "0 %s.path.segment_too_long", type);
    cr_assert_eq(run(SPAN_LITERAL("{}"), buffer_span(&ops), &result), WEIR_OK);
    summarize_errors(result.errors, summary, sizeof summary);
    cr_expect_eq(strcmp(summary, code), 0, "%s of %zu %s: %s", type, count, character, summary);
    buffer_fini(&ops);
}

struct shape {
    const char *type;
    const char *fields;
    bool takes_array;
};
static const struct shape shapes[] = {
    {"set", "", false},
    {"merge", "\"value\":{},", true},
    {"increment", "\"by\":1,", false},
    {"decrement", "\"by\":1,", false},
    {"append", "\"value\":{},", true},
    {"remove", "", false},
};
enum { SHAPE_COUNT = sizeof shapes / sizeof shapes[0] };

/* covers: 4.1#3 */
Test(update, a_segment_of_more_than_256_bytes_fails)
{
    for (size_t index = 0; index < SHAPE_COUNT; index++) {
        const struct shape *shape = &shapes[index];
        for (int in_array = 0; in_array <= shape->takes_array; in_array++) {
            expect_long_segment(shape->type, shape->fields, "k", 256, in_array, false);
            expect_long_segment(shape->type, shape->fields, "k", 257, in_array, true);
            expect_long_segment(shape->type, shape->fields, "\xc3\xa9", 128, in_array, false);
            expect_long_segment(shape->type, shape->fields, "\xc3\xa9", 129, in_array, true);
            /* Bytes of UTF-8 count, not those of the text. */
            expect_long_segment(shape->type, shape->fields, "\\u0001", 256, in_array, false);
            expect_long_segment(shape->type, shape->fields, "\\u0001", 257, in_array, true);
        }
    }
}

/* covers: 4.1#4 */
Test(update, prototype_names_fail_in_every_path)
{
    static const char *const names[] = {"__proto__", "constructor", "prototype", "\\u005f_proto__"};
    for (size_t index = 0; index < SHAPE_COUNT; index++) {
        for (size_t name = 0; name < sizeof names / sizeof names[0]; name++) {
            char ops[256];
            char errors[64];
            const struct shape *shape = &shapes[index];
            (void)snprintf(errors, sizeof errors, "0 %s.path.proto_polluted", shape->type);
            (void)snprintf(ops, sizeof ops, "[{\"type\":\"%s\",%s\"path\":\"%s\"}]", shape->type,
                           shape->fields, names[name]);
            expect_row(&(struct row){"{}", ops, "{}", errors});
            expect_row(&(struct row){"7", ops, "7", errors}); /* before anything else */
            if (!shape->takes_array)
                continue;
            (void)snprintf(ops, sizeof ops, "[{\"type\":\"%s\",%s\"path\":[\"a\",\"%s\"]}]",
                           shape->type, shape->fields, names[name]);
            expect_row(&(struct row){"{}", ops, "{}", errors});
        }
    }
    EXPECT_ROWS(
        {"{}", "[{\"type\":\"set\",\"path\":\"__proto\",\"value\":1}]", "{\"__proto\":1}", ""},
        {"{}", "[{\"type\":\"set\",\"path\":\"Prototype\",\"value\":1}]", "{\"Prototype\":1}",
         ""}, );
}

/* The first check that fails wins: the count, then segment by segment; the value comes after. */
Test(update, checks_have_an_order)
{
    EXPECT_ROWS({"{}", "[{\"type\":\"merge\",\"path\":[\"\",\"__proto__\"],\"value\":1}]", "{}",
                 "0 merge.path.empty_segment"},
                {"{}", "[{\"type\":\"merge\",\"path\":[\"__proto__\",\"\"],\"value\":1}]", "{}",
                 "0 merge.path.proto_polluted"},
                {"1", "[{\"type\":\"merge\",\"path\":\"\",\"value\":1}]", "1",
                 "0 merge.value.not_an_object"},
                {"1", "[{\"type\":\"append\",\"path\":[\"prototype\"],\"value\":1}]", "1",
                 "0 append.path.proto_polluted"}, );
}

/* covers: 4.2#1 4.2#3 */
Test(update, a_merged_value_is_an_object_without_prototype_names)
{
    EXPECT_ROWS(
        {"{}", "[{\"type\":\"merge\",\"value\":null}]", "{}", "0 merge.value.not_an_object"},
        {"{}", "[{\"type\":\"merge\",\"value\":[]}]", "{}", "0 merge.value.not_an_object"},
        {"{}", "[{\"type\":\"merge\",\"value\":\"{}\"}]", "{}", "0 merge.value.not_an_object"},
        {"{}", "[{\"type\":\"merge\",\"value\":false}]", "{}", "0 merge.value.not_an_object"},
        {"7", "[{\"type\":\"merge\",\"path\":\"a\",\"value\":1}]", "7",
         "0 merge.value.not_an_object"},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"a\":1,\"__proto__\":{}}}]", "{}",
         "0 merge.value.proto_polluted"},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"constr\\u0075ctor\":1}}]", "{}",
         "0 merge.value.proto_polluted"},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"prototype\":1}}]", "{}",
         "0 merge.value.proto_polluted"},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"a\":{\"__proto__\":1}}}]",
         "{\"a\":{\"__proto__\":1}}", ""},
        {"{}", "[{\"type\":\"set\",\"path\":\"a\",\"value\":{\"__proto__\":1}}]",
         "{\"a\":{\"__proto__\":1}}", ""}, );
}

static void expect_merge_keys(size_t keys, size_t repeats, const char *old, const char *errors)
{
    struct buffer ops;
    char summary[4096];
    struct update_result result;
    buffer_init(&ops, 1 << 20);
    append(&ops, "[{\"type\":\"merge\",\"value\":{");
    for (size_t index = 0; index < keys + repeats; index++)
        cr_assert_eq(
            buffer_printf(&ops, "%s\"k%zu\":%zu", index == 0 ? "" : ",", index % keys, index),
            WEIR_OK);
    append(&ops, "}}]");
    cr_assert_eq(run(span_text(old), buffer_span(&ops), &result), WEIR_OK);
    summarize_errors(result.errors, summary, sizeof summary);
    cr_expect_eq(strcmp(summary, errors), 0, "%zu keys: %s", keys, summary);
    expect_valid(result.value);
    buffer_fini(&ops);
}

/* covers: 4.2#2 */
Test(update, a_merged_value_has_at_most_1024_keys)
{
    expect_merge_keys(1024, 0, "{}", "");
    expect_merge_keys(1024, 500, "{}", ""); /* a key that comes twice is one */
    expect_merge_keys(1025, 0, "{}", "0 merge.value.too_many_keys");
    expect_merge_keys(1025, 0, "7", "0 merge.value.too_many_keys");
    expect_merge_keys(50000, 0, "{}", "0 merge.value.too_many_keys");
}

/* `levels` containers, one in the other; the outermost is an object. */
static void append_nested(struct buffer *out, size_t levels, const char *inner)
{
    for (size_t index = 0; index < levels; index++)
        append(out, index % 2 == 0 ? "{\"d\":" : "[");
    append(out, inner);
    for (size_t index = levels; index > 0; index--)
        append(out, (index - 1) % 2 == 0 ? "}" : "]");
}

/* covers: 4.2#4 */
Test(update, a_merged_value_is_at_most_16_deep)
{
    for (size_t levels = 14; levels <= 18; levels++) {
        struct buffer ops;
        char summary[4096];
        struct update_result result;
        buffer_init(&ops, 1 << 20);
        append(&ops, "[{\"type\":\"merge\",\"value\":");
        append_nested(&ops, levels, "\"[[[[[[[[[[[[[[[[[[[[[[[[[{{{{{{{{{{{{{{\"");
        append(&ops, "}]");
        cr_assert_eq(run(SPAN_LITERAL("{}"), buffer_span(&ops), &result), WEIR_OK);
        summarize_errors(result.errors, summary, sizeof summary);
        cr_expect_eq(strcmp(summary, levels > 16 ? "0 merge.value.too_deep" : ""), 0, "%zu: %s",
                     levels, summary);
        buffer_fini(&ops);
    }
}

/* ---- the starting point (PROTOCOL 4.3) ---- */

Test(update, a_missing_item_starts_as_an_empty_object)
{
    EXPECT_ROWS({NULL, "[]", "{}", ""},
                {NULL, "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "{\"a\":1}", ""},
                {NULL, "[{\"type\":\"remove\",\"path\":\"a\"}]", "{}", ""},
                {NULL, "[{\"type\":\"merge\",\"value\":{\"a\":1}}]", "{\"a\":1}", ""},
                {NULL, "[{\"type\":\"append\",\"path\":\"a\",\"value\":1}]", "{\"a\":[1]}", ""},
                {NULL, "[{\"type\":\"set\",\"path\":\"constructor\"}]", "{}",
                 "0 set.path.proto_polluted"}, );
}

/* The first operation that does not fail ends it, also one that changes nothing; failed ones do not. */
Test(update, fresh_ends_with_the_first_operation_that_does_not_fail)
{
    EXPECT_ROWS(
        {NULL,
         "[{\"type\":\"increment\",\"path\":\"\",\"by\":5},{\"type\":\"increment\",\"path\":\"\","
         "\"by\":2}]",
         "7", ""},
        {NULL,
         "[{\"type\":\"remove\",\"path\":\"a\"},{\"type\":\"increment\",\"path\":\"\",\"by\":5}]",
         "{}", "1 increment.not_number"},
        {NULL,
         "[{\"type\":\"merge\",\"value\":1},{\"type\":\"set\",\"path\":\"__proto__\"},{\"type\":"
         "\"decrement\",\"path\":\"\",\"by\":5}]",
         "-5", "0 merge.value.not_an_object, 1 set.path.proto_polluted"},
        {NULL,
         "[{\"type\":\"merge\",\"value\":{}},{\"type\":\"append\",\"path\":\"\",\"value\":\"x\"}]",
         "{}", "1 append.type_mismatch"},
        {NULL,
         "[{\"type\":\"append\",\"value\":\"x\"},{\"type\":\"append\",\"value\":\"y\"},{\"type\":"
         "\"append\",\"value\":1}]",
         "\"xy\"", "2 append.type_mismatch"},
        {"{}", "[{\"type\":\"increment\",\"path\":\"\",\"by\":5}]", "{}",
         "0 increment.not_number"}, );
}

/* ---- the decision tables (PROTOCOL 4.4) ---- */

/* covers: 4.4/1#1 4.4/1#2 4.4/1#3 */
Test(update, set_replaces_the_item_or_a_member)
{
    EXPECT_ROWS(
        {"[1,2]", "[{\"type\":\"set\",\"path\":\"\",\"value\":{\"a\":1.0}}]", "{\"a\":1.0}", ""},
        {"{\"a\":1}", "[{\"type\":\"set\",\"path\":\"\"}]", "null", ""},
        {"null", "[{\"type\":\"set\",\"path\":\"\",\"value\":\"s\"}]", "\"s\"", ""},
        {"{\"a\":1,\"b\":2}", "[{\"type\":\"set\",\"path\":\"a\",\"value\":[]}]",
         "{\"a\":[],\"b\":2}", ""},
        {"{\"a\":1}", "[{\"type\":\"set\",\"path\":\"b\",\"value\":2}]", "{\"a\":1,\"b\":2}", ""},
        {"{\"a\":1}", "[{\"type\":\"set\",\"path\":\"a\"}]", "{\"a\":null}", ""},
        {"{}", "[{\"type\":\"set\",\"path\":\"a\"}]", "{\"a\":null}", ""},
        {"[]", "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "[]", "0 set.target_not_object"},
        {"[1,2]", "[{\"type\":\"set\",\"path\":\"0\",\"value\":1}]", "[1,2]",
         "0 set.target_not_object"},
        {"null", "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "null",
         "0 set.target_not_object"},
        {"\"s\"", "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "\"s\"",
         "0 set.target_not_object"},
        {"1", "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "1", "0 set.target_not_object"},
        {"true", "[{\"type\":\"set\",\"path\":\"a\",\"value\":1}]", "true",
         "0 set.target_not_object"}, );
}

/* covers: 4.4/2#1 4.4/2#2 4.4/2#3 */
Test(update, merge_replaces_members_and_makes_the_objects_on_its_way)
{
    EXPECT_ROWS(
        {"{\"a\":{\"x\":1},\"b\":2}", "[{\"type\":\"merge\",\"value\":{\"a\":{\"y\":1},\"c\":3}}]",
         "{\"a\":{\"y\":1},\"b\":2,\"c\":3}", ""},
        {"{\"a\":1}", "[{\"type\":\"merge\",\"value\":{\"a\":null}}]", "{\"a\":null}", ""},
        {"{\"a\":1}", "[{\"type\":\"merge\",\"value\":{}}]", "{\"a\":1}", ""},
        {"{}", "[{\"type\":\"merge\",\"value\":{\"a\":1,\"a\":2}}]", "{\"a\":2}", ""},
        {"[1]", "[{\"type\":\"merge\",\"value\":{\"a\":1}}]", "[1]", ""},
        {"null", "[{\"type\":\"merge\",\"value\":{\"a\":1}}]", "null", ""},
        {"\"s\"", "[{\"type\":\"merge\",\"path\":\"\",\"value\":{\"a\":1}}]", "\"s\"", ""},
        {"7", "[{\"type\":\"merge\",\"path\":[],\"value\":{\"a\":1}}]", "7", ""},
        {"[1]", "[{\"type\":\"merge\",\"path\":\"k\",\"value\":{\"a\":1}}]", "{\"k\":{\"a\":1}}",
         ""},
        {"null", "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1}}}", ""},
        {"{\"k\":{\"z\":0}}", "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"z\":0,\"l\":{\"a\":1}}}", ""},
        {"{\"k\":[1]}", "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1}}}", ""},
        {"{\"k\":\"s\"}", "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1}}}", ""},
        {"{\"k\":{\"l\":null}}",
         "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1}}}", ""},
        {"{\"k\":{\"l\":7,\"m\":8}}",
         "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1},\"m\":8}}", ""},
        {"{\"k\":{\"l\":{\"a\":0,\"b\":2}}}",
         "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"a\":1}}]",
         "{\"k\":{\"l\":{\"a\":1,\"b\":2}}}", ""},
        {"7", "[{\"type\":\"merge\",\"path\":\"k\",\"value\":{}}]", "{\"k\":{}}", ""}, );
}

/* covers: 4.4/3#1 4.4/3#2 4.4/3#3 4.4/3#4 4.4/3#5 4.4/3#6 4.4/3#7 */
Test(update, increment_and_decrement_count)
{
    EXPECT_ROWS(
        {NULL, "[{\"type\":\"increment\",\"path\":\"\",\"by\":3}]", "3", ""},
        {NULL, "[{\"type\":\"decrement\",\"path\":\"\",\"by\":3}]", "-3", ""},
        {NULL, "[{\"type\":\"decrement\",\"path\":\"\",\"by\":0}]", "0", ""},
        {NULL, "[{\"type\":\"decrement\",\"path\":\"\",\"by\":-9223372036854775808}]",
         "9223372036854775808", ""},
        {"40", "[{\"type\":\"increment\",\"path\":\"\",\"by\":2}]", "42", ""},
        {"40", "[{\"type\":\"decrement\",\"path\":\"\",\"by\":42}]", "-2", ""},
        {"null", "[{\"type\":\"increment\",\"path\":\"\",\"by\":1}]", "null",
         "0 increment.not_number"},
        {"{}", "[{\"type\":\"decrement\",\"path\":\"\",\"by\":1}]", "{}", "0 decrement.not_number"},
        {"\"1\"", "[{\"type\":\"increment\",\"path\":\"\",\"by\":1}]", "\"1\"",
         "0 increment.not_number"},
        {"[1]", "[{\"type\":\"increment\",\"path\":\"\",\"by\":1}]", "[1]",
         "0 increment.not_number"},
        {"true", "[{\"type\":\"increment\",\"path\":\"\",\"by\":1}]", "true",
         "0 increment.not_number"},
        {"{\"b\":1}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":3}]", "{\"b\":1,\"a\":3}",
         ""},
        {"{}", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":3}]", "{\"a\":-3}", ""},
        {"{}", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":-9223372036854775808}]",
         "{\"a\":9223372036854775808}", ""},
        {"{\"a\":1,\"b\":1}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":-3}]",
         "{\"a\":-2,\"b\":1}", ""},
        {"{\"a\":1}", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":-3}]", "{\"a\":4}", ""},
        {"{\"a\":null}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "{\"a\":null}",
         "0 increment.not_number"},
        {"{\"a\":\"1\"}", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":1}]", "{\"a\":\"1\"}",
         "0 decrement.not_number"},
        {"{\"a\":{}}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "{\"a\":{}}",
         "0 increment.not_number"},
        {"{\"a\":[1]}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "{\"a\":[1]}",
         "0 increment.not_number"},
        {"{\"a\":false}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "{\"a\":false}",
         "0 increment.not_number"},
        {"[1]", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "[1]",
         "0 increment.target_not_object"},
        {"null", "[{\"type\":\"decrement\",\"path\":\"a\",\"by\":1}]", "null",
         "0 decrement.target_not_object"},
        {"1", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]", "1",
         "0 increment.target_not_object"}, );
}

/* covers: 4.4/4#1 4.4/4#2 4.4/4#3 4.4/4#4 4.4/4#5 4.4/4#6 */
Test(update, append_at_the_root_pushes_or_concatenates)
{
    EXPECT_ROWS(
        {NULL, "[{\"type\":\"append\",\"value\":\"s\"}]", "\"s\"", ""},
        {NULL, "[{\"type\":\"append\",\"value\":1}]", "[1]", ""},
        {NULL, "[{\"type\":\"append\",\"value\":[1]}]", "[[1]]", ""},
        {NULL, "[{\"type\":\"append\",\"value\":null}]", "[null]", ""},
        {"[1]", "[{\"type\":\"append\",\"value\":2}]", "[1,2]", ""},
        {"[]", "[{\"type\":\"append\",\"value\":\"s\"}]", "[\"s\"]", ""},
        {"[1]", "[{\"type\":\"append\",\"value\":[2,3]}]", "[1,[2,3]]", ""},
        {"[]", "[{\"type\":\"append\",\"value\":1},{\"type\":\"append\",\"value\":{}}]", "[1,{}]",
         ""},
        {"\"a\"", "[{\"type\":\"append\",\"value\":\"b\"}]", "\"ab\"", ""},
        {"\"\"", "[{\"type\":\"append\",\"value\":\"\"}]", "\"\"", ""},
        {"\"\\\\\"", "[{\"type\":\"append\",\"value\":\"\\\"\"}]", "\"\\\\\\\"\"", ""},
        {"\"a\"", "[{\"type\":\"append\",\"value\":1}]", "\"a\"", "0 append.type_mismatch"},
        {"\"a\"", "[{\"type\":\"append\",\"value\":[\"b\"]}]", "\"a\"", "0 append.type_mismatch"},
        {"\"a\"", "[{\"type\":\"append\",\"value\":null}]", "\"a\"", "0 append.type_mismatch"},
        {"null", "[{\"type\":\"append\",\"value\":\"s\"}]", "\"s\"", ""},
        {"null", "[{\"type\":\"append\",\"value\":null}]", "[null]", ""},
        {"null", "[{\"type\":\"append\",\"value\":{}}]", "[{}]", ""},
        {"{}", "[{\"type\":\"append\",\"value\":1}]", "{}", "0 append.type_mismatch"},
        {"7", "[{\"type\":\"append\",\"value\":1}]", "7", "0 append.type_mismatch"},
        {"true", "[{\"type\":\"append\",\"value\":\"s\"}]", "true", "0 append.type_mismatch"},
        {"false", "[{\"type\":\"append\",\"value\":\"s\"}]", "false", "0 append.type_mismatch"}, );
}

/* covers: 4.4/4#7 4.4/4#8 4.4/4#9 */
Test(update, append_at_a_key_makes_pushes_or_concatenates)
{
    EXPECT_ROWS(
        {"[1]", "[{\"type\":\"append\",\"path\":\"a\",\"value\":1}]", "[1]",
         "0 append.target_not_object"},
        {"null", "[{\"type\":\"append\",\"path\":\"a\",\"value\":1}]", "null",
         "0 append.target_not_object"},
        {"\"s\"", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":1}]", "\"s\"",
         "0 append.target_not_object"},
        {"{}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"s\"}]", "{\"a\":\"s\"}", ""},
        {"{}", "[{\"type\":\"append\",\"path\":[\"a\"],\"value\":\"s\"}]", "{\"a\":\"s\"}", ""},
        {"{}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":1}]", "{\"a\":[1]}", ""},
        {"{}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":[1]}]", "{\"a\":[[1]]}", ""},
        {"{\"a\":[1],\"b\":2}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"s\"}]",
         "{\"a\":[1,\"s\"],\"b\":2}", ""},
        {"{\"a\":\"x\"}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"y\"}]",
         "{\"a\":\"xy\"}", ""},
        {"{\"a\":null}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"y\"}]", "{\"a\":\"y\"}",
         ""},
        {"{\"a\":null}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":7}]", "{\"a\":[7]}", ""},
        {"{\"a\":\"x\"}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":7}]", "{\"a\":\"x\"}",
         "0 append.type_mismatch"},
        {"{\"a\":{}}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":7}]", "{\"a\":{}}",
         "0 append.type_mismatch"},
        {"{\"a\":1}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":7}]", "{\"a\":1}",
         "0 append.type_mismatch"},
        {"{\"a\":true}", "[{\"type\":\"append\",\"path\":[\"a\"],\"value\":\"s\"}]", "{\"a\":true}",
         "0 append.type_mismatch"}, );
}

/* covers: 4.4/4#10 */
Test(update, append_at_a_longer_path_makes_its_way)
{
    EXPECT_ROWS(
        {"{}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"s\"}]",
         "{\"a\":{\"b\":[\"s\"]}}", ""},
        {NULL, "[{\"type\":\"append\",\"path\":[\"a\",\"b\",\"c\"],\"value\":1}]",
         "{\"a\":{\"b\":{\"c\":[1]}}}", ""},
        {"{\"a\":[1],\"z\":0}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":1}]",
         "{\"a\":{\"b\":[1]},\"z\":0}", ""},
        {"{\"a\":null}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"s\"}]",
         "{\"a\":{\"b\":[\"s\"]}}", ""},
        {"{\"a\":{\"b\":[1],\"c\":2}}",
         "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":2}]",
         "{\"a\":{\"b\":[1,2],\"c\":2}}", ""},
        {"{\"a\":{\"b\":\"x\"}}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"y\"}]",
         "{\"a\":{\"b\":\"xy\"}}", ""},
        {"{\"a\":{\"b\":null}}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"y\"}]",
         "{\"a\":{\"b\":\"y\"}}", ""},
        {"{\"a\":{\"b\":null}}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":[]}]",
         "{\"a\":{\"b\":[[]]}}", ""},
        {"{\"a\":{\"b\":1}}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"y\"}]",
         "{\"a\":{\"b\":1}}", "0 append.type_mismatch"},
        {"{\"a\":{\"b\":{}}}", "[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"y\"}]",
         "{\"a\":{\"b\":{}}}", "0 append.type_mismatch"}, );
}

/* covers: 4.4/5#1 4.4/5#2 4.4/5#3 */
Test(update, remove_takes_a_member_or_leaves_null)
{
    EXPECT_ROWS(
        {"{\"a\":1}", "[{\"type\":\"remove\",\"path\":\"\"}]", "null", ""},
        {"[1]", "[{\"type\":\"remove\",\"path\":\"\"}]", "null", ""},
        {NULL, "[{\"type\":\"remove\",\"path\":\"\"}]", "null", ""},
        {"{\"a\":1,\"b\":2,\"c\":3}", "[{\"type\":\"remove\",\"path\":\"b\"}]", "{\"a\":1,\"c\":3}",
         ""},
        {"{\"a\":1,\"b\":2}", "[{\"type\":\"remove\",\"path\":\"a\"}]", "{\"b\":2}", ""},
        {"{\"a\":1}", "[{\"type\":\"remove\",\"path\":\"a\"},{\"type\":\"remove\",\"path\":\"a\"}]",
         "{}", ""},
        {"{\"a\":1}", "[{\"type\":\"remove\",\"path\":\"b\"}]", "{\"a\":1}", ""},
        {"[1]", "[{\"type\":\"remove\",\"path\":\"0\"}]", "[1]", "0 remove.target_not_object"},
        {"null", "[{\"type\":\"remove\",\"path\":\"a\"}]", "null", "0 remove.target_not_object"},
        {"7", "[{\"type\":\"remove\",\"path\":\"a\"}]", "7", "0 remove.target_not_object"},
        {"{\"a\":1}",
         "[{\"type\":\"remove\",\"path\":\"a\"},{\"type\":\"increment\",\"path\":\"a\",\"by\":2},"
         "{\"type\":\"remove\",\"path\":\"a\"},{\"type\":\"append\",\"path\":\"a\",\"value\":\"s\"}"
         "]",
         "{\"a\":\"s\"}", ""}, );
}

/* ---- numbers ---- */

struct sum {
    const char *stored;
    const char *by;
    const char *incremented; /* NULL: fails */
    const char *decremented;
};

static void expect_sum(const char *type, const struct sum *sum, const char *result)
{
    char ops[128];
    char old[128];
    char new[128];
    char errors[64] = "";
    (void)snprintf(ops, sizeof ops, "[{\"type\":\"%s\",\"path\":\"n\",\"by\":%s}]", type, sum->by);
    (void)snprintf(old, sizeof old, "{\"n\":%s}", sum->stored);
    (void)snprintf(new, sizeof new, "{\"n\":%s}", result != NULL ? result : sum->stored);
    if (result == NULL)
        (void)snprintf(errors, sizeof errors, "0 %s.not_number", type);
    expect_row(&(struct row){old, ops, new, errors});
    (void)snprintf(ops, sizeof ops, "[{\"type\":\"%s\",\"path\":\"\",\"by\":%s}]", type, sum->by);
    expect_row(&(struct row){sum->stored, ops, result != NULL ? result : sum->stored, errors});
}

/* Integers stay integers of 64 bits, signed or (from what is not negative) unsigned, or fail; doubles
 * stay doubles. */
/* covers: 4.4/3#2 4.4/3#5 */
Test(update, arithmetic_is_exact)
{
    static const struct sum sums[] = {
        {"0", "0", "0", "0"},
        {"5", "10", "15", "-5"},
        {"-5", "10", "5", "-15"},
        {"9007199254740993", "1", "9007199254740994", "9007199254740992"},
        {"9223372036854775807", "1", "9223372036854775808", "9223372036854775806"},
        {"9223372036854775807", "9223372036854775807", "18446744073709551614", "0"},
        {"9223372036854775807", "-9223372036854775808", "-1", "18446744073709551615"},
        {"-9223372036854775808", "1", "-9223372036854775807", NULL},
        {"-9223372036854775808", "-1", NULL, "-9223372036854775807"},
        {"-9223372036854775808", "-9223372036854775808", NULL, "0"},
        {"-1", "-9223372036854775808", NULL, "9223372036854775807"},
        {"0", "-9223372036854775808", "-9223372036854775808", "9223372036854775808"},
        {"1", "-9223372036854775808", "-9223372036854775807", "9223372036854775809"},
        {"18446744073709551615", "1", NULL, "18446744073709551614"},
        {"18446744073709551615", "0", "18446744073709551615", "18446744073709551615"},
        {"18446744073709551615", "-1", "18446744073709551614", NULL},
        {"18446744073709551615", "9223372036854775807", NULL, "9223372036854775808"},
        {"9223372036854775808", "-9223372036854775808", "0", NULL},
        {"9223372036854775808", "-1", "9223372036854775807", "9223372036854775809"},
        /* Doubles, by a fraction, an exponent, a sign of zero, or their size. */
        {"1.5", "1", "2.5", "0.5"},
        {"2.0", "1", "3.0", "1.0"},
        {"1e2", "1", "101.0", "99.0"},
        {"1E+2", "0", "100.0", "100.0"},
        {"-0", "0", "0.0", "-0.0"},
        {"-0", "1", "1.0", "-1.0"},
        {"-0.0", "0", "0.0", "-0.0"},
        {"0.0", "0", "0.0", "0.0"},
        {"1e16", "0", "1e16", "1e16"},
        {"1e15", "0", "1000000000000000.0", "1000000000000000.0"},
        {"9999999999999998.0", "0", "9999999999999998.0", "9999999999999998.0"},
        {"9999999999999998.0", "2", "1e16", "9999999999999996.0"},
        {"12345678901234567.0", "0", "1.2345678901234568e16", "1.2345678901234568e16"},
        {"1e21", "1", "1e21", "1e21"},
        {"0.00001", "0", "0.00001", "0.00001"},
        {"0.000001", "0", "1e-6", "1e-6"},
        {"0.00000123", "0", "1.23e-6", "1.23e-6"},
        {"0.1", "0", "0.1", "0.1"},
        {"0.30000000000000004", "0", "0.30000000000000004", "0.30000000000000004"},
        {"100.25", "-1", "99.25", "101.25"},
        {"5e-324", "0", "5e-324", "5e-324"},
        {"2.2250738585072014e-308", "0", "2.2250738585072014e-308", "2.2250738585072014e-308"},
        {"1.7976931348623157e308", "9223372036854775807", "1.7976931348623157e308",
         "1.7976931348623157e308"},
        {"9007199254740993.0", "0", "9007199254740992.0", "9007199254740992.0"},
        {"0.00000000000005684341886080802", "0", "5.684341886080802e-14", "5.684341886080802e-14"},
        {"9.5367431640625e-7", "0", "9.5367431640625e-7", "9.5367431640625e-7"},
        {"18446744073709551616", "1", "1.8446744073709552e19", "1.8446744073709552e19"},
        {"-9223372036854775809", "0", "-9.223372036854776e18", "-9.223372036854776e18"},
        {"123456789012345678901234567890", "0", "1.2345678901234568e29", "1.2345678901234568e29"},
    };
    for (size_t index = 0; index < sizeof sums / sizeof sums[0]; index++) {
        expect_sum("increment", &sums[index], sums[index].incremented);
        expect_sum("decrement", &sums[index], sums[index].decremented);
    }
}

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static size_t random_below(size_t bound)
{
    return (size_t)(random_next() >> 11) % bound;
}

static void random_seed(void)
{
    const char *text = getenv("WEIR_SEED");
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    random_state = text != NULL
                       ? strtoull(text, NULL, 0)
                       : (uint64_t)now.tv_nsec * 0x9e3779b97f4a7c15ull + (uint64_t)now.tv_sec;
    if (random_state == 0)
        random_state = 1;
    (void)fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)random_state);
}

/* Significant digits without the zeros an integral double ends with. */
static size_t significant_digits(const char *text)
{
    char digits[64];
    size_t count = 0;
    for (; *text != '\0' && *text != 'e'; text++) {
        if (*text >= '0' && *text <= '9' && (count > 0 || *text != '0'))
            digits[count++] = *text;
    }
    while (count > 0 && digits[count - 1] == '0')
        count--;
    return count;
}

/* Any double survives an increment by 0: what is printed reads back to it, has a fraction or an
 * exponent, and no shorter text would do. */
Test(update, doubles_are_printed_shortest)
{
    random_seed();
    for (int round = 0; round < 20000; round++) {
        uint64_t bits = random_next();
        double value;
        char stored[64];
        char printed[64];
        char shorter[64];
        struct update_result result;
        if (round % 4 == 0)
            bits &= 0xFFF0000000000000ull; /* powers of two */
        memcpy(&value, &bits, sizeof value);
        if (value != value || value - value != 0 || value == 0)
            continue;
        (void)snprintf(stored, sizeof stored, "%.17e", value);
        cr_assert_eq(run(span_text(stored),
                         SPAN_LITERAL("[{\"type\":\"increment\",\"path\":\"\",\"by\":0}]"),
                         &result),
                     WEIR_OK);
        cr_assert(result.value.bytes < sizeof printed);
        memcpy(printed, result.value.data, result.value.bytes);
        printed[result.value.bytes] = '\0';
        expect_valid(result.value);
        cr_assert_eq(strtod(printed, NULL), value, "%s from %s", printed, stored);
        cr_assert(strpbrk(printed, ".e") != NULL, "%s", printed);
        for (int digits = 1; digits < (int)significant_digits(printed); digits++) {
            (void)snprintf(shorter, sizeof shorter, "%.*e", digits - 1, value);
            cr_assert(strtod(shorter, NULL) != value, "%s is shorter than %s", shorter, printed);
        }
    }
}

/* ---- text that nothing touched ---- */

Test(update, what_no_operation_touches_keeps_its_text)
{
    EXPECT_ROWS(
        {"{\"z\":1.50,\"\\u0061\":\"\\u00e9\\/"
         "\",\"b\":-0,\"c\":1E5,\"d\":123456789012345678901234}",
         "[{\"type\":\"set\",\"path\":\"n\",\"value\":2.50}]",
         "{\"z\":1.50,\"\\u0061\":\"\\u00e9\\/\",\"b\":-0,\"c\":1E5,\"d\":123456789012345678901234,"
         "\"n\":2.50}",
         ""},
        {"{\"o\":{\"x\":1.0,\"y\":{\"z\":[1.00]}},\"p\":[1.0]}",
         "[{\"type\":\"merge\",\"path\":[\"o\",\"y\"],\"value\":{\"n\":1e0}}]",
         "{\"o\":{\"x\":1.0,\"y\":{\"z\":[1.00],\"n\":1e0}},\"p\":[1.0]}", ""},
        {"[1.0,{\"a\":1,\"a\":2}]", "[{\"type\":\"append\",\"value\":1.0}]",
         "[1.0,{\"a\":1,\"a\":2},1.0]", ""},
        {"\"\\u0041\\n\"", "[{\"type\":\"append\",\"value\":\"\\u0042\"}]", "\"\\u0041\\n\\u0042\"",
         ""},
        {"{\"a\":1,\"b\":\"x\"}", "[{\"type\":\"increment\",\"path\":\"b\",\"by\":1}]",
         "{\"a\":1,\"b\":\"x\"}", "0 increment.not_number"}, );
}

/* Of a key that comes twice the last value counts, however many members there are. */
Test(update, of_a_repeated_key_the_last_value_counts)
{
    EXPECT_ROWS(
        {"{\"a\":1,\"b\":2,\"\\u0061\":3}", "[{\"type\":\"increment\",\"path\":\"a\",\"by\":1}]",
         "{\"a\":4,\"b\":2}", ""},
        {"{\"a\":1,\"a\":2}", "[{\"type\":\"remove\",\"path\":\"a\"}]", "{}", ""},
        {"{\"a\":\"x\",\"a\":2}", "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"y\"}]",
         "{\"a\":2}", "0 append.type_mismatch"},
        {"{\"k\":1,\"k\":{\"l\":1,\"l\":{\"m\":1}}}",
         "[{\"type\":\"merge\",\"path\":[\"k\",\"l\"],\"value\":{\"n\":2}}]",
         "{\"k\":{\"l\":{\"m\":1,\"n\":2}}}", ""},
        {"{\"0\":0,\"1\":1,\"2\":2,\"3\":3,\"4\":4,\"5\":5,\"6\":6,\"7\":7,\"8\":8,\"9\":9,\"10\":"
         "10,"
         "\"11\":11,\"12\":12,\"13\":13,\"14\":14,\"15\":15,\"16\":16,\"17\":17,\"3\":33,\"17\":"
         "34}",
         "[{\"type\":\"increment\",\"path\":\"3\",\"by\":1},{\"type\":\"remove\",\"path\":\"17\"}]",
         "{\"0\":0,\"1\":1,\"2\":2,\"3\":34,\"4\":4,\"5\":5,\"6\":6,\"7\":7,\"8\":8,\"9\":9,\"10\":"
         "10,"
         "\"11\":11,\"12\":12,\"13\":13,\"14\":14,\"15\":15,\"16\":16}",
         ""}, );
}

/* ---- limits ---- */

static void expect_too_large(struct span old, struct span ops, const char *word)
{
    struct update_result result;
    cr_assert_eq(run(old, ops, &result), WEIR_TOO_LARGE);
    cr_assert_not_null(result.problem);
    cr_expect(strstr(result.problem, word) != NULL, "%s", result.problem);
    /* The next call is not hurt. */
    expect_row(&(struct row){"1", "[{\"type\":\"increment\",\"path\":\"\",\"by\":1}]", "2", ""});
}

Test(update, a_value_above_its_limit_fails_the_call)
{
    static const char *const ops[] = {
        "[{\"type\":\"append\",\"path\":\"a\",\"value\":\"%.*s\"}]",
        "[{\"type\":\"append\",\"path\":\"b\",\"value\":\"%.*s\"}]",
        "[{\"type\":\"set\",\"path\":\"\",\"value\":\"1234567%.*s\"}]",
        "[{\"type\":\"set\",\"path\":\"a\",\"value\":\"12%.*s\"}]",
        "[{\"type\":\"merge\",\"path\":[\"c\"],\"value\":{\"a\":\"%.*s\"}}]",
    };
    /* Bytes of the result but for the padding. */
    static const size_t bytes[] = {10, 17, 9, 10, 23};
    static const char padding[] =
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    enum { LIMIT = 64 };
    reopen_update(LIMIT);
    for (size_t index = 0; index < sizeof ops / sizeof ops[0]; index++) {
        for (size_t over = 0; over <= 1; over++) {
            char text[256];
            struct update_result result;
            (void)snprintf(text, sizeof text, ops[index], (int)(LIMIT - bytes[index] + over),
                           padding);
            if (over) {
                expect_too_large(SPAN_LITERAL("{\"a\":\"12\"}"), span_text(text), "larger");
                continue;
            }
            cr_assert_eq(run(SPAN_LITERAL("{\"a\":\"12\"}"), span_text(text), &result), WEIR_OK,
                         "%s", text);
            cr_expect_eq(result.value.bytes, (size_t)LIMIT, "%zu: %.*s", index,
                         (int)result.value.bytes, result.value.data);
        }
    }
}

/* Only the value after the last operation counts. */
Test(update, a_value_may_be_too_large_in_between)
{
    reopen_update(16);
    EXPECT_ROWS({"{\"a\":1}",
                 "[{\"type\":\"set\",\"path\":\"b\",\"value\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxx\"},"
                 "{\"type\":\"remove\",\"path\":\"b\"}]",
                 "{\"a\":1}", ""}, );
}

static void expect_depth(const char *before, size_t levels, const char *after, size_t depth)
{
    struct buffer ops;
    struct update_result result;
    buffer_init(&ops, 1 << 20);
    append(&ops, before);
    append_nested(&ops, levels, "\"}\"");
    append(&ops, after);
    if (depth > UPDATE_DEPTH_MAX) {
        expect_too_large(SPAN_LITERAL("{\"a\":{\"b\":[]}}"), buffer_span(&ops), "deeper");
    } else {
        struct json_value value;
        cr_assert_eq(run(SPAN_LITERAL("{\"a\":{\"b\":[]}}"), buffer_span(&ops), &result), WEIR_OK);
        cr_assert_eq(json_scan(result.value, (unsigned)depth, &value, NULL), WEIR_OK);
        cr_assert_eq(json_scan(result.value, (unsigned)depth - 1, &value, NULL), WEIR_TOO_LARGE);
    }
    buffer_fini(&ops);
}

Test(update, a_value_nested_too_deeply_fails_the_call)
{
    for (size_t levels = UPDATE_DEPTH_MAX - 5; levels <= UPDATE_DEPTH_MAX + 1; levels++) {
        expect_depth("[{\"type\":\"set\",\"path\":\"\",\"value\":", levels, "}]", levels);
        expect_depth("[{\"type\":\"set\",\"path\":\"a\",\"value\":", levels, "}]", levels + 1);
        expect_depth("[{\"type\":\"append\",\"path\":\"c\",\"value\":", levels, "}]", levels + 2);
        expect_depth("[{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":", levels, "}]",
                     levels + 3);
    }
    /* What is gone in the end does not count. */
    expect_depth("[{\"type\":\"set\",\"path\":\"c\",\"value\":", UPDATE_DEPTH_MAX,
                 "},{\"type\":\"remove\",\"path\":\"c\"}]", 3);
    /* The deepest merge: 32 segments and 16 levels, over what a set may have left there. */
    struct buffer ops;
    struct update_result result;
    buffer_init(&ops, 1 << 20);
    append(&ops, "[{\"type\":\"merge\",\"path\":");
    append_segments(&ops, "s", UPDATE_SEGMENTS_MAX);
    append(&ops, ",\"value\":");
    append_nested(&ops, UPDATE_MERGE_DEPTH_MAX, "1");
    append(&ops, "}]");
    cr_assert_eq(run(SPAN_LITERAL("{}"), buffer_span(&ops), &result), WEIR_OK);
    cr_assert_null(result.errors.data);
    expect_valid(result.value);
    buffer_fini(&ops);
}

/* A list of operations that all fail has an answer of bounded size. */
Test(update, too_many_errors_fail_the_call)
{
    struct buffer ops;
    struct update_result result;
    size_t fitting = 0;
    buffer_init(&ops, 64 << 20);
    append(&ops, "[");
    for (size_t index = 0; index < 400000; index++) {
        append(&ops, index == 0 ? "" : ",");
        append(&ops, "{\"type\":\"append\",\"value\":1}");
        if (index == 5000) {
            append(&ops, "]");
            cr_assert_eq(run(SPAN_LITERAL("7"), buffer_span(&ops), &result), WEIR_OK);
            fitting = result.errors.bytes;
            expect_valid(result.errors);
            ops.bytes--;
        }
    }
    append(&ops, "]");
    cr_assert_gt(fitting, (size_t)5000 * 60);
    cr_assert_leq(fitting, (size_t)UPDATE_ERRORS_BYTES_MAX);
    expect_too_large(SPAN_LITERAL("7"), buffer_span(&ops), "errors");
    buffer_fini(&ops);
}

/* Operations whose objects take many times the memory of their text. */
Test(update, working_memory_is_bounded)
{
    struct buffer ops;
    reopen_update(1);
    buffer_init(&ops, 64 << 20);
    append(&ops, "[");
    for (size_t index = 0; index < 20000; index++) {
        cr_assert_eq(buffer_printf(&ops, "%s{\"type\":\"merge\",\"value\":{},\"path\":[\"%zu\"",
                                   index == 0 ? "" : ",", index),
                     WEIR_OK);
        for (size_t segment = 1; segment < UPDATE_SEGMENTS_MAX; segment++)
            append(&ops, ",\"s\"");
        append(&ops, "]}");
    }
    append(&ops, "]");
    expect_too_large(SPAN_LITERAL("{}"), buffer_span(&ops), "memory");
    buffer_fini(&ops);
}

Test(update, a_list_is_bounded)
{
    struct buffer ops;
    struct update_result result;
    const char *problem = NULL;
    reopen_update(1);
    buffer_init(&ops, 64 << 20);
    append(&ops, "[{\"type\":\"remove\",\"path\":\"\"}");
    for (size_t index = 0; index < 900000; index++)
        append(&ops, ",{\"type\":\"set\",\"path\":\"\"}");
    append(&ops, "]");
    cr_assert_eq(update_parse(update, buffer_span(&ops), &problem), WEIR_TOO_LARGE);
    cr_assert_not_null(problem);
    cr_expect(strstr(problem, "too many") != NULL, "%s", problem);
    cr_assert_eq(update_apply(update, SPAN_LITERAL("1"), &result), WEIR_OK);
    cr_expect(span_equal(result.value, SPAN_LITERAL("1")), "nothing is left of the list");
    buffer_fini(&ops);
}

/* ---- work in proportion to bytes: these end in the time of the suite or not at all ---- */

static void append_repeated(struct buffer *ops, const char *op, size_t count)
{
    append(ops, "[");
    for (size_t index = 0; index < count; index++) {
        append(ops, index == 0 ? "" : ",");
        append(ops, op);
    }
    append(ops, "]");
}

enum { MANY = 100000 };

static void expect_repeated(const char *old, const char *op, size_t bytes)
{
    struct buffer ops;
    struct update_result result;
    buffer_init(&ops, 64 << 20);
    append_repeated(&ops, op, MANY);
    cr_assert_eq(run(span_text(old), buffer_span(&ops), &result), WEIR_OK);
    cr_assert_null(result.errors.data);
    cr_expect_eq(result.value.bytes, bytes, "%s: %zu bytes", op, result.value.bytes);
    expect_valid(result.value);
    buffer_fini(&ops);
}

Test(update, a_hundred_thousand_operations_on_one_member_end)
{
    expect_repeated("{}", "{\"type\":\"append\",\"path\":[\"a\",\"b\"],\"value\":\"xyz\"}",
                    6 * MANY + 13);
    expect_repeated("{\"a\":\"\"}", "{\"type\":\"append\",\"path\":\"a\",\"value\":\"xyz\"}",
                    3 * MANY + 8);
    expect_repeated("[]", "{\"type\":\"append\",\"value\":12}", 3 * MANY + 1);
    expect_repeated("{\"a\":0}", "{\"type\":\"increment\",\"path\":\"a\",\"by\":1}", 12);
    expect_repeated("{\"a\":0.5}", "{\"type\":\"decrement\",\"path\":\"a\",\"by\":1}", 14);
    expect_repeated("{\"a\":1}", "{\"type\":\"set\",\"path\":\"a\",\"value\":[1]}", 9);
    expect_repeated("{\"a\":{\"b\":{\"c\":[]}}}",
                    "{\"type\":\"merge\",\"path\":[\"a\",\"b\",\"c\"],\"value\":{\"d\":1}}", 25);
}

Test(update, a_wide_object_takes_many_operations)
{
    struct buffer old;
    struct buffer ops;
    struct update_result result;
    buffer_init(&old, 64 << 20);
    buffer_init(&ops, 64 << 20);
    append(&old, "{");
    append(&ops, "[");
    for (size_t index = 0; index < MANY; index++) {
        cr_assert_eq(buffer_printf(&old, "%s\"key%zu\":1", index == 0 ? "" : ",", index), WEIR_OK);
        cr_assert_eq(buffer_printf(&ops, "%s{\"type\":\"increment\",\"path\":\"key%zu\",\"by\":1}",
                                   index == 0 ? "" : ",", MANY - 1 - index),
                     WEIR_OK);
    }
    append(&old, "}");
    append(&ops, ",{\"type\":\"merge\",\"value\":{");
    for (size_t index = 0; index < UPDATE_MERGE_KEYS_MAX; index++)
        cr_assert_eq(
            buffer_printf(&ops, "%s\"key%zu\":null", index == 0 ? "" : ",", 3 * index + MANY - 9),
            WEIR_OK);
    append(&ops, "}}]");
    cr_assert_eq(run(buffer_span(&old), buffer_span(&ops), &result), WEIR_OK);
    cr_assert_null(result.errors.data);
    expect_valid(result.value);
    struct json_value container = {.text = result.value, .kind = JSON_OBJECT};
    struct json_value key;
    struct json_value value;
    size_t cursor = 0;
    size_t count = 0;
    size_t twos = 0;
    for (; json_next(container, &cursor, &key, &value) == WEIR_OK; count++)
        twos += span_equal(value.text, SPAN_LITERAL("2"));
    cr_expect_eq(twos, (size_t)MANY - 3);
    cr_expect_eq(count, (size_t)MANY - 3 + UPDATE_MERGE_KEYS_MAX);
    buffer_fini(&ops);
    buffer_fini(&old);
}

/* A value whose innermost part lies below every level a path may have. */
Test(update, a_large_value_below_a_long_path_is_reached)
{
    struct buffer old;
    struct buffer ops;
    struct update_result result;
    buffer_init(&old, 64 << 20);
    buffer_init(&ops, 1 << 20);
    for (size_t index = 0; index < UPDATE_SEGMENTS_MAX; index++)
        append(&old, "{\"s\":");
    append(&old, "[0");
    for (size_t index = 0; index < MANY; index++)
        append(&old, ",\"some text\"");
    append(&old, "]");
    for (size_t index = 0; index < UPDATE_SEGMENTS_MAX; index++)
        append(&old, "}");
    append(&ops, "[{\"type\":\"append\",\"value\":7,\"path\":");
    append_segments(&ops, "s", UPDATE_SEGMENTS_MAX);
    append(&ops, "}]");
    cr_assert_eq(run(buffer_span(&old), buffer_span(&ops), &result), WEIR_OK);
    cr_assert_null(result.errors.data);
    cr_assert_eq(result.value.bytes, old.bytes + 2);
    expect_valid(result.value);
    buffer_fini(&ops);
    buffer_fini(&old);
}

Test(update, a_list_is_applied_again_to_another_value)
{
    struct update_result result;
    const char *problem;
    cr_assert_eq(update_parse(update,
                              SPAN_LITERAL("[{\"type\":\"increment\",\"path\":\"n\",\"by\":1},"
                                           "{\"type\":\"append\",\"path\":\"l\",\"value\":2}]"),
                              &problem),
                 WEIR_OK);
    cr_assert_eq(update_apply(update, SPAN_LITERAL("{\"n\":1}"), &result), WEIR_OK);
    cr_expect(span_equal(result.value, SPAN_LITERAL("{\"n\":2,\"l\":[2]}")));
    cr_assert_eq(update_apply(update, SPAN_LITERAL("{\"l\":[1]}"), &result), WEIR_OK);
    cr_expect(span_equal(result.value, SPAN_LITERAL("{\"l\":[1,2],\"n\":1}")));
    cr_assert_eq(update_apply(update, (struct span){0}, &result), WEIR_OK);
    cr_expect(span_equal(result.value, SPAN_LITERAL("{\"n\":1,\"l\":[2]}")));
    update_close(NULL);
}

/* ---- against a naive model: a tree of everything, arrays searched from end to end ---- */

struct tree {
    char kind;         /* n t f # s a o */
    struct span text;  /* number: its text; string: decoded */
    struct tree *keys; /* object: strings, one a child */
    struct tree *children;
    size_t count;
    int depth; /* in its text: a value that a repeated key has replaced counts */
};

/* What the model has made, freed when a round has ended. */
static void *made[1 << 16];
static size_t made_count;

static void *make(size_t bytes)
{
    void *memory = calloc(1, bytes + 1);
    cr_assert_not_null(memory);
    cr_assert_lt(made_count, sizeof made / sizeof made[0]);
    made[made_count++] = memory;
    return memory;
}

static void forget_made(void)
{
    while (made_count > 0)
        free(made[--made_count]);
}

static struct span make_span(const char *data, size_t bytes)
{
    char *copy = make(bytes);
    memcpy(copy, data, bytes);
    return span_of(copy, bytes);
}

static unsigned read_hex(const char *p)
{
    char digits[5] = {p[0], p[1], p[2], p[3], '\0'};
    return (unsigned)strtoul(digits, NULL, 16);
}

static size_t write_point(char *out, unsigned point)
{
    size_t more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const unsigned first[] = {0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(first[more] | point >> 6 * more);
    for (size_t index = 1; index <= more; index++)
        out[index] = (char)(0x80 | (point >> 6 * (more - index) & 0x3F));
    return more + 1;
}

/* The string at *p (its opening quote), decoded. */
static struct span read_string(const char **p)
{
    char *out = make(strlen(*p));
    size_t bytes = 0;
    for (++*p; **p != '"'; ++*p) {
        static const char letters[] = "bfnrt\"\\/";
        static const char meanings[] = "\b\f\n\r\t\"\\/";
        if (**p != '\\') {
            out[bytes++] = **p;
            continue;
        }
        ++*p;
        if (**p != 'u') {
            out[bytes++] = meanings[strchr(letters, **p) - letters];
            continue;
        }
        unsigned point = read_hex(*p + 1);
        *p += 4;
        if (point >= 0xD800 && point < 0xDC00) {
            point = 0x10000 + (point - 0xD800) * 0x400 + read_hex(*p + 3) - 0xDC00;
            *p += 6;
        }
        bytes += write_point(out + bytes, point);
    }
    ++*p;
    return span_of(out, bytes);
}

static size_t find_key(const struct tree *object, struct span key)
{
    size_t index = 0;
    while (index < object->count && !span_equal(object->keys[index].text, key))
        index++;
    return index;
}

static void push(struct tree *container, struct span key, struct tree child)
{
    struct tree *children = make((container->count + 1) * sizeof *children);
    struct tree *keys = make((container->count + 1) * sizeof *keys);
    if (container->count > 0) {
        memcpy(children, container->children, container->count * sizeof *children);
        memcpy(keys, container->keys, container->count * sizeof *keys);
    }
    children[container->count] = child;
    keys[container->count] = (struct tree){.kind = 's', .text = key};
    container->children = children;
    container->keys = keys;
    container->count++;
}

static struct tree *member_of(struct tree *object, struct span key)
{
    size_t index = find_key(object, key);
    return index < object->count ? &object->children[index] : NULL;
}

static void put_member(struct tree *object, struct span key, struct tree child)
{
    struct tree *member = member_of(object, key);
    if (member != NULL)
        *member = child;
    else
        push(object, key, child);
}

static struct tree read_tree(const char **p)
{
    struct tree tree = {.kind = **p};
    const char *start = *p;
    switch (**p) {
    case '"':
        tree.kind = 's';
        tree.text = read_string(p);
        return tree;
    case 'n':
    case 't':
        *p += 4;
        return tree;
    case 'f':
        *p += 5;
        return tree;
    case '[':
    case '{':
        tree.kind = *start == '[' ? 'a' : 'o';
        tree.depth = 1;
        for (++*p; **p != ']' && **p != '}';) {
            struct span key = {0};
            if (**p == ',')
                ++*p;
            if (*start == '{') {
                key = read_string(p);
                ++*p;
            }
            struct tree child = read_tree(p);
            if (child.depth >= tree.depth)
                tree.depth = child.depth + 1;
            if (*start == '{')
                put_member(&tree, key, child);
            else
                push(&tree, key, child);
        }
        ++*p;
        return tree;
    default:
        tree.kind = '#';
        *p += strspn(*p, "+-.eE0123456789");
        tree.text = make_span(start, (size_t)(*p - start));
        return tree;
    }
}

static struct tree tree_of(struct span text)
{
    const char *p = make_span(text.data, text.bytes).data;
    return read_tree(&p);
}

static bool same(const struct tree *a, const struct tree *b)
{
    if (a->kind != b->kind || a->count != b->count || !span_equal(a->text, b->text))
        return false;
    for (size_t index = 0; index < a->count; index++) {
        size_t other = a->kind == 'o' ? find_key(b, a->keys[index].text) : index;
        if (other == b->count || !same(&a->children[index], &b->children[other]))
            return false;
    }
    return true;
}

static void append_character(char *text, char character)
{
    size_t bytes = strlen(text);
    text[bytes] = character;
    text[bytes + 1] = '\0';
}

/* A double in the form of PROTOCOL 1.3, by moving the point of printf's exponent form. */
static struct span print_double(double value)
{
    char text[64];
    char digits[64] = "";
    char out[128] = "";
    int count = 1;
    do
        (void)snprintf(text, sizeof text, "%.*e", count - 1, value < 0 ? -value : value);
    while (strtod(text, NULL) != (value < 0 ? -value : value) && count++ < 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    for (const char *p = text; *p != 'e'; p++)
        if (*p != '.')
            append_character(digits, *p);
    for (size_t end = strlen(digits); end > 1 && digits[end - 1] == '0'; end--)
        digits[end - 1] = '\0';
    if (signbit(value))
        (void)strcat(out, "-");
    if (value == 0) {
        (void)strcat(out, "0.0");
    } else if (exponent >= 16 || exponent < -5) {
        append_character(out, digits[0]);
        if (digits[1] != '\0')
            (void)strcat(strcat(out, "."), digits + 1);
        (void)sprintf(out + strlen(out), "e%d", exponent);
    } else if (exponent < 0) {
        (void)strcat(out, "0.");
        for (int zeros = -1; zeros > exponent; zeros--)
            (void)strcat(out, "0");
        (void)strcat(out, digits);
    } else {
        for (int index = 0; index <= exponent || digits[index] != '\0'; index++) {
            if (index >= (int)strlen(digits))
                (void)strcat(digits, "0");
            append_character(out, digits[index]);
            if (index == exponent)
                (void)strcat(out, ".");
        }
        if (out[strlen(out) - 1] == '.')
            (void)strcat(out, "0");
    }
    return make_span(out, strlen(out));
}

__extension__ typedef __int128 wide;

static bool read_wide(struct span text, wide *value)
{
    *value = 0;
    if (memchr(text.data, '.', text.bytes) || memchr(text.data, 'e', text.bytes) ||
        memchr(text.data, 'E', text.bytes) || span_equal(text, SPAN_LITERAL("-0")) ||
        text.bytes > 25)
        return false;
    for (size_t index = text.data[0] == '-'; index < text.bytes; index++)
        *value = *value * 10 + (text.data[index] - '0');
    if (text.data[0] == '-')
        *value = -*value;
    return *value >= INT64_MIN && *value <= (wide)UINT64_MAX;
}

/* The number after the step, or false. */
static bool model_step(const struct tree *stored, wide by, bool is_minus, struct tree *result)
{
    wide value;
    *result = (struct tree){.kind = '#'};
    if (!read_wide(stored->text, &value)) {
        double sum = strtod(make_span(stored->text.data, stored->text.bytes).data, NULL);
        sum = is_minus ? sum - (double)by : sum + (double)by;
        result->text = print_double(sum);
        return true;
    }
    bool may_be_unsigned = value >= 0;
    value += is_minus ? -by : by;
    if (value < INT64_MIN || value > (may_be_unsigned ? (wide)UINT64_MAX : (wide)INT64_MAX))
        return false;
    char text[32];
    if (value < 0)
        (void)snprintf(text, sizeof text, "%lld", (long long)value);
    else
        (void)snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    result->text = make_span(text, strlen(text));
    return true;
}

static struct tree *op_field(const struct tree *op, const char *name)
{
    return member_of((struct tree *)op, span_text(name));
}

static bool is_polluting(struct span key)
{
    return span_equal(key, span_text("__proto__")) || span_equal(key, span_text("prototype")) ||
           span_equal(key, span_text("constructor"));
}

/* What is wrong with the path; its segments into *segments, an array. */
static const char *model_path(const struct tree *path, struct tree *segments)
{
    *segments = (struct tree){.kind = 'a'};
    if (path == NULL || path->kind == 'n' || (path->kind == 's' && path->text.bytes == 0))
        return NULL;
    if (path->kind == 's')
        push(segments, (struct span){0}, *path);
    else
        *segments = *path;
    if (segments->count > 32)
        return "path.too_deep";
    for (size_t index = 0; index < segments->count; index++) {
        struct span key = segments->children[index].text;
        if (key.bytes == 0)
            return "path.empty_segment";
        if (key.bytes > 256)
            return "path.segment_too_long";
        if (is_polluting(key))
            return "path.proto_polluted";
    }
    return NULL;
}

static const char *model_merge_check(const struct tree *value)
{
    if (value->kind != 'o')
        return "value.not_an_object";
    if (value->count > 1024)
        return "value.too_many_keys";
    for (size_t index = 0; index < value->count; index++)
        if (is_polluting(value->keys[index].text))
            return "value.proto_polluted";
    return value->depth > 16 ? "value.too_deep" : NULL;
}

/* The object `count` segments down, made where it is not one. */
static struct tree *model_walk(struct tree *current, const struct tree *segments, size_t count)
{
    for (size_t index = 0;; index++) {
        if (current->kind != 'o')
            *current = (struct tree){.kind = 'o'};
        if (index == count)
            return current;
        struct span key = segments->children[index].text;
        if (member_of(current, key) == NULL)
            push(current, key, (struct tree){.kind = 'n'});
        current = member_of(current, key);
    }
}

static struct tree model_initial(const struct tree *value, bool strings_stay)
{
    struct tree array = {.kind = 'a'};
    if (strings_stay && value->kind == 's')
        return *value;
    push(&array, (struct span){0}, *value);
    return array;
}

static const char *model_append_to(struct tree *leaf, const struct tree *value)
{
    if (leaf->kind == 'a') {
        push(leaf, (struct span){0}, *value);
    } else if (leaf->kind == 's' && value->kind == 's') {
        char *text = make(leaf->text.bytes + value->text.bytes);
        memcpy(text, leaf->text.data, leaf->text.bytes);
        memcpy(text + leaf->text.bytes, value->text.data, value->text.bytes);
        leaf->text.data = text;
        leaf->text.bytes += value->text.bytes;
    } else if (leaf->kind == 'n') {
        *leaf = model_initial(value, true);
    } else {
        return "type_mismatch";
    }
    return NULL;
}

static const char *model_append(struct tree *current, const struct tree *segments,
                                const struct tree *value, bool fresh)
{
    if (segments->count == 0 && fresh) {
        *current = model_initial(value, true);
        return NULL;
    }
    if (segments->count == 0)
        return model_append_to(current, value);
    if (current->kind != 'o')
        return "target_not_object";
    struct span key = segments->children[segments->count - 1].text;
    struct tree *parent = model_walk(current, segments, segments->count - 1);
    struct tree *leaf = member_of(parent, key);
    if (leaf != NULL)
        return model_append_to(leaf, value);
    push(parent, key, model_initial(value, segments->count == 1));
    return NULL;
}

static const char *model_count(struct tree *current, const struct tree *segments,
                               const struct tree *op, bool is_minus, bool fresh)
{
    wide by;
    struct tree nothing = {.kind = '#', .text = SPAN_LITERAL("0")};
    struct tree result;
    cr_assert(read_wide(op_field(op, "by")->text, &by));
    struct tree *place = current;
    if (segments->count > 0) {
        if (current->kind != 'o')
            return "target_not_object";
        place = member_of(current, segments->children[0].text);
    } else if (fresh) {
        place = NULL;
    }
    if (place != NULL && place->kind != '#')
        return "not_number";
    if (!model_step(place != NULL ? place : &nothing, by, is_minus, &result))
        return "not_number";
    if (segments->count > 0)
        put_member(current, segments->children[0].text, result);
    else
        *current = result;
    return NULL;
}

/* NULL, or the code of the error without the operation's name. */
static const char *model_op(struct tree *current, const struct tree *op, bool fresh)
{
    static const struct tree null_tree = {.kind = 'n'};
    struct tree segments;
    const struct tree *value = op_field(op, "value");
    char type = op_field(op, "type")->text.data[0];
    const char *error = model_path(op_field(op, "path"), &segments);
    if (error != NULL)
        return error;
    switch (type) {
    case 'i':
    case 'd':
        return model_count(current, &segments, op, type == 'd', fresh);
    case 'a':
        return model_append(current, &segments, value, fresh);
    case 'm':
        error = model_merge_check(value);
        if (error != NULL || (segments.count == 0 && current->kind != 'o'))
            return error;
        current = model_walk(current, &segments, segments.count);
        for (size_t index = 0; index < value->count; index++)
            put_member(current, value->keys[index].text, value->children[index]);
        return NULL;
    default:
        if (segments.count == 0) {
            *current = type == 's' && value != NULL ? *value : null_tree;
            return NULL;
        }
        if (current->kind != 'o')
            return "target_not_object";
        if (type == 's') {
            put_member(current, segments.children[0].text, value != NULL ? *value : null_tree);
            return NULL;
        }
        size_t index = find_key(current, segments.children[0].text);
        if (index < current->count) {
            current->count--;
            current->keys[index] = current->keys[current->count];
            current->children[index] = current->children[current->count];
        }
        return NULL;
    }
}

/* The model changes trees in place; a part that two values share must be its own in each. */
static struct tree clone(const struct tree *tree)
{
    struct tree copy = {.kind = tree->kind, .text = tree->text};
    for (size_t index = 0; index < tree->count; index++)
        push(&copy, tree->kind == 'o' ? tree->keys[index].text : (struct span){0},
             clone(&tree->children[index]));
    return copy;
}

static struct tree model_apply(struct span old, struct span ops, char *errors, size_t errors_bytes)
{
    struct tree current = {.kind = 'o'};
    bool fresh = old.data == NULL;
    size_t bytes = 0;
    struct tree list = tree_of(ops);
    if (!fresh)
        current = tree_of(old);
    errors[0] = '\0';
    for (size_t index = 0; index < list.count; index++) {
        const struct tree *op = &list.children[index];
        struct tree before = clone(&current);
        const char *error = model_op(&current, op, fresh);
        if (error == NULL) {
            fresh = false;
            continue;
        }
        cr_assert(same(&before, &current), "the model changed something and failed");
        struct span type = op_field(op, "type")->text;
        bytes += (size_t)snprintf(errors + bytes, errors_bytes - bytes, "%s%zu %.*s.%s",
                                  bytes == 0 ? "" : ", ", index, (int)type.bytes, type.data, error);
    }
    return current;
}

/* ---- random lists and values ---- */

static const char *const key_texts[] = {"a",
                                        "b",
                                        "c",
                                        "\\u0061",
                                        "\xc3\xa9",
                                        "\\u00e9",
                                        "",
                                        "\\u0000",
                                        "a\\u0000",
                                        "a.b",
                                        "\\ud83d\\ude00",
                                        "\xf0\x9f\x98\x80",
                                        "\\\"",
                                        "\\\\",
                                        "/",
                                        "\\/",
                                        "__proto__",
                                        "constructor",
                                        "prototypes",
                                        "\\u0070rototype",
                                        "key",
                                        "d",
                                        "e",
                                        "f",
                                        "g",
                                        "h",
                                        "i",
                                        "j",
                                        "k",
                                        "l",
                                        "m",
                                        "n",
                                        "o",
                                        "p"};

static const char *const scalar_texts[] = {"null",
                                           "true",
                                           "false",
                                           "0",
                                           "1",
                                           "-1",
                                           "-0",
                                           "7",
                                           "1.5",
                                           "2.0",
                                           "1e2",
                                           "1E-3",
                                           "-0.0",
                                           "1e16",
                                           "9223372036854775807",
                                           "9223372036854775808",
                                           "-9223372036854775808",
                                           "-9223372036854775809",
                                           "18446744073709551615",
                                           "18446744073709551616",
                                           "18446744073709551614",
                                           "1e300",
                                           "1e-300",
                                           "123456789012345678901234567890",
                                           "0.1",
                                           "123456.789",
                                           "\"\"",
                                           "\"x\"",
                                           "\"\\u0041\\n\"",
                                           "\"\\ud83d\\ude00\"",
                                           "\"\xe2\x82\xac\"",
                                           "\"a longer text, with \\\"quotes\\\" in it\"",
                                           "[]",
                                           "{}"};

static const char *const by_texts[] = {"0",
                                       "1",
                                       "-1",
                                       "5",
                                       "-7",
                                       "9223372036854775807",
                                       "-9223372036854775808",
                                       "1000000007",
                                       "-9223372036854775807"};

#define PICK(list) ((list)[random_below(sizeof(list) / sizeof(list)[0])])

/* Few keys make meetings likely, many make an index. */
static const char *random_key(void)
{
    size_t bound = random_below(4) == 0 ? sizeof key_texts / sizeof key_texts[0] : 4;
    return key_texts[random_below(bound)];
}

static void append_random_value(struct buffer *out, unsigned depth)
{
    size_t choice = random_below(10);
    if (depth == 0 || choice < 5) {
        append(out, PICK(scalar_texts));
        return;
    }
    size_t count = random_below(12) == 0 ? 30 + random_below(30) : random_below(5);
    bool is_object = choice < 9;
    append(out, is_object ? "{" : "[");
    for (size_t index = 0; index < count; index++) {
        append(out, index == 0 ? "" : ",");
        if (is_object && random_below(8) != 0)
            cr_assert_eq(buffer_printf(out, "\"%s\":", random_key()), WEIR_OK);
        else if (is_object)
            cr_assert_eq(buffer_printf(out, "\"%zu\":", random_below(50)), WEIR_OK);
        append_random_value(out, count > 10 ? 0 : depth - 1);
    }
    append(out, is_object ? "}" : "]");
}

static void append_random_path(struct buffer *out, bool takes_array)
{
    size_t choice = random_below(12);
    if (takes_array && choice == 0) {
        append(out, ",\"path\":null");
    } else if (takes_array && choice < 6) {
        size_t count = random_below(40) == 0 ? 31 + random_below(4) : random_below(5);
        append(out, ",\"path\":[");
        for (size_t index = 0; index < count; index++)
            cr_assert_eq(
                buffer_printf(out, "%s\"%s\"", index == 0 ? "" : ",",
                              random_below(3) == 0 ? random_key() : key_texts[random_below(3)]),
                WEIR_OK);
        append(out, "]");
    } else if (!takes_array || choice < 11) {
        cr_assert_eq(buffer_printf(out, ",\"path\":\"%s\"", choice == 10 ? "" : random_key()),
                     WEIR_OK);
    }
}

static void append_random_op(struct buffer *out)
{
    const struct shape *shape = &PICK(shapes);
    bool counts = shape->type[0] == 'i' || shape->type[0] == 'd';
    cr_assert_eq(buffer_printf(out, "{\"type\":\"%s\"", shape->type), WEIR_OK);
    append_random_path(out, shape->takes_array);
    if (counts)
        cr_assert_eq(buffer_printf(out, ",\"by\":%s", PICK(by_texts)), WEIR_OK);
    else if (shape->takes_array || random_below(6) != 0) {
        append(out, ",\"value\":");
        append_random_value(out, random_below(30) == 0 ? 18 : (unsigned)random_below(4));
    }
    append(out, "}");
}

static void expect_model(struct span old, struct span ops)
{
    static char expected_errors[1 << 16];
    static char errors[1 << 16];
    struct update_result result;
    struct span old_copy = old.data != NULL ? copy_of(old) : old;
    struct span ops_copy = copy_of(ops);
    struct tree expected = model_apply(old, ops, expected_errors, sizeof expected_errors);
    cr_assert_eq(run(old_copy, ops_copy, &result), WEIR_OK);
    expect_valid(result.value);
    struct tree actual = tree_of(result.value);
    cr_assert(same(&expected, &actual), "%.*s of %.*s gives %.*s", (int)ops.bytes, ops.data,
              (int)old.bytes, old.data, (int)result.value.bytes, result.value.data);
    summarize_errors(result.errors, errors, sizeof errors);
    cr_assert_str_eq(errors, expected_errors, "%.*s of %.*s: [%s] and not [%s]", (int)ops.bytes,
                     ops.data, (int)old.bytes, old.data, errors, expected_errors);
    free((void *)old_copy.data);
    free((void *)ops_copy.data);
    forget_made();
}

/* Random lists on random values do what a model written another way says. */
Test(update, any_list_does_what_the_model_does)
{
    struct buffer old;
    struct buffer ops;
    random_seed();
    buffer_init(&old, 16 << 20);
    buffer_init(&ops, 16 << 20);
    for (int round = 0; round < 20000; round++) {
        buffer_clear(&old);
        buffer_clear(&ops);
        append_random_value(&old, 1 + (unsigned)random_below(4));
        append(&ops, "[");
        for (size_t index = random_below(12); index > 0; index--) {
            append_random_op(&ops);
            append(&ops, index > 1 ? "," : "");
        }
        append(&ops, "]");
        expect_model(random_below(8) == 0 ? (struct span){0} : buffer_span(&old),
                     buffer_span(&ops));
    }
    buffer_fini(&ops);
    buffer_fini(&old);
}

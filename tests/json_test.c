#include "shm/json.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "shm/limits.h"
#include "tests/fuzz/json_invariants.h"

TestSuite(json, .timeout = HANG_SECONDS);

/* One thread is all there is here, so a build that looks for races need not see every case. */
#ifdef __SANITIZE_THREAD__
enum { CASES_SHARE = 16 };
#else
enum { CASES_SHARE = 1 };
#endif

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
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

/* Scans a copy in a block of exactly its size, so that AddressSanitizer sees a read beyond it. */
static enum weir_status scan(struct span text, struct json_problem *problem)
{
    char *copy = json_invariants_block(text.bytes);
    struct json_value value;
    if (text.bytes > 0)
        memcpy(copy, text.data, text.bytes);
    enum weir_status status = json_scan(span_of(copy, text.bytes), JSON_DEPTH_MAX, &value, problem);
    free(copy);
    return status;
}

static void expect_invariants(struct span text)
{
    char *copy = json_invariants_block(text.bytes);
    if (text.bytes > 0)
        memcpy(copy, text.data, text.bytes);
    const char *broken = json_invariants_check(span_of(copy, text.bytes));
    cr_assert_null(broken, "%s breaks for %.*s", broken, (int)text.bytes, text.data);
    free(copy);
}

/* ---- the grammar ---- */

static const struct span accepted[] = {
#define Y(text)                                                                                    \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }
    /* words and scalars at the top */
    Y("null"),
    Y("true"),
    Y("false"),
    Y("0"),
    Y("-0"),
    Y("7"),
    Y("-7"),
    Y("\"\""),
    Y("\"a\""),
    Y(" null"),
    Y("null "),
    Y("\t\n\r true \t\n\r"),
    Y("42 "),
    Y("\n42"),
    /* arrays */
    Y("[]"),
    Y("[ ]"),
    Y("[\n]"),
    Y("[1]"),
    Y("[1,2]"),
    Y("[ 1 , 2 ]"),
    Y("[[]]"),
    Y("[[],[]]"),
    Y("[[[[]]]]"),
    Y("[null]"),
    Y("[null,true,false]"),
    Y("[\"a\",1,{}]"),
    Y("[{}]"),
    Y("[{},{}]"),
    Y("[ [ ] , { } ]"),
    Y("[\"\"]"),
    Y("[1\n]"),
    Y(" [1]"),
    Y("[1] "),
    Y("[\t1\r,\n2 ]"),
    Y("[false]"),
    Y("[[1],[2,[3]]]"),
    Y("[\"]\"]"),
    Y("[\"[\"]"),
    Y("[\",\"]"),
    /* objects */
    Y("{}"),
    Y("{ }"),
    Y("{\n}"),
    Y("{\"a\":1}"),
    Y("{\"a\":1,\"b\":2}"),
    Y("{ \"a\" : 1 , \"b\" : 2 }"),
    Y("{\"\":0}"),
    Y("{\"a\":{}}"),
    Y("{\"a\":[]}"),
    Y("{\"a\":{\"b\":{\"c\":[]}}}"),
    Y("{\"a\":null}"),
    Y("{\"a\":\"b\"}"),
    Y("{\"a\":1,\"a\":2}"),
    Y("{\"a\":1,\"a\":1}"),
    Y("{\"}\":1}"),
    Y("{\":\":\":\"}"),
    Y("{\"a\\\"b\":1}"),
    Y("{\"\\u0061\":1}"),
    Y("{\"\\u0000\":1}"),
    Y("{\"a\":-1}"),
    Y("{\"a\":true,\"b\":[{\"c\":null}]}"),
    Y("{\"a\"\n:\r1\t}"),
    Y("\r\n{\"a\":1}\r\n"),
    /* numbers */
    Y("[-0]"),
    Y("[-0.0]"),
    Y("[0.0]"),
    Y("[0e0]"),
    Y("[0E0]"),
    Y("[0e+1]"),
    Y("[0e-1]"),
    Y("[0.0e0]"),
    Y("[1.5]"),
    Y("[-1.5]"),
    Y("[1e1]"),
    Y("[1E1]"),
    Y("[1e+1]"),
    Y("[1e-1]"),
    Y("[1E+1]"),
    Y("[1E-1]"),
    Y("[1.0e1]"),
    Y("[1.25E-3]"),
    Y("[10]"),
    Y("[100]"),
    Y("[1234567890]"),
    Y("[-123]"),
    Y("[0.000000001]"),
    Y("[123.456e78]"),
    Y("[1e007]"),
    Y("[1e-007]"),
    Y("[1e00]"),
    Y("[20e1]"),
    Y("[123123e-10000000]"),
    Y("[1e-400]"),
    Y("[0e400]"),
    Y("[0.0e99999999999999999999]"),
    Y("[-0e99999999999999999999]"),
    Y("[1e-99999999999999999999]"),
    Y("[18446744073709551615]"),
    Y("[18446744073709551616]"),
    Y("[-9223372036854775808]"),
    Y("[-9223372036854775809]"),
    Y("[1e308]"),
    Y("[-1e308]"),
    Y("[1.7976931348623157e308]"),
    Y("[-1.7976931348623157e308]"),
    Y("[17.976931348623157e307]"),
    Y("[0.17976931348623157e309]"),
    Y("[1.7976931348623158e308]"),
    Y("[0.00001e312]"),
    Y("[5e-324]"),
    Y("[100000000000000000000e288]"),
    Y("[0.1]"),
    Y("[3.141592653589793238462643383279]"),
    /* escapes */
    Y("\"\\\"\""),
    Y("\"\\\\\""),
    Y("\"\\/\""),
    Y("\"\\b\""),
    Y("\"\\f\""),
    Y("\"\\n\""),
    Y("\"\\r\""),
    Y("\"\\t\""),
    Y("\"\\u0000\""),
    Y("\"\\u0041\""),
    Y("\"\\u00e9\""),
    Y("\"\\u00E9\""),
    Y("\"\\uaBcD\""),
    Y("\"\\uFFFF\""),
    Y("\"\\uFFFE\""),
    Y("\"\\uD7FF\""),
    Y("\"\\uE000\""),
    Y("\"\\uD800\\uDC00\""),
    Y("\"\\uDBFF\\uDFFF\""),
    Y("\"\\ud83d\\ude00\""),
    Y("\"\\\\u0041\""),
    Y("\"\\\\\\\"\""),
    Y("\"a\\nb\\tc\""),
    Y("\"\\u0022\""),
    Y("\"\\u005c\""),
    Y("\"\\u2028\\u2029\""),
    Y("\"\\uD83D\\uDE00\\uD83D\\uDE00\""),
    Y("[\"\\\\\",\"\\\\\"]"),
    Y("\"\\\\\\\\\""),
    Y("\"\\u0061\\u0301\""),
    /* strings and UTF-8 */
    Y("\"abc def\""),
    Y("\"/\""),
    Y("\"\x7f\""),
    Y("\"'\""),
    Y("\"\xc2\x80\""),
    Y("\"\xc3\xa9\""),
    Y("\"\xdf\xbf\""),
    Y("\"\xe0\xa0\x80\""),
    Y("\"\xe2\x82\xac\""),
    Y("\"\xed\x9f\xbf\""),
    Y("\"\xee\x80\x80\""),
    Y("\"\xef\xbf\xbf\""),
    Y("\"\xef\xbf\xbe\""),
    Y("\"\xf0\x90\x80\x80\""),
    Y("\"\xf0\x9f\x98\x80\""),
    Y("\"\xf4\x8f\xbf\xbf\""),
    Y("\"\xe2\x80\xa8\xe2\x80\xa9\""),
    Y("\"\xef\xbb\xbf\""),
    Y("\"[{}],:\""),
    Y("\" \""),
    Y("\"null\""),
    Y("{\"\xc3\xa9\":\"\xe2\x82\xac\"}"),
    Y("\"/* no comment */ // either\""),
    Y("\"0123456789abcdef0123456789abcdef\""),
    Y("\"0123456789abcde\xc3\xa9 and so on\""),
    Y("[\"\xf0\x9f\x98\x80\xc3\xa9\xe2\x82\xacx\"]"),
#undef Y
};

/* The offset is that of the first byte that cannot be accepted. */
static const struct {
    struct span text;
    size_t offset;
} refused[] = {
#define N(text, offset)                                                                            \
    {                                                                                              \
        {text, sizeof(text) - 1}, offset                                                           \
    }
    /* nothing, or more than one value */
    N("", 0),
    N(" ", 1),
    N(" \t\r\n", 4),
    N("1 2", 2),
    N("[] []", 3),
    N("{}{}", 2),
    N("[],", 2),
    N("null,", 4),
    N("\"a\"b", 3),
    N("[1]x", 3),
    N("{\"a\":1}}", 7),
    N("[1]]", 3),
    N("nullnull", 4),
    N("true false", 5),
    N("{}#", 2),
    N("1]", 1),
    N("\"\"\"\"", 2),
    /* words */
    N("nul", 3),
    N("n", 1),
    N("nulL", 3),
    N("Null", 0),
    N("NULL", 0),
    N("tru", 3),
    N("truE", 3),
    N("True", 0),
    N("t", 1),
    N("fals", 4),
    N("falsy", 4),
    N("False", 0),
    N("f", 1),
    N("nan", 1),
    N("NaN", 0),
    N("Infinity", 0),
    N("-Infinity", 1),
    N("undefined", 0),
    N("inf", 0),
    N("a", 0),
    N("[nul]", 4),
    N("[truex]", 5),
    N("nullx", 4),
    N("true1", 4),
    /* arrays */
    N("[", 1),
    N("]", 0),
    N("[1", 2),
    N("[1,", 3),
    N("[,", 1),
    N("[,]", 1),
    N("[1,]", 3),
    N("[1,,2]", 3),
    N("[,1]", 1),
    N("[1 2]", 3),
    N("[1;2]", 2),
    N("[1:2]", 2),
    N("[\"a\":1]", 4),
    N("[1}", 2),
    N("[}", 1),
    N("[[]", 3),
    N("[[]]]", 4),
    N("[a]", 1),
    N("[1,\n", 4),
    N("[ ", 2),
    N("[\"a\"", 4),
    N("[\"a", 3),
    N("[{]", 2),
    N("[1,}", 3),
    N("(1)", 0),
    N("[1)", 2),
    N("[*]", 1),
    N("[\"a\",", 5),
    N("[3[4]]", 2),
    N("[\"\" \"\"]", 4),
    N("[null true]", 6),
    /* objects */
    N("{", 1),
    N("}", 0),
    N("{1", 1),
    N("{\"a\"", 4),
    N("{\"a\":", 5),
    N("{\"a\":1", 6),
    N("{\"a\":1,", 7),
    N("{,}", 1),
    N("{\"a\"}", 4),
    N("{\"a\":}", 5),
    N("{\"a\":1,}", 7),
    N("{\"a\":1,,\"b\":2}", 7),
    N("{\"a\" 1}", 5),
    N("{\"a\",1}", 4),
    N("{\"a\"::1}", 5),
    N("{a:1}", 1),
    N("{'a':1}", 1),
    N("{1:1}", 1),
    N("{null:1}", 1),
    N("{\"a\":1 \"b\":2}", 7),
    N("{\"a\":1;\"b\":2}", 6),
    N("{\"a\":1]", 6),
    N("{]", 1),
    N("{[", 1),
    N("{\"a\":1,1}", 7),
    N("{\"a\":1,\"b\"}", 10),
    N("{\"a", 3),
    N("{\"", 2),
    N("{\"a\":a}", 5),
    N("{{}:1}", 1),
    N("{\"a\":1,\"b\":}", 11),
    N("{[]:1}", 1),
    N("{\"a\":{}", 7),
    N("{ ", 2),
    N("{\"a\": ", 6),
    N("{\"a\" ", 5),
    N("{\"a\":\"b\"/**/}", 8),
    N("{\"a\"=1}", 4),
    N("{\"a\":1 ", 7),
    /* numbers */
    N("-", 1),
    N("+1", 0),
    N("+", 0),
    N("--1", 1),
    N("-a", 1),
    N("01", 1),
    N("-01", 2),
    N("00", 1),
    N("-00", 2),
    N("012", 1),
    N(".5", 0),
    N("-.5", 1),
    N("1.", 2),
    N("-1.", 3),
    N("0.", 2),
    N("1.e1", 2),
    N("1.a", 2),
    N("1e", 2),
    N("1E", 2),
    N("1e+", 3),
    N("1e-", 3),
    N("1ea", 2),
    N("1e1.5", 3),
    N("1.2.3", 3),
    N("1e1e1", 3),
    N("1e+-1", 3),
    N("0x1", 1),
    N("0x", 1),
    N("1_000", 1),
    N("1,000", 1),
    N("1a", 1),
    N("- 1", 1),
    N("1 e1", 2),
    N("0e", 2),
    N("0.e1", 2),
    N("[1.]", 3),
    N("[-]", 2),
    N("[01]", 2),
    N("[1e]", 3),
    N("[.1]", 1),
    N("[0e+]", 4),
    N("[-2.]", 4),
    N("[1+2]", 2),
    N("[0x42]", 2),
    N("[1.5e]", 5),
    N("1f", 1),
    N("1.0f", 3),
    N("1n", 1),
    N("\xef\xbc\x91", 0),
    N("[-foo]", 2),
    N("[++1]", 1),
    N("[2.e3]", 3),
    N("[9.e+]", 3),
    /* numbers that overflow a double */
    N("1e309", 0),
    N("-1e309", 1),
    N("[1e400]", 1),
    N("1.7976931348623159e308", 0),
    N("10e308", 0),
    N("0.1e310", 0),
    N("1e99999999999999999999", 0),
    N("123123e100000", 0),
    N("-1.8e308", 1),
    N("0.0000001e316", 0),
    N("18e307", 0),
    N("[0.00000000001e99999999999999999999999]", 1),
    /* strings */
    N("\"", 1),
    N("\"a", 2),
    N("'a'", 0),
    N("\"a'", 3),
    N("a\"", 0),
    N("\"\\\"", 3),
    N("\"\\", 2),
    N("\"\n\"", 1),
    N("\"\t\"", 1),
    N("\"\r\"", 1),
    N("\"\0\"", 1),
    N("\"\x1f\"", 1),
    N("\"\x01\"", 1),
    N("\"abc\x08\"", 4),
    N("\"0123456789abcdef\x1e\"", 17),
    N("\"0123456789abcdef", 17),
    N("{\"a\nb\":1}", 3),
    N("`a`", 0),
    N("\\u0022a\"", 0),
    N("[\\n]", 1),
    N("\0", 0),
    N("1\0", 1),
    N("[1]\0", 3),
    N("[\0]", 1),
    /* escapes */
    N("\"\\a\"", 2),
    N("\"\\x41\"", 2),
    N("\"\\'\"", 2),
    N("\"\\0\"", 2),
    N("\"\\ \"", 2),
    N("\"\\U0041\"", 2),
    N("\"\\v\"", 2),
    N("\"\\N\"", 2),
    N("\"\\\n\"", 2),
    N("\"\\\xc3\xa9\"", 2),
    N("\"\\u\"", 3),
    N("\"\\u0\"", 4),
    N("\"\\u00\"", 5),
    N("\"\\u004\"", 6),
    N("\"\\u004g\"", 6),
    N("\"\\u+041\"", 3),
    N("\"\\u 041\"", 3),
    N("\"\\u{41}\"", 3),
    N("\"\\u", 3),
    N("\"\\u00", 5),
    N("\"\\u0041", 7),
    N("\"\\\0\"", 2),
    N("\"\\u00\0\"", 5),
    N("\"\\e\"", 2),
    N("\"\\ud83d\\ude0", 12),
    N("\"\\u\xef\xbc\x91\"", 3),
    /* lone surrogates */
    N("\"\\ud800\"", 7),
    N("\"\\udbff\"", 7),
    N("\"\\udc00\"", 1),
    N("\"\\uDFFF\"", 1),
    N("\"\\ud800a\"", 7),
    N("\"\\ud800\\n\"", 7),
    N("\"\\ud800\\u0041\"", 7),
    N("\"\\ud800\\ud800\"", 7),
    N("\"\\udc00\\ud800\"", 1),
    N("\"\\ud800\\ue000\"", 7),
    N("\"\\ud800\\\"", 7),
    N("\"\\ud800\\u\"", 9),
    N("\"\\ud800\\udc0\"", 12),
    N("\"\\ud83d\\ude00\\ude00\"", 13),
    N("\"\\ud800", 7),
    N("\"\\ud800\\", 7),
    N("\"\\ud800\\u", 9),
    N("\"\\ud83d \\ude00\"", 7),
    /* not UTF-8 */
    N("\"\x80\"", 1),
    N("\"\xbf\"", 1),
    N("\"\xc0\x80\"", 1),
    N("\"\xc0\xaf\"", 1),
    N("\"\xc1\xbf\"", 1),
    N("\"\xc2\"", 2),
    N("\"\xc2", 2),
    N("\"\xc3\x28\"", 2),
    N("\"\xe0\x80\x80\"", 2),
    N("\"\xe0\x9f\xbf\"", 2),
    N("\"\xe2\x82\"", 3),
    N("\"\xe2\x28\xa1\"", 2),
    N("\"\xe2\x82", 3),
    N("\"\xed\xa0\x80\"", 2),
    N("\"\xed\xbf\xbf\"", 2),
    N("\"\xf0\x80\x80\x80\"", 2),
    N("\"\xf0\x8f\xbf\xbf\"", 2),
    N("\"\xf0\x9f\x98\"", 4),
    N("\"\xf0\x9f\"", 3),
    N("\"\xf4\x90\x80\x80\"", 2),
    N("\"\xf5\x80\x80\x80\"", 1),
    N("\"\xf8\x88\x80\x80\x80\"", 1),
    N("\"\xfe\"", 1),
    N("\"\xff\"", 1),
    N("\"\xc3\xa9\xa9\"", 3),
    N("\"abcdefghijklmnopqrs\xff\"", 20),
    N("\xe9", 0),
    N("[\xc3\xa9]", 1),
    N("\"\xed\xa0\xbd\xed\xb8\x80\"", 2),
    N("{\"\xff\":1}", 2),
    N("\"\xf0\x28\x8c\xbc\"", 2),
    /* byte order marks, other white space, comments */
    N("\xef\xbb\xbf{}", 0),
    N("\xef\xbb\xbf", 0),
    N("\xff\xfe[\0]\0", 0),
    N("\xfe\xff\0[\0]", 0),
    N("[]\xef\xbb\xbf", 2),
    N("\x0c[]", 0),
    N("\x0b[]", 0),
    N("[\x0c]", 1),
    N("\xc2\xa0[]", 0),
    N("[\xe2\x81\xa0]", 1),
    N("[] \x0c", 3),
    N("\xe2\x80\xa8[]", 0),
    N("[\x0b]", 1),
    N("/**/[]", 0),
    N("[]//", 2),
    N("[1/**/]", 2),
    N("[1 #\n]", 3),
    N("\x1f[]", 0),
    N("[1,\x0c"
      "2]",
      3),
    N("{\"a\":\x0b"
      "1}",
      5),
    N("{\x0c\"a\":1}", 1),
    N("\x85[]", 0),
#undef N
};

enum {
    ACCEPTED_COUNT = sizeof accepted / sizeof accepted[0],
    REFUSED_COUNT = sizeof refused / sizeof refused[0],
};

Test(json, what_rfc_8259_allows_is_accepted)
{
    for (size_t index = 0; index < ACCEPTED_COUNT; index++) {
        struct json_problem problem = {0, ""};
        struct span text = accepted[index];
        cr_assert_eq(scan(text, &problem), WEIR_OK, "%.*s: %s at %zu", (int)text.bytes, text.data,
                     problem.reason, problem.offset);
        expect_invariants(text);
    }
}

Test(json, everything_else_is_refused_with_its_place)
{
    cr_assert_geq(ACCEPTED_COUNT + REFUSED_COUNT, 200);
    for (size_t index = 0; index < REFUSED_COUNT; index++) {
        struct json_problem problem = {SIZE_MAX, NULL};
        struct span text = refused[index].text;
        cr_assert_eq(scan(text, &problem), WEIR_CORRUPT, "%zu: %.*s", index, (int)text.bytes,
                     text.data);
        cr_assert_eq(problem.offset, refused[index].offset, "%zu: %.*s: %s at %zu, expected %zu",
                     index, (int)text.bytes, text.data, problem.reason, problem.offset,
                     refused[index].offset);
        cr_assert_not_null(problem.reason);
        cr_assert_eq(scan(text, NULL), WEIR_CORRUPT, "without a problem to fill");
        expect_invariants(text);
    }
}

/* The same cases inside an array behind members of every length up to two vector widths: no verdict
 * may depend on where in a block a byte lies. */
Test(json, verdicts_do_not_depend_on_position)
{
    char text[512];
    for (size_t padding = 0; padding < 36; padding++) {
        for (size_t index = 0; index < ACCEPTED_COUNT + REFUSED_COUNT; index++) {
            bool good = index < ACCEPTED_COUNT;
            struct span inner = good ? accepted[index] : refused[index - ACCEPTED_COUNT].text;
            /* Outside its own text a case may become well-formed ("1,000" in an array): strings
             * only stay as they are. */
            if (inner.bytes < 2 || inner.data[0] != '"' ||
                (!good && inner.data[inner.bytes - 1] != '"'))
                continue;
            text[0] = '[';
            text[1] = '"';
            memset(text + 2, 'p', padding);
            memcpy(text + 2 + padding, "\",", 2);
            memcpy(text + 4 + padding, inner.data, inner.bytes);
            text[4 + padding + inner.bytes] = ']';
            struct span whole = span_of(text, 5 + padding + inner.bytes);
            struct json_problem problem = {0, ""};
            enum weir_status status = scan(whole, &problem);
            cr_assert_eq(status, good ? WEIR_OK : WEIR_CORRUPT, "%.*s: %s", (int)whole.bytes, text,
                         problem.reason);
        }
    }
}

/* Each byte value at each place of a string of 40. */
Test(json, every_byte_at_every_place_of_a_string)
{
    char text[42];
    for (size_t place = 1; place <= 40; place++) {
        for (int byte = 0; byte < 256; byte++) {
            memset(text, 'x', sizeof text);
            text[0] = text[41] = '"';
            text[place] = (char)byte;
            bool good = byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
            struct json_problem problem = {0, NULL};
            cr_assert_eq(scan(span_of(text, sizeof text), &problem), good ? WEIR_OK : WEIR_CORRUPT,
                         "byte %02x at %zu", (unsigned)byte, place);
            if (good)
                continue;
            /* A quote ends the text early, a backslash makes "\\x" or leaves the string open, a
             * first byte of a sequence lacks its second. */
            size_t expected = place;
            if (byte == '"' || byte == '\\' || (byte >= 0xC2 && byte <= 0xF4))
                expected = byte == '\\' && place == 40 ? sizeof text : place + 1;
            cr_assert_eq(problem.offset, expected, "byte %02x at %zu", (unsigned)byte, place);
        }
    }
}

Test(json, depth_is_limited_exactly)
{
    char text[2 * 300 + 2];
    for (unsigned depth = 1; depth <= 300; depth++) {
        for (unsigned kind = 0; kind < 2; kind++) {
            char *p = text;
            for (unsigned level = 0; level < depth; level++)
                *p++ = '[';
            if (kind == 1)
                *p++ = '1';
            for (unsigned level = 0; level < depth; level++)
                *p++ = ']';
            struct json_value value;
            struct json_problem problem;
            struct span span = span_of(text, (size_t)(p - text));
            enum weir_status status = json_scan(span, JSON_DEPTH_MAX, &value, &problem);
            cr_assert_eq(status, depth <= JSON_DEPTH_MAX ? WEIR_OK : WEIR_TOO_LARGE);
            if (status == WEIR_TOO_LARGE)
                cr_assert_eq(problem.offset, JSON_DEPTH_MAX);
            cr_assert_eq(json_scan(span, depth, &value, NULL), WEIR_OK);
            cr_assert_eq(json_scan(span, depth - 1, &value, NULL), WEIR_TOO_LARGE);
        }
    }
    struct json_value value;
    cr_assert_eq(json_scan(SPAN_LITERAL("1"), 0, &value, NULL), WEIR_OK);
    cr_assert_eq(json_scan(SPAN_LITERAL("{}"), 0, &value, NULL), WEIR_TOO_LARGE);
    cr_assert_eq(json_scan(SPAN_LITERAL("{\"a\":{\"b\":[]}}"), 2, &value, NULL), WEIR_TOO_LARGE);
    cr_assert_eq(json_scan(SPAN_LITERAL("[[],[],[[]],[]]"), 3, &value, NULL), WEIR_OK,
                 "depth, not count");
}

/* A depth no stack should be asked for ends in an answer all the same. */
Test(json, a_million_brackets_are_refused)
{
    size_t bytes = 1000000;
    char *text = malloc(bytes);
    struct json_value value;
    memset(text, '[', bytes);
    cr_assert_eq(json_scan(span_of(text, bytes), UINT32_MAX, &value, NULL), WEIR_TOO_LARGE);
    free(text);
}

/* ---- numbers ---- */

/* Method: digits close to the largest double in random forms, against strtod(). */
Test(json, overflow_agrees_with_strtod)
{
    static const char largest[] =
        "17976931348623157081452742373170435679807056752584499659891747680315726078002853"
        "87605895586327668781715404589535143824642343213268894641827684675467035375169860"
        "49910576551282076245490090389328944075868508455133942304583236903222948165808559"
        "332123348274797826204144723168738177180919299881250404026184124858368";
    /* The largest double plus half a unit: the first value that rounds to infinity. */
    static const char threshold[] =
        "17976931348623158079372897140530341507993413271003782693617377898044496829276475"
        "09466490179775872070963302864166928879109465555478519404026306574886715058206819"
        "08902000708383676273854845817711531764475730270069855571366959622842914819860834"
        "936475292719074168444365510704342711559699508093042880177904174497792";
    static const char below[] =
        "17976931348623158079372897140530341507993413271003782693617377898044496829276475"
        "09466490179775872070963302864166928879109465555478519404026306574886715058206819"
        "08902000708383676273854845817711531764475730270069855571366959622842914819860834"
        "936475292719074168444365510704342711559699508093042880177904174497791.9999999999"
        "9999999999";
    unsigned overflows = 0;
    cr_assert_eq(scan(span_text(largest), NULL), WEIR_OK);
    cr_assert_eq(scan(span_text(threshold), NULL), WEIR_CORRUPT);
    cr_assert_eq(scan(span_text(below), NULL), WEIR_OK);
    random_seed();
    for (unsigned round = 0; round < 50000 / CASES_SHARE; round++) {
        char digits[340];
        char text[800];
        size_t kept = 1 + random_next() % (sizeof threshold - 1);
        memcpy(digits, random_next() % 2 == 0 ? threshold : largest, kept);
        size_t more = random_next() % 20;
        for (size_t index = 0; index < more; index++)
            digits[kept + index] = (char)('0' + random_next() % 10);
        if (random_next() % 2 == 0)
            digits[kept - 1] = (char)('0' + random_next() % 10);
        size_t count = kept + more;
        if (digits[0] == '0')
            digits[0] = '1';
        /* digits with the point somewhere, or behind "0." and zeros, and the exponent that makes it
         * about 1.8e308 */
        long shift = (long)(random_next() % (count + 20)) - 10;
        int bytes;
        long exponent;
        if (shift <= 0) {
            bytes = snprintf(text, sizeof text, "0.%.*s%.*s", (int)-shift, "000000000000",
                             (int)count, digits);
            exponent = 309 - shift;
        } else if ((size_t)shift >= count) {
            bytes = snprintf(text, sizeof text, "%.*s", (int)count, digits);
            exponent = 309 - (long)count;
        } else {
            bytes = snprintf(text, sizeof text, "%.*s.%.*s", (int)shift, digits,
                             (int)(count - (size_t)shift), digits + shift);
            exponent = 309 - shift;
        }
        if (random_next() % 8 == 0)
            exponent += (long)(random_next() % 3) - 1;
        if (exponent != 0)
            (void)snprintf(text + bytes, sizeof text - (size_t)bytes, "e%s%ld",
                           exponent > 0 && random_next() % 2 == 0 ? "+" : "", exponent);
        bool overflow = isinf(strtod(text, NULL));
        overflows += overflow;
        cr_assert_eq(scan(span_text(text), NULL), overflow ? WEIR_CORRUPT : WEIR_OK, "%s", text);
    }
    cr_assert_gt(overflows, 1000 / CASES_SHARE, "both verdicts have to be met");
    cr_assert_lt(overflows, 49000 / CASES_SHARE, "both verdicts have to be met");
}

Test(json, long_numbers_are_measured_not_counted)
{
    char text[5000];
    memset(text, '9', 308);
    cr_assert_eq(scan(span_of(text, 308), NULL), WEIR_OK);
    text[308] = '9';
    cr_assert_eq(scan(span_of(text, 309), NULL), WEIR_CORRUPT);
    text[0] = '1';
    memset(text + 1, '0', sizeof text - 1);
    cr_assert_eq(scan(span_of(text, 309), NULL), WEIR_OK);
    cr_assert_eq(scan(span_of(text, 310), NULL), WEIR_CORRUPT);
    cr_assert_eq(scan(span_of(text, sizeof text), NULL), WEIR_CORRUPT);
    memcpy(text + sizeof text - 6, "e-4900", 6);
    cr_assert_eq(scan(span_of(text, sizeof text), NULL), WEIR_OK);
    memset(text, '0', sizeof text);
    memcpy(text, "0.", 2);
    memcpy(text + sizeof text - 7, "18e5300", 7);
    cr_assert_eq(scan(span_of(text, sizeof text), NULL), WEIR_CORRUPT);
    memcpy(text + sizeof text - 7, "17e5300", 7);
    cr_assert_eq(scan(span_of(text, sizeof text), NULL), WEIR_OK);
}

/* ---- UTF-8 ---- */

/* Unicode standard, table 3-7: the well-formed byte sequences. */
static bool utf8_reference(const unsigned char *bytes, size_t count)
{
    static const struct {
        unsigned char low[4];
        unsigned char high[4];
        size_t count;
    } rows[] = {
        {{0x00}, {0x7F}, 1},
        {{0xC2, 0x80}, {0xDF, 0xBF}, 2},
        {{0xE0, 0xA0, 0x80}, {0xE0, 0xBF, 0xBF}, 3},
        {{0xE1, 0x80, 0x80}, {0xEC, 0xBF, 0xBF}, 3},
        {{0xED, 0x80, 0x80}, {0xED, 0x9F, 0xBF}, 3},
        {{0xEE, 0x80, 0x80}, {0xEF, 0xBF, 0xBF}, 3},
        {{0xF0, 0x90, 0x80, 0x80}, {0xF0, 0xBF, 0xBF, 0xBF}, 4},
        {{0xF1, 0x80, 0x80, 0x80}, {0xF3, 0xBF, 0xBF, 0xBF}, 4},
        {{0xF4, 0x80, 0x80, 0x80}, {0xF4, 0x8F, 0xBF, 0xBF}, 4},
    };
    while (count > 0) {
        size_t row = 0;
        for (; row < sizeof rows / sizeof rows[0]; row++) {
            size_t index = 0;
            while (index < rows[row].count && index < count &&
                   bytes[index] >= rows[row].low[index] && bytes[index] <= rows[row].high[index])
                index++;
            if (index == rows[row].count)
                break;
        }
        if (row == sizeof rows / sizeof rows[0])
            return false;
        bytes += rows[row].count;
        count -= rows[row].count;
    }
    return true;
}

static void check_utf8(const unsigned char *bytes, size_t count)
{
    bool good = utf8_reference(bytes, count);
    if (json_is_utf8(span_of(bytes, count)) != good)
        cr_assert_fail("%02x %02x %02x %02x, %zu bytes", bytes[0], bytes[1], bytes[2], bytes[3],
                       count);
    /* In a string nothing but quotes, backslashes and control characters is special besides. */
    for (size_t index = 0; index < count; index++) {
        if (bytes[index] < 0x20 || bytes[index] == '"' || bytes[index] == '\\')
            return;
    }
    char text[8] = {'"'};
    struct json_value value;
    memcpy(text + 1, bytes, count);
    text[count + 1] = '"';
    enum weir_status status = json_scan(span_of(text, count + 2), 0, &value, NULL);
    if (status != (good ? WEIR_OK : WEIR_CORRUPT))
        cr_assert_fail("scan: %02x %02x %02x %02x, %zu bytes", bytes[0], bytes[1], bytes[2],
                       bytes[3], count);
}

/* Every sequence of one and two bytes, and of three that does not start with ASCII (those are two
 * and one). */
Test(json, utf8_is_exact_for_all_short_sequences)
{
    unsigned char bytes[4] = {0};
    unsigned step = 1;
    for (unsigned value = 0; value < 1u << 24; value += step) {
        if (value >= 1u << 16)
            step = CASES_SHARE | 1; /* odd: every last byte comes */
        bytes[0] = (unsigned char)(value >> 16);
        bytes[1] = (unsigned char)(value >> 8);
        bytes[2] = (unsigned char)value;
        if (value < 1u << 8)
            check_utf8(bytes + 2, 1);
        if (value < 1u << 16)
            check_utf8(bytes + 1, 2);
        if (bytes[0] >= 0x80)
            check_utf8(bytes, 3);
    }
}

Test(json, utf8_is_exact_at_the_bounds_of_four_bytes)
{
    static const unsigned char tails[] = {0x00, 0x22, 0x7F, 0x80, 0x81, 0x8F, 0x90, 0x9F,
                                          0xA0, 0xBE, 0xBF, 0xC0, 0xC2, 0xE0, 0xF0, 0xFF};
    for (unsigned first = 0; first < 256; first++) {
        for (unsigned second = first % CASES_SHARE; second < 256; second += CASES_SHARE) {
            for (size_t third = 0; third < sizeof tails; third++) {
                for (size_t fourth = 0; fourth < sizeof tails; fourth++) {
                    unsigned char bytes[4] = {(unsigned char)first, (unsigned char)second,
                                              tails[third], tails[fourth]};
                    check_utf8(bytes, 4);
                }
            }
        }
    }
}

/* A bad byte at each place of a text longer than a vector, and NUL as an ordinary character. */
Test(json, utf8_looks_at_every_byte)
{
    char text[70];
    for (size_t bytes = 0; bytes <= sizeof text; bytes++) {
        memset(text, '\0', sizeof text);
        cr_assert(json_is_utf8(span_of(text, bytes)));
        for (size_t place = 0; place < bytes; place++) {
            text[place] = (char)0xFF;
            cr_assert_not(json_is_utf8(span_of(text, bytes)));
            text[place] = '\0';
        }
    }
    cr_assert(json_is_utf8((struct span){0}));
}

/* ---- members ---- */

static const char *const wanted[] = {"type", "id", "data", ""};
enum { WANTED_COUNT = 4 };

static void expect_value(struct json_value value, enum json_kind kind, const char *text)
{
    cr_assert_eq(value.kind, kind, "%s", text);
    cr_assert(span_equal(value.text, span_text(text)), "got %.*s for %s", (int)value.text.bytes,
              value.text.data, text);
}

Test(json, scan_object_finds_the_wanted_members)
{
    struct json_value values[WANTED_COUNT];
    struct span text =
        SPAN_LITERAL(" {\"other\":{\"type\":1,\"id\":[]}, \"id\" : \"x\\n\" ,\"typ\":0,\"types\":1,"
                     "\"data\": [ 1 , {\"data\":2} ] ,\"TYPE\":0, \"\":-0.5e3 } ");
    cr_assert_eq(json_scan_object(text, JSON_DEPTH_MAX, wanted, WANTED_COUNT, values, NULL),
                 WEIR_OK);
    cr_assert_eq(values[0].kind, JSON_ABSENT, "only the top level counts");
    cr_assert_null(values[0].text.data);
    expect_value(values[1], JSON_STRING, "\"x\\n\"");
    cr_assert(values[1].has_escape);
    cr_assert_not(values[1].has_space);
    expect_value(values[2], JSON_ARRAY, "[ 1 , {\"data\":2} ]");
    cr_assert(values[2].has_space);
    cr_assert_not(values[2].has_escape);
    expect_value(values[3], JSON_NUMBER, "-0.5e3");
    cr_assert_not(values[3].has_space);
}

Test(json, scan_object_tells_every_kind)
{
    static const struct {
        const char *text;
        enum json_kind kind;
    } kinds[] = {{"null", JSON_NULL}, {"false", JSON_FALSE}, {"true", JSON_TRUE},
                 {"0", JSON_NUMBER},  {"-1", JSON_NUMBER},   {"\"\"", JSON_STRING},
                 {"[]", JSON_ARRAY},  {"{}", JSON_OBJECT}};
    for (size_t index = 0; index < sizeof kinds / sizeof kinds[0]; index++) {
        char text[64];
        struct json_value values[WANTED_COUNT];
        int bytes = snprintf(text, sizeof text, "{\"id\":%s,\"z\":[\"\\n\"]}", kinds[index].text);
        cr_assert_eq(json_scan_object(span_of(text, (size_t)bytes), JSON_DEPTH_MAX, wanted,
                                      WANTED_COUNT, values, NULL),
                     WEIR_OK);
        expect_value(values[1], kinds[index].kind, kinds[index].text);
        cr_assert_not(values[1].has_space);
        cr_assert_not(values[1].has_escape);
    }
}

Test(json, keys_are_compared_decoded)
{
    static const char *const texts[] = {
        "{\"t\\u0079pe\":1}",
        "{\"\\u0074\\u0079\\u0070\\u0065\":1}",
        "{\"typ\\u0065\":1}",
        "{\"\\u0074ype\":1}",
    };
    static const char *const names[] = {"type", "a\"b", "\xf0\x9f\x98\x80", "\xc3\xa9", "n\n"};
    struct json_value values[5];
    for (size_t index = 0; index < 4; index++) {
        cr_assert_eq(json_scan_object(span_text(texts[index]), 1, names, 5, values, NULL), WEIR_OK);
        expect_value(values[0], JSON_NUMBER, "1");
    }
    struct span text = SPAN_LITERAL(
        "{\"a\\\"b\":1,\"\\ud83d\\ude00\":2,\"\\u00e9\":3,\"n\\n\":4,\"type\\u0000\":5,"
        "\"typ\\u0065s\":6,\"\\u0074yp\":7}");
    cr_assert_eq(json_scan_object(text, 1, names, 5, values, NULL), WEIR_OK);
    cr_assert_eq(values[0].kind, JSON_ABSENT,
                 "a NUL makes another key, and so do more or fewer letters");
    expect_value(values[1], JSON_NUMBER, "1");
    expect_value(values[2], JSON_NUMBER, "2");
    expect_value(values[3], JSON_NUMBER, "3");
    expect_value(values[4], JSON_NUMBER, "4");
    text = SPAN_LITERAL("{\"\xf0\x9f\x98\x80\":2,\"\xc3\xa9\":3}");
    cr_assert_eq(json_scan_object(text, 1, names, 5, values, NULL), WEIR_OK);
    expect_value(values[2], JSON_NUMBER, "2");
    expect_value(values[3], JSON_NUMBER, "3");
}

Test(json, a_wanted_key_that_comes_twice_is_invalid)
{
    static const struct {
        const char *text;
        enum weir_status status;
        size_t offset;
    } cases[] = {
        {"{\"type\":1,\"type\":2}", WEIR_INVALID, 10},
        {"{\"type\":1,\"type\":1}", WEIR_INVALID, 10},
        {"{\"type\":1,\"x\":2,\"t\\u0079pe\":3}", WEIR_INVALID, 16},
        {"{\"\":1,\"\":2}", WEIR_INVALID, 6},
        {"{\"type\":null,\"type\":null}", WEIR_INVALID, 13},
        {"{\"x\":1,\"x\":2}", WEIR_OK, 0},
        {"{\"type\":{\"type\":1,\"type\":2}}", WEIR_OK, 0},
        {"{\"x\":{\"type\":1},\"type\":2}", WEIR_OK, 0},
        {"{\"type\":1,\"type\":2", WEIR_CORRUPT,
         18}, /* what is not JSON is not JSON, twice or not */
        {"[{\"type\":1},{\"type\":2}]", WEIR_INVALID, 0},
        {" 1", WEIR_INVALID, 1},
        {"\"type\"", WEIR_INVALID, 0},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        struct json_value values[WANTED_COUNT];
        struct json_problem problem = {0, NULL};
        cr_assert_eq(json_scan_object(span_text(cases[index].text), JSON_DEPTH_MAX, wanted,
                                      WANTED_COUNT, values, &problem),
                     cases[index].status, "%s", cases[index].text);
        cr_assert_eq(problem.offset, cases[index].offset, "%s", cases[index].text);
        cr_assert_eq(problem.reason == NULL, cases[index].status == WEIR_OK);
    }
}

Test(json, space_and_escape_flags_are_exact)
{
    static const struct {
        const char *text;
        bool has_space;
        bool has_escape;
    } cases[] = {
        {" [] ", false, false},
        {"[ ]", true, false},
        {"{ }", true, false},
        {" 1 ", false, false},
        {" \" \" ", false, false},
        {"[\" \"]", false, false},
        {"[\"\\n\"]", false, false},
        {"\"\\n\"", false, true},
        {"{\"a\": 1}", true, false},
        {"{\"a\" :1}", true, false},
        {"{ \"a\":1}", true, false},
        {"{\"a\":1 }", true, false},
        {"[1, 2]", true, false},
        {"[1 ,2]", true, false},
        {"[1,2\n]", true, false},
        {"[[[\t]]]", true, false},
        {"{\" \":\" \"}", false, false},
        {"\"a b\"", false, false},
    };
    for (size_t index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        struct json_value value;
        cr_assert_eq(json_scan(span_text(cases[index].text), 8, &value, NULL), WEIR_OK);
        cr_assert_eq(value.has_space, cases[index].has_space, "%s", cases[index].text);
        cr_assert_eq(value.has_escape, cases[index].has_escape, "%s", cases[index].text);
    }
}

Test(json, next_walks_members_in_order)
{
    struct json_value root;
    struct json_value key;
    struct json_value value;
    size_t cursor = 0;
    cr_assert_eq(json_scan(SPAN_LITERAL(" { \"a\" : [ 1 ] , \"\\n\":\"\\\"},\" ,\"c\":-1.5e3}"), 8,
                           &root, NULL),
                 WEIR_OK);
    cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_OK);
    expect_value(key, JSON_STRING, "\"a\"");
    expect_value(value, JSON_ARRAY, "[ 1 ]");
    cr_assert(value.has_space);
    cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_OK);
    expect_value(key, JSON_STRING, "\"\\n\"");
    cr_assert(key.has_escape);
    expect_value(value, JSON_STRING, "\"\\\"},\"");
    cr_assert_eq(json_next(root, &cursor, NULL, &value), WEIR_OK);
    expect_value(value, JSON_NUMBER, "-1.5e3");
    cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_EMPTY);
    cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_EMPTY, "and it stays at the end");

    static const char *const empties[] = {"[]", "{}", "[ ]", "{ \n }"};
    for (size_t index = 0; index < 4; index++) {
        cursor = 0;
        cr_assert_eq(json_scan(span_text(empties[index]), 8, &root, NULL), WEIR_OK);
        cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_EMPTY);
    }
    cursor = 0;
    cr_assert_eq(json_scan(SPAN_LITERAL("\"[1]\""), 8, &root, NULL), WEIR_OK);
    cr_assert_eq(json_next(root, &cursor, &key, &value), WEIR_INVALID,
                 "a string holds no elements");
}

/* json_next() is for validated text, but a wrong call must neither read beyond it nor go on for
 * ever. */
Test(json, next_survives_text_nobody_validated)
{
    random_seed();
    for (unsigned round = 0; round < 100000 / CASES_SHARE; round++) {
        static const char letters[] = "{}[]\",: \\a1\n";
        size_t bytes = 1 + random_next() % 24;
        char *text = json_invariants_block(bytes);
        for (size_t index = 0; index < bytes; index++)
            text[index] = letters[random_next() % (sizeof letters - 1)];
        struct json_value container = {.text = span_of(text, bytes),
                                       .kind = random_next() % 2 == 0 ? JSON_OBJECT : JSON_ARRAY};
        struct json_value value;
        size_t cursor = 0;
        size_t turns = 0;
        while (json_next(container, &cursor, NULL, &value) == WEIR_OK)
            cr_assert_lt(turns++, 30);
        free(text);
    }
}

/* ---- strings ---- */

static void expect_decoded(struct span text, struct span expected)
{
    struct json_value value;
    char out[256];
    cr_assert_eq(json_scan(text, 0, &value, NULL), WEIR_OK, "%.*s", (int)text.bytes, text.data);
    size_t bytes = json_unescape(out, value);
    cr_assert(span_equal(span_of(out, bytes), expected), "%.*s", (int)text.bytes, text.data);
    cr_assert(json_string_equals(value, expected));
    char longer[260];
    memcpy(longer, expected.data, expected.bytes);
    longer[expected.bytes] = 'x';
    cr_assert_not(json_string_equals(value, span_of(longer, expected.bytes + 1)));
    if (expected.bytes > 0) {
        cr_assert_not(json_string_equals(value, span_of(longer, expected.bytes - 1)));
        longer[expected.bytes - 1] ^= 1;
        cr_assert_not(json_string_equals(value, span_of(longer, expected.bytes)));
    }
}

Test(json, escapes_are_decoded)
{
    expect_decoded(SPAN_LITERAL("\"\""), SPAN_LITERAL(""));
    expect_decoded(SPAN_LITERAL("\"plain\""), SPAN_LITERAL("plain"));
    expect_decoded(SPAN_LITERAL("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), SPAN_LITERAL("\"\\/\b\f\n\r\t"));
    expect_decoded(SPAN_LITERAL("\"\\u0000\""), SPAN_LITERAL("\0"));
    expect_decoded(SPAN_LITERAL("\"a\\u0000b\""), SPAN_LITERAL("a\0b"));
    expect_decoded(SPAN_LITERAL("\"\\u007f\\u0080\\u07ff\\u0800\\uffff\""),
                   SPAN_LITERAL("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf"));
    expect_decoded(SPAN_LITERAL("\"\\uD83D\\ude00\\ud800\\udc00\\udbff\\udfff\""),
                   SPAN_LITERAL("\xf0\x9f\x98\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
    expect_decoded(SPAN_LITERAL("\"x\\u00e9\xc3\xa9\\\\u0041\""),
                   SPAN_LITERAL("x\xc3\xa9\xc3\xa9\\u0041"));
}

Test(json, only_what_must_be_escaped_is)
{
    char out[6 * 256];
    char plain[128];
    for (int byte = 0; byte < 128; byte++)
        plain[byte] = (char)byte;
    struct span all = span_of(plain, sizeof plain);
    size_t bytes = json_escape(out, all);
    static const char controls[] =
        "\\u0000\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f\\r\\u000e\\u00"
        "0f"
        "\\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016\\u0017\\u0018\\u0019\\u001a\\u001b"
        "\\u001c\\u001d\\u001e\\u001f !\\\"#";
    cr_assert(memcmp(out, controls, sizeof controls - 1) == 0);
    cr_assert_eq(bytes, sizeof controls - 1 + 128 - 0x24 + 1,
                 "the backslash is the only other one");
    cr_assert(
        span_equal(span_of(out, json_escape(out, SPAN_LITERAL("\xc3\xa9\xf0\x9f\x98\x80/\x7f"))),
                   SPAN_LITERAL("\xc3\xa9\xf0\x9f\x98\x80/\x7f")));

    struct buffer buffer;
    buffer_init(&buffer, bytes + 2);
    cr_assert_eq(json_append_string(&buffer, all), WEIR_OK, "exactly the room it takes suffices");
    cr_assert_eq(buffer.bytes, bytes + 2);
    cr_assert_eq(json_append_string(&buffer, SPAN_LITERAL("")), WEIR_FULL);
    cr_assert_eq(buffer.bytes, bytes + 2);
    buffer_fini(&buffer);
    buffer_init(&buffer, 2);
    cr_assert_eq(json_append_string(&buffer, (struct span){0}), WEIR_OK);
    cr_assert(span_equal(buffer_span(&buffer), SPAN_LITERAL("\"\"")));
    buffer_fini(&buffer);
}

/* Worst case: every byte becomes six. */
Test(json, escape_stays_within_six_times)
{
    static char plain[1000];
    char *out = malloc(6 * sizeof plain);
    cr_assert_eq(json_escape(out, span_of(plain, sizeof plain)), 6 * sizeof plain);
    free(out);
}

/* ---- random texts ---- */

/* One text in two forms: with white space wherever the grammar allows it, and without. */
struct forms {
    struct buffer spaced;
    struct buffer compact;
};

static void put_both(struct forms *forms, struct span text)
{
    cr_assert_eq(buffer_append(&forms->spaced, text), WEIR_OK);
    cr_assert_eq(buffer_append(&forms->compact, text), WEIR_OK);
}

static void put_space(struct forms *forms)
{
    static const char spaces[] = " \t\n\r";
    for (uint64_t count = random_next() % 8; count > 5; count--)
        cr_assert_eq(buffer_append(&forms->spaced, span_of(spaces + random_next() % 4, 1)),
                     WEIR_OK);
}

static void put_string(struct forms *forms)
{
    static const struct span pieces[] = {
        {"a", 1},
        {" ", 1},
        {"\\n", 2},
        {"\\\"", 2},
        {"\\\\", 2},
        {"\\u0041", 6},
        {"\\u0000", 6},
        {"\\uD83D\\uDE00", 12},
        {"\xc3\xa9", 2},
        {"\xe2\x82\xac", 3},
        {"[{,:}]", 6},
        {"type", 4},
        {"id", 2},
        {"0123456789abcdefg", 17},
        {"\xf0\x9f\x98\x80", 4},
    };
    put_both(forms, SPAN_LITERAL("\""));
    for (uint64_t count = random_next() % 5; count > 0; count--)
        put_both(forms, pieces[random_next() % (sizeof pieces / sizeof pieces[0])]);
    put_both(forms, SPAN_LITERAL("\""));
}

static void put_scalar(struct forms *forms)
{
    static const char *const scalars[] = {
        "null", "true",  "false", "0",    "-0",       "1",    "-12",
        "1.5",  "-0.25", "1e10",  "2E-3", "1.5e+300", "1e-9", "12345678901234567890123"};
    if (random_next() % 2 == 0)
        put_string(forms);
    else
        put_both(forms, span_text(scalars[random_next() % (sizeof scalars / sizeof scalars[0])]));
}

static void put_container(struct forms *forms, unsigned depth)
{
    bool is_object = random_next() % 2 == 0;
    put_both(forms, is_object ? SPAN_LITERAL("{") : SPAN_LITERAL("["));
    put_space(forms);
    for (uint64_t count = random_next() % 5; count > 0; count--) {
        if (is_object) {
            put_string(forms);
            put_space(forms);
            put_both(forms, SPAN_LITERAL(":"));
            put_space(forms);
        }
        if (depth < 6 && random_next() % 3 == 0)
            put_container(forms, depth + 1);
        else
            put_scalar(forms);
        put_space(forms);
        if (count > 1) {
            put_both(forms, SPAN_LITERAL(","));
            put_space(forms);
        }
    }
    put_both(forms, is_object ? SPAN_LITERAL("}") : SPAN_LITERAL("]"));
}

static void forms_init(struct forms *forms)
{
    buffer_init(&forms->spaced, 1 << 20);
    buffer_init(&forms->compact, 1 << 20);
}

static void forms_fini(struct forms *forms)
{
    buffer_fini(&forms->spaced);
    buffer_fini(&forms->compact);
}

static void forms_make(struct forms *forms)
{
    buffer_clear(&forms->spaced);
    buffer_clear(&forms->compact);
    put_container(forms, 0);
}

Test(json, random_texts_compact_to_their_known_form)
{
    struct forms forms;
    random_seed();
    forms_init(&forms);
    for (unsigned round = 0; round < 20000 / CASES_SHARE; round++) {
        struct json_value value;
        char out[1 << 16];
        forms_make(&forms);
        struct span spaced = buffer_span(&forms.spaced);
        struct span compact = buffer_span(&forms.compact);
        if (spaced.bytes > sizeof out)
            continue;
        cr_assert_eq(json_scan(spaced, JSON_DEPTH_MAX, &value, NULL), WEIR_OK, "%.*s",
                     (int)spaced.bytes, spaced.data);
        cr_assert_eq(value.has_space, spaced.bytes != compact.bytes);
        cr_assert(span_equal(span_of(out, json_compact(out, value)), compact));
        expect_invariants(spaced);
        expect_invariants(compact);
    }
    forms_fini(&forms);
}

Test(json, a_text_cut_anywhere_is_corrupt)
{
    struct forms forms;
    random_seed();
    forms_init(&forms);
    for (unsigned round = 0; round < 500; round++) {
        forms_make(&forms);
        for (size_t bytes = 0; bytes < forms.spaced.bytes; bytes++) {
            struct json_problem problem = {SIZE_MAX, NULL};
            cr_assert_eq(scan(span_of(forms.spaced.data, bytes), &problem), WEIR_CORRUPT, "%.*s",
                         (int)bytes, forms.spaced.data);
            cr_assert_leq(problem.offset, bytes);
        }
    }
    forms_fini(&forms);
}

/* Bytes replaced, dropped, doubled: whatever the verdict is, the invariants hold. */
Test(json, mutated_texts_keep_the_invariants)
{
    static const char letters[] = "{}[]\",:\\ \n0123456789-+.eEutrnfalsbDd8c\xc3\xa9\xff\x80";
    struct forms forms;
    random_seed();
    forms_init(&forms);
    for (unsigned round = 0; round < 40000 / CASES_SHARE; round++) {
        forms_make(&forms);
        struct buffer *text = &forms.spaced;
        for (uint64_t count = 1 + random_next() % 3; count > 0 && text->bytes > 0; count--) {
            char *place = text->data + random_next() % text->bytes;
            size_t rest = (size_t)(text->data + text->bytes - place);
            uint64_t kind = random_next() % 4;
            if (kind == 0) {
                memmove(place, place + 1, rest - 1);
                text->bytes--;
            } else if (kind == 1) {
                *place = (char)(*place ^ (1 << random_next() % 8));
            } else {
                *place = letters[random_next() % (sizeof letters - 1)];
            }
        }
        expect_invariants(buffer_span(text));
    }
    forms_fini(&forms);
}

/* tests/tsan/criterion/criterion.h -- the part of Criterion's interface the tests use, for
 * ThreadSanitizer builds only.
 *
 * The packaged Criterion maps a fixed arena that TSan's shadow memory leaves no room for, so its
 * programs do not start in such a build. This stand-in runs every test in a forked child of its
 * own, one after the other, with the same options, and ends with Criterion's summary line. Only
 * tests/CMakeLists.txt puts this folder on the include path.
 */
#ifndef WEIR_TESTS_TSAN_CRITERION_H
#define WEIR_TESTS_TSAN_CRITERION_H

#pragma GCC                                                                                        \
    system_header /* macros with an empty list of arguments, as in the header it stands for */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CR_FAILED = 1, CR_SKIPPED = 77 };

struct cr_options {
    const char *name;
    void (*run)(void);
    void (*init)(void);
    void (*fini)(void);
    double timeout;
    struct cr_options *next;
};

static struct cr_options *cr_suites;
static struct cr_options *cr_tests;
static bool cr_has_failed;

#define CR_REGISTER(list, entry)                                                                   \
    __attribute__((constructor)) static void entry##_register(void)                                \
    {                                                                                              \
        entry.next = list;                                                                         \
        list = &entry;                                                                             \
    }

#define TestSuite(suite, ...)                                                                      \
    static struct cr_options cr_suite_##suite = {.name = #suite, __VA_ARGS__};                     \
    CR_REGISTER(cr_suites, cr_suite_##suite)                                                       \
    struct cr_options

#define Test(suite, test, ...)                                                                     \
    static void cr_run_##suite##_##test(void);                                                     \
    static struct cr_options cr_test_##suite##_##test = {                                          \
        .name = #suite "::" #test, .run = cr_run_##suite##_##test, __VA_ARGS__};                   \
    CR_REGISTER(cr_tests, cr_test_##suite##_##test)                                                \
    static void cr_run_##suite##_##test(void)

#define CR_CHECK(holds, stop, what, ...)                                                           \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, what);                              \
            fprintf(stderr, "" __VA_ARGS__);                                                       \
            fputc('\n', stderr);                                                                   \
            cr_has_failed = true;                                                                  \
            if (stop)                                                                              \
                _exit(CR_FAILED);                                                                  \
        }                                                                                          \
    } while (0)

#define cr_assert(a, ...) CR_CHECK(a, true, #a, __VA_ARGS__)
#define cr_assert_not(a, ...) CR_CHECK(!(a), true, "not " #a, __VA_ARGS__)
#define cr_assert_eq(a, b, ...) CR_CHECK((a) == (b), true, #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) CR_CHECK((a) != (b), true, #a " != " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) CR_CHECK((a) > (b), true, #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) CR_CHECK((a) >= (b), true, #a " >= " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) CR_CHECK((a) < (b), true, #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) CR_CHECK((a) <= (b), true, #a " <= " #b, __VA_ARGS__)
#define cr_assert_null(a, ...) CR_CHECK((a) == NULL, true, #a " is NULL", __VA_ARGS__)
#define cr_assert_not_null(a, ...) CR_CHECK((a) != NULL, true, #a " is not NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) CR_CHECK(strcmp(a, b) == 0, true, #a " is " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)                                                               \
    CR_CHECK(strcmp(a, b) != 0, true, #a " is not " #b, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, bytes, ...)                                                         \
    CR_CHECK(memcmp(a, b, bytes) == 0, true, #a " is " #b, __VA_ARGS__)
#define cr_assert_fail(...) CR_CHECK(false, true, "reached", __VA_ARGS__)
#define cr_expect(a, ...) CR_CHECK(a, false, #a, __VA_ARGS__)
#define cr_expect_not(a, ...) CR_CHECK(!(a), false, "not " #a, __VA_ARGS__)
#define cr_expect_eq(a, b, ...) CR_CHECK((a) == (b), false, #a " == " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...) CR_CHECK((a) != (b), false, #a " != " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...) CR_CHECK((a) > (b), false, #a " > " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...) CR_CHECK((a) >= (b), false, #a " >= " #b, __VA_ARGS__)
#define cr_expect_null(a, ...) CR_CHECK((a) == NULL, false, #a " is NULL", __VA_ARGS__)
#define cr_skip(...)                                                                               \
    do {                                                                                           \
        fprintf(stderr, "" __VA_ARGS__);                                                           \
        _exit(CR_SKIPPED);                                                                         \
    } while (0)

static void cr_run_here(const struct cr_options *test, const struct cr_options *suite)
{
    void (*init)(void) = test->init != NULL ? test->init : suite != NULL ? suite->init : NULL;
    void (*fini)(void) = test->fini != NULL ? test->fini : suite != NULL ? suite->fini : NULL;
    double timeout = test->timeout > 0                     ? test->timeout
                     : suite != NULL && suite->timeout > 0 ? suite->timeout
                                                           : HANG_SECONDS;
    (void)alarm((unsigned)timeout);
    if (init != NULL)
        init();
    test->run();
    if (fini != NULL)
        fini();
    exit(cr_has_failed ? CR_FAILED : 0); /* not _exit(): TSan reports what it found at exit */
}

static const struct cr_options *cr_suite_of(const struct cr_options *test)
{
    for (const struct cr_options *suite = cr_suites; suite != NULL; suite = suite->next) {
        size_t bytes = strlen(suite->name);
        if (strncmp(test->name, suite->name, bytes) == 0 && test->name[bytes] == ':')
            return suite;
    }
    return NULL;
}

int main(void)
{
    unsigned passing = 0, failing = 0;
    for (const struct cr_options *test = cr_tests; test != NULL; test = test->next) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
            cr_run_here(test, cr_suite_of(test));
        int status = 0;
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            abort();
        if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CR_SKIPPED)) {
            passing++;
            continue;
        }
        failing++;
        fprintf(stderr, "[FAIL] %s: wait status %d\n", test->name, status);
    }
    fprintf(stderr, "[====] Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: 0\n",
            passing + failing, passing, failing);
    return failing == 0 && passing > 0 ? 0 : 1;
}

#endif

/* tests/witnesses_test.c -- which gateways a broker waits for: those its predecessor had, and that live. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/witnesses.h"

static char directory[] = "/tmp/weir-witnesses-XXXXXX";
static char path[64];
static struct witnesses *witnesses;
static pid_t children[4];
static unsigned child_count;

static void open_again(void)
{
    struct weir_error error = {0};
    witnesses_close(witnesses);
    cr_assert_eq(witnesses_open(&witnesses, directory, &error), WEIR_OK, "%s", error.text);
}

static void setup(void)
{
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/gateways", directory);
    open_again();
}

static void end_child(pid_t pid)
{
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

static void teardown(void)
{
    for (unsigned i = 0; i < child_count; i++)
        end_child(children[i]);
    witnesses_close(witnesses);
    (void)unlink(path);
    (void)rmdir(directory);
}

TestSuite(witnesses, .init = setup, .fini = teardown, .timeout = HANG_SECONDS);

/* A process that does nothing, of a name with everything that names may have. */
static uint32_t gateway(void)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)prctl(PR_SET_NAME, "a) Z (1 2 3");
        while (getppid() == parent)
            (void)pause();
        _exit(0);
    }
    cr_assert_gt(pid, 0);
    children[child_count++] = pid;
    return (uint32_t)pid;
}

static void expect(unsigned absent, unsigned untold)
{
    cr_assert_eq(witnesses_absent(witnesses), absent);
    cr_assert_eq(witnesses_untold(witnesses), untold);
}

Test(witnesses, the_first_broker_waits_for_nobody)
{
    expect(0, 0);
    witnesses_attached(witnesses, gateway());
    witnesses_tick(witnesses, 1000);
    expect(0, 0);
}

Test(witnesses, the_next_one_waits_until_those_that_were_there_have_told)
{
    uint32_t first = gateway(), second = gateway(), late = gateway();
    witnesses_attached(witnesses, first);
    witnesses_attached(witnesses, second);
    open_again();
    expect(2, 2);
    witnesses_attached(witnesses, late);
    witnesses_told(witnesses, late);
    expect(2, 2);
    witnesses_attached(witnesses, second);
    expect(1, 2);
    witnesses_told(witnesses, second);
    witnesses_told(witnesses, second);
    expect(1, 1);
    witnesses_tick(witnesses, 1000);
    witnesses_tick(witnesses, 1000 + WITNESSES_LOG_MS);
    expect(1, 1);
    witnesses_attached(witnesses, first);
    witnesses_told(witnesses, first);
    expect(0, 0);
    /* This broker has had all of them. */
    open_again();
    expect(3, 3);
}

Test(witnesses, the_dead_are_not_waited_for)
{
    uint32_t before = gateway(), zombie = gateway(), after = gateway();
    witnesses_attached(witnesses, before);
    witnesses_attached(witnesses, zombie);
    witnesses_attached(witnesses, after);
    end_child((pid_t)before);
    (void)kill((pid_t)zombie, SIGKILL);
    siginfo_t ended;
    cr_assert_eq(waitid(P_PID, (id_t)zombie, &ended, WEXITED | WNOWAIT), 0);
    open_again();
    expect(1, 1);
    end_child((pid_t)after);
    witnesses_tick(witnesses, 1000);
    expect(0, 0);
}

/* One that did not find the second broker may still know what the third does not. */
Test(witnesses, who_lives_is_waited_for_by_every_broker)
{
    uint32_t away = gateway(), other = gateway();
    witnesses_attached(witnesses, away);
    witnesses_attached(witnesses, other);
    open_again();
    witnesses_attached(witnesses, other);
    witnesses_attached(witnesses, gateway());
    witnesses_told(witnesses, other);
    expect(1, 1);
    open_again();
    expect(3, 3);
    witnesses_attached(witnesses, away);
    witnesses_attached(witnesses, away);
    expect(2, 3);
}

Test(witnesses, a_file_of_anything_else_names_nobody)
{
    uint32_t pid = gateway();
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    (void)fprintf(file, "%u 1\n%u\n\n-1 -1\n0 0\n99999999999999999999 7\n%500d\n\x01\xff", pid, pid,
                  0);
    cr_assert_eq(fclose(file), 0);
    open_again();
    expect(0, 0);
    witnesses_attached(witnesses, 0);
    open_again();
    expect(0, 0);
}

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "broker/background.h"

enum { JOBS = BACKGROUND_JOBS_MAX, ROUNDS = 50, TURNS_MAX = 100000 };

static const enum settings_io engines[] = {SETTINGS_IO_URING, SETTINGS_IO_PLAIN};

struct counted_job {
    struct background_job job;
    pthread_t ran_in, done_in;
    unsigned ran_at, done_at; /* from 1 on; 0: not yet */
    unsigned chained;         /* so many more times, started by done() */
};

static struct loop *loop;
static struct background *background;
static struct counted_job jobs[JOBS];
static unsigned ran, done; /* `ran` is the thread's while jobs run */
static atomic_bool gate_is_open;

static void job_run(struct background_job *job)
{
    struct counted_job *own = job->owner;
    own->ran_in = pthread_self();
    own->ran_at = ++ran;
}

static void job_done(struct background_job *job)
{
    struct counted_job *own = job->owner;
    own->done_in = pthread_self();
    own->done_at = ++done;
    if (own->chained > 0) {
        own->chained--;
        background_start(background, job);
    }
}

static void job_wait_for_gate(struct background_job *job)
{
    while (!atomic_load(&gate_is_open))
        (void)sched_yield();
    job_run(job);
}

static void open_background(enum settings_io io)
{
    struct weir_error error = {0};
    ran = 0;
    done = 0;
    atomic_store(&gate_is_open, false);
    memset(jobs, 0, sizeof jobs);
    for (unsigned index = 0; index < JOBS; index++)
        jobs[index].job =
            (struct background_job){.run = job_run, .done = job_done, .owner = &jobs[index]};
    cr_assert_eq(loop_open(&loop, io, &error), WEIR_OK, "%s", error.text);
    cr_assert_eq(background_open(&background, loop, "weir-test", &error), WEIR_OK, "%s",
                 error.text);
}

static void close_background(void)
{
    background_close(background);
    loop_close(loop);
}

static void run_until_done(unsigned count)
{
    struct weir_error error = {0};
    for (unsigned turn = 0; done < count && turn < TURNS_MAX; turn++) {
        cr_assert_eq(loop_wait(loop, 1000, &error), WEIR_OK, "%s", error.text);
        loop_run(loop);
    }
    cr_assert_eq(done, count);
}

/* Jobs run in the thread and are done in the loop's, both in the order they were started. */
Test(background, jobs_run_and_are_done_in_order, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_background(engines[engine]);
        for (unsigned round = 0; round < ROUNDS; round++) {
            ran = 0;
            done = 0;
            for (unsigned index = 0; index < JOBS; index++)
                background_start(background, &jobs[index].job);
            run_until_done(JOBS);
            for (unsigned index = 0; index < JOBS; index++) {
                cr_assert_eq(jobs[index].ran_at, index + 1);
                cr_assert_eq(jobs[index].done_at, index + 1);
                cr_assert(pthread_equal(jobs[index].ran_in, jobs[0].ran_in));
                cr_assert_not(pthread_equal(jobs[index].ran_in, pthread_self()));
                cr_assert(pthread_equal(jobs[index].done_in, pthread_self()));
                cr_assert_not(jobs[index].job.in_flight);
            }
        }
        close_background();
    }
}

/* A job that waits holds up neither the loop nor the start of others; in_flight says so. */
Test(background, a_job_that_blocks_leaves_the_loop_free, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        struct weir_error error = {0};
        open_background(engines[engine]);
        jobs[0].job.run = job_wait_for_gate;
        background_start(background, &jobs[0].job);
        background_start(background, &jobs[1].job);
        cr_assert_eq(loop_wait(loop, 20, &error), WEIR_OK, "%s", error.text);
        loop_run(loop);
        cr_assert_eq(done, 0);
        cr_assert(jobs[0].job.in_flight);
        cr_assert(jobs[1].job.in_flight);
        atomic_store(&gate_is_open, true);
        run_until_done(2);
        close_background();
    }
}

/* done() may start the same job again, many times over. */
Test(background, done_may_start_a_job, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_background(engines[engine]);
        jobs[0].chained = 200;
        background_start(background, &jobs[0].job);
        run_until_done(201);
        cr_assert_eq(ran, 201);
        close_background();
    }
}

/* Closing runs what was started, also what has to wait first, and tells the owners. */
Test(background, close_finishes_what_was_started, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_background(engines[engine]);
        jobs[0].job.run = job_wait_for_gate;
        for (unsigned index = 0; index < JOBS; index++)
            background_start(background, &jobs[index].job);
        cr_assert_eq(done, 0);
        atomic_store(&gate_is_open, true);
        close_background();
        cr_assert_eq(ran, JOBS);
        cr_assert_eq(done, JOBS);
        for (unsigned index = 0; index < JOBS; index++)
            cr_assert(pthread_equal(jobs[index].done_in, pthread_self()));
    }
}

/* The loop may be closed first: its poll operation is only given up. */
Test(background, close_after_the_loop_finishes_as_well, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        open_background(engines[engine]);
        background_start(background, &jobs[0].job);
        loop_close(loop);
        background_close(background);
        cr_assert_eq(done, 1);
    }
}

struct owned_job {
    struct background_job job;
    unsigned *freed;
};

static void owned_run(struct background_job *job)
{
    (void)job;
}

static void owned_done(struct background_job *job)
{
    struct owned_job *own = job->owner;
    (*own->freed)++;
    free(own);
}

/* A job's memory is its owner's again in done(). */
Test(background, an_owner_frees_its_job_in_done, .timeout = HANG_SECONDS)
{
    for (unsigned engine = 0; engine < 2; engine++) {
        unsigned freed = 0;
        open_background(engines[engine]);
        for (unsigned index = 0; index < JOBS; index++) {
            struct owned_job *own = calloc(1, sizeof *own);
            cr_assert_not_null(own);
            own->job = (struct background_job){.run = owned_run, .done = owned_done, .owner = own};
            own->freed = &freed;
            background_start(background, &own->job);
        }
        close_background();
        cr_assert_eq(freed, JOBS);
    }
}

static sigset_t blocked_in_thread;

static void job_read_signals(struct background_job *job)
{
    (void)pthread_sigmask(SIG_SETMASK, NULL, &blocked_in_thread);
    job_run(job);
}

/* Signals are left to the loop thread, whose own mask stays as it was. */
Test(background, signals_are_blocked_in_the_thread_only, .timeout = HANG_SECONDS)
{
    sigset_t before;
    sigset_t after;
    (void)pthread_sigmask(SIG_SETMASK, NULL, &before);
    open_background(SETTINGS_IO_PLAIN);
    (void)pthread_sigmask(SIG_SETMASK, NULL, &after);
    jobs[0].job.run = job_read_signals;
    background_start(background, &jobs[0].job);
    run_until_done(1);
    cr_assert_eq(sigismember(&blocked_in_thread, SIGTERM), 1);
    cr_assert_eq(sigismember(&blocked_in_thread, SIGUSR1), 1);
    cr_assert_eq(sigismember(&after, SIGUSR1), sigismember(&before, SIGUSR1));
    cr_assert_eq(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));
    close_background();
}

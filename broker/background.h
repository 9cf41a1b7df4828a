/* broker/background.h -- one thread that does what blocks, job after job, so that the loop thread
 * never waits for a disk.
 *
 *   loop thread: background_start() ──▶ [job, job, ...] ──▶ run() in the thread
 *                done() from loop_run() ◀── eventfd ──────── finished
 *
 * Jobs run one at a time in the order they were started, and are done in that order.
 *
 * Process and thread: opened, started and closed by the thread that owns the loop. run() is called
 *           in the background thread, where every signal is blocked; what it touches is the job's
 *           own until done(). done() is called in the loop thread and may start jobs.
 * Memory:   a job is embedded in its owner and stays untouched from background_start() until its
 *           done(). Nothing is allocated after background_open().
 * Bounds:   BACKGROUND_JOBS_MAX started and not done; one more is our own bug. One poll operation of
 *           the loop for as long as it is open.
 * Errors:   a job keeps its own outcome, for done() to read.
 */
#ifndef WEIR_BROKER_BACKGROUND_H
#define WEIR_BROKER_BACKGROUND_H

#include "broker/loop.h"

enum { BACKGROUND_JOBS_MAX = 16 };

struct background_job {
    void (*run)(struct background_job *job);
    void (*done)(struct background_job *job);
    void *owner; /* for the callbacks */
    /* background.c's own */
    struct background_job *next;
    bool in_flight; /* readable by the loop thread: done() has not been called yet */
};

struct background;

/* `name` is the thread's, at most 15 bytes. SYSTEM: no descriptor or no thread to be had. */
enum weir_status background_open(struct background **background, struct loop *loop,
                                 const char *name, struct weir_error *error) WEIR_MUST_CHECK;
/* Finishes what was started, joins the thread, and calls done() of all that is not done yet, from
 * here: owners can free their jobs in it, but must not start another. The loop must not be waited
 * on again: its poll operation is part of what is freed. It may be closed before or after. */
void background_close(struct background *background);

void background_start(struct background *background, struct background_job *job);

#endif

#include "broker/background.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct job_queue {
    struct background_job *first;
    struct background_job **end;
};

struct background {
    struct loop *loop;
    struct loop_operation finished_ready;
    unsigned in_flight; /* the loop thread's */
    int event_fd;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    struct job_queue waiting, finished;
    bool closing;
};

static void queue_init(struct job_queue *queue)
{
    queue->first = NULL;
    queue->end = &queue->first;
}

static void queue_push(struct job_queue *queue, struct background_job *job)
{
    job->next = NULL;
    *queue->end = job;
    queue->end = &job->next;
}

static struct background_job *queue_pop(struct job_queue *queue)
{
    struct background_job *job = queue->first;
    if (!job)
        return NULL;
    queue->first = job->next;
    if (!queue->first)
        queue->end = &queue->first;
    return job;
}

/* NULL: closing, and nothing is left to do. */
static struct background_job *background_next(struct background *background)
{
    (void)pthread_mutex_lock(&background->lock);
    while (!background->waiting.first && !background->closing)
        (void)pthread_cond_wait(&background->changed, &background->lock);
    struct background_job *job = queue_pop(&background->waiting);
    (void)pthread_mutex_unlock(&background->lock);
    return job;
}

static void background_finish(struct background *background, struct background_job *job)
{
    static const uint64_t one = 1;
    (void)pthread_mutex_lock(&background->lock);
    queue_push(&background->finished, job);
    (void)pthread_mutex_unlock(&background->lock);
    /* Cannot fail: the counter is far from its end, as each job adds one. */
    (void)!write(background->event_fd, &one, sizeof one);
}

static void *background_thread(void *context)
{
    struct background *background = context;
    struct background_job *job = background_next(background);
    while (job) { /* until closed */
        job->run(job);
        background_finish(background, job);
        job = background_next(background);
    }
    return NULL;
}

/* done() of what has finished; what finishes meanwhile wakes the loop again. */
static void background_collect(struct background *background)
{
    (void)pthread_mutex_lock(&background->lock);
    struct background_job *job = background->finished.first;
    queue_init(&background->finished);
    (void)pthread_mutex_unlock(&background->lock);
    while (job) { /* at most BACKGROUND_JOBS_MAX */
        struct background_job *next = job->next;
        job->in_flight = false;
        background->in_flight--;
        job->done(job);
        job = next;
    }
}

static void background_finished_ready(struct loop_operation *operation, int32_t result)
{
    struct background *background = operation->owner;
    uint64_t count = 0;
    (void)result;
    /* Emptied before the jobs are taken: one that finishes in between wakes the loop for nothing,
     * and none is forgotten. */
    (void)!read(background->event_fd, &count, sizeof count);
    loop_poll(background->loop, operation, background->event_fd);
    background_collect(background);
}

/* All signals are the loop thread's: it reads them from a descriptor. */
static int background_start_thread(struct background *background, const char *name)
{
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&background->thread, NULL, background_thread, background);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0)
        (void)pthread_setname_np(background->thread, name);
    return result;
}

enum weir_status background_open(struct background **background, struct loop *loop,
                                 const char *name, struct weir_error *error)
{
    struct background *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the thread %s", name);
    opened->loop = loop;
    opened->finished_ready =
        (struct loop_operation){.done = background_finished_ready, .owner = opened};
    queue_init(&opened->waiting);
    queue_init(&opened->finished);
    (void)pthread_mutex_init(&opened->lock, NULL);
    (void)pthread_cond_init(&opened->changed, NULL);

    int sys_errno = 0;
    opened->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (opened->event_fd < 0)
        sys_errno = errno;
    else
        sys_errno = background_start_thread(opened, name);
    if (sys_errno != 0) {
        if (opened->event_fd >= 0)
            (void)close(opened->event_fd);
        (void)pthread_cond_destroy(&opened->changed);
        (void)pthread_mutex_destroy(&opened->lock);
        free(opened);
        return weir_fail_errno(error, sys_errno, "cannot start the thread %s", name);
    }
    loop_poll(loop, &opened->finished_ready, opened->event_fd);
    *background = opened;
    return WEIR_OK;
}

void background_close(struct background *background)
{
    if (!background)
        return;
    (void)pthread_mutex_lock(&background->lock);
    background->closing = true;
    (void)pthread_cond_signal(&background->changed);
    (void)pthread_mutex_unlock(&background->lock);
    (void)pthread_join(background->thread, NULL);
    background_collect(background);
    weir_assert(background->in_flight == 0);
    (void)close(background->event_fd);
    (void)pthread_cond_destroy(&background->changed);
    (void)pthread_mutex_destroy(&background->lock);
    free(background);
}

void background_start(struct background *background, struct background_job *job)
{
    weir_assert(!job->in_flight);
    weir_assert(background->in_flight < BACKGROUND_JOBS_MAX);
    weir_assert(!background->closing);
    job->in_flight = true;
    background->in_flight++;
    (void)pthread_mutex_lock(&background->lock);
    queue_push(&background->waiting, job);
    (void)pthread_cond_signal(&background->changed);
    (void)pthread_mutex_unlock(&background->lock);
}

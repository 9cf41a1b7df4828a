/* tests/torture/subject.h -- the server that is tortured, and how to speak to it: one table for each
 * kind, so that the same script runs against all.
 *
 *   weir       weir-broker over its unix socket, as WORLD_LANES gateways (weir_subject.c); also the
 *              stand-in, which speaks the same
 *   redis      redis-server over a unix socket, appendonly, appendfsync always (redis_subject.c)
 *
 * Process and thread: one.
 */
#ifndef WEIR_TESTS_TORTURE_SUBJECT_H
#define WEIR_TESTS_TORTURE_SUBJECT_H

#include "tests/torture/child.h"
#include "tests/torture/world.h"

enum { SUBJECT_PATH_BYTES = 128, SUBJECT_ARGUMENTS_MAX = 48 };

struct subject_lane {
    int fd; /* -1: closed */
    struct buffer in, out;
    size_t in_taken;
    bool is_ended; /* the server has closed it, and all it sent was read */
};

enum subject_start {
    SUBJECT_READY,
    SUBJECT_REFUSED, /* it ended by itself, with a status that says so */
    SUBJECT_STRUCK,  /* it was killed on the way, by the fault it was given */
};

struct subject_answer {
    uint64_t token; /* 0: answers come in the order of the requests, and this is the next */
    bool is_acknowledged;
    char text[192]; /* else: code and sentence */
};

struct subject {
    const struct subject_kind *kind;
    char program[512];
    char scratch[SUBJECT_PATH_BYTES];   /* sockets, logs */
    char directory[SUBJECT_PATH_BYTES]; /* the data */
    char *extra[SUBJECT_ARGUMENTS_MAX]; /* further arguments of the program, NULL at the end */
    struct child child;
    struct subject_lane lanes[WORLD_LANES];
    unsigned boot;      /* which run of the machine this is supposed to be */
    bool may_ask_again; /* the running server knows which requests it has carried out */
    void *own;          /* the kind's */
};

struct subject_kind {
    const char *name;
    bool has_seq;
    /* False: no memory, or the program is not there. */
    bool (*open)(struct subject *subject);
    void (*close)(struct subject *subject);
    /* `fault` is a plan (fault_plan.h), NULL: none. Lanes are connected when it is READY. */
    enum subject_start (*start)(struct subject *subject, const char *fault);
    /* Append the request to the lane's output. */
    bool (*put)(struct subject *subject, struct world *world, unsigned lane,
                const struct world_request *request);
    /* The next answer in the lane's input; EMPTY: none. */
    enum weir_status (*take)(struct subject *subject, unsigned lane, struct subject_answer *answer);
    /* Everything it has, read from the running server. */
    void (*observe)(struct subject *subject, struct world *world, struct seen *seen);
    /* The server is dead: what it had shown to readers, into `seen`. May be NULL. */
    void (*shown)(struct subject *subject, struct world *world, struct seen *seen);
    /* One acknowledged item read from a server whose disk fails: false, `why`, when it is not answered
     * or wrong. May be NULL. */
    bool (*read_one)(struct subject *subject, struct world *world, char why[160]);
    /* What the server's own tool finds in the directory nobody serves; true: something. May be NULL. */
    bool (*tool)(struct subject *subject);
    /* The server is dead or will be: lanes are closed. */
    void (*disconnect)(struct subject *subject);
};

extern const struct subject_kind subject_weir;
extern const struct subject_kind subject_redis;

/* ---- for the kinds ---- */

bool subject_lane_open(struct subject_lane *lane, const char *socket_path);
void subject_lane_close(struct subject_lane *lane);
/* What has been read and not taken. */
struct span subject_lane_input(const struct subject_lane *lane);
/* Read what is there, at most so much; false: ended. `wait_ms` 0: do not wait. */
bool subject_lane_receive(struct subject_lane *lane, int wait_ms);
/* Send all that is in `out`; false: ended. */
bool subject_lane_flush(struct subject_lane *lane);
/* Send as much as goes without waiting. */
void subject_lane_send(struct subject_lane *lane);

#endif

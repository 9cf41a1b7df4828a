/* gateway/link.h -- the gateway's connection to the broker's unix socket.
 *
 *   AWAY --old ring read to its end, connect--> ATTACHING --ATTACHED + 3 descriptors--> ATTACHED
 *    ^---- back-off, for ever -----------------------'------------------death-------------'
 *
 * Questions (link_ask) get an id and are answered exactly once through `done`. While the broker is
 * away they wait in order, encoded, up to a byte and a time limit. Those that are still wholly in our
 * output when it dies wait for the next one as well, within the same limits. Of the others, of which
 * the socket has taken at least one byte, nobody here knows whether they were applied:
 *
 *   stream question the broker itself       its frame is kept until it is answered, and waits with the
 *   carries out (not is_patient)            others, before them; a successor that has the log of those
 *                                           before it (ATTACHED says so) is asked again, with the same
 *                                           id, and answers without applying twice. With any other
 *                                           successor, or when none comes in time, it is LOST. One that
 *                                           only reads can be asked again in any case.
 *   call of a worker's function, what a     never asked again: LOST at once
 *   worker keeps (is_patient), anything else
 *
 * Frames are kept up to wait_bytes_max; a stream question beyond that is not kept, and LOST. The time
 * limit of a stream question counts from when it was asked, that of others from when they began to
 * wait; nothing overtakes what was asked before it, so that what waits behind another waits at least
 * as long.
 *
 * Answers that nobody waits for (is_unhurried) the broker sends together with others or after some
 * milliseconds. Once what is kept takes half of its room it is asked not to.
 *
 * A broker that lives but does not answer (stopped, or stuck) leaves stream questions SILENT after
 * the same time limit; calls of workers' functions have none. Notices (link_post) are not kept:
 * everything they say is announced again from on_attached. Output is gathered and leaves in one send
 * a turn (link_flush).
 *
 * Process:  gateway, loop thread only.
 * Memory:   a link_request is the asker's and stays put until done() has been called. Messages are
 *           valid during the call. Frames that are kept and frames that wait are two buffers, of
 *           wait_bytes_max each, and what was kept comes on top of what waits.
 * Units:    times in ms of uv_now().
 * Errors:   link_ask(): FULL, TOO_LARGE, NO_MEMORY, CLOSED (after link_close()): nothing was taken,
 *           done() will not be called.
 */
#ifndef WEIR_GATEWAY_LINK_H
#define WEIR_GATEWAY_LINK_H

#include <uv.h>

#include "gateway/counters.h"
#include "gateway/mapping.h"
#include "shm/wire.h"

enum link_fate {
    LINK_ANSWERED, /* `answer` is the reply; NULL for a void question that is on its way */
    LINK_EXPIRED,  /* the broker stayed away too long, or too much waits for it; not applied */
    LINK_LOST,     /* sent, and the broker went away before it answered; perhaps applied */
    LINK_SILENT,   /* sent, and the broker is there but has not answered in time */
};

struct link_request {
    void (*done)(struct link_request *request, enum link_fate fate,
                 const struct wire_message *answer);
    bool is_void;    /* goes out with id 0 and is done as soon as it is on its way */
    bool is_patient; /* a stream question a worker has to answer: the broker times it */
    /* A stream question whose answer ends here: it may come a little later, and has no result. */
    bool is_unhurried;
    /* link.c's own */
    uint64_t id;
    uint64_t deadline_ms; /* of its waiting; 0: never waited */
    bool is_waiting;
    bool is_timed;     /* a stream question: SILENT after the time limit */
    bool is_read;      /* a stream question that changes nothing */
    bool is_kept;      /* its frame is at kept_at */
    bool is_sent;      /* a broker that has gone may have seen it */
    bool is_unsent;    /* the broker has gone, and this would have to wait but does not fit */
    bool is_cancelled; /* while it waits: the asker has gone */
    size_t frame_bytes;
    struct link_request *next;
    uint64_t asked_ms; /* of a stream question in flight; those are in a list, oldest first */
    struct link_request *next_in_flight, **link_in_flight;
    uint64_t kept_at; /* of those: where the kept frames ended before it */
};

struct link_options {
    const char *socket_path;
    uint64_t gateway_index;
    uint64_t wait_ms;
    size_t wait_bytes_max;
};

struct link_attachment {
    struct mapping *mapping;
    bool is_kept; /* the broker has all that those before it have answered or shown */
    /* When is_kept: where its ring goes on behind the commit that was named in on_attaching, or, when
     * none was, its newest; UINT64_MAX: it does not reach back that far. */
    uint64_t position;
    uint64_t commit; /* what is published of its ring is in frames up to this one */
};

struct link_handlers {
    /* About to attach: `commit` is the number of the log's frame up to which the ring was read so far
     * (0: none). False: the ring of the broker that has gone is not read to its end; asked again
     * soon. NULL: nothing was read. */
    bool (*on_attaching)(void *context, uint64_t *commit);
    /* Attached: the mapping is the receiver's from now on. Announce sessions here, with
     *           link_post(). */
    void (*on_attached)(void *context, const struct link_attachment *attachment);
    void (*on_lost)(void *context);
    /* INVOKE, FUNCTION_REJECTED. */
    void (*on_message)(void *context, const struct wire_message *message);
    void *context;
};

enum {
    LINK_REQUESTS_MAX = 1 << 20, /* in flight or waiting; one more is FULL */
    LINK_BACKLOG_BYTES_MAX = 4 * 1024 * 1024,
};

struct link;
/* NULL: no memory. Starts connecting at once. */
struct link *link_open(uv_loop_t *loop, const struct link_options *options,
                       const struct link_handlers *handlers, struct counters *counters);
/* Stops; requests still open are LOST, void ones that wait EXPIRED: their askers must be able to
 * take that. Memory is given back when the loop has closed its handles. */
void link_close(struct link *link);
bool link_is_attached(const struct link *link);
enum weir_status link_ask(struct link *link, enum wire_type type, const struct wire_field *fields,
                          struct link_request *request) WEIR_MUST_CHECK;
/* Nobody waits for the answer of a CALL any more, and the broker is told so. True: the request is the
 * asker's again, done() will not be called. False: it still waits for the broker, and done() follows.
 * Never calls done() from inside. */
bool link_cancel_call(struct link *link, struct link_request *request);
/* A notice or an answer; dropped and counted when the broker is away. */
void link_post(struct link *link, enum wire_type type, uint64_t id,
               const struct wire_field *fields);
/* Gathered and not yet taken by the socket. */
size_t link_backlog_bytes(const struct link *link);
/* Send what was gathered; once at the end of a turn. */
void link_flush(struct link *link);
/* Is the oldest stream question in flight younger than a second? */
bool link_is_responsive(const struct link *link);
/* Attached, and the broker takes what is sent to it: less than LINK_BACKLOG_BYTES_MAX has been left
 * over. Callers that can wait ask first, so that those that cannot find room. */
bool link_is_flowing(const struct link *link);
/* Expire what has waited too long. */
void link_tick(struct link *link);
/* The highest stamp given to anybody here. The next broker is told 2 ms more as the floor of its
 * stamps, so that even a sync, which is stamped 1 ms below the next event, comes out later for
 * those who saw this one. */
void link_raise_floor(struct link *link, uint64_t timestamp_ms);

#endif

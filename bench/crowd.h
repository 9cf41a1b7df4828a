/* bench/crowd.h -- many subscribers in processes of their own, and a publisher, the same for every
 * server: each message is followed to each subscriber, byte by byte.
 *
 * What is sent:  message.h: group, number in the group, time and a pattern; every subscriber's every
 *           message has to be the next number and these bytes. The time is the one at which the
 *           message was due (paced: an open loop, a publisher that is late does not flatter the
 *           server) or sent (in flight).
 * Process:  the caller is publisher and control; subscribers live in forked children with shared
 *           counters, so that nobody's CPU time is mixed with anybody else's. One thread each.
 * Memory:   some 100 bytes a subscriber; a cut frame's bytes are kept until its rest is there.
 * Units:    *_ns are CLOCK_MONOTONIC; CPU is user and system time of processes.
 * Errors:   what a server does to messages is counted; what keeps the bench from going on ends it
 *           with a sentence and status 1.
 */
#ifndef WEIR_BENCH_CROWD_H
#define WEIR_BENCH_CROWD_H

#include <stdatomic.h>
#include <sys/types.h>

#include "bench/crowd_protocol.h"
#include "bench/histogram.h"

enum {
    CROWD_SERVER_PIDS_MAX = 64,
    CROWD_PROCESSES_MAX = 8,
    CROWD_IN_FLIGHT_MAX = 4096,
    CROWD_GROUPS_MAX = 100000,
};

struct crowd_options {
    const struct crowd_protocol *protocol;
    uint16_t port;         /* subscribers */
    uint16_t publish_port; /* 0: the same */
    const char *prefix;    /* of group names; at most 15 characters */
    unsigned groups;
    unsigned subscribers; /* of all groups together, a multiple of `groups` */
    unsigned processes;   /* subscribers' processes; 0: as few as the descriptor limit allows */
    size_t bytes;         /* of a message: MESSAGE_BYTES_MIN to MESSAGE_BYTES_MAX */
    double rate;          /* messages a second over all groups; 0: as in_flight allows */
    unsigned in_flight;   /* messages not yet at every subscriber of their group; 0: no bound */
    double seconds, warmup_seconds;
    double drain_seconds; /* what is not there so long after the last message is undelivered */
    pid_t server_pids[CROWD_SERVER_PIDS_MAX];
    unsigned server_pid_count;
    /* weir only. Subscribers that lose their connection come back where they were; so does a publisher
     * of weir-calls, which knows what has been taken. */
    bool resume;
    const char *mode;   /* of the path subscription; NULL: none named */
    int receive_buffer; /* SO_RCVBUF; 0: the kernel's choice */
};

/* What children count. Sums since the start; one writer each. */
struct crowd_counts {
    _Atomic uint64_t live;      /* subscribed now */
    _Atomic uint64_t delivered; /* whole messages, right in number and bytes or not */
    _Atomic uint64_t lost;      /* numbers left out */
    _Atomic uint64_t repeated;  /* numbers at or below one seen before */
    _Atomic uint64_t damaged;   /* messages whose bytes are not the ones sent */
    _Atomic uint64_t closed;    /* connections that ended although nobody here wanted it */
    _Atomic uint64_t resynced;  /* weir: further syncs */
    _Atomic uint64_t resumed;   /* weir: positions that were served */
    _Atomic uint64_t conflated; /* weir: messages that stood for others as well */
    _Atomic uint64_t newest;    /* see crowd_count_newest() */
    _Atomic uint64_t turns;     /* commands carried out */
};

/* What a run found. NaN where nothing was measured. */
struct crowd_result {
    uint64_t published, delivered, undelivered; /* in the measured time */
    uint64_t lost, repeated, damaged, closed, resynced, conflated, refused; /* of the whole run */
    double seconds; /* from the first measured message's time to the last delivery */
    double rate;    /* messages published a second */
    double deliveries_per_s;
    bool kept_up; /* all delivered exactly, the last at most a second after it was due */
    double p50_us, p90_us, p99_us, p999_us, max_us, mean_us;
    double server_cpu_us_per_delivery, deliveries_per_server_cpu_s, server_cpu_s;
    double crowd_cpu_s, crowd_busy; /* of subscribers' processes; share of the busiest's time */
    double publisher_cpu_s;
    double connect_seconds;
    double idle_bytes_per_connection; /* proportional resident memory of the server's processes */
};

/* Subscribe, publish as the options say, measure, leave. */
void crowd_run(const struct crowd_options *options, struct crowd_result *result);
/* One line of JSON without the newline; `label` NULL: none. Bytes, cut at `capacity`. */
size_t crowd_result_json(const struct crowd_options *options, const struct crowd_result *result,
                         const char *label, char *out, size_t capacity);

/* ---- the parts of a run, for benches that do something to subscribers meanwhile ---- */

void crowd_group_name(char out[CROWD_GROUP_BYTES_MAX], const struct crowd_options *options,
                      unsigned group);
struct crowd;
struct crowd *crowd_start(const struct crowd_options *options);
/* Let `share` (0 to 1) of the subscribers connect and wait until they are subscribed; returns how many
 * that are. The bench ends when it takes longer. */
unsigned crowd_wait_live(struct crowd *crowd, double share, double seconds);
uint64_t crowd_total(const struct crowd *crowd, size_t counter_offset);
#define CROWD_TOTAL(crowd, counter) crowd_total((crowd), offsetof(struct crowd_counts, counter))
uint64_t crowd_cpu_ns(const struct crowd *crowd, uint64_t *busiest_ns); /* may be NULL */
/* Latencies count from now on; and those since. */
void crowd_histogram_reset(struct crowd *crowd);
void crowd_histogram_read(const struct crowd *crowd, struct histogram *out);
enum crowd_command {
    CROWD_STOP_READING = 1,
    CROWD_READ_AGAIN,
    CROWD_RECONNECT, /* every connection is closed, and opened again with its position */
};
/* Returns when every process has done it; new connections are then under way. */
void crowd_command(struct crowd *crowd, enum crowd_command command);
/* Subscribers whose last message was number `published` - 1 of their group. */
uint64_t crowd_count_newest(struct crowd *crowd, uint64_t published);
const struct crowd_options *crowd_options_of(const struct crowd *crowd);
int crowd_completed_fd(const struct crowd *crowd); /* eventfd: messages that all have by now */
void crowd_stop(struct crowd *crowd);

/* Messages go to the groups in turn, one after the other, over one connection. What is in flight is
 * bounded by `crowd`, whose options they are. */
struct crowd_publisher;
struct crowd_publisher *crowd_publisher_open(struct crowd *crowd);
/* Publish for so long: one each 1/rate from now on, however late, or as in_flight allows. Returns early
 * when nothing in flight arrives for some seconds. */
void crowd_publish(struct crowd_publisher *publisher, uint64_t duration_ns);
uint64_t crowd_published(const struct crowd_publisher *publisher);
uint64_t crowd_refused(const struct crowd_publisher *publisher);
uint64_t crowd_reopened(const struct crowd_publisher *publisher); /* times it lost its connection */
/* Wait until `wanted` messages are delivered, since the crowd's start; false: not in time. */
bool crowd_wait_delivered(struct crowd_publisher *publisher, uint64_t wanted, double seconds);
void crowd_publisher_close(struct crowd_publisher *publisher);

#endif

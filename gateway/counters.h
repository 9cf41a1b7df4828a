/* gateway/counters.h -- what a gateway counts: one table gives the enum, the metrics page and its
 * sentences.
 *
 * Process:  gateway, loop thread only. counters_publish() copies what changed into the reader's
 *           control page, from where the broker collects it, so that any gateway shows the figures
 *           of the whole host.
 * Memory:   plain values; gauges go up and down in modular arithmetic.
 */
#ifndef WEIR_GATEWAY_COUNTERS_H
#define WEIR_GATEWAY_COUNTERS_H

#include "shm/readers.h"

/* name, Prometheus type, sentence. Order is the index in the control page: append, never reorder. */
#define COUNTER_MAP(X)                                                                             \
    X(STREAM_CONNECTIONS, gauge, "stream sockets open")                                            \
    X(WORKER_CONNECTIONS, gauge, "worker sessions open")                                           \
    X(SUBSCRIPTIONS, gauge, "subscriptions, active or waiting for their sync")                     \
    X(TOPICS, gauge, "groups with at least one subscription on the gateway")                       \
    X(FEED_RECORDS, counter, "events read from the shared ring")                                   \
    X(FEED_BYTES, counter, "bytes read from the shared ring")                                      \
    X(FEED_LAPPED, counter, "times the gateway itself was too slow for the ring")                  \
    X(DELIVERIES, counter, "sends handed to sockets, each with one or more events")                \
    X(DELIVERY_BYTES, counter, "bytes handed to sockets as events")                                \
    X(DELIVERIES_BUSY, counter, "sends a busy socket did not take; it catches up later")           \
    X(CATCH_UPS, counter, "sends made while catching up from the ring")                            \
    X(SYNCS, counter, "sync envelopes sent")                                                       \
    X(SYNCS_LAGGED, counter, "subscriptions the ring lapped, answered with a fresh sync")          \
    X(SYNCS_RESTARTED, counter, "subscriptions synced again because the broker restarted")         \
    X(SYNCS_TOO_LARGE, counter, "sockets closed because a sync exceeds the answer limit")          \
    X(SYNCS_WAITING, gauge, "copies of groups made for syncs that wait until the log has them")    \
    X(SYNCS_UNCOMMITTED, counter,                                                                  \
      "sockets closed because the log did not take what their sync would have shown")              \
    X(JOINS_REFUSED, counter,                                                                      \
      "joins beyond subscriptions_max or out of memory, answered unauthorized")                    \
    X(STREAM_MESSAGES_IGNORED, counter, "undecodable messages on stream sockets")                  \
    X(WORKER_MESSAGES, counter, "messages from workers")                                           \
    X(WORKER_MESSAGES_IGNORED, counter, "undecodable or unknown messages from workers")            \
    X(CALLS, counter, "calls from workers")                                                        \
    X(READS_LOCAL, counter, "stream reads served from the mapped store")                           \
    X(CALLS_FAILED, counter, "calls answered with an error made by the gateway")                   \
    X(CALLS_LOST, counter, "calls in flight when the broker died or stayed silent")                \
    X(CALLS_EXPIRED, counter, "calls that waited in vain for an absent broker")                    \
    X(INVOCATIONS, counter, "calls handed to workers of the gateway")                              \
    X(RESULTS_IGNORED, counter, "results for calls unknown or not given to that worker")           \
    X(ANSWERS_HELD, counter, "answers kept back because a worker reads slowly")                    \
    X(WORKERS_DROPPED, counter, "workers closed because they did not read their answers")          \
    X(REGISTRATIONS_REFUSED, counter, "functions, triggers and trigger types not taken")           \
    X(LINK_ATTACHED, counter, "times attached to a broker")                                        \
    X(LINK_LOST, counter, "times the broker went away")                                            \
    X(UPGRADES_REFUSED, counter, "WebSocket upgrades refused by path, origin or memory")           \
    X(POSTS_DROPPED, counter, "notices not sent because the broker is away")                       \
    X(LOCAL_CONNECTIONS_DROPPED, counter,                                                          \
      "libweir connections closed for a protocol error or a full queue")                           \
    X(TURNS, counter, "turns of the loop")                                                         \
    X(FLUSHES_HELD, counter, "fan-outs held back to share a send")                                 \
    X(WORKERS_RETIRED, counter, "worker sessions ended because their worker came back on another") \
    X(SERVER_CALLS, counter, "calls the gateway made itself: gates, auth, triggers, hooks")        \
    X(SERVER_CALLS_FAILED, counter, "of these, answered with an error or not at all")              \
    X(TRIGGERS, gauge, "stream triggers of workers of the gateway")                                \
    X(TRIGGER_EVENTS, counter, "events matched by a stream trigger, once per trigger")             \
    X(TRIGGER_HANDLED, counter, "trigger events whose handler answered")                           \
    X(TRIGGER_FAILED, counter, "trigger events whose handler or condition failed or was late")     \
    X(TRIGGER_SKIPPED, counter, "trigger events their condition function declined")                \
    X(TRIGGER_DROPPED, counter, "trigger events dropped: queue full, or lapped by the ring")       \
    X(TRIGGER_QUEUED, gauge, "trigger events waiting for their handler")                           \
    X(AUTH_REFUSED, counter, "connections refused by an auth function or for want of its answer")  \
    X(AUTH_FAILED, counter, "an auth function failed, was late or not there")                      \
    X(JOINS_DENIED, counter, "joins denied by a stream:join handler or for want of its answer")    \
    X(CHANNEL_ENDS, gauge, "byte channel sockets open")                                            \
    X(CHANNEL_MESSAGES, counter, "byte channel messages passed on")                                \
    X(LOG_LINES, counter, "lines logged for workers by engine::log")                               \
    X(ACCESS_REFUSED, counter, "calls and registrations an RBAC rule refused")                     \
    X(LEAVES_LOST, counter, "leaves of subscriptions not told: too many wait for the broker")      \
    X(CALLS_RESENT, counter, "stream calls asked again when the broker died before its answer")    \
    X(LINK_RESUMED, counter,                                                                       \
      "times attached to a broker with the log of the one before: subscriptions went on")          \
    X(RESUMES, counter, "subscriptions that went on from the position their client brought")       \
    X(RESUMES_EXPIRED, counter,                                                                    \
      "such positions the ring does not lead from any more, answered with a fresh sync")           \
    X(CONFLATIONS, counter, "times a subscriber far behind got the newest event of each item")     \
    X(EVENTS_CONFLATED, counter,                                                                   \
      "events left out of these because a newer one of the item follows")                          \
    X(SUBSCRIBERS_TOO_SLOW, counter, "sockets closed with 1013 because they fell too far behind")  \
    X(GROUP_READS, counter, "looks at a group in the store to catch up, once for all who need it") \
    X(EVENT_STREAMS, gauge, "subscribers over server-sent events, among the stream connections")   \
    X(CONNECTIONS_DRAINED, counter, "sockets closed with 1012 because the gateway was to stop")    \
    X(HANDSHAKES_DEFERRED, counter, "turns that left handshakes for the next one")

enum counter {
#define COUNTER_ENUM(name, type, sentence) COUNTER_##name,
    COUNTER_MAP(COUNTER_ENUM)
#undef COUNTER_ENUM
        COUNTER_COUNT
};
static_assert((int)COUNTER_COUNT <= (int)CONTROL_COUNTERS, "all counters fit the control page");

struct counters {
    uint64_t values[COUNTER_COUNT];
    uint64_t published[COUNTER_COUNT]; /* as the current control page has them */
    struct reader *reader;             /* NULL: none */
};

static inline void counters_add(struct counters *counters, enum counter counter, uint64_t amount)
{
    counters->values[counter] += amount;
}

static inline void counters_subtract(struct counters *counters, enum counter counter,
                                     uint64_t amount)
{
    counters->values[counter] -= amount;
}

/* A new control page starts from zero; NULL detaches. */
void counters_attach(struct counters *counters, struct reader *reader);
void counters_publish(struct counters *counters);
const char *counters_name(enum counter counter); /* lower case, "feed_records" */
const char *counters_type(enum counter counter);
const char *counters_sentence(enum counter counter);

#endif

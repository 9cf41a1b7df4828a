/* shm/broker_counters.h -- what the broker counts, and shows to every process of the host: one table
 * gives the struct, the place in the segment (readers.h) and the metrics page.
 *
 * Process:  the broker's loop thread writes the struct and copies it into the segment about once a
 *           second; anybody reads the copy.
 */
#ifndef WEIR_SHM_BROKER_COUNTERS_H
#define WEIR_SHM_BROKER_COUNTERS_H

#include <assert.h>
#include <stdint.h>

/* name, Prometheus type, sentence */
#define BROKER_COUNTER_MAP(X)                                                                      \
    X(turns, counter, "turns of the loop")                                                         \
    X(peers_accepted, counter, "connections accepted")                                             \
    X(peers_attached, counter, "peers that attached")                                              \
    X(peers_refused, counter, "peers refused at attach")                                           \
    X(peers_dropped, counter, "peers dropped for malformed frames or unread output")               \
    X(frames_malformed, counter, "frames that could not be decoded or made no sense")              \
    X(requests, counter, "stream requests taken")                                                  \
    X(request_errors, counter, "stream requests answered with an error")                           \
    X(events, counter, "events put into the ring")                                                 \
    X(commits, counter, "batches committed")                                                       \
    X(log_bytes, counter,                                                                          \
      "bytes of the log since the start, and of that behind the snapshot then")                    \
    X(snapshots, counter, "snapshots written")                                                     \
    X(snapshots_failed, counter, "snapshots given up; they are tried again")                       \
    X(requests_repeated, counter,                                                                  \
      "requests asked again after a restart that were carried out before it")                      \
    X(wakes, counter, "sleeping readers woken")                                                    \
    X(wakes_spared, counter,                                                                       \
      "sleeping readers left asleep: nothing that was published was theirs")                       \
    X(calls, counter, "calls taken")                                                               \
    X(call_errors, counter, "calls answered with an error by the broker")                          \
    X(results, counter, "results passed on")                                                       \
    X(results_unknown, counter, "results nobody waits for, or from a peer that was not asked")     \
    X(registrations_refused, counter, "functions, triggers and names refused")                     \
    X(replies_lost, counter, "answers to peers that were gone")                                    \
    X(streams, gauge, "streams with items")                                                        \
    X(groups, gauge, "groups with items")                                                          \
    X(empty_groups, gauge, "groups remembered after their last item has gone")                     \
    X(items, gauge, "items")                                                                       \
    X(store_bytes, gauge, "bytes of the shared store")                                             \
    X(store_used_bytes, gauge, "bytes of it in use")                                               \
    X(store_retired_bytes, gauge, "bytes of it waiting for readers to leave")                      \
    X(readers_revoked, counter, "readers whose epoch was taken back")                              \
    X(sessions, gauge, "worker sessions")                                                          \
    X(functions, gauge, "functions registered by workers")                                         \
    X(calls_pending, gauge, "calls that wait for a worker's answer")                               \
    X(trigger_types, gauge, "trigger types workers provide")                                       \
    X(triggers, gauge, "triggers registered, parked ones included")                                \
    X(triggers_parked, gauge, "triggers whose type nobody provides")                               \
    X(deliveries, counter, "calls of stream:leave and engine trigger handlers")                    \
    X(deliveries_failed, counter, "of these, answered with an error or not at all")                \
    X(deliveries_dropped, counter, "of these, not made because too many waited")                   \
    X(presence, gauge, "subscriptions whose leave somebody wants to know of")                      \
    X(channels, gauge, "byte channels")                                                            \
    X(custom_calls, counter, "calls of custom stream adapters' functions")                         \
    X(custom_failed, counter, "of these, answered with an error or not at all")                    \
    X(presence_refused, counter, "subscriptions whose leave is not told: there are too many")      \
    X(channels_dropped, counter, "byte channels ended because too much waited in them")            \
    X(gates_away, gauge, "stream:join triggers whose worker has gone: joins are denied")

struct broker_counters {
#define BROKER_COUNTER_FIELD(name, type, sentence) uint64_t name;
    BROKER_COUNTER_MAP(BROKER_COUNTER_FIELD)
#undef BROKER_COUNTER_FIELD
};

enum { BROKER_COUNTER_COUNT = sizeof(struct broker_counters) / sizeof(uint64_t) };

#endif

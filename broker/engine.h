/* broker/engine.h -- stream::* requests: apply, number, put into the ring, answer. PROTOCOL section
 * 3.
 *
 *   request --adapter--> change --encode--> ring (not visible yet)
 *                               |---------> record of the log
 *                               `---------> reply (not sent yet)
 *   commits.h: the log's frame is written, then ring, groups and replies are let go
 *
 * The adapter is the store's, or custom.h for streams that a worker keeps.
 *
 * Process and thread: the broker's loop thread. Memory: all owned by the engine, reused from turn
 * to turn.
 * Errors:   every refusal is an answer with the codes of PROTOCOL 2.9 and a sentence that names the
 *           limit.
 */
#ifndef WEIR_BROKER_ENGINE_H
#define WEIR_BROKER_ENGINE_H

#include "adapters/custom.h"
#include "broker/commits.h"

struct engine;

struct engine_options {
    struct segment *segment;
    struct readers *readers;
    const struct adapter_kind *adapter;
    const struct custom_options *custom; /* NULL: no stream is custom */
    struct store_options store;
    uint64_t value_bytes_max;
    struct broker_output output;
    struct broker_counters *counters;
};

/* Opens ring writer, store and adapter on the segment; it is the caller who publishes the segment
 * afterwards. */
enum weir_status engine_open(struct engine **engine, const struct engine_options *options,
                             struct weir_error *error) WEIR_MUST_CHECK;
/* Nothing is applied any more. NULL is fine. */
void engine_stop(struct engine *engine);
void engine_close(struct engine *engine);

/* From now on writes go to `wal` (NULL: nowhere) before they are shown and answered, or behind that.
 * Before the first request. */
enum weir_status engine_set_log(struct engine *engine, struct wal *wal, bool is_written_behind,
                                struct weir_error *error) WEIR_MUST_CHECK;
/* The event of a write of an earlier life, which the store has applied just now. TOO_LARGE: the ring
 * does not hold it. */
enum weir_status engine_replayed(struct engine *engine, const struct wal_position *position,
                                 const struct wal_record *record,
                                 const struct store_change *change) WEIR_MUST_CHECK;

/* All of these: their part of the ring can be read from now on. */
void engine_publish_replayed(struct engine *engine);

/* A STREAM message of the gateway life `origin`; id 0: nobody waits for the answer. INVALID: a message
 * that makes no sense from a gateway. */
enum weir_status engine_stream(struct engine *engine, struct peer_handle peer, uint64_t origin,
                               const struct wire_message *message, uint64_t now_ms) WEIR_MUST_CHECK;
struct commits *engine_commits(const struct engine *engine);
struct store *engine_store(const struct engine *engine);
/* Position of the ring behind what has been put into it. */
uint64_t engine_ring_head(const struct engine *engine);

/* The part that asks workers' functions; NULL when options.custom was. It is told of functions and
 * answers by the broker, and completes requests like any adapter. */
struct custom *engine_custom(const struct engine *engine);

/* No stamp below this one: what an earlier broker has told a gateway. */
void engine_raise_floor(struct engine *engine, uint64_t timestamp_ms);
void engine_figures(const struct engine *engine, struct store_figures *figures);

#endif

/* broker/engine.h -- stream::* requests: apply, number, put into the ring, answer. PROTOCOL section
 * 3.
 *
 *   request --adapter--> change --encode--> ring (not visible yet)
 *                                  \------> batch of replies (not sent yet)
 *   engine_commit(): [the log's commit point comes here] ring_publish, doorbells, replies, end of
 *   the store's turn
 *
 * The adapter is the store's, or custom.h for streams that a worker keeps.
 *
 * What a turn did becomes visible, and is answered, at its commit and not before. Until the log
 * exists there is one level, `memory`, whose commit point is reached at once. The batch holds
 * copies only, nothing that points into the store or into a peer's input, so a commit may be
 * completed in a later turn than the one that made it; what it then publishes is the ring up to its
 * own end.
 *
 * Process and thread: the broker's loop thread. Memory: all owned by the engine, reused from turn
 * to turn.
 * Errors:   every refusal is an answer with the codes of PROTOCOL 2.9 and a sentence that names the
 *           limit.
 */
#ifndef WEIR_BROKER_ENGINE_H
#define WEIR_BROKER_ENGINE_H

#include "adapters/custom.h"
#include "broker/output.h"

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
void engine_close(struct engine *engine);

/* A STREAM message; id 0: nobody waits for the answer. INVALID: a message that makes no sense from
 * a gateway. */
enum weir_status engine_stream(struct engine *engine, struct peer_handle peer,
                               const struct wire_message *message, uint64_t now_ms) WEIR_MUST_CHECK;
/* End of a turn. */
void engine_commit(struct engine *engine);
/* Something was done since the last commit. */
bool engine_has_uncommitted(const struct engine *engine);

/* The part that asks workers' functions; NULL when options.custom was. It is told of functions and
 * answers by the broker, and completes requests like any adapter. */
struct custom *engine_custom(const struct engine *engine);

/* No stamp below this one: what an earlier broker has told a gateway. */
void engine_raise_floor(struct engine *engine, uint64_t timestamp_ms);
void engine_figures(const struct engine *engine, struct store_figures *figures);

#endif

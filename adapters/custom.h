/* adapters/custom.h -- streams whose items a worker keeps (PROTOCOL 5): their operations become
 * calls of the worker's functions `stream::get(<name>)`, `stream::set(<name>)` and so on.
 *
 *   engine --write, read--> custom --call--> (seam) routes --> the worker
 *                              |   <-answer--
 *                              +--store_touch()--> seq and stamp --done.written()--> engine
 *                              '--(not replaced, but behind a write that is)--> the store's adapter
 *
 * The engine asks here first; what is not taken goes to the store's own adapter. Taken is every
 * operation whose function is there, stream::update also when get and set are (get, apply, set),
 * and what has to wait behind such a write. stream::send and stream::list_all are never replaced.
 *
 * Away: that an operation was a worker's is remembered. While its function is gone the operation
 * fails with a sentence that says so, and nothing gets into the store beside the worker's own data;
 * with `fallback` it goes to the store, as the iii engine does.
 *
 * Order:    writes to one (stream, group) are given to the worker one at a time, in the order they
 *           came, and a read waits for those before it. Reads do not wait for each other, nor do
 *           writes for reads; groups and streams do not wait for each other either (list_groups
 *           waits for the stream's writes before it).
 * Time:     a call has timeout_ms. What has waited that long for the writes before it is not begun
 *           any more, so that a worker that hangs does not add up.
 * Process and thread: the broker's loop thread only.
 * Memory:   a fixed table of operations; names and what a waiting write carries are copied, within
 *           the bounds below.
 * Errors:   beyond a bound an operation fails with a sentence; a stream beyond the number that is
 *           remembered fails as long as its functions are there.
 */
#ifndef WEIR_ADAPTERS_CUSTOM_H
#define WEIR_ADAPTERS_CUSTOM_H

#include "adapters/adapter.h"
#include "shm/broker_counters.h"
#include "shm/limits.h"

enum {
    CUSTOM_OPERATIONS_MAX = 16384, /* open at once */
    CUSTOM_STREAM_OPERATIONS_MAX =
        4096, /* of one stream, so that one worker that hangs leaves room */
    CUSTOM_KEPT_BYTES_MAX = 64 * 1024 * 1024,
};

struct custom;

struct custom_call {
    struct span function; /* in namespace default */
    struct span data;     /* JSON */
    struct ring_trace trace;
    uint64_t timeout_ms;
    uint64_t token; /* for custom_answer() */
};

/* How workers are reached; the broker's routes, or a test's stand-in. */
struct custom_seam {
    /* OK: custom_answer() follows once, later. EMPTY: no such function. UNAVAILABLE: its worker
     * cannot take it. FULL, TOO_LARGE. */
    enum weir_status (*call)(void *context, const struct custom_call *call);
    bool (*has_function)(void *context, struct span id);
    /* The stream has become custom, or is no more; data NULL: take any stream for one. Told again
     * when its values can be read again, or by one function more. From inside
     * custom_function_changed(), custom_answer(). */
    void (*changed)(void *context, struct span stream, bool is_custom);
    void *context;
};

struct custom_options {
    struct custom_seam seam;
    uint64_t timeout_ms; /* of one call, and of the wait for it */
    bool fallback;
    struct broker_counters *counters;
    /* 0: the bounds above and those of shm/limits.h. */
    uint32_t operations_max, stream_operations_max, streams_max;
    uint64_t kept_bytes_max;
};

/* Where operations go that are not a worker's. */
struct custom_store {
    const struct adapter_kind *kind;
    struct adapter *adapter;
};

enum weir_status custom_open(struct custom **custom, const struct custom_options *options,
                             const struct adapter_environment *environment,
                             const struct custom_store *store,
                             struct weir_error *error) WEIR_MUST_CHECK;
/* Completes with CLOSED what is open. No answer may come afterwards. NULL is fine. */
void custom_close(struct custom *custom);

/* True: taken, a completion follows as of any adapter (also before this returns). False, and always
 * for NULL: the store's adapter is to be asked. */
bool custom_write(struct custom *custom, uint64_t request, const struct adapter_write *write);
bool custom_read(struct custom *custom, uint64_t request, const struct adapter_read *read);

/* A function of namespace default is there now, or is no more; any name. */
void custom_function_changed(struct custom *custom, struct span id, bool exists);

enum custom_fate {
    CUSTOM_RESULT, /* `result`: JSON, data NULL when the function returned nothing */
    CUSTOM_ERROR,  /* `error_json`: the error object */
    CUSTOM_LATE,
};
void custom_answer(struct custom *custom, uint64_t token, enum custom_fate fate, struct span result,
                   struct span error_json, uint64_t now_ms);

/* Tell every custom stream, as seam.changed() would. */
void custom_tell_streams(const struct custom *custom,
                         void (*tell)(void *context, struct span stream), void *context);

#endif

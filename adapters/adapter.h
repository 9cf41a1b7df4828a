/* adapters/adapter.h -- where items live: the interface between the broker's engine and a backend.
 *
 * Event order (seq, stamps, epochs) always belongs to the store of the segment, whatever the
 * backend. An adapter that keeps the items elsewhere does its own write first and then takes the
 * event's number with store_touch(). kv keeps items and order in the same place.
 *
 *   engine --write()--> adapter ... --done.written()--> engine --> ring, reply
 *   engine --read()---> adapter ... --done.answered()-> engine --> reply
 *
 * A completion may come before write() or read() returns (kv: always) or in a later turn of the
 * loop.
 *
 * Process and thread: the broker's loop thread only, callbacks too.
 * Memory:   spans given to write() and read() are valid until they return: who completes later
 *           copies them. Spans given to a completion are valid until the completion returns. An
 *           adapter neither keeps nor frees what is not its own.
 * Order:    writes to one (stream, group) complete in the order they were given, and a read given
 *           after a write sees it.
 * Once:     every write() and read() is completed exactly once, also when the adapter is closed
 *           before its answer came (CLOSED). The engine never repeats one.
 */
#ifndef WEIR_ADAPTERS_ADAPTER_H
#define WEIR_ADAPTERS_ADAPTER_H

#include "shm/store.h"

struct adapter; /* each kind's own */

enum adapter_write_kind {
    ADAPTER_SET = 1,
    ADAPTER_DELETE,
    ADAPTER_EVENT, /* stream::send: nothing is stored, the group's order advances */
    ADAPTER_UPDATE,
};

struct adapter_write {
    enum adapter_write_kind kind;
    struct store_key key; /* item.data == NULL: an event without id */
    struct span
        value; /* set: what to store; update: its ops; event: its data; validated JSON text */
    struct span event_type;  /* event only; carried for the completion */
    struct ring_trace trace; /* the writer's; carried for the completion */
    uint64_t now_ms;         /* Unix time of this turn */
};

enum adapter_read_kind {
    ADAPTER_GET = 1,
    ADAPTER_LIST,
    ADAPTER_LIST_GROUPS,
    ADAPTER_LIST_ALL,
};

struct adapter_read {
    enum adapter_read_kind kind;
    struct store_key key;    /* get: all three; list: stream and group; list_groups: stream */
    struct ring_trace trace; /* the asker's */
    uint64_t now_ms;         /* Unix time of this turn */
};

/* What became of a request; spans are valid until the completion returns. */
struct adapter_outcome {
    /* Writes. OK: done. EMPTY: a delete found nothing, no event. Reads. OK; EMPTY: get of a missing
     * item. FULL, TOO_LARGE, INVALID, UNAVAILABLE, CLOSED, ...: nothing changed here. */
    enum weir_status status;
    const struct store_change
        *change;       /* of a write that is OK: the event's numbers, the old value */
    struct span value; /* set, update: the item's new value; read: JSON text (data NULL: nothing) */
    struct span errors; /* update: JSON array of what failed; data NULL: nothing did */
    bool is_elsewhere;  /* write: the item is not in the store, only the group's order is */
    /* Of a failure, where status and operation do not say it all. */
    const char *code;       /* NULL: the operation's own */
    struct span sentence;   /* UTF-8; data NULL: the status's */
    struct span error_json; /* answered as it is, instead of code and sentence; data NULL: none */
};

struct adapter_completions {
    /* `write` repeats what was asked. */
    void (*written)(void *context, uint64_t request, const struct adapter_write *write,
                    const struct adapter_outcome *outcome);
    void (*answered)(void *context, uint64_t request, const struct adapter_outcome *outcome);
    /* Asked once before a write changes anything, with the bytes of its event's value (0: a delete's,
     * which is the item's): NULL when it can be logged and its event can be made; else why not (text
     * that is valid until the next call). */
    const char *(*write_problem)(void *context, const struct adapter_write *write,
                                 size_t value_bytes);
    void *context;
};

/* What an adapter may use; all of it outlives the adapter. */
struct adapter_environment {
    const struct segment *segment;
    struct store *store;
    uint64_t value_bytes_max;
    struct adapter_completions done;
};

struct adapter_kind {
    const char *name;

    /* Once, before the loop runs; may block. On failure nothing is left behind. */
    enum weir_status (*open)(struct adapter **adapter,
                             const struct adapter_environment *environment,
                             struct weir_error *error);

    /* Any number of times a turn; never blocks. `request` is the engine's, returned in the
     * completion. */
    void (*write)(struct adapter *adapter, uint64_t request, const struct adapter_write *write);

    /* As write(). The engine has published every event before it asks for a list. */
    void (*read)(struct adapter *adapter, uint64_t request, const struct adapter_read *read);

    /* Once, after the loop stopped. Completes with CLOSED what was still open and frees the
     * adapter. */
    void (*close)(struct adapter *adapter);
};

#endif

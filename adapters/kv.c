#include "adapters/kv.h"

#include <stdlib.h>

#include "adapters/outcome.h"
#include "adapters/update.h"

/* A list's buffer larger than this is given back after use. */
enum { KV_ANSWER_KEEP_BYTES = 1024 * 1024 };

struct adapter {
    struct adapter_environment environment;
    struct store_reader *reader;
    struct update *update;
    struct buffer answer;
};

static void kv_close(struct adapter *adapter)
{
    if (!adapter)
        return;
    if (adapter->reader)
        store_reader_close(adapter->reader);
    update_close(adapter->update);
    buffer_fini(&adapter->answer);
    free(adapter);
}

static enum weir_status kv_open(struct adapter **adapter,
                                const struct adapter_environment *environment,
                                struct weir_error *error)
{
    struct adapter *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the kv adapter");
    opened->environment = *environment;
    buffer_init(&opened->answer, ANSWER_BYTES_MAX);
    opened->reader = store_reader_open(environment->segment, NULL);
    if (!opened->reader) {
        kv_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the kv adapter's reader");
    }
    opened->update = update_open(environment->value_bytes_max);
    if (!opened->update) {
        kv_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for stream::update");
    }
    *adapter = opened;
    return WEIR_OK;
}

/* False: the outcome says why not. */
static bool kv_may_write(const struct adapter *adapter, const struct adapter_write *write,
                         size_t value_bytes, struct adapter_outcome *outcome)
{
    const struct adapter_completions *done = &adapter->environment.done;
    const char *problem = done->write_problem(done->context, write, value_bytes);
    if (problem) {
        outcome->status = WEIR_TOO_LARGE;
        outcome->sentence = span_text(problem);
    }
    return problem == NULL;
}

/* Read, apply and store at once: no other write comes between. */
static void kv_update(struct adapter *adapter, const struct adapter_write *write,
                      struct store_change *change, struct adapter_outcome *outcome)
{
    struct store *store = adapter->environment.store;
    struct span old_value = {0};
    struct update_result result = {0};
    const char *problem = NULL;

    enum weir_status status = update_parse(adapter->update, write->value, &problem);
    if (status != WEIR_OK) {
        outcome_refuse_ops(outcome, status, problem);
        return;
    }
    status = store_find(store, &write->key, &old_value);
    if (status == WEIR_OK || status == WEIR_EMPTY)
        status = update_apply(adapter->update, old_value, &result);
    if (status != WEIR_OK) {
        outcome_fail_update(outcome, status, result.problem);
        return;
    }
    if (!kv_may_write(adapter, write, result.value.bytes, outcome))
        return;
    outcome->status = store_set(store, &write->key, result.value, write->now_ms, change);
    outcome->value = result.value;
    outcome->errors = result.errors;
}

static void kv_write(struct adapter *adapter, uint64_t request, const struct adapter_write *write)
{
    struct store *store = adapter->environment.store;
    struct store_change change;
    struct adapter_outcome outcome = {.status = WEIR_INVALID};

    if (write->kind == ADAPTER_UPDATE) {
        kv_update(adapter, write, &change, &outcome);
    } else if (kv_may_write(adapter, write, write->value.bytes, &outcome)) {
        if (write->kind == ADAPTER_SET)
            outcome.status = store_set(store, &write->key, write->value, write->now_ms, &change);
        else if (write->kind == ADAPTER_DELETE)
            outcome.status = store_delete(store, &write->key, write->now_ms, &change);
        else
            outcome.status = store_touch(store, &write->key, write->now_ms, &change);
        outcome.value = write->kind == ADAPTER_SET ? write->value : (struct span){0};
    }
    if (outcome.status == WEIR_OK)
        outcome.change = &change;
    adapter->environment.done.written(adapter->environment.done.context, request, write, &outcome);
}

static enum weir_status kv_answer(struct adapter *adapter, const struct adapter_read *read,
                                  struct span *answer)
{
    struct buffer *out = &adapter->answer;
    struct store_snapshot snapshot;
    enum weir_status status = WEIR_INVALID;

    buffer_clear(out);
    switch (read->kind) {
    case ADAPTER_GET:
        return store_find(adapter->environment.store, &read->key, answer);
    case ADAPTER_LIST:
        status = store_snapshot(adapter->reader, read->key.stream, read->key.group, NULL, &snapshot,
                                out);
        break;
    case ADAPTER_LIST_GROUPS:
        status = store_list_groups(adapter->reader, read->key.stream, out);
        break;
    case ADAPTER_LIST_ALL:
        status = store_list_all(adapter->reader, out);
        break;
    }
    *answer = buffer_span(out);
    return status;
}

static void kv_read(struct adapter *adapter, uint64_t request, const struct adapter_read *read)
{
    struct adapter_outcome outcome = {0};
    outcome.status = kv_answer(adapter, read, &outcome.value);
    adapter->environment.done.answered(adapter->environment.done.context, request, &outcome);
    if (adapter->answer.capacity_bytes > KV_ANSWER_KEEP_BYTES) {
        buffer_fini(&adapter->answer);
        buffer_init(&adapter->answer, ANSWER_BYTES_MAX);
    }
}

const struct adapter_kind adapter_kv = {
    .name = "kv",
    .open = kv_open,
    .write = kv_write,
    .read = kv_read,
    .close = kv_close,
};

#include "broker/engine.h"

#include <stdlib.h>

#include "broker/bounds.h"
#include "shm/envelope.h"
#include "shm/json.h"
#include "shm/stream_functions.h"

/* A request an adapter has not completed yet. */
struct engine_request {
    struct peer_handle peer;
    uint64_t origin; /* the life of the gateway that asked */
    enum wire_op op;
    uint64_t id;
    bool is_unhurried; /* nobody waits for the answer */
    uint32_t next_free;
};

struct engine {
    struct ring_writer *ring;
    struct store *store;
    struct readers *readers;
    const struct adapter_kind *kind;
    struct adapter *adapter;
    struct custom *custom; /* asked first; NULL: no stream is custom */
    struct broker_output output;
    struct broker_counters *counters;
    uint64_t value_bytes_max;
    struct commits *commits;

    struct engine_request *requests;
    uint32_t free_request;
    bool is_closing; /* nobody is there to be answered any more */

    struct buffer frame; /* one event */
    char type_escaped[NAME_ESCAPED_BYTES_MAX];
};

/* ---- open and close ---- */

static void engine_written(void *context, uint64_t request, const struct adapter_write *write,
                           const struct adapter_outcome *outcome);
static void engine_answered(void *context, uint64_t request, const struct adapter_outcome *outcome);
static const char *engine_write_problem(void *context, const struct adapter_write *write,
                                        size_t value_bytes);

static enum weir_status engine_open_memory(struct engine *engine, struct weir_error *error)
{
    engine->requests = calloc(ENGINE_REQUESTS_MAX, sizeof *engine->requests);
    buffer_init(&engine->frame, WIRE_FRAME_BYTES_MAX);
    if (!engine->requests)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the engine's requests");
    for (uint32_t index = 0; index < ENGINE_REQUESTS_MAX; index++)
        engine->requests[index].next_free = index + 1;
    return WEIR_OK;
}

enum weir_status engine_open(struct engine **engine, const struct engine_options *options,
                             struct weir_error *error)
{
    struct engine *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the engine");
    opened->readers = options->readers;
    opened->kind = options->adapter;
    opened->output = options->output;
    opened->counters = options->counters;
    opened->value_bytes_max = options->value_bytes_max;

    enum weir_status status = engine_open_memory(opened, error);
    if (status != WEIR_OK)
        goto failed;
    opened->ring = ring_writer_open(options->segment);
    if (!opened->ring) {
        status = weir_fail(error, WEIR_NO_MEMORY, "no memory for the ring's writer");
        goto failed;
    }
    status = store_open(&opened->store, options->segment, options->readers, &options->store, error);
    if (status != WEIR_OK)
        goto failed;
    const struct adapter_environment environment = {
        .segment = options->segment,
        .store = opened->store,
        .value_bytes_max = options->value_bytes_max,
        .done = {engine_written, engine_answered, engine_write_problem, opened},
    };
    status = opened->kind->open(&opened->adapter, &environment, error);
    if (status == WEIR_OK && options->custom) {
        const struct custom_store inner = {opened->kind, opened->adapter};
        status = custom_open(&opened->custom, options->custom, &environment, &inner, error);
    }
    if (status == WEIR_OK)
        status = engine_set_log(opened, NULL, false, error);
    if (status != WEIR_OK)
        goto failed;
    *engine = opened;
    return WEIR_OK;

failed:
    engine_close(opened);
    return status;
}

void engine_stop(struct engine *engine)
{
    if (engine)
        engine->is_closing = true;
}

void engine_close(struct engine *engine)
{
    if (!engine)
        return;
    engine_stop(engine);
    custom_close(engine->custom); /* what waits there may still go to the adapter */
    if (engine->adapter)
        engine->kind->close(engine->adapter);
    commits_close(engine->commits);
    if (engine->store)
        store_close(engine->store);
    if (engine->ring)
        ring_writer_close(engine->ring);
    buffer_fini(&engine->frame);
    free(engine->requests);
    free(engine);
}

void engine_raise_floor(struct engine *engine, uint64_t timestamp_ms)
{
    store_raise_floor(engine->store, timestamp_ms);
}

void engine_figures(const struct engine *engine, struct store_figures *figures)
{
    store_figures(engine->store, figures);
}

struct custom *engine_custom(const struct engine *engine)
{
    return engine->custom;
}

enum weir_status engine_set_log(struct engine *engine, struct wal *wal, bool is_written_behind,
                                struct weir_error *error)
{
    const struct commits_options options = {
        .ring = engine->ring,
        .store = engine->store,
        .readers = engine->readers,
        .output = engine->output,
        .counters = engine->counters,
        .value_bytes_max = engine->value_bytes_max,
        .wal = wal,
        .is_written_behind = is_written_behind,
    };
    commits_close(engine->commits);
    engine->commits = NULL;
    return commits_open(&engine->commits, &options, error);
}

struct commits *engine_commits(const struct engine *engine)
{
    return engine->commits;
}

struct store *engine_store(const struct engine *engine)
{
    return engine->store;
}

uint64_t engine_ring_head(const struct engine *engine)
{
    return ring_head(engine->ring);
}

/* ---- replies ---- */

static struct batch_asker engine_asker(const struct engine_request *request)
{
    return (struct batch_asker){request->peer, request->id,
                                stream_function_by_op(request->op)->error_code,
                                request->is_unhurried};
}

static void engine_reply_reason(struct engine *engine, const struct engine_request *request,
                                const char *code, const char *subject, struct span sentence)
{
    const struct batch_asker asker = engine_asker(request);
    engine->counters->request_errors++;
    batch_reply_error(commits_batch(engine->commits), &asker, &engine->output, code, subject,
                      sentence);
}

static void engine_reply_result(struct engine *engine, const struct engine_request *request,
                                const struct span *parts, unsigned part_count)
{
    const struct batch_asker asker = engine_asker(request);
    batch_reply_result(commits_batch(engine->commits), &asker, &engine->output, parts, part_count);
}

static void engine_reply_none(struct engine *engine, const struct engine_request *request)
{
    const struct batch_asker asker = engine_asker(request);
    batch_reply_none(commits_batch(engine->commits), &asker);
}

/* The error object of a worker's function, as it came. */
static void engine_reply_error_json(struct engine *engine, const struct engine_request *request,
                                    struct span error_json)
{
    const struct batch_asker asker = engine_asker(request);
    engine->counters->request_errors++;
    batch_reply_error_json(commits_batch(engine->commits), &asker, &engine->output, error_json);
}

static const char *engine_failure_sentence(enum weir_status status)
{
    switch (status) {
    case WEIR_FULL:
        return "the store is full: one of store_bytes, items_max, groups_max is used up";
    case WEIR_TOO_LARGE:
        return "the value or the answer is larger than its limit (value_bytes_max, store_bytes)";
    case WEIR_INVALID:
        return "a name or the value is not acceptable";
    default:
        return weir_status_text(status);
    }
}

/* ---- requests ---- */

static struct engine_request *engine_request_begin(struct engine *engine, uint64_t *number)
{
    if (engine->free_request >= ENGINE_REQUESTS_MAX)
        return NULL;
    *number = engine->free_request;
    struct engine_request *request = &engine->requests[*number];
    engine->free_request = request->next_free;
    return request;
}

static struct engine_request engine_request_end(struct engine *engine, uint64_t number)
{
    weir_assert(number < ENGINE_REQUESTS_MAX);
    struct engine_request request = engine->requests[number];
    engine->requests[number].next_free = engine->free_request;
    engine->free_request = (uint32_t)number;
    return request;
}

/* ---- events ---- */

static enum envelope_event engine_event_kind(const struct adapter_write *write,
                                             const struct store_change *change)
{
    switch (write->kind) {
    case ADAPTER_DELETE:
        return ENVELOPE_DELETE;
    case ADAPTER_EVENT:
        return ENVELOPE_EVENT;
    case ADAPTER_SET:
    case ADAPTER_UPDATE:
        break;
    }
    return change->existed ? ENVELOPE_UPDATE : ENVELOPE_CREATE;
}

static struct span engine_value_or_null(struct span value)
{
    return value.bytes > 0 ? value : SPAN_LITERAL("null");
}

static struct span engine_present(struct span text)
{
    return text.data ? text : SPAN_LITERAL("");
}

/* Streams of the console carry no trace fields (PROTOCOL 2.10). */
static bool engine_is_traced(struct span stream)
{
    const struct span untraced = SPAN_LITERAL("iii:devtools:");
    return stream.bytes < untraced.bytes || memcmp(stream.data, untraced.data, untraced.bytes) != 0;
}

/* What names take at most in an event or a record, with all that is not value. */
static uint64_t engine_names_bytes(const struct store_key *key, struct span event_type)
{
    return 6 * (key->stream.bytes + key->group.bytes + 2 * key->item.bytes + event_type.bytes) +
           1024;
}

/* What an event is made of, whoever wrote it. */
struct engine_event {
    enum envelope_event event;
    const struct store_group *group; /* after the write */
    struct span id;                  /* data NULL: none */
    struct span id_escaped;
    uint64_t item_hash;
    struct span event_type; /* ENVELOPE_EVENT */
    struct span data;
    const struct ring_trace *trace; /* NULL: none */
    uint64_t frame;                 /* of the log */
};

/* Encode the event and put it into the ring, not visible yet. */
static void engine_emit(struct engine *engine, const struct engine_event *event)
{
    const struct store_group *group = event->group;
    struct envelope envelope = {
        .event = event->event,
        .timestamp_ms = group->timestamp_ms,
        .seq = group->seq,
        .epoch = group->epoch,
        .stream_escaped = engine_present(group->stream_escaped),
        .group_escaped = engine_present(group->group_escaped),
        .id_escaped = event->id.data ? engine_present(event->id_escaped) : (struct span){0},
        .data = engine_value_or_null(event->data),
    };
    if (envelope.event == ENVELOPE_EVENT)
        envelope.event_type =
            span_of(engine->type_escaped, json_escape(engine->type_escaped, event->event_type));

    /* There is no way back behind an applied write: engine_write_problem() has made room for the
     * event before (and for the old value of a delete when it was set). */
    buffer_clear(&engine->frame);
    enum weir_status status = buffer_reserve(&engine->frame, envelope_bytes_max(&envelope));
    weir_assert(status == WEIR_OK);
    struct envelope_layout layout = envelope_encode(engine->frame.data, &envelope);

    struct ring_record record = {
        .previous_position = store_group_newest_position(engine->store, group->offset),
        .group_offset = group->offset,
        .group_hash = group->hash,
        .item_hash = event->id.data ? event->item_hash : 0,
        .seq = envelope.seq,
        .epoch = envelope.epoch,
        .timestamp_ms = envelope.timestamp_ms,
        .commit = event->frame,
        .kind = envelope.event,
        .frame_bytes = layout.frame_bytes,
        .json_offset = layout.json_offset,
        .names_offset = layout.names_offset,
        .data_offset = layout.data_offset,
        .data_bytes = layout.data_bytes,
        .id_bytes = event->id.data ? (uint32_t)event->id.bytes : UINT32_MAX,
    };
    status = ring_append(engine->ring, &record, span_of(engine->frame.data, layout.frame_bytes),
                         event->id, event->trace);
    weir_assert(status == WEIR_OK); /* its size was checked against the ring's limit */
    store_group_published(engine->store, group->offset, record.position);
    engine->counters->events++;
}

/* An applied write, on its way to the log and to everybody. */
static void engine_log(struct engine *engine, const struct engine_request *request,
                       const struct adapter_write *write, const struct adapter_outcome *outcome,
                       const struct engine_event *event)
{
    const struct store_group *group = event->group;
    struct wal_record record = {
        .kind = WAL_EVENT,
        .event = event->event,
        .step = (uint32_t)(group->next_ms - group->timestamp_ms),
        .epoch = group->epoch,
        .seq = group->seq,
        .timestamp_ms = group->timestamp_ms,
        .origin = request->id == 0 ? 0 : request->origin,
        .request = request->id,
        .is_answer_partial = outcome->errors.data != NULL,
        .stream = write->key.stream,
        .group = write->key.group,
        .item = write->key.item,
        .value = event->data,
    };
    if (write->kind == ADAPTER_EVENT) {
        record.event_type = write->event_type;
    } else if (!outcome->is_elsewhere) {
        record.kind = write->kind == ADAPTER_DELETE ? WAL_DELETE : WAL_SET;
        record.value = write->kind == ADAPTER_DELETE ? (struct span){0} : outcome->value;
    }
    commits_log(engine->commits, &record, group->offset);
}

/* A delete that found nothing: when it is asked again it must not find what came later. */
static void engine_log_answer(struct engine *engine, const struct engine_request *request,
                              const struct adapter_write *write)
{
    const struct wal_record record = {
        .kind = WAL_ANSWER,
        .timestamp_ms = write->now_ms,
        .origin = request->origin,
        .request = request->id,
        .value = SPAN_LITERAL("{\"old_value\":null}"),
    };
    commits_log_answer(engine->commits, &record);
}

static void engine_apply(struct engine *engine, const struct engine_request *request,
                         const struct adapter_write *write, const struct adapter_outcome *outcome)
{
    const struct store_change *change = outcome->change;
    const struct engine_event event = {
        .event = engine_event_kind(write, change),
        .group = &change->group,
        .id = write->key.item,
        .id_escaped = change->id_escaped,
        .item_hash = change->item_hash,
        .event_type = write->event_type,
        .data = write->kind == ADAPTER_DELETE  ? change->old_value
                : write->kind == ADAPTER_EVENT ? write->value
                                               : outcome->value,
        .trace = engine_is_traced(write->key.stream) ? &write->trace : NULL,
        .frame = commits_frame(engine->commits),
    };
    engine_emit(engine, &event);
    engine_log(engine, request, write, outcome, &event);
}

enum weir_status engine_replayed(struct engine *engine, const struct wal_position *position,
                                 const struct wal_record *record, const struct store_change *change)
{
    const struct engine_event event = {
        .event = (enum envelope_event)record->event,
        .group = &change->group,
        .id = record->item,
        .id_escaped = change->id_escaped,
        .item_hash = change->item_hash,
        .event_type = record->event_type,
        .data = record->kind == WAL_DELETE ? change->old_value : record->value,
        .frame = position->seq,
    };
    uint64_t bytes =
        event.data.bytes +
        engine_names_bytes(&(struct store_key){record->stream, record->group, record->item},
                           record->event_type);
    if (bytes > ring_record_bytes_max(engine->ring))
        return WEIR_TOO_LARGE;
    if (!ring_has_room(engine->ring, bytes))
        ring_publish(engine->ring);
    engine_emit(engine, &event);
    return WEIR_OK;
}

void engine_publish_replayed(struct engine *engine)
{
    ring_publish(engine->ring);
}

/* ---- completions of the adapter ---- */

static void engine_reply_written(struct engine *engine, const struct engine_request *request,
                                 const struct adapter_write *write,
                                 const struct adapter_outcome *outcome)
{
    const struct store_change *change = outcome->change;
    struct span old_value =
        change && change->existed ? engine_value_or_null(change->old_value) : SPAN_LITERAL("null");
    struct span errors_key = outcome->errors.data ? SPAN_LITERAL(",\"errors\":") : SPAN_LITERAL("");
    const struct span set[] = {SPAN_LITERAL("{\"old_value\":"),
                               old_value,
                               SPAN_LITERAL(",\"new_value\":"),
                               outcome->value,
                               errors_key,
                               outcome->errors,
                               SPAN_LITERAL("}")};
    const struct span deleted[] = {SPAN_LITERAL("{\"old_value\":"), old_value, SPAN_LITERAL("}")};
    const struct span sent[] = {SPAN_LITERAL("null")};

    if (write->kind == ADAPTER_SET || write->kind == ADAPTER_UPDATE)
        engine_reply_result(engine, request, set, sizeof set / sizeof set[0]);
    else if (write->kind == ADAPTER_DELETE)
        engine_reply_result(engine, request, deleted, sizeof deleted / sizeof deleted[0]);
    else
        engine_reply_result(engine, request, sent, 1);
}

static void engine_reply_failure(struct engine *engine, const struct engine_request *request,
                                 const struct adapter_outcome *outcome)
{
    const struct stream_function *function = stream_function_by_op(request->op);
    struct span sentence = outcome->sentence.data
                               ? outcome->sentence
                               : span_text(engine_failure_sentence(outcome->status));
    if (outcome->error_json.data)
        engine_reply_error_json(engine, request, outcome->error_json);
    else
        engine_reply_reason(engine, request, outcome->code ? outcome->code : function->error_code,
                            outcome->code ? function->name : NULL, sentence);
}

static void engine_written(void *context, uint64_t number, const struct adapter_write *write,
                           const struct adapter_outcome *outcome)
{
    struct engine *engine = context;
    struct engine_request request = engine_request_end(engine, number);
    if (engine->is_closing)
        return;
    if (outcome->status == WEIR_OK)
        engine_apply(engine, &request, write, outcome);
    else if (outcome->status == WEIR_EMPTY && request.id != 0)
        engine_log_answer(engine, &request, write);
    if (outcome->status == WEIR_OK ||
        (outcome->status == WEIR_EMPTY && write->kind == ADAPTER_DELETE))
        engine_reply_written(engine, &request, write, outcome);
    else
        engine_reply_failure(engine, &request, outcome);
    commits_when_full(engine->commits);
}

static void engine_answered(void *context, uint64_t number, const struct adapter_outcome *outcome)
{
    struct engine *engine = context;
    struct engine_request request = engine_request_end(engine, number);
    if (engine->is_closing)
        return;
    if (outcome->status == WEIR_OK && outcome->value.data)
        engine_reply_result(engine, &request, &outcome->value, 1);
    else if (outcome->status == WEIR_OK ||
             (outcome->status == WEIR_EMPTY && request.op == WIRE_OP_GET))
        engine_reply_none(engine, &request);
    else
        engine_reply_failure(engine, &request, outcome);
    commits_when_full(engine->commits);
}

/* ---- requests in ---- */

struct engine_input {
    struct store_key key;
    struct span event_type;
    struct span data;
    struct ring_trace trace;
};

/* NULL when the name is acceptable, else what is wrong with it. */
static const char *engine_name_problem(struct span name, bool needed)
{
    if (!name.data)
        return needed ? "a required name is missing" : NULL;
    if (name.bytes > NAME_BYTES_MAX)
        return "a name is longer than 4096 bytes";
    if (!json_is_utf8(name))
        return "a name is not UTF-8";
    return NULL;
}

static const char *engine_input_problem(const struct stream_function *function,
                                        const struct engine_input *input)
{
    const char *problem = engine_name_problem(input->key.stream, function->needs_stream);
    if (!problem)
        problem = engine_name_problem(input->key.group, function->needs_group);
    if (!problem)
        problem = engine_name_problem(input->key.item, function->needs_item);
    if (!problem)
        problem = engine_name_problem(input->event_type, function->needs_type);
    if (!problem && function->needs_data && input->data.bytes == 0)
        problem = function->op == WIRE_OP_UPDATE ? "ops is missing" : "data is missing";
    return problem;
}

/* What would not fit is refused before anything changes. */
static const char *engine_write_problem(void *context, const struct adapter_write *write,
                                        size_t value_bytes)
{
    struct engine *engine = context;
    if (engine->is_closing)
        return "the broker stops";
    if (value_bytes > engine->value_bytes_max)
        return "the value is larger than value_bytes_max";
    uint64_t bytes = value_bytes + engine_names_bytes(&write->key, write->event_type);
    if (bytes > ring_record_bytes_max(engine->ring))
        return "the event would take more than a fourth of the ring (ring_bytes)";
    buffer_clear(&engine->frame);
    if (buffer_reserve(&engine->frame, bytes) != WEIR_OK)
        return "no memory for the event";
    return commits_problem(engine->commits, bytes);
}

static enum adapter_write_kind engine_write_kind(enum wire_op op)
{
    switch (op) {
    case WIRE_OP_SET:
        return ADAPTER_SET;
    case WIRE_OP_DELETE:
        return ADAPTER_DELETE;
    case WIRE_OP_UPDATE:
        return ADAPTER_UPDATE;
    default:
        return ADAPTER_EVENT;
    }
}

/* When the log has failed, the newest writes are neither kept nor gone. */
static const char *engine_read_problem(const struct engine *engine,
                                       const struct stream_function *function,
                                       const struct store_key *key)
{
    if (!commits_failure(engine->commits) || !function->needs_group)
        return NULL;
    return store_check_committed(engine->store, key) == WEIR_PENDING
               ? "the log has failed, and whether the newest write here is kept is not known"
               : NULL;
}

static void engine_start_read(struct engine *engine, uint64_t number,
                              const struct stream_function *function,
                              const struct engine_input *input, uint64_t now_ms)
{
    struct adapter_read read = {.key = input->key, .trace = input->trace, .now_ms = now_ms};
    switch (function->op) {
    case WIRE_OP_GET:
        read.kind = ADAPTER_GET;
        break;
    case WIRE_OP_LIST:
        read.kind = ADAPTER_LIST;
        break;
    case WIRE_OP_LIST_GROUPS:
        read.kind = ADAPTER_LIST_GROUPS;
        break;
    default:
        read.kind = ADAPTER_LIST_ALL;
        break;
    }
    if (!custom_read(engine->custom, number, &read))
        engine->kind->read(engine->adapter, number, &read);
}

static void engine_refuse(struct engine *engine, const struct engine_request *asked,
                          const char *code, const char *problem)
{
    engine_reply_reason(engine, asked, code, NULL, span_text(problem));
    commits_when_full(engine->commits);
}

static void engine_start(struct engine *engine, const struct engine_request *asked,
                         const struct stream_function *function, const struct engine_input *input,
                         uint64_t now_ms)
{
    const struct adapter_write write = {
        .kind = engine_write_kind(function->op),
        .key = input->key,
        .value = function->needs_data ? input->data : (struct span){0},
        .event_type = input->event_type,
        .trace = input->trace,
        .now_ms = now_ms,
    };
    engine->counters->requests++;
    const char *problem = engine_input_problem(function, input);
    if (problem) {
        engine_refuse(engine, asked, "deserialization_error", problem);
        return;
    }
    if (function->is_read)
        problem = engine_read_problem(engine, function, &input->key);
    if (write.kind == ADAPTER_UPDATE &&
        write.value.bytes > UPDATE_OPS_VALUES * engine->value_bytes_max)
        problem = "the ops are larger than twice value_bytes_max";
    uint64_t number = 0;
    struct engine_request *request = problem ? NULL : engine_request_begin(engine, &number);
    if (!request) {
        engine_refuse(engine, asked, function->error_code,
                      problem ? problem : "too many requests wait for the adapter");
        return;
    }
    *request = *asked;
    if (function->is_read)
        engine_start_read(engine, number, function, input, now_ms);
    else if (!custom_write(engine->custom, number, &write))
        engine->kind->write(engine->adapter, number, &write);
}

enum weir_status engine_stream(struct engine *engine, struct peer_handle peer, uint64_t origin,
                               const struct wire_message *message, uint64_t now_ms)
{
    const struct stream_function *function = stream_function_by_op(message->fields[0].number);
    if (!function)
        return WEIR_INVALID;
    const struct engine_request asked = {
        .peer = peer,
        .origin = origin,
        .op = function->op,
        .id = message->id,
        .is_unhurried = (message->flags & WIRE_FLAG_UNHURRIED) != 0,
    };
    const struct engine_input input = {
        .key = {message->fields[1].span, message->fields[2].span, message->fields[3].span},
        .event_type = message->fields[4].span,
        .data = message->fields[5].span,
        .trace = {message->fields[6].span, message->fields[7].span},
    };
    engine_start(engine, &asked, function, &input, now_ms);
    return WEIR_OK;
}

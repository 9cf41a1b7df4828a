#include "broker/engine.h"

#include <stdlib.h>

#include "broker/bounds.h"
#include "shm/envelope.h"
#include "shm/json.h"
#include "shm/stream_functions.h"

/* One answer, encoded and waiting for the commit point. */
struct engine_reply {
    struct peer_handle peer;
    uint64_t id;
    /* Parts in batch.bytes; offset SIZE_MAX: nil. */
    size_t code_offset, code_bytes;
    size_t text_offset, text_bytes;
    size_t result_offset, result_bytes;
    size_t error_offset, error_bytes; /* an adapter's own error object */
};

/* A request an adapter has not completed yet. */
struct engine_request {
    struct peer_handle peer;
    enum wire_op op;
    uint64_t id;
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
    uint64_t batch_ring_bytes_max;

    struct engine_request *requests;
    uint32_t free_request;

    struct {
        struct engine_reply *replies; /* BATCH_REPLIES_MAX */
        unsigned reply_count;
        struct buffer bytes;
        uint64_t ring_start; /* ring head at the last commit */
        bool used;           /* the store was changed or read: its turn has to end */
    } batch;
    bool is_closing; /* nobody is there to be answered any more */

    struct buffer frame; /* one event */
    char type_escaped[NAME_ESCAPED_BYTES_MAX];
};

/* ---- open and close ---- */

static void engine_written(void *context, uint64_t request, const struct adapter_write *write,
                           const struct adapter_outcome *outcome);
static void engine_answered(void *context, uint64_t request, const struct adapter_outcome *outcome);
static const char *engine_event_problem(void *context, const struct adapter_write *write,
                                        size_t value_bytes);

static enum weir_status engine_open_memory(struct engine *engine, struct weir_error *error)
{
    engine->requests = calloc(ENGINE_REQUESTS_MAX, sizeof *engine->requests);
    engine->batch.replies = calloc(BATCH_REPLIES_MAX, sizeof *engine->batch.replies);
    buffer_init(&engine->batch.bytes, 3 * (size_t)WIRE_FRAME_BYTES_MAX + ANSWER_BYTES_MAX);
    buffer_init(&engine->frame, WIRE_FRAME_BYTES_MAX);
    if (!engine->requests || !engine->batch.replies)
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
    /* A record takes at most a share of the ring; a batch less, so that a reader keeps up with
     * whole batches. */
    opened->batch_ring_bytes_max =
        ring_record_bytes_max(opened->ring) * RING_RECORD_SHARE / BATCH_RING_SHARE;
    opened->batch.ring_start = ring_head(opened->ring);
    status = store_open(&opened->store, options->segment, options->readers, &options->store, error);
    if (status != WEIR_OK)
        goto failed;
    const struct adapter_environment environment = {
        .segment = options->segment,
        .store = opened->store,
        .value_bytes_max = options->value_bytes_max,
        .done = {engine_written, engine_answered, engine_event_problem, opened},
    };
    status = opened->kind->open(&opened->adapter, &environment, error);
    if (status == WEIR_OK && options->custom) {
        const struct custom_store inner = {opened->kind, opened->adapter};
        status = custom_open(&opened->custom, options->custom, &environment, &inner, error);
    }
    if (status != WEIR_OK)
        goto failed;
    *engine = opened;
    return WEIR_OK;

failed:
    engine_close(opened);
    return status;
}

void engine_close(struct engine *engine)
{
    if (!engine)
        return;
    engine->is_closing = true;
    custom_close(engine->custom); /* what waits there may still go to the adapter */
    if (engine->adapter)
        engine->kind->close(engine->adapter);
    if (engine->store)
        store_close(engine->store);
    if (engine->ring)
        ring_writer_close(engine->ring);
    buffer_fini(&engine->frame);
    buffer_fini(&engine->batch.bytes);
    free(engine->batch.replies);
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

bool engine_has_uncommitted(const struct engine *engine)
{
    return engine->batch.used;
}

/* ---- commit ---- */

static struct wire_field engine_part(const struct engine *engine, size_t offset, size_t bytes)
{
    if (offset == SIZE_MAX)
        return WIRE_NIL;
    return WIRE_SPAN(span_of(engine->batch.bytes.data + offset, bytes));
}

static enum weir_status engine_send_reply(struct engine *engine, const struct engine_reply *reply)
{
    const struct wire_field fields[4] = {
        engine_part(engine, reply->code_offset, reply->code_bytes),
        engine_part(engine, reply->text_offset, reply->text_bytes),
        engine_part(engine, reply->result_offset, reply->result_bytes),
        engine_part(engine, reply->error_offset, reply->error_bytes),
    };
    return engine->output.send(engine->output.context, reply->peer, WIRE_STREAM_RESULT, reply->id,
                               fields);
}

/* What no frame holds is still answered. */
static void engine_send_too_large(struct engine *engine, const struct engine_reply *reply)
{
    static const char sentence[] = "the answer is larger than a message may be";
    const struct wire_field fields[4] = {WIRE_SPAN(SPAN_LITERAL("serialization_error")),
                                         WIRE_SPAN(SPAN_LITERAL(sentence)), WIRE_NIL, WIRE_NIL};
    if (engine->output.send(engine->output.context, reply->peer, WIRE_STREAM_RESULT, reply->id,
                            fields) != WEIR_OK)
        engine->counters->replies_lost++;
}

static void engine_release_replies(struct engine *engine)
{
    for (unsigned index = 0; index < engine->batch.reply_count; index++) {
        const struct engine_reply *reply = &engine->batch.replies[index];
        enum weir_status status = engine_send_reply(engine, reply);
        if (status == WEIR_TOO_LARGE)
            engine_send_too_large(engine, reply);
        else if (status != WEIR_OK)
            engine->counters->replies_lost++;
    }
    engine->batch.reply_count = 0;
    buffer_clear(&engine->batch.bytes);
    if (engine->batch.bytes.capacity_bytes > 4 * BATCH_REPLY_BYTES) {
        size_t limit_bytes = engine->batch.bytes.limit_bytes;
        buffer_fini(&engine->batch.bytes);
        buffer_init(&engine->batch.bytes, limit_bytes);
    }
}

static void engine_publish(struct engine *engine)
{
    if (ring_head(engine->ring) == engine->batch.ring_start)
        return;
    ring_publish(engine->ring);
    engine->batch.ring_start = ring_head(engine->ring);
    engine->counters->wakes += readers_wake(engine->readers);
}

void engine_commit(struct engine *engine)
{
    if (!engine->batch.used)
        return;
    engine->batch.used = false;
    engine->counters->commits++;
    engine_publish(engine);
    engine_release_replies(engine);
    store_turn_end(engine->store);
}

static void engine_commit_when_full(struct engine *engine)
{
    if (engine->batch.reply_count >= BATCH_REPLIES_MAX ||
        engine->batch.bytes.bytes >= BATCH_REPLY_BYTES ||
        ring_head(engine->ring) - engine->batch.ring_start >= engine->batch_ring_bytes_max)
        engine_commit(engine);
}

/* ---- replies ---- */

static bool engine_keep(struct engine *engine, struct span part, size_t *offset, size_t *bytes)
{
    *offset = engine->batch.bytes.bytes;
    *bytes = part.bytes;
    return buffer_append(&engine->batch.bytes, part) == WEIR_OK;
}

static struct engine_reply *engine_reply_begin(struct engine *engine,
                                               const struct engine_request *request)
{
    if (request->id == 0)
        return NULL;
    weir_assert(engine->batch.reply_count < BATCH_REPLIES_MAX);
    struct engine_reply *reply = &engine->batch.replies[engine->batch.reply_count++];
    *reply = (struct engine_reply){
        .peer = request->peer,
        .id = request->id,
        .code_offset = SIZE_MAX,
        .text_offset = SIZE_MAX,
        .result_offset = SIZE_MAX,
        .error_offset = SIZE_MAX,
    };
    return reply;
}

/* The batch's memory is at its end: the answer becomes an error that needs none. */
static void engine_reply_abandon(struct engine *engine, struct engine_reply *reply)
{
    struct engine_reply lost = *reply;
    engine->batch.reply_count--;
    engine_send_too_large(engine, &lost);
}

/* The reason is `subject` (NULL: none), a colon, and the sentence. */
static void engine_reply_reason(struct engine *engine, const struct engine_request *request,
                                const char *code, const char *subject, struct span sentence)
{
    engine->counters->request_errors++;
    engine->batch.used = true;
    struct engine_reply *reply = engine_reply_begin(engine, request);
    if (!reply)
        return;
    struct buffer *bytes = &engine->batch.bytes;
    bool kept = engine_keep(engine, span_text(code), &reply->code_offset, &reply->code_bytes);
    reply->text_offset = bytes->bytes;
    if (kept && subject)
        kept = buffer_append(bytes, span_text(subject)) == WEIR_OK &&
               buffer_append(bytes, SPAN_LITERAL(": ")) == WEIR_OK;
    kept = kept && buffer_append(bytes, sentence) == WEIR_OK;
    reply->text_bytes = bytes->bytes - reply->text_offset;
    if (!kept)
        engine_reply_abandon(engine, reply);
}

static void engine_reply_error(struct engine *engine, const struct engine_request *request,
                               const char *code, const char *sentence)
{
    engine_reply_reason(engine, request, code, NULL, span_text(sentence));
}

/* The error object of a worker's function, as it came. */
static void engine_reply_error_json(struct engine *engine, const struct engine_request *request,
                                    struct span error_json)
{
    engine->counters->request_errors++;
    struct engine_reply *reply = engine_reply_begin(engine, request);
    if (reply && !engine_keep(engine, error_json, &reply->error_offset, &reply->error_bytes))
        engine_reply_abandon(engine, reply);
}

/* The result is `parts` joined. */
static void engine_reply_result(struct engine *engine, const struct engine_request *request,
                                const struct span *parts, unsigned part_count)
{
    struct engine_reply *reply = engine_reply_begin(engine, request);
    if (!reply)
        return;
    reply->result_offset = engine->batch.bytes.bytes;
    for (unsigned index = 0; index < part_count; index++) {
        if (buffer_append(&engine->batch.bytes, parts[index]) != WEIR_OK) {
            engine_reply_abandon(engine, reply);
            return;
        }
    }
    reply->result_bytes = engine->batch.bytes.bytes - reply->result_offset;
}

static void engine_reply_none(struct engine *engine, const struct engine_request *request)
{
    (void)engine_reply_begin(engine, request);
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

/* Encode the event of `outcome` and put it into the ring, not visible yet. */
static void engine_emit(struct engine *engine, const struct adapter_write *write,
                        const struct adapter_outcome *outcome)
{
    const struct store_change *change = outcome->change;
    struct span data = write->kind == ADAPTER_DELETE  ? change->old_value
                       : write->kind == ADAPTER_EVENT ? write->value
                                                      : outcome->value;
    struct span id = write->key.item;
    struct envelope envelope = {
        .event = engine_event_kind(write, change),
        .timestamp_ms = change->group.timestamp_ms,
        .seq = change->group.seq,
        .epoch = change->group.epoch,
        .stream_escaped = engine_present(change->group.stream_escaped),
        .group_escaped = engine_present(change->group.group_escaped),
        .id_escaped = id.data ? engine_present(change->id_escaped) : (struct span){0},
        .data = engine_value_or_null(data),
    };
    if (envelope.event == ENVELOPE_EVENT)
        envelope.event_type =
            span_of(engine->type_escaped, json_escape(engine->type_escaped, write->event_type));

    /* There is no way back behind an applied write: engine_event_problem() has made room for the
     * event before (and for the old value of a delete when it was set). */
    buffer_clear(&engine->frame);
    enum weir_status status = buffer_reserve(&engine->frame, envelope_bytes_max(&envelope));
    weir_assert(status == WEIR_OK);
    struct envelope_layout layout = envelope_encode(engine->frame.data, &envelope);

    struct ring_record record = {
        .previous_position = change->group.newest_position,
        .group_offset = change->group.offset,
        .group_hash = change->group.hash,
        .item_hash = id.data ? change->item_hash : 0,
        .seq = envelope.seq,
        .epoch = envelope.epoch,
        .timestamp_ms = envelope.timestamp_ms,
        .kind = envelope.event,
        .frame_bytes = layout.frame_bytes,
        .json_offset = layout.json_offset,
        .names_offset = layout.names_offset,
        .data_offset = layout.data_offset,
        .data_bytes = layout.data_bytes,
        .id_bytes = id.data ? (uint32_t)id.bytes : UINT32_MAX,
    };
    status = ring_append(engine->ring, &record, span_of(engine->frame.data, layout.frame_bytes), id,
                         engine_is_traced(write->key.stream) ? &write->trace : NULL);
    weir_assert(status == WEIR_OK); /* its size was checked against the ring's limit */
    store_group_published(engine->store, change->group.offset, record.position);
    engine->counters->events++;
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
    engine->batch.used = true;
    if (outcome->status == WEIR_OK)
        engine_emit(engine, write, outcome);
    if (outcome->status == WEIR_OK ||
        (outcome->status == WEIR_EMPTY && write->kind == ADAPTER_DELETE))
        engine_reply_written(engine, &request, write, outcome);
    else
        engine_reply_failure(engine, &request, outcome);
    engine_commit_when_full(engine);
}

static void engine_answered(void *context, uint64_t number, const struct adapter_outcome *outcome)
{
    struct engine *engine = context;
    struct engine_request request = engine_request_end(engine, number);
    if (engine->is_closing)
        return;
    engine->batch.used = true;
    if (outcome->status == WEIR_OK && outcome->value.data)
        engine_reply_result(engine, &request, &outcome->value, 1);
    else if (outcome->status == WEIR_OK ||
             (outcome->status == WEIR_EMPTY && request.op == WIRE_OP_GET))
        engine_reply_none(engine, &request);
    else
        engine_reply_failure(engine, &request, outcome);
    engine_commit_when_full(engine);
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
static const char *engine_event_problem(void *context, const struct adapter_write *write,
                                        size_t value_bytes)
{
    struct engine *engine = context;
    if (value_bytes > engine->value_bytes_max)
        return "the value is larger than value_bytes_max";
    uint64_t names = write->key.stream.bytes + write->key.group.bytes + 2 * write->key.item.bytes +
                     write->event_type.bytes;
    if (value_bytes + 6 * names + 1024 > ring_record_bytes_max(engine->ring))
        return "the event would take more than a fourth of the ring (ring_bytes)";
    buffer_clear(&engine->frame);
    if (buffer_reserve(&engine->frame, value_bytes + 6 * names + 1024) != WEIR_OK)
        return "no memory for the event";
    return NULL;
}

/* The event of an update is looked at when its value is known. */
static const char *engine_write_problem(struct engine *engine, const struct adapter_write *write)
{
    if (write->kind != ADAPTER_UPDATE)
        return engine_event_problem(engine, write, write->value.bytes);
    return write->value.bytes > UPDATE_OPS_VALUES * engine->value_bytes_max
               ? "the ops are larger than twice value_bytes_max"
               : NULL;
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
        engine_publish(engine); /* the snapshot is taken at what readers can see */
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
    engine_reply_error(engine, asked, code, problem);
    engine_commit_when_full(engine);
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
    if (!function->is_read)
        problem = engine_write_problem(engine, &write);
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

enum weir_status engine_stream(struct engine *engine, struct peer_handle peer,
                               const struct wire_message *message, uint64_t now_ms)
{
    const struct stream_function *function = stream_function_by_op(message->fields[0].number);
    if (!function)
        return WEIR_INVALID;
    const struct engine_request asked = {.peer = peer, .op = function->op, .id = message->id};
    const struct engine_input input = {
        .key = {message->fields[1].span, message->fields[2].span, message->fields[3].span},
        .event_type = message->fields[4].span,
        .data = message->fields[5].span,
        .trace = {message->fields[6].span, message->fields[7].span},
    };
    engine_start(engine, &asked, function, &input, now_ms);
    return WEIR_OK;
}

#include "adapters/custom.h"

#include <stdlib.h>

#include "adapters/outcome.h"
#include "adapters/update.h"
#include "shm/json.h"
#include "shm/stream_functions.h"

enum {
    NAME_BUCKETS = 4096, /* powers of two */
    GROUP_BUCKETS = 4096,
    REASON_BYTES_MAX = 512,          /* of a worker's error quoted in a sentence */
    BUFFER_KEEP_BYTES = 1024 * 1024, /* a buffer larger than this is given back after use */
};

#define AWAY_SENTENCE                                                                              \
    "the worker that keeps this stream is away: its function is not registered at present"

enum operation_kind { OPERATION_WRITE, OPERATION_READ };

enum operation_phase {
    PHASE_ONLY,       /* one call, or none yet */
    PHASE_UPDATE_GET, /* an update without a function of its own: its parts */
    PHASE_UPDATE_SET,
};

struct operation {
    struct operation *queue_next; /* of its group, of its stream's lists, or of the free ones */
    struct operation *open_next, *open_previous; /* of its stream's writes, in their order */
    struct stream_name *name;                    /* NULL: free */
    struct group *group;                         /* of a write, and of a read that waits */
    uint64_t request;
    uint64_t number; /* of all writes and lists of groups, as they came */
    uint64_t given_ms;
    uint32_t generation;
    enum operation_kind kind;
    enum operation_phase phase;
    bool passes; /* to the store's adapter, when its turn comes */
    struct adapter_write write;
    enum adapter_read_kind read_kind;
    char *text; /* its names, trace and value */
    char *kept; /* of an update between its parts */
    size_t text_bytes, kept_bytes;
    struct span old_value, errors; /* in `kept` */
};

/* A stream that is, or was, a worker's. */
struct stream_name {
    struct stream_name *bucket_next;
    uint64_t hash;
    unsigned present, known;                      /* bit of each operation (enum wire_op) */
    struct operation *writes_first, *writes_last; /* open */
    struct operation *lists_first, *lists_last;   /* of groups; they wait for writes */
    uint32_t open_count;
    size_t bytes;
    char text[];
};

/* Exists while a write is under way: the first of its queue. */
struct group {
    struct group *bucket_next;
    uint64_t hash;
    struct stream_name *name;
    struct operation *first, *last;
    size_t bytes;
    char text[];
};

struct custom {
    struct custom_options options;
    struct adapter_environment environment;
    struct custom_store store;
    struct update *update;
    uint64_t hash_seed;
    struct stream_name *names[NAME_BUCKETS];
    struct group *groups[GROUP_BUCKETS];
    uint32_t name_count;
    uint64_t name_bytes;
    bool is_overfull; /* a stream could not be remembered */
    struct operation *operations;
    struct operation *free_operation;
    uint64_t kept_bytes;
    uint64_t number;
    uint64_t now_ms;
    struct buffer input;     /* of the call being made */
    struct buffer sentence;  /* of the failure being told */
    struct buffer old_value; /* compacted parts of the answer at hand */
    struct buffer new_value;
    struct buffer errors;
};

/* ---- open and close ---- */

static enum weir_status custom_open_memory(struct custom *custom)
{
    uint32_t count = custom->options.operations_max;
    custom->operations = calloc(count, sizeof *custom->operations);
    custom->update = update_open(custom->environment.value_bytes_max);
    if (!custom->operations || !custom->update)
        return WEIR_NO_MEMORY;
    for (uint32_t index = count; index-- > 0;) {
        custom->operations[index].queue_next = custom->free_operation;
        custom->free_operation = &custom->operations[index];
    }
    return WEIR_OK;
}

enum weir_status custom_open(struct custom **custom, const struct custom_options *options,
                             const struct adapter_environment *environment,
                             const struct custom_store *store, struct weir_error *error)
{
    struct custom *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for custom adapters");
    opened->options = *options;
    if (opened->options.operations_max == 0)
        opened->options.operations_max = CUSTOM_OPERATIONS_MAX;
    if (opened->options.stream_operations_max == 0)
        opened->options.stream_operations_max = CUSTOM_STREAM_OPERATIONS_MAX;
    if (opened->options.streams_max == 0)
        opened->options.streams_max = CUSTOM_STREAMS_MAX;
    if (opened->options.kept_bytes_max == 0)
        opened->options.kept_bytes_max = CUSTOM_KEPT_BYTES_MAX;
    opened->environment = *environment;
    opened->store = *store;
    opened->hash_seed = segment_hash_seed(environment->segment);
    buffer_init(&opened->input, WIRE_FRAME_BYTES_MAX);
    buffer_init(&opened->sentence, 64 * 1024);
    buffer_init(&opened->old_value, WIRE_FRAME_BYTES_MAX);
    buffer_init(&opened->new_value, WIRE_FRAME_BYTES_MAX);
    buffer_init(&opened->errors, WIRE_FRAME_BYTES_MAX);
    if (custom_open_memory(opened) != WEIR_OK) {
        custom_close(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for custom adapters");
    }
    *custom = opened;
    return WEIR_OK;
}

static void operation_complete(struct custom *custom, const struct operation *operation,
                               const struct adapter_outcome *outcome)
{
    const struct adapter_completions *done = &custom->environment.done;
    if (operation->kind == OPERATION_WRITE)
        done->written(done->context, operation->request, &operation->write, outcome);
    else
        done->answered(done->context, operation->request, outcome);
}

static void custom_close_operations(struct custom *custom)
{
    const struct adapter_outcome closed = {.status = WEIR_CLOSED};
    for (uint32_t index = 0; custom->operations && index < custom->options.operations_max;
         index++) {
        struct operation *operation = &custom->operations[index];
        if (!operation->name)
            continue;
        operation_complete(custom, operation, &closed);
        free(operation->text);
        free(operation->kept);
    }
    free(custom->operations);
}

void custom_close(struct custom *custom)
{
    if (!custom)
        return;
    custom_close_operations(custom);
    for (unsigned bucket = 0; bucket < GROUP_BUCKETS; bucket++) {
        for (struct group *group = custom->groups[bucket], *next; group; group = next) {
            next = group->bucket_next;
            free(group);
        }
    }
    for (unsigned bucket = 0; bucket < NAME_BUCKETS; bucket++) {
        for (struct stream_name *name = custom->names[bucket], *next; name; name = next) {
            next = name->bucket_next;
            free(name);
        }
    }
    update_close(custom->update);
    buffer_fini(&custom->input);
    buffer_fini(&custom->sentence);
    buffer_fini(&custom->old_value);
    buffer_fini(&custom->new_value);
    buffer_fini(&custom->errors);
    free(custom);
}

/* ---- streams ---- */

static struct span name_span(const struct stream_name *name)
{
    return span_of(name->text, name->bytes);
}

static struct stream_name **custom_find_name(struct custom *custom, struct span stream)
{
    uint64_t hash = store_item_hash(custom->hash_seed, stream);
    struct stream_name **at = &custom->names[hash & (NAME_BUCKETS - 1)];
    while (*at && !((*at)->hash == hash && span_equal(name_span(*at), stream)))
        at = &(*at)->bucket_next;
    return at;
}

static struct stream_name *custom_make_name(struct custom *custom, struct span stream)
{
    if (custom->name_count >= custom->options.streams_max ||
        custom->name_bytes + stream.bytes > CUSTOM_STREAMS_BYTES_MAX)
        return NULL;
    struct stream_name *name = calloc(1, sizeof *name + stream.bytes);
    if (!name)
        return NULL;
    name->hash = store_item_hash(custom->hash_seed, stream);
    name->bytes = stream.bytes;
    if (stream.bytes > 0)
        memcpy(name->text, stream.data, stream.bytes);
    struct stream_name **bucket = &custom->names[name->hash & (NAME_BUCKETS - 1)];
    name->bucket_next = *bucket;
    *bucket = name;
    custom->name_count++;
    custom->name_bytes += stream.bytes;
    return name;
}

/* Forget a stream of which nothing is left. */
static void custom_release_name(struct custom *custom, struct stream_name *name)
{
    if (name->known != 0 || name->open_count > 0)
        return;
    struct stream_name **at = custom_find_name(custom, name_span(name));
    *at = name->bucket_next;
    custom->name_count--;
    custom->name_bytes -= name->bytes;
    custom->options.seam.changed(custom->options.seam.context, name_span(name), false);
    free(name);
}

static unsigned op_bit(enum wire_op op)
{
    return 1u << op;
}

/* `op` is there now: can the values that a subscriber is to see be read by it, and all others that
 * were there before as well? */
static bool name_can_be_read_now(const struct stream_name *name, enum wire_op op)
{
    const unsigned reads = op_bit(WIRE_OP_GET) | op_bit(WIRE_OP_LIST);
    return (op_bit(op) & reads) != 0 && (name->known & ~name->present & reads) == 0;
}

void custom_function_changed(struct custom *custom, struct span id, bool exists)
{
    struct span stream;
    const struct stream_function *function = stream_function_replaced_by(id, &stream);
    if (!function)
        return;
    const struct custom_seam *seam = &custom->options.seam;
    struct stream_name *name = *custom_find_name(custom, stream);
    if (!name && exists) {
        name = custom_make_name(custom, stream);
        custom->is_overfull |= !name;
        if (!name)
            seam->changed(seam->context, (struct span){0}, true);
    }
    if (!name)
        return;
    if (exists) {
        bool is_new = name->known == 0;
        name->present |= op_bit(function->op);
        name->known |= op_bit(function->op);
        if (is_new || name_can_be_read_now(name, function->op))
            seam->changed(seam->context, stream, true);
        return;
    }
    name->present &= ~op_bit(function->op);
    if (custom->options.fallback)
        name->known = name->present;
    custom_release_name(custom, name);
}

void custom_tell_streams(const struct custom *custom,
                         void (*tell)(void *context, struct span stream), void *context)
{
    for (unsigned bucket = 0; bucket < NAME_BUCKETS; bucket++) {
        const struct stream_name *name = custom->names[bucket];
        for (; name; name = name->bucket_next)
            tell(context, name_span(name));
    }
    if (custom->is_overfull)
        tell(context, (struct span){0});
}

enum way { WAY_STORE, WAY_CALL, WAY_PARTS, WAY_AWAY };

static enum way name_way(const struct stream_name *name, enum wire_op op)
{
    const unsigned parts = op_bit(WIRE_OP_GET) | op_bit(WIRE_OP_SET);
    if (name->present & op_bit(op))
        return WAY_CALL;
    if (name->known & op_bit(op))
        return WAY_AWAY;
    if (op == WIRE_OP_UPDATE && (name->present & parts) == parts)
        return WAY_PARTS;
    if (op == WIRE_OP_UPDATE && (name->known & parts) == parts)
        return WAY_AWAY;
    return WAY_STORE;
}

/* ---- groups ---- */

static uint64_t group_hash(const struct custom *custom, const struct store_key *key)
{
    return store_group_hash(custom->hash_seed, key->stream, key->group);
}

static struct group **custom_find_group(struct custom *custom, const struct stream_name *name,
                                        const struct store_key *key)
{
    uint64_t hash = group_hash(custom, key);
    struct group **at = &custom->groups[hash & (GROUP_BUCKETS - 1)];
    while (*at && !((*at)->hash == hash && (*at)->name == name &&
                    span_equal(span_of((*at)->text, (*at)->bytes), key->group)))
        at = &(*at)->bucket_next;
    return at;
}

static struct group *custom_make_group(struct custom *custom, struct stream_name *name,
                                       const struct store_key *key)
{
    struct group *group = calloc(1, sizeof *group + key->group.bytes);
    if (!group)
        return NULL;
    group->hash = group_hash(custom, key);
    group->name = name;
    group->bytes = key->group.bytes;
    if (group->bytes > 0)
        memcpy(group->text, key->group.data, group->bytes);
    struct group **bucket = &custom->groups[group->hash & (GROUP_BUCKETS - 1)];
    group->bucket_next = *bucket;
    *bucket = group;
    return group;
}

static void custom_free_group(struct custom *custom, struct group *group)
{
    struct group **at = &custom->groups[group->hash & (GROUP_BUCKETS - 1)];
    while (*at != group) /* ends: every group is in its bucket */
        at = &(*at)->bucket_next;
    *at = group->bucket_next;
    free(group);
}

static void group_push(struct group *group, struct operation *operation)
{
    operation->group = group;
    operation->queue_next = NULL;
    if (group->last)
        group->last->queue_next = operation;
    else
        group->first = operation;
    group->last = operation;
}

static void group_pop(struct group *group)
{
    group->first = group->first->queue_next;
    if (!group->first)
        group->last = NULL;
}

/* ---- operations ---- */

static void name_link_write(struct stream_name *name, struct operation *operation)
{
    operation->open_next = NULL;
    operation->open_previous = name->writes_last;
    if (name->writes_last)
        name->writes_last->open_next = operation;
    else
        name->writes_first = operation;
    name->writes_last = operation;
}

static void name_unlink_write(struct stream_name *name, struct operation *operation)
{
    if (operation->open_previous)
        operation->open_previous->open_next = operation->open_next;
    else
        name->writes_first = operation->open_next;
    if (operation->open_next)
        operation->open_next->open_previous = operation->open_previous;
    else
        name->writes_last = operation->open_previous;
}

/* Copy what `write` points to; its value only when it has to wait. */
static bool operation_copy(struct custom *custom, struct operation *operation, bool with_value)
{
    struct adapter_write *write = &operation->write;
    struct span value = with_value ? write->value : (struct span){0};
    size_t bytes = write->key.stream.bytes + write->key.group.bytes + write->key.item.bytes +
                   value.bytes + write->event_type.bytes + write->trace.traceparent.bytes +
                   write->trace.baggage.bytes;
    if (custom->kept_bytes + bytes > custom->options.kept_bytes_max)
        return false;
    char *end = malloc(bytes + 1);
    if (!end)
        return false;
    operation->text = end;
    operation->text_bytes = bytes;
    custom->kept_bytes += bytes;
    write->key.stream = span_put(&end, write->key.stream);
    write->key.group = span_put(&end, write->key.group);
    write->key.item = span_put(&end, write->key.item);
    write->event_type = span_put(&end, write->event_type);
    write->trace.traceparent = span_put(&end, write->trace.traceparent);
    write->trace.baggage = span_put(&end, write->trace.baggage);
    if (with_value)
        write->value = span_put(&end, write->value);
    return true;
}

static struct operation *operation_make(struct custom *custom, struct stream_name *name,
                                        uint64_t request, enum operation_kind kind)
{
    struct operation *operation = custom->free_operation;
    if (!operation || name->open_count >= custom->options.stream_operations_max)
        return NULL;
    custom->free_operation = operation->queue_next;
    *operation = (struct operation){
        .generation = operation->generation + 1,
        .name = name,
        .request = request,
        .kind = kind,
        .number = ++custom->number,
        .given_ms = custom->now_ms,
    };
    name->open_count++;
    return operation;
}

static void operation_free(struct custom *custom, struct operation *operation)
{
    struct stream_name *name = operation->name;
    free(operation->text);
    free(operation->kept);
    custom->kept_bytes -= operation->text_bytes + operation->kept_bytes;
    *operation = (struct operation){.generation = operation->generation,
                                    .queue_next = custom->free_operation};
    custom->free_operation = operation;
    name->open_count--;
}

static uint64_t operation_token(const struct custom *custom, const struct operation *operation)
{
    return (uint64_t)operation->generation << 32 | (uint64_t)(operation - custom->operations);
}

static struct operation *custom_find_operation(struct custom *custom, uint64_t token)
{
    uint32_t index = (uint32_t)token;
    if (index >= custom->options.operations_max)
        return NULL;
    struct operation *operation = &custom->operations[index];
    return operation->name && operation->generation == (uint32_t)(token >> 32) ? operation : NULL;
}

static enum wire_op operation_op(const struct operation *operation)
{
    static const enum wire_op writes[] = {[ADAPTER_SET] = WIRE_OP_SET,
                                          [ADAPTER_DELETE] = WIRE_OP_DELETE,
                                          [ADAPTER_EVENT] = WIRE_OP_SEND,
                                          [ADAPTER_UPDATE] = WIRE_OP_UPDATE};
    static const enum wire_op reads[] = {[ADAPTER_GET] = WIRE_OP_GET,
                                         [ADAPTER_LIST] = WIRE_OP_LIST,
                                         [ADAPTER_LIST_GROUPS] = WIRE_OP_LIST_GROUPS,
                                         [ADAPTER_LIST_ALL] = WIRE_OP_LIST_ALL};
    return operation->kind == OPERATION_WRITE ? writes[operation->write.kind]
                                              : reads[operation->read_kind];
}

/* ---- calls ---- */

static enum weir_status input_put(struct buffer *input, const char *before, struct span name)
{
    enum weir_status status = buffer_append(input, span_text(before));
    return status == WEIR_OK ? json_append_string(input, name) : status;
}

/* The object a function gets; `value_key` NULL: no value. */
static enum weir_status custom_print_input(struct custom *custom, const struct store_key *key,
                                           const struct stream_function *function,
                                           const char *value_key, struct span value)
{
    struct buffer *input = &custom->input;
    buffer_clear(input);
    enum weir_status status = input_put(input, "{\"stream_name\":", key->stream);
    if (status == WEIR_OK && function->needs_group)
        status = input_put(input, ",\"group_id\":", key->group);
    if (status == WEIR_OK && function->needs_item)
        status = input_put(input, ",\"item_id\":", key->item);
    if (status == WEIR_OK && value_key)
        status = buffer_append(input, span_text(value_key));
    if (status == WEIR_OK && value_key)
        status = buffer_append(input, value);
    if (status == WEIR_OK)
        status = buffer_append(input, SPAN_LITERAL("}"));
    return status;
}

/* `stream::set(<name>)` into custom->sentence, which no call needs. */
static enum weir_status custom_print_function(struct custom *custom,
                                              const struct stream_function *function,
                                              struct span stream)
{
    buffer_clear(&custom->sentence);
    enum weir_status status = buffer_append(&custom->sentence, span_text(function->name));
    if (status == WEIR_OK)
        status = buffer_append(&custom->sentence, SPAN_LITERAL("("));
    if (status == WEIR_OK)
        status = buffer_append(&custom->sentence, stream);
    if (status == WEIR_OK)
        status = buffer_append(&custom->sentence, SPAN_LITERAL(")"));
    return status;
}

/* Make the call of `op` for the operation; custom->input is its data. */
static enum weir_status custom_call(struct custom *custom, const struct operation *operation,
                                    const struct stream_function *function)
{
    enum weir_status status = custom_print_function(custom, function, operation->write.key.stream);
    if (status != WEIR_OK)
        return status;
    const struct custom_call call = {
        .function = buffer_span(&custom->sentence),
        .data = buffer_span(&custom->input),
        .trace = operation->write.trace,
        .timeout_ms = custom->options.timeout_ms,
        .token = operation_token(custom, operation),
    };
    status = custom->options.seam.call(custom->options.seam.context, &call);
    if (status == WEIR_OK)
        custom->options.counters->custom_calls++;
    return status;
}

/* A member of an operation of an update, as it was given; `null_is` is what an absent or null one
 * becomes (NULL: left out). */
static enum weir_status ops_put_member(struct buffer *out, const char *key,
                                       const struct json_value *value, const char *null_is)
{
    bool is_null = value->kind == JSON_ABSENT || value->kind == JSON_NULL;
    if (is_null && !null_is)
        return WEIR_OK;
    enum weir_status status = buffer_append(out, span_text(key));
    if (status == WEIR_OK)
        status = buffer_append(out, is_null ? span_text(null_is) : value->text);
    return status;
}

static enum weir_status ops_put(struct buffer *out, const struct json_value *operation)
{
    static const char *const names[] = {"type", "path", "value", "by"};
    struct json_value values[4];
    enum weir_status status =
        json_scan_object(operation->text, JSON_DEPTH_MAX, names, 4, values, NULL);
    if (status == WEIR_OK)
        status = ops_put_member(out, "{\"type\":", &values[0], NULL);
    if (status == WEIR_OK)
        status = ops_put_member(out, ",\"path\":", &values[1], NULL);
    bool has_value = json_string_equals(values[0], SPAN_LITERAL("set")) ||
                     json_string_equals(values[0], SPAN_LITERAL("merge")) ||
                     json_string_equals(values[0], SPAN_LITERAL("append"));
    if (status == WEIR_OK && has_value)
        status = ops_put_member(out, ",\"value\":", &values[2], "null");
    bool has_by = json_string_equals(values[0], SPAN_LITERAL("increment")) ||
                  json_string_equals(values[0], SPAN_LITERAL("decrement"));
    if (status == WEIR_OK && has_by)
        status = ops_put_member(out, ",\"by\":", &values[3], NULL);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("}"));
    return status;
}

/* The operations of an update as its function gets them (PROTOCOL 5): known members only. They have
 * been checked. */
static enum weir_status custom_print_ops(struct custom *custom, struct span ops)
{
    struct buffer *out = &custom->new_value;
    struct json_value list, operation;
    size_t cursor = 0;
    enum weir_status status = json_scan(ops, JSON_DEPTH_MAX, &list, NULL);
    buffer_clear(out);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("["));
    while (status == WEIR_OK && json_next(list, &cursor, NULL, &operation) == WEIR_OK) {
        if (out->bytes > 1)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = ops_put(out, &operation);
    }
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("]"));
    return status;
}

/* ---- failures ---- */

static struct adapter_outcome outcome_of_call(enum weir_status status)
{
    struct adapter_outcome outcome = {.status = status};
    if (status == WEIR_EMPTY)
        outcome = (struct adapter_outcome){.status = WEIR_UNAVAILABLE,
                                           .sentence = SPAN_LITERAL(AWAY_SENTENCE)};
    else if (status == WEIR_UNAVAILABLE)
        outcome.sentence = SPAN_LITERAL(
            "the gateway of the worker that keeps this stream does not keep up or is going");
    else if (status == WEIR_FULL)
        outcome.sentence =
            SPAN_LITERAL("too many calls wait for the worker that keeps this stream");
    else if (status == WEIR_TOO_LARGE)
        outcome.sentence = SPAN_LITERAL("the call is larger than a message may be");
    return outcome;
}

static struct adapter_outcome outcome_full(void)
{
    return (struct adapter_outcome){
        .status = WEIR_FULL,
        .sentence = SPAN_LITERAL("too much waits for the worker that keeps this stream"),
    };
}

static struct adapter_outcome outcome_late(void)
{
    return (struct adapter_outcome){
        .status = WEIR_TIMEOUT,
        .sentence = SPAN_LITERAL("the worker that keeps this stream has not answered within "
                                 "custom_timeout_ms: whether it did what was asked is not known"),
    };
}

static struct adapter_outcome outcome_overdue(void)
{
    return (struct adapter_outcome){
        .status = WEIR_TIMEOUT,
        .sentence = SPAN_LITERAL("writes before it took longer than custom_timeout_ms: it was not "
                                 "given to the worker that keeps this stream"),
    };
}

static struct adapter_outcome outcome_shape(const char *sentence)
{
    return (struct adapter_outcome){
        .status = WEIR_INVALID, .code = "JSON_ERROR", .sentence = span_text(sentence)};
}

/* Append a string of an error object, cut to what a sentence holds. */
static void sentence_put(struct buffer *sentence, struct json_value text)
{
    size_t before = sentence->bytes;
    if (text.kind != JSON_STRING || text.text.bytes > 8 * REASON_BYTES_MAX ||
        buffer_reserve(sentence, text.text.bytes) != WEIR_OK)
        return;
    sentence->bytes += json_unescape(sentence->data + before, text);
    if (sentence->bytes - before <= REASON_BYTES_MAX)
        return;
    sentence->bytes = before + REASON_BYTES_MAX;
    while (sentence->bytes > before &&
           ((unsigned char)sentence->data[sentence->bytes] & 0xC0) == 0x80)
        sentence->bytes--;
}

/* "the worker's function failed: CODE: message" */
static struct adapter_outcome custom_outcome_error(struct custom *custom, struct span error_json)
{
    static const char *const names[] = {"code", "message"};
    struct json_value values[2];
    struct buffer *sentence = &custom->sentence;
    buffer_clear(sentence);
    if (buffer_append(sentence, SPAN_LITERAL("the worker's function failed: ")) == WEIR_OK &&
        json_scan_object(error_json, JSON_DEPTH_MAX, names, 2, values, NULL) == WEIR_OK) {
        sentence_put(sentence, values[0]);
        if (buffer_append(sentence, SPAN_LITERAL(": ")) == WEIR_OK)
            sentence_put(sentence, values[1]);
    }
    return (struct adapter_outcome){.status = WEIR_UNAVAILABLE, .sentence = buffer_span(sentence)};
}

/* ---- running ---- */

static bool operation_start(struct custom *custom, struct operation *operation);

/* Lists of groups whose turn has come: all writes before them are over. */
static void name_release_lists(struct custom *custom, struct stream_name *name)
{
    while (name->lists_first &&
           (!name->writes_first || name->writes_first->number > name->lists_first->number)) {
        struct operation *list = name->lists_first;
        name->lists_first = list->queue_next;
        if (!name->lists_first)
            name->lists_last = NULL;
        (void)operation_start(custom, list);
    }
}

/* Over, and told by whoever calls this. Reads have left their queue; a write is still in it. */
static void operation_end(struct custom *custom, struct operation *operation)
{
    if (operation->kind == OPERATION_WRITE)
        name_unlink_write(operation->name, operation);
    operation_free(custom, operation);
}

static void operation_finish(struct custom *custom, struct operation *operation,
                             const struct adapter_outcome *outcome)
{
    operation_complete(custom, operation, outcome);
    operation_end(custom, operation);
}

/* The group's first is over: what can start now? */
static void group_advance(struct custom *custom, struct group *group)
{
    for (;;) { /* bounded by the queue: each turn takes one off, or ends */
        struct operation *next = group->first;
        if (!next)
            break;
        struct operation *behind = next->queue_next;
        bool is_write = next->kind == OPERATION_WRITE;
        if (operation_start(custom, next) && is_write)
            return;
        group->first = behind;
        if (!behind)
            group->last = NULL;
    }
    custom_free_group(custom, group);
}

/* A write was answered: the next one, and what waited for it. */
static void write_finish(struct custom *custom, struct operation *operation,
                         const struct adapter_outcome *outcome)
{
    struct group *group = operation->group;
    struct stream_name *name = operation->name;
    group_pop(group);
    operation_finish(custom, operation, outcome);
    name->open_count++; /* stays until the end of this */
    group_advance(custom, group);
    name_release_lists(custom, name);
    name->open_count--;
    custom_release_name(custom, name);
}

static void read_finish(struct custom *custom, struct operation *operation,
                        const struct adapter_outcome *outcome)
{
    struct stream_name *name = operation->name;
    operation_finish(custom, operation, outcome);
    custom_release_name(custom, name);
}

/* ---- starting ---- */

/* The ops are checked before anybody is asked. */
static bool operation_check_ops(struct custom *custom, const struct operation *operation,
                                struct adapter_outcome *outcome)
{
    const char *problem = NULL;
    enum weir_status status = update_parse(custom->update, operation->write.value, &problem);
    if (status == WEIR_OK)
        return true;
    outcome_refuse_ops(outcome, status, problem);
    return false;
}

static enum weir_status operation_call_update(struct custom *custom, struct operation *operation)
{
    const struct store_key *key = &operation->write.key;
    const struct stream_function *function = stream_function_by_op(WIRE_OP_UPDATE);
    enum weir_status status;
    if (name_way(operation->name, WIRE_OP_UPDATE) == WAY_PARTS) {
        operation->phase = PHASE_UPDATE_GET;
        function = stream_function_by_op(WIRE_OP_GET);
        status = custom_print_input(custom, key, function, NULL, (struct span){0});
    } else {
        status = custom_print_ops(custom, operation->write.value);
        if (status == WEIR_OK)
            status = custom_print_input(custom, key, function,
                                        ",\"ops\":", buffer_span(&custom->new_value));
    }
    return status == WEIR_OK ? custom_call(custom, operation, function) : status;
}

static enum weir_status operation_call(struct custom *custom, struct operation *operation)
{
    enum wire_op op = operation_op(operation);
    const struct stream_function *function = stream_function_by_op(op);
    if (op == WIRE_OP_UPDATE)
        return operation_call_update(custom, operation);
    enum weir_status status =
        custom_print_input(custom, &operation->write.key, function,
                           op == WIRE_OP_SET ? ",\"data\":" : NULL, operation->write.value);
    return status == WEIR_OK ? custom_call(custom, operation, function) : status;
}

/* Behind a worker that hangs each one would wait for the time limits of all before it. */
static bool operation_has_waited_too_long(const struct custom *custom,
                                          const struct operation *operation)
{
    return custom->now_ms > operation->given_ms &&
           custom->now_ms - operation->given_ms >= custom->options.timeout_ms;
}

/* True: under way. False: it is over and told already. */
static bool operation_start(struct custom *custom, struct operation *operation)
{
    if (operation->passes) {
        struct adapter_write write = operation->write;
        write.now_ms = custom->now_ms;
        custom->store.kind->write(custom->store.adapter, operation->request, &write);
        operation_end(custom, operation);
        return false;
    }
    struct adapter_outcome outcome = {0};
    if (operation_has_waited_too_long(custom, operation)) {
        outcome = outcome_overdue();
        operation_finish(custom, operation, &outcome);
        return false;
    }
    if (operation_op(operation) == WIRE_OP_UPDATE &&
        !operation_check_ops(custom, operation, &outcome)) {
        operation_finish(custom, operation, &outcome);
        return false;
    }
    enum weir_status status = operation_call(custom, operation);
    if (status == WEIR_OK)
        return true;
    outcome = outcome_of_call(status);
    operation_finish(custom, operation, &outcome);
    return false;
}

/* ---- answers: reads ---- */

static bool result_is_nothing(struct span result)
{
    return result.data == NULL || span_equal(result, SPAN_LITERAL("null"));
}

static void read_answered(struct custom *custom, struct operation *operation, enum custom_fate fate,
                          struct span result, struct span error_json)
{
    struct adapter_outcome outcome = {.status = WEIR_OK, .value = result};
    struct json_value ignored;
    if (fate == CUSTOM_ERROR)
        outcome = (struct adapter_outcome){.status = WEIR_REFUSED, .error_json = error_json};
    else if (fate == CUSTOM_LATE)
        outcome = outcome_late();
    else if (result.data && json_scan(result, JSON_DEPTH_MAX, &ignored, NULL) != WEIR_OK)
        outcome = outcome_shape("the worker's function did not return JSON");
    else if (operation->read_kind == ADAPTER_GET && result_is_nothing(result))
        outcome = (struct adapter_outcome){.status = WEIR_EMPTY};
    read_finish(custom, operation, &outcome);
}

/* ---- answers: writes ---- */

/* What a function has said of a write; values compact, data NULL: null or not said. */
struct said {
    struct span old_value;
    struct span new_value; /* data NULL: not said; null is a value here */
    struct span errors;
};

/* `value` without white space, in `scratch` when there was any; data NULL: no memory. */
static struct span custom_compact(struct json_value value, struct buffer *scratch)
{
    if (!value.has_space)
        return value.text;
    buffer_clear(scratch);
    if (buffer_reserve(scratch, value.text.bytes) != WEIR_OK)
        return (struct span){0};
    scratch->bytes = json_compact(scratch->data, value);
    return buffer_span(scratch);
}

/* False: `outcome` says why not. */
static bool said_read(struct custom *custom, struct span result, struct said *said,
                      struct adapter_outcome *outcome)
{
    static const char *const names[] = {"old_value", "new_value", "errors"};
    struct json_value whole, values[3];
    *said = (struct said){0};
    if (result_is_nothing(result)) {
        *outcome = (struct adapter_outcome){
            .status = WEIR_INVALID,
            .sentence = SPAN_LITERAL("the worker's function returned nothing")};
        return false;
    }
    if (json_scan(result, JSON_DEPTH_MAX, &whole, NULL) != WEIR_OK || whole.kind != JSON_OBJECT) {
        *outcome = outcome_shape("the worker's function did not return an object");
        return false;
    }
    if (json_scan_object(result, JSON_DEPTH_MAX, names, 3, values, NULL) != WEIR_OK) {
        *outcome = outcome_shape("the worker's function returned a member twice");
        return false;
    }
    if (values[0].kind != JSON_ABSENT && values[0].kind != JSON_NULL)
        said->old_value = custom_compact(values[0], &custom->old_value);
    if (values[1].kind != JSON_ABSENT)
        said->new_value = custom_compact(values[1], &custom->new_value);
    if (values[2].kind == JSON_ARRAY)
        said->errors = custom_compact(values[2], &custom->errors);
    else if (values[2].kind != JSON_ABSENT && values[2].kind != JSON_NULL)
        said->errors = SPAN_LITERAL("");
    return true;
}

/* Take the event's number from the store and say what happened. */
static void write_publish(struct custom *custom, struct operation *operation,
                          const struct said *said)
{
    const struct adapter_completions *done = &custom->environment.done;
    bool is_delete = operation->write.kind == ADAPTER_DELETE;
    struct span value = is_delete ? said->old_value : said->new_value;
    struct adapter_outcome outcome = {.value = said->new_value, .errors = said->errors};
    struct store_change change;

    const char *problem = done->write_problem(done->context, &operation->write, value.bytes);
    if (!problem && said->old_value.bytes > custom->environment.value_bytes_max)
        problem = "the old value is larger than value_bytes_max";
    if (problem) {
        outcome =
            (struct adapter_outcome){.status = WEIR_TOO_LARGE, .sentence = span_text(problem)};
        write_finish(custom, operation, &outcome);
        return;
    }
    outcome.status =
        store_touch(custom->environment.store, &operation->write.key, custom->now_ms, &change);
    if (outcome.status == WEIR_OK) {
        change.existed = said->old_value.data != NULL;
        change.old_value = said->old_value;
        outcome.change = &change;
        outcome.is_elsewhere = true;
    }
    write_finish(custom, operation, &outcome);
}

static void delete_answered(struct custom *custom, struct operation *operation, struct span result)
{
    struct adapter_outcome outcome = {.status = WEIR_EMPTY};
    struct said said;
    if (said_read(custom, result, &said, &outcome) && said.old_value.data)
        write_publish(custom, operation, &said);
    else
        write_finish(custom, operation, &outcome);
}

static void set_answered(struct custom *custom, struct operation *operation, struct span result)
{
    struct adapter_outcome outcome;
    struct said said;
    bool is_read = said_read(custom, result, &said, &outcome);
    if (is_read && !said.new_value.data)
        outcome = outcome_shape("the worker's function returned no new_value");
    else if (is_read && operation->write.kind == ADAPTER_UPDATE && operation->phase == PHASE_ONLY &&
             said.errors.data && said.errors.bytes == 0)
        outcome = outcome_shape("the worker's function returned errors that are not an array");
    else if (is_read) {
        if (operation->write.kind != ADAPTER_UPDATE || said.errors.bytes <= 2)
            said.errors = (struct span){0};
        if (operation->phase == PHASE_UPDATE_SET) {
            said.old_value = operation->old_value;
            said.errors = operation->errors;
        }
        write_publish(custom, operation, &said);
        return;
    }
    write_finish(custom, operation, &outcome);
}

/* ---- an update in parts ---- */

static bool operation_keep(struct custom *custom, struct operation *operation,
                           struct span old_value, struct span errors)
{
    size_t bytes = old_value.bytes + errors.bytes;
    if (custom->kept_bytes + bytes > custom->options.kept_bytes_max)
        return false;
    char *end = malloc(bytes + 1);
    if (!end)
        return false;
    operation->kept = end;
    operation->kept_bytes = bytes;
    custom->kept_bytes += bytes;
    operation->old_value = span_put(&end, old_value);
    operation->errors = span_put(&end, errors);
    return true;
}

/* The item is `old_value` (data NULL: missing): apply the operations and make the call that sets
 * it. */
static enum weir_status update_go_on(struct custom *custom, struct operation *operation,
                                     struct span old_value, struct adapter_outcome *outcome)
{
    const struct adapter_completions *done = &custom->environment.done;
    const struct stream_function *set = stream_function_by_op(WIRE_OP_SET);
    struct update_result result = {0};
    const char *problem = NULL;
    enum weir_status status = update_parse(custom->update, operation->write.value, &problem);
    result.problem = problem;
    if (status == WEIR_OK)
        status = update_apply(custom->update, old_value, &result);
    if (status != WEIR_OK) {
        outcome_fail_update(outcome, status, result.problem);
        return status;
    }
    problem = done->write_problem(done->context, &operation->write, result.value.bytes);
    if (problem) {
        *outcome =
            (struct adapter_outcome){.status = WEIR_TOO_LARGE, .sentence = span_text(problem)};
        return WEIR_TOO_LARGE;
    }
    if (!operation_keep(custom, operation, old_value, result.errors)) {
        *outcome = outcome_full();
        return WEIR_FULL;
    }
    operation->phase = PHASE_UPDATE_SET;
    status = custom_print_input(custom, &operation->write.key, set, ",\"data\":", result.value);
    if (status == WEIR_OK)
        status = custom_call(custom, operation, set);
    *outcome = outcome_of_call(status);
    return status;
}

static void update_has_old_value(struct custom *custom, struct operation *operation,
                                 struct span result)
{
    struct adapter_outcome outcome = {0};
    struct json_value value = {0};
    struct span old_value = {0};
    if (!result_is_nothing(result)) {
        if (json_scan(result, JSON_DEPTH_MAX, &value, NULL) == WEIR_OK)
            old_value = custom_compact(value, &custom->old_value);
        if (!old_value.data)
            outcome = outcome_shape("the worker's function did not return JSON");
        else if (old_value.bytes > custom->environment.value_bytes_max)
            outcome = (struct adapter_outcome){
                .status = WEIR_TOO_LARGE,
                .sentence = SPAN_LITERAL("the old value is larger than value_bytes_max")};
    }
    if (outcome.status != WEIR_OK ||
        update_go_on(custom, operation, old_value, &outcome) != WEIR_OK)
        write_finish(custom, operation, &outcome);
}

static void write_answered(struct custom *custom, struct operation *operation,
                           enum custom_fate fate, struct span result, struct span error_json)
{
    if (fate != CUSTOM_RESULT) {
        struct adapter_outcome outcome =
            fate == CUSTOM_LATE ? outcome_late() : custom_outcome_error(custom, error_json);
        write_finish(custom, operation, &outcome);
    } else if (operation->phase == PHASE_UPDATE_GET) {
        update_has_old_value(custom, operation, result);
    } else if (operation->write.kind == ADAPTER_DELETE) {
        delete_answered(custom, operation, result);
    } else {
        set_answered(custom, operation, result);
    }
}

static void buffer_trim(struct buffer *buffer)
{
    size_t limit_bytes = buffer->limit_bytes;
    if (buffer->capacity_bytes <= BUFFER_KEEP_BYTES)
        return;
    buffer_fini(buffer);
    buffer_init(buffer, limit_bytes);
}

static void custom_trim(struct custom *custom)
{
    buffer_trim(&custom->input);
    buffer_trim(&custom->old_value);
    buffer_trim(&custom->new_value);
    buffer_trim(&custom->errors);
}

void custom_answer(struct custom *custom, uint64_t token, enum custom_fate fate, struct span result,
                   struct span error_json, uint64_t now_ms)
{
    struct operation *operation = custom_find_operation(custom, token);
    if (!operation)
        return;
    custom->now_ms = now_ms;
    if (fate != CUSTOM_RESULT)
        custom->options.counters->custom_failed++;
    if (operation->kind == OPERATION_WRITE)
        write_answered(custom, operation, fate, result, error_json);
    else
        read_answered(custom, operation, fate, result, error_json);
    custom_trim(custom);
}

/* ---- requests in ---- */

/* A stream that could not be remembered: refused as long as its function is there. */
static bool custom_is_unknown_custom(struct custom *custom, enum wire_op op, struct span stream)
{
    return custom->is_overfull &&
           custom_print_function(custom, stream_function_by_op(op), stream) == WEIR_OK &&
           custom->options.seam.has_function(custom->options.seam.context,
                                             buffer_span(&custom->sentence));
}

/* An operation nobody can take: told at once. */
static void custom_refuse(struct custom *custom, const struct operation *refused,
                          struct adapter_outcome outcome)
{
    operation_complete(custom, refused, &outcome);
}

static struct adapter_outcome outcome_unknown(void)
{
    return (struct adapter_outcome){
        .status = WEIR_FULL,
        .sentence = SPAN_LITERAL("too many streams have adapters of their own"),
    };
}

static struct adapter_outcome outcome_away(void)
{
    return outcome_of_call(WEIR_EMPTY);
}

/* Put the write into its group's line, and start it when it is the first. */
static bool write_enter(struct custom *custom, struct operation *operation, struct group *group)
{
    bool is_first = group == NULL;
    bool needs_value = !is_first || operation->write.kind == ADAPTER_UPDATE;
    if (!operation_copy(custom, operation, needs_value))
        return false;
    if (is_first)
        group = custom_make_group(custom, operation->name, &operation->write.key);
    if (!group)
        return false;
    group_push(group, operation);
    name_link_write(operation->name, operation);
    if (!is_first)
        return true;
    if (operation_start(custom, operation)) {
        if (!needs_value)
            operation->write.value = (struct span){0}; /* not ours to keep */
        return true;
    }
    custom_free_group(custom, group); /* nothing could come behind it meanwhile */
    return true;
}

bool custom_write(struct custom *custom, uint64_t request, const struct adapter_write *write)
{
    if (!custom || (custom->name_count == 0 && !custom->is_overfull))
        return false;
    const struct operation asked = {.request = request, .kind = OPERATION_WRITE, .write = *write};
    enum wire_op op = operation_op(&asked);
    struct stream_name *name = *custom_find_name(custom, write->key.stream);
    if (!name && !custom_is_unknown_custom(custom, op, write->key.stream))
        return false;
    enum way way = name ? name_way(name, op) : WAY_STORE;
    struct group *group = name ? *custom_find_group(custom, name, &write->key) : NULL;
    if (name && way == WAY_STORE && !group)
        return false;
    custom->now_ms = write->now_ms;
    if (!name || way == WAY_AWAY) {
        custom_refuse(custom, &asked, name ? outcome_away() : outcome_unknown());
        return true;
    }
    struct operation *operation = operation_make(custom, name, request, OPERATION_WRITE);
    if (!operation) {
        custom_refuse(custom, &asked, outcome_full());
        return true;
    }
    operation->write = *write;
    operation->passes = way == WAY_STORE;
    if (!write_enter(custom, operation, group)) {
        custom_refuse(custom, &asked, outcome_full());
        operation_free(custom, operation);
    }
    custom_trim(custom);
    return true;
}

/* Wait behind what has to be over first. */
static bool read_wait(struct custom *custom, struct operation *operation, struct group *group)
{
    if (!operation_copy(custom, operation, false))
        return false;
    if (group) {
        group_push(group, operation);
        return true;
    }
    struct stream_name *name = operation->name;
    operation->queue_next = NULL;
    if (name->lists_last)
        name->lists_last->queue_next = operation;
    else
        name->lists_first = operation;
    name->lists_last = operation;
    return true;
}

bool custom_read(struct custom *custom, uint64_t request, const struct adapter_read *read)
{
    if (!custom || (custom->name_count == 0 && !custom->is_overfull) ||
        read->kind == ADAPTER_LIST_ALL)
        return false;
    const struct operation asked = {
        .request = request, .kind = OPERATION_READ, .read_kind = read->kind};
    enum wire_op op = operation_op(&asked);
    struct stream_name *name = *custom_find_name(custom, read->key.stream);
    if (!name && !custom_is_unknown_custom(custom, op, read->key.stream))
        return false;
    enum way way = name ? name_way(name, op) : WAY_STORE;
    if (name && way == WAY_STORE)
        return false;
    if (!name || way == WAY_AWAY) {
        custom_refuse(custom, &asked, name ? outcome_away() : outcome_unknown());
        return true;
    }
    custom->now_ms = read->now_ms;
    struct operation *operation = operation_make(custom, name, request, OPERATION_READ);
    if (!operation) {
        custom_refuse(custom, &asked, outcome_full());
        return true;
    }
    operation->write.key = read->key;
    operation->write.trace = read->trace;
    operation->read_kind = read->kind;
    struct group *group = NULL;
    if (read->kind != ADAPTER_LIST_GROUPS)
        group = *custom_find_group(custom, name, &read->key);
    bool waits = group || (read->kind == ADAPTER_LIST_GROUPS && name->writes_first);
    if (!waits) {
        if (operation_start(custom, operation))
            operation->write = (struct adapter_write){0}; /* not ours to keep */
    } else if (!read_wait(custom, operation, group)) {
        custom_refuse(custom, &asked, outcome_full());
        operation_free(custom, operation);
    }
    return true;
}

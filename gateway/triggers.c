/* Matching. A trigger narrows its stream by group, by item, by both or by neither: four kinds of
 * keys. An event is looked up once per kind that is in use, so its cost is four lookups at most and
 * one step per trigger that matches, however many triggers there are.
 *
 *   key (stream, group or any, item or any) --> its triggers, oldest first
 *
 * Streams and groups are kept as the envelope prints them (escaped), so an event's names are ranges
 * of its frame; items are kept decoded, as the ring has them behind the frame.
 *
 * Queues. One for each trigger and group that has an event which is not done:
 *
 *             take                 run                       answer, anything but false
 *   (none) ---------> READY, due: --+--> CONDITION under way ----> READY, due: handler --+
 *                     condition     |                                                    |
 *                     or handler    +--> HANDLER under way <-----------------------------+
 *                        ^                      | answer, error, late
 *                        +---- next event <-----+----> no more events: the queue is given back
 *
 * The event under way stays at the head of its queue until it is done. Answers only move queues to
 * the ready list; calls start in triggers_run(), which the turn calls before it sends what was
 * gathered, so that costs no time and the budget counts all of them.
 *
 * Places. What a queue holds is a position in the ring, or with PLACE_KEPT_BIT where in `kept` a copy
 * of the record is: struct ring_record, then what the ring had of it. */
#include "gateway/triggers.h"

#include <stdio.h>
#include <stdlib.h>

#include "shm/hash.h"

enum {
    KEY_BY_GROUP = 1,
    KEY_BY_ITEM = 2,
    KEY_KINDS = 4,
    BUCKETS_FIRST = 64,
    POSITIONS_FIRST = 4,     /* inside the queue */
    QUEUES_SPARE_MAX = 1024, /* kept for the next event; more are freed */
    REPORT_INTERVAL_MS = 1000,
    REPORT_NAME_BYTES_MAX = 100,
    REPORT_REASON_BYTES_MAX = 200,
};

/* What triggers are found by. */
struct trigger_key {
    struct trigger_key *next; /* in its bucket */
    struct trigger *first, *last;
    uint64_t hash;
    unsigned kind;
    struct span stream, group; /* escaped */
    struct span item;          /* decoded */
    char text[];
};

struct trigger {
    struct triggers *triggers;
    struct trigger_key *key;
    struct trigger *previous, *next; /* of the same key */
    struct trigger_queue *queues;
    uint64_t number;        /* never used again */
    uint64_t from_position; /* events before it are none of its business */
    uint64_t held_count;    /* events in its queues */
    bool has_trace;         /* deliveries carry the writer's trace context (PROTOCOL 2.10) */
    struct span name_space, function, condition, metadata;
    char text[];
};

#define PLACE_KEPT_BIT (1ull << 63)
static_assert(TRIGGERS_KEPT_BYTES_MAX < UINT32_MAX, "a place in `kept` is far below the bit");

enum queue_step { STEP_CONDITION, STEP_HANDLER };

struct trigger_queue {
    struct trigger_queue *next; /* in its bucket, or of the spare ones */
    struct trigger *trigger;
    struct trigger_queue *sibling, **sibling_at; /* of the same trigger */
    struct trigger_queue *ready_previous, *ready_next;
    uint64_t group_hash;
    struct server_call *call; /* under way, for the head */
    enum queue_step step;     /* of the head: due, or under way */
    bool is_ready;
    bool is_stale; /* the head's position is of a segment that is gone */
    uint32_t head, count, capacity;
    uint64_t *positions; /* places; a ring; `few` as long as they suffice */
    uint64_t few[POSITIONS_FIRST];
};

/* One log line a second, with the number of what it stands for. */
struct trigger_report {
    const char *event;
    uint64_t printed_ms;
    uint64_t count; /* since then */
    char function[6 * REPORT_NAME_BYTES_MAX + 1];
    char reason[6 * REPORT_REASON_BYTES_MAX + 1];
};

struct triggers {
    struct triggers_calls calls;
    struct triggers_options options;
    struct counters *counters;
    struct mapping *mapping; /* NULL until there is one */
    uint64_t hash_seed;
    uint64_t number_next;
    size_t trigger_count;
    struct trigger_key **keys;
    size_t key_buckets, key_count;
    size_t kind_counts[KEY_KINDS]; /* keys of each kind */
    struct trigger_queue **queues;
    size_t queue_buckets, queue_count;
    struct trigger_queue *spare;
    size_t spare_count;
    struct trigger_queue *ready_first, *ready_last;
    struct buffer scratch;     /* what was read last from the ring */
    struct ring_record record; /* what was read last */
    struct span copied;        /* likewise: what the ring has of it */
    uint64_t read_place;       /* likewise; RING_NO_POSITION: nothing */
    struct buffer kept;        /* out of rings that are gone */
    uint64_t kept_count;       /* places in it that wait */
    struct trigger_report failed, dropped;
};

/* ---- log ---- */

static void report_print(struct trigger_report *report, uint64_t now_ms)
{
    (void)fprintf(stderr, "weir-gateway: event=%s count=%llu function=\"%s\" reason=\"%s\"\n",
                  report->event, (unsigned long long)report->count, report->function,
                  report->reason);
    report->count = 0;
    report->printed_ms = now_ms;
}

/* What did not get its line at once gets it when the second is over. */
static void report_tick(struct trigger_report *report, uint64_t now_ms)
{
    if (report->count > 0 && now_ms - report->printed_ms >= REPORT_INTERVAL_MS)
        report_print(report, now_ms);
}

/* Names and errors are the workers' text: escaped, they cannot forge a line. */
static void report_escape(char *out, struct span text, size_t bytes_max)
{
    if (text.bytes > bytes_max)
        text.bytes = bytes_max;
    out[json_escape(out, text)] = '\0';
}

/* A line names the first of those it stands for. */
static void report_add(struct trigger_report *report, uint64_t count, struct span function,
                       struct span reason)
{
    if (report->count == 0) {
        report_escape(report->function, function, REPORT_NAME_BYTES_MAX);
        report_escape(report->reason, reason, REPORT_REASON_BYTES_MAX);
    }
    report->count += count;
    report_tick(report, uv_hrtime() / 1000000);
}

/* ---- names of an event ---- */

struct event_names {
    struct span stream, group; /* escaped */
    struct span item;          /* decoded; data NULL: none */
};

/* The escaped text up to its closing quote; false when there is none. */
static bool names_scan(const char **at, const char *end, struct span *name)
{
    const char *start = *at;
    for (const char *p = start; p < end; p++) {
        if (*p == '"') {
            *name = span_of(start, (size_t)(p - start));
            *at = p;
            return true;
        }
        if (*p == '\\')
            p++;
    }
    return false;
}

/* The frame says `"streamName":"<stream>","groupId":"<group>"`; names_offset is the first byte of
 * <stream>. */
static bool names_read(const struct ring_record *record, struct span copied,
                       struct event_names *names)
{
    const struct span between = SPAN_LITERAL("\",\"groupId\":\"");
    if (record->frame_bytes > copied.bytes || record->names_offset > record->frame_bytes ||
        ring_record_id_bytes(record) > copied.bytes - record->frame_bytes)
        return false;
    const char *at = copied.data + record->names_offset;
    const char *end = copied.data + record->frame_bytes;
    if (!names_scan(&at, end, &names->stream) || (size_t)(end - at) < between.bytes ||
        memcmp(at, between.data, between.bytes) != 0)
        return false;
    at += between.bytes;
    if (!names_scan(&at, end, &names->group))
        return false;
    names->item =
        record->id_bytes == UINT32_MAX ? (struct span){0} : span_of(end, record->id_bytes);
    return true;
}

/* ---- keys ---- */

static uint64_t key_hash(unsigned kind, uint64_t stream_hash, uint64_t group_hash,
                         uint64_t item_hash)
{
    uint64_t hash = hash_pair(stream_hash, kind);
    if (kind & KEY_BY_GROUP)
        hash = hash_pair(hash, group_hash);
    return kind & KEY_BY_ITEM ? hash_pair(hash, item_hash) : hash;
}

static struct trigger_key **triggers_key_bucket(const struct triggers *triggers, uint64_t hash)
{
    return &triggers->keys[hash & (triggers->key_buckets - 1)];
}

static bool key_is(const struct trigger_key *key, uint64_t hash, unsigned kind,
                   const struct event_names *names)
{
    return key->hash == hash && key->kind == kind && span_equal(key->stream, names->stream) &&
           (!(kind & KEY_BY_GROUP) || span_equal(key->group, names->group)) &&
           (!(kind & KEY_BY_ITEM) || span_equal(key->item, names->item));
}

static struct trigger_key *triggers_find_key(const struct triggers *triggers, uint64_t hash,
                                             unsigned kind, const struct event_names *names)
{
    struct trigger_key *key = *triggers_key_bucket(triggers, hash);
    while (key != NULL && !key_is(key, hash, kind, names))
        key = key->next;
    return key;
}

/* Failing to grow only makes the chains longer. */
static void triggers_grow_keys(struct triggers *triggers)
{
    if (triggers->key_count < triggers->key_buckets)
        return;
    size_t old_count = triggers->key_buckets;
    struct trigger_key **old = triggers->keys;
    struct trigger_key **keys = calloc(old_count * 2, sizeof *keys);
    if (keys == NULL)
        return;
    triggers->keys = keys;
    triggers->key_buckets = old_count * 2;
    for (size_t i = 0; i < old_count; i++) {
        for (struct trigger_key *key = old[i], *next; key != NULL; key = next) {
            next = key->next;
            struct trigger_key **bucket = triggers_key_bucket(triggers, key->hash);
            key->next = *bucket;
            *bucket = key;
        }
    }
    free(old);
}

static struct trigger_key *key_make(unsigned kind, uint64_t hash, const struct event_names *names)
{
    struct trigger_key *key =
        malloc(sizeof *key + names->stream.bytes + names->group.bytes + names->item.bytes);
    if (key == NULL)
        return NULL;
    *key = (struct trigger_key){.hash = hash, .kind = kind};
    char *to = key->text;
    key->stream = span_put(&to, names->stream);
    key->group = span_put(&to, names->group);
    key->item = span_put(&to, names->item);
    return key;
}

/* The key of these names, made when there is none; an empty group or item is any. */
static struct trigger_key *triggers_key(struct triggers *triggers, const struct event_names *names)
{
    uint64_t seed = triggers->hash_seed;
    unsigned kind = (names->group.bytes == 0 ? 0 : (unsigned)KEY_BY_GROUP) |
                    (names->item.bytes == 0 ? 0 : (unsigned)KEY_BY_ITEM);
    uint64_t hash = key_hash(kind, hash_bytes(seed, names->stream), hash_bytes(seed, names->group),
                             hash_bytes(seed, names->item));
    struct trigger_key *key = triggers_find_key(triggers, hash, kind, names);
    if (key != NULL)
        return key;
    key = key_make(kind, hash, names);
    if (key == NULL)
        return NULL;
    triggers_grow_keys(triggers);
    struct trigger_key **bucket = triggers_key_bucket(triggers, hash);
    key->next = *bucket;
    *bucket = key;
    triggers->key_count++;
    triggers->kind_counts[kind]++;
    return key;
}

static void triggers_drop_key(struct triggers *triggers, struct trigger_key *key)
{
    struct trigger_key **at = triggers_key_bucket(triggers, key->hash);
    while (*at != key) /* ends: every key is in its bucket */
        at = &(*at)->next;
    *at = key->next;
    triggers->key_count--;
    triggers->kind_counts[key->kind]--;
    free(key);
}

/* ---- queues ---- */

static struct trigger_queue **triggers_queue_bucket(const struct triggers *triggers,
                                                    const struct trigger *trigger,
                                                    uint64_t group_hash)
{
    return &triggers
                ->queues[hash_pair(trigger->number, group_hash) & (triggers->queue_buckets - 1)];
}

static void triggers_grow_queues(struct triggers *triggers)
{
    if (triggers->queue_count < triggers->queue_buckets)
        return;
    size_t old_count = triggers->queue_buckets;
    struct trigger_queue **old = triggers->queues;
    struct trigger_queue **queues = calloc(old_count * 2, sizeof *queues);
    if (queues == NULL)
        return;
    triggers->queues = queues;
    triggers->queue_buckets = old_count * 2;
    for (size_t i = 0; i < old_count; i++) {
        for (struct trigger_queue *queue = old[i], *next; queue != NULL; queue = next) {
            next = queue->next;
            struct trigger_queue **bucket =
                triggers_queue_bucket(triggers, queue->trigger, queue->group_hash);
            queue->next = *bucket;
            *bucket = queue;
        }
    }
    free(old);
}

static struct trigger_queue *triggers_take_spare(struct triggers *triggers)
{
    struct trigger_queue *queue = triggers->spare;
    if (queue == NULL)
        return malloc(sizeof *queue);
    triggers->spare = queue->next;
    triggers->spare_count--;
    return queue;
}

/* The group's queue, made when there is none. Two groups with the same hash would share one: they
 * would wait for each other and nothing else. */
static struct trigger_queue *trigger_queue_of(struct trigger *trigger, uint64_t group_hash)
{
    struct triggers *triggers = trigger->triggers;
    struct trigger_queue *queue = *triggers_queue_bucket(triggers, trigger, group_hash);
    while (queue != NULL && (queue->trigger != trigger || queue->group_hash != group_hash))
        queue = queue->next;
    if (queue != NULL)
        return queue;
    queue = triggers_take_spare(triggers);
    if (queue == NULL)
        return NULL;
    triggers_grow_queues(triggers);
    struct trigger_queue **bucket = triggers_queue_bucket(triggers, trigger, group_hash);
    *queue = (struct trigger_queue){
        .next = *bucket,
        .trigger = trigger,
        .sibling = trigger->queues,
        .sibling_at = &trigger->queues,
        .group_hash = group_hash,
        .capacity = POSITIONS_FIRST,
    };
    queue->positions = queue->few;
    *bucket = queue;
    if (queue->sibling != NULL)
        queue->sibling->sibling_at = &queue->sibling;
    trigger->queues = queue;
    triggers->queue_count++;
    return queue;
}

static void queue_make_ready(struct trigger_queue *queue)
{
    struct triggers *triggers = queue->trigger->triggers;
    queue->is_ready = true;
    queue->ready_next = NULL;
    queue->ready_previous = triggers->ready_last;
    if (triggers->ready_last == NULL)
        triggers->ready_first = queue;
    else
        triggers->ready_last->ready_next = queue;
    triggers->ready_last = queue;
}

static void queue_unready(struct trigger_queue *queue)
{
    struct triggers *triggers = queue->trigger->triggers;
    if (!queue->is_ready)
        return;
    queue->is_ready = false;
    if (queue->ready_previous == NULL)
        triggers->ready_first = queue->ready_next;
    else
        queue->ready_previous->ready_next = queue->ready_next;
    if (queue->ready_next == NULL)
        triggers->ready_last = queue->ready_previous;
    else
        queue->ready_next->ready_previous = queue->ready_previous;
}

/* Nothing is in it and nothing under way. */
static void queue_give_back(struct trigger_queue *queue)
{
    struct triggers *triggers = queue->trigger->triggers;
    weir_assert(queue->count == 0);
    weir_assert(queue->call == NULL);
    queue_unready(queue);
    struct trigger_queue **at = triggers_queue_bucket(triggers, queue->trigger, queue->group_hash);
    while (*at != queue) /* ends: every queue is in its bucket */
        at = &(*at)->next;
    *at = queue->next;
    triggers->queue_count--;
    *queue->sibling_at = queue->sibling;
    if (queue->sibling != NULL)
        queue->sibling->sibling_at = queue->sibling_at;
    if (queue->positions != queue->few)
        free(queue->positions);
    if (triggers->spare_count == QUEUES_SPARE_MAX) {
        free(queue);
        return;
    }
    queue->next = triggers->spare;
    triggers->spare = queue;
    triggers->spare_count++;
}

static uint64_t *queue_place(struct trigger_queue *queue, uint32_t index)
{
    return &queue->positions[(queue->head + index) & (queue->capacity - 1)];
}

/* A place is not needed any more. */
static void triggers_leave_place(struct triggers *triggers, uint64_t place)
{
    if (!(place & PLACE_KEPT_BIT) || --triggers->kept_count > 0)
        return;
    buffer_fini(&triggers->kept);
    buffer_init(&triggers->kept, TRIGGERS_KEPT_BYTES_MAX);
    triggers->read_place = RING_NO_POSITION;
}

/* Forget the last `count` events of the queue. */
static void queue_shrink(struct trigger_queue *queue, uint32_t count)
{
    struct trigger *trigger = queue->trigger;
    queue->count -= count;
    trigger->held_count -= count;
    counters_subtract(trigger->triggers->counters, COUNTER_TRIGGER_QUEUED, count);
}

static bool queue_grow(struct trigger_queue *queue)
{
    uint64_t *positions = malloc(2 * (size_t)queue->capacity * sizeof *positions);
    if (positions == NULL)
        return false;
    for (uint32_t i = 0; i < queue->count; i++)
        positions[i] = queue->positions[(queue->head + i) & (queue->capacity - 1)];
    if (queue->positions != queue->few)
        free(queue->positions);
    queue->positions = positions;
    queue->head = 0;
    queue->capacity *= 2;
    return true;
}

static enum queue_step trigger_first_step(const struct trigger *trigger)
{
    return trigger->condition.data == NULL ? STEP_HANDLER : STEP_CONDITION;
}

/* The head is done: the next one's turn. */
static void queue_next(struct trigger_queue *queue)
{
    triggers_leave_place(queue->trigger->triggers, *queue_place(queue, 0));
    queue->head = (queue->head + 1) & (queue->capacity - 1);
    queue_shrink(queue, 1);
    queue->is_stale = false;
    queue->step = trigger_first_step(queue->trigger);
    if (queue->count == 0)
        queue_give_back(queue);
    else if (!queue->is_ready)
        queue_make_ready(queue);
}

/* ---- taking events ---- */

static void trigger_dropped(struct trigger *trigger, uint64_t count, const char *reason)
{
    struct triggers *triggers = trigger->triggers;
    counters_add(triggers->counters, COUNTER_TRIGGER_DROPPED, count);
    report_add(&triggers->dropped, count, trigger->function, span_text(reason));
}

static bool trigger_push(struct trigger *trigger, uint64_t group_hash, uint64_t position)
{
    struct trigger_queue *queue = trigger_queue_of(trigger, group_hash);
    if (queue == NULL)
        return false;
    if (queue->count == queue->capacity && !queue_grow(queue))
        return false;
    if (queue->count == 0) { /* it has just been made */
        queue->step = trigger_first_step(trigger);
        queue_make_ready(queue);
    }
    queue->positions[(queue->head + queue->count++) & (queue->capacity - 1)] = position;
    trigger->held_count++;
    counters_add(trigger->triggers->counters, COUNTER_TRIGGER_QUEUED, 1);
    return true;
}

static unsigned triggers_take_for(struct triggers *triggers, const struct trigger_key *key,
                                  uint64_t group_hash, uint64_t position)
{
    unsigned matches = 0;
    for (struct trigger *trigger = key->first; trigger != NULL; trigger = trigger->next) {
        if (position < trigger->from_position)
            continue;
        matches++;
        if (trigger->held_count >= triggers->options.queue_max)
            trigger_dropped(trigger, 1, "too many events wait");
        else if (!trigger_push(trigger, group_hash, position))
            trigger_dropped(trigger, 1, "no memory");
    }
    return matches;
}

bool triggers_are_wanted(const struct triggers *triggers)
{
    return triggers->trigger_count > 0;
}

unsigned triggers_take(struct triggers *triggers, const struct ring_record *record,
                       struct span copied)
{
    struct event_names names;
    if (!names_read(record, copied, &names))
        return 0;
    uint64_t seed = triggers->hash_seed;
    uint64_t stream_hash = hash_bytes(seed, names.stream);
    uint64_t group_hash = hash_bytes(seed, names.group);
    uint64_t item_hash = names.item.data == NULL ? 0 : hash_bytes(seed, names.item);
    unsigned matches = 0;
    for (unsigned kind = 0; kind < KEY_KINDS; kind++) {
        if (triggers->kind_counts[kind] == 0 || (kind & KEY_BY_ITEM && names.item.data == NULL))
            continue;
        uint64_t hash = key_hash(kind, stream_hash, group_hash, item_hash);
        const struct trigger_key *key = triggers_find_key(triggers, hash, kind, &names);
        if (key != NULL)
            matches += triggers_take_for(triggers, key, group_hash, record->position);
    }
    counters_add(triggers->counters, COUNTER_TRIGGER_EVENTS, matches);
    return matches;
}

void triggers_lapped(struct triggers *triggers)
{
    counters_add(triggers->counters, COUNTER_TRIGGER_DROPPED, 1);
    report_add(&triggers->dropped, 1, (struct span){0},
               SPAN_LITERAL("the gateway missed events of the ring"));
}

/* ---- calls ---- */

static bool result_is_false(struct span result)
{
    struct json_value value;
    return json_scan(result, JSON_DEPTH_MAX, &value, NULL) == WEIR_OK && value.kind == JSON_FALSE;
}

static void queue_failed(struct trigger_queue *queue, enum server_call_fate fate,
                         struct span error_json)
{
    const struct trigger *trigger = queue->trigger;
    struct span function = queue->step == STEP_CONDITION ? trigger->condition : trigger->function;
    struct span reason = error_json;
    if (fate == SERVER_CALL_LATE)
        reason = SPAN_LITERAL("no answer within trigger_timeout_ms");
    else if (fate == SERVER_CALL_UNAVAILABLE)
        reason = SPAN_LITERAL("the broker went away");
    counters_add(trigger->triggers->counters, COUNTER_TRIGGER_FAILED, 1);
    report_add(&trigger->triggers->failed, 1, function, reason);
    queue_next(queue);
}

static void on_done(void *context, enum server_call_fate fate, struct span result,
                    struct span error_json)
{
    struct trigger_queue *queue = context;
    struct counters *counters = queue->trigger->triggers->counters;
    queue->call = NULL;
    if (fate != SERVER_CALL_RESULT) {
        queue_failed(queue, fate, error_json);
    } else if (queue->step == STEP_HANDLER) {
        counters_add(counters, COUNTER_TRIGGER_HANDLED, 1);
        queue_next(queue);
    } else if (result.data != NULL && result_is_false(result)) {
        counters_add(counters, COUNTER_TRIGGER_SKIPPED, 1);
        queue_next(queue);
    } else {
        queue->step = STEP_HANDLER;
        queue_make_ready(queue);
    }
}

/* The length of what the ring has of a record. */
static size_t record_copied_bytes(const struct ring_record *record)
{
    return ring_record_trace_offset(record) + record->traceparent_bytes + record->baggage_bytes;
}

static void triggers_read_kept(struct triggers *triggers, uint64_t place)
{
    const char *at = triggers->kept.data + (place & ~PLACE_KEPT_BIT);
    memcpy(&triggers->record, at, sizeof triggers->record);
    triggers->copied =
        span_of(at + sizeof triggers->record, record_copied_bytes(&triggers->record));
}

/* The record of a place; triggers of one event share a read. */
static enum weir_status triggers_read(struct triggers *triggers, uint64_t place)
{
    if (place == triggers->read_place)
        return WEIR_OK;
    triggers->read_place = RING_NO_POSITION;
    enum weir_status status = WEIR_OK;
    if (place & PLACE_KEPT_BIT) {
        triggers_read_kept(triggers, place);
    } else {
        buffer_clear(&triggers->scratch);
        status =
            ring_read_at(&triggers->mapping->ring, place, &triggers->record, &triggers->scratch);
        triggers->copied = buffer_span(&triggers->scratch);
    }
    if (status == WEIR_OK)
        triggers->read_place = place;
    return status;
}

static bool queue_start(struct trigger_queue *queue)
{
    const struct trigger *trigger = queue->trigger;
    struct triggers *triggers = trigger->triggers;
    const struct ring_record *record = &triggers->record;
    const char *copied = triggers->copied.data;
    const char *trace = copied + ring_record_trace_offset(record);
    struct server_call_request request = {
        .name_space = trigger->name_space,
        .function = trigger->condition,
        .data = span_of(copied + record->json_offset, record->frame_bytes - record->json_offset),
        .timeout_ms = triggers->options.timeout_ms,
    };
    if (queue->step == STEP_HANDLER) {
        request.function = trigger->function;
        request.metadata = trigger->metadata;
    }
    if (trigger->has_trace && record->traceparent_bytes > 0)
        request.traceparent = span_of(trace, record->traceparent_bytes);
    if (trigger->has_trace && record->baggage_bytes > 0)
        request.baggage = span_of(trace + record->traceparent_bytes, record->baggage_bytes);
    queue->call = triggers->calls.start(triggers->calls.calls, &request, on_done, queue);
    return queue->call != NULL;
}

/* One step of the queue that is ready first; false when nothing more can start for now. */
static bool triggers_step(struct triggers *triggers, size_t *bytes)
{
    struct trigger_queue *queue = triggers->ready_first;
    enum weir_status status = WEIR_LAPPED;
    if (!queue->is_stale)
        status = triggers_read(triggers, *queue_place(queue, 0));
    queue_unready(queue);
    if (status == WEIR_OK && queue_start(queue)) {
        *bytes += triggers->record.frame_bytes;
        return true;
    }
    if (status == WEIR_OK || status == WEIR_NO_MEMORY || status == WEIR_FULL) {
        queue_make_ready(queue); /* behind the others, so that none can hold up all of them */
        return false;
    }
    trigger_dropped(queue->trigger, 1, "overwritten in the ring before its turn came");
    queue_next(queue);
    return true;
}

bool triggers_run(struct triggers *triggers)
{
    size_t bytes = 0;
    if (triggers->failed.count + triggers->dropped.count > 0) {
        uint64_t now_ms = uv_hrtime() / 1000000;
        report_tick(&triggers->failed, now_ms);
        report_tick(&triggers->dropped, now_ms);
    }
    for (unsigned events = 0; triggers->ready_first != NULL; events++) {
        if (!triggers->calls.are_flowing(triggers->calls.calls))
            return false;
        if (events == TRIGGERS_TURN_EVENTS || bytes >= TRIGGERS_TURN_BYTES)
            return true;
        if (!triggers_step(triggers, &bytes))
            return false;
    }
    return false;
}

/* ---- triggers ---- */

/* A name as the envelope prints it, to the end of `scratch`, which has room for it. */
static struct span names_escape(struct buffer *scratch, struct span name)
{
    if (name.data == NULL)
        return (struct span){0};
    struct span escaped = span_of(scratch->data + scratch->bytes, 0);
    escaped.bytes = json_escape(scratch->data + scratch->bytes, name);
    scratch->bytes += escaped.bytes;
    return escaped;
}

static struct trigger_key *triggers_key_for(struct triggers *triggers,
                                            const struct trigger_config *config)
{
    struct buffer escaped;
    struct trigger_key *key = NULL;
    buffer_init(&escaped, 6 * (config->stream.bytes + config->group.bytes) + 1);
    if (buffer_reserve(&escaped, escaped.limit_bytes) == WEIR_OK) {
        struct event_names names = {.item = config->item};
        names.stream = names_escape(&escaped, config->stream);
        names.group = names_escape(&escaped, config->group);
        key = triggers_key(triggers, &names);
    }
    buffer_fini(&escaped);
    return key;
}

static bool stream_has_trace(struct span stream)
{
    const struct span untraced = SPAN_LITERAL("iii:devtools:");
    return stream.bytes < untraced.bytes || memcmp(stream.data, untraced.data, untraced.bytes) != 0;
}

static struct trigger *trigger_make(const struct trigger_binding *binding)
{
    struct trigger *trigger =
        malloc(sizeof *trigger + binding->name_space.bytes + binding->function.bytes +
               binding->config.condition.bytes + binding->metadata.bytes);
    if (trigger == NULL)
        return NULL;
    *trigger = (struct trigger){.has_trace = stream_has_trace(binding->config.stream)};
    char *to = trigger->text;
    trigger->name_space = span_put(&to, binding->name_space);
    trigger->function = span_put(&to, binding->function);
    trigger->condition = span_put(&to, binding->config.condition);
    trigger->metadata = span_put(&to, binding->metadata);
    return trigger;
}

struct trigger *triggers_add(struct triggers *triggers, const struct trigger_binding *binding)
{
    weir_assert(binding->config.stream.data != NULL);
    struct trigger *trigger = trigger_make(binding);
    struct trigger_key *key = trigger == NULL ? NULL : triggers_key_for(triggers, &binding->config);
    if (key == NULL) {
        free(trigger);
        return NULL;
    }
    trigger->triggers = triggers;
    trigger->number = triggers->number_next++;
    if (triggers->mapping != NULL)
        trigger->from_position = ring_published(&triggers->mapping->ring);
    trigger->key = key;
    trigger->previous = key->last;
    if (key->last == NULL)
        key->first = trigger;
    else
        key->last->next = trigger;
    key->last = trigger;
    triggers->trigger_count++;
    counters_add(triggers->counters, COUNTER_TRIGGERS, 1);
    return trigger;
}

void triggers_remove(struct trigger *trigger)
{
    struct triggers *triggers = trigger->triggers;
    struct trigger_key *key = trigger->key;
    while (trigger->queues != NULL) { /* each turn gives one back */
        struct trigger_queue *queue = trigger->queues;
        uint32_t waiting = queue->count;
        for (uint32_t i = 0; i < queue->count; i++)
            triggers_leave_place(triggers, *queue_place(queue, i));
        if (queue->call != NULL) {
            triggers->calls.cancel(queue->call);
            waiting--;
        }
        queue->call = NULL;
        counters_add(triggers->counters, COUNTER_TRIGGER_DROPPED, waiting);
        queue_shrink(queue, queue->count);
        queue_give_back(queue);
    }
    weir_assert(trigger->held_count == 0);
    if (trigger->previous == NULL)
        key->first = trigger->next;
    else
        trigger->previous->next = trigger->next;
    if (trigger->next == NULL)
        key->last = trigger->previous;
    else
        trigger->next->previous = trigger->previous;
    if (key->first == NULL)
        triggers_drop_key(triggers, key);
    triggers->trigger_count--;
    counters_subtract(triggers->counters, COUNTER_TRIGGERS, 1);
    free(trigger);
}

/* ---- another mapping ---- */

/* Copies events that wait out of a ring that goes: where each of them is now. */
struct keeping {
    struct triggers *triggers;
    const struct ring_reader *ring; /* NULL: nothing is kept */
    struct kept_event {
        uint64_t position, place; /* 0: this one is free */
    } * events;                   /* a hash table */
    size_t capacity, count;
};

/* Without memory nothing is kept. */
static void keeping_open(struct keeping *keeping, struct triggers *triggers,
                         const struct ring_reader *ring)
{
    uint64_t waiting = triggers->counters->values[COUNTER_TRIGGER_QUEUED];
    *keeping = (struct keeping){.triggers = triggers, .capacity = 64};
    while (keeping->capacity < 2 * waiting && keeping->capacity < 2 * TRIGGERS_KEPT_EVENTS_MAX)
        keeping->capacity *= 2;
    keeping->events = ring == NULL ? NULL : calloc(keeping->capacity, sizeof *keeping->events);
    if (keeping->events != NULL)
        keeping->ring = ring;
}

/* Append the record to what is kept; 0: it cannot be. */
static uint64_t keeping_copy(const struct keeping *keeping, uint64_t position)
{
    struct triggers *triggers = keeping->triggers;
    struct buffer *kept = &triggers->kept;
    size_t start = kept->bytes;
    struct ring_record record = {0};
    if (buffer_append(kept, span_of((const char *)&record, sizeof record)) != WEIR_OK)
        return 0;
    if (ring_read_at(keeping->ring, position, &record, kept) != WEIR_OK) {
        kept->bytes = start;
        return 0;
    }
    memcpy(kept->data + start, &record, sizeof record);
    return start | PLACE_KEPT_BIT;
}

/* Where the event at `position` is kept from now on; 0: it is not. */
static uint64_t keeping_place(struct keeping *keeping, uint64_t position)
{
    if (keeping->ring == NULL)
        return 0;
    size_t at = hash_pair(position, keeping->triggers->hash_seed) & (keeping->capacity - 1);
    while (keeping->events[at].place != 0 && keeping->events[at].position != position)
        at = (at + 1) & (keeping->capacity - 1); /* ends: half of them are free */
    if (keeping->events[at].place != 0)
        return keeping->events[at].place;
    uint64_t place = keeping->count < keeping->capacity / 2 ? keeping_copy(keeping, position) : 0;
    if (place == 0)
        return 0;
    keeping->events[at] = (struct kept_event){position, place};
    keeping->count++;
    return place;
}

/* The same for one that may be kept already, as one of those that wait. */
static uint64_t keeping_move(struct keeping *keeping, uint64_t place)
{
    struct triggers *triggers = keeping->triggers;
    if (keeping->ring == NULL) {
        triggers_leave_place(triggers, place);
        return 0;
    }
    if (place & PLACE_KEPT_BIT)
        return place;
    place = keeping_place(keeping, place);
    triggers->kept_count += place != 0;
    return place;
}

/* What waits is kept in its order, or lost; the head stays as long as its call is under way. */
static void queue_move(struct trigger_queue *queue, struct keeping *keeping)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < queue->count; i++) {
        bool is_called = i == 0 && queue->call != NULL;
        uint64_t place = 0;
        if (i > 0 || !queue->is_stale)
            place = keeping_move(keeping, *queue_place(queue, i));
        if (i == 0)
            queue->is_stale = is_called && place == 0;
        if (i == 0 && place == 0 && !is_called)
            queue->step = trigger_first_step(queue->trigger); /* of whichever is first now */
        if (place != 0 || is_called)
            *queue_place(queue, left++) = place;
    }
    uint32_t lost = queue->count - left;
    if (lost > 0)
        trigger_dropped(queue->trigger, lost, "the broker was replaced");
    queue_shrink(queue, lost);
    if (queue->count == 0)
        queue_give_back(queue);
}

static void trigger_move(struct trigger *trigger, struct keeping *keeping)
{
    trigger->from_position = 0;
    for (struct trigger_queue *queue = trigger->queues, *next; queue != NULL; queue = next) {
        next = queue->sibling;
        queue_move(queue, keeping);
    }
}

/* `ring` NULL: what waits is lost. */
static void triggers_move_all(struct triggers *triggers, const struct ring_reader *ring)
{
    struct keeping keeping;
    keeping_open(&keeping, triggers, ring);
    for (size_t i = 0; i < triggers->key_buckets; i++) {
        for (struct trigger_key *key = triggers->keys[i]; key != NULL; key = key->next) {
            for (struct trigger *trigger = key->first; trigger != NULL; trigger = trigger->next)
                trigger_move(trigger, &keeping);
        }
    }
    free(keeping.events);
}

void triggers_set_mapping(struct triggers *triggers, struct mapping *mapping, bool is_kept)
{
    const struct mapping *old = triggers->mapping;
    triggers->mapping = mapping;
    triggers->read_place = RING_NO_POSITION;
    if (old == NULL || triggers->trigger_count == 0)
        return;
    bool is_same = old->generation == mapping->generation;
    uint64_t end = is_same ? mapping->ring.position : ring_published(&old->ring);
    if (old->ring.position < end)
        triggers_lapped(triggers);
    if (!is_same)
        triggers_move_all(triggers, is_kept ? &old->ring : NULL);
}

/* ---- life ---- */

struct triggers *triggers_open(const struct triggers_calls *calls,
                               const struct triggers_options *options, struct counters *counters)
{
    struct triggers *triggers = calloc(1, sizeof *triggers);
    if (triggers == NULL)
        return NULL;
    triggers->calls = *calls;
    triggers->options = *options;
    triggers->counters = counters;
    triggers->key_buckets = triggers->queue_buckets = BUCKETS_FIRST;
    triggers->keys = calloc(BUCKETS_FIRST, sizeof(struct trigger_key *));
    triggers->queues = calloc(BUCKETS_FIRST, sizeof(struct trigger_queue *));
    triggers->read_place = RING_NO_POSITION;
    triggers->failed.event = "trigger_failed";
    triggers->dropped.event = "trigger_events_dropped";
    buffer_init(&triggers->scratch, (size_t)UINT32_MAX);
    buffer_init(&triggers->kept, TRIGGERS_KEPT_BYTES_MAX);
    if (uv_random(NULL, NULL, &triggers->hash_seed, sizeof triggers->hash_seed, 0, NULL) != 0)
        triggers->hash_seed = uv_hrtime();
    if (triggers->keys == NULL || triggers->queues == NULL) {
        triggers_close(triggers);
        return NULL;
    }
    return triggers;
}

void triggers_close(struct triggers *triggers)
{
    if (triggers == NULL)
        return;
    weir_assert(triggers->trigger_count == 0);
    while (triggers->spare != NULL) {
        struct trigger_queue *queue = triggers_take_spare(triggers);
        free(queue);
    }
    free(triggers->keys);
    free(triggers->queues);
    buffer_fini(&triggers->scratch);
    buffer_fini(&triggers->kept);
    free(triggers);
}

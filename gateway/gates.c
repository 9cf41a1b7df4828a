#include "gateway/gates.h"

#include <stdio.h>
#include <stdlib.h>

#include "gateway/printer.h"

enum {
    PAYLOAD_BYTES_MAX = 1024 * 1024, /* four escaped names and a context fit */
    LOG_MS = 1000,
};
static_assert(4 * NAME_ESCAPED_BYTES_MAX + 64 * 1024 + 256 < PAYLOAD_BYTES_MAX, "as said");

/* One stream:join trigger. Calls under way keep it when it goes. */
struct gate {
    struct gate *next, **at; /* in `bound`, `lost` or `away` */
    uint64_t handle;         /* 0: of an earlier broker */
    uint64_t until_ms;       /* away: how long joins wait for it to come back */
    unsigned references;
    bool is_unbound;                                               /* it will not be announced */
    struct span name_space, function, stream, condition, metadata; /* data NULL: as in GATE_BIND */
    char text[];
};

struct gate_call {
    struct gate_call *next, **at; /* of the join */
    struct gate_join *join;
    struct gate *gate;
    struct server_call *call;
    bool is_condition;
};

struct gate_join {
    struct gate_join *next, **at; /* of the visitor */
    struct gate_join *queue_next, *queue_previous;
    struct gate_queue *queue;
    struct gates *gates;
    struct gate_visitor *visitor;
    struct gate_call *calls;
    struct span context;
    uint64_t deadline_ms; /* of waiting for the table, or an away gate; then of being asked */
    uint64_t patience_ms; /* until when it waits for away gates; 0: it has met none */
    bool is_denied;
    bool is_path;
    bool is_void; /* taken back while it was asked about; counted until its gates have answered */
    struct subscription_wish wish;
    size_t text_bytes;
    char text[];
};

/* Oldest first. */
struct gate_queue {
    struct gate_join *first, *last;
};

struct gates {
    struct gates_options options;
    struct caller caller;
    struct counters *counters;
    struct gate *bound;
    struct gate *lost; /* were there before the broker went, and are not back yet */
    struct gate *away; /* closed gates whose worker has gone */
    size_t gate_count; /* of all three */
    struct gate_queue held, awaiting, asking;
    size_t join_count, join_bytes;
    struct server_call *barrier; /* the question after attaching */
    uint64_t grace_ms;           /* until when the lost are waited for */
    uint64_t generation;         /* the broker's */
    bool is_same_broker;         /* as before the last loss */
    bool was_attached, is_attached, has_told;
    bool is_sure;  /* the table was whole when last attached */
    bool is_told;  /* what there was before this gateway started is known */
    bool is_blind; /* a gate could not be kept */
    struct buffer payload;
    uint64_t logged_ms, silent_count;
};

static uint64_t gates_now(const struct gates *gates)
{
    return gates->caller.now_ms(gates->caller.context);
}

static uint64_t gates_hold_deadline(const struct gates *gates)
{
    return gates_now(gates) + gates->options.timeout_ms + GATES_GRACE_MS;
}

/* ---- queues ---- */

static void join_enqueue(struct gate_join *join, struct gate_queue *queue)
{
    join->queue = queue;
    join->queue_next = NULL;
    join->queue_previous = queue->last;
    if (queue->last == NULL)
        queue->first = join;
    else
        queue->last->queue_next = join;
    queue->last = join;
}

static void join_dequeue(struct gate_join *join)
{
    struct gate_queue *queue = join->queue;
    if (join->queue_previous == NULL)
        queue->first = join->queue_next;
    else
        join->queue_previous->queue_next = join->queue_next;
    if (join->queue_next == NULL)
        queue->last = join->queue_previous;
    else
        join->queue_next->queue_previous = join->queue_previous;
}

static void join_move(struct gate_join *join, struct gate_queue *queue)
{
    join_dequeue(join);
    join_enqueue(join, queue);
}

/* ---- the table ---- */

static void gate_release(struct gate *gate)
{
    if (--gate->references == 0)
        free(gate);
}

static void gate_link(struct gate *gate, struct gate **list)
{
    gate->at = list;
    gate->next = *list;
    if (gate->next != NULL)
        /* Whatever was released has been unlinked before.
         * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
        gate->next->at = &gate->next;
    *list = gate;
}

static void gate_unlink(struct gate *gate)
{
    *gate->at = gate->next;
    if (gate->next != NULL)
        gate->next->at = gate->at;
}

static void gates_drop(struct gates *gates, struct gate *gate)
{
    gate_unlink(gate);
    gate->is_unbound = true;
    gates->gate_count--;
    gate_release(gate);
}

static void gates_drop_all(struct gates *gates, struct gate *list)
{
    for (struct gate *gate = list, *next; gate != NULL; gate = next) {
        next = gate->next;
        gates_drop(gates, gate);
    }
}

static struct span text_keep(char **at, struct span text)
{
    if (text.data == NULL)
        return (struct span){0};
    struct span kept = span_of(*at, text.bytes);
    if (text.bytes > 0)
        memcpy(*at, text.data, text.bytes);
    *at += text.bytes;
    return kept;
}

static struct gate *gate_make(const struct wire_message *message)
{
    size_t bytes = 1; /* an empty text is a pointer as well */
    for (unsigned i = 1; i < 6; i++)
        bytes += message->fields[i].span.bytes;
    struct gate *gate = calloc(1, sizeof *gate + bytes);
    if (gate == NULL)
        return NULL;
    char *at = gate->text;
    gate->references = 1;
    gate->handle = message->fields[0].number;
    gate->name_space = text_keep(&at, message->fields[1].span);
    gate->function = text_keep(&at, message->fields[2].span);
    gate->stream = text_keep(&at, message->fields[3].span);
    gate->condition = text_keep(&at, message->fields[4].span);
    gate->metadata = text_keep(&at, message->fields[5].span);
    return gate;
}

static bool texts_equal(struct span a, struct span b)
{
    return (a.data == NULL) == (b.data == NULL) && span_equal(a, b);
}

static bool gates_are_same(const struct gate *a, const struct gate *b)
{
    return texts_equal(a->name_space, b->name_space) && texts_equal(a->function, b->function) &&
           texts_equal(a->stream, b->stream) && texts_equal(a->condition, b->condition) &&
           texts_equal(a->metadata, b->metadata);
}

/* Does one stand in for the other? What it asks first and what it is told are its worker's affair. */
static bool gates_guard_same(const struct gate *a, const struct gate *b)
{
    return texts_equal(a->function, b->function) && texts_equal(a->name_space, b->name_space) &&
           texts_equal(a->stream, b->stream);
}

static struct gate *list_find_handle(struct gate *list, uint64_t handle)
{
    struct gate *gate = list;
    while (gate != NULL && gate->handle != handle)
        gate = gate->next;
    return gate;
}

/* Another gate that guards the same; NULL: none. */
static struct gate *list_find_twin(struct gate *list, const struct gate *of)
{
    struct gate *gate = list;
    while (gate != NULL && (gate == of || !gates_guard_same(gate, of)))
        gate = gate->next;
    return gate;
}

static bool gate_matches(const struct gate *gate, struct span stream)
{
    return gate->stream.data == NULL || span_equal(gate->stream, stream);
}

/* The gate's worker has gone. Open gates are as if they had not been there. */
static void gate_go_away(struct gates *gates, struct gate *gate, uint64_t grace_ms)
{
    if (!gates->options.is_closed || list_find_twin(gates->bound, gate) != NULL ||
        list_find_twin(gates->away, gate) != NULL) {
        gates_drop(gates, gate);
        return;
    }
    gate_unlink(gate);
    gate->is_unbound = true;
    gate->until_ms = gates_now(gates) + grace_ms;
    gate_link(gate, &gates->away);
}

/* The gate is back, or given up: joins that wait for it are looked at anew. */
static void gate_end_away(struct gates *gates, struct gate *gate)
{
    for (struct gate_join *join = gates->awaiting.first, *next; join != NULL; join = next) {
        next = join->queue_next;
        if (!gate_matches(gate, join->wish.stream))
            continue;
        join_move(join, &gates->held);
        join->deadline_ms = gates_hold_deadline(gates);
    }
    gates_drop(gates, gate);
}

static void gates_unbind(struct gates *gates, uint64_t handle, bool is_away)
{
    struct gate *gate = list_find_handle(gates->bound, handle);
    struct gate *away = list_find_handle(gates->away, handle);
    if (gate != NULL && is_away)
        gate_go_away(gates, gate, GATES_GRACE_MS);
    else if (gate != NULL)
        gates_drop(gates, gate);
    else if (away != NULL && !is_away)
        gate_end_away(gates, away);
}

static void gates_bind(struct gates *gates, const struct wire_message *message)
{
    gates_unbind(gates, message->fields[0].number, false);
    struct gate *gate = gate_make(message);
    if (gate == NULL) {
        gates->is_blind = true;
        (void)fprintf(stderr, "weir-gateway: event=gate_not_kept reason=\"no memory\"\n");
        return;
    }
    struct gate *back = gates->lost;
    while (back != NULL && !gates_are_same(back, gate))
        back = back->next;
    if (back != NULL)
        gates_drop(gates, back);
    bool is_away = message->fields[6].number != 0;
    /* Whatever was released has been unlinked before. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    struct gate *away = list_find_twin(gates->away, gate);
    if (away != NULL && is_away)
        away->handle = gate->handle;
    else if (away != NULL)
        gate_end_away(gates, away);
    if (is_away && (away != NULL || !gates->options.is_closed)) {
        free(gate);
        return;
    }
    if (gates->gate_count >= GATES_MAX) {
        gates->is_blind = true;
        free(gate);
        (void)fprintf(stderr, "weir-gateway: event=gate_not_kept reason=\"more than %d\"\n",
                      GATES_MAX);
        return;
    }
    gate_link(gate, &gates->bound);
    gates->gate_count++;
    if (is_away)
        gate_go_away(gates, gate, GATES_GRACE_MS);
}

/* The broker may not know of it, and a gateway that is yet to come does not either. */
static void gate_tell(struct gates *gates, const struct gate *gate)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),          WIRE_SPAN(gate->name_space), WIRE_SPAN(gate->function),
        WIRE_SPAN(gate->stream), WIRE_SPAN(gate->condition),  WIRE_SPAN(gate->metadata),
        WIRE_NUMBER(1),
    };
    if (gate->handle == 0)
        gates->options.post(gates->options.post_context, WIRE_GATE_BIND, fields);
}

/* The broker learns what this gateway remembers, and that this is all. */
static void gates_tell_all(struct gates *gates)
{
    if (gates->has_told || gates->options.post == NULL)
        return;
    gates->has_told = true;
    for (const struct gate *gate = gates->away; gate != NULL; gate = gate->next)
        gate_tell(gates, gate);
    gates->options.post(gates->options.post_context, WIRE_GATES_TOLD, NULL);
}

/* The grace is over. What has not come back is away, and joins have waited for it already. */
static void gates_give_up_lost(struct gates *gates)
{
    for (struct gate *gate = gates->lost, *next; gate != NULL; gate = next) {
        next = gate->next;
        gate->handle = 0;
        gate_go_away(gates, gate, 0);
    }
    gates_tell_all(gates);
}

/* Of the away gates of a stream the one that is waited for the shortest; NULL: none. */
static const struct gate *gates_find_away(const struct gates *gates, struct span stream)
{
    const struct gate *found = NULL;
    for (const struct gate *gate = gates->away; gate != NULL; gate = gate->next)
        if (gate_matches(gate, stream) && (found == NULL || gate->until_ms < found->until_ms))
            found = gate;
    return found;
}

/* Can joins be decided now? */
static bool gates_can_decide(const struct gates *gates)
{
    return gates->is_sure && gates->lost == NULL && (gates->is_told || !gates->options.is_closed);
}

bool gates_are_clear(const struct gates *gates)
{
    return gates->gate_count == 0 && gates_can_decide(gates) && !gates->is_blind;
}

/* ---- joins: their life ---- */

static struct gate_join *join_make(struct gates *gates, struct gate_visitor *visitor,
                                   const struct gate_question *question)
{
    const struct subscription_wish *wish = &question->wish;
    size_t bytes =
        wish->subscription_id.bytes + wish->stream.bytes + wish->group.bytes + wish->item.bytes + 1;
    if (!question->may_wait || gates->join_count >= GATES_JOINS_MAX ||
        gates->join_bytes + bytes > GATES_JOIN_BYTES_MAX)
        return NULL;
    struct gate_join *join = calloc(1, sizeof *join + bytes);
    if (join == NULL)
        return NULL;
    char *at = join->text;
    join->gates = gates;
    join->visitor = visitor;
    join->context = question->context;
    join->is_path = question->is_path;
    join->wish = *wish;
    join->wish.subscription_id = text_keep(&at, wish->subscription_id);
    join->wish.stream = text_keep(&at, wish->stream);
    join->wish.group = text_keep(&at, wish->group);
    join->wish.item = text_keep(&at, wish->item);
    join->text_bytes = bytes;
    join->at = &visitor->joins;
    join->next = visitor->joins;
    if (join->next != NULL)
        join->next->at = &join->next;
    visitor->joins = join;
    visitor->count++;
    gates->join_count++;
    gates->join_bytes += bytes;
    join_enqueue(join, &gates->held);
    return join;
}

static void call_free(struct gate_call *call)
{
    *call->at = call->next;
    if (call->next != NULL)
        call->next->at = call->at;
    gate_release(call->gate);
    free(call);
}

static void join_cancel_calls(struct gate_join *join)
{
    for (struct gate_call *call = join->calls, *next; call != NULL; call = next) {
        next = call->next;
        join->gates->caller.cancel(join->gates->caller.context, call->call);
        call_free(call);
    }
}

/* Nobody finds it any more; the caller frees it. */
static void join_leave(struct gate_join *join)
{
    join_cancel_calls(join);
    join_dequeue(join);
    *join->at = join->next;
    if (join->next != NULL)
        join->next->at = join->at;
    if (join->is_void)
        join->visitor->void_count--;
    else
        join->visitor->count--;
    join->gates->join_count--;
    join->gates->join_bytes -= join->text_bytes;
}

static enum gate_verdict gates_count(struct gates *gates, bool is_denied)
{
    if (is_denied)
        counters_add(gates->counters, COUNTER_JOINS_DENIED, 1);
    return is_denied ? GATE_DENIED : GATE_PASSED;
}

static void join_decide(struct gate_join *join, bool is_denied)
{
    struct gates *gates = join->gates;
    join_leave(join);
    if (!join->is_void)
        gates->options.decided(gates->options.context, join->visitor, &join->wish, join->is_path,
                               gates_count(gates, is_denied));
    free(join);
}

/* ---- asking ---- */

/* A line a second at most. */
static void gates_log(struct gates *gates, const struct gate *gate, const char *reason)
{
    char name[81];
    uint64_t now_ms = gates_now(gates);
    gates->silent_count++;
    if (gates->logged_ms != 0 && now_ms - gates->logged_ms < LOG_MS)
        return;
    size_t bytes = gate->function.bytes < sizeof name - 1 ? gate->function.bytes : sizeof name - 1;
    for (size_t i = 0; i < bytes; i++) {
        char byte = gate->function.data[i];
        name[i] = (char)(byte > ' ' && byte <= '~' && byte != '"' ? byte : '?');
    }
    name[bytes] = '\0';
    (void)fprintf(stderr,
                  "weir-gateway: event=gate_failed function=\"%s\" reason=\"%s\" count=%llu\n",
                  name, reason, (unsigned long long)gates->silent_count);
    gates->logged_ms = now_ms;
    gates->silent_count = 0;
}

static enum weir_status join_print(struct gate_join *join)
{
    struct gates *gates = join->gates;
    struct printer printer = {&gates->payload, WEIR_OK};
    buffer_clear(&gates->payload);
    print_literal(&printer, "{\"subscription_id\":");
    print_string(&printer, join->wish.subscription_id);
    print_literal(&printer, ",\"stream_name\":");
    print_string(&printer, join->wish.stream);
    print_literal(&printer, ",\"group_id\":");
    print_string(&printer, join->wish.group);
    print_literal(&printer, ",\"id\":");
    if (join->wish.item.data == NULL)
        print_literal(&printer, "null");
    else
        print_string(&printer, join->wish.item);
    print_literal(&printer, ",\"context\":");
    print_span(&printer, join->context.data == NULL ? SPAN_LITERAL("null") : join->context);
    print_literal(&printer, "}");
    return printer.status;
}

/* A gate that failed: closed ones deny. */
static void join_fail(struct gate_join *join, const struct gate *gate, const char *reason)
{
    gates_log(join->gates, gate, reason);
    if (join->gates->options.is_closed)
        join->is_denied = true;
}

static void on_answer(void *context, enum server_call_fate fate, struct span result,
                      struct span error_json);

/* Ask the condition or the handler; the payload is printed. */
static bool call_start(struct gate_call *call)
{
    struct gates *gates = call->join->gates;
    const struct gate *gate = call->gate;
    uint64_t now_ms = gates_now(gates);
    const struct server_call_request request = {
        .name_space = gate->name_space,
        .function = call->is_condition ? gate->condition : gate->function,
        .data = buffer_span(&gates->payload),
        .metadata = call->is_condition ? (struct span){0} : gate->metadata,
        .timeout_ms = call->join->deadline_ms > now_ms ? call->join->deadline_ms - now_ms : 0,
    };
    call->call = gates->caller.start(gates->caller.context, &request, on_answer, call);
    return call->call != NULL;
}

static void join_ask_gate(struct gate_join *join, struct gate *gate)
{
    struct gate_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        join_fail(join, gate, "no memory");
        return;
    }
    gate->references++;
    *call = (struct gate_call){
        .next = join->calls,
        .at = &join->calls,
        .join = join,
        .gate = gate,
        .is_condition = gate->condition.data != NULL,
    };
    if (call->next != NULL)
        call->next->at = &call->next;
    join->calls = call;
    if (call_start(call))
        return;
    join_fail(join, gate, "it cannot be asked");
    call_free(call);
}

/* The table is whole. True: every gate has answered already, or could not be asked. */
static bool join_begin(struct gate_join *join)
{
    struct gates *gates = join->gates;
    join_move(join, &gates->asking);
    join->deadline_ms = gates_now(gates) + gates->options.timeout_ms;
    join->is_denied = gates->is_blind && gates->options.is_closed;
    bool is_printed = false;
    for (struct gate *gate = gates->bound; gate != NULL; gate = gate->next) {
        if (!gate_matches(gate, join->wish.stream))
            continue;
        if (!is_printed && join_print(join) != WEIR_OK) {
            join_fail(join, gate, "no memory");
            break;
        }
        is_printed = true;
        join_ask_gate(join, gate);
    }
    return join->calls == NULL;
}

/* The same, and false as well if it waits for an away gate first. */
static bool join_try(struct gate_join *join)
{
    struct gates *gates = join->gates;
    const struct gate *away = gates_find_away(gates, join->wish.stream);
    uint64_t now_ms = gates_now(gates);
    if (away == NULL)
        return join_begin(join);
    if (join->patience_ms == 0)
        join->patience_ms = now_ms + GATES_GRACE_MS;
    uint64_t until_ms = away->until_ms < join->patience_ms ? away->until_ms : join->patience_ms;
    if (until_ms <= now_ms) {
        join_fail(join, away, "its worker has gone");
        return true;
    }
    join_move(join, &gates->awaiting);
    join->deadline_ms = until_ms;
    return false;
}

/* ---- answers ---- */

/* Of a member that comes twice the last one counts (PROTOCOL 1.4). */
static struct json_value result_unauthorized(struct json_value object)
{
    struct json_value key, value, found = {0};
    size_t cursor = 0;
    if (object.kind != JSON_OBJECT)
        return found;
    while (json_next(object, &cursor, &key, &value) == WEIR_OK) {
        if (json_string_equals(key, SPAN_LITERAL("unauthorized")))
            found = value;
    }
    return found;
}

static void join_take_handler(struct gate_join *join, const struct gate *gate, struct span result)
{
    struct json_value value = {0};
    if (result.data != NULL && json_scan(result, JSON_DEPTH_MAX, &value, NULL) != WEIR_OK) {
        join_fail(join, gate, "the result is not JSON");
        return;
    }
    switch (result_unauthorized(value).kind) {
    case JSON_TRUE:
        join->is_denied = true;
        break;
    case JSON_ABSENT:
    case JSON_FALSE:
        break;
    default:
        join_fail(join, gate, "`unauthorized` is not a boolean");
        break;
    }
}

static bool result_is_false(struct span result)
{
    struct json_value value;
    return result.data != NULL && json_scan(result, JSON_DEPTH_MAX, &value, NULL) == WEIR_OK &&
           value.kind == JSON_FALSE;
}

/* The condition holds: go on with its handler. False: that could not be. */
static bool call_go_on(struct gate_call *call)
{
    call->is_condition = false;
    return join_print(call->join) == WEIR_OK && call_start(call);
}

static void on_answer(void *context, enum server_call_fate fate, struct span result,
                      struct span error_json)
{
    struct gate_call *call = context;
    struct gate_join *join = call->join;
    (void)error_json;
    if (fate != SERVER_CALL_RESULT)
        join_fail(join, call->gate, fate == SERVER_CALL_LATE ? "no answer in time" : "an error");
    else if (!call->is_condition)
        join_take_handler(join, call->gate, result);
    else if (!result_is_false(result)) {
        if (call_go_on(call))
            return;
        join_fail(join, call->gate, "it cannot be asked");
    }
    call_free(call);
    if (join->calls == NULL)
        join_decide(join, join->is_denied);
}

/* ---- waiting for the table ---- */

/* Decide about what was held, as soon as that can be done. */
static void gates_settle(struct gates *gates)
{
    if (gates->is_sure && gates->lost == NULL && gates->away == NULL)
        gates_tell_all(gates);
    if (!gates_can_decide(gates))
        return;
    for (struct gate_join *join = gates->held.first, *next; join != NULL; join = next) {
        next = join->queue_next;
        if (join_try(join))
            join_decide(join, join->is_denied);
    }
}

static void gates_ask_barrier(struct gates *gates);

/* A broker that was there all the time has said what is bound and away. The rest was withdrawn. */
static void gates_forget_unsaid(struct gates *gates)
{
    gates_drop_all(gates, gates->lost);
    for (struct gate *gate = gates->away, *next; gate != NULL; gate = next) {
        next = gate->next;
        if (gate->handle == 0)
            gate_end_away(gates, gate);
    }
}

static void on_barrier(void *context, enum server_call_fate fate, struct span result,
                       struct span error_json)
{
    struct gates *gates = context;
    (void)result;
    (void)error_json;
    gates->barrier = NULL;
    if (!gates->is_attached || (fate != SERVER_CALL_RESULT && fate != SERVER_CALL_ERROR))
        return; /* the tick asks again */
    gates->is_sure = true;
    if (gates->options.heard != NULL)
        gates->options.heard(gates->options.heard_context);
    if (gates->is_same_broker)
        gates_forget_unsaid(gates);
    gates_settle(gates);
}

/* A function without a name is answered by the broker itself, behind everything it has said so far. */
static void gates_ask_barrier(struct gates *gates)
{
    const struct server_call_request request = {
        .function = SPAN_LITERAL(""),
        .timeout_ms = gates->options.timeout_ms,
    };
    gates->barrier = gates->caller.start(gates->caller.context, &request, on_barrier, gates);
}

void gates_attached(struct gates *gates, uint64_t generation)
{
    gates->is_same_broker = gates->was_attached && gates->generation == generation;
    gates->generation = generation;
    gates->is_attached = true;
    gates->is_sure = false;
    gates->is_blind = false;
    gates->has_told = false;
    gates->grace_ms = gates_now(gates) + GATES_GRACE_MS;
    if (!gates->was_attached) {
        gates->was_attached = true;
        for (struct gate_join *join = gates->held.first; join != NULL; join = join->queue_next)
            join->deadline_ms = gates_hold_deadline(gates);
    }
    gates_ask_barrier(gates);
}

/* Is somebody asked who will not be announced again? Then waiting for all gates is not enough. */
static bool join_asks_unbound(const struct gate_join *join)
{
    const struct gate_call *call = join->calls;
    while (call != NULL && !call->gate->is_unbound)
        call = call->next;
    return call != NULL;
}

void gates_lost(struct gates *gates)
{
    gates->is_attached = false;
    if (gates->barrier != NULL)
        gates->caller.cancel(gates->caller.context, gates->barrier);
    gates->barrier = NULL;
    for (struct gate *gate = gates->bound, *next; gate != NULL; gate = next) {
        next = gate->next;
        gate_unlink(gate);
        gate_link(gate, &gates->lost);
    }
    for (struct gate *gate = gates->away; gate != NULL; gate = gate->next)
        gate->handle = 0; /* the next broker's handles are its own */
    for (struct gate_join *join = gates->asking.first, *next; join != NULL; join = next) {
        next = join->queue_next;
        if (join->is_void || join_asks_unbound(join)) {
            join_decide(join, join->is_denied || gates->options.is_closed);
            continue;
        }
        join_cancel_calls(join);
        join_move(join, &gates->held);
        join->deadline_ms = gates_hold_deadline(gates);
    }
}

void gates_take_message(struct gates *gates, const struct wire_message *message)
{
    if (message->type == WIRE_GATE_BIND)
        gates_bind(gates, message);
    else if (message->type == WIRE_GATE_UNBIND)
        gates_unbind(gates, message->fields[0].number, message->fields[1].number != 0);
    else if (message->type == WIRE_GATES_TOLD)
        gates->is_told = true;
    gates_settle(gates);
}

/* Away gates that did not come back in time. */
static void gates_end_waits(struct gates *gates, uint64_t now_ms)
{
    for (struct gate_join *join = gates->awaiting.first, *next; join != NULL; join = next) {
        next = join->queue_next;
        if (join->deadline_ms > now_ms)
            continue;
        join_fail(join, gates_find_away(gates, join->wish.stream), "its worker has gone");
        join_decide(join, true);
    }
}

void gates_tick(struct gates *gates)
{
    uint64_t now_ms = gates_now(gates);
    if (gates->is_attached && !gates->is_sure && gates->barrier == NULL)
        gates_ask_barrier(gates);
    if (gates->is_attached && gates->is_sure && now_ms >= gates->grace_ms)
        gates_give_up_lost(gates);
    gates_settle(gates);
    gates_end_waits(gates, now_ms);
    if (!gates->was_attached)
        return;
    for (struct gate_join *join = gates->held.first, *next; join != NULL; join = next) {
        /* A join that was decided has left its queue. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
        next = join->queue_next;
        if (join->deadline_ms <= now_ms)
            join_decide(join, gates->options.is_closed);
    }
}

/* ---- visitors ---- */

static bool wish_fits(const struct subscription_wish *wish)
{
    return wish->subscription_id.bytes <= NAME_BYTES_MAX && wish->stream.bytes <= NAME_BYTES_MAX &&
           wish->group.bytes <= NAME_BYTES_MAX && wish->item.bytes <= NAME_BYTES_MAX;
}

static bool gates_concern(const struct gates *gates, struct span stream)
{
    struct gate *gate = gates->bound;
    while (gate != NULL && !gate_matches(gate, stream))
        gate = gate->next;
    return gate != NULL;
}

enum gate_verdict gates_ask(struct gates *gates, struct gate_visitor *visitor,
                            const struct gate_question *question)
{
    if (!wish_fits(&question->wish))
        return GATE_FULL;
    bool can_decide = gates_can_decide(gates);
    if (can_decide && gates->is_blind && gates->options.is_closed)
        return gates_count(gates, true);
    const struct gate *away = gates_find_away(gates, question->wish.stream);
    if (can_decide && away != NULL && away->until_ms <= gates_now(gates)) {
        gates_log(gates, away, "its worker has gone");
        return gates_count(gates, true);
    }
    if (can_decide && away == NULL && !gates_concern(gates, question->wish.stream))
        return GATE_PASSED;
    struct gate_join *join = join_make(gates, visitor, question);
    if (join == NULL)
        return GATE_FULL;
    join->deadline_ms = gates_hold_deadline(gates);
    if (!can_decide || !join_try(join))
        return GATE_WAITING;
    bool is_denied = join->is_denied;
    join_leave(join);
    free(join);
    return gates_count(gates, is_denied);
}

void gates_cancel(struct gates *gates, struct gate_visitor *visitor, struct span subscription_id)
{
    (void)gates;
    struct gate_join *join = visitor->joins;
    while (join != NULL &&
           (join->is_void || !span_equal(join->wish.subscription_id, subscription_id)))
        join = join->next;
    if (join == NULL)
        return;
    /* Its calls are on their way and cost the gates' workers as much as before: a socket that joins
     * and leaves without end must not get around its bound. */
    if (join->calls != NULL) {
        join->is_void = true;
        visitor->count--;
        visitor->void_count++;
        return;
    }
    join_leave(join);
    free(join);
}

void gates_forget(struct gates *gates, struct gate_visitor *visitor)
{
    (void)gates;
    for (struct gate_join *join = visitor->joins, *next; join != NULL; join = next) {
        next = join->next;
        join_leave(join);
        free(join);
    }
}

/* ---- life ---- */

struct gates *gates_open(const struct gates_options *options, const struct caller *caller,
                         struct counters *counters)
{
    struct gates *gates = calloc(1, sizeof *gates);
    if (gates == NULL)
        return NULL;
    gates->options = *options;
    gates->caller = *caller;
    gates->counters = counters;
    buffer_init(&gates->payload, PAYLOAD_BYTES_MAX);
    return gates;
}

void gates_close(struct gates *gates)
{
    if (gates == NULL)
        return;
    weir_assert(gates->join_count == 0);
    gates_drop_all(gates, gates->bound);
    gates_drop_all(gates, gates->lost);
    gates_drop_all(gates, gates->away);
    buffer_fini(&gates->payload);
    free(gates);
}

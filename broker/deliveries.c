#include "broker/deliveries.h"

#include <stdio.h>
#include <stdlib.h>

#include "broker/log.h"

enum {
    LINE_TURN_MAX = 256, /* deliveries one line begins before the next line has its turn */
    LOG_INTERVAL_MS = 1000,
    LOG_TEXT_BYTES = 200,
};

struct payload {
    uint32_t uses;
    size_t bytes;
    char text[];
};

/* What is known of a delivery that has left the queue. */
enum decision {
    DECISION_AWAITED, /* its condition function has been asked */
    DECISION_CALL,
    DECISION_SKIP,
};

struct delivery {
    struct delivery *next;
    struct payload *payload;
    enum decision decision;
};

struct delivery_list {
    struct delivery *first, **end;
};

struct delivery_line {
    struct deliveries *deliveries;
    struct delivery_line *ready_next, *ready_previous;
    bool is_ready; /* in the ready queue */
    struct delivery_list waiting;
    struct delivery_list deciding; /* in the order of the pushes: each waits for those before it */
    struct delivery_list called;   /* no order */
    uint32_t started_count;        /* deciding and called */
    size_t bytes;
    struct delivery_target target; /* into text */
    char text[];
};

/* At most one log line a second of each kind. */
struct muted_log {
    uint64_t last_ms;
    uint64_t count; /* since the last line */
};

struct deliveries {
    struct routes *routes;
    struct broker_counters *counters;
    uint64_t timeout_ms;
    uint64_t now_ms; /* of the last turn */
    struct delivery_line *ready_first, *ready_last;
    size_t ready_count, line_count;
    bool is_due;            /* a line has become ready since the last run */
    struct payload *recent; /* the last one pushed, while it is in use */
    size_t bytes;
    struct muted_log failures, drops;
};

enum weir_status deliveries_open(struct deliveries **deliveries, struct routes *routes,
                                 struct broker_counters *counters, uint64_t timeout_ms,
                                 struct weir_error *error)
{
    struct deliveries *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for deliveries");
    opened->routes = routes;
    opened->counters = counters;
    opened->timeout_ms = timeout_ms;
    *deliveries = opened;
    return WEIR_OK;
}

void deliveries_close(struct deliveries *deliveries)
{
    if (!deliveries)
        return;
    weir_assert(deliveries->line_count == 0);
    free(deliveries);
}

/* ---- log ---- */

static bool muted_log_is_due(struct muted_log *log, uint64_t now_ms)
{
    log->count++;
    if (log->last_ms != 0 && now_ms >= log->last_ms && now_ms - log->last_ms < LOG_INTERVAL_MS)
        return false;
    log->last_ms = now_ms;
    return true;
}

/* Names and errors are a worker's: no control characters in the log, and not all of a long one. */
static const char *log_text(char out[LOG_TEXT_BYTES + 1], struct span text)
{
    size_t bytes = text.bytes < LOG_TEXT_BYTES ? text.bytes : LOG_TEXT_BYTES;
    for (size_t index = 0; index < bytes; index++) {
        unsigned char byte = (unsigned char)text.data[index];
        out[index] = byte < 0x20 || byte == 0x7F ? ' ' : (char)byte;
    }
    out[bytes] = 0;
    return out;
}

static void line_failed(struct delivery_line *line, struct span function, struct span reason)
{
    struct deliveries *deliveries = line->deliveries;
    deliveries->counters->deliveries_failed++;
    if (!muted_log_is_due(&deliveries->failures, deliveries->now_ms))
        return;
    char function_text[LOG_TEXT_BYTES + 1];
    char reason_text[LOG_TEXT_BYTES + 1];
    log_line("event=delivery_failed function=\"%s\" failures=%llu reason=%s",
             log_text(function_text, function), (unsigned long long)deliveries->failures.count,
             log_text(reason_text, reason));
    deliveries->failures.count = 0;
}

static void line_dropped(struct delivery_line *line)
{
    struct deliveries *deliveries = line->deliveries;
    deliveries->counters->deliveries++;
    deliveries->counters->deliveries_dropped++;
    if (!muted_log_is_due(&deliveries->drops, deliveries->now_ms))
        return;
    char function_text[LOG_TEXT_BYTES + 1];
    log_line("event=deliveries_dropped function=\"%s\" drops=%llu",
             log_text(function_text, line->target.function),
             (unsigned long long)deliveries->drops.count);
    deliveries->drops.count = 0;
}

/* ---- lists and payloads ---- */

static void list_init(struct delivery_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static void list_append(struct delivery_list *list, struct delivery *delivery)
{
    delivery->next = NULL;
    *list->end = delivery;
    list->end = &delivery->next;
}

static struct delivery *list_take_first(struct delivery_list *list)
{
    struct delivery *delivery = list->first;
    list->first = delivery->next;
    if (!list->first)
        list->end = &list->first;
    return delivery;
}

static void list_remove(struct delivery_list *list, struct delivery *delivery)
{
    struct delivery **link = &list->first;
    while (*link != delivery) /* at most DELIVERIES_OUTSTANDING_MAX; it is in there */
        link = &(*link)->next;
    *link = delivery->next;
    if (!delivery->next)
        list->end = link;
}

static size_t payload_cost(size_t bytes)
{
    return sizeof(struct payload) + bytes;
}

/* What one delivery counts for its line: a payload shared with other lines counts for each. */
static size_t delivery_cost(size_t bytes)
{
    return sizeof(struct delivery) + payload_cost(bytes);
}

static struct payload *payload_take(struct deliveries *deliveries, struct span text)
{
    struct payload *payload = deliveries->recent;
    if (payload && span_equal(span_of(payload->text, payload->bytes), text)) {
        payload->uses++;
        return payload;
    }
    if (deliveries->bytes + delivery_cost(text.bytes) > DELIVERIES_BYTES_MAX)
        return NULL;
    payload = malloc(payload_cost(text.bytes));
    if (!payload)
        return NULL;
    payload->uses = 1;
    payload->bytes = text.bytes;
    memcpy(payload->text, text.data, text.bytes);
    deliveries->bytes += payload_cost(text.bytes);
    deliveries->recent = payload;
    return payload;
}

static void payload_drop(struct deliveries *deliveries, struct payload *payload)
{
    if (--payload->uses > 0)
        return;
    if (deliveries->recent == payload)
        deliveries->recent = NULL;
    deliveries->bytes -= payload_cost(payload->bytes);
    free(payload);
}

static void delivery_free(struct delivery_line *line, struct delivery *delivery)
{
    line->bytes -= delivery_cost(delivery->payload->bytes);
    line->deliveries->bytes -= sizeof *delivery;
    payload_drop(line->deliveries, delivery->payload);
    free(delivery);
}

static void list_free(struct delivery_line *line, struct delivery_list *list)
{
    while (list->first)
        delivery_free(line, list_take_first(list));
}

/* ---- ready queue ---- */

static void line_make_ready(struct delivery_line *line)
{
    struct deliveries *deliveries = line->deliveries;
    deliveries->is_due = true;
    if (line->is_ready)
        return;
    line->is_ready = true;
    line->ready_next = NULL;
    line->ready_previous = deliveries->ready_last;
    if (deliveries->ready_last)
        deliveries->ready_last->ready_next = line;
    else
        deliveries->ready_first = line;
    deliveries->ready_last = line;
    deliveries->ready_count++;
}

static void line_unready(struct delivery_line *line)
{
    struct deliveries *deliveries = line->deliveries;
    if (!line->is_ready)
        return;
    line->is_ready = false;
    if (line->ready_previous)
        line->ready_previous->ready_next = line->ready_next;
    else
        deliveries->ready_first = line->ready_next;
    if (line->ready_next)
        line->ready_next->ready_previous = line->ready_previous;
    else
        deliveries->ready_last = line->ready_previous;
    deliveries->ready_count--;
}

/* ---- lines ---- */

struct delivery_line *delivery_line_open(struct deliveries *deliveries,
                                         const struct delivery_target *target)
{
    size_t bytes = target->space.bytes + target->function.bytes + target->condition.bytes +
                   target->metadata.bytes;
    struct delivery_line *line = calloc(1, sizeof *line + bytes);
    if (!line)
        return NULL;
    char *end = line->text;
    line->target.space = span_put(&end, target->space);
    line->target.function = span_put(&end, target->function);
    line->target.condition = span_put(&end, target->condition);
    line->target.metadata = span_put(&end, target->metadata);
    list_init(&line->waiting);
    list_init(&line->deciding);
    list_init(&line->called);
    line->deliveries = deliveries;
    deliveries->line_count++;
    return line;
}

void delivery_line_close(struct delivery_line *line)
{
    if (!line)
        return;
    if (line->started_count > 0)
        routes_cancel_own(line->deliveries->routes, line);
    list_free(line, &line->waiting);
    list_free(line, &line->deciding);
    list_free(line, &line->called);
    line_unready(line);
    line->deliveries->line_count--;
    free(line);
}

void delivery_line_push(struct delivery_line *line, struct span payload)
{
    struct deliveries *deliveries = line->deliveries;
    bool fits = line->bytes + delivery_cost(payload.bytes) <= DELIVERIES_LINE_BYTES_MAX &&
                deliveries->bytes + sizeof(struct delivery) <= DELIVERIES_BYTES_MAX;
    struct payload *kept = fits ? payload_take(deliveries, payload) : NULL;
    struct delivery *delivery = kept ? malloc(sizeof *delivery) : NULL;
    if (!delivery) {
        if (kept)
            payload_drop(deliveries, kept);
        line_dropped(line);
        return;
    }
    *delivery = (struct delivery){.payload = kept};
    line->bytes += delivery_cost(payload.bytes);
    deliveries->bytes += sizeof *delivery;
    list_append(&line->waiting, delivery);
    line_make_ready(line);
}

/* ---- calls ---- */

static struct span fate_reason(enum routes_own_fate fate, struct span error_json)
{
    return fate == ROUTES_OWN_LATE ? SPAN_LITERAL("timeout") : error_json;
}

static struct span status_reason(enum weir_status status)
{
    return status == WEIR_EMPTY ? SPAN_LITERAL("function_not_found")
                                : span_text(weir_status_text(status));
}

static void line_end(struct delivery_line *line, struct delivery *delivery)
{
    line->started_count--;
    delivery_free(line, delivery);
    line_make_ready(line);
}

static void on_handler_done(void *context, uint64_t token, enum routes_own_fate fate,
                            struct span result, struct span error_json)
{
    struct delivery_line *line = context;
    struct delivery *delivery = (struct delivery *)(uintptr_t)token;
    (void)result;
    if (fate != ROUTES_OWN_RESULT)
        line_failed(line, line->target.function, fate_reason(fate, error_json));
    list_remove(&line->called, delivery);
    line_end(line, delivery);
}

/* A delivery whose condition failed counts as one that was made and failed. */
static void line_condition_failed(struct delivery_line *line, struct span reason)
{
    line->deliveries->counters->deliveries++;
    line_failed(line, line->target.condition, reason);
}

static void on_condition_done(void *context, uint64_t token, enum routes_own_fate fate,
                              struct span result, struct span error_json)
{
    struct delivery_line *line = context;
    struct delivery *delivery = (struct delivery *)(uintptr_t)token;
    delivery->decision = DECISION_CALL;
    if (fate != ROUTES_OWN_RESULT)
        line_condition_failed(line, fate_reason(fate, error_json));
    if (fate != ROUTES_OWN_RESULT || span_equal(result, SPAN_LITERAL("false")))
        delivery->decision = DECISION_SKIP;
    line_make_ready(line);
}

static enum weir_status line_call(struct delivery_line *line, const struct delivery *delivery,
                                  bool is_condition)
{
    struct deliveries *deliveries = line->deliveries;
    const struct routes_own_call call = {
        .space = line->target.space,
        .function = is_condition ? line->target.condition : line->target.function,
        .data = span_of(delivery->payload->text, delivery->payload->bytes),
        .metadata = is_condition ? (struct span){0} : line->target.metadata,
        .timeout_ms = deliveries->timeout_ms,
    };
    return routes_call_own(deliveries->routes, &call,
                           is_condition ? on_condition_done : on_handler_done, line,
                           (uint64_t)(uintptr_t)delivery, deliveries->now_ms);
}

/* The gateway of the function's worker lags, or everybody's calls are at their bound: not the
 * delivery's fault, so it is tried again. */
static bool status_is_passing(enum weir_status status)
{
    return status == WEIR_UNAVAILABLE || status == WEIR_FULL;
}

/* Call for those at the head whose condition is known. False: one has to be tried again. */
static bool line_call_decided(struct delivery_line *line)
{
    while (line->deciding.first && line->deciding.first->decision != DECISION_AWAITED) {
        struct delivery *delivery = line->deciding.first;
        enum weir_status status = WEIR_OK;
        bool is_called = delivery->decision == DECISION_CALL;
        if (is_called)
            status = line_call(line, delivery, false);
        if (status_is_passing(status))
            return false;
        (void)list_take_first(&line->deciding);
        if (is_called)
            line->deliveries->counters->deliveries++;
        if (is_called && status == WEIR_OK) {
            list_append(&line->called, delivery);
            continue;
        }
        if (is_called)
            line_failed(line, line->target.function, status_reason(status));
        line_end(line, delivery);
    }
    return true;
}

/* Take the next one off the queue and ask its condition. False: it has to be tried again. */
static bool line_start(struct delivery_line *line)
{
    struct delivery *delivery = line->waiting.first;
    enum weir_status status = WEIR_OK;
    delivery->decision = DECISION_CALL;
    if (line->target.condition.data) {
        delivery->decision = DECISION_AWAITED;
        status = line_call(line, delivery, true);
    }
    if (status_is_passing(status))
        return false;
    if (status != WEIR_OK) {
        line_condition_failed(line, status_reason(status));
        delivery->decision = DECISION_SKIP;
    }
    list_append(&line->deciding, list_take_first(&line->waiting));
    line->started_count++;
    return true;
}

enum line_state {
    LINE_IDLE,    /* something will make it ready */
    LINE_BLOCKED, /* to be tried again in a later turn */
    LINE_MORE,
};

static enum line_state line_run(struct delivery_line *line, unsigned *budget)
{
    unsigned begun = 0;
    if (!line_call_decided(line))
        return LINE_BLOCKED;
    while (line->waiting.first && line->started_count < DELIVERIES_OUTSTANDING_MAX) {
        if (*budget == 0 || begun == LINE_TURN_MAX)
            return LINE_MORE;
        (*budget)--;
        begun++;
        if (!line_start(line) || !line_call_decided(line))
            return LINE_BLOCKED;
    }
    return LINE_IDLE;
}

bool deliveries_run(struct deliveries *deliveries, uint64_t now_ms)
{
    unsigned budget = DELIVERIES_TURN_MAX;
    bool has_more = false;
    deliveries->now_ms = now_ms;
    for (size_t left = deliveries->ready_count; left > 0; left--) {
        struct delivery_line *line = deliveries->ready_first;
        line_unready(line);
        enum line_state state = line_run(line, &budget);
        line_unready(line); /* what has just ended may have made it ready; the state says it all */
        if (state != LINE_IDLE)
            line_make_ready(line);
        has_more |= state == LINE_MORE;
    }
    deliveries->is_due = has_more;
    return has_more;
}

bool deliveries_have_room(const struct deliveries *deliveries)
{
    return deliveries->bytes < DELIVERIES_BYTES_MAX / 4;
}

bool deliveries_are_due(const struct deliveries *deliveries)
{
    return deliveries->is_due;
}

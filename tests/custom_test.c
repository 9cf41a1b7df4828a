/* Custom adapters without a broker: a stand-in for the workers, whose answers each test gives by
 * hand. The store, the ring's order and stream::update are the real ones. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "adapters/custom.h"
#include "adapters/kv.h"

enum { CALLS_MAX = 8192, TOLD_MAX = 4096, VALUE_MAX = 2000 };

struct call {
    char function[256];
    char data[4096];
    char traceparent[64];
    uint64_t token;
};

struct told {
    uint64_t request;
    bool is_write;
    enum weir_status status;
    bool existed, has_value;
    uint64_t seq, timestamp_ms;
    char old_value[256], value[256], errors[512], sentence[1024], error_json[256], code[64];
    char item[64], traceparent[64];
};

static struct segment segment;
static struct readers *readers;
static struct store *store;
static struct ring_writer *ring;
static struct adapter *kv;
static struct custom *custom;
static struct broker_counters counters;
static const char *functions[32]; /* that exist */
static struct call calls[CALLS_MAX];
static unsigned call_count;
static struct told told[TOLD_MAX];
static unsigned told_count;
static enum weir_status refuse; /* what the seam says instead of taking a call */
static char changes[1024];      /* "+name " and "-name " */
static uint64_t now_ms = 1700000000000;

static void copy(char *out, size_t size, struct span text)
{
    cr_assert_lt(text.bytes, size, "%.100s", text.data);
    if (text.bytes > 0)
        memcpy(out, text.data, text.bytes);
    out[text.bytes] = 0;
}

static bool seam_has(void *context, struct span id)
{
    (void)context;
    for (unsigned index = 0; index < 32; index++)
        if (functions[index] && span_equal(id, span_text(functions[index])))
            return true;
    return false;
}

static enum weir_status seam_call(void *context, const struct custom_call *call)
{
    if (!seam_has(context, call->function))
        return WEIR_EMPTY;
    if (refuse != WEIR_OK)
        return refuse;
    cr_assert_lt(call_count, CALLS_MAX);
    cr_assert_eq(call->timeout_ms, 1234);
    struct call *made = &calls[call_count++];
    copy(made->function, sizeof made->function, call->function);
    copy(made->data, sizeof made->data, call->data);
    copy(made->traceparent, sizeof made->traceparent, call->trace.traceparent);
    made->token = call->token;
    return WEIR_OK;
}

static void seam_changed(void *context, struct span stream, bool is_custom)
{
    (void)context;
    size_t end = strlen(changes);
    snprintf(changes + end, sizeof changes - end, "%s%.*s ", is_custom ? "+" : "-",
             stream.data ? (int)stream.bytes : 5, stream.data ? stream.data : "(any)");
}

static void take_outcome(struct told *now, const struct adapter_outcome *outcome)
{
    now->status = outcome->status;
    now->has_value = outcome->value.data != NULL;
    copy(now->value, sizeof now->value, outcome->value);
    copy(now->errors, sizeof now->errors, outcome->errors);
    copy(now->sentence, sizeof now->sentence, outcome->sentence);
    copy(now->error_json, sizeof now->error_json, outcome->error_json);
    snprintf(now->code, sizeof now->code, "%s", outcome->code ? outcome->code : "");
}

static void on_written(void *context, uint64_t request, const struct adapter_write *write,
                       const struct adapter_outcome *outcome)
{
    (void)context;
    cr_assert_lt(told_count, TOLD_MAX);
    struct told *now = &told[told_count++];
    *now = (struct told){.request = request, .is_write = true};
    take_outcome(now, outcome);
    if (outcome->status == WEIR_CLOSED)
        return;
    copy(now->item, sizeof now->item, write->key.item);
    copy(now->traceparent, sizeof now->traceparent, write->trace.traceparent);
    cr_assert_eq(outcome->status == WEIR_OK, outcome->change != NULL);
    if (!outcome->change)
        return;
    now->existed = outcome->change->existed;
    now->seq = outcome->change->group.seq;
    now->timestamp_ms = outcome->change->group.timestamp_ms;
    if (now->existed)
        copy(now->old_value, sizeof now->old_value, outcome->change->old_value);
    /* As the engine does: the event goes into the ring. */
    struct ring_record record = {.previous_position = outcome->change->group.newest_position,
                                 .group_offset = outcome->change->group.offset,
                                 .group_hash = outcome->change->group.hash,
                                 .seq = now->seq,
                                 .epoch = outcome->change->group.epoch,
                                 .frame_bytes = 1,
                                 .id_bytes = UINT32_MAX};
    cr_assert_eq(ring_append(ring, &record, span_text("x"), (struct span){0}, NULL), WEIR_OK);
    store_group_published(store, outcome->change->group.offset, record.position);
}

static void on_answered(void *context, uint64_t request, const struct adapter_outcome *outcome)
{
    (void)context;
    cr_assert_lt(told_count, TOLD_MAX);
    struct told *now = &told[told_count++];
    *now = (struct told){.request = request};
    take_outcome(now, outcome);
}

static const char *write_problem(void *context, const struct adapter_write *write,
                                 size_t value_bytes)
{
    (void)context;
    (void)write;
    return value_bytes > VALUE_MAX ? "the value is larger than value_bytes_max" : NULL;
}

static void open_custom_with(struct custom_options options)
{
    struct weir_error error = {0};
    const struct segment_options segment_options = {.ring_bytes = 4 * 1024 * 1024,
                                                    .store_bytes = 64 * 1024 * 1024,
                                                    .generation = 1700000000000000};
    const struct store_options limits = {
        .items_max = 1000, .groups_max = 100, .empty_groups_max = 100};
    cr_assert_eq(segment_create(&segment, &segment_options, &error), WEIR_OK, "%s", error.text);
    readers = readers_open(&segment);
    ring = ring_writer_open(&segment);
    cr_assert_eq(store_open(&store, &segment, readers, &limits, &error), WEIR_OK, "%s", error.text);
    segment_publish(&segment);
    const struct adapter_environment environment = {
        .segment = &segment,
        .store = store,
        .value_bytes_max = VALUE_MAX,
        .done = {on_written, on_answered, write_problem, NULL},
    };
    cr_assert_eq(adapter_kv.open(&kv, &environment, &error), WEIR_OK, "%s", error.text);
    const struct custom_store inner = {&adapter_kv, kv};
    options.seam = (struct custom_seam){seam_call, seam_has, seam_changed, NULL};
    options.timeout_ms = 1234;
    options.counters = &counters;
    cr_assert_eq(custom_open(&custom, &options, &environment, &inner, &error), WEIR_OK, "%s",
                 error.text);
}

static void open_custom(void)
{
    open_custom_with((struct custom_options){0});
}

static void close_custom(void)
{
    custom_close(custom);
    adapter_kv.close(kv);
    store_close(store);
    ring_writer_close(ring);
    readers_close(readers);
    segment_close(&segment);
}

TestSuite(custom, .init = open_custom, .fini = close_custom, .timeout = HANG_SECONDS);

static void function_appears(const char *id)
{
    unsigned index = 0;
    while (functions[index])
        index++;
    functions[index] = id;
    custom_function_changed(custom, span_text(id), true);
}

static void function_goes(const char *id)
{
    for (unsigned index = 0; index < 32; index++)
        if (functions[index] && strcmp(functions[index], id) == 0)
            functions[index] = NULL;
    custom_function_changed(custom, span_text(id), false);
}

/* What createStream registers for the stream `s`. */
static void stream_appears(void)
{
    function_appears("stream::get(s)");
    function_appears("stream::set(s)");
    function_appears("stream::delete(s)");
    function_appears("stream::list(s)");
    function_appears("stream::list_groups(s)");
}

static struct store_key key_of(const char *stream, const char *group, const char *item)
{
    return (struct store_key){span_text(stream), span_text(group),
                              item ? span_text(item) : (struct span){0}};
}

/* The spans given are wiped afterwards: whoever wants them later has copied them. */
static bool write_to(const char *stream, uint64_t request, enum adapter_write_kind kind,
                     const char *group, const char *item, const char *value)
{
    char *texts[] = {strdup(stream), strdup(group), strdup(item), strdup(value ? value : "")};
    const struct adapter_write write = {.kind = kind,
                                        .key = key_of(texts[0], texts[1], texts[2]),
                                        .value = value ? span_text(texts[3]) : (struct span){0},
                                        .event_type = span_text("t"),
                                        .trace = {.traceparent = span_text("trace-1")},
                                        .now_ms = now_ms};
    bool is_taken = custom_write(custom, request, &write);
    for (unsigned index = 0; index < 4; index++) {
        memset(texts[index], '#', strlen(texts[index]));
        free(texts[index]);
    }
    return is_taken;
}

static bool write_s(uint64_t request, enum adapter_write_kind kind, const char *group,
                    const char *item, const char *value)
{
    return write_to("s", request, kind, group, item, value);
}

static bool read_s(uint64_t request, enum adapter_read_kind kind, const char *group,
                   const char *item)
{
    char *texts[] = {strdup("s"), strdup(group), strdup(item)};
    const struct adapter_read read = {.kind = kind,
                                      .key = key_of(texts[0], texts[1], texts[2]),
                                      .trace = {.traceparent = span_text("trace-2")},
                                      .now_ms = now_ms};
    bool is_taken = custom_read(custom, request, &read);
    for (unsigned index = 0; index < 3; index++) {
        memset(texts[index], '#', strlen(texts[index]));
        free(texts[index]);
    }
    return is_taken;
}

static void answer(unsigned call, const char *result)
{
    cr_assert_lt(call, call_count, "call %u was made", call);
    custom_answer(custom, calls[call].token, CUSTOM_RESULT,
                  result ? span_text(result) : (struct span){0}, (struct span){0}, now_ms);
}

static void answer_error(unsigned call, const char *error_json)
{
    cr_assert_lt(call, call_count);
    custom_answer(custom, calls[call].token, CUSTOM_ERROR, (struct span){0}, span_text(error_json),
                  now_ms);
}

static void expect_call(unsigned call, const char *function, const char *data)
{
    cr_assert_lt(call, call_count, "call %u was made", call);
    cr_assert_str_eq(calls[call].function, function);
    cr_assert_str_eq(calls[call].data, data);
}

static const struct told *last(uint64_t request)
{
    cr_assert_gt(told_count, 0);
    cr_assert_eq(told[told_count - 1].request, request);
    return &told[told_count - 1];
}

Test(custom, only_what_is_registered_is_taken)
{
    cr_assert_not(write_s(1, ADAPTER_SET, "g", "i", "1"), "nothing is registered");
    function_appears("stream::set(s)");
    function_appears("stream::send(s)");
    function_appears("stream::list_all(s)");
    function_appears("stream::what(s)");
    function_appears("stream::set");
    function_appears("stream::set(open");
    function_appears("app::set(s)");
    cr_assert_str_eq(changes, "+s ", "one stream is custom, told once");
    cr_assert_not(write_s(1, ADAPTER_DELETE, "g", "i", NULL));
    cr_assert_not(write_s(1, ADAPTER_EVENT, "g", "i", "1"));
    cr_assert_not(write_s(1, ADAPTER_UPDATE, "g", "i", "[]"), "get is missing");
    cr_assert_not(read_s(1, ADAPTER_GET, "g", "i"));
    cr_assert_not(read_s(1, ADAPTER_LIST_ALL, "g", "i"));
    cr_assert_not(write_to("t", 1, ADAPTER_SET, "g", "i", "1"));
    cr_assert(write_s(1, ADAPTER_SET, "g", "i", "1"));
    cr_assert_eq(call_count, 1);
    answer(0, "{\"new_value\":1}");
    function_appears("stream::get(a(b))");
    cr_assert_str_eq(changes, "+s +a(b) ");
}

/* covers: 5#1 5#2 5#3 5#4 5#5 */
Test(custom, inputs_and_results_of_the_five_operations)
{
    stream_appears();
    cr_assert(write_s(1, ADAPTER_SET, "g\"1", "i", "{\"a\":[1]}"));
    expect_call(
        0, "stream::set(s)",
        "{\"stream_name\":\"s\",\"group_id\":\"g\\\"1\",\"item_id\":\"i\",\"data\":{\"a\":[1]}}");
    cr_assert_str_eq(calls[0].traceparent, "trace-1");
    answer(0, "{ \"old_value\" : null, \"new_value\" : { \"a\" : [ 1 ] }, \"more\":1 }");
    cr_assert_eq(last(1)->status, WEIR_OK);
    cr_assert_str_eq(last(1)->value, "{\"a\":[1]}", "white space is left out");
    cr_assert_str_eq(last(1)->item, "i");
    cr_assert_str_eq(last(1)->traceparent, "trace-1");
    cr_assert_not(last(1)->existed);
    cr_assert_eq(last(1)->seq, 1);
    cr_assert(write_s(2, ADAPTER_SET, "g\"1", "i", "2"));
    answer(1, "{\"old_value\":{\"a\":[1]},\"new_value\":2}");
    cr_assert(last(2)->existed);
    cr_assert_str_eq(last(2)->old_value, "{\"a\":[1]}");
    cr_assert_eq(last(2)->seq, 2);
    cr_assert_gt(last(2)->timestamp_ms, told[0].timestamp_ms);

    cr_assert(read_s(3, ADAPTER_GET, "g", "i"));
    expect_call(2, "stream::get(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\"}");
    cr_assert_str_eq(calls[2].traceparent, "trace-2");
    answer(2, "\"x\"");
    cr_assert_str_eq(last(3)->value, "\"x\"");
    for (uint64_t request = 4; request < 6; request++) {
        cr_assert(read_s(request, ADAPTER_GET, "g", "i"));
        answer((unsigned)request - 1, request == 4 ? "null" : NULL);
        cr_assert_eq(last(request)->status, WEIR_EMPTY);
    }
    cr_assert(read_s(6, ADAPTER_LIST, "g", ""));
    expect_call(5, "stream::list(s)", "{\"stream_name\":\"s\",\"group_id\":\"g\"}");
    answer(5, NULL);
    cr_assert_eq(last(6)->status, WEIR_OK);
    cr_assert_not(last(6)->has_value);
    cr_assert(read_s(7, ADAPTER_LIST_GROUPS, "", ""));
    expect_call(6, "stream::list_groups(s)", "{\"stream_name\":\"s\"}");
    answer(6, "[\"g\"]");
    cr_assert_str_eq(last(7)->value, "[\"g\"]");

    cr_assert(write_s(8, ADAPTER_DELETE, "g", "i", NULL));
    expect_call(7, "stream::delete(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\"}");
    answer(7, "{\"old_value\":\"x\"}");
    cr_assert_eq(last(8)->status, WEIR_OK);
    cr_assert_str_eq(last(8)->old_value, "\"x\"");
    cr_assert(write_s(9, ADAPTER_DELETE, "g", "i", NULL));
    answer(8, "{}");
    cr_assert_eq(last(9)->status, WEIR_EMPTY, "nothing was there: no event");
    cr_assert_eq(counters.custom_calls, 9);
    cr_assert_eq(counters.custom_failed, 0);
}

Test(custom, failures_of_a_function)
{
    static const char *const shapes[] = {
        "7", "[]", "\"x\"", "{\"old_value\":1}", "{oops", "{\"new_value\":1,\"new_value\":2}"};
    unsigned call = 0;
    stream_appears();
    for (unsigned index = 0; index < 6; index++) {
        (void)write_s(1, ADAPTER_SET, "g", "i", "1");
        answer(call++, shapes[index]);
        cr_assert_eq(last(1)->status, WEIR_INVALID);
        cr_assert_str_eq(last(1)->code, "JSON_ERROR", "%s", shapes[index]);
    }
    for (unsigned index = 0; index < 2; index++) {
        (void)write_s(2, index ? ADAPTER_DELETE : ADAPTER_SET, "g", "i", "1");
        answer(call++, index ? "null" : NULL);
        cr_assert_lt(last(2)->status, WEIR_OK);
        cr_assert_str_eq(last(2)->code, "", "the operation's own");
        cr_assert(strstr(last(2)->sentence, "nothing"));
    }
    (void)write_s(3, ADAPTER_SET, "g", "i", "1");
    answer_error(call++, "{\"code\":\"C\",\"message\":\"m \\u00e9\"}");
    cr_assert_str_eq(last(3)->code, "");
    cr_assert(strstr(last(3)->sentence, "C: m é"), "%s", last(3)->sentence);
    (void)read_s(4, ADAPTER_LIST, "g", "");
    answer_error(call++, "{\"code\":\"C\",\"message\":\"m\",\"stacktrace\":\"s\"}");
    cr_assert_str_eq(last(4)->error_json,
                     "{\"code\":\"C\",\"message\":\"m\",\"stacktrace\":\"s\"}");
    (void)read_s(5, ADAPTER_GET, "g", "i");
    answer(call++, "{oops");
    cr_assert_str_eq(last(5)->code, "JSON_ERROR");
    (void)read_s(6, ADAPTER_GET, "g", "i");
    custom_answer(custom, calls[call++].token, CUSTOM_LATE, (struct span){0}, (struct span){0},
                  now_ms);
    cr_assert_eq(last(6)->status, WEIR_TIMEOUT);
    (void)write_s(7, ADAPTER_SET, "g", "i", "1");
    custom_answer(custom, calls[call++].token, CUSTOM_LATE, (struct span){0}, (struct span){0},
                  now_ms);
    cr_assert(strstr(last(7)->sentence, "custom_timeout_ms"));
    cr_assert_eq(counters.custom_failed, 4);
    /* None of them took a number. */
    (void)write_s(8, ADAPTER_SET, "g", "i", "1");
    answer(call++, "{\"new_value\":1}");
    cr_assert_eq(last(8)->seq, 1);
}

Test(custom, a_value_beyond_its_limit_is_the_operations_error)
{
    static char large[VALUE_MAX + 64];
    snprintf(large, sizeof large, "{\"new_value\":\"%0*d\"}", VALUE_MAX + 1, 0);
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "i", "1");
    answer(0, large);
    cr_assert_eq(last(1)->status, WEIR_TOO_LARGE);
    cr_assert(strstr(last(1)->sentence, "value_bytes_max"));
    memcpy(large + 2, "old", 3);
    (void)write_s(2, ADAPTER_DELETE, "g", "i", NULL);
    answer(1, large);
    cr_assert_eq(last(2)->status, WEIR_TOO_LARGE);
}

/* Writes to a group are made one at a time; another group does not wait; reads wait for the writes
 * before them, and writes not for reads. */
Test(custom, a_groups_writes_are_made_in_their_order)
{
    stream_appears();
    cr_assert(write_s(1, ADAPTER_SET, "g", "a", "1"));
    cr_assert(write_s(2, ADAPTER_SET, "g", "b", "2"));
    cr_assert(read_s(3, ADAPTER_GET, "g", "b"));
    cr_assert(read_s(4, ADAPTER_LIST, "g", ""));
    cr_assert(write_s(5, ADAPTER_DELETE, "g", "b", NULL));
    cr_assert(write_s(6, ADAPTER_SET, "h", "a", "6"));
    cr_assert(read_s(7, ADAPTER_GET, "h2", "a"));
    cr_assert_eq(call_count, 3, "the first of each group");
    expect_call(1, "stream::set(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"h\",\"item_id\":\"a\",\"data\":6}");
    answer(0, "{\"new_value\":1}");
    cr_assert_eq(call_count, 4);
    expect_call(3, "stream::set(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"b\",\"data\":2}");
    answer(3, "{\"new_value\":2}");
    cr_assert_eq(call_count, 7, "both reads, and the write behind them");
    expect_call(4, "stream::get(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"b\"}");
    expect_call(5, "stream::list(s)", "{\"stream_name\":\"s\",\"group_id\":\"g\"}");
    answer(6, "{\"old_value\":2}");
    answer(5, "[1]");
    answer(4, "2");
    answer(2, "3");
    answer(1, "{\"new_value\":6}");
    static const uint64_t order[] = {1, 2, 5, 4, 3, 7, 6};
    cr_assert_eq(told_count, 7);
    for (unsigned index = 0; index < 7; index++)
        cr_assert_eq(told[index].request, order[index]);
    cr_assert_eq(told[2].seq, 3);
    /* The group's line is empty again: the next write starts at once. */
    cr_assert(write_s(8, ADAPTER_SET, "g", "a", "8"));
    cr_assert_eq(call_count, 8);
    answer(7, "{\"new_value\":8}");
    cr_assert_eq(last(8)->seq, 4);
}

/* A worker that hangs: what has waited behind it is told at its time limit, and has not been made. */
Test(custom, waiting_behind_a_worker_that_hangs_does_not_add_up)
{
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "a", "1");
    (void)write_s(2, ADAPTER_SET, "g", "a", "2");
    (void)read_s(3, ADAPTER_GET, "g", "a");
    (void)write_s(4, ADAPTER_EVENT, "g", "a", "\"note\"");
    now_ms += 1000;
    (void)write_s(5, ADAPTER_SET, "g", "a", "5");
    (void)read_s(6, ADAPTER_LIST_GROUPS, "", "");
    now_ms += 234;
    custom_answer(custom, calls[0].token, CUSTOM_LATE, (struct span){0}, (struct span){0}, now_ms);
    cr_assert_eq(told_count, 4);
    for (unsigned index = 0; index < 3; index++) {
        cr_assert_eq(told[index].request, index + 1);
        cr_assert_eq(told[index].status, WEIR_TIMEOUT);
    }
    cr_assert(strstr(told[1].sentence, "was not given"));
    cr_assert_eq(told[3].status, WEIR_OK, "an event needs no worker");
    cr_assert_eq(call_count, 2, "the last write has waited for a moment only");
    answer(1, "{\"new_value\":5}");
    answer(2, "[]");
    cr_assert_eq(last(6)->status, WEIR_OK);
}

/* stream::send and what is not replaced keep their place behind the group's writes. */
Test(custom, what_goes_to_the_store_waits_for_the_writes_before_it)
{
    function_appears("stream::set(s)");
    cr_assert(write_s(1, ADAPTER_SET, "g", "a", "1"));
    cr_assert(write_s(2, ADAPTER_EVENT, "g", "a", "\"note\""));
    cr_assert(write_s(3, ADAPTER_DELETE, "g", "a", NULL));
    cr_assert(write_s(4, ADAPTER_SET, "g", "a", "4"));
    cr_assert(write_s(5, ADAPTER_EVENT, "g", "b", "\"more\""));
    cr_assert_not(write_s(6, ADAPTER_EVENT, "h", "a", "1"), "nothing is open there");
    cr_assert_eq(told_count, 0);
    answer(0, "{\"new_value\":1}");
    cr_assert_eq(told_count, 3);
    cr_assert_eq(told[1].seq, 2);
    cr_assert_eq(told[2].status, WEIR_EMPTY, "the store has no such item");
    answer(1, "{\"new_value\":4}");
    cr_assert_eq(told_count, 5);
    for (unsigned index = 0; index < 5; index++)
        cr_assert_eq(told[index].request, index + 1);
    cr_assert_eq(told[4].seq, 4);
}

/* list_groups sees every group that was written before it was asked. */
Test(custom, list_groups_waits_for_the_streams_writes)
{
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "a", "1");
    (void)write_s(2, ADAPTER_SET, "h", "a", "1");
    (void)read_s(3, ADAPTER_LIST_GROUPS, "", "");
    (void)write_s(4, ADAPTER_SET, "k", "a", "1");
    (void)read_s(5, ADAPTER_LIST_GROUPS, "", "");
    cr_assert_eq(call_count, 3);
    answer(1, "{\"new_value\":1}");
    cr_assert_eq(call_count, 3, "one is open");
    answer(0, "{\"new_value\":1}");
    cr_assert_eq(call_count, 4, "the write given later does not count");
    answer(3, "[]");
    cr_assert_eq(last(3)->status, WEIR_OK);
    answer(2, "{\"new_value\":1}");
    cr_assert_eq(call_count, 5);
    answer(4, "[]");
    cr_assert_eq(last(5)->status, WEIR_OK);
}

/* covers: 5#6 */
Test(custom, an_update_is_made_of_get_and_set)
{
    stream_appears();
    const char *ops = "[{\"type\":\"increment\",\"path\":\"n\",\"by\":1},"
                      "{\"type\":\"append\",\"path\":\"n\",\"value\":1}]";
    cr_assert(write_s(1, ADAPTER_UPDATE, "g", "i", ops));
    cr_assert(write_s(2, ADAPTER_UPDATE, "g", "i", ops));
    expect_call(0, "stream::get(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\"}");
    answer(0, "{ \"n\": 4 }");
    expect_call(1, "stream::set(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"data\":{\"n\":5}}");
    cr_assert_eq(call_count, 2, "the other update waits");
    answer(1, "{\"old_value\":\"whatever\",\"new_value\":{\"n\":5},\"errors\":7}");
    cr_assert_eq(last(1)->status, WEIR_OK);
    cr_assert_str_eq(last(1)->old_value, "{\"n\":4}");
    cr_assert_str_eq(last(1)->value, "{\"n\":5}");
    cr_assert(strstr(last(1)->errors, "append.type_mismatch"));
    cr_assert(last(1)->existed);
    answer(2, NULL);
    expect_call(3, "stream::set(s)",
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"data\":{\"n\":1}}");
    answer(3, "{\"new_value\":{\"n\":1}}");
    cr_assert_not(last(2)->existed);
    cr_assert_eq(last(2)->seq, 2);
    cr_assert(write_s(3, ADAPTER_UPDATE, "g", "i", "[{\"type\":\"what\"}]"));
    cr_assert_str_eq(last(3)->code, "deserialization_error");
    cr_assert_eq(call_count, 4, "nobody was asked");
    cr_assert(write_s(4, ADAPTER_UPDATE, "g", "i", ops));
    answer_error(4, "{\"code\":\"C\",\"message\":\"m\"}");
    cr_assert_eq(last(4)->status, WEIR_UNAVAILABLE);
    cr_assert_str_eq(last(4)->error_json, "", "a write's error is its own");
    cr_assert(write_s(5, ADAPTER_UPDATE, "g", "i", ops));
    answer(5, "{\"n\":1}");
    answer(6, "null");
    cr_assert_lt(last(5)->status, WEIR_OK);
}

Test(custom, an_update_of_its_own_is_called_with_the_known_members)
{
    stream_appears();
    function_appears("stream::update(s)");
    (void)write_s(1, ADAPTER_UPDATE, "g", "i",
                  "[{\"path\":\"a\",\"type\":\"set\",\"x\":1},{\"type\":\"merge\",\"path\":null,"
                  "\"value\":{}},{\"type\":\"decrement\",\"path\":\"\",\"by\":-2}]");
    expect_call(
        0, "stream::update(s)",
        "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"ops\":["
        "{\"type\":\"set\",\"path\":\"a\",\"value\":null},{\"type\":\"merge\",\"value\":{}},"
        "{\"type\":\"decrement\",\"path\":\"\",\"by\":-2}]}");
    answer(0, "{\"new_value\":1,\"old_value\":0,\"errors\":[ ]}");
    cr_assert(last(1)->existed);
    cr_assert_str_eq(last(1)->errors, "", "empty: left out");
    (void)write_s(2, ADAPTER_UPDATE, "g", "i", "[]");
    answer(1, "{\"new_value\":1,\"errors\":[{\"op_index\":0}]}");
    cr_assert_str_eq(last(2)->errors, "[{\"op_index\":0}]");
    (void)write_s(3, ADAPTER_UPDATE, "g", "i", "[]");
    answer(2, "{\"new_value\":1,\"errors\":{}}");
    cr_assert_str_eq(last(3)->code, "JSON_ERROR");
}

/* A function that was there and is gone: an error, also for what waits; nothing reaches the store. */
Test(custom, while_its_worker_is_away_a_stream_fails)
{
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "i", "1");
    (void)write_s(2, ADAPTER_SET, "g", "i", "2");
    (void)write_s(3, ADAPTER_UPDATE, "g", "i", "[]");
    (void)read_s(4, ADAPTER_GET, "g", "i");
    static const char *const ids[] = {"stream::get(s)", "stream::set(s)", "stream::delete(s)",
                                      "stream::list(s)", "stream::list_groups(s)"};
    for (unsigned index = 0; index < 5; index++)
        function_goes(ids[index]);
    answer_error(0, "{\"code\":\"invocation_stopped\",\"message\":\"gone\"}");
    cr_assert_eq(told_count, 4);
    for (unsigned index = 0; index < 4; index++)
        cr_assert_eq(told[index].status, WEIR_UNAVAILABLE);
    cr_assert(strstr(told[1].sentence, "away"));
    cr_assert(write_s(5, ADAPTER_SET, "g", "i", "1"));
    cr_assert(strstr(last(5)->sentence, "away"));
    cr_assert(write_s(6, ADAPTER_UPDATE, "g", "i", "[]"));
    cr_assert_eq(last(6)->status, WEIR_UNAVAILABLE);
    cr_assert(read_s(7, ADAPTER_LIST_GROUPS, "", ""));
    cr_assert_eq(last(7)->status, WEIR_UNAVAILABLE);
    cr_assert_str_eq(changes, "+s +s ", "it stays custom");
    cr_assert_not(write_s(8, ADAPTER_EVENT, "g", "i", "1"), "an event is nobody's item");
    function_appears("stream::set(s)");
    cr_assert(write_s(9, ADAPTER_SET, "g", "i", "1"));
    answer(1, "{\"new_value\":1}");
    cr_assert_eq(last(9)->status, WEIR_OK);
    cr_assert_eq(last(9)->seq, 1);
}

/* Told when it becomes custom, and whenever what subscribers see can be read anew. */
Test(custom, a_stream_is_told_when_it_can_be_read)
{
    function_appears("stream::set(s)");
    cr_assert_str_eq(changes, "+s ");
    function_appears("stream::list(s)");
    function_appears("stream::delete(s)");
    function_appears("stream::get(s)");
    cr_assert_str_eq(changes, "+s +s +s ");
    function_goes("stream::get(s)");
    function_goes("stream::list(s)");
    function_appears("stream::get(s)");
    cr_assert_str_eq(changes, "+s +s +s ", "its list is still away");
    function_appears("stream::list(s)");
    cr_assert_str_eq(changes, "+s +s +s +s ");
}

Test(custom_fallback, the_store_serves_while_the_worker_is_away, .fini = close_custom,
     .timeout = HANG_SECONDS)
{
    open_custom_with((struct custom_options){.fallback = true});
    function_appears("stream::set(s)");
    function_appears("stream::get(s)");
    (void)write_s(1, ADAPTER_SET, "g", "i", "1");
    function_goes("stream::get(s)");
    cr_assert_not(read_s(2, ADAPTER_GET, "g", "i"));
    function_goes("stream::set(s)");
    cr_assert_str_eq(changes, "+s +s ", "a write is open");
    answer_error(0, "{\"code\":\"invocation_stopped\",\"message\":\"gone\"}");
    cr_assert_str_eq(changes, "+s +s -s ");
    cr_assert_not(write_s(3, ADAPTER_SET, "g", "i", "1"));
    function_appears("stream::set(s)");
    function_goes("stream::set(s)");
    cr_assert_str_eq(changes, "+s +s -s +s -s ");
}

Test(custom, what_the_routes_do_not_take_is_told)
{
    static const enum weir_status statuses[] = {WEIR_UNAVAILABLE, WEIR_FULL, WEIR_TOO_LARGE};
    stream_appears();
    for (unsigned index = 0; index < 3; index++) {
        refuse = statuses[index];
        cr_assert(write_s(1, ADAPTER_SET, "g", "i", "1"));
        cr_assert_eq(last(1)->status, statuses[index]);
        cr_assert_gt(strlen(last(1)->sentence), 10);
        cr_assert(read_s(2, ADAPTER_LIST, "g", ""));
        cr_assert_eq(last(2)->status, statuses[index]);
    }
    refuse = WEIR_OK;
    cr_assert(write_s(3, ADAPTER_SET, "g", "i", "1"));
    answer(0, "{\"new_value\":1}");
    cr_assert_eq(last(3)->seq, 1);
    /* A refusal in the middle of a line lets the next one go on. */
    (void)write_s(4, ADAPTER_SET, "g", "i", "1");
    (void)write_s(5, ADAPTER_SET, "g", "i", "1");
    (void)read_s(6, ADAPTER_LIST_GROUPS, "", "");
    refuse = WEIR_FULL;
    answer(1, "{\"new_value\":1}");
    cr_assert_eq(told[told_count - 2].status, WEIR_FULL);
    cr_assert_eq(last(6)->status, WEIR_FULL);
}

Test(custom_bounds, each_has_its_answer, .fini = close_custom, .timeout = HANG_SECONDS)
{
    char value[901];
    memset(value, '1', 900);
    value[900] = 0;
    open_custom_with(
        (struct custom_options){.operations_max = 4, .streams_max = 2, .kept_bytes_max = 2000});
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "i", value); /* under way: its value is not kept */
    (void)write_s(2, ADAPTER_SET, "g", "i", value);
    (void)write_s(3, ADAPTER_SET, "g", "i", value);
    cr_assert_eq(told_count, 0);
    (void)write_s(4, ADAPTER_SET, "g", "i", value);
    cr_assert_eq(last(4)->status, WEIR_FULL, "the bytes");
    (void)read_s(5, ADAPTER_GET, "g", "i");
    (void)read_s(6, ADAPTER_GET, "g", "i");
    cr_assert_eq(last(6)->status, WEIR_FULL, "the number");
    cr_assert(strstr(last(6)->sentence, "too much waits"));
    function_appears("stream::get(t)");
    function_appears("stream::get(u)");
    cr_assert_str_eq(changes, "+s +s +t +(any) ", "beyond its bound any stream may be one");
    const struct adapter_read read = {.kind = ADAPTER_GET, .key = key_of("u", "g", "i")};
    cr_assert(custom_read(custom, 7, &read));
    cr_assert_eq(last(7)->status, WEIR_FULL);
    cr_assert(strstr(last(7)->sentence, "too many streams"));
    function_goes("stream::get(u)");
    cr_assert_not(custom_read(custom, 8, &read));
    for (unsigned call = 0; call < 3; call++)
        answer(call, "{\"new_value\":1}");
    answer(3, "1");
    cr_assert(write_s(9, ADAPTER_SET, "g", "i", value));
    answer(4, "{\"new_value\":1}");
    cr_assert_eq(last(9)->seq, 4, "all bounds are free again");
}

/* One worker that hangs leaves room for others. */
Test(custom_bounds, one_stream_has_its_share, .fini = close_custom, .timeout = HANG_SECONDS)
{
    open_custom_with((struct custom_options){.operations_max = 4, .stream_operations_max = 2});
    stream_appears();
    function_appears("stream::set(t)");
    (void)read_s(1, ADAPTER_GET, "g", "i");
    (void)write_s(2, ADAPTER_SET, "g", "i", "1");
    (void)write_s(3, ADAPTER_SET, "g", "i", "1");
    cr_assert_eq(last(3)->status, WEIR_FULL);
    cr_assert(write_to("t", 4, ADAPTER_SET, "g", "i", "1"));
    cr_assert_eq(told_count, 1);
    answer(2, "{\"new_value\":1}");
    cr_assert_eq(last(4)->status, WEIR_OK);
}

/* An answer that comes twice, or to nobody, is passed over. */
Test(custom, late_and_unknown_answers_find_nothing)
{
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "i", "1");
    answer(0, "{\"new_value\":1}");
    answer(0, "{\"new_value\":2}");
    custom_answer(custom, UINT64_MAX, CUSTOM_RESULT, span_text("1"), (struct span){0}, now_ms);
    (void)write_s(2, ADAPTER_SET, "g", "i", "1");
    answer(0, "{\"new_value\":3}");
    cr_assert_eq(told_count, 1);
    answer(1, "{\"new_value\":1}");
    cr_assert_eq(last(2)->seq, 2);
}

/* Whatever is open when it closes is completed once, with CLOSED. */
Test(custom_close, open_requests_are_completed, .timeout = HANG_SECONDS)
{
    open_custom();
    stream_appears();
    (void)write_s(1, ADAPTER_SET, "g", "i", "1");
    (void)write_s(2, ADAPTER_UPDATE, "g", "i", "[]");
    (void)write_s(3, ADAPTER_EVENT, "g", "i", "1");
    (void)read_s(4, ADAPTER_GET, "g", "i");
    (void)read_s(5, ADAPTER_LIST_GROUPS, "", "");
    (void)read_s(6, ADAPTER_GET, "h", "i");
    (void)write_s(7, ADAPTER_UPDATE, "h", "i", "[]");
    answer(2, "{}");
    close_custom();
    cr_assert_eq(told_count, 7);
    uint64_t seen = 0;
    for (unsigned index = 0; index < 7; index++) {
        cr_assert_eq(told[index].status, WEIR_CLOSED);
        seen |= 1ull << told[index].request;
    }
    cr_assert_eq(seen, 0xfe);
}

static char listed[256];
static void list_stream(void *context, struct span stream)
{
    (void)context;
    size_t end = strlen(listed);
    snprintf(listed + end, sizeof listed - end, "%.*s ", (int)stream.bytes, stream.data);
}

Test(custom, the_streams_are_told_to_whoever_asks)
{
    stream_appears();
    function_goes("stream::get(s)");
    custom_tell_streams(custom, list_stream, NULL);
    cr_assert_str_eq(listed, "s ");
}

/* ---- at random ---- */

enum { RANDOM_STEPS = 4000, GROUPS = 4, ITEMS = 3 };

static uint64_t random_state;
static unsigned random_below(unsigned limit)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(random_state >> 33) % limit;
}

/* A request; those that write carry their own number as value. */
static struct {
    bool is_read, is_event;
    unsigned group, item;
} requests[RANDOM_STEPS];
static unsigned kept[GROUPS][ITEMS]; /* what the worker has; 0: nothing */
static bool is_answered[CALLS_MAX];

/* Carry out call `index` now, as the worker would. */
static void work(unsigned index)
{
    unsigned group = 0, item = 0, value = 0;
    char result[64];
    is_answered[index] = true;
    if (random_below(20) == 0) {
        answer_error(index, "{\"code\":\"X\",\"message\":\"y\"}");
        return;
    }
    if (sscanf(calls[index].data,
               "{\"stream_name\":\"s\",\"group_id\":\"%u\",\"item_id\":\"%u\",\"data\":%u}", &group,
               &item, &value) == 3) {
        snprintf(result, sizeof result, "{\"new_value\":%u}", value);
        kept[group][item] = value;
    } else {
        (void)sscanf(calls[index].data,
                     "{\"stream_name\":\"s\",\"group_id\":\"%u\",\"item_id\":\"%u\"", &group,
                     &item);
        snprintf(result, sizeof result, "%u", kept[group][item]);
    }
    answer(index, result);
}

static unsigned open_calls(unsigned *any)
{
    unsigned count = 0;
    for (unsigned index = 0; index < call_count; index++)
        if (!is_answered[index] && random_below(++count) == 0)
            *any = index;
    return count;
}

static void random_step(uint64_t request, bool *is_away)
{
    char group[8], item[8], value[16];
    unsigned any = 0;
    if (random_below(100) == 0) { /* the worker goes, and what it has not answered with it */
        if (!*is_away)
            function_goes("stream::set(s)"), function_goes("stream::get(s)");
        else
            function_appears("stream::set(s)"), function_appears("stream::get(s)");
        *is_away = !*is_away;
    }
    requests[request].group = random_below(GROUPS);
    requests[request].item = random_below(ITEMS);
    requests[request].is_read = random_below(3) == 0;
    requests[request].is_event = !requests[request].is_read && random_below(4) == 0;
    snprintf(group, sizeof group, "%u", requests[request].group);
    snprintf(item, sizeof item, "%u", requests[request].item);
    snprintf(value, sizeof value, "%u", (unsigned)request);
    if (requests[request].is_read)
        cr_assert(read_s(request, ADAPTER_GET, group, item));
    else if (!requests[request].is_event)
        cr_assert(write_s(request, ADAPTER_SET, group, item, value));
    else if (!write_s(request, ADAPTER_EVENT, group, item, value)) {
        const struct adapter_write event = {.kind = ADAPTER_EVENT,
                                            .key = key_of("s", group, item),
                                            .value = span_text(value),
                                            .now_ms = now_ms};
        adapter_kv.write(kv, request, &event);
    }
    for (unsigned count = random_below(3); count > 0 && open_calls(&any) > 0; count--)
        work(any);
}

/* The newest number a read given as `request` must at least see. */
static unsigned least_seen(uint64_t request)
{
    unsigned least = 0;
    for (unsigned index = 0; index < told_count; index++) {
        uint64_t before = told[index].request;
        if (told[index].status == WEIR_OK && before < request && !requests[before].is_read &&
            !requests[before].is_event && requests[before].group == requests[request].group &&
            requests[before].item == requests[request].item && before > least)
            least = (unsigned)before;
    }
    return least;
}

/* Whatever order the worker answers in, fails in, comes and goes in: every request is completed
 * once, the events of a group are numbered without gap in the order the writes were given, and a
 * read sees the writes before it. */
Test(custom, any_order_of_answers_keeps_the_groups_order)
{
    bool is_away = false;
    unsigned any = 0;
    uint64_t seqs[GROUPS] = {0}, newest[GROUPS] = {0};
    static bool is_told[RANDOM_STEPS];
    random_state = (uint64_t)(uintptr_t)&any ^ (uint64_t)getpid() << 20;
    if (getenv("WEIR_SEED"))
        random_state = strtoull(getenv("WEIR_SEED"), NULL, 10);
    fprintf(stderr, "WEIR_SEED=%llu\n", (unsigned long long)random_state);
    stream_appears();
    for (uint64_t request = 1; request < RANDOM_STEPS; request++)
        random_step(request, &is_away);
    while (open_calls(&any) > 0)
        work(any);
    cr_assert_eq(told_count, RANDOM_STEPS - 1);
    for (unsigned index = 0; index < told_count; index++) {
        const struct told *now = &told[index];
        unsigned group = requests[now->request].group;
        cr_assert_not(is_told[now->request], "request %llu", (unsigned long long)now->request);
        is_told[now->request] = true;
        if (now->status != WEIR_OK)
            continue;
        if (requests[now->request].is_read) {
            cr_assert_geq((unsigned)atoi(now->value), least_seen(now->request));
            continue;
        }
        cr_assert_eq(now->seq, ++seqs[group]);
        cr_assert_gt(now->request, newest[group]);
        newest[group] = now->request;
    }
}

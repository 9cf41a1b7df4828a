/* The engine without sockets: exact results, error codes and events of PROTOCOL 3, and the turn's
 * order. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "adapters/kv.h"
#include "broker/engine.h"
#include "shm/envelope.h"
#include "shm/readers.h"
#include "tests/broker_recorder.h"

static struct segment segment;
static struct readers *readers;
static struct engine *engine;
static struct recorder recorder;
static struct broker_counters counters;
static struct ring_reader ring;
static uint64_t now_ms = 1700000000000;
static const struct peer_handle peer = {3, 1};
static const struct custom_options *custom; /* of the engine to be opened */

static void open_engine_with(uint64_t ring_bytes, uint64_t value_bytes_max)
{
    struct weir_error error = {0};
    const struct segment_options options = {
        .ring_bytes = ring_bytes, .store_bytes = 64 * 1024 * 1024, .generation = 1700000000000000};
    cr_assert_eq(segment_create(&segment, &options, &error), WEIR_OK, "%s", error.text);
    readers = readers_open(&segment);
    const struct engine_options engine_options = {
        .segment = &segment,
        .readers = readers,
        .adapter = &adapter_kv,
        .custom = custom,
        .store = {.items_max = 1000, .groups_max = 100, .empty_groups_max = 100},
        .value_bytes_max = value_bytes_max,
        .output = recorder_output(&recorder),
        .counters = &counters,
    };
    cr_assert_eq(engine_open(&engine, &engine_options, &error), WEIR_OK, "%s", error.text);
    segment_publish(&segment);
    cr_assert_eq(ring_reader_attach(&ring, &segment), WEIR_OK);
}

static void open_engine(void)
{
    open_engine_with(4 * 1024 * 1024, 256 * 1024);
}

static void close_engine(void)
{
    recorder_clear(&recorder);
    engine_close(engine);
    readers_close(readers);
    segment_close(&segment);
}

TestSuite(engine, .init = open_engine, .fini = close_engine, .timeout = HANG_SECONDS);

static struct span text_or_nil(const char *text)
{
    return text ? span_text(text) : (struct span){0};
}

static enum weir_status stream(uint64_t id, enum wire_op op, const char *stream_name,
                               const char *group, const char *item, const char *type,
                               const char *data)
{
    struct wire_message message = {.type = WIRE_STREAM, .id = id};
    message.fields[0].number = op;
    message.fields[1].span = text_or_nil(stream_name);
    message.fields[2].span = text_or_nil(group);
    message.fields[3].span = text_or_nil(item);
    message.fields[4].span = text_or_nil(type);
    message.fields[5].span = text_or_nil(data);
    return engine_stream(engine, peer, 0, &message, now_ms);
}

/* Ask, commit, and return the one answer. */
static const struct recorded *ask(enum wire_op op, const char *stream_name, const char *group,
                                  const char *item, const char *type, const char *data)
{
    recorder_clear(&recorder);
    cr_assert_eq(stream(7, op, stream_name, group, item, type, data), WEIR_OK);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 1);
    cr_assert_eq(recorder.messages[0].type, WIRE_STREAM_RESULT);
    cr_assert_eq(recorder.messages[0].id, 7);
    cr_assert(peer_handle_equal(recorder.messages[0].peer, peer));
    return &recorder.messages[0];
}

static void expect_result(const struct recorded *answer, const char *result)
{
    cr_assert_str_eq(recorded_text(answer, 0), "(nil)");
    cr_assert_str_eq(recorded_text(answer, 1), "(nil)");
    cr_assert_str_eq(recorded_text(answer, 2), result);
}

static void expect_error(const struct recorded *answer, const char *code, const char *words)
{
    cr_assert_str_eq(recorded_text(answer, 0), code);
    cr_assert(strstr(recorded_text(answer, 1), words), "'%s' does not say '%s'",
              recorded_text(answer, 1), words);
    cr_assert_str_eq(recorded_text(answer, 2), "(nil)");
}

/* The next event of the ring as its JSON; the timestamp, seq and epoch members are cut out. */
static const char *next_event(struct ring_record *record)
{
    static char json[65536];
    struct buffer out;
    buffer_init(&out, 1 << 20);
    enum weir_status status = ring_read(&ring, record, &out);
    cr_assert_eq(status, WEIR_OK, "ring: %s", weir_status_text(status));
    char head[64], tail[96];
    snprintf(head, sizeof head, "{\"type\":\"stream\",\"timestamp\":%llu,",
             (unsigned long long)record->timestamp_ms);
    snprintf(tail, sizeof tail, ",\"seq\":%llu,\"epoch\":%llu}", (unsigned long long)record->seq,
             (unsigned long long)record->epoch);
    size_t bytes = record->frame_bytes - record->json_offset;
    const char *text = out.data + record->json_offset;
    cr_assert_eq(strncmp(text, head, strlen(head)), 0);
    cr_assert_eq(strncmp(text + bytes - strlen(tail), tail, strlen(tail)), 0);
    bytes -= strlen(head) + strlen(tail);
    memcpy(json, text + strlen(head), bytes);
    json[bytes] = 0;
    /* The offsets a reader relies on. */
    cr_assert_eq(strncmp(out.data + record->names_offset - strlen("\"streamName\":\""),
                         "\"streamName\":\"", 14),
                 0);
    cr_assert_eq(strncmp(out.data + record->data_offset - strlen("\"data\":"), "\"data\":", 7), 0);
    char behind = out.data[record->data_offset + record->data_bytes];
    cr_assert_eq(behind, '}');
    buffer_fini(&out);
    return json;
}

static void expect_no_event(void)
{
    struct ring_record record;
    struct buffer out;
    buffer_init(&out, 1 << 20);
    cr_assert_eq(ring_read(&ring, &record, &out), WEIR_EMPTY);
    buffer_fini(&out);
}

/* A first set creates, a second updates; results carry both values; seq counts; stamps rise
 * although the clock stands. */
/* covers: 3#1 3.1#1 3.1#2 1.2#3 */
Test(engine, set_answers_old_and_new_and_emits_create_then_update)
{
    struct ring_record first, second;
    expect_result(ask(WIRE_OP_SET, "s", "g", "i", NULL, "{\"a\":1}"),
                  "{\"old_value\":null,\"new_value\":{\"a\":1}}");
    expect_result(ask(WIRE_OP_SET, "s", "g", "i", NULL, "null"),
                  "{\"old_value\":{\"a\":1},\"new_value\":null}");
    cr_assert_str_eq(next_event(&first), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                         "\"event\":{\"type\":\"create\",\"data\":{\"a\":1}}");
    cr_assert_str_eq(next_event(&second), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"update\",\"data\":null}");
    cr_assert_eq(first.seq, 1);
    cr_assert_eq(second.seq, 2);
    cr_assert_eq(first.epoch, second.epoch);
    cr_assert_gt(second.timestamp_ms, first.timestamp_ms);
    cr_assert_eq(first.previous_position, RING_NO_POSITION);
    cr_assert_eq(second.previous_position, first.position);
    /* Stored null is an item: the next set is an update with old_value null. */
    expect_result(ask(WIRE_OP_SET, "s", "g", "i", NULL, "3"),
                  "{\"old_value\":null,\"new_value\":3}");
    next_event(&second);
    cr_assert_eq(second.kind, ENVELOPE_UPDATE);
}

/* get: missing has no result at all, a stored null has "null". */
/* covers: 3#2 1.2#1 */
Test(engine, get_tells_missing_from_null)
{
    expect_result(ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL), "(nil)");
    (void)ask(WIRE_OP_SET, "s", "g", "i", NULL, "null");
    expect_result(ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL), "null");
}

/* covers: 3#3 3.1#4 3.1#5 1.2#5 */
Test(engine, delete_emits_the_old_value_once)
{
    struct ring_record record;
    expect_result(ask(WIRE_OP_DELETE, "s", "g", "i", NULL, NULL), "{\"old_value\":null}");
    expect_no_event();
    (void)ask(WIRE_OP_SET, "s", "g", "i", NULL, "[1]");
    expect_result(ask(WIRE_OP_DELETE, "s", "g", "i", NULL, NULL), "{\"old_value\":[1]}");
    next_event(&record);
    cr_assert_str_eq(next_event(&record), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"delete\",\"data\":[1]}");
    expect_result(ask(WIRE_OP_DELETE, "s", "g", "i", NULL, NULL), "{\"old_value\":null}");
    expect_no_event();
    expect_result(ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL), "(nil)");
    expect_result(ask(WIRE_OP_LIST_GROUPS, "s", NULL, NULL, NULL, NULL), "[]");
}

/* covers: 3#7 3.1#6 */
Test(engine, send_emits_an_event_with_or_without_id)
{
    struct ring_record record;
    expect_result(ask(WIRE_OP_SEND, "s", "g", NULL, "no\"te", "{\"x\":[]}"), "null");
    cr_assert_str_eq(
        next_event(&record),
        "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":null,"
        "\"event\":{\"type\":\"event\",\"event\":{\"type\":\"no\\\"te\",\"data\":{\"x\":[]}}}");
    cr_assert_eq(record.id_bytes, UINT32_MAX);
    cr_assert_eq(record.item_hash, 0);
    expect_result(ask(WIRE_OP_SEND, "s", "g", "", "t", "null"), "null");
    cr_assert_str_eq(next_event(&record),
                     "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"\","
                     "\"event\":{\"type\":\"event\",\"event\":{\"type\":\"t\",\"data\":null}}");
    cr_assert_eq(record.id_bytes, 0);
    cr_assert_eq(record.seq, 2);
}

/* covers: 3#8 3.1#3 */
Test(engine, update_answers_both_values_and_what_failed)
{
    struct ring_record record;
    expect_result(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, "[]"),
                  "{\"old_value\":null,\"new_value\":{}}");
    cr_assert_str_eq(next_event(&record), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"create\",\"data\":{}}");
    expect_result(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL,
                      "[{\"type\":\"set\",\"path\":\"n\",\"value\":1.50}]"),
                  "{\"old_value\":{},\"new_value\":{\"n\":1.50}}");
    cr_assert_str_eq(next_event(&record), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"update\",\"data\":{\"n\":1.50}}");
    const struct recorded *answer = ask(WIRE_OP_UPDATE, "s", "g", "i", NULL,
                                        "[{\"type\":\"append\",\"path\":\"n\",\"value\":1}]");
    const char *start =
        "{\"old_value\":{\"n\":1.50},\"new_value\":{\"n\":1.50},\"errors\":[{\"op_index\":0,"
        "\"code\":\"append.type_mismatch\"";
    cr_assert_eq(strncmp(recorded_text(answer, 2), start, strlen(start)), 0, "%s",
                 recorded_text(answer, 2));
    cr_assert_str_eq(next_event(&record), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"update\",\"data\":{\"n\":1.50}}");
    cr_assert_eq(record.seq, 3);
}

/* covers: 2.9#2 3.1#8 */
Test(engine, an_update_that_cannot_be_read_or_made_changes_nothing)
{
    static char large[200 * 1024];
    static char ops[700 * 1024];
    expect_error(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, "[{\"type\":\"what\"}]"),
                 "deserialization_error", "stream::update: ");
    expect_error(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, "{}"), "deserialization_error",
                 "stream::update: ");
    memset(large, 'x', sizeof large - 1);
    snprintf(ops, sizeof ops, "[{\"type\":\"append\",\"path\":\"\",\"value\":\"%s\"}]", large);
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, ops), 0), "(nil)");
    ring_reader_seek_head(&ring);
    expect_error(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, ops), "STREAM_UPDATE_ERROR", "larger");
    snprintf(ops, sizeof ops, "[\"%s%s%s\"]", large, large, large);
    expect_error(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, ops), "STREAM_UPDATE_ERROR",
                 "twice value_bytes_max");
    expect_no_event();
}

/* Reads the next record's trace; "-" where there is none. */
static const char *next_trace(void)
{
    static char text[256];
    struct ring_record record;
    struct buffer bytes;
    buffer_init(&bytes, 1 << 20);
    cr_assert_eq(ring_read(&ring, &record, &bytes), WEIR_OK);
    const char *at = bytes.data + ring_record_trace_offset(&record);
    snprintf(text, sizeof text, "%.*s %.*s",
             record.traceparent_bytes ? record.traceparent_bytes : 1,
             record.traceparent_bytes ? at : "-", record.baggage_bytes ? record.baggage_bytes : 1,
             record.baggage_bytes ? at + record.traceparent_bytes : "-");
    buffer_fini(&bytes);
    return text;
}

static void write_traced(const char *stream_name, const char *traceparent, const char *baggage)
{
    struct wire_message message = {.type = WIRE_STREAM, .id = 7};
    message.fields[0].number = WIRE_OP_SET;
    message.fields[1].span = span_text(stream_name);
    message.fields[2].span = message.fields[3].span = span_text("g");
    message.fields[5].span = span_text("1");
    message.fields[6].span = text_or_nil(traceparent);
    message.fields[7].span = text_or_nil(baggage);
    cr_assert_eq(engine_stream(engine, peer, 0, &message, now_ms), WEIR_OK);
    commits_turn(engine_commits(engine), now_ms);
}

/* An event's record carries its writer's context, but not that of the console's streams. */
Test(engine, events_carry_the_writers_trace)
{
    write_traced("s", "00-1-2-01", "k=v");
    cr_assert_str_eq(next_trace(), "00-1-2-01 k=v");
    write_traced("s", NULL, NULL);
    cr_assert_str_eq(next_trace(), "- -");
    write_traced("iii:devtools:", "00-1-2-01", "k=v");
    cr_assert_str_eq(next_trace(), "- -");
    write_traced("iii:devtools:state", "00-1-2-01", "k=v");
    cr_assert_str_eq(next_trace(), "- -");
    write_traced("iii:devtools", "00-1-2-01", NULL);
    cr_assert_str_eq(next_trace(), "00-1-2-01 -");
}

/* Insertion order; overwriting keeps the place, delete and set moves to the end. */
/* covers: 3#4 3#5 3#6 */
Test(engine, lists_answer_in_order)
{
    expect_result(ask(WIRE_OP_LIST, "s", "g", NULL, NULL, NULL), "[]");
    (void)ask(WIRE_OP_SET, "s", "g", "a", NULL, "1");
    (void)ask(WIRE_OP_SET, "s", "g", "b", NULL, "2");
    (void)ask(WIRE_OP_SET, "s", "g", "a", NULL, "3");
    expect_result(ask(WIRE_OP_LIST, "s", "g", NULL, NULL, NULL), "[3,2]");
    (void)ask(WIRE_OP_DELETE, "s", "g", "a", NULL, NULL);
    (void)ask(WIRE_OP_SET, "s", "g", "a", NULL, "4");
    expect_result(ask(WIRE_OP_LIST, "s", "g", NULL, NULL, NULL), "[2,4]");
    (void)ask(WIRE_OP_SET, "s", "f:/%", "a", NULL, "1");
    expect_result(ask(WIRE_OP_LIST_GROUPS, "s", NULL, NULL, NULL, NULL), "[\"f:/%\",\"g\"]");
    expect_result(ask(WIRE_OP_LIST_ALL, NULL, NULL, NULL, NULL, NULL),
                  "{\"stream\":[{\"id\":\"s\",\"groups\":[\"f:/%\",\"g\"]}],\"count\":1}");
}

/* covers: 3.1#7 */
Test(engine, reads_emit_nothing)
{
    struct ring_record record;
    (void)ask(WIRE_OP_SET, "s", "g", "i", NULL, "1");
    next_event(&record);
    (void)ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL);
    (void)ask(WIRE_OP_LIST, "s", "g", NULL, NULL, NULL);
    (void)ask(WIRE_OP_LIST_GROUPS, "s", NULL, NULL, NULL, NULL);
    (void)ask(WIRE_OP_LIST_ALL, NULL, NULL, NULL, NULL, NULL);
    expect_no_event();
}

/* Nothing is answered or visible before the commit; answers keep the order of requests; a list
 * within the turn sees it. */
Test(engine, a_turn_is_released_at_its_commit_in_order)
{
    struct ring_record record;
    cr_assert_eq(stream(1, WIRE_OP_SET, "s", "g", "a", NULL, "1"), WEIR_OK);
    cr_assert_eq(stream(2, WIRE_OP_SET, "s", "g", "a", NULL, "2"), WEIR_OK);
    cr_assert_eq(recorder.count, 0);
    expect_no_event();
    cr_assert_eq(stream(3, WIRE_OP_GET, "s", "g", "a", NULL, NULL), WEIR_OK);
    cr_assert_eq(stream(4, WIRE_OP_LIST, "s", "g", NULL, NULL, NULL), WEIR_OK);
    cr_assert_eq(stream(0, WIRE_OP_SET, "s", "g", "a", NULL, "3"), WEIR_OK);
    cr_assert_eq(recorder.count, 0);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 4, "a request with id 0 is not answered");
    for (unsigned index = 0; index < 4; index++)
        cr_assert_eq(recorder.messages[index].id, index + 1);
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 2), "{\"old_value\":1,\"new_value\":2}");
    cr_assert_str_eq(recorded_text(&recorder.messages[2], 2), "2");
    cr_assert_str_eq(recorded_text(&recorder.messages[3], 2), "[2]");
    uint64_t previous = RING_NO_POSITION;
    for (uint64_t seq = 1; seq <= 3; seq++) {
        next_event(&record);
        cr_assert_eq(record.seq, seq);
        cr_assert_eq(record.previous_position, previous,
                     "the group's chain has no gap within a turn");
        previous = record.position;
    }
}

/* A turn larger than the batch commits on the way and loses nothing. */
Test(engine, a_large_turn_commits_early)
{
    static char value[2002];
    memset(value, 'x', sizeof value - 1);
    value[0] = value[2000] = '"';
    for (uint64_t id = 1; id <= 10000; id++)
        cr_assert_eq(stream(id, WIRE_OP_SET, "s", "g", "a", NULL, value), WEIR_OK);
    cr_assert_gt(recorder.count, 0);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 10000);
    for (unsigned index = 0; index < 10000; index++)
        cr_assert_eq(recorder.messages[index].id, index + 1);
    cr_assert_eq(counters.events, 10000);
    cr_assert_gt(counters.commits, 10);
}

/* covers: 2.9#2 3.1#8 */
Test(engine, bad_input_is_answered_and_changes_nothing)
{
    static char long_name[NAME_BYTES_MAX + 2];
    static char long_value[256 * 1024 + 2];
    memset(long_name, 'n', sizeof long_name - 1);
    memset(long_value, '1', sizeof long_value - 1);
    expect_error(ask(WIRE_OP_SET, NULL, "g", "i", NULL, "1"), "deserialization_error", "missing");
    expect_error(ask(WIRE_OP_SET, "s", "g", NULL, NULL, "1"), "deserialization_error", "missing");
    expect_error(ask(WIRE_OP_SET, "s", "g", "i", NULL, NULL), "deserialization_error", "data");
    expect_error(ask(WIRE_OP_SEND, "s", "g", NULL, NULL, "1"), "deserialization_error", "missing");
    expect_error(ask(WIRE_OP_SET, "s", long_name, "i", NULL, "1"), "deserialization_error", "4096");
    expect_error(ask(WIRE_OP_GET, "\xff", "g", "i", NULL, NULL), "deserialization_error", "UTF-8");
    expect_error(ask(WIRE_OP_SET, "s", "g", "i", NULL, long_value), "STREAM_SET_ERROR",
                 "value_bytes_max");
    expect_error(ask(WIRE_OP_SEND, "s", "g", "i", "t", long_value), "STREAM_SEND_ERROR",
                 "value_bytes_max");
    expect_error(ask(WIRE_OP_UPDATE, "s", "g", "i", NULL, NULL), "deserialization_error", "ops");
    cr_assert_eq(stream(1, 99, "s", "g", "i", NULL, "1"), WEIR_INVALID);
    expect_no_event();
    expect_result(ask(WIRE_OP_LIST_ALL, NULL, NULL, NULL, NULL, NULL),
                  "{\"stream\":[],\"count\":0}");
    cr_assert_eq(counters.request_errors, 9);
}

/* items_max is 1000 here: the next item is refused with a sentence, an update of an old one is not. */
/* covers: 2.9#5 */
Test(engine, a_full_store_is_an_error_answer)
{
    char item[32];
    const struct recorded *answer = NULL;
    for (unsigned index = 0; index < 1000; index++) {
        snprintf(item, sizeof item, "i%u", index);
        answer = ask(WIRE_OP_SET, "s", "g", item, NULL, "1");
        cr_assert_str_eq(recorded_text(answer, 0), "(nil)");
    }
    expect_error(ask(WIRE_OP_SET, "s", "g", "one more", NULL, "1"), "STREAM_SET_ERROR",
                 "items_max");
    expect_result(ask(WIRE_OP_SET, "s", "g", "i5", NULL, "2"), "{\"old_value\":1,\"new_value\":2}");
}

/* A small ring: what would take more than its share is refused before anything is stored; the
 *               largest that fits does. */
Test(engine_small_ring, an_event_too_large_for_the_ring_is_refused, .fini = close_engine,
     .timeout = HANG_SECONDS)
{
    open_engine_with(RING_BYTES_MIN, VALUE_BYTES_MAX);
    size_t share = RING_BYTES_MIN / RING_RECORD_SHARE;
    char *value = malloc(share + 1);
    memset(value, '1', share);
    value[share] = 0;
    expect_error(ask(WIRE_OP_SET, "s", "g", "i", NULL, value), "STREAM_SET_ERROR", "ring_bytes");
    expect_result(ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL), "(nil)");
    value[share - 2048] = 0;
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_SET, "s", "g", "i", NULL, value), 0), "(nil)");
    cr_assert_str_eq(recorded_text(ask(WIRE_OP_DELETE, "s", "g", "i", NULL, NULL), 0), "(nil)");
    free(value);
}

/* An answer no frame holds becomes an error, not silence. */
/* covers: 2.9#3 */
Test(engine, an_answer_too_large_for_a_frame_is_an_error)
{
    (void)ask(WIRE_OP_SET, "s", "g", "i", NULL, "1");
    recorder.refuse = WEIR_TOO_LARGE;
    recorder.refuse_type = WIRE_STREAM_RESULT;
    recorder_clear(&recorder);
    cr_assert_eq(stream(9, WIRE_OP_GET, "s", "g", "i", NULL, NULL), WEIR_OK);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 0);
    cr_assert_eq(counters.replies_lost, 1, "the error was tried and counted");
}

/* ---- with a worker's own streams ---- */

static uint64_t asked_tokens[8];
static unsigned asked_count;

static enum weir_status worker_call(void *context, const struct custom_call *call)
{
    (void)context;
    cr_assert_lt(asked_count, 8);
    asked_tokens[asked_count++] = call->token;
    return WEIR_OK;
}
static bool worker_has(void *context, struct span id)
{
    (void)context;
    (void)id;
    return true;
}
static void worker_changed(void *context, struct span stream, bool is_custom)
{
    (void)context;
    (void)stream;
    (void)is_custom;
}

static void open_custom_engine(void)
{
    static const struct custom_options options = {
        .seam = {worker_call, worker_has, worker_changed, NULL},
        .timeout_ms = 1000,
        .counters = &counters};
    custom = &options;
    open_engine();
    custom_function_changed(engine_custom(engine), span_text("stream::set(s)"), true);
    custom_function_changed(engine_custom(engine), span_text("stream::get(s)"), true);
}

TestSuite(engine_custom, .init = open_custom_engine, .fini = close_engine, .timeout = HANG_SECONDS);

static void worker_answers(unsigned call, const char *result)
{
    custom_answer(engine_custom(engine), asked_tokens[call], CUSTOM_RESULT, span_text(result),
                  (struct span){0}, now_ms);
}

/* What a worker answers in a later turn becomes visible, and is answered, at that turn's commit;
 * other streams do not wait. */
Test(engine_custom, a_worker_may_answer_in_a_later_turn)
{
    struct ring_record record;
    cr_assert_eq(stream(1, WIRE_OP_SET, "s", "g", "i", NULL, "1"), WEIR_OK);
    cr_assert_eq(stream(2, WIRE_OP_SET, "t", "g", "i", NULL, "1"), WEIR_OK);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 1);
    cr_assert_eq(recorder.messages[0].id, 2);
    next_event(&record);
    cr_assert_not(commits_have_open(engine_commits(engine)));
    worker_answers(0, "{\"old_value\":0,\"new_value\":1}");
    cr_assert(commits_have_open(engine_commits(engine)));
    expect_no_event();
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.messages[1].id, 1);
    expect_result(&recorder.messages[1], "{\"old_value\":0,\"new_value\":1}");
    cr_assert_str_eq(next_event(&record), "\"streamName\":\"s\",\"groupId\":\"g\",\"id\":\"i\","
                                          "\"event\":{\"type\":\"update\",\"data\":1}");
}

Test(engine_custom, errors_are_answered_as_they_are_meant)
{
    cr_assert_eq(stream(1, WIRE_OP_SET, "s", "g", "i", NULL, "1"), WEIR_OK);
    cr_assert_eq(stream(2, WIRE_OP_GET, "s", "g", "i", NULL, NULL), WEIR_OK);
    worker_answers(0, "7");
    custom_answer(engine_custom(engine), asked_tokens[1], CUSTOM_ERROR, (struct span){0},
                  span_text("{\"code\":\"X\",\"message\":\"y\",\"z\":1}"), now_ms);
    commits_turn(engine_commits(engine), now_ms);
    cr_assert_eq(recorder.count, 2);
    expect_error(&recorder.messages[0], "JSON_ERROR", "stream::set: ");
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 0), "(nil)");
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 3),
                     "{\"code\":\"X\",\"message\":\"y\",\"z\":1}");
    custom_function_changed(engine_custom(engine), span_text("stream::get(s)"), false);
    expect_error(ask(WIRE_OP_GET, "s", "g", "i", NULL, NULL), "STREAM_GET_ERROR", "away");
    cr_assert_eq(stream(3, WIRE_OP_SET, "s", "g", "i", NULL, "1"), WEIR_OK); /* open at the close */
}

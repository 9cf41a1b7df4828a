/* Triggers without a broker process: a real segment and ring written by the test, the gateway's
 * feed, and calls that are noted and answered by the test. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "gateway/feed.h"
#include "tests/store_fixture.h"

enum { CALLS_MAX = 4096, TEXT_BYTES = 512 };

/* ---- calls that are noted ---- */

struct fake_call {
    bool is_open, was_cancelled;
    server_call_done *done;
    void *context;
    uint64_t timeout_ms;
    uint64_t number; /* "n" of the event's data */
    bool has_metadata, has_traceparent, has_baggage, has_space;
    char space[64], function[64], metadata[TEXT_BYTES], data[TEXT_BYTES];
    char traceparent[TEXT_BYTES], baggage[TEXT_BYTES];
};

static struct world {
    struct host host;
    struct mapping *mapping;
    struct counters counters;
    struct subscriptions subscriptions;
    struct feed feed;
    struct triggers *triggers;
    uint64_t seq;
    uint64_t written;                  /* events; the next one's number */
    struct fake_call calls[CALLS_MAX]; /* slot = how many were started before, modulo */
    unsigned started, open, cancelled;
    bool is_flowing;
    unsigned refuse; /* so many starts fail */
} world;

static void keep_text(char *to, size_t bytes, struct span text)
{
    if (text.bytes >= bytes)
        text.bytes = bytes - 1;
    if (text.bytes > 0)
        memcpy(to, text.data, text.bytes);
    to[text.bytes] = '\0';
}

static uint64_t number_of(struct span data)
{
    for (size_t i = 0; i + 4 < data.bytes; i++) {
        if (memcmp(data.data + i, "\"n\":", 4) == 0)
            return strtoull(data.data + i + 4, NULL, 10);
    }
    return UINT64_MAX;
}

static struct server_call *fake_start(struct server_calls *calls,
                                      const struct server_call_request *request,
                                      server_call_done *done, void *context)
{
    (void)calls;
    cr_assert(world.is_flowing, "no call is started while the broker does not take any");
    if (world.refuse > 0) {
        world.refuse--;
        return NULL;
    }
    struct fake_call *call = &world.calls[world.started % CALLS_MAX];
    cr_assert_not(call->is_open, "the test answers before so many calls are open");
    *call = (struct fake_call){
        .is_open = true,
        .done = done,
        .context = context,
        .timeout_ms = request->timeout_ms,
        .number = number_of(request->data),
        .has_metadata = request->metadata.data != NULL,
        .has_traceparent = request->traceparent.data != NULL,
        .has_baggage = request->baggage.data != NULL,
        .has_space = request->name_space.data != NULL,
    };
    keep_text(call->space, sizeof call->space, request->name_space);
    keep_text(call->function, sizeof call->function, request->function);
    keep_text(call->metadata, sizeof call->metadata, request->metadata);
    keep_text(call->data, sizeof call->data, request->data);
    keep_text(call->traceparent, sizeof call->traceparent, request->traceparent);
    keep_text(call->baggage, sizeof call->baggage, request->baggage);
    world.started++;
    world.open++;
    return (struct server_call *)(void *)call;
}

static void fake_cancel(struct server_call *handle)
{
    struct fake_call *call = (struct fake_call *)(void *)handle;
    cr_assert(call->is_open);
    call->is_open = false;
    call->was_cancelled = true;
    world.open--;
    world.cancelled++;
}

static bool fake_are_flowing(const struct server_calls *calls)
{
    (void)calls;
    return world.is_flowing;
}

static void answer(struct fake_call *call, enum server_call_fate fate, const char *text)
{
    struct span given = text == NULL ? (struct span){0} : span_text(text);
    struct span nothing = {0};
    cr_assert(call->is_open);
    call->is_open = false;
    world.open--;
    call->done(call->context, fate, fate == SERVER_CALL_RESULT ? given : nothing,
               fate == SERVER_CALL_ERROR ? given : nothing);
}

static struct fake_call *last_call(void)
{
    cr_assert_gt(world.started, 0);
    return &world.calls[(world.started - 1) % CALLS_MAX];
}

static struct fake_call *open_call_of(const char *function)
{
    for (unsigned i = 0; i < CALLS_MAX; i++) {
        if (world.calls[i].is_open && strcmp(world.calls[i].function, function) == 0)
            return &world.calls[i];
    }
    return NULL;
}

static uint64_t counted(enum counter counter)
{
    return world.counters.values[counter];
}

/* ---- the world ---- */

static void host_start(struct host *host, uint64_t ring_bytes, uint64_t generation)
{
    struct weir_error error = {0};
    struct segment_options segment = {ring_bytes, 16 * 1024 * 1024, generation};
    struct store_options store = {.items_max = 1000, .groups_max = 1000, .empty_groups_max = 1000};
    *host = (struct host){.now_ms = 1700000001000ull};
    buffer_init(&host->frame, 64ul * 1024 * 1024);
    cr_assert_eq(segment_create(&host->segment, &segment, &error), WEIR_OK, "%s", error.text);
    host->readers = readers_open(&host->segment);
    host->ring = ring_writer_open(&host->segment);
    cr_assert_eq(store_open(&host->store, &host->segment, host->readers, &store, &error), WEIR_OK,
                 "%s", error.text);
    segment_publish(&host->segment);
}

static struct mapping *map(struct host *host)
{
    struct weir_error error = {0};
    struct mapping *mapping = NULL;
    uint32_t slot;
    int control_fd, event_fd;
    cr_assert_eq(
        readers_attach(host->readers, (uint32_t)getpid(), &slot, &control_fd, &event_fd, &error),
        WEIR_OK, "%s", error.text);
    int fds[MAPPING_FDS] = {dup(host->segment.fd), dup(event_fd), dup(control_fd)};
    cr_assert_eq(mapping_open(&mapping, slot, fds, &error), WEIR_OK, "%s", error.text);
    return mapping;
}

static void world_open(uint64_t ring_bytes, uint64_t queue_max)
{
    memset(&world, 0, sizeof world);
    world.is_flowing = true;
    host_start(&world.host, ring_bytes, 1700000000000000ull);
    world.mapping = map(&world.host);
    cr_assert_eq(subscriptions_init(&world.subscriptions, 100, false, &world.counters), WEIR_OK);
    cr_assert_eq(feed_init(&world.feed, &world.counters), WEIR_OK);
    const struct triggers_calls calls = {NULL, fake_start, fake_cancel, fake_are_flowing};
    const struct triggers_options options = {queue_max, 4321};
    world.triggers = triggers_open(&calls, &options, &world.counters);
    cr_assert_not_null(world.triggers);
    triggers_set_mapping(world.triggers, world.mapping, false);
    world.feed.triggers = world.triggers;
}

static void world_close(void)
{
    cr_assert_eq(counted(COUNTER_TRIGGERS), 0);
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 0);
    cr_assert_eq(world.open, 0, "whoever is removed has no call left");
    triggers_close(world.triggers);
    feed_fini(&world.feed);
    subscriptions_fini(&world.subscriptions);
    mapping_close(world.mapping);
    host_close(&world.host);
}

static struct trigger *add_full(const char *stream, const char *group, const char *item,
                                const char *condition, const char *function, const char *metadata)
{
    struct trigger_binding binding = {.function = span_text(function)};
    binding.config.stream = span_text(stream);
    if (group != NULL)
        binding.config.group = span_text(group);
    if (item != NULL)
        binding.config.item = span_text(item);
    if (condition != NULL)
        binding.config.condition = span_text(condition);
    if (metadata != NULL)
        binding.metadata = span_text(metadata);
    struct trigger *trigger = triggers_add(world.triggers, &binding);
    cr_assert_not_null(trigger);
    return trigger;
}

static struct trigger *add(const char *stream, const char *group, const char *item,
                           const char *function)
{
    return add_full(stream, group, item, NULL, function, NULL);
}

static struct span escaped_of(struct buffer *scratch, struct span name)
{
    struct span escaped = span_of(scratch->data + scratch->bytes, 0);
    escaped.bytes = json_escape(scratch->data + scratch->bytes, name);
    scratch->bytes += escaped.bytes;
    return escaped;
}

/* The event of a write into the ring. Its data is {"n":<number>,"pad":"..."}. */
static uint64_t write_traced(const char *stream, const char *group, const char *item,
                             unsigned pad_bytes, const struct ring_trace *trace)
{
    static char data[65536];
    struct buffer names;
    buffer_init(&names, 4096);
    cr_assert_eq(buffer_reserve(&names, 4096), WEIR_OK);
    int data_bytes = snprintf(data, sizeof data, "{\"n\":%llu,\"pad\":\"%0*u\"}",
                              (unsigned long long)world.written, 1 + (int)pad_bytes, 0u);
    struct span id = item == NULL ? (struct span){0} : span_text(item);
    struct envelope envelope = {.event = item == NULL ? ENVELOPE_EVENT : ENVELOPE_CREATE,
                                .timestamp_ms = world.host.now_ms++,
                                .seq = ++world.seq,
                                .epoch = 7,
                                .stream_escaped = escaped_of(&names, span_text(stream)),
                                .group_escaped = escaped_of(&names, span_text(group)),
                                .event_type = SPAN_LITERAL("message"),
                                .data = span_of(data, (size_t)data_bytes)};
    if (item != NULL)
        envelope.id_escaped = escaped_of(&names, id);
    struct buffer *frame = &world.host.frame;
    buffer_clear(frame);
    cr_assert_eq(buffer_reserve(frame, envelope_bytes_max(&envelope)), WEIR_OK);
    struct envelope_layout layout = envelope_encode(frame->data, &envelope);
    struct ring_record record = {.previous_position = RING_NO_POSITION,
                                 .seq = world.seq,
                                 .epoch = 7,
                                 .timestamp_ms = envelope.timestamp_ms,
                                 .kind = envelope.event,
                                 .json_offset = layout.json_offset,
                                 .names_offset = layout.names_offset,
                                 .data_offset = layout.data_offset,
                                 .data_bytes = layout.data_bytes};
    cr_assert_eq(
        ring_append(world.host.ring, &record, span_of(frame->data, layout.frame_bytes), id, trace),
        WEIR_OK);
    ring_publish(world.host.ring);
    buffer_fini(&names);
    return world.written++;
}

static uint64_t write_event(const char *stream, const char *group, const char *item)
{
    return write_traced(stream, group, item, 0, NULL);
}

static void drain(void)
{
    do {
        enum weir_status status =
            feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions);
        cr_assert(status == WEIR_OK || status == WEIR_EMPTY || status == WEIR_LAPPED);
        feed_clear(&world.feed);
    } while (world.feed.has_more);
}

/* A turn: read the ring, start what can start. */
static void turn(void)
{
    drain();
    while (triggers_run(world.triggers)) { /* ends: each run looks at events that are then gone */
    }
}

/* ---- what a call carries ---- */

/* covers: B#8 */
Test(triggers, a_handler_gets_the_envelope_the_metadata_and_the_trace, .timeout = HANG_SECONDS)
{
    const struct ring_trace trace = {SPAN_LITERAL("00-abc-def-01"), SPAN_LITERAL("k=v,iii=1")};
    const struct ring_trace half = {.baggage = SPAN_LITERAL("only=this")};
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add_full("s", NULL, NULL, NULL, "app::on", "{\"a\":[1]}");
    (void)write_traced("s", "g\"1", "i\n", 3, &trace);
    turn();
    struct fake_call *call = last_call();
    cr_assert_str_eq(call->data,
                     "{\"type\":\"stream\",\"timestamp\":1700000001000,\"streamName\":\"s\","
                     "\"groupId\":\"g\\\"1\",\"id\":\"i\\n\",\"event\":{\"type\":\"create\","
                     "\"data\":{\"n\":0,\"pad\":\"0000\"}},\"seq\":1,\"epoch\":7}");
    cr_assert_str_eq(call->function, "app::on");
    cr_assert_str_eq(call->metadata, "{\"a\":[1]}");
    cr_assert_str_eq(call->traceparent, "00-abc-def-01");
    cr_assert_str_eq(call->baggage, "k=v,iii=1");
    cr_assert_eq(call->timeout_ms, 4321);
    cr_assert_not(call->has_space, "default");
    answer(call, SERVER_CALL_RESULT, NULL);
    (void)write_traced("s", "g", NULL, 0, &half);
    turn();
    cr_assert_not(last_call()->has_traceparent);
    cr_assert_str_eq(last_call()->baggage, "only=this");
    answer(last_call(), SERVER_CALL_RESULT, "{\"ignored\":true}");
    (void)write_event("s", "g", NULL);
    turn();
    cr_assert_not(last_call()->has_traceparent, "none when the writer had none");
    cr_assert_not(last_call()->has_baggage);
    answer(last_call(), SERVER_CALL_RESULT, "1");
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), 3);
    triggers_remove(trigger);
    world_close();
}

Test(triggers, devtools_streams_carry_no_trace, .timeout = HANG_SECONDS)
{
    const struct ring_trace trace = {SPAN_LITERAL("00-abc-def-01"), SPAN_LITERAL("k=v")};
    const char *const streams[] = {"iii:devtools:", "iii:devtools:spans", "iii:devtools", "s"};
    struct trigger *added[4];
    world_open(1024 * 1024, 100);
    for (unsigned i = 0; i < 4; i++) {
        added[i] = add(streams[i], NULL, NULL, "f");
        (void)write_traced(streams[i], "g", "i", 0, &trace);
        turn();
        cr_assert_eq(last_call()->has_traceparent, i >= 2, "%s", streams[i]);
        cr_assert_eq(last_call()->has_baggage, i >= 2);
        answer(last_call(), SERVER_CALL_RESULT, NULL);
    }
    for (unsigned i = 0; i < 4; i++)
        triggers_remove(added[i]);
    world_close();
}

/* ---- matching ---- */

Test(triggers, an_event_finds_exactly_the_triggers_it_matches, .timeout = HANG_SECONDS)
{
    static const struct {
        const char *stream, *group, *item;
        const char *functions; /* called, a letter each, in the order of registration */
    } events[] = {
        {"s", "g", "i", "abcdz"}, {"s", "g", "j", "abz"},  {"s", "h", "i", "acz"},
        {"s", "h", "j", "az"},    {"s", "g", NULL, "abz"}, {"s", "g", "", "abz"},
        {"", "g", "i", "e"},      {"t", "g", "i", ""},     {"s\"\\\n\x01", "g\"", "i\"", "fgh"},
        {"s", "", "i", "acz"},    {"s\"", "g", "i", ""},   {"sg", "", "i", ""},
    };
    struct trigger *added[9];
    world_open(1024 * 1024, 100);
    added[0] = add("s", NULL, NULL, "a");
    added[1] = add("s", "g", NULL, "b");
    added[2] = add("s", NULL, "i", "c");
    added[3] = add("s", "g", "i", "d");
    added[4] = add("", NULL, NULL, "e");
    added[5] = add("s\"\\\n\x01", "g\"", NULL, "f");
    added[6] = add("s\"\\\n\x01", NULL, "i\"", "g");
    added[7] = add("s\"\\\n\x01", "g\"", "i\"", "h");
    added[8] = add("s", "", "", "z"); /* empty is any */
    for (unsigned i = 0; i < sizeof events / sizeof events[0]; i++) {
        (void)write_event(events[i].stream, events[i].group, events[i].item);
        turn();
        cr_assert_eq(world.open, strlen(events[i].functions), "event %u: %u calls", i, world.open);
        for (const char *letter = events[i].functions; *letter != '\0'; letter++) {
            const char function[2] = {*letter, '\0'};
            struct fake_call *call = open_call_of(function);
            cr_assert_not_null(call, "event %u calls %s", i, function);
            answer(call, SERVER_CALL_RESULT, NULL);
        }
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_EVENTS), world.started);
    for (unsigned i = 0; i < 9; i++)
        triggers_remove(added[i]);
    cr_assert_not(triggers_are_wanted(world.triggers));
    world_close();
}

Test(triggers, a_trigger_fires_for_events_after_it_only, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 100);
    (void)write_event("s", "g", "before");
    struct trigger *first = add("s", NULL, NULL, "f");
    turn();
    cr_assert_eq(world.started, 0, "it was published before the trigger was there");
    (void)write_event("s", "g", "after");
    struct trigger *second = add("s", NULL, NULL, "g");
    turn();
    cr_assert_eq(world.started, 1);
    answer(open_call_of("f"), SERVER_CALL_RESULT, NULL);
    triggers_remove(first);
    triggers_remove(second);
    (void)write_event("s", "g", "later");
    turn();
    cr_assert_eq(world.started, 1);
    cr_assert_eq(world.feed.entry_count, 0);
    world_close();
}

/* ---- order ---- */

Test(triggers, one_group_is_called_in_order_and_one_at_a_time, .timeout = HANG_SECONDS)
{
    enum { EVENTS = 1000 };
    world_open(1024 * 1024, EVENTS);
    struct trigger *trigger = add("s", NULL, NULL, "f");
    for (unsigned i = 0; i < EVENTS; i++) {
        (void)write_event("s", "g", "i");
        if (i % 7 == 0)
            turn();
    }
    turn();
    for (unsigned i = 0; i < EVENTS; i++) {
        cr_assert_eq(world.open, 1);
        cr_assert_eq(last_call()->number, i);
        answer(last_call(), SERVER_CALL_RESULT, NULL);
        cr_assert_eq(world.open, 0, "an answer starts nothing from inside");
        turn();
    }
    cr_assert_eq(world.started, EVENTS);
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), EVENTS);
    triggers_remove(trigger);
    world_close();
}

/* The handler of group "slow" never answers; nobody else waits for it. */
Test(triggers, a_slow_handler_delays_its_own_group_only, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 1000);
    struct trigger *first = add("s", NULL, NULL, "f");
    struct trigger *second = add("s", NULL, NULL, "g");
    (void)write_event("s", "slow", "i");
    turn();
    cr_assert_eq(world.open, 2);
    struct fake_call *slow = open_call_of("f");
    answer(open_call_of("g"), SERVER_CALL_RESULT, NULL);
    for (unsigned i = 0; i < 50; i++) {
        (void)write_event("s", "slow", "i");
        (void)write_event("s", i % 2 == 0 ? "other" : "third", "i");
        turn();
        cr_assert_eq(world.open, 4, "f for one group, g for both, and the slow one");
        for (unsigned k = 0; k < CALLS_MAX; k++) {
            if (world.calls[k].is_open && &world.calls[k] != slow)
                answer(&world.calls[k], SERVER_CALL_RESULT, NULL);
        }
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 51);
    answer(slow, SERVER_CALL_LATE, NULL);
    turn();
    cr_assert_eq(last_call()->number, 1, "the next event of the slow group");
    cr_assert_eq(counted(COUNTER_TRIGGER_FAILED), 1);
    triggers_remove(first);
    triggers_remove(second);
    cr_assert_eq(world.cancelled, 1);
    world_close();
}

/* ---- conditions and failures ---- */

Test(triggers, only_the_boolean_false_skips_the_handler, .timeout = HANG_SECONDS)
{
    static const struct {
        const char *result; /* NULL: none */
        bool runs;
    } cases[] = {{"false", false}, {NULL, true}, {"null", true}, {"0", true},   {"\"false\"", true},
                 {"{}", true},     {"[]", true}, {"true", true}, {"\"\"", true}};
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add_full("s", NULL, NULL, "app::if", "app::on", "{\"m\":1}");
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        (void)write_event("s", "g", "i");
        turn();
        struct fake_call *condition = last_call();
        cr_assert_eq(world.open, 1);
        cr_assert_str_eq(condition->function, "app::if");
        cr_assert_not(condition->has_metadata);
        char data[TEXT_BYTES];
        memcpy(data, condition->data, sizeof data);
        answer(condition, SERVER_CALL_RESULT, cases[i].result);
        turn();
        cr_assert_eq(world.open, cases[i].runs, "case %u", i);
        if (!cases[i].runs)
            continue;
        cr_assert_str_eq(last_call()->function, "app::on");
        cr_assert_str_eq(last_call()->metadata, "{\"m\":1}");
        cr_assert_str_eq(last_call()->data, data);
        answer(last_call(), SERVER_CALL_RESULT, "false");
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_SKIPPED), 1);
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), sizeof cases / sizeof cases[0] - 1);
    triggers_remove(trigger);
    world_close();
}

Test(triggers, what_fails_is_counted_and_the_next_event_follows, .timeout = HANG_SECONDS)
{
    static const enum server_call_fate fates[] = {SERVER_CALL_ERROR, SERVER_CALL_LATE,
                                                  SERVER_CALL_UNAVAILABLE};
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add_full("s", NULL, NULL, "app::if", "app::on", NULL);
    for (unsigned i = 0; i < 6; i++)
        (void)write_event("s", "g", "i");
    for (unsigned i = 0; i < 6; i++) {
        turn();
        cr_assert_eq(last_call()->number, i);
        cr_assert_str_eq(last_call()->function, "app::if");
        if (i >= 3) { /* the handler fails, not the condition */
            answer(last_call(), SERVER_CALL_RESULT, NULL);
            turn();
            cr_assert_str_eq(last_call()->function, "app::on");
            cr_assert_eq(last_call()->number, i);
        }
        answer(last_call(), fates[i % 3], "{\"code\":\"x\",\"message\":\"line\nbreak\"}");
        cr_assert_eq(counted(COUNTER_TRIGGER_FAILED), i + 1);
    }
    turn();
    cr_assert_eq(world.open, 0);
    cr_assert_eq(world.started, 9);
    triggers_remove(trigger);
    world_close();
}

/* ---- bounds ---- */

Test(triggers, a_full_trigger_drops_what_comes_and_says_so, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 5);
    struct trigger *trigger = add("s", NULL, NULL, "f");
    struct trigger *other = add("s", "h", NULL, "g");
    for (unsigned i = 0; i < 10; i++)
        (void)write_event("s", i < 3 ? "g" : "h", "i");
    turn();
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 5 + 2, "of all its groups together");
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 10);
    unsigned seen = 0;
    for (unsigned rounds = 0; rounds < 10; rounds++, turn()) {
        for (struct fake_call *call; (call = open_call_of("f")) != NULL; seen++) {
            cr_assert_lt(call->number, 5, "the oldest stay");
            answer(call, SERVER_CALL_RESULT, NULL);
        }
    }
    cr_assert_eq(seen, 5);
    (void)write_event("s", "g", "i");
    turn();
    cr_assert_eq(open_call_of("f")->number, 10, "there is room again");
    triggers_remove(trigger);
    triggers_remove(other);
    world_close();
}

/* Goal: an event the ring has overwritten is dropped, its successor is not. */
Test(triggers, lapped_events_are_dropped_and_counted, .timeout = HANG_SECONDS)
{
    world_open(64 * 1024, 10000);
    struct trigger *trigger = add_full("s", NULL, NULL, "if", "f", NULL);
    uint64_t number = 0;
    for (unsigned i = 0; i < 200; i++) {
        number = write_traced("s", "g", "i", 1000, NULL);
        drain();
        if (i == 0)
            (void)triggers_run(world.triggers);
    }
    struct fake_call *condition = last_call();
    cr_assert_eq(condition->number, 0);
    struct trigger *other = add("t", NULL, NULL, "g");
    (void)write_event("t", "g", "i");
    turn(); /* what was read for the condition is not at hand any more */
    answer(last_call(), SERVER_CALL_RESULT, NULL);
    answer(condition, SERVER_CALL_RESULT, "true");
    turn();
    cr_assert_str_eq(last_call()->function, "if",
                     "what was overwritten while its condition ran has no handler");
    uint64_t first = last_call()->number;
    cr_assert_gt(first, 100);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), first);
    for (uint64_t i = first; i <= number; i++) {
        cr_assert_eq(last_call()->number, i);
        answer(last_call(), SERVER_CALL_RESULT, NULL);
        turn();
        answer(last_call(), SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), number + 1 - first + 1);
    cr_assert_eq(world.open, 0);
    triggers_remove(trigger);
    triggers_remove(other);
    world_close();
}

Test(triggers, a_lapped_feed_is_counted, .timeout = HANG_SECONDS)
{
    world_open(64 * 1024, 10000);
    for (unsigned i = 0; i < 200; i++)
        (void)write_traced("s", "g", "i", 1000, NULL);
    drain();
    cr_assert_eq(counted(COUNTER_FEED_LAPPED), 0, "nobody listens");
    struct trigger *trigger = add("s", NULL, NULL, "f");
    for (unsigned i = 0; i < 200; i++)
        (void)write_traced("s", "g", "i", 1000, NULL);
    turn();
    cr_assert_eq(counted(COUNTER_FEED_LAPPED), 1);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 1);
    uint64_t number = write_event("s", "g", "i");
    turn();
    cr_assert_eq(last_call()->number, number);
    triggers_remove(trigger);
    world_close();
}

Test(triggers, what_cannot_start_waits_and_is_tried_again, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add("s", NULL, NULL, "f");
    world.is_flowing = false; /* the broker is away */
    for (unsigned i = 0; i < 10; i++)
        (void)write_event("s", i % 2 == 0 ? "g" : "h", "i");
    for (unsigned i = 0; i < 10; i++) {
        drain();
        cr_assert_not(triggers_run(world.triggers), "the loop must not spin for this");
    }
    cr_assert_eq(world.started, 0);
    cr_assert_eq(counted(COUNTER_TRIGGER_FAILED), 0);
    world.is_flowing = true;
    world.refuse = 3;
    for (unsigned i = 0; i < 3; i++)
        cr_assert_not(triggers_run(world.triggers));
    cr_assert_eq(world.started, 0);
    turn();
    cr_assert_eq(world.open, 2);
    uint64_t next[2] = {0, 1};
    for (unsigned i = 0; i < 10; i++) {
        struct fake_call *call = open_call_of("f");
        cr_assert_eq(call->number, next[call->number % 2]);
        next[call->number % 2] += 2;
        answer(call, SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), 10);
    triggers_remove(trigger);
    world_close();
}

/* ---- removal and other segments ---- */

Test(triggers, a_removed_trigger_forgets_what_waits_and_its_calls, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add_full("s", NULL, NULL, "if", "f", "1");
    struct trigger *other = add("s", NULL, NULL, "g");
    for (unsigned i = 0; i < 30; i++)
        (void)write_event("s", i % 3 == 0 ? "a" : "b", "i");
    drain();
    triggers_remove(trigger); /* its queues are ready */
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 30);
    trigger = add_full("s", NULL, NULL, "if", "f", "1");
    for (unsigned i = 0; i < 30; i++)
        (void)write_event("s", i % 3 == 0 ? "a" : "b", "i");
    turn();
    cr_assert_eq(world.open, 4);
    triggers_remove(trigger);
    cr_assert_eq(world.cancelled, 2);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 30 + 28);
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 60, "the other trigger's");
    (void)write_event("s", "a", "i");
    turn();
    cr_assert_null(open_call_of("f"));
    cr_assert_null(open_call_of("if"));
    cr_assert_eq(counted(COUNTER_TRIGGERS), 1);
    triggers_remove(other);
    world_close();
}

static void world_remap(struct host *host)
{
    struct mapping *mapping = map(host);
    triggers_set_mapping(world.triggers, mapping, false);
    mapping_close(world.mapping);
    world.mapping = mapping;
}

/* Another broker, with the log of the last one: its ring is read from its start. */
static void world_replace(uint64_t ring_bytes, bool is_kept)
{
    struct host old = world.host;
    host_start(&world.host, ring_bytes, segment_generation(&old.segment) + 1);
    struct mapping *mapping = map(&world.host);
    triggers_set_mapping(world.triggers, mapping, is_kept);
    mapping_close(world.mapping);
    world.mapping = mapping;
    host_close(&old);
}

/* The broker was replaced: its ring is another. Handlers under way end as they would have. */
Test(triggers, another_segment_drops_what_waits, .timeout = HANG_SECONDS)
{
    struct host old;
    world_open(1024 * 1024, 100);
    struct trigger *plain = add("s", NULL, NULL, "f");
    struct trigger *careful = add_full("s", "g", NULL, "if", "h", NULL);
    for (unsigned i = 0; i < 4; i++)
        (void)write_event("s", "g", "i");
    (void)write_event("s", "other", "i");
    world.is_flowing = false;
    drain();
    world.is_flowing = true;
    (void)triggers_run(world.triggers);
    cr_assert_eq(world.open, 3);
    (void)write_event("s", "g", "i"); /* not even read from the ring */
    old = world.host;
    host_start(&world.host, 1024 * 1024, 1700000000000001ull);
    world_remap(&world.host);
    host_close(&old);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 3 + 3 + 1);
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 3);
    struct fake_call *condition = open_call_of("if");
    uint64_t number = write_event("s", "g", "i");
    turn();
    cr_assert_eq(world.open, 3, "events of the new segment wait for those under way");
    answer(condition, SERVER_CALL_RESULT, NULL);
    turn();
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 8, "its event cannot be read any more");
    cr_assert_eq(open_call_of("if")->number, number);
    for (struct fake_call *call; (call = open_call_of("f")) != NULL && call->number != number;) {
        answer(call, SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_eq(open_call_of("f")->number, number);
    cr_assert_eq(counted(COUNTER_TRIGGER_HANDLED), 2);
    triggers_remove(plain);
    triggers_remove(careful);
    world_close();
}

/* The next broker has the log: what waits is copied out of the old ring and handed over in its order,
 * before what the new ring brings; each event once, though only the new ring has it. */
Test(triggers, what_waits_outlives_a_broker_with_a_log, .timeout = HANG_SECONDS)
{
    const struct ring_trace trace = {SPAN_LITERAL("tp"), SPAN_LITERAL("bg")};
    world_open(1024 * 1024, 100);
    struct trigger *plain = add("s", NULL, NULL, "f");
    struct trigger *careful = add_full("s", "g", NULL, "if", "h", "{\"m\":1}");
    for (unsigned i = 0; i < 10;
         i++) /* the first are under way, with more places than a queue has */
        (void)write_traced("s", "g", "i", i, &trace);
    turn();
    cr_assert_eq(world.open, 2);
    for (unsigned life = 0; life < 3; life++) {
        world.is_flowing = false;
        for (struct fake_call *call; (call = open_call_of("f")) != NULL;)
            answer(call, SERVER_CALL_UNAVAILABLE, NULL);
        world_replace(1024 * 1024, true);
        (void)write_event("s", "g", NULL); /* nobody was shown it */
        turn();
        world.is_flowing = true;
        turn();
        cr_assert_eq(open_call_of("f")->number, life + 1, "the next one");
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 0);
    cr_assert_eq(counted(COUNTER_TRIGGER_EVENTS), 2 * 13);
    for (unsigned number = 3; number < 13; number++) {
        struct fake_call *call = open_call_of("f");
        cr_assert_eq(call->number, number);
        cr_assert_eq(call->has_traceparent, number < 10);
        if (number == 5)
            cr_assert_not_null(strstr(call->data, "\"pad\":\"000000\""), "%s", call->data);
        answer(call, SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_null(open_call_of("f"), "each once");
    struct fake_call *condition = open_call_of("if");
    cr_assert_eq(condition->number, 0, "it was under way all the time");
    answer(condition, SERVER_CALL_RESULT, NULL);
    world_replace(1024 * 1024, true); /* between condition and handler */
    turn();
    for (unsigned number = 0; number < 13; number++) {
        struct fake_call *call = open_call_of("h");
        cr_assert_eq(call->number, number);
        cr_assert_str_eq(call->metadata, "{\"m\":1}");
        if (number < 10)
            cr_assert_str_eq(call->baggage, "bg");
        answer(call, SERVER_CALL_RESULT, NULL);
        turn();
        if (number < 12)
            answer(open_call_of("if"), SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_eq(world.open, 0);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 0);
    triggers_remove(plain);
    triggers_remove(careful);
    world_close();
}

/* What was copied is lost like all that waits when the broker after that has no log, or when its trigger
 * goes; a handler under way is still waited for. */
Test(triggers, what_was_copied_is_dropped_without_a_log, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add("s", NULL, NULL, "f");
    struct trigger *other = add("s", NULL, NULL, "f2");
    for (unsigned i = 0; i < 6; i++)
        (void)write_event("s", "g", "i");
    turn();
    world_replace(1024 * 1024, true);
    triggers_remove(other);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 5);
    answer(open_call_of("f"), SERVER_CALL_RESULT, NULL);
    turn();
    cr_assert_eq(open_call_of("f")->number, 1);
    world_replace(1024 * 1024, false);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 5 + 4);
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 1);
    uint64_t number = write_event("s", "g", "i");
    turn();
    answer(open_call_of("f"), SERVER_CALL_RESULT, NULL);
    turn();
    cr_assert_eq(open_call_of("f")->number, number);
    answer(open_call_of("f"), SERVER_CALL_RESULT, NULL);
    triggers_remove(trigger);
    world_close();
}

/* What the old ring has overwritten, and what is beyond the bound, is dropped and counted; the rest goes
 * on in its order. */
Test(triggers, copies_are_bounded, .timeout = HANG_SECONDS)
{
    enum { EVENTS = 1200, PAD = 60000 };
    world_open(256ull * 1024 * 1024, 10000);
    struct trigger *trigger = add_full("s", NULL, NULL, "if", "f", NULL);
    struct trigger *other = add("s", NULL, NULL, "f2");
    for (unsigned i = 0; i < EVENTS; i++)
        (void)write_traced("s", "g", "i", PAD, NULL);
    world.is_flowing = false;
    drain();
    world_replace(1024 * 1024, true);
    uint64_t dropped = counted(COUNTER_TRIGGER_DROPPED);
    uint64_t kept = 2 * EVENTS - dropped;
    cr_assert_gt(kept / 2, TRIGGERS_KEPT_BYTES_MAX / (PAD + 1000));
    cr_assert_lt(kept / 2, TRIGGERS_KEPT_BYTES_MAX / PAD);
    world_replace(1024 * 1024, true);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), dropped, "it is kept as it is");
    world.is_flowing = true;
    turn();
    for (uint64_t number = 0; number < kept / 2; number++) {
        cr_assert_eq(open_call_of("if")->number, number);
        answer(open_call_of("if"), SERVER_CALL_RESULT, "false");
        answer(open_call_of("f2"), SERVER_CALL_RESULT, NULL);
        turn();
    }
    cr_assert_eq(world.open, 0);
    triggers_remove(trigger);
    triggers_remove(other);
    world_close();
}

Test(triggers, what_the_old_ring_has_overwritten_is_dropped, .timeout = HANG_SECONDS)
{
    world_open(64 * 1024, 10000);
    struct trigger *trigger = add_full("s", NULL, NULL, "if", "f", NULL);
    (void)write_event("s", "g", "i");
    turn();
    world.is_flowing = false;
    answer(open_call_of("if"), SERVER_CALL_RESULT, NULL); /* its handler is due */
    for (unsigned i = 0; i < 1000; i++) {
        (void)write_traced("s", "g", "i", 100, NULL);
        drain();
    }
    world_replace(64 * 1024, true);
    uint64_t lost = counted(COUNTER_TRIGGER_DROPPED);
    cr_assert_gt(lost, 0);
    cr_assert_lt(lost, 1000);
    world.is_flowing = true;
    turn();
    cr_assert_eq(open_call_of("if")->number, lost, "the oldest that was still there");
    answer(open_call_of("if"), SERVER_CALL_RESULT, NULL);
    turn();
    cr_assert_eq(open_call_of("f")->number, lost);
    answer(open_call_of("f"), SERVER_CALL_RESULT, NULL);
    triggers_remove(trigger);
    world_close();
}

/* The link was cut and is back at the same broker: its ring is the same. */
Test(triggers, the_same_segment_keeps_what_waits, .timeout = HANG_SECONDS)
{
    world_open(1024 * 1024, 100);
    struct trigger *trigger = add("s", NULL, NULL, "f");
    for (unsigned i = 0; i < 4; i++)
        (void)write_event("s", "g", "i");
    turn();
    answer(last_call(), SERVER_CALL_UNAVAILABLE, NULL);
    world.is_flowing = false;
    turn();
    world_remap(&world.host);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 0);
    world.is_flowing = true;
    for (unsigned i = 1; i < 4; i++) {
        turn();
        cr_assert_eq(last_call()->number, i, "what may have been called is not called again");
        answer(last_call(), SERVER_CALL_RESULT, NULL);
    }
    (void)write_event("s", "g", "i");
    world_remap(&world.host);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), 1, "what nobody read in between is told");
    triggers_remove(trigger);
    world_close();
}

/* ---- many ---- */

/* A thousand triggers on one stream: those of other groups cost an event nothing, a flood is cut
 * into turns. */
Test(triggers, a_thousand_triggers_on_one_stream, .timeout = HANG_SECONDS)
{
    enum { TRIGGERS = 1000, EVENTS = 3000 };
    static struct trigger *narrow[TRIGGERS], *wide[TRIGGERS];
    static uint64_t next[TRIGGERS];
    char group[16];
    world_open(16 * 1024 * 1024, 100);
    for (unsigned i = 0; i < TRIGGERS; i++) {
        (void)snprintf(group, sizeof group, "g%u", i);
        narrow[i] = add("s", group, NULL, group);
    }
    for (unsigned i = 0; i < EVENTS; i++) {
        (void)snprintf(group, sizeof group, "g%u", i % TRIGGERS);
        (void)write_event("s", group, "i");
    }
    drain();
    cr_assert_eq(counted(COUNTER_TRIGGER_EVENTS), EVENTS, "one each");
    unsigned runs = 1;
    while (triggers_run(world.triggers))
        runs++;
    cr_assert_geq(runs, TRIGGERS / TRIGGERS_TURN_EVENTS, "within a turn's budget each");
    cr_assert_eq(world.open, TRIGGERS);
    for (unsigned i = 0; i < TRIGGERS; i++)
        triggers_remove(narrow[i]);
    uint64_t dropped = counted(COUNTER_TRIGGER_DROPPED);
    cr_assert_eq(dropped, EVENTS - TRIGGERS, "what waited, but not what was under way");
    for (unsigned i = 0; i < TRIGGERS; i++) {
        (void)snprintf(group, sizeof group, "%u", i);
        wide[i] = add("s", NULL, NULL, group);
    }
    uint64_t first = world.written;
    for (unsigned i = 0; i < 90; i++)
        (void)write_event("s", "g", "i");
    cr_assert_eq(feed_drain(&world.feed, &world.mapping->ring, &world.subscriptions), WEIR_OK);
    cr_assert(world.feed.has_more, "so many matches are more than a turn takes");
    drain();
    cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), 90 * TRIGGERS);
    unsigned handled = 0;
    while (handled < 90 * TRIGGERS) {
        turn();
        cr_assert_eq(world.open, TRIGGERS, "one each");
        for (unsigned i = 0; i < CALLS_MAX; i++) {
            if (!world.calls[i].is_open)
                continue;
            unsigned long index = strtoul(world.calls[i].function, NULL, 10);
            cr_assert_eq(world.calls[i].number, first + next[index]++);
            answer(&world.calls[i], SERVER_CALL_RESULT, NULL);
            handled++;
        }
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), dropped);
    for (unsigned i = 0; i < TRIGGERS; i++)
        triggers_remove(wide[i]);
    world_close();
}

/* ---- model ---- */

enum {
    MODEL_TRIGGERS = 12,
    MODEL_STREAMS = 3,
    MODEL_GROUPS = 4,
    MODEL_ITEMS = 3,
    MODEL_WRITES = 20000
};
static const char *const streams[MODEL_STREAMS] = {"s", "", "s\"\\"};
static const char *const groups[MODEL_GROUPS] = {"g", "", "h\n", "\xC3\xA9"};
static const char *const items[MODEL_ITEMS] = {"i", "", "j\""};

struct model_trigger {
    struct trigger *trigger; /* NULL: none */
    unsigned stream;
    int group, item; /* -1: any */
    bool has_condition, is_handled_now;
    /* what waits, by group, oldest first */
    uint32_t waiting[MODEL_GROUPS][MODEL_WRITES];
    unsigned first[MODEL_GROUPS], end[MODEL_GROUPS];
    struct fake_call *call[MODEL_GROUPS];
    bool in_handler[MODEL_GROUPS];
    unsigned held;
    char function[8], condition[8];
};
static struct model_trigger model[MODEL_TRIGGERS];
static struct model_event {
    unsigned stream, group;
    int item; /* -1: none */
} model_events[MODEL_WRITES];
static uint64_t model_drained, model_random;
static uint64_t model_dropped, model_full, model_matched, model_done;

static unsigned below(unsigned bound)
{
    return (unsigned)(fixture_random(&model_random) % bound);
}

static bool model_matches(const struct model_trigger *each, const struct model_event *event)
{
    bool any_group = each->group < 0 || groups[each->group][0] == '\0';
    bool any_item = each->item < 0 || items[each->item][0] == '\0';
    return each->stream == event->stream && (any_group || (unsigned)each->group == event->group) &&
           (any_item || each->item == event->item);
}

static void model_drain(uint64_t queue_max)
{
    drain();
    for (; model_drained < world.written; model_drained++) {
        const struct model_event *event = &model_events[model_drained];
        for (unsigned i = 0; i < MODEL_TRIGGERS; i++) {
            struct model_trigger *each = &model[i];
            if (each->trigger == NULL || !model_matches(each, event))
                continue;
            model_matched++;
            if (each->held == queue_max) {
                model_dropped++;
                model_full++;
                continue;
            }
            each->held++;
            each->waiting[event->group][each->end[event->group]++] = (uint32_t)model_drained;
        }
    }
}

/* Calls the run has started: each must be the oldest event of its trigger and group. */
static void model_check_started(unsigned before)
{
    for (unsigned i = before; i < world.started; i++) {
        struct fake_call *call = &world.calls[i % CALLS_MAX];
        bool is_condition = call->function[0] == 'c';
        struct model_trigger *each = &model[strtoul(call->function + 1, NULL, 10)];
        unsigned group = model_events[call->number].group;
        cr_assert_not_null(each->trigger);
        cr_assert_null(each->call[group], "one outstanding call");
        cr_assert_lt(each->first[group], each->end[group]);
        cr_assert_eq(call->number, each->waiting[group][each->first[group]], "the oldest");
        cr_assert_eq(is_condition, each->has_condition && !each->in_handler[group]);
        each->call[group] = call;
    }
}

/* Whoever has events and no call would have been called. */
static void model_check_all_started(void)
{
    for (unsigned i = 0; i < MODEL_TRIGGERS; i++) {
        for (unsigned group = 0; model[i].trigger != NULL && group < MODEL_GROUPS; group++)
            cr_assert_eq(model[i].call[group] != NULL, model[i].first[group] < model[i].end[group]);
    }
}

static void model_answer(void)
{
    struct model_trigger *each = &model[below(MODEL_TRIGGERS)];
    unsigned group = below(MODEL_GROUPS);
    if (each->trigger == NULL || each->call[group] == NULL)
        return;
    struct fake_call *call = each->call[group];
    static const char *const results[] = {NULL, "true", "0", "false"};
    enum server_call_fate fate =
        below(4) == 0 ? (enum server_call_fate)below(4) : SERVER_CALL_RESULT;
    const char *result = results[below(4)];
    bool goes_on = fate == SERVER_CALL_RESULT && each->has_condition && !each->in_handler[group] &&
                   (result == NULL || strcmp(result, "false") != 0);
    each->call[group] = NULL;
    each->in_handler[group] = goes_on;
    if (!goes_on) {
        each->first[group]++;
        each->held--;
        model_done++;
    }
    answer(call, fate, fate == SERVER_CALL_RESULT ? result : "{}");
}

static void model_forget(struct model_trigger *each)
{
    for (unsigned group = 0; group < MODEL_GROUPS; group++) {
        unsigned calls = each->call[group] != NULL;
        model_done += calls;
        model_dropped += each->end[group] - each->first[group] - calls;
    }
    triggers_remove(each->trigger);
    each->trigger = NULL;
    each->held = 0;
    for (unsigned group = 0; group < MODEL_GROUPS; group++) {
        each->first[group] = each->end[group] = 0;
        each->call[group] = NULL;
        each->in_handler[group] = false;
    }
}

static void model_toggle(uint64_t queue_max)
{
    unsigned index = below(MODEL_TRIGGERS);
    struct model_trigger *each = &model[index];
    model_drain(queue_max);
    if (each->trigger != NULL) {
        model_forget(each);
        return;
    }
    each->stream = below(MODEL_STREAMS);
    each->group = (int)below(MODEL_GROUPS + 1) - 1;
    each->item = (int)below(MODEL_ITEMS + 1) - 1;
    each->has_condition = below(3) == 0;
    (void)snprintf(each->function, sizeof each->function, "f%u", index);
    (void)snprintf(each->condition, sizeof each->condition, "c%u", index);
    each->trigger = add_full(streams[each->stream], each->group < 0 ? NULL : groups[each->group],
                             each->item < 0 ? NULL : items[each->item],
                             each->has_condition ? each->condition : NULL, each->function, NULL);
}

static void model_write(void)
{
    struct model_event *event = &model_events[world.written];
    event->stream = below(MODEL_STREAMS);
    event->group = below(MODEL_GROUPS);
    event->item = (int)below(MODEL_ITEMS + 1) - 1;
    (void)write_event(streams[event->stream], groups[event->group],
                      event->item < 0 ? NULL : items[event->item]);
}

static void model_step(uint64_t queue_max)
{
    unsigned before = world.started;
    switch (below(16)) {
    case 0:
        model_toggle(queue_max);
        break;
    case 1:
    case 2:
    case 3:
        model_drain(queue_max);
        break;
    case 4:
        world.is_flowing = below(4) != 0;
        world.refuse = below(3);
        break;
    case 5:
    case 6:
    case 7:
        (void)triggers_run(world.triggers);
        model_check_started(before);
        break;
    case 8:
    case 9:
    case 10:
    case 11:
        model_answer();
        break;
    default:
        if (world.written < MODEL_WRITES)
            model_write();
    }
}

static void run_model(const char *name, uint64_t queue_max)
{
    world_open(32 * 1024 * 1024, queue_max);
    model_random = fixture_seed(name);
    for (unsigned step = 0; step < 80000; step++) {
        model_step(queue_max);
        unsigned held = 0;
        for (unsigned i = 0; i < MODEL_TRIGGERS; i++)
            held += model[i].held;
        cr_assert_eq(counted(COUNTER_TRIGGER_QUEUED), held);
    }
    world.is_flowing = true;
    world.refuse = 0;
    model_drain(queue_max);
    unsigned before = world.started;
    while (triggers_run(world.triggers)) {
    }
    model_check_started(before);
    model_check_all_started();
    cr_assert_gt(world.started, 1000, "the run did call");
    cr_assert_eq(counted(COUNTER_TRIGGER_EVENTS), model_matched);
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), model_dropped);
    for (unsigned i = 0; i < MODEL_TRIGGERS; i++) {
        if (model[i].trigger != NULL)
            model_forget(&model[i]);
    }
    cr_assert_eq(counted(COUNTER_TRIGGER_DROPPED), model_dropped);
    cr_assert_eq(model_done + model_dropped, model_matched, "every event has one end");
    world_close();
}

/* Goal: order, bounds and matching under everything at once. Method: a random run of writes, reads
 * of the ring, answers, refusals, registrations and removals against arrays searched linearly. */
Test(triggers, a_random_run_agrees_with_the_model, .timeout = HANG_SECONDS)
{
    run_model("triggers model", 1u << 20);
    cr_assert_eq(model_full, 0);
}

Test(triggers, a_random_run_of_full_triggers_agrees_with_the_model, .timeout = HANG_SECONDS)
{
    run_model("triggers model, full", 6);
    cr_assert_gt(model_full, 100);
}

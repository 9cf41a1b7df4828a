/* The broker's side of byte channels, without sockets: who may send how much, and what ends what
 * (PROTOCOL 2.17). */
#include <criterion/criterion.h>
#include <stdio.h>

#include "broker/channels.h"
#include "tests/broker_recorder.h"

static const struct peer_handle maker = {1, 1}, writing = {2, 1}, reading = {3, 1};

static struct channels *channels;
static struct recorder recorder;
static struct broker_counters counters;
static char channel_id[33], writer_key[33], reader_key[33];

static void open_channels(void)
{
    const struct broker_output output = recorder_output(&recorder);
    memset(&recorder, 0, sizeof recorder);
    memset(&counters, 0, sizeof counters);
    cr_assert_eq(channels_open(&channels, &output, &counters, 42, NULL), WEIR_OK);
}

static void close_channels(void)
{
    channels_close(channels);
    recorder_clear(&recorder);
}

static enum weir_status take(struct peer_handle peer, enum wire_type type, uint64_t id,
                             uint64_t end, uint64_t number, const char *text, uint64_t now_ms)
{
    struct wire_message message = {.type = type, .id = id};
    message.fields[0].number = end;
    message.fields[1].number = number;
    if (text != NULL)
        message.fields[2].span = span_text(text);
    return channels_take(channels, peer, &message, now_ms);
}

static void create(const char *input)
{
    struct wire_message call = {.type = WIRE_CALL, .id = 7};
    call.fields[0].number = 5;
    call.fields[2].span = SPAN_LITERAL("engine::channels::create");
    call.fields[3].span = span_text(input);
    cr_assert(channels_is_create(&call));
    channels_create(channels, maker, &call, 1000);
    const struct recorded *answer = &recorder.messages[recorder.count - 1];
    cr_assert_eq(answer->type, WIRE_RESULT);
    cr_assert_eq(answer->id, 7u);
    if (answer->fields[0].span.data == NULL)
        return;
    cr_assert_eq(
        sscanf(answer->fields[0].span.data,
               "{\"writer\":{\"channel_id\":\"%32[0-9a-f]\",\"access_key\":\"%32[0-9a-f]\"",
               channel_id, writer_key),
        2);
    const char *reader = strstr(answer->fields[0].span.data, "\"reader\"");
    cr_assert_eq(sscanf(reader,
                        "\"reader\":{\"channel_id\":\"%*32[0-9a-f]\",\"access_key\":\""
                        "%32[0-9a-f]\"",
                        reader_key),
                 1);
}

/* The outcome of an attempt to become an end of the channel. */
static uint64_t attach(struct peer_handle peer, uint64_t end, const char *key, uint64_t direction,
                       uint64_t *credits)
{
    struct wire_message message = {.type = WIRE_CHANNEL_OPEN, .id = 9};
    message.fields[0].number = end;
    message.fields[1].span = span_text(channel_id);
    message.fields[2].span = span_text(key);
    message.fields[3].number = direction;
    cr_assert_eq(channels_take(channels, peer, &message, 2000), WEIR_OK);
    const struct recorded *answer = &recorder.messages[recorder.count - 1];
    cr_assert_eq(answer->type, WIRE_CHANNEL_OPENED);
    if (credits != NULL)
        *credits = answer->fields[1].number;
    return answer->fields[0].number;
}

static unsigned count_of(enum wire_type type)
{
    unsigned count = 0;
    for (unsigned i = 0; i < recorder.count; i++)
        count += recorder.messages[i].type == type;
    return count;
}

static uint64_t credits_of(struct peer_handle peer)
{
    uint64_t credits = 0;
    for (unsigned i = 0; i < recorder.count; i++)
        if (recorder.messages[i].type == WIRE_CHANNEL_CREDIT &&
            peer_handle_equal(recorder.messages[i].peer, peer))
            credits += recorder.messages[i].fields[1].number;
    return credits;
}

TestSuite(channels, .init = open_channels, .fini = close_channels, .timeout = HANG_SECONDS);

static const char *create_of(uint64_t session)
{
    struct wire_message call = {.type = WIRE_CALL, .id = 8};
    call.fields[0].number = session;
    call.fields[2].span = SPAN_LITERAL("engine::channels::create");
    call.fields[3].span = SPAN_LITERAL("{}");
    recorder_clear(&recorder);
    if (!channels_is_create(&call))
        return "not one of ours";
    channels_create(channels, maker, &call, 1000);
    return recorder.messages[0].fields[0].span.data != NULL ? "made" : "refused";
}

/* One worker does not use up everybody's, and a gateway that runs a trigger has none. */
Test(channels, a_worker_has_its_own_bound)
{
    cr_assert_str_eq(create_of(0), "not one of ours");
    for (unsigned i = 0; i < CHANNELS_SESSION_MAX; i++)
        cr_assert_str_eq(create_of(5), "made");
    cr_assert_str_eq(create_of(5), "refused");
    cr_assert_str_eq(create_of(6), "made");
    cr_assert_eq(counters.channels, CHANNELS_SESSION_MAX + 1u);
    channels_session_gone(channels, maker, 5);
    cr_assert_eq(counters.channels, 1u);
    cr_assert_str_eq(create_of(5), "made");
}

/* One worker's channels end with it, in whatever order others come and go. */
Test(channels, a_session_takes_its_own_channels_along)
{
    for (unsigned round = 0; round < 50; round++)
        create("{}");
    channels_session_gone(channels, maker, 6);
    channels_session_gone(channels, reading, 5);
    cr_assert_eq(counters.channels, 50);
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    channels_peer_gone(channels, writing);
    cr_assert_eq(counters.channels, 49);
    channels_session_gone(channels, maker, 5);
    cr_assert_eq(counters.channels, 0);
}

/* Ends are opened by id and key, each once. */
Test(channels, an_end_needs_its_own_key_and_is_taken_once)
{
    create("{}");
    cr_assert_eq(attach(writing, 1, reader_key, 2, NULL), 0u);
    cr_assert_eq(attach(writing, 1, "", 2, NULL), 0u);
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    cr_assert_eq(attach(reading, 1, writer_key, 2, NULL), 2u);
    cr_assert_eq(attach(reading, 1, reader_key, 1, NULL), 1u);
    cr_assert_eq(attach(maker, 1, reader_key, 1, NULL), 2u);
}

/* Messages sent before the reader is there wait, within the writer's credit, and arrive in order. */
Test(channels, messages_wait_for_their_reader_in_order)
{
    uint64_t credits;
    create("{\"buffer_size\":3}");
    cr_assert_eq(attach(writing, 1, writer_key, 2, &credits), 1u);
    cr_assert_eq(credits, 3u);
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, 1, i & 1,
                          i == 0   ? "a"
                          : i == 1 ? "b"
                                   : "c",
                          2000),
                     WEIR_OK);
    cr_assert_eq(credits_of(writing), 0u, "three are waiting, which is what buffer_size allows");
    cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, 1, 0, "d", 2000), WEIR_INVALID);
    cr_assert_eq(count_of(WIRE_CHANNEL_DATA), 0u);
    cr_assert_eq(attach(reading, 1, reader_key, 1, NULL), 1u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, 1, 2, NULL, 2000), WEIR_OK);
    cr_assert_eq(count_of(WIRE_CHANNEL_DATA), 2u);
    cr_assert_eq(credits_of(writing), 2u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, 1, 2, NULL, 2000), WEIR_OK);
    const char *expected = "abc";
    unsigned at = 0;
    for (unsigned i = 0; i < recorder.count; i++) {
        const struct recorded *message = &recorder.messages[i];
        if (message->type != WIRE_CHANNEL_DATA)
            continue;
        cr_assert_eq(message->fields[1].number, at & 1);
        cr_assert_eq(message->fields[2].span.data[0], expected[at++]);
    }
    cr_assert_eq(at, 3u);
}

/* The reader hears of the end only when it has everything. */
Test(channels, the_end_comes_after_the_last_message)
{
    create("null");
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    cr_assert_eq(attach(reading, 4, reader_key, 1, NULL), 1u);
    cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, 1, 0, "last", 2000), WEIR_OK);
    cr_assert_eq(take(writing, WIRE_CHANNEL_CLOSED, 0, 1, 0, NULL, 2000), WEIR_OK);
    cr_assert_eq(count_of(WIRE_CHANNEL_CLOSED), 0u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, 4, 1, NULL, 2000), WEIR_OK);
    cr_assert_eq(recorder.messages[recorder.count - 2].type, WIRE_CHANNEL_DATA);
    cr_assert_eq(recorder.messages[recorder.count - 1].type, WIRE_CHANNEL_CLOSED);
    cr_assert_eq(recorder.messages[recorder.count - 1].fields[0].number, 4u);
    cr_assert_eq(counters.channels, 0u);
}

/* Reader gone, session gone, gateway gone, unused for five minutes: each is the end. */
Test(channels, every_way_a_channel_ends)
{
    create("{}");
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    cr_assert_eq(attach(reading, 2, reader_key, 1, NULL), 1u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CLOSED, 0, 2, 0, NULL, 2000), WEIR_OK);
    cr_assert_eq(recorder.messages[recorder.count - 1].type, WIRE_CHANNEL_CLOSED);
    cr_assert(peer_handle_equal(recorder.messages[recorder.count - 1].peer, writing));
    cr_assert_eq(counters.channels, 0u);

    create("{}");
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    channels_session_gone(channels, maker, 6);
    cr_assert_eq(counters.channels, 1u, "another session's end does not matter");
    channels_session_gone(channels, maker, 5);
    cr_assert_eq(counters.channels, 0u);

    create("{}");
    cr_assert_eq(attach(writing, 1, writer_key, 2, NULL), 1u);
    channels_peer_gone(channels, writing);
    cr_assert_eq(counters.channels, 0u);

    create("{}");
    channels_tick(channels, 1000 + CHANNEL_UNUSED_MS_MAX);
    cr_assert_eq(counters.channels, 1u);
    channels_tick(channels, 1001 + CHANNEL_UNUSED_MS_MAX);
    cr_assert_eq(counters.channels, 0u);
}

/* A writer gets no credit while a megabyte waits for its reader. */
Test(channels, a_slow_reader_holds_up_its_writer_by_bytes)
{
    static char half[CHANNEL_BYTES / 2 + 1];
    uint64_t credits, sent = 0;
    memset(half, 'x', sizeof half - 1);
    create("{\"buffer_size\":1024}");
    cr_assert_eq(attach(writing, 1, writer_key, 2, &credits), 1u);
    for (; sent < credits + credits_of(writing); sent++)
        cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, 1, 1, half, 2000), WEIR_OK);
    cr_assert_leq(sent, (uint64_t)CHANNEL_CREDITS + 2);
    cr_assert_eq(attach(reading, 2, reader_key, 1, NULL), 1u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, 2, sent, NULL, 2000), WEIR_OK);
    cr_assert_gt(credits_of(writing), 0u);
}

static bool is_lagging;
static bool reader_lags(void *context, struct peer_handle peer)
{
    (void)context;
    return is_lagging && peer_handle_equal(peer, reading);
}

/* While the reader's gateway lags nothing is sent to it, and all of it afterwards, in order, then the
 * end; several channels have their turns. */
Test(channels, a_lagging_gateway_is_sent_nothing)
{
    enum { CHANNELS = 3, MESSAGES = 5 };
    uint64_t sent = 0;
    is_lagging = true;
    channels_set_lag(channels, reader_lags, NULL);
    for (uint64_t n = 1; n <= CHANNELS; n++) {
        uint64_t credits;
        create("{}");
        cr_assert_eq(attach(writing, n, writer_key, 2, &credits), 1u);
        cr_assert_geq(credits, MESSAGES);
        cr_assert_eq(attach(reading, n, reader_key, 1, NULL), 1u);
        cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, n, 8, NULL, 2000), WEIR_OK);
        for (unsigned i = 0; i < MESSAGES; i++) {
            char text[2] = {(char)('a' + i), 0};
            cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, n, 0, text, 2000), WEIR_OK);
        }
        cr_assert_eq(take(writing, WIRE_CHANNEL_CLOSED, 0, n, 0, NULL, 2000), WEIR_OK);
    }
    channels_turn(channels);
    cr_assert_eq(count_of(WIRE_CHANNEL_DATA), 0u);
    cr_assert_eq(take(reading, WIRE_CHANNEL_CLOSED, 0, 2, 0, NULL, 2000),
                 WEIR_OK); /* out of line */
    channels_turn(channels);
    is_lagging = false;
    channels_turn(channels);
    channels_turn(channels);
    unsigned next[CHANNELS + 1] = {0};
    for (unsigned i = 0; i < recorder.count; i++) {
        const struct recorded *message = &recorder.messages[i];
        if (message->type != WIRE_CHANNEL_DATA)
            continue;
        uint64_t n = message->fields[0].number;
        cr_assert_eq(message->fields[2].span.data[0], (char)('a' + next[n]++));
        sent++;
    }
    cr_assert_eq(sent, 2u * MESSAGES);
    cr_assert_eq(count_of(WIRE_CHANNEL_CLOSED), 2u);
    cr_assert_eq(counters.channels, 0u);
}

/* Channels nobody reads fill all the room there is. One that is read gets on all the same, and the
 * others do when there is room again. */
Test(channels, unread_channels_do_not_stop_the_others, .timeout = HANG_SECONDS)
{
    enum { UNREAD = CHANNELS_BYTES / CHANNEL_BYTES + 8 };
    static char text[CHANNEL_BYTES + 1];
    uint64_t credits, full = 0, end = 1;
    memset(text, 'x', sizeof text - 1);
    for (; end <= UNREAD; end++) {
        create("{}");
        cr_assert_eq(attach(writing, end, writer_key, 2, &credits), 1u);
        if (credits == 0)
            break;
        cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, end, 1, text, 2000), WEIR_OK);
        full++;
    }
    cr_assert_leq(full, (uint64_t)CHANNELS_BYTES / CHANNEL_BYTES);
    uint64_t starved = end++;
    create("{}");
    cr_assert_eq(attach(writing, end, writer_key, 2, &credits), 1u);
    cr_assert_eq(credits, 0u);
    cr_assert_eq(attach(reading, 1, reader_key, 1, NULL), 1u);
    for (unsigned i = 0; i < 20; i++) {
        recorder_clear(&recorder);
        cr_assert_eq(take(reading, WIRE_CHANNEL_CREDIT, 0, 1, 1, NULL, 2000), WEIR_OK);
        cr_assert_eq(credits_of(writing), 1u, "just what the reader waits for");
        cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, end, 1, "through", 2000), WEIR_OK);
        cr_assert_eq(count_of(WIRE_CHANNEL_DATA), 1u);
    }
    recorder_clear(&recorder);
    channels_tick(channels, 2000);
    cr_assert_eq(credits_of(writing), 0u);
    /* One that is unread ends: its writer goes, and nobody comes to read it. */
    cr_assert_eq(take(writing, WIRE_CHANNEL_CLOSED, 0, 1, 0, NULL, 2000), WEIR_OK);
    channels_tick(channels, 2000 + CHANNEL_UNUSED_MS_MAX + 1);
    channels_tick(channels, 2000 + CHANNEL_UNUSED_MS_MAX + 2);
    uint64_t granted = 0;
    for (unsigned i = 0; i < recorder.count; i++)
        if (recorder.messages[i].type == WIRE_CHANNEL_CREDIT &&
            recorder.messages[i].fields[0].number == starved)
            granted += recorder.messages[i].fields[1].number;
    cr_assert_eq(granted, (uint64_t)CHANNEL_CREDITS, "there is room again");
}

/* Credit is for messages of any size; what all of them keep has a bound of its own. */
Test(channels, what_is_kept_has_a_hard_bound, .timeout = HANG_SECONDS)
{
    enum { BYTES = 16 * 1024 * 1024 };
    char *text = malloc(BYTES + 1);
    cr_assert_not_null(text);
    memset(text, 'x', BYTES);
    text[BYTES] = '\0';
    uint64_t granted[16], kept = 0;
    for (uint64_t end = 1; end <= 10; end++) {
        create("{}");
        cr_assert_eq(attach(writing, end, writer_key, 2, &granted[end]), 1u);
    }
    for (uint64_t end = 1; end <= 10; end++)
        for (; granted[end] > 0 && counters.channels_dropped == 0; granted[end]--, kept += BYTES)
            cr_assert_eq(take(writing, WIRE_CHANNEL_DATA, 0, end, 1, text, 2000), WEIR_OK);
    free(text);
    cr_assert_eq(counters.channels_dropped, 1u);
    cr_assert_eq(counters.channels, 9u);
    cr_assert_leq(kept, (uint64_t)CHANNELS_BYTES_HARD + BYTES);
    cr_assert_eq(recorder.messages[recorder.count - 1].type, WIRE_CHANNEL_CLOSED);
}

/* Nobody would know of a channel whose making nobody waits for. */
Test(channels, a_void_call_makes_no_channel)
{
    struct wire_message call = {.type = WIRE_CALL, .id = 0};
    call.fields[2].span = SPAN_LITERAL("engine::channels::create");
    channels_create(channels, maker, &call, 1000);
    cr_assert_eq(counters.channels, 0u);
    cr_assert_eq(recorder.count, 0u);
}

/* covers: 2.15#12 */
Test(channels, buffer_size_is_checked)
{
    static const char *const bad[] = {"{\"buffer_size\":0}",
                                      "{\"buffer_size\":-1}",
                                      "{\"buffer_size\":1.5}",
                                      "{\"buffer_size\":\"64\"}",
                                      "[]",
                                      "5"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        create(bad[i]);
        const struct recorded *answer = &recorder.messages[recorder.count - 1];
        cr_assert_null(answer->fields[0].span.data, "%s", bad[i]);
        cr_assert_not_null(strstr(recorded_text(answer, 1), "deserialization_error"));
    }
    cr_assert_eq(counters.channels, 0u);
}

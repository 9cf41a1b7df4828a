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
    const struct broker_output output = {recorder_send, recorder_is_busy, &recorder};
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

TestSuite(channels, .init = open_channels, .fini = close_channels, .timeout = 20);

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

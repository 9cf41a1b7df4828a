/* What measures must not be wrong in silence: percentiles, the check of every message, and what a
 * subscriber makes of each protocol's bytes. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/crowd.h"
#include "bench/floor.h"
#include "bench/load.h"
#include "bench/message.h"

/* ---- histogram ---- */

static int compare_values(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Against the sorted values themselves: never too small, and at most 1/128 too large. */
Test(histogram, percentiles_are_those_of_the_sorted_values, .timeout = HANG_SECONDS)
{
    static struct histogram histogram;
    enum { VALUES = 20000 };
    static uint64_t values[VALUES];
    uint64_t state = 88172645463325252u;
    for (unsigned i = 0; i < VALUES; i++) {
        values[i] = next_random(&state) >> (24 + next_random(&state) % 40);
        histogram_add(&histogram, values[i]);
    }
    qsort(values, VALUES, sizeof values[0], compare_values);
    const double shares[] = {0.001, 0.5, 0.9, 0.99, 0.999, 1};
    cr_assert_eq(histogram_count(&histogram), VALUES);
    for (unsigned i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        uint64_t exact = values[(size_t)(shares[i] * VALUES) - 1];
        uint64_t found = histogram_percentile(&histogram, shares[i]);
        cr_assert(found >= exact && found <= exact + exact / 128, "%f: %llu is not near %llu",
                  shares[i], (unsigned long long)found, (unsigned long long)exact);
    }
}

Test(histogram, every_value_is_counted_in_a_bucket_that_ends_at_or_behind_it,
     .timeout = HANG_SECONDS)
{
    for (unsigned bit = 0; bit < 45; bit++) {
        for (int offset = -1; offset <= 1; offset++) {
            struct histogram *histogram = calloc(1, sizeof *histogram);
            uint64_t value = (UINT64_C(1) << bit) + (uint64_t)(int64_t)offset;
            uint64_t largest = (UINT64_C(1) << HISTOGRAM_VALUE_BITS) - 1;
            histogram_add(histogram, value);
            uint64_t found = histogram_percentile(histogram, 0.5);
            cr_assert_geq(found, value < largest ? value : largest);
            cr_assert_leq(found, value + value / 128);
            free(histogram);
        }
    }
}

Test(histogram, what_an_earlier_copy_holds_is_taken_away, .timeout = HANG_SECONDS)
{
    static struct histogram now, earlier;
    histogram_add(&now, 1000000);
    histogram_merge(&earlier, &now);
    histogram_add(&now, 50);
    histogram_add(&now, 100);
    histogram_subtract(&now, &earlier);
    cr_assert_eq(histogram_count(&now), 2);
    cr_assert_eq(histogram_percentile(&now, 1), 100);
    cr_assert_eq((uint64_t)(histogram_mean(&now) + 0.5), 75);
}

/* ---- messages ---- */

Test(message, no_changed_byte_passes, .timeout = HANG_SECONDS)
{
    char text[128];
    struct message message = {42, 1234567890123, 7}, found;
    message_write(text, sizeof text, &message);
    cr_assert(message_read(span_of(text, sizeof text), sizeof text, 7, &found));
    cr_assert_eq(found.number, 42);
    cr_assert_eq(found.time_ns, 1234567890123);
    for (size_t i = 0; i < sizeof text; i++) {
        char kept = text[i];
        text[i] ^= 0x40;
        cr_assert_not(message_read(span_of(text, sizeof text), sizeof text, 7, &found), "byte %zu",
                      i);
        text[i] = kept;
    }
}

/* A digit that becomes another one is another number: the pattern belongs to the right one. */
Test(message, another_number_or_group_or_size_is_seen, .timeout = HANG_SECONDS)
{
    char text[128];
    struct message message = {42, 1234567890123, 7}, found;
    message_write(text, sizeof text, &message);
    cr_assert_not(message_read(span_of(text, sizeof text), sizeof text, 8, &found));
    cr_assert_not(message_read(span_of(text, sizeof text - 1), sizeof text, 7, &found));
    cr_assert_not(message_read(span_of(text, sizeof text), sizeof text + 1, 7, &found));
    text[15] = '3'; /* 42 becomes 43 */
    cr_assert_not(message_read(span_of(text, sizeof text), sizeof text, 7, &found));
}

Test(message, numbers_left_out_and_repeated_are_told, .timeout = HANG_SECONDS)
{
    struct message_sequence sequence = {0};
    uint64_t left_out = 0;
    cr_assert_eq(message_take(&sequence, 0, &left_out), MESSAGE_NEXT);
    cr_assert_eq(message_take(&sequence, 1, &left_out), MESSAGE_NEXT);
    cr_assert_eq(message_take(&sequence, 5, &left_out), MESSAGE_AFTER_GAP);
    cr_assert_eq(left_out, 3);
    cr_assert_eq(message_take(&sequence, 5, &left_out), MESSAGE_REPEATED);
    cr_assert_eq(message_take(&sequence, 2, &left_out), MESSAGE_REPEATED);
    cr_assert_eq(message_take(&sequence, 6, &left_out), MESSAGE_NEXT);
}

/* ---- protocols: one message's bytes as each server sends them ---- */

struct exchange {
    const char *protocol, *head, *tail; /* around the message */
    uint8_t stage;
};

static const struct exchange exchanges[] = {
    {"nats", "MSG g0 1 128\r\n", "\r\n", 1},
    {"redis", "*3\r\n$7\r\nmessage\r\n$2\r\ng0\r\n$128\r\n", "\r\n", 1},
    {"ws", "\x81\x7e%c%c", "", 1},
    {"nchan", "\x81\x7e%c%c", "", 1},
    {"socketio", "\x81\x7e%c%c42[\"m\",", "]", 1},
    {"weir",
     "\x81\x7e%c%c{\"type\":\"stream\",\"timestamp\":1,\"streamName\":\"bench\",\"groupId\":\"g0\","
     "\"id\":\"m\",\"event\":{\"type\":\"update\",\"data\":",
     "},\"seq\":9,\"epoch\":77}", 2},
};

static size_t build(const struct exchange *exchange, const char *message, char *out)
{
    size_t bytes = 0;
    const char *head = exchange->head;
    bool is_frame = (unsigned char)head[0] == 0x81;
    size_t payload = strlen(head) + 128 + strlen(exchange->tail) - (is_frame ? 6 : 0);
    if (is_frame) {
        const char start[4] = {(char)0x81, 0x7e, (char)(payload >> 8), (char)payload};
        memcpy(out, start, 4);
        bytes = 4;
        head += 6;
    }
    bytes += (size_t)sprintf(out + bytes, "%s%.128s%s", head, message, exchange->tail);
    return bytes;
}

Test(protocol, a_message_is_found_whole_and_only_when_all_of_it_is_there, .timeout = HANG_SECONDS)
{
    char message[129] = "", bytes[1024], reply[CROWD_REPLY_BYTES_MAX];
    message_write(message, 128, &(struct message){3, 99, 0});
    for (size_t i = 0; i < sizeof exchanges / sizeof exchanges[0]; i++) {
        const struct exchange *exchange = &exchanges[i];
        const struct crowd_protocol *protocol = crowd_protocol_find(exchange->protocol);
        size_t whole = build(exchange, message, bytes);
        for (size_t cut = 1; cut < whole; cut++) {
            struct crowd_voice voice = {.group = "g0", .stage = exchange->stage};
            struct crowd_unit unit = {0};
            protocol->take(&voice, span_of(bytes, cut), reply, &unit);
            cr_assert_eq(unit.bytes, 0, "%s at %zu of %zu", exchange->protocol, cut, whole);
        }
        struct crowd_voice voice = {.group = "g0", .stage = exchange->stage};
        struct crowd_unit unit = {0};
        protocol->take(&voice, span_of(bytes, whole), reply, &unit);
        cr_assert_eq(unit.kind, CROWD_MESSAGE, "%s", exchange->protocol);
        cr_assert_eq(unit.bytes, whole, "%s", exchange->protocol);
        cr_assert(span_equal(unit.message, span_of(message, 128)), "%s", exchange->protocol);
    }
}

static struct crowd_unit take_weir(const char *event, uint8_t stage)
{
    static char bytes[1024];
    char reply[CROWD_REPLY_BYTES_MAX];
    char text[512];
    int length = sprintf(text,
                         "{\"type\":\"stream\",\"timestamp\":1,\"streamName\":\"bench\","
                         "\"groupId\":\"g0\",\"id\":\"m\",%s,\"seq\":9,\"epoch\":77}",
                         event);
    const char start[4] = {(char)0x81, 0x7e, (char)(length >> 8), (char)length};
    memcpy(bytes, start, 4);
    memcpy(bytes + 4, text, (size_t)length);
    struct crowd_voice voice = {.group = "g0", .stage = stage};
    struct crowd_unit unit = {0};
    crowd_protocol_find("weir")->take(&voice, span_of(bytes, (size_t)length + 4), reply, &unit);
    return unit;
}

Test(protocol, weir_says_where_a_subscriber_stands, .timeout = HANG_SECONDS)
{
    struct crowd_unit unit = take_weir("\"event\":{\"type\":\"sync\",\"data\":[]}", 1);
    cr_assert_eq(unit.kind, CROWD_LIVE);
    cr_assert_eq(unit.message.bytes, 0);
    cr_assert_eq(unit.epoch, 77);
    cr_assert_eq(unit.since, 9);
    unit = take_weir("\"event\":{\"type\":\"sync\",\"data\":[{\"n\":1}]},\"reason\":\"lagged\"", 2);
    cr_assert_eq(unit.kind, CROWD_RESYNC);
    cr_assert_eq(unit.message.bytes, 7);
    unit = take_weir("\"event\":{\"type\":\"resumed\"}", 1);
    cr_assert(unit.kind == CROWD_LIVE && unit.resumed);
    unit = take_weir("\"event\":{\"type\":\"update\",\"data\":{\"n\":1}},"
                     "\"conflated\":{\"since\":4,\"more\":true}",
                     2);
    cr_assert(unit.conflated);
    cr_assert_eq(unit.since, 4);
}

/* ---- the whole crowd ---- */

static void run_on_floor(enum floor_kind kind, unsigned groups, double rate,
                         struct crowd_result *result)
{
    struct floor_server floor;
    floor_start(&floor, kind);
    struct crowd_options options = {.protocol = crowd_protocol_find("floor"),
                                    .port = floor.port,
                                    .prefix = "g",
                                    .groups = groups,
                                    .subscribers = 12,
                                    .processes = 2,
                                    .bytes = 128,
                                    .rate = rate,
                                    .in_flight = rate > 0 ? 0 : 8,
                                    .seconds = 0.3,
                                    .warmup_seconds = 0.1,
                                    .drain_seconds = HANG_SECONDS / 4,
                                    .server_pids = {floor.pid},
                                    .server_pid_count = 1};
    crowd_run(&options, result);
    floor_stop(&floor);
}

Test(crowd, every_message_is_counted_once_for_every_subscriber, .timeout = HANG_SECONDS)
{
    for (int kind = FLOOR_SINGLE; kind <= FLOOR_COALESCED; kind++) {
        struct crowd_result result;
        run_on_floor((enum floor_kind)kind, 3, 100, &result);
        cr_assert_eq(result.published, 30);
        cr_assert_eq(result.delivered, 30 * 4);
        cr_assert_eq(result.undelivered + result.lost + result.repeated + result.damaged, 0);
        run_on_floor((enum floor_kind)kind, 3, 0, &result);
        cr_assert_gt(result.delivered, 0);
        cr_assert_eq(result.undelivered + result.lost + result.repeated + result.damaged, 0);
    }
}

enum fault { FAULT_NONE, FAULT_LOSS, FAULT_REPEAT, FAULT_DAMAGE, FAULT_END };

/* Where something never arrives, the crowd waits longer for the rest than a process may stand still. */
enum { REST_SECONDS = 7 };

/* A server that does one thing wrong, to the tenth message of its second subscriber: the first one has
 * had the right one then, which must not be taken for the second one's. */
static void serve_wrongly(int listener, enum fault fault)
{
    char frame[512];
    uint32_t greeting;
    int subscribers[2], publisher;
    ssize_t ignored = 0;
    for (int i = 0; i < 2; i++) {
        subscribers[i] = accept(listener, NULL, NULL);
        ignored += read(subscribers[i], &greeting, sizeof greeting);
        ignored += write(subscribers[i], "\x81", 2);
    }
    publisher = accept(listener, NULL, NULL);
    ignored += read(publisher, &greeting, sizeof greeting);
    for (unsigned i = 0; ignored > 0; i++) {
        uint32_t head[2];
        if (recv(publisher, head, sizeof head, MSG_WAITALL) != sizeof head)
            break;
        ignored = recv(publisher, frame, head[1], MSG_WAITALL);
        (void)!write(subscribers[0], frame, head[1]);
        if (i == 10 && fault == FAULT_LOSS)
            continue;
        if (i == 10 && fault == FAULT_DAMAGE)
            frame[head[1] - 60] ^= 1;
        for (int copies = i == 10 && fault == FAULT_REPEAT ? 2 : 1; copies > 0; copies--)
            (void)!write(subscribers[1], frame, head[1]);
        if (i == 10 && fault == FAULT_END)
            (void)close(subscribers[1]);
    }
    _exit(0);
}

static struct crowd_result run_with(enum fault fault)
{
    uint16_t port;
    int listener = load_listen(&port);
    pid_t pid = fork();
    if (pid == 0) {
        (void)signal(SIGPIPE, SIG_IGN);
        serve_wrongly(listener, fault);
    }
    (void)close(listener);
    bool is_all_there = fault == FAULT_NONE || fault == FAULT_REPEAT;
    struct crowd_options options = {.protocol = crowd_protocol_find("floor"),
                                    .port = port,
                                    .prefix = "g",
                                    .groups = 1,
                                    .subscribers = 2,
                                    .bytes = 128,
                                    .rate = 100,
                                    .seconds = 0.2,
                                    .warmup_seconds = 0.05,
                                    .drain_seconds =
                                        is_all_there ? HANG_SECONDS / 4 : REST_SECONDS};
    struct crowd_result result;
    crowd_run(&options, &result);
    (void)waitpid(pid, NULL, 0);
    return result;
}

Test(crowd, a_message_that_is_lost_is_seen, .timeout = HANG_SECONDS)
{
    struct crowd_result result = run_with(FAULT_LOSS);
    cr_assert_eq(result.lost, 1);
    cr_assert_eq(result.undelivered, 1);
    cr_assert_eq(result.repeated + result.damaged, 0);
    cr_assert_not(result.kept_up);
}

Test(crowd, an_end_is_seen, .timeout = HANG_SECONDS)
{
    struct crowd_result result = run_with(FAULT_END);
    cr_assert_eq(result.closed, 1);
    cr_assert_gt(result.undelivered, 0);
}

Test(crowd, a_planted_fault_is_seen_and_only_that_one, .timeout = HANG_SECONDS)
{
    struct crowd_result result = run_with(FAULT_NONE);
    cr_assert_eq(result.lost + result.repeated + result.damaged + result.undelivered, 0);
    result = run_with(FAULT_REPEAT);
    cr_assert_eq(result.repeated, 1);
    cr_assert_eq(result.lost + result.damaged, 0);
    result = run_with(FAULT_DAMAGE);
    cr_assert_eq(result.damaged, 1);
    cr_assert_eq(result.lost + result.repeated, 0);
}

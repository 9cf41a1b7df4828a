/* A real weir-broker process, spoken to over its socket; every test runs with io_uring and with
 * plain calls. */
#include <criterion/criterion.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "broker/bounds.h"
#include "tests/broker_client.h"

#define BOTH(name)                                                                                 \
    static void name(const char *io);                                                              \
    Test(broker_uring, name, .timeout = HANG_SECONDS)                                              \
    {                                                                                              \
        name("uring");                                                                             \
    }                                                                                              \
    Test(broker_plain, name, .timeout = HANG_SECONDS)                                              \
    {                                                                                              \
        name("plain");                                                                             \
    }                                                                                              \
    static void name(const char *io)

static struct test_broker broker;

static void start(const char *io)
{
    cr_assert(test_broker_start(&broker, io, NULL), "weir-broker did not start");
}

static void stop(void)
{
    int status = test_broker_stop(&broker);
    cr_assert_eq(status, 0, "exit status %x", (unsigned)status);
}

static void attach(struct client *client)
{
    cr_assert(client_attach(client, &broker));
}

static struct wire_message take(struct client *client, enum wire_type type, uint64_t id)
{
    struct wire_message message;
    cr_assert(client_take(client, &message), "no message");
    cr_assert_eq(message.type, type, "got %s", wire_type_name(message.type));
    cr_assert_eq(message.id, id, "id %llu, wanted %llu", (unsigned long long)message.id,
                 (unsigned long long)id);
    return message;
}

static void expect_text(struct wire_field field, const char *text)
{
    cr_assert(span_equal(field.span, span_text(text)), "'%.*s', wanted '%s'", (int)field.span.bytes,
              field.span.data ? field.span.data : "", text);
}

/* One set and its answer. */
static void set(struct client *client, uint64_t id, const char *value, const char *old_value)
{
    char wanted[256];
    cr_assert(client_put_stream(client, id, WIRE_OP_SET, "g", "i", span_text(value)));
    cr_assert(client_flush(client));
    struct wire_message answer = take(client, WIRE_STREAM_RESULT, id);
    snprintf(wanted, sizeof wanted, "{\"old_value\":%s,\"new_value\":%s}", old_value, value);
    cr_assert_null(answer.fields[0].span.data);
    expect_text(answer.fields[2], wanted);
}

/* Two peers: what one writes the other finds in the ring and is woken for; neither can write the
 *            segment. */
BOTH(two_peers_share_one_segment)
{
    struct client a, b;
    start(io);
    attach(&a);
    attach(&b);
    cr_assert_neq(a.slot, b.slot);
    cr_assert_eq(a.in.bytes, 0);
    ring_reader_seek_head(&b.ring);
    cr_assert(reader_sleep(&b.reader, &b.segment, b.ring.position));
    set(&a, 1, "{\"x\":1}", "null");
    struct pollfd doorbell = {.fd = b.reader.event_fd, .events = POLLIN};
    cr_assert_eq(poll(&doorbell, 1, CLIENT_WAIT_MS), 1, "the doorbell rings");
    reader_awake(&b.reader);
    struct ring_record record;
    struct buffer out;
    buffer_init(&out, 1 << 20);
    cr_assert_eq(ring_read(&b.ring, &record, &out), WEIR_OK);
    cr_assert_eq(record.seq, 1);
    cr_assert(memmem(out.data, out.bytes, "\"data\":{\"x\":1}", 14));
    set(&b, 1, "2", "{\"x\":1}");
    /* Not even through the descriptor. */
    cr_assert_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a.segment.fd, 0), MAP_FAILED);
    cr_assert_eq(pwrite(a.segment.fd, "x", 1, 0), -1);
    cr_assert_eq(fcntl(a.segment.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    buffer_fini(&out);
    client_close(&a);
    client_close(&b);
    stop();
}

/* 10,000 sets in one breath from two peers: each peer's answers come in its order, and the ring
 * holds the writes of each peer in the order of its answers, seq without gap. */
BOTH(pipelined_sets_keep_one_order)
{
    enum { SETS = 10000 };
    struct client clients[2];
    char value[64];
    start(io);
    for (unsigned peer = 0; peer < 2; peer++) {
        attach(&clients[peer]);
        ring_reader_seek_head(&clients[peer].ring);
        for (unsigned index = 1; index <= SETS; index++) {
            snprintf(value, sizeof value, "[%u,%u]", peer, index);
            cr_assert(
                client_put_stream(&clients[peer], index, WIRE_OP_SET, "g", "i", span_text(value)));
        }
    }
    unsigned answered[2] = {0, 0};
    while (answered[0] < SETS || answered[1] < SETS) {
        for (unsigned peer = 0; peer < 2; peer++) {
            for (unsigned burst = 0; burst < 500 && answered[peer] < SETS; burst++) {
                struct wire_message answer =
                    take(&clients[peer], WIRE_STREAM_RESULT, ++answered[peer]);
                snprintf(value, sizeof value, "\"new_value\":[%u,%u]}", peer, answered[peer]);
                cr_assert_null(answer.fields[0].span.data);
                cr_assert(memmem(answer.fields[2].span.data, answer.fields[2].span.bytes, value,
                                 strlen(value)));
            }
        }
    }
    struct buffer out;
    struct ring_record record;
    unsigned next[2] = {1, 1};
    uint64_t stamp = 0;
    buffer_init(&out, 1 << 20);
    for (uint64_t seq = 1; seq <= 2 * SETS; seq++) {
        unsigned peer = 0, index = 0;
        buffer_clear(&out);
        cr_assert_eq(ring_read(&clients[0].ring, &record, &out), WEIR_OK);
        cr_assert_eq(record.seq, seq);
        cr_assert_gt(record.timestamp_ms, stamp);
        stamp = record.timestamp_ms;
        cr_assert_eq(sscanf(out.data + record.data_offset, "[%u,%u]", &peer, &index), 2);
        cr_assert_eq(index, next[peer]++);
    }
    buffer_fini(&out);
    client_close(&clients[0]);
    client_close(&clients[1]);
    stop();
}

/* A set whose answer nobody waits for. */
static void put_unhurried(struct client *client, uint64_t id, const char *item)
{
    const struct wire_field fields[8] = {WIRE_NUMBER(WIRE_OP_SET),
                                         WIRE_SPAN(SPAN_LITERAL("s")),
                                         WIRE_SPAN(SPAN_LITERAL("g")),
                                         item ? WIRE_SPAN(span_text(item)) : WIRE_NIL,
                                         WIRE_NIL,
                                         WIRE_SPAN(SPAN_LITERAL("1"))};
    cr_assert_eq(wire_append_flagged(&client->out, WIRE_STREAM, WIRE_FLAG_UNHURRIED, id, fields),
                 WEIR_OK);
}

/* Until the write has been carried out: its answer is at the broker's hands then. */
static void see_event(struct client *client, uint64_t seq)
{
    struct buffer out;
    struct ring_record record;
    enum weir_status status = WEIR_EMPTY;
    buffer_init(&out, 1 << 20);
    while (status == WEIR_EMPTY) /* ends with the test's time */
        status = ring_read(&client->ring, &record, &out);
    cr_assert_eq(status, WEIR_OK);
    cr_assert_eq(record.seq, seq);
    buffer_fini(&out);
}

/* Nothing else is sent to that peer, and nobody asks anything. */
BOTH(an_unhurried_answer_comes_without_other_traffic)
{
    struct client client;
    start(io);
    attach(&client);
    for (uint64_t id = 1; id <= 3; id++) {
        put_unhurried(&client, id, "i");
        cr_assert(client_flush(&client));
        struct wire_message answer = take(&client, WIRE_STREAM_RESULT, id);
        for (unsigned field = 0; field < 4; field++)
            cr_assert_null(answer.fields[field].span.data, "neither an error nor a result");
    }
    client_close(&client);
    stop();
}

static void take_in_what_is_there(struct client *client)
{
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (poll(&ready, 1, 0) == 1)
        cr_assert(client_step(client, true));
}

enum { PIECES_SETS = 64 };

/* Sets behind the first `before` ones, each asked when the one before it was carried out, and its
 * answer sent if it is sent at once. How often there was an answer or more; the last one may still
 * be on its way. */
static unsigned count_pieces(struct client *client, bool is_unhurried, uint64_t before)
{
    unsigned pieces = 0;
    ring_reader_seek_head(&client->ring);
    for (uint64_t id = before + 1; id <= before + PIECES_SETS; id++) {
        if (is_unhurried)
            put_unhurried(client, id, "i");
        else
            cr_assert(client_put_stream(client, id, WIRE_OP_SET, "h", "i", SPAN_LITERAL("1")));
        size_t bytes = client->in.bytes;
        cr_assert(client_flush(client)); /* which takes in as well */
        see_event(client, id);
        take_in_what_is_there(client);
        pieces += client->in.bytes > bytes;
    }
    for (uint64_t id = before + 1; id <= before + PIECES_SETS; id++)
        (void)take(client, WIRE_STREAM_RESULT, id);
    return pieces;
}

/* Were they not held back, each but the last would be a piece, however often that is tried; where
 * each set takes longer than an answer is held back, one try may show no more. Were the others held
 * back, the time would gather them; a piece has two of them at most, the one before and the newest. */
BOTH(only_unhurried_answers_leave_together)
{
    enum { TRIES = 1000 };
    struct client client;
    start(io);
    attach(&client);
    unsigned tries = 0, pieces;
    do
        pieces = count_pieces(&client, true, (uint64_t)tries * PIECES_SETS);
    while (++tries < TRIES && pieces >= PIECES_SETS - 1);
    cr_assert_lt(pieces, PIECES_SETS - 1, "each answer left by itself");
    pieces = count_pieces(&client, false, 0);
    cr_assert_geq(pieces, (PIECES_SETS - 1) / 2, "%u pieces", pieces);
    client_close(&client);
    stop();
}

/* What is answered behind them takes them along, an error is told as ever, and a flood of them is
 * answered whole. */
BOTH(unhurried_answers_stay_in_order)
{
    enum { ROUNDS = 200, SETS = 25 };
    struct client client;
    uint64_t id = 0;
    start(io);
    attach(&client);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned index = 0; index < SETS; index++)
            put_unhurried(&client, ++id, index == 7 ? NULL : "i");
        if (round % 4 == 0)
            cr_assert(client_put_stream(&client, ++id, WIRE_OP_GET, "g", "i", (struct span){0}));
    }
    cr_assert(client_flush(&client));
    uint64_t answered = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned index = 0; index < SETS; index++) {
            struct wire_message answer = take(&client, WIRE_STREAM_RESULT, ++answered);
            if (index == 7)
                expect_text(answer.fields[0], "deserialization_error");
            else
                cr_assert_null(answer.fields[0].span.data);
        }
        if (round % 4 == 0)
            expect_text(take(&client, WIRE_STREAM_RESULT, ++answered).fields[2], "1");
    }
    client_close(&client);
    stop();
}

/* What was carried out is answered before the connection ends, so that nobody asks the next broker. */
BOTH(a_stopping_broker_gives_out_what_it_held_back)
{
    struct client client;
    start(io);
    attach(&client);
    ring_reader_seek_head(&client.ring);
    put_unhurried(&client, 1, "i");
    cr_assert(client_flush(&client));
    see_event(&client, 1);
    cr_assert_eq(kill(broker.pid, SIGTERM), 0);
    (void)take(&client, WIRE_STREAM_RESULT, 1);
    cr_assert(client_sees_close(&client));
    client_close(&client);
    stop();
}

static bool doorbell_rings(const struct client *client, int wait_ms)
{
    struct pollfd doorbell = {.fd = client->reader.event_fd, .events = POLLIN};
    return poll(&doorbell, 1, wait_ms) == 1;
}

/* Its answer wakes who has asked; who only waits has the doorbell, and so has who is not answered yet. */
BOTH(an_answer_is_a_doorbell)
{
    struct client asker, other;
    start(io);
    attach(&asker);
    attach(&other);
    ring_reader_seek_head(&asker.ring);
    cr_assert(reader_sleep(&asker.reader, &asker.segment, asker.ring.position));
    cr_assert(reader_sleep(&other.reader, &other.segment, asker.ring.position));
    set(&asker, 1, "1", "null");
    cr_assert(doorbell_rings(&other, CLIENT_WAIT_MS));
    cr_assert_not(doorbell_rings(&asker, 0), "it was decided before the answer left");
    see_event(&asker, 1);
    cr_assert(reader_sleep(&asker.reader, &asker.segment, asker.ring.position));
    put_unhurried(&asker, 2, "i");
    cr_assert(client_flush(&asker));
    cr_assert(doorbell_rings(&asker, CLIENT_WAIT_MS));
    see_event(&asker, 2);
    (void)take(&asker, WIRE_STREAM_RESULT, 2);
    client_close(&asker);
    client_close(&other);
    stop();
}

/* What cannot be a frame, or makes no sense, ends that peer and nobody else. */
BOTH(malformed_frames_end_their_peer_only)
{
    static const struct {
        const char *what;
        unsigned bytes;
        unsigned char frame[24];
    } cases[] = {
        {"a length beyond the limit", 16, {0xff, 0xff, 0xff, 0xff, 10}},
        {"a length below the header", 16, {4, 0, 0, 0, 10}},
        {"an unknown type", 17, {13, 0, 0, 0, 0xee, 0x0e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x90}},
        {"no array", 17, {13, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xc1}},
        {"an array longer than the frame", 21, {17, 0, 0, 0, 10, 0,    0,    0,    1,    0,   0,
                                                0,  0, 0, 0, 0,  0xdd, 0xff, 0xff, 0xff, 0xff}},
        {"an operation that does not exist",
         18,
         {14, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x91, 0x63}},
        {"a message only the broker sends",
         17,
         {13, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x90}},
    };
    struct client good;
    start(io);
    attach(&good);
    set(&good, 1, "1", "null");
    for (unsigned index = 0; index < sizeof cases / sizeof cases[0]; index++) {
        struct client bad;
        attach(&bad);
        cr_assert_eq(buffer_append(&bad.out, span_of(cases[index].frame, cases[index].bytes)),
                     WEIR_OK);
        (void)client_flush(&bad);
        cr_assert(client_sees_close(&bad), "%s was not refused", cases[index].what);
        client_close(&bad);
        set(&good, 2 + index, "1", "1");
    }
    /* Before ATTACH nothing else is accepted. */
    struct client early;
    cr_assert(client_connect(&early, &broker));
    cr_assert(client_put_stream(&early, 1, WIRE_OP_SET, "g", "i", span_text("5")));
    (void)client_flush(&early);
    cr_assert(client_sees_close(&early));
    client_close(&early);
    set(&good, 100, "2", "1");
    client_close(&good);
    stop();
}

/* A frame in single bytes, and one as large as a value may be: both arrive whole. A value beyond
 * its limit is an answer. */
BOTH(frames_of_every_size_arrive)
{
    struct client client;
    start(io);
    attach(&client);
    struct buffer whole = client.out;
    cr_assert(client_put_stream(&client, 1, WIRE_OP_SET, "g", "i", span_text("\"slow\"")));
    whole = client.out;
    buffer_init(&client.out, 256u << 20);
    for (size_t index = 0; index < whole.bytes; index++)
        cr_assert_eq(send(client.fd, whole.data + index, 1, 0), 1);
    buffer_fini(&whole);
    (void)take(&client, WIRE_STREAM_RESULT, 1);

    char *value = malloc(VALUE_BYTES_MAX + 1);
    memset(value, '7', VALUE_BYTES_MAX + 1);
    for (uint64_t id = 2; id <= 4; id++) {
        cr_assert(client_put_stream(&client, id, WIRE_OP_SET, "g", "big",
                                    span_of(value, VALUE_BYTES_MAX)));
        cr_assert(client_flush(&client));
        struct wire_message answer = take(&client, WIRE_STREAM_RESULT, id);
        cr_assert_null(answer.fields[0].span.data);
        size_t bytes = strlen("{\"old_value\":,\"new_value\":}") + VALUE_BYTES_MAX +
                       (id == 2 ? 4 : VALUE_BYTES_MAX);
        cr_assert_eq(answer.fields[2].span.bytes, bytes);
    }
    cr_assert(client_put_stream(&client, 5, WIRE_OP_SET, "g", "big",
                                span_of(value, VALUE_BYTES_MAX + 1)));
    cr_assert(client_flush(&client));
    expect_text(take(&client, WIRE_STREAM_RESULT, 5).fields[0], "STREAM_SET_ERROR");
    free(value);
    client_close(&client);
    stop();
}

static void put_session(struct client *client, uint64_t number, const char *worker_id)
{
    const struct wire_field fields[] = {WIRE_NUMBER(number), WIRE_SPAN(span_text(worker_id)),
                                        WIRE_NIL};
    cr_assert(client_put(client, WIRE_SESSION_OPEN, 0, fields));
}

static void put_function(struct client *client, uint64_t number, const char *id)
{
    const struct wire_field fields[7] = {WIRE_NUMBER(number), WIRE_NIL, WIRE_SPAN(span_text(id))};
    cr_assert(client_put(client, WIRE_FUNCTION_REGISTER, 0, fields));
}

static void put_call(struct client *client, uint64_t id, const char *function_id, struct span data)
{
    const struct wire_field fields[7] = {WIRE_NUMBER(1), WIRE_NIL,
                                         WIRE_SPAN(span_text(function_id)), WIRE_SPAN(data)};
    cr_assert(client_put(client, WIRE_CALL, id, fields));
}

/* Everything put before has been handled by the broker. */
static void sync_with_broker(struct client *client)
{
    put_call(client, 9999, "engine::workers::register", SPAN_LITERAL("{}"));
    cr_assert(client_flush(client));
    (void)take(client, WIRE_RESULT, 9999);
}

/* A worker on one peer is called from another; its end answers what it owed. */
BOTH(calls_are_routed_between_peers)
{
    struct client a, b;
    start(io);
    attach(&a);
    attach(&b);
    put_session(&b, 1, "worker-b");
    put_function(&b, 1, "f");
    sync_with_broker(&b);
    put_call(&a, 7, "f", SPAN_LITERAL("{\"x\":1}"));
    cr_assert(client_flush(&a));
    struct wire_message invoke;
    cr_assert(client_take(&b, &invoke));
    cr_assert_eq(invoke.type, WIRE_INVOKE);
    cr_assert_eq(invoke.fields[0].number, 1);
    expect_text(invoke.fields[1], "f");
    expect_text(invoke.fields[2], "{\"x\":1}");
    const struct wire_field fields[4] = {WIRE_SPAN(SPAN_LITERAL("\"done\""))};
    cr_assert(client_put(&a, WIRE_RESULT, invoke.id, fields)); /* not the one who was asked */
    cr_assert(client_put(&b, WIRE_RESULT, invoke.id, fields));
    cr_assert(client_flush(&a) && client_flush(&b));
    expect_text(take(&a, WIRE_RESULT, 7).fields[0], "\"done\"");

    put_session(&a, 1, "worker-a");
    put_function(&a, 1, "f");
    cr_assert(client_flush(&a));
    struct wire_message refused = take(&a, WIRE_FUNCTION_REJECTED, 0);
    expect_text(refused.fields[1], "FUNCTION_NAMESPACE_CONFLICT");
    expect_text(refused.fields[4], "worker-b");

    put_call(&a, 8, "f", SPAN_LITERAL("null"));
    cr_assert(client_flush(&a));
    cr_assert(client_take(&b, &invoke));
    client_close(&b);
    struct span error = take(&a, WIRE_RESULT, 8).fields[1].span;
    cr_assert(memmem(error.data, error.bytes, "invocation_stopped", 18));
    put_call(&a, 9, "f", SPAN_LITERAL("null")); /* who was refused has taken over */
    cr_assert(client_flush(&a));
    cr_assert(client_take(&a, &invoke));
    cr_assert_eq(invoke.type, WIRE_INVOKE);
    cr_assert_eq(invoke.fields[0].number, 1);
    put_call(&a, 11, "nobody has this", SPAN_LITERAL("null"));
    cr_assert(client_flush(&a));
    error = take(&a, WIRE_RESULT, 11).fields[1].span;
    cr_assert(memmem(error.data, error.bytes, "function_not_found", 18));
    client_close(&a);
    stop();
}

static void put_trigger(struct client *client, uint64_t number, const char *id, const char *type)
{
    const struct wire_field fields[8] = {WIRE_NUMBER(number), WIRE_SPAN(span_text(id)),
                                         WIRE_SPAN(span_text(type)), WIRE_SPAN(SPAN_LITERAL("f")),
                                         WIRE_SPAN(SPAN_LITERAL("{}"))};
    cr_assert(client_put(client, WIRE_TRIGGER_REGISTER, 0, fields));
}

/* A trigger's owner and its provider on two peers; a gate is told to who is there and to who comes;
 * a peer's death is the end of what its sessions registered. */
BOTH(registry_are_bound_between_peers)
{
    struct client a, b, c;
    const struct wire_field type[6] = {WIRE_NUMBER(2), WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("cron"))};
    start(io);
    attach(&a);
    attach(&b);
    put_session(&a, 1, "owner");
    put_trigger(&a, 1, "t", "cron");
    sync_with_broker(&a);
    put_session(&b, 2, "provider");
    cr_assert(client_put(&b, WIRE_TRIGGER_TYPE_REGISTER, 0, type));
    cr_assert(client_flush(&b));
    struct wire_message told = take(&b, WIRE_TRIGGER_BIND, 0);
    cr_assert_eq(told.fields[0].number, 2);
    expect_text(told.fields[1], "t");
    expect_text(told.fields[2], "cron");
    const struct wire_field refusal[5] = {
        WIRE_NUMBER(2), WIRE_SPAN(SPAN_LITERAL("t")), WIRE_SPAN(SPAN_LITERAL("cron")),
        WIRE_SPAN(SPAN_LITERAL("f")), WIRE_SPAN(SPAN_LITERAL("{}"))};
    cr_assert(client_put(&b, WIRE_TRIGGER_RESULT, 0, refusal));
    cr_assert(client_flush(&b));
    told = take(&a, WIRE_TRIGGER_RESULT, 0);
    cr_assert_eq(told.fields[0].number, 1);
    expect_text(told.fields[1], "t");

    put_trigger(&a, 1, "gate", "stream:join");
    cr_assert(client_flush(&a));
    uint64_t handle = take(&a, WIRE_GATE_BIND, 0).fields[0].number;
    cr_assert_eq(take(&b, WIRE_GATE_BIND, 0).fields[0].number, handle);
    attach(&c);
    cr_assert_eq(take(&c, WIRE_GATE_BIND, 0).fields[0].number, handle);
    put_trigger(&a, 1, "t2", "cron");
    cr_assert(client_flush(&a));
    (void)take(&b, WIRE_TRIGGER_BIND, 0);
    client_close(&a);
    cr_assert(client_take(&b, &told));
    cr_assert(told.type == WIRE_TRIGGER_UNBIND || told.type == WIRE_GATE_UNBIND);
    cr_assert(client_take(&b, &told));
    cr_assert(told.type == WIRE_TRIGGER_UNBIND || told.type == WIRE_GATE_UNBIND);
    told = take(&c, WIRE_GATE_UNBIND, 0);
    cr_assert_eq(told.fields[0].number, handle);
    cr_assert_eq(told.fields[1].number, 1, "its worker has gone");
    client_close(&b);
    client_close(&c);
    stop();
}

/* With unique_worker_names a second worker of a name is told to go; without, it is not. */
BOTH(worker_names_can_be_made_unique)
{
    static const char *const settings[] = {"unique_worker_names=false", "unique_worker_names=true"};
    for (unsigned round = 0; round < 2; round++) {
        struct client client;
        const struct wire_field first[] = {WIRE_NUMBER(1),
                                           WIRE_SPAN(SPAN_LITERAL("{\"name\":\"shop\"}"))};
        const struct wire_field second[] = {WIRE_NUMBER(2), first[1]};
        cr_assert(test_broker_start(&broker, io, settings[round]));
        attach(&client);
        put_session(&client, 1, "worker-1");
        put_session(&client, 2, "worker-2");
        cr_assert(client_put(&client, WIRE_SESSION_INFO, 0, first));
        cr_assert(client_put(&client, WIRE_SESSION_INFO, 0, second));
        if (round == 1) {
            cr_assert(client_flush(&client));
            struct wire_message told = take(&client, WIRE_SESSION_REJECTED, 0);
            cr_assert_eq(told.fields[0].number, 2);
            expect_text(told.fields[1], "WORKER_NAMESPACE_CONFLICT");
            expect_text(told.fields[4], "worker-1");
        }
        sync_with_broker(&client);
        client_close(&client);
        stop();
    }
}

/* Peers that die in the middle of a frame, more of them than there are slots: whole frames count,
 * halves do not, slots return. */
BOTH(killed_peers_leave_nothing_behind)
{
    struct client good;
    start(io);
    attach(&good);
    for (unsigned round = 0; round < READERS_MAX + 6; round++) {
        int told[2];
        cr_assert_eq(pipe(told), 0);
        pid_t child = fork();
        if (child == 0) {
            struct client client;
            bool ok = client_attach(&client, &broker) &&
                      client_put_stream(&client, 1, WIRE_OP_SET, "victims", "i", span_text("1")) &&
                      client_put_stream(&client, 2, WIRE_OP_SET, "victims", "half", span_text("1"));
            client.out.bytes -= 3;
            ok = ok && client_flush(&client);
            struct wire_message answer;
            ok = ok && client_take(&client, &answer);
            (void)!write(told[1], ok ? "y" : "n", 1);
            for (;;)
                pause();
        }
        char word = 'n';
        close(told[1]);
        cr_assert_eq(read(told[0], &word, 1), 1);
        close(told[0]);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        cr_assert_eq(word, 'y', "round %u", round);
        set(&good, round + 1, "1", round == 0 ? "null" : "1");
    }
    cr_assert(client_put_stream(&good, 500, WIRE_OP_GET, "victims", "half", (struct span){0}));
    cr_assert(client_flush(&good));
    cr_assert_null(take(&good, WIRE_STREAM_RESULT, 500).fields[2].span.data,
                   "half a frame is not a write");
    client_close(&good);
    stop();
}

/* One peer asks for far more than it reads, then stops for good: the other is served on, and calls
 * to the stopped one are answered with an error once it lags too far. */
BOTH(a_stopped_peer_stalls_nobody)
{
    enum { GETS = 20000 };
    static char value[16 * 1024];
    struct client good;
    int told[2];
    start(io);
    attach(&good);
    memset(value, '3', sizeof value);
    cr_assert(client_put_stream(&good, 1, WIRE_OP_SET, "g", "large", span_of(value, sizeof value)));
    cr_assert(client_flush(&good));
    (void)take(&good, WIRE_STREAM_RESULT, 1);
    cr_assert_eq(pipe(told), 0);
    pid_t child = fork();
    if (child == 0) {
        struct client client;
        bool ok = client_attach(&client, &broker);
        const struct wire_field session[] = {WIRE_NUMBER(1), WIRE_SPAN(SPAN_LITERAL("stuck")),
                                             WIRE_NIL};
        const struct wire_field function[7] = {WIRE_NUMBER(1), WIRE_NIL,
                                               WIRE_SPAN(SPAN_LITERAL("stuck"))};
        ok = ok && client_put(&client, WIRE_SESSION_OPEN, 0, session) &&
             client_put(&client, WIRE_FUNCTION_REGISTER, 0, function);
        for (unsigned index = 1; ok && index <= GETS; index++)
            ok = client_put_stream(&client, index, WIRE_OP_GET, "g", "large", (struct span){0});
        /* Written without reading: until the broker takes no more. */
        struct pollfd ready = {.fd = client.fd, .events = POLLOUT};
        while (ok && client.out.bytes > 0 && poll(&ready, 1, 300) == 1) {
            ssize_t sent =
                send(client.fd, client.out.data, client.out.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent > 0)
                buffer_consume(&client.out, (size_t)sent);
        }
        (void)!write(told[1], ok ? "y" : "n", 1);
        for (;;)
            pause();
    }
    char word = 'n';
    close(told[1]);
    cr_assert_eq(read(told[0], &word, 1), 1);
    close(told[0]);
    cr_assert_eq(word, 'y');
    kill(child, SIGSTOP);
    for (uint64_t id = 2; id < 1000; id++)
        set(&good, id, "1", id == 2 ? "null" : "1");
    /* Calls to the stopped worker: taken until the soft bound, then refused with an error; never
     * unbounded, never silent. */
    char *data = malloc(2 * 1024 * 1024);
    memset(data, '1', 2 * 1024 * 1024);
    for (uint64_t id = 1000; id < 1020; id++)
        put_call(&good, id, "stuck", span_of(data, 2 * 1024 * 1024));
    free(data);
    cr_assert(client_flush(&good));
    struct wire_message answer;
    cr_assert(client_take(&good, &answer));
    cr_assert_eq(answer.type, WIRE_RESULT);
    cr_assert(
        memmem(answer.fields[1].span.data, answer.fields[1].span.bytes, "channel_send_failed", 19));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    client_close(&good);
    stop();
}

BOTH(another_version_is_refused_with_a_sentence)
{
    struct client client;
    start(io);
    cr_assert(client_connect(&client, &broker));
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION + 1),
                                        WIRE_NUMBER(1),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0),
                                        WIRE_NUMBER(0)};
    cr_assert(client_put(&client, WIRE_ATTACH, 0, fields));
    cr_assert(client_flush(&client));
    struct wire_message refused = take(&client, WIRE_REFUSED, 0);
    expect_text(refused.fields[0], "VERSION_MISMATCH");
    cr_assert(client_sees_close(&client));
    client_close(&client);
    stop();
}

/* All slots taken: one more is told, and gets in when one leaves. */
BOTH(readers_are_bounded)
{
    static struct client clients[READERS_MAX];
    struct client more;
    start(io);
    for (unsigned index = 0; index < READERS_MAX; index++)
        attach(&clients[index]);
    cr_assert_not(client_attach(&more, &broker));
    client_close(&more);
    client_close(&clients[5]);
    bool attached = false;
    for (unsigned tries = 0; tries < 200 && !attached;
         tries++) { /* the close may be seen a turn later */
        attached = client_attach(&more, &broker);
        if (!attached) {
            client_close(&more);
            usleep(10000);
        }
    }
    cr_assert(attached);
    set(&more, 1, "1", "null");
    client_close(&more);
    for (unsigned index = 0; index < READERS_MAX; index++)
        if (index != 5)
            client_close(&clients[index]);
    stop();
}

/* The second broker says so and goes; the first one serves on. A killed one's socket is no
 * obstacle. */
BOTH(one_broker_per_run_directory)
{
    struct test_broker second;
    struct client client;
    int status = 0;
    start(io);
    second = broker;
    cr_assert_not(test_broker_start_in(&second, io, NULL));
    waitpid(second.pid, &status, 0);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    attach(&client);
    set(&client, 1, "1", "null");
    uint64_t generation = segment_generation(&client.segment);
    kill(broker.pid, SIGKILL);
    waitpid(broker.pid, NULL, 0);
    cr_assert(client_sees_close(&client));
    cr_assert(test_broker_start_in(&broker, io, NULL),
              "the old socket and lock file are no obstacle");
    struct client again;
    attach(&again);
    cr_assert_gt(segment_generation(&again.segment), generation);
    set(&again, 1, "1", "null");
    client_close(&client);
    client_close(&again);
    stop();
}

/* Stamps go on above what the earlier broker has given, as the gateway tells it. */
BOTH(a_gateway_raises_the_timestamp_floor)
{
    struct client client;
    int fds[3];
    const uint64_t floor_ms = 4000000000000; /* 2096 */
    start(io);
    cr_assert(client_connect(&client, &broker));
    const struct wire_field fields[] = {WIRE_NUMBER(WIRE_VERSION), WIRE_NUMBER(1), WIRE_NUMBER(0),
                                        WIRE_NUMBER(floor_ms),     WIRE_NUMBER(0), WIRE_NUMBER(0)};
    cr_assert(client_put(&client, WIRE_ATTACH, 0, fields) && client_flush(&client));
    cr_assert(client_receive_attached(&client, fds));
    struct ring_record record;
    struct buffer out;
    buffer_init(&out, 1 << 20);
    cr_assert_eq(segment_attach(&client.segment, fds[0], NULL), WEIR_OK);
    cr_assert_eq(ring_reader_attach(&client.ring, &client.segment), WEIR_OK);
    set(&client, 1, "1", "null");
    enum weir_status status = ring_read(&client.ring, &record, &out);
    cr_assert_eq(status, WEIR_OK);
    cr_assert_geq(record.timestamp_ms, floor_ms);
    buffer_fini(&out);
    segment_close(&client.segment);
    close(fds[1]);
    close(fds[2]);
    client_close(&client);
    stop();
}

/* Messages with fields of every kind of nonsense, and frames with random bytes changed: connections
 * may end, the broker lives and keeps answering. */
BOTH(random_messages_do_not_end_the_broker)
{
    static char long_name[5000];
    static const char *const texts[] = {"",
                                        "g",
                                        "i",
                                        "stream::set",
                                        "stream::list",
                                        "engine::functions::list",
                                        "\xff\xfe",
                                        "{",
                                        "{}",
                                        "null",
                                        "[1,2]",
                                        "{\"name\":\"\\ud800\"}",
                                        "f",
                                        "\x01:/",
                                        "engine::workers::register",
                                        "engine::workers::list",
                                        "engine::triggers::list",
                                        "engine::registered-triggers::list",
                                        "engine::workers-available",
                                        "stream"};
    static const enum wire_type types[] = {WIRE_STREAM,
                                           WIRE_STREAM,
                                           WIRE_SESSION_OPEN,
                                           WIRE_SESSION_INFO,
                                           WIRE_SESSION_CLOSED,
                                           WIRE_FUNCTION_REGISTER,
                                           WIRE_FUNCTION_UNREGISTER,
                                           WIRE_CALL,
                                           WIRE_RESULT,
                                           WIRE_TRIGGER_TYPE_REGISTER,
                                           WIRE_TRIGGER_TYPE_UNREGISTER,
                                           WIRE_TRIGGER_REGISTER,
                                           WIRE_TRIGGER_UNREGISTER,
                                           WIRE_TRIGGER_RESULT};
    enum { TEXTS = sizeof texts / sizeof texts[0], TYPES = sizeof types / sizeof types[0] };
    const char *seed_text = getenv("WEIR_SEED");
    unsigned seed = seed_text ? (unsigned)strtoul(seed_text, NULL, 10) : 20240612;
    struct client good;
    memset(long_name, 'n', sizeof long_name - 1);
    fprintf(stderr, "seed %u\n", seed);
    srand(seed);
    start(io);
    attach(&good);
    for (unsigned round = 0; round < 300; round++) {
        struct client bad;
        attach(&bad);
        for (unsigned index = 0; index < 100; index++) {
            struct wire_field fields[WIRE_FIELDS_KNOWN_MAX] = {0};
            fields[0].number = (uint64_t)(rand() % 9);
            for (unsigned field = 1; field < WIRE_FIELDS_KNOWN_MAX; field++) {
                int choice = rand() % (TEXTS + 2);
                fields[field].span = choice < TEXTS    ? span_text(texts[choice])
                                     : choice == TEXTS ? span_text(long_name)
                                                       : (struct span){0};
            }
            enum wire_type type = types[rand() % TYPES];
            if (type == WIRE_RESULT)
                fields[0].span = span_text(texts[rand() % TEXTS]);
            size_t before = bad.out.bytes;
            cr_assert(client_put(&bad, type, (uint64_t)(rand() % 5), fields));
            if (rand() % 200 == 0)
                bad.out.data[before + (size_t)rand() % (bad.out.bytes - before)] ^=
                    (char)(1 << rand() % 8);
        }
        (void)client_flush(&bad);
        client_close(&bad);
        set(&good, round + 1, "1", round == 0 ? "null" : "1");
    }
    client_close(&good);
    stop();
}

/* Where the kernel refuses io_uring, `auto` serves with plain calls and `uring` says why it does
 * not start. */
Test(broker, a_refused_io_uring_is_done_without, .timeout = HANG_SECONDS)
{
    struct client client;
    int status = 0;
    test_broker_refuse_uring = true;
    start("auto");
    attach(&client);
    set(&client, 1, "1", "null");
    client_close(&client);
    stop();
    snprintf(broker.run_dir, sizeof broker.run_dir, "/tmp/weir-broker-test-XXXXXX");
    cr_assert_not_null(mkdtemp(broker.run_dir));
    cr_assert_not(test_broker_start_in(&broker, "uring", NULL));
    cr_assert_eq(waitpid(broker.pid, &status, 0), broker.pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    char path[128];
    snprintf(path, sizeof path, "%s/run/broker.lock", broker.run_dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/run", broker.run_dir);
    cr_assert_eq(rmdir(path), 0, "no socket is left behind");
    rmdir(broker.run_dir);
}

/* A directory others can write to is no place for the socket. */
Test(broker, an_open_run_directory_is_refused, .timeout = HANG_SECONDS)
{
    char path[128];
    int status = 0;
    snprintf(broker.run_dir, sizeof broker.run_dir, "/tmp/weir-broker-test-XXXXXX");
    cr_assert_not_null(mkdtemp(broker.run_dir));
    snprintf(path, sizeof path, "%s/run", broker.run_dir);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_assert_eq(chmod(path, 0777), 0);
    cr_assert_not(test_broker_start_in(&broker, "plain", NULL));
    waitpid(broker.pid, &status, 0);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    rmdir(path);
    rmdir(broker.run_dir);
}

static void expect_custom(struct client *client)
{
    struct wire_message told = take(client, WIRE_STREAM_CUSTOM, 0);
    cr_assert_eq(told.fields[0].number, 1);
    expect_text(told.fields[1], "s");
}

/* A stream whose functions a worker registers: every peer is told, later ones too; its writes and
 * reads become calls; when the worker goes, what is open ends and what comes fails. */
BOTH(a_workers_own_stream_is_told_and_served)
{
    struct client worker, caller, later;
    start(io);
    attach(&worker);
    attach(&caller);
    put_session(&worker, 1, "worker");
    put_function(&worker, 1, "stream::get(s)");
    put_function(&worker, 1, "stream::set(s)");
    cr_assert(client_flush(&worker));
    expect_custom(&worker);
    expect_custom(&caller);
    attach(&later);
    expect_custom(&later);

    cr_assert(client_put_stream(&caller, 1, WIRE_OP_SET, "g", "i", span_text("5")));
    cr_assert(client_put_stream(&caller, 2, WIRE_OP_SET, "g", "i", span_text("6")));
    cr_assert(client_flush(&caller));
    struct wire_message invoke;
    cr_assert(client_take(&worker, &invoke));
    cr_assert_eq(invoke.type, WIRE_INVOKE);
    expect_text(invoke.fields[1], "stream::set(s)");
    expect_text(invoke.fields[2],
                "{\"stream_name\":\"s\",\"group_id\":\"g\",\"item_id\":\"i\",\"data\":5}");
    const struct wire_field result[4] = {WIRE_SPAN(SPAN_LITERAL("{\"new_value\":5}"))};
    cr_assert(client_put(&worker, WIRE_RESULT, invoke.id, result));
    cr_assert(client_flush(&worker));
    struct wire_message answer = take(&caller, WIRE_STREAM_RESULT, 1);
    expect_text(answer.fields[2], "{\"old_value\":null,\"new_value\":5}");

    cr_assert(client_take(&worker, &invoke)); /* of the second, which is never answered */
    client_close(&worker);
    answer = take(&caller, WIRE_STREAM_RESULT, 2);
    expect_text(answer.fields[0], "STREAM_SET_ERROR");
    cr_assert(client_put_stream(&caller, 3, WIRE_OP_GET, "g", "i", (struct span){0}));
    cr_assert(client_flush(&caller));
    answer = take(&caller, WIRE_STREAM_RESULT, 3);
    expect_text(answer.fields[0], "STREAM_GET_ERROR");

    /* Another worker; the broker stops while calls to it are open. */
    put_session(&later, 1, "later");
    put_function(&later, 1, "stream::get(s)");
    put_function(&later, 1, "stream::set(s)");
    cr_assert(client_flush(&later));
    expect_custom(&later); /* it can be read again */
    expect_custom(&caller);
    for (uint64_t id = 4; id < 8; id++)
        cr_assert(client_put_stream(&caller, id, WIRE_OP_SET, "g", "i", span_text("7")));
    cr_assert(client_put_stream(&caller, 8, WIRE_OP_GET, "h", "i", (struct span){0}));
    cr_assert(client_flush(&caller));
    cr_assert(client_take(&later, &invoke));
    cr_assert_eq(invoke.type, WIRE_INVOKE);
    stop();
    client_close(&caller);
    client_close(&later);
}

/* Not a check: what one pipelined set costs the broker. Ends with all answered. */
BOTH(cost_of_a_pipelined_set)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    enum { SETS = 10000, WINDOW = 1000 }; /* what it costs is not seen here */
#else
    enum { SETS = 100000, WINDOW = 1000 };
#endif
    struct client client;
    char item[32];
    static char value[129];
    start(io);
    attach(&client);
    memset(value, '5', sizeof value - 1);
    unsigned sent = 0, answered = 0;
    while (answered < SETS) {
        while (sent < SETS && sent - answered < WINDOW) {
            snprintf(item, sizeof item, "item-%u", sent % 1000);
            cr_assert(
                client_put_stream(&client, ++sent, WIRE_OP_SET, "g", item, span_of(value, 128)));
        }
        for (unsigned burst = 0; burst < WINDOW / 2 && answered < sent; burst++)
            (void)take(&client, WIRE_STREAM_RESULT, ++answered);
    }
    client_close(&client);
    stop();
    double us = (double)(broker.usage.ru_utime.tv_sec + broker.usage.ru_stime.tv_sec) * 1e6 +
                (double)(broker.usage.ru_utime.tv_usec + broker.usage.ru_stime.tv_usec);
    fprintf(stderr,
            "broker io=%s sets=%d value_bytes=128 window=%d cpu_us_per_set=%.2f user_share=%.2f\n",
            io, SETS, WINDOW, us / SETS,
            ((double)broker.usage.ru_utime.tv_sec * 1e6 + (double)broker.usage.ru_utime.tv_usec) /
                us);
}

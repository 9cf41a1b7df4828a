/* Fuzz target of the JSON worker channel with sessions, triggers and calls: the input is what a worker
 * sends, a message a line. A line's first byte may say what else it is:
 *
 *   !...      the message comes as binary
 *   @name     the broker asks for a call of the function `name`
 *   #n        the broker answers the n-th question with a result, ##n with an error
 *   ~n        the broker sends a trigger message of kind n
 *   $         the broker restarts: all is announced again
 *
 * <id> in a message stands for the id of the last call the worker was asked for, which cannot be
 * guessed. Whatever comes, the worker is sent JSON objects and the broker sound frames (the harness
 * looks), and nothing is left when the worker has gone. */
#include "tests/worker_harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

struct round {
    struct harness harness;
    struct ws_connection connection;
    struct worker *worker;
    uint64_t session;
    char invoked[UUID_TEXT_BYTES + 1];
};

static void round_note_invocation(struct round *round)
{
    static const char mark[] = "\"invocation_id\":\"";
    struct ws_connection *connection = &round->connection;
    if (connection->text_count == 0)
        return;
    const char *text = connection->texts[connection->text_count - 1];
    const char *at = strstr(text, mark);
    if (strncmp(text, "{\"type\":\"invokefunction\"", 24) == 0 && at != NULL)
        memcpy(round->invoked, at + sizeof mark - 1, UUID_TEXT_BYTES);
}

static void round_tell(struct round *round, enum wire_type type, uint64_t id,
                       const struct wire_field *fields, unsigned field_count)
{
    struct wire_message message = {.type = type, .id = id};
    message.fields[0] = WIRE_NUMBER(round->session);
    for (unsigned i = 0; i < field_count; i++)
        message.fields[i + 1] = fields[i];
    sessions_take_message(&round->harness.sessions, &message);
}

static unsigned digit_of(struct span line, size_t at)
{
    return at < line.bytes ? (unsigned char)line.data[at] % 16u : 0;
}

static void round_take_answer(struct round *round, struct span line)
{
    bool is_error = line.bytes > 1 && line.data[1] == '#';
    uint64_t id = 1 + digit_of(line, is_error ? 2 : 1);
    const struct wire_field result[4] = {
        is_error ? WIRE_NIL : WIRE_SPAN(SPAN_LITERAL("[1]")),
        is_error ? WIRE_SPAN(SPAN_LITERAL("{\"code\":\"c\",\"message\":\"m\"}")) : WIRE_NIL,
        WIRE_NIL, WIRE_NIL};
    if (id <= round->harness.link.asked_count)
        link_answer(&round->harness.link, id, WIRE_RESULT, result);
}

static void round_take_trigger(struct round *round, struct span line)
{
    static const enum wire_type types[] = {WIRE_TRIGGER_BIND, WIRE_TRIGGER_UNBIND,
                                           WIRE_TRIGGER_RESULT, WIRE_FUNCTION_REJECTED};
    const struct wire_field fields[] = {WIRE_SPAN(SPAN_LITERAL("t")), WIRE_SPAN(SPAN_LITERAL("x")),
                                        WIRE_SPAN(SPAN_LITERAL("f")),
                                        WIRE_SPAN(SPAN_LITERAL("{}"))};
    round_tell(round, types[digit_of(line, 1) % 4], 0, fields, 4);
}

static void round_take_message(struct round *round, struct span line, bool is_binary)
{
    static const char mark[] = "<id>";
    char *text = malloc(line.bytes + UUID_TEXT_BYTES + 1);
    harness_require(text != NULL, "no memory");
    const char *at = line.bytes == 0 ? NULL : memmem(line.data, line.bytes, mark, 4);
    size_t before = at == NULL ? line.bytes : (size_t)(at - line.data), bytes = before;
    if (before > 0)
        memcpy(text, line.data, before);
    if (at != NULL) {
        memcpy(text + before, round->invoked, UUID_TEXT_BYTES);
        memcpy(text + before + UUID_TEXT_BYTES, at + 4, line.bytes - before - 4);
        bytes = line.bytes - 4 + UUID_TEXT_BYTES;
    }
    /* A block of exactly its size, so that AddressSanitizer sees a read beyond it. */
    char *message = malloc(bytes == 0 ? 1 : bytes);
    harness_require(message != NULL, "no memory");
    memcpy(message, text, bytes);
    free(text);
    worker_message(round->worker, span_of(message, bytes), is_binary);
    free(message);
}

static void round_take(struct round *round, struct span line)
{
    char kind = line.bytes == 0 ? ' ' : line.data[0];
    struct wire_field asked[3] = {WIRE_NIL, WIRE_SPAN(SPAN_LITERAL("{}")), WIRE_NIL};
    switch (kind) {
    case '!':
        round_take_message(round, span_of(line.data + 1, line.bytes - 1), true);
        break;
    case '@':
        asked[0] = WIRE_SPAN(span_of(line.data + 1, line.bytes - 1));
        if (json_is_utf8(asked[0].span))
            round_tell(round, WIRE_INVOKE, 7, asked, 3);
        round_note_invocation(round);
        break;
    case '#':
        round_take_answer(round, line);
        break;
    case '~':
        round_take_trigger(round, line);
        break;
    case '$':
        sessions_announce(&round->harness.sessions);
        break;
    default:
        round_take_message(round, line, false);
        break;
    }
    worker_channel_turn(round->harness.channel);
    struct wire_message message;
    while (link_next(&round->harness.link, &message)) { /* each turn takes a frame */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct round round;
    memset(round.invoked, '0', UUID_TEXT_BYTES);
    harness_init(&round.harness);
    round.worker = harness_connect(&round.harness, &round.connection);
    round.session = round.harness.sessions.slots[0].session->id;
    size_t start = 0;
    while (start < bytes) { /* each turn takes a line */
        const uint8_t *end = memchr(data + start, '\n', bytes - start);
        size_t length = end == NULL ? bytes - start : (size_t)(end - (data + start));
        round_take(&round, span_of(data + start, length));
        start += length + 1;
    }
    harness_disconnect(round.worker, &round.connection);
    harness_require(round.harness.triggers.running == 0, "a trigger runs without its session");
    harness_require(round.harness.counters.values[COUNTER_WORKER_CONNECTIONS] == 0,
                    "a session is left");
    harness_fini(&round.harness);
    return 0;
}

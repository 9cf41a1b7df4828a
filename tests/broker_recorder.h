/* tests/broker_recorder.h -- a struct broker_output that keeps what engine or routes send, for
 * tests without sockets. */
#ifndef WEIR_TESTS_BROKER_RECORDER_H
#define WEIR_TESTS_BROKER_RECORDER_H

#include <stdlib.h>

#include "broker/output.h"

enum { RECORDER_MESSAGES_MAX = 20000 };

struct recorded {
    struct peer_handle peer;
    enum wire_type type;
    uint64_t id;
    bool is_unhurried;
    struct wire_field fields[WIRE_FIELDS_KNOWN_MAX]; /* spans are copies, NUL behind them */
};

struct recorder {
    struct recorded messages[RECORDER_MESSAGES_MAX];
    unsigned count;
    bool busy;               /* what is_busy() says */
    enum weir_status refuse; /* not OK: what send() says for `refuse_type` */
    enum wire_type refuse_type;
    bool hides_cancels; /* CALL_CANCEL is not kept: a test about something else counts messages */
};

static const char *recorder_fields(enum wire_type type)
{
    switch (type) {
#define RECORDER_FIELDS(name, number, fields)                                                      \
    case WIRE_##name:                                                                              \
        return fields;
        WIRE_TYPE_MAP(RECORDER_FIELDS)
#undef RECORDER_FIELDS
    }
    return "";
}

static enum weir_status recorder_send(void *context, struct peer_handle peer, enum wire_type type,
                                      uint64_t id, const struct wire_field *fields)
{
    struct recorder *recorder = context;
    if (recorder->refuse != WEIR_OK && recorder->refuse_type == type)
        return recorder->refuse;
    if (recorder->hides_cancels && type == WIRE_CALL_CANCEL)
        return WEIR_OK;
    if (recorder->count == RECORDER_MESSAGES_MAX)
        abort();
    struct recorded *message = &recorder->messages[recorder->count++];
    *message = (struct recorded){.peer = peer, .type = type, .id = id};
    const char *kinds = recorder_fields(type);
    for (unsigned index = 0; kinds[index]; index++) {
        message->fields[index].number = fields[index].number;
        if (!fields[index].span.data)
            continue;
        char *copy = malloc(fields[index].span.bytes + 1);
        memcpy(copy, fields[index].span.data, fields[index].span.bytes);
        copy[fields[index].span.bytes] = 0;
        message->fields[index].span = span_of(copy, fields[index].span.bytes);
    }
    return WEIR_OK;
}

static enum weir_status recorder_send_unhurried(void *context, struct peer_handle peer,
                                                enum wire_type type, uint64_t id,
                                                const struct wire_field *fields)
{
    struct recorder *recorder = context;
    unsigned before = recorder->count;
    enum weir_status status = recorder_send(context, peer, type, id, fields);
    if (recorder->count > before)
        recorder->messages[before].is_unhurried = true;
    return status;
}

static bool recorder_is_busy(void *context, struct peer_handle peer)
{
    (void)peer;
    return ((struct recorder *)context)->busy;
}

static struct broker_output recorder_output(struct recorder *recorder)
{
    return (struct broker_output){.send = recorder_send,
                                  .send_unhurried = recorder_send_unhurried,
                                  .is_busy = recorder_is_busy,
                                  .context = recorder};
}

static void recorder_clear(struct recorder *recorder)
{
    for (unsigned index = 0; index < recorder->count; index++)
        for (unsigned field = 0; field < WIRE_FIELDS_KNOWN_MAX; field++)
            free((void *)(uintptr_t)recorder->messages[index].fields[field].span.data);
    recorder->count = 0;
}

/* The text of a field, "(nil)" when it is nil. */
static const char *recorded_text(const struct recorded *message, unsigned field)
{
    return message->fields[field].span.data ? message->fields[field].span.data : "(nil)";
}

#endif

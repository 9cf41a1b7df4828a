/* bench/json_bench.c -- what does validating one protocol message cost, by its size?
 *
 * Method:   json_scan_object() with the members the worker channel asks for, over messages of
 *           stream::set as iii-sdk sends them, padded through the item's data; batches of messages,
 *           each batch timed on its own, after a warm-up. The message stays in the cache, as it is
 *           when it has just been read from a socket.
 * Unit:     ns per message (mean, and p50, p99, max of the batches' means); MB/s of text.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench/load.h"
#include "shm/json.h"
#include "shm/limits.h"

enum { BATCH_BYTES = 1 << 20, BATCH_MESSAGES_MAX = 2000 };

static const char *const names[] = {"type",     "id",          "function_id", "invocation_id",
                                    "data",     "traceparent", "baggage",     "action",
                                    "metadata", "namespace"};
enum { NAME_COUNT = sizeof names / sizeof names[0] };

/* A message of exactly `bytes` bytes: a small one is a void call, a larger one a set with members
 * of mixed kinds. */
static void make_message(struct buffer *message, size_t bytes)
{
    buffer_clear(message);
    if (bytes < 300) {
        load_append(
            message,
            "{\"type\":\"invokefunction\",\"function_id\":\"demo::tick\",\"data\":{\"at\":");
        load_append(message, "1731000000123,\"t\":\"");
    } else {
        load_append(message,
                    "{\"type\":\"invokefunction\",\"invocation_id\":\"0f8b1a6e-3b7e-4a55-9d0c-");
        load_append(
            message,
            "2f0a7b1c9e11\",\"function_id\":\"stream::set\",\"data\":{\"stream_name\":\"chat\",");
        load_append(
            message,
            "\"group_id\":\"room-1\",\"item_id\":\"msg-9\",\"data\":{\"id\":\"msg-9\",\"n\":[");
        while (message->bytes + 200 < bytes)
            load_append(message,
                        "{\"x\":12.75,\"label\":\"cpu user\",\"ok\":true,\"parent\":null},");
        load_append(message, "1,-2.5],\"text\":\"");
    }
    while (message->bytes + (bytes < 300 ? 3 : 4) < bytes)
        load_append(message, "x");
    load_append(message, bytes < 300 ? "\"}}" : "\"}}}");
    if (message->bytes != bytes)
        abort();
}

static void scan(void *context, size_t messages)
{
    const struct buffer *message = context;
    for (size_t index = 0; index < messages; index++) {
        struct json_value values[NAME_COUNT];
        if (json_scan_object(buffer_span(message), JSON_DEPTH_MAX, names, NAME_COUNT, values,
                             NULL) != WEIR_OK ||
            values[4].kind != JSON_OBJECT)
            abort();
    }
}

static void run(size_t message_bytes)
{
    struct buffer message;
    size_t batch_messages = BATCH_BYTES / message_bytes;
    if (batch_messages > BATCH_MESSAGES_MAX)
        batch_messages = BATCH_MESSAGES_MAX;

    buffer_init(&message, message_bytes + 64);
    make_message(&message, message_bytes);
    struct load_cost cost = load_measure_batches(batch_messages, scan, &message);
    (void)printf(
        "bench=json version=%s message_bytes=%zu messages=%zu ns_per_message=%.1f p50_ns=%.1f "
        "p99_ns=%.1f max_ns=%.1f mb_per_second=%.0f\n",
        WEIR_VERSION, message_bytes, batch_messages * LOAD_BATCH_COUNT, cost.mean_ns, cost.p50_ns,
        cost.p99_ns, cost.max_ns, (double)message_bytes * 1e3 / cost.mean_ns);
    buffer_fini(&message);
}

int main(void)
{
    static const size_t sizes[] = {100, 300, 4096, 65536};
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++)
        run(sizes[index]);
    return 0;
}

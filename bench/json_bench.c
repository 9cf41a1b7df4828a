/* Question: what does validating one protocol message cost, by its size?
 * Method:   json_scan_object() with the members the worker channel asks for, over messages of
 *           stream::set as iii-sdk sends them, padded through the item's data; batches of messages,
 *           each batch timed on its own, after a warm-up. The message stays in the cache, as it is
 *           when it has just been read from a socket.
 * Unit:     ns per message (mean, and p50, p99, max of the batches' means); MB/s of text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "shm/json.h"
#include "shm/limits.h"

enum { BATCH_COUNT = 200, BATCH_BYTES = 1 << 20, BATCH_MESSAGES_MAX = 2000 };

static const char *const names[] = {"type",     "id",          "function_id", "invocation_id",
                                    "data",     "traceparent", "baggage",     "action",
                                    "metadata", "namespace"};
enum { NAME_COUNT = sizeof names / sizeof names[0] };

static double now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;
    return (left > right) - (left < right);
}

static void append(struct buffer *buffer, const char *text)
{
    if (buffer_append(buffer, span_text(text)) != WEIR_OK)
        abort();
}

/* A message of exactly `bytes` bytes: a small one is a void call, a larger one a set with members
 * of mixed kinds. */
static void make_message(struct buffer *message, size_t bytes)
{
    buffer_clear(message);
    if (bytes < 300) {
        append(message,
               "{\"type\":\"invokefunction\",\"function_id\":\"demo::tick\",\"data\":{\"at\":");
        append(message, "1731000000123,\"t\":\"");
    } else {
        append(message,
               "{\"type\":\"invokefunction\",\"invocation_id\":\"0f8b1a6e-3b7e-4a55-9d0c-");
        append(
            message,
            "2f0a7b1c9e11\",\"function_id\":\"stream::set\",\"data\":{\"stream_name\":\"chat\",");
        append(message,
               "\"group_id\":\"room-1\",\"item_id\":\"msg-9\",\"data\":{\"id\":\"msg-9\",\"n\":[");
        while (message->bytes + 200 < bytes)
            append(message, "{\"x\":12.75,\"label\":\"cpu user\",\"ok\":true,\"parent\":null},");
        append(message, "1,-2.5],\"text\":\"");
    }
    while (message->bytes + (bytes < 300 ? 3 : 4) < bytes)
        append(message, "x");
    append(message, bytes < 300 ? "\"}}" : "\"}}}");
    if (message->bytes != bytes)
        abort();
}

static void run(size_t message_bytes)
{
    static double batches[BATCH_COUNT];
    struct buffer message;
    double total = 0;
    size_t batch_messages = BATCH_BYTES / message_bytes;
    if (batch_messages > BATCH_MESSAGES_MAX)
        batch_messages = BATCH_MESSAGES_MAX;

    buffer_init(&message, message_bytes + 64);
    make_message(&message, message_bytes);
    for (int batch = -BATCH_COUNT / 10; batch < BATCH_COUNT; batch++) { /* negative: warm-up */
        double start = now_ns();
        for (size_t index = 0; index < batch_messages; index++) {
            struct json_value values[NAME_COUNT];
            if (json_scan_object(buffer_span(&message), JSON_DEPTH_MAX, names, NAME_COUNT, values,
                                 NULL) != WEIR_OK ||
                values[4].kind != JSON_OBJECT)
                abort();
        }
        if (batch >= 0) {
            batches[batch] = (now_ns() - start) / (double)batch_messages;
            total += batches[batch];
        }
    }
    qsort(batches, BATCH_COUNT, sizeof batches[0], compare_doubles);
    double mean = total / BATCH_COUNT;
    (void)printf(
        "bench=json version=%s message_bytes=%zu messages=%zu ns_per_message=%.1f p50_ns=%.1f "
        "p99_ns=%.1f max_ns=%.1f mb_per_second=%.0f\n",
        WEIR_VERSION, message_bytes, batch_messages * BATCH_COUNT, mean, batches[BATCH_COUNT / 2],
        batches[BATCH_COUNT * 99 / 100], batches[BATCH_COUNT - 1],
        (double)message_bytes * 1e3 / mean);
    buffer_fini(&message);
}

int main(void)
{
    static const size_t sizes[] = {100, 300, 4096, 65536};
    for (size_t index = 0; index < sizeof sizes / sizeof sizes[0]; index++)
        run(sizes[index]);
    return 0;
}

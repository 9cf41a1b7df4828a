/* bench/update_bench.c -- what does one stream::update cost beyond the store, by operation and item?
 *
 * Method:   update_parse() of a list of one operation and update_apply() to the same item, again and
 *           again; batches of calls, each batch timed on its own, after a warm-up. List and item stay
 *           in the cache. The item grows by no call: every one starts from the old value.
 * Unit:     ns per call (mean, and p50, p99, max of the batches' means).
 */
#include <stdio.h>
#include <stdlib.h>

#include "adapters/update.h"
#include "bench/load.h"

enum { BATCH_CALLS_MAX = 2000, BATCH_BYTES = 1 << 20, TEXT_BYTES_MAX = 1 << 20 };

/* An object of `count` members whose last one is a counter; about 10 bytes each, and more with
 * padding. */
static void make_object(struct buffer *object, const char *prefix, size_t count,
                        const char *padding)
{
    buffer_clear(object);
    load_append(object, "{");
    for (size_t index = 0; index + 1 < count; index++) {
        if (buffer_printf(object, "\"%s%zu\":\"%s\",", prefix, index, padding) != WEIR_OK)
            abort();
    }
    load_append(object, "\"n\":41}");
}

static void make_array(struct buffer *array, size_t bytes)
{
    buffer_clear(array);
    load_append(array, "[\"first\"");
    while (array->bytes + 21 < bytes)
        load_append(array, ",{\"x\":12.75,\"on\":true}");
    load_append(array, "]");
}

struct call {
    struct update *update;
    struct span ops, item;
};

static void apply(void *context, size_t calls)
{
    const struct call *call = context;
    for (size_t index = 0; index < calls; index++) {
        struct update_result result;
        const char *problem;
        if (update_parse(call->update, call->ops, &problem) != WEIR_OK ||
            update_apply(call->update, call->item, &result) != WEIR_OK ||
            result.errors.data != NULL)
            abort();
    }
}

static void run(struct update *update, const char *name, struct span ops, struct span item)
{
    struct call call = {.update = update, .ops = ops, .item = item};
    size_t calls = BATCH_BYTES / (ops.bytes + item.bytes);
    if (calls > BATCH_CALLS_MAX)
        calls = BATCH_CALLS_MAX;
    struct load_cost cost = load_measure_batches(calls, apply, &call);
    (void)printf("bench=update version=%s operation=%s item_bytes=%zu ops_bytes=%zu calls=%zu "
                 "ns_per_call=%.1f p50_ns=%.1f p99_ns=%.1f max_ns=%.1f\n",
                 WEIR_VERSION, name, item.bytes, ops.bytes, calls * LOAD_BATCH_COUNT, cost.mean_ns,
                 cost.p50_ns, cost.p99_ns, cost.max_ns);
}

int main(void)
{
    struct update *update = update_open(VALUE_BYTES_MAX);
    struct buffer item;
    struct buffer ops;
    if (update == NULL)
        abort();
    buffer_init(&item, TEXT_BYTES_MAX);
    buffer_init(&ops, TEXT_BYTES_MAX);

    static const char increment[] = "[{\"type\":\"increment\",\"path\":\"n\",\"by\":1}]";
    make_object(&item, "k", 10, "v");
    run(update, "increment", SPAN_LITERAL(increment), buffer_span(&item));
    make_object(&item, "key", 10, "some text of a member");
    run(update, "set",
        SPAN_LITERAL("[{\"type\":\"set\",\"path\":\"key4\",\"value\":\"another text of it\"}]"),
        buffer_span(&item));
    make_object(&item, "key", 1000, "v");
    run(update, "increment", SPAN_LITERAL(increment), buffer_span(&item));
    make_array(&item, 10240);
    run(update, "append",
        SPAN_LITERAL("[{\"type\":\"append\",\"path\":\"\",\"value\":{\"x\":1,\"on\":false}}]"),
        buffer_span(&item));
    make_object(&item, "key", 10, "some text of a member");
    run(update, "merge",
        SPAN_LITERAL("[{\"type\":\"merge\",\"value\":{\"key1\":1,\"key5\":[2],\"more\":true}}]"),
        buffer_span(&item));
    buffer_clear(&ops);
    load_append(&ops, "[{\"type\":\"merge\",\"value\":");
    make_object(&item, "other", UPDATE_MERGE_KEYS_MAX, "v");
    if (buffer_append(&ops, buffer_span(&item)) != WEIR_OK)
        abort();
    load_append(&ops, "}]");
    make_object(&item, "key", 10000, "v");
    run(update, "merge", buffer_span(&ops), buffer_span(&item));

    buffer_fini(&ops);
    buffer_fini(&item);
    update_close(update);
    return 0;
}

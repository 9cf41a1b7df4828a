/* tests/caller_stub.h -- stands in for the broker behind gateway/caller.h: calls are kept and
 * answered by the test, on a clock of its own.
 *
 * Only tests include it.
 */
#ifndef WEIR_TESTS_CALLER_STUB_H
#define WEIR_TESTS_CALLER_STUB_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/caller.h"

enum { STUB_CALLS_MAX = 16384, STUB_TEXT_BYTES = 256 };

struct stub_call {
    char *name_space, *function, *data, *metadata; /* NULL: none */
    uint64_t deadline_ms;
    server_call_done *done;
    void *context;
    bool is_open;
    bool is_cancelled;
};

static struct stub {
    struct stub_call calls[STUB_CALLS_MAX];
    size_t count;      /* made so far */
    size_t open_count; /* not answered and not cancelled */
    uint64_t now_ms;
    bool is_full; /* start() answers NULL */
} stub;

static inline char *stub_copy(struct span text)
{
    if (text.data == NULL)
        return NULL;
    char *copy = calloc(1, text.bytes + 1);
    if (copy != NULL)
        memcpy(copy, text.data, text.bytes);
    return copy;
}

static inline struct server_call *stub_start(void *context,
                                             const struct server_call_request *request,
                                             server_call_done *done, void *done_context)
{
    (void)context;
    if (stub.is_full || stub.count == STUB_CALLS_MAX)
        return NULL;
    struct stub_call *call = &stub.calls[stub.count++];
    *call = (struct stub_call){
        .name_space = stub_copy(request->name_space),
        .function = stub_copy(request->function),
        .data = stub_copy(request->data),
        .metadata = stub_copy(request->metadata),
        .deadline_ms = stub.now_ms + request->timeout_ms,
        .done = done,
        .context = done_context,
        .is_open = true,
    };
    stub.open_count++;
    return (struct server_call *)(void *)call;
}

static inline void stub_end(struct stub_call *call)
{
    if (!call->is_open)
        abort(); /* ended twice */
    call->is_open = false;
    stub.open_count--;
}

static inline void stub_cancel(void *context, struct server_call *call)
{
    struct stub_call *own = (struct stub_call *)(void *)call;
    (void)context;
    stub_end(own);
    own->is_cancelled = true;
}

static inline uint64_t stub_now_ms(void *context)
{
    (void)context;
    return stub.now_ms;
}

static inline struct caller stub_caller(void)
{
    return (struct caller){stub_start, stub_cancel, stub_now_ms, NULL};
}

/* NULL: the function returned nothing. */
static inline void stub_answer(size_t index, const char *result)
{
    struct stub_call *call = &stub.calls[index];
    stub_end(call);
    call->done(call->context, SERVER_CALL_RESULT,
               result == NULL ? (struct span){0} : span_text(result), (struct span){0});
}

static inline void stub_error(size_t index, const char *code)
{
    struct stub_call *call = &stub.calls[index];
    char text[STUB_TEXT_BYTES];
    (void)snprintf(text, sizeof text, "{\"message\":\"m\",\"code\":\"%s\"}", code);
    stub_end(call);
    call->done(call->context, SERVER_CALL_ERROR, (struct span){0}, span_text(text));
}

static inline void stub_fate(size_t index, enum server_call_fate fate)
{
    struct stub_call *call = &stub.calls[index];
    stub_end(call);
    call->done(call->context, fate, (struct span){0}, (struct span){0});
}

static inline void stub_reset(void)
{
    for (size_t i = 0; i < stub.count; i++) {
        free(stub.calls[i].name_space);
        free(stub.calls[i].function);
        free(stub.calls[i].data);
        free(stub.calls[i].metadata);
    }
    memset(&stub, 0, sizeof stub);
    stub.now_ms = 1000000;
}

#endif

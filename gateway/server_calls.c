#include "gateway/server_calls.h"

#include <stdlib.h>

enum { STOOD_STILL_MS = 1000 }; /* between two ticks */

struct server_call {
    struct link_request request;    /* first: the link hands it back */
    struct server_calls *calls;     /* NULL: nobody waits any more */
    struct server_call *next, **at; /* in `open` or in the list of those that are late */
    server_call_done *done;
    void *context;
    uint64_t deadline_ms;
};

struct server_calls {
    struct link *link;
    struct counters *counters;
    struct server_call *open; /* newest first */
    uint64_t ticked_ms;
};

struct server_calls *server_calls_open(struct counters *counters)
{
    struct server_calls *calls = calloc(1, sizeof *calls);
    if (calls != NULL) {
        calls->counters = counters;
        calls->ticked_ms = uv_hrtime() / 1000000;
    }
    return calls;
}

void server_calls_set_link(struct server_calls *calls, struct link *link)
{
    calls->link = link;
}

bool server_calls_are_flowing(const struct server_calls *calls)
{
    return calls->link != NULL && link_is_flowing(calls->link);
}

static void server_call_enter(struct server_call *call, struct server_call **list)
{
    call->at = list;
    call->next = *list;
    if (call->next != NULL)
        call->next->at = &call->next;
    *list = call;
}

/* The asker is done with it; the link may still hand it back. */
static void server_call_leave(struct server_call *call)
{
    *call->at = call->next;
    if (call->next != NULL)
        call->next->at = call->at;
    call->calls = NULL;
}

/* Nobody waits any more. A handler that never answers must not use up the tables of link, broker and
 * executor's gateway, so they are told. */
static void server_call_give_up(struct server_call *call)
{
    struct link *link = call->calls->link;
    server_call_leave(call);
    if (link_cancel_call(link, &call->request))
        free(call);
}

void server_calls_close(struct server_calls *calls)
{
    if (calls == NULL)
        return;
    while (calls->open != NULL)
        server_call_leave(calls->open);
    free(calls);
}

static void server_call_end(struct server_call *call, enum server_call_fate fate,
                            struct span result, struct span error_json)
{
    if (fate != SERVER_CALL_RESULT)
        counters_add(call->calls->counters, COUNTER_SERVER_CALLS_FAILED, 1);
    server_call_leave(call);
    call->done(call->context, fate, result, error_json);
}

static void on_done(struct link_request *request, enum link_fate fate,
                    const struct wire_message *answer)
{
    struct server_call *call = (struct server_call *)(void *)request; /* its first member */
    const struct span nothing = {0};
    if (call->calls == NULL) {
        /* late or cancelled */
    } else if (fate != LINK_ANSWERED || answer == NULL || answer->type != WIRE_RESULT) {
        server_call_end(call, SERVER_CALL_UNAVAILABLE, nothing, nothing);
    } else if (answer->fields[1].span.data != NULL) {
        server_call_end(call, SERVER_CALL_ERROR, nothing, answer->fields[1].span);
    } else {
        server_call_end(call, SERVER_CALL_RESULT, answer->fields[0].span, nothing);
    }
    free(call);
}

struct server_call *server_call_start(struct server_calls *calls,
                                      const struct server_call_request *request,
                                      server_call_done *done, void *context)
{
    struct server_call *call = calls->link == NULL ? NULL : calloc(1, sizeof *call);
    if (call == NULL)
        return NULL;
    call->request.done = on_done;
    const struct wire_field fields[] = {
        WIRE_NUMBER(0),
        WIRE_SPAN(request->name_space),
        WIRE_SPAN(request->function),
        WIRE_SPAN(request->data.data == NULL ? SPAN_LITERAL("null") : request->data),
        WIRE_SPAN(request->metadata),
        WIRE_SPAN(request->traceparent),
        WIRE_SPAN(request->baggage)};
    if (link_ask(calls->link, WIRE_CALL, fields, &call->request) != WEIR_OK) {
        free(call);
        return NULL;
    }
    counters_add(calls->counters, COUNTER_SERVER_CALLS, 1);
    call->calls = calls;
    call->done = done;
    call->context = context;
    call->deadline_ms = uv_hrtime() / 1000000 + request->timeout_ms;
    server_call_enter(call, &calls->open);
    return call;
}

void server_call_cancel(struct server_call *call)
{
    server_call_give_up(call);
}

/* done() may start and cancel calls, so those that are late are set apart first. */
void server_calls_tick(struct server_calls *calls, uint64_t now_ms)
{
    const struct span nothing = {0};
    struct server_call *late = NULL;
    /* Was it this process that stood still? Then the answers may be in the socket: read first. */
    bool stood_still = now_ms - calls->ticked_ms > STOOD_STILL_MS;
    calls->ticked_ms = now_ms;
    if (stood_still)
        return;
    for (struct server_call *call = calls->open, *next; call != NULL; call = next) {
        next = call->next;
        if (call->deadline_ms > now_ms)
            continue;
        *call->at = next;
        if (next != NULL)
            next->at = call->at;
        server_call_enter(call, &late);
    }
    while (late != NULL) { /* each turn takes one off */
        server_call_done *done = late->done;
        void *context = late->context;
        server_call_give_up(late);
        counters_add(calls->counters, COUNTER_SERVER_CALLS_FAILED, 1);
        done(context, SERVER_CALL_LATE, nothing, nothing);
    }
}

#include "gateway/caller.h"

static struct server_call *caller_start(void *context, const struct server_call_request *request,
                                        server_call_done *done, void *done_context)
{
    return server_call_start(context, request, done, done_context);
}

static void caller_cancel(void *context, struct server_call *call)
{
    (void)context;
    server_call_cancel(call);
}

static uint64_t caller_now_ms(void *context)
{
    (void)context;
    return uv_hrtime() / 1000000;
}

struct caller caller_of(struct server_calls *calls)
{
    return (struct caller){caller_start, caller_cancel, caller_now_ms, calls};
}

#include "gateway/http.h"

#include <stdlib.h>
#include <unistd.h>

#include "web/assets.h"

enum { BODY_BYTES_MAX = 1024 * 1024 };

static const char security_headers[] =
    "X-Content-Type-Options: nosniff\r\n"
    "Content-Security-Policy: default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' ws: wss:\r\n";
static const char fresh_headers[] = "X-Content-Type-Options: nosniff\r\n"
                                    "Cache-Control: no-store\r\n";

static void http_text(struct ws_http_answer *answer, unsigned status, const char *text)
{
    *answer = (struct ws_http_answer){
        .status = status,
        .content_type = "text/plain; charset=utf-8",
        .extra_headers = fresh_headers,
        .body = span_text(text),
    };
}

/* The buffer's memory goes with the answer. */
static void http_buffer(struct ws_http_answer *answer, unsigned status, const char *content_type,
                        const struct buffer *body)
{
    *answer = (struct ws_http_answer){
        .status = status,
        .content_type = content_type,
        .extra_headers = fresh_headers,
        .body = buffer_span(body),
        .release = free,
        .owner = body->data,
    };
}

static void http_health(const struct http_view *view, struct ws_http_answer *answer)
{
    struct buffer body;
    buffer_init(&body, BODY_BYTES_MAX);
    bool is_well = view->is_attached && view->is_responsive;
    bool is_ok = is_well && !view->is_draining;
    const char *broker = !view->is_attached ? "away" : is_well ? "attached" : "silent";
    const char *state = is_ok ? "ok" : view->is_draining ? "draining" : "degraded";
    enum weir_status status = buffer_printf(
        &body, "{\"status\":\"%s\",\"broker\":\"%s\",\"gateway\":%llu,\"version\":\"%s\"}\n", state,
        broker, (unsigned long long)view->gateway_index, WEIR_VERSION);
    if (status != WEIR_OK) {
        buffer_fini(&body);
        http_text(answer, 503, "out of memory\n");
        return;
    }
    http_buffer(answer, is_ok ? 200 : 503, "application/json", &body);
}

static enum weir_status metrics_line(struct buffer *body, enum counter counter, uint32_t slot,
                                     uint32_t pid, uint64_t value)
{
    return buffer_printf(body, "weir_gateway_%s%s{slot=\"%u\",pid=\"%u\"} %llu\n",
                         counters_name(counter),
                         strcmp(counters_type(counter), "counter") == 0 ? "_total" : "", slot, pid,
                         (unsigned long long)value);
}

/* Our own figures are current; those of the others are as the broker last collected them. */
static enum weir_status metrics_counter(const struct http_view *view, struct buffer *body,
                                        enum counter counter)
{
    const char *suffix = strcmp(counters_type(counter), "counter") == 0 ? "_total" : "";
    enum weir_status status =
        buffer_printf(body, "# HELP weir_gateway_%s%s %s\n", counters_name(counter), suffix,
                      counters_sentence(counter));
    if (status == WEIR_OK)
        status = buffer_printf(body, "# TYPE weir_gateway_%s%s %s\n", counters_name(counter),
                               suffix, counters_type(counter));
    uint32_t own_pid = (uint32_t)getpid();
    uint32_t own_slot = view->counters->reader == NULL ? READERS_MAX : view->counters->reader->slot;
    if (status == WEIR_OK)
        status = metrics_line(body, counter, own_slot, own_pid, view->counters->values[counter]);
    for (uint32_t slot = 0; view->segment != NULL && slot < READERS_MAX && status == WEIR_OK;
         slot++) {
        uint32_t pid;
        uint64_t values[CONTROL_COUNTERS];
        if (slot != own_slot && readers_counters(view->segment, slot, &pid, values))
            status = metrics_line(body, counter, slot, pid, values[counter]);
    }
    return status;
}

/* One line each, as the broker showed them last; from a dead broker's segment until the next is there. */
static enum weir_status metrics_broker(const struct http_view *view, struct buffer *body)
{
    if (view->segment == NULL)
        return WEIR_OK;
    struct broker_counters counters;
    readers_broker_counters(view->segment, &counters);
    enum weir_status status = WEIR_OK;
#define METRICS_SUFFIX_counter "_total"
#define METRICS_SUFFIX_gauge ""
#define METRICS_BROKER(name, type, sentence)                                                       \
    if (status == WEIR_OK)                                                                         \
        status = buffer_printf(body,                                                               \
                               "# HELP weir_broker_" #name METRICS_SUFFIX_##type                   \
                               " " sentence "\n# TYPE weir_broker_" #name METRICS_SUFFIX_##type    \
                               " " #type "\nweir_broker_" #name METRICS_SUFFIX_##type " %llu\n",   \
                               (unsigned long long)counters.name);
    BROKER_COUNTER_MAP(METRICS_BROKER)
#undef METRICS_BROKER
#undef METRICS_SUFFIX_counter
#undef METRICS_SUFFIX_gauge
    return status;
}

static void http_metrics(const struct http_view *view, struct ws_http_answer *answer)
{
    struct buffer body;
    buffer_init(&body, BODY_BYTES_MAX);
    enum weir_status status =
        buffer_printf(&body,
                      "# HELP weir_gateway_attached whether this gateway is attached to a broker\n"
                      "# TYPE weir_gateway_attached gauge\n"
                      "weir_gateway_attached %d\n",
                      view->is_attached ? 1 : 0);
    for (unsigned i = 0; i < COUNTER_COUNT && status == WEIR_OK; i++)
        status = metrics_counter(view, &body, (enum counter)i);
    if (status == WEIR_OK)
        status = metrics_broker(view, &body);
    if (status != WEIR_OK) {
        buffer_fini(&body);
        http_text(answer, 503, "out of memory\n");
        return;
    }
    http_buffer(answer, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

static void http_page(struct span path, struct ws_http_answer *answer)
{
    const struct web_asset *asset = web_asset_find(path.data, path.bytes);
    if (asset != NULL) {
        *answer = (struct ws_http_answer){
            .status = 200,
            .content_type = asset->content_type,
            .extra_headers = security_headers,
            .body = span_of(asset->data, asset->bytes),
        };
        return;
    }
    http_text(answer, 404, "not found\n");
}

void http_answer(const struct http_view *view, const struct ws_request *request,
                 struct ws_http_answer *answer)
{
    bool is_health = span_equal(request->path, SPAN_LITERAL("/healthz"));
    bool is_worker_port = request->port == WS_PORT_WORKER || request->port >= WS_PORT_LISTENER;
    if (is_health && !is_worker_port)
        http_health(view, answer);
    else if (request->port == WS_PORT_ADMIN && span_equal(request->path, SPAN_LITERAL("/metrics")))
        http_metrics(view, answer);
    else if (request->port == WS_PORT_STREAM)
        http_page(request->path, answer);
    else if (is_worker_port && span_equal(request->path, SPAN_LITERAL("/")))
        http_text(answer, 400, "this is the worker channel: connect with a WebSocket\n");
    else
        http_text(answer, 404, "not found\n");
}

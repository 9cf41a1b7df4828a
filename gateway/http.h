/* gateway/http.h -- plain HTTP: health, metrics, the console page.
 *
 *   GET /healthz   stream and admin port: 200 {"status":"ok",...}, 503 while the broker is away
 *                  or silent, or the gateway is to stop
 *   GET /metrics   admin port: Prometheus text, counters of all gateways of the host
 *   GET /...       stream port: the page's files, compiled in
 *
 * Process:  gateway, loop thread only.
 * Memory:   page files are static; the rest is malloc'd per answer and released by ws.c.
 */
#ifndef WEIR_GATEWAY_HTTP_H
#define WEIR_GATEWAY_HTTP_H

#include "gateway/counters.h"
#include "gateway/ws.h"

struct http_view {
    const struct segment *segment; /* NULL: never attached */
    const struct counters *counters;
    bool is_attached;
    bool is_responsive; /* the broker answers */
    bool is_draining;   /* the gateway is to stop */
    uint64_t gateway_index;
};

void http_answer(const struct http_view *view, const struct ws_request *request,
                 struct ws_http_answer *answer);

#endif

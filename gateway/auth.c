#include "gateway/auth.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "gateway/head_json.h"
#include "gateway/printer.h"
#include "gateway/stream_path.h"

enum {
    AUTH_INPUT_BYTES_MAX = HEAD_JSON_BYTES_MAX + 1024, /* the path is a part of the head, too */
    AUTH_LOG_MS = 1000,
};
static_assert(SETTINGS_CONTEXT_BYTES_MAX >= 2, "an empty context fits");

struct auth {
    const struct settings *settings;
    struct caller caller;
    struct counters *counters;
    struct buffer input;
    unsigned pending_count;
    uint64_t logged_ms;
    uint64_t silent_count; /* failures since the last line */
};

struct auth_ticket {
    struct auth *auth;
    struct server_call *call;
    auth_done *done;
    void *context;
};

struct auth *auth_open(const struct settings *settings, const struct caller *caller,
                       struct counters *counters)
{
    struct auth *auth = calloc(1, sizeof *auth);
    if (auth == NULL)
        return NULL;
    auth->settings = settings;
    auth->caller = *caller;
    auth->counters = counters;
    buffer_init(&auth->input, AUTH_INPUT_BYTES_MAX);
    return auth;
}

void auth_close(struct auth *auth)
{
    if (auth == NULL)
        return;
    buffer_fini(&auth->input);
    free(auth);
}

/* ---- the input ---- */

enum weir_status auth_input_append(struct buffer *out, const struct ws_request *request)
{
    struct printer printer = {out, json_is_utf8(request->path) ? WEIR_OK : WEIR_INVALID};
    print_literal(&printer, "{\"headers\":");
    if (printer.status == WEIR_OK)
        printer.status = head_json_append_headers(out, request->headers);
    print_literal(&printer, ",\"path\":");
    print_string(&printer, request->path);
    print_literal(&printer, ",\"query_params\":");
    if (printer.status == WEIR_OK)
        printer.status = head_json_append_query(out, request->query);
    print_literal(&printer, ",\"addr\":");
    print_string(&printer, span_text(request->peer));
    print_literal(&printer, "}");
    return printer.status;
}

/* ---- tokens ---- */

static struct span auth_bearer(struct span value)
{
    static const char scheme[] = "Bearer ";
    size_t scheme_bytes = sizeof scheme - 1;
    if (value.bytes <= scheme_bytes || strncasecmp(value.data, scheme, scheme_bytes) != 0)
        return (struct span){0};
    return head_trim(span_of(value.data + scheme_bytes, value.bytes - scheme_bytes));
}

/* What follows the element "Authorization" in one list. `*is_next` carries over to another line of
 * the same header, which is the same list (RFC 9110 section 5.3). */
static struct span auth_after_authorization(struct span list, bool *is_next)
{
    while (list.bytes > 0) { /* each turn takes at least one byte */
        const char *comma = memchr(list.data, ',', list.bytes);
        size_t bytes = comma == NULL ? list.bytes : (size_t)(comma - list.data);
        struct span element = head_trim(span_of(list.data, bytes));
        bytes += comma == NULL ? 0 : 1;
        list = span_of(list.data + bytes, list.bytes - bytes);
        if (*is_next && element.bytes > 0)
            return element;
        if (span_equal(element, SPAN_LITERAL("Authorization")))
            *is_next = true;
    }
    return (struct span){0};
}

static struct span auth_header_token(struct span headers, enum auth_place place)
{
    struct span token = {0};
    struct head_pair pair;
    bool is_next = false;
    while (head_next_header(&headers, &pair)) {
        if (place == AUTH_HEADER && head_name_is(pair.name, SPAN_LITERAL("authorization")))
            token = auth_bearer(pair.value);
        else if (place == AUTH_SUBPROTOCOL && token.data == NULL &&
                 head_name_is(pair.name, SPAN_LITERAL("sec-websocket-protocol")))
            token = auth_after_authorization(pair.value, &is_next);
    }
    return token;
}

struct span auth_token(const struct ws_request *request, enum auth_place place, char *scratch)
{
    if (place != AUTH_QUERY)
        return auth_header_token(request->headers, place);
    struct span token = {0};
    struct span query = request->query;
    struct head_pair pair;
    while (head_next_parameter(&query, &pair)) {
        if (span_equal(pair.name, SPAN_LITERAL("token")))
            token = pair.value;
    }
    size_t bytes;
    if (token.data != NULL && stream_path_decode(scratch, token, &bytes))
        token = span_of(scratch, bytes);
    return token;
}

/* All of the table is gone through, wherever the token stands in it. */
static bool auth_find_token(const struct settings *settings, struct span shown,
                            struct span *context)
{
    bool is_found = false;
    if (shown.bytes == 0 || shown.bytes > SETTINGS_TOKEN_BYTES_MAX)
        return false;
    for (size_t i = 0; i < settings_token_count(settings); i++) {
        struct settings_token known = settings_token_at(settings, i);
        if (!span_equal_secret(known.token, shown))
            continue;
        is_found = true;
        *context = known.context;
    }
    return is_found;
}

static bool auth_find_any(const struct settings *settings, const struct ws_request *request,
                          struct span *context)
{
    char scratch[HANDSHAKE_BYTES_MAX];
    bool is_found = false;
    for (enum auth_place place = AUTH_HEADER; place < AUTH_PLACES && !is_found; place++)
        is_found = auth_find_token(settings, auth_token(request, place, scratch), context);
    return is_found;
}

/* ---- decisions ---- */

/* A copy, compact; null is no context. */
static enum weir_status auth_keep_context(struct json_value value, struct span *context)
{
    *context = (struct span){0};
    if (value.kind == JSON_ABSENT || value.kind == JSON_NULL)
        return WEIR_OK;
    char *text = malloc(value.text.bytes);
    if (text == NULL)
        return WEIR_NO_MEMORY;
    size_t bytes = json_compact(text, value);
    if (bytes > SETTINGS_CONTEXT_BYTES_MAX) {
        free(text);
        return WEIR_TOO_LARGE;
    }
    *context = span_of(text, bytes);
    return WEIR_OK;
}

static enum auth_verdict auth_refuse(struct auth *auth, unsigned http_status,
                                     struct auth_decision *decision)
{
    counters_add(auth->counters, COUNTER_AUTH_REFUSED, 1);
    *decision = (struct auth_decision){.http_status = http_status};
    return AUTH_REFUSED;
}

/* A line a second at most, without anything of the request or of the answer but an error's code. */
static void auth_log(struct auth *auth, const char *reason, struct span code)
{
    uint64_t now_ms = auth->caller.now_ms(auth->caller.context);
    auth->silent_count++;
    if (auth->logged_ms != 0 && now_ms - auth->logged_ms < AUTH_LOG_MS)
        return;
    (void)fprintf(
        stderr, "weir-gateway: event=auth_failed function=\"%s\" reason=\"%s\"%s%.*s count=%llu\n",
        auth->settings->auth_function, reason, code.bytes > 0 ? " code=" : "",
        (int)(code.bytes < 60 ? code.bytes : 60), code.bytes > 0 ? code.data : "",
        (unsigned long long)auth->silent_count);
    auth->logged_ms = now_ms;
    auth->silent_count = 0;
}

/* auth_function could not be asked, or has not answered as it should. */
static enum auth_verdict auth_fail(struct auth *auth, unsigned http_status, const char *reason,
                                   struct span code, struct auth_decision *decision)
{
    counters_add(auth->counters, COUNTER_AUTH_FAILED, 1);
    auth_log(auth, reason, code);
    *decision = (struct auth_decision){0};
    if (auth->settings->auth_failure == SETTINGS_AUTH_ALLOW)
        return AUTH_ACCEPTED;
    return auth_refuse(auth, http_status, decision);
}

/* The members that count; of a name that comes twice the last one does (PROTOCOL 1.4). */
static bool auth_read_result(struct span result, bool *is_unauthorized, struct json_value *context)
{
    struct json_value object, key, value;
    size_t cursor = 0;
    *is_unauthorized = false;
    *context = (struct json_value){0};
    if (result.data == NULL || json_scan(result, JSON_DEPTH_MAX, &object, NULL) != WEIR_OK ||
        object.kind != JSON_OBJECT)
        return false;
    while (json_next(object, &cursor, &key, &value) == WEIR_OK) {
        if (json_string_equals(key, SPAN_LITERAL("unauthorized")))
            *is_unauthorized = value.kind == JSON_TRUE;
        else if (json_string_equals(key, SPAN_LITERAL("context")))
            *context = value;
    }
    return true;
}

static enum auth_verdict auth_take_result(struct auth *auth, struct span result,
                                          struct auth_decision *decision)
{
    bool is_unauthorized;
    struct json_value context;
    const struct span none = {0};
    if (!auth_read_result(result, &is_unauthorized, &context))
        return auth_fail(auth, 401, "the result is not an object", none, decision);
    if (is_unauthorized)
        return auth_refuse(auth, 401, decision);
    *decision = (struct auth_decision){0};
    enum weir_status status = auth_keep_context(context, &decision->context);
    if (status == WEIR_TOO_LARGE)
        return auth_fail(auth, 401, "the context exceeds 64 KiB", none, decision);
    if (status != WEIR_OK)
        return auth_fail(auth, 503, "no memory for the context", none, decision);
    return AUTH_ACCEPTED;
}

/* 401 for what the function did, 503 when it could not be asked. */
static enum auth_verdict auth_take_error(struct auth *auth, struct span error_json,
                                         struct auth_decision *decision)
{
    static const char *const absences[] = {"function_not_found", "invocation_stopped",
                                           "invocation_error", "channel_send_failed"};
    static const char *const names[] = {"code"};
    struct json_value code = {0};
    if (json_scan_object(error_json, JSON_DEPTH_MAX, names, 1, &code, NULL) != WEIR_OK ||
        code.kind != JSON_STRING || code.has_escape)
        return auth_fail(auth, 401, "the handler failed", (struct span){0}, decision);
    struct span text = span_of(code.text.data + 1, code.text.bytes - 2);
    for (size_t i = 0; i < sizeof absences / sizeof absences[0]; i++) {
        if (span_equal(text, span_text(absences[i])))
            return auth_fail(auth, 503, "it cannot be asked", text, decision);
    }
    return auth_fail(auth, 401, "the handler failed", text, decision);
}

static void on_answer(void *context, enum server_call_fate fate, struct span result,
                      struct span error_json)
{
    struct auth_ticket ticket = *(struct auth_ticket *)context;
    struct auth *auth = ticket.auth;
    struct auth_decision decision = {0};
    const struct span none = {0};
    free(context);
    auth->pending_count--;
    switch (fate) {
    case SERVER_CALL_RESULT:
        (void)auth_take_result(auth, result, &decision);
        break;
    case SERVER_CALL_ERROR:
        (void)auth_take_error(auth, error_json, &decision);
        break;
    case SERVER_CALL_LATE:
        (void)auth_fail(auth, 503, "no answer in time", none, &decision);
        break;
    case SERVER_CALL_UNAVAILABLE:
        (void)auth_fail(auth, 503, "the broker is away", none, &decision);
        break;
    }
    ticket.done(ticket.context, decision);
}

static enum auth_verdict auth_start(struct auth *auth, const struct ws_request *request,
                                    struct auth_ticket *ticket, struct auth_decision *decision)
{
    buffer_clear(&auth->input);
    enum weir_status status = auth_input_append(&auth->input, request);
    if (status == WEIR_INVALID)
        return auth_refuse(auth, 400, decision);
    if (status == WEIR_TOO_LARGE || status == WEIR_FULL)
        return auth_refuse(auth, 431, decision);
    const struct server_call_request call = {
        .function = span_text(auth->settings->auth_function),
        .data = buffer_span(&auth->input),
        .timeout_ms = auth->settings->auth_timeout_ms,
    };
    if (status == WEIR_OK)
        ticket->call = auth->caller.start(auth->caller.context, &call, on_answer, ticket);
    if (ticket->call == NULL)
        return auth_fail(auth, 503, "it cannot be asked", (struct span){0}, decision);
    auth->pending_count++;
    return AUTH_PENDING;
}

static enum auth_verdict auth_accept_token(struct auth *auth, struct span known,
                                           struct auth_decision *decision)
{
    struct json_value context;
    *decision = (struct auth_decision){0};
    if (json_scan(known, JSON_DEPTH_MAX, &context, NULL) == WEIR_OK &&
        auth_keep_context(context, &decision->context) == WEIR_OK)
        return AUTH_ACCEPTED;
    return auth_refuse(auth, 503, decision);
}

enum auth_verdict auth_ask(struct auth *auth, const struct ws_request *request, auth_done *done,
                           void *context, struct auth_ticket **ticket,
                           struct auth_decision *decision)
{
    const struct settings *settings = auth->settings;
    bool has_tokens = settings_token_count(settings) > 0;
    bool has_function = settings->auth_function[0] != '\0';
    struct span known;
    *ticket = NULL;
    *decision = (struct auth_decision){0};
    if (!has_tokens && !has_function)
        return AUTH_ACCEPTED;
    if (has_tokens && auth_find_any(settings, request, &known))
        return auth_accept_token(auth, known, decision);
    if (!has_function)
        return auth_refuse(auth, 401, decision);
    struct auth_ticket *made =
        auth->pending_count < AUTH_PENDING_MAX ? calloc(1, sizeof *made) : NULL;
    if (made == NULL)
        return auth_refuse(auth, 503, decision);
    *made = (struct auth_ticket){.auth = auth, .done = done, .context = context};
    enum auth_verdict verdict = auth_start(auth, request, made, decision);
    if (verdict == AUTH_PENDING)
        *ticket = made;
    else
        free(made);
    return verdict;
}

void auth_cancel(struct auth_ticket *ticket)
{
    struct auth *auth = ticket->auth;
    auth->caller.cancel(auth->caller.context, ticket->call);
    auth->pending_count--;
    free(ticket);
}

#include "gateway/session_access.h"

#include <stdlib.h>

#include "gateway/access_filter.h"
#include "gateway/head_json.h"
#include "gateway/printer.h"
#include "shm/error_body.h"
#include "shm/trigger_types.h"

enum {
    INPUT_BYTES_MAX = HEAD_JSON_BYTES_MAX + 1024,
    NAMES_BYTES_MAX = 1024 * 1024,
    VERDICTS_MAX = 2, /* of one message: a trigger's function and its condition */
};

struct access_door {
    struct access_door_options options;
    struct buffer out; /* what is asked, passed on or shown */
};

/* What was found out about a function; the last one may still be asked for. */
struct access_verdict {
    char *text; /* namespace, function id */
    size_t name_space_bytes, bytes;
    bool is_known, is_allowed, is_lost;
};

/* A hook gave something of the worker's another name. */
struct access_rename {
    struct access_rename *next;
    enum access_name kind;
    size_t own_bytes, filed_bytes;
    char text[]; /* own, filed */
};

struct session_access {
    struct access_door *door;
    struct access *access; /* NULL until the rights are known */
    const char *problem;   /* why there are none */
    void (*decided)(void *peer);
    void *peer;
    struct server_call *call; /* under way */
    struct buffer input;      /* of auth_function_id; empty once it is asked */
    struct access_verdict verdicts[VERDICTS_MAX];
    unsigned verdict_count;
    bool has_hook_answer, hook_allows, is_hook_lost;
    struct buffer hook_answer;
    struct buffer names; /* decoded and put together for the step at hand */
    struct access_rename *renames;
    unsigned rename_count;
    size_t rename_bytes;
};

/* ---- the door ---- */

struct access_door *access_door_open(const struct access_door_options *options)
{
    struct access_door *door = calloc(1, sizeof *door);
    if (door == NULL)
        return NULL;
    door->options = *options;
    buffer_init(&door->out, (size_t)WS_MESSAGE_BYTES_MAX + ACCESS_RESULT_BYTES_MAX + 65536);
    return door;
}

void access_door_close(struct access_door *door)
{
    if (door == NULL)
        return;
    buffer_fini(&door->out);
    free(door);
}

/* A large call or listing must not leave its memory behind. */
static struct buffer *door_out(struct access_door *door)
{
    enum { KEPT_BYTES = 1024 * 1024 };
    size_t limit_bytes = door->out.limit_bytes;
    if (door->out.capacity_bytes > KEPT_BYTES) {
        buffer_fini(&door->out);
        buffer_init(&door->out, limit_bytes);
    }
    buffer_clear(&door->out);
    return &door->out;
}

static void access_count(const struct session_access *access, enum counter counter)
{
    counters_add(access->door->options.counters, counter, 1);
}

/* ---- life ---- */

/* "1.2.3.4:5" or "[::1]:5" without port and brackets. */
static struct span peer_ip(const char *peer)
{
    struct span ip = span_text(peer);
    const char *colon = strrchr(peer, ':');
    if (colon != NULL)
        ip.bytes = (size_t)(colon - peer);
    if (ip.bytes >= 2 && ip.data[0] == '[' && ip.data[ip.bytes - 1] == ']')
        ip = span_of(ip.data + 1, ip.bytes - 2);
    return ip;
}

static enum weir_status access_print_input(struct buffer *out, const struct ws_request *request)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{\"headers\":"));
    if (status == WEIR_OK)
        status = head_json_append_headers(out, request->headers);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"query_params\":"));
    if (status == WEIR_OK)
        status = head_json_append_query(out, request->query);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"ip_address\":"));
    if (status == WEIR_OK)
        status = json_append_string(out, peer_ip(request->peer));
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("}")) : status;
}

struct session_access *session_access_make(struct access_door *door, struct ws_request *request)
{
    struct session_access *access = calloc(1, sizeof *access);
    enum weir_status status = WEIR_OK;
    request->http_status = 503;
    if (access == NULL)
        return NULL;
    access->door = door;
    access->problem = "not decided yet";
    buffer_init(&access->input, INPUT_BYTES_MAX);
    buffer_init(&access->hook_answer, WS_MESSAGE_BYTES_MAX);
    buffer_init(&access->names, NAMES_BYTES_MAX);
    if (*door->options.listener->auth_function != '\0')
        status = access_print_input(&access->input, request);
    if (status == WEIR_OK) {
        request->http_status = 0;
        return access;
    }
    session_access_free(access);
    request->http_status = status == WEIR_TOO_LARGE ? 431 : 503;
    return NULL;
}

void session_access_free(struct session_access *access)
{
    if (access == NULL)
        return;
    if (access->call != NULL)
        server_call_cancel(access->call);
    access->call = NULL;
    session_access_forget(access);
    while (access->renames != NULL) {
        struct access_rename *rename = access->renames;
        access->renames = rename->next;
        free(rename);
    }
    buffer_fini(&access->input);
    buffer_fini(&access->hook_answer);
    buffer_fini(&access->names);
    access_free(access->access);
    free(access);
}

const char *session_access_problem(const struct session_access *access)
{
    return access->problem;
}

void session_access_forget(struct session_access *access)
{
    for (unsigned i = 0; i < access->verdict_count; i++)
        free(access->verdicts[i].text);
    access->verdict_count = 0;
    access->has_hook_answer = false;
    size_t limit_bytes = access->hook_answer.limit_bytes;
    buffer_fini(&access->hook_answer);
    buffer_init(&access->hook_answer, limit_bytes);
}

/* False: it cannot be asked now. */
static bool access_ask(struct session_access *access, struct span function, struct span data,
                       server_call_done *done)
{
    const struct access_door_options *options = &access->door->options;
    const struct server_call_request request = {
        .function = function,
        .data = data,
        .timeout_ms = options->settings->auth_timeout_ms,
    };
    access->call = server_call_start(options->calls, &request, done, access);
    return access->call != NULL;
}

/* ---- rights ---- */

static void access_refuse_session(struct session_access *access, const char *problem)
{
    access->problem = problem;
    access_count(access, COUNTER_AUTH_REFUSED);
}

static void access_take_rights(struct session_access *access, struct span result)
{
    const struct access_door_options *options = &access->door->options;
    const char *problem = NULL;
    if (access_make(&access->access, options->settings, options->listener, result, &problem) ==
        WEIR_OK)
        access->problem = NULL;
    else
        access_refuse_session(access, problem);
}

static void on_rights(void *context, enum server_call_fate fate, struct span result,
                      struct span error_json)
{
    struct session_access *access = context;
    access->call = NULL;
    (void)error_json; /* the function's reason is for its owner's log, not for who is refused */
    if (fate == SERVER_CALL_RESULT && result.data != NULL) {
        access_take_rights(access, result);
    } else {
        access_count(access, COUNTER_AUTH_FAILED);
        access_refuse_session(
            access, fate == SERVER_CALL_RESULT ? "the auth function answered nothing"
                    : fate == SERVER_CALL_LATE ? "the auth function did not answer in time"
                    : fate == SERVER_CALL_ERROR
                        ? "the auth function refused the connection, failed or is not there"
                        : "the auth function cannot be asked at the moment");
    }
    access->decided(access->peer);
}

enum access_step session_access_start(struct session_access *access, void (*decided)(void *peer),
                                      void *peer)
{
    const struct settings_listener *listener = access->door->options.listener;
    access->decided = decided;
    access->peer = peer;
    if (*listener->auth_function == '\0') {
        access_take_rights(access, (struct span){0});
        return STEP_GO;
    }
    bool is_asked = access_ask(access, span_text(listener->auth_function),
                               buffer_span(&access->input), on_rights);
    buffer_fini(&access->input);
    if (is_asked)
        return STEP_WAIT;
    access_count(access, COUNTER_AUTH_FAILED);
    access_refuse_session(access, "the auth function cannot be asked at the moment");
    return STEP_GO;
}

/* ---- calls ---- */

static struct access_verdict *access_find_verdict(struct session_access *access,
                                                  struct span name_space, struct span function)
{
    for (unsigned i = 0; i < access->verdict_count; i++) {
        struct access_verdict *verdict = &access->verdicts[i];
        if (span_equal(span_of(verdict->text, verdict->name_space_bytes), name_space) &&
            span_equal(span_of(verdict->text + verdict->name_space_bytes,
                               verdict->bytes - verdict->name_space_bytes),
                       function))
            return verdict;
    }
    return NULL;
}

/* The function's details: is it allowed by its metadata? Anything unclear is no. */
static void on_metadata(void *context, enum server_call_fate fate, struct span result,
                        struct span error_json)
{
    static const char *const names[] = {"metadata"};
    struct session_access *access = context;
    struct access_verdict *verdict = &access->verdicts[access->verdict_count - 1];
    struct json_value metadata;
    (void)error_json;
    access->call = NULL;
    verdict->is_known = true;
    verdict->is_lost = fate == SERVER_CALL_UNAVAILABLE;
    verdict->is_allowed =
        fate == SERVER_CALL_RESULT && result.data != NULL &&
        json_scan_object(result, JSON_DEPTH_MAX, names, 1, &metadata, NULL) == WEIR_OK &&
        access_call(access->access, span_of(verdict->text, verdict->name_space_bytes),
                    span_of(verdict->text + verdict->name_space_bytes,
                            verdict->bytes - verdict->name_space_bytes),
                    &metadata) == ACCESS_ALLOWED;
    access->decided(access->peer);
}

static enum access_step access_ask_metadata(struct session_access *access, struct span name_space,
                                            struct span function)
{
    struct printer printer = {door_out(access->door), WEIR_OK};
    print_literal(&printer, "{\"function_id\":");
    print_string(&printer, function);
    print_literal(&printer, ",\"namespace\":");
    print_string(&printer, name_space);
    print_literal(&printer, "}");
    char *text = malloc(name_space.bytes + function.bytes + 1);
    if (text == NULL || printer.status != WEIR_OK ||
        !access_ask(access, SPAN_LITERAL("engine::functions::info"), buffer_span(printer.out),
                    on_metadata)) {
        free(text);
        return STEP_LOST;
    }
    weir_assert(access->verdict_count < VERDICTS_MAX); /* no message asks more */
    memcpy(text, name_space.data, name_space.bytes);
    if (function.bytes > 0)
        memcpy(text + name_space.bytes, function.data, function.bytes);
    access->verdicts[access->verdict_count++] = (struct access_verdict){
        .text = text,
        .name_space_bytes = name_space.bytes,
        .bytes = name_space.bytes + function.bytes,
    };
    return STEP_WAIT;
}

/* Not counted: what follows from a refusal is the caller's. */
static enum access_step access_decide(struct session_access *access, struct span name_space,
                                      struct span function)
{
    if (name_space.data == NULL || name_space.bytes == 0)
        name_space = SPAN_LITERAL("default");
    if (access_is_open(access->access))
        return STEP_GO;
    /* There is none of that length, and megabytes are not held against thousands of patterns. */
    if (function.bytes > NAME_BYTES_MAX || name_space.bytes > NAME_BYTES_MAX)
        return STEP_REFUSE;
    enum access_decision decision = access_call(access->access, name_space, function, NULL);
    if (decision != ACCESS_ASK)
        return decision == ACCESS_ALLOWED ? STEP_GO : STEP_REFUSE;
    const struct access_verdict *verdict = access_find_verdict(access, name_space, function);
    if (verdict == NULL)
        return access_ask_metadata(access, name_space, function);
    if (verdict->is_lost)
        return STEP_LOST;
    return verdict->is_known && verdict->is_allowed ? STEP_GO : STEP_REFUSE;
}

static enum access_step access_counted(const struct session_access *access, enum access_step step)
{
    if (step == STEP_REFUSE || step == STEP_DROP)
        access_count(access, COUNTER_ACCESS_REFUSED);
    return step;
}

enum access_step session_access_call(struct session_access *access, struct span name_space,
                                     struct span function)
{
    return access_counted(access, access_decide(access, name_space, function));
}

static void print_value(struct printer *printer, struct json_value value)
{
    print_span(printer, value.kind == JSON_ABSENT ? SPAN_LITERAL("null") : value.text);
}

enum weir_status session_access_redirect(struct session_access *access,
                                         struct call_request *request, struct json_value action)
{
    const char *middleware = access->door->options.listener->middleware_function;
    if (*middleware == '\0' || access_is_engine_function(request->function))
        return WEIR_EMPTY;
    struct printer printer = {door_out(access->door), WEIR_OK};
    print_literal(&printer, "{\"function_id\":");
    print_string(&printer, request->function);
    print_literal(&printer, ",\"payload\":");
    print_value(&printer, request->data);
    print_literal(&printer, ",\"action\":");
    print_value(&printer, action);
    print_literal(&printer, ",\"context\":");
    print_span(&printer, access_context(access->access));
    print_literal(&printer, ",\"namespace\":");
    print_string(&printer,
                 request->name_space.data == NULL ? SPAN_LITERAL("default") : request->name_space);
    print_literal(&printer, "}");
    if (printer.status != WEIR_OK)
        return printer.status;
    request->name_space = (struct span){0};
    request->function = span_text(middleware);
    request->data = (struct json_value){
        .text = buffer_span(printer.out), .kind = JSON_OBJECT, .has_space = true};
    return WEIR_OK;
}

const struct session_answer *session_access_filter(struct session_access *access,
                                                   const struct session_answer *answer,
                                                   struct session_answer *shown)
{
    struct json_value function;
    if (access_is_open(access->access) || answer->result.data == NULL ||
        json_scan(answer->function_tag, 1, &function, NULL) != WEIR_OK)
        return answer;
    enum access_listing listing = access_listing_of(function);
    if (listing == ACCESS_LISTING_NONE)
        return answer;
    const char *code = "FORBIDDEN";
    struct buffer *out = door_out(access->door);
    enum weir_status status = access_filter(access->access, listing, answer->result, out, &code);
    *shown = *answer;
    shown->result = status == WEIR_OK ? buffer_span(out) : (struct span){0};
    if (status == WEIR_OK)
        return shown;
    buffer_clear(out);
    access_count(access, COUNTER_ACCESS_REFUSED);
    bool is_missing = strcmp(code, "NOT_FOUND") == 0;
    shown->error_json = SPAN_LITERAL("{\"code\":\"FORBIDDEN\",\"message\":\"not shown\"}");
    if (error_body_append(out, span_text(code),
                          is_missing ? SPAN_LITERAL("there is none of that id this session may see")
                                     : SPAN_LITERAL("this session may not see it")) == WEIR_OK)
        shown->error_json = buffer_span(out);
    return shown;
}

/* ---- names ---- */

static struct span rename_own(const struct access_rename *rename)
{
    return span_of(rename->text, rename->own_bytes);
}

static struct span rename_filed(const struct access_rename *rename)
{
    return span_of(rename->text + rename->own_bytes, rename->filed_bytes);
}

/* Where the rename of `own` is, or the end. */
static struct access_rename **access_find_rename(struct session_access *access,
                                                 enum access_name kind, struct span own)
{
    struct access_rename **at = &access->renames;
    while (*at != NULL && ((*at)->kind != kind || !span_equal(rename_own(*at), own)))
        at = &(*at)->next;
    return at;
}

static void access_forget_rename(struct session_access *access, enum access_name kind,
                                 struct span own)
{
    struct access_rename **at = access_find_rename(access, kind, own);
    struct access_rename *rename = *at;
    if (rename == NULL)
        return;
    *at = rename->next;
    access->rename_count--;
    access->rename_bytes -= rename->own_bytes + rename->filed_bytes;
    free(rename);
}

/* False: too many. */
static bool access_keep_rename(struct session_access *access, enum access_name kind,
                               struct span own, struct span filed)
{
    access_forget_rename(access, kind, own);
    size_t bytes = own.bytes + filed.bytes;
    if (access->rename_count == SESSION_RENAMES_MAX ||
        bytes > SESSION_RENAMES_BYTES_MAX - access->rename_bytes)
        return false;
    struct access_rename *rename = malloc(sizeof *rename + bytes);
    if (rename == NULL)
        return false;
    *rename = (struct access_rename){access->renames, kind, own.bytes, filed.bytes};
    if (own.bytes > 0)
        memcpy(rename->text, own.data, own.bytes);
    if (filed.bytes > 0)
        memcpy(rename->text + own.bytes, filed.data, filed.bytes);
    access->renames = rename;
    access->rename_count++;
    access->rename_bytes += bytes;
    return true;
}

/* In access->names, behind what is there; data NULL: no memory. */
static struct span access_prefixed(struct session_access *access, struct span own)
{
    struct buffer *names = &access->names;
    size_t bytes = access_file_name(access->access, own, NULL);
    if (bytes == own.bytes)
        return own;
    if (bytes > names->capacity_bytes - names->bytes) /* what was put there must not move */
        return (struct span){0};
    char *at = names->data + names->bytes;
    names->bytes += access_file_name(access->access, own, at);
    return span_of(at, bytes);
}

/* Empty, with room for names of this step: `own` and what a hook may have said. */
static bool access_prepare_names(struct session_access *access, size_t own_bytes)
{
    size_t limit_bytes = access->names.limit_bytes;
    size_t need = 2 * (own_bytes + NAME_BYTES_MAX + 2) + 2 * access->hook_answer.bytes;
    if (need > limit_bytes)
        return false;
    buffer_clear(&access->names);
    return buffer_reserve(&access->names, need) == WEIR_OK;
}

static struct span access_file(struct session_access *access, enum access_name kind,
                               struct span own)
{
    const struct access_rename *rename = *access_find_rename(access, kind, own);
    if (rename != NULL)
        return rename_filed(rename);
    return kind == ACCESS_FUNCTION ? access_prefixed(access, own) : own;
}

struct span session_access_filed(struct session_access *access, enum access_name kind,
                                 struct span own)
{
    return access_prepare_names(access, own.bytes) ? access_file(access, kind, own)
                                                   : (struct span){0};
}

struct span session_access_shown(const struct session_access *access, enum access_name kind,
                                 struct span filed)
{
    const struct access_rename *rename = access->renames;
    for (; rename != NULL; rename = rename->next) {
        if (rename->kind == kind && span_equal(rename_filed(rename), filed))
            return rename_own(rename);
    }
    return kind == ACCESS_FUNCTION ? access_show_name(access->access, filed) : filed;
}

/* ---- hooks ---- */

static void on_hook(void *context, enum server_call_fate fate, struct span result,
                    struct span error_json)
{
    struct session_access *access = context;
    struct json_value value;
    (void)error_json;
    access->call = NULL;
    access->has_hook_answer = true;
    access->is_hook_lost = fate == SERVER_CALL_UNAVAILABLE;
    buffer_clear(&access->hook_answer);
    access->hook_allows = fate == SERVER_CALL_RESULT && result.data != NULL &&
                          json_scan(result, JSON_DEPTH_MAX, &value, NULL) == WEIR_OK &&
                          value.kind == JSON_OBJECT &&
                          buffer_append(&access->hook_answer, value.text) == WEIR_OK;
    access->decided(access->peer);
}

/* `printer` holds the input up to its context. */
static enum access_step access_ask_hook(struct session_access *access, const char *hook,
                                        struct printer *printer)
{
    print_literal(printer, ",\"context\":");
    print_span(printer, access_context(access->access));
    print_literal(printer, "}");
    return printer->status == WEIR_OK &&
                   access_ask(access, span_text(hook), buffer_span(printer->out), on_hook)
               ? STEP_WAIT
               : STEP_LOST;
}

/* The members of a hook's answer. False: they cannot be used. */
static bool hook_read(const struct session_access *access, const char *const *names, size_t count,
                      struct json_value *values)
{
    return json_scan_object(buffer_span(&access->hook_answer), JSON_DEPTH_MAX, names, count, values,
                            NULL) == WEIR_OK;
}

/* A string the hook put in the place of `*text`; null and nothing leave it. False: no string. */
static bool hook_rewrite(struct session_access *access, struct json_value value, struct span *text)
{
    if (value.kind == JSON_ABSENT || value.kind == JSON_NULL)
        return true;
    if (value.kind != JSON_STRING)
        return false;
    *text = json_decode(value, &access->names); /* there is room, see access_prepare_names() */
    return true;
}

/* ---- registrations ---- */

/* Ids the settings name: who decides about connections, calls and registrations. A session that
 * got hold of one, also as the stand-by of a worker that restarts, would see every token. */
static bool function_is_configured(const struct settings *settings, struct span filed)
{
    if (span_equal(filed, span_text(settings->auth_function)))
        return true;
    for (uint32_t i = 0; i < settings->listener_count; i++) {
        const struct settings_listener *listener = &settings->listeners[i];
        const char *const ids[] = {listener->auth_function, listener->middleware_function,
                                   listener->function_hook, listener->trigger_hook,
                                   listener->trigger_type_hook};
        for (size_t k = 0; k < sizeof ids / sizeof ids[0]; k++) {
            if (span_equal(filed, span_text(ids[k])))
                return true;
        }
    }
    return false;
}

/* Ids that steer the server itself: custom stream adapters, queues, what the settings name. They
 * are for workers that are trusted. */
static bool function_is_reserved(const struct session_access *access, struct span filed)
{
    static const char *const starts[] = {"stream::", "engine::"};
    for (size_t i = 0; i < 2 && !access_is_open(access->access); i++) {
        size_t bytes = strlen(starts[i]);
        if (filed.bytes >= bytes && memcmp(filed.data, starts[i], bytes) == 0)
            return true;
    }
    return !access_is_open(access->access) &&
           function_is_configured(access->door->options.settings, filed);
}

static enum access_step access_ask_function_hook(struct session_access *access, const char *hook,
                                                 const struct session_registration *function)
{
    struct printer printer = {door_out(access->door), WEIR_OK};
    print_literal(&printer, "{\"function_id\":");
    print_string(&printer, function->function);
    print_string_member(&printer, SPAN_LITERAL(",\"description\":"), function->description);
    print_member(&printer, SPAN_LITERAL(",\"metadata\":"), function->metadata);
    return access_ask_hook(access, hook, &printer);
}

static bool access_apply_function_hook(struct session_access *access,
                                       struct session_registration *function)
{
    enum { ID, DESCRIPTION, METADATA, COUNT };
    static const char *const names[COUNT] = {"function_id", "description", "metadata"};
    struct json_value values[COUNT];
    if (!access->hook_allows || !hook_read(access, names, COUNT, values) ||
        !hook_rewrite(access, values[ID], &function->function) ||
        !hook_rewrite(access, values[DESCRIPTION], &function->description))
        return false;
    if (values[METADATA].kind != JSON_ABSENT && values[METADATA].kind != JSON_NULL)
        function->metadata = values[METADATA].text;
    return true;
}

/* Where `own`, called `wanted` by the hook, is filed. */
static enum access_step access_enter_name(struct session_access *access, enum access_name kind,
                                          struct span own, struct span *wanted)
{
    bool is_renamed = !span_equal(own, *wanted);
    struct span filed = kind == ACCESS_FUNCTION ? access_prefixed(access, *wanted) : *wanted;
    if (filed.data == NULL)
        return STEP_DROP;
    if (!is_renamed)
        access_forget_rename(access, kind, own);
    else if (!access_keep_rename(access, kind, own, filed))
        return STEP_DROP;
    *wanted = filed;
    return STEP_GO;
}

static enum access_step access_step_function(struct session_access *access,
                                             struct session_registration *function)
{
    const char *hook = access->door->options.listener->function_hook;
    struct span own = function->function;
    if (!access_may_register_functions(access->access))
        return STEP_DROP;
    if (*hook != '\0' && !access->has_hook_answer)
        return access_ask_function_hook(access, hook, function);
    if (access->has_hook_answer && access->is_hook_lost)
        return STEP_LOST;
    if (!access_prepare_names(access, own.bytes) ||
        (*hook != '\0' && !access_apply_function_hook(access, function)))
        return STEP_DROP;
    enum access_step step = access_enter_name(access, ACCESS_FUNCTION, own, &function->function);
    return step == STEP_GO && function_is_reserved(access, function->function) ? STEP_DROP : step;
}

enum access_step session_access_function(struct session_access *access,
                                         struct session_registration *function)
{
    return access_counted(access, access_step_function(access, function));
}

static enum access_step access_ask_type_hook(struct session_access *access, const char *hook,
                                             const struct access_trigger_type *type)
{
    struct printer printer = {door_out(access->door), WEIR_OK};
    print_literal(&printer, "{\"trigger_type_id\":");
    print_string(&printer, type->id);
    print_literal(&printer, ",\"description\":");
    print_string(&printer, type->description);
    return access_ask_hook(access, hook, &printer);
}

static enum access_step access_step_type(struct session_access *access,
                                         struct access_trigger_type *type)
{
    enum { ID, DESCRIPTION, COUNT };
    static const char *const names[COUNT] = {"trigger_type_id", "description"};
    struct json_value values[COUNT];
    const char *hook = access->door->options.listener->trigger_type_hook;
    struct span own = type->id;
    if (!access_may_register_trigger_types(access->access))
        return STEP_DROP;
    if (*hook == '\0')
        return STEP_GO;
    if (!access->has_hook_answer)
        return access_ask_type_hook(access, hook, type);
    if (access->is_hook_lost)
        return STEP_LOST;
    if (!access->hook_allows || !access_prepare_names(access, own.bytes) ||
        !hook_read(access, names, COUNT, values) || !hook_rewrite(access, values[ID], &type->id) ||
        !hook_rewrite(access, values[DESCRIPTION], &type->description))
        return STEP_DROP;
    return access_enter_name(access, ACCESS_TRIGGER_TYPE, own, &type->id);
}

enum access_step session_access_trigger_type(struct session_access *access,
                                             struct access_trigger_type *type)
{
    return access_counted(access, access_step_type(access, type));
}

/* The function that decides whether a trigger's function is called is called as well. */
static enum access_step access_decide_condition(struct session_access *access,
                                                const struct access_trigger *trigger,
                                                struct span type, struct span name_space)
{
    static const char *const names[] = {"condition_function_id"};
    struct json_value id;
    char text[NAME_ESCAPED_BYTES_MAX + 2];
    if (trigger_type_by_name(type) == NULL || trigger->config.kind != JSON_OBJECT)
        return STEP_GO; /* its provider reads the config */
    if (json_scan_object(trigger->config.text, JSON_DEPTH_MAX, names, 1, &id, NULL) != WEIR_OK)
        return STEP_REFUSE;
    if (id.kind != JSON_STRING)
        return STEP_GO; /* none, or a config that is refused for it */
    if (id.text.bytes > sizeof text)
        return STEP_REFUSE;
    return access_decide(access, name_space, span_of(text, json_unescape(text, id)));
}

static enum access_step access_ask_trigger_hook(struct session_access *access, const char *hook,
                                                const struct access_trigger *trigger)
{
    struct printer printer = {door_out(access->door), WEIR_OK};
    print_literal(&printer, "{\"trigger_id\":");
    print_string(&printer, trigger->id);
    print_literal(&printer, ",\"trigger_type\":");
    print_string(&printer, trigger->type);
    print_literal(&printer, ",\"function_id\":");
    print_string(&printer, trigger->function);
    print_literal(&printer, ",\"config\":");
    print_value(&printer, trigger->config);
    print_member(&printer, SPAN_LITERAL(",\"metadata\":"), trigger->metadata);
    return access_ask_hook(access, hook, &printer);
}

static bool access_apply_trigger_hook(struct session_access *access, struct access_trigger *trigger)
{
    enum { ID, TYPE, FUNCTION, CONFIG, COUNT };
    static const char *const names[COUNT] = {"trigger_id", "trigger_type", "function_id", "config"};
    struct json_value values[COUNT];
    if (!access->hook_allows || !hook_read(access, names, COUNT, values) ||
        !hook_rewrite(access, values[ID], &trigger->id) ||
        !hook_rewrite(access, values[TYPE], &trigger->type) ||
        !hook_rewrite(access, values[FUNCTION], &trigger->function))
        return false;
    if (values[CONFIG].kind != JSON_ABSENT)
        trigger->config = values[CONFIG];
    return true;
}

static enum access_step access_decide_trigger(struct session_access *access,
                                              const struct access_trigger *trigger,
                                              struct span name_space)
{
    struct span type = access_file(access, ACCESS_TRIGGER_TYPE, trigger->type);
    if (!access_may_use_trigger_type(access->access, type))
        return STEP_REFUSE;
    if (!access_prepare_names(access, trigger->function.bytes))
        return STEP_REFUSE;
    struct span filed = access_file(access, ACCESS_FUNCTION, trigger->function);
    enum access_step step =
        filed.data == NULL ? STEP_REFUSE : access_decide(access, name_space, filed);
    return step == STEP_GO ? access_decide_condition(access, trigger, type, name_space) : step;
}

/* The rights are those of what the worker said; what a hook makes of it is the hook's decision. */
static enum access_step access_step_trigger(struct session_access *access,
                                            struct span session_space,
                                            struct access_trigger *trigger)
{
    const char *hook = access->door->options.listener->trigger_hook;
    struct span own = trigger->id;
    struct span name_space = trigger->name_space.data != NULL ? trigger->name_space
                             : session_space.data != NULL     ? session_space
                                                              : SPAN_LITERAL("default");
    if (access_is_open(access->access) || span_is_blank(name_space))
        return STEP_GO; /* a blank namespace is refused for what it is */
    enum access_step step = access_decide_trigger(access, trigger, name_space);
    if (step != STEP_GO)
        return step;
    if (*hook != '\0' && !access->has_hook_answer)
        return access_ask_trigger_hook(access, hook, trigger);
    if (access->has_hook_answer && access->is_hook_lost)
        return STEP_LOST;
    if (!access_prepare_names(access, trigger->function.bytes) ||
        (*hook != '\0' && !access_apply_trigger_hook(access, trigger)))
        return STEP_DROP;
    trigger->function = access_file(access, ACCESS_FUNCTION, trigger->function);
    trigger->type = access_file(access, ACCESS_TRIGGER_TYPE, trigger->type);
    trigger->name_space = name_space;
    return trigger->function.data == NULL
               ? STEP_DROP
               : access_enter_name(access, ACCESS_TRIGGER, own, &trigger->id);
}

enum access_step session_access_trigger(struct session_access *access, struct span session_space,
                                        struct access_trigger *trigger)
{
    return access_counted(access, access_step_trigger(access, session_space, trigger));
}

#include "gateway/doors.h"

#include <stdlib.h>

/* What ws.h carries as `user`: which kind of owner it is, and the owner. */
struct entrant {
    enum ws_role role;
    union {
        struct worker *worker;
        struct stream_socket *socket;
        struct channel_socket *channel;
    };
    struct auth_ticket *ticket;       /* auth is being asked; NULL: not, or not any more */
    struct ws_connection *connection; /* whom the ticket is about */
};

enum weir_status doors_open(struct doors *doors, const struct settings *settings,
                            struct server_calls *calls)
{
    for (uint32_t i = 0; i < settings->listener_count; i++) {
        const struct access_door_options options = {
            .settings = settings,
            .listener = &settings->listeners[i],
            .calls = calls,
            .counters = doors->counters,
        };
        doors->listeners[i] = access_door_open(&options);
        if (doors->listeners[i] == NULL)
            return WEIR_NO_MEMORY;
    }
    return WEIR_OK;
}

void doors_close(struct doors *doors)
{
    for (unsigned i = 0; i < SETTINGS_LISTENERS_MAX; i++)
        access_door_close(doors->listeners[i]);
}

/* ---- upgrades ---- */

static void entrant_free(struct entrant *entrant)
{
    if (entrant->ticket != NULL)
        auth_cancel(entrant->ticket);
    if (entrant->role == WS_ROLE_CHANNEL)
        channel_socket_refused(entrant->channel);
    else if (entrant->role == WS_ROLE_WORKER)
        worker_free(entrant->worker);
    else
        stream_socket_free(entrant->socket);
    free(entrant);
}

/* Why a request is refused, in words; the status of an event stream the gates have not let pass. */
static const char *status_refusal(unsigned http_status)
{
    switch (http_status) {
    case 401:
        return "the authorization is missing or was refused";
    case 403:
        return "the join was denied";
    case 503:
        return "it cannot be decided at present; come back later";
    default:
        return NULL;
    }
}

static unsigned verdict_status(enum gate_verdict verdict)
{
    return verdict == GATE_PASSED ? 0 : verdict == GATE_DENIED ? 403 : 503;
}

static void on_admitted(void *context, enum gate_verdict verdict)
{
    struct entrant *entrant = context;
    unsigned http_status = verdict_status(verdict);
    if (http_status != 0)
        ws_upgrade_refuse(entrant->connection, http_status,
                          status_refusal(http_status)); /* frees it */
    else
        ws_upgrade_accept(entrant->connection, WS_ROLE_STREAM);
}

static void on_auth(void *context, struct auth_decision decision)
{
    struct entrant *entrant = context;
    enum gate_verdict verdict = GATE_PASSED;
    entrant->ticket = NULL;
    if (decision.http_status != 0) {
        ws_upgrade_refuse(entrant->connection, decision.http_status,
                          status_refusal(decision.http_status)); /* frees it */
        return;
    }
    stream_socket_set_context(entrant->socket, decision.context);
    if (stream_socket_is_event_stream(entrant->socket))
        verdict = stream_socket_ask(entrant->socket, on_admitted, entrant);
    if (verdict != GATE_WAITING)
        on_admitted(entrant, verdict);
}

/* It is authorized: WAITING if gates are asked first. */
static enum gate_verdict doors_ask_gates(struct entrant *entrant)
{
    if (!stream_socket_is_event_stream(entrant->socket))
        return GATE_PASSED; /* they are asked when it is open */
    return stream_socket_ask(entrant->socket, on_admitted, entrant);
}

static enum ws_role doors_authenticate(struct doors *doors, struct ws_request *request,
                                       struct entrant *entrant)
{
    struct auth_decision decision;
    enum gate_verdict verdict;
    entrant->connection = request->connection;
    switch (auth_ask(doors->auth, request, on_auth, entrant, &entrant->ticket, &decision)) {
    case AUTH_ACCEPTED:
        stream_socket_set_context(entrant->socket, decision.context);
        verdict = doors_ask_gates(entrant);
        if (verdict == GATE_PASSED || verdict == GATE_WAITING)
            return verdict == GATE_WAITING ? WS_ROLE_HELD : WS_ROLE_STREAM;
        request->http_status = verdict_status(verdict);
        break;
    case AUTH_PENDING:
        return WS_ROLE_HELD;
    case AUTH_REFUSED:
        request->http_status = decision.http_status;
        break;
    }
    if (request->is_event_stream)
        request->refusal = status_refusal(request->http_status);
    request->user = NULL;
    entrant_free(entrant);
    return WS_ROLE_NONE;
}

static bool doors_make_worker(struct doors *doors, struct ws_request *request,
                              struct entrant *entrant)
{
    struct session_access *access = NULL;
    request->http_status = 503;
    if (request->port >= WS_PORT_LISTENER) {
        access = session_access_make(doors->listeners[request->port - WS_PORT_LISTENER], request);
        if (access == NULL)
            return false;
    }
    entrant->worker = worker_make(doors->workers);
    if (entrant->worker == NULL) {
        session_access_free(access);
        request->http_status = 503;
        return false;
    }
    worker_set_access(entrant->worker, access);
    request->http_status = 0;
    return true;
}

/* False: refused, request->http_status says with what. */
static bool doors_make_owner(struct doors *doors, struct ws_request *request,
                             struct entrant *entrant)
{
    switch (entrant->role) {
    case WS_ROLE_CHANNEL:
        entrant->channel = channel_socket_make(doors->channels, request);
        return entrant->channel != NULL;
    case WS_ROLE_STREAM:
        entrant->socket = stream_socket_make(doors->streams, request);
        return entrant->socket != NULL;
    default:
        return doors_make_worker(doors, request, entrant);
    }
}

static enum ws_role doors_role(const struct ws_request *request)
{
    if (request->port == WS_PORT_STREAM)
        return WS_ROLE_STREAM;
    if (request->port == WS_PORT_ADMIN)
        return WS_ROLE_NONE;
    return channel_sockets_is_path(request->path) ? WS_ROLE_CHANNEL
                                                  : worker_channel_role(request->path);
}

bool doors_is_event_stream(const struct ws_request *request)
{
    static const struct span prefix = {"/sse/", 5};
    return request->port == WS_PORT_STREAM && request->path.bytes >= prefix.bytes &&
           memcmp(request->path.data, prefix.data, prefix.bytes) == 0;
}

enum ws_role doors_upgrade(struct doors *doors, struct ws_request *request)
{
    enum ws_role role = doors_role(request);
    if (role == WS_ROLE_NONE) {
        request->http_status = 404;
        counters_add(doors->counters, COUNTER_UPGRADES_REFUSED, 1);
    }
    if (role != WS_ROLE_NONE && doors->is_closed) {
        request->http_status = 503;
        return WS_ROLE_NONE;
    }
    if (role == WS_ROLE_NONE || role == WS_ROLE_TELEMETRY)
        return role;
    struct entrant *entrant = calloc(1, sizeof *entrant);
    if (entrant == NULL) {
        request->http_status = 503;
        return WS_ROLE_NONE;
    }
    entrant->role = role;
    if (!doors_make_owner(doors, request, entrant)) {
        free(entrant);
        return WS_ROLE_NONE;
    }
    request->user = entrant;
    if (role == WS_ROLE_STREAM)
        return doors_authenticate(doors, request, entrant);
    return role == WS_ROLE_CHANNEL ? WS_ROLE_HELD : role;
}

/* ---- sockets ---- */

void doors_refused(void *context, void *user)
{
    struct entrant *entrant = user;
    (void)context;
    if (entrant != NULL)
        entrant_free(entrant);
}

void doors_opened(void *context, struct ws_connection *connection, enum ws_role role, void *user)
{
    struct entrant *entrant = user;
    (void)context;
    if (role == WS_ROLE_WORKER)
        worker_opened(entrant->worker, connection);
    else if (role == WS_ROLE_STREAM)
        stream_socket_opened(entrant->socket, connection);
    else if (role == WS_ROLE_CHANNEL)
        channel_socket_opened(entrant->channel);
}

void doors_message(void *context, struct ws_connection *connection, struct span message,
                   bool is_binary)
{
    struct entrant *entrant = ws_user(connection);
    (void)context;
    if (entrant->role == WS_ROLE_CHANNEL)
        channel_socket_message(entrant->channel, message, is_binary);
    else if (entrant->role == WS_ROLE_WORKER)
        worker_message(entrant->worker, message, is_binary);
    else
        stream_socket_message(entrant->socket, message);
}

void doors_writable(void *context, struct ws_connection *connection)
{
    struct entrant *entrant = ws_user(connection);
    (void)context;
    if (entrant->role == WS_ROLE_STREAM)
        stream_socket_writable(entrant->socket);
}

void doors_closed(void *context, struct ws_connection *connection)
{
    struct entrant *entrant = ws_user(connection);
    (void)context;
    if (entrant->role == WS_ROLE_CHANNEL)
        channel_socket_closed(entrant->channel);
    else if (entrant->role == WS_ROLE_WORKER)
        worker_closed(entrant->worker);
    else
        stream_socket_closed(entrant->socket);
    free(entrant);
}

bool doors_let_go(struct ws_connection *connection)
{
    const struct entrant *entrant = ws_user(connection);
    return worker_let_go(entrant->worker);
}

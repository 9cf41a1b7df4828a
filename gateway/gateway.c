#include "gateway/gateway.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

#include "gateway/caller.h"
#include "gateway/departure.h"
#include "gateway/doors.h"
#include "gateway/http.h"
#include "gateway/listener.h"
#include "gateway/turn.h"

enum { CLOSE_GRACE_MS = 2000, PORTS = WS_PORT_LISTENER + SETTINGS_LISTENERS_MAX };

/* Only this file sees all parts; each part is given what it needs. */
struct gateway {
    const struct gateway_options *options;
    uv_loop_t loop;
    struct counters counters;
    struct retry retry;

    /* who comes in */
    struct ws_server *ws;
    struct doors doors;
    struct local *local;
    struct listener *listeners[PORTS];
    struct gateway_port {
        struct gateway *gateway;
        enum ws_port port;
        bool tls;
    } ports[PORTS];

    /* the broker, and what goes through it */
    struct link *link;
    struct mapping *mapping;
    struct server_calls *server_calls;
    struct local_presence *presence;
    struct custom_streams *custom;

    /* workers */
    struct sessions sessions;
    struct worker_channel *workers;
    struct channel_sockets *channels;
    struct triggers *triggers;

    /* subscribers */
    struct subscriptions subscriptions;
    struct feed feed;
    struct fanout *fanout;
    struct catch_up *catch_up;
    struct joins *joins;
    struct stream_channel streams;
    struct auth *auth;
    struct gates *gates;

    struct turn *turn;
    uv_signal_t signals[2];
    struct departure *departure; /* NULL: nobody has asked for it */
    bool is_drained;
    bool is_listening, is_ready;
    bool has_signals;
};

/* ---- sockets ---- */

static bool is_event_stream(void *context, const struct ws_request *request)
{
    (void)context;
    return doors_is_event_stream(request);
}

static enum ws_role on_upgrade(void *context, struct ws_request *request)
{
    struct gateway *gateway = context;
    return doors_upgrade(&gateway->doors, request);
}

static void on_http(void *context, const struct ws_request *request, struct ws_http_answer *answer)
{
    struct gateway *gateway = context;
    const struct http_view view = {
        .segment = gateway->mapping == NULL ? NULL : &gateway->mapping->segment,
        .counters = &gateway->counters,
        .is_attached = link_is_attached(gateway->link),
        .is_responsive = link_is_responsive(gateway->link),
        .is_draining = gateway->departure != NULL,
        .gateway_index = gateway->options->index,
    };
    http_answer(&view, request, answer);
}

/* ---- broker ---- */

/* A line to whoever has started the gateway: one that does not read, or is gone, is not waited for. */
static void gateway_tell(const struct gateway *gateway, const char *line)
{
    if (gateway->options->ready_fd < 0)
        return;
    ssize_t bytes = (ssize_t)strlen(line);
    if (write(gateway->options->ready_fd, line, (size_t)bytes) != bytes && !gateway->is_drained)
        (void)fprintf(stderr, "weir-gateway: event=not_told errno=%d\n", errno);
}

static void gateway_check_ready(struct gateway *gateway)
{
    if (gateway->is_ready || !gateway->is_listening || gateway->mapping == NULL)
        return;
    gateway->is_ready = true;
    for (uint32_t i = 0; i < gateway->options->settings->listener_count; i++)
        (void)fprintf(stderr,
                      "weir-gateway: event=listening gateway=%llu worker_listener_port=%u\n",
                      (unsigned long long)gateway->options->index,
                      listener_port(gateway->listeners[WS_PORT_LISTENER + i]));
    (void)fprintf(stderr,
                  "weir-gateway: event=ready gateway=%llu stream_port=%u worker_port=%u io=%s\n",
                  (unsigned long long)gateway->options->index,
                  listener_port(gateway->listeners[WS_PORT_STREAM]),
                  listener_port(gateway->listeners[WS_PORT_WORKER]),
                  ws_has_uring(gateway->ws) ? "uring" : "plain");
    gateway_tell(gateway, "ready\n");
}

static bool on_attaching(void *context, uint64_t *commit)
{
    struct gateway *gateway = context;
    if (!turn_has_drained(gateway->turn))
        return false;
    *commit = gateway->feed.is_commit_known ? gateway->feed.commit : 0;
    return true;
}

/* Let the new ring be read from where the old one was read to. False: what is between is not known, or
 * not there. */
static bool gateway_read_on(const struct gateway *gateway, const struct link_attachment *attachment)
{
    const struct mapping *old = gateway->mapping;
    struct mapping *mapping = attachment->mapping;
    if (old->generation == mapping->generation) /* the link was cut, the broker lives on */
        return mapping_read_from(mapping, old->ring.position);
    return gateway->feed.is_commit_known && mapping_read_from(mapping, attachment->position);
}

/* Whoever subscribes goes on where it stands. */
static void gateway_resume(struct gateway *gateway, const struct link_attachment *attachment,
                           bool reads_on)
{
    counters_add(&gateway->counters, COUNTER_LINK_RESUMED, 1);
    subscriptions_resume(&gateway->subscriptions, attachment->mapping->hash_seed);
    if (!reads_on)
        feed_lapped(&gateway->feed);
}

static void on_attached(void *context, const struct link_attachment *attachment)
{
    struct gateway *gateway = context;
    struct mapping *old = gateway->mapping, *mapping = attachment->mapping;
    bool is_resumed = attachment->is_kept && old != NULL;
    bool reads_on = is_resumed && gateway_read_on(gateway, attachment);
    if (turn_set_mapping(gateway->turn, mapping, reads_on) != WEIR_OK)
        (void)fprintf(
            stderr, "weir-gateway: event=doorbell_unusable\n"); /* the heal timer serves, slowly */
    gateway->mapping = mapping;
    gateway->sessions.mapping = mapping;
    catch_up_set_mapping(gateway->catch_up, mapping);
    triggers_set_mapping(gateway->triggers, mapping, is_resumed);
    joins_set_mapping(gateway->joins, mapping);
    subscriptions_set_reader(&gateway->subscriptions, &mapping->reader);
    if (is_resumed)
        gateway_resume(gateway, attachment, reads_on);
    else
        subscriptions_restart(&gateway->subscriptions, mapping->hash_seed, "restarted");
    if (attachment->is_kept && !reads_on && mapping_read_from(mapping, attachment->position))
        feed_start_behind(&gateway->feed, attachment->commit);
    counters_attach(&gateway->counters, &mapping->reader);
    local_presence_attached(gateway->presence, mapping->generation, uv_hrtime() / 1000000);
    mapping_close(old);
    custom_streams_clear(gateway->custom);
    sessions_announce(&gateway->sessions);
    gates_attached(gateway->gates, mapping->generation);
    gateway_check_ready(gateway);
}

static void on_lost(void *context)
{
    struct gateway *gateway = context;
    local_presence_lost(gateway->presence);
    sessions_forget_invocations(&gateway->sessions);
    channel_sockets_lost(gateway->channels);
    gates_lost(gateway->gates);
}

static void on_broker_message(void *context, const struct wire_message *message)
{
    struct gateway *gateway = context;
    switch (message->type) {
    case WIRE_STREAM_CUSTOM:
        custom_streams_set(gateway->custom, message->fields[1].span,
                           message->fields[0].number != 0);
        return;
    case WIRE_GATE_BIND:
    case WIRE_GATE_UNBIND:
    case WIRE_GATES_TOLD:
        gates_take_message(gateway->gates, message);
        return;
    default:
        if (!local_presence_take(gateway->presence, message) &&
            !channel_sockets_take(gateway->channels, message))
            sessions_take_message(&gateway->sessions, message);
    }
}

static void on_post(void *context, enum wire_type type, const struct wire_field *fields)
{
    const struct gateway *gateway = context;
    link_post(gateway->link, type, 0, fields);
}

static void on_heard(void *context)
{
    const struct gateway *gateway = context;
    custom_streams_told(gateway->custom);
}

static size_t on_presence_backlog(void *context)
{
    const struct gateway *gateway = context;
    return link_backlog_bytes(gateway->link);
}

/* ---- start ---- */

static enum weir_status no_memory(struct weir_error *error)
{
    return weir_fail(error, WEIR_NO_MEMORY, "no memory to start a gateway");
}

static enum weir_status gateway_open_workers(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    const struct sessions_limits limits = {
        .calls_max = settings->session_calls_max,
        .calls_bytes_max = settings->session_calls_bytes_max,
        .value_bytes_max = settings->value_bytes_max,
    };
    sessions_init(&gateway->sessions, &limits, &gateway->counters);
    gateway->custom = custom_streams_open();
    gateway->sessions.custom = gateway->custom;
    gateway->workers = worker_channel_open(&gateway->sessions, &gateway->counters);
    gateway->channels = channel_sockets_open(&gateway->counters);
    gateway->server_calls = server_calls_open(&gateway->counters);
    if (gateway->custom == NULL || gateway->workers == NULL || gateway->channels == NULL ||
        gateway->server_calls == NULL)
        return no_memory(error);
    return WEIR_OK;
}

static enum weir_status gateway_open_triggers(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    const struct triggers_calls calls = {gateway->server_calls, server_call_start,
                                         server_call_cancel, server_calls_are_flowing};
    const struct triggers_options options = {
        .queue_max = settings->trigger_queue_max,
        .timeout_ms = settings->trigger_timeout_ms,
    };
    gateway->triggers = triggers_open(&calls, &options, &gateway->counters);
    if (gateway->triggers == NULL)
        return no_memory(error);
    gateway->feed.triggers = gateway->triggers;
    gateway->sessions.runner =
        (struct session_trigger_runner){gateway->triggers, triggers_add, triggers_remove};
    return WEIR_OK;
}

static enum weir_status gateway_open_ws(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    const struct ws_options options = {
        .tls_certificate_path =
            settings->tls_certificate[0] == '\0' ? NULL : settings->tls_certificate,
        .tls_key_path = settings->tls_key[0] == '\0' ? NULL : settings->tls_key,
        .handshake_timeout_ms = (unsigned)settings->handshake_timeout_ms,
        .ping_interval_ms = (unsigned)settings->ping_interval_ms,
        .idle_timeout_ms = (unsigned)settings->idle_timeout_ms,
        .connections_max = (unsigned)settings->connections_max,
        .use_uring = settings->io != SETTINGS_IO_PLAIN,
        .retry = &gateway->retry,
        .counters = &gateway->counters,
    };
    const struct ws_handlers handlers = {
        .is_event_stream = is_event_stream,
        .on_upgrade = on_upgrade,
        .on_refused = doors_refused,
        .on_open = doors_opened,
        .on_message = doors_message,
        .on_writable = doors_writable,
        .on_close = doors_closed,
        .on_http = on_http,
        .context = gateway,
    };
    return ws_server_open(&gateway->ws, &gateway->loop, &options, &handlers, error);
}

static enum weir_status gateway_open_subscribers(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    struct counters *counters = &gateway->counters;
    struct subscriptions *subscriptions = &gateway->subscriptions;
    if (subscriptions_init(subscriptions, settings->subscriptions_max,
                           settings->duplicate_deliveries, counters) != WEIR_OK ||
        feed_init(&gateway->feed, counters) != WEIR_OK)
        return no_memory(error);
    const struct outlet outlet = stream_outlet(gateway->ws);
    gateway->fanout = fanout_open(subscriptions, &outlet, counters);
    gateway->catch_up = catch_up_open(subscriptions, &outlet, counters);
    if (gateway->catch_up != NULL)
        gateway->joins = joins_open(subscriptions, gateway->catch_up, &outlet, counters);
    const struct local_presence_output presence = {on_post, on_presence_backlog, gateway};
    gateway->presence = local_presence_open(subscriptions, &presence, counters);
    if (gateway->fanout == NULL || gateway->joins == NULL || gateway->presence == NULL)
        return no_memory(error);
    gateway->streams = (struct stream_channel){
        .subscriptions = subscriptions,
        .joins = gateway->joins,
        .counters = counters,
        .retry = &gateway->retry,
        .settings = settings,
    };
    stream_channel_init(&gateway->streams);
    return WEIR_OK;
}

/* Who may come in, and who may join. */
static enum weir_status gateway_open_doors(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    const struct caller caller = caller_of(gateway->server_calls);
    const struct gates_options options = {
        .timeout_ms = settings->gate_timeout_ms,
        .is_closed = settings->join_gate != SETTINGS_GATE_OPEN,
        .decided = stream_socket_decided,
        .context = &gateway->streams,
        .post = on_post,
        .post_context = gateway,
        .heard = on_heard,
        .heard_context = gateway,
    };
    gateway->auth = auth_open(settings, &caller, &gateway->counters);
    gateway->gates = gates_open(&options, &caller, &gateway->counters);
    if (gateway->auth == NULL || gateway->gates == NULL)
        return no_memory(error);
    gateway->streams.gates = gateway->gates;
    gateway->doors = (struct doors){
        .streams = &gateway->streams,
        .workers = gateway->workers,
        .channels = gateway->channels,
        .auth = gateway->auth,
        .counters = &gateway->counters,
    };
    if (doors_open(&gateway->doors, settings, gateway->server_calls) != WEIR_OK)
        return no_memory(error);
    return WEIR_OK;
}

static enum weir_status gateway_open_link(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    char path[SETTINGS_TEXT_BYTES + 16];
    (void)snprintf(path, sizeof path, "%s/broker.sock", settings->run_dir);
    const struct link_options options = {
        .socket_path = path,
        .gateway_index = gateway->options->index,
        .wait_ms = settings->write_wait_ms,
        .wait_bytes_max = settings->write_wait_bytes_max,
    };
    const struct link_handlers handlers = {
        .on_attaching = on_attaching,
        .on_attached = on_attached,
        .on_lost = on_lost,
        .on_message = on_broker_message,
        .context = gateway,
    };
    gateway->link = link_open(&gateway->loop, &options, &handlers, &gateway->counters);
    if (gateway->link == NULL)
        return no_memory(error);
    gateway->sessions.link = gateway->link;
    channel_sockets_set_link(gateway->channels, gateway->link);
    server_calls_set_link(gateway->server_calls, gateway->link);
    joins_set_broker(gateway->joins, link_ask, gateway->link, gateway->custom);
    return WEIR_OK;
}

static enum weir_status gateway_open_turn(struct gateway *gateway, struct weir_error *error)
{
    const struct turn_parts parts = {
        .feed = &gateway->feed,
        .fanout = gateway->fanout,
        .catch_up = gateway->catch_up,
        .joins = gateway->joins,
        .subscriptions = &gateway->subscriptions,
        .presence = gateway->presence,
        .link = gateway->link,
        .sessions = &gateway->sessions,
        .server_calls = gateway->server_calls,
        .triggers = gateway->triggers,
        .ws = gateway->ws,
        .workers = gateway->workers,
        .channels = gateway->channels,
        .local = gateway->local,
        .gates = gateway->gates,
        .counters = &gateway->counters,
        .flush_interval_ms = gateway->options->settings->flush_interval_ms,
    };
    gateway->turn = turn_open(&gateway->loop, &parts);
    return gateway->turn == NULL ? no_memory(error) : WEIR_OK;
}

static void on_accept(void *context, int fd)
{
    struct gateway_port *port = context;
    ws_server_adopt(port->gateway->ws, fd, port->port, port->tls);
}

static enum weir_status gateway_listen(struct gateway *gateway, enum ws_port port, const char *host,
                                       uint16_t number, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    gateway->ports[port] = (struct gateway_port){
        gateway, port, port == WS_PORT_STREAM && settings->tls_certificate[0] != '\0'};
    const struct listener_options options = {
        .host = host,
        .port = number,
        .reuse_port = true,
        .accepts_per_turn = gateway->ports[port].tls ? LISTENER_ACCEPTS_PER_TURN_TLS : 0,
        .on_accept = on_accept,
        .context = &gateway->ports[port],
    };
    return listener_open(&gateway->listeners[port], &gateway->loop, &options, error);
}

static enum weir_status gateway_listen_local(struct gateway *gateway, struct weir_error *error)
{
    int fd = gateway->options->local_fd;
    /* Shared with other gateways: whoever comes too late for a connection must not wait in accept. */
    if (fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        return weir_fail_errno(error, errno, "--local-fd %d cannot be used", fd);
    if (fd < 0) {
        char path[SETTINGS_TEXT_BYTES + 16];
        (void)snprintf(path, sizeof path, "%s/weir.sock", gateway->options->settings->run_dir);
        enum weir_status status = local_bind(path, &fd, error);
        if (status != WEIR_OK)
            return status;
    }
    return local_open(&gateway->local, &gateway->loop, fd, &gateway->sessions, &gateway->counters,
                      error);
}

static enum weir_status gateway_listen_all(struct gateway *gateway, struct weir_error *error)
{
    const struct settings *settings = gateway->options->settings;
    enum weir_status status = gateway_listen(gateway, WS_PORT_STREAM, settings->stream_host,
                                             (uint16_t)settings->stream_port, error);
    if (status == WEIR_OK)
        status = gateway_listen(gateway, WS_PORT_WORKER, settings->worker_host,
                                (uint16_t)settings->worker_port, error);
    if (status == WEIR_OK && strcmp(settings->admin, "false") != 0 && settings->admin[0] != '\0') {
        char host[SETTINGS_TEXT_BYTES];
        uint16_t port = 0;
        status = settings_host_port(settings->admin, host, &port, error);
        if (status == WEIR_OK)
            status = gateway_listen(gateway, WS_PORT_ADMIN, host, port, error);
    }
    for (uint32_t i = 0; i < settings->listener_count && status == WEIR_OK; i++)
        status = gateway_listen(gateway, (enum ws_port)(WS_PORT_LISTENER + i),
                                settings->listeners[i].host, (uint16_t)settings->listeners[i].port,
                                error);
    return status;
}

static enum weir_status gateway_start(struct gateway *gateway, struct weir_error *error)
{
    /* In this order: each needs what those before it have opened. */
    enum weir_status (*const steps[])(struct gateway *, struct weir_error *) = {
        gateway_open_workers,  gateway_open_ws,    gateway_open_subscribers,
        gateway_open_triggers, gateway_open_doors, gateway_listen_local,
        gateway_open_link,     gateway_open_turn,  gateway_listen_all,
    };
    enum weir_status status = WEIR_OK;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0] && status == WEIR_OK; i++)
        status = steps[i](gateway, error);
    gateway->is_listening = status == WEIR_OK;
    return status;
}

/* ---- stop ---- */

static void on_left(void *context, uint64_t left)
{
    char line[32];
    (void)snprintf(line, sizeof line, "left %llu\n", (unsigned long long)left);
    gateway_tell(context, line);
}

static void on_drained(void *context)
{
    struct gateway *gateway = context;
    gateway->is_drained = true;
    uv_stop(&gateway->loop);
}

static void gateway_close_listeners(struct gateway *gateway)
{
    for (unsigned i = 0; i < PORTS; i++) {
        if (gateway->listeners[i] != NULL)
            listener_take_waiting(gateway->listeners[i]);
        listener_stop(gateway->listeners[i]);
        gateway->listeners[i] = NULL;
    }
}

/* False: it cannot be, so that the gateway has to stop at once. */
static bool gateway_depart(struct gateway *gateway)
{
    const struct departure_options options = {
        .ws = gateway->ws,
        .local = gateway->local,
        .counters = &gateway->counters,
        .gateway_index = gateway->options->index,
        .window_ms = gateway->options->settings->drain_ms,
        .let_go = doors_let_go,
        .on_left = on_left,
        .on_over = on_drained,
        .context = gateway,
    };
    gateway_close_listeners(gateway);
    local_stop_accepting(gateway->local);
    gateway->doors.is_closed = true;
    gateway->departure = departure_start(&gateway->loop, &options);
    return gateway->departure != NULL;
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct gateway *gateway = handle->data;
    bool drains = number == SIGTERM && gateway->departure == NULL && gateway->is_listening &&
                  gateway->options->settings->drain_ms > 0;
    if (drains && gateway_depart(gateway))
        return;
    (void)fprintf(stderr, "weir-gateway: event=stopping gateway=%llu signal=%d\n",
                  (unsigned long long)gateway->options->index, number);
    uv_stop(&gateway->loop);
}

static void gateway_watch_signals(struct gateway *gateway)
{
    static const int numbers[2] = {SIGTERM, SIGINT};
    for (unsigned i = 0; i < 2; i++) {
        (void)uv_signal_init(&gateway->loop, &gateway->signals[i]);
        gateway->signals[i].data = gateway;
        (void)uv_signal_start(&gateway->signals[i], on_signal, numbers[i]);
    }
    gateway->has_signals = true;
}

static void gateway_stop(struct gateway *gateway)
{
    departure_stop(gateway->departure); /* the loop runs on in what follows */
    for (unsigned i = 0; i < PORTS; i++)
        listener_stop(gateway->listeners[i]);
    if (gateway->ws != NULL)
        ws_server_close(gateway->ws, gateway->is_drained ? WS_RESTART : WS_GOING_AWAY,
                        CLOSE_GRACE_MS);
    local_close(gateway->local);
    turn_stop(gateway->turn);
    if (gateway->link != NULL)
        link_close(gateway->link);
    for (unsigned i = 0; gateway->has_signals && i < 2; i++)
        uv_close((uv_handle_t *)&gateway->signals[i], NULL);
    /* Nothing is left to wait for but the closing of handles. */
    (void)uv_run(&gateway->loop, UV_RUN_DEFAULT);
    channel_sockets_close(gateway->channels);
    worker_channel_close(gateway->workers);
    doors_close(&gateway->doors);
    joins_close(gateway->joins);
    catch_up_close(gateway->catch_up);
    fanout_close(gateway->fanout);
    feed_fini(&gateway->feed);
    stream_channel_fini(&gateway->streams);
    local_presence_close(gateway->presence);
    subscriptions_fini(&gateway->subscriptions);
    sessions_fini(&gateway->sessions);
    gates_close(gateway->gates);
    auth_close(gateway->auth);
    triggers_close(gateway->triggers);
    server_calls_close(gateway->server_calls);
    custom_streams_close(gateway->custom);
    mapping_close(gateway->mapping);
}

static uint64_t seed_make(void)
{
    uint64_t seed;
    return getrandom(&seed, sizeof seed, GRND_NONBLOCK) == sizeof seed ? seed : uv_hrtime();
}

enum weir_status gateway_run(const struct gateway_options *options, struct weir_error *error)
{
    struct gateway *gateway = calloc(1, sizeof *gateway);
    if (gateway == NULL)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory to start a gateway");
    gateway->options = options;
    retry_init(&gateway->retry, options->settings->retry_ms, seed_make());
    (void)signal(SIGPIPE, SIG_IGN);
    if (uv_loop_init(&gateway->loop) != 0) {
        free(gateway);
        return weir_fail(error, WEIR_SYSTEM, "cannot make an event loop");
    }
    gateway_watch_signals(gateway);
    enum weir_status status = gateway_start(gateway, error);
    if (status == WEIR_OK)
        (void)uv_run(&gateway->loop, UV_RUN_DEFAULT);
    gateway_stop(gateway);
    (void)uv_loop_close(&gateway->loop);
    free(gateway);
    return status;
}

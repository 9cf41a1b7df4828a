#include "broker/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "adapters/kv.h"
#include "broker/channels.h"
#include "broker/engine.h"
#include "broker/listen.h"
#include "broker/log.h"
#include "broker/peers.h"
#include "broker/presence.h"
#include "broker/registry.h"
#include "broker/routes.h"
#include "broker/witnesses.h"
#include "shm/stream_functions.h"

enum {
    TICK_MS = 1000,       /* counters are collected, deadlines looked at */
    STOP_MS_MAX = 2000,   /* time connections get to end */
    FLUSH_MS_MAX = 20000, /* time the log gets to take what it was given */
    ACCEPTS_PER_TURN = 16,
    ATTACH_FDS = 3,
};

struct broker {
    struct settings settings;
    struct segment segment;
    int segment_read_fd; /* what peers get: opened read-only, so not even the descriptor writes */
    struct readers *readers;
    struct engine *engine;
    struct durability *durability; /* NULL: nothing is kept */
    uint64_t origins[PEERS_MAX];   /* which life of a gateway is behind a peer */
    struct routes *routes;
    struct channels *channels;
    struct presence *presence;
    struct deliveries *deliveries;
    struct registry *registry;
    struct loop *loop;
    struct peers *peers;
    struct witnesses *witnesses;
    struct listen_socket listener;
    int signal_fd;
    struct loop_operation accept_ready;
    struct loop_operation signal_ready;
    struct broker_counters counters;
    struct buffer attach_frame;
    uint64_t now_ms; /* Unix time, read once a turn */
    uint64_t next_tick_ms;
    bool stopping;
};

static uint64_t clock_unix_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t clock_unix_us(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- custom adapters ---- */

static void broker_stream_changed(void *context, struct span stream, bool is_custom)
{
    const struct broker *broker = context;
    const struct wire_field fields[] = {WIRE_NUMBER(is_custom), WIRE_SPAN(stream)};
    peers_send_all(broker->peers, WIRE_STREAM_CUSTOM, fields);
}

static void broker_custom_answered(void *context, uint64_t token, enum routes_own_fate fate,
                                   struct span result, struct span error_json)
{
    static const enum custom_fate fates[] = {[ROUTES_OWN_RESULT] = CUSTOM_RESULT,
                                             [ROUTES_OWN_ERROR] = CUSTOM_ERROR,
                                             [ROUTES_OWN_LATE] = CUSTOM_LATE};
    const struct broker *broker = context;
    custom_answer(engine_custom(broker->engine), token, fates[fate], result, error_json,
                  broker->now_ms);
}

static enum weir_status broker_custom_call(void *context, const struct custom_call *call)
{
    struct broker *broker = context;
    const struct routes_own_call own = {
        .function = call->function,
        .data = call->data,
        .traceparent = call->trace.traceparent,
        .baggage = call->trace.baggage,
        .timeout_ms = call->timeout_ms,
    };
    return routes_call_own(broker->routes, &own, broker_custom_answered, broker, call->token,
                           broker->now_ms);
}

static bool broker_has_function(void *context, struct span id)
{
    const struct broker *broker = context;
    return routes_has_function(broker->routes, (struct span){0}, id);
}

static void broker_function_changed(void *context, struct span space, struct span id, bool exists)
{
    struct broker *broker = context;
    if (span_equal(space, SPAN_LITERAL("default")))
        custom_function_changed(engine_custom(broker->engine), id, exists);
}

struct broker_newcomer {
    struct broker *broker;
    struct peer_handle peer;
};

static void broker_tell_custom(void *context, struct span stream)
{
    const struct broker_newcomer *newcomer = context;
    const struct wire_field fields[] = {WIRE_NUMBER(1), WIRE_SPAN(stream)};
    if (peers_send(newcomer->broker->peers, newcomer->peer, WIRE_STREAM_CUSTOM, 0, fields) !=
        WEIR_OK)
        newcomer->broker->counters.replies_lost++;
}

/* ---- attach ---- */

/* `frame`: of the log, up to which the gateway has read an earlier ring; 0: none. */
static enum weir_status broker_send_attached(struct broker *broker, struct peer_handle peer,
                                             uint64_t frame, uint32_t slot, int control_fd,
                                             int event_fd)
{
    const struct commits *commits = engine_commits(broker->engine);
    uint64_t position = commits_published_end(commits);
    uint64_t durable = commits_durable_frame(commits);
    if (frame != 0 && !durability_resume(broker->durability, frame, &position))
        position = UINT64_MAX;
    const struct wire_field fields[] = {
        WIRE_NUMBER(WIRE_VERSION), WIRE_NUMBER(segment_generation(&broker->segment)),
        WIRE_NUMBER(slot),         WIRE_NUMBER(durability_keeps(broker->durability, frame)),
        WIRE_NUMBER(position),     WIRE_NUMBER(durable > 0 ? durable - 1 : 0),
    };
    const int fds[ATTACH_FDS] = {broker->segment_read_fd, event_fd, control_fd};
    buffer_clear(&broker->attach_frame);
    enum weir_status status = wire_append(&broker->attach_frame, WIRE_ATTACHED, 0, fields);
    if (status == WEIR_OK)
        status = peers_attach(broker->peers, peer, slot, buffer_span(&broker->attach_frame), fds,
                              ATTACH_FDS);
    return status;
}

/* What only the gateways knew is told, or nobody lives who could tell it. */
static void broker_heed_witnesses(const struct broker *broker)
{
    presence_await(broker->presence, witnesses_absent(broker->witnesses), broker->now_ms);
    if (witnesses_untold(broker->witnesses) == 0)
        registry_gates_told(broker->registry);
}

static void broker_attach(struct broker *broker, struct peer_handle peer,
                          const struct wire_message *message)
{
    char sentence[128];
    struct weir_error error = {0};
    if (message->fields[0].number != WIRE_VERSION) {
        (void)snprintf(sentence, sizeof sentence,
                       "this broker speaks protocol version %u, the peer %llu; use one build",
                       WIRE_VERSION, (unsigned long long)message->fields[0].number);
        peers_refuse(broker->peers, peer, "VERSION_MISMATCH", sentence);
        return;
    }
    uint32_t slot = 0;
    int control_fd = -1;
    int event_fd = -1;
    uint32_t pid = peers_pid(broker->peers, peer);
    if (readers_attach(broker->readers, pid, &slot, &control_fd, &event_fd, &error) != WEIR_OK) {
        peers_refuse(broker->peers, peer, "READERS_FULL", error.text);
        return;
    }
    broker->origins[peer.slot] = message->fields[4].number;
    if (broker_send_attached(broker, peer, message->fields[5].number, slot, control_fd, event_fd) !=
        WEIR_OK) {
        readers_detach(broker->readers, slot);
        peers_drop(broker->peers, peer, "its answer could not be sent");
        return;
    }
    struct broker_newcomer newcomer = {broker, peer};
    custom_tell_streams(engine_custom(broker->engine), broker_tell_custom, &newcomer);
    engine_raise_floor(broker->engine, message->fields[3].number);
    presence_peer_attached(broker->presence, peer);
    log_line("event=peer_attached pid=%u gateway=%llu slot=%u", pid,
             (unsigned long long)message->fields[2].number, slot);
    registry_peer_attached(broker->registry, peer);
    witnesses_attached(broker->witnesses, pid);
    broker_heed_witnesses(broker);
}

/* ---- frames ---- */

/* What an earlier broker has carried out is answered, not done again. */
static enum weir_status broker_stream(struct broker *broker, struct peer_handle peer,
                                      const struct wire_message *message)
{
    uint64_t origin = broker->origins[peer.slot];
    struct span result = {0};
    if (!durability_answered(broker->durability, origin, message->id, &result))
        return engine_stream(broker->engine, peer, origin, message, broker->now_ms);
    const struct stream_function *function = stream_function_by_op(message->fields[0].number);
    struct wire_field fields[] = {WIRE_NIL, WIRE_NIL, WIRE_SPAN(result), WIRE_NIL};
    if (!function)
        return WEIR_INVALID;
    broker->counters.requests_repeated++;
    if (!result.data) {
        fields[0] = WIRE_SPAN(span_text(function->error_code));
        fields[1] = WIRE_SPAN(SPAN_LITERAL("the call was carried out; the broker restarted before "
                                           "its result was told, and does not know it any more"));
    }
    bool is_unhurried = (message->flags & WIRE_FLAG_UNHURRIED) != 0;
    if ((is_unhurried ? peers_send_unhurried : peers_send)(broker->peers, peer, WIRE_STREAM_RESULT,
                                                           message->id, fields) != WEIR_OK)
        broker->counters.replies_lost++;
    return WEIR_OK;
}

static enum weir_status broker_message(void *context, struct peer_handle peer, bool attached,
                                       const struct wire_message *message)
{
    struct broker *broker = context;
    if (!attached) {
        if (message->type != WIRE_ATTACH)
            return WEIR_INVALID;
        broker_attach(broker, peer, message);
        return WEIR_OK;
    }
    if (message->type == WIRE_STREAM)
        return broker_stream(broker, peer, message);
    if (message->type >= WIRE_CHANNEL_OPEN && message->type <= WIRE_CHANNEL_CLOSED)
        return channels_take(broker->channels, peer, message, broker->now_ms);
    if (channels_is_create(message)) {
        channels_create(broker->channels, peer, message, broker->now_ms);
        return WEIR_OK;
    }
    if (message->type == WIRE_SESSION_CLOSED)
        channels_session_gone(broker->channels, peer, message->fields[0].number);
    if (message->type == WIRE_GATES_TOLD) {
        witnesses_told(broker->witnesses, peers_pid(broker->peers, peer));
        broker_heed_witnesses(broker);
        return WEIR_OK;
    }
    if (message->type == WIRE_PRESENCE_JOINED || message->type == WIRE_PRESENCE_LEFT)
        return presence_take(broker->presence, peer, message);
    if (message->type >= WIRE_TRIGGER_TYPE_REGISTER && message->type <= WIRE_GATE_UNBIND)
        return registry_take(broker->registry, peer, message);
    return routes_take(broker->routes, peer, message);
}

static bool broker_is_ready(void *context)
{
    const struct broker *broker = context;
    return commits_are_ready(engine_commits(broker->engine));
}

static void broker_peer_gone(void *context, struct peer_handle peer, uint32_t reader_slot)
{
    struct broker *broker = context;
    readers_detach(broker->readers, reader_slot);
    /* When it is the broker that goes, the gateways' subscriptions stay: the next one is told of
     * them. */
    if (!broker->stopping)
        presence_peer_gone(broker->presence, peer);
    routes_peer_gone(broker->routes, peer);
    channels_peer_gone(broker->channels, peer);
    registry_peer_gone(broker->registry, peer);
}

/* ---- loop callbacks ---- */

static void broker_accept_ready(struct loop_operation *operation, int32_t result)
{
    struct broker *broker = operation->owner;
    (void)result;
    for (unsigned count = 0; count < ACCEPTS_PER_TURN; count++) {
        int fd = listen_accept(&broker->listener);
        if (fd < 0)
            break;
        peers_accept(broker->peers, fd, broker->now_ms);
    }
    if (!broker->stopping)
        loop_poll(broker->loop, operation, broker->listener.fd);
}

static void broker_signal_ready(struct loop_operation *operation, int32_t result)
{
    struct broker *broker = operation->owner;
    struct signalfd_siginfo info;
    (void)result;
    if (read(broker->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        log_line("event=stopping signal=%u", info.ssi_signo);
        broker->stopping = true;
        return;
    }
    loop_poll(broker->loop, operation, broker->signal_fd);
}

/* ---- output for engine and routes ---- */

static enum weir_status broker_output_send(void *context, struct peer_handle peer,
                                           enum wire_type type, uint64_t id,
                                           const struct wire_field *fields)
{
    struct broker *broker = context;
    return peers_send(broker->peers, peer, type, id, fields);
}

static enum weir_status broker_output_send_unhurried(void *context, struct peer_handle peer,
                                                     enum wire_type type, uint64_t id,
                                                     const struct wire_field *fields)
{
    struct broker *broker = context;
    return peers_send_unhurried(broker->peers, peer, type, id, fields);
}

static bool broker_output_is_busy(void *context, struct peer_handle peer)
{
    const struct broker *broker = context;
    return peers_is_busy(broker->peers, peer);
}

static bool broker_output_is_lagging(void *context, struct peer_handle peer)
{
    const struct broker *broker = context;
    return peers_is_lagging(broker->peers, peer);
}

static uint64_t broker_output_called(void *context)
{
    const struct broker *broker = context;
    return peers_called(broker->peers);
}

/* ---- answers that have to leave before the log forgets them ---- */

static void broker_mark_answers(void *context)
{
    const struct broker *broker = context;
    peers_mark(broker->peers);
}

static bool broker_answers_have_left(void *context)
{
    const struct broker *broker = context;
    return peers_have_sent_marked(broker->peers);
}

/* ---- open and close ---- */

static enum weir_status broker_open_segment(struct broker *broker, struct weir_error *error)
{
    const struct segment_options options = {
        .ring_bytes = broker->settings.ring_bytes,
        .store_bytes = broker->settings.store_bytes,
        .generation = clock_unix_us(),
    };
    enum weir_status status = segment_create(&broker->segment, &options, error);
    if (status != WEIR_OK)
        return status;
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", broker->segment.fd);
    broker->segment_read_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (broker->segment_read_fd < 0)
        return weir_fail_errno(error, errno, "cannot reopen the segment read-only");
    broker->readers = readers_open(&broker->segment);
    if (!broker->readers)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the reader table");
    return WEIR_OK;
}

static enum weir_status broker_open_registry(struct broker *broker,
                                             const struct broker_output *output,
                                             struct weir_error *error)
{
    const struct registry_options options = {
        .routes = broker->routes,
        .deliveries = broker->deliveries,
        .output = *output,
        .counters = &broker->counters,
        .hash_seed = segment_hash_seed(&broker->segment),
        .forgets_gates = broker->settings.join_gate == SETTINGS_GATE_OPEN,
    };
    return registry_open(&broker->registry, &options, error);
}

static void broker_leave(void *context, struct span stream_name, struct span payload)
{
    struct broker *broker = context;
    registry_leave(broker->registry, stream_name, payload);
}

static bool broker_has_room_for_leaves(void *context)
{
    const struct broker *broker = context;
    return deliveries_have_room(broker->deliveries);
}

static void broker_leaves_wanted(void *context, bool wanted)
{
    struct broker *broker = context;
    presence_set_wanted(broker->presence, wanted);
}

static enum weir_status broker_open_presence(struct broker *broker,
                                             const struct broker_output *output,
                                             struct weir_error *error)
{
    const struct presence_listener listener = {broker_leave, broker_has_room_for_leaves, broker};
    const struct registry_leave_observer observer = {broker_leaves_wanted, broker};
    enum weir_status status = presence_open(&broker->presence, output, &broker->counters,
                                            segment_hash_seed(&broker->segment), NULL, error);
    if (status != WEIR_OK)
        return status;
    presence_listen(broker->presence, &listener);
    registry_observe_leave(broker->registry, &observer);
    return WEIR_OK;
}

static enum weir_status broker_open_rooms(struct broker *broker, const struct durability_seam *seam,
                                          struct weir_error *error)
{
    enum settings_durability durability = broker->settings.durability;
    const struct broker_output output = {broker_output_send, broker_output_send_unhurried,
                                         broker_output_is_busy, broker_output_called, broker};
    const struct custom_options custom = {
        .seam = {broker_custom_call, broker_has_function, broker_stream_changed, broker},
        .timeout_ms = broker->settings.custom_timeout_ms,
        .fallback = broker->settings.custom_fallback,
        .counters = &broker->counters,
    };
    const struct engine_options engine = {
        .segment = &broker->segment,
        .readers = broker->readers,
        .adapter = &adapter_kv,
        .custom = &custom,
        .store = {.items_max = broker->settings.items_max,
                  .groups_max = broker->settings.groups_max,
                  .empty_groups_max = broker->settings.empty_groups_max,
                  .is_logged = durability != SETTINGS_DURABILITY_MEMORY},
        .value_bytes_max = broker->settings.value_bytes_max,
        .output = output,
        .counters = &broker->counters,
    };
    const struct snapshot_answers answers = {broker_mark_answers, broker_answers_have_left, broker};
    const struct peers_handler handler = {broker_message, broker_is_ready, broker_peer_gone,
                                          broker};
    struct routes_limits limits = routes_limits_default;
    limits.unique_worker_names = broker->settings.unique_worker_names;

    enum weir_status status = engine_open(&broker->engine, &engine, error);
    if (status == WEIR_OK && broker->settings.data_dir[0] != '\0')
        status = durability_open(&broker->durability, &broker->settings, broker->engine, seam,
                                 &broker->counters, error);
    if (status == WEIR_OK)
        status = routes_open(&broker->routes, &output, &broker->counters,
                             segment_hash_seed(&broker->segment), &limits, error);
    const struct routes_observer observer = {broker_function_changed, broker};
    if (status == WEIR_OK)
        routes_observe(broker->routes, &observer);
    if (status == WEIR_OK)
        status = channels_open(&broker->channels, &output, &broker->counters,
                               segment_hash_seed(&broker->segment), error);
    if (status == WEIR_OK)
        channels_set_lag(broker->channels, broker_output_is_lagging, broker);
    if (status == WEIR_OK)
        status = deliveries_open(&broker->deliveries, broker->routes, &broker->counters,
                                 broker->settings.trigger_timeout_ms, error);
    if (status == WEIR_OK)
        status = broker_open_registry(broker, &output, error);
    if (status == WEIR_OK)
        status = broker_open_presence(broker, &output, error);
    if (status == WEIR_OK)
        status = loop_open(&broker->loop, broker->settings.io, error);
    if (status == WEIR_OK)
        status = peers_open(&broker->peers, broker->loop, &handler, &broker->counters, error);
    if (status == WEIR_OK && broker->durability)
        status = durability_start(broker->durability, broker->loop, &answers, error);
    return status;
}

static enum weir_status broker_open_signals(struct broker *broker, struct weir_error *error)
{
    sigset_t stop;
    (void)sigemptyset(&stop);
    (void)sigaddset(&stop, SIGTERM);
    (void)sigaddset(&stop, SIGINT);
    broker->signal_fd = signalfd(-1, &stop, SFD_CLOEXEC | SFD_NONBLOCK);
    if (broker->signal_fd < 0)
        return weir_fail_errno(error, errno, "signalfd");
    return WEIR_OK;
}

enum weir_status broker_open(struct broker **broker, const struct settings *settings,
                             const struct durability_seam *seam, struct weir_error *error)
{
    static const struct durability_seam no_seam;
    struct broker *opened = calloc(1, sizeof *opened);
    if (!opened)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the broker");
    opened->settings = *settings;
    opened->segment = (struct segment){.fd = -1};
    opened->segment_read_fd = -1;
    opened->signal_fd = -1;
    opened->accept_ready = (struct loop_operation){.done = broker_accept_ready, .owner = opened};
    opened->signal_ready = (struct loop_operation){.done = broker_signal_ready, .owner = opened};
    buffer_init(&opened->attach_frame, 4096);

    /* The lock comes first: a second broker must not get as far as reserving a segment. The socket
     * answers nobody until the loop runs. */
    enum weir_status status = listen_open(&opened->listener, settings->run_dir, error);
    if (status == WEIR_OK)
        status = witnesses_open(&opened->witnesses, settings->run_dir, error);
    if (status == WEIR_OK)
        status = broker_open_segment(opened, error);
    if (status == WEIR_OK)
        status = broker_open_rooms(opened, seam ? seam : &no_seam, error);
    if (status == WEIR_OK)
        status = broker_open_signals(opened, error);
    if (status != WEIR_OK) {
        broker_close(opened);
        return status;
    }
    segment_publish(&opened->segment);
    *broker = opened;
    return WEIR_OK;
}

void broker_close(struct broker *broker)
{
    if (!broker)
        return;
    loop_close(broker->loop); /* first: nothing of ours is written to afterwards */
    engine_stop(broker->engine);
    durability_close(broker->durability);
    peers_close(broker->peers);
    registry_close(broker->registry);
    deliveries_close(broker->deliveries);
    presence_close(broker->presence);
    channels_close(broker->channels);
    if (broker->routes)
        routes_cancel_own(broker->routes, broker);
    routes_close(broker->routes);
    engine_close(broker->engine);
    witnesses_close(broker->witnesses);
    if (broker->readers)
        readers_close(broker->readers);
    if (broker->segment_read_fd >= 0)
        (void)close(broker->segment_read_fd);
    if (broker->segment.base)
        segment_close(&broker->segment);
    if (broker->signal_fd >= 0)
        (void)close(broker->signal_fd);
    listen_close(&broker->listener);
    buffer_fini(&broker->attach_frame);
    free(broker);
}

/* ---- run ---- */

/* Bring the gauges up to date and show all counters to every process: between two turns, so that whoever
 * sees an event counted sees also what it has cost. */
static void broker_count(struct broker *broker)
{
    struct store_figures store;
    struct routes_figures routes;
    engine_figures(broker->engine, &store);
    routes_figures(broker->routes, &routes);
    struct broker_counters *counters = &broker->counters;
    counters->streams = store.streams;
    counters->groups = store.groups;
    counters->empty_groups = store.empty_groups;
    counters->items = store.items;
    counters->store_bytes = store.arena_bytes;
    counters->store_used_bytes = store.arena_used_bytes;
    counters->store_retired_bytes = store.retired_bytes;
    counters->readers_revoked = store.readers_revoked;
    counters->sessions = routes.sessions;
    counters->functions = routes.functions;
    counters->calls_pending = routes.calls_pending;
    counters->presence = presence_count(broker->presence);
    readers_show_broker(broker->readers, counters);
}

/* False: it is not time yet. */
static bool broker_tick(struct broker *broker)
{
    if (broker->now_ms < broker->next_tick_ms && broker->next_tick_ms - broker->now_ms <= TICK_MS)
        return false;
    broker->next_tick_ms = broker->now_ms + TICK_MS;
    readers_collect_counters(broker->readers);
    peers_tick(broker->peers, broker->now_ms);
    routes_tick(broker->routes, broker->now_ms);
    channels_tick(broker->channels, broker->now_ms);
    registry_tick(broker->registry, broker->now_ms);
    durability_tick(broker->durability, broker->now_ms);
    witnesses_tick(broker->witnesses, broker->now_ms);
    broker_heed_witnesses(broker);
    return true;
}

/* Something was done that the next turn can commit. */
static bool broker_can_commit(const struct broker *broker)
{
    const struct commits *commits = engine_commits(broker->engine);
    return commits_have_open(commits) && !commits_are_writing(commits);
}

static enum weir_status broker_turn(struct broker *broker, bool *busy, struct weir_error *error)
{
    int wait_ms = *busy ? 0 : peers_wait_ms(broker->peers, broker->now_ms, TICK_MS);
    enum weir_status status = loop_wait(broker->loop, wait_ms, error);
    if (status != WEIR_OK)
        return status;
    broker->now_ms = clock_unix_ms();
    broker->counters.turns++;
    routes_set_time(broker->routes, broker->now_ms);
    loop_run(broker->loop);
    *busy = peers_take(broker->peers);
    *busy |= presence_run(broker->presence, broker->now_ms);
    channels_turn(broker->channels);
    bool has_ticked = broker_tick(broker); /* what it ends is answered in this turn */
    *busy |= deliveries_run(broker->deliveries, broker->now_ms);
    commits_turn(engine_commits(broker->engine), broker->now_ms);
    durability_turn(broker->durability, broker->now_ms);
    *busy |= peers_flush(broker->peers, broker->now_ms);
    *busy |= presence_is_due(broker->presence);
    *busy |= broker_can_commit(broker);              /* calls that ended with their peer */
    *busy |= deliveries_are_due(broker->deliveries); /* what ended in the flush is told as well */
    if (has_ticked)
        broker_count(broker);
    return WEIR_OK;
}

static enum weir_status broker_stop(struct broker *broker, struct weir_error *error)
{
    bool busy = false;
    enum weir_status status = WEIR_OK;
    const struct commits *commits = engine_commits(broker->engine);
    uint64_t begun_ms = clock_unix_ms();
    peers_stop(broker->peers);
    while (status == WEIR_OK && clock_unix_ms() - begun_ms < FLUSH_MS_MAX) {
        bool has_peers = !peers_are_idle(broker->peers) && clock_unix_ms() - begun_ms < STOP_MS_MAX;
        if (!has_peers && commits_are_idle(commits))
            break;
        busy = has_peers; /* shut-down sockets complete at once, the disk takes its time */
        status = broker_turn(broker, &busy, error);
    }
    if (!commits_are_idle(commits))
        log_line("event=not_flushed reason=\"the log takes too long; what was not answered may be "
                 "lost\"");
    else if (status == WEIR_OK)
        durability_flushed(broker->durability);
    broker_count(broker);
    log_line("event=stopped items=%llu groups=%llu sessions=%llu functions=%llu",
             (unsigned long long)broker->counters.items,
             (unsigned long long)broker->counters.groups,
             (unsigned long long)broker->counters.sessions,
             (unsigned long long)broker->counters.functions);
    return status;
}

enum weir_status broker_run(struct broker *broker, struct weir_error *error)
{
    bool busy = false;
    broker->now_ms = clock_unix_ms();
    presence_hold(broker->presence, broker->now_ms);
    broker_heed_witnesses(broker);
    routes_set_time(broker->routes, broker->now_ms);
    loop_poll(broker->loop, &broker->accept_ready, broker->listener.fd);
    loop_poll(broker->loop, &broker->signal_ready, broker->signal_fd);
    log_line("event=serving socket=%s io=%s", broker->listener.path,
             loop_engine_name(broker->loop));
    while (!broker->stopping) {
        enum weir_status status = broker_turn(broker, &busy, error);
        if (status != WEIR_OK)
            return status;
    }
    return broker_stop(broker, error);
}

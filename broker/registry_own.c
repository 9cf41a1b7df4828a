#include <stdlib.h>

#include "broker/catalogue.h"
#include "broker/log.h"
#include "broker/registry_state.h"

enum { FUNCTIONS_CHECK_MS = 5000 };

/* ---- stream:join ---- */

static void gate_send_bind(struct registry *registry, struct peer_handle peer,
                           const struct trigger *trigger, bool is_away)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(trigger->serial), WIRE_SPAN(trigger->space),     WIRE_SPAN(trigger->function),
        WIRE_SPAN(trigger->stream),   WIRE_SPAN(trigger->condition), WIRE_SPAN(trigger->metadata),
        WIRE_NUMBER(is_away),
    };
    registry_send(registry, peer, WIRE_GATE_BIND, fields);
}

static void gate_send_unbind(struct registry *registry, struct peer_handle peer,
                             const struct trigger *trigger, bool is_away)
{
    const struct wire_field fields[] = {WIRE_NUMBER(trigger->serial), WIRE_NUMBER(is_away)};
    registry_send(registry, peer, WIRE_GATE_UNBIND, fields);
}

static void gate_tell_bind(struct registry *registry, const struct trigger *trigger, bool is_away)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (registry->is_gate[slot])
            gate_send_bind(registry, registry->gates[slot], trigger, is_away);
}

static void gate_tell_unbind(struct registry *registry, const struct trigger *trigger, bool is_away)
{
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (registry->is_gate[slot])
            gate_send_unbind(registry, registry->gates[slot], trigger, is_away);
}

static bool gate_is(const struct trigger *gate, struct span space, struct span function,
                    struct span stream)
{
    return span_equal(gate->function, function) && span_equal(gate->space, space) &&
           !gate->stream.data == !stream.data && span_equal(gate->stream, stream);
}

static struct trigger *gate_find(struct trigger *list, struct span space, struct span function,
                                 struct span stream)
{
    struct trigger *gate = list;
    while (gate && !gate_is(gate, space, function, stream))
        gate = gate->next_of_group;
    return gate;
}

struct trigger *gate_find_away(const struct registry *registry, struct span space,
                               struct span function, struct span stream)
{
    return gate_find(registry->away, space, function, stream);
}

static void gate_forget_away(struct registry *registry, struct trigger *gate)
{
    *gate->link_of_group = gate->next_of_group;
    if (gate->next_of_group)
        gate->next_of_group->link_of_group = gate->link_of_group;
    registry->bytes -= gate->bytes;
    registry->counters->gates_away--;
    free(gate);
}

void gates_forget_away(struct registry *registry)
{
    while (registry->away)
        /* Each takes the head off the list. NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
        gate_forget_away(registry, registry->away);
}

/* Its joins are guarded again: the new gate is told before the away one ends. */
static void gate_start(struct registry *registry, const struct trigger *trigger)
{
    struct trigger *away =
        gate_find_away(registry, trigger->space, trigger->function, trigger->stream);
    gate_tell_bind(registry, trigger, false);
    if (!away)
        return;
    gate_tell_unbind(registry, away, false);
    gate_forget_away(registry, away);
}

/* For a log line: at most `size` - 1 bytes, nothing that would break it. */
static const char *log_text(char *text, size_t size, struct span from)
{
    size_t bytes = from.bytes < size - 1 ? from.bytes : size - 1;
    for (size_t index = 0; index < bytes; index++) {
        char byte = from.data[index];
        text[index] = (char)(byte > ' ' && byte <= '~' && byte != '"' ? byte : '?');
    }
    text[bytes] = '\0';
    return text;
}

static void gate_log_away(const struct trigger *gate)
{
    char function[81], stream[81];
    log_line("event=gate_away function=\"%s\" stream=\"%s\" hint=\"joins are denied until a worker "
             "binds it again, which may then unregister it; or restart weir, or set join_gate to "
             "open\"",
             log_text(function, sizeof function, gate->function),
             gate->stream.data ? log_text(stream, sizeof stream, gate->stream) : "*");
}

static bool gate_is_bound(const struct registry *registry, const struct trigger *gate)
{
    return gate_find(registry->own_groups[TRIGGER_JOIN]->triggers, gate->space, gate->function,
                     gate->stream) != NULL;
}

static void gate_put_away(struct registry *registry, struct trigger *trigger)
{
    trigger->owner = NULL;
    trigger->link_of_group = &registry->away;
    trigger->next_of_group = registry->away;
    if (registry->away)
        registry->away->link_of_group = &trigger->next_of_group;
    registry->away = trigger;
    registry->bytes += trigger->bytes;
    registry->counters->gates_away++;
    gate_log_away(trigger);
}

/* True: its owner has gone, so it is away. */
static bool gate_stop(struct registry *registry, struct trigger *trigger)
{
    bool is_away =
        trigger->owner->is_going && !registry->forgets_gates && !gate_is_bound(registry, trigger);
    gate_tell_unbind(registry, trigger, is_away);
    if (is_away)
        gate_put_away(registry, trigger);
    return is_away;
}

bool gate_remember(struct registry *registry, struct trigger *trigger)
{
    if (registry->forgets_gates || gate_is_bound(registry, trigger) ||
        gate_find_away(registry, trigger->space, trigger->function, trigger->stream))
        return false;
    gate_put_away(registry, trigger);
    gate_tell_bind(registry, trigger, true);
    return true;
}

void registry_gates_told(struct registry *registry)
{
    bool was_told = registry->has_told_gates;
    registry->has_told_gates = true;
    for (uint32_t slot = 0; !was_told && slot < PEERS_MAX; slot++)
        if (registry->is_gate[slot])
            registry_send(registry, registry->gates[slot], WIRE_GATES_TOLD, NULL);
}

void registry_peer_attached(struct registry *registry, struct peer_handle peer)
{
    weir_assert(peer.slot < PEERS_MAX);
    registry->gates[peer.slot] = peer;
    registry->is_gate[peer.slot] = true;
    const struct trigger *trigger = registry->own_groups[TRIGGER_JOIN]->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        gate_send_bind(registry, peer, trigger, false);
    for (trigger = registry->away; trigger; trigger = trigger->next_of_group)
        gate_send_bind(registry, peer, trigger, true);
    if (registry->has_told_gates)
        registry_send(registry, peer, WIRE_GATES_TOLD, NULL);
}

void registry_peer_gone(struct registry *registry, struct peer_handle peer)
{
    if (peer_handle_equal(registry->gates[peer.slot], peer))
        registry->is_gate[peer.slot] = false;
}

/* ---- start and stop ---- */

static bool kind_is_delivered(enum trigger_kind kind)
{
    return kind == TRIGGER_LEAVE || kind == TRIGGER_FUNCTIONS_AVAILABLE ||
           kind == TRIGGER_WORKERS_AVAILABLE;
}

static void registry_tell_leave(const struct registry *registry, bool wanted)
{
    if (registry->leave_observer.wanted)
        registry->leave_observer.wanted(registry->leave_observer.context, wanted);
}

bool own_start(struct registry *registry, struct trigger *trigger)
{
    enum trigger_kind kind = trigger->group->own->kind;
    if (kind_is_delivered(kind)) {
        const struct delivery_target target = {.space = trigger->space,
                                               .function = trigger->function,
                                               .condition = trigger->condition,
                                               .metadata = trigger->metadata};
        trigger->line = delivery_line_open(registry->deliveries, &target);
        if (!trigger->line)
            return false;
    }
    trigger_set_state(registry, trigger, TRIGGER_BOUND);
    if (kind == TRIGGER_JOIN)
        gate_start(registry, trigger);
    if (kind == TRIGGER_LEAVE && !trigger->group->triggers->next_of_group)
        registry_tell_leave(registry, true);
    return true;
}

bool own_stop(struct registry *registry, struct trigger *trigger)
{
    enum trigger_kind kind = trigger->group->own->kind;
    if (trigger->state != TRIGGER_BOUND)
        return false;
    if (kind == TRIGGER_JOIN)
        return gate_stop(registry, trigger);
    if (trigger->line)
        delivery_line_close(trigger->line);
    if (kind == TRIGGER_LEAVE && !trigger->group->triggers)
        registry_tell_leave(registry, false);
    return false;
}

/* ---- what is delivered ---- */

static void own_push(struct registry *registry, enum trigger_kind kind, struct span payload)
{
    const struct trigger *trigger = registry->own_groups[kind]->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        delivery_line_push(trigger->line, payload);
}

void registry_observe_leave(struct registry *registry,
                            const struct registry_leave_observer *observer)
{
    registry->leave_observer = *observer;
}

bool registry_wants_leaves(const struct registry *registry)
{
    return registry->own_groups[TRIGGER_LEAVE]->triggers != NULL;
}

void registry_leave(struct registry *registry, struct span stream_name, struct span payload)
{
    const struct trigger *trigger = registry->own_groups[TRIGGER_LEAVE]->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        if (!trigger->stream.data || span_equal(trigger->stream, stream_name))
            delivery_line_push(trigger->line, payload);
}

void registry_tell_worker(struct registry *registry, const struct session *session,
                          const char *event)
{
    if (!registry->own_groups[TRIGGER_WORKERS_AVAILABLE]->triggers)
        return;
    buffer_clear(&registry->text);
    enum weir_status status =
        buffer_printf(&registry->text, "{\"event\":\"%s\",\"worker_id\":", event);
    if (status == WEIR_OK)
        status = json_append_string(&registry->text, span_text(session->worker_id));
    if (status == WEIR_OK)
        status = buffer_append(&registry->text, SPAN_LITERAL("}"));
    if (status == WEIR_OK)
        own_push(registry, TRIGGER_WORKERS_AVAILABLE, buffer_span(&registry->text));
}

static void registry_tell_functions(struct registry *registry)
{
    const struct catalogue_sources sources = {registry->routes, registry};
    struct buffer list, payload;
    buffer_init(&list, ANSWER_BYTES_MAX);
    buffer_init(&payload, ANSWER_BYTES_MAX);
    enum weir_status status =
        catalogue_answer(&sources, CATALOGUE_FUNCTIONS_LIST, SPAN_LITERAL("{}"), &list, NULL);
    if (status == WEIR_OK)
        status = buffer_append(&payload, SPAN_LITERAL("{\"event\":\"functions_changed\","));
    if (status == WEIR_OK) /* the list's members follow: all but its opening brace */
        status = buffer_append(&payload, span_of(list.data + 1, list.bytes - 1));
    if (status == WEIR_OK)
        own_push(registry, TRIGGER_FUNCTIONS_AVAILABLE, buffer_span(&payload));
    buffer_fini(&list);
    buffer_fini(&payload);
}

void registry_check_functions(struct registry *registry, uint64_t now_ms)
{
    if (now_ms < registry->next_check_ms &&
        registry->next_check_ms - now_ms <= FUNCTIONS_CHECK_MS) /* else the clock was set back */
        return;
    registry->next_check_ms = now_ms + FUNCTIONS_CHECK_MS;
    uint64_t sum = routes_function_sum(registry->routes);
    if (sum == registry->function_sum)
        return;
    registry->function_sum = sum;
    if (registry->own_groups[TRIGGER_FUNCTIONS_AVAILABLE]->triggers)
        registry_tell_functions(registry);
}

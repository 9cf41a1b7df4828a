#include "broker/catalogue.h"
#include "broker/registry_state.h"

enum { FUNCTIONS_CHECK_MS = 5000 };

/* ---- stream:join ---- */

static void gate_send_bind(struct registry *registry, struct peer_handle peer,
                           const struct trigger *trigger)
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(trigger->serial), WIRE_SPAN(trigger->space),     WIRE_SPAN(trigger->function),
        WIRE_SPAN(trigger->stream),   WIRE_SPAN(trigger->condition), WIRE_SPAN(trigger->metadata),
    };
    registry_send(registry, peer, WIRE_GATE_BIND, fields);
}

static void gate_tell_all(struct registry *registry, const struct trigger *trigger, bool is_bound)
{
    const struct wire_field unbind[] = {WIRE_NUMBER(trigger->serial)};
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++) {
        if (!registry->is_gate[slot])
            continue;
        if (is_bound)
            gate_send_bind(registry, registry->gates[slot], trigger);
        else
            registry_send(registry, registry->gates[slot], WIRE_GATE_UNBIND, unbind);
    }
}

void registry_peer_attached(struct registry *registry, struct peer_handle peer)
{
    weir_assert(peer.slot < PEERS_MAX);
    registry->gates[peer.slot] = peer;
    registry->is_gate[peer.slot] = true;
    const struct trigger *trigger = registry->own_groups[TRIGGER_JOIN]->triggers;
    for (; trigger; trigger = trigger->next_of_group)
        gate_send_bind(registry, peer, trigger);
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
        gate_tell_all(registry, trigger, true);
    if (kind == TRIGGER_LEAVE && !trigger->group->triggers->next_of_group)
        registry_tell_leave(registry, true);
    return true;
}

void own_stop(struct registry *registry, const struct trigger *trigger)
{
    enum trigger_kind kind = trigger->group->own->kind;
    if (trigger->state != TRIGGER_BOUND)
        return;
    if (trigger->line)
        delivery_line_close(trigger->line);
    if (kind == TRIGGER_JOIN)
        gate_tell_all(registry, trigger, false);
    if (kind == TRIGGER_LEAVE && !trigger->group->triggers)
        registry_tell_leave(registry, false);
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

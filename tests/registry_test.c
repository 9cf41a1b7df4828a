/* Trigger types and triggers without sockets: who is bound to whom, who is told what
 * (PROTOCOL 2.11-2.13, 8). */
#include "tests/registry_fixture.h"

static void open_default(void)
{
    fixture_open(NULL, NULL);
}

TestSuite(registry, .init = open_default, .fini = fixture_close, .timeout = HANG_SECONDS);

static void refuse(struct peer_handle peer, uint64_t number, const char *id, const char *type,
                   const char *function)
{
    TAKE(peer, WIRE_TRIGGER_RESULT, number, id, type, function,
         "{\"code\":\"trigger_registration_failed\",\"message\":\"no\"}");
}

/* The one message is a failure of trigger `id`, told to its owner. */
static void expect_failure(struct peer_handle peer, uint64_t number, const char *id,
                           const char *words)
{
    const struct recorded *message = only(WIRE_TRIGGER_RESULT, peer);
    cr_assert_eq(message->fields[0].number, number);
    cr_assert_str_eq(recorded_text(message, 1), id);
    cr_assert(strstr(recorded_text(message, 4), "\"code\":\"trigger_registration_failed\""), "%s",
              recorded_text(message, 4));
    cr_assert(strstr(recorded_text(message, 4), words), "%s", recorded_text(message, 4));
    clear();
}

static void expect_told(unsigned index, enum wire_type type, struct peer_handle peer,
                        uint64_t number, const char *id, const char *trigger_type)
{
    const struct recorded *message = nth(index, type, peer);
    cr_assert_eq(message->fields[0].number, number);
    cr_assert_str_eq(recorded_text(message, 1), id);
    cr_assert_str_eq(recorded_text(message, 2), trigger_type);
}

/* covers: 2.11#1 2.11#2 */
Test(registry, a_bind_waits_for_its_provider_and_nobody_is_answered)
{
    session(a, 1, "owner");
    session(b, 9, "provider");
    bind(a, 1, "t1", "cron", NULL);
    nothing();
    cr_assert_eq(counters.triggers, 1);
    cr_assert_eq(counters.triggers_parked, 1);
    provide(b, 9, NULL, "cron");
    const struct recorded *told = only(WIRE_TRIGGER_BIND, b);
    const char *const wanted[] = {NULL,        "t1",      "cron", "f", "{\"every\":5}",
                                  "{\"m\":1}", "default", "(nil)"};
    cr_assert_eq(told->fields[0].number, 9);
    for (unsigned index = 1; index < 8; index++)
        cr_assert_str_eq(recorded_text(told, index), wanted[index]);
    cr_assert_eq(counters.trigger_types, 1);
    cr_assert_eq(counters.triggers_parked, 0);
    clear();
    TAKE(b, WIRE_TRIGGER_RESULT, 9, "t1", "cron", "f", NULL);
    nothing();
    bind(a, 1, "t2", "cron", NULL);
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "t2", "cron");
    cr_assert_eq(recorder.count, 1);
}

Test(registry, a_config_left_out_is_null)
{
    session(a, 1, "w");
    provide(a, 1, NULL, "cron");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "cron", "f", NULL, NULL, NULL, NULL);
    const struct recorded *told = only(WIRE_TRIGGER_BIND, a);
    cr_assert_str_eq(recorded_text(told, 4), "null");
    cr_assert_str_eq(recorded_text(told, 5), "(nil)");
    cr_assert_str_eq(recorded_text(told, 6), "default");
}

/* The binds follow the type to its new provider, and the earlier one is told; also when it is the
 * same session that registers the type again. */
Test(registry, a_type_taken_over_takes_its_binds_along)
{
    session(a, 1, "owner");
    session(a, 2, "first");
    session(b, 9, "second");
    provide(a, 2, NULL, "cron");
    bind(a, 1, "t1", "cron", NULL);
    bind(a, 1, "t2", "cron", NULL);
    clear();
    provide(b, 9, NULL, "cron");
    cr_assert_eq(recorder.count, 4);
    expect_told(0, WIRE_TRIGGER_UNBIND, a, 2, "t1", "cron");
    expect_told(1, WIRE_TRIGGER_UNBIND, a, 2, "t2", "cron");
    expect_told(2, WIRE_TRIGGER_BIND, b, 9, "t1", "cron");
    expect_told(3, WIRE_TRIGGER_BIND, b, 9, "t2", "cron");
    cr_assert_eq(counters.trigger_types, 1);
    clear();
    session_end(a, 2);
    TAKE(a, WIRE_TRIGGER_TYPE_UNREGISTER, 1, NULL, "cron");
    nothing();
    provide(b, 9, NULL, "cron");
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t1", "cron");
    expect_told(3, WIRE_TRIGGER_BIND, b, 9, "t2", "cron");
    cr_assert_eq(recorder.count, 4);
}

Test(registry, registering_an_id_again_replaces_the_bind)
{
    session(a, 1, "owner");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    provide(b, 9, NULL, "mail");
    bind(a, 1, "t", "cron", NULL);
    clear();
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "cron", "g", "{}", NULL, NULL, NULL);
    cr_assert_eq(recorder.count, 2);
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    expect_told(1, WIRE_TRIGGER_BIND, b, 9, "t", "cron");
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 3), "g");
    clear();
    bind(a, 1, "t", "mail", NULL);
    cr_assert_eq(recorder.count, 2);
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "t", "mail");
    expect_told(1, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    cr_assert_eq(counters.triggers, 1);
}

Test(registry, only_the_owner_unregisters)
{
    session(a, 1, "owner");
    session(a, 2, "other");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    bind(a, 1, "parked", "nobody", NULL);
    clear();
    unbind(a, 2, "t");
    unbind(b, 1, "t");
    unbind(a, 1, "unknown");
    nothing();
    unbind(a, 1, "t");
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    cr_assert_eq(recorder.count, 1);
    clear();
    unbind(a, 1, "t");
    unbind(a, 1, "parked");
    nothing();
    cr_assert_eq(counters.triggers, 0);
    cr_assert_eq(counters.triggers_parked, 0);
}

/* covers: 2.11#5 */
Test(registry, a_refusal_is_the_providers_alone_and_parks_the_bind)
{
    session(a, 1, "owner");
    session(b, 8, "other");
    session(b, 9, "provider");
    provide(b, 8, NULL, "mail");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    clear();
    refuse(b, 8, "t", "cron", "f");
    refuse(a, 1, "t", "cron", "f");
    refuse(b, 9, "t", "mail", "f");
    refuse(b, 9, "t", "cron", "g");
    refuse(b, 9, "unknown", "cron", "f");
    nothing();
    cr_assert_eq(counters.triggers_parked, 0);
    refuse(b, 9, "t", "cron", "f");
    cr_assert_str_eq(recorded_text(&recorder.messages[0], 3), "f");
    expect_failure(a, 1, "t", "\"message\":\"no\"");
    cr_assert_eq(counters.triggers_parked, 1);
    refuse(b, 9, "t", "cron", "f");
    nothing();
    provide(b, 9, NULL, "cron");
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "t", "cron");
    cr_assert_eq(recorder.count, 1, "a refused bind is not taken back");
    refuse(b, 9, "t", "cron", NULL);
    clear();
    unbind(a, 1, "t");
    nothing();
}

Test(registry, a_gone_owner_is_told_to_the_provider)
{
    session(a, 1, "owner");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t1", "cron", NULL);
    bind(a, 1, "t2", "nobody", NULL);
    clear();
    session_end(a, 1);
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t1", "cron");
    cr_assert_eq(recorder.count, 1);
    cr_assert_eq(counters.triggers, 0);
    cr_assert_eq(counters.triggers_parked, 0);
}

Test(registry, a_gone_provider_leaves_parked_binds)
{
    session(a, 1, "owner");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    bind(b, 9, "own", "cron", NULL);
    clear();
    routes_peer_gone(routes, b);
    registry_peer_gone(registry, b);
    nothing();
    cr_assert_eq(counters.trigger_types, 0);
    cr_assert_eq(counters.triggers, 1);
    cr_assert_eq(counters.triggers_parked, 1);
    session(a, 2, "provider");
    provide(a, 2, NULL, "cron");
    expect_told(0, WIRE_TRIGGER_BIND, a, 2, "t", "cron");
    TAKE(a, WIRE_TRIGGER_TYPE_UNREGISTER, 2, NULL, "cron");
    expect_told(1, WIRE_TRIGGER_UNBIND, a, 2, "t", "cron");
    cr_assert_eq(counters.triggers_parked, 1);
    refuse(a, 2, "t", "cron", "f");
    cr_assert_eq(recorder.count, 2);
}

/* PROTOCOL 2.12: who takes a session's place is told when all of it is over. */
Test(registry, a_retired_session_is_over_before_its_successor_goes_on)
{
    session(a, 1, "old");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    session(b, 2, "new");
    clear();
    take_texts(b, WIRE_SESSION_REATTACH, 77, 2, (struct texts){{NULL, "old", "token"}});
    only(WIRE_SESSION_EVICT, a);
    session_end(a, 1);
    cr_assert_eq(recorder.count, 3);
    expect_told(1, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    cr_assert_eq(nth(2, WIRE_SESSION_REATTACHED, b)->id, 77);
}

/* A type is looked up where it is said to be, else with the owner and then in default; what comes
 * first in that order has the bind, whichever was there first. */
Test(registry, a_provider_is_looked_up_by_namespace)
{
    session(a, 1, "owner");
    describe(a, 1, "{\"namespace\":\"blue\"}");
    session(b, 7, "red");
    session(b, 8, "blue");
    session(b, 9, "default");
    bind(a, 1, "near", "cron", NULL);
    bind(a, 1, "far", "cron", "red");
    nothing();
    provide(b, 9, NULL, "cron");
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "near", "cron");
    cr_assert_eq(recorder.count, 1);
    clear();
    provide(b, 8, "blue", "cron");
    cr_assert_eq(recorder.count, 2);
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "near", "cron");
    expect_told(1, WIRE_TRIGGER_BIND, b, 8, "near", "cron");
    clear();
    provide(b, 7, "red", "cron");
    expect_told(0, WIRE_TRIGGER_BIND, b, 7, "far", "cron");
    cr_assert_str_eq(recorded_text(&recorder.messages[0], 7), "red");
    clear();
    session_end(b, 8);
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "near", "cron");
    session_end(b, 7);
    cr_assert_eq(recorder.count, 1, "the one that names its provider's namespace is parked");
    cr_assert_eq(counters.triggers_parked, 1);
}

Test(registry, a_session_that_moves_takes_its_triggers_along)
{
    session(a, 1, "owner");
    session(b, 8, "blue");
    session(b, 9, "default");
    provide(b, 8, "blue", "cron");
    provide(b, 9, "default", "cron");
    bind(a, 1, "t", "cron", NULL);
    bind(a, 1, "fixed", "cron", "default");
    clear();
    describe(a, 1, "{\"name\":\"x\"}");
    nothing();
    describe(a, 1, "{\"namespace\":\"blue\"}");
    cr_assert_eq(recorder.count, 2);
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    expect_told(1, WIRE_TRIGGER_BIND, b, 8, "t", "cron");
}

/* A provider knows its binds by id: of two owners' it is told the newer one, and the other when
 * that one goes. A worker that comes back registers its ids before its old connection is noticed to
 * be dead. */
Test(registry, of_two_owners_with_one_id_the_newer_is_bound)
{
    session(a, 1, "old");
    session(a, 2, "new");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    clear();
    TAKE(a, WIRE_TRIGGER_REGISTER, 2, "t", "cron", "g", "{}", NULL, NULL, NULL);
    cr_assert_eq(recorder.count, 2);
    expect_told(0, WIRE_TRIGGER_UNBIND, b, 9, "t", "cron");
    expect_told(1, WIRE_TRIGGER_BIND, b, 9, "t", "cron");
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 3), "g");
    cr_assert_eq(counters.triggers_parked, 1);
    clear();
    provide(b, 9, NULL, "cron");
    const struct recorded *told = &recorder.messages[recorder.count - 1];
    cr_assert_eq(told->type, WIRE_TRIGGER_BIND);
    cr_assert_str_eq(recorded_text(told, 3), "g", "a replay ends with the newer one as well");
    clear();
    refuse(b, 9, "t", "cron", "g");
    nth(0, WIRE_TRIGGER_RESULT, a);
    expect_told(1, WIRE_TRIGGER_BIND, b, 9, "t", "cron");
    cr_assert_str_eq(recorded_text(&recorder.messages[1], 3), "f");
    clear();
    session_end(a, 2);
    nothing();
    session_end(a, 1);
    only(WIRE_TRIGGER_UNBIND, b);
}

/* A provider's gateway that does not read is not given more; it gets it later. */
/* However many there are: one that ends costs its provider one UNBIND and one BIND, one that was not
 * bound nothing. */
Test(registry, of_many_owners_with_one_id_the_next_newest_follows)
{
    enum { OWNERS = 300 }; /* more than fit the table as it is made */
    char name[16];
    session(b, 999, "provider");
    provide(b, 999, NULL, "cron");
    for (uint64_t number = 1; number <= OWNERS; number++) {
        (void)snprintf(name, sizeof name, "w%llu", (unsigned long long)number);
        session(a, number, name);
        bind(a, number, "same", "cron", NULL);
        clear();
    }
    cr_assert_eq(counters.triggers_parked, OWNERS - 1);
    session_end(a, 5);
    nothing();
    for (uint64_t number = OWNERS; number > OWNERS - 20; number--) {
        session_end(a, number);
        cr_assert_eq(recorder.count, 2);
        expect_told(0, WIRE_TRIGGER_UNBIND, b, 999, "same", "cron");
        expect_told(1, WIRE_TRIGGER_BIND, b, 999, "same", "cron");
        clear();
    }
    cr_assert_eq(counters.triggers, OWNERS - 21);
    cr_assert_eq(counters.triggers_parked, OWNERS - 22);
}

Test(registry, a_busy_gateway_is_told_later)
{
    session(a, 1, "owner");
    session(b, 9, "provider");
    provide(b, 9, NULL, "cron");
    recorder.busy = true;
    bind(a, 1, "t1", "cron", NULL);
    bind(a, 1, "t2", "cron", NULL);
    unbind(a, 1, "t2");
    registry_tick(registry, now_ms);
    nothing();
    cr_assert_eq(counters.triggers_parked, 1);
    recorder.busy = false;
    registry_tick(registry, now_ms);
    expect_told(0, WIRE_TRIGGER_BIND, b, 9, "t1", "cron");
    registry_tick(registry, now_ms);
    cr_assert_eq(recorder.count, 1);
    cr_assert_eq(counters.triggers_parked, 0);
}

Test(registry, weirs_own_types_are_nobodys)
{
    static const char *const own[] = {"stream", "stream:join", "stream:leave",
                                      "engine::functions-available", "engine::workers-available"};
    session(a, 1, "w");
    for (unsigned index = 0; index < 5; index++) {
        provide(a, 1, index % 2 ? "blue" : NULL, own[index]);
        expect_failure(a, 1, own[index], "server's own");
    }
    cr_assert_eq(counters.trigger_types, 0);
}

Test(registry, a_bad_config_of_an_own_type_is_refused)
{
    session(a, 1, "w");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t1", "stream", "f", "{}", NULL, NULL, NULL);
    expect_failure(a, 1, "t1", "stream_name is required");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t2", "stream:join", "f", "{\"stream_name\":5}", NULL, NULL,
         NULL);
    expect_failure(a, 1, "t2", "stream_name");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t3", "stream:leave", "f", "{", NULL, NULL, NULL);
    expect_failure(a, 1, "t3", "config is not JSON");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "", "cron", "f", "{}", NULL, NULL, NULL);
    expect_failure(a, 1, "", "empty");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t5", "cron", "", "{}", NULL, NULL, NULL);
    expect_failure(a, 1, "t5", "empty");
    TAKE(a, WIRE_TRIGGER_TYPE_REGISTER, 1, NULL, "", NULL, NULL, NULL);
    expect_failure(a, 1, "", "empty");
    cr_assert_eq(counters.triggers, 0);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t1", "stream", "f", "{\"stream_name\":\"s\"}", NULL, NULL,
         NULL);
    nothing();
    cr_assert_eq(counters.triggers, 1);
    cr_assert_eq(counters.triggers_parked, 0, "its owner's gateway runs it");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t1", "stream", "f", "{}", NULL, NULL, NULL);
    expect_failure(a, 1, "t1", "stream_name is required");
    cr_assert_eq(counters.triggers, 0, "what replaces a bind and is refused leaves none");
}

Test(registry, unknown_sessions_and_messages_to_gateways)
{
    struct wire_message wrong = {.type = WIRE_TRIGGER_BIND};
    provide(a, 1, NULL, "cron");
    bind(a, 1, "t", "cron", NULL);
    unbind(a, 1, "t");
    refuse(a, 1, "t", "cron", "f");
    TAKE(a, WIRE_TRIGGER_TYPE_UNREGISTER, 1, NULL, "cron");
    nothing();
    cr_assert_eq(counters.triggers + counters.trigger_types, 0);
    cr_assert_eq(registry_take(registry, a, &wrong), WEIR_INVALID);
    session(a, 1, "w");
    unbind(a, 1, "t");
    refuse(a, 1, "t", "cron", "f");
    TAKE(a, WIRE_TRIGGER_TYPE_UNREGISTER, 1, NULL, "stream");
    TAKE(a, WIRE_TRIGGER_TYPE_UNREGISTER, 1, NULL, "cron");
    nothing();
}

/* ---- stream:join ---- */

static void gate(struct peer_handle peer, uint64_t number, const char *id, const char *config)
{
    TAKE(peer, WIRE_TRIGGER_REGISTER, number, id, "stream:join", "may", config, "{\"m\":1}", "blue",
         NULL);
}

Test(registry, every_gateway_knows_every_gate)
{
    registry_peer_attached(registry, a);
    registry_peer_attached(registry, b);
    session(a, 1, "w");
    gate(a, 1, "t1", "{\"stream_name\":\"ch\\u0061t\",\"condition_function_id\":\"c\"}");
    cr_assert_eq(recorder.count, 2);
    const struct recorded *told = nth(0, WIRE_GATE_BIND, a);
    uint64_t first = told->fields[0].number;
    const char *const wanted[] = {NULL, "blue", "may", "chat", "c", "{\"m\":1}"};
    for (unsigned index = 1; index < 6; index++)
        cr_assert_str_eq(recorded_text(told, index), wanted[index]);
    cr_assert_eq(nth(1, WIRE_GATE_BIND, b)->fields[0].number, first);
    cr_assert_eq(counters.triggers_parked, 0);
    clear();

    /* Bound again: the new gate is there before the old one goes. */
    gate(a, 1, "t1", NULL);
    cr_assert_eq(recorder.count, 4);
    told = nth(0, WIRE_GATE_BIND, a);
    uint64_t second = told->fields[0].number;
    cr_assert_neq(second, first);
    cr_assert_str_eq(recorded_text(told, 3), "(nil)");
    cr_assert_str_eq(recorded_text(told, 4), "(nil)");
    cr_assert_eq(nth(2, WIRE_GATE_UNBIND, a)->fields[0].number, first);
    nth(3, WIRE_GATE_UNBIND, b);
    clear();

    gate(a, 1, "t2", "{}");
    clear();
    registry_peer_gone(registry, b);
    const struct peer_handle late = {b.slot, b.generation + 1};
    registry_peer_attached(registry, late);
    cr_assert_eq(recorder.count, 2, "a gateway that comes is told of all of them");
    cr_assert_eq(nth(0, WIRE_GATE_BIND, late)->fields[0].number, second);
    clear();
    registry_peer_gone(registry, b);
    session_end(a, 1);
    cr_assert_eq(recorder.count, 4);
    for (unsigned index = 0; index < 4; index++)
        nth(index, WIRE_GATE_UNBIND, index % 2 ? late : a);
}

/* ---- stream:join triggers whose owner has gone ---- */

static uint64_t expect_gate(unsigned index, struct peer_handle peer)
{
    return nth(index, WIRE_GATE_BIND, peer)->fields[0].number;
}

static void expect_gate_ends(unsigned index, struct peer_handle peer, uint64_t handle,
                             uint64_t is_away)
{
    const struct recorded *message = nth(index, WIRE_GATE_UNBIND, peer);
    cr_assert_eq(message->fields[0].number, handle);
    cr_assert_eq(message->fields[1].number, is_away);
}

Test(registry, a_gate_whose_owner_has_gone_is_away_until_it_is_bound_again)
{
    registry_peer_attached(registry, a);
    session(a, 1, "w");
    gate(a, 1, "t", "{\"stream_name\":\"chat\",\"condition_function_id\":\"c\"}");
    uint64_t first = expect_gate(0, a);
    clear();
    session_end(a, 1);
    cr_assert_eq(recorder.count, 1);
    expect_gate_ends(0, a, first, 1);
    cr_assert_eq(counters.gates_away, 1);
    cr_assert_eq(counters.triggers, 0);
    clear();

    registry_peer_attached(registry, b);
    cr_assert_eq(recorder.count, 1, "a gateway that comes is told of it");
    const struct recorded *told = nth(0, WIRE_GATE_BIND, b);
    cr_assert_eq(told->fields[0].number, first);
    cr_assert_eq(told->fields[6].number, 1);
    const char *const wanted[] = {NULL, "blue", "may", "chat", "c", "{\"m\":1}"};
    for (unsigned index = 1; index < 6; index++)
        cr_assert_str_eq(recorded_text(told, index), wanted[index]);
    clear();

    /* Other gates are other gates. */
    session(b, 1, "v");
    gate(b, 1, "t", NULL);
    gate(b, 1, "u", "{\"stream_name\":\"\"}");
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "v", "stream:join", "may", "{\"stream_name\":\"chat\"}", NULL,
         NULL, NULL);
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "w", "stream:join", "must", "{\"stream_name\":\"chat\"}",
         NULL, "blue", NULL);
    TAKE(b, WIRE_TRIGGER_REGISTER, 1, "x", "stream:leave", "may", "{\"stream_name\":\"chat\"}",
         NULL, "blue", NULL);
    cr_assert_eq(recorder.count, 8);
    cr_assert_eq(counters.gates_away, 1);
    clear();
    /* The same again, under another id and without condition: first it is there, then away ends. */
    gate(b, 1, "again", "{\"stream_name\":\"chat\"}");
    cr_assert_eq(recorder.count, 4);
    uint64_t second = expect_gate(0, a);
    cr_assert_eq(recorder.messages[0].fields[6].number, 0);
    cr_assert_eq(expect_gate(1, b), second);
    expect_gate_ends(2, a, first, 0);
    expect_gate_ends(3, b, first, 0);
    cr_assert_eq(counters.gates_away, 0);
    clear();
    unbind(b, 1, "again");
    cr_assert_eq(recorder.count, 2);
    expect_gate_ends(0, a, second, 0);
    cr_assert_eq(counters.gates_away, 0, "withdrawn");
    clear();

    /* The others go with their gateway, each for itself. */
    routes_peer_gone(routes, b);
    registry_peer_gone(registry, b);
    cr_assert_eq(counters.gates_away, 4);
    clear();
    registry_peer_attached(registry, (struct peer_handle){2, 1});
    cr_assert_eq(recorder.count, 4);
}

static void remember(const char *space, const char *function, const char *stream)
{
    const struct span nil = {0};
    const struct wire_message message = {
        .type = WIRE_GATE_BIND,
        .fields = {WIRE_NUMBER(0), WIRE_SPAN(space ? span_text(space) : nil),
                   WIRE_SPAN(span_text(function)), WIRE_SPAN(stream ? span_text(stream) : nil),
                   WIRE_SPAN(span_text("c")), WIRE_SPAN(span_text("{\"m\":1}")), WIRE_NUMBER(1)}};
    enum weir_status status = registry_take(registry, a, &message);
    cr_assert_eq(status, *function ? WEIR_OK : WEIR_INVALID);
}

Test(registry, gateways_hear_when_all_gates_are_known)
{
    const struct peer_handle late = {2, 1};
    registry_peer_attached(registry, a);
    registry_peer_attached(registry, b);
    nothing();
    remember("blue", "may", NULL);
    clear();
    registry_gates_told(registry);
    cr_assert_eq(recorder.count, 2);
    nth(0, WIRE_GATES_TOLD, a);
    nth(1, WIRE_GATES_TOLD, b);
    clear();
    registry_gates_told(registry);
    nothing();
    registry_peer_attached(registry, late);
    cr_assert_eq(recorder.count, 2, "who comes then hears it behind the gates");
    nth(0, WIRE_GATE_BIND, late);
    nth(1, WIRE_GATES_TOLD, late);
}

/* Gateways tell a new broker which gates were away: all of them learn it, once. */
Test(registry, away_gates_of_an_earlier_broker_are_taken_over)
{
    registry_peer_attached(registry, a);
    registry_peer_attached(registry, b);
    session(a, 1, "w");
    gate(a, 1, "t", NULL);
    clear();
    remember("blue", "may", NULL);
    remember("blue", "", NULL);
    nothing();
    remember("blue", "may", "chat");
    cr_assert_eq(recorder.count, 2);
    uint64_t handle = expect_gate(0, a);
    cr_assert_eq(expect_gate(1, b), handle);
    const char *const wanted[] = {NULL, "blue", "may", "chat", "c", "{\"m\":1}"};
    for (unsigned index = 1; index < 6; index++)
        cr_assert_str_eq(recorded_text(&recorder.messages[1], index), wanted[index]);
    cr_assert_eq(recorder.messages[1].fields[6].number, 1);
    clear();
    remember("blue", "may", "chat");
    nothing();
    cr_assert_eq(counters.gates_away, 1);
    remember(NULL, "may", "chat");
    cr_assert_str_eq(recorded_text(&recorder.messages[0], 1), "default");
    cr_assert_eq(counters.gates_away, 2);
    clear();
    gate(a, 1, "u", "{\"stream_name\":\"chat\"}");
    cr_assert_eq(recorder.count, 4);
    expect_gate_ends(3, b, handle, 0);
    cr_assert_eq(counters.gates_away, 1);
    clear();
}

Test(registry, a_gate_that_somebody_else_has_as_well_is_not_away)
{
    registry_peer_attached(registry, a);
    session(a, 1, "w");
    session(b, 1, "v");
    gate(a, 1, "t", NULL);
    gate(b, 1, "t", NULL);
    gate(b, 1, "u", "{\"condition_function_id\":\"c\"}");
    uint64_t first = expect_gate(0, a), second = expect_gate(1, a), third = expect_gate(2, a);
    clear();
    session_end(a, 1);
    cr_assert_eq(recorder.count, 1);
    expect_gate_ends(0, a, first, 0);
    cr_assert_eq(counters.gates_away, 0);
    clear();
    /* All of one worker's own: one is remembered. */
    session_end(b, 1);
    cr_assert_eq(recorder.count, 2);
    uint64_t last = recorder.messages[1].fields[0].number;
    cr_assert(last == second || last == third);
    expect_gate_ends(0, a, last == second ? third : second, 0);
    expect_gate_ends(1, a, last, 1);
    cr_assert_eq(counters.gates_away, 1);
}

static void open_forgetful(void)
{
    fixture_forgets_gates = true;
    open_default();
}

Test(registry_open_gates, a_gate_whose_owner_has_gone_is_withdrawn, .init = open_forgetful,
     .fini = fixture_close, .timeout = HANG_SECONDS)
{
    registry_peer_attached(registry, a);
    session(a, 1, "w");
    gate(a, 1, "t", NULL);
    uint64_t handle = expect_gate(0, a);
    clear();
    session_end(a, 1);
    cr_assert_eq(recorder.count, 1);
    expect_gate_ends(0, a, handle, 0);
    clear();
    remember("blue", "may", NULL);
    nothing();
    cr_assert_eq(counters.gates_away, 0);
}

/* ---- what the broker delivers itself ---- */

struct wanted_log {
    unsigned calls;
    bool wanted;
};

static void note_wanted(void *context, bool wanted)
{
    struct wanted_log *log = context;
    log->calls++;
    log->wanted = wanted;
}

/* Let what was pushed be called, and return the only call. */
static const struct recorded *delivered(struct peer_handle peer)
{
    cr_assert_not(deliveries_run(deliveries, now_ms));
    return only(WIRE_INVOKE, peer);
}

Test(registry, leaves_go_to_the_triggers_whose_stream_fits)
{
    struct wanted_log log = {0};
    registry_observe_leave(registry, &(struct registry_leave_observer){note_wanted, &log});
    session(a, 1, "w");
    TAKE(a, WIRE_FUNCTION_REGISTER, 1, NULL, "f");
    TAKE(a, WIRE_FUNCTION_REGISTER, 1, NULL, "g");
    cr_assert_not(registry_wants_leaves(registry));
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "all", "stream:leave", "f", "null", "[7]", NULL, NULL);
    cr_assert(log.calls == 1 && log.wanted && registry_wants_leaves(registry));
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "chat", "stream:leave", "g", "{\"stream_name\":\"chat\"}",
         NULL, NULL, NULL);
    registry_leave(registry, SPAN_LITERAL("mail"), SPAN_LITERAL("{\"n\":1}"));
    const struct recorded *call = delivered(a);
    cr_assert_str_eq(recorded_text(call, 1), "f");
    cr_assert_str_eq(recorded_text(call, 2), "{\"n\":1}");
    cr_assert_str_eq(recorded_text(call, 3), "[7]");
    clear();
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "all", "stream:leave", "f", "null", NULL, NULL, NULL);
    registry_leave(registry, SPAN_LITERAL("chat"), SPAN_LITERAL("{\"n\":2}"));
    cr_assert_not(deliveries_run(deliveries, now_ms));
    cr_assert_eq(recorder.count, 2, "each once");
    cr_assert_eq(log.calls, 1);
    unbind(a, 1, "all");
    cr_assert(log.wanted);
    session_end(a, 1);
    cr_assert(log.calls == 2 && !log.wanted && !registry_wants_leaves(registry));
}

/* Replacing the only one leaves no moment without. */
Test(registry, a_replaced_leave_trigger_stays_wanted)
{
    struct wanted_log log = {0};
    registry_observe_leave(registry, &(struct registry_leave_observer){note_wanted, &log});
    session(a, 1, "w");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "stream:leave", "f", "null", NULL, NULL, NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "stream:leave", "g", "null", NULL, NULL, NULL);
    cr_assert(log.calls == 1 && log.wanted);
}

Test(registry, workers_that_come_and_go_are_told)
{
    static const char *const events[] = {"worker_connected", "worker_metadata_updated",
                                         "worker_disconnected"};
    session(a, 1, "watcher");
    TAKE(a, WIRE_FUNCTION_REGISTER, 1, NULL, "f");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "engine::workers-available", "f", NULL, NULL, NULL,
         NULL);
    for (unsigned index = 0; index < 3; index++) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "{\"event\":\"%s\",\"worker_id\":\"other\"}",
                 events[index]);
        if (index == 0)
            session(b, 5, "other");
        else if (index == 1)
            describe(b, 5, "{\"pid\":1}");
        else
            session_end(b, 5);
        cr_assert_str_eq(recorded_text(delivered(a), 2), wanted);
        clear();
    }
}

/* Looked at every five seconds; a function that went and came back in between is no change. */
Test(registry, a_changed_set_of_functions_is_told)
{
    session(a, 1, "watcher");
    TAKE(a, WIRE_FUNCTION_REGISTER, 1, NULL, "f");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "t", "engine::functions-available", "f", NULL, NULL, NULL,
         NULL);
    registry_tick(registry, now_ms);
    const char *payload = recorded_text(delivered(a), 2);
    cr_assert_eq(
        strstr(payload, "{\"event\":\"functions_changed\",\"functions\":[{\"function_id\":"),
        payload, "%s", payload);
    cr_assert(strstr(payload, "{\"function_id\":\"f\",\"namespace\":\"default\""), "%s", payload);
    clear();
    TAKE(a, WIRE_FUNCTION_REGISTER, 1, NULL, "g");
    registry_tick(registry, now_ms += 4999);
    cr_assert_not(deliveries_run(deliveries, now_ms));
    nothing();
    registry_tick(registry, now_ms += 1);
    delivered(a);
    clear();
    TAKE(a, WIRE_FUNCTION_UNREGISTER, 1, NULL, "g");
    session(b, 5, "other");
    TAKE(b, WIRE_FUNCTION_REGISTER, 5, NULL, "g");
    registry_tick(registry, now_ms += 5000);
    cr_assert_not(deliveries_run(deliveries, now_ms));
    nothing();
    TAKE(b, WIRE_FUNCTION_REGISTER, 5, "blue", "g");
    now_ms = 0; /* the clock was set back */
    registry_tick(registry, now_ms);
    delivered(a);
}

/* ---- bounds ---- */

static void open_small(void)
{
    fixture_open(NULL, &(struct registry_limits){.session_types_max = 2,
                                                 .session_triggers_max = 2,
                                                 .own_triggers_max = 1,
                                                 .bytes_each_max = 4096,
                                                 .bytes_max = 7000});
}

Test(registry_limits, every_bound_is_a_failure_told, .init = open_small, .fini = fixture_close,
     .timeout = HANG_SECONDS)
{
    char large[5000], half[3000];
    memset(large, '1', sizeof large - 1);
    memset(half, '1', sizeof half - 1);
    large[sizeof large - 1] = half[sizeof half - 1] = 0;
    session(a, 1, "w");
    session(a, 2, "v");
    provide(a, 1, NULL, "t1");
    provide(a, 1, NULL, "t2");
    provide(a, 1, NULL, "t3");
    expect_failure(a, 1, "t3", "as many trigger types");
    provide(a, 1, NULL, "t2");
    nothing();
    bind(a, 2, "b1", "x", NULL);
    bind(a, 2, "b2", "x", NULL);
    bind(a, 2, "b3", "x", NULL);
    expect_failure(a, 2, "b3", "as many triggers");
    bind(a, 2, "b2", "x", NULL);
    nothing();
    unbind(a, 2, "b1");
    TAKE(a, WIRE_TRIGGER_REGISTER, 2, "b1", "x", "f", large, NULL, NULL, NULL);
    expect_failure(a, 2, "b1", "larger than");
    TAKE(a, WIRE_TRIGGER_TYPE_REGISTER, 2, NULL, "x", large, NULL, NULL);
    expect_failure(a, 2, "x", "larger than");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "c1", "x", "f", half, NULL, NULL, NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 2, "b1", "x", "f", half, NULL, NULL, NULL);
    expect_failure(a, 2, "b1", "all triggers");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "c1", "x", "f", half, NULL, NULL, NULL);
    nothing();
    TAKE(a, WIRE_TRIGGER_TYPE_REGISTER, 2, NULL, "x", half, NULL, NULL);
    expect_failure(a, 2, "x", "all triggers");
    cr_assert_eq(counters.registrations_refused, 6);

    session_end(a, 1);
    session_end(a, 2);
    session(a, 1, "w");
    session(a, 2, "v");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "f", NULL, NULL, NULL, NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "g", NULL, NULL, NULL, NULL);
    nothing();
    TAKE(a, WIRE_TRIGGER_REGISTER, 2, "j", "stream:join", "f", NULL, NULL, NULL, NULL);
    expect_failure(a, 2, "j", "as many triggers of this type");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:leave", "g", NULL, NULL, NULL, NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "s1", "stream", "g", "{\"stream_name\":\"s\"}", NULL, NULL,
         NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 2, "j", "stream:join", "f", NULL, NULL, NULL, NULL);
    nothing();
}

/* An away gate keeps the place and the bytes it had, so that it never has to be let go. */
Test(registry_limits, away_gates_count, .init = open_small, .fini = fixture_close,
     .timeout = HANG_SECONDS)
{
    char half[3600];
    memset(half, '1', sizeof half - 1);
    half[sizeof half - 1] = 0;
    session(a, 1, "w");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "f", NULL, half, NULL, NULL);
    session_end(a, 1);
    cr_assert_eq(counters.gates_away, 1);
    session(a, 1, "w");
    nothing();
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "g", NULL, NULL, NULL, NULL);
    expect_failure(a, 1, "j", "as many triggers of this type");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "l", "stream:leave", "g", NULL, half, NULL, NULL);
    expect_failure(a, 1, "l", "all triggers");
    remember(NULL, "g", NULL);
    nothing();
    cr_assert_eq(counters.gates_away, 1);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "f", NULL, half, NULL, NULL);
    nothing();
    cr_assert_eq(counters.gates_away, 0);
    unbind(a, 1, "j");
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "j", "stream:join", "g", NULL, half, NULL, NULL);
    TAKE(a, WIRE_TRIGGER_REGISTER, 1, "l", "stream:leave", "g", NULL, NULL, NULL, NULL);
    nothing();
}

/* ---- a model ---- */

enum { MODEL_PEERS = 2, MODEL_SESSIONS = 5, MODEL_IDS = 6, MODEL_TYPES = 3 };

/* What the providers' gateways were told: [peer][session][type][id] is 1 while bound there. */
static int told[MODEL_PEERS][MODEL_SESSIONS][MODEL_TYPES][MODEL_IDS];
/* What is registered: of a type the provider (peer * MODEL_SESSIONS + session, or -1) by namespace
 * (0 default, 1 blue), and of each session's ids the type + 1. */
static int providers[MODEL_TYPES][2];
static int bound_type[MODEL_PEERS * MODEL_SESSIONS][MODEL_IDS];
/* Each registration of a type has a number; which of them has refused the trigger, 0 none. */
static unsigned provider_serial[MODEL_TYPES][2], last_serial;
static unsigned refused_by[MODEL_PEERS * MODEL_SESSIONS][MODEL_IDS];
static bool alive[MODEL_PEERS * MODEL_SESSIONS];
static struct peer_handle model_peers[MODEL_PEERS] = {{0, 1}, {1, 1}};

/* A session, or a whole peer's, is gone: what it was told is forgotten with it. */
static void model_forget(int who)
{
    alive[who] = false;
    memset(bound_type[who], 0, sizeof bound_type[who]);
    memset(told[who / MODEL_SESSIONS][who % MODEL_SESSIONS], 0, sizeof told[0][0]);
    for (int type = 0; type < MODEL_TYPES; type++)
        for (int space = 0; space < 2; space++)
            if (providers[type][space] == who)
                providers[type][space] = -1;
}

/* The namespace of the trigger's provider, should there be one. */
static int model_space(int who, int id)
{
    int type = bound_type[who][id] - 1;
    return who % 2 && providers[type][1] >= 0; /* odd sessions live in blue */
}

static unsigned model_serial(int who, int id)
{
    int type = bound_type[who][id] - 1, space = type < 0 ? 0 : model_space(who, id);
    return type < 0 || providers[type][space] < 0 ? 0 : provider_serial[type][space];
}

static int model_wants(int provider, int type, int id)
{
    for (int who = 0; who < MODEL_PEERS * MODEL_SESSIONS; who++)
        if (bound_type[who][id] == type + 1 && providers[type][model_space(who, id)] == provider &&
            refused_by[who][id] != model_serial(who, id))
            return 1;
    return 0;
}

static void model_read_messages(void)
{
    for (unsigned index = 0; index < recorder.count; index++) {
        const struct recorded *message = &recorder.messages[index];
        int number = (int)message->fields[0].number, id = recorded_text(message, 1)[0] - 'a';
        int who = (int)message->peer.slot * MODEL_SESSIONS + number;
        if (message->type == WIRE_TRIGGER_RESULT)
            refused_by[who][id] = model_serial(who, id);
        if (message->type != WIRE_TRIGGER_BIND && message->type != WIRE_TRIGGER_UNBIND)
            continue;
        int *bind_told = &told[message->peer.slot][number][recorded_text(message, 2)[0] - 'A'][id];
        *bind_told += message->type == WIRE_TRIGGER_BIND ? 1 : -1;
        cr_assert(*bind_told == 0 || *bind_told == 1, "%s twice", wire_type_name(message->type));
    }
    clear();
}

static void model_check(unsigned step)
{
    unsigned types = 0, binds = 0;
    for (int who = 0; who < MODEL_PEERS * MODEL_SESSIONS; who++) {
        for (int id = 0; id < MODEL_IDS; id++) {
            binds += bound_type[who][id] > 0;
            if (refused_by[who][id] != model_serial(who, id))
                refused_by[who][id] = 0; /* it has another provider now, or its type anew */
        }
    }
    for (int type = 0; type < MODEL_TYPES; type++) {
        types += (unsigned)((providers[type][0] >= 0) + (providers[type][1] >= 0));
        for (int who = 0; who < MODEL_PEERS * MODEL_SESSIONS; who++)
            for (int id = 0; id < MODEL_IDS; id++)
                cr_assert_eq(told[who / MODEL_SESSIONS][who % MODEL_SESSIONS][type][id],
                             model_wants(who, type, id), "step %u, provider %d, type %d, id %d",
                             step, who, type, id);
    }
    cr_assert_eq(counters.trigger_types, types, "step %u", step);
    cr_assert_eq(counters.triggers, binds, "step %u", step);
}

static void model_step(void)
{
    int peer = rand() % MODEL_PEERS, number = rand() % MODEL_SESSIONS;
    int who = peer * MODEL_SESSIONS + number, type = rand() % MODEL_TYPES, id = rand() % MODEL_IDS;
    int space = rand() % 2, action = rand() % 100;
    char id_text[] = {(char)('a' + id), 0}, type_text[] = {(char)('A' + type), 0};
    if (!alive[who]) {
        char worker_id[16];
        snprintf(worker_id, sizeof worker_id, "w%d", who);
        session(model_peers[peer], (uint64_t)number, worker_id);
        if (who % 2)
            describe(model_peers[peer], (uint64_t)number, "{\"namespace\":\"blue\"}");
        alive[who] = true;
    } else if (action < 50) {
        bind(model_peers[peer], (uint64_t)number, id_text, type_text, NULL);
        bound_type[who][id] = type + 1;
        refused_by[who][id] = 0;
    } else if (action < 65) {
        unbind(model_peers[peer], (uint64_t)number, id_text);
        bound_type[who][id] = 0;
    } else if (action < 80) {
        provide(model_peers[peer], (uint64_t)number, space ? "blue" : NULL, type_text);
        providers[type][space] = who;
        provider_serial[type][space] = ++last_serial;
    } else if (action < 88 && told[peer][number][type][id]) {
        told[peer][number][type][id] = 0; /* what is refused is not taken back */
        refuse(model_peers[peer], (uint64_t)number, id_text, type_text, "f");
    } else if (action < 92 && providers[type][space] == who) {
        TAKE(model_peers[peer], WIRE_TRIGGER_TYPE_UNREGISTER, (uint64_t)number,
             space ? "blue" : NULL, type_text);
        providers[type][space] = -1;
    } else if (action < 98) {
        session_end(model_peers[peer], (uint64_t)number);
        model_read_messages();
        model_forget(who);
    } else {
        routes_peer_gone(routes, model_peers[peer]);
        registry_peer_gone(registry, model_peers[peer]);
        model_peers[peer].generation++;
        model_read_messages();
        for (number = 0; number < MODEL_SESSIONS; number++)
            model_forget(peer * MODEL_SESSIONS + number);
    }
}

/* Random sessions, types, binds, some with the same id, and refusals: after every step each bind that
 * has a provider is told to that one, once, and nobody else; at the end nothing is left. */
Test(registry, every_live_bind_is_told_to_exactly_one_provider, .timeout = HANG_SECONDS)
{
    const char *seed_text = getenv("WEIR_SEED");
    unsigned seed = seed_text ? (unsigned)strtoul(seed_text, NULL, 10) : 20250311;
    fprintf(stderr, "seed %u\n", seed);
    srand(seed);
    memset(providers, -1, sizeof providers);
    for (unsigned step = 0; step < 30000; step++) {
        model_step();
        model_read_messages();
        model_check(step);
    }
    for (unsigned peer = 0; peer < MODEL_PEERS; peer++)
        routes_peer_gone(routes, model_peers[peer]);
    cr_assert_eq(counters.triggers + counters.trigger_types + counters.triggers_parked, 0);
}

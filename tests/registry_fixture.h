/* tests/registry_fixture.h -- routes, deliveries and triggers behind a recorded output, as the
 * broker puts them together; for the tests of the registry and of the listings. */
#ifndef WEIR_TESTS_REGISTRY_FIXTURE_H
#define WEIR_TESTS_REGISTRY_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>

#include "broker/registry.h"
#include "tests/broker_recorder.h"

static struct routes *routes;
static struct deliveries *deliveries;
static struct registry *registry;
static struct recorder recorder = {.hides_cancels = true};
static struct broker_counters counters;
static uint64_t now_ms;
static bool fixture_forgets_gates; /* join_gate: open */
static const struct peer_handle a = {0, 1};
static const struct peer_handle b = {1, 1};

static inline void fixture_open(const struct routes_limits *routes_limits,
                                const struct registry_limits *limits)
{
    struct weir_error error = {0};
    const struct broker_output output = recorder_output(&recorder);
    counters = (struct broker_counters){0};
    now_ms = 1000;
    cr_assert_eq(routes_open(&routes, &output, &counters, 4711, routes_limits, &error), WEIR_OK,
                 "%s", error.text);
    routes_set_time(routes, now_ms);
    cr_assert_eq(deliveries_open(&deliveries, routes, &counters, 30000, &error), WEIR_OK, "%s",
                 error.text);
    const struct registry_options options = {.routes = routes,
                                             .deliveries = deliveries,
                                             .output = output,
                                             .counters = &counters,
                                             .hash_seed = 17,
                                             .forgets_gates = fixture_forgets_gates,
                                             .limits = limits};
    cr_assert_eq(registry_open(&registry, &options, &error), WEIR_OK, "%s", error.text);
}

static inline void fixture_close(void)
{
    recorder_clear(&recorder);
    recorder.busy = false;
    registry_close(registry);
    deliveries_close(deliveries);
    routes_close(routes);
}

/* The texts are fields 1 to 7; those left out are nil. */
struct texts {
    const char *at[WIRE_FIELDS_KNOWN_MAX];
};
static inline void take_texts(struct peer_handle peer, enum wire_type type, uint64_t id,
                              uint64_t number, struct texts texts)
{
    struct wire_message message = {.type = type, .id = id};
    message.fields[0].number = number;
    for (unsigned index = 1; index < WIRE_FIELDS_KNOWN_MAX; index++)
        if (texts.at[index])
            message.fields[index].span = span_text(texts.at[index]);
    bool is_trigger = type >= WIRE_TRIGGER_TYPE_REGISTER && type <= WIRE_GATE_UNBIND;
    cr_assert_eq(is_trigger ? registry_take(registry, peer, &message)
                            : routes_take(routes, peer, &message),
                 WEIR_OK);
}
#define TAKE(peer, type, number, ...)                                                              \
    take_texts(peer, type, 0, number, (struct texts){{NULL, __VA_ARGS__}})

static inline void session(struct peer_handle peer, uint64_t number, const char *worker_id)
{
    TAKE(peer, WIRE_SESSION_OPEN, number, worker_id, "127.0.0.1");
}

static inline void describe(struct peer_handle peer, uint64_t number, const char *info)
{
    TAKE(peer, WIRE_SESSION_INFO, number, info);
}

static inline void session_end(struct peer_handle peer, uint64_t number)
{
    TAKE(peer, WIRE_SESSION_CLOSED, number, NULL);
}

static inline void provide(struct peer_handle peer, uint64_t number, const char *space,
                           const char *type)
{
    TAKE(peer, WIRE_TRIGGER_TYPE_REGISTER, number, space, type, "what it is",
         "{\"type\":\"object\"}", "{\"type\":\"string\"}");
}

/* A trigger of function f with config {"every":5}. */
static inline void bind(struct peer_handle peer, uint64_t number, const char *id, const char *type,
                        const char *provider_space)
{
    TAKE(peer, WIRE_TRIGGER_REGISTER, number, id, type, "f", "{\"every\":5}", "{\"m\":1}",
         "default", provider_space);
}

static inline void unbind(struct peer_handle peer, uint64_t number, const char *id)
{
    TAKE(peer, WIRE_TRIGGER_UNREGISTER, number, id);
}

static inline const struct recorded *nth(unsigned index, enum wire_type type,
                                         struct peer_handle peer)
{
    cr_assert_lt(index, recorder.count, "message %u of %u", index, recorder.count);
    const struct recorded *message = &recorder.messages[index];
    cr_assert_eq(message->type, type, "got %s", wire_type_name(message->type));
    cr_assert(peer_handle_equal(message->peer, peer), "to peer %u", message->peer.slot);
    return message;
}

/* Exactly one message since the last clear. */
static inline const struct recorded *only(enum wire_type type, struct peer_handle peer)
{
    cr_assert_eq(recorder.count, 1, "%u messages", recorder.count);
    return nth(0, type, peer);
}

static inline void nothing(void)
{
    cr_assert_eq(recorder.count, 0, "%u messages, the first a %s", recorder.count,
                 wire_type_name(recorder.messages[0].type));
}

static inline void clear(void)
{
    recorder_clear(&recorder);
}

#endif

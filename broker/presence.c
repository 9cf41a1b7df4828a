#include "broker/presence.h"

#include <stdlib.h>

#include "broker/bounds.h"
#include "broker/table.h"

/* Circular, with the list's head as a node of its own: an entry leaves without knowing its list,
 * and one list goes behind another in constant time. */
struct chain {
    struct chain *next, *previous;
};

struct entry {
    struct table_node node;
    struct chain chain; /* of its peer, of the leaving, or of the forgotten */
    struct peer_handle peer;
    uint64_t number;
    uint64_t round; /* of wanting; an entry of an earlier one is as good as gone */
    bool is_leaving;
    bool is_told; /* by LEFT, which is answered */
    uint32_t stream_bytes;
    uint32_t payload_bytes;
    char text[]; /* stream name, payload */
};

struct gateway_peer {
    struct peer_handle peer;
    bool is_attached;
    struct chain entries;
};

struct presence {
    struct broker_output output;
    struct presence_listener listener;
    struct broker_counters *counters;
    struct presence_limits limits;
    uint64_t hash_seed;
    bool is_wanted;
    uint64_t round;
    bool is_held;
    uint64_t held_ms;    /* since when */
    unsigned awaited;    /* gateways that have not come back, */
    uint64_t awaited_ms; /* and since when so many */
    bool is_waiting;     /* for room */
    uint64_t fired_ms;
    struct table entries; /* by peer and number; all there are, whatever chain they are in */
    uint64_t forgotten_count;
    uint64_t bytes;
    struct chain leaving, forgotten;
    struct gateway_peer peers[PEERS_MAX];
};

const struct presence_limits presence_limits_default = {
    .entries_max = PRESENCE_ENTRIES_MAX,
    .bytes_max = PRESENCE_BYTES_MAX,
};

/* ---- chains ---- */

static void chain_init(struct chain *chain)
{
    chain->next = chain;
    chain->previous = chain;
}

static bool chain_is_empty(const struct chain *chain)
{
    return chain->next == chain;
}

static void chain_append(struct chain *chain, struct chain *node)
{
    node->next = chain;
    node->previous = chain->previous;
    chain->previous->next = node;
    chain->previous = node;
}

static void chain_remove(struct chain *node)
{
    node->next->previous = node->previous;
    node->previous->next = node->next;
    chain_init(node);
}

/* All of `from` behind `to`. */
static void chain_move_all(struct chain *to, struct chain *from)
{
    if (chain_is_empty(from))
        return;
    from->next->previous = to->previous;
    to->previous->next = from->next;
    from->previous->next = to;
    to->previous = from->previous;
    chain_init(from);
}

static struct entry *chain_first(const struct chain *chain)
{
    return (struct entry *)(void *)((char *)chain->next - offsetof(struct entry, chain));
}

/* ---- open and close ---- */

enum weir_status presence_open(struct presence **presence, const struct broker_output *output,
                               struct broker_counters *counters, uint64_t hash_seed,
                               const struct presence_limits *limits, struct weir_error *error)
{
    struct presence *opened = calloc(1, sizeof *opened);
    if (!opened || table_init(&opened->entries) != WEIR_OK) {
        free(opened);
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for presence");
    }
    opened->output = *output;
    opened->counters = counters;
    opened->hash_seed = hash_seed;
    opened->limits = limits ? *limits : presence_limits_default;
    chain_init(&opened->leaving);
    chain_init(&opened->forgotten);
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        chain_init(&opened->peers[slot].entries);
    *presence = opened;
    return WEIR_OK;
}

static size_t entry_cost(const struct entry *entry)
{
    return sizeof *entry + entry->stream_bytes + entry->payload_bytes;
}

static void entry_free(struct presence *presence, struct entry *entry)
{
    chain_remove(&entry->chain);
    table_remove(&presence->entries, &entry->node);
    presence->bytes -= entry_cost(entry);
    free(entry);
}

/* Everything known is forgotten: no entry of this round is found or fired from now on. */
static void presence_forget_all(struct presence *presence)
{
    chain_move_all(&presence->forgotten, &presence->leaving);
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        chain_move_all(&presence->forgotten, &presence->peers[slot].entries);
    presence->forgotten_count = presence->entries.count;
    presence->round++;
}

/* True when some are left. */
static bool presence_free_forgotten(struct presence *presence, uint64_t count_max)
{
    uint64_t left = count_max;
    while (left > 0 && !chain_is_empty(&presence->forgotten)) {
        entry_free(presence, chain_first(&presence->forgotten));
        presence->forgotten_count--;
        left--;
    }
    return !chain_is_empty(&presence->forgotten);
}

void presence_close(struct presence *presence)
{
    if (!presence)
        return;
    presence_forget_all(presence);
    (void)presence_free_forgotten(presence, UINT64_MAX);
    table_fini(&presence->entries);
    free(presence);
}

void presence_listen(struct presence *presence, const struct presence_listener *listener)
{
    presence->listener = *listener;
}

uint64_t presence_count(const struct presence *presence)
{
    return presence->entries.count - presence->forgotten_count;
}

/* ---- who wants it, who is there ---- */

static struct gateway_peer *presence_peer(struct presence *presence, struct peer_handle peer)
{
    struct gateway_peer *known = &presence->peers[peer.slot];
    return known->is_attached && peer_handle_equal(known->peer, peer) ? known : NULL;
}

/* To a peer that is gone by now nothing is lost. */
static void presence_send(struct presence *presence, struct peer_handle peer, enum wire_type type,
                          uint64_t number)
{
    const struct wire_field fields[] = {WIRE_NUMBER(number)};
    enum weir_status status =
        presence->output.send(presence->output.context, peer, type, 0, fields);
    if (status != WEIR_OK && status != WEIR_CLOSED)
        presence->counters->replies_lost++;
}

void presence_set_wanted(struct presence *presence, bool wanted)
{
    if (presence->is_wanted == wanted)
        return;
    weir_assert(presence->listener.leave);
    presence->is_wanted = wanted;
    if (!wanted)
        presence_forget_all(presence);
    for (uint32_t slot = 0; slot < PEERS_MAX; slot++)
        if (presence->peers[slot].is_attached)
            presence_send(presence, presence->peers[slot].peer, WIRE_PRESENCE_WANTED, wanted);
}

void presence_peer_attached(struct presence *presence, struct peer_handle peer)
{
    struct gateway_peer *known = &presence->peers[peer.slot];
    weir_assert(!known->is_attached);
    weir_assert(chain_is_empty(&known->entries));
    known->peer = peer;
    known->is_attached = true;
    if (presence->is_wanted)
        presence_send(presence, peer, WIRE_PRESENCE_WANTED, 1);
}

void presence_peer_gone(struct presence *presence, struct peer_handle peer)
{
    struct gateway_peer *known = presence_peer(presence, peer);
    if (!known)
        return;
    known->is_attached = false;
    chain_move_all(&presence->leaving, &known->entries);
}

/* ---- who comes and goes ---- */

static uint64_t entry_hash(const struct presence *presence, struct peer_handle peer,
                           uint64_t number)
{
    uint64_t hash = presence->hash_seed ^ number ^ ((uint64_t)peer.slot << 56) ^
                    ((uint64_t)peer.generation << 40);
    hash *= 0x9E3779B97F4A7C15ull; /* running numbers: any odd multiplier spreads them */
    return hash ^ (hash >> 32);
}

static struct entry *presence_find(const struct presence *presence, struct peer_handle peer,
                                   uint64_t number)
{
    struct table_node *node = table_first(&presence->entries, entry_hash(presence, peer, number));
    for (; node; node = table_next(node)) {
        struct entry *entry = TABLE_OWNER(node, struct entry, node);
        if (entry->number == number && peer_handle_equal(entry->peer, peer) &&
            entry->round == presence->round && !entry->is_leaving)
            return entry;
    }
    return NULL;
}

static enum weir_status presence_joined(struct presence *presence, struct gateway_peer *peer,
                                        const struct wire_message *message)
{
    uint64_t number = message->fields[0].number;
    struct span stream = message->fields[1].span;
    struct span payload = message->fields[2].span;
    if (!stream.data || stream.bytes > NAME_BYTES_MAX || payload.bytes == 0 ||
        payload.bytes > PRESENCE_PAYLOAD_BYTES_MAX)
        return WEIR_INVALID;
    struct entry *earlier = presence_find(presence, peer->peer, number);
    if (earlier) /* the same subscription id again: the old one is replaced silently */
        entry_free(presence, earlier);
    size_t bytes = sizeof(struct entry) + stream.bytes + payload.bytes;
    struct entry *entry = NULL;
    if (presence->entries.count < presence->limits.entries_max &&
        presence->bytes + bytes <= presence->limits.bytes_max)
        entry = malloc(bytes);
    if (!entry) {
        presence->counters->presence_refused++;
        return WEIR_OK;
    }
    *entry = (struct entry){
        .peer = peer->peer,
        .number = number,
        .round = presence->round,
        .stream_bytes = (uint32_t)stream.bytes,
        .payload_bytes = (uint32_t)payload.bytes,
    };
    memcpy(entry->text, stream.data, stream.bytes);
    memcpy(entry->text + stream.bytes, payload.data, payload.bytes);
    presence->bytes += bytes;
    table_insert(&presence->entries, &entry->node, entry_hash(presence, peer->peer, number));
    chain_append(&peer->entries, &entry->chain);
    return WEIR_OK;
}

static void presence_left(struct presence *presence, struct gateway_peer *peer, uint64_t number)
{
    struct entry *entry = presence_find(presence, peer->peer, number);
    if (!entry) { /* refused when it was announced: there is nothing to wait for */
        presence_send(presence, peer->peer, WIRE_PRESENCE_LEFT, number);
        return;
    }
    entry->is_leaving = true;
    entry->is_told = true;
    chain_remove(&entry->chain);
    chain_append(&presence->leaving, &entry->chain);
}

enum weir_status presence_take(struct presence *presence, struct peer_handle peer,
                               const struct wire_message *message)
{
    struct gateway_peer *known = presence_peer(presence, peer);
    if (message->type != WIRE_PRESENCE_JOINED && message->type != WIRE_PRESENCE_LEFT)
        return WEIR_INVALID;
    if (!known || !presence->is_wanted)
        return WEIR_OK; /* it crossed our word that nobody wants it any more */
    if (message->type == WIRE_PRESENCE_JOINED)
        return presence_joined(presence, known, message);
    presence_left(presence, known, message->fields[0].number);
    return WEIR_OK;
}

/* ---- leaving ---- */

void presence_hold(struct presence *presence, uint64_t now_ms)
{
    presence->is_held = true;
    presence->held_ms = presence->awaited_ms = now_ms;
}

void presence_await(struct presence *presence, unsigned gateways, uint64_t now_ms)
{
    if (presence->awaited != gateways)
        presence->awaited_ms = now_ms;
    presence->awaited = gateways;
}

/* Everybody is back, or has been waited for long enough. A clock that was set back ends the wait. */
static bool presence_has_held(const struct presence *presence, uint64_t now_ms)
{
    return now_ms - presence->held_ms >= PRESENCE_HOLD_ALL_MS ||
           (presence->awaited == 0 && now_ms - presence->awaited_ms >= PRESENCE_HOLD_MS);
}

static void presence_fire(struct presence *presence, struct entry *entry)
{
    const struct presence_listener *listener = &presence->listener;
    listener->leave(listener->context, span_of(entry->text, entry->stream_bytes),
                    span_of(entry->text + entry->stream_bytes, entry->payload_bytes));
    if (entry->is_told)
        presence_send(presence, entry->peer, WIRE_PRESENCE_LEFT, entry->number);
    entry_free(presence, entry);
}

bool presence_run(struct presence *presence, uint64_t now_ms)
{
    const struct presence_listener *listener = &presence->listener;
    bool is_urgent =
        now_ms - presence->fired_ms >= PRESENCE_ROOM_MS; /* or the clock was set back */
    if (presence->is_held && presence_has_held(presence, now_ms))
        presence->is_held = false;
    presence->is_waiting = false;
    for (unsigned left = PRESENCE_TURN_MAX; left > 0 && presence_is_due(presence); left--) {
        presence->is_waiting =
            !is_urgent && listener->has_room && !listener->has_room(listener->context);
        if (presence->is_waiting)
            break;
        presence->fired_ms = now_ms;
        presence_fire(presence, chain_first(&presence->leaving));
    }
    bool has_forgotten = presence_free_forgotten(presence, PRESENCE_FREES_MAX);
    return has_forgotten || presence_is_due(presence);
}

bool presence_is_due(const struct presence *presence)
{
    return !presence->is_held && !presence->is_waiting && !chain_is_empty(&presence->leaving);
}

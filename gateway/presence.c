#include "gateway/presence.h"

#include <stdlib.h>

#include "shm/json.h"

/* Numbers of subscriptions. Others were said to a broker, this one's are round_first and above. */
enum {
    NUMBER_NONE,   /* nobody asked, or it was never active */
    NUMBER_UNSAID, /* its leave is to be told, but no broker has heard of it */
    NUMBER_FIRST,
};
/* Its leave has been fired though it lives on: the broker had lost us. */
#define NUMBER_FIRED UINT64_MAX

enum presence_state { PRESENCE_UNWANTED, PRESENCE_TELLING, PRESENCE_PENDING };

/* A leave the broker has not yet said to be fired. */
struct owed {
    struct owed *next;
    uint64_t number;
    bool is_joined; /* this broker, or the one just lost, knows the number */
    size_t stream_bytes, payload_bytes;
    char text[]; /* stream name, payload */
};

struct local_presence {
    struct subscriptions *subscriptions;
    struct local_presence_output output;
    struct counters *counters;
    enum presence_state state;
    bool is_attached, is_walking;
    bool has_skipped; /* something could not be said for want of room: walk again */
    uint64_t generation, attached_ms;
    uint64_t next_number;
    uint64_t round_first;            /* numbers from here on have been said to this broker */
    uint64_t lost_first, lost_end;   /* numbers that had been said when the link broke */
    uint64_t fired_first, fired_end; /* numbers a broker fired because it lost us */
    struct owed *owed, **owed_end;   /* in the order of the leaves */
    struct owed *unsaid;             /* the first that has not been said to this broker */
    size_t owed_count, owed_bytes;
    struct buffer payload;
};

/* ---- what is said ---- */

static enum weir_status append_name(struct buffer *out, struct span key, struct span escaped)
{
    enum weir_status status = buffer_append(out, key);
    if (status == WEIR_OK)
        status = buffer_append(out, escaped);
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("\"")) : status;
}

/* PROTOCOL 7.3. */
static enum weir_status payload_append(struct buffer *out, const struct subscription *subscription)
{
    const struct topic *topic = subscription->link->topic;
    struct span item = subscription_item(subscription);
    struct span context = subscription->link->subscriber->context;
    if (context.data == NULL)
        context = SPAN_LITERAL("null");
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{\"subscription_id\":"));
    if (status == WEIR_OK)
        status = json_append_string(out, subscription_id(subscription));
    if (status == WEIR_OK)
        status = append_name(out, SPAN_LITERAL(",\"stream_name\":\""), topic_stream_escaped(topic));
    if (status == WEIR_OK)
        status = append_name(out, SPAN_LITERAL(",\"group_id\":\""), topic_group_escaped(topic));
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"id\":"));
    if (status == WEIR_OK)
        status = item.data == NULL ? buffer_append(out, SPAN_LITERAL("null"))
                                   : json_append_string(out, item);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"context\":"));
    if (status == WEIR_OK)
        status = buffer_append(out, context);
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("}")) : status;
}

/* data NULL: too large, or no memory. */
static struct span presence_payload(struct local_presence *presence,
                                    const struct subscription *subscription)
{
    buffer_clear(&presence->payload);
    if (payload_append(&presence->payload, subscription) == WEIR_OK)
        return buffer_span(&presence->payload);
    return (struct span){0};
}

static void presence_post_joined(struct local_presence *presence, uint64_t number,
                                 struct span stream, struct span payload)
{
    const struct wire_field fields[] = {WIRE_NUMBER(number), WIRE_SPAN(stream), WIRE_SPAN(payload)};
    presence->output.post(presence->output.context, WIRE_PRESENCE_JOINED, fields);
}

static void presence_post_left(struct local_presence *presence, uint64_t number)
{
    const struct wire_field fields[] = {WIRE_NUMBER(number)};
    presence->output.post(presence->output.context, WIRE_PRESENCE_LEFT, fields);
}

static bool presence_has_room(const struct local_presence *presence)
{
    return presence->output.backlog_bytes(presence->output.context) <=
           LOCAL_PRESENCE_BACKLOG_BYTES_MAX;
}

/* ---- owed leaves ---- */

static size_t owed_cost(const struct owed *owed)
{
    return sizeof *owed + owed->stream_bytes + owed->payload_bytes;
}

static void presence_forget_owed(struct local_presence *presence, struct owed **link)
{
    struct owed *owed = *link;
    *link = owed->next;
    if (owed->next == NULL)
        presence->owed_end = link;
    if (presence->unsaid == owed)
        presence->unsaid = owed->next;
    presence->owed_count--;
    presence->owed_bytes -= owed_cost(owed);
    free(owed);
}

static void presence_forget_all_owed(struct local_presence *presence)
{
    while (presence->owed != NULL)
        presence_forget_owed(presence, &presence->owed);
}

static bool number_is_known(const struct local_presence *presence, uint64_t number)
{
    if (presence->state == PRESENCE_TELLING)
        return number >= presence->round_first;
    return number >= presence->lost_first && number < presence->lost_end;
}

static struct owed *presence_make_owed(struct local_presence *presence, struct span stream,
                                       struct span payload)
{
    struct owed *owed = NULL;
    size_t bytes = sizeof *owed + stream.bytes + payload.bytes;
    if (payload.data != NULL && presence->owed_count < LOCAL_PRESENCE_OWED_MAX &&
        presence->owed_bytes + bytes <= LOCAL_PRESENCE_OWED_BYTES_MAX)
        owed = malloc(bytes);
    if (owed == NULL)
        return NULL;
    *owed = (struct owed){.stream_bytes = stream.bytes, .payload_bytes = payload.bytes};
    if (stream.bytes > 0)
        memcpy(owed->text, stream.data, stream.bytes);
    memcpy(owed->text + stream.bytes, payload.data, payload.bytes);
    return owed;
}

static void presence_owe(struct local_presence *presence, const struct subscription *subscription)
{
    struct owed *owed = presence_make_owed(presence, topic_stream(subscription->link->topic),
                                           presence_payload(presence, subscription));
    if (owed == NULL) {
        counters_add(presence->counters, COUNTER_LEAVES_LOST, 1);
        return;
    }
    owed->is_joined = number_is_known(presence, subscription->number);
    owed->number =
        subscription->number < NUMBER_FIRST ? presence->next_number++ : subscription->number;
    *presence->owed_end = owed;
    presence->owed_end = &owed->next;
    presence->owed_count++;
    presence->owed_bytes += owed_cost(owed);
    if (presence->unsaid == NULL)
        presence->unsaid = owed;
}

/* The broker has fired it. Answers come in the order of the leaves, but for numbers it never took
 * in. */
static void presence_forget_number(struct local_presence *presence, uint64_t number)
{
    struct owed **link = &presence->owed;
    while (*link != presence->unsaid && (*link)->number != number) /* ends: unsaid, or NULL */
        link = &(*link)->next;
    if (*link != presence->unsaid)
        presence_forget_owed(presence, link);
}

/* The same broker is back, and has fired what it had been told. */
static void presence_forget_joined(struct local_presence *presence)
{
    struct owed **link = &presence->owed;
    while (*link != NULL) { /* each turn forgets one or passes it */
        if ((*link)->is_joined)
            presence_forget_owed(presence, link);
        else
            link = &(*link)->next;
    }
}

/* The next broker knows none of it. */
static void presence_owe_all_again(struct local_presence *presence)
{
    for (struct owed *owed = presence->owed; owed != NULL; owed = owed->next)
        owed->is_joined = false;
    presence->unsaid = presence->owed;
}

/* False: the link has broken. */
static bool presence_say_leave(struct local_presence *presence, struct owed *owed)
{
    if (!owed->is_joined)
        presence_post_joined(presence, owed->number, span_of(owed->text, owed->stream_bytes),
                             span_of(owed->text + owed->stream_bytes, owed->payload_bytes));
    if (presence->state != PRESENCE_TELLING)
        return false;
    owed->is_joined = true;
    presence_post_left(presence, owed->number);
    return presence->state == PRESENCE_TELLING;
}

static void presence_say_owed(struct local_presence *presence, unsigned *budget)
{
    while (presence->unsaid != NULL && *budget > 0 && presence_has_room(presence)) {
        if (!presence_say_leave(presence, presence->unsaid))
            return;
        presence->unsaid = presence->unsaid->next;
        (*budget)--;
    }
}

/* ---- subscriptions ---- */

static bool number_is_fired(const struct local_presence *presence, uint64_t number)
{
    return number == NUMBER_FIRED ||
           (number >= presence->fired_first && number < presence->fired_end);
}

/* False: it could not be said. */
static bool presence_say_number(struct local_presence *presence,
                                const struct subscription *subscription, uint64_t number)
{
    struct span payload = presence_payload(presence, subscription);
    if (payload.data == NULL)
        return false;
    presence_post_joined(presence, number, topic_stream(subscription->link->topic), payload);
    return presence->state == PRESENCE_TELLING; /* else the link has broken */
}

/* Say it to this broker, unless that has been done. */
static void presence_say(struct local_presence *presence, struct subscription *subscription)
{
    if (number_is_fired(presence, subscription->number))
        subscription->number = NUMBER_FIRED;
    if (subscription->number >= presence->round_first)
        return;
    subscription->number = NUMBER_UNSAID;
    if (!presence_has_room(presence)) {
        presence->has_skipped = true;
        return;
    }
    uint64_t number = presence->next_number++;
    if (presence_say_number(presence, subscription, number))
        subscription->number = number;
}

/* A number that was said already is that of the one it has replaced, whose names the broker has. */
static void on_activated(void *context, struct subscription *subscription, bool is_first)
{
    struct local_presence *presence = context;
    bool was_said = subscription->number >= presence->round_first;
    if (presence->state == PRESENCE_PENDING && subscription->number == NUMBER_NONE)
        subscription->number = NUMBER_UNSAID;
    if (presence->state != PRESENCE_TELLING)
        return;
    presence_say(presence, subscription);
    if (is_first && was_said && subscription->number != NUMBER_FIRED)
        (void)presence_say_number(presence, subscription, subscription->number);
}

static void on_replaced(void *context, const struct subscription *old, struct subscription *made)
{
    struct local_presence *presence = context;
    if (presence->state == PRESENCE_UNWANTED || number_is_fired(presence, old->number))
        return;
    made->number = old->number;
    if (old->number == NUMBER_NONE && subscription_has_begun(old))
        made->number = NUMBER_UNSAID;
    /* It may be where a walk has passed already. */
    if (presence->state == PRESENCE_TELLING && made->number != NUMBER_NONE)
        presence_say(presence, made);
}

static void on_ended(void *context, const struct subscription *subscription)
{
    struct local_presence *presence = context;
    if (presence->state == PRESENCE_UNWANTED || number_is_fired(presence, subscription->number))
        return;
    if (subscription->number != NUMBER_NONE || subscription_has_begun(subscription))
        presence_owe(presence, subscription);
}

static void presence_walk(struct local_presence *presence, unsigned *budget)
{
    while (presence->is_walking && *budget > 0 && presence_has_room(presence)) {
        struct subscriber_link *link = subscriptions_walk_next(presence->subscriptions);
        if (link == NULL) {
            presence->is_walking = false;
            return;
        }
        struct subscription *subscription = link->subscriptions;
        for (; subscription != NULL; subscription = subscription->next) {
            *budget -= *budget > 0;
            /* One with a number stands for the active one it has replaced. */
            if (subscription_has_begun(subscription) || subscription->number != NUMBER_NONE)
                presence_say(presence, subscription);
            if (presence->state != PRESENCE_TELLING)
                return;
        }
    }
}

static void presence_start_walk(struct local_presence *presence)
{
    presence->is_walking = true;
    presence->has_skipped = false;
    subscriptions_walk_start(presence->subscriptions);
}

bool local_presence_run(struct local_presence *presence)
{
    unsigned budget = LOCAL_PRESENCE_TURN_MAX;
    if (presence->state != PRESENCE_TELLING || !presence_has_room(presence))
        return false;
    presence_say_owed(presence, &budget);
    if (presence->has_skipped && !presence->is_walking)
        presence_start_walk(presence);
    presence_walk(presence, &budget);
    return presence->state == PRESENCE_TELLING && presence_has_room(presence) &&
           (presence->unsaid != NULL || presence->is_walking || presence->has_skipped);
}

/* ---- the broker ---- */

static void presence_want_no_more(struct local_presence *presence)
{
    presence->state = PRESENCE_UNWANTED;
    presence->is_walking = false;
    presence->has_skipped = false;
    presence_forget_all_owed(presence);
}

void local_presence_attached(struct local_presence *presence, uint64_t generation, uint64_t now_ms)
{
    bool is_same = generation == presence->generation;
    presence->is_attached = true;
    presence->attached_ms = now_ms;
    presence->generation = generation;
    if (is_same)
        presence_forget_joined(presence);
    if (is_same && presence->lost_first != presence->lost_end) {
        if (presence->fired_end != presence->lost_first)
            presence->fired_first = presence->lost_first;
        presence->fired_end = presence->lost_end;
    }
    presence->lost_first = presence->lost_end;
    presence_owe_all_again(presence);
}

void local_presence_lost(struct local_presence *presence)
{
    presence->is_attached = false;
    if (presence->state != PRESENCE_TELLING)
        return;
    presence->state = PRESENCE_PENDING;
    presence->lost_first = presence->round_first;
    presence->lost_end = presence->next_number;
    presence->is_walking = false;
    presence->has_skipped = false;
}

bool local_presence_take(struct local_presence *presence, const struct wire_message *message)
{
    uint64_t number = message->fields[0].number;
    if (message->type == WIRE_PRESENCE_LEFT)
        presence_forget_number(presence, number);
    else if (message->type != WIRE_PRESENCE_WANTED)
        return false;
    else if (number == 0)
        presence_want_no_more(presence);
    else {
        presence->state = PRESENCE_TELLING;
        presence->round_first = presence->next_number;
        presence_owe_all_again(presence);
        presence_start_walk(presence);
    }
    return true;
}

void local_presence_tick(struct local_presence *presence, uint64_t now_ms)
{
    if (presence->state == PRESENCE_PENDING && presence->is_attached &&
        now_ms - presence->attached_ms > LOCAL_PRESENCE_WAIT_MS)
        presence_want_no_more(presence);
}

/* ---- open and close ---- */

struct local_presence *local_presence_open(struct subscriptions *subscriptions,
                                           const struct local_presence_output *output,
                                           struct counters *counters)
{
    struct local_presence *presence = calloc(1, sizeof *presence);
    if (presence == NULL)
        return NULL;
    presence->subscriptions = subscriptions;
    presence->output = *output;
    presence->counters = counters;
    presence->next_number = NUMBER_FIRST;
    presence->round_first = NUMBER_FIRST;
    presence->owed_end = &presence->owed;
    buffer_init(&presence->payload, PRESENCE_PAYLOAD_BYTES_MAX);
    subscriptions->observer =
        (struct subscriptions_observer){on_activated, on_replaced, on_ended, presence};
    return presence;
}

void local_presence_close(struct local_presence *presence)
{
    if (presence == NULL)
        return;
    presence->subscriptions->observer = (struct subscriptions_observer){0};
    presence_forget_all_owed(presence);
    buffer_fini(&presence->payload);
    free(presence);
}

#include "tests/sim/broker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "adapters/kv.h"

static const struct peer_handle asker = {3, 1};
enum { ORIGIN = 0x5eed, VALUE_BYTES_MAX_HERE = 4096 };

/* ---- questions ---- */

static struct sim_question *question_at(struct sim_broker *broker, uint32_t index)
{
    return &broker->questions[(broker->question_first + index) % SIM_QUESTIONS_MAX];
}

static struct sim_question *question_add(struct sim_broker *broker,
                                         const struct sim_question *question)
{
    weir_assert(broker->question_count < SIM_QUESTIONS_MAX);
    struct sim_question *added = question_at(broker, broker->question_count++);
    *added = *question;
    return added;
}

static void question_result(struct sim_broker *broker, const struct sim_question *question,
                            struct buffer *out)
{
    enum weir_status status = WEIR_OK;
    if (question->op == WIRE_OP_LIST) {
        history_state_text(broker->history, &question->state, HISTORY_NO_ITEM, out);
        return;
    }
    if (question->op == WIRE_OP_SEND) {
        status = buffer_append(out, SPAN_LITERAL("null"));
        weir_assert(status == WEIR_OK);
        return;
    }
    status = buffer_append(out, SPAN_LITERAL("{\"old_value\":"));
    if (question->old_value == 0)
        status = buffer_append(out, SPAN_LITERAL("null"));
    else
        history_value_text(broker->history, question->old_value, out);
    if (question->op != WIRE_OP_DELETE) {
        status = buffer_append(out, SPAN_LITERAL(",\"new_value\":"));
        history_value_text(broker->history, question->value, out);
    }
    status = buffer_append(out, SPAN_LITERAL("}"));
    weir_assert(status == WEIR_OK);
}

static void question_answered(struct sim_broker *broker, const struct sim_reply *reply)
{
    struct span result = span_of(broker->reply_bytes.data + reply->offset, reply->bytes);
    if (broker->question_count == 0 || question_at(broker, 0)->id != reply->id)
        sim_fail(broker->scheduler, SIM_REPLY, "request %" PRIu64 " is answered out of order",
                 reply->id);
    struct sim_question question = *question_at(broker, 0);
    broker->question_first = (broker->question_first + 1) % SIM_QUESTIONS_MAX;
    broker->question_count--;
    if (reply->is_error != question.is_refused && !(reply->is_error && question.may_be_refused))
        sim_fail(broker->scheduler, SIM_REPLY, "request %" PRIu64 " %s: %.*s", reply->id,
                 reply->is_error ? "failed" : "did not fail", (int)result.bytes, result.data);
    if (reply->is_error)
        return;
    buffer_clear(&broker->text);
    question_result(broker, &question, &broker->text);
    if (!span_equal(buffer_span(&broker->text), result))
        sim_fail(broker->scheduler, SIM_REPLY, "request %" PRIu64 " is answered %.*s, not %.*s",
                 reply->id, (int)result.bytes, result.data, (int)broker->text.bytes,
                 broker->text.data);
    if (question.index == HISTORY_NONE)
        return;
    uint32_t place = history_event(broker->history, question.group, question.index)->place;
    if (place >= broker->history->acknowledged)
        broker->history->acknowledged = place + 1;
}

static void broker_take_replies(struct sim_broker *broker)
{
    for (uint32_t i = 0; i < broker->reply_count; i++)
        question_answered(broker, &broker->replies[i]);
    broker->reply_count = 0;
    buffer_clear(&broker->reply_bytes);
}

static enum weir_status on_send(void *context, struct peer_handle peer, enum wire_type type,
                                uint64_t id, const struct wire_field *fields)
{
    struct sim_broker *broker = context;
    (void)peer;
    if (!broker->is_alive || type != WIRE_STREAM_RESULT)
        return WEIR_OK;
    bool is_error = fields[0].span.data != NULL;
    struct span text = fields[is_error ? 1 : 2].span;
    weir_assert(broker->reply_count < SIM_QUESTIONS_MAX);
    broker->replies[broker->reply_count++] =
        (struct sim_reply){id, broker->reply_bytes.bytes, text.bytes, is_error};
    enum weir_status status = buffer_append(&broker->reply_bytes, text);
    weir_assert(status == WEIR_OK);
    return WEIR_OK;
}

static bool on_is_busy(void *context, struct peer_handle peer)
{
    (void)context;
    (void)peer;
    return false;
}

/* ---- a life ---- */

void sim_broker_init(struct sim_broker *broker, struct scheduler *scheduler,
                     struct history *history, enum sim_level level, uint64_t ring_bytes,
                     uint64_t empty_groups_max)
{
    static const enum settings_durability durabilities[] = {
        [SIM_LEVEL_NONE] = SETTINGS_DURABILITY_MEMORY,
        [SIM_LEVEL_BEHIND] = SETTINGS_DURABILITY_MEMORY,
        [SIM_LEVEL_WRITTEN] = SETTINGS_DURABILITY_WRITTEN,
        [SIM_LEVEL_SYNCED] = SETTINGS_DURABILITY_SYNCED,
    };
    *broker = (struct sim_broker){
        .scheduler = scheduler, .history = history, .level = level, .next_id = 1};
    history->is_kept = level >= SIM_LEVEL_WRITTEN;
    disk_init(&broker->disk, scheduler);
    settings_init(&broker->settings);
    (void)snprintf(broker->settings.data_dir, sizeof broker->settings.data_dir, "data");
    broker->settings.durability = durabilities[level];
    broker->settings.value_bytes_max = VALUE_BYTES_MAX_HERE;
    broker->settings.ring_bytes = ring_bytes;
    broker->settings.empty_groups_max = empty_groups_max;
    broker->settings.log_segment_bytes = 256 * 1024;
    broker->settings.snapshot_log_bytes = 512 * 1024;
    broker->settings.snapshot_interval_ms = 0;
    broker->settings.save_interval_ms = 50;
    broker->questions = calloc(SIM_QUESTIONS_MAX, sizeof *broker->questions);
    weir_assert(broker->questions != NULL);
    broker->replies = calloc(SIM_QUESTIONS_MAX, sizeof *broker->replies);
    weir_assert(broker->replies != NULL);
    buffer_init(&broker->reply_bytes, 64 * 1024 * 1024);
    buffer_init(&broker->text, 1024 * 1024);
}

static bool broker_has_log(const struct sim_broker *broker)
{
    return broker->level != SIM_LEVEL_NONE;
}

static void broker_open(struct sim_broker *broker)
{
    const struct segment_options options = {
        .ring_bytes = broker->settings.ring_bytes,
        .store_bytes = 2 * 1024 * 1024,
        .generation = broker->scheduler->now_us,
    };
    struct weir_error error = {0};
    enum weir_status status = segment_create(&broker->segment, &options, &error);
    weir_assert(status == WEIR_OK);
    broker->readers = readers_open(&broker->segment);
    const struct engine_options engine_options = {
        .segment = &broker->segment,
        .readers = broker->readers,
        .adapter = &adapter_kv,
        .store = {.items_max = 1000,
                  .groups_max = 100,
                  .empty_groups_max = broker->settings.empty_groups_max,
                  .is_logged = broker->level >= SIM_LEVEL_WRITTEN},
        .value_bytes_max = broker->settings.value_bytes_max,
        .output = {on_send, on_send, on_is_busy, NULL, broker},
        .counters = &broker->counters,
    };
    status = engine_open(&broker->engine, &engine_options, &error);
    weir_assert(status == WEIR_OK);
    broker->view = store_reader_open(&broker->segment, NULL);
    weir_assert(broker->view != NULL);
}

static void broker_open_log(struct sim_broker *broker)
{
    const struct durability_seam seam = {.io = &broker->disk.io};
    const struct snapshot_answers answers = {0};
    struct weir_error error = {0};
    disk_restart(&broker->disk);
    enum weir_status status = durability_open(&broker->durability, &broker->settings,
                                              broker->engine, &seam, &broker->counters, &error);
    if (status == WEIR_OK)
        status = durability_start(broker->durability, NULL, &answers, &error);
    if (status != WEIR_OK)
        sim_fail(broker->scheduler, SIM_KEPT, "the broker does not start: %s", error.text);
}

/* ---- what a life has found ---- */

static enum weir_status broker_read_group(const struct sim_broker *broker, unsigned group,
                                          struct store_group *found)
{
    enum weir_status status =
        store_read_group(broker->view, history_stream(group), history_group_name(group), found);
    weir_assert(status == WEIR_OK || status == WEIR_EMPTY);
    return status;
}

/* Where a recovered group is in its history. Positions of before are served again only when nothing was
 * lost, so that epochs are renewed then and only then. */
static int32_t broker_find(const struct sim_broker *broker, unsigned group,
                           const struct store_group *found, uint32_t known_end)
{
    int32_t index = history_find(broker->history, group, found->epoch, found->seq);
    if (index != HISTORY_NONE || !broker->may_renew)
        return index;
    /* A group may have had the seq in several epochs, of which the newest may be lost. */
    index = history_find_renewed(broker->history, group, found->epoch, found->seq, known_end);
    if (index == HISTORY_NONE) /* what only the snapshot has is not known by its request */
        index = history_find_renewed(broker->history, group, found->epoch, found->seq, UINT32_MAX);
    return index;
}

static const struct history_event *broker_event_at(const struct sim_broker *broker, uint32_t place)
{
    const struct history_place *at = &broker->history->places[place];
    return history_event(broker->history, at->group, at->index);
}

static bool broker_place_is_write(const struct sim_broker *broker, uint32_t place)
{
    const struct history_event *event = broker_event_at(broker, place);
    return event->lost_in == 0 && event->kind != 0;
}

static bool broker_knows_write(const struct sim_broker *broker, uint32_t place)
{
    struct span result;
    return broker_place_is_write(broker, place) &&
           durability_answered(broker->durability, ORIGIN, broker_event_at(broker, place)->request,
                               &result);
}

/* Every group that is there goes on under the epoch the broker has given it. */
static void broker_renew_groups(const struct sim_broker *broker)
{
    for (unsigned group = 0; group < HISTORY_GROUPS; group++) {
        struct store_group found;
        int32_t newest = broker->history->groups[group].newest;
        if (broker_read_group(broker, group, &found) == WEIR_OK && newest != HISTORY_NONE &&
            history_event(broker->history, group, newest)->epoch < found.epoch)
            history_renew(broker->history, group, found.epoch);
    }
}

/* How many of all writes, in their order, are there: up to the newest whose request is known, or that is
 * where a group stands. */
static uint32_t broker_count_kept(const struct sim_broker *broker)
{
    uint32_t known_end = broker->history->place_count;
    while (known_end > 0 && !broker_knows_write(broker, known_end - 1))
        known_end--;
    uint32_t kept = known_end;
    for (unsigned group = 0; group < HISTORY_GROUPS; group++) {
        struct store_group found;
        if (broker_read_group(broker, group, &found) != WEIR_OK)
            continue;
        int32_t index = broker_find(broker, group, &found, known_end);
        if (index == HISTORY_NONE)
            sim_fail(broker->scheduler, SIM_KEPT,
                     "group %u: recovered at epoch %" PRIu64 " seq %" PRIu64 ", which was no write",
                     group, found.epoch, found.seq);
        const struct history_event *event = history_event(broker->history, group, index);
        if (event->place >= kept)
            kept = event->place + 1;
    }
    while (kept < broker->history->place_count && !broker_place_is_write(broker, kept))
        kept++; /* lost to an earlier life, or only a renewal */
    return kept;
}

/* Every group holds what the history says, in its order. */
static void broker_check_groups(struct sim_broker *broker)
{
    struct buffer found;
    buffer_init(&found, 1024 * 1024);
    for (unsigned group = 0; group < HISTORY_GROUPS; group++) {
        struct store_group numbers;
        struct history_state state = history_newest_state(broker->history, group);
        int32_t newest = broker->history->groups[group].newest;
        enum weir_status status = broker_read_group(broker, group, &numbers);
        bool is_right = status == WEIR_OK ? newest == history_find(broker->history, group,
                                                                   numbers.epoch, numbers.seq)
                                          : state.count == 0;
        if (!is_right)
            sim_fail(broker->scheduler, SIM_KEPT, "group %u: recovered at another place", group);
        struct store_snapshot snapshot;
        buffer_clear(&found);
        buffer_clear(&broker->text);
        status = store_snapshot(broker->view, history_stream(group), history_group_name(group),
                                NULL, &snapshot, &found);
        history_state_text(broker->history, &state, HISTORY_NO_ITEM, &broker->text);
        if (status != WEIR_OK || !span_equal(buffer_span(&found), buffer_span(&broker->text)))
            sim_fail(broker->scheduler, SIM_KEPT, "group %u: recovered with other items", group);
    }
    buffer_fini(&found);
}

static void broker_compare(struct sim_broker *broker)
{
    struct history *history = broker->history;
    uint32_t kept = broker_has_log(broker) ? broker_count_kept(broker) : 0;
    if (!broker->may_have_lost && kept < history->acknowledged)
        sim_fail(broker->scheduler, SIM_KEPT, "%u writes were acknowledged, %u are there",
                 history->acknowledged, kept);
    sim_note(broker->scheduler, "broker: recovered", kept, history->place_count, broker->life);
    history_lose(history, kept, broker->life);
    broker_renew_groups(broker);
    history->acknowledged = history->place_count; /* what is recovered is shown */
    broker_check_groups(broker);
}

static void broker_carry_out(struct sim_broker *broker, struct sim_question *question);

/* What the last life has left unanswered is asked again, or is nobody's any more. */
static void broker_ask_again(struct sim_broker *broker)
{
    uint32_t count = broker->question_count;
    for (uint32_t i = 0; i < count; i++) {
        struct sim_question question = *question_at(broker, 0);
        struct span result = {0};
        broker->question_first = (broker->question_first + 1) % SIM_QUESTIONS_MAX;
        broker->question_count--;
        bool is_write = question.index != HISTORY_NONE;
        bool is_kept = is_write &&
                       history_event(broker->history, question.group, question.index)->lost_in == 0;
        bool is_known = broker_has_log(broker) &&
                        durability_answered(broker->durability, ORIGIN, question.id, &result);
        if (is_write && is_kept != is_known && !broker->may_have_lost)
            sim_fail(broker->scheduler, SIM_KEPT, "request %" PRIu64 " %s carried out", question.id,
                     is_known ? "was not" : "is not known to be");
        if (is_known || question.is_refused || broker->may_have_lost)
            continue;
        broker_carry_out(broker, &question);
    }
}

void sim_broker_start(struct sim_broker *broker)
{
    broker->life++;
    broker_open(broker);
    if (broker_has_log(broker))
        broker_open_log(broker);
    segment_publish(&broker->segment);
    broker->is_alive = true;
    broker_compare(broker);
    broker_ask_again(broker);
}

static void broker_close(struct sim_broker *broker)
{
    broker->is_alive = false;
    engine_stop(broker->engine);
    durability_close(broker->durability);
    store_reader_close(broker->view);
    engine_close(broker->engine);
    readers_close(broker->readers);
    segment_close(&broker->segment);
    broker->durability = NULL;
}

void sim_broker_kill(struct sim_broker *broker, bool with_host)
{
    sim_note(broker->scheduler, "broker: killed", broker->history->place_count,
             broker->question_count, with_host);
    disk_crash(&broker->disk, with_host);
    broker_close(broker);
    broker->may_have_lost = broker->level < (with_host ? SIM_LEVEL_SYNCED : SIM_LEVEL_WRITTEN);
    broker->may_renew = broker->may_have_lost;
}

void sim_broker_stop(struct sim_broker *broker)
{
    sim_note(broker->scheduler, "broker: stopped", broker->history->place_count, 0, 0);
    while (!sim_broker_is_idle(broker)) { /* ends: the disk gets on with it */
        sim_broker_turn(broker);
        (void)sim_broker_run_disk(broker);
    }
    durability_flushed(broker->durability);
    broker_close(broker);
    broker->may_have_lost = broker->level == SIM_LEVEL_NONE;
    /* A segment that was given up is not synced by a stop. */
    broker->may_renew = broker->level < SIM_LEVEL_SYNCED && broker->disk.failing_percent > 0;
}

void sim_broker_fini(struct sim_broker *broker)
{
    if (broker->is_alive)
        broker_close(broker);
    disk_fini(&broker->disk);
    settings_fini(&broker->settings);
    free(broker->questions);
    free(broker->replies);
    buffer_fini(&broker->reply_bytes);
    buffer_fini(&broker->text);
}

/* ---- service ---- */

bool sim_broker_is_ready(const struct sim_broker *broker)
{
    return broker->is_alive && broker->question_count < SIM_QUESTIONS_MAX - 64 &&
           commits_are_ready(engine_commits(broker->engine));
}

static enum envelope_event question_kind(const struct sim_question *question, bool existed)
{
    switch (question->op) {
    case WIRE_OP_SEND:
        return ENVELOPE_EVENT;
    case WIRE_OP_DELETE:
        return ENVELOPE_DELETE;
    default:
        return existed ? ENVELOPE_UPDATE : ENVELOPE_CREATE;
    }
}

/* The engine has put its event into the ring: so has the history. */
static void broker_note_write(struct sim_broker *broker, struct sim_question *question)
{
    struct store_group numbers;
    if (broker_read_group(broker, question->group, &numbers) != WEIR_OK)
        sim_fail(broker->scheduler, SIM_ORDER, "group %u is not there after a write",
                 question->group);
    const struct history_event event = {
        .epoch = numbers.epoch,
        .seq = numbers.seq,
        .request = question->id,
        .kind = (uint8_t)question_kind(question, question->old_value != 0),
        .item = (int8_t)question->item,
        .value = question->op == WIRE_OP_DELETE ? question->old_value : question->value,
    };
    question->index = history_append(broker->history, question->group, &event);
    /* At level memory readers of the store see it at once; there is nothing to wait for. */
    if (broker->level < SIM_LEVEL_WRITTEN)
        broker->history->acknowledged = broker->history->place_count;
    sim_note(broker->scheduler, "broker: write",
             question->group * 16 + (unsigned)(question->item + 1), numbers.seq, numbers.epoch);
}

/* Its text stays what it is; the numbers in it come from the history. */
static void question_data(struct sim_broker *broker, const struct sim_question *question)
{
    buffer_clear(&broker->text);
    if (question->op == WIRE_OP_SET || question->op == WIRE_OP_SEND)
        history_value_text(broker->history, question->value, &broker->text);
    if (question->op != WIRE_OP_UPDATE)
        return;
    enum weir_status status =
        buffer_printf(&broker->text, "[{\"type\":\"set\",\"path\":\"w\",\"value\":%" PRIu32 "}]",
                      question->value);
    weir_assert(status == WEIR_OK);
}

static void broker_carry_out(struct sim_broker *broker, struct sim_question *question)
{
    struct wire_message message = {.type = WIRE_STREAM, .id = question->id};
    struct history_state state = history_newest_state(broker->history, question->group);
    int at = question->item == HISTORY_NO_ITEM ? -1 : history_state_find(&state, question->item);
    question->state = state;
    question->index = HISTORY_NONE;
    question->is_refused = false;
    question->old_value = at < 0 ? 0 : state.values[at];
    question_data(broker, question);
    message.fields[0].number = question->op;
    message.fields[1].span = history_stream(question->group);
    message.fields[2].span = history_group_name(question->group);
    message.fields[3].span = history_item_name(question->item);
    if (question->op == WIRE_OP_SEND)
        message.fields[4].span = SPAN_LITERAL("note");
    if (broker->text.bytes > 0)
        message.fields[5].span = buffer_span(&broker->text);
    struct sim_question *asked = question_add(broker, question);
    uint64_t head = engine_ring_head(broker->engine);
    enum weir_status status =
        engine_stream(broker->engine, asker, ORIGIN, &message, sim_now_ms(broker->scheduler));
    weir_assert(status == WEIR_OK);
    asked->may_be_refused = question->op == WIRE_OP_DELETE && at < 0;
    bool changes = question->op != WIRE_OP_LIST && (question->op != WIRE_OP_DELETE || at >= 0);
    if (engine_ring_head(broker->engine) != head)
        broker_note_write(broker, asked);
    else if (changes)
        asked->is_refused = true;
    broker_take_replies(broker);
}

void sim_broker_ask(struct sim_broker *broker, enum wire_op op, unsigned group, int item,
                    uint32_t pad_bytes)
{
    struct sim_question question = {
        .id = broker->next_id++, .op = op, .group = group, .item = item};
    if (op == WIRE_OP_UPDATE) {
        /* Of what is there one member changes. */
        struct history_state state = history_newest_state(broker->history, group);
        int at = history_state_find(&state, item);
        if (at < 0)
            return;
        pad_bytes = broker->history->values[state.values[at]].pad_bytes;
    }
    if (op == WIRE_OP_SET || op == WIRE_OP_UPDATE || op == WIRE_OP_SEND)
        question.value = history_new_value(broker->history, item, pad_bytes);
    broker_carry_out(broker, &question);
}

void sim_broker_turn(struct sim_broker *broker)
{
    uint64_t now_ms = sim_now_ms(broker->scheduler);
    commits_turn(engine_commits(broker->engine), now_ms);
    durability_turn(broker->durability, now_ms);
    broker_take_replies(broker);
    if (now_ms - broker->tick_ms < 20)
        return;
    broker->tick_ms = now_ms;
    durability_tick(broker->durability, now_ms);
}

bool sim_broker_run_disk(struct sim_broker *broker)
{
    bool has_run = disk_run(&broker->disk);
    broker_take_replies(broker);
    return has_run;
}

bool sim_broker_is_idle(const struct sim_broker *broker)
{
    return broker->question_count == 0 && commits_are_idle(engine_commits(broker->engine)) &&
           broker->disk.request_count == 0;
}

/* ---- gateways ---- */

struct sim_attachment sim_broker_attach(struct sim_broker *broker, uint64_t frame,
                                        uint64_t newest_ms)
{
    const struct commits *commits = engine_commits(broker->engine);
    uint64_t durable = commits_durable_frame(commits);
    struct sim_attachment made = {
        .is_kept = durability_keeps(broker->durability, frame),
        .position = commits_published_end(commits),
        .commit = durable > 0 ? durable - 1 : 0,
    };
    if (frame != 0 && (broker->durability == NULL ||
                       !durability_resume(broker->durability, frame, &made.position)))
        made.position = UINT64_MAX;
    struct weir_error error = {0};
    int control_fd, event_fd;
    enum weir_status status = readers_attach(broker->readers, (uint32_t)getpid(), &made.slot,
                                             &control_fd, &event_fd, &error);
    weir_assert(status == WEIR_OK);
    const int fds[MAPPING_FDS] = {dup(broker->segment.fd), dup(event_fd), dup(control_fd)};
    status = mapping_open(&made.mapping, made.slot, fds, &error);
    weir_assert(status == WEIR_OK);
    engine_raise_floor(broker->engine, newest_ms);
    return made;
}

void sim_broker_detach(struct sim_broker *broker, uint32_t slot)
{
    if (broker->is_alive)
        readers_detach(broker->readers, slot);
}

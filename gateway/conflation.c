#include "gateway/conflation.h"

#include <stdlib.h>

#include "gateway/event_stream.h"
#include "shm/envelope.h"

enum {
    SLOTS = 2 * CONFLATION_EVENTS_MAX,
    NO_NOTE = UINT16_MAX,
    NOTES_A_RECORD = 32, /* notes that are looked at in the time of a record of the ring */
};
static_assert((SLOTS & (SLOTS - 1)) == 0, "a mask finds the slot");
static_assert(CONFLATION_EVENTS_MAX < (int)NO_NOTE, "every note has a number");

/* Of event `until - number`. */
struct note {
    uint64_t position, item_hash;
    uint16_t newer, older; /* of the same item; NO_NOTE: none */
    uint8_t kind;          /* enum envelope_event */
};

struct conflation {
    struct subscriptions *subscriptions;
    /* What was walked: events below_seq + 1 .. until; event below_seq is at below_position. */
    uint64_t group_hash, epoch, until, below_seq, below_position;
    uint32_t life;      /* 0: nothing */
    struct note *notes; /* NULL: not needed so far */
    uint16_t *slots;    /* by item: number of its oldest note + 1; 0: free */
    struct buffer id, other_id, frame;
    /* The piece. */
    struct conflation_range piece_of;
    struct conflation_piece piece;
    bool piece_is_shared; /* for all who take all events */
    struct buffer bytes, text;
};

struct conflation *conflation_open(struct subscriptions *subscriptions)
{
    struct conflation *conflation = calloc(1, sizeof *conflation);
    if (conflation == NULL)
        return NULL;
    conflation->subscriptions = subscriptions;
    buffer_init(&conflation->id, SIZE_MAX / 2);
    buffer_init(&conflation->other_id, SIZE_MAX / 2);
    buffer_init(&conflation->frame, SIZE_MAX / 2);
    buffer_init(&conflation->bytes, SIZE_MAX / 2);
    buffer_init(&conflation->text, SIZE_MAX / 2);
    return conflation;
}

void conflation_close(struct conflation *conflation)
{
    if (conflation == NULL)
        return;
    free(conflation->notes);
    free(conflation->slots);
    buffer_fini(&conflation->id);
    buffer_fini(&conflation->other_id);
    buffer_fini(&conflation->frame);
    buffer_fini(&conflation->bytes);
    buffer_fini(&conflation->text);
    free(conflation);
}

/* ---- the walk ---- */

static bool walk_is_of(const struct conflation *conflation, const struct topic *topic)
{
    return conflation->life == conflation->subscriptions->ring_life &&
           conflation->group_hash == topic->hash && conflation->epoch == topic->trail.epoch;
}

/* Could the walk that is there be, or become, one of the range? */
static bool walk_fits(const struct conflation *conflation, struct conflation_range *range,
                      bool may_end_earlier)
{
    if (!walk_is_of(conflation, range->topic) || conflation->until <= range->since ||
        conflation->until - range->since > CONFLATION_EVENTS_MAX)
        return false;
    if (range->until <= conflation->until)
        return true;
    bool is_under_way = conflation->below_seq > range->since;
    if (!may_end_earlier ||
        (!is_under_way && range->until - conflation->until > CONFLATION_STALE_EVENTS))
        return false;
    range->until = conflation->until;
    return true;
}

static enum weir_status walk_begin(struct conflation *conflation,
                                   const struct conflation_range *range)
{
    if (conflation->notes == NULL) {
        conflation->notes = malloc(CONFLATION_EVENTS_MAX * sizeof *conflation->notes);
        conflation->slots = malloc(SLOTS * sizeof *conflation->slots);
        if (conflation->notes == NULL || conflation->slots == NULL) {
            free(conflation->notes);
            free(conflation->slots);
            conflation->notes = NULL;
            conflation->slots = NULL;
            return WEIR_NO_MEMORY;
        }
    }
    memset(conflation->slots, 0, SLOTS * sizeof *conflation->slots);
    struct trail_mark from = trail_find(&range->topic->trail, range->until);
    conflation->group_hash = range->topic->hash;
    conflation->epoch = range->topic->trail.epoch;
    conflation->life = conflation->subscriptions->ring_life;
    conflation->until = range->until;
    conflation->below_seq = from.seq;
    conflation->below_position = from.position;
    return WEIR_OK;
}

/* The id in conflation->id, and the event of `note`: one item? */
static enum weir_status note_is_of(struct conflation *conflation, const struct ring_reader *ring,
                                   const struct note *note, const struct ring_record *record,
                                   bool *is_same)
{
    *is_same = false;
    if (note->item_hash != record->item_hash ||
        (note->kind == ENVELOPE_EVENT) != (record->kind == ENVELOPE_EVENT))
        return WEIR_OK;
    struct ring_record other;
    buffer_clear(&conflation->other_id);
    enum weir_status status = ring_read_id_at(ring, note->position, &other, &conflation->other_id);
    if (status != WEIR_OK)
        return status;
    *is_same = (other.id_bytes == UINT32_MAX) == (record->id_bytes == UINT32_MAX) &&
               span_equal(buffer_span(&conflation->other_id), buffer_span(&conflation->id));
    return WEIR_OK;
}

/* Put the event into its item's chain, which it is the oldest of so far. */
static enum weir_status walk_note(struct conflation *conflation, const struct ring_reader *ring,
                                  const struct ring_record *record, struct walk_budget *budget)
{
    uint16_t number = (uint16_t)(conflation->until - record->seq);
    uint64_t slot = record->item_hash & (SLOTS - 1);
    struct note *newer = NULL;
    /* Ends: half of the slots are free. */
    for (; conflation->slots[slot] != 0; slot = (slot + 1) & (SLOTS - 1)) {
        struct note *other = &conflation->notes[conflation->slots[slot] - 1];
        bool is_same;
        enum weir_status status = note_is_of(conflation, ring, other, record, &is_same);
        budget->records++;
        if (status != WEIR_OK)
            return status;
        if (is_same) {
            newer = other;
            break;
        }
    }
    conflation->notes[number] = (struct note){
        .position = record->position,
        .item_hash = record->item_hash,
        .newer = newer == NULL ? NO_NOTE : (uint16_t)(conflation->slots[slot] - 1),
        .older = NO_NOTE,
        .kind = (uint8_t)record->kind,
    };
    if (newer != NULL)
        newer->older = number;
    conflation->slots[slot] = (uint16_t)(number + 1);
    return WEIR_OK;
}

static enum weir_status walk_step(struct conflation *conflation, const struct ring_reader *ring,
                                  struct walk_budget *budget)
{
    struct ring_record record;
    buffer_clear(&conflation->id);
    enum weir_status status =
        ring_read_id_at(ring, conflation->below_position, &record, &conflation->id);
    if (status != WEIR_OK || record.group_hash != conflation->group_hash ||
        record.epoch != conflation->epoch || record.seq != conflation->below_seq)
        return status == WEIR_NO_MEMORY ? status : WEIR_EMPTY;
    if (record.seq <= conflation->until)
        status = walk_note(conflation, ring, &record, budget);
    if (status != WEIR_OK)
        return status == WEIR_NO_MEMORY ? status : WEIR_EMPTY;
    conflation->below_seq--;
    conflation->below_position = record.previous_position;
    return WEIR_OK;
}

enum weir_status conflation_walk(struct conflation *conflation, const struct ring_reader *ring,
                                 struct conflation_range *range, bool may_end_earlier,
                                 struct walk_budget *budget)
{
    weir_assert(range->until - range->since <= CONFLATION_EVENTS_MAX);
    enum weir_status status = WEIR_OK;
    if (!walk_fits(conflation, range, may_end_earlier))
        status = walk_begin(conflation, range);
    while (status == WEIR_OK && conflation->below_seq > range->since) {
        if (budget->records >= budget->records_max)
            return WEIR_PENDING;
        budget->records++;
        status = walk_step(conflation, ring, budget);
    }
    if (status != WEIR_OK)
        conflation->life = 0;
    return status;
}

/* ---- pieces ---- */

/* The event of `number` with its mark, `copies` times. */
static enum weir_status piece_add(struct conflation *conflation, const struct ring_reader *ring,
                                  const struct conflation_range *range, uint16_t number,
                                  unsigned copies, bool more)
{
    const struct note *note = &conflation->notes[number], *oldest = note;
    uint64_t left_out = 0;
    /* Ends at the start of the range, or of the chain. */
    while (oldest->older != NO_NOTE && conflation->until - oldest->older > range->since) {
        oldest = &conflation->notes[oldest->older];
        left_out++;
    }
    enum envelope_event event = (enum envelope_event)note->kind;
    if (event == ENVELOPE_CREATE || event == ENVELOPE_UPDATE)
        event = oldest->kind == ENVELOPE_CREATE ? ENVELOPE_CREATE : ENVELOPE_UPDATE;
    struct ring_record record;
    buffer_clear(&conflation->frame);
    enum weir_status status = ring_read_at(ring, note->position, &record, &conflation->frame);
    if (status != WEIR_OK)
        return status == WEIR_NO_MEMORY ? status : WEIR_EMPTY;
    const struct envelope_conflation mark = {
        .event = event,
        .seq = record.seq,
        .epoch = record.epoch,
        .since = range->since,
        .more = more,
        .json_offset = record.json_offset,
        .data_offset = record.data_offset,
    };
    struct buffer *bytes = &conflation->bytes;
    for (unsigned i = 0; i < copies; i++) {
        status = buffer_reserve(bytes, record.frame_bytes + (size_t)ENVELOPE_CONFLATION_BYTES_MAX);
        if (status != WEIR_OK)
            return WEIR_NO_MEMORY;
        size_t written = envelope_conflate(
            bytes->data + bytes->bytes, span_of(conflation->frame.data, record.frame_bytes), &mark);
        if (written == 0)
            return WEIR_EMPTY;
        bytes->bytes += written;
    }
    conflation->piece.left_out += left_out;
    return WEIR_OK;
}

/* How often the link wants the event. */
static enum weir_status piece_copies(struct conflation *conflation, const struct ring_reader *ring,
                                     const struct note *note, const struct subscriber_link *link,
                                     struct walk_budget *budget, unsigned *copies)
{
    *copies = 1;
    if (conflation->piece_is_shared)
        return WEIR_OK;
    struct ring_record record;
    buffer_clear(&conflation->id);
    budget->records++;
    enum weir_status status = ring_read_id_at(ring, note->position, &record, &conflation->id);
    if (status != WEIR_OK)
        return status == WEIR_NO_MEMORY ? status : WEIR_EMPTY;
    struct span item = {0};
    if (record.id_bytes != UINT32_MAX)
        item = record.id_bytes == 0 ? SPAN_LITERAL("") : buffer_span(&conflation->id);
    *copies = subscriptions_copies(conflation->subscriptions, link, item);
    return WEIR_OK;
}

bool conflation_has_piece(const struct conflation *conflation, const struct conflation_range *range,
                          const struct subscriber_link *link)
{
    const struct conflation_range *has = &conflation->piece_of;
    return conflation->piece_is_shared && walk_is_of(conflation, range->topic) &&
           has->topic == range->topic && has->since == range->since && has->sent == range->sent &&
           has->until == range->until && subscriptions_takes_all(conflation->subscriptions, link);
}

/* The one before the last is written only when there is another: what it says about that is true, also
 * for a link that does not want all of them. */
static enum weir_status piece_make(struct conflation *conflation, const struct ring_reader *ring,
                                   const struct conflation_range *range,
                                   const struct subscriber_link *link, size_t bytes_max,
                                   struct walk_budget *budget)
{
    unsigned waiting_copies = 0, copies;
    uint16_t waiting = NO_NOTE;
    budget->records += (range->until - range->sent) / NOTES_A_RECORD;
    for (uint64_t seq = range->sent + 1; seq <= range->until; seq++) {
        uint16_t number = (uint16_t)(conflation->until - seq);
        const struct note *note = &conflation->notes[number];
        if (note->newer != NO_NOTE && conflation->until - note->newer <= range->until)
            continue;
        enum weir_status status = piece_copies(conflation, ring, note, link, budget, &copies);
        if (status != WEIR_OK)
            return status;
        if (copies == 0)
            continue;
        if (waiting != NO_NOTE) {
            budget->records++;
            status = piece_add(conflation, ring, range, waiting, waiting_copies, true);
            conflation->piece.sent = conflation->until - waiting;
            if (status != WEIR_OK || conflation->bytes.bytes >= bytes_max)
                return status;
        }
        waiting = number;
        waiting_copies = copies;
    }
    conflation->piece.sent = range->until;
    if (waiting == NO_NOTE)
        return WEIR_OK;
    budget->records++;
    return piece_add(conflation, ring, range, waiting, waiting_copies, false);
}

enum weir_status conflation_fill(struct conflation *conflation, const struct ring_reader *ring,
                                 const struct conflation_range *range,
                                 const struct subscriber_link *link, size_t bytes_max,
                                 struct walk_budget *budget)
{
    weir_assert(walk_is_of(conflation, range->topic));
    weir_assert(range->until <= conflation->until);
    weir_assert(range->since >= conflation->below_seq);
    buffer_clear(&conflation->bytes);
    buffer_clear(&conflation->text);
    conflation->piece_of = *range;
    conflation->piece = (struct conflation_piece){0};
    conflation->piece_is_shared = subscriptions_takes_all(conflation->subscriptions, link);
    enum weir_status status = piece_make(conflation, ring, range, link, bytes_max, budget);
    if (status != WEIR_OK)
        conflation->piece_is_shared = false;
    return status;
}

enum weir_status conflation_piece(struct conflation *conflation, unsigned format,
                                  struct conflation_piece *piece)
{
    *piece = conflation->piece;
    piece->bytes = buffer_span(&conflation->bytes);
    if (format == FORMAT_WEBSOCKET)
        return WEIR_OK;
    if (conflation->text.bytes == 0 && piece->bytes.bytes > 0) {
        enum weir_status status = event_stream_append_frames(&conflation->text, piece->bytes);
        if (status != WEIR_OK)
            return status;
    }
    piece->bytes = buffer_span(&conflation->text);
    return WEIR_OK;
}

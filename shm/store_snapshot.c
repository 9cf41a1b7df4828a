/* A group's exact state at one seq, read while the group is written.
 *
 *   S0 = seq                      (acquire: all effects of writes up to S0 are seen from here on)
 *   walk, copy id and value, stop at the first item created after S0
 *   S1 = begun_seq                (all effects the walk may have seen are of writes up to S1, see store.c)
 *   S0 == S1: the copy is the state at S0
 *   else:     apply the events S0 + 1 ... S1 of the ring to the copy, in order: the state at S1
 *
 * Why the result is exact: an item no event of S0 + 1 ... S1 names was reached by the walk, with
 * its one value (the claim in store.c). An item that is named has, after its last event, the value
 * of that event or is gone, whatever the copy had. The place of an item follows from its creation:
 * what was created up to S0 is in the copy in this order, or deleted later; what was created later
 * is appended by its create event.
 *
 * The events are found without scanning: the group's newest ring position, then each record's
 * previous_position. As the ring is published after the store is changed, the newest events may not
 * be there yet: PENDING, and the copy waits. S1 is noted at the end of the walk and not again, so a
 * caller that has to wait is not chasing a fast writer. It waits for the event after S1 as well, if
 * that is written already: the sync's stamp lies between the two.
 *
 * Where the store is logged, the copy waits as well until all up to S1 is committed, even when
 * S0 == S1; then the group's newest position that readers see is that of a committed event not before
 * S1, so that newer events that are not published yet stand in nobody's way. */
#include <stdlib.h>

#include "shm/envelope.h"
#include "shm/hash.h"
#include "shm/store_read.h"

enum {
    PENDING_TRIES = 4,                  /* of store_snapshot(), at once */
    WALK_SPARE_BYTES_MAX = 1024 * 1024, /* a kept walk's buffers; larger ones go back */
    WALK_ENTRIES_MAX =
        32 * 1024 * 1024, /* an item is at least one byte and a comma of the answer */
};
static_assert(WALK_ENTRIES_MAX >= ANSWER_BYTES_MAX / 2, "the answer's limit is met first");

struct walk_entry {
    uint64_t item_hash;
    uint64_t id_at;    /* in `ids` */
    uint64_t value_at; /* in `values` */
    uint32_t id_bytes;
    uint32_t value_bytes;
    bool is_gone;
};

struct store_snapshot_walk {
    struct store_reader *reader;
    struct buffer key; /* stream, group, item behind each other */
    struct span stream, group, item;
    bool is_of_item;
    uint64_t group_hash;

    struct store_group_view view; /* at S0; the block pointer is not used after the walk */
    uint64_t last_seq;            /* S1 */
    bool is_committed;            /* all up to S1 may be shown */
    struct buffer ids;
    struct buffer values; /* as copied: joined by commas */
    struct walk_entry *entries;
    size_t entry_count, entry_capacity;

    /* Catching up. */
    uint64_t *positions;
    size_t position_count, position_capacity;
    uint32_t *table; /* entry + 1 by item hash */
    size_t table_slots;
    uint64_t last_stamp_ms;
    uint64_t after_stamp_ms; /* of the event after S1, or UINT64_MAX */
    struct buffer record;
};

/* ---- the walk's memory ---- */

static struct store_snapshot_walk *walk_open(struct store_reader *reader)
{
    struct store_snapshot_walk *walk = reader->spare;
    reader->spare = NULL;
    if (walk == NULL) {
        walk = calloc(1, sizeof *walk);
        if (walk == NULL)
            return NULL;
        buffer_init(&walk->key, 3 * NAME_BYTES_MAX);
        buffer_init(&walk->ids, 2ul * ANSWER_BYTES_MAX);
        buffer_init(&walk->values, 2ul * ANSWER_BYTES_MAX);
        buffer_init(&walk->record, RING_BYTES_MAX / RING_RECORD_SHARE);
    }
    walk->reader = reader;
    buffer_clear(&walk->key);
    return walk;
}

static void walk_clear(struct store_snapshot_walk *walk)
{
    buffer_clear(&walk->ids);
    buffer_clear(&walk->values);
    walk->entry_count = 0;
    walk->position_count = 0;
}

void store_snapshot_walk_free(struct store_snapshot_walk *walk)
{
    buffer_fini(&walk->key);
    buffer_fini(&walk->ids);
    buffer_fini(&walk->values);
    buffer_fini(&walk->record);
    free(walk->entries);
    free(walk->positions);
    free(walk->table);
    free(walk);
}

uint64_t store_snapshot_bytes(const struct store_snapshot_walk *walk)
{
    return walk->ids.capacity_bytes + walk->values.capacity_bytes + walk->record.capacity_bytes +
           walk->entry_capacity * sizeof *walk->entries +
           walk->position_capacity * sizeof *walk->positions +
           walk->table_slots * sizeof *walk->table;
}

void store_snapshot_cancel(struct store_snapshot_walk *walk)
{
    if (walk == NULL)
        return;
    if (walk->reader->spare == NULL && store_snapshot_bytes(walk) <= WALK_SPARE_BYTES_MAX)
        walk->reader->spare = walk;
    else
        store_snapshot_walk_free(walk);
}

static enum weir_status walk_keep_key(struct store_snapshot_walk *walk, struct span stream,
                                      struct span group, const struct span *item)
{
    struct span id = item == NULL ? (struct span){0} : *item;
    enum weir_status status = buffer_reserve(&walk->key, stream.bytes + group.bytes + id.bytes);
    if (status == WEIR_OK)
        status = buffer_append(&walk->key, stream);
    if (status == WEIR_OK)
        status = buffer_append(&walk->key, group);
    if (status == WEIR_OK)
        status = buffer_append(&walk->key, id);
    if (status != WEIR_OK)
        return status;
    const char *data = walk->key.data == NULL ? "" : walk->key.data;
    walk->stream = span_of(data, stream.bytes);
    walk->group = span_of(data + stream.bytes, group.bytes);
    walk->item = span_of(data + stream.bytes + group.bytes, id.bytes);
    walk->is_of_item = item != NULL;
    walk->group_hash = store_group_hash(walk->reader->hash_seed, stream, group);
    return WEIR_OK;
}

static enum weir_status entry_add(struct store_snapshot_walk *walk, struct walk_entry **entry)
{
    if (walk->entry_count == walk->entry_capacity) {
        if (walk->entry_count >= WALK_ENTRIES_MAX)
            return WEIR_FULL;
        size_t capacity = walk->entry_capacity == 0 ? 64 : walk->entry_capacity * 2;
        struct walk_entry *moved = realloc(walk->entries, capacity * sizeof *moved);
        if (moved == NULL)
            return WEIR_NO_MEMORY;
        walk->entries = moved;
        walk->entry_capacity = capacity;
    }
    *entry = &walk->entries[walk->entry_count++];
    return WEIR_OK;
}

/* ---- walking ---- */

static enum weir_status copy_item(struct store_snapshot_walk *walk,
                                  const struct store_item_view *view)
{
    struct walk_entry *entry;
    enum weir_status status = entry_add(walk, &entry);
    if (status == WEIR_OK && walk->entry_count > 1)
        status = buffer_append(&walk->values, SPAN_LITERAL(","));
    if (status != WEIR_OK)
        return status;
    *entry = (struct walk_entry){.item_hash = view->item_hash,
                                 .id_at = walk->ids.bytes,
                                 .value_at = walk->values.bytes,
                                 .id_bytes = (uint32_t)view->id_bytes,
                                 .value_bytes = (uint32_t)view->value_bytes};
    status = store_read_append(&walk->ids, view->block->words, view->id_bytes);
    if (status != WEIR_OK)
        return status;
    return store_read_append(&walk->values, view->value_words, view->value_bytes);
}

static enum weir_status walk_items(struct store_snapshot_walk *walk)
{
    const struct store_reader *reader = walk->reader;
    uint64_t created_seq = 0;
    uint64_t offset = store_load_acquire(&walk->view.block->first_item); /* G' */
    while (offset != 0) { /* created_seq grows up to S0: the list ends */
        struct store_item_view view;
        if (store_read_view_item(reader, offset, &view) != WEIR_OK ||
            view.group != walk->view.offset || view.created_seq <= created_seq)
            return WEIR_CORRUPT;
        if (view.created_seq > walk->view.numbers.seq)
            break;
        created_seq = view.created_seq;
        offset = store_load_acquire(&view.block->next); /* G' */
        if (offset < reader->area_bytes)
            store_prefetch(reader->base, offset);
        enum weir_status status = copy_item(walk, &view);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static enum weir_status walk_one_item(struct store_snapshot_walk *walk)
{
    struct store_item_view view;
    enum weir_status status =
        store_read_find_item(walk->reader, &walk->view, walk->group_hash, walk->item, &view);
    if (status == WEIR_EMPTY)
        return WEIR_OK;
    return status == WEIR_OK ? copy_item(walk, &view) : status;
}

static enum weir_status walk_once(struct store_snapshot_walk *walk)
{
    enum weir_status status =
        store_read_find_group(walk->reader, walk->stream, walk->group, &walk->view); /* S0 */
    if (status != WEIR_OK)
        return status;
    walk->last_seq = walk->view.numbers.seq;
    walk->is_committed = true; /* a record that is missing has no write that is not */
    if (walk->view.is_missing)
        return WEIR_OK;
    status = walk->is_of_item ? walk_one_item(walk) : walk_items(walk);
    /* After the acquire loads of the walk: at least the write whose effects they saw. */
    walk->last_seq = store_load(&walk->view.block->begun_seq);
    if (walk->reader->is_limited)
        walk->is_committed =
            store_load_acquire(&walk->view.block->committed_seq) >= walk->last_seq; /* K' */
    return status;
}

enum weir_status store_snapshot_begin(struct store_reader *reader, struct span stream,
                                      struct span group, const struct span *item,
                                      struct store_snapshot_walk **begun)
{
    *begun = NULL;
    if (stream.bytes > NAME_BYTES_MAX || group.bytes > NAME_BYTES_MAX ||
        (item != NULL && item->bytes > NAME_BYTES_MAX))
        return WEIR_TOO_LARGE;
    struct store_snapshot_walk *walk = walk_open(reader);
    if (walk == NULL)
        return WEIR_NO_MEMORY;
    enum weir_status status = walk_keep_key(walk, stream, group, item);
    if (status == WEIR_OK)
        status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        walk_clear(walk);
        store_read_enter(reader);
        status = walk_once(walk);
        status = store_read_leave(reader, status);
    }
    if (status != WEIR_OK) {
        store_snapshot_cancel(walk);
        return status;
    }
    *begun = walk;
    return WEIR_OK;
}

/* ---- commits ---- */

/* OK when all up to S1 may be shown; a record that has gone since, had nothing else left. */
static enum weir_status wait_for_commit(struct store_snapshot_walk *walk)
{
    struct store_group_view view;
    enum weir_status status = WEIR_REVOKED;
    if (walk->is_committed)
        return WEIR_OK;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        store_read_enter(walk->reader);
        status = store_read_find_group(walk->reader, walk->stream, walk->group, &view);
        if (status == WEIR_OK)
            walk->is_committed =
                view.is_missing || view.epoch != walk->view.epoch ||
                store_load_acquire(&view.block->committed_seq) >= walk->last_seq; /* K' */
        status = store_read_leave(walk->reader, status);
    }
    if (status != WEIR_OK)
        walk->is_committed = false;
    return status == WEIR_OK && !walk->is_committed ? WEIR_PENDING : status;
}

/* ---- catching up from the ring ---- */

/* The group as it is now; LAPPED when it is not the one the walk has seen. */
static enum weir_status look_again(struct store_snapshot_walk *walk, struct store_numbers *numbers,
                                   uint64_t *newest_position)
{
    struct store_group_view view;
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        store_read_enter(walk->reader);
        status = store_read_find_group(walk->reader, walk->stream, walk->group, &view);
        if (status == WEIR_OK && !view.is_missing)
            *newest_position = store_load_acquire(&view.block->newest_position);
        status = store_read_leave(walk->reader, status);
    }
    if (status != WEIR_OK)
        return status;
    if (view.is_missing || view.epoch != walk->view.epoch)
        return WEIR_LAPPED;
    *numbers = view.numbers;
    return WEIR_OK;
}

static enum weir_status position_add(struct store_snapshot_walk *walk, uint64_t position)
{
    if (walk->position_count == walk->position_capacity) {
        size_t capacity = walk->position_capacity == 0 ? 64 : walk->position_capacity * 2;
        uint64_t *moved = realloc(walk->positions, capacity * sizeof *moved);
        if (moved == NULL)
            return WEIR_NO_MEMORY;
        walk->positions = moved;
        walk->position_capacity = capacity;
    }
    walk->positions[walk->position_count++] = position;
    return WEIR_OK;
}

/* Walk the group's records from its newest back to S0 + 1 and note where S1 ... S0 + 1 are. */
static enum weir_status collect_positions(struct store_snapshot_walk *walk, uint64_t position)
{
    uint64_t wanted = walk->last_seq;
    bool is_newest = true;
    walk->position_count = 0;
    while (wanted > walk->view.numbers.seq) { /* positions fall, and the ring keeps only so many */
        struct ring_record record;
        if (position == RING_NO_POSITION)
            return WEIR_LAPPED;
        enum weir_status status = ring_read_at(&walk->reader->ring, position, &record, NULL);
        if (status != WEIR_OK)
            return status;
        if (record.group_hash != walk->group_hash || record.epoch != walk->view.epoch)
            return WEIR_LAPPED;
        if (record.seq == walk->last_seq + 1)
            walk->after_stamp_ms = record.timestamp_ms;
        if (record.seq == walk->last_seq)
            walk->last_stamp_ms = record.timestamp_ms;
        if (record.seq <
            wanted) /* what is wanted is not in the ring yet, or the chain has a hole */
            return is_newest ? WEIR_PENDING : WEIR_LAPPED;
        if (record.seq == wanted) {
            status = position_add(walk, position);
            if (status != WEIR_OK)
                return status;
            wanted--;
        }
        if (record.previous_position != RING_NO_POSITION && record.previous_position >= position)
            return WEIR_CORRUPT;
        position = record.previous_position;
        is_newest = false;
    }
    return WEIR_OK;
}

static void table_put(struct store_snapshot_walk *walk, size_t entry)
{
    size_t slot = walk->entries[entry].item_hash & (walk->table_slots - 1);
    while (walk->table[slot] != 0)
        slot = (slot + 1) & (walk->table_slots - 1);
    walk->table[slot] = (uint32_t)(entry + 1);
}

/* A table of all entries, with room for one more per event: at most half full. */
static enum weir_status table_make(struct store_snapshot_walk *walk)
{
    size_t slots = 64;
    while (slots < 2 * (walk->entry_count + walk->position_count))
        slots *= 2;
    if (slots > walk->table_slots) {
        free(walk->table);
        walk->table_slots = 0;
        walk->table = malloc(slots * sizeof *walk->table);
        if (walk->table == NULL)
            return WEIR_NO_MEMORY;
        walk->table_slots = slots;
    }
    memset(walk->table, 0, walk->table_slots * sizeof *walk->table);
    for (size_t i = 0; i < walk->entry_count; i++)
        table_put(walk, i);
    return WEIR_OK;
}

/* The entry that is not gone, or NULL. */
static struct walk_entry *table_find(struct store_snapshot_walk *walk, uint64_t hash,
                                     struct span id)
{
    for (size_t slot = hash & (walk->table_slots - 1); walk->table[slot] != 0;
         slot = (slot + 1) & (walk->table_slots - 1)) {
        struct walk_entry *entry = &walk->entries[walk->table[slot] - 1];
        if (entry->item_hash == hash && !entry->is_gone &&
            span_equal(span_of(walk->ids.data + entry->id_at, entry->id_bytes), id))
            return entry;
    }
    return NULL;
}

static enum weir_status apply_value(struct store_snapshot_walk *walk,
                                    const struct ring_record *record, struct span id,
                                    struct span data)
{
    struct walk_entry *entry = table_find(walk, record->item_hash, id);
    if (entry != NULL && record->kind == ENVELOPE_CREATE) {
        entry->is_gone = true; /* the copy saw it before its delete event: it belongs at the end */
        entry = NULL;
    }
    enum weir_status status;
    if (entry == NULL) {
        status = entry_add(walk, &entry);
        if (status != WEIR_OK)
            return status;
        *entry = (struct walk_entry){.item_hash = record->item_hash,
                                     .id_at = walk->ids.bytes,
                                     .id_bytes = (uint32_t)id.bytes};
        table_put(walk, walk->entry_count - 1);
        status = buffer_append(&walk->ids, id);
        if (status != WEIR_OK)
            return status;
    }
    entry->value_at = walk->values.bytes;
    entry->value_bytes = (uint32_t)data.bytes;
    return buffer_append(&walk->values, data);
}

static enum weir_status apply_record(struct store_snapshot_walk *walk, uint64_t position)
{
    struct ring_record record;
    buffer_clear(&walk->record);
    enum weir_status status = ring_read_at(&walk->reader->ring, position, &record, &walk->record);
    if (status != WEIR_OK)
        return status;
    if (record.kind != ENVELOPE_CREATE && record.kind != ENVELOPE_UPDATE &&
        record.kind != ENVELOPE_DELETE)
        return WEIR_OK; /* stream::send: counts, changes nothing */
    if (record.id_bytes == UINT32_MAX || record.frame_bytes > walk->record.bytes ||
        walk->record.bytes - record.frame_bytes < record.id_bytes ||
        record.data_offset > record.frame_bytes ||
        record.data_bytes > record.frame_bytes - record.data_offset)
        return WEIR_CORRUPT;
    struct span id = span_of(walk->record.data + record.frame_bytes, record.id_bytes);
    if (walk->is_of_item && !span_equal(id, walk->item))
        return WEIR_OK;
    if (record.kind != ENVELOPE_DELETE)
        return apply_value(walk, &record, id,
                           span_of(walk->record.data + record.data_offset, record.data_bytes));
    struct walk_entry *entry = table_find(walk, record.item_hash, id);
    if (entry != NULL)
        entry->is_gone = true;
    return WEIR_OK;
}

/* One below the stamp of the event after S1, which is at most 2 above the last one's, and may be 1
 * above (store.h). False: it is written, and not in the ring yet. */
static bool stamp_of_sync(const struct store_snapshot_walk *walk,
                          const struct store_numbers *numbers, uint64_t *sync_ms)
{
    uint64_t after_ms = walk->after_stamp_ms;
    if (numbers->seq == walk->last_seq) {
        *sync_ms = numbers->next_ms - 1;
        return true;
    }
    if (numbers->seq == walk->last_seq + 1)
        after_ms = numbers->timestamp_ms;
    *sync_ms = walk->last_stamp_ms + (after_ms > walk->last_stamp_ms + 1 ? 1 : 0);
    return after_ms != UINT64_MAX;
}

static enum weir_status catch_up(struct store_snapshot_walk *walk, uint64_t *sync_ms)
{
    struct store_numbers numbers;
    uint64_t newest_position = RING_NO_POSITION;
    enum weir_status status = look_again(walk, &numbers, &newest_position);
    if (status != WEIR_OK)
        return status;
    if (newest_position == RING_NO_POSITION)
        return WEIR_PENDING;
    walk->after_stamp_ms = UINT64_MAX;
    status = collect_positions(walk, newest_position);
    if (status == WEIR_OK && !stamp_of_sync(walk, &numbers, sync_ms))
        return WEIR_PENDING;
    if (status == WEIR_OK)
        status = table_make(walk);
    for (size_t i = walk->position_count; i > 0 && status == WEIR_OK; i--)
        status = apply_record(walk, walk->positions[i - 1]);
    return status;
}

/* ---- the answer ---- */

static enum weir_status append_value(const struct store_snapshot_walk *walk,
                                     const struct walk_entry *entry, struct buffer *out)
{
    return buffer_append(out, span_of(walk->values.data + entry->value_at, entry->value_bytes));
}

static enum weir_status append_item(const struct store_snapshot_walk *walk,
                                    struct store_snapshot *snapshot, struct buffer *out)
{
    for (size_t i = 0; i < walk->entry_count; i++) {
        if (walk->entries[i].is_gone)
            continue;
        snapshot->exists = true;
        snapshot->item_count = 1;
        return append_value(walk, &walk->entries[i], out);
    }
    return buffer_append(out, SPAN_LITERAL("null"));
}

static enum weir_status append_entries(const struct store_snapshot_walk *walk,
                                       struct store_snapshot *snapshot, struct buffer *out)
{
    enum weir_status status = WEIR_OK;
    for (size_t i = 0; i < walk->entry_count && status == WEIR_OK; i++) {
        if (walk->entries[i].is_gone)
            continue;
        if (snapshot->item_count++ > 0)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = append_value(walk, &walk->entries[i], out);
    }
    return status;
}

static enum weir_status append_items(const struct store_snapshot_walk *walk,
                                     struct store_snapshot *snapshot, struct buffer *out)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("["));
    if (status != WEIR_OK)
        return status;
    if (walk->last_seq == walk->view.numbers.seq) { /* as copied */
        snapshot->item_count = walk->entry_count;
        status = buffer_append(out, buffer_span(&walk->values));
    } else {
        status = append_entries(walk, snapshot, out);
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("]")) : status;
}

enum weir_status store_snapshot_finish(struct store_snapshot_walk *walk,
                                       struct store_snapshot *snapshot, struct buffer *out)
{
    size_t mark = out->bytes;
    enum weir_status status = wait_for_commit(walk);
    if (status == WEIR_PENDING)
        return WEIR_PENDING;
    *snapshot = (struct store_snapshot){.seq = walk->last_seq,
                                        .epoch = walk->view.epoch,
                                        .timestamp_ms = walk->view.numbers.next_ms - 1};
    if (status == WEIR_OK && walk->last_seq != walk->view.numbers.seq) {
        status = catch_up(walk, &snapshot->timestamp_ms);
        if (status == WEIR_PENDING)
            return WEIR_PENDING;
    }
    if (status == WEIR_OK)
        status =
            walk->is_of_item ? append_item(walk, snapshot, out) : append_items(walk, snapshot, out);
    weir_assert(status != WEIR_PENDING); /* the walk would be kept, and is not */
    if (status != WEIR_OK)
        out->bytes = mark;
    store_snapshot_cancel(walk);
    return status;
}

enum weir_status store_snapshot(struct store_reader *reader, struct span stream, struct span group,
                                const struct span *item, struct store_snapshot *snapshot,
                                struct buffer *out)
{
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES; tries++) {
        struct store_snapshot_walk *walk;
        status = store_snapshot_begin(reader, stream, group, item, &walk);
        if (status != WEIR_OK)
            return status;
        status = store_snapshot_finish(walk, snapshot, out);
        for (unsigned more = 0; more < PENDING_TRIES && status == WEIR_PENDING; more++)
            status = store_snapshot_finish(walk, snapshot, out);
        if (status == WEIR_PENDING)
            store_snapshot_cancel(walk);
        if (status != WEIR_LAPPED && status != WEIR_REVOKED)
            return status;
    }
    return status;
}

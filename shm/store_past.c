/* What outlives the broker: a walk over the store for a snapshot on disk, and the way back.
 *
 * ---- Walk, restore, replay: why the result is exact
 * ------------------------------------------------------------------
 *
 * A group is yielded with its numbers at seq n, then its items one by one while writes go on; let t be
 * its seq when the walk finds no further item. The walk's cursor names the block that is next, and the
 * writer moves it on when it replaces or removes that block. So the cursor is always on a linked block
 * (or at the end), and goes through the list in order of creation.
 *
 * Claim: once the records n + 1 ... t are replayed over what was restored, the group has exactly the
 * items it had at t, in order.
 *
 *   X is there at t, created by write c, last written by m <= t. The cursor has passed the place of X,
 *   as it is at the end and X is in the list; so X was yielded, perhaps more than once, the last time
 *   as created by c, with the value of a write m', c <= m' <= m. Restoring keeps the last time, at the
 *   end of what was yielded so far: in order of creation. Records up to m' find a newer item and leave
 *   it alone; among these are all deletes of X, as it lives since c. The others put the new value in
 *   its place. At t it has the value of m, where it belongs.
 *
 *   X is not there at t. If a record up to t makes it, or it was yielded, then it was deleted by a
 *   write d > n afterwards, and no later write up to t made it again (d is the newest up to t): the
 *   replay removes it. Until then it may stand behind items that were created later; it is the only
 *   kind of item that does.
 *
 * So the order is right from t on, and what follows is replayed as it happened. That an item that is
 * newer than the write stays as it is, is needed: had a delete before c removed the X of above, its set
 * would make it again behind younger ones.
 *
 * A group that is made, or made again in a new epoch, after the cursor has passed the end of its list
 * has all its writes in the log. One that is forgotten had no items. If it comes again while the walk
 * goes on, the walk may yield it twice, in two epochs; the later one counts.
 *
 * ---- Numbers
 * ---------------------------------------------------------------------------------------------
 *
 * A restart forgets which epochs were promised to the buckets (store.c); so after it, all buckets
 * start above everything that is known to have been given: the epochs of groups that came back, and
 * the floor for those that were forgotten before.
 *
 * When the log may have less than was shown, the groups that came back are renewed: they go on in an
 * epoch above all of before. Nothing is logged for that; a later life is told the epoch and renews what
 * still has a lower one when it is recovered, and comes to the same numbers, for the log ends where it
 * ended then, and goes on from there. A group's first record after that has the renewed epoch and the
 * next seq. A new life of a group begins with seq 1 instead, and all the group had was deleted before:
 * so a record tells which of the two its epoch is. */
#include "shm/hash.h"
#include "shm/json.h"
#include "shm/store_write.h"

enum { PAST_TURN_BLOCKS = 1024 }; /* retired by replay before a turn ends */
#define PAST_MS_MAX (1ull << 53)  /* as for stamps, store.c */

/* ---- walk ---- */

void store_walk_begin(struct store *store)
{
    store_walk_cancel(store);
    store->walk.stream = store_load(&store->root->first_stream);
    if (store->walk.stream != 0)
        store->walk.group = store_load(&store_stream_at(store, store->walk.stream)->first_group);
}

void store_walk_cancel(struct store *store)
{
    store->walk.stream = store->walk.group = store->walk.item = 0;
    store->walk.is_inside = false;
}

static void yield_item(struct store *store, struct store_walk_entry *entry)
{
    const struct item_block *item = store_item_at(store, store->walk.item);
    *entry = (struct store_walk_entry){.item = store_item_id(item),
                                       .value = store_item_value(item),
                                       .created_seq = store_load(&item->created_seq),
                                       .modified_seq = store_load(&item->modified_seq)};
    store->walk.item = store_load(&item->next);
    store_prefetch(store->base, store->walk.item);
}

static void yield_group(struct store *store, struct store_walk_entry *entry)
{
    const struct group_block *group = store_group_at(store, store->walk.group);
    struct store_numbers numbers = store_numbers_load(group);
    struct store_group_names names = store_group_names(group);
    *entry = (struct store_walk_entry){.is_group = true,
                                       .stream = names.stream,
                                       .group = names.group,
                                       .numbers = {.epoch = store_load(&group->epoch),
                                                   .seq = numbers.seq,
                                                   .timestamp_ms = numbers.timestamp_ms,
                                                   .next_ms = numbers.next_ms}};
    store->walk.is_inside = true;
    store->walk.item = store_load(&group->first_item);
}

enum weir_status store_walk_next(struct store *store, struct store_walk_entry *entry)
{
    if (store->walk.item != 0) {
        yield_item(store, entry);
        return WEIR_OK;
    }
    if (store->walk.is_inside) {
        store->walk.group = store_load(&store_group_at(store, store->walk.group)->next);
        store->walk.is_inside = false;
    }
    if (store->walk.group == 0 && store->walk.stream != 0) {
        store->walk.stream = store_load(&store_stream_at(store, store->walk.stream)->next);
        if (store->walk.stream != 0)
            store->walk.group =
                store_load(&store_stream_at(store, store->walk.stream)->first_group);
    }
    if (store->walk.group == 0)
        return WEIR_EMPTY;
    yield_group(store, entry);
    return WEIR_OK;
}

/* ---- what restore and replay share ---- */

static bool numbers_can_be(const struct store_past *past)
{
    return past->epoch > 0 && past->epoch < INT64_MAX && past->seq > 0 && past->seq < INT64_MAX &&
           past->next_ms > past->timestamp_ms && past->next_ms <= PAST_MS_MAX;
}

/* Before each entry or record: nobody uses what the one before has handed out any more. */
static void past_begin(struct store *store)
{
    store->is_recovering = true;
    if (store->retired_tail - store->turn_tail >= PAST_TURN_BLOCKS)
        store_turn_end(store);
}

static void note_numbers(struct store *store, const struct store_past *past)
{
    if (past->epoch > store->past_epoch)
        store->past_epoch = past->epoch;
    if (past->next_ms > store->past_next_ms)
        store->past_next_ms = past->next_ms;
}

/* Out of list and index; no reader is there, so the block is free at once. */
static void remove_item(struct store *store, uint64_t group_offset, uint64_t key_hash,
                        uint64_t offset)
{
    struct group_block *group = store_group_at(store, group_offset);
    struct store_numbers numbers = store_numbers_load(group);
    store_replace_item(store, group, offset, 0);
    index_remove(&store->items, key_hash, offset);
    store->item_count--;
    if (--numbers.item_count == 0)
        store_unlist_group(store, group_offset);
    store_numbers_store(group, &numbers);
    arena_free(store->arena, offset);
}

/* The group of an earlier epoch, and whatever it still has. */
static void forget_group(struct store *store, uint64_t group_offset)
{
    struct group_block *group = store_group_at(store, group_offset);
    uint64_t hash = store_load(&group->hash);
    uint64_t offset;
    while ((offset = store_load(&group->first_item)) != 0)
        remove_item(store, group_offset,
                    hash_pair(hash, store_load(&store_item_at(store, offset)->item_hash)), offset);
    store_drop_group(store, group_offset);
}

/* It goes on in a higher epoch, and no event of before leads to it. */
static void renew_group(struct group_block *group, uint64_t epoch)
{
    if (store_load(&group->epoch) >= epoch)
        return;
    store_put(&group->epoch, epoch);
    store_put(&group->appended_position, RING_NO_POSITION);
    store_put_link(&group->newest_position, RING_NO_POSITION);
}

/* ---- replay ---- */

/* OK: the record is to be applied at `place`. */
static enum weir_status replay_begin(struct store *store, const struct store_key *key,
                                     const struct store_past *past, struct store_place *place)
{
    enum weir_status status = store_check_key(key);
    if (status != WEIR_OK)
        return status;
    if (!numbers_can_be(past))
        return WEIR_INVALID;
    past_begin(store);
    store->restored_group = 0;
    store_trim_empty_groups(store);
    if (!store_retire_reserve(store))
        return WEIR_FULL;
    *place = store_find_place(store, key);
    note_numbers(store, past);
    if (place->group == 0)
        return WEIR_OK;
    const struct group_block *group = store_group_at(store, place->group);
    uint64_t epoch = store_load(&group->epoch);
    if (epoch > past->epoch)
        return WEIR_EMPTY;
    if (epoch == past->epoch)
        return store_numbers_load(group).seq >= past->seq ? WEIR_EMPTY : WEIR_OK;
    if (past->seq > 1) {
        renew_group(store_group_at(store, place->group), past->epoch);
        return WEIR_OK;
    }
    forget_group(store, place->group);
    place->group = place->item = 0;
    return WEIR_OK;
}

static bool item_is_newer(const struct store *store, const struct store_place *place,
                          const struct store_past *past)
{
    return place->item != 0 &&
           store_load(&store_item_at(store, place->item)->modified_seq) >= past->seq;
}

enum weir_status store_replay_set(struct store *store, const struct store_key *key,
                                  struct span value, const struct store_past *past,
                                  struct store_change *change)
{
    const struct store_moment moment = {.past = past};
    struct store_place place;
    enum weir_status status = store_check_value(value);
    if (status == WEIR_OK)
        status = replay_begin(store, key, past, &place);
    if (status != WEIR_OK)
        return status;
    if (!item_is_newer(store, &place, past))
        return store_write_set(store, &place, key, value, &moment, change);
    status = store_write_touch(store, &place, key, &moment, change);
    if (status == WEIR_OK)
        change->new_value = store_item_value(store_item_at(store, place.item));
    return status;
}

enum weir_status store_replay_delete(struct store *store, const struct store_key *key,
                                     const struct store_past *past, struct store_change *change)
{
    const struct store_moment moment = {.past = past};
    struct store_place place;
    enum weir_status status = replay_begin(store, key, past, &place);
    if (status != WEIR_OK)
        return status;
    if (place.item == 0 || item_is_newer(store, &place, past))
        return store_write_touch(store, &place, key, &moment, change);
    return store_write_delete(store, &place, &moment, change);
}

enum weir_status store_replay_touch(struct store *store, const struct store_key *key,
                                    const struct store_past *past, struct store_change *change)
{
    const struct store_moment moment = {.past = past};
    struct store_place place;
    enum weir_status status = replay_begin(store, key, past, &place);
    return status != WEIR_OK ? status : store_write_touch(store, &place, key, &moment, change);
}

/* ---- restore ---- */

static enum weir_status restore_group(struct store *store, const struct store_walk_entry *entry)
{
    const struct store_key key = {entry->stream, entry->group, {0}};
    const struct store_past *past = &entry->numbers;
    enum weir_status status = store_check_key(&key);
    if (status != WEIR_OK)
        return status;
    if (!numbers_can_be(past))
        return WEIR_INVALID;
    store->restored_group = 0;
    store_trim_empty_groups(store);
    if (!store_retire_reserve(store))
        return WEIR_FULL;
    uint64_t hash = store_group_hash(store->hash_seed, key.stream, key.group);
    uint64_t offset = store_find_group(store, hash, &key);
    if (offset != 0 && store_load(&store_group_at(store, offset)->epoch) >= past->epoch)
        return WEIR_INVALID;
    if (offset != 0)
        forget_group(store, offset);
    status = store_make_group(store, &key, hash, past->epoch, &offset);
    if (status != WEIR_OK)
        return status;
    struct group_block *group = store_group_at(store, offset);
    const struct store_numbers numbers = {
        .seq = past->seq, .timestamp_ms = past->timestamp_ms, .next_ms = past->next_ms};
    store_put(&group->begun_seq, past->seq);
    store_numbers_store(group, &numbers);
    store_put_link(&group->committed_seq, past->seq);
    note_numbers(store, past);
    store->restored_group = offset;
    store->restored_group_hash = hash;
    return WEIR_OK;
}

/* The item of this id in the group that is being restored, or 0. */
static uint64_t find_restored(const struct store *store, const struct store_place *place,
                              struct span id)
{
    struct index_lookup lookup;
    uint64_t offset;
    index_lookup_begin(&lookup, store->base, store->area_bytes, &store->root->item_index,
                       place->key_hash);
    while ((offset = index_lookup_next(&lookup)) != 0) {
        const struct item_block *item = store_item_at(store, offset);
        if (store_load(&item->group) == place->group && span_equal(store_item_id(item), id))
            break;
    }
    return offset;
}

static enum weir_status check_item(const struct store *store, const struct store_walk_entry *entry)
{
    if (entry->item.bytes > NAME_BYTES_MAX)
        return WEIR_TOO_LARGE;
    if (store->restored_group == 0 || entry->created_seq == 0 ||
        entry->created_seq > entry->modified_seq || !json_is_utf8(entry->item))
        return WEIR_INVALID;
    uint64_t last = store_load(&store_group_at(store, store->restored_group)->last_item);
    if (last != 0 && store_load(&store_item_at(store, last)->created_seq) >= entry->created_seq)
        return WEIR_INVALID;
    return store_check_value(entry->value);
}

static enum weir_status restore_item(struct store *store, const struct store_walk_entry *entry)
{
    enum weir_status status = check_item(store, entry);
    if (status != WEIR_OK)
        return status;
    struct store_place place = {.group = store->restored_group,
                                .group_hash = store->restored_group_hash,
                                .item_hash = store_item_hash(store->hash_seed, entry->item)};
    place.key_hash = hash_pair(place.group_hash, place.item_hash);
    place.item = find_restored(store, &place, entry->item);
    if (place.item != 0)
        remove_item(store, place.group, place.key_hash, place.item);
    if (!store_has_room(store, place.group) || !store_retire_reserve(store) ||
        index_reserve(&store->items, 1) != WEIR_OK)
        return WEIR_FULL;
    struct span escaped =
        span_of(store->item_escaped, json_escape(store->item_escaped, entry->item));
    uint64_t offset = store_make_item(store, &place, entry->item, escaped, entry->value);
    if (offset == 0)
        return WEIR_FULL;
    struct item_block *item = store_item_at(store, offset);
    struct group_block *group = store_group_at(store, place.group);
    struct store_numbers numbers = store_numbers_load(group);
    store_put(&item->group, place.group);
    store_put(&item->created_seq, entry->created_seq);
    store_put(&item->modified_seq, entry->modified_seq);
    store_append_item(store, group, offset);
    index_insert(&store->items, place.key_hash, offset);
    if (numbers.item_count++ == 0)
        store_list_group(store, place.group);
    store->item_count++;
    store_numbers_store(group, &numbers);
    return WEIR_OK;
}

enum weir_status store_restore(struct store *store, const struct store_walk_entry *entry)
{
    past_begin(store);
    return entry->is_group ? restore_group(store, entry) : restore_item(store, entry);
}

/* ---- the end of it ---- */

void store_recovered(struct store *store, uint64_t epoch_floor)
{
    store_trim_empty_groups(store);
    store_turn_end(store);
    if (epoch_floor > store->newest_epoch)
        store->newest_epoch = epoch_floor;
    if (store->past_epoch >= store->newest_epoch)
        store->newest_epoch = store->past_epoch + 1;
    for (unsigned bucket = 0; bucket < STORE_EPOCH_BUCKETS; bucket++)
        store_put_link(&store->root->next_epochs[bucket], store->newest_epoch);
    /* Plus 1: the sync of a missing group is stamped one below. */
    if (store->past_next_ms + 1 > store_load(&store->root->new_group_ms))
        store_put_link(&store->root->new_group_ms, store->past_next_ms + 1);
    store->restored_group = 0;
    store->is_recovering = false;
}

void store_renew(struct store *store, uint64_t epoch)
{
    uint64_t stream = store_load(&store->root->first_stream);
    for (; stream != 0; stream = store_load(&store_stream_at(store, stream)->next)) {
        uint64_t group = store_load(&store_stream_at(store, stream)->first_group);
        for (; group != 0; group = store_load(&store_group_at(store, group)->next))
            renew_group(store_group_at(store, group), epoch);
    }
    if (store->newest_epoch > epoch)
        return;
    store->newest_epoch = epoch + 1;
    for (unsigned bucket = 0; bucket < STORE_EPOCH_BUCKETS; bucket++)
        store_put_link(&store->root->next_epochs[bucket], store->newest_epoch);
}

uint64_t store_epoch_base(const struct store *store)
{
    return store->newest_epoch + 1;
}

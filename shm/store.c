/* The store's writer. Readers are in store_reader.c and store_snapshot.c; the bytes are in
 * store_layout.h; store_check() is in store_check.c.
 *
 * ---- Writes
 * -----------------------------------------------------------------------------------------------------
 *
 * Nothing a reader can reach is changed but single atomic words. A write to a group goes
 *
 *   1  allocate and fill all new blocks; whatever can fail has failed by now
 *   2  begun_seq = seq + 1
 *   3  links of the list and the slot of the index (release stores: G, and C in index.c)
 *   4  the inactive copy of the numbers, then version + 1 (release: N)
 *   5  retire the replaced or removed block
 *
 * and the writer may die between any two stores. The numbers are two copies, not a seqlock, so that
 * a dead writer never leaves a reader waiting: version & 1 names the copy that is whole; a reader
 * that copied it looks at version again. Every store of step 3 and 4 is a release store, so who
 * sees any effect of write n (acquire) sees begun_seq >= n, and who sees a half-written copy of the
 * numbers sees the version that follows. No fence is needed.
 *
 * ---- Walking a list while it changes
 * ----------------------------------------------------------------------------
 *
 * Lists are in order of creation (created_seq of items, ordinal of groups and streams), and
 * appended to at the end only. An update puts a new block in the old one's place with the same
 * created_seq. The old block keeps its `next` as it was.
 *
 * Claim: a walk that started when the group was at seq S0 reaches every item that exists from S0 to
 * the end of the walk and is not touched meanwhile, each position at most once, in order.
 *
 *   Let Z be such an item. The walk is at a block b created before Z, and reads b.next. Either b is
 *   still linked, then this is b's successor now; or b was retired by a write after S0, then it is
 *   b's successor at that moment. (All blocks a walk meets were linked at S0 or later: the first
 *   pointer and `next` of linked blocks are loaded after S0, and a frozen `next` points to what was
 *   linked when it froze.) At both moments Z is in the list behind b, so the successor is Z or was
 *   created before Z: the walk never steps over Z, and as created_seq grows with each step it
 *   arrives there.
 *
 *   A block that a frozen `next` points to was linked when it froze, so it was retired later than
 *   the block that points to it: a reader's epoch that protects the one protects the other.
 *
 * What the walk may get wrong are items touched after S0, and these are in the ring: see
 * store_snapshot.c. A reader whose epoch was revoked may meet anything; it checks bounds and that
 * created_seq grows, and learns of it at the end.
 *
 * ---- Epochs
 * -----------------------------------------------------------------------------------------------------
 *
 * A group record that is dropped takes its seq with it, so the group's next life needs an epoch
 * above all its earlier ones, and memory for that must not grow with names. next_epochs[] has one
 * word per bucket of group hashes; dropping a group sets its bucket to the next number of one
 * counter (which starts at the segment's generation). So a reader that was told "no such group,
 * next epoch E, seq 0" sees events of epoch E from seq 1, unless a group of the same bucket was
 * dropped in between (one in 4096): then it sees a new epoch and takes a fresh sync, which is
 * always right. One number for the whole store would say so to every waiting reader at every drop.
 *
 * A record with writes that are not in the ring yet, or in a logged store not committed, is never
 * dropped: the broker still holds its handle.
 *
 * ---- Commits
 * ----------------------------------------------------------------------------------------------------
 *
 * Where the store is logged, a write is applied here before it is durable, and readers other than the
 * broker are not to see it until it is. The broker says so by group, after the log has it:
 * newest_position, committed_seq (release: K), and then its event is published. committed_seq never
 * falls while the record lives, so that it is enough to look at it after what was read:
 *
 *   An item that was found is of write modified_seq. committed_seq >= modified_seq (K'): it may be
 *   shown.
 *
 *   An item that was not found: what the search saw, above all an item's removal, are effects of
 *   writes to the group whose slots and links were loaded with acquire, so begun_seq, loaded after the
 *   search, covers them. committed_seq >= begun_seq: all of them are committed, whichever of the two
 *   is loaded first. If the group has no record after the search, then either it was dropped, and all
 *   it had was committed, or its first write had not begun when the search ended.
 *
 *   A group's snapshot is of S1, see store_snapshot.c: committed_seq >= S1.
 *
 *   A list of names shows which groups have items. That changes with few writes, which are counted
 *   twice in the root: listings_begun before the first effect (it is stored before the numbers, N),
 *   listings_committed (release: L) when the group's commit covers its newest such write. A reader
 *   that has walked the list loads listings_committed (L'), then listings_begun. b covers all the walk
 *   saw, as begun_seq does. By L/L' it is not below what had begun when c was stored, and c counts
 *   only what had; so b == c says that at that moment nothing that had begun was open, and nothing
 *   has begun since that b does not count.
 *
 *   store_read_group() says committed_seq for the seq, and then loads newest_position: by K/K' it is
 *   of that write or a newer one. As a commit is marked before its events are published, a reader that
 *   has seen the ring up to some head finds committed_seq not below any event there: who is brought up
 *   to this seq has missed nothing that the reader has passed.
 *
 * ---- Giving memory back
 * -----------------------------------------------------------------------------------------
 *
 * Retired blocks wait in a queue with the epoch they were retired in, until readers_safe_epoch()
 * has passed it. A reader is revoked when it alone stands in the way and (a) the queue holds more
 * than its bound for longer than a second, by the clock of the writes, or (b) a write would
 * otherwise be refused. Blocks of the current turn are never given back, so spans handed to the
 * writer stay valid until store_turn_end(). */
#include "shm/store.h"

#include <stdlib.h>

#include "shm/hash.h"
#include "shm/json.h"
#include "shm/store_write.h"

enum {
    RETIRED_BLOCKS_PER_WRITE =
        12, /* an item, a dropped group with its stream, tables of the indexes */
    RECLAIM_BLOCKS_PER_TURN = 1024, /* given back per turn, over what the turn retired */
    RETIRED_SHARE = 16, /* of the arena: above it, a reader in the way is revoked after ... */
    REVOKE_AFTER_MS = 1000,
    AHEAD_MS = 1000,       /* stamps further ahead of the clock than this grow by 1 only */
    EMPTY_GROUP_LOOKS = 8, /* records looked at to find one that can be dropped, per write */
};
#define STAMP_MS_MAX (1ull << 53) /* what JSON numbers carry exactly */

static _Atomic uint64_t *copy_words(_Atomic uint64_t *words, struct span span)
{
    shm_copy_in(words, span.data, span.bytes);
    return words + shm_align_word(span.bytes) / WORD_BYTES;
}

/* A name and, where it differs, its escaped form. */
static _Atomic uint64_t *copy_name(_Atomic uint64_t *words, struct span name, struct span escaped)
{
    words = copy_words(words, name);
    return escaped.bytes == name.bytes ? words : copy_words(words, escaped);
}

/* ---- retired blocks ---- */

static void retire(struct store *store, uint64_t offset)
{
    weir_assert(store->retired_tail - store->retired_head < STORE_RETIRED_MAX);
    store->retired[store->retired_tail % STORE_RETIRED_MAX] =
        (struct store_retired_block){.epoch = readers_epoch(store->readers), .offset = offset};
    store->retired_tail++;
    store->retired_bytes += arena_block_bytes(store->arena, offset);
}

static void retire_table(void *context, uint64_t offset)
{
    retire(context, offset);
}

/* Give back at most `count_max` blocks no reader can see. True when at least one was. */
static bool reclaim(struct store *store, uint64_t count_max)
{
    if (store->retired_head == store->retired_tail)
        return false;
    uint64_t safe = readers_safe_epoch(store->readers);
    uint64_t head = store->retired_head;
    while (count_max > 0 && store->retired_head != store->retired_tail) {
        struct store_retired_block *block =
            &store->retired[store->retired_head % STORE_RETIRED_MAX];
        if (block->epoch >= safe)
            break;
        store->retired_bytes -= arena_block_bytes(store->arena, block->offset);
        arena_free(store->arena, block->offset);
        store->retired_head++;
        count_max--;
    }
    return store->retired_head != head;
}

/* Take back all memory of earlier turns, from readers that do not leave if need be. True when some
 * was got. */
static bool reclaim_by_force(struct store *store)
{
    if (reclaim(store, UINT64_MAX))
        return true;
    if (store->retired_head == store->retired_tail ||
        store->retired[store->retired_head % STORE_RETIRED_MAX].epoch >=
            readers_epoch(store->readers))
        return false;
    store->readers_revoked += readers_revoke(store->readers, readers_epoch(store->readers) - 1);
    return reclaim(store, UINT64_MAX);
}

/* A block, or 0 when there is no room even after every retired one is back. */
static uint64_t block_alloc(struct store *store, uint64_t bytes)
{
    uint64_t offset = arena_alloc(store->arena, bytes);
    while (offset == 0 && reclaim_by_force(store)) /* each turn frees at least one block */
        offset = arena_alloc(store->arena, bytes);
    return offset;
}

/* Room in the queue for all that one write can retire. */
bool store_retire_reserve(struct store *store)
{
    uint64_t limit = STORE_RETIRED_MAX - RETIRED_BLOCKS_PER_WRITE;
    if (store->retired_tail - store->retired_head <= limit)
        return true;
    (void)reclaim_by_force(store);
    return store->retired_tail - store->retired_head <= limit;
}

/* ---- looking up ---- */

static struct index_lookup lookup_begin(const struct store *store, const struct index_root *root,
                                        uint64_t hash)
{
    struct index_lookup lookup;
    index_lookup_begin(&lookup, store->base, store->area_bytes, root, hash);
    return lookup;
}

uint64_t store_find_stream(const struct store *store, uint64_t hash, struct span name)
{
    struct index_lookup lookup = lookup_begin(store, &store->root->stream_index, hash);
    uint64_t offset;
    while ((offset = index_lookup_next(&lookup)) != 0)
        if (span_equal(store_stream_name(store_stream_at(store, offset)), name))
            break;
    return offset;
}

uint64_t store_find_group(const struct store *store, uint64_t hash, const struct store_key *key)
{
    struct index_lookup lookup = lookup_begin(store, &store->root->group_index, hash);
    uint64_t offset;
    while ((offset = index_lookup_next(&lookup)) != 0) {
        const struct group_block *group = store_group_at(store, offset);
        if (store_load(&group->hash) != hash)
            continue;
        struct store_group_names names = store_group_names(group);
        if (span_equal(names.stream, key->stream) && span_equal(names.group, key->group))
            break;
    }
    return offset;
}

struct store_place store_find_place(const struct store *store, const struct store_key *key)
{
    struct store_place place = {.group_hash =
                                    store_group_hash(store->hash_seed, key->stream, key->group)};
    place.item_hash = store_item_hash(store->hash_seed, key->item);
    place.key_hash = hash_pair(place.group_hash, place.item_hash);
    index_prefetch(&store->items, place.key_hash);
    place.group = store_find_group(store, place.group_hash, key);
    if (place.group == 0)
        return place;
    struct index_lookup lookup = lookup_begin(store, &store->root->item_index, place.key_hash);
    while ((place.item = index_lookup_next(&lookup)) != 0) {
        const struct item_block *item = store_item_at(store, place.item);
        if (store_load(&item->group) == place.group && span_equal(store_item_id(item), key->item))
            break;
    }
    return place;
}

enum weir_status store_check_key(const struct store_key *key)
{
    if (key->stream.bytes > NAME_BYTES_MAX || key->group.bytes > NAME_BYTES_MAX ||
        key->item.bytes > NAME_BYTES_MAX)
        return WEIR_TOO_LARGE;
    return WEIR_OK;
}

/* ---- numbers of a group ---- */

static uint64_t seq_of(const struct store_numbers *numbers, const struct store_moment *moment)
{
    return moment->past != NULL ? moment->past->seq : numbers->seq + 1;
}

static uint64_t epoch_of(const struct store *store, uint64_t group_hash,
                         const struct store_moment *moment)
{
    return moment->past != NULL
               ? moment->past->epoch
               : store_load(&store->root->next_epochs[group_hash % STORE_EPOCH_BUCKETS]);
}

static void write_begin(struct group_block *group, uint64_t seq)
{
    /* Seen before any effect of the write, as all of them are release stores. */
    store_put(&group->begun_seq, seq);
}

/* A write of an earlier life: nobody waits for its event, and it may be shown. */
static void write_end_past(struct group_block *group, struct store_numbers *numbers,
                           const struct store_past *past)
{
    numbers->seq = past->seq;
    numbers->timestamp_ms = past->timestamp_ms;
    numbers->next_ms = past->next_ms;
    store_numbers_store(group, numbers);
    store_put_link(&group->committed_seq, past->seq);
}

static void write_end(struct store *store, struct group_block *group, struct store_numbers *numbers,
                      const struct store_moment *moment)
{
    if (moment->past != NULL) {
        write_end_past(group, numbers, moment->past);
        return;
    }
    uint64_t now_ms = moment->now_ms;
    uint64_t stamp = now_ms > numbers->next_ms ? now_ms : numbers->next_ms;
    if (stamp < store->floor_ms)
        stamp = store->floor_ms;
    bool ahead = stamp > now_ms && stamp - now_ms > AHEAD_MS;
    numbers->seq++;
    numbers->timestamp_ms = stamp;
    numbers->next_ms = stamp + (ahead ? 1 : 2);
    store_numbers_store(group, numbers);
    store_put(&group->unpublished, store_load(&group->unpublished) + 1);
    store->now_ms = now_ms;
    if (now_ms > store_load(&store->root->new_group_ms))
        store_put_link(&store->root->new_group_ms, now_ms);
}

/* ---- lists ---- */

void store_append_item(struct store *store, struct group_block *group, uint64_t offset)
{
    uint64_t last = store_load(&group->last_item);
    struct item_block *item = store_item_at(store, offset);
    store_put(&item->previous, last);
    store_put(&item->next, 0);
    store_put_link(last == 0 ? &group->first_item : &store_item_at(store, last)->next, offset);
    store_put(&group->last_item, offset);
}

void store_replace_item(struct store *store, struct group_block *group, uint64_t offset,
                        uint64_t replacement)
{
    const struct item_block *item = store_item_at(store, offset);
    uint64_t next = store_load(&item->next);
    uint64_t previous = store_load(&item->previous);
    if (replacement != 0) {
        store_put(&store_item_at(store, replacement)->next, next);
        store_put(&store_item_at(store, replacement)->previous, previous);
    }
    uint64_t forward = replacement != 0 ? replacement : next;
    if (store->walk.item == offset)
        store->walk.item = forward;
    uint64_t backward = replacement != 0 ? replacement : previous;
    store_put_link(previous == 0 ? &group->first_item : &store_item_at(store, previous)->next,
                   forward);
    store_put(next == 0 ? &group->last_item : &store_item_at(store, next)->previous, backward);
}

static void append_group(struct store *store, struct stream_block *stream, uint64_t offset)
{
    uint64_t last = store_load(&stream->last_group);
    store_put(&store_group_at(store, offset)->previous, last);
    store_put(&store_group_at(store, offset)->next, 0);
    store_put_link(last == 0 ? &stream->first_group : &store_group_at(store, last)->next, offset);
    store_put(&stream->last_group, offset);
}

static void unlink_group(struct store *store, struct stream_block *stream, uint64_t offset)
{
    uint64_t next = store_load(&store_group_at(store, offset)->next);
    uint64_t previous = store_load(&store_group_at(store, offset)->previous);
    if (store->walk.group == offset) {
        store->walk.group = next;
        store->walk.is_inside = false;
    }
    store_put_link(previous == 0 ? &stream->first_group : &store_group_at(store, previous)->next,
                   next);
    store_put(next == 0 ? &stream->last_group : &store_group_at(store, next)->previous, previous);
}

static void append_stream(struct store *store, uint64_t offset)
{
    uint64_t last = store->last_stream;
    store_put(&store_stream_at(store, offset)->previous, last);
    store_put(&store_stream_at(store, offset)->next, 0);
    store_put_link(last == 0 ? &store->root->first_stream : &store_stream_at(store, last)->next,
                   offset);
    store->last_stream = offset;
}

static void unlink_stream(struct store *store, uint64_t offset)
{
    uint64_t next = store_load(&store_stream_at(store, offset)->next);
    uint64_t previous = store_load(&store_stream_at(store, offset)->previous);
    if (store->walk.stream == offset) {
        store->walk.stream = next;
        store->walk.group = next == 0 ? 0 : store_load(&store_stream_at(store, next)->first_group);
    }
    store_put_link(
        previous == 0 ? &store->root->first_stream : &store_stream_at(store, previous)->next, next);
    if (next == 0)
        store->last_stream = previous;
    else
        store_put(&store_stream_at(store, next)->previous, previous);
}

static void append_empty(struct store *store, uint64_t offset)
{
    store_put(&store_group_at(store, offset)->previous_empty, store->last_empty);
    store_put(&store_group_at(store, offset)->next_empty, 0);
    if (store->last_empty == 0)
        store->first_empty = offset;
    else
        store_put(&store_group_at(store, store->last_empty)->next_empty, offset);
    store->last_empty = offset;
}

static void unlink_empty(struct store *store, uint64_t offset)
{
    uint64_t next = store_load(&store_group_at(store, offset)->next_empty);
    uint64_t previous = store_load(&store_group_at(store, offset)->previous_empty);
    if (previous == 0)
        store->first_empty = next;
    else
        store_put(&store_group_at(store, previous)->next_empty, next);
    if (next == 0)
        store->last_empty = previous;
    else
        store_put(&store_group_at(store, next)->previous_empty, previous);
}

/* ---- streams and groups come and go ---- */

static uint64_t make_stream(struct store *store, uint64_t hash, struct span name,
                            struct span escaped)
{
    uint64_t sizes = store_pair(name.bytes, escaped.bytes);
    uint64_t offset = block_alloc(store, sizeof(struct stream_block) + store_names_bytes(sizes));
    if (offset == 0)
        return 0;
    struct stream_block *stream = store_stream_at(store, offset);
    store_put(&stream->first_group, 0);
    store_put(&stream->last_group, 0);
    store_put(&stream->hash, hash);
    store_put(&stream->ordinal, ++store->next_ordinal);
    store_put(&stream->name_bytes, sizes);
    store_put(&stream->listed_groups, 0);
    (void)copy_name(stream->names, name, escaped);
    return offset;
}

static void fill_group(struct store *store, uint64_t offset, uint64_t hash, uint64_t epoch,
                       uint64_t stream, const struct store_group_names *names)
{
    struct group_block *group = store_group_at(store, offset);
    const uint64_t once[] = {hash,
                             epoch,
                             ++store->next_ordinal,
                             stream,
                             store_pair(names->stream.bytes, names->stream_escaped.bytes),
                             store_pair(names->group.bytes, names->group_escaped.bytes)};
    _Atomic uint64_t *words = &group->hash;
    for (unsigned i = 0; i < sizeof(struct group_block) / WORD_BYTES; i++)
        store_put(&words[i], i < sizeof once / sizeof once[0] ? once[i] : 0);
    store_put(&group->newest_position, RING_NO_POSITION);
    store_put(&group->appended_position, RING_NO_POSITION);
    struct store_numbers numbers = {.next_ms = store_load(&store->root->new_group_ms)};
    store_numbers_store(group, &numbers);
    words = copy_words(group->names, names->stream);
    words = copy_words(words, names->group);
    if (names->stream_escaped.bytes != names->stream.bytes)
        words = copy_words(words, names->stream_escaped);
    if (names->group_escaped.bytes != names->group.bytes)
        (void)copy_words(words, names->group_escaped);
}

/* Make the group's record, and its stream's if that is the first one; the record counts as empty. */
enum weir_status store_make_group(struct store *store, const struct store_key *key, uint64_t hash,
                                  uint64_t epoch, uint64_t *made)
{
    if (!json_is_utf8(key->stream) || !json_is_utf8(key->group))
        return WEIR_INVALID;
    if (index_reserve(&store->streams, 1) != WEIR_OK || index_reserve(&store->groups, 1) != WEIR_OK)
        return WEIR_FULL;
    struct store_group_names names = {key->stream, key->group, {0}, {0}};
    names.stream_escaped =
        span_of(store->stream_escaped, json_escape(store->stream_escaped, key->stream));
    names.group_escaped =
        span_of(store->group_escaped, json_escape(store->group_escaped, key->group));
    uint64_t group = block_alloc(
        store, sizeof(struct group_block) +
                   store_names_bytes(store_pair(names.stream.bytes, names.stream_escaped.bytes)) +
                   store_names_bytes(store_pair(names.group.bytes, names.group_escaped.bytes)));
    if (group == 0)
        return WEIR_FULL;
    uint64_t stream_hash = hash_bytes(store->hash_seed, key->stream);
    uint64_t stream = store_find_stream(store, stream_hash, key->stream);
    if (stream == 0) {
        stream = make_stream(store, stream_hash, key->stream, names.stream_escaped);
        if (stream == 0) {
            arena_free(store->arena, group);
            return WEIR_FULL;
        }
        append_stream(store, stream);
        index_insert(&store->streams, stream_hash, stream);
        store->stream_count++;
    }
    fill_group(store, group, hash, epoch, stream, &names);
    append_group(store, store_stream_at(store, stream), group);
    index_insert(&store->groups, hash, group);
    append_empty(store, group);
    store->group_count++;
    *made = group;
    return WEIR_OK;
}

void store_drop_group(struct store *store, uint64_t offset)
{
    struct group_block *group = store_group_at(store, offset);
    uint64_t hash = store_load(&group->hash);
    /* Plus 1: the sync of the missing group is stamped one below, and above all stamps of this
     * life. */
    uint64_t next_ms = store_numbers_load(group).next_ms + 1;
    /* First what a reader of the missing record is told, then the record: see "Epochs" above. */
    if (next_ms > store_load(&store->root->new_group_ms))
        store_put_link(&store->root->new_group_ms, next_ms);
    store_put_link(&store->root->next_epochs[hash % STORE_EPOCH_BUCKETS], ++store->newest_epoch);
    index_remove(&store->groups, hash, offset);
    uint64_t stream_offset = store_load(&group->stream);
    struct stream_block *stream = store_stream_at(store, stream_offset);
    unlink_group(store, stream, offset);
    unlink_empty(store, offset);
    store->group_count--;
    retire(store, offset);
    if (store_load(&stream->first_group) != 0)
        return;
    index_remove(&store->streams, store_load(&stream->hash), stream_offset);
    unlink_stream(store, stream_offset);
    store->stream_count--;
    retire(store, stream_offset);
}

/* True when the broker does not hold the group's handle, and no reader waits for it. */
static bool group_is_quiet(const struct store *store, const struct group_block *group)
{
    if (store->options.is_logged)
        return store_load(&group->committed_seq) == store_numbers_load(group).seq;
    return store_load(&group->unpublished) == 0;
}

/* Keep the number of empty groups at its bound. Records that are not quiet yet go to the end of the
 * line. */
void store_trim_empty_groups(struct store *store)
{
    for (unsigned looks = 0; looks < EMPTY_GROUP_LOOKS; looks++) {
        if (store->group_count - store->listed_groups <= store->options.empty_groups_max)
            return;
        uint64_t offset = store->first_empty;
        if (group_is_quiet(store, store_group_at(store, offset))) {
            store_drop_group(store, offset);
            return; /* a write makes at most one group empty */
        }
        unlink_empty(store, offset);
        append_empty(store, offset);
    }
}

/* What lists show changes with the write that has begun; see "Commits" above. */
static void note_listing(struct store *store, struct group_block *group)
{
    if (!store->options.is_logged || store->is_recovering)
        return;
    store_put(&group->listing_seq, store_load(&group->begun_seq));
    store_put(&group->listings_open, store_load(&group->listings_open) + 1);
    store_put(&store->root->listings_begun, store_load(&store->root->listings_begun) + 1);
}

void store_list_group(struct store *store, uint64_t offset)
{
    struct stream_block *stream =
        store_stream_at(store, store_load(&store_group_at(store, offset)->stream));
    note_listing(store, store_group_at(store, offset));
    unlink_empty(store, offset);
    store->listed_groups++;
    uint64_t listed = store_load(&stream->listed_groups);
    store->listed_streams += listed == 0 ? 1 : 0;
    store_put(&stream->listed_groups, listed + 1);
}

void store_unlist_group(struct store *store, uint64_t offset)
{
    struct stream_block *stream =
        store_stream_at(store, store_load(&store_group_at(store, offset)->stream));
    note_listing(store, store_group_at(store, offset));
    append_empty(store, offset);
    store->listed_groups--;
    uint64_t listed = store_load(&stream->listed_groups);
    store->listed_streams -= listed == 1 ? 1 : 0;
    store_put(&stream->listed_groups, listed - 1);
}

/* ---- open, close ---- */

static bool store_reserve(struct store *store)
{
    store->retired = malloc(STORE_RETIRED_MAX * sizeof *store->retired);
    store->stream_escaped = malloc(NAME_ESCAPED_BYTES_MAX);
    store->group_escaped = malloc(NAME_ESCAPED_BYTES_MAX);
    store->item_escaped = malloc(NAME_ESCAPED_BYTES_MAX);
    return store->retired != NULL && store->stream_escaped != NULL &&
           store->group_escaped != NULL && store->item_escaped != NULL;
}

static enum weir_status open_index(struct store *store, struct index *index,
                                   struct index_root *root)
{
    return index_open(index, store->base, store->area_bytes, root, store->arena, retire_table,
                      store);
}

static enum weir_status open_root(struct store *store, struct weir_error *error)
{
    struct store_root *root = store->root;
    uint64_t generation = segment_generation(store->segment);
    store->newest_epoch = generation;
    store_put(&root->area_bytes, store->area_bytes);
    store_put(&root->is_logged, store->options.is_logged ? 1 : 0);
    store_put(&root->new_group_ms, generation / 1000 > 2 ? generation / 1000 : 2);
    for (unsigned bucket = 0; bucket < STORE_EPOCH_BUCKETS; bucket++)
        store_put(&root->next_epochs[bucket], generation);
    if (open_index(store, &store->streams, &root->stream_index) != WEIR_OK ||
        open_index(store, &store->groups, &root->group_index) != WEIR_OK ||
        open_index(store, &store->items, &root->item_index) != WEIR_OK)
        return weir_fail(error, WEIR_FULL, "the store area is too small for its tables");
    atomic_store_explicit(&root->magic, STORE_LAYOUT_MAGIC, memory_order_release);
    return WEIR_OK;
}

enum weir_status store_open(struct store **opened, struct segment *segment, struct readers *readers,
                            const struct store_options *options, struct weir_error *error)
{
    *opened = NULL;
    uint64_t area_bytes;
    char *base = segment_store(segment, &area_bytes);
    if (area_bytes < STORE_FIRST_BLOCK + 4ull * ARENA_SPAN_BYTES)
        return weir_fail(error, WEIR_INVALID, "a store area of %llu bytes is too small",
                         (unsigned long long)area_bytes);
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return weir_fail(error, WEIR_NO_MEMORY, "no memory for the store's tables");
    store->segment = segment;
    store->readers = readers;
    store->options = *options;
    store->base = base;
    store->area_bytes = area_bytes;
    store->hash_seed = segment_hash_seed(segment);
    store->root = (struct store_root *)(void *)base;
    store->arena = arena_open(base, STORE_FIRST_BLOCK, area_bytes);
    enum weir_status status;
    if (store->arena == NULL || !store_reserve(store))
        status = weir_fail(error, WEIR_NO_MEMORY, "no memory for the store's tables");
    else
        status = open_root(store, error);
    if (status != WEIR_OK) {
        store_close(store);
        return status;
    }
    *opened = store;
    return WEIR_OK;
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    arena_close(store->arena);
    free(store->retired);
    free(store->stream_escaped);
    free(store->group_escaped);
    free(store->item_escaped);
    free(store);
}

/* ---- the writes ---- */

static void describe_group(const struct group_block *group, uint64_t offset,
                           struct store_group *state)
{
    struct store_numbers numbers = store_numbers_load(group);
    struct store_group_names names = store_group_names(group);
    *state = (struct store_group){.offset = offset,
                                  .hash = store_load(&group->hash),
                                  .seq = numbers.seq,
                                  .epoch = store_load(&group->epoch),
                                  .timestamp_ms = numbers.timestamp_ms,
                                  .next_ms = numbers.next_ms,
                                  .newest_position = store_load(&group->newest_position),
                                  .item_count = numbers.item_count,
                                  .stream_escaped = names.stream_escaped,
                                  .group_escaped = names.group_escaped};
}

uint64_t store_make_item(struct store *store, const struct store_place *place, struct span id,
                         struct span id_escaped, struct span value)
{
    uint64_t sizes = store_pair(id.bytes, id_escaped.bytes);
    uint64_t offset = block_alloc(store, sizeof(struct item_block) + store_names_bytes(sizes) +
                                             shm_align_word(value.bytes));
    if (offset == 0)
        return 0;
    struct item_block *item = store_item_at(store, offset);
    store_put(&item->item_hash, place->item_hash);
    store_put(&item->id_bytes, sizes);
    store_put(&item->value_bytes, value.bytes);
    (void)copy_words(copy_name(item->words, id, id_escaped), value);
    return offset;
}

static enum weir_status set_existing(struct store *store, const struct store_place *place,
                                     struct span value, const struct store_moment *moment,
                                     struct store_change *change)
{
    const struct item_block *old = store_item_at(store, place->item);
    /* Both neighbours are written below. */
    __builtin_prefetch(store_item_at(store, store_load(&old->previous)), 1);
    __builtin_prefetch(store_item_at(store, store_load(&old->next)), 1);
    uint64_t offset =
        store_make_item(store, place, store_item_id(old), store_item_id_escaped(old), value);
    if (offset == 0)
        return WEIR_FULL;
    struct item_block *item = store_item_at(store, offset);
    struct group_block *group = store_group_at(store, place->group);
    struct store_numbers numbers = store_numbers_load(group);
    uint64_t seq = seq_of(&numbers, moment);
    store_put(&item->group, place->group);
    store_put(&item->created_seq, store_load(&old->created_seq));
    store_put(&item->modified_seq, seq);
    write_begin(group, seq);
    store_replace_item(store, group, place->item, offset);
    index_replace(&store->items, place->key_hash, place->item, offset);
    write_end(store, group, &numbers, moment);
    retire(store, place->item);
    *change = (struct store_change){.id_escaped = store_item_id_escaped(item),
                                    .item_hash = place->item_hash,
                                    .existed = true,
                                    .old_value = store_item_value(old),
                                    .new_value = store_item_value(item)};
    describe_group(group, place->group, &change->group);
    return WEIR_OK;
}

bool store_has_room(const struct store *store, uint64_t group)
{
    if (store->is_recovering) /* an earlier life has let them in; on the way there may be more */
        return true;
    if (store->item_count >= store->options.items_max)
        return false;
    return store->listed_groups < store->options.groups_max ||
           (group != 0 && store_numbers_load(store_group_at(store, group)).item_count > 0);
}

static enum weir_status set_new(struct store *store, struct store_place *place,
                                const struct store_key *key, struct span value,
                                const struct store_moment *moment, struct store_change *change)
{
    if (!json_is_utf8(key->item))
        return WEIR_INVALID;
    if (!store_has_room(store, place->group))
        return WEIR_FULL;
    struct span id_escaped =
        span_of(store->item_escaped, json_escape(store->item_escaped, key->item));
    uint64_t offset = store_make_item(store, place, key->item, id_escaped, value);
    if (offset == 0)
        return WEIR_FULL;
    if (place->group == 0) {
        enum weir_status status =
            store_make_group(store, key, place->group_hash,
                             epoch_of(store, place->group_hash, moment), &place->group);
        if (status != WEIR_OK) {
            arena_free(store->arena, offset);
            return status;
        }
    }
    struct item_block *item = store_item_at(store, offset);
    struct group_block *group = store_group_at(store, place->group);
    struct store_numbers numbers = store_numbers_load(group);
    uint64_t seq = seq_of(&numbers, moment);
    store_put(&item->group, place->group);
    store_put(&item->created_seq, seq);
    store_put(&item->modified_seq, seq);
    write_begin(group, seq);
    store_append_item(store, group, offset);
    index_insert(&store->items, place->key_hash, offset);
    if (numbers.item_count++ == 0)
        store_list_group(store, place->group);
    store->item_count++;
    write_end(store, group, &numbers, moment);
    *change = (struct store_change){.id_escaped = store_item_id_escaped(item),
                                    .item_hash = place->item_hash,
                                    .new_value = store_item_value(item)};
    describe_group(group, place->group, &change->group);
    return WEIR_OK;
}

enum weir_status store_check_value(struct span value)
{
    if (value.bytes > VALUE_BYTES_MAX)
        return WEIR_TOO_LARGE;
    return value.bytes == 0 ? WEIR_INVALID : WEIR_OK;
}

enum weir_status store_write_set(struct store *store, struct store_place *place,
                                 const struct store_key *key, struct span value,
                                 const struct store_moment *moment, struct store_change *change)
{
    if (!store_retire_reserve(store))
        return WEIR_FULL;
    if (place->item != 0) {
        index_upkeep(&store->items);
        return set_existing(store, place, value, moment, change);
    }
    if (place->group != 0) /* the new item is linked behind the last one */
        __builtin_prefetch(
            store_item_at(store, store_load(&store_group_at(store, place->group)->last_item)), 1);
    enum weir_status status = index_reserve(&store->items, 1);
    return status != WEIR_OK ? status : set_new(store, place, key, value, moment, change);
}

enum weir_status store_set(struct store *store, const struct store_key *key, struct span value,
                           uint64_t now_ms, struct store_change *change)
{
    enum weir_status status = store_check_key(key);
    if (status == WEIR_OK)
        status = store_check_value(value);
    if (status != WEIR_OK)
        return status;
    struct store_place place = store_find_place(store, key);
    const struct store_moment moment = {.now_ms = now_ms};
    return store_write_set(store, &place, key, value, &moment, change);
}

enum weir_status store_write_delete(struct store *store, const struct store_place *place,
                                    const struct store_moment *moment, struct store_change *change)
{
    if (!store_retire_reserve(store))
        return WEIR_FULL;
    index_upkeep(&store->items);
    struct group_block *group = store_group_at(store, place->group);
    const struct item_block *old = store_item_at(store, place->item);
    __builtin_prefetch(store_item_at(store, store_load(&old->previous)), 1);
    __builtin_prefetch(store_item_at(store, store_load(&old->next)), 1);
    struct store_numbers numbers = store_numbers_load(group);
    write_begin(group, seq_of(&numbers, moment));
    store_replace_item(store, group, place->item, 0);
    index_remove(&store->items, place->key_hash, place->item);
    store->item_count--;
    if (--numbers.item_count == 0)
        store_unlist_group(store, place->group);
    write_end(store, group, &numbers, moment);
    retire(store, place->item);
    *change = (struct store_change){.id_escaped = store_item_id_escaped(old),
                                    .item_hash = place->item_hash,
                                    .existed = true,
                                    .old_value = store_item_value(old)};
    describe_group(group, place->group, &change->group);
    return WEIR_OK;
}

enum weir_status store_delete(struct store *store, const struct store_key *key, uint64_t now_ms,
                              struct store_change *change)
{
    enum weir_status status = store_check_key(key);
    if (status != WEIR_OK)
        return status;
    struct store_place place = store_find_place(store, key);
    if (place.item == 0)
        return WEIR_EMPTY;
    const struct store_moment moment = {.now_ms = now_ms};
    status = store_write_delete(store, &place, &moment, change);
    if (status == WEIR_OK && change->group.item_count == 0)
        store_trim_empty_groups(store);
    return status;
}

enum weir_status store_write_touch(struct store *store, struct store_place *place,
                                   const struct store_key *key, const struct store_moment *moment,
                                   struct store_change *change)
{
    if (!json_is_utf8(key->item))
        return WEIR_INVALID;
    if (!store_retire_reserve(store))
        return WEIR_FULL;
    if (place->group == 0) {
        enum weir_status status =
            store_make_group(store, key, place->group_hash,
                             epoch_of(store, place->group_hash, moment), &place->group);
        if (status != WEIR_OK)
            return status;
    }
    struct group_block *group = store_group_at(store, place->group);
    struct store_numbers numbers = store_numbers_load(group);
    write_begin(group, seq_of(&numbers, moment));
    write_end(store, group, &numbers, moment);
    *change = (struct store_change){.existed = key->item.data != NULL && place->item != 0};
    if (key->item.data != NULL) {
        change->item_hash = place->item_hash;
        change->id_escaped =
            span_of(store->item_escaped, json_escape(store->item_escaped, key->item));
    }
    describe_group(group, place->group, &change->group);
    return WEIR_OK;
}

enum weir_status store_touch(struct store *store, const struct store_key *key, uint64_t now_ms,
                             struct store_change *change)
{
    enum weir_status status = store_check_key(key);
    if (status != WEIR_OK)
        return status;
    struct store_place place = store_find_place(store, key);
    const struct store_moment moment = {.now_ms = now_ms};
    status = store_write_touch(store, &place, key, &moment, change);
    if (status == WEIR_OK)
        store_trim_empty_groups(store);
    return status;
}

enum weir_status store_find(struct store *store, const struct store_key *key, struct span *value)
{
    enum weir_status status = store_check_key(key);
    if (status != WEIR_OK)
        return status;
    struct store_place place = store_find_place(store, key);
    if (place.item == 0)
        return WEIR_EMPTY;
    *value = store_item_value(store_item_at(store, place.item));
    return WEIR_OK;
}

uint64_t store_group_newest_position(const struct store *store, uint64_t group_offset)
{
    const struct group_block *group = store_group_at(store, group_offset);
    return store_load(store->options.is_logged ? &group->appended_position
                                               : &group->newest_position);
}

void store_group_published(struct store *store, uint64_t group_offset, uint64_t position)
{
    struct group_block *group = store_group_at(store, group_offset);
    if (!store->is_recovering) {
        uint64_t unpublished = store_load(&group->unpublished);
        weir_assert(unpublished > 0);
        store_put(&group->unpublished, unpublished - 1);
    }
    if (store->options.is_logged)
        store_put(&group->appended_position, position);
    if (!store->options.is_logged || store->is_recovering)
        store_put_link(&group->newest_position, position);
}

void store_group_committed(struct store *store, uint64_t group_offset, uint64_t seq,
                           uint64_t position)
{
    weir_assert(store->options.is_logged);
    struct group_block *group = store_group_at(store, group_offset);
    weir_assert(seq <= store_numbers_load(group).seq);
    if (seq <= store_load(&group->committed_seq))
        return;
    store_put_link(&group->newest_position, position);
    store_put_link(&group->committed_seq, seq); /* K: with a position that is not older; pairs K' */
    uint64_t open = store_load(&group->listings_open);
    if (open == 0 || seq < store_load(&group->listing_seq))
        return;
    store_put(&group->listings_open, 0);
    _Atomic uint64_t *committed = &store->root->listings_committed;
    store_put_link(committed,
                   store_load(committed) + open); /* L: behind `listings_begun`; pairs L' */
}

enum weir_status store_check_committed(const struct store *store, const struct store_key *key)
{
    enum weir_status status = store_check_key(key);
    if (status != WEIR_OK || !store->options.is_logged)
        return status;
    struct store_place place = store_find_place(store, key);
    if (place.group == 0)
        return WEIR_OK;
    const struct group_block *group = store_group_at(store, place.group);
    /* Which write removed a missing item is not known: any may have. */
    uint64_t seq = key->item.data != NULL && place.item != 0
                       ? store_load(&store_item_at(store, place.item)->modified_seq)
                       : store_numbers_load(group).seq;
    return seq > store_load(&group->committed_seq) ? WEIR_PENDING : WEIR_OK;
}

void store_raise_floor(struct store *store, uint64_t timestamp_ms)
{
    if (timestamp_ms > STAMP_MS_MAX)
        return;
    /* Plus 2, so that even the sync of a missing group, one below, is above all stamps of the
     * earlier life. */
    uint64_t floor_ms = timestamp_ms + 2;
    if (floor_ms > store->floor_ms)
        store->floor_ms = floor_ms;
    if (floor_ms > store_load(&store->root->new_group_ms))
        store_put_link(&store->root->new_group_ms, floor_ms);
}

/* Revoke readers that have kept more than the bound from being given back for too long. */
static void revoke_stuck_readers(struct store *store)
{
    uint64_t safe = readers_safe_epoch(store->readers);
    if (store->retired_bytes <= arena_bytes(store->arena) / RETIRED_SHARE ||
        safe == readers_epoch(store->readers)) {
        store->stuck_epoch = 0;
        return;
    }
    if (safe != store->stuck_epoch || store->now_ms < store->stuck_since_ms) {
        store->stuck_epoch = safe;
        store->stuck_since_ms = store->now_ms;
        return;
    }
    if (store->now_ms - store->stuck_since_ms <= REVOKE_AFTER_MS)
        return;
    /* Readers in the older half of the queue are the ones in the way; others entered lately and
     * will leave. */
    uint64_t middle = store->retired_head + (store->retired_tail - store->retired_head) / 2;
    uint64_t epoch = store->retired[middle % STORE_RETIRED_MAX].epoch;
    if (epoch < safe)
        epoch = safe;
    store->readers_revoked += readers_revoke(store->readers, epoch);
    store->stuck_epoch = 0;
}

void store_turn_end(struct store *store)
{
    uint64_t retired_in_turn = store->retired_tail - store->turn_tail;
    store->turn_tail = store->retired_tail;
    if (retired_in_turn > 0)
        readers_advance(store->readers);
    if (store->retired_head == store->retired_tail)
        return;
    revoke_stuck_readers(store);
    (void)reclaim(store, RECLAIM_BLOCKS_PER_TURN + retired_in_turn);
}

void store_figures(const struct store *store, struct store_figures *figures)
{
    *figures = (struct store_figures){.streams = store->listed_streams,
                                      .groups = store->listed_groups,
                                      .items = store->item_count,
                                      .empty_groups = store->group_count - store->listed_groups,
                                      .arena_bytes = arena_bytes(store->arena),
                                      .arena_used_bytes = arena_used_bytes(store->arena),
                                      .retired_bytes = store->retired_bytes,
                                      .readers_revoked = store->readers_revoked};
}

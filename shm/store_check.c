/* Walking every structure of the store and comparing; for tests. */
#include "shm/store_write.h"

struct check {
    const struct store *store;
    struct weir_error *error;
    uint64_t streams, listed_streams, groups, listed_groups, items, bytes;
};

static enum weir_status check_fail(const struct check *check, const char *what, uint64_t offset)
{
    return weir_fail(check->error, WEIR_CORRUPT, "%s (offset %llu)", what,
                     (unsigned long long)offset);
}

static enum weir_status check_items(struct check *check, uint64_t group_offset)
{
    const struct store *store = check->store;
    const struct group_block *group = store_group_at(store, group_offset);
    struct store_group_names names = store_group_names(group);
    struct store_numbers numbers = store_numbers_load(group);
    uint64_t count = 0;
    uint64_t previous = 0;
    uint64_t created = 0;
    for (uint64_t offset = store_load(&group->first_item); offset != 0; count++) {
        const struct item_block *item = store_item_at(store, offset);
        struct store_key key = {names.stream, names.group, store_item_id(item)};
        if (store_load(&item->previous) != previous)
            return check_fail(check, "an item's back link is wrong", offset);
        if (store_load(&item->created_seq) <= created)
            return check_fail(check, "items are not in order of creation", offset);
        if (store_load(&item->modified_seq) > numbers.seq)
            return check_fail(check, "an item is newer than its group", offset);
        if (store_find_place(store, &key).item != offset)
            return check_fail(check, "an item is not in the index", offset);
        check->bytes += arena_block_bytes(store->arena, offset);
        created = store_load(&item->created_seq);
        previous = offset;
        offset = store_load(&item->next);
    }
    if (store_load(&group->last_item) != previous || numbers.item_count != count)
        return check_fail(check, "a group's last item or count is wrong", group_offset);
    if (store_load(&group->begun_seq) != numbers.seq)
        return check_fail(check, "a group has an unfinished write", group_offset);
    check->items += count;
    check->listed_groups += count > 0 ? 1 : 0;
    return WEIR_OK;
}

static enum weir_status check_groups(struct check *check, uint64_t stream_offset)
{
    const struct store *store = check->store;
    const struct stream_block *stream = store_stream_at(store, stream_offset);
    uint64_t listed = check->listed_groups;
    uint64_t previous = 0;
    for (uint64_t offset = store_load(&stream->first_group); offset != 0; check->groups++) {
        const struct group_block *group = store_group_at(store, offset);
        struct store_group_names names = store_group_names(group);
        struct store_key key = {names.stream, names.group, {0}};
        if (store_load(&group->previous) != previous || store_load(&group->stream) != stream_offset)
            return check_fail(check, "a group's links are wrong", offset);
        if (store_find_group(store, store_load(&group->hash), &key) != offset)
            return check_fail(check, "a group is not in the index", offset);
        enum weir_status status = check_items(check, offset);
        if (status != WEIR_OK)
            return status;
        check->bytes += arena_block_bytes(store->arena, offset);
        previous = offset;
        offset = store_load(&group->next);
    }
    if (previous == 0 || store_load(&stream->last_group) != previous)
        return check_fail(check, "a stream is empty or its last group is wrong", stream_offset);
    if (store_load(&stream->listed_groups) != check->listed_groups - listed)
        return check_fail(check, "a stream's count of groups is wrong", stream_offset);
    check->listed_streams += check->listed_groups > listed ? 1 : 0;
    return WEIR_OK;
}

static enum weir_status check_empty_groups(struct check *check)
{
    const struct store *store = check->store;
    uint64_t count = 0;
    uint64_t previous = 0;
    for (uint64_t offset = store->first_empty; offset != 0 && count <= check->groups; count++) {
        const struct group_block *group = store_group_at(store, offset);
        if (store_numbers_load(group).item_count != 0 ||
            store_load(&group->previous_empty) != previous)
            return check_fail(check, "the list of empty groups is wrong", offset);
        previous = offset;
        offset = store_load(&group->next_empty);
    }
    if (store->last_empty != previous || count != check->groups - check->listed_groups)
        return check_fail(check, "the list of empty groups has another length", previous);
    return WEIR_OK;
}

static enum weir_status check_memory(struct check *check)
{
    const struct store *store = check->store;
    uint64_t retired = 0;
    for (uint64_t i = store->retired_head; i != store->retired_tail; i++)
        retired += arena_block_bytes(store->arena, store->retired[i % STORE_RETIRED_MAX].offset);
    if (retired != store->retired_bytes)
        return check_fail(check, "retired bytes are counted wrongly", retired);
    const struct index *indexes[] = {&store->streams, &store->groups, &store->items};
    for (unsigned i = 0; i < 3; i++) {
        const struct index_table *tables[] = {&indexes[i]->current, &indexes[i]->old,
                                              &indexes[i]->next};
        for (unsigned j = 0; j < 3; j++)
            if (tables[j]->slot_count != 0)
                check->bytes += arena_block_bytes(store->arena, tables[j]->offset);
        enum weir_status status = index_check(indexes[i], check->error);
        if (status != WEIR_OK)
            return status;
    }
    if (check->bytes + retired != arena_used_bytes(store->arena))
        return check_fail(check, "blocks are lost, or counted twice", check->bytes);
    return arena_check(store->arena, check->error);
}

enum weir_status store_check(const struct store *store, struct weir_error *error)
{
    struct check check = {.store = store, .error = error};
    uint64_t previous = 0;
    for (uint64_t offset = store_load(&store->root->first_stream); offset != 0; check.streams++) {
        const struct stream_block *stream = store_stream_at(store, offset);
        if (store_load(&stream->previous) != previous ||
            store_find_stream(store, store_load(&stream->hash), store_stream_name(stream)) !=
                offset)
            return check_fail(&check, "a stream's links are wrong", offset);
        enum weir_status status = check_groups(&check, offset);
        if (status != WEIR_OK)
            return status;
        check.bytes += arena_block_bytes(store->arena, offset);
        previous = offset;
        offset = store_load(&stream->next);
    }
    if (store->last_stream != previous || check.streams != store->stream_count ||
        check.listed_streams != store->listed_streams || check.groups != store->group_count ||
        check.listed_groups != store->listed_groups || check.items != store->item_count)
        return check_fail(&check, "streams, groups or items are counted wrongly", previous);
    if (store->streams.live != check.streams || store->groups.live != check.groups ||
        store->items.live != check.items)
        return check_fail(&check, "an index holds more than the lists", 0);
    enum weir_status status = check_empty_groups(&check);
    return status != WEIR_OK ? status : check_memory(&check);
}

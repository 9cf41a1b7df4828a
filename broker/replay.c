#include "broker/replay.h"

#include <inttypes.h>

/* The sentence for what the store did not take. */
static enum weir_status replay_fail(enum weir_status status, const struct wal_position *position,
                                    const struct wal_record *record, struct weir_error *error)
{
    const char *file = position->kind == WAL_FILE_LOG ? "log" : "snapshot";
    const char *kind = wal_record_kind_name(record->kind);
    if (status == WEIR_FULL)
        return weir_fail(error, status,
                         "the store is too small for what is in the log (%s %" PRIu64
                         ", frame at %" PRIu64 "): raise store_bytes",
                         file, position->number, position->offset);
    if (status == WEIR_NO_MEMORY)
        return weir_fail(error, status, "no memory for what is in the log");
    /* The checksums are right, so this is what was written: by another program, or by a mistake of
     * ours. No part of it may be taken. */
    return weir_fail(error, WEIR_CORRUPT,
                     "%s %" PRIu64 ", frame at %" PRIu64
                     ": its `%s` record cannot be applied (%s); `weir log dump` shows it",
                     file, position->number, position->offset, kind, weir_status_text(status));
}

static enum weir_status replay_restore(struct replay *replay, const struct wal_position *position,
                                       const struct wal_record *record, struct weir_error *error)
{
    bool is_group = record->kind == WAL_GROUP;
    const struct store_walk_entry entry = {
        .is_group = is_group,
        .stream = record->stream,
        .group = record->group,
        .numbers = {.epoch = record->epoch,
                    .seq = record->seq,
                    .timestamp_ms = record->timestamp_ms,
                    .next_ms = record->timestamp_ms + record->step},
        .item = record->item,
        .value = record->value,
        .created_seq = record->created_seq,
        .modified_seq = record->modified_seq,
    };
    enum weir_status status = store_restore(replay->store, &entry);
    if (status != WEIR_OK)
        return replay_fail(status, position, record, error);
    replay->restored_items += !is_group;
    return WEIR_OK;
}

static enum weir_status replay_apply(struct replay *replay, const struct wal_record *record,
                                     struct store_change *change)
{
    const struct store_key key = {record->stream, record->group, record->item};
    const struct store_past past = {.epoch = record->epoch,
                                    .seq = record->seq,
                                    .timestamp_ms = record->timestamp_ms,
                                    .next_ms = record->timestamp_ms + record->step};
    if (record->kind == WAL_EVENT)
        return store_replay_touch(replay->store, &key, &past, change);
    if (record->kind == WAL_DELETE)
        return store_replay_delete(replay->store, &key, &past, change);
    return store_replay_set(replay->store, &key, record->value, &past, change);
}

static enum weir_status replay_write(struct replay *replay, const struct wal_position *position,
                                     const struct wal_record *record, struct weir_error *error)
{
    struct store_change change;
    enum weir_status status = replay_apply(replay, record, &change);
    if (status != WEIR_OK && status != WEIR_EMPTY)
        return replay_fail(status, position, record, error);
    bool has_changed = status == WEIR_OK;
    replay->replayed += has_changed;
    replay->passed += !has_changed;
    status = WEIR_OK;
    if (replay->changed != NULL)
        status =
            replay->changed(replay->context, position, record, has_changed ? &change : NULL, error);
    store_turn_end(replay->store);
    return status;
}

enum weir_status replay_take(void *context, const struct wal_position *position,
                             const struct wal_record *record, struct weir_error *error)
{
    struct replay *replay = context;
    switch (record->kind) {
    case WAL_SET:
    case WAL_DELETE:
    case WAL_EVENT:
        return replay_write(replay, position, record, error);
    case WAL_GROUP:
    case WAL_ITEM:
        return replay_restore(replay, position, record, error);
    case WAL_END:
    case WAL_ANSWER: /* nothing of the store's */
        return WEIR_OK;
    }
    return replay_fail(WEIR_INVALID, position, record, error);
}

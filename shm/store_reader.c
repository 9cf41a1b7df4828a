/* Reading single items, numbers and lists. Why this is safe without locks: store.c's top comment
 * and readers.h. */
#include <stdlib.h>

#include "shm/hash.h"
#include "shm/store_read.h"

/* ---- hashes ---- */

uint64_t store_group_hash(uint64_t seed, struct span stream, struct span group)
{
    /* The stream's hash is the seed of the group's, so ("a", "b:c") and ("a:b", "c") are kept
     * apart. */
    return hash_bytes(hash_bytes(seed, stream), group);
}

uint64_t store_item_hash(uint64_t seed, struct span item)
{
    uint64_t hash = hash_bytes(seed, item);
    return hash == 0 ? 1 : hash; /* 0 says "no id" in ring records */
}

/* ---- open, close ---- */

struct store_name {
    size_t name_at, escaped_at; /* in the text */
    uint32_t name_bytes, escaped_bytes;
    size_t first_group, group_count; /* of a stream */
};

struct store_names {
    struct buffer text;
    struct store_name *groups;
    size_t group_count, group_capacity;
    struct store_name *streams;
    size_t stream_count, stream_capacity;
};

struct store_reader *store_reader_open(const struct segment *segment, struct reader *reader)
{
    struct store_reader *store_reader = calloc(1, sizeof *store_reader);
    struct store_names *names = calloc(1, sizeof *names);
    if (store_reader == NULL || names == NULL)
        goto fail;
    uint64_t area_bytes;
    const char *base = segment_store(segment, &area_bytes);
    const struct store_root *root = (const struct store_root *)(const void *)base;
    if (area_bytes < STORE_FIRST_BLOCK || store_load_acquire(&root->magic) != STORE_LAYOUT_MAGIC ||
        store_load(&root->area_bytes) != area_bytes)
        goto fail;
    buffer_init(&names->text, 2ul * ANSWER_BYTES_MAX);
    *store_reader =
        (struct store_reader){.segment = segment,
                              .reader = reader,
                              .is_limited = reader != NULL && store_load(&root->is_logged) != 0,
                              .base = base,
                              .area_bytes = area_bytes,
                              .hash_seed = segment_hash_seed(segment),
                              .root = root,
                              .names = names};
    if (ring_reader_attach(&store_reader->ring, segment) != WEIR_OK)
        goto fail;
    return store_reader;

fail:
    free(names);
    free(store_reader);
    return NULL;
}

void store_reader_close(struct store_reader *store_reader)
{
    if (store_reader == NULL)
        return;
    if (store_reader->spare != NULL)
        store_snapshot_walk_free(store_reader->spare);
    buffer_fini(&store_reader->names->text);
    free(store_reader->names->groups);
    free(store_reader->names->streams);
    free(store_reader->names);
    free(store_reader);
}

void store_read_enter(struct store_reader *reader)
{
    if (reader->reader != NULL)
        reader_enter(reader->reader);
}

enum weir_status store_read_leave(struct store_reader *reader, enum weir_status status)
{
    if (reader->reader != NULL && reader_leave(reader->reader) != WEIR_OK)
        return WEIR_REVOKED;
    return status;
}

/* ---- views of blocks ---- */

/* True when `bytes` at `offset` lie inside the arena's part of the area. */
static bool is_inside(const struct store_reader *reader, uint64_t offset, uint64_t bytes)
{
    return offset >= STORE_FIRST_BLOCK && offset % ARENA_GRANULE_BYTES == 0 &&
           offset <= reader->area_bytes && bytes <= reader->area_bytes - offset;
}

enum weir_status store_read_view_item(const struct store_reader *reader, uint64_t offset,
                                      struct store_item_view *view)
{
    if (!is_inside(reader, offset, sizeof(struct item_block)))
        return WEIR_CORRUPT;
    const struct item_block *item =
        (const struct item_block *)(const void *)(reader->base + offset);
    uint64_t id_bytes = store_load(&item->id_bytes);
    uint64_t value_bytes = store_load(&item->value_bytes);
    if (!store_names_sane(id_bytes) || value_bytes > VALUE_BYTES_MAX)
        return WEIR_CORRUPT;
    uint64_t names_bytes = store_names_bytes(id_bytes);
    if (!is_inside(reader, offset, sizeof *item + names_bytes + shm_align_word(value_bytes)))
        return WEIR_CORRUPT;
    *view = (struct store_item_view){.block = item,
                                     .group = store_load(&item->group),
                                     .created_seq = store_load(&item->created_seq),
                                     .modified_seq = store_load(&item->modified_seq),
                                     .item_hash = store_load(&item->item_hash),
                                     .id_bytes = store_low(id_bytes),
                                     .value_bytes = value_bytes,
                                     .value_words = item->words + names_bytes / WORD_BYTES};
    return WEIR_OK;
}

/* Pointers to the words of a group's names; the escaped ones are the plain ones where they are
 * equal. */
struct group_words {
    const struct group_block *block;
    const _Atomic uint64_t *group, *group_escaped;
    uint64_t stream_bytes, group_bytes; /* pairs */
};

static enum weir_status view_group(const struct store_reader *reader, uint64_t offset,
                                   struct group_words *words)
{
    if (!is_inside(reader, offset, sizeof(struct group_block)))
        return WEIR_CORRUPT;
    const struct group_block *group =
        (const struct group_block *)(const void *)(reader->base + offset);
    uint64_t stream_bytes = store_load(&group->stream_bytes);
    uint64_t group_bytes = store_load(&group->group_bytes);
    if (!store_names_sane(stream_bytes) || !store_names_sane(group_bytes) ||
        !is_inside(reader, offset,
                   sizeof *group + store_names_bytes(stream_bytes) +
                       store_names_bytes(group_bytes)))
        return WEIR_CORRUPT;
    *words = (struct group_words){
        .block = group, .stream_bytes = stream_bytes, .group_bytes = group_bytes};
    words->group = group->names + shm_align_word(store_low(stream_bytes)) / WORD_BYTES;
    words->group_escaped = words->group;
    if (store_high(group_bytes) != store_low(group_bytes)) {
        uint64_t before = shm_align_word(store_low(group_bytes)) + store_names_bytes(stream_bytes);
        words->group_escaped = group->names + before / WORD_BYTES;
    }
    return WEIR_OK;
}

static bool group_is_named(const struct group_words *words, struct span stream, struct span group)
{
    return store_low(words->stream_bytes) == stream.bytes &&
           store_low(words->group_bytes) == group.bytes &&
           store_words_equal(words->block->names, stream) && store_words_equal(words->group, group);
}

/* One seq's numbers. REVOKED (read again) when the writer was faster every time. */
static enum weir_status read_numbers(const struct group_block *group, struct store_numbers *numbers)
{
    for (unsigned tries = 0; tries < STORE_NUMBERS_TRIES; tries++) {
        uint64_t version = store_load_acquire(&group->version); /* N' */
        uint64_t words[STORE_NUMBERS_WORDS];
        for (unsigned i = 0; i < STORE_NUMBERS_WORDS; i++)
            words[i] = store_load_acquire(&group->numbers[version & 1][i]); /* M' */
        if (store_load(&group->version) == version) {
            memcpy(numbers, words, sizeof words);
            return WEIR_OK;
        }
    }
    return WEIR_REVOKED;
}

enum weir_status store_read_append(struct buffer *out, const _Atomic uint64_t *words,
                                   uint64_t bytes)
{
    enum weir_status status = buffer_reserve(out, bytes);
    if (status != WEIR_OK)
        return status;
    shm_copy_out(out->data + out->bytes, words, bytes);
    out->bytes += bytes;
    return WEIR_OK;
}

/* ---- finding ---- */

/* EMPTY: not there; REVOKED: the tables were replaced too often while we looked. */
static enum weir_status find_group(const struct store_reader *reader, uint64_t hash,
                                   struct span stream, struct span group, uint64_t *offset)
{
    for (unsigned tries = 0; tries < STORE_READ_TRIES; tries++) {
        struct index_lookup lookup;
        index_lookup_begin(&lookup, reader->base, reader->area_bytes, &reader->root->group_index,
                           hash);
        while ((*offset = index_lookup_next(&lookup)) != 0) {
            struct group_words words;
            if (view_group(reader, *offset, &words) != WEIR_OK)
                return WEIR_CORRUPT;
            if (store_load(&words.block->hash) == hash && group_is_named(&words, stream, group))
                return WEIR_OK;
        }
        if (!index_lookup_moved(&lookup))
            return WEIR_EMPTY;
    }
    return WEIR_REVOKED;
}

enum weir_status store_read_find_group(struct store_reader *reader, struct span stream,
                                       struct span group, struct store_group_view *view)
{
    uint64_t hash = store_group_hash(reader->hash_seed, stream, group);
    const _Atomic uint64_t *next_epoch = &reader->root->next_epochs[hash % STORE_EPOCH_BUCKETS];
    for (unsigned tries = 0; tries < STORE_READ_TRIES; tries++) {
        /* Before the search: a record made or dropped during it has stamps above, or another epoch. */
        uint64_t epoch = store_load_acquire(next_epoch);
        uint64_t new_group_ms = store_load_acquire(&reader->root->new_group_ms);
        *view = (struct store_group_view){0};
        enum weir_status status = find_group(reader, hash, stream, group, &view->offset);
        if (status == WEIR_OK) {
            view->block = (const struct group_block *)(const void *)(reader->base + view->offset);
            view->epoch = store_load(&view->block->epoch);
            return read_numbers(view->block, &view->numbers);
        }
        if (status != WEIR_EMPTY)
            return status;
        if (store_load_acquire(next_epoch) == epoch) {
            view->is_missing = true;
            view->epoch = epoch;
            view->numbers.next_ms = new_group_ms;
            return WEIR_OK;
        }
    }
    return WEIR_REVOKED;
}

/* `named` NULL: any group of these names; else the group at that offset. */
static enum weir_status find_item(struct store_reader *reader, uint64_t group_hash,
                                  const struct store_group_view *at, const struct store_key *named,
                                  struct span id, struct store_item_view *view)
{
    uint64_t item_hash = store_item_hash(reader->hash_seed, id);
    for (unsigned tries = 0; tries < STORE_READ_TRIES; tries++) {
        struct index_lookup lookup;
        index_lookup_begin(&lookup, reader->base, reader->area_bytes, &reader->root->item_index,
                           hash_pair(group_hash, item_hash));
        uint64_t offset;
        while ((offset = index_lookup_next(&lookup)) != 0) {
            store_prefetch(reader->base, offset);
            if (store_read_view_item(reader, offset, view) != WEIR_OK)
                return WEIR_CORRUPT;
            if (view->item_hash != item_hash || view->id_bytes != id.bytes ||
                !store_words_equal(view->block->words, id))
                continue;
            if (at != NULL) {
                if (view->group == at->offset)
                    return WEIR_OK;
                continue;
            }
            struct group_words words;
            if (view_group(reader, view->group, &words) != WEIR_OK)
                return WEIR_CORRUPT;
            if (store_load(&words.block->hash) == group_hash &&
                group_is_named(&words, named->stream, named->group))
                return WEIR_OK;
        }
        if (!index_lookup_moved(&lookup))
            return WEIR_EMPTY;
    }
    return WEIR_REVOKED;
}

enum weir_status store_read_find_item(struct store_reader *reader,
                                      const struct store_group_view *group, uint64_t group_hash,
                                      struct span id, struct store_item_view *view)
{
    return find_item(reader, group_hash, group, NULL, id, view);
}

/* ---- one item, one group ---- */

static bool is_key_too_large(struct span stream, struct span group, struct span item)
{
    return stream.bytes > NAME_BYTES_MAX || group.bytes > NAME_BYTES_MAX ||
           item.bytes > NAME_BYTES_MAX;
}

/* The item was found by its names, so its group's offset has been checked. */
static enum weir_status check_found(const struct store_reader *reader,
                                    const struct store_item_view *view)
{
    const struct group_block *group =
        (const struct group_block *)(const void *)(reader->base + view->group);
    return view->modified_seq > store_load_acquire(&group->committed_seq) /* K' */
               ? WEIR_PENDING
               : WEIR_OK;
}

/* After a search that did not find the item: what it saw are effects of writes up to `begun_seq`. */
static enum weir_status check_missing(struct store_reader *reader, uint64_t group_hash,
                                      const struct store_key *key)
{
    uint64_t offset;
    enum weir_status status = find_group(reader, group_hash, key->stream, key->group, &offset);
    if (status != WEIR_OK)
        return status;
    const struct group_block *group =
        (const struct group_block *)(const void *)(reader->base + offset);
    uint64_t begun_seq = store_load_acquire(&group->begun_seq);
    return begun_seq > store_load_acquire(&group->committed_seq) ? WEIR_PENDING
                                                                 : WEIR_EMPTY; /* K' */
}

enum weir_status store_read_item(struct store_reader *reader, const struct store_key *key,
                                 struct buffer *out)
{
    if (is_key_too_large(key->stream, key->group, key->item))
        return WEIR_TOO_LARGE;
    uint64_t group_hash = store_group_hash(reader->hash_seed, key->stream, key->group);
    size_t mark = out->bytes;
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        struct store_item_view view;
        out->bytes = mark;
        store_read_enter(reader);
        status = find_item(reader, group_hash, NULL, key, key->item, &view);
        if (status == WEIR_OK)
            status = store_read_append(out, view.value_words, view.value_bytes);
        if (reader->is_limited && status == WEIR_OK)
            status = check_found(reader, &view);
        else if (reader->is_limited && status == WEIR_EMPTY)
            status = check_missing(reader, group_hash, key);
        status = store_read_leave(reader, status);
    }
    if (status != WEIR_OK)
        out->bytes = mark;
    return status;
}

enum weir_status store_read_group(struct store_reader *reader, struct span stream,
                                  struct span group, struct store_group *state)
{
    if (is_key_too_large(stream, group, (struct span){0}))
        return WEIR_TOO_LARGE;
    struct store_group_view view;
    uint64_t newest_position = RING_NO_POSITION;
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        store_read_enter(reader);
        status = store_read_find_group(reader, stream, group, &view);
        if (status == WEIR_OK && !view.is_missing) {
            if (reader->is_limited)
                view.numbers.seq = store_load_acquire(&view.block->committed_seq); /* K' */
            newest_position = store_load_acquire(&view.block->newest_position);
        }
        status = store_read_leave(reader, status);
    }
    if (status != WEIR_OK)
        return status;
    *state = (struct store_group){
        .offset = view.offset,
        .hash = store_group_hash(reader->hash_seed, stream, group),
        .seq = view.numbers.seq,
        .epoch = view.epoch,
        .timestamp_ms = view.numbers.timestamp_ms,
        .next_ms = view.numbers.next_ms,
        .newest_position = view.is_missing ? RING_NO_POSITION : newest_position,
        .item_count = view.numbers.item_count,
    };
    return view.is_missing ? WEIR_EMPTY : WEIR_OK;
}

/* ---- lists of names ---- */

/* Room for one more entry behind `count`; bounded by the text every entry adds to (or by its empty
 * name's quotes). */
static enum weir_status names_reserve(struct store_name **names, size_t *capacity, size_t count)
{
    if (count < *capacity)
        return WEIR_OK;
    if (count >= ANSWER_BYTES_MAX / 3)
        return WEIR_FULL;
    size_t larger = *capacity == 0 ? 64 : *capacity * 2;
    struct store_name *moved = realloc(*names, larger * sizeof **names);
    if (moved == NULL)
        return WEIR_NO_MEMORY;
    *names = moved;
    *capacity = larger;
    return WEIR_OK;
}

static enum weir_status copy_name(struct buffer *text, const _Atomic uint64_t *words,
                                  const _Atomic uint64_t *escaped_words, uint64_t bytes,
                                  struct store_name *name)
{
    *name = (struct store_name){.name_at = text->bytes,
                                .escaped_at = text->bytes,
                                .name_bytes = (uint32_t)store_low(bytes),
                                .escaped_bytes = (uint32_t)store_high(bytes)};
    enum weir_status status = store_read_append(text, words, store_low(bytes));
    if (status != WEIR_OK || escaped_words == words)
        return status;
    name->escaped_at = text->bytes;
    return store_read_append(text, escaped_words, store_high(bytes));
}

/* The groups with items of one stream, in order of creation. */
static enum weir_status collect_groups(struct store_reader *reader,
                                       const struct stream_block *stream)
{
    struct store_names *names = reader->names;
    uint64_t ordinal = 0;
    uint64_t offset = store_load_acquire(&stream->first_group); /* G' */
    while (offset != 0) {                                       /* ordinals grow: the list ends */
        struct group_words words;
        struct store_numbers numbers;
        if (view_group(reader, offset, &words) != WEIR_OK ||
            store_load(&words.block->ordinal) <= ordinal)
            return WEIR_CORRUPT;
        ordinal = store_load(&words.block->ordinal);
        enum weir_status status = read_numbers(words.block, &numbers);
        if (status == WEIR_OK && numbers.item_count > 0) {
            status = names_reserve(&names->groups, &names->group_capacity, names->group_count);
            if (status == WEIR_OK)
                status = copy_name(&names->text, words.group, words.group_escaped,
                                   words.group_bytes, &names->groups[names->group_count++]);
        }
        if (status != WEIR_OK)
            return status;
        offset = store_load_acquire(&words.block->next); /* G' */
    }
    return WEIR_OK;
}

/* The stream's block and where its names are. */
static enum weir_status view_stream(const struct store_reader *reader, uint64_t offset,
                                    const struct stream_block **stream, uint64_t *bytes,
                                    const _Atomic uint64_t **escaped)
{
    if (!is_inside(reader, offset, sizeof **stream))
        return WEIR_CORRUPT;
    *stream = (const struct stream_block *)(const void *)(reader->base + offset);
    *bytes = store_load(&(*stream)->name_bytes);
    if (!store_names_sane(*bytes) ||
        !is_inside(reader, offset, sizeof **stream + store_names_bytes(*bytes)))
        return WEIR_CORRUPT;
    *escaped = (*stream)->names;
    if (store_high(*bytes) != store_low(*bytes))
        *escaped += shm_align_word(store_low(*bytes)) / WORD_BYTES;
    return WEIR_OK;
}

static enum weir_status find_stream(const struct store_reader *reader, struct span name,
                                    const struct stream_block **stream)
{
    for (unsigned tries = 0; tries < STORE_READ_TRIES; tries++) {
        struct index_lookup lookup;
        index_lookup_begin(&lookup, reader->base, reader->area_bytes, &reader->root->stream_index,
                           hash_bytes(reader->hash_seed, name));
        uint64_t offset;
        while ((offset = index_lookup_next(&lookup)) != 0) {
            uint64_t bytes;
            const _Atomic uint64_t *escaped;
            if (view_stream(reader, offset, stream, &bytes, &escaped) != WEIR_OK)
                return WEIR_CORRUPT;
            if (store_low(bytes) == name.bytes && store_words_equal((*stream)->names, name))
                return WEIR_OK;
        }
        if (!index_lookup_moved(&lookup))
            return WEIR_EMPTY;
    }
    return WEIR_REVOKED;
}

static enum weir_status collect_all(struct store_reader *reader)
{
    struct store_names *names = reader->names;
    uint64_t ordinal = 0;
    uint64_t offset = store_load_acquire(&reader->root->first_stream); /* G' */
    while (offset != 0) { /* ordinals grow: the list ends */
        const struct stream_block *stream;
        uint64_t bytes;
        const _Atomic uint64_t *escaped;
        if (view_stream(reader, offset, &stream, &bytes, &escaped) != WEIR_OK ||
            store_load(&stream->ordinal) <= ordinal)
            return WEIR_CORRUPT;
        ordinal = store_load(&stream->ordinal);
        size_t first_group = names->group_count;
        enum weir_status status = collect_groups(reader, stream);
        if (status == WEIR_OK && names->group_count > first_group) {
            status = names_reserve(&names->streams, &names->stream_capacity, names->stream_count);
            if (status == WEIR_OK) {
                struct store_name *name = &names->streams[names->stream_count++];
                status = copy_name(&names->text, stream->names, escaped, bytes, name);
                name->first_group = first_group;
                name->group_count = names->group_count - first_group;
            }
        }
        if (status != WEIR_OK)
            return status;
        offset = store_load_acquire(&stream->next); /* G' */
    }
    return WEIR_OK;
}

static int compare_names(const void *left, const void *right, void *text)
{
    const struct store_name *a = left;
    const struct store_name *b = right;
    const char *data = text;
    size_t common = a->name_bytes < b->name_bytes ? a->name_bytes : b->name_bytes;
    int order = common == 0 ? 0 : memcmp(data + a->name_at, data + b->name_at, common);
    if (order != 0)
        return order;
    return a->name_bytes < b->name_bytes ? -1 : a->name_bytes > b->name_bytes;
}

static void sort_names(struct store_names *names, struct store_name *first, size_t count)
{
    if (count > 1)
        qsort_r(first, count, sizeof *first, compare_names, names->text.data);
}

static enum weir_status append_name(const struct store_names *names, const struct store_name *name,
                                    struct buffer *out)
{
    enum weir_status status = buffer_reserve(out, name->escaped_bytes + 2ul);
    if (status != WEIR_OK)
        return status;
    char *end = out->data + out->bytes;
    *end++ = '"';
    if (name->escaped_bytes > 0)
        memcpy(end, names->text.data + name->escaped_at, name->escaped_bytes);
    end[name->escaped_bytes] = '"';
    out->bytes += name->escaped_bytes + 2ul;
    return WEIR_OK;
}

static enum weir_status append_groups(const struct store_names *names, size_t first, size_t count,
                                      struct buffer *out)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("["));
    for (size_t i = 0; i < count && status == WEIR_OK; i++) {
        if (i > 0)
            status = buffer_append(out, SPAN_LITERAL(","));
        if (status == WEIR_OK)
            status = append_name(names, &names->groups[first + i], out);
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("]")) : status;
}

/* After the walk of a list: is all that it saw committed? */
static enum weir_status check_listed(const struct store_reader *reader)
{
    if (!reader->is_limited)
        return WEIR_OK;
    uint64_t committed = store_load_acquire(&reader->root->listings_committed); /* L' */
    return store_load(&reader->root->listings_begun) == committed ? WEIR_OK : WEIR_PENDING;
}

static void names_clear(struct store_names *names)
{
    buffer_clear(&names->text);
    names->group_count = 0;
    names->stream_count = 0;
}

enum weir_status store_list_groups(struct store_reader *reader, struct span stream,
                                   struct buffer *out)
{
    if (stream.bytes > NAME_BYTES_MAX)
        return WEIR_TOO_LARGE;
    struct store_names *names = reader->names;
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        const struct stream_block *block;
        names_clear(names);
        store_read_enter(reader);
        status = find_stream(reader, stream, &block);
        if (status == WEIR_OK)
            status = collect_groups(reader, block);
        else if (status == WEIR_EMPTY)
            status = WEIR_OK;
        if (status == WEIR_OK)
            status = check_listed(reader);
        status = store_read_leave(reader, status);
    }
    if (status != WEIR_OK)
        return status;
    sort_names(names, names->groups, names->group_count);
    size_t mark = out->bytes;
    status = append_groups(names, 0, names->group_count, out);
    if (status != WEIR_OK)
        out->bytes = mark;
    return status;
}

static enum weir_status append_all(const struct store_names *names, struct buffer *out)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{\"stream\":["));
    for (size_t i = 0; i < names->stream_count && status == WEIR_OK; i++) {
        const struct store_name *stream = &names->streams[i];
        status = buffer_append(out, i > 0 ? SPAN_LITERAL(",{\"id\":") : SPAN_LITERAL("{\"id\":"));
        if (status == WEIR_OK)
            status = append_name(names, stream, out);
        if (status == WEIR_OK)
            status = buffer_append(out, SPAN_LITERAL(",\"groups\":"));
        if (status == WEIR_OK)
            status = append_groups(names, stream->first_group, stream->group_count, out);
        if (status == WEIR_OK)
            status = buffer_append(out, SPAN_LITERAL("}"));
    }
    return status == WEIR_OK ? buffer_printf(out, "],\"count\":%zu}", names->stream_count) : status;
}

enum weir_status store_list_all(struct store_reader *reader, struct buffer *out)
{
    struct store_names *names = reader->names;
    enum weir_status status = WEIR_REVOKED;
    for (unsigned tries = 0; tries < STORE_READ_TRIES && status == WEIR_REVOKED; tries++) {
        names_clear(names);
        store_read_enter(reader);
        status = collect_all(reader);
        if (status == WEIR_OK)
            status = check_listed(reader);
        status = store_read_leave(reader, status);
    }
    if (status != WEIR_OK)
        return status;
    sort_names(names, names->streams, names->stream_count);
    for (size_t i = 0; i < names->stream_count; i++)
        sort_names(names, names->groups + names->streams[i].first_group,
                   names->streams[i].group_count);
    size_t mark = out->bytes;
    status = append_all(names, out);
    if (status != WEIR_OK)
        out->bytes = mark;
    return status;
}

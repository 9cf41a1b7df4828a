#include "broker/table.h"

#include <stdlib.h>

enum { TABLE_BUCKETS_MIN = 64 };

enum weir_status table_init(struct table *table)
{
    table->buckets = calloc(TABLE_BUCKETS_MIN, sizeof(struct table_node *));
    table->bucket_count = TABLE_BUCKETS_MIN;
    table->count = 0;
    return table->buckets ? WEIR_OK : WEIR_NO_MEMORY;
}

void table_fini(struct table *table)
{
    free(table->buckets);
    *table = (struct table){0};
}

static struct table_node **table_bucket(const struct table *table, uint64_t hash)
{
    return &table->buckets[hash & (table->bucket_count - 1)];
}

static void table_grow(struct table *table)
{
    struct table grown = {.bucket_count = table->bucket_count * 2, .count = table->count};
    grown.buckets = calloc(grown.bucket_count, sizeof(struct table_node *));
    if (!grown.buckets)
        return;
    for (size_t index = 0; index < table->bucket_count; index++) {
        /* Each bucket becomes two, and the order in them stays. */
        struct table_node **ends[2] = {&grown.buckets[index],
                                       &grown.buckets[index + table->bucket_count]};
        struct table_node *node = table->buckets[index];
        for (; node; node = node->next) {
            struct table_node ***end = &ends[(node->hash & table->bucket_count) != 0];
            **end = node;
            *end = &node->next;
        }
        *ends[0] = NULL;
        *ends[1] = NULL;
    }
    free(table->buckets);
    *table = grown;
}

void table_insert(struct table *table, struct table_node *node, uint64_t hash)
{
    if (table->count >= table->bucket_count)
        table_grow(table);
    struct table_node **bucket = table_bucket(table, hash);
    node->hash = hash;
    node->next = *bucket;
    *bucket = node;
    table->count++;
}

void table_remove(struct table *table, struct table_node *node)
{
    struct table_node **link = table_bucket(table, node->hash);
    while (*link != node) {
        weir_assert(*link);
        link = &(*link)->next;
    }
    *link = node->next;
    node->next = NULL;
    table->count--;
}

static struct table_node *table_match(struct table_node *node, uint64_t hash)
{
    while (node && node->hash != hash)
        node = node->next;
    return node;
}

struct table_node *table_first(const struct table *table, uint64_t hash)
{
    return table_match(*table_bucket(table, hash), hash);
}

struct table_node *table_next(const struct table_node *node)
{
    return table_match(node->next, node->hash);
}

struct table_node *table_walk(const struct table *table, size_t *bucket,
                              const struct table_node *previous)
{
    if (previous && previous->next)
        return previous->next;
    while (*bucket < table->bucket_count) {
        struct table_node *node = table->buckets[(*bucket)++];
        if (node)
            return node;
    }
    return NULL;
}

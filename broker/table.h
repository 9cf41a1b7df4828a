/* broker/table.h -- chained hash table of nodes embedded in their owners.
 *
 * Process and thread: one owner. Memory: the table owns only its bucket array, which doubles with
 * the count; when that fails the old array serves on. Nodes are the caller's. Several nodes may
 * share a hash: the caller compares keys.
 */
#ifndef WEIR_BROKER_TABLE_H
#define WEIR_BROKER_TABLE_H

#include "shm/span.h"

struct table_node {
    struct table_node *next;
    uint64_t hash;
};

struct table {
    struct table_node **buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
};

enum weir_status table_init(struct table *table) WEIR_MUST_CHECK;
void table_fini(struct table *table);
void table_insert(struct table *table, struct table_node *node, uint64_t hash);
void table_remove(struct table *table, struct table_node *node);
/* First node with `hash`, then the next one with the same hash; NULL at the end. */
struct table_node *table_first(const struct table *table, uint64_t hash);
struct table_node *table_next(const struct table_node *node);
/* Any order: bucket by bucket. `*bucket` starts at 0. NULL at the end. */
struct table_node *table_walk(const struct table *table, size_t *bucket,
                              const struct table_node *previous);

#define TABLE_OWNER(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

#endif

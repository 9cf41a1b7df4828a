/* broker/snapshot_file.h -- a snapshot's file from its records: frames, WAL_END, synced, and only then
 * under its name.
 *
 *   snapshot-N.new ── records ──▶ frames ... WAL_END ── sync, rename, sync of the directory ──▶ snapshot-N
 *
 * Process and thread: any one that has the directory's lock; blocks.
 * Memory:   one frame; it grows with the largest record.
 * Errors:   SYSTEM, NO_MEMORY. After one the file is of no use: snapshot_file_close() removes it.
 */
#ifndef WEIR_BROKER_SNAPSHOT_FILE_H
#define WEIR_BROKER_SNAPSHOT_FILE_H

#include "broker/wal_recovery.h"

struct snapshot_file;

/* header->kind is WAL_FILE_SNAPSHOT. An unfinished file of the same number is replaced. */
enum weir_status snapshot_file_open(struct snapshot_file **file, const struct wal_io *io,
                                    const char *directory, const struct wal_file_header *header,
                                    struct weir_error *error) WEIR_MUST_CHECK;
/* WAL_GROUP, WAL_ITEM. */
enum weir_status snapshot_file_put(struct snapshot_file *file, const struct wal_record *record,
                                   struct weir_error *error) WEIR_MUST_CHECK;
/* `end_seq`: see WAL_END. OK: the snapshot is there, and stays after a loss of power. */
enum weir_status snapshot_file_finish(struct snapshot_file *file, uint64_t end_seq,
                                      struct weir_error *error) WEIR_MUST_CHECK;
/* Removes what is not finished. NULL is fine. */
void snapshot_file_close(struct snapshot_file *file);

#endif

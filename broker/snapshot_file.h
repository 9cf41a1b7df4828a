/* broker/snapshot_file.h -- a snapshot's file from its records: frames, WAL_END, synced, and only then
 * under its name.
 *
 *   snapshot-N.new ── records ──▶ frames ... WAL_END ── sync, rename, sync of the directory ──▶ snapshot-N
 *
 * Process and thread: of a process that has the directory's lock; one thread at a time. What is said to
 *           block writes to the disk, and may be called by another thread than the rest.
 * Memory:   one frame; it grows with the largest record.
 * Errors:   SYSTEM, NO_MEMORY. After one the file is of no use: snapshot_file_close() removes it.
 */
#ifndef WEIR_BROKER_SNAPSHOT_FILE_H
#define WEIR_BROKER_SNAPSHOT_FILE_H

#include "broker/wal_recovery.h"
#include "shm/store.h"

struct snapshot_file;

/* Blocks. header->kind is WAL_FILE_SNAPSHOT. An unfinished file of the same number is replaced. */
enum weir_status snapshot_file_open(struct snapshot_file **file, const struct wal_io *io,
                                    const char *directory, const struct wal_file_header *header,
                                    struct weir_error *error) WEIR_MUST_CHECK;
/* What a walk of the store has yielded, as a record. */
struct wal_record snapshot_file_record(const struct store_walk_entry *entry);
/* WAL_GROUP, WAL_ITEM: into the frame, no further. */
enum weir_status snapshot_file_put(struct snapshot_file *file, const struct wal_record *record,
                                   struct weir_error *error) WEIR_MUST_CHECK;
/* The frame is to be flushed before more is put. */
bool snapshot_file_is_full(const struct snapshot_file *file);
/* Blocks. Write the frame; every few megabytes are synced, so that no sync has to write it all. */
enum weir_status snapshot_file_flush(struct snapshot_file *file,
                                     struct weir_error *error) WEIR_MUST_CHECK;
uint64_t snapshot_file_bytes(const struct snapshot_file *file); /* written so far */
/* Blocks. `end_seq`: see WAL_END. OK: the snapshot is there, and stays after a loss of power. */
enum weir_status snapshot_file_finish(struct snapshot_file *file, uint64_t end_seq,
                                      struct weir_error *error) WEIR_MUST_CHECK;
/* Blocks. Removes what is not finished. NULL is fine. */
void snapshot_file_close(struct snapshot_file *file);

#endif

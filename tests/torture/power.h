/* tests/torture/power.h -- what a disk may have lost when the power goes: everything written since the
 * last sync of its file, in part or as a whole, and the newest changes of names in a directory that was
 * not synced since.
 *
 *   power_writing(), power_naming() ... before each call: keeps what was there
 *   power_synced(), power_directory_synced()  behind a sync: forgets it
 *   power_cut()                              gives back a random part of it, and ends the process
 *
 * Changes of names are undone from the newest on, as a journal keeps their order; written sectors in
 * any combination. What a killed predecessor had not synced counts as synced.
 *
 * Process: the server under test. Thread: any; a lock. Memory: the old contents, until they are synced.
 */
#ifndef WEIR_TESTS_TORTURE_POWER_H
#define WEIR_TESTS_TORTURE_POWER_H

#include "tests/torture/fault_plan.h"

enum power_naming { POWER_CREATE, POWER_RENAME, POWER_REMOVE };

struct power;

/* Removed files wait in `limbo`, a directory of the same file system, made here. NULL: no memory, or
 * the directory cannot be made. */
struct power *power_open(struct fault_plan *plan, const char *limbo);
/* `fd` is about to be written, or to be cut or extended to `offset` (bytes 0). */
void power_writing(struct power *power, int fd, size_t bytes, uint64_t offset);
void power_synced(struct power *power, int fd);
/* CREATE: `path` is about to be made, if it is not there. RENAME: to `other`. REMOVE: true when it was
 * removed here, so that it can come back. */
bool power_naming(struct power *power, enum power_naming kind, const char *path, const char *other);
void power_directory_synced(struct power *power);
void power_cut(struct power *power) __attribute__((noreturn));

#endif

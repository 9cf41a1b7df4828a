/* broker/wal_life.h -- how the last life of a broker on a log directory went, and whether what is read
 * from the log can be less than what that life has shown.
 *
 *   DIR/life   one sector, written over in place:
 *      0  u64  magic "weirLif1"; a change of format changes the digit
 *      8  u64  log id
 *     16  u64  renewed: groups that have a lower epoch in snapshot or log have this one; 0: none have
 *     24  u32  level (enum wal_life_level)
 *     28  u32  1: stopped, and all that was shown is on the disk
 *     32       boot id of the machine, text, zeros to 72; all zeros: not known
 *     72  u32  CRC32C of bytes 0..71
 *     76       zeros to 512
 *
 * A client keeps positions (epoch, seq) and comes back with them, so one must never mean two histories.
 * A log that lost its newest frames gives their seqs again. Then every group goes on in an epoch above
 * all that were given before, with the seq and the items it has: `renewed` says which, so that later
 * lives come to the same, and no position of before fits any more. Whether that is so is a table
 * (wal_life_verdict()); what is not known counts as lost. A record that is missing or damaged is such a
 * case, so writing it in place is safe, and who puts back an older copy of a directory removes `life`
 * from it.
 *
 * Process and thread: any one, with the directory locked; blocks. Memory: none is kept.
 * Errors:   reading: EMPTY: there is none; CORRUPT: damaged; SYSTEM.
 */
#ifndef WEIR_BROKER_WAL_LIFE_H
#define WEIR_BROKER_WAL_LIFE_H

#include "broker/wal_io.h"
#include "broker/wal_recovery.h"

enum { WAL_LIFE_BOOT_BYTES = 40 }; /* a boot id with NUL */

/* What was true of an event when it was shown. */
enum wal_life_level {
    WAL_LIFE_MEMORY = 1, /* nothing: the log is written behind */
    WAL_LIFE_WRITTEN,    /* the kernel had it */
    WAL_LIFE_SYNCED,     /* the disk had it */
};

struct wal_life {
    uint64_t log_id;
    uint64_t renewed;
    enum wal_life_level level;
    bool is_stopped;
    char boot[WAL_LIFE_BOOT_BYTES]; /* "": not known */
};

/* ---- what is known of a life ---- */

enum wal_life_record {
    WAL_LIFE_NONE,    /* missing, damaged */
    WAL_LIFE_FOREIGN, /* of another log */
    WAL_LIFE_OURS,
};
enum wal_life_boot { WAL_LIFE_SAME_BOOT, WAL_LIFE_OTHER_BOOT }; /* not known: OTHER */
enum wal_life_end { WAL_LIFE_STOPPED, WAL_LIFE_DIED };
enum wal_life_tail {
    WAL_LIFE_WHOLE,
    WAL_LIFE_SHORTENED, /* behind the log's end there are frames that were written after a lost one */
};

struct wal_life_finding {
    enum wal_life_record record;
    enum wal_life_level level;
    enum wal_life_boot boot;
    enum wal_life_end end;
    enum wal_life_tail tail;
};

enum wal_life_verdict { WAL_LIFE_KEEP, WAL_LIFE_RENEW };

/* The one row of the table that fits; `why` (may be NULL) is its sentence. */
enum wal_life_verdict wal_life_verdict(const struct wal_life_finding *finding, const char **why);
/* How many rows fit: one, whatever the finding. */
size_t wal_life_rows(const struct wal_life_finding *finding);
/* `life` NULL: there is none. `boot`: of this machine now. */
struct wal_life_finding wal_life_finding(const struct wal_life *life, const char *boot,
                                         const struct wal_recovered *recovered);

/* ---- the record ---- */

enum weir_status wal_life_read(const struct wal_io *io, const char *directory,
                               struct wal_life *life) WEIR_MUST_CHECK;
/* On the disk when it returns OK. */
enum weir_status wal_life_write(const struct wal_io *io, const char *directory,
                                const struct wal_life *life,
                                struct weir_error *error) WEIR_MUST_CHECK;
/* For good when it returns OK; none there is fine. */
enum weir_status wal_life_remove(const struct wal_io *io, const char *directory,
                                 struct weir_error *error) WEIR_MUST_CHECK;
/* Which run of the kernel this is; "" where it does not say. */
void wal_life_read_boot(char boot[WAL_LIFE_BOOT_BYTES]);
const char *wal_life_level_name(enum wal_life_level level); /* "memory", ...; "?" */

#endif

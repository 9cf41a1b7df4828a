/* broker/batch.h -- what becomes visible together: the frame of the log, and the answers, groups and
 * ring records that may be shown once the frame is where the level wants it.
 *
 * Copies only: nothing points into the store or into a peer's input, so a batch may be completed
 * many turns after the one that filled it.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   all owned, reused; frame, answers and groups have their size from the start. A record
 *           larger than the frame gets a frame of its own until the batch is reset; the first one stays
 *           where it is until batch_close(), for the kernel may have been told of it (wal_device.h).
 * Errors:   an answer there is no memory for becomes an error that needs none.
 */
#ifndef WEIR_BROKER_BATCH_H
#define WEIR_BROKER_BATCH_H

#include "broker/bounds.h"
#include "broker/output.h"
#include "broker/wal.h"

/* Who asked. */
struct batch_asker {
    struct peer_handle peer;
    uint64_t id;            /* 0: nobody waits */
    const char *error_code; /* of the function asked, should the log fail */
    bool is_unhurried;      /* nobody waits, but the answer is kept account of */
};

/* One answer, encoded and waiting for the commit point. */
struct batch_reply {
    struct peer_handle peer;
    uint64_t id;
    const char *error_code;
    bool is_unhurried;
    /* Parts in batch.bytes; offset SIZE_MAX: nil. */
    size_t code_offset, code_bytes;
    size_t text_offset, text_bytes;
    size_t result_offset, result_bytes;
    size_t error_offset, error_bytes; /* an adapter's own error object */
};

/* The newest write to a group in this batch, and where its event is in the ring. */
struct batch_group {
    uint64_t offset, seq, position;
};

struct batch {
    struct batch *next;
    struct batch_reply *replies; /* BATCH_REPLIES_MAX */
    unsigned reply_count;
    struct buffer bytes;
    /* Of a logged batch. */
    struct batch_group *groups; /* BATCH_WRITES_MAX; each stays as it is until it is committed */
    unsigned group_count;
    char *frame; /* aligned to blocks; records from WAL_FRAME_HEADER_BYTES on */
    size_t frame_capacity, payload_bytes;
    char *first_frame; /* of BATCH_FRAME_BYTES; `frame`, unless a record needs a larger one */
    uint32_t record_count;
    uint64_t frame_seq; /* 0: no records */
    uint64_t ring_end;  /* of what it has put into the ring */
    bool is_kept;       /* one of the pool's: not closed before it */
    bool is_used;       /* the store was changed or read */
    bool is_released;   /* answered already: its level does not wait for the log */
    bool is_doubtful;   /* the log failed while it waited: what it did and saw may not be kept */
    struct wal_write write;
};

/* `is_logged`: with frame and groups. NULL: no memory. */
struct batch *batch_open(bool is_logged);
void batch_close(struct batch *batch); /* NULL is fine */
/* Empty again; memory that has grown is given back. */
void batch_reset(struct batch *batch);
/* No more may be put in before it is sealed. */
bool batch_is_full(const struct batch *batch);

/* ---- answers ---- */

/* Nothing for asker.id 0, and no result for one that is not waited for. Parts that are NULL or have no data are nil. */
void batch_reply_result(struct batch *batch, const struct batch_asker *asker,
                        const struct broker_output *output, const struct span *parts,
                        unsigned part_count);
/* The reason is `subject` (NULL: none), a colon, and the sentence. */
void batch_reply_error(struct batch *batch, const struct batch_asker *asker,
                       const struct broker_output *output, const char *code, const char *subject,
                       struct span sentence);
/* The error object of a worker's function, as it came. */
void batch_reply_error_json(struct batch *batch, const struct batch_asker *asker,
                            const struct broker_output *output, struct span error_json);
void batch_reply_none(struct batch *batch, const struct batch_asker *asker);
/* Send all answers. `failure` not NULL: those without an error become one that says so. Returns how
 * many found nobody. */
unsigned batch_send(struct batch *batch, const struct broker_output *output, const char *failure);

/* ---- the frame ---- */

/* Room for one more record of so many bytes. False: seal the batch first. */
bool batch_has_room(const struct batch *batch, size_t record_bytes);
/* Make room in a batch without records. NO_MEMORY. */
enum weir_status batch_reserve(struct batch *batch, size_t record_bytes) WEIR_MUST_CHECK;
/* Append the record of the write that `group` tells of (NULL: of no group); there is room. */
void batch_log(struct batch *batch, const struct wal_record *record,
               const struct batch_group *group);

#endif

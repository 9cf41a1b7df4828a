/* shm/readers.h -- who reads the segment: slots, epochs, revocation, doorbells.
 *
 * Each reader (gateway) owns one control page in a memfd of its own, writable by it and by the
 * broker:
 *
 *      0  asleep          1 while the reader waits on its eventfd (doorbell)
 *     64  reading_epoch   the store epoch it entered with, 0 while it does not read
 *    128  cursor          ring position it has handled, heartbeat (CLOCK_MONOTONIC ms)
 *    192  slot, use       which use of which slot this page was made for; written once by the broker
 *    256  counters
 *   1024  chooses         1: events of groups without a bit below need not wake it
 *   1088  wanted          a bit for every group it wants, by the group's hash; groups share bits
 *
 * The broker treats everything in it as untrusted. What the broker tells a reader is in the reader
 * table of the segment: `revoked_epoch`, the highest epoch whose memory may have been given away
 * although this reader had not left it.
 *
 * Reclamation: the broker retires a block with the current store epoch, then advances the epoch;
 * the block is reused only when no attached reader is in an epoch <= that one. A reader that stays
 * in an epoch for too long while retired memory is wanted is revoked: the broker raises
 * revoked_epoch and goes on. The reader learns of it in reader_leave(): what it copied is void,
 * REVOKED, read again. Between, it may follow overwritten memory; hence every offset and length a
 * reader takes from the segment is bounds-checked and every loop is bounded.
 *
 * Doorbell: reader: say what is wanted, asleep = 1, full fence, look at head again, sleep on the eventfd.
 *           broker: publish head, full fence, of those asleep that want a record of what was published
 *           asleep exchanged 1 -> 0: write the eventfd, unless it is about to send them something else:
 *           what comes behind the publishing and wakes a reader is a doorbell. A coarse timer heals a lost
 *           wake.
 *           Who chooses reads the other records when something else wakes it, its timer at the latest; when
 *           it falls behind by READERS_LAG_SHARE of the ring, it is woken for any of them.
 *
 * Process:  readers_*: broker's loop thread. reader_*: the one thread of the reader that owns the
 *           control page.
 * Errors:   FULL when all READERS_MAX slots are taken.
 */
#ifndef WEIR_SHM_READERS_H
#define WEIR_SHM_READERS_H

#include "shm/broker_counters.h"
#include "shm/segment.h"

enum { CONTROL_PAGE_BYTES = 4096, CONTROL_COUNTERS = 96 };
enum {
    READER_WANTED_BITS = 16384,
    READERS_LAG_SHARE = 8,   /* of the ring, as a divisor */
    READERS_LOOKS_MAX = 128, /* records of a wake; beyond, everybody is woken: looking costs more */
};

/* ---- broker ---- */
struct readers;
struct ring_writer;
struct readers_woken {
    unsigned woken;
    unsigned spared; /* left asleep: nothing of it was theirs */
};
struct readers *readers_open(struct segment *segment); /* NULL: no memory */
void readers_close(struct readers *readers);
/* Take a slot; creates its control page and eventfd. The fds are the broker's; pass them on with
 * SCM_RIGHTS. */
enum weir_status readers_attach(struct readers *readers, uint32_t pid, uint32_t *slot,
                                int *control_fd, int *event_fd,
                                struct weir_error *error) WEIR_MUST_CHECK;
/* The reader is gone (its socket closed): its epoch no longer holds anything, the slot may be taken
 * again. Closes both fds and the mapping. Should the process still live, its reader_leave() returns
 * REVOKED from now on. */
void readers_detach(struct readers *readers, uint32_t slot);
/* Records from `from` up to `to` were just published: wake the sleeping readers that want one of
 * them. For those whose slot is a bit of `called` the caller promises something else that wakes them,
 * sent after the publishing: they count as awake, and their doorbell does not ring. */
struct readers_woken readers_wake(struct readers *readers, const struct ring_writer *ring,
                                  uint64_t from, uint64_t to, uint64_t called);
/* The epoch to retire blocks with; readers_advance() starts a new one. */
uint64_t readers_epoch(const struct readers *readers);
void readers_advance(struct readers *readers);
/* Blocks retired with an epoch below this may be reused. */
uint64_t readers_safe_epoch(const struct readers *readers);
/* Revoke every reader still in an epoch <= `epoch`; returns how many. */
unsigned readers_revoke(struct readers *readers, uint64_t epoch);
/* Copy counters, cursor and heartbeat of all control pages into the reader table, so that any
 * process can show the whole host. */
void readers_collect_counters(struct readers *readers);
/* Copy the broker's own counters into the reader table, likewise. */
void readers_show_broker(struct readers *readers, const struct broker_counters *counters);

/* ---- reader ---- */
struct reader {
    struct control_page *page;
    const struct reader_table *table;
    uint32_t slot;
    uint64_t use; /* of the slot, see readers_detach() */
    uint64_t entered_epoch;
    int event_fd; /* owned */
};
/* Maps the control page; takes over the fds on success only. INVALID: not a sealed control page.
 * CORRUPT: another slot's. */
enum weir_status reader_attach(struct reader *reader, const struct segment *segment, uint32_t slot,
                               int control_fd, int event_fd,
                               struct weir_error *error) WEIR_MUST_CHECK;
void reader_detach(struct reader *reader);
void reader_enter(struct reader *reader);
/* OK, or REVOKED: what was read since reader_enter() is void. */
enum weir_status reader_leave(struct reader *reader) WEIR_MUST_CHECK;
/* Announce sleep, then re-check `published` (ring_published()) against `position`: true = go to
 * sleep, false = there is work, do not sleep. reader_awake() afterwards drains the eventfd. */
bool reader_sleep(struct reader *reader, const struct segment *segment, uint64_t position);
void reader_awake(struct reader *reader);
void reader_set_cursor(struct reader *reader, uint64_t position, uint64_t heartbeat_ms);
/* What reader_sleep() sleeps through; a reader that has said nothing is woken for every record. To be
 * said before reader_sleep(), and what is wanted is wanted from then on. */
void reader_choose(struct reader *reader, bool chooses);
/* `bit` is reader_wanted_bit() of a group's hash, and perhaps of others' as well. */
void reader_want(struct reader *reader, unsigned bit, bool is_wanted);
static inline unsigned reader_wanted_bit(uint64_t group_hash)
{
    return (unsigned)(group_hash % READER_WANTED_BITS);
}
/* This reader's counters, relaxed; index < CONTROL_COUNTERS, meanings in gateway/counters.h. */
void reader_counter_add(struct reader *reader, unsigned index, uint64_t amount);

/* Any process: the broker's counters as last shown. */
void readers_broker_counters(const struct segment *segment, struct broker_counters *counters);
/* Any process: slot `slot`'s counters as last collected; false when the slot is free. */
bool readers_counters(const struct segment *segment, uint32_t slot, uint32_t *pid,
                      uint64_t counters[CONTROL_COUNTERS]);
/* Any process: where slot `slot` was in the ring and when, as last collected; false when the slot
 *              is free. */
bool readers_cursor(const struct segment *segment, uint32_t slot, uint64_t *position,
                    uint64_t *heartbeat_ms);

#endif

/* gateway/feed.h -- reads the shared ring in order: each event is copied out once and put into its
 * topic's chain.
 *
 * Of each group somebody here subscribes to it notes where the records are (trail.h).
 *
 * Each event is shown to the triggers while there are any. Events of groups nobody here subscribes
 * to are then dropped on the spot. What was drained lives until feed_clear(), so that sends can
 * point into it. While a fan-out is held back the ring itself is the queue: simply do not drain.
 *
 * How far the ring was read is told to the next broker as the number of a frame of the log, so that
 * its ring can be read on from behind it. Until the first record was read that number is not known,
 * unless the ring was empty at first. While nobody listens the numbers alone are read, and of a broker
 * without a log not even those.
 *
 * Process:  gateway, loop thread only.
 * Memory:   one buffer of a turn's budget and one more record; entries are sized at start.
 * Units:    bytes; a turn takes at most FEED_TURN_BYTES and FEED_TURN_RECORDS, and stops when it
 *           has matched FEED_TURN_MATCHES triggers; then the loop gets its share.
 * Errors:   EMPTY; LAPPED: the gateway was stopped too long, every link has to catch up (the cursor
 *           is at the newest again, and what was drained before is valid); CORRUPT: stop using the
 *           segment.
 */
#ifndef WEIR_GATEWAY_FEED_H
#define WEIR_GATEWAY_FEED_H

#include "gateway/mapping.h"
#include "gateway/subscriptions.h"
#include "gateway/triggers.h"

enum {
    FEED_TURN_BYTES = 1024 * 1024,
    FEED_TURN_RECORDS = 8192,
    FEED_TURN_MATCHES = 65536,
};

struct feed_entry {
    uint64_t seq, epoch;
    uint32_t offset; /* of the frame in the feed's bytes; the item id follows it */
    uint32_t frame_bytes;
    uint32_t id_bytes; /* UINT32_MAX: none */
    uint32_t next;     /* of the same topic, or TOPIC_NO_ENTRY */
};

struct feed {
    struct buffer bytes;
    struct feed_entry *entries;
    uint32_t entry_count;
    struct topic *touched;     /* topics with entries */
    uint64_t newest_ms;        /* highest stamp seen */
    bool has_more;             /* the budget ended before the ring did */
    uint64_t commit;           /* of the newest record read; 0: none */
    bool is_commit_known;      /* all that was published is in frames up to `commit` */
    struct triggers *triggers; /* NULL: none; set by whoever composes the parts */
    struct counters *counters;
};

enum weir_status feed_init(struct feed *feed, struct counters *counters) WEIR_MUST_CHECK;
void feed_fini(struct feed *feed);
/* Records were missed, nobody knows how many; the links have to catch up. */
void feed_lapped(struct feed *feed);
/* Another ring, and nothing drained. `reads_on`: it is read from where the last one was read to. */
void feed_start(struct feed *feed, const struct ring_reader *ring, bool reads_on);
/* The ring starts behind the frame `commit`. */
void feed_start_behind(struct feed *feed, uint64_t commit);
enum weir_status feed_drain(struct feed *feed, struct ring_reader *ring,
                            const struct subscriptions *subscriptions) WEIR_MUST_CHECK;
/* Take the first touched topic; its chain is given to the caller and the topic is untouched again. */
struct topic *feed_pop_topic(struct feed *feed, uint32_t *first_entry, uint32_t *entry_count);
void feed_clear(struct feed *feed);

static inline struct span feed_frame(const struct feed *feed, const struct feed_entry *entry)
{
    return span_of(feed->bytes.data + entry->offset, entry->frame_bytes);
}
static inline struct span feed_item(const struct feed *feed, const struct feed_entry *entry)
{
    return entry->id_bytes == UINT32_MAX
               ? (struct span){0}
               : span_of(feed->bytes.data + entry->offset + entry->frame_bytes, entry->id_bytes);
}

#endif

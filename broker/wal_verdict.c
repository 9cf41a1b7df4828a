/* What a place of the log means (wal_recovery.h): the decision table of recovery. */
#include "broker/wal_recovery.h"

/* Sets of states, one bit each. */
#define SET(state) (1u << (state))
enum {
    ANY = 0xff,
    HEADER_GOOD = SET(WAL_HEADER_GOOD),
    HEADER_ZERO = SET(WAL_HEADER_ZERO),
    HEADER_CUT = SET(WAL_HEADER_CUT),
    HEADER_BAD = SET(WAL_HEADER_BAD),
    NO_HEADER = HEADER_ZERO | HEADER_CUT | HEADER_BAD,
    BODY_GOOD = SET(WAL_BODY_GOOD),
    BODY_INCOMPLETE = SET(WAL_BODY_INCOMPLETE),
    BODY_BAD = SET(WAL_BODY_BAD),
    BODY_NONE = SET(WAL_BODY_NONE),
    BODY = BODY_GOOD | BODY_INCOMPLETE | BODY_BAD,
    NEXT = SET(WAL_NUMBER_NEXT),
    SEEN = SET(WAL_NUMBER_SEEN),
    AHEAD = SET(WAL_NUMBER_AHEAD),
    NO_NUMBER = SET(WAL_NUMBER_NONE),
    NUMBER = NEXT | SEEN | AHEAD,
    NOTHING = SET(WAL_BEHIND_NOTHING),
    BYTES = SET(WAL_BEHIND_BYTES),
    CONTINUED = SET(WAL_BEHIND_CONTINUED),
    LOOSE = SET(WAL_BEHIND_LOOSE),
    FRAMES = SET(WAL_BEHIND_FRAMES),
};

struct row {
    unsigned header, body, number, behind;
    enum wal_verdict verdict;
    const char *why;
};

static const char number_is_wrong[] = "the frame's number does not follow the one before";
static const char cannot_be[] = "the reader contradicts itself";

/* clang-format off */
static const struct row rows[] = {
    /* As written. */
    {HEADER_GOOD, BODY_GOOD, NEXT, ANY, WAL_VERDICT_TAKE, "the next frame"},
    {HEADER_GOOD, BODY_GOOD, SEEN, ANY, WAL_VERDICT_PASS, "a frame that was in the segment before"},
    {HEADER_GOOD, BODY_GOOD, AHEAD, ANY, WAL_VERDICT_DAMAGED, number_is_wrong},

    /* A part is there: of a write that was interrupted, or that failed and was made elsewhere. One
     * write leaves no bytes behind its frame. */
    {HEADER_GOOD, BODY_INCOMPLETE, NEXT | SEEN, NOTHING | LOOSE, WAL_VERDICT_CUT, "a write was interrupted"},
    {HEADER_GOOD, BODY_INCOMPLETE, NEXT | SEEN, CONTINUED, WAL_VERDICT_ABANDON, "a write failed, its frame is in the next segment"},
    {HEADER_GOOD, BODY_INCOMPLETE, NEXT | SEEN, BYTES | FRAMES, WAL_VERDICT_DAMAGED, "parts of the frame are missing, but more was written after it"},
    {HEADER_GOOD, BODY_INCOMPLETE, AHEAD, ANY, WAL_VERDICT_DAMAGED, number_is_wrong},

    /* All is there, and not what was written. */
    {HEADER_GOOD, BODY_BAD, NUMBER, ANY, WAL_VERDICT_DAMAGED, "the frame is not what was written"},

    /* No frame. */
    {HEADER_ZERO, BODY_NONE, NO_NUMBER, NOTHING | BYTES | CONTINUED, WAL_VERDICT_END, "the segment's end"},
    {HEADER_ZERO, BODY_NONE, NO_NUMBER, LOOSE, WAL_VERDICT_CUT, "a write is missing, later ones were not synced yet"},
    {HEADER_ZERO, BODY_NONE, NO_NUMBER, FRAMES, WAL_VERDICT_DAMAGED, "there are zeros, but more was written after that"},

    /* A part without the header. */
    {HEADER_CUT, BODY_NONE, NO_NUMBER, NOTHING | LOOSE, WAL_VERDICT_CUT, "a write was interrupted, its start is missing"},
    {HEADER_CUT, BODY_NONE, NO_NUMBER, CONTINUED, WAL_VERDICT_ABANDON, "a write failed, its frame is in the next segment"},
    {HEADER_CUT, BODY_NONE, NO_NUMBER, BYTES | FRAMES, WAL_VERDICT_DAMAGED, "a frame's start is missing, but more was written after it"},
    {HEADER_BAD, BODY_NONE, NO_NUMBER, ANY, WAL_VERDICT_DAMAGED, "the frame's header is not what was written"},

    /* There is no body to speak of without a header, nor a number. */
    {HEADER_GOOD, BODY_NONE, ANY, ANY, WAL_VERDICT_DAMAGED, cannot_be},
    {HEADER_GOOD, BODY, NO_NUMBER, ANY, WAL_VERDICT_DAMAGED, cannot_be},
    {NO_HEADER, BODY, ANY, ANY, WAL_VERDICT_DAMAGED, cannot_be},
    {NO_HEADER, BODY_NONE, NUMBER, ANY, WAL_VERDICT_DAMAGED, cannot_be},
};
/* clang-format on */
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

static bool fits(const struct row *row, const struct wal_finding *finding)
{
    return (row->header & SET(finding->header)) != 0 && (row->body & SET(finding->body)) != 0 &&
           (row->number & SET(finding->number)) != 0 && (row->behind & SET(finding->behind)) != 0;
}

size_t wal_verdict_rows(const struct wal_finding *finding)
{
    size_t count = 0;
    for (size_t i = 0; i < ROW_COUNT; i++)
        count += fits(&rows[i], finding);
    return count;
}

enum wal_verdict wal_verdict(const struct wal_finding *finding, const char **why)
{
    size_t i = 0;
    while (i < ROW_COUNT && !fits(&rows[i], finding))
        i++;
    weir_assert(i < ROW_COUNT);
    if (why != NULL)
        *why = rows[i].why;
    return rows[i].verdict;
}

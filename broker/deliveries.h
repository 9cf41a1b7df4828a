/* broker/deliveries.h -- handlers the broker itself calls: of stream:leave, functions-available and
 * workers-available triggers.
 *
 *   push --> waiting --> deciding (condition asked, or none) --> called --> answered, forgotten
 *            \------- first in, first out -------------------/
 *
 * A line is one trigger's queue: handlers are called in the order of the pushes, at most
 * DELIVERIES_OUTSTANDING_MAX calls of a line are unanswered. With a condition function that is
 * asked first: only `false` skips the handler, an error skips it too (PROTOCOL 8.4). Results are
 * ignored; failures are counted and logged, rate limited. A call whose worker's gateway does not
 * keep up is tried again in later turns; lines do not wait for each other.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   copies; all lines together hold at most DELIVERIES_BYTES_MAX, one line half of that;
 *           what comes beyond is dropped and counted. Equal payloads pushed one after the other are
 *           kept once, so that one event for many lines is one copy.
 * Errors:   none to the pusher. What fails, is late or is dropped is counted (deliveries_failed,
 *           deliveries_dropped) and not repeated.
 */
#ifndef WEIR_BROKER_DELIVERIES_H
#define WEIR_BROKER_DELIVERIES_H

#include "broker/routes.h"

enum {
    DELIVERIES_OUTSTANDING_MAX = 64,
    DELIVERIES_BYTES_MAX = 64 * 1024 * 1024,
    DELIVERIES_LINE_BYTES_MAX =
        DELIVERIES_BYTES_MAX / 2, /* one slow handler leaves room for others */
    DELIVERIES_TURN_MAX = 4096,   /* calls begun in one turn */
};

struct deliveries;
struct delivery_line;

struct delivery_target {
    struct span space; /* of function and condition */
    struct span function;
    struct span condition; /* data NULL: none */
    struct span metadata;  /* JSON; data NULL: none */
};

/* `timeout_ms` is a call's. */
enum weir_status deliveries_open(struct deliveries **deliveries, struct routes *routes,
                                 struct broker_counters *counters, uint64_t timeout_ms,
                                 struct weir_error *error) WEIR_MUST_CHECK;
void deliveries_close(struct deliveries *deliveries); /* all lines closed; before routes_close() */

struct delivery_line *
delivery_line_open(struct deliveries *deliveries,
                   const struct delivery_target *target); /* NULL: no memory */
/* What waits is forgotten; calls under way go on unheard. Takes NULL. */
void delivery_line_close(struct delivery_line *line);
/* `payload`: JSON. */
void delivery_line_push(struct delivery_line *line, struct span payload);
/* Start what can start; once a turn. True: there is more to do at once. */
bool deliveries_run(struct deliveries *deliveries, uint64_t now_ms);
/* For those who can wait with what they push: less than a quarter of all bytes is in use. */
bool deliveries_have_room(const struct deliveries *deliveries);
/* Has something been pushed or answered since? Then the loop is not to wait. */
bool deliveries_are_due(const struct deliveries *deliveries);

#endif

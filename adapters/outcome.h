/* adapters/outcome.h -- what an adapter says of an update that cannot be carried out; the same for
 * every adapter that uses update.h.
 *
 * Process and thread: the broker's loop thread.
 * Memory:   the outcome points at the update's sentence, which is valid until its next call.
 * Errors:   `status` is the update's own: INVALID, TOO_LARGE, NO_MEMORY.
 */
#ifndef WEIR_ADAPTERS_OUTCOME_H
#define WEIR_ADAPTERS_OUTCOME_H

#include "adapters/adapter.h"

/* update_parse() failed; `problem` says why. */
static inline void outcome_refuse_ops(struct adapter_outcome *outcome, enum weir_status status,
                                      const char *problem)
{
    outcome->status = status;
    if (status == WEIR_INVALID)
        outcome->code = "deserialization_error";
    if (status == WEIR_INVALID || status == WEIR_TOO_LARGE)
        outcome->sentence = span_text(problem);
}

/* update_apply() failed; `problem` as it left it. */
static inline void outcome_fail_update(struct adapter_outcome *outcome, enum weir_status status,
                                       const char *problem)
{
    outcome->status = status;
    if (problem)
        outcome->sentence = span_text(problem);
}

#endif

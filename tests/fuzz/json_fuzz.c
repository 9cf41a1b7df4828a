/* Fuzz target of shm/json.h: any bytes, and the invariants of json_invariants.h. */
#include <stdio.h>

#include "tests/fuzz/json_invariants.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *broken = json_invariants_check(span_of(data, bytes));
    if (broken != NULL) {
        (void)fprintf(stderr, "broken: %s\n", broken);
        abort();
    }
    return 0;
}

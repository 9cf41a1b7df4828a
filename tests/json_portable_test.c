/* All tests of json_test.c once more, on the validator as it is compiled where there is no SSE2.
 * The program's own copy takes the place of the library's. */
#define WEIR_JSON_PORTABLE 1
#include "shm/json.c"

#include "tests/json_test.c"

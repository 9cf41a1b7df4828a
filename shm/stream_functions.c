#include "shm/stream_functions.h"

#include <assert.h>

#define PREFIX "stream::"

/* In the order of enum wire_op, from 1. */
static const struct stream_function stream_functions[] = {
    {"stream::set", "STREAM_SET_ERROR", WIRE_OP_SET, true, true, true, false, true, false},
    {"stream::get", "STREAM_GET_ERROR", WIRE_OP_GET, true, true, true, false, false, true},
    {"stream::delete", "STREAM_DELETE_ERROR", WIRE_OP_DELETE, true, true, true, false, false,
     false},
    {"stream::list", "STREAM_GET_GROUP_ERROR", WIRE_OP_LIST, true, true, false, false, false, true},
    {"stream::list_groups", "STREAM_LIST_GROUPS_ERROR", WIRE_OP_LIST_GROUPS, true, false, false,
     false, false, true},
    {"stream::list_all", "STREAM_LIST_ALL_ERROR", WIRE_OP_LIST_ALL, false, false, false, false,
     false, true},
    {"stream::send", "STREAM_SEND_ERROR", WIRE_OP_SEND, true, true, false, true, true, false},
    {"stream::update", "STREAM_UPDATE_ERROR", WIRE_OP_UPDATE, true, true, true, false, true, false},
};
enum { STREAM_FUNCTION_COUNT = sizeof stream_functions / sizeof stream_functions[0] };

static_assert((int)STREAM_FUNCTION_COUNT == (int)WIRE_OP_UPDATE, "one row for each operation");

const struct stream_function *stream_function_by_name(struct span name)
{
    if (name.bytes < sizeof PREFIX || memcmp(name.data, PREFIX, sizeof PREFIX - 1) != 0)
        return NULL;
    for (unsigned i = 0; i < STREAM_FUNCTION_COUNT; i++) {
        if (span_equal(name, span_text(stream_functions[i].name)))
            return &stream_functions[i];
    }
    return NULL;
}

const struct stream_function *stream_function_by_op(uint64_t op)
{
    if (op == 0 || op > STREAM_FUNCTION_COUNT)
        return NULL;
    weir_assert((uint64_t)stream_functions[op - 1].op == op);
    return &stream_functions[op - 1];
}

const struct stream_function *stream_function_replaced_by(struct span id, struct span *stream)
{
    if (id.bytes < sizeof PREFIX || memcmp(id.data, PREFIX, sizeof PREFIX - 1) != 0 ||
        id.data[id.bytes - 1] != ')')
        return NULL;
    const char *open = memchr(id.data, '(', id.bytes);
    if (open == NULL)
        return NULL;
    const struct stream_function *function =
        stream_function_by_name(span_of(id.data, (size_t)(open - id.data)));
    if (function == NULL || function->op == WIRE_OP_SEND || function->op == WIRE_OP_LIST_ALL)
        return NULL;
    *stream = span_of(open + 1, (size_t)(id.data + id.bytes - 1 - (open + 1)));
    return function;
}

#include "shm/error_body.h"

#include "shm/json.h"

enum weir_status error_body_append(struct buffer *out, struct span code, struct span message)
{
    enum weir_status status = buffer_append(out, SPAN_LITERAL("{\"code\":"));
    if (status == WEIR_OK)
        status = json_append_string(out, code);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL(",\"message\":"));
    if (status == WEIR_OK)
        status = json_append_string(out, message);
    if (status == WEIR_OK)
        status = buffer_append(out, SPAN_LITERAL("}"));
    return status;
}

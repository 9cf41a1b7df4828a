/* gateway/printer.h -- JSON messages put together from ready parts; the first failure sticks.
 *
 * Process and thread: any. Memory: appends to the caller's buffer.
 */
#ifndef WEIR_GATEWAY_PRINTER_H
#define WEIR_GATEWAY_PRINTER_H

#include "shm/json.h"

struct printer {
    struct buffer *out;
    enum weir_status status;
};

/* Text as it is. */
static inline void print_span(struct printer *printer, struct span text)
{
    if (printer->status == WEIR_OK)
        printer->status = buffer_append(printer->out, text);
}
#define print_literal(printer, text) print_span((printer), SPAN_LITERAL(text))

/* A decoded string, quoted and escaped. */
static inline void print_string(struct printer *printer, struct span text)
{
    if (printer->status == WEIR_OK)
        printer->status = json_append_string(printer->out, text);
}

/* `,"name":` and the JSON text, when there is one. */
static inline void print_member(struct printer *printer, struct span name_with_marks,
                                struct span json)
{
    if (json.data == NULL)
        return;
    print_span(printer, name_with_marks);
    print_span(printer, json);
}

/* `,"name":` and the decoded string, when there is one. */
static inline void print_string_member(struct printer *printer, struct span name_with_marks,
                                       struct span text)
{
    if (text.data == NULL)
        return;
    print_span(printer, name_with_marks);
    print_string(printer, text);
}

#endif

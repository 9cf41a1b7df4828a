/* config/settings_value.h -- private to config/: giving one setting its value.
 *
 * Process:  any, before its loop runs.
 * Errors:   INVALID with a sentence that starts with `place` ("FILE:LINE" or "--set").
 */
#ifndef WEIR_CONFIG_SETTINGS_VALUE_H
#define WEIR_CONFIG_SETTINGS_VALUE_H

#include "config/settings.h"

/* What the writer of a value said about its type; the command line has no quotes, so everything is
 * PLAIN there. */
enum settings_form { SETTINGS_FORM_PLAIN, SETTINGS_FORM_QUOTED, SETTINGS_FORM_NOT_SCALAR };

struct settings_value {
    const char *place; /* where it stands, for the error */
    const char *shown; /* the key as its writer knows it, e.g. "port" in iii-stream */
    const char *text;  /* NUL-terminated; unused when not a scalar */
    enum settings_form form;
    bool is_typed; /* a file: plain numbers, booleans and null are not text */
};

/* The position of `name` in SETTINGS_MAP, or SETTINGS_KEY_COUNT. */
enum settings_key settings_find(const char *name);
/* The known key most like `name`, or NULL when none is near. */
const char *settings_nearest(const char *name);
enum weir_status settings_assign(struct settings *settings, enum settings_key key,
                                 const struct settings_value *value,
                                 struct weir_error *error) WEIR_MUST_CHECK;
/* A whole decimal number without sign; false when `text` is anything else or does not fit. */
bool settings_parse_number(const char *text, uint64_t *number);

/* What a file says of one stream. */
struct settings_stream_own {
    bool has_slow, has_lag_events;
    enum settings_slow slow;
    uint64_t lag_events;
};

/* The streams of one file, while it is read. */
struct settings_streams;
struct settings_streams *settings_streams_open(void);          /* NULL: no memory */
void settings_streams_close(struct settings_streams *streams); /* NULL is fine */
/* Copies. TOO_LARGE: no name of a stream. FULL: beyond SETTINGS_STREAMS_MAX. INVALID: it is there
 * already. */
enum weir_status settings_streams_add(struct settings_streams *streams, struct span name,
                                      const struct settings_stream_own *own) WEIR_MUST_CHECK;

/* The tokens of one file, while it is read. */
struct settings_tokens;
struct settings_tokens *settings_tokens_open(void);         /* NULL: no memory */
void settings_tokens_close(struct settings_tokens *tokens); /* NULL is fine */
/* Copies. FULL: beyond a bound of settings.h. INVALID: the token is there already. */
enum weir_status settings_tokens_add(struct settings_tokens *tokens, struct span token,
                                     struct span context) WEIR_MUST_CHECK;

#endif

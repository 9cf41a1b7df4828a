/* broker/catalogue_inside.h -- what the files of the catalogue share: the input of a question, the
 * printer of its answer, and a view of each noun as it is shown.
 *
 * Process and thread: the broker's loop thread; reads what routes.c and registry.c keep.
 * Memory:   views are spans into that and into the input; they are valid while nothing changes, which
 *           is as long as one answer is made.
 */
#ifndef WEIR_BROKER_CATALOGUE_INSIDE_H
#define WEIR_BROKER_CATALOGUE_INSIDE_H

#include "broker/catalogue.h"
#include "broker/registry_inside.h"
#include "broker/routes_inside.h"

enum { INPUT_WORKERS_MAX = 256, INPUT_FUNCTION_IDS_MAX = 32 };

/* ---- input (catalogue_input.c) ---- */

enum input_field {
    INPUT_SEARCH, /* lower case */
    INPUT_PREFIX,
    INPUT_WORKER,
    INPUT_RUNTIME,
    INPUT_STATUS,
    INPUT_TRIGGER_TYPE,
    INPUT_FUNCTION_ID,
    INPUT_NAME,
    INPUT_ID,
    INPUT_NAMESPACE,
    INPUT_TEXTS, /* those before are strings */
    INPUT_WORKERS = INPUT_TEXTS,
    INPUT_FUNCTION_IDS,
    INPUT_INCLUDE_INTERNAL,
    INPUT_COUNT
};
#define INPUT_BIT(field) (1u << (field))

struct input {
    struct span texts[INPUT_TEXTS]; /* data NULL: not given */
    bool has_list;
    struct span list[INPUT_WORKERS_MAX]; /* workers, or function_ids */
    size_t list_count;                   /* may be one more than there are: too many */
    bool include_internal;
    char *text;
    size_t text_bytes;
};

/* Read the fields of `wanted`; others are not looked at. INVALID: *problem is the sentence. */
enum weir_status input_read(struct input *input, struct span json, unsigned wanted,
                            const char **problem) WEIR_MUST_CHECK;
void input_fini(struct input *input);

/* True when the filter is not given, or fits. */
bool input_equals(const struct input *input, enum input_field field, struct span text);
bool input_prefixes(const struct input *input, struct span text);
/* Case-insensitive; `other` is searched too when its data is not NULL. */
bool input_finds(const struct input *input, struct span text, struct span other);
bool input_has_worker(const struct input *input, struct span worker_name);
/* engine::*, but for the queue's functions, is shown only when asked for. */
bool id_is_internal(struct span id);

/* ---- output (catalogue_print.c) ---- */

/* The first failure sticks: what follows appends nothing. */
struct printer {
    struct buffer *out;
    enum weir_status status;
};

void print_raw(struct printer *printer, const char *text);
/* `key` with a comma before it where one is due. */
void print_key(struct printer *printer, const char *key);
/* A comma where one is due, then `text`. */
void print_element(struct printer *printer, const char *text);
void print_text(struct printer *printer, const char *key, struct span text);
void print_text_or_null(struct printer *printer, const char *key, struct span text);
/* Cleaned; left out, or null, when nothing is left. */
void print_shown(struct printer *printer, const char *key, struct span text, bool is_nullable);
/* A worker's own JSON; left out when it is none, so that the answer always is JSON. */
void print_json(struct printer *printer, const char *key, struct span json);
void print_number(struct printer *printer, const char *key, uint64_t number);
void print_bool(struct printer *printer, const char *key, bool value);

/* ---- entries ---- */

/* What sorts a list, and where the rest of the entry is. */
struct entry {
    struct span first, second; /* compared as bytes, in this order */
    const void *subject;
};
struct entries {
    struct entry *entries;
    size_t count, capacity;
    enum weir_status status; /* the first failure */
};
void entries_add(struct entries *entries, struct span first, struct span second,
                 const void *subject);
void entries_sort(struct entries *entries);
void entries_fini(struct entries *entries);

/* The part of an id before its first "::". */
struct span id_worker_name(struct span id);
/* What the session calls itself, else by `id`. */
struct span session_worker_name(const struct session *session, struct span id);

/* ---- nouns ---- */

/* A builtin function, in the default namespace. */
struct builtin_function {
    enum catalogue_builtin builtin;
    const char *id;
    const char *worker_name;
    const char *description;
};
const struct builtin_function *builtin_functions(size_t *count);

/* A function as it is shown. */
struct function_view {
    struct span space, id, worker_name;
    struct span description, request_format, response_format, metadata; /* data NULL: none */
};
struct function_view function_view_of(const struct function *function);
struct function_view builtin_view_of(const struct builtin_function *builtin);
/* False: no such function. */
bool function_view_find(const struct catalogue_sources *sources, struct span space, struct span id,
                        struct function_view *view);
void print_function_entry(struct printer *printer, const struct function_view *view);
void print_function_detail(struct printer *printer, const struct catalogue_sources *sources,
                           const struct function_view *view);

/* A worker's type, or one of weir's own. */
struct type_view {
    const struct trigger_group *group; /* NULL: no trigger is of it */
    struct span space, id, worker_name, description;
    struct span config_schema, call_schema;  /* data NULL: none */
    const struct trigger_provider *provider; /* NULL: weir's own */
};
struct type_view type_view_of(const struct trigger_provider *provider);
struct type_view own_type_view_of(const struct catalogue_sources *sources,
                                  const struct trigger_type *type);
void print_type_entry(struct printer *printer, const struct type_view *view);
void print_trigger_entry(struct printer *printer, const struct trigger *trigger);
/* A walk over all live triggers; `*bucket` starts at 0. NULL at the end. */
const struct trigger *live_trigger_next(const struct catalogue_sources *sources, size_t *bucket,
                                        const struct trigger *previous);

/* ---- the answers ---- */

/* Fails as a struct printer does; REFUSED: `problem` was filled in. */
typedef void catalogue_answerer(const struct catalogue_sources *sources, const struct input *input,
                                struct printer *printer, struct catalogue_problem *problem);

catalogue_answerer functions_list, functions_info, workers_list, workers_info, registry_list,
    registry_info, registered_list, registered_info;

void catalogue_refuse(struct printer *printer, struct catalogue_problem *problem, const char *code,
                      const char *sentence);

#endif

/* gateway/access.h -- what a session of a worker listener may do (PROTOCOL 10.4): decisions only,
 * no I/O.
 *
 *   call of (namespace, id):
 *     in forbidden_functions                          --> REFUSED
 *     a builtin everybody needs (infrastructure ids)  --> ALLOWED
 *     a pattern of `namespaces` for that namespace    --> ALLOWED
 *     in allowed_functions, namespace default         --> ALLOWED
 *     a `match` rule of the listener                  --> ALLOWED
 *     a `metadata` rule of the listener               --> ALLOWED; ASK while it is not known
 *     anything else                                   --> REFUSED
 *
 * allowed_functions holds ids, forbidden_functions ids or patterns: read as patterns they forbid
 * more, never less, and in every namespace. In a pattern `*` stands for any run of bytes. The
 * builtin functions are global and count as those of the namespace default whichever is named.
 *
 * Process and thread: any; gateway, loop thread in practice.
 * Memory:   an access owns a copy of what it was made from, at most ACCESS_RESULT_BYTES_MAX; it
 *           refers to the settings, which stay where they are.
 * Errors:   INVALID with a sentence for an answer of auth_function_id that has the wrong shape.
 */
#ifndef WEIR_GATEWAY_ACCESS_H
#define WEIR_GATEWAY_ACCESS_H

#include "config/settings.h"
#include "shm/json.h"

enum {
    ACCESS_RESULT_BYTES_MAX = 1024 * 1024, /* of an auth answer; a larger one is refused */
    ACCESS_PATTERNS_MAX = 16384,           /* of all lists of it together; likewise */
    ACCESS_TEXT_BYTES_MAX = 256 * 1024,    /* of their text: bounds the work of a decision */
};

enum access_decision { ACCESS_REFUSED, ACCESS_ALLOWED, ACCESS_ASK };

struct access;

/* `result` is what auth_function_id answered, data NULL: the listener has none. INVALID, TOO_LARGE
 * and NO_MEMORY fill `*problem`, static text. */
enum weir_status access_make(struct access **access, const struct settings *settings,
                             const struct settings_listener *listener, struct span result,
                             const char **problem) WEIR_MUST_CHECK;
void access_free(struct access *access); /* NULL is fine */

/* `metadata`: of the function as it is registered (JSON_ABSENT: it has none); NULL: not known. */
enum access_decision access_call(const struct access *access, struct span name_space,
                                 struct span function, const struct json_value *metadata);
/* Whether everything is allowed: the listener has no rbac block. */
bool access_is_open(const struct access *access);
bool access_may_register_functions(const struct access *access);
bool access_may_register_trigger_types(const struct access *access);
/* allowed_trigger_types null is all, but for weir's own types other than `stream`, which have to be
 * named: stream:join decides about everybody's joins and is told their contexts, as stream:leave is,
 * and the engine:: ones tell of more than a session is shown. */
bool access_may_use_trigger_type(const struct access *access, struct span type);
/* JSON. */
struct span access_context(const struct access *access);
/* function_registration_prefix p: the session's function f is filed as p::f. Bytes of the filed
 * name, which is written to `out` unless that is NULL. */
size_t access_file_name(const struct access *access, struct span own, char *out);
/* The other way; a name without the prefix stays. */
struct span access_show_name(const struct access *access, struct span filed);

/* A builtin of the server's own: engine::*, but for engine::queue::*, which a worker provides. */
bool access_is_engine_function(struct span function);
/* `*` stands for any run of bytes, the empty one too. Linear in pattern and text. */
bool access_pattern_matches(struct span pattern, struct span text);
/* Equal as JSON scalars; numbers by value. `literal` is JSON text that is no string. */
bool access_literal_equals(struct span literal, struct json_value value);

#endif

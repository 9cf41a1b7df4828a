/* gateway/auth.h -- who may open a stream socket (PROTOCOL 7.1, 7.2): decided before the 101.
 *
 *   upgrade --a token of auth_tokens?--yes--> accepted, with that token's context
 *              |no
 *              +--auth_function?--no--> 401
 *                   |yes
 *                   call(headers, path, query_params, addr)
 *                     object, not {"unauthorized":true} --> accepted, with its "context"
 *                     {"unauthorized":true}             --> 401
 *                     anything else, a handler's error  --> 401, or accepted with auth_failure: allow
 *                     late, not registered, broker away --> 503, likewise
 *
 * The input is taken apart from the request's own text, at most HANDSHAKE_BYTES_MAX of it, in one
 * pass; nothing in it is decoded. A known token costs no call. Tokens are compared in a time that
 * does not depend on how much of one is right.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a ticket per socket that waits, AUTH_PENDING_MAX of them: one more is refused with 503. A
 *           context handed out is malloc'd, at most SETTINGS_CONTEXT_BYTES_MAX, and the receiver's.
 * Errors:   a failure is counted; a line a second at most tells what fails.
 */
#ifndef WEIR_GATEWAY_AUTH_H
#define WEIR_GATEWAY_AUTH_H

#include "config/settings.h"
#include "gateway/caller.h"
#include "gateway/ws.h"

enum { AUTH_PENDING_MAX = 4096 };

struct auth;
struct auth_ticket;

enum auth_verdict {
    AUTH_ACCEPTED,
    AUTH_REFUSED,
    AUTH_PENDING, /* auth_done follows, unless the ticket is cancelled */
};

/* What was decided. `http_status` is set when refused: 401 or 503. `context` is compact JSON, data
 * NULL: none. */
struct auth_decision {
    unsigned http_status;
    struct span context;
};
/* The ticket is void. http_status 0: accepted. */
typedef void auth_done(void *context, struct auth_decision decision);

/* NULL: no memory. `settings` stays where it is. */
struct auth *auth_open(const struct settings *settings, const struct caller *caller,
                       struct counters *counters);
void auth_close(struct auth *auth); /* every ticket was done or cancelled */

/* Decide about a request. Never calls `done` from inside. */
enum auth_verdict auth_ask(struct auth *auth, const struct ws_request *request, auth_done *done,
                           void *context, struct auth_ticket **ticket,
                           struct auth_decision *decision) WEIR_MUST_CHECK;
void auth_cancel(struct auth_ticket *ticket);

/* ---- parts, for tests ---- */

/* Append the input of auth_function as JSON. */
enum weir_status auth_input_append(struct buffer *out,
                                   const struct ws_request *request) WEIR_MUST_CHECK;
/* The next place a request may carry a token: "Authorization: Bearer T" (the last such header),
 * what follows "Authorization" in the list of subprotocols, the query parameter `token` (its last
 * value, %XX decoded into `scratch` of query.bytes). data NULL: no token there. */
enum auth_place { AUTH_HEADER, AUTH_SUBPROTOCOL, AUTH_QUERY, AUTH_PLACES };
struct span auth_token(const struct ws_request *request, enum auth_place place, char *scratch);

#endif

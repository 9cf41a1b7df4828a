/* shm/wire.h -- messages between processes on a unix stream socket: gateway <-> broker, and
 * libweir <-> gateway.
 *
 * Frame, little-endian:
 *    0  u32  length of what follows the first 4 bytes (12 + body)
 *    4  u16  type, numbers below; never reused
 *    6  u16  flags: enum wire_flag, zero unless a type says otherwise
 *    8  u64  id: correlation id, chosen by the side that asks, echoed by the side that answers;
 *            0 when nothing is asked
 *   16       body: one msgpack array of scalars, str and bin, in the order of the type's field list
 *
 * A receiver skips unknown fields at the end of the array and takes missing ones as nil, so that
 * either side may be newer. JSON payloads travel as bin and are never decoded on the way. Names
 * travel as bin, decoded UTF-8.
 *
 * Process and thread: any; one wire_reader per connection, one thread at a time.
 * Memory:   encoding appends to a struct buffer. Decoding yields spans into the frame; nothing is
 *           copied or kept.
 * Types:    a frame of an unknown type is checked as any other and delivered without fields; the
 *           receiver decides. Flags that are not known, or not of this type, are CORRUPT, because
 *           they could change the meaning of the rest.
 * Errors:   the length is checked against its limit before anything is reserved; containers inside
 *           the array, more than WIRE_FIELDS_MAX fields, lengths beyond the frame and wrong field
 *           types are CORRUPT, and the connection that sent them is to be closed.
 */
#ifndef WEIR_SHM_WIRE_H
#define WEIR_SHM_WIRE_H

#include "shm/span.h"

#define WIRE_VERSION 1u
/* In the id of an INVOKE: nobody waits, an answer need not be sent. */
#define WIRE_VOID_ID_BIT (1ull << 63)

enum wire_flag {
    /* Of a STREAM with an id: nobody waits for its answer, only its sender keeps it until it is
     * answered. The answer has no result, and may be held back for a short time so that many leave
     * together; what is answered behind it takes it along, so that answers stay in order. */
    WIRE_FLAG_UNHURRIED = 1,
};

enum {
    WIRE_HEADER_BYTES = 16,
    WIRE_FIELDS_KNOWN_MAX = 8, /* the longest field list below */
};

/* name, number, fields. Field kinds: u = unsigned integer, b = bin or str (may be nil: span.data ==
 * NULL). */
#define WIRE_TYPE_MAP(X)                                                                           \
    /* gateway or libweir opens: protocol version, pid, gateway index, timestamp floor (ms), */    \
    /* origin (a random number of this life of the gateway), number of the log's frame up to */    \
    /* which it has read the ring of an earlier broker (0: none) */                                \
    X(ATTACH, 1, "uuuuuu")                                                                         \
    /* broker accepts; carries SCM_RIGHTS {segment, doorbell eventfd, control page}: */            \
    /* version, generation, reader slot, 1 = it has all writes earlier brokers have answered or */ \
    /* shown, and knows which of this gateway's requests it has (they may be asked again); */      \
    /* ring position from which to read on (when 1; all bits set: it is lapped), number of the */  \
    /* log's frame before it */                                                                    \
    X(ATTACHED, 2, "uuuuuu")                                                                       \
    /* either side, before it closes: code, sentence */                                            \
    X(REFUSED, 3, "bb")                                                                            \
    /* libweir opens a worker session at a gateway: version, worker name, metadata JSON, */        \
    /* namespace, and when it comes back: previous worker id, its token */                         \
    X(HELLO, 4, "ubbbbb")                                                                          \
    X(WELCOME, 5, "ubb") /* gateway accepts: version, worker id (UUID), reattach token */          \
                                                                                                   \
    /* builtin stream functions: op (enum wire_op), stream, group, item (nil: none), event type */ \
    /* (send), data JSON (set, send; ops for update), traceparent, baggage. It may be */           \
    /* WIRE_FLAG_UNHURRIED */                                                                      \
    X(STREAM, 10, "ubbbbbbb")                                                                      \
    /* the answer: error code (nil: success), error message, result JSON (nil: no result key), */  \
    /* error JSON of a custom adapter's function (nil: code and message are the error) */          \
    X(STREAM_RESULT, 11, "bbbb")                                                                   \
                                                                                                   \
    /* a worker session lives on this gateway: session, worker id, ip address */                   \
    X(SESSION_OPEN, 20, "ubb")                                                                     \
    X(SESSION_INFO, 21, "ub") /* session, data of engine::workers::register (JSON) */              \
    X(SESSION_CLOSED, 22, "u")                                                                     \
    /* session, namespace, function id, description, request format JSON, response format JSON, */ \
    /* metadata JSON */                                                                            \
    X(FUNCTION_REGISTER, 23, "ubbbbbb")                                                            \
    X(FUNCTION_UNREGISTER, 24, "ubb") /* session, namespace, function id */                        \
    /* broker -> gateway: session, code, namespace, function id, owner worker id */                \
    X(FUNCTION_REJECTED, 25, "ubbbb")                                                              \
    /* a worker is back and asks to retire its previous connection: its new session, previous */   \
    /* worker id, token */                                                                         \
    X(SESSION_REATTACH, 26, "ubb")                                                                 \
    /* broker -> the gateway that has it; id always set: session, token. Its SESSION_CLOSED is */  \
    /* the answer, or else SESSION_REATTACHED when the token is wrong */                           \
    X(SESSION_EVICT, 27, "ub")                                                                     \
    /* ... -> broker -> who asked; id as in SESSION_EVICT resp. SESSION_REATTACH: 1 = retired, */  \
    /* 0 = nothing happened */                                                                     \
    X(SESSION_REATTACHED, 28, "u")                                                                 \
    /* broker -> gateway, the session is to be closed (unique_worker_names): session, code, */     \
    /* namespace, worker name, owner worker id */                                                  \
    X(SESSION_REJECTED, 29, "ubbbb")                                                               \
                                                                                                   \
    /* call a function anywhere; id 0 = void: caller session, namespace, function id, data */      \
    /* JSON, metadata JSON, traceparent, baggage */                                                \
    X(CALL, 30, "ubbbbbb")                                                                         \
    /* broker -> the gateway that holds the executor; id always set: executor session, function */ \
    /* id, data JSON, metadata JSON, traceparent, baggage */                                       \
    X(INVOKE, 31, "ubbbbb")                                                                        \
    /* executor -> broker -> caller; id as in INVOKE resp. CALL: result JSON (nil: no result */    \
    /* key), error JSON (nil: none), traceparent, baggage */                                       \
    X(RESULT, 32, "bbbb")                                                                          \
    /* nobody waits any more: gateway -> broker of a call it has made itself, id as in CALL; */    \
    /* broker -> executor's gateway, id as in INVOKE: 0 resp. executor session. What comes as */   \
    /* an answer finds nobody. */                                                                  \
    X(CALL_CANCEL, 33, "u")                                                                        \
                                                                                                   \
    /* Triggers (PROTOCOL 2.11, 8). A trigger is known by its owner's session and its id. */       \
    /* libweir says the same to its gateway, with session 0. */                                    \
    /* become the provider of a type: session, namespace, type, description, trigger request */    \
    /* format JSON, call request format JSON */                                                    \
    X(TRIGGER_TYPE_REGISTER, 40, "ubbbbb")                                                         \
    X(TRIGGER_TYPE_UNREGISTER, 41, "ubb") /* session, namespace, type */                           \
    /* session, id, type, function id, config JSON, metadata JSON, namespace of the function, */   \
    /* of the provider (nil: the session's, then default) */                                       \
    X(TRIGGER_REGISTER, 42, "ubbbbbbb")                                                            \
    X(TRIGGER_UNREGISTER, 43, "ub") /* session, id */                                              \
    /* the provider's answer to TRIGGER_BIND on its way to the broker, a failure on its way to */  \
    /* the owner: session, id, type, function id, error JSON (nil: bound) */                       \
    X(TRIGGER_RESULT, 44, "ubbbb")                                                                 \
    /* broker -> the provider's gateway: provider's session, then as TRIGGER_REGISTER */           \
    X(TRIGGER_BIND, 45, "ubbbbbbb")                                                                \
    X(TRIGGER_UNBIND, 46, "ubb") /* provider's session, id, type */                                \
    /* broker -> every gateway, a stream:join trigger: handle, namespace, function id, stream */   \
    /* name (nil: any), condition function id (nil: none), metadata JSON, 1 = away: its worker */  \
    /* has gone, the gate is shut. gateway -> broker, handle 0: away, as an earlier broker has */  \
    /* said */                                                                                     \
    X(GATE_BIND, 47, "ubbbbbu")                                                                    \
    X(GATE_UNBIND, 48, "uu") /* handle; 0 = withdrawn, 1 = away from now on */                     \
    /* gateway -> broker: what it knew of gates is said; broker -> every gateway: all of them */   \
    /* have said so */                                                                             \
    X(GATES_TOLD, 49, "")                                                                          \
                                                                                                   \
    /* stream:leave. The broker calls the handlers, so that a gateway's death is a leave as */     \
    /* well. */                                                                                    \
    /* broker -> every gateway: 1 = say who is there and who comes and goes, 0 = no more */        \
    X(PRESENCE_WANTED, 50, "u")                                                                    \
    /* gateway's number of the subscription, stream name, payload of its leave (JSON) */           \
    X(PRESENCE_JOINED, 51, "ubb")                                                                  \
    /* number; the broker says the same back when it has fired the leave */                        \
    X(PRESENCE_LEFT, 52, "u")                                                                      \
                                                                                                   \
    /* broker -> every gateway: the stream's items are a worker's functions (PROTOCOL 5): 1 = */   \
    /* yes, 0 = no more; name */                                                                   \
    X(STREAM_CUSTOM, 60, "ub")                                                                     \
                                                                                                   \
    /* Byte channels (PROTOCOL 2.17). An end is a gateway's number for one of its sockets. */      \
    /* gateway asks, id set: end, channel id, access key, direction (1 read, 2 write) */           \
    X(CHANNEL_OPEN, 70, "ubbu")                                                                    \
    /* 0 unknown, 1 open, 2 that end is taken; messages the writer may send at first */            \
    X(CHANNEL_OPENED, 71, "uu")                                                                    \
    /* end of the sender resp. of the receiver, 1 = binary, message */                             \
    X(CHANNEL_DATA, 72, "uub")                                                                     \
    X(CHANNEL_CREDIT, 73, "uu") /* reader's end resp. writer's end, messages */                    \
    X(CHANNEL_CLOSED, 74, "u")  /* end */

enum wire_type {
#define WIRE_TYPE_ENUM(name, number, fields) WIRE_##name = number,
    WIRE_TYPE_MAP(WIRE_TYPE_ENUM)
#undef WIRE_TYPE_ENUM
};

enum wire_op {
    WIRE_OP_SET = 1,
    WIRE_OP_GET,
    WIRE_OP_DELETE,
    WIRE_OP_LIST,
    WIRE_OP_LIST_GROUPS,
    WIRE_OP_LIST_ALL,
    WIRE_OP_SEND,
    WIRE_OP_UPDATE,
};

struct wire_field {
    uint64_t number;  /* kind u */
    struct span span; /* kind b; data == NULL: nil */
};

struct wire_message {
    enum wire_type type;
    uint32_t flags; /* enum wire_flag */
    uint64_t id;
    /* In the type's order; fields the sender left out are 0 / nil. */
    struct wire_field fields[WIRE_FIELDS_KNOWN_MAX];
};

/* One connection's decoder: what it refused, and why. Open returns NULL without memory; close takes
 * NULL. */
struct wire_reader;
struct wire_reader *wire_reader_open(void);
void wire_reader_close(struct wire_reader *reader);

/* Why the last wire_read() was CORRUPT or TOO_LARGE, for the log line of the close; static text, ""
 * when it was not. */
const char *wire_reader_problem(const struct wire_reader *reader);

/* Decode the first frame of `input`. OK: *frame_bytes is what to consume. EMPTY: not whole yet;
 * *frame_bytes is the size of the whole frame when its length is there, else 0, and nothing behind
 * the header was looked at. CORRUPT or TOO_LARGE: close the connection. */
enum weir_status wire_read(struct wire_reader *reader, struct span input,
                           struct wire_message *message, size_t *frame_bytes) WEIR_MUST_CHECK;

/* Append one frame. `fields` has as many entries as the type's field list. FULL, NO_MEMORY and
 * TOO_LARGE (beyond WIRE_FRAME_BYTES_MAX) leave `out` as it was. */
enum weir_status wire_append(struct buffer *out, enum wire_type type, uint64_t id,
                             const struct wire_field *fields) WEIR_MUST_CHECK;
/* The same with flags that the type knows. */
enum weir_status wire_append_flagged(struct buffer *out, enum wire_type type, uint32_t flags,
                                     uint64_t id, const struct wire_field *fields) WEIR_MUST_CHECK;

#define WIRE_NUMBER(value) ((struct wire_field){.number = (value)})
#define WIRE_SPAN(value) ((struct wire_field){.span = (value)})
#define WIRE_NIL ((struct wire_field){0})

const char *wire_type_name(enum wire_type type); /* "?" for an unknown one */

#endif

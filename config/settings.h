/* config/settings.h -- what a person can set: one table gives the parser, `--help`, and
 * docs/configuration.md.
 *
 * A file in the iii engine's YAML shape (`workers:` with `iii-stream` and `iii-worker-manager`)
 * plus a `weir:` mapping with the keys of the table; `--set KEY=VALUE` on any command overrides
 * both. Sizes take KiB, MiB, GiB, TiB; times are ms.
 *
 * Two things are not in the table, mappings that stand in the file only: `auth_tokens`, for a token on
 * a command line could be read by anybody on the machine (no error names one), and `streams`, what
 * single streams do otherwise than slow_subscribers and lag_events say.
 *
 * Files:    settings.c is the table, values and relations; settings_file.c is YAML, the only file
 *           that knows libyaml; settings_tokens.c and settings_streams.c keep these two; listeners.c is the data of worker
 *           listeners and their rules.
 * Process:  any, before its loop runs.
 * Memory:   plain values; auth_tokens and streams are owned, and given back by
 *           settings_fini().
 * Errors:   INVALID with one sentence that names file and line (or --set), what is wrong, and the
 *           remedy; SYSTEM when the file cannot be read; TOO_LARGE beyond the bounds below. What
 *           was set before the error stays set.
 */
#ifndef WEIR_CONFIG_SETTINGS_H
#define WEIR_CONFIG_SETTINGS_H

#include <stdio.h>

#include "shm/limits.h"
#include "shm/span.h"

enum {
    SETTINGS_TEXT_BYTES = 256, /* longest text value with its NUL; longer is refused */
    SETTINGS_FILE_BYTES_MAX =
        1 << 20, /* the file, before and after ${NAME} is replaced; larger is refused */
    SETTINGS_FILE_DEPTH_MAX = 32,      /* nesting of the file; deeper is refused */
    SETTINGS_RUN_DIR_BYTES_MAX = 88,   /* a socket's path in it must fit sockaddr_un */
    SETTINGS_DATA_DIR_BYTES_MAX = 200, /* leaves room for files' names; longer is refused */
    /* Less is raised to it in an adapter, as the iii engine does, and refused elsewhere. */
    SETTINGS_SAVE_INTERVAL_MS_MIN = 100,
    /* What a log segment needs beside the largest value: its header, the frame's and the record's,
     * the names of the item. Less is refused. */
    SETTINGS_SEGMENT_ROOM_BYTES = 2 * 1024 * 1024,
    /* Further worker listeners, and the rules of all of them together; more is refused. */
    SETTINGS_LISTENERS_MAX = 8,
    SETTINGS_RULES_MAX = 256,
    SETTINGS_CONDITIONS_MAX = 512,
    SETTINGS_RULE_BYTES_MAX = 64 * 1024,
};

/* auth_tokens. More, or larger: the file is refused. */
enum {
    SETTINGS_TOKENS_MAX = 1024,
    SETTINGS_TOKEN_BYTES_MAX = 512,
    SETTINGS_CONTEXT_BYTES_MAX = 64 * 1024, /* one token's context as JSON */
    SETTINGS_TOKENS_BYTES_MAX = 4 * 1024 * 1024,
};

/* streams. More: the file is refused. */
enum { SETTINGS_STREAMS_MAX = 256 };

enum settings_io { SETTINGS_IO_AUTO, SETTINGS_IO_URING, SETTINGS_IO_PLAIN };
/* AUTO is gone after settings_resolve(). */
enum settings_durability {
    SETTINGS_DURABILITY_AUTO,
    SETTINGS_DURABILITY_MEMORY,
    SETTINGS_DURABILITY_WRITTEN,
    SETTINGS_DURABILITY_SYNCED,
};
enum settings_auth_failure { SETTINGS_AUTH_DENY, SETTINGS_AUTH_ALLOW };
enum settings_join_gate { SETTINGS_GATE_CLOSED, SETTINGS_GATE_OPEN };
enum settings_slow { SETTINGS_SLOW_LATEST, SETTINGS_SLOW_LOSSLESS, SETTINGS_SLOW_DISCONNECT };

/* name, kind, default, minimum, maximum, unit, sentence. Kinds: TEXT, NUMBER, BYTES, CHOICE, BOOL.
 * In place of a unit a CHOICE has its words, in the order of its enum, whose first is 0. */
#define SETTINGS_MAP(X)                                                                            \
    X(stream_host, TEXT, "0.0.0.0", 0, 0, "",                                                      \
      "address of the stream port (subscribers, page, health)")                                    \
    X(stream_port, NUMBER, 3112, 0, 65535, "", "stream port; 0 picks a free one")                  \
    X(worker_host, TEXT, "127.0.0.1", 0, 0, "", "address of the worker port (iii-sdk)")            \
    X(worker_port, NUMBER, 49134, 0, 65535, "", "worker port; 0 picks a free one")                 \
    X(admin, TEXT, "127.0.0.1:3114", 0, 0, "", "HOST:PORT for metrics and health, or false")       \
    X(gateways, NUMBER, 0, 0, 64, "", "gateway processes; 0 is one per core")                      \
    X(run_dir, TEXT, "", 0, 0, "",                                                                 \
      "directory for sockets and locks; empty: $XDG_RUNTIME_DIR/weir or /tmp/weir-UID")            \
    X(ring_bytes, BYTES, RING_BYTES_DEFAULT, RING_BYTES_MIN, RING_BYTES_MAX, "B",                  \
      "shared event ring")                                                                         \
    X(store_bytes, BYTES, 0, STORE_BYTES_MIN, STORE_BYTES_MAX, "B",                                \
      "shared item store; 0: 4 GiB or half of memory")                                             \
    X(value_bytes_max, BYTES, VALUE_BYTES_MAX, 1024, VALUE_BYTES_MAX, "B", "largest item value")   \
    X(items_max, NUMBER, 100000000, 1, 4000000000, "", "items in the store")                       \
    X(groups_max, NUMBER, 10000000, 1, 1000000000, "", "groups in the store")                      \
    X(empty_groups_max, NUMBER, 100000, 1, 100000000, "",                                          \
      "groups remembered after their last item is gone")                                           \
    X(data_dir, TEXT, "", 0, 0, "",                                                                \
      "directory of the log and its snapshots, relative to the working directory; empty: items "   \
      "are kept in memory only")                                                                   \
    X(durability, CHOICE, SETTINGS_DURABILITY_AUTO, 0, 0, "auto, memory, written, synced",         \
      "when a write is answered and shown: memory: at once; written: the kernel has it (survives " \
      "the broker's death); synced: it is on the disk (survives power loss); auto: synced, or "    \
      "written when save_interval_ms is given, or memory without data_dir")                        \
    X(save_interval_ms, NUMBER, 5000, SETTINGS_SAVE_INTERVAL_MS_MIN, 3600000, "ms",                \
      "level written: the disk is synced this often")                                              \
    X(log_segment_bytes, BYTES, 64 * 1024 * 1024, 4 * 1024 * 1024, 1024 * 1024 * 1024, "B",        \
      "size of a log file")                                                                        \
    X(snapshot_log_bytes, BYTES, 256 * 1024 * 1024, 1024 * 1024, UINT64_C(1) << 40, "B",           \
      "a snapshot is written when the log behind the last one is larger than this, and larger "    \
      "than that snapshot")                                                                        \
    X(snapshot_interval_ms, NUMBER, 3600000, 0, INT32_MAX, "ms",                                   \
      "and at least this often when anything was written; 0: by size only")                        \
    X(io, CHOICE, SETTINGS_IO_AUTO, 0, 0, "auto, uring, plain",                                    \
      "auto, uring or plain system calls")                                                         \
    X(flush_interval_ms, NUMBER, 5, 0, 20, "ms",                                                   \
      "longest time events wait to share a send under load; 0: never")                             \
    X(slow_subscribers, CHOICE, SETTINGS_SLOW_LATEST, 0, 0, "latest, lossless, disconnect",        \
      "what a subscriber further behind than lag_events gets: latest: the newest event of each "   \
      "item; lossless: every event the ring still has; disconnect: close 1013; what the ring has " \
      "dropped is a fresh sync")                                                                   \
    X(lag_events, NUMBER, 1024, 0, 16384, "",                                                      \
      "events a subscriber may be behind and still get every one, whatever slow_subscribers says") \
    X(drain_ms, NUMBER, 5000, 0, 600000, "ms",                                                     \
      "a gateway that is to stop closes its sockets spread over this time")                        \
    X(retry_ms, NUMBER, 500, 0, 60000, "ms",                                                       \
      "least time sockets closed by the server are told to wait; more, at random, when they are "  \
      "many")                                                                                      \
    X(write_wait_ms, NUMBER, 5000, 0, 60000, "ms",                                                 \
      "how long writes and calls wait for a broker that is away, and writes for one that is "      \
      "silent")                                                                                    \
    X(write_wait_bytes_max, BYTES, 64 * 1024 * 1024, 1024 * 1024, 1024 * 1024 * 1024, "B",         \
      "writes and calls waiting per gateway; as much again of stream calls in flight is kept, to " \
      "be asked again of the next broker")                                                         \
    X(handshake_timeout_ms, NUMBER, 10000, 100, 600000, "ms", "time to finish a handshake")        \
    X(ping_interval_ms, NUMBER, 20000, 0, 3600000, "ms", "server pings; 0: none")                  \
    X(idle_timeout_ms, NUMBER, 60000, 0, 36000000, "ms",                                           \
      "close after this long without a frame, or reading of what waits; 0: never")                 \
    X(connections_max, NUMBER, 100000, 1, 10000000, "", "sockets per gateway")                     \
    X(subscriptions_max, NUMBER, 1000, 1, 1000000, "", "subscriptions per socket")                 \
    X(session_calls_max, NUMBER, 4096, 1, 1000000, "",                                             \
      "calls of one worker in flight; reading pauses beyond")                                      \
    X(session_calls_bytes_max, BYTES, 32 * 1024 * 1024, 64 * 1024, 1024 * 1024 * 1024, "B",        \
      "the same in bytes")                                                                         \
    X(origins, TEXT, "", 0, 0, "",                                                                 \
      "allowed Origin headers on the stream port, comma separated; empty: any")                    \
    X(subprotocols, TEXT, "", 0, 0, "", "further subprotocols to accept, comma separated")         \
    X(tls_certificate, TEXT, "", 0, 0, "", "PEM file: serve the stream port over TLS")             \
    X(tls_key, TEXT, "", 0, 0, "", "PEM file of the certificate's key")                            \
    X(duplicate_deliveries, BOOL, 0, 0, 1, "",                                                     \
      "one copy per matching subscription, as the iii engine does")                                \
    X(auth_function, TEXT, "", 0, 0, "",                                                           \
      "function asked before a stream socket is accepted; empty: none")                            \
    X(auth_failure, CHOICE, SETTINGS_AUTH_DENY, 0, 0, "deny, allow",                               \
      "deny, or allow sockets whose auth_function fails, as the iii engine does")                  \
    X(auth_timeout_ms, NUMBER, 5000, 100, 600000, "ms",                                            \
      "time auth_function has, and the functions of a worker listener")                            \
    X(join_gate, CHOICE, SETTINGS_GATE_CLOSED, 0, 0, "closed, open",                               \
      "closed, or open: joins pass when a stream:join handler fails, as with the iii engine")      \
    X(gate_timeout_ms, NUMBER, 5000, 100, 600000, "ms", "time all handlers of a join have")        \
    X(trigger_timeout_ms, NUMBER, 30000, 100, 3600000, "ms",                                       \
      "time a trigger's handler or condition has")                                                 \
    X(trigger_queue_max, NUMBER, 65536, 1, 1048576, "", "events that wait for one trigger")        \
    X(custom_timeout_ms, NUMBER, 10000, 100, 3600000, "ms",                                        \
      "time a custom stream adapter's function has")                                               \
    X(custom_fallback, BOOL, 0, 0, 1, "",                                                          \
      "use the store while a custom adapter's worker is away, as the iii engine does")             \
    X(unique_worker_names, BOOL, 0, 0, 1, "",                                                      \
      "refuse a second worker of the same name, as the iii engine does since 0.23")

/* A part of settings.rule_text, see settings_text_span(). */
struct settings_text {
    uint32_t offset, bytes;
};

enum settings_condition_kind {
    SETTINGS_CONDITION_STRING,  /* the metadata's value is this string */
    SETTINGS_CONDITION_PATTERN, /* it is a string this pattern matches */
    SETTINGS_CONDITION_LITERAL, /* it is this JSON number, boolean or null */
};

struct settings_condition {
    struct settings_text key, value;
    enum settings_condition_kind kind;
};

/* One entry of expose_functions (PROTOCOL 10.4): functions whose id `match` matches or, when there
 * are conditions, whose metadata meets all of them. */
struct settings_rule {
    struct settings_text match;
    struct settings_text name_space;
    uint32_t condition_first, condition_count;
};

/* A worker listener beside the plain worker port (PROTOCOL 10.4). Texts not given are empty. */
struct settings_listener {
    char host[SETTINGS_TEXT_BYTES];
    uint64_t port; /* 0 picks a free one */
    uint64_t handshake_timeout_ms;
    char middleware_function[SETTINGS_TEXT_BYTES];
    bool has_rbac; /* without, everything is allowed */
    char auth_function[SETTINGS_TEXT_BYTES];
    char function_hook[SETTINGS_TEXT_BYTES];
    char trigger_hook[SETTINGS_TEXT_BYTES];
    char trigger_type_hook[SETTINGS_TEXT_BYTES];
    uint32_t rule_first, rule_count;
    uint32_t line; /* of its entry in the file, for messages */
};

struct settings {
    char stream_host[SETTINGS_TEXT_BYTES];
    uint64_t stream_port;
    char worker_host[SETTINGS_TEXT_BYTES];
    uint64_t worker_port;
    char admin[SETTINGS_TEXT_BYTES];
    uint64_t gateways;
    char run_dir[SETTINGS_TEXT_BYTES];
    uint64_t ring_bytes, store_bytes, value_bytes_max, items_max, groups_max, empty_groups_max;
    char data_dir[SETTINGS_TEXT_BYTES];
    enum settings_durability durability;
    uint64_t save_interval_ms, log_segment_bytes, snapshot_log_bytes, snapshot_interval_ms;
    enum settings_io io;
    uint64_t flush_interval_ms, write_wait_ms, write_wait_bytes_max;
    enum settings_slow slow_subscribers;
    uint64_t lag_events, drain_ms, retry_ms;
    uint64_t handshake_timeout_ms, ping_interval_ms, idle_timeout_ms;
    uint64_t connections_max, subscriptions_max, session_calls_max, session_calls_bytes_max;
    char origins[SETTINGS_TEXT_BYTES];
    char subprotocols[SETTINGS_TEXT_BYTES];
    char tls_certificate[SETTINGS_TEXT_BYTES];
    char tls_key[SETTINGS_TEXT_BYTES];
    bool duplicate_deliveries;
    char auth_function[SETTINGS_TEXT_BYTES];
    enum settings_auth_failure auth_failure;
    uint64_t auth_timeout_ms;
    enum settings_join_gate join_gate;
    uint64_t gate_timeout_ms, trigger_timeout_ms, trigger_queue_max, custom_timeout_ms;
    bool custom_fallback, unique_worker_names;
    struct settings_tokens *auth_tokens; /* NULL: none */
    struct settings_streams *streams;    /* NULL: none */
    struct settings_listener listeners[SETTINGS_LISTENERS_MAX];
    uint32_t listener_count;
    struct settings_rule rules[SETTINGS_RULES_MAX];
    uint32_t rule_count;
    struct settings_condition conditions[SETTINGS_CONDITIONS_MAX];
    uint32_t condition_count;
    char rule_text[SETTINGS_RULE_BYTES_MAX];
    uint32_t rule_text_bytes;
    uint64_t given; /* bit i: entry i of SETTINGS_MAP was set by a file or by settings_set() */
};

/* A key's position in SETTINGS_MAP, for `given`. */
enum settings_key {
#define SETTINGS_KEY(name, ...) SETTINGS_KEY_##name,
    SETTINGS_MAP(SETTINGS_KEY)
#undef SETTINGS_KEY
        SETTINGS_KEY_COUNT
};
static_assert(SETTINGS_KEY_COUNT <= 64, "`given` has one bit per key");

/* Defaults; run_dir, gateways and store_bytes are still "choose for me" until settings_resolve(). */
void settings_init(struct settings *settings);
void settings_fini(struct settings *settings);
/* Read a YAML file over what is there. Workers that are not part of weir are passed over with a
 * note on stderr, which the environment variable WEIR_SUPERVISED silences (the supervisor has said
 * it already). */
enum weir_status settings_load(struct settings *settings, const char *path,
                               struct weir_error *error) WEIR_MUST_CHECK;
/* One "key=value" over what is there; the value as it would stand in the file. */
enum weir_status settings_set(struct settings *settings, const char *assignment,
                              struct weir_error *error) WEIR_MUST_CHECK;
/* Fill in what was left to choose and check relations between settings. Afterwards hosts are
 * numeric addresses, `admin` is "HOST:PORT" or "false", and gateways, run_dir, store_bytes and
 * durability are what is used. Safe to call again. */
enum weir_status settings_resolve(struct settings *settings,
                                  struct weir_error *error) WEIR_MUST_CHECK;
/* Split "HOST:PORT" or "[IPv6]:PORT". */
enum weir_status settings_host_port(const char *text, char host[SETTINGS_TEXT_BYTES],
                                    uint16_t *port, struct weir_error *error) WEIR_MUST_CHECK;
/* Literal tokens a stream socket may show, each with the context it gets (compact JSON). */
struct settings_token {
    struct span token, context;
};
size_t settings_token_count(const struct settings *settings);
struct settings_token settings_token_at(const struct settings *settings, size_t index);
/* What a slow subscriber of this stream gets: its own entry in `streams`, else what holds for all. */
struct settings_stream {
    enum settings_slow slow;
    uint64_t lag_events;
};
struct settings_stream settings_stream_of(const struct settings *settings, struct span name);
/* The texts of a listener's rules. */
static inline struct span settings_text_span(const struct settings *settings,
                                             struct settings_text text)
{
    return span_of(settings->rule_text + text.offset, text.bytes);
}
/* The ports chosen for the listeners, in their order, over what the file says: "49135,40001". */
enum weir_status settings_set_listener_ports(struct settings *settings, const char *list,
                                             struct weir_error *error) WEIR_MUST_CHECK;
/* The table as `--help` text, and as the Markdown table of docs/configuration.md. */
void settings_print_help(FILE *out);
void settings_print_markdown(FILE *out);

#endif

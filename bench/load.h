/* bench/load.h -- what the benches share: clocks, batches of calls; and for the end-to-end ones a
 * server under test, single WebSocket clients, CPU clocks (many clients: bench/crowd.h).
 *
 * Process:  the bench's own; the server runs as child processes, so that nobody's CPU time is mixed
 *           with anybody else's. Errors: a bench that cannot go on says why and exits with status 1.
 */
#ifndef WEIR_BENCH_LOAD_H
#define WEIR_BENCH_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "shm/span.h"

void load_die(const char *format, ...) __attribute__((noreturn)) WEIR_PRINTF(1, 2);

uint64_t load_clock_ns(void);          /* CLOCK_MONOTONIC */
uint64_t load_cpu_ns(pid_t pid);       /* user + system time the process has used */
uint64_t load_memory_bytes(pid_t pid); /* resident and private: what the process alone costs */
/* Resident, shared pages divided among those that share them: summed over a server's processes it is
 * what they cost together. */
uint64_t load_memory_share_bytes(pid_t pid);
void load_sleep_until(uint64_t deadline_ns);
unsigned load_raise_descriptor_limit(unsigned wanted); /* returns what is allowed now */

/* A bound, listening loopback socket on a free port. */
int load_listen(uint16_t *port);
/* Connect and do the client side of the handshake (RFC 6455 section 4.1); blocking. */
int load_websocket_open(uint16_t port, const char *path);
int load_tcp_open(uint16_t port);
/* One masked client text frame, whole. */
void load_websocket_write(int fd, const char *text, size_t bytes);
/* Build a masked client text frame; `out` holds bytes + 14. Returns its size. */
size_t load_client_frame(char *out, const char *text, size_t bytes);
/* The same with a mask that has to be undone, as a browser or an SDK sends it. */
size_t load_masked_frame(char *out, const char *text, size_t bytes);
/* Read one server frame's payload, blocking; returns its bytes (cut at `capacity`). */
size_t load_websocket_read(int fd, char *out, size_t capacity);

enum { LOAD_GATEWAYS_MAX = 16 };
struct load_server {
    pid_t supervisor;
    pid_t broker;
    pid_t gateways[LOAD_GATEWAYS_MAX];
    unsigned gateway_count;
    uint16_t stream_port;
    uint16_t worker_port;
    double ready_seconds; /* from its start until it said so */
    char run_dir[64];
};
/* Start `weir serve` from the directory of this program and wait until it is ready. `settings`:
 * NULL-terminated key=value. */
void load_server_start(struct load_server *server, unsigned gateways, const char *const *settings);
/* The same; what it logs is appended to the file `log_path` (NULL: goes to stderr). */
void load_server_start_logged(struct load_server *server, unsigned gateways,
                              const char *const *settings, const char *log_path);
void load_server_stop(struct load_server *server);
/* SIGKILL to all of its processes, broker first: as a crash, nothing is put in order. */
void load_server_kill(struct load_server *server);
uint64_t load_server_cpu_ns(const struct load_server *server); /* broker and gateways */

/* The first line of what a shell command says, cut at `capacity`; "unknown" when there is none. */
void load_first_line(const char *command, char *out, size_t capacity);

/* The value below which a share (0 to 1) of them is, between two by the distance; they are in order
 * afterwards. */
double load_quantile(double *values, unsigned count, double share);
double load_median(double *values, unsigned count); /* likewise */

/* What one call costs: the mean over LOAD_BATCH_COUNT batches of calls, and p50, p99 and max of the
 * batches' means. */
enum { LOAD_BATCH_COUNT = 200 };
struct load_cost {
    double mean_ns, p50_ns, p99_ns, max_ns;
};
/* `batch` makes so many calls; it is timed each time it is called, after a warm-up. */
struct load_cost load_measure_batches(size_t calls, void (*batch)(void *context, size_t calls),
                                      void *context);
/* For making inputs; a buffer that is full ends the bench. */
void load_append(struct buffer *buffer, const char *text);
/* The item the end-to-end benches write: so many bytes of JSON that change with every number, and a
 * NUL. */
enum { LOAD_ITEM_BYTES = 128 };
void load_item_text(char out[LOAD_ITEM_BYTES + 1], uint64_t number);

#endif

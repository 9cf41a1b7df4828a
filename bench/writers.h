/* bench/writers.h -- writers in a closed loop: so many sets are in flight, and each answer is
 * followed by the next set. Every way to write has the same loop: a worker's WebSocket, libweir, a
 * gateway's connection to the broker, redis.
 *
 * Items are numbered; a number gives stream, group (of ITEMS_PER_GROUP), item and value, and for
 * redis the key made of these names.
 *
 * Process:  the bench's own, one thread; what came in with one read is followed by as many sets in
 *           one write.
 * Errors:   an answer that is an error, or not the one to the oldest set in flight, ends the bench
 *           (load_die()).
 */
#ifndef WEIR_BENCH_WRITERS_H
#define WEIR_BENCH_WRITERS_H

#include <stdint.h>

#include "shm/broker_counters.h"

enum {
    WRITERS_IN_FLIGHT_MAX = 1024,
    WRITERS_CONNECTIONS_MAX = 256,
    WRITERS_NAME_BYTES = 5 + 5 + 8,     /* stream, group and item */
    WRITERS_SETS_MAX = 4 * 1000 * 1000, /* of one run; a run ends there */
    WRITERS_ITEMS_MAX = 9999999,
    WRITERS_ITEMS_PER_GROUP = 1000,
};

struct writers; /* the connections of one client */

struct writers *writers_open_websocket(uint16_t worker_port);
struct writers *writers_open_libweir(const char *run_dir);
/* As a gateway: attached to the broker in `run_dir`. */
struct writers *writers_open_broker(const char *run_dir);
/* The same messages to a server that needs no ATTACH. */
struct writers *writers_open_bare(const char *socket_path);
struct writers *writers_open_redis(const char *socket_path, unsigned connections);
void writers_close(struct writers *writers);

struct writers_run {
    unsigned in_flight;  /* over all connections */
    double seconds;      /* no set is sent after that; 0: no limit */
    uint64_t sets;       /* nor when so many are sent; 0: WRITERS_SETS_MAX */
    uint64_t items;      /* sets go round over so many items */
    uint64_t first_item; /* where to start */
};
struct writers_outcome {
    uint64_t sets;
    double seconds; /* until the last answer */
    double p50_us, p99_us;
    uint64_t cpu_ns; /* of this process */
};
/* Returns when every set is answered. */
struct writers_outcome writers_run(struct writers *writers, const struct writers_run *run);

/* What the broker counts, as it showed it last (about once a second); of writers_open_broker(). */
void writers_broker_counters(const struct writers *writers, struct broker_counters *counters);

#endif

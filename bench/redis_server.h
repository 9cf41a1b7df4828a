/* bench/redis_server.h -- Debian's redis-server as the benches compare with it: append-only file,
 * synced before every answer, no rewrite of the file by itself, on a unix socket.
 *
 * Process:  a child of the bench's; killed with it.
 * Errors:   load_die().
 */
#ifndef WEIR_BENCH_REDIS_SERVER_H
#define WEIR_BENCH_REDIS_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct redis_server {
    pid_t pid;
    char directory[256];
    char socket_path[108];
    double ready_seconds; /* from its start until it answered PING, all data loaded */
};

/* False: there is no redis-server. `text`: its version. */
bool redis_server_version(char *text, size_t bytes);
/* Data are those in `directory`. */
void redis_server_start(struct redis_server *server, const char *directory,
                        const char *socket_path);
/* Writes the append-only file anew, as redis does by itself when it has doubled: the data first, in
 * RDB form. Returns when it is in use. */
void redis_server_rewrite(const struct redis_server *server);
unsigned long redis_server_keys(const struct redis_server *server);
void redis_server_kill(struct redis_server *server); /* SIGKILL: as a crash */

#endif

/* bench/log_floor.h -- the most a server that commits in groups could do on this disk: bare io_uring
 * loops that write one frame at a time, O_DIRECT | RWF_DSYNC, from a registered buffer to a
 * registered file that was filled with zeros before.
 *
 *   loop     the frame carries one record of each of W writers who are in no need of a socket: they
 *            have the next record there as soon as the frame is on the disk.
 *   server   the same with a unix socket: what has been asked while a frame is being written is the
 *            next frame; answers follow its write. It speaks to writers_open_bare() and answers as
 *            the broker does, but keeps nothing.
 *
 * Process:  each in a process of its own; its CPU time is user and system time of all its threads,
 *           those of io_uring included.
 * Errors:   load_die(); a file system that refuses O_DIRECT is told by name.
 */
#ifndef WEIR_BENCH_LOG_FLOOR_H
#define WEIR_BENCH_LOG_FLOOR_H

#include <stdint.h>
#include <sys/types.h>

struct floor_outcome {
    uint64_t commits;
    double seconds;
    double p50_us, p99_us; /* of a commit */
    double cpu_us;         /* per commit */
};

/* Make the file both write to, LOG_FLOOR_FILE_BYTES of zeros; at the end it is removed with its
 * directory. */
void log_floor_prepare(const char *path);
/* Bytes of a frame with one record each of so many writers. */
uint64_t log_floor_frame_bytes(unsigned writers);
struct floor_outcome log_floor_loop(const char *path, unsigned writers, double seconds);

struct log_floor_server {
    pid_t pid;
    char socket_path[108];
    struct log_floor_counts *counts; /* shared */
};
void log_floor_server_start(struct log_floor_server *server, const char *path,
                            const char *socket_path);
uint64_t log_floor_server_commits(const struct log_floor_server *server);
void log_floor_server_stop(struct log_floor_server *server);

#endif

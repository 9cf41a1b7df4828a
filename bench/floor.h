/* bench/floor.h -- the least a server can do about a message: an epoll loop, read() and send().
 *
 *   client to floor, once:        group (u32; UINT32_MAX: a publisher)
 *   floor to a subscriber, once:  an empty WebSocket text frame: it is subscribed
 *   publisher to floor:           group (u32), bytes (u32), a whole frame (numbers as the host has them)
 *   floor to subscribers:         the frames of their group
 *
 * FLOOR_SINGLE (F1):    one read() for each message, one send() for each subscriber and message.
 * FLOOR_COALESCED (F2): one read() for all that has come, then one send() for each subscriber with
 *                       all of its group's messages in it.
 *
 * Process:  one thread; floor_start() forks it. It has no memory for a subscriber that does not keep
 *           up: it waits for it.
 */
#ifndef WEIR_BENCH_FLOOR_H
#define WEIR_BENCH_FLOOR_H

#include <stdint.h>
#include <sys/types.h>

enum floor_kind { FLOOR_SINGLE = 1, FLOOR_COALESCED = 2 };

struct floor_server {
    pid_t pid;
    uint16_t port;
};

/* Serve on a listening socket until killed. */
void floor_serve(int listener, enum floor_kind kind) __attribute__((noreturn));
void floor_start(struct floor_server *server, enum floor_kind kind);
void floor_stop(struct floor_server *server);

#endif

/* bench/floor.h -- the least a server can do about a message: an epoll loop and send().
 *
 *   client to floor, once:        group (u32; UINT32_MAX: a publisher)
 *   floor to a subscriber, once:  an empty WebSocket text frame: the group is known
 *   publisher to floor:           group (u32), bytes (u32), a whole frame (numbers as the host has them)
 *   floor to subscribers:         the frames of their group
 *
 * F1 (FLOOR_SINGLE):   one read for each message, one send() for each subscriber and message.
 * F2 (FLOOR_COALESCED): one read for all that has come, then one send() for each subscriber with all
 *                      its messages in it, as the first of them was copied together.
 *
 * Process:  one thread; floor_start() forks it. A message is cut to what a send() takes: a subscriber
 *           that does not keep up ends the floor, which has no memory for what is left.
 */
#ifndef WEIR_BENCH_FLOOR_H
#define WEIR_BENCH_FLOOR_H

#include <stdint.h>
#include <sys/types.h>

enum floor_kind { FLOOR_SINGLE = 1, FLOOR_COALESCED = 2 };

struct floor {
    pid_t pid;
    uint16_t port;
};

/* Serve on the listening socket until killed. */
void floor_run(int listener, enum floor_kind kind) __attribute__((noreturn));
void floor_start(struct floor *floor, enum floor_kind kind);
void floor_stop(struct floor *floor);

#endif

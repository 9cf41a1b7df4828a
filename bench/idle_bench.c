/* bench/idle_bench.c -- what does a subscriber that waits cost?
 *
 * Question: bytes of private memory of one gateway per idle subscriber of one group.
 * Method:   one gateway; its private pages (smaps_rollup) before and after N subscribers have
 *           connected and had their sync. Kernel socket memory is not counted: it is the same for
 *           every server.
 * Unit:     bytes per subscriber.
 * Run:      idle_bench [subscribers]
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench/load.h"

int main(int argc, char **argv)
{
    unsigned count = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 10000;
    if (count == 0 || load_raise_descriptor_limit(count + 256) < count + 256)
        load_die(
            "usage: idle_bench [subscribers]; the descriptor limit must allow as many sockets");
    struct load_server server;
    load_server_start(&server, 1, NULL);
    struct load_subscribers warm, subscribers;
    load_subscribers_start(&warm, server.stream_port, "/stream/bench/g", 100, 0);
    load_subscribers_wait_connected(&warm, 100);
    load_sleep_until(load_clock_ns() + 500000000u);
    uint64_t before = load_memory_bytes(server.gateways[0]);
    load_subscribers_start(&subscribers, server.stream_port, "/stream/bench/g", count, 0);
    load_subscribers_wait_connected(&subscribers, count);
    load_sleep_until(load_clock_ns() + 1000000000u);
    uint64_t after = load_memory_bytes(server.gateways[0]);
    printf("bench=idle subscribers=%u gateway_bytes_before=%llu gateway_bytes_after=%llu "
           "bytes_per_subscriber=%.0f\n",
           count, (unsigned long long)before, (unsigned long long)after,
           (double)(after - before) / count);
    load_subscribers_stop(&subscribers);
    load_subscribers_stop(&warm);
    load_server_stop(&server);
    return 0;
}

/* bench/idle_bench.c -- what does a subscriber that waits cost?
 *
 * Question: bytes of memory of one gateway per idle subscriber of one group.
 * Method:   one new gateway; its private pages (smaps_rollup) before and after N subscribers have
 *           connected and had their sync; a hundred come before, so that what is made for the first is
 *           not counted. Kernel socket memory is not counted: it is the same for every server.
 * Unit:     bytes per subscriber. To be reached: 1024.
 * Run:      idle_bench [subscribers [KEY=VALUE of weir...]]
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench/crowd.h"
#include "bench/load.h"

enum { FIRST = 100, CONNECT_SECONDS = 60, SETTLE_NS = 1000000000 };

int main(int argc, char **argv)
{
    unsigned wanted = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 10000;
    if (wanted <= FIRST)
        load_die("usage: idle_bench [subscribers, more than %d [KEY=VALUE of weir...]]", FIRST);
    (void)load_raise_descriptor_limit(wanted + FIRST);
    struct load_server server;
    load_server_start(&server, 1, argc > 2 ? (const char *const *)argv + 2 : NULL);
    struct crowd_options options = {.protocol = crowd_protocol_find("weir"),
                                    .port = server.stream_port,
                                    .prefix = "g",
                                    .groups = 1,
                                    .subscribers = wanted,
                                    .bytes = 128,
                                    .rate = 1};
    struct crowd *crowd = crowd_start(&options);
    unsigned first = crowd_wait_live(crowd, (double)FIRST / wanted, CONNECT_SECONDS);
    load_sleep_until(load_clock_ns() + SETTLE_NS);
    uint64_t before = load_memory_bytes(server.gateways[0]);
    unsigned all = crowd_wait_live(crowd, 1, CONNECT_SECONDS);
    load_sleep_until(load_clock_ns() + SETTLE_NS);
    uint64_t after = load_memory_bytes(server.gateways[0]);
    double each = ((double)after - (double)before) / (all - first);
    printf("bench=idle subscribers=%u gateway_bytes_before=%llu gateway_bytes_after=%llu "
           "bytes_per_subscriber=%.0f aim_bytes_per_subscriber=<=1024 reached=%s\n",
           all, (unsigned long long)before, (unsigned long long)after, each,
           each <= 1024 ? "yes" : "no");
    crowd_stop(crowd);
    load_server_stop(&server);
    return 0;
}

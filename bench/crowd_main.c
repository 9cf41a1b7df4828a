/* bench/crowd_main.c -- the program `crowd`: one measurement of one server that is running, as one
 * line of JSON. What it asks of servers is in the usage text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/crowd.h"
#include "bench/load.h"

static const char usage_text[] =
    "crowd --protocol NAME --port P [OPTION VALUE]...\n"
    "\n"
    "  --protocol NAME       weir, weir-calls, ws, nchan, socketio, nats, redis, floor\n"
    "  --port P              of the server on 127.0.0.1, for subscribers\n"
    "  --publish-port P      the same unless given (weir: the worker port)\n"
    "  --groups G            1\n"
    "  --subscribers N       1000, of all groups together; a multiple of G\n"
    "  --bytes B             128, of a message\n"
    "  --rate R              messages a second over all groups, by the clock; 0: as --in-flight "
    "allows\n"
    "  --in-flight W         messages not yet at every subscriber; 64 with --rate 0, else no "
    "bound\n"
    "  --seconds S           4, measured\n"
    "  --warmup S            1, before that, checked and not measured\n"
    "  --drain S             10, what has not arrived so long after the last message is "
    "undelivered\n"
    "  --processes K         of subscribers; 0: as few as the descriptor limit allows\n"
    "  --server-pids A,B     whose CPU time and memory are the server's\n"
    "  --prefix TEXT         of group names; a new one for every run unless given\n"
    "  --label TEXT          repeated in the result\n"
    "\n"
    "Groups are PREFIX and a number. A message is JSON text of exactly B bytes:\n"
    "  {\"n\":\"NUMBER\",\"t\":\"TIME\",\"g\":\"GROUP\",\"p\":\"PATTERN\"}\n"
    "and must come out as it went in (parsing it and writing it again gives the same bytes).\n"
    "\n"
    "  weir      subscribe: WebSocket /stream/bench/GROUP, then a sync; publish: stream::set of "
    "item "
    "m,\n"
    "            type void, on the worker port\n"
    "  weir-calls  the same, published with calls that are answered\n"
    "  ws        subscribe: WebSocket /sub/GROUP, subscribed when the upgrade is answered;\n"
    "            publish: WebSocket /pub, text frames \"GROUP MESSAGE\"; subscribers get MESSAGE\n"
    "  nchan     subscribe: WebSocket /sub/GROUP; publish: POST /pub/GROUP, keep-alive, answers "
    "2xx;\n"
    "            no old messages to new subscribers\n"
    "  socketio  /socket.io/?EIO=4&transport=websocket; subscribe: emit \"join\", GROUP; the "
    "server "
    "emits\n"
    "            \"joined\"; publish: emit \"pub\", GROUP, MESSAGE as an object; the server emits "
    "\"m\",\n"
    "            MESSAGE to the group\n"
    "  nats      SUB GROUP 1, PING; PUB GROUP\n"
    "  redis     SUBSCRIBE GROUP; PUBLISH GROUP MESSAGE\n"
    "  floor     the bare server of this directory: build/bin/floor\n"
    "\n"
    "Result: protocol, label, groups, subscribers, bytes, rate_wanted, in_flight, published, "
    "delivered,\n"
    "undelivered, lost, repeated, damaged, closed, resynced, conflated, refused, kept_up, seconds, "
    "rate, "
    "deliveries_per_s,\n"
    "p50_us, p90_us, p99_us, p999_us, max_us, mean_us (from when a message was due, or sent, to "
    "when\n"
    "a subscriber has read it), server_cpu_s, server_cpu_us_per_delivery, "
    "deliveries_per_server_cpu_s,\n"
    "crowd_cpu_s, crowd_busy (1: the subscribers' process was the limit), publisher_cpu_s, "
    "connect_seconds,\n"
    "idle_bytes_per_connection (what memory of the server's processes grew by while the "
    "subscribers "
    "came;\n"
    "it means something the first time after the server's start). null: not measured.\n"
    "kept_up: every message came once, whole, in order, and none later than a second.\n"
    "Status 0 also when the server has lost messages: see lost, repeated, damaged, undelivered.\n";

struct run {
    struct crowd_options options;
    const char *label;
    char prefix[16];
};

static void set_protocol(struct run *run, const char *name)
{
    run->options.protocol = crowd_protocol_find(name);
    if (run->options.protocol == NULL)
        load_die("there is no protocol %s", name);
}

static void set_pids(struct run *run, const char *text)
{
    for (char *end; *text != '\0'; text = *end == ',' ? end + 1 : end) {
        long pid = strtol(text, &end, 10);
        if (end == text || pid <= 0 || run->options.server_pid_count == CROWD_SERVER_PIDS_MAX)
            load_die("--server-pids takes up to %d process ids", CROWD_SERVER_PIDS_MAX);
        run->options.server_pids[run->options.server_pid_count++] = (pid_t)pid;
    }
}

static void set_label(struct run *run, const char *text)
{
    if (strpbrk(text, "\"\\\n") != NULL)
        load_die("a label has no quotes, backslashes or line ends");
    run->label = text;
}

static void set_prefix(struct run *run, const char *text)
{
    if (snprintf(run->prefix, sizeof run->prefix, "%s", text) >= (int)sizeof run->prefix)
        load_die("a prefix has at most %zu characters", sizeof run->prefix - 1);
}

static bool set_number(struct crowd_options *options, const char *name, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0))
        load_die("%s takes a number, not %s", name, text);
    unsigned whole = value < 1e9 ? (unsigned)value : 1000000000u;
    struct {
        const char *name;
        unsigned *whole;
        double *real;
    } const numbers[] = {
        {"--groups", &options->groups, NULL},
        {"--subscribers", &options->subscribers, NULL},
        {"--in-flight", &options->in_flight, NULL},
        {"--processes", &options->processes, NULL},
        {"--rate", NULL, &options->rate},
        {"--seconds", NULL, &options->seconds},
        {"--warmup", NULL, &options->warmup_seconds},
        {"--drain", NULL, &options->drain_seconds},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (strcmp(numbers[i].name, name) != 0)
            continue;
        if (numbers[i].whole != NULL)
            *numbers[i].whole = whole;
        else
            *numbers[i].real = value;
        return true;
    }
    if (strcmp(name, "--bytes") == 0)
        options->bytes = whole;
    else if (strcmp(name, "--port") == 0)
        options->port = (uint16_t)whole;
    else if (strcmp(name, "--publish-port") == 0)
        options->publish_port = (uint16_t)whole;
    else
        return false;
    return true;
}

static void set_option(struct run *run, const char *name, const char *text)
{
    if (strcmp(name, "--protocol") == 0)
        set_protocol(run, text);
    else if (strcmp(name, "--server-pids") == 0)
        set_pids(run, text);
    else if (strcmp(name, "--label") == 0)
        set_label(run, text);
    else if (strcmp(name, "--prefix") == 0)
        set_prefix(run, text);
    else if (!set_number(&run->options, name, text))
        load_die("there is no option %s; see crowd --help", name);
}

int main(int argc, char **argv)
{
    struct run run = {.options = {.groups = 1,
                                  .subscribers = 1000,
                                  .bytes = 128,
                                  .seconds = 4,
                                  .warmup_seconds = 1,
                                  .drain_seconds = 10}};
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        (void)fputs(usage_text, stdout);
        return argc < 2 ? 2 : 0;
    }
    (void)snprintf(run.prefix, sizeof run.prefix, "r%llxg",
                   (unsigned long long)(load_clock_ns() / 1000000));
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            load_die("%s takes a value; see crowd --help", argv[i]);
        set_option(&run, argv[i], argv[i + 1]);
    }
    run.options.prefix = run.prefix;
    if (run.options.rate <= 0 && run.options.in_flight == 0)
        run.options.in_flight = 64;
    struct crowd_result result;
    char line[4096];
    crowd_run(&run.options, &result);
    (void)crowd_result_json(&run.options, &result, run.label, line, sizeof line);
    (void)puts(line);
    return 0;
}

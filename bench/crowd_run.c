#include <math.h>
#include <stdio.h>

#include "bench/crowd.h"
#include "bench/load.h"

enum {
    CONNECT_SECONDS = 60,
    SETTLE_MS = 200, /* after subscribing: what the server does about it is not measured */
    KEPT_UP_US = 1000000,
    FIRST_TO_WARM = 100, /* subscribers that come before memory is looked at */
};

/* What is looked at before and after. */
struct moment {
    uint64_t time_ns, delivered, published, server_cpu_ns, crowd_cpu_ns, busiest_ns, own_cpu_ns;
};

static uint64_t server_cpu_ns(const struct crowd_options *options)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < options->server_pid_count; i++)
        total += load_cpu_ns(options->server_pids[i]);
    return total;
}

static uint64_t server_memory_bytes(const struct crowd_options *options)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < options->server_pid_count; i++)
        total += load_memory_share_bytes(options->server_pids[i]);
    return total;
}

static struct moment look(const struct crowd_options *options, const struct crowd *crowd,
                          const struct crowd_publisher *publisher)
{
    struct moment moment = {.time_ns = load_clock_ns(),
                            .delivered = CROWD_TOTAL(crowd, delivered),
                            .published = crowd_published(publisher),
                            .server_cpu_ns = server_cpu_ns(options),
                            .own_cpu_ns = load_cpu_ns(0)};
    moment.crowd_cpu_ns = crowd_cpu_ns(crowd, &moment.busiest_ns);
    return moment;
}

static void settle(void)
{
    load_sleep_until(load_clock_ns() + SETTLE_MS * UINT64_C(1000000));
}

static void subscribe(const struct crowd_options *options, struct crowd *crowd,
                      struct crowd_result *result)
{
    uint64_t start_ns = load_clock_ns();
    unsigned early = 0;
    uint64_t memory = 0;
    if (options->server_pid_count > 0 && options->subscribers > 10 * FIRST_TO_WARM) {
        early =
            crowd_wait_live(crowd, (double)FIRST_TO_WARM / options->subscribers, CONNECT_SECONDS);
        settle();
        memory = server_memory_bytes(options);
        start_ns = load_clock_ns();
    }
    (void)crowd_wait_live(crowd, 1, CONNECT_SECONDS);
    result->connect_seconds = (double)(load_clock_ns() - start_ns) / 1e9;
    settle();
    result->idle_bytes_per_connection = NAN;
    if (early > 0)
        result->idle_bytes_per_connection =
            ((double)server_memory_bytes(options) - (double)memory) /
            (options->subscribers - early);
}

static void publish_for(struct crowd_publisher *publisher, double seconds)
{
    crowd_publish(publisher, (uint64_t)(seconds * 1e9));
}

static void read_latencies(struct crowd *crowd, struct crowd_result *result)
{
    struct histogram latencies;
    crowd_histogram_read(crowd, &latencies);
    result->p50_us = (double)histogram_percentile(&latencies, 0.5) / 1e3;
    result->p90_us = (double)histogram_percentile(&latencies, 0.9) / 1e3;
    result->p99_us = (double)histogram_percentile(&latencies, 0.99) / 1e3;
    result->p999_us = (double)histogram_percentile(&latencies, 0.999) / 1e3;
    result->max_us = (double)histogram_percentile(&latencies, 1) / 1e3;
    result->mean_us = histogram_mean(&latencies) / 1e3;
}

static void compare(const struct crowd_options *options, const struct moment *before,
                    const struct moment *after, struct crowd_result *result)
{
    double deliveries = (double)(after->delivered - before->delivered);
    double elapsed_ns = (double)(after->time_ns - before->time_ns);
    double cpu_ns = (double)(after->server_cpu_ns - before->server_cpu_ns);
    result->seconds = elapsed_ns / 1e9;
    result->published = after->published - before->published;
    result->delivered = after->delivered - before->delivered;
    result->rate = (double)result->published / result->seconds;
    result->deliveries_per_s = deliveries / result->seconds;
    result->server_cpu_s = options->server_pid_count > 0 ? cpu_ns / 1e9 : NAN;
    result->server_cpu_us_per_delivery = result->server_cpu_s * 1e6 / deliveries;
    result->deliveries_per_server_cpu_s = deliveries / result->server_cpu_s;
    result->crowd_cpu_s = (double)(after->crowd_cpu_ns - before->crowd_cpu_ns) / 1e9;
    result->crowd_busy = (double)(after->busiest_ns - before->busiest_ns) / elapsed_ns;
    result->publisher_cpu_s = (double)(after->own_cpu_ns - before->own_cpu_ns) / 1e9;
}

static void read_faults(const struct crowd *crowd, const struct crowd_publisher *publisher,
                        uint64_t wanted, struct crowd_result *result)
{
    uint64_t delivered = CROWD_TOTAL(crowd, delivered);
    result->undelivered = wanted > delivered ? wanted - delivered : 0;
    result->lost = CROWD_TOTAL(crowd, lost);
    result->repeated = CROWD_TOTAL(crowd, repeated);
    result->damaged = CROWD_TOTAL(crowd, damaged);
    result->closed = CROWD_TOTAL(crowd, closed);
    result->resynced = CROWD_TOTAL(crowd, resynced);
    result->conflated = CROWD_TOTAL(crowd, conflated);
    result->refused = crowd_refused(publisher);
    result->kept_up = result->undelivered + result->lost + result->repeated + result->damaged +
                              result->closed + result->resynced + result->conflated +
                              result->refused ==
                          0 &&
                      result->max_us <= KEPT_UP_US;
}

void crowd_run(const struct crowd_options *options, struct crowd_result *result)
{
    *result = (struct crowd_result){0};
    struct crowd *crowd = crowd_start(options);
    uint64_t copies = options->subscribers / options->groups;
    bool is_paced = options->rate > 0;
    subscribe(options, crowd, result);
    struct crowd_publisher *publisher = crowd_publisher_open(crowd);
    publish_for(publisher, options->warmup_seconds);
    /* By the clock, a message is measured as a whole or not at all. */
    if (is_paced)
        (void)crowd_wait_delivered(publisher, crowd_published(publisher) * copies,
                                   options->drain_seconds);
    crowd_histogram_reset(crowd);
    struct moment before = look(options, crowd, publisher);
    publish_for(publisher, options->seconds);
    uint64_t wanted = crowd_published(publisher) * copies;
    struct moment after = look(options, crowd, publisher);
    (void)crowd_wait_delivered(publisher, wanted, options->drain_seconds);
    if (is_paced)
        after = look(options, crowd, publisher);
    read_latencies(crowd, result);
    compare(options, &before, &after, result);
    read_faults(crowd, publisher, wanted, result);
    crowd_publisher_close(publisher);
    crowd_stop(crowd);
}

/* ---- the line ---- */

struct line {
    char *out;
    size_t capacity, bytes;
};

static void put(struct line *line, const char *format, const char *name, double value)
{
    int bytes;
    size_t room = line->capacity - line->bytes;
    if (isnan(value) || isinf(value))
        bytes = snprintf(line->out + line->bytes, room, ",\"%s\":null", name);
    else
        bytes = snprintf(line->out + line->bytes, room, format, name, value);
    line->bytes += (size_t)bytes < room ? (size_t)bytes : room - 1;
}

static void put_count(struct line *line, const char *name, uint64_t value)
{
    put(line, ",\"%s\":%.0f", name, (double)value);
}

static void put_real(struct line *line, const char *name, double value)
{
    put(line, ",\"%s\":%.4f", name, value);
}

size_t crowd_result_json(const struct crowd_options *options, const struct crowd_result *result,
                         const char *label, char *out, size_t capacity)
{
    struct line line = {out, capacity, 0};
    line.bytes = (size_t)snprintf(
        out, capacity, "{\"protocol\":\"%s\",\"label\":\"%.64s\",\"kept_up\":%s",
        options->protocol->name, label == NULL ? "" : label, result->kept_up ? "true" : "false");
    put_count(&line, "groups", options->groups);
    put_count(&line, "subscribers", options->subscribers);
    put_count(&line, "bytes", options->bytes);
    put_real(&line, "rate_wanted", options->rate);
    put_count(&line, "in_flight", options->in_flight);
    put_count(&line, "published", result->published);
    put_count(&line, "delivered", result->delivered);
    put_count(&line, "undelivered", result->undelivered);
    put_count(&line, "lost", result->lost);
    put_count(&line, "repeated", result->repeated);
    put_count(&line, "damaged", result->damaged);
    put_count(&line, "closed", result->closed);
    put_count(&line, "resynced", result->resynced);
    put_count(&line, "conflated", result->conflated);
    put_count(&line, "refused", result->refused);
    put_real(&line, "seconds", result->seconds);
    put_real(&line, "rate", result->rate);
    put_real(&line, "deliveries_per_s", result->deliveries_per_s);
    put_real(&line, "p50_us", result->p50_us);
    put_real(&line, "p90_us", result->p90_us);
    put_real(&line, "p99_us", result->p99_us);
    put_real(&line, "p999_us", result->p999_us);
    put_real(&line, "max_us", result->max_us);
    put_real(&line, "mean_us", result->mean_us);
    put_real(&line, "server_cpu_s", result->server_cpu_s);
    put_real(&line, "server_cpu_us_per_delivery", result->server_cpu_us_per_delivery);
    put_real(&line, "deliveries_per_server_cpu_s", result->deliveries_per_server_cpu_s);
    put_real(&line, "crowd_cpu_s", result->crowd_cpu_s);
    put_real(&line, "crowd_busy", result->crowd_busy);
    put_real(&line, "publisher_cpu_s", result->publisher_cpu_s);
    put_real(&line, "connect_seconds", result->connect_seconds);
    put_real(&line, "idle_bytes_per_connection", result->idle_bytes_per_connection);
    if (line.bytes + 2 <= capacity)
        memcpy(out + line.bytes++, "}", 2);
    return line.bytes;
}

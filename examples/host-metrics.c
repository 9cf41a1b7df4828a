/* examples/host-metrics.c -- a worker that publishes this machine's figures into the stream `host`,
 * group `local`: the items `cpu`, `memory`, `disk` and `network`, once a second. The page on the
 * stream port plots them. It also offers the function `host::info`.
 *
 *   host-metrics [--socket PATH] [--group NAME] [--interval MS]
 *
 * Process:  one thread; waits in poll(2) for the server and for the next second.
 * Source:   /proc/stat, meminfo, diskstats, net/dev, loadavg (proc(5)) and statvfs("/").
 * Units:    *_bytes are bytes, *_bytes_per_s bytes per second since the sample before, percentages
 *           0 to 100, `at` Unix ms.
 * Failure:  a lost connection comes back by itself (weir.h); the first is tried for ever. Exits 0 on
 *           SIGTERM and SIGINT.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "client/weir.h"

enum {
    INTERVAL_MS_DEFAULT = 1000,
    INTERVAL_MS_MIN = 50,
    INTERVAL_MS_MAX = 3600000,
    RETRY_MS_MIN = 500,
    RETRY_MS_MAX = 8000,
    SECTOR_BYTES =
        512, /* the unit of diskstats, whatever the device says (Documentation/block/stat.rst) */
    LINE_BYTES = 512,
    JSON_BYTES = 512,
};

/* Counters that only grow; rates are differences of two samples. */
struct sample {
    uint64_t taken_ms; /* CLOCK_MONOTONIC */
    uint64_t cpu_total, cpu_idle, cpu_system;
    uint64_t disk_read_bytes, disk_written_bytes;
    uint64_t network_received_bytes, network_sent_bytes, loopback_bytes;
};

struct options {
    const char *socket_path;
    const char *group_id;
    int interval_ms;
};

static volatile sig_atomic_t stop_asked;

static void ask_to_stop(int signal_number)
{
    (void)signal_number;
    stop_asked = 1;
}

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- reading /proc ---- */

static void sample_cpu(struct sample *sample)
{
    FILE *file = fopen("/proc/stat", "re");
    if (file == NULL)
        return;
    uint64_t user, nice, kernel, idle, wait, irq, soft_irq, steal;
    if (fscanf(file,
               "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
               " %" SCNu64 " %" SCNu64,
               &user, &nice, &kernel, &idle, &wait, &irq, &soft_irq, &steal) == 8) {
        sample->cpu_idle = idle + wait;
        sample->cpu_system = kernel + irq + soft_irq;
        sample->cpu_total = user + nice + kernel + idle + wait + irq + soft_irq + steal;
    }
    (void)fclose(file);
}

/* Whole devices only: partitions, and devices stacked on others, would count the same bytes again. */
static bool is_physical_disk(const char *name)
{
    static const char *const stacked[] = {"loop", "ram", "zram", "dm-", "md", "sr", "fd"};
    for (size_t index = 0; index < sizeof(stacked) / sizeof(stacked[0]); index++) {
        if (strncmp(name, stacked[index], strlen(stacked[index])) == 0)
            return false;
    }
    char path[LINE_BYTES];
    (void)snprintf(path, sizeof path, "/sys/block/%s", name);
    return access(path, F_OK) == 0;
}

static void sample_disk(struct sample *sample)
{
    FILE *file = fopen("/proc/diskstats", "re");
    if (file == NULL)
        return;
    char line[LINE_BYTES];
    while (fgets(line, sizeof line, file) != NULL) {
        char name[64];
        uint64_t sectors_read, sectors_written;
        if (sscanf(line, "%*u %*u %63s %*u %*u %" SCNu64 " %*u %*u %*u %" SCNu64, name,
                   &sectors_read, &sectors_written) != 3)
            continue;
        if (!is_physical_disk(name))
            continue;
        sample->disk_read_bytes += sectors_read * SECTOR_BYTES;
        sample->disk_written_bytes += sectors_written * SECTOR_BYTES;
    }
    (void)fclose(file);
}

static void sample_network(struct sample *sample)
{
    FILE *file = fopen("/proc/net/dev", "re");
    if (file == NULL)
        return;
    char line[LINE_BYTES];
    while (fgets(line, sizeof line, file) != NULL) {
        char name[64];
        uint64_t received, sent;
        if (sscanf(line, " %63[^:]: %" SCNu64 " %*u %*u %*u %*u %*u %*u %*u %" SCNu64, name,
                   &received, &sent) != 3)
            continue;
        if (strcmp(name, "lo") == 0) {
            sample->loopback_bytes += received;
            continue;
        }
        sample->network_received_bytes += received;
        sample->network_sent_bytes += sent;
    }
    (void)fclose(file);
}

static struct sample take_sample(void)
{
    struct sample sample = {.taken_ms = clock_ms(CLOCK_MONOTONIC)};
    sample_cpu(&sample);
    sample_disk(&sample);
    sample_network(&sample);
    return sample;
}

struct memory {
    uint64_t total, available, cached, swap_total, swap_free; /* bytes */
};

static struct memory read_memory(void)
{
    struct memory memory = {0};
    FILE *file = fopen("/proc/meminfo", "re");
    if (file == NULL)
        return memory;
    const struct {
        const char *name;
        uint64_t *bytes;
    } wanted[] = {{"MemTotal", &memory.total},
                  {"MemAvailable", &memory.available},
                  {"Cached", &memory.cached},
                  {"SwapTotal", &memory.swap_total},
                  {"SwapFree", &memory.swap_free}};
    char line[LINE_BYTES];
    while (fgets(line, sizeof line, file) != NULL) {
        char name[64];
        uint64_t kib;
        if (sscanf(line, "%63[^:]: %" SCNu64, name, &kib) != 2)
            continue;
        for (size_t index = 0; index < sizeof(wanted) / sizeof(wanted[0]); index++) {
            if (strcmp(name, wanted[index].name) == 0)
                *wanted[index].bytes = kib * 1024;
        }
    }
    (void)fclose(file);
    return memory;
}

static double read_load(void)
{
    double load[1];
    return getloadavg(load, 1) == 1 ? load[0] : 0.0;
}

/* ---- publishing ---- */

/* Interfaces and disks may go away, and their counters with them. */
static uint64_t grown(uint64_t now, uint64_t before)
{
    return now > before ? now - before : 0;
}

static uint64_t per_second(uint64_t now, uint64_t before, uint64_t elapsed_ms)
{
    return elapsed_ms == 0 ? 0 : grown(now, before) * 1000 / elapsed_ms;
}

static double share_percent(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0.0 : 100.0 * (double)part / (double)whole;
}

static int publish(struct weir_client *client, const char *group_id, const char *item_id,
                   const char *json)
{
    return weir_client_set(client, "host", group_id, item_id, weir_text(json), NULL, NULL);
}

static int publish_cpu(struct weir_client *client, const char *group_id, uint64_t at,
                       const struct sample *now, const struct sample *before)
{
    uint64_t total = grown(now->cpu_total, before->cpu_total);
    uint64_t idle = grown(now->cpu_idle, before->cpu_idle);
    uint64_t system = grown(now->cpu_system, before->cpu_system);
    char json[JSON_BYTES];
    (void)snprintf(json, sizeof json,
                   "{\"id\":\"cpu\",\"at\":%" PRIu64
                   ",\"percent\":%.1f,\"system_percent\":%.1f,\"load_1m\":%.2f,\"cores\":%ld}",
                   at, share_percent(grown(total, idle), total), share_percent(system, total),
                   read_load(), sysconf(_SC_NPROCESSORS_ONLN));
    return publish(client, group_id, "cpu", json);
}

static int publish_memory(struct weir_client *client, const char *group_id, uint64_t at)
{
    struct memory memory = read_memory();
    char json[JSON_BYTES];
    (void)snprintf(json, sizeof json,
                   "{\"id\":\"memory\",\"at\":%" PRIu64 ",\"total_bytes\":%" PRIu64
                   ",\"used_bytes\":%" PRIu64 ",\"cached_bytes\":%" PRIu64
                   ",\"swap_total_bytes\":%" PRIu64 ",\"swap_used_bytes\":%" PRIu64 "}",
                   at, memory.total, grown(memory.total, memory.available), memory.cached,
                   memory.swap_total, grown(memory.swap_total, memory.swap_free));
    return publish(client, group_id, "memory", json);
}

static int publish_disk(struct weir_client *client, const char *group_id, uint64_t at,
                        const struct sample *now, const struct sample *before)
{
    struct statvfs root = {0};
    if (statvfs("/", &root) != 0)
        root.f_blocks = 0;
    uint64_t elapsed_ms = now->taken_ms - before->taken_ms;
    char json[JSON_BYTES];
    (void)snprintf(json, sizeof json,
                   "{\"id\":\"disk\",\"at\":%" PRIu64 ",\"read_bytes_per_s\":%" PRIu64
                   ",\"write_bytes_per_s\":%" PRIu64 ",\"total_bytes\":%" PRIu64
                   ",\"free_bytes\":%" PRIu64 "}",
                   at, per_second(now->disk_read_bytes, before->disk_read_bytes, elapsed_ms),
                   per_second(now->disk_written_bytes, before->disk_written_bytes, elapsed_ms),
                   (uint64_t)root.f_blocks * root.f_frsize,
                   (uint64_t)root.f_bavail * root.f_frsize);
    return publish(client, group_id, "disk", json);
}

static int publish_network(struct weir_client *client, const char *group_id, uint64_t at,
                           const struct sample *now, const struct sample *before)
{
    uint64_t elapsed_ms = now->taken_ms - before->taken_ms;
    char json[JSON_BYTES];
    (void)snprintf(
        json, sizeof json,
        "{\"id\":\"network\",\"at\":%" PRIu64 ",\"received_bytes_per_s\":%" PRIu64
        ",\"sent_bytes_per_s\":%" PRIu64 ",\"loopback_bytes_per_s\":%" PRIu64 "}",
        at, per_second(now->network_received_bytes, before->network_received_bytes, elapsed_ms),
        per_second(now->network_sent_bytes, before->network_sent_bytes, elapsed_ms),
        per_second(now->loopback_bytes, before->loopback_bytes, elapsed_ms));
    return publish(client, group_id, "network", json);
}

/* 0, or the first failure: the caller then waits for the connection to say what is wrong. */
static int publish_all(struct weir_client *client, const char *group_id, const struct sample *now,
                       const struct sample *before)
{
    uint64_t at = clock_ms(CLOCK_REALTIME);
    int status = publish_cpu(client, group_id, at, now, before);
    if (status == 0)
        status = publish_memory(client, group_id, at);
    if (status == 0)
        status = publish_disk(client, group_id, at, now, before);
    if (status == 0)
        status = publish_network(client, group_id, at, now, before);
    return status;
}

/* ---- host::info ---- */

/* Copies what JSON strings take as it is; names of hosts and kernels need no more. */
static void copy_plain(char *out, size_t out_bytes, const char *text)
{
    size_t used = 0;
    for (; *text != '\0' && used + 1 < out_bytes; text++) {
        if (*text >= ' ' && *text <= '~' && *text != '"' && *text != '\\')
            out[used++] = *text;
    }
    out[used] = '\0';
}

static void answer_info(void *context, struct weir_client *client,
                        const struct weir_invocation *invocation)
{
    (void)context;
    struct utsname names;
    if (uname(&names) != 0) {
        (void)weir_client_answer_error(client, invocation->id, "system_error", strerror(errno));
        return;
    }
    char host[65], kernel[65], machine[65], json[JSON_BYTES];
    copy_plain(host, sizeof host, names.nodename);
    copy_plain(kernel, sizeof kernel, names.release);
    copy_plain(machine, sizeof machine, names.machine);
    struct timespec uptime;
    clock_gettime(CLOCK_BOOTTIME, &uptime);
    (void)snprintf(json, sizeof json,
                   "{\"hostname\":\"%s\",\"kernel\":\"%s\",\"machine\":\"%s\",\"cores\":%ld,"
                   "\"memory_bytes\":%" PRIu64 ",\"uptime_s\":%lld}",
                   host, kernel, machine, sysconf(_SC_NPROCESSORS_ONLN), read_memory().total,
                   (long long)uptime.tv_sec);
    (void)weir_client_answer(client, invocation->id, weir_text(json));
}

static void report_rejection(void *context, const char *function_id, const char *code)
{
    (void)context;
    (void)fprintf(stderr, "host-metrics: %s was refused: %s\n", function_id, code);
}

/* ---- running ---- */

/* Waits for the server or until `deadline_ms`; -ENOTCONN when the connection is lost. */
static int wait_until(struct weir_client *client, uint64_t deadline_ms)
{
    while (!stop_asked) {
        uint64_t now_ms = clock_ms(CLOCK_MONOTONIC);
        if (now_ms >= deadline_ms)
            return 0;
        int timeout_ms = (int)(deadline_ms - now_ms);
        int client_ms = weir_client_timeout_ms(client);
        if (client_ms >= 0 && client_ms < timeout_ms)
            timeout_ms = client_ms;
        struct pollfd wait = {weir_client_fd(client), weir_client_events(client), 0};
        if (poll(&wait, 1, timeout_ms) < 0 && errno != EINTR)
            return -errno;
        int status = weir_client_process(client);
        if (status != 0)
            return status;
    }
    return 0;
}

/* Publishes until a stop is asked for; what is measured while the server is away is not kept. */
static void serve(struct weir_client *client, const struct options *options)
{
    struct sample before = take_sample();
    uint64_t due_ms = before.taken_ms;
    while (!stop_asked) {
        due_ms += (uint64_t)options->interval_ms;
        if (wait_until(client, due_ms) != 0)
            return;
        struct sample now = take_sample();
        if (weir_client_is_connected(client))
            (void)publish_all(client, options->group_id, &now, &before);
        before = now;
        if (now.taken_ms > due_ms + (uint64_t)options->interval_ms)
            due_ms = now.taken_ms; /* the machine slept: go on from now */
    }
}

static void report_loss(void *context, const char *reason)
{
    (void)context;
    if (!stop_asked)
        (void)fprintf(stderr, "host-metrics: %s; connecting again\n", reason);
}

static void report_connection(void *context)
{
    (void)context;
    (void)fprintf(stderr, "host-metrics: connected again\n");
}

static void pause_ms(unsigned milliseconds)
{
    struct timespec wait = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    nanosleep(&wait, NULL);
}

/* The first connection; later ones are the library's business. */
static struct weir_client *connect_first(const struct options *options)
{
    const struct weir_client_options wanted = {.socket_path = options->socket_path,
                                               .on_rejected = report_rejection,
                                               .on_disconnect = report_loss,
                                               .on_connect = report_connection};
    unsigned retry_ms = RETRY_MS_MIN;
    while (!stop_asked) {
        struct weir_client *client;
        char error[WEIR_ERROR_BYTES];
        if (weir_client_open(&client, &wanted, error, sizeof error) == 0)
            return client;
        (void)fprintf(stderr, "host-metrics: %s; next try in %u ms\n", error, retry_ms);
        pause_ms(retry_ms);
        retry_ms = retry_ms * 2 < RETRY_MS_MAX ? retry_ms * 2 : RETRY_MS_MAX;
    }
    return NULL;
}

static void run(const struct options *options)
{
    struct weir_client *client = connect_first(options);
    if (client == NULL)
        return;
    const struct weir_function info = {
        .id = "host::info", .description = "What this machine is", .handler = answer_info};
    if (weir_client_register(client, &info) == 0)
        serve(client, options);
    if (!stop_asked)
        (void)fprintf(stderr, "host-metrics: %s\n", weir_client_error(client));
    weir_client_close(client);
}

static int read_options(struct options *options, int argument_count, char **arguments)
{
    for (int index = 1; index < argument_count; index++) {
        const char *name = arguments[index];
        const char *value = index + 1 < argument_count ? arguments[++index] : NULL;
        if (value == NULL)
            return -1;
        if (strcmp(name, "--socket") == 0) {
            options->socket_path = value;
        } else if (strcmp(name, "--group") == 0) {
            options->group_id = value;
        } else if (strcmp(name, "--interval") == 0) {
            char *end;
            long interval_ms = strtol(value, &end, 10);
            if (*end != '\0' || interval_ms < INTERVAL_MS_MIN || interval_ms > INTERVAL_MS_MAX)
                return -1;
            options->interval_ms = (int)interval_ms;
        } else {
            return -1;
        }
    }
    return 0;
}

int main(int argument_count, char **arguments)
{
    struct options options = {.group_id = "local", .interval_ms = INTERVAL_MS_DEFAULT};
    if (read_options(&options, argument_count, arguments) != 0) {
        (void)fprintf(
            stderr,
            "usage: host-metrics [--socket PATH] [--group NAME] [--interval MS]\n"
            "  --socket    a gateway's socket (default: $WEIR_SOCKET, or the run directory's)\n"
            "  --group     group of the stream `host` (default: local)\n"
            "  --interval  %d to %d ms between samples (default: %d)\n",
            INTERVAL_MS_MIN, INTERVAL_MS_MAX, INTERVAL_MS_DEFAULT);
        return 2;
    }
    struct sigaction action = {.sa_handler = ask_to_stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    run(&options);
    return 0;
}

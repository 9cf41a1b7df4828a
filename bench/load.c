#include "bench/load.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/envelope.h"

void load_die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)fprintf(stderr, "bench: ");
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

uint64_t load_clock_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t load_cpu_ns(pid_t pid)
{
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        load_die("cannot read the CPU clock of process %d; is it still running?", (int)pid);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/* The sum of a process's smaps_rollup lines that have one of two names. */
static uint64_t rolled_up_bytes(pid_t pid, const char *name, const char *other_name)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        load_die("cannot open %s", path);
    char line[256], found[64];
    uint64_t total = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        unsigned long long kib;
        if (sscanf(line, "%63[^:]: %llu kB", found, &kib) == 2 &&
            (strcmp(found, name) == 0 || strcmp(found, other_name) == 0))
            total += (uint64_t)kib * 1024;
    }
    (void)fclose(file);
    return total;
}

uint64_t load_memory_bytes(pid_t pid)
{
    return rolled_up_bytes(pid, "Private_Clean", "Private_Dirty");
}

uint64_t load_memory_share_bytes(pid_t pid)
{
    return rolled_up_bytes(pid, "Pss", "Pss");
}

void load_sleep_until(uint64_t deadline_ns)
{
    struct timespec deadline = {(time_t)(deadline_ns / 1000000000u),
                                (long)(deadline_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) {
    }
}

unsigned load_raise_descriptor_limit(unsigned wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    if (limit.rlim_cur < wanted) {
        struct rlimit more = {wanted, limit.rlim_max < wanted ? wanted : limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &more) != 0) {
            more = (struct rlimit){limit.rlim_max, limit.rlim_max};
            (void)setrlimit(RLIMIT_NOFILE, &more);
        }
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur > UINT_MAX ? UINT_MAX : (unsigned)limit.rlim_cur;
}

int load_listen(uint16_t *port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, 4096) != 0 || getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        load_die("cannot listen on loopback: %s", strerror(errno));
    *port = ntohs(address.sin_port);
    return fd;
}

int load_tcp_open(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        load_die("cannot connect to port %u: %s", port, strerror(errno));
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void write_whole(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(fd, data, bytes);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            load_die("the server closed the connection while it was written to");
        data += written;
        bytes -= (size_t)written;
    }
}

static void read_whole(int fd, char *out, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = read(fd, out, bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            load_die("the server closed the connection while it was read from");
        out += got;
        bytes -= (size_t)got;
    }
}

int load_websocket_open(uint16_t port, const char *path)
{
    int fd = load_tcp_open(port);
    char text[1024];
    int bytes = snprintf(text, sizeof text,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUpgrade: websocket\r\n"
                         "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                         "Sec-WebSocket-Version: 13\r\n\r\n",
                         path, port);
    write_whole(fd, text, (size_t)bytes);
    size_t used = 0;
    while (used < 4 || memcmp(text + used - 4, "\r\n\r\n", 4) != 0) {
        if (used == sizeof text)
            load_die("the answer to the handshake is too long");
        read_whole(fd, text + used,
                   1); /* byte by byte: what follows the header belongs to the frames */
        used++;
    }
    if (memcmp(text, "HTTP/1.1 101", 12) != 0)
        load_die("no upgrade of %s: %.*s", path, 40, text);
    return fd;
}

size_t load_client_frame(char *out, const char *text, size_t bytes)
{
    size_t header = 2;
    out[0] = (char)0x81;
    if (bytes < 126) {
        out[1] = (char)(0x80 | bytes);
    } else if (bytes < 65536) {
        out[1] = (char)(0x80 | 126);
        out[2] = (char)(bytes >> 8);
        out[3] = (char)bytes;
        header = 4;
    } else {
        out[1] = (char)(0x80 | 127);
        for (unsigned i = 0; i < 8; i++)
            out[2 + i] = (char)((uint64_t)bytes >> (56 - 8 * i));
        header = 10;
    }
    memset(out + header, 0, 4); /* a zero mask: legal, and the payload stays readable */
    memcpy(out + header + 4, text, bytes);
    return header + 4 + bytes;
}

size_t load_masked_frame(char *out, const char *text, size_t bytes)
{
    static const unsigned char mask[4] = {0x9d, 0x3b, 0xe1, 0x56};
    size_t frame_bytes = load_client_frame(out, text, bytes);
    unsigned char *payload = (unsigned char *)out + frame_bytes - bytes;
    memcpy(payload - 4, mask, 4);
    for (size_t i = 0; i < bytes; i++)
        payload[i] ^= mask[i & 3];
    return frame_bytes;
}

void load_websocket_write(int fd, const char *text, size_t bytes)
{
    char *frame = malloc(bytes + 14);
    if (frame == NULL)
        load_die("no memory");
    write_whole(fd, frame, load_client_frame(frame, text, bytes));
    free(frame);
}

size_t load_websocket_read(int fd, char *out, size_t capacity)
{
    unsigned char header[10];
    read_whole(fd, (char *)header, 2);
    uint64_t bytes = header[1] & 127u;
    unsigned more = bytes == 126 ? 2 : bytes == 127 ? 8 : 0;
    if (more > 0) {
        read_whole(fd, (char *)header + 2, more);
        bytes = 0;
        for (unsigned i = 0; i < more; i++)
            bytes = bytes << 8 | header[2 + i];
    }
    size_t kept = bytes < capacity ? (size_t)bytes : capacity;
    read_whole(fd, out, kept);
    for (uint64_t left = bytes - kept; left > 0;) {
        char dropped[4096];
        size_t take = left < sizeof dropped ? (size_t)left : sizeof dropped;
        read_whole(fd, dropped, take);
        left -= take;
    }
    return kept;
}

/* ---- the server under test ---- */

static void find_children(struct load_server *server)
{
    DIR *proc = opendir("/proc");
    if (proc == NULL)
        load_die("cannot read /proc");
    for (struct dirent *entry; (entry = readdir(proc)) != NULL;) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid <= 0)
            continue;
        char path[64], line[512];
        (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        char *got = fgets(line, sizeof line, file);
        (void)fclose(file);
        if (got == NULL)
            continue;
        char *name_end = strrchr(line, ')');
        char state;
        int parent;
        if (name_end == NULL || sscanf(name_end + 1, " %c %d", &state, &parent) != 2 ||
            parent != server->supervisor)
            continue;
        if (strstr(line, "(weir-broker)") != NULL)
            server->broker = pid;
        else if (strstr(line, "(weir-gateway)") != NULL &&
                 server->gateway_count < LOAD_GATEWAYS_MAX)
            server->gateways[server->gateway_count++] = pid;
    }
    (void)closedir(proc);
}

static void remove_run_dir(const struct load_server *server)
{
    char path[128];
    static const char *const names[] = {"broker.sock", "broker.lock", "serve.lock", "weir.sock"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", server->run_dir, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(server->run_dir);
}

void load_server_start(struct load_server *server, unsigned gateways, const char *const *settings)
{
    load_server_start_logged(server, gateways, settings, NULL);
}

void load_server_start_logged(struct load_server *server, unsigned gateways,
                              const char *const *settings, const char *log_path)
{
    *server = (struct load_server){0};
    (void)snprintf(server->run_dir, sizeof server->run_dir, "/tmp/weir-bench-XXXXXX");
    if (mkdtemp(server->run_dir) == NULL)
        load_die("cannot make a directory for sockets: %s", strerror(errno));
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 8);
    if (length < 0)
        load_die("cannot find this program's own path");
    program[length] = '\0';
    (void)snprintf(strrchr(program, '/') + 1, 8, "weir");
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) != 0)
        load_die("pipe: %s", strerror(errno));
    uint64_t start_ns = load_clock_ns();
    server->supervisor = fork();
    if (server->supervisor == 0) {
        char count[16], run_dir[96];
        (void)snprintf(count, sizeof count, "%u", gateways);
        (void)snprintf(run_dir, sizeof run_dir, "run_dir=%s", server->run_dir);
        const char *arguments[64] = {
            "weir",  "serve",         "--gateways", count,
            "--set", run_dir,         "--set",      "stream_host=127.0.0.1",
            "--set", "stream_port=0", "--set",      "worker_port=0",
            "--set", "admin=false"};
        unsigned used = 14;
        for (; settings != NULL && *settings != NULL && used < 60; settings++) {
            arguments[used++] = "--set";
            arguments[used++] = *settings;
        }
        (void)dup2(ready[1], STDOUT_FILENO);
        int log = log_path == NULL ? -1 : open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (log >= 0)
            (void)dup2(log, STDERR_FILENO);
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        (void)execv(program, (char *const *)arguments);
        _exit(127);
    }
    (void)close(ready[1]);
    FILE *lines = fdopen(ready[0], "r");
    char line[512];
    unsigned stream_port = 0, worker_port = 0;
    while (lines != NULL && fgets(line, sizeof line, lines) != NULL) {
        char *stream = strstr(line, "stream="), *worker = strstr(line, "worker=");
        if (strncmp(line, "weir: ready", 11) != 0 || stream == NULL || worker == NULL)
            continue;
        char *stream_colon = strchr(stream, ':'), *worker_colon = strchr(worker, ':');
        if (stream_colon != NULL && worker_colon != NULL) {
            stream_port = (unsigned)strtoul(stream_colon + 1, NULL, 10);
            worker_port = (unsigned)strtoul(worker_colon + 1, NULL, 10);
            break;
        }
    }
    if (stream_port == 0 || worker_port == 0) {
        FILE *log = log_path == NULL ? NULL : fopen(log_path, "r");
        while (log != NULL && fgets(line, sizeof line, log) != NULL)
            (void)fputs(line, stderr);
        (void)waitpid(server->supervisor, NULL, 0);
        remove_run_dir(server);
        load_die("%s serve did not become ready", program);
    }
    server->ready_seconds = (double)(load_clock_ns() - start_ns) / 1e9;
    server->stream_port = (uint16_t)stream_port;
    server->worker_port = (uint16_t)worker_port;
    find_children(server);
    if (server->broker == 0 || server->gateway_count != gateways)
        load_die("expected a broker and %u gateways, found %u gateways", gateways,
                 server->gateway_count);
}

void load_server_stop(struct load_server *server)
{
    (void)kill(server->supervisor, SIGTERM);
    int status;
    (void)waitpid(server->supervisor, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        load_die("the server did not stop cleanly (wait status %d)", status);
    remove_run_dir(server);
}

void load_server_kill(struct load_server *server)
{
    /* Its children become this process's when it is gone, which can wait for their end then. It is
     * stopped first, for it would start another broker, and its end is a SIGTERM to them. */
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    (void)kill(server->supervisor, SIGSTOP);
    (void)waitpid(server->supervisor, NULL, WUNTRACED);
    (void)kill(server->broker, SIGKILL);
    for (unsigned i = 0; i < server->gateway_count; i++)
        (void)kill(server->gateways[i], SIGKILL);
    (void)kill(server->supervisor, SIGKILL);
    (void)waitpid(server->supervisor, NULL, 0);
    (void)waitpid(server->broker, NULL, 0);
    for (unsigned i = 0; i < server->gateway_count; i++)
        (void)waitpid(server->gateways[i], NULL, 0);
    remove_run_dir(server);
}

uint64_t load_server_cpu_ns(const struct load_server *server)
{
    uint64_t total = load_cpu_ns(server->broker);
    for (unsigned i = 0; i < server->gateway_count; i++)
        total += load_cpu_ns(server->gateways[i]);
    return total;
}

static int compare_doubles(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return difference < 0 ? -1 : difference > 0;
}

double load_quantile(double *values, unsigned count, double share)
{
    double place = share * (count - 1);
    unsigned below = (unsigned)place, above = below + 1 < count ? below + 1 : below;
    qsort(values, count, sizeof *values, compare_doubles);
    return values[below] + (place - below) * (values[above] - values[below]);
}

double load_median(double *values, unsigned count)
{
    return load_quantile(values, count, 0.5);
}

struct load_cost load_measure_batches(size_t calls, void (*batch)(void *context, size_t calls),
                                      void *context)
{
    double means[LOAD_BATCH_COUNT];
    double total = 0;
    for (int i = -LOAD_BATCH_COUNT / 10; i < LOAD_BATCH_COUNT; i++) { /* negative: warm-up */
        uint64_t start_ns = load_clock_ns();
        batch(context, calls);
        double mean = (double)(load_clock_ns() - start_ns) / (double)calls;
        if (i >= 0) {
            means[i] = mean;
            total += mean;
        }
    }
    qsort(means, LOAD_BATCH_COUNT, sizeof means[0], compare_doubles);
    return (struct load_cost){.mean_ns = total / LOAD_BATCH_COUNT,
                              .p50_ns = means[LOAD_BATCH_COUNT / 2],
                              .p99_ns = means[LOAD_BATCH_COUNT * 99 / 100],
                              .max_ns = means[LOAD_BATCH_COUNT - 1]};
}

void load_append(struct buffer *buffer, const char *text)
{
    if (buffer_append(buffer, span_text(text)) != WEIR_OK)
        load_die("a buffer of the bench is too small");
}

void load_item_text(char out[LOAD_ITEM_BYTES + 1], uint64_t number)
{
    int bytes = snprintf(out, LOAD_ITEM_BYTES + 1, "{\"id\":\"m\",\"n\":%llu,\"pad\":\"",
                         (unsigned long long)number);
    memset(out + bytes, 'x', LOAD_ITEM_BYTES - 2 - (size_t)bytes);
    memcpy(out + LOAD_ITEM_BYTES - 2, "\"}", 3);
}

void load_first_line(const char *command, char *out, size_t bytes)
{
    FILE *output = popen(command, "r");
    if (output == NULL || fgets(out, (int)bytes, output) == NULL)
        (void)snprintf(out, bytes, "unknown");
    out[strcspn(out, "\n")] = '\0';
    if (output != NULL)
        (void)pclose(output);
}

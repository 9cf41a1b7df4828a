#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "shm/json.h"

static_assert(sizeof((struct sockaddr_un *)0)->sun_path == CLIENT_PATH_BYTES, "unix(7)");

uint64_t client_now_ms(void)
{
    struct timespec now;
    int result = clock_gettime(CLOCK_MONOTONIC, &now);
    weir_assert(result == 0);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int client_fail(struct weir_client *client, int result, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(client->error, sizeof client->error, format, arguments);
    va_end(arguments);
    return result;
}

int client_append(struct weir_client *client, enum wire_type type, uint64_t id,
                  const struct wire_field *fields)
{
    bool is_direct = client->state == CLIENT_READY || type == WIRE_HELLO;
    struct buffer *out = is_direct ? &client->output : &client->queue;
    if (client->state == CLIENT_LOST)
        return client_fail(client, -ENOTCONN, "the connection to the gateway is lost");
    /* After everything was said again there may be more than the limit. */
    enum weir_status status =
        out->bytes > out->limit_bytes ? WEIR_FULL : wire_append(out, type, id, fields);
    if (status == WEIR_FULL && !is_direct && client->has_late_queued) {
        calls_clean_queue(client);
        status = wire_append(out, type, id, fields);
    }
    switch (status) {
    case WEIR_OK:
        return 0;
    case WEIR_FULL:
        return client_fail(
            client, -ENOBUFS,
            "%zu bytes wait for the gateway, the limit is %zu; process until fewer do", out->bytes,
            out->limit_bytes);
    case WEIR_TOO_LARGE:
        return client_fail(client, -EINVAL, "the message is larger than %u bytes",
                           WIRE_FRAME_BYTES_MAX);
    case WEIR_NO_MEMORY:
        return client_fail(client, -ENOMEM, "no memory for the message");
    default:
        return client_fail(client, -EINVAL, "the message cannot be encoded");
    }
}

int client_check_name(struct weir_client *client, const char *name, const char *what)
{
    size_t bytes = name == NULL ? 0 : strlen(name);
    if (name == NULL)
        return client_fail(client, -EINVAL, "the %s is missing", what);
    if (bytes > NAME_BYTES_MAX)
        return client_fail(client, -EINVAL, "the %s is longer than %u bytes", what, NAME_BYTES_MAX);
    if (!json_is_utf8(span_of(name, bytes)))
        return client_fail(client, -EINVAL, "the %s is not UTF-8", what);
    return 0;
}

int client_check_json(struct weir_client *client, struct weir_text json)
{
    struct json_value value;
    struct json_problem problem;
    if (json.data == NULL)
        return 0;
    if (json_scan(client_span(json), JSON_DEPTH_MAX - 2, &value, &problem) == WEIR_OK)
        return 0;
    return client_fail(client, -EINVAL, "the data is not JSON: %s at byte %zu", problem.reason,
                       problem.offset);
}

/* ---- opening ---- */

/* The server's default run_dir (config/settings.c) and the name of the socket in it. True: in a
 * directory whose owner anyone could be, so the peer must be looked at. */
static bool client_choose_path(const char *wanted, char path[CLIENT_PATH_BYTES])
{
    enum { ROOM = CLIENT_PATH_BYTES };
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (wanted == NULL)
        wanted = getenv("WEIR_SOCKET");
    if (wanted != NULL && *wanted != '\0') {
        if (strlen(wanted) < ROOM)
            memcpy(path, wanted, strlen(wanted) + 1);
        else
            *path = '\0';
        return false;
    }
    if (runtime != NULL && *runtime == '/' && strlen(runtime) + sizeof "/weir" <= 88)
        (void)snprintf(path, ROOM, "%s/weir/weir.sock", runtime);
    else
        (void)snprintf(path, ROOM, "/tmp/weir-%u/weir.sock", (unsigned)geteuid());
    return true;
}

static int client_check_peer(struct weir_client *client)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    if (getsockopt(client->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        return client_fail(client, -errno, "cannot tell whose server listens at %.120s",
                           client->path);
    if (peer.uid != geteuid() && peer.uid != 0)
        return client_fail(
            client, -EPERM,
            "the server at %.120s runs as another user; set WEIR_SOCKET to the one you mean",
            client->path);
    return 0;
}

/* A unix socket connects at once or not at all: it waits only while the listener's backlog is full,
 * and that is a failure here. */
static int client_connect(struct weir_client *client)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, client->path, strlen(client->path) + 1);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (client->fd < 0)
        return client_fail(client, -errno, "cannot make a socket: %s", strerror(errno));
    while (connect(client->fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int cause = errno;
        if (cause == EINTR)
            continue;
        return client_fail(client, -cause, "cannot connect to %.120s: %s; is `weir serve` running?",
                           client->path, strerror(cause));
    }
    return client->is_default_path ? client_check_peer(client) : 0;
}

/* Connect and say hello; the welcome comes later. */
static int client_greet(struct weir_client *client)
{
    int result = client_connect(client);
    if (result != 0)
        return result;
    client->state = CLIENT_GREETING;
    client->greeting_deadline_ms = client_now_ms() + client->options.open_timeout_ms;
    const struct wire_field fields[] = {
        WIRE_NUMBER(WIRE_VERSION),
        WIRE_SPAN(span_text(client->name)),
        WIRE_SPAN(span_text(client->metadata)),
        WIRE_SPAN(client_span_of(client->name_space)),
        WIRE_SPAN(client_span_of(*client->token != '\0' ? client->id : NULL)),
        WIRE_SPAN(client_span_of(*client->token != '\0' ? client->token : NULL)),
    };
    return client_append(client, WIRE_HELLO, 0, fields);
}

static void client_free(struct weir_client *client)
{
    if (client->fd >= 0)
        (void)close(client->fd);
    calls_close(client);
    registrations_close(client);
    wire_reader_close(client->reader);
    buffer_fini(&client->input);
    buffer_fini(&client->output);
    buffer_fini(&client->queue);
    buffer_fini(&client->scratch);
    free(client->name);
    free(client->name_space);
    free(client->metadata);
    free(client);
}

/* What every HELLO says. */
static int client_describe(struct weir_client *client, const struct weir_client_options *options)
{
    char name[160];
    if (options->name != NULL)
        (void)snprintf(name, sizeof name, "%s", options->name);
    else
        (void)snprintf(name, sizeof name, "%.100s:%ld", program_invocation_short_name,
                       (long)getpid());
    if (options->metadata_json != NULL) {
        struct json_value value;
        if (json_scan(span_text(options->metadata_json), JSON_DEPTH_MAX - 2, &value, NULL) !=
                WEIR_OK ||
            value.kind != JSON_OBJECT)
            return client_fail(client, -EINVAL, "metadata_json is not a JSON object");
        client->metadata = strdup(options->metadata_json);
    } else {
        buffer_clear(&client->scratch);
        if (buffer_append(&client->scratch,
                          SPAN_LITERAL("{\"runtime\":\"c\",\"version\":\"" WEIR_VERSION
                                       "\",\"name\":")) == WEIR_OK &&
            json_append_string(&client->scratch, span_text(name)) == WEIR_OK &&
            buffer_printf(&client->scratch, ",\"pid\":%ld}", (long)getpid()) == WEIR_OK)
            client->metadata = strndup(client->scratch.data, client->scratch.bytes);
    }
    client->name = strdup(name);
    if (options->name_space != NULL)
        client->name_space = strdup(options->name_space);
    if (client->metadata == NULL || client->name == NULL ||
        (options->name_space != NULL && client->name_space == NULL))
        return client_fail(client, -ENOMEM, "no memory to connect");
    return 0;
}

static int client_prepare(struct weir_client *client, const struct weir_client_options *options)
{
    client->reader = wire_reader_open();
    if (client->reader == NULL)
        return client_fail(client, -ENOMEM, "no memory to connect");
    client->is_default_path = client_choose_path(options->socket_path, client->path);
    if (*client->path == '\0')
        return client_fail(client, -ENAMETOOLONG, "the socket's path is longer than %d bytes",
                           CLIENT_PATH_BYTES - 1);
    int result = client_describe(client, options);
    return result == 0 ? calls_open(client) : result;
}

/* The first connection is waited for. */
static int client_open_first(struct weir_client *client, const struct weir_client_options *options)
{
    int result = client_prepare(client, options);
    uint64_t deadline_ms = client_now_ms() + client->options.open_timeout_ms;
    if (result == 0)
        result = client_greet(client);
    while (result == -EAGAIN && client_now_ms() < deadline_ms) { /* its backlog is full */
        (void)close(client->fd);
        (void)poll(NULL, 0, 10);
        result = client_greet(client);
    }
    while (result == 0 && client->state == CLIENT_GREETING) {
        uint64_t now_ms = client_now_ms();
        struct pollfd wait = {client->fd, weir_client_events(client), 0};
        int wait_ms = now_ms >= client->greeting_deadline_ms
                          ? 0
                          : (int)(client->greeting_deadline_ms - now_ms);
        if (poll(&wait, 1, wait_ms) < 0 && errno != EINTR)
            return client_fail(client, -errno, "cannot wait for the gateway: %s", strerror(errno));
        if (weir_client_process(client) != 0)
            result = client->open_result;
    }
    return result;
}

static void client_set_defaults(struct weir_client *client,
                                const struct weir_client_options *options)
{
    client->fd = -1;
    client->state = CLIENT_GREETING;
    client->nearest_deadline_ms = UINT64_MAX;
    client->retry_delay_ms = WEIR_RECONNECT_MS_MIN;
    client->random = (unsigned)getpid() ^ (unsigned)client_now_ms();
    client->functions_end = &client->functions;
    client->triggers_end = &client->triggers;
    client->options = *options;
    if (client->options.open_timeout_ms == 0 || client->options.open_timeout_ms > 3600000)
        client->options.open_timeout_ms = 5000;
    if (client->options.calls_max == 0)
        client->options.calls_max = WEIR_CALLS_MAX_DEFAULT;
    if (client->options.output_bytes_max == 0)
        client->options.output_bytes_max = WEIR_OUTPUT_BYTES_MAX_DEFAULT;
    client->options.socket_path = client->options.name = NULL;
    client->options.name_space = client->options.metadata_json = NULL;
    /* A failed opening is final, and reported by its result alone. */
    client->options.ends_on_loss = true;
    client->options.on_disconnect = NULL;
    buffer_init(&client->input, WIRE_FRAME_BYTES_MAX + CLIENT_READ_BYTES);
    buffer_init(&client->output, client->options.output_bytes_max);
    buffer_init(&client->queue, client->options.output_bytes_max);
    buffer_init(&client->scratch, WIRE_FRAME_BYTES_MAX);
}

int weir_client_open(struct weir_client **out, const struct weir_client_options *options,
                     char *error, size_t error_bytes)
{
    static const struct weir_client_options nothing;
    if (options == NULL)
        options = &nothing;
    *out = NULL;
    struct weir_client *client = calloc(1, sizeof *client);
    if (client == NULL) {
        if (error != NULL && error_bytes > 0)
            (void)snprintf(error, error_bytes, "no memory to connect");
        return -ENOMEM;
    }
    client_set_defaults(client, options);
    int result = client_open_first(client, options);
    client->options.ends_on_loss = options->ends_on_loss;
    client->options.on_disconnect = options->on_disconnect;
    if (result == 0) {
        *out = client;
        return 0;
    }
    if (error != NULL && error_bytes > 0)
        (void)snprintf(error, error_bytes, "%s", client->error);
    client_free(client);
    return result;
}

/* ---- reading and writing ---- */

/* Half as much again and half as little, so that clients do not come back in step. */
static void client_schedule_retry(struct weir_client *client)
{
    unsigned delay_ms = client->retry_delay_ms;
    client->random = client->random * 1103515245u + 12345u; /* spread, not secrecy */
    client->retry_ms = client_now_ms() + delay_ms / 2 + (client->random >> 16) % delay_ms;
    client->retry_delay_ms =
        delay_ms * 2 < WEIR_RECONNECT_MS_MAX ? delay_ms * 2 : WEIR_RECONNECT_MS_MAX;
}

/* `is_final`: the gateway will not have us, however often we ask. */
static void client_lose(struct weir_client *client, int result, const char *reason, bool is_final)
{
    if (client->state == CLIENT_LOST || client->state == CLIENT_WAITING)
        return;
    bool was_ready = client->state == CLIENT_READY;
    bool ends = is_final || client->options.ends_on_loss;
    if (client->fd >= 0)
        (void)close(client->fd);
    client->fd = -1;
    buffer_clear(&client->output);
    client->open_result = client_fail(client, result, "%s", reason);
    char kept[WEIR_ERROR_BYTES]; /* callbacks may overwrite client->error */
    memcpy(kept, client->error, sizeof kept);
    client->state = ends ? CLIENT_LOST : CLIENT_WAITING;
    /* A gateway that welcomes us and then drops us is not to be asked ten times a second. */
    if (was_ready && client_now_ms() >= client->ready_ms + WEIR_RECONNECT_MS_MAX)
        client->retry_delay_ms = WEIR_RECONNECT_MS_MIN;
    client_schedule_retry(client);
    /* What is called from inside goes into the queue; what was in flight before has ended. */
    if (was_ready || ends)
        calls_fail_all(client, "connection_lost", kept);
    if ((was_ready || ends) && client->options.on_disconnect != NULL)
        client->options.on_disconnect(client->options.context, kept);
    memcpy(client->error, kept, sizeof kept);
}

/* Write what the socket takes. */
static void client_write(struct weir_client *client)
{
    size_t sent = 0;
    while (client->fd >= 0 && sent < client->output.bytes) {
        ssize_t bytes = send(client->fd, client->output.data + sent, client->output.bytes - sent,
                             MSG_NOSIGNAL | MSG_DONTWAIT);
        if (bytes >= 0) {
            sent += (size_t)bytes;
            continue;
        }
        int cause = errno;
        if (cause == EINTR)
            continue;
        /* EPIPE: the gateway closed; reading finds its last words and then the end. */
        if (cause != EAGAIN && cause != EWOULDBLOCK && cause != EPIPE)
            client_lose(client, -ENOTCONN, strerror(cause), false);
        if (cause == EPIPE)
            sent = client->output.bytes;
        break;
    }
    if (client->fd >= 0)
        buffer_consume(&client->output, sent);
}

static void client_keep_text(char out[CLIENT_ID_BYTES], struct span text)
{
    size_t bytes = text.bytes < CLIENT_ID_BYTES ? text.bytes : 0;
    if (bytes > 0)
        memcpy(out, text.data, bytes);
    out[bytes] = '\0';
}

/* Registrations, then the queue. Both are in memory already, each within its own bound: the limit of
 * the output does not apply to their sum. */
static bool client_say_everything(struct weir_client *client)
{
    client->output.limit_bytes = SIZE_MAX / 4;
    calls_clean_queue(client);
    bool is_said = registrations_replay(client) == 0 &&
                   buffer_append(&client->output, buffer_span(&client->queue)) == WEIR_OK;
    client->output.limit_bytes = client->options.output_bytes_max;
    if (is_said)
        buffer_clear(&client->queue);
    return is_said;
}

static void client_take_welcome(struct weir_client *client, const struct wire_message *message)
{
    if (message->type != WIRE_WELCOME || message->fields[0].number != WIRE_VERSION ||
        message->fields[1].span.bytes >= CLIENT_ID_BYTES) {
        client_lose(client, -EPROTO,
                    "the gateway answered with something else than a welcome; is it of this "
                    "version?",
                    true);
        return;
    }
    client_keep_text(client->id, message->fields[1].span);
    client_keep_text(client->token, message->fields[2].span);
    /* What nobody waits for any more is not said, even if its end has not been told yet. */
    calls_expire(client);
    client->state = CLIENT_READY;
    client->ready_ms = client_now_ms();
    if (!client_say_everything(client)) {
        client->state = CLIENT_GREETING; /* nothing is in flight: what is queued waits on */
        client_lose(client, -ENOMEM, "no memory to register everything again", false);
        return;
    }
    if (client->was_ready && client->options.on_connect != NULL)
        client->options.on_connect(client->options.context);
    client->was_ready = true;
}

static void client_take_refusal(struct weir_client *client, const struct wire_message *message)
{
    char reason[WEIR_ERROR_BYTES];
    struct span code = message->fields[0].span;
    struct span sentence = message->fields[1].span;
    (void)snprintf(reason, sizeof reason, "the gateway refused: %.*s: %.*s",
                   (int)(code.bytes < 60 ? code.bytes : 60), code.bytes > 0 ? code.data : "",
                   (int)(sentence.bytes < 150 ? sentence.bytes : 150),
                   sentence.bytes > 0 ? sentence.data : "");
    bool is_final = span_equal(code, SPAN_LITERAL("INVALID_HELLO")) ||
                    span_equal(code, SPAN_LITERAL("WORKER_NAMESPACE_CONFLICT"));
    client_lose(client, -ECONNREFUSED, reason, is_final);
}

static void client_take_frame(struct weir_client *client, const struct wire_message *message)
{
    if (message->type == WIRE_REFUSED) {
        client_take_refusal(client, message);
    } else if (client->state == CLIENT_GREETING) {
        client_take_welcome(client, message);
    } else if (!calls_take_frame(client, message) && !registrations_take_frame(client, message)) {
        char reason[WEIR_ERROR_BYTES];
        (void)snprintf(reason, sizeof reason, "the gateway sent an unexpected %s message",
                       wire_type_name(message->type));
        client_lose(client, -EPROTO, reason, false);
    }
}

/* Every whole frame in the input; callbacks run in here. */
static void client_take_input(struct weir_client *client)
{
    size_t taken = 0;
    while (client->fd >= 0) {
        struct wire_message message;
        size_t frame_bytes = 0;
        struct span rest = span_of(client->input.data + taken, client->input.bytes - taken);
        enum weir_status status = wire_read(client->reader, rest, &message, &frame_bytes);
        if (status == WEIR_EMPTY)
            break;
        if (status != WEIR_OK) {
            client_lose(client, -EPROTO, "the gateway sent bytes that are no message", false);
            break;
        }
        taken += frame_bytes;
        client_take_frame(client, &message);
    }
    if (client->fd >= 0)
        buffer_consume(&client->input, taken);
    else
        buffer_clear(&client->input);
}

/* Read what is there, at most 16 times, so that a fast gateway cannot keep the caller's loop from
 * turning. */
static void client_read(struct weir_client *client)
{
    for (int round = 0; round < 16 && client->fd >= 0; round++) {
        if (buffer_reserve(&client->input, CLIENT_READ_BYTES) != WEIR_OK) {
            client_lose(client, -ENOMEM, "no memory for what the gateway sends", false);
            return;
        }
        ssize_t bytes = recv(client->fd, client->input.data + client->input.bytes,
                             CLIENT_READ_BYTES, MSG_DONTWAIT);
        if (bytes < 0) {
            int cause = errno;
            if (cause == EINTR)
                continue;
            if (cause != EAGAIN && cause != EWOULDBLOCK)
                client_lose(client, -ENOTCONN, strerror(cause), false);
            return;
        }
        if (bytes == 0) {
            client_lose(client, -ENOTCONN, "the gateway closed the connection", false);
            return;
        }
        client->input.bytes += (size_t)bytes;
        client_take_input(client);
        if ((size_t)bytes < CLIENT_READ_BYTES)
            return;
    }
}

/* Come back when it is time, and give up a gateway that says no welcome. */
static void client_retry(struct weir_client *client)
{
    uint64_t now_ms = client_now_ms();
    if (client->state == CLIENT_GREETING && now_ms >= client->greeting_deadline_ms) {
        char reason[WEIR_ERROR_BYTES];
        (void)snprintf(reason, sizeof reason,
                       "the gateway accepted the connection but said no welcome within %u ms",
                       client->options.open_timeout_ms);
        client_lose(client, -ETIMEDOUT, reason, false);
    }
    if (client->state != CLIENT_WAITING || now_ms < client->retry_ms)
        return;
    buffer_clear(&client->output);
    buffer_clear(&client->input);
    if (client_greet(client) == 0)
        return;
    if (client->fd >= 0)
        (void)close(client->fd);
    client->fd = -1;
    client->state = CLIENT_WAITING;
    client_schedule_retry(client);
}

int weir_client_process(struct weir_client *client)
{
    if (client->is_processing)
        return client_fail(client, -EDEADLK, "a callback must not process, run or close");
    client->is_processing = true;
    client_retry(client);
    client_write(client);
    client_read(client);
    calls_expire(client);
    client_write(client); /* what callbacks have added */
    client->is_processing = false;
    return client->state == CLIENT_LOST ? -ENOTCONN : 0;
}

void weir_client_close(struct weir_client *client)
{
    if (client == NULL)
        return;
    weir_assert(!client->is_processing);
    client->is_processing = true;
    client_write(client);
    client->state = CLIENT_LOST;
    calls_fail_all(client, "closed", "the client was closed before the answer came");
    client_free(client);
}

/* ---- event loop ---- */

const char *weir_client_error(const struct weir_client *client)
{
    return client->error;
}
const char *weir_client_id(const struct weir_client *client)
{
    return client->id;
}
bool weir_client_is_connected(const struct weir_client *client)
{
    return client->state == CLIENT_READY;
}
int weir_client_fd(const struct weir_client *client)
{
    return client->fd;
}

short weir_client_events(const struct weir_client *client)
{
    return client->output.bytes > 0 ? POLLIN | POLLOUT : POLLIN;
}

int weir_client_timeout_ms(const struct weir_client *client)
{
    uint64_t nearest_ms = client->nearest_deadline_ms;
    if (client->state == CLIENT_WAITING && client->retry_ms < nearest_ms)
        nearest_ms = client->retry_ms;
    if (client->state == CLIENT_GREETING && client->greeting_deadline_ms < nearest_ms)
        nearest_ms = client->greeting_deadline_ms;
    if (nearest_ms == UINT64_MAX)
        return -1;
    uint64_t now_ms = client_now_ms();
    if (nearest_ms <= now_ms)
        return 0;
    return nearest_ms - now_ms > 60000 ? 60000 : (int)(nearest_ms - now_ms);
}

/* Wait for the socket or the nearest deadline, and process. 0, -EINTR, -ETIMEDOUT or -ENOTCONN. */
static int client_turn(struct weir_client *client, uint64_t deadline_ms)
{
    if (client->state == CLIENT_LOST)
        return client_fail(client, -ENOTCONN, "the connection to the gateway is lost");
    int wait_ms = weir_client_timeout_ms(client);
    if (deadline_ms != UINT64_MAX) {
        uint64_t now_ms = client_now_ms();
        if (now_ms >= deadline_ms)
            return client_fail(client, -ETIMEDOUT, "no answer within the time limit");
        uint64_t left_ms = deadline_ms - now_ms;
        if (wait_ms < 0 || left_ms < (uint64_t)wait_ms)
            wait_ms = left_ms > INT32_MAX ? INT32_MAX : (int)left_ms;
    }
    struct pollfd wait = {client->fd, weir_client_events(client), 0};
    if (poll(&wait, 1, wait_ms) < 0)
        return client_fail(client, -errno, "waiting was interrupted: %s", strerror(errno));
    return weir_client_process(client);
}

int weir_client_run_until(struct weir_client *client, const bool *is_done, int timeout_ms)
{
    uint64_t deadline_ms = timeout_ms < 0 ? UINT64_MAX : client_now_ms() + (uint64_t)timeout_ms;
    int result = *is_done ? 0 : weir_client_process(client);
    while (result == 0 && !*is_done)
        result = client_turn(client, deadline_ms);
    return *is_done ? 0 : result;
}

int weir_client_flush(struct weir_client *client, int timeout_ms)
{
    uint64_t deadline_ms = timeout_ms < 0 ? UINT64_MAX : client_now_ms() + (uint64_t)timeout_ms;
    int result = weir_client_process(client);
    while (result == 0 && client->output.bytes + client->queue.bytes > 0)
        result = client_turn(client, deadline_ms);
    return result;
}

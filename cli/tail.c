/* `weir tail`: a subscriber for people. The only file of the command that knows libwebsockets. */
#include <errno.h>
#include <libwebsockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/command.h"
#include "shm/json.h"
#include "shm/limits.h"

enum { TAIL_BACKOFF_MS_MIN = 250, TAIL_BACKOFF_MS_MAX = 5000, TAIL_PATH_BYTES = 1024 };

struct tail {
    const char *stream_name;
    const char *group_id;
    const char *item_id; /* NULL: the whole group */
    const char *url;
    bool is_raw;
    uint64_t count_left; /* UINT64_MAX: no end */

    char *url_text; /* what host points into */
    const char *host;
    int port;
    bool is_tls;
    char path[TAIL_PATH_BYTES];

    struct lws_context *context;
    struct lws *connection; /* NULL: none, and none being opened */
    lws_sorted_usec_list_t retry;
    unsigned backoff_ms;
    struct buffer join; /* LWS_PRE bytes, then the message */
    struct buffer message;
    bool is_over;
    int exit_status;
};

static volatile sig_atomic_t tail_is_interrupted;
static struct lws_context *tail_context; /* for the handler below, which gets no argument */

static void tail_take_signal(int number)
{
    (void)number;
    tail_is_interrupted = 1;
    if (tail_context != NULL)
        lws_cancel_service(tail_context);
}

/* ---- the command line ---- */

static bool tail_parse_url(struct tail *tail)
{
    const char *protocol = "";
    const char *host = "";
    const char *path = "";
    int port = 0;
    tail->url_text = strdup(tail->url);
    if (tail->url_text == NULL || strstr(tail->url, "://") == NULL ||
        lws_parse_uri(tail->url_text, &protocol, &host, &port, &path) != 0)
        return false;
    tail->is_tls = strcmp(protocol, "wss") == 0;
    if (!tail->is_tls && strcmp(protocol, "ws") != 0)
        return false;
    /* lws_parse_uri() gives "/" for no path, and any other path without its first slash. */
    int bytes = snprintf(tail->path, sizeof tail->path, "%s%s", *path == '/' ? "" : "/", path);
    tail->host = host;
    /* lws_parse_uri() knows the default ports of http and https only. */
    tail->port = port > 0 ? port : tail->is_tls ? 443 : 80;
    return *host != '\0' && bytes > 0 && bytes < TAIL_PATH_BYTES;
}

static bool tail_parse_count(struct tail *tail, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    tail->count_left = number;
    return errno == 0 && *text >= '0' && *text <= '9' && *end == '\0' && number > 0;
}

static int tail_read_arguments(struct tail *tail, int argc, char **argv)
{
    struct arguments arguments = {.argc = argc, .argv = argv, .position = 1};
    const char **const names[] = {&tail->stream_name, &tail->group_id, &tail->item_id};
    size_t name_count = 0;
    bool is_option;
    const char *argument;
    while ((argument = arguments_next(&arguments, &is_option)) != NULL) {
        const char *value = argument;
        if (!is_option) {
            if (name_count == 3) {
                (void)fprintf(stderr, "weir: tail takes STREAM GROUP [ITEM], not %s as well\n",
                              argument);
                return EXIT_MISUSED;
            }
            *names[name_count++] = argument;
        } else if (arguments_take_value(&arguments, argument, "--url", &value)) {
            tail->url = value;
        } else if (arguments_take_value(&arguments, argument, "--count", &value)) {
            if (value != NULL && !tail_parse_count(tail, value)) {
                (void)fprintf(stderr, "weir: --count %s: use a whole number from 1\n", value);
                return EXIT_MISUSED;
            }
        } else if (strcmp(argument, "--json") == 0) {
            tail->is_raw = true;
        } else {
            return arguments_refuse("tail", argument);
        }
        if (value == NULL)
            return EXIT_MISUSED;
    }
    if (name_count < 2) {
        (void)fprintf(stderr, "weir: tail needs STREAM and GROUP; see `weir help tail`\n");
        return EXIT_MISUSED;
    }
    for (size_t i = 0; i < name_count; i++) {
        if (!json_is_utf8(span_text(*names[i]))) {
            (void)fprintf(stderr, "weir: the name at position %zu is not UTF-8\n", i + 1);
            return EXIT_MISUSED;
        }
    }
    if (!tail_parse_url(tail)) {
        (void)fprintf(stderr, "weir: --url %s: write ws://HOST:PORT or wss://HOST:PORT\n",
                      tail->url);
        return EXIT_MISUSED;
    }
    return EXIT_DONE;
}

static enum weir_status tail_build_join(struct tail *tail)
{
    struct buffer *out = &tail->join;
    buffer_clear(out);
    enum weir_status status = buffer_reserve(out, LWS_PRE);
    if (status != WEIR_OK)
        return status;
    memset(out->data, 0, LWS_PRE);
    out->bytes = LWS_PRE;
    const struct {
        struct span key;
        const char *value;
    } parts[] = {
        {SPAN_LITERAL("{\"type\":\"join\",\"data\":{\"subscriptionId\":\"tail\",\"streamName\":"),
         tail->stream_name},
        {SPAN_LITERAL(",\"groupId\":"), tail->group_id},
        {SPAN_LITERAL(",\"id\":"), tail->item_id}};
    for (size_t i = 0; i < 3 && parts[i].value != NULL && status == WEIR_OK; i++) {
        status = buffer_append(out, parts[i].key);
        if (status == WEIR_OK)
            status = json_append_string(out, span_text(parts[i].value));
    }
    return status == WEIR_OK ? buffer_append(out, SPAN_LITERAL("}}")) : status;
}

/* ---- printing ---- */

static void tail_print_time(struct json_value timestamp)
{
    char digits[24] = "";
    char text[32] = "--:--:--";
    if (timestamp.kind == JSON_NUMBER && timestamp.text.bytes < sizeof digits)
        memcpy(digits, timestamp.text.data, timestamp.text.bytes);
    long long ms = strtoll(digits, NULL, 10);
    time_t seconds = (time_t)(ms / 1000);
    struct tm local;
    if (ms > 0 && localtime_r(&seconds, &local) != NULL &&
        strftime(text, sizeof text, "%H:%M:%S", &local) == 0)
        text[0] = '\0';
    (void)printf("%s.%03d ", text, (int)(ms % 1000));
}

/* A string without its quotes, escapes kept (they cannot harm a terminal); "-" for null and absent. */
static struct span tail_bare(struct json_value value)
{
    if (value.kind == JSON_STRING)
        return span_of(value.text.data + 1, value.text.bytes - 2);
    return SPAN_LITERAL("-");
}

static bool tail_print_event(struct tail *tail, struct span text)
{
    static const char *const names[] = {"timestamp", "id", "event"};
    static const char *const event_names[] = {"type", "data", "event"};
    struct json_value values[3];
    struct json_value parts[3];
    if (json_scan_object(text, JSON_DEPTH_MAX, names, 3, values, NULL) != WEIR_OK ||
        values[2].kind != JSON_OBJECT ||
        json_scan_object(values[2].text, JSON_DEPTH_MAX, event_names, 3, parts, NULL) != WEIR_OK)
        return false;
    if (json_string_equals(parts[0], SPAN_LITERAL("unauthorized"))) {
        (void)fprintf(stderr, "weir: the server does not allow to watch this group\n");
        tail->is_over = true;
        tail->exit_status = EXIT_FAILED;
        return true;
    }
    struct json_value data = parts[1].kind != JSON_ABSENT ? parts[1] : parts[2];
    struct span kind = tail_bare(parts[0]);
    struct span id = tail_bare(values[1]);
    tail_print_time(values[0]);
    (void)printf("%-7.*s %.*s %.*s\n", (int)kind.bytes, kind.data, (int)id.bytes, id.data,
                 (int)data.text.bytes, data.kind == JSON_ABSENT ? "" : data.text.data);
    return true;
}

static void tail_take_message(struct tail *tail)
{
    struct span text = buffer_span(&tail->message);
    tail->backoff_ms = 0;
    if (tail->is_raw)
        (void)printf("%.*s\n", (int)text.bytes, text.data);
    else if (!tail_print_event(tail, text))
        (void)fprintf(stderr, "weir: the server sent something that is no event: %.*s\n",
                      (int)(text.bytes < 200 ? text.bytes : 200), text.data);
    (void)fflush(stdout);
    if (tail->count_left != UINT64_MAX && --tail->count_left == 0)
        tail->is_over = true;
}

/* ---- the connection ---- */

static void tail_connect(struct tail *tail);

static void tail_retry(lws_sorted_usec_list_t *retry)
{
    tail_connect(lws_container_of(retry, struct tail, retry));
}

static void tail_lose(struct tail *tail, const char *reason)
{
    tail->connection = NULL;
    buffer_clear(&tail->message);
    if (tail->is_over || tail_is_interrupted)
        return;
    tail->backoff_ms = tail->backoff_ms == 0                        ? TAIL_BACKOFF_MS_MIN
                       : tail->backoff_ms * 2 > TAIL_BACKOFF_MS_MAX ? TAIL_BACKOFF_MS_MAX
                                                                    : tail->backoff_ms * 2;
    (void)fprintf(stderr, "weir: no connection to %s: %s; trying again in %u ms\n", tail->url,
                  reason, tail->backoff_ms);
    lws_sul_schedule(tail->context, 0, &tail->retry, tail_retry,
                     (lws_usec_t)tail->backoff_ms * LWS_US_PER_MS);
}

static int tail_append(struct tail *tail, struct lws *connection, const void *data, size_t bytes)
{
    if (buffer_append(&tail->message, span_of(data, bytes)) != WEIR_OK) {
        (void)fprintf(stderr, "weir: the server sent a message larger than %u bytes\n",
                      ANSWER_BYTES_MAX);
        return -1;
    }
    if (lws_remaining_packet_payload(connection) != 0 || !lws_is_final_fragment(connection))
        return 0;
    tail_take_message(tail);
    buffer_clear(&tail->message);
    return tail->is_over ? -1 : 0;
}

static int tail_on_event(struct lws *connection, enum lws_callback_reasons reason, void *user,
                         void *data, size_t bytes)
{
    (void)user;
    struct tail *tail = lws_context_user(lws_get_context(connection));
    switch (reason) {
    case LWS_CALLBACK_CLIENT_ESTABLISHED:
        lws_callback_on_writable(connection);
        return 0;
    case LWS_CALLBACK_CLIENT_WRITEABLE: {
        if (tail_build_join(tail) !=
            WEIR_OK) /* each time anew: lws_write() masks the bytes in place */
            return -1;
        size_t join_bytes = tail->join.bytes - LWS_PRE;
        int written = lws_write(connection, (unsigned char *)tail->join.data + LWS_PRE, join_bytes,
                                LWS_WRITE_TEXT);
        return written < (int)join_bytes ? -1 : 0;
    }
    case LWS_CALLBACK_CLIENT_RECEIVE:
        return tail_append(tail, connection, data, bytes);
    case LWS_CALLBACK_CLIENT_CONNECTION_ERROR: {
        char text[160];
        (void)snprintf(text, sizeof text, "%.*s", data != NULL ? (int)bytes : 7,
                       data != NULL ? (const char *)data : "refused");
        tail_lose(tail, text);
        return 0;
    }
    case LWS_CALLBACK_CLIENT_CLOSED:
        tail_lose(tail, "the server closed it");
        return 0;
    default:
        return 0;
    }
}

static const struct lws_protocols tail_protocols[] = {
    {.name = "", .callback = tail_on_event, .rx_buffer_size = 65536}, {.name = NULL}};

static void tail_connect(struct tail *tail)
{
    struct lws_client_connect_info info = {
        .context = tail->context,
        .address = tail->host,
        .host = tail->host,
        .origin = tail->host,
        .port = tail->port,
        .path = tail->path,
        .ssl_connection = tail->is_tls ? LCCSCF_USE_SSL : 0,
        .local_protocol_name = "",
        .pwsi = &tail->connection,
    };
    /* A failure at once has been reported through tail_on_event() already when a retry is
     * scheduled. */
    if (lws_client_connect_via_info(&info) == NULL && tail->retry.list.owner == NULL)
        tail_lose(tail, "it cannot be opened");
}

static int tail_watch(struct tail *tail)
{
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN,
        .protocols = tail_protocols,
        .options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT,
        .user = tail,
        .gid = -1,
        .uid = -1,
    };
    lws_set_log_level(0, NULL);
    tail->context = lws_create_context(&info);
    if (tail->context == NULL) {
        (void)fprintf(stderr, "weir: cannot start libwebsockets\n");
        return EXIT_FAILED;
    }
    tail_context = tail->context;
    struct sigaction action = {.sa_handler = tail_take_signal};
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    tail_connect(tail);
    while (!tail->is_over && !tail_is_interrupted && lws_service(tail->context, 0) >= 0)
        continue;
    tail->is_over = true; /* closing is not worth a message any more */
    tail_context = NULL;
    lws_sul_cancel(&tail->retry);
    lws_context_destroy(tail->context);
    return tail->exit_status;
}

int tail_run(int argc, char **argv)
{
    struct tail tail = {.url = "ws://127.0.0.1:3112", .count_left = UINT64_MAX};
    buffer_init(&tail.join, LWS_PRE + 4 * NAME_ESCAPED_BYTES_MAX);
    buffer_init(&tail.message, ANSWER_BYTES_MAX);
    int exit_status = tail_read_arguments(&tail, argc, argv);
    if (exit_status == EXIT_DONE && tail_build_join(&tail) != WEIR_OK) {
        (void)fprintf(stderr, "weir: the names are too long\n");
        exit_status = EXIT_MISUSED;
    }
    if (exit_status == EXIT_DONE)
        exit_status = tail_watch(&tail);
    free(tail.url_text);
    buffer_fini(&tail.join);
    buffer_fini(&tail.message);
    return exit_status;
}

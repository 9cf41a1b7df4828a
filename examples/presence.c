/* examples/presence.c -- a worker that decides who may subscribe, and counts who is there.
 *
 *   presence [--socket PATH] [--open STREAM]...
 *
 * It binds two functions to triggers. `presence::gate` is asked at every join (stream:join): whoever
 * has a user in the context that auth_function or auth_tokens gave the socket may join any stream;
 * everybody may join the streams named by --open and the stream `presence` itself. `presence::left`
 * hears of every subscription that has ended (stream:leave), also when its client or its gateway
 * has been killed.
 *
 * How many are there is kept in the stream `presence`, group = the stream's name, item = the group's
 * id: {"here": 3}, changed by stream::update, so that several of these workers may count at once.
 * A dashboard subscribes to /stream/presence/{stream} and sees the figures live. A join is counted
 * when it is let in here: a second gate that refuses it afterwards would leave the count too high,
 * so let this be the only one, or the last word.
 *
 * Process:  one thread; waits in poll(2).
 * Failure:  a lost connection comes back by itself (weir.h), with both triggers. Joins that are asked
 *           about while nobody counts are decided by the server's setting join_gate; the count starts
 *           from zero when the server does. Exits 0 on SIGTERM and SIGINT.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/weir.h"

enum {
    OPEN_STREAMS_MAX = 64,
    NAME_BYTES = 4097,  /* the server's longest name, and a NUL */
    JSON_BYTES = 65536, /* an update: two names, escaped, and a few words */
};

#define OWN_STREAM "presence"

static const char *open_streams[OPEN_STREAMS_MAX];
static unsigned open_stream_count;
static volatile sig_atomic_t stop_asked;

static void ask_to_stop(int number)
{
    (void)number;
    stop_asked = 1;
}

static bool stream_is_open(const char *stream)
{
    if (strcmp(stream, OWN_STREAM) == 0)
        return true;
    for (unsigned i = 0; i < open_stream_count; i++)
        if (strcmp(stream, open_streams[i]) == 0)
            return true;
    return false;
}

/* {"user": "..."} with a name in it. */
static bool context_has_user(struct weir_text context)
{
    char user[NAME_BYTES];
    return weir_json_string(weir_json_member(context, "user"), user, sizeof user) > 0;
}

/* One more or one less in the group the payload of a join or leave names. Its names are JSON strings
 * already: they go into the call as they stand there. */
static void count(struct weir_client *client, struct weir_text payload, int by)
{
    struct weir_text stream = weir_json_member(payload, "stream_name");
    struct weir_text group = weir_json_member(payload, "group_id");
    char name[NAME_BYTES];
    if (weir_json_string(stream, name, sizeof name) >= 0 && strcmp(name, OWN_STREAM) == 0)
        return; /* who watches the figures is not counted */
    static char json[JSON_BYTES];
    int bytes = snprintf(json, sizeof json,
                         "{\"stream_name\":\"" OWN_STREAM "\",\"group_id\":%.*s,\"item_id\":%.*s,"
                         "\"ops\":[{\"type\":\"increment\",\"path\":\"here\",\"by\":%d}]}",
                         (int)stream.bytes, stream.data, (int)group.bytes, group.data, by);
    if (bytes < 0 || (size_t)bytes >= sizeof json)
        return;
    const struct weir_call call = {.function_id = "stream::update", .json = weir_text(json)};
    if (weir_client_call(client, &call, NULL, NULL) != 0)
        (void)fprintf(stderr, "presence: not counted: %s\n", weir_client_error(client));
}

/* {"unauthorized": true} refuses; anything else lets the subscriber in. */
static void answer_gate(void *context, struct weir_client *client,
                        const struct weir_invocation *invocation)
{
    (void)context;
    char stream[NAME_BYTES];
    bool is_allowed =
        weir_json_string(weir_json_member(invocation->json, "stream_name"), stream,
                         sizeof stream) >= 0 &&
        (stream_is_open(stream) || context_has_user(weir_json_member(invocation->json, "context")));
    if (is_allowed)
        count(client, invocation->json, 1);
    (void)weir_client_answer(client, invocation->id,
                             weir_text(is_allowed ? "{}" : "{\"unauthorized\":true}"));
}

static void answer_left(void *context, struct weir_client *client,
                        const struct weir_invocation *invocation)
{
    (void)context;
    count(client, invocation->json, -1);
    (void)weir_client_answer(client, invocation->id, (struct weir_text){NULL, 0});
}

/* ---- running ---- */

static void report_rejection(void *context, const char *function_id, const char *code)
{
    (void)context;
    (void)fprintf(stderr, "presence: %s: %s; waiting in line\n", function_id, code);
}

static void report_bind_failure(void *context, const char *trigger_id, const char *code,
                                const char *message)
{
    (void)context;
    (void)fprintf(stderr, "presence: trigger %s: %s: %s\n", trigger_id, code, message);
}

static void report_loss(void *context, const char *reason)
{
    (void)context;
    if (!stop_asked)
        (void)fprintf(stderr, "presence: %s; connecting again\n", reason);
}

static int offer_all(struct weir_client *client)
{
    const struct weir_function functions[] = {
        {.id = "presence::gate",
         .description = "Who may subscribe to what",
         .handler = answer_gate},
        {.id = "presence::left", .description = "Counts who has left", .handler = answer_left},
    };
    const struct weir_trigger triggers[] = {
        {.type = "stream:join", .function_id = "presence::gate", .config = weir_text("{}")},
        {.type = "stream:leave", .function_id = "presence::left", .config = weir_text("{}")},
    };
    int result = 0;
    for (unsigned i = 0; i < 2 && result == 0; i++)
        result = weir_client_register(client, &functions[i]);
    for (unsigned i = 0; i < 2 && result == 0; i++)
        result = weir_client_bind(client, &triggers[i], NULL);
    return result;
}

static int serve(struct weir_client *client)
{
    while (!stop_asked) {
        struct pollfd wait = {weir_client_fd(client), weir_client_events(client), 0};
        if (poll(&wait, 1, weir_client_timeout_ms(client)) < 0 && errno != EINTR)
            return -errno;
        int result = weir_client_process(client);
        if (result != 0)
            return result;
    }
    return 0;
}

int main(int argument_count, char **arguments)
{
    struct weir_client_options options = {.name = "presence",
                                          .on_disconnect = report_loss,
                                          .on_rejected = report_rejection,
                                          .on_bind_failed = report_bind_failure};
    for (int index = 1; index + 1 < argument_count; index += 2) {
        if (strcmp(arguments[index], "--socket") == 0)
            options.socket_path = arguments[index + 1];
        else if (strcmp(arguments[index], "--open") == 0 && open_stream_count < OPEN_STREAMS_MAX)
            open_streams[open_stream_count++] = arguments[index + 1];
        else
            argument_count = 0;
    }
    if (argument_count % 2 == 0) {
        (void)fprintf(
            stderr,
            "usage: presence [--socket PATH] [--open STREAM]...\n"
            "  --socket  a gateway's socket (default: $WEIR_SOCKET, or the run directory's)\n"
            "  --open    a stream anybody may subscribe to; up to %d times\n",
            OPEN_STREAMS_MAX);
        return 2;
    }
    struct sigaction action = {.sa_handler = ask_to_stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    struct weir_client *client;
    char error[WEIR_ERROR_BYTES];
    if (weir_client_open(&client, &options, error, sizeof error) != 0) {
        (void)fprintf(stderr, "presence: %s\n", error);
        return 1;
    }
    int result = offer_all(client);
    if (result == 0)
        result = serve(client);
    if (result != 0)
        (void)fprintf(stderr, "presence: %s\n", weir_client_error(client));
    weir_client_close(client);
    return result == 0 ? 0 : 1;
}

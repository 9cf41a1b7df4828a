#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/json_text.h"
#include "cli/rundir.h"
#include "client/weir.h"
#include "config/settings.h"
#include "shm/json.h"

struct trigger {
    const char *function_id;
    unsigned timeout_ms;
    char socket_path[SETTINGS_TEXT_BYTES + 16]; /* empty: libweir's own choice */
    char **operands;                            /* behind the function */
    size_t operand_count;
    struct buffer data;
    bool is_done;
    int exit_status;
};

static enum weir_status trigger_read_timeout(struct trigger *trigger, const char *text,
                                             struct weir_error *error)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || number == 0 ||
        number > 86400000)
        return weir_fail(error, WEIR_INVALID, "--timeout-ms %.40s: use 1 to 86400000 milliseconds",
                         text);
    trigger->timeout_ms = (unsigned)number;
    return WEIR_OK;
}

/* The socket in the run_dir that a server with this file, or with this run_dir, uses. */
static enum weir_status trigger_find_socket(struct trigger *trigger, const char *config_path,
                                            const char *run_dir, struct weir_error *error)
{
    struct settings settings;
    settings_init(&settings);
    enum weir_status status = WEIR_OK;
    if (config_path != NULL)
        status = settings_load(&settings, config_path, error);
    if (status == WEIR_OK)
        status = settings_resolve(&settings, error);
    if (status == WEIR_OK)
        (void)snprintf(trigger->socket_path, sizeof trigger->socket_path, "%s/%s",
                       run_dir != NULL ? run_dir : settings.run_dir, RUNDIR_SOCKET_NAME);
    settings_fini(&settings);
    return status;
}

static int trigger_read_arguments(struct trigger *trigger, int argc, char **argv)
{
    struct arguments arguments = {.argc = argc, .argv = argv, .position = 1};
    struct weir_error error = {.status = WEIR_OK};
    const char *socket_path = NULL;
    const char *config_path = NULL;
    const char *run_dir = NULL;
    bool is_option;
    const char *argument;
    while ((argument = arguments_next(&arguments, &is_option)) != NULL) {
        const char *value = argument;
        if (!is_option) {
            if (trigger->function_id == NULL)
                trigger->function_id = argument;
            else
                trigger->operands[trigger->operand_count++] = argv[arguments.position - 1];
        } else if (arguments_take_value(&arguments, argument, "--timeout-ms", &value)) {
            if (value != NULL && trigger_read_timeout(trigger, value, &error) != WEIR_OK)
                break;
        } else if (arguments_take_value(&arguments, argument, "--socket", &value)) {
            socket_path = value;
        } else if (arguments_take_value(&arguments, argument, "--run-dir", &value)) {
            run_dir = value;
        } else if (arguments_take_value(&arguments, argument, "--config", &value)) {
            config_path = value;
        } else {
            return arguments_refuse("trigger", argument);
        }
        if (value == NULL)
            return EXIT_MISUSED;
    }
    if (error.status == WEIR_OK && trigger->function_id == NULL)
        (void)weir_fail(&error, WEIR_INVALID, "trigger needs a FUNCTION; see `weir help trigger`");
    if (error.status == WEIR_OK && socket_path != NULL) {
        if (strlen(socket_path) >= sizeof trigger->socket_path)
            (void)weir_fail(&error, WEIR_INVALID, "the path for --socket is too long");
        else
            memcpy(trigger->socket_path, socket_path, strlen(socket_path) + 1);
    } else if (error.status == WEIR_OK && (config_path != NULL || run_dir != NULL)) {
        (void)!trigger_find_socket(trigger, config_path, run_dir, &error);
    }
    if (error.status == WEIR_OK)
        return EXIT_DONE;
    (void)fprintf(stderr, "weir: %s\n", error.text);
    return EXIT_MISUSED;
}

static enum weir_status trigger_read_input(struct buffer *out, struct weir_error *error)
{
    for (;;) {
        if (buffer_reserve(out, 65536) != WEIR_OK)
            return weir_fail(error, WEIR_TOO_LARGE,
                             "standard input is larger than a message may be");
        ssize_t bytes = read(STDIN_FILENO, out->data + out->bytes, 65536);
        if (bytes == 0)
            return WEIR_OK;
        if (bytes > 0)
            out->bytes += (size_t)bytes;
        else if (errno != EINTR)
            return weir_fail_errno(error, errno, "cannot read standard input");
    }
}

static int trigger_build_data(struct trigger *trigger)
{
    struct weir_error error = {.status = WEIR_OK};
    enum weir_status status = WEIR_OK;
    const char *first = trigger->operand_count == 1 ? trigger->operands[0] : NULL;
    struct json_value value;
    if (first != NULL && strcmp(first, "-") == 0) {
        struct json_problem problem;
        status = trigger_read_input(&trigger->data, &error);
        if (status == WEIR_OK &&
            json_scan(buffer_span(&trigger->data), JSON_DEPTH_MAX - 2, &value, &problem) != WEIR_OK)
            status = weir_fail(&error, WEIR_INVALID, "standard input is not JSON: %s at byte %zu",
                               problem.reason, problem.offset);
    } else if (first != NULL &&
               (json_scan(span_text(first), JSON_DEPTH_MAX - 2, &value, NULL) == WEIR_OK ||
                strchr(first, '=') == NULL || strchr("{[\"", *first) != NULL)) {
        struct json_problem problem;
        if (json_scan(span_text(first), JSON_DEPTH_MAX - 2, &value, &problem) != WEIR_OK)
            status = weir_fail(&error, WEIR_INVALID,
                               "the argument is neither KEY=VALUE nor JSON: %s at byte %zu",
                               problem.reason, problem.offset);
        else if (buffer_append(&trigger->data, value.text) != WEIR_OK)
            status = weir_fail(&error, WEIR_NO_MEMORY, "no memory for the argument");
    } else {
        status =
            json_text_from_pairs(&trigger->data, trigger->operands, trigger->operand_count, &error);
    }
    if (status == WEIR_OK)
        return EXIT_DONE;
    (void)fprintf(stderr, "weir: %s\n", error.text);
    return EXIT_MISUSED;
}

static void trigger_print(struct weir_text json)
{
    struct span text = span_of(json.data, json.bytes);
    struct buffer laid_out;
    buffer_init(&laid_out, (size_t)1 << 30);
    if (isatty(STDOUT_FILENO) && json_text_indent(&laid_out, text) == WEIR_OK)
        text = buffer_span(&laid_out);
    (void)fwrite(text.data, 1, text.bytes, stdout);
    (void)putchar('\n');
    buffer_fini(&laid_out);
}

static void trigger_take_result(void *context, const struct weir_result *result)
{
    struct trigger *trigger = context;
    trigger->is_done = true;
    if (result->error_code != NULL) {
        (void)fprintf(stderr, "%s: %s\n", result->error_code, result->error_message);
        trigger->exit_status = EXIT_FAILED;
    } else if (result->json.data != NULL) {
        trigger_print(result->json);
    }
}

static int trigger_call(struct trigger *trigger)
{
    char error[WEIR_ERROR_BYTES];
    struct weir_client *client;
    struct weir_client_options options = {
        .name = "weir-trigger",
        .socket_path = *trigger->socket_path != '\0' ? trigger->socket_path : NULL,
        .ends_on_loss = true,
    };
    if (weir_client_open(&client, &options, error, sizeof error) != 0) {
        (void)fprintf(stderr, "weir: %s\n", error);
        return EXIT_FAILED;
    }
    const struct weir_call call = {
        .function_id = trigger->function_id,
        .json = {trigger->data.data, trigger->data.bytes},
        .timeout_ms = trigger->timeout_ms,
    };
    if (weir_client_call(client, &call, trigger_take_result, trigger) != 0) {
        (void)fprintf(stderr, "weir: %s\n", weir_client_error(client));
        trigger->exit_status = EXIT_FAILED;
    } else {
        int result = -EINTR;
        while (result == -EINTR) /* the call's own time limit ends it */
            result = weir_client_run_until(client, &trigger->is_done, -1);
    }
    weir_client_close(client);
    return trigger->exit_status;
}

int trigger_run(int argc, char **argv)
{
    struct trigger trigger = {.function_id = NULL};
    buffer_init(&trigger.data, WIRE_FRAME_BYTES_MAX);
    trigger.operands = calloc((size_t)argc, sizeof *trigger.operands);
    if (trigger.operands == NULL)
        return EXIT_FAILED;
    int exit_status = trigger_read_arguments(&trigger, argc, argv);
    if (exit_status == EXIT_DONE)
        exit_status = trigger_build_data(&trigger);
    if (exit_status == EXIT_DONE)
        exit_status = trigger_call(&trigger);
    if (fflush(stdout) != 0 && exit_status == EXIT_DONE)
        exit_status = EXIT_FAILED;
    buffer_fini(&trigger.data);
    free(trigger.operands);
    return exit_status;
}

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/log_command.h"
#include "config/settings.h"
#include "shm/json.h"

/* Options a subcommand knows beside those that all know. */
enum { LOG_KNOWS_FILTER = 1, LOG_KNOWS_FROM = 2, LOG_KNOWS_CUT = 4 };

static const struct log_subcommand {
    const char *name;
    int (*run)(const struct log_options *options);
    unsigned knows;
} log_subcommands[] = {
    {"verify", log_verify, 0},
    {"dump", log_dump, LOG_KNOWS_FILTER | LOG_KNOWS_FROM},
    {"export", log_export, LOG_KNOWS_FILTER},
    {"import", log_import, 0},
    {"repair", log_repair, LOG_KNOWS_CUT},
};

/* ---- what the subcommands share ---- */

int log_fail(const struct weir_error *error)
{
    (void)fprintf(stderr, "weir: %s\n", error->text);
    return EXIT_FAILED;
}

int log_flush(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && ferror(stdout) == 0)
        return EXIT_DONE;
    (void)fprintf(stderr, "weir: cannot write to standard output: %s\n",
                  errno != 0 ? strerror(errno) : "an earlier write failed");
    return EXIT_FAILED;
}

void log_show_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    progress_update(context, done_bytes, total_bytes);
}

bool log_wants(const struct log_options *options, struct span stream, struct span group)
{
    return (options->stream == NULL || span_equal(span_text(options->stream), stream)) &&
           (options->group == NULL || span_equal(span_text(options->group), group));
}

void log_print_time(char text[LOG_TIME_BYTES], uint64_t time_ms)
{
    time_t seconds = (time_t)(time_ms / 1000);
    struct tm utc;
    char day[24];
    if (gmtime_r(&seconds, &utc) == NULL || strftime(day, sizeof day, "%F %T", &utc) == 0)
        day[0] = '\0';
    (void)snprintf(text, LOG_TIME_BYTES, "%s.%03u", day, (unsigned)(time_ms % 1000));
}

/* ---- the command line ---- */

static bool log_parse_number(const char *text, const char **end, uint64_t *number)
{
    char *stop = NULL;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *number = strtoull(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

/* SEGMENT:OFFSET, where the segment may be written as its file's name. */
static bool log_parse_cut(struct log_options *options, const char *text)
{
    if (strncmp(text, "log-", 4) == 0)
        text += 4;
    const char *end = NULL;
    return log_parse_number(text, &end, &options->cut_segment) && options->cut_segment > 0 &&
           *end == ':' && log_parse_number(end + 1, &end, &options->cut_offset) && *end == '\0';
}

/* True when `option` is one of this subcommand's; *value is NULL, and the reason said, when its value is
 * not acceptable. */
static bool log_take_option(struct log_options *options, const struct log_subcommand *subcommand,
                            struct arguments *arguments, const char *option, const char **value)
{
    if (strcmp(option, "--quiet") == 0) {
        options->is_quiet = true;
        return true;
    }
    if (arguments_take_value(arguments, option, "--config", value)) {
        options->config_path = *value;
        return true;
    }
    if ((subcommand->knows & LOG_KNOWS_CUT) != 0 && strcmp(option, "--yes") == 0) {
        options->is_agreed = true;
        return true;
    }
    if ((subcommand->knows & LOG_KNOWS_FILTER) != 0) {
        if (arguments_take_value(arguments, option, "--stream", value)) {
            options->stream = *value;
            return true;
        }
        if (arguments_take_value(arguments, option, "--group", value)) {
            options->group = *value;
            return true;
        }
    }
    if ((subcommand->knows & LOG_KNOWS_FROM) != 0 &&
        arguments_take_value(arguments, option, "--from", value)) {
        const char *end = "";
        if (*value != NULL &&
            (!log_parse_number(*value, &end, &options->from_frame) || *end != '\0')) {
            (void)fprintf(stderr, "weir: --from %s: use the number of a frame\n", *value);
            *value = NULL;
        }
        return true;
    }
    if ((subcommand->knows & LOG_KNOWS_CUT) != 0 &&
        arguments_take_value(arguments, option, "--cut-at", value)) {
        if (*value != NULL && !log_parse_cut(options, *value)) {
            (void)fprintf(stderr,
                          "weir: --cut-at %s: use SEGMENT:OFFSET, as `weir log verify` names the "
                          "place\n",
                          *value);
            *value = NULL;
        }
        return true;
    }
    return false;
}

static int log_read_arguments(struct log_options *options, const struct log_subcommand *subcommand,
                              int argc, char **argv)
{
    struct arguments arguments = {.argc = argc, .argv = argv, .position = 1};
    bool is_option;
    const char *argument;
    while ((argument = arguments_next(&arguments, &is_option)) != NULL) {
        const char *value = argument;
        if (!is_option) {
            if (options->directory != NULL) {
                (void)fprintf(stderr, "weir: log %s takes one directory, not %s as well\n",
                              subcommand->name, argument);
                return EXIT_MISUSED;
            }
            options->directory = argument;
        } else if (!log_take_option(options, subcommand, &arguments, argument, &value)) {
            (void)fprintf(stderr, "weir: log %s does not know the option %s; see `weir help log`\n",
                          subcommand->name, argument);
            return EXIT_MISUSED;
        }
        if (value == NULL)
            return EXIT_MISUSED;
    }
    if (options->directory == NULL && options->config_path == NULL) {
        (void)fprintf(
            stderr,
            "weir: log %s needs the directory of the log, or --config FILE with data_dir; "
            "see `weir help log`\n",
            subcommand->name);
        return EXIT_MISUSED;
    }
    if ((subcommand->knows & LOG_KNOWS_CUT) != 0 && options->cut_segment == 0) {
        (void)fprintf(stderr, "weir: log repair needs --cut-at SEGMENT:OFFSET, the place that "
                              "`weir log verify` names; see `weir help log`\n");
        return EXIT_MISUSED;
    }
    return EXIT_DONE;
}

/* The directory of the server with this file; `directory` is where its name is kept. */
static int log_find_directory(struct log_options *options, char directory[SETTINGS_TEXT_BYTES])
{
    if (options->directory != NULL)
        return EXIT_DONE;
    struct settings settings;
    struct weir_error error = {.status = WEIR_OK};
    settings_init(&settings);
    enum weir_status status = settings_load(&settings, options->config_path, &error);
    if (status == WEIR_OK && settings.data_dir[0] == '\0')
        status = weir_fail(&error, WEIR_INVALID,
                           "%.120s has no data_dir: items are kept in memory only, and there is no "
                           "log",
                           options->config_path);
    memcpy(directory, settings.data_dir, sizeof settings.data_dir);
    settings_fini(&settings);
    options->directory = directory;
    return status == WEIR_OK ? EXIT_DONE : log_fail(&error);
}

int log_run(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    for (size_t i = 0; name != NULL && i < sizeof log_subcommands / sizeof log_subcommands[0];
         i++) {
        const struct log_subcommand *subcommand = &log_subcommands[i];
        if (strcmp(name, subcommand->name) != 0)
            continue;
        struct log_options options = {0};
        char directory[SETTINGS_TEXT_BYTES];
        int exit_status = log_read_arguments(&options, subcommand, argc - 1, argv + 1);
        if (exit_status == EXIT_DONE)
            exit_status = log_find_directory(&options, directory);
        return exit_status == EXIT_DONE ? subcommand->run(&options) : exit_status;
    }
    if (name == NULL)
        (void)fprintf(stderr, "weir: log needs one of verify, dump, export, import and repair; see "
                              "`weir help log`\n");
    else
        (void)fprintf(stderr, "weir: log cannot %s; see `weir help log`\n", name);
    return EXIT_MISUSED;
}

#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "config/settings.h"

const char *arguments_next(struct arguments *arguments, bool *is_option)
{
    if (arguments->position >= arguments->argc)
        return NULL;
    const char *argument = arguments->argv[arguments->position++];
    *is_option = false;
    if (arguments->is_options_over)
        return argument;
    if (strcmp(argument, "--") == 0) {
        arguments->is_options_over = true;
        return arguments_next(arguments, is_option);
    }
    *is_option = argument[0] == '-' && argument[1] != '\0';
    return argument;
}

bool arguments_take_value(struct arguments *arguments, const char *option, const char *name,
                          const char **value)
{
    size_t bytes = strlen(name);
    if (strncmp(option, name, bytes) != 0)
        return false;
    if (option[bytes] == '=') {
        *value = option + bytes + 1;
        return true;
    }
    if (option[bytes] != '\0')
        return false;
    *value = arguments->argv[arguments->position]; /* argv ends with NULL */
    if (*value != NULL)
        arguments->position++;
    else
        (void)fprintf(stderr, "weir: option %s needs a value\n", name);
    return true;
}

int arguments_refuse(const char *command, const char *option)
{
    (void)fprintf(stderr, "weir: %s does not know the option %s; see `weir help %s`\n", command,
                  option, command);
    return EXIT_MISUSED;
}

int arguments_refuse_operand(const char *command, const char *operand)
{
    (void)fprintf(stderr, "weir: %s takes options only, not %s; see `weir help %s`\n", command,
                  operand, command);
    return EXIT_MISUSED;
}

static int help_run(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "settings") == 0 && strcmp(argv[2], "--markdown") == 0) {
        settings_print_markdown(stdout);
        return EXIT_DONE;
    }
    if (argc <= 2 && help_print(argv[1]))
        return EXIT_DONE;
    (void)fprintf(stderr, "weir: there is no help on %s; see `weir help`\n", argv[1]);
    return EXIT_MISUSED;
}

static int version_run(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    (void)printf("weir %s\n", WEIR_VERSION);
    return EXIT_DONE;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"serve", serve_run},       {"drain", drain_run}, {"trigger", trigger_run},
    {"tail", tail_run},         {"log", log_run},     {"help", help_run},
    {"version", version_run},   {"--help", help_run}, {"-h", help_run},
    {"--version", version_run},
};

int main(int argc, char **argv)
{
    if (argc < 2) {
        (void)fprintf(stderr, "weir: what is to be done? see `weir help`\n");
        return EXIT_MISUSED;
    }
    const char *name = argv[1];
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(name, commands[i].name) != 0)
            continue;
        for (int j = 2; j < argc && strcmp(argv[j], "--") != 0; j++) {
            if ((strcmp(argv[j], "--help") == 0 || strcmp(argv[j], "-h") == 0) && help_print(name))
                return EXIT_DONE;
        }
        return commands[i].run(argc - 1, argv + 1);
    }
    (void)fprintf(stderr, "weir: there is no command %s; see `weir help`\n", name);
    return EXIT_MISUSED;
}

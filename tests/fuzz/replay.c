/* Runs a fuzz target once over every file of the directories named, without libFuzzer: the corpora
 * are ordinary tests. */
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A block of exactly the file's size, so that AddressSanitizer sees a read beyond it. */
static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return -1;
    int result = -1;
    uint8_t *data = NULL;
    long bytes = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (bytes < 0 || fseek(file, 0, SEEK_SET) != 0)
        goto cleanup;
    data = malloc(bytes > 0 ? (size_t)bytes : 1);
    if (data == NULL || fread(data, 1, (size_t)bytes, file) != (size_t)bytes)
        goto cleanup;
    (void)printf("%s\n", path);
    (void)fflush(stdout); /* the file a crash belongs to is the last one named */
    result = LLVMFuzzerTestOneInput(data, (size_t)bytes);
cleanup:
    free(data);
    (void)fclose(file);
    return result;
}

/* Files replayed, or -1. */
static int replay_directory(const char *name)
{
    DIR *directory = opendir(name);
    if (directory == NULL)
        return -1;
    int count = 0;
    for (struct dirent *entry = readdir(directory); entry != NULL && count >= 0;
         entry = readdir(directory)) {
        char path[4096];
        if (entry->d_name[0] == '.')
            continue;
        int bytes = snprintf(path, sizeof path, "%s/%s", name, entry->d_name);
        bool fits = bytes > 0 && (size_t)bytes < sizeof path;
        count = fits && replay_file(path) == 0 ? count + 1 : -1;
    }
    (void)closedir(directory);
    return count;
}

int main(int argument_count, char **arguments)
{
    for (int index = 1; index < argument_count; index++) {
        int count = replay_directory(arguments[index]);
        if (count <= 0) {
            (void)fprintf(stderr, "%s: no corpus could be replayed\n", arguments[index]);
            return 1;
        }
        (void)printf("%s: %d files\n", arguments[index], count);
    }
    return argument_count > 1 ? 0 : 2;
}

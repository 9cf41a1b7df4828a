#include "broker/wal_directory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { NUMBER_DIGITS = 20, NUMBERS_FIRST = 64 };

static const char *prefix_of(enum wal_file_kind kind)
{
    return kind == WAL_FILE_LOG ? "log-" : "snapshot-";
}

void wal_name(char name[WAL_NAME_BYTES], enum wal_file_kind kind, uint64_t number)
{
    (void)snprintf(name, WAL_NAME_BYTES, "%s%0*" PRIu64, prefix_of(kind), NUMBER_DIGITS, number);
}

void wal_path(char path[WAL_PATH_BYTES], const char *directory, enum wal_file_kind kind,
              uint64_t number)
{
    char name[WAL_NAME_BYTES];
    wal_name(name, kind, number);
    int bytes = snprintf(path, WAL_PATH_BYTES, "%s/%s", directory, name);
    weir_assert(bytes > 0 && bytes < WAL_PATH_BYTES);
}

enum weir_status wal_directory_check(const char *path, struct weir_error *error)
{
    size_t bytes_max = WAL_PATH_BYTES - WAL_NAME_BYTES - sizeof "/" WAL_NEW_SUFFIX;
    if (path[0] != '\0' && strlen(path) <= bytes_max)
        return WEIR_OK;
    return weir_fail(error, WEIR_INVALID, "a log's directory has a path of 1 to %zu bytes",
                     bytes_max);
}

/* 0 when the name is not of this kind. */
uint64_t wal_name_number(const char *name, enum wal_file_kind kind)
{
    const char *prefix = prefix_of(kind);
    size_t prefix_bytes = strlen(prefix);
    uint64_t number = 0;
    if (strncmp(name, prefix, prefix_bytes) != 0)
        return 0;
    const char *digits = name + prefix_bytes;
    if (strlen(digits) != NUMBER_DIGITS)
        return 0;
    for (; *digits != '\0'; digits++) {
        uint64_t digit = (uint64_t)(*digits - '0');
        if (*digits < '0' || *digits > '9' || number > (UINT64_MAX - digit) / 10)
            return 0;
        number = number * 10 + digit;
    }
    return number;
}

static enum weir_status append_number(struct wal_numbers *numbers, uint64_t number)
{
    if (numbers->count == WAL_SEGMENTS_MAX)
        return WEIR_FULL;
    if (numbers->count == numbers->capacity) {
        size_t capacity = numbers->capacity == 0 ? NUMBERS_FIRST : 2 * numbers->capacity;
        uint64_t *list = realloc(numbers->list, capacity * sizeof *list);
        if (list == NULL)
            return WEIR_NO_MEMORY;
        numbers->list = list;
        numbers->capacity = capacity;
    }
    numbers->list[numbers->count++] = number;
    return WEIR_OK;
}

struct listing {
    struct wal_directory *directory;
    enum weir_status status;
};

static int take_name(void *context, const char *name)
{
    struct listing *listing = context;
    uint64_t segment = wal_name_number(name, WAL_FILE_LOG);
    uint64_t snapshot = wal_name_number(name, WAL_FILE_SNAPSHOT);
    if (segment > 0)
        listing->status = append_number(&listing->directory->segments, segment);
    else if (snapshot > 0)
        listing->status = append_number(&listing->directory->snapshots, snapshot);
    return listing->status != WEIR_OK;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t first = *(const uint64_t *)a;
    uint64_t second = *(const uint64_t *)b;
    return (first > second) - (first < second);
}

static void sort_numbers(struct wal_numbers *numbers)
{
    if (numbers->count > 0)
        qsort(numbers->list, numbers->count, sizeof numbers->list[0], compare_numbers);
}

enum weir_status wal_directory_list(struct wal_directory *directory, const struct wal_io *io,
                                    const char *path, struct weir_error *error)
{
    struct listing listing = {.directory = directory, .status = WEIR_OK};
    *directory = (struct wal_directory){0};
    enum weir_status status = wal_directory_check(path, error);
    if (status != WEIR_OK)
        return status;
    int result = io->list(io->context, path, take_name, &listing);
    if (listing.status == WEIR_FULL)
        return weir_fail(error, WEIR_FULL, "the log's directory has more than %d files",
                         WAL_SEGMENTS_MAX);
    if (listing.status != WEIR_OK)
        return weir_fail(error, listing.status, "no memory for the list of the log's files");
    if (result < 0 && result != -ENOENT)
        return weir_fail_errno(error, -result, "the log's directory cannot be listed");
    sort_numbers(&directory->segments);
    sort_numbers(&directory->snapshots);
    return WEIR_OK;
}

void wal_directory_fini(struct wal_directory *directory)
{
    free(directory->segments.list);
    free(directory->snapshots.list);
    *directory = (struct wal_directory){0};
}

#include "tests/torture/damage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/torture/world.h"

enum { IMAGE_BYTES_MAX = 256 << 20, TAIL_BYTES_MAX = 4096 };

/* ---- reading ---- */

static bool file_read(struct image_file *file, const char *path, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    file->data = malloc(bytes + 1);
    bool is_read = fd >= 0 && file->data;
    for (size_t done = 0; is_read && done < bytes;) {
        ssize_t got = read(fd, file->data + done, bytes - done);
        if (got <= 0)
            is_read = false;
        else
            done += (size_t)got;
    }
    if (fd >= 0)
        (void)close(fd);
    file->bytes = bytes;
    file->used_bytes = bytes;
    while (is_read && file->used_bytes > 0 && file->data[file->used_bytes - 1] == 0)
        file->used_bytes--;
    return is_read;
}

static bool directory_read(struct image *image, const char *directory, const char *below,
                           size_t *total)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", directory, below);
    DIR *entries = opendir(path);
    bool is_read = entries != NULL;
    const struct dirent *entry;
    while (is_read && (entry = readdir(entries)) != NULL) {
        char name[IMAGE_NAME_BYTES + 256];
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        int length = snprintf(name, sizeof name, "%s%s%s", below, *below ? "/" : "", entry->d_name);
        (void)snprintf(path, sizeof path, "%s/%.380s", directory, name);
        if (length >= IMAGE_NAME_BYTES || stat(path, &status) != 0) {
            is_read = false;
        } else if (S_ISDIR(status.st_mode)) {
            is_read = directory_read(image, directory, name, total);
        } else if (S_ISREG(status.st_mode)) {
            *total += (size_t)status.st_size;
            is_read = image->count < IMAGE_FILES_MAX && *total < IMAGE_BYTES_MAX;
            if (!is_read)
                break;
            struct image_file *file = &image->files[image->count++];
            (void)snprintf(file->name, sizeof file->name, "%.127s", name);
            is_read = file_read(file, path, (size_t)status.st_size);
        }
    }
    if (entries)
        (void)closedir(entries);
    return is_read;
}

static bool number_of(const char *name, const char *prefix, uint64_t *number)
{
    size_t bytes = strlen(prefix);
    char *end = NULL;
    if (strncmp(name, prefix, bytes) != 0)
        return false;
    *number = strtoull(name + bytes, &end, 10);
    return end != name + bytes && *end == 0;
}

/* What a start of weir does not look at: the lock, what is being made, what a newer snapshot contains. The
 * record of the last life is as good as none when it is spoiled (broker/wal_life.h). */
static void image_pass_over(struct image *image)
{
    uint64_t newest = 0, number = 0;
    for (unsigned index = 0; index < image->count; index++)
        if (number_of(image->files[index].name, "snapshot-", &number) && number > newest)
            newest = number;
    for (unsigned index = 0; index < image->count; index++) {
        struct image_file *file = &image->files[index];
        size_t bytes = strlen(file->name);
        bool is_new = bytes > 4 && strcmp(file->name + bytes - 4, ".new") == 0;
        bool is_old = (number_of(file->name, "snapshot-", &number) ||
                       number_of(file->name, "log-", &number)) &&
                      number < newest;
        bool is_none = strcmp(file->name, "lock") == 0 || strcmp(file->name, "life") == 0;
        if (is_none || is_new || is_old)
            file->used_bytes = 0;
    }
}

static int file_order(const void *left, const void *right)
{
    return strcmp(((const struct image_file *)left)->name,
                  ((const struct image_file *)right)->name);
}

bool image_read(struct image *image, const char *directory)
{
    size_t total = 0;
    *image = (struct image){0};
    bool is_read = directory_read(image, directory, "", &total);
    qsort(image->files, image->count, sizeof image->files[0], file_order);
    image_pass_over(image);
    return is_read;
}

void image_free(struct image *image)
{
    for (unsigned index = 0; index < image->count; index++)
        free(image->files[index].data);
    *image = (struct image){0};
}

/* ---- choosing ---- */

/* redis: where the last command of an append-only file starts; 0: this is none. */
static size_t last_command(const struct image_file *file)
{
    size_t at = 0, last = 0;
    while (at < file->bytes && (file->data[at] == '*' || file->data[at] == '#')) {
        const char *line = memchr(file->data + at, '\n', file->bytes - at);
        if (!line)
            break;
        if (file->data[at] == '#') {
            at = (size_t)(line + 1 - file->data);
            continue;
        }
        size_t next = (size_t)(line + 1 - file->data);
        long parts = strtol(file->data + at + 1, NULL, 10);
        for (long part = 0; part < parts && next < file->bytes; part++) {
            line = memchr(file->data + next, '\n', file->bytes - next);
            if (!line)
                return last;
            next = (size_t)(line + 1 - file->data) +
                   (size_t)strtoul(file->data + next + 1, NULL, 10) + 2;
        }
        if (next > file->bytes)
            break;
        last = at;
        at = next;
    }
    return last;
}

/* The file that was written last is the last of its kind by name. */
static bool choose_tail(const struct image *image, uint64_t *random, struct damage *damage)
{
    for (unsigned index = image->count; index-- > 0;) {
        const struct image_file *file = &image->files[index];
        bool is_log = strncmp(file->name, "log-", 4) == 0 || strcmp(file->name, "frames") == 0 ||
                      strstr(file->name, ".incr.aof") != NULL;
        if (!is_log || file->used_bytes < 64)
            continue;
        size_t first = last_command(file);
        if (first == 0) /* the last block in use, where frames are made of blocks */
            first = (file->used_bytes - 1) / TAIL_BYTES_MAX * TAIL_BYTES_MAX;
        damage->file = index;
        damage->offset = first + 1 + world_random(random) % (file->used_bytes - first);
        if (damage->offset >= file->used_bytes)
            damage->offset = file->used_bytes - 1;
        return true;
    }
    return false;
}

bool image_choose(const struct image *image, enum damage_kind kind, uint64_t *random,
                  struct damage *damage)
{
    uint64_t total = 0, files = 0;
    *damage = (struct damage){.kind = kind};
    if (kind == DAMAGE_TAIL)
        return choose_tail(image, random, damage);
    for (unsigned index = 0; index < image->count; index++) {
        total += image->files[index].used_bytes;
        files += image->files[index].used_bytes > 0;
    }
    if (total == 0)
        return false;
    /* One in eight in whichever file, so that small ones have their turn. */
    bool any_file = world_random(random) % 8 == 0;
    uint64_t at = world_random(random) % (any_file ? files : total);
    for (unsigned index = 0; index < image->count; index++) {
        const struct image_file *file = &image->files[index];
        uint64_t share = any_file ? file->used_bytes > 0 : file->used_bytes;
        if (at >= share) {
            at -= share;
            continue;
        }
        damage->file = index;
        damage->offset = any_file ? world_random(random) % file->used_bytes : at;
        damage->bit = (unsigned)(world_random(random) % 8);
        if (kind == DAMAGE_TRUNCATE && world_random(random) % 4 == 0)
            damage->offset = damage->offset / 4096 * 4096; /* as file systems like to */
        return true;
    }
    return false;
}

void damage_text(const struct image *image, const struct damage *damage, char text[192])
{
    const char *name = image->files[damage->file].name;
    if (damage->kind == DAMAGE_FLIP)
        (void)snprintf(text, 192, "%s: bit %u of byte %llu changed", name, damage->bit,
                       (unsigned long long)damage->offset);
    else
        (void)snprintf(text, 192, "%s: cut to %llu bytes", name,
                       (unsigned long long)damage->offset);
}

/* ---- writing ---- */

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)status;
    (void)type;
    (void)where;
    return remove(path);
}

bool directory_remove(const char *directory)
{
    return nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT;
}

static bool file_write(const struct image_file *file, const char *path, const struct damage *damage)
{
    size_t bytes = file->bytes;
    if (damage && damage->kind != DAMAGE_FLIP)
        bytes = (size_t)damage->offset;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool is_written = fd >= 0;
    for (size_t done = 0; is_written && done < bytes;) {
        ssize_t written = write(fd, file->data + done, bytes - done);
        if (written <= 0)
            is_written = false;
        else
            done += (size_t)written;
    }
    if (is_written && damage && damage->kind == DAMAGE_FLIP) {
        char byte = (char)(file->data[damage->offset] ^ (1 << damage->bit));
        is_written = pwrite(fd, &byte, 1, (off_t)damage->offset) == 1;
    }
    if (fd >= 0)
        (void)close(fd);
    return is_written;
}

bool image_write(const struct image *image, const char *directory, const struct damage *damage)
{
    if (!directory_remove(directory) || mkdir(directory, 0700) != 0)
        return false;
    for (unsigned index = 0; index < image->count; index++) {
        const struct image_file *file = &image->files[index];
        char path[512];
        int length = snprintf(path, sizeof path, "%s/%s", directory, file->name);
        if (length < 0 || (size_t)length >= sizeof path)
            return false;
        char *slash = strrchr(path, '/');
        *slash = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return false;
        *slash = '/';
        if (!file_write(file, path, damage && damage->file == index ? damage : NULL))
            return false;
    }
    return true;
}

static bool image_file_again(const struct image *image, const char *directory,
                             const struct damage *damage, bool is_spoiled)
{
    const struct image_file *file = &image->files[damage->file];
    char path[512];
    int length = snprintf(path, sizeof path, "%s/%s", directory, file->name);
    if (length < 0 || (size_t)length >= sizeof path)
        return false;
    if (damage->kind != DAMAGE_FLIP)
        return is_spoiled ? truncate(path, (off_t)damage->offset) == 0
                          : file_write(file, path, NULL);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    char byte = (char)(file->data[damage->offset] ^ (is_spoiled ? 1 << damage->bit : 0));
    bool is_written = fd >= 0 && pwrite(fd, &byte, 1, (off_t)damage->offset) == 1;
    if (fd >= 0)
        (void)close(fd);
    return is_written;
}

bool image_spoil(const struct image *image, const char *directory, const struct damage *damage)
{
    return image_file_again(image, directory, damage, true);
}

bool image_mend(const struct image *image, const char *directory, const struct damage *damage)
{
    return image_file_again(image, directory, damage, false);
}

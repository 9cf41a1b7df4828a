/* tests/torture/damage.h -- a data directory that stands still, and what happens to its files behind
 * everybody's back.
 *
 *   image_read() ── directory as it was left ──▶ image_spoil() ──▶ image_write() ── start a server on it
 *
 * Only bytes that are in use are changed: those before the last byte of a file that is not zero, of
 * files a start would read.
 *
 * Process and thread: one. Memory: an image holds the contents of all files.
 */
#ifndef WEIR_TESTS_TORTURE_DAMAGE_H
#define WEIR_TESTS_TORTURE_DAMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IMAGE_FILES_MAX = 256, IMAGE_NAME_BYTES = 128 };

struct image_file {
    char name[IMAGE_NAME_BYTES]; /* below the directory */
    char *data;
    size_t bytes;
    size_t used_bytes; /* 0: not to be touched */
};

struct image {
    struct image_file files[IMAGE_FILES_MAX];
    unsigned count;
};

enum damage_kind {
    DAMAGE_FLIP,     /* one bit */
    DAMAGE_TRUNCATE, /* the file ends at a random place */
    DAMAGE_TAIL,     /* the newest file that is appended to ends within its last write */
};

struct damage {
    enum damage_kind kind;
    unsigned file;
    uint64_t offset; /* the byte, or the new length */
    unsigned bit;
};

/* Everything below `directory`; false: it cannot be read, or is too large. */
bool image_read(struct image *image, const char *directory);
void image_free(struct image *image);
/* Make `directory` this image, and nothing else; `damage` (NULL: none) done to it. */
bool image_write(const struct image *image, const char *directory, const struct damage *damage);
/* The one damage to a directory that is this image, and back again. */
bool image_spoil(const struct image *image, const char *directory, const struct damage *damage);
bool image_mend(const struct image *image, const char *directory, const struct damage *damage);
/* A random place; `random` is the generator's state. False: nothing is in use. */
bool image_choose(const struct image *image, enum damage_kind kind, uint64_t *random,
                  struct damage *damage);
/* "log-...: bit 3 of byte 4711". */
void damage_text(const struct image *image, const struct damage *damage, char text[192]);

bool directory_remove(const char *directory);

#endif

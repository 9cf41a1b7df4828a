/* Fuzz target of gateway/handshake.h and gateway/frame.h: the input is what a client sends. The
 * first byte says in which pieces it is read; the events must be the same as in one piece. */
#include <stdio.h>
#include <stdlib.h>

#include "gateway/frame.h"
#include "gateway/handshake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    (void)fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void handshake_check(struct span bytes)
{
    struct handshake handshake;
    if (handshake_parse(bytes, &handshake) != WEIR_OK)
        return;
    require(handshake.head_bytes <= bytes.bytes, "the head is longer than the input");
    require(handshake.method == HANDSHAKE_OTHER || handshake.path.data[0] == '/',
            "a path without slash");
    if (handshake_is_valid_upgrade(&handshake))
        require(handshake.key.bytes == HANDSHAKE_KEY_BYTES, "an upgrade without key");
}

struct outcome {
    uint64_t hash;
    unsigned close_code;
};

static void outcome_mix(struct outcome *outcome, const void *data, size_t bytes)
{
    for (size_t index = 0; index < bytes; index++)
        outcome->hash = (outcome->hash ^ ((const uint8_t *)data)[index]) * 1099511628211u;
}

/* Each piece is a block of its own, so that AddressSanitizer sees what is read beyond it. */
static struct outcome frames_run(struct frame_pool *pool, const uint8_t *data, size_t bytes,
                                 size_t piece_bytes)
{
    struct frame_assembly *assembly = NULL;
    struct outcome outcome = {.hash = 14695981039346656037u};
    enum frame_event event = FRAME_MORE;
    for (size_t at = 0; at < bytes && event != FRAME_ERROR; at += piece_bytes) {
        size_t left = bytes - at < piece_bytes ? bytes - at : piece_bytes;
        char *piece = malloc(left);
        char *next = piece;
        require(piece != NULL, "no memory");
        memcpy(piece, data + at, left);
        struct frame_item item = {0};
        while ((event = frame_next(pool, &assembly, &next, &left, false, &item)) != FRAME_MORE &&
               event != FRAME_ERROR) {
            outcome_mix(&outcome, &event, sizeof(event));
            outcome_mix(&outcome, item.payload.data, item.payload.bytes);
        }
        outcome.close_code = item.close_code;
        free(piece);
    }
    frame_assembly_release(pool, &assembly);
    return outcome;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 2)
        return 0;
    struct frame_pool pool = {0};
    handshake_check(span_of(data + 1, bytes - 1));
    struct outcome whole = frames_run(&pool, data + 1, bytes - 1, bytes - 1);
    struct outcome cut = frames_run(&pool, data + 1, bytes - 1, 1u + data[0]);
    require(whole.hash == cut.hash, "the events depend on how the stream is cut");
    require(whole.close_code == cut.close_code, "the close code depends on how the stream is cut");
    frame_pool_fini(&pool);
    return 0;
}

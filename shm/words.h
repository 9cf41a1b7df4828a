/* shm/words.h -- the only ways to touch words another process may be touching: copies and fences.
 *
 * A plain load of a word that another process may be writing is a race. These copies move relaxed
 * atomic 8-byte words (one plain move each on x86-64 and arm64), so a torn *record* is possible and
 * is found by re-validation, a torn *word* is not.
 *
 * Process and thread: any; the protocol around the copy (ring.c, readers.c) says what a copy is
 * worth.
 * Memory:   the mapped side is 8-byte aligned; the private side need not be aligned.
 * Fences:   thin names, so that a protocol can point at them and gcc's -Wtsan (it does not model
 *           fences, and the mapped words are all atomic) is silenced in one place.
 */
#ifndef WEIR_SHM_WORDS_H
#define WEIR_SHM_WORDS_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { CACHE_LINE = 64, WORD_BYTES = 8 };

static_assert(sizeof(_Atomic uint64_t) == WORD_BYTES, "mapped words are as wide as they look");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "an atomic word that hides a lock cannot be shared");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "lengths below a word are cut from its low end");

static inline uint64_t shm_align_word(uint64_t bytes)
{
    return (bytes + (WORD_BYTES - 1)) & ~(uint64_t)(WORD_BYTES - 1);
}

/* Copy `bytes` into the mapping; the last word is filled up with zeros, so whole words are written. */
static inline void shm_copy_in(_Atomic uint64_t *to, const void *from, size_t bytes)
{
    const char *source = from;
    size_t words = bytes / WORD_BYTES;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, source + i * WORD_BYTES, WORD_BYTES);
        atomic_store_explicit(&to[i], word, memory_order_relaxed);
    }
    size_t rest = bytes % WORD_BYTES;
    if (rest != 0) {
        uint64_t word = 0;
        memcpy(&word, source + words * WORD_BYTES, rest);
        atomic_store_explicit(&to[words], word, memory_order_relaxed);
    }
}

/* Copy `bytes` out of the mapping; whole words are read, exactly `bytes` are written. */
static inline void shm_copy_out(void *to, const _Atomic uint64_t *from, size_t bytes)
{
    char *target = to;
    size_t words = bytes / WORD_BYTES;
    for (size_t i = 0; i < words; i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_relaxed);
        memcpy(target + i * WORD_BYTES, &word, WORD_BYTES);
    }
    size_t rest = bytes % WORD_BYTES;
    if (rest != 0) {
        uint64_t word = atomic_load_explicit(&from[words], memory_order_relaxed);
        memcpy(target + words * WORD_BYTES, &word, rest);
    }
}

#if defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
/* Stores before it are visible before stores after it. */
static inline void shm_fence_release(void)
{
    atomic_thread_fence(memory_order_release);
}
/* Loads before it are done before loads after it. */
static inline void shm_fence_acquire(void)
{
    atomic_thread_fence(memory_order_acquire);
}
/* The one that also keeps a store before a later load of another word. */
static inline void shm_fence_full(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
#if defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif

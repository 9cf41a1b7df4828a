/* tests/fence_litmus.c -- would anybody notice if a fence of ring.c or readers.c were taken out?
 *
 * This program is built from the real sources and once more per mutant (tests/mutants.cmake), each
 * of which lacks one fence. `fence_litmus MODE clean` must find no fault; `fence_litmus MODE
 * faulty` must find one.
 *
 *   doorbell   store head / load asleep against store asleep / load head: both looking away is a lost wake-up
 *   wanted     the same of a reader that is asleep for the broker all the time, and says at last what it wants:
 *              store head / load wanted against store wanted / load head
 *   enter      unlink / load reading_epoch against store reading_epoch / load link: both looking away gives a block away
 *              that a reader has just found
 *   ring       a reader at the very edge of the lap copies the record that is being overwritten
 *
 * The first three are the store-buffering litmus, the one reordering x86-64 shows: two threads meet
 * at a barrier, each does its half, delays swept so that the halves meet, the outcome is judged
 * after a second barrier. The last needs no rounds.
 *
 * Exit: 0 as wanted, 1 not as wanted, 77 skipped (a single processor cannot show it), 2 something
 *       failed.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "shm/layout.h"

enum {
    LITMUS_CLEAN_ROUNDS = 1000000,
    LITMUS_CLEAN_MS = 2500,
    LITMUS_HOPELESS_MS = 240000, /* a mutant is found in far less, also on a busy machine */
    LITMUS_SPINS =
        1000000, /* a millisecond or so: on a busy machine both sides must be there at once */
    EDGE_RING_BYTES = 64 * 1024,
    EDGE_SLOT_BYTES = 4096,
    EDGE_HEADER_BYTES = sizeof(struct ring_slot), /* a record has all of its slot */
};
#define LITMUS_GROUP_HASH 4711u

struct side {
    _Alignas(CACHE_LINE) _Atomic uint64_t arrived;
};

struct litmus {
    struct segment segment;
    struct readers *readers;
    struct ring_writer *writer;
    struct reader reader;
    struct ring_reader ring;
    uint64_t appended_position; /* of this round's record */
    _Atomic uint64_t *link;     /* first word of the store area */
    struct side sides[2];
    _Alignas(CACHE_LINE) _Atomic uint64_t stopped;
    /* One round's outcome of the reading thread, read after the second barrier. */
    _Alignas(CACHE_LINE) uint64_t slept;
    uint64_t link_seen;
    /* ring mode */
    _Alignas(CACHE_LINE) _Atomic uint64_t faults;
    _Atomic uint64_t reads;
};

static uint64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

static void give_up(const char *what)
{
    (void)fprintf(stderr, "fence_litmus: %s\n", what);
    exit(2);
}

/* Both sides have arrived `count` times when it returns. */
static void meet(struct litmus *litmus, unsigned side, uint64_t count)
{
    atomic_store_explicit(&litmus->sides[side].arrived, count, memory_order_release);
    for (unsigned spins = 0;
         atomic_load_explicit(&litmus->sides[1 - side].arrived, memory_order_acquire) < count;
         spins++)
        if (spins >= LITMUS_SPINS)
            (void)sched_yield();
}

/* Reader and writer on two different processors, however busy these are. */
static void take_processor(unsigned side)
{
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        give_up("sched_getaffinity");
    CPU_ZERO(&one);
    for (unsigned processor = 0, seen = 0; processor < CPU_SETSIZE; processor++)
        if (CPU_ISSET(processor, &allowed) && seen++ == side)
            CPU_SET(processor, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0)
        give_up("sched_setaffinity");
}

static void delay(uint64_t turns)
{
    for (uint64_t i = 0; i < turns; i++)
        atomic_signal_fence(memory_order_seq_cst);
}

static void doorbell_read(struct litmus *litmus)
{
    litmus->slept = reader_sleep(&litmus->reader, &litmus->segment, litmus->ring.position);
}

static void doorbell_prepare_read(struct litmus *litmus)
{
    reader_awake(&litmus->reader);
    ring_reader_seek_head(&litmus->ring);
}

static void wanted_read(struct litmus *litmus)
{
    reader_want(&litmus->reader, reader_wanted_bit(LITMUS_GROUP_HASH), true);
    doorbell_read(litmus);
}

/* As a gateway is that was not woken for what it did not want. */
static void wanted_prepare_read(struct litmus *litmus)
{
    doorbell_prepare_read(litmus);
    reader_choose(&litmus->reader, true);
    reader_want(&litmus->reader, reader_wanted_bit(LITMUS_GROUP_HASH), false);
    reader_set_cursor(&litmus->reader, litmus->ring.position, 0);
    if (!reader_sleep(&litmus->reader, &litmus->segment, litmus->ring.position))
        give_up("the ring has moved");
}

static void enter_read(struct litmus *litmus)
{
    reader_enter(&litmus->reader);
    litmus->link_seen = atomic_load_explicit(litmus->link, memory_order_acquire);
}

static void enter_prepare_read(struct litmus *litmus)
{
    if (litmus->reader.entered_epoch != 0 && reader_leave(&litmus->reader) != WEIR_OK)
        give_up("a reader was revoked that nobody revoked");
}

struct mode {
    const char *name;
    void (*read)(struct litmus *litmus);
    void (*prepare_read)(struct litmus *litmus);
    void (*prepare_write)(struct litmus *litmus);
    bool (*write)(struct litmus *litmus,
                  uint64_t round); /* true: the broker took no notice of the reader */
    bool (*reader_missed)(const struct litmus *litmus, uint64_t round);
};

/* Takes the reader's line away from its processor, so that the reader's store waits in its store
 * buffer while the load after it goes ahead: that is the window. (In service other lines of the
 * broker's turn do the same, less often.) */
static void steal_line(uint8_t *padding)
{
    atomic_fetch_add_explicit((_Atomic uint8_t *)padding, 1, memory_order_relaxed);
}

static void doorbell_prepare_write(struct litmus *litmus)
{
    steal_line(litmus->reader.page->padding_asleep);
    struct ring_record record = {.group_hash = LITMUS_GROUP_HASH,
                                 .previous_position = RING_NO_POSITION};
    if (ring_append(litmus->writer, &record, SPAN_LITERAL("frame"), (struct span){0}, NULL) !=
        WEIR_OK)
        give_up("ring_append");
    litmus->appended_position = record.position;
}

static void enter_prepare_write(struct litmus *litmus)
{
    steal_line(litmus->reader.page->padding_epoch);
}

static bool doorbell_write(struct litmus *litmus, uint64_t round)
{
    (void)round;
    ring_publish(litmus->writer);
    return readers_wake(litmus->readers, litmus->writer, litmus->appended_position,
                        ring_head(litmus->writer), 0)
               .woken == 0;
}

/* Of the reader's lines the broker has that of the bit to itself, and the others at hand: neither half waits
 * for anything but the other one's store. */
static bool wanted_write(struct litmus *litmus, uint64_t round)
{
    struct control_page *page = litmus->reader.page;
    unsigned bit = reader_wanted_bit(LITMUS_GROUP_HASH);
    (void)atomic_load_explicit(&page->asleep, memory_order_relaxed);
    (void)atomic_load_explicit(&page->cursor_position, memory_order_relaxed);
    (void)atomic_load_explicit(&page->chooses, memory_order_relaxed);
    atomic_fetch_or_explicit(&page->wanted[bit / 64 ^ 1], 1, memory_order_relaxed);
    return doorbell_write(litmus, round);
}

static bool doorbell_missed(const struct litmus *litmus, uint64_t round)
{
    (void)round;
    return litmus->slept != 0;
}

static bool enter_write(struct litmus *litmus, uint64_t round)
{
    atomic_store_explicit(litmus->link, round, memory_order_release);
    uint64_t retired = readers_epoch(litmus->readers);
    readers_advance(litmus->readers);
    return retired < readers_safe_epoch(litmus->readers);
}

static bool enter_missed(const struct litmus *litmus, uint64_t round)
{
    return litmus->link_seen != round;
}

static const struct mode MODES[] = {
    {"doorbell", doorbell_read, doorbell_prepare_read, doorbell_prepare_write, doorbell_write,
     doorbell_missed},
    {"wanted", wanted_read, wanted_prepare_read, doorbell_prepare_write, wanted_write,
     doorbell_missed},
    {"enter", enter_read, enter_prepare_read, enter_prepare_write, enter_write, enter_missed},
};

struct reading_thread {
    struct litmus *litmus;
    const struct mode *mode;
};

static void *read_rounds(void *argument)
{
    struct reading_thread *thread = argument;
    struct litmus *litmus = thread->litmus;
    take_processor(1);
    for (uint64_t round = 1;; round++) {
        thread->mode->prepare_read(litmus);
        meet(litmus, 1, 2 * round - 1);
        if (atomic_load_explicit(&litmus->stopped, memory_order_relaxed) != 0)
            return NULL;
        delay(round / 16 % 32 * 16);
        thread->mode->read(litmus);
        meet(litmus, 1, 2 * round);
    }
}

/* Returns faults; stops at the first one when `faulty`. */
static uint64_t run_rounds(struct litmus *litmus, const struct mode *mode, bool faulty,
                           uint64_t *rounds)
{
    struct reading_thread argument = {litmus, mode};
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_rounds, &argument) != 0)
        give_up("pthread_create");
    take_processor(0);
    uint64_t faults = 0, round = 1;
    uint64_t deadline = now_ms() + (faulty ? LITMUS_HOPELESS_MS : LITMUS_CLEAN_MS);
    for (;; round++) {
        mode->prepare_write(litmus);
        bool stop = (faulty ? faults != 0 : round > LITMUS_CLEAN_ROUNDS) ||
                    (round % 1024 == 0 && now_ms() >= deadline);
        if (stop)
            atomic_store_explicit(&litmus->stopped, 1, memory_order_relaxed);
        meet(litmus, 0, 2 * round - 1);
        if (stop)
            break;
        delay(round % 16 * 32);
        bool broker_missed = mode->write(litmus, round);
        meet(litmus, 0, 2 * round);
        if (broker_missed && mode->reader_missed(litmus, round))
            faults++;
    }
    (void)pthread_join(thread, NULL);
    *rounds = round;
    return faults;
}

/* Every word of a frame is the seq: one foreign word shows a mixed copy. */
static bool frame_is_whole(const struct ring_record *record, const struct buffer *out)
{
    if (out->bytes != EDGE_SLOT_BYTES - EDGE_HEADER_BYTES)
        return false;
    for (size_t at = 0; at < out->bytes; at += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, out->data + at, sizeof word);
        if (word != record->seq)
            return false;
    }
    return true;
}

static void *read_edge(void *argument)
{
    struct litmus *litmus = argument;
    struct buffer out;
    take_processor(1);
    buffer_init(&out, 2 * EDGE_SLOT_BYTES);
    for (uint64_t turn = 0; atomic_load_explicit(&litmus->stopped, memory_order_relaxed) == 0;
         turn++) {
        uint64_t published = ring_published(&litmus->ring);
        if (published < 2 * EDGE_RING_BYTES)
            continue;
        struct ring_record record;
        buffer_clear(&out);
        enum weir_status status = ring_read_at(
            &litmus->ring, published - EDGE_RING_BYTES + turn % 4 * EDGE_SLOT_BYTES, &record, &out);
        if (status == WEIR_OK)
            atomic_fetch_add_explicit(&litmus->reads, 1, memory_order_relaxed);
        if (status == WEIR_OK ? !frame_is_whole(&record, &out) : status != WEIR_LAPPED)
            atomic_fetch_add_explicit(&litmus->faults, 1, memory_order_relaxed);
        /* And one in order. */
        buffer_clear(&out);
        status = ring_read(&litmus->ring, &record, &out);
        if (status == WEIR_OK ? !frame_is_whole(&record, &out)
                              : status != WEIR_LAPPED && status != WEIR_EMPTY)
            atomic_fetch_add_explicit(&litmus->faults, 1, memory_order_relaxed);
    }
    buffer_fini(&out);
    return NULL;
}

static uint64_t run_edge(struct litmus *litmus, bool faulty, uint64_t *rounds)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_edge, litmus) != 0)
        give_up("pthread_create");
    take_processor(0);
    static uint64_t frame[(EDGE_SLOT_BYTES - EDGE_HEADER_BYTES) / sizeof(uint64_t)];
    uint64_t started = now_ms(), seq = 1;
    for (;; seq++) {
        if (faulty && atomic_load_explicit(&litmus->faults, memory_order_relaxed) != 0)
            break;
        bool is_waited_for =
            faulty || atomic_load_explicit(&litmus->reads, memory_order_relaxed) == 0;
        if (seq % 64 == 0 &&
            now_ms() - started > (is_waited_for ? LITMUS_HOPELESS_MS : LITMUS_CLEAN_MS))
            break;
        for (size_t i = 0; i < sizeof frame / sizeof frame[0]; i++)
            frame[i] = seq;
        struct ring_record record = {.seq = seq, .previous_position = RING_NO_POSITION};
        if (ring_append(litmus->writer, &record, span_of(frame, sizeof frame), (struct span){0},
                        NULL) != WEIR_OK)
            give_up("ring_append");
        ring_publish(litmus->writer);
        delay(seq % 512); /* leave the reader room for some whole copies */
    }
    atomic_store_explicit(&litmus->stopped, 1, memory_order_relaxed);
    (void)pthread_join(thread, NULL);
    *rounds = seq;
    if (!faulty && atomic_load(&litmus->reads) == 0)
        give_up("the reader never got a whole record");
    return atomic_load(&litmus->faults);
}

static void open_litmus(struct litmus *litmus)
{
    struct segment_options options = {
        .ring_bytes = EDGE_RING_BYTES, .store_bytes = 4096, .generation = 1};
    struct weir_error error;
    if (segment_create(&litmus->segment, &options, &error) != WEIR_OK)
        give_up(error.text);
    litmus->writer = ring_writer_open(&litmus->segment);
    litmus->readers = readers_open(&litmus->segment);
    if (litmus->writer == NULL || litmus->readers == NULL)
        give_up("no memory");
    segment_publish(&litmus->segment);
    uint64_t bytes;
    litmus->link = (_Atomic uint64_t *)(void *)segment_store(&litmus->segment, &bytes);
    uint32_t slot;
    int control_fd, event_fd;
    if (readers_attach(litmus->readers, (uint32_t)getpid(), &slot, &control_fd, &event_fd,
                       &error) != WEIR_OK ||
        reader_attach(&litmus->reader, &litmus->segment, slot, dup(control_fd), dup(event_fd),
                      &error) != WEIR_OK)
        give_up(error.text);
    if (ring_reader_attach(&litmus->ring, &litmus->segment) != WEIR_OK)
        give_up("ring_reader_attach");
}

static void close_litmus(struct litmus *litmus)
{
    reader_detach(&litmus->reader);
    readers_close(litmus->readers);
    ring_writer_close(litmus->writer);
    segment_close(&litmus->segment);
}

int main(int count, char **arguments)
{
    if (count != 3 || (strcmp(arguments[2], "clean") != 0 && strcmp(arguments[2], "faulty") != 0))
        give_up("usage: fence_litmus doorbell|wanted|enter|ring clean|faulty");
    const bool faulty = strcmp(arguments[2], "faulty") == 0;
    cpu_set_t processors;
    if (sched_getaffinity(0, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) < 2) {
        (void)printf("skipped: one processor only\n");
        return 77;
    }
    static struct litmus litmus;
    open_litmus(&litmus);
    const struct mode *mode = NULL;
    for (size_t i = 0; i < sizeof MODES / sizeof MODES[0]; i++)
        if (strcmp(arguments[1], MODES[i].name) == 0)
            mode = &MODES[i];
    if (mode == NULL && strcmp(arguments[1], "ring") != 0)
        give_up("unknown mode");
    uint64_t rounds;
    uint64_t start = now_ms();
    uint64_t faults = mode != NULL ? run_rounds(&litmus, mode, faulty, &rounds)
                                   : run_edge(&litmus, faulty, &rounds);
    (void)printf("mode=%s expected=%s rounds=%llu faults=%llu elapsed_ms=%llu\n", arguments[1],
                 arguments[2], (unsigned long long)rounds, (unsigned long long)faults,
                 (unsigned long long)(now_ms() - start));
    close_litmus(&litmus);
    return (faults != 0) == faulty ? 0 : 1;
}

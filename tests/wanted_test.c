#include <criterion/criterion.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gateway/subscriptions.h"
#include "shm/layout.h"
#include "tests/readers_fixture.h"
#include "tests/store_fixture.h"

TestSuite(wanted, .timeout = HANG_SECONDS);

#define STREAM SPAN_LITERAL("s")
enum { GROUPS = 200, SOCKETS = 5 };

static struct subscriptions subscriptions;
static struct counters counters;

static struct span group_name(unsigned group, char name[16])
{
    return span_of(name, (size_t)snprintf(name, 16, "g%u", group));
}

static uint64_t group_hash(unsigned group)
{
    char name[16];
    return store_group_hash(subscriptions.hash_seed, STREAM, group_name(group, name));
}

/* One subscription a group, called as the group is. */
static void subscribe(struct subscriber *subscriber, unsigned group)
{
    char name[16];
    struct span text = group_name(group, name);
    const struct subscription_wish wish = {
        .subscription_id = text, .stream = STREAM, .group = text};
    if (subscriptions_add(&subscriptions, subscriber, &wish) != WEIR_OK)
        abort();
}

static void unsubscribe(struct subscriber *subscriber, unsigned group)
{
    char name[16];
    (void)subscriptions_remove(&subscriptions, subscriber, group_name(group, name));
}

static bool page_use(const struct pair *page, const struct segment *of, struct reader *reader)
{
    return reader_attach(reader, of, page->slot, dup(page->control_fd), dup(page->event_fd),
                         NULL) == WEIR_OK;
}

static bool has_bit(const struct reader *reader, unsigned bit)
{
    return (atomic_load(&reader->page->wanted[bit / 64]) >> bit % 64 & 1) != 0;
}

Test(wanted, a_bit_goes_with_the_last_group_that_has_it)
{
    open_segment(1);
    struct pair page = attach_broker_side((uint32_t)getpid());
    struct reader reader;
    cr_assert(page_use(&page, &segment, &reader));
    struct wanted *wanted = wanted_open();
    wanted_add(wanted, 77); /* before there is a reader */
    wanted->reader = &reader;
    wanted_clear(wanted);
    for (unsigned i = 0; i < 3; i++)
        wanted_add(wanted, 5 + i * READER_WANTED_BITS);
    wanted_add(wanted, 6);
    for (unsigned i = 0; i < 3; i++) {
        cr_assert(has_bit(&reader, 5));
        wanted_remove(wanted, 5 + i * READER_WANTED_BITS);
    }
    cr_assert_not(has_bit(&reader, 5));
    cr_assert_not(has_bit(&reader, 77));
    cr_assert(has_bit(&reader, 6));
    wanted_clear(wanted);
    cr_assert_not(has_bit(&reader, 6));
    wanted_close(wanted);
    reader_detach(&reader);
    close_segment();
}

/* Which groups each socket subscribes to. */
struct model {
    bool has[SOCKETS][GROUPS];
};

static void expect_bits(const struct model *model, const struct reader *reader)
{
    static uint8_t bits[READER_WANTED_BITS];
    memset(bits, 0, sizeof bits);
    for (unsigned group = 0; group < GROUPS; group++) {
        for (unsigned socket = 0; socket < SOCKETS; socket++)
            bits[reader_wanted_bit(group_hash(group))] |= model->has[socket][group];
    }
    for (unsigned bit = 0; bit < READER_WANTED_BITS; bit++)
        cr_assert_eq(has_bit(reader, bit), bits[bit], "bit %u", bit);
}

/* Goal: the page says what is subscribed to, at every moment and through restarts of the broker. Method: random
 * steps against a table. */
Test(wanted, the_page_says_what_is_subscribed_to)
{
    uint64_t random = fixture_seed("wanted");
    struct subscriber sockets[SOCKETS] = {0};
    static struct model model;
    struct reader reader, old = {.event_fd = -1};
    cr_assert_eq(subscriptions_init(&subscriptions, GROUPS, false, &counters), WEIR_OK);
    for (uint64_t life = 1; life <= 6; life++) {
        open_segment(life);
        struct pair page = attach_broker_side((uint32_t)getpid());
        cr_assert(page_use(&page, &segment, &reader));
        subscriptions_set_reader(&subscriptions, &reader);
        if (life % 2 == 0)
            subscriptions_resume(&subscriptions, segment_hash_seed(&segment));
        else
            subscriptions_restart(&subscriptions, segment_hash_seed(&segment), "restarted");
        reader_detach(&old);
        expect_bits(&model, &reader);
        for (unsigned step = 0; step < 2000; step++) {
            unsigned socket = (unsigned)(fixture_random(&random) % SOCKETS);
            unsigned group = (unsigned)(fixture_random(&random) % GROUPS);
            if (fixture_random(&random) % 500 == 0) {
                subscriptions_remove_subscriber(&subscriptions, &sockets[socket]);
                memset(model.has[socket], 0, sizeof model.has[socket]);
            } else if (fixture_random(&random) % 2 == 0) {
                subscribe(&sockets[socket], group);
                model.has[socket][group] = true;
            } else {
                unsubscribe(&sockets[socket], group);
                model.has[socket][group] = false;
            }
            if (step % 50 == 0)
                expect_bits(&model, &reader);
        }
        expect_bits(&model, &reader);
        close_segment();
        old = reader;
    }
    for (unsigned socket = 0; socket < SOCKETS; socket++)
        subscriptions_remove_subscriber(&subscriptions, &sockets[socket]);
    subscriptions_fini(&subscriptions);
    reader_detach(&old);
}

/* ---- real processes ---- */

enum { ROUNDS = 20000, ROUNDS_LEAST = 500, ENOUGH_MS = 10000, HANG_MS = 1000 * HANG_SECONDS / 4 };

/* The gateway's side: its words are all that the broker's side knows of it. */
struct words {
    _Atomic uint64_t round;  /* what is wanted in it has been said */
    _Atomic uint64_t wanted; /* a group it wants in that round */
    _Atomic uint64_t slept;
    _Atomic uint64_t last; /* round; it is fewer of them on a slow machine */
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* Subscribe and unsubscribe; one group stays that is wanted, and is returned. */
static unsigned change_mind(struct subscriber *subscriber, uint64_t *random)
{
    unsigned group = (unsigned)(fixture_random(random) % GROUPS);
    for (unsigned changes = (unsigned)(fixture_random(random) % 4); changes > 0; changes--) {
        unsigned other = (unsigned)(fixture_random(random) % GROUPS);
        if (fixture_random(random) % 3 == 0)
            subscribe(subscriber, other);
        else
            unsubscribe(subscriber, other);
    }
    unsubscribe(subscriber, group);
    subscribe(subscriber, group);
    return group;
}

/* Read on until the round's event is there, with no timer that would heal a lost wake-up. */
static int read_round(struct reader *reader, const struct segment *mine, struct ring_reader *ring,
                      struct words *words, uint64_t round)
{
    struct ring_record record;
    for (;;) {
        enum weir_status status = ring_read(ring, &record, NULL);
        if (status == WEIR_OK && record.seq == round)
            return 0;
        if (status == WEIR_OK)
            continue;
        if (status != WEIR_EMPTY)
            return 11;
        reader_set_cursor(reader, ring->position, 0);
        if (!reader_sleep(reader, mine, ring->position))
            continue;
        struct pollfd bell = {.fd = reader->event_fd, .events = POLLIN};
        if (poll(&bell, 1, HANG_MS) != 1)
            return 12; /* lost */
        atomic_fetch_add(&words->slept, 1);
        reader_awake(reader);
    }
}

static int be_gateway(const struct pair *page, struct words *words, uint64_t random)
{
    struct segment mine;
    struct reader reader;
    struct ring_reader ring;
    struct subscriber subscriber = {0};
    if (segment_attach(&mine, dup(segment.fd), NULL) != WEIR_OK ||
        !page_use(page, &mine, &reader) || ring_reader_attach(&ring, &mine) != WEIR_OK ||
        subscriptions_init(&subscriptions, GROUPS, false, &counters) != WEIR_OK)
        return 10;
    ring.position = 0;
    subscriptions_set_reader(&subscriptions, &reader);
    subscriptions_restart(&subscriptions, segment_hash_seed(&mine), "restarted");
    reader_choose(&reader, true);
    for (uint64_t round = 1; round <= atomic_load(&words->last); round++) {
        /* Something else than the doorbell has woken it: it is asleep still, for the broker. */
        if (fixture_random(&random) % 2 == 0)
            (void)reader_sleep(&reader, &mine, ring.position);
        unsigned group = change_mind(&subscriber, &random);
        atomic_store_explicit(&words->wanted, group, memory_order_relaxed);
        atomic_store_explicit(&words->round, round, memory_order_release);
        int failure = read_round(&reader, &mine, &ring, words, round);
        if (failure != 0)
            return failure;
    }
    return 0;
}

static void publish(unsigned group, uint64_t seq, struct readers_woken *sum)
{
    struct ring_record record = {
        .group_hash = group_hash(group), .seq = seq, .previous_position = RING_NO_POSITION};
    cr_assert_eq(ring_append(writer, &record, SPAN_LITERAL("frame"), (struct span){0}, NULL),
                 WEIR_OK);
    ring_publish(writer);
    struct readers_woken woken =
        readers_wake(readers, writer, record.position, ring_head(writer), 0);
    sum->woken += woken.woken;
    sum->spared += woken.spared;
}

/* Goal: however a gateway's subscriptions come and go, it is woken for an event of a group it has said it wants.
 * Method: each round it changes them, says one group, and reads until that one's event is there, asleep when there is
 * nothing to read; the broker's side publishes that event the moment it is told, among events of any groups. Nothing
 * heals a wake-up that is lost, so one ends the test. */
Test(wanted, no_wake_up_is_lost_while_subscriptions_come_and_go)
{
    uint64_t random = fixture_seed("wanted");
    open_segment(1);
    subscriptions.hash_seed = segment_hash_seed(&segment);
    struct words *words =
        mmap(NULL, sizeof *words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(words, MAP_FAILED);
    atomic_store(&words->last, ROUNDS);
    struct pair page = attach_broker_side((uint32_t)getpid());
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0)
        _exit(be_gateway(&page, words, random + 1));
    struct readers_woken sum = {0};
    uint64_t started_ms = now_ms(), hang_ms = started_ms + HANG_MS;
    int state = 0;
    pid_t ended = 0;
    for (uint64_t round = 1; round <= atomic_load(&words->last) && ended == 0; round++) {
        for (unsigned spins = 0; atomic_load_explicit(&words->round, memory_order_acquire) < round;
             spins++) {
            if (spins % 1000 != 999)
                continue;
            sched_yield();
            ended = waitpid(pid, &state, WNOHANG);
            if (ended != 0 || now_ms() > hang_ms)
                break;
        }
        if (ended != 0 || now_ms() > hang_ms)
            break;
        for (unsigned others = (unsigned)(fixture_random(&random) % 3); others > 0; others--)
            publish((unsigned)(fixture_random(&random) % GROUPS), 0, &sum);
        /* Said before the event that lets the other side go on. */
        if (round >= ROUNDS_LEAST && now_ms() - started_ms > ENOUGH_MS)
            atomic_store(&words->last, round);
        publish((unsigned)atomic_load_explicit(&words->wanted, memory_order_relaxed), round, &sum);
        for (unsigned others = (unsigned)(fixture_random(&random) % 3); others > 0; others--)
            publish((unsigned)(fixture_random(&random) % GROUPS), 0, &sum);
    }
    if (ended == 0)
        cr_assert_eq(waitpid(pid, &state, 0), pid);
    fprintf(stderr, "woken=%u spared=%u slept=%llu\n", sum.woken, sum.spared,
            (unsigned long long)atomic_load(&words->slept));
    cr_assert(WIFEXITED(state));
    cr_assert_eq(WEXITSTATUS(state), 0);
    cr_assert_gt(sum.spared, 0, "it never slept through anything");
    cr_assert_gt(atomic_load(&words->slept), 0);
    munmap(words, sizeof *words);
    close_segment();
}

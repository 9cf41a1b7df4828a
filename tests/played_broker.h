/* tests/played_broker.h -- a broker played by the test: a real link on a real loop and a real unix
 * socket, with a real segment behind it, and the test reading and writing the broker's end.
 *
 * The test's own handlers of the link call broker_was_attached() and broker_was_lost(), and, when they
 * have read a ring, broker_is_attaching(). A broker that dies may come back with the same segment, as
 * if the link alone had been cut, or after broker_replace() with another one; what ATTACHED says of the
 * log is `keeps` and `position`.
 *
 * One translation unit includes this: there is one broker.
 */
#ifndef WEIR_TESTS_PLAYED_BROKER_H
#define WEIR_TESTS_PLAYED_BROKER_H

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "gateway/link.h"
#include "tests/store_fixture.h"

enum { BROKER_PUMPS_MAX = 20000 };

static struct played_broker {
    uv_loop_t loop; /* the gateway's */
    struct link *link;
    struct mapping *mapping;
    unsigned attached, lost;
    unsigned drains;          /* so many times the gateway is not ready to attach */
    uint64_t read_commit;     /* what it says to have read */
    uint64_t origin, commit;  /* what the last ATTACH said */
    bool keeps;               /* what ATTACHED says */
    uint64_t position, frame; /* likewise */
    bool was_kept;            /* what the gateway was told */
    uint64_t was_position;    /* likewise */
    uint64_t generation_next; /* of the next segment */
    char directory[64], path[96];
    struct host host;
    int listening, fd;
    struct wire_reader *reader;
    struct buffer input;
    size_t consumed; /* of the input, by the message last received */
    uint32_t slot;
} broker;

static inline void broker_listen(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, broker.path);
    (void)unlink(broker.path);
    broker.listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_eq(bind(broker.listening, (const struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(broker.listening, 4), 0);
}

static inline void broker_make_segment(void)
{
    struct weir_error error = {0};
    const struct host_options host = {
        .ring_bytes = 1024 * 1024,
        .store_bytes = 16 * 1024 * 1024,
        .store = {.items_max = 1000, .groups_max = 1000, .empty_groups_max = 1000},
        .generation = broker.generation_next,
    };
    cr_assert_eq(host_open(&broker.host, &host, &error), WEIR_OK, "%s", error.text);
    broker.generation_next = segment_generation(&broker.host.segment) + 1;
}

/* A loop, a segment and a listening socket. */
static inline void broker_open(void)
{
    broker.position = UINT64_MAX;
    strcpy(broker.directory, "/tmp/weir-played-broker-XXXXXX");
    cr_assert_not_null(mkdtemp(broker.directory));
    (void)snprintf(broker.path, sizeof broker.path, "%s/broker.sock", broker.directory);
    cr_assert_eq(uv_loop_init(&broker.loop), 0);
    broker.reader = wire_reader_open();
    buffer_init(&broker.input, 64 * 1024 * 1024);
    broker_make_segment();
    broker_listen();
}

/* The gateway's link to it; it attaches in broker_attach(). */
static inline void broker_link(const struct link_handlers *handlers, struct counters *counters,
                               uint64_t wait_ms, size_t wait_bytes_max)
{
    const struct link_options options = {broker.path, 0, wait_ms, wait_bytes_max};
    broker.link = link_open(&broker.loop, &options, handlers, counters);
    cr_assert_not_null(broker.link);
}

static inline bool broker_is_attaching(uint64_t *commit)
{
    *commit = broker.read_commit;
    if (broker.drains == 0)
        return true;
    broker.drains--;
    return false;
}

static inline void broker_was_attached(const struct link_attachment *attachment)
{
    mapping_close(broker.mapping);
    broker.mapping = attachment->mapping;
    broker.was_kept = attachment->is_kept;
    broker.was_position = attachment->position;
    broker.attached++;
}

static inline void broker_was_lost(void)
{
    broker.lost++;
}

static inline void pump(void)
{
    for (unsigned i = 0; i < 20; i++) {
        link_flush(broker.link);
        (void)uv_run(&broker.loop, UV_RUN_NOWAIT);
    }
}

/* The gateway's next message, or false when none comes. Spans stay valid until the next call. */
static inline bool broker_receive(struct wire_message *message)
{
    buffer_consume(&broker.input, broker.consumed);
    broker.consumed = 0;
    for (unsigned i = 0; i < BROKER_PUMPS_MAX; i++) {
        size_t frame_bytes = 0;
        enum weir_status status =
            wire_read(broker.reader, buffer_span(&broker.input), message, &frame_bytes);
        if (status == WEIR_OK) {
            broker.consumed = frame_bytes;
            return true;
        }
        cr_assert_eq(status, WEIR_EMPTY);
        link_flush(broker.link);
        (void)uv_run(&broker.loop, UV_RUN_NOWAIT);
        cr_assert_eq(buffer_reserve(&broker.input, 65536), WEIR_OK);
        ssize_t got = recv(broker.fd, broker.input.data + broker.input.bytes, 65536, MSG_DONTWAIT);
        if (got > 0)
            broker.input.bytes += (size_t)got;
        else if (i > 50)
            return false;
    }
    return false;
}

static inline struct wire_message broker_expect(enum wire_type type)
{
    struct wire_message message;
    cr_assert(broker_receive(&message), "nothing came, %s was expected", wire_type_name(type));
    cr_assert_eq(message.type, type, "%s came, %s was expected", wire_type_name(message.type),
                 wire_type_name(type));
    return message;
}

static inline void broker_send(enum wire_type type, uint64_t id, const struct wire_field *fields)
{
    struct buffer out;
    buffer_init(&out, 1024 * 1024);
    cr_assert_eq(wire_append(&out, type, id, fields), WEIR_OK);
    cr_assert_eq(send(broker.fd, out.data, out.bytes, MSG_NOSIGNAL), (ssize_t)out.bytes);
    buffer_fini(&out);
}

static inline void broker_send_attached(const int fds[MAPPING_FDS])
{
    const struct wire_field fields[] = {
        WIRE_NUMBER(WIRE_VERSION),    WIRE_NUMBER(segment_generation(&broker.host.segment)),
        WIRE_NUMBER(broker.slot),     WIRE_NUMBER(broker.keeps),
        WIRE_NUMBER(broker.position), WIRE_NUMBER(broker.frame)};
    struct buffer out;
    buffer_init(&out, 4096);
    cr_assert_eq(wire_append(&out, WIRE_ATTACHED, 0, fields), WEIR_OK);
    union {
        char bytes[CMSG_SPACE(sizeof(int) * MAPPING_FDS)];
        struct cmsghdr aligned;
    } control = {0};
    struct iovec part = {out.data, out.bytes};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * MAPPING_FDS);
    memcpy(CMSG_DATA(rights), fds, sizeof(int) * MAPPING_FDS);
    cr_assert_eq(sendmsg(broker.fd, &header, 0), (ssize_t)out.bytes);
    buffer_fini(&out);
}

/* Take the gateway's connection and its ATTACH, and answer it. */
static inline void broker_attach(void)
{
    struct weir_error error = {0};
    int fds[MAPPING_FDS] = {broker.host.segment.fd, -1, -1};
    broker.fd = -1;
    for (unsigned i = 0; i < BROKER_PUMPS_MAX && broker.fd < 0; i++) {
        (void)uv_run(&broker.loop, UV_RUN_NOWAIT);
        broker.fd = accept4(broker.listening, NULL, NULL, SOCK_CLOEXEC);
        if (broker.fd < 0)
            (void)usleep(1000);
    }
    cr_assert_geq(broker.fd, 0, "the gateway connects");
    buffer_clear(&broker.input);
    broker.consumed = 0;
    struct wire_message message = broker_expect(WIRE_ATTACH);
    cr_assert_eq(message.fields[0].number, WIRE_VERSION);
    broker.origin = message.fields[4].number;
    broker.commit = message.fields[5].number;
    cr_assert_eq(readers_attach(broker.host.readers, (uint32_t)getpid(), &broker.slot, &fds[2],
                                &fds[1], &error),
                 WEIR_OK);
    broker_send_attached(fds);
    unsigned before = broker.attached;
    for (unsigned i = 0; i < BROKER_PUMPS_MAX && broker.attached == before; i++)
        (void)uv_run(&broker.loop, UV_RUN_NOWAIT);
    cr_assert_eq(broker.attached, before + 1);
}

/* Until broker_listen() and broker_attach() bring the next one, which has the same segment unless
 * broker_replace() is called between. */
static inline void broker_die(void)
{
    unsigned before = broker.lost;
    (void)close(broker.fd);
    (void)close(broker.listening);
    (void)unlink(broker.path);
    readers_detach(broker.host.readers, broker.slot);
    for (unsigned i = 0; i < BROKER_PUMPS_MAX && broker.lost == before; i++)
        (void)uv_run(&broker.loop, UV_RUN_NOWAIT);
    cr_assert_eq(broker.lost, before + 1);
}

/* The next one has another segment; the gateway has the old one still. */
static inline void broker_replace(void)
{
    host_close(&broker.host);
    broker_make_segment();
}

/* The broker dies, and its successor, which says `keeps`, takes the gateway's connection. */
static inline void broker_restart(bool keeps, uint64_t position)
{
    broker_die();
    broker_replace();
    broker.keeps = keeps;
    broker.position = position;
    broker_listen();
    broker_attach();
}

/* The link is closed, but its handles are not yet. */
static inline void broker_end_loop(void)
{
    (void)uv_run(&broker.loop, UV_RUN_DEFAULT);
    cr_assert_eq(uv_loop_close(&broker.loop), 0, "no handle is left");
}

static inline void broker_close(void)
{
    mapping_close(broker.mapping);
    host_close(&broker.host);
    wire_reader_close(broker.reader);
    buffer_fini(&broker.input);
    (void)close(broker.fd);
    (void)close(broker.listening);
    (void)unlink(broker.path);
    (void)rmdir(broker.directory);
}

#endif

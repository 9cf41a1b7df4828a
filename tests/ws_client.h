/* tests/ws_client.h -- a small blocking WebSocket client that can also do everything wrong: raw
 * bytes, own masking.
 *
 * Only tests include it. Functions return false instead of asserting, so that threads may use them.
 */
#ifndef WEIR_TESTS_WS_CLIENT_H
#define WEIR_TESTS_WS_CLIENT_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENT_WAIT_MS 120000 /* a hang */

struct client {
    int fd;
    uint8_t *input; /* bytes read and not yet used */
    size_t begin, end, capacity;
    bool has_ended;
};

struct client_frame {
    unsigned opcode;
    uint8_t *payload; /* valid until the next read */
    size_t bytes;
};

static inline bool client_connect(struct client *client, uint16_t port, int receive_buffer)
{
    memset(client, 0, sizeof(*client));
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer)
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect(client->fd, (struct sockaddr *)&address, sizeof(address)) == 0;
}

static inline void client_close(struct client *client)
{
    close(client->fd);
    free(client->input);
    client->input = NULL;
}

static inline bool client_send(struct client *client, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes) {
        ssize_t sent = send(client->fd, at, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        at += sent;
        bytes -= (size_t)sent;
    }
    return true;
}

/* Until the other end's kernel has all that was sent, and with it the connection: send() and connect()
 * may return before, and two connections' bytes overtake each other. */
static inline bool client_await_arrival(const struct client *client)
{
    int unsent = 1;
    for (unsigned wait = 0; unsent > 0 && wait < CLIENT_WAIT_MS * 10; wait++) {
        if (ioctl(client->fd, SIOCOUTQ, &unsent) != 0)
            return false;
        if (unsent > 0)
            usleep(100);
    }
    return unsent == 0;
}

/* Read more; false at the end of the stream, on an error, or after CLIENT_WAIT_MS, which is no end. */
static inline bool client_fill(struct client *client)
{
    if (client->begin) {
        memmove(client->input, client->input + client->begin, client->end - client->begin);
        client->end -= client->begin;
        client->begin = 0;
    }
    if (client->end == client->capacity) {
        client->capacity = client->capacity ? client->capacity * 2 : 4096;
        client->input = realloc(client->input, client->capacity);
    }
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLIN};
    if (poll(&poll_fd, 1, CLIENT_WAIT_MS) <= 0)
        return false;
    ssize_t got = recv(client->fd, client->input + client->end, client->capacity - client->end, 0);
    if (got <= 0) {
        client->has_ended = true;
        return false;
    }
    client->end += (size_t)got;
    return true;
}

static inline size_t frame_build(uint8_t *out, unsigned first_byte, const void *payload,
                                 size_t bytes, bool masked)
{
    size_t at = 0;
    out[at++] = (uint8_t)first_byte;
    uint8_t mask_bit = masked ? 0x80 : 0;
    if (bytes < 126) {
        out[at++] = (uint8_t)(mask_bit | bytes);
    } else if (bytes < 65536) {
        out[at++] = mask_bit | 126;
        out[at++] = (uint8_t)(bytes >> 8);
        out[at++] = (uint8_t)bytes;
    } else {
        out[at++] = mask_bit | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            out[at++] = (uint8_t)((uint64_t)bytes >> shift);
    }
    const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    if (masked) {
        memcpy(out + at, mask, 4);
        at += 4;
    }
    for (size_t index = 0; index < bytes; index++)
        out[at + index] = ((const uint8_t *)payload)[index] ^ (masked ? mask[index & 3] : 0);
    return at + bytes;
}

static inline bool client_send_frame(struct client *client, unsigned first_byte,
                                     const void *payload, size_t bytes)
{
    uint8_t *frame = malloc(bytes + 14);
    size_t whole = frame_build(frame, first_byte, payload, bytes, true);
    bool is_sent = client_send(client, frame, whole);
    free(frame);
    return is_sent;
}

static inline bool client_send_text(struct client *client, const char *text)
{
    return client_send_frame(client, 0x81, text, strlen(text));
}

/* The next frame from the server; false at the end of the stream or when the frame is malformed. */
static inline bool client_read_frame(struct client *client, struct client_frame *frame)
{
    for (;;) {
        size_t held = client->end - client->begin;
        const uint8_t *in = client->input ? client->input + client->begin : NULL;
        size_t header = 2;
        uint64_t bytes = 0;
        bool has_header = held >= 2;
        if (has_header) {
            if (in[1] & 0x80 || in[0] & 0x70)
                return false;
            bytes = in[1] & 0x7f;
            unsigned length_bytes = bytes < 126 ? 0 : bytes == 126 ? 2 : 8;
            header += length_bytes;
            has_header = held >= header;
            if (has_header && length_bytes) {
                bytes = 0;
                for (unsigned index = 0; index < length_bytes; index++)
                    bytes = bytes << 8 | in[2 + index];
            }
        }
        if (has_header && held - header >= bytes) {
            frame->opcode = in[0];
            frame->payload = client->input + client->begin + header;
            frame->bytes = bytes;
            client->begin += header + bytes;
            return true;
        }
        if (!client_fill(client))
            return false;
    }
}

/* True when the server ends the stream (an end or a reset) without anything before it. */
static inline bool client_read_end(struct client *client)
{
    return client->begin == client->end && !client_fill(client) && client->has_ended;
}

/* Read an HTTP head into `out` (NUL-terminated) and leave what follows. */
static inline bool client_read_head(struct client *client, char *out, size_t out_bytes)
{
    for (;;) {
        size_t held = client->end - client->begin;
        const char *in = client->input ? (const char *)client->input + client->begin : "";
        const char *end = held ? memmem(in, held, "\r\n\r\n", 4) : NULL;
        if (end) {
            size_t bytes = (size_t)(end - in) + 4;
            if (bytes >= out_bytes)
                return false;
            memcpy(out, in, bytes);
            out[bytes] = '\0';
            client->begin += bytes;
            return true;
        }
        if (!client_fill(client))
            return false;
    }
}

/* An upgrade request for `path` with further header lines; the answer's head goes to `head`. */
static inline bool client_upgrade(struct client *client, const char *path, const char *headers,
                                  char *head, size_t head_bytes)
{
    char *request = NULL;
    int bytes = asprintf(
        &request,
        "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, "
        "Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
        path, headers);
    bool is_sent = client_send(client, request, (size_t)bytes);
    free(request);
    return is_sent && client_read_head(client, head, head_bytes);
}

static inline bool client_open(struct client *client, uint16_t port, const char *path,
                               int receive_buffer)
{
    char head[4096];
    return client_connect(client, port, receive_buffer) &&
           client_upgrade(client, path, "Sec-WebSocket-Extensions: permessage-deflate\r\n", head,
                          sizeof(head)) &&
           strncmp(head, "HTTP/1.1 101", 12) == 0;
}

#endif

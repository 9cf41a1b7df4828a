/* gateway/send.h -- bytes on their way to sockets: pooled buffers for what one connection still
 * owes its peer, and one batch of direct sends to many sockets.
 *
 * A batch goes out through io_uring (SEND and SENDMSG with MSG_DONTWAIT, one io_uring_enter for up
 * to SEND_RING_ENTRIES of them) or, where the kernel refuses io_uring or it is not wanted, through
 * send and sendmsg. Nothing here waits for a socket.
 *
 * Process:  gateway, loop thread only.
 * Memory:   a connection that owes nothing holds no buffer; small buffers go back to the pool,
 *           large ones to malloc.
 * Errors:   NO_MEMORY leaves the buffer as it was. A job's result is the bytes taken or a negative
 *           errno.
 */
#ifndef WEIR_GATEWAY_SEND_H
#define WEIR_GATEWAY_SEND_H

#include <sys/uio.h>

#include "shm/span.h"

enum {
    SEND_RING_ENTRIES = 256,
    SEND_BUFFER_BYTES_MIN = 4096,
    SEND_BUFFER_BYTES_POOLED = 64 * 1024, /* a larger buffer is freed when empty */
    SEND_POOL_BYTES_MAX = 8 * 1024 * 1024 /* buffers kept in the pool; more are freed */
};

struct send_buffer; /* never empty: an empty one goes back */

struct send_pool {
    struct send_buffer *free;
    size_t free_bytes;
};
void send_pool_fini(struct send_pool *pool);

size_t send_buffer_bytes(const struct send_buffer *buffer);
struct span send_buffer_span(const struct send_buffer *buffer);
/* Append `parts` one behind the other; all or nothing. */
enum weir_status send_buffer_append(struct send_pool *pool, struct send_buffer **buffer,
                                    const struct iovec *parts, unsigned part_count) WEIR_MUST_CHECK;
/* Drop the first `bytes`. */
void send_buffer_consume(struct send_pool *pool, struct send_buffer **buffer, size_t bytes);
void send_buffer_release(struct send_pool *pool, struct send_buffer **buffer);

struct send_job {
    int fd;
    unsigned iov_first; /* into the batch's iovecs */
    unsigned iov_count;
    int result;
    unsigned owner, rest; /* the caller's, as all below */
    bool owes;
};

struct sender;
/* `use_uring`: try io_uring; a kernel that refuses it is not an error. */
enum weir_status sender_open(struct sender **sender, bool use_uring,
                             struct weir_error *error) WEIR_MUST_CHECK;
void sender_close(struct sender *sender);
bool sender_has_uring(const struct sender *sender);
/* Send every job once and fill in the results. No descriptor may appear twice: a short send must
 * not be followed by another. */
void sender_run(struct sender *sender, struct send_job *jobs, unsigned job_count,
                struct iovec *iovecs);
/* One job by plain system calls. */
int send_plain(int fd, const struct iovec *iovecs, unsigned iov_count);

#endif

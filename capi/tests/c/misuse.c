/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * misuse ENGINE: every function with NULL, with a stale lease, twice, in the
 * wrong order and with what belongs to another ring. Each call returns its
 * documented error, makes its SQE harmless, and changes nothing.
 */
#include "common.h"

#define SLOTS 4
#define BLOCK 4096U

static struct io_uring ring, other_ring;
static struct getbuf *g, *other, *out;
static struct getbuf_probe *probe;

/* The leases that are tried. */
static struct getbuf_lease
	none,		/* zeroes */
	pending,	/* whose fetch is not done */
	ready,		/* installed */
	stale,		/* released */
	ended,		/* whose fetch found the end of the file */
	foreign,	/* of other slots */
	chained,	/* a chain in flight */
	forged,		/* of these slots, and of no slot */
	two[2],		/* zeroes */
	lease;		/* where a call would put one */

static struct getbuf_file file, bad_fd, bad_flags, bad_reserved, bad_bound;
static struct getbuf_range range, beyond, wrapping, empty;
static struct getbuf_chain chain, small_chain, large_chain, bad_consumer, write_flags, no_source,
	no_sink, no_len, bad_reserved_chain;
static struct getbuf_params params, small, large, bad_engine, bad_param, once_replace, bad_reserved_params,
	table_alone, many, bad_table;
static struct getbuf_stats stats, small_stats;
static struct getbuf_event event, small_event;
static struct io_uring_sqe sqe, second, third;
static struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX] = { &sqe, &second, &third };
static struct io_uring_sqe *holed[GETBUF_CHAIN_MAX] = { &sqe, NULL, NULL };
static struct io_uring_cqe cqe;
static struct io_uring_cqe *cqes[1] = { &cqe };
static char byte;

#define FETCH(slots, sqe, file, len, lease) getbuf_fetch(slots, sqe, file, 0, len, NULL, lease)
#define COUNT ((uint32_t)getbuf_chain_len(g, &chain))

/* What is called, and what it returns. */
#define CASES(X)                                                                    \
	X(getbuf_probe(NULL), -EINVAL)                                              \
	X(getbuf_probe_free(NULL), 0)                                               \
	X(getbuf_probe_free((struct getbuf_probe *)&byte), -EINVAL)                 \
	X(getbuf_probe_engine(NULL, GETBUF_ENGINE_COPY), -EINVAL)                   \
	X(getbuf_probe_engine(probe, 4), -EINVAL)                                   \
	X(getbuf_probe_reason(NULL, GETBUF_ENGINE_COPY) != NULL, 0)                 \
	X(getbuf_probe_reason(probe, GETBUF_ENGINE_ANY) != NULL, 0)                 \
	X(getbuf_probe_reason(probe, 4) != NULL, 0)                                 \
	X(getbuf_probe_text(NULL) != NULL, 0)                                       \
	X(getbuf_probe_get_buf(NULL), -EINVAL)                                      \
	X(getbuf_probe_put_buf(NULL), -EINVAL)                                      \
                                                                                    \
	X(getbuf_create(ring.ring_fd, &params, NULL), -EINVAL)                      \
	X(getbuf_create(ring.ring_fd, &small, &out), -EINVAL)                       \
	X(getbuf_create(ring.ring_fd, &large, &out), -E2BIG)                        \
	X(getbuf_create(ring.ring_fd, &bad_engine, &out), -EINVAL)                  \
	X(getbuf_create(ring.ring_fd, &bad_param, &out), -EINVAL)                   \
	X(getbuf_create(ring.ring_fd, &once_replace, &out), -EINVAL)                \
	X(getbuf_create(ring.ring_fd, &bad_reserved_params, &out), -EINVAL)         \
	X(getbuf_create(ring.ring_fd, &table_alone, &out), -EINVAL)                 \
	X(getbuf_create(ring.ring_fd, &many, &out), -EINVAL)                        \
	X(getbuf_create(ring.ring_fd, &bad_table, &out), -EINVAL)                   \
	X(getbuf_create(-1, &params, &out), -EBADF)                                 \
	X(getbuf_create(1000000, &params, &out), -EBADF)                            \
	X(getbuf_create(file.fd, &params, &out), -EINVAL)                           \
	X(getbuf_create(ring.ring_fd, &params, &out), -EBUSY)                       \
	X(getbuf_create(ring.ring_fd, NULL, &out), -EBUSY)                          \
	X(getbuf_destroy(NULL), 0)                                                  \
	X(getbuf_destroy((struct getbuf *)&byte), -EINVAL)                          \
	X(getbuf_stats(NULL, &stats), -EINVAL)                                      \
	X(getbuf_stats(g, NULL), -EINVAL)                                           \
	X(getbuf_stats(g, &small_stats), -EINVAL)                                   \
                                                                                    \
	X(FETCH(NULL, &sqe, &file, BLOCK, &lease), -EINVAL)                         \
	X(FETCH(g, NULL, &file, BLOCK, &lease), -EINVAL)                            \
	X(FETCH(g, &sqe, NULL, BLOCK, &lease), -EINVAL)                             \
	X(FETCH(g, &sqe, &file, BLOCK, NULL), -EINVAL)                              \
	X(FETCH(g, &sqe, &file, 0, &lease), -EINVAL)                                \
	X(FETCH(g, &sqe, &file, BLOCK + 1, &lease), -EINVAL)                        \
	X(FETCH(g, &sqe, &file, UINT32_MAX, &lease), -EINVAL)                       \
	X(FETCH(g, &sqe, &bad_fd, BLOCK, &lease), -EBADF)                           \
	X(FETCH(g, &sqe, &bad_flags, BLOCK, &lease), -EINVAL)                       \
	X(FETCH(g, &sqe, &bad_reserved, BLOCK, &lease), -EINVAL)                    \
	X(FETCH(g, &sqe, &bad_bound, BLOCK, &lease), -EINVAL)                       \
	X(FETCH(other, &sqe, &file, BLOCK, &lease), -ENOBUFS)                       \
                                                                                    \
	X(getbuf_write(NULL, &sqe, ready, 0, 1, &file, 0), -EINVAL)                 \
	X(getbuf_write(g, NULL, ready, 0, 1, &file, 0), -EINVAL)                    \
	X(getbuf_write(g, &sqe, ready, 0, 1, NULL, 0), -EINVAL)                     \
	X(getbuf_write(g, &sqe, ready, 0, 1, &bad_fd, 0), -EBADF)                   \
	X(getbuf_write(g, &sqe, ready, 0, 1, &bad_flags, 0), -EINVAL)               \
	X(getbuf_write(g, &sqe, ready, 0, 1, &bad_reserved, 0), -EINVAL)            \
	X(getbuf_write(g, &sqe, ready, 0, 0, &file, 0), -ERANGE)                    \
	X(getbuf_write(g, &sqe, ready, 0, BLOCK + 1, &file, 0), -ERANGE)            \
	X(getbuf_write(g, &sqe, ready, BLOCK, 1, &file, 0), -ERANGE)                \
	X(getbuf_write(g, &sqe, ready, 1, UINT32_MAX, &file, 0), -ERANGE)           \
	X(getbuf_write(g, &sqe, ready, UINT32_MAX, 1, &file, 0), -ERANGE)           \
	X(getbuf_write(g, &sqe, none, 0, 1, &file, 0), -EINVAL)                     \
	X(getbuf_write(g, &sqe, pending, 0, 1, &file, 0), -EBUSY)                   \
	X(getbuf_write(g, &sqe, stale, 0, 1, &file, 0), -ENOENT)                    \
	X(getbuf_write(g, &sqe, ended, 0, 1, &file, 0), -ENOENT)                    \
	X(getbuf_write(g, &sqe, forged, 0, 1, &file, 0), -ENOENT)                   \
	X(getbuf_write(g, &sqe, foreign, 0, 1, &file, 0), -EXDEV)                   \
	X(getbuf_write(g, &sqe, chained, 0, 1, &file, 0), -EINVAL)                  \
                                                                                    \
	X(getbuf_send(NULL, &sqe, ready, 0, 1, &file, 0), -EINVAL)                  \
	X(getbuf_send(g, NULL, ready, 0, 1, &file, 0), -EINVAL)                     \
	X(getbuf_send(g, &sqe, ready, 0, 1, NULL, 0), -EINVAL)                      \
	X(getbuf_send(g, &sqe, ready, 0, 1, &file, 1 << 30), -EINVAL)               \
	X(getbuf_send(g, &sqe, ready, 1, BLOCK, &file, 0), -ERANGE)                 \
	X(getbuf_send(g, &sqe, ready, 0, 1, &bad_fd, 0), -EBADF)                    \
	X(getbuf_send(g, &sqe, none, 0, 1, &file, 0), -EINVAL)                      \
	X(getbuf_send(g, &sqe, pending, 0, 1, &file, 0), -EBUSY)                    \
	X(getbuf_send(g, &sqe, stale, 0, 1, &file, 0), -ENOENT)                     \
	X(getbuf_send(g, &sqe, foreign, 0, 1, &file, 0), -EXDEV)                    \
	X(getbuf_send(g, &sqe, chained, 0, 1, &file, 0), -EINVAL)                   \
                                                                                    \
	X(getbuf_send_zc(NULL, &sqe, ready, 0, 1, &file, 0), -EINVAL)               \
	X(getbuf_send_zc(g, NULL, ready, 0, 1, &file, 0), -EINVAL)                  \
	X(getbuf_send_zc(g, &sqe, ready, 0, 1, NULL, 0), -EINVAL)                   \
	X(getbuf_send_zc(g, &sqe, ready, 0, 1, &file, 1 << 30), -EINVAL)            \
	X(getbuf_send_zc(g, &sqe, ready, 1, BLOCK, &file, 0), -ERANGE)              \
	X(getbuf_send_zc(g, &sqe, none, 0, 1, &file, 0), -EINVAL)                   \
	X(getbuf_send_zc(g, &sqe, pending, 0, 1, &file, 0), -EBUSY)                 \
	X(getbuf_send_zc(g, &sqe, stale, 0, 1, &file, 0), -ENOENT)                  \
	X(getbuf_send_zc(g, &sqe, foreign, 0, 1, &file, 0), -EXDEV)                 \
	X(getbuf_send_zc(g, &sqe, chained, 0, 1, &file, 0), -EINVAL)                \
                                                                                    \
	X(getbuf_writev(NULL, &sqe, ready, &range, 1, &file, 0), -EINVAL)           \
	X(getbuf_writev(g, NULL, ready, &range, 1, &file, 0), -EINVAL)              \
	X(getbuf_writev(g, &sqe, ready, NULL, 1, &file, 0), -EINVAL)                \
	X(getbuf_writev(g, &sqe, ready, &range, 0, &file, 0), -EINVAL)              \
	X(getbuf_writev(g, &sqe, ready, &range, GETBUF_RANGES_MAX + 1, &file, 0), -EINVAL) \
	X(getbuf_writev(g, &sqe, ready, &range, 1, NULL, 0), -EINVAL)               \
	X(getbuf_writev(g, &sqe, ready, &beyond, 1, &file, 0), -ERANGE)             \
	X(getbuf_writev(g, &sqe, ready, &wrapping, 1, &file, 0), -ERANGE)           \
	X(getbuf_writev(g, &sqe, ready, &empty, 1, &file, 0), -ERANGE)              \
	X(getbuf_writev(g, &sqe, none, &range, 1, &file, 0), -EINVAL)               \
	X(getbuf_writev(g, &sqe, pending, &range, 1, &file, 0), -EBUSY)             \
	X(getbuf_writev(g, &sqe, stale, &range, 1, &file, 0), -ENOENT)              \
	X(getbuf_writev(g, &sqe, foreign, &range, 1, &file, 0), -EXDEV)             \
	X(getbuf_writev(g, &sqe, chained, &range, 1, &file, 0), -EINVAL)            \
                                                                                    \
	X(getbuf_chain_len(NULL, &chain), -EINVAL)                                  \
	X(getbuf_chain_len(g, NULL), -EINVAL)                                       \
	X(getbuf_chain_len(g, &small_chain), -EINVAL)                               \
	X(getbuf_chain_len(g, &large_chain), -E2BIG)                                \
	X(getbuf_chain_len(g, &no_source), -EINVAL)                                 \
	X(getbuf_chain_len(g, &bad_reserved_chain), -EINVAL)                        \
	X(getbuf_chain(NULL, sqes, COUNT, &chain, &lease), -EINVAL)                 \
	X(getbuf_chain(g, NULL, COUNT, &chain, &lease), -EINVAL)                    \
	X(getbuf_chain(g, holed, COUNT, &chain, &lease), -EINVAL)                   \
	X(getbuf_chain(g, sqes, 0, &chain, &lease), -EINVAL)                        \
	X(getbuf_chain(g, sqes, 1, &chain, &lease), -EINVAL)                        \
	X(getbuf_chain(g, sqes, GETBUF_CHAIN_MAX + 1, &chain, &lease), -EINVAL)     \
	X(getbuf_chain(g, sqes, COUNT, NULL, &lease), -EINVAL)                      \
	X(getbuf_chain(g, sqes, COUNT, &chain, NULL), -EINVAL)                      \
	X(getbuf_chain(g, sqes, COUNT, &small_chain, &lease), -EINVAL)              \
	X(getbuf_chain(g, sqes, COUNT, &bad_consumer, &lease), -EINVAL)             \
	X(getbuf_chain(g, sqes, COUNT, &write_flags, &lease), -EINVAL)              \
	X(getbuf_chain(g, sqes, COUNT, &no_source, &lease), -EINVAL)                \
	X(getbuf_chain(g, sqes, COUNT, &no_sink, &lease), -EINVAL)                  \
	X(getbuf_chain(g, sqes, COUNT, &no_len, &lease), -EINVAL)                   \
	X(getbuf_chain(other, sqes, COUNT, &chain, &lease), -ENOBUFS)               \
                                                                                    \
	X(getbuf_chain_batch(NULL, sqes, COUNT, &chain, &lease), -EINVAL)           \
	X(getbuf_chain_batch(g, NULL, COUNT, &chain, &lease), -EINVAL)              \
	X(getbuf_chain_batch(g, holed, COUNT, &chain, &lease), -EINVAL)             \
	X(getbuf_chain_batch(g, sqes, 0, &chain, &lease), -EINVAL)                  \
	X(getbuf_chain_batch(g, sqes, 1, &chain, &lease), -EINVAL)                  \
	X(getbuf_chain_batch(g, sqes, COUNT, NULL, &lease), -EINVAL)                \
	X(getbuf_chain_batch(g, sqes, COUNT, &chain, NULL), -EINVAL)                \
	X(getbuf_chain_batch(g, sqes, COUNT, &small_chain, &lease), -EINVAL)        \
	X(getbuf_chain_batch(g, sqes, COUNT, &bad_consumer, &lease), -EINVAL)       \
	X(getbuf_chain_batch(g, sqes, COUNT, &write_flags, &lease), -EINVAL)        \
	X(getbuf_chain_batch(g, sqes, COUNT, &no_source, &lease), -EINVAL)          \
	X(getbuf_chain_batch(g, sqes, COUNT, &no_sink, &lease), -EINVAL)            \
	X(getbuf_chain_batch(g, sqes, COUNT, &no_len, &lease), -EINVAL)             \
	X(getbuf_chain_batch(other, sqes, COUNT, &chain, &lease), -ENOBUFS)         \
	X(getbuf_fetch_batch(NULL, sqes, 2, &file, 0, BLOCK, NULL, two), -EINVAL)   \
	X(getbuf_fetch_batch(g, NULL, 2, &file, 0, BLOCK, NULL, two), -EINVAL)      \
	X(getbuf_fetch_batch(g, holed, 2, &file, 0, BLOCK, NULL, two), -EINVAL)     \
	X(getbuf_fetch_batch(g, sqes, 0, &file, 0, BLOCK, NULL, two), -EINVAL)      \
	X(getbuf_fetch_batch(g, sqes, 1, NULL, 0, BLOCK, NULL, two), -EINVAL)       \
	X(getbuf_fetch_batch(g, sqes, 1, &file, 0, 0, NULL, two), -EINVAL)          \
	X(getbuf_fetch_batch(g, sqes, 1, &file, 0, BLOCK + 1, NULL, two), -EINVAL)  \
	X(getbuf_fetch_batch(g, sqes, 2, &file, 0, BLOCK, NULL, NULL), -EINVAL)     \
	X(getbuf_fetch_batch(g, sqes, 1, &bad_fd, 0, BLOCK, NULL, two), -EBADF)     \
	X(getbuf_fetch_batch(g, sqes, 3, &file, 0, BLOCK, NULL, two), -ENOBUFS)     \
	X(getbuf_write_batch(NULL, sqes, 1, &ready, 0, 1, &file, 0), -EINVAL)       \
	X(getbuf_write_batch(g, NULL, 1, &ready, 0, 1, &file, 0), -EINVAL)          \
	X(getbuf_write_batch(g, holed, 2, two, 0, 1, &file, 0), -EINVAL)            \
	X(getbuf_write_batch(g, sqes, 0, &ready, 0, 1, &file, 0), -EINVAL)          \
	X(getbuf_write_batch(g, sqes, 1, NULL, 0, 1, &file, 0), -EINVAL)            \
	X(getbuf_write_batch(g, sqes, 1, &ready, 0, 1, NULL, 0), -EINVAL)           \
	X(getbuf_write_batch(g, sqes, 1, &ready, 0, 1, &bad_fd, 0), -EBADF)         \
	X(getbuf_write_batch(g, sqes, 1, &ready, 0, 1, &bad_flags, 0), -EINVAL)     \
	X(getbuf_write_batch(g, sqes, 1, &ready, 0, 0, &file, 0), -ERANGE)          \
	X(getbuf_write_batch(g, sqes, 1, &ready, 0, BLOCK + 1, &file, 0), -ERANGE)  \
	X(getbuf_write_batch(g, sqes, 1, &ready, UINT32_MAX, 1, &file, 0), -ERANGE) \
	X(getbuf_write_batch(g, sqes, 1, &none, 0, 1, &file, 0), -EINVAL)           \
	X(getbuf_write_batch(g, sqes, 1, &pending, 0, 1, &file, 0), -EBUSY)         \
	X(getbuf_write_batch(g, sqes, 1, &stale, 0, 1, &file, 0), -ENOENT)          \
	X(getbuf_write_batch(g, sqes, 1, &foreign, 0, 1, &file, 0), -EXDEV)         \
	X(getbuf_write_batch(g, sqes, 1, &chained, 0, 1, &file, 0), -EINVAL)        \
	X(getbuf_release_batch(NULL, two, 2), -EINVAL)                              \
	X(getbuf_release_batch(g, NULL, 2), -EINVAL)                                \
	X(getbuf_release_batch(g, two, 0), 0)                                       \
	X(getbuf_release_batch(g, two, 2), -EINVAL)                                 \
	X(getbuf_release_batch(g, &stale, 1), -ENOENT)                              \
	X(getbuf_release_batch(g, &foreign, 1), -EXDEV)                             \
                                                                                    \
	X(getbuf_release(NULL, ready), -EINVAL)                                     \
	X(getbuf_release(g, none), -EINVAL)                                         \
	X(getbuf_release(g, stale), -ENOENT)                                        \
	X(getbuf_release(g, ended), -ENOENT)                                        \
	X(getbuf_release(g, forged), -ENOENT)                                       \
	X(getbuf_release(g, foreign), -EXDEV)                                       \
	X(getbuf_release(g, chained), -EINVAL)                                      \
                                                                                    \
	X(getbuf_installed(NULL, ready), -EINVAL)                                   \
	X(getbuf_installed(g, none), -EINVAL)                                       \
	X(getbuf_installed(g, pending), 0)                                          \
	X(getbuf_installed(g, ready), 1)                                            \
	X(getbuf_installed(g, stale), -ENOENT)                                      \
	X(getbuf_installed(g, ended), -ENOENT)                                      \
	X(getbuf_installed(g, foreign), -EXDEV)                                     \
	X(getbuf_installed(g, chained), -EINVAL)                                    \
	X(getbuf_len(NULL, ready), -EINVAL)                                         \
	X(getbuf_len(g, none), -EINVAL)                                             \
	X(getbuf_len(g, pending), -EBUSY)                                           \
	X(getbuf_len(g, stale), -ENOENT)                                            \
	X(getbuf_len(g, foreign), -EXDEV)                                           \
	X(getbuf_len(g, chained), -EINVAL)                                          \
	X(getbuf_engine(NULL, ready), -EINVAL)                                      \
	X(getbuf_engine(g, none), -EINVAL)                                          \
	X(getbuf_engine(g, pending), -EBUSY)                                        \
	X(getbuf_engine(g, stale), -ENOENT)                                         \
	X(getbuf_engine(g, foreign), -EXDEV)                                        \
	X(getbuf_uses(NULL, ready), -EINVAL)                                        \
	X(getbuf_uses(g, none), -EINVAL)                                            \
	X(getbuf_uses(g, pending), -EBUSY)                                          \
	X(getbuf_uses(g, stale), -ENOENT)                                           \
	X(getbuf_uses(g, foreign), -EXDEV)                                          \
	X(getbuf_copy_out(NULL, ready, 0, &byte, 1), -EINVAL)                       \
	X(getbuf_copy_out(g, ready, 0, NULL, 1), -EINVAL)                           \
	X(getbuf_copy_out(g, ready, 0, &byte, 0), -ERANGE)                          \
	X(getbuf_copy_out(g, ready, BLOCK, &byte, 1), -ERANGE)                      \
	X(getbuf_copy_out(g, none, 0, &byte, 1), -EINVAL)                           \
	X(getbuf_copy_out(g, pending, 0, &byte, 1), -EBUSY)                         \
	X(getbuf_copy_out(g, stale, 0, &byte, 1), -ENOENT)                          \
	X(getbuf_copy_out(g, foreign, 0, &byte, 1), -EXDEV)                         \
                                                                                    \
	X(getbuf_claims(NULL, 0), -EINVAL)                                          \
	X(getbuf_claims(g, 0), 0)                                                   \
	X(getbuf_claims(g, UINT64_MAX), 0)                                          \
	X(getbuf_complete(NULL, 0, 0, 0, &event), -EINVAL)                          \
	X(getbuf_complete(g, 0, 0, 0, NULL), -EINVAL)                               \
	X(getbuf_complete(g, 0, 0, 0, &small_event), -EINVAL)                       \
	X(getbuf_complete(g, 0, 0, 0, &event), -ENOENT)                             \
	X(getbuf_complete(g, (uint64_t)(uintptr_t)&byte, 0, 0, &event), -ENOENT)    \
	X(getbuf_complete_batch(NULL, cqes, 1, &event), -EINVAL)                    \
	X(getbuf_complete_batch(g, NULL, 1, &event), -EINVAL)                       \
	X(getbuf_complete_batch(g, cqes, 1, NULL), -EINVAL)                         \
	X(getbuf_complete_batch(g, cqes, 1, &small_event), -EINVAL)                 \
	X(getbuf_complete_batch(g, cqes, 0, &event), 0)                             \
	X(getbuf_complete_batch(g, cqes, 1, &event), 1)                             \
	X(getbuf_pending(NULL), -EINVAL)                                            \
	X(getbuf_next(NULL, sqes, 1), -EINVAL)                                      \
	X(getbuf_next(g, NULL, 1), -ENOENT)                                         \
	X(getbuf_next(g, sqes, 1), -ENOENT)

struct misuse {
	const char *what;
	int want;
};

#define ROW(call, want) { #call, want },
static const struct misuse table[] = { CASES(ROW) };

static int call(size_t number)
{
	size_t at = 0;

#define TRY(call, want)        \
	if (at++ == number)    \
		return (call);
	CASES(TRY)
	return 0;
}

static int is_noop(const struct io_uring_sqe *sqe)
{
	return sqe->opcode == IORING_OP_NOP && sqe->flags == (1 << 6) && sqe->fd == -1 &&
	       !sqe->addr && !sqe->len;
}

static int is_untouched(const struct io_uring_sqe *sqe)
{
	struct io_uring_sqe fresh;

	memset(&fresh, 0x5a, sizeof(fresh));
	return !memcmp(sqe, &fresh, sizeof(fresh));
}

static void fill_in(uint32_t engine)
{
	bad_fd = bad_flags = bad_reserved = bad_bound = file;
	bad_fd.fd = -1;
	bad_flags.flags = 1U << 31;
	bad_reserved.reserved = 1;
	bad_bound.flags = GETBUF_FILE_BOUND_FIXED;

	range.len = 1;
	beyond.start = BLOCK - 1;
	beyond.len = 2;
	wrapping.start = 2;
	wrapping.len = UINT32_MAX;

	chain.size = sizeof(chain);
	chain.source = chain.sink = &file;
	chain.len = BLOCK;
	small_chain = large_chain = bad_consumer = write_flags = no_source = no_sink = no_len =
		bad_reserved_chain = chain;
	small_chain.size = sizeof(chain) - 1;
	large_chain.size = 1U << 20;
	bad_consumer.consumer = 3;
	write_flags.send_flags = 1;
	no_source.source = NULL;
	no_sink.sink = NULL;
	no_len.len = 0;
	bad_reserved_chain.reserved[1] = 1;

	params.size = sizeof(params);
	params.engine = engine;
	params.slots = SLOTS;
	params.block_size = BLOCK;
	params.probe = probe;
	small = large = bad_engine = bad_param = once_replace = bad_reserved_params = table_alone = many =
		bad_table = params;
	small.size = 0;
	large.size = 1U << 20;
	bad_engine.engine = 4;
	bad_param.flags = 1U << 31;
	once_replace.flags = 2;
	bad_reserved_params.reserved2[0] = 1;
	table_alone.table_count = 9;
	many.slots = UINT16_MAX;
	bad_table.flags = GETBUF_PARAM_TABLE;
	bad_table.table_first = UINT32_MAX;
	bad_table.table_count = UINT32_MAX;

	stats.size = sizeof(stats);
	small_stats.size = sizeof(stats) - 1;
	event.size = sizeof(event);
	small_event.size = sizeof(event) - 1;
}

static struct getbuf_lease fetched(struct io_uring *ring, struct getbuf *slots, uint64_t offset)
{
	struct getbuf_lease lease;
	struct getbuf_event event;

	CHECK_IS(getbuf_fetch(slots, get_sqe(ring), &file, offset, BLOCK, NULL, &lease), 0);
	while (next_event(ring, slots, &event) != GETBUF_EVENT_FETCHED)
		;
	CHECK(event.lease.id == lease.id);
	return lease;
}

/* Structures of programs that were built with a newer header. */
static void newer_programs(void)
{
	struct {
		struct getbuf_stats stats;
		uint64_t more[4];
	} newer_stats;
	struct {
		struct getbuf_event event;
		uint64_t more[4];
	} newer_event;
	struct {
		struct getbuf_params params;
		uint64_t more[4];
	} newer;
	struct getbuf *third = NULL;
	struct io_uring third_ring;

	memset(&newer_stats, 0x5a, sizeof(newer_stats));
	newer_stats.stats.size = sizeof(newer_stats);
	CHECK_IS(getbuf_stats(g, &newer_stats.stats), 0);
	CHECK_IS(newer_stats.stats.slots, SLOTS);
	CHECK_IS(newer_stats.more[3], 0);
	memset(&newer_event, 0, sizeof(newer_event));
	newer_event.event.size = sizeof(newer_event);
	CHECK_IS(getbuf_complete(g, 0, 0, 0, &newer_event.event), -ENOENT);

	make_ring(&third_ring);
	memset(&newer, 0, sizeof(newer));
	newer.params = params;
	newer.params.size = sizeof(newer);
	newer.more[2] = 1;
	CHECK_IS(getbuf_create(third_ring.ring_fd, &newer.params, &third), -E2BIG);
	newer.more[2] = 0;
	CHECK_IS(getbuf_create(third_ring.ring_fd, &newer.params, &third), 0);
	CHECK_IS(getbuf_destroy(third), 0);
	CHECK_IS(getbuf_destroy(third), -EINVAL);
	/* The ring is as it was. */
	CHECK_IS(getbuf_create(third_ring.ring_fd, NULL, &third), 0);
	CHECK_IS(getbuf_destroy(third), 0);
	io_uring_queue_exit(&third_ring);
}

int main(int argc, char **argv)
{
	struct getbuf_lease taken[SLOTS];
	struct getbuf_event told;
	struct getbuf_stats before, after;
	uint64_t late;
	uint32_t engine, at;
	size_t number;
	int failed = 0, count, i;
	FILE *source;

	if (argc != 2)
		return 2;
	engine = engine_named(argv[1]);
	CHECK_IS(getbuf_probe(&probe), 0);
	need_engine(probe, engine);
	make_ring(&ring);
	make_ring(&other_ring);
	source = tmpfile();
	CHECK(source);
	for (i = 0; i < (int)BLOCK; i++)
		CHECK(fputc(i & 127, source) >= 0);
	CHECK(!fflush(source));
	file.fd = fileno(source);
	fill_in(engine);
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &g), 0);
	CHECK_IS(getbuf_create(other_ring.ring_fd, &params, &other), 0);

	stale = fetched(&ring, g, 0);
	CHECK_IS(getbuf_release(g, stale), 0);
	until_idle(&ring, g);
	ended = fetched(&ring, g, 2 * BLOCK);
	until_idle(&ring, g);
	ready = fetched(&ring, g, 0);
	for (at = 0; at < SLOTS; at++)
		taken[at] = fetched(&other_ring, other, 0);
	foreign = taken[0];
	forged = ready;
	forged.id |= (1U << 14) - 1;
	/* Not submitted before the table is through. */
	CHECK_IS(getbuf_fetch(g, get_sqe(&ring), &file, 0, BLOCK, NULL, &pending), 0);
	count = getbuf_chain_len(g, &chain);
	{
		struct io_uring_sqe *three[GETBUF_CHAIN_MAX];

		for (i = 0; i < count; i++)
			three[i] = get_sqe(&ring);
		CHECK_IS(getbuf_chain(g, three, (uint32_t)count, &chain, &chained), 0);
	}

	for (number = 0; number < sizeof(table) / sizeof(*table); number++) {
		int got;

		memset(&sqe, 0x5a, sizeof(sqe));
		second = third = sqe;
		before = stats_of(g);
		errno = 4711;
		got = call(number);
		after = stats_of(g);
		if (got != table[number].want) {
			fprintf(stderr, "%s is %d, not %d\n", table[number].what, got,
				table[number].want);
			failed = 1;
		}
		if (errno != 4711) {
			fprintf(stderr, "%s sets errno\n", table[number].what);
			failed = 1;
		}
		if (memcmp(&before, &after, sizeof(before))) {
			fprintf(stderr, "%s changes something\n", table[number].what);
			failed = 1;
		}
		for (i = 0; i < (int)GETBUF_CHAIN_MAX; i++)
			if (!is_noop(sqes[i]) && !is_untouched(sqes[i])) {
				fprintf(stderr, "%s leaves a request behind\n", table[number].what);
				failed = 1;
			}
		if (strstr(table[number].what, "&sqe,") && !is_noop(&sqe)) {
			fprintf(stderr, "%s leaves its SQE as it was\n", table[number].what);
			failed = 1;
		}
	}
	CHECK(!out);
	CHECK(!lease.id);
	newer_programs();

	/* What was there before is as it was. */
	late = 0;
	for (i = 0; i < 2;) {
		int kind = next_event(&ring, g, &told);

		if (kind == GETBUF_EVENT_FETCHED) {
			CHECK(told.lease.id == pending.id);
			CHECK_IS(told.res, (int)BLOCK);
			i++;
		} else if (kind == GETBUF_EVENT_CHAINED) {
			CHECK(told.lease.id == chained.id);
			CHECK_IS(told.outcome, GETBUF_CHAIN_DONE);
			i++;
		}
	}
	CHECK_IS(getbuf_installed(g, chained), -ENOENT);
	CHECK_IS(getbuf_copy_out(g, ready, BLOCK - 1, &byte, 7),
		 engine == GETBUF_ENGINE_COPY ? 1 : -EOPNOTSUPP);

	/* A wasted SQE is submitted, and nobody hears of it; and nobody minds where somebody does. */
	{
		struct io_uring_sqe *wasted = get_sqe(&ring);

		CHECK_IS(getbuf_write(g, wasted, stale, 0, 1, &file, 0), -ENOENT);
		late = wasted->user_data;
		CHECK_IS(io_uring_submit(&ring), 1);
		CHECK_IS(io_uring_cq_ready(&ring), 0);
		CHECK_IS(getbuf_claims(g, late), 1);
		CHECK_IS(getbuf_complete(g, late, 0, 0, &event), GETBUF_EVENT_NONE);
	}
	/* A completion a second time, and one of the other ring's requests. */
	{
		struct io_uring_sqe *once = get_sqe(&ring);
		struct io_uring_cqe *cqe;

		CHECK_IS(getbuf_write(g, once, ready, 0, 1, &file, 0), 0);
		late = once->user_data;
		CHECK_IS(getbuf_next(g, sqes, 1), -ENOENT);
		CHECK_IS(io_uring_submit_and_wait(&ring, 1), 1);
		CHECK_IS(io_uring_peek_cqe(&ring, &cqe), 0);
		CHECK_IS(cqe->res, 1);
		io_uring_cqe_seen(&ring, cqe);
		CHECK_IS(getbuf_complete(other, late, 1, 0, &event), GETBUF_EVENT_STALE);
		CHECK_IS(getbuf_complete(g, late, 1, 0, &event), GETBUF_EVENT_USED);
		CHECK_IS(getbuf_complete(g, late, 1, 0, &event), GETBUF_EVENT_STALE);
		CHECK_IS(stats_of(g).stale, 1);
	}

	/* Whatever comes as a completion. */
	for (late = 0; late < 4096; late++) {
		uint64_t user_data = 0xb5ULL << 56 | late * 0x9e3779b97f4a7c15ULL >> 8;

		i = getbuf_complete(other, user_data, (int)late, (uint32_t)late & 15, &event);
		CHECK(i == -ENOENT || i == GETBUF_EVENT_STALE || i == GETBUF_EVENT_NONE);
	}

	CHECK_IS(getbuf_release(g, ready), 0);
	CHECK_IS(getbuf_release(g, pending), 0);
	until_idle(&ring, g);
	for (at = 0; at < SLOTS; at++)
		CHECK_IS(getbuf_release(other, taken[at]), 0);
	until_idle(&other_ring, other);
	CHECK_IS(getbuf_destroy(g), 0);
	CHECK_IS(getbuf_destroy(g), -EINVAL);
	CHECK_IS(getbuf_destroy(other), 0);
	CHECK_IS(getbuf_probe_free(probe), 0);
	CHECK_IS(getbuf_probe_free(probe), -EINVAL);
	CHECK(strstr(getbuf_strerror(-524), "cannot lend"));
	CHECK(strstr(getbuf_strerror(524), "cannot lend"));
	CHECK(!strcmp(getbuf_strerror(-ENOENT), strerror(ENOENT)));
	CHECK(getbuf_strerror(INT32_MIN) != NULL);
	CHECK_IS(getbuf_version(), GETBUF_VERSION);
	fclose(source);
	io_uring_queue_exit(&ring);
	io_uring_queue_exit(&other_ring);
	return failed;
}

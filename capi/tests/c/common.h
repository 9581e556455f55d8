/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the C programs of the tests share. */
#ifndef GETBUF_TEST_COMMON_H
#define GETBUF_TEST_COMMON_H

#include <liburing.h>
#include <getbuf.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SKIPPED 77

#define CHECK(condition)                                                           \
	do {                                                                       \
		if (!(condition)) {                                                \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, \
				#condition);                                       \
			exit(1);                                                   \
		}                                                                  \
	} while (0)

/* That an expression, a number, is another. */
#define CHECK_IS(got, want)                                                        \
	do {                                                                       \
		long long got_ = (long long)(got), want_ = (long long)(want);      \
		if (got_ != want_) {                                               \
			fprintf(stderr, "%s:%d: %s is %lld (%s), not %lld\n", __FILE__, \
				__LINE__, #got, got_,                              \
				got_ < 0 ? getbuf_strerror((int)got_) : "", want_); \
			exit(1);                                                   \
		}                                                                  \
	} while (0)

static inline uint32_t engine_named(const char *name)
{
	static const char *const names[] = { "any", "opcode", "module", "copy" };
	uint32_t engine;

	for (engine = 0; engine < 4; engine++)
		if (!strcmp(name, names[engine]))
			return engine;
	fprintf(stderr, "no engine %s\n", name);
	exit(2);
}

/* Ends the program where the engine does not work. */
static inline void need_engine(struct getbuf_probe *probe, uint32_t engine)
{
	if (getbuf_probe_engine(probe, engine) < 0) {
		printf("%s\n", getbuf_probe_reason(probe, engine));
		getbuf_probe_free(probe);
		exit(SKIPPED);
	}
}

static inline void make_ring(struct io_uring *ring)
{
	int ret = io_uring_queue_init(64, ring, 0);

	/* A test that hangs is one that fails. */
	alarm(300);
	if (ret == -ENOSYS || ret == -EPERM || ret == -EACCES) {
		printf("no io_uring: %s\n", strerror(-ret));
		exit(SKIPPED);
	}
	CHECK_IS(ret, 0);
}

static inline struct io_uring_sqe *get_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	CHECK(sqe);
	return sqe;
}

static inline void send_pending(struct io_uring *ring, struct getbuf *slots)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	int count, i;

	while ((count = getbuf_pending(slots)) > 0) {
		CHECK(count <= (int)GETBUF_CHAIN_MAX);
		if (io_uring_sq_space_left(ring) < (unsigned)count)
			io_uring_submit(ring);
		for (i = 0; i < count; i++)
			sqes[i] = get_sqe(ring);
		CHECK_IS(getbuf_next(slots, sqes, (uint32_t)count), 0);
	}
	CHECK_IS(count, 0);
}

/* Waits for one completion of the slots; its kind. */
static inline int next_event(struct io_uring *ring, struct getbuf *slots,
			     struct getbuf_event *event)
{
	struct io_uring_cqe *cqe;
	int kind, ret;

	memset(event, 0, sizeof(*event));
	event->size = sizeof(*event);
	send_pending(ring, slots);
	do
		ret = io_uring_submit_and_wait(ring, 1);
	while (ret == -EINTR);
	CHECK(ret >= 0);
	CHECK_IS(io_uring_peek_cqe(ring, &cqe), 0);
	CHECK_IS(getbuf_claims(slots, cqe->user_data), 1);
	kind = getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags, event);
	CHECK_IS(event->kind, kind);
	io_uring_cqe_seen(ring, cqe);
	return kind;
}

static inline struct getbuf_stats stats_of(const struct getbuf *slots)
{
	struct getbuf_stats stats;

	memset(&stats, 0, sizeof(stats));
	stats.size = sizeof(stats);
	CHECK_IS(getbuf_stats(slots, &stats), 0);
	return stats;
}

/* Waits until nothing is in flight and every slot is free. */
static inline void until_idle(struct io_uring *ring, struct getbuf *slots)
{
	struct getbuf_event event;

	for (;;) {
		struct getbuf_stats stats = stats_of(slots);

		if (!stats.in_flight && stats.free_slots == stats.slots)
			return;
		next_event(ring, slots, &event);
	}
}

#endif

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * overhead MODE DEPTH LEASES SOURCE ENGINE: leases blocks of 4 KiB, DEPTH at
 * once, writes each to /dev/null and releases it; prints the nanoseconds that
 * a lease took. What the bench beside it does in Rust.
 */
#include <liburing.h>

#include <getbuf.h>
#include <getbuf_prep.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCK 4096
#define DEPTH_MAX 64
#define BATCH 32

static struct io_uring ring;
static struct getbuf *slots;
static const struct getbuf_file src = { .fd = 0, .flags = GETBUF_FILE_FIXED };
static const struct getbuf_file dst = { .fd = 1, .flags = GETBUF_FILE_FIXED };
static const struct getbuf_chain chain = {
	.size = sizeof(chain), .source = &src, .len = BLOCK,
	.consumer = GETBUF_WRITE, .sink = &dst,
};
static unsigned chain_len;

static void need(int ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, getbuf_strerror(ret));
	exit(1);
}

static void send_pending(void)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	int count;

	while ((count = getbuf_pending(slots)) > 0) {
		need(getbuf_get_sqes(&ring, sqes, (unsigned)count), "getbuf_get_sqes");
		need(getbuf_next(slots, sqes, (uint32_t)count), "getbuf_next");
	}
}

/* One event of a kind, and whatever else is there. */
static void wait_for_one(int kind, struct getbuf_lease *lease)
{
	struct getbuf_event event;
	struct io_uring_cqe *cqe;
	unsigned head, seen;
	int there = 0;

	event.size = sizeof(event);
	while (!there) {
		need(io_uring_submit_and_wait(&ring, 1), "io_uring_submit_and_wait");
		seen = 0;
		io_uring_for_each_cqe(&ring, head, cqe) {
			need(getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags, &event),
			     "getbuf_complete");
			seen++;
			if (event.kind != kind)
				continue;
			need(event.res, "a request");
			if (lease)
				*lease = event.lease;
			there = 1;
		}
		io_uring_cq_advance(&ring, seen);
	}
}

/* So many events of a kind, and whatever else is there. */
static inline void wait_for(unsigned count, int kind, struct getbuf_lease *leases)
{
	struct io_uring_cqe *cqes[BATCH];
	struct getbuf_event events[BATCH];
	unsigned seen, i, there = 0;

	events[0].size = sizeof(*events);
	while (there < count) {
		need(io_uring_submit_and_wait(&ring, count - there), "io_uring_submit_and_wait");
		seen = io_uring_peek_batch_cqe(&ring, cqes, BATCH);
		need(getbuf_complete_batch(slots, cqes, seen, events), "getbuf_complete_batch");
		io_uring_cq_advance(&ring, seen);
		for (i = 0; i < seen; i++) {
			if (events[i].kind != kind)
				continue;
			need(events[i].res, "a request");
			if (leases)
				leases[there] = events[i].lease;
			there++;
		}
	}
}

static void steps(unsigned depth)
{
	struct io_uring_sqe *sqes[DEPTH_MAX];
	struct getbuf_lease leases[DEPTH_MAX];

	need(getbuf_get_sqes(&ring, sqes, depth), "getbuf_get_sqes");
	need(getbuf_fetch_batch(slots, sqes, depth, &src, 0, BLOCK, NULL, leases),
	     "getbuf_fetch_batch");
	wait_for(depth, GETBUF_EVENT_FETCHED, leases);
	need(getbuf_get_sqes(&ring, sqes, depth), "getbuf_get_sqes");
	need(getbuf_write_batch(slots, sqes, depth, leases, 0, BLOCK, &dst, 0),
	     "getbuf_write_batch");
	wait_for(depth, GETBUF_EVENT_USED, NULL);
	need(getbuf_release_batch(slots, leases, depth), "getbuf_release_batch");
	send_pending();
}

static void step(unsigned depth)
{
	struct getbuf_lease lease;

	(void)depth;
	need(getbuf_fetch(slots, io_uring_get_sqe(&ring), &src, 0, BLOCK, NULL, &lease),
	     "getbuf_fetch");
	wait_for_one(GETBUF_EVENT_FETCHED, &lease);
	need(getbuf_write(slots, io_uring_get_sqe(&ring), lease, 0, BLOCK, &dst, 0),
	     "getbuf_write");
	wait_for_one(GETBUF_EVENT_USED, NULL);
	need(getbuf_release(slots, lease), "getbuf_release");
	send_pending();
}

static void chains(unsigned depth)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX * DEPTH_MAX];
	struct getbuf_lease leases[DEPTH_MAX];

	need(getbuf_get_sqes(&ring, sqes, chain_len * depth), "getbuf_get_sqes");
	need(getbuf_chain_batch(slots, sqes, chain_len * depth, &chain, leases),
	     "getbuf_chain_batch");
	wait_for(depth, GETBUF_EVENT_CHAINED, NULL);
}

static void one_chain(unsigned depth)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	struct getbuf_lease lease;

	(void)depth;
	need(getbuf_get_sqes(&ring, sqes, chain_len), "getbuf_get_sqes");
	need(getbuf_chain(slots, sqes, chain_len, &chain, &lease), "getbuf_chain");
	wait_for_one(GETBUF_EVENT_CHAINED, NULL);
}

static uint32_t engine_named(const char *name)
{
	if (!strcmp(name, "opcode"))
		return GETBUF_ENGINE_OPCODE;
	return strcmp(name, "module") ? GETBUF_ENGINE_COPY : GETBUF_ENGINE_MODULE;
}

static unsigned long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (unsigned long long)time.tv_sec * 1000000000ULL + (unsigned long long)time.tv_nsec;
}

int main(int argc, char **argv)
{
	struct getbuf_params params;
	void (*run)(unsigned depth);
	unsigned long long begin;
	unsigned depth;
	long leases, i;
	int files[2];

	if (argc != 6)
		return 2;
	depth = (unsigned)atoi(argv[2]);
	leases = atol(argv[3]);
	files[0] = open(argv[4], O_RDONLY | O_CLOEXEC);
	files[1] = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (depth < 1 || depth > DEPTH_MAX || files[0] < 0 || files[1] < 0)
		return 2;
	/* As the ring of the Rust library is set up. */
	need(io_uring_queue_init(4 * DEPTH_MAX, &ring,
				 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
				 IORING_SETUP_TASKRUN_FLAG), "io_uring_queue_init");
	need(io_uring_register_ring_fd(&ring), "io_uring_register_ring_fd");
	need(io_uring_register_files(&ring, files, 2), "io_uring_register_files");
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.engine = engine_named(argv[5]);
	/* What is released comes back with the next submission. */
	params.slots = (uint16_t)(2 * depth);
	params.block_size = BLOCK;
	need(getbuf_create(ring.ring_fd, &params, &slots), "getbuf_create");
	need(getbuf_chain_len(slots, &chain), "getbuf_chain_len");
	chain_len = (unsigned)getbuf_chain_len(slots, &chain);
	/* One is asked for by itself, many are in batches. */
	if (!strcmp(argv[1], "chain"))
		run = depth == 1 ? one_chain : chains;
	else
		run = depth == 1 ? step : steps;
	begin = now();
	for (i = 0; i < leases; i += depth)
		run(depth);
	printf("%.1f\n", (double)(now() - begin) / (double)i);
	need(getbuf_destroy(slots), "getbuf_destroy");
	io_uring_queue_exit(&ring);
	return 0;
}

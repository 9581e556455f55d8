/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * overhead MODE DEPTH LEASES SOURCE ENGINE: leases blocks of 4 KiB, DEPTH at
 * once, writes each to /dev/null and releases it; prints the nanoseconds that
 * a lease took. What the bench beside it does in Rust.
 */
#include <getbuf.h>
#include <liburing.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCK 4096
#define DEPTH_MAX 64

static struct io_uring ring;
static struct getbuf *slots;
static const struct getbuf_file src = { .fd = 0, .flags = GETBUF_FILE_FIXED };
static const struct getbuf_file dst = { .fd = 1, .flags = GETBUF_FILE_FIXED };

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
	int count, i;

	while ((count = getbuf_pending(slots)) > 0) {
		for (i = 0; i < count; i++)
			sqes[i] = io_uring_get_sqe(&ring);
		need(getbuf_next(slots, sqes, (uint32_t)count), "getbuf_next");
	}
}

/* Waits for so many events of a kind, and takes all that are there. */
static void wait_for(unsigned count, int kind, struct getbuf_lease *leases)
{
	struct getbuf_event event;
	struct io_uring_cqe *cqe;
	unsigned head, seen, there = 0;

	event.size = sizeof(event);
	while (there < count) {
		need(io_uring_submit_and_wait(&ring, count - there), "io_uring_submit_and_wait");
		seen = 0;
		io_uring_for_each_cqe(&ring, head, cqe) {
			seen++;
			if (getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags,
					    &event) != kind)
				continue;
			need(event.res, "a request");
			if (leases)
				leases[there] = event.lease;
			there++;
		}
		io_uring_cq_advance(&ring, seen);
	}
}

static void steps(unsigned depth)
{
	struct getbuf_lease leases[DEPTH_MAX];
	unsigned i;

	for (i = 0; i < depth; i++)
		need(getbuf_fetch(slots, io_uring_get_sqe(&ring), &src, 0, BLOCK, NULL,
				  &leases[i]), "getbuf_fetch");
	wait_for(depth, GETBUF_EVENT_FETCHED, leases);
	for (i = 0; i < depth; i++)
		need(getbuf_write(slots, io_uring_get_sqe(&ring), leases[i], 0, BLOCK, &dst, 0),
		     "getbuf_write");
	wait_for(depth, GETBUF_EVENT_USED, NULL);
	for (i = 0; i < depth; i++)
		need(getbuf_release(slots, leases[i]), "getbuf_release");
	send_pending();
}

static void chains(unsigned depth)
{
	struct getbuf_chain chain = {
		.size = sizeof(chain), .source = &src, .len = BLOCK,
		.consumer = GETBUF_WRITE, .sink = &dst,
	};
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	struct getbuf_lease lease;
	int count = getbuf_chain_len(slots, &chain), j;
	unsigned i;

	need(count, "getbuf_chain_len");
	for (i = 0; i < depth; i++) {
		for (j = 0; j < count; j++)
			sqes[j] = io_uring_get_sqe(&ring);
		need(getbuf_chain(slots, sqes, (uint32_t)count, &chain, &lease), "getbuf_chain");
	}
	wait_for(depth, GETBUF_EVENT_CHAINED, NULL);
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
	need(io_uring_register_files(&ring, files, 2), "io_uring_register_files");
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.engine = engine_named(argv[5]);
	/* What is released comes back with the next submission. */
	params.slots = (uint16_t)(2 * depth);
	params.block_size = BLOCK;
	need(getbuf_create(ring.ring_fd, &params, &slots), "getbuf_create");
	begin = now();
	for (i = 0; i < leases; i += depth)
		(strcmp(argv[1], "chain") ? steps : chains)(depth);
	printf("%.1f\n", (double)(now() - begin) / (double)i);
	need(getbuf_destroy(slots), "getbuf_destroy");
	io_uring_queue_exit(&ring);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0
/*
 * What a page of a file costs on its way to /dev/null, by each way that there
 * is: splice(2), IORING_OP_SPLICE, and a chain [fetch, write, release] of the
 * opcode and of the module. Where the guest's clock counts instructions, a
 * nanosecond is one:
 *
 *   cc -O2 -static -I include -o chain kernel/bench/chain.c -luring
 *   cargo xtask vm --flavour opcode --module --qemu --icount -- ./chain
 *
 * The file is in the current folder, and in the page cache.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "getbuf_uapi.h"

#define MOST	32
#define BYTES	(1 << 20)
#define HIDDEN	(IOSQE_IO_HARDLINK | IOSQE_CQE_SKIP_SUCCESS)

enum { SOURCE, SINK, DEVICE, BOUND, FILES };

static struct io_uring ring;
static int files[FILES] = { -1, -1, -1, -1 };
static int pipes[MOST][2];
static unsigned int size = 4096;
static unsigned long long at;

static void die(const char *what, int result)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-result));
	exit(1);
}

static struct io_uring_sqe *request(int op, int file, unsigned int slot,
				    unsigned int flags)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = file;
	sqe->buf_index = slot;
	sqe->flags = flags;
	return sqe;
}

static unsigned long long next(void)
{
	unsigned long long offset = at & (BYTES - 1);

	at += size;
	return offset;
}

static unsigned int take(void)
{
	struct io_uring_cqe *cqe;
	unsigned int head, seen = 0;

	io_uring_for_each_cqe(&ring, head, cqe) {
		if (cqe->res < 0)
			die("a request", cqe->res);
		seen++;
	}
	io_uring_cq_advance(&ring, seen);
	return seen;
}

static void finish(int count)
{
	while (count) {
		io_uring_submit_and_wait(&ring, count);
		count -= take();
	}
}

/* Where all is done while it is submitted, there is nothing to wait for. */
static void finish_at_once(int count)
{
	io_uring_submit(&ring);
	finish(count - take());
}

static void by_splice(int depth)
{
	while (depth--) {
		loff_t offset = next();

		if (splice(files[SOURCE], &offset, pipes[0][1], NULL, size, 0) != size ||
		    splice(pipes[0][0], NULL, files[SINK], NULL, size, 0) != size)
			die("splice", -5);
	}
}

static void by_op_splice(int depth)
{
	for (int i = 0; i < depth; i++) {
		struct io_uring_sqe *sqe;

		sqe = request(IORING_OP_SPLICE, pipes[i][1], 0,
			      IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS);
		sqe->off = -1;
		sqe->splice_off_in = next();
		sqe->len = size;
		sqe->splice_fd_in = SOURCE;
		sqe->splice_flags = SPLICE_F_FD_IN_FIXED;
		sqe = request(IORING_OP_SPLICE, SINK, 0, IOSQE_FIXED_FILE);
		sqe->off = -1;
		sqe->splice_off_in = -1;
		sqe->len = size;
		sqe->splice_fd_in = pipes[i][0];
	}
	finish(depth);
}

static void consume(int slot)
{
	request(IORING_OP_WRITE_FIXED, SINK, slot, IOSQE_FIXED_FILE | HIDDEN)->len = size;
}

static void get(int slot, unsigned int flags)
{
	struct io_uring_sqe *sqe;

	sqe = request(IORING_OP_GET_BUF_7_3, SOURCE, slot, IOSQE_FIXED_FILE | HIDDEN);
	sqe->off = next();
	sqe->len = size;
	sqe->rw_flags = flags;
}

static void by_opcode(int depth)
{
	for (int i = 0; i < depth; i++) {
		get(i, 0);
		consume(i);
		request(IORING_OP_PUT_BUF_7_3, -1, i, 0);
	}
	finish_at_once(depth);
}

/* No request releases. */
static void without_release(int depth, unsigned int flags)
{
	for (int i = 0; i < depth; i++) {
		get(i, flags);
		request(IORING_OP_WRITE_FIXED, SINK, i, IOSQE_FIXED_FILE)->len = size;
	}
	finish_at_once(depth);
}

static void by_linked(int depth)
{
	without_release(depth, IORING_GET_BUF_LINKED);
}

static void by_replacing(int depth)
{
	without_release(depth, IORING_GET_BUF_REPLACE);
}

static void *command(int file, unsigned int op, unsigned int flags, struct io_uring_sqe **to)
{
	struct io_uring_sqe *sqe;

	sqe = request(IORING_OP_URING_CMD, file, 0, IOSQE_FIXED_FILE | flags);
	sqe->cmd_op = op;
	*to = sqe;
	return sqe->cmd;
}

static void by_module(int depth)
{
	for (int i = 0; i < depth; i++) {
		struct io_uring_sqe *sqe;
		struct getbuf_cmd_fetch *fetch;
		struct getbuf_cmd_release *release;

		fetch = command(BOUND, GETBUF_CMD_FETCH, HIDDEN, &sqe);
		fetch->fd = GETBUF_FD_BOUND;
		fetch->slot = i;
		fetch->version = GETBUF_ABI_VERSION;
		fetch->off = next();
		sqe->len = size;
		consume(i);
		release = command(DEVICE, GETBUF_CMD_RELEASE, 0, &sqe);
		release->slot = i;
		release->version = GETBUF_ABI_VERSION;
	}
	finish(depth);
}

/* Whether one page goes through. */
static int works(void (*way)(int))
{
	struct io_uring_cqe *cqe;
	int result = -1;

	if (way == by_opcode || way == by_linked || way == by_replacing) {
		struct io_uring_sqe *sqe;

		sqe = request(IORING_OP_GET_BUF_7_3, SOURCE, 0, IOSQE_FIXED_FILE);
		sqe->len = size;
		io_uring_submit_and_wait(&ring, 1);
		io_uring_wait_cqe(&ring, &cqe);
		result = cqe->res;
		io_uring_cqe_seen(&ring, cqe);
		if (result > 0) {
			request(IORING_OP_PUT_BUF_7_3, -1, 0, 0);
			finish(1);
		}
		return result > 0;
	}
	return way != by_module || files[BOUND] >= 0;
}

static void bind_source(void)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct getbuf_cmd_bind *bind;

	files[DEVICE] = open(GETBUF_DEVICE, O_RDWR | O_CLOEXEC);
	if (files[DEVICE] < 0)
		return;
	bind = command(files[DEVICE], GETBUF_CMD_BIND, 0, &sqe);
	sqe->flags = 0;
	bind->fd = files[SOURCE];
	bind->version = GETBUF_ABI_VERSION;
	io_uring_submit_and_wait(&ring, 1);
	if (io_uring_wait_cqe(&ring, &cqe) == 0) {
		files[BOUND] = cqe->res;
		io_uring_cqe_seen(&ring, cqe);
	}
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*way)(int);
	} ways[] = {
		{ "splice(2)", by_splice },
		{ "OP_SPLICE", by_op_splice },
		{ "opcode chain", by_opcode },
		{ "module chain", by_module },
		{ "opcode, linked", by_linked },
		/* the last one: it leaves its slots full */
		{ "opcode, replacing", by_replacing },
	};
	static const int depths[] = { 1, 8, MOST };
	int result, total = argc > 1 ? atoi(argv[1]) : 4096;
	char *bytes = malloc(BYTES);

	memset(bytes, 7, BYTES);
	files[SOURCE] = open("chain.source", O_RDWR | O_CREAT | O_TRUNC, 0600);
	files[SINK] = open("/dev/null", O_WRONLY);
	if (write(files[SOURCE], bytes, BYTES) != BYTES)
		die("chain.source", -5);
	unlink("chain.source");
	for (int i = 0; i < MOST; i++)
		if (pipe(pipes[i]))
			die("pipe", -24);
	result = io_uring_queue_init(4 * MOST, &ring,
				     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	if (result)
		die("io_uring_setup", result);
	io_uring_register_ring_fd(&ring);
	io_uring_register_buffers_sparse(&ring, MOST);
	bind_source();
	result = io_uring_register_files(&ring, files, FILES);
	if (result < 0)
		die("registering files", result);

	printf("per page of %u bytes", size);
	for (unsigned int d = 0; d < 3; d++)
		printf("%8s%2d", "QD ", depths[d]);
	puts("");
	for (unsigned int w = 0; w < 6; w++) {
		printf("%-23s", ways[w].name);
		if (!works(ways[w].way)) {
			puts("not here");
			continue;
		}
		for (unsigned int d = 0; d < 3; d++) {
			int rounds = total / depths[d];
			long long start;

			for (int i = 0; i < 20; i++)
				ways[w].way(depths[d]);
			start = now();
			for (int i = 0; i < rounds; i++)
				ways[w].way(depths[d]);
			printf("%10lld", (now() - start) / rounds / depths[d]);
			fflush(stdout);
		}
		puts("");
	}
	return 0;
}

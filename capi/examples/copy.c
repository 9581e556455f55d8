/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Copies a file with the raw requests, from the headers alone: nothing of
 * libgetbuf is linked.
 *
 *     cc copy.c $(pkg-config --cflags getbuf) -luring -o copy
 *     ./copy [-o GET_BUF] SRC DST
 *
 * The file's own memory is leased through /dev/getbuf where that is there, or
 * through GET_BUF where -o gives the number that this kernel has for it
 * (`getbuf probe` prints it; a program finds it with getbuf_probe()). Where
 * neither is, or this kind of file cannot lend its memory, the bytes go
 * through a buffer.
 *
 * Each block is a link of requests: fetch into a slot, write, release the slot.
 */
#include <liburing.h>
#include <getbuf_prep.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SLOTS	16
#define BLOCK	(128U << 10)

enum how { OPCODE, MODULE, BUFFER };

static struct io_uring ring;
static struct iovec buffers[SLOTS];
static int device = -1;
static int get_buf = -1;

static void die(const char *what, int error)
{
	fprintf(stderr, "copy: %s: %s\n", what,
		-error == GETBUF_ENOTSUPP ? "this kind of file cannot lend its memory"
					  : strerror(-error));
	exit(1);
}

/* The requests that move one block through a slot; how many. */
static unsigned move(enum how how, int src, int dst, __u64 offset, __u32 len, __u16 slot)
{
	struct io_uring_sqe *fetch = io_uring_get_sqe(&ring);
	struct io_uring_sqe *put = io_uring_get_sqe(&ring);
	struct io_uring_sqe *release = NULL;
	/* In a slot of the kernel's memory, bytes have no address but an offset. */
	void *start = how == BUFFER ? buffers[slot].iov_base : NULL;

	if (how != BUFFER)
		release = io_uring_get_sqe(&ring);
	if (!fetch || !put || (how != BUFFER && !release))
		die("the submission queue is full", -ENOSPC);

	if (how == OPCODE)
		io_uring_prep_get_buf(fetch, (__u8)get_buf, src, offset, len, slot, 0);
	else if (how == MODULE)
		io_uring_prep_getbuf_fetch(fetch, device, src, offset, len, slot, 0);
	else
		io_uring_prep_read_fixed(fetch, src, start, len, offset, slot);
	io_uring_prep_write_fixed(put, dst, start, len, offset, slot);
	fetch->user_data = put->user_data = slot;

	if (how == BUFFER) {
		fetch->flags |= IOSQE_IO_LINK;
		return 2;
	}
	if (how == OPCODE)
		io_uring_prep_put_buf(release, (__u8)IORING_OP_PUT_BUF_AFTER(get_buf), slot);
	else
		io_uring_prep_getbuf_release(release, device, slot);
	/* Hard links: the slot is emptied whatever became of the rest. */
	fetch->flags |= IOSQE_IO_HARDLINK;
	put->flags |= IOSQE_IO_HARDLINK;
	release->user_data = slot;
	return 3;
}

/* Copies everything; 0, or the first error. */
static int copy(enum how how, int src, int dst, __u64 size)
{
	unsigned left[SLOTS] = { 0 };	/* completions that a slot still waits for */
	unsigned steps[SLOTS] = { 0 };
	__u32 asked[SLOTS] = { 0 };
	unsigned in_flight = 0, slot;
	__u64 offset = 0;
	int error = 0;

	while (in_flight || (offset < size && !error)) {
		struct io_uring_cqe *cqe;
		int ret;

		for (slot = 0; slot < SLOTS && offset < size && !error; slot++) {
			if (left[slot])
				continue;
			asked[slot] = size - offset < BLOCK ? (__u32)(size - offset) : BLOCK;
			steps[slot] = left[slot] =
				move(how, src, dst, offset, asked[slot], (__u16)slot);
			offset += asked[slot];
			in_flight += left[slot];
		}
		ret = io_uring_submit_and_wait(&ring, 1);
		if (ret < 0 && ret != -EINTR)
			die("io_uring_enter", ret);
		while (in_flight && io_uring_peek_cqe(&ring, &cqe) == 0) {
			slot = (unsigned)cqe->user_data;
			/* The first two of a slot are its fetch and its write. */
			if (left[slot] + 2 > steps[slot] && !error) {
				if (cqe->res < 0)
					error = cqe->res;
				else if ((__u32)cqe->res != asked[slot])
					error = -EIO;	/* the source shrank, or the disk is full */
			}
			left[slot]--;
			in_flight--;
			io_uring_cqe_seen(&ring, cqe);
		}
	}
	return error;
}

/* Makes a table of empty slots. */
static int make_slots(void)
{
	struct io_uring_rsrc_register table;

	memset(&table, 0, sizeof(table));
	table.nr = SLOTS;
	/* flags, which liburing 2.1 calls resv */
	((__u32 *)&table)[1] = IORING_RSRC_REGISTER_SPARSE;
	return (int)syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_BUFFERS2,
			    &table, sizeof(table)) < 0 ? -errno : 0;
}

static void make_buffers(void)
{
	int ret, i;

	for (i = 0; i < SLOTS; i++) {
		buffers[i].iov_len = BLOCK;
		if (posix_memalign(&buffers[i].iov_base, 4096, BLOCK))
			die("memory", -ENOMEM);
	}
	ret = io_uring_register_buffers(&ring, buffers, SLOTS);
	if (ret)
		die("registering buffers", ret);
}

int main(int argc, char **argv)
{
	struct stat st;
	int src, dst, ret, option, i;
	enum how how;

	while ((option = getopt(argc, argv, "o:")) != -1) {
		if (option != 'o')
			return 2;
		get_buf = atoi(optarg);
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: copy [-o GET_BUF] SRC DST\n");
		return 2;
	}
	src = open(argv[optind], O_RDONLY | O_CLOEXEC);
	if (src < 0 || fstat(src, &st))
		die(argv[optind], -errno);
	dst = open(argv[optind + 1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (dst < 0)
		die(argv[optind + 1], -errno);
	ret = io_uring_queue_init(SLOTS * 4, &ring, 0);
	if (ret)
		die("io_uring_setup", ret);

	device = open(GETBUF_DEVICE, O_RDWR | O_CLOEXEC);
	how = get_buf > 0 ? OPCODE : device >= 0 ? MODULE : BUFFER;
	if (how != BUFFER) {
		ret = make_slots();
		if (ret)
			die("making slots", ret);
		ret = copy(how, src, dst, (__u64)st.st_size);
		if (ret == -GETBUF_ENOTSUPP) {
			io_uring_unregister_buffers(&ring);
			how = BUFFER;
		}
	}
	if (how == BUFFER) {
		make_buffers();
		ret = copy(how, src, dst, (__u64)st.st_size);
	}
	if (ret)
		die("copying", ret);
	io_uring_queue_exit(&ring);
	for (i = 0; i < SLOTS; i++)
		free(buffers[i].iov_base);
	if (close(dst))
		die(argv[optind + 1], -errno);
	return 0;
}

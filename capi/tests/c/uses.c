/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * uses ENGINE SRC DST: many consumers of one lease at once, a look at its
 * bytes, and requests with a limit on how long they may wait. SRC has at least
 * a block, and DST gets it. Exits with 77 and the reason where the engine does
 * not work.
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define SLOTS 4
#define BLOCK 4096
/* What the program's own requests are known by. */
#define MINE 0x11

static struct io_uring ring;
static struct getbuf *slots;
static struct getbuf_file src, dst;
static uint32_t engine;
static unsigned char content[BLOCK];

static void create(void)
{
	struct getbuf_params params;
	struct getbuf_probe *probe = NULL;

	CHECK_IS(getbuf_probe(&probe), 0);
	need_engine(probe, engine);
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.engine = engine;
	params.slots = SLOTS;
	params.block_size = BLOCK;
	params.probe = probe;
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &slots), 0);
	CHECK_IS(getbuf_probe_free(probe), 0);
}

static struct getbuf_file file_of(int fd)
{
	struct getbuf_file file;

	memset(&file, 0, sizeof(file));
	file.fd = fd;
	return file;
}

static void tcp(int ends[2])
{
	struct sockaddr_in address;
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK_IS(bind(listener, (struct sockaddr *)&address, len), 0);
	CHECK_IS(listen(listener, 1), 0);
	CHECK_IS(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK_IS(connect(ends[0], (struct sockaddr *)&address, len), 0);
	ends[1] = accept(listener, NULL, NULL);
	CHECK(ends[1] >= 0);
	close(listener);
}

/* Fills a pipe; how many bytes that took. */
static size_t fill(int fd)
{
	static const char some[BLOCK];
	size_t bytes = 0;
	ssize_t written;

	CHECK_IS(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	while ((written = write(fd, some, sizeof(some))) > 0)
		bytes += (size_t)written;
	CHECK_IS(errno, EAGAIN);
	CHECK_IS(fcntl(fd, F_SETFL, 0), 0);
	return bytes;
}

static void drain(int fd, size_t bytes)
{
	char some[BLOCK];

	while (bytes) {
		ssize_t got = read(fd, some, bytes < sizeof(some) ? bytes : sizeof(some));

		CHECK(got > 0);
		bytes -= (size_t)got;
	}
}

/* Has the content, and nothing before it. */
static void arrives(int fd)
{
	unsigned char got[BLOCK];
	size_t have = 0;

	while (have < BLOCK) {
		ssize_t some = read(fd, got + have, BLOCK - have);

		CHECK(some > 0);
		have += (size_t)some;
	}
	CHECK(!memcmp(got, content, BLOCK));
}

static struct getbuf_lease fetched(void)
{
	struct getbuf_event event;
	struct getbuf_lease lease;

	CHECK_IS(getbuf_fetch(slots, get_sqe(&ring), &src, 0, BLOCK, NULL, &lease), 0);
	while (next_event(&ring, slots, &event) != GETBUF_EVENT_FETCHED)
		;
	CHECK_IS(event.res, BLOCK);
	CHECK_IS(getbuf_engine(slots, lease), engine);
	return lease;
}

/*
 * To a file, a TCP socket, a UNIX socket and a pipe, none linked to another, and
 * released: all of it in one submission. With `stuck` the pipe is full.
 */
static void four_at_once(int stuck)
{
	struct getbuf_event event;
	struct getbuf_lease lease = fetched();
	struct getbuf_file sinks[3];
	int net[2], local[2], pipes[2], i, used;
	size_t full = 0;

	tcp(net);
	CHECK_IS(socketpair(AF_UNIX, SOCK_STREAM, 0, local), 0);
	CHECK_IS(pipe(pipes), 0);
	if (stuck)
		full = fill(pipes[1]);
	sinks[0] = file_of(net[0]);
	sinks[1] = file_of(local[0]);
	sinks[2] = file_of(pipes[1]);
	dst.token = 1;
	for (i = 0; i < 3; i++)
		sinks[i].token = (uint16_t)(2 << i);
	CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 0, BLOCK, &dst, 0), 0);
	CHECK_IS(getbuf_send(slots, get_sqe(&ring), lease, 0, BLOCK, &sinks[0], MSG_WAITALL), 0);
	CHECK_IS(getbuf_send(slots, get_sqe(&ring), lease, 0, BLOCK, &sinks[1], MSG_WAITALL), 0);
	CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 0, BLOCK, &sinks[2], GETBUF_STREAM), 0);
	CHECK_IS(getbuf_uses(slots, lease), 4);
	CHECK_IS(getbuf_release(slots, lease), 0);
	send_pending(&ring, slots);
	/* One that empties the slot, where the memory is the kernel's. */
	CHECK_IS(io_uring_submit(&ring), engine == GETBUF_ENGINE_COPY ? 4 : 5);
	for (used = 0; used != (stuck ? 7 : 15);) {
		if (next_event(&ring, slots, &event) != GETBUF_EVENT_USED)
			continue;
		CHECK_IS(event.res, BLOCK);
		CHECK(!(used & event.token));
		used |= event.token;
	}
	arrives(net[1]);
	arrives(local[1]);
	CHECK_IS(lseek(dst.fd, 0, SEEK_SET), 0);
	arrives(dst.fd);
	if (stuck) {
		/* Its slot is not another's before the last one is done. */
		CHECK(stats_of(slots).free_slots < SLOTS);
		CHECK_IS(getbuf_uses(slots, lease), -ENOENT);
		drain(pipes[0], full);
		while (next_event(&ring, slots, &event) != GETBUF_EVENT_USED)
			;
		CHECK_IS(event.token, 8);
	}
	arrives(pipes[0]);
	until_idle(&ring, slots);
	for (i = 0; i < 2; i++) {
		close(net[i]);
		close(local[i]);
		close(pipes[i]);
	}
}

/* As in getbuf_write(3): lent memory goes through a pipe. The lease is what it was. */
static void look(void)
{
	struct getbuf_event event;
	struct getbuf_lease lease = fetched();
	struct getbuf_file looks;
	unsigned char got[64];
	int pipes[2];

	CHECK_IS(pipe(pipes), 0);
	looks = file_of(pipes[1]);
	if (engine == GETBUF_ENGINE_COPY)
		CHECK_IS(getbuf_copy_out(slots, lease, 100, got, sizeof(got)), sizeof(got));
	else
		CHECK_IS(getbuf_copy_out(slots, lease, 100, got, sizeof(got)), -EOPNOTSUPP);
	CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 100, sizeof(got), &looks,
			      GETBUF_STREAM), 0);
	while (next_event(&ring, slots, &event) != GETBUF_EVENT_USED)
		;
	CHECK_IS(event.res, sizeof(got));
	CHECK_IS(read(pipes[0], got, sizeof(got)), sizeof(got));
	CHECK(!memcmp(got, content + 100, sizeof(got)));
	CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 0, BLOCK, &dst, 0), 0);
	while (next_event(&ring, slots, &event) != GETBUF_EVENT_USED)
		;
	CHECK_IS(event.res, BLOCK);
	CHECK_IS(getbuf_release(slots, lease), 0);
	until_idle(&ring, slots);
	close(pipes[0]);
	close(pipes[1]);
}

/* Has the request in `sqe` cancelled if it takes longer than 20 ms, as in getbuf(7). */
static void limit(struct io_uring_sqe *sqe)
{
	static struct __kernel_timespec time = { .tv_nsec = 20000000 };
	struct io_uring_sqe *after = get_sqe(&ring);

	sqe->flags |= IOSQE_IO_LINK;
	io_uring_prep_link_timeout(after, &time, 0);
	io_uring_sqe_set_data64(after, MINE);
}

/* Both have completed: the request of the slots, and the program's. The event of the first. */
static struct getbuf_event both(int result)
{
	struct getbuf_event event, theirs;
	struct io_uring_cqe *cqe;
	int seen = 0;

	memset(&theirs, 0, sizeof(theirs));
	for (; seen != 3; io_uring_cqe_seen(&ring, cqe)) {
		CHECK(io_uring_submit_and_wait(&ring, 1) >= 0);
		CHECK_IS(io_uring_peek_cqe(&ring, &cqe), 0);
		if (!getbuf_claims(slots, cqe->user_data)) {
			CHECK_IS(cqe->user_data, MINE);
			/* -EALREADY: its request was being taken to its end. */
			CHECK(cqe->res == result || cqe->res == -EALREADY);
			seen |= 1;
			continue;
		}
		memset(&event, 0, sizeof(event));
		event.size = sizeof(event);
		CHECK(getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags, &event) >= 0);
		if (event.kind == GETBUF_EVENT_FETCHED || event.kind == GETBUF_EVENT_USED) {
			theirs = event;
			seen |= 2;
		}
	}
	return theirs;
}

static void limits(void)
{
	struct getbuf_event event;
	struct getbuf_lease lease;
	struct getbuf_file from, to;
	struct io_uring_sqe *sqe;
	int pipes[2];
	uint64_t known;
	size_t full;

	CHECK_IS(pipe(pipes), 0);
	from = file_of(pipes[0]);
	from.flags = GETBUF_FILE_COPIED;
	to = file_of(pipes[1]);

	/* A source that has nothing. */
	sqe = get_sqe(&ring);
	CHECK_IS(getbuf_fetch(slots, sqe, &from, GETBUF_STREAM, BLOCK, NULL, &lease), 0);
	limit(sqe);
	event = both(-ETIME);
	CHECK_IS(event.kind, GETBUF_EVENT_FETCHED);
	CHECK_IS(event.res, -ECANCELED);
	CHECK_IS(getbuf_installed(slots, lease), -ENOENT);
	until_idle(&ring, slots);

	/* Likewise, and cancelled by what its SQE is known by. */
	sqe = get_sqe(&ring);
	CHECK_IS(getbuf_fetch(slots, sqe, &from, GETBUF_STREAM, BLOCK, NULL, &lease), 0);
	known = sqe->user_data;
	CHECK_IS(io_uring_submit(&ring), 1);
	sqe = get_sqe(&ring);
	io_uring_prep_cancel64(sqe, known, 0);
	io_uring_sqe_set_data64(sqe, MINE);
	event = both(0);
	CHECK_IS(event.kind, GETBUF_EVENT_FETCHED);
	CHECK_IS(event.res, -ECANCELED);
	until_idle(&ring, slots);

	/* One that has something: the limit is what is cancelled. */
	CHECK_IS(write(pipes[1], "some", 4), 4);
	sqe = get_sqe(&ring);
	CHECK_IS(getbuf_fetch(slots, sqe, &from, GETBUF_STREAM, BLOCK, NULL, &lease), 0);
	limit(sqe);
	event = both(-ECANCELED);
	CHECK_IS(event.res, 4);
	CHECK_IS(getbuf_release(slots, lease), 0);
	until_idle(&ring, slots);

	/* A sink that is full: the lease is still there. */
	lease = fetched();
	full = fill(pipes[1]);
	sqe = get_sqe(&ring);
	CHECK_IS(getbuf_write(slots, sqe, lease, 0, BLOCK, &to, GETBUF_STREAM), 0);
	limit(sqe);
	event = both(-ETIME);
	CHECK_IS(event.kind, GETBUF_EVENT_USED);
	CHECK_IS(event.res, -ECANCELED);
	CHECK_IS(getbuf_uses(slots, lease), 0);
	drain(pipes[0], full);
	CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 0, BLOCK, &to, GETBUF_STREAM), 0);
	CHECK_IS(getbuf_release(slots, lease), 0);
	until_idle(&ring, slots);
	arrives(pipes[0]);
	close(pipes[0]);
	close(pipes[1]);
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	engine = engine_named(argv[1]);
	src = file_of(open(argv[2], O_RDONLY));
	dst = file_of(open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0666));
	CHECK(src.fd >= 0 && dst.fd >= 0);
	CHECK_IS(pread(src.fd, content, BLOCK, 0), BLOCK);
	make_ring(&ring);
	create();
	four_at_once(0);
	four_at_once(1);
	look();
	limits();
	CHECK_IS(stats_of(slots).stale, 0);
	CHECK_IS(getbuf_destroy(slots), 0);
	io_uring_queue_exit(&ring);
	return 0;
}

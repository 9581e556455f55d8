/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Sends a file to everybody who connects: many connections, one ring, leases.
 *
 *     cc send_server.c $(pkg-config --cflags --libs getbuf liburing) -o send_server
 *     ./send_server [-e opcode|module|copy] [-n CONNECTIONS] [-p PORT] [-z] FILE
 *
 * It prints the port that it listens on, and with -n ends after so many
 * connections. -z sends without a copy into the socket.
 *
 * Each connection has one lease at a time: fetch a block, send it, release it.
 * There are fewer slots than there may be connections: one that gets none
 * waits in a line until a lease is released.
 */
#include <liburing.h>
#include <getbuf.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS	16
#define BLOCK	(64U << 10)

struct connection {
	struct getbuf_file sink;
	struct getbuf_lease lease;
	uint64_t offset;	/* of the lease in the file */
	uint32_t len;		/* of the lease */
	uint32_t sent;		/* of the lease */
	int returns;		/* a GETBUF_EVENT_RETURNED is to come */
	int ended;
	struct connection *next;	/* in the line */
};

static struct io_uring ring;
static struct getbuf *slots;
static struct getbuf_file file;
static struct connection *line, **line_end = &line;
static long connections, served, wanted = -1;
static int zero_copy;

static void die(const char *what, int error)
{
	fprintf(stderr, "send_server: %s: %s\n", what, getbuf_strerror(error));
	exit(1);
}

static struct io_uring_sqe *get_sqe(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe) {
		io_uring_submit(&ring);
		sqe = io_uring_get_sqe(&ring);
	}
	if (!sqe)
		die("the submission queue is full", -EBUSY);
	return sqe;
}

/* Has everything sent that the slots need sent. */
static void send_pending(void)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	int count, i;

	while ((count = getbuf_pending(slots)) > 0) {
		if (io_uring_sq_space_left(&ring) < (unsigned)count)
			io_uring_submit(&ring);
		for (i = 0; i < count; i++)
			sqes[i] = get_sqe();
		count = getbuf_next(slots, sqes, (uint32_t)count);
		if (count < 0)
			break;
	}
	if (count < 0)
		die("sending what the slots need", count);
}

static void accept_next(int listener)
{
	struct io_uring_sqe *sqe = get_sqe();

	io_uring_prep_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
	io_uring_sqe_set_data(sqe, NULL);
}

static void end(struct connection *c)
{
	c->ended = 1;
	if (c->returns)
		return;	/* the network still reads the last block */
	shutdown(c->sink.fd, SHUT_RDWR);
	close(c->sink.fd);
	free(c);
	connections--;
	served++;
}

static void fetch(struct connection *c)
{
	struct getbuf_stats stats = { .size = sizeof(stats) };
	int ret;

	getbuf_stats(slots, &stats);
	if (!stats.free_slots) {
		c->next = NULL;
		*line_end = c;
		line_end = &c->next;
		return;
	}
	ret = getbuf_fetch(slots, get_sqe(), &file, c->offset, BLOCK, c, &c->lease);
	if (ret)
		die("fetching", ret);
}

static void send_rest(struct connection *c)
{
	uint32_t start = c->sent, len = c->len - c->sent;
	int ret;

	if (zero_copy)
		ret = getbuf_send_zc(slots, get_sqe(), c->lease, start, len, &c->sink, MSG_WAITALL);
	else
		ret = getbuf_send(slots, get_sqe(), c->lease, start, len, &c->sink, MSG_WAITALL);
	if (ret)
		die("sending", ret);
}

static void sent(struct connection *c, const struct getbuf_event *event)
{
	if (event->flags & GETBUF_EVENT_MORE)
		c->returns++;
	if (event->res > 0) {
		c->sent += (uint32_t)event->res;
		if (c->sent < c->len) {
			send_rest(c);
			return;
		}
	}
	/* The slot is not used again before the network has returned its bytes. */
	getbuf_release(slots, c->lease);
	c->offset += c->len;
	if (event->res > 0)
		fetch(c);
	else
		end(c);	/* the peer has gone */
}

/* Whoever is first in the line, while there are slots. */
static void serve_line(void)
{
	struct getbuf_stats stats = { .size = sizeof(stats) };

	while (line && !getbuf_stats(slots, &stats) && stats.free_slots) {
		struct connection *c = line;

		line = c->next;
		if (!line)
			line_end = &line;
		fetch(c);
	}
}

static void accepted(int fd)
{
	struct connection *c = calloc(1, sizeof(*c));

	if (!c)
		die("memory", -ENOMEM);
	c->sink.fd = fd;
	connections++;
	fetch(c);
}

static void completed(const struct io_uring_cqe *cqe, int listener)
{
	struct getbuf_event event = { .size = sizeof(event) };
	struct connection *c;
	int kind = getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags, &event);

	if (kind == -ENOENT) {	/* not the slots': our accept */
		if (cqe->res >= 0)
			accepted(cqe->res);
		if (wanted < 0 || connections + served < wanted)
			accept_next(listener);
		return;
	}
	c = event.data;
	switch (kind) {
	case GETBUF_EVENT_FETCHED:
		if (event.res <= 0) {	/* end of file, or it cannot be read */
			if (event.res < 0)
				fprintf(stderr, "send_server: reading: %s\n",
					getbuf_strerror(event.res));
			end(c);
			break;
		}
		c->len = (uint32_t)event.res;
		c->sent = 0;
		send_rest(c);
		break;
	case GETBUF_EVENT_USED:
		sent(c, &event);
		break;
	case GETBUF_EVENT_RETURNED:
		c->returns--;
		if (c->ended)
			end(c);
		break;
	default:
		break;
	}
}

static int listen_on(int port)
{
	struct sockaddr_in address;
	socklen_t len = sizeof(address);
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)port);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&address, len) || listen(fd, SOMAXCONN) ||
	    getsockname(fd, (struct sockaddr *)&address, &len))
		die("listening", -errno);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

static void make_slots(uint32_t engine)
{
	struct getbuf_params params = { .size = sizeof(params) };
	struct getbuf_probe *probe = NULL;
	int ret = getbuf_probe(&probe);

	if (ret)
		die("finding out what the kernel can do", ret);
	ret = getbuf_probe_engine(probe, engine);
	if (ret < 0) {
		fprintf(stderr, "send_server: no such engine here: %s\n",
			getbuf_probe_reason(probe, engine ? engine : GETBUF_ENGINE_COPY));
		exit(1);
	}
	params.engine = engine;
	params.slots = SLOTS;
	params.block_size = BLOCK;
	params.probe = probe;
	ret = getbuf_create(ring.ring_fd, &params, &slots);
	getbuf_probe_free(probe);
	if (ret)
		die("making slots", ret);
}

int main(int argc, char **argv)
{
	static const char *const engines[] = { "any", "opcode", "module", "copy" };
	uint32_t engine = GETBUF_ENGINE_ANY;
	int option, port = 0, listener, ret;

	while ((option = getopt(argc, argv, "e:n:p:z")) != -1) {
		switch (option) {
		case 'e':
			while (engine < 4 && strcmp(optarg, engines[engine]))
				engine++;
			break;
		case 'n':
			wanted = atol(optarg);
			break;
		case 'p':
			port = atoi(optarg);
			break;
		case 'z':
			zero_copy = 1;
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 1 || engine > 3 || wanted == 0) {
		fprintf(stderr, "usage: send_server [-e opcode|module|copy] [-n CONNECTIONS] "
				"[-p PORT] [-z] FILE\n");
		return 2;
	}
	file.fd = open(argv[optind], O_RDONLY | O_CLOEXEC);
	if (file.fd < 0)
		die(argv[optind], -errno);
	ret = io_uring_queue_init(256, &ring, 0);
	if (ret)
		die("io_uring_setup", ret);
	make_slots(engine);
	listener = listen_on(port);
	accept_next(listener);

	while (wanted < 0 || served < wanted) {
		struct io_uring_cqe *cqe;
		unsigned head, count = 0;

		serve_line();
		send_pending();
		ret = io_uring_submit_and_wait(&ring, 1);
		if (ret < 0 && ret != -EINTR)
			die("io_uring_enter", ret);
		io_uring_for_each_cqe(&ring, head, cqe) {
			completed(cqe, listener);
			count++;
		}
		io_uring_cq_advance(&ring, count);
	}
	/* Released slots may still be on their way to empty: see them home. */
	for (;;) {
		struct getbuf_stats stats = { .size = sizeof(stats) };
		struct io_uring_cqe *cqe;

		send_pending();
		io_uring_submit(&ring);
		getbuf_stats(slots, &stats);
		if (!stats.in_flight)
			break;
		if (io_uring_wait_cqe(&ring, &cqe))
			continue;
		completed(cqe, listener);
		io_uring_cqe_seen(&ring, cqe);
	}
	getbuf_destroy(slots);
	io_uring_queue_exit(&ring);
	close(listener);
	close(file.fd);
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The files of a random program: sources whose every byte is known, sinks whose every byte can be
 * looked at. */
#ifndef GETBUF_TEST_WORLD_H
#define GETBUF_TEST_WORLD_H

#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define BLOCK (16U << 10)
/* Files that lend, where the engine does, */
#define FILES 5
/* a pipe, which is read from front to back, and the program's own memory. */
#define PIPE FILES
#define MEMORY (FILES + 1)
#define SOURCES (FILES + 2)
#define MEMORY_LEN (64U << 10)
/* The file among the sinks is begun anew when it has become so long. */
#define LONG (32U << 20)

static const uint32_t lengths[FILES] = { 0, 1, 4096, 70001, 1 << 20 };

struct source {
	int fd;
	uint64_t len;
	/* Of the module engine: a descriptor with the source already found; or -1. */
	int bound;
};

enum kind { SINK_FILE, SINK_PIPE, SINK_UNIX, SINK_TCP, SINK_NULL, SINK_FULL, SINK_CLOSED, SINKS };

struct sink {
	int fd;
	/* Where what is written comes out, of streams. */
	int far;
	/* Where the next bytes go in a file: no two requests share a byte. */
	uint64_t next;
	/* Requests in flight. */
	int busy;
};

static struct source sources[SOURCES];
static struct sink sinks[SINKS];
/* The other end of the pipe. */
static int pipe_in = -1;
/* How far the pipe has been filled, and read. */
static uint64_t pipe_written, pipe_read;
static unsigned char *memory;

static inline unsigned char byte_of(int source, uint64_t offset)
{
	uint64_t mixed = (offset ^ (uint64_t)source << 56) * 0x9e3779b97f4a7c15ULL;

	return (unsigned char)(mixed >> 56);
}

static inline void bytes_of(int source, uint64_t offset, unsigned char *to, uint32_t len)
{
	uint32_t i;

	for (i = 0; i < len; i++)
		to[i] = byte_of(source, offset + i);
}

/* A file that has no name any more. */
static inline int unnamed(void)
{
	const char *folder = getenv("TMPDIR");
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/getbuf-random-XXXXXX", folder ? folder : "/tmp");
	fd = mkostemp(path, O_CLOEXEC);
	CHECK(fd >= 0);
	unlink(path);
	return fd;
}

static inline void tcp(int ends[2])
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

static inline int is_stream(int sink)
{
	return sink == SINK_PIPE || sink == SINK_UNIX || sink == SINK_TCP;
}

static inline int is_socket(int sink)
{
	return sink == SINK_UNIX || sink == SINK_TCP;
}

/* Whether an error is the one that every request to this sink fails with. */
static inline int fails_with(int sink, int error, int zero_copy)
{
	switch (sink) {
	case SINK_FULL:
		/* This device only knows write(2), which takes no memory of the kernel. */
		return error == -ENOSPC || error == -EFAULT;
	case SINK_CLOSED:
		return error == -EBADF;
	case SINK_UNIX:
		return zero_copy && error == -EOPNOTSUPP;
	default:
		return 0;
	}
}

static inline int fails(int sink, int zero_copy)
{
	return sink == SINK_FULL || sink == SINK_CLOSED || (sink == SINK_UNIX && zero_copy);
}

/* Where to write so many bytes. */
static inline uint64_t place_in(int number, uint32_t len)
{
	struct sink *sink = &sinks[number];
	uint64_t place;

	if (is_stream(number))
		return GETBUF_STREAM;
	if (number != SINK_FILE)
		return 0;
	if (sink->next > LONG && !sink->busy) {
		CHECK_IS(ftruncate(sink->fd, 0), 0);
		sink->next = 0;
	}
	place = sink->next;
	sink->next += len + 1;
	return place;
}

/* What has arrived, and nothing behind it. */
static inline void arrived(int number, uint64_t place, unsigned char *to, uint32_t len)
{
	while (len) {
		ssize_t got = is_stream(number) ? read(sinks[number].far, to, len) :
						  pread(sinks[number].fd, to, len, (off_t)place);

		CHECK(got > 0);
		to += got;
		len -= (uint32_t)got;
		place += (uint64_t)got;
	}
}

/* What a stream holds that nobody asked for: part of a request that was cancelled. */
static inline void drain_stream(int number)
{
	static char dropped[65536];
	int left;

	while (is_stream(number) && !ioctl(sinks[number].far, FIONREAD, &left) && left)
		CHECK(read(sinks[number].far, dropped, sizeof(dropped)) > 0);
}

/* Closes this one the time after next. */
static inline void close_later(int fd)
{
	static int kept[16], next;

	if (kept[next])
		close(kept[next]);
	kept[next] = fd;
	next = (next + 1) % 16;
}

/*
 * New streams, with nothing in them. A ring that was closed with requests in flight may look up their
 * descriptors a little later, as a worker does when it begins with one: so the old ones stay open, and
 * their numbers theirs, until the new ones are old.
 */
static inline void make_streams(void)
{
	static const int streams[] = { SINK_PIPE, SINK_UNIX, SINK_TCP };
	int i, ends[2];

	for (i = 0; i < 3; i++) {
		struct sink *sink = &sinks[streams[i]];

		if (sink->far >= 0) {
			close_later(sink->fd);
			close_later(sink->far);
		}
		if (streams[i] == SINK_TCP)
			tcp(ends);
		else if (streams[i] == SINK_UNIX)
			CHECK_IS(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
		else
			CHECK_IS(pipe(ends), 0);
		/* A pipe is written to at its other end. */
		sink->fd = ends[streams[i] == SINK_PIPE];
		sink->far = ends[streams[i] != SINK_PIPE];
	}
	if (pipe_in >= 0) {
		close_later(pipe_in);
		close_later(sources[PIPE].fd);
	}
	CHECK_IS(pipe(ends), 0);
	sources[PIPE].fd = ends[0];
	pipe_in = ends[1];
	pipe_written = pipe_read = 0;
}

static inline void make_world(void)
{
	static unsigned char block[1 << 20];
	int i;

	for (i = 0; i < FILES; i++) {
		sources[i].fd = unnamed();
		sources[i].len = lengths[i];
		bytes_of(i, 0, block, lengths[i]);
		CHECK_IS(write(sources[i].fd, block, lengths[i]), lengths[i]);
	}
	sources[MEMORY].fd = -1;
	sources[MEMORY].len = MEMORY_LEN;
	CHECK_IS(posix_memalign((void **)&memory, 4096, MEMORY_LEN), 0);
	bytes_of(MEMORY, 0, memory, MEMORY_LEN);
	for (i = 0; i < SOURCES; i++)
		sources[i].bound = -1;
	for (i = 0; i < SINKS; i++)
		sinks[i].far = -1;
	make_streams();
	sinks[SINK_FILE].fd = unnamed();
	sinks[SINK_NULL].fd = open("/dev/null", O_WRONLY);
	sinks[SINK_FULL].fd = open("/dev/full", O_WRONLY);
	sinks[SINK_CLOSED].fd = open("/dev/null", O_RDONLY);
	CHECK(sinks[SINK_NULL].fd >= 0 && sinks[SINK_FULL].fd >= 0 && sinks[SINK_CLOSED].fd >= 0);
}

/* That nothing has changed a source. */
static inline void check_sources(void)
{
	static unsigned char want[1 << 20], got[1 << 20];
	int i;

	for (i = 0; i < FILES; i++) {
		bytes_of(i, 0, want, lengths[i]);
		CHECK_IS(pread(sources[i].fd, got, sizeof(got), 0), lengths[i]);
		CHECK(!memcmp(want, got, lengths[i]));
	}
	bytes_of(MEMORY, 0, want, MEMORY_LEN);
	CHECK(!memcmp(want, memory, MEMORY_LEN));
}

#endif

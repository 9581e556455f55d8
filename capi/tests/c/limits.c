/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * limits ENGINE MODE SRC DST: makes and ends slots as an ordinary user who may
 * lock little memory, and copies SRC to DST through the last of them, from
 * where SRC stands. Exits with 77 and the reason where that cannot be.
 */
#include "common.h"

#include <sys/resource.h>

#define LITTLE (64U << 10)
#define USUAL (8U << 20)

static struct getbuf_file src, dst;
static uint32_t engine;

static void lockable(uint32_t bytes)
{
	struct rlimit limit;

	CHECK(!getrlimit(RLIMIT_MEMLOCK, &limit));
	limit.rlim_cur = bytes;
	if (setrlimit(RLIMIT_MEMLOCK, &limit)) {
		printf("RLIMIT_MEMLOCK cannot be set\n");
		exit(SKIPPED);
	}
}

/* A user whom nobody else is: what a user may lock is counted over all processes. */
static void be_an_ordinary_user(void)
{
	uid_t id = 20000 + (uid_t)getpid() % 40000;

	if (!geteuid() && setresuid(id, id, id)) {
		printf("root cannot become somebody without CAP_IPC_LOCK here\n");
		exit(SKIPPED);
	}
}

static struct getbuf *create(struct io_uring *ring, uint32_t count, uint32_t block_size, int want)
{
	struct getbuf_params params;
	struct getbuf *slots = NULL;

	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.engine = engine;
	params.slots = (uint16_t)count;
	params.block_size = block_size;
	errno = 4711;
	CHECK_IS(getbuf_create(ring->ring_fd, &params, &slots), want);
	CHECK_IS(errno, 4711);
	return slots;
}

/* From where both stand, lease by lease and then in chains. */
static void copy(struct io_uring *ring, struct getbuf *slots)
{
	uint32_t most = stats_of(slots).max_fetch;
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	struct getbuf_event event;
	struct getbuf_chain chain;
	struct getbuf_lease lease;
	int i, count;

	CHECK_IS(getbuf_fetch(slots, get_sqe(ring), &src, GETBUF_STREAM, 4096, NULL, &lease), 0);
	while (next_event(ring, slots, &event) != GETBUF_EVENT_FETCHED)
		;
	CHECK_IS(event.res, 4096);
	CHECK_IS(getbuf_write(slots, get_sqe(ring), lease, 0, 4096, &dst, GETBUF_STREAM), 0);
	CHECK_IS(getbuf_release(slots, lease), 0);
	while (next_event(ring, slots, &event) != GETBUF_EVENT_USED)
		;
	CHECK_IS(event.res, 4096);
	memset(&chain, 0, sizeof(chain));
	chain.size = sizeof(chain);
	chain.consumer = GETBUF_WRITE;
	chain.source = &src;
	chain.offset = GETBUF_STREAM;
	chain.sink = &dst;
	chain.sink_offset = GETBUF_STREAM;
	chain.len = most < 1000 ? most : 1000;
	for (;;) {
		count = getbuf_chain_len(slots, &chain);
		CHECK(count > 0 && count <= GETBUF_CHAIN_MAX);
		for (i = 0; i < count; i++)
			sqes[i] = get_sqe(ring);
		CHECK_IS(getbuf_chain(slots, sqes, (uint32_t)count, &chain, &lease), 0);
		while (next_event(ring, slots, &event) != GETBUF_EVENT_CHAINED)
			;
		if (event.res != (int32_t)chain.len)
			break;
	}
	/* What was fetched in vain is behind the position now; it is none. */
	CHECK_IS(event.res, 0);
}

static void in_a_row(void)
{
	struct io_uring ring;
	struct getbuf *slots;
	int round;

	lockable(USUAL);
	be_an_ordinary_user();
	for (round = 0; round < 50; round++) {
		make_ring(&ring);
		slots = create(&ring, 0, 0, 0);
		CHECK_IS(stats_of(slots).slots, 32);
		CHECK_IS(stats_of(slots).max_fetch, 128 << 10);
		CHECK_IS(getbuf_destroy(slots), 0);
		io_uring_queue_exit(&ring);
	}
	/* Nearly all of the limit. What the library looks with, it makes each time. */
	make_ring(&ring);
	for (round = 0; round < 50; round++) {
		slots = create(&ring, 31, 256 << 10, 0);
		if (round == 49)
			copy(&ring, slots);
		CHECK_IS(getbuf_destroy(slots), 0);
	}
	io_uring_queue_exit(&ring);
}

static void at_once(void)
{
	struct io_uring rings[6];
	struct getbuf *slots[6];
	int i;

	lockable(USUAL);
	be_an_ordinary_user();
	for (i = 0; i < 6; i++) {
		make_ring(&rings[i]);
		slots[i] = create(&rings[i], 0, 0, 0);
	}
	copy(&rings[5], slots[5]);
	for (i = 0; i < 6; i++) {
		CHECK_IS(getbuf_destroy(slots[i]), 0);
		io_uring_queue_exit(&rings[i]);
	}
}

static void with_little(void)
{
	struct getbuf_probe *probe = NULL;
	struct io_uring ring;
	struct getbuf *slots;

	lockable(LITTLE);
	be_an_ordinary_user();
	make_ring(&ring);
	create(&ring, 16, 256 << 10, -ENOMEM);
	/* Nothing of it is left with the ring. */
	slots = create(&ring, 0, 0, 0);
	CHECK(stats_of(slots).slots > 0);
	copy(&ring, slots);
	CHECK_IS(getbuf_destroy(slots), 0);
	slots = create(&ring, 3, 0, 0);
	CHECK_IS(stats_of(slots).slots, 3);
	CHECK_IS(getbuf_destroy(slots), 0);
	slots = create(&ring, 0, 8192, 0);
	CHECK_IS(stats_of(slots).max_fetch, 8192);
	CHECK_IS(getbuf_destroy(slots), 0);

	lockable(0);
	CHECK_IS(getbuf_probe(&probe), 0);
	if (getbuf_probe_engine(probe, engine) < 0) {
		CHECK_IS(getbuf_probe_engine(probe, engine), -ENOMEM);
		CHECK_IS(getbuf_probe_engine(probe, GETBUF_ENGINE_ANY), -ENOMEM);
		CHECK(strstr(getbuf_probe_reason(probe, engine), "RLIMIT_MEMLOCK allows 0 bytes"));
		CHECK(strstr(getbuf_probe_text(probe), "not known"));
	}
	getbuf_probe_free(probe);
	create(&ring, 0, 0, -ENOMEM);
	io_uring_queue_exit(&ring);
}

int main(int argc, char **argv)
{
	struct getbuf_probe *probe = NULL;
	const char *mode;

	if (argc != 5)
		return 2;
	engine = engine_named(argv[1]);
	mode = argv[2];
	CHECK_IS(getbuf_probe(&probe), 0);
	need_engine(probe, engine);
	getbuf_probe_free(probe);
	src.fd = open(argv[3], O_RDONLY);
	dst.fd = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC, 0666);
	CHECK(src.fd >= 0 && dst.fd >= 0);
	if (!strcmp(mode, "row"))
		in_a_row();
	else if (!strcmp(mode, "once"))
		at_once();
	else if (!strcmp(mode, "little"))
		with_little();
	else
		return 2;
	return 0;
}

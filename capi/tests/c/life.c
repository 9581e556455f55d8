/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * life ENGINE MODE SRC DST: copies SRC to DST through leases, in one of several
 * ways, and checks on the way what the library says of them. Exits with 77 and
 * the reason where the engine does not work.
 */
#include "common.h"

#include <getbuf_prep.h>

#define SLOTS 8
#define BLOCK (64U << 10)

static struct io_uring ring;
static struct getbuf *slots;
static struct getbuf_file src, dst;
static uint64_t size;
static uint32_t engine;

static void create(uint32_t flags, uint32_t first)
{
	struct getbuf_params params;
	struct getbuf_probe *probe = NULL;

	CHECK_IS(getbuf_probe(&probe), 0);
	need_engine(probe, engine);
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.flags = flags;
	params.engine = engine;
	params.slots = SLOTS;
	params.block_size = BLOCK;
	params.tag = 0x7e;
	params.probe = probe;
	params.table_first = first;
	params.table_count = flags & GETBUF_PARAM_TABLE ? SLOTS + 1 : 0;
	errno = 4711;
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &slots), 0);
	CHECK_IS(errno, 4711);
	CHECK_IS(getbuf_probe_free(probe), 0);
}

/* A copy, lease by lease, up to SLOTS at once. */
static void by_lease(int consumer)
{
	struct getbuf_event event;
	struct getbuf_lease lease;
	uint64_t next = 0, written = 0;
	int ended = 0;

	while (!ended || stats_of(slots).free_slots < SLOTS) {
		while (!ended && stats_of(slots).free_slots) {
			CHECK_IS(getbuf_fetch(slots, get_sqe(&ring), &src, next, BLOCK,
					      (void *)(uintptr_t)next, &lease), 0);
			CHECK_IS(getbuf_installed(slots, lease), 0);
			CHECK_IS(getbuf_len(slots, lease), -EBUSY);
			next += BLOCK;
			if (next >= size + 2 * BLOCK)
				ended = 1;
		}
		switch (next_event(&ring, slots, &event)) {
		case GETBUF_EVENT_FETCHED: {
			uint64_t offset = (uintptr_t)event.data;
			uint32_t half = (uint32_t)event.res / 2, len = (uint32_t)event.res;
			unsigned char here[64], there[64];

			CHECK(event.res >= 0);
			if (!event.res) {
				CHECK(offset >= size);
				CHECK_IS(getbuf_installed(slots, event.lease), -ENOENT);
				break;
			}
			CHECK_IS(getbuf_installed(slots, event.lease), 1);
			CHECK_IS(getbuf_len(slots, event.lease), event.res);
			CHECK_IS(getbuf_engine(slots, event.lease), engine);
			if (engine == GETBUF_ENGINE_COPY) {
				int some = getbuf_copy_out(slots, event.lease, len / 3, here, 64);

				CHECK(some > 0);
				CHECK_IS(pread(src.fd, there, (size_t)some,
					       (off_t)(offset + len / 3)), some);
				CHECK(!memcmp(here, there, (size_t)some));
			}
			dst.token = (uint16_t)(offset / BLOCK);
			if (consumer && half) {
				struct getbuf_range ranges[2] = { { 0, half },
								  { half, len - half } };

				CHECK_IS(getbuf_writev(slots, get_sqe(&ring), event.lease, ranges,
						       2, &dst, offset), 0);
				CHECK_IS(getbuf_writev(slots, get_sqe(&ring), event.lease, ranges,
						       2, &dst, offset), -EBUSY);
				CHECK_IS(getbuf_uses(slots, event.lease), 1);
			} else if (half) {
				CHECK_IS(getbuf_write(slots, get_sqe(&ring), event.lease, 0, half,
						      &dst, offset), 0);
				CHECK_IS(getbuf_write(slots, get_sqe(&ring), event.lease, half,
						      len - half, &dst, offset + half), 0);
				CHECK_IS(getbuf_uses(slots, event.lease), 2);
			} else {
				CHECK_IS(getbuf_write(slots, get_sqe(&ring), event.lease, 0, len,
						      &dst, offset), 0);
			}
			/* What uses it goes on. */
			CHECK_IS(getbuf_release(slots, event.lease), 0);
			CHECK_IS(getbuf_release(slots, event.lease), -ENOENT);
			break;
		}
		case GETBUF_EVENT_USED:
			CHECK(event.res > 0);
			CHECK_IS(event.token, (uint16_t)((uintptr_t)event.data / BLOCK));
			written += (uint64_t)event.res;
			break;
		default:
			break;
		}
	}
	CHECK_IS(written, size);
}

/* A copy by chains; the last one is short, and asked for again. */
static void by_chain(void)
{
	struct getbuf_chain chain;
	struct getbuf_event event;
	struct getbuf_lease lease;
	uint64_t next = 0, written = 0;
	uint32_t again = 0;
	uint64_t where = 0;

	memset(&chain, 0, sizeof(chain));
	chain.size = sizeof(chain);
	chain.source = &src;
	chain.sink = &dst;
	chain.len = BLOCK;
	while (written < size) {
		while ((next < size || again) && stats_of(slots).free_slots) {
			struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
			int count, i;

			chain.offset = chain.sink_offset = again ? where : next;
			chain.len = again ? again : BLOCK;
			chain.data = (void *)(uintptr_t)chain.offset;
			if (!again)
				next += BLOCK;
			again = 0;
			count = getbuf_chain_len(slots, &chain);
			CHECK(count == 2 || count == 3);
			CHECK(engine != GETBUF_ENGINE_COPY || count == 2);
			for (i = 0; i < count; i++)
				sqes[i] = get_sqe(&ring);
			CHECK_IS(getbuf_chain(slots, sqes, (uint32_t)count, &chain, &lease), 0);
			CHECK_IS(getbuf_release(slots, lease), -EINVAL);
			CHECK_IS(getbuf_len(slots, lease), -EINVAL);
		}
		if (next_event(&ring, slots, &event) != GETBUF_EVENT_CHAINED)
			continue;
		CHECK_IS(getbuf_installed(slots, event.lease), -ENOENT);
		if (event.outcome == GETBUF_CHAIN_SHORT_FETCH) {
			CHECK(event.res > 0);
			again = (uint32_t)event.res;
			where = (uintptr_t)event.data;
			continue;
		}
		CHECK_IS(event.outcome, GETBUF_CHAIN_DONE);
		written += (uint64_t)event.res;
	}
	CHECK_IS(written, size);
}

/* A copy in batches: half of it step by step, half by chains. A no-op of the program's is among them. */
static void by_batch(void)
{
	const uint64_t all = size / BLOCK, stepped = all / 2;
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX * SLOTS + 1];
	struct getbuf_lease leases[SLOTS];
	struct getbuf_event events[32];
	struct getbuf_chain chain;
	uint64_t next = 0, written = 0, of_one;
	unsigned waiting, foreign = 0;
	struct getbuf_lease over = { 0 };

	memset(events, 0x5a, sizeof(events));
	events[0].size = sizeof(*events);
	memset(&chain, 0, sizeof(chain));
	chain.size = sizeof(chain);
	chain.source = &src;
	chain.sink = &dst;
	chain.len = BLOCK;
	of_one = (uint64_t)getbuf_chain_len(slots, &chain);
	while (next < all) {
		uint64_t left = next < stepped ? stepped - next : all - next;
		unsigned count = left < SLOTS ? (unsigned)left : SLOTS;
		const int steps = next < stepped;
		unsigned taken = steps ? count : count * (unsigned)of_one, i, fetched = 0;

		CHECK_IS(getbuf_get_sqes(&ring, sqes, 65), -EAGAIN);
		CHECK_IS(getbuf_get_sqes(&ring, sqes, taken + 1), 0);
		if (steps) {
			CHECK_IS(getbuf_fetch_batch(slots, sqes, count, &src, next * BLOCK, BLOCK,
						    (void *)(uintptr_t)next, leases), 0);
		} else {
			chain.offset = chain.sink_offset = next * BLOCK;
			chain.data = (void *)(uintptr_t)next;
			CHECK_IS(getbuf_chain_batch(slots, sqes, taken, &chain, leases), 0);
		}
		io_uring_prep_nop(sqes[taken]);
		sqes[taken]->user_data = 4711;
		waiting = 1 + (steps ? 2 * count : count);
		while (waiting) {
			struct io_uring_cqe *cqes[32];
			unsigned seen;
			int others;

			send_pending(&ring, slots);
			CHECK(io_uring_submit_and_wait(&ring, 1) >= 0);
			seen = io_uring_peek_batch_cqe(&ring, cqes, 32);
			others = getbuf_complete_batch(slots, cqes, seen, events);
			CHECK(others == 0 || others == 1);
			for (i = 0; i < seen; i++) {
				CHECK_IS(events[i].size, sizeof(*events));
				switch (events[i].kind) {
				case GETBUF_EVENT_FOREIGN:
					CHECK_IS(cqes[i]->user_data, 4711);
					foreign++;
					waiting--;
					others--;
					break;
				case GETBUF_EVENT_FETCHED: {
					unsigned at = 0;

					while (leases[at].id != events[i].lease.id)
						CHECK(++at < count);
					CHECK_IS(events[i].res, BLOCK);
					fetched++;
					waiting--;
					break;
				}
				case GETBUF_EVENT_CHAINED:
					CHECK_IS(events[i].outcome, GETBUF_CHAIN_DONE);
					/* fall through */
				case GETBUF_EVENT_USED:
					CHECK_IS(events[i].res, BLOCK);
					CHECK_IS((uintptr_t)events[i].data, next);
					written += BLOCK;
					waiting--;
					break;
				default:
					break;
				}
			}
			CHECK_IS(others, 0);
			io_uring_cq_advance(&ring, seen);
			if (fetched == count) {
				/* the first beside a lease that is over, which stops nothing */
				struct getbuf_lease pair[2] = { over, leases[0] };

				fetched = 0;
				CHECK_IS(getbuf_get_sqes(&ring, sqes, 2), 0);
				CHECK_IS(getbuf_write_batch(slots, sqes, 2, pair, 0, BLOCK, &dst,
							    (next - 1) * BLOCK),
					 over.id ? -ENOENT : -EINVAL);
				if (count == 1)
					continue;
				CHECK_IS(getbuf_get_sqes(&ring, sqes, count - 1), 0);
				CHECK_IS(getbuf_write_batch(slots, sqes, count - 1, leases + 1, 0,
							    BLOCK, &dst, (next + 1) * BLOCK), 0);
			}
		}
		over = leases[0];
		if (steps) {
			CHECK_IS(getbuf_release_batch(slots, leases, count), 0);
			CHECK_IS(getbuf_release_batch(slots, leases, count), -ENOENT);
		}
		until_idle(&ring, slots);
		CHECK_IS(stats_of(slots).free_slots, SLOTS);
		next += count;
	}
	CHECK(foreign > 1);
	CHECK_IS(written, all * BLOCK);
	/* The rest, which is no whole block. */
	if (size % BLOCK) {
		struct getbuf_event event;

		chain.len = (uint32_t)(size % BLOCK);
		chain.offset = chain.sink_offset = all * BLOCK;
		CHECK_IS(getbuf_get_sqes(&ring, sqes, (unsigned)of_one), 0);
		CHECK_IS(getbuf_chain_batch(slots, sqes, (uint32_t)of_one, &chain, leases), 0);
		while (next_event(&ring, slots, &event) != GETBUF_EVENT_CHAINED)
			;
		CHECK_IS(event.outcome, GETBUF_CHAIN_DONE);
	}
}

/* The ring has a table and registered files of its own. */
static void in_a_table(void)
{
	static char memory[4096];
	struct iovec vectors[SLOTS + 3];
	int files[2] = { src.fd, dst.fd };
	struct getbuf *more = NULL;
	struct getbuf_params params;

	memset(vectors, 0, sizeof(vectors));
	vectors[0].iov_base = memory;
	vectors[0].iov_len = sizeof(memory);
	vectors[SLOTS + 2] = vectors[0];
	CHECK_IS(io_uring_register_buffers(&ring, vectors, SLOTS + 3), 0);
	CHECK_IS(io_uring_register_files(&ring, files, 2), 0);
	/* The table is there already. */
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &more), -EBUSY);
	params.flags = GETBUF_PARAM_TABLE;
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &more), -ENOSPC);
	create(GETBUF_PARAM_TABLE, 1);
	by_lease(0);
	src.fd = 0;
	src.flags = GETBUF_FILE_FIXED;
	dst.fd = 1;
	dst.flags = GETBUF_FILE_FIXED;
	if (engine != GETBUF_ENGINE_MODULE)
		by_chain();
	until_idle(&ring, slots);
	CHECK_IS(getbuf_destroy(slots), 0);
	/* What is the program's is still there. */
	{
		struct io_uring_cqe *cqe;
		struct io_uring_sqe *sqe = get_sqe(&ring);

		io_uring_prep_read_fixed(sqe, files[0], memory, 1, 0, SLOTS + 2);
		CHECK_IS(io_uring_submit_and_wait(&ring, 1), 1);
		CHECK_IS(io_uring_peek_cqe(&ring, &cqe), 0);
		CHECK_IS(cqe->res, 1);
		io_uring_cqe_seen(&ring, cqe);
		sqe = get_sqe(&ring);
		io_uring_prep_read_fixed(sqe, files[0], memory, 1, 0, 2);
		CHECK_IS(io_uring_submit_and_wait(&ring, 1), 1);
		CHECK_IS(io_uring_peek_cqe(&ring, &cqe), 0);
		CHECK_IS(cqe->res, -EFAULT);
		io_uring_cqe_seen(&ring, cqe);
	}
	slots = NULL;
}

/* Slots that end before their leases and their requests do. */
static void too_early(void)
{
	struct getbuf_event event;
	struct getbuf_lease leases[3];
	int pipes[2], i;

	create(0, 0);
	by_lease(1);
	until_idle(&ring, slots);
	for (i = 0; i < 3; i++)
		CHECK_IS(getbuf_fetch(slots, get_sqe(&ring), &src, 0, BLOCK, NULL, &leases[i]), 0);
	for (i = 0; i < 3; i++)
		CHECK_IS(next_event(&ring, slots, &event), GETBUF_EVENT_FETCHED);
	/* Three leases, no request. */
	CHECK_IS(getbuf_destroy(slots), 0);
	CHECK_IS(getbuf_destroy(slots), -EINVAL);

	create(0, 0);
	CHECK(pipe(pipes) == 0);
	{
		struct getbuf_file stream;

		memset(&stream, 0, sizeof(stream));
		stream.fd = pipes[0];
		stream.flags = GETBUF_FILE_COPIED;
		CHECK_IS(getbuf_fetch(slots, get_sqe(&ring), &stream, GETBUF_STREAM, BLOCK, NULL,
				      &leases[0]), 0);
	}
	CHECK_IS(io_uring_submit(&ring), 1);
	CHECK_IS(stats_of(slots).in_flight, 1);
	CHECK_IS(getbuf_destroy(slots), 1);
	slots = NULL;
	/* The memory is still there: this arrives in it. */
	CHECK_IS(write(pipes[1], "late", 4), 4);
	{
		struct io_uring_cqe *cqe;

		CHECK_IS(io_uring_wait_cqe(&ring, &cqe), 0);
		CHECK_IS(cqe->res, 4);
		io_uring_cqe_seen(&ring, cqe);
	}
	close(pipes[0]);
	close(pipes[1]);
}

/* A pipe to a file, where it stands; and a pipe may not lend. */
static void by_stream(void)
{
	struct getbuf_event event;
	struct getbuf_lease lease;
	struct getbuf_file from, to = dst;
	uint64_t written = 0;
	int pipes[2];
	pid_t child;

	create(0, 0);
	CHECK(pipe(pipes) == 0);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		static char some[10007];
		ssize_t got;

		close(pipes[0]);
		while ((got = read(src.fd, some, sizeof(some))) > 0)
			if (write(pipes[1], some, (size_t)got) != got)
				_exit(1);
		_exit(got < 0);
	}
	close(pipes[1]);
	memset(&from, 0, sizeof(from));
	from.fd = pipes[0];
	for (;;) {
		CHECK_IS(getbuf_fetch(slots, get_sqe(&ring), &from, GETBUF_STREAM, BLOCK, NULL,
				      &lease), 0);
		while (next_event(&ring, slots, &event) != GETBUF_EVENT_FETCHED)
			;
		CHECK(event.res >= 0);
		if (!event.res)
			break;
		CHECK(getbuf_engine(slots, lease) > 0);
		CHECK_IS(getbuf_write(slots, get_sqe(&ring), lease, 0, (uint32_t)event.res, &to,
				      GETBUF_STREAM), 0);
		CHECK_IS(getbuf_release(slots, lease), 0);
		while (next_event(&ring, slots, &event) != GETBUF_EVENT_USED)
			;
		CHECK(event.res > 0);
		written += (uint64_t)event.res;
	}
	CHECK_IS(written, size);
	close(pipes[0]);
}

int main(int argc, char **argv)
{
	struct stat st;
	const char *mode;

	if (argc != 5)
		return 2;
	engine = engine_named(argv[1]);
	mode = argv[2];
	src.fd = open(argv[3], O_RDONLY);
	CHECK(src.fd >= 0 && !fstat(src.fd, &st));
	size = (uint64_t)st.st_size;
	dst.fd = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC, 0666);
	CHECK(dst.fd >= 0);
	make_ring(&ring);
	if (!strcmp(mode, "write") || !strcmp(mode, "writev")) {
		create(0, 0);
		by_lease(!strcmp(mode, "writev"));
	} else if (!strcmp(mode, "chain")) {
		create(0, 0);
		by_chain();
	} else if (!strcmp(mode, "table")) {
		struct getbuf_probe *probe = NULL;

		CHECK_IS(getbuf_probe(&probe), 0);
		need_engine(probe, engine);
		getbuf_probe_free(probe);
		in_a_table();
	} else if (!strcmp(mode, "early")) {
		too_early();
	} else if (!strcmp(mode, "batch")) {
		create(0, 0);
		by_batch();
	} else if (!strcmp(mode, "stream")) {
		by_stream();
	} else {
		return 2;
	}
	if (slots) {
		until_idle(&ring, slots);
		CHECK_IS(stats_of(slots).stale, 0);
		CHECK_IS(getbuf_destroy(slots), 0);
	}
	io_uring_queue_exit(&ring);
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * random ENGINE OPERATIONS SEED: random programs of every function of the
 * library, in any order, with wrong arguments among the right ones, against a
 * model that knows what each call must return and what each byte must be. When
 * something is wrong it says the seed of its program, which makes the same
 * choices again. Exits with 77 and the reason where the engine does not work.
 */
#include "world.h"

#include <getbuf_uapi.h>

#include <signal.h>

/* Operations of one program: then its ring is closed, and everything is looked at. */
#define PROGRAM 2000
#define SLOTS 8
#define REGIONS 3
/* In the user_data of requests that are no business of the library's. */
#define MINE (0x11ULL << 56)

#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

enum state { FETCHING, INSTALLED, OVER };

/* A lease, or a chain. */
struct model {
	struct getbuf_lease lease;
	enum state state;
	int chain, source, copied;
	uint64_t offset;
	uint32_t asked, len;
	/* Requests that use it. */
	int uses, vectored;
	/* Its fetch has had no event yet. */
	int in_flight;
	int may_be_cancelled;
	uint64_t user_data;
	/* Of the program's memory: calls of its release. */
	int provided, released;
};

/* A request that uses a lease; its number is its token. */
struct use {
	struct model *model;
	int sink, zero_copy, vectored;
	uint64_t place;
	struct getbuf_range ranges[GETBUF_RANGES_MAX];
	int count;
	uint32_t len;
	/* 1: without a result, 2: the network has the bytes, 0: done. */
	int in_flight;
	/* IOSQE_ASYNC: the kernel looks its buffer up when a worker begins. */
	int async;
	int may_be_cancelled;
	uint64_t user_data;
};

/* What was done, for the last line. Operations are those that had something to do. */
static struct {
	unsigned long long operations, fetches, uses, chains, provided, wrong, cancelled, bytes;
} tally;

static uint64_t state, seed;
static uint32_t engine;
static struct getbuf_probe *probe;
static struct io_uring ring;
static struct getbuf *slots;
/* Of another ring. */
static struct getbuf_lease foreign_lease;
static struct model models[PROGRAM];
static struct use uses[PROGRAM];
/* Chains have no token: what they do to their sink. */
static struct use chains[PROGRAM];
static int model_count, use_count, mine, held, region_count, whole_region, device;
static uint8_t tag;

static uint32_t below(uint32_t limit)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint32_t)(((state * 0x2545f4914f6cdd1dULL >> 32) * limit) >> 32);
}

static int one_in(uint32_t odds)
{
	return !below(odds);
}

static void say_seed(void)
{
	if (seed)
		fprintf(stderr, "the program's seed: %#llx\n", (unsigned long long)seed);
}

/* A program that hangs. What it has open does not matter any more. */
static void late(int signal)
{
	struct getbuf_stats stats = stats_of(slots);
	int i;

	(void)signal;
	fprintf(stderr, "a program hangs: %llu in flight, %u of %u slots free, %d held, %d of its own\n",
		(unsigned long long)stats.in_flight, stats.free_slots, stats.slots, held, mine);
	for (i = 0; i < model_count; i++)
		if (models[i].in_flight || models[i].uses)
			fprintf(stderr, "lease %d of source %d: state %d, chain %d, fetch %d, %d uses\n",
				i, models[i].source, models[i].state, models[i].chain,
				models[i].in_flight, models[i].uses);
	for (i = 0; i < use_count; i++)
		if (uses[i].in_flight)
			fprintf(stderr, "request %d: sink %d, of lease %d\n", i, uses[i].sink,
				(int)(uses[i].model - models));
	say_seed();
	_exit(1);
}

/* ---- The program's memory ---- */

static struct model *asked;
static int answer;

static void give_back(struct iou_buf_desc *desc)
{
	struct model *model = desc->priv;

	CHECK(desc->nr_bvecs > 0);
	CHECK(model >= models && model < models + PROGRAM);
	model->released++;
	CHECK_IS(model->released, 1);
}

static int64_t get_buf(void *context, struct iou_get_buf_info *info)
{
	struct iou_buf_desc *desc = info->desc;
	uint32_t pieces, i, at = 0;

	CHECK(context == &asked);
	CHECK_IS(desc->nr_bvecs, 0);
	CHECK(desc->max_bvecs > 1);
	if (answer < 0)
		return answer;
	pieces = answer > 1 ? 1 + (answer & 1) : 1;
	for (i = 0; i < pieces; i++) {
		uint32_t end = (uint32_t)answer * (i + 1) / pieces;

		desc->bvec[i].bv_page = memory;
		desc->bvec[i].bv_offset = (uint32_t)info->off + at;
		desc->bvec[i].bv_len = end - at;
		at = end;
	}
	desc->nr_bvecs = answer ? pieces : 0;
	desc->priv = asked;
	desc->release = give_back;
	return answer;
}

/* The program's memory is given back when a lease is over and nothing uses it, not sooner nor later. */
static void check_released(struct model *model)
{
	if (model->provided)
		CHECK_IS(model->released, model->state == OVER && !model->uses);
}

/* ---- The ring ---- */

static void submit(void)
{
	int ret;

	do
		ret = io_uring_submit(&ring);
	while (ret == -EINTR || ret == -EAGAIN || ret == -EBUSY);
	CHECK(ret >= 0);
}

/* Room for SQEs of one submission. */
static void need(unsigned count)
{
	while (io_uring_sq_space_left(&ring) < count) {
		submit();
		if (ring.flags & IORING_SETUP_SQPOLL)
			io_uring_sqring_wait(&ring);
	}
}

static struct io_uring_sqe *sqe_of(void)
{
	need(1);
	return get_sqe(&ring);
}

/* Sends what the slots need sent. */
static void pending(void)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	int count, i;

	while ((count = getbuf_pending(slots)) > 0) {
		CHECK(count <= GETBUF_CHAIN_MAX);
		need((unsigned)count);
		for (i = 0; i < count; i++)
			sqes[i] = get_sqe(&ring);
		CHECK_IS(getbuf_next(slots, sqes, (uint32_t)count), 0);
	}
	CHECK_IS(count, 0);
}

static struct getbuf_file file_of(int fd, int number)
{
	struct getbuf_file file;

	memset(&file, 0, sizeof(file));
	file.fd = fd;
	if (one_in(2)) {
		file.fd = number;
		file.flags = GETBUF_FILE_FIXED;
	}
	return file;
}

static struct getbuf_file source_file(int number, int copied)
{
	struct source *source = &sources[number];
	struct getbuf_file file = file_of(source->fd, number);

	if (copied) {
		file.flags |= GETBUF_FILE_COPIED;
	} else if (source->bound >= 0 && one_in(2)) {
		file.flags |= GETBUF_FILE_BOUND;
		file.bound = source->bound;
	}
	return file;
}

static struct getbuf_file sink_file(int number)
{
	/* Behind the sources that are files. */
	return file_of(sinks[number].fd, PIPE + 1 + number);
}

/* ---- What events must say ---- */

static int was_cancelled(int res, int may_be)
{
	if (res != -ECANCELED && res != -EINTR)
		return 0;
	CHECK(may_be);
	tally.cancelled++;
	return 1;
}

/* Of a source, what a fetch finds. */
static uint32_t there(const struct model *model)
{
	uint64_t end = model->source == PIPE ? pipe_written : sources[model->source].len;
	uint64_t left = model->offset < end ? end - model->offset : 0;

	return left < model->asked ? (uint32_t)left : model->asked;
}

static void check_fetched(struct model *model, int res)
{
	uint32_t all = there(model);

	CHECK(model->in_flight && !model->chain);
	model->in_flight = 0;
	if (was_cancelled(res, model->may_be_cancelled)) {
		res = 0;
	} else {
		CHECK(res >= 0 && (uint32_t)res <= all);
		/* What is lent may be less than what is there, but not nothing. */
		CHECK(!res == !all);
		if (engine == GETBUF_ENGINE_COPY || model->copied)
			CHECK_IS(res, all);
	}
	if (model->source == PIPE)
		pipe_read += (uint64_t)res;
	model->len = (uint32_t)res;
	if (model->state == FETCHING) {
		model->state = res ? INSTALLED : OVER;
		held -= !res;
	}
	if (model->state == INSTALLED) {
		int by = getbuf_engine(slots, model->lease);

		CHECK(by == (int)engine || by == GETBUF_ENGINE_COPY);
		CHECK(!model->copied || by == GETBUF_ENGINE_COPY);
	}
}

/* The first `len` bytes of what a request was to write are where they belong. */
static void check_bytes(const struct use *use, uint32_t len)
{
	static unsigned char want[GETBUF_RANGES_MAX * BLOCK], got[GETBUF_RANGES_MAX * BLOCK];
	uint32_t have = 0;
	int i;

	for (i = 0; i < use->count && have < len; i++) {
		uint32_t some = use->ranges[i].len < len - have ? use->ranges[i].len : len - have;

		bytes_of(use->model->source, use->model->offset + use->ranges[i].start,
			 want + have, some);
		have += some;
	}
	CHECK_IS(have, len);
	if (use->sink == SINK_NULL)
		return;
	arrived(use->sink, use->place, got, len);
	for (i = 0; (uint32_t)i < len; i++)
		if (want[i] != got[i]) {
			fprintf(stderr, "sink %d, source %d from %llu, byte %d of %u: %02x, not %02x\n",
				use->sink, use->model->source,
				(unsigned long long)use->model->offset, i, len, got[i], want[i]);
			exit(1);
		}
	tally.bytes += len;
}

/* What a consumer came to that was to write `len` bytes. */
static void check_result(struct use *use, int res, uint32_t len, int may_be_short)
{
	if (was_cancelled(res, use->may_be_cancelled)) {
		drain_stream(use->sink);
	} else if (res == -EFAULT && use->async && use->model->state == OVER) {
		/* The slot was emptied before that. */
		tally.cancelled++;
	} else if (fails(use->sink, use->zero_copy)) {
		CHECK(fails_with(use->sink, res, use->zero_copy));
	} else {
		if (res <= 0 || (uint32_t)res > len) {
			fprintf(stderr, "sink %d, source %d from %llu, %u bytes: %d\n", use->sink,
				use->model->source, (unsigned long long)use->model->offset, len,
				res);
			exit(1);
		}
		if (!is_stream(use->sink) && !may_be_short)
			CHECK_IS(res, len);
		check_bytes(use, (uint32_t)res);
	}
}

static void check_used(struct use *use, const struct getbuf_event *event)
{
	struct model *model = use->model;

	CHECK_IS(use->in_flight, 1);
	CHECK(!(event->flags & GETBUF_EVENT_MORE) || use->zero_copy);
	sinks[use->sink].busy--;
	check_result(use, event->res, use->len, model->provided);
	use->in_flight = event->flags & GETBUF_EVENT_MORE ? 2 : 0;
	model->uses -= !use->in_flight;
	model->vectored -= use->vectored;
	check_released(model);
}

static void check_chained(struct model *model, const struct getbuf_event *event)
{
	struct use *use = &chains[model - models];
	uint32_t all = there(model), got = (uint32_t)event->res;

	CHECK(model->chain && model->in_flight);
	model->in_flight = 0;
	model->state = OVER;
	held--;
	sinks[use->sink].busy--;
	use->may_be_cancelled |= model->may_be_cancelled;
	switch (event->outcome) {
	case GETBUF_CHAIN_DONE:
		CHECK(got == model->asked && got == all);
		check_result(use, event->res, got, 0);
		break;
	case GETBUF_CHAIN_SHORT_USE:
		CHECK(is_stream(use->sink) && event->res >= 0 && got < all);
		check_bytes(use, got);
		break;
	case GETBUF_CHAIN_SHORT_FETCH:
		CHECK(event->res >= 0 && got < model->asked && got <= all && !got == !all);
		CHECK(got == all || engine != GETBUF_ENGINE_COPY);
		break;
	case GETBUF_CHAIN_FETCH_FAILED:
		CHECK(was_cancelled(event->res, use->may_be_cancelled));
		break;
	case GETBUF_CHAIN_USE_FAILED:
		CHECK(event->res < 0);
		check_result(use, event->res, all, 0);
		break;
	default:
		CHECK(!"a known outcome");
	}
}

static void complete(const struct io_uring_cqe *cqe)
{
	struct getbuf_event event;
	struct model *model;
	struct use *use;
	int kind;

	memset(&event, 0xa5, sizeof(event));
	event.size = sizeof(event);
	errno = 4711;
	kind = getbuf_complete(slots, cqe->user_data, cqe->res, cqe->flags, &event);
	CHECK_IS(errno, 4711);
	CHECK_IS(getbuf_claims(slots, cqe->user_data), kind >= 0);
	if (kind == -ENOENT) {
		CHECK_IS(cqe->user_data >> 56, MINE >> 56);
		mine--;
		return;
	}
	CHECK_IS(cqe->user_data >> 56, tag);
	CHECK_IS(event.kind, kind);
	if (kind == GETBUF_EVENT_NONE)
		return;
	CHECK(kind != GETBUF_EVENT_STALE);
	model = event.data;
	CHECK(model >= models && model < models + model_count);
	CHECK(event.lease.id == model->lease.id);
	use = &uses[event.token];
	switch (kind) {
	case GETBUF_EVENT_FETCHED:
		check_fetched(model, event.res);
		break;
	case GETBUF_EVENT_USED:
		CHECK(use->model == model);
		check_used(use, &event);
		break;
	case GETBUF_EVENT_RETURNED:
		CHECK(use->model == model);
		CHECK_IS(use->in_flight, 2);
		use->in_flight = 0;
		model->uses--;
		check_released(model);
		break;
	case GETBUF_EVENT_RELEASED:
		/* Requests may use it still. */
		CHECK_IS(model->state, OVER);
		CHECK(!model->in_flight);
		break;
	case GETBUF_EVENT_CHAINED:
		check_chained(model, &event);
		break;
	default:
		CHECK(!"an event that was expected");
	}
}

static void take(unsigned wait)
{
	struct __kernel_timespec time = { .tv_nsec = 300000 };
	struct io_uring_cqe *cqe;
	int ret;

	tally.operations++;
	pending();
	submit();
	/* Not for long: what is awaited may be held up by what has not been sent. */
	if (wait || one_in(4))
		(void)io_uring_wait_cqes(&ring, &cqe, wait ? wait : 1, &time, NULL);
	while (!(ret = io_uring_peek_cqe(&ring, &cqe))) {
		struct io_uring_cqe copy = *cqe;

		io_uring_cqe_seen(&ring, cqe);
		/* Of a limit on a wait. */
		if (copy.user_data != LIBURING_UDATA_TIMEOUT)
			complete(&copy);
	}
	CHECK(ret == -EAGAIN || ret == -EINTR);
}

/* ---- Operations ---- */

static struct model *some_model(void)
{
	return model_count ? &models[below((uint32_t)model_count)] : NULL;
}

/* A lease in this state, if chance finds one. */
static struct model *one_that_is(enum state wanted)
{
	int tries, recent;

	for (tries = 0; tries < 8; tries++) {
		struct model *model;

		recent = model_count < 24 ? model_count : 24;
		if (!recent)
			return NULL;
		model = &models[model_count - 1 - (int)below((uint32_t)recent)];
		if (model->state == wanted && !model->chain)
			return model;
	}
	return NULL;
}

static struct model *new_model(int source)
{
	struct model *model = &models[model_count];
	uint64_t len = sources[source].len;

	memset(model, 0, sizeof(*model));
	model->source = source;
	model->offset = one_in(8) ? len : below((uint32_t)len + 1);
	if (one_in(2))
		model->offset &= ~4095ULL;
	model->asked = one_in(2) ? BLOCK : 1 + below(BLOCK);
	return model;
}

/* An SQE of a call that fails must be harmless; one that succeeds is ours. */
static void fetch(void)
{
	struct model *model = new_model((int)below(FILES));
	struct io_uring_sqe *sqe = sqe_of();
	struct getbuf_file file;
	int full = !stats_of(slots).free_slots, ret;

	model->copied = one_in(8);
	file = source_file(model->source, model->copied);
	ret = getbuf_fetch(slots, sqe, &file, model->offset, model->asked, model, &model->lease);
	CHECK_IS(ret, full ? -ENOBUFS : 0);
	if (ret)
		return;
	if (one_in(8))
		sqe->flags |= IOSQE_ASYNC;
	model->user_data = sqe->user_data;
	model->in_flight = 1;
	model_count++;
	held++;
	tally.fetches++;
	tally.operations++;
}

/* From the pipe, one at a time; with nothing in it, until a limit is over. */
static void fetch_stream(void)
{
	static struct __kernel_timespec time = { .tv_nsec = 1000000 };
	static unsigned char some[BLOCK];
	struct model *model = new_model(PIPE);
	struct io_uring_sqe *sqe;
	struct getbuf_file file;
	int i, ret;

	for (i = 0; i < model_count; i++)
		if (models[i].source == PIPE && models[i].in_flight)
			return;
	if (!stats_of(slots).free_slots)
		return;
	if (pipe_written == pipe_read && !one_in(4)) {
		uint32_t len = 1 + below(BLOCK);

		bytes_of(PIPE, pipe_written, some, len);
		CHECK_IS(write(pipe_in, some, len), len);
		pipe_written += len;
	}
	model->offset = pipe_read;
	/* One that the pipe refuses is sent again, without the limit. */
	model->copied = pipe_written == pipe_read || one_in(2);
	need(2);
	sqe = get_sqe(&ring);
	file = source_file(PIPE, model->copied);
	ret = getbuf_fetch(slots, sqe, &file, GETBUF_STREAM, model->asked, model, &model->lease);
	CHECK_IS(ret, 0);
	model->user_data = sqe->user_data;
	model->in_flight = model->may_be_cancelled = 1;
	sqe->flags |= IOSQE_IO_LINK;
	sqe = get_sqe(&ring);
	io_uring_prep_link_timeout(sqe, &time, 0);
	sqe->user_data = MINE;
	mine++;
	model_count++;
	held++;
	tally.fetches++;
	tally.operations++;
}

static void provide(void)
{
	struct getbuf_provider provider;
	struct model *model = new_model(MEMORY);
	uint32_t flags = one_in(2) ? GETBUF_PROVIDE_NOWAIT : 0;
	uint32_t left = there(model);
	int full = !stats_of(slots).free_slots, ret;

	memset(&provider, 0, sizeof(provider));
	provider.size = sizeof(provider);
	provider.get_buf = get_buf;
	provider.context = &asked;
	asked = model;
	answer = one_in(16) ? -EIO : one_in(16) ? -EAGAIN : (int)left;
	if (answer > 1 && one_in(4))
		answer = 1 + (int)below((uint32_t)answer);
	ret = getbuf_provide(slots, &provider, model->offset, model->asked, flags, model,
			     &model->lease);
	if (full) {
		CHECK_IS(ret, -ENOBUFS);
		return;
	}
	if (ret == -ENOSPC) {
		CHECK(!whole_region);
		/* What was answered has been given back. */
		CHECK_IS(model->released, answer > 0);
		return;
	}
	CHECK_IS(ret, answer);
	if (ret <= 0) {
		CHECK_IS(model->released, 0);
		return;
	}
	model->provided = 1;
	model->state = INSTALLED;
	model->len = (uint32_t)ret;
	model_count++;
	held++;
	tally.provided++;
	tally.operations++;
	CHECK_IS(getbuf_engine(slots, model->lease), GETBUF_ENGINE_PROVIDER);
	check_released(model);
}

static void add_region(void)
{
	size_t from = one_in(2) ? 0 : below(MEMORY_LEN / 4096) * 4096ULL;
	int ret = getbuf_add_region(slots, memory + from, MEMORY_LEN - from);

	if (ret == -ENOSPC)
		return;
	CHECK_IS(ret, 0);
	region_count++;
	CHECK(region_count <= REGIONS);
	whole_region |= !from;
}

/* A sink that can take something now. */
static int some_sink(void)
{
	int sink = (int)below(SINKS);

	return is_stream(sink) && sinks[sink].busy ? SINK_FILE : sink;
}

static void write_some(void)
{
	struct model *model = one_that_is(INSTALLED);
	struct use *use = &uses[use_count];
	int ret, how = (int)below(3), before, flags;
	struct io_uring_sqe *sqe;
	struct getbuf_file file;
	uint32_t start;

	if (!model)
		return;
	memset(use, 0, sizeof(*use));
	use->model = model;
	use->sink = some_sink();
	start = below(model->len);
	use->len = 1 + below(model->len - start);
	use->ranges[0].start = start;
	use->ranges[0].len = use->len;
	use->count = 1;
	file = sink_file(use->sink);
	file.token = (uint16_t)use_count;
	use->place = place_in(use->sink, use->len);
	flags = one_in(2) ? MSG_WAITALL : one_in(2) ? MSG_MORE | MSG_WAITALL : 0;
	before = getbuf_uses(slots, model->lease);
	CHECK_IS(before, model->uses);
	sqe = sqe_of();
	if (!is_socket(use->sink))
		how = 0;
	use->zero_copy = how == 2;
	if (how == 0)
		ret = getbuf_write(slots, sqe, model->lease, start, use->len, &file, use->place);
	else if (how == 1)
		ret = getbuf_send(slots, sqe, model->lease, start, use->len, &file, flags);
	else
		ret = getbuf_send_zc(slots, sqe, model->lease, start, use->len, &file, flags);
	CHECK_IS(ret, 0);
	CHECK_IS(getbuf_uses(slots, model->lease), before + 1);
	use->async = one_in(8);
	if (use->async)
		sqe->flags |= IOSQE_ASYNC;
	use->user_data = sqe->user_data;
	use->in_flight = 1;
	model->uses++;
	sinks[use->sink].busy++;
	use_count++;
	tally.uses++;
	tally.operations++;
}

static void write_ranges(void)
{
	struct model *model = one_that_is(INSTALLED);
	struct use *use = &uses[use_count];
	struct io_uring_sqe *sqe;
	struct getbuf_file file;
	int ret, i;

	if (!model)
		return;
	memset(use, 0, sizeof(*use));
	use->model = model;
	use->vectored = 1;
	use->sink = some_sink();
	use->count = 1 + (int)below(GETBUF_RANGES_MAX);
	for (i = 0; i < use->count; i++) {
		uint32_t start = below(model->len);

		use->ranges[i].start = start;
		use->ranges[i].len = 1 + below(model->len - start);
		use->len += use->ranges[i].len;
	}
	file = sink_file(use->sink);
	file.token = (uint16_t)use_count;
	use->place = place_in(use->sink, use->len);
	sqe = sqe_of();
	ret = getbuf_writev(slots, sqe, model->lease, use->ranges, (uint32_t)use->count, &file,
			    use->place);
	if (model->vectored) {
		CHECK_IS(ret, -EBUSY);
		return;
	}
	/* Ranges of memory that is not in one piece. */
	if (ret == -EINVAL && model->provided)
		return;
	CHECK_IS(ret, 0);
	use->user_data = sqe->user_data;
	use->in_flight = 1;
	model->vectored = 1;
	model->uses++;
	sinks[use->sink].busy++;
	use_count++;
	tally.uses++;
	tally.operations++;
}

static void release(enum state wanted)
{
	struct model *model = one_that_is(wanted);

	if (!model)
		return;
	CHECK_IS(getbuf_release(slots, model->lease), 0);
	model->state = OVER;
	held--;
	CHECK_IS(getbuf_release(slots, model->lease), -ENOENT);
	check_released(model);
	tally.operations++;
}

static void chain(void)
{
	struct io_uring_sqe *sqes[GETBUF_CHAIN_MAX];
	struct model *model = new_model((int)below(FILES));
	struct use *use = &chains[model_count];
	struct getbuf_chain what;
	struct getbuf_file from, to;
	int count, i, ret, full;

	memset(use, 0, sizeof(*use));
	memset(&what, 0, sizeof(what));
	use->model = model;
	use->sink = some_sink();
	use->count = 1;
	use->ranges[0].len = model->asked;
	use->place = place_in(use->sink, model->asked);
	what.size = sizeof(what);
	what.consumer = is_socket(use->sink) ? below(3) : GETBUF_WRITE;
	use->zero_copy = what.consumer == GETBUF_SEND_ZC;
	if (what.consumer != GETBUF_WRITE && one_in(2))
		what.send_flags = MSG_WAITALL;
	from = source_file(model->source, one_in(8));
	to = sink_file(use->sink);
	what.source = &from;
	what.offset = model->offset;
	what.len = model->asked;
	what.sink = &to;
	what.sink_offset = what.consumer == GETBUF_WRITE ? use->place : 0;
	what.data = model;
	count = getbuf_chain_len(slots, &what);
	CHECK(count == 2 || count == GETBUF_CHAIN_MAX);
	need((unsigned)count);
	for (i = 0; i < count; i++)
		sqes[i] = get_sqe(&ring);
	full = !stats_of(slots).free_slots;
	ret = getbuf_chain(slots, sqes, (uint32_t)count, &what, &model->lease);
	CHECK_IS(ret, full ? -ENOBUFS : 0);
	if (ret)
		return;
	model->user_data = sqes[below((uint32_t)count)]->user_data;
	model->chain = model->in_flight = 1;
	sinks[use->sink].busy++;
	model_count++;
	held++;
	tally.chains++;
	tally.operations++;
}

/* Any request that is in flight, or was. */
static void cancel(void)
{
	struct io_uring_sqe *sqe;
	uint64_t user_data;
	int i;

	if (use_count && one_in(2))
		user_data = uses[use_count - 1 - (int)below((uint32_t)use_count) % 8].user_data;
	else if (model_count)
		user_data = models[model_count - 1 - (int)below((uint32_t)model_count) % 8].user_data;
	else
		return;
	/* A name that is free is given again: whoever has it now is meant. */
	for (i = 0; i < use_count; i++)
		uses[i].may_be_cancelled |= uses[i].in_flight && uses[i].user_data == user_data;
	for (i = 0; i < model_count; i++)
		models[i].may_be_cancelled |= models[i].in_flight && models[i].user_data == user_data;
	sqe = sqe_of();
	io_uring_prep_cancel64(sqe, user_data, 0);
	sqe->user_data = MINE | 1;
	mine++;
	tally.operations++;
}

/* One that is the program's own. */
static void no_request(struct io_uring_sqe *sqe)
{
	io_uring_prep_nop(sqe);
	sqe->user_data = MINE | 2;
	mine++;
}

static void nop(void)
{
	no_request(sqe_of());
	tally.operations++;
}

/* Looks at any lease, whatever became of it. */
static void look(void)
{
	struct model *model = some_model();
	int error;

	if (!model)
		return;
	error = model->chain ? -EINVAL : model->state == FETCHING ? -EBUSY : 0;
	/* A chain that is over is over. */
	if (model->state == OVER)
		error = -ENOENT;
	CHECK_IS(getbuf_installed(slots, model->lease), error == -EBUSY ? 0 : error ? error : 1);
	CHECK_IS(getbuf_len(slots, model->lease), error ? error : (int)model->len);
	CHECK_IS(getbuf_uses(slots, model->lease), error ? error : model->uses);
	if (error) {
		CHECK_IS(getbuf_engine(slots, model->lease), error);
		CHECK_IS(getbuf_copy_out(slots, model->lease, 0, &error, 1), error);
	} else {
		static unsigned char got[BLOCK], want[BLOCK];
		uint32_t start = below(model->len + 2), len = below(BLOCK);
		int by = getbuf_engine(slots, model->lease);
		int ret = getbuf_copy_out(slots, model->lease, start, got, len);

		if (start >= model->len || !len) {
			CHECK_IS(ret, -ERANGE);
		} else if (by == GETBUF_ENGINE_OPCODE || by == GETBUF_ENGINE_MODULE) {
			CHECK_IS(ret, -EOPNOTSUPP);
		} else {
			CHECK_IS(ret, len < model->len - start ? len : model->len - start);
			bytes_of(model->source, model->offset + start, want, (uint32_t)ret);
			CHECK(!memcmp(got, want, (size_t)ret));
			tally.bytes += (unsigned)ret;
		}
	}
	tally.operations++;
}

/* A call with one thing that is wrong, and nothing changes. */
static void wrong(void)
{
	struct getbuf_stats before = stats_of(slots), after;
	struct getbuf_lease none = { 0 }, out = { 0 };
	struct getbuf_file file = sink_file(SINK_NULL), bad = file;
	struct model *model = one_that_is(INSTALLED);
	struct getbuf_range range = { 0, 1 };
	struct io_uring_sqe *sqe;
	int has = model != NULL;

	if (!model && !(model = some_model()))
		return;
	sqe = sqe_of();
	bad.fd = -1;
	switch (below(16)) {
	case 0:
		CHECK_IS(getbuf_write(slots, sqe, none, 0, 1, &file, 0), -EINVAL);
		break;
	case 1:
		CHECK_IS(getbuf_write(slots, sqe, foreign_lease, 0, 1, &file, 0), -EXDEV);
		break;
	case 2:
		if (has)
			CHECK_IS(getbuf_write(slots, sqe, model->lease, model->len, 1, &file, 0),
				 -ERANGE);
		else
			no_request(sqe);
		break;
	case 3:
		if (has)
			CHECK_IS(getbuf_write(slots, sqe, model->lease, 1, UINT32_MAX, &file, 0),
				 -ERANGE);
		else
			no_request(sqe);
		break;
	case 4:
		if (has)
			CHECK_IS(getbuf_write(slots, sqe, model->lease, 0, 1, &bad, 0), -EBADF);
		else
			no_request(sqe);
		break;
	case 5:
		if (has)
			CHECK_IS(getbuf_send(slots, sqe, model->lease, 0, 1, &file, MSG_OOB),
				 -EINVAL);
		else
			no_request(sqe);
		break;
	case 6:
		if (has)
			CHECK_IS(getbuf_writev(slots, sqe, model->lease, &range,
					       GETBUF_RANGES_MAX + 1, &file, 0), -EINVAL);
		else
			no_request(sqe);
		break;
	case 7:
		CHECK_IS(getbuf_fetch(slots, sqe, &file, 0, 0, NULL, &out), -EINVAL);
		break;
	case 8:
		CHECK_IS(getbuf_fetch(slots, sqe, &file, 0, before.max_fetch + 1, NULL, &out),
			 -EINVAL);
		break;
	case 9:
		CHECK_IS(getbuf_fetch(slots, sqe, &bad, 0, 1, NULL, &out), -EBADF);
		break;
	case 10:
		file.flags |= 1U << 31;
		CHECK_IS(getbuf_fetch(slots, sqe, &file, 0, 1, NULL, &out), -EINVAL);
		break;
	case 11:
		CHECK_IS(getbuf_fetch(slots, sqe, NULL, 0, 1, NULL, &out), -EINVAL);
		break;
	case 12:
		model = one_that_is(OVER);
		CHECK_IS(getbuf_write(slots, sqe, model ? model->lease : none, 0, 1, &file, 0),
			 model ? -ENOENT : -EINVAL);
		break;
	case 13:
		model = one_that_is(FETCHING);
		CHECK_IS(getbuf_write(slots, sqe, model ? model->lease : none, 0, 1, &file, 0),
			 model ? -EBUSY : -EINVAL);
		break;
	case 14:
		CHECK_IS(getbuf_chain(slots, &sqe, 1, NULL, &out), -EINVAL);
		break;
	default:
		CHECK_IS(getbuf_release(slots, foreign_lease), -EXDEV);
		CHECK_IS(getbuf_release(slots, none), -EINVAL);
		no_request(sqe);
	}
	CHECK_IS(out.id, 0);
	after = stats_of(slots);
	CHECK(!memcmp(&before, &after, sizeof(before)));
	tally.wrong++;
	tally.operations++;
}

/* Everything in flight comes to its end, and every slot is accounted for. */
static void drain(void)
{
	int quiet;

	for (;;) {
		struct getbuf_stats stats = stats_of(slots);

		quiet = !stats.in_flight && !mine && !getbuf_pending(slots) &&
			stats.free_slots == stats.slots - (unsigned)held;
		CHECK(stats.free_slots + (unsigned)held <= stats.slots);
		if (quiet)
			return;
		take(1);
	}
}

static void step(void)
{
	uint32_t what = below(100);

	if (what < 18)
		fetch();
	else if (what < 21)
		fetch_stream();
	else if (what < 27)
		provide();
	else if (what < 47)
		write_some();
	else if (what < 52)
		write_ranges();
	else if (what < 64)
		release(INSTALLED);
	else if (what < 67)
		release(FETCHING);
	else if (what < 76)
		chain();
	else if (what < 78)
		cancel();
	else if (what < 79)
		nop();
	else if (what < 83)
		look();
	else if (what < 86)
		wrong();
	else if (what < 87)
		add_region();
	else if (what < 88)
		drain();
	else if (what < 90)
		submit();
	else
		take(below(3));
	CHECK(stats_of(slots).free_slots + (unsigned)held <= SLOTS);
}

/* ---- A program ---- */

/* A ring of some kind, with files, and slots on it of some kind. */
static void begin(void)
{
	struct io_uring_params setup;
	struct getbuf_params params;
	int files[PIPE + 1 + SINKS], i;
	unsigned first = one_in(2);

	memset(&setup, 0, sizeof(setup));
	switch (below(4)) {
	case 0:
		setup.flags = IORING_SETUP_COOP_TASKRUN;
		break;
	case 1:
		setup.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
		break;
	case 2:
		if (one_in(4)) {
			setup.flags = IORING_SETUP_SQPOLL;
			setup.sq_thread_idle = 5;
		}
		break;
	}
	i = io_uring_queue_init_params(64, &ring, &setup);
	if (i == -EINVAL) {
		/* Of an older kernel. */
		memset(&setup, 0, sizeof(setup));
		i = io_uring_queue_init_params(64, &ring, &setup);
	}
	CHECK_IS(i, 0);
	for (i = 0; i <= PIPE; i++)
		files[i] = sources[i].fd;
	for (i = 0; i < SINKS; i++)
		files[PIPE + 1 + i] = sinks[i].fd;
	CHECK_IS(io_uring_register_files(&ring, files, PIPE + 1 + SINKS), 0);
	memset(&params, 0, sizeof(params));
	params.size = sizeof(params);
	params.engine = engine;
	params.slots = SLOTS;
	params.block_size = BLOCK;
	params.regions = REGIONS;
	params.probe = probe;
	params.tag = tag = (uint8_t)(0x20 + below(0xd0));
	if (first) {
		/* The ring has a table, with something of the program's at both ends. */
		static char mine_[4096];
		struct iovec table[SLOTS + 1 + REGIONS + 2];

		memset(table, 0, sizeof(table));
		table[0].iov_base = mine_;
		table[0].iov_len = sizeof(mine_);
		table[SLOTS + 1 + REGIONS + 1] = table[0];
		CHECK_IS(io_uring_register_buffers(&ring, table, SLOTS + 1 + REGIONS + 2), 0);
		params.flags |= GETBUF_PARAM_TABLE;
		params.table_first = 1;
		params.table_count = SLOTS + 1 + REGIONS;
	}
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &slots), 0);
	model_count = use_count = mine = held = region_count = whole_region = 0;
	for (i = 0; i < SINKS; i++)
		sinks[i].busy = 0;
}

/* Half of the programs come to a quiet end; the others end with what is in flight. */
static void end(void)
{
	int i, quiet = one_in(2);

	if (quiet) {
		while ((i = one_in(16)) == 0)
			release(INSTALLED);
		drain();
	}
	CHECK_IS(stats_of(slots).stale, 0);
	i = (int)stats_of(slots).in_flight;
	CHECK_IS(getbuf_destroy(slots), i);
	CHECK_IS(getbuf_destroy(slots), -EINVAL);
	/* Leases of memory that nothing uses have ended with the slots. */
	for (i = 0; quiet && i < model_count; i++)
		CHECK_IS(models[i].released, models[i].provided);
	io_uring_queue_exit(&ring);
	if (!quiet)
		make_streams();
	check_sources();
}

/* The module engine: descriptors with the source already found. */
static void bind_sources(void)
{
	struct io_uring other;
	int i;

	device = open("/dev/getbuf", O_RDWR | O_CLOEXEC);
	if (engine != GETBUF_ENGINE_MODULE || device < 0)
		return;
	CHECK_IS(io_uring_queue_init(4, &other, 0), 0);
	for (i = 0; i < FILES; i++) {
		struct getbuf_cmd_bind bind = { .fd = sources[i].fd, .version = GETBUF_ABI_VERSION };
		struct io_uring_sqe *sqe = get_sqe(&other);
		struct io_uring_cqe *cqe;

		memset(sqe, 0, sizeof(*sqe));
		/* IORING_OP_URING_CMD, and cmd_op where off is. */
		sqe->opcode = 46;
		sqe->fd = device;
		sqe->off = GETBUF_CMD_BIND;
		memcpy((char *)sqe + 48, &bind, sizeof(bind));
		CHECK_IS(io_uring_submit_and_wait(&other, 1), 1);
		CHECK_IS(io_uring_peek_cqe(&other, &cqe), 0);
		CHECK(cqe->res >= 0);
		sources[i].bound = cqe->res;
		io_uring_cqe_seen(&other, cqe);
	}
	io_uring_queue_exit(&other);
}

int main(int argc, char **argv)
{
	struct getbuf_params params = { .size = sizeof(params), .engine = GETBUF_ENGINE_COPY,
					.slots = 1, .block_size = 4096 };
	unsigned long long wanted, first;
	struct getbuf_event event;
	struct io_uring other;
	struct getbuf *others;
	struct getbuf_file file;

	if (argc != 4)
		return 2;
	engine = engine_named(argv[1]);
	wanted = strtoull(argv[2], NULL, 0);
	first = strtoull(argv[3], NULL, 0);
	make_ring(&other);
	signal(SIGALRM, late);
	signal(SIGPIPE, SIG_IGN);
	CHECK_IS(getbuf_probe(&probe), 0);
	need_engine(probe, engine);
	make_world();
	bind_sources();

	/* Slots of another ring, with a lease. */
	params.probe = probe;
	CHECK_IS(getbuf_create(other.ring_fd, &params, &others), 0);
	memset(&file, 0, sizeof(file));
	file.fd = sources[2].fd;
	CHECK_IS(getbuf_fetch(others, get_sqe(&other), &file, 0, 1, NULL, &foreign_lease), 0);
	CHECK_IS(next_event(&other, others, &event), GETBUF_EVENT_FETCHED);

	atexit(say_seed);
	while (tally.operations < wanted) {
		int i;

		seed = first++;
		/* 0 has no successor. */
		state = seed * 0x9e3779b97f4a7c15ULL | 1;
		alarm(60);
		begin();
		for (i = 0; i < PROGRAM && tally.operations < wanted; i++)
			step();
		end();
	}
	seed = 0;
	CHECK_IS(getbuf_installed(others, foreign_lease), 1);
	CHECK_IS(getbuf_destroy(others), 0);
	io_uring_queue_exit(&other);
	getbuf_probe_free(probe);
	printf("%llu operations: %llu fetches, %llu uses, %llu chains, %llu of memory, %llu wrong; "
	       "%llu cancelled, %llu bytes compared\n", tally.operations, tally.fetches, tally.uses,
	       tally.chains, tally.provided, tally.wrong, tally.cancelled, tally.bytes);
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A provider in C: pages with a count of their leases, and one that lies. */
#include "common.h"

#include <getbuf_uapi.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PAGE 4096
#define PAGES 4

struct cache {
	unsigned char *memory;
	int leases[PAGES];
	/* What the next answer is to have wrong. */
	enum lie { NO_LIE, TOO_MUCH, TOO_LITTLE, TOO_MANY, NO_RELEASE, FAILS, WAITS } lie;
};

static void release(struct iou_buf_desc *desc)
{
	int *count = desc->priv;

	CHECK(desc->nr_bvecs > 0);
	CHECK(desc->bvec[0].bv_len > 0);
	CHECK(*count > 0);
	--*count;
}

static int64_t get_buf(void *context, struct iou_get_buf_info *info)
{
	struct cache *cache = context;
	struct iou_buf_desc *desc = info->desc;
	size_t page = (size_t)info->off / PAGE, len = info->len;

	CHECK_IS(desc->nr_bvecs, 0);
	CHECK(desc->max_bvecs > 1);
	if (cache->lie == WAITS)
		return info->flags & IOU_GET_BUF_F_NOWAIT ? -EAGAIN : -EIO;
	if (page >= PAGES)
		return 0;
	if (len > PAGE)
		len = PAGE;
	/* In two pieces, the second of which begins in the middle of what bv_page names. */
	desc->bvec[0].bv_page = cache->memory + page * PAGE;
	desc->bvec[0].bv_offset = 0;
	desc->bvec[0].bv_len = (unsigned)len / 2;
	desc->bvec[1].bv_page = cache->memory + page * PAGE;
	desc->bvec[1].bv_offset = (unsigned)len / 2;
	desc->bvec[1].bv_len = (unsigned)(len - len / 2);
	desc->nr_bvecs = cache->lie == TOO_MANY ? desc->max_bvecs + 1 : 2;
	desc->priv = &cache->leases[page];
	if (cache->lie != NO_RELEASE) {
		desc->release = release;
		cache->leases[page]++;
	}
	if (cache->lie == TOO_MUCH)
		return (int64_t)info->len + 1;
	if (cache->lie == TOO_LITTLE)
		desc->bvec[1].bv_len = 1;
	if (cache->lie == FAILS)
		return -EIO;
	return (int64_t)len;
}

static int leases(const struct cache *cache)
{
	int page, count = 0;

	for (page = 0; page < PAGES; page++)
		count += cache->leases[page];
	return count;
}

static void check_page(const unsigned char *bytes, int page)
{
	int i;

	for (i = 0; i < PAGE; i++)
		CHECK_IS(bytes[i], (i * 7 + page) & 0xff);
}

static void tcp_pair(int *near, int *far)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK_IS(bind(listener, (struct sockaddr *)&address, size), 0);
	CHECK_IS(listen(listener, 1), 0);
	CHECK_IS(getsockname(listener, (struct sockaddr *)&address, &size), 0);
	*near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK_IS(connect(*near, (struct sockaddr *)&address, size), 0);
	*far = accept(listener, NULL, NULL);
	CHECK(*far >= 0);
	close(listener);
}

/* Sends a whole lease, and lets it go at once; the bytes are read on the other side. */
static void send_page(struct io_uring *ring, struct getbuf *slots, struct cache *cache,
		      const struct getbuf_provider *provider, int page, int near, int far,
		      int zero_copy)
{
	struct getbuf_file sink = { .fd = near };
	struct getbuf_event event;
	struct getbuf_lease lease;
	unsigned char got[PAGE];
	uint32_t done = 0;
	int kind, ret, last = 0, wait = 0;

	CHECK_IS(getbuf_provide(slots, provider, (uint64_t)page * PAGE, PAGE, 0, cache, &lease),
		 PAGE);
	CHECK_IS(cache->leases[page], 1);
	CHECK_IS(getbuf_engine(slots, lease), GETBUF_ENGINE_PROVIDER);
	CHECK_IS(getbuf_copy_out(slots, lease, 0, got, PAGE), PAGE);
	check_page(got, page);
	while (done < PAGE) {
		struct io_uring_sqe *sqe = get_sqe(ring);

		if (zero_copy)
			ret = getbuf_send_zc(slots, sqe, lease, done, PAGE - done, &sink, MSG_WAITALL);
		else
			ret = getbuf_send(slots, sqe, lease, done, PAGE - done, &sink, MSG_WAITALL);
		CHECK_IS(ret, 0);
		/* The second piece is the last. */
		if (done) {
			CHECK_IS(getbuf_release(slots, lease), 0);
			last = 1;
		}
		do {
			kind = next_event(ring, slots, &event);
			CHECK(event.data == cache);
			if (kind == GETBUF_EVENT_RETURNED)
				wait--;
		} while (kind != GETBUF_EVENT_USED);
		CHECK(event.res > 0);
		CHECK(event.res <= PAGE / 2);
		wait += !!(event.flags & GETBUF_EVENT_MORE);
		done += (uint32_t)event.res;
	}
	CHECK_IS(last, 1);
	/* What the ring has to do for this thread may end a call early. */
	for (done = 0; done < PAGE; done += (uint32_t)ret) {
		ret = (int)recv(far, got + done, PAGE - done, MSG_WAITALL);
		CHECK(ret > 0);
	}
	check_page(got, page);
	while (wait-- > 0)
		CHECK_IS(next_event(ring, slots, &event), GETBUF_EVENT_RETURNED);
	CHECK_IS(leases(cache), 0);
}

int main(int argc, char **argv)
{
	struct getbuf_params params = { .size = sizeof(params), .slots = 4, .regions = 2 };
	struct cache cache = { .lie = NO_LIE };
	struct getbuf_provider provider = { .size = sizeof(provider), .get_buf = get_buf,
					    .context = &cache };
	struct getbuf_provider wrong;
	struct getbuf_lease lease, leases_[5];
	struct getbuf_probe *probe;
	struct io_uring ring;
	struct getbuf *slots;
	int i, near, far;

	CHECK(argc == 2);
	make_ring(&ring);
	CHECK_IS(getbuf_probe(&probe), 0);
	params.engine = engine_named(argv[1]);
	need_engine(probe, params.engine);
	params.probe = probe;
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &slots), 0);
	cache.memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	CHECK(cache.memory != MAP_FAILED);
	for (i = 0; i < PAGES * PAGE; i++)
		cache.memory[i] = (unsigned char)(i % PAGE * 7 + i / PAGE);
	tcp_pair(&near, &far);

	/* Registered for each lease, and then once for all. */
	for (i = 0; i < 8; i++)
		send_page(&ring, slots, &cache, &provider, i % PAGES, near, far, 0);
	CHECK_IS(getbuf_add_region(slots, cache.memory, PAGES * PAGE), 0);
	for (i = 0; i < 64; i++)
		send_page(&ring, slots, &cache, &provider, i % PAGES, near, far, i & 1);

	/* The end, errors and lies. */
	CHECK_IS(getbuf_provide(slots, &provider, PAGES * PAGE, 1, 0, NULL, &lease), 0);
	cache.lie = WAITS;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 1, GETBUF_PROVIDE_NOWAIT, NULL, &lease),
		 -EAGAIN);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 1, 0, NULL, &lease), -EIO);
	cache.lie = FAILS;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &lease), -EIO);
	cache.lie = TOO_MUCH;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &lease), -EPROTO);
	cache.lie = TOO_LITTLE;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &lease), -EPROTO);
	cache.lie = TOO_MANY;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &lease), -EPROTO);
	CHECK_IS(leases(&cache), 0);
	cache.lie = NO_RELEASE;
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &lease), -EPROTO);
	cache.lie = NO_LIE;

	/* Arguments that are wrong. */
	CHECK_IS(getbuf_provide(NULL, &provider, 0, 1, 0, NULL, &lease), -EINVAL);
	CHECK_IS(getbuf_provide(slots, NULL, 0, 1, 0, NULL, &lease), -EINVAL);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 1, 0, NULL, NULL), -EINVAL);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 1, 2, NULL, &lease), -EINVAL);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 0, 0, NULL, &lease), -EINVAL);
	wrong = provider;
	wrong.size = 8;
	CHECK_IS(getbuf_provide(slots, &wrong, 0, 1, 0, NULL, &lease), -EINVAL);
	wrong = provider;
	wrong.get_buf = NULL;
	CHECK_IS(getbuf_provide(slots, &wrong, 0, 1, 0, NULL, &lease), -EINVAL);
	wrong = provider;
	wrong.reserved1[1] = 1;
	CHECK_IS(getbuf_provide(slots, &wrong, 0, 1, 0, NULL, &lease), -EINVAL);
	CHECK_IS(getbuf_add_region(NULL, cache.memory, 1), -EINVAL);
	CHECK_IS(getbuf_add_region(slots, NULL, 1), -EINVAL);
	CHECK_IS(getbuf_add_region(slots, cache.memory, 0), -EINVAL);
	CHECK_IS(getbuf_add_region(slots, cache.memory, PAGE), 0);
	CHECK_IS(getbuf_add_region(slots, cache.memory, PAGE), -ENOSPC);

	/* More than there are slots; and what is left goes with the slots. */
	for (i = 0; i < 4; i++)
		CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &leases_[i]), 64);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 64, 0, NULL, &leases_[4]), -ENOBUFS);
	CHECK_IS(leases(&cache), 4);
	CHECK_IS(getbuf_release(slots, leases_[0]), 0);
	CHECK_IS(getbuf_release(slots, leases_[0]), -ENOENT);
	CHECK_IS(leases(&cache), 3);
	CHECK_IS(getbuf_destroy(slots), 0);
	CHECK_IS(leases(&cache), 0);

	/* Slots without regions have no providers. */
	params.regions = 0;
	CHECK_IS(getbuf_create(ring.ring_fd, &params, &slots), 0);
	CHECK_IS(getbuf_provide(slots, &provider, 0, 1, 0, NULL, &lease), -ENOSPC);
	CHECK_IS(leases(&cache), 0);
	CHECK_IS(getbuf_destroy(slots), 0);

	getbuf_probe_free(probe);
	io_uring_queue_exit(&ring);
	munmap(cache.memory, PAGES * PAGE);
	close(near);
	close(far);
	return 0;
}

// SPDX-License-Identifier: GPL-2.0
/*
 * Leases: the descriptor that lives as long as the buffer does, and the
 * accounting of the memory it holds.
 */
#include "getbuf.h"

#include <linux/file.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

/* How many spare leases of each size a client keeps. */
static const unsigned int max_spares[GETBUF_SPARE_SIZES] = { 64, 8 };

static struct getbuf_client *getbuf_client_new(struct file *file)
{
	struct getbuf_client *client;

	client = kzalloc_obj(*client, GFP_KERNEL_ACCOUNT);
	if (!client)
		return NULL;
	client->file = file;
	return client;
}

static void getbuf_client_free(struct getbuf_client *client)
{
	struct getbuf_lease *lease, *next;
	int i;

	for (i = 0; i < GETBUF_SPARE_SIZES; i++) {
		for (lease = client->spare[i].first; lease; lease = next) {
			next = lease->next;
			kvfree(lease);
		}
	}
	kfree(client);
}

static inline int spare_size(unsigned int nr_bvecs)
{
	if (nr_bvecs <= GETBUF_SMALL_BVECS)
		return 0;
	if (nr_bvecs <= GETBUF_LARGE_BVECS)
		return 1;
	return GETBUF_SPARE_SIZES;
}

static struct getbuf_lease *spare_pop(struct getbuf_client *client, int size)
{
	struct getbuf_lease *lease;

	/* nobody waits: who comes second allocates */
	if (unlikely(test_and_set_bit_lock(0, &client->lock)))
		return NULL;
	lease = client->spare[size].first;
	if (likely(lease)) {
		client->spare[size].first = lease->next;
		client->spare[size].nr--;
	}
	clear_bit_unlock(0, &client->lock);
	return lease;
}

static bool spare_push(struct getbuf_client *client, int size,
		       struct getbuf_lease *lease)
{
	bool kept = false;

	if (unlikely(test_and_set_bit_lock(0, &client->lock)))
		return false;
	if (likely(client->spare[size].nr < max_spares[size])) {
		lease->next = client->spare[size].first;
		client->spare[size].first = lease;
		client->spare[size].nr++;
		kept = true;
	}
	clear_bit_unlock(0, &client->lock);
	return kept;
}

/* A lease with room for @len bytes that start anywhere in a page. */
static struct getbuf_lease *getbuf_lease_new(struct getbuf_client *client, size_t len)
{
	unsigned int nr = (len >> PAGE_SHIFT) + 2;
	struct getbuf_lease *lease = NULL;
	int size = spare_size(nr);

	if (likely(size < GETBUF_SPARE_SIZES)) {
		nr = size ? GETBUF_LARGE_BVECS : GETBUF_SMALL_BVECS;
		lease = spare_pop(client, size);
	}
	if (unlikely(!lease)) {
		lease = kvmalloc_flex(*lease, bvec, nr, GFP_KERNEL_ACCOUNT);
		if (!lease)
			return NULL;
		lease->client = client;
		lease->desc.max_bvecs = nr;
		lease->desc.bvec = lease->bvec;
		getbuf_count(GETBUF_STAT_ALLOCATIONS, 1);
	}
	lease->desc.nr_bvecs = 0;
	return lease;
}

/* Give back the memory and the descriptor of a lease. */
static __always_inline void lease_drop(struct getbuf_lease *lease)
{
	int size = spare_size(lease->desc.max_bvecs);

	iou_buf_put_pages(&lease->desc);
	if (unlikely(size == GETBUF_SPARE_SIZES) ||
	    unlikely(!spare_push(lease->client, size, lease)))
		kvfree(lease);
}

/* Likewise; for a lease that was not installed. */
static noinline void getbuf_lease_drop(struct getbuf_lease *lease)
{
	lease_drop(lease);
}

static unsigned long lease_pages(const struct iou_buf_desc *desc)
{
	unsigned long pages = 0;
	unsigned int i;

	for (i = 0; i < desc->nr_bvecs; i++)
		pages += PFN_UP(offset_in_page(desc->bvec[i].bv_offset) +
				(size_t)desc->bvec[i].bv_len);
	return pages;
}

/*
 * Charge what the core charges for a buffer of the program's own memory: the
 * user who has made the ring, unless it was allowed to lock any amount, and
 * its mm. Both belong to the ring, and to each ring that the buffer can be
 * cloned to, and so are there when the lease ends.
 */
static int lease_charge(struct getbuf_lease *lease, struct io_ring_ctx *ctx)
{
	unsigned long pages = lease_pages(&lease->desc);
	struct user_struct *user = ctx->user;
	struct mm_struct *mm = ctx->mm_account;

	if (user) {
		unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
		long have = atomic_long_read(&user->locked_vm);

		do {
			if (have + pages > limit)
				return -EDQUOT;
		} while (!atomic_long_try_cmpxchg(&user->locked_vm, &have,
						  have + pages));
	}
	if (mm)
		atomic64_add(pages, &mm->pinned_vm);
	lease->user = user;
	lease->mm = mm;
	lease->pages = pages;

	getbuf_count(GETBUF_STAT_LEASES, 1);
	getbuf_count(GETBUF_STAT_PINNED_PAGES, pages);
	/* whoever adds the first one has the file open */
	if (atomic_long_fetch_add(pages, &lease->client->pages) == 0)
		get_file(lease->client->file);
	return 0;
}

/* Must be the last: the client is gone with its last lease. */
static __always_inline void lease_uncharge(struct user_struct *user,
					   struct mm_struct *mm,
					   struct getbuf_client *client,
					   unsigned long pages)
{
	getbuf_count(GETBUF_STAT_LEASES, -1);
	getbuf_count(GETBUF_STAT_PINNED_PAGES, -(long)pages);
	if (user)
		atomic_long_sub(pages, &user->locked_vm);
	if (mm)
		atomic64_sub(pages, &mm->pinned_vm);
	/* another one may begin here and take the file anew: it has it open */
	if (atomic_long_sub_return(pages, &client->pages) == 0)
		fput(client->file);
}

/*
 * Called by the core when the last request that uses the buffer is done, with
 * the lock of a ring held. The ring need not be the one that made the lease,
 * and all files may be closed.
 */
static void lease_release(void *priv)
{
	struct getbuf_lease *lease = priv;
	struct getbuf_client *client = lease->client;
	struct user_struct *user = lease->user;
	struct mm_struct *mm = lease->mm;
	unsigned long pages = lease->pages;

	lease_drop(lease);
	lease_uncharge(user, mm, client, pages);
}

/*
 * On error the lease is the caller's, as it was. Else it is the core's, and
 * may be gone already.
 */
static int getbuf_lease_install(struct getbuf_lease *lease,
				struct io_uring_cmd *cmd, unsigned int slot,
				unsigned int issue_flags)
{
	int ret;

	ret = lease_charge(lease, cmd_to_io_kiocb(cmd)->ctx);
	if (unlikely(ret))
		return ret;
	ret = io_buffer_register_bvec(cmd, lease->bvec, lease->desc.nr_bvecs,
				      lease_release, lease, 1 << ITER_SOURCE,
				      slot, issue_flags);
	if (unlikely(ret))
		lease_uncharge(lease->user, lease->mm, lease->client,
			       lease->pages);
	return ret;
}

static u64 getbuf_pinned_limit(struct io_uring_cmd *cmd)
{
	if (!cmd_to_io_kiocb(cmd)->ctx->user)
		return ~0ULL;
	return rlimit(RLIMIT_MEMLOCK);
}

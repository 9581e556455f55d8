/* SPDX-License-Identifier: GPL-2.0 */
#ifndef GETBUF_H
#define GETBUF_H

#include <linux/kconfig.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
#error "getbuf.ko needs Linux 7.3 or newer: older ones have no io_buffer_register_bvec() for it, see README.md"
#endif
#if !IS_ENABLED(CONFIG_IO_URING)
#error "getbuf.ko needs a kernel with CONFIG_IO_URING=y"
#endif
#if !__has_include("getbuf_uapi.h")
#error "getbuf_uapi.h is missing: copy it from include/ of the repository, or use the folder that `make dkms-tree` makes"
#endif

#include <linux/bvec.h>
#include <linux/fs.h>
#include <linux/io_uring/cmd.h>
#include <linux/percpu.h>

#include "getbuf_uapi.h"

/* --- pagecache.c: where the memory comes from --------------------------- */

/* How the memory of a file can be had. A property of the open file. */
enum getbuf_kind {
	GETBUF_NONE,		/* not at all */
	GETBUF_SPLICE,		/* only the file's ->splice_read() knows how */
	GETBUF_CACHED,		/* what is in the page cache may be taken */
	GETBUF_CACHED_LOCKED,	/* likewise, with the inode locked shared */
	GETBUF_HUGETLB,		/* likewise, and nothing else can be had */
};

static enum getbuf_kind getbuf_kind(struct file *file);
static int getbuf_may_lend(struct file *file, enum getbuf_kind kind);
static int getbuf_lend(struct file *file, enum getbuf_kind kind,
		struct iou_get_buf_info *info);
static void iou_buf_put_pages(struct iou_buf_desc *desc);

/* --- lease.c: what is lent, and who pays for it ------------------------- */

/* Sizes of leases that are kept for reuse, in bvecs: 128 KiB and 1 MiB. */
#define GETBUF_SMALL_BVECS	34
#define GETBUF_LARGE_BVECS	258
#define GETBUF_SPARE_SIZES	2

/*
 * One opening of /dev/getbuf. Shared by the descriptors that were bound
 * through it, and outlives them all as long as it has leases: each of them
 * together hold the file, and by it the module. The end of a file is the
 * core's business: fput() only puts it off.
 */
struct getbuf_client {
	struct file *file;		/* not a reference */
	atomic_long_t pages;		/* in leases */

	unsigned long lock;		/* bit 0, for what follows */
	struct {
		struct getbuf_lease *first;
		unsigned int nr;
	} spare[GETBUF_SPARE_SIZES];
};

struct getbuf_lease {
	struct iou_buf_desc desc;
	struct getbuf_client *client;
	struct getbuf_lease *next;	/* while it is a spare */
	struct user_struct *user;	/* charged, or NULL */
	struct mm_struct *mm;		/* charged, or NULL */
	unsigned long pages;		/* charged */
	struct bio_vec bvec[];
};

static struct getbuf_client *getbuf_client_new(struct file *file);
static void getbuf_client_free(struct getbuf_client *client);

static struct getbuf_lease *getbuf_lease_new(struct getbuf_client *client, size_t len);
static void getbuf_lease_drop(struct getbuf_lease *lease);
static int getbuf_lease_install(struct getbuf_lease *lease, struct io_uring_cmd *cmd,
			 unsigned int slot, unsigned int issue_flags);
static u64 getbuf_pinned_limit(struct io_uring_cmd *cmd);

/* --- stats.c ------------------------------------------------------------ */

enum getbuf_stat {
	GETBUF_STAT_LEASES,
	GETBUF_STAT_PINNED_PAGES,
	GETBUF_STAT_FETCHES,
	GETBUF_STAT_BYTES,
	GETBUF_STAT_RETRIES,
	GETBUF_STAT_ALLOCATIONS,
	GETBUF_STAT_REFUSED_SOURCE,
	GETBUF_STAT_REFUSED_ACCESS,
	GETBUF_STAT_REFUSED_LIMIT,
	GETBUF_STAT_REFUSED_SLOT,
	GETBUF_STAT_REFUSED_COMMAND,
	GETBUF_STAT_REFUSED_MEMORY,
	GETBUF_STAT_REFUSED_OTHER,
	GETBUF_NR_STATS,
};

struct getbuf_stats {
	long count[GETBUF_NR_STATS];
};

static DEFINE_PER_CPU(struct getbuf_stats, getbuf_stats);

/* One CPU may see a lease come and another one see it go. */
static inline void getbuf_count(enum getbuf_stat stat, long n)
{
	this_cpu_add(getbuf_stats.count[stat], n);
}

static void getbuf_count_refusal(int err);

#endif

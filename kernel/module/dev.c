// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/getbuf: lease a file's own memory through a registered-buffer slot of
 * an io_uring. getbuf_uapi.h says what the commands are.
 */
#include "getbuf.h"

#include <linux/anon_inodes.h>
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/io_uring/cmd.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uio.h>

static unsigned long max_fetch = SZ_4M;
module_param(max_fetch, ulong, 0644);
MODULE_PARM_DESC(max_fetch, "most bytes that one fetch installs");

/* An open /dev/getbuf, or a descriptor that is bound to a source. */
struct getbuf_file {
	struct getbuf_client *client;
	struct file *source;		/* NULL: not bound */
	enum getbuf_kind kind;		/* of the source */
};

static size_t fetch_limit(void)
{
	return clamp_t(unsigned long, READ_ONCE(max_fetch), PAGE_SIZE,
		       MAX_RW_COUNT);
}

/*
 * A fetch that gives less than was asked for is a success that breaks a link
 * and is never hidden, as a short read is. The core decides that for its own
 * requests by req_set_fail(), for a command only by the sign of the result.
 */
static void mark_short(struct io_uring_cmd *cmd)
{
	struct io_kiocb *req = cmd_to_io_kiocb(cmd);

	req->flags |= REQ_F_FAIL;
	if (req->flags & REQ_F_CQE_SKIP) {
		req->flags &= ~REQ_F_CQE_SKIP;
		req->flags |= REQ_F_SKIP_LINK_CQES;
	}
}

static int fetch_from(struct io_uring_cmd *cmd, struct getbuf_client *client,
		      struct file *file, enum getbuf_kind kind, loff_t off,
		      size_t asked, unsigned int slot, unsigned int issue_flags)
{
	struct iou_get_buf_info info;
	struct getbuf_lease *lease;
	int ret, err;

	ret = getbuf_may_lend(file, kind);
	if (unlikely(ret))
		return ret;
	ret = rw_verify_area(READ, file, &off, asked);
	if (unlikely(ret))
		return ret;

	info.off = off;
	info.len = min(asked, fetch_limit());
	info.flags = issue_flags & IO_URING_F_NONBLOCK ? IOU_GET_BUF_F_NOWAIT : 0;
	lease = getbuf_lease_new(client, info.len);
	if (unlikely(!lease))
		return -ENOMEM;
	info.desc = &lease->desc;

	ret = getbuf_lend(file, kind, &info);
	if (unlikely(ret <= 0)) {
		WARN_ON_ONCE(lease->desc.nr_bvecs);
		getbuf_lease_drop(lease);
		if (!ret && asked)
			mark_short(cmd);
		return ret;
	}
	err = getbuf_lease_install(lease, cmd, slot, issue_flags);
	if (unlikely(err)) {
		getbuf_lease_drop(lease);
		return err;
	}

	getbuf_count(GETBUF_STAT_FETCHES, 1);
	getbuf_count(GETBUF_STAT_BYTES, ret);
	fsnotify_access(file);
	if (unlikely(ret != asked))
		mark_short(cmd);
	return ret;
}

/*
 * The SQE may be memory that the program can write to at any time, and is
 * another copy of it when a command is issued again from a worker. So each
 * field is read once, and all is checked each time.
 */
static int cmd_fetch(struct io_uring_cmd *cmd, struct getbuf_file *gf,
		     unsigned int issue_flags)
{
	const struct getbuf_cmd_fetch *p =
		io_uring_sqe_cmd(cmd->sqe, struct getbuf_cmd_fetch);
	size_t asked = READ_ONCE(cmd->sqe->len);
	unsigned int slot = READ_ONCE(p->slot);
	loff_t off = READ_ONCE(p->off);
	int ret, fd = READ_ONCE(p->fd);
	struct file *file = gf->source;
	enum getbuf_kind kind = gf->kind;
	struct fd held = EMPTY_FD;

	if (unlikely(READ_ONCE(cmd->sqe->addr) | READ_ONCE(p->flags)))
		return -EINVAL;

	if (unlikely(!file)) {
		held = fdget(fd);
		if (fd_empty(held))
			return -EBADF;
		file = fd_file(held);
		kind = getbuf_kind(file);
	} else if (unlikely(fd != GETBUF_FD_BOUND)) {
		return -EINVAL;
	}
	ret = fetch_from(cmd, gf->client, file, kind, off, asked, slot,
			 issue_flags);
	fdput(held);
	return ret;
}

static int cmd_release(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct getbuf_cmd_release *p =
		io_uring_sqe_cmd(cmd->sqe, struct getbuf_cmd_release);

	if (unlikely(READ_ONCE(cmd->sqe->addr) | READ_ONCE(cmd->sqe->len) |
		     READ_ONCE(p->reserved0) | READ_ONCE(p->flags) |
		     READ_ONCE(p->reserved1)))
		return -EINVAL;
	return io_buffer_unregister(cmd, READ_ONCE(p->slot), issue_flags);
}

static int cmd_copy_out(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct getbuf_cmd_copy_out *p =
		io_uring_sqe_cmd(cmd->sqe, struct getbuf_cmd_copy_out);
	void __user *addr = u64_to_user_ptr(READ_ONCE(cmd->sqe->addr));
	size_t len = READ_ONCE(cmd->sqe->len);
	u64 bytes = 0, off = READ_ONCE(p->off);
	struct iov_iter from, to;
	size_t done = 0;
	int i, ret;

	/* the core has read its own copy of buf_index */
	if (unlikely(READ_ONCE(p->reserved0) || READ_ONCE(p->flags) ||
		     READ_ONCE(p->slot) != cmd_to_io_kiocb(cmd)->buf_index))
		return -EINVAL;
	/*
	 * The request holds the buffer from here on. Only memory of the kernel
	 * begins at address 0. One byte is asked for, as nothing says how many
	 * there are; the iterator has all segments.
	 */
	if (io_uring_cmd_import_fixed(0, 1, ITER_SOURCE, &from, cmd,
				      issue_flags))
		return -EINVAL;
	for (i = 0; i < from.nr_segs; i++)
		bytes += from.bvec[i].bv_len;
	if (off >= bytes)
		return 0;
	len = min3((u64)len, bytes - off, (u64)MAX_RW_COUNT);
	ret = import_ubuf(ITER_DEST, addr, len, &to);
	if (unlikely(ret))
		return ret;

	for (i = 0; off >= from.bvec[i].bv_len; i++)
		off -= from.bvec[i].bv_len;
	while (done < len) {
		const struct bio_vec *bv = &from.bvec[i];
		size_t at = bv->bv_offset + off;
		size_t n, copied;

		/* a driver's segment may span pages that are no folio */
		n = min3(len - done, (size_t)(bv->bv_len - off),
			 PAGE_SIZE - offset_in_page(at));
		copied = copy_page_to_iter(bv->bv_page + (at >> PAGE_SHIFT),
					   offset_in_page(at), n, &to);
		done += copied;
		if (copied != n)
			return done ?: -EFAULT;
		off += n;
		while (done < len && off >= from.bvec[i].bv_len)
			off -= from.bvec[i++].bv_len;
	}
	return done;
}

static int cmd_query(struct io_uring_cmd *cmd, struct getbuf_file *gf)
{
	const struct getbuf_cmd_query *p =
		io_uring_sqe_cmd(cmd->sqe, struct getbuf_cmd_query);
	void __user *addr = u64_to_user_ptr(READ_ONCE(cmd->sqe->addr));
	size_t len = READ_ONCE(cmd->sqe->len);
	struct getbuf_query query = {
		.size		= sizeof(query),
		.version	= GETBUF_ABI_VERSION,
		.features	= GETBUF_FEAT_BIND | GETBUF_FEAT_COPY_OUT,
		.max_fetch	= fetch_limit(),
		.pinned		= (u64)atomic_long_read(&gf->client->pages)
				  << PAGE_SHIFT,
		.pinned_limit	= getbuf_pinned_limit(cmd),
	};

	if (READ_ONCE(p->reserved0) || READ_ONCE(p->reserved1) ||
	    READ_ONCE(p->flags) || READ_ONCE(p->reserved2))
		return -EINVAL;
	len = min(len, sizeof(query));
	if (copy_to_user(addr, &query, len))
		return -EFAULT;
	return len;
}

static const struct file_operations getbuf_bound_fops;

static int cmd_bind(struct io_uring_cmd *cmd, struct getbuf_file *gf)
{
	const struct getbuf_cmd_bind *p =
		io_uring_sqe_cmd(cmd->sqe, struct getbuf_cmd_bind);
	struct getbuf_file *bound;
	int ret;

	if (READ_ONCE(cmd->sqe->addr) || READ_ONCE(cmd->sqe->len) ||
	    READ_ONCE(p->reserved0) || READ_ONCE(p->flags) ||
	    READ_ONCE(p->reserved1))
		return -EINVAL;

	CLASS(fd, f)(READ_ONCE(p->fd));
	if (fd_empty(f))
		return -EBADF;
	ret = getbuf_may_lend(fd_file(f), getbuf_kind(fd_file(f)));
	if (ret)
		return ret;

	bound = kmalloc_obj(*bound, GFP_KERNEL_ACCOUNT);
	if (!bound)
		return -ENOMEM;
	/* a source has no descriptors in it, so there can be no cycles */
	bound->source = get_file(fd_file(f));
	bound->kind = getbuf_kind(fd_file(f));
	bound->client = gf->client;
	get_file(bound->client->file);

	ret = anon_inode_getfd("[getbuf]", &getbuf_bound_fops, bound,
			       O_RDONLY | O_CLOEXEC);
	if (ret < 0) {
		fput(bound->client->file);
		fput(bound->source);
		kfree(bound);
	}
	return ret;
}

/* All fields of an SQE that no command names, or only one. */
static __always_inline int check_common(struct io_uring_cmd *cmd, u32 op, u8 version,
			unsigned int issue_flags)
{
	const struct io_uring_sqe *sqe = cmd->sqe;
	u32 flags = cmd->flags & IORING_URING_CMD_MASK;

	if (unlikely(version != GETBUF_ABI_VERSION && op != GETBUF_CMD_QUERY))
		return -EPROTONOSUPPORT;
	if (op == GETBUF_CMD_COPY_OUT) {
		if (flags != IORING_URING_CMD_FIXED)
			return -EINVAL;
	} else if (unlikely(flags | READ_ONCE(sqe->buf_index))) {
		return -EINVAL;
	}
	if (unlikely(READ_ONCE(sqe->file_index)))
		return -EINVAL;
	if (unlikely(issue_flags & IO_URING_F_SQE128) &&
	    memchr_inv(sqe->cmd + 16, 0, 64))
		return -EINVAL;
	return 0;
}

static __always_inline int check(struct io_uring_cmd *cmd, u32 op,
				 unsigned int issue_flags)
{
	/* the version is at the same place in all payloads */
	return check_common(cmd, op,
			    READ_ONCE(io_uring_sqe_cmd(cmd->sqe,
						       struct getbuf_cmd_fetch)
				      ->version), issue_flags);
}

static noinline int run_fetch(struct io_uring_cmd *cmd,
			      unsigned int issue_flags)
{
	return check(cmd, GETBUF_CMD_FETCH, issue_flags) ?:
	       cmd_fetch(cmd, cmd->file->private_data, issue_flags);
}

static noinline int run_other(struct io_uring_cmd *cmd,
			      unsigned int issue_flags)
{
	struct getbuf_file *gf = cmd->file->private_data;
	u32 op = cmd->cmd_op;
	int ret;

	if (op < GETBUF_CMD_COPY_OUT || op > GETBUF_CMD_BIND)
		return -EOPNOTSUPP;
	ret = check(cmd, op, issue_flags);
	if (ret)
		return ret;
	switch (op) {
	case GETBUF_CMD_COPY_OUT:
		return cmd_copy_out(cmd, issue_flags);
	case GETBUF_CMD_QUERY:
		return cmd_query(cmd, gf);
	case GETBUF_CMD_BIND:
		return cmd_bind(cmd, gf);
	}
	return -EOPNOTSUPP;
}

static int getbuf_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	int ret;

	/* what there are millions of, without a detour */
	if (likely(cmd->cmd_op == GETBUF_CMD_FETCH))
		ret = run_fetch(cmd, issue_flags);
	else if (likely(cmd->cmd_op == GETBUF_CMD_RELEASE))
		ret = check(cmd, GETBUF_CMD_RELEASE, issue_flags) ?:
		      cmd_release(cmd, issue_flags);
	else
		ret = run_other(cmd, issue_flags);

	if (likely(ret >= 0))
		return ret;
	if (ret == -EAGAIN)
		getbuf_count(GETBUF_STAT_RETRIES, 1);
	else
		getbuf_count_refusal(ret);
	return ret;
}

static int getbuf_open(struct inode *inode, struct file *file)
{
	struct getbuf_file *gf;

	gf = kzalloc_obj(*gf, GFP_KERNEL_ACCOUNT);
	if (!gf)
		return -ENOMEM;
	gf->client = getbuf_client_new(file);
	if (!gf->client) {
		kfree(gf);
		return -ENOMEM;
	}
	file->private_data = gf;
	return nonseekable_open(inode, file);
}

/* Neither a lease nor a bound descriptor is left. */
static int getbuf_close(struct inode *inode, struct file *file)
{
	struct getbuf_file *gf = file->private_data;

	getbuf_client_free(gf->client);
	kfree(gf);
	return 0;
}

static int getbuf_bound_close(struct inode *inode, struct file *file)
{
	struct getbuf_file *gf = file->private_data;

	fput(gf->source);
	fput(gf->client->file);
	kfree(gf);
	return 0;
}

static const struct file_operations getbuf_fops = {
	.owner		= THIS_MODULE,
	.open		= getbuf_open,
	.release	= getbuf_close,
	.uring_cmd	= getbuf_uring_cmd,
	.llseek		= noop_llseek,
};

static const struct file_operations getbuf_bound_fops = {
	.owner		= THIS_MODULE,
	.release	= getbuf_bound_close,
	.uring_cmd	= getbuf_uring_cmd,
	.llseek		= noop_llseek,
};

static struct miscdevice getbuf_dev = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "getbuf",
	.fops	= &getbuf_fops,
	.groups	= getbuf_stat_groups,
};

static int __init getbuf_init(void)
{
	BUILD_BUG_ON(sizeof(struct getbuf_cmd_fetch) != 16);
	BUILD_BUG_ON(sizeof(struct getbuf_cmd_release) != 16);
	BUILD_BUG_ON(sizeof(struct getbuf_cmd_copy_out) != 16);
	BUILD_BUG_ON(sizeof(struct getbuf_cmd_query) != 16);
	BUILD_BUG_ON(sizeof(struct getbuf_cmd_bind) != 16);
	BUILD_BUG_ON(offsetof(struct getbuf_cmd_release, version) !=
		     offsetof(struct getbuf_cmd_fetch, version));
	BUILD_BUG_ON(offsetof(struct getbuf_cmd_copy_out, version) !=
		     offsetof(struct getbuf_cmd_fetch, version));
	BUILD_BUG_ON(offsetof(struct getbuf_cmd_query, version) !=
		     offsetof(struct getbuf_cmd_fetch, version));
	BUILD_BUG_ON(offsetof(struct getbuf_cmd_bind, version) !=
		     offsetof(struct getbuf_cmd_fetch, version));

	return misc_register(&getbuf_dev);
}

static void __exit getbuf_exit(void)
{
	misc_deregister(&getbuf_dev);
	/*
	 * Where a worker ends the last lease, another one may end the file
	 * that it has put before it has returned to the core.
	 */
	synchronize_rcu_tasks();
}

module_init(getbuf_init);
module_exit(getbuf_exit);

MODULE_DESCRIPTION("Lease a file's own memory through an io_uring slot");
MODULE_AUTHOR("The uring-getbuf authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");

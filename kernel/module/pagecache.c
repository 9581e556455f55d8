// SPDX-License-Identifier: GPL-2.0
/*
 * Lending pages of the page cache.
 *
 * What is in the cache is taken from it without a lock. What is not is had
 * through the file's own ->splice_read(), as sendfile(2) does, from a context
 * that may block. It reads with readahead, takes the locks that the file
 * system wants to be taken, and knows how holes are done.
 */
#include "getbuf.h"

#include <linux/bvec.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pipe_fs_i.h>
#include <linux/rmap.h>
#include <linux/shmem_fs.h>
#include <linux/splice.h>
#include <linux/xarray.h>

static inline bool iou_buf_full(const struct iou_buf_desc *desc)
{
	return desc->nr_bvecs == desc->max_bvecs;
}

/* Takes over the caller's reference to the folio. */
static inline void iou_buf_add_folio(struct iou_buf_desc *desc,
				     struct folio *folio, size_t len,
				     size_t offset)
{
	bvec_set_folio(&desc->bvec[desc->nr_bvecs++], folio, len, offset);
}

/* Takes over the caller's reference to the page. The zero page is not counted. */
static inline void iou_buf_add_page(struct iou_buf_desc *desc,
				    struct page *page, unsigned int len,
				    unsigned int offset)
{
	bvec_set_page(&desc->bvec[desc->nr_bvecs++], page, len, offset);
}

static void put_lent_page(struct page *page)
{
	if (likely(!is_zero_page(page)))
		put_page(page);
}

static void iou_buf_put_pages(struct iou_buf_desc *desc)
{
	unsigned int i;

	for (i = 0; i < desc->nr_bvecs; i++)
		put_lent_page(desc->bvec[i].bv_page);
}

/* Give back what is in the buffer beyond its first @len bytes of @have. */
static size_t iou_buf_trim(struct iou_buf_desc *desc, size_t have, size_t len)
{
	while (have > len) {
		struct bio_vec *bv = &desc->bvec[desc->nr_bvecs - 1];
		size_t excess = have - len;

		if (bv->bv_len > excess) {
			bv->bv_len -= excess;
			return len;
		}
		have -= bv->bv_len;
		put_lent_page(bv->bv_page);
		desc->nr_bvecs--;
	}
	return have;
}

/*
 * Lend what is in the page cache and needs no work. Stops at the first page
 * that is missing, is not uptodate, is marked for readahead or is poisoned.
 * Does not look at i_size. Returns how many bytes were added.
 */
static size_t filemap_lend_cached(struct address_space *mapping, loff_t pos,
				  size_t len, struct iou_buf_desc *desc)
{
	XA_STATE(xas, &mapping->i_pages, pos >> PAGE_SHIFT);
	struct folio *folio;
	size_t done = 0;

	rcu_read_lock();
	for (folio = xas_load(&xas); folio; folio = xas_next(&xas)) {
		size_t fsize, offset, n;

		if (unlikely(xa_is_value(folio) || xa_is_internal(folio))) {
			if (xas_retry(&xas, folio))
				continue;
			break;
		}
		if (unlikely(!folio_try_get(folio))) {
			xas_reset(&xas);
			continue;
		}
		if (unlikely(folio != xas_reload(&xas))) {
			folio_put(folio);
			xas_reset(&xas);
			continue;
		}
		if (unlikely(!folio_test_uptodate(folio) ||
			     folio_test_readahead(folio) ||
			     folio_contain_hwpoisoned_page(folio))) {
			folio_put(folio);
			break;
		}

		fsize = folio_size(folio);
		offset = (pos + done) & (fsize - 1);
		n = min(len - done, fsize - offset);
		iou_buf_add_folio(desc, folio, n, offset);
		done += n;
		if (done == len || iou_buf_full(desc))
			break;
		if (fsize > PAGE_SIZE)
			xas_advance(&xas, folio_next_index(folio) - 1);
	}
	rcu_read_unlock();
	return done;
}

/* What read(2) does with the pages that it has copied from. */
static void lend_accessed(struct file *file, loff_t pos, size_t len,
			  struct iou_buf_desc *desc)
{
	bool writably_mapped = mapping_writably_mapped(file->f_mapping);
	loff_t prev = file->f_ra.prev_pos - 1;
	unsigned int i;

	for (i = 0; i < desc->nr_bvecs; i++) {
		struct folio *folio = bvec_folio(&desc->bvec[i]);
		unsigned int shift = folio_shift(folio);

		/* a read that goes on in the same folio does not count twice */
		if (i || pos >> shift != prev >> shift)
			folio_mark_accessed(folio);
		if (unlikely(writably_mapped))
			flush_dcache_folio(folio);
	}
	file->f_ra.prev_pos = pos + len;
}

/*
 * Move one buffer of a pipe to the lease, reference and all. Only pages that
 * belong to a page cache are lent, not copies of who knows what: those have
 * nothing to confirm.
 */
static int lend_pipe_buf(struct pipe_inode_info *pipe, struct pipe_buffer *buf,
			 struct iou_buf_desc *desc)
{
	struct bio_vec *last = NULL;
	int ret;

	if (!buf->ops->confirm && !is_zero_page(buf->page))
		return -ENOTSUPP;
	ret = pipe_buf_confirm(pipe, buf);
	if (unlikely(ret))
		return ret == -ENODATA ? 0 : ret;
	if (folio_contain_hwpoisoned_page(page_folio(buf->page)) &&
	    PageHWPoison(buf->page))
		return -EIO;

	if (desc->nr_bvecs)
		last = &desc->bvec[desc->nr_bvecs - 1];
	if (last && !is_zero_page(buf->page) &&
	    bvec_folio(last) == page_folio(buf->page) &&
	    bvec_phys(last) + last->bv_len ==
	    page_to_phys(buf->page) + buf->offset) {
		last->bv_len += buf->len;
		put_page(buf->page);
	} else if (iou_buf_full(desc)) {
		return 0;
	} else {
		iou_buf_add_page(desc, buf->page, buf->len, buf->offset);
	}
	/* not pipe_buf_release(): the reference has moved */
	buf->ops = NULL;
	return buf->len;
}

static int lend_actor(struct pipe_inode_info *pipe, struct splice_desc *sd)
{
	struct iou_buf_desc *desc = sd->u.data;
	size_t done = 0;

	while (!pipe_is_empty(pipe)) {
		struct pipe_buffer *buf = pipe_buf(pipe, pipe->tail);
		int ret;

		ret = lend_pipe_buf(pipe, buf, desc);
		if (ret <= 0)
			return done ?: ret;
		done += ret;
		pipe->tail++;
	}
	return done;
}

/* Lend what takes work. Blocks. Returns bytes, 0 at the end of the file. */
static ssize_t lend_spliced(struct file *file, loff_t pos, size_t len,
			    struct iou_buf_desc *desc)
{
	struct splice_desc sd = {
		.total_len	= len,
		.pos		= pos,
		.u.data		= desc,
	};

	return splice_direct_to_actor(file, &sd, lend_actor);
}

/*
 * The kind of a file. The page cache may be read behind the file's back only
 * where ->read_iter() does nothing but that: a file system of a network or a
 * cluster would first find out whether the cache is still good, and some
 * files have a page cache that nobody may read (memfd_secret(2), the memory
 * of a guest). What is not known to be harmless goes through ->splice_read().
 */
static enum getbuf_kind getbuf_kind(struct file *file)
{
	const struct file_operations *fops = file->f_op;
	struct address_space *mapping = file->f_mapping;
	umode_t mode = file_inode(file)->i_mode;
	unsigned long magic;

	if (!S_ISREG(mode) && !S_ISBLK(mode))
		return GETBUF_NONE;
	if (fops->fop_flags & FOP_HUGE_PAGES)
		return fops->read_iter ? GETBUF_HUGETLB : GETBUF_NONE;
	if (!fops->read_iter || !fops->splice_read ||
	    fops->splice_read == copy_splice_read ||
	    !(file->f_mode & FMODE_LSEEK))
		return GETBUF_NONE;

	if (S_ISBLK(mode))
		return GETBUF_CACHED_LOCKED;
	if (shmem_mapping(mapping))
		return GETBUF_CACHED;
	magic = mapping->host->i_sb->s_magic;
	if (magic == XFS_SUPER_MAGIC)
		return GETBUF_CACHED_LOCKED;
	if (fops->fop_flags & FOP_BUFFER_RASYNC)
		return GETBUF_CACHED;
	if (fops->splice_read == filemap_splice_read &&
	    (fops->read_iter == generic_file_read_iter ||
	     magic == EROFS_SUPER_MAGIC_V1))
		return GETBUF_CACHED;
	return GETBUF_SPLICE;
}

/* May this opening of a file be lent from, by who has it? */
static int getbuf_may_lend(struct file *file, enum getbuf_kind kind)
{
	/* either can change while the file is open */
	if (kind == GETBUF_NONE || IS_DAX(file->f_mapping->host) ||
	    (file->f_flags & O_DIRECT))
		return -ENOTSUPP;
	if (!(file->f_mode & FMODE_READ))
		return -EBADF;
	return 0;
}

/*
 * Lend pages. Has the contract of ->iou_get_buf(): returns the number of
 * bytes, 0 at the end of the file, or
 *   -ENOTSUPP   these bytes are not in a page cache
 *   -EAGAIN     it takes waiting, and IOU_GET_BUF_F_NOWAIT forbids that
 *   another     as read(2) would have it
 */
static int getbuf_lend(struct file *file, enum getbuf_kind kind,
		struct iou_get_buf_info *info)
{
	bool nowait = info->flags & IOU_GET_BUF_F_NOWAIT;
	struct address_space *mapping = file->f_mapping;
	struct iou_buf_desc *desc = info->desc;
	struct inode *inode = mapping->host;
	loff_t isize, pos = info->off;
	size_t len = info->len;
	size_t done = 0;
	ssize_t ret;

	if (unlikely(!len || pos >= inode->i_sb->s_maxbytes))
		return 0;
	len = min_t(u64, len, inode->i_sb->s_maxbytes - pos);

	if (unlikely(kind == GETBUF_SPLICE))
		goto splice;

	isize = i_size_read(inode);
	if (unlikely(pos >= isize))
		goto accessed;
	/* what lies beyond the end would only have to be given back */
	len = min_t(u64, len, isize - pos);

	if (kind == GETBUF_CACHED_LOCKED) {
		if (!nowait)
			inode_lock_shared(inode);
		else if (!inode_trylock_shared(inode))
			return -EAGAIN;
	}
	done = filemap_lend_cached(mapping, pos, len, desc);
	if (kind == GETBUF_CACHED_LOCKED)
		inode_unlock_shared(inode);

	if (unlikely(done < len && !iou_buf_full(desc))) {
		if (kind == GETBUF_HUGETLB) {
			/* a hole, or poison */
			if (!done)
				return -ENOTSUPP;
		} else if (nowait) {
			iou_buf_trim(desc, done, 0);
			return -EAGAIN;
		}
	}

	/*
	 * The part of a page that is past the end is zeroed when the page is
	 * read. If the file was cut short since, it may be stale: only an
	 * i_size that was read after the page was seen uptodate tells.
	 */
	isize = i_size_read(inode);
	if (unlikely(pos + done > isize)) {
		done = iou_buf_trim(desc, done, pos < isize ? isize - pos : 0);
		goto accessed;
	}
	if (likely(done)) {
		lend_accessed(file, pos, done, desc);
		if (likely(done == len || iou_buf_full(desc) ||
			   kind == GETBUF_HUGETLB))
			goto accessed;
	}

splice:
	if (nowait)
		return -EAGAIN;
	ret = lend_spliced(file, pos + done, len - done, desc);
	if (ret < 0 && !done)
		return ret;
	return done + max(ret, 0);

accessed:
	file_accessed(file);
	return done;
}

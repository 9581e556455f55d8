/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The binary interface of uring-getbuf: leasing a file's own memory through
 * a registered-buffer slot of an io_uring.
 *
 * This file is the one source of truth. The kernel patch series and the
 * module include it, C programs include it, and the Rust bindings are
 * generated from it. It needs nothing but <linux/types.h>, and compiles as
 * C99, C11 and C++17.
 *
 * Three parts:
 *   1. the requests GET_BUF and PUT_BUF of a kernel that has the opcode;
 *   2. the contract between the caller of a fetch and a provider of buffers,
 *      inside the kernel (->iou_get_buf) and in user space alike;
 *   3. the commands of /dev/getbuf, for IORING_OP_URING_CMD on a kernel that
 *      has the module.
 *
 * All structures have the same layout on every 64-bit target. 32-bit targets
 * are not supported.
 */
#ifndef GETBUF_UAPI_H
#define GETBUF_UAPI_H

#include <linux/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * ---------------------------------------------------------------------------
 * 1. The requests
 * ---------------------------------------------------------------------------
 *
 * The number of an opcode belongs to the kernel tree that carries it. 49 was
 * the tail of the table when the RFC was posted (Linux 6.4-rc); mainline gave
 * 49 to IORING_OP_READ_MULTISHOT in 6.7. Never assume one of these numbers:
 * ask the running kernel by behaviour. A GET_BUF sent to an eventfd, without
 * IOSQE_BUFFER_SELECT, answers -GETBUF_ENOTSUPP where the number is GET_BUF
 * and -EINVAL where it is not.
 *
 * GET_BUF: fetch a buffer from a file and install it in a slot.
 *   fd          the source (IOSQE_FIXED_FILE allowed)
 *   off         file offset in bytes
 *   len         bytes wanted
 *   buf_index   the destination slot
 *   rw_flags    IORING_GET_BUF_* (the RFC: must be 0)
 *   ioprio, addr, splice_fd_in, addr3     must be 0, else -EINVAL
 * cqe.res: the number of bytes installed (0 at end of file, with an empty
 * buffer installed), or
 *   -GETBUF_ENOTSUPP  this kind of file cannot lend its memory, or cannot for
 *                     this fetch (O_DIRECT, DAX, some buffers of pipes)
 *   -EFAULT           no such slot
 *   -EINVAL           slot taken, or a field that must be 0 is not
 *   -ENOMEM           no memory, or more than RLIMIT_MEMLOCK lets leases pin
 *   any other         the source's own error, as read(2) would give it
 * The slot holds a source: consumers address it by offset, 0-based, and
 * cannot write into it (-EFAULT).
 *
 * PUT_BUF: empty a slot. The source gets its buffer back when the last
 * request that uses it is done; the request itself does not wait.
 *   buf_index   the slot
 *   all fields but fd, flags, personality and user_data must be 0
 * cqe.res: 0, or
 *   -EINVAL           no such slot, nothing in it, or a field is not 0
 *   -EBUSY            the slot holds memory that the program registered
 * It empties a slot of any memory of the kernel's, a driver's as well.
 */
#define IORING_OP_GET_BUF_RFC	49	/* the RFC's tree, Linux 6.4-rc */
#define IORING_OP_GET_BUF_7_3	65	/* kernel/patches/7.3 of this project */

/* PUT_BUF, where a tree has it, is the number after GET_BUF. */
#define IORING_OP_PUT_BUF_AFTER(get_buf)	((get_buf) + 1)
#define IORING_OP_PUT_BUF_7_3	66

/*
 * GET_BUF, rw_flags: a slot that holds a leased buffer is not "taken"; the
 * old buffer is released as by PUT_BUF and the new one takes its place. On
 * error, and on -EAGAIN, the old buffer stays. Not in the RFC.
 */
#define IORING_GET_BUF_REPLACE	(1U << 0)

/*
 * GET_BUF, rw_flags: hand the buffer to the next request of the link, which
 * uses it in the place of the slot that it names; its offsets are those of
 * the buffer. It is released when that request is done, however it ends, and
 * no PUT_BUF is needed. The slot buf_index is only for a buffer that nobody
 * takes: it has to be free, and is filled if the fetch is short and so breaks
 * the link (IOSQE_IO_LINK; with IOSQE_IO_HARDLINK the next request gets what
 * there is). An error breaks the link, hard or not. -EINVAL: there is no next
 * request, it is a timeout, or it selects a buffer (IOSQE_BUFFER_SELECT); or
 * together with IORING_GET_BUF_REPLACE. Not in the RFC. A kernel that knows
 * it answers a GET_BUF with this flag on an eventfd with -GETBUF_ENOTSUPP,
 * one that does not with -EINVAL.
 */
#define IORING_GET_BUF_LINKED	(1U << 1)

/*
 * What GET_BUF answers for a file that has no ->iou_get_buf. It is the
 * kernel's internal ENOTSUPP, which strerror(3) does not know, and is not
 * EOPNOTSUPP (95).
 */
#define GETBUF_ENOTSUPP		524

/*
 * ---------------------------------------------------------------------------
 * 2. Providers
 * ---------------------------------------------------------------------------
 */

/*
 * The provider must not wait for anything. What it cannot do at once it
 * answers with -EAGAIN, having changed nothing.
 */
#define IOU_GET_BUF_F_NOWAIT	(1U << 0)

struct iou_buf_desc;

#ifndef __KERNEL__
/*
 * One piece of a buffer, in the layout of the kernel's own struct bio_vec.
 * In user space bv_page is the address that bv_offset counts from.
 */
struct bio_vec {
	void *bv_page;
	__u32 bv_len;
	__u32 bv_offset;
};
#else
struct bio_vec;
#endif

/* What is asked of a provider. */
struct iou_get_buf_info {
	__kernel_loff_t off;		/* offset in the source, bytes */
	__kernel_size_t len;		/* bytes wanted */
	__u32 flags;			/* IOU_GET_BUF_F_* */
	struct iou_buf_desc *desc;	/* where the answer goes */
};

/*
 * What a provider answers with. It fills bvec[0] to bvec[nr_bvecs - 1], sets
 * release and priv, and returns the number of bytes. On error nr_bvecs stays
 * 0. Where nr_bvecs is not 0, release is called exactly once, when nothing
 * uses the buffer any more. ("priv" is the RFC's "private", which C++ does
 * not allow as a name.)
 */
struct iou_buf_desc {
	__u32 nr_bvecs;
	__u32 max_bvecs;		/* room in bvec */
	struct bio_vec *bvec;
	void (*release)(struct iou_buf_desc *desc);
	void *priv;
};

/*
 * ---------------------------------------------------------------------------
 * 3. /dev/getbuf
 * ---------------------------------------------------------------------------
 *
 * IORING_OP_URING_CMD with fd = /dev/getbuf, or a descriptor that
 * GETBUF_CMD_BIND made, cmd_op = GETBUF_CMD_*, and one of the 16-byte
 * payloads below in the command area of a 64-byte SQE (byte 48).
 *
 * Every payload carries the version of this interface. What is reserved must
 * be 0, and so must every SQE field that a command does not name; the answer
 * is -EINVAL otherwise. An unknown command is -EOPNOTSUPP, an unknown version
 * -EPROTONOSUPPORT. A later version may give reserved fields a meaning, and
 * never changes one that has it.
 */
#define GETBUF_ABI_VERSION	1
#define GETBUF_DEVICE		"/dev/getbuf"

/*
 * Fetch: struct getbuf_cmd_fetch; sqe->len = bytes wanted. As GET_BUF, but
 *   0                 end of file: nothing is installed
 *   -EINVAL           no such slot, or a field that must be 0 is not
 *   -EBUSY            slot taken
 *   -GETBUF_ENOTSUPP  this kind of file cannot lend its memory
 *   -EDQUOT           the caller's memory limit (see struct getbuf_query)
 */
#define GETBUF_CMD_FETCH	0x47420001U
/* Release: struct getbuf_cmd_release. As PUT_BUF. */
#define GETBUF_CMD_RELEASE	0x47420002U
/*
 * Copy out: struct getbuf_cmd_copy_out; sqe->addr = where to, sqe->len = how
 * many bytes; sqe->uring_cmd_flags = IORING_URING_CMD_FIXED and
 * sqe->buf_index = the slot, so that the request holds the buffer. Returns the
 * bytes copied, fewer where the lease ends sooner.
 *   -EINVAL           no such slot, no memory of the kernel's in it, or a
 *                     field is not as it must be
 *   -EFAULT           sqe->addr cannot be written
 */
#define GETBUF_CMD_COPY_OUT	0x47420003U
/*
 * Query: struct getbuf_cmd_query; sqe->addr = a struct getbuf_query,
 * sqe->len = its size. Returns the bytes filled, which is the smaller of the
 * two sides' sizes. Answered for every version.
 */
#define GETBUF_CMD_QUERY	0x47420004U
/*
 * Bind: struct getbuf_cmd_bind. Returns a new descriptor, close-on-exec, that
 * answers the same commands with the source already found: a fetch on it
 * looks nothing up, and its payload names GETBUF_FD_BOUND as the source.
 */
#define GETBUF_CMD_BIND		0x47420005U

/* getbuf_cmd_fetch.fd on a bound descriptor */
#define GETBUF_FD_BOUND		(-1)

/*
 * getbuf_cmd_fetch.flags: as IORING_GET_BUF_REPLACE. Only where the query
 * names GETBUF_FEAT_REPLACE; -EINVAL otherwise.
 */
#define GETBUF_FETCH_REPLACE	(1U << 0)

struct getbuf_cmd_fetch {
	__s32 fd;		/* the source, or GETBUF_FD_BOUND */
	__u16 slot;
	__u8 flags;		/* GETBUF_FETCH_* */
	__u8 version;		/* GETBUF_ABI_VERSION */
	__u64 off;		/* offset in the source, bytes */
};

struct getbuf_cmd_release {
	__u32 reserved0;
	__u16 slot;
	__u8 flags;		/* 0 */
	__u8 version;
	__u64 reserved1;
};

struct getbuf_cmd_copy_out {
	__u32 reserved0;
	__u16 slot;
	__u8 flags;		/* 0 */
	__u8 version;
	__u64 off;		/* offset in the lease, bytes */
};

struct getbuf_cmd_query {
	__u32 reserved0;
	__u16 reserved1;
	__u8 flags;		/* 0 */
	__u8 version;
	__u64 reserved2;
};

struct getbuf_cmd_bind {
	__s32 fd;		/* the source */
	__u16 reserved0;
	__u8 flags;		/* 0 */
	__u8 version;
	__u64 reserved1;
};

/* getbuf_query.features */
#define GETBUF_FEAT_BIND	(1ULL << 0)
#define GETBUF_FEAT_COPY_OUT	(1ULL << 1)
#define GETBUF_FEAT_REPLACE	(1ULL << 2)

/* What GETBUF_CMD_QUERY fills in. It only ever grows at its end. */
struct getbuf_query {
	__u32 size;		/* of the structure, as the kernel knows it */
	__u32 version;		/* highest GETBUF_ABI_VERSION it answers */
	__u64 features;		/* GETBUF_FEAT_* */
	__u64 max_fetch;	/* most bytes one fetch installs */
	__u64 pinned;		/* bytes in leases made through this opening */
	__u64 pinned_limit;	/* most bytes they may hold; ~0 = no limit */
	__u64 reserved[3];	/* 0 */
};

#ifdef __cplusplus
}
#endif

#endif /* GETBUF_UAPI_H */

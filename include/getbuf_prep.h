/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The raw requests of getbuf_uapi.h on a struct io_uring_sqe, in the manner of
 * liburing's io_uring_prep_*(). Nothing has to be linked.
 *
 * It takes struct io_uring_sqe from <liburing.h> if that was included before,
 * in any version since 2.1, and from <linux/io_uring.h> otherwise. A program
 * that uses liburing includes <liburing.h> first.
 *
 * C99 or newer, or C++. See io_uring_prep_get_buf(3).
 */
#ifndef GETBUF_PREP_H
#define GETBUF_PREP_H

#ifndef LINUX_IO_URING_H
#include <linux/io_uring.h>
#endif
#include <errno.h>
#include <string.h>

#include "getbuf_uapi.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What a program that uses these requests needs beside them, and what headers
 * before Linux 5.19, 6.0 and 7.2 do not have. The opcodes are enumerators
 * where they are known, so these have names of their own.
 */
#define GETBUF_OP_URING_CMD	46

#ifndef IORING_RSRC_REGISTER_SPARSE
#define IORING_RSRC_REGISTER_SPARSE	(1U << 0)
#endif
#ifndef IORING_RECVSEND_FIXED_BUF
#define IORING_RECVSEND_FIXED_BUF	(1U << 2)
#endif

/* Where the fields are that old headers do not name. */
#define GETBUF_SQE_CMD_OP	8
#define GETBUF_SQE_CMD		48

static inline void getbuf_prep_clear(struct io_uring_sqe *sqe, __u8 opcode,
				     int fd)
{
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = opcode;
	sqe->fd = fd;
}

/*
 * Fetch len bytes at offset of fd into a slot of the ring's table. opcode: the
 * number that this kernel gives to GET_BUF, never a constant; see
 * getbuf_uapi.h. flags: 0, IORING_GET_BUF_REPLACE, or IORING_GET_BUF_LINKED in
 * a link: the next request gets the buffer, and the slot stays empty.
 */
static inline void io_uring_prep_get_buf(struct io_uring_sqe *sqe, __u8 opcode,
					 int fd, __u64 offset, __u32 len,
					 __u16 slot, __u32 flags)
{
	getbuf_prep_clear(sqe, opcode, fd);
	sqe->off = offset;
	sqe->len = len;
	sqe->rw_flags = (__kernel_rwf_t)flags;
	sqe->buf_index = slot;
}

/* Empty a slot. opcode: the number that this kernel gives to PUT_BUF. */
static inline void io_uring_prep_put_buf(struct io_uring_sqe *sqe, __u8 opcode,
					 __u16 slot)
{
	getbuf_prep_clear(sqe, opcode, -1);
	sqe->buf_index = slot;
}

/* A command of /dev/getbuf: one of the payloads of getbuf_uapi.h. */
static inline void getbuf_prep_cmd(struct io_uring_sqe *sqe, int device,
				   __u32 cmd_op, const void *payload)
{
	getbuf_prep_clear(sqe, GETBUF_OP_URING_CMD, device);
	memcpy((char *)sqe + GETBUF_SQE_CMD_OP, &cmd_op, sizeof(cmd_op));
	memcpy((char *)sqe + GETBUF_SQE_CMD, payload, 16);
}

/*
 * GETBUF_CMD_FETCH. fd: the source, or GETBUF_FD_BOUND where device is bound
 * to it. flags: GETBUF_FETCH_REPLACE or 0.
 */
static inline void io_uring_prep_getbuf_fetch(struct io_uring_sqe *sqe,
					      int device, int fd, __u64 offset,
					      __u32 len, __u16 slot, __u8 flags)
{
	struct getbuf_cmd_fetch cmd;

	memset(&cmd, 0, sizeof(cmd));
	cmd.fd = fd;
	cmd.slot = slot;
	cmd.flags = flags;
	cmd.version = GETBUF_ABI_VERSION;
	cmd.off = offset;
	getbuf_prep_cmd(sqe, device, GETBUF_CMD_FETCH, &cmd);
	sqe->len = len;
}

/* GETBUF_CMD_RELEASE. */
static inline void io_uring_prep_getbuf_release(struct io_uring_sqe *sqe,
						int device, __u16 slot)
{
	struct getbuf_cmd_release cmd;

	memset(&cmd, 0, sizeof(cmd));
	cmd.slot = slot;
	cmd.version = GETBUF_ABI_VERSION;
	getbuf_prep_cmd(sqe, device, GETBUF_CMD_RELEASE, &cmd);
}

/* GETBUF_CMD_COPY_OUT: len bytes at offset of the lease to to. */
static inline void io_uring_prep_getbuf_copy_out(struct io_uring_sqe *sqe,
						 int device, __u16 slot,
						 __u64 offset, void *to,
						 __u32 len)
{
	struct getbuf_cmd_copy_out cmd;

	memset(&cmd, 0, sizeof(cmd));
	cmd.slot = slot;
	cmd.version = GETBUF_ABI_VERSION;
	cmd.off = offset;
	getbuf_prep_cmd(sqe, device, GETBUF_CMD_COPY_OUT, &cmd);
	sqe->addr = (__u64)(unsigned long)to;
	sqe->len = len;
}

/* GETBUF_CMD_QUERY. answer stays valid until the request has completed. */
static inline void io_uring_prep_getbuf_query(struct io_uring_sqe *sqe,
					      int device,
					      struct getbuf_query *answer)
{
	struct getbuf_cmd_query cmd;

	memset(&cmd, 0, sizeof(cmd));
	cmd.version = GETBUF_ABI_VERSION;
	getbuf_prep_cmd(sqe, device, GETBUF_CMD_QUERY, &cmd);
	sqe->addr = (__u64)(unsigned long)answer;
	sqe->len = (__u32)sizeof(*answer);
}

/* GETBUF_CMD_BIND. The result is a descriptor. */
static inline void io_uring_prep_getbuf_bind(struct io_uring_sqe *sqe,
					     int device, int fd)
{
	struct getbuf_cmd_bind cmd;

	memset(&cmd, 0, sizeof(cmd));
	cmd.fd = fd;
	cmd.version = GETBUF_ABI_VERSION;
	getbuf_prep_cmd(sqe, device, GETBUF_CMD_BIND, &cmd);
}

#ifdef LIB_URING_H
/*
 * count SQEs for requests that belong together, such as those of a chain: all
 * of them, or none where the queue has no room for so many. 0; -EAGAIN: submit,
 * and try again. Only after <liburing.h>.
 */
static inline int getbuf_get_sqes(struct io_uring *ring,
				  struct io_uring_sqe **sqes, unsigned count)
{
	const unsigned shift = ring->flags & IORING_SETUP_SQE128 ? 1 : 0;
	struct io_uring_sq *sq = &ring->sq;
	const unsigned tail = sq->sqe_tail, mask = *sq->kring_mask;
	struct io_uring_sqe *sqe = sq->sqes + ((tail & mask) << shift);
	struct io_uring_sqe *const end = sq->sqes + ((mask + 1) << shift);
	unsigned i;

	if (io_uring_sq_space_left(ring) < count)
		return -EAGAIN;
	for (i = 0; i < count; i++) {
		sqes[i] = sqe;
		sqe += 1U << shift;
		if (sqe == end)
			sqe = sq->sqes;
	}
	sq->sqe_tail = tail + count;
	return 0;
}
#endif

#ifdef __cplusplus
}
#endif

#endif /* GETBUF_PREP_H */

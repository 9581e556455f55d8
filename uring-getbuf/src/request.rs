// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests as the kernel reads them: the mirror of an SQE, and builders in the `io-uring` crate's style.
//!
//! The builders make an [`Entry`], which is pushed as any other. Pushing is `unsafe` there; what the
//! caller promises by it is said with each builder.
//!
//! ```
//! use io_uring::types::Fd;
//! use uring_getbuf::request::{GetBuf, PutBuf};
//!
//! // The opcode comes from `Support::detect`; 65 is what the patches for Linux 7.3 use.
//! let get_buf = 65;
//! let fetch = GetBuf::new(get_buf, Fd(3), 4096, 0).offset(8192).build().user_data(1);
//! let release = PutBuf::new(get_buf + 1, 0).build().user_data(2);
//! # let _ = (fetch, release);
//! ```

use std::mem;
use std::os::fd::RawFd;

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode as ops, types};
use static_assertions::{assert_eq_align, assert_eq_size};
use uring_getbuf_sys as sys;

/// `IORING_OP_SEND`, from `linux/io_uring.h`. The `io-uring` crate cannot make it take a registered buffer.
const IORING_OP_SEND: u8 = 26;
/// `IORING_OP_URING_CMD` of `linux/io_uring.h` (Linux 5.19).
const IORING_OP_URING_CMD: u8 = 46;
/// `IORING_RECVSEND_FIXED_BUF` of `linux/io_uring.h`: on `SEND_ZC` since Linux 6.0, on `SEND` since 7.2.
const IORING_RECVSEND_FIXED_BUF: u16 = 1 << 2;
/// `IORING_URING_CMD_FIXED` of `linux/io_uring.h`: the command has a registered buffer.
const IORING_URING_CMD_FIXED: u32 = 1 << 0;

/// The file that a request names: a descriptor, or an index into the ring's registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file descriptor. It must stay open until the request has completed: since Linux 5.19 a
    /// request looks its file up when it runs, not when it is submitted.
    Fd(RawFd),
    /// An index into the table of registered files.
    Fixed(u32),
}

impl From<types::Fd> for Target {
    fn from(fd: types::Fd) -> Self {
        Self::Fd(fd.0)
    }
}

impl From<types::Fixed> for Target {
    fn from(index: types::Fixed) -> Self {
        Self::Fixed(index.0)
    }
}

/// `struct io_uring_sqe` of `linux/io_uring.h`, 64 bytes, as the words that hold its fields: whole
/// words stay in registers on their way to the queue, where fields of mixed sizes are copied through
/// memory one by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sqe {
    /// Opcode, flags, `ioprio`, file.
    head: u64,
    off: u64,
    addr: u64,
    /// `len`, and the flags of the operation.
    len: u64,
    pub(crate) user_data: u64,
    /// `buf_index`, personality, `file_index`.
    buffer: u64,
    cmd: [u64; 2],
}

assert_eq_size!(Sqe, Entry, [u8; 64]);
assert_eq_align!(Sqe, Entry, u64);
const _: () = assert!(mem::offset_of!(Sqe, user_data) == 32, "user_data");
const _: () = assert!(mem::offset_of!(Sqe, buffer) == 40, "buf_index");
const _: () = assert!(mem::offset_of!(Sqe, cmd) == 48, "cmd");

/// The word in which these lie one behind the other in memory.
#[inline]
const fn word(first: [u8; 4], second: [u8; 4]) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first, second);
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

impl Sqe {
    /// `ioprio` holds flags of some operations.
    #[inline]
    fn new(opcode: u8, ioprio: u16, target: Target) -> Self {
        let (fd, flags) = match target {
            Target::Fd(fd) => (fd, 0),
            Target::Fixed(index) => (index as i32, Flags::FIXED_FILE.bits()),
        };
        let [low, high] = ioprio.to_ne_bytes();
        Self { head: word([opcode, flags, low, high], fd.to_ne_bytes()), ..Self::default() }
    }

    /// `len`, with the flags of the operation.
    #[inline]
    fn len(self, len: u32, flags: u32) -> Self {
        Self { len: word(len.to_ne_bytes(), flags.to_ne_bytes()), ..self }
    }

    #[inline]
    fn buffer(self, index: u16) -> Self {
        let [low, high] = index.to_ne_bytes();
        Self { buffer: word([low, high, 0, 0], [0; 4]), ..self }
    }

    /// Adds flags such as those of links.
    #[inline]
    pub(crate) fn flags(mut self, flags: Flags) -> Self {
        self.head |= word([0, flags.bits(), 0, 0], [0; 4]);
        self
    }

    #[inline]
    pub(crate) fn user_data(self, user_data: u64) -> Self {
        Self { user_data, ..self }
    }

    /// The one place where a request becomes its `Entry`.
    #[inline]
    pub(crate) fn entry(self) -> Entry {
        // SAFETY: `Entry` is `repr(C)` around the kernel's `struct io_uring_sqe`. Size and
        // alignment are asserted above, and every bit pattern is a valid SQE: it is plain data
        // that only the kernel interprets.
        unsafe { mem::transmute::<Self, Entry>(self) }
    }
}

/// Bytes of a slot as a request names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// What the request's `addr` field gets: an address in the program's memory, or an offset into
    /// memory of the kernel's.
    pub(crate) addr: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// The index in the ring's table of registered buffers.
    pub(crate) index: u16,
}

impl Piece {
    #[inline]
    fn request(self, opcode: u8, ioprio: u16, target: Target, (off, flags): (u64, u32)) -> Sqe {
        let Self { addr, len, index } = self;
        let request = Sqe::new(opcode, ioprio, target).len(len, flags).buffer(index);
        Sqe { off, addr, ..request }
    }

    /// `IORING_OP_READ_FIXED`.
    #[inline]
    pub(crate) fn read(self, source: Target, offset: u64) -> Sqe {
        self.request(ops::ReadFixed::CODE, 0, source, (offset, 0))
    }

    /// `IORING_OP_WRITE_FIXED`.
    #[inline]
    pub(crate) fn write(self, sink: Target, offset: u64) -> Sqe {
        self.request(ops::WriteFixed::CODE, 0, sink, (offset, 0))
    }

    /// `IORING_OP_SEND` from the registered buffer (Linux 7.2). `flags` are those of `send(2)`.
    #[inline]
    pub(crate) fn send(self, sink: Target, flags: i32) -> Sqe {
        self.request(IORING_OP_SEND, IORING_RECVSEND_FIXED_BUF, sink, (0, flags as u32))
    }

    /// `IORING_OP_SEND` from the address, which is in the program's memory.
    #[inline]
    pub(crate) fn send_by_address(self, sink: Target, flags: i32) -> Sqe {
        Self { index: 0, ..self }.request(IORING_OP_SEND, 0, sink, (0, flags as u32))
    }

    /// `IORING_OP_SEND_ZC` from the registered buffer (Linux 6.0).
    #[inline]
    pub(crate) fn send_zc(self, sink: Target, flags: i32) -> Sqe {
        self.request(ops::SendZc::CODE, IORING_RECVSEND_FIXED_BUF, sink, (0, flags as u32))
    }
}

/// `IORING_OP_WRITEV_FIXED` (Linux 6.15). `ranges` must stay valid until the request has completed.
pub(crate) fn writev_fixed(
    (ranges, count): (*const libc::iovec, u32),
    index: u16,
    sink: Target,
    offset: u64,
) -> Sqe {
    let vector = Piece { addr: ranges as u64, len: count, index };
    vector.request(ops::WritevFixed::CODE, 0, sink, (offset, 0))
}

/// `IORING_OP_WRITEV`. `ranges` must stay valid until the request has completed.
pub(crate) fn writev((ranges, count): (*const libc::iovec, u32), sink: Target, offset: u64) -> Sqe {
    let vector = Piece { addr: ranges as u64, len: count, index: 0 };
    vector.request(ops::Writev::CODE, 0, sink, (offset, 0))
}

/// `IORING_OP_GET_BUF`: fetches a buffer from a file and installs it in a slot.
///
/// The result is the number of bytes in the slot; see `getbuf_uapi.h` for every error. Pushing it
/// is sound whatever its fields are; the slot must not be one that other requests in flight rely
/// on.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct GetBuf {
    opcode: u8,
    source: Target,
    len: u32,
    slot: u16,
    offset: u64,
    flags: u32,
}

impl GetBuf {
    /// Fetches from the start of `source`.
    ///
    /// `opcode` is the number that the running kernel gives to `GET_BUF`: take it from
    /// [`Support::get_buf_opcode`](crate::probe::Support::get_buf_opcode).
    #[inline]
    pub fn new(opcode: u8, source: impl Into<Target>, len: u32, slot: u16) -> Self {
        Self { opcode, source: source.into(), len, slot, offset: 0, flags: 0 }
    }

    /// Fetches from this offset in the source, in bytes. Default 0.
    pub const fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Releases what the slot holds and takes its place, instead of failing because it is taken.
    ///
    /// The RFC does not have it and answers `-EINVAL`.
    pub const fn replace(mut self) -> Self {
        self.flags |= sys::IORING_GET_BUF_REPLACE;
        self
    }

    /// Hands the buffer to the next request of the link instead of to the slot.
    ///
    /// The buffer is released when that request is done, and no [`PutBuf`] is needed. The slot has to
    /// be free, and takes the buffer only if the fetch is short and that breaks the link. The RFC does
    /// not have it and answers `-EINVAL`;
    /// [`Features::linked_fetch`](crate::probe::Features::linked_fetch) tells.
    pub const fn linked(mut self) -> Self {
        self.flags |= sys::IORING_GET_BUF_LINKED;
        self
    }

    /// Makes the request.
    #[inline]
    #[must_use]
    pub fn build(self) -> Entry {
        self.sqe().entry()
    }

    #[inline]
    pub(crate) fn sqe(self) -> Sqe {
        let request = Sqe::new(self.opcode, 0, self.source).len(self.len, self.flags);
        Sqe { off: self.offset, ..request.buffer(self.slot) }
    }
}

/// `IORING_OP_PUT_BUF`: empties a slot.
///
/// The file gets its buffer back when the last request that uses it is done; this request does not
/// wait for that.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct PutBuf {
    opcode: u8,
    slot: u16,
}

impl PutBuf {
    /// Empties `slot`. `opcode` comes from
    /// [`Support::put_buf_opcode`](crate::probe::Support::put_buf_opcode).
    #[inline]
    pub const fn new(opcode: u8, slot: u16) -> Self {
        Self { opcode, slot }
    }

    /// Makes the request.
    #[inline]
    #[must_use]
    pub fn build(self) -> Entry {
        self.sqe().entry()
    }

    #[inline]
    pub(crate) fn sqe(self) -> Sqe {
        Sqe::new(self.opcode, 0, Target::Fd(-1)).buffer(self.slot)
    }
}

/// A command of `/dev/getbuf`: its number, and its 16 bytes of payload.
#[inline]
fn command(device: Target, number: u32, cmd: [u64; 2]) -> Sqe {
    let off = word(number.to_ne_bytes(), [0; 4]);
    Sqe { off, cmd, ..Sqe::new(IORING_OP_URING_CMD, 0, device) }
}

/// The first word of every payload: a descriptor or nothing, the slot, flags, the version.
#[inline]
const fn header(first: u32, slot: u16) -> u64 {
    first as u64 | (slot as u64) << 32 | (sys::GETBUF_ABI_VERSION as u64) << 56
}

/// `GETBUF_CMD_FETCH`. `source` is a descriptor, or `GETBUF_FD_BOUND` on a bound device.
#[inline]
pub(crate) fn module_fetch(device: Target, source: RawFd, offset: u64, len: u32, slot: u16) -> Sqe {
    let cmd = [header(source as u32, slot), offset];
    command(device, sys::GETBUF_CMD_FETCH, cmd).len(len, 0)
}

/// `GETBUF_CMD_RELEASE`.
#[inline]
pub(crate) fn module_release(device: Target, slot: u16) -> Sqe {
    command(device, sys::GETBUF_CMD_RELEASE, [header(0, slot), 0])
}

/// `GETBUF_CMD_COPY_OUT`. `to` must stay valid until the request has completed.
pub(crate) fn module_copy_out(device: Target, slot: u16, offset: u32, to: u64, len: u32) -> Sqe {
    let cmd = [header(0, slot), u64::from(offset)];
    // The kernel holds the buffer while it is copied from, and so has to know of it.
    let request = command(device, sys::GETBUF_CMD_COPY_OUT, cmd);
    Sqe { addr: to, ..request.len(len, IORING_URING_CMD_FIXED).buffer(slot) }
}

/// `GETBUF_CMD_BIND`.
pub(crate) fn module_bind(device: Target, source: RawFd) -> Sqe {
    command(device, sys::GETBUF_CMD_BIND, [header(source as u32, 0), 0])
}

/// `GETBUF_CMD_QUERY`. `answer` must stay valid until the request has completed.
pub(crate) fn module_query(device: Target, answer: *mut sys::getbuf_query) -> Sqe {
    let len = size_of::<sys::getbuf_query>() as u32;
    let request = command(device, sys::GETBUF_CMD_QUERY, [header(0, 0), 0]);
    Sqe { addr: answer as u64, ..request.len(len, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_io_uring_crate() {
        assert_eq!(IORING_OP_SEND, ops::Send::CODE);
        assert_eq!(IORING_OP_URING_CMD, ops::UringCmd16::CODE);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builders of the requests that the `io-uring` crate does not know, in its style.
//!
//! They make an [`Entry`], which is pushed as any other; pushing is `unsafe` there, and what the
//! caller promises by it is said with each builder.
//!
//! ```
//! use io_uring::types::Fd;
//! use uring_getbuf::opcode::{GetBuf, PutBuf};
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
use io_uring::types;
use static_assertions::{assert_eq_align, assert_eq_size, const_assert};
use uring_getbuf_sys as sys;

/// `IORING_OP_SEND`, from `linux/io_uring.h`.
const IORING_OP_SEND: u8 = 26;
/// `IORING_OP_URING_CMD`, likewise (Linux 5.19).
const IORING_OP_URING_CMD: u8 = 46;
/// `IORING_RECVSEND_FIXED_BUF`, likewise; on a plain send since Linux 7.2.
const IORING_RECVSEND_FIXED_BUF: u16 = 1 << 2;
/// `IORING_URING_CMD_FIXED`, likewise: the command has a registered buffer.
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
/// words stay in registers on their way to the queue, where fields of mixed sizes, and the unions
/// that are in an [`Entry`], are copied through memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Sqe {
    /// Opcode, flags, `ioprio`, file.
    head: u64,
    pub(crate) off: u64,
    pub(crate) addr: u64,
    /// `len`, and the flags of the operation.
    len: u64,
    pub(crate) user_data: u64,
    /// `buf_index`, personality, `file_index`.
    buffer: u64,
    cmd: [u64; 2],
}

assert_eq_size!(Sqe, Entry, [u8; 64]);
assert_eq_align!(Sqe, Entry, u64);
const_assert!(mem::offset_of!(Sqe, buffer) == 40);
const_assert!(mem::offset_of!(Sqe, cmd) == 48);

/// The word in which these two lie one behind the other in memory.
#[inline(always)]
const fn word(first: [u8; 4], second: [u8; 4]) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first, second);
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

impl Sqe {
    /// `ioprio` holds flags of some operations.
    #[inline(always)]
    fn new(opcode: u8, ioprio: u16, target: Target) -> Self {
        let (fd, flags) = match target {
            Target::Fd(fd) => (fd, 0),
            Target::Fixed(index) => (index as i32, Flags::FIXED_FILE.bits()),
        };
        let [low, high] = ioprio.to_ne_bytes();
        Self {
            head: word([opcode, flags, low, high], fd.to_ne_bytes()),
            off: 0,
            addr: 0,
            len: 0,
            user_data: 0,
            buffer: 0,
            cmd: [0; 2],
        }
    }

    #[inline(always)]
    fn on(opcode: u8, target: Target) -> Self {
        Self::new(opcode, 0, target)
    }

    /// `len`, with the flags of the operation.
    #[inline(always)]
    fn len(mut self, len: u32, flags: u32) -> Self {
        self.len = word(len.to_ne_bytes(), flags.to_ne_bytes());
        self
    }

    #[inline(always)]
    fn buffer(mut self, index: u16) -> Self {
        let [low, high] = index.to_ne_bytes();
        self.buffer = word([low, high, 0, 0], [0; 4]);
        self
    }

    /// The same of other bytes of a registered buffer, from or to another offset.
    #[inline(always)]
    pub(crate) fn with(self, addr: u64, index: u16, off: u64) -> Self {
        Self { addr, off, ..self }.buffer(index)
    }

    /// Adds flags.
    #[inline(always)]
    pub(crate) fn flags(mut self, flags: Flags) -> Self {
        self.head |= word([0, flags.bits(), 0, 0], [0; 4]);
        self
    }

    #[inline(always)]
    pub(crate) fn user_data(mut self, user_data: u64) -> Self {
        self.user_data = user_data;
        self
    }

    /// The one place where a request becomes its `Entry`.
    #[inline(always)]
    pub(crate) fn entry(self) -> Entry {
        // SAFETY: `Entry` is `repr(C)` around the kernel's `struct io_uring_sqe`. Size and
        // alignment are asserted above, and every bit pattern is a valid SQE: it is plain data
        // that only the kernel interprets.
        unsafe { mem::transmute::<Sqe, Entry>(self) }
    }
}

impl From<Entry> for Sqe {
    #[inline]
    fn from(entry: Entry) -> Self {
        // SAFETY: the reverse of `Sqe::entry`, and every bit pattern is eight words.
        unsafe { mem::transmute::<Entry, Sqe>(entry) }
    }
}

/// `IORING_OP_READ_FIXED`.
#[inline(always)]
pub(crate) fn read_fixed(source: Target, addr: u64, len: u32, buf_index: u16, offset: u64) -> Sqe {
    let sqe = Sqe::on(io_uring::opcode::ReadFixed::CODE, source).len(len, 0).buffer(buf_index);
    Sqe { addr, off: offset, ..sqe }
}

/// `IORING_OP_WRITE_FIXED`.
#[inline(always)]
pub(crate) fn write_fixed(sink: Target, addr: u64, len: u32, buf_index: u16, offset: u64) -> Sqe {
    let sqe = Sqe::on(io_uring::opcode::WriteFixed::CODE, sink).len(len, 0).buffer(buf_index);
    Sqe { addr, off: offset, ..sqe }
}

/// `IORING_OP_GET_BUF`: fetch a buffer from a file and install it in a slot.
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
    /// `opcode` is the number that the running kernel gives to `GET_BUF`: take it from
    /// [`Support::get_buf_opcode`](crate::probe::Support::get_buf_opcode).
    #[inline]
    pub fn new(opcode: u8, source: impl Into<Target>, len: u32, slot: u16) -> Self {
        Self { opcode, source: source.into(), len, slot, offset: 0, flags: 0 }
    }

    /// Offset in the source, in bytes. Default 0.
    pub const fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Release what the slot holds and take its place, instead of failing because it is taken.
    /// Not in the RFC, where it is `-EINVAL`.
    pub const fn replace(mut self) -> Self {
        self.flags |= sys::IORING_GET_BUF_REPLACE;
        self
    }

    /// Hand the buffer to the next request of the link instead of to the slot. It is released when
    /// that request is done, and no [`PutBuf`] is needed; the slot has to be free, and takes the
    /// buffer only if the fetch is short and that breaks the link.
    /// Not in the RFC, where it is `-EINVAL`;
    /// [`Features::linked_fetch`](crate::probe::Features::linked_fetch) tells.
    pub const fn linked(mut self) -> Self {
        self.flags |= sys::IORING_GET_BUF_LINKED;
        self
    }

    /// The request.
    #[inline]
    #[must_use]
    pub fn build(self) -> Entry {
        self.sqe().entry()
    }

    #[inline(always)]
    pub(crate) fn sqe(self) -> Sqe {
        let sqe = Sqe::on(self.opcode, self.source).len(self.len, self.flags).buffer(self.slot);
        Sqe { off: self.offset, ..sqe }
    }
}

/// `IORING_OP_PUT_BUF`: empty a slot. The file gets its buffer back when the last request that
/// uses it is done; this request does not wait for that.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct PutBuf {
    opcode: u8,
    slot: u16,
}

impl PutBuf {
    /// `opcode`: from [`Support::put_buf_opcode`](crate::probe::Support::put_buf_opcode).
    pub const fn new(opcode: u8, slot: u16) -> Self {
        Self { opcode, slot }
    }

    /// The request.
    #[inline]
    #[must_use]
    pub fn build(self) -> Entry {
        self.sqe().entry()
    }

    #[inline(always)]
    pub(crate) fn sqe(self) -> Sqe {
        Sqe::on(self.opcode, Target::Fd(-1)).buffer(self.slot)
    }
}

/// `IORING_OP_SEND` from a registered buffer (`IORING_RECVSEND_FIXED_BUF`, Linux 7.2), which the
/// `io-uring` crate's `Send` cannot say.
#[inline]
pub(crate) fn send_fixed(sink: Target, addr: u64, len: u32, buf_index: u16, flags: i32) -> Sqe {
    let sqe = Sqe::new(IORING_OP_SEND, IORING_RECVSEND_FIXED_BUF, sink);
    Sqe { addr, ..sqe.len(len, flags as u32).buffer(buf_index) }
}

/// A command of `/dev/getbuf`. The payloads are 16 bytes of plain data, so every one of them is
/// two words.
#[inline]
fn command(device: Target, cmd_op: u32, addr: u64, len: u32, cmd: [u64; 2]) -> Sqe {
    let off = word(cmd_op.to_ne_bytes(), [0; 4]);
    Sqe { off, addr, cmd, ..Sqe::on(IORING_OP_URING_CMD, device).len(len, 0) }
}

/// The second half of the first word of every payload: slot, flags, version.
const fn header(first: u32, slot: u16, flags: u8) -> u64 {
    first as u64
        | (slot as u64) << 32
        | (flags as u64) << 48
        | (sys::GETBUF_ABI_VERSION as u64) << 56
}

/// `GETBUF_CMD_FETCH` on a device whose source is named by descriptor, or bound
/// (`GETBUF_FD_BOUND`).
#[inline]
pub(crate) fn module_fetch(
    device: Target,
    source: RawFd,
    offset: u64,
    len: u32,
    slot: u16,
    replace: bool,
) -> Sqe {
    let flags = if replace { sys::GETBUF_FETCH_REPLACE as u8 } else { 0 };
    command(device, sys::GETBUF_CMD_FETCH, 0, len, [header(source as u32, slot, flags), offset])
}

/// `GETBUF_CMD_RELEASE`.
#[inline]
pub(crate) fn module_release(device: Target, slot: u16) -> Sqe {
    command(device, sys::GETBUF_CMD_RELEASE, 0, 0, [header(0, slot, 0), 0])
}

/// `GETBUF_CMD_COPY_OUT`. `to` must stay valid until the request has completed.
pub(crate) fn module_copy_out(device: Target, slot: u16, offset: u32, to: u64, len: u32) -> Entry {
    let cmd = [header(0, slot, 0), u64::from(offset)];
    // The core holds the buffer while it is copied from, and so has to know of it.
    let sqe = command(device, sys::GETBUF_CMD_COPY_OUT, to, len, cmd);
    sqe.len(len, IORING_URING_CMD_FIXED).buffer(slot).entry()
}

/// `GETBUF_CMD_BIND`.
pub(crate) fn module_bind(device: Target, source: RawFd) -> Entry {
    command(device, sys::GETBUF_CMD_BIND, 0, 0, [header(source as u32, 0, 0), 0]).entry()
}

/// `GETBUF_CMD_QUERY`. `answer` must stay valid until the request has completed.
pub(crate) fn module_query(device: Target, answer: *mut sys::getbuf_query) -> Entry {
    let len = size_of::<sys::getbuf_query>() as u32;
    command(device, sys::GETBUF_CMD_QUERY, answer as u64, len, [header(0, 0, 0), 0]).entry()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entry: Entry) -> [u8; 64] {
        // SAFETY: the reverse of `Sqe::entry`, on plain data of the same size.
        unsafe { mem::transmute::<Entry, [u8; 64]>(entry) }
    }

    #[test]
    fn get_buf_is_laid_out_as_the_kernel_reads_it() {
        let sqe = bytes(
            GetBuf::new(65, types::Fixed(7), 0x1234, 0x0102)
                .offset(1 << 40)
                .replace()
                .build()
                .user_data(9),
        );
        let mut want = [0; 64];
        want[0] = 65;
        want[1] = Flags::FIXED_FILE.bits();
        want[4..8].copy_from_slice(&7_i32.to_ne_bytes());
        want[8..16].copy_from_slice(&(1_u64 << 40).to_ne_bytes());
        want[24..28].copy_from_slice(&0x1234_u32.to_ne_bytes());
        want[28..32].copy_from_slice(&1_u32.to_ne_bytes());
        want[32..40].copy_from_slice(&9_u64.to_ne_bytes());
        want[40..42].copy_from_slice(&0x0102_u16.to_ne_bytes());
        assert_eq!(sqe, want);
    }

    #[test]
    fn each_flag_of_get_buf_is_a_bit_of_rw_flags() {
        let get = || GetBuf::new(65, types::Fd(7), 1, 0);
        for (linked, flag) in [
            (get().linked().build(), sys::IORING_GET_BUF_LINKED),
            (get().replace().build(), sys::IORING_GET_BUF_REPLACE),
        ] {
            let mut want = bytes(get().build());
            want[28..32].copy_from_slice(&flag.to_ne_bytes());
            assert_eq!(bytes(linked), want);
        }
    }

    #[test]
    fn put_buf_names_only_the_slot() {
        let sqe = bytes(PutBuf::new(66, 3).build());
        let mut want = [0; 64];
        want[0] = 66;
        want[4..8].copy_from_slice(&(-1_i32).to_ne_bytes());
        want[40] = 3;
        assert_eq!(sqe, want);
    }

    #[test]
    fn a_command_carries_the_payload_of_the_header() {
        let sqe = bytes(module_fetch(Target::Fd(5), 6, 77, 4096, 8, false).entry());
        let want = sys::getbuf_cmd_fetch { fd: 6, slot: 8, flags: 0, version: 1, off: 77 };
        // SAFETY: plain data of 16 bytes without padding.
        let want = unsafe { mem::transmute::<sys::getbuf_cmd_fetch, [u8; 16]>(want) };
        assert_eq!(sqe[48..], want);
        assert_eq!(sqe[8..12], sys::GETBUF_CMD_FETCH.to_ne_bytes());
        assert_eq!(sqe[0], IORING_OP_URING_CMD);
    }

    #[test]
    fn numbers_agree_with_the_io_uring_crate() {
        assert_eq!(IORING_OP_SEND, io_uring::opcode::Send::CODE);
        assert_eq!(IORING_OP_URING_CMD, io_uring::opcode::UringCmd16::CODE);
    }
}

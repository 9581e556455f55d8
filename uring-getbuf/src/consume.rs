// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests that consume a lease: where its bytes are, and the SQE that takes them there.

use std::ops::{BitOr, BitOrAssign};

use io_uring::opcode::{Send, SendZc, Writev, WritevFixed};

use crate::opcode::{Sqe, Target, send_fixed, write_fixed};

/// The file offset that means "the current position", or "no position" for a stream.
pub const STREAM: u64 = u64::MAX;

/// Most ranges that one vectored write takes.
pub const MAX_RANGES: usize = 8;

/// Flags of a send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags(i32);

impl SendFlags {
    /// No flag. `MSG_NOSIGNAL` is always set: a peer that closed is an `EPIPE`, not a signal.
    pub const NONE: Self = Self(0);
    /// More follows (`MSG_MORE`): the kernel may wait with a packet that is not full.
    pub const MORE: Self = Self(libc::MSG_MORE);
    /// Do not complete before every byte is sent (`MSG_WAITALL`; io_uring honours it for sends
    /// since Linux 5.19). A send that ends early counts as failed and breaks a link.
    pub const WAIT_ALL: Self = Self(libc::MSG_WAITALL);
    /// Answer `EAGAIN` rather than wait (`MSG_DONTWAIT`).
    pub const DONT_WAIT: Self = Self(libc::MSG_DONTWAIT);

    const fn bits(self) -> i32 {
        self.0 | libc::MSG_NOSIGNAL
    }
}

impl BitOr for SendFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for SendFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What consumes the buffer of a chain, and where its bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consumer {
    /// `WRITE_FIXED` at a file offset, or [`STREAM`].
    Write {
        /// The file.
        sink: Target,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// `SEND`.
    Send {
        /// The socket.
        sink: Target,
        /// Flags; [`SendFlags::WAIT_ALL`] is added.
        flags: SendFlags,
    },
    /// `SEND_ZC` (Linux 6.0).
    SendZc {
        /// The socket.
        sink: Target,
        /// Flags; [`SendFlags::WAIT_ALL`] is added.
        flags: SendFlags,
    },
}

/// Bytes of a slot as a request names them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Piece {
    /// What the request's `addr` field gets: an address in the pool, or, in a slot of kernel
    /// memory, an offset.
    pub(crate) addr: u64,
    pub(crate) len: u32,
    /// The index in the table of registered buffers.
    pub(crate) index: u16,
}

/// Calls one of the `io-uring` crate's builders, whose file is a type and not a value.
macro_rules! on {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            Target::Fd(raw) => {
                let $fd = ::io_uring::types::Fd(raw);
                Sqe::from($build)
            }
            Target::Fixed(index) => {
                let $fd = ::io_uring::types::Fixed(index);
                Sqe::from($build)
            }
        }
    };
}

impl Piece {
    #[inline(always)]
    pub(crate) fn write(self, sink: Target, offset: u64) -> Sqe {
        write_fixed(sink, self.addr, self.len, self.index, offset)
    }

    /// From the registered buffer (Linux 7.2).
    #[inline]
    pub(crate) fn send(self, sink: Target, flags: SendFlags) -> Sqe {
        send_fixed(sink, self.addr, self.len, self.index, flags.bits())
    }

    /// From the address: for pool memory, on kernels whose plain send takes no registered buffer.
    pub(crate) fn send_by_address(self, sink: Target, flags: SendFlags) -> Sqe {
        on!(sink, |fd| Send::new(fd, self.addr as *const u8, self.len).flags(flags.bits()).build())
    }

    #[inline]
    pub(crate) fn send_zc(self, sink: Target, flags: SendFlags) -> Sqe {
        on!(sink, |fd| SendZc::new(fd, self.addr as *const u8, self.len)
            .buf_index(Some(self.index))
            .flags(flags.bits())
            .build())
    }
}

/// `WRITEV_FIXED` (Linux 6.15). `ranges` must stay valid until the request has completed.
pub(crate) fn writev(
    ranges: *const libc::iovec,
    count: usize,
    index: u16,
    sink: Target,
    offset: u64,
) -> Sqe {
    on!(sink, |fd| WritevFixed::new(fd, ranges, count as u32, index).offset(offset).build())
}

/// `WRITEV`, for pool memory on older kernels.
pub(crate) fn writev_by_address(
    ranges: *const libc::iovec,
    count: usize,
    sink: Target,
    offset: u64,
) -> Sqe {
    on!(sink, |fd| Writev::new(fd, ranges, count as u32).offset(offset).build())
}

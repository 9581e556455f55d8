// SPDX-License-Identifier: MIT OR Apache-2.0
//! What consumes a lease: writes and sends.

use std::ops::{BitOr, BitOrAssign};

use crate::request::{Piece, Sqe, Target};

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

    #[inline]
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

/// What consumes the bytes of a lease, and where they go.
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
        /// Flags. A chain adds [`SendFlags::WAIT_ALL`].
        flags: SendFlags,
    },
    /// `SEND_ZC` (Linux 6.0).
    SendZc {
        /// The socket.
        sink: Target,
        /// Flags. A chain adds [`SendFlags::WAIT_ALL`].
        flags: SendFlags,
    },
}

impl Consumer {
    /// The consumer as it must be in a chain, where a send must not end early unnoticed: only with
    /// `MSG_WAITALL` does a short one count as failed.
    #[inline]
    pub(crate) fn waiting_for_all(mut self) -> Self {
        if let Self::Send { flags, .. } | Self::SendZc { flags, .. } = &mut self {
            *flags |= SendFlags::WAIT_ALL;
        }
        self
    }

    #[inline]
    pub(crate) const fn is_zero_copy(self) -> bool {
        matches!(self, Self::SendZc { .. })
    }

    /// The request. `fixed_send`: the kernel's plain send takes a registered buffer. Otherwise the
    /// bytes are in the program's memory.
    #[inline]
    pub(crate) fn request(self, piece: Piece, fixed_send: bool) -> Sqe {
        match self {
            Self::Write { sink, offset } => piece.write(sink, offset),
            Self::Send { sink, flags } if fixed_send => piece.send(sink, flags.bits()),
            Self::Send { sink, flags } => piece.send_by_address(sink, flags.bits()),
            Self::SendZc { sink, flags } => piece.send_zc(sink, flags.bits()),
        }
    }
}

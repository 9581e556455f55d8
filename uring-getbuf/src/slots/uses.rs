// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a lease does to its slot.

use std::ops::Range;

use super::ident::{Kind, LeaseId, UseId, user_data};
use super::prepared::Prepared;
use super::slot::{Slot, state};
use crate::consume::{self, Consumer, MAX_RANGES, Piece, SendFlags};
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::opcode::{Sqe, Target};

impl Slot {
    /// Has a fetch that is being cancelled not repeated through the pool.
    pub(super) fn cancel_fallback(&self) {
        if self.is(state::LENT) && self.is(state::FETCHING) {
            self.mark(state::ALONE);
        }
    }

    /// Whether the fetch has brought something.
    #[inline(always)]
    pub(crate) fn is_filled(&self) -> bool {
        !self.is(state::FETCHING | state::EMPTY)
    }

    /// What the fetch came to; `None` while it runs.
    pub(crate) fn fetch_result(&self) -> Option<Result<u32, Errno>> {
        if self.is(state::FETCHING) {
            return None;
        }
        let len = self.len.get();
        Some(if self.is(state::EMPTY) && len != 0 { Err(Errno::new(len as i32)) } else { Ok(len) })
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.len.get()
    }

    /// Bytes of it, when it is ready.
    #[inline(always)]
    pub(crate) fn piece(&self, start: u32, len: u32) -> Piece {
        if self.is(state::PROVIDED) {
            return self.provided_piece(start, len);
        }
        self.bytes(start, len)
    }

    /// The same where they are not a provider's.
    #[inline(always)]
    pub(super) fn bytes(&self, start: u32, len: u32) -> Piece {
        Piece { addr: self.base.get() + u64::from(start), len, index: self.buffer.get() }
    }

    #[cold]
    fn provided_piece(&self, start: u32, len: u32) -> Piece {
        let provided = self.core.provided.as_ref().expect("it was filled by a provider");
        provided.piece(self.index, start, len)
    }

    /// Copies bytes of it, when it is ready and in the program's memory; how many, at least one.
    /// They are there: the range lies in its lease.
    fn copy_out(&self, start: u32, into: &mut [u8]) -> usize {
        let piece = self.piece(start, into.len() as u32);
        let len = piece.len as usize;
        debug_assert!(len <= into.len(), "no more than was asked for");
        // SAFETY: so many bytes of the pool, which lives as long as this does, begin there. No
        // reference into it is ever made, and no request writes into a slot that is ready.
        unsafe { (piece.addr as *const u8).copy_to_nonoverlapping(into.as_mut_ptr(), len) };
        len
    }

    /// As [`Lease::copy_out`](crate::Lease::copy_out).
    pub(crate) fn look(&self, offset: u32, into: &mut [u8]) -> Result<usize> {
        let range = self.look_range(offset, into.len())?;
        if self.engine().lends() {
            let what = "a look at memory of the kernel's takes a request: Ring::copy_out sends it";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        let mut rest = &mut into[..range.len()];
        let mut start = range.start;
        while !rest.is_empty() {
            let copied = self.copy_out(start, rest);
            start += copied as u32;
            rest = &mut rest[copied..];
        }
        Ok(range.len())
    }

    /// What a look of up to `len` bytes from `offset` on sees.
    pub(crate) fn look_range(&self, offset: u32, len: usize) -> Result<Range<u32>> {
        let Some(left) = self.len().checked_sub(offset) else {
            let what = format!("a look at byte {offset} of a lease of {} bytes", self.len());
            return Err(Error::new(ErrorKind::OutOfRange, what));
        };
        Ok(offset..offset + u32::try_from(len).unwrap_or(u32::MAX).min(left))
    }

    pub(crate) fn engine(&self) -> Engine {
        if self.is(state::PROVIDED) {
            Engine::Provider
        } else {
            self.lending().map_or(Engine::Copy, |lending| lending.lender.engine())
        }
    }

    /// Requests that use it.
    pub(crate) fn uses(&self) -> u32 {
        self.requests() - u32::from(self.is(state::RELEASING))
    }

    /// Whether a lease that was released has left it.
    pub(crate) fn is_over(&self, id: LeaseId) -> bool {
        self.id() != id || self.is(state::FREE)
    }

    /// Makes a use of it.
    #[inline(always)]
    pub(crate) fn use_bytes(
        &self,
        start: u32,
        len: u32,
        consumer: Consumer,
        token: u16,
    ) -> Result<Sqe> {
        if matches!(consumer, Consumer::SendZc { .. }) {
            self.core.features.need_send_zc()?;
        }
        let now = self.state.get();
        let (piece, upper) = if now & !(state::HELD | state::LENT) == 0 {
            (self.bytes(start, len), self.next_use())
        } else {
            let mut piece = Piece::default();
            let upper = self.use_crowded(start, len, &mut piece)?;
            (piece, upper)
        };
        let user_data = self.use_name(upper, token);
        if matches!(consumer, Consumer::SendZc { .. }) {
            // Its completions have flags.
            self.keep_use(UseId::of(user_data));
            self.begin();
        } else {
            self.await_use(user_data);
        }
        Ok(self.consumer_request(piece, consumer).user_data(user_data))
    }

    /// The same where there is something else than a lease of one engine's memory, such as another
    /// request: its piece, and the upper half of its name.
    #[cold]
    fn use_crowded(&self, start: u32, len: u32, piece: &mut Piece) -> Result<u32> {
        *piece = self.piece(start, len);
        self.free_use().ok_or_else(too_many_uses)
    }

    /// Begins a use of a lease that has none, with one completion; its name.
    #[inline(always)]
    pub(super) fn begin_only_use(&self, token: u16) -> u64 {
        let user_data = self.use_name(self.next_use(), token);
        self.await_use(user_data);
        user_data
    }

    #[inline(always)]
    fn await_use(&self, user_data: u64) {
        self.state.set(self.state.get() + (state::REQUEST + state::AWAITED));
        self.expect(user_data);
    }

    /// The name of a use.
    #[inline(always)]
    fn use_name(&self, upper: u32, token: u16) -> u64 {
        self.user_data(Kind::Fetch)
            | u64::from(upper) << 32
            | u64::from(token) << user_data::TOKEN_SHIFT
    }

    pub(crate) fn use_ranges(
        &self,
        ranges: impl ExactSizeIterator<Item = (u32, u32)>,
        sink: Target,
        offset: u64,
    ) -> Result<Sqe> {
        let count = ranges.len();
        if count == 0 || count > MAX_RANGES {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a vectored write of {count} ranges: it takes 1 to {MAX_RANGES}"),
            ));
        }
        if self.is(state::RANGING) {
            return Err(Error::new(
                ErrorKind::Busy,
                "a lease takes one vectored write at a time: let the other one complete first",
            ));
        }
        let cell = &self.core.ranges[usize::from(self.index)];
        let mut vector = cell.get();
        let mut table = 0;
        for (place, (start, len)) in vector.iter_mut().zip(ranges) {
            let piece = self.piece(start, len);
            if piece.len != len || (table != 0 && piece.index != table) {
                let what = "a vectored write of a provider's memory: each range must lie in one \
                            piece, and all of them in one region";
                return Err(Error::new(ErrorKind::InvalidInput, what));
            }
            table = piece.index;
            *place =
                libc::iovec { iov_base: piece.addr as *mut libc::c_void, iov_len: len as usize };
        }
        cell.set(vector);
        // The array lives as long as the slots do, and the mark keeps it unchanged meanwhile.
        let request = if self.core.features.writev_fixed || self.is(state::LENT) {
            consume::writev(cell.as_ptr().cast(), count, table, sink, offset)
        } else {
            consume::writev_by_address(cell.as_ptr().cast(), count, sink, offset)
        };
        let name = UseId::of(self.use_name(self.free_use().ok_or_else(too_many_uses)?, 0));
        self.keep_use(name);
        self.begin();
        self.mark(state::RANGING);
        Ok(request.user_data(name.with(Kind::UseRanges)))
    }

    #[inline(always)]
    pub(super) fn consumer_request(&self, piece: Piece, consumer: Consumer) -> Sqe {
        match consumer {
            Consumer::Write { sink, offset } => piece.write(sink, offset),
            Consumer::Send { sink, flags } => self.send_request(piece, sink, flags),
            Consumer::SendZc { sink, flags } => piece.send_zc(sink, flags),
        }
    }

    #[inline]
    fn send_request(&self, piece: Piece, sink: Target, flags: SendFlags) -> Sqe {
        // A kernel that lends memory is newer than 7.2 and takes registered buffers here.
        if self.core.features.fixed_send || self.is(state::LENT) {
            piece.send(sink, flags)
        } else {
            piece.send_by_address(sink, flags)
        }
    }

    /// A request that can be taken back.
    #[inline(always)]
    pub(crate) fn prepare(&self, request: Sqe) -> Prepared<'_> {
        Prepared::new(request, self, false)
    }
}

#[cold]
fn too_many_uses() -> Error {
    let what = "256 requests use the lease, and it can name no more: let one complete first";
    Error::new(ErrorKind::Busy, what)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! One slot: where it stands, and which completion is expected of it.

use std::cell::Cell;
use std::rc::Rc;

use io_uring::squeue::Entry;

use super::event::Event;
use super::ident::{Kind, LeaseId, UseId, user_data};
use super::prepared::Prepared;
use super::table::{Core, Driver, Lending};
use crate::chain::{Chain, ChainOutcome, Progress};
use crate::consume::{self, Consumer, MAX_RANGES, Piece, SendFlags};
use crate::engine::{Engine, Source};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::opcode::Target;

/// Where a slot stands, in one word: marks, and above them the number of requests that have been
/// handed out and have not had their last completion. A slot that nothing [ties](TIES) is free.
pub(super) mod state {
    /// A `Lease` names it.
    pub(in crate::slots) const HELD: u32 = 1;
    /// While it is filled: the lender is asked. Then: the kernel holds a buffer in it.
    pub(in crate::slots) const LENT: u32 = 2;
    /// It holds a provider's memory.
    pub(in crate::slots) const PROVIDED: u32 = 1 << 2;
    /// It is in the outbox.
    pub(in crate::slots) const QUEUED: u32 = 1 << 3;
    /// Its array of ranges is in use, by one of the requests.
    pub(in crate::slots) const RANGING: u32 = 1 << 4;
    /// A fetch is in flight, or waits to be sent again.
    pub(in crate::slots) const FETCHING: u32 = 1 << 5;
    /// A chain is, or does. It is one of the requests, however many it has.
    pub(in crate::slots) const CHAINED: u32 = 1 << 6;
    /// A release is in flight, which is one of the requests.
    pub(in crate::slots) const RELEASING: u32 = 1 << 7;
    /// The fetch has failed.
    pub(in crate::slots) const FAILED: u32 = 1 << 8;
    /// Where the lender refuses, the pool is not asked: the fetch is being cancelled.
    pub(in crate::slots) const ALONE: u32 = 1 << 9;
    /// The kernel still holds the buffer of a lease that is over, to be replaced by the next one.
    pub(in crate::slots) const LEFT: u32 = 1 << 10;
    /// It is in the free list.
    pub(in crate::slots) const FREE: u32 = 1 << 11;
    /// One request.
    pub(in crate::slots) const REQUEST: u32 = 1 << REQUESTS;
    pub(in crate::slots) const REQUESTS: u32 = 16;
    /// What keeps it from being free.
    pub(in crate::slots) const TIES: u32 = !(FAILED | ALONE | LEFT | FREE);
    /// Something fills it.
    pub(in crate::slots) const FILLING: u32 = FETCHING | CHAINED;
}

/// No completion has this result.
const NEVER: i32 = i32::MIN;

/// One slot. Plain cells: it is never shared between threads.
pub(crate) struct Slot {
    /// What the `user_data` of all its requests have in common: tag, slot, and which of its lives.
    name: Cell<u64>,
    /// The one completion that says that the last request, or the chain, went as asked: `user_data`
    /// and result. [`NEVER`]: it was there already, or another one was.
    awaited: Cell<u64>,
    awaited_result: Cell<i32>,
    /// See [`state`].
    pub(super) state: Cell<u32>,
    /// Bytes asked for, then bytes there; of a fetch that has failed, the error.
    pub(super) len: Cell<u32>,
    /// What the driver wants to know when the fetch or the chain has ended.
    pub(super) note: Cell<u32>,
    /// Next in the free list.
    pub(super) next: Cell<u16>,
    pub(super) index: u16,
    /// Counts the uses, so that each has a `user_data` of its own,
    sequence: Cell<u8>,
    /// Where its block of the pool begins; 0 without a pool.
    pub(super) block: u64,
    pub(super) core: Rc<Core>,
    /// and which of these numbers are in flight, but for that of the use that is awaited: one that
    /// has come round may still be.
    sequences: [Cell<u64>; 4],
    /// For a fetch that has to be sent again through the pool.
    pub(super) source: Cell<(Source, u64)>,
    /// For a chain: what it does, and what it has done once that is not as [awaited](Self::awaited).
    consumer: Cell<Consumer>,
    progress: Cell<Progress>,
}

/// Its parts.
impl Slot {
    pub(super) fn new(core: Rc<Core>, index: u16, next: u16, block: u64) -> Self {
        let name = core.tag | u64::from(index) << user_data::SLOT_SHIFT;
        Self {
            name: Cell::new(name),
            awaited: Cell::new(name),
            awaited_result: Cell::new(NEVER),
            state: Cell::new(state::FREE),
            len: Cell::new(0),
            note: Cell::new(0),
            next: Cell::new(next),
            index,
            sequence: Cell::new(0),
            block,
            core,
            sequences: Default::default(),
            source: Cell::new((Source::copied(Target::Fd(-1)), 0)),
            consumer: Cell::new(Consumer::Write { sink: Target::Fd(-1), offset: 0 }),
            progress: Cell::new(Progress::default()),
        }
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> LeaseId {
        UseId::of(self.name.get()).lease()
    }

    #[inline(always)]
    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// The `user_data` of a request.
    #[inline(always)]
    pub(super) fn user_data(&self, kind: Kind) -> u64 {
        self.name.get() | (kind as u64) << user_data::KIND_SHIFT
    }

    /// Whether a `user_data` is that of a request of its present life.
    #[inline(always)]
    fn is_named_by(&self, user_data: u64) -> bool {
        (self.name.get() ^ user_data) & user_data::NAME == 0
    }

    /// Begins a new life, under a new name.
    #[inline(always)]
    pub(super) fn begin_life(&self) {
        self.name.set(self.name.get() + 1);
        if self.name.get() & user_data::GENERATION == 0 {
            self.first_life();
        }
    }

    /// The count of lives has run into the slot's number.
    #[cold]
    fn first_life(&self) {
        self.name.set(self.name.get() - (user_data::GENERATION + 1));
    }

    #[inline(always)]
    pub(super) fn is(&self, mark: u32) -> bool {
        self.state.get() & mark != 0
    }

    #[inline(always)]
    pub(super) fn mark(&self, mark: u32) {
        self.state.set(self.state.get() | mark);
    }

    #[inline(always)]
    pub(super) fn unmark(&self, mark: u32) {
        self.state.set(self.state.get() & !mark);
    }

    pub(super) fn requests(&self) -> u32 {
        self.state.get() >> state::REQUESTS
    }

    /// One more request names it.
    #[inline(always)]
    pub(super) fn begin(&self) {
        self.state.set(self.state.get() + state::REQUEST);
    }

    /// One request that names it has had its last completion.
    #[inline(always)]
    fn finish(&self) {
        self.state.set(self.state.get() - state::REQUEST);
    }

    /// Who lends the memory in it, if it is not the pool's.
    #[inline(always)]
    pub(super) fn lending(&self) -> Option<&Lending> {
        if self.is(state::LENT) { self.core.lending.as_ref() } else { None }
    }

    /// Keeps what a chain does, for when its requests are made, or made again.
    #[inline]
    pub(super) fn keep(&self, chain: &Chain) {
        self.source.set((chain.source, chain.offset));
        self.consumer.set(chain.consumer);
    }

    #[inline]
    pub(super) fn kept(&self) -> Chain {
        let (source, offset) = self.source.get();
        Chain { source, offset, len: self.len.get(), consumer: self.consumer.get() }
    }
}

/// What is expected of it.
impl Slot {
    /// Says which completion a request or a chain should have.
    #[inline(always)]
    pub(super) fn expect(&self, user_data: u64, result: u32) {
        self.awaited.set(user_data);
        self.awaited_result.set(result as i32);
    }

    /// Says that the end of a fetch, a chain or a release is not, or no longer, to be expected. From
    /// here on a chain keeps its progress.
    pub(super) fn expect_nothing(&self) {
        if self.awaited_result.replace(NEVER) != NEVER {
            self.progress.set(Progress::default());
        }
    }

    /// The same for a use, which is one of several from here on.
    #[cold]
    pub(super) fn expect_no_use(&self) {
        if self.awaited_result.replace(NEVER) != NEVER {
            let (word, bit) = self.sequence_bit(UseId::of(self.awaited.get()).sequence());
            word.set(word.get() | bit);
        }
    }

    /// The caller's part of a name has changed.
    #[inline(always)]
    pub(super) fn rename(&self, from: u64, to: u64) {
        if self.awaited.get() == from {
            self.awaited.set(to);
        }
    }

    /// The word and the bit of a use's sequence number.
    #[inline]
    fn sequence_bit(&self, sequence: u8) -> (&Cell<u64>, u64) {
        (&self.sequences[usize::from(sequence >> 6)], 1 << (sequence & 63))
    }

    /// A sequence number that no use in flight has. None of them is awaited then.
    #[inline(always)]
    fn take_sequence(&self) -> Option<u8> {
        if self.state.get() >= state::REQUEST {
            return self.search_sequence();
        }
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        Some(sequence)
    }

    /// The same where there are uses in flight.
    #[inline(never)]
    fn search_sequence(&self) -> Option<u8> {
        self.expect_no_use();
        let next = self.sequence.get();
        let sequence = (0..=u8::MAX).map(|step| next.wrapping_add(step)).find(|sequence| {
            let (word, bit) = self.sequence_bit(*sequence);
            word.get() & bit == 0
        })?;
        self.sequence.set(sequence.wrapping_add(1));
        Some(sequence)
    }

    /// Ends a use; whether it was in flight.
    fn end_use(&self, id: UseId) -> bool {
        // Whatever the caller's part of the name is.
        let same = (self.awaited.get() ^ id.user_data()) & !user_data::TOKEN == 0;
        if same && self.awaited_result.get() != NEVER {
            self.awaited_result.set(NEVER);
            return true;
        }
        let (word, bit) = self.sequence_bit(id.sequence());
        word.replace(word.get() & !bit) & bit != 0
    }
}

/// Its way back to the free list.
impl Slot {
    /// The `Lease` is gone, however it went.
    #[inline(always)]
    pub(crate) fn let_go(&self) {
        if self.state.get() == state::HELD {
            self.vacate(0);
        } else {
            self.let_go_tied();
        }
    }

    #[inline(never)]
    fn let_go_tied(&self) {
        self.unmark(state::HELD);
        self.settle();
    }

    /// Brings it on its way: into the outbox if there is a buffer to give back, into the free list
    /// if nothing is left that names it.
    #[inline(never)]
    pub(super) fn settle(&self) {
        let now = self.state.get();
        if now & state::TIES == 0 {
            return self.vacate(now & state::LEFT);
        }
        if now & (state::HELD | state::QUEUED | state::RELEASING | state::FILLING) != 0 {
            return;
        }
        if now & state::PROVIDED != 0 {
            return self.give_back_provided();
        }
        if now & state::LENT != 0 {
            if !self.core.lending.is_some_and(|lending| lending.replace) {
                return self.core.enqueue(self);
            }
            self.state.set(now & !state::LENT | state::LEFT);
            self.settle();
        }
    }

    /// Puts it into the free list; nothing ties it. `left`: that mark, or none.
    #[inline(always)]
    pub(super) fn vacate(&self, left: u32) {
        debug_assert!(!self.is(state::FREE), "slot {} is freed twice", self.index);
        self.state.set(state::FREE | left);
        self.next.set(self.core.free.replace(self.index));
        self.core.freed.set(self.core.freed.get() + 1);
    }

    /// When nobody uses its memory any more, the provider is told, and that last: it may let other
    /// leases go.
    #[cold]
    fn give_back_provided(&self) {
        if self.requests() > 0 {
            return;
        }
        self.unmark(state::PROVIDED);
        self.settle();
        if let Some(provided) = &self.core.provided {
            provided.release(self.index);
        }
    }
}

/// What completions do to it.
impl Slot {
    /// Says what a completion that names it meant.
    #[inline(always)]
    pub(super) fn told(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        if self.awaited.get() == user_data && self.awaited_result.get() == result && flags == 0 {
            return Some(self.as_asked(UseId::of(user_data), result as u32, driver));
        }
        self.otherwise(user_data, result, flags, driver)
    }

    /// What was [awaited](Slot::awaited) has gone as asked.
    #[inline(always)]
    fn as_asked(&self, name: UseId, done: u32, driver: &impl Driver) -> Event {
        self.awaited_result.set(NEVER);
        let id = name.lease();
        let now = self.state.get() - state::REQUEST;
        if now & (state::FILLING | state::RELEASING) == 0 {
            self.state.set(now);
            if now & state::HELD == 0 {
                self.settle();
            }
            driver.consumer(name.token());
            Event::Used { id: name, result: Ok(done), more: false }
        } else if now & state::FETCHING != 0 {
            self.state.set(now - state::FETCHING);
            if now & (state::HELD | state::LEFT) != state::HELD {
                self.replaced();
            }
            Event::Fetched { lease: id, result: Ok(done) }
        } else if now & state::CHAINED != 0 {
            let len = self.len.get();
            match self.lending() {
                Some(lending) if !lending.chain_releases() => {
                    self.state.set(now - state::CHAINED);
                    self.replaced();
                }
                // Nothing else ties it.
                _ => self.vacate(now & state::LEFT),
            }
            Event::Chained { id, outcome: ChainOutcome::Done(len) }
        } else {
            self.state.set(now - state::RELEASING - state::LENT);
            self.settle();
            Event::Released { lease: id }
        }
    }

    /// It has been filled, and what it held before is not there any more.
    #[inline(never)]
    fn replaced(&self) {
        if self.is(state::LENT) {
            self.unmark(state::LEFT);
        }
        self.settle();
    }

    /// A completion that was not awaited, or not so.
    #[inline(never)]
    fn otherwise(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        if !self.is_named_by(user_data) {
            return self.core.unknown(user_data, result, flags, driver);
        }
        let name = UseId::of(user_data);
        Some(match name.kind() {
            Some(Kind::Fetch) => self.fetched(name.lease(), result, driver),
            Some(kind @ (Kind::Use | Kind::UseRanges)) => {
                self.used(name, kind, result, flags, driver)
            }
            Some(Kind::Release) => self.released(name.lease(), result),
            Some(kind @ (Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease)) => {
                self.chained(name, kind, result, flags, driver)
            }
            None => self.core.stale(),
        })
    }

    /// Whether the pool is to serve what the lender has just refused.
    #[inline]
    fn falls_back(&self, result: i32) -> bool {
        result < 0 && self.refused(result)
    }

    /// It refuses a file that cannot lend its memory, and what would be more than may be pinned
    /// (the module: `EDQUOT`). The pool has its memory already.
    #[cold]
    fn refused(&self, result: i32) -> bool {
        let refused =
            matches!(Errno::check(result), Err(Errno::NOTSUPP | Errno::NOMEM | Errno::DQUOT));
        let may = self.state.get() & (state::LENT | state::ALONE) == state::LENT;
        let again = refused && may && self.core.pool.is_some();
        if again {
            self.unmark(state::LENT);
            self.core.fallbacks.set(self.core.fallbacks.get() + 1);
        }
        again
    }

    /// A lender has been asked, with this result: whether the kernel holds a buffer now.
    fn filled(&self, lending: Option<&Lending>, result: Result<u32, Errno>) {
        let (Some(lending), Ok(len)) = (lending, result) else {
            return self.unmark(state::LENT);
        };
        if len != 0 || lending.lender.installs_empty() {
            self.unmark(state::LEFT);
        } else {
            self.unmark(state::LENT);
        }
    }

    fn fetched(&self, id: LeaseId, result: i32, driver: &impl Driver) -> Event {
        if !self.is(state::FETCHING) {
            return self.core.stale();
        }
        self.expect_nothing();
        if self.falls_back(result) {
            self.core.enqueue(self);
            return Event::Pending;
        }
        self.finish();
        let mut result = Errno::check(result).map(|len| len.min(self.len.get()));
        match &mut result {
            Ok(len) => self.len.set(*len),
            Err(errno) => {
                if self.is(state::ALONE) && *errno == Errno::NOTSUPP {
                    *errno = Errno::CANCELED;
                }
                self.len.set(errno.raw() as u32);
                self.mark(state::FAILED);
            }
        }
        self.filled(self.lending(), result);
        self.unmark(state::FETCHING | state::ALONE);
        self.settle();
        driver.noted(self.note.get());
        Event::Fetched { lease: id, result }
    }

    fn used(&self, id: UseId, kind: Kind, result: i32, flags: u32, driver: &impl Driver) -> Event {
        let more = io_uring::cqueue::more(flags);
        if !more {
            if !self.end_use(id) {
                return self.core.stray(flags);
            }
            if kind == Kind::UseRanges {
                self.unmark(state::RANGING);
            }
            self.finish();
            self.settle();
            driver.consumer(id.token());
        }
        if io_uring::cqueue::notif(flags) {
            driver.returned(id)
        } else {
            Event::Used { id, result: Errno::check(result), more }
        }
    }

    fn released(&self, id: LeaseId, result: i32) -> Event {
        if !self.is(state::RELEASING) {
            return self.core.stale();
        }
        self.expect_nothing();
        self.unmark(state::RELEASING);
        self.finish();
        // Cancelled: it never ran, and the buffer is still there. Any other error says that there
        // is nothing of ours in the slot.
        let again = Errno::check(result) == Err(Errno::CANCELED);
        if !again {
            self.unmark(state::LENT);
        }
        self.settle();
        if again { Event::Pending } else { Event::Released { lease: id } }
    }

    /// A completion of a chain that did not go as asked.
    fn chained(
        &self,
        name: UseId,
        kind: Kind,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Event {
        if !self.is(state::CHAINED) {
            return self.core.stray(flags);
        }
        let id = name.lease();
        let lending = self.lending();
        let releases = lending.is_some_and(Lending::chain_releases);
        self.expect_nothing();
        let mut progress = self.progress.get();
        let done = match kind {
            // Posted only where it is not as asked. A soft link stops here.
            Kind::ChainFetch => {
                progress.fetched = Some(result);
                !releases
            }
            Kind::ChainUse => {
                let (more, notif) = (io_uring::cqueue::more(flags), io_uring::cqueue::notif(flags));
                if notif && (!progress.unreturned || name.sequence() != attempt(lending)) {
                    return self.core.stray(flags);
                }
                progress.unreturned = more;
                if !notif {
                    progress.used = Some(result);
                }
                !more && (!releases || progress.released)
            }
            _ => {
                progress.released = true;
                !progress.unreturned
            }
        };
        self.progress.set(progress);
        if !done {
            return Event::Pending;
        }
        if progress.fetched.is_some_and(|result| self.falls_back(result)) {
            self.core.enqueue(self);
            return Event::Pending;
        }
        let fetched = progress.fetched.map_or(Ok(self.len.get()), Errno::check);
        // What it has left in its slot, if it does not release, is released as that of a lease.
        self.filled(lending.filter(|_| !releases), fetched);
        self.unmark(state::CHAINED);
        self.finish();
        self.settle();
        driver.noted(self.note.get());
        Event::Chained { id, outcome: progress.outcome(self.len.get()) }
    }

    /// The request was never pushed.
    #[cold]
    pub(super) fn retract(&self, user_data: u64, requeue: bool) {
        let (id, Some(kind)) = (UseId::of(user_data), Kind::of(user_data)) else { return };
        let cancelled = -Errno::CANCELED.raw();
        match kind {
            // A release that was cancelled is sent again anyway.
            Kind::Release => {
                self.released(id.lease(), cancelled);
            }
            _ if requeue => self.core.enqueue(self),
            Kind::Fetch => {
                self.fetched(id.lease(), cancelled, &());
            }
            Kind::Use | Kind::UseRanges => {
                self.used(id, kind, cancelled, 0, &());
            }
            Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease => {}
        }
    }

    /// A chain was never pushed.
    #[cold]
    pub(super) fn retract_chain(&self, requeue: bool) {
        self.expect_nothing();
        if requeue {
            return self.core.enqueue(self);
        }
        self.unmark(state::CHAINED | state::LENT);
        self.finish();
        self.settle();
    }

    /// There was no room for its requests: it is as if they had never been.
    #[cold]
    pub(super) fn undo(&self) {
        self.expect_nothing();
        self.vacate(self.state.get() & state::LEFT);
        self.core.taken.set(self.core.taken.get() - 1);
        self.core.freed.set(self.core.freed.get() - 1);
    }
}

/// What a lease does to it.
impl Slot {
    /// Has a fetch that is being cancelled not repeated through the pool.
    pub(super) fn cancel_fallback(&self) {
        if self.is(state::LENT) && self.is(state::FETCHING) {
            self.mark(state::ALONE);
        }
    }

    /// What the fetch came to; `None` while it runs.
    #[inline(always)]
    pub(crate) fn fetch_result(&self) -> Option<Result<u32, Errno>> {
        if self.is(state::FETCHING | state::FAILED) {
            return self.fetch_failed();
        }
        Some(Ok(self.len.get()))
    }

    #[cold]
    fn fetch_failed(&self) -> Option<Result<u32, Errno>> {
        self.is(state::FAILED).then(|| Err(Errno::new(self.len.get() as i32)))
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
        self.core.piece(self, self.lending(), start, len)
    }

    #[cold]
    fn provided_piece(&self, start: u32, len: u32) -> Piece {
        let provided = self.core.provided.as_ref().expect("it was filled by a provider");
        provided.piece(self.index, start, len)
    }

    /// Copies bytes of it, when it is ready and in the program's memory; how many, at least one.
    /// They are there: the range lies in its lease.
    pub(crate) fn copy_out(&self, start: u32, into: &mut [u8]) -> usize {
        let piece = self.piece(start, into.len() as u32);
        let len = piece.len as usize;
        debug_assert!(len <= into.len(), "no more than was asked for");
        // SAFETY: so many bytes of the pool, which lives as long as this does, begin there. No
        // reference into it is ever made, and no request writes into a slot that is ready.
        unsafe { (piece.addr as *const u8).copy_to_nonoverlapping(into.as_mut_ptr(), len) };
        len
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
    ) -> Result<Entry> {
        if matches!(consumer, Consumer::SendZc { .. }) {
            self.core.features.need_send_zc()?;
        }
        let piece = self.piece(start, len);
        let entry = self.consumer_entry(piece, consumer);
        let entry = self.counted(Kind::Use, entry, token)?;
        self.expect(entry.get_user_data(), len);
        Ok(entry)
    }

    pub(crate) fn use_ranges(
        &self,
        ranges: impl ExactSizeIterator<Item = (u32, u32)>,
        sink: Target,
        offset: u64,
    ) -> Result<Entry> {
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
        let entry = if self.core.features.writev_fixed || self.is(state::LENT) {
            consume::writev(cell.as_ptr().cast(), count, table, sink, offset)
        } else {
            consume::writev_by_address(cell.as_ptr().cast(), count, sink, offset)
        };
        let request = self.counted(Kind::UseRanges, entry, 0)?;
        // Its end is not awaited.
        let (word, bit) = self.sequence_bit(UseId::of(request.get_user_data()).sequence());
        word.set(word.get() | bit);
        self.mark(state::RANGING);
        Ok(request)
    }

    #[inline(always)]
    pub(super) fn consumer_entry(&self, piece: Piece, consumer: Consumer) -> Entry {
        match consumer {
            Consumer::Write { sink, offset } => piece.write(sink, offset),
            Consumer::Send { sink, flags } => self.send_entry(piece, sink, flags),
            Consumer::SendZc { sink, flags } => piece.send_zc(sink, flags),
        }
    }

    #[inline]
    fn send_entry(&self, piece: Piece, sink: Target, flags: SendFlags) -> Entry {
        // A kernel that lends memory is newer than 7.2 and takes registered buffers here.
        if self.core.features.fixed_send || self.is(state::LENT) {
            piece.send(sink, flags)
        } else {
            piece.send_by_address(sink, flags)
        }
    }

    /// Counts a use and gives it its name.
    #[inline(always)]
    fn counted(&self, kind: Kind, entry: Entry, token: u16) -> Result<Entry> {
        let Some(sequence) = self.take_sequence() else { return Err(too_many_uses()) };
        self.begin();
        let user_data = self.user_data(kind)
            | u64::from(sequence) << user_data::SEQUENCE_SHIFT
            | u64::from(token) << user_data::TOKEN_SHIFT;
        Ok(entry.user_data(user_data))
    }

    /// A request that can be taken back.
    #[inline(always)]
    pub(crate) fn prepare(&self, entry: Entry) -> Prepared<'_> {
        Prepared::new(entry, self, false)
    }

    /// Takes a consumer back that was not sent.
    #[cold]
    pub(crate) fn retract_use(&self, request: UseId) {
        self.retract(request.user_data(), false);
    }
}

/// Distinguishes the names of a chain's requests: first those of a lender, then those of the pool.
#[inline]
pub(super) fn attempt(lending: Option<&Lending>) -> u8 {
    u8::from(lending.is_none())
}

#[cold]
fn too_many_uses() -> Error {
    let what = "256 requests use the lease, and it can name no more: let one complete first";
    Error::new(ErrorKind::Busy, what)
}

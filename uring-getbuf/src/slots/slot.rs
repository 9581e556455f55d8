// SPDX-License-Identifier: MIT OR Apache-2.0
//! One slot: where it stands, and which completion is expected of it.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use super::ident::{FIRST_USE, Kind, LeaseId, UseId, next_use, user_data};
use super::table::{Core, Lending};
use crate::chain::{Chain, Progress};
use crate::consume::Consumer;
use crate::engine::Source;
use crate::opcode::Target;

/// Where a slot stands, in one word: marks, and above them the number of requests that have been
/// handed out and have not had their last completion. A slot that nothing [ties](TIES) is free.
pub(super) mod state {
    /// A `Lease` names it.
    pub(in crate::slots) const HELD: u32 = 1;
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
    /// The fetch has brought nothing.
    pub(in crate::slots) const EMPTY: u32 = 1 << 8;
    /// Where the lender refuses, the pool is not asked: the fetch is being cancelled.
    pub(in crate::slots) const ALONE: u32 = 1 << 9;
    /// The kernel still holds the buffer of a lease that is over, to be replaced by the next one.
    pub(in crate::slots) const LEFT: u32 = 1 << 10;
    /// It is in the free list.
    pub(in crate::slots) const FREE: u32 = 1 << 11;
    /// A completion is awaited.
    pub(in crate::slots) const AWAITED: u32 = 1 << 12;
    /// While it is filled: the lender is asked. Then: the kernel holds a buffer in it.
    // Above the others, which then are half a word: most of what is done is the same with it.
    pub(in crate::slots) const LENT: u32 = 1 << 16;
    /// One request.
    pub(in crate::slots) const REQUEST: u32 = 1 << REQUESTS;
    pub(in crate::slots) const REQUESTS: u32 = 17;
    /// What keeps it from being free.
    pub(in crate::slots) const TIES: u32 = !(EMPTY | ALONE | LEFT | FREE | AWAITED);
    /// Something fills it.
    pub(in crate::slots) const FILLING: u32 = FETCHING | CHAINED;
}

/// One slot. Plain cells: it is never shared between threads.
pub(crate) struct Slot {
    /// What the `user_data` of all its requests have in common: tag, slot, and which of its lives.
    name: Cell<u64>,
    /// If [so marked](state::AWAITED), the one completion that says that the last use has ended, or
    /// that a fetch, a chain or a release may have gone as asked.
    awaited: Cell<u64>,
    /// Bytes asked for, then bytes there. Where there are [none](state::EMPTY), the error; 0 at the end of
    /// a file.
    pub(super) len: Cell<u32>,
    /// What the driver wants to know when the fetch or the chain has ended.
    pub(super) note: Cell<u32>,
    /// See [`state`].
    pub(super) state: Cell<u32>,
    /// Next in the free list.
    pub(super) next: Cell<u16>,
    pub(super) index: u16,
    /// What requests call its bytes: address or offset of the first one, and the index in the table of
    /// registered buffers.
    pub(super) base: Cell<u64>,
    pub(super) buffer: Cell<u16>,
    /// The upper half of the next use's name: it counts, so that each has a name of its own,
    next_use: Cell<u32>,
    pub(super) core: Rc<Core>,
    /// and which of the sequence numbers are in flight, but for that of the use that is awaited: one that
    /// has come round may still be.
    sequences: [Cell<u64>; 4],
    /// The caller's part of the name of each of these.
    tokens: OnceCell<Box<[Cell<u16>; 256]>>,
    /// For a fetch that has to be sent again through the pool.
    pub(super) source: Cell<(Source, u64)>,
    /// For a chain: what it does, and what it has done once that is not as [awaited](Self::awaited).
    consumer: Cell<Consumer>,
    pub(super) progress: Cell<Progress>,
    /// For whom leases are [values](super::values): the last one, and what came with it.
    pub(super) value: Cell<u64>,
    pub(super) data: Cell<*mut c_void>,
}

/// Its parts.
impl Slot {
    pub(super) fn new(core: Rc<Core>, index: u16, next: u16) -> Self {
        let name = core.tag | u64::from(index);
        Self {
            name: Cell::new(name),
            awaited: Cell::new(name),
            state: Cell::new(state::FREE),
            len: Cell::new(0),
            note: Cell::new(0),
            next: Cell::new(next),
            index,
            base: Cell::new(core.block(index)),
            buffer: Cell::new(core.pool_index),
            next_use: Cell::new(FIRST_USE),
            core,
            sequences: Default::default(),
            tokens: OnceCell::new(),
            source: Cell::new((Source::copied(Target::Fd(-1)), 0)),
            consumer: Cell::new(Consumer::Write { sink: Target::Fd(-1), offset: 0 }),
            progress: Cell::new(Progress::default()),
            value: Cell::new(0),
            data: Cell::new(ptr::null_mut()),
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

    /// What names the lease in a `user_data`.
    #[inline(always)]
    pub(super) fn lease_bits(&self) -> u64 {
        self.name.get() & user_data::LEASE
    }

    /// The `user_data` of a request.
    #[inline(always)]
    pub(super) fn user_data(&self, kind: Kind) -> u64 {
        self.name.get() | (kind as u64) << user_data::KIND_SHIFT
    }

    /// Whether a `user_data` is that of a request of its present life.
    #[inline(always)]
    pub(super) fn is_named_by(&self, user_data: u64) -> bool {
        (self.name.get() ^ user_data) & user_data::NAME == 0
    }

    /// Begins a new life, under a new name.
    #[inline(always)]
    pub(super) fn begin_life(&self) {
        const ONE: u64 = 1 << user_data::GENERATION_SHIFT;
        const CARRY: u64 = user_data::LEASE + 1;
        self.name.set((self.name.get() + ONE) & !CARRY);
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
    pub(super) fn begin(&self) {
        self.state.set(self.state.get() + state::REQUEST);
    }

    /// One request that names it has had its last completion.
    #[inline(always)]
    pub(super) fn finish(&self) {
        self.state.set(self.state.get() - state::REQUEST);
    }

    /// Who lends the memory in it, if it is not the pool's.
    #[inline(always)]
    pub(super) fn lending(&self) -> Option<&Lending> {
        if self.is(state::LENT) { self.core.lending.as_ref() } else { None }
    }

    /// Its bytes are the pool's.
    #[cold]
    pub(super) fn fill_from_pool(&self) {
        self.base.set(self.core.block(self.index));
        self.buffer.set(self.core.pool_index);
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
    /// Says which completion is awaited. The caller marks it.
    #[inline(always)]
    pub(super) fn expect(&self, user_data: u64) {
        self.awaited.set(user_data);
    }

    /// Whether this one is awaited, if any is.
    #[inline(always)]
    pub(super) fn expects(&self, user_data: u64) -> bool {
        self.awaited.get() == user_data
    }

    /// Says that the end of a fetch, a chain or a release is not, or no longer, to be expected. From
    /// here on a chain keeps its progress.
    pub(super) fn expect_nothing(&self) {
        if self.is(state::AWAITED) {
            self.unmark(state::AWAITED);
            self.progress.set(Progress::default());
        }
    }

    /// The same for a use, which is one of several from here on.
    #[cold]
    pub(super) fn expect_no_use(&self) {
        if self.is(state::AWAITED) {
            self.unmark(state::AWAITED);
            self.keep_use(UseId::of(self.awaited.get()));
        }
    }

    /// Keeps what tells a use in flight that is not awaited.
    pub(super) fn keep_use(&self, id: UseId) {
        let (word, bit) = self.sequence_bit(id.sequence());
        word.set(word.get() | bit);
        let tokens = self.tokens.get_or_init(|| Box::new([const { Cell::new(0) }; 256]));
        tokens[usize::from(id.sequence())].set(id.token());
    }

    /// The caller's part of a name has changed.
    #[inline(always)]
    pub(super) fn rename(&self, from: u64, to: u64) {
        if self.awaited.get() == from {
            self.awaited.set(to);
        } else {
            self.rename_use(UseId::of(to));
        }
    }

    #[cold]
    fn rename_use(&self, id: UseId) {
        if matches!(id.kind(), Some(Kind::Use | Kind::UseRanges)) {
            self.keep_use(id);
        }
    }

    /// How many uses in flight have this token. None of those is awaited from here on, so that their
    /// ends are told.
    pub(super) fn watch_uses(&self, token: u16) -> u32 {
        let awaits_use = self.is(state::AWAITED) && !self.is(state::FILLING | state::RELEASING);
        if awaits_use && UseId::of(self.awaited.get()).token() == token {
            self.expect_no_use();
        }
        let Some(tokens) = self.tokens.get() else { return 0 };
        let has = |sequence: &u8| {
            let (word, bit) = self.sequence_bit(*sequence);
            word.get() & bit != 0 && tokens[usize::from(*sequence)].get() == token
        };
        (0..=u8::MAX).filter(has).count() as u32
    }

    /// The word and the bit of a use's sequence number.
    #[inline]
    fn sequence_bit(&self, sequence: u8) -> (&Cell<u64>, u64) {
        (&self.sequences[usize::from(sequence >> 6)], 1 << (sequence & 63))
    }

    /// The upper half of the next use's name. Only where no use is in flight nobody can have it.
    #[inline(always)]
    pub(super) fn next_use(&self) -> u32 {
        self.next_use.replace(next_use(self.next_use.get()))
    }

    /// The same, with a sequence number that no use in flight has. None of them is awaited then.
    #[inline(never)]
    pub(super) fn free_use(&self) -> Option<u32> {
        if self.requests() > 0 {
            self.expect_no_use();
        }
        let taken = |upper: u32| {
            let (word, bit) = self.sequence_bit(UseId::of(u64::from(upper) << 32).sequence());
            word.get() & bit != 0
        };
        (0..=u8::MAX).map(|_| self.next_use()).find(|upper| !taken(*upper))
    }

    /// Ends a use; whether it was in flight.
    pub(super) fn end_use(&self, id: UseId) -> bool {
        // Whatever the caller's part of the name is.
        let same = (self.awaited.get() ^ id.user_data()) & !user_data::TOKEN == 0;
        if same && self.is(state::AWAITED) {
            self.unmark(state::AWAITED);
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

    // Not seldom, but the other way is to go straight on.
    #[cold]
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
        let core = &*self.core;
        self.state.set(state::FREE | left);
        self.next.set(core.free.replace(self.index));
        core.freed.set(core.freed.get() + 1);
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

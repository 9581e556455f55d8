// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state machine of the slots: every transition, and nothing that a user sees.

use std::cell::Cell;
use std::fmt;

use io_uring::opcode::ReadFixed;
use io_uring::squeue::{Entry, Flags};

use super::event::{Event, Stats};
use super::ident::{DRIVER_KINDS, Kind, LeaseId, UseId, user_data};
use super::prepared::{Clear, Outgoing, Prepared, PreparedChain};
use super::provided::{Provided, Resolved};
use crate::chain::{Chain, ChainOutcome, Progress};
use crate::consume::{self, Consumer, MAX_RANGES, Piece, SendFlags, on};
use crate::engine::{Engine, Lender, Source};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::opcode::Target;
use crate::pool::Pool;
use crate::probe::Features;

/// End of a list of slots.
const NIL: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Fetching,
    Ready,
    Failed(Errno),
    Chained,
}

/// What can be true of a slot, beside its phase.
mod is {
    /// A `Lease` names it.
    pub(super) const HELD: u8 = 1;
    /// The kernel holds a buffer in it.
    pub(super) const INSTALLED: u8 = 2;
    /// It is in the outbox.
    pub(super) const QUEUED: u8 = 4;
    /// A release is in flight.
    pub(super) const RELEASING: u8 = 8;
    /// Its array of ranges is in use.
    pub(super) const RANGING: u8 = 16;
    /// The kernel still holds the buffer of a lease that is over, to be replaced by the next one.
    pub(super) const LEFT: u8 = 32;
    /// Its chain has had a completion that was not the last.
    pub(super) const NOTED: u8 = 64;
    /// Its fetch is being cancelled.
    pub(super) const CANCELLED: u8 = 128;
}

/// One slot. Plain cells: the table is never shared between threads.
struct Slot {
    /// Next in the free list or in the outbox; a slot is never in both.
    next: Cell<u16>,
    generation: Cell<u16>,
    phase: Cell<Phase>,
    /// Who serves this fetch: the lender, or the pool.
    engine: Cell<Engine>,
    /// What is true of it; see [`is`].
    marks: Cell<u8>,
    /// Counts the uses, so that each has a `user_data` of its own,
    sequence: Cell<u8>,
    /// and which of these numbers are in flight: one that has come round may still be.
    sequences: [Cell<u64>; 4],
    /// Requests that have been handed out and have not had their last completion.
    inflight: Cell<u32>,
    /// Bytes asked for, then bytes there.
    len: Cell<u32>,
    /// For a fetch that has to be sent again through the pool.
    source: Cell<(Source, u64)>,
    /// For a chain: what it does, and what it has done if that is [noted](is::NOTED).
    consumer: Cell<Consumer>,
    progress: Cell<Progress>,
}

impl Slot {
    fn new(next: u16) -> Self {
        Self {
            next: Cell::new(next),
            generation: Cell::new(0),
            phase: Cell::new(Phase::Free),
            engine: Cell::new(Engine::Copy),
            marks: Cell::new(0),
            sequence: Cell::new(0),
            sequences: Default::default(),
            inflight: Cell::new(0),
            len: Cell::new(0),
            source: Cell::new((Source::copied(Target::Fd(-1)), 0)),
            consumer: Cell::new(Consumer::Write { sink: Target::Fd(-1), offset: 0 }),
            progress: Cell::new(Progress::default()),
        }
    }

    #[inline]
    fn id(&self, index: u16) -> LeaseId {
        LeaseId::new(index, self.generation.get())
    }

    #[inline]
    fn is(&self, mark: u8) -> bool {
        self.marks.get() & mark != 0
    }

    #[inline]
    fn mark(&self, mark: u8) {
        self.marks.set(self.marks.get() | mark);
    }

    #[inline]
    fn unmark(&self, mark: u8) {
        self.marks.set(self.marks.get() & !mark);
    }

    #[inline]
    fn is_lent(&self) -> bool {
        self.engine.get().lends()
    }

    /// The word and the bit of a use's sequence number.
    #[inline]
    fn sequence_bit(&self, sequence: u8) -> (&Cell<u64>, u64) {
        (&self.sequences[usize::from(sequence >> 6)], 1 << (sequence & 63))
    }

    /// A sequence number that no use in flight has.
    #[inline(always)]
    fn take_sequence(&self) -> Option<u8> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let (word, bit) = self.sequence_bit(sequence);
        if word.get() & bit != 0 {
            return self.search_sequence();
        }
        word.set(word.get() | bit);
        Some(sequence)
    }

    /// The numbers have come round to one that is still in flight.
    #[cold]
    fn search_sequence(&self) -> Option<u8> {
        let next = self.sequence.get();
        let sequence = (0..=u8::MAX).map(|step| next.wrapping_add(step)).find(|sequence| {
            let (word, bit) = self.sequence_bit(*sequence);
            word.get() & bit == 0
        })?;
        let (word, bit) = self.sequence_bit(sequence);
        word.set(word.get() | bit);
        self.sequence.set(sequence.wrapping_add(1));
        Some(sequence)
    }

    /// Gives a sequence number back; whether it was taken.
    #[inline]
    fn return_sequence(&self, sequence: u8) -> bool {
        let (word, bit) = self.sequence_bit(sequence);
        word.replace(word.get() & !bit) & bit != 0
    }

    /// The sequence number of a chain's requests: those through the pool have another one than
    /// those that a lender refused before.
    #[inline]
    fn attempt(&self) -> u8 {
        u8::from(!self.is_lent())
    }

    /// One more request names it.
    #[inline]
    fn begin(&self) {
        self.inflight.set(self.inflight.get() + 1);
    }

    /// One request that names it has had its last completion.
    #[inline(always)]
    fn finish(&self) {
        self.inflight.set(self.inflight.get() - 1);
    }
}

/// Is told what of a slot has had its last completion, and so names its files no more.
pub(crate) trait Ends {
    /// The fetch into this slot.
    fn fetch(&self, slot: u16);
    /// A use with this token.
    fn consumer(&self, token: u16);
    /// The chain in this slot.
    fn chain(&self, slot: u16);
}

/// For a driver that looks after the files by itself.
impl Ends for () {
    fn fetch(&self, _: u16) {}
    fn consumer(&self, _: u16) {}
    fn chain(&self, _: u16) {}
}

/// An engine that lends kernel memory, and its part of the ring's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lending {
    pub(super) lender: Lender,
    /// The table's index of slot 0.
    pub(super) first: u16,
    /// A released slot is not emptied: the next fetch replaces what is in it.
    pub(super) replace: bool,
}

/// The state that slots, leases and prepared requests share.
pub(crate) struct Core {
    slots: Box<[Slot]>,
    /// One array of ranges per slot, for vectored writes.
    ranges: Box<[Cell<[libc::iovec; MAX_RANGES]>]>,
    lending: Option<Lending>,
    pool: Option<(Pool, u16)>,
    provided: Option<Provided>,
    features: Features,
    /// Who serves a fetch at first.
    engine: Engine,
    /// Most bytes of one fetch.
    max_fetch: u32,
    /// The tag, in its place.
    tag: u64,
    free: Cell<u16>,
    free_count: Cell<u16>,
    outbox: Cell<(u16, u16)>,
    fetches: Cell<u64>,
    fallbacks: Cell<u64>,
    stale: Cell<u64>,
}

impl Lending {
    #[inline(always)]
    fn fetch(&self, index: u16, slot: &Slot, source: Source, offset: u64, len: u32) -> Entry {
        let lent = source.lent_by(self.lender).unwrap_or(source.file());
        self.lender.fetch(lent, offset, len, self.first + index, slot.is(is::LEFT))
    }

    /// Whether a chain ends with the release of its slot.
    #[inline]
    fn chain_releases(&self) -> bool {
        !self.replace && self.lender.can_release()
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("slots", &self.slots.len())
            .field("free", &self.free_count.get())
            .field("lending", &self.lending)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Core {
    pub(super) fn new(
        count: u16,
        lending: Option<Lending>,
        pool: Option<(Pool, u16)>,
        regions: Option<(u16, u16)>,
        features: Features,
        tag: u8,
    ) -> Self {
        let no_range = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            slots: (1..=count)
                .map(|next| Slot::new(if next < count { next } else { NIL }))
                .collect(),
            ranges: (0..count).map(|_| Cell::new([no_range; MAX_RANGES])).collect(),
            engine: lending.map_or(Engine::Copy, |lending| lending.lender.engine()),
            max_fetch: pool.as_ref().map_or(i32::MAX as u32, |(pool, _)| pool.block_size()),
            lending,
            pool,
            provided: regions.map(|(first, regions)| Provided::new(count, first, regions)),
            features,
            tag: u64::from(tag) << user_data::TAG_SHIFT,
            free: Cell::new(0),
            free_count: Cell::new(count),
            outbox: Cell::new((NIL, NIL)),
            fetches: Cell::new(0),
            fallbacks: Cell::new(0),
            stale: Cell::new(0),
        }
    }

    /// Reserves a slot and makes the request that fills it.
    #[inline(always)]
    pub(super) fn fetch(&self, source: Source, offset: u64, len: u32) -> Result<(LeaseId, Entry)> {
        let (index, slot) = self.reserve(len, Phase::Fetching, source)?;
        slot.mark(is::HELD);
        Ok((slot.id(index), self.fetch_entry(index, slot, source, offset)))
    }

    /// Reserves a slot for a chain, whose requests are still to be made.
    pub(super) fn chain(&self, chain: Chain) -> Result<(LeaseId, PreparedChain<'_>)> {
        let (index, slot, _) = self.begin_chain(chain)?;
        Ok((slot.id(index), PreparedChain::new(self, index, false)))
    }

    /// The same, and makes its requests, for a driver that has made sure that it can push three.
    #[inline(always)]
    pub(super) fn start_chain(&self, chain: Chain, request: impl FnMut(Entry)) -> Result<LeaseId> {
        let (index, slot, chain) = self.begin_chain(chain)?;
        self.chain_entries(index, slot, chain, request);
        Ok(slot.id(index))
    }

    #[inline(always)]
    fn begin_chain(&self, chain: Chain) -> Result<(u16, &Slot, Chain)> {
        if matches!(chain.consumer, Consumer::SendZc { .. }) {
            self.features.need_send_zc()?;
        }
        let (index, slot) = self.reserve(chain.len, Phase::Chained, chain.source)?;
        let consumer = chain.consumer.waiting_for_all();
        slot.consumer.set(consumer);
        slot.source.set((chain.source, chain.offset));
        Ok((index, slot, Chain { consumer, ..chain }))
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn free(&self) -> usize {
        usize::from(self.free_count.get())
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            fetches: self.fetches.get(),
            fallbacks: self.fallbacks.get(),
            stale: self.stale.get(),
        }
    }

    /// Requests that the kernel may have. A fetch that waits to be sent once more is not one.
    pub(super) fn in_flight(&self) -> u64 {
        let fetching = |slot: &&Slot| matches!(slot.phase.get(), Phase::Fetching | Phase::Chained);
        let waiting = self.slots.iter().filter(|slot| slot.is(is::QUEUED)).filter(fetching).count();
        let counted: u64 = self.slots.iter().map(|slot| u64::from(slot.inflight.get())).sum();
        counted - waiting as u64
    }

    pub(super) fn is_emptying(&self) -> bool {
        self.slots.iter().any(|slot| slot.is(is::QUEUED | is::RELEASING))
    }

    pub(super) fn tag(&self) -> u8 {
        (self.tag >> user_data::TAG_SHIFT) as u8
    }

    #[inline]
    fn slot(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    #[inline]
    pub(super) fn max_fetch(&self) -> u32 {
        self.max_fetch
    }

    #[inline(always)]
    pub(super) fn claims(&self, user_data: u64) -> bool {
        (user_data ^ self.tag) >> user_data::KIND_SHIFT < u64::from(DRIVER_KINDS)
    }

    #[inline(always)]
    fn user_data(&self, kind: Kind, index: u16, slot: &Slot) -> u64 {
        self.tag
            | (kind as u64) << user_data::KIND_SHIFT
            | u64::from(index) << user_data::SLOT_SHIFT
            | u64::from(slot.generation.get())
    }

    /// Takes a slot from the free list.
    #[inline(always)]
    fn reserve(&self, len: u32, phase: Phase, source: Source) -> Result<(u16, &Slot)> {
        let index = self.free.get();
        if index == NIL || len.wrapping_sub(1) >= self.max_fetch {
            return Err(self.refusal(len));
        }
        let slot = self.slot(index);
        self.free.set(slot.next.get());
        self.free_count.set(self.free_count.get() - 1);
        slot.engine.set(self.engine_for(source));
        slot.len.set(len);
        slot.phase.set(phase);
        slot.inflight.set(1);
        self.fetches.set(self.fetches.get() + 1);
        Ok((index, slot))
    }

    /// Who serves a fetch from this source at first.
    #[inline(always)]
    fn engine_for(&self, source: Source) -> Engine {
        match self.lending {
            Some(Lending { lender, .. })
                if source.lent_by(lender).is_none() && self.pool.is_some() =>
            {
                self.fallbacks.set(self.fallbacks.get() + 1);
                Engine::Copy
            }
            _ => self.engine,
        }
    }

    #[cold]
    pub(super) fn refusal(&self, len: u32) -> Error {
        let most = self.max_fetch;
        if len == 0 || len > most {
            let what = format!("a fetch of {len} bytes: it can ask for 1 to {most} bytes");
            return Error::new(ErrorKind::InvalidInput, what);
        }
        let slots = self.slots.len();
        let what =
            format!("all {slots} slots are taken: release a lease, or let requests complete");
        Error::new(ErrorKind::NoSlot, what)
    }

    /// Brings a slot on its way: into the outbox if there is a buffer to give back, into the free
    /// list if nothing is left that names it.
    #[inline(always)]
    fn settle(&self, index: u16, slot: &Slot) {
        if slot.is(is::HELD | is::QUEUED | is::RELEASING) {
            return;
        }
        if slot.is(is::INSTALLED) {
            if !self.lending.is_some_and(|lending| lending.replace) {
                return self.enqueue(index, slot);
            }
            slot.unmark(is::INSTALLED);
            slot.mark(is::LEFT);
        }
        if slot.inflight.get() == 0 {
            debug_assert_ne!(slot.phase.get(), Phase::Free, "slot {index} is freed twice");
            slot.phase.set(Phase::Free);
            slot.unmark(is::CANCELLED);
            slot.generation.set((slot.generation.get() + 1) & user_data::GENERATION as u16);
            slot.next.set(self.free.replace(index));
            self.free_count.set(self.free_count.get() + 1);
            if slot.engine.get() == Engine::Provider {
                self.give_back(index, slot);
            }
        }
    }

    /// The slot is free, and nobody uses its provider's memory any more. The provider is told last:
    /// it may let other leases go.
    #[cold]
    fn give_back(&self, index: u16, slot: &Slot) {
        slot.engine.set(Engine::Copy);
        if let Some(provided) = &self.provided {
            provided.release(index);
        }
    }

    fn enqueue(&self, index: u16, slot: &Slot) {
        let (first, last) = self.outbox.get();
        slot.mark(is::QUEUED);
        slot.next.set(NIL);
        if last == NIL {
            self.outbox.set((index, index));
        } else {
            self.slot(last).next.set(index);
            self.outbox.set((first, index));
        }
    }

    #[inline]
    pub(super) fn has_requests(&self) -> bool {
        self.outbox.get().0 != NIL || self.provided.as_ref().is_some_and(Provided::has_vacated)
    }

    pub(super) fn next_request(&self) -> Option<Outgoing<'_>> {
        let (index, last) = self.outbox.get();
        if index == NIL {
            let entry = self.provided.as_ref()?.next_vacated()?;
            return Some(Outgoing::Clear(Clear::entry(self, entry)));
        }
        let slot = self.slot(index);
        self.outbox.set(if index == last { (NIL, NIL) } else { (slot.next.get(), last) });
        slot.unmark(is::QUEUED);
        Some(match slot.phase.get() {
            // Refused by the lender, and still counted in `inflight`.
            Phase::Fetching => {
                let (source, offset) = slot.source.get();
                let entry = self.fetch_entry(index, slot, source, offset);
                Outgoing::Request(Prepared::new(entry, self, true))
            }
            Phase::Chained => Outgoing::Chain(PreparedChain::new(self, index, true)),
            _ => {
                slot.mark(is::RELEASING);
                slot.begin();
                let Lending { lender, first, .. } =
                    self.lending.expect("only a lender installs buffers");
                let user_data = self.user_data(Kind::Release, index, slot);
                match lender.release(first + index) {
                    Some(entry) => {
                        Outgoing::Request(Prepared::new(entry.user_data(user_data), self, true))
                    }
                    None => Outgoing::Clear(Clear::new(self, first + index, user_data)),
                }
            }
        })
    }

    /// Sends away what replaced slots still hold.
    pub(super) fn trim(&self) {
        self.free.set(NIL);
        self.free_count.set(0);
        for (index, slot) in (0..).zip(&self.slots) {
            if slot.phase.get() != Phase::Free {
                continue;
            }
            // Out of the free list, which is built anew.
            slot.phase.set(Phase::Ready);
            if slot.is(is::LEFT) {
                slot.unmark(is::LEFT);
                slot.mark(is::INSTALLED);
                self.enqueue(index, slot);
            } else {
                self.settle(index, slot);
            }
        }
    }

    /// The request that fetches, by whoever serves this slot now.
    #[inline(always)]
    fn fetch_entry(&self, index: u16, slot: &Slot, source: Source, offset: u64) -> Entry {
        let (len, user_data) = (slot.len.get(), self.user_data(Kind::Fetch, index, slot));
        if let (Some(lending), true) = (self.lending, slot.is_lent()) {
            slot.source.set((source, offset));
            return lending.fetch(index, slot, source, offset, len).user_data(user_data);
        }
        self.read_entry(index, source.file(), offset, len).user_data(user_data)
    }

    #[inline(always)]
    fn read_entry(&self, index: u16, source: Target, offset: u64, len: u32) -> Entry {
        let (pool, table) = self.pool.as_ref().expect("the copy engine has a pool");
        on!(source, |fd| ReadFixed::new(fd, pool.block(index), len, *table).offset(offset).build())
    }

    /// Bytes `start..start + len` of a slot, as the engine that serves it names them.
    #[inline(always)]
    fn piece(&self, index: u16, slot: &Slot, start: u32, len: u32) -> Piece {
        if slot.engine.get() == Engine::Provider {
            return self.provided_piece(index, start, len);
        }
        match (&self.pool, self.lending) {
            (Some((pool, table)), _) if !slot.is_lent() => {
                Piece { addr: pool.block(index) as u64 + u64::from(start), len, index: *table }
            }
            (_, Some(Lending { first, .. })) => {
                Piece { addr: u64::from(start), len, index: first + index }
            }
            _ => unreachable!("slots have a pool or a lender"),
        }
    }

    #[cold]
    fn provided_piece(&self, index: u16, start: u32, len: u32) -> Piece {
        let provided = self.provided.as_ref().expect("it was filled by a provider");
        provided.piece(index, start, len)
    }

    #[inline(always)]
    fn consumer_entry(&self, slot: &Slot, piece: Piece, consumer: Consumer) -> Entry {
        match consumer {
            Consumer::Write { sink, offset } => piece.write(sink, offset),
            Consumer::Send { sink, flags } => self.send_entry(slot, piece, sink, flags),
            Consumer::SendZc { sink, flags } => piece.send_zc(sink, flags),
        }
    }

    #[inline]
    fn send_entry(&self, slot: &Slot, piece: Piece, sink: Target, flags: SendFlags) -> Entry {
        // A kernel that lends memory is newer than 7.2 and takes registered buffers here.
        if self.features.fixed_send || slot.is_lent() {
            piece.send(sink, flags)
        } else {
            piece.send_by_address(sink, flags)
        }
    }

    /// Whether the chain in a slot ends with its release.
    #[inline(always)]
    fn chain_releases(&self, slot: &Slot) -> bool {
        slot.is_lent() && self.lending.is_some_and(|lending| lending.chain_releases())
    }

    /// How many requests a chain has, by whoever serves its slot now.
    #[inline]
    pub(super) fn chain_len(&self, index: u16) -> usize {
        if self.chain_releases(self.slot(index)) { 3 } else { 2 }
    }

    /// How many requests a chain from this source will have.
    #[inline]
    pub(super) fn chain_len_from(&self, source: Source) -> usize {
        match self.lending {
            Some(lending)
                if lending.chain_releases()
                    && (source.lent_by(lending.lender).is_some() || self.pool.is_none()) =>
            {
                3
            }
            _ => 2,
        }
    }

    /// The linked requests of the chain in a slot.
    pub(super) fn chain_requests(&self, index: u16, request: impl FnMut(Entry)) {
        let slot = self.slot(index);
        let (source, offset) = slot.source.get();
        let consumer = slot.consumer.get();
        let chain = Chain { source, offset, len: slot.len.get(), consumer };
        self.chain_entries(index, slot, chain, request);
    }

    /// The linked requests of a chain, in their order.
    ///
    /// Where the chain ends with the release, the links are hard, so that the slot is emptied in
    /// every case; it holds exactly what was fetched. Otherwise they are soft: a fetch that fails
    /// or comes back short must not be followed by a consumer of what an earlier lease left in the
    /// block or in the slot.
    #[inline(always)]
    fn chain_entries(&self, index: u16, slot: &Slot, chain: Chain, mut request: impl FnMut(Entry)) {
        let Chain { source, offset, len, consumer } = chain;
        let attempt = u64::from(slot.attempt()) << user_data::SEQUENCE_SHIFT;
        let name = |kind| self.user_data(kind, index, slot) | attempt;
        let consume = self
            .consumer_entry(slot, self.piece(index, slot, 0, len), consumer)
            .user_data(name(Kind::ChainUse));
        let fetch = match self.lending {
            Some(lending) if slot.is_lent() => lending.fetch(index, slot, source, offset, len),
            _ => self.read_entry(index, source.file(), offset, len),
        };
        let fetch = fetch.user_data(name(Kind::ChainFetch));
        let fetch = fetch.flags(Flags::SKIP_SUCCESS);
        let release = self
            .lending
            .filter(|_| self.chain_releases(slot))
            .and_then(|Lending { lender, first, .. }| lender.release(first + index));
        if let Some(release) = release {
            let hard = Flags::IO_HARDLINK;
            // The kernel refuses to skip the completions of SEND_ZC.
            let skip = match consumer {
                Consumer::SendZc { .. } => Flags::empty(),
                _ => Flags::SKIP_SUCCESS,
            };
            request(fetch.flags(hard));
            request(consume.flags(hard | skip));
            request(release.user_data(name(Kind::ChainRelease)));
        } else {
            request(fetch.flags(Flags::IO_LINK));
            request(consume);
        }
    }

    /// Says what a completion of ours meant, and tells what it ends.
    #[inline(always)]
    pub(super) fn complete(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        ends: &impl Ends,
    ) -> Event {
        let name = UseId::of(user_data);
        let id = name.lease();
        let Some(slot) = self.slots.get(usize::from(id.slot())) else { return self.stale() };
        if slot.generation.get() != id.generation() || slot.inflight.get() == 0 {
            return self.stray(flags);
        }
        match Kind::of(user_data) {
            Some(Kind::Fetch) => self.fetched(id, slot, result, ends),
            Some(kind @ (Kind::Use | Kind::UseRanges)) => {
                self.used(name, slot, kind, result, flags, ends)
            }
            Some(Kind::Release) => self.released(id, slot, result),
            Some(kind @ (Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease)) => {
                self.chained(name, slot, kind, result, flags, ends)
            }
            None => self.stale(),
        }
    }

    #[cold]
    fn stale(&self) -> Event {
        self.stale.set(self.stale.get() + 1);
        Event::Stale
    }

    /// A completion that answers nothing. The kernel sends a notification for a `SEND_ZC` that
    /// never ran, because a request before it in its link failed, and does not announce it
    /// (`IORING_CQE_F_MORE`) in the first completion, if it posts that at all. Nothing has used
    /// the buffer then, so nobody waits for it.
    #[cold]
    fn stray(&self, flags: u32) -> Event {
        if io_uring::cqueue::notif(flags) { Event::Pending } else { self.stale() }
    }

    /// Whether the pool is to serve what the lender has just refused.
    #[inline]
    fn falls_back(&self, slot: &Slot, result: i32) -> bool {
        result < 0 && self.refused(slot, result)
    }

    /// It refuses a file that cannot lend its memory, and what would be more than may be pinned
    /// (the module: `EDQUOT`). The pool has its memory already.
    #[cold]
    fn refused(&self, slot: &Slot, result: i32) -> bool {
        let refused =
            matches!(Errno::check(result), Err(Errno::NOTSUPP | Errno::NOMEM | Errno::DQUOT));
        let again = refused && slot.is_lent() && self.pool.is_some() && !slot.is(is::CANCELLED);
        if again {
            slot.engine.set(Engine::Copy);
            self.fallbacks.set(self.fallbacks.get() + 1);
        }
        again
    }

    /// A fetch of so many bytes has succeeded.
    #[inline(always)]
    fn installed(&self, slot: &Slot, len: u32) {
        let lending = self.lending.filter(|_| slot.is_lent());
        if lending.is_some_and(|lending| len != 0 || lending.lender.installs_empty()) {
            slot.unmark(is::LEFT);
            slot.mark(is::INSTALLED);
        }
    }

    #[inline(always)]
    fn fetched(&self, id: LeaseId, slot: &Slot, result: i32, ends: &impl Ends) -> Event {
        if slot.phase.get() != Phase::Fetching {
            return self.stale();
        }
        if self.falls_back(slot, result) {
            self.enqueue(id.slot(), slot);
            return Event::Pending;
        }
        slot.finish();
        let mut result = Errno::check(result).map(|len| len.min(slot.len.get()));
        match &mut result {
            Ok(len) => {
                slot.phase.set(Phase::Ready);
                slot.len.set(*len);
                self.installed(slot, *len);
            }
            Err(errno) => {
                if slot.is(is::CANCELLED) && *errno == Errno::NOTSUPP {
                    *errno = Errno::CANCELED;
                }
                slot.phase.set(Phase::Failed(*errno));
            }
        }
        self.settle(id.slot(), slot);
        ends.fetch(id.slot());
        Event::Fetched { lease: id, result }
    }

    #[inline(always)]
    fn used(
        &self,
        id: UseId,
        slot: &Slot,
        kind: Kind,
        result: i32,
        flags: u32,
        ends: &impl Ends,
    ) -> Event {
        let more = io_uring::cqueue::more(flags);
        if !more {
            if !slot.return_sequence(id.sequence()) {
                return self.stray(flags);
            }
            if kind == Kind::UseRanges {
                slot.unmark(is::RANGING);
            }
            slot.finish();
            self.settle(id.lease().slot(), slot);
            ends.consumer(id.token());
        }
        if io_uring::cqueue::notif(flags) {
            Event::Returned { id }
        } else {
            Event::Used { id, result: Errno::check(result), more }
        }
    }

    #[inline]
    fn released(&self, id: LeaseId, slot: &Slot, result: i32) -> Event {
        if !slot.is(is::RELEASING) {
            return self.stale();
        }
        slot.unmark(is::RELEASING);
        slot.finish();
        // Cancelled: it never ran, and the buffer is still there. Any other error says that there
        // is nothing of ours in the slot.
        let again = Errno::check(result) == Err(Errno::CANCELED);
        if !again {
            slot.unmark(is::INSTALLED);
        }
        self.settle(id.slot(), slot);
        if again { Event::Pending } else { Event::Released { lease: id } }
    }

    #[inline(always)]
    fn chained(
        &self,
        name: UseId,
        slot: &Slot,
        kind: Kind,
        result: i32,
        flags: u32,
        ends: &impl Ends,
    ) -> Event {
        let (id, len) = (name.lease(), slot.len.get());
        // Nearly always: all of it went through, and this was the only word.
        if flags == 0 && slot.phase.get() == Phase::Chained && !slot.is(is::NOTED) {
            let releases = self.chain_releases(slot);
            let used = kind == Kind::ChainUse && !releases && result as u32 == len;
            if used || kind == Kind::ChainRelease {
                if !releases {
                    self.installed(slot, len);
                }
                self.chain_over(id.slot(), slot);
                ends.chain(id.slot());
                return Event::Chained { id, outcome: ChainOutcome::Done(len) };
            }
        }
        let event = self.chain_went_on(name, slot, kind, result, flags);
        if matches!(event, Event::Chained { .. }) {
            ends.chain(id.slot());
        }
        event
    }

    /// A completion of a chain, of any kind.
    #[inline(never)]
    fn chain_went_on(
        &self,
        name: UseId,
        slot: &Slot,
        kind: Kind,
        result: i32,
        flags: u32,
    ) -> Event {
        if slot.phase.get() != Phase::Chained {
            return self.stray(flags);
        }
        let id = name.lease();
        let releases = self.chain_releases(slot);
        if !slot.is(is::NOTED) {
            slot.progress.set(Progress::default());
        }
        let mut progress = slot.progress.get();
        let done = match kind {
            // Posted only where it is not as asked. A soft link stops here.
            Kind::ChainFetch => {
                progress.fetched = Some(result);
                !releases
            }
            Kind::ChainUse => {
                let (more, notif) = (io_uring::cqueue::more(flags), io_uring::cqueue::notif(flags));
                if notif && (!progress.unreturned || name.sequence() != slot.attempt()) {
                    return self.stray(flags);
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
        slot.progress.set(progress);
        slot.mark(is::NOTED);
        if !done {
            return Event::Pending;
        }
        slot.unmark(is::NOTED);
        if progress.fetched.is_some_and(|result| self.falls_back(slot, result)) {
            self.enqueue(id.slot(), slot);
            return Event::Pending;
        }
        let fetched = progress.fetched.map_or(Ok(slot.len.get()), Errno::check);
        if let (Ok(len), false) = (fetched, releases) {
            self.installed(slot, len);
        }
        self.chain_over(id.slot(), slot);
        Event::Chained { id, outcome: progress.outcome(slot.len.get()) }
    }

    /// The last completion of a chain. What it has left in its slot, if it does not release, is
    /// released as that of a lease: the chain itself is not to be sent again.
    #[inline(always)]
    fn chain_over(&self, index: u16, slot: &Slot) {
        slot.phase.set(Phase::Ready);
        slot.finish();
        self.settle(index, slot);
    }

    /// The request was never pushed.
    #[cold]
    pub(super) fn retract(&self, user_data: u64, requeue: bool) {
        let id = UseId::of(user_data).lease();
        let (slot, Some(kind)) = (self.slot(id.slot()), Kind::of(user_data)) else { return };
        let cancelled = -Errno::CANCELED.raw();
        match kind {
            // A release that was cancelled is sent again anyway.
            Kind::Release => {
                self.released(id, slot, cancelled);
            }
            _ if requeue => self.enqueue(id.slot(), slot),
            Kind::Fetch => {
                self.fetched(id, slot, cancelled, &());
            }
            Kind::Use | Kind::UseRanges => {
                self.used(UseId::of(user_data), slot, kind, cancelled, 0, &());
            }
            Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease => {}
        }
    }

    /// A chain was never pushed.
    #[cold]
    pub(super) fn retract_chain(&self, index: u16, requeue: bool) {
        let slot = self.slot(index);
        if requeue {
            return self.enqueue(index, slot);
        }
        slot.finish();
        self.settle(index, slot);
    }
}

/// Memory of providers.
impl Core {
    pub(super) fn provided(&self) -> Result<&Provided> {
        self.provided.as_ref().ok_or_else(|| {
            let what = "the ring was built without room for a provider's memory";
            Error::new(ErrorKind::NoRegion, what)
        })
    }

    /// Gives a buffer that is ready to a slot, which is so at once.
    pub(super) fn fill_provided(&self, resolved: Resolved) -> Result<LeaseId> {
        let provided = self.provided()?;
        let index = self.free.get();
        if index == NIL {
            provided.refuse(resolved);
            return Err(self.refusal(1));
        }
        let slot = self.slot(index);
        self.free.set(slot.next.get());
        self.free_count.set(self.free_count.get() - 1);
        self.fetches.set(self.fetches.get() + 1);
        slot.engine.set(Engine::Provider);
        slot.len.set(resolved.len());
        slot.phase.set(Phase::Ready);
        slot.mark(is::HELD);
        provided.put(index, resolved);
        Ok(slot.id(index))
    }

    pub(super) fn entry_cleared(&self, entry: u16) {
        if let Some(provided) = &self.provided {
            provided.return_entry(entry);
        }
    }

    pub(super) fn entry_not_cleared(&self, entry: u16) {
        if let Some(provided) = &self.provided {
            provided.vacate(entry);
        }
    }
}

/// What a lease does to its slot.
impl Core {
    /// The `Lease` is gone, however it went.
    #[inline]
    pub(crate) fn let_go(&self, index: u16) {
        let slot = self.slot(index);
        slot.unmark(is::HELD);
        self.settle(index, slot);
    }

    /// Has a fetch that is being cancelled not repeated through the pool.
    pub(super) fn cancel_fallback(&self, index: u16) {
        self.slot(index).mark(is::CANCELLED);
    }

    /// What the fetch came to; `None` while it runs.
    #[inline]
    pub(crate) fn fetch_result(&self, index: u16) -> Option<Result<u32, Errno>> {
        match self.slot(index).phase.get() {
            Phase::Ready => Some(Ok(self.slot(index).len.get())),
            Phase::Failed(errno) => Some(Err(errno)),
            Phase::Free | Phase::Fetching | Phase::Chained => None,
        }
    }

    pub(crate) fn slot_len(&self, index: u16) -> u32 {
        self.slot(index).len.get()
    }

    /// Bytes of a slot that is ready.
    pub(crate) fn piece_of(&self, index: u16, start: u32, len: u32) -> Piece {
        self.piece(index, self.slot(index), start, len)
    }

    /// Copies bytes of a slot that is ready and in the program's memory; how many, at least one.
    /// They are there: the range lies in its lease.
    pub(crate) fn copy_out(&self, index: u16, start: u32, into: &mut [u8]) -> usize {
        let piece = self.piece_of(index, start, into.len() as u32);
        let len = piece.len as usize;
        debug_assert!(len <= into.len(), "no more than was asked for");
        // SAFETY: so many bytes of the pool, which lives as long as this does, begin there. No
        // reference into it is ever made, and no request writes into a slot that is ready.
        unsafe { (piece.addr as *const u8).copy_to_nonoverlapping(into.as_mut_ptr(), len) };
        len
    }

    pub(crate) fn slot_engine(&self, index: u16) -> Engine {
        self.slot(index).engine.get()
    }

    pub(crate) fn uses(&self, index: u16) -> u32 {
        let slot = self.slot(index);
        slot.inflight.get() - u32::from(slot.is(is::RELEASING))
    }

    /// Whether a lease that was released has left its slot.
    pub(crate) fn is_over(&self, id: LeaseId) -> bool {
        let slot = self.slot(id.slot());
        slot.generation.get() != id.generation() || slot.phase.get() == Phase::Free
    }

    #[inline(always)]
    pub(crate) fn use_slot(
        &self,
        index: u16,
        start: u32,
        len: u32,
        consumer: Consumer,
        token: u16,
    ) -> Result<Entry> {
        if matches!(consumer, Consumer::SendZc { .. }) {
            self.features.need_send_zc()?;
        }
        let slot = self.slot(index);
        let entry = self.consumer_entry(slot, self.piece(index, slot, start, len), consumer);
        self.counted(index, slot, Kind::Use, entry, token)
    }

    pub(crate) fn use_ranges(
        &self,
        index: u16,
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
        let slot = self.slot(index);
        if slot.is(is::RANGING) {
            return Err(Error::new(
                ErrorKind::Busy,
                "a lease takes one vectored write at a time: let the other one complete first",
            ));
        }
        let cell = &self.ranges[usize::from(index)];
        let mut vector = cell.get();
        let mut table = 0;
        for (place, (start, len)) in vector.iter_mut().zip(ranges) {
            let piece = self.piece(index, slot, start, len);
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
        let entry = if self.features.writev_fixed || slot.is_lent() {
            consume::writev(cell.as_ptr().cast(), count, table, sink, offset)
        } else {
            consume::writev_by_address(cell.as_ptr().cast(), count, sink, offset)
        };
        let request = self.counted(index, slot, Kind::UseRanges, entry, 0)?;
        slot.mark(is::RANGING);
        Ok(request)
    }

    /// Counts a use and gives it its name.
    #[inline(always)]
    fn counted(
        &self,
        index: u16,
        slot: &Slot,
        kind: Kind,
        entry: Entry,
        token: u16,
    ) -> Result<Entry> {
        let Some(sequence) = slot.take_sequence() else { return Err(too_many_uses()) };
        slot.begin();
        let user_data = self.user_data(kind, index, slot)
            | u64::from(sequence) << user_data::SEQUENCE_SHIFT
            | u64::from(token) << user_data::TOKEN_SHIFT;
        Ok(entry.user_data(user_data))
    }

    /// A request that can be taken back.
    #[inline]
    pub(crate) fn prepare(&self, entry: Entry) -> Prepared<'_> {
        Prepared::new(entry, self, false)
    }
}

#[cold]
fn too_many_uses() -> Error {
    let what = "256 requests use the lease, and it can name no more: let one complete first";
    Error::new(ErrorKind::Busy, what)
}

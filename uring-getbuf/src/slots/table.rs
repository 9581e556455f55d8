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

/// Who serves the fetch of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Pool,
    Provider,
    /// The lender; where it refuses, the pool.
    Lender,
    /// The same for a fetch that is being cancelled: not the pool.
    LenderAlone,
}

/// What ties a slot: marks, and above them the number of requests that have been handed out and
/// have not had their last completion. A slot that nothing ties is free.
mod tie {
    /// A `Lease` names it.
    pub(super) const HELD: u32 = 1;
    /// The kernel holds a buffer in it.
    pub(super) const INSTALLED: u32 = 2;
    /// It is in the outbox.
    pub(super) const QUEUED: u32 = 4;
    /// A release is in flight, which is one of the requests.
    pub(super) const RELEASING: u32 = 8;
    /// Its array of ranges is in use, by one of the requests.
    pub(super) const RANGING: u32 = 16;
    /// It holds a provider's memory.
    pub(super) const PROVIDED: u32 = 32;
    /// One request.
    pub(super) const REQUEST: u32 = 1 << REQUESTS;
    pub(super) const REQUESTS: u32 = 8;
}

/// No completion has this result.
const NEVER: i32 = i32::MIN;

/// One slot. Plain cells: the table is never shared between threads.
struct Slot {
    /// What the `user_data` of all its requests have in common: tag, slot, and which of its lives.
    name: Cell<u64>,
    /// The one completion that says that the last request, or the chain, went as asked: `user_data`
    /// and result. [`NEVER`]: it was there already, or another one was.
    awaited: Cell<u64>,
    awaited_result: Cell<i32>,
    /// See [`tie`].
    ties: Cell<u32>,
    phase: Cell<Phase>,
    /// Bytes asked for, then bytes there.
    len: Cell<u32>,
    /// What the driver wants to know when the fetch or the chain has ended.
    note: Cell<u32>,
    /// Next in the free list or in the outbox; a slot is never in both.
    next: Cell<u16>,
    server: Cell<Server>,
    /// The kernel still holds the buffer of a lease that is over, to be replaced by the next one.
    left: Cell<bool>,
    /// Counts the uses, so that each has a `user_data` of its own,
    sequence: Cell<u8>,
    /// and which of these numbers are in flight: one that has come round may still be.
    sequences: [Cell<u64>; 4],
    /// Where its block of the pool begins; 0 without a pool.
    block: u64,
    /// For a fetch that has to be sent again through the pool.
    source: Cell<(Source, u64)>,
    /// For a chain: what it does, and what it has done once that is not as [awaited](Self::awaited).
    consumer: Cell<Consumer>,
    progress: Cell<Progress>,
}

impl Slot {
    fn new(name: u64, next: u16, block: u64) -> Self {
        Self {
            name: Cell::new(name),
            awaited: Cell::new(name),
            awaited_result: Cell::new(NEVER),
            ties: Cell::new(0),
            phase: Cell::new(Phase::Free),
            len: Cell::new(0),
            note: Cell::new(0),
            next: Cell::new(next),
            server: Cell::new(Server::Pool),
            left: Cell::new(false),
            sequence: Cell::new(0),
            sequences: Default::default(),
            block,
            source: Cell::new((Source::copied(Target::Fd(-1)), 0)),
            consumer: Cell::new(Consumer::Write { sink: Target::Fd(-1), offset: 0 }),
            progress: Cell::new(Progress::default()),
        }
    }

    #[inline]
    fn id(&self) -> LeaseId {
        UseId::of(self.name.get()).lease()
    }

    /// The `user_data` of a request.
    #[inline(always)]
    fn user_data(&self, kind: Kind) -> u64 {
        self.name.get() | (kind as u64) << user_data::KIND_SHIFT
    }

    /// Whether a `user_data` is that of a request of its present life.
    #[inline(always)]
    fn is_named_by(&self, user_data: u64) -> bool {
        (self.name.get() ^ user_data) & user_data::NAME == 0
    }

    /// The count of lives has run into the slot's number.
    #[cold]
    fn first_life(&self) {
        self.name.set(self.name.get() - (user_data::GENERATION + 1));
    }

    /// Says which completion a request or a chain should have.
    #[inline(always)]
    fn expect(&self, user_data: u64, result: u32) {
        self.awaited.set(user_data);
        self.awaited_result.set(result as i32);
    }

    /// Says that it is not, or no longer, to be expected. From here on a chain keeps its progress.
    fn expect_nothing(&self) {
        if self.awaited_result.replace(NEVER) != NEVER {
            self.progress.set(Progress::default());
        }
    }

    #[inline]
    fn is(&self, mark: u32) -> bool {
        self.ties.get() & mark != 0
    }

    #[inline]
    fn mark(&self, mark: u32) {
        self.ties.set(self.ties.get() | mark);
    }

    #[inline]
    fn unmark(&self, mark: u32) {
        self.ties.set(self.ties.get() & !mark);
    }

    #[inline]
    fn is_lent(&self) -> bool {
        matches!(self.server.get(), Server::Lender | Server::LenderAlone)
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

    /// Keeps what a chain does, for when its requests are made, or made again.
    #[inline]
    fn keep(&self, chain: &Chain) {
        self.source.set((chain.source, chain.offset));
        self.consumer.set(chain.consumer);
    }

    #[inline]
    fn kept(&self) -> Chain {
        let (source, offset) = self.source.get();
        Chain { source, offset, len: self.len.get(), consumer: self.consumer.get() }
    }

    /// One more request names it.
    #[inline]
    fn begin(&self) {
        self.ties.set(self.ties.get() + tie::REQUEST);
    }

    /// One request that names it has had its last completion.
    #[inline(always)]
    fn finish(&self) {
        self.ties.set(self.ties.get() - tie::REQUEST);
    }

    fn requests(&self) -> u32 {
        self.ties.get() >> tie::REQUESTS
    }
}

/// Who drives the slots: is told what a completion ends, and has the last word on some of them.
pub(crate) trait Driver {
    /// A fetch or a chain that was given this note has had its last completion. If that is as it
    /// was to be expected, only those that are [watched](Core::watch) are told of.
    fn noted(&self, _note: u32) {}
    /// A use with this token has.
    fn consumer(&self, _token: u16) {}
    /// A use does not need the buffer any more.
    fn returned(&self, id: UseId) -> Event {
        Event::Returned { id }
    }
    /// A completion that is not the slots'.
    fn other(&self, _user_data: u64, _result: i32, _flags: u32) -> Option<Event> {
        None
    }
}

/// One that leaves everything to its user.
impl Driver for () {}

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
    pool: Option<Pool>,
    /// The pool's index in the ring's table.
    pool_index: u16,
    provided: Option<Provided>,
    features: Features,
    /// Most bytes of one fetch.
    max_fetch: u32,
    /// The tag, in its place.
    tag: u64,
    free: Cell<u16>,
    outbox: Cell<(u16, u16)>,
    /// How often slots were taken from the free list, and put there.
    taken: Cell<u64>,
    freed: Cell<u64>,
    fallbacks: Cell<u64>,
    stale: Cell<u64>,
}

impl Lending {
    #[inline(always)]
    fn fetch(&self, index: u16, slot: &Slot, source: Source, offset: u64, len: u32) -> Entry {
        let lent = source.lent_by(self.lender).unwrap_or(source.file());
        self.lender.fetch(lent, offset, len, self.first + index, slot.left.get())
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
            .field("free", &self.free())
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
        let tag = u64::from(tag) << user_data::TAG_SHIFT;
        let (pool, pool_index) = pool.map_or((None, 0), |(pool, index)| (Some(pool), index));
        let slot = |index: u16| {
            let next = if index + 1 < count { index + 1 } else { NIL };
            let block = pool.as_ref().map_or(0, |pool| pool.block(index) as u64);
            Slot::new(tag | u64::from(index) << user_data::SLOT_SHIFT, next, block)
        };
        Self {
            slots: (0..count).map(slot).collect(),
            ranges: (0..count).map(|_| Cell::new([no_range; MAX_RANGES])).collect(),
            max_fetch: pool.as_ref().map_or(i32::MAX as u32, Pool::block_size),
            lending,
            pool,
            pool_index,
            provided: regions.map(|(first, regions)| Provided::new(count, first, regions)),
            features,
            tag,
            free: Cell::new(0),
            outbox: Cell::new((NIL, NIL)),
            taken: Cell::new(0),
            freed: Cell::new(count.into()),
            fallbacks: Cell::new(0),
            stale: Cell::new(0),
        }
    }

    /// Reserves a slot and makes the request that fills it.
    #[inline(always)]
    pub(super) fn fetch(
        &self,
        source: Source,
        offset: u64,
        len: u32,
        note: u32,
    ) -> Result<(LeaseId, Entry)> {
        let (index, slot) = self.reserve(len, Phase::Fetching)?;
        slot.note.set(note);
        slot.ties.set(tie::HELD | tie::REQUEST);
        let lending = self.serve(slot, source);
        if lending.is_some() {
            slot.source.set((source, offset));
        }
        Ok((slot.id(), self.fetch_entry(index, slot, lending, (source, offset, len))))
    }

    /// The same, and pushes the request. `None`: `push` had no room for it.
    #[inline(always)]
    pub(super) fn start_fetch(
        &self,
        (source, offset, len): (Source, u64, u32),
        note: u32,
        push: impl FnOnce(&[Entry]) -> bool,
    ) -> Result<Option<LeaseId>> {
        let (index, slot) = self.reserve(len, Phase::Fetching)?;
        slot.note.set(note);
        slot.ties.set(tie::HELD | tie::REQUEST);
        let fetch = (source, offset, len);
        let pushed = match self.serve(slot, source) {
            None => push(&[self.fetch_entry(index, slot, None, fetch)]),
            lending => {
                slot.source.set((source, offset));
                push(&[self.fetch_entry(index, slot, lending, fetch)])
            }
        };
        if pushed {
            return Ok(Some(slot.id()));
        }
        self.undo(index);
        Ok(None)
    }

    /// Reserves a slot for a chain, whose requests are still to be made.
    #[inline(always)]
    pub(super) fn chain(&self, chain: Chain, note: u32) -> Result<(LeaseId, ReadyChain<'_>)> {
        if matches!(chain.consumer, Consumer::SendZc { .. }) {
            self.features.need_send_zc()?;
        }
        let (index, slot) = self.reserve(chain.len, Phase::Chained)?;
        slot.ties.set(tie::REQUEST);
        slot.note.set(note);
        let chain = Chain { consumer: chain.consumer.waiting_for_all(), ..chain };
        let lending = self.serve(slot, chain.source);
        if lending.is_some() {
            slot.keep(&chain);
        }
        Ok((slot.id(), ReadyChain { core: self, index, slot, lending, chain }))
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn free(&self) -> usize {
        (self.freed.get() - self.taken.get()) as usize
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            fetches: self.taken.get(),
            fallbacks: self.fallbacks.get(),
            stale: self.stale.get(),
        }
    }

    /// Requests that the kernel may have. A fetch that waits to be sent once more is not one.
    pub(super) fn in_flight(&self) -> u64 {
        let fetching = |slot: &&Slot| matches!(slot.phase.get(), Phase::Fetching | Phase::Chained);
        let waiting =
            self.slots.iter().filter(|slot| slot.is(tie::QUEUED)).filter(fetching).count();
        let counted: u64 = self.slots.iter().map(|slot| u64::from(slot.requests())).sum();
        counted - waiting as u64
    }

    /// Has fetches and chains that have not ended told of when they end: those whose notes
    /// `counts` counts. The sum.
    pub(super) fn watch(&self, counts: impl Fn(u32) -> u32) -> u32 {
        let running = |slot: &&Slot| matches!(slot.phase.get(), Phase::Fetching | Phase::Chained);
        let counts = |slot: &Slot| {
            let count = counts(slot.note.get());
            if count > 0 {
                slot.expect_nothing();
            }
            count
        };
        self.slots.iter().filter(running).map(counts).sum()
    }

    pub(super) fn is_emptying(&self) -> bool {
        self.slots.iter().any(|slot| slot.is(tie::QUEUED | tie::RELEASING))
    }

    pub(super) fn tag(&self) -> u8 {
        (self.tag >> user_data::TAG_SHIFT) as u8
    }

    #[inline]
    fn slot(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    /// Who serves a fetch at first.
    pub(super) fn engine(&self) -> Engine {
        self.lending.map_or(Engine::Copy, |lending| lending.lender.engine())
    }

    #[inline]
    pub(super) fn max_fetch(&self) -> u32 {
        self.max_fetch
    }

    #[inline(always)]
    pub(super) fn claims(&self, user_data: u64) -> bool {
        (user_data ^ self.tag) >> user_data::KIND_SHIFT < u64::from(DRIVER_KINDS)
    }

    /// Takes a free slot for a fetch of so many bytes.
    #[inline(always)]
    fn reserve(&self, len: u32, phase: Phase) -> Result<(u16, &Slot)> {
        let index = self.free.get();
        // The end of the list is no slot.
        let Some(slot) = self.slots.get(usize::from(index)) else { return Err(self.refusal(len)) };
        if len.wrapping_sub(1) >= self.max_fetch {
            return Err(self.refusal(len));
        }
        Ok((index, self.take(slot, len, phase)))
    }

    /// Takes a slot, which is the first free one.
    #[inline(always)]
    fn take<'a>(&self, slot: &'a Slot, len: u32, phase: Phase) -> &'a Slot {
        self.free.set(slot.next.get());
        self.taken.set(self.taken.get() + 1);
        slot.len.set(len);
        slot.phase.set(phase);
        slot
    }

    /// Decides who serves a slot at first: who lends this source, if anybody does.
    #[inline(always)]
    fn serve(&self, slot: &Slot, source: Source) -> Option<&Lending> {
        let lending = self.lending.as_ref();
        match lending {
            Some(lending) if source.lent_by(lending.lender).is_none() && self.pool.is_some() => {
                self.fallbacks.set(self.fallbacks.get() + 1);
                slot.server.set(Server::Pool);
                None
            }
            Some(_) => {
                slot.server.set(Server::Lender);
                lending
            }
            None => {
                slot.server.set(Server::Pool);
                None
            }
        }
    }

    /// Who lends the memory in a slot, if it is not the pool's.
    #[inline(always)]
    fn lending(&self, slot: &Slot) -> Option<&Lending> {
        if slot.is_lent() { self.lending.as_ref() } else { None }
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
        let ties = slot.ties.get();
        if ties == 0 {
            self.vacate(index, slot);
        } else if ties & tie::HELD == 0 {
            self.settle_tied(index, slot);
        }
    }

    /// The same for a slot that something else than its lease ties.
    #[inline(never)]
    fn settle_tied(&self, index: u16, slot: &Slot) {
        if slot.is(tie::QUEUED | tie::RELEASING) {
            return;
        }
        if slot.is(tie::PROVIDED) {
            return self.give_back_provided(index, slot);
        }
        if slot.is(tie::INSTALLED) {
            // A chain is not to be sent again.
            slot.phase.set(Phase::Ready);
            if !self.lending.is_some_and(|lending| lending.replace) {
                return self.enqueue(index, slot);
            }
            slot.unmark(tie::INSTALLED);
            slot.left.set(true);
            self.settle(index, slot);
        }
    }

    /// Puts a slot that nothing ties into the free list.
    #[inline(always)]
    fn vacate(&self, index: u16, slot: &Slot) {
        debug_assert_ne!(slot.phase.get(), Phase::Free, "slot {index} is freed twice");
        slot.phase.set(Phase::Free);
        slot.name.set(slot.name.get() + 1);
        if slot.name.get() & user_data::GENERATION == 0 {
            slot.first_life();
        }
        slot.next.set(self.free.replace(index));
        self.freed.set(self.freed.get() + 1);
    }

    fn enqueue(&self, index: u16, slot: &Slot) {
        let (first, last) = self.outbox.get();
        slot.mark(tie::QUEUED);
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
            return self.next_vacated().map(Outgoing::Clear);
        }
        let slot = self.slot(index);
        self.outbox.set(if index == last { (NIL, NIL) } else { (slot.next.get(), last) });
        slot.unmark(tie::QUEUED);
        Some(match slot.phase.get() {
            // Refused by the lender, and still counted as a request.
            Phase::Fetching => {
                let (source, offset) = slot.source.get();
                let fetch = (source, offset, slot.len.get());
                let entry = self.fetch_entry(index, slot, self.lending(slot), fetch);
                Outgoing::Request(Prepared::new(entry, self, true))
            }
            Phase::Chained => {
                let (lending, chain) = (self.lending(slot), slot.kept());
                let chain = ReadyChain { core: self, index, slot, lending, chain };
                Outgoing::Chain(PreparedChain::new(chain, true))
            }
            _ => {
                slot.mark(tie::RELEASING);
                slot.begin();
                let Lending { lender, first, .. } =
                    self.lending.expect("only a lender installs buffers");
                let user_data = slot.user_data(Kind::Release);
                slot.expect(user_data, 0);
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
        for (index, slot) in (0..).zip(&self.slots) {
            if slot.phase.get() != Phase::Free {
                continue;
            }
            // Out of the free list, which is built anew.
            self.freed.set(self.freed.get() - 1);
            slot.phase.set(Phase::Ready);
            if slot.left.replace(false) {
                slot.mark(tie::INSTALLED);
                self.enqueue(index, slot);
            } else {
                self.settle(index, slot);
            }
        }
    }

    /// The request that fetches so many bytes at an offset of a source.
    #[inline(always)]
    fn fetch_entry(
        &self,
        index: u16,
        slot: &Slot,
        lending: Option<&Lending>,
        (source, offset, len): (Source, u64, u32),
    ) -> Entry {
        let user_data = slot.user_data(Kind::Fetch);
        slot.expect(user_data, len);
        match lending {
            Some(lending) => lending.fetch(index, slot, source, offset, len).user_data(user_data),
            None => self.read_entry(slot, source.file(), offset, len).user_data(user_data),
        }
    }

    #[inline(always)]
    fn read_entry(&self, slot: &Slot, source: Target, offset: u64, len: u32) -> Entry {
        let (block, table) = (slot.block as *mut u8, self.pool_index);
        on!(source, |fd| ReadFixed::new(fd, block, len, table).offset(offset).build())
    }

    /// Bytes `start..start + len` of a slot, as the engine that serves it names them.
    #[inline(always)]
    fn piece(
        &self,
        index: u16,
        slot: &Slot,
        lending: Option<&Lending>,
        start: u32,
        len: u32,
    ) -> Piece {
        let start = u64::from(start);
        match lending {
            Some(lending) => Piece { addr: start, len, index: lending.first + index },
            None => Piece { addr: slot.block + start, len, index: self.pool_index },
        }
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

    /// Says what a completion meant, and tells what it ends. `None`: it is not ours.
    #[inline(always)]
    pub(super) fn complete(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        let name = UseId::of(user_data);
        let Some(slot) = self.slots.get(usize::from(name.lease().slot())) else {
            return self.unknown(user_data, result, flags, driver);
        };
        if slot.awaited.get() == user_data && slot.awaited_result.get() == result && flags == 0 {
            return Some(self.as_asked(name, slot, driver));
        }
        if !slot.is_named_by(user_data) {
            return self.unknown(user_data, result, flags, driver);
        }
        Some(self.otherwise(name, slot, result, flags, driver))
    }

    /// What was [awaited](Slot::awaited) has gone as asked.
    #[inline(always)]
    fn as_asked(&self, name: UseId, slot: &Slot, driver: &impl Driver) -> Event {
        let id = name.lease();
        let done = slot.awaited_result.replace(NEVER) as u32;
        slot.finish();
        let phase = slot.phase.get();
        if phase == Phase::Chained {
            let len = slot.len.get();
            if self.lending(slot).is_some_and(|lending| !lending.chain_releases()) {
                self.installed(slot, len);
            }
            self.settle(id.slot(), slot);
            Event::Chained { id, outcome: ChainOutcome::Done(len) }
        } else if phase == Phase::Fetching {
            slot.phase.set(Phase::Ready);
            self.installed(slot, done);
            self.settle(id.slot(), slot);
            Event::Fetched { lease: id, result: Ok(done) }
        } else if slot.is(tie::RELEASING) {
            // The last request of a slot.
            slot.unmark(tie::RELEASING | tie::INSTALLED);
            self.settle(id.slot(), slot);
            Event::Released { lease: id }
        } else {
            slot.return_sequence(name.sequence());
            self.settle(id.slot(), slot);
            driver.consumer(name.token());
            Event::Used { id: name, result: Ok(done), more: false }
        }
    }

    /// A completion that was not awaited, or not so.
    #[inline(never)]
    fn otherwise(
        &self,
        name: UseId,
        slot: &Slot,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Event {
        match name.kind() {
            Some(Kind::Fetch) => self.fetched(name.lease(), slot, result, driver),
            Some(kind @ (Kind::Use | Kind::UseRanges)) => {
                self.used(name, slot, kind, result, flags, driver)
            }
            Some(Kind::Release) => self.released(name.lease(), slot, result),
            Some(kind @ (Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease)) => {
                self.chained(name, slot, kind, result, flags, driver)
            }
            None => self.stale(),
        }
    }

    /// A completion that names no slot in its present life.
    #[cold]
    fn unknown(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        if self.claims(user_data) {
            Some(self.stray(flags))
        } else {
            driver.other(user_data, result, flags)
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
        let again = refused && slot.server.get() == Server::Lender && self.pool.is_some();
        if again {
            slot.server.set(Server::Pool);
            self.fallbacks.set(self.fallbacks.get() + 1);
        }
        again
    }

    /// A fetch of so many bytes has succeeded.
    #[inline(always)]
    fn installed(&self, slot: &Slot, len: u32) {
        let Some(lending) = self.lending(slot) else { return };
        if len != 0 || lending.lender.installs_empty() {
            slot.left.set(false);
            slot.mark(tie::INSTALLED);
        }
    }

    fn fetched(&self, id: LeaseId, slot: &Slot, result: i32, driver: &impl Driver) -> Event {
        if slot.phase.get() != Phase::Fetching {
            return self.stale();
        }
        slot.expect_nothing();
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
                if slot.server.get() == Server::LenderAlone && *errno == Errno::NOTSUPP {
                    *errno = Errno::CANCELED;
                }
                slot.phase.set(Phase::Failed(*errno));
            }
        }
        self.settle(id.slot(), slot);
        driver.noted(slot.note.get());
        Event::Fetched { lease: id, result }
    }

    fn used(
        &self,
        id: UseId,
        slot: &Slot,
        kind: Kind,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Event {
        let more = io_uring::cqueue::more(flags);
        if !more {
            if !slot.return_sequence(id.sequence()) {
                return self.stray(flags);
            }
            slot.expect_nothing();
            if kind == Kind::UseRanges {
                slot.unmark(tie::RANGING);
            }
            slot.finish();
            self.settle(id.lease().slot(), slot);
            driver.consumer(id.token());
        }
        if io_uring::cqueue::notif(flags) {
            driver.returned(id)
        } else {
            Event::Used { id, result: Errno::check(result), more }
        }
    }

    fn released(&self, id: LeaseId, slot: &Slot, result: i32) -> Event {
        if !slot.is(tie::RELEASING) {
            return self.stale();
        }
        slot.expect_nothing();
        slot.unmark(tie::RELEASING);
        slot.finish();
        // Cancelled: it never ran, and the buffer is still there. Any other error says that there
        // is nothing of ours in the slot.
        let again = Errno::check(result) == Err(Errno::CANCELED);
        if !again {
            slot.unmark(tie::INSTALLED);
        }
        self.settle(id.slot(), slot);
        if again { Event::Pending } else { Event::Released { lease: id } }
    }

    /// A completion of a chain that did not go as asked.
    fn chained(
        &self,
        name: UseId,
        slot: &Slot,
        kind: Kind,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Event {
        if slot.phase.get() != Phase::Chained {
            return self.stray(flags);
        }
        let id = name.lease();
        let releases = chain_len(self.lending(slot)) == 3;
        slot.expect_nothing();
        let mut progress = slot.progress.get();
        let done = match kind {
            // Posted only where it is not as asked. A soft link stops here.
            Kind::ChainFetch => {
                progress.fetched = Some(result);
                !releases
            }
            Kind::ChainUse => {
                let (more, notif) = (io_uring::cqueue::more(flags), io_uring::cqueue::notif(flags));
                if notif && (!progress.unreturned || name.sequence() != attempt(self.lending(slot)))
                {
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
        if !done {
            return Event::Pending;
        }
        if progress.fetched.is_some_and(|result| self.falls_back(slot, result)) {
            self.enqueue(id.slot(), slot);
            return Event::Pending;
        }
        let fetched = progress.fetched.map_or(Ok(slot.len.get()), Errno::check);
        if let (Ok(len), false) = (fetched, releases) {
            self.installed(slot, len);
        }
        // What the chain has left in its slot, if it does not release, is released as that of a
        // lease.
        slot.phase.set(Phase::Ready);
        slot.finish();
        self.settle(id.slot(), slot);
        driver.noted(slot.note.get());
        Event::Chained { id, outcome: progress.outcome(slot.len.get()) }
    }

    /// The request was never pushed.
    #[cold]
    pub(crate) fn retract(&self, user_data: u64, requeue: bool) {
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
        slot.expect_nothing();
        if requeue {
            return self.enqueue(index, slot);
        }
        slot.finish();
        self.settle(index, slot);
    }

    /// There was no room for the requests of a slot: it is as if they had never been.
    #[cold]
    pub(super) fn undo(&self, index: u16) {
        let slot = self.slot(index);
        slot.expect_nothing();
        slot.ties.set(0);
        self.settle(index, slot);
        self.taken.set(self.taken.get() - 1);
        self.freed.set(self.freed.get() - 1);
    }
}

/// A chain in its slot, whose requests can be made.
pub(super) struct ReadyChain<'a> {
    core: &'a Core,
    index: u16,
    slot: &'a Slot,
    /// Who serves it, if not the pool.
    lending: Option<&'a Lending>,
    chain: Chain,
}

impl ReadyChain<'_> {
    #[inline]
    pub(super) fn place(&self) -> (&Core, u16) {
        (self.core, self.index)
    }

    /// How many requests it has.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        if self.lending.is_some_and(Lending::chain_releases) { 3 } else { 2 }
    }

    /// Its linked requests, in their order.
    #[inline(always)]
    pub(super) fn requests<T>(&self, take: impl FnOnce(&[Entry]) -> T) -> T {
        match self.lending {
            None => take(&[self.fetch(None), self.consume(None)]),
            Some(lending) => match self.release(lending) {
                None => take(&[self.fetch(Some(lending)), self.consume(Some(lending))]),
                Some(release) => {
                    take(&[self.fetch(Some(lending)), self.consume(Some(lending)), release])
                }
            },
        }
    }

    /// One of them, by its place.
    #[inline(always)]
    pub(super) fn request(&self, place: usize) -> Option<Entry> {
        match place {
            0 => Some(self.fetch(self.lending)),
            1 => Some(self.consume(self.lending)),
            2 => self.lending.and_then(|lending| self.release(lending)),
            _ => None,
        }
    }

    /// The name of a request. One through the pool has another one than that which a lender
    /// refused before.
    #[inline(always)]
    fn user_data(&self, kind: Kind, lending: Option<&Lending>) -> u64 {
        self.slot.user_data(kind) | u64::from(attempt(lending)) << user_data::SEQUENCE_SHIFT
    }

    /// The fetch, and the link that all but the last have.
    ///
    /// Where the chain ends with the release, the links are hard, so that the slot is emptied in
    /// every case; it holds exactly what was fetched. Otherwise they are soft: a fetch that fails
    /// or comes back short must not be followed by a consumer of what an earlier lease left in the
    /// block or in the slot.
    #[inline(always)]
    fn fetch(&self, lending: Option<&Lending>) -> Entry {
        let Chain { source, offset, len, .. } = self.chain;
        let (fetch, link) = match lending {
            Some(lending) => {
                let fetch = lending.fetch(self.index, self.slot, source, offset, len);
                let hard = lending.chain_releases();
                (fetch, if hard { Flags::IO_HARDLINK } else { Flags::IO_LINK })
            }
            None => (self.core.read_entry(self.slot, source.file(), offset, len), Flags::IO_LINK),
        };
        let user_data = self.user_data(Kind::ChainFetch, lending);
        fetch.flags(link | Flags::SKIP_SUCCESS).user_data(user_data)
    }

    /// The consumer. The last request is the one that completes if all goes as asked.
    #[inline(always)]
    fn consume(&self, lending: Option<&Lending>) -> Entry {
        let Self { core, slot, chain: Chain { len, consumer, .. }, .. } = *self;
        let piece = core.piece(self.index, slot, lending, 0, len);
        let user_data = self.user_data(Kind::ChainUse, lending);
        let flags = if lending.is_some_and(Lending::chain_releases) {
            match consumer {
                // The kernel refuses to skip the completions of SEND_ZC.
                Consumer::SendZc { .. } => Flags::IO_HARDLINK,
                _ => Flags::IO_HARDLINK | Flags::SKIP_SUCCESS,
            }
        } else {
            slot.expect(user_data, len);
            Flags::empty()
        };
        core.consumer_entry(slot, piece, consumer).flags(flags).user_data(user_data)
    }

    /// `None`: the chain does not end with the release.
    #[inline(always)]
    fn release(&self, lending: &Lending) -> Option<Entry> {
        if lending.replace {
            return None;
        }
        let release = lending.lender.release(lending.first + self.index)?;
        let user_data = self.user_data(Kind::ChainRelease, Some(lending));
        self.slot.expect(user_data, 0);
        Some(release.user_data(user_data))
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
        let slot = self.take(self.slot(index), resolved.len(), Phase::Ready);
        slot.ties.set(tie::HELD | tie::PROVIDED);
        slot.server.set(Server::Provider);
        provided.put(index, resolved);
        Ok(slot.id())
    }

    /// When nobody uses its memory any more, the provider is told, and that last: it may let other
    /// leases go.
    #[cold]
    fn give_back_provided(&self, index: u16, slot: &Slot) {
        if slot.requests() > 0 {
            return;
        }
        slot.unmark(tie::PROVIDED);
        self.settle(index, slot);
        if let Some(provided) = &self.provided {
            provided.release(index);
        }
    }

    #[cold]
    fn provided_piece(&self, index: u16, start: u32, len: u32) -> Piece {
        let provided = self.provided.as_ref().expect("it was filled by a provider");
        provided.piece(index, start, len)
    }

    pub(super) fn next_vacated(&self) -> Option<Clear<'_>> {
        Some(Clear::entry(self, self.provided.as_ref()?.next_vacated()?))
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
        slot.unmark(tie::HELD);
        self.settle(index, slot);
    }

    /// Has a fetch that is being cancelled not repeated through the pool.
    pub(super) fn cancel_fallback(&self, index: u16) {
        let server = &self.slot(index).server;
        if server.get() == Server::Lender {
            server.set(Server::LenderAlone);
        }
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
    #[inline(always)]
    pub(crate) fn piece_of(&self, index: u16, start: u32, len: u32) -> Piece {
        let slot = self.slot(index);
        if slot.server.get() == Server::Provider {
            return self.provided_piece(index, start, len);
        }
        self.piece(index, slot, self.lending(slot), start, len)
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
        match self.slot(index).server.get() {
            Server::Pool => Engine::Copy,
            Server::Lender | Server::LenderAlone => self.engine(),
            Server::Provider => Engine::Provider,
        }
    }

    pub(crate) fn uses(&self, index: u16) -> u32 {
        let slot = self.slot(index);
        slot.requests() - u32::from(slot.is(tie::RELEASING))
    }

    /// Whether a lease that was released has left its slot.
    pub(crate) fn is_over(&self, id: LeaseId) -> bool {
        let slot = self.slot(id.slot());
        slot.id() != id || slot.phase.get() == Phase::Free
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
        let piece = self.piece_of(index, start, len);
        let entry = self.consumer_entry(slot, piece, consumer);
        let entry = counted(slot, Kind::Use, entry, token)?;
        slot.expect(entry.get_user_data(), len);
        Ok(entry)
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
        if slot.is(tie::RANGING) {
            return Err(Error::new(
                ErrorKind::Busy,
                "a lease takes one vectored write at a time: let the other one complete first",
            ));
        }
        let cell = &self.ranges[usize::from(index)];
        let mut vector = cell.get();
        let mut table = 0;
        for (place, (start, len)) in vector.iter_mut().zip(ranges) {
            let piece = self.piece_of(index, start, len);
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
        let request = counted(slot, Kind::UseRanges, entry, 0)?;
        slot.mark(tie::RANGING);
        Ok(request)
    }

    /// A request that can be taken back.
    #[inline]
    pub(crate) fn prepare(&self, entry: Entry) -> Prepared<'_> {
        Prepared::new(entry, self, false)
    }
}

/// Counts a use and gives it its name.
#[inline(always)]
fn counted(slot: &Slot, kind: Kind, entry: Entry, token: u16) -> Result<Entry> {
    let Some(sequence) = slot.take_sequence() else { return Err(too_many_uses()) };
    slot.begin();
    let user_data = slot.user_data(kind)
        | u64::from(sequence) << user_data::SEQUENCE_SHIFT
        | u64::from(token) << user_data::TOKEN_SHIFT;
    Ok(entry.user_data(user_data))
}

/// How many requests a chain has.
#[inline(always)]
fn chain_len(lending: Option<&Lending>) -> usize {
    if lending.is_some_and(Lending::chain_releases) { 3 } else { 2 }
}

/// Distinguishes the names of a chain's requests: first those of a lender, then those of the pool.
#[inline]
fn attempt(lending: Option<&Lending>) -> u8 {
    u8::from(lending.is_none())
}

#[cold]
fn too_many_uses() -> Error {
    let what = "256 requests use the lease, and it can name no more: let one complete first";
    Error::new(ErrorKind::Busy, what)
}

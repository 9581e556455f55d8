// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table: which slots are free, what has to be sent, and to which slot a completion goes.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::rc::Rc;
use std::{fmt, io};

use io_uring::squeue::{Entry, Flags};

use super::complete::attempt;
use super::event::{Event, Stats};
use super::ident::{DRIVER_KINDS, Kind, UseId, user_data};
use super::prepared::{Clear, Outgoing, Prepared, PreparedChain};
use super::provided::{Provided, Resolved};
use super::slot::{Slot, state};
use crate::chain::Chain;
use crate::consume::{Consumer, MAX_RANGES};
use crate::engine::{Ending, Engine, Lender, Place, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::opcode::{Sqe, read_fixed};
use crate::pool::Pool;
use crate::probe::Features;
use crate::provider::{Answer, Provider};

/// What ties a slot that is fetched into, and one that a chain goes through.
pub(super) const FETCH: u32 = state::HELD | state::FETCHING | state::AWAITED | state::REQUEST;
pub(super) const CHAIN: u32 = state::CHAINED | state::AWAITED | state::REQUEST;

/// End of a list of slots.
const NIL: u16 = u16::MAX;

/// Who drives the slots: is told what a completion ends, and has the last word on some of them.
pub(crate) trait Driver {
    /// A fetch or a chain that was given this note has had its last completion. If that is as it
    /// was to be expected, only those that are [watched](Table::watch) are told of.
    fn noted(&self, _note: u32) {}
    /// The same of a use with this token.
    fn used(&self, _token: u16) {}
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
    pub(super) ending: Ending,
}

/// What the slots of a table share, and leases keep.
pub(crate) struct Core {
    pub(super) lending: Option<Lending>,
    pub(super) pool: Option<Pool>,
    /// The pool's index in the ring's table.
    pub(super) pool_index: u16,
    /// How many slots there are.
    count: u16,
    /// The first slot of the free list.
    pub(super) free: Cell<u16>,
    /// Most bytes of one fetch.
    max_fetch: u32,
    pub(super) features: Features,
    /// The tag, in its place.
    pub(super) tag: u64,
    /// How often slots were taken from the free list, and put there.
    pub(super) taken: Cell<u64>,
    pub(super) freed: Cell<u64>,
    /// First and last of the slots that have something to send, and which comes after each.
    outbox: Cell<(u16, u16)>,
    queue: Box<[Cell<u16>]>,
    pub(super) provided: Option<Provided>,
    /// One array of ranges per slot, for vectored writes.
    pub(super) ranges: Box<[Cell<[libc::iovec; MAX_RANGES]>]>,
    pub(super) fallbacks: Cell<u64>,
    stale: Cell<u64>,
}

/// The slots of one ring.
pub(super) struct Table {
    core: Rc<Core>,
    pub(super) slots: Box<[Rc<Slot>]>,
}

impl Deref for Table {
    type Target = Rc<Core>;

    #[inline(always)]
    fn deref(&self) -> &Rc<Core> {
        &self.core
    }
}

impl Lending {
    pub(super) fn new(lender: Lender, first: u16) -> Self {
        Self { lender, first, replace: false, ending: Ending::Left }
    }

    /// `hands_over`: a fetch can hand its buffer to the next request of the link.
    pub(super) fn ending(self, replace: bool, hands_over: bool) -> Self {
        let ending = if replace {
            Ending::Left
        } else if hands_over && self.lender.hands_over() {
            Ending::HandedOver
        } else if self.lender.can_release() {
            Ending::Released
        } else {
            Ending::Left
        };
        Self { replace, ending, ..self }
    }

    /// A slot's bytes are what is lent.
    #[inline(always)]
    fn fill(&self, slot: &Slot) {
        slot.base.set(0);
        slot.buffer.set(self.first + slot.index);
    }

    /// The fetch into its slot.
    #[inline(always)]
    fn fetch(&self, slot: &Slot, source: Source, offset: u64, len: u32) -> Sqe {
        let to = if slot.is(state::LEFT) { Place::Taken } else { Place::Free };
        self.fetch_to(to, slot, source, offset, len)
    }

    #[inline(always)]
    fn fetch_to(&self, to: Place, slot: &Slot, source: Source, offset: u64, len: u32) -> Sqe {
        let lent = source.lent_by(self.lender).unwrap_or(source.file());
        self.lender.fetch(lent, offset, len, slot.buffer.get(), to)
    }

    /// Whether a chain ends with the release of its slot.
    #[inline(always)]
    pub(super) fn chain_releases(&self) -> bool {
        self.ending == Ending::Released
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("slots", &self.count)
            .field("free", &self.free())
            .field("lending", &self.lending)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Core {
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

    pub(super) fn tag(&self) -> u8 {
        (self.tag >> user_data::TAG_SHIFT) as u8
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

    #[cold]
    pub(super) fn refusal(&self, len: u32) -> Error {
        let most = self.max_fetch;
        if len == 0 || len > most {
            let what = format!("a fetch of {len} bytes: it can ask for 1 to {most} bytes");
            return Error::new(ErrorKind::InvalidInput, what);
        }
        let slots = self.count;
        let what =
            format!("all {slots} slots are taken: release a lease, or let requests complete");
        Error::new(ErrorKind::NoSlot, what)
    }

    /// A completion that names no slot in its present life.
    #[cold]
    pub(super) fn unknown(
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
    pub(super) fn stale(&self) -> Event {
        self.stale.set(self.stale.get() + 1);
        Event::Stale
    }

    /// A completion that answers nothing. The kernel sends a notification for a `SEND_ZC` that
    /// never ran, because a request before it in its link failed, and does not announce it
    /// (`IORING_CQE_F_MORE`) in the first completion, if it posts that at all. Nothing has used
    /// the buffer then, so nobody waits for it.
    #[cold]
    pub(super) fn stray(&self, flags: u32) -> Event {
        if io_uring::cqueue::notif(flags) { Event::Pending } else { self.stale() }
    }

    /// Takes a slot, which is the first free one.
    #[inline(always)]
    pub(super) fn take(&self, slot: &Slot, len: u32) {
        self.free.set(slot.next.get());
        self.taken.set(self.taken.get() + 1);
        slot.begin_life();
        slot.len.set(len);
    }

    /// Decides who serves a slot at first: who lends this source, if anybody does. `ties` are the
    /// slot's from here on.
    #[inline(always)]
    fn serve(&self, slot: &Slot, source: impl Fn() -> Source, ties: u32) -> Option<&Lending> {
        let Some(lending) = &self.lending else {
            slot.state.set(ties);
            return None;
        };
        let left = slot.state.get() & state::LEFT;
        if source().lent_by(lending.lender).is_none() && self.pool.is_some() {
            self.fallbacks.set(self.fallbacks.get() + 1);
            slot.state.set(ties | left);
            slot.fill_from_pool();
            return None;
        }
        slot.state.set(ties | left | state::LENT);
        lending.fill(slot);
        Some(lending)
    }

    /// Puts a slot into the outbox.
    pub(super) fn enqueue(&self, slot: &Slot) {
        let (index, (first, last)) = (slot.index, self.outbox.get());
        slot.mark(state::QUEUED);
        self.queue[usize::from(index)].set(NIL);
        if last == NIL {
            self.outbox.set((index, index));
        } else {
            self.queue[usize::from(last)].set(index);
            self.outbox.set((first, index));
        }
    }

    #[inline]
    pub(super) fn has_requests(&self) -> bool {
        self.outbox.get().0 != NIL || self.provided.as_ref().is_some_and(Provided::has_vacated)
    }

    /// Where a slot's block of the pool begins; 0 without a pool.
    pub(super) fn block(&self, index: u16) -> u64 {
        self.pool.as_ref().map_or(0, |pool| pool.block(index) as u64)
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
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

impl Table {
    pub(super) fn new(
        count: u16,
        lending: Option<Lending>,
        pool: Option<(Pool, u16)>,
        regions: Option<(u16, u16)>,
        features: Features,
        tag: u8,
    ) -> Self {
        let no_range = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let (pool, pool_index) = pool.map_or((None, 0), |(pool, index)| (Some(pool), index));
        let core = Rc::new(Core {
            max_fetch: pool.as_ref().map_or(i32::MAX as u32, Pool::block_size),
            lending,
            pool,
            pool_index,
            count,
            free: Cell::new(0),
            features,
            tag: u64::from(tag) << user_data::TAG_SHIFT,
            taken: Cell::new(0),
            freed: Cell::new(count.into()),
            outbox: Cell::new((NIL, NIL)),
            queue: (0..count).map(|_| Cell::new(NIL)).collect(),
            provided: regions.map(|(first, regions)| Provided::new(count, first, regions)),
            ranges: (0..count).map(|_| Cell::new([no_range; MAX_RANGES])).collect(),
            fallbacks: Cell::new(0),
            stale: Cell::new(0),
        });
        let slot = |index: u16| {
            let next = if index + 1 < count { index + 1 } else { NIL };
            Rc::new(Slot::new(Rc::clone(&core), index, next))
        };
        let slots = (0..count).map(slot).collect();
        Self { core, slots }
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Reserves a slot, which is held from here on, and makes the request that fills it.
    #[inline(always)]
    pub(super) fn fetch(
        &self,
        source: Source,
        offset: u64,
        len: u32,
    ) -> Result<(Rc<Slot>, &Slot, Sqe)> {
        let core = &**self.core();
        let (held, slot) = self.hold(core, len)?;
        let lending = core.serve(slot, || source, FETCH);
        if lending.is_some() {
            slot.source.set((source, offset));
        }
        Ok((held, slot, self.fetch_request(slot, lending, (source, offset, len))))
    }

    /// The same, and pushes the request.
    #[inline(always)]
    pub(super) fn start_fetch(
        &self,
        source: impl Fn() -> Source,
        (offset, len): (u64, u32),
        note: u32,
        push: impl FnOnce(Sqe),
    ) -> Result<Rc<Slot>> {
        let core = &**self.core();
        let (held, slot) = self.hold(core, len)?;
        // Nothing below panics, and is not to be cleaned up after as if it could.
        let held = ManuallyDrop::new(held);
        slot.note.set(note);
        // Straight code for each of the two, which looks only at what it needs of the source.
        match core.serve(slot, &source, FETCH) {
            None => push(self.fetch_request(slot, None, (source(), offset, len))),
            lending => {
                slot.source.set((source(), offset));
                push(self.fetch_request(slot, lending, (source(), offset, len)));
            }
        }
        Ok(ManuallyDrop::into_inner(held))
    }

    /// Reserves a slot for a chain, whose requests are still to be made.
    #[inline(always)]
    pub(super) fn chain(&self, chain: Chain, note: u32) -> Result<ReadyChain<'_>> {
        if matches!(chain.consumer, Consumer::SendZc { .. }) {
            self.features.need_send_zc()?;
        }
        let slot = self.reserve(chain.len)?;
        slot.note.set(note);
        let chain = Chain { consumer: chain.consumer.waiting_for_all(), ..chain };
        let lending = self.serve(slot, || chain.source, CHAIN);
        if lending.is_some() {
            slot.keep(&chain);
        }
        Ok(ReadyChain { slot, lending, chain })
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Requests that the kernel may have. A fetch that waits to be sent once more is not one.
    pub(super) fn in_flight(&self) -> u64 {
        let counted = |slot: &Rc<Slot>| {
            let waits = slot.is(state::QUEUED) && slot.is(state::FILLING);
            u64::from(slot.requests() - u32::from(waits))
        };
        self.slots.iter().map(counted).sum()
    }

    /// Has those that have not ended told of when they end: fetches and chains whose notes `counts`
    /// counts, and uses with this token. The sum.
    pub(super) fn watch(&self, counts: impl Fn(u32) -> u32, token: u16) -> u32 {
        let count = |slot: &Rc<Slot>| {
            if !slot.is(state::FILLING) {
                return slot.watch_uses(token);
            }
            let count = counts(slot.note.get());
            if count > 0 {
                slot.expect_nothing();
            }
            count
        };
        self.slots.iter().map(count).sum()
    }

    pub(super) fn is_emptying(&self) -> bool {
        self.slots.iter().any(|slot| slot.is(state::QUEUED | state::RELEASING))
    }

    #[inline(always)]
    pub(super) fn slot(&self, index: u16) -> &Rc<Slot> {
        &self.slots[usize::from(index)]
    }

    /// A free slot for so many bytes.
    #[inline(always)]
    fn next_free(&self, core: &Core, len: u32) -> Result<&Rc<Slot>> {
        let index = core.free.get();
        // The end of the list is no slot.
        let Some(slot) = self.slots.get(usize::from(index)) else { return Err(self.refused(len)) };
        if len.wrapping_sub(1) >= core.max_fetch {
            return Err(self.refused(len));
        }
        Ok(slot)
    }

    // Finds the core by itself, so that nobody else has to.
    #[cold]
    fn refused(&self, len: u32) -> Error {
        self.refusal(len)
    }

    /// Takes it.
    #[inline(always)]
    fn reserve(&self, len: u32) -> Result<&Slot> {
        let core = &**self.core();
        let slot = self.next_free(core, len)?;
        core.take(slot, len);
        Ok(slot)
    }

    /// The same for a lease.
    // Cloned before anything is written: then it need not be looked up again.
    #[inline(always)]
    fn hold(&self, core: &Core, len: u32) -> Result<(Rc<Slot>, &Slot)> {
        let slot = self.next_free(core, len)?;
        let held = Rc::clone(slot);
        core.take(slot, len);
        Ok((held, slot))
    }

    #[inline(always)]
    pub(super) fn next_request(&self) -> Option<Outgoing<'_>> {
        const RELEASED: u32 = state::LENT | state::QUEUED;
        let (index, last) = self.outbox.get();
        if index != NIL && self.slot(index).state.get() == RELEASED {
            let (slot, lender) = (self.slot(index), self.lending.as_ref()?.lender);
            if let Some(release) = lender.release(slot.buffer.get()) {
                self.take_from_outbox(index, last);
                let release = release.user_data(Self::begin_release(slot));
                return Some(Outgoing::Request(Prepared::new(release, slot, true)));
            }
        }
        // As in `Slot::told`.
        let mut next = None;
        self.next_otherwise(&mut next);
        next
    }

    #[inline(always)]
    fn take_from_outbox(&self, index: u16, last: u16) {
        let next = self.queue[usize::from(index)].get();
        self.outbox.set(if index == last { (NIL, NIL) } else { (next, last) });
    }

    /// A slot that waited for its release has it now; its name.
    #[inline(always)]
    fn begin_release(slot: &Slot) -> u64 {
        const RELEASING: u32 = state::RELEASING + state::AWAITED + state::REQUEST;
        slot.state.set(slot.state.get() - state::QUEUED + RELEASING);
        let user_data = slot.user_data(Kind::Release);
        slot.expect(user_data);
        user_data
    }

    /// The same for a slot whose buffer somebody uses, and for whatever else has to be sent.
    #[inline(never)]
    fn next_otherwise<'a>(&'a self, outgoing: &mut Option<Outgoing<'a>>) {
        let (index, last) = self.outbox.get();
        if index == NIL {
            *outgoing = self.next_vacated().map(Outgoing::Clear);
            return;
        }
        let slot = self.slot(index);
        self.take_from_outbox(index, last);
        // Refused by the lender, and still counted as a request.
        *outgoing = Some(if slot.is(state::FETCHING) {
            slot.state.set(slot.state.get() & !state::QUEUED | state::AWAITED);
            let (source, offset) = slot.source.get();
            let fetch = (source, offset, slot.len.get());
            let request = self.fetch_request(slot, slot.lending(), fetch);
            Outgoing::Request(Prepared::new(request, slot, true))
        } else if slot.is(state::CHAINED) {
            slot.state.set(slot.state.get() & !state::QUEUED | state::AWAITED);
            let (lending, chain) = (slot.lending(), slot.kept());
            let chain = ReadyChain { slot, lending, chain };
            Outgoing::Chain(PreparedChain::new(chain, true))
        } else {
            slot.expect_no_use();
            let lending = self.lending.as_ref().expect("only a lender installs buffers");
            let (place, user_data) = (slot.buffer.get(), Self::begin_release(slot));
            match lending.lender.release(place) {
                Some(release) => {
                    Outgoing::Request(Prepared::new(release.user_data(user_data), slot, true))
                }
                None => Outgoing::Clear(Clear::new(slot, place, user_data)),
            }
        });
    }

    /// Sends away what replaced slots still hold.
    pub(super) fn trim(&self) {
        self.core.free.set(NIL);
        for slot in self.slots.iter().filter(|slot| slot.is(state::FREE)) {
            // Out of the free list, which is built anew.
            self.freed.set(self.freed.get() - 1);
            let left = slot.is(state::LEFT);
            slot.state.set(0);
            if let (true, Some(lending)) = (left, &self.lending) {
                slot.begin_life();
                slot.mark(state::LENT);
                lending.fill(slot);
                self.enqueue(slot);
            } else {
                slot.vacate(0);
            }
        }
    }

    /// The request that fetches so many bytes at an offset of a source.
    #[inline(always)]
    pub(super) fn fetch_request(
        &self,
        slot: &Slot,
        lending: Option<&Lending>,
        (source, offset, len): (Source, u64, u32),
    ) -> Sqe {
        let user_data = slot.user_data(Kind::Fetch);
        slot.expect(user_data);
        let request = match lending {
            Some(lending) => lending.fetch(slot, source, offset, len),
            None => read_request(slot, source, offset, len),
        };
        request.user_data(user_data)
    }

    /// A completion that names no slot at all. As [`Slot::otherwise`].
    #[cold]
    fn foreign(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
        event: &mut Option<Event>,
    ) {
        *event = self.unknown(user_data, result, flags, driver);
    }

    /// The slot that a `user_data` names, in whatever life.
    #[inline(always)]
    pub(super) fn named(&self, user_data: u64) -> Option<&Slot> {
        self.slots.get(usize::from(UseId::of(user_data).lease().slot())).map(|slot| &**slot)
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
        match self.named(user_data) {
            Some(slot) => slot.told(user_data, result, flags, driver),
            None => {
                let mut event = None;
                self.foreign(user_data, result, flags, driver, &mut event);
                event
            }
        }
    }
}

/// A chain in its slot, whose requests can be made.
pub(super) struct ReadyChain<'a> {
    pub(super) slot: &'a Slot,
    /// Who serves it, if not the pool.
    pub(super) lending: Option<&'a Lending>,
    pub(super) chain: Chain,
}

impl ReadyChain<'_> {
    /// How many requests it has.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        if self.lending.is_some_and(Lending::chain_releases) { 3 } else { 2 }
    }

    /// Its linked requests, in their order.
    #[inline(always)]
    pub(super) fn requests<T>(&self, take: impl FnOnce(&[Entry]) -> T) -> T {
        match self.lending {
            None => take(&[self.fetch(None).entry(), self.consume(None).entry()]),
            Some(lending) => match self.release(lending) {
                None => {
                    take(&[self.fetch(Some(lending)).entry(), self.consume(Some(lending)).entry()])
                }
                Some(release) => take(&[
                    self.fetch(Some(lending)).entry(),
                    self.consume(Some(lending)).entry(),
                    release.entry(),
                ]),
            },
        }
    }

    /// One of them, by its place.
    #[inline(always)]
    pub(super) fn request(&self, place: usize) -> Option<Sqe> {
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
    /// Where nothing is to be left in the slot, the links are hard: so the slot is emptied in every
    /// case, or the buffer goes to the consumer in every case; it is exactly what was fetched.
    /// Otherwise they are soft: a fetch that fails or comes back short must not be followed by a
    /// consumer of what an earlier lease left in the block or in the slot.
    #[inline(always)]
    pub(super) fn fetch(&self, lending: Option<&Lending>) -> Sqe {
        let Chain { source, offset, len, .. } = self.chain;
        let (fetch, link) = match lending {
            Some(lending) => {
                let (slot, ending) = (self.slot, lending.ending);
                let fetch = if ending == Ending::HandedOver {
                    lending.fetch_to(Place::Next, slot, source, offset, len)
                } else {
                    lending.fetch(slot, source, offset, len)
                };
                let hard = ending != Ending::Left;
                (fetch, if hard { Flags::IO_HARDLINK } else { Flags::IO_LINK })
            }
            None => (read_request(self.slot, source, offset, len), Flags::IO_LINK),
        };
        let user_data = self.user_data(Kind::ChainFetch, lending);
        fetch.flags(link | Flags::SKIP_SUCCESS).user_data(user_data)
    }

    /// The consumer. The last request is the one that completes if all goes as asked.
    #[inline(always)]
    pub(super) fn consume(&self, lending: Option<&Lending>) -> Sqe {
        let Self { slot, chain: Chain { len, consumer, .. }, .. } = *self;
        let user_data = self.user_data(Kind::ChainUse, lending);
        let flags = if lending.is_some_and(Lending::chain_releases) {
            match consumer {
                // The kernel refuses to skip the completions of SEND_ZC.
                Consumer::SendZc { .. } => Flags::IO_HARDLINK,
                _ => Flags::IO_HARDLINK | Flags::SKIP_SUCCESS,
            }
        } else {
            match consumer {
                // Its completions have flags.
                Consumer::SendZc { .. } => slot.expect_nothing(),
                _ => slot.expect(user_data),
            }
            Flags::empty()
        };
        slot.consumer_request(slot.bytes(0, len), consumer).flags(flags).user_data(user_data)
    }

    /// `None`: the chain does not end with the release.
    #[inline(always)]
    pub(super) fn release(&self, lending: &Lending) -> Option<Sqe> {
        if !lending.chain_releases() {
            return None;
        }
        let release = lending.lender.release(lending.first + self.slot.index)?;
        let user_data = self.user_data(Kind::ChainRelease, Some(lending));
        self.slot.expect(user_data);
        Some(release.user_data(user_data))
    }
}

/// The request that reads into a slot's block of the pool.
#[inline(always)]
fn read_request(slot: &Slot, source: Source, offset: u64, len: u32) -> Sqe {
    read_fixed(source.file(), slot.base.get(), len, slot.buffer.get(), offset)
}

/// Memory of providers.
impl Table {
    /// Asks a provider. `None`: it has nothing there.
    pub(super) fn provide(
        &self,
        provider: &Rc<dyn Provider>,
        (offset, len): (u64, u32),
        nowait: bool,
        register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Option<Rc<Slot>>> {
        let provided = self.provided()?;
        if len == 0 || offset > i64::MAX as u64 {
            let what = format!("a fetch of {len} bytes at {offset} of a provider");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        if self.free() == 0 {
            return Err(self.refusal(1));
        }
        let Some(answer) = Answer::of(&**provider, offset, len, nowait)? else { return Ok(None) };
        self.fill_provided(provided.resolve(provider, answer, register)?).map(Some)
    }

    /// Gives a buffer that is ready to a slot, which is so at once.
    fn fill_provided(&self, resolved: Resolved) -> Result<Rc<Slot>> {
        let provided = self.provided()?;
        let Some(slot) = self.slots.get(usize::from(self.free.get())) else {
            provided.refuse(resolved);
            return Err(self.refusal(1));
        };
        self.take(slot, resolved.len());
        slot.state.set(state::HELD | state::PROVIDED | slot.state.get() & state::LEFT);
        provided.put(slot.index, resolved);
        Ok(Rc::clone(slot))
    }
}

impl Core {
    pub(super) fn provided(&self) -> Result<&Provided> {
        self.provided.as_ref().ok_or_else(|| {
            let what = "the ring was built without room for a provider's memory";
            Error::new(ErrorKind::NoRegion, what)
        })
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
